/* The bill: sums, repeated steps, and which advice is given when. */
#include "coordinator/bill.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

static void assert_near(double value, double expected) {
    if (!(fabs(value - expected) < 1e-9)) fail_msg("%.17g is not %.17g", value, expected);
}

/* A run of 100 seconds: `count` steps of one second each, with these parts. */
static struct ls_bill *run(int64_t count, const struct ls_step_report *step) {
    static struct ls_bill bill;
    memset(&bill, 0, sizeof bill);
    for (int64_t i = 1; i <= count; i++) {
        struct ls_step_report report = *step;
        report.step = i;
        ls_bill_step(&bill, &report);
    }
    return &bill;
}

static struct ls_config config;
static int set_config(void **unused) {
    (void)unused;
    memset(&config, 0, sizeof config);
    config.train.global_batch_size = 64;
    config.train.micro_batch_size = 4;
    return 0;
}

static int advise(const struct ls_bill *bill, int64_t ranks, double save_interval, double best,
                  struct ls_bill_advice advice[LS_BILL_ADVICE_MAX]) {
    const struct ls_bill_facts facts = {
        .config = &config, .ranks = ranks, .save_interval = save_interval, .best_interval = best};
    return ls_bill_advise(bill, 100, &facts, advice);
}

static void rows_add_up_to_the_wall_time(void **unused) {
    (void)unused;
    const struct ls_step_report step = {.step_seconds = 1,
                                        .compute_seconds = 0.5,
                                        .comm_exposed_seconds = 0.2,
                                        .data_wait_seconds = 0.1,
                                        .wait_seconds = 0.15,
                                        .wait_for_rank = 3,
                                        .checkpoint_seconds = 0.05};
    struct ls_bill *bill = run(80, &step);
    double rows[LS_BILL_ROWS], sum = 0;
    /* Ten steps run again. */
    for (int64_t i = 71; i <= 80; i++) {
        struct ls_step_report report = step;
        report.step = i;
        ls_bill_step(bill, &report);
    }
    ls_bill_rows(bill, 100, rows);
    assert_near(rows[LS_BILL_COMPUTE], 40);
    assert_near(rows[LS_BILL_COMMUNICATION], 16);
    assert_near(rows[LS_BILL_DATA], 8);
    assert_near(rows[LS_BILL_RANKS], 12);
    assert_near(rows[LS_BILL_CHECKPOINTS], 4);
    assert_near(rows[LS_BILL_REPEATED], 10);
    assert_near(rows[LS_BILL_REST], 10);
    for (int row = 0; row < LS_BILL_ROWS; row++) sum += rows[row];
    assert_near(sum, 100);
    assert_int_equal(bill->steps, 90);
    assert_int_equal(bill->repeated_steps, 10);
    ls_bill_rows(bill, 50, rows); /* a clock that disagrees makes nothing negative */
    assert_near(rows[LS_BILL_REST], 0);
}

static void the_three_best_changes_are_told_best_first(void **unused) {
    (void)unused;
    struct ls_bill_advice advice[LS_BILL_ADVICE_MAX];
    const struct ls_step_report step = {.step_seconds = 1,
                                        .compute_seconds = 0.4,
                                        .comm_exposed_seconds = 0.3,
                                        .data_wait_seconds = 0.1,
                                        .wait_seconds = 0.12,
                                        .wait_for_rank = 5,
                                        .checkpoint_seconds = 0.08};
    struct ls_bill *bill = run(100, &step);
    assert_int_equal(advise(bill, 8, 10, 100, advice), 3);
    assert_near(advice[0].seconds, 15); /* stage 0: half of 30 */
    assert_non_null(strstr(advice[0].text, "zero.gradient_dtype=bf16"));
    assert_near(advice[1].seconds, 12);
    assert_non_null(strstr(advice[1].text, "rank 5: the others waited 12.0 s"));
    assert_near(advice[2].seconds, 10);
    assert_non_null(strstr(advice[2].text, "data:"));
}

static void little_is_not_worth_advice(void **unused) {
    (void)unused;
    struct ls_bill_advice advice[LS_BILL_ADVICE_MAX];
    const struct ls_step_report step = {.step_seconds = 1,
                                        .compute_seconds = 0.95,
                                        .comm_exposed_seconds = 0.02,
                                        .data_wait_seconds = 0.015,
                                        .wait_seconds = 0.01,
                                        .wait_for_rank = 1,
                                        .checkpoint_seconds = 0.005};
    assert_int_equal(advise(run(100, &step), 4, 10, 1000, advice), 0);
    static struct ls_bill nothing;
    const struct ls_bill_facts facts = {.config = &config, .ranks = 1};
    assert_int_equal(ls_bill_advise(&nothing, 0, &facts, advice), 0);
}

static void communication_advice_follows_the_configuration(void **unused) {
    (void)unused;
    struct ls_bill_advice advice[LS_BILL_ADVICE_MAX];
    const struct ls_step_report step = {
        .step_seconds = 1, .compute_seconds = 0.4, .comm_exposed_seconds = 0.6, .wait_for_rank = -1};
    struct ls_bill *bill = run(100, &step);
    static const double parts[] = {30, 15, 15, 10};
    for (int stage = 0; stage < 4; stage++) {
        config.zero.stage = stage;
        assert_int_equal(advise(bill, 4, 0, 0, advice), 1);
        assert_near(advice[0].seconds, parts[stage]);
    }
    config.zero.stage = 1;
    config.zero.accumulate = LS_ACCUMULATE_SHARDED; /* 64 sequences on 4 ranks: four micro-batches of four */
    assert_int_equal(advise(bill, 4, 0, 0, advice), 1);
    assert_near(advice[0].seconds, 45);
    assert_non_null(strstr(advice[0].text, "zero.accumulate=local"));
    assert_non_null(strstr(advice[0].text, "4 micro-batches"));
    config.zero.stage = 2; /* nothing local there */
    config.zero.gradient_dtype = LS_GRADIENT_BF16;
    assert_int_equal(advise(bill, 4, 0, 0, advice), 1);
    assert_non_null(strstr(advice[0].text, "train.global_batch_size"));
    config.zero.gradient_dtype = LS_GRADIENT_FP32;
    config.train.reduction = LS_REDUCTION_FIXED; /* bf16 would be refused */
    assert_int_equal(advise(bill, 4, 0, 0, advice), 1);
    assert_non_null(strstr(advice[0].text, "train.global_batch_size"));
    assert_int_equal(advise(bill, 1, 0, 0, advice), 0);
}

static void saves_too_often_and_too_rarely(void **unused) {
    (void)unused;
    struct ls_bill_advice advice[LS_BILL_ADVICE_MAX];
    const struct ls_step_report step = {
        .step_seconds = 1, .compute_seconds = 0.9, .checkpoint_seconds = 0.1, .wait_for_rank = -1};
    struct ls_bill *bill = run(100, &step);
    assert_int_equal(advise(bill, 1, 10, 40, advice), 1);
    assert_near(advice[0].seconds, 7.5);
    assert_non_null(strstr(advice[0].text, "every 10 s, every 40 s would be best"));
    assert_int_equal(advise(bill, 1, 40, 10, advice), 0); /* nothing was lost */
    for (int i = 0; i < 20; i++) {
        struct ls_step_report report = step;
        report.step = 50;
        ls_bill_step(bill, &report);
    }
    assert_int_equal(advise(bill, 1, 40, 10, advice), 1);
    assert_near(advice[0].seconds, 15);
    assert_non_null(strstr(advice[0].text, "steps were lost"));
    assert_int_equal(advise(bill, 1, 0, 10, advice), 0); /* nothing was saved */
}

static void recomputation_is_named_where_there_is_some(void **unused) {
    (void)unused;
    struct ls_bill_advice advice[LS_BILL_ADVICE_MAX];
    const struct ls_step_report step = {.step_seconds = 1, .compute_seconds = 1, .wait_for_rank = -1};
    struct ls_bill *bill = run(100, &step);
    assert_int_equal(advise(bill, 1, 0, 0, advice), 0);
    config.activation_checkpointing.mode = LS_CHECKPOINTING_FULL;
    assert_int_equal(advise(bill, 1, 0, 0, advice), 1);
    assert_near(advice[0].seconds, 25);
    assert_non_null(strstr(advice[0].text, "activation_checkpointing.mode"));
}

static void every_row_has_names(void **unused) {
    (void)unused;
    for (int row = 0; row < LS_BILL_ROWS; row++) {
        assert_true(strlen(ls_bill_name((enum ls_bill_row)row)) > 2);
        assert_non_null(strstr(ls_bill_key((enum ls_bill_row)row), "_seconds"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(rows_add_up_to_the_wall_time, set_config),
        cmocka_unit_test_setup(the_three_best_changes_are_told_best_first, set_config),
        cmocka_unit_test_setup(little_is_not_worth_advice, set_config),
        cmocka_unit_test_setup(communication_advice_follows_the_configuration, set_config),
        cmocka_unit_test_setup(saves_too_often_and_too_rarely, set_config),
        cmocka_unit_test_setup(recomputation_is_named_where_there_is_some, set_config),
        cmocka_unit_test(every_row_has_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
