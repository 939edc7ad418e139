/* Ranges to and from bf16 and fp16, and the operations made of them: element by element in pieces that pass through the
 * fp32 kernels, and matrix products in tiles. */
#include "worker/device/cpu/low_precision.h"

#include "worker/device/cpu/activation.h"
#include "worker/device/cpu/kernels.h"
#include "worker/device/cpu/low_precision_kernels.h"

#include <assert.h>

/* PIECE: elements on the stack at a time. */
enum { PIECE = 1024, ELEMENTS_PER_TASK = 16384 };

void ls_widen(enum ls_dtype dtype, float *to, const void *from, int64_t count) {
    if (dtype == LS_FP32) {
        memcpy(to, from, (size_t)count * sizeof *to);
    } else if (dtype == LS_BF16) {
        for (int64_t i = 0; i < count; i++) to[i] = ls_load(LS_BF16, from, i);
    } else {
        for (int64_t i = 0; i < count; i++) to[i] = ls_load(LS_FP16, from, i);
    }
}

void ls_narrow(enum ls_dtype dtype, void *to, const float *from, int64_t count) {
    if (dtype == LS_FP32) {
        memcpy(to, from, (size_t)count * sizeof *from);
    } else if (dtype == LS_BF16) {
        for (int64_t i = 0; i < count; i++) ls_store(LS_BF16, to, i, from[i]);
    } else {
        for (int64_t i = 0; i < count; i++) ls_store(LS_FP16, to, i, from[i]);
    }
}

static int64_t piece_of(int64_t begin, int64_t end) {
    return end - begin < PIECE ? end - begin : PIECE;
}

static void convert(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_convert *op = arguments;
    ls_narrow(op->dtype, ls_element(op->dtype, op->output, begin), op->input + begin, end - begin);
}

void ls_cpu_convert(int threads, const struct ls_op_convert *op) {
    ls_cpu_parallel(threads, op->count, ELEMENTS_PER_TASK, convert, op);
}

static void widen(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_widen *op = arguments;
    float x[PIECE];
    for (int64_t i = begin; i < end; i += PIECE) {
        const int64_t count = piece_of(i, end);
        ls_widen(op->dtype, x, ls_element(op->dtype, op->input, i), count);
        for (int64_t k = 0; k < count; k++) op->output[i + k] = (op->accumulate ? op->output[i + k] : 0.0f) + x[k];
    }
}

void ls_cpu_widen(int threads, const struct ls_op_widen *op) {
    ls_cpu_parallel(threads, op->count, ELEMENTS_PER_TASK, widen, op);
}

static void add(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_add *op = arguments;
    float a[PIECE], b[PIECE];
    for (int64_t i = begin; i < end; i += PIECE) {
        const int64_t count = piece_of(i, end);
        ls_widen(op->dtype, a, ls_element(op->dtype, op->a, i), count);
        ls_widen(op->dtype, b, ls_element(op->dtype, op->b, i), count);
        ls_cpu_add(1, &(struct ls_op_add){.sum = a, .a = a, .b = b, .count = count});
        ls_narrow(op->dtype, ls_element(op->dtype, op->sum, i), a, count);
    }
}

void ls_cpu_low_add(int threads, const struct ls_op_add *op) {
    ls_cpu_parallel(threads, op->count, ELEMENTS_PER_TASK, add, op);
}

static void gelu_forward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_gelu_forward *op = arguments;
    float x[PIECE];
    for (int64_t i = begin; i < end; i += PIECE) {
        const int64_t count = piece_of(i, end);
        ls_widen(op->dtype, x, ls_element(op->dtype, op->input, i), count);
        ls_cpu_gelu_forward(1, &(struct ls_op_gelu_forward){.output = x, .input = x, .count = count});
        ls_narrow(op->dtype, ls_element(op->dtype, op->output, i), x, count);
    }
}

void ls_cpu_low_gelu_forward(int threads, const struct ls_op_gelu_forward *op) {
    ls_cpu_parallel(threads, op->count, ELEMENTS_PER_TASK, gelu_forward, op);
}

static void gelu_backward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_gelu_backward *op = arguments;
    float x[PIECE], d[PIECE];
    for (int64_t i = begin; i < end; i += PIECE) {
        const int64_t count = piece_of(i, end);
        ls_widen(op->dtype, x, ls_element(op->dtype, op->input, i), count);
        ls_widen(op->dtype, d, ls_element(op->dtype, op->output_gradient, i), count);
        ls_cpu_gelu_backward(
            1, &(struct ls_op_gelu_backward){.input_gradient = d, .output_gradient = d, .input = x, .count = count});
        ls_narrow(op->dtype, ls_element(op->dtype, op->input_gradient, i), d, count);
    }
}

void ls_cpu_low_gelu_backward(int threads, const struct ls_op_gelu_backward *op) {
    ls_cpu_parallel(threads, op->count, ELEMENTS_PER_TASK, gelu_backward, op);
}

static void swiglu_forward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_swiglu_forward *op = arguments;
    float gate_up[2 * PIECE], output[PIECE];
    for (int64_t row = begin; row < end; row++)
        for (int64_t c = 0; c < op->columns; c += PIECE) {
            const int64_t count = piece_of(c, op->columns), at = 2 * row * op->columns + c;
            ls_widen(op->dtype, gate_up, ls_element(op->dtype, op->gate_up, at), count);
            ls_widen(op->dtype, gate_up + count, ls_element(op->dtype, op->gate_up, at + op->columns), count);
            ls_cpu_swiglu_forward(
                1, &(struct ls_op_swiglu_forward){.output = output, .gate_up = gate_up, .rows = 1, .columns = count});
            ls_narrow(op->dtype, ls_element(op->dtype, op->output, row * op->columns + c), output, count);
        }
}

void ls_cpu_low_swiglu_forward(int threads, const struct ls_op_swiglu_forward *op) {
    ls_cpu_parallel(threads, op->rows, 1 + ELEMENTS_PER_TASK / (op->columns + 1), swiglu_forward, op);
}

static void swiglu_backward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_swiglu_backward *op = arguments;
    const enum ls_dtype dtype = op->dtype;
    float gate_up[2 * PIECE], d[PIECE];
    for (int64_t row = begin; row < end; row++)
        for (int64_t c = 0; c < op->columns; c += PIECE) {
            const int64_t count = piece_of(c, op->columns), at = 2 * row * op->columns + c, up = at + op->columns;
            ls_widen(dtype, gate_up, ls_element(dtype, op->gate_up, at), count);
            ls_widen(dtype, gate_up + count, ls_element(dtype, op->gate_up, up), count);
            ls_widen(dtype, d, ls_element(dtype, op->output_gradient, row * op->columns + c), count);
            ls_cpu_swiglu_backward(1, &(struct ls_op_swiglu_backward){.gate_up_gradient = gate_up,
                                                                      .output_gradient = d,
                                                                      .gate_up = gate_up,
                                                                      .rows = 1,
                                                                      .columns = count});
            ls_narrow(dtype, ls_element(dtype, op->gate_up_gradient, at), gate_up, count);
            ls_narrow(dtype, ls_element(dtype, op->gate_up_gradient, up), gate_up + count, count);
        }
}

void ls_cpu_low_swiglu_backward(int threads, const struct ls_op_swiglu_backward *op) {
    ls_cpu_parallel(threads, op->rows, 1 + ELEMENTS_PER_TASK / (op->columns + 1), swiglu_backward, op);
}

static void rope(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_rope *op = arguments;
    const int64_t half = op->head_size / 2;
    const float sign = op->inverse ? -1.0f : 1.0f;
    for (int64_t row = begin; row < end; row++) {
        const float *angles = op->table + (op->first_position + row % op->length) * half * 2;
        for (int64_t head = 0; head < op->heads; head++) {
            const int64_t at = row * op->stride + head * op->head_size;
            for (int64_t i = at; i < at + half; i++) {
                const float cosine = angles[2 * (i - at)], sine = sign * angles[2 * (i - at) + 1];
                const float x = ls_load(op->dtype, op->x, i), y = ls_load(op->dtype, op->x, i + half);
                ls_store(op->dtype, op->x, i, x * cosine - y * sine);
                ls_store(op->dtype, op->x, i + half, y * cosine + x * sine);
            }
        }
    }
}

void ls_cpu_low_rope(int threads, const struct ls_op_rope *op) {
    ls_cpu_parallel(threads, op->rows, 1 + ELEMENTS_PER_TASK / (op->heads * op->head_size + 1), rope, op);
}

static void bias_backward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_bias_backward *op = arguments;
    float sum[PIECE], row_gradient[PIECE];
    for (int64_t c = begin; c < end; c += PIECE) {
        const int64_t count = piece_of(c, end);
        memset(sum, 0, sizeof sum);
        for (int64_t row = 0; row < op->rows; row++) {
            ls_widen(op->dtype, row_gradient, ls_element(op->dtype, op->output_gradient, row * op->columns + c), count);
            for (int64_t i = 0; i < count; i++) sum[i] += row_gradient[i];
        }
        for (int64_t i = 0; i < count; i++) op->bias_gradient[c + i] += sum[i];
    }
}

void ls_cpu_low_bias_backward(int threads, const struct ls_op_bias_backward *op) {
    ls_cpu_parallel(threads, op->columns, 64, bias_backward, op);
}

static void embedding_forward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_embedding_forward *op = arguments;
    const int64_t channels = op->channels;
    for (int64_t row = begin; row < end; row++) {
        const int64_t token = op->tokens[row] * channels;
        const int64_t position = (op->first_position + row % op->length) * channels;
        for (int64_t c = 0; c < channels; c++) {
            float value = ls_load(op->dtype, op->token_table, token + c);
            if (op->position_table) value += ls_load(op->dtype, op->position_table, position + c);
            ls_store(op->dtype, op->output, row * channels + c, value);
        }
    }
}

void ls_cpu_low_embedding_forward(int threads, const struct ls_op_embedding_forward *op) {
    ls_cpu_parallel(threads, op->batch * op->length, 1 + ELEMENTS_PER_TASK / (op->channels + 1), embedding_forward, op);
}

static void embedding_backward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_embedding_backward *op = arguments;
    const int64_t channels = op->channels;
    for (int64_t row = 0; row < op->batch * op->length; row++)
        for (int64_t c = begin; c < end; c++) {
            const float gradient = ls_load(op->dtype, op->output_gradient, row * channels + c);
            if (op->token_gradient) op->token_gradient[op->tokens[row] * channels + c] += gradient;
            if (op->position_gradient) op->position_gradient[row % op->length * channels + c] += gradient;
        }
}

void ls_cpu_low_embedding_backward(int threads, const struct ls_op_embedding_backward *op) {
    ls_cpu_parallel(threads, op->channels, 64, embedding_backward, op);
}

/* Rows and columns of a tile, and how much of the products' sums it takes at a time. */
enum { TILE_ROWS = 128, TILE_COLUMNS = 256, TILE_DEPTH = 256 };

/* Widens a block [rows, columns] of a matrix to rows of `columns`. */
static void widen_block(enum ls_dtype dtype, float *to, const void *from, int64_t stride, int64_t row, int64_t column,
                        int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++)
        ls_widen(dtype, to + i * columns, ls_element(dtype, from, (row + i) * stride + column), columns);
}

/* `sums` of row `row` of the result from column `column` on: the epilogue, and rounding. What GELU takes is what was
 * stored. Always inlined: written once for a type that the compiler knows. */
static inline __attribute__((always_inline)) void finish_row(const enum ls_dtype t, const struct ls_op_gemm *op,
                                                             const float *sums, int64_t row, int64_t column,
                                                             int64_t width) {
    const int64_t at = row * op->ldc + column;
    void *c = ls_element(t, op->c, at), *aux = op->aux ? ls_element(t, op->aux, at) : NULL;
    const void *bias = op->bias ? ls_element(t, op->bias, column) : NULL;
    const void *residual = op->residual ? ls_element(t, op->residual, at) : NULL;
    switch (op->epilogue) {
    case LS_EPILOGUE_NONE:
#pragma omp simd
        for (int64_t j = 0; j < width; j++) ls_store(t, c, j, residual ? sums[j] + ls_load(t, residual, j) : sums[j]);
        break;
    case LS_EPILOGUE_BIAS: assert(bias);
#pragma omp simd
        for (int64_t j = 0; j < width; j++) {
            const float x = sums[j] + ls_load(t, bias, j);
            ls_store(t, c, j, residual ? x + ls_load(t, residual, j) : x);
        }
        break;
    case LS_EPILOGUE_BIAS_GELU: assert(bias && aux);
#pragma omp simd
        for (int64_t j = 0; j < width; j++)
            ls_store(t, c, j, ls_gelu(ls_store(t, aux, j, sums[j] + ls_load(t, bias, j))));
        break;
    case LS_EPILOGUE_GELU_GRAD: assert(aux);
#pragma omp simd
        for (int64_t j = 0; j < width; j++) ls_store(t, c, j, sums[j] * ls_gelu_derivative(ls_load(t, aux, j)));
        break;
    }
}

/* Rows of sums, `stride` apart, whose result begins at [row, column]; an fp32 result is the sums. */
static void finish_rows(const struct ls_op_gemm *op, const float *sums, int64_t stride, int64_t row, int64_t row_end,
                        int64_t column, int64_t width) {
    for (; row < row_end; row++, sums += stride) {
        if (op->c_fp32)
            memcpy((float *)op->c + row * op->ldc + column, sums, (size_t)width * sizeof *sums);
        else if (op->dtype == LS_BF16)
            finish_row(LS_BF16, op, sums, row, column, width);
        else
            finish_row(LS_FP16, op, sums, row, column, width);
    }
}

static void gemm_tile(const struct ls_op_gemm *op, int64_t row, int64_t column) {
    float a[TILE_ROWS * TILE_DEPTH] __attribute__((aligned(64))),
        b[TILE_DEPTH * TILE_COLUMNS] __attribute__((aligned(64)));
    float c[TILE_ROWS * TILE_COLUMNS] __attribute__((aligned(64)));
    const int64_t rows = op->m - row < TILE_ROWS ? op->m - row : TILE_ROWS;
    const int64_t columns = op->n - column < TILE_COLUMNS ? op->n - column : TILE_COLUMNS;
    const enum ls_dtype type = op->c_fp32 ? LS_FP32 : op->dtype;
    memset(c, 0, sizeof c);
    if (op->accumulate) widen_block(type, c, op->c, op->ldc, row, column, rows, columns);
    for (int64_t k = 0; k < op->k; k += TILE_DEPTH) {
        const int64_t depth = op->k - k < TILE_DEPTH ? op->k - k : TILE_DEPTH;
        if (op->transpose_a)
            widen_block(op->dtype, a, op->a, op->lda, k, row, depth, rows);
        else
            widen_block(op->dtype, a, op->a, op->lda, row, k, rows, depth);
        if (op->transpose_b)
            widen_block(op->dtype, b, op->b, op->ldb, column, k, columns, depth);
        else
            widen_block(op->dtype, b, op->b, op->ldb, k, column, depth, columns);
        ls_cpu_gemm(1, &(struct ls_op_gemm){.c = c,
                                            .a = a,
                                            .b = b,
                                            .m = rows,
                                            .n = columns,
                                            .k = depth,
                                            .lda = op->transpose_a ? rows : depth,
                                            .ldb = op->transpose_b ? depth : columns,
                                            .ldc = columns,
                                            .transpose_a = op->transpose_a,
                                            .transpose_b = op->transpose_b,
                                            .accumulate = true});
    }
    finish_rows(op, c, columns, row, row + rows, column, columns);
}

static int64_t tiles_across(const struct ls_op_gemm *op) {
    return (op->n + TILE_COLUMNS - 1) / TILE_COLUMNS;
}

static void gemm(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_gemm *op = arguments;
    for (int64_t i = begin; i < end; i++)
        gemm_tile(op, i / tiles_across(op) * TILE_ROWS, i % tiles_across(op) * TILE_COLUMNS);
}

static void finish_pairs(const struct ls_op_gemm *op, float *sums, int64_t stride, int64_t row, int64_t row_end,
                         int64_t column, int64_t column_end) {
    if (op->c_fp32) return; /* the sums are there */
    if (op->accumulate)
        for (int64_t i = row; i < row_end; i++)
            for (int64_t j = column; j < column_end; j++)
                sums[(i - row) * stride + j - column] += ls_load(LS_BF16, op->c, i * op->ldc + j);
    finish_rows(op, sums, stride, row, row_end, column, column_end - column);
}

void ls_cpu_low_gemm(int threads, const struct ls_op_gemm *op) {
    assert(!op->c_fp32 || (op->epilogue == LS_EPILOGUE_NONE && !op->residual));
    if (ls_pairs_serve(op->dtype, op->m, op->n, op->k))
        ls_cpu_gemm_pairs(threads, op, finish_pairs);
    else
        ls_cpu_parallel(threads, (op->m + TILE_ROWS - 1) / TILE_ROWS * tiles_across(op), 1, gemm, op);
}
