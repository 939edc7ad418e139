/* One `lockstep run` after another, and what came of them. */
#define _GNU_SOURCE
#include "coordinator/bench.h"

#include "common/config.h"
#include "common/corpus.h"
#include "common/files.h"
#include "coordinator/run_directory.h"
#include "worker/gpus.h"
#include "worker/memory/cost.h"
#include "worker/model/model.h"
#include "worker/plan.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { OWN_SETTINGS = 12, SETTING_BYTES = 64, LOG_TAIL_BYTES = 4096, MEASUREMENTS = 5, RUN_NAME_BYTES = 32 };

/* One bench under way. */
struct bench {
    const struct ls_bench_options *options;
    struct ls_scaling *scaling;
    struct ls_scaling_samples samples[LS_SCALING_ROWS_MAX];
    struct ls_config *config; /* as given, vocab_size set */
    char *folder;
    int signals; /* signalfd */
};

/* Settings of a member: the user's, then ours. */
struct settings {
    const char *list[LS_BENCH_SETTINGS_MAX + OWN_SETTINGS];
    char own[OWN_SETTINGS][SETTING_BYTES];
    int count, own_count;
};

static void __attribute__((format(printf, 2, 3))) add_setting(struct settings *settings, const char *format, ...) {
    va_list arguments;
    char *text = settings->own[settings->own_count++];
    va_start(arguments, format);
    vsnprintf(text, SETTING_BYTES, format, arguments);
    va_end(arguments);
    settings->list[settings->count++] = text;
}

/* Short runs of a constant learning rate, without evaluations, untold to Prometheus, and with the one checkpoint that
 * every run ends with.
 * `global_batch` 0: the configuration's. */
static void make_settings(const struct bench *bench, int64_t global_batch, struct settings *settings) {
    const struct ls_bench_options *options = bench->options;
    memset(settings, 0, sizeof *settings);
    for (int i = 0; i < options->settings_count; i++) settings->list[settings->count++] = options->settings[i];
    add_setting(settings, "train.epochs=null");
    add_setting(settings, "train.steps=%lld", (long long)(options->warm_up_steps + options->steps));
    if (global_batch) add_setting(settings, "train.global_batch_size=%lld", (long long)global_batch);
    add_setting(settings, "lr_schedule.type=constant");
    add_setting(settings, "lr_schedule.warmup_steps=0");
    add_setting(settings, "evaluation.every_steps=0");
    add_setting(settings, "checkpoint.every_steps=0");
    add_setting(settings, "metrics.prometheus=null");
}

/* ---- before the first run ---- */

static enum ls_code load_config(struct bench *bench, struct ls_error *error) {
    struct ls_corpus *corpus;
    struct settings settings;
    make_settings(bench, 0, &settings);
    bench->config = calloc(1, sizeof *bench->config);
    if (!bench->config) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "bench: no memory for the configuration");
    enum ls_code code =
        ls_config_load(bench->options->config_path, settings.list, settings.count, bench->config, error);
    if (code != LS_OK) return code;
    code = ls_corpus_open(bench->config, &corpus, error);
    if (code != LS_OK) return code;
    code = ls_corpus_resolve_vocab(corpus, bench->config, error);
    ls_corpus_close(corpus);
    return code;
}

/* The rows and their batches. With --weak the configuration's batch is that of the first row. */
static enum ls_code make_rows(struct bench *bench, struct ls_error *error) {
    const struct ls_bench_options *options = bench->options;
    struct ls_scaling *scaling = bench->scaling;
    const int64_t batch = bench->config->train.global_batch_size, first = options->ranks[0];
    for (int i = 0; i < options->ranks_count; i++) {
        const int64_t ranks = options->ranks[i];
        if (options->weak && batch * ranks % first != 0)
            return ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                           "bench: %lld ranks cannot have the part of the batch that %lld ranks have: "
                           "train.global_batch_size is %lld. Choose a batch that %lld divides.",
                           (long long)ranks, (long long)first, (long long)batch, (long long)first);
        scaling->rows[i] =
            (struct ls_scaling_row){.ranks = ranks, .global_batch = options->weak ? batch * ranks / first : batch};
    }
    scaling->count = options->ranks_count;
    return LS_OK;
}

static enum ls_code make_folder(struct bench *bench, struct ls_error *error) {
    const struct ls_bench_options *options = bench->options;
    char time_text[32];
    const time_t now = time(NULL);
    struct tm parts;
    localtime_r(&now, &parts);
    strftime(bench->scaling->time, sizeof bench->scaling->time, "%Y-%m-%dT%H:%M:%S%z", &parts);
    strftime(time_text, sizeof time_text, "%Y%m%d-%H%M%S", &parts);
    if (options->folder)
        snprintf(bench->folder, 1024, "%s", options->folder);
    else
        snprintf(bench->folder, 1024, "runs/%s-bench-%s", bench->config->name, time_text);
    /* With "/ranks-00001-1" behind it, a run directory. */
    if ((options->folder ? strlen(options->folder) : 0) + RUN_NAME_BYTES >= LS_RUN_PATH_MAX)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "bench: the path of --output is longer than %d bytes: %.100s...",
                       LS_RUN_PATH_MAX - RUN_NAME_BYTES - 1, options->folder);
    struct stat there;
    if (stat(bench->folder, &there) == 0)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                       "bench: %s is there already, and nothing is overwritten. Name another folder with --output DIR.",
                       bench->folder);
    return ls_folder_make(bench->folder, LS_ERROR, error);
}

/* ---- one run ---- */

static void become_run(const struct bench *bench, const struct ls_scaling_row *row, const char *run_dir, int log) {
    const char *arguments[2 * (LS_BENCH_SETTINGS_MAX + OWN_SETTINGS) + 18];
    struct settings settings;
    char ranks[24];
    int count = 0;
    make_settings(bench, row->global_batch, &settings);
    snprintf(ranks, sizeof ranks, "%lld", (long long)row->ranks);
    arguments[count++] = "lockstep";
    arguments[count++] = "run";
    arguments[count++] = bench->options->config_path;
    arguments[count++] = "-n";
    arguments[count++] = ranks;
    arguments[count++] = "--run-dir";
    arguments[count++] = run_dir;
    if (bench->options->hostfile) {
        arguments[count++] = "--hostfile";
        arguments[count++] = bench->options->hostfile;
    }
    for (int i = 0; i < settings.count; i++) {
        arguments[count++] = "--set";
        arguments[count++] = settings.list[i];
    }
    arguments[count] = NULL;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setpgid(0, 0); /* signals reach it through us, once */
    const int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (nothing < 0 || dup2(nothing, 0) < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0) _exit(LS_ERROR);
    execv("/proc/self/exe", (char *const *)(uintptr_t)arguments);
    _exit(LS_ERROR);
}

/* Waits for the run, and hands signals on to it; *signal is the last one, 0 for none. Returns its exit code. */
static int await_run(const struct bench *bench, pid_t child, int *signal) {
    struct pollfd watched[2] = {{.fd = pidfd_open(child, 0), .events = POLLIN},
                                {.fd = bench->signals, .events = POLLIN}};
    int status = 0;
    while (waitpid(child, &status, WNOHANG) == 0) {
        if (poll(watched, 2, watched[0].fd < 0 ? 100 : -1) < 0 && errno != EINTR) break;
        struct signalfd_siginfo sent;
        while (read(bench->signals, &sent, sizeof sent) == (ssize_t)sizeof sent) {
            *signal = (int)sent.ssi_signo;
            kill(child, *signal);
        }
    }
    if (watched[0].fd >= 0) close(watched[0].fd);
    return WIFEXITED(status) ? WEXITSTATUS(status) : LS_ERROR;
}

/* The last line of a log, which repeats code and reason. */
static void read_reason(const char *log_path, char *reason) {
    char tail[LOG_TAIL_BYTES + 1] = "";
    FILE *log = fopen(log_path, "re");
    if (log) {
        if (fseek(log, -LOG_TAIL_BYTES, SEEK_END) != 0) rewind(log);
        tail[fread(tail, 1, LOG_TAIL_BYTES, log)] = 0;
        fclose(log);
    }
    size_t length = strlen(tail);
    while (length > 0 && tail[length - 1] == '\n') tail[--length] = 0;
    const char *line = strrchr(tail, '\n');
    snprintf(reason, LS_SCALING_TEXT_BYTES, "%.200s", line ? line + 1 : tail);
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *walk) {
    (void)status, (void)kind, (void)walk;
    return remove(path);
}

/* What a bench does not need: weights and state of a short run. */
static void remove_checkpoints(const char *run_dir) {
    char path[1200];
    static const char *const names[] = {"checkpoints", "final", "latest"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", run_dir, names[i]);
        nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    }
}

static void fail_row(struct ls_scaling_row *row, enum ls_code code, const char *reason) {
    row->code = code;
    snprintf(row->reason, sizeof row->reason, "%s", reason);
}

/* Runs row `i` once. LS_STOPPED or LS_REQUEUE: a signal ended it. */
static enum ls_code run_row(struct bench *bench, int i, int64_t round, struct ls_error *error) {
    struct ls_scaling_row *row = &bench->scaling->rows[i];
    char run_dir[1100], path[1200];
    struct ls_error wrong;
    snprintf(run_dir, sizeof run_dir, "%s/ranks-%05lld-%lld", bench->folder, (long long)row->ranks,
             (long long)round + 1);
    snprintf(path, sizeof path, "%s.log", run_dir);
    const int log = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (log < 0) return ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "bench: cannot write %s: %s", path, strerror(errno));
    if (!bench->options->quiet)
        fprintf(stderr, "bench: %lld rank%s, run %lld of %lld\n", (long long)row->ranks, row->ranks == 1 ? "" : "s",
                (long long)round + 1, (long long)bench->options->repeats);
    const pid_t child = fork();
    if (child == 0) become_run(bench, row, run_dir, log);
    close(log);
    if (child < 0) return ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "bench: cannot fork: %s", strerror(errno));
    int signal = 0;
    const int code = await_run(bench, child, &signal);
    if (signal != 0 && code != 0)
        return ls_fail(error, signal == SIGINT ? LS_STOPPED : LS_REQUEUE, LS_SCOPE_CALL,
                       "bench: stopped by %s in the run on %lld ranks. What was measured is in %s", strsignal(signal),
                       (long long)row->ranks, bench->folder);
    if (code != 0) {
        read_reason(path, row->reason);
        row->code = (enum ls_code)code;
        return LS_OK;
    }
    snprintf(path, sizeof path, "%s/metrics.jsonl", run_dir);
    const enum ls_code read = ls_scaling_read(path, bench->options->warm_up_steps, &bench->samples[i], &wrong);
    if (read != LS_OK) fail_row(row, read, wrong.text);
    remove_checkpoints(run_dir);
    return LS_OK;
}

/* ---- the prediction ---- */

static enum ls_code predict_row(const struct bench *bench, const struct ls_scaling_row *row,
                                const struct ls_config *config, struct ls_cost_machine *machine, struct ls_plan *plan,
                                struct ls_error *error) {
    const double link = bench->options->link_bytes_per_second;
    const int64_t per_node = row->ranks_per_node > 0 ? row->ranks_per_node : row->ranks;
    enum ls_code code = ls_plan_make(config, row->ranks, ls_gpus_expected(config), plan, error);
    if (code != LS_OK) return code;
    /* The best of a few: other work slows such short measurements, and nothing makes them faster than the machine is.
     */
    for (int i = 0; i < MEASUREMENTS && code == LS_OK; i++) {
        struct ls_cost_machine again;
        code = ls_cost_machine_measure((int)config->launcher.threads_per_rank, per_node,
                                       link > 0 ? link : LS_COST_NODE_LINK_STANDARD,
                                       config->train.micro_batch_size * config->data.sequence_length,
                                       config->model.hidden_size, ls_model_dtype_of(config), &again, error);
        if (code != LS_OK) break;
        if (i == 0) *machine = again;
        if (again.flops_per_second > machine->flops_per_second) machine->flops_per_second = again.flops_per_second;
        if (again.memory_bytes_per_second > machine->memory_bytes_per_second) {
            machine->memory_bytes_per_second = again.memory_bytes_per_second;
            machine->local_link_bytes_per_second = again.local_link_bytes_per_second;
        }
    }
    return code;
}

/* The first row that was measured gives how much longer computing takes than the plan's roofline says; with that the
 * others are predicted. */
static enum ls_code predict(struct bench *bench, struct ls_error *error) {
    struct ls_scaling *scaling = bench->scaling;
    double slowness = 0;
    enum ls_code code = LS_OK;
    struct ls_config *config = malloc(sizeof *config);
    if (!config) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "bench: no memory for the configuration");
    *config = *bench->config;
    for (int i = 0; i < scaling->count && code == LS_OK; i++) {
        struct ls_scaling_row *row = &scaling->rows[i];
        struct ls_cost_machine machine;
        struct ls_plan plan = {0};
        if (row->code != LS_OK) continue;
        config->train.global_batch_size = row->global_batch;
        code = predict_row(bench, row, config, &machine, &plan, error);
        if (code == LS_OK && slowness == 0) {
            const struct ls_cost raw = ls_cost_predict(&machine, row->ranks, &plan.work);
            slowness = (row->measured.step_seconds - row->measured.exposed_seconds) /
                       (raw.compute_seconds + raw.update_seconds);
            snprintf(scaling->machine, sizeof scaling->machine,
                     "%.90s; computing takes %.2f x the plan's, as on %lld rank%s", machine.name, slowness,
                     (long long)row->ranks, row->ranks == 1 ? "" : "s");
        }
        if (code == LS_OK) {
            machine.flops_per_second /= slowness;
            machine.memory_bytes_per_second /= slowness;
            const struct ls_cost cost = ls_cost_predict(&machine, row->ranks, &plan.work);
            row->predicts = true;
            row->predicted = (struct ls_scaling_times){.step_seconds = cost.step_seconds,
                                                       .compute_seconds = cost.compute_seconds + cost.update_seconds,
                                                       .exposed_seconds = cost.exposed_seconds};
            row->predicted_memory_bytes = ls_plan_bytes(&plan, machine.gpu);
        }
        ls_plan_release(&plan);
    }
    free(config);
    return code;
}

/* ---- the results ---- */

static enum ls_code write_face(const struct bench *bench, const char *name,
                               bool (*print)(const struct ls_scaling *, FILE *), struct ls_error *error) {
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", bench->folder, name);
    FILE *file = fopen(path, "we");
    const bool fine = file && print(bench->scaling, file);
    if ((file && fclose(file) != 0) || !fine)
        return ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "bench: cannot write %s: %s", path, strerror(errno));
    return LS_OK;
}

/* Draws one picture; without gnuplot there is none, which is said. */
static void draw(const struct bench *bench, bool png) {
    char path[1200];
    snprintf(path, sizeof path, "%s/plot.gnuplot", bench->folder);
    FILE *program = fopen(path, "we");
    if (!program) return;
    const bool fine = ls_scaling_print_plot(bench->scaling, png, program);
    fclose(program);
    const pid_t child = fine ? fork() : -1;
    if (child == 0) {
        const int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (chdir(bench->folder) != 0 || dup2(nothing, 1) < 0 || dup2(nothing, 2) < 0) _exit(LS_ERROR);
        execlp("gnuplot", "gnuplot", "plot.gnuplot", (char *)NULL);
        _exit(127);
    }
    int status = -1;
    if (child > 0) waitpid(child, &status, 0);
    if (status != 0 && !png)
        fprintf(stderr, "bench: no picture: gnuplot %s. The numbers are in %s/bench.csv.\n",
                child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 127 ? "is not installed (package gnuplot-nox)"
                                                                             : "failed",
                bench->folder);
    unlink(path);
}

static enum ls_code finish(struct bench *bench, struct ls_error *error) {
    struct ls_scaling *scaling = bench->scaling;
    struct ls_error wrong = {0};
    int good = 0;
    for (int i = 0; i < scaling->count; i++) {
        if (scaling->rows[i].code == LS_OK && bench->samples[i].count == 0)
            fail_row(&scaling->rows[i], LS_STOPPED, "was not run");
        if (scaling->rows[i].code != LS_OK) continue;
        ls_scaling_measure(&bench->samples[i], &scaling->rows[i]);
        good++;
    }
    ls_scaling_complete(scaling);
    enum ls_code code = predict(bench, &wrong);
    if (code == LS_OK) code = write_face(bench, "bench.json", ls_scaling_print_json, &wrong);
    if (code == LS_OK) code = write_face(bench, "bench.csv", ls_scaling_print_csv, &wrong);
    if (code == LS_OK && good > 0) draw(bench, false), draw(bench, true);
    if (code != LS_OK) return ls_fail(error, code, wrong.scope, "%s", wrong.text);
    for (int i = 0; i < scaling->count; i++)
        if (scaling->rows[i].code != LS_OK)
            return ls_fail(error, scaling->rows[i].code, LS_SCOPE_CALL, "bench: the run on %lld ranks failed: %s",
                           (long long)scaling->rows[i].ranks, scaling->rows[i].reason);
    return LS_OK;
}

/* ---- all together ---- */

static enum ls_code run_all(struct bench *bench, struct ls_error *error) {
    for (int64_t round = 0; round < bench->options->repeats; round++)
        for (int i = 0; i < bench->scaling->count; i++) {
            if (bench->scaling->rows[i].code != LS_OK) continue;
            const enum ls_code code = run_row(bench, i, round, error);
            if (code != LS_OK) return code;
        }
    return LS_OK;
}

enum ls_code ls_bench_run(const struct ls_bench_options *options, struct ls_scaling *scaling, char folder[1024],
                          struct ls_error *error) {
    struct bench bench = {.options = options, .scaling = scaling, .folder = folder, .signals = -1};
    *scaling = (struct ls_scaling){
        .weak = options->weak, .repeats = options->repeats, .warm_up_steps = options->warm_up_steps};
    enum ls_code code = load_config(&bench, error);
    if (code == LS_OK) code = make_rows(&bench, error);
    if (code == LS_OK) code = make_folder(&bench, error);
    if (code == LS_OK) {
        snprintf(scaling->name, sizeof scaling->name, "%s", bench.config->name);
        scaling->sequence_length = bench.config->data.sequence_length;
        sigset_t taken, before;
        sigemptyset(&taken);
        sigaddset(&taken, SIGINT);
        sigaddset(&taken, SIGTERM);
        sigaddset(&taken, SIGUSR1);
        sigprocmask(SIG_BLOCK, &taken, &before);
        bench.signals = signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK);
        code = run_all(&bench, error);
        const enum ls_code finished = finish(&bench, code == LS_OK ? error : NULL);
        if (code == LS_OK) code = finished;
        close(bench.signals);
        sigprocmask(SIG_SETMASK, &before, NULL);
    }
    for (int i = 0; i < LS_SCALING_ROWS_MAX; i++) ls_scaling_samples_release(&bench.samples[i]);
    free(bench.config);
    return code;
}
