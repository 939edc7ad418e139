/* The launcher: the command lines it makes, word by word, and that nothing of a session is left. */
#include "coordinator/launcher.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static struct ls_config config;
static struct ls_launch launch;

static struct ls_launch_options usual(void) {
    memset(&config, 0, sizeof config);
    return (struct ls_launch_options){.ranks = 2,
                                      .cores = 8,
                                      .config = &config,
                                      .worker = "/opt/lockstep-worker",
                                      .endpoint = "tcp://127.0.0.1:4000",
                                      .run_id = "0123456789abcdef",
                                      .attempt = 3};
}

/* The command line as a shell takes it, environment first. */
static const char *printed(const struct ls_launch_options *options) {
    static char text[4096];
    struct ls_error error;
    if (ls_launch_plan(options, &launch, &error) != LS_OK) fail_msg("%s", error.text);
    ls_launch_print(&launch, text, sizeof text);
    assert_null(launch.arguments[launch.arguments_count]);
    return text;
}

#define RUN                                                                                                            \
    "LOCKSTEP_COORDINATOR=tcp://127.0.0.1:4000 LOCKSTEP_KEY_FILE=- LOCKSTEP_RUN_ID=0123456789abcdef "                  \
    "LOCKSTEP_ATTEMPT=3 "

static void test_ranks_share_the_cores(void **state) {
    (void)state;
    struct ls_launch_options options = usual();
    assert_string_equal(printed(&options),
                        "OMP_NUM_THREADS=4 OPENBLAS_NUM_THREADS=4 OMP_WAIT_POLICY=passive " RUN
                        "mpirun -n 2 --bind-to none --mca pml ob1 --mca btl self,vader,tcp /opt/lockstep-worker");
}

static void test_more_ranks_than_cores_oversubscribe_and_yield(void **state) {
    (void)state;
    struct ls_launch_options options = usual();
    options.ranks = 9;
    assert_string_equal(
        printed(&options),
        "OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=passive " RUN
        "mpirun -n 9 --bind-to none --oversubscribe --mca mpi_yield_when_idle 1 --mca pml ob1 --mca btl "
        "self,vader,tcp /opt/lockstep-worker");
}

static void test_root_is_allowed_by_two_variables(void **state) {
    (void)state;
    struct ls_launch_options options = usual();
    options.root = true;
    const char *text = printed(&options);
    assert_int_equal(strncmp(text, "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 ", 58), 0);
}

static void test_the_users_transports_threads_and_arguments_are_kept(void **state) {
    (void)state;
    struct ls_launch_options options = usual();
    options.transport_is_chosen = true;
    options.threads_per_rank = 3;
    strcpy(config.launcher.arguments[0], "--report-bindings");
    strcpy(config.launcher.arguments[1], "it's $HOME");
    config.launcher.arguments_count = 2;
    assert_string_equal(printed(&options),
                        "OMP_NUM_THREADS=3 OPENBLAS_NUM_THREADS=3 OMP_WAIT_POLICY=passive " RUN
                        "mpirun -n 2 --bind-to none --report-bindings 'it'\\''s $HOME' /opt/lockstep-worker");
}

static void test_a_command_line_that_is_too_long_is_refused(void **state) {
    (void)state;
    struct ls_launch_options options = usual();
    char *worker = malloc(LS_LAUNCH_TEXT_MAX + 1);
    memset(worker, 'w', LS_LAUNCH_TEXT_MAX);
    worker[LS_LAUNCH_TEXT_MAX] = 0;
    options.worker = worker;
    assert_int_equal(ls_launch_plan(&options, &launch, NULL), LS_USAGE);
    free(worker);
}

static void test_missing_mpirun_names_the_package(void **state) {
    (void)state;
    struct ls_error error = {0};
    char *path = strdup(getenv("PATH"));
    setenv("PATH", "", 1);
    assert_int_equal(ls_launch_find_mpirun(&error), LS_COMMUNICATION);
    assert_non_null(strstr(error.text, "openmpi-bin"));
    setenv("PATH", "/nowhere:/also-nowhere", 1);
    assert_int_equal(ls_launch_find_mpirun(&error), LS_COMMUNICATION);
    setenv("PATH", path, 1);
    free(path);
}

/* A launcher that starts a grandchild in a process group of its own, as mpirun does with its ranks. */
static void test_the_whole_session_gets_the_key_and_ends(void **state) {
    (void)state;
    char folder[] = "/tmp/lockstep-launch-XXXXXX", log[64], command[128], line[64] = "";
    assert_non_null(mkdtemp(folder));
    snprintf(log, sizeof log, "%s/log", folder);
    struct ls_launch_options options = usual();
    assert_int_equal(ls_launch_plan(&options, &launch, NULL), LS_OK);
    char shell[] = "sh", flag[] = "-c",
         script[] =
             "read key; echo \"$key $LOCKSTEP_ATTEMPT\"; set -m; sleep 100 & trap '' TERM; sleep 100 & wait; wait";
    char *arguments[] = {shell, flag, script, NULL};
    memcpy(launch.arguments, arguments, sizeof arguments);
    pid_t pid;
    assert_int_equal(ls_launch_start(&launch, "secret-text\n", log, &pid, NULL), LS_OK);
    /* The shell and its two children; all three appear, or the test never ends. */
    while (ls_launch_signal_session(pid, 0) < 3) usleep(10000);
    ls_launch_end_session(pid, 0);
    assert_int_equal(ls_launch_signal_session(pid, 0), 0);
    waitpid(pid, NULL, 0);
    FILE *file = fopen(log, "r");
    assert_non_null(file);
    assert_non_null(fgets(line, sizeof line, file));
    assert_string_equal(line, "secret-text 3\n");
    fclose(file);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks_share_the_cores),
        cmocka_unit_test(test_more_ranks_than_cores_oversubscribe_and_yield),
        cmocka_unit_test(test_root_is_allowed_by_two_variables),
        cmocka_unit_test(test_the_users_transports_threads_and_arguments_are_kept),
        cmocka_unit_test(test_a_command_line_that_is_too_long_is_refused),
        cmocka_unit_test(test_missing_mpirun_names_the_package),
        cmocka_unit_test(test_the_whole_session_gets_the_key_and_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
