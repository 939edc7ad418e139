/* The optimizers' kernels: norms whose order is part of the contract, the clip factor, the rules, initial weights. */
#include "tests/gpu/harness.h"

static const int64_t sizes[] = {1, 1000, 1024, 1025, 5000, 9217};

/* A sum of 1024 squares in double, however ordered, is right to 1e-13; their sum in order is one rounding each. */
static void norm_case(enum ls_dtype dtype, int64_t count, int64_t offset) {
    const int64_t pieces = (count + 1023) / 1024;
    const double before = 0.25;
    struct array x = make_array(dtype, count, 3.0, offset);
    double *partial = (double *)device_allocate((size_t)pieces * sizeof *partial), *result = put_values(&before, 1);
    double *sums = zero_doubles(pieces), *found = zero_doubles(pieces), expected = before;
    for (int64_t i = 0; i < count; i++) sums[i / 1024] += x.value[i] * x.value[i];
    struct ls_op_squared_norm op = {NULL, x.device, count, partial, false, dtype};
    check_cuda(ls_cuda_squared_norm(&op, 0)); /* the pieces */
    device_copy(found, partial, (size_t)pieces * sizeof *found);
    for (int64_t p = 0; p < pieces; p++) {
        if (!(fabs(found[p] - sums[p]) <= 1e-12 * sums[p])) fail("piece %d is %.17g", (int)p, found[p]);
        expected += found[p];
    }
    op.input = NULL, op.result = result;
    check_cuda(ls_cuda_squared_norm(&op, 0)); /* their sum */
    if (get_value(result) != expected) fail("the sum in order is %.17g, not %.17g", expected, get_value(result));
    device_copy(result, &before, sizeof before);
    op.input = x.device;
    check_cuda(ls_cuda_squared_norm(&op, 0)); /* both */
    if (get_value(result) != expected) fail("both at once give %.17g, not %.17g", get_value(result), expected);
    const struct ls_op_ordered_sum ordered = {result, partial, pieces};
    double alone = 0.0;
    for (int64_t p = 0; p < pieces; p++) alone += found[p];
    check_cuda(ls_cuda_ordered_sum(&ordered, 0));
    if (get_value(result) != alone) fail("the ordered sum is %.17g, not %.17g", get_value(result), alone);
    device_copy(result, &before, sizeof before);
    op.any_order = true;
    check_cuda(ls_cuda_squared_norm(&op, 0));
    const double shared = get_value(result);
    if (!(fabs(shared - expected) <= 1e-13 * expected)) fail("in any order %.17g, not %.17g", shared, expected);
    device_copy(result, &before, sizeof before);
    check_cuda(ls_cuda_squared_norm(&op, 0));
    if (get_value(result) != shared) fail("%.17g, and the second time %.17g", shared, get_value(result));
    free_array(&x), free(sums), free(found), device_free(partial), device_free(result);
}
static void norms_are_ordered_sums_of_pieces(void) {
    for (int dtype = LS_FP32; dtype <= LS_FP16; dtype++)
        for (const int64_t size : sizes)
            for (int64_t offset = 0; offset < 2; offset++) norm_case((enum ls_dtype)dtype, size, offset);
}

/* Up to 4096 sums of pieces are added by one block, more by several whose sums are added then. 9000 positive terms err
 * by less than 9000 roundings of their sum, however ordered: 1e-12 of it. */
static void norms_of_many_pieces_are_the_same_each_time(void) {
    const int64_t counts[] = {4096, 4097, 9000};
    for (const int64_t count : counts) {
        double *values = zero_doubles(count), expected = 0.25, first = 0.0;
        for (int64_t i = 0; i < count; i++) expected += values[i] = random_between(0.0, 1.0);
        for (int again = 0; again < 2; again++) {
            const double before = 0.25;
            double *partial = put_values(values, count), *result = put_values(&before, 1);
            const struct ls_op_squared_norm op = {result, NULL, count * 1024 - 7, partial, true, LS_FP32};
            check_cuda(ls_cuda_squared_norm(&op, 0));
            const double found = get_value(result);
            if (!(fabs(found - expected) <= 1e-12 * expected)) fail("%.17g, not %.17g", found, expected);
            if (again && found != first) fail("%.17g, and the second time %.17g", first, found);
            first = found;
            device_free(partial), device_free(result);
        }
        free(values);
    }
}

static void an_ordered_sum_of_many_is_in_order(void) {
    const int64_t count = 3001;
    double *values = zero_doubles(count), expected = 0.0;
    for (int64_t i = 0; i < count; i++) expected += values[i] = random_between(-1.0, 1.0);
    double *input = put_values(values, count), *result = put_values(values, 1);
    const struct ls_op_ordered_sum op = {result, input, count};
    check_cuda(ls_cuda_ordered_sum(&op, 0));
    if (get_value(result) != expected) fail("%.17g, not %.17g", get_value(result), expected);
    free(values), device_free(input), device_free(result);
}

/* Slices of a tensor begin at multiples of 1024 but not where memory is aligned to 16 bytes: the bits of a piece must
 * not depend on that. */
static void a_piece_has_the_same_bits_wherever_it_lies(void) {
    struct array x = make_array(LS_BF16, 1000, 3.0), y = make_array(LS_BF16, 1000, 3.0, 3);
    memcpy(y.value, x.value, 1000 * sizeof(double));
    send(&y);
    double *partial = (double *)device_allocate(2 * sizeof *partial), found[2];
    const struct ls_op_squared_norm first = {NULL, x.device, 1000, partial, false, LS_BF16};
    const struct ls_op_squared_norm second = {NULL, y.device, 1000, partial + 1, false, LS_BF16};
    check_cuda(ls_cuda_squared_norm(&first, 0));
    check_cuda(ls_cuda_squared_norm(&second, 0));
    device_copy(found, partial, sizeof found);
    if (found[0] != found[1]) fail("%.17g and %.17g", found[0], found[1]);
    free_array(&x), free_array(&y), device_free(partial);
}

static void clip_factors_are_right(void) {
    const struct {
        double squared;
        float maximum, loss_scale, norm, factor;
        int found_inf;
    } cases[] = {{25.0, 1.0f, 0.0f, 5.0f, 0.2f, 0},
                 {0.25, 1.0f, 0.0f, 0.5f, 1.0f, 0},
                 {25.0, 0.0f, 0.0f, 5.0f, 1.0f, 0},
                 {16.0, 1.0f, 2.0f, 2.0f, 0.25f, 0},
                 {INFINITY, 1.0f, 0.0f, INFINITY, 0.0f, 1}};
    float *factor = (float *)device_allocate(sizeof *factor), *norm = (float *)device_allocate(sizeof *norm);
    int32_t *found_inf = (int32_t *)device_allocate(sizeof *found_inf);
    for (const auto &c : cases) {
        double *squared = put_values(&c.squared, 1);
        const struct ls_op_clip op = {factor, norm, found_inf, squared, c.maximum, c.loss_scale};
        check_cuda(ls_cuda_clip(&op, 0));
        if (get_value(norm) != c.norm || get_value(factor) != c.factor || get_value(found_inf) != c.found_inf)
            fail("of %g: norm %g, factor %g, found_inf %d", c.squared, (double)get_value(norm),
                 (double)get_value(factor), get_value(found_inf));
        device_free(squared);
    }
    device_free(factor), device_free(norm), device_free(found_inf);
}

/* Each new value is a few fp32 operations from the old ones: relative 2e-6 of what they are of. */
static void adamw_case(enum ls_dtype dtype, int64_t count, int64_t offset) {
    struct array p = make_array(LS_FP32, count, 1.0, offset), m = make_array(LS_FP32, count, 0.1, offset);
    struct array v = make_array(LS_FP32, count, 0.1, offset), g = make_array(LS_FP32, count, 2.0, offset);
    struct array copy = make_array(dtype, count, 1.0, offset);
    const float factor = 0.5f, rate = 3e-2f, beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f, decay = 0.1f;
    const int64_t step = 1 + random_below(20), decay_count = random_below(count + 1);
    int32_t found_inf = 1;
    for (int64_t i = 0; i < count; i++) v.value[i] = fabs(v.value[i]) + 1e-3;
    send(&v);
    float *factors = put_values(&factor, 1), *rates = put_values(&rate, 1);
    int64_t *steps = put_values(&step, 1);
    int32_t *infinite = put_values(&found_inf, 1);
    double *p_expected = copy_values(&p), *m_expected = copy_values(&m), *v_expected = copy_values(&v);
    double *copy_expected = copy_values(&copy);
    struct ls_op_update op = {};
    op.parameter = (float *)p.device, op.m = (float *)m.device, op.v = (float *)v.device;
    op.low_precision = copy.device, op.gradient = (const float *)g.device;
    op.factor = factors, op.learning_rate = rates, op.step = steps, op.found_inf = infinite;
    op.count = count, op.decay_count = decay_count, op.beta1 = beta1, op.beta2 = beta2, op.epsilon = epsilon;
    op.weight_decay = decay, op.dtype = dtype;
    check_cuda(ls_cuda_update(&op, 0));
    check_close("parameters after infinity", &p, p_expected, 0.0, 0.0);
    check_close("their copy", &copy, copy_expected, 0.0, 0.0);
    check_close("m", &m, m_expected, 0.0, 0.0);
    op.found_inf = NULL;
    for (int64_t i = 0; i < count; i++) {
        const double gradient = g.value[i] * (double)factor;
        m_expected[i] = (double)beta1 * m.value[i] + (1.0 - (double)beta1) * gradient;
        v_expected[i] = (double)beta2 * v.value[i] + (1.0 - (double)beta2) * gradient * gradient;
        const double m_hat = m_expected[i] / (1.0 - pow((double)beta1, (double)step));
        const double v_hat = v_expected[i] / (1.0 - pow((double)beta2, (double)step));
        p_expected[i] -= (double)rate * (m_hat / (sqrt(v_hat) + (double)epsilon) +
                                         (i < decay_count ? (double)decay : 0.0) * p.value[i]);
    }
    check_cuda(ls_cuda_update(&op, 0));
    check_close("m", &m, m_expected, 2e-6, 2e-7);
    check_close("v", &v, v_expected, 2e-6, 0.0);
    check_close("parameters", &p, p_expected, 2e-6, 1e-6);
    check_close("their copy", &copy, p.value, rounding_of(dtype), 0.0);
    struct array *all[] = {&p, &m, &v, &g, &copy};
    for (struct array *a : all) free_array(a);
    device_free(factors), device_free(rates), device_free(steps), device_free(infinite);
    free(p_expected), free(m_expected), free(v_expected), free(copy_expected);
}
static void adamw_follows_its_formula(void) {
    for (int dtype = LS_FP32; dtype <= LS_FP16; dtype++)
        for (const int64_t size : sizes)
            for (int64_t offset = 0; offset < 2; offset++) adamw_case((enum ls_dtype)dtype, size, offset);
}

/* Lion takes the sign of a sum; where that is nearly nothing either one is right. */
static void rule_case(enum ls_update_rule rule, enum ls_dtype dtype, int64_t count, int64_t offset) {
    struct array p = make_array(LS_FP32, count, 1.0, offset), m = make_array(LS_FP32, count, 0.1, offset);
    struct array g = make_array(LS_FP32, count, 2.0, offset), copy = make_array(dtype, count, 1.0, offset);
    const float factor = 0.5f, rate = 3e-2f, beta1 = 0.9f, beta2 = 0.99f, decay = 0.1f;
    const int64_t step = 1 + random_below(20), decay_count = random_below(count + 1);
    m.value[0] = g.value[0] = 0.0; /* no direction at all */
    send(&m), send(&g);
    float *factors = put_values(&factor, 1), *rates = put_values(&rate, 1);
    int64_t *steps = put_values(&step, 1);
    double *p_expected = copy_values(&p), *m_expected = copy_values(&m);
    struct ls_op_update op = {};
    op.rule = rule, op.parameter = (float *)p.device, op.m = (float *)m.device;
    op.low_precision = copy.device, op.gradient = (const float *)g.device;
    op.factor = factors, op.learning_rate = rates, op.step = steps;
    op.count = count, op.decay_count = decay_count, op.beta1 = beta1, op.beta2 = beta2;
    op.weight_decay = decay, op.dtype = dtype;
    double *before = copy_values(&p);
    check_cuda(ls_cuda_update(&op, 0));
    fetch(&p);
    for (int64_t i = 0; i < count; i++) {
        const double gradient = g.value[i] * (double)factor, b1 = (double)beta1, b2 = (double)beta2;
        const double mixed = b1 * m_expected[i] + (1.0 - b1) * gradient;
        double direction = (mixed > 0.0) - (mixed < 0.0);
        if (rule == LS_UPDATE_SGD) direction = m_expected[i] = b1 * m_expected[i] + gradient;
        if (rule == LS_UPDATE_LION) m_expected[i] = b2 * m_expected[i] + (1.0 - b2) * gradient;
        p_expected[i] -= (double)rate * (direction + (i < decay_count ? (double)decay : 0.0) * before[i]);
        if (rule == LS_UPDATE_LION && mixed != 0.0 && fabs(mixed) < 1e-6) p_expected[i] = p.value[i];
    }
    check_close("m", &m, m_expected, 4e-6, 2e-7); /* 1 - beta2 in float is off by 3e-6 of itself */
    check_close("parameters", &p, p_expected, 2e-6, 1e-6);
    check_close("their copy", &copy, p.value, rounding_of(dtype), 0.0);
    struct array *all[] = {&p, &m, &g, &copy};
    for (struct array *a : all) free_array(a);
    device_free(factors), device_free(rates), device_free(steps);
    free(p_expected), free(m_expected), free(before);
}
static void lion_and_sgd_follow_their_formulas(void) {
    for (int dtype = LS_FP32; dtype <= LS_FP16; dtype++)
        for (const int64_t size : sizes)
            for (int64_t offset = 0; offset < 2; offset++) {
                rule_case(LS_UPDATE_LION, (enum ls_dtype)dtype, size, offset);
                rule_case(LS_UPDATE_SGD, (enum ls_dtype)dtype, size, offset);
            }
}

/* A momentum that looks ahead, a division by a norm, a polynomial of matrices, an update in a given direction. */
static void orthogonal_case(enum ls_dtype dtype, int64_t side, int64_t offset) {
    const int64_t count = side * side, decay_count = random_below(count + 1);
    const float factor = 0.5f, rate = 3e-2f, beta = 0.95f, decay = 0.1f, scale = 4.5f;
    const double squared = 7.0, tiny = 1e-30;
    int32_t found_inf = 1;
    struct array m = make_array(LS_FP32, count, 0.1, offset), g = make_array(LS_FP32, count, 2.0, offset);
    struct array output = make_array(dtype, count, 1.0, offset), x = make_array(dtype, count, 1.0, offset);
    struct array y = make_array(dtype, count, 1.0, offset), small = make_array(dtype, count, 1e-3, offset);
    struct array p = make_array(LS_FP32, count, 1.0, offset), copy = make_array(dtype, count, 1.0, offset);
    struct array direction = make_array(dtype == LS_FP32 ? LS_FP32 : LS_BF16, count, 1.0, offset);
    float *factors = put_values(&factor, 1), *rates = put_values(&rate, 1);
    double *squares = put_values(&squared, 1), *next_to_nothing = put_values(&tiny, 1);
    int32_t *infinite = put_values(&found_inf, 1);
    double *m_expected = copy_values(&m), *expected = zero_doubles(count);
    struct ls_op_momentum momentum = {
        (float *)m.device, output.device, (const float *)g.device, factors, infinite, count, beta, dtype};
    check_cuda(ls_cuda_momentum(&momentum, 0));
    check_close("m after infinity", &m, m_expected, 0.0, 0.0);
    momentum.found_inf = NULL;
    check_cuda(ls_cuda_momentum(&momentum, 0));
    for (int64_t i = 0; i < count; i++) {
        const double gradient = g.value[i] * (double)factor;
        m_expected[i] = (double)beta * m_expected[i] + (1.0 - (double)beta) * gradient;
        expected[i] = (double)beta * m_expected[i] + (1.0 - (double)beta) * gradient;
    }
    check_close("m", &m, m_expected, 2e-6, 2e-7);
    check_close("what the momentum gives", &output, expected, rounding_of(dtype) + 2e-6, 2e-7);
    const struct ls_op_normalize normalize = {x.device, squares, count, dtype};
    for (int64_t i = 0; i < count; i++) expected[i] = x.value[i] / sqrt(squared);
    check_cuda(ls_cuda_normalize(&normalize, 0));
    check_close("normalised", &x, expected, rounding_of(dtype) + 2e-7, 0.0);
    const struct ls_op_normalize least = {small.device, next_to_nothing, count, dtype};
    for (int64_t i = 0; i < count; i++) expected[i] = small.value[i] / 1e-7;
    check_cuda(ls_cuda_normalize(&least, 0));
    check_close("normalised by the least", &small, expected, rounding_of(dtype) + 2e-7, 0.0);
    const struct ls_op_polynomial polynomial = {y.device, x.device, y.device, side, 3.0f, -4.5f, 2.5f, dtype};
    for (int64_t i = 0; i < count; i++)
        expected[i] = (i / side == i % side ? 3.0 : 0.0) - 4.5 * x.value[i] + 2.5 * y.value[i];
    check_cuda(ls_cuda_polynomial(&polynomial, 0));
    check_close("a polynomial", &y, expected, rounding_of(dtype) + 2e-7, 2e-6);
    struct ls_op_update op = {};
    op.rule = LS_UPDATE_GIVEN, op.parameter = (float *)p.device, op.low_precision = copy.device;
    op.direction = direction.device, op.factor = factors, op.learning_rate = rates;
    op.count = count, op.decay_count = decay_count, op.weight_decay = decay, op.scale = scale, op.dtype = dtype;
    for (int64_t i = 0; i < count; i++)
        expected[i] = p.value[i] - (double)rate * ((double)scale * direction.value[i] +
                                                   (i < decay_count ? (double)decay : 0.0) * p.value[i]);
    check_cuda(ls_cuda_update(&op, 0));
    check_close("parameters", &p, expected, 2e-6, 1e-6);
    check_close("their copy", &copy, p.value, rounding_of(dtype), 0.0);
    struct array *all[] = {&m, &g, &output, &x, &y, &small, &p, &copy, &direction};
    for (struct array *a : all) free_array(a);
    device_free(factors), device_free(rates), device_free(squares), device_free(next_to_nothing);
    device_free(infinite), free(m_expected), free(expected);
}
static void what_orthogonal_updates_are_made_of_is_as_written(void) {
    const int64_t sides[] = {1, 2, 7, 32, 61, 128};
    for (int dtype = LS_FP32; dtype <= LS_FP16; dtype++)
        for (const int64_t side : sides)
            for (int64_t offset = 0; offset < 2; offset++) orthogonal_case((enum ls_dtype)dtype, side, offset);
}

/* Philox 4x32-10 by another route: 64-bit products split by hand, the rounds as Salmon et al. write them. The first
 * vector is that paper's known answer for a zero counter and key. */
static void philox(const uint32_t counter[4], uint64_t seed, uint32_t word[4]) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32), l0, r0, l1, r1;
    memcpy(word, counter, 4 * sizeof *word);
    for (int round = 0; round < 10; round++) {
        const uint64_t a = 0xD2511F53ull * word[0], b = 0xCD9E8D57ull * word[2];
        l0 = (uint32_t)(b >> 32) ^ word[1] ^ k0, r0 = (uint32_t)b;
        l1 = (uint32_t)(a >> 32) ^ word[3] ^ k1, r1 = (uint32_t)a;
        word[0] = l0, word[1] = r0, word[2] = l1, word[3] = r1;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
}

/* Without a master: the same sums as with one, plus the element's 16 random bits, cut off. `first` moves the elements
 * over groups of eight, `offset` moves the weights off 128 bits; a NaN and both infinities stay. */
static void rounding_case(enum ls_update_rule rule, int64_t count, int64_t first, int64_t offset) {
    const float factor = 0.5f, rate = 1e-3f;
    const int64_t step = 1 + random_below(100000);
    const uint64_t seed = random_bits();
    const uint32_t tensor = (uint32_t)random_below(1000);
    struct array p = make_array(LS_FP32, count, 1.0), m = make_array(LS_FP32, count, 1.0),
                 v = make_array(LS_FP32, count, 1.0), g = make_array(LS_FP32, count, 1.0),
                 narrow = make_array(LS_BF16, count, 1.0, offset);
    for (int64_t i = 0; i < count; i++) v.value[i] = fabs(v.value[i]);
    if (count > 3) narrow.value[1] = INFINITY, narrow.value[2] = -INFINITY, narrow.value[3] = NAN;
    send(&v), send(&narrow);
    memcpy(p.value, narrow.value, (size_t)count * sizeof(double));
    send(&p);
    struct array m2 = make_array(LS_FP32, count, 1.0), v2 = make_array(LS_FP32, count, 1.0);
    struct array direction = make_array(LS_BF16, count, 1.0);
    memcpy(m2.value, m.value, (size_t)count * sizeof(double)),
        memcpy(v2.value, v.value, (size_t)count * sizeof(double));
    send(&m2), send(&v2);
    float *factors = put_values(&factor, 1), *rates = put_values(&rate, 1);
    int64_t *steps = put_values(&step, 1);
    struct ls_op_update op = {};
    op.rule = rule, op.parameter = (float *)p.device, op.m = (float *)m.device, op.v = (float *)v.device;
    op.gradient = (const float *)g.device, op.factor = factors, op.learning_rate = rates, op.step = steps;
    op.count = count, op.decay_count = count / 3, op.seed = seed, op.first = (uint64_t)first, op.tensor = tensor;
    op.beta1 = 0.9f, op.beta2 = 0.95f, op.epsilon = 1e-8f, op.weight_decay = 0.1f, op.dtype = LS_BF16;
    op.direction = direction.device, op.scale = 3.0f;
    check_cuda(ls_cuda_update(&op, 0));
    op.parameter = NULL, op.low_precision = narrow.device, op.m = (float *)m2.device, op.v = (float *)v2.device;
    check_cuda(ls_cuda_update(&op, 0));
    fetch(&p), fetch(&narrow), fetch(&m), fetch(&v);
    check_close("m", &m2, m.value, 0.0, 0.0);
    check_close("v", &v2, v.value, 0.0, 0.0);
    for (int64_t i = 0; i < count; i++) {
        const uint64_t element = (uint64_t)(first + i);
        const uint32_t counter[4] = {(uint32_t)(element / 8), (uint32_t)(element / 8 >> 32), tensor, (uint32_t)step};
        const float sum = (float)p.value[i], found = (float)narrow.value[i];
        uint32_t word[4], bits, found_bits;
        philox(counter, seed, word);
        memcpy(&bits, &sum, sizeof bits), memcpy(&found_bits, &found, sizeof found_bits);
        if (isnan(sum) && isnan(found)) continue;
        const uint32_t expected =
            isinf(sum) ? bits : (bits + (word[element % 8 / 2] >> 16 * (element % 2) & 0xffff)) & 0xffff0000u;
        if (found_bits != expected) fail("element %d of %d is not rounded by its key", (int)i, (int)count);
    }
    struct array *all[] = {&p, &m, &v, &g, &narrow, &m2, &v2, &direction};
    for (struct array *a : all) free_array(a);
    device_free(factors), device_free(rates), device_free(steps);
}
static void without_a_master_the_sum_is_rounded_by_the_key(void) {
    for (const int64_t size : sizes)
        for (int64_t first = 0; first < 8; first++)
            for (int64_t offset = 0; offset < 2; offset++)
                rounding_case((enum ls_update_rule)random_below(4), size, first + ((int64_t)random_below(3) << 34),
                              offset);
}

static void initial_weights_follow_the_counter(void) {
    const uint32_t zero[4] = {0, 0, 0, 0};
    const uint32_t known[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
    uint32_t word[4];
    philox(zero, 0, word);
    if (memcmp(word, known, sizeof word) != 0) fail("the test's own generator is wrong");
    const uint64_t seed = random_bits(), tensor = random_bits() >> 40;
    const int64_t first = 4 * random_below(1 << 20) + 3, count = 1003;
    struct array x = make_array(LS_FP32, count, 1.0);
    double *expected = zero_doubles(count);
    for (int64_t i = 0; i < count; i++) {
        const uint64_t element = (uint64_t)(first + i), group = element / 4, pair = element % 4 / 2 * 2;
        const uint32_t counter[4] = {(uint32_t)group, (uint32_t)(group >> 32), (uint32_t)tensor,
                                     (uint32_t)(tensor >> 32)};
        philox(counter, seed, word);
        const double radius = sqrt(-2.0 * log(((double)word[pair] + 1.0) / 4294967296.0));
        const double angle = 2.0 * M_PI * ((double)word[pair + 1] / 4294967296.0);
        expected[i] = 0.125 + 0.02f * radius * (element % 2 ? sin(angle) : cos(angle));
    }
    struct ls_op_initialize op = {(float *)x.device, seed, tensor, first, count, 0.125f, 0.02f};
    check_cuda(ls_cuda_initialize(&op, 0));
    check_close("weights", &x, expected, 1.2e-7, 0.0); /* the float next to the right one at worst */
    fetch(&x);
    double *whole = copy_values(&x);
    op.output = (float *)x.device + 501, op.first = first + 501, op.count = count - 501; /* a cut anywhere */
    check_cuda(ls_cuda_initialize(&op, 0));
    check_close("weights of a part", &x, whole, 0.0, 0.0);
    op.deviation = 0.0f;
    for (int64_t i = 501; i < count; i++) whole[i] = 0.125;
    check_cuda(ls_cuda_initialize(&op, 0));
    check_close("constants", &x, whole, 0.0, 0.0);
    free_array(&x), free(expected), free(whole);
}

int main(void) {
    begin_tests();
    run_test("norms are sums of pieces in order", norms_are_ordered_sums_of_pieces);
    run_test("norms of many pieces are the same each time", norms_of_many_pieces_are_the_same_each_time);
    run_test("an ordered sum of many is in order", an_ordered_sum_of_many_is_in_order);
    run_test("a piece has the same bits wherever it lies", a_piece_has_the_same_bits_wherever_it_lies);
    run_test("clip factors are right", clip_factors_are_right);
    run_test("AdamW follows its formula", adamw_follows_its_formula);
    run_test("Lion and SGD follow their formulas", lion_and_sgd_follow_their_formulas);
    run_test("what orthogonal updates are made of is as written", what_orthogonal_updates_are_made_of_is_as_written);
    run_test("without a master the sum is rounded by the key", without_a_master_the_sum_is_rounded_by_the_key);
    run_test("initial weights follow the counter", initial_weights_follow_the_counter);
    return end_tests();
}
