/* Commands for a run that is going on, or was. */
#define _GNU_SOURCE
#include "coordinator/command_operator.h"

#include "common/keys.h"
#include "coordinator/command_line.h"
#include "coordinator/console.h"
#include "coordinator/journal.h"
#include "coordinator/operator.h"
#include "coordinator/run_directory.h"

#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER_SECONDS = 10, SUCCESSOR_SECONDS = 5, START_SECONDS = 60, LOOK_MS = 20, OPTION_JSON = 256 };

struct arguments {
    const char *run;
    bool json;
};

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    struct arguments *arguments = state->input;
    switch (key) {
    case OPTION_JSON: arguments->json = true; return 0;
    default: return ls_command_run_argument(key, argument, state, &arguments->run);
    }
}

/* What the journal says of a run that is not going on. */
struct last_words {
    struct ls_journal_attempt attempt;
    struct ls_core_record step, commit, end; /* of kind 0: there is none */
};

static enum ls_code read_journal(const struct ls_run_directory *run, struct last_words *words, struct ls_error *error) {
    char path[PATH_MAX];
    struct ls_journal *journal;
    *words = (struct last_words){0};
    snprintf(path, sizeof path, "%s/journal.db", run->path);
    enum ls_code code = ls_journal_open_existing(path, &journal, error);
    if (code != LS_OK) return code;
    code = ls_journal_last_attempt(journal, &words->attempt, error);
    if (!ls_journal_last_record(journal, LS_RECORD_STEP, &words->step)) words->step.kind = 0;
    if (!ls_journal_last_record(journal, LS_RECORD_COMMIT, &words->commit)) words->commit.kind = 0;
    if (!ls_journal_last_record(journal, LS_RECORD_END, &words->end)) words->end.kind = 0;
    ls_journal_close(journal);
    return code;
}

/* Whether the last attempt ended as attempts end, or with all who could go on with it. One whose coordinator was killed
 * did not: another one takes its place within a second if the run goes on. */
static bool is_over(const struct ls_run_directory *run) {
    char path[PATH_MAX];
    struct last_words words;
    struct ls_error error;
    snprintf(path, sizeof path, "%s/journal.db", run->path);
    if (access(path, F_OK) || ls_run_directory_is_abandoned(run)) return true;
    if (read_journal(run, &words, &error) != LS_OK) return false; /* somebody has it: the other one */
    return words.attempt.attempt == 0 || (words.end.kind && words.end.attempt == words.attempt.attempt);
}

static bool has_ended(const void *run) {
    return !ls_run_directory_is_locked(run) && is_over(run);
}

static enum ls_code fail_for_ended(const struct ls_run_directory *run, struct ls_error *error) {
    return ls_fail(error, LS_ERROR, LS_SCOPE_CALL,
                   "nothing is running in %s. Start it with 'lockstep run CONFIG --resume'.", run->path);
}

/* Waits for a coordinator that takes the place of one that was killed, and for one that has begun to listen: before
 * that it may have data to open and a checkpoint to check. */
static enum ls_code find_endpoint(const struct ls_run_directory *run, char *endpoint, size_t size,
                                  struct ls_error *error) {
    int absent = 0;
    for (int look = 0; look < START_SECONDS * 1000 / LOOK_MS; look++) {
        const bool locked = ls_run_directory_is_locked(run);
        if (locked && ls_run_directory_endpoint(run, endpoint, size)) return LS_OK;
        if (!locked && (absent++ * LOOK_MS >= SUCCESSOR_SECONDS * 1000 || (absent == 1 && is_over(run))))
            return fail_for_ended(run, error);
        nanosleep(&(struct timespec){.tv_nsec = LOOK_MS * 1000000}, NULL);
    }
    return ls_fail(error, LS_COMMUNICATION, LS_SCOPE_CALL,
                   "the run %s is still starting: its coordinator does not listen after %d s (it opens the data, or "
                   "checks a checkpoint). Ask again once it trains.",
                   run->path, START_SECONDS);
}

/* Asks the live coordinator of `run`. LS_ERROR when there is none. */
static enum ls_code ask(const struct ls_run_directory *run, enum ls_wire_request request, struct ls_message *answer,
                        struct ls_error *error) {
    char path[PATH_MAX], endpoint[128];
    struct ls_key key;
    enum ls_code code = find_endpoint(run, endpoint, sizeof endpoint, error);
    if (code != LS_OK) return code;
    snprintf(path, sizeof path, "%s/keys/operator.key", run->path);
    code = ls_key_read(path, &key, error);
    if (code == LS_OK) code = ls_operator_ask(endpoint, &key, request, ANSWER_SECONDS, has_ended, run, answer, error);
    explicit_bzero(&key, sizeof key);
    if (code == LS_ERROR) return fail_for_ended(run, error);
    if (code != LS_OK) return code;
    if (answer->kind == LS_MESSAGE_REFUSED || answer->kind == LS_MESSAGE_ENDED ||
        (answer->kind == LS_MESSAGE_REPLY && answer->answer.code))
        return ls_fail(error, answer->answer.code ? (enum ls_code)answer->answer.code : LS_ERROR, LS_SCOPE_CALL, "%s",
                       answer->answer.text);
    return LS_OK;
}

static int request_command(int argc, char **argv, const char *doc, enum ls_wire_request request) {
    const struct argp argp = {.parser = parse_option, .args_doc = "RUN", .doc = doc};
    struct arguments arguments = {0};
    struct ls_run_directory run;
    struct ls_message answer;
    struct ls_error error;
    ls_command_parse(&argp, argc, argv, &arguments);
    enum ls_code code = ls_run_directory_find(arguments.run, &run, &error);
    if (code == LS_OK) code = ask(&run, request, &answer, &error);
    if (code != LS_OK) return ls_report_exit(code, error.text);
    printf("%s\n", answer.answer.text);
    ls_message_release(&answer);
    return LS_OK;
}

int ls_command_stop(int argc, char **argv) {
    return request_command(argc, argv, "Ends a run: the step in progress ends, it is saved, the run exits 130.",
                           LS_WIRE_STOP);
}

int ls_command_checkpoint(int argc, char **argv) {
    return request_command(argc, argv, "Saves a running job now, and waits until that is done.", LS_WIRE_CHECKPOINT);
}

static void print_live(const struct ls_wire_status *status) {
    char left[32];
    ls_console_format_duration(status->eta_seconds, left);
    printf("run         %s, %s\n", status->name, status->phase);
    printf("attempt     %lld, restart %lld of %lld since the last new checkpoint\n", (long long)status->attempt,
           (long long)status->restarts, (long long)status->max_restarts);
    printf("step        %lld of %lld, %lld granted, %lld in the journal\n", (long long)status->step,
           (long long)status->total_steps, (long long)status->granted_step, (long long)status->journaled_step);
    printf("sequences   %llu\n", (unsigned long long)status->position);
    if (isfinite(status->loss)) printf("loss        %.6f\n", status->loss);
    if (isfinite(status->tokens_per_second)) printf("tokens/s    %.0f, %s left\n", status->tokens_per_second, left);
    char saved[32] = "nothing yet";
    if (status->committed_step > 0) snprintf(saved, sizeof saved, "step %lld", (long long)status->committed_step);
    printf("saved       %s%s\n", saved, status->saving_step ? ", a save is on its way" : "");
    printf("ranks       %lld of %lld\n", (long long)status->ranks_joined, (long long)status->world_size);
    printf("coordinator pid %lld on %s; %llu failed handshakes, %llu dropped messages\n", (long long)status->pid,
           status->host, (unsigned long long)status->handshakes_failed, (unsigned long long)status->messages_dropped);
}

static void print_last_words(const struct ls_run_directory *run, const struct last_words *words) {
    printf("run         %s, not running, attempt %lld\n", run->path, (long long)words->attempt.attempt);
    if (words->step.kind) printf("step        %lld\n", (long long)words->step.step.step);
    if (words->commit.kind) printf("saved       step %lld\n", (long long)words->commit.commit.step);
    if (words->end.kind)
        printf("ended       code %d (%s): %s\n", (int)words->end.end.code, ls_code_name(words->end.end.code),
               words->end.end.text);
}

/* ---- as JSON ---- */

static json_t *number(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

/* null where the count is 0: there is none. */
static json_t *step_number(int64_t step) {
    return step > 0 ? json_integer(step) : json_null();
}

static json_t *live_json(const struct ls_run_directory *run, const struct ls_wire_status *status) {
    return json_pack("{s:b, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:I, s:o, s:o, s:o, s:I, s:I,"
                     " s:{s:I, s:s, s:I, s:I}}",
                     "running", true, "run_dir", run->path, "name", status->name, "phase", status->phase, "attempt",
                     (json_int_t)status->attempt, "restarts", (json_int_t)status->restarts, "max_restarts",
                     (json_int_t)status->max_restarts, "step", (json_int_t)status->step, "total_steps",
                     (json_int_t)status->total_steps, "granted_step", (json_int_t)status->granted_step,
                     "journaled_step", (json_int_t)status->journaled_step, "saved_step",
                     step_number(status->committed_step), "saving_step", step_number(status->saving_step), "samples",
                     (json_int_t)status->position, "loss", number(status->loss), "tokens_per_second",
                     number(status->tokens_per_second), "eta_seconds", number(status->eta_seconds), "ranks",
                     (json_int_t)status->world_size, "ranks_joined", (json_int_t)status->ranks_joined, "coordinator",
                     "pid", (json_int_t)status->pid, "host", status->host, "handshakes_failed",
                     (json_int_t)status->handshakes_failed, "messages_dropped", (json_int_t)status->messages_dropped);
}

static json_t *last_words_json(const struct ls_run_directory *run, const struct last_words *words) {
    char plain[LS_WIRE_TEXT_BYTES];
    json_t *end = words->end.kind ? json_pack("{s:i, s:s, s:s}", "code", (int)words->end.end.code, "reason",
                                              ls_code_name(words->end.end.code), "text",
                                              ls_wire_make_plain(plain, sizeof plain, words->end.end.text))
                                  : json_null();
    return json_pack("{s:b, s:s, s:I, s:o, s:o, s:o}", "running", false, "run_dir", run->path, "attempt",
                     (json_int_t)words->attempt.attempt, "step",
                     step_number(words->step.kind ? words->step.step.step : 0), "saved_step",
                     step_number(words->commit.kind ? words->commit.commit.step : 0), "ended", end);
}

/* Prints and frees it. */
static enum ls_code print_json(json_t *object, struct ls_error *error) {
    enum ls_code code = LS_OK;
    if (!object || json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9)))
        code = ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for the status as JSON");
    putchar('\n');
    json_decref(object);
    return code;
}

/* ---- status ---- */

int ls_command_status(int argc, char **argv) {
    static const struct argp_option options[] = {{"json", OPTION_JSON, NULL, 0, "Print JSON", 0}, {0}};
    const struct argp argp = {.options = options,
                              .parser = parse_option,
                              .args_doc = "RUN",
                              .doc = "Shows how a run is doing; exits 1 when it is not running."};
    struct arguments arguments = {0};
    struct ls_run_directory run;
    struct ls_message answer;
    struct last_words words;
    struct ls_error error, minor;
    ls_command_parse(&argp, argc, argv, &arguments);
    enum ls_code code = ls_run_directory_find(arguments.run, &run, &error);
    if (code == LS_OK) code = ask(&run, LS_WIRE_STATUS, &answer, &error);
    if (code == LS_OK) {
        if (arguments.json)
            code = print_json(live_json(&run, &answer.status), &error);
        else
            print_live(&answer.status);
        ls_message_release(&answer);
        if (code == LS_OK) code = ls_command_flush(&error);
        return code == LS_OK ? LS_OK : ls_report_exit(code, error.text);
    }
    if (code == LS_ERROR) {
        enum ls_code told = read_journal(&run, &words, &minor);
        if (told == LS_OK && arguments.json)
            told = print_json(last_words_json(&run, &words), &minor);
        else if (told == LS_OK)
            print_last_words(&run, &words);
        if (told != LS_OK) fprintf(stderr, "lockstep: %s\n", minor.text);
    }
    fflush(stdout);
    return ls_report_exit(code, error.text);
}
