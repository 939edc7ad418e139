/* Layer and root-mean-square normalisation. Both are one computation: the second takes the mean as zero and has no
 * bias. */
#include "worker/device/cpu/kernels.h"

#include <math.h>
#include <stddef.h>

/* Rows added up before they join a parameter's gradient; the order of that sum, hence its bits, follows from the shape
 * alone. */
enum { ROWS_PER_BLOCK = 32, COLUMNS_PER_TASK = 64, ELEMENTS_PER_TASK = 16384 };

struct norm {
    bool centred;
    float *output, *mean, *rstd;
    const float *input, *weight, *bias;
    int64_t rows, columns;
    float epsilon;
};

struct norm_gradient {
    bool centred, accumulate_input;
    float *input, *weight, *bias; /* gradients */
    const float *output_gradient, *x, *scale, *mean, *rstd;
    int64_t rows, columns;
};

static int64_t rows_per_task(int64_t columns) {
    return columns >= ELEMENTS_PER_TASK ? 1 : ELEMENTS_PER_TASK / columns;
}

static void forward(const void *arguments, int64_t begin, int64_t end) {
    const struct norm *n = arguments;
    const int64_t columns = n->columns;
    for (int64_t row = begin; row < end; row++) {
        const float *x = n->input + row * columns;
        float *y = n->output + row * columns;
        float mean = 0.0f, square = 0.0f;
        if (n->centred) {
#pragma omp simd reduction(+ : mean)
            for (int64_t c = 0; c < columns; c++) mean += x[c];
            mean /= (float)columns;
        }
#pragma omp simd reduction(+ : square)
        for (int64_t c = 0; c < columns; c++) square += (x[c] - mean) * (x[c] - mean);
        const float rstd = 1.0f / sqrtf(square / (float)columns + n->epsilon);
        if (n->bias) {
#pragma omp simd
            for (int64_t c = 0; c < columns; c++) y[c] = (x[c] - mean) * rstd * n->weight[c] + n->bias[c];
        } else {
#pragma omp simd
            for (int64_t c = 0; c < columns; c++) y[c] = (x[c] - mean) * rstd * n->weight[c];
        }
        if (n->mean) n->mean[row] = mean;
        if (n->rstd) n->rstd[row] = rstd;
    }
}

/* With x^ = (x - mean) rstd and d = dy * weight: dx = rstd (d - mean(d) - x^ mean(d x^)), the second term only where
 * the mean is taken off. */
static void backward_input(const void *arguments, int64_t begin, int64_t end) {
    const struct norm_gradient *n = arguments;
    const int64_t columns = n->columns;
    for (int64_t row = begin; row < end; row++) {
        const float *dy = n->output_gradient + row * columns, *x = n->x + row * columns, *weight = n->scale;
        float *dx = n->input + row * columns;
        const float mean = n->centred ? n->mean[row] : 0.0f, rstd = n->rstd[row];
        float sum = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : sum, product)
        for (int64_t c = 0; c < columns; c++) {
            const float d = dy[c] * weight[c];
            sum += d;
            product += d * ((x[c] - mean) * rstd);
        }
        const float d_mean = n->centred ? sum / (float)columns : 0.0f, d_product = product / (float)columns;
        if (n->accumulate_input) {
#pragma omp simd
            for (int64_t c = 0; c < columns; c++)
                dx[c] += rstd * (dy[c] * weight[c] - d_mean - (x[c] - mean) * rstd * d_product);
        } else {
#pragma omp simd
            for (int64_t c = 0; c < columns; c++)
                dx[c] = rstd * (dy[c] * weight[c] - d_mean - (x[c] - mean) * rstd * d_product);
        }
    }
}

/* Adds one block of rows to the gradients of weight and bias, columns [begin, end): per piece of columns that stays in
 * the first cache, four rows at a time, so that an accumulator is loaded and stored once for four. */
static void backward_parameters_block(const struct norm_gradient *n, int64_t row, int64_t begin, int64_t end) {
    enum { PIECE = 512 };
    const int64_t columns = n->columns;
    const int64_t rows = n->rows - row < ROWS_PER_BLOCK ? n->rows - row : ROWS_PER_BLOCK;
    for (int64_t piece = begin; piece < end; piece += PIECE) {
        const int64_t width = end - piece < PIECE ? end - piece : PIECE;
        float product[PIECE] = {0}, sum[PIECE] = {0};
        int64_t r = 0;
        for (; r + 4 <= rows; r += 4) {
            const float *d0 = n->output_gradient + (row + r) * columns + piece,
                        *x0 = n->x + (row + r) * columns + piece;
            const float *d1 = d0 + columns, *d2 = d1 + columns, *d3 = d2 + columns;
            const float *x1 = x0 + columns, *x2 = x1 + columns, *x3 = x2 + columns;
            const float *s = n->rstd + row + r, none[4] = {0}, *m = n->centred ? n->mean + row + r : none;
            const float s0 = s[0], s1 = s[1], s2 = s[2], s3 = s[3], m0 = m[0], m1 = m[1], m2 = m[2], m3 = m[3];
#pragma omp simd
            for (int64_t c = 0; c < width; c++) {
                product[c] += (d0[c] * ((x0[c] - m0) * s0) + d1[c] * ((x1[c] - m1) * s1)) +
                              (d2[c] * ((x2[c] - m2) * s2) + d3[c] * ((x3[c] - m3) * s3));
                sum[c] += (d0[c] + d1[c]) + (d2[c] + d3[c]);
            }
        }
        for (; r < rows; r++) {
            const float *d = n->output_gradient + (row + r) * columns + piece, *x = n->x + (row + r) * columns + piece;
            const float rstd = n->rstd[row + r], mean = n->centred ? n->mean[row + r] : 0.0f;
#pragma omp simd
            for (int64_t c = 0; c < width; c++) {
                product[c] += d[c] * ((x[c] - mean) * rstd);
                sum[c] += d[c];
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

static void backward_parameters(const void *arguments, int64_t begin, int64_t end) {
    const struct norm_gradient *n = arguments;
    for (int64_t row = 0; row < n->rows; row += ROWS_PER_BLOCK) backward_parameters_block(n, row, begin, end);
}

static void run_backward(int threads, const struct norm_gradient *n) {
    if (threads == 1 ||
        n->rows * n->columns <= ELEMENTS_PER_TASK) { /* both parts while a block is in the cache; the same sums */
        for (int64_t row = 0; row < n->rows; row += ROWS_PER_BLOCK) {
            const int64_t end = n->rows - row < ROWS_PER_BLOCK ? n->rows : row + ROWS_PER_BLOCK;
            backward_input(n, row, end);
            backward_parameters_block(n, row, 0, n->columns);
        }
        return;
    }
    ls_cpu_parallel(threads, n->rows, rows_per_task(n->columns), backward_input, n);
    ls_cpu_parallel(threads, n->columns, COLUMNS_PER_TASK, backward_parameters, n);
}

void ls_cpu_layernorm_forward(int threads, const struct ls_op_layernorm_forward *op) {
    const struct norm n = {.centred = true,
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
    const struct norm_gradient n = {.centred = true,
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
    const struct norm n = {.output = op->output,
                           .rstd = op->rstd,
                           .input = op->input,
                           .weight = op->weight,
                           .rows = op->rows,
                           .columns = op->columns,
                           .epsilon = op->epsilon};
    ls_cpu_parallel(threads, n.rows, rows_per_task(n.columns), forward, &n);
}

void ls_cpu_rmsnorm_backward(int threads, const struct ls_op_rmsnorm_backward *op) {
    const struct norm_gradient n = {.accumulate_input = op->accumulate_input,
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
