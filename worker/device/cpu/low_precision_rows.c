/* Operations of bf16 and fp16 on whole rows, read and rounded value by value: norms and cross-entropy. Each is written
 * once for a type that the compiler knows, so that its loops have no branches. */
#include "worker/device/cpu/exponential.h"
#include "worker/device/cpu/kernels.h"
#include "worker/device/cpu/low_precision.h"
#include "worker/device/cpu/low_precision_kernels.h"

#include <assert.h>
#include <math.h>

#define INLINE static inline __attribute__((always_inline))

enum { ROWS_PER_BLOCK = 32, COLUMNS_PER_TASK = 64, COLUMNS_MOST = 256, ELEMENTS_PER_TASK = 16384 };

static int64_t rows_per_task(int64_t columns) {
    return columns >= ELEMENTS_PER_TASK ? 1 : ELEMENTS_PER_TASK / columns;
}

/* Layer norm, and root-mean-square norm as one without mean and bias. */
struct norm {
    enum ls_dtype dtype;
    bool centred;
    void *output;
    float *mean, *rstd;
    const void *input, *weight, *bias;
    int64_t rows, columns;
    float epsilon;
};

INLINE void norm_row(enum ls_dtype t, const struct norm *n, int64_t row) {
    const int64_t columns = n->columns, at = row * columns;
    const void *x = n->input;
    float mean = 0.0f, square = 0.0f;
    if (n->centred) {
#pragma omp simd reduction(+ : mean)
        for (int64_t c = at; c < at + columns; c++) mean += ls_load(t, x, c);
        mean /= (float)columns;
    }
#pragma omp simd reduction(+ : square)
    for (int64_t c = at; c < at + columns; c++) square += (ls_load(t, x, c) - mean) * (ls_load(t, x, c) - mean);
    const float rstd = 1.0f / sqrtf(square / (float)columns + n->epsilon);
    for (int64_t c = 0; c < columns; c++) {
        const float y = (ls_load(t, x, at + c) - mean) * rstd * ls_load(t, n->weight, c);
        ls_store(t, n->output, at + c, n->bias ? y + ls_load(t, n->bias, c) : y);
    }
    if (n->mean) n->mean[row] = mean;
    if (n->rstd) n->rstd[row] = rstd;
}

static void norm(const void *arguments, int64_t begin, int64_t end) {
    const struct norm *n = arguments;
    for (int64_t row = begin; row < end; row++)
        if (n->dtype == LS_BF16)
            norm_row(LS_BF16, n, row);
        else
            norm_row(LS_FP16, n, row);
}

void ls_cpu_low_layernorm_forward(int threads, const struct ls_op_layernorm_forward *op) {
    const struct norm n = {op->dtype,  true,     op->output, op->mean,    op->rstd,   op->input,
                           op->weight, op->bias, op->rows,   op->columns, op->epsilon};
    ls_cpu_parallel(threads, n.rows, rows_per_task(n.columns), norm, &n);
}

void ls_cpu_low_rmsnorm_forward(int threads, const struct ls_op_rmsnorm_forward *op) {
    const struct norm n = {op->dtype,  false, op->output, NULL,        op->rstd,   op->input,
                           op->weight, NULL,  op->rows,   op->columns, op->epsilon};
    ls_cpu_parallel(threads, n.rows, rows_per_task(n.columns), norm, &n);
}

struct norm_gradient {
    enum ls_dtype dtype;
    bool centred, accumulate_input;
    void *input;          /* its gradient */
    float *weight, *bias; /* their gradients */
    const void *output_gradient, *x, *scale;
    const float *mean, *rstd;
    int64_t rows, columns;
};

/* The formula is norm.c's. */
INLINE void norm_gradient_row(enum ls_dtype t, const struct norm_gradient *n, int64_t row) {
    const int64_t columns = n->columns, at = row * columns;
    const float mean = n->centred ? n->mean[row] : 0.0f, rstd = n->rstd[row];
    float sum = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : sum, product)
    for (int64_t c = 0; c < columns; c++) {
        const float d = ls_load(t, n->output_gradient, at + c) * ls_load(t, n->scale, c);
        sum += d;
        product += d * ((ls_load(t, n->x, at + c) - mean) * rstd);
    }
    const float d_mean = n->centred ? sum / (float)columns : 0.0f, d_product = product / (float)columns;
    for (int64_t c = 0; c < columns; c++) {
        const float d = ls_load(t, n->output_gradient, at + c) * ls_load(t, n->scale, c);
        const float dx = rstd * (d - d_mean - (ls_load(t, n->x, at + c) - mean) * rstd * d_product);
        ls_store(t, n->input, at + c, n->accumulate_input ? ls_load(t, n->input, at + c) + dx : dx);
    }
}

static void norm_gradient_input(const void *arguments, int64_t begin, int64_t end) {
    const struct norm_gradient *n = arguments;
    for (int64_t row = begin; row < end; row++)
        if (n->dtype == LS_BF16)
            norm_gradient_row(LS_BF16, n, row);
        else
            norm_gradient_row(LS_FP16, n, row);
}

/* At most COLUMNS_MOST columns. A block of rows is added up before it joins the gradients, so that sums over many
 * rows round less. */
INLINE void norm_gradient_column(enum ls_dtype t, const struct norm_gradient *n, int64_t begin, int64_t end) {
    float product[COLUMNS_MOST], sum[COLUMNS_MOST];
    const int64_t columns = end - begin;
    for (int64_t first = 0; first < n->rows; first += ROWS_PER_BLOCK) {
        const int64_t last = n->rows - first < ROWS_PER_BLOCK ? n->rows : first + ROWS_PER_BLOCK;
        for (int64_t c = 0; c < columns; c++) product[c] = sum[c] = 0.0f;
        for (int64_t row = first; row < last; row++) {
            const float mean = n->centred ? n->mean[row] : 0.0f, rstd = n->rstd[row];
            const int64_t at = row * n->columns + begin;
#pragma omp simd
            for (int64_t c = 0; c < columns; c++) {
                const float d = ls_load(t, n->output_gradient, at + c);
                product[c] += d * ((ls_load(t, n->x, at + c) - mean) * rstd);
                sum[c] += d;
            }
        }
        for (int64_t c = 0; c < columns; c++) {
            n->weight[begin + c] += product[c];
            if (n->bias) n->bias[begin + c] += sum[c];
        }
    }
}

static void norm_gradient_parameters(const void *arguments, int64_t begin, int64_t end) {
    const struct norm_gradient *n = arguments;
    for (int64_t c = begin; c < end; c += COLUMNS_MOST) {
        const int64_t next = end - c < COLUMNS_MOST ? end : c + COLUMNS_MOST;
        if (n->dtype == LS_BF16)
            norm_gradient_column(LS_BF16, n, c, next);
        else
            norm_gradient_column(LS_FP16, n, c, next);
    }
}

/* The parameters' gradients first: the input's may lie over what they read. */
static void run_norm_gradient(int threads, const struct norm_gradient *n) {
    ls_cpu_parallel(threads, n->columns, COLUMNS_PER_TASK, norm_gradient_parameters, n);
    ls_cpu_parallel(threads, n->rows, rows_per_task(n->columns), norm_gradient_input, n);
}

void ls_cpu_low_layernorm_backward(int threads, const struct ls_op_layernorm_backward *op) {
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
    run_norm_gradient(threads, &n);
}

void ls_cpu_low_rmsnorm_backward(int threads, const struct ls_op_rmsnorm_backward *op) {
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
    run_norm_gradient(threads, &n);
}

/* Exponentials are computed a second time for the gradient: kept in the logits' place they would be rounded. */
INLINE void cross_entropy_row(enum ls_dtype t, const struct ls_op_cross_entropy *op, int64_t row) {
    const int64_t at = row * op->stride, vocabulary = op->vocabulary;
    const int32_t target = op->targets[row];
    assert(target < vocabulary);
    if (target < 0) {
        op->row_loss[row] = 0.0f;
        if (op->gradient) memset(ls_element(t, op->logits, at), 0, (size_t)(op->stride * ls_dtype_bytes(t)));
        return;
    }
    float maximum = ls_load(t, op->logits, at);
    for (int64_t i = at; i < at + vocabulary; i++) {
        const float x = ls_load(t, op->logits, i);
        maximum = x > maximum || isnan(x) ? x : maximum;
    }
    double sum = (double)ls_exp(ls_load(t, op->logits, at) - maximum);
#pragma omp simd reduction(+ : sum)
    for (int64_t i = at + 1; i < at + vocabulary; i++) sum += (double)ls_exp(ls_load(t, op->logits, i) - maximum);
    op->row_loss[row] = (float)(log(sum) + ((double)maximum - (double)ls_load(t, op->logits, at + target)));
    if (!op->gradient) return;
    const float scale = op->gradient_scale[0], factor = (float)((double)scale / sum);
    for (int64_t i = 0; i < vocabulary; i++) {
        const float p = ls_exp(ls_load(t, op->logits, at + i) - maximum) * factor;
        ls_store(t, op->logits, at + i, i == target ? p - scale : p);
    }
    memset(ls_element(t, op->logits, at + vocabulary), 0, (size_t)((op->stride - vocabulary) * ls_dtype_bytes(t)));
}

static void cross_entropy(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_cross_entropy *op = arguments;
    for (int64_t row = begin; row < end; row++)
        if (op->dtype == LS_BF16)
            cross_entropy_row(LS_BF16, op, row);
        else
            cross_entropy_row(LS_FP16, op, row);
}

void ls_cpu_low_cross_entropy(int threads, const struct ls_op_cross_entropy *op) {
    ls_cpu_parallel(threads, op->rows, rows_per_task(op->vocabulary), cross_entropy, op);
    double loss = op->loss[0];
    for (int64_t row = 0; row < op->rows; row++) loss += (double)op->row_loss[row];
    op->loss[0] = loss;
}
