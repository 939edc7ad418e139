/* What the coordinator learns of the ranks of its own host: from the progress file, and from the launcher's output. */
#define _GNU_SOURCE
#include "common/progress.h"
#include "coordinator/watcher.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64], run_id[17];
static struct ls_watcher *watcher;

static int begin(void **state) {
    (void)state;
    char logs[96];
    strcpy(folder, "/tmp/lockstep-watcher-XXXXXX");
    snprintf(run_id, sizeof run_id, "%016lx", (unsigned long)getpid());
    if (!mkdtemp(folder)) return -1;
    snprintf(logs, sizeof logs, "%s/logs", folder);
    if (mkdir(logs, 0755)) return -1;
    return ls_watcher_create(folder, run_id, 4, &watcher, NULL);
}

static int end(void **state) {
    (void)state;
    char command[128];
    ls_watcher_destroy(watcher);
    ls_progress_remove(run_id, 4);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static void say(const char *text) {
    char path[128];
    snprintf(path, sizeof path, "%s/logs/launcher.log", folder);
    FILE *file = fopen(path, "a");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

/* The second rank of this host is number 130,999 of the run; its process ends without a word. */
static void a_lost_rank_is_named_by_its_number_in_the_run(void **unused) {
    (void)unused;
    struct ls_progress *progress;
    struct ls_watcher_loss loss;
    int status;
    const pid_t child = fork();
    if (child == 0) {
        if (ls_progress_open(run_id, 4, 2, &progress, NULL)) _exit(1);
        struct ls_progress_record *record = ls_progress_record(progress, 1);
        ls_progress_enter(record);
        record->world_rank = 130999;
        ls_progress_mark(record, LS_PHASE_BACKWARD, 41, 2, 7);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_true(ls_watcher_poll(watcher, &loss));
    assert_int_equal(loss.rank, 130999);
    assert_int_equal(loss.step, 41);
    assert_false(loss.by_itself);
    assert_false(ls_watcher_poll(watcher, &loss)); /* told once */
}

static void what_the_launcher_said_comes_without_control_characters(void **unused) {
    (void)unused;
    struct ls_watcher_loss loss;
    struct ls_launcher_reason reason;
    say("--- attempt 4\n");
    say("\033[31mh\xf4te na\xc3\xafve inconnu\033[0m .\n");
    ls_watcher_read_reason(watcher, &reason);
    assert_string_equal(reason.text, "?[31mh?te na\xc3\xafve inconnu?[0m");
    assert_false(ls_watcher_read_launcher(watcher, &loss));
    say("lockstep: exit 3 (data): \033]0;owned\007shard \xff is gone\n");
    assert_true(ls_watcher_read_launcher(watcher, &loss));
    assert_int_equal(loss.code, LS_DATA);
    assert_string_equal(loss.text, "?]0;owned?shard ? is gone");
}

/* A coordinator that takes over from another finds what was said before it came, of this attempt and no other. */
static void what_was_said_before_a_new_coordinator_came_counts(void **unused) {
    (void)unused;
    struct ls_watcher_loss loss;
    struct ls_watcher *next;
    struct ls_launcher_reason reason;
    say("--- attempt 3: mpirun\nlockstep: exit 7 (nonfinite): long ago\n");
    say("--- attempt 4: mpirun\nhello\nlockstep: exit 3 (data): the shard is gone\n");
    assert_int_equal(ls_watcher_create(folder, run_id, 4, &next, NULL), LS_OK);
    assert_true(ls_watcher_read_launcher(next, &loss));
    assert_int_equal(loss.code, LS_DATA);
    assert_string_equal(loss.text, "the shard is gone");
    ls_watcher_read_reason(next, &reason);
    assert_string_equal(reason.text, "lockstep: exit 3 (data): the shard is gone");
    ls_watcher_destroy(next);
    /* Nothing that a rank said. */
    say("--- attempt 5: mpirun\n-----\nPrimary job  terminated normally, but 1 process returned\na non-zero exit "
        "code.\n");
    assert_int_equal(ls_watcher_create(folder, run_id, 5, &next, NULL), LS_OK);
    ls_watcher_read_reason(next, &reason);
    assert_string_equal(reason.text, "");
    ls_watcher_destroy(next);
    assert_int_equal(ls_watcher_create(folder, run_id, 6, &next, NULL), LS_OK); /* not begun yet */
    assert_false(ls_watcher_read_launcher(next, &loss));
    ls_watcher_destroy(next);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_lost_rank_is_named_by_its_number_in_the_run, begin, end),
        cmocka_unit_test_setup_teardown(what_the_launcher_said_comes_without_control_characters, begin, end),
        cmocka_unit_test_setup_teardown(what_was_said_before_a_new_coordinator_came_counts, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
