/* Attention against a double-precision reference that stores the whole matrix. */
#include "tests/unit/support.h"

struct problem {
    int64_t batch, queries, keys, heads, kv_heads, size;
    bool documents;
    int threads;
};

/* Tensors as the model lays them out: q, k, v side by side in a row of a token (with a gap of `extra`), sequences one
 * after another. */
struct tensors {
    int64_t q_stride, kv_stride, output_stride, q_batch, kv_batch, output_batch, q_count, kv_count, output_count,
        lse_count;
    float *q, *k, *v, *output, *lse, *d_output, *dq, *dk, *dv;
    int32_t *document_start;
    double *output_expected, *lse_expected, *dq_expected, *dk_expected, *dv_expected;
};

static struct tensors make(const struct problem *p) {
    struct tensors t = {.q_stride = p->heads * p->size + random_below(4),
                        .kv_stride = p->kv_heads * p->size + random_below(4),
                        .output_stride = p->heads * p->size + random_below(4)};
    t.q_batch = p->queries * t.q_stride + random_below(9);
    t.kv_batch = p->keys * t.kv_stride + random_below(9);
    t.output_batch = p->queries * t.output_stride + random_below(9);
    t.q_count = p->batch * t.q_batch, t.kv_count = p->batch * t.kv_batch, t.output_count = p->batch * t.output_batch;
    t.lse_count = p->batch * p->heads * p->queries;
    t.q = random_floats(t.q_count, 2), t.k = random_floats(t.kv_count, 2), t.v = random_floats(t.kv_count, 1);
    t.output = random_floats(t.output_count, 1), t.lse = random_floats(t.lse_count, 1);
    t.d_output = random_floats(t.output_count, 1);
    t.dq = random_floats(t.q_count, 1), t.dk = random_floats(t.kv_count, 1), t.dv = random_floats(t.kv_count, 1);
    t.document_start = malloc((size_t)(p->batch * p->queries) * sizeof *t.document_start);
    for (int64_t b = 0; b < p->batch; b++) {
        int32_t start = 0;
        for (int64_t i = 0; i < p->queries; i++) {
            if (random_below(7) == 0) start = (int32_t)(p->keys - p->queries + i); /* a document begins here */
            t.document_start[b * p->queries + i] = start;
        }
    }
    t.output_expected = zero_doubles(t.output_count), t.lse_expected = zero_doubles(t.lse_count);
    t.dq_expected = zero_doubles(t.q_count), t.dk_expected = zero_doubles(t.kv_count),
    t.dv_expected = zero_doubles(t.kv_count);
    return t;
}

static void release(struct tensors *t) {
    free(t->q), free(t->k), free(t->v), free(t->output), free(t->lse), free(t->d_output), free(t->dq), free(t->dk),
        free(t->dv);
    free(t->document_start), free(t->output_expected), free(t->lse_expected);
    free(t->dq_expected), free(t->dk_expected), free(t->dv_expected);
}

static void reference(const struct problem *p, const struct tensors *t, double scale) {
    double *score = zero_doubles(p->keys), *dp = zero_doubles(p->keys);
    for (int64_t row = 0; row < t->lse_count; row++) {
        const int64_t i = row % p->queries, h = row / p->queries % p->heads, b = row / p->queries / p->heads;
        const int64_t last = p->keys - p->queries + i, first = p->documents ? t->document_start[b * p->queries + i] : 0;
        const int64_t kv = b * t->kv_batch + h / (p->heads / p->kv_heads) * p->size;
        const int64_t q = b * t->q_batch + i * t->q_stride + h * p->size;
        const int64_t o = b * t->output_batch + i * t->output_stride + h * p->size;
        double sum = 0.0, product = 0.0;
        for (int64_t j = first; j <= last; j++) {
            score[j] = 0.0;
            for (int64_t c = 0; c < p->size; c++)
                score[j] += (double)t->q[q + c] * (double)t->k[kv + j * t->kv_stride + c];
            score[j] *= scale;
            sum += exp(score[j]);
        }
        t->lse_expected[row] = log(sum); // cppcheck-suppress invalidFunctionArg
        for (int64_t j = first; j <= last; j++) {
            const double probability = exp(score[j]) / sum;
            dp[j] = 0.0;
            for (int64_t c = 0; c < p->size; c++) {
                const double v = (double)t->v[kv + j * t->kv_stride + c], d = (double)t->d_output[o + c];
                t->output_expected[o + c] += probability * v;
                t->dv_expected[kv + j * t->kv_stride + c] += probability * d;
                dp[j] += d * v;
            }
            product += probability * dp[j];
        }
        for (int64_t j = first; j <= last; j++) { /* d softmax: p (dp - sum p dp) */
            const double ds = exp(score[j]) / sum * (dp[j] - product) * scale;
            for (int64_t c = 0; c < p->size; c++) {
                t->dq_expected[q + c] += ds * (double)t->k[kv + j * t->kv_stride + c];
                t->dk_expected[kv + j * t->kv_stride + c] += ds * (double)t->q[q + c];
            }
        }
    }
    free(score), free(dp);
}

/* Compares the `width` elements of each token and sees that what lies between tokens was left alone. */
static void check_tokens(const char *what, const float *actual, const float *before, const double *expected,
                         int64_t batch, int64_t tokens, int64_t stride, int64_t batch_stride, int64_t width,
                         double tolerance) {
    double largest =
        0.1; /* inputs are of order one: where the truth is zero, this much of them is what rounding is relative to */
    for (int64_t i = 0; i < batch * batch_stride; i++) largest = fmax(largest, fabs(expected[i]));
    for (int64_t i = 0; i < batch * batch_stride; i++) {
        const int64_t within = i % batch_stride;
        if (within < tokens * stride && within % stride < width) {
            if (!(fabs((double)actual[i] - expected[i]) <= tolerance * largest))
                fail_msg("%s[%d] is %.9g, the reference %.9g (largest %.3g)", what, (int)i, (double)actual[i],
                         expected[i], largest);
        } else if (actual[i] != before[i]) {
            fail_msg("%s[%d], between tokens, was written", what, (int)i);
        }
    }
}

/* Scores reach |s| = 4 size scale; an absolute error of a few size * 2^-24 in them is the same relative error in a
 * probability, and sums over up to 300 keys add theirs: 3e-5 of the largest element leaves a factor of about ten. */
static void check(struct problem p) {
    const double tolerance = 3e-5;
    struct tensors t = make(&p);
    const float scale = (float)(1.0 / sqrt((double)p.size));
    const int32_t *document_start = p.documents ? t.document_start : NULL;
    float *before = copy_floats(t.output, t.output_count);
    reference(&p, &t, (double)scale);
    struct support s = support_open(p.threads, LS_STREAMS_EAGER);
    ls_op(s.stream, attention_forward, .output = t.output, .lse = t.lse, .q = t.q, .k = t.k, .v = t.v,
          .document_start = document_start, .batch = p.batch, .query_length = p.queries, .key_length = p.keys,
          .heads = p.heads, .kv_heads = p.kv_heads, .head_size = p.size, .q_stride = t.q_stride,
          .kv_stride = t.kv_stride, .output_stride = t.output_stride, .q_batch_stride = t.q_batch,
          .kv_batch_stride = t.kv_batch, .output_batch_stride = t.output_batch, .scale = scale);
    check_tokens("output", t.output, before, t.output_expected, p.batch, p.queries, t.output_stride, t.output_batch,
                 p.heads * p.size, tolerance);
    check_close("lse", t.lse, t.lse_expected, t.lse_count, tolerance);
    if (p.queries == p.keys) {
        float *dq = copy_floats(t.dq, t.q_count), *dk = copy_floats(t.dk, t.kv_count),
              *dv = copy_floats(t.dv, t.kv_count);
        struct ls_op_attention_backward op = {.q_gradient = t.dq,
                                              .k_gradient = t.dk,
                                              .v_gradient = t.dv,
                                              .output_gradient = t.d_output,
                                              .output = t.output,
                                              .q = t.q,
                                              .k = t.k,
                                              .v = t.v,
                                              .lse = t.lse,
                                              .document_start = document_start,
                                              .batch = p.batch,
                                              .length = p.queries,
                                              .heads = p.heads,
                                              .kv_heads = p.kv_heads,
                                              .head_size = p.size,
                                              .q_stride = t.q_stride,
                                              .kv_stride = t.kv_stride,
                                              .output_stride = t.output_stride,
                                              .q_batch_stride = t.q_batch,
                                              .kv_batch_stride = t.kv_batch,
                                              .output_batch_stride = t.output_batch,
                                              .scale = scale};
        op.workspace = malloc(ls_op_workspace(s.device, LS_OP_attention_backward, &op) + 1);
        ls_stream_submit(s.stream, LS_OP_attention_backward, &op, sizeof op);
        check_tokens("dq", t.dq, dq, t.dq_expected, p.batch, p.queries, t.q_stride, t.q_batch, p.heads * p.size,
                     tolerance);
        check_tokens("dk", t.dk, dk, t.dk_expected, p.batch, p.keys, t.kv_stride, t.kv_batch, p.kv_heads * p.size,
                     tolerance);
        check_tokens("dv", t.dv, dv, t.dv_expected, p.batch, p.keys, t.kv_stride, t.kv_batch, p.kv_heads * p.size,
                     tolerance);
        free(op.workspace), free(dq), free(dk), free(dv);
    }
    support_close(s);
    free(before);
    release(&t);
}

static void attention_and_its_gradients_are_right_for_odd_shapes(void **state) {
    (void)state;
    static const int64_t lengths[] = {1, 3, 17, 63, 64, 65, 257, 300}, sizes[] = {1, 3, 17, 64, 65};
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 5; j++)
            check((struct problem){.batch = 1 + random_below(2),
                                   .queries = lengths[i],
                                   .keys = lengths[i],
                                   .heads = 2,
                                   .kv_heads = 2,
                                   .size = sizes[j],
                                   .threads = 1});
}

static void grouped_heads_share_keys_and_add_their_gradients(void **state) {
    (void)state;
    check((struct problem){.batch = 2, .queries = 70, .keys = 70, .heads = 6, .kv_heads = 2, .size = 8, .threads = 1});
    check((struct problem){.batch = 1, .queries = 33, .keys = 33, .heads = 5, .kv_heads = 1, .size = 7, .threads = 2});
}

static void attention_does_not_cross_documents(void **state) {
    (void)state;
    for (int i = 0; i < 6; i++) {
        const int64_t length = 1 + random_below(400);
        check((struct problem){.batch = 2,
                               .queries = length,
                               .keys = length,
                               .heads = 2,
                               .kv_heads = 1,
                               .size = 9,
                               .documents = true,
                               .threads = 1 + i % 2});
    }
}

static void queries_may_be_fewer_than_cached_keys(void **state) {
    (void)state;
    check((struct problem){.batch = 2, .queries = 1, .keys = 301, .heads = 4, .kv_heads = 2, .size = 16, .threads = 1});
    check((struct problem){.batch = 1, .queries = 1, .keys = 1, .heads = 1, .kv_heads = 1, .size = 5, .threads = 1});
    check(
        (struct problem){.batch = 2, .queries = 67, .keys = 330, .heads = 4, .kv_heads = 2, .size = 16, .threads = 2});
    check((struct problem){
        .batch = 2, .queries = 5, .keys = 280, .heads = 4, .kv_heads = 4, .size = 16, .documents = true, .threads = 1});
}

/* Scores grow along the sequence, so that the maximum of a row moves with every block of keys and what was summed must
 * be rescaled. */
static void rising_scores_are_rescaled_from_block_to_block(void **state) {
    (void)state;
    struct problem p = {.batch = 1, .queries = 700, .keys = 700, .heads = 1, .kv_heads = 1, .size = 2, .threads = 1};
    struct tensors t = make(&p);
    for (int64_t i = 0; i < 700; i++) {
        t.q[i * t.q_stride] = 1.0f, t.q[i * t.q_stride + 1] = 0.0f;
        t.k[i * t.kv_stride] = 0.1f * (float)i; /* up to 70: exp(70) - exp(0) needs the maximum taken off */
    }
    reference(&p, &t, 1.0);
    struct support s = support_open(1, LS_STREAMS_EAGER);
    ls_op(s.stream, attention_forward, .output = t.output, .lse = t.lse, .q = t.q, .k = t.k, .v = t.v, .batch = 1,
          .query_length = 700, .key_length = 700, .heads = 1, .kv_heads = 1, .head_size = 2, .q_stride = t.q_stride,
          .kv_stride = t.kv_stride, .output_stride = t.output_stride, .q_batch_stride = t.q_batch,
          .kv_batch_stride = t.kv_batch, .output_batch_stride = t.output_batch, .scale = 1.0f);
    support_close(s);
    for (int64_t i = 0; i < 700; i++) {
        assert_true(fabs((double)t.lse[i] - t.lse_expected[i]) < 1e-5 * 70.0);
        for (int64_t c = 0; c < 2; c++)
            assert_true(fabs((double)t.output[i * t.output_stride + c] - t.output_expected[i * t.output_stride + c]) <
                        1e-5);
    }
    release(&t);
}

static void heads_larger_than_a_piece_are_right(void **state) {
    (void)state;
    check(
        (struct problem){.batch = 1, .queries = 75, .keys = 75, .heads = 2, .kv_heads = 1, .size = 300, .threads = 1});
    check(
        (struct problem){.batch = 1, .queries = 70, .keys = 300, .heads = 1, .kv_heads = 1, .size = 129, .threads = 1});
}

/* A task belongs to a head whatever the threads. */
static void attention_gives_the_same_bits_with_any_number_of_threads(void **state) {
    (void)state;
    const struct problem p = {.batch = 3, .queries = 290, .keys = 290, .heads = 2, .kv_heads = 1, .size = 20};
    struct tensors t = make(&p);
    float *results[2][5];
    for (int round = 0; round < 2; round++) {
        struct support s = support_open(round ? 3 : 1, LS_STREAMS_EAGER);
        ls_op(s.stream, attention_forward, .output = t.output, .lse = t.lse, .q = t.q, .k = t.k, .v = t.v,
              .document_start = t.document_start, .batch = p.batch, .query_length = p.queries, .key_length = p.keys,
              .heads = p.heads, .kv_heads = p.kv_heads, .head_size = p.size, .q_stride = t.q_stride,
              .kv_stride = t.kv_stride, .output_stride = t.output_stride, .q_batch_stride = t.q_batch,
              .kv_batch_stride = t.kv_batch, .output_batch_stride = t.output_batch, .scale = 0.3f);
        ls_op(s.stream, attention_backward, .q_gradient = t.dq, .k_gradient = t.dk, .v_gradient = t.dv,
              .output_gradient = t.d_output, .output = t.output, .q = t.q, .k = t.k, .v = t.v, .lse = t.lse,
              .document_start = t.document_start, .batch = p.batch, .length = p.queries, .heads = p.heads,
              .kv_heads = p.kv_heads, .head_size = p.size, .q_stride = t.q_stride, .kv_stride = t.kv_stride,
              .output_stride = t.output_stride, .q_batch_stride = t.q_batch, .kv_batch_stride = t.kv_batch,
              .output_batch_stride = t.output_batch, .scale = 0.3f);
        support_close(s);
        results[round][0] = copy_floats(t.output, t.output_count), results[round][1] = copy_floats(t.lse, t.lse_count);
        results[round][2] = copy_floats(t.dq, t.q_count), results[round][3] = copy_floats(t.dk, t.kv_count);
        results[round][4] = copy_floats(t.dv, t.kv_count);
    }
    check_same_bits("output", results[0][0], results[1][0], t.output_count);
    check_same_bits("lse", results[0][1], results[1][1], t.lse_count);
    check_same_bits("dq", results[0][2], results[1][2], t.q_count);
    check_same_bits("dk", results[0][3], results[1][3], t.kv_count);
    check_same_bits("dv", results[0][4], results[1][4], t.kv_count);
    for (int i = 0; i < 10; i++) free(results[i / 5][i % 5]);
    release(&t);
}

int main(int argc, char **argv) {
    (void)argc;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_and_its_gradients_are_right_for_odd_shapes),
        cmocka_unit_test(grouped_heads_share_keys_and_add_their_gradients),
        cmocka_unit_test(attention_does_not_cross_documents),
        cmocka_unit_test(queries_may_be_fewer_than_cached_keys),
        cmocka_unit_test(rising_scores_are_rescaled_from_block_to_block),
        cmocka_unit_test(heads_larger_than_a_piece_are_right),
        cmocka_unit_test(attention_gives_the_same_bits_with_any_number_of_threads),
    };
    return support_again_without_pairs(cmocka_run_group_tests(tests, NULL, NULL), argv);
}
