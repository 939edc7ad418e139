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

enum { ASK_AGAIN_MS = 3000 }; /* hosts that are waited for */

/* ---- events that are no records ---- */

void server_tell(struct ls_server *server, const char *event, const char *format, ...) {
    char text[LS_WIRE_TEXT_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    char plain[LS_WIRE_TEXT_BYTES];
    json_t *fields = json_pack("{s:s}", "text", ls_wire_make_plain(plain, sizeof plain, text));
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

/* Ends the processes of the attempt; returns true when they are gone, or not ours to end. */
static bool end_processes(struct ls_server *server) {
    if (has_launcher(server)) {
        struct ls_channel_message kill = {.kind = LS_CHANNEL_KILL, .attempt = server_attempt(server)};
        return !ls_channel_send(server->channel, &kill);
    }
    if (server->launcher > 0) ls_launch_end_session(server->launcher, 0);
    return true;
}

void server_kill(struct ls_server *server, uint32_t attempt) {
    server->recovery.killed_ms = server_now_ms();
    server->clearing = attempt;
    server->processes_gone = end_processes(server);
    if (!has_launcher(server) && server->launcher <= 0) tell_workers_to_leave(server);
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
                                           .best = run->config->checkpoint.keep_best > 0};
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

static bool has_hosts(const struct ls_server *server) {
    return server->run->allocation && server->run->allocation->hosts.count > 0;
}

/* Asks which hosts were there at the start and are not now. */
static void ask_hosts(struct ls_server *server) {
    struct server_room *room = &server->room;
    room->asked_ms = server_now_ms();
    room->silent_count = ls_allocation_find_lost(server->run->allocation, room->silent, LS_CORE_HOSTS_MAX);
}

/* The hosts that do not answer and those left out; returns how many. */
static int list_left_out(const struct ls_server *server, const char *without[2 * LS_CORE_HOSTS_MAX]) {
    const char *name;
    int count = server->room.silent_count;
    for (int i = 0; i < count; i++) without[i] = server->room.silent[i];
    for (int i = 0; i < LS_CORE_HOSTS_MAX && (name = ls_core_excluded(server->run->machine, i)); i++)
        without[count++] = name;
    return count;
}

void server_find_host(const struct ls_server *server, int32_t rank, char *host, size_t size) {
    const struct ls_run *run = server->run;
    const char *without[2 * LS_CORE_HOSTS_MAX];
    host[0] = 0;
    if (!has_hosts(server)) snprintf(host, size, "%s", run->facts.host);
    if (!has_hosts(server) || run->config->launcher.arguments_count) return;
    const struct ls_allocation *allocation = run->allocation;
    int64_t *counts = calloc((size_t)allocation->hosts.count, sizeof *counts), before = 0;
    if (counts && ls_hosts_deal(&allocation->hosts, run->ranks, allocation->ranks_per_node, without,
                                list_left_out(server, without), counts, NULL) == LS_OK)
        for (int i = 0; i < allocation->hosts.count; before += counts[i++])
            if (rank >= before && rank < before + counts[i]) snprintf(host, size, "%s", allocation->hosts.list[i].name);
    free(counts);
}

/* Ranks that the hosts which answer have room for, without those left out and with them; -1 where hosts are not ours to
 * choose. */
static void count_slots(const struct ls_server *server, int32_t *slots, int32_t *slots_all) {
    const struct ls_allocation *allocation = server->run->allocation;
    const struct server_room *room = &server->room;
    const char *without[2 * LS_CORE_HOSTS_MAX];
    *slots = *slots_all = -1;
    if (!has_hosts(server)) return;
    const int count = list_left_out(server, without);
    *slots = fitting_ranks(server, ls_hosts_room(&allocation->hosts, allocation->ranks_per_node, without, count));
    *slots_all = fitting_ranks(
        server, ls_hosts_room(&allocation->hosts, allocation->ranks_per_node, room->silent, room->silent_count));
}

/* The fewest ranks that the run may go on with; 0: any number. */
static int32_t least_ranks(const struct ls_server *server) {
    const int32_t wanted = server->run->core.ranks_wanted, least = server->run->core.min_ranks;
    return least && least < wanted ? least : wanted;
}

static void list_names(const char *const *names, int count, char *text, size_t size) {
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < count && used + strlen(names[i]) + 3 < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%s", used ? ", " : "", names[i]);
}

/* True while there is hope that a host that is needed answers again. */
static bool waits_for_hosts(struct ls_server *server, int32_t slots_all) {
    struct server_room *room = &server->room;
    const int64_t limit_ms = server->run->config->fault.start_timeout_seconds * 1000;
    char names[256];
    if (slots_all < 0 || slots_all >= least_ranks(server) || room->silent_count == 0) return false;
    if (server_now_ms() - room->since_ms >= limit_ms) return false;
    if (room->told) return true;
    room->told = true;
    list_names(room->silent, room->silent_count, names, sizeof names);
    server_tell(server, "waiting_for_hosts",
                "%d ranks can be placed, %d are needed (fault.min_ranks): waiting up to %lld s for %s to answer again",
                slots_all, least_ranks(server), (long long)(limit_ms / 1000), names);
    return true;
}

void server_check_room(struct ls_server *server) {
    struct server_room *room = &server->room;
    if (!room->since_ms || (room->asked_ms && server_now_ms() - room->asked_ms < ASK_AGAIN_MS)) return;
    struct ls_core_event event = {.kind = LS_EVENT_PREPARED, .attempt = server->preparing, .payload = &server->next};
    if (has_hosts(server)) ask_hosts(server);
    count_slots(server, &event.prepared.slots, &event.prepared.slots_all);
    if (waits_for_hosts(server, event.prepared.slots_all)) return;
    room->since_ms = 0;
    event.prepared.step = server->next.start_step;
    event.prepared.position = server->next.start_position;
    event.prepared.samples = server->next.samples;
    event.prepared.data_generation = server->next.data_generation;
    event.prepared.chain = server->next.start_chain;
    event.prepared.fewer = fitting_ranks(server, server->run->ranks - 1);
    server->recovery.prepared_ms = server_now_ms();
    server_handle(server, &event);
}

void server_take_start(struct ls_server *server) {
    struct ls_prepare_result *result = calloc(1, sizeof *result);
    if (!result || !ls_committer_take_start(server->committer, result)) {
        free(result);
        return;
    }
    server_tell_damaged(server, &result->start);
    if (result->error.code) {
        struct ls_core_event event = {.kind = LS_EVENT_PREPARE_FAILED, .attempt = server->preparing};
        event.prepare_failed.code = result->error.code;
        event.prepare_failed.text = result->error.text;
        server_handle(server, &event);
    } else {
        server->next = result->start.attempt;
        server->room = (struct server_room){.since_ms = server_now_ms()};
        server_check_room(server);
    }
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

static void add_name(char *text, size_t size, const char *name) {
    const size_t used = strlen(text);
    if (used + strlen(name) + 2 < size) snprintf(text + used, size - used, "%s%s", used ? "," : "", name);
}

static bool is_silent(const struct server_room *room, const char *name) {
    for (int i = 0; i < room->silent_count; i++)
        if (ls_host_is(room->silent[i], name)) return true;
    return false;
}

/* Which hosts get no rank: told, and handed to the supervisor. */
static void leave_out_hosts(struct ls_server *server, struct ls_channel_message *launch) {
    const struct ls_allocation *allocation = server->run->allocation;
    const struct server_room *room = &server->room;
    const bool first_time = server->recovery.prepared_ms != 0;
    const char *name;
    if (!has_hosts(server)) return;
    /* A coordinator that has just taken over has not asked yet. */
    if (!room->asked_ms && server->run->core.restarted) ask_hosts(server);
    const bool enough = ls_hosts_room(&allocation->hosts, allocation->ranks_per_node, room->silent,
                                      room->silent_count) >= launch->ranks;
    for (int i = 0; enough && i < room->silent_count; i++) {
        add_name(launch->silent, sizeof launch->silent, room->silent[i]);
        if (!first_time) continue;
        server_tell(server, "host_left_out", "host %s does not answer any more: it gets no rank", room->silent[i]);
    }
    for (int i = 0; (name = ls_core_excluded(server->run->machine, i)); i++) {
        add_name(launch->excluded, sizeof launch->excluded, name);
        if (!first_time || (enough && is_silent(room, name))) continue;
        server_tell(server, "host_left_out", "host %s has lost ranks too often: it gets none any more", name);
    }
}

void server_launch(struct ls_server *server, const struct ls_core_action *action) {
    const struct ls_run *run = server->run;
    if (action->attempt != server_attempt(server)) begin_attempt(server, action);
    server->recovery.launched_ms = server_now_ms();
    if (has_launcher(server)) {
        struct ls_channel_message launch = {
            .kind = LS_CHANNEL_LAUNCH, .attempt = run->attempt.attempt, .ranks = run->ranks};
        leave_out_hosts(server, &launch);
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
