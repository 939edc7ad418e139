/* Training in bf16 and fp16: what it reaches, what does not change its bits, and what its checkpoints hold. */
#define _GNU_SOURCE
#include "trainer_harness.h"

#include "common/files.h"
#include "worker/checkpoint/load.h"
#include "worker/device/cpu/low_precision.h"
#include "worker/optim/loss_scale.h"
#include "worker/replica_plan.h"

#include <ftw.h>
#include <math.h>
#include <unistd.h>

static const char gpt2[] = "model: {model_type: gpt2, hidden_size: 16, num_hidden_layers: 3, num_attention_heads: 2}\n"
                           "data: {train: [{path: 'synthetic:9000'}], sequence_length: 12}\n"
                           "train: {steps: 50, global_batch_size: 13, micro_batch_size: 13}\n"
                           "precision: bf16\n"
                           "optimizer: {lr: 3.0e-3}\n"
                           "lr_schedule: {warmup_steps: 3}\n";
static const char llama[] = "model: {model_type: llama, hidden_size: 24, num_hidden_layers: 3, num_attention_heads: 4, "
                            "num_key_value_heads: 2,\n"
                            "        intermediate_size: 40, tie_word_embeddings: false}\n"
                            "data: {train: [{path: 'synthetic:9000'}], sequence_length: 10}\n"
                            "train: {steps: 50, global_batch_size: 13, micro_batch_size: 13}\n"
                            "precision: bf16\n"
                            "optimizer: {lr: 3.0e-3}\n";
static const char *const families[] = {gpt2, llama};

static char folder[64];

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *walk) {
    (void)status, (void)kind, (void)walk;
    return remove(path);
}

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/lockstep-precision-XXXXXX");
    assert_non_null(mkdtemp(folder));
    char path[128];
    snprintf(path, sizeof path, "%s/checkpoints", folder);
    return mkdir(path, 0700);
}

static int remove_folder(void **state) {
    (void)state;
    return nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* The whole run; `same` steps of both are compared to the bit, and the final weights. */
static void check_same_bits(const struct run *a, const struct run *b, int64_t steps) {
    for (int64_t i = 1; i <= steps; i++) {
        const struct ls_step_report *x = &a->reports[a->steps - i], *y = &b->reports[b->steps - i];
        assert_int_equal(x->step, y->step);
        assert_memory_equal(&x->loss, &y->loss, sizeof x->loss);
        assert_memory_equal(&x->grad_norm, &y->grad_norm, sizeof x->grad_norm);
    }
    assert_memory_equal(a->weights, b->weights, (size_t)a->weight_count * sizeof *a->weights);
}

/* Losses of bf16 runs whose sums round elsewhere: an activation has 8 bits, and what is rounded differs by one unit
 * here and there. */
static void check_near(const struct run *a, const struct run *b, double bound) {
    for (int64_t i = 0; i < a->steps; i++) {
        const double x = a->reports[i].loss, y = b->reports[i].loss;
        if (!(fabs(x - y) <= bound * fabs(x))) fail_msg("step %d: losses %.9g and %.9g", (int)i + 1, x, y);
    }
}

static void bf16_reaches_the_loss_of_fp32(void **state) {
    (void)state;
    for (int family = 0; family < 2; family++) {
        struct run low = {.config = harness_config(families[family]), .ranks = 1, .steps = 50};
        struct run wide = low;
        wide.config.precision = LS_PRECISION_FP32;
        harness_run_well(&low);
        harness_run_well(&wide);
        assert_true(wide.reports[49].loss < 0.9 * wide.reports[0].loss);
        check_near(&wide, &low, 0.01);
        /* it did compute in another type */
        assert_true(low.reports[0].loss != wide.reports[0].loss);
        harness_free(&low);
        harness_free(&wide);
    }
}

/* Stages, ranks, accumulation. */
static void bf16_trains_the_same_however_it_is_split(void **state) {
    (void)state;
    static const struct {
        int family, ranks, stage, micro_batch;
    } cases[] = {{0, 1, 3, 4}, {0, 2, 1, 13}, {0, 3, 2, 3}, {0, 2, 0, 4}, {1, 3, 3, 13}, {1, 2, 2, 4}, {1, 3, 1, 2}};
    struct run one[2];
    for (int family = 0; family < 2; family++) {
        one[family] = (struct run){.config = harness_config(families[family]), .ranks = 1, .steps = 10};
        harness_run_well(&one[family]);
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct run run = {.config = one[cases[i].family].config, .ranks = cases[i].ranks, .steps = 10};
        run.config.zero.stage = cases[i].stage;
        run.config.train.micro_batch_size = cases[i].micro_batch;
        harness_run_well(&run);
        check_near(&one[cases[i].family], &run, 1e-3);
        harness_free(&run);
    }
    harness_free(&one[0]);
    harness_free(&one[1]);
}

static void recomputing_and_the_order_of_streams_change_no_bit(void **state) {
    (void)state;
    static const struct {
        enum ls_checkpointing_mode mode;
        int64_t every;
        enum ls_stream_order order;
        int64_t stage;
    } cases[] = {{LS_CHECKPOINTING_NONE, 1, LS_STREAMS_LAZY, 0},
                 {LS_CHECKPOINTING_FULL, 1, LS_STREAMS_HASTY, 3},
                 {LS_CHECKPOINTING_FULL, 2, LS_STREAMS_EAGER, 1},
                 {LS_CHECKPOINTING_SELECTIVE, 1, LS_STREAMS_LAZY, 2},
                 {LS_CHECKPOINTING_SELECTIVE, 1, LS_STREAMS_EAGER, 0}};
    for (int family = 0; family < 2; family++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            struct run plain = {.config = harness_config(families[family]), .ranks = 2, .steps = 4};
            plain.config.train.micro_batch_size = 4;
            plain.config.zero.stage = cases[i].stage;
            struct run other = plain;
            other.order = cases[i].order;
            other.config.activation_checkpointing.mode = cases[i].mode;
            other.config.activation_checkpointing.every = cases[i].every;
            harness_run_well(&plain);
            harness_run_well(&other);
            check_same_bits(&plain, &other, 4);
            harness_free(&plain);
            harness_free(&other);
        }
}

/* The folder's weights in bf16 are the master parameters rounded. */
static void check_weights_round_the_master(const char *path, const struct ls_config *config) {
    struct ls_model *model;
    struct ls_checkpoint_reader *reader;
    struct ls_weights *weights;
    struct ls_error error;
    bool rounded = false;
    assert_int_equal(ls_model_create(config, &model, &error), LS_OK);
    if (ls_checkpoint_reader_open(path, model, &reader, &error)) fail_msg("%s", error.text);
    if (ls_weights_open(path, model, &weights, &error)) fail_msg("%s", error.text);
    for (int block = 0; block < ls_model_block_count(model); block++) {
        const int64_t count = ls_model_block(model, block)->count;
        float *master = calloc((size_t)count, sizeof *master), *weight = calloc((size_t)count, sizeof *weight);
        assert_int_equal(ls_checkpoint_reader_read(reader, block, 0, count, master, NULL, NULL, &error), LS_OK);
        assert_int_equal(ls_weights_read(weights, block, 0, count, weight, &error), LS_OK);
        for (int64_t i = 0; i < count; i++) {
            rounded = rounded || master[i] != weight[i];
            assert_true(weight[i] == ls_bf16_widen(ls_bf16_narrow(master[i])));
        }
        free(master);
        free(weight);
    }
    assert_true(rounded);
    ls_weights_close(weights);
    ls_checkpoint_reader_close(reader);
    ls_model_destroy(model);
}

static void check_files(const char *path, const struct ls_config *config) {
    char file[LS_CHECKPOINT_PATH_MAX + 64], *text;
    size_t bytes;
    struct ls_error error;
    check_weights_round_the_master(path, config);
    snprintf(file, sizeof file, "%s/config.json", path);
    assert_int_equal(ls_file_read(file, 1 << 20, &text, &bytes, LS_CHECKPOINT, &error), LS_OK);
    assert_non_null(strstr(text, "\"torch_dtype\": \"bfloat16\""));
    free(text);
    snprintf(file, sizeof file, "%s/model.safetensors", path);
    assert_int_equal(ls_file_read(file, 1 << 20, &text, &bytes, LS_CHECKPOINT, &error), LS_OK);
    assert_non_null(memmem(text, bytes, "\"BF16\"", 6));
    assert_null(memmem(text, bytes, "\"F32\"", 5));
    free(text);
}

/* 4 steps, a checkpoint, 4 more by a new process: the bits of 8 in one go. */
static void a_resumed_run_goes_on_with_the_same_bits(void **state) {
    (void)state;
    static const struct {
        int family, ranks;
        int64_t stage;
    } cases[] = {{0, 1, 0}, {0, 2, 1}, {0, 3, 3}, {1, 2, 2}, {1, 3, 0}, {1, 2, 3}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        make_folder(NULL);
        char path[128];
        struct run whole = {.config = harness_config(families[cases[i].family]), .ranks = cases[i].ranks, .steps = 8};
        whole.config.zero.stage = cases[i].stage;
        struct run first = whole, second = whole;
        first.steps = second.steps = second.start_step = 4;
        first.save = folder;
        snprintf(path, sizeof path, "%s/checkpoints/step-00000004", folder);
        second.load = path;
        harness_run_well(&whole);
        harness_run_well(&first);
        check_files(path, &first.config);
        harness_run_well(&second);
        check_same_bits(&whole, &second, 4);
        harness_free(&whole);
        harness_free(&first);
        harness_free(&second);
        remove_folder(NULL);
    }
}

/* bf16 parameters 2, fp32 gradients 4, master, m and v 12 bytes an element; slices where the stage cuts. The block's
 * elements divide by 4 ranks and each buffer is a multiple of the arena's 256 bytes. */
static void state_takes_eighteen_bytes_a_parameter(void **state) {
    (void)state;
    struct ls_config config = harness_config(gpt2);
    config.model.hidden_size = 512;
    config.model.intermediate_size = 2048;
    config.model.vocab_size = 256;
    config.data.sequence_length = config.model.max_position_embeddings = 128;
    config.train.micro_batch_size = 1;
    struct ls_model *model;
    struct ls_device *device;
    struct ls_error error;
    assert_int_equal(ls_model_create(&config, &model, &error), LS_OK);
    assert_int_equal(ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, &error), LS_OK);
    const int64_t P = ls_model_parameter_count(model), N = 4;
    const int64_t expected[] = {18 * P, 6 * P + 12 * P / N, 2 * P + 16 * P / N, 18 * P / N};
    for (int64_t stage = 0; stage <= 3; stage++) {
        struct ls_arena_plan *plan = calloc(1, sizeof *plan);
        struct ls_replica_layout layout;
        assert_non_null(plan);
        config.zero.stage = stage;
        assert_int_equal(ls_replica_plan(&config, model, device, N, plan, &layout, &error), LS_OK);
        const int64_t bytes = plan->category_bytes[LS_MEMORY_PARAMETERS] + plan->category_bytes[LS_MEMORY_GRADIENTS] +
                              plan->category_bytes[LS_MEMORY_OPTIMIZER];
        assert_int_equal(bytes, expected[stage]);
        free(plan);
    }
    ls_device_destroy(device);
    ls_model_destroy(model);
}

/* Half of what fp32 keeps, but for what stays fp32: the statistics. */
static void activations_take_half_the_bytes(void **state) {
    (void)state;
    for (int family = 0; family < 2; family++) {
        struct ls_config low = harness_config(families[family]), wide = low;
        wide.precision = LS_PRECISION_FP32;
        struct ls_model *models[2];
        struct ls_error error;
        assert_int_equal(ls_model_create(&low, &models[0], &error), LS_OK);
        assert_int_equal(ls_model_create(&wide, &models[1], &error), LS_OK);
        const int64_t B = 256;
        assert_int_equal(2 * ls_model_saved_bytes(models[0], 1, B), ls_model_saved_bytes(models[1], 1, B));
        const int64_t statistics = B * low.data.sequence_length * (family == 0 ? 2 + 4 : 4 + 2) * 4;
        assert_int_equal(2 * (ls_model_recomputed_bytes(models[0], 1, B) - statistics),
                         ls_model_recomputed_bytes(models[1], 1, B) - statistics);
        ls_model_destroy(models[0]);
        ls_model_destroy(models[1]);
    }
}

static void fp16_reaches_the_loss_of_fp32(void **state) {
    (void)state;
    for (int family = 0; family < 2; family++) {
        struct run low = {.config = harness_config(families[family]), .ranks = 2, .steps = 30};
        low.config.precision = LS_PRECISION_FP16;
        low.config.zero.stage = 2 * family;
        struct run wide = low;
        wide.config.precision = LS_PRECISION_FP32;
        harness_run_well(&low);
        harness_run_well(&wide);
        check_near(&wide, &low, 0.002); /* 11 bits instead of 8 */
        for (int i = 0; i < 30; i++) assert_false(low.reports[i].skipped);
        assert_int_equal(low.optimizer_steps, 30);
        /* the norm is that of the gradients, not of what the loss scale made of them */
        assert_true(fabs(low.reports[0].grad_norm - wide.reports[0].grad_norm) < 0.01 * wide.reports[0].grad_norm);
        harness_free(&low);
        harness_free(&wide);
    }
}

/* Two targets a step and weights of the size of 2: the first loss scale makes gradients of tens of thousands, whose
 * sums over the vocabulary leave fp16's range. */
static struct ls_config overflowing(const char *yaml) {
    struct ls_config config = harness_config(yaml);
    config.precision = LS_PRECISION_FP16;
    config.data.sequence_length = 1;
    config.model.max_position_embeddings = 1;
    config.model.initializer_range = 2;
    config.train.global_batch_size = config.train.micro_batch_size = 2;
    return config;
}

static int64_t count_skipped(const struct run *run) {
    int64_t skipped = 0;
    for (int64_t i = 0; i < run->steps; i++) skipped += run->reports[i].skipped;
    return skipped;
}

/* An overflow costs the step's update and nothing else: samples and position go on, the optimizer's count does not, and
 * neither weights nor moments know of it. */
static void an_overflow_skips_the_update_and_halves_the_scale(void **state) {
    (void)state;
    for (int family = 0; family < 2; family++) {
        struct run first = {.config = overflowing(families[family]), .ranks = 1, .steps = 1};
        harness_run_well(&first);
        assert_true(first.reports[0].skipped);
        assert_false(isfinite(first.reports[0].grad_norm));
        assert_true(isfinite(first.reports[0].loss));
        assert_int_equal(first.optimizer_steps, 0);
        assert_int_equal(first.reports[0].position, 2);
        struct run none = first;
        none.steps = 0;
        harness_run_well(&none);
        assert_memory_equal(first.weights, none.weights, (size_t)none.weight_count * sizeof *none.weights);
        struct run more = first;
        more.steps = 20;
        harness_run_well(&more);
        const int64_t skipped = count_skipped(&more);
        assert_true(skipped >= 1 && skipped <= 16); /* 2^16 can be halved 16 times */
        assert_int_equal(more.optimizer_steps, 20 - skipped);
        for (int64_t i = 0; i < 20; i++) {
            assert_int_equal(more.reports[i].position, 2 * (i + 1));
            assert_true(more.reports[i].skipped || isfinite(more.reports[i].grad_norm));
        }
        harness_free(&first);
        harness_free(&none);
        harness_free(&more);
    }
}

/* The scale and the count of updates come back: 5 steps, some skipped, a checkpoint, and 15 more have the bits of 20.
 */
static void a_resumed_run_knows_its_loss_scale(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 2; ranks++) {
        make_folder(NULL);
        char path[128];
        struct run whole = {.config = overflowing(families[ranks - 1]), .ranks = ranks, .steps = 20};
        whole.config.zero.stage = ranks == 1 ? 0 : 3;
        struct run first = whole, second = whole;
        first.steps = second.start_step = 5;
        second.steps = 15;
        first.save = folder;
        snprintf(path, sizeof path, "%s/checkpoints/step-00000005", folder);
        second.load = path;
        harness_run_well(&whole);
        harness_run_well(&first);
        second.skipped_before = count_skipped(&first);
        assert_true(second.skipped_before >= 1);
        harness_run_well(&second);
        check_same_bits(&whole, &second, 15);
        assert_int_equal(whole.optimizer_steps, second.optimizer_steps);
        harness_free(&whole);
        harness_free(&first);
        harness_free(&second);
        remove_folder(NULL);
    }
}

static void the_loss_scale_grows_after_a_thousand_good_steps(void **state) {
    (void)state;
    struct ls_loss_scale scale = ls_loss_scale_first(LS_PRECISION_FP16);
    assert_int_equal(scale.factor, 65536);
    for (int i = 0; i < 999; i++) assert_false(ls_loss_scale_advance(&scale, false));
    assert_int_equal(scale.factor, 65536);
    assert_true(ls_loss_scale_advance(&scale, true)); /* the count begins anew */
    assert_int_equal(scale.factor, 32768);
    for (int i = 0; i < 999; i++) ls_loss_scale_advance(&scale, false);
    assert_int_equal(scale.factor, 32768);
    assert_true(ls_loss_scale_is_valid(&scale));
    assert_false(ls_loss_scale_advance(&scale, false));
    assert_int_equal(scale.factor, 65536);
    for (int i = 0; i < 50000; i++) ls_loss_scale_advance(&scale, false);
    assert_int_equal(scale.factor, 1 << 24);
    for (int i = 0; i < 24; i++) assert_true(ls_loss_scale_advance(&scale, true));
    assert_int_equal(scale.factor, 1);
    assert_false(ls_loss_scale_advance(&scale, true)); /* then the gradient itself is not finite */
    assert_int_equal(scale.factor, 1);
    scale = ls_loss_scale_first(LS_PRECISION_BF16);
    assert_false(ls_loss_scale_advance(&scale, true));
    assert_int_equal(scale.factor, 0);
}

static void precision_is_part_of_the_run_s_identity(void **state) {
    (void)state;
    struct ls_config config = harness_config(gpt2);
    char low[33], wide[33];
    ls_config_digest(&config, low);
    config.precision = LS_PRECISION_FP32;
    ls_config_digest(&config, wide);
    assert_string_not_equal(low, wide);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bf16_reaches_the_loss_of_fp32),
        cmocka_unit_test(bf16_trains_the_same_however_it_is_split),
        cmocka_unit_test(recomputing_and_the_order_of_streams_change_no_bit),
        cmocka_unit_test(a_resumed_run_goes_on_with_the_same_bits),
        cmocka_unit_test(state_takes_eighteen_bytes_a_parameter),
        cmocka_unit_test(activations_take_half_the_bytes),
        cmocka_unit_test(fp16_reaches_the_loss_of_fp32),
        cmocka_unit_test(an_overflow_skips_the_update_and_halves_the_scale),
        cmocka_unit_test(a_resumed_run_knows_its_loss_scale),
        cmocka_unit_test(the_loss_scale_grows_after_a_thousand_good_steps),
        cmocka_unit_test(precision_is_part_of_the_run_s_identity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
