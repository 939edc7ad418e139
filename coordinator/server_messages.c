/* What connections say: decoding, roles, and the events that follow. */
#define _GNU_SOURCE
#include "coordinator/server_state.h"

#include "common/log.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

enum { MESSAGES_PER_TURN = 256, TELL_AGAIN_MS = 60000 };

void server_complain(struct server_count *count, const char *what, const char *detail) {
    int64_t now = server_now_ms();
    count->total++;
    if (count->told && now - count->told_ms < TELL_AGAIN_MS) return;
    ls_log(LS_LOG_WARNING, "coordinator: %s (%llu since the last such line): %s", what,
           (unsigned long long)(count->total - count->told), detail);
    count->told = count->total;
    count->told_ms = now;
}

/* ---- connections ---- */

static void forget(struct ls_server *server, struct ls_peer *peer) {
    struct ls_core_event event = {.kind = LS_EVENT_CONNECTION_LOST, .connection = peer->name};
    ls_connections_forget(&server->connections, peer);
    server_handle(server, &event);
}

void server_drop_silent(struct ls_server *server) {
    int32_t slot = 0;
    for (struct ls_peer *peer; (peer = ls_connections_next(&server->connections, &slot));)
        if (server->clock_ms - peer->heard_ms > SERVER_SILENCE_MS) forget(server, peer);
}

/* The peer of a route, made when it is new; NULL when there is no room. */
static struct ls_peer *meet(struct ls_server *server, const void *route, size_t size, enum ls_connection_role role) {
    struct ls_peer *peer = ls_connections_meet(&server->connections, route, size, role);
    if (peer)
        peer->heard_ms = server->clock_ms;
    else
        server_complain(&server->crowded, "a connection was turned away", "too many are open");
    return peer;
}

void server_send(struct ls_server *server, ls_connection name, struct ls_message *message) {
    const struct ls_peer *connection = ls_connections_find(&server->connections, name);
    struct ls_error error;
    size_t count;
    if (!connection) return;
    message->attempt = server_attempt(server);
    message->generation = server->run->core.generation;
    if (ls_wire_encode(message, server->buffer, LS_WIRE_BYTES_MAX, &count, &error) != LS_OK) {
        ls_log(LS_LOG_ERROR, "%s", error.text);
        return;
    }
    if (zmq_send(server->router, connection->route, connection->route_size, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0) return;
    zmq_send(server->router, server->buffer, count, ZMQ_DONTWAIT);
}

static void answer(struct ls_server *server, ls_connection name, enum ls_message_kind kind, enum ls_code code,
                   const char *text) {
    struct ls_message message = {.kind = kind};
    message.answer.code = (int32_t)code;
    snprintf(message.answer.text, sizeof message.answer.text, "%s", text);
    server_send(server, name, &message);
}

static void send_plain(struct ls_server *server, ls_connection name, enum ls_message_kind kind) {
    struct ls_message message = {.kind = kind};
    server_send(server, name, &message);
}

/* ---- workers ---- */

/* From the end of one attempt to the launch of the next. */
static bool is_between_attempts(const struct ls_server *server, const struct ls_core_status *core) {
    return core->phase == LS_PHASE_CLEARING || core->phase == LS_PHASE_PREPARING || core->phase == LS_PHASE_BACKOFF ||
           core->attempt != server_attempt(server);
}

static void on_open(struct ls_server *server, ls_connection name, const struct ls_message *message) {
    const struct ls_run *run = server->run;
    char text[LS_WIRE_TEXT_BYTES];
    if (strcmp(message->open.version, LS_VERSION) != 0) {
        snprintf(text, sizeof text,
                 "the worker is lockstep-worker %s, the coordinator is %s. Install the same version on every host.",
                 message->open.version, LS_VERSION);
        answer(server, name, LS_MESSAGE_REFUSED, LS_USAGE, text);
        return;
    }
    struct ls_core_status core;
    ls_core_read_status(run->machine, &core);
    if (message->attempt && message->attempt != core.attempt) {
        snprintf(text, sizeof text, "this worker was started for attempt %u, the run is at attempt %u. It must end.",
                 message->attempt, core.attempt);
        answer(server, name, LS_MESSAGE_REFUSED, LS_COMMUNICATION, text);
        return;
    }
    /* Between two attempts there is nothing to join yet; the worker asks again. */
    if (is_between_attempts(server, &core)) return;
    struct ls_message setup = {.kind = LS_MESSAGE_SETUP};
    struct ls_welcome *shape = &setup.setup.shape;
    shape->attempt = run->attempt.attempt;
    shape->world_size = run->ranks;
    shape->start_step = run->attempt.start_step;
    shape->start_position = (uint64_t)run->attempt.start_position;
    shape->total_steps = run->total_steps;
    shape->end_position = run->end_position;
    shape->optimizer_steps = run->attempt.optimizer_steps;
    shape->end_step = core.end_step;
    shape->quarantine = *ls_core_quarantine(run->machine);
    snprintf(shape->run_directory, sizeof shape->run_directory, "%s", run->directory.path);
    snprintf(shape->run_id, sizeof shape->run_id, "%s", run->directory.run_id);
    snprintf(shape->checkpoint, sizeof shape->checkpoint, "%s", run->attempt.checkpoint);
    memcpy(shape->token, run->token, sizeof shape->token);
    setup.setup.yaml = run->yaml;
    server_send(server, name, &setup);
}

_Static_assert(sizeof((struct ls_core_rank *)0)->numerics == sizeof((struct ls_rank_info *)0)->numerics_id,
               "the core keeps a numerics id as it comes");

/* For the summary: which hosts the ranks are on. */
static void place_ranks(struct ls_server *server, const struct ls_message *message) {
    const char **hosts = malloc((size_t)message->hello.ranks_count * sizeof *hosts + 1);
    for (int64_t i = 0; hosts && i < message->hello.ranks_count; i++) hosts[i] = message->hello.ranks[i].host;
    if (hosts) ls_metrics_place(server->metrics, hosts, message->hello.ranks_count);
    free(hosts);
}

static void on_hello(struct ls_server *server, struct ls_core_event *event, const struct ls_message *message) {
    for (int64_t i = 0; i < message->hello.ranks_count; i++) {
        const struct ls_rank_info *from = &message->hello.ranks[i];
        struct ls_core_rank *rank = &server->ranks[i];
        rank->rank = (int32_t)from->rank;
        rank->pid = from->pid;
        snprintf(rank->host, sizeof rank->host, "%s", from->host);
        memcpy(rank->config_digest, from->config_digest, sizeof rank->config_digest);
        memcpy(rank->dataset_digest, from->dataset_digest, sizeof rank->dataset_digest);
        memcpy(rank->numerics, from->numerics_id, sizeof rank->numerics);
        if (server->stall) ls_stall_name_rank(server->stall, from->rank, from->host, from->pid);
    }
    if (message->hello.ranks_count == message->hello.world_size) place_ranks(server, message);
    event->kind = LS_EVENT_HELLO;
    event->hello = (struct ls_core_hello){
        .attempt = message->attempt,
        .protocol = message->protocol,
        .world_size = (int32_t)message->hello.world_size,
        .ranks = server->ranks,
        .ranks_count = (int32_t)message->hello.ranks_count,
        .started = message->hello.started,
        .steps_done = message->hello.steps_done,
        .granted_step = message->hello.granted_step,
    };
    memcpy(event->hello.version, message->hello.version, sizeof event->hello.version);
    server_handle(server, event);
}

/* Tells of ranks that the others began, or ceased, to wait for. */
static void watch_stragglers(struct ls_server *server, const struct ls_step_report *report) {
    struct ls_straggler change;
    char text[LS_WIRE_TEXT_BYTES];
    ls_stragglers_step(server->stragglers, report->wait_for_rank, report->wait_seconds, report->step_seconds);
    while (ls_stragglers_next(server->stragglers, &change)) {
        const char *host = ls_stall_rank_host(server->stall, change.rank);
        if (change.named)
            snprintf(text, sizeof text,
                     "straggler: rank %lld on %s: the others wait for it %.0f %% of each step (of about the last "
                     "%lld). Look for what else runs there, and at its clock and temperature.",
                     (long long)change.rank, host, change.percent, (long long)change.steps);
        else
            snprintf(text, sizeof text, "rank %lld on %s no longer holds up the others (%.0f %%)",
                     (long long)change.rank, host, change.percent);
        json_t *fields = json_pack("{s:I, s:s, s:f, s:I, s:s}", "rank", (json_int_t)change.rank, "host", host,
                                   "percent", change.percent, "steps", (json_int_t)change.steps, "text", text);
        char *json = fields ? json_dumps(fields, JSON_COMPACT) : NULL;
        if (json)
            ls_journal_tell(server->run->journal, server_attempt(server),
                            change.named ? "straggler" : "straggler_cleared", json);
        free(json);
        json_decref(fields);
    }
}

static void on_step(struct ls_server *server, struct ls_core_event *event, const struct ls_message *message) {
    const struct ls_step_report *report = &message->step;
    event->kind = LS_EVENT_STEP_DONE;
    event->payload = report;
    event->step = (struct ls_core_step){
        .step = report->step,
        .end_position = (int64_t)report->position,
        .sequences = report->sequences,
        .targets = report->targets,
        .loss_sum = report->loss * (double)report->targets,
        .skipped = report->skipped,
        .digest = report->digest,
    };
    struct ls_core_status before, after;
    ls_core_read_status(server->run->machine, &before);
    server_handle(server, event);
    ls_core_read_status(server->run->machine, &after);
    /* One that comes again, late or from elsewhere says nothing about the attempt. */
    if (after.attempt != before.attempt || after.step == before.step) return;
    if (server->stall) ls_stall_step(server->stall, report);
    if (server->stragglers) watch_stragglers(server, report);
    server->loss = report->loss;
    server->tokens_per_second = report->tokens_per_second;
    server->step_seconds =
        server->step_seconds > 0 ? 0.9 * server->step_seconds + 0.1 * report->step_seconds : report->step_seconds;
    server_note_step(server, report);
}

static void on_report(struct ls_server *server, const struct ls_message *message) {
    if (server->stall && message->attempt == server_attempt(server)) ls_stall_report(server->stall, &message->report);
}

/* Reports that nodes have handed on; what is no report is passed over. */
static void on_bundle(struct ls_server *server, const struct ls_message *message) {
    for (int64_t i = 0; i < message->bundle.reports_count; i++) {
        const struct ls_wire_piece *piece = &message->bundle.reports[i];
        struct ls_message report;
        struct ls_error error;
        if (ls_wire_decode(piece->bytes, piece->count, &report, &error) != LS_OK) {
            server_complain(&server->undecodable, "a report was dropped", error.text);
            continue;
        }
        if (report.kind == LS_MESSAGE_REPORT && report.protocol == LS_PROTOCOL) on_report(server, &report);
        ls_message_release(&report);
    }
}

/* Every report is answered, so that a node knows whether its attempt goes on. */
static void answer_report(struct ls_server *server, ls_connection name, uint32_t attempt) {
    struct ls_core_status core;
    ls_core_read_status(server->run->machine, &core);
    if (attempt == server_attempt(server) && !is_between_attempts(server, &core))
        send_plain(server, name, LS_MESSAGE_PULSE);
    else
        answer(server, name, LS_MESSAGE_ENDED, LS_COMMUNICATION, "this attempt is over");
}

static void on_worker(struct ls_server *server, ls_connection name, const struct ls_message *message) {
    struct ls_core_event event = {.connection = name, .attempt = message->attempt};
    switch (message->kind) {
    case LS_MESSAGE_OPEN: on_open(server, name, message); return;
    case LS_MESSAGE_HELLO: on_hello(server, &event, message); return;
    case LS_MESSAGE_STEP: on_step(server, &event, message); return;
    case LS_MESSAGE_REPORT:
        on_report(server, message);
        answer_report(server, name, message->attempt);
        return;
    case LS_MESSAGE_BUNDLE:
        on_bundle(server, message);
        answer_report(server, name, message->attempt);
        return;
    case LS_MESSAGE_VALIDATION:
        event.kind = LS_EVENT_VALIDATION;
        event.payload = message;
        event.validation.step = message->validation.step;
        break;
    case LS_MESSAGE_SAVING:
        event.kind = LS_EVENT_SAVING;
        event.saving.step = message->saving.step;
        event.saving.order = message->saving.order;
        event.saving.stop = message->saving.stop;
        break;
    case LS_MESSAGE_PART:
        event.kind = LS_EVENT_PART;
        event.part.step = message->part.step;
        event.part.rank = (int32_t)message->part.rank;
        break;
    case LS_MESSAGE_SAVE_FAILED:
        event.kind = LS_EVENT_SAVE_FAILED;
        event.save_failed.step = message->save_failed.step;
        event.save_failed.rank = (int32_t)message->save_failed.rank;
        event.save_failed.text = message->save_failed.text;
        break;
    case LS_MESSAGE_FAULT:
        if (message->fault.replicas_differ) {
            event.kind = LS_EVENT_REPLICA_DIFFERS;
            event.replica_differs.step = message->fault.step;
            event.replica_differs.good_step = message->fault.good_step;
            event.replica_differs.rank = (int32_t)message->fault.rank;
            break;
        }
        event.kind = LS_EVENT_FAULT;
        event.fault.rank = (int32_t)message->fault.rank;
        event.fault.step = message->fault.step;
        event.fault.code = (enum ls_code)message->fault.code;
        event.fault.text = message->fault.text;
        event.fault.unloadable = message->fault.unloadable;
        event.fault.host = message->fault.host;
        break;
    case LS_MESSAGE_SAVE_REQUEST:
        event.kind = LS_EVENT_SIGNAL;
        event.signal = LS_SIGNAL_SAVE;
        break;
    case LS_MESSAGE_PULSE:
        send_plain(server, name, ls_core_is_joined(server->run->machine, name) ? LS_MESSAGE_PULSE : LS_MESSAGE_REJOIN);
        return;
    default: return;
    }
    server_handle(server, &event);
}

/* ---- operators ---- */

static void send_status(struct ls_server *server, ls_connection name) {
    const struct ls_run *run = server->run;
    struct ls_core_status core;
    ls_core_read_status(run->machine, &core);
    struct ls_message message = {.kind = LS_MESSAGE_STATUS};
    struct ls_wire_status *status = &message.status;
    snprintf(status->name, sizeof status->name, "%s", run->config->name);
    snprintf(status->phase, sizeof status->phase, "%s", ls_core_phase_name(core.phase));
    status->world_size = core.world_size;
    status->ranks_joined = core.ranks_joined;
    status->start_step = core.start_step;
    status->step = core.step;
    status->total_steps = core.end_step;
    status->granted_step = core.granted_step;
    status->journaled_step = core.journaled_step;
    status->committed_step = core.committed_step;
    status->saving_step = core.saving_step;
    status->position = (uint64_t)core.samples;
    status->attempt = core.attempt;
    status->restarts = core.restarts;
    status->max_restarts = run->config->fault.max_restarts;
    status->loss = server->loss;
    status->tokens_per_second = server->tokens_per_second;
    status->eta_seconds = server->step_seconds > 0 ? server->step_seconds * (double)(core.end_step - core.step) : NAN;
    status->handshakes_failed = server->handshakes.total;
    status->messages_dropped = server->undecodable.total + server->forbidden.total;
    status->pid = getpid();
    gethostname(status->host, sizeof status->host - 1);
    server_send(server, name, &message);
}

static void on_operator(struct ls_server *server, ls_connection name, const struct ls_message *message) {
    if (message->kind == LS_MESSAGE_PULSE) {
        send_plain(server, name, ls_core_is_asked(server->run->machine, name) ? LS_MESSAGE_PULSE : LS_MESSAGE_REJOIN);
    } else if (message->request == LS_WIRE_STATUS) {
        send_status(server, name);
    } else {
        struct ls_core_event event = {.kind = LS_EVENT_REQUEST, .connection = name};
        event.request = message->request == LS_WIRE_STOP ? LS_REQUEST_STOP : LS_REQUEST_CHECKPOINT;
        server_handle(server, &event);
    }
}

/* ---- receiving ---- */

static bool is_allowed(enum ls_connection_role role, enum ls_message_kind kind) {
    if (kind == LS_MESSAGE_PULSE) return true;
    if (role == LS_CONNECTION_OPERATOR) return kind == LS_MESSAGE_REQUEST;
    return kind <= LS_MESSAGE_GOODBYE;
}

static void on_message(struct ls_server *server, struct ls_peer *connection, const struct ls_message *message) {
    ls_connection name = connection->name;
    char text[LS_WIRE_TEXT_BYTES];
    if (server->ended) {
        server->left |= connection->role == LS_CONNECTION_WORKER && message->kind == LS_MESSAGE_GOODBYE;
        return;
    }
    if (message->protocol != LS_PROTOCOL) {
        snprintf(text, sizeof text, "protocol %u, the coordinator speaks %d. Use the same version of lockstep.",
                 message->protocol, LS_PROTOCOL);
        answer(server, name, LS_MESSAGE_REFUSED, LS_USAGE, text);
    } else if (!is_allowed(connection->role, message->kind)) {
        snprintf(text, sizeof text, "%s key may not send '%s'. Use the %s key of the run.",
                 connection->role == LS_CONNECTION_WORKER ? "a worker" : "an operator", ls_message_name(message->kind),
                 connection->role == LS_CONNECTION_WORKER ? "operator" : "worker");
        server_complain(&server->forbidden, "a message was not allowed", text);
        answer(server, name, LS_MESSAGE_REFUSED, LS_USAGE, text);
    } else if (message->kind == LS_MESSAGE_GOODBYE) {
        forget(server, connection);
    } else if (connection->role == LS_CONNECTION_OPERATOR) {
        on_operator(server, name, message);
    } else {
        server->current = message;
        on_worker(server, name, message);
        server->current = NULL;
    }
}

/* A worker or an operator, by what the key check wrote on the connection; false when it wrote nothing. */
static bool read_role(zmq_msg_t *frame, enum ls_connection_role *role) {
    const char *user = zmq_msg_gets(frame, "User-Id");
    if (!user) return false;
    *role = strcmp(user, "operator") == 0 ? LS_CONNECTION_OPERATOR : LS_CONNECTION_WORKER;
    return *role == LS_CONNECTION_OPERATOR || strcmp(user, "worker") == 0;
}

/* Takes one message of any number of frames: route and body. False when there is none. */
static bool receive_one(struct ls_server *server) {
    zmq_msg_t frames[2], excess;
    int count = 0;
    zmq_msg_init(&frames[0]);
    zmq_msg_init(&frames[1]);
    zmq_msg_init(&excess);
    for (int more = 1; more;) {
        zmq_msg_t *frame = count < 2 ? &frames[count] : &excess;
        if (zmq_msg_recv(frame, server->router, count ? 0 : ZMQ_DONTWAIT) < 0) break;
        more = zmq_msg_more(frame);
        if (count < 3) count++;
    }
    enum ls_connection_role role;
    struct ls_message message;
    struct ls_error error;
    struct ls_peer *connection = NULL;
    if (count > 0 && count != 2) {
        server_complain(&server->undecodable, "a message was dropped", "it has not the frames of one");
    } else if (count == 2 && !read_role(&frames[1], &role)) {
        server_complain(&server->forbidden, "a message was dropped", "its connection has no user");
    } else if (count == 2 &&
               ls_wire_decode(zmq_msg_data(&frames[1]), zmq_msg_size(&frames[1]), &message, &error) != LS_OK) {
        server_complain(&server->undecodable, "a message was dropped", error.text);
    } else if (count == 2) {
        connection = meet(server, zmq_msg_data(&frames[0]), zmq_msg_size(&frames[0]), role);
        if (connection) on_message(server, connection, &message);
        ls_message_release(&message);
    }
    zmq_msg_close(&frames[0]);
    zmq_msg_close(&frames[1]);
    zmq_msg_close(&excess);
    return count > 0;
}

void server_receive(struct ls_server *server) {
    for (int i = 0; i < MESSAGES_PER_TURN && !server->ended && receive_one(server); i++)
        ;
}

void server_await_goodbye(struct ls_server *server, int64_t milliseconds) {
    const int64_t until = server_now_ms() + milliseconds;
    zmq_pollitem_t item = {server->router, 0, ZMQ_POLLIN, 0};
    for (int64_t left; !server->left && (left = until - server_now_ms()) > 0;) {
        zmq_poll(&item, 1, left);
        for (int i = 0; i < MESSAGES_PER_TURN && !server->left && receive_one(server); i++)
            ;
    }
}
