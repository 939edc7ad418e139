/* A loss far above the median of those before it is a spike; a slow rise, or the beginning, is none. */
#include "worker/optim/spike.h"

#include "support.h"

static void nothing_is_a_spike_before_enough_is_known(void **state) {
    (void)state;
    struct ls_spike spike = {0};
    for (int i = 0; i < LS_SPIKE_LEAST - 1; i++) ls_spike_add(&spike, 2.0);
    assert_false(ls_spike_is(&spike, 2, 1000));
    assert_true(ls_spike_median(&spike) == 0);
    ls_spike_add(&spike, 2.0);
    assert_true(ls_spike_is(&spike, 2, 4.001));
    assert_false(ls_spike_is(&spike, 2, 4.0));
    assert_false(ls_spike_is(&spike, 0, 1e300));
}

static void the_median_is_that_of_the_newest(void **state) {
    (void)state;
    struct ls_spike spike = {0};
    for (int i = 0; i < 1000; i++) ls_spike_add(&spike, 100.0);
    for (int i = 0; i < LS_SPIKE_WINDOW / 2; i++) ls_spike_add(&spike, 1.0);
    assert_true(ls_spike_median(&spike) == 50.5); /* half of the window is 1, half 100 */
    ls_spike_add(&spike, 1.0);
    assert_true(ls_spike_median(&spike) == 1.0);
}

static void an_outlier_does_not_move_it(void **state) {
    (void)state;
    struct ls_spike spike = {0};
    for (int i = 1; i <= 17; i++) ls_spike_add(&spike, i == 9 ? 1e9 : (double)i);
    assert_true(ls_spike_median(&spike) == 10.0); /* of 1..8, 10..17 and the outlier: the ninth of seventeen */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_a_spike_before_enough_is_known),
        cmocka_unit_test(the_median_is_that_of_the_newest),
        cmocka_unit_test(an_outlier_does_not_move_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
