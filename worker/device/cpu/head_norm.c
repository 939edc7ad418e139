/* Root-mean-square normalisation of every head by itself, written once for all types: a head is read into fp32 and
 * rounded once as it is stored. */
#include "worker/device/cpu/kernels.h"
#include "worker/device/cpu/low_precision.h"

#include <math.h>

#define INLINE static inline __attribute__((always_inline))

/* Heads that are added up before they join the gradient of the weight: the order of that sum, hence its bits, follows
 * from the shape alone. */
enum { HEADS_PER_BLOCK = 32, COLUMNS_PER_TASK = 16, ELEMENTS_PER_TASK = 16384 };

static int64_t rows_per_task(int64_t columns) {
    return columns >= ELEMENTS_PER_TASK ? 1 : ELEMENTS_PER_TASK / columns;
}

INLINE void forward_head(enum ls_dtype t, const struct ls_op_head_norm_forward *op, int64_t row, int64_t head) {
    const int64_t HD = op->head_size, at = row * op->stride + head * HD;
    float square = 0.0f;
#pragma omp simd reduction(+ : square)
    for (int64_t c = 0; c < HD; c++) square += ls_load(t, op->input, at + c) * ls_load(t, op->input, at + c);
    const float rstd = 1.0f / sqrtf(square / (float)HD + op->epsilon);
    for (int64_t c = 0; c < HD; c++)
        ls_store(t, op->output, at + c, ls_load(t, op->input, at + c) * rstd * ls_load(t, op->weight, c));
    if (op->rstd) op->rstd[row * op->heads + head] = rstd;
}

static void forward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_head_norm_forward *op = arguments;
    for (int64_t row = begin; row < end; row++)
        for (int64_t head = 0; head < op->heads; head++) switch (op->dtype) {
            case LS_FP32: forward_head(LS_FP32, op, row, head); break;
            case LS_BF16: forward_head(LS_BF16, op, row, head); break;
            case LS_FP16: forward_head(LS_FP16, op, row, head); break;
            }
}

void ls_cpu_head_norm_forward(int threads, const struct ls_op_head_norm_forward *op) {
    if (op->heads == 0) return;
    ls_cpu_parallel(threads, op->rows, rows_per_task(op->heads * op->head_size), forward, op);
}

/* With x^ = x rstd and d = dy * weight: dx = rstd (d - x^ mean(d x^)). */
INLINE void backward_head(enum ls_dtype t, const struct ls_op_head_norm_backward *op, int64_t row, int64_t head) {
    const int64_t HD = op->head_size, at = row * op->stride + head * HD;
    const float rstd = op->rstd[row * op->heads + head];
    float product = 0.0f;
#pragma omp simd reduction(+ : product)
    for (int64_t c = 0; c < HD; c++)
        product += ls_load(t, op->output_gradient, at + c) * ls_load(t, op->weight, c) *
                   (ls_load(t, op->input, at + c) * rstd);
    const float mean = product / (float)HD;
    for (int64_t c = 0; c < HD; c++) {
        const float d = ls_load(t, op->output_gradient, at + c) * ls_load(t, op->weight, c);
        ls_store(t, op->input_gradient, at + c, rstd * (d - ls_load(t, op->input, at + c) * rstd * mean));
    }
}

static void backward_input(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_head_norm_backward *op = arguments;
    for (int64_t row = begin; row < end; row++)
        for (int64_t head = 0; head < op->heads; head++) switch (op->dtype) {
            case LS_FP32: backward_head(LS_FP32, op, row, head); break;
            case LS_BF16: backward_head(LS_BF16, op, row, head); break;
            case LS_FP16: backward_head(LS_FP16, op, row, head); break;
            }
}

INLINE void add_weight(enum ls_dtype t, const struct ls_op_head_norm_backward *op, int64_t begin, int64_t end) {
    const int64_t heads = op->rows * op->heads, width = end - begin;
    for (int64_t block = 0; block < heads; block += HEADS_PER_BLOCK) {
        const int64_t last = heads - block < HEADS_PER_BLOCK ? heads : block + HEADS_PER_BLOCK;
        float sum[COLUMNS_PER_TASK] = {0};
        for (int64_t h = block; h < last; h++) {
            const int64_t at = h / op->heads * op->stride + h % op->heads * op->head_size + begin;
            const float rstd = op->rstd[h];
            for (int64_t c = 0; c < width; c++)
                sum[c] += ls_load(t, op->output_gradient, at + c) * (ls_load(t, op->input, at + c) * rstd);
        }
        for (int64_t c = 0; c < width; c++) op->weight_gradient[begin + c] += sum[c];
    }
}

static void backward_weight(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_head_norm_backward *op = arguments;
    for (int64_t from = begin; from < end; from += COLUMNS_PER_TASK) {
        const int64_t to = end - from < COLUMNS_PER_TASK ? end : from + COLUMNS_PER_TASK;
        switch (op->dtype) {
        case LS_FP32: add_weight(LS_FP32, op, from, to); break;
        case LS_BF16: add_weight(LS_BF16, op, from, to); break;
        case LS_FP16: add_weight(LS_FP16, op, from, to); break;
        }
    }
}

/* The weight first: the gradient of the input may lie over that of the output. */
void ls_cpu_head_norm_backward(int threads, const struct ls_op_head_norm_backward *op) {
    if (op->heads == 0) return;
    ls_cpu_parallel(threads, op->head_size, COLUMNS_PER_TASK, backward_weight, op);
    ls_cpu_parallel(threads, op->rows, rows_per_task(op->heads * op->head_size), backward_input, op);
}
