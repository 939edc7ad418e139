/* What the files of this room share: a model's sizes and tables, what a family (GPT-2, Llama) provides, and the helpers
 * with which a family states its tensors, its activations and its matrix products. */
#ifndef LS_WORKER_MODEL_FAMILY_H
#define LS_WORKER_MODEL_FAMILY_H

#include "worker/model/model.h"

struct ls_model_family {
    /* Checks the family's own rules and adds the embedding's, the layers' and the head's blocks, in this order. */
    enum ls_code (*describe)(struct ls_model *model, struct ls_error *error);
    /* Of a layer, see ls_model_saved_bytes() and ls_model_recomputed_bytes(). */
    void (*saved_bytes)(const struct ls_model *model, int64_t rows, int64_t *saved, int64_t *recomputed);
    void (*embedding_forward)(const struct ls_model *model, const struct ls_block_pass *pass);
    void (*embedding_backward)(const struct ls_model *model, const struct ls_block_pass *pass);
    void (*layer_forward)(const struct ls_model *model, int block, const struct ls_block_pass *pass);
    void (*layer_recompute)(const struct ls_model *model, int block, const struct ls_block_pass *pass);
    void (*layer_backward)(const struct ls_model *model, int block, const struct ls_block_pass *pass);
    /* The norm in front of the head's projection, for rows [first, first + rows) of the pass. `statistics` holds
     * [2, rows] floats; `normalised` and `gradient` hold [rows, C] elements; `workspace` is the operation's. */
    void (*final_norm_forward)(const struct ls_model *model, const struct ls_block_pass *pass, int64_t first,
                               int64_t rows, float *statistics, void *normalised);
    void (*final_norm_backward)(const struct ls_model *model, const struct ls_block_pass *pass, int64_t first,
                                int64_t rows, const float *statistics, const void *gradient, void *workspace);
};

extern const struct ls_model_family ls_model_gpt2, ls_model_llama;

struct ls_model {
    const struct ls_model_family *family;
    struct ls_config_rope_scaling rope_scaling;
    double rope_theta;
    int64_t length;    /* T of the configuration */
    int64_t positions; /* rows of a table of learned positions */
    int64_t vocabulary, channels, layers, heads, kv_heads, head_size, hidden;
    float epsilon, deviation;
    enum ls_dtype dtype; /* of parameters, activations and gradients of these; gradients of parameters are fp32 */
    int64_t window;      /* inference: tokens that a query sees, its own among them; 0: all before it */
    bool tied, qkv_bias, head_norm;
    int64_t parameter_count;
    struct ls_block *blocks;
    int block_count;
    struct ls_tensor *tensors;
    int tensor_count;
};

/* A tensor as a family states it: the name behind the block's prefix, the shape, the initial values. */
struct ls_tensor_row {
    const char *name;
    int64_t rows, columns; /* columns 0: a vector of `rows` */
    float mean, deviation;
};

/* Appends a block with these tensors, matrices first; rows without a name are left out. */
void ls_model_add_block(struct ls_model *model, enum ls_block_kind kind, const char *prefix,
                        const struct ls_tensor_row *rows, int count);

/* The tensors of a block, in the order in which its family stated them. */
static inline const struct ls_tensor *ls_model_tensors(const struct ls_model *model, int block) {
    return &model->tensors[model->blocks[block].first_tensor];
}

/* A cursor over a buffer: the same function of a family states sizes (base NULL) and pointers, so that they cannot
 * disagree. */
struct ls_layout {
    char *base;
    int64_t bytes;
};
/* The next bytes, floats, or elements of the model's type, aligned for every device; NULL while only sizes are asked
 * for. */
void *ls_layout_bytes(struct ls_layout *layout, int64_t bytes);
float *ls_layout_floats(struct ls_layout *layout, int64_t count);
void *ls_layout_elements(struct ls_layout *layout, const struct ls_model *model, int64_t count);

/* The address of element `index` of an array of the model's type. */
static inline void *ls_at(const struct ls_model *model, const void *array, int64_t index) {
    return (char *)(uintptr_t)array + index * ls_dtype_bytes(model->dtype);
}

/* A tensor of the pass's block. */
static inline const void *ls_weight(const struct ls_model *model, const struct ls_block_pass *pass,
                                    const struct ls_tensor *tensor) {
    return ls_at(model, pass->parameters, tensor->offset);
}

/* The causal self-attention of a layer. Rows of `qkv` and of its gradient are [q: NH, k: NKV, v: NKV] heads of HD
 * elements. q and k are read from rows of the same shape at `qk`, which may be `qkv`. With a cache in the pass rows of
 * `qk` hold q alone, and keys and values come from the cache. */
int64_t ls_attention_workspace_bytes(const struct ls_model *model, const struct ls_device *device, int64_t sequences);
void ls_attention_forward(const struct ls_model *model, const struct ls_block_pass *pass, void *output, float *lse,
                          const void *qk, const void *qkv);
void ls_attention_backward(const struct ls_model *model, const struct ls_block_pass *pass, void *qkv_gradient,
                           const void *output_gradient, const void *output, const float *lse, const void *qk,
                           const void *qkv);

/* Where the keys and values of the pass's first token go in its cache. */
static inline void *ls_cache_row(const struct ls_model *model, const struct ls_block_pass *pass) {
    return ls_at(model, pass->cache, pass->cached * 2 * model->kv_heads * model->head_size);
}

/* y[R, OUT] = x[R, IN] w[OUT, IN]^T (+ residual, unless NULL). */
void ls_linear_forward(const struct ls_model *model, struct ls_stream *stream, void *y, const void *x, const void *w,
                       const void *residual, int64_t R, int64_t IN, int64_t OUT);
/* dw += dy^T x, then dx = dy w; dx may be x. */
void ls_linear_backward(const struct ls_model *model, struct ls_stream *stream, void *dx, float *dw, const void *dy,
                        const void *x, const void *w, int64_t R, int64_t IN, int64_t OUT);

#endif
