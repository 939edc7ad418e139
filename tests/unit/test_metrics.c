/* What the user reads: lines of metrics.jsonl, the step's line, durations, and the summary's numbers. */
#include "common/files.h"
#include "coordinator/console.h"
#include "coordinator/metrics.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/resource.h>
#include <time.h>

#include <cmocka.h>

static struct ls_journal_entry step_entry(int64_t step) {
    struct ls_journal_entry entry = {.record = {.kind = LS_RECORD_STEP, .attempt = 2, .generation = 1}};
    entry.record.step = (struct ls_core_step){.step = step,
                                              .position = (step - 1) * 30,
                                              .sequences = 30,
                                              .digest = {0xabc, 0x1},
                                              .samples = 1000 + step * 30};
    entry.report = (struct ls_step_report){.step = step,
                                           .epoch = 0.5,
                                           .loss = (double)0.1f,
                                           .grad_norm = INFINITY,
                                           .lr = 6e-4,
                                           .step_seconds = 0.25,
                                           .comm_exposed_seconds = 0.025,
                                           .data_wait_seconds = 0.0025,
                                           .wait_seconds = 0.125,
                                           .wait_for_rank = 1,
                                           .wall_seconds = 0.3125,
                                           .tokens_per_second = 1234567,
                                           .memory_peak_bytes = 1 << 20};
    return entry;
}

static void test_a_step_line_is_complete_and_reproduces_the_float(void **state) {
    (void)state;
    char folder[] = "/tmp/lockstep-metrics-XXXXXX", path[96], command[96], *text;
    size_t count;
    struct ls_metrics *metrics;
    /* Before the attempt 1030 samples of 32 tokens, since then 60 of 64. */
    struct ls_run_facts facts = {
        .ranks = 2, .total_steps = 100, .sequence_length = 64, .start_samples = 1030, .start_tokens = 1030 * 32};
    assert_non_null(mkdtemp(folder));
    snprintf(facts.path, sizeof facts.path, "%s", folder);
    assert_int_equal(ls_metrics_open(&facts, &metrics, NULL), LS_OK);
    struct ls_journal_entry entry = step_entry(3);
    ls_metrics_write(metrics, &entry);
    entry = step_entry(4);
    entry.report.mfu = 0.5;
    entry.report.gpu_power_watts = 650;
    entry.report.gpu_clock_mhz = 1755;
    ls_metrics_write(metrics, &entry);
    ls_metrics_close(metrics);
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    assert_int_equal(ls_file_read(path, 1 << 16, &text, &count, LS_ERROR, NULL), LS_OK);
    assert_non_null(strstr(text, "\"mfu\":0.5,"));
    assert_non_null(strstr(text, ",\"gpu_power_watts\":650.0,\"gpu_clock_mhz\":1755,"));
    *strchr(text, '\n') = 0;
    assert_string_equal(
        text, "{\"kind\":\"step\",\"step\":3,\"attempt\":2,\"epoch\":0.5,\"samples\":1090,\"tokens\":36800,"
              "\"loss\":0.100000001,\"grad_norm\":null,\"lr\":0.0006,\"step_seconds\":0.25,"
              "\"tokens_per_second\":1234567.0,\"mfu\":null,\"compute_seconds\":0.0,\"comm_exposed_seconds\":0.025,"
              "\"data_wait_seconds\":0.0025,\"wait_seconds\":0.125,\"wait_for_rank\":1,\"checkpoint_seconds\":0.0,"
              "\"wall_seconds\":0.3125,\"memory_peak_bytes\":1048576,"
              "\"samples_digest\":\"00000000000000010000000000000abc\"}");
    assert_true(strtof(strstr(text, "\"loss\":") + 7, NULL) == 0.1f);
    free(text);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

/* What the file holds after it was `before` and opened. */
static void reopen(const char *path, struct ls_run_facts *facts, const char *before, size_t bytes, char **after) {
    size_t count;
    struct ls_metrics *metrics;
    assert_int_equal(ls_file_replace(path, before, bytes, LS_ERROR, NULL), LS_OK);
    assert_int_equal(ls_metrics_open(facts, &metrics, NULL), LS_OK);
    ls_metrics_close(metrics);
    assert_int_equal(ls_file_read(path, 1 << 16, after, &count, LS_ERROR, NULL), LS_OK);
}

static void test_half_a_line_of_a_killed_coordinator_is_cut(void **state) {
    (void)state;
    char folder[] = "/tmp/lockstep-metrics-XXXXXX", path[96], command[96], *text, longest[9000];
    struct ls_run_facts facts = {.ranks = 2, .total_steps = 100, .sequence_length = 64};
    assert_non_null(mkdtemp(folder));
    snprintf(facts.path, sizeof facts.path, "%s", folder);
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    const char *const cases[][2] = {{"", ""}, {"{}\n", "{}\n"}, {"{}\n{\"a\":", "{}\n"}, {"{\"a\":", ""}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        reopen(path, &facts, cases[i][0], strlen(cases[i][0]), &text);
        assert_string_equal(text, cases[i][1]);
        free(text);
    }
    memset(longest, 'x', sizeof longest); /* longer than what is read at a time */
    memcpy(longest, "{}\n", 3);
    reopen(path, &facts, longest, sizeof longest, &text);
    assert_string_equal(text, "{}\n");
    free(text);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

/* Room for 50 bytes of the second line; then there is room again. */
static void test_half_a_line_of_a_full_disk_is_cut(void **state) {
    (void)state;
    char folder[] = "/tmp/lockstep-metrics-XXXXXX", path[96], command[96], *text;
    struct ls_run_facts facts = {.ranks = 2, .total_steps = 100, .sequence_length = 64};
    struct ls_metrics *metrics;
    struct ls_journal_entry entry = step_entry(1);
    struct rlimit before, small;
    size_t count;
    assert_non_null(mkdtemp(folder));
    snprintf(facts.path, sizeof facts.path, "%s", folder);
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    assert_int_equal(ls_metrics_open(&facts, &metrics, NULL), LS_OK);
    ls_metrics_write(metrics, &entry);
    assert_int_equal(ls_file_read(path, 1 << 16, &text, &count, LS_ERROR, NULL), LS_OK);
    free(text);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = count + 50;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    entry = step_entry(2);
    ls_metrics_write(metrics, &entry);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    entry = step_entry(3);
    ls_metrics_write(metrics, &entry);
    ls_metrics_close(metrics);
    assert_int_equal(ls_file_read(path, 1 << 16, &text, &count, LS_ERROR, NULL), LS_OK);
    char *second = strchr(text, '\n') + 1, *third = strchr(second, '\n') + 1;
    assert_int_equal(strncmp(second, "{\"kind\":\"step\",\"step\":3,", 24), 0);
    assert_int_equal(*third, 0);
    assert_null(strstr(text, "\"step\":2,"));
    free(text);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

/* What a launcher said may be in any encoding, and a long text may be cut within a character. */
static void test_a_fault_is_told_with_its_text_whatever_bytes_it_has(void **state) {
    (void)state;
    char folder[] = "/tmp/lockstep-metrics-XXXXXX", path[96], command[96], *text;
    struct ls_run_facts facts = {.ranks = 2, .total_steps = 100, .sequence_length = 64};
    struct ls_metrics *metrics;
    struct ls_console *console;
    size_t count;
    assert_non_null(mkdtemp(folder));
    snprintf(facts.path, sizeof facts.path, "%s", folder);
    assert_int_equal(ls_metrics_open(&facts, &metrics, NULL), LS_OK);
    assert_int_equal(ls_console_open(&facts, &console, NULL), LS_OK);
    struct ls_journal_entry entry = {.record = {.kind = LS_RECORD_FAULT, .attempt = 2}};
    strcpy(entry.record.end.text, "the launcher says first '\033[2Jh\xf4te perdu'");
    ls_metrics_write(metrics, &entry);
    ls_console_show(console, &entry);
    memset(entry.record.end.text, 'x', sizeof entry.record.end.text);
    strcpy(entry.record.end.text + sizeof entry.record.end.text - 3, "\xe2\x82");
    ls_metrics_write(metrics, &entry);
    ls_metrics_close(metrics);
    ls_console_close(console);
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    assert_int_equal(ls_file_read(path, 1 << 16, &text, &count, LS_ERROR, NULL), LS_OK);
    assert_non_null(strstr(text, "\"text\":\"the launcher says first '?[2Jh?te perdu'\""));
    assert_non_null(strstr(text, "xxx\","));
    free(text);
    snprintf(path, sizeof path, "%s/console.log", folder);
    assert_int_equal(ls_file_read(path, 1 << 16, &text, &count, LS_ERROR, NULL), LS_OK);
    assert_string_equal(text, "the launcher says first '?[2Jh?te perdu'\n");
    free(text);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

/* Rates 1 to 105; the first five steps are left out, so 6 to 105: quantiles by hand. */
static void test_the_summary_leaves_the_first_five_steps_out(void **state) {
    (void)state;
    char folder[] = "/tmp/lockstep-metrics-XXXXXX", command[96];
    struct ls_metrics *metrics;
    struct ls_metrics_summary summary;
    struct ls_run_facts facts = {.ranks = 2, .total_steps = 1000, .start_step = 200};
    assert_non_null(mkdtemp(folder));
    snprintf(facts.path, sizeof facts.path, "%s", folder);
    assert_int_equal(ls_metrics_open(&facts, &metrics, NULL), LS_OK);
    for (int64_t i = 1; i <= 105; i++) {
        struct ls_journal_entry entry = step_entry(200 + i);
        entry.report.tokens_per_second = (double)(106 - i) + (i <= 5 ? 1000 : 0);
        entry.report.comm_exposed_seconds = i <= 5 ? 9 : 0.025;
        ls_metrics_write(metrics, &entry);
    }
    ls_metrics_summarise(metrics, &summary);
    assert_int_equal(summary.steps_measured, 100);
    assert_int_equal(summary.last_step, 305);
    /* 1 to 100, sorted: the quantile q lies at 1 + 99 q. */
    assert_true(fabs(summary.tokens_per_second_median - 50.5) < 1e-9);
    assert_true(fabs(summary.tokens_per_second_p10 - 10.9) < 1e-9);
    assert_true(fabs(summary.tokens_per_second_p90 - 90.1) < 1e-9);
    assert_true(fabs(summary.comm_exposed_fraction - 0.1) < 1e-9);
    assert_true(isnan(summary.validation_loss));
    ls_metrics_close(metrics);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

/* Two saves of 4 and 6 s, for which training waited 0.25 s in all, and a fault in 1,000 s before: one every 1,000 s,
 * though 900 of them were under this command, whose coordinator was replaced. */
static void test_the_summary_advises_an_interval(void **state) {
    (void)state;
    char folder[] = "/tmp/lockstep-metrics-XXXXXX", path[96], command[96], *text;
    size_t count;
    struct ls_metrics *metrics;
    struct ls_metrics_summary summary;
    struct ls_run_facts facts = {.ranks = 4, .total_steps = 1000, .earlier_seconds = 1000};
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    facts.started_seconds = (double)now.tv_sec - 900;
    assert_non_null(mkdtemp(folder));
    snprintf(facts.path, sizeof facts.path, "%s", folder);
    assert_int_equal(ls_metrics_open(&facts, &metrics, NULL), LS_OK);
    ls_metrics_summarise(metrics, &summary);
    assert_true(summary.saves == 0 && isnan(summary.interval_advised));
    for (int64_t step = 1; step <= 2; step++) {
        struct ls_journal_entry done = step_entry(step), saved = {.record = {.kind = LS_RECORD_COMMIT, .attempt = 2}};
        done.report.checkpoint_seconds = 0.125;
        saved.record.commit.step = step;
        saved.save_seconds = step == 1 ? 4 : 6;
        saved.save_bytes = 1000 * step;
        ls_metrics_write(metrics, &done);
        ls_metrics_write(metrics, &saved);
    }
    ls_metrics_summarise(metrics, &summary);
    assert_true(summary.saves == 2 && summary.save_blocked_seconds == 0.25 && summary.save_seconds == 5);
    /* No fault was seen: 48,000 hours a rank. sqrt(2 x 0.125 x 43,200,000) = 3286.3 s. */
    assert_int_equal(summary.faults, 0);
    assert_true(summary.failure_seconds == 43200000.0 && fabs(summary.interval_advised - 3286.3) < 0.1);
    struct ls_journal_entry fault = {.record = {.kind = LS_RECORD_FAULT, .attempt = 2}};
    ls_metrics_write(metrics, &fault);
    ls_metrics_summarise(metrics, &summary);
    /* sqrt(2 x 0.125 x 1000) is 15.8 s, less than ten times the writing. */
    assert_int_equal(summary.faults, 1);
    assert_true(summary.failure_seconds >= 1000 && summary.failure_seconds < 1060);
    assert_true(summary.interval_advised == 50);
    ls_metrics_write_summary(metrics, LS_OK);
    ls_metrics_close(metrics);
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    assert_int_equal(ls_file_read(path, 1 << 16, &text, &count, LS_ERROR, NULL), LS_OK);
    assert_non_null(strstr(text, "\"step\":2,\"seconds\":6.0,\"bytes\":2000}"));
    assert_non_null(strstr(text, "\"checkpoints\":2,\"checkpoint_seconds\":0.25,"
                                 "\"checkpoint_interval_advised_seconds\":50.0,"));
    free(text);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

static void test_the_summary_names_the_hosts_and_counts_from_the_start_of_the_command(void **state) {
    (void)state;
    char folder[] = "/tmp/lockstep-metrics-XXXXXX", path[64], line[4096] = "", command[64];
    assert_non_null(mkdtemp(folder));
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const double ago = (double)now.tv_sec / 2; /* the clock may have begun a minute before */
    struct ls_run_facts facts = {.ranks = 5, .total_steps = 10, .started_seconds = (double)now.tv_sec - ago};
    struct ls_metrics *metrics;
    struct ls_metrics_summary summary;
    snprintf(facts.path, sizeof facts.path, "%s", folder);
    assert_int_equal(ls_metrics_open(&facts, &metrics, NULL), LS_OK);
    /* A first attempt on other hosts does not count; ranks of a host need not be neighbours. */
    const char *before[] = {"x", "x"}, *hosts[] = {"b", "a", "b", "c", "b"};
    ls_metrics_place(metrics, before, 2);
    ls_metrics_place(metrics, hosts, 5);
    ls_metrics_summarise(metrics, &summary);
    assert_true(summary.wall_seconds >= ago && summary.wall_seconds < ago + 1000);
    ls_metrics_write_summary(metrics, LS_OK);
    ls_metrics_close(metrics);
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    assert_non_null(fgets(line, sizeof line, file));
    fclose(file);
    assert_non_null(strstr(line, "\"hosts\":[\"a\",\"b\",\"c\"],\"ranks\":5,\"ranks_per_node\":3,"));
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

static void test_the_step_line_of_the_console(void **state) {
    (void)state;
    char text[256];
    struct ls_journal_entry entry = step_entry(7);
    entry.report.grad_norm = 1.25;
    ls_console_format_step(&entry, 500, text, sizeof text);
    assert_string_equal(text, "step   7/500 | loss 0.100000 | norm 1.2500 | lr 6.00e-04 | 250.0 ms | 1,234,567 tok/s | "
                              "comm 10.0 % | data 1.0 %");
    entry.report.tokens_per_second = 1e300; /* what a report may hold */
    ls_console_format_step(&entry, 500, text, sizeof text);
    assert_non_null(strstr(text, "| 1,000,000,000,000,000,000 tok/s |"));
    entry.report.skipped = true;
    ls_console_format_step(&entry, 500, text, sizeof text);
    assert_non_null(strstr(text, "data 1.0 % | update skipped: gradient not finite"));
}

static void test_durations(void **state) {
    (void)state;
    static const struct {
        double seconds;
        const char *text;
    } rows[] = {{0, "0:00"},         {6.6, "0:07"}, {61, "1:01"}, {3599.4, "59:59"}, {3600, "1:00:00"},
                {90061, "25:01:01"}, {-1, "?"},     {NAN, "?"},   {INFINITY, "?"}};
    char text[32];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        ls_console_format_duration(rows[i].seconds, text);
        assert_string_equal(text, rows[i].text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_step_line_is_complete_and_reproduces_the_float),
        cmocka_unit_test(test_half_a_line_of_a_killed_coordinator_is_cut),
        cmocka_unit_test(test_half_a_line_of_a_full_disk_is_cut),
        cmocka_unit_test(test_a_fault_is_told_with_its_text_whatever_bytes_it_has),
        cmocka_unit_test(test_the_summary_leaves_the_first_five_steps_out),
        cmocka_unit_test(test_the_summary_advises_an_interval),
        cmocka_unit_test(test_the_summary_names_the_hosts_and_counts_from_the_start_of_the_command),
        cmocka_unit_test(test_the_step_line_of_the_console),
        cmocka_unit_test(test_durations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
