/* bf16 and fp16: the conversions against arithmetic on powers of two, the operations against the fp32 kernels on the
 * values that the low-precision arrays hold. Those kernels are held against double references in their own tests; what
 * is left to see here is that values are read right and results rounded once. So a result may differ from the fp32 one
 * by half a unit in the last place, and by what a sum's order makes of fp32 where it is not the same. */
#include "support.h"

#include "worker/device/cpu/low_precision.h"

static const enum ls_dtype types[] = {LS_BF16, LS_FP16};
/* Half a unit in the last place of a value in [1, 2), which is the most relative to the value: 8 and 11 bits. */
static const double units[] = {0x1p-8, 0x1p-11};
enum { TYPES = 2 };

/* The value of the bits, from the definition of the formats (IEEE 754-2019, section 3.4, and bf16 with 8 bits of
 * exponent and 7 of fraction). */
static double value_of(int type, uint16_t bits) {
    const int fraction_bits = type == 0 ? 7 : 10, exponent_bits = 15 - fraction_bits,
              bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1),
              fraction = bits & ((1 << fraction_bits) - 1);
    const double sign = bits & 0x8000 ? -1 : 1;
    if (exponent == (1 << exponent_bits) - 1) return fraction ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * ldexp(fraction, 1 - bias - fraction_bits);
    return sign * ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

static uint16_t narrow(int type, float value) {
    uint16_t bits;
    ls_narrow(types[type], &bits, &value, 1);
    return bits;
}

static void every_value_widens_to_itself_and_back(void **state) {
    (void)state;
    for (int type = 0; type < TYPES; type++)
        for (int bits = 0; bits < 65536; bits++) {
            const uint16_t low = (uint16_t)bits;
            const double value = value_of(type, low);
            float wide;
            ls_widen(types[type], &wide, &low, 1);
            if (isnan(value)) {
                assert_true(isnan(wide));
                assert_true(isnan(value_of(type, narrow(type, wide))));
            } else {
                assert_true((double)wide == value && !signbit(wide) == !signbit(value));
                assert_int_equal(narrow(type, wide), low);
            }
        }
}

/* Between any two neighbours: just below the middle, the middle (to the even one), just above. */
static void values_between_round_to_the_nearest_ties_to_even(void **state) {
    (void)state;
    for (int type = 0; type < TYPES; type++) {
        const int infinity = type == 0 ? 0x7f80 : 0x7c00;
        for (int bits = 0; bits < infinity - 1; bits++) {
            const float middle = (float)((value_of(type, (uint16_t)bits) + value_of(type, (uint16_t)(bits + 1))) / 2);
            assert_int_equal(narrow(type, middle), bits % 2 ? bits + 1 : bits);
            assert_int_equal(narrow(type, nextafterf(middle, 0)), bits);
            assert_int_equal(narrow(type, nextafterf(middle, INFINITY)), bits + 1);
            assert_int_equal(narrow(type, -middle), 0x8000 | (bits % 2 ? bits + 1 : bits));
        }
        /* Past the last finite value rounding goes on as if there were another one, which is infinity. */
        const double last = value_of(type, (uint16_t)(infinity - 1)), before = value_of(type, (uint16_t)(infinity - 2));
        const float over = (float)(last + (last - before) / 2);
        assert_int_equal(narrow(type, over), infinity);
        assert_int_equal(narrow(type, nextafterf(over, 0)), infinity - 1);
        assert_int_equal(narrow(type, INFINITY), infinity);
        assert_int_equal(narrow(type, -INFINITY), 0x8000 | infinity);
    }
}

static float *zero_floats(int64_t count) {
    float *x = calloc((size_t)count + 1, sizeof *x);
    assert_non_null(x);
    return x;
}

/* An array in a type, and in fp32 the values it holds. */
struct pair {
    uint16_t *low;
    float *wide;
    int64_t count;
};

/* Random; behind the last element there is one more that nobody may touch. */
static struct pair make(int type, int64_t count, double scale) {
    struct pair pair = {
        .low = calloc((size_t)count + 1, sizeof *pair.low), .wide = random_floats(count, scale), .count = count};
    assert_non_null(pair.low);
    ls_narrow(types[type], pair.low, pair.wide, count);
    ls_widen(types[type], pair.wide, pair.low, count);
    pair.low[count] = 0x1234;
    return pair;
}

static void drop(struct pair pair) {
    free(pair.low);
    free(pair.wide);
}

/* `low` is `wide` rounded; `slack` is what sums in another order may add, relative to the largest value. */
static void check_rounded(const char *what, int type, struct pair pair, double slack) {
    double largest = 0;
    for (int64_t i = 0; i < pair.count; i++) {
        const double size = fabs((double)pair.wide[i]);
        largest = size > largest ? size : largest; /* gcc 12 for Arm ends with an internal error at fmax here */
    }
    for (int64_t i = 0; i < pair.count; i++) {
        const double wide = (double)pair.wide[i], low = value_of(type, pair.low[i]);
        const double allowed = units[type] * fabs(wide) + slack * largest + 0x1p-25; /* fp16's smallest is 2^-24 */
        if (!(fabs(low - wide) <= allowed))
            fail_msg("%s[%lld] is %.9g, fp32 gives %.9g (allowed %.3g)", what, (long long)i, low, wide, allowed);
    }
    assert_int_equal(pair.low[pair.count], 0x1234);
}

/* Sums of a few hundred products in another order: some units of fp32. */
static const double SUMS = 1e-5;

static void element_operations_round_what_fp32_computes(void **state) {
    (void)state;
    for (int type = 0; type < TYPES; type++)
        for (int threads = 1; threads <= 2; threads++) {
            struct support s = support_open(threads, LS_STREAMS_EAGER);
            const int64_t count = 1 + random_below(40000), rows = 1 + random_below(40),
                          columns = 1 + random_below(1500);
            struct pair a = make(type, count, 4), b = make(type, count, 4), sum = make(type, count, 1);
            ls_op(s.stream, add, .sum = sum.low, .a = a.low, .b = b.low, .count = count, .dtype = types[type]);
            ls_op(s.stream, add, .sum = sum.wide, .a = a.wide, .b = b.wide, .count = count);
            check_rounded("add", type, sum, 0);
            ls_op(s.stream, gelu_forward, .output = sum.low, .input = a.low, .count = count, .dtype = types[type]);
            ls_op(s.stream, gelu_forward, .output = sum.wide, .input = a.wide, .count = count);
            check_rounded("gelu", type, sum, 1e-7);
            ls_op(s.stream, gelu_backward, .input_gradient = b.low, .output_gradient = b.low, .input = a.low,
                  .count = count, .dtype = types[type]);
            ls_op(s.stream, gelu_backward, .input_gradient = b.wide, .output_gradient = b.wide, .input = a.wide,
                  .count = count);
            check_rounded("gelu's gradient", type, b, 1e-7);
            struct pair gate_up = make(type, rows * 2 * columns, 3), output = make(type, rows * columns, 1);
            ls_op(s.stream, swiglu_forward, .output = output.low, .gate_up = gate_up.low, .rows = rows,
                  .columns = columns, .dtype = types[type]);
            ls_op(s.stream, swiglu_forward, .output = output.wide, .gate_up = gate_up.wide, .rows = rows,
                  .columns = columns);
            check_rounded("swiglu", type, output, 1e-7);
            struct pair gradient = make(type, rows * columns, 1);
            ls_op(s.stream, swiglu_backward, .gate_up_gradient = gate_up.low, .output_gradient = gradient.low,
                  .gate_up = gate_up.low, .rows = rows, .columns = columns, .dtype = types[type]);
            ls_op(s.stream, swiglu_backward, .gate_up_gradient = gate_up.wide, .output_gradient = gradient.wide,
                  .gate_up = gate_up.wide, .rows = rows, .columns = columns);
            check_rounded("swiglu's gradient", type, gate_up, 1e-7);
            drop(a), drop(b), drop(sum), drop(gate_up), drop(output), drop(gradient);
            support_close(s);
        }
}

static void rotations_round_what_fp32_computes(void **state) {
    (void)state;
    enum { ROWS = 21, LENGTH = 7, HEADS = 3, HD = 10, STRIDE = 37 };
    for (int type = 0; type < TYPES; type++) {
        struct support s = support_open(2, LS_STREAMS_EAGER);
        struct pair x = make(type, ROWS * STRIDE, 2);
        float *table = random_floats(LENGTH * HD, 1);
        for (int inverse = 0; inverse < 2; inverse++) {
            ls_op(s.stream, rope, .x = x.low, .table = table, .rows = ROWS, .length = LENGTH, .heads = HEADS,
                  .head_size = HD, .stride = STRIDE, .inverse = inverse, .dtype = types[type]);
            ls_op(s.stream, rope, .x = x.wide, .table = table, .rows = ROWS, .length = LENGTH, .heads = HEADS,
                  .head_size = HD, .stride = STRIDE, .inverse = inverse);
            check_rounded("rope", type, x, 1e-7);
            ls_widen(types[type], x.wide, x.low, x.count);
        }
        drop(x);
        free(table);
        support_close(s);
    }
}

/* Shapes around and beyond a tile, and the blocks and slabs of pairs, with room behind the rows; results in the
 * type and, for gradients of parameters, in fp32. */
static void products_round_what_fp32_computes(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {{1, 1, 1},       {5, 3, 0},       {130, 70, 300}, {64, 520, 33},
                                        {128, 256, 256}, {230, 401, 801}, {70, 33, 1601}};
    for (int type = 0; type < TYPES; type++)
        for (size_t shape = 0; shape < sizeof shapes / sizeof *shapes; shape++)
            for (int way = 0; way < 16; way++) {
                const int64_t m = shapes[shape][0], n = shapes[shape][1], k = shapes[shape][2];
                const bool ta = way & 1, tb = way & 2, gradient = way & 4, accumulate = way & 8;
                struct support s = support_open(1 + (int)(shape % 2), LS_STREAMS_EAGER);
                struct pair a = make(type, (ta ? k : m) * ((ta ? m : k) + 3), 1),
                            b = make(type, (tb ? n : k) * ((tb ? k : n) + 2), 1);
                struct pair c = make(type, m * (n + 1), 1);
                float *sums = copy_floats(c.wide, c.count);
                struct ls_op_gemm op = {.c = gradient ? (void *)sums : c.low,
                                        .a = a.low,
                                        .b = b.low,
                                        .m = m,
                                        .n = n,
                                        .k = k,
                                        .lda = (ta ? m : k) + 3,
                                        .ldb = (tb ? k : n) + 2,
                                        .ldc = n + 1,
                                        .transpose_a = ta,
                                        .transpose_b = tb,
                                        .accumulate = accumulate,
                                        .c_fp32 = gradient,
                                        .dtype = types[type]};
                ls_stream_submit(s.stream, LS_OP_gemm, &op, sizeof op);
                op.c = c.wide, op.a = a.wide, op.b = b.wide, op.c_fp32 = false, op.dtype = LS_FP32;
                ls_stream_submit(s.stream, LS_OP_gemm, &op, sizeof op);
                if (gradient) {
                    double *expected = zero_doubles(c.count);
                    for (int64_t i = 0; i < c.count; i++) expected[i] = (double)c.wide[i];
                    check_close("gradient", sums, expected, c.count, SUMS);
                    free(expected);
                } else {
                    check_rounded("product", type, c, SUMS);
                }
                free(sums);
                drop(a), drop(b), drop(c);
                support_close(s);
            }
}

/* The activation function takes what was stored before it, so that it can be computed again from there. */
static void epilogues_round_once_and_go_on_from_what_is_stored(void **state) {
    (void)state;
    const int64_t M = 70, N = 300, K = 40;
    for (int type = 0; type < TYPES; type++) {
        struct support s = support_open(2, LS_STREAMS_EAGER);
        struct pair a = make(type, M * K, 1), b = make(type, K * N, 1), bias = make(type, N, 1),
                    residual = make(type, M * N, 1), aux = make(type, M * N, 1), c = make(type, M * N, 1);
        const struct ls_op_gemm shape = {.m = M, .n = N, .k = K, .lda = K, .ldb = N, .ldc = N};
        struct ls_op_gemm low = shape, wide = shape;
        low.a = a.low, low.b = b.low, low.c = c.low, low.bias = bias.low, low.aux = aux.low, low.dtype = types[type];
        wide.a = a.wide, wide.b = b.wide, wide.c = c.wide, wide.bias = bias.wide, wide.aux = aux.wide;
        low.epilogue = wide.epilogue = LS_EPILOGUE_BIAS;
        ls_stream_submit(s.stream, LS_OP_gemm, &low, sizeof low);
        ls_stream_submit(s.stream, LS_OP_gemm, &wide, sizeof wide);
        check_rounded("bias", type, c, SUMS);
        low.residual = residual.low, wide.residual = residual.wide;
        for (low.epilogue = LS_EPILOGUE_NONE; low.epilogue <= LS_EPILOGUE_BIAS; low.epilogue++) {
            wide.epilogue = low.epilogue;
            ls_stream_submit(s.stream, LS_OP_gemm, &low, sizeof low);
            ls_stream_submit(s.stream, LS_OP_gemm, &wide, sizeof wide);
            check_rounded("residual", type, c, SUMS);
        }
        low.residual = wide.residual = NULL;
        low.epilogue = wide.epilogue = LS_EPILOGUE_BIAS_GELU;
        ls_stream_submit(s.stream, LS_OP_gemm, &low, sizeof low);
        ls_stream_submit(s.stream, LS_OP_gemm, &wide, sizeof wide);
        check_rounded("before gelu", type, aux, SUMS);
        uint16_t *again = calloc((size_t)c.count, sizeof *again);
        ls_op(s.stream, gelu_forward, .output = again, .input = aux.low, .count = c.count, .dtype = types[type]);
        assert_memory_equal(again, c.low, (size_t)c.count * sizeof *again);
        ls_widen(types[type], aux.wide, aux.low, aux.count);
        low.epilogue = wide.epilogue = LS_EPILOGUE_GELU_GRAD;
        ls_stream_submit(s.stream, LS_OP_gemm, &low, sizeof low);
        ls_stream_submit(s.stream, LS_OP_gemm, &wide, sizeof wide);
        check_rounded("gelu's gradient", type, c, SUMS);
        free(again);
        drop(a), drop(b), drop(bias), drop(residual), drop(aux), drop(c);
        support_close(s);
    }
}

static void check_floats(const char *what, const float *actual, const float *reference, int64_t count) {
    double *expected = zero_doubles(count);
    for (int64_t i = 0; i < count; i++) expected[i] = (double)reference[i];
    check_close(what, actual, expected, count, SUMS);
    free(expected);
}

static void check_norms(int type, bool layer, int64_t rows, int64_t columns, struct support s) {
    struct pair x = make(type, rows * columns, 2);
    struct pair y = make(type, rows * columns, 1), w = make(type, columns, 1), bias = make(type, columns, 1),
                dy = make(type, rows * columns, 1), dx = make(type, rows * columns, 1);
    float *mean = zero_floats(2 * rows), *rstd = zero_floats(2 * rows), *dw = zero_floats(2 * columns),
          *db = zero_floats(2 * columns);
    const enum ls_dtype t = types[type];
    if (layer)
        ls_op(s.stream, layernorm_forward, .output = y.low, .mean = mean, .rstd = rstd, .input = x.low, .weight = w.low,
              .bias = bias.low, .rows = rows, .columns = columns, .epsilon = 1e-5f, .dtype = t);
    else
        ls_op(s.stream, rmsnorm_forward, .output = y.low, .rstd = rstd, .input = x.low, .weight = w.low, .rows = rows,
              .columns = columns, .epsilon = 1e-5f, .dtype = t);
    if (layer) {
        ls_op(s.stream, layernorm_forward, .output = y.wide, .mean = mean + rows, .rstd = rstd + rows, .input = x.wide,
              .weight = w.wide, .bias = bias.wide, .rows = rows, .columns = columns, .epsilon = 1e-5f);
        check_floats("mean", mean, mean + rows, rows);
    } else {
        ls_op(s.stream, rmsnorm_forward, .output = y.wide, .rstd = rstd + rows, .input = x.wide, .weight = w.wide,
              .rows = rows, .columns = columns, .epsilon = 1e-5f);
    }
    check_rounded("norm", type, y, SUMS);
    check_floats("rstd", rstd, rstd + rows, rows);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        if (layer) {
            ls_op(s.stream, layernorm_backward, .input_gradient = dx.low, .weight_gradient = dw, .bias_gradient = db,
                  .output_gradient = dy.low, .input = x.low, .weight = w.low, .mean = mean + rows, .rstd = rstd + rows,
                  .rows = rows, .columns = columns, .accumulate_input = accumulate, .dtype = t);
            ls_op(s.stream, layernorm_backward, .input_gradient = dx.wide, .weight_gradient = dw + columns,
                  .bias_gradient = db + columns, .output_gradient = dy.wide, .input = x.wide, .weight = w.wide,
                  .mean = mean + rows, .rstd = rstd + rows, .rows = rows, .columns = columns,
                  .accumulate_input = accumulate);
        } else {
            ls_op(s.stream, rmsnorm_backward, .input_gradient = dx.low, .weight_gradient = dw,
                  .output_gradient = dy.low, .input = x.low, .weight = w.low, .rstd = rstd + rows, .rows = rows,
                  .columns = columns, .accumulate_input = accumulate, .dtype = t);
            ls_op(s.stream, rmsnorm_backward, .input_gradient = dx.wide, .weight_gradient = dw + columns,
                  .output_gradient = dy.wide, .input = x.wide, .weight = w.wide, .rstd = rstd + rows, .rows = rows,
                  .columns = columns, .accumulate_input = accumulate);
        }
        check_rounded("norm's gradient", type, dx, SUMS);
        ls_widen(t, dx.wide, dx.low, dx.count);
    }
    check_floats("weight's gradient", dw, dw + columns, columns);
    if (layer) check_floats("bias's gradient", db, db + columns, columns);
    drop(x), drop(y), drop(w), drop(bias), drop(dy), drop(dx);
    free(mean), free(rstd), free(dw), free(db);
}

static void norms_keep_statistics_in_fp32_and_round_results(void **state) {
    (void)state;
    for (int type = 0; type < TYPES; type++)
        for (int layer = 0; layer < 2; layer++) {
            struct support s = support_open(1 + layer, LS_STREAMS_EAGER);
            check_norms(type, layer, 37, 50, s);
            check_norms(type, layer, 3, 1333, s);
            check_norms(type, layer, 1, 1, s);
            support_close(s);
        }
}

static void embeddings_and_biases_collect_gradients_in_fp32(void **state) {
    (void)state;
    enum { B = 3, T = 9, C = 70, V = 5 };
    for (int type = 0; type < TYPES; type++) {
        struct support s = support_open(2, LS_STREAMS_EAGER);
        struct pair table = make(type, V * C, 1), positions = make(type, T * C, 1), x = make(type, B * T * C, 1);
        float *gradients = zero_floats(2 * (V + T + 1) * C);
        float *again = gradients + (V + T + 1) * C;
        int32_t tokens[B * T];
        for (int i = 0; i < B * T; i++) tokens[i] = (int32_t)random_below(V);
        ls_op(s.stream, embedding_backward, .token_gradient = gradients, .position_gradient = gradients + V * C,
              .output_gradient = x.low, .tokens = tokens, .batch = B, .length = T, .channels = C, .vocabulary = V,
              .dtype = types[type]);
        ls_op(s.stream, embedding_backward, .token_gradient = again, .position_gradient = again + V * C,
              .output_gradient = x.wide, .tokens = tokens, .batch = B, .length = T, .channels = C, .vocabulary = V);
        ls_op(s.stream, bias_backward, .bias_gradient = gradients + (V + T) * C, .output_gradient = x.low,
              .rows = B * T, .columns = C, .dtype = types[type]);
        ls_op(s.stream, bias_backward, .bias_gradient = again + (V + T) * C, .output_gradient = x.wide, .rows = B * T,
              .columns = C);
        check_floats("gradients", gradients, again, (V + T + 1) * C);
        ls_op(s.stream, embedding_forward, .output = x.low, .tokens = tokens, .token_table = table.low,
              .position_table = positions.low, .batch = B, .length = T, .channels = C, .dtype = types[type]);
        ls_op(s.stream, embedding_forward, .output = x.wide, .tokens = tokens, .token_table = table.wide,
              .position_table = positions.wide, .batch = B, .length = T, .channels = C);
        check_rounded("embedding", type, x, 0);
        drop(table), drop(positions), drop(x);
        free(gradients);
        support_close(s);
    }
}

/* Where pairs of bf16 are multiplied, products round probabilities and their gradients: each by 2^-9 of itself, and a
 * result is a sum of a few of the largest. */
static double attention_slack(int type, struct support s) {
    return support_pairs(s) && types[type] == LS_BF16 ? 0x1p-8 : SUMS;
}

static void attention_rounds_what_fp32_computes(void **state) {
    (void)state;
    enum { B = 2, T = 61, NH = 4, NKV = 2, HD = 6, ROW = (NH + 2 * NKV) * HD };
    for (int type = 0; type < TYPES; type++) {
        struct support s = support_open(2, LS_STREAMS_EAGER);
        struct pair qkv = make(type, B * T * ROW, 1), output = make(type, B * T * NH * HD, 1),
                    d_output = make(type, B * T * NH * HD, 1), d_qkv = make(type, B * T * ROW, 1);
        float *lse = zero_floats(2 * B * NH * T);
        int32_t start[B * T];
        for (int i = 0; i < B * T; i++) start[i] = i % T < 20 ? 0 : 20;
        struct ls_op_attention_forward forward = {.output = output.low,
                                                  .lse = lse,
                                                  .q = qkv.low,
                                                  .k = qkv.low + NH * HD,
                                                  .v = qkv.low + (NH + NKV) * HD,
                                                  .document_start = start,
                                                  .batch = B,
                                                  .query_length = T,
                                                  .key_length = T,
                                                  .heads = NH,
                                                  .kv_heads = NKV,
                                                  .head_size = HD,
                                                  .q_stride = ROW,
                                                  .kv_stride = ROW,
                                                  .output_stride = NH * HD,
                                                  .q_batch_stride = T * ROW,
                                                  .kv_batch_stride = T * ROW,
                                                  .output_batch_stride = T * NH * HD,
                                                  .scale = 0.4f,
                                                  .dtype = types[type]};
        const size_t bytes = ls_op_workspace(s.device, LS_OP_attention_forward, &forward);
        char *workspace = malloc(bytes + 8);
        memcpy(workspace + bytes, "guarded", 8);
        forward.workspace = workspace;
        ls_stream_submit(s.stream, LS_OP_attention_forward, &forward, sizeof forward);
        forward.output = output.wide, forward.lse = lse + B * NH * T, forward.q = qkv.wide,
        forward.k = qkv.wide + NH * HD, forward.v = qkv.wide + (NH + NKV) * HD, forward.dtype = LS_FP32;
        ls_stream_submit(s.stream, LS_OP_attention_forward, &forward, sizeof forward);
        check_rounded("attention", type, output, attention_slack(type, s));
        check_floats("lse", lse, lse + B * NH * T, B * NH * T);
        assert_memory_equal(workspace + bytes, "guarded", 8);
        ls_widen(types[type], output.wide, output.low, output.count);
        struct ls_op_attention_backward backward = {.q_gradient = d_qkv.low,
                                                    .k_gradient = d_qkv.low + NH * HD,
                                                    .v_gradient = d_qkv.low + (NH + NKV) * HD,
                                                    .output_gradient = d_output.low,
                                                    .output = output.low,
                                                    .q = qkv.low,
                                                    .k = qkv.low + NH * HD,
                                                    .v = qkv.low + (NH + NKV) * HD,
                                                    .lse = lse,
                                                    .document_start = start,
                                                    .batch = B,
                                                    .length = T,
                                                    .heads = NH,
                                                    .kv_heads = NKV,
                                                    .head_size = HD,
                                                    .q_stride = ROW,
                                                    .kv_stride = ROW,
                                                    .output_stride = NH * HD,
                                                    .q_batch_stride = T * ROW,
                                                    .kv_batch_stride = T * ROW,
                                                    .output_batch_stride = T * NH * HD,
                                                    .scale = 0.4f,
                                                    .dtype = types[type]};
        const size_t more = ls_op_workspace(s.device, LS_OP_attention_backward, &backward);
        workspace = realloc(workspace, more + 8);
        memcpy(workspace + more, "guarded", 8);
        backward.workspace = workspace;
        ls_stream_submit(s.stream, LS_OP_attention_backward, &backward, sizeof backward);
        backward.q_gradient = d_qkv.wide, backward.k_gradient = d_qkv.wide + NH * HD,
        backward.v_gradient = d_qkv.wide + (NH + NKV) * HD, backward.output_gradient = d_output.wide,
        backward.output = output.wide, backward.q = qkv.wide, backward.k = qkv.wide + NH * HD,
        backward.v = qkv.wide + (NH + NKV) * HD, backward.dtype = LS_FP32;
        ls_stream_submit(s.stream, LS_OP_attention_backward, &backward, sizeof backward);
        check_rounded("attention's gradient", type, d_qkv, attention_slack(type, s));
        assert_memory_equal(workspace + more, "guarded", 8);
        free(workspace);
        free(lse);
        drop(qkv), drop(output), drop(d_output), drop(d_qkv);
        support_close(s);
    }
}

static void cross_entropy_adds_in_fp32_and_rounds_the_gradient(void **state) {
    (void)state;
    enum { ROWS = 9, V = 257, STRIDE = 272 };
    for (int type = 0; type < TYPES; type++) {
        struct support s = support_open(2, LS_STREAMS_EAGER);
        struct pair logits = make(type, ROWS * STRIDE, 6);
        int32_t targets[ROWS];
        double losses[2] = {0, 0};
        float row_loss[2][ROWS];
        const float scale = 3.0f;
        for (int i = 0; i < ROWS; i++) targets[i] = i == 4 ? -1 : (int32_t)random_below(V);
        ls_op(s.stream, cross_entropy, .logits = logits.low, .loss = &losses[0], .targets = targets,
              .gradient_scale = &scale, .row_loss = row_loss[0], .rows = ROWS, .vocabulary = V, .stride = STRIDE,
              .gradient = true, .dtype = types[type]);
        ls_op(s.stream, cross_entropy, .logits = logits.wide, .loss = &losses[1], .targets = targets,
              .gradient_scale = &scale, .row_loss = row_loss[1], .rows = ROWS, .vocabulary = V, .stride = STRIDE,
              .gradient = true);
        check_rounded("logits' gradient", type, logits, 1e-6);
        assert_true(fabs(losses[0] - losses[1]) <= 1e-6 * losses[1]);
        drop(logits);
        support_close(s);
    }
}

static void the_optimizer_rounds_its_copy_from_the_master(void **state) {
    (void)state;
    enum { COUNT = 40001 };
    for (int type = 0; type < TYPES; type++) {
        struct support s = support_open(2, LS_STREAMS_EAGER);
        float *parameter = random_floats(COUNT, 1), *m = random_floats(COUNT, 1e-3), *v = zero_floats(COUNT),
              *gradient = random_floats(COUNT, 1), rate = 0.01f, factor = 0.5f;
        struct pair copy = make(type, COUNT, 1);
        int64_t step = 2;
        int32_t found_inf = 1;
        uint16_t *before = calloc(COUNT, sizeof *before), *expected = calloc(COUNT, sizeof *expected);
        memcpy(before, copy.low, COUNT * sizeof *before);
        const struct ls_op_update op = {.parameter = parameter,
                                        .m = m,
                                        .v = v,
                                        .low_precision = copy.low,
                                        .gradient = gradient,
                                        .factor = &factor,
                                        .learning_rate = &rate,
                                        .step = &step,
                                        .found_inf = &found_inf,
                                        .count = COUNT,
                                        .decay_count = 100,
                                        .beta1 = 0.9f,
                                        .beta2 = 0.95f,
                                        .epsilon = 1e-8f,
                                        .weight_decay = 0.1f,
                                        .dtype = types[type]};
        ls_stream_submit(s.stream, LS_OP_update, &op, sizeof op);
        assert_memory_equal(before, copy.low, COUNT * sizeof *before);
        found_inf = 0;
        ls_stream_submit(s.stream, LS_OP_update, &op, sizeof op);
        ls_op(s.stream, convert, .output = expected, .input = parameter, .count = COUNT, .dtype = types[type]);
        assert_memory_equal(expected, copy.low, COUNT * sizeof *expected);
        assert_int_equal(copy.low[COUNT], 0x1234);
        for (int i = 0; i < COUNT; i++) assert_int_equal(expected[i], narrow(type, parameter[i]));
        /* Widened values are those that were stored; accumulating adds them, here to themselves. */
        float widened[COUNT] = {0};
        ls_op(s.stream, widen, .output = widened, .input = copy.low, .count = COUNT, .dtype = types[type]);
        for (int i = 0; i < COUNT; i++) assert_true(widened[i] == (float)value_of(type, copy.low[i]));
        ls_op(s.stream, widen, .output = widened, .input = copy.low, .count = COUNT, .accumulate = true,
              .dtype = types[type]);
        for (int i = 0; i < COUNT; i++) assert_true(widened[i] == 2 * (float)value_of(type, copy.low[i]));
        /* and the norm reads the type */
        double norm = 0, reference = 0, partial[COUNT / 1024 + 1];
        ls_op(s.stream, squared_norm, .result = &norm, .input = copy.low, .count = COUNT, .partial = partial,
              .dtype = types[type]);
        for (int i = 0; i < COUNT; i++) reference += value_of(type, copy.low[i]) * value_of(type, copy.low[i]);
        assert_true(fabs(norm - reference) <= 1e-12 * reference);
        free(parameter), free(m), free(v), free(gradient), free(before), free(expected);
        drop(copy);
        support_close(s);
    }
}

/* norm and factor of gradients that a loss scale multiplied. */
static void clipping_takes_the_loss_scale_off(void **state) {
    (void)state;
    struct support s = support_open(1, LS_STREAMS_EAGER);
    const double squared = 65536.0 * 65536.0 * 9; /* of a gradient with the norm 3 */
    float factor, norm;
    int32_t found_inf = 0;
    ls_op(s.stream, clip, .factor = &factor, .norm = &norm, .found_inf = &found_inf, .squared = &squared,
          .maximum = 1.5f, .loss_scale = 65536.0f);
    assert_true(norm == 3.0f && factor == 0.5f / 65536 && !found_inf);
    ls_op(s.stream, clip, .factor = &factor, .norm = &norm, .found_inf = &found_inf, .squared = &squared,
          .maximum = 0.0f, .loss_scale = 65536.0f);
    assert_true(norm == 3.0f && factor == 1.0f / 65536 && !found_inf);
    support_close(s);
}

int main(int argc, char **argv) {
    (void)argc;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_value_widens_to_itself_and_back),
        cmocka_unit_test(values_between_round_to_the_nearest_ties_to_even),
        cmocka_unit_test(element_operations_round_what_fp32_computes),
        cmocka_unit_test(rotations_round_what_fp32_computes),
        cmocka_unit_test(products_round_what_fp32_computes),
        cmocka_unit_test(epilogues_round_once_and_go_on_from_what_is_stored),
        cmocka_unit_test(norms_keep_statistics_in_fp32_and_round_results),
        cmocka_unit_test(embeddings_and_biases_collect_gradients_in_fp32),
        cmocka_unit_test(attention_rounds_what_fp32_computes),
        cmocka_unit_test(cross_entropy_adds_in_fp32_and_rounds_the_gradient),
        cmocka_unit_test(the_optimizer_rounds_its_copy_from_the_master),
        cmocka_unit_test(clipping_takes_the_loss_scale_off),
    };
    return support_again_without_pairs(cmocka_run_group_tests(tests, NULL, NULL), argv);
}
