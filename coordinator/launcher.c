/* mpirun and srun: their command lines, their start, and the end of their session. */
#define _GNU_SOURCE
#include "coordinator/launcher.h"

#include "common/files.h"
#include "coordinator/launcher_output.h"

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
#include <sys/statvfs.h>
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

/* What a command line is made of; false once it has become too long. */
struct making {
    const struct ls_launch_options *options;
    const struct ls_hosts *hosts;
    const int64_t *counts; /* ranks of each host, [hosts->count] */
    int64_t threads;       /* of a rank, 0: each finds its share of its host */
    bool bound, crowded;
    struct ls_launch *launch;
};

static bool add_texts(struct ls_launch *launch, const char (*texts)[LS_CONFIG_TEXT_SIZE], int count) {
    bool fits = true;
    for (int i = 0; fits && i < count; i++) fits = argument(launch, "%s", texts[i]);
    return fits;
}

static bool add_option(struct ls_launch *launch, const char *option, const char *value) {
    return argument(launch, "%s", option) && argument(launch, "%s", value);
}

/* The hosts with a rank: "a:2,b:1" with counts, else "a,b". */
static bool add_hosts(const struct making *making, const char *before, bool with_counts) {
    struct ls_launch *launch = making->launch;
    char *list = NULL;
    size_t size;
    FILE *out = open_memstream(&list, &size);
    if (!out) return false;
    for (int i = 0, used = 0; i < making->hosts->count; i++) {
        if (making->counts[i] == 0) continue;
        fprintf(out, "%s%s", used++ ? "," : "", making->hosts->list[i].name);
        if (with_counts) fprintf(out, ":%lld", (long long)making->counts[i]);
    }
    bool fits = fclose(out) == 0 && argument(launch, "%s%s", before, list);
    free(list);
    return fits;
}

/* The worker's own variables and those of the libraries below it. ssh would give them to no other host, and ranks would
 * compute or talk otherwise there. */
static bool is_carried(const char *variable) {
    static const char *const prefixes[] = {"LOCKSTEP_",
                                           "NCCL_",
                                           "UCX_",
                                           "OPENBLAS_",
                                           "ONEDNN_",
                                           "DNNL_",
                                           "OMP_",
                                           "GOMP_",
                                           "CUBLAS",
                                           "CUDNN_",
                                           "NVIDIA_TF32_OVERRIDE="};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        if (strncmp(variable, prefixes[i], strlen(prefixes[i])) == 0) return true;
    return false;
}

/* Names whose values mpirun has to carry to other hosts. */
static bool export_variables(const struct making *making) {
    struct ls_launch *launch = making->launch;
    bool fits = true;
    for (int i = 0; fits && i < launch->environment_count; i++) {
        if (strncmp(launch->environment[i], "OMPI_", 5) == 0) continue; /* mpirun's own: it does */
        fits = argument(launch, "-x") &&
               argument(launch, "%.*s", (int)strcspn(launch->environment[i], "="), launch->environment[i]);
    }
    for (char *const *entry = making->options->inherited; fits && entry && *entry; entry++) {
        const int length = (int)strcspn(*entry, "=");
        bool set = !is_carried(*entry);
        for (int i = 0; !set && i < launch->environment_count; i++)
            set = strncmp(launch->environment[i], *entry, (size_t)length + 1) == 0;
        if (!set) fits = argument(launch, "-x") && argument(launch, "%.*s", length, *entry);
    }
    return fits;
}

static bool make_mpirun(const struct making *making) {
    const struct ls_launch_options *options = making->options;
    struct ls_launch *launch = making->launch;
    const bool several = making->hosts->count > 0;
    bool fits =
        argument(launch, "mpirun") && argument(launch, "-n") && argument(launch, "%lld", (long long)options->ranks);
    if (several) fits = fits && argument(launch, "-host") && add_hosts(making, "", true);
    if (several && making->bound)
        fits = fits && argument(launch, "--map-by") && argument(launch, "slot:PE=%lld", (long long)making->threads);
    else if (several)
        fits = fits && add_option(launch, "--map-by", "slot");
    /* Open MPI binds each rank to one core by default, which its threads would then share. */
    fits = fits && add_option(launch, "--bind-to", making->bound ? "core" : "none");
    if (making->crowded)
        fits = fits && argument(launch, "--oversubscribe") && add_option(launch, "--mca", "mpi_yield_when_idle") &&
               argument(launch, "1");
    /* On one host shared memory is best, and looking for fast networks takes a second. */
    if (!options->allocation->elsewhere && !options->transport_is_chosen)
        fits = fits && add_option(launch, "--mca", "pml") && argument(launch, "ob1") &&
               add_option(launch, "--mca", "btl") && argument(launch, "self,vader,tcp");
    if (options->allocation->elsewhere) fits = fits && export_variables(making);
    for (int i = 0; fits && i < options->config->launcher.environment_count; i++)
        fits = add_option(launch, "-x", options->config->launcher.environment[i]);
    return fits;
}

static int64_t largest_count(const struct making *making) {
    int64_t largest = 0;
    for (int i = 0; i < making->hosts->count; i++)
        if (making->counts[i] > largest) largest = making->counts[i];
    return largest;
}

static bool make_srun(const struct making *making) {
    struct ls_launch *launch = making->launch;
    int used = 0;
    for (int i = 0; i < making->hosts->count; i++) used += making->counts[i] > 0;
    bool fits = argument(launch, "srun") && argument(launch, "--mpi=pmix") && argument(launch, "--nodes=%d", used) &&
                argument(launch, "--ntasks=%lld", (long long)making->options->ranks) &&
                argument(launch, "--ntasks-per-node=%lld", (long long)largest_count(making)) &&
                add_hosts(making, "--nodelist=", false) && argument(launch, "--distribution=block");
    /* srun does not take the job's --cpus-per-task over. */
    if (making->threads) fits = fits && argument(launch, "--cpus-per-task=%lld", (long long)making->threads);
    /* Standard input, where the key is, goes to rank 0 alone; a step shares what the batch script holds. */
    return fits && argument(launch, "--cpu-bind=%s", making->bound ? "cores" : "none") &&
           argument(launch, "--input=0") && argument(launch, "--kill-on-bad-exit=1") && argument(launch, "--overlap") &&
           argument(launch, "--export=ALL");
}

/* What the workers find in their environment. */
static bool set_variables(const struct making *making) {
    const struct ls_launch_options *options = making->options;
    struct ls_launch *launch = making->launch;
    bool fits = true;
    if (options->root)
        fits = variable(launch, "OMPI_ALLOW_RUN_AS_ROOT=1") && variable(launch, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1");
    if (making->threads)
        fits = fits && variable(launch, "OMP_NUM_THREADS=%lld", (long long)making->threads) &&
               variable(launch, "OPENBLAS_NUM_THREADS=%lld", (long long)making->threads);
    /* Threads sleep while they wait, but look some 40 us for the next loop before they do. */
    fits = fits && variable(launch, "OMP_WAIT_POLICY=passive") &&
           variable(launch, "GOMP_SPINCOUNT=%d", making->crowded ? 0 : 1000);
    if (options->endpoints)
        fits = fits && variable(launch, "LOCKSTEP_COORDINATOR=%s", options->endpoints) &&
               variable(launch, "LOCKSTEP_KEY_FILE=-") && variable(launch, "LOCKSTEP_RUN_ID=%s", options->run_id) &&
               variable(launch, "LOCKSTEP_ATTEMPT=%lld", (long long)options->attempt) &&
               variable(launch, "LOCKSTEP_CONNECT_SECONDS=%lld",
                        (long long)options->config->fault.connect_timeout_seconds);
    if (options->memory)
        fits = fits && variable(launch, "OMPI_MCA_orte_tmpdir_base=%s", options->memory) &&
               variable(launch, "OMPI_MCA_btl_vader_backing_directory=%s", options->memory);
    /* srun exports the whole environment, so NAME is there already. */
    for (int i = 0; fits && options->type == LS_LAUNCH_SRUN && i < options->config->launcher.environment_count; i++)
        if (strchr(options->config->launcher.environment[i], '='))
            fits = variable(launch, "%s", options->config->launcher.environment[i]);
    return fits;
}

/* Threads and binding; what is known of other hosts is that they are like this one. */
static void place(struct making *making) {
    const struct ls_launch_options *options = making->options;
    const struct ls_allocation *allocation = options->allocation;
    const bool several = making->hosts->count > 0;
    const int64_t largest = several ? largest_count(making) : options->ranks, here = largest > 0 ? largest : 1;
    making->threads = allocation->threads;
    if (making->threads == 0 && !allocation->elsewhere) {
        making->threads = options->cores / here;
        if (making->threads < 1) making->threads = 1;
    }
    making->crowded = here > options->cores;
    making->bound = several && allocation->threads > 0 && here * allocation->threads <= options->cores;
}

enum ls_code ls_launch_plan(const struct ls_launch_options *options, struct ls_launch *launch, struct ls_error *error) {
    memset(launch, 0, offsetof(struct ls_launch, text));
    launch->text_used = 0;
    const struct ls_allocation *allocation = options->allocation;
    int64_t *counts = calloc((size_t)allocation->hosts.count + 1, sizeof *counts);
    if (!counts) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for %d hosts", allocation->hosts.count);
    struct making making = {.options = options, .hosts = &allocation->hosts, .counts = counts, .launch = launch};
    enum ls_code code = LS_OK;
    if (allocation->hosts.count > 0)
        code = ls_hosts_deal(&allocation->hosts, options->ranks, allocation->ranks_per_node, options->excluded,
                             options->excluded_count, counts, error);
    if (code == LS_OK) {
        place(&making);
        bool fits = set_variables(&making) &&
                    (options->type == LS_LAUNCH_SRUN ? make_srun(&making) : make_mpirun(&making)) &&
                    add_texts(launch, options->config->launcher.arguments, options->config->launcher.arguments_count) &&
                    add_texts(launch, options->config->launcher.wrapper, options->config->launcher.wrapper_count) &&
                    argument(launch, "%s", options->worker);
        if (options->worker_argument) fits = fits && argument(launch, "%s", options->worker_argument);
        if (!fits)
            code = ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                           "the launcher's command line is longer than %d bytes or %d arguments. Shorten "
                           "launcher.arguments, .wrapper and .environment.",
                           LS_LAUNCH_TEXT_MAX, LS_LAUNCH_ARGUMENTS_MAX);
    }
    free(counts);
    return code;
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

bool ls_launch_has_program(const char *program) {
    const char *search = getenv("PATH");
    char path[PATH_MAX];
    while (search && *search) {
        size_t length = strcspn(search, ":");
        if (snprintf(path, sizeof path, "%.*s/%s", (int)length, search, program) < (int)sizeof path &&
            access(path, X_OK) == 0)
            return true;
        search += length + (search[length] == ':');
    }
    return false;
}

/* Open MPI 4.1: two segments of 4 MiB that PMIx allocates in full, and one of each rank. What does not fit ends ranks
 * by SIGBUS, or lets them wait for ever. */
enum { MEMORY_MIB_HOST = 16, MEMORY_MIB_RANK = 4 };

bool ls_launch_has_memory(int64_t ranks, char *why, size_t size) {
    struct statvfs memory;
    if (statvfs("/dev/shm", &memory) || access("/dev/shm", W_OK | X_OK)) {
        snprintf(why, size, "/dev/shm cannot be written: %s", strerror(errno));
        return false;
    }
    const double free_mib = (double)memory.f_bavail * (double)memory.f_frsize / (1 << 20);
    const int64_t wanted_mib = MEMORY_MIB_HOST + MEMORY_MIB_RANK * ranks;
    if (memory.f_blocks == 0 || free_mib >= (double)wanted_mib) return true; /* of 0: without a limit */
    snprintf(why, size, "/dev/shm has %.1f MiB free, and MPI may take %lld there", free_mib, (long long)wanted_mib);
    return false;
}

enum ls_code ls_launch_find_mpirun(struct ls_error *error) {
    if (ls_launch_has_program("mpirun")) return LS_OK;
    return ls_fail(error, LS_COMMUNICATION, LS_SCOPE_JOB,
                   "there is no mpirun in PATH, which starts the workers. Install Open MPI (Debian: apt-get install "
                   "openmpi-bin) or set PATH.");
}

/* ---- processes ---- */

/* In the new process: becomes the launcher, and says on `led` that it leads a session. Only async-signal-safe calls but
 * for putenv, which is safe as the parent has one thread. */
static void become(const struct ls_launch *launch, int input, int output, int led) {
    setsid();
    (void)!write(led, "", 1);
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

/* Names the attempt and the command. */
static void write_header(const struct ls_launch *launch, int output) {
    static const char name[] = "LOCKSTEP_ATTEMPT=";
    char command[4096];
    const char *attempt = "0";
    for (int i = 0; i < launch->environment_count; i++)
        if (strncmp(launch->environment[i], name, sizeof name - 1) == 0)
            attempt = launch->environment[i] + sizeof name - 1;
    ls_launch_print(launch, command, sizeof command);
    dprintf(output, "%s%s: %s\n", LS_LAUNCHER_HEADER, attempt, command);
}

/* Both pipes or none. */
static int make_pipes(int first[2], int second[2]) {
    if (pipe2(first, O_CLOEXEC)) return -1;
    if (pipe2(second, O_CLOEXEC) == 0) return 0;
    const int cause = errno;
    close(first[0]);
    close(first[1]);
    errno = cause;
    return -1;
}

/* Whoever ends the session looks for its processes: before the new one leads it, none would be found. */
static void await_session(int led) {
    char one;
    while (read(led, &one, 1) < 0 && errno == EINTR)
        ;
}

enum ls_code ls_launch_start(const struct ls_launch *launch, const char *key_text, const char *log_path, pid_t *pid,
                             struct ls_error *error) {
    int input[2], led[2];
    int output = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (output < 0) return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "cannot open %s: %s", log_path, strerror(errno));
    write_header(launch, output);
    if (make_pipes(input, led)) {
        close(output);
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "cannot make a pipe: %s", strerror(errno));
    }
    pid_t child = fork();
    if (child == 0) become(launch, input[0], output, led[1]);
    int cause = errno;
    close(output);
    close(led[1]);
    if (child > 0) await_session(led[0]);
    close(led[0]);
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

/* The name of the program that the process runs. */
static bool runs_program(pid_t pid, const char *program) {
    char path[64], name[32] = "";
    snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    ssize_t count = read(file, name, sizeof name - 1);
    close(file);
    name[count > 0 ? count : 0] = 0;
    name[strcspn(name, "\n")] = 0;
    return strcmp(name, program) == 0;
}

void ls_launch_ask_end(pid_t leader) {
    const bool srun = runs_program(leader, "srun");
    kill(leader, srun ? SIGINT : SIGTERM);
    if (!srun) return;
    /* Two signals at once would be one; within a second they mean: end the step. */
    nanosleep(&(struct timespec){0, 50000000}, NULL);
    kill(leader, SIGINT);
}

void ls_launch_end_session(pid_t leader, double seconds) {
    if (wait_for_end(leader, seconds)) return;
    ls_launch_ask_end(leader);
    if (wait_for_end(leader, 1)) return;
    ls_launch_signal_session(leader, SIGKILL);
    wait_for_end(leader, 1);
}
