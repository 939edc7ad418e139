/* lockstep-worker: the MPI program. Arguments, signals, MPI, and the way out. */
#define _GNU_SOURCE
#include "common/files.h"
#include "common/keys.h"
#include "common/leftovers.h"
#include "common/log.h"
#include "common/progress.h"
#include "worker/comm/comm.h"
#include "worker/examine.h"
#include "worker/placement.h"
#include "worker/worker.h"

#include <argp.h>
#include <errno.h>
#include <locale.h>
#include <math.h>
#include <mpi.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A rank that is not the voice gives rank 0 so long to tell the coordinator why everybody leaves. */
enum { VOICE_MILLISECONDS = 1000, PARENT_CHECK_MILLISECONDS = 1000, LEFTOVERS_SECONDS = 3 };

struct arguments {
    const char *coordinator, *key;
    double examine_seconds; /* not NAN: examine the cluster instead of training */
    char clean_run[17];     /* not "": only remove what its attempts before `clean_attempt` left on this host */
    int64_t clean_attempt;
};

enum { OPTION_CLEAN = 256 };

static atomic_bool save_wished;
static _Atomic(struct ls_progress_record *) own_record; /* NULL: none yet */

static void on_end_signal(int signal_number) {
    (void)signal_number;
    atomic_store(&save_wished, true);
    struct ls_progress_record *record = atomic_load(&own_record);
    if (record) atomic_store_explicit(&record->asked_to_end, 1, memory_order_relaxed);
}

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    struct arguments *arguments = state->input;
    char *end;
    switch (key) {
    case 'c': arguments->coordinator = argument; return 0;
    case 'k': arguments->key = argument; return 0;
    case 'e':
        arguments->examine_seconds = strtod(argument, &end);
        if (end == argument || *end || !(arguments->examine_seconds >= 0 && arguments->examine_seconds <= 3600))
            argp_error(state, "--examine takes a number of seconds from 0 to 3600, not '%s'", argument);
        return 0;
    case OPTION_CLEAN: {
        int length = 0;
        long long attempt = 0;
        if (sscanf(argument, "%16[0-9a-f]:%lld%n", arguments->clean_run, &attempt, &length) != 2 || argument[length] ||
            strlen(arguments->clean_run) != 16 || attempt < 1)
            argp_error(state, "--clean takes RUN-ID:ATTEMPT, not '%s'", argument);
        arguments->clean_attempt = attempt;
        return 0;
    }
    case ARGP_KEY_ARG: argp_error(state, "'%s' is not expected: there are only options", argument); return 0;
    case ARGP_KEY_END:
        if (!isnan(arguments->examine_seconds) || arguments->clean_run[0]) return 0;
        if (!arguments->coordinator || strncmp(arguments->coordinator, "tcp://", 6) != 0)
            argp_error(state, "no coordinator: give --coordinator tcp://HOST:PORT or set LOCKSTEP_COORDINATOR");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"coordinator", 'c', "tcp://HOST:PORT[,...]", 0,
     "The coordinator; its addresses are tried in turn (LOCKSTEP_COORDINATOR)", 0},
    {"key", 'k', "FILE", 0,
     "The run's worker key, RUN/keys/worker.key (LOCKSTEP_KEY_FILE). Only rank 0 reads it; without one, or with '-', "
     "it "
     "reads the key's text from standard input",
     0},
    {"examine", 'e', "SECONDS", 0, "Measure the hosts and what is between them instead of training (lockstep doctor)",
     0},
    {"clean", OPTION_CLEAN, "RUN-ID:ATTEMPT", 0,
     "End the processes and remove the shared memory that attempts before this one left on this host, nothing else", 0},
    {0},
};

const char *argp_program_version = "lockstep-worker " LS_VERSION;

static void set_signals(void) {
    static const int ignored[] = {SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGPIPE};
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) signal(ignored[i], SIG_IGN);
    struct sigaction action = {.sa_handler = on_end_signal, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
}

static void sleep_milliseconds(long milliseconds) {
    struct timespec left = {.tv_sec = milliseconds / 1000, .tv_nsec = milliseconds % 1000 * 1000000};
    while (nanosleep(&left, &left) && errno == EINTR) {
    }
}

/* When the launcher that started this rank is gone, nobody ends ranks that wait for each other: each leaves by itself.
 */
static void *watch_parent(void *argument) {
    const pid_t parent = (pid_t)(intptr_t)argument;
    for (;;) {
        sleep_milliseconds(PARENT_CHECK_MILLISECONDS);
        if (getppid() == parent) continue;
        ls_log(LS_LOG_ERROR, "the launcher of this rank (process %d) is gone", (int)parent);
        _exit(LS_COMMUNICATION);
    }
    return NULL;
}

static void start_watching_parent(void) {
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (!pthread_create(&thread, NULL, watch_parent, (void *)(intptr_t)getppid())) pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* The attempt this process was started for, 0: not known. */
static int64_t own_attempt(void) {
    const char *attempt = getenv("LOCKSTEP_ATTEMPT");
    return attempt ? strtoll(attempt, NULL, 10) : 0;
}

/* Before MPI_Init: what earlier attempts left on this host holds memory and devices that this one needs. */
static void remove_leftovers(const struct ls_placement *placement) {
    const char *run_id = getenv("LOCKSTEP_RUN_ID");
    if (!run_id || placement->local_rank != 0) return;
    const struct ls_leftovers left = ls_leftovers_remove(run_id, own_attempt(), LEFTOVERS_SECONDS);
    if (left.processes)
        ls_log(LS_LOG_WARNING, "%d processes of earlier attempts were still here and were killed", left.processes);
}

/* All that a process of a sweep does. */
static int clean(const struct arguments *arguments) {
    const struct ls_leftovers left =
        ls_leftovers_remove(arguments->clean_run, arguments->clean_attempt, LEFTOVERS_SECONDS);
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    printf("%s: %d processes ended, %d files removed from /dev/shm\n", host, left.processes, left.files);
    if (!left.stuck_pid) return LS_OK;
    printf("%s: process %lld does not end although it was killed\n", host, (long long)left.stuck_pid);
    return LS_ERROR;
}

/* Before MPI_Init, so that a rank that hangs there is seen. NULL when the launcher did not say enough: opened later. */
static struct ls_progress *open_progress(const struct ls_placement *placement) {
    const char *run_id = getenv("LOCKSTEP_RUN_ID");
    if (!run_id || !own_attempt() || placement->local_size == 0) return NULL;
    struct ls_progress *progress;
    struct ls_error error;
    if (ls_progress_open(run_id, own_attempt(), placement->local_size, &progress, &error)) {
        ls_log(LS_LOG_WARNING, "%s", error.text);
        return NULL;
    }
    struct ls_progress_record *record = ls_progress_record(progress, placement->local_rank);
    ls_progress_enter(record);
    ls_progress_mark(record, LS_PHASE_MPI_INIT, 0, 0, 0);
    atomic_store(&own_record, record);
    return progress;
}

/* The text of a key from standard input, to its end. */
static enum ls_code read_key(char text[LS_KEY_TEXT_MAX], struct ls_error *error) {
    size_t used = 0;
    if (isatty(STDIN_FILENO))
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_JOB,
            "no key: give --key RUN/keys/worker.key, set LOCKSTEP_KEY_FILE, or hand its text to standard input");
    for (;;) {
        ssize_t count = read(STDIN_FILENO, text + used, LS_KEY_TEXT_MAX - 1 - used);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) break;
        used += (size_t)count;
        if (used == LS_KEY_TEXT_MAX - 1) break;
    }
    text[used] = 0;
    if (used > 0) return LS_OK;
    return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                   "no key: standard input is empty. Give --key RUN/keys/worker.key or set LOCKSTEP_KEY_FILE");
}

/* Not by MPI_Finalize, which would wait for ranks that wait for us. */
static _Noreturn void fail(int rank, bool shared, const struct ls_error *error) {
    if (rank == 0 || !shared) ls_report_exit(error->code, error->text);
    if (rank != 0) sleep_milliseconds(VOICE_MILLISECONDS);
    _exit(error->code);
}

/* From a watchdog's thread, when the training thread hangs in what cannot be aborted. What is this rank's alone it says
 * itself. */
static void leave(const struct ls_error *error) {
    const bool own = error->scope == LS_SCOPE_RANK;
    struct ls_progress_record *record = atomic_load(&own_record);
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (own && record) {
        atomic_store_explicit(&record->exit_code, (uint64_t)error->code, memory_order_relaxed);
        ls_progress_mark(record, LS_PHASE_EXIT, atomic_load_explicit(&record->step, memory_order_relaxed), 0, 0);
    }
    fail(rank, rank != 0 && !own, error);
}

/* Creates communicator and worker; everything after MPI_Init until the run begins. */
static enum ls_code create_worker(const struct arguments *arguments, const struct ls_placement *placement,
                                  struct ls_progress *progress, char key_text[LS_KEY_TEXT_MAX], struct ls_comm **comm,
                                  struct ls_worker **worker, struct ls_error *error) {
    enum ls_code code = ls_comm_create_mpi(comm, error);
    if (code) return code;
    if (progress) {
        struct ls_progress_record *record = ls_progress_record(progress, placement->local_rank);
        atomic_store_explicit(&record->world_rank, (uint64_t)ls_comm_rank(*comm), memory_order_relaxed);
        ls_progress_mark(record, LS_PHASE_JOIN, 0, 0, 0);
        ls_comm_set_watch(*comm, record);
    }
    code = ls_placement_check(placement, ls_comm_size(*comm), error);
    if (code) return code;
    const bool from_input = !arguments->key || strcmp(arguments->key, "-") == 0;
    struct ls_error own = {.code = LS_OK};
    if (from_input && ls_comm_rank(*comm) == 0) read_key(key_text, &own);
    code = ls_comm_broadcast(*comm, &own, sizeof own, 0, error);
    if (!code && own.code) {
        *error = own;
        code = own.code;
    }
    if (code) return code;
    const char *patience = getenv("LOCKSTEP_CONNECT_SECONDS");
    const struct ls_worker_options worker_options = {.endpoints = arguments->coordinator,
                                                     .key_path = from_input ? NULL : arguments->key,
                                                     .key_text = from_input ? key_text : NULL,
                                                     .attempt = own_attempt(),
                                                     .comm = *comm,
                                                     .logs = true,
                                                     .reports = true,
                                                     .progress = progress,
                                                     .leave = leave,
                                                     .connect_seconds = patience ? strtod(patience, NULL) : 0,
                                                     .save_wished = &save_wished};
    return ls_worker_create(&worker_options, worker, error);
}

/* Ranks of nothing but an examination. */
static int examine(double seconds, const struct ls_placement *placement) {
    struct ls_error error = {.code = LS_OK};
    int size = 0;
    if (MPI_Init(NULL, NULL)) return LS_COMMUNICATION;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    enum ls_code code = ls_placement_check(placement, size, &error);
    if (!code) code = ls_examine(seconds, stdout, &error);
    if (code) ls_report_exit(code, error.text);
    MPI_Finalize();
    return code;
}

int main(int argc, char **argv) {
    ls_files_occupy_standard();
    struct arguments arguments = {
        .coordinator = getenv("LOCKSTEP_COORDINATOR"), .key = getenv("LOCKSTEP_KEY_FILE"), .examine_seconds = NAN};
    const struct argp argp = {options, parse_option, NULL, "One rank of a training run, started by mpirun or srun.",
                              NULL,    NULL,         NULL};
    argp_err_exit_status = LS_USAGE;
    argp_parse(&argp, argc, argv, 0, NULL, &arguments);
    if (arguments.clean_run[0]) return clean(&arguments);
    struct ls_placement placement;
    ls_placement_find(getenv, &placement);
    if (!isnan(arguments.examine_seconds)) return examine(arguments.examine_seconds, &placement);
    set_signals();
    if (placement.launcher) start_watching_parent();
    remove_leftovers(&placement);
    struct ls_progress *progress = open_progress(&placement);
    int level;
    if (MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level)) return LS_COMMUNICATION;
    setlocale(LC_ALL, "C"); /* a library may have taken one over whose numbers have a comma */

    char key_text[LS_KEY_TEXT_MAX];
    struct ls_comm *comm = NULL;
    struct ls_worker *worker = NULL;
    struct ls_error error = {.code = LS_OK};
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (create_worker(&arguments, &placement, progress, key_text, &comm, &worker, &error))
        fail(rank, rank != 0, &error);
    enum ls_code code = ls_worker_run(worker, &error);
    ls_worker_mark_exit(worker, code);
    if (code != LS_OK && code != LS_REQUEUE && code != LS_STOPPED)
        fail(rank, ls_worker_error_is_shared(worker), &error);
    if (code && rank == 0) ls_report_exit(code, error.text);
    ls_worker_destroy(worker);
    atomic_store(&own_record, NULL);
    ls_progress_close(progress);
    ls_comm_destroy(comm);
    MPI_Finalize();
    /* No coordinator looks after the memory of other hosts. */
    const char *run_id = getenv("LOCKSTEP_RUN_ID");
    if (run_id && placement.local_rank == 0) ls_leftovers_remove_memory(run_id, own_attempt() + 1);
    return code;
}
