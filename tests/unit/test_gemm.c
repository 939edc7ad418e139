/* Matrix products against a double-precision reference. */
#include "tests/unit/support.h"

static double gelu(double x) {
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

static double gelu_derivative(double x) {
    const double root = sqrt(2.0 / M_PI), t = tanh(root * (x + 0.044715 * x * x * x));
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * root * (1.0 + 3.0 * 0.044715 * x * x);
}

struct problem {
    int64_t m, n, k;
    bool transpose_a, transpose_b, accumulate, residual;
    enum ls_epilogue epilogue;
    int threads;
};

/* Each element may be off by the rounding of each of its k products and sums, of the epilogue's few operations, and no
 * more: |error| <= (k + 2) u sum |a| |b| (Higham 2002, section 3.5), whatever the order of the sum; one rounding more
 * with a residual. */
static void check(struct problem p) {
    const int64_t lda = (p.transpose_a ? p.m : p.k) + random_below(5),
                  ldb = (p.transpose_b ? p.k : p.n) + random_below(5);
    const int64_t ldc = p.n + random_below(5);
    const int64_t a_count = (p.transpose_a ? p.k : p.m) * lda, b_count = (p.transpose_b ? p.n : p.k) * ldb,
                  c_count = p.m * ldc;
    float *a = random_floats(a_count, 1), *b = random_floats(b_count, 1), *c = random_floats(c_count, 1);
    float *bias = random_floats(p.n, 1), *aux = random_floats(c_count, 3), *before = copy_floats(c, c_count);
    float *residual = random_floats(c_count, 1);
    float *aux_before = copy_floats(aux, c_count);
    if (!p.accumulate) /* what is not to be read must not matter */
        for (int64_t i = 0; i < p.m; i++)
            for (int64_t j = 0; j < p.n; j++) c[i * ldc + j] = NAN;
    struct support s = support_open(p.threads, LS_STREAMS_EAGER);
    ls_op(s.stream, gemm, .c = c, .a = a, .b = b, .m = p.m, .n = p.n, .k = p.k, .lda = lda, .ldb = ldb, .ldc = ldc,
          .transpose_a = p.transpose_a, .transpose_b = p.transpose_b, .accumulate = p.accumulate,
          .epilogue = p.epilogue, .bias = bias, .residual = p.residual ? residual : NULL, .aux = aux);
    support_close(s);
    for (int64_t i = 0; i < p.m; i++) {
        for (int64_t j = 0; j < p.n; j++) {
            double sum = 0.0, size = 0.0;
            for (int64_t l = 0; l < p.k; l++) {
                const double term = (double)(p.transpose_a ? a[l * lda + i] : a[i * lda + l]) *
                                    (double)(p.transpose_b ? b[j * ldb + l] : b[l * ldb + j]);
                sum += term;
                size += fabs(term);
            }
            double expected = sum, allowed = (double)(p.k + 2 + p.residual) * ROUNDING * (size + 1.0 + p.residual);
            const double x = (double)aux_before[i * ldc + j];
            if (p.accumulate) expected += (double)before[i * ldc + j];
            if (p.epilogue == LS_EPILOGUE_BIAS) expected += (double)bias[j];
            if (p.residual) expected += (double)residual[i * ldc + j];
            if (p.epilogue == LS_EPILOGUE_BIAS_GELU) {
                expected += (double)bias[j];
                if (!(fabs((double)aux[i * ldc + j] - expected) <= allowed))
                    fail_msg("aux[%d, %d] is %g, not %g", (int)i, (int)j, (double)aux[i * ldc + j], expected);
                expected = gelu(expected),
                allowed = 1.2 * allowed + 4.0 * ROUNDING * fabs(expected); /* |gelu'| < 1.13 */
            }
            if (p.epilogue == LS_EPILOGUE_GELU_GRAD)
                expected *= gelu_derivative(x), allowed = 1.2 * allowed + 16.0 * ROUNDING * fabs(sum);
            if (!(fabs((double)c[i * ldc + j] - expected) <= allowed))
                fail_msg("m %d n %d k %d ta %d tb %d epilogue %d: c[%d, %d] is %.9g, the reference %.9g", (int)p.m,
                         (int)p.n, (int)p.k, p.transpose_a, p.transpose_b, p.epilogue, (int)i, (int)j,
                         (double)c[i * ldc + j], expected);
        }
        for (int64_t j = p.n; j < ldc; j++) assert_float_equal(c[i * ldc + j], before[i * ldc + j], 0.0f);
    }
    free(a), free(b), free(c), free(bias), free(residual), free(aux), free(before), free(aux_before);
}

static void product_is_right_for_odd_shapes_transposes_and_strides(void **state) {
    (void)state;
    static const int64_t sizes[] = {1, 3, 17, 65, 130};
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 5; j++)
            for (int kind = 0; kind < 4; kind++)
                check((struct problem){.m = sizes[i],
                                       .n = sizes[j],
                                       .k = sizes[random_below(5)],
                                       .transpose_a = kind & 1,
                                       .transpose_b = kind & 2,
                                       .accumulate = random_below(2),
                                       .threads = 1});
}

static void long_sums_of_weight_gradients_are_right(void **state) {
    (void)state;
    check((struct problem){.m = 65, .n = 33, .k = 1031, .transpose_a = true, .accumulate = true, .threads = 1});
    check((struct problem){.m = 1024, .n = 7, .k = 300, .transpose_a = true, .accumulate = true, .threads = 1});
    check((struct problem){.m = 2, .n = 3, .k = 0, .threads = 1});
    check((struct problem){.m = 2, .n = 3, .k = 0, .accumulate = true, .threads = 1});
    check((struct problem){.m = 5, .n = 3, .k = 0, .epilogue = LS_EPILOGUE_BIAS, .threads = 1});
}

static void epilogues_add_bias_and_apply_gelu_and_its_derivative(void **state) {
    (void)state;
    for (int epilogue = LS_EPILOGUE_BIAS; epilogue <= LS_EPILOGUE_GELU_GRAD; epilogue++)
        for (int kind = 0; kind < 4; kind++)
            check((struct problem){.m = 257,
                                   .n = 1 + random_below(70),
                                   .k = 1 + random_below(70),
                                   .transpose_a = kind & 1,
                                   .transpose_b = kind & 2,
                                   .epilogue = (enum ls_epilogue)epilogue,
                                   .threads = 1});
}

static void the_residual_is_added_last(void **state) {
    (void)state;
    for (int kind = 0; kind < 8; kind++)
        check((struct problem){.m = 1 + random_below(300),
                               .n = 1 + random_below(70),
                               .k = 1 + random_below(70),
                               .transpose_a = kind & 1,
                               .transpose_b = kind & 2,
                               .residual = true,
                               .epilogue = kind & 4 ? LS_EPILOGUE_BIAS : LS_EPILOGUE_NONE,
                               .threads = 1 + kind % 3});
}

static void threads_share_the_product_without_gaps(void **state) {
    (void)state;
    for (int threads = 2; threads <= 4; threads++)
        for (int epilogue = LS_EPILOGUE_NONE; epilogue <= LS_EPILOGUE_GELU_GRAD; epilogue++) {
            check((struct problem){.m = 301,
                                   .n = 67,
                                   .k = 80,
                                   .transpose_b = true,
                                   .epilogue = (enum ls_epilogue)epilogue,
                                   .threads = threads});
            check((struct problem){
                .m = 19, .n = 517, .k = 130, .epilogue = (enum ls_epilogue)epilogue, .threads = threads});
        }
}

/* Where factors are cut into parts of fewer bits, none may get lost, whatever the sizes of neighbours. A sum of K
 * random terms loses a few roundings of its size; with a part of 8 bits missing it would lose 2^-17 / sqrt(K), 16
 * roundings. */
static void no_bit_of_a_factor_is_lost(void **state) {
    (void)state;
    enum { M = 70, N = 90, K = 64 };
    float *a = random_floats((int64_t)M * K, 1), *b = random_floats((int64_t)K * N, 1),
          *c = random_floats((int64_t)M * N, 1);
    for (int l = 0; l < K; l++) {
        const float scale = ldexpf(1.0f, (int)random_below(61) - 30);
        for (int i = 0; i < M; i++) a[i * K + l] *= scale;
        for (int j = 0; j < N; j++) b[l * N + j] /= scale;
    }
    struct support s = support_open(1, LS_STREAMS_EAGER);
    ls_op(s.stream, gemm, .c = c, .a = a, .b = b, .m = M, .n = N, .k = K, .lda = K, .ldb = N, .ldc = N);
    support_close(s);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0.0, size = 0.0;
            for (int l = 0; l < K; l++) {
                sum += (double)a[i * K + l] * (double)b[l * N + j];
                size += fabs((double)a[i * K + l] * (double)b[l * N + j]);
            }
            if (!(fabs((double)c[i * N + j] - sum) <= 8.0 * ROUNDING * size))
                fail_msg("c[%d, %d] is %.9g, the reference %.9g", i, j, (double)c[i * N + j], sum);
        }
    free(a), free(b), free(c);
}

/* Numbers so small that nothing is left of them, or of their parts, leave their neighbours as they are: whatever is
 * below 2^-126 may count as zero. */
static void the_smallest_numbers_disturb_nobody(void **state) {
    (void)state;
    enum { M = 96, N = 96, K = 96 };
    for (int way = 0; way < 4; way++) {
        const bool ta = way & 1, tb = way & 2;
        float *a = random_floats((int64_t)M * K, 1), *b = random_floats((int64_t)K * N, 1),
              *c = random_floats((int64_t)M * N, 1);
        for (int i = 0; i < M * K; i++)
            if (random_below(2)) a[i] = ldexpf(a[i], -90 - (int)random_below(60));
        for (int i = 0; i < K * N; i++)
            if (random_below(2)) b[i] = ldexpf(b[i], -90 - (int)random_below(60));
        struct support s = support_open(1, LS_STREAMS_EAGER);
        ls_op(s.stream, gemm, .c = c, .a = a, .b = b, .m = M, .n = N, .k = K, .lda = ta ? M : K, .ldb = tb ? K : N,
              .ldc = N, .transpose_a = ta, .transpose_b = tb);
        support_close(s);
        for (int i = 0; i < M; i++)
            for (int j = 0; j < N; j++) {
                double sum = 0.0, size = 0.0;
                for (int l = 0; l < K; l++) {
                    const double term =
                        (double)(ta ? a[l * M + i] : a[i * K + l]) * (double)(tb ? b[j * K + l] : b[l * N + j]);
                    sum += term;
                    size += fabs(term);
                }
                if (!(fabs((double)c[i * N + j] - sum) <= 8.0 * ROUNDING * size + 3.0 * K * 0x1p-126))
                    fail_msg("c[%d, %d] is %.9g, the reference %.9g", i, j, (double)c[i * N + j], sum);
            }
        free(a), free(b), free(c);
    }
}

/* What is not finite is seen in its own row or column, and nowhere else. */
static void what_is_not_finite_stays_so_and_where_it_is(void **state) {
    (void)state;
    enum { SIDE = 80, ROW = 41, COLUMN = 37 };
    float *a = random_floats((int64_t)SIDE * SIDE, 1), *b = random_floats((int64_t)SIDE * SIDE, 1);
    float *c = random_floats((int64_t)SIDE * SIDE, 1);
    a[ROW * SIDE + 5] = INFINITY;
    b[9 * SIDE + COLUMN] = NAN;
    struct support s = support_open(1, LS_STREAMS_EAGER);
    ls_op(s.stream, gemm, .c = c, .a = a, .b = b, .m = SIDE, .n = SIDE, .k = SIDE, .lda = SIDE, .ldb = SIDE,
          .ldc = SIDE);
    support_close(s);
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++)
            if (isfinite(c[i * SIDE + j]) != (i != ROW && j != COLUMN))
                fail_msg("c[%d, %d] is %g", i, j, (double)c[i * SIDE + j]);
    free(a), free(b), free(c);
}

/* Deeper, wider and higher than the blocks that stay in a cache. */
static void large_products_are_right(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++)
        check((struct problem){.m = 75,
                               .n = 411,
                               .k = 793,
                               .transpose_a = kind & 1,
                               .transpose_b = kind & 2,
                               .accumulate = kind == 1,
                               .epilogue = kind == 1 ? LS_EPILOGUE_NONE : (enum ls_epilogue)kind,
                               .threads = 1 + kind % 2});
}

/* The sums have the bits of the operation that makes them alone, and the product those of one without them. */
static void a_weight_s_gradient_takes_its_bias_s_with_it(void **state) {
    (void)state;
    for (int type = LS_FP32; type <= LS_FP16; type++)
        for (int fixed = 0; fixed < 2; fixed++) {
            const int64_t IN = 1 + random_below(70), OUT = 1 + random_below(90), R = 1 + random_below(300);
            float *wide[] = {random_floats(R * IN, 1), random_floats(R * OUT, 1)};
            float *x = copy_floats(wide[0], R * IN), *dy = copy_floats(wide[1], R * OUT);
            float *dw = random_floats(IN * OUT, 1), *dw_alone = copy_floats(dw, IN * OUT);
            float *db = random_floats(OUT, 1), *db_alone = copy_floats(db, OUT);
            struct support s = support_open(2, LS_STREAMS_EAGER);
            const enum ls_dtype dtype = (enum ls_dtype)type;
            ls_device_set_fixed(s.device, fixed);
            ls_op(s.stream, convert, .output = x, .input = wide[0], .count = R * IN, .dtype = dtype);
            ls_op(s.stream, convert, .output = dy, .input = wide[1], .count = R * OUT, .dtype = dtype);
            ls_op(s.stream, gemm, .c = dw, .a = x, .b = dy, .m = IN, .n = OUT, .k = R, .lda = IN, .ldb = OUT,
                  .ldc = OUT, .transpose_a = true, .accumulate = true, .c_fp32 = true, .bias_gradient = db,
                  .dtype = dtype);
            ls_op(s.stream, gemm, .c = dw_alone, .a = x, .b = dy, .m = IN, .n = OUT, .k = R, .lda = IN, .ldb = OUT,
                  .ldc = OUT, .transpose_a = true, .accumulate = true, .c_fp32 = true, .dtype = dtype);
            ls_op(s.stream, bias_backward, .bias_gradient = db_alone, .output_gradient = dy, .rows = R, .columns = OUT,
                  .dtype = dtype);
            support_close(s);
            check_same_bits("the weight's gradient", dw, dw_alone, IN * OUT);
            check_same_bits("the bias's gradient", db, db_alone, OUT);
            float *const all[] = {wide[0], wide[1], x, dy, dw, dw_alone, db, db_alone};
            for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
        }
}

int main(int argc, char **argv) {
    (void)argc;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(product_is_right_for_odd_shapes_transposes_and_strides),
        cmocka_unit_test(long_sums_of_weight_gradients_are_right),
        cmocka_unit_test(epilogues_add_bias_and_apply_gelu_and_its_derivative),
        cmocka_unit_test(the_residual_is_added_last),
        cmocka_unit_test(no_bit_of_a_factor_is_lost),
        cmocka_unit_test(the_smallest_numbers_disturb_nobody),
        cmocka_unit_test(what_is_not_finite_stays_so_and_where_it_is),
        cmocka_unit_test(large_products_are_right),
        cmocka_unit_test(threads_share_the_product_without_gaps),
        cmocka_unit_test(a_weight_s_gradient_takes_its_bias_s_with_it),
    };
    return support_again_without_pairs(cmocka_run_group_tests(tests, NULL, NULL), argv);
}
