/* What launchers say: which rank or host was lost, who ended with which code, why nobody could be started. */
#include "coordinator/launcher_output.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static bool read_loss(const char *text, struct ls_launcher_loss *loss) {
    char path[] = "/tmp/lockstep-launcher-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text));
    close(file);
    bool found = ls_launcher_read_loss(path, 3, loss);
    unlink(path);
    return found;
}

/* The same behind `bytes` of other output, NULs among it, in a log that has `before` in front. */
static bool read_loss_behind(const char *before, size_t bytes, const char *text, struct ls_launcher_loss *loss) {
    char path[] = "/tmp/lockstep-launcher-XXXXXX";
    FILE *file = fdopen(mkstemp(path), "w");
    assert_non_null(file);
    fputs(before, file);
    for (size_t i = 0; i < bytes; i++) fputc(i % 100 == 99 ? '\n' : i % 7 == 3 ? 0 : 'x', file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
    bool found = ls_launcher_read_loss(path, 3, loss);
    unlink(path);
    return found;
}

static void test_a_loss_is_found_behind_any_output(void **state) {
    (void)state;
    static const char lost[] =
        "\nmpirun noticed that process rank 2 with PID 282 on node storm2 exited on signal 9 (Killed).\n";
    struct ls_launcher_loss loss;
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

static bool read_exit(const char *text, int status, struct ls_launcher_exit *exited) {
    char path[] = "/tmp/lockstep-launcher-XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text));
    close(file);
    const bool found = ls_launcher_read_exit(path, 3, status, exited);
    unlink(path);
    return found;
}

#define ENDED                                                                                                          \
    "--- attempt 3: mpirun x\n-----\nPrimary job  terminated normally, but 1 process returned\n"                       \
    "a non-zero exit code. Per user-direction, the job has been aborted.\n-----\n"

static void test_a_rank_that_ended_too_early_to_be_named_is_told_from_a_launcher_that_cannot_work(void **state) {
    (void)state;
    struct ls_launcher_exit exited;
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
    assert_false(ls_launcher_read_exit("/nowhere", 3, 137, &exited));
}

static void test_a_launcher_tells_which_rank_ended_with_which_code(void **state) {
    (void)state;
    struct ls_launcher_exit exited;
    struct ls_launcher_loss loss;
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
    struct ls_launcher_loss loss;
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
    assert_false(ls_launcher_read_loss("/nowhere", 3, &loss));
}

#define ORTE                                                                                                           \
    "--------------------------------------------------------------------------\n"                                     \
    "ORTE was unable to reliably start one or more daemons.\nThis usually is caused by:\n\n"                           \
    "* not finding the required libraries and/or binaries on\n  one or more nodes. Please check your PATH\n"

static void assert_reason(const char *output, const char *text, const char *advice) {
    struct ls_launcher_reason reason;
    assert_true(ls_launcher_find_reason(output, &reason));
    assert_string_equal(reason.text, text);
    assert_string_equal(reason.advice, advice);
}

#define LOGIN(host) "See that 'ssh " host " true' works from here without a password or a question."

/* Open MPI 4.1.4's and OpenSSH 9.2's words, but for the names. */
static void test_what_ssh_says_is_found_between_what_mpirun_says(void **state) {
    (void)state;
    assert_reason("\nssh: connect to host n7 port 22: Connection refused\r\n" ORTE,
                  "ssh: connect to host n7 port 22: Connection refused", LOGIN("n7"));
    assert_reason("[n1:88] plm:rsh: Warning: setpgid(93,93) failed in parent with errno=Permission denied(13)\n"
                  "Host key verification failed.\r\n" ORTE,
                  "Host key verification failed", LOGIN("HOST"));
    assert_reason("*****\nUse of this system without permission is not allowed.\n*****\n"
                  "Warning: Permanently added 'n7' (ED25519) to the list of known hosts.\r\n"
                  "me@n7: Permission denied (publickey,password).\r\n" ORTE,
                  "me@n7: Permission denied (publickey,password)", LOGIN("n7"));
    assert_reason("ssh: Could not resolve hostname n7: Name or service not known\r\n" ORTE,
                  "ssh: Could not resolve hostname n7: Name or service not known", LOGIN("n7"));
    assert_reason("Connection closed by 10.0.0.7 port 22\r\n", "Connection closed by 10.0.0.7 port 22",
                  LOGIN("10.0.0.7"));
    assert_reason("bash: line 1: orted: command not found\n" ORTE, "bash: line 1: orted: command not found",
                  "Have the same Open MPI on every host where a shell that ssh starts finds it ('ssh HOST which "
                  "orted').");
    /* Not ssh's: MPI has these words too. */
    assert_reason("[n1][[1,1],0][btl_tcp.c:9:f] recv() failed: Connection reset by peer (104)\n",
                  "[n1][[1,1],0][btl_tcp.c:9:f] recv() failed: Connection reset by peer (104)", "");
}

static void test_the_reason_of_a_failed_start_is_an_error_before_a_greeting(void **state) {
    (void)state;
    struct ls_launcher_reason reason;
    assert_reason("INFO:    Converting SIF file to temporary sandbox...\nFATAL:   no such image\nFATAL:   again\n",
                  "FATAL:   no such image", "");
    assert_reason("-----\n  \t\r\nhello\nworld\n", "hello", "");
    assert_reason("no newline", "no newline", "");
    assert_reason("an error\nlockstep: exit 3 (data): the shard is gone.\n",
                  "lockstep: exit 3 (data): the shard is gone", "");
    assert_false(ls_launcher_find_reason("", &reason));
    assert_false(ls_launcher_find_reason("----\n\nPrimary job  terminated normally, but 1 process returned\n"
                                         "a non-zero exit code.\n",
                                         &reason));
    char longest[1000];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    assert_true(ls_launcher_find_reason(longest, &reason));
    assert_int_equal(strlen(reason.text), sizeof reason.text - 1);
}

static void test_the_host_whose_ssh_ended_is_lost(void **state) {
    (void)state;
    struct ls_launcher_loss loss;
    assert_true(read_loss("--- attempt 3: mpirun x\nConnection to storm2 closed by remote host.\r\n" ORTE, &loss));
    assert_int_equal(loss.count, 0);
    assert_string_equal(loss.host, "storm2");
    assert_string_equal(loss.text,
                        "mpirun has lost a daemon, and ssh its connection. See that storm2 runs, and its network.");
    assert_true(read_loss("--- attempt 3: mpirun x\nTimeout, server storm2 not responding.\r\n" ORTE, &loss));
    assert_string_equal(loss.host, "storm2");
    /* An ssh that ends with the run's own end. */
    assert_false(read_loss("--- attempt 3: mpirun x\nConnection to storm2 closed by remote host.\r\n", &loss));
    assert_false(read_loss("--- attempt 3: mpirun x\nConnection to storm2 closed.\r\n" ORTE, &loss));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_loss_is_found_behind_any_output),
        cmocka_unit_test(test_a_rank_that_ended_too_early_to_be_named_is_told_from_a_launcher_that_cannot_work),
        cmocka_unit_test(test_a_launcher_tells_which_rank_ended_with_which_code),
        cmocka_unit_test(test_a_launcher_tells_which_rank_was_lost),
        cmocka_unit_test(test_what_ssh_says_is_found_between_what_mpirun_says),
        cmocka_unit_test(test_the_reason_of_a_failed_start_is_an_error_before_a_greeting),
        cmocka_unit_test(test_the_host_whose_ssh_ended_is_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
