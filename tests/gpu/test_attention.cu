/* Attention, forward and backward, against a double-precision reference that stores the whole matrix: odd lengths and
 * heads, grouped queries, documents, more keys than queries, strides with gaps that nobody may write. */
#include "tests/gpu/harness.h"

struct shape {
    int64_t batch, queries, keys, heads, kv_heads, size;
    bool documents, wide; /* wide: every stride and pointer allows 128-bit accesses */
    enum ls_dtype dtype;
    double peak = 0.0; /* about the score of the first key for every query; 0: that of any other */
    int64_t document_every = 0, document_offset = 0; /* where documents begin; every 0: anywhere */
};

struct tensors {
    int64_t q_stride, kv_stride, o_stride, q_batch, kv_batch, o_batch;
    struct array q, k, v, output, d_output, dq, dk, dv, lse;
    int32_t *start; /* host */
};

static int64_t gap(const struct shape *s) {
    return s->wide ? 8 * random_below(2) : random_below(4);
}

static struct tensors make_tensors(const struct shape *s) {
    struct tensors t = {};
    t.q_stride = s->heads * s->size + gap(s);
    t.kv_stride = s->kv_heads * s->size + gap(s);
    t.o_stride = s->heads * s->size + gap(s);
    t.q_batch = s->queries * t.q_stride + gap(s);
    t.kv_batch = s->keys * t.kv_stride + gap(s);
    t.o_batch = s->queries * t.o_stride + gap(s);
    const int64_t offset = s->wide ? 0 : 1;
    t.q = make_array(s->dtype, s->batch * t.q_batch, 2.0, offset);
    t.k = make_array(s->dtype, s->batch * t.kv_batch, 2.0, offset);
    t.v = make_array(s->dtype, s->batch * t.kv_batch, 1.0, offset);
    t.output = make_array(s->dtype, s->batch * t.o_batch, 1.0, offset);
    t.d_output = make_array(s->dtype, s->batch * t.o_batch, 1.0, offset);
    t.dq = make_array(s->dtype, s->batch * t.q_batch, 1.0, offset);
    t.dk = make_array(s->dtype, s->batch * t.kv_batch, 1.0, offset);
    t.dv = make_array(s->dtype, s->batch * t.kv_batch, 1.0, offset);
    t.lse = make_array(LS_FP32, s->batch * s->heads * s->queries, 1.0);
    for (int64_t i = 0; s->peak > 0.0 && i < s->queries; i++) /* one head of one sequence */
        for (int64_t c = 0; c < s->size; c++) {
            double *q = t.q.value + i * t.q_stride + c;
            *q = (c % 2 ? 1.0 : -1.0) + 0.1 * *q;
            t.k.value[c] = (c % 2 ? 1.0 : -1.0) * s->peak / sqrt((double)s->size);
        }
    send(&t.q), send(&t.k);
    t.start = (int32_t *)malloc((size_t)(s->batch * s->queries) * sizeof *t.start);
    for (int64_t b = 0; b < s->batch; b++) {
        int32_t start = 0;
        for (int64_t i = 0; i < s->queries; i++) {
            const bool begins = s->document_every ? i % s->document_every == s->document_offset % s->document_every
                                                  : random_below(i % 40 == 0 ? 2 : 30) == 0;
            if (begins) start = (int32_t)(s->keys - s->queries + i);
            t.start[b * s->queries + i] = s->documents ? start : 0;
        }
    }
    return t;
}

static void free_tensors(struct tensors *t) {
    struct array *all[] = {&t->q, &t->k, &t->v, &t->output, &t->d_output, &t->dq, &t->dk, &t->dv, &t->lse};
    for (struct array *a : all) free_array(a);
    free(t->start);
}

/* The expected output, lse and gradients. Elements between tokens keep what they hold. `terms`: of the sum that makes
 * an element of the output, or of a gradient, the largest sum of its terms' sizes. */
struct expected {
    double *output, *lse, *dq, *dk, *dv;
    double output_terms, gradient_terms;
};

/* Adds a term to an element of a result, and its size to that of the sum's terms. */
static void add_term(double *result, double *sizes, int64_t i, double term) {
    result[i] += term;
    sizes[i] += fabs(term);
}

static double largest_of(double *values, int64_t count) {
    double largest = 0.0;
    for (int64_t i = 0; i < count; i++) largest = fmax(largest, fabs(values[i]));
    return largest;
}

static void clear_heads(double *x, int64_t batch, int64_t tokens, int64_t stride, int64_t batch_stride, int64_t width) {
    for (int64_t b = 0; b < batch; b++)
        for (int64_t t = 0; t < tokens; t++) memset(x + b * batch_stride + t * stride, 0, (size_t)width * sizeof *x);
}

static struct expected reference(const struct shape *s, const struct tensors *t, double scale) {
    struct expected e = {copy_values(&t->output),
                         copy_values(&t->lse),
                         copy_values(&t->dq),
                         copy_values(&t->dk),
                         copy_values(&t->dv),
                         0.0,
                         0.0};
    double *const output_sizes = zero_doubles(t->output.count), *const dq_sizes = zero_doubles(t->dq.count),
                  *const dk_sizes = zero_doubles(t->dk.count), *const dv_sizes = zero_doubles(t->dv.count);
    clear_heads(e.output, s->batch, s->queries, t->o_stride, t->o_batch, s->heads * s->size);
    clear_heads(e.dq, s->batch, s->queries, t->q_stride, t->q_batch, s->heads * s->size);
    clear_heads(e.dk, s->batch, s->keys, t->kv_stride, t->kv_batch, s->kv_heads * s->size);
    clear_heads(e.dv, s->batch, s->keys, t->kv_stride, t->kv_batch, s->kv_heads * s->size);
    double *p = zero_doubles(s->keys), *dp = zero_doubles(s->keys);
    for (int64_t row = 0; row < s->batch * s->heads * s->queries; row++) {
        const int64_t i = row % s->queries, h = row / s->queries % s->heads, b = row / s->queries / s->heads;
        const int64_t last = s->keys - s->queries + i, first = t->start[b * s->queries + i];
        const int64_t kv = b * t->kv_batch + h / (s->heads / s->kv_heads) * s->size;
        const int64_t q = b * t->q_batch + i * t->q_stride + h * s->size;
        const int64_t o = b * t->o_batch + i * t->o_stride + h * s->size;
        double sum = 0.0, product = 0.0;
        for (int64_t j = first; j <= last; j++) {
            p[j] = dp[j] = 0.0;
            for (int64_t c = 0; c < s->size; c++) {
                p[j] += t->q.value[q + c] * t->k.value[kv + j * t->kv_stride + c];
                dp[j] += t->d_output.value[o + c] * t->v.value[kv + j * t->kv_stride + c];
            }
            p[j] = exp(p[j] * scale);
            sum += p[j];
        }
        e.lse[row] = log(sum);
        for (int64_t j = first; j <= last; j++) {
            p[j] /= sum;
            product += p[j] * dp[j];
            for (int64_t c = 0; c < s->size; c++) {
                add_term(e.output, output_sizes, o + c, p[j] * t->v.value[kv + j * t->kv_stride + c]);
                add_term(e.dv, dv_sizes, kv + j * t->kv_stride + c, p[j] * t->d_output.value[o + c]);
            }
        }
        for (int64_t j = first; j <= last; j++) { /* d softmax: p (dp - sum p dp) */
            const double ds = p[j] * (dp[j] - product) * scale;
            for (int64_t c = 0; c < s->size; c++) {
                add_term(e.dq, dq_sizes, q + c, ds * t->k.value[kv + j * t->kv_stride + c]);
                add_term(e.dk, dk_sizes, kv + j * t->kv_stride + c, ds * t->q.value[q + c]);
            }
        }
    }
    e.output_terms = largest_of(output_sizes, t->output.count);
    e.gradient_terms = fmax(largest_of(dq_sizes, t->dq.count),
                            fmax(largest_of(dk_sizes, t->dk.count), largest_of(dv_sizes, t->dv.count)));
    free(p), free(dp), free(output_sizes), free(dq_sizes), free(dk_sizes), free(dv_sizes);
    return e;
}

static struct ls_op_attention_forward forward_operation(const struct shape *s, const struct tensors *t,
                                                        const int32_t *start, float scale) {
    struct ls_op_attention_forward op = {};
    op.output = t->output.device, op.lse = (float *)t->lse.device;
    op.q = t->q.device, op.k = t->k.device, op.v = t->v.device, op.document_start = start;
    op.batch = s->batch, op.query_length = s->queries, op.key_length = s->keys;
    op.heads = s->heads, op.kv_heads = s->kv_heads, op.head_size = s->size;
    op.q_stride = t->q_stride, op.kv_stride = t->kv_stride, op.output_stride = t->o_stride;
    op.q_batch_stride = t->q_batch, op.kv_batch_stride = t->kv_batch, op.output_batch_stride = t->o_batch;
    op.scale = scale, op.dtype = s->dtype;
    return op;
}

static struct ls_op_attention_backward backward_operation(const struct shape *s, const struct tensors *t,
                                                          const int32_t *start, float scale) {
    struct ls_op_attention_backward op = {};
    op.q_gradient = t->dq.device, op.k_gradient = t->dk.device, op.v_gradient = t->dv.device;
    op.output_gradient = t->d_output.device, op.output = t->output.device, op.lse = (const float *)t->lse.device;
    op.q = t->q.device, op.k = t->k.device, op.v = t->v.device, op.document_start = start;
    op.batch = s->batch, op.length = s->queries;
    op.heads = s->heads, op.kv_heads = s->kv_heads, op.head_size = s->size;
    op.q_stride = t->q_stride, op.kv_stride = t->kv_stride, op.output_stride = t->o_stride;
    op.q_batch_stride = t->q_batch, op.kv_batch_stride = t->kv_batch, op.output_batch_stride = t->o_batch;
    op.scale = scale, op.dtype = s->dtype;
    return op;
}

/* In fp32 an absolute error of size * 2^-24 or so in a score is that much relative error in a probability, and sums
 * over a few hundred keys add theirs: 3e-5 of the size of the results leaves a factor of about ten. In 16 bits a result
 * is rounded, relative to itself; backward also takes the rounded output for the exact one, whose error enters every
 * score of its row and, multiplied by up to 2, each sum: of the order of one rounding of the largest gradient. On
 * tensor cores a probability, or a score's gradient, is rounded before it is a factor, each term of a sum by as much of
 * itself.
 */
static void check_shape(struct shape s) {
    struct tensors t = make_tensors(&s);
    const float scale = (float)(1.0 / sqrt((double)s.size));
    int32_t *start = s.documents ? put_values(t.start, s.batch * s.queries) : NULL;
    const struct expected e = reference(&s, &t, (double)scale);
    const struct ls_op_attention_forward forward = forward_operation(&s, &t, start, scale);
    check_cuda(ls_cuda_attention_forward(&forward, 0));
    const double rounding = s.dtype == LS_FP32 ? 0.0 : rounding_of(s.dtype);
    const double factor_rounding = s.wide && s.size <= 128 ? rounding : 0.0;
    check_close("output", &t.output, e.output, rounding, 3e-5 + factor_rounding * e.output_terms);
    check_close("lse", &t.lse, e.lse, 1e-6, 3e-5);
    if (s.queries == s.keys) {
        struct ls_op_attention_backward backward = backward_operation(&s, &t, start, scale);
        backward.workspace = device_allocate(ls_cuda_attention_backward_workspace(&backward));
        check_cuda(ls_cuda_attention_backward(&backward, 0));
        const double largest = fmax(fmax(1.0, largest_of(e.dq, t.dq.count)),
                                    fmax(largest_of(e.dk, t.dk.count), largest_of(e.dv, t.dv.count)));
        const double absolute = (3e-5 + 2 * rounding) * largest + factor_rounding * e.gradient_terms;
        check_close("dq", &t.dq, e.dq, rounding, absolute);
        check_close("dk", &t.dk, e.dk, rounding, absolute);
        check_close("dv", &t.dv, e.dv, rounding, absolute);
        device_free(backward.workspace);
    }
    if (current_failed)
        printf("# with batch %lld, queries %lld, keys %lld, heads %lld / %lld, size %lld, documents %d, wide %d\n",
               (long long)s.batch, (long long)s.queries, (long long)s.keys, (long long)s.heads, (long long)s.kv_heads,
               (long long)s.size, s.documents, s.wide);
    if (start) device_free(start);
    free(e.output), free(e.lse), free(e.dq), free(e.dk), free(e.dv);
    free_tensors(&t);
}

static enum ls_dtype any_dtype(void) {
    return (enum ls_dtype)random_below(3);
}

static void odd_lengths_and_heads(void) {
    static const int64_t lengths[] = {1, 17, 64, 65, 130}, sizes[] = {1, 24, 64, 65, 128, 200, 256};
    for (int i = 0; i < 5 && !current_failed; i++)
        for (int j = 0; j < 7 && !current_failed; j++)
            if (lengths[i] * sizes[j] <= (brief ? 65 * 64 : 130 * 65))
                check_shape({1 + random_below(2), lengths[i], lengths[i], 2, 2, sizes[j], false, sizes[j] % 8 == 0,
                             any_dtype()});
}

static void every_type(void) {
    for (int dtype = LS_FP32; dtype <= LS_FP16; dtype++) {
        check_shape({2, 70, 70, 2, 1, 64, true, true, (enum ls_dtype)dtype});
        check_shape({1, 40, 40, 2, 2, 96, true, true, (enum ls_dtype)dtype});
        check_shape({1, 35, 35, 2, 1, 160, true, true, (enum ls_dtype)dtype});
    }
}

static void grouped_queries_and_documents(void) {
    check_shape({2, 150, 150, 6, 2, 32, true, true, any_dtype()});
    check_shape({1, 200, 200, 4, 1, 40, true, false, any_dtype()});
    check_shape({2, 90, 90, 3, 3, 33, true, false, LS_FP32});
}

static void more_keys_than_queries(void) {
    check_shape({2, 1, 150, 4, 2, 64, false, true, any_dtype()});
    check_shape({1, 5, 77, 2, 1, 20, true, false, any_dtype()});
    check_shape({1, 66, 131, 2, 2, 128, false, true, any_dtype()});
}

/* Several tiles of keys and of queries, and warps with whole tiles, none and a part of one, for each size that tensor
 * cores' tiles have. A head that is not as wide as its tile has zeros there. */
static void tiles_of_tensor_cores(void) {
    for (int dtype = LS_BF16; dtype <= LS_FP16; dtype++) {
        const enum ls_dtype type = (enum ls_dtype)dtype;
        check_shape({1, brief ? 140 : 300, brief ? 140 : 300, 2, 1, 64, true, true, type});
        check_shape({1, brief ? 97 : 261, brief ? 97 : 261, 2, 1, 128, true, true, type});
        if (brief) continue;
        check_shape({1, 256, 256, 1, 1, 64, false, true, type});
        check_shape({2, 193, 193, 3, 1, 80, true, true, type});
        check_shape({1, 140, 330, 2, 1, 56, true, true, type});
        check_shape({1, 130, 333, 2, 2, 120, false, true, type});
    }
}

/* One early key far above all others, which stays the maximum over a hundred tiles: what a tile loses of the sum, all
 * of them lose a hundred times. */
static void a_maximum_that_stays(void) {
    for (int dtype = LS_BF16; dtype <= LS_FP16; dtype++) {
        struct shape s = {1, 16, brief ? 1024 : 8192, 1, 1, 64, false, true, (enum ls_dtype)dtype};
        s.peak = 50.0;
        check_shape(s);
    }
}

/* Every query its own document: each sees itself alone. And none but the last query of a tile begins one. */
static void check_documents(int64_t length, int64_t begin_every, int64_t offset) {
    struct shape s = {1, length, length, 1, 1, 64, true, true, LS_BF16};
    s.document_every = begin_every;
    s.document_offset = offset;
    check_shape(s);
}
static void documents_of_all_lengths(void) {
    check_documents(brief ? 70 : 200, 1, 0);
    check_documents(brief ? 130 : 260, 128, 127);
    check_documents(brief ? 130 : 260, 64, 1);
    check_documents(150, 149, 149);
}

/* Ordered sums: the same arguments give the same bits. */
static void gradients_have_the_same_bits_twice(void) {
    const struct shape s = {1, 130, 130, 4, 2, 64, true, true, LS_BF16};
    struct tensors t = make_tensors(&s);
    int32_t *start = put_values(t.start, s.batch * s.queries);
    const struct ls_op_attention_forward forward = forward_operation(&s, &t, start, 0.125f);
    struct ls_op_attention_backward backward = backward_operation(&s, &t, start, 0.125f);
    backward.workspace = device_allocate(ls_cuda_attention_backward_workspace(&backward));
    check_cuda(ls_cuda_attention_forward(&forward, 0));
    check_cuda(ls_cuda_attention_backward(&backward, 0));
    fetch(&t.dq), fetch(&t.dk), fetch(&t.dv);
    double *dq = copy_values(&t.dq), *dk = copy_values(&t.dk), *dv = copy_values(&t.dv);
    check_cuda(ls_cuda_attention_backward(&backward, 0));
    check_close("dq", &t.dq, dq, 0.0, 0.0);
    check_close("dk", &t.dk, dk, 0.0, 0.0);
    check_close("dv", &t.dv, dv, 0.0, 0.0);
    device_free(backward.workspace), device_free(start);
    free(dq), free(dk), free(dv);
    free_tensors(&t);
}

static void heads_that_are_too_large_are_refused(void) {
    struct ls_op_attention_forward forward = {};
    struct ls_op_attention_backward backward = {};
    forward.head_size = backward.head_size = LS_CUDA_HEAD_SIZE_MAX + 1;
    if (ls_cuda_attention_forward(&forward, 0) != cudaErrorInvalidValue ||
        ls_cuda_attention_backward(&backward, 0) != cudaErrorInvalidValue)
        fail("a head of %d channels was taken", LS_CUDA_HEAD_SIZE_MAX + 1);
}

int main(void) {
    begin_tests();
    run_test("attention is right for odd lengths and heads", odd_lengths_and_heads);
    run_test("attention is right in every type", every_type);
    run_test("grouped heads share keys; documents do not see each other", grouped_queries_and_documents);
    run_test("queries may stand behind earlier keys", more_keys_than_queries);
    run_test("tiles of tensor cores: several, whole and in part", tiles_of_tensor_cores);
    run_test("a maximum that stays over many tiles loses nothing", a_maximum_that_stays);
    run_test("documents of all lengths", documents_of_all_lengths);
    run_test("gradients have the same bits twice", gradients_have_the_same_bits_twice);
    run_test("heads that are too large are refused", heads_that_are_too_large_are_refused);
    return end_tests();
}
