/* Softmax cross-entropy against a double-precision reference. */
#include "tests/unit/support.h"

struct problem {
    int64_t rows, vocabulary, stride;
    bool gradient;
    int threads;
    double size; /* of the logits */
};

/* A row's loss is rounded once to float and carries the error of x - max, an ulp of 2 size; gradients are a float
 * product of values below 1 with errors of a few roundings, and of 2 size roundings through the exponential's argument.
 */
static void check(struct problem p) {
    float *logits = random_floats(p.rows * p.stride, p.size), *before = copy_floats(logits, p.rows * p.stride);
    float *row_loss = random_floats(p.rows, 1), scale = 0.37f;
    int32_t *targets = malloc((size_t)p.rows * sizeof *targets);
    double loss = 2.5, loss_expected = 2.5;
    for (int64_t r = 0; r < p.rows; r++)
        targets[r] = (int32_t)(random_below(4) ? random_below(p.vocabulary) : -1 - random_below(3));
    targets[p.rows - 1] = (int32_t)p.vocabulary - 1;
    struct support s = support_open(p.threads, LS_STREAMS_EAGER);
    ls_op(s.stream, cross_entropy, .logits = logits, .loss = &loss, .targets = targets, .gradient_scale = &scale,
          .row_loss = row_loss, .rows = p.rows, .vocabulary = p.vocabulary, .stride = p.stride, .gradient = p.gradient);
    support_close(s);
    for (int64_t r = 0; r < p.rows; r++) {
        const float *x = before + r * p.stride, *d = logits + r * p.stride;
        double sum = 0.0;
        for (int64_t i = 0; i < p.vocabulary; i++) sum += exp((double)x[i]);
        if (targets[r] >= 0) loss_expected += log(sum) - (double)x[targets[r]];
        for (int64_t i = 0; i < p.stride; i++) {
            double expected = 0.0, allowed = 0.0;
            if (!p.gradient) {
                expected = (double)x[i];
            } else if (targets[r] >= 0 && i < p.vocabulary) {
                const double probability = exp((double)x[i]) / sum;
                expected = (probability - (i == targets[r])) * (double)scale;
                allowed = (8.0 + 2.0 * p.size) * ROUNDING * (double)scale;
            }
            if (!(fabs((double)d[i] - expected) <= allowed))
                fail_msg("row %d column %d is %.9g, not %.9g", (int)r, (int)i, (double)d[i], expected);
        }
    }
    assert_true(fabs(loss - loss_expected) <= (double)p.rows * (8.0 + 4.0 * p.size) * ROUNDING);
    free(logits), free(before), free(row_loss), free(targets);
}

static void loss_and_gradient_are_right_and_ignored_rows_are_zero(void **state) {
    (void)state;
    static const int64_t vocabularies[] = {1, 2, 17, 257, 5003};
    for (int i = 0; i < 5; i++)
        for (int kind = 0; kind < 4; kind++)
            check((struct problem){.rows = 1 + random_below(70),
                                   .vocabulary = vocabularies[i],
                                   .stride = vocabularies[i] + (kind & 1 ? random_below(9) : 0),
                                   .gradient = kind & 2,
                                   .threads = 1 + (int)random_below(2),
                                   .size = 10.0});
}

static void logits_of_any_size_neither_overflow_nor_vanish(void **state) {
    (void)state;
    check((struct problem){.rows = 5, .vocabulary = 100, .stride = 100, .gradient = true, .threads = 1, .size = 80.0});
    /* Far beyond what exp can hold: the row's largest has probability 1, the others less than 1e-26. */
    float logits[4] = {-3e4f, 2e4f, 1.9e4f, -2e38f}, row_loss, scale = 1.0f;
    const int32_t target = 2;
    double loss = 0.0;
    struct support s = support_open(1, LS_STREAMS_EAGER);
    ls_op(s.stream, cross_entropy, .logits = logits, .loss = &loss, .targets = &target, .gradient_scale = &scale,
          .row_loss = &row_loss, .rows = 1, .vocabulary = 4, .stride = 4, .gradient = true);
    support_close(s);
    assert_true(loss == 1000.0);
    assert_float_equal(logits[0], 0.0f, 1e-26f);
    assert_float_equal(logits[1], 1.0f, 0.0f);
    assert_float_equal(logits[2], -1.0f, 0.0f);
    assert_float_equal(logits[3], 0.0f, 1e-26f);
}

static void a_logit_that_is_not_a_number_shows_in_the_loss(void **state) {
    (void)state;
    struct support s = support_open(1, LS_STREAMS_EAGER);
    for (int place = 0; place < 40; place += 13) {
        float *logits = random_floats(40, 3), row_loss, scale = 1.0f;
        const int32_t target = 5;
        double loss = 0.0;
        logits[place] = NAN;
        ls_op(s.stream, cross_entropy, .logits = logits, .loss = &loss, .targets = &target, .gradient_scale = &scale,
              .row_loss = &row_loss, .rows = 1, .vocabulary = 40, .stride = 40);
        assert_true(isnan(loss));
        free(logits);
    }
    support_close(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loss_and_gradient_are_right_and_ignored_rows_are_zero),
        cmocka_unit_test(logits_of_any_size_neither_overflow_nor_vanish),
        cmocka_unit_test(a_logit_that_is_not_a_number_shows_in_the_loss),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
