/* The core's doorman: who is in, who is refused and why, who is missing. */
#include "coordinator/core_state.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool core_is_joined(const struct ls_core *core, ls_connection connection) {
    if (!connection) return false;
    for (int32_t rank = 0; rank < core->world_size; rank++)
        if (core->ranks[rank].connection == connection) return true;
    return false;
}

void core_ask_rejoin(struct ls_core *core, ls_connection connection, struct ls_core_actions *out) {
    core->unplaced++;
    core_act(core, out, LS_ACTION_REJOIN, connection);
}

bool core_is_voice(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    if (event->connection && event->connection == core_voice(core)) return true;
    core_ask_rejoin(core, event->connection, out);
    return false;
}

/* Tells the connection why it is not in. A launcher of ours started these workers for a rank that nobody has
 * filled: then the run cannot come together and ends with this reason. */
static void refuse(struct ls_core *core, const struct ls_core_event *event, int32_t rank, enum ls_code code,
                   struct ls_core_actions *out, const char *format, ...) __attribute__((format(printf, 6, 7)));
static void refuse(struct ls_core *core, const struct ls_core_event *event, int32_t rank, enum ls_code code,
                   struct ls_core_actions *out, const char *format, ...) {
    char text[LS_CORE_TEXT_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    core->refused++;
    struct ls_core_action *action = core_act(core, out, LS_ACTION_REFUSE, event->connection);
    action->message.code = code;
    memcpy(action->message.text, text, sizeof text);
    if (core->recovery) return;
    bool expected = rank >= 0 && rank < core->ranks_capacity && !core->ranks[rank].known;
    if (core->options.launched && event->hello.attempt == core->options.attempt && expected)
        core_fail(core, CAUSE_EXACT, code, rank, out, "%s", text);
}

/* What all ranks of the message have in common. Returns true if it is refused. */
static bool refuse_process(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    const struct ls_core_hello *hello = &event->hello;
    const struct ls_core_options *options = &core->options;
    if (hello->ranks_count < 1 || hello->ranks_count > LS_CORE_RANKS_MAX) {
        refuse(core, event, -1, LS_USAGE, out,
               "coordinator: a worker introduced itself with %d ranks; 1 to %d are possible. Start it with mpirun.",
               hello->ranks_count, LS_CORE_RANKS_MAX);
        return true;
    }
    int32_t rank = hello->ranks[0].rank;
    const char *host = hello->ranks[0].host;
    if (core->recovery && hello->attempt) {
        core->old_attempt++;
        refuse(core, event, -1, LS_COMMUNICATION, out,
               "coordinator: rank %d on %s belongs to attempt %u, which is over. This worker must end.", rank, host,
               hello->attempt);
        return true;
    }
    if (core->recovery) { /* it asks again when the next attempt is there */
        core->unplaced++;
        return true;
    }
    if (hello->attempt && hello->attempt != options->attempt && !LS_MUTATED(OLD_ATTEMPT_ACCEPTED)) {
        core->old_attempt++;
        refuse(core, event, -1, LS_COMMUNICATION, out,
               "coordinator: rank %d on %s belongs to attempt %u, the run is at attempt %u. This worker must end.",
               rank, host, hello->attempt, options->attempt);
        return true;
    }
    if (hello->protocol != options->protocol || strcmp(hello->version, options->version) != 0) {
        refuse(core, event, rank, LS_USAGE, out,
               "coordinator: rank %d on %s runs lockstep-worker %s (protocol %u), the coordinator is %s (protocol %u). "
               "Install the same version on every host.",
               rank, host, hello->version, hello->protocol, options->version, options->protocol);
        return true;
    }
    int32_t expected = core->world_size ? core->world_size : hello->world_size;
    if (hello->world_size != expected || expected < 1 || expected > LS_CORE_RANKS_MAX) {
        refuse(core, event, rank, LS_USAGE, out,
               "coordinator: rank %d on %s says there are %d ranks, %d are expected. Start as many workers as the run "
               "has ranks (mpirun -n %d, or launcher.ranks).",
               rank, host, hello->world_size, expected, expected);
        return true;
    }
    return false;
}

/* Where the first part begins in which two numerics ids differ: parts are apart by "; ". */
static size_t difference(const char *a, const char *b) {
    size_t at = 0;
    for (size_t i = 0; a[i] && a[i] == b[i]; i++)
        if (a[i] == ' ' && i && a[i - 1] == ';') at = i + 1;
    return at;
}

/* One rank of the message. Returns true if it is refused. */
static bool refuse_rank(struct ls_core *core, const struct ls_core_event *event, const struct ls_core_rank *rank,
                        struct ls_core_actions *out) {
    const struct ls_core_options *options = &core->options;
    if (rank->rank < 0 || rank->rank >= event->hello.world_size) {
        refuse(core, event, -1, LS_USAGE, out,
               "coordinator: a worker on %s says it is rank %d of %d. Start the workers with one mpirun.", rank->host,
               rank->rank, event->hello.world_size);
        return true;
    }
    const struct core_rank *present = &core->ranks[rank->rank];
    if (present->known && (present->pid != rank->pid || strcmp(present->host, rank->host) != 0)) {
        refuse(core, event, rank->rank, LS_COMMUNICATION, out,
               "coordinator: rank %d on %s (process %lld) came, but rank %d is already here: process %lld on %s. Are "
               "two sets of workers running?",
               rank->rank, rank->host, (long long)rank->pid, rank->rank, (long long)present->pid, present->host);
        return true;
    }
    if (strcmp(rank->config_digest, options->config_digest) != 0) {
        refuse(core, event, rank->rank, LS_USAGE, out,
               "coordinator: rank %d on %s has a configuration with digest %s, the run's is %s. Give every worker the "
               "run's own config.yaml.",
               rank->rank, rank->host, rank->config_digest, options->config_digest);
        return true;
    }
    if (strcmp(rank->dataset_digest, options->dataset_digest) != 0) {
        refuse(core, event, rank->rank, LS_DATA, out,
               "coordinator: rank %d on %s sees a dataset with digest %s, the coordinator's is %s. Compare the token "
               "shards of both hosts with 'lockstep data verify'.",
               rank->rank, rank->host, rank->dataset_digest, options->dataset_digest);
        return true;
    }
    const char *numerics = core->numerics[0] ? core->numerics : event->hello.ranks[0].numerics;
    if (options->numerics != LS_NUMERICS_ANY && strcmp(rank->numerics, numerics) != 0) {
        const bool fixed = options->numerics == LS_NUMERICS_FIXED;
        const size_t at = difference(rank->numerics, numerics);
        refuse(core, event, rank->rank, LS_USAGE, out,
               "coordinator: rank %d on %s computes with '%.*s', the ranks before it with '%.*s'; %s needs them equal. "
               "Use hosts of one kind with the same libraries and variables for them, or %s.",
               rank->rank, rank->host, (int)strcspn(rank->numerics + at, ";"), rank->numerics + at,
               (int)strcspn(numerics + at, ";"), numerics + at,
               fixed ? "train.reduction: fixed" : "optimizer.type: muon, where several ranks compute a matrix,",
               fixed ? "train.reduction: fast" : "zero.stage 1, 2 or 3 and zero.replicas 1");
        return true;
    }
    return false;
}

static bool carries_rank_0(const struct ls_core_hello *hello) {
    for (int32_t i = 0; i < hello->ranks_count; i++)
        if (hello->ranks[i].rank == 0) return true;
    return false;
}

/* What rank 0 says it holds. Returns false if the message is to be dropped: it was overtaken by newer ones on another
 * connection, or cannot be true. */
static bool believe_progress(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    const struct ls_core_hello *hello = &event->hello;
    int64_t steps_done = hello->started ? hello->steps_done : core->options.start_step;
    int64_t granted = hello->started ? hello->granted_step : core->options.start_step;
    if (steps_done < core->done_step && !LS_MUTATED(STALE_HELLO_BELIEVED)) {
        core->unplaced++;
        return false;
    }
    int64_t possible = core->journaled_step + core->options.window_steps;
    if (possible > core->end_step) possible = core->end_step;
    if (steps_done > granted || granted > possible) {
        refuse(core, event, 0, LS_DATA, out,
               "coordinator: rank 0 on %s has done step %lld and was granted step %lld; no coordinator of this attempt "
               "granted more than step %lld. It belongs to another run and must end.",
               hello->ranks[0].host, (long long)steps_done, (long long)granted, (long long)possible);
        return false;
    }
    core->granted_step = granted;
    if (LS_MUTATED(STALE_HELLO_BELIEVED) && granted < core->done_step) core->granted_step = core->done_step;
    if (granted > core->options.start_step) core->assembled = core->ever_assembled = true;
    return true;
}

void core_on_hello(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    const struct ls_core_hello *hello = &event->hello;
    assert(event->connection);
    if (refuse_process(core, event, out)) return;
    for (int32_t i = 0; i < hello->ranks_count; i++)
        if (refuse_rank(core, event, &hello->ranks[i], out)) return;
    bool voice = carries_rank_0(hello);
    if (voice && !believe_progress(core, event, out)) return;

    core->world_size = hello->world_size;
    for (int32_t i = 0; i < hello->ranks_count; i++) {
        struct core_rank *rank = &core->ranks[hello->ranks[i].rank];
        if (!rank->connection) core->ranks_here++;
        if (!rank->known) core->ranks_known++;
        rank->known = true;
        rank->connection = event->connection;
        rank->pid = hello->ranks[i].pid;
        memcpy(rank->host, hello->ranks[i].host, sizeof rank->host);
        core->ever_joined = true;
        if (!core->numerics[0]) memcpy(core->numerics, hello->ranks[i].numerics, sizeof core->numerics);
    }

    struct ls_core_action *action = core_act(core, out, LS_ACTION_WELCOME, event->connection);
    action->welcome.world_size = core->world_size;
    action->welcome.start_step = core->options.start_step;
    action->welcome.start_position = core->options.start_position;
    action->welcome.start_chain = core->options.start_chain;
    action->welcome.end_step = core->end_step;
    action->welcome.end_position = core->end_position;
    action->welcome.global_batch = core->options.global_batch;
    action->welcome.checkpoint_every = core->options.checkpoint_every;
    action->welcome.evaluation_every = core->options.evaluation_every;
    action->welcome.acked_step = core->journaled_step;
    action->welcome.acked_validation = core->validation_journaled;

    if (core->ranks_here == core->world_size) core->missing_since_ms = -1;
    bool complete = core->ranks_known == core->world_size;
    if (LS_MUTATED(GRANT_BEFORE_ALL_JOINED)) complete = true;
    if (!core->assembled && complete) {
        core->assembled = core->ever_assembled = true;
        core_journal(core, out, LS_RECORD_JOINED)->joined.world_size = core->world_size;
        voice = true;
    }
    if (!voice) return;
    if (!LS_MUTATED(ORDER_FORGOTTEN_ON_REJOIN)) core_send_orders(core, out);
    core_grant_ahead(core, out);
}

void core_on_connection_lost(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    (void)out;
    if (!event->connection) return;
    for (int32_t rank = 0; rank < core->world_size; rank++)
        if (core->ranks[rank].connection == event->connection) {
            core->ranks[rank].connection = 0;
            core->ranks_here--;
        }
    for (int i = 0; i < LS_CORE_REQUESTS_MAX; i++)
        if (core->requests[i].connection == event->connection) core->requests[i].connection = 0;
}

/* Lists missing ranks as "2, 5 to 7 on host-b", as many as fit. */
static void list_missing(const struct ls_core *core, char *text, size_t bytes) {
    size_t length = 0;
    text[0] = 0;
    for (int32_t rank = 0; rank < core->world_size; rank++) {
        if (core->ranks[rank].connection) continue;
        int32_t last = rank;
        while (last + 1 < core->world_size && !core->ranks[last + 1].connection &&
               strcmp(core_host(core, last + 1), core_host(core, rank)) == 0)
            last++;
        char item[LS_CORE_HOST_BYTES + 48];
        int item_length = snprintf(item, sizeof item, "%s%d", length ? ", " : "", rank);
        if (last > rank) item_length += snprintf(item + item_length, sizeof item - (size_t)item_length, " to %d", last);
        if (core->ranks[rank].known)
            item_length +=
                snprintf(item + item_length, sizeof item - (size_t)item_length, " on %s", core->ranks[rank].host);
        if (length + (size_t)item_length + 5 > bytes) {
            snprintf(text + length, bytes - length, "...");
            return;
        }
        memcpy(text + length, item, (size_t)item_length + 1);
        length += (size_t)item_length;
        rank = last;
    }
}

void core_check_missing(struct ls_core *core, struct ls_core_actions *out) {
    if (core->ended || core->cause || core->recovery || core_commit_will_come(core)) return;
    if (core->world_size && core->ranks_here == core->world_size) {
        core->missing_since_ms = -1;
        return;
    }
    if (core->missing_since_ms < 0) core->missing_since_ms = core->now_ms;
    bool first = !core->assembled && !core->options.restarted;
    int64_t timeout_ms = first ? core->options.start_timeout_ms : core->options.rejoin_timeout_ms;
    if (core->now_ms - core->missing_since_ms < timeout_ms) return;
    if (core_end_if_saved(core, out)) return;
    char missing[256];
    list_missing(core, missing, sizeof missing);
    if (!core->world_size)
        core_fail(
            core, CAUSE_EXACT, LS_COMMUNICATION, -1, out,
            "coordinator: no worker has joined within %lld s. Start the workers (mpirun ... lockstep-worker), look at "
            "logs/, and see that they can reach the coordinator's address.",
            (long long)timeout_ms / 1000);
    else if (first)
        core_fail(
            core, CAUSE_EXACT, LS_COMMUNICATION, -1, out,
            "coordinator: %d of %d ranks have not joined within %lld s: %s. Look at their logs/rank-*.log and see that "
            "their hosts can reach the coordinator's address.",
            core->world_size - core->ranks_here, core->world_size, (long long)timeout_ms / 1000, missing);
    else
        core_fail(core, CAUSE_EXACT, LS_COMMUNICATION, -1, out,
                  "coordinator: %d of %d ranks have been away for %lld s: %s; the last step done is %lld. "
                  "Look at their logs/rank-*.log.",
                  core->world_size - core->ranks_here, core->world_size, (long long)timeout_ms / 1000, missing,
                  (long long)core->done_step);
}
