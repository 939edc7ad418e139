/* Training, with ranks as threads. */
#define _GNU_SOURCE
#include "trainer_harness.h"

#include "common/files.h"

#include <ftw.h>
#include <math.h>
#include <unistd.h>

/* 30 sequences a step divide among 1, 2 and 3 ranks, not among 4. */
static const char gpt2[] = "model: {model_type: gpt2, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2}\n"
                           "data: {train: [{path: 'synthetic:9000'}], sequence_length: 12}\n"
                           "train: {steps: 50, global_batch_size: 30, micro_batch_size: 30}\n"
                           "optimizer: {lr: 3.0e-3}\n"
                           "lr_schedule: {warmup_steps: 3}\n";
static const char llama[] = "model: {model_type: llama, hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 4, "
                            "num_key_value_heads: 2,\n"
                            "        intermediate_size: 40, tie_word_embeddings: false}\n"
                            "data: {train: [{path: 'synthetic:9000'}], sequence_length: 10}\n"
                            "train: {steps: 50, global_batch_size: 30, micro_batch_size: 30}\n"
                            "optimizer: {lr: 3.0e-3}\n";

static double relative(double a, double b) {
    return fabs(a - b) / fmax(fabs(a), fabs(b));
}

/* Rounding differs with the number of ranks and micro-batches: sums of gradients are in another order. It grows with
 * training. */
static void check_same_training(const struct run *a, const struct run *b) {
    for (int64_t i = 0; i < a->steps; i++) {
        const struct ls_step_report *x = &a->reports[i], *y = &b->reports[i];
        assert_int_equal(x->step, y->step);
        assert_int_equal(x->position, y->position);
        assert_int_equal(x->targets, y->targets);
        assert_memory_equal(&x->digest, &y->digest, sizeof x->digest);
        double bound = i < 10 ? 1e-6 : 1e-3;
        if (!(relative(x->loss, y->loss) <= bound))
            fail_msg("step %lld: %d ranks %.9g, %d ranks %.9g", (long long)x->step, a->ranks, x->loss, b->ranks,
                     y->loss);
    }
}

static void check_rank_counts(const char *yaml) {
    struct run one = {.config = harness_config(yaml), .ranks = 1, .steps = 50};
    harness_run_well(&one);
    assert_true(one.reports[49].loss < 0.9 * one.reports[0].loss);
    for (int ranks = 1; ranks <= 4; ranks++)
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            struct run other = {.config = one.config, .ranks = ranks, .steps = 50};
            other.config.train.micro_batch_size = accumulate ? 4 : 30;
            harness_run_well(&other);
            check_same_training(&one, &other);
            harness_free(&other);
        }
    harness_free(&one);
}

static void gpt2_trains_the_same_at_any_rank_count_and_micro_batch(void **unused) {
    (void)unused;
    check_rank_counts(gpt2);
}

static void llama_trains_the_same_at_any_rank_count_and_micro_batch(void **unused) {
    (void)unused;
    check_rank_counts(llama);
}

/* `other` order of streams against eager: losses, norms, validation and final weights. */
static void check_stream_order(const char *yaml, enum ls_stream_order other) {
    struct run eager = {.config = harness_config(yaml), .ranks = 3, .steps = 5, .evaluate = true};
    eager.config.train.micro_batch_size = 4;
    eager.config.evaluation.every_steps = 5;
    eager.config.data.validation[0] = eager.config.data.train[0];
    eager.config.data.validation_count = 1;
    struct run run = eager;
    run.order = other;
    harness_run_well(&eager);
    harness_run_well(&run);
    for (int i = 0; i < 5; i++) {
        assert_memory_equal(&eager.reports[i].loss, &run.reports[i].loss, sizeof(double));
        assert_memory_equal(&eager.reports[i].grad_norm, &run.reports[i].grad_norm, sizeof(double));
    }
    assert_memory_equal(&eager.validation_loss, &run.validation_loss, sizeof(double));
    assert_memory_equal(eager.weights, run.weights, (size_t)eager.weight_count * sizeof(float));
    harness_free(&eager);
    harness_free(&run);
}

static void eager_and_lazy_streams_give_the_same_bits(void **unused) {
    (void)unused;
    check_stream_order(gpt2, LS_STREAMS_LAZY);
    check_stream_order(llama, LS_STREAMS_LAZY);
}

static void eager_and_hasty_streams_give_the_same_bits(void **unused) {
    (void)unused;
    check_stream_order(gpt2, LS_STREAMS_HASTY);
    check_stream_order(llama, LS_STREAMS_HASTY);
}

/* Digests as the ledger will recompute them: from the order and the data alone. */
static void two_epochs_use_every_sample_exactly_twice(void **unused) {
    (void)unused;
    static const char yaml[] =
        "model: {model_type: gpt2, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1}\n"
        "data: {train: [{path: 'synthetic:700'}, {path: 'synthetic:331'}], sequence_length: 12}\n"
        "train: {epochs: 2, global_batch_size: 7, micro_batch_size: 2}\n";
    /* floor(699 / 12) + floor(330 / 12) samples; the last of the 25 steps has 2 x 85 - 24 x 7 = 2 of them */
    enum { SAMPLES = 58 + 27, STEPS = 25, T = 12 };
    struct run run = {.config = harness_config(yaml), .ranks = 3, .steps = STEPS};
    harness_run_well(&run);
    struct ls_corpus *corpus;
    assert_int_equal(ls_corpus_open(&run.config, &corpus, NULL), LS_OK);
    int uses[2][SAMPLES] = {0};
    uint64_t position = 0;
    for (int step = 0; step < STEPS; step++) {
        struct ls_digest digest = {0};
        for (; position < run.reports[step].position; position++) {
            struct ls_draw draw = ls_order_at(corpus->order, position);
            int32_t inputs[T], targets[T], starts[T];
            uint32_t shard;
            uint64_t index;
            uses[draw.source][draw.sample]++;
            assert_int_equal(ls_dataset_read(corpus->train[draw.source], (int64_t)draw.sample, 257, true, inputs,
                                             targets, starts, NULL),
                             LS_OK);
            ls_dataset_locate(corpus->train[draw.source], (int64_t)draw.sample, &shard, &index);
            digest = ls_digest_add(digest, ls_digest_sample(draw.source, shard, index, position, inputs, T));
        }
        assert_memory_equal(&digest, &run.reports[step].digest, sizeof digest);
    }
    assert_int_equal(position, 2 * SAMPLES);
    assert_int_equal(run.reports[STEPS - 1].sequences, 2);
    assert_true(run.reports[STEPS - 1].epoch == 2.0);
    for (int sample = 0; sample < 58; sample++) assert_int_equal(uses[0][sample], 2);
    for (int sample = 0; sample < 27; sample++) assert_int_equal(uses[1][sample], 2);
    ls_corpus_close(corpus);
    harness_free(&run);
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *where) {
    (void)status, (void)kind, (void)where;
    return remove(path);
}

static void check_resume(const char *yaml) {
    char folder[] = "/tmp/lockstep-train-XXXXXX", checkpoint[LS_CHECKPOINT_PATH_MAX];
    assert_non_null(mkdtemp(folder));
    struct run whole = {.config = harness_config(yaml), .ranks = 3, .steps = 10};
    harness_run_well(&whole);
    struct run first = {.config = whole.config, .ranks = 3, .steps = 4, .save = folder};
    harness_run_well(&first);
    assert_int_equal(ls_checkpoint_path(folder, 4, checkpoint, NULL), LS_OK);
    for (int ranks = 1; ranks <= 4; ranks++) {
        struct run second = {.config = whole.config, .ranks = ranks, .start_step = 4, .steps = 6, .load = checkpoint};
        harness_run_well(&second);
        for (int i = 0; i < 6; i++) {
            const struct ls_step_report *x = &whole.reports[4 + i], *y = &second.reports[i];
            assert_int_equal(x->position, y->position);
            assert_memory_equal(&x->digest, &y->digest, sizeof x->digest);
            assert_true(relative(x->loss, y->loss) <= 1e-6);
            if (ranks == 3) assert_memory_equal(&x->loss, &y->loss, sizeof x->loss);
        }
        if (ranks == 3) assert_memory_equal(whole.weights, second.weights, (size_t)whole.weight_count * sizeof(float));
        harness_free(&second);
    }
    harness_free(&whole);
    harness_free(&first);
    nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void a_checkpoint_goes_on_at_any_rank_count_with_the_same_bits_at_the_same_one(void **unused) {
    (void)unused;
    check_resume(gpt2);
    check_resume(llama);
}

/* An untrained model without positions or context to learn from knows nothing: with weights of 0 every token has
 * probability 1 / V. That is what a validation of the untouched, zeroed replica has to say at any number of ranks. */
static void validation_weighs_tokens_over_all_ranks(void **unused) {
    (void)unused;
    static const char yaml[] =
        "model: {model_type: gpt2, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2}\n"
        "data: {train: [{path: 'synthetic:3000'}], validation: [{path: 'synthetic:1000'}], sequence_length: 12}\n"
        "train: {steps: 2, global_batch_size: 30, micro_batch_size: 4}\n"
        "evaluation: {every_steps: 1}\n";
    double losses[5];
    for (int ranks = 1; ranks <= 4; ranks++) {
        struct run run = {.config = harness_config(yaml), .ranks = ranks, .steps = 0, .evaluate = true};
        run.config.model.initializer_range = 0;
        harness_run_well(&run);
        assert_true(relative(run.validation_loss, log(257)) < 1e-6);
        struct run trained = {.config = harness_config(yaml), .ranks = ranks, .steps = 2, .evaluate = true};
        harness_run_well(&trained);
        losses[ranks] = trained.validation_loss;
        assert_true(relative(losses[ranks], losses[1]) < 1e-6);
        assert_true(relative(losses[ranks], log(257)) > 1e-4);
        harness_free(&run);
        harness_free(&trained);
    }
}

static void evaluation_batches_cuts_the_validation(void **unused) {
    (void)unused;
    static const char whole[] =
        "model: {model_type: gpt2, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}\n"
        "data: {train: [{path: 'synthetic:3000'}], validation: [{path: 'synthetic:1000'}], sequence_length: 12}\n"
        "train: {steps: 2, global_batch_size: 10, micro_batch_size: 4}\n"
        "evaluation: {every_steps: 1, batches: 2}\n";
    /* The synthetic tokens are a function of their position: 20 samples of 12 tokens are those of a shard of 241. */
    static const char cut[] =
        "model: {model_type: gpt2, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}\n"
        "data: {train: [{path: 'synthetic:3000'}], validation: [{path: 'synthetic:241'}], sequence_length: 12}\n"
        "train: {steps: 2, global_batch_size: 10, micro_batch_size: 4}\n"
        "evaluation: {every_steps: 1}\n";
    struct run a = {.config = harness_config(whole), .ranks = 2, .steps = 1, .evaluate = true};
    struct run b = {.config = harness_config(cut), .ranks = 2, .steps = 1, .evaluate = true};
    harness_run_well(&a);
    harness_run_well(&b);
    assert_memory_equal(&a.validation_loss, &b.validation_loss, sizeof(double));
    harness_free(&a);
    harness_free(&b);
}

static void a_step_that_is_not_finite_ends_every_rank_and_names_the_step(void **unused) {
    (void)unused;
    struct run run = {.config = harness_config(gpt2), .ranks = 3, .steps = 20};
    run.config.optimizer.lr = 1e38;
    run.config.lr_schedule.warmup_steps = 0;
    harness_run(&run);
    for (int rank = 0; rank < 3; rank++) {
        assert_int_equal(run.codes[rank], LS_NONFINITE);
        assert_non_null(strstr(run.errors[rank].text, "step 2 is not finite"));
        assert_string_equal(run.errors[rank].text, run.errors[0].text);
    }
    harness_free(&run);
}

static void an_error_of_one_rank_reaches_all_under_its_number(void **unused) {
    (void)unused;
    struct run run = {.config = harness_config(gpt2), .ranks = 3, .steps = 20, .differs = true};
    run.config_of_last = run.config;
    run.config_of_last.model.vocab_size = 100; /* the data have ids up to 255 */
    harness_run(&run);
    for (int rank = 0; rank < 3; rank++) {
        assert_int_equal(run.codes[rank], LS_DATA);
        assert_int_equal(run.failed_ranks[rank], 2);
        assert_int_equal(strncmp(run.errors[rank].text, "rank 2: ", 8), 0);
    }
    harness_free(&run);
}

static void replicas_that_differ_are_noticed(void **unused) {
    (void)unused;
    struct run run = {.config = harness_config(gpt2), .ranks = 2, .steps = 20, .differs = true};
    run.config_of_last = run.config;
    run.config_of_last.optimizer.lr *= 1.01;
    harness_run(&run);
    for (int rank = 0; rank < 2; rank++) {
        assert_int_equal(run.codes[rank], LS_ERROR);
        assert_non_null(strstr(run.errors[rank].text, "behind step 1 ranks 0 and 1 hold different parameters"));
    }
    harness_free(&run);
}

static void fewer_sequences_than_ranks_is_refused(void **unused) {
    (void)unused;
    struct run run = {.config = harness_config(gpt2), .ranks = 4, .steps = 1};
    run.config.train.global_batch_size = 3;
    harness_run(&run);
    for (int rank = 0; rank < 4; rank++) assert_int_equal(run.codes[rank], LS_USAGE);
    harness_free(&run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpt2_trains_the_same_at_any_rank_count_and_micro_batch),
        cmocka_unit_test(llama_trains_the_same_at_any_rank_count_and_micro_batch),
        cmocka_unit_test(eager_and_lazy_streams_give_the_same_bits),
        cmocka_unit_test(eager_and_hasty_streams_give_the_same_bits),
        cmocka_unit_test(two_epochs_use_every_sample_exactly_twice),
        cmocka_unit_test(a_checkpoint_goes_on_at_any_rank_count_with_the_same_bits_at_the_same_one),
        cmocka_unit_test(validation_weighs_tokens_over_all_ranks),
        cmocka_unit_test(evaluation_batches_cuts_the_validation),
        cmocka_unit_test(a_step_that_is_not_finite_ends_every_rank_and_names_the_step),
        cmocka_unit_test(an_error_of_one_rank_reaches_all_under_its_number),
        cmocka_unit_test(replicas_that_differ_are_noticed),
        cmocka_unit_test(fewer_sequences_than_ranks_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
