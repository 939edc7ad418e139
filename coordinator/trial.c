/* Starting, waiting, reading. */
#define _GNU_SOURCE
#include "coordinator/trial.h"

#include "common/files.h"
#include "common/wire.h"
#include "coordinator/launcher_output.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { OUTPUT_BYTES_MAX = 16 << 20, CHOOSE_PATIENCE_SECONDS = 60 };

static double now_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* ---- what was printed ---- */

static bool grow(void **list, int count, size_t size) {
    if (count & (count - 1)) return true; /* room for the next power of two */
    void *grown = realloc(*list, (size_t)(count ? 2 * count : 1) * size);
    if (grown) *list = grown;
    return grown != NULL;
}

static bool parse_line(const char *line, struct ls_trial *trial) {
    struct ls_trial_host host = {.ranks = 0};
    struct ls_trial_pair pair;
    int number, hosts;
    if (sscanf(line, "examine ranks %d hosts %d", &trial->ranks, &hosts) == 2) return true;
    if (sscanf(line, "allreduce mbps %lf", &trial->allreduce_mbps) == 1) return true;
    if (sscanf(line, "host %d %255s ranks %d clock_us %lf mbps %lf", &number, host.name, &host.ranks, &host.clock_us,
               &host.mbps) == 5) {
        if (number != trial->hosts_count || !grow((void **)&trial->hosts, trial->hosts_count, sizeof host))
            return false;
        trial->hosts[trial->hosts_count++] = host;
    } else if (sscanf(line, "pair %d %d latency_us %lf mbps %lf", &pair.first, &pair.second, &pair.latency_us,
                      &pair.mbps) == 4) {
        bool known = pair.first >= 0 && pair.second > pair.first && pair.second < trial->hosts_count;
        if (!known || !grow((void **)&trial->pairs, trial->pairs_count, sizeof pair)) return false;
        trial->pairs[trial->pairs_count++] = pair;
    }
    return true; /* lines of the launcher itself may stand between */
}

bool ls_trial_parse(const char *text, struct ls_trial *trial) {
    for (const char *line = text; *line;) {
        const size_t length = strcspn(line, "\n");
        char copy[512];
        if (length == 3 && memcmp(line, "end", 3) == 0) return trial->ranks > 0;
        if (length < sizeof copy) {
            memcpy(copy, line, length);
            copy[length] = 0;
            if (!parse_line(copy, trial)) return false;
        }
        line += length + (line[length] == '\n');
    }
    return false;
}

void ls_trial_release(struct ls_trial *trial) {
    free(trial->hosts);
    free(trial->pairs);
    *trial = (struct ls_trial){0};
}

/* ---- the processes ---- */

/* The signals that end this process, and have to end what it has started in another session too. Those that are held
 * back already wait for somebody else. */
static sigset_t ending_signals(void) {
    static const int numbers[] = {SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};
    sigset_t set, held;
    sigemptyset(&set);
    sigprocmask(SIG_BLOCK, NULL, &held);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct sigaction action;
        if (sigismember(&held, numbers[i]) || sigaction(numbers[i], NULL, &action)) continue;
        if (action.sa_handler != SIG_IGN) sigaddset(&set, numbers[i]);
    }
    return set;
}

/* Exit status, 128 + signal, or -1 when it did not end in time, or one of `ending` came, and was ended. */
static int wait_for_end(pid_t leader, double seconds, const sigset_t *ending, int *came) {
    const double end = now_seconds() + seconds;
    int status;
    while (waitpid(leader, &status, WNOHANG) == 0) {
        const int number = sigtimedwait(ending, NULL, &(struct timespec){0, 10000000});
        if (number > 0) *came = number;
        if (number > 0 || now_seconds() > end) {
            ls_launch_end_session(leader, 0);
            waitpid(leader, &status, 0);
            return -1;
        }
    }
    ls_launch_signal_session(leader, SIGKILL);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static enum ls_code run_launch(const struct ls_launch *launch, double seconds, char **text, int *status,
                               struct ls_error *error) {
    const char *folder = getenv("TMPDIR");
    char path[512];
    size_t count;
    pid_t leader;
    snprintf(path, sizeof path, "%s/lockstep-trial-XXXXXX", folder && folder[0] == '/' ? folder : "/tmp");
    int file = mkstemp(path);
    if (file < 0) return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "cannot make %s: %s", path, strerror(errno));
    close(file);
    const sigset_t ending = ending_signals();
    sigset_t before;
    int came = 0;
    sigprocmask(SIG_BLOCK, &ending, &before);
    enum ls_code code = ls_launch_start(launch, "", path, &leader, error);
    if (code == LS_OK) *status = wait_for_end(leader, seconds, &ending, &came);
    if (code == LS_OK) code = ls_file_read(path, OUTPUT_BYTES_MAX, text, &count, LS_ERROR, error);
    unlink(path);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (came) raise(came);
    return code;
}

enum ls_code ls_trial_run(const struct ls_launch_options *options, double examine_seconds, double patience_seconds,
                          struct ls_trial *trial, struct ls_error *error) {
    struct ls_launch_options own = *options;
    struct ls_launcher_reason reason;
    char argument[32], *text = NULL;
    int status = 0;
    *trial = (struct ls_trial){0};
    struct ls_launch *launch = malloc(sizeof *launch);
    if (!launch) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory to start the launcher");
    snprintf(argument, sizeof argument, "--examine=%g", examine_seconds);
    own.worker_argument = argument;
    own.endpoints = NULL;
    enum ls_code code = ls_launch_plan(&own, launch, error);
    const double begin = now_seconds();
    if (code == LS_OK) code = run_launch(launch, examine_seconds + patience_seconds, &text, &status, error);
    trial->seconds = now_seconds() - begin;
    free(launch);
    if (code != LS_OK) return code;
    const bool complete = ls_trial_parse(text, trial);
    if ((!complete || status != 0) && ls_launcher_find_reason(text, &reason))
        ls_wire_make_plain(trial->words, sizeof trial->words, reason.text);
    free(text);
    if (complete && status == 0 && trial->ranks == options->ranks) return LS_OK;
    if (status < 0)
        return ls_fail(error, LS_COMMUNICATION, LS_SCOPE_JOB, "the ranks did not find each other within %.0f s (%s)",
                       examine_seconds + patience_seconds, trial->words[0] ? trial->words : "it said nothing");
    if (complete && trial->ranks != options->ranks)
        return ls_fail(error, LS_COMMUNICATION, LS_SCOPE_JOB, "MPI sees %d rank%s where %lld were started",
                       trial->ranks, trial->ranks == 1 ? "" : "s", (long long)options->ranks);
    return ls_fail(error, LS_COMMUNICATION, LS_SCOPE_JOB, "it ended with status %d (%s)", status,
                   trial->words[0] ? trial->words : "it said nothing");
}

/* ---- which launcher ---- */

static enum ls_code try_launcher(const struct ls_launch_options *options, enum ls_launcher_type type,
                                 struct ls_trial *trial, struct ls_error *error) {
    const char *program = type == LS_LAUNCH_SRUN ? "srun" : "mpirun";
    if (!ls_launch_has_program(program)) return ls_fail(error, LS_COMMUNICATION, LS_SCOPE_JOB, "it is not in PATH");
    /* Two ranks show whether MPI and launcher speak to each other; on two hosts where there are two. */
    struct ls_allocation allocation = *options->allocation;
    struct ls_launch_options own = *options;
    if (allocation.hosts.count > 1) allocation.ranks_per_node = 1;
    own.allocation = &allocation;
    own.type = type;
    own.ranks = options->ranks < 2 ? options->ranks : 2;
    return ls_trial_run(&own, 0, CHOOSE_PATIENCE_SECONDS, trial, error);
}

enum ls_code ls_trial_choose(const struct ls_launch_options *options, enum ls_launcher_type *type, char why[512],
                             struct ls_error *error) {
    struct ls_trial trial = {0};
    struct ls_error srun, mpirun;
    enum ls_code code = try_launcher(options, LS_LAUNCH_SRUN, &trial, &srun);
    const int ranks = trial.ranks;
    const double seconds = trial.seconds;
    ls_trial_release(&trial);
    if (code == LS_OK) {
        *type = LS_LAUNCH_SRUN;
        snprintf(why, 512, "srun --mpi=pmix (%d rank%s found each other in %.1f s)", ranks, ranks == 1 ? "" : "s",
                 seconds);
        return LS_OK;
    }
    code = try_launcher(options, LS_LAUNCH_MPIRUN, &trial, &mpirun);
    ls_trial_release(&trial);
    if (code == LS_OK) {
        *type = LS_LAUNCH_MPIRUN;
        snprintf(why, 512, "mpirun, because srun --mpi=pmix does not work here: %.400s", srun.text);
        return LS_OK;
    }
    return ls_fail(
        error, LS_COMMUNICATION, LS_SCOPE_JOB,
        "in this Slurm job neither srun --mpi=pmix nor mpirun starts ranks that find each other. srun: %.300s. "
        "mpirun: %.300s. Look at 'lockstep doctor' within the job.",
        srun.text, mpirun.text);
}
