/* Causal attention in blocks of queries by keys: scores of one block, streaming softmax, product with the values. A
 * block that no query sees (above the diagonal, or before every document's start) is not computed. */
#include "worker/device/cpu/exponential.h"
#include "worker/device/cpu/kernels.h"

#include <math.h>
#include <string.h>

/* A block of scores fits the second cache; LANES is what loops are padded to, so that they have no scalar rest; rows of
 * a block lie KEYS + LANES apart, so that they do not fall on the same cache sets. */
enum { QUERIES = 64, KEYS = 256, LANES = 16, PITCH = KEYS + LANES };

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* The keys [begin, end) that query `position` sees. */
struct span {
    int64_t begin, end;
};

static struct span visible(const int32_t *document_start, int64_t row, int64_t position) {
    return (struct span){document_start ? document_start[row] : 0, position + 1};
}

static int64_t first_key(const int32_t *document_start, int64_t rows) {
    if (!document_start) return 0;
    int64_t first = document_start[0];
    for (int64_t i = 1; i < rows; i++) first = min64(first, document_start[i]);
    return first;
}

/* One row of a block of `width` scores of which [lo, hi) are visible: turns them into exponentials above `maximum`, the
 * rest into zeros. Returns the sum. Works in whole groups of LANES: the row is padded, and what the groups hold beside
 * [lo, hi) is masked. */
static float exponentials(float *s, int64_t width, int64_t lo, int64_t hi, float maximum) {
    const int64_t from = lo / LANES * LANES, to = (hi + LANES - 1) / LANES * LANES,
                  padded = (width + LANES - 1) / LANES * LANES;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = from; j < to; j++) {
        const float e = ls_exp(s[j] - maximum);
        const float seen = j >= lo && j < hi ? e : 0.0f;
        s[j] = seen;
        sum += seen;
    }
    for (int64_t j = 0; j < from; j++) s[j] = 0.0f;
    for (int64_t j = to; j < padded; j++) s[j] = 0.0f;
    return sum;
}

static float maximum_within(const float *s, int64_t lo, int64_t hi, float maximum) {
    const int64_t from = lo / LANES * LANES, to = (hi + LANES - 1) / LANES * LANES;
#pragma omp simd reduction(max : maximum)
    for (int64_t j = from; j < to; j++) {
        const float x = j >= lo && j < hi ? s[j] : -INFINITY;
        maximum = x > maximum ? x : maximum;
    }
    return maximum;
}

/* Queries [q0, q0 + rows) of one head: q, output, lse and document_start point at the first of them, k and v at key 0.
 */
static void forward_block(const struct ls_op_attention_forward *op, const float *q, const float *k, const float *v,
                          float *output, float *lse, const int32_t *document_start, int64_t position, int64_t rows) {
    float s[QUERIES * PITCH] __attribute__((aligned(64)));
    float maximum[QUERIES], sum[QUERIES];
    const int64_t first = first_key(document_start, rows), last = position + rows, head_size = op->head_size;
    for (int64_t i = 0; i < rows; i++) maximum[i] = -INFINITY, sum[i] = 0.0f;
    for (int64_t k0 = first; k0 < last; k0 += KEYS) {
        const int64_t width = min64(KEYS, last - k0);
        ls_cpu_sgemm(false, true, rows, width, head_size, op->scale, q, op->q_stride, k + k0 * op->kv_stride,
                     op->kv_stride, 0.0f, s, PITCH);
        for (int64_t i = 0; i < rows; i++) {
            const struct span span = visible(document_start, i, position + i);
            const int64_t lo = max64(span.begin - k0, 0), hi = min64(span.end - k0, width);
            float *row = s + i * PITCH;
            if (lo >= hi) {
                memset(row, 0, (size_t)width * sizeof *row);
                continue;
            }
            const float highest = maximum_within(row, lo, hi, maximum[i]);
            const float part = exponentials(row, width, lo, hi, highest);
            if (k0 > first && highest > maximum[i]) { /* what was summed so far is relative to the old maximum */
                const float factor = expf(maximum[i] - highest);
                float *out = output + i * op->output_stride;
                sum[i] *= factor;
#pragma omp simd
                for (int64_t c = 0; c < head_size; c++) out[c] *= factor;
            }
            maximum[i] = highest;
            sum[i] += part;
        }
        ls_cpu_sgemm(false, false, rows, head_size, width, 1.0f, s, PITCH, v + k0 * op->kv_stride, op->kv_stride,
                     k0 > first ? 1.0f : 0.0f, output, op->output_stride);
    }
    for (int64_t i = 0; i < rows; i++) {
        const float factor = 1.0f / sum[i];
        float *out = output + i * op->output_stride;
#pragma omp simd
        for (int64_t c = 0; c < head_size; c++) out[c] *= factor;
        if (lse) lse[i] = maximum[i] + logf(sum[i]);
    }
}

static int64_t query_blocks(const struct ls_op_attention_forward *op) {
    return (op->query_length + QUERIES - 1) / QUERIES;
}

static void forward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_attention_forward *op = arguments;
    const int64_t blocks = query_blocks(op), group = op->heads / op->kv_heads;
    for (int64_t task = begin; task < end; task++) {
        const int64_t block = task % blocks, head = task / blocks % op->heads, b = task / blocks / op->heads;
        const int64_t i0 = block * QUERIES, rows = min64(QUERIES, op->query_length - i0);
        const int64_t kv = b * op->kv_batch_stride + head / group * op->head_size;
        forward_block(op, (const float *)op->q + b * op->q_batch_stride + i0 * op->q_stride + head * op->head_size,
                      (const float *)op->k + kv, (const float *)op->v + kv,
                      (float *)op->output + b * op->output_batch_stride + i0 * op->output_stride + head * op->head_size,
                      op->lse ? op->lse + (b * op->heads + head) * op->query_length + i0 : NULL,
                      op->document_start ? op->document_start + b * op->query_length + i0 : NULL,
                      op->key_length - op->query_length + i0, rows);
    }
}

void ls_cpu_attention_forward(int threads, const struct ls_op_attention_forward *op) {
    if (op->batch * op->query_length * op->key_length * op->heads * op->head_size < 1 << 16) threads = 1;
    ls_cpu_parallel(threads, op->batch * op->heads * query_blocks(op), 1, forward, op);
}

/* What backward needs of one head: pointers at token 0. */
struct head {
    float *dq, *dk, *dv;
    const float *d_output, *output, *q, *k, *v, *lse;
    const int32_t *document_start;
};

/* Queries [q0, q0 + rows) of one head: with p = exp(s - lse) and ds = p (dp - rowsum(do o)) scale,
 * dv += p^T do, dq = ds k, dk += ds^T q (Dao 2022, algorithm 4). */
static void backward_block(const struct ls_op_attention_backward *op, const struct head *head, int64_t q0,
                           int64_t rows) {
    float p[QUERIES * PITCH] __attribute__((aligned(64))), ds[QUERIES * PITCH] __attribute__((aligned(64)));
    float product[QUERIES];
    const int32_t *document_start = head->document_start ? head->document_start + q0 : NULL;
    const int64_t first = first_key(document_start, rows), last = q0 + rows, size = op->head_size;
    const float *d_output = head->d_output + q0 * op->output_stride, *output = head->output + q0 * op->output_stride;
    const float *q = head->q + q0 * op->q_stride, *lse = head->lse + q0;
    for (int64_t i = 0; i < rows; i++) {
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < size; c++)
            sum += d_output[i * op->output_stride + c] * output[i * op->output_stride + c];
        product[i] = sum;
    }
    for (int64_t k0 = first; k0 < last; k0 += KEYS) {
        const int64_t width = min64(KEYS, last - k0);
        const float *k = head->k + k0 * op->kv_stride, *v = head->v + k0 * op->kv_stride;
        ls_cpu_sgemm(false, true, rows, width, size, op->scale, q, op->q_stride, k, op->kv_stride, 0.0f, p, PITCH);
        ls_cpu_sgemm(false, true, rows, width, size, 1.0f, d_output, op->output_stride, v, op->kv_stride, 0.0f, ds,
                     PITCH);
        for (int64_t i = 0; i < rows; i++) {
            const struct span span = visible(document_start, i, q0 + i);
            const int64_t lo = max64(span.begin - k0, 0), hi = min64(span.end - k0, width);
            float *p_row = p + i * PITCH, *ds_row = ds + i * PITCH;
            if (lo >= hi) {
                memset(p_row, 0, (size_t)width * sizeof *p_row);
                memset(ds_row, 0, (size_t)width * sizeof *ds_row);
                continue;
            }
            exponentials(p_row, width, lo, hi, lse[i]);
#pragma omp simd
            for (int64_t j = 0; j < width; j++) {
                const float d = p_row[j] * (ds_row[j] - product[i]) * op->scale;
                ds_row[j] = j >= lo && j < hi ? d : 0.0f;
            }
        }
        ls_cpu_sgemm(true, false, width, size, rows, 1.0f, p, PITCH, d_output, op->output_stride, 1.0f,
                     head->dv + k0 * op->kv_stride, op->kv_stride);
        ls_cpu_sgemm(true, false, width, size, rows, 1.0f, ds, PITCH, q, op->q_stride, 1.0f,
                     head->dk + k0 * op->kv_stride, op->kv_stride);
        ls_cpu_sgemm(false, false, rows, size, width, 1.0f, ds, PITCH, k, op->kv_stride, k0 > first ? 1.0f : 0.0f,
                     head->dq + q0 * op->q_stride, op->q_stride);
    }
}

/* A task is one key-value head of one sequence with all its query heads, so that each element of dk and dv has one
 * writer. */
static void backward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_attention_backward *op = arguments;
    const int64_t group = op->heads / op->kv_heads, size = op->head_size;
    for (int64_t task = begin; task < end; task++) {
        const int64_t b = task / op->kv_heads, kv_head = task % op->kv_heads;
        const int64_t kv = b * op->kv_batch_stride + kv_head * size;
        struct head head = {.dk = (float *)op->k_gradient + kv,
                            .dv = (float *)op->v_gradient + kv,
                            .k = (const float *)op->k + kv,
                            .v = (const float *)op->v + kv,
                            .document_start = op->document_start ? op->document_start + b * op->length : NULL};
        for (int64_t t = 0; t < op->length; t++) {
            memset(head.dk + t * op->kv_stride, 0, (size_t)size * sizeof(float));
            memset(head.dv + t * op->kv_stride, 0, (size_t)size * sizeof(float));
        }
        for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++) {
            const int64_t at = b * op->q_batch_stride + h * size, out = b * op->output_batch_stride + h * size;
            head.dq = (float *)op->q_gradient + at;
            head.q = (const float *)op->q + at;
            head.d_output = (const float *)op->output_gradient + out;
            head.output = (const float *)op->output + out;
            head.lse = op->lse + (b * op->heads + h) * op->length;
            for (int64_t q0 = 0; q0 < op->length; q0 += QUERIES)
                backward_block(op, &head, q0, min64(QUERIES, op->length - q0));
        }
    }
}

void ls_cpu_attention_backward(int threads, const struct ls_op_attention_backward *op) {
    if (op->batch * op->length * op->length * op->heads * op->head_size < 1 << 16) threads = 1;
    ls_cpu_parallel(threads, op->batch * op->kv_heads, 1, backward, op);
}
