/* Models: tables, initial values, buffers, and what a pass promises beyond its arithmetic (that is
 * test_model_reference's). */
#include "tests/unit/model_harness.h"

#include <math.h>

/* Every gradient, block after block; the caller frees it. */
static float *all_gradients(struct harness *h, int64_t *count) {
    *count = ls_model_parameter_count(h->model);
    float *values = malloc((size_t)*count * sizeof *values);
    assert_non_null(values);
    int64_t at = 0;
    for (int i = 0; i < h->blocks; i++) {
        int64_t n = ls_model_block(h->model, i)->count;
        harness_download(h, values + at, h->gradients[i], n * (int64_t)sizeof *values);
        at += n;
    }
    assert_int_equal(at, *count);
    return values;
}

static int64_t parameters_of(struct ls_config config) {
    struct ls_model *model = NULL;
    struct ls_error error;
    if (ls_model_create(&config, &model, &error) != LS_OK) fail_msg("%s", error.text);
    int64_t count = ls_model_parameter_count(model);
    ls_model_destroy(model);
    return count;
}

/* The figures that Hugging Face prints for the published models. */
static void published_models_have_their_published_parameter_counts(void **state) {
    (void)state;
    assert_int_equal(parameters_of(gpt2_config(50257, 768, 12, 12, 1024)), 124439808);
    assert_int_equal(parameters_of(gpt2_config(50257, 1024, 24, 16, 1024)), 354823168);
    assert_int_equal(parameters_of(gpt2_config(50257, 1600, 48, 25, 1024)), 1557611200);
    struct ls_config llama_1b = llama_config(128256, 2048, 16, 32, 8, 8192, 2048);
    llama_1b.model.tie_word_embeddings = true;
    assert_int_equal(parameters_of(llama_1b), 1235814400);
    assert_int_equal(parameters_of(llama_config(128256, 4096, 32, 32, 8, 14336, 8192)), 8030261248);
    assert_int_equal(parameters_of(llama_config(128256, 8192, 80, 64, 8, 28672, 8192)), 70553706496);
}

static void flops_are_six_n_and_six_lct(void **state) {
    (void)state;
    struct ls_config config = gpt2_config(50257, 768, 12, 12, 1024);
    struct ls_model *model = NULL;
    struct ls_error error;
    assert_int_equal(ls_model_create(&config, &model, &error), LS_OK);
    /* 6 (124,439,808 - 1024 * 768) + 6 * 12 * 768 * 1024 */
    assert_true(ls_model_flops_per_token(model) == 798543360.0);
    ls_model_destroy(model);
}

/* nanoGPT prints 121,344 parameters without decay for this model. */
static void only_matrices_decay(void **state) {
    (void)state;
    struct ls_config config = gpt2_config(50257, 768, 12, 12, 1024);
    struct ls_model *model = NULL;
    struct ls_error error;
    assert_int_equal(ls_model_create(&config, &model, &error), LS_OK);
    int64_t decaying = 0;
    for (int i = 0; i < ls_model_block_count(model); i++) decaying += ls_model_block(model, i)->decay_count;
    assert_int_equal(ls_model_parameter_count(model) - decaying, 121344);
    ls_model_destroy(model);
}

static void tensors_tile_their_blocks_with_matrices_first(void **state) {
    (void)state;
    for (int v = 0; v < VARIANTS; v++) {
        struct ls_config config = variant(v);
        struct ls_model *model = NULL;
        struct ls_error error;
        assert_int_equal(ls_model_create(&config, &model, &error), LS_OK);
        int seen = 0;
        for (int i = 0; i < ls_model_block_count(model); i++) {
            const struct ls_block *block = ls_model_block(model, i);
            int64_t offset = 0;
            assert_int_equal(block->first_tensor, seen);
            for (int j = 0; j < block->tensor_count; j++, seen++) {
                const struct ls_tensor *tensor = ls_model_tensor(model, seen);
                assert_int_equal(tensor->block, i);
                assert_int_equal(tensor->offset, offset);
                assert_int_equal(tensor->count, tensor->shape[0] * (tensor->dimensions == 2 ? tensor->shape[1] : 1));
                assert_int_equal(tensor->dimensions == 2, offset < block->decay_count);
                offset += tensor->count;
            }
            assert_int_equal(offset, block->count);
        }
        assert_int_equal(seen, ls_model_tensor_count(model));
        ls_model_destroy(model);
    }
}

static const struct ls_tensor *named(const struct ls_model *model, const char *name) {
    for (int i = 0; i < ls_model_tensor_count(model); i++) {
        if (strcmp(ls_model_tensor(model, i)->name, name) == 0) return ls_model_tensor(model, i);
    }
    return NULL;
}

static void names_and_shapes_are_hugging_faces(void **state) {
    (void)state;
    static const struct {
        int variant;
        const char *name;
        int64_t rows, columns;
    } expected[] = {
        {0, "wte.weight", 53, 30},
        {0, "wpe.weight", 21, 30},
        {0, "h.1.ln_1.weight", 30, 0},
        {0, "h.1.attn.c_attn.weight", 30, 90},
        {0, "h.0.attn.c_attn.bias", 90, 0},
        {0, "h.0.mlp.c_fc.weight", 30, 120},
        {0, "h.0.mlp.c_proj.weight", 120, 30},
        {0, "ln_f.bias", 30, 0},
        {1, "h.1.mlp.c_fc.bias", 41, 0},
        {1, "lm_head.weight", 53, 30},
        {2, "model.embed_tokens.weight", 53, 22},
        {2, "model.layers.1.self_attn.q_proj.weight", 60, 22},
        {2, "model.layers.1.self_attn.k_proj.weight", 30, 22},
        {2, "model.layers.1.self_attn.o_proj.weight", 22, 60},
        {2, "model.layers.0.mlp.gate_proj.weight", 9, 22},
        {2, "model.layers.0.mlp.down_proj.weight", 22, 9},
        {2, "model.layers.0.post_attention_layernorm.weight", 22, 0},
        {2, "model.norm.weight", 22, 0},
        {2, "lm_head.weight", 53, 22},
    };
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        struct ls_config config = variant(expected[i].variant);
        struct ls_model *model = NULL;
        struct ls_error error;
        assert_int_equal(ls_model_create(&config, &model, &error), LS_OK);
        const struct ls_tensor *tensor = named(model, expected[i].name);
        if (tensor == NULL) fail_msg("no tensor is called %s", expected[i].name);
        assert_int_equal(tensor->dimensions, expected[i].columns == 0 ? 1 : 2);
        assert_int_equal(tensor->shape[0], expected[i].rows);
        assert_int_equal(tensor->shape[1], expected[i].columns);
        ls_model_destroy(model);
    }
    for (int v = 0; v < VARIANTS; v++) {
        struct ls_config config = variant(v);
        struct ls_model *model = NULL;
        struct ls_error error;
        assert_int_equal(ls_model_create(&config, &model, &error), LS_OK);
        assert_int_equal(ls_model_head_is_tied(model), v == 0 || v == 3);
        assert_int_equal(named(model, "lm_head.weight") == NULL, ls_model_head_is_tied(model));
        ls_model_destroy(model);
    }
}

static void refuse(struct ls_config config, const char *words) {
    struct ls_model *model = NULL;
    struct ls_error error = {0};
    assert_int_equal(ls_model_create(&config, &model, &error), LS_USAGE);
    assert_null(model);
    if (strstr(error.text, words) == NULL) fail_msg("'%s' does not say '%s'", error.text, words);
}

static void sizes_that_do_not_fit_are_refused(void **state) {
    (void)state;
    struct ls_config config = small_gpt2();
    config.model.num_attention_heads = 4;
    refuse(config, "hidden_size 30 is not a multiple of num_attention_heads 4");
    config = small_gpt2();
    config.data.sequence_length = 22;
    refuse(config, "22 tokens do not fit in 21 positions");
    config = small_gpt2();
    config.model.vocab_size = 0;
    refuse(config, "model.vocab_size is 0");
    config = small_gpt2();
    config.model.num_hidden_layers = 5000;
    refuse(config, "model.num_hidden_layers is 5000, it must be at most 4096");
    config = small_llama();
    config.model.num_key_value_heads = 4;
    refuse(config, "6 attention heads cannot share 4 key-value heads");
    config = small_llama();
    config.model.head_dim = 7;
    refuse(config, "7 channels cannot be rotated");
    config = small_llama();
    config.model.head_dim = 1 << 16;
    refuse(config, "model.head_dim is 65536");
    config = small_llama();
    config.model.hidden_size = 1 << 20;
    config.model.intermediate_size = 1 << 22;
    refuse(config, "the number of parameters");
}

static void initial_values_do_not_depend_on_how_blocks_are_cut(void **state) {
    (void)state;
    static const int64_t CUTS[] = {1, 2, 100, 1777, 4096, 1, 333};
    for (int v = 0; v < VARIANTS; v++) {
        struct ls_config config = variant(v);
        struct harness *h = harness_create(&config, 1, 1, LS_STREAMS_EAGER);
        harness_initialize(h, 7);
        for (int i = 0; i < h->blocks; i++) {
            int64_t count = ls_model_block(h->model, i)->count, padded = count + 77;
            float *pieces = harness_buffer(h, padded * (int64_t)sizeof(float));
            float *host = malloc((size_t)padded * sizeof *host), *whole = malloc((size_t)count * sizeof *whole);
            assert_non_null(host);
            assert_non_null(whole);
            for (int64_t j = 0; j < padded; j++) host[j] = NAN;
            harness_upload(h, pieces, host, padded * (int64_t)sizeof *host);
            for (int64_t first = 0, n = 0; first < padded; first += CUTS[n++ % 7]) {
                int64_t size = padded - first < CUTS[n % 7] ? padded - first : CUTS[n % 7];
                ls_model_initialize(h->model, i, first, size, 7, h->stream, pieces + first);
            }
            harness_download(h, host, pieces, padded * (int64_t)sizeof *host);
            harness_download(h, whole, h->parameters[i], count * (int64_t)sizeof *whole);
            assert_memory_equal(host, whole, (size_t)count * sizeof *whole);
            for (int64_t j = count; j < padded; j++) assert_true(host[j] == 0 && !signbit(host[j]));
            free(host);
            free(whole);
        }
        harness_destroy(h);
    }
}

/* Mean and deviation of n normal values lie within 5 standard errors (deviation / sqrt(n), deviation / sqrt(2 n)) but
 * for one seed in a million. */
static void check_initial(struct harness *h, const char *name, double mean, double deviation) {
    const struct ls_tensor *tensor = named(h->model, name);
    assert_non_null(tensor);
    float *values = malloc((size_t)tensor->count * sizeof *values);
    assert_non_null(values);
    harness_download(h, values, h->parameters[tensor->block] + tensor->offset, tensor->count * (int64_t)sizeof *values);
    double sum = 0, squares = 0, n = (double)tensor->count;
    for (int64_t i = 0; i < tensor->count; i++) sum += (double)values[i];
    for (int64_t i = 0; i < tensor->count; i++) squares += ((double)values[i] - mean) * ((double)values[i] - mean);
    double error = deviation / sqrt(n);
    if (fabs(sum / n - mean) > 5 * error || fabs(sqrt(squares / n) - deviation) > 5 * error / sqrt(2)) {
        fail_msg("%s has mean %g and deviation %g", name, sum / n, sqrt(squares / n));
    }
    free(values);
}

static void initial_values_are_those_of_the_papers(void **state) {
    (void)state;
    struct ls_config config = gpt2_config(101, 64, 8, 4, 33);
    struct harness *h = harness_create(&config, 1, 1, LS_STREAMS_EAGER);
    harness_initialize(h, 1);
    check_initial(h, "wte.weight", 0, 0.02);
    check_initial(h, "wpe.weight", 0, 0.02);
    check_initial(h, "h.0.attn.c_attn.weight", 0, 0.02);
    check_initial(h, "h.3.attn.c_proj.weight", 0, 0.005); /* 0.02 / sqrt(2 * 8) */
    check_initial(h, "h.7.mlp.c_proj.weight", 0, 0.005);
    check_initial(h, "h.7.mlp.c_fc.weight", 0, 0.02);
    check_initial(h, "h.2.ln_2.weight", 1, 0);
    check_initial(h, "h.2.mlp.c_fc.bias", 0, 0);
    check_initial(h, "ln_f.weight", 1, 0);
    harness_destroy(h);
    config = llama_config(101, 64, 2, 4, 2, 96, 33);
    h = harness_create(&config, 1, 1, LS_STREAMS_EAGER);
    harness_initialize(h, 1);
    check_initial(h, "model.embed_tokens.weight", 0, 0.02);
    check_initial(h, "model.layers.1.self_attn.k_proj.weight", 0, 0.02);
    check_initial(h, "model.layers.1.self_attn.o_proj.weight", 0, 0.01); /* 0.02 / sqrt(2 * 2) */
    check_initial(h, "model.layers.0.mlp.down_proj.weight", 0, 0.01);
    check_initial(h, "model.layers.0.mlp.up_proj.weight", 0, 0.02);
    check_initial(h, "model.norm.weight", 1, 0);
    check_initial(h, "lm_head.weight", 0, 0.02);
    harness_destroy(h);
}

static void layers_start_from_different_values(void **state) {
    (void)state;
    struct ls_config config = small_llama();
    struct harness *h = harness_create(&config, 1, 1, LS_STREAMS_EAGER);
    harness_initialize(h, 1);
    float one[4], other[4];
    harness_download(h, one, h->parameters[1], sizeof one);
    harness_download(h, other, h->parameters[2], sizeof other);
    assert_memory_not_equal(one, other, sizeof one);
    harness_initialize(h, 2);
    harness_download(h, other, h->parameters[1], sizeof other);
    assert_memory_not_equal(one, other, sizeof one);
    harness_destroy(h);
}

/* harness_destroy looks behind every buffer, each of exactly the size that the model asked for. */
static void passes_stay_within_the_sizes_they_ask_for(void **state) {
    (void)state;
    int32_t tokens[B * T], targets[B * T];
    fill_batch(tokens, targets, B * T, 53);
    for (int v = 0; v < VARIANTS; v++) {
        struct ls_config config = variant(v);
        for (int64_t sequences = 1; sequences <= B; sequences++) {
            struct harness *h = harness_create(&config, sequences, 2, LS_STREAMS_EAGER);
            harness_initialize(h, 3);
            struct harness_batch batch = {tokens, targets, NULL, sequences};
            assert_true(isfinite(harness_run(h, &batch, 1)));
            harness_destroy(h);
        }
    }
}

static void an_untrained_model_knows_nothing(void **state) {
    (void)state;
    int32_t tokens[B * T], targets[B * T];
    fill_batch(tokens, targets, B * T, 53);
    int64_t counted = 0;
    for (int i = 0; i < B * T; i++) counted += targets[i] >= 0;
    for (int v = 0; v < VARIANTS; v++) {
        struct ls_config config = variant(v);
        struct harness *h = harness_create(&config, B, 2, LS_STREAMS_EAGER);
        harness_initialize(h, 3);
        struct harness_batch batch = {tokens, targets, NULL, B};
        /* logits of normalised rows of C channels times N(0, 0.02^2) have a deviation of 0.02 sqrt(C) < 0.11 */
        assert_float_equal(harness_run(h, &batch, 0) / (double)counted, log(53), 0.05);
        harness_destroy(h);
    }
}

/* A loss is a sum: two sequences one after the other add up the same gradient, but for the order of float additions. */
static void micro_batches_accumulate(void **state) {
    (void)state;
    int32_t tokens[B * T], targets[B * T], starts[B * T];
    fill_batch(tokens, targets, B * T, 53);
    for (int i = 0; i < B * T; i++) starts[i] = i % T >= 8 ? 8 : 0;
    for (int v = 0; v < VARIANTS; v++) {
        struct ls_config config = variant(v);
        struct harness *h = harness_create(&config, B, 2, LS_STREAMS_EAGER);
        harness_initialize(h, 3);
        struct harness_batch batch = {tokens, targets, starts, B};
        double whole = harness_run(h, &batch, 1), parts = 0;
        int64_t count;
        float *expected = all_gradients(h, &count);
        harness_zero_gradients(h);
        for (int b = 0; b < B; b++) {
            batch = (struct harness_batch){tokens + b * T, targets + b * T, starts + b * T, 1};
            parts += harness_run(h, &batch, 1);
        }
        assert_float_equal(parts, whole, 1e-6 * whole);
        float *found = all_gradients(h, &count);
        double difference = 0, norm = 0;
        for (int64_t i = 0; i < count; i++) {
            difference += (double)(found[i] - expected[i]) * (double)(found[i] - expected[i]);
            norm += (double)expected[i] * (double)expected[i];
        }
        assert_true(norm > 0);
        assert_true(sqrt(difference) <= 2e-6 * sqrt(norm)); /* a few units of 2^-23 */
        free(expected);
        free(found);
        harness_destroy(h);
    }
}

static void an_empty_micro_batch_changes_nothing(void **state) {
    (void)state;
    int32_t tokens[T], targets[T];
    fill_batch(tokens, targets, T, 53);
    for (int v = 0; v < VARIANTS; v++) {
        struct ls_config config = variant(v);
        struct harness *h = harness_create(&config, 1, 1, LS_STREAMS_EAGER);
        harness_initialize(h, 3);
        struct harness_batch batch = {tokens, targets, NULL, 1};
        assert_true(harness_run(h, &batch, 1) > 0);
        int64_t count;
        float *before = all_gradients(h, &count);
        batch.sequences = 0;
        assert_true(harness_run(h, &batch, 1) == 0);
        float *after = all_gradients(h, &count);
        assert_memory_equal(before, after, (size_t)count * sizeof *before);
        free(before);
        free(after);
        harness_destroy(h);
    }
}

static void evaluation_gives_the_training_loss_and_no_gradients(void **state) {
    (void)state;
    int32_t tokens[B * T], targets[B * T];
    fill_batch(tokens, targets, B * T, 53);
    for (int v = 0; v < VARIANTS; v++) {
        struct ls_config config = variant(v);
        struct harness *h = harness_create(&config, B, 2, LS_STREAMS_EAGER);
        harness_initialize(h, 3);
        struct harness_batch batch = {tokens, targets, NULL, B};
        double loss = harness_run(h, &batch, 0);
        int64_t count;
        float *gradients = all_gradients(h, &count);
        for (int64_t i = 0; i < count; i++) assert_true(gradients[i] == 0);
        assert_true(harness_run(h, &batch, 1) == loss);
        free(gradients);
        harness_destroy(h);
    }
}

static void eager_and_lazy_streams_give_the_same_bits(void **state) {
    (void)state;
    int32_t tokens[B * T], targets[B * T];
    fill_batch(tokens, targets, B * T, 53);
    struct harness_batch batch = {tokens, targets, NULL, B};
    for (int v = 0; v < VARIANTS; v++) {
        struct ls_config config = variant(v);
        double losses[2];
        float *gradients[2];
        int64_t count = 0;
        for (int lazy = 0; lazy < 2; lazy++) {
            struct harness *h = harness_create(&config, B, 2, lazy ? LS_STREAMS_LAZY : LS_STREAMS_EAGER);
            harness_initialize(h, 3);
            losses[lazy] = harness_run(h, &batch, 1);
            gradients[lazy] = all_gradients(h, &count);
            harness_destroy(h);
        }
        assert_true(losses[0] == losses[1]);
        assert_memory_equal(gradients[0], gradients[1], (size_t)count * sizeof(float));
        free(gradients[0]);
        free(gradients[1]);
    }
}

/* Only the targets of the second document count; its losses must not feel the first one's tokens, and its own must
 * matter. */
static void documents_do_not_see_each_other(void **state) {
    (void)state;
    enum { START = 8 };
    int32_t tokens[T], other[T], targets[T], starts[T];
    fill_batch(tokens, targets, T, 53);
    for (int i = 0; i < T; i++) {
        other[i] = i < START ? (tokens[i] + 1) % 53 : tokens[i];
        targets[i] = i < START ? -1 : tokens[(i + 1) % T];
        starts[i] = i < START ? 0 : START;
    }
    for (int v = 0; v < VARIANTS; v++) {
        struct ls_config config = variant(v);
        struct harness *h = harness_create(&config, 1, 2, LS_STREAMS_EAGER);
        harness_initialize(h, 3);
        struct harness_batch one = {tokens, targets, starts, 1}, two = {other, targets, starts, 1};
        double loss = harness_run(h, &one, 0);
        assert_true(harness_run(h, &two, 0) == loss);
        one.document_start = two.document_start = NULL;
        assert_true(harness_run(h, &one, 0) != harness_run(h, &two, 0));
        harness_destroy(h);
    }
}

/* A later token must not reach an earlier loss. */
static void losses_do_not_see_the_future(void **state) {
    (void)state;
    int32_t tokens[T], other[T], targets[T];
    fill_batch(tokens, targets, T, 53);
    memcpy(other, tokens, sizeof tokens);
    for (int i = 11; i < T; i++) {
        other[i] = (tokens[i] + 1) % 53;
        targets[i] = -1;
    }
    for (int v = 0; v < VARIANTS; v++) {
        struct ls_config config = variant(v);
        struct harness *h = harness_create(&config, 1, 2, LS_STREAMS_EAGER);
        harness_initialize(h, 3);
        struct harness_batch one = {tokens, targets, NULL, 1}, two = {other, targets, NULL, 1};
        assert_true(harness_run(h, &one, 0) == harness_run(h, &two, 0));
        harness_destroy(h);
    }
}

static void check_chunk(const struct ls_config *config, const struct ls_device *device, int64_t rows,
                        int64_t expected) {
    struct ls_model *model = NULL;
    struct ls_error error;
    assert_int_equal(ls_model_create(config, &model, &error), LS_OK);
    assert_int_equal(ls_model_head_chunk(model, device, rows), expected);
    ls_model_destroy(model);
}

/* Rows of (50,272 logits + 768 channels) floats: 164 fit in 32 MiB, so 512 are taken; rows of (272 + 384) floats:
 * 12,787. */
static void heads_take_rows_in_even_chunks(void **state) {
    (void)state;
    const struct ls_config large = gpt2_config(50257, 768, 12, 12, 1024), small = gpt2_config(257, 384, 6, 6, 256);
    struct ls_device *device = NULL;
    struct ls_error error;
    assert_int_equal(ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, &error), LS_OK);
    check_chunk(&large, device, 500, 500);
    check_chunk(&large, device, 512, 512);
    check_chunk(&large, device, 513, 257);
    check_chunk(&large, device, 2048, 512);
    check_chunk(&small, device, 12787, 12787);
    check_chunk(&small, device, 12788, 6394);
    ls_device_destroy(device);
}

/* In bf16 rows of 102,080 bytes: 5,259 fit in 512 MiB, 41 tiles of 128; in fp32 2,629, 20 tiles. Rows of 2^20 bytes:
 * 512 would fit, 1,024 are taken. */
static void heads_take_more_rows_on_gpus(void **state) {
    (void)state;
    struct ls_config config = gpt2_config(50257, 768, 12, 12, 1024);
    struct ls_device *device = NULL;
    struct ls_error error;
    assert_int_equal(ls_device_create_planned_cuda(&device, &error), LS_OK);
    check_chunk(&config, device, 5000, 2560);
    check_chunk(&config, device, 2560, 2560);
    config.precision = LS_PRECISION_BF16;
    check_chunk(&config, device, 16384, 4096);
    check_chunk(&config, device, 5248, 5248);
    check_chunk(&config, device, 5249, 2688);
    check_chunk(&config, device, 7, 7);
    config = gpt2_config((1 << 18) - 64, 64, 1, 1, 1024);
    check_chunk(&config, device, 4096, 1024);
    check_chunk(&config, device, 1025, 640);
    ls_device_destroy(device);
}

/* A head's row of 272 logits and 768 channels, its statistics and its loss, each rounded up to 256 bytes, and two sums
 * of 768 columns for each slice of the norm's gradients: 132 x 512 threads, 192 a slice. No other operation needs as
 * much. */
static void scratch_on_gpus_holds_a_chunk_and_the_slices_of_its_norm(void **state) {
    struct ls_config config = gpt2_config(257, 768, 1, 12, 1);
    struct ls_model *model = NULL;
    struct ls_device *device = NULL;
    struct ls_error error;
    (void)state;
    assert_int_equal(ls_model_create(&config, &model, &error), LS_OK);
    assert_int_equal(ls_device_create_planned_cuda(&device, &error), LS_OK);
    assert_int_equal(ls_model_scratch_bytes(model, device, 1), 1280 + 3072 + 256 + 256 + 2 * 352 * 768 * 4);
    ls_device_destroy(device);
    ls_model_destroy(model);
}

static void a_head_in_chunks_gives_the_same_loss_and_gradients(void **state) {
    (void)state;
    enum { LONG = 300 };
    static int32_t tokens[2 * LONG], targets[2 * LONG];
    struct ls_config config = gpt2_config(18001, 6, 1, 1, LONG); /* 512 rows at most: two chunks for 600 */
    fill_batch(tokens, targets, 2 * LONG, 18001);
    struct harness *h = harness_create(&config, 2, 2, LS_STREAMS_EAGER);
    assert_int_equal(ls_model_head_chunk(h->model, h->device, 2 * LONG), LONG);
    assert_int_equal(ls_model_head_chunk(h->model, h->device, LONG), LONG);
    harness_initialize(h, 3);
    struct harness_batch batch = {tokens, targets, NULL, 2};
    double whole = harness_run(h, &batch, 1), parts = 0;
    int64_t count;
    float *expected = all_gradients(h, &count);
    harness_zero_gradients(h);
    for (int b = 0; b < 2; b++) {
        batch = (struct harness_batch){tokens + b * LONG, targets + b * LONG, NULL, 1};
        parts += harness_run(h, &batch, 1);
    }
    float *found = all_gradients(h, &count);
    assert_float_equal(parts, whole, 1e-6 * whole);
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        difference += (double)(found[i] - expected[i]) * (double)(found[i] - expected[i]);
        norm += (double)expected[i] * (double)expected[i];
    }
    assert_true(sqrt(difference) <= 2e-6 * sqrt(norm));
    free(expected);
    free(found);
    harness_destroy(h);
}

static void check_same_bytes(struct harness *h, const void *first, const void *again, int64_t bytes) {
    char *a = malloc((size_t)bytes), *b = malloc((size_t)bytes);
    assert_non_null(a);
    assert_non_null(b);
    harness_download(h, a, first, bytes);
    harness_download(h, b, again, bytes);
    assert_memory_equal(a, b, (size_t)bytes);
    free(a);
    free(b);
}

/* What recomputing activations rests on: the forward of a layer leaves the same bits every time, wherever it leaves
 * them and whether or not its output is wanted, and so does the recomputation of a part of them. */
static void a_forward_run_again_leaves_the_same_bits(void **state) {
    (void)state;
    int32_t tokens[B * T], targets[B * T];
    fill_batch(tokens, targets, B * T, 53);
    struct harness_batch batch = {tokens, targets, NULL, B};
    for (int v = 0; v < VARIANTS; v++) {
        struct ls_config config = variant(v);
        struct harness *h = harness_create(&config, B, 2, LS_STREAMS_EAGER);
        harness_initialize(h, 3);
        harness_run(h, &batch, 0);
        const int64_t saved = ls_model_saved_bytes(h->model, 1, B);
        const int64_t recomputed = ls_model_recomputed_bytes(h->model, 1, B);
        const int64_t output = B * T * h->channels * (int64_t)sizeof(float);
        struct ls_block_pass pass = {.stream = h->stream,
                                     .sequences = B,
                                     .length = T,
                                     .tables = h->tables,
                                     .parameters = h->parameters[1],
                                     .input = h->outputs[0],
                                     .scratch = h->scratch};
        for (int wanted = 0; wanted < 2; wanted++) {
            pass.saved = harness_buffer(h, saved);
            pass.recomputed = harness_buffer(h, recomputed);
            pass.output = wanted ? harness_buffer(h, output) : NULL;
            ls_block_forward(h->model, 1, &pass);
            check_same_bytes(h, h->saved[1], pass.saved, saved);
            check_same_bytes(h, h->recomputed[1], pass.recomputed, recomputed);
            if (wanted) check_same_bytes(h, h->outputs[1], pass.output, output);
        }
        pass.saved = h->saved[1];
        pass.recomputed = harness_buffer(h, recomputed);
        pass.output = NULL;
        ls_block_recompute(h->model, 1, &pass);
        check_same_bytes(h, h->recomputed[1], pass.recomputed, recomputed);
        harness_destroy(h);
    }
}

/* One pass through the layers of one sequence with caches, ending in logits. */
static void infer(struct harness *h, float *const *caches, const int32_t *tokens, int64_t cached, int64_t length,
                  float *device_logits, float *logits, int64_t vocabulary) {
    harness_upload(h, h->tokens, tokens, length * (int64_t)sizeof *tokens);
    struct ls_block_pass pass = {.stream = h->stream,
                                 .sequences = 1,
                                 .length = length,
                                 .cached = cached,
                                 .tables = h->tables,
                                 .tokens = h->tokens,
                                 .scratch = h->scratch};
    for (int i = 0; i < h->blocks; i++) {
        pass.parameters = h->parameters[i];
        pass.input = i == 0 ? NULL : h->outputs[i - 1];
        pass.output = h->outputs[i];
        pass.saved = h->saved[i];
        pass.recomputed = h->recomputed[i];
        pass.cache = caches == NULL ? NULL : caches[i];
        if (i + 1 < h->blocks) ls_block_forward(h->model, i, &pass);
    }
    pass.tied_parameters = h->parameters[0];
    ls_head_logits(h->model, &pass, 1, device_logits);
    harness_download(h, logits, device_logits, vocabulary * (int64_t)sizeof *logits);
}

/* The same logits, but for rounding, whether a text is read at once, in pieces or without a cache. */
static void a_cache_stands_for_the_tokens_before(void **state) {
    (void)state;
    static const int64_t PIECES[][4] = {{T}, {7, 12}, {1, 10, 7, 1}, {5, 1, 1, 12}};
    int32_t tokens[T], targets[T];
    fill_batch(tokens, targets, T, 53);
    for (int v = 0; v < VARIANTS; v++) {
        struct ls_config config = variant(v);
        config.model.initializer_range = 0.2; /* so that attention matters */
        struct harness *h = harness_create(&config, 1, 2, LS_STREAMS_EAGER);
        harness_initialize(h, 3);
        float *caches[16] = {0}, *device_logits = harness_buffer(h, 53 * (int64_t)sizeof(float));
        for (int i = 1; i + 1 < h->blocks; i++) caches[i] = harness_buffer(h, ls_model_cache_bytes(h->model));
        float expected[53], logits[53], first[53], largest = 0;
        infer(h, NULL, tokens, 0, T, device_logits, expected, 53);
        for (int j = 0; j < 53; j++) largest = fmaxf(largest, fabsf(expected[j]));
        assert_true(largest > 0.1F);
        for (size_t p = 0; p < sizeof PIECES / sizeof *PIECES; p++) {
            int64_t at = 0;
            for (int i = 0; i < 4 && PIECES[p][i] > 0; at += PIECES[p][i++]) {
                infer(h, caches, tokens + at, at, PIECES[p][i], device_logits, logits, 53);
            }
            assert_int_equal(at, T);
            for (int j = 0; j < 53; j++) assert_float_equal(logits[j], expected[j], 1e-5F * largest);
        }
        infer(h, NULL, tokens + 1, 0, T - 1, device_logits, first, 53); /* the first token matters */
        float moved = 0;
        for (int j = 0; j < 53; j++) moved = fmaxf(moved, fabsf(first[j] - expected[j]));
        assert_true(moved > 1e-3F * largest);
        harness_destroy(h);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_models_have_their_published_parameter_counts),
        cmocka_unit_test(flops_are_six_n_and_six_lct),
        cmocka_unit_test(only_matrices_decay),
        cmocka_unit_test(tensors_tile_their_blocks_with_matrices_first),
        cmocka_unit_test(names_and_shapes_are_hugging_faces),
        cmocka_unit_test(sizes_that_do_not_fit_are_refused),
        cmocka_unit_test(initial_values_do_not_depend_on_how_blocks_are_cut),
        cmocka_unit_test(initial_values_are_those_of_the_papers),
        cmocka_unit_test(layers_start_from_different_values),
        cmocka_unit_test(passes_stay_within_the_sizes_they_ask_for),
        cmocka_unit_test(an_untrained_model_knows_nothing),
        cmocka_unit_test(micro_batches_accumulate),
        cmocka_unit_test(an_empty_micro_batch_changes_nothing),
        cmocka_unit_test(evaluation_gives_the_training_loss_and_no_gradients),
        cmocka_unit_test(eager_and_lazy_streams_give_the_same_bits),
        cmocka_unit_test(documents_do_not_see_each_other),
        cmocka_unit_test(losses_do_not_see_the_future),
        cmocka_unit_test(heads_take_rows_in_even_chunks),
        cmocka_unit_test(heads_take_more_rows_on_gpus),
        cmocka_unit_test(scratch_on_gpus_holds_a_chunk_and_the_slices_of_its_norm),
        cmocka_unit_test(a_head_in_chunks_gives_the_same_loss_and_gradients),
        cmocka_unit_test(a_forward_run_again_leaves_the_same_bits),
        cmocka_unit_test(a_cache_stands_for_the_tokens_before),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
