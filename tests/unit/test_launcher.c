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

static bool read_loss(const char *text, struct ls_launch_loss *loss) {
    char path[] = "/tmp/lockstep-launcher-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text));
    close(file);
    bool found = ls_launch_read_loss(path, 3, loss);
    unlink(path);
    return found;
}

/* The same behind `bytes` of other output, NULs among it, in a log that has `before` in front. */
static bool read_loss_behind(const char *before, size_t bytes, const char *text, struct ls_launch_loss *loss) {
    char path[] = "/tmp/lockstep-launcher-XXXXXX";
    FILE *file = fdopen(mkstemp(path), "w");
    assert_non_null(file);
    fputs(before, file);
    for (size_t i = 0; i < bytes; i++) fputc(i % 100 == 99 ? '\n' : i % 7 == 3 ? 0 : 'x', file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
    bool found = ls_launch_read_loss(path, 3, loss);
    unlink(path);
    return found;
}

static void test_a_loss_is_found_behind_any_output(void **state) {
    (void)state;
    static const char lost[] =
        "\nmpirun noticed that process rank 2 with PID 282 on node storm2 exited on signal 9 (Killed).\n";
    struct ls_launch_loss loss;
    assert_true(read_loss_behind("--- attempt 3: mpirun -n 4 x\n", 100, lost, &loss));
    assert_int_equal(loss.ranks[0], 2);
    /* Of NCCL_DEBUG=INFO on a few ranks: the line that begins the attempt is far above. */
    assert_true(read_loss_behind("--- attempt 3: mpirun -n 4 x\n", 1000000, lost, &loss));
    assert_int_equal(loss.ranks[0], 2);
    /* What another attempt said stays its own. */
    assert_false(read_loss_behind("--- attempt 2: mpirun -n 4 x\n", 1000, lost, &loss));
    char others[512];
    snprintf(others, sizeof others, "%s--- attempt 3: mpirun x\nquiet\n", lost);
    assert_false(read_loss_behind("--- attempt 2: mpirun -n 4 x\n", 1000000, others, &loss));
    snprintf(others, sizeof others, "--- attempt 3: mpirun x\nquiet\n--- attempt 4: mpirun x\n%s", lost);
    assert_false(read_loss_behind("--- attempt 2: mpirun -n 4 x\n", 1000, others, &loss));
}

static bool read_exit(const char *text, int status, struct ls_launch_exit *exited) {
    char path[] = "/tmp/lockstep-launcher-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text));
    close(file);
    const bool found = ls_launch_read_exit(path, 3, status, exited);
    unlink(path);
    return found;
}

#define ENDED                                                                                                          \
    "--- attempt 3: mpirun x\n-----\nPrimary job  terminated normally, but 1 process returned\n"                       \
    "a non-zero exit code. Per user-direction, the job has been aborted.\n-----\n"

static void test_a_rank_that_ended_too_early_to_be_named_is_told_from_a_launcher_that_cannot_work(void **state) {
    (void)state;
    struct ls_launch_exit exited;
    assert_true(read_exit(ENDED, 137, &exited));
    assert_int_equal(exited.rank, -1);
    assert_int_equal(exited.code, 137);
    assert_int_equal(exited.killed_by, SIGKILL);
    assert_true(read_exit(ENDED, 139, &exited) && exited.killed_by == SIGSEGV);
    assert_true(read_exit(ENDED, 3, &exited) && exited.rank == -1 && exited.code == 3 && exited.killed_by == 0);
    assert_false(read_exit(ENDED, 0, &exited));
    assert_false(read_exit(ENDED, -9, &exited));
    assert_false(read_exit("--- attempt 3: mpirun x\nmpirun: Error: unknown option \"--nonsense\"\n", 137, &exited));
    assert_false(read_exit("--- attempt 3: mpirun x\nmpirun was unable to launch the specified application as it "
                           "could not access\n",
                           132, &exited));
    assert_false(ls_launch_read_exit("/nowhere", 3, 137, &exited));
}

static void test_a_launcher_tells_which_rank_ended_with_which_code(void **state) {
    (void)state;
    struct ls_launch_exit exited;
    struct ls_launch_loss loss;
    assert_true(read_exit(ENDED "mpirun detected that one or more processes exited with non-zero status, thus causing\n"
                                "the job to be terminated. The first process to do so was:\n\n"
                                "  Process name: [[23928,1],12]\n  Exit code:    255\n-----\n",
                          255, &exited));
    assert_int_equal(exited.rank, 12);
    assert_int_equal(exited.code, 255);
    assert_int_equal(exited.killed_by, 0);
    assert_string_equal(exited.host, "");
    assert_true(read_exit("--- attempt 3: mpirun x\n   Process name: [prterun-h2-7@1,1]\n   Exit code:    137\n", 137,
                          &exited));
    assert_true(exited.rank == 1 && exited.killed_by == SIGKILL);
    /* It has lost another one. */
    assert_false(read_exit(ENDED "  Process name: [[23928,1],1]\n  Exit code:    6\n", 6, &exited));
    /* Behind the one that ended by itself srun kills the others: none of these was lost. */
    static const char srun[] = "--- attempt 3: srun x\nsrun: error: node-2: task 5: Exited with exit code 3\n"
                               "srun: launch/slurm: _step_signal: Terminating StepId=1.7\n"
                               "srun: error: node-2: task 4: Killed\nsrun: error: node-1: tasks 0-3: Killed\n";
    assert_true(read_exit(srun, 3, &exited));
    assert_true(exited.rank == 5 && exited.code == 3);
    assert_string_equal(exited.host, "node-2");
    assert_false(read_loss(srun, &loss));
    assert_true(read_loss("--- attempt 3: srun x\nsrun: error: node-2: task 5: Exited with exit code 6\n"
                          "srun: error: node-1: task 0: Killed\n",
                          &loss));
    assert_int_equal(loss.ranks[0], 0);
    assert_false(read_exit("--- attempt 3: srun x\nsrun: error: node-2: task 5: Killed\n", 137, &exited));
}

static void test_a_launcher_tells_which_rank_was_lost(void **state) {
    (void)state;
    struct ls_launch_loss loss;
    assert_true(
        read_loss("--- attempt 3: mpirun -n 4 x\nnoise\nmpirun noticed that process rank 2 with PID 282 on node "
                  "storm2 exited on signal 9 (Killed).\n",
                  &loss));
    assert_int_equal(loss.count, 1);
    assert_int_equal(loss.ranks[0], 2);
    assert_string_equal(loss.host, "storm2");
    assert_string_equal(loss.text, "pid 282 on storm2 was killed by signal 9, says mpirun");
    assert_true(read_loss("--- attempt 3: srun x\nsrun: error: node-2: task 5: Killed\n", &loss));
    assert_int_equal(loss.count, 1);
    assert_int_equal(loss.ranks[0], 5);
    assert_string_equal(loss.host, "node-2");
    static const int32_t several[] = {2, 3, 7};
    assert_true(read_loss("--- attempt 3: srun x\nsrun: error: node-2: tasks 2-3,7: Killed\n", &loss));
    assert_int_equal(loss.count, 3);
    assert_memory_equal(loss.ranks, several, sizeof several);
    assert_false(read_loss("--- attempt 3: srun x\nsrun: error: node-2: tasks 3-2: Killed\n", &loss));
    assert_false(read_loss("--- attempt 3: srun x\nsrun: error: node-2: tasks -: Killed\n", &loss));
    /* A host as a whole. */
    assert_true(read_loss("--- attempt 3: mpirun x\nORTE has lost communication with a remote daemon.\n\n"
                          "  HNP daemon   : [[47094,0],0] on node storm1\n"
                          "  Remote daemon: [[47094,0],2] on node storm2\n\n",
                          &loss));
    assert_int_equal(loss.count, 0);
    assert_string_equal(loss.host, "storm2");
    /* Where ssh told of the daemon's end first, only MPI says on which host. */
    static const char daemon_gone[] = "ORTE was unable to reliably start one or more daemons.\n";
    static const char hung_up[] = "  Local host: storm1\n  Local PID:  122\n  Peer host:  storm3\n";
    char words[512];
    snprintf(words, sizeof words, "--- attempt 3: mpirun x\n%s%s", daemon_gone, hung_up);
    assert_true(read_loss(words, &loss));
    assert_int_equal(loss.count, 0);
    assert_string_equal(loss.host, "storm3");
    snprintf(words, sizeof words, "--- attempt 3: mpirun x\n%s", hung_up); /* a rank may have left by itself */
    assert_false(read_loss(words, &loss));
    snprintf(words, sizeof words, "--- attempt 2: mpirun x\n%s--- attempt 3: mpirun x\n%s", hung_up, daemon_gone);
    assert_false(read_loss(words, &loss));
    assert_true(read_loss("--- attempt 3: srun x\nsrun: error: Node failure on node-2\n", &loss));
    assert_int_equal(loss.count, 0);
    assert_string_equal(loss.host, "node-2");
    assert_false(read_loss("--- attempt 3: srun x\nsrun: error: Node failure on node-[2-3]\n", &loss));
    /* Of another attempt, of no attempt, or of a rank that had something to say. */
    assert_false(
        read_loss("--- attempt 2: mpirun\nmpirun noticed that process rank 2 with PID 282 on node storm2 exited "
                  "on signal 9 (Killed).\n--- attempt 3: mpirun -n 4 x\n",
                  &loss));
    assert_false(read_loss("srun: error: node-2: task 5: Killed\n", &loss));
    assert_false(read_loss("--- attempt 3: srun x\nsrun: error: node-2: task 5: Exited with exit code 6\n", &loss));
    assert_false(ls_launch_read_loss("/nowhere", 3, &loss));
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
        cmocka_unit_test(test_a_launcher_tells_which_rank_was_lost),
        cmocka_unit_test(test_a_loss_is_found_behind_any_output),
        cmocka_unit_test(test_a_rank_that_ended_too_early_to_be_named_is_told_from_a_launcher_that_cannot_work),
        cmocka_unit_test(test_a_launcher_tells_which_rank_ended_with_which_code),
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
