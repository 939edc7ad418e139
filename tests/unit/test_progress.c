/* The progress file. */
#define _GNU_SOURCE
#include "common/progress.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

static char run_id[17], path[64];

static int make_name(void **unused) {
    (void)unused;
    snprintf(run_id, sizeof run_id, "%016lx", (unsigned long)getpid());
    snprintf(path, sizeof path, "/dev/shm/lockstep-%s-a3", run_id);
    ls_progress_remove(run_id, 3);
    return 0;
}

static int remove_file(void **unused) {
    (void)unused;
    ls_progress_remove(run_id, 3);
    return 0;
}

static void a_record_stays_readable_after_its_process_died(void **unused) {
    (void)unused;
    struct ls_progress *progress;
    assert_int_equal(ls_progress_open_existing(run_id, 3, &progress, NULL), LS_ERROR);
    pid_t child = fork();
    if (child == 0) {
        if (ls_progress_open(run_id, 3, 2, &progress, NULL)) _exit(1);
        struct ls_progress_record *record = ls_progress_record(progress, 1);
        ls_progress_enter(record);
        record->world_rank = 5;
        ls_progress_mark(record, LS_PHASE_BACKWARD, 41, 2, 7);
        _exit(ls_progress_alive(record) ? 0 : 2);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(ls_progress_open_existing(run_id, 3, &progress, NULL), LS_OK);
    assert_int_equal(ls_progress_ranks(progress), 2);
    const struct ls_progress_record *record = ls_progress_record(progress, 1);
    assert_int_equal(record->pid, child);
    assert_int_equal(record->world_rank, 5);
    assert_int_equal(record->phase, LS_PHASE_BACKWARD);
    assert_int_equal(record->step, 41);
    assert_int_equal(record->micro_batch, 2);
    assert_int_equal(record->block, 7);
    assert_int_equal(record->beat, 2);
    assert_true(record->exit_code == UINT64_MAX);
    assert_false(ls_progress_alive(record));
    assert_int_equal(ls_progress_record(progress, 0)->phase, LS_PHASE_ABSENT);
    assert_false(ls_progress_alive(ls_progress_record(progress, 0)));
    ls_progress_close(progress);
}

/* A run whose folder was removed while it ran, and made again, has attempts of the same name. */
static void who_enters_takes_nothing_over_from_who_was_there(void **unused) {
    (void)unused;
    struct ls_progress *progress;
    struct ls_progress_view view;
    assert_int_equal(ls_progress_open(run_id, 3, 1, &progress, NULL), LS_OK);
    struct ls_progress_record *record = ls_progress_record(progress, 0);
    ls_progress_enter(record);
    record->world_rank = 7;
    record->attempt_over = 1;
    record->asked_to_end = 1;
    record->reported_ns = 12;
    record->exit_code = 6;
    ls_progress_end_collective(record, true, 90, ls_progress_begin_collective(record, true, 90, 1));
    ls_progress_begin_collective(record, false, 91, -1);
    ls_progress_enter(record);
    ls_progress_read(record, true, &view);
    assert_true(record->attempt_over == 0 && record->asked_to_end == 0 && record->reported_ns == 0);
    assert_true(view.world_rank == UINT64_MAX && view.exit_code == UINT64_MAX && view.phase == LS_PHASE_START);
    assert_true(view.collective == 0 && view.collective_done == 0);
    assert_true(view.host_collective == 0 && view.host_collective_done == 0);
    assert_int_equal(view.count, 1); /* that it started */
    assert_int_equal(view.pid, getpid());
    ls_progress_close(progress);
}

/* Of such a run with more ranks on this node, or fewer. */
static void a_file_of_another_size_serves(void **unused) {
    (void)unused;
    static const int sizes[] = {300, 2, 8};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct ls_progress *progress, *reader;
        assert_int_equal(ls_progress_open(run_id, 3, sizes[i], &progress, NULL), LS_OK);
        assert_int_equal(ls_progress_open_existing(run_id, 3, &reader, NULL), LS_OK);
        assert_int_equal(ls_progress_ranks(reader), sizes[i]);
        struct ls_progress_record *last = ls_progress_record(progress, sizes[i] - 1);
        ls_progress_enter(last);
        last->world_rank = 40 + i;
        assert_int_equal(ls_progress_record(reader, sizes[i] - 1)->world_rank, 40 + i);
        ls_progress_close(reader);
        ls_progress_close(progress);
    }
}

/* What a rank did last is there for the reader after it is dead: the last 64, the oldest first. */
static void the_last_operations_stay_readable(void **unused) {
    (void)unused;
    struct ls_progress *progress;
    struct ls_progress_view view;
    pid_t child = fork();
    if (child == 0) {
        if (ls_progress_open(run_id, 3, 1, &progress, NULL)) _exit(1);
        struct ls_progress_record *record = ls_progress_record(progress, 0);
        ls_progress_enter(record);
        for (int i = 0; i < 100; i++) {
            ls_progress_mark(record, LS_PHASE_FORWARD, 7, 2, (uint64_t)i);
            const uint64_t stream = ls_progress_begin_collective(record, true, (uint64_t)i + 1, i);
            ls_progress_end_collective(record, true, (uint64_t)i + 1, stream);
        }
        ls_progress_begin_collective(record, false, 5, -1);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(ls_progress_open_existing(run_id, 3, &progress, NULL), LS_OK);
    ls_progress_read(ls_progress_record(progress, 0), true, &view);
    assert_int_equal(view.collective, 100);
    assert_int_equal(view.collective_done, 100);
    assert_int_equal(view.host_collective, 5);
    assert_int_equal(view.host_collective_done, 0);
    assert_true(view.gpu == UINT64_MAX);
    assert_int_equal(view.count, LS_PROGRESS_OPERATIONS);
    const struct ls_progress_step *last = &view.operations[LS_PROGRESS_OPERATIONS - 1];
    assert_int_equal(last[0].kind, LS_OPERATION_HOST);
    assert_int_equal(last[0].collective, 5);
    assert_int_equal(last[0].block, -1);
    assert_true(last[0].took_ns == UINT64_MAX);
    assert_int_equal(last[-1].kind, LS_OPERATION_STREAM);
    assert_int_equal(last[-1].collective, 100);
    assert_int_equal(last[-1].block, 99);
    assert_true(last[-1].took_ns < 60000000000u);
    assert_int_equal(last[-2].kind, LS_OPERATION_MARK);
    assert_int_equal(last[-2].phase, LS_PHASE_FORWARD);
    assert_int_equal(last[-2].step, 7);
    assert_int_equal(last[-2].micro_batch, 2);
    assert_int_equal(last[-2].block, 99);
    for (int i = 1; i < view.count; i++) assert_true(view.operations[i - 1].age_ns >= view.operations[i].age_ns);
    ls_progress_close(progress);
}

static void records_may_be_missing(void **unused) {
    (void)unused;
    ls_progress_end_collective(NULL, true, 1, ls_progress_begin_collective(NULL, true, 1, 0));
}

static void a_zombie_is_not_alive(void **unused) {
    (void)unused;
    struct ls_progress *progress;
    assert_int_equal(ls_progress_open(run_id, 3, 1, &progress, NULL), LS_OK);
    struct ls_progress_record *record = ls_progress_record(progress, 0);
    pid_t child = fork();
    if (child == 0) {
        ls_progress_enter(record);
        _exit(0);
    }
    siginfo_t info;
    assert_int_equal(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT), 0);
    assert_false(ls_progress_alive(record));
    waitpid(child, NULL, 0);
    ls_progress_close(progress);
}

static void another_process_with_the_same_pid_is_not_it(void **unused) {
    (void)unused;
    struct ls_progress *progress;
    assert_int_equal(ls_progress_open(run_id, 3, 1, &progress, NULL), LS_OK);
    struct ls_progress_record *record = ls_progress_record(progress, 0);
    ls_progress_enter(record);
    assert_true(ls_progress_alive(record));
    record->pid_start--;
    assert_false(ls_progress_alive(record));
    ls_progress_close(progress);
}

static void a_file_that_is_cut_short_or_of_another_kind_is_refused(void **unused) {
    (void)unused;
    struct ls_progress *progress;
    assert_int_equal(ls_progress_open(run_id, 3, 4, &progress, NULL), LS_OK);
    ls_progress_close(progress);
    assert_int_equal(truncate(path, 200), 0);
    assert_int_equal(ls_progress_open_existing(run_id, 3, &progress, NULL), LS_ERROR);
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(ls_progress_open_existing(run_id, 3, &progress, NULL), LS_ERROR);
    ls_progress_remove(run_id, 3);
    assert_int_equal(symlink("/dev/shm/lockstep-elsewhere", path), 0);
    assert_int_equal(ls_progress_open(run_id, 3, 2, &progress, NULL), LS_ERROR);
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(ls_progress_open_existing(run_id, 3, &progress, NULL), LS_ERROR);
    unlink(path);
}

static void a_run_id_that_is_no_16_hex_digits_never_becomes_a_path(void **unused) {
    (void)unused;
    struct ls_progress *progress;
    static const char *const bad[] = {"", "../../../etc/pass", "0123456789abcde", "0123456789abcdeg",
                                      "0123456789ABCDEF"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(ls_progress_open(bad[i], 1, 1, &progress, NULL), LS_ERROR);
    assert_int_equal(ls_progress_open(run_id, -1, 1, &progress, NULL), LS_ERROR);
    assert_int_equal(ls_progress_open(run_id, 3, 0, &progress, NULL), LS_ERROR);
}

static void every_phase_has_a_name_and_other_values_are_unknown(void **unused) {
    (void)unused;
    for (int phase = 0; phase < LS_PHASE_COUNT; phase++) {
        assert_true(strlen(ls_phase_name(phase)) > 0);
        assert_string_not_equal(ls_phase_name(phase), "unknown");
    }
    assert_string_equal(ls_phase_name(LS_PHASE_CHECKPOINT), "checkpoint");
    assert_string_equal(ls_phase_name(LS_PHASE_EXIT), "exit");
    assert_string_equal(ls_phase_name((enum ls_phase)77), "unknown");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_record_stays_readable_after_its_process_died, make_name, remove_file),
        cmocka_unit_test_setup_teardown(who_enters_takes_nothing_over_from_who_was_there, make_name, remove_file),
        cmocka_unit_test_setup_teardown(a_file_of_another_size_serves, make_name, remove_file),
        cmocka_unit_test_setup_teardown(the_last_operations_stay_readable, make_name, remove_file),
        cmocka_unit_test(records_may_be_missing),
        cmocka_unit_test_setup_teardown(a_zombie_is_not_alive, make_name, remove_file),
        cmocka_unit_test_setup_teardown(another_process_with_the_same_pid_is_not_it, make_name, remove_file),
        cmocka_unit_test_setup_teardown(a_file_that_is_cut_short_or_of_another_kind_is_refused, make_name, remove_file),
        cmocka_unit_test_setup_teardown(a_run_id_that_is_no_16_hex_digits_never_becomes_a_path, make_name, remove_file),
        cmocka_unit_test(every_phase_has_a_name_and_other_values_are_unknown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
