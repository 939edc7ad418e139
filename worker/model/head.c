/* The head: final norm, projection to the vocabulary and cross-entropy, a chunk of rows at a time so that all logits
 * are never stored. */
#include "worker/model/family.h"

#include <assert.h>

/* A chunk's logits and activations together: enough rows to keep the products fast, few enough to stay near the
 * last-level cache. */
enum { CHUNK_BYTES = 32 << 20 };
/* Every chunk adds to the whole weight gradient [V, C]: with fewer rows that traffic outweighs the product itself. */
enum { CHUNK_ROWS_MIN = 512 };
enum { STRIDE_MULTIPLE = 16 }; /* rows of logits start at 64 bytes */

struct head_scratch {
    void *logits;      /* [chunk, stride] */
    void *normalised;  /* [chunk, C], then its gradient */
    float *statistics; /* [2, chunk] */
    float *row_loss;   /* [chunk] */
};

static int64_t logits_stride(const struct ls_model *model) {
    return (model->vocabulary + STRIDE_MULTIPLE - 1) / STRIDE_MULTIPLE * STRIDE_MULTIPLE;
}

int64_t ls_model_head_chunk(const struct ls_model *model, int64_t rows) {
    int64_t row_bytes = (logits_stride(model) + model->channels) * ls_dtype_bytes(model->dtype);
    int64_t most = CHUNK_BYTES / row_bytes > CHUNK_ROWS_MIN ? CHUNK_BYTES / row_bytes : CHUNK_ROWS_MIN;
    int64_t chunks = (rows + most - 1) / most;
    return chunks <= 1 ? rows : (rows + chunks - 1) / chunks;
}

static int64_t head_layout(const struct ls_model *model, int64_t rows, void *base, struct head_scratch *scratch) {
    struct ls_layout layout = {.base = base};
    int64_t chunk = ls_model_head_chunk(model, rows);
    scratch->logits = ls_layout_elements(&layout, model, chunk * logits_stride(model));
    scratch->normalised = ls_layout_elements(&layout, model, chunk * model->channels);
    scratch->statistics = ls_layout_floats(&layout, 2 * chunk);
    scratch->row_loss = ls_layout_floats(&layout, chunk);
    return layout.bytes;
}

int64_t ls_model_scratch_bytes(const struct ls_model *model, const struct ls_device *device, int64_t sequences) {
    if (sequences == 0) return 0;
    int64_t layer = ls_attention_workspace_bytes(model, device, sequences);
    int64_t head = head_layout(model, sequences * model->length, NULL, &(struct head_scratch){0});
    return head > layer ? head : layer;
}

void ls_head_logits(const struct ls_model *model, const struct ls_block_pass *pass, int64_t rows, float *logits) {
    const int64_t R = pass->sequences * pass->length, C = model->channels, V = model->vocabulary;
    assert(rows >= 1 && rows <= R && model->dtype == LS_FP32);
    float *normalised = pass->scratch, *statistics = normalised + rows * C;
    model->family->final_norm_forward(model, pass, R - rows, rows, statistics, normalised);
    ls_linear_forward(model, pass->stream, logits, V, normalised,
                      model->tied ? pass->tied_parameters : pass->parameters, rows, C, V);
}

void ls_head_loss(const struct ls_model *model, const struct ls_block_pass *pass) {
    assert(pass->length <= model->length);
    if (pass->sequences == 0) return;
    const int64_t R = pass->sequences * pass->length, C = model->channels, V = model->vocabulary;
    const int64_t chunk = ls_model_head_chunk(model, R), stride = logits_stride(model);
    /* The token table is the embedding's first tensor, an untied projection the head's first: both [V, C] at offset 0.
     */
    const void *projection = model->tied ? pass->tied_parameters : pass->parameters;
    float *projection_gradient = model->tied ? pass->tied_gradients : pass->gradients;
    struct head_scratch s;
    head_layout(model, R, pass->scratch, &s);

    for (int64_t first = 0; first < R; first += chunk) {
        int64_t rows = R - first < chunk ? R - first : chunk;
        model->family->final_norm_forward(model, pass, first, rows, s.statistics, s.normalised);
        ls_linear_forward(model, pass->stream, s.logits, stride, s.normalised, projection, rows, C, V);
        ls_op(pass->stream, cross_entropy, .logits = s.logits, .loss = pass->loss, .targets = pass->targets + first,
              .gradient_scale = pass->gradient_scale, .row_loss = s.row_loss, .rows = rows, .vocabulary = V,
              .stride = stride, .gradient = pass->gradients != NULL, .dtype = model->dtype);
        if (pass->gradients == NULL) continue;
        ls_linear_backward(model, pass->stream, s.normalised, projection_gradient, s.logits, stride, s.normalised,
                           projection, rows, C, V);
        model->family->final_norm_backward(model, pass, first, rows, s.statistics, s.normalised);
    }
}
