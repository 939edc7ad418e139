/* The head: final norm, projection to the vocabulary and cross-entropy, a chunk of rows at a time so that all logits
 * are never stored. */
#include "worker/model/family.h"

#include <assert.h>

/* How a kind of device takes the rows: a chunk's logits and activations together have at most `bytes`, unless that
 * would be fewer than `rows_min`, and chunks that are not the only one are multiples of `multiple` rows. It follows
 * from the kind alone: where chunks end shows in the last bits of gradients. */
struct chunk_rule {
    int64_t bytes, rows_min, multiple;
};

/* Every chunk reads and writes the whole weight gradient, 8 V C bytes for 2 n V C operations of n rows. CPUs: enough
 * rows to keep the products fast, few enough to stay near the last-level cache. GPUs: an H100 does 840 rows in the time
 * of those bytes (700 TFLOP/s, 3.35 TB/s), and the inputs' gradient [n, C] has to fill it, so some thousands; the
 * memory is there for attention too (ls_cuda_attention_piece()), and whole tiles of 128 rows waste none. */
static const struct chunk_rule cpu_rule = {32 << 20, 512, 1}, gpu_rule = {512 << 20, 1024, 128};
enum { STRIDE_MULTIPLE = 16 }; /* rows of logits start at 64 bytes */

struct head_scratch {
    void *logits;      /* [chunk, stride] */
    void *normalised;  /* [chunk, C], then its gradient */
    float *statistics; /* [2, chunk] */
    float *row_loss;   /* [chunk] */
    void *workspace;   /* of the norm's backward */
};

int64_t ls_model_logits_stride(const struct ls_model *model) {
    return (model->vocabulary + STRIDE_MULTIPLE - 1) / STRIDE_MULTIPLE * STRIDE_MULTIPLE;
}

int64_t ls_model_head_chunk(const struct ls_model *model, const struct ls_device *device, int64_t rows) {
    const struct chunk_rule *rule = ls_device_info(device)->kind == LS_DEVICE_KIND_CUDA ? &gpu_rule : &cpu_rule;
    int64_t row_bytes = (ls_model_logits_stride(model) + model->channels) * ls_dtype_bytes(model->dtype);
    int64_t most = rule->bytes / row_bytes / rule->multiple * rule->multiple;
    if (most < rule->rows_min) most = rule->rows_min;
    int64_t chunks = (rows + most - 1) / most;
    if (chunks <= 1) return rows;
    int64_t even = (rows + chunks - 1) / chunks;
    return (even + rule->multiple - 1) / rule->multiple * rule->multiple;
}

static int64_t larger(int64_t a, size_t b) {
    return a > (int64_t)b ? a : (int64_t)b;
}

static int64_t norm_workspace_bytes(const struct ls_model *model, const struct ls_device *device, int64_t rows) {
    const struct ls_op_layernorm_backward layer = {.rows = rows, .columns = model->channels, .dtype = model->dtype};
    const struct ls_op_rmsnorm_backward root = {.rows = rows, .columns = model->channels, .dtype = model->dtype};
    const size_t bytes = ls_op_workspace(device, LS_OP_layernorm_backward, &layer);
    return larger((int64_t)bytes, ls_op_workspace(device, LS_OP_rmsnorm_backward, &root));
}

static int64_t head_layout(const struct ls_model *model, const struct ls_device *device, int64_t rows, void *base,
                           struct head_scratch *scratch) {
    struct ls_layout layout = {.base = base};
    int64_t chunk = ls_model_head_chunk(model, device, rows);
    scratch->logits = ls_layout_elements(&layout, model, chunk * ls_model_logits_stride(model));
    scratch->normalised = ls_layout_elements(&layout, model, chunk * model->channels);
    scratch->statistics = ls_layout_floats(&layout, 2 * chunk);
    scratch->row_loss = ls_layout_floats(&layout, chunk);
    scratch->workspace = ls_layout_bytes(&layout, norm_workspace_bytes(model, device, chunk));
    return layout.bytes;
}

static int64_t layer_workspace_bytes(const struct ls_model *model, const struct ls_device *device, int64_t sequences) {
    const int64_t R = sequences * model->length, qkv = (model->heads + 2 * model->kv_heads) * model->head_size;
    const int64_t biases[] = {model->channels, model->hidden, qkv};
    const struct ls_op_head_norm_backward head_norm = {
        .rows = R, .heads = model->heads, .head_size = model->head_size, .dtype = model->dtype};
    int64_t most = ls_attention_workspace_bytes(model, device, sequences);
    most = larger(most, (size_t)norm_workspace_bytes(model, device, R));
    for (size_t i = 0; i < sizeof biases / sizeof *biases; i++) {
        const struct ls_op_gemm weight = {.n = biases[i], .dtype = model->dtype};
        const struct ls_op_bias_backward bias = {.rows = R, .columns = biases[i], .dtype = model->dtype};
        most = larger(most, ls_op_workspace(device, LS_OP_gemm, &weight));
        most = larger(most, ls_op_workspace(device, LS_OP_bias_backward, &bias));
    }
    return larger(most, ls_op_workspace(device, LS_OP_head_norm_backward, &head_norm));
}

int64_t ls_model_scratch_bytes(const struct ls_model *model, const struct ls_device *device, int64_t sequences) {
    if (sequences == 0) return 0;
    const struct ls_op_embedding_backward embedding = {
        .batch = sequences, .length = model->length, .channels = model->channels, .vocabulary = model->vocabulary};
    int64_t layer = layer_workspace_bytes(model, device, sequences);
    layer = larger(layer, ls_op_workspace(device, LS_OP_embedding_backward, &embedding));
    int64_t head = head_layout(model, device, sequences * model->length, NULL, &(struct head_scratch){0});
    return head > layer ? head : layer;
}

/* How many more rows than the vocabulary's, up to a multiple of 16 bytes in a row of logits, products with the
 * projection and its gradient may take: behind it in its block (for GPT-2's tied head, in the table of positions) are
 * as many rows of weights, and in rows of logits so many columns whose gradient is zero. */
static int64_t spare_rows(const struct ls_model *model) {
    const struct ls_block *block = ls_model_block(model, model->tied ? 0 : ls_model_block_count(model) - 1);
    const int64_t multiple = 16 / ls_dtype_bytes(model->dtype), V = model->vocabulary, C = model->channels;
    const int64_t spare = (V + multiple - 1) / multiple * multiple - V;
    return (V + spare) * C <= block->count ? spare : 0;
}

void ls_head_logits(const struct ls_model *model, const struct ls_block_pass *pass, int64_t rows, float *logits) {
    const int64_t R = pass->sequences * pass->length, C = model->channels, V = model->vocabulary;
    assert(rows >= 1 && rows <= R && model->dtype == LS_FP32);
    float *normalised = pass->scratch, *statistics = normalised + rows * C;
    model->family->final_norm_forward(model, pass, R - rows, rows, statistics, normalised);
    ls_linear_forward(model, pass->stream, logits, normalised, model->tied ? pass->tied_parameters : pass->parameters,
                      NULL, rows, C, V);
}

void ls_head_loss(const struct ls_model *model, const struct ls_block_pass *pass) {
    assert(pass->length <= model->length);
    if (pass->sequences == 0) return;
    const int64_t R = pass->sequences * pass->length, C = model->channels, V = model->vocabulary;
    const struct ls_device *device = ls_stream_device(pass->stream);
    const int64_t chunk = ls_model_head_chunk(model, device, R), stride = ls_model_logits_stride(model);
    const int64_t spare = spare_rows(model);
    /* The token table is the embedding's first tensor, an untied projection the head's first: both [V, C] at offset 0.
     */
    const void *projection = model->tied ? pass->tied_parameters : pass->parameters;
    float *projection_gradient = model->tied ? pass->tied_gradients : pass->gradients;
    struct head_scratch s;
    head_layout(model, device, R, pass->scratch, &s);

    for (int64_t first = 0; first < R; first += chunk) {
        int64_t rows = R - first < chunk ? R - first : chunk;
        model->family->final_norm_forward(model, pass, first, rows, s.statistics, s.normalised);
        ls_op(pass->stream, gemm, .c = s.logits, .a = s.normalised, .b = projection, .m = rows, .n = V, .k = C,
              .lda = C, .ldb = C, .ldc = stride, .spare.n = spare, .transpose_b = true, .dtype = model->dtype);
        ls_op(pass->stream, cross_entropy, .logits = s.logits, .loss = pass->loss, .targets = pass->targets + first,
              .gradient_scale = pass->gradient_scale, .row_loss = s.row_loss, .rows = rows, .vocabulary = V,
              .stride = stride, .gradient = pass->gradients != NULL, .dtype = model->dtype);
        if (pass->gradients == NULL) continue;
        ls_op(pass->stream, gemm, .c = projection_gradient, .a = s.logits, .b = s.normalised, .m = V, .n = C, .k = rows,
              .lda = stride, .ldb = C, .ldc = C, .spare.m = spare, .transpose_a = true, .accumulate = true,
              .c_fp32 = true, .dtype = model->dtype);
        ls_op(pass->stream, gemm, .c = s.normalised, .a = s.logits, .b = projection, .m = rows, .n = C, .k = V,
              .lda = stride, .ldb = C, .ldc = C, .spare.k = spare, .dtype = model->dtype);
        model->family->final_norm_backward(model, pass, first, rows, s.statistics, s.normalised, s.workspace);
    }
}
