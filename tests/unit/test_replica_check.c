/* The replica check: the vote, and planted bit flips at every ZeRO stage. */
#define _GNU_SOURCE
#include "trainer_harness.h"

#include "worker/replica_check.h"

#include <time.h>
#include <unistd.h>

static const char yaml[] = "model: {model_type: gpt2, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2}\n"
                           "data: {train: [{path: 'synthetic:9000'}], sequence_length: 12}\n"
                           "train: {steps: 50, global_batch_size: 12, micro_batch_size: 3}\n"
                           "fault: {replica_check_every: 5}\n";

static void assert_vote(const uint64_t *hashes, int ranks, int parts, bool differs, int rank, int one, int other) {
    struct ls_replica_difference difference = {.rank = -7, .one = -7, .other = -7};
    assert_int_equal(ls_replica_vote(hashes, ranks, parts, &difference), differs);
    if (!differs) return;
    assert_int_equal(difference.rank, rank);
    assert_int_equal(difference.one, one);
    assert_int_equal(difference.other, other);
}

static void three_copies_tell_which_one_is_wrong(void **unused) {
    (void)unused;
    assert_vote((uint64_t[]){7}, 1, 1, false, 0, 0, 0);
    assert_vote((uint64_t[]){7, 7, 7, 7}, 4, 1, false, 0, 0, 0);
    assert_vote((uint64_t[]){7, 7, 8}, 3, 1, true, 2, 0, 2);
    assert_vote((uint64_t[]){8, 7, 7}, 3, 1, true, 0, 0, 1);
    assert_vote((uint64_t[]){7, 8, 7, 7}, 4, 1, true, 1, 0, 1);
    assert_vote((uint64_t[]){7, 8, 7, 9, 7}, 5, 1, true, 1, 0, 1); /* the first of two */
}

static void fewer_say_what_they_cannot_tell(void **unused) {
    (void)unused;
    assert_vote((uint64_t[]){7, 8}, 2, 1, true, -1, 0, 1);
    assert_vote((uint64_t[]){7, 7, 8, 8}, 4, 1, true, -1, 0, 2); /* as many as contradict */
    assert_vote((uint64_t[]){7, 8, 9}, 3, 1, true, -1, 0, 1);
    struct ls_error error;
    assert_int_equal(
        ls_replica_refuse(&(struct ls_replica_difference){.step = 9, .rank = -1, .one = 0, .other = 1}, &error),
        LS_ERROR);
    assert_non_null(strstr(error.text, "behind step 9 ranks 0 and 1 hold different parameters"));
    assert_non_null(strstr(error.text, "three copies"));
}

/* So many copies that all differ, or say two things in equal numbers, once took hours: each was counted against each.
 */
static void a_vote_of_very_many_copies_takes_no_time(void **unused) {
    (void)unused;
    enum { RANKS = 98304, SECONDS_MAX = 20 };
    uint64_t *hashes = malloc(RANKS * sizeof *hashes);
    assert_non_null(hashes);
    alarm(SECONDS_MAX * 30); /* or it ends much later */
    const clock_t begin = clock();
    for (int i = 0; i < RANKS; i++) hashes[i] = (uint64_t)i * 7;
    assert_vote(hashes, RANKS, 1, true, -1, 0, 1);
    assert_vote(hashes, RANKS, 8, true, -1, 0, 8);
    for (int i = 0; i < RANKS; i++) hashes[i] = (uint64_t)i % 2;
    assert_vote(hashes, RANKS, 1, true, -1, 0, 1);
    hashes[RANKS - 1] = 0; /* one more than half */
    assert_vote(hashes, RANKS, 1, true, 1, 0, 1);
    assert_true((double)(clock() - begin) / CLOCKS_PER_SEC < SECONDS_MAX);
    alarm(0);
    free(hashes);
}

/* Six ranks in three groups of two: slices 0 on ranks 0, 2, 4; slices 1 on 1, 3, 5. */
static void slices_are_compared_with_their_copies(void **unused) {
    (void)unused;
    assert_vote((uint64_t[]){1, 2, 1, 2, 1, 2}, 6, 2, false, 0, 0, 0);
    assert_vote((uint64_t[]){1, 2, 1, 3, 1, 2}, 6, 2, true, 3, 1, 3);
    assert_vote((uint64_t[]){4, 2, 1, 2, 1, 2}, 6, 2, true, 0, 0, 2);
    struct ls_config config = {.zero = {.stage = 3, .replicas = 3}};
    assert_int_equal(ls_replica_parts(&config, 6), 2);
    config.zero.stage = 2;
    assert_int_equal(ls_replica_parts(&config, 6), 1);
}

static struct run run_of(int ranks, int stage, int replicas) {
    struct run run = {.config = harness_config(yaml), .ranks = ranks, .steps = 22};
    run.config.zero.stage = stage;
    run.config.zero.replicas = replicas;
    return run;
}

static void equal_copies_change_nothing(void **unused) {
    (void)unused;
    static const struct {
        int ranks, stage, replicas;
    } runs[] = {{1, 0, 1}, {3, 0, 1}, {2, 1, 1}, {4, 2, 2}, {4, 3, 2}};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        struct run checked = run_of(runs[i].ranks, runs[i].stage, runs[i].replicas), plain = checked;
        plain.config.fault.replica_check_every = 0;
        harness_run_well(&checked);
        harness_run_well(&plain);
        assert_int_equal(checked.weight_count, plain.weight_count);
        assert_memory_equal(checked.weights, plain.weights, (size_t)plain.weight_count * sizeof(float));
        harness_free(&checked);
        harness_free(&plain);
    }
}

/* The lowest bit of one number is wrong before step 11: the check behind step 15 finds it at the latest; the norm of
 * one block a step may be earlier. */
static void assert_found(struct run *run, const char *who) {
    harness_run(run);
    for (int rank = 0; rank < run->ranks; rank++) {
        assert_int_equal(run->codes[rank], LS_ERROR);
        if (!strstr(run->errors[rank].text, who)) fail_msg("'%s' is not in: %s", who, run->errors[rank].text);
        int step = 0;
        assert_int_equal(sscanf(run->errors[rank].text, "replicas: behind step %d", &step), 1);
        assert_in_range(step, 11, 15);
    }
    harness_free(run);
}

static void a_flipped_bit_is_laid_to_its_rank(void **unused) {
    (void)unused;
    for (int rank = 0; rank < 4; rank++) {
        char who[32];
        struct run run = run_of(4, 0, 1);
        run.flip_rank = rank + 1;
        run.flip_step = 11;
        snprintf(who, sizeof who, " rank %d holds other", rank);
        assert_found(&run, who);
    }
}

static void two_copies_of_a_slice_name_both_ranks(void **unused) {
    (void)unused;
    struct run run = run_of(4, 3, 2); /* rank 1 has slice 1 of the first group, rank 3 that of the second */
    run.flip_rank = 2;
    run.flip_step = 11;
    assert_found(&run, "ranks");
    struct run whole = run_of(2, 0, 1);
    whole.flip_rank = 1;
    whole.flip_step = 11;
    assert_found(&whole, "ranks 0 and 1 hold different");
}

static void one_copy_is_refused(void **unused) {
    (void)unused;
    struct run run = run_of(2, 3, 1);
    harness_run(&run);
    assert_int_equal(run.codes[0], LS_USAGE);
    assert_non_null(strstr(run.errors[0].text, "nothing to compare"));
    harness_free(&run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(three_copies_tell_which_one_is_wrong),
        cmocka_unit_test(fewer_say_what_they_cannot_tell),
        cmocka_unit_test(a_vote_of_very_many_copies_takes_no_time),
        cmocka_unit_test(slices_are_compared_with_their_copies),
        cmocka_unit_test(equal_copies_change_nothing),
        cmocka_unit_test(a_flipped_bit_is_laid_to_its_rank),
        cmocka_unit_test(two_copies_of_a_slice_name_both_ranks),
        cmocka_unit_test(one_copy_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
