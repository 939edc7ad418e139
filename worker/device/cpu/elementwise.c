/* Element by element: sums, GELU, SwiGLU, rotary embedding; and the column sums of bias gradients. */
#include "worker/device/cpu/activation.h"
#include "worker/device/cpu/kernels.h"

/* A task of this many elements is worth a thread's wake-up. */
enum { ELEMENTS_PER_TASK = 16384, COLUMNS_PER_TASK = 64 };

static int64_t rows_per_task(int64_t columns) {
    return columns >= ELEMENTS_PER_TASK ? 1 : ELEMENTS_PER_TASK / columns;
}

static void add(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_add *op = arguments;
    float *sum = op->sum;
    const float *a = op->a, *b = op->b;
#pragma omp simd
    for (int64_t i = begin; i < end; i++) sum[i] = a[i] + b[i];
}

void ls_cpu_add(int threads, const struct ls_op_add *op) {
    ls_cpu_parallel(threads, op->count, ELEMENTS_PER_TASK, add, op);
}

static void gelu_forward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_gelu_forward *op = arguments;
    float *output = op->output;
    const float *input = op->input;
#pragma omp simd
    for (int64_t i = begin; i < end; i++) output[i] = ls_gelu(input[i]);
}

void ls_cpu_gelu_forward(int threads, const struct ls_op_gelu_forward *op) {
    ls_cpu_parallel(threads, op->count, ELEMENTS_PER_TASK, gelu_forward, op);
}

static void gelu_backward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_gelu_backward *op = arguments;
    float *input_gradient = op->input_gradient;
    const float *output_gradient = op->output_gradient, *input = op->input;
#pragma omp simd
    for (int64_t i = begin; i < end; i++) input_gradient[i] = output_gradient[i] * ls_gelu_derivative(input[i]);
}

void ls_cpu_gelu_backward(int threads, const struct ls_op_gelu_backward *op) {
    ls_cpu_parallel(threads, op->count, ELEMENTS_PER_TASK, gelu_backward, op);
}

static void swiglu_forward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_swiglu_forward *op = arguments;
    for (int64_t row = begin; row < end; row++) {
        const float *gate = (const float *)op->gate_up + row * 2 * op->columns, *up = gate + op->columns;
        float *output = (float *)op->output + row * op->columns;
#pragma omp simd
        for (int64_t c = 0; c < op->columns; c++) output[c] = gate[c] * ls_sigmoid(gate[c]) * up[c];
    }
}

void ls_cpu_swiglu_forward(int threads, const struct ls_op_swiglu_forward *op) {
    if (op->columns > 0) ls_cpu_parallel(threads, op->rows, rows_per_task(op->columns), swiglu_forward, op);
}

static void swiglu_backward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_swiglu_backward *op = arguments;
    const int64_t columns = op->columns;
    for (int64_t row = begin; row < end; row++) {
        const float *gate_up = (const float *)op->gate_up + row * 2 * columns;
        const float *output_gradient = (const float *)op->output_gradient + row * columns;
        float *gradient = (float *)op->gate_up_gradient + row * 2 * columns;
#pragma omp simd
        for (int64_t c = 0; c < columns; c++) {
            const float gate = gate_up[c], up = gate_up[columns + c], d = output_gradient[c];
            const float sigmoid = ls_sigmoid(gate);
            gradient[c] = d * up * sigmoid * (1.0f + gate * (1.0f - sigmoid));
            gradient[columns + c] = d * gate * sigmoid;
        }
    }
}

void ls_cpu_swiglu_backward(int threads, const struct ls_op_swiglu_backward *op) {
    if (op->columns > 0) ls_cpu_parallel(threads, op->rows, rows_per_task(op->columns), swiglu_backward, op);
}

static void rope(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_rope *op = arguments;
    const int64_t half = op->head_size / 2;
    const float sign = op->inverse ? -1.0f : 1.0f;
    for (int64_t row = begin; row < end; row++) {
        const float *angles = op->table + (op->first_position + row % op->length) * half * 2;
        for (int64_t head = 0; head < op->heads; head++) {
            float *first = (float *)op->x + row * op->stride + head * op->head_size, *second = first + half;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                const float cosine = angles[2 * i], sine = sign * angles[2 * i + 1], x = first[i], y = second[i];
                first[i] = x * cosine - y * sine;
                second[i] = y * cosine + x * sine;
            }
        }
    }
}

void ls_cpu_rope(int threads, const struct ls_op_rope *op) {
    const int64_t columns = op->heads * op->head_size;
    if (columns > 0) ls_cpu_parallel(threads, op->rows, rows_per_task(columns), rope, op);
}

/* Columns [begin, end), in pieces that stay in the first cache; eight rows are added up before they join the sum, which
 * shortens the chain of roundings and loads and stores a sum once for eight. */
static void bias_backward(const void *arguments, int64_t begin, int64_t end) {
    enum { PIECE = 1024 };
    const struct ls_op_bias_backward *op = arguments;
    const int64_t columns = op->columns;
    float *bias_gradient = op->bias_gradient;
    for (int64_t piece = begin; piece < end; piece += PIECE) {
        const int64_t width = end - piece < PIECE ? end - piece : PIECE;
        float sum[PIECE] = {0};
        int64_t row = 0;
        for (; row + 8 <= op->rows; row += 8) {
            const float *g = (const float *)op->output_gradient + row * columns + piece, *h = g + 4 * columns;
#pragma omp simd
            for (int64_t c = 0; c < width; c++)
                sum[c] += ((g[c] + g[columns + c]) + (g[2 * columns + c] + g[3 * columns + c])) +
                          ((h[c] + h[columns + c]) + (h[2 * columns + c] + h[3 * columns + c]));
        }
        for (; row < op->rows; row++) {
            const float *g = (const float *)op->output_gradient + row * columns + piece;
#pragma omp simd
            for (int64_t c = 0; c < width; c++) sum[c] += g[c];
        }
#pragma omp simd
        for (int64_t c = 0; c < width; c++) bias_gradient[piece + c] += sum[c];
    }
}

void ls_cpu_bias_backward(int threads, const struct ls_op_bias_backward *op) {
    if (op->rows * op->columns < ELEMENTS_PER_TASK) threads = 1;
    ls_cpu_parallel(threads, op->columns, COLUMNS_PER_TASK, bias_backward, op);
}
