/* Prometheus' text format: a table of gauges and counters, and one histogram. */
#define _GNU_SOURCE
#include "coordinator/prometheus.h"

#include "common/files.h"
#include "common/log.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Upper ends of the histogram's buckets, in seconds. */
static const double BUCKETS[] = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5,
                                 1,     2,     5,     10,   20,   50,   100, 200, 500};
enum { BUCKETS_COUNT = sizeof BUCKETS / sizeof *BUCKETS };
static const double PAUSE_SECONDS = 1; /* between two files that only steps ask for */

struct ls_prometheus {
    struct ls_run_facts facts;
    char run[NAME_MAX + 1]; /* as it is; escaped where it becomes a label */
    char path[PATH_MAX], beside[PATH_MAX + 32];
    bool failure_told;
    double written; /* CLOCK_MONOTONIC; 0: never */
    double begun;   /* CLOCK_REALTIME, like the other times below */

    bool stepped; /* the next four are of the newest step */
    struct ls_step_report report;
    int64_t step, samples;
    double step_time;
    bool validated;
    double validation_loss, bits_per_byte; /* the latter 0: not known */
    int64_t saved_step;                    /* -1: none */
    double saved_time;

    /* Since this coordinator began. */
    uint64_t buckets[BUCKETS_COUNT + 1];
    double step_seconds, compute_seconds, exposed_seconds, data_seconds, wait_seconds, checkpoint_seconds, tokens;
    int64_t steps, skipped, faults, stalls, saves;
    int exit_code; /* -1: it goes on */
};

static double seconds_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* ---- the format ---- */

/* A label's value, quoted. What is no UTF-8 could not be read at all: it becomes '?', as control characters do. */
static void write_quoted(FILE *out, const char *text) {
    char plain[sizeof((struct ls_run_facts *)0)->path]; /* the longest of them */
    fputc('"', out);
    for (const char *c = ls_wire_make_plain(plain, sizeof plain, text); *c; c++) {
        if (*c == '"' || *c == '\\') fputc('\\', out);
        fputc(*c, out);
    }
    fputc('"', out);
}

static void write_number(FILE *out, double value) {
    if (isfinite(value))
        fprintf(out, "%.15g\n", value);
    else
        fputs(isnan(value) ? "NaN\n" : value > 0 ? "+Inf\n" : "-Inf\n", out);
}

static void write_head(FILE *out, const char *name, const char *type, const char *help) {
    fprintf(out, "# HELP lockstep_%s %s\n# TYPE lockstep_%s %s\n", name, help, name, type);
}

static void write_sample(FILE *out, const struct ls_prometheus *prometheus, const char *name, double value) {
    fprintf(out, "lockstep_%s{run=", name);
    write_quoted(out, prometheus->run);
    fputs("} ", out);
    write_number(out, value);
}

static void write_info(FILE *out, const struct ls_prometheus *prometheus) {
    const struct {
        const char *label, *value;
    } labels[] = {{"version", LS_VERSION},
                  {"run_dir", prometheus->facts.path},
                  {"config_digest", prometheus->facts.config_digest}};
    write_head(out, "run_info", "gauge", "What the run is.");
    fputs("lockstep_run_info{run=", out);
    write_quoted(out, prometheus->run);
    for (size_t i = 0; i < sizeof labels / sizeof *labels; i++) {
        fprintf(out, ",%s=", labels[i].label);
        write_quoted(out, labels[i].value);
    }
    fputs("} 1\n", out);
}

static void write_histogram(FILE *out, const struct ls_prometheus *prometheus) {
    uint64_t below = 0;
    write_head(out, "step_seconds", "histogram", "Time of steps.");
    for (int i = 0; i <= BUCKETS_COUNT; i++) {
        below += prometheus->buckets[i];
        fputs("lockstep_step_seconds_bucket{run=", out);
        write_quoted(out, prometheus->run);
        if (i < BUCKETS_COUNT)
            fprintf(out, ",le=\"%g\"} %llu\n", BUCKETS[i], (unsigned long long)below);
        else
            fprintf(out, ",le=\"+Inf\"} %llu\n", (unsigned long long)below);
    }
    write_sample(out, prometheus, "step_seconds_sum", prometheus->step_seconds);
    write_sample(out, prometheus, "step_seconds_count", (double)prometheus->steps);
}

static void write_all(FILE *out, const struct ls_prometheus *p) {
    const struct ls_step_report *report = &p->report;
    const bool step = p->stepped, saved = p->saved_step >= 0;
    const struct {
        const char *name, *type, *help;
        bool known;
        double value;
    } rows[] = {
        {"running", "gauge", "1 while the run goes on, 0 behind its end.", true, p->exit_code < 0},
        {"exit_code", "gauge", "What the run ended with.", p->exit_code >= 0, p->exit_code},
        {"start_time_seconds", "gauge", "When this coordinator began, Unix time.", true, p->begun},
        {"ranks", "gauge", "Ranks of the attempt.", true, (double)p->facts.ranks},
        {"attempt", "gauge", "Lives of the set of workers so far.", true, (double)p->facts.attempt},
        {"total_steps", "gauge", "The run's last step.", true, (double)p->facts.total_steps},
        {"step", "gauge", "The newest step that all ranks finished.", step, (double)p->step},
        {"step_timestamp_seconds", "gauge", "When that was, Unix time.", step, p->step_time},
        {"samples", "gauge", "Sequences used up to it.", step, (double)p->samples},
        {"epoch", "gauge", "Passes over the data up to it.", step, report->epoch},
        {"loss", "gauge", "Its loss, nats a token.", step, report->loss},
        {"grad_norm", "gauge", "Its gradient's norm before clipping.", step, report->grad_norm},
        {"lr", "gauge", "Its learning rate.", step, report->lr},
        {"tokens_per_second", "gauge", "Its rate, of all ranks.", step, report->tokens_per_second},
        {"mfu_ratio", "gauge", "Model FLOPs by the GPUs' dense peak.", step && report->mfu > 0, report->mfu},
        {"compute_seconds", "gauge", "Of its time, computing.", step, report->compute_seconds},
        {"comm_exposed_seconds", "gauge", "Of its time, collectives that nothing was computed beside.", step,
         report->comm_exposed_seconds},
        {"data_wait_seconds", "gauge", "Of its time, waiting for batches.", step, report->data_wait_seconds},
        {"rank_wait_seconds", "gauge", "Of its time, waiting for the slowest rank.", step, report->wait_seconds},
        {"checkpoint_seconds", "gauge", "Of its time, waiting for a save.", step, report->checkpoint_seconds},
        {"memory_peak_bytes", "gauge", "Most memory that a rank took.", step, (double)report->memory_peak_bytes},
        {"gpu_power_watts", "gauge", "Of a GPU, on average.", step && report->gpu_power_watts > 0,
         report->gpu_power_watts},
        {"gpu_clock_hertz", "gauge", "Of the slowest GPU.", step && report->gpu_clock_mhz > 0,
         1e6 * (double)report->gpu_clock_mhz},
        {"validation_loss", "gauge", "Of the newest evaluation, nats a token.", p->validated, p->validation_loss},
        {"validation_bits_per_byte", "gauge", "Of the newest evaluation.", p->bits_per_byte > 0, p->bits_per_byte},
        {"checkpoint_step", "gauge", "The step of the newest checkpoint.", saved, (double)p->saved_step},
        {"checkpoint_timestamp_seconds", "gauge", "When it was committed, Unix time.", saved, p->saved_time},
        {"tokens_total", "counter", "Tokens trained on, again where steps were lost.", true, p->tokens},
        {"step_compute_seconds_total", "counter", "Computing, of the steps' time.", true, p->compute_seconds},
        {"step_comm_exposed_seconds_total", "counter", "Exposed collectives, of the steps' time.", true,
         p->exposed_seconds},
        {"step_data_wait_seconds_total", "counter", "Waiting for batches, of the steps' time.", true, p->data_seconds},
        {"step_rank_wait_seconds_total", "counter", "Waiting for ranks, of the steps' time.", true, p->wait_seconds},
        {"step_checkpoint_seconds_total", "counter", "Waiting for saves, of the steps' time.", true,
         p->checkpoint_seconds},
        {"skipped_steps_total", "counter", "Steps that made no update.", true, (double)p->skipped},
        {"fault_total", "counter", "Attempts that ended in a fault.", true, (double)p->faults},
        {"stall_total", "counter", "Stalls that were told.", true, (double)p->stalls},
        {"checkpoint_total", "counter", "Checkpoints committed.", true, (double)p->saves},
    };
    write_info(out, p);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (!rows[i].known) continue;
        write_head(out, rows[i].name, rows[i].type, rows[i].help);
        write_sample(out, p, rows[i].name, rows[i].value);
    }
    write_histogram(out, p);
}

/* ---- the file ---- */

/* Returns 0, or -1 with errno. The collector reads *.prom alone, so never what is written beside. */
static int replace_file(const struct ls_prometheus *prometheus, const char *text, size_t count) {
    const int file = open(prometheus->beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (file < 0) return -1;
    int cause = ls_write_all(file, text, count) ? errno : 0;
    if (close(file) && !cause) cause = errno;
    if (!cause && rename(prometheus->beside, prometheus->path)) cause = errno;
    if (cause) unlink(prometheus->beside);
    errno = cause;
    return cause ? -1 : 0;
}

static void write_file(struct ls_prometheus *prometheus) {
    char *text = NULL;
    size_t count;
    FILE *out = open_memstream(&text, &count);
    prometheus->written = seconds_of(CLOCK_MONOTONIC);
    if (out) write_all(out, prometheus);
    if (!out || fclose(out) || replace_file(prometheus, text, count)) {
        if (!prometheus->failure_told)
            ls_log(
                LS_LOG_WARNING,
                "metrics: cannot write %s: %s. The run goes on; Prometheus sees what was written before, until it can "
                "be written again.",
                prometheus->path, strerror(errno));
        prometheus->failure_told = true;
    }
    free(text);
}

enum ls_code ls_prometheus_check(const char *directory, struct ls_error *error) {
    struct stat status;
    if (stat(directory, &status) == 0) {
        if (S_ISDIR(status.st_mode) && access(directory, W_OK | X_OK) == 0) return LS_OK;
        if (!S_ISDIR(status.st_mode)) errno = ENOTDIR;
    }
    return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                   "metrics.prometheus: no file can be made in %s: %s. Name the folder that node_exporter's "
                   "--collector.textfile.directory names, and let this user write there.",
                   directory, strerror(errno));
}

enum ls_code ls_prometheus_open(const char *directory, const struct ls_run_facts *facts, struct ls_prometheus **result,
                                struct ls_error *error) {
    struct ls_prometheus *prometheus = calloc(1, sizeof *prometheus);
    if (!prometheus) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for Prometheus' metrics");
    prometheus->facts = *facts;
    prometheus->begun = seconds_of(CLOCK_REALTIME);
    prometheus->saved_step = prometheus->exit_code = -1;
    const char *slash = strrchr(facts->path, '/');
    snprintf(prometheus->run, sizeof prometheus->run, "%s", slash ? slash + 1 : facts->path);
    char name[sizeof prometheus->run];
    snprintf(name, sizeof name, "%s", prometheus->run);
    for (char *c = name; *c; c++)
        if (!isalnum((unsigned char)*c) && !strchr("._-", *c)) *c = '_';
    snprintf(prometheus->path, sizeof prometheus->path, "%s/lockstep-%.200s.prom", directory, name);
    snprintf(prometheus->beside, sizeof prometheus->beside, "%s/.lockstep-%.200s.%d", directory, name, (int)getpid());
    write_file(prometheus);
    *result = prometheus;
    return LS_OK;
}

void ls_prometheus_end(struct ls_prometheus *prometheus, enum ls_code code) {
    prometheus->exit_code = (int)code;
    write_file(prometheus);
}

void ls_prometheus_close(struct ls_prometheus *prometheus) {
    free(prometheus);
}

/* ---- entries ---- */

static void take_step(struct ls_prometheus *prometheus, const struct ls_journal_entry *entry) {
    const struct ls_step_report *report = &entry->report;
    int bucket = 0;
    while (bucket < BUCKETS_COUNT && report->step_seconds > BUCKETS[bucket]) bucket++;
    prometheus->stepped = true;
    prometheus->report = *report;
    prometheus->step = entry->record.step.step;
    prometheus->samples = entry->record.step.samples;
    prometheus->step_time = seconds_of(CLOCK_REALTIME);
    prometheus->buckets[bucket]++;
    prometheus->steps++;
    prometheus->skipped += report->skipped;
    prometheus->step_seconds += report->step_seconds;
    prometheus->compute_seconds += report->compute_seconds;
    prometheus->exposed_seconds += report->comm_exposed_seconds;
    prometheus->data_seconds += report->data_wait_seconds;
    prometheus->wait_seconds += report->wait_seconds;
    prometheus->checkpoint_seconds += report->checkpoint_seconds;
    prometheus->tokens += (double)report->sequences * (double)prometheus->facts.sequence_length;
}

static void take_event(struct ls_prometheus *prometheus, const struct ls_journal_entry *entry) {
    switch (entry->record.kind) {
    case LS_RECORD_VALIDATION:
        prometheus->validated = true;
        prometheus->validation_loss = entry->loss;
        prometheus->bits_per_byte = entry->bits_per_byte;
        break;
    case LS_RECORD_COMMIT:
        prometheus->saves++;
        prometheus->saved_step = entry->record.commit.step;
        prometheus->saved_time = seconds_of(CLOCK_REALTIME);
        break;
    case LS_RECORD_FAULT: prometheus->faults++; break;
    case LS_RECORD_ATTEMPT: ls_run_facts_begin_attempt(&prometheus->facts, entry); break;
    default: break;
    }
}

void ls_prometheus_write(struct ls_prometheus *prometheus, const struct ls_journal_entry *entry) {
    if (entry->note) {
        prometheus->stalls += !strcmp(entry->note->event, "stall");
    } else if (entry->record.kind == LS_RECORD_STEP) {
        take_step(prometheus, entry);
        if (seconds_of(CLOCK_MONOTONIC) - prometheus->written < PAUSE_SECONDS) return;
    } else {
        take_event(prometheus, entry);
    }
    write_file(prometheus);
}
