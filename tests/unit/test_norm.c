/* Layer and root-mean-square normalisation against double-precision references. */
#include "tests/unit/support.h"

static const double epsilon = 1e-5;

struct problem {
    int64_t rows, columns;
    bool layer, accumulate;
    int threads;
};

/* The arrays of one problem; `expected` ones are what the reference says. */
struct arrays {
    float *x, *w, *b, *y, *mean, *rstd, *dy, *dx, *dw, *db;
    double *y_expected, *dx_expected, *dw_expected, *db_expected;
};

static struct arrays make(const struct problem *p) {
    const int64_t count = p->rows * p->columns;
    struct arrays a = {.x = random_floats(count, 2),
                       .w = random_floats(p->columns, 1),
                       .b = random_floats(p->columns, 1),
                       .y = random_floats(count, 1),
                       .mean = random_floats(p->rows, 1),
                       .rstd = random_floats(p->rows, 1),
                       .dy = random_floats(count, 1),
                       .dx = random_floats(count, 1),
                       .dw = random_floats(p->columns, 1),
                       .db = random_floats(p->columns, 1),
                       .y_expected = zero_doubles(count),
                       .dx_expected = zero_doubles(count),
                       .dw_expected = zero_doubles(p->columns),
                       .db_expected = zero_doubles(p->columns)};
    for (int64_t i = 0; i < count; i++) a.x[i] += 3.0f; /* a mean that must be taken off */
    return a;
}

static void release(struct arrays *a) {
    free(a->x), free(a->w), free(a->b), free(a->y), free(a->mean), free(a->rstd), free(a->dy), free(a->dx), free(a->dw),
        free(a->db);
    free(a->y_expected), free(a->dx_expected), free(a->dw_expected), free(a->db_expected);
}

/* Forward and backward of one row by the chain rule through the mean m and variance v: with y = (x - m) v'^(-1/2) w +
 * b, v' = v + epsilon. */
static void reference_row(const struct problem *p, const struct arrays *a, int64_t r) {
    const int64_t columns = p->columns, at = r * columns;
    double *x = zero_doubles(columns), mean = 0.0, variance = 0.0, d_mean = 0.0, d_variance = 0.0;
    for (int64_t c = 0; c < columns; c++) {
        x[c] = (double)a->x[at + c];
        if (p->layer) mean += x[c] / (double)columns;
    }
    for (int64_t c = 0; c < columns; c++) variance += (x[c] - mean) * (x[c] - mean) / (double)columns;
    const double rstd = 1.0 / sqrt(variance + epsilon);
    for (int64_t c = 0; c < columns; c++) {
        const double d = (double)a->dy[at + c], normed = (x[c] - mean) * rstd;
        a->y_expected[at + c] = normed * (double)a->w[c] + (p->layer ? (double)a->b[c] : 0.0);
        a->dw_expected[c] += d * normed;
        a->db_expected[c] += d;
        d_variance += d * (double)a->w[c] * (x[c] - mean) * -0.5 * rstd * rstd * rstd;
        if (p->layer) d_mean -= d * (double)a->w[c] * rstd;
    }
    for (int64_t c = 0; c < columns; c++)
        a->dx_expected[at + c] += (double)a->dy[at + c] * (double)a->w[c] * rstd +
                                  d_variance * 2.0 * (x[c] - mean) / (double)columns + d_mean / (double)columns;
    free(x);
}

static void run(const struct problem *p, struct arrays *a) {
    struct support s = support_open(p->threads, LS_STREAMS_EAGER);
    if (p->layer) {
        ls_op(s.stream, layernorm_forward, .output = a->y, .mean = a->mean, .rstd = a->rstd, .input = a->x,
              .weight = a->w, .bias = a->b, .rows = p->rows, .columns = p->columns, .epsilon = (float)epsilon);
        ls_op(s.stream, layernorm_backward, .input_gradient = a->dx, .weight_gradient = a->dw, .bias_gradient = a->db,
              .output_gradient = a->dy, .input = a->x, .weight = a->w, .mean = a->mean, .rstd = a->rstd,
              .rows = p->rows, .columns = p->columns, .accumulate_input = p->accumulate);
    } else {
        ls_op(s.stream, rmsnorm_forward, .output = a->y, .rstd = a->rstd, .input = a->x, .weight = a->w,
              .rows = p->rows, .columns = p->columns, .epsilon = (float)epsilon);
        ls_op(s.stream, rmsnorm_backward, .input_gradient = a->dx, .weight_gradient = a->dw, .output_gradient = a->dy,
              .input = a->x, .weight = a->w, .rstd = a->rstd, .rows = p->rows, .columns = p->columns,
              .accumulate_input = p->accumulate);
    }
    support_close(s);
}

/* Row sums add up to 1030 terms, a hundred or so in each lane, and x - mean loses a bit or two to the mean of 3: 1e-5
 * of the largest element allows about 150 roundings. A row of few, nearly equal elements magnifies by its rstd, so
 * single columns get more. */
static void check(struct problem p) {
    const double tolerance = p.columns < 4 ? 1e-3 : 1e-5;
    struct arrays a = make(&p);
    if (p.accumulate)
        for (int64_t i = 0; i < p.rows * p.columns; i++) a.dx_expected[i] = (double)a.dx[i];
    for (int64_t c = 0; c < p.columns; c++) a.dw_expected[c] = (double)a.dw[c], a.db_expected[c] = (double)a.db[c];
    for (int64_t r = 0; r < p.rows; r++) reference_row(&p, &a, r);
    run(&p, &a);
    check_close("output", a.y, a.y_expected, p.rows * p.columns, tolerance);
    if (p.columns > 1) check_close("input gradient", a.dx, a.dx_expected, p.rows * p.columns, tolerance);
    check_close("weight gradient", a.dw, a.dw_expected, p.columns, tolerance);
    if (p.layer) check_close("bias gradient", a.db, a.db_expected, p.columns, tolerance);
    release(&a);
}

static void norms_and_their_gradients_are_right_for_odd_shapes(void **state) {
    (void)state;
    static const int64_t rows[] = {1, 3, 17, 65, 257}, columns[] = {1, 3, 17, 64, 257, 1030};
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 6; j++)
            for (int kind = 0; kind < 4; kind++)
                check((struct problem){
                    .rows = rows[i], .columns = columns[j], .layer = kind & 1, .accumulate = kind & 2, .threads = 1});
}

/* Gradients of parameters are added in blocks of rows whatever the threads; rows are whole. So the bits cannot depend
 * on threads. */
static void norms_give_the_same_bits_with_any_number_of_threads(void **state) {
    (void)state;
    for (int layer = 0; layer < 2; layer++) {
        struct problem p = {.rows = 301, .columns = 203, .layer = layer, .threads = 1};
        struct arrays a = make(&p), b = a;
        b.y = random_floats(p.rows * p.columns, 1), b.dx = random_floats(p.rows * p.columns, 1);
        b.dw = copy_floats(a.dw, p.columns), b.db = copy_floats(a.db, p.columns);
        run(&p, &a);
        p.threads = 3;
        run(&p, &b);
        check_same_bits("output", a.y, b.y, p.rows * p.columns);
        check_same_bits("input gradient", a.dx, b.dx, p.rows * p.columns);
        check_same_bits("weight gradient", a.dw, b.dw, p.columns);
        check_same_bits("bias gradient", a.db, b.db, p.columns);
        free(b.y), free(b.dx), free(b.dw), free(b.db);
        release(&a);
    }
}

/* The reference's gradient is the derivative of its own forward pass. */
static void the_references_gradient_is_the_derivative_of_its_output(void **state) {
    (void)state;
    for (int layer = 0; layer < 2; layer++) {
        const struct problem p = {.rows = 1, .columns = 7, .layer = layer};
        struct arrays a = make(&p);
        reference_row(&p, &a, 0);
        double gradient[7], loss[2];
        memcpy(gradient, a.dx_expected, sizeof gradient);
        for (int64_t c = 0; c < 7; c++) {
            const float at = a.x[c], h = 0x1p-10f; /* exactly representable beside values below 8 */
            for (int side = 0; side < 2; side++) {
                a.x[c] = side ? at + h : at - h;
                reference_row(&p, &a, 0);
                loss[side] = 0.0;
                for (int64_t i = 0; i < 7; i++) loss[side] += (double)a.dy[i] * a.y_expected[i];
            }
            a.x[c] = at;
            assert_true(fabs((loss[1] - loss[0]) / (2.0 * (double)h) - gradient[c]) <
                        1e-4); /* h^2 times a third derivative */
        }
        release(&a);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_and_their_gradients_are_right_for_odd_shapes),
        cmocka_unit_test(norms_give_the_same_bits_with_any_number_of_threads),
        cmocka_unit_test(the_references_gradient_is_the_derivative_of_its_output),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
