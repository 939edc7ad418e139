/* Forward with a key-value cache. C channels, I hidden, V vocabulary, NH heads and NKV key-value heads of HD channels,
 * Q = NH HD, W = (NH + 2 NKV) HD; R tokens are appended at position P. */
#include "worker/model/inference.h"

#include "worker/model/family.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct ls_inference {
    const struct ls_model *model;
    struct ls_device *device;
    struct ls_stream *stream;
    int64_t rows, position;
    void *memory;                         /* all of what follows */
    float **parameters;                   /* [blocks], host array of device pointers */
    float **cache;                        /* [layers], each [T, W] */
    float *tables;                        /* rotary angles */
    int32_t *tokens;                      /* [rows] */
    float *stream_in, *stream_out, *norm; /* [rows, C] */
    float *attention;                     /* [rows, Q] */
    float *wide, *hidden;                 /* [rows, 2 I], [rows, I] */
    float *statistics;                    /* [2, rows] */
    float *logits;                        /* [rows, V] */
};

static int64_t row_width(const struct ls_model *model) {
    return (model->heads + 2 * model->kv_heads) * model->head_size;
}

/* Sizes with base NULL, pointers with the memory. */
static int64_t lay_out(struct ls_inference *inference, void *base) {
    const struct ls_model *model = inference->model;
    const int64_t R = inference->rows, C = model->channels, I = model->hidden;
    struct ls_layout layout = {.base = base};
    for (int b = 0; b < model->block_count; b++)
        inference->parameters[b] = ls_layout_floats(&layout, model->blocks[b].count);
    for (int64_t l = 0; l < model->layers; l++)
        inference->cache[l] = ls_layout_floats(&layout, model->length * row_width(model));
    inference->tables = ls_layout_floats(&layout, ls_model_table_bytes(model) / (int64_t)sizeof(float) + 1);
    inference->tokens = (int32_t *)ls_layout_floats(&layout, R);
    inference->stream_in = ls_layout_floats(&layout, R * C);
    inference->stream_out = ls_layout_floats(&layout, R * C);
    inference->norm = ls_layout_floats(&layout, R * C);
    inference->attention = ls_layout_floats(&layout, R * model->heads * model->head_size);
    inference->wide = ls_layout_floats(&layout, R * 2 * I);
    inference->hidden = ls_layout_floats(&layout, R * I);
    inference->statistics = ls_layout_floats(&layout, 2 * R);
    inference->logits = ls_layout_floats(&layout, R * model->vocabulary);
    return layout.bytes;
}

enum ls_code ls_inference_create(const struct ls_model *model, struct ls_device *device, int64_t rows,
                                 struct ls_inference **result, struct ls_error *error) {
    assert(rows >= 1 && rows <= model->length);
    struct ls_inference *inference = calloc(1, sizeof *inference);
    int64_t bytes = 0;
    if (inference) {
        inference->model = model;
        inference->device = device;
        inference->rows = rows;
        inference->parameters = calloc((size_t)model->block_count, sizeof *inference->parameters);
        inference->cache = calloc((size_t)model->layers, sizeof *inference->cache);
        inference->stream = ls_stream_create(device, false);
    }
    if (inference && inference->parameters && inference->cache && inference->stream) {
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

/* The parameters of the block's tensor whose name is the block's prefix and `name`. */
static const float *weight(const struct ls_inference *inference, int block, const char *name) {
    const struct ls_block *description = &inference->model->blocks[block];
    const struct ls_tensor *tensor = ls_model_tensors(inference->model, block),
                           *end = tensor + description->tensor_count;
    size_t length = strlen(name);
    for (; tensor < end; tensor++) {
        size_t whole = strlen(tensor->name);
        bool whole_component = whole == length || (whole > length && tensor->name[whole - length - 1] == '.');
        if (whole_component && strcmp(tensor->name + whole - length, name) == 0)
            return inference->parameters[block] + tensor->offset;
    }
    assert(!"the family has the tensor");
    return NULL;
}

/* Attention of the R newest rows of the cache over all P + R. */
static void attend(const struct ls_inference *inference, int64_t layer, int64_t R) {
    const struct ls_model *model = inference->model;
    const int64_t HD = model->head_size, NH = model->heads, NKV = model->kv_heads, W = row_width(model);
    const int64_t P = inference->position;
    const float *cache = inference->cache[layer];
    ls_op(inference->stream, attention_forward, .output = inference->attention, .q = cache + P * W,
          .k = cache + NH * HD, .v = cache + (NH + NKV) * HD, .batch = 1, .query_length = R, .key_length = P + R,
          .heads = NH, .kv_heads = NKV, .head_size = HD, .q_stride = W, .kv_stride = W, .output_stride = NH * HD,
          .q_batch_stride = R * W, .kv_batch_stride = (P + R) * W, .output_batch_stride = R * NH * HD,
          .scale = 1 / sqrtf((float)HD));
}

/* y[R, OUT] = x[R, IN] w[IN, OUT] + bias, GPT-2's Conv1D. */
static void conv1d(const struct ls_inference *inference, float *y, const float *x, int block, const char *name,
                   const char *bias, int64_t R, int64_t IN, int64_t OUT, float *before_gelu) {
    ls_op(inference->stream, gemm, .c = y, .a = x, .b = weight(inference, block, name), .m = R, .n = OUT, .k = IN,
          .lda = IN, .ldb = OUT, .ldc = OUT, .epilogue = before_gelu ? LS_EPILOGUE_BIAS_GELU : LS_EPILOGUE_BIAS,
          .bias = weight(inference, block, bias), .aux = before_gelu);
}

static void layer_norm(const struct ls_inference *inference, int block, const char *name, const char *bias,
                       float *input, const float *residual, int64_t R) {
    ls_op(inference->stream, layernorm_forward, .output = inference->norm, .sum = residual ? input : NULL,
          .mean = inference->statistics, .rstd = inference->statistics + inference->rows, .input = input,
          .residual = residual, .weight = weight(inference, block, name), .bias = weight(inference, block, bias),
          .rows = R, .columns = inference->model->channels, .epsilon = inference->model->epsilon);
}

/* stream_in becomes the sum behind the attention, then the sum behind the MLP. */
static void gpt2_layer(const struct ls_inference *inference, int block, int64_t R) {
    const struct ls_model *model = inference->model;
    const int64_t C = model->channels, I = model->hidden, W = row_width(model);
    float *x = inference->stream_in, *added = inference->stream_out;
    layer_norm(inference, block, "ln_1.weight", "ln_1.bias", x, NULL, R);
    conv1d(inference, inference->cache[block - 1] + inference->position * W, inference->norm, block,
           "attn.c_attn.weight", "attn.c_attn.bias", R, C, W, NULL);
    attend(inference, block - 1, R);
    conv1d(inference, added, inference->attention, block, "attn.c_proj.weight", "attn.c_proj.bias", R, C, C, NULL);
    layer_norm(inference, block, "ln_2.weight", "ln_2.bias", x, added, R);
    conv1d(inference, inference->hidden, inference->norm, block, "mlp.c_fc.weight", "mlp.c_fc.bias", R, C, I,
           inference->wide);
    conv1d(inference, added, inference->hidden, block, "mlp.c_proj.weight", "mlp.c_proj.bias", R, I, C, NULL);
    ls_op(inference->stream, add, .sum = x, .a = added, .b = x, .count = R * C);
}

static void rms_norm(const struct ls_inference *inference, int block, const char *name, float *input,
                     const float *residual, int64_t R) {
    ls_op(inference->stream, rmsnorm_forward, .output = inference->norm, .sum = residual ? input : NULL,
          .rstd = inference->statistics, .input = input, .residual = residual, .weight = weight(inference, block, name),
          .rows = R, .columns = inference->model->channels, .epsilon = inference->model->epsilon);
}

/* The projections of q, k and v lie one after another in the block, as do gate and up. */
static void llama_layer(const struct ls_inference *inference, int block, int64_t R) {
    const struct ls_model *model = inference->model;
    const int64_t C = model->channels, I = model->hidden, HD = model->head_size, W = row_width(model);
    struct ls_stream *stream = inference->stream;
    float *x = inference->stream_in, *added = inference->stream_out;
    float *newest = inference->cache[block - 1] + inference->position * W;
    rms_norm(inference, block, "input_layernorm.weight", x, NULL, R);
    ls_linear_forward(stream, newest, W, inference->norm, weight(inference, block, "self_attn.q_proj.weight"), R, C, W);
    ls_op(stream, rope, .x = newest, .table = inference->tables, .rows = R, .length = R,
          .heads = model->heads + model->kv_heads, .head_size = HD, .stride = W, .first_position = inference->position);
    attend(inference, block - 1, R);
    ls_linear_forward(stream, added, C, inference->attention, weight(inference, block, "self_attn.o_proj.weight"), R,
                      model->heads * HD, C);
    rms_norm(inference, block, "post_attention_layernorm.weight", x, added, R);
    ls_linear_forward(stream, inference->wide, 2 * I, inference->norm, weight(inference, block, "mlp.gate_proj.weight"),
                      R, C, 2 * I);
    ls_op(stream, swiglu_forward, .output = inference->hidden, .gate_up = inference->wide, .rows = R, .columns = I);
    ls_linear_forward(stream, added, C, inference->hidden, weight(inference, block, "mlp.down_proj.weight"), R, I, C);
    ls_op(stream, add, .sum = x, .a = added, .b = x, .count = R * C);
}

static void embed(const struct ls_inference *inference, int64_t R) {
    const struct ls_model *model = inference->model;
    bool gpt2 = model->family == &ls_model_gpt2;
    ls_op(inference->stream, embedding_forward, .output = inference->stream_in, .tokens = inference->tokens,
          .token_table = weight(inference, 0, gpt2 ? "wte.weight" : "model.embed_tokens.weight"),
          .position_table = gpt2 ? weight(inference, 0, "wpe.weight") : NULL, .batch = 1, .length = R,
          .channels = model->channels, .first_position = inference->position);
}

/* Logits of the last `wanted` of R rows. */
static void project(const struct ls_inference *inference, int64_t R, int64_t wanted) {
    const struct ls_model *model = inference->model;
    const int64_t C = model->channels;
    const int head = model->block_count - 1;
    float *x = inference->stream_in + (R - wanted) * C;
    bool gpt2 = model->family == &ls_model_gpt2;
    if (gpt2)
        layer_norm(inference, head, "ln_f.weight", "ln_f.bias", x, NULL, wanted);
    else
        rms_norm(inference, head, "model.norm.weight", x, NULL, wanted);
    const char *table = gpt2 ? "wte.weight" : "model.embed_tokens.weight";
    const float *w = model->tied ? weight(inference, 0, table) : weight(inference, head, "lm_head.weight");
    ls_linear_forward(inference->stream, inference->logits, model->vocabulary, inference->norm, w, wanted, C,
                      model->vocabulary);
}

/* One pass over R <= rows tokens. */
static enum ls_code pass_forward(struct ls_inference *inference, const int32_t *tokens, int64_t R, int64_t wanted,
                                 float *logits, struct ls_error *error) {
    const struct ls_model *model = inference->model;
    ls_copy_to_device(inference->stream, inference->tokens, tokens, (size_t)R * sizeof *tokens);
    embed(inference, R);
    for (int block = 1; block < model->block_count - 1; block++)
        model->family == &ls_model_gpt2 ? gpt2_layer(inference, block, R) : llama_layer(inference, block, R);
    if (wanted) {
        project(inference, R, wanted);
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
