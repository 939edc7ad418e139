/* Activation checkpointing: the same bits in every mode, and the memory that was promised. */
#include "trainer_harness.h"

#include "worker/activations.h"
#include "worker/replica_plan.h"

/* 5 layers: segments of 2 leave a rest, segments of 4 leave one layer. */
static const char gpt2[] = "model: {model_type: gpt2, hidden_size: 16, num_hidden_layers: 5, num_attention_heads: 2}\n"
                           "data: {train: [{path: 'synthetic:9000'}], sequence_length: 12}\n"
                           "train: {steps: 50, global_batch_size: 7, micro_batch_size: 7}\n"
                           "optimizer: {lr: 3.0e-3}\n";
static const char llama[] = "model: {model_type: llama, hidden_size: 24, num_hidden_layers: 5, num_attention_heads: 4, "
                            "num_key_value_heads: 2,\n"
                            "        intermediate_size: 40}\n"
                            "data: {train: [{path: 'synthetic:9000'}], sequence_length: 10}\n"
                            "train: {steps: 50, global_batch_size: 7, micro_batch_size: 7}\n"
                            "optimizer: {lr: 3.0e-3}\n";
static const char qwen2[] = "model: {model_type: qwen2, hidden_size: 18, num_hidden_layers: 5, num_attention_heads: 4, "
                            "num_key_value_heads: 2,\n"
                            "        head_dim: 6, intermediate_size: 31}\n"
                            "data: {train: [{path: 'synthetic:9000'}], sequence_length: 10}\n"
                            "train: {steps: 50, global_batch_size: 7, micro_batch_size: 7}\n"
                            "optimizer: {lr: 3.0e-3}\n";
static const char qwen3[] = "model: {model_type: qwen3, hidden_size: 18, num_hidden_layers: 5, num_attention_heads: 4, "
                            "num_key_value_heads: 2,\n"
                            "        head_dim: 6, intermediate_size: 31}\n"
                            "data: {train: [{path: 'synthetic:9000'}], sequence_length: 10}\n"
                            "train: {steps: 50, global_batch_size: 7, micro_batch_size: 7}\n"
                            "optimizer: {lr: 3.0e-3}\n";
static const char *const families[] = {gpt2, llama, qwen2, qwen3};

static const struct mode {
    enum ls_checkpointing_mode mode;
    int64_t every;
} modes[] = {{LS_CHECKPOINTING_FULL, 1},
             {LS_CHECKPOINTING_FULL, 2},
             {LS_CHECKPOINTING_FULL, 4},
             {LS_CHECKPOINTING_FULL, 9},
             {LS_CHECKPOINTING_SELECTIVE, 1}};
enum { MODES = sizeof modes / sizeof *modes, STEPS = 4 };

/* Trains in a mode and evaluates. */
static struct run train(const char *yaml, struct mode mode, int ranks, int64_t micro_batch,
                        enum ls_stream_order order) {
    struct run run = {.config = harness_config(yaml), .ranks = ranks, .order = order, .steps = STEPS, .evaluate = true};
    run.config.train.micro_batch_size = micro_batch;
    run.config.activation_checkpointing.mode = mode.mode;
    run.config.activation_checkpointing.every = mode.every;
    run.config.evaluation.every_steps = STEPS;
    run.config.evaluation.batches = 2;
    run.config.data.validation[0] = run.config.data.train[0];
    run.config.data.validation_count = 1;
    harness_run_well(&run);
    return run;
}

static void check_same_bits(const struct run *a, const struct run *b) {
    for (int i = 0; i < STEPS; i++) {
        assert_memory_equal(&a->reports[i].loss, &b->reports[i].loss, sizeof a->reports[i].loss);
        assert_memory_equal(&a->reports[i].grad_norm, &b->reports[i].grad_norm, sizeof a->reports[i].grad_norm);
    }
    assert_memory_equal(&a->validation_loss, &b->validation_loss, sizeof a->validation_loss);
    assert_int_equal(a->weight_count, b->weight_count);
    assert_memory_equal(a->weights, b->weights, (size_t)a->weight_count * sizeof *a->weights);
}

/* Family, ranks, accumulation and order of streams all meet each other and every mode. With 3 ranks and micro-batches
 * of 2 some ranks have a last micro-batch without sequences. */
static void every_mode_gives_the_same_bits(void **unused) {
    (void)unused;
    static const struct {
        int family, ranks, micro_batch;
        enum ls_stream_order order;
    } cases[] = {{0, 1, 7, LS_STREAMS_EAGER}, {0, 2, 2, LS_STREAMS_LAZY},  {0, 3, 3, LS_STREAMS_HASTY},
                 {1, 1, 3, LS_STREAMS_LAZY},  {1, 2, 7, LS_STREAMS_HASTY}, {1, 3, 2, LS_STREAMS_EAGER},
                 {2, 1, 2, LS_STREAMS_HASTY}, {3, 2, 3, LS_STREAMS_LAZY}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *yaml = families[cases[i].family];
        struct run none =
            train(yaml, (struct mode){LS_CHECKPOINTING_NONE, 1}, cases[i].ranks, cases[i].micro_batch, cases[i].order);
        assert_true(none.reports[STEPS - 1].loss != none.reports[0].loss);
        for (int mode = 0; mode < MODES; mode++) {
            struct run run = train(yaml, modes[mode], cases[i].ranks, cases[i].micro_batch, cases[i].order);
            check_same_bits(&none, &run);
            harness_free(&run);
        }
        harness_free(&none);
    }
}

/* Activation bytes of one micro-batch as the plan has them, and the buffers behind them. */
static int64_t planned(const struct ls_config *config, int *buffers) {
    struct ls_model *model;
    struct ls_error error;
    if (ls_model_create(config, &model, &error)) fail_msg("%s", error.text);
    struct ls_arena_plan *plan = calloc(1, sizeof *plan);
    assert_non_null(plan);
    ls_activations_plan(config, model, plan);
    const int64_t bytes = plan->category_bytes[LS_MEMORY_ACTIVATIONS];
    if (buffers) *buffers = plan->count;
    free(plan);
    ls_model_destroy(model);
    return bytes;
}

static struct ls_config twelve_layers(const char *yaml, int64_t micro_batch) {
    struct ls_config config = harness_config(yaml);
    config.model.num_hidden_layers = 12;
    config.train.micro_batch_size = micro_batch;
    return config;
}

/* 16 sequences of 16 tokens, 64 channels: every buffer is a multiple of the arena's 256 bytes, so the formulas of the
 * papers hold exactly. */
static struct ls_config even_sizes(const char *yaml) {
    struct ls_config config = twelve_layers(yaml, 16);
    config.data.sequence_length = 16;
    config.model.hidden_size = 64;
    config.model.num_attention_heads = 4;
    config.model.num_key_value_heads = config.model.model_type == LS_GPT2 ? 4 : 2;
    config.model.head_dim = 16;
    config.model.intermediate_size = config.model.model_type == LS_GPT2 ? 256 : 192;
    config.model.max_position_embeddings = 16;
    return config;
}

static void set_mode(struct ls_config *config, enum ls_checkpointing_mode mode, int64_t every) {
    config->activation_checkpointing.mode = mode;
    config->activation_checkpointing.every = every;
}

/* GPT-2, floats a row: 4 C of the norms, attention and the sum between, 3 C qkv, 2 I around GELU; lse NH, statistics 4.
 */
static void gpt2_needs_the_bytes_of_the_formula(void **unused) {
    (void)unused;
    const int64_t L = 12, R = 16 * 16, C = 64, I = 256, NH = 4;
    const int64_t saved = 4 * R * (3 * C + C + I), recomputed = 4 * R * (3 * C + I + NH + 4), stream = 4 * R * C;
    struct ls_config config = even_sizes(gpt2);
    assert_int_equal(planned(&config, NULL), L * (saved + recomputed) + (L + 1) * stream);
    set_mode(&config, LS_CHECKPOINTING_SELECTIVE, 1);
    assert_int_equal(planned(&config, NULL), L * saved + recomputed + (L + 1) * stream);
    set_mode(&config, LS_CHECKPOINTING_FULL, 1);
    assert_int_equal(planned(&config, NULL), saved + recomputed + (L + 1) * stream);
    /* segments begin at 0, 5 and 10; their inputs, the head's and 4 between */
    set_mode(&config, LS_CHECKPOINTING_FULL, 5);
    assert_int_equal(planned(&config, NULL), 5 * (saved + recomputed) + (3 + 1 + 4) * stream);
}

/* Llama, floats a row: W = (NH + 2 NKV) HD of qkv, 2 C norms, Q attention, C the sum between, 3 I around SwiGLU; lse
 * NH, statistics 2. */
static void llama_needs_the_bytes_of_the_formula(void **unused) {
    (void)unused;
    const int64_t L = 12, R = 16 * 16, C = 64, I = 192, NH = 4, Q = 64, W = 128;
    const int64_t saved = 4 * R * (W + C + 2 * I), recomputed = 4 * R * (2 * C + Q + I + NH + 2), stream = 4 * R * C;
    struct ls_config config = even_sizes(llama);
    assert_int_equal(planned(&config, NULL), L * (saved + recomputed) + (L + 1) * stream);
    set_mode(&config, LS_CHECKPOINTING_SELECTIVE, 1);
    assert_int_equal(planned(&config, NULL), L * saved + recomputed + (L + 1) * stream);
    set_mode(&config, LS_CHECKPOINTING_FULL, 1);
    assert_int_equal(planned(&config, NULL), saved + recomputed + (L + 1) * stream);
}

static void full_needs_a_fifth_of_the_memory_at_twelve_layers(void **unused) {
    (void)unused;
    for (int family = 0; family < 2; family++) {
        struct ls_config config = even_sizes(families[family]);
        const int64_t none = planned(&config, NULL);
        set_mode(&config, LS_CHECKPOINTING_FULL, 1);
        assert_true(5 * planned(&config, NULL) <= none);
        set_mode(&config, LS_CHECKPOINTING_SELECTIVE, 1);
        assert_true(4 * planned(&config, NULL) <= 3 * none);
    }
}

static void a_segment_of_all_layers_keeps_everything(void **unused) {
    (void)unused;
    struct ls_config config = twelve_layers(gpt2, 3);
    int none, all;
    const int64_t bytes = planned(&config, &none);
    set_mode(&config, LS_CHECKPOINTING_FULL, 12);
    assert_int_equal(planned(&config, &all), bytes);
    assert_int_equal(all, none);
    set_mode(&config, LS_CHECKPOINTING_FULL, 40);
    assert_int_equal(planned(&config, NULL), bytes);
}

/* Every output, and every layer's saved parts, that are in use at the same time lie apart: `none` in all, `full` within
 * a segment. */
static void what_lives_at_the_same_time_lies_apart(void **unused) {
    (void)unused;
    for (int64_t every = 1; every <= 13; every++) {
        struct ls_config config = twelve_layers(llama, 1);
        set_mode(&config, LS_CHECKPOINTING_FULL, every);
        struct ls_model *model;
        struct ls_device *device;
        struct ls_arena *arena;
        struct ls_error error;
        struct ls_arena_plan *plan = calloc(1, sizeof *plan);
        assert_non_null(plan);
        assert_int_equal(ls_model_create(&config, &model, &error), LS_OK);
        assert_int_equal(ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, &error), LS_OK);
        const struct ls_activations activations = ls_activations_plan(&config, model, plan);
        assert_int_equal(ls_arena_create(device, plan, &arena, &error), LS_OK);
        for (int a = 0; a <= 12; a++)
            for (int b = 0; b < a; b++) {
                /* the outputs of blocks a and b: both kept, or one of them kept, or in one segment */
                const bool both = a % every == 0 || a == 12 || b % every == 0 || a / every == b / every;
                if (both)
                    assert_ptr_not_equal(ls_activations_output(&activations, arena, a),
                                         ls_activations_output(&activations, arena, b));
                if (b == 0 || (a - 1) / every != (b - 1) / every) continue;
                assert_ptr_not_equal(ls_activations_saved(&activations, arena, a),
                                     ls_activations_saved(&activations, arena, b));
                assert_ptr_not_equal(ls_activations_recomputed(&activations, arena, a),
                                     ls_activations_recomputed(&activations, arena, b));
            }
        /* Walking back, every layer but the last segment's runs forward exactly once more. */
        int again[13] = {0};
        for (int block = 12; block >= 1; block--)
            for (int earlier = ls_activations_forward_again(&activations, block); earlier <= block; earlier++)
                again[earlier]++;
        for (int block = 1; block <= 12; block++)
            assert_int_equal(again[block], (block - 1) / every < 11 / every ? 1 : 0);
        ls_arena_destroy(arena);
        ls_device_destroy(device);
        ls_model_destroy(model);
        free(plan);
    }
}

/* In bf16 with a fixed reduction a layer has most buffers: weights, gradients, master weights, two moments, nodes of
 * the tree, and its activations. */
static void the_deepest_model_has_room_for_its_buffers(void **unused) {
    (void)unused;
    static const struct mode cases[] = {{LS_CHECKPOINTING_NONE, 1},
                                        {LS_CHECKPOINTING_SELECTIVE, 1},
                                        {LS_CHECKPOINTING_FULL, 1},
                                        {LS_CHECKPOINTING_FULL, 4096}};
    struct ls_config config = harness_config(llama);
    struct ls_device *device;
    struct ls_model *model;
    struct ls_error error = {0};
    struct ls_arena_plan *plan = malloc(sizeof *plan);
    int most = 0;
    assert_non_null(plan);
    config.model.num_hidden_layers = 4096;
    config.model.vocab_size = 11;
    config.precision = LS_PRECISION_BF16;
    config.train.reduction = LS_REDUCTION_FIXED;
    config.train.micro_batch_size = 1;
    if (ls_model_create(&config, &model, &error)) fail_msg("%s", error.text);
    assert_int_equal(ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, NULL), LS_OK);
    for (config.zero.stage = 0; config.zero.stage <= 3; config.zero.stage++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            struct ls_replica_layout layout;
            set_mode(&config, cases[i].mode, cases[i].every);
            memset(plan, 0, sizeof *plan);
            if (ls_replica_plan(&config, model, device, 2, plan, &layout, &error)) fail_msg("%s", error.text);
            if (plan->count > most) most = plan->count;
        }
    assert_true(most > 9 * 4096);
    ls_device_destroy(device);
    ls_model_destroy(model);
    free(plan);
}

static void segments_belong_to_full(void **unused) {
    (void)unused;
    char yaml[1024];
    struct ls_config config;
    struct ls_error error;
    snprintf(yaml, sizeof yaml, "%sactivation_checkpointing: {mode: selective, every: 2}\n", gpt2);
    assert_int_equal(ls_config_parse(yaml, strlen(yaml), "test", NULL, 0, &config, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "mode: full"));
    snprintf(yaml, sizeof yaml, "%sactivation_checkpointing: {every: 2}\n", gpt2);
    assert_int_equal(ls_config_parse(yaml, strlen(yaml), "test", NULL, 0, &config, &error), LS_USAGE);
    snprintf(yaml, sizeof yaml, "%sactivation_checkpointing: {mode: full, every: 0}\n", gpt2);
    assert_int_equal(ls_config_parse(yaml, strlen(yaml), "test", NULL, 0, &config, &error), LS_USAGE);
}

static void the_mode_does_not_change_the_run_s_identity(void **unused) {
    (void)unused;
    struct ls_config config = harness_config(gpt2);
    char none[33], full[33];
    ls_config_digest(&config, none);
    set_mode(&config, LS_CHECKPOINTING_FULL, 3);
    ls_config_digest(&config, full);
    assert_string_equal(none, full);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_mode_gives_the_same_bits),
        cmocka_unit_test(gpt2_needs_the_bytes_of_the_formula),
        cmocka_unit_test(llama_needs_the_bytes_of_the_formula),
        cmocka_unit_test(full_needs_a_fifth_of_the_memory_at_twelve_layers),
        cmocka_unit_test(a_segment_of_all_layers_keeps_everything),
        cmocka_unit_test(what_lives_at_the_same_time_lies_apart),
        cmocka_unit_test(the_deepest_model_has_room_for_its_buffers),
        cmocka_unit_test(segments_belong_to_full),
        cmocka_unit_test(the_mode_does_not_change_the_run_s_identity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
