/* Commands for a run that is going on, or was. */
#define _GNU_SOURCE
#include "coordinator/command_operator.h"

#include "common/keys.h"
#include "coordinator/command_line.h"
#include "coordinator/console.h"
#include "coordinator/journal.h"
#include "coordinator/operator.h"
#include "coordinator/run_directory.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ANSWER_SECONDS = 10 };

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    const char **run = state->input;
    switch (key) {
    case ARGP_KEY_ARG:
        if (*run) argp_error(state, "there is a second RUN, '%s'", argument);
        *run = argument;
        return 0;
    case ARGP_KEY_END:
        if (!*run) argp_error(state, "no RUN is named: it is the run directory");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

/* Asks the live coordinator of `run`. LS_ERROR when there is none. */
static enum ls_code ask(const struct ls_run_directory *run, enum ls_wire_request request, struct ls_message *answer,
                        struct ls_error *error) {
    char path[PATH_MAX], endpoint[128];
    struct ls_key key;
    if (!ls_run_directory_is_locked(run) || !ls_run_directory_endpoint(run, endpoint, sizeof endpoint))
        return ls_fail(error, LS_ERROR, LS_SCOPE_CALL,
                       "nothing is running in %s. Start it with 'lockstep run CONFIG --resume'.", run->path);
    snprintf(path, sizeof path, "%s/keys/operator.key", run->path);
    enum ls_code code = ls_key_read(path, &key, error);
    if (code == LS_OK) code = ls_operator_ask(endpoint, &key, request, ANSWER_SECONDS, answer, error);
    explicit_bzero(&key, sizeof key);
    if (code != LS_OK) return code;
    if (answer->kind == LS_MESSAGE_REFUSED || answer->kind == LS_MESSAGE_ENDED ||
        (answer->kind == LS_MESSAGE_REPLY && answer->answer.code))
        return ls_fail(error, answer->answer.code ? (enum ls_code)answer->answer.code : LS_ERROR, LS_SCOPE_CALL, "%s",
                       answer->answer.text);
    return LS_OK;
}

static int request_command(int argc, char **argv, const char *doc, enum ls_wire_request request) {
    const struct argp argp = {.parser = parse_option, .args_doc = "RUN", .doc = doc};
    const char *path = NULL;
    struct ls_run_directory run;
    struct ls_message answer;
    struct ls_error error;
    ls_command_parse(&argp, argc, argv, &path);
    enum ls_code code = ls_run_directory_find(path, &run, &error);
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

/* What the journal says of a run that is not going on. */
static enum ls_code print_journal(const struct ls_run_directory *run, struct ls_error *error) {
    char path[PATH_MAX];
    struct ls_journal *journal;
    struct ls_core_record record;
    snprintf(path, sizeof path, "%s/journal.db", run->path);
    enum ls_code code = ls_journal_open_existing(path, &journal, error);
    if (code != LS_OK) return code;
    struct ls_journal_attempt attempt;
    code = ls_journal_last_attempt(journal, &attempt, error);
    printf("run         %s, not running, attempt %lld\n", run->path, (long long)attempt.attempt);
    if (ls_journal_last_record(journal, LS_RECORD_STEP, &record))
        printf("step        %lld\n", (long long)record.step.step);
    if (ls_journal_last_record(journal, LS_RECORD_COMMIT, &record))
        printf("saved       step %lld\n", (long long)record.commit.step);
    if (ls_journal_last_record(journal, LS_RECORD_END, &record))
        printf("ended       code %d (%s): %s\n", (int)record.end.code, ls_code_name(record.end.code), record.end.text);
    ls_journal_close(journal);
    return code;
}

int ls_command_status(int argc, char **argv) {
    const struct argp argp = {
        .parser = parse_option, .args_doc = "RUN", .doc = "Shows how a run is doing; exits 1 when it is not running."};
    const char *path = NULL;
    struct ls_run_directory run;
    struct ls_message answer;
    struct ls_error error, minor;
    ls_command_parse(&argp, argc, argv, &path);
    enum ls_code code = ls_run_directory_find(path, &run, &error);
    if (code == LS_OK) code = ask(&run, LS_WIRE_STATUS, &answer, &error);
    if (code == LS_OK) {
        print_live(&answer.status);
        ls_message_release(&answer);
        return LS_OK;
    }
    if (code == LS_ERROR && print_journal(&run, &minor) != LS_OK) fprintf(stderr, "lockstep: %s\n", minor.text);
    fflush(stdout);
    return ls_report_exit(code, error.text);
}
