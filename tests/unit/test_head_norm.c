/* Normalisation of heads against a double-precision reference, in all types, in place and beside. */
#include "tests/unit/support.h"
#include "worker/device/cpu/low_precision.h"

static const double epsilon = 1e-6;

struct problem {
    enum ls_dtype dtype;
    int64_t rows, heads, head_size, stride;
    bool in_place;
    int threads;
};

/* Arrays in the problem's type, [rows, stride]; what lies between heads must stay. */
struct arrays {
    void *x, *w, *y, *dy, *dx;
    float *rstd, *dw;
};

static void *random_elements(enum ls_dtype dtype, int64_t count, double centre) {
    void *values = malloc((size_t)(count + 1) * sizeof(float));
    assert_non_null(values);
    for (int64_t i = 0; i < count; i++) ls_store(dtype, values, i, (float)(centre + random_between(-1, 1)));
    return values;
}

static void *copy_elements(enum ls_dtype dtype, const void *from, int64_t count) {
    void *values = malloc((size_t)(count + 1) * sizeof(float));
    assert_non_null(values);
    return memcpy(values, from, (size_t)(count * ls_dtype_bytes(dtype)));
}

static struct arrays make(const struct problem *p) {
    const int64_t count = p->rows * p->stride;
    return (struct arrays){.x = random_elements(p->dtype, count, 0.5),
                           .w = random_elements(p->dtype, p->head_size, 1),
                           .y = random_elements(p->dtype, count, 0),
                           .dy = random_elements(p->dtype, count, 0),
                           .dx = random_elements(p->dtype, count, 0),
                           .rstd = random_floats(p->rows * p->heads, 1),
                           .dw = random_floats(p->head_size, 1)};
}

static void release(struct arrays *a) {
    free(a->x), free(a->w), free(a->y), free(a->dy), free(a->dx), free(a->rstd), free(a->dw);
}

static void run(const struct problem *p, struct arrays *a) {
    struct support s = support_open(p->threads, LS_STREAMS_EAGER);
    void *x = p->in_place ? copy_elements(p->dtype, a->x, p->rows * p->stride) : a->x;
    void *y = p->in_place ? x : a->y, *dx = p->in_place ? a->dy : a->dx;
    ls_op(s.stream, head_norm_forward, .output = y, .rstd = a->rstd, .input = x, .weight = a->w, .rows = p->rows,
          .heads = p->heads, .head_size = p->head_size, .stride = p->stride, .epsilon = (float)epsilon,
          .dtype = p->dtype);
    ls_op(s.stream, head_norm_backward, .input_gradient = dx, .weight_gradient = a->dw, .output_gradient = a->dy,
          .input = a->x, .weight = a->w, .rstd = a->rstd, .rows = p->rows, .heads = p->heads, .head_size = p->head_size,
          .stride = p->stride, .dtype = p->dtype);
    support_close(s);
    if (!p->in_place) return;
    memcpy(a->y, x, (size_t)(p->rows * p->stride * ls_dtype_bytes(p->dtype)));
    memcpy(a->dx, a->dy, (size_t)(p->rows * p->stride * ls_dtype_bytes(p->dtype)));
    free(x);
}

/* One rounding to the type, and fp32 sums of up to a thousand terms: 1e-5 of the largest. */
static void check_element(const struct problem *p, const char *what, const void *found, int64_t i, double expected,
                          double largest) {
    static const double roundings[] = {[LS_FP32] = ROUNDING, [LS_BF16] = 0x1p-9, [LS_FP16] = 0x1p-12};
    const double value = (double)ls_load(p->dtype, found, i);
    const double allowed =
        2 * roundings[p->dtype] * fabs(expected) + 1e-5 * largest + (p->dtype == LS_FP16 ? 0x1p-24 : 0);
    if (!(fabs(value - expected) <= allowed))
        fail_msg("%s[%lld] is %.9g, the reference %.9g (allowed %.3g)", what, (long long)i, value, expected, allowed);
}

static void check(struct problem p) {
    struct arrays a = make(&p);
    const int64_t HD = p.head_size, count = p.rows * p.stride;
    void *y = copy_elements(p.dtype, p.in_place ? a.x : a.y, count), *dy = copy_elements(p.dtype, a.dy, count);
    void *dx = copy_elements(p.dtype, p.in_place ? a.dy : a.dx, count);
    double *dw = zero_doubles(HD), *dw_size = zero_doubles(HD);
    for (int64_t c = 0; c < HD; c++) dw[c] = (double)a.dw[c];
    run(&p, &a);
    for (int64_t r = 0; r < p.rows; r++) {
        for (int64_t i = p.heads * HD; i < p.stride; i++) {
            assert_true(ls_load(p.dtype, a.y, r * p.stride + i) == ls_load(p.dtype, y, r * p.stride + i));
            assert_true(ls_load(p.dtype, a.dx, r * p.stride + i) == ls_load(p.dtype, dx, r * p.stride + i));
        }
        for (int64_t h = 0; h < p.heads; h++) {
            const int64_t at = r * p.stride + h * HD;
            double square = 0, product = 0;
            for (int64_t c = 0; c < HD; c++) {
                const double x = (double)ls_load(p.dtype, a.x, at + c);
                square += x * x / (double)HD;
                product += x * (double)ls_load(p.dtype, dy, at + c) * (double)ls_load(p.dtype, a.w, c);
            }
            const double rstd = 1 / sqrt(square + epsilon);
            for (int64_t c = 0; c < HD; c++) { /* y = x r w, dr / dx = -r^3 x / HD */
                const double x = (double)ls_load(p.dtype, a.x, at + c), w = (double)ls_load(p.dtype, a.w, c);
                const double d = (double)ls_load(p.dtype, dy, at + c);
                check_element(&p, "output", a.y, at + c, x * rstd * w, 2 * sqrt((double)HD));
                check_element(&p, "input gradient", a.dx, at + c,
                              rstd * w * d - product * rstd * rstd * rstd * x / (double)HD,
                              rstd * 4 * sqrt((double)HD));
                dw[c] += d * x * rstd;
                dw_size[c] += fabs(d * x * rstd);
            }
        }
    }
    for (int64_t c = 0; c < HD; c++) /* sums of 32, then of the blocks */
        assert_true(fabs((double)a.dw[c] - dw[c]) <= 60 * ROUNDING * (dw_size[c] + 1));
    free(y), free(dy), free(dx), free(dw), free(dw_size);
    release(&a);
}

static void heads_are_normalised_for_odd_shapes_in_every_type(void **state) {
    (void)state;
    static const int64_t rows[] = {1, 5, 67}, heads[] = {1, 3, 8}, sizes[] = {1, 6, 17, 128, 257};
    for (int r = 0; r < 3; r++)
        for (int h = 0; h < 3; h++)
            for (int s = 0; s < 5; s++)
                for (int kind = 0; kind < 6; kind++)
                    check((struct problem){.dtype = (enum ls_dtype)(kind % 3),
                                           .rows = rows[r],
                                           .heads = heads[h],
                                           .head_size = sizes[s],
                                           .stride = heads[h] * sizes[s] + random_below(9),
                                           .in_place = kind >= 3,
                                           .threads = 1 + kind % 2});
}

static void no_rows_and_no_heads_change_nothing(void **state) {
    (void)state;
    check((struct problem){.rows = 0, .heads = 3, .head_size = 8, .stride = 24, .threads = 2});
    check((struct problem){.rows = 3, .heads = 0, .head_size = 8, .stride = 24, .threads = 2});
}

static void the_bits_do_not_depend_on_threads(void **state) {
    (void)state;
    struct problem p = {.rows = 203, .heads = 7, .head_size = 37, .stride = 7 * 37 + 5, .threads = 1};
    const int64_t count = p.rows * p.stride;
    struct arrays a = make(&p), b = a;
    b.y = copy_elements(p.dtype, a.y, count), b.dx = copy_elements(p.dtype, a.dx, count);
    b.dw = copy_floats(a.dw, p.head_size), b.rstd = copy_floats(a.rstd, p.rows * p.heads);
    run(&p, &a);
    p.threads = 3;
    run(&p, &b);
    check_same_bits("output", a.y, b.y, count);
    check_same_bits("input gradient", a.dx, b.dx, count);
    check_same_bits("weight gradient", a.dw, b.dw, p.head_size);
    check_same_bits("rstd", a.rstd, b.rstd, p.rows * p.heads);
    free(b.y), free(b.dx), free(b.dw), free(b.rstd);
    release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_are_normalised_for_odd_shapes_in_every_type),
        cmocka_unit_test(no_rows_and_no_heads_change_nothing),
        cmocka_unit_test(the_bits_do_not_depend_on_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
