/* The core's checkpoints: a save is collected part by part, committed when whole and durable, and old ones pruned. */
#include "coordinator/core_state.h"

#include <string.h>

enum { PRUNES_MAX = 4 }; /* per commit; what is left goes with the next */

static void open_save(struct ls_core *core, int64_t step) {
    core->save = (struct core_save){.open = true, .step = step};
    memset(core->parts, 0, (size_t)core->ranks_capacity);
}

bool core_commit_will_come(const struct ls_core *core) {
    const struct core_save *save = &core->save;
    if (!save->open) return false;
    if (save->committing || core->journal_failed) return save->committing;
    return save->announced && save->parts_present == core->world_size && core->done_step >= save->step;
}

/* Grants pause before a save in flight is forgotten; only a worker that breaks the protocol gets here. */
static void fail_forgotten(struct ls_core *core, int64_t step, struct ls_core_actions *out) {
    core_fail(core, CAUSE_EXACT, LS_CHECKPOINT, 0, out,
              "checkpoint: rank 0 on %s saves step %lld, and has gone on to step %lld without waiting for it. "
              "This is a fault of lockstep: please report it with logs/rank-00000.log.",
              core_host(core, 0), (long long)step, (long long)core->done_step);
}

void core_try_commit(struct ls_core *core, struct ls_core_actions *out) {
    struct core_save *save = &core->save;
    if (core->ended || !save->open || !save->announced || save->committing) return;
    int32_t needed = core->world_size;
    if (LS_MUTATED(PART_MISSING) && needed > 1) needed--;
    if (save->parts_present < needed) return;
    if (core->done_step < save->step) return;
    if (core->journaled_step < save->step && !LS_MUTATED(COMMIT_BEFORE_JOURNAL)) return;
    int64_t chained = LS_MUTATED(CHAIN_OF_THE_LATEST_STEP) ? core->done_step : save->step;
    const struct core_step *step = core_step_find(core, chained);
    if (!step) {
        fail_forgotten(core, save->step, out);
        return;
    }
    save->committing = true;
    struct ls_core_action *action = core_act(core, out, LS_ACTION_COMMIT, 0);
    action->commit.step = save->step;
    action->commit.position = core_position(core, save->step);
    action->commit.samples = core_samples(core, save->step);
    action->commit.chain = step->chain;
    if (LS_MUTATED(COMMITTED_BEFORE_COMMIT)) core_act(core, out, LS_ACTION_COMMITTED, 0)->committed.step = save->step;
}

/* A save that is over is spoken of again: its COMMITTED got lost. */
static void repeat_committed(struct ls_core *core, ls_connection connection, struct ls_core_actions *out) {
    core->duplicates++;
    if (LS_MUTATED(COMMITTED_NOT_REPEATED)) return;
    core_act(core, out, LS_ACTION_COMMITTED, connection)->committed.step = core->committed_step;
}

void core_on_saving(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    if (!core_is_voice(core, event, out)) return;
    int64_t step = event->saving.step;
    if (step > core->done_step || step < core->options.start_step) {
        core_ask_rejoin(core, event->connection, out);
        return;
    }
    /* Rank 0 knows what is being saved: parts that came before its word were early, or belong to a save that it has
     * given up. Only a commit under way cannot be taken back; then it is rank 0 that is mistaken. */
    bool needed = step > core->committed_step;
    bool other = core->save.open && core->save.step != step;
    if (needed && other && (core->save.committing || (core->save.announced && step < core->save.step))) {
        core->unplaced++;
        return;
    }
    if (needed && !core_step_find(core, step)) {
        fail_forgotten(core, step, out);
        return;
    }
    uint64_t order = event->saving.order;
    if (order >= core->checkpoint_order) core->checkpoint_order = 0;
    if (event->saving.stop) core->stopped_step = step;
    if (!needed) {
        repeat_committed(core, event->connection, out);
        core_reply_saved(core, order, core->committed_step, out);
        core_check_finished(core, out);
        return;
    }
    if (!core->save.open || other) open_save(core, step);
    core->save.announced = true;
    if (order > core->save.order) core->save.order = order;
    if (LS_MUTATED(STOP_WITHOUT_SAVE) && event->saving.stop) {
        core_end(core, core->stop_code ? core->stop_code : LS_STOPPED, false, "stopped", out);
        return;
    }
    core_try_commit(core, out);
    core_check_finished(core, out);
}

void core_on_part(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    if (!core_is_joined(core, event->connection)) {
        core_ask_rejoin(core, event->connection, out);
        return;
    }
    int64_t step = event->part.step;
    int32_t rank = event->part.rank;
    if (rank < 0 || rank >= core->world_size || step > core->end_step) {
        core->unplaced++;
        return;
    }
    if (step <= core->committed_step) {
        repeat_committed(core, event->connection, out);
        return;
    }
    if (!core->save.open) open_save(core, step);
    /* Of another save than rank 0's: its sender says HELLO and sends it again if it still matters. */
    if (core->save.step != step && !LS_MUTATED(PART_OF_ANOTHER_STEP)) {
        core->unplaced++;
        return;
    }
    if (core->parts[rank] && !LS_MUTATED(PART_COUNTED_TWICE)) {
        core->duplicates++;
        return;
    }
    core->parts[rank] = 1;
    const bool first = core->save.parts_present == 0 && !LS_MUTATED(PARTS_OF_AN_EARLIER_SAVE);
    if (core->save.parts_present < core->world_size) core->save.parts_present++;
    struct ls_core_action *action = core_act(core, out, LS_ACTION_KEEP_PART, 0);
    action->part.step = step;
    action->part.rank = rank;
    action->part.first = first;
    core_try_commit(core, out);
}

void core_on_save_failed(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    if (!core_is_joined(core, event->connection)) {
        core_ask_rejoin(core, event->connection, out);
        return;
    }
    core_fail(core, CAUSE_EXACT, LS_CHECKPOINT, event->save_failed.rank, out,
              "checkpoint: rank %d on %s could not write its part of step %lld (%s). "
              "Free space in the run directory.",
              event->save_failed.rank, core_host(core, event->save_failed.rank), (long long)event->save_failed.step,
              event->save_failed.text);
}

static void forget_checkpoint(struct ls_core *core, int32_t index) {
    core->checkpoints_count--;
    memmove(core->checkpoints + index, core->checkpoints + index + 1,
            (size_t)(core->checkpoints_count - index) * sizeof core->checkpoints[0]);
}

static void prune(struct ls_core *core, struct ls_core_actions *out) {
    int32_t keep = core->options.checkpoints_keep;
    for (int i = 0; keep && i < PRUNES_MAX && core->checkpoints_count > keep; i++) {
        int32_t victim = LS_MUTATED(PRUNE_THE_NEWEST) ? core->checkpoints_count - 1 : 0;
        core_act(core, out, LS_ACTION_PRUNE, 0)->prune.step = core->checkpoints[victim];
        forget_checkpoint(core, victim);
    }
}

void core_note_progress(struct ls_core *core) {
    if (core->committed_step <= core->best_step) return;
    core->best_step = core->committed_step;
    core->restarts = 0;
}

void core_on_commit_done(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    if (!core->save.committing || core->save.step != event->commit.step) {
        core->unplaced++;
        return;
    }
    int64_t step = core->save.step;
    uint64_t order = core->save.order;
    core->save.open = core->save.committing = false;
    core->committed_step = step;
    core_note_progress(core);
    if (core->checkpoints_count == LS_CORE_CHECKPOINTS_MAX) forget_checkpoint(core, 0);
    core->checkpoints[core->checkpoints_count++] = step;
    struct ls_core_record *record = core_journal(core, out, LS_RECORD_COMMIT);
    record->commit.step = step;
    record->commit.position = core_position(core, step);
    record->commit.chain = core_step_find(core, step)->chain;
    core_act(core, out, LS_ACTION_COMMITTED, 0)->committed.step = step;
    core_reply_saved(core, order, step, out);
    prune(core, out);
    core_check_finished(core, out);
    core_check_cause(core, out);
    core_grant_ahead(core, out);
}

void core_on_commit_failed(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    if (!core->save.committing || core->save.step != event->commit.step) {
        core->unplaced++;
        return;
    }
    core->save.open = core->save.committing = false;
    core_fail(core, CAUSE_EXACT, LS_CHECKPOINT, -1, out,
              "checkpoint: step %lld could not be committed (%s). Look at the run directory: is it there, has its disk "
              "room?",
              (long long)event->commit.step, event->commit.text);
}
