/* The core between two attempts: the old one is cleared away, a checkpoint found, the next one begun and launched. */
#include "coordinator/core_state.h"

#include <stdio.h>
#include <string.h>

/* ---- hosts ---- */

bool core_host_is_excluded(const struct ls_core *core, const struct core_host *host) {
    if (LS_MUTATED(LOST_HOST_USED_AGAIN)) return false;
    return core->options.host_losses_max > 0 && host->losses >= core->options.host_losses_max;
}

void core_count_loss(struct ls_core *core, const char *name, enum ls_scope scope) {
    if (!name[0] || (scope != LS_SCOPE_RANK && scope != LS_SCOPE_NODE)) return;
    struct core_host *host = NULL, *least = &core->hosts[0];
    for (int32_t i = 0; i < core->hosts_count && !host; i++) {
        if (strcmp(core->hosts[i].name, name) == 0) host = &core->hosts[i];
        if (core->hosts[i].losses < least->losses) least = &core->hosts[i];
    }
    if (!host) {
        host = core->hosts_count < LS_CORE_HOSTS_MAX ? &core->hosts[core->hosts_count++] : least;
        *host = (struct core_host){.losses = 0};
        snprintf(host->name, sizeof host->name, "%s", name);
    }
    host->losses += scope == LS_SCOPE_NODE ? LS_CORE_NODE_LOSSES : 1;
}

const char *ls_core_excluded(const struct ls_core *core, int index) {
    for (int32_t i = 0; i < core->hosts_count; i++)
        if (core_host_is_excluded(core, &core->hosts[i]) && index-- == 0) return core->hosts[i].name;
    return NULL;
}

/* ---- clearing ---- */

void core_begin_recovery(struct ls_core *core, struct ls_core_actions *out) {
    struct ls_quarantine_range bad = core_bad_range(core);
    if (bad.to > bad.from && core->bad.to == 0) {
        struct ls_core_record *record = core_journal(core, out, LS_RECORD_QUARANTINE);
        record->quarantine.step = core->cause_below;
        record->quarantine.from = bad.from;
        record->quarantine.to = bad.to;
        record->quarantine.data_generation = core->options.data_generation;
        core->bad = bad;
        core->fault_sequence = record->sequence;
    }
    /* Nobody of the attempt is heard any more. */
    for (int32_t rank = 0; rank < core->world_size; rank++) core->ranks[rank].connection = 0;
    core->ranks_here = 0;
    core->save = (struct core_save){.open = false};
    core->recovery = RECOVERY_CLEARING;
    core->recovery_since_ms = -1;
    core->prepare_asked = false;
    core_refuse_saves(core, out);
    if (core->stop_order) {
        core_end_stopped(core, out);
        return;
    }
    core_act(core, out, LS_ACTION_KILL, 0);
    if (LS_MUTATED(LAUNCH_BEFORE_CLEARED)) core->recovery = RECOVERY_PREPARING;
    core_go_on_recovering(core, out);
}

void core_on_cleared(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    (void)event;
    if (core->recovery != RECOVERY_CLEARING) {
        core->unplaced++;
        return;
    }
    core->recovery = RECOVERY_PREPARING;
    core_go_on_recovering(core, out);
}

/* ---- preparing ---- */

/* Ranks were lost so often in a row that doing the same again is no cure. */
static bool is_lost_again_and_again(const struct ls_core *core) {
    const int32_t most = core->options.host_losses_max;
    if (core->cause_scope != LS_SCOPE_RANK && core->cause_scope != LS_SCOPE_NODE) return false;
    return most > 0 && (core->restarts + 1 >= most || LS_MUTATED(FEWER_RANKS_TOO_SOON));
}

/* How many ranks the next attempt has. Fewer than wanted rather than a host that loses ranks; where none can be left
 * out, fewer rather than the same loss for ever, and no more of them again where hosts are not ours to choose. Returns
 * false when there are too few either way. */
static bool choose_world_size(const struct ls_core *core, const struct ls_core_event *event, int32_t *world_size,
                              bool *hosts_forgiven) {
    int32_t wanted = core->ranks_wanted;
    int32_t least = core->options.min_ranks && core->options.min_ranks < wanted ? core->options.min_ranks : wanted;
    int32_t slots = event->prepared.slots, slots_all = event->prepared.slots_all;
    if (slots < 0 || slots > wanted) slots = wanted;
    if (slots_all < 0 || slots_all > wanted) slots_all = wanted;
    /* Where hosts are not ours to choose, leaving some out means nothing. */
    const bool ours = event->prepared.slots >= 0;
    *hosts_forgiven = ours ? slots < least : ls_core_excluded(core, 0) != NULL;
    *world_size = *hosts_forgiven ? slots_all : slots;
    if (!ours && core->world_size && core->world_size < *world_size) *world_size = core->world_size;
    const int32_t fewer = event->prepared.fewer;
    if ((!ours || *hosts_forgiven) && is_lost_again_and_again(core) && fewer >= least && fewer > 0 &&
        fewer < *world_size)
        *world_size = fewer;
    if (LS_MUTATED(FEWER_RANKS_THAN_ALLOWED) && slots > 0) *world_size = slots;
    return wanted == 0 || *world_size >= least || LS_MUTATED(FEWER_RANKS_THAN_ALLOWED);
}

/* What was set aside, or found damaged, is no longer there to be pruned. */
static void forget_checkpoints_above(struct ls_core *core, int64_t step) {
    while (core->checkpoints_count && core->checkpoints[core->checkpoints_count - 1] > step) core->checkpoints_count--;
}

void core_on_prepared(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    if (core->recovery != RECOVERY_PREPARING || !core->prepare_asked) {
        core->unplaced++;
        return;
    }
    int64_t step = event->prepared.step;
    assert(step >= 0 && step <= core->end_step && event->prepared.position >= 0);
    assert(!core->cause_below || step < core->cause_below || LS_MUTATED(BAD_CHECKPOINT_USED_AGAIN));
    int32_t world_size;
    bool hosts_forgiven;
    if (!choose_world_size(core, event, &world_size, &hosts_forgiven)) {
        char why[160];
        snprintf(why, sizeof why, " %d ranks can be placed, %d are needed (fault.min_ranks).", world_size,
                 core->options.min_ranks ? core->options.min_ranks : core->ranks_wanted);
        core_end_for_cause(core, why, out);
        return;
    }
    int64_t lost_steps = core->done_step > step ? core->done_step - step : 0;
    if (hosts_forgiven) core->hosts_count = 0;
    if (core->bad.to && !LS_MUTATED(QUARANTINE_FORGOTTEN))
        ls_quarantine_add(&core->quarantine, core->bad.from, core->bad.to);
    core->options.attempt++;
    core->options.world_size = world_size;
    bool begins = event->prepared.data_generation != core->options.data_generation;
    if (LS_MUTATED(POSITION_OF_ANOTHER_GENERATION)) begins = false;
    core->options.start_step = step;
    core->options.start_position = begins ? 0 : event->prepared.position;
    core->options.start_samples = event->prepared.samples;
    core->options.start_chain = event->prepared.chain;
    core->options.restarted = false;
    forget_checkpoints_above(core, step);
    core_begin_attempt(core);
    core->restarts++;
    core->restarts_all++;
    core->launched = false;
    core->recovery = RECOVERY_BACKOFF;
    core->recovery_since_ms = -1;
    struct ls_core_record *record = core_journal(core, out, LS_RECORD_ATTEMPT);
    record->payload = event->payload;
    record->attempt_begun.world_size = world_size;
    record->attempt_begun.restarts = core->restarts;
    record->attempt_begun.best_step = core->best_step;
    record->attempt_begun.start_step = step;
    record->attempt_begun.start_position = core->options.start_position;
    record->attempt_begun.start_samples = core->options.start_samples;
    record->attempt_begun.begins_generation = begins;
    record->attempt_begun.start_chain = core->options.start_chain;
    record->attempt_begun.lost_steps = lost_steps;
    record->attempt_begun.hosts_forgiven = hosts_forgiven;
    core->attempt_sequence = record->sequence;
    core_check_finished(core, out);
    core_go_on_recovering(core, out);
}

void core_on_prepare_failed(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out) {
    if (core->recovery != RECOVERY_PREPARING || !core->prepare_asked) {
        core->unplaced++;
        return;
    }
    core_blame_instead(core, event->prepare_failed.code);
    snprintf(core->cause_text, sizeof core->cause_text, "%s", event->prepare_failed.text);
    core_end_for_cause(core, "", out);
}

/* ---- what waits for disk or time ---- */

/* None before the first restart in a row, then doubling. */
static int64_t backoff_ms(const struct ls_core *core) {
    int64_t wait_ms = core->options.backoff_ms;
    if (core->restarts < 2) return 0;
    for (int32_t i = 2; i < core->restarts && wait_ms < core->options.backoff_max_ms; i++) wait_ms *= 2;
    return wait_ms < core->options.backoff_max_ms ? wait_ms : core->options.backoff_max_ms;
}

void core_launch(struct ls_core *core, struct ls_core_actions *out) {
    struct ls_core_action *action = core_act(core, out, LS_ACTION_LAUNCH, 0);
    action->launch.world_size = core->options.world_size;
    action->launch.start_step = core->options.start_step;
    action->launch.start_position = core->options.start_position;
    action->launch.start_samples = core->options.start_samples;
    action->launch.start_chain = core->options.start_chain;
    core->recovery = RECOVERY_NONE;
    core->launched = true;
}

void core_go_on_recovering(struct ls_core *core, struct ls_core_actions *out) {
    if (core->ended || !core->recovery) return;
    int64_t waited_ms = core->recovery_since_ms < 0 ? 0 : core->now_ms - core->recovery_since_ms;
    switch (core->recovery) {
    case RECOVERY_NONE: break;
    case RECOVERY_CLEARING:
        if (core->options.clear_timeout_ms && waited_ms >= core->options.clear_timeout_ms)
            core_end_for_cause(core, " What is left of its processes could not be ended: end them by hand.", out);
        break;
    case RECOVERY_PREPARING:
        if (core->prepare_asked || (core->journaled_sequence < core->fault_sequence && !LS_MUTATED(FAULT_NOT_AWAITED)))
            break;
        core->prepare_asked = true;
        core_act(core, out, LS_ACTION_PREPARE, 0)->prepare.below_step =
            core->cause_below && !LS_MUTATED(BAD_CHECKPOINT_USED_AGAIN) ? core->cause_below : INT64_MAX;
        break;
    case RECOVERY_BACKOFF:
        if (core->journaled_sequence < core->attempt_sequence && !LS_MUTATED(LAUNCH_BEFORE_JOURNAL)) break;
        if (waited_ms < backoff_ms(core) && !LS_MUTATED(BACKOFF_SKIPPED)) break;
        core_launch(core, out);
        break;
    }
}
