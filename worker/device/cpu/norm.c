/* Layer and root-mean-square normalisation, written once for all types: values are read into fp32 and rounded once as
 * they are stored. Both are one computation: the second takes the mean as zero and has no bias. */
#include "worker/device/cpu/kernels.h"
#include "worker/device/cpu/low_precision.h"

#include <math.h>
#include <stddef.h>

#define INLINE static inline __attribute__((always_inline))

/* Calls `function` with the type as a constant, so that its loops have no branch. */
#define WITH_TYPE(dtype, function, ...)                                                                                \
    switch (dtype) {                                                                                                   \
    case LS_FP32: function(LS_FP32, __VA_ARGS__); break;                                                               \
    case LS_BF16: function(LS_BF16, __VA_ARGS__); break;                                                               \
    case LS_FP16: function(LS_FP16, __VA_ARGS__); break;                                                               \
    }

/* Rows added up before they join a parameter's gradient; the order of that sum, hence its bits, follows from the shape
 * alone. */
enum { ROWS_PER_BLOCK = 32, COLUMNS_PER_TASK = 64, ELEMENTS_PER_TASK = 16384 };

struct norm {
    enum ls_dtype dtype;
    bool centred;
    void *output;
    float *mean, *rstd;
    const void *input, *weight, *bias;
    int64_t rows, columns;
    float epsilon;
};

struct norm_gradient {
    enum ls_dtype dtype;
    bool centred, accumulate_input;
    void *input;          /* its gradient */
    float *weight, *bias; /* their gradients */
    const void *output_gradient, *x, *scale;
    const float *mean, *rstd;
    int64_t rows, columns;
};

static int64_t rows_per_task(int64_t columns) {
    return columns >= ELEMENTS_PER_TASK ? 1 : ELEMENTS_PER_TASK / columns;
}

INLINE void forward_rows(const enum ls_dtype t, const struct norm *n, int64_t begin, int64_t end) {
    const int64_t columns = n->columns;
    const void *weight = n->weight, *bias = n->bias;
    for (int64_t row = begin; row < end; row++) {
        const void *x = ls_element(t, n->input, row * columns);
        void *y = ls_element(t, n->output, row * columns);
        float mean = 0.0f, square = 0.0f;
        if (n->centred) {
#pragma omp simd reduction(+ : mean)
            for (int64_t c = 0; c < columns; c++) mean += ls_load(t, x, c);
            mean /= (float)columns;
        }
#pragma omp simd reduction(+ : square)
        for (int64_t c = 0; c < columns; c++) square += (ls_load(t, x, c) - mean) * (ls_load(t, x, c) - mean);
        const float rstd = 1.0f / sqrtf(square / (float)columns + n->epsilon);
        if (bias) {
#pragma omp simd
            for (int64_t c = 0; c < columns; c++)
                ls_store(t, y, c, (ls_load(t, x, c) - mean) * rstd * ls_load(t, weight, c) + ls_load(t, bias, c));
        } else {
#pragma omp simd
            for (int64_t c = 0; c < columns; c++)
                ls_store(t, y, c, (ls_load(t, x, c) - mean) * rstd * ls_load(t, weight, c));
        }
        if (n->mean) n->mean[row] = mean;
        if (n->rstd) n->rstd[row] = rstd;
    }
}

static void forward(const void *arguments, int64_t begin, int64_t end) {
    const struct norm *n = arguments;
    WITH_TYPE(n->dtype, forward_rows, n, begin, end)
}

/* With x^ = (x - mean) rstd and d = dy * weight: dx = rstd (d - mean(d) - x^ mean(d x^)), the second term only where
 * the mean is taken off. */
INLINE void backward_input_rows(const enum ls_dtype t, const struct norm_gradient *n, int64_t begin, int64_t end) {
    const int64_t columns = n->columns;
    const void *weight = n->scale;
    for (int64_t row = begin; row < end; row++) {
        const void *dy = ls_element(t, n->output_gradient, row * columns), *x = ls_element(t, n->x, row * columns);
        void *dx = ls_element(t, n->input, row * columns);
        const float mean = n->centred ? n->mean[row] : 0.0f, rstd = n->rstd[row];
        float sum = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : sum, product)
        for (int64_t c = 0; c < columns; c++) {
            const float d = ls_load(t, dy, c) * ls_load(t, weight, c);
            sum += d;
            product += d * ((ls_load(t, x, c) - mean) * rstd);
        }
        const float d_mean = n->centred ? sum / (float)columns : 0.0f, d_product = product / (float)columns;
        if (n->accumulate_input) {
#pragma omp simd
            for (int64_t c = 0; c < columns; c++)
                ls_store(t, dx, c,
                         ls_load(t, dx, c) + rstd * (ls_load(t, dy, c) * ls_load(t, weight, c) - d_mean -
                                                     (ls_load(t, x, c) - mean) * rstd * d_product));
        } else {
#pragma omp simd
            for (int64_t c = 0; c < columns; c++)
                ls_store(t, dx, c,
                         rstd * (ls_load(t, dy, c) * ls_load(t, weight, c) - d_mean -
                                 (ls_load(t, x, c) - mean) * rstd * d_product));
        }
    }
}

static void backward_input(const void *arguments, int64_t begin, int64_t end) {
    const struct norm_gradient *n = arguments;
    WITH_TYPE(n->dtype, backward_input_rows, n, begin, end)
}

/* Adds one block of rows to the gradients of weight and bias, columns [begin, end): per piece of columns that stays in
 * the first cache, four rows at a time, so that an accumulator is loaded and stored once for four. */
INLINE void backward_parameters_block(const enum ls_dtype t, const struct norm_gradient *n, int64_t row, int64_t begin,
                                      int64_t end) {
    enum { PIECE = 512 };
    const int64_t columns = n->columns;
    const int64_t rows = n->rows - row < ROWS_PER_BLOCK ? n->rows - row : ROWS_PER_BLOCK;
    for (int64_t piece = begin; piece < end; piece += PIECE) {
        const int64_t width = end - piece < PIECE ? end - piece : PIECE;
        float product[PIECE] = {0}, sum[PIECE] = {0};
        int64_t r = 0;
        for (; r + 4 <= rows; r += 4) {
            const int64_t at = (row + r) * columns + piece;
            const void *d0 = ls_element(t, n->output_gradient, at), *x0 = ls_element(t, n->x, at);
            const void *d1 = ls_element(t, d0, columns), *x1 = ls_element(t, x0, columns);
            const void *d2 = ls_element(t, d1, columns), *x2 = ls_element(t, x1, columns);
            const void *d3 = ls_element(t, d2, columns), *x3 = ls_element(t, x2, columns);
            const float *s = n->rstd + row + r, none[4] = {0}, *m = n->centred ? n->mean + row + r : none;
            const float s0 = s[0], s1 = s[1], s2 = s[2], s3 = s[3], m0 = m[0], m1 = m[1], m2 = m[2], m3 = m[3];
#pragma omp simd
            for (int64_t c = 0; c < width; c++) {
                const float a = ls_load(t, d0, c), b = ls_load(t, d1, c), e = ls_load(t, d2, c), f = ls_load(t, d3, c);
                product[c] += (a * ((ls_load(t, x0, c) - m0) * s0) + b * ((ls_load(t, x1, c) - m1) * s1)) +
                              (e * ((ls_load(t, x2, c) - m2) * s2) + f * ((ls_load(t, x3, c) - m3) * s3));
                sum[c] += (a + b) + (e + f);
            }
        }
        for (; r < rows; r++) {
            const int64_t at = (row + r) * columns + piece;
            const void *d = ls_element(t, n->output_gradient, at), *x = ls_element(t, n->x, at);
            const float rstd = n->rstd[row + r], mean = n->centred ? n->mean[row + r] : 0.0f;
#pragma omp simd
            for (int64_t c = 0; c < width; c++) {
                product[c] += ls_load(t, d, c) * ((ls_load(t, x, c) - mean) * rstd);
                sum[c] += ls_load(t, d, c);
            }
        }
#pragma omp simd
        for (int64_t c = 0; c < width; c++) n->weight[piece + c] += product[c];
        if (n->bias) {
#pragma omp simd
            for (int64_t c = 0; c < width; c++) n->bias[piece + c] += sum[c];
        }
    }
}

static void backward_parameters_rows(const struct norm_gradient *n, int64_t row, int64_t begin, int64_t end) {
    WITH_TYPE(n->dtype, backward_parameters_block, n, row, begin, end)
}

static void backward_parameters(const void *arguments, int64_t begin, int64_t end) {
    const struct norm_gradient *n = arguments;
    for (int64_t row = 0; row < n->rows; row += ROWS_PER_BLOCK) backward_parameters_rows(n, row, begin, end);
}

/* The parameters first: the input's gradient may lie over what they read. */
static void run_backward(int threads, const struct norm_gradient *n) {
    if (threads == 1 ||
        n->rows * n->columns <= ELEMENTS_PER_TASK) { /* both parts while a block is in the cache; the same sums */
        for (int64_t row = 0; row < n->rows; row += ROWS_PER_BLOCK) {
            const int64_t end = n->rows - row < ROWS_PER_BLOCK ? n->rows : row + ROWS_PER_BLOCK;
            backward_parameters_rows(n, row, 0, n->columns);
            backward_input(n, row, end);
        }
        return;
    }
    ls_cpu_parallel(threads, n->columns, COLUMNS_PER_TASK, backward_parameters, n);
    ls_cpu_parallel(threads, n->rows, rows_per_task(n->columns), backward_input, n);
}

void ls_cpu_layernorm_forward(int threads, const struct ls_op_layernorm_forward *op) {
    const struct norm n = {.dtype = op->dtype,
                           .centred = true,
                           .output = op->output,
                           .mean = op->mean,
                           .rstd = op->rstd,
                           .input = op->input,
                           .weight = op->weight,
                           .bias = op->bias,
                           .rows = op->rows,
                           .columns = op->columns,
                           .epsilon = op->epsilon};
    ls_cpu_parallel(threads, n.rows, rows_per_task(n.columns), forward, &n);
}

void ls_cpu_layernorm_backward(int threads, const struct ls_op_layernorm_backward *op) {
    const struct norm_gradient n = {.dtype = op->dtype,
                                    .centred = true,
                                    .accumulate_input = op->accumulate_input,
                                    .input = op->input_gradient,
                                    .weight = op->weight_gradient,
                                    .bias = op->bias_gradient,
                                    .output_gradient = op->output_gradient,
                                    .x = op->input,
                                    .scale = op->weight,
                                    .mean = op->mean,
                                    .rstd = op->rstd,
                                    .rows = op->rows,
                                    .columns = op->columns};
    run_backward(threads, &n);
}

void ls_cpu_rmsnorm_forward(int threads, const struct ls_op_rmsnorm_forward *op) {
    const struct norm n = {.dtype = op->dtype,
                           .output = op->output,
                           .rstd = op->rstd,
                           .input = op->input,
                           .weight = op->weight,
                           .rows = op->rows,
                           .columns = op->columns,
                           .epsilon = op->epsilon};
    ls_cpu_parallel(threads, n.rows, rows_per_task(n.columns), forward, &n);
}

void ls_cpu_rmsnorm_backward(int threads, const struct ls_op_rmsnorm_backward *op) {
    const struct norm_gradient n = {.dtype = op->dtype,
                                    .accumulate_input = op->accumulate_input,
                                    .input = op->input_gradient,
                                    .weight = op->weight_gradient,
                                    .output_gradient = op->output_gradient,
                                    .x = op->input,
                                    .scale = op->weight,
                                    .rstd = op->rstd,
                                    .rows = op->rows,
                                    .columns = op->columns};
    run_backward(threads, &n);
}
