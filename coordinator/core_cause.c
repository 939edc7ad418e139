/* The core's causes: what ends an attempt, who is to blame, and whether another attempt mends it. */
#include "coordinator/core_state.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- what a restart mends ---- */

static bool is_mendable(const struct ls_core *core) {
    if (core->cause_below) return true; /* a handler found a checkpoint before the trouble to be the cure */
    if (core->cause_code == LS_STALL) return true;
    if (core->cause_code != LS_COMMUNICATION) return false;
    /* What never came together does not come together by being done again. */
    if (core->cause == CAUSE_LAUNCHER) return core->ever_joined || core->rank_ended_early;
    if (core->cause == CAUSE_EXACT) return core->ever_assembled && (core->assembled || core->options.launched);
    return true;
}

struct ls_quarantine_range core_bad_range(const struct ls_core *core) {
    struct ls_quarantine_range none = {0, 0};
    if (core->cause_code != LS_NONFINITE || !core->cause_below) return none;
    int64_t step = core->cause_below;
    if (LS_MUTATED(QUARANTINE_OF_THE_STEP_BEFORE) && step - 1 > core->options.start_step) step--;
    return (struct ls_quarantine_range){core_position(core, step - 1), core_position(core, step)};
}

/* True when the sequences of `step` can be quarantined. */
static bool has_room_for(const struct ls_core *core, int64_t step) {
    if (step <= core->options.start_step || step > core->granted_step) return false;
    struct ls_quarantine trial = core->quarantine;
    return ls_quarantine_add(&trial, core_position(core, step - 1), core_position(core, step));
}

/* ---- the end of an attempt ---- */

static bool ends_sentence(const char *text) {
    const size_t length = strlen(text);
    return length > 0 && strchr(".?!", text[length - 1]);
}

void core_end_for_cause(struct ls_core *core, const char *why, struct ls_core_actions *out) {
    char text[LS_CORE_TEXT_BYTES];
    int length = snprintf(text, sizeof text, "%s%s", core->cause_text, why);
    if (core->ever_assembled && length < (int)sizeof text)
        snprintf(text + length, sizeof text - (size_t)length, "%s 'lockstep run --resume' goes on from step %lld.",
                 ends_sentence(text) ? "" : ".", (long long)core->committed_step);
    core_end(core, core->cause_code, true, text, out);
}

/* A rank was lost: with it a whole node of several, when nothing is left of that host and other hosts are there. */
static void widen_to_node(struct ls_core *core) {
    if (core->cause != CAUSE_RANK_LOST || !core->cause_host[0]) return;
    int32_t lost = 0, left = 0, elsewhere = 0;
    for (int32_t rank = 0; rank < core->world_size; rank++) {
        const struct core_rank *other = &core->ranks[rank];
        if (!other->known) continue;
        bool here = strcmp(other->host, core->cause_host) == 0;
        lost += here && other->lost;
        left += here && !other->lost;
        elsewhere += !here && !other->lost;
    }
    if (lost < 2 || left || !elsewhere) return;
    core->cause_scope = LS_SCOPE_NODE;
    size_t length = strlen(core->cause_text);
    snprintf(core->cause_text + length, sizeof core->cause_text - length, " All %d ranks of %s are gone.", lost,
             core->cause_host);
}

/* Nothing better can come: the attempt is over, once, for this cause. */
static void conclude(struct ls_core *core, struct ls_core_actions *out) {
    widen_to_node(core);
    bool mendable = is_mendable(core);
    int32_t allowed = core->options.max_restarts;
    bool restart = mendable && (core->restarts < allowed || (LS_MUTATED(RESTARTS_WITHOUT_END) && allowed));
    if (LS_MUTATED(RESTART_WHAT_IT_CANNOT_MEND) && allowed && core->cause_code == LS_MEMORY) restart = true;
    struct ls_core_record *record = core_journal(core, out, LS_RECORD_FAULT);
    record->end.code = core->cause_code;
    record->end.scope = core->cause_scope;
    record->end.rank = core->cause_rank;
    record->end.step = core->done_step;
    record->end.below_step = core->cause_below;
    record->end.restart = restart;
    memcpy(record->end.host, core->cause_host, sizeof record->end.host);
    snprintf(record->end.text, sizeof record->end.text, "%s", core->cause_text);
    core->fault_sequence = record->sequence;
    core_count_loss(core, core->cause_host, core->cause_scope);
    if (restart) {
        core_begin_recovery(core, out);
        return;
    }
    char why[96] = "";
    if (mendable && allowed)
        snprintf(why, sizeof why, " %d restart%s without progress %s used up (fault.max_restarts).", allowed,
                 allowed == 1 ? "" : "s", allowed == 1 ? "is" : "are");
    core_end_for_cause(core, why, out);
}

void core_check_cause(struct ls_core *core, struct ls_core_actions *out) {
    if (core->ended || core->cause == CAUSE_NONE || core->recovery) return;
    if (core->restored_fault && !core->begun) return; /* begin_generation() sees to it */
    if (core->cause_since_ms < 0) core->cause_since_ms = core->now_ms;
    bool explained = core->cause >= CAUSE_LAUNCHER_KILLED || (core->launcher_exited && core->cause >= CAUSE_RANK_LOST);
    bool waited = core->cause_since_ms >= 0 && core->now_ms - core->cause_since_ms >= core->options.cause_grace_ms;
    if ((!explained && !waited) || (LS_MUTATED(LOSS_IGNORED) && core->cause == CAUSE_RANK_LOST)) return;
    /* A checkpoint that needs nobody any more is not thrown away. */
    if (core->cause == CAUSE_EXACT ? core->save.committing : core_commit_will_come(core)) return;
    conclude(core, out);
}

/* ---- noting a cause ---- */

/* While a commit is awaited another exact cause may come. A restart for the first alone would begin at a checkpoint
 * that the second knows to be bad. */
static bool knows_better_checkpoint(const struct ls_core *core, const struct core_blame *blame) {
    return core->cause == CAUSE_EXACT && blame->cause == CAUSE_EXACT && blame->below_step && !core->cause_below &&
           is_mendable(core);
}

void core_blame(struct ls_core *core, const struct core_blame *blame, struct ls_core_actions *out, const char *format,
                ...) {
    if (core->ended || core->recovery) return;
    bool better = LS_MUTATED(WRONG_CAUSE) ? core->cause == CAUSE_NONE
                                          : blame->cause > core->cause || knows_better_checkpoint(core, blame);
    if (better) {
        const char *host = blame->host;
        if (!host) host = blame->rank >= 0 && blame->rank < core->ranks_capacity ? core->ranks[blame->rank].host : "";
        core->cause = blame->cause;
        core->cause_code = blame->code;
        core->cause_scope = blame->scope;
        core->cause_rank = blame->rank;
        core->cause_below = blame->below_step;
        snprintf(core->cause_host, sizeof core->cause_host, "%s", host);
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(core->cause_text, sizeof core->cause_text, format, arguments);
        va_end(arguments);
    }
    core_check_cause(core, out);
}

void core_fail(struct ls_core *core, enum core_cause cause, enum ls_code code, int32_t rank,
               struct ls_core_actions *out, const char *format, ...) {
    char text[LS_CORE_TEXT_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    core_blame(core, &(struct core_blame){.cause = cause, .code = code, .scope = LS_SCOPE_JOB, .rank = rank}, out, "%s",
               text);
}

void core_blame_instead(struct ls_core *core, enum ls_code code) {
    core->cause = CAUSE_EXACT;
    core->cause_code = code;
    core->cause_scope = LS_SCOPE_JOB;
    core->cause_rank = -1;
    core->cause_host[0] = 0;
}

/* ---- what is told of ranks, nodes and the launcher ---- */

/* The exit code of what a rank says about itself; it cannot say that the run is done or saved. */
static enum ls_code fault_code(enum ls_code code) {
    switch (code) {
    case LS_USAGE:
    case LS_DATA:
    case LS_CHECKPOINT:
    case LS_MEMORY:
    case LS_COMMUNICATION:
    case LS_NONFINITE:
    case LS_STALL: return code;
    default: return LS_ERROR;
    }
}

void core_on_fault(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    enum ls_code code = fault_code(event->fault.code);
    int64_t step = event->fault.step, start = core->options.start_step;
    struct core_blame blame = {.cause = code == LS_COMMUNICATION ? CAUSE_COMMUNICATION : CAUSE_EXACT,
                               .code = code,
                               .scope = LS_SCOPE_JOB,
                               .rank = event->fault.rank};
    bool loading = core->done_step == start && step <= start + 1 && !core->save.open;
    if (code == LS_CHECKPOINT && event->fault.unloadable && start > 0 && loading) blame.below_step = start;
    if (code == LS_NONFINITE && core->options.nonfinite == LS_NONFINITE_ROLLBACK && has_room_for(core, step))
        blame.below_step = step;
    const int32_t rank = event->fault.rank;
    const bool joined = rank >= 0 && rank < core->world_size && core->ranks[rank].known;
    if (!joined && event->fault.host && event->fault.host[0]) blame.host = event->fault.host;
    core_blame(core, &blame, out, "rank %d on %s, step %lld: %s", rank, blame.host ? blame.host : core_host(core, rank),
               (long long)step, event->fault.text);
}

void core_on_rank_lost(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    int32_t rank = event->rank_lost.rank;
    if (rank >= 0 && rank < core->world_size) core->ranks[rank].lost = true;
    if (!core->cause && core_end_if_saved(core, out)) return;
    const bool joined = rank >= 0 && rank < core->world_size && core->ranks[rank].known;
    const char *host = joined ? NULL : event->rank_lost.host;
    core_blame(
        core,
        &(struct core_blame){
            .cause = CAUSE_RANK_LOST, .code = LS_COMMUNICATION, .scope = LS_SCOPE_RANK, .rank = rank, .host = host},
        out, "communication: rank %d on %s was lost at step %lld (%s). Look at the end of logs/rank-%05d.log.", rank,
        host ? host : core_host(core, rank), (long long)core->done_step + 1, event->rank_lost.how, rank);
}

void core_on_node_lost(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    const char *host = event->node_lost.host;
    int32_t first = -1, count = 0;
    for (int32_t rank = 0; rank < core->world_size; rank++) {
        if (!core->ranks[rank].known || strcmp(core->ranks[rank].host, host) != 0) continue;
        core->ranks[rank].lost = true;
        if (!count++) first = rank;
    }
    if (!core->cause && core_end_if_saved(core, out)) return;
    core_blame(
        core,
        &(struct core_blame){
            .cause = CAUSE_NODE_LOST, .code = LS_COMMUNICATION, .scope = LS_SCOPE_NODE, .rank = first, .host = host},
        out, "communication: host %s with %d rank%s was lost at step %lld: %s", host, count, count == 1 ? "" : "s",
        (long long)core->done_step + 1, event->node_lost.how);
}

void core_on_stalled(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    const char *host = event->stalled.host;
    core_blame(core,
               &(struct core_blame){.cause = CAUSE_EXACT,
                                    .code = LS_STALL,
                                    .scope = event->stalled.rank >= 0 ? LS_SCOPE_RANK : LS_SCOPE_JOB,
                                    .rank = event->stalled.rank,
                                    .host = host && host[0] ? host : NULL},
               out, "%s", event->stalled.text);
}

void core_on_replica_differs(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    int32_t rank = event->replica_differs.rank;
    int64_t good_step = event->replica_differs.good_step, step = event->replica_differs.step;
    struct core_blame blame = {
        .cause = CAUSE_EXACT, .code = LS_ERROR, .scope = rank >= 0 ? LS_SCOPE_RANK : LS_SCOPE_JOB, .rank = rank};
    if (good_step > core->done_step) good_step = core->done_step;
    if (good_step < core->options.start_step) good_step = core->options.start_step;
    if (core->options.mismatch == LS_MISMATCH_ROLLBACK) blame.below_step = good_step + 1;
    if (LS_MUTATED(ROLLBACK_TO_A_BAD_REPLICA) && blame.below_step) blame.below_step = core->done_step + 1;
    char who[LS_CORE_HOST_BYTES + 64] = "which copy is wrong cannot be told";
    if (rank >= 0) snprintf(who, sizeof who, "that of rank %d on %s is wrong", rank, core_host(core, rank));
    core_blame(
        core, &blame, out,
        "replicas: behind step %lld copies of the parameters differ, %s; they were equal behind step %lld. Memory "
        "of that host may be faulty: checkpoints of later steps are not to be trusted.",
        (long long)step, who, (long long)good_step);
}

/* What the launcher says where no rank ever came, as a part of a message. */
struct words {
    const char *before, *said, *after, *space, *advice;
};

static struct words launcher_words(const struct ls_core *core, const struct ls_core_event *event) {
    const char *said = event->launcher_exited.said, *advice = event->launcher_exited.advice;
    if (core->assembled || !said || !said[0]) return (struct words){"", "", "", "", ""};
    const bool advises = advice && advice[0];
    return (struct words){"; it says '", said, "'", advises ? " " : "", advises ? advice : ""};
}

/* The launcher's word that a rank made it end. */
static void blame_ended_rank(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    enum { SHELL_CANNOT_EXECUTE = 126, SHELL_CANNOT_FIND = 127 };
    const int32_t rank = event->launcher_exited.rank;
    const int code = event->launcher_exited.code, killed_by = event->launcher_exited.killed_by;
    const bool joined = rank >= 0 && rank < core->world_size && core->ranks[rank].known;
    const char *host = joined ? core->ranks[rank].host : event->launcher_exited.host;
    const struct words words = launcher_words(core, event);
    char who[LS_CORE_HOST_BYTES + 32] = "a rank", how[64], log[32] = "ranks without a log";
    if (rank >= 0) snprintf(who, sizeof who, "rank %d%s%s", rank, host && host[0] ? " on " : "", host ? host : "");
    if (rank >= 0) snprintf(log, sizeof log, "the end of rank-%05d.log", rank);
    snprintf(how, sizeof how, killed_by ? "was killed by signal %d" : "ended with code %d",
             killed_by ? killed_by : code);
    if (!core->assembled && code != SHELL_CANNOT_EXECUTE && code != SHELL_CANNOT_FIND) core->rank_ended_early = true;
    core_blame(
        core,
        &(struct core_blame){.cause = CAUSE_LAUNCHER,
                             .code = LS_COMMUNICATION,
                             .scope = LS_SCOPE_RANK,
                             .rank = rank,
                             .host = host ? host : ""},
        out,
        "communication: %s %s%s, at step %lld of %lld, says the launcher%s, and gave no reason%s%s%s.%s%s Look in "
        "logs/ at launcher.log and %s%s%s.",
        who, how, joined || core->assembled ? "" : " before it joined", (long long)core->done_step + 1,
        (long long)core->end_step, rank >= 0 ? "" : " (not which one)", words.before, words.said, words.after,
        words.space, words.advice, log, joined ? "" : ", and at what starts it (launcher.wrapper)",
        killed_by ? ", and for killed processes in the kernel's log (dmesg)" : "");
}

void core_on_launcher_exited(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    core->launcher_exited = true;
    if (!core->cause && core_end_if_saved(core, out)) return;
    if (event->launcher_exited.status < 0) {
        core_fail(core, CAUSE_LAUNCHER_KILLED, LS_COMMUNICATION, -1, out,
                  "communication: the launcher of the workers was killed by signal %d at step %lld of %lld.",
                  -event->launcher_exited.status, (long long)core->done_step + 1, (long long)core->end_step);
        return;
    }
    if (event->launcher_exited.code && (event->launcher_exited.rank >= 0 || !core->assembled)) {
        blame_ended_rank(core, event, out);
        return;
    }
    const struct words words = launcher_words(core, event);
    core_fail(core, CAUSE_LAUNCHER, LS_COMMUNICATION, -1, out,
              "communication: the launcher ended with status %d at step %lld of %lld, no rank said why%s%s%s.%s%s "
              "Look at logs/launcher.log and logs/rank-*.log.",
              event->launcher_exited.status, (long long)core->done_step + 1, (long long)core->end_step, words.before,
              words.said, words.after, words.space, words.advice);
}
