/* A thread that cannot be started is told with its cause, which pthread_create() returns and does not leave in errno.
 */
#define _GNU_SOURCE
#include "common/keys.h"
#include "common/zap.h"
#include "coordinator/committer.h"
#include "coordinator/journal.h"
#include "worker/session.h"

#include "tests/unit/sanitized.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>
#include <cmocka.h>

#ifndef SANITIZED

extern char __executable_start, etext;

/* None of this program's threads is started; libraries have theirs. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    const char *caller = __builtin_return_address(0);
    *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    errno = 0;
    return caller >= &__executable_start && caller < &etext ? EAGAIN : real(thread, attributes, run, argument);
}

static void assert_told(const struct ls_error *error) {
    if (!strstr(error->text, strerror(EAGAIN))) fail_msg("no cause in: %s", error->text);
}

static void a_key_check_names_it(void **unused) {
    (void)unused;
    struct ls_keys keys;
    struct ls_zap *zap;
    struct ls_error error = {0};
    void *context = zmq_ctx_new();
    assert_int_equal(ls_keys_generate(&keys, NULL), LS_OK);
    assert_int_equal(ls_zap_start(context, &keys, &zap, &error), LS_ERROR);
    assert_told(&error);
    zmq_ctx_term(context);
}

static void a_session_names_it(void **unused) {
    (void)unused;
    struct ls_keys keys;
    struct ls_session *session;
    struct ls_welcome welcome;
    struct ls_error error = {0};
    char *yaml;
    assert_int_equal(ls_keys_generate(&keys, NULL), LS_OK);
    assert_int_equal(ls_session_open("tcp://127.0.0.1:9", &keys.worker, 1, 1, &session, &welcome, &yaml, &error),
                     LS_ERROR);
    assert_told(&error);
}

static void a_committer_names_it(void **unused) {
    (void)unused;
    const struct ls_run_directory run = {.lock = -1};
    struct ls_committer *committer;
    struct ls_error error = {0};
    assert_int_equal(ls_committer_start(&run, 1, -1, &committer, &error), LS_ERROR);
    assert_told(&error);
}

static void a_journal_names_it(void **unused) {
    (void)unused;
    char folder[] = "/tmp/lockstep-no-threads-XXXXXX", path[64], command[64];
    struct ls_journal *journal;
    struct ls_error error = {0};
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/journal.db", folder);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(ls_journal_open(path, &journal, NULL), LS_OK);
    assert_int_equal(ls_journal_start(journal, 1, -1, NULL, NULL, &error), LS_ERROR);
    assert_told(&error);
    ls_journal_close(journal);
    assert_int_equal(system(command), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_key_check_names_it),
        cmocka_unit_test(a_session_names_it),
        cmocka_unit_test(a_committer_names_it),
        cmocka_unit_test(a_journal_names_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

static void no_thread_is_refused_under_sanitizers(void **state) {
    (void)state;
    puts("sanitizers have calls of their own for threads");
    skip();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(no_thread_is_refused_under_sanitizers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
