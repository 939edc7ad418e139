/* What a process is doing: children that sleep, are stopped, or hang in a read. */
#define _GNU_SOURCE
#include "common/process.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

static int hole[2]; /* a pipe that nobody writes to */

static void *read_for_ever(void *unused) {
    char byte;
    pthread_setname_np(pthread_self(), "test reader");
    if (read(hole[0], &byte, 1) < 0) return unused;
    return NULL;
}

/* A child whose second thread reads from the pipe while its first sleeps. */
static pid_t start_child(void) {
    assert_int_equal(pipe(hole), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child > 0) return child;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pthread_t thread;
    if (pthread_create(&thread, NULL, read_for_ever, NULL)) _exit(1);
    for (;;) pause();
}

static void end_child(pid_t child) {
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    close(hole[0]);
    close(hole[1]);
}

/* Looks until the text has the words, or for ten seconds. */
static void await(pid_t child, const char *thread, const char *words, struct ls_process_look *look) {
    for (int i = 0; i < 1000; i++) {
        ls_process_look(child, thread, look);
        if (strstr(look->text, words)) return;
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    fail_msg("'%s' is not in: %s", words, look->text);
}

static void a_thread_that_hangs_in_a_read_is_told_with_what_it_reads(void **unused) {
    (void)unused;
    struct ls_process_look look;
    pid_t child = start_child();
    await(child, "test reader", "thread test reader waits", &look);
    /* Where the kernel shows system calls of others. */
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/syscall", (int)child);
    if (access(path, R_OK) == 0) await(child, "test reader", "read of pipe:", &look);
    assert_int_equal(look.state, 'S');
    await(child, NULL, "it waits", &look); /* the first thread */
    end_child(child);
}

static void a_stopped_process_is_told(void **unused) {
    (void)unused;
    struct ls_process_look look;
    pid_t child = start_child();
    assert_int_equal(kill(child, SIGSTOP), 0);
    await(child, "test reader", "stopped by a signal", &look);
    assert_int_equal(look.state, 'T');
    end_child(child);
}

static void every_thread_is_described(void **unused) {
    (void)unused;
    struct ls_process_look look;
    pid_t child = start_child();
    await(child, "test reader", "thread test reader waits", &look);
    char text[16384], small[100];
    size_t length = ls_process_describe(child, text, sizeof text);
    assert_int_equal(length, strlen(text));
    assert_non_null(strstr(text, " test reader: state S"));
    char first[32];
    snprintf(first, sizeof first, "  thread %d ", (int)child);
    assert_non_null(strstr(text, first));
    length = ls_process_describe(child, small, sizeof small);
    assert_int_equal(length, strlen(small));
    end_child(child);
}

static void of_a_process_that_is_gone_nothing_is_known(void **unused) {
    (void)unused;
    struct ls_process_look look;
    pid_t child = start_child();
    end_child(child);
    static const int64_t pids[] = {0, -1, INT64_C(1) << 40};
    char text[64];
    ls_process_look(child, NULL, &look);
    assert_string_equal(look.text, "");
    assert_int_equal(look.state, 0);
    for (size_t i = 0; i < sizeof pids / sizeof *pids; i++) {
        ls_process_look(pids[i], NULL, &look);
        assert_string_equal(look.text, "");
        assert_int_equal(ls_process_describe(pids[i], text, sizeof text), 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_thread_that_hangs_in_a_read_is_told_with_what_it_reads),
        cmocka_unit_test(a_stopped_process_is_told),
        cmocka_unit_test(every_thread_is_described),
        cmocka_unit_test(of_a_process_that_is_gone_nothing_is_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
