/* Lines of metrics.jsonl. */
#define _GNU_SOURCE
#include "coordinator/metrics.h"

#include "common/files.h"
#include "common/interval.h"
#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { RATES_MAX = 65536, WARM_UP_STEPS = 5, DIGITS = 9 /* reproduce a float */ };

struct ls_metrics {
    struct ls_run_facts facts;
    int file;
    bool failure_told;
    double started;
    int64_t last_step, steps_measured;
    double *rates; /* tokens per second, a ring */
    double step_seconds, exposed_seconds;
    double mfu_seconds; /* each step's MFU by its time */
    struct ls_bill bill;
    double opened; /* when this coordinator began */
    uint64_t memory_peak_bytes;
    int64_t saves, timed_saves, faults;
    double save_blocked_seconds, save_seconds;
    double last_loss, validation_loss, bits_per_byte;
    json_t *hosts; /* names, sorted; NULL: no rank has joined */
    int64_t ranks_per_node;
};

static double seconds_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* A coordinator that was killed while it wrote leaves half a line, whose record comes again, and so does a full disk:
 * the next line must not join on to it. */
static void drop_half_line(int file) {
    char tail[4096];
    off_t end = lseek(file, 0, SEEK_END);
    while (end > 0) {
        const off_t from = end > (off_t)sizeof tail ? end - (off_t)sizeof tail : 0;
        if (ls_pread_all(file, tail, (size_t)(end - from), from)) return;
        while (end > from && tail[end - from - 1] != '\n') end--;
        if (end > from) break;
    }
    if (ftruncate(file, end)) ls_log(LS_LOG_WARNING, "metrics: cannot cut metrics.jsonl: %s", strerror(errno));
}

enum ls_code ls_metrics_open(const struct ls_run_facts *facts, struct ls_metrics **result, struct ls_error *error) {
    struct ls_metrics *metrics = calloc(1, sizeof *metrics);
    if (metrics) metrics->rates = calloc(RATES_MAX, sizeof *metrics->rates);
    if (!metrics || !metrics->rates) {
        free(metrics);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for the metrics");
    }
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/metrics.jsonl", facts->path);
    metrics->facts = *facts;
    metrics->started = facts->started_seconds > 0 ? facts->started_seconds : seconds_of(CLOCK_MONOTONIC);
    metrics->opened = seconds_of(CLOCK_MONOTONIC);
    metrics->last_step = facts->start_step;
    metrics->last_loss = metrics->validation_loss = metrics->bits_per_byte = NAN;
    metrics->file = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (metrics->file >= 0) {
        drop_half_line(metrics->file);
        *result = metrics;
        return LS_OK;
    }
    enum ls_code code = ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "cannot open %s: %s", path, strerror(errno));
    ls_metrics_close(metrics);
    return code;
}

void ls_metrics_close(struct ls_metrics *metrics) {
    if (!metrics) return;
    if (metrics->file >= 0) close(metrics->file);
    json_decref(metrics->hosts);
    free(metrics->rates);
    free(metrics);
}

static int compare_texts(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

void ls_metrics_place(struct ls_metrics *metrics, const char *const *hosts, int64_t count) {
    const char **sorted = malloc((size_t)count * sizeof *sorted + 1);
    if (!sorted) return; /* the summary keeps what it had */
    memcpy(sorted, hosts, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, compare_texts);
    json_decref(metrics->hosts);
    metrics->hosts = json_array();
    metrics->ranks_per_node = 0;
    for (int64_t i = 0, first = 0; i < count; i++) {
        if (i == 0 || strcmp(sorted[i], sorted[first]) != 0) {
            json_array_append_new(metrics->hosts, json_string(sorted[i]));
            first = i;
        }
        if (i - first + 1 > metrics->ranks_per_node) metrics->ranks_per_node = i - first + 1;
    }
    free(sorted);
}

/* A JSON number, or null when there is none. */
static json_t *number(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

/* A text that may be cut in the midst of a character, or quote somebody else's output. */
static json_t *text_json(const char *text) {
    char plain[LS_WIRE_TEXT_BYTES];
    return json_string(ls_wire_make_plain(plain, sizeof plain, text));
}

/* Writes one line in one write(2), and frees it. Of one that does not fit on the disk nothing is left that the next one
 * would join on to. */
static void write_line(struct ls_metrics *metrics, json_t *line) {
    char *text = json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(DIGITS));
    json_decref(line);
    if (!text) return;
    size_t length = strlen(text);
    text[length] = '\n'; /* in place of the NUL: one write */
    if (ls_write_all(metrics->file, text, length + 1)) {
        if (!metrics->failure_told)
            ls_log(LS_LOG_WARNING, "metrics: cannot write metrics.jsonl: %s. The run goes on without its lines.",
                   strerror(errno));
        metrics->failure_told = true;
        drop_half_line(metrics->file);
    }
    free(text);
}

static void write_step(struct ls_metrics *metrics, const struct ls_journal_entry *entry) {
    const struct ls_step_report *report = &entry->report;
    char digest[33];
    ls_digest_format(entry->record.step.digest, digest);
    const int64_t samples = entry->record.step.samples, own = samples - metrics->facts.start_samples;
    json_t *line = json_object();
    json_object_set_new(line, "kind", json_string("step"));
    json_object_set_new(line, "step", json_integer(entry->record.step.step));
    json_object_set_new(line, "attempt", json_integer(entry->record.attempt));
    json_object_set_new(line, "epoch", number(report->epoch));
    json_object_set_new(line, "samples", json_integer(samples));
    json_object_set_new(line, "tokens",
                        json_integer(metrics->facts.start_tokens + own * metrics->facts.sequence_length));
    json_object_set_new(line, "loss", number(report->loss));
    json_object_set_new(line, "grad_norm", number(report->grad_norm));
    json_object_set_new(line, "lr", number(report->lr));
    if (report->skipped) json_object_set_new(line, "skipped", json_true());
    json_object_set_new(line, "step_seconds", number(report->step_seconds));
    json_object_set_new(line, "tokens_per_second", number(report->tokens_per_second));
    json_object_set_new(line, "mfu", report->mfu > 0 ? number(report->mfu) : json_null());
    json_object_set_new(line, "compute_seconds", number(report->compute_seconds));
    json_object_set_new(line, "comm_exposed_seconds", number(report->comm_exposed_seconds));
    json_object_set_new(line, "data_wait_seconds", number(report->data_wait_seconds));
    json_object_set_new(line, "wait_seconds", number(report->wait_seconds));
    json_object_set_new(line, "wait_for_rank",
                        report->wait_for_rank < 0 ? json_null() : json_integer(report->wait_for_rank));
    json_object_set_new(line, "checkpoint_seconds", number(report->checkpoint_seconds));
    json_object_set_new(line, "wall_seconds", number(report->wall_seconds));
    json_object_set_new(line, "memory_peak_bytes", json_integer((json_int_t)report->memory_peak_bytes));
    if (report->gpu_power_watts > 0) json_object_set_new(line, "gpu_power_watts", number(report->gpu_power_watts));
    if (report->gpu_clock_mhz > 0) json_object_set_new(line, "gpu_clock_mhz", json_integer(report->gpu_clock_mhz));
    json_object_set_new(line, "samples_digest", json_string(digest));
    write_line(metrics, line);
    metrics->last_step = entry->record.step.step;
    metrics->last_loss = report->loss;
    metrics->save_blocked_seconds += report->checkpoint_seconds;
    ls_bill_step(&metrics->bill, report);
    if (report->memory_peak_bytes > metrics->memory_peak_bytes) metrics->memory_peak_bytes = report->memory_peak_bytes;
    if (entry->record.step.step <= metrics->facts.start_step + WARM_UP_STEPS) return;
    metrics->rates[metrics->steps_measured++ % RATES_MAX] = report->tokens_per_second;
    metrics->step_seconds += report->step_seconds;
    metrics->exposed_seconds += report->comm_exposed_seconds;
    metrics->mfu_seconds += report->mfu * report->step_seconds;
}

static void write_validation(struct ls_metrics *metrics, const struct ls_journal_entry *entry) {
    metrics->validation_loss = entry->loss;
    metrics->bits_per_byte = entry->bits_per_byte > 0 ? entry->bits_per_byte : NAN;
    json_t *line = json_object();
    json_object_set_new(line, "kind", json_string("validation"));
    json_object_set_new(line, "step", json_integer(entry->record.validation.step));
    json_object_set_new(line, "loss", number(entry->loss));
    json_object_set_new(line, "bits_per_byte", number(metrics->bits_per_byte));
    write_line(metrics, line);
}

/* What the line of every event begins with. */
static json_t *event_line(const char *event, const struct ls_core_record *record) {
    json_t *line = json_object();
    json_object_set_new(line, "kind", json_string("event"));
    json_object_set_new(line, "event", json_string(event));
    json_object_set_new(line, "attempt", json_integer(record->attempt));
    json_object_set_new(line, "generation", json_integer(record->generation));
    json_object_set_new(line, "time", json_integer((json_int_t)seconds_of(CLOCK_REALTIME)));
    return line;
}

static void write_note(struct ls_metrics *metrics, const struct ls_journal_entry *entry) {
    json_t *line = event_line(entry->note->event, &entry->record);
    json_t *fields = json_loads(entry->note->fields, 0, NULL);
    if (fields) json_object_update(line, fields);
    json_decref(fields);
    write_line(metrics, line);
}

static const char *scope_name(enum ls_scope scope) {
    return scope == LS_SCOPE_RANK ? "rank" : scope == LS_SCOPE_NODE ? "node" : "job";
}

/* What is known of how a save went; a coordinator that took over from another may not know. */
static void add_save(json_t *line, const struct ls_journal_entry *entry) {
    json_object_set_new(line, "step", json_integer(entry->record.commit.step));
    json_object_set_new(line, "seconds", entry->save_seconds > 0 ? json_real(entry->save_seconds) : json_null());
    json_object_set_new(line, "bytes", entry->save_bytes > 0 ? json_integer(entry->save_bytes) : json_null());
}

static void count_event(struct ls_metrics *metrics, const struct ls_journal_entry *entry) {
    metrics->faults += entry->record.kind == LS_RECORD_FAULT;
    if (entry->record.kind != LS_RECORD_COMMIT) return;
    metrics->saves++;
    if (entry->save_seconds <= 0) return;
    metrics->timed_saves++;
    metrics->save_seconds += entry->save_seconds;
}

static void write_event(struct ls_metrics *metrics, const struct ls_journal_entry *entry) {
    const struct ls_core_record *record = &entry->record;
    json_t *line = event_line(ls_core_record_name(record->kind), record);
    switch (record->kind) {
    case LS_RECORD_JOINED: json_object_set_new(line, "ranks", json_integer(record->joined.world_size)); break;
    case LS_RECORD_STOP: json_object_set_new(line, "code", json_integer(record->stop.code)); break;
    case LS_RECORD_COMMIT: add_save(line, entry); break;
    case LS_RECORD_FAULT:
    case LS_RECORD_END:
        json_object_set_new(line, "step", json_integer(record->end.step));
        json_object_set_new(line, "rank", record->end.rank < 0 ? json_null() : json_integer(record->end.rank));
        json_object_set_new(line, "code", json_integer(record->end.code));
        json_object_set_new(line, "text", text_json(record->end.text));
        json_object_set_new(line, "host", record->end.host[0] ? text_json(record->end.host) : json_null());
        json_object_set_new(line, "scope", json_string(scope_name(record->end.scope)));
        break;
    case LS_RECORD_QUARANTINE:
        json_object_set_new(line, "step", json_integer(record->quarantine.step));
        json_object_set_new(line, "from", json_integer(record->quarantine.from));
        json_object_set_new(line, "to", json_integer(record->quarantine.to));
        json_object_set_new(line, "data_generation", json_integer(record->quarantine.data_generation));
        break;
    case LS_RECORD_ATTEMPT:
        json_object_set_new(line, "ranks", json_integer(record->attempt_begun.world_size));
        json_object_set_new(line, "step", json_integer(record->attempt_begun.start_step));
        json_object_set_new(line, "restarts", json_integer(record->attempt_begun.restarts));
        json_object_set_new(line, "lost_steps", json_integer(record->attempt_begun.lost_steps));
        json_object_set_new(
            line, "begins_data_generation",
            json_boolean(record->attempt_begun.begins_generation && record->attempt_begun.start_step > 0));
        break;
    default: break;
    }
    write_line(metrics, line);
    count_event(metrics, entry);
}

void ls_run_facts_begin_attempt(struct ls_run_facts *facts, const struct ls_journal_entry *entry) {
    const struct ls_core_record *record = &entry->record;
    facts->attempt = record->attempt;
    facts->ranks = record->attempt_begun.world_size;
    facts->start_step = record->attempt_begun.start_step;
    facts->start_samples = record->attempt_begun.start_samples;
    if (entry->attempt) facts->start_tokens = entry->attempt->tokens;
}

void ls_metrics_write(struct ls_metrics *metrics, const struct ls_journal_entry *entry) {
    if (entry->note)
        write_note(metrics, entry);
    else if (entry->record.kind == LS_RECORD_STEP)
        write_step(metrics, entry);
    else if (entry->record.kind == LS_RECORD_VALIDATION)
        write_validation(metrics, entry);
    else
        write_event(metrics, entry);
    if (!entry->note && entry->record.kind == LS_RECORD_ATTEMPT) ls_run_facts_begin_attempt(&metrics->facts, entry);
}

/* ---- the summary ---- */

static int compare_numbers(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* The quantile q of sorted[count], between neighbours in proportion. */
static double quantile(const double *sorted, size_t count, double q) {
    if (count == 0) return NAN;
    double place = q * (double)(count - 1);
    size_t below = (size_t)place;
    if (below + 1 >= count) return sorted[count - 1];
    return sorted[below] + (place - (double)below) * (sorted[below + 1] - sorted[below]);
}

static void draw_bill(const struct ls_metrics *metrics, struct ls_metrics_summary *summary) {
    const double wall = seconds_of(CLOCK_MONOTONIC) - metrics->opened;
    const struct ls_bill_facts facts = {.config = metrics->facts.config,
                                        .ranks = metrics->facts.ranks,
                                        .save_interval = summary->saves > 0 ? wall / (double)summary->saves : 0,
                                        .best_interval =
                                            isfinite(summary->interval_advised) ? summary->interval_advised : 0};
    ls_bill_rows(&metrics->bill, wall, summary->bill);
    if (facts.config) summary->advice_count = ls_bill_advise(&metrics->bill, wall, &facts, summary->advice);
}

void ls_metrics_summarise(struct ls_metrics *metrics, struct ls_metrics_summary *summary) {
    size_t count = metrics->steps_measured < RATES_MAX ? (size_t)metrics->steps_measured : RATES_MAX;
    qsort(metrics->rates, count, sizeof *metrics->rates, compare_numbers);
    *summary = (struct ls_metrics_summary){
        .last_step = metrics->last_step,
        .steps_measured = metrics->steps_measured,
        .tokens_per_second_median = quantile(metrics->rates, count, 0.5),
        .tokens_per_second_p10 = quantile(metrics->rates, count, 0.1),
        .tokens_per_second_p90 = quantile(metrics->rates, count, 0.9),
        .comm_exposed_fraction = metrics->step_seconds > 0 ? metrics->exposed_seconds / metrics->step_seconds : NAN,
        .mfu = metrics->step_seconds > 0 ? metrics->mfu_seconds / metrics->step_seconds : 0,
        .memory_peak_bytes = metrics->memory_peak_bytes,
        .last_loss = metrics->last_loss,
        .validation_loss = metrics->validation_loss,
        .bits_per_byte = metrics->bits_per_byte,
        .wall_seconds = seconds_of(CLOCK_MONOTONIC) - metrics->started,
        .saves = metrics->saves,
        .save_blocked_seconds = metrics->save_blocked_seconds,
        .save_seconds = metrics->timed_saves > 0 ? metrics->save_seconds / (double)metrics->timed_saves : 0,
        .faults = metrics->facts.earlier_faults + metrics->faults,
        .interval_advised = NAN,
    };
    /* The time of a coordinator before this one, of this command too, is among the earlier ones. */
    const double own_seconds = seconds_of(CLOCK_MONOTONIC) - metrics->opened;
    summary->failure_seconds = summary->faults > 0
                                   ? (metrics->facts.earlier_seconds + own_seconds) / (double)summary->faults
                                   : ls_interval_assumed_failure_seconds(metrics->facts.ranks);
    if (summary->saves > 0)
        summary->interval_advised = ls_interval_advised(summary->save_blocked_seconds / (double)summary->saves,
                                                        summary->save_seconds, summary->failure_seconds);
    draw_bill(metrics, summary);
}

void ls_metrics_write_summary(struct ls_metrics *metrics, enum ls_code code) {
    struct ls_metrics_summary summary;
    ls_metrics_summarise(metrics, &summary);
    json_t *line = json_object(), *rate = json_object();
    json_object_set_new(rate, "median", number(summary.tokens_per_second_median));
    json_object_set_new(rate, "p10", number(summary.tokens_per_second_p10));
    json_object_set_new(rate, "p90", number(summary.tokens_per_second_p90));
    json_object_set_new(line, "kind", json_string("summary"));
    json_object_set_new(line, "version", json_string(LS_VERSION));
    json_object_set_new(line, "config_digest", json_string(metrics->facts.config_digest));
    json_object_set_new(line, "hosts", metrics->hosts ? json_incref(metrics->hosts) : json_array());
    json_object_set_new(line, "ranks", json_integer(metrics->facts.ranks));
    json_object_set_new(line, "ranks_per_node", json_integer(metrics->ranks_per_node));
    json_object_set_new(line, "zero_stage", json_integer(metrics->facts.zero_stage));
    json_object_set_new(line, "steps_measured", json_integer(summary.steps_measured));
    json_object_set_new(line, "tokens_per_second", rate);
    json_object_set_new(line, "mfu", summary.mfu > 0 ? number(summary.mfu) : json_null());
    json_object_set_new(line, "comm_exposed_fraction", number(summary.comm_exposed_fraction));
    json_object_set_new(line, "memory_peak_bytes", json_integer((json_int_t)summary.memory_peak_bytes));
    json_object_set_new(line, "wall_seconds", number(summary.wall_seconds));
    json_object_set_new(line, "checkpoints", json_integer(summary.saves));
    json_object_set_new(line, "checkpoint_seconds", number(summary.save_blocked_seconds));
    json_object_set_new(line, "checkpoint_interval_advised_seconds", number(summary.interval_advised));
    json_t *bill = json_object(), *advice = json_array();
    for (int i = 0; i < LS_BILL_ROWS; i++)
        json_object_set_new(bill, ls_bill_key((enum ls_bill_row)i), number(summary.bill[i]));
    for (int i = 0; i < summary.advice_count; i++)
        json_array_append_new(
            advice, json_pack("{s:f, s:s}", "seconds", summary.advice[i].seconds, "text", summary.advice[i].text));
    json_object_set_new(line, "bill", bill);
    json_object_set_new(line, "advice", advice);
    json_object_set_new(line, "exit_code", json_integer(code));
    write_line(metrics, line);
}
