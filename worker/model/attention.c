/* Causal self-attention of a layer over packed rows of q, k and v, or over a cache, as both families use it. */
#include "worker/model/family.h"

#include <math.h>

/* The arguments of the backward; without a pass only what its workspace depends on. */
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
    };
}

int64_t ls_attention_workspace_bytes(const struct ls_model *model, const struct ls_device *device, int64_t sequences) {
    struct ls_op_attention_backward arguments = backward_arguments(model, sequences, model->length);
    return (int64_t)ls_op_workspace(device, LS_OP_attention_backward, &arguments);
}

void ls_attention_forward(const struct ls_model *model, const struct ls_block_pass *pass, float *output, float *lse,
                          const float *qkv) {
    const int64_t B = pass->sequences, T = pass->length;
    const int64_t HD = model->head_size, NH = model->heads, NKV = model->kv_heads;
    const bool cached = pass->cache != NULL;
    const int64_t q_row = cached ? NH * HD : (NH + 2 * NKV) * HD, kv_row = cached ? 2 * NKV * HD : q_row;
    const float *k = cached ? pass->cache : qkv + NH * HD;
    ls_op(pass->stream, attention_forward, .output = output, .lse = lse, .q = qkv, .k = k, .v = k + NKV * HD,
          .document_start = pass->document_start, .batch = B, .query_length = T, .key_length = pass->cached + T,
          .heads = NH, .kv_heads = NKV, .head_size = HD, .q_stride = q_row, .kv_stride = kv_row,
          .output_stride = NH * HD, .q_batch_stride = T * q_row, .kv_batch_stride = T * kv_row,
          .output_batch_stride = T * NH * HD, .scale = 1 / sqrtf((float)HD));
}

void ls_attention_backward(const struct ls_model *model, const struct ls_block_pass *pass, float *qkv_gradient,
                           const float *output_gradient, const float *output, const float *lse, const float *qkv) {
    const int64_t HD = model->head_size, NH = model->heads, NKV = model->kv_heads;
    struct ls_op_attention_backward arguments = backward_arguments(model, pass->sequences, pass->length);
    arguments.q_gradient = qkv_gradient;
    arguments.k_gradient = qkv_gradient + NH * HD;
    arguments.v_gradient = qkv_gradient + (NH + NKV) * HD;
    arguments.workspace = pass->scratch;
    arguments.output_gradient = output_gradient;
    arguments.output = output;
    arguments.q = qkv;
    arguments.k = qkv + NH * HD;
    arguments.v = qkv + (NH + NKV) * HD;
    arguments.lse = lse;
    arguments.document_start = pass->document_start;
    ls_stream_submit(pass->stream, LS_OP_attention_backward, &arguments, sizeof arguments);
}
