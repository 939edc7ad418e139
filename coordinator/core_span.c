/* The core's schedule and ledger: spans granted ahead, steps booked once, acknowledged when they are durable. */
#include "coordinator/core_state.h"

#include <stdio.h>
#include <string.h>

/* ---- grants ---- */

/* The last step that may be granted now: every limit on what the core has to remember. */
static int64_t grant_limit(const struct ls_core *core) {
    if (LS_MUTATED(GRANT_BEYOND_THE_END)) return INT64_MAX;
    int64_t limit = core->end_step;
    if (LS_MUTATED(WINDOW_NOT_KEPT)) return limit;
    int64_t window = core->options.window_steps;
    if (core->journaled_step + window < limit) limit = core->journaled_step + window;
    if (core->save.open && core->save.step + window < limit) limit = core->save.step + window;
    return limit;
}

void core_grant_ahead(struct ls_core *core, struct ls_core_actions *out) {
    if (core->ended || core->cause || !core_voice(core) || !core->assembled || core->stopped_step >= 0) return;
    if (LS_MUTATED(GRANT_WAITS_FOR_FSYNC) && core->journaled_step < core->done_step) return;
    int64_t ahead = core->granted_step - core->done_step;
    if (ahead > core->options.span_steps / 2) return;
    int64_t to = core->granted_step + core->options.span_steps;
    int64_t limit = grant_limit(core);
    if (to > limit) to = limit;
    if (to <= core->granted_step) return;
    int64_t from = core->granted_step;
    if (LS_MUTATED(SPAN_GRANTED_TWICE) && from > core->options.start_step) from--;
    if (LS_MUTATED(GAP_IN_GRANTS) && from > core->options.start_step && from + 1 < to) from++;
    struct ls_core_action *action = core_act(core, out, LS_ACTION_GRANT, core_voice(core));
    action->grant.from_step = from;
    action->grant.to_step = to;
    action->grant.from_position = core_position(core, from);
    action->grant.to_position =
        to > core->end_step ? core->end_position + core->options.global_batch : core_position(core, to);
    core->granted_step = to;
}

/* ---- steps ---- */

static bool same_digest(struct ls_digest a, struct ls_digest b) {
    return a.low == b.low && a.high == b.high;
}

void core_book_step(struct ls_core *core, const struct ls_core_step *step, uint64_t sequence) {
    assert(step->step == core->done_step + 1 && step->step <= core->end_step);
    struct ls_digest chain = core->steps[core->done_step % LS_CORE_WINDOW_STEPS].chain;
    if (!LS_MUTATED(CHAIN_NOT_ADVANCED)) chain = ls_digest_chain(chain, (uint64_t)step->step, step->digest);
    core->done_step = step->step;
    core->skips = step->skipped ? core->skips + 1 : 0;
    core->steps[step->step % LS_CORE_WINDOW_STEPS] =
        (struct core_step){.step = step->step, .digest = step->digest, .chain = chain, .sequence = sequence};
}

/* A step that was booked before: the same again is what a reconnection brings, another one is a broken ledger. */
static void repeat_step(struct ls_core *core, const struct ls_core_step *step, struct ls_core_actions *out) {
    core->duplicates++;
    const struct core_step *booked = core_step_find(core, step->step);
    if (!booked || step->step <= core->options.start_step || same_digest(booked->digest, step->digest)) return;
    if (LS_MUTATED(CONFLICT_OVERLOOKED)) return;
    char first[33], second[33];
    ls_digest_format(booked->digest, first);
    ls_digest_format(step->digest, second);
    core_fail(core, CAUSE_EXACT, LS_DATA, 0, out,
              "ledger: rank 0 on %s reported step %lld twice, with samples %s and %s. The token shards changed while "
              "they were read, or memory is faulty: run 'lockstep data verify', then resume.",
              core_host(core, 0), (long long)step->step, first, second);
}

/* An update that is passed over now and then does no harm; a row of them is a run that does not train any more. */
static void check_skips(struct ls_core *core, struct ls_core_actions *out) {
    int32_t most = core->options.skips_max;
    if (!most || core->skips < most || LS_MUTATED(SKIPS_WITHOUT_END)) return;
    core_fail(core, CAUSE_EXACT, LS_NONFINITE, -1, out,
              "steps %lld to %lld were not finite, %d updates in a row were passed over (fault.nonfinite: skip). Lower "
              "optimizer.lr, or go back to an earlier checkpoint.",
              (long long)core->done_step - core->skips + 1, (long long)core->done_step, core->skips);
}

void core_on_step_done(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    const struct ls_core_step *step = &event->step;
    if (!core_is_voice(core, event, out)) return;
    if (step->step <= core->done_step && !(LS_MUTATED(DUPLICATE_STEP_COUNTED) && step->step == core->done_step &&
                                           step->step > core->options.start_step)) {
        repeat_step(core, step, out);
        return;
    }
    /* Reports are missing in between: ask for everything again. */
    if (step->step > core->done_step + 1) {
        core_ask_rejoin(core, event->connection, out);
        return;
    }
    int64_t allowed = core->stopped_step >= 0 ? core->stopped_step : core->granted_step;
    if (step->step > allowed) {
        core_fail(core, CAUSE_EXACT, LS_ERROR, 0, out,
                  "ledger: rank 0 on %s ran step %lld, it was allowed to run up to step %lld. This is a fault of "
                  "lockstep: please "
                  "report it with logs/rank-00000.log.",
                  core_host(core, 0), (long long)step->step, (long long)allowed);
        return;
    }
    int64_t position = core_position(core, step->step - 1);
    int64_t end_position = core_position(core, step->step), sequences = core_sequences(core, step->step);
    if ((step->end_position != end_position || step->sequences != sequences) &&
        !LS_MUTATED(POSITION_REUSED_AFTER_RESUME)) {
        core_fail(core, CAUSE_EXACT, LS_DATA, 0, out,
                  "ledger: rank 0 on %s ran step %lld on %lld sequences up to position %lld, granted were %lld up to "
                  "position %lld. This is a fault of lockstep: please report it with logs/rank-00000.log.",
                  core_host(core, 0), (long long)step->step, (long long)step->sequences, (long long)step->end_position,
                  (long long)sequences, (long long)end_position);
        return;
    }
    struct ls_core_record *record = core_journal(core, out, LS_RECORD_STEP);
    if (LS_MUTATED(DUPLICATE_STEP_COUNTED) && step->step == core->done_step) core->done_step--;
    core_book_step(core, step, record->sequence);
    record->payload = event->payload;
    record->step = *step;
    record->step.position = position;
    record->step.chain = core_step_find(core, step->step)->chain;
    record->step.samples = core_samples(core, step->step);
    if (LS_MUTATED(ACK_BEFORE_FSYNC)) core_act(core, out, LS_ACTION_ACK, core_voice(core))->ack.step = core->done_step;
    core_grant_ahead(core, out);
    core_try_commit(core, out);
    check_skips(core, out);
    if (LS_MUTATED(FINAL_CHECKPOINT_LOST) && core->done_step == core->end_step)
        core_end(core, LS_OK, false, "done", out);
}

void core_on_validation(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    if (!core_is_voice(core, event, out)) return;
    int64_t step = event->validation.step;
    if (step > core->done_step) {
        core_ask_rejoin(core, event->connection, out);
        return;
    }
    struct core_step *done = core_step_find(core, step);
    if ((step <= core->validation_step && !LS_MUTATED(VALIDATION_COUNTED_TWICE)) || !done) {
        core->duplicates++;
        return;
    }
    struct ls_core_record *record = core_journal(core, out, LS_RECORD_VALIDATION);
    record->payload = event->payload;
    record->validation.step = step;
    core->validation_step = step;
    done->validation_sequence = record->sequence;
}

/* ---- durability ---- */

void core_on_journaled(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    uint64_t sequence = event->journaled.sequence;
    assert(sequence <= core->sequence);
    if (sequence <= core->journaled_sequence) return;
    core->journaled_sequence = sequence;
    int64_t step_before = core->journaled_step, validation_before = core->validation_journaled;
    for (int64_t step = core->journaled_step + 1; step <= core->done_step; step++) {
        if (core_step_find(core, step)->sequence > sequence) break;
        core->journaled_step = step;
    }
    int64_t oldest = core->done_step - LS_CORE_WINDOW_STEPS + 1;
    for (int64_t step = validation_before + 1 > oldest ? validation_before + 1 : oldest; step <= core->validation_step;
         step++) {
        const struct core_step *done = core_step_find(core, step);
        if (done && done->validation_sequence && done->validation_sequence <= sequence)
            core->validation_journaled = step;
    }
    bool advanced = core->journaled_step > step_before || core->validation_journaled > validation_before;
    if (advanced && core_voice(core)) {
        struct ls_core_action *action = core_act(core, out, LS_ACTION_ACK, core_voice(core));
        action->ack.step = core->journaled_step;
        action->ack.validation = core->validation_journaled;
    }
    core_stop_journaled(core, out);
    core_try_commit(core, out);
    core_grant_ahead(core, out);
    core_go_on_recovering(core, out);
}

void core_on_journal_failed(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    core->journal_failed = true;
    if (core->recovery) {
        /* Whatever ended the attempt, without a journal no other one can begin. */
        core_blame_instead(core, LS_CHECKPOINT);
        snprintf(core->cause_text, sizeof core->cause_text,
                 "journal: journal.db cannot be written between two attempts (%s). Free space in the run directory.",
                 event->journal_failed.text);
        core_end_for_cause(core, "", out);
        return;
    }
    core_fail(core, CAUSE_EXACT, LS_CHECKPOINT, -1, out,
              "journal: journal.db cannot be written at step %lld (%s). Free space in the run directory.",
              (long long)core->done_step, event->journal_failed.text);
}
