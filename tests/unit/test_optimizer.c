/* Gradient norm, clipping, the optimizers' rules and initialisation. */
#include "tests/unit/support.h"

#include "worker/optim/muon.h"

static void squared_norm_adds_ordered_sums_in_double(void **state) {
    (void)state;
    static const int64_t counts[] = {1, 1023, 1024, 1025, 70001};
    for (int i = 0; i < 5; i++) {
        float *x = random_floats(counts[i], 1);
        double *partial = zero_doubles(counts[i] / 1024 + 1), results[3], expected = 3.0;
        x[0] = 1e25f; /* its square is beyond float */
        for (int64_t j = 0; j < counts[i]; j++) expected += (double)x[j] * (double)x[j];
        for (int threads = 1; threads <= 3; threads++) {
            struct support s = support_open(threads, LS_STREAMS_EAGER);
            results[threads - 1] = 3.0;
            ls_op(s.stream, squared_norm, .result = &results[threads - 1], .input = x, .count = counts[i],
                  .partial = partial);
            support_close(s);
        }
        assert_true(fabs(results[0] - expected) <= 1e-12 * expected); /* 70001 roundings of 2^-53 */
        assert_true(results[0] == results[1] && results[0] == results[2]);
        /* The cut is at multiples of 1024: two halves cut there add to the same partial sums. */
        if (counts[i] > 1024) {
            double halves = 3.0, *partials = zero_doubles(counts[i] / 1024 + 1);
            struct support s = support_open(1, LS_STREAMS_EAGER);
            ls_op(s.stream, squared_norm, .result = &halves, .input = x, .count = 1024, .partial = partials);
            ls_op(s.stream, squared_norm, .result = &halves, .input = x + 1024, .count = counts[i] - 1024,
                  .partial = partials);
            support_close(s);
            assert_true(halves == results[0]);
            free(partials);
        }
        free(x), free(partial);
    }
}

static void clip_scales_only_norms_above_the_maximum(void **state) {
    (void)state;
    static const struct {
        double squared;
        float maximum, factor, norm;
        int32_t found_inf;
    } rows[] = {{16.0, 1.0f, 0.25f, 4.0f, 0}, {0.25, 1.0f, 1.0f, 0.5f, 0},         {16.0, 0.0f, 1.0f, 4.0f, 0},
                {0.0, 1.0f, 1.0f, 0.0f, 0},   {INFINITY, 1.0f, 0.0f, INFINITY, 1}, {1e60, 0.5f, 5e-31f, 1e30f, 0}};
    struct support s = support_open(1, LS_STREAMS_EAGER);
    for (int i = 0; i < 6; i++) {
        float factor = -1.0f, norm = -1.0f;
        int32_t found_inf = -1;
        ls_op(s.stream, clip, .factor = &factor, .norm = &norm, .found_inf = &found_inf, .squared = &rows[i].squared,
              .maximum = rows[i].maximum);
        assert_true(factor == rows[i].factor && norm == rows[i].norm);
        assert_int_equal(found_inf, rows[i].found_inf);
    }
    float factor, norm;
    int32_t found_inf = 0;
    const double nan = NAN;
    ls_op(s.stream, clip, .factor = &factor, .norm = &norm, .found_inf = &found_inf, .squared = &nan, .maximum = 1.0f);
    assert_int_equal(found_inf, 1);
    support_close(s);
}

/* Loshchilov & Hutter 2019, algorithm 2, in double over three steps; floats add a few roundings a step. */
static void adamw_follows_the_algorithm_and_decays_only_the_first_part(void **state) {
    (void)state;
    for (int threads = 1; threads <= 2; threads++) {
        const int64_t count = threads == 1 ? 301 : 40001, decayed = count / 3;
        const float beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f, decay = 0.1f, factor = 0.5f, rate = 1e-2f;
        float *parameter = random_floats(count, 1), *m = calloc((size_t)count, 4), *v = calloc((size_t)count, 4);
        float *low_precision = random_floats(count, 1);
        double *p = zero_doubles(count), *pm = zero_doubles(count), *pv = zero_doubles(count);
        for (int64_t i = 0; i < count; i++) p[i] = (double)parameter[i];
        struct support s = support_open(threads, LS_STREAMS_EAGER);
        for (int64_t step = 1; step <= 3; step++) {
            float *gradient = random_floats(count, 1);
            const int32_t found_inf = 0;
            ls_op(s.stream, update, .parameter = parameter, .m = m, .v = v, .low_precision = low_precision,
                  .gradient = gradient, .factor = &factor, .learning_rate = &rate, .step = &step,
                  .found_inf = &found_inf, .count = count, .decay_count = decayed, .beta1 = beta1, .beta2 = beta2,
                  .epsilon = epsilon, .weight_decay = decay);
            for (int64_t i = 0; i < count; i++) {
                const double g = (double)gradient[i] * (double)factor;
                pm[i] = (double)beta1 * pm[i] + (1.0 - (double)beta1) * g;
                pv[i] = (double)beta2 * pv[i] + (1.0 - (double)beta2) * g * g;
                const double m_hat = pm[i] / (1.0 - pow((double)beta1, (double)step));
                const double v_hat = pv[i] / (1.0 - pow((double)beta2, (double)step));
                p[i] -= (double)rate *
                        (m_hat / (sqrt(v_hat) + (double)epsilon) + (i < decayed ? (double)decay * p[i] : 0.0));
            }
            free(gradient);
        }
        /* 1 - beta in float is off by up to 2^-25 / (1 - beta): 6e-7 of v */
        check_close("m", m, pm, count, 2e-6);
        check_close("v", v, pv, count, 2e-6);
        check_close("parameter", parameter, p, count, 4.0 * ROUNDING);
        check_same_bits("copy", low_precision, parameter, count);
        const int32_t found_inf = 1;
        const int64_t step = 4;
        float *before = copy_floats(parameter, count);
        ls_op(s.stream, update, .parameter = parameter, .m = m, .v = v, .gradient = before, .factor = &factor,
              .learning_rate = &rate, .step = &step, .found_inf = &found_inf, .count = count, .decay_count = decayed,
              .beta1 = beta1, .beta2 = beta2, .epsilon = epsilon, .weight_decay = decay);
        check_same_bits("parameter after found_inf", parameter, before, count);
        support_close(s);
        free(parameter), free(m), free(v), free(low_precision), free(p), free(pm), free(pv), free(before);
    }
}

/* Three steps of Lion (Chen et al. 2023, algorithm 2) and of SGD with momentum, in double. Lion's step is a whole one
 * whatever is left of a sum, so where that is nearly nothing either sign is right; where it is nothing there is none.
 */
static void lion_and_sgd_follow_their_formulas(void **state) {
    (void)state;
    for (int rule = LS_UPDATE_LION; rule <= LS_UPDATE_SGD; rule++) {
        const int64_t count = 40001, decayed = count / 3;
        const float beta1 = 0.9f, beta2 = 0.99f, decay = 0.1f, factor = 0.5f, rate = 1e-2f;
        float *parameter = random_floats(count, 1), *m = calloc((size_t)count, 4);
        double *p = zero_doubles(count), *pm = zero_doubles(count);
        bool *unsure = calloc((size_t)count, sizeof *unsure);
        for (int64_t i = 0; i < count; i++) p[i] = (double)parameter[i];
        struct support s = support_open(2, LS_STREAMS_EAGER);
        for (int64_t step = 1; step <= 3; step++) {
            float *gradient = random_floats(count, 1);
            gradient[5] = 0.0f;
            ls_op(s.stream, update, .rule = (enum ls_update_rule)rule, .parameter = parameter, .m = m,
                  .gradient = gradient, .factor = &factor, .learning_rate = &rate, .step = &step, .count = count,
                  .decay_count = decayed, .beta1 = beta1, .beta2 = beta2, .weight_decay = decay);
            for (int64_t i = 0; i < count; i++) {
                const double g = (double)gradient[i] * (double)factor, b1 = (double)beta1, b2 = (double)beta2;
                double direction = pm[i] = rule == LS_UPDATE_SGD ? b1 * pm[i] + g : pm[i];
                if (rule == LS_UPDATE_LION) {
                    const double mixed = b1 * pm[i] + (1.0 - b1) * g;
                    unsure[i] |= mixed != 0.0 && fabs(mixed) < 1e-6;
                    direction = (mixed > 0.0) - (mixed < 0.0);
                    pm[i] = b2 * pm[i] + (1.0 - b2) * g;
                }
                p[i] -= (double)rate * (direction + (i < decayed ? (double)decay * p[i] : 0.0));
            }
            free(gradient);
        }
        support_close(s);
        for (int64_t i = 0; i < count; i++)
            if (unsure[i]) p[i] = (double)parameter[i];
        assert_true(rule == LS_UPDATE_SGD || fabs((double)parameter[5] - p[5]) < 1e-6);
        check_close("m", m, pm, count,
                    2e-6); /* 1 - beta2 in float is off by up to 2^-25 / (1 - beta2) = 3e-6 of itself */
        check_close("parameter", parameter, p, count, 8.0 * ROUNDING);
        free(parameter), free(m), free(p), free(pm), free(unsure);
    }
}

static float bf16_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* `count` values as `dtype` has them, in a new array of it and, rounded alike, in `values`. */
static void *stored(enum ls_dtype dtype, float *values, int64_t count) {
    char *array = malloc((size_t)(count * ls_dtype_bytes(dtype)) + 1);
    for (int64_t i = 0; i < count; i++) {
        if (dtype == LS_BF16) values[i] = bf16_of(values[i]);
        memcpy(array + i * ls_dtype_bytes(dtype), (char *)&values[i] + (dtype == LS_BF16 ? 2 : 0),
               (size_t)ls_dtype_bytes(dtype));
    }
    return array;
}

static float *read_back(enum ls_dtype dtype, const void *array, int64_t count) {
    float *values = calloc((size_t)count + 1, sizeof *values);
    for (int64_t i = 0; i < count; i++)
        memcpy((char *)&values[i] + (dtype == LS_BF16 ? 2 : 0), (const char *)array + i * ls_dtype_bytes(dtype),
               (size_t)ls_dtype_bytes(dtype));
    return values;
}

static double rounding_of(enum ls_dtype dtype) {
    return dtype == LS_BF16 ? 1.0 / 256 : 4.0 * ROUNDING;
}

/* Two steps of the momentum that looks ahead, a division by a norm, a polynomial of matrices, and an update in a given
 * direction, each in double; the same bits by one thread and three. */
static void what_orthogonal_updates_are_made_of_is_as_written(void **state) {
    (void)state;
    for (int round = 0; round < 2; round++) {
        const enum ls_dtype dtype = round ? LS_BF16 : LS_FP32;
        const int64_t side = 129 + random_below(40), count = side * side, decayed = count / 3;
        const float factor = 0.5f, beta = 0.9f, rate = 1e-2f, scale = 3.5f, decay = 0.3f;
        const double squared = 7.0, tiny = 1e-30;
        const int32_t found_inf = 1;
        const int64_t step = 1;
        float *m = random_floats(count, 1), *x = random_floats(count, 1), *y = random_floats(count, 1),
              *p = random_floats(count, 1), *small = random_floats(count, 1);
        double *em = zero_doubles(count), *eo = zero_doubles(count), *en = zero_doubles(count),
               *ep = zero_doubles(count), *eu = zero_doubles(count), *es = zero_doubles(count);
        for (int64_t i = 0; i < count; i++) em[i] = (double)m[i], small[i] *= 1e-9f;
        void *xs = stored(dtype, x, count), *ys = stored(dtype, y, count), *ss = stored(dtype, small, count);
        float *first_m = copy_floats(m, count), *results[2][5];
        for (int threads = 1; threads <= 3; threads += 2) {
            float *m_now = copy_floats(first_m, count), *p_now = copy_floats(p, count);
            float **found = results[threads == 3];
            void *output = stored(dtype, x, count), *normal = stored(dtype, x, count), *sum = stored(dtype, y, count),
                 *zero = stored(dtype, small, count);
            struct support s = support_open(threads, LS_STREAMS_EAGER);
            for (int turn = 0; turn < 2; turn++)
                ls_op(s.stream, momentum, .m = m_now, .output = output, .gradient = y, .factor = &factor,
                      .count = count, .beta = beta, .dtype = dtype);
            ls_op(s.stream, momentum, .m = m_now, .output = output, .gradient = y, .factor = &factor,
                  .found_inf = &found_inf, .count = count, .beta = beta, .dtype = dtype);
            ls_op(s.stream, normalize, .x = normal, .squared = &squared, .count = count, .dtype = dtype);
            ls_op(s.stream, normalize, .x = zero, .squared = &tiny, .count = count, .dtype = dtype);
            ls_op(s.stream, polynomial, .output = sum, .x = xs, .y = sum, .side = side, .a = 3.0f, .b = -4.5f,
                  .c = 2.5f, .dtype = dtype);
            ls_op(s.stream, update, .rule = LS_UPDATE_GIVEN, .parameter = p_now, .direction = xs, .factor = &factor,
                  .learning_rate = &rate, .step = &step, .count = count, .decay_count = decayed, .scale = scale,
                  .weight_decay = decay, .low_precision = dtype == LS_BF16 ? ys : NULL, .dtype = dtype);
            support_close(s);
            found[0] = read_back(dtype, output, count), found[1] = read_back(dtype, normal, count);
            found[2] = read_back(dtype, sum, count), found[3] = p_now, found[4] = read_back(dtype, zero, count);
            if (threads == 1) memcpy(m, m_now, (size_t)count * sizeof *m);
            check_same_bits("momentum", m_now, m, count);
            if (dtype == LS_BF16) {
                float *copy = read_back(dtype, ys, count);
                for (int64_t i = 0; i < count; i++) assert_true(copy[i] == bf16_of(p_now[i]));
                free(copy);
            }
            free(output), free(normal), free(sum), free(m_now), free(zero);
        }
        for (int64_t i = 0; i < count; i++) {
            const double g = (double)y[i] * 0.5;
            for (int turn = 0; turn < 2; turn++) em[i] = (double)beta * em[i] + (1.0 - (double)beta) * g;
            eo[i] = (double)beta * em[i] + (1.0 - (double)beta) * g;
            en[i] = (double)x[i] / sqrt(7.0);
            es[i] = (double)small[i] / 1e-7;
            ep[i] = (i / side == i % side ? 3.0 : 0.0) - 4.5 * (double)x[i] + 2.5 * (double)y[i];
            eu[i] = (double)p[i] -
                    (double)rate * ((double)scale * (double)x[i] + (i < decayed ? (double)decay * (double)p[i] : 0.0));
        }
        check_close("m", m, em, count, 2e-6);
        check_close("output", results[0][0], eo, count, rounding_of(dtype) + 2e-6);
        check_close("normalised", results[0][1], en, count, rounding_of(dtype));
        check_close("polynomial", results[0][2], ep, count, rounding_of(dtype));
        check_close("parameter", results[0][3], eu, count, 8.0 * ROUNDING);
        check_close("next to nothing", results[0][4], es, count, rounding_of(dtype));
        for (int i = 0; i < 5; i++) check_same_bits("threads", results[1][i], results[0][i], count);
        for (int i = 0; i < 5; i++) free(results[0][i]), free(results[1][i]);
        free(m), free(x), free(y), free(p), free(small), free(xs), free(ys), free(ss), free(first_m);
        free(em), free(eo), free(en), free(ep), free(eu), free(es);
    }
}

/* c = a b in double; a is [m, k], or [k, m] when `transpose_a`; b is [k, n], or [n, k] when `transpose_b`. */
static void multiply(const double *a, bool transpose_a, const double *b, bool transpose_b, double *c, int64_t m,
                     int64_t n, int64_t k) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t l = 0; l < k; l++)
                sum += a[transpose_a ? l * m + i : i * k + l] * b[transpose_b ? j * k + l : l * n + j];
            c[i * n + j] = sum;
        }
}

/* Wide, tall and square matrices, and a row and a column, against the iteration in double, and against what it is for:
 * with X the result, X X^T (X^T X of a tall one) is the unit matrix but for singular values of 0.65 to 1.25. The
 * iteration makes small singular values up to 3.4445^5 = 485 times larger, and with them the roundings: that is where
 * the tolerances come from. A matrix of zeros stays one. */
static void a_matrix_becomes_orthogonal(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{24, 61}, {61, 24}, {37, 37}, {1, 19}, {19, 1}, {48, 200}};
    for (int i = 0; i < 12; i++) {
        const enum ls_dtype dtype = i < 6 ? LS_FP32 : LS_BF16;
        const int64_t rows = shapes[i % 6][0], columns = shapes[i % 6][1], count = rows * columns;
        const int64_t side = rows < columns ? rows : columns, longer = rows < columns ? columns : rows;
        const bool tall = rows > columns;
        float *u = random_floats(count, 1);
        void *x = stored(dtype, u, count), *result = stored(dtype, u, count);
        double *e = zero_doubles(count), *next = zero_doubles(count), *gram = zero_doubles(side * side),
               *powers = zero_doubles(side * side), squared = 0, *partial = zero_doubles(count / 1024 + 1);
        void *scratch[2] = {malloc((size_t)(side * side) * 4), malloc((size_t)(side * side) * 4)};
        for (int64_t j = 0; j < count; j++) squared += (double)u[j] * (double)u[j];
        for (int64_t j = 0; j < count; j++) e[j] = (double)u[j] / sqrt(squared);
        for (int turn = 0; turn < 5; turn++) {
            multiply(e, tall, e, !tall, gram, side, side, longer);
            multiply(gram, false, gram, false, powers, side, side, side);
            for (int64_t j = 0; j < side * side; j++)
                powers[j] = (j % (side + 1) == 0 ? 3.4445 : 0.0) - 4.7750 * gram[j] + 2.0315 * powers[j];
            multiply(tall ? e : powers, false, tall ? powers : e, false, next, rows, columns, side);
            memcpy(e, next, (size_t)count * sizeof *e);
        }
        struct support s = support_open(2, LS_STREAMS_EAGER);
        const struct ls_muon_matrix matrix = {.x = x,
                                              .result = result,
                                              .rows = rows,
                                              .columns = columns,
                                              .gram = scratch[0],
                                              .powers = scratch[1],
                                              .squared = &squared,
                                              .partial = partial,
                                              .dtype = dtype};
        ls_muon_orthogonalize(s.stream, &matrix);
        float *found = read_back(dtype, result, count);
        check_close("orthogonal", found, e, count, dtype == LS_FP32 ? 485.0 * ROUNDING : 0.1);
        if (side < longer / 2) { /* a random matrix that is nearly square has singular values near 0 */
            for (int64_t j = 0; j < count; j++) next[j] = (double)found[j];
            multiply(next, tall, next, !tall, gram, side, side, longer);
            for (int64_t j = 0; j < side; j++)
                assert_true(gram[j * (side + 1)] > 0.65 * 0.65 && gram[j * (side + 1)] < 1.25 * 1.25);
        }
        memset(x, 0, (size_t)(count * ls_dtype_bytes(dtype)));
        ls_muon_orthogonalize(s.stream, &matrix);
        support_close(s);
        float *zeros = read_back(dtype, result, count);
        for (int64_t j = 0; j < count; j++) assert_true(zeros[j] == 0.0f);
        free(u), free(x), free(result), free(e), free(next), free(gram), free(powers), free(partial);
        free(scratch[0]), free(scratch[1]), free(found), free(zeros);
    }
}

/* Philox 4x32-10 as its authors write it: two multiplications, high words crossed and mixed with counter and key. */
static void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t word[4]) {
    uint32_t k0 = key[0], k1 = key[1];
    memcpy(word, counter, 4 * sizeof *word);
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
        const uint64_t p0 = (uint64_t)word[0] * 0xD2511F53, p1 = (uint64_t)word[2] * 0xCD9E8D57;
        const uint32_t x1 = word[1], x3 = word[3];
        word[0] = (uint32_t)(p1 >> 32) ^ x1 ^ k0;
        word[1] = (uint32_t)p1;
        word[2] = (uint32_t)(p0 >> 32) ^ x3 ^ k1;
        word[3] = (uint32_t)p0;
    }
}

/* The three known answers that Random123 publishes for Philox 4x32-10. */
static void the_reference_philox_gives_the_published_answers(void **state) {
    (void)state;
    static const uint32_t vectors[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420,
         0x24126ea1}};
    for (int i = 0; i < 3; i++) {
        uint32_t word[4];
        philox(vectors[i], vectors[i] + 4, word);
        assert_memory_equal(word, vectors[i] + 6, sizeof word);
    }
}

static float expected_normal(uint64_t seed, uint64_t tensor, uint64_t element, float mean, float deviation) {
    const uint32_t counter[4] = {(uint32_t)(element / 4), (uint32_t)(element / 4 >> 32), (uint32_t)tensor,
                                 (uint32_t)(tensor >> 32)};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t word[4];
    philox(counter, key, word);
    const int pair = (int)(element % 4) / 2 * 2;
    const double radius = sqrt(-2.0 * log(((double)word[pair] + 1.0) / 4294967296.0));
    const double angle = 2.0 * M_PI * (double)word[pair + 1] / 4294967296.0;
    return (float)((double)mean + (double)deviation * radius * (element % 2 ? sin(angle) : cos(angle)));
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* `count` values that bf16 holds, as it holds them and as floats. */
static uint16_t *random_bf16(int64_t count, float *wide) {
    uint16_t *narrow = calloc((size_t)count, sizeof *narrow);
    for (int64_t i = 0; i < count; i++) {
        narrow[i] = (uint16_t)(bits_of(wide[i]) >> 16);
        const uint32_t bits = (uint32_t)narrow[i] << 16;
        memcpy(&wide[i], &bits, sizeof bits);
    }
    return narrow;
}

/* What the update makes of bf16 weights is what it makes of the same weights in fp32, plus the 16 bits of the element,
 * cut off; the same bits in pieces of any size and by any number of threads; an infinite or NaN weight stays one.
 */
static void check_rounding(enum ls_update_rule rule) {
    const int64_t count = 9001, decayed = 4000;
    const uint64_t seed = random_bits(), first = random_bits() >> 24;
    const uint32_t tensor = (uint32_t)random_below(300);
    const int64_t step = 1 + random_below(1000);
    const float factor = 0.5f, rate = 1e-3f;
    float *master = random_floats(count, 1), *gradient = random_floats(count, 1), *m = random_floats(count, 1),
          *v = random_floats(count, 1);
    master[17] = INFINITY, master[18] = -INFINITY, master[19] = NAN;
    for (int64_t i = 0; i < count; i++) v[i] = fabsf(v[i]);
    uint16_t *start = random_bf16(count, master), *whole = malloc((size_t)count * 2),
             *pieces = malloc((size_t)count * 2);
    memcpy(whole, start, (size_t)count * 2), memcpy(pieces, start, (size_t)count * 2);
    float *towards = random_floats(count, 1);
    uint16_t *direction = random_bf16(count, towards);
    float *ms[3] = {m, copy_floats(m, count), copy_floats(m, count)};
    float *vs[3] = {v, copy_floats(v, count), copy_floats(v, count)};
    struct ls_op_update op = {.rule = rule,
                              .m = m,
                              .v = v,
                              .gradient = gradient,
                              .direction = direction,
                              .scale = 3.0f,
                              .factor = &factor,
                              .learning_rate = &rate,
                              .step = &step,
                              .count = count,
                              .decay_count = decayed,
                              .beta1 = 0.9f,
                              .beta2 = 0.95f,
                              .epsilon = 1e-8f,
                              .weight_decay = 0.1f,
                              .dtype = LS_BF16,
                              .seed = seed,
                              .first = first,
                              .tensor = tensor};
    struct support s = support_open(1, LS_STREAMS_EAGER), s3 = support_open(3, LS_STREAMS_EAGER);
    op.parameter = master;
    ls_stream_submit(s.stream, LS_OP_update, &op, sizeof op);
    op.parameter = NULL, op.low_precision = whole, op.m = ms[1], op.v = vs[1];
    ls_stream_submit(s3.stream, LS_OP_update, &op, sizeof op);
    int64_t up = 0, inexact = 0;
    for (int64_t i = 0; i < count; i++) {
        const uint64_t element = first + (uint64_t)i;
        const uint32_t counter[4] = {(uint32_t)(element / 8), (uint32_t)(element / 8 >> 32), tensor, (uint32_t)step};
        const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, bits = bits_of(master[i]);
        uint32_t word[4];
        philox(counter, key, word);
        if (isnan(master[i])) {
            assert_true((whole[i] & 0x7f80) == 0x7f80 && (whole[i] & 0x7f));
        } else {
            const uint32_t random = word[element % 8 / 2] >> 16 * (element % 2) & 0xffff;
            const uint16_t expected = (uint16_t)((isinf(master[i]) ? bits : bits + random) >> 16);
            assert_int_equal(whole[i], expected);
            inexact += (bits & 0xffff) != 0, up += expected != (uint16_t)(bits >> 16);
        }
    }
    /* The rest of a sum is about uniform, so half of them go up: 9000 draws are within 0.03 of that. */
    assert_true(inexact > 8500 && fabs((double)up / (double)inexact - 0.5) < 0.03);
    check_same_bits("m", ms[1], m, count);
    check_same_bits("v", vs[1], v, count);
    for (int64_t i = 0, length; i < count; i += length) {
        length = 1 + random_below(1500);
        if (length > count - i) length = count - i;
        struct ls_op_update part = op;
        part.low_precision = pieces + i, part.m = ms[2] + i, part.v = vs[2] + i, part.gradient = gradient + i;
        part.direction = direction + i;
        part.first = first + (uint64_t)i, part.count = length;
        part.decay_count = i < decayed ? (decayed - i < length ? decayed - i : length) : 0;
        ls_stream_submit(s.stream, LS_OP_update, &part, sizeof part);
    }
    assert_memory_equal(pieces, whole, (size_t)count * 2);
    support_close(s), support_close(s3);
    for (int i = 1; i < 3; i++) free(ms[i]), free(vs[i]);
    free(master), free(gradient), free(m), free(v), free(start), free(whole), free(pieces);
    free(towards), free(direction);
}

static void without_a_master_the_sum_is_rounded_by_the_key(void **state) {
    (void)state;
    for (int rule = LS_UPDATE_ADAMW; rule <= LS_UPDATE_GIVEN; rule++) check_rounding((enum ls_update_rule)rule);
}

/* Updates of a thousandth of the distance between two bf16 numbers: to the nearest nothing would ever change. After
 * 1000 steps each weight is where 1000 draws put it, and their mean where the updates add up to, within 6 deviations of
 * the mean of 20,000 sums of 1000 draws of variance 0.001: 0.0424 of a distance. */
static void small_updates_add_up_on_average(void **state) {
    (void)state;
    const int64_t count = 20000, steps = 1000;
    const double distance = 0x1p-7; /* of bf16 numbers from 1 to 2 */
    const float rate = (float)(distance / 1000), factor = 1.0f;
    uint16_t *weights = malloc((size_t)count * 2);
    float *gradient = calloc((size_t)count, 4), *m = calloc((size_t)count, 4), *v = calloc((size_t)count, 4);
    for (int64_t i = 0; i < count; i++) weights[i] = 0x3fc0, gradient[i] = -1.0f; /* 1.5 */
    struct support s = support_open(2, LS_STREAMS_EAGER);
    for (int64_t step = 1; step <= steps; step++)
        ls_op(s.stream, update, .low_precision = weights, .m = m, .v = v, .gradient = gradient, .factor = &factor,
              .learning_rate = &rate, .step = &step, .count = count, .beta1 = 0.9f, .beta2 = 0.9f, .epsilon = 1e-8f,
              .dtype = LS_BF16, .seed = 7);
    support_close(s);
    double mean = 0.0;
    int64_t apart = 0;
    for (int64_t i = 0; i < count; i++) {
        const double moved = ((double)weights[i] - 0x3fc0); /* distances */
        mean += moved / (double)count;
        apart += moved != (double)weights[0] - 0x3fc0;
    }
    assert_true(fabs(mean - 1.0) < 6.0 * sqrt(0.001 * 0.999 * (double)steps / (double)count));
    assert_true(apart > count / 4); /* each element draws for itself */
    free(weights), free(gradient), free(m), free(v);
}

static void initialisation_depends_on_seed_tensor_and_index_alone(void **state) {
    (void)state;
    const uint64_t seed = random_bits(), tensor = random_bits();
    const int64_t first = (int64_t)(random_bits() >> 3), count = 9001;
    float *whole = random_floats(count, 1), *pieces = random_floats(count, 1);
    struct support s = support_open(1, LS_STREAMS_EAGER), s3 = support_open(3, LS_STREAMS_EAGER);
    ls_op(s3.stream, initialize, .output = whole, .seed = seed, .tensor = tensor, .first = (uint64_t)first,
          .count = count, .mean = 0.5f, .deviation = 0.02f);
    for (int64_t i = 0, step; i < count; i += step) {
        step = 1 + random_below(700);
        if (step > count - i) step = count - i;
        ls_op(s.stream, initialize, .output = pieces + i, .seed = seed, .tensor = tensor,
              .first = (uint64_t)(first + i), .count = step, .mean = 0.5f, .deviation = 0.02f);
    }
    check_same_bits("cut at random", pieces, whole, count);
    for (int64_t i = 0; i < count;
         i++) /* the same formula in double: one rounding, and a last bit of the library's functions */
        assert_float_equal(whole[i], expected_normal(seed, tensor, (uint64_t)(first + i), 0.5f, 0.02f), 1e-7f);
    ls_op(s.stream, initialize, .output = pieces, .seed = seed, .tensor = tensor, .count = count, .mean = 1.0f);
    for (int64_t i = 0; i < count; i++) assert_true(pieces[i] == 1.0f);
    support_close(s), support_close(s3);
    free(whole), free(pieces);
}

/* 200,000 draws: the mean lies within 6 / sqrt(n), the variance within 6 sqrt(2 / n), and one in 15,787 is beyond 4
 * deviations. */
static void initialisation_is_normal(void **state) {
    (void)state;
    const int64_t count = 200000;
    float *x = random_floats(count, 1);
    double mean = 0.0, square = 0.0;
    int64_t far = 0;
    struct support s = support_open(1, LS_STREAMS_EAGER);
    ls_op(s.stream, initialize, .output = x, .seed = random_bits(), .tensor = 3, .count = count, .deviation = 1.0f);
    support_close(s);
    for (int64_t i = 0; i < count; i++) mean += (double)x[i] / (double)count, far += fabsf(x[i]) > 4.0f;
    for (int64_t i = 0; i < count; i++) square += ((double)x[i] - mean) * ((double)x[i] - mean) / (double)count;
    assert_true(fabs(mean) < 6.0 / sqrt((double)count));
    assert_true(fabs(square - 1.0) < 6.0 * sqrt(2.0 / (double)count));
    assert_in_range(far, 0, 40); /* 12.7 expected */
    free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(squared_norm_adds_ordered_sums_in_double),
        cmocka_unit_test(clip_scales_only_norms_above_the_maximum),
        cmocka_unit_test(adamw_follows_the_algorithm_and_decays_only_the_first_part),
        cmocka_unit_test(lion_and_sgd_follow_their_formulas),
        cmocka_unit_test(what_orthogonal_updates_are_made_of_is_as_written),
        cmocka_unit_test(a_matrix_becomes_orthogonal),
        cmocka_unit_test(the_reference_philox_gives_the_published_answers),
        cmocka_unit_test(without_a_master_the_sum_is_rounded_by_the_key),
        cmocka_unit_test(small_updates_add_up_on_average),
        cmocka_unit_test(initialisation_depends_on_seed_tensor_and_index_alone),
        cmocka_unit_test(initialisation_is_normal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
