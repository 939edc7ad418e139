/* A model with all its buffers on a device, driven block by block: for tests of models. The device is a CPU one, or
 * with LS_TEST_DEVICE=cuda the first GPU. Every buffer has exactly the size the model asks for and a canary behind it.
 * Failures are cmocka's. */
#ifndef LS_TESTS_UNIT_MODEL_HARNESS_H
#define LS_TESTS_UNIT_MODEL_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker/model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CANARY_BYTES = 64, CANARY = 0xA5, BUFFERS_MAX = 64 };

struct harness {
    struct ls_model *model;
    struct ls_device *device;
    struct ls_stream *stream;
    int64_t sequences, length, channels; /* the most sequences of a pass */
    int blocks;
    float *parameters[16], *gradients[16], *outputs[16];
    void *saved[16], *recomputed[16], *scratch, *tables;
    float *stream_gradient, *gradient_scale;
    double *loss;
    int32_t *tokens, *targets, *document_start;
    struct {
        char *memory;
        int64_t bytes;
    } buffers[BUFFERS_MAX];
    int buffer_count;
};

/* One step's input on the host; `document_start` may be NULL. */
struct harness_batch {
    const int32_t *tokens, *targets, *document_start;
    int64_t sequences;
};

static inline void harness_synchronize(struct harness *h) {
    struct ls_error error;
    if (ls_stream_synchronize(h->stream, &error) != LS_OK) fail_msg("%s", error.text);
}

static inline void *harness_buffer(struct harness *h, int64_t bytes) {
    static const unsigned char CANARIES[CANARY_BYTES] = {[0 ... CANARY_BYTES - 1] = CANARY};
    char *memory = ls_device_allocate(h->device, (size_t)bytes + CANARY_BYTES);
    assert_non_null(memory);
    assert_true(h->buffer_count < BUFFERS_MAX);
    ls_copy_to_device(h->stream, memory + bytes, CANARIES, CANARY_BYTES);
    harness_synchronize(h);
    h->buffers[h->buffer_count].memory = memory;
    h->buffers[h->buffer_count++].bytes = bytes;
    return memory;
}

static inline void harness_upload(struct harness *h, void *to, const void *from, int64_t bytes) {
    ls_copy_to_device(h->stream, to, from, (size_t)bytes);
    harness_synchronize(h);
}

static inline void harness_download(struct harness *h, void *to, const void *from, int64_t bytes) {
    ls_copy_to_host(h->stream, to, from, (size_t)bytes);
    harness_synchronize(h);
}

static inline enum ls_code harness_device(int threads, enum ls_stream_order order, struct ls_device **device,
                                          struct ls_error *error) {
    const char *wanted = getenv("LS_TEST_DEVICE");
    if (wanted && strcmp(wanted, "cuda") == 0) return ls_device_create_cuda(0, false, device, error);
    return ls_device_create_cpu(threads, order, device, error);
}

static inline struct harness *harness_create(const struct ls_config *config, int64_t sequences, int threads,
                                             enum ls_stream_order order) {
    struct harness *h = calloc(1, sizeof *h);
    assert_non_null(h);
    struct ls_error error;
    if (ls_model_create(config, &h->model, &error) != LS_OK) fail_msg("%s", error.text);
    if (harness_device(threads, order, &h->device, &error) != LS_OK) fail_msg("%s", error.text);
    h->stream = ls_stream_create(h->device, false);
    h->sequences = sequences;
    h->length = config->data.sequence_length;
    h->channels = config->model.hidden_size;
    h->blocks = ls_model_block_count(h->model);
    assert_true(h->blocks <= 16);
    int64_t rows = sequences * h->length;
    for (int i = 0; i < h->blocks; i++) {
        int64_t bytes = ls_model_block(h->model, i)->count * (int64_t)sizeof(float);
        h->parameters[i] = harness_buffer(h, bytes);
        h->gradients[i] = harness_buffer(h, bytes);
        h->saved[i] = harness_buffer(h, ls_model_saved_bytes(h->model, i, sequences));
        h->recomputed[i] = harness_buffer(h, ls_model_recomputed_bytes(h->model, i, sequences));
        if (i + 1 < h->blocks) h->outputs[i] = harness_buffer(h, rows * h->channels * (int64_t)sizeof(float));
    }
    h->stream_gradient = harness_buffer(h, rows * h->channels * (int64_t)sizeof(float));
    h->scratch = harness_buffer(h, ls_model_scratch_bytes(h->model, h->device, sequences));
    h->tables = harness_buffer(h, ls_model_table_bytes(h->model));
    h->loss = harness_buffer(h, sizeof *h->loss);
    h->gradient_scale = harness_buffer(h, sizeof *h->gradient_scale);
    h->tokens = harness_buffer(h, rows * (int64_t)sizeof(int32_t));
    h->targets = harness_buffer(h, rows * (int64_t)sizeof(int32_t));
    h->document_start = harness_buffer(h, rows * (int64_t)sizeof(int32_t));
    if (ls_model_fill_tables(h->model, h->stream, h->tables, &error) != LS_OK) fail_msg("%s", error.text);
    return h;
}

static inline void harness_check_canaries(struct harness *h) {
    for (int i = 0; i < h->buffer_count; i++) {
        unsigned char canaries[CANARY_BYTES];
        harness_download(h, canaries, h->buffers[i].memory + h->buffers[i].bytes, CANARY_BYTES);
        for (int j = 0; j < CANARY_BYTES; j++) {
            if (canaries[j] != CANARY)
                fail_msg("buffer %d of %lld bytes was overrun", i, (long long)h->buffers[i].bytes);
        }
    }
}

static inline void harness_destroy(struct harness *h) {
    harness_check_canaries(h);
    for (int i = 0; i < h->buffer_count; i++) ls_device_free(h->device, h->buffers[i].memory);
    ls_stream_destroy(h->stream);
    ls_device_destroy(h->device);
    ls_model_destroy(h->model);
    free(h);
}

static inline void harness_initialize(struct harness *h, uint64_t seed) {
    for (int i = 0; i < h->blocks; i++) {
        ls_model_initialize(h->model, i, 0, ls_model_block(h->model, i)->count, seed, h->stream, h->parameters[i]);
    }
    harness_synchronize(h);
}

static inline void harness_zero_gradients(struct harness *h) {
    for (int i = 0; i < h->blocks; i++) {
        ls_fill_zero(h->stream, h->gradients[i], (size_t)ls_model_block(h->model, i)->count * sizeof(float));
    }
}

/* Forward and, unless `scale` is 0, backward; gradients are added. Returns the sum of the token losses. */
static inline double harness_run(struct harness *h, const struct harness_batch *batch, float scale) {
    int64_t bytes = batch->sequences * h->length * (int64_t)sizeof(int32_t);
    assert_true(batch->sequences <= h->sequences);
    harness_upload(h, h->tokens, batch->tokens, bytes);
    harness_upload(h, h->targets, batch->targets, bytes);
    if (batch->document_start != NULL) harness_upload(h, h->document_start, batch->document_start, bytes);
    harness_upload(h, h->gradient_scale, &scale, sizeof scale);
    ls_fill_zero(h->stream, h->loss, sizeof *h->loss);

    struct ls_block_pass pass = {
        .stream = h->stream,
        .sequences = batch->sequences,
        .length = h->length,
        .tables = h->tables,
        .tokens = h->tokens,
        .targets = h->targets,
        .document_start = batch->document_start != NULL ? h->document_start : NULL,
        .stream_gradient = h->stream_gradient,
        .scratch = h->scratch,
        .loss = h->loss,
        .gradient_scale = h->gradient_scale,
    };
    int head = h->blocks - 1;
    bool tied = ls_model_head_is_tied(h->model);
    for (int i = 0; i <= head; i++) {
        pass.parameters = h->parameters[i];
        pass.input = i == 0 ? NULL : h->outputs[i - 1];
        pass.output = h->outputs[i];
        pass.saved = h->saved[i];
        pass.recomputed = h->recomputed[i];
        if (i < head) ls_block_forward(h->model, i, &pass);
    }
    pass.gradients = scale != 0 ? h->gradients[head] : NULL;
    pass.tied_parameters = tied ? h->parameters[0] : NULL;
    pass.tied_gradients = tied && scale != 0 ? h->gradients[0] : NULL;
    ls_head_loss(h->model, &pass);
    for (int i = head - 1; i >= 0 && scale != 0; i--) {
        pass.parameters = h->parameters[i];
        pass.gradients = h->gradients[i];
        pass.input = i == 0 ? NULL : h->outputs[i - 1];
        pass.output = h->outputs[i];
        pass.saved = h->saved[i];
        pass.recomputed = h->recomputed[i];
        ls_block_backward(h->model, i, &pass);
    }
    double loss;
    harness_download(h, &loss, h->loss, sizeof loss);
    return loss;
}

/* A host copy of a tensor out of per-block buffers (h->parameters or h->gradients); the caller frees it. */
static inline float *harness_tensor(struct harness *h, float *const *buffers, int tensor) {
    const struct ls_tensor *t = ls_model_tensor(h->model, tensor);
    float *values = malloc((size_t)t->count * sizeof(float));
    assert_non_null(values);
    harness_download(h, values, buffers[t->block] + t->offset, t->count * (int64_t)sizeof(float));
    return values;
}

static inline struct ls_config gpt2_config(int64_t vocabulary, int64_t channels, int64_t layers, int64_t heads,
                                           int64_t length) {
    struct ls_config config = {0};
    config.model.model_type = LS_GPT2;
    config.model.vocab_size = vocabulary;
    config.model.hidden_size = channels;
    config.model.num_hidden_layers = layers;
    config.model.num_attention_heads = heads;
    config.model.max_position_embeddings = length;
    config.model.tie_word_embeddings = true;
    config.model.layer_norm_epsilon = 1e-5;
    config.model.initializer_range = 0.02;
    config.data.sequence_length = length;
    return config;
}

static inline struct ls_config llama_config(int64_t vocabulary, int64_t channels, int64_t layers, int64_t heads,
                                            int64_t kv_heads, int64_t hidden, int64_t length) {
    struct ls_config config = gpt2_config(vocabulary, channels, layers, heads, length);
    config.model.model_type = LS_LLAMA;
    config.model.num_key_value_heads = kv_heads;
    config.model.intermediate_size = hidden;
    config.model.tie_word_embeddings = false;
    config.model.rms_norm_eps = 1e-5;
    config.model.rope_theta = 10000;
    return config;
}

/* Small models of odd sizes; the Llama's heads are wider than its channels and its hidden layer, so that a row of q, k
 * and v outgrows everything that its gradient could be put over. */
static inline struct ls_config small_gpt2(void) {
    struct ls_config config = gpt2_config(53, 30, 2, 5, 19);
    config.model.max_position_embeddings = 21;
    return config;
}

static inline struct ls_config narrow_gpt2(void) {
    struct ls_config config = small_gpt2(); /* a hidden layer smaller than a row of q, k and v; a head of its own */
    config.model.intermediate_size = 41;
    config.model.tie_word_embeddings = false;
    return config;
}

static inline struct ls_config small_llama(void) {
    struct ls_config config = llama_config(53, 22, 2, 6, 3, 9, 19);
    config.model.head_dim = 10;
    return config;
}

static inline struct ls_config tied_llama(void) {
    struct ls_config config = llama_config(53, 24, 1, 4, 1, 40, 19);
    config.model.tie_word_embeddings = true;
    return config;
}

enum { VARIANTS = 4 };

static inline struct ls_config variant(int i) {
    return i == 0 ? small_gpt2() : i == 1 ? narrow_gpt2() : i == 2 ? small_llama() : tied_llama();
}

enum { B = 3, T = 19 };

/* Tokens and targets below `vocabulary` in an order without a period, a target in seven ignored. */
static inline void fill_batch(int32_t *tokens, int32_t *targets, int64_t count, int32_t vocabulary) {
    uint32_t state = 12345;
    for (int64_t i = 0; i < count; i++) {
        state = state * 1664525U + 1013904223U;
        tokens[i] = (int32_t)(state >> 8) % vocabulary;
        state = state * 1664525U + 1013904223U;
        targets[i] = i % 7 == 3 ? -1 : (int32_t)(state >> 8) % vocabulary;
    }
}

#endif
