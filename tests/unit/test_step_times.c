/* Where the time of a step went. */
#include "worker/step_times.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

static void assert_near(double value, double expected) {
    if (fabs(value - expected) > 1e-12) fail_msg("%.17g is not %.17g", value, expected);
}

static void assert_sums_up(const struct ls_step_split *split) {
    assert_near(split->compute + split->data_wait + split->checkpoint + split->exposed + split->wait, split->seconds);
}

static void one_rank_waits_for_nobody(void **unused) {
    (void)unused;
    int order[1];
    struct ls_step_split split;
    const struct ls_step_times times = {
        .seconds = 1, .compute = 0.7, .exposed = 0.1, .data_wait = 0.2, .memory_peak_bytes = 9};
    ls_step_times_split(&times, 1, order, &split);
    assert_near(split.compute, 0.7);
    assert_near(split.data_wait, 0.2);
    assert_near(split.exposed, 0.1);
    assert_near(split.wait, 0);
    assert_int_equal(split.wait_for_rank, -1);
    assert_int_equal(split.memory_peak_bytes, 9);
    assert_sums_up(&split);
}

static void the_others_wait_for_the_slowest(void **unused) {
    (void)unused;
    int order[4];
    struct ls_step_split split;
    const struct ls_step_times times[] = {
        {.seconds = 2.0, .compute = 1.0, .exposed = 1.0, .memory_peak_bytes = 5},
        {.seconds = 2.1, .compute = 1.7, .exposed = 0.2, .data_wait = 0.2, .memory_peak_bytes = 7}, /* 1.9 of work */
        {.seconds = 2.0, .compute = 1.05, .exposed = 0.8, .data_wait = 0.1, .checkpoint = 0.05},    /* 1.2 */
        {.seconds = 2.0, .compute = 1.25, .exposed = 0.75},                                         /* 1.25 */
    };
    ls_step_times_split(times, 4, order, &split);
    assert_int_equal(split.wait_for_rank, 1);
    assert_near(split.checkpoint, 0.05);
    assert_near(split.compute, 1.05); /* rank 2: the middle one of 1.0, 1.2, 1.25 */
    assert_near(split.data_wait, 0.1);
    assert_near(split.wait, 0.7);
    assert_near(split.exposed, 0.2); /* what is left when the slowest has come: the wire */
    assert_near(split.seconds, 2.1);
    assert_int_equal(split.memory_peak_bytes, 7);
    assert_sums_up(&split);
}

static void of_two_the_other_one_is_typical(void **unused) {
    (void)unused;
    int order[2];
    struct ls_step_split split;
    const struct ls_step_times times[] = {{.seconds = 1, .compute = 0.9, .exposed = 0.1},
                                          {.seconds = 1, .compute = 0.6, .exposed = 0.4}};
    ls_step_times_split(times, 2, order, &split);
    assert_int_equal(split.wait_for_rank, 0);
    assert_near(split.compute, 0.6);
    assert_near(split.wait, 0.3);
    assert_near(split.exposed, 0.1);
    assert_sums_up(&split);
}

/* Peaks add up, power is a GPU's on average, the clock the slowest one's; one GPU of which nothing is known is enough.
 */
static void gpus_are_taken_together(void **unused) {
    (void)unused;
    int order[2];
    struct ls_step_split split;
    struct ls_step_times times[] = {{.seconds = 1, .peak_flops = 3, .power_watts = 500, .clock_mhz = 1980},
                                    {.seconds = 1, .peak_flops = 1, .power_watts = 700, .clock_mhz = 1700}};
    ls_step_times_split(times, 2, order, &split);
    assert_near(split.peak_flops, 4);
    assert_near(split.power_watts, 600);
    assert_int_equal(split.clock_mhz, 1700);
    times[1].peak_flops = times[1].power_watts = 0;
    ls_step_times_split(times, 2, order, &split);
    assert_near(split.peak_flops, 0);
    assert_near(split.power_watts, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_rank_waits_for_nobody),
        cmocka_unit_test(the_others_wait_for_the_slowest),
        cmocka_unit_test(of_two_the_other_one_is_typical),
        cmocka_unit_test(gpus_are_taken_together),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
