/* Every operation gives the same bits at any number of threads, on a device that was asked for that. Shapes are odd and
 * large enough that several threads take part. */
#include "tests/unit/support.h"
#include "worker/optim/muon.h"

enum { FLOATS = 1400000, PLACES = 8, PLACE = FLOATS / PLACES };

/* An operation on floats: place i of the memory begins at m[i]. What it leaves anywhere is compared. */
typedef void put_operation(struct ls_stream *stream, float *m[PLACES], const int32_t *tokens);

enum { ROWS = 611, COLUMNS = 211, VOCABULARY = 97 };

static int32_t tokens[ROWS], document_start[ROWS];
static float workspace[1 << 20]; /* more than the attention below needs */
static enum ls_dtype dtype;      /* that operations are asked for */

static float *run(int threads, const float *initial, put_operation *put) {
    float *memory = copy_floats(initial, FLOATS), *m[PLACES];
    for (int i = 0; i < PLACES; i++) m[i] = memory + i * PLACE;
    struct support s = support_open(threads, LS_STREAMS_EAGER);
    ls_device_set_fixed(s.device, true);
    put(s.stream, m, tokens);
    support_close(s);
    return memory;
}

/* Memory of values in bf16, two of which are a float of the second one's size. */
static float *random_bf16(void) {
    float *memory = malloc(FLOATS * sizeof *memory);
    assert_non_null(memory);
    for (int64_t i = 0; i < 2 * FLOATS; i++) {
        const float value = (float)random_between(-1, 1);
        memcpy((uint16_t *)memory + i, (const uint16_t *)&value + 1, sizeof(uint16_t));
    }
    return memory;
}

static void check_type(const char *name, put_operation *put) {
    float *initial = dtype == LS_FP32 ? random_floats(FLOATS, 1) : random_bf16();
    for (int i = 0; i < ROWS; i++) {
        tokens[i] = (int32_t)random_below(VOCABULARY);
        document_start[i] = (int32_t)(i % 60 / 23 * 23);
    }
    float *one = run(1, initial, put);
    if (memcmp(one, initial, FLOATS * sizeof *one) == 0) fail_msg("%s did nothing", name);
    for (int threads = 2; threads <= 5; threads++) {
        float *more = run(threads, initial, put);
        check_same_bits(name, one, more, FLOATS);
        free(more);
    }
    free(one), free(initial);
}

static void check(const char *name, put_operation *put) {
    for (int type = LS_FP32; type <= LS_BF16; type++) {
        dtype = (enum ls_dtype)type;
        check_type(name, put);
    }
}

#define OPERATION(name, ...)                                                                                           \
    static void put_##name(struct ls_stream *stream, float *m[PLACES], const int32_t *ids) {                           \
        (void)ids;                                                                                                     \
        __VA_ARGS__;                                                                                                   \
    }                                                                                                                  \
    static void name(void **state) {                                                                                   \
        (void)state;                                                                                                   \
        check(#name, put_##name);                                                                                      \
    }

/* A product of 403 x 389 x 407 is eight tiles. */
enum { M = 403, N = 389, K = 407 };
#define PRODUCT(...)                                                                                                   \
    ls_op(stream, gemm, .dtype = dtype, .c = m[0], .a = m[2], .b = m[4], .m = M, .n = N, .k = K, .ldc = N, __VA_ARGS__)
OPERATION(gemm, PRODUCT(.lda = K, .ldb = N))
OPERATION(gemm_transposed_b, PRODUCT(.lda = K, .ldb = K, .transpose_b = true))
OPERATION(gemm_of_a_weight_gradient, PRODUCT(.lda = M, .ldb = N, .transpose_a = true, .accumulate = true))
OPERATION(gemm_with_bias, PRODUCT(.lda = K, .ldb = N, .epilogue = LS_EPILOGUE_BIAS, .bias = m[6]))
OPERATION(gemm_with_bias_and_residual,
          PRODUCT(.lda = K, .ldb = N, .epilogue = LS_EPILOGUE_BIAS, .bias = m[6], .residual = m[7]))
OPERATION(gemm_with_gelu, PRODUCT(.lda = K, .ldb = N, .epilogue = LS_EPILOGUE_BIAS_GELU, .bias = m[6], .aux = m[7]))
OPERATION(gemm_with_the_derivative_of_gelu, PRODUCT(.lda = K, .ldb = N, .epilogue = LS_EPILOGUE_GELU_GRAD, .aux = m[7]))
OPERATION(gemm_of_few_rows, ls_op(stream, gemm, .dtype = dtype, .c = m[0], .a = m[2], .b = m[4], .m = 9, .n = 1001,
                                  .k = 90, .lda = 90, .ldb = 1001, .ldc = 1001))

/* Cut in two, its last row would be a product of its own, with a vector: other code of the library, other bits. */
OPERATION(gemm_of_17_rows, ls_op(stream, gemm, .dtype = dtype, .c = m[0], .a = m[2], .b = m[4], .m = 17, .n = 16,
                                 .k = 4001, .lda = 4001, .ldb = 16, .ldc = 16))

OPERATION(bias_backward, ls_op(stream, bias_backward, .dtype = dtype, .bias_gradient = m[0], .output_gradient = m[1],
                               .rows = ROWS, .columns = COLUMNS))
OPERATION(gelu_forward,
          ls_op(stream, gelu_forward, .dtype = dtype, .output = m[0], .input = m[1], .count = ROWS * COLUMNS))
OPERATION(gelu_backward, ls_op(stream, gelu_backward, .dtype = dtype, .input_gradient = m[0], .output_gradient = m[1],
                               .input = m[2], .count = ROWS * COLUMNS))
OPERATION(swiglu_forward, ls_op(stream, swiglu_forward, .dtype = dtype, .output = m[0], .gate_up = m[2], .rows = ROWS,
                                .columns = COLUMNS))
OPERATION(swiglu_backward, ls_op(stream, swiglu_backward, .dtype = dtype, .gate_up_gradient = m[0],
                                 .output_gradient = m[2], .gate_up = m[3], .rows = ROWS, .columns = COLUMNS))

#define NORM .rows = ROWS, .columns = COLUMNS
OPERATION(layernorm_forward, ls_op(stream, layernorm_forward, .dtype = dtype, .output = m[0], .mean = m[2],
                                   .rstd = m[3], .input = m[4], .weight = m[6], .bias = m[7], .epsilon = 1e-5f, NORM))
OPERATION(layernorm_backward,
          ls_op(stream, layernorm_backward, .dtype = dtype, .input_gradient = m[0], .weight_gradient = m[1],
                .bias_gradient = m[2], .output_gradient = m[3], .input = m[4], .weight = m[5], .mean = m[6],
                .rstd = m[7], .accumulate_input = true, NORM))
OPERATION(rmsnorm_forward, ls_op(stream, rmsnorm_forward, .dtype = dtype, .output = m[0], .rstd = m[3], .input = m[4],
                                 .weight = m[6], .epsilon = 1e-5f, NORM))
OPERATION(rmsnorm_backward,
          ls_op(stream, rmsnorm_backward, .dtype = dtype, .input_gradient = m[0], .weight_gradient = m[1],
                .output_gradient = m[3], .input = m[4], .weight = m[5], .rstd = m[7], NORM))

#define TABLE .tokens = ids, .batch = 13, .length = 47, .channels = COLUMNS
OPERATION(embedding_forward, ls_op(stream, embedding_forward, .dtype = dtype, .output = m[0], .token_table = m[1],
                                   .position_table = m[2], TABLE))
OPERATION(embedding_backward,
          ls_op(stream, embedding_backward, .dtype = dtype, .token_gradient = m[0], .position_gradient = m[1],
                .output_gradient = m[2], .vocabulary = VOCABULARY, TABLE))
OPERATION(rope, ls_op(stream, rope, .dtype = dtype, .x = m[0], .table = m[2], .rows = ROWS, .length = 47, .heads = 7,
                      .head_size = 30, .stride = COLUMNS))

/* Ten sequences of 60, heads of 20: keys and values of two heads serve four heads of queries. */
#define HEADS                                                                                                          \
    .batch = 10, .heads = 4, .kv_heads = 2, .head_size = 20, .q_stride = 160, .kv_stride = 160, .output_stride = 80,   \
    .q_batch_stride = 9600, .kv_batch_stride = 9600, .output_batch_stride = 4800, .scale = 0.2f,                       \
    .document_start = document_start
OPERATION(attention_forward,
          ls_op(stream, attention_forward, .dtype = dtype, .workspace = workspace, .output = m[0], .lse = m[1],
                .q = m[2], .k = m[2] + 80, .v = m[2] + 120, .query_length = 60, .key_length = 60, HEADS))
static void put_attention_backward(struct ls_stream *stream, float *m[PLACES], const int32_t *ids) {
    put_attention_forward(stream, m, ids);
    ls_op(stream, attention_backward, .dtype = dtype, .q_gradient = m[3], .k_gradient = m[3] + 80,
          .v_gradient = m[3] + 120, .output_gradient = m[4], .output = m[0], .lse = m[1], .q = m[2], .k = m[2] + 80,
          .v = m[2] + 120, .workspace = workspace, .length = 60, HEADS);
}
static void attention_backward(void **state) {
    (void)state;
    check("attention_backward", put_attention_backward);
}

OPERATION(cross_entropy, ls_op(stream, cross_entropy, .dtype = dtype, .logits = m[0], .loss = (double *)m[1],
                               .targets = ids, .gradient_scale = m[2], .row_loss = m[3], .rows = ROWS,
                               .vocabulary = COLUMNS, .stride = COLUMNS + 5, .gradient = true))
OPERATION(add, ls_op(stream, add, .dtype = dtype, .sum = m[0], .a = m[1], .b = m[2], .count = ROWS * COLUMNS))
OPERATION(squared_norm, ls_op(stream, squared_norm, .dtype = dtype, .result = (double *)m[0], .input = m[1],
                              .count = ROWS * COLUMNS, .partial = (double *)m[3]))
static const int64_t step = 7;
static const int32_t found_inf = 0;
OPERATION(adamw, for (int i = 0; i < PLACE; i++) m[2][i] = fabsf(m[2][i]);
          ls_op(stream, update, .parameter = m[0], .m = m[1], .v = m[2], .gradient = m[3], .factor = m[4],
                .learning_rate = m[5], .step = &step, .found_inf = &found_inf, .count = ROWS * COLUMNS,
                .decay_count = 77777, .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .weight_decay = 0.1f))
OPERATION(lion,
          ls_op(stream, update, .rule = LS_UPDATE_LION, .parameter = m[0], .m = m[1], .gradient = m[3], .factor = m[4],
                .learning_rate = m[5], .step = &step, .found_inf = &found_inf, .count = ROWS * COLUMNS,
                .decay_count = 77777, .beta1 = 0.9f, .beta2 = 0.99f, .weight_decay = 0.1f))
OPERATION(momentum, ls_op(stream, momentum, .dtype = dtype, .m = m[0], .output = m[1], .gradient = m[2], .factor = m[4],
                          .count = ROWS * COLUMNS, .beta = 0.95f))
OPERATION(normalize,
          ls_op(stream, normalize, .dtype = dtype, .x = m[0], .squared = (double *)m[4], .count = ROWS * COLUMNS))
OPERATION(polynomial, ls_op(stream, polynomial, .dtype = dtype, .output = m[0], .x = m[1], .y = m[0], .side = 389,
                            .a = 3.4445f, .b = -4.7750f, .c = 2.0315f))
OPERATION(given, ls_op(stream, update, .rule = LS_UPDATE_GIVEN, .dtype = dtype, .parameter = m[0], .direction = m[1],
                       .learning_rate = m[5], .step = &step, .found_inf = &found_inf, .count = ROWS * COLUMNS,
                       .decay_count = 77777, .weight_decay = 0.1f, .scale = 5.6f))
OPERATION(initialize, ls_op(stream, initialize, .output = m[0], .seed = 3, .tensor = 5, .first = 7,
                            .count = ROWS * COLUMNS, .deviation = 0.02f))

/* What ranks do with their slices must not depend on where those begin and end: decayed and not, in the body of a
 * vector loop or in its rest. */
static void adamw_and_add_give_the_same_bits_however_a_range_is_cut(void **state) {
    (void)state;
    enum { COUNT = 5000, DECAYED = 3333 };
    float *x[6];
    for (int i = 0; i < 6; i++) x[i] = random_floats(COUNT, 1);
    for (int64_t i = 0; i < COUNT; i++) x[2][i] = fabsf(x[2][i]);
    float *whole = copy_floats(x[0], COUNT), *m = copy_floats(x[1], COUNT), *v = copy_floats(x[2], COUNT), *sum = x[5];
    struct support s = support_open(1, LS_STREAMS_EAGER);
#define STEP                                                                                                           \
    .factor = &x[3][0], .learning_rate = &x[3][1], .step = &step, .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f,     \
    .weight_decay = 0.1f
    ls_op(s.stream, update, .parameter = whole, .m = m, .v = v, .gradient = x[4], .count = COUNT,
          .decay_count = DECAYED, STEP);
    ls_op(s.stream, add, .sum = sum, .a = whole, .b = x[4], .count = COUNT);
    for (int64_t begin = 0, end; begin < COUNT; begin = end) {
        end = begin + 1 + random_below(70);
        if (end > COUNT) end = COUNT;
        const int64_t decayed = DECAYED < begin ? 0 : DECAYED < end ? DECAYED - begin : end - begin;
        ls_op(s.stream, update, .parameter = x[0] + begin, .m = x[1] + begin, .v = x[2] + begin,
              .gradient = x[4] + begin, .count = end - begin, .decay_count = decayed, STEP);
    }
    check_same_bits("parameter", whole, x[0], COUNT);
    check_same_bits("m", m, x[1], COUNT);
    check_same_bits("v", v, x[2], COUNT);
    for (int64_t begin = 0; begin < COUNT; begin += 7)
        ls_op(s.stream, add, .sum = x[0] + begin, .a = x[0] + begin, .b = x[4] + begin,
              .count = COUNT - begin < 7 ? COUNT - begin : 7);
    check_same_bits("sum", sum, x[0], COUNT);
    support_close(s);
    for (int i = 0; i < 6; i++) free(x[i]);
    free(whole), free(m), free(v);
}

/* The slices of a matrix begin anywhere in it. */
static void momentum_and_given_give_the_same_bits_however_a_range_is_cut(void **state) {
    (void)state;
    enum { COUNT = 5000 };
    float *x[6];
    for (int i = 0; i < 6; i++) x[i] = random_floats(COUNT, 1);
    float *m = copy_floats(x[0], COUNT), *output = copy_floats(x[1], COUNT), *parameter = copy_floats(x[2], COUNT);
    struct support s = support_open(1, LS_STREAMS_EAGER);
#define MEAN  .factor = &x[4][0], .beta = 0.95f
#define GIVEN .rule = LS_UPDATE_GIVEN, .learning_rate = &x[4][1], .step = &step, .weight_decay = 0.1f, .scale = 5.6f
    ls_op(s.stream, momentum, .m = m, .output = output, .gradient = x[3], .count = COUNT, MEAN);
    ls_op(s.stream, update, .parameter = parameter, .direction = x[5], .count = COUNT, .decay_count = COUNT, GIVEN);
    for (int64_t begin = 0, end; begin < COUNT; begin = end) {
        end = begin + 1 + random_below(70);
        if (end > COUNT) end = COUNT;
        ls_op(s.stream, momentum, .m = x[0] + begin, .output = x[1] + begin, .gradient = x[3] + begin,
              .count = end - begin, MEAN);
        ls_op(s.stream, update, .parameter = x[2] + begin, .direction = x[5] + begin, .count = end - begin,
              .decay_count = end - begin, GIVEN);
    }
    check_same_bits("m", m, x[0], COUNT);
    check_same_bits("output", output, x[1], COUNT);
    check_same_bits("parameter", parameter, x[2], COUNT);
    support_close(s);
    for (int i = 0; i < 6; i++) free(x[i]);
    free(m), free(output), free(parameter);
}

/* Also on a device that was not asked for the same bits, where the matrix is. */
static void a_matrix_becomes_orthogonal_alike_at_any_number_of_threads(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{403, 389}, {129, 1207}, {1207, 129}};
    for (int i = 0; i < 6; i++) {
        const enum ls_dtype type = i < 3 ? LS_FP32 : LS_BF16;
        const int64_t rows = shapes[i % 3][0], columns = shapes[i % 3][1];
        float *initial = type == LS_FP32 ? random_floats(FLOATS, 1) : random_bf16(), *one = NULL;
        for (int threads = 1; threads <= 5; threads++) {
            float *memory = copy_floats(initial, FLOATS), *m[PLACES];
            for (int place = 0; place < PLACES; place++) m[place] = memory + place * PLACE;
            struct support s = support_open(threads, LS_STREAMS_EAGER);
            ls_muon_orthogonalize(s.stream, &(struct ls_muon_matrix){.x = m[0],
                                                                     .result = m[1],
                                                                     .rows = rows,
                                                                     .columns = columns,
                                                                     .gram = m[2],
                                                                     .powers = m[3],
                                                                     .squared = (double *)m[4],
                                                                     .partial = (double *)m[5],
                                                                     .by_shape = true,
                                                                     .dtype = type});
            support_close(s);
            if (one)
                check_same_bits("orthogonal", one, memory, FLOATS);
            else
                one = memory;
            if (one != memory) free(memory);
        }
        free(one), free(initial);
    }
}

int main(int argc, char **argv) {
    (void)argc;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gemm),
        cmocka_unit_test(gemm_transposed_b),
        cmocka_unit_test(gemm_of_a_weight_gradient),
        cmocka_unit_test(gemm_with_bias),
        cmocka_unit_test(gemm_with_bias_and_residual),
        cmocka_unit_test(gemm_with_gelu),
        cmocka_unit_test(gemm_with_the_derivative_of_gelu),
        cmocka_unit_test(gemm_of_few_rows),
        cmocka_unit_test(gemm_of_17_rows),
        cmocka_unit_test(bias_backward),
        cmocka_unit_test(gelu_forward),
        cmocka_unit_test(gelu_backward),
        cmocka_unit_test(swiglu_forward),
        cmocka_unit_test(swiglu_backward),
        cmocka_unit_test(layernorm_forward),
        cmocka_unit_test(layernorm_backward),
        cmocka_unit_test(rmsnorm_forward),
        cmocka_unit_test(rmsnorm_backward),
        cmocka_unit_test(embedding_forward),
        cmocka_unit_test(embedding_backward),
        cmocka_unit_test(rope),
        cmocka_unit_test(attention_forward),
        cmocka_unit_test(attention_backward),
        cmocka_unit_test(cross_entropy),
        cmocka_unit_test(add),
        cmocka_unit_test(squared_norm),
        cmocka_unit_test(adamw),
        cmocka_unit_test(lion),
        cmocka_unit_test(momentum),
        cmocka_unit_test(normalize),
        cmocka_unit_test(polynomial),
        cmocka_unit_test(given),
        cmocka_unit_test(initialize),
        cmocka_unit_test(adamw_and_add_give_the_same_bits_however_a_range_is_cut),
        cmocka_unit_test(momentum_and_given_give_the_same_bits_however_a_range_is_cut),
        cmocka_unit_test(a_matrix_becomes_orthogonal_alike_at_any_number_of_threads),
    };
    return support_again_without_pairs(cmocka_run_group_tests(tests, NULL, NULL), argv);
}
