/* The optimizer's step on flat ranges: gradient norm, clip factor, the rules, each in one pass over memory. */
#include "worker/device/cpu/kernels.h"
#include "worker/device/cpu/low_precision.h"
#include "worker/device/philox.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { NORM_PIECE = 1024, ROUNDED_PIECE = 1024, ELEMENTS_PER_TASK = 16384 };

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

/* What a rule needs beside the operation. */
struct update {
    const struct ls_op_update *op;
    float factor, rate, momentum_scale, variance_scale; /* rate: lr; scales: 1 / bias correction */
};

/* The rules, for `count` elements of which `parameter`, `m`, `v` and `gradient` are the first. Functions of their own,
 * so that the compiler makes one order of operations and not several for the places of call. */

static __attribute__((noinline)) void adamw(const struct update *a, float *parameter, float *m, float *v,
                                            const float *gradient, int64_t count, float decay) {
    const float beta1 = a->op->beta1, beta2 = a->op->beta2, epsilon = a->op->epsilon;
    const float factor = a->factor, rate = a->rate, momentum_scale = a->momentum_scale,
                variance_scale = a->variance_scale;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        const float g = gradient[i] * factor;
        const float first = beta1 * m[i] + (1.0f - beta1) * g;
        const float second = beta2 * v[i] + (1.0f - beta2) * (g * g);
        m[i] = first;
        v[i] = second;
        const float update = first * momentum_scale / (sqrtf(second * variance_scale) + epsilon);
        parameter[i] -= rate * (update + decay * parameter[i]);
    }
}

static __attribute__((noinline)) void lion(const struct update *a, float *parameter, float *m, const float *gradient,
                                           int64_t count, float decay) {
    const float beta1 = a->op->beta1, beta2 = a->op->beta2, factor = a->factor, rate = a->rate;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        const float g = gradient[i] * factor, mixed = beta1 * m[i] + (1.0f - beta1) * g;
        const float update = mixed > 0.0f ? 1.0f : mixed < 0.0f ? -1.0f : 0.0f;
        m[i] = beta2 * m[i] + (1.0f - beta2) * g;
        parameter[i] -= rate * (update + decay * parameter[i]);
    }
}

static __attribute__((noinline)) void sgd(const struct update *a, float *parameter, float *m, const float *gradient,
                                          int64_t count, float decay) {
    const float beta1 = a->op->beta1, factor = a->factor, rate = a->rate;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        const float update = beta1 * m[i] + gradient[i] * factor;
        m[i] = update;
        parameter[i] -= rate * (update + decay * parameter[i]);
    }
}

/* ROUNDED_PIECE elements at most. */
static __attribute__((noinline)) void given(const struct update *a, float *parameter, const void *direction,
                                            int64_t count, float decay) {
    const float scale = a->op->scale, rate = a->rate;
    float wide[ROUNDED_PIECE];
    const float *values = direction;
    if (a->op->dtype != LS_FP32) {
        ls_widen(LS_BF16, wide, direction, count);
        values = wide;
    }
#pragma omp simd
    for (int64_t i = 0; i < count; i++) parameter[i] -= rate * (scale * values[i] + decay * parameter[i]);
}

static void apply_given(const struct update *a, float *parameter, int64_t begin, int64_t end, float decay) {
    const enum ls_dtype dtype = a->op->dtype == LS_FP32 ? LS_FP32 : LS_BF16;
    for (int64_t i = begin; i < end; i += ROUNDED_PIECE)
        given(a, parameter + (i - begin), ls_element(dtype, a->op->direction, i),
              end - i < ROUNDED_PIECE ? end - i : ROUNDED_PIECE, decay);
}

/* Elements [begin, end) of the range; `parameter` is that of the first of them. */
static void apply_rule(const struct update *a, float *parameter, int64_t begin, int64_t end, float decay) {
    const struct ls_op_update *op = a->op;
    const int64_t count = end - begin;
    switch (op->rule) {
    case LS_UPDATE_ADAMW: adamw(a, parameter, op->m + begin, op->v + begin, op->gradient + begin, count, decay); break;
    case LS_UPDATE_LION: lion(a, parameter, op->m + begin, op->gradient + begin, count, decay); break;
    case LS_UPDATE_SGD: sgd(a, parameter, op->m + begin, op->gradient + begin, count, decay); break;
    case LS_UPDATE_GIVEN: apply_given(a, parameter, begin, end, decay); break;
    }
}

static void apply(const struct update *a, float *parameter, int64_t begin, int64_t end) {
    const int64_t decayed = a->op->decay_count, undecayed = begin > decayed ? begin : decayed;
    if (begin < decayed) apply_rule(a, parameter, begin, end < decayed ? end : decayed, a->op->weight_decay);
    if (end > decayed) apply_rule(a, parameter + (undecayed - begin), undecayed, end, 0.0f);
}

/* Random bits for ROUNDED_PIECE elements that begin anywhere in a group of eight; a group's lie in four words. */
union random_bits {
    uint32_t words[(ROUNDED_PIECE + 16) / 2];
    uint16_t halves[ROUNDED_PIECE + 16];
};
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the lower half of a word comes first");

/* Those of `groups` groups from `group` on. */
static void draw(const struct ls_op_update *op, uint64_t group, int64_t groups, union random_bits *bits) {
    const uint64_t seed = op->seed;
    const uint32_t tensor = op->tensor, step = (uint32_t)*op->step;
#pragma omp simd
    for (int64_t j = 0; j < groups; j++) {
        const uint64_t at = group + (uint64_t)j;
        const struct ls_philox word =
            ls_philox_draw((struct ls_philox){(uint32_t)at, (uint32_t)(at >> 32), tensor, step}, seed);
        bits->words[4 * j] = word.a;
        bits->words[4 * j + 1] = word.b;
        bits->words[4 * j + 2] = word.c;
        bits->words[4 * j + 3] = word.d;
    }
}

/* Each value becomes the bf16 below in magnitude, or above where the random bits carry. */
static void round_by(const float *values, const uint16_t *random, int64_t count, uint16_t *rounded) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = ls_bits_of_float(values[i]), sum = (bits + random[i]) >> 16;
        rounded[i] = (uint16_t)((bits & 0x7f800000) == 0x7f800000 ? ls_bf16_narrow(values[i]) : sum);
    }
}

/* Elements [begin, end), ROUNDED_PIECE at most, whose only copy is in bf16. */
static void apply_rounded(const struct update *a, int64_t begin, int64_t end) {
    const struct ls_op_update *op = a->op;
    float values[ROUNDED_PIECE];
    union random_bits bits;
    uint16_t *parameter = (uint16_t *)op->low_precision + begin;
    const uint64_t first = op->first + (uint64_t)begin, last = first + (uint64_t)(end - begin) - 1;
    ls_widen(LS_BF16, values, parameter, end - begin);
    apply(a, values, begin, end);
    draw(op, first / 8, (int64_t)(last / 8 - first / 8) + 1, &bits);
    round_by(values, bits.halves + first % 8, end - begin, parameter);
}

static void update(const void *arguments, int64_t begin, int64_t end) {
    const struct update *a = arguments;
    if (!a->op->parameter) {
        for (; begin < end; begin += ROUNDED_PIECE)
            apply_rounded(a, begin, end - begin < ROUNDED_PIECE ? end : begin + ROUNDED_PIECE);
        return;
    }
    apply(a, a->op->parameter + begin, begin, end);
    if (a->op->low_precision)
        ls_narrow(a->op->dtype, ls_element(a->op->dtype, a->op->low_precision, begin), a->op->parameter + begin,
                  end - begin);
}

void ls_cpu_update(int threads, const struct ls_op_update *op) {
    assert(op->parameter || (op->low_precision && op->dtype == LS_BF16));
    if (op->found_inf && *op->found_inf) return;
    const double step = (double)*op->step;
    const struct update a = {.op = op,
                             .factor = op->factor ? *op->factor : 1.0f,
                             .rate = *op->learning_rate,
                             .momentum_scale = (float)(1.0 / (1.0 - pow((double)op->beta1, step))),
                             .variance_scale = (float)(1.0 / (1.0 - pow((double)op->beta2, step)))};
    ls_cpu_parallel(threads, op->count, ELEMENTS_PER_TASK, update, &a);
}
