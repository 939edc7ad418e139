/* Attention in bf16 and fp16: a sequence at a time is widened into the workspace, computed by the fp32 kernels, and its
 * results are rounded. */
#include "worker/device/cpu/kernels.h"
#include "worker/device/cpu/low_precision.h"
#include "worker/device/cpu/low_precision_kernels.h"

#include <assert.h>

/* `rows` rows of `columns` between fp32, in rows of `columns`, and the operation's type, in rows of `stride`. */
struct rows {
    enum ls_dtype dtype;
    float *wide;
    const void *narrow;
    int64_t stride, columns, rows;
};

static void widen(const void *arguments, int64_t begin, int64_t end) {
    const struct rows *r = arguments;
    for (int64_t row = begin; row < end; row++)
        ls_widen(r->dtype, r->wide + row * r->columns, ls_element(r->dtype, r->narrow, row * r->stride), r->columns);
}

static void narrow(const void *arguments, int64_t begin, int64_t end) {
    const struct rows *r = arguments;
    for (int64_t row = begin; row < end; row++)
        ls_narrow(r->dtype, ls_element(r->dtype, r->narrow, row * r->stride), r->wide + row * r->columns, r->columns);
}

static int64_t grain(int64_t columns) {
    return 1 + 16384 / (columns + 1);
}

/* Widens rows from element `first` of `from` to *free, and moves that behind them. Returns the copy. */
static float *take(int threads, enum ls_dtype dtype, float **free, const void *from, int64_t first, int64_t stride,
                   int64_t columns, int64_t rows) {
    const struct rows r = {dtype, *free, ls_element(dtype, from, first), stride, columns, rows};
    ls_cpu_parallel(threads, rows, grain(columns), widen, &r);
    *free += rows * columns;
    return r.wide;
}

static void give(int threads, enum ls_dtype dtype, float *wide, void *to, int64_t first, int64_t stride,
                 int64_t columns, int64_t rows) {
    const struct rows r = {dtype, wide, ls_element(dtype, to, first), stride, columns, rows};
    ls_cpu_parallel(threads, rows, grain(columns), narrow, &r);
}

size_t ls_cpu_low_attention_forward_workspace(const struct ls_op_attention_forward *op) {
    const int64_t row = op->heads * op->head_size, kv_row = op->kv_heads * op->head_size;
    return (size_t)(2 * op->query_length * row + 2 * op->key_length * kv_row) * sizeof(float);
}

void ls_cpu_low_attention_forward(int threads, const struct ls_op_attention_forward *op) {
    const int64_t Q = op->query_length, K = op->key_length, row = op->heads * op->head_size;
    const int64_t kv_row = op->kv_heads * op->head_size;
    assert(op->workspace);
    for (int64_t b = 0; b < op->batch; b++) {
        const int64_t at_q = b * op->q_batch_stride, at_kv = b * op->kv_batch_stride;
        float *free = op->workspace;
        struct ls_op_attention_forward wide = {.batch = 1,
                                               .query_length = Q,
                                               .key_length = K,
                                               .heads = op->heads,
                                               .kv_heads = op->kv_heads,
                                               .head_size = op->head_size,
                                               .q_stride = row,
                                               .kv_stride = kv_row,
                                               .output_stride = row,
                                               .scale = op->scale,
                                               .dtype = op->dtype};
        wide.q = take(threads, op->dtype, &free, op->q, at_q, op->q_stride, row, Q);
        wide.k = take(threads, op->dtype, &free, op->k, at_kv, op->kv_stride, kv_row, K);
        wide.v = take(threads, op->dtype, &free, op->v, at_kv, op->kv_stride, kv_row, K);
        wide.output = free;
        wide.lse = op->lse ? op->lse + b * op->heads * Q : NULL;
        wide.document_start = op->document_start ? op->document_start + b * Q : NULL;
        ls_cpu_attention_forward(threads, &wide);
        give(threads, op->dtype, wide.output, op->output, b * op->output_batch_stride, op->output_stride, row, Q);
    }
}

size_t ls_cpu_low_attention_backward_workspace(const struct ls_op_attention_backward *op) {
    return (size_t)(4 * op->length * (op->heads + op->kv_heads) * op->head_size) * sizeof(float);
}

void ls_cpu_low_attention_backward(int threads, const struct ls_op_attention_backward *op) {
    const int64_t T = op->length, row = op->heads * op->head_size, kv_row = op->kv_heads * op->head_size;
    assert(op->workspace);
    for (int64_t b = 0; b < op->batch; b++) {
        const int64_t at_q = b * op->q_batch_stride, at_kv = b * op->kv_batch_stride;
        const int64_t at_output = b * op->output_batch_stride;
        float *free = op->workspace;
        struct ls_op_attention_backward wide = {.batch = 1,
                                                .length = T,
                                                .heads = op->heads,
                                                .kv_heads = op->kv_heads,
                                                .head_size = op->head_size,
                                                .q_stride = row,
                                                .kv_stride = kv_row,
                                                .output_stride = row,
                                                .scale = op->scale,
                                                .dtype = op->dtype};
        wide.q = take(threads, op->dtype, &free, op->q, at_q, op->q_stride, row, T);
        wide.k = take(threads, op->dtype, &free, op->k, at_kv, op->kv_stride, kv_row, T);
        wide.v = take(threads, op->dtype, &free, op->v, at_kv, op->kv_stride, kv_row, T);
        wide.output = take(threads, op->dtype, &free, op->output, at_output, op->output_stride, row, T);
        wide.output_gradient =
            take(threads, op->dtype, &free, op->output_gradient, at_output, op->output_stride, row, T);
        wide.q_gradient = free;
        wide.k_gradient = free + T * row;
        wide.v_gradient = free + T * (row + kv_row);
        wide.lse = op->lse + b * op->heads * T;
        wide.document_start = op->document_start ? op->document_start + b * T : NULL;
        ls_cpu_attention_backward(threads, &wide);
        give(threads, op->dtype, wide.q_gradient, op->q_gradient, at_q, op->q_stride, row, T);
        give(threads, op->dtype, wide.k_gradient, op->k_gradient, at_kv, op->kv_stride, kv_row, T);
        give(threads, op->dtype, wide.v_gradient, op->v_gradient, at_kv, op->kv_stride, kv_row, T);
    }
}
