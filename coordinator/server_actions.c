/* What the core wants done. */
#define _GNU_SOURCE
#include "coordinator/server_state.h"

#include "common/log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void server_note_validation(struct ls_server *server, int64_t step, double loss) {
    server->validations[step % SERVER_VALIDATIONS] = (struct server_validation){step, loss};
}

/* ---- journal ---- */

/* What the next attempt begins with, as the core wants it: the checkpoint's step at a position of the run's own
 * generation of the data. */
static void begin_attempt(struct ls_server *server, const struct ls_core_record *record) {
    struct ls_journal_attempt *next = &server->next;
    next->attempt = record->attempt;
    next->world_size = record->attempt_begun.world_size;
    next->start_position = record->attempt_begun.start_position;
    next->data_generation = server->run->core.data_generation;
    if (record->attempt_begun.begins_generation) next->generation_step = next->start_step;
}

static void journal(struct ls_server *server, const struct ls_core_record *record) {
    struct ls_journal_entry entry = {.record = *record};
    if (record->kind == LS_RECORD_STEP) {
        entry.report = *(const struct ls_step_report *)record->payload;
    } else if (record->kind == LS_RECORD_VALIDATION) {
        const struct ls_message *message = record->payload;
        entry.loss = message->validation.loss;
        entry.bits_per_byte = message->validation.bits_per_byte;
        server_note_validation(server, record->validation.step, entry.loss);
    } else if (record->kind == LS_RECORD_ATTEMPT && (entry.attempt = malloc(sizeof *entry.attempt))) {
        begin_attempt(server, record);
        *entry.attempt = server->next;
    } else if (record->kind == LS_RECORD_JOINED) {
        server_note_joined(server);
    } else if (record->kind == LS_RECORD_COMMIT && record->commit.step == server->saved.step) {
        entry.save_seconds = server->saved.seconds;
        entry.save_bytes = server->saved.bytes;
    }
    entry.record.payload = NULL; /* it lives only as long as the message */
    ls_journal_append(server->run->journal, &entry);
}

/* ---- checkpoints ---- */

/* Keeps the files of the PART being handled; `first`: and of none before it. */
static void keep_part(struct ls_server *server, int64_t step, bool first) {
    if (first) ls_save_parts_drop(&server->parts);
    ls_save_parts_keep(&server->parts, step, server->current);
}

static void commit_failed(struct ls_server *server, int64_t step, const char *text) {
    struct ls_core_event event = {.kind = LS_EVENT_COMMIT_FAILED, .attempt = server_attempt(server)};
    event.commit.step = step;
    event.commit.text = text;
    server_handle(server, &event);
}

static void commit(struct ls_server *server, const struct ls_core_action *action) {
    const struct ls_run *run = server->run;
    struct ls_save_parts *parts = &server->parts;
    struct ls_commit_job job = {.files = parts->files, .files_count = parts->files_count};
    struct ls_trainer_state *state = &job.state;
    state->step = (uint64_t)action->commit.step;
    state->attempt = (uint64_t)run->attempt.attempt;
    state->position = (uint64_t)action->commit.position;
    state->samples = (uint64_t)action->commit.samples;
    state->epoch = run->data.epoch_length ? state->position / run->data.epoch_length : 0;
    state->data_generation = (uint64_t)run->attempt.data_generation;
    state->data_generation_step = (uint64_t)run->attempt.generation_step;
    state->quarantine = *ls_core_quarantine(run->machine);
    state->optimizer_steps = (uint64_t)parts->optimizer_steps;
    state->tokens = (uint64_t)(run->attempt.tokens +
                               (action->commit.samples - run->attempt.samples) * run->config->data.sequence_length);
    state->world_size = (uint64_t)run->ranks;
    state->data_seed = run->config->data.seed;
    state->train_seed = run->config->train.seed;
    ls_digest_format(action->commit.chain, state->ledger_chain);
    memcpy(state->parent_manifest, run->attempt.parent_manifest, sizeof state->parent_manifest);
    memcpy(state->config_digest, run->core.config_digest, sizeof state->config_digest);
    memcpy(state->dataset_digest, run->core.dataset_digest, sizeof state->dataset_digest);
    memcpy(state->train_digest, run->data.train_digest, sizeof state->train_digest);
    memcpy(state->validation_digest, run->data.validation_digest, sizeof state->validation_digest);
    struct ls_core_status status;
    ls_core_read_status(run->machine, &status);
    job.final = action->commit.step == status.end_step;
    const struct server_validation *validation = &server->validations[action->commit.step % SERVER_VALIDATIONS];
    state->validated = validation->step == action->commit.step && isfinite(validation->loss);
    state->validation_loss = state->validated ? validation->loss : 0;
    job.best = run->config->checkpoint.keep_best > 0;
    server->saved = (struct server_saved){action->commit.step, parts->seconds, parts->bytes};
    if (parts->step != action->commit.step)
        commit_failed(server, action->commit.step, "its parts are not known here");
    else if (parts->missing)
        commit_failed(server, action->commit.step, parts->missing);
    else if (!ls_committer_begin(server->committer, &job))
        commit_failed(server, action->commit.step, "another one is being committed");
    else
        *parts = (struct ls_save_parts){0}; /* the committer has the files now */
}

/* ---- the end ---- */

static void tell_everybody(struct ls_server *server, struct ls_message *message) {
    int32_t slot = 0;
    for (struct ls_peer *peer; (peer = ls_connections_next(&server->connections, &slot));)
        server_send(server, peer->name, message);
}

static void end(struct ls_server *server, const struct ls_core_action *action) {
    server->ended = true;
    server->end_code = action->message.code;
    snprintf(server->end_text, sizeof server->end_text, "%s", action->message.text);
    struct ls_message message = {.kind = LS_MESSAGE_ENDED};
    message.answer.code = (int32_t)action->message.code;
    memcpy(message.answer.text, server->end_text, sizeof message.answer.text);
    tell_everybody(server, &message);
    /* Workers that have not joined do not hear it. */
    struct ls_core_status status;
    ls_core_read_status(server->run->machine, &status);
    if (status.ranks_joined < status.world_size) server_kill_at_end(server);
}

/* ---- all of them ---- */

static void send_answer(struct ls_server *server, const struct ls_core_action *action, enum ls_message_kind kind) {
    struct ls_message message = {.kind = kind};
    message.answer.code = (int32_t)action->message.code;
    memcpy(message.answer.text, action->message.text, sizeof message.answer.text);
    server_send(server, action->connection, &message);
}

static void send_order(struct ls_server *server, const struct ls_core_action *action) {
    struct ls_message message = {.kind = LS_MESSAGE_ORDER};
    struct ls_core_status status;
    ls_core_read_status(server->run->machine, &status);
    message.order.id = action->order.id;
    message.order.stop = action->order.stop;
    message.order.code = action->order.stop ? (int32_t)status.stop_code : LS_OK;
    server_send(server, action->connection, &message);
}

static void send_committed(struct ls_server *server, const struct ls_core_action *action) {
    struct ls_message message = {.kind = LS_MESSAGE_COMMITTED};
    message.committed.step = action->committed.step;
    if (action->connection) {
        server_send(server, action->connection, &message);
        return;
    }
    int32_t slot = 0;
    for (struct ls_peer *peer; (peer = ls_connections_next(&server->connections, &slot));)
        if (ls_core_is_joined(server->run->machine, peer->name)) server_send(server, peer->name, &message);
}

/* Folders are counted, so it does not matter which of them the core named. */
static void prune(struct ls_server *server) {
    struct ls_core_status status;
    ls_core_read_status(server->run->machine, &status);
    const struct ls_retention retention = ls_run_retention(server->run->config);
    ls_committer_prune(server->committer, status.committed_step, &retention);
}

/* `ends`: END is among the actions that this one is of. */
static void perform(struct ls_server *server, const struct ls_core_action *action, bool ends) {
    struct ls_message message = {0};
    switch (action->kind) {
    case LS_ACTION_WELCOME:
        message.kind = LS_MESSAGE_WELCOME;
        message.welcome.acknowledged_step = action->welcome.acked_step;
        message.welcome.acknowledged_validation = action->welcome.acked_validation;
        server_send(server, action->connection, &message);
        break;
    case LS_ACTION_REFUSE: send_answer(server, action, LS_MESSAGE_REFUSED); break;
    case LS_ACTION_REJOIN:
        message.kind = LS_MESSAGE_REJOIN;
        server_send(server, action->connection, &message);
        break;
    case LS_ACTION_GRANT:
        message.kind = LS_MESSAGE_GRANT;
        message.grant.from_step = action->grant.from_step;
        message.grant.to_step = action->grant.to_step;
        message.grant.from_position = (uint64_t)action->grant.from_position;
        message.grant.to_position = (uint64_t)action->grant.to_position;
        server_send(server, action->connection, &message);
        break;
    case LS_ACTION_ORDER: send_order(server, action); break;
    case LS_ACTION_ACK:
        message.kind = LS_MESSAGE_ACK;
        message.ack.step = action->ack.step;
        message.ack.validation = action->ack.validation;
        server_send(server, action->connection, &message);
        break;
    case LS_ACTION_COMMITTED: send_committed(server, action); break;
    case LS_ACTION_REPLY: send_answer(server, action, LS_MESSAGE_REPLY); break;
    case LS_ACTION_JOURNAL: journal(server, &action->record); break;
    case LS_ACTION_KEEP_PART: keep_part(server, action->part.step, action->part.first); break;
    case LS_ACTION_COMMIT: commit(server, action); break;
    case LS_ACTION_PRUNE: prune(server); break;
    case LS_ACTION_LAUNCH: server_launch(server, action); break;
    case LS_ACTION_KILL:
        if (ends)
            server_kill_at_end(server);
        else
            server_kill(server, action->attempt);
        break;
    case LS_ACTION_PREPARE: server_prepare(server, action); break;
    case LS_ACTION_END: end(server, action); break;
    case LS_ACTION_KINDS: break;
    }
}

void server_perform(struct ls_server *server, const struct ls_core_actions *actions) {
    const bool ends = actions->count > 0 && actions->list[actions->count - 1].kind == LS_ACTION_END;
    for (int i = 0; i < actions->count; i++) perform(server, &actions->list[i], ends);
}
