/* Softmax cross-entropy: per row the maximum, the sum of exponentials (kept in place of the logits when there is a
 * gradient), the scaling. */
#include "worker/device/cpu/exponential.h"
#include "worker/device/cpu/kernels.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Exponentials are added in float within a piece of this many columns and in double across pieces. */
enum { PIECE = 1024, ELEMENTS_PER_TASK = 8192 };

static float row_maximum(const float *x, int64_t count) {
    float maximum = x[0];
#pragma omp simd reduction(max : maximum)
    for (int64_t i = 0; i < count; i++) maximum = x[i] > maximum ? x[i] : maximum;
    return maximum;
}

static double row_sum(const float *x, int64_t count, float maximum) {
    double total = 0.0;
    for (int64_t begin = 0; begin < count; begin += PIECE) {
        const int64_t end = count - begin < PIECE ? count : begin + PIECE;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; i++) sum += ls_exp(x[i] - maximum);
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

static void rows(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_cross_entropy *op = arguments;
    const int64_t vocabulary = op->vocabulary;
    const float gradient_scale = op->gradient ? op->gradient_scale[0] : 0.0f;
    for (int64_t row = begin; row < end; row++) {
        float *x = (float *)op->logits + row * op->stride;
        const int32_t target = op->targets[row];
        assert(target < vocabulary);
        if (target < 0) {
            op->row_loss[row] = 0.0f;
            if (op->gradient) memset(x, 0, (size_t)op->stride * sizeof *x);
            continue;
        }
        const float maximum = row_maximum(x, vocabulary), logit = x[target];
        const double sum = op->gradient ? row_exponentials(x, vocabulary, maximum) : row_sum(x, vocabulary, maximum);
        op->row_loss[row] = (float)(log(sum) + ((double)maximum - (double)logit));
        if (!op->gradient) continue;
        const float factor = (float)((double)gradient_scale / sum);
#pragma omp simd
        for (int64_t i = 0; i < vocabulary; i++) x[i] *= factor;
        x[target] -= gradient_scale;
        memset(x + vocabulary, 0, (size_t)(op->stride - vocabulary) * sizeof *x);
    }
}

void ls_cpu_cross_entropy(int threads, const struct ls_op_cross_entropy *op) {
    const int64_t grain = op->vocabulary >= ELEMENTS_PER_TASK ? 1 : ELEMENTS_PER_TASK / op->vocabulary;
    ls_cpu_parallel(threads, op->rows, grain, rows, op);
    double loss = op->loss[0];
    for (int64_t row = 0; row < op->rows; row++) loss += (double)op->row_loss[row];
    op->loss[0] = loss;
}
