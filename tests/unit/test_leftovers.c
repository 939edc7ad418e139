/* What killed attempts leave on a host is found by run and attempt, and nothing else is touched. */
#define _GNU_SOURCE
#include "common/leftovers.h"

#include "support.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Of no run directory: the hash's digits are this process's. */
static void make_run_id(char run_id[17]) {
    snprintf(run_id, 17, "feed%012x", (unsigned)getpid());
}

/* A child that waits, with the environment of a worker of `attempt`; `deaf`: stopped, as a hung one may be. */
static pid_t start_worker(const char *run_id, const char *attempt, int deaf) {
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        char run[40], number[40];
        snprintf(run, sizeof run, "LOCKSTEP_RUN_ID=%s", run_id);
        snprintf(number, sizeof number, "LOCKSTEP_ATTEMPT=%s", attempt);
        char *environment[] = {run, number, NULL}, *arguments[] = {"sleep", "60", NULL};
        fcntl(ready[1], F_SETFD, FD_CLOEXEC); /* closed by exec: then the environment is the new one */
        execve("/bin/sleep", arguments, environment);
        _exit(127);
    }
    char end;
    close(ready[1]);
    assert_int_equal(read(ready[0], &end, 1), 0);
    close(ready[0]);
    if (deaf) kill(child, SIGSTOP);
    return child;
}

static int was_killed(pid_t child) {
    int status;
    pid_t ended = waitpid(child, &status, WNOHANG);
    return ended == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

static void end_worker(pid_t child) {
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

static void put_file(const char *run_id, const char *rest) {
    char path[128];
    snprintf(path, sizeof path, "/dev/shm/lockstep-%s-%s", run_id, rest);
    int file = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(file >= 0);
    close(file);
}

static int has_file(const char *run_id, const char *rest) {
    char path[128];
    snprintf(path, sizeof path, "/dev/shm/lockstep-%s-%s", run_id, rest);
    return access(path, F_OK) == 0;
}

static void older_processes_are_killed(void **state) {
    (void)state;
    char run_id[17];
    make_run_id(run_id);
    pid_t old = start_worker(run_id, "2", 0), deaf = start_worker(run_id, "1", 1),
          present = start_worker(run_id, "3", 0);
    pid_t foreign = start_worker("0000000000000000", "1", 0), nonsense = start_worker(run_id, "2x", 0);
    struct ls_leftovers left = ls_leftovers_remove(run_id, 3, 10);
    assert_int_equal(left.processes, 2);
    assert_int_equal(left.stuck_pid, 0);
    assert_true(was_killed(old));
    assert_true(was_killed(deaf));
    assert_false(was_killed(present));
    assert_false(was_killed(foreign));
    assert_false(was_killed(nonsense));
    end_worker(present);
    end_worker(foreign);
    end_worker(nonsense);
}

static void older_memory_is_removed(void **state) {
    (void)state;
    char run_id[17], folder[64], inside[128];
    make_run_id(run_id);
    put_file(run_id, "a1");
    put_file(run_id, "a2.segment");
    put_file(run_id, "a3");
    put_file(run_id, "a12"); /* begins like attempt 1 and is not */
    put_file(run_id, "ax");
    ls_leftovers_folder(run_id, 2, folder);
    assert_int_equal(mkdir(folder, 0700), 0);
    snprintf(inside, sizeof inside, "%s/deep", folder);
    assert_int_equal(mkdir(inside, 0700), 0);
    snprintf(inside, sizeof inside, "%s/deep/link", folder);
    assert_int_equal(symlink("/dev/shm", inside), 0); /* is not followed */
    struct ls_leftovers left = ls_leftovers_remove(run_id, 3, 1);
    assert_int_equal(left.processes, 0);
    assert_int_equal(left.files, 3);
    assert_false(has_file(run_id, "a1"));
    assert_false(has_file(run_id, "a2.segment"));
    assert_int_equal(access(folder, F_OK), -1);
    assert_true(has_file(run_id, "a3"));
    assert_true(has_file(run_id, "a12"));
    assert_true(has_file(run_id, "ax"));
    assert_int_equal(ls_leftovers_remove(run_id, 13, 1).files, 2);
    assert_true(has_file(run_id, "ax"));
    snprintf(inside, sizeof inside, "/dev/shm/lockstep-%s-ax", run_id);
    unlink(inside);
}

static void what_is_no_run_id_has_none(void **state) {
    (void)state;
    struct ls_leftovers left = ls_leftovers_remove("../../etc/passwd", 1000, 1);
    assert_int_equal(left.processes + left.files, 0);
    left = ls_leftovers_remove("", 1000, 1);
    assert_int_equal(left.processes + left.files, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(older_processes_are_killed),
        cmocka_unit_test(older_memory_is_removed),
        cmocka_unit_test(what_is_no_run_id_has_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
