/* ZeRO stages, with ranks as threads: every stage trains alike, holds and sends what it says. */
#define _GNU_SOURCE
#include "trainer_harness.h"

#include "worker/shard/shard.h"

#include <ftw.h>
#include <math.h>
#include <unistd.h>

/* 30 sequences divide among 1, 2 and 3 ranks, not among 4; few of the blocks' sizes divide by 3 or 4. */
static const char gpt2[] = "model: {model_type: gpt2, hidden_size: 18, num_hidden_layers: 3, num_attention_heads: 2}\n"
                           "data: {train: [{path: 'synthetic:9000'}], sequence_length: 12}\n"
                           "train: {steps: 40, global_batch_size: 30, micro_batch_size: 30}\n"
                           "optimizer: {lr: 1.0e-3}\n"
                           "lr_schedule: {warmup_steps: 3}\n";
static const char llama[] = "model: {model_type: llama, hidden_size: 20, num_hidden_layers: 2, num_attention_heads: 2, "
                            "num_key_value_heads: 1,\n"
                            "        intermediate_size: 37, tie_word_embeddings: false}\n"
                            "data: {train: [{path: 'synthetic:9000'}], sequence_length: 10}\n"
                            "train: {steps: 40, global_batch_size: 30, micro_batch_size: 30}\n"
                            "optimizer: {lr: 1.0e-3}\n";

static const char *const families[] = {gpt2, llama};

static double relative(double a, double b) {
    return fabs(a - b) / fmax(fabs(a), fabs(b));
}

/* One way of splitting the same training. */
struct split {
    int stage, ranks, micro_batch;
    int replicas; /* 0: 1 */
    enum ls_accumulate accumulate;
};

static struct run start(const char *yaml, struct split split, int64_t steps) {
    struct run run = {.config = harness_config(yaml), .ranks = split.ranks, .steps = steps};
    run.config.train.micro_batch_size = split.micro_batch;
    run.config.zero.stage = split.stage;
    run.config.zero.accumulate = split.accumulate;
    run.config.zero.replicas = split.replicas ? split.replicas : 1;
    return run;
}

/* Sums of gradients are in another order, so rounding differs, and grows with training. */
static void check_same_training(const struct run *one, const struct run *other) {
    for (int64_t i = 0; i < other->steps; i++) {
        const struct ls_step_report *a = &one->reports[i], *b = &other->reports[i];
        assert_memory_equal(&a->digest, &b->digest, sizeof a->digest);
        const double bound = i < 10 ? 1e-6 : 1e-4;
        if (!(relative(a->loss, b->loss) <= bound))
            fail_msg("stage %lld, %d ranks, %lld replicas, micro-batch %lld, step %lld: %.9g, expected %.9g",
                     (long long)other->config.zero.stage, other->ranks, (long long)other->config.zero.replicas,
                     (long long)other->config.train.micro_batch_size, (long long)b->step, b->loss, a->loss);
        assert_true(relative(a->grad_norm, b->grad_norm) <= 100 * bound);
    }
}

static void check_splits(const char *yaml, const struct split *splits, size_t count) {
    struct run one = start(yaml, (struct split){.ranks = 1, .micro_batch = 30}, 30);
    harness_run_well(&one);
    assert_true(one.reports[29].loss < 0.95 * one.reports[0].loss);
    for (size_t i = 0; i < count; i++) {
        struct run other = start(yaml, splits[i], 30);
        harness_run_well(&other);
        check_same_training(&one, &other);
        harness_free(&other);
    }
    harness_free(&one);
}

/* Pairwise over stage, ranks and accumulation; LS_TEST_LONG: all of them. */
static void every_stage_trains_alike_at_any_rank_count_and_accumulation(void **unused) {
    (void)unused;
    static const struct split pairs[] = {
        {0, 4, 3, 0, 0}, {1, 1, 30, 0, 0}, {1, 2, 4, 0, 0},  {1, 3, 30, 0, 0}, {1, 4, 4, 0, 0},
        {2, 1, 4, 0, 0}, {2, 2, 30, 0, 0}, {2, 3, 4, 0, 0},  {2, 4, 30, 0, 0}, {3, 1, 30, 0, 0},
        {3, 2, 4, 0, 0}, {3, 3, 4, 0, 0},  {3, 4, 30, 0, 0}, {3, 4, 4, 0, 0},
    };
    struct split all[32];
    size_t count = 0;
    for (int stage = 0; stage <= 3; stage++)
        for (int ranks = 1; ranks <= 4; ranks++)
            for (int accumulate = 0; accumulate < 2; accumulate++)
                all[count++] = (struct split){stage, ranks, accumulate ? 4 : 30, 0, 0};
    for (int family = 0; family < 2; family++) {
        const char *mode = getenv("LS_TEST_LONG");
        if (mode && !strcmp(mode, "1"))
            check_splits(families[family], all, count);
        else
            check_splits(families[family], pairs, sizeof pairs / sizeof *pairs);
    }
}

static void replicas_and_sharded_accumulation_train_alike(void **unused) {
    (void)unused;
    static const struct split splits[] = {
        {1, 4, 4, 2, 0},
        {2, 4, 4, 2, 0},
        {3, 4, 4, 2, 0},
        {3, 4, 4, 4, 0},
        {2, 2, 4, 2, 0},
        {1, 3, 30, 3, 0},
        {1, 3, 4, 1, LS_ACCUMULATE_SHARDED},
        {1, 4, 4, 2, LS_ACCUMULATE_SHARDED},
    };
    for (int family = 0; family < 2; family++) check_splits(families[family], splits, sizeof splits / sizeof *splits);
}

/* A missing wait shows where streams run as late, or as early, as they may. */
static void the_order_of_streams_does_not_change_a_bit(void **unused) {
    (void)unused;
    for (int family = 0; family < 2; family++)
        for (int stage = 1; stage <= 3; stage++) {
            struct run runs[3];
            for (int order = 0; order < 3; order++) {
                runs[order] = start(families[family], (struct split){stage, 4, 4, stage == 3 ? 2 : 1, 0}, 5);
                runs[order].order =
                    (enum ls_stream_order[]){LS_STREAMS_EAGER, LS_STREAMS_LAZY, LS_STREAMS_HASTY}[order];
                runs[order].evaluate = true;
                runs[order].config.evaluation.every_steps = 5;
                runs[order].config.data.validation[0] = runs[order].config.data.train[0];
                runs[order].config.data.validation_count = 1;
                harness_run_well(&runs[order]);
                for (int i = 0; i < 5; i++) {
                    assert_memory_equal(&runs[order].reports[i].loss, &runs[0].reports[i].loss, sizeof(double));
                    assert_memory_equal(&runs[order].reports[i].grad_norm, &runs[0].reports[i].grad_norm,
                                        sizeof(double));
                }
                assert_memory_equal(&runs[order].validation_loss, &runs[0].validation_loss, sizeof(double));
                assert_memory_equal(runs[order].weights, runs[0].weights, (size_t)runs[0].weight_count * sizeof(float));
            }
            for (int order = 0; order < 3; order++) harness_free(&runs[order]);
        }
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *where) {
    (void)status, (void)kind, (void)where;
    return remove(path);
}

/* Saves after 4 steps at one split and goes on for 6 at others; at the same split with the same bits. */
static void check_resume(const char *yaml, struct split saved, const struct split *loaded, size_t count) {
    char folder[] = "/tmp/lockstep-zero-XXXXXX", checkpoint[LS_CHECKPOINT_PATH_MAX];
    assert_non_null(mkdtemp(folder));
    struct run whole = start(yaml, saved, 10), first = start(yaml, saved, 4);
    first.save = folder;
    harness_run_well(&whole);
    harness_run_well(&first);
    assert_int_equal(ls_checkpoint_path(folder, 4, checkpoint, NULL), LS_OK);
    for (size_t i = 0; i <= count; i++) {
        struct run second = start(yaml, i < count ? loaded[i] : saved, 6);
        second.start_step = 4;
        second.load = checkpoint;
        harness_run_well(&second);
        for (int step = 0; step < 6; step++) {
            assert_true(relative(whole.reports[4 + step].loss, second.reports[step].loss) <= 1e-6);
            if (i == count)
                assert_memory_equal(&whole.reports[4 + step].loss, &second.reports[step].loss, sizeof(double));
        }
        if (i == count) assert_memory_equal(whole.weights, second.weights, (size_t)whole.weight_count * sizeof(float));
        harness_free(&second);
    }
    harness_free(&whole);
    harness_free(&first);
    nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void a_checkpoint_goes_on_at_any_stage_and_rank_count(void **unused) {
    (void)unused;
    static const struct split others[] = {{0, 1, 30, 0, 0}, {1, 2, 4, 0, 0}, {2, 3, 4, 0, 0}, {2, 4, 4, 2, 0}};
    static const struct split sharded[] = {{3, 3, 4, 0, 0}, {3, 4, 4, 2, 0}};
    for (int family = 0; family < 2; family++) {
        check_resume(families[family], (struct split){3, 4, 4, 0, 0}, others, 4);
        check_resume(families[family], (struct split){2, 4, 4, 2, 0}, sharded, 2);
        check_resume(families[family], (struct split){1, 3, 4, 0, 0}, sharded, 2);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_stage_trains_alike_at_any_rank_count_and_accumulation),
        cmocka_unit_test(replicas_and_sharded_accumulation_train_alike),
        cmocka_unit_test(the_order_of_streams_does_not_change_a_bit),
        cmocka_unit_test(a_checkpoint_goes_on_at_any_stage_and_rank_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
