/* Element-by-element kernels against double precision: every type, odd sizes, aligned and not. Each allows the rounding
 * of its result, and of a few fp32 operations before it. */
#include "tests/gpu/harness.h"

static const int64_t sizes[] = {1, 7, 8, 255, 1000, 4099};

/* Calls `test` for each type, size and for arrays aligned (0) and not (1). */
static void for_each(void (*test)(enum ls_dtype dtype, int64_t count, int64_t offset)) {
    for (int dtype = LS_FP32; dtype <= LS_FP16; dtype++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            for (int64_t offset = 0; offset < 2; offset++) test((enum ls_dtype)dtype, sizes[i], offset);
}

static double reference_gelu(double x) {
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}
static double reference_gelu_derivative(double x) {
    const double t = tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x));
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * sqrt(2.0 / M_PI) * (1.0 + 3.0 * 0.044715 * x * x);
}
static double reference_sigmoid(double x) {
    return 1.0 / (1.0 + exp(-x));
}

static void add_case(enum ls_dtype dtype, int64_t count, int64_t offset) {
    struct array a = make_array(dtype, count, 3.0, offset), b = make_array(dtype, count, 3.0);
    double *expected = zero_doubles(count);
    for (int64_t i = 0; i < count; i++) expected[i] = a.value[i] + b.value[i];
    const struct ls_op_add op = {a.device, a.device, b.device, count, dtype}; /* in place */
    check_cuda(ls_cuda_add(&op, 0));
    check_close("sum", &a, expected, rounding_of(dtype), 1e-30);
    free_array(&a), free_array(&b), free(expected);
}
static void sums_are_rounded_once(void) {
    for_each(add_case);
}

static void convert_case(enum ls_dtype dtype, int64_t count, int64_t offset) {
    struct array wide = make_array(LS_FP32, count, 3.0, offset), narrow = make_array(dtype, count, 1.0, offset);
    const struct ls_op_convert op = {narrow.device, (const float *)wide.device, count, dtype};
    check_cuda(ls_cuda_convert(&op, 0));
    /* The host's rounding to nearest even is another way to the same bits. */
    double *expected = copy_values(&wide);
    struct array same = make_array(dtype, count, 1.0);
    memcpy(same.value, expected, (size_t)count * sizeof(double));
    send(&same);
    check_close("narrow", &narrow, same.value, 0.0, 0.0);
    const struct ls_op_widen back = {(float *)wide.device, narrow.device, count, false, dtype};
    check_cuda(ls_cuda_widen(&back, 0));
    check_close("wide", &wide, narrow.value, 0.0, 0.0);
    for (int64_t i = 0; i < count; i++) expected[i] = 2.0 * narrow.value[i];
    const struct ls_op_widen twice = {(float *)wide.device, narrow.device, count, true, dtype};
    check_cuda(ls_cuda_widen(&twice, 0));
    check_close("twice", &wide, expected, 0.0, 0.0); /* doubling is exact */
    free_array(&wide), free_array(&narrow), free_array(&same), free(expected);
}
static void conversions_round_to_nearest_even(void) {
    for_each(convert_case);
}

static void parts_case(enum ls_dtype dtype, int64_t count, int64_t offset) {
    const int parts = 5;
    const int64_t stride = count + 3;
    struct array all = make_array(dtype, parts * stride, 2.0, offset);
    double *expected = zero_doubles(count);
    for (int64_t i = 0; i < count; i++) {
        float sum = 0.0f; /* in order, in fp32: the bits are given */
        for (int p = 0; p < parts; p++)
            sum = p ? sum + (float)all.value[p * stride + i] : (float)all.value[p * stride + i];
        expected[i] = (double)sum;
    }
    struct array sum = make_array(dtype, count, 1.0, offset), same = make_array(dtype, count, 1.0);
    memcpy(same.value, expected, (size_t)count * sizeof(double));
    send(&same);
    const struct ls_cuda_parts op = {sum.device, all.device, stride, count, parts, dtype};
    check_cuda(ls_cuda_sum_parts(&op, 0));
    check_close("sum of parts", &sum, same.value, 0.0, 0.0);
    free_array(&all), free_array(&sum), free_array(&same), free(expected);
}
static void parts_are_added_in_order_and_rounded_once(void) {
    for_each(parts_case);
}

/* The argument of the exponential is of order ten: its rounding, times that, is the result's relative error; far
 * negative x give results near zero, where x times that error is absolute. */
static void gelu_case(enum ls_dtype dtype, int64_t count, int64_t offset) {
    struct array x = make_array(dtype, count, 6.0, offset), y = make_array(dtype, count, 1.0, offset);
    struct array d = make_array(dtype, count, 1.0, offset);
    double *expected = zero_doubles(count);
    const double relative = rounding_of(dtype) + 60 * 5.96e-8, absolute = 60 * 5.96e-8;
    for (int64_t i = 0; i < count; i++) expected[i] = reference_gelu(x.value[i]);
    const struct ls_op_gelu_forward op = {y.device, x.device, count, dtype};
    check_cuda(ls_cuda_gelu_forward(&op, 0));
    check_close("gelu", &y, expected, relative, absolute);
    for (int64_t i = 0; i < count; i++) expected[i] = d.value[i] * reference_gelu_derivative(x.value[i]);
    const struct ls_op_gelu_backward back = {d.device, d.device, x.device, count, dtype}; /* in place */
    check_cuda(ls_cuda_gelu_backward(&back, 0));
    check_close("gelu's gradient", &d, expected, relative, 4 * absolute);
    free_array(&x), free_array(&y), free_array(&d), free(expected);
}
static void gelu_and_its_gradient_are_right(void) {
    for_each(gelu_case);
}

static void gelu_far_from_zero_is_finite(void) {
    const double far[] = {-1e4, -300.0, -50.0, 50.0, 300.0, 1e4};
    struct array x = make_array(LS_FP32, 6, 1.0), d = make_array(LS_FP32, 6, 1.0), y = make_array(LS_FP32, 6, 1.0);
    double value[6], slope[6];
    for (int i = 0; i < 6; i++) {
        x.value[i] = far[i];
        value[i] = far[i] > 0 ? far[i] : 0.0;
        slope[i] = far[i] > 0 ? d.value[i] : 0.0;
    }
    send(&x);
    const struct ls_op_gelu_forward op = {y.device, x.device, 6, LS_FP32};
    const struct ls_op_gelu_backward back = {d.device, d.device, x.device, 6, LS_FP32};
    check_cuda(ls_cuda_gelu_forward(&op, 0));
    check_cuda(ls_cuda_gelu_backward(&back, 0));
    check_close("gelu", &y, value, 1e-6, 1e-20);
    check_close("gelu's gradient", &d, slope, 1e-6, 1e-20);
    free_array(&x), free_array(&d), free_array(&y);
}

static void swiglu_case(enum ls_dtype dtype, int64_t columns, int64_t offset) {
    const int64_t rows = 1 + random_below(3);
    struct array x = make_array(dtype, rows * 2 * columns, 4.0, offset), y = make_array(dtype, rows * columns, 1.0);
    struct array d = make_array(dtype, rows * columns, 1.0);
    double *expected = zero_doubles(rows * columns), *gradient = zero_doubles(rows * 2 * columns);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) {
            const double gate = x.value[r * 2 * columns + c], up = x.value[(r * 2 + 1) * columns + c];
            const double s = reference_sigmoid(gate), g = d.value[r * columns + c];
            expected[r * columns + c] = gate * s * up;
            gradient[r * 2 * columns + c] = g * up * s * (1.0 + gate * (1.0 - s));
            gradient[(r * 2 + 1) * columns + c] = g * gate * s;
        }
    const struct ls_op_swiglu_forward op = {y.device, x.device, rows, columns, dtype};
    const struct ls_op_swiglu_backward back = {x.device, d.device, x.device, rows, columns, dtype}; /* in place */
    check_cuda(ls_cuda_swiglu_forward(&op, 0));
    check_cuda(ls_cuda_swiglu_backward(&back, 0));
    const double relative = rounding_of(dtype) + 20 * 5.96e-8, absolute = 4e-6;
    check_close("swiglu", &y, expected, relative, absolute);
    check_close("swiglu's gradient", &x, gradient, relative, absolute);
    free_array(&x), free_array(&y), free_array(&d), free(expected), free(gradient);
}
static void swiglu_and_its_gradient_are_right(void) {
    for_each(swiglu_case);
}

/* Heads of 2 * pairs channels; what lies between rows must not be written. */
static void rope_case(enum ls_dtype dtype, int64_t pairs, int64_t offset) {
    if (pairs > 300) return;
    const int64_t length = 5, rows = 2 * length, heads = 3, first = 4, size = 2 * pairs;
    const int64_t stride = heads * size + (offset ? random_below(5) : 8);
    const bool inverse = offset != 0;
    struct array x = make_array(dtype, rows * stride, 2.0, offset);
    struct array table = make_array(LS_FP32, (first + length) * pairs * 2, 1.0);
    double *expected = copy_values(&x);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t head = 0; head < heads; head++)
            for (int64_t i = 0; i < pairs; i++) {
                const double *angle = table.value + ((first + row % length) * pairs + i) * 2;
                const double sine = inverse ? -angle[1] : angle[1];
                double *a = expected + row * stride + head * size + i, *b = a + pairs;
                const double p = *a, q = *b;
                *a = p * angle[0] - q * sine;
                *b = q * angle[0] + p * sine;
            }
    const struct ls_op_rope op = {
        x.device, (const float *)table.device, rows, length, heads, size, stride, first, inverse, dtype};
    check_cuda(ls_cuda_rope(&op, 0));
    check_close("rotated", &x, expected, rounding_of(dtype), 4 * 5.96e-8); /* two products of up to 2 may cancel */
    free_array(&x), free_array(&table), free(expected);
}
static void rotary_embedding_rotates_halves(void) {
    for_each(rope_case);
}

static void epilogue_case(enum ls_dtype dtype, int64_t n, int64_t offset) {
    const int64_t m = 3, ldc = n + (offset ? 1 : 8);
    for (int kind = LS_EPILOGUE_BIAS; kind <= LS_EPILOGUE_GELU_GRAD; kind++) {
        struct array c = make_array(dtype, m * ldc, 3.0, offset), aux = make_array(dtype, m * ldc, 3.0);
        struct array bias = make_array(dtype, n, 1.0);
        double *expected = copy_values(&c), *kept = copy_values(&aux);
        for (int64_t i = 0; i < m * ldc; i++) {
            if (i % ldc >= n) continue;
            if (kind == LS_EPILOGUE_GELU_GRAD) {
                expected[i] *= reference_gelu_derivative(aux.value[i]);
                continue;
            }
            expected[i] += bias.value[i % ldc];
            if (kind == LS_EPILOGUE_BIAS_GELU) kept[i] = expected[i];
        }
        struct ls_op_gemm op = {};
        op.c = c.device, op.aux = aux.device, op.bias = bias.device, op.m = m, op.n = n, op.ldc = ldc;
        op.epilogue = (enum ls_epilogue)kind, op.dtype = dtype;
        check_cuda(ls_cuda_epilogue(&op, 0));
        check_close("aux", &aux, kept, rounding_of(dtype), 2e-7);
        for (int64_t i = 0; i < m * ldc; i++) /* GELU is of what was stored */
            if (i % ldc < n && kind == LS_EPILOGUE_BIAS_GELU) expected[i] = reference_gelu(aux.value[i]);
        check_close("c", &c, expected, rounding_of(dtype) + 4e-6, 1e-5);
        free_array(&c), free_array(&aux), free_array(&bias), free(expected), free(kept);
    }
}
static void epilogues_are_those_of_products(void) {
    for_each(epilogue_case);
}

int main(void) {
    begin_tests();
    run_test("sums are rounded once", sums_are_rounded_once);
    run_test("conversions round to nearest even, and back exactly", conversions_round_to_nearest_even);
    run_test("parts are added in order and rounded once", parts_are_added_in_order_and_rounded_once);
    run_test("GELU and its gradient are right", gelu_and_its_gradient_are_right);
    run_test("GELU far from zero is finite", gelu_far_from_zero_is_finite);
    run_test("SwiGLU and its gradient are right", swiglu_and_its_gradient_are_right);
    run_test("rotary embedding rotates halves", rotary_embedding_rotates_halves);
    run_test("epilogues are those of products", epilogues_are_those_of_products);
    return end_tests();
}
