/* Causal attention in blocks of queries by keys: scores of one block, streaming softmax, product with the values. A
 * block that no query sees (above the diagonal, or before every document's start) is not computed. Keys and values of a
 * block are packed once for all the queries of a task. */
#include "worker/device/cpu/exponential.h"
#include "worker/device/cpu/kernels.h"
#include "worker/device/cpu/multiply.h"
#include "worker/device/cpu/pairs.h"

#include <math.h>
#include <string.h>

/* Some queries by KEYS scores are computed at a time, see query_block(op->dtype); a forward task has TASK_QUERIES
 * queries of one head; heads larger than CHUNK are taken in pieces. Loops over scores go in whole groups of GROUP, so
 * that they have no scalar rest; rows of scores lie PITCH apart, so that they do not fall on the same cache sets. Fewer
 * queries than FEW do not pay for packed keys. */
enum { QUERIES_MOST = 64, KEYS = 256, TASK_QUERIES = 256, CHUNK = 128, GROUP = 16, PITCH = KEYS + GROUP, FEW = 8 };
enum { PANELS = LS_PANEL_FLOATS(KEYS, CHUNK) };

/* Whether results are to be in bf16; all that is here is fp32 (kernels.h). */
static bool rounded(enum ls_dtype dtype) {
    return dtype == LS_BF16;
}

/* Whole tiles of rows: those of pairs have 32, others 6 or 12. */
static int64_t query_block(enum ls_dtype dtype) {
    return ls_pairs_available(rounded(dtype)) ? QUERIES_MOST : 48;
}

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static int64_t first_key(const int32_t *document_start, int64_t rows) {
    if (!document_start) return 0;
    int64_t first = document_start[0];
    for (int64_t i = 1; i < rows; i++) first = min64(first, document_start[i]);
    return first;
}

/* Of a row of scores only [lo, hi) are visible. Scales them and returns the largest of them and `maximum`. */
static float scale_and_maximum(float *s, int lo, int hi, float scale, float maximum) {
    const int from = lo / GROUP * GROUP, to = (hi + GROUP - 1) / GROUP * GROUP;
#pragma omp simd reduction(max : maximum)
    for (int j = from; j < to; j++) {
        const float scaled = s[j] * scale, x = j >= lo && j < hi ? scaled : -INFINITY;
        s[j] = scaled;
        maximum = x > maximum ? x : maximum;
    }
    return maximum;
}

/* Turns the visible scores, times `scale`, into exponentials above `maximum`, and the rest of [0, width) into zeros.
 * Returns the sum. */
static float exponentials(float *s, int width, int lo, int hi, float scale, float maximum) {
    const int from = lo / GROUP * GROUP, to = (hi + GROUP - 1) / GROUP * GROUP;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int j = from; j < to; j++) {
        const float e = ls_exp(s[j] * scale - maximum);
        const float seen = j >= lo && j < hi ? e : 0.0f;
        s[j] = seen;
        sum += seen;
    }
    if (from > 0) memset(s, 0, (size_t)from * sizeof *s);
    if (to < width) memset(s + to, 0, (size_t)(width - to) * sizeof *s);
    return sum;
}

/* What a forward task needs of its head: q, output, lse and document_start at its first query, which stands at
 * `position`; k and v at key 0. */
struct queries {
    const float *q, *k, *v;
    float *output, *lse;
    const int32_t *document_start;
    int64_t position, count;
};

/* Scores of queries [i0, i0 + rows) become probabilities relative to each row's maximum so far; its sum and output so
 * far follow suit. */
static void streaming_softmax(const struct ls_op_attention_forward *op, const struct queries *t, int64_t i0,
                              int64_t rows, int64_t k0, int64_t width, bool started, float *s, float *maximum,
                              float *sum) {
    for (int64_t i = 0; i < rows; i++) {
        const int64_t start = t->document_start ? t->document_start[i0 + i] : 0;
        const int lo = (int)max64(start - k0, 0), hi = (int)min64(t->position + i0 + i + 1 - k0, width);
        float *row = s + i * PITCH;
        if (lo >= hi) {
            memset(row, 0, (size_t)width * sizeof *row);
            continue;
        }
        const float highest = scale_and_maximum(row, lo, hi, op->scale, maximum[i]);
        const float part = exponentials(row, (int)width, lo, hi, 1.0f, highest);
        if (started && highest > maximum[i]) {
            const float factor = expf(maximum[i] - highest);
            float *out = t->output + (i0 + i) * op->output_stride;
            sum[i] *= factor;
#pragma omp simd
            for (int64_t c = 0; c < op->head_size; c++) out[c] *= factor;
        }
        maximum[i] = highest;
        sum[i] += part;
    }
}

static void few_scores(const struct ls_op_attention_forward *op, int64_t rows, int64_t width, const float *q,
                       const float *k, float *s) {
    for (int64_t j = 0; j < width; j++) {
        const float *key = k + j * op->kv_stride;
        for (int64_t i = 0; i < rows; i++) {
            const float *query = q + i * op->q_stride;
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int64_t c = 0; c < op->head_size; c++) sum += query[c] * key[c];
            s[i * PITCH + j] = sum;
        }
    }
}

static void few_outputs(const struct ls_op_attention_forward *op, int64_t rows, int64_t width, const float *s,
                        const float *v, float *output, bool add) {
    for (int64_t i = 0; i < rows; i++) {
        float *out = output + i * op->output_stride;
        if (!add) memset(out, 0, (size_t)op->head_size * sizeof *out);
        for (int64_t j = 0; j < width; j++) {
            const float p = s[i * PITCH + j], *value = v + j * op->kv_stride;
#pragma omp simd
            for (int64_t c = 0; c < op->head_size; c++) out[c] += p * value[c];
        }
    }
}

static void forward_task(const struct ls_op_attention_forward *op, const struct queries *t) {
    float keys[PANELS] __attribute__((aligned(64))), values[PANELS] __attribute__((aligned(64)));
    float s[QUERIES_MOST * PITCH] __attribute__((aligned(64))), maximum[TASK_QUERIES], sum[TASK_QUERIES];
    const int64_t first = first_key(t->document_start, t->count), last = t->position + t->count, size = op->head_size;
    const int64_t queries = query_block(op->dtype);
    for (int64_t i = 0; i < t->count; i++) maximum[i] = -INFINITY, sum[i] = 0.0f;
    for (int64_t k0 = first; k0 < last; k0 += KEYS) {
        const float *k = t->k + k0 * op->kv_stride, *v = t->v + k0 * op->kv_stride;
        const int64_t block = min64(KEYS, last - k0);
        bool pack = true;
        for (int64_t i0 = 0; i0 < t->count; i0 += queries) {
            const int64_t rows = min64(queries, t->count - i0), width = min64(block, t->position + i0 + rows - k0);
            const int64_t begin = first_key(t->document_start ? t->document_start + i0 : NULL, rows);
            const bool started = k0 > begin; /* these queries have seen an earlier block */
            const float *q = t->q + i0 * op->q_stride;
            float *output = t->output + i0 * op->output_stride;
            if (width <= 0 || k0 + block <= begin) continue;
            if (t->count < FEW) {
                few_scores(op, rows, width, q, k, s);
                streaming_softmax(op, t, i0, rows, k0, width, started, s, maximum + i0, sum + i0);
                few_outputs(op, rows, width, s, v, output, started);
                continue;
            }
            for (int64_t c = 0; c < size; c += CHUNK) {
                const int64_t chunk = min64(CHUNK, size - c);
                if (pack || size > CHUNK) ls_pack(rounded(op->dtype), true, k + c, op->kv_stride, chunk, block, keys);
                ls_multiply(rounded(op->dtype), rows, ls_panel_round(width), chunk, false, q + c, op->q_stride, keys,
                            chunk, s, PITCH, c > 0);
            }
            streaming_softmax(op, t, i0, rows, k0, width, started, s, maximum + i0, sum + i0);
            for (int64_t c = 0; c < size; c += CHUNK) {
                const int64_t chunk = min64(CHUNK, size - c);
                if (pack || size > CHUNK)
                    ls_pack(rounded(op->dtype), false, v + c, op->kv_stride, block, chunk, values);
                ls_multiply(rounded(op->dtype), rows, chunk, width, false, s, PITCH, values, block, output + c,
                            op->output_stride, started);
            }
            pack = false;
        }
    }

    for (int64_t i = 0; i < t->count; i++) {
        const float factor = 1.0f / sum[i];
        float *out = t->output + i * op->output_stride;
#pragma omp simd
        for (int64_t c = 0; c < size; c++) out[c] *= factor;
        if (t->lse) t->lse[i] = maximum[i] + logf(sum[i]);
    }
}

static int64_t query_tasks(const struct ls_op_attention_forward *op) {
    return (op->query_length + TASK_QUERIES - 1) / TASK_QUERIES;
}

static void forward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_attention_forward *op = arguments;
    const int64_t tasks = query_tasks(op), group = op->heads / op->kv_heads;
    for (int64_t task = begin; task < end; task++) {
        const int64_t i0 = task % tasks * TASK_QUERIES, head = task / tasks % op->heads, b = task / tasks / op->heads;
        const int64_t kv = b * op->kv_batch_stride + head / group * op->head_size;
        const struct queries t = {
            .q = (const float *)op->q + b * op->q_batch_stride + i0 * op->q_stride + head * op->head_size,
            .k = (const float *)op->k + kv,
            .v = (const float *)op->v + kv,
            .output = (float *)op->output + b * op->output_batch_stride + i0 * op->output_stride + head * op->head_size,
            .lse = op->lse ? op->lse + (b * op->heads + head) * op->query_length + i0 : NULL,
            .document_start = op->document_start ? op->document_start + b * op->query_length + i0 : NULL,
            .position = op->key_length - op->query_length + i0,
            .count = min64(TASK_QUERIES, op->query_length - i0)};
        forward_task(op, &t);
    }
}

void ls_cpu_attention_forward(int threads, const struct ls_op_attention_forward *op) {
    if (op->batch * op->query_length * op->key_length * op->heads * op->head_size < 1 << 16) threads = 1;
    ls_cpu_parallel(threads, op->batch * op->heads * query_tasks(op), 1, forward, op);
}

/* What backward needs of one head: pointers at token 0. */
struct head {
    float *dq, *dk, *dv;
    const float *d_output, *output, *q, *k, *v, *lse;
    const int32_t *document_start;
};

/* A block of keys, packed for products with queries (keys and values transposed) and with score gradients. */
struct packed_keys {
    float keys_transposed[PANELS], values_transposed[PANELS], keys[PANELS];
} __attribute__((aligned(64)));

/* Turns scores into probabilities p and the gradients dp of these into those of the scores, ds = p (dp - rowsum(do o))
 * scale. */
static void score_gradients(const struct ls_op_attention_backward *op, const struct head *head, int64_t q0,
                            int64_t rows, int64_t k0, int64_t width, float *p, float *ds) {
    const int padded = ((int)width + GROUP - 1) / GROUP * GROUP;
    for (int64_t i = 0; i < rows; i++) {
        const int64_t start = head->document_start ? head->document_start[q0 + i] : 0;
        const int lo = (int)max64(start - k0, 0), hi = (int)min64(q0 + i + 1 - k0, width);
        const float *d_output = head->d_output + (q0 + i) * op->output_stride,
                    *output = head->output + (q0 + i) * op->output_stride;
        float *p_row = p + i * PITCH, *ds_row = ds + i * PITCH, product = 0.0f;
        if (lo >= hi) {
            memset(p_row, 0, (size_t)width * sizeof *p_row);
            memset(ds_row, 0, (size_t)width * sizeof *ds_row);
            continue;
        }
#pragma omp simd reduction(+ : product)
        for (int64_t c = 0; c < op->head_size; c++) product += d_output[c] * output[c];
        exponentials(p_row, (int)width, lo, hi, op->scale, head->lse[q0 + i]);
#pragma omp simd
        for (int j = 0; j < padded; j++) {
            const float d = p_row[j] * (ds_row[j] - product) * op->scale;
            ds_row[j] = j >= lo && j < hi ? d : 0.0f;
        }
    }
}

/* Queries [q0, q0 + rows) of one head and keys [k0, k0 + block), of which the first `width` are seen: with p = exp(s -
 * lse), dv += p^T do, dq (+)= ds k, dk += ds^T q (Dao 2022, algorithm 4). `pack` packs the keys, which later heads and
 * queries find. */
static void backward_block(const struct ls_op_attention_backward *op, const struct head *head, int64_t q0, int64_t rows,
                           int64_t k0, int64_t block, int64_t width, bool add, bool pack, struct packed_keys *packed) {
    float p[QUERIES_MOST * PITCH] __attribute__((aligned(64))), ds[QUERIES_MOST * PITCH] __attribute__((aligned(64)));
    float panels[LS_PANEL_FLOATS(QUERIES_MOST, CHUNK)] __attribute__((aligned(64)));
    const int64_t size = op->head_size, at_q = q0 * op->q_stride, at_o = q0 * op->output_stride,
                  at_k = k0 * op->kv_stride;
    for (int64_t c = 0; c < size; c += CHUNK) {
        const int64_t chunk = min64(CHUNK, size - c), columns = ls_panel_round(width);
        if (pack || size > CHUNK) {
            ls_pack(rounded(op->dtype), true, head->k + at_k + c, op->kv_stride, chunk, block, packed->keys_transposed);
            ls_pack(rounded(op->dtype), true, head->v + at_k + c, op->kv_stride, chunk, block,
                    packed->values_transposed);
        }
        ls_multiply(rounded(op->dtype), rows, columns, chunk, false, head->q + at_q + c, op->q_stride,
                    packed->keys_transposed, chunk, p, PITCH, c > 0);
        ls_multiply(rounded(op->dtype), rows, columns, chunk, false, head->d_output + at_o + c, op->output_stride,
                    packed->values_transposed, chunk, ds, PITCH, c > 0);
    }
    score_gradients(op, head, q0, rows, k0, width, p, ds);
    for (int64_t c = 0; c < size; c += CHUNK) {
        const int64_t chunk = min64(CHUNK, size - c);
        ls_pack(rounded(op->dtype), false, head->d_output + at_o + c, op->output_stride, rows, chunk, panels);
        ls_multiply(rounded(op->dtype), width, chunk, rows, true, p, PITCH, panels, rows, head->dv + at_k + c,
                    op->kv_stride, true);
        ls_pack(rounded(op->dtype), false, head->q + at_q + c, op->q_stride, rows, chunk, panels);
        ls_multiply(rounded(op->dtype), width, chunk, rows, true, ds, PITCH, panels, rows, head->dk + at_k + c,
                    op->kv_stride, true);
        if (pack || size > CHUNK)
            ls_pack(rounded(op->dtype), false, head->k + at_k + c, op->kv_stride, block, chunk, packed->keys);
        ls_multiply(rounded(op->dtype), rows, chunk, width, false, ds, PITCH, packed->keys, block, head->dq + at_q + c,
                    op->q_stride, add);
    }
}

/* One key-value head of one sequence with all its query heads. */
static void backward_task(const struct ls_op_attention_backward *op, int64_t b, int64_t kv_head) {
    struct packed_keys packed;
    const int64_t queries = query_block(op->dtype);
    const int64_t group = op->heads / op->kv_heads, size = op->head_size, kv = b * op->kv_batch_stride + kv_head * size;
    struct head head = {.dk = (float *)op->k_gradient + kv,
                        .dv = (float *)op->v_gradient + kv,
                        .k = (const float *)op->k + kv,
                        .v = (const float *)op->v + kv,
                        .document_start = op->document_start ? op->document_start + b * op->length : NULL};
    for (int64_t t = 0; t < op->length; t++) {
        memset(head.dk + t * op->kv_stride, 0, (size_t)size * sizeof(float));
        memset(head.dv + t * op->kv_stride, 0, (size_t)size * sizeof(float));
    }
    for (int64_t k0 = 0; k0 < op->length; k0 += KEYS) {
        const int64_t block = min64(KEYS, op->length - k0);
        bool pack = true;
        for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++) {
            const int64_t at = b * op->q_batch_stride + h * size, out = b * op->output_batch_stride + h * size;
            head.dq = (float *)op->q_gradient + at;
            head.q = (const float *)op->q + at;
            head.d_output = (const float *)op->output_gradient + out;
            head.output = (const float *)op->output + out;
            head.lse = op->lse + (b * op->heads + h) * op->length;
            for (int64_t q0 = k0 / queries * queries; q0 < op->length;
                 q0 += queries) { /* earlier queries do not see these keys */
                const int64_t rows = min64(queries, op->length - q0), width = min64(block, q0 + rows - k0);
                const int64_t first = first_key(head.document_start ? head.document_start + q0 : NULL, rows);
                if (k0 + block <= first) continue;
                backward_block(op, &head, q0, rows, k0, block, width, k0 > first, pack, &packed);
                pack = false;
            }
        }
    }
}

/* Keys and values have one task each, so that each element of dk and dv has one writer. */
static void backward(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_attention_backward *op = arguments;
    for (int64_t task = begin; task < end; task++) backward_task(op, task / op->kv_heads, task % op->kv_heads);
}

void ls_cpu_attention_backward(int threads, const struct ls_op_attention_backward *op) {
    if (op->batch * op->length * op->length * op->heads * op->head_size < 1 << 16) threads = 1;
    ls_cpu_parallel(threads, op->batch * op->kv_heads, 1, backward, op);
}
