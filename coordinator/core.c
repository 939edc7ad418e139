/* The core's frame: creation, restoring, dispatch and what all handlers use. */
#include "coordinator/core_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum ls_code check_options(const struct ls_core_options *options, struct ls_error *error) {
    const char *wrong = NULL;
    if (options->world_size < 0 || options->world_size > LS_CORE_RANKS_MAX)
        wrong = "world_size";
    else if (options->attempt < 1)
        wrong = "attempt";
    else if (options->generation < 1)
        wrong = "generation";
    else if (options->start_step < 0)
        wrong = "start_step";
    else if (options->start_position < 0)
        wrong = "start_position";
    else if (options->start_samples < 0 || options->start_samples > INT64_MAX / 4)
        wrong = "start_samples";
    else if (options->data_generation < 0 || options->data_generation > LS_CORE_DATA_GENERATIONS_MAX)
        wrong = "generation of the data";
    else if (options->global_batch < 1 || options->global_batch > INT32_MAX)
        wrong = "global_batch";
    else if (options->steps < 0 || options->steps > INT64_MAX / INT32_MAX / 4)
        wrong = "steps";
    else if (options->start_position > INT64_MAX / 4 || options->end_position > INT64_MAX / 4)
        wrong = "position";
    else if (options->steps ? options->steps < options->start_step : options->end_position < options->start_position)
        wrong = "end of the run (before its start)";
    else if (options->span_steps < 1)
        wrong = "span_steps";
    else if (options->window_steps < 0 || options->window_steps >= LS_CORE_WINDOW_STEPS)
        wrong = "window_steps";
    else if (options->checkpoint_every < 0 || options->evaluation_every < 0)
        wrong = "checkpoint_every";
    else if (options->checkpoints_keep < 0)
        wrong = "checkpoints_keep";
    else if (options->ranks_wanted < 0 || options->ranks_wanted > LS_CORE_RANKS_MAX)
        wrong = "ranks_wanted";
    else if (options->max_restarts < 0 || options->min_ranks < 0 || options->min_ranks > LS_CORE_RANKS_MAX)
        wrong = "max_restarts or min_ranks";
    else if (options->backoff_ms < 0 || options->backoff_ms > INT32_MAX || options->backoff_max_ms < 0 ||
             options->clear_timeout_ms < 0)
        wrong = "backoff_ms";
    else if (options->checkpoints_count < 0 || options->checkpoints_count > LS_CORE_CHECKPOINTS_MAX)
        wrong = "checkpoints_count";
    if (wrong)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "coordinator: the run cannot have this %s. Check train.steps, train.epochs and the checkpoints "
                       "found in the run directory.",
                       wrong);
    return LS_OK;
}

/* Where the run ends, from where the attempt starts and what it passes over. */
static void find_end(struct ls_core *core) {
    const struct ls_core_options *options = &core->options;
    if (options->steps) {
        core->end_step = options->steps;
        core->end_position = ls_quarantine_behind(&core->quarantine, options->start_position,
                                                  (options->steps - options->start_step) * options->global_batch);
    } else {
        int64_t left = options->end_position - options->start_position -
                       ls_quarantine_within(&core->quarantine, options->start_position, options->end_position);
        core->end_step = options->start_step + (left + options->global_batch - 1) / options->global_batch;
        core->end_position = options->end_position;
    }
}

void core_begin_attempt(struct ls_core *core) {
    const struct ls_core_options *options = &core->options;
    find_end(core);
    core->world_size = options->world_size;
    core->ranks_known = core->ranks_here = 0;
    memset(core->ranks, 0, (size_t)core->ranks_capacity * sizeof *core->ranks);
    core->numerics[0] = 0;
    core->assembled = false;
    core->missing_since_ms = -1;
    core->granted_step = core->done_step = core->journaled_step = options->start_step;
    core->validation_step = core->validation_journaled = -1;
    memset(core->steps, 0, LS_CORE_WINDOW_STEPS * sizeof *core->steps);
    core->steps[options->start_step % LS_CORE_WINDOW_STEPS] =
        (struct core_step){.step = options->start_step, .chain = options->start_chain};
    core->save = (struct core_save){.open = false};
    core->committed_step = options->start_step;
    core->checkpoint_order = 0;
    core->stopped_step = -1;
    core->skips = 0;
    core->cause = CAUSE_NONE;
    core->cause_below = 0;
    core->cause_host[0] = 0;
    core->cause_since_ms = -1;
    core->launcher_exited = core->rank_ended_early = false;
    core->bad = (struct ls_quarantine_range){0, 0};
    core->fault_sequence = 0;
}

enum ls_code ls_core_create(const struct ls_core_options *options, struct ls_core **core_out, struct ls_error *error) {
    enum ls_code code = check_options(options, error);
    if (code) return code;
    int32_t wanted = options->ranks_wanted > options->world_size ? options->ranks_wanted : options->world_size;
    int32_t capacity = wanted ? wanted : LS_CORE_RANKS_MAX;
    struct ls_core *core = calloc(1, sizeof *core);
    if (core) {
        core->ranks = calloc((size_t)capacity, sizeof *core->ranks);
        core->parts = calloc((size_t)capacity, sizeof *core->parts);
        core->steps = calloc(LS_CORE_WINDOW_STEPS, sizeof *core->steps);
    }
    if (!core || !core->ranks || !core->parts || !core->steps) {
        ls_core_destroy(core);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB,
                       "coordinator: no memory for the state of %d ranks. Free memory on this host.", capacity);
    }
    core->options = *options;
    if (!options->window_steps) core->options.window_steps = LS_CORE_WINDOW_STEPS - 1;
    core->now_ms = -1;
    core->ranks_wanted = wanted;
    core->ranks_capacity = capacity;
    core->checkpoints_count = options->checkpoints_count;
    memcpy(core->checkpoints, options->checkpoints, sizeof core->checkpoints);
    core_begin_attempt(core);
    core->best_step = options->start_step;
    if (core->checkpoints_count && core->checkpoints[core->checkpoints_count - 1] > core->committed_step)
        core->committed_step = core->checkpoints[core->checkpoints_count - 1];
    *core_out = core;
    return LS_OK;
}

void ls_core_destroy(struct ls_core *core) {
    if (!core) return;
    free(core->steps);
    free(core->parts);
    free(core->ranks);
    free(core);
}

/* ---- restoring ---- */

static enum ls_code restore_step(struct ls_core *core, const struct ls_core_step *step, struct ls_error *error) {
    if (step->step <= core->options.start_step) return LS_OK;
    if (step->step != core->done_step + 1 || step->step > core->end_step ||
        step->position != core_position(core, core->done_step) || step->sequences != core_sequences(core, step->step))
        return ls_fail(
            error, LS_DATA, LS_SCOPE_JOB,
            "coordinator: the journal's next step of attempt %u is step %lld at position %lld, expected was "
            "step %lld at position %lld (journal.db of another run?). Resume with 'lockstep run --resume': it "
            "goes on from the newest checkpoint.",
            core->options.attempt, (long long)step->step, (long long)step->position, (long long)core->done_step + 1,
            (long long)core_position(core, core->done_step));
    core_book_step(core, step, 0);
    const struct core_step *booked = core_step_find(core, step->step);
    core->journaled_step = core->granted_step = core->done_step;
    if (booked->chain.low != step->chain.low || booked->chain.high != step->chain.high) {
        char expected[33], found[33];
        ls_digest_format(booked->chain, expected);
        ls_digest_format(step->chain, found);
        return ls_fail(
            error, LS_DATA, LS_SCOPE_JOB,
            "coordinator: the journal's chain is broken at step %lld: it holds %s, the steps before give %s. "
            "Resume with 'lockstep run --resume': it goes on from the newest checkpoint.",
            (long long)step->step, found, expected);
    }
    return LS_OK;
}

static enum ls_code restore_quarantine(struct ls_core *core, const struct ls_core_record *record,
                                       struct ls_error *error) {
    int64_t from = record->quarantine.from, to = record->quarantine.to;
    bool own = record->attempt == core->options.attempt;
    bool elsewhere = record->quarantine.data_generation != core->options.data_generation;
    if (elsewhere && !LS_MUTATED(QUARANTINE_OF_ANOTHER_GENERATION)) return LS_OK;
    if (LS_MUTATED(QUARANTINE_FORGOTTEN_ON_RESTART)) return LS_OK;
    struct ls_quarantine trial = core->quarantine;
    if (to > INT64_MAX / 4 || !ls_quarantine_add(&trial, from, to))
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                       "coordinator: the journal says that attempt %u quarantined the sequences %lld to %lld, which "
                       "cannot be (journal.db of another run, or damaged?). Put a copy of it back.",
                       record->attempt, (long long)from, (long long)to);
    if (own) {
        core->bad = (struct ls_quarantine_range){from, to};
        return LS_OK;
    }
    /* What an attempt passes over is known before its own records come. */
    int64_t committed_step = core->committed_step;
    core->quarantine = trial;
    core_begin_attempt(core);
    core->committed_step = committed_step;
    return LS_OK;
}

/* The attempt is over; begin_generation() sees to its end. */
static void restore_fault(struct ls_core *core, const struct ls_core_record *record) {
    core_count_loss(core, record->end.host, record->end.scope);
    if (record->attempt != core->options.attempt || LS_MUTATED(FAULT_FORGOTTEN_ON_RESTART)) return;
    core->cause = CAUSE_EXACT;
    core->cause_code = record->end.code;
    core->cause_scope = record->end.scope;
    core->cause_rank = record->end.rank;
    core->cause_below = record->end.below_step;
    memcpy(core->cause_host, record->end.host, sizeof core->cause_host);
    memcpy(core->cause_text, record->end.text, sizeof core->cause_text);
    core->restored_fault = true;
    core->restored_restart = record->end.restart;
}

/* Another `lockstep run` began here: what the one before had counted and wished is not its business. */
static void forget_invocation(struct ls_core *core) {
    core->ever_joined = core->ever_assembled = false;
    core->restarts = core->restarts_all = 0;
    core->hosts_count = 0;
    core->best_step = core->options.start_step;
    core->stop_code = LS_OK;
    core->stop_order = 0;
}

static void restore_attempt(struct ls_core *core, const struct ls_core_record *record) {
    if (!LS_MUTATED(RESTARTS_FORGOTTEN)) core->restarts = record->attempt_begun.restarts;
    core->restarts_all++;
    core->best_step = record->attempt_begun.best_step;
    if (record->attempt_begun.hosts_forgiven) core->hosts_count = 0;
}

enum ls_code ls_core_restore(struct ls_core *core, const struct ls_core_record *record, struct ls_error *error) {
    assert(!core->restored);
    bool own = record->attempt == core->options.attempt;
    if (record->attempt > core->options.attempt) return LS_OK;
    if (record->kind == LS_RECORD_QUARANTINE && (core->options.restarted || !own))
        return restore_quarantine(core, record, error);
    if (!core->options.restarted) return LS_OK;
    if (record->attempt != core->restored_attempt && record->kind != LS_RECORD_ATTEMPT) forget_invocation(core);
    core->restored_attempt = record->attempt;
    switch (record->kind) {
    case LS_RECORD_ATTEMPT: restore_attempt(core, record); break;
    case LS_RECORD_FAULT: restore_fault(core, record); break;
    case LS_RECORD_JOINED:
        core->ever_joined = core->ever_assembled = true;
        if (own) core->assembled = true;
        break;
    case LS_RECORD_COMMIT:
        if (record->commit.step <= core->best_step) break;
        core->best_step = record->commit.step;
        core->restarts = 0;
        break;
    case LS_RECORD_STEP:
        if (own) return restore_step(core, &record->step, error);
        break;
    case LS_RECORD_VALIDATION:
        if (own) core->validation_step = core->validation_journaled = record->validation.step;
        break;
    case LS_RECORD_STOP:
        if (LS_MUTATED(STOP_FORGOTTEN_ON_RESTART)) break;
        core->stop_code = record->stop.code;
        core->stop_order = (uint64_t)core->options.generation << 32 | (core->order_count = 1);
        break;
    default: break;
    }
    return LS_OK;
}

/* ---- what all handlers use ---- */

struct ls_core_action *core_act(const struct ls_core *core, struct ls_core_actions *out, enum ls_core_action_kind kind,
                                ls_connection connection) {
    assert(out->count < LS_CORE_ACTIONS_MAX);
    struct ls_core_action *action = &out->list[out->count++];
    memset(action, 0, sizeof *action);
    action->kind = kind;
    action->connection = connection;
    action->attempt = core->options.attempt;
    action->generation = core->options.generation;
    return action;
}

struct ls_core_record *core_journal(struct ls_core *core, struct ls_core_actions *out, enum ls_core_record_kind kind) {
    struct ls_core_record *record = &core_act(core, out, LS_ACTION_JOURNAL, 0)->record;
    record->kind = kind;
    record->sequence = ++core->sequence;
    record->attempt = core->options.attempt;
    record->generation = core->options.generation;
    return record;
}

int64_t core_position(const struct ls_core *core, int64_t step) {
    assert(step >= core->options.start_step && step <= core->end_step);
    if (LS_MUTATED(POSITION_REUSED_AFTER_RESUME)) return (step - core->options.start_step) * core->options.global_batch;
    if (step == core->options.start_step) return core->options.start_position;
    if (step == core->end_step) return core->end_position;
    return ls_quarantine_behind(&core->quarantine, core->options.start_position,
                                (step - core->options.start_step) * core->options.global_batch);
}

int64_t core_sequences(const struct ls_core *core, int64_t step) {
    int64_t from = core_position(core, step - 1), to = core_position(core, step);
    return to - from - ls_quarantine_within(&core->quarantine, from, to);
}

int64_t core_samples(const struct ls_core *core, int64_t step) {
    int64_t from = core->options.start_position, to = core_position(core, step);
    if (LS_MUTATED(SAMPLES_OF_ONE_GENERATION)) from = 0;
    return core->options.start_samples + to - from - ls_quarantine_within(&core->quarantine, from, to);
}

struct core_step *core_step_find(struct ls_core *core, int64_t step) {
    if (step < core->options.start_step || step > core->done_step) return NULL;
    struct core_step *found = &core->steps[step % LS_CORE_WINDOW_STEPS];
    return found->step == step ? found : NULL;
}

ls_connection core_voice(const struct ls_core *core) {
    return core->ranks[0].connection;
}

const char *core_host(const struct ls_core *core, int32_t rank) {
    bool known = rank >= 0 && rank < core->ranks_capacity && core->ranks[rank].known;
    return known ? core->ranks[rank].host : "unknown host";
}

/* ---- dispatch ---- */

/* Before the first event: everything that was to be restored has been. */
static void end_restoring(struct ls_core *core) {
    core->restored = true;
    if (core->options.restarted && core->restored_attempt != core->options.attempt) forget_invocation(core);
    core_note_progress(core);
}

/* The first TICK: what the journal left to be done, or the workers of the attempt. */
static void begin_generation(struct ls_core *core, struct ls_core_actions *out) {
    core->begun = true;
    if (core->restored_fault && core->restored_restart)
        core_begin_recovery(core, out);
    else if (core->restored_fault)
        core_end_for_cause(core, "", out);
    else if (!core->assembled && !core->cause)
        core_launch(core, out);
}

static void on_tick(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    if (event->tick.now_ms > core->now_ms) core->now_ms = event->tick.now_ms;
    core_check_finished(core, out);
    if (!core->begun && !core->ended) begin_generation(core, out);
    core_check_cause(core, out);
    core_check_missing(core, out);
    /* Waits are counted from here: what happened since the TICK before may just have begun. */
    if (core->recovery_since_ms < 0) core->recovery_since_ms = core->now_ms;
    core_go_on_recovering(core, out);
}

static void check_invariants(const struct ls_core *core) {
    assert(core->options.start_step <= core->journaled_step);
    assert(core->journaled_step <= core->done_step);
    assert(core->done_step <= core->granted_step);
    assert(LS_MUTATED(GRANT_BEYOND_THE_END) || core->granted_step <= core->end_step);
    assert(core->journaled_sequence <= core->sequence);
    assert(core->save.parts_present <= core->world_size);
    assert(!core->save.committing || (core->save.open && core->save.step > core->committed_step));
    assert(core->ranks_here <= core->world_size);
    (void)core;
}

static bool is_of_workers(enum ls_core_event_kind kind) {
    return kind >= LS_EVENT_STEP_DONE && kind <= LS_EVENT_LAUNCHER_EXITED && kind != LS_EVENT_CONNECTION_LOST;
}

static bool speaks_of_attempt(enum ls_core_event_kind kind) {
    return is_of_workers(kind) || (kind >= LS_EVENT_CLEARED && kind <= LS_EVENT_PREPARE_FAILED) ||
           kind == LS_EVENT_COMMIT_DONE || kind == LS_EVENT_COMMIT_FAILED;
}

void ls_core_handle(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    static void (*const handlers[LS_EVENT_KINDS])(struct ls_core *, const struct ls_core_event *,
                                                  struct ls_core_actions *) = {
        [LS_EVENT_HELLO] = core_on_hello,
        [LS_EVENT_STEP_DONE] = core_on_step_done,
        [LS_EVENT_VALIDATION] = core_on_validation,
        [LS_EVENT_SAVING] = core_on_saving,
        [LS_EVENT_PART] = core_on_part,
        [LS_EVENT_SAVE_FAILED] = core_on_save_failed,
        [LS_EVENT_FAULT] = core_on_fault,
        [LS_EVENT_CONNECTION_LOST] = core_on_connection_lost,
        [LS_EVENT_RANK_LOST] = core_on_rank_lost,
        [LS_EVENT_NODE_LOST] = core_on_node_lost,
        [LS_EVENT_STALLED] = core_on_stalled,
        [LS_EVENT_REPLICA_DIFFERS] = core_on_replica_differs,
        [LS_EVENT_LAUNCHER_EXITED] = core_on_launcher_exited,
        [LS_EVENT_CLEARED] = core_on_cleared,
        [LS_EVENT_PREPARED] = core_on_prepared,
        [LS_EVENT_PREPARE_FAILED] = core_on_prepare_failed,
        [LS_EVENT_JOURNALED] = core_on_journaled,
        [LS_EVENT_JOURNAL_FAILED] = core_on_journal_failed,
        [LS_EVENT_COMMIT_DONE] = core_on_commit_done,
        [LS_EVENT_COMMIT_FAILED] = core_on_commit_failed,
        [LS_EVENT_REQUEST] = core_on_request,
        [LS_EVENT_SIGNAL] = core_on_signal,
        [LS_EVENT_TICK] = on_tick,
    };
    out->count = 0;
    assert(event->kind < LS_EVENT_KINDS);
    if (core->ended) return;
    if (!core->restored) end_restoring(core);
    /* Everything that speaks of an attempt says which; one that is over is not heard. */
    bool of_attempt =
        speaks_of_attempt(event->kind) && event->attempt != core->options.attempt && !LS_MUTATED(OLD_ATTEMPT_ACCEPTED);
    bool too_late = core->recovery && is_of_workers(event->kind);
    if (of_attempt || too_late) {
        core->old_attempt++;
        return;
    }
    handlers[event->kind](core, event, out);
    check_invariants(core);
}

/* ---- what others may see ---- */

bool ls_core_is_joined(const struct ls_core *core, ls_connection connection) {
    return core_is_joined(core, connection);
}

bool ls_core_is_asked(const struct ls_core *core, ls_connection connection) {
    for (int i = 0; i < LS_CORE_REQUESTS_MAX; i++)
        if (core->requests[i].connection && core->requests[i].connection == connection) return true;
    return false;
}

void ls_core_read_status(const struct ls_core *core, struct ls_core_status *status) {
    enum ls_core_phase phase = LS_PHASE_RUNNING;
    if (core->ended)
        phase = LS_PHASE_ENDED;
    else if (core->recovery == RECOVERY_CLEARING)
        phase = LS_PHASE_CLEARING;
    else if (core->recovery == RECOVERY_PREPARING)
        phase = LS_PHASE_PREPARING;
    else if (core->recovery == RECOVERY_BACKOFF)
        phase = LS_PHASE_BACKOFF;
    else if (core->cause)
        phase = LS_PHASE_FAILING;
    else if (core->stop_code)
        phase = LS_PHASE_STOPPING;
    else if (!core->assembled)
        phase = LS_PHASE_WAITING;
    *status = (struct ls_core_status){
        .phase = phase,
        .attempt = core->options.attempt,
        .generation = core->options.generation,
        .world_size = core->world_size,
        .ranks_joined = core->ranks_here,
        .start_step = core->options.start_step,
        .start_position = core->options.start_position,
        .end_step = core->end_step,
        .end_position = core->end_position,
        .step = core->done_step,
        .position = core_position(core, core->done_step),
        .samples = core_samples(core, core->done_step),
        .granted_step = core->granted_step,
        .journaled_step = core->journaled_step,
        .committed_step = core->committed_step,
        .saving_step = core->save.open ? core->save.step : 0,
        .parts_present = core->save.open ? core->save.parts_present : 0,
        .chain = core->steps[core->done_step % LS_CORE_WINDOW_STEPS].chain,
        .stop_code = core->stop_code,
        .restarts = core->restarts,
        .restarts_all = core->restarts_all,
        .quarantined = ls_quarantine_within(&core->quarantine, 0, INT64_MAX),
        .skips = core->skips,
        .old_attempt = core->old_attempt,
        .duplicates = core->duplicates,
        .unplaced = core->unplaced,
        .refused = core->refused,
    };
}

const struct ls_quarantine *ls_core_quarantine(const struct ls_core *core) {
    return &core->quarantine;
}

const char *ls_core_event_name(enum ls_core_event_kind kind) {
    static const char *const names[LS_EVENT_KINDS] = {
        [LS_EVENT_HELLO] = "hello",
        [LS_EVENT_STEP_DONE] = "step done",
        [LS_EVENT_VALIDATION] = "validation",
        [LS_EVENT_SAVING] = "saving",
        [LS_EVENT_PART] = "part",
        [LS_EVENT_SAVE_FAILED] = "save failed",
        [LS_EVENT_FAULT] = "fault",
        [LS_EVENT_CONNECTION_LOST] = "connection lost",
        [LS_EVENT_RANK_LOST] = "rank lost",
        [LS_EVENT_NODE_LOST] = "node lost",
        [LS_EVENT_STALLED] = "stalled",
        [LS_EVENT_REPLICA_DIFFERS] = "replica differs",
        [LS_EVENT_LAUNCHER_EXITED] = "launcher exited",
        [LS_EVENT_CLEARED] = "cleared",
        [LS_EVENT_PREPARED] = "prepared",
        [LS_EVENT_PREPARE_FAILED] = "prepare failed",
        [LS_EVENT_JOURNALED] = "journaled",
        [LS_EVENT_JOURNAL_FAILED] = "journal failed",
        [LS_EVENT_COMMIT_DONE] = "commit done",
        [LS_EVENT_COMMIT_FAILED] = "commit failed",
        [LS_EVENT_REQUEST] = "request",
        [LS_EVENT_SIGNAL] = "signal",
        [LS_EVENT_TICK] = "tick",
    };
    return kind < LS_EVENT_KINDS ? names[kind] : "unknown";
}

const char *ls_core_action_name(enum ls_core_action_kind kind) {
    static const char *const names[LS_ACTION_KINDS] = {
        [LS_ACTION_WELCOME] = "welcome",     [LS_ACTION_REFUSE] = "refuse",
        [LS_ACTION_REJOIN] = "rejoin",       [LS_ACTION_GRANT] = "grant",
        [LS_ACTION_ORDER] = "order",         [LS_ACTION_ACK] = "ack",
        [LS_ACTION_REPLY] = "reply",         [LS_ACTION_COMMITTED] = "committed",
        [LS_ACTION_JOURNAL] = "journal",     [LS_ACTION_COMMIT] = "commit",
        [LS_ACTION_KEEP_PART] = "keep part", [LS_ACTION_PRUNE] = "prune",
        [LS_ACTION_KILL] = "kill",           [LS_ACTION_END] = "end",
        [LS_ACTION_LAUNCH] = "launch",       [LS_ACTION_PREPARE] = "prepare",
    };
    return kind < LS_ACTION_KINDS ? names[kind] : "unknown";
}

const char *ls_core_record_name(enum ls_core_record_kind kind) {
    static const char *const names[LS_RECORD_KINDS] = {
        [LS_RECORD_JOINED] = "joined",
        [LS_RECORD_STEP] = "step",
        [LS_RECORD_VALIDATION] = "validation",
        [LS_RECORD_STOP] = "stop",
        [LS_RECORD_COMMIT] = "commit",
        [LS_RECORD_FAULT] = "fault",
        [LS_RECORD_END] = "end",
        [LS_RECORD_QUARANTINE] = "quarantine",
        [LS_RECORD_ATTEMPT] = "attempt",
    };
    return kind < LS_RECORD_KINDS ? names[kind] : "unknown";
}

const char *ls_core_phase_name(enum ls_core_phase phase) {
    switch (phase) {
    case LS_PHASE_WAITING: return "waiting for ranks";
    case LS_PHASE_RUNNING: return "running";
    case LS_PHASE_STOPPING: return "stopping";
    case LS_PHASE_FAILING: return "failing";
    case LS_PHASE_CLEARING: return "clearing";
    case LS_PHASE_PREPARING: return "preparing";
    case LS_PHASE_BACKOFF: return "backing off";
    case LS_PHASE_ENDED: return "ended";
    }
    return "unknown";
}
