/* Lines and tables for a person. */
#define _GNU_SOURCE
#include "coordinator/console.h"

#include "common/files.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

/* A reader that is only slow gets a tenth of a second, once; the run does not wait for one that stands still. */
enum { BAR_WIDTH = 24, LINE_MAX_BYTES = 512, PATIENCE_MS = 100, LAST_PATIENCE_MS = 2000 };

struct ls_console {
    struct ls_run_facts facts;
    int log;
    bool terminal, colour;
    bool bar_shown;
    int64_t unread;      /* lines that standard output did not take */
    double step_seconds; /* mean of late steps */
    int64_t line_every;  /* steps between lasting lines on a terminal */
};

enum ls_code ls_console_open(const struct ls_run_facts *facts, struct ls_console **result, struct ls_error *error) {
    struct ls_console *console = calloc(1, sizeof *console);
    if (!console) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for the console");
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/console.log", facts->path);
    console->log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (console->log < 0) {
        free(console);
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "cannot open %s: %s", path, strerror(errno));
    }
    const char *terminal = getenv("TERM"), *no_colour = getenv("NO_COLOR");
    console->facts = *facts;
    console->terminal = isatty(STDOUT_FILENO) && terminal && strcmp(terminal, "dumb") != 0;
    console->colour = console->terminal && !(no_colour && no_colour[0]);
    console->line_every = facts->total_steps > 200 ? facts->total_steps / 100 : 1;
    *result = console;
    return LS_OK;
}

void ls_console_close(struct ls_console *console) {
    if (!console) return;
    close(console->log);
    free(console);
}

/* Writes to standard output; nobody there is no error. Of what one does not read, who is there, the lines are counted:
 * a full pipe or a stopped terminal must not stop the run. */
static bool show(struct ls_console *console, const char *text, size_t length) {
    char missed[96];
    if (!ls_file_takes(STDOUT_FILENO, console->unread ? 0 : PATIENCE_MS)) return false;
    if (console->unread) {
        const int count = snprintf(missed, sizeof missed, "(%lld line%s nobody read here: see console.log)\n",
                                   (long long)console->unread, console->unread == 1 ? "" : "s");
        console->unread = 0;
        (void)!ls_write_all(STDOUT_FILENO, missed, (size_t)count);
        if (!ls_file_takes(STDOUT_FILENO, PATIENCE_MS)) return false;
    }
    (void)!ls_write_all(STDOUT_FILENO, text, length);
    return true;
}

static void clear_bar(struct ls_console *console) {
    if (console->bar_shown) show(console, "\r\033[K", 4);
    console->bar_shown = false;
}

/* A lasting line: to console.log always, to standard output if `shown`. */
static void print_line(struct ls_console *console, bool shown, const char *line) {
    char text[LINE_MAX_BYTES + 2];
    const size_t length = strlen(ls_wire_make_plain(text, sizeof text - 1, line));
    text[length] = '\n';
    (void)!ls_write_all(console->log, text, length + 1); /* a full disk is told by the journal */
    if (!shown) return;
    clear_bar(console);
    if (!show(console, text, length + 1)) console->unread++;
}

void ls_console_print(struct ls_console *console, const char *format, ...) {
    char line[LINE_MAX_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    print_line(console, true, line);
}

void ls_console_format_duration(double seconds, char text[32]) {
    if (!(seconds >= 0) || seconds > 1e9) {
        snprintf(text, 32, "?");
        return;
    }
    long whole = (long)(seconds + 0.5);
    if (whole >= 3600)
        snprintf(text, 32, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
    else
        snprintf(text, 32, "%ld:%02ld", whole / 60, whole % 60);
}

/* 1234567 as "1,234,567". */
static void format_count(double count, char text[40]) {
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%.0f", fmin(count, 1e18)), out = 0;
    for (int i = 0; i < length && out < 38; i++) {
        text[out++] = digits[i];
        if ((length - i) % 3 == 1 && i + 1 < length) text[out++] = ',';
    }
    text[out] = 0;
}

static double percent(double part, double whole) {
    return whole > 0 ? 100 * part / whole : 0;
}

void ls_console_format_step(const struct ls_journal_entry *entry, int64_t total_steps, char *text, size_t size) {
    const struct ls_step_report *report = &entry->report;
    char total[24], rate[40], mfu[24] = "";
    int width = snprintf(total, sizeof total, "%lld", (long long)total_steps);
    format_count(isfinite(report->tokens_per_second) ? report->tokens_per_second : 0, rate);
    if (report->mfu > 0) snprintf(mfu, sizeof mfu, " | MFU %.1f %%", 100 * report->mfu);
    snprintf(text, size,
             "step %*lld/%s | loss %.6f | norm %.4f | lr %.2e | %.1f ms | %s tok/s%s | comm %.1f %% | data %.1f %%%s",
             width, (long long)entry->record.step.step, total, report->loss, report->grad_norm, report->lr,
             report->step_seconds * 1e3, rate, mfu, percent(report->comm_exposed_seconds, report->step_seconds),
             percent(report->data_wait_seconds, report->step_seconds),
             report->skipped ? " | update skipped: gradient not finite" : "");
}

static void show_bar(struct ls_console *console, const struct ls_journal_entry *entry) {
    char text[LINE_MAX_BYTES], left[32], bar[BAR_WIDTH + 1];
    int64_t step = entry->record.step.step, total = console->facts.total_steps;
    int filled = total > 0 ? (int)(step * BAR_WIDTH / total) : 0;
    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', (size_t)filled);
    bar[BAR_WIDTH] = 0;
    ls_console_format_duration((double)(total - step) * console->step_seconds, left);
    int length = snprintf(text, sizeof text, "\r\033[K%s[%s]%s %3.0f %%  step %lld/%lld  loss %.4f  ETA %s",
                          console->colour ? "\033[36m" : "", bar, console->colour ? "\033[0m" : "",
                          floor(percent((double)step, (double)total)), (long long)step, (long long)total,
                          entry->report.loss, left);
    struct winsize window;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 0 && length > window.ws_col + 4)
        return; /* a bar that wraps would fill the screen */
    if (console->unread || !show(console, text, (size_t)length)) return;
    console->bar_shown = true;
}

static void show_step(struct ls_console *console, const struct ls_journal_entry *entry) {
    char line[LINE_MAX_BYTES];
    int64_t step = entry->record.step.step;
    double seconds = entry->report.step_seconds;
    console->step_seconds = console->step_seconds > 0 ? 0.9 * console->step_seconds + 0.1 * seconds : seconds;
    ls_console_format_step(entry, console->facts.total_steps, line, sizeof line);
    bool lasting = !console->terminal || step % console->line_every == 0 || step == console->facts.start_step + 1 ||
                   step == console->facts.total_steps;
    print_line(console, lasting, line);
    if (console->terminal && step < console->facts.total_steps) show_bar(console, entry);
}

static void show_note(struct ls_console *console, const struct ls_journal_note *note) {
    json_t *fields = json_loads(note->fields, 0, NULL);
    const char *text = json_string_value(json_object_get(fields, "text"));
    if (text) print_line(console, true, text);
    json_decref(fields);
}

void ls_console_show(struct ls_console *console, const struct ls_journal_entry *entry) {
    const struct ls_core_record *record = &entry->record;
    char line[LINE_MAX_BYTES];
    if (entry->note) {
        show_note(console, entry->note);
        return;
    }
    switch (record->kind) {
    case LS_RECORD_STEP: show_step(console, entry); return;
    case LS_RECORD_VALIDATION:
        if (entry->bits_per_byte > 0)
            snprintf(line, sizeof line, "validation at step %lld | loss %.6f | %.4f bits per byte",
                     (long long)record->validation.step, entry->loss, entry->bits_per_byte);
        else
            snprintf(line, sizeof line, "validation at step %lld | loss %.6f", (long long)record->validation.step,
                     entry->loss);
        break;
    case LS_RECORD_JOINED:
        snprintf(line, sizeof line, record->joined.world_size == 1 ? "the one rank is here" : "all %d ranks are here",
                 record->joined.world_size);
        break;
    case LS_RECORD_COMMIT:
        if (entry->save_seconds > 0)
            snprintf(line, sizeof line, "saved step %lld | %.1f MB in %.2f s", (long long)record->commit.step,
                     (double)entry->save_bytes * 1e-6, entry->save_seconds);
        else
            snprintf(line, sizeof line, "saved step %lld", (long long)record->commit.step);
        break;
    case LS_RECORD_STOP: snprintf(line, sizeof line, "stopping: the step in progress ends, then it is saved"); break;
    case LS_RECORD_FAULT: snprintf(line, sizeof line, "%s", record->end.text); break;
    case LS_RECORD_QUARANTINE:
        snprintf(line, sizeof line, "sequences %lld to %lld of step %lld are passed over from now on",
                 (long long)record->quarantine.from, (long long)record->quarantine.to - 1,
                 (long long)record->quarantine.step);
        break;
    case LS_RECORD_ATTEMPT:
        ls_run_facts_begin_attempt(&console->facts, entry);
        snprintf(line, sizeof line,
                 "attempt %u: resuming at step %lld of %lld on %d rank%s; lost %lld step%s; restart %d of %lld%s",
                 record->attempt, (long long)record->attempt_begun.start_step, (long long)console->facts.total_steps,
                 record->attempt_begun.world_size, record->attempt_begun.world_size == 1 ? "" : "s",
                 (long long)record->attempt_begun.lost_steps, record->attempt_begun.lost_steps == 1 ? "" : "s",
                 record->attempt_begun.restarts, (long long)console->facts.max_restarts,
                 record->attempt_begun.begins_generation && record->attempt_begun.start_step > 0
                     ? "; its data begin again: the checkpoint is from before they "
                       "changed"
                     : "");
        break;
    default: return; /* the end is told by the table and the last line */
    }
    print_line(console, true, line);
}

static void row(struct ls_console *console, const char *name, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void row(struct ls_console *console, const char *name, const char *format, ...) {
    char value[LINE_MAX_BYTES - 32];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(value, sizeof value, format, arguments);
    va_end(arguments);
    ls_console_print(console, "  %-18s %s", name, value);
}

/* What saving cost, and how often it would pay. */
static void show_saves(struct ls_console *console, const struct ls_metrics_summary *summary) {
    char advised[32], between[32];
    ls_console_format_duration(summary->interval_advised, advised);
    ls_console_format_duration(summary->failure_seconds, between);
    row(console, "checkpoints", "%lld saved, %.2f s to write one, training waited %.3f s (%.2f %%)",
        (long long)summary->saves, summary->save_seconds, summary->save_blocked_seconds,
        percent(summary->save_blocked_seconds, summary->wall_seconds));
    row(console, "best interval", "%s for a failure every %s (%lld %s)", advised, between, (long long)summary->faults,
        summary->faults > 0 ? "seen" : "seen, so this is assumed");
}

/* Where the time went, and what would have saved some. */
static void show_bill(struct ls_console *console, const struct ls_metrics_summary *summary) {
    double wall = 0;
    for (int i = 0; i < LS_BILL_ROWS; i++) wall += summary->bill[i];
    if (!(wall > 0)) return;
    ls_console_print(console, "  where the time went");
    for (int i = 0; i < LS_BILL_ROWS; i++)
        if (summary->bill[i] >= 0.0005 * wall)
            ls_console_print(console, "    %-18s %10.1f s  %5.1f %%", ls_bill_name((enum ls_bill_row)i),
                             summary->bill[i], percent(summary->bill[i], wall));
    for (int i = 0; i < summary->advice_count; i++)
        ls_console_print(console, "  %s %s (about %.1f s less)", i ? "         " : "to save it",
                         summary->advice[i].text, summary->advice[i].seconds);
}

void ls_console_show_summary(struct ls_console *console, const struct ls_metrics_summary *summary) {
    char duration[32], rate[40];
    ls_console_format_duration(summary->wall_seconds, duration);
    if (console->unread) ls_file_takes(STDOUT_FILENO, LAST_PATIENCE_MS); /* the last chance to see how it ended */
    ls_console_print(console, " ");
    row(console, "run", "%s, attempt %lld, %lld rank%s", console->facts.name, (long long)console->facts.attempt,
        (long long)console->facts.ranks, console->facts.ranks == 1 ? "" : "s");
    row(console, "steps", "%lld of %lld", (long long)summary->last_step, (long long)console->facts.total_steps);
    if (isfinite(summary->last_loss)) row(console, "training loss", "%.6f", summary->last_loss);
    if (isfinite(summary->validation_loss)) row(console, "validation loss", "%.6f", summary->validation_loss);
    if (isfinite(summary->bits_per_byte)) row(console, "bits per byte", "%.4f", summary->bits_per_byte);
    if (isfinite(summary->tokens_per_second_median)) {
        format_count(summary->tokens_per_second_median, rate);
        row(console, "tokens per second", "%s", rate);
    }
    if (summary->mfu > 0) row(console, "MFU", "%.1f %%", 100 * summary->mfu);
    row(console, "wall time", "%s", duration);
    if (summary->saves > 0) show_saves(console, summary);
    row(console, "files", "%s", console->facts.path);
    show_bill(console, summary);
    ls_console_print(console, " ");
}
