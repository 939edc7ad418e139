/* The oracle judges what the core does while an attempt runs; oracle_recovery.c judges how attempts end and begin. */

static void judge_welcome(struct world *w, const struct ls_core_event *event, int variant,
                          const struct ls_core_status *before, const struct ls_core_action *action) {
    if (event->kind != LS_EVENT_HELLO || action->connection != event->connection)
        violate(w, "a welcome nobody asked for");
    const struct ls_core_hello *hello = &event->hello;
    if (variant >= 0 || (hello->attempt && hello->attempt != w->begun.attempt))
        violate(w, "a worker of attempt %u with variant %d is welcomed", hello->attempt, variant);
    if (w->att.faulted || (w->att.begun_ms >= 0 && !w->att.launched)) violate(w, "a welcome between two attempts");
    if (action->welcome.end_step != w->truth_end || action->welcome.end_position != w->truth_position[w->truth_end] ||
        action->welcome.start_step != w->begun.step || action->welcome.start_position != w->begun.position ||
        !same(action->welcome.start_chain, w->begun.chain))
        violate(w, "the welcome tells another run");
    const struct ls_quarantine *quarantine = ls_core_quarantine(w->core);
    for (int64_t i = 0; i < POSITIONS_MAX; i++)
        if (ls_quarantine_has(quarantine, i) != is_quarantined(w, i))
            violate(w, "position %lld of generation %lld is not quarantined as it should be", (long long)i,
                    (long long)w->generation);
    if (action->welcome.acked_step > durable(w)->step) violate(w, "the welcome acknowledges what is not on disk");
    w->seen.ever_joined = true;
    bool complete = true;
    for (int i = 0; i < hello->ranks_count; i++) {
        int rank = hello->ranks[i].rank;
        w->att.joined[rank] = w->attempt_joined[rank] = true;
        if (rank) continue;
        int64_t done = hello->started ? hello->steps_done : w->begun.step;
        if (done < before->step) violate(w, "a hello that was overtaken is believed");
        w->att.voice = event->connection;
        w->att.stop_ordered = false;
        w->att.granted = hello->started ? hello->granted_step : w->begun.step;
        if (w->att.granted > w->begun.step) w->att.assembled = true;
    }
    for (int rank = 0; rank < w->team.ranks; rank++) complete &= w->att.joined[rank];
    w->att.assembled |= complete;
    w->seen.ever_assembled |= w->att.assembled;
}

static void judge_grant(struct world *w, const struct ls_core_action *action) {
    int64_t from = action->grant.from_step, to = action->grant.to_step;
    for (int rank = 0; rank < w->team.ranks; rank++)
        if (!w->attempt_joined[rank]) violate(w, "a grant before rank %d has joined", rank);
    if (!w->att.voice || action->connection != w->att.voice) violate(w, "a grant to somebody other than rank 0");
    if (w->att.faulted) violate(w, "a grant in an attempt that is over");
    if (from != w->att.granted)
        violate(w, "steps %lld..%lld granted after step %lld", (long long)from, (long long)to,
                (long long)w->att.granted);
    if (to <= from || to > w->truth_end)
        violate(w, "steps %lld..%lld granted, the run ends at %lld", (long long)from, (long long)to,
                (long long)w->truth_end);
    if (action->grant.from_position != w->truth_position[from] || action->grant.to_position != w->truth_position[to])
        violate(w, "steps %lld..%lld granted at positions %lld..%lld", (long long)from, (long long)to,
                (long long)action->grant.from_position, (long long)action->grant.to_position);
    if (to - durable(w)->step > w->options.window_steps)
        violate(w, "the window is exceeded by grants up to %lld", (long long)to);
    if (w->att.stopped) violate(w, "a grant after the stop");
    w->att.granted = to;
}

static void judge_commit(struct world *w, const struct ls_core_action *action) {
    int64_t step = action->commit.step;
    if (w->committing) violate(w, "two commits at a time");
    if (w->att.faulted) violate(w, "a commit of an attempt that is over");
    if (step <= newest_folder(w) || step > w->truth_end) violate(w, "a commit of step %lld", (long long)step);
    if (durable(w)->step < step)
        violate(w, "commit of step %lld, the journal holds %lld", (long long)step, (long long)durable(w)->step);
    for (int rank = 0; rank < w->team.ranks; rank++) {
        if (!w->part_on_disk[step][rank])
            violate(w, "commit of step %lld without the part of rank %d", (long long)step, rank);
        if (w->seen.kept_step != step || !w->seen.kept[rank])
            violate(w, "commit of step %lld, the part of rank %d was not kept", (long long)step, rank);
    }
    if (action->commit.position != w->truth_position[step] || !same(action->commit.chain, w->truth_chain[step]))
        violate(w, "commit of step %lld with a wrong position or chain", (long long)step);
    if (action->commit.samples != w->truth_samples[step] || action->commit.samples != count_of(&w->team.saved[step]))
        violate(w, "commit of step %lld with %lld samples, it was trained on %lld", (long long)step,
                (long long)action->commit.samples, (long long)count_of(&w->team.saved[step]));
}

static void judge_step_record(struct world *w, const struct ls_core_event *event, const struct ls_core_status *before,
                              const struct ls_core_record *record) {
    int64_t step = record->step.step;
    if (step != before->step + 1)
        violate(w, "step %lld journaled after step %lld", (long long)step, (long long)before->step);
    if (record->payload != event->payload) violate(w, "the metrics of step %lld are lost", (long long)step);
    if (record->step.position != w->truth_position[step - 1] || record->step.sequences != truth_sequences(w, step) ||
        !same(record->step.digest, w->truth_digest[step]) || !same(record->step.chain, w->truth_chain[step]))
        violate(w, "step %lld journaled with wrong content", (long long)step);
    if (record->step.samples != w->truth_samples[step])
        violate(w, "step %lld is told with %lld samples", (long long)step, (long long)record->step.samples);
}

static void judge_validation_record(struct world *w, const struct ls_core_event *event,
                                    const struct ls_core_record *record) {
    if (record->payload != event->payload) violate(w, "the metrics of a validation are lost");
    if (record->validation.step <= durable(w)->validation)
        violate(w, "validation of step %lld journaled twice", (long long)record->validation.step);
    for (int i = 0; i < w->pending_count; i++)
        if (w->pending[i].kind == LS_RECORD_VALIDATION && w->pending[i].attempt == record->attempt &&
            w->pending[i].validation.step >= record->validation.step)
            violate(w, "validation of step %lld journaled twice", (long long)record->validation.step);
}

static void judge_record(struct world *w, const struct ls_core_event *event, const struct ls_core_status *before,
                         const struct ls_core_record *record) {
    w->coverage->records[record->kind]++;
    uint32_t attempt = w->begun.attempt + (record->kind == LS_RECORD_ATTEMPT);
    if (record->attempt != attempt || record->generation != w->options.generation)
        violate(w, "a record of another life");
    switch (record->kind) {
    case LS_RECORD_STEP: judge_step_record(w, event, before, record); break;
    case LS_RECORD_VALIDATION: judge_validation_record(w, event, record); break;
    case LS_RECORD_STOP: w->seen.stop_code = record->stop.code; break;
    case LS_RECORD_FAULT: judge_fault(w, before, record); break;
    case LS_RECORD_QUARANTINE: judge_quarantine(w, record); break;
    case LS_RECORD_ATTEMPT: judge_attempt(w, event, before, record); break;
    case LS_RECORD_END:
        if ((!w->att.faulted || record->end.code != w->att.fault.end.code) &&
            (record->end.rank >= 0 || record->end.host[0]))
            violate(w, "an end without a cause blames rank %d on '%s'", record->end.rank, record->end.host);
        break;
    default: break;
    }
}

static void judge_refuse(struct world *w, const struct ls_core_event *event, int variant,
                         const struct ls_core_action *action) {
    if (event->kind != LS_EVENT_HELLO) violate(w, "refused without a hello");
    bool current = event->hello.attempt == w->begun.attempt && !w->att.faulted;
    if (variant < 0 && current) violate(w, "refused without reason: %s", action->message.text);
    if (w->options.launched && current &&
        (variant == FAULT_WRONG_VERSION || variant == FAULT_WRONG_DATASET || variant == FAULT_WRONG_WORLD_SIZE) &&
        !w->att.joined[event->hello.ranks[0].rank])
        exact_cause(w, (int)action->message.code, false, 0);
}

static void judge_reply(struct world *w, const struct ls_core_action *action) {
    const char *text = action->message.text;
    if (action->message.code == LS_OK && strncmp(text, "stopping", 8) == 0 && !durable(w)->stop)
        violate(w, "a stop is confirmed that a crash would forget");
    if (action->message.code == LS_OK && strncmp(text, "saved", 5) == 0 &&
        !on_disk(w, atoll(strstr(text, "step ") + 5)))
        violate(w, "confirmed to an operator, not on disk: %s", text);
}

static void judge_ack(struct world *w, const struct ls_core_action *action) {
    if (action->connection != w->att.voice) violate(w, "an acknowledgement to somebody other than rank 0");
    if (action->ack.step > durable(w)->step)
        violate(w, "step %lld acknowledged, on disk is %lld", (long long)action->ack.step, (long long)durable(w)->step);
    if (action->ack.validation > durable(w)->validation) violate(w, "a validation acknowledged that is not on disk");
}

static void judge_kept_part(struct world *w, const struct ls_core_event *event, const struct ls_core_action *action) {
    if (action->part.first) memset(w->seen.kept, 0, sizeof w->seen.kept);
    w->seen.kept_step = action->part.step;
    if (w->seen.kept[action->part.rank]) violate(w, "the part of rank %d kept twice", action->part.rank);
    if (event->kind != LS_EVENT_PART || event->part.rank != action->part.rank || event->part.step != action->part.step)
        violate(w, "a part is kept that did not come");
    w->seen.kept[action->part.rank] = true;
}

static void judge_action(struct world *w, const struct ls_core_event *event, int variant,
                         const struct ls_core_status *before, const struct ls_core_status *after,
                         const struct ls_core_action *action) {
    bool begins = action->kind == LS_ACTION_JOURNAL && action->record.kind == LS_RECORD_ATTEMPT;
    if (action->attempt != w->begun.attempt + begins || action->generation != w->options.generation)
        violate(w, "an action of another life");
    switch (action->kind) {
    case LS_ACTION_WELCOME: judge_welcome(w, event, variant, before, action); break;
    case LS_ACTION_REFUSE: judge_refuse(w, event, variant, action); break;
    case LS_ACTION_REJOIN: break;
    case LS_ACTION_GRANT: judge_grant(w, action); break;
    case LS_ACTION_ORDER:
        if (action->connection != w->att.voice) violate(w, "an order to somebody other than rank 0");
        if (!action->order.stop) break;
        if (!durable(w)->stop) violate(w, "a stop is ordered that a crash would forget");
        w->att.stop_ordered = true;
        break;
    case LS_ACTION_ACK: judge_ack(w, action); break;
    case LS_ACTION_COMMITTED:
        if (action->committed.step && !on_disk(w, action->committed.step))
            violate(w, "step %lld called committed", (long long)action->committed.step);
        break;
    case LS_ACTION_REPLY: judge_reply(w, action); break;
    case LS_ACTION_JOURNAL: judge_record(w, event, before, &action->record); break;
    case LS_ACTION_KEEP_PART: judge_kept_part(w, event, action); break;
    case LS_ACTION_COMMIT: judge_commit(w, action); break;
    case LS_ACTION_PRUNE: {
        int newer = 0;
        for (int i = 0; i < w->folders_count; i++) newer += w->folders[i].step > action->prune.step;
        if (!w->options.checkpoints_keep || newer < w->options.checkpoints_keep)
            violate(w, "step %lld pruned with %d newer checkpoints", (long long)action->prune.step, newer);
        break;
    }
    case LS_ACTION_LAUNCH: judge_launch(w, action); break;
    case LS_ACTION_KILL: judge_kill(w); break;
    case LS_ACTION_PREPARE: judge_prepare(w, action); break;
    case LS_ACTION_END: judge_end(w, action, before, after); break;
    case LS_ACTION_KINDS: break;
    }
}

/* Nothing that rank 0 needs is held back. */
static void judge_omissions(struct world *w, const struct ls_core_status *after) {
    if (w->seen.ended) return;
    if (w->att.exact_code && !w->att.faulted && !w->committing && w->seen.ticked)
        violate(w, "the cause is known and nothing ends");
    const struct journal_view *view = durable(w);
    bool told =
        view->stop && (view->stop_generation < w->options.generation || view->stop_sequence <= w->seen.journaled);
    judge_recovery_omissions(w, told);
    bool runs =
        after->phase == LS_PHASE_WAITING || after->phase == LS_PHASE_RUNNING || after->phase == LS_PHASE_STOPPING;
    if (!runs || !w->att.voice || !w->att.assembled || w->att.stopped) return;
    int64_t limit = w->truth_end, window = w->options.window_steps;
    if (after->journaled_step + window < limit) limit = after->journaled_step + window;
    if (after->saving_step && after->saving_step + window < limit) limit = after->saving_step + window;
    if (after->granted_step - after->step <= w->options.span_steps / 2 && after->granted_step < limit)
        violate(w, "rank 0 has %lld steps left and is granted no more", (long long)(after->granted_step - after->step));
    if (told && !w->att.stop_ordered && after->step < w->truth_end)
        violate(w, "a stop is wished and rank 0 is not told");
}

static void oracle_judges(struct world *w, const struct ls_core_event *event, int variant,
                          const struct ls_core_status *before, const struct ls_core_status *after) {
    uint64_t counters[4] = {after->old_attempt, after->duplicates, after->unplaced, after->refused};
    w->coverage->old_attempt += counters[0] - w->seen.counters[0];
    w->coverage->duplicates += counters[1] - w->seen.counters[1];
    w->coverage->unplaced += counters[2] - w->seen.counters[2];
    w->coverage->refused += counters[3] - w->seen.counters[3];
    memcpy(w->seen.counters, counters, sizeof counters);
    for (int i = 0; i < w->actions.count; i++) {
        const struct ls_core_action *action = &w->actions.list[i];
        w->coverage->actions[action->kind]++;
        if (w->seen.ended) violate(w, "'%s' after the end", ls_core_action_name(action->kind));
        if (variant == FAULT_OLD_ATTEMPT_SPEAKS && action->kind != LS_ACTION_REFUSE)
            violate(w, "'%s' for an attempt that is over", ls_core_action_name(action->kind));
        if (variant == FAULT_NONSENSE && action->kind != LS_ACTION_REFUSE && action->kind != LS_ACTION_REJOIN &&
            action->kind != LS_ACTION_COMMITTED)
            violate(w, "'%s' for nonsense", ls_core_action_name(action->kind));
        judge_action(w, event, variant, before, after, action);
    }
    if (after->start_step > after->journaled_step || after->journaled_step > after->step ||
        after->step > after->granted_step || after->granted_step > after->end_step)
        violate(w, "the steps are out of order");
    judge_omissions(w, after);
}
