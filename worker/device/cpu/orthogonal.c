/* What orthogonal updates are made of beside products: a momentum, a matrix's division by its norm, polynomials of
 * square matrices. */
#include "worker/device/cpu/kernels.h"
#include "worker/device/cpu/low_precision.h"

#include <math.h>

/* PIECE: elements on the stack at a time. */
enum { PIECE = 1024, ELEMENTS_PER_TASK = 16384 };

static int64_t piece_of(int64_t begin, int64_t end) {
    return end - begin < PIECE ? end - begin : PIECE;
}

/* An operation and a number that all its elements share. */
struct momentum {
    const struct ls_op_momentum *op;
    float factor;
};
struct normalize {
    const struct ls_op_normalize *op;
    float factor;
};

/* The loops are functions of their own, so that the compiler makes one order of operations and not several for the
 * places of call. */

static __attribute__((noinline)) void gain(const struct momentum *a, float *m, const float *gradient, float *output,
                                           int64_t count) {
    const float beta = a->op->beta, factor = a->factor;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        const float g = gradient[i] * factor, next = beta * m[i] + (1.0f - beta) * g;
        m[i] = next;
        output[i] = beta * next + (1.0f - beta) * g;
    }
}

static void momentum(const void *arguments, int64_t begin, int64_t end) {
    const struct momentum *a = arguments;
    float output[PIECE];
    for (int64_t i = begin; i < end; i += PIECE) {
        const int64_t count = piece_of(i, end);
        gain(a, a->op->m + i, a->op->gradient + i, output, count);
        ls_narrow(a->op->dtype, ls_element(a->op->dtype, a->op->output, i), output, count);
    }
}

void ls_cpu_momentum(int threads, const struct ls_op_momentum *op) {
    const struct momentum a = {.op = op, .factor = op->factor ? *op->factor : 1.0f};
    if (op->found_inf && *op->found_inf) return;
    ls_cpu_parallel(threads, op->count, ELEMENTS_PER_TASK, momentum, &a);
}

static void normalize(const void *arguments, int64_t begin, int64_t end) {
    const struct normalize *a = arguments;
    const enum ls_dtype dtype = a->op->dtype;
    float x[PIECE];
    for (int64_t i = begin; i < end; i += PIECE) {
        const int64_t count = piece_of(i, end);
        ls_widen(dtype, x, ls_element(dtype, a->op->x, i), count);
        for (int64_t k = 0; k < count; k++) x[k] *= a->factor;
        ls_narrow(dtype, ls_element(dtype, a->op->x, i), x, count);
    }
}

void ls_cpu_normalize(int threads, const struct ls_op_normalize *op) {
    const double norm = sqrt(op->squared[0]);
    const struct normalize a = {.op = op, .factor = (float)(1.0 / (norm > 1e-7 ? norm : 1e-7))};
    ls_cpu_parallel(threads, op->count, ELEMENTS_PER_TASK, normalize, &a);
}

static __attribute__((noinline)) void combine(float b, float *x, float c, const float *y, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) x[i] = b * x[i] + c * y[i];
}

/* Rows [begin, end). */
static void polynomial(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_polynomial *op = arguments;
    float x[PIECE], y[PIECE];
    for (int64_t row = begin; row < end; row++) {
        for (int64_t column = 0; column < op->side; column += PIECE) {
            const int64_t count = piece_of(column, op->side), first = row * op->side + column;
            ls_widen(op->dtype, x, ls_element(op->dtype, op->x, first), count);
            ls_widen(op->dtype, y, ls_element(op->dtype, op->y, first), count);
            combine(op->b, x, op->c, y, count);
            if (row >= column && row < column + count) x[row - column] += op->a;
            ls_narrow(op->dtype, ls_element(op->dtype, op->output, first), x, count);
        }
    }
}

void ls_cpu_polynomial(int threads, const struct ls_op_polynomial *op) {
    const int64_t rows = op->side > 0 ? ELEMENTS_PER_TASK / op->side + 1 : 1;
    ls_cpu_parallel(threads, op->side, rows, polynomial, op);
}
