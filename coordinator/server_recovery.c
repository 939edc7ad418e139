/* Between two attempts: ending the old one, finding where to go on, launching the new one, and how long that took. */
#define _GNU_SOURCE
#include "coordinator/server_state.h"

#include "common/log.h"
#include "coordinator/launcher.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- events that are no records ---- */

void server_tell(struct ls_server *server, const char *event, const char *format, ...) {
    char text[LS_WIRE_TEXT_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    json_t *fields = json_pack("{s:s}", "text", text);
    char *json = fields ? json_dumps(fields, JSON_COMPACT) : NULL;
    if (json) ls_journal_tell(server->run->journal, server_attempt(server), event, json);
    free(json);
    json_decref(fields);
}

/* ---- the end of an attempt ---- */

static bool has_launcher(const struct ls_server *server) {
    return server->channel >= 0 && server->run->config->launcher.type != LS_LAUNCH_NONE;
}

/* Workers that nobody here can kill are told to go. */
static void tell_workers_to_leave(struct ls_server *server) {
    struct ls_message message = {.kind = LS_MESSAGE_ENDED};
    message.answer.code = LS_COMMUNICATION;
    snprintf(message.answer.text, sizeof message.answer.text,
             "attempt %u of the run is over. Start the workers again: the next attempt waits for them.",
             server_attempt(server));
    int32_t slot = 0;
    for (struct ls_peer *peer; (peer = ls_connections_next(&server->connections, &slot));)
        if (peer->role == LS_CONNECTION_WORKER) server_send(server, peer->name, &message);
}

/* Ends the processes of the attempt; returns true when they are gone. */
static bool end_processes(struct ls_server *server) {
    if (has_launcher(server)) {
        struct ls_channel_message kill = {.kind = LS_CHANNEL_KILL, .attempt = server_attempt(server)};
        return !ls_channel_send(server->channel, &kill);
    }
    if (server->launcher > 0)
        ls_launch_end_session(server->launcher, 0);
    else
        tell_workers_to_leave(server);
    return true;
}

void server_kill(struct ls_server *server, uint32_t attempt) {
    server->recovery.killed_ms = server_now_ms();
    server->clearing = attempt;
    server->processes_gone = end_processes(server);
}

void server_kill_at_end(struct ls_server *server) {
    end_processes(server);
}

void server_check_cleared(struct ls_server *server) {
    if (!server->clearing || !server->processes_gone || ls_committer_is_busy(server->committer)) return;
    struct ls_core_event event = {.kind = LS_EVENT_CLEARED, .attempt = server->clearing};
    server->clearing = 0;
    server->recovery.cleared_ms = server_now_ms();
    server_handle(server, &event);
}

/* ---- where to go on ---- */

void server_prepare(struct ls_server *server, const struct ls_core_action *action) {
    const struct ls_run *run = server->run;
    const struct ls_run_start_wish wish = {.run_dir = run->directory.path,
                                           .attempt = (int64_t)action->attempt + 1,
                                           .below_step = action->prepare.below_step,
                                           .config_digest = run->core.config_digest,
                                           .dataset_digest = run->core.dataset_digest};
    server->preparing = action->attempt;
    ls_committer_prepare(server->committer, &wish);
}

void server_tell_damaged(struct ls_server *server, const struct ls_run_start *start) {
    for (int i = 0; i < start->damaged_count; i++) server_tell(server, "checkpoint_damaged", "%s", start->damaged[i]);
}

/* The most ranks up to `room` that the configuration can be run on. */
static int32_t fitting_ranks(const struct ls_server *server, int64_t room) {
    if (room > LS_CORE_RANKS_MAX) room = LS_CORE_RANKS_MAX;
    while (room > 0 && ls_config_check_ranks(server->run->config, room, NULL) != LS_OK) room--;
    return (int32_t)room;
}

/* Ranks that the hosts have room for, without those left out and with them; -1 where there is this host alone. */
static void count_slots(const struct ls_server *server, int32_t *slots, int32_t *slots_all) {
    const struct ls_allocation *allocation = server->run->allocation;
    const char *excluded[LS_CORE_HOSTS_MAX];
    int count = 0;
    *slots = *slots_all = -1;
    if (!allocation || allocation->hosts.count == 0) return;
    while (count < LS_CORE_HOSTS_MAX && (excluded[count] = ls_core_excluded(server->run->machine, count))) count++;
    count += ls_allocation_find_lost(allocation, excluded + count, LS_CORE_HOSTS_MAX - count);
    *slots = fitting_ranks(server, ls_hosts_room(&allocation->hosts, allocation->ranks_per_node, excluded, count));
    *slots_all = fitting_ranks(server, ls_hosts_room(&allocation->hosts, allocation->ranks_per_node, NULL, 0));
}

void server_take_start(struct ls_server *server) {
    struct ls_prepare_result *result = calloc(1, sizeof *result);
    if (!result || !ls_committer_take_start(server->committer, result)) {
        free(result);
        return;
    }
    server_tell_damaged(server, &result->start);
    struct ls_core_event event = {.kind = LS_EVENT_PREPARED, .attempt = server->preparing};
    server->next = result->start.attempt;
    event.payload = &server->next;
    event.prepared.step = server->next.start_step;
    event.prepared.position = server->next.start_position;
    event.prepared.chain = server->next.start_chain;
    count_slots(server, &event.prepared.slots, &event.prepared.slots_all);
    if (result->error.code) {
        event = (struct ls_core_event){.kind = LS_EVENT_PREPARE_FAILED, .attempt = server->preparing};
        event.prepare_failed.code = result->error.code;
        event.prepare_failed.text = result->error.text;
    }
    server->recovery.prepared_ms = server_now_ms();
    server_handle(server, &event);
    free(result);
}

/* ---- the next attempt ---- */

/* From now on the workers of another attempt are served. */
static void begin_attempt(struct ls_server *server, const struct ls_core_action *action) {
    struct ls_run *run = server->run;
    struct ls_error error;
    run->attempt = server->next;
    run->attempt.attempt = action->attempt;
    run->attempt.world_size = action->launch.world_size;
    run->ranks = action->launch.world_size;
    server->held_ms = 0;
    ls_watcher_destroy(server->watcher);
    ls_stall_destroy(server->stall);
    ls_stragglers_destroy(server->stragglers);
    server->watcher = NULL;
    server->stall = NULL;
    server->stragglers = NULL;
    if (server_start_watching(server, &error) != LS_OK) ls_log(LS_LOG_ERROR, "%s", error.text);
}

static void list_excluded(const struct ls_server *server, char *text, size_t size) {
    size_t used = 0;
    const char *host;
    text[0] = 0;
    for (int i = 0; (host = ls_core_excluded(server->run->machine, i)) && used + strlen(host) + 2 < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%s", used ? "," : "", host);
}

void server_launch(struct ls_server *server, const struct ls_core_action *action) {
    const struct ls_run *run = server->run;
    if (action->attempt != server_attempt(server)) begin_attempt(server, action);
    server->recovery.launched_ms = server_now_ms();
    if (has_launcher(server)) {
        struct ls_channel_message launch = {
            .kind = LS_CHANNEL_LAUNCH, .attempt = run->attempt.attempt, .ranks = run->ranks};
        list_excluded(server, launch.excluded, sizeof launch.excluded);
        ls_channel_send(server->channel, &launch);
    } else if (server->recovery.killed_ms) {
        server_tell(server, "waiting",
                    "attempt %lld waits for its workers; join with mpirun -n %lld lockstep-worker --coordinator %s "
                    "--key %s/keys/worker.key",
                    (long long)run->attempt.attempt, (long long)run->ranks, server->endpoints, run->directory.path);
    }
}

/* ---- how long it took ---- */

void server_note_loss(struct ls_server *server, double silent_seconds) {
    if (server->recovery.lost_ms || server->clearing) return;
    server->recovery.lost_ms = server_now_ms() - (int64_t)(silent_seconds * 1000);
}

void server_note_joined(struct ls_server *server) {
    server->recovery.joined_ms = server_now_ms();
}

void server_note_step(struct ls_server *server, const struct ls_step_report *report) {
    const struct server_recovery times = server->recovery;
    if (!times.killed_ms || !times.joined_ms || times.joined_ms < times.killed_ms) return;
    server->recovery = (struct server_recovery){.lost_ms = 0};
    int64_t now = server_now_ms();
    int64_t lost = times.lost_ms ? times.lost_ms : times.killed_ms;
    double warm_up = report->step_seconds, load = (double)(now - times.joined_ms) * 1e-3 - warm_up;
    if (load < 0) load = 0;
    double detect = (double)(times.killed_ms - lost) * 1e-3, end = (double)(times.cleared_ms - times.killed_ms) * 1e-3;
    double find = (double)(times.prepared_ms - times.cleared_ms) * 1e-3;
    double wait = (double)(times.launched_ms - times.prepared_ms) * 1e-3;
    double relaunch = (double)(times.joined_ms - times.launched_ms) * 1e-3, total = (double)(now - lost) * 1e-3;
    char text[LS_WIRE_TEXT_BYTES];
    snprintf(text, sizeof text,
             "attempt %u goes on: step %lld done %.2f s after the loss (detect %.2f, end %.2f, find %.2f, wait %.2f, "
             "relaunch %.2f, load %.2f, warm up %.2f)",
             server_attempt(server), (long long)report->step, total, detect, end, find, wait, relaunch, load, warm_up);
    json_t *fields = json_pack("{s:s, s:I, s:{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}}", "text", text, "step",
                               (json_int_t)report->step, "recovery_seconds", "detect", detect, "end", end, "find", find,
                               "wait", wait, "relaunch", relaunch, "load", load, "warm_up", warm_up, "total", total);
    char *json = fields ? json_dumps(fields, JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;
    if (json) ls_journal_tell(server->run->journal, server_attempt(server), "recovered", json);
    free(json);
    json_decref(fields);
}
