/* The optimizer's step on flat ranges: gradient norm, clip factor, AdamW in one pass over memory. */
#include "worker/device/cpu/kernels.h"
#include "worker/device/cpu/low_precision.h"

#include <math.h>
#include <string.h>

enum { NORM_PIECE = 1024, ELEMENTS_PER_TASK = 16384 };

/* A function of its own, so that the compiler makes one order of additions and not several for the places of call. */
static __attribute__((noinline)) double sum_of_squares(const float *x, int64_t count) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

static void squares(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_squared_norm *op = arguments;
    float wide[NORM_PIECE] __attribute__((aligned(64))); /* or the order of the sum would depend on the stack */
    for (int64_t piece = begin; piece < end; piece++) {
        const int64_t first = piece * NORM_PIECE,
                      last = op->count - first < NORM_PIECE ? op->count : first + NORM_PIECE;
        const float *x = (const float *)op->input + first;
        if (op->dtype != LS_FP32) {
            ls_widen(op->dtype, wide, ls_element(op->dtype, op->input, first), last - first);
            x = wide;
        }
        op->partial[piece] = sum_of_squares(x, last - first);
    }
}

void ls_cpu_squared_norm(int threads, const struct ls_op_squared_norm *op) {
    const int64_t pieces = (op->count + NORM_PIECE - 1) / NORM_PIECE;
    if (op->input) ls_cpu_parallel(threads, pieces, ELEMENTS_PER_TASK / NORM_PIECE, squares, op);
    if (!op->result) return;
    double sum = op->result[0];
    for (int64_t piece = 0; piece < pieces; piece++) sum += op->partial[piece];
    op->result[0] = sum;
}

void ls_cpu_ordered_sum(int threads, const struct ls_op_ordered_sum *op) {
    (void)threads;
    double sum = 0.0;
    for (int64_t i = 0; i < op->count; i++) sum += op->input[i];
    op->result[0] = sum;
}

void ls_cpu_clip(int threads, const struct ls_op_clip *op) {
    (void)threads;
    const double scale = op->loss_scale > 0.0f ? (double)op->loss_scale : 1.0, norm = sqrt(op->squared[0]) / scale;
    *op->norm = (float)norm;
    *op->factor =
        (float)((op->maximum > 0.0f && norm > (double)op->maximum ? (double)op->maximum / norm : 1.0) / scale);
    *op->found_inf = !isfinite(norm);
}

struct adamw {
    const struct ls_op_adamw *op;
    float factor, rate, decay, momentum_scale, variance_scale; /* rate: lr; scales: 1 / bias correction */
};

static void adamw_range(const struct adamw *a, int64_t begin, int64_t end, float decay) {
    const struct ls_op_adamw *op = a->op;
    float *parameter = op->parameter, *m = op->m, *v = op->v;
    const float *gradient = op->gradient;
    const float beta1 = op->beta1, beta2 = op->beta2, epsilon = op->epsilon;
    const float factor = a->factor, rate = a->rate, momentum_scale = a->momentum_scale,
                variance_scale = a->variance_scale;
#pragma omp simd
    for (int64_t i = begin; i < end; i++) {
        const float g = gradient[i] * factor;
        const float first = beta1 * m[i] + (1.0f - beta1) * g;
        const float second = beta2 * v[i] + (1.0f - beta2) * (g * g);
        m[i] = first;
        v[i] = second;
        const float update = first * momentum_scale / (sqrtf(second * variance_scale) + epsilon);
        parameter[i] -= rate * (update + decay * parameter[i]);
    }
}

static void adamw(const void *arguments, int64_t begin, int64_t end) {
    const struct adamw *a = arguments;
    const int64_t decayed = a->op->decay_count;
    if (begin < decayed) adamw_range(a, begin, end < decayed ? end : decayed, a->decay);
    if (end > decayed) adamw_range(a, begin > decayed ? begin : decayed, end, 0.0f);
    if (a->op->low_precision)
        ls_narrow(a->op->dtype, ls_element(a->op->dtype, a->op->low_precision, begin), a->op->parameter + begin,
                  end - begin);
}

void ls_cpu_adamw(int threads, const struct ls_op_adamw *op) {
    if (op->found_inf && *op->found_inf) return;
    const double step = (double)*op->step;
    const struct adamw a = {.op = op,
                            .factor = op->factor ? *op->factor : 1.0f,
                            .rate = *op->learning_rate,
                            .decay = op->weight_decay,
                            .momentum_scale = (float)(1.0 / (1.0 - pow((double)op->beta1, step))),
                            .variance_scale = (float)(1.0 / (1.0 - pow((double)op->beta2, step)))};
    ls_cpu_parallel(threads, op->count, ELEMENTS_PER_TASK, adamw, &a);
}
