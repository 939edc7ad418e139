/* The order of samples: what it promises to every rank and every epoch. */
#include "common/order.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void permute_gives_the_values_of_an_independent_implementation(void **state) {
    (void)state;
#define PERMUTE(key, round, index, n, expected) assert_int_equal(ls_permute(key, round, index, n), expected);
#define DRAW(mixture, position, source, sample, draw, epoch)
#include "tests/reference/order.inc"
#undef PERMUTE
#undef DRAW
}

/* The same list stands in tests/reference/order.py. */
static const struct {
    uint64_t seed, samples[5], weights[5];
    int sources;
} mixtures[] = {
    {0, {1000}, {0}, 1},
    {7, {3, 1, 5, 2}, {0}, 4},
    {42, {1000, 10, (UINT64_C(1) << 40) + 1}, {1, 1, 8}, 3},
    {UINT64_MAX, {5, 5, 5, 5, 5}, {3, 1, 4, 1, 5}, 5},
    {1, {UINT64_C(1) << 62, (UINT64_C(1) << 62) + 3, 12345678901}, {0}, 3},
    {3, {10, 20}, {UINT64_C(1) << 62, (UINT64_C(1) << 62) + 1}, 2},
};

static struct ls_order *create_mixture(int number) {
    struct ls_order *order;
    const uint64_t *weights = mixtures[number].weights[0] ? mixtures[number].weights : NULL;
    assert_int_equal(ls_order_create(mixtures[number].seed, mixtures[number].samples, weights, mixtures[number].sources,
                                     &order, NULL),
                     LS_OK);
    return order;
}

static void check_draw(int mixture, uint64_t position, uint64_t source, uint64_t sample, uint64_t draw,
                       uint64_t epoch) {
    struct ls_order *order = create_mixture(mixture);
    struct ls_draw found = ls_order_at(order, position);
    assert_int_equal(found.source, source);
    assert_int_equal(found.sample, sample);
    assert_int_equal(found.draw, draw);
    assert_int_equal(found.epoch, epoch);
    ls_order_destroy(order);
}

static void draws_are_those_of_an_independent_implementation(void **state) {
    (void)state;
#define PERMUTE(key, round, index, n, expected)
#define DRAW(mixture, position, source, sample, draw, epoch) check_draw(mixture, position, source, sample, draw, epoch);
#include "tests/reference/order.inc"
#undef PERMUTE
#undef DRAW
}

static void permute_hits_every_number_below_n_once(void **state) {
    (void)state;
    static const uint64_t sizes[] = {1, 2, 3, 4, 5, 7, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1000, 4095, 4097, 65537};
    unsigned char *seen = malloc(65537);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (uint64_t round = 0; round < 3; round++) {
            memset(seen, 0, 65537);
            for (uint64_t i = 0; i < sizes[s]; i++) {
                uint64_t value = ls_permute(99, round, i, sizes[s]);
                assert_true(value < sizes[s]);
                assert_int_equal(seen[value]++, 0);
            }
        }
    free(seen);
}

static int compare_words(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void permute_of_large_ranges_stays_inside_and_never_repeats(void **state) {
    (void)state;
    enum { COUNT = 20000 };
    static const uint64_t sizes[] = {(UINT64_C(1) << 40) + 1, (UINT64_C(1) << 40) - 1, UINT64_C(1) << 63, UINT64_MAX};
    static uint64_t values[COUNT];
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (uint64_t i = 0; i < COUNT; i++) {
            /* The first, the last, and those around the middle. */
            uint64_t index = i < COUNT / 2 ? i : sizes[s] - 1 - (i - COUNT / 2);
            values[i] = ls_permute(5, 1, index, sizes[s]);
            assert_true(values[i] < sizes[s]);
        }
        qsort(values, COUNT, sizeof *values, compare_words);
        for (int i = 1; i < COUNT; i++) assert_true(values[i - 1] != values[i]);
    }
}

static void epochs_keys_and_neighbours_look_unrelated(void **state) {
    (void)state;
    /* Of N numbers, two independent permutations agree in one place on average; 12 and more has a chance below 1e-9.
     * The mean of |value(i + 1) - value(i)| is N / 3 with a standard deviation below 0.24 N / sqrt(N). */
    enum { N = 10007 };
    int same_epoch = 0, same_key = 0, fixed = 0;
    double distance = 0;
    for (uint64_t i = 0; i < N; i++) {
        uint64_t value = ls_permute(1, 0, i, N), after = ls_permute(1, 0, (i + 1) % N, N);
        same_epoch += value == ls_permute(1, 1, i, N);
        same_key += value == ls_permute(2, 0, i, N);
        fixed += value == i;
        distance += (value > after ? (double)(value - after) : (double)(after - value)) / N;
    }
    assert_true(same_epoch < 12 && same_key < 12 && fixed < 12);
    assert_true(distance / N > 1.0 / 3 - 0.015 && distance / N < 1.0 / 3 + 0.015);
}

static void small_epochs_come_in_every_order(void **state) {
    (void)state;
    /* 6 orders of 3 samples in 600 epochs: 100 each, standard deviation 9. */
    int counts[27] = {0}, orders = 0;
    for (uint64_t round = 0; round < 600; round++)
        counts[ls_permute(8, round, 0, 3) * 9 + ls_permute(8, round, 1, 3) * 3 + ls_permute(8, round, 2, 3)]++;
    for (int i = 0; i < 27; i++) {
        orders += counts[i] > 0;
        assert_true(counts[i] == 0 || (counts[i] > 50 && counts[i] < 150));
    }
    assert_int_equal(orders, 6);
}

static void without_weights_every_epoch_has_every_sample_once(void **state) {
    (void)state;
    static const uint64_t samples[] = {17, 1, 200, 3, 64, 5, 1};
    enum { SOURCES = 7, TOTAL = 291 };
    struct ls_order *order;
    assert_int_equal(ls_order_create(11, samples, NULL, SOURCES, &order, NULL), LS_OK);
    assert_int_equal(ls_order_epoch_length(order), TOTAL);
    for (uint64_t epoch = 0; epoch < 5; epoch++) {
        int seen[SOURCES][200] = {{0}};
        for (uint64_t i = 0; i < TOTAL; i++) {
            struct ls_draw draw = ls_order_at(order, epoch * TOTAL + i);
            assert_true(draw.sample < samples[draw.source]);
            assert_int_equal(draw.epoch, epoch);
            assert_int_equal(seen[draw.source][draw.sample]++, 0);
        }
    }
    ls_order_destroy(order);
}

static void weights_give_exact_shares_at_every_round_of_the_mixture(void **state) {
    (void)state;
    static const uint64_t samples[] = {10, 7, 1000}, weights[] = {1, 2, 5};
    struct ls_order *order;
    assert_int_equal(ls_order_create(0, samples, weights, 3, &order, NULL), LS_OK);
    assert_int_equal(ls_order_epoch_length(order), 0);
    uint64_t draws[3] = {0};
    for (uint64_t position = 0; position < 8000; position++) {
        struct ls_draw draw = ls_order_at(order, position);
        assert_int_equal(draw.draw, draws[draw.source]);
        assert_int_equal(draw.epoch, draw.draw / samples[draw.source]);
        draws[draw.source]++;
        if ((position + 1) % 8 == 0)
            for (int i = 0; i < 3; i++) assert_int_equal(draws[i], (position + 1) / 8 * weights[i]);
    }
    ls_order_destroy(order);
}

static void two_sources_of_the_same_size_have_their_own_orders(void **state) {
    (void)state;
    static const uint64_t samples[] = {1000, 1000};
    struct ls_order *order;
    assert_int_equal(ls_order_create(0, samples, NULL, 2, &order, NULL), LS_OK);
    uint64_t sequence[2][1000], same = 0;
    for (uint64_t position = 0; position < 2000; position++) {
        struct ls_draw draw = ls_order_at(order, position);
        sequence[draw.source][draw.draw] = draw.sample;
    }
    for (int i = 0; i < 1000; i++) same += sequence[0][i] == sequence[1][i];
    assert_true(same < 12);
    ls_order_destroy(order);
}

static void impossible_mixtures_are_refused_with_their_code(void **state) {
    (void)state;
    static const uint64_t samples[] = {3, 0}, good[] = {3, 4}, huge[] = {UINT64_MAX, 2}, weights[] = {1, 0};
    struct ls_order *order = NULL;
    struct ls_error error;
    assert_int_equal(ls_order_create(0, samples, NULL, 2, &order, &error), LS_DATA);
    assert_non_null(strstr(error.text, "source 1"));
    assert_int_equal(ls_order_create(0, good, weights, 2, &order, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "weight 0"));
    assert_int_equal(ls_order_create(0, good, huge, 2, &order, &error), LS_USAGE);
    assert_int_equal(ls_order_create(0, good, NULL, 0, &order, &error), LS_USAGE);
    static const uint64_t many[LS_ORDER_SOURCES_MAX + 1] = {1};
    assert_int_equal(ls_order_create(0, many, NULL, LS_ORDER_SOURCES_MAX + 1, &order, &error), LS_USAGE);
    assert_null(order);
    ls_order_destroy(NULL);
}

static void shares_of_ranks_join_and_differ_by_one_at_most(void **state) {
    (void)state;
    for (int world_size = 1; world_size <= 9; world_size++)
        for (int64_t sequences = 0; sequences < 40; sequences++) {
            int64_t next = 0;
            for (int rank = 0; rank < world_size; rank++) {
                int64_t first, count;
                ls_rank_range(sequences, rank, world_size, &first, &count);
                assert_int_equal(first, next);
                for (int64_t i = first; i < first + count; i++)
                    assert_int_equal(ls_rank_of(sequences, world_size, i), rank);
                assert_true(count >= sequences / world_size && count <= (sequences + world_size - 1) / world_size);
                next = first + count;
            }
            assert_int_equal(next, sequences);
        }
    int64_t first, count;
    ls_rank_range(INT64_MAX, 1023, 1024, &first, &count);
    assert_int_equal(first + count, INT64_MAX);
    assert_int_equal(count, INT64_MAX / 1024 + 1);
    assert_int_equal(ls_rank_of(INT64_MAX, 1024, first - 1), 1022);
    assert_int_equal(ls_rank_of(INT64_MAX, 1024, first), 1023);
    assert_int_equal(ls_rank_of(INT64_MAX, 1024, INT64_MAX - 1), 1023);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(permute_gives_the_values_of_an_independent_implementation),
        cmocka_unit_test(draws_are_those_of_an_independent_implementation),
        cmocka_unit_test(permute_hits_every_number_below_n_once),
        cmocka_unit_test(permute_of_large_ranges_stays_inside_and_never_repeats),
        cmocka_unit_test(epochs_keys_and_neighbours_look_unrelated),
        cmocka_unit_test(small_epochs_come_in_every_order),
        cmocka_unit_test(without_weights_every_epoch_has_every_sample_once),
        cmocka_unit_test(weights_give_exact_shares_at_every_round_of_the_mixture),
        cmocka_unit_test(two_sources_of_the_same_size_have_their_own_orders),
        cmocka_unit_test(impossible_mixtures_are_refused_with_their_code),
        cmocka_unit_test(shares_of_ranks_join_and_differ_by_one_at_most),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
