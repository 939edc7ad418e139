/* Inference: memory for one sequence's passes through the blocks, and the passes. */
#include "worker/model/inference.h"

#include "worker/model/family.h"

#include <assert.h>
#include <stdlib.h>

struct ls_inference {
    const struct ls_model *model;
    struct ls_device *device;
    struct ls_stream *stream;
    int64_t rows, position;
    void *memory;       /* all of what follows */
    float **parameters; /* [blocks], host array of device pointers */
    float **cache;      /* [blocks], the layers' keys and values; NULL for the embedding and the head */
    void *tables;       /* rotary angles */
    void *tokens;       /* [rows] */
    int32_t *start;     /* [rows], the first position that each sees; NULL without a window */
    int32_t *starts;    /* the same on the host */
    float *streams[2];  /* [rows, C] */
    void *saved;        /* of one layer, also what its backward could make again */
    void *recomputed;
    void *scratch; /* of the head */
    float *logits; /* [rows, V] */
};

/* Sizes with base NULL, pointers with the memory. */
static int64_t lay_out(struct ls_inference *inference, void *base) {
    const struct ls_model *model = inference->model;
    const int64_t R = inference->rows, C = model->channels, FLOAT = sizeof(float);
    struct ls_layout layout = {.base = base};
    for (int b = 0; b < model->block_count; b++)
        inference->parameters[b] = ls_layout_floats(&layout, model->blocks[b].count);
    for (int l = 1; l <= model->layers; l++)
        inference->cache[l] = ls_layout_floats(&layout, ls_model_cache_bytes(model) / FLOAT);
    inference->tables = ls_layout_floats(&layout, ls_model_table_bytes(model) / FLOAT);
    inference->tokens = ls_layout_floats(&layout, R);
    if (model->window) inference->start = (void *)ls_layout_floats(&layout, R);
    inference->streams[0] = ls_layout_floats(&layout, R * C);
    inference->streams[1] = ls_layout_floats(&layout, R * C);
    int64_t saved, recomputed;
    model->family->saved_bytes(model, R, &saved, &recomputed);
    inference->saved = ls_layout_floats(&layout, saved / FLOAT);
    inference->recomputed = ls_layout_floats(&layout, recomputed / FLOAT);
    inference->scratch = ls_layout_floats(&layout, R * (C + 2));
    inference->logits = ls_layout_floats(&layout, R * model->vocabulary);
    return layout.bytes;
}

enum ls_code ls_inference_create(const struct ls_model *model, struct ls_device *device, int64_t rows,
                                 struct ls_inference **result, struct ls_error *error) {
    assert(rows >= 1 && rows <= model->length && model->dtype == LS_FP32);
    struct ls_inference *inference = calloc(1, sizeof *inference);
    int64_t bytes = 0;
    if (inference) {
        inference->model = model;
        inference->device = device;
        inference->rows = rows;
        inference->parameters = calloc((size_t)model->block_count, sizeof *inference->parameters);
        inference->cache = calloc((size_t)model->block_count, sizeof *inference->cache);
        inference->starts = calloc((size_t)rows, sizeof *inference->starts);
        inference->stream = ls_stream_create(device, false);
    }
    if (inference && inference->parameters && inference->cache && inference->starts && inference->stream) {
        bytes = lay_out(inference, NULL);
        inference->memory = ls_device_allocate(device, (size_t)bytes);
    }
    if (!inference || !inference->memory) {
        ls_inference_destroy(inference);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK,
                       "inference: no memory for %lld bytes (weights, cache of %lld positions). Ask for fewer tokens.",
                       (long long)bytes, (long long)model->length);
    }
    lay_out(inference, inference->memory);
    enum ls_code code = ls_model_fill_tables(model, inference->stream, inference->tables, error);
    if (code) {
        ls_inference_destroy(inference);
        return code;
    }
    *result = inference;
    return LS_OK;
}

void ls_inference_destroy(struct ls_inference *inference) {
    if (!inference) return;
    if (inference->stream) ls_stream_destroy(inference->stream);
    if (inference->memory) ls_device_free(inference->device, inference->memory);
    free(inference->parameters);
    free(inference->cache);
    free(inference->starts);
    free(inference);
}

enum ls_code ls_inference_put_block(struct ls_inference *inference, int block, const float *parameters,
                                    struct ls_error *error) {
    size_t bytes = (size_t)inference->model->blocks[block].count * sizeof *parameters;
    ls_copy_to_device(inference->stream, inference->parameters[block], parameters, bytes);
    return ls_stream_synchronize(inference->stream, error);
}

int64_t ls_inference_position(const struct ls_inference *inference) {
    return inference->position;
}

int64_t ls_inference_capacity(const struct ls_inference *inference) {
    return inference->model->length;
}

void ls_inference_reset(struct ls_inference *inference) {
    inference->position = 0;
}

/* One pass over R <= rows tokens; the residual stream goes from buffer to buffer. */
static enum ls_code pass_forward(struct ls_inference *inference, const int32_t *tokens, int64_t R, int64_t wanted,
                                 float *logits, struct ls_error *error) {
    const struct ls_model *model = inference->model;
    struct ls_block_pass pass = {
        .stream = inference->stream,
        .sequences = 1,
        .length = R,
        .cached = inference->position,
        .tables = inference->tables,
        .tied_parameters = inference->parameters[0],
        .tokens = inference->tokens,
        .saved = inference->saved,
        .recomputed = inference->recomputed,
        .scratch = inference->scratch,
    };
    const int head = model->block_count - 1;
    ls_copy_to_device(inference->stream, inference->tokens, tokens, (size_t)R * sizeof *tokens);
    if (model->window) {
        for (int64_t i = 0; i < R; i++) {
            const int64_t first = inference->position + i - model->window + 1;
            inference->starts[i] = first > 0 ? (int32_t)first : 0;
        }
        ls_copy_to_device(inference->stream, inference->start, inference->starts,
                          (size_t)R * sizeof *inference->starts);
        pass.document_start = inference->start;
    }
    for (int block = 0; block <= head; block++) {
        pass.parameters = inference->parameters[block];
        pass.input = inference->streams[(block + 1) % 2];
        pass.output = inference->streams[block % 2];
        pass.cache = inference->cache[block];
        if (block < head) ls_block_forward(model, block, &pass);
    }
    if (wanted) {
        ls_head_logits(model, &pass, wanted, inference->logits);
        ls_copy_to_host(inference->stream, logits, inference->logits,
                        (size_t)(wanted * model->vocabulary) * sizeof *logits);
    }
    enum ls_code code = ls_stream_synchronize(inference->stream, error);
    if (!code) inference->position += R;
    return code;
}

enum ls_code ls_inference_append(struct ls_inference *inference, const int32_t *tokens, int64_t count, bool all,
                                 float *logits, struct ls_error *error) {
    assert(count >= 1 && count <= inference->model->length - inference->position);
    for (int64_t done = 0; done < count;) {
        int64_t R = count - done < inference->rows ? count - done : inference->rows;
        int64_t wanted = all ? R : done + R == count;
        enum ls_code code = pass_forward(inference, tokens + done, R, wanted,
                                         all ? logits + done * inference->model->vocabulary : logits, error);
        if (code) return code;
        done += R;
    }
    return LS_OK;
}
