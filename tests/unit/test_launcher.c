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
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static struct ls_config config;
static struct ls_allocation allocation;
static struct ls_launch launch;

/* In the place of the system's: how long a new process takes before it leads its session. */
static useconds_t before_session_us;

pid_t setsid(void) {
    usleep(before_session_us);
    return (pid_t)syscall(SYS_setsid);
}

/* Two ranks on this host. */
static struct ls_launch_options usual(void) {
    memset(&config, 0, sizeof config);
    config.fault.connect_timeout_seconds = 30;
    ls_allocation_release(&allocation);
    return (struct ls_launch_options){.type = LS_LAUNCH_MPIRUN,
                                      .ranks = 2,
                                      .allocation = &allocation,
                                      .cores = 8,
                                      .config = &config,
                                      .worker = "/opt/lockstep-worker",
                                      .endpoints = "tcp://127.0.0.1:4000",
                                      .run_id = "0123456789abcdef",
                                      .attempt = 3};
}

/* Five ranks on three hosts, none of them this one. */
static struct ls_launch_options elsewhere(void) {
    struct ls_launch_options options = usual();
    static const char hosts[] = "a slots=2\nb slots=2\nc slots=2\n";
    assert_int_equal(ls_hosts_parse(hosts, strlen(hosts), "hosts", &allocation.hosts, NULL), LS_OK);
    allocation.elsewhere = true;
    options.ranks = 5;
    return options;
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
    "LOCKSTEP_ATTEMPT=3 LOCKSTEP_CONNECT_SECONDS=30 "

static void test_ranks_share_the_cores(void **state) {
    (void)state;
    struct ls_launch_options options = usual();
    assert_string_equal(printed(&options),
                        "OMP_NUM_THREADS=4 OPENBLAS_NUM_THREADS=4 OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=1000 " RUN
                        "mpirun -n 2 --bind-to none --mca pml ob1 --mca btl self,vader,tcp /opt/lockstep-worker");
}

static void test_more_ranks_than_cores_oversubscribe_and_yield(void **state) {
    (void)state;
    struct ls_launch_options options = usual();
    options.ranks = 9;
    assert_string_equal(
        printed(&options),
        "OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0 " RUN
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
    allocation.threads = 3;
    strcpy(config.launcher.arguments[0], "--report-bindings");
    strcpy(config.launcher.arguments[1], "it's $HOME");
    config.launcher.arguments_count = 2;
    assert_string_equal(printed(&options),
                        "OMP_NUM_THREADS=3 OPENBLAS_NUM_THREADS=3 OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=1000 " RUN
                        "mpirun -n 2 --bind-to none --report-bindings 'it'\\''s $HOME' /opt/lockstep-worker");
}

#define EXPORTED                                                                                                       \
    "-x OMP_WAIT_POLICY -x GOMP_SPINCOUNT -x LOCKSTEP_COORDINATOR -x LOCKSTEP_KEY_FILE -x LOCKSTEP_RUN_ID -x "         \
    "LOCKSTEP_ATTEMPT -x "                                                                                             \
    "LOCKSTEP_CONNECT_SECONDS "

static void test_other_hosts_get_their_counts_and_the_variables(void **state) {
    (void)state;
    struct ls_launch_options options = elsewhere();
    char text[] = "NCCL_DEBUG=INFO", other[] = "HOME=/root", own[] = "LOCKSTEP_ATTEMPT=9";
    char products[] = "OPENBLAS_CORETYPE=Haswell", near_miss[] = "NVIDIA_TF32_OVERRIDES=1";
    char *inherited[] = {text, other, own, products, near_miss, NULL};
    options.inherited = inherited;
    /* Threads are not known: every rank finds its share of its host, and none is bound. */
    assert_string_equal(printed(&options), "OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=1000 " RUN
                                           "mpirun -n 5 -host a:2,b:2,c:1 --map-by slot --bind-to none " EXPORTED
                                           "-x NCCL_DEBUG -x OPENBLAS_CORETYPE /opt/lockstep-worker");
}

static void test_known_threads_bind_ranks_to_as_many_cores(void **state) {
    (void)state;
    struct ls_launch_options options = elsewhere();
    allocation.threads = 4;
    assert_string_equal(printed(&options),
                        "OMP_NUM_THREADS=4 OPENBLAS_NUM_THREADS=4 OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=1000 " RUN
                        "mpirun -n 5 -host a:2,b:2,c:1 --map-by slot:PE=4 --bind-to core -x OMP_NUM_THREADS -x "
                        "OPENBLAS_NUM_THREADS " EXPORTED "/opt/lockstep-worker");
    allocation.threads = 5; /* ten threads, eight cores */
    assert_non_null(strstr(printed(&options), "--map-by slot --bind-to none"));
}

static void test_excluded_hosts_get_no_rank(void **state) {
    (void)state;
    struct ls_launch_options options = elsewhere();
    const char *excluded[] = {"b.cluster.local", "nowhere"};
    struct ls_error error = {0};
    options.excluded = excluded;
    options.excluded_count = 1; /* names that are not in the list would be asked of the resolver */
    options.ranks = 4;
    assert_non_null(strstr(printed(&options), "-n 4 -host a:2,c:2 "));
    options.ranks = 5;
    assert_int_equal(ls_launch_plan(&options, &launch, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "5 ranks do not fit on 3 hosts with room for 4 (a 2, b 0 (excluded), c 2)"));
}

static void test_wrapper_and_environment_are_where_they_belong(void **state) {
    (void)state;
    struct ls_launch_options options = usual();
    strcpy(config.launcher.wrapper[0], "apptainer");
    strcpy(config.launcher.wrapper[1], "exec");
    config.launcher.wrapper_count = 2;
    strcpy(config.launcher.environment[0], "A=b c");
    strcpy(config.launcher.environment[1], "HOME");
    config.launcher.environment_count = 2;
    allocation.threads = 1;
    assert_string_equal(
        printed(&options),
        "OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=1000 " RUN
        "mpirun -n 2 --bind-to none --mca pml ob1 --mca btl self,vader,tcp -x 'A=b c' -x HOME apptainer "
        "exec /opt/lockstep-worker");
}

static void test_srun_is_told_hosts_threads_and_who_reads_the_key(void **state) {
    (void)state;
    struct ls_launch_options options = elsewhere();
    options.type = LS_LAUNCH_SRUN;
    allocation.by_slurm = true;
    allocation.threads = 2;
    options.ranks = 4;
    strcpy(config.launcher.environment[0], "A=b,c");
    config.launcher.environment_count = 1;
    assert_string_equal(printed(&options),
                        "OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2 OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=1000 " RUN
                        "A=b,c srun --mpi=pmix --nodes=2 --ntasks=4 --ntasks-per-node=2 --nodelist=a,b "
                        "--distribution=block --cpus-per-task=2 --cpu-bind=cores --input=0 --kill-on-bad-exit=1 "
                        "--overlap --export=ALL /opt/lockstep-worker");
}

static void test_a_worker_that_is_no_rank_of_a_run_gets_no_run(void **state) {
    (void)state;
    struct ls_launch_options options = usual();
    options.endpoints = NULL;
    options.worker_argument = "--examine=0";
    assert_string_equal(printed(&options), "OMP_NUM_THREADS=4 OPENBLAS_NUM_THREADS=4 OMP_WAIT_POLICY=passive "
                                           "GOMP_SPINCOUNT=1000 mpirun -n 2 --bind-to none "
                                           "--mca pml ob1 --mca btl self,vader,tcp /opt/lockstep-worker --examine=0");
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
    char folder[] = "/tmp/lockstep-launch-XXXXXX", log[64], command[128], line[8192] = "";
    assert_non_null(mkdtemp(folder));
    snprintf(log, sizeof log, "%s/log", folder);
    struct ls_launch_options options = usual();
    assert_int_equal(ls_launch_plan(&options, &launch, NULL), LS_OK);
    char shell[] = "sh", flag[] = "-c",
         script[] =
             "read key; echo \"$key $LOCKSTEP_ATTEMPT\"; set -m; sleep 100 & trap '' TERM; sleep 100 & wait; wait";
    char *arguments[] = {shell, flag, script, NULL};
    memcpy(launch.arguments, arguments, sizeof arguments);
    launch.arguments_count = 3;
    pid_t pid;
    assert_int_equal(ls_launch_start(&launch, "secret-text\n", log, &pid, NULL), LS_OK);
    /* The shell and its two children; all three appear, or the test never ends. */
    while (ls_launch_signal_session(pid, 0) < 3) usleep(10000);
    ls_launch_end_session(pid, 0);
    assert_int_equal(ls_launch_signal_session(pid, 0), 0);
    waitpid(pid, NULL, 0);
    FILE *file = fopen(log, "r");
    assert_non_null(file);
    assert_non_null(fgets(line, sizeof line, file)); /* the header: attempt and command */
    assert_non_null(fgets(line, sizeof line, file));
    assert_string_equal(line, "secret-text 3\n");
    fclose(file);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

/* Killed as a session that nobody is in yet, it would live on. */
static void test_a_launcher_can_be_ended_the_moment_it_is_started(void **state) {
    (void)state;
    struct ls_launch_options options = usual();
    assert_int_equal(ls_launch_plan(&options, &launch, NULL), LS_OK);
    char sleep[] = "sleep", seconds[] = "100";
    char *arguments[] = {sleep, seconds, NULL};
    memcpy(launch.arguments, arguments, sizeof arguments);
    launch.arguments_count = 2;
    pid_t pid;
    before_session_us = 200000;
    assert_int_equal(ls_launch_start(&launch, "", "/dev/null", &pid, NULL), LS_OK);
    before_session_us = 0;
    const int found = ls_launch_signal_session(pid, SIGKILL);
    if (!found) kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_int_equal(found, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks_share_the_cores),
        cmocka_unit_test(test_more_ranks_than_cores_oversubscribe_and_yield),
        cmocka_unit_test(test_root_is_allowed_by_two_variables),
        cmocka_unit_test(test_the_users_transports_threads_and_arguments_are_kept),
        cmocka_unit_test(test_other_hosts_get_their_counts_and_the_variables),
        cmocka_unit_test(test_known_threads_bind_ranks_to_as_many_cores),
        cmocka_unit_test(test_excluded_hosts_get_no_rank),
        cmocka_unit_test(test_wrapper_and_environment_are_where_they_belong),
        cmocka_unit_test(test_srun_is_told_hosts_threads_and_who_reads_the_key),
        cmocka_unit_test(test_a_worker_that_is_no_rank_of_a_run_gets_no_run),
        cmocka_unit_test(test_a_command_line_that_is_too_long_is_refused),
        cmocka_unit_test(test_missing_mpirun_names_the_package),
        cmocka_unit_test(test_the_whole_session_gets_the_key_and_ends),
        cmocka_unit_test(test_a_launcher_can_be_ended_the_moment_it_is_started),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
