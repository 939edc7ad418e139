/* Learning rates against numbers worked out by hand from the formulas in schedule.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker/optim/schedule.h"

static struct ls_config schedule(enum ls_schedule_type type, int64_t warmup_steps, double min_lr_ratio) {
    struct ls_config config = {0};
    config.optimizer.lr = 8;
    config.lr_schedule.type = type;
    config.lr_schedule.warmup_steps = warmup_steps;
    config.lr_schedule.min_lr_ratio = min_lr_ratio;
    config.lr_schedule.decay_ratio = 0.2;
    return config;
}

static void expect(const struct ls_config *config, int64_t total_steps, int64_t step, double rate) {
    double found = ls_schedule_learning_rate(config, step, total_steps);
    if (!(found >= rate - 1e-12 && found <= rate + 1e-12)) {
        fail_msg("step %lld of %lld: %.15g instead of %.15g", (long long)step, (long long)total_steps, found, rate);
    }
}

static void warm_up_rises_evenly_and_ends_at_the_full_rate(void **state) {
    (void)state;
    for (int type = LS_COSINE; type <= LS_WSD; type++) {
        struct ls_config config = schedule((enum ls_schedule_type)type, 4, 0.1);
        expect(&config, 100, 1, 2);
        expect(&config, 100, 2, 4);
        expect(&config, 100, 4, 8);
        expect(&config, 100, 5, 8);
    }
}

static void without_warm_up_the_first_step_has_the_full_rate(void **state) {
    (void)state;
    for (int type = LS_COSINE; type <= LS_WSD; type++) {
        struct ls_config config = schedule((enum ls_schedule_type)type, 0, 0.1);
        expect(&config, 100, 1, 8);
    }
}

static void cosine_falls_by_half_a_wave(void **state) {
    (void)state;
    struct ls_config config = schedule(LS_COSINE, 4, 0.25);
    /* p = 1/3, 1/2, 2/3 of 12 steps: cosines 1/2, 0, -1/2; 8 (0.25 + 0.75 (1 + cos) / 2) */
    expect(&config, 16, 9, 6.5);
    expect(&config, 16, 11, 5);
    expect(&config, 16, 13, 3.5);
    expect(&config, 16, 17, 2);
}

static void linear_falls_evenly(void **state) {
    (void)state;
    struct ls_config config = schedule(LS_LINEAR, 0, 0);
    expect(&config, 8, 2, 7);
    expect(&config, 8, 8, 1);
    config = schedule(LS_LINEAR, 2, 0.5);
    expect(&config, 10, 3, 8);
    expect(&config, 10, 7, 6);
    expect(&config, 10, 10, 4.5);
}

static void constant_stays(void **state) {
    (void)state;
    struct ls_config config = schedule(LS_CONSTANT, 3, 0.1);
    expect(&config, 10, 4, 8);
    expect(&config, 10, 10, 8);
    expect(&config, 10, 1000, 8);
}

static void wsd_stays_and_then_falls_with_the_square_root(void **state) {
    (void)state;
    struct ls_config config = schedule(LS_WSD, 10, 0); /* the last 20 of 100 steps */
    expect(&config, 100, 11, 8);
    expect(&config, 100, 81, 8);
    expect(&config, 100, 86, 4);  /* p = 5/20: 1 - 1/2 */
    expect(&config, 100, 101, 0); /* p = 1 */
    config.lr_schedule.min_lr_ratio = 0.5;
    expect(&config, 100, 86, 6);
    config.lr_schedule.decay_ratio = 1; /* all that the warm-up leaves: p = 45/90 at step 56 */
    config.lr_schedule.min_lr_ratio = 0;
    expect(&config, 100, 56, 8 * (1 - 0.70710678118654752440));
    config.lr_schedule.decay_ratio = 0;
    expect(&config, 100, 100, 8);
}

/* 0.07 and 0.14 are not exact in double, and neither are their products with 100: 7.000000000000001 of 100 are 7. */
static void a_part_of_the_steps_that_is_whole_is_not_rounded_up(void **state) {
    (void)state;
    struct ls_config config = schedule(LS_WSD, 0, 0);
    config.lr_schedule.decay_ratio = 0.07;
    expect(&config, 100, 94, 8);
    expect(&config, 100, 101, 0);
    expect(&config, 100, 95, 8 * (1 - 0.37796447300922722721)); /* p = 1/7 */
    config.lr_schedule.decay_ratio = 0.14;
    expect(&config, 100, 87, 8);
    config.lr_schedule.decay_ratio = 0.071; /* 7.1 of 100 are 8 */
    expect(&config, 100, 94, 8 * (1 - 0.35355339059327376220));
}

static void steps_beyond_the_last_keep_the_least_rate(void **state) {
    (void)state;
    for (int type = LS_COSINE; type <= LS_LINEAR; type++) {
        struct ls_config config = schedule((enum ls_schedule_type)type, 2, 0.125);
        expect(&config, 10, 11, 1);
        expect(&config, 10, 500, 1);
    }
}

static void a_run_shorter_than_its_warm_up_only_warms_up(void **state) {
    (void)state;
    for (int type = LS_COSINE; type <= LS_WSD; type++) {
        struct ls_config config = schedule((enum ls_schedule_type)type, 16, 0.1);
        expect(&config, 4, 4, 2);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(warm_up_rises_evenly_and_ends_at_the_full_rate),
        cmocka_unit_test(without_warm_up_the_first_step_has_the_full_rate),
        cmocka_unit_test(cosine_falls_by_half_a_wave),
        cmocka_unit_test(linear_falls_evenly),
        cmocka_unit_test(constant_stays),
        cmocka_unit_test(wsd_stays_and_then_falls_with_the_square_root),
        cmocka_unit_test(a_part_of_the_steps_that_is_whole_is_not_rounded_up),
        cmocka_unit_test(steps_beyond_the_last_keep_the_least_rate),
        cmocka_unit_test(a_run_shorter_than_its_warm_up_only_warms_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
