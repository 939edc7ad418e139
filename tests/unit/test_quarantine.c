/* What is quarantined is passed over, whatever steps and ranges have to do with each other; checked against a list of
 * single sequences. */
#include "common/quarantine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { SEQUENCES = 200 };

static void ranges_that_touch_become_one(void **state) {
    (void)state;
    struct ls_quarantine list = {0};
    assert_true(ls_quarantine_add(&list, 50, 60));
    assert_true(ls_quarantine_add(&list, 10, 20));
    assert_true(ls_quarantine_add(&list, 30, 40));
    assert_int_equal(list.count, 3);
    assert_int_equal(list.ranges[0].from, 10);
    assert_int_equal(list.ranges[2].to, 60);
    assert_true(ls_quarantine_add(&list, 20, 30)); /* closes the gap */
    assert_int_equal(list.count, 2);
    assert_int_equal(list.ranges[0].from, 10);
    assert_int_equal(list.ranges[0].to, 40);
    assert_true(ls_quarantine_add(&list, 0, 100));
    assert_int_equal(list.count, 1);
    assert_int_equal(list.ranges[0].from, 0);
    assert_int_equal(list.ranges[0].to, 100);
    assert_true(ls_quarantine_is_valid(&list));
}

static void what_is_no_range_and_one_too_many_are_refused(void **state) {
    (void)state;
    struct ls_quarantine list = {0};
    assert_false(ls_quarantine_add(&list, 5, 5));
    assert_false(ls_quarantine_add(&list, -1, 5));
    for (int64_t i = 0; i < LS_QUARANTINE_RANGES_MAX; i++) assert_true(ls_quarantine_add(&list, 10 * i, 10 * i + 3));
    struct ls_quarantine before = list;
    assert_false(ls_quarantine_add(&list, 5, 8));
    assert_memory_equal(&list, &before, sizeof list);
    assert_true(ls_quarantine_add(&list, 3, 8)); /* touches one that is there */
    assert_int_equal(list.count, LS_QUARANTINE_RANGES_MAX);
    struct ls_quarantine wrong = {.count = LS_QUARANTINE_RANGES_MAX + 1};
    assert_false(ls_quarantine_is_valid(&wrong));
    wrong = (struct ls_quarantine){.count = 2, .ranges = {{4, 9}, {8, 12}}};
    assert_false(ls_quarantine_is_valid(&wrong));
}

/* A step of 10 from 60 with [60, 70) passed over is that of 70 to 79; the step before ends at 60. */
static void a_step_passes_over_what_begins_where_it_starts(void **state) {
    (void)state;
    struct ls_quarantine list = {0};
    assert_true(ls_quarantine_add(&list, 60, 70));
    assert_int_equal(ls_quarantine_behind(&list, 50, 10), 60);
    assert_int_equal(ls_quarantine_behind(&list, 60, 10), 80);
    assert_int_equal(ls_quarantine_at(&list, 60, 0), 70);
    assert_int_equal(ls_quarantine_at(&list, 60, 9), 79);
    assert_int_equal(ls_quarantine_behind(&list, 55, 10), 75);
    assert_int_equal(ls_quarantine_at(&list, 55, 4), 59);
    assert_int_equal(ls_quarantine_at(&list, 55, 5), 70);
    assert_int_equal(ls_quarantine_behind(&list, 60, 0), 60);
    assert_int_equal(ls_quarantine_within(&list, 50, 65), 5);
    assert_int_equal(ls_quarantine_within(&list, 65, 50), 0);
    assert_true(ls_quarantine_has(&list, 69));
    assert_false(ls_quarantine_has(&list, 70));
}

static void any_list_passes_over_exactly_its_sequences(void **state) {
    (void)state;
    uint64_t random = 12345;
    for (int round = 0; round < 300; round++) {
        struct ls_quarantine list = {0};
        bool out[2 * SEQUENCES] = {false};
        for (int i = 0; i < 1 + round % 9; i++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            int64_t from = (int64_t)(random >> 33) % SEQUENCES, to = from + 1 + (int64_t)(random >> 20) % 17;
            assert_true(ls_quarantine_add(&list, from, to));
            memset(out + from, 1, (size_t)(to - from));
        }
        assert_true(ls_quarantine_is_valid(&list));
        int64_t start = round % 23, sum = 0, index = 0;
        for (int64_t position = start; position < SEQUENCES; position++) {
            assert_int_equal(ls_quarantine_has(&list, position), out[position]);
            assert_int_equal(ls_quarantine_within(&list, start, position), sum);
            sum += out[position];
            if (out[position]) continue;
            assert_int_equal(ls_quarantine_at(&list, start, index), position);
            index++;
            assert_int_equal(ls_quarantine_behind(&list, start, index), position + 1);
            /* In two steps or in one: the same. */
            int64_t between = ls_quarantine_behind(&list, start, index / 2);
            assert_int_equal(ls_quarantine_behind(&list, between, index - index / 2), position + 1);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges_that_touch_become_one),
        cmocka_unit_test(what_is_no_range_and_one_too_many_are_refused),
        cmocka_unit_test(a_step_passes_over_what_begins_where_it_starts),
        cmocka_unit_test(any_list_passes_over_exactly_its_sequences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
