/* The ledger's proof: what it accepts, and that each kind of wrong record, link and sample is found and named. */
#include "coordinator/ledger.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* Runs of up to 12 steps of 4 sequences on a dataset of 100 samples of 8 tokens: token t of sample i is 10 i + t. */
enum { BATCH = 4, STEPS = 12, SAMPLES = 100, T = 8, ATTEMPTS = 4 };

/* The same facts as the journal would hold them, to be spoiled before they are handed in. */
struct story {
    struct ls_ledger_options options;
    struct ls_ledger_attempt attempts[ATTEMPTS];
    struct ls_core_step steps[ATTEMPTS][STEPS];
    int steps_count[ATTEMPTS], attempts_count;
    struct ls_core_record commits[ATTEMPTS];
    bool committed[ATTEMPTS];
    struct ls_core_record bad[ATTEMPTS]; /* QUARANTINE; attempt 0: none */
    struct ls_ledger_checkpoint checkpoints[ATTEMPTS];
    int checkpoints_count;
};

static struct ls_order *make_order(void) {
    struct ls_order *order;
    const uint64_t samples = SAMPLES;
    assert_int_equal(ls_order_create(7, &samples, NULL, 1, &order, NULL), LS_OK);
    return order;
}

/* The sequence at `position` as a worker would have it. */
static void read_tokens(const struct ls_order *order, uint64_t position, uint64_t *sample, int32_t tokens[T]) {
    *sample = ls_order_at(order, position).sample;
    for (int t = 0; t < T; t++) tokens[t] = (int32_t)(10 * *sample) + t;
}

static enum ls_code true_sample(void *order, uint64_t position, struct ls_digest *digest, struct ls_error *error) {
    uint64_t sample;
    int32_t tokens[T];
    (void)error;
    read_tokens(order, position, &sample, tokens);
    *digest = ls_digest_sample(0, 0, sample, position, tokens, T);
    return LS_OK;
}

static struct ls_digest true_digest(const struct ls_order *order, int64_t position, int64_t count) {
    struct ls_digest sum = {0, 0}, one;
    for (int64_t k = 0; k < count; k++) {
        true_sample((void *)order, (uint64_t)(position + k), &one, NULL);
        sum = ls_digest_add(sum, one);
    }
    return sum;
}

/* Computes the chain of an attempt's steps anew, from step index `from` on. */
static void rechain(struct story *story, int attempt, int from) {
    for (int i = from; i < story->steps_count[attempt]; i++) {
        struct ls_core_step *step = &story->steps[attempt][i];
        step->chain = ls_digest_chain(i ? step[-1].chain : story->attempts[attempt].start_chain, (uint64_t)step->step,
                                      step->digest);
    }
}

/* An attempt on `world_size` ranks from step `start` of attempt index `parent` (-1: from nothing) to step `end`; with
 * `save`, its last step is committed and its checkpoint there. */
static void tell(struct story *story, int parent, int64_t start, int64_t end, int64_t world_size, bool save) {
    struct ls_order *order = make_order();
    int index = story->attempts_count++;
    struct ls_ledger_attempt *attempt = &story->attempts[index];
    *attempt = (struct ls_ledger_attempt){.attempt = index + 1, .world_size = world_size, .start_step = start};
    attempt->start_position = start * BATCH;
    if (parent >= 0) {
        attempt->start_chain = story->steps[parent][start - story->attempts[parent].start_step - 1].chain;
        for (int i = 0; i < story->checkpoints_count; i++)
            if (story->checkpoints[i].step == start)
                strcpy(attempt->parent_manifest, story->checkpoints[i].manifest_hash);
    }
    story->steps_count[index] = (int)(end - start);
    for (int i = 0; i < story->steps_count[index]; i++) {
        int64_t position = (start + i) * BATCH;
        story->steps[index][i] = (struct ls_core_step){.step = start + i + 1,
                                                       .position = position,
                                                       .sequences = BATCH,
                                                       .digest = true_digest(order, position, BATCH)};
    }
    rechain(story, index, 0);
    ls_order_destroy(order);
    if (!save) return;
    const struct ls_core_step *last = &story->steps[index][story->steps_count[index] - 1];
    story->committed[index] = true;
    story->commits[index] = (struct ls_core_record){.kind = LS_RECORD_COMMIT, .attempt = (uint32_t)index + 1};
    story->commits[index].commit.step = end;
    story->commits[index].commit.position = end * BATCH;
    story->commits[index].commit.chain = last->chain;
    struct ls_ledger_checkpoint *checkpoint = &story->checkpoints[story->checkpoints_count++];
    *checkpoint =
        (struct ls_ledger_checkpoint){.step = end, .attempt = index + 1, .position = end * BATCH, .chain = last->chain};
    strcpy(checkpoint->parent_manifest, attempt->parent_manifest);
    snprintf(checkpoint->manifest_hash, sizeof checkpoint->manifest_hash, "%032llx", 1000ull + (unsigned)index);
}

static struct story begin(void) {
    return (struct story){.options = {.global_batch = BATCH, .steps = STEPS, .end_position = INT64_MAX}};
}

static struct ls_ledger *hand_in(const struct story *story) {
    struct ls_ledger *ledger;
    assert_int_equal(ls_ledger_create(&story->options, &ledger, NULL), LS_OK);
    for (int a = 0; a < story->attempts_count; a++) {
        assert_int_equal(ls_ledger_add_attempt(ledger, &story->attempts[a], NULL), LS_OK);
        for (int i = 0; i < story->steps_count[a]; i++) {
            struct ls_core_record record = {.kind = LS_RECORD_STEP, .attempt = (uint32_t)a + 1};
            record.step = story->steps[a][i];
            assert_int_equal(ls_ledger_add_record(ledger, &record, NULL), LS_OK);
        }
        if (story->bad[a].attempt) assert_int_equal(ls_ledger_add_record(ledger, &story->bad[a], NULL), LS_OK);
        if (story->committed[a]) assert_int_equal(ls_ledger_add_record(ledger, &story->commits[a], NULL), LS_OK);
    }
    for (int i = 0; i < story->checkpoints_count; i++)
        assert_int_equal(ls_ledger_add_checkpoint(ledger, &story->checkpoints[i], NULL), LS_OK);
    return ledger;
}

static struct ls_ledger_summary prove(const struct story *story) {
    struct ls_ledger *ledger = hand_in(story);
    struct ls_ledger_summary summary;
    struct ls_error error = {.text = ""};
    if (ls_ledger_prove(ledger, &summary, &error) != LS_OK) fail_msg("not proven: %s", error.text);
    ls_ledger_destroy(ledger);
    return summary;
}

/* The proof fails, and the text holds `first` and `second`. */
static void refuse(const struct story *story, const char *first, const char *second) {
    struct ls_ledger *ledger = hand_in(story);
    struct ls_ledger_summary summary;
    struct ls_error error = {.text = ""};
    assert_int_equal(ls_ledger_prove(ledger, &summary, &error), LS_DATA);
    if (!strstr(error.text, first) || !strstr(error.text, second))
        fail_msg("'%s' does not say '%s' and '%s'", error.text, first, second);
    ls_ledger_destroy(ledger);
}

/* The number of the first step whose samples are not those of the order, 0: none. */
static int64_t first_wrong_step(const struct story *story) {
    struct ls_ledger *ledger = hand_in(story);
    struct ls_ledger_summary summary;
    struct ls_order *order = make_order();
    struct ls_error error;
    size_t count;
    int64_t wrong = 0;
    assert_int_equal(ls_ledger_prove(ledger, &summary, &error), LS_OK);
    const struct ls_ledger_step *steps = ls_ledger_steps(ledger, &count);
    for (size_t i = 0; i < count && !wrong; i++)
        if (ls_ledger_prove_samples(ledger, &steps[i], true_sample, order, &error) != LS_OK) {
            char name[32];
            wrong = steps[i].step;
            snprintf(name, sizeof name, "step %lld of attempt", (long long)wrong);
            assert_non_null(strstr(error.text, name));
        }
    ls_order_destroy(order);
    ls_ledger_destroy(ledger);
    return wrong;
}

/* ---- what is proven ---- */

static void test_a_run_without_interruption_is_proven(void **state) {
    (void)state;
    struct story story = begin();
    tell(&story, -1, 0, STEPS, 2, true);
    struct ls_ledger_summary summary = prove(&story);
    assert_int_equal(summary.steps, 12);
    assert_int_equal(summary.sequences, 48);
    assert_int_equal(summary.given_up, 0);
    assert_int_equal(summary.committed_step, 12);
    assert_int_equal(summary.commits, 1);
    assert_int_equal(summary.checkpoints, 1);
    assert_int_equal(first_wrong_step(&story), 0);
}

static void test_a_resume_on_another_number_of_ranks_is_one_lineage(void **state) {
    (void)state;
    struct story story = begin();
    tell(&story, -1, 0, 5, 2, true);
    tell(&story, 0, 5, 9, 3, true);
    tell(&story, 1, 9, 12, 1, true);
    struct ls_ledger_summary summary = prove(&story);
    assert_int_equal(summary.steps, 12);
    assert_int_equal(summary.lineages, 3);
    struct ls_ledger *ledger = hand_in(&story);
    size_t count;
    assert_int_equal(ls_ledger_prove(ledger, &summary, NULL), LS_OK);
    const struct ls_ledger_step *steps = ls_ledger_steps(ledger, &count);
    assert_int_equal(steps[4].world_size, 2);
    assert_int_equal(steps[5].world_size, 3);
    assert_int_equal(steps[11].world_size, 1);
    ls_ledger_destroy(ledger);
}

/* Skipped updates are counted where they became part of the lineage; their samples are used all the same. */
static void test_skipped_updates_are_counted_and_their_samples_used(void **state) {
    (void)state;
    struct story story = begin();
    tell(&story, -1, 0, 5, 2, true);
    tell(&story, 0, 5, 8, 2, false); /* lost */
    tell(&story, 0, 5, 12, 2, true);
    story.steps[0][1].skipped = story.steps[1][0].skipped = story.steps[2][3].skipped = true;
    struct ls_ledger_summary summary = prove(&story);
    assert_int_equal(summary.skipped, 2);
    assert_int_equal(summary.steps, 12);
    assert_int_equal(summary.sequences, 48);
}

static void test_after_a_rollback_the_highest_attempt_counts(void **state) {
    (void)state;
    struct story story = begin();
    tell(&story, -1, 0, 5, 2, true);
    tell(&story, 0, 5, 8, 2, false); /* lost */
    tell(&story, 0, 5, 7, 2, false); /* lost again */
    tell(&story, 0, 5, 10, 2, true);
    struct ls_ledger_summary summary = prove(&story);
    assert_int_equal(summary.steps, 10);
    assert_int_equal(summary.sequences, 40);
    assert_int_equal(summary.given_up, 5);
    struct ls_ledger *ledger = hand_in(&story);
    size_t count;
    assert_int_equal(ls_ledger_prove(ledger, &summary, NULL), LS_OK);
    const struct ls_ledger_step *steps = ls_ledger_steps(ledger, &count);
    assert_int_equal(count, 10);
    assert_int_equal(steps[4].attempt, 1);
    assert_int_equal(steps[5].attempt, 4);
    ls_ledger_destroy(ledger);
}

static void test_an_attempt_that_ran_no_step_leaves_the_lineage_where_it_started(void **state) {
    (void)state;
    struct story story = begin();
    tell(&story, -1, 0, 6, 2, false);
    story.steps_count[0] = 6;
    tell(&story, -1, 0, 0, 2, false);
    assert_int_equal(prove(&story).steps, 0);
    assert_int_equal(prove(&story).given_up, 6);
}

static void test_the_last_step_of_a_run_by_epochs_is_truncated(void **state) {
    (void)state;
    struct story story = begin();
    story.options.end_position = 46;
    tell(&story, -1, 0, 12, 2, false);
    refuse(&story, "step 12 of attempt 1", "its number of sequences is 4, it should be 2");
    struct ls_order *order = make_order();
    story.steps[0][11].sequences = 2;
    story.steps[0][11].digest = true_digest(order, 44, 2);
    rechain(&story, 0, 11);
    ls_order_destroy(order);
    assert_int_equal(prove(&story).sequences, 46);
}

/* ---- what is found ---- */

static void test_a_missing_step_is_named(void **state) {
    (void)state;
    struct story story = begin();
    tell(&story, -1, 0, 8, 2, false);
    memmove(&story.steps[0][3], &story.steps[0][4], 4 * sizeof story.steps[0][0]);
    story.steps_count[0]--;
    refuse(&story, "step 4 of attempt 1 is not in the journal", "after step 3 comes step 5");
}

static void test_a_gap_in_the_positions_is_named(void **state) {
    (void)state;
    struct story story = begin();
    tell(&story, -1, 0, 8, 2, false);
    story.steps[0][5].position++;
    refuse(&story, "step 6 of attempt 1", "its position is 21, it should be 20");
}

static void test_a_digest_that_was_changed_afterwards_breaks_the_chain(void **state) {
    (void)state;
    struct story story = begin();
    tell(&story, -1, 0, 8, 2, false);
    story.steps[0][4].digest.low ^= 1;
    refuse(&story, "step 5 of attempt 1", "the chain in the journal");
}

static void test_a_journal_that_was_rewritten_disagrees_with_commit_and_checkpoint(void **state) {
    (void)state;
    struct story story = begin();
    tell(&story, -1, 0, 8, 2, true);
    story.steps[0][4].digest.low ^= 1;
    rechain(&story, 0, 4);
    refuse(&story, "step 8 of attempt 1", "the journal's commit");
    story.committed[0] = false;
    refuse(&story, "step 8 of attempt 1", "trainer.json");
}

static void test_given_up_steps_are_proven_too(void **state) {
    (void)state;
    struct story story = begin();
    tell(&story, -1, 0, 5, 2, true);
    tell(&story, 0, 5, 8, 2, false);
    tell(&story, 0, 5, 8, 2, false);
    story.steps[1][1].sequences = 3;
    refuse(&story, "step 7 of attempt 2", "its number of sequences is 3");
}

static void test_an_attempt_must_start_from_what_an_earlier_one_left(void **state) {
    (void)state;
    struct story story = begin();
    tell(&story, -1, 0, 5, 2, true);
    tell(&story, 0, 5, 8, 2, false);
    story.attempts[1].start_chain.high++;
    rechain(&story, 1, 0);
    refuse(&story, "attempt 2 starts at step 5", "no attempt before it");
    story = begin();
    tell(&story, -1, 0, 3, 2, false);
    story.attempts[0].start_chain.low = 1;
    rechain(&story, 0, 0);
    refuse(&story, "attempt 1 starts at step 0", "not empty");
}

static void test_a_checkpoint_of_another_lineage_is_named(void **state) {
    (void)state;
    struct story story = begin();
    tell(&story, -1, 0, 5, 2, true);
    tell(&story, 0, 5, 8, 2, true);
    struct story spoiled = story;
    spoiled.checkpoints[0].manifest_hash[31] ^= 1;
    refuse(&spoiled, "the attempt that started from step 5", "parent manifest");
    spoiled = story;
    spoiled.checkpoints[1].parent_manifest[31] ^= 1;
    refuse(&spoiled, "the checkpoint of step 8", "parent manifest");
    spoiled = story;
    spoiled.checkpoints[1].attempt = 9;
    refuse(&spoiled, "attempt 9", "does not know");
    spoiled = story;
    spoiled.checkpoints[1].position--;
    refuse(&spoiled, "step 8 of attempt 2", "the position saved is 31, it should be 32");
    /* One written anew by a later attempt says nothing about what the second started from. */
    spoiled = story;
    tell(&spoiled, -1, 0, 5, 2, true);
    spoiled.checkpoints[0] = spoiled.checkpoints[2];
    spoiled.checkpoints_count = 2;
    prove(&spoiled);
}

static void test_a_step_beyond_the_end_is_named(void **state) {
    (void)state;
    struct story story = begin();
    tell(&story, -1, 0, 12, 2, false);
    story.options.steps = 11;
    refuse(&story, "step 12 of attempt 1", "beyond the end");
}

static void test_a_journal_without_an_attempt_proves_nothing(void **state) {
    (void)state;
    struct story story = begin();
    refuse(&story, "no attempt", "");
}

/* ---- the samples ---- */

static void test_a_swapped_token_is_found_and_the_step_named(void **state) {
    (void)state;
    struct story story = begin();
    struct ls_order *order = make_order();
    uint64_t sample;
    int32_t tokens[T];
    tell(&story, -1, 0, 8, 2, false);
    /* The worker had two neighbouring tokens of the second sequence of step 7 in the wrong order. */
    read_tokens(order, 25, &sample, tokens);
    tokens[3] = (int32_t)(10 * sample) + 4;
    tokens[4] = (int32_t)(10 * sample) + 3;
    struct ls_digest digest = ls_digest_add(true_digest(order, 24, 1), true_digest(order, 26, 2));
    story.steps[0][6].digest = ls_digest_add(digest, ls_digest_sample(0, 0, sample, 25, tokens, T));
    rechain(&story, 0, 6); /* it reports honestly what it did: the chain holds */
    ls_order_destroy(order);
    assert_int_equal(first_wrong_step(&story), 7);
}

static void test_a_sample_used_twice_is_found_and_the_step_named(void **state) {
    (void)state;
    struct story story = begin();
    struct ls_order *order = make_order();
    uint64_t sample;
    int32_t tokens[T];
    tell(&story, -1, 0, 8, 2, false);
    /* In place of the second sequence of step 3 the worker took the first one again. */
    read_tokens(order, 8, &sample, tokens);
    struct ls_digest digest = ls_digest_add(true_digest(order, 8, 1), true_digest(order, 10, 2));
    struct story as_first = story, as_second = story;
    as_first.steps[0][2].digest = ls_digest_add(digest, true_digest(order, 8, 1));
    as_second.steps[0][2].digest = ls_digest_add(digest, ls_digest_sample(0, 0, sample, 9, tokens, T));
    rechain(&as_first, 0, 2);
    rechain(&as_second, 0, 2);
    ls_order_destroy(order);
    assert_int_equal(first_wrong_step(&as_first), 3);
    assert_int_equal(first_wrong_step(&as_second), 3);
}

/* ---- quarantine ---- */

/* Step 7 of attempt 1 is not finite: attempt 2 goes on from step 4, has steps 5 and 6 again, and takes the sequences
 * from 28 on for its step 7, passing over 24 to 27. */
static struct story with_quarantine(void) {
    struct story story = begin();
    struct ls_order *order = make_order();
    tell(&story, -1, 0, 4, 2, true);
    tell(&story, 0, 4, 12, 3, true);
    story.bad[0] = (struct ls_core_record){.kind = LS_RECORD_QUARANTINE, .attempt = 1};
    story.bad[0].quarantine.step = 7;
    story.bad[0].quarantine.from = 24;
    story.bad[0].quarantine.to = 28;
    for (int i = 2; i < 8; i++) {
        story.steps[1][i].digest = true_digest(order, (5 + i) * BATCH, BATCH);
        if (i > 2) story.steps[1][i].position = (5 + i) * BATCH; /* step 7 starts where step 6 ended, at 24 */
    }
    rechain(&story, 1, 2);
    story.commits[1].commit.chain = story.checkpoints[1].chain = story.steps[1][7].chain;
    story.commits[1].commit.position = story.checkpoints[1].position = 13 * BATCH;
    ls_order_destroy(order);
    return story;
}

static void test_what_is_in_quarantine_is_passed_over(void **state) {
    (void)state;
    struct story story = with_quarantine();
    struct ls_ledger_summary summary = prove(&story);
    assert_int_equal(summary.steps, 12);
    assert_int_equal(summary.sequences, 48);
    assert_int_equal(summary.passed_over, 4);
    assert_int_equal(first_wrong_step(&story), 0);
    struct ls_ledger *ledger = hand_in(&story);
    struct ls_ledger_use use;
    const uint64_t samples = SAMPLES;
    struct ls_order *order = make_order();
    size_t count;
    assert_int_equal(ls_ledger_prove(ledger, &summary, NULL), LS_OK);
    const struct ls_ledger_quarantine *bad = ls_ledger_quarantined(ledger, &count);
    assert_int_equal(count, 1);
    assert_int_equal(bad->attempt, 1);
    assert_int_equal(bad->step, 7);
    const struct ls_ledger_step *steps = ls_ledger_steps(ledger, &count);
    assert_int_equal(ls_ledger_position(ledger, &steps[5], 3), 23);
    assert_int_equal(ls_ledger_position(ledger, &steps[6], 0), 28);
    assert_int_equal(ls_ledger_count_use(ledger, 0, order, &samples, 1, &use, NULL), LS_OK);
    /* 52 of 100 samples had their turn, four of them were passed over. */
    assert_int_equal(use.draws, 52);
    assert_int_equal(use.passed_over, 4);
    assert_int_equal(use.unused, 4);
    assert_int_equal(use.least, 0);
    assert_int_equal(use.most, 1);
    ls_order_destroy(order);
    ls_ledger_destroy(ledger);
}

static void test_training_on_what_is_in_quarantine_is_named(void **state) {
    (void)state;
    struct story story = with_quarantine();
    story.steps[1][3].position = 28; /* as if step 7 had taken 24 to 27 */
    refuse(&story, "step 8 of attempt 2: its position is 28, it should be 32", "");
}

static void test_a_quarantine_that_is_no_step_is_named(void **state) {
    (void)state;
    struct story story = with_quarantine();
    story.bad[0].quarantine.from = 23;
    refuse(&story, "step 7 of attempt 1: the start of its quarantine is 23, it should be 24", "");
    story = with_quarantine();
    story.bad[0].quarantine.to = 32;
    refuse(&story, "step 7 of attempt 1: the end of its quarantine is 32, it should be 28", "");
    story = with_quarantine();
    story.bad[0].quarantine.step = 13;
    refuse(&story, "attempt 1 put step 13 into quarantine", "");
}

/* 52 turns of so many samples: 52 of 60 have one, 40 one or two, or one sample has several of the turns that are
 * passed over. */
static void test_a_sample_is_used_as_often_less_as_it_is_passed_over(void **state) {
    (void)state;
    struct story story = with_quarantine();
    struct ls_ledger *ledger = hand_in(&story);
    struct ls_ledger_summary summary;
    assert_int_equal(ls_ledger_prove(ledger, &summary, NULL), LS_OK);
    const uint64_t sizes[] = {60, 40, 20, 3, 2, 1};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        const uint64_t samples = sizes[k];
        struct ls_ledger_use use;
        struct ls_order *order;
        assert_int_equal(ls_order_create(7, &samples, NULL, 1, &order, NULL), LS_OK);
        assert_int_equal(ls_ledger_count_use(ledger, 0, order, &samples, 1, &use, NULL), LS_OK);
        int uses[60] = {0}, turns[60] = {0}, least = 99, most = 0, unused = 0; /* the same by hand */
        for (uint64_t position = 0; position < 52; position++) {
            turns[ls_order_at(order, position).sample]++;
            uses[ls_order_at(order, position).sample] += position < 24 || position >= 28;
        }
        for (uint64_t i = 0; i < samples; i++) {
            if (uses[i] < least) least = uses[i];
            if (uses[i] > most) most = uses[i];
            unused += turns[i] > 0 && uses[i] == 0;
        }
        assert_int_equal(use.draws, 52);
        assert_int_equal(use.least, least);
        assert_int_equal(use.most, most);
        assert_int_equal(use.unused, unused);
        ls_order_destroy(order);
    }
    ls_ledger_destroy(ledger);
}

static void test_uses_are_counted_by_source(void **state) {
    (void)state;
    struct story story = begin();
    const uint64_t samples[2] = {10, 30}, weights[2] = {1, 1};
    struct ls_order *order;
    struct ls_ledger_use use[2];
    struct ls_ledger_summary summary;
    tell(&story, -1, 0, 12, 2, false);
    struct ls_ledger *ledger = hand_in(&story);
    assert_int_equal(ls_ledger_prove(ledger, &summary, NULL), LS_OK);
    assert_int_equal(ls_order_create(7, samples, weights, 2, &order, NULL), LS_OK);
    assert_int_equal(ls_ledger_count_use(ledger, 0, order, samples, 2, use, NULL), LS_OK);
    /* Of 48 sequences 24 from each: twice around and 4 of the small source, 24 of 30 of the large. */
    assert_int_equal(use[0].draws, 24);
    assert_int_equal(use[0].least, 2);
    assert_int_equal(use[0].most, 3);
    assert_int_equal(use[0].begun, 4);
    assert_int_equal(use[1].draws, 24);
    assert_int_equal(use[1].least, 0);
    assert_int_equal(use[1].most, 1);
    assert_int_equal(use[1].begun, 24);
    ls_order_destroy(order);
    ls_ledger_destroy(ledger);
}

/* A table of what was drawn, where a bit for each sample would be 125 GB. */
static void test_few_draws_of_a_source_without_end_are_counted(void **state) {
    (void)state;
    struct story story = with_quarantine();
    const uint64_t samples = UINT64_C(1000000000000);
    struct ls_order *order;
    struct ls_ledger_use use;
    struct ls_ledger_summary summary;
    struct ls_ledger *ledger = hand_in(&story);
    assert_int_equal(ls_ledger_prove(ledger, &summary, NULL), LS_OK);
    assert_int_equal(ls_order_create(7, &samples, NULL, 1, &order, NULL), LS_OK);
    assert_int_equal(ls_ledger_count_use(ledger, 0, order, &samples, 1, &use, NULL), LS_OK);
    assert_int_equal(use.draws, 52);
    assert_int_equal(use.begun, 52);
    assert_int_equal(use.passed_over, 4);
    assert_int_equal(use.unused, 4);
    assert_int_equal(use.least, 0);
    assert_int_equal(use.most, 1);
    ls_order_destroy(order);
    ls_ledger_destroy(ledger);
}

/* ---- generations of the data ---- */

/* Gives the last attempt told to a generation, with its first step at `position`. */
static void put_into_generation(struct story *story, int64_t generation, int64_t position) {
    struct ls_order *order = make_order();
    const int index = story->attempts_count - 1, count = story->steps_count[index];
    story->attempts[index].data_generation = generation;
    story->attempts[index].start_position = position;
    for (int i = 0; i < count; i++) {
        struct ls_core_step *step = &story->steps[index][i];
        step->position = position + i * BATCH;
        step->digest = true_digest(order, step->position, BATCH);
    }
    rechain(story, index, 0);
    ls_order_destroy(order);
    if (!story->committed[index]) return;
    struct ls_ledger_checkpoint *checkpoint = &story->checkpoints[story->checkpoints_count - 1];
    story->commits[index].commit.position = checkpoint->position = position + count * BATCH;
    story->commits[index].commit.chain = checkpoint->chain = story->steps[index][count - 1].chain;
}

/* Five steps of generation 1, four of generation 2 from their checkpoint on, three more of it by another attempt. */
static struct story of_two_generations(void) {
    struct story story = begin();
    tell(&story, -1, 0, 5, 2, true);
    put_into_generation(&story, 1, 0);
    tell(&story, 0, 5, 9, 3, true);
    put_into_generation(&story, 2, 0);
    tell(&story, 1, 9, 12, 1, true);
    put_into_generation(&story, 2, 4 * BATCH);
    return story;
}

static void test_a_generation_begins_at_position_0_and_the_chain_goes_on(void **state) {
    (void)state;
    struct story story = of_two_generations();
    struct ls_ledger_summary summary = prove(&story);
    assert_int_equal(summary.steps, 12);
    assert_int_equal(summary.sequences, 48);
    assert_int_equal(summary.committed_step, 12);
    assert_int_equal(first_wrong_step(&story), 0);
    struct ls_ledger *ledger = hand_in(&story);
    struct ls_order *order = make_order();
    struct ls_ledger_use use;
    const uint64_t samples = SAMPLES;
    assert_int_equal(ls_ledger_prove(ledger, &summary, NULL), LS_OK);
    assert_int_equal(ls_ledger_find(ledger, 5)->data_generation, 1);
    assert_int_equal(ls_ledger_find(ledger, 6)->data_generation, 2);
    assert_int_equal(ls_ledger_position(ledger, ls_ledger_find(ledger, 6), 3), 3);
    /* In each every sample at most once, though both began with the same ones. */
    for (int64_t generation = 1; generation <= 2; generation++) {
        assert_int_equal(ls_ledger_count_use(ledger, generation, order, &samples, 1, &use, NULL), LS_OK);
        assert_int_equal(use.draws, generation == 1 ? 5 * BATCH : 7 * BATCH);
        assert_int_equal(use.most, 1);
    }
    assert_int_equal(ls_ledger_count_use(ledger, 3, order, &samples, 1, &use, NULL), LS_OK);
    assert_int_equal(use.draws, 0);
    ls_order_destroy(order);
    ls_ledger_destroy(ledger);
}

static void test_a_generation_that_begins_elsewhere_is_named(void **state) {
    (void)state;
    struct story story = begin();
    tell(&story, -1, 0, 5, 2, true);
    put_into_generation(&story, 1, 0);
    tell(&story, 0, 5, 9, 3, true);
    struct story spoiled = story;
    put_into_generation(&spoiled, 2, 5 * BATCH); /* as if it were still the first */
    refuse(&spoiled, "step 6 of attempt 2: its position is 20, it should be 0", "");
    put_into_generation(&story, 1, 0); /* the first one over again, without another generation */
    refuse(&story, "step 6 of attempt 2: its position is 0, it should be 20", "");
}

/* Step 4 of generation 1 is put into quarantine by attempt 1, and generation 2 has its positions all the same. */
static void test_a_quarantine_is_one_of_its_generation(void **state) {
    (void)state;
    struct story story = begin();
    tell(&story, -1, 0, 3, 2, true);
    put_into_generation(&story, 1, 0);
    story.bad[0] = (struct ls_core_record){.kind = LS_RECORD_QUARANTINE, .attempt = 1};
    story.bad[0].quarantine.step = 4;
    story.bad[0].quarantine.from = 12;
    story.bad[0].quarantine.to = 16;
    story.bad[0].quarantine.data_generation = 1;
    tell(&story, 0, 3, 9, 2, false);
    put_into_generation(&story, 2, 0);
    struct ls_ledger_summary summary = prove(&story);
    assert_int_equal(summary.passed_over, 0);
    assert_int_equal(first_wrong_step(&story), 0);
    story.bad[0].quarantine.data_generation = 2;
    refuse(&story, "step 4 of attempt 1: the generation of the data of its quarantine is 2, it should be 1", "");
}

/* A run that began with a checkpoint of step 5 from elsewhere. */
static void test_a_run_from_a_copied_checkpoint_is_proven_from_there(void **state) {
    (void)state;
    struct story whole = begin(), story = begin();
    tell(&whole, -1, 0, 5, 2, true);
    tell(&whole, 0, 5, 9, 2, true);
    story.attempts[0] = whole.attempts[1];
    story.attempts[0].attempt = 1;
    story.attempts_count = 1;
    memcpy(story.steps[0], whole.steps[1], sizeof story.steps[0]);
    story.steps_count[0] = 4;
    story.checkpoints[0] = whole.checkpoints[0];
    story.checkpoints[0].attempt = 7;
    story.checkpoints_count = 1;
    refuse(&story, "attempt 1 starts at step 5", "no attempt before it has that step");
    story.options.origin = (struct ls_ledger_origin){.step = 5, .position = 20, .chain = story.attempts[0].start_chain};
    struct ls_ledger_summary summary = prove(&story);
    assert_int_equal(summary.steps, 4);
    assert_int_equal(first_wrong_step(&story), 0);
    struct ls_ledger *ledger = hand_in(&story);
    struct ls_order *order = make_order();
    struct ls_ledger_use use;
    struct ls_core_record inherited = {.kind = LS_RECORD_QUARANTINE};
    const uint64_t samples = SAMPLES;
    inherited.quarantine.from = 4;
    inherited.quarantine.to = 6;
    assert_int_equal(ls_ledger_inherit(ledger, &inherited, NULL), LS_OK);
    assert_int_equal(ls_ledger_prove(ledger, &summary, NULL), LS_OK);
    assert_null(ls_ledger_find(ledger, 5));
    assert_int_equal(ls_ledger_find(ledger, 6)->position, 20);
    /* What was drawn before counts as drawn. */
    assert_int_equal(ls_ledger_count_use(ledger, 0, order, &samples, 1, &use, NULL), LS_OK);
    assert_int_equal(use.draws, 36);
    assert_int_equal(use.passed_over, 2);
    ls_order_destroy(order);
    ls_ledger_destroy(ledger);
    struct story spoiled = story;
    spoiled.attempts[0].start_position = 16;
    refuse(&spoiled, "step 6 of attempt 1: its position is 20, it should be 16", "");
    spoiled = story;
    spoiled.options.origin.position = 24;
    refuse(&spoiled, "step 6 of attempt 1: its position is 20, it should be 24", "");
    spoiled = story;
    spoiled.checkpoints[0].chain.low ^= 1;
    refuse(&spoiled, "the checkpoint of step 5 is not the one that the run began with", "");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_run_without_interruption_is_proven),
        cmocka_unit_test(test_a_resume_on_another_number_of_ranks_is_one_lineage),
        cmocka_unit_test(test_skipped_updates_are_counted_and_their_samples_used),
        cmocka_unit_test(test_after_a_rollback_the_highest_attempt_counts),
        cmocka_unit_test(test_an_attempt_that_ran_no_step_leaves_the_lineage_where_it_started),
        cmocka_unit_test(test_the_last_step_of_a_run_by_epochs_is_truncated),
        cmocka_unit_test(test_a_missing_step_is_named),
        cmocka_unit_test(test_a_gap_in_the_positions_is_named),
        cmocka_unit_test(test_a_digest_that_was_changed_afterwards_breaks_the_chain),
        cmocka_unit_test(test_a_journal_that_was_rewritten_disagrees_with_commit_and_checkpoint),
        cmocka_unit_test(test_given_up_steps_are_proven_too),
        cmocka_unit_test(test_an_attempt_must_start_from_what_an_earlier_one_left),
        cmocka_unit_test(test_a_checkpoint_of_another_lineage_is_named),
        cmocka_unit_test(test_a_step_beyond_the_end_is_named),
        cmocka_unit_test(test_a_journal_without_an_attempt_proves_nothing),
        cmocka_unit_test(test_a_swapped_token_is_found_and_the_step_named),
        cmocka_unit_test(test_a_sample_used_twice_is_found_and_the_step_named),
        cmocka_unit_test(test_what_is_in_quarantine_is_passed_over),
        cmocka_unit_test(test_training_on_what_is_in_quarantine_is_named),
        cmocka_unit_test(test_a_quarantine_that_is_no_step_is_named),
        cmocka_unit_test(test_a_sample_is_used_as_often_less_as_it_is_passed_over),
        cmocka_unit_test(test_uses_are_counted_by_source),
        cmocka_unit_test(test_few_draws_of_a_source_without_end_are_counted),
        cmocka_unit_test(test_a_generation_begins_at_position_0_and_the_chain_goes_on),
        cmocka_unit_test(test_a_generation_that_begins_elsewhere_is_named),
        cmocka_unit_test(test_a_quarantine_is_one_of_its_generation),
        cmocka_unit_test(test_a_run_from_a_copied_checkpoint_is_proven_from_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
