/* Causal self-attention of a layer over packed rows of q, k and v, or over a cache, as all families use it. */
#include "worker/model/family.h"

#include <math.h>

/* The arguments of the forward, but for pointers. */
static struct ls_op_attention_forward forward_arguments(const struct ls_model *model, int64_t B, int64_t T,
                                                        int64_t before, bool cached) {
    const int64_t HD = model->head_size, NH = model->heads, NKV = model->kv_heads;
    const int64_t q_row = cached ? NH * HD : (NH + 2 * NKV) * HD, kv_row = cached ? 2 * NKV * HD : q_row;
    return (struct ls_op_attention_forward){
        .batch = B,
        .query_length = T,
        .key_length = before + T,
        .heads = NH,
        .kv_heads = NKV,
        .head_size = HD,
        .q_stride = q_row,
        .kv_stride = kv_row,
        .output_stride = NH * HD,
        .q_batch_stride = T * q_row,
        .kv_batch_stride = T * kv_row,
        .output_batch_stride = T * NH * HD,
        .scale = 1 / sqrtf((float)HD),
        .dtype = model->dtype,
    };
}

/* The arguments of the backward, but for pointers. */
static struct ls_op_attention_backward backward_arguments(const struct ls_model *model, int64_t B, int64_t T) {
    const int64_t HD = model->head_size, NH = model->heads, NKV = model->kv_heads;
    const int64_t row = (NH + 2 * NKV) * HD;
    return (struct ls_op_attention_backward){
        .batch = B,
        .length = T,
        .heads = NH,
        .kv_heads = NKV,
        .head_size = HD,
        .q_stride = row,
        .kv_stride = row,
        .output_stride = NH * HD,
        .q_batch_stride = T * row,
        .kv_batch_stride = T * row,
        .output_batch_stride = T * NH * HD,
        .scale = 1 / sqrtf((float)HD),
        .dtype = model->dtype,
    };
}

int64_t ls_attention_workspace_bytes(const struct ls_model *model, const struct ls_device *device, int64_t sequences) {
    struct ls_op_attention_forward forward = forward_arguments(model, sequences, model->length, 0, false);
    struct ls_op_attention_backward backward = backward_arguments(model, sequences, model->length);
    size_t first = ls_op_workspace(device, LS_OP_attention_forward, &forward);
    size_t second = ls_op_workspace(device, LS_OP_attention_backward, &backward);
    return (int64_t)(first > second ? first : second);
}

void ls_attention_forward(const struct ls_model *model, const struct ls_block_pass *pass, void *output, float *lse,
                          const void *qk, const void *qkv) {
    const int64_t HD = model->head_size, NH = model->heads, NKV = model->kv_heads;
    const bool cached = pass->cache != NULL;
    struct ls_op_attention_forward arguments =
        forward_arguments(model, pass->sequences, pass->length, pass->cached, cached);
    arguments.output = output;
    arguments.lse = lse;
    arguments.workspace = pass->scratch;
    arguments.q = qk;
    arguments.k = cached ? pass->cache : ls_at(model, qk, NH * HD);
    arguments.v = cached ? ls_at(model, pass->cache, NKV * HD) : ls_at(model, qkv, (NH + NKV) * HD);
    arguments.document_start = pass->document_start;
    ls_stream_submit(pass->stream, LS_OP_attention_forward, &arguments, sizeof arguments);
}

void ls_attention_backward(const struct ls_model *model, const struct ls_block_pass *pass, void *qkv_gradient,
                           const void *output_gradient, const void *output, const float *lse, const void *qk,
                           const void *qkv) {
    const int64_t HD = model->head_size, NH = model->heads, NKV = model->kv_heads;
    struct ls_op_attention_backward arguments = backward_arguments(model, pass->sequences, pass->length);
    arguments.q_gradient = qkv_gradient;
    arguments.k_gradient = ls_at(model, qkv_gradient, NH * HD);
    arguments.v_gradient = ls_at(model, qkv_gradient, (NH + NKV) * HD);
    arguments.workspace = pass->scratch;
    arguments.output_gradient = output_gradient;
    arguments.output = output;
    arguments.q = qk;
    arguments.k = ls_at(model, qk, NH * HD);
    arguments.v = ls_at(model, qkv, (NH + NKV) * HD);
    arguments.lse = lse;
    arguments.document_start = pass->document_start;
    ls_stream_submit(pass->stream, LS_OP_attention_backward, &arguments, sizeof arguments);
}
