/* Stragglers: who is named, when, and who is not. */
#include "coordinator/straggler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

static struct ls_stragglers *create(int64_t ranks) {
    struct ls_stragglers *stragglers;
    assert_int_equal(ls_stragglers_create(ranks, &stragglers, NULL), LS_OK);
    return stragglers;
}

static void one_slow_rank_is_named_once_and_cleared_once(void **unused) {
    (void)unused;
    struct ls_stragglers *stragglers = create(4);
    struct ls_straggler change;
    int named = 0, cleared = 0;
    for (int step = 1; step <= 300; step++) {
        const bool slow = step <= 100;
        ls_stragglers_step(stragglers, slow ? 2 : step % 4, slow ? 0.1 : 0.004, 1.0);
        while (ls_stragglers_next(stragglers, &change)) {
            assert_int_equal(change.rank, 2);
            if (change.named) {
                named++;
                assert_int_equal(step, LS_STRAGGLER_WARM_UP + LS_STRAGGLER_STEPS);
                assert_float_equal(change.percent, 10, 1e-9); /* of what fades alike on both sides */
                assert_in_range(change.steps, 15, 32);
            } else {
                cleared++;
                /* 10 % fade below 3 % after 32 ln(10 / 3) = 38.5 steps. */
                assert_in_range(step, 136, 142);
                assert_true(change.percent < LS_STRAGGLER_CLEARED);
            }
        }
    }
    assert_int_equal(named, 1);
    assert_int_equal(cleared, 1);
    ls_stragglers_destroy(stragglers);
}

/* Short steps are looked back at for as long as LS_STRAGGLER_SECONDS: a burst of half a second is none. */
static void a_burst_is_no_straggler(void **unused) {
    (void)unused;
    struct ls_stragglers *stragglers = create(3);
    struct ls_straggler change;
    for (int step = 1; step <= 4000; step++) {
        const bool burst = step % 2000 > 1950; /* 50 steps of 10 ms */
        ls_stragglers_step(stragglers, burst ? 1 : step % 3, burst ? 0.008 : 0.0005, 0.01);
        assert_false(ls_stragglers_next(stragglers, &change));
    }
    ls_stragglers_destroy(stragglers);
}

/* Each step somebody is last, by up to 40 %: that is noise, not a straggler. */
static void jitter_names_nobody(void **unused) {
    (void)unused;
    for (int64_t ranks = 1; ranks <= 16; ranks *= 2) {
        struct ls_stragglers *stragglers = create(ranks);
        struct ls_straggler change;
        for (int step = 1; step <= 400; step++) {
            ls_stragglers_step(stragglers, ranks > 1 ? step % ranks : -1, 0.1 + 0.3 * (step / ranks % 2), 1.0);
            assert_false(ls_stragglers_next(stragglers, &change));
        }
        ls_stragglers_destroy(stragglers);
    }
}

/* By chance: heavy noise on two ranks, each last half of the time, with a bias of a tenth of the steps. */
static void noise_names_nobody(void **unused) {
    (void)unused;
    struct ls_stragglers *stragglers = create(2);
    struct ls_straggler change;
    uint32_t random = 1;
    for (int step = 1; step <= 3000; step++) {
        random = random * 1664525 + 1013904223;
        const double wait = 0.5 * (double)(random >> 16 & 0xff) / 256;
        ls_stragglers_step(stragglers, (random >> 24) < 140, wait, 1.0);
        assert_false(ls_stragglers_next(stragglers, &change));
    }
    ls_stragglers_destroy(stragglers);
}

static void a_little_is_borne(void **unused) {
    (void)unused;
    struct ls_stragglers *stragglers = create(3);
    struct ls_straggler change;
    for (int step = 1; step <= 100; step++) {
        ls_stragglers_step(stragglers, 1, 0.049, 1.0);
        assert_false(ls_stragglers_next(stragglers, &change));
    }
    for (int step = 1; step <= 100; step++) ls_stragglers_step(stragglers, 1, 0.052, 1.0);
    assert_true(ls_stragglers_next(stragglers, &change));
    assert_int_equal(change.rank, 1);
    assert_false(ls_stragglers_next(stragglers, &change));
    ls_stragglers_destroy(stragglers);
}

static void two_slow_ranks_of_eight_are_both_named(void **unused) {
    (void)unused;
    struct ls_stragglers *stragglers = create(8);
    struct ls_straggler change;
    bool named[8] = {false};
    for (int step = 1; step <= 100; step++) {
        ls_stragglers_step(stragglers, step % 2 ? 3 : 6, 0.2, 1.0);
        while (ls_stragglers_next(stragglers, &change)) named[change.rank] = change.named;
    }
    for (int rank = 0; rank < 8; rank++) assert_int_equal(named[rank], rank == 3 || rank == 6);
    ls_stragglers_destroy(stragglers);
}

static void the_first_steps_do_not_count(void **unused) {
    (void)unused;
    struct ls_stragglers *stragglers = create(2);
    struct ls_straggler change;
    for (int step = 1; step <= LS_STRAGGLER_WARM_UP; step++) ls_stragglers_step(stragglers, 1, 100, 200);
    for (int step = 1; step <= LS_STRAGGLER_STEPS; step++) ls_stragglers_step(stragglers, step % 2, 0.01, 1.0);
    assert_false(ls_stragglers_next(stragglers, &change));
    ls_stragglers_step(stragglers, 7, 1, 1); /* a rank that there is not */
    assert_false(ls_stragglers_next(stragglers, &change));
    ls_stragglers_destroy(stragglers);
    ls_stragglers_destroy(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_slow_rank_is_named_once_and_cleared_once),
        cmocka_unit_test(a_burst_is_no_straggler),
        cmocka_unit_test(jitter_names_nobody),
        cmocka_unit_test(noise_names_nobody),
        cmocka_unit_test(a_little_is_borne),
        cmocka_unit_test(two_slow_ranks_of_eight_are_both_named),
        cmocka_unit_test(the_first_steps_do_not_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
