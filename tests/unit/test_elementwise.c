/* Element-wise kernels and column sums against double-precision references. */
#include "tests/unit/support.h"
#include "worker/device/cpu/exponential.h"

static double gelu(double x) {
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}
static double silu(double x) {
    return x / (1.0 + exp(-x));
}

/* The derivative of a smooth function, by central differences: in double with this step, good to about 1e-9. */
static double derivative(double (*function)(double), double x) {
    const double h = 1e-5;
    return (function(x + h) - function(x - h)) / (2.0 * h);
}

static const int64_t odd_sizes[] = {1, 3, 17, 65, 257, 1030};

static void add_adds_also_in_place(void **state) {
    (void)state;
    struct support s = support_open(2, LS_STREAMS_EAGER);
    for (int i = 0; i < 7; i++) {
        const int64_t count = i < 6 ? odd_sizes[i] : 40001; /* the last is enough for two threads */
        float *a = random_floats(count, 1), *b = random_floats(count, 1), *sum = random_floats(count, 1);
        ls_op(s.stream, add, .sum = sum, .a = a, .b = b, .count = count);
        for (int64_t j = 0; j < count; j++) assert_true(sum[j] == a[j] + b[j]); /* one rounding: exactly C's own */
        ls_op(s.stream, add, .sum = a, .a = a, .b = b, .count = count);
        check_same_bits("sum in place", a, sum, count);
        free(a), free(b), free(sum);
    }
    support_close(s);
}

/* Both are products of a few factors that each carry a few roundings; 8 of them is the allowance, relative to the value
 * for GELU and to the gradient's size for the derivative, which crosses zero. */
static void gelu_and_its_gradient_are_accurate_over_the_whole_range(void **state) {
    (void)state;
    struct support s = support_open(2, LS_STREAMS_EAGER);
    const int64_t count = 40001;
    float *x = random_floats(count, 6), *y = random_floats(count, 1), *dy = random_floats(count, 1),
          *dx = random_floats(count, 1);
    static const float special[] = {0.0f,   -0.0f,   1e-30f, -1e-30f, 12.0f, -12.0f,
                                    100.0f, -100.0f, 1e10f,  -1e10f,  1e18f, -1e18f};
    for (int i = 0; i < 12; i++) x[i] = special[i];
    ls_op(s.stream, gelu_forward, .output = y, .input = x, .count = count);
    ls_op(s.stream, gelu_backward, .input_gradient = dx, .output_gradient = dy, .input = x, .count = count);
    for (int64_t i = 0; i < count; i++) {
        /* tanh(u) is -1 to the last bit of a double below u = -19; there the reference itself has no digits left */
        const double expected = gelu((double)x[i]),
                     slope = fabs((double)x[i]) > 50.0 ? x[i] > 0 : derivative(gelu, (double)x[i]);
        if (!(fabs((double)y[i] - expected) <= 40.0 * ROUNDING * fabs(expected) + 1e-15 * fabs((double)x[i])))
            fail_msg("gelu(%.9g) is %.9g, not %.9g", (double)x[i], (double)y[i], expected);
        if (!(fabs((double)dx[i] - (double)dy[i] * slope) <= 16.0 * ROUNDING))
            fail_msg("gelu'(%.9g) is %.9g, not %.9g", (double)x[i], (double)(dx[i] / dy[i]), slope);
    }
    ls_op(s.stream, gelu_backward, .input_gradient = dy, .output_gradient = dy, .input = x, .count = count);
    check_same_bits("gelu gradient in place", dy, dx, count);
    x[7] = NAN;
    ls_op(s.stream, gelu_forward, .output = y, .input = x, .count = count);
    ls_op(s.stream, gelu_backward, .input_gradient = dx, .output_gradient = dy, .input = x, .count = count);
    assert_true(isnan(y[7]) && isnan(dx[7]));
    support_close(s);
    free(x), free(y), free(dy), free(dx);
}

static void swiglu_and_its_gradient_are_right_also_in_place(void **state) {
    (void)state;
    struct support s = support_open(2, LS_STREAMS_EAGER);
    for (int i = 0; i < 6; i++) {
        const int64_t rows = odd_sizes[5 - i], columns = odd_sizes[i], count = rows * columns;
        float *x = random_floats(2 * count, 5), *y = random_floats(count, 1), *dy = random_floats(count, 1);
        float *dx = random_floats(2 * count, 1);
        ls_op(s.stream, swiglu_forward, .output = y, .gate_up = x, .rows = rows, .columns = columns);
        ls_op(s.stream, swiglu_backward, .gate_up_gradient = dx, .output_gradient = dy, .gate_up = x, .rows = rows,
              .columns = columns);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c++) {
                const double gate = (double)x[r * 2 * columns + c], up = (double)x[r * 2 * columns + columns + c];
                const double d = (double)dy[r * columns + c];
                /* values up to 25; 16 roundings of the largest */
                assert_true(fabs((double)y[r * columns + c] - silu(gate) * up) <= 16.0 * ROUNDING * 25.0);
                assert_true(fabs((double)dx[r * 2 * columns + c] - d * up * derivative(silu, gate)) <=
                            16.0 * ROUNDING * 5.0);
                assert_true(fabs((double)dx[r * 2 * columns + columns + c] - d * silu(gate)) <= 16.0 * ROUNDING * 5.0);
            }
        ls_op(s.stream, swiglu_backward, .gate_up_gradient = x, .output_gradient = dy, .gate_up = x, .rows = rows,
              .columns = columns);
        check_same_bits("swiglu gradient in place", x, dx, 2 * count);
        free(x), free(y), free(dy), free(dx);
    }
    support_close(s);
}

static void rope_rotates_halves_by_position_and_back(void **state) {
    (void)state;
    struct support s = support_open(2, LS_STREAMS_EAGER);
    const int64_t length = 37, rows = 3 * length, heads = 5, size = 14, first = 4, stride = heads * size + 9;
    float *x = random_floats(rows * stride, 1), *before = copy_floats(x, rows * stride);
    float *table = random_floats((first + length) * size, 1);
    for (int64_t p = 0; p < first + length; p++)
        for (int64_t i = 0; i < size / 2; i++) {
            const double angle = (double)p * pow(10000.0, -2.0 * (double)i / (double)size);
            table[(p * (size / 2) + i) * 2] = (float)cos(angle),
                                         table[(p * (size / 2) + i) * 2 + 1] = (float)sin(angle);
        }
    ls_op(s.stream, rope, .x = x, .table = table, .rows = rows, .length = length, .heads = heads, .head_size = size,
          .stride = stride, .first_position = first);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < stride; c++) {
            double expected = (double)before[r * stride + c];
            if (c < heads * size) {
                const int64_t i = c % size % (size / 2), head = c / size * size;
                const double angle = (double)(first + r % length) * pow(10000.0, -2.0 * (double)i / (double)size);
                const double a = (double)before[r * stride + head + i],
                             b = (double)before[r * stride + head + size / 2 + i];
                expected = c % size < size / 2 ? a * cos(angle) - b * sin(angle) : b * cos(angle) + a * sin(angle);
            }
            assert_true(fabs((double)x[r * stride + c] - expected) <= 6.0 * ROUNDING); /* table, two products, a sum */
        }
    ls_op(s.stream, rope, .x = x, .table = table, .rows = rows, .length = length, .heads = heads, .head_size = size,
          .stride = stride, .first_position = first, .inverse = true);
    for (int64_t i = 0; i < rows * stride; i++) assert_true(fabs((double)x[i] - (double)before[i]) <= 12.0 * ROUNDING);
    support_close(s);
    free(x), free(before), free(table);
}

static void bias_gradient_adds_the_sum_of_the_rows(void **state) {
    (void)state;
    for (int threads = 1; threads <= 2; threads++) {
        struct support s = support_open(threads, LS_STREAMS_EAGER);
        for (int i = 0; i < 6; i++) {
            const int64_t rows = odd_sizes[i], columns = odd_sizes[random_below(6)];
            float *dy = random_floats(rows * columns, 1), *bias = random_floats(columns, 1);
            double *expected = zero_doubles(columns);
            for (int64_t c = 0; c < columns; c++) expected[c] = (double)bias[c];
            for (int64_t j = 0; j < rows * columns; j++) expected[j % columns] += (double)dy[j];
            ls_op(s.stream, bias_backward, .bias_gradient = bias, .output_gradient = dy, .rows = rows,
                  .columns = columns);
            /* sums of up to 1030 numbers below 1: a rounding of the running sum each, sqrt(1030) at most typical, 1030
             * at worst */
            for (int64_t c = 0; c < columns; c++)
                assert_true(fabs((double)bias[c] - expected[c]) <=
                            ROUNDING * (double)(rows + 1) * sqrt((double)(rows + 1)));
            free(dy), free(bias), free(expected);
        }
        support_close(s);
    }
}

/* ls_exp promises 2 units in the last place on [-60, 60] and the end values beyond. */
static void the_exponential_is_within_two_units_in_the_last_place(void **state) {
    (void)state;
    double worst = 0.0;
    for (int i = 0; i < 400000; i++) {
        const float x = (float)(i < 200000 ? random_between(-60.0, 60.0) : random_between(-1.0, 1.0));
        const double expected = exp((double)x);
        const float rounded = (float)expected;
        worst =
            fmax(worst, fabs((double)ls_exp(x) - expected) / ((double)nextafterf(rounded, INFINITY) - (double)rounded));
    }
    if (!(worst <= 2.0)) fail_msg("the worst of 400,000 is off by %.3f units", worst);
    assert_true(ls_exp(0.0f) == 1.0f);
    assert_true(ls_exp(-INFINITY) == ls_exp(-60.0f) && ls_exp(INFINITY) == ls_exp(60.0f));
    assert_true(isnan(ls_exp(NAN)));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_exponential_is_within_two_units_in_the_last_place),
        cmocka_unit_test(add_adds_also_in_place),
        cmocka_unit_test(gelu_and_its_gradient_are_accurate_over_the_whole_range),
        cmocka_unit_test(swiglu_and_its_gradient_are_right_also_in_place),
        cmocka_unit_test(rope_rotates_halves_by_position_and_back),
        cmocka_unit_test(bias_gradient_adds_the_sum_of_the_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
