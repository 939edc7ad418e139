/* mpirun: its command line, its start, and the end of its session. */
#define _GNU_SOURCE
#include "coordinator/launcher.h"

#include "common/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

/* ---- the command line ---- */

static char *put(struct ls_launch *launch, const char *format, va_list arguments) {
    size_t left = sizeof launch->text - launch->text_used;
    char *place = launch->text + launch->text_used;
    int length = vsnprintf(place, left, format, arguments);
    if (length < 0 || (size_t)length >= left) return NULL;
    launch->text_used += (size_t)length + 1;
    return place;
}

static bool argument(struct ls_launch *launch, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool argument(struct ls_launch *launch, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char *text = launch->arguments_count + 1 < LS_LAUNCH_ARGUMENTS_MAX ? put(launch, format, arguments) : NULL;
    va_end(arguments);
    if (text) launch->arguments[launch->arguments_count++] = text;
    return text != NULL;
}

static bool variable(struct ls_launch *launch, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool variable(struct ls_launch *launch, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char *text = launch->environment_count + 1 < LS_LAUNCH_ENVIRONMENT_MAX ? put(launch, format, arguments) : NULL;
    va_end(arguments);
    if (text) launch->environment[launch->environment_count++] = text;
    return text != NULL;
}

enum ls_code ls_launch_plan(const struct ls_launch_options *options, struct ls_launch *launch, struct ls_error *error) {
    memset(launch, 0, offsetof(struct ls_launch, text));
    launch->text_used = 0;
    int64_t threads = options->threads_per_rank;
    if (threads <= 0) threads = options->cores / options->ranks;
    if (threads < 1) threads = 1;
    bool crowded = options->ranks > options->cores;
    bool fits =
        argument(launch, "mpirun") && argument(launch, "-n") && argument(launch, "%lld", (long long)options->ranks);
    /* Open MPI binds each rank to one core by default, which its threads would then share. */
    fits = fits && argument(launch, "--bind-to") && argument(launch, "none");
    if (crowded)
        fits = fits && argument(launch, "--oversubscribe") && argument(launch, "--mca") &&
               argument(launch, "mpi_yield_when_idle") && argument(launch, "1");
    if (!options->transport_is_chosen)
        fits = fits && argument(launch, "--mca") && argument(launch, "pml") && argument(launch, "ob1") &&
               argument(launch, "--mca") && argument(launch, "btl") && argument(launch, "self,vader,tcp");
    for (int i = 0; fits && i < options->config->launcher.arguments_count; i++)
        fits = argument(launch, "%s", options->config->launcher.arguments[i]);
    fits = fits && argument(launch, "%s", options->worker);
    if (options->root)
        fits = fits && variable(launch, "OMPI_ALLOW_RUN_AS_ROOT=1") &&
               variable(launch, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1");
    fits = fits && variable(launch, "OMP_NUM_THREADS=%lld", (long long)threads) &&
           variable(launch, "OPENBLAS_NUM_THREADS=%lld", (long long)threads) &&
           variable(launch, "OMP_WAIT_POLICY=passive") &&
           variable(launch, "LOCKSTEP_COORDINATOR=%s", options->endpoint) && variable(launch, "LOCKSTEP_KEY_FILE=-") &&
           variable(launch, "LOCKSTEP_RUN_ID=%s", options->run_id) &&
           variable(launch, "LOCKSTEP_ATTEMPT=%lld", (long long)options->attempt);
    if (options->memory)
        fits = fits && variable(launch, "OMPI_MCA_orte_tmpdir_base=%s", options->memory) &&
               variable(launch, "OMPI_MCA_btl_vader_backing_directory=%s", options->memory);
    if (!fits)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "the launcher's command line is longer than %d bytes or %d arguments. Shorten "
                       "launcher.arguments.",
                       LS_LAUNCH_TEXT_MAX, LS_LAUNCH_ARGUMENTS_MAX);
    return LS_OK;
}

static size_t print_word(char *text, size_t size, const char *word) {
    bool plain = word[0] && strspn(word, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789@%+=:,./_-") ==
                                strlen(word);
    if (plain) return (size_t)snprintf(text, size, "%s ", word);
    size_t used = (size_t)snprintf(text, size, "'");
    for (; *word && used + 6 < size; word++)
        used += (size_t)snprintf(text + used, size - used, *word == '\'' ? "'\\''" : "%c", *word);
    return used + (size_t)snprintf(text + used, size - used, "' ");
}

void ls_launch_print(const struct ls_launch *launch, char *text, size_t size) {
    size_t used = 0;
    for (int i = 0; i < launch->environment_count && used < size; i++)
        used += print_word(text + used, size - used, launch->environment[i]);
    for (int i = 0; i < launch->arguments_count && used < size; i++)
        used += print_word(text + used, size - used, launch->arguments[i]);
    if (used > 0 && used < size) text[used - 1] = 0;
}

/* ---- what is on this host ---- */

int64_t ls_launch_cores(void) {
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
    if (count > 0) return count;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? online : 1;
}

enum ls_code ls_launch_find_worker(char *path, size_t size, struct ls_error *error) {
    char self[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length < 0)
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "cannot find this program's own path: %s", strerror(errno));
    self[length] = 0;
    *(strrchr(self, '/') + 1) = 0;
    if (snprintf(path, size, "%slockstep-worker", self) < (int)size && access(path, X_OK) == 0) return LS_OK;
    return ls_fail(error, LS_ERROR, LS_SCOPE_JOB,
                   "there is no lockstep-worker in %s, where this lockstep is. Build both ('make') or install both "
                   "('make install').",
                   self);
}

enum ls_code ls_launch_find_mpirun(struct ls_error *error) {
    const char *search = getenv("PATH");
    char path[PATH_MAX];
    while (search && *search) {
        size_t length = strcspn(search, ":");
        if (snprintf(path, sizeof path, "%.*s/mpirun", (int)length, search) < (int)sizeof path &&
            access(path, X_OK) == 0)
            return LS_OK;
        search += length + (search[length] == ':');
    }
    return ls_fail(error, LS_COMMUNICATION, LS_SCOPE_JOB,
                   "there is no mpirun in PATH, which starts the workers. Install Open MPI (Debian: apt-get install "
                   "openmpi-bin) or set PATH.");
}

/* ---- processes ---- */

/* In the new process: becomes the launcher. Only async-signal-safe calls but for putenv, which is safe as the parent
 * has one thread. */
static void become(const struct ls_launch *launch, int input, int output) {
    setsid();
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int number = 1; number < 32; number++) signal(number, SIG_DFL);
    dup2(input, STDIN_FILENO);
    dup2(output, STDOUT_FILENO);
    dup2(output, STDERR_FILENO);
    for (int i = 0; i < launch->environment_count; i++) putenv(launch->environment[i]);
    execvp(launch->arguments[0], launch->arguments);
    dprintf(STDERR_FILENO, "cannot start %s: %s\n", launch->arguments[0], strerror(errno));
    _exit(127);
}

enum ls_code ls_launch_start(const struct ls_launch *launch, const char *key_text, const char *log_path, pid_t *pid,
                             struct ls_error *error) {
    int input[2];
    int output = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (output < 0) return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "cannot open %s: %s", log_path, strerror(errno));
    if (pipe2(input, O_CLOEXEC)) {
        close(output);
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "cannot make a pipe: %s", strerror(errno));
    }
    pid_t child = fork();
    if (child == 0) become(launch, input[0], output);
    int cause = errno;
    close(output);
    /* A key fits into the pipe and we hold its other end, so this neither waits nor fails. */
    bool written = child > 0 && ls_write_all(input[1], key_text, strlen(key_text)) == 0;
    close(input[0]);
    close(input[1]);
    if (child < 0) return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "cannot start the launcher: %s", strerror(cause));
    *pid = child;
    if (!written) {
        kill(child, SIGKILL);
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "cannot hand the key to the launcher");
    }
    return LS_OK;
}

/* The session of process `pid`, or -1. */
static pid_t session_of(long pid) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return -1;
    ssize_t count = read(file, text, sizeof text - 1);
    close(file);
    if (count <= 0) return -1;
    text[count] = 0;
    /* The name in parentheses may hold anything; the fields follow the last parenthesis: state ppid pgrp session. */
    const char *fields = strrchr(text, ')');
    char state;
    int parent, group, session;
    if (!fields || sscanf(fields + 1, " %c %d %d %d", &state, &parent, &group, &session) != 4 || state == 'Z')
        return -1;
    return session;
}

int ls_launch_signal_session(pid_t leader, int signal_number) {
    int found = 0;
    DIR *processes = opendir("/proc");
    if (!processes) return 0;
    for (struct dirent *entry; (entry = readdir(processes));) {
        char *end;
        long pid = strtol(entry->d_name, &end, 10);
        if (*end || pid <= 1 || pid == getpid() || session_of(pid) != leader) continue;
        found++;
        if (signal_number) kill((pid_t)pid, signal_number);
    }
    closedir(processes);
    return found;
}

static bool wait_for_end(pid_t leader, double seconds) {
    for (double waited = 0;; waited += 0.05) {
        if (ls_launch_signal_session(leader, 0) == 0) return true;
        if (waited >= seconds) return false;
        nanosleep(&(struct timespec){0, 50000000}, NULL);
    }
}

void ls_launch_end_session(pid_t leader, double seconds) {
    if (wait_for_end(leader, seconds)) return;
    kill(leader, SIGTERM);
    if (wait_for_end(leader, 1)) return;
    ls_launch_signal_session(leader, SIGKILL);
    wait_for_end(leader, 1);
}
