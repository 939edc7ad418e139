/* Softmax cross-entropy, written once for all types: per row the maximum, the sum of exponentials, their scaling. The
 * exponentials of fp32 are kept in place of the logits when there is a gradient; those of other types are computed a
 * second time, because they would be rounded twice. */
#include "worker/device/cpu/exponential.h"
#include "worker/device/cpu/kernels.h"
#include "worker/device/cpu/low_precision.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Exponentials are added in float within a piece of this many columns and in double across pieces. */
enum { PIECE = 1024, ELEMENTS_PER_TASK = 8192 };

INLINE float row_maximum(const enum ls_dtype t, const void *x, int64_t count) {
    float maximum = ls_load(t, x, 0);
#pragma omp simd reduction(max : maximum)
    for (int64_t i = 0; i < count; i++) maximum = ls_load(t, x, i) > maximum ? ls_load(t, x, i) : maximum;
    return maximum;
}

INLINE double row_sum(const enum ls_dtype t, const void *x, int64_t count, float maximum) {
    double total = 0.0;
    for (int64_t begin = 0; begin < count; begin += PIECE) {
        const int64_t end = count - begin < PIECE ? count : begin + PIECE;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; i++) sum += ls_exp(ls_load(t, x, i) - maximum);
        total += (double)sum;
    }
    return total;
}

static double row_exponentials(float *x, int64_t count, float maximum) {
    double total = 0.0;
    for (int64_t begin = 0; begin < count; begin += PIECE) {
        const int64_t end = count - begin < PIECE ? count : begin + PIECE;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; i++) {
            const float e = ls_exp(x[i] - maximum);
            x[i] = e;
            sum += e;
        }
        total += (double)sum;
    }
    return total;
}

/* What `x` holds is the exponentials in fp32, the logits in other types. */
INLINE void row_gradient(const enum ls_dtype t, void *x, int64_t count, float maximum, float factor, int32_t target,
                         float scale) {
    if (t == LS_FP32) {
        float *gradient = x;
#pragma omp simd
        for (int64_t i = 0; i < count; i++) gradient[i] *= factor;
        gradient[target] -= scale;
        return;
    }
    const float p = ls_exp(ls_load(t, x, target) - maximum) * factor;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) ls_store(t, x, i, ls_exp(ls_load(t, x, i) - maximum) * factor);
    ls_store(t, x, target, p - scale);
}

INLINE void some_rows(const enum ls_dtype t, const struct ls_op_cross_entropy *op, int64_t begin, int64_t end) {
    const int64_t vocabulary = op->vocabulary;
    const float scale = op->gradient ? op->gradient_scale[0] : 0.0f;
    for (int64_t row = begin; row < end; row++) {
        void *x = ls_element(t, op->logits, row * op->stride);
        const int32_t target = op->targets[row];
        assert(target < vocabulary);
        if (target < 0) {
            op->row_loss[row] = 0.0f;
            if (op->gradient) memset(x, 0, (size_t)(op->stride * ls_dtype_bytes(t)));
            continue;
        }
        const float maximum = row_maximum(t, x, vocabulary), logit = ls_load(t, x, target);
        const double sum = t == LS_FP32 && op->gradient ? row_exponentials(x, vocabulary, maximum)
                                                        : row_sum(t, x, vocabulary, maximum);
        op->row_loss[row] = (float)(log(sum) + ((double)maximum - (double)logit));
        if (!op->gradient) continue;
        row_gradient(t, x, vocabulary, maximum, (float)((double)scale / sum), target, scale);
        memset(ls_element(t, x, vocabulary), 0, (size_t)((op->stride - vocabulary) * ls_dtype_bytes(t)));
    }
}

static void rows(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_cross_entropy *op = arguments;
    switch (op->dtype) {
    case LS_FP32: some_rows(LS_FP32, op, begin, end); break;
    case LS_BF16: some_rows(LS_BF16, op, begin, end); break;
    case LS_FP16: some_rows(LS_FP16, op, begin, end); break;
    }
}

void ls_cpu_cross_entropy(int threads, const struct ls_op_cross_entropy *op) {
    const int64_t grain = op->vocabulary >= ELEMENTS_PER_TASK ? 1 : ELEMENTS_PER_TASK / op->vocabulary;
    ls_cpu_parallel(threads, op->rows, grain, rows, op);
    double loss = op->loss[0];
    for (int64_t row = 0; row < op->rows; row++) loss += (double)op->row_loss[row];
    op->loss[0] = loss;
}
