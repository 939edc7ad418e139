/* The oracle: knows the truth of the run and of the disk, hears what the core hears, and judges every action. */

/* ---- the truth ---- */

/* The digest of the sequences [position, position + sequences), as workers compute it. */
static struct ls_digest truth_of(int64_t position, int64_t sequences) {
    struct ls_digest digest = {0, 0};
    for (int64_t i = position; i < position + sequences; i++) {
        uint64_t z = ((uint64_t)i + 1) * 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 31) * 0x94d049bb133111ebu;
        digest = ls_digest_add(digest, (struct ls_digest){z, z * 0xbf58476d1ce4e5b9u ^ (uint64_t)i});
    }
    return digest;
}

static void oracle_knows_run(struct world *w) {
    for (int64_t step = 1; step <= w->end_step; step++) {
        int64_t position = step * w->batch < w->end_position ? step * w->batch : w->end_position;
        w->truth_position[step] = position;
        w->truth_digest[step] = truth_of(w->truth_position[step - 1], position - w->truth_position[step - 1]);
        w->truth_chain[step] = ls_digest_chain(w->truth_chain[step - 1], (uint64_t)step, w->truth_digest[step]);
    }
}

static bool same(struct ls_digest a, struct ls_digest b) {
    return a.low == b.low && a.high == b.high;
}

/* What the disk's journal says about this attempt; looked up again when records were added. */
static const struct journal_view *durable(struct world *w) {
    struct journal_view *view = &w->view;
    if (view->attempt != w->options.attempt)
        *view = (struct journal_view){.attempt = w->options.attempt, .step = w->options.start_step, .validation = -1};
    for (; view->count < w->durable_count; view->count++) {
        const struct ls_core_record *record = &w->durable[view->count];
        if (record->attempt != w->options.attempt) continue;
        switch (record->kind) {
        case LS_RECORD_STEP:
            if (record->step.step != view->step + 1)
                violate(w, "the journal holds step %lld after step %lld", (long long)record->step.step,
                        (long long)view->step);
            view->step++;
            break;
        case LS_RECORD_VALIDATION: view->validation = record->validation.step; break;
        case LS_RECORD_STOP:
            if (!view->stop) {
                view->stop_generation = record->generation;
                view->stop_sequence = record->sequence;
            }
            view->stop = record->stop.code;
            break;
        case LS_RECORD_JOINED: view->joined = true; break;
        case LS_RECORD_FAULT: view->fault = record->end.code; break;
        default: break;
        }
    }
    return view;
}

static bool on_disk(struct world *w, int64_t step) {
    for (int i = 0; i < w->folders_count; i++)
        if (w->folders[i].step == step) return true;
    return false;
}

static int64_t newest_folder(struct world *w) {
    return w->folders_count ? w->folders[w->folders_count - 1].step : 0;
}

/* ---- hearing ---- */

static void oracle_starts(struct world *w) {
    memset(&w->seen, 0, sizeof w->seen);
    w->seen.lost_rank = -1;
    w->seen.stop_code = durable(w)->stop;
    w->seen.granted = w->options.start_step;
    w->seen.assembled = durable(w)->joined;
    w->seen.excuse = durable(w)->fault;
    if (durable(w)->fault != LS_COMMUNICATION) w->seen.exact_code = durable(w)->fault;
}

static void exact_cause(struct world *w, int code) {
    if (!w->seen.exact_code) w->seen.exact_code = code;
}

/* Facts that follow from the event alone, noted before the core sees it. */
static void oracle_hears(struct world *w, const struct ls_core_event *event, const struct ls_core_status *before) {
    bool current = event->attempt == w->options.attempt;
    bool voice = event->connection && event->connection == w->seen.voice;
    switch (event->kind) {
    case LS_EVENT_FAULT:
        if (!current) break;
        w->seen.excuse = true;
        if (event->fault.code != LS_COMMUNICATION) exact_cause(w, (int)event->fault.code);
        break;
    case LS_EVENT_RANK_LOST:
        if (!current) break;
        w->seen.excuse = true;
        if (w->seen.lost_rank < 0) w->seen.lost_rank = event->rank_lost.rank;
        break;
    case LS_EVENT_LAUNCHER_EXITED:
        if (current) w->seen.excuse = true;
        break;
    case LS_EVENT_SAVE_FAILED:
        if (current && ls_core_is_joined(w->core, event->connection)) exact_cause(w, LS_CHECKPOINT);
        break;
    case LS_EVENT_JOURNAL_FAILED: exact_cause(w, LS_CHECKPOINT); break;
    case LS_EVENT_COMMIT_FAILED:
        if (current) exact_cause(w, LS_CHECKPOINT);
        break;
    case LS_EVENT_STEP_DONE:
        if (!current || !voice) break;
        if (event->step.step <= before->step && event->step.step > before->start_step &&
            !same(event->step.digest, w->truth_digest[event->step.step]))
            exact_cause(w, LS_DATA);
        if (event->step.step == before->step + 1) {
            if (event->step.step > before->granted_step || w->seen.stopped)
                exact_cause(w, LS_ERROR);
            else if (event->step.end_position != w->truth_position[event->step.step])
                exact_cause(w, LS_DATA);
        }
        break;
    case LS_EVENT_SAVING:
        if (current && voice && event->saving.stop && event->saving.step <= before->step &&
            event->saving.step >= before->start_step)
            w->seen.stopped = true;
        break;
    case LS_EVENT_CONNECTION_LOST:
        if (voice) w->seen.voice = 0;
        break;
    case LS_EVENT_JOURNALED: w->seen.journaled = event->journaled.sequence; break;
    case LS_EVENT_SIGNAL:
        if (event->signal == LS_SIGNAL_STOP) w->seen.stop_signals++;
        w->seen.now_signalled |= event->signal == LS_SIGNAL_NOW || w->seen.stop_signals > 1;
        break;
    default: break;
    }
}

/* ---- judging ---- */

static void judge_welcome(struct world *w, const struct ls_core_event *event, int variant,
                          const struct ls_core_status *before, const struct ls_core_action *action) {
    if (event->kind != LS_EVENT_HELLO || action->connection != event->connection)
        violate(w, "a welcome nobody asked for");
    const struct ls_core_hello *hello = &event->hello;
    if (variant >= 0 || (hello->attempt && hello->attempt != w->options.attempt))
        violate(w, "a worker of attempt %u with variant %d is welcomed", hello->attempt, variant);
    if (action->welcome.end_step != w->end_step || action->welcome.end_position != w->end_position ||
        action->welcome.start_position != w->truth_position[w->options.start_step] ||
        !same(action->welcome.start_chain, w->truth_chain[w->options.start_step]))
        violate(w, "the welcome tells another run");
    if (action->welcome.acked_step > durable(w)->step) violate(w, "the welcome acknowledges what is not on disk");
    bool complete = true;
    for (int i = 0; i < hello->ranks_count; i++) {
        int rank = hello->ranks[i].rank;
        w->seen.joined[rank] = w->attempt_joined[rank] = true;
        if (rank) continue;
        int64_t done = hello->started ? hello->steps_done : w->options.start_step;
        if (done < before->step) violate(w, "a hello that was overtaken is believed");
        w->seen.voice = event->connection;
        w->seen.stop_ordered = false;
        w->seen.granted = hello->started ? hello->granted_step : w->options.start_step;
        if (w->seen.granted > w->options.start_step) w->seen.assembled = true;
    }
    for (int rank = 0; rank < w->team.ranks; rank++) complete &= w->seen.joined[rank];
    w->seen.assembled |= complete;
}

static void judge_grant(struct world *w, const struct ls_core_action *action) {
    int64_t from = action->grant.from_step, to = action->grant.to_step;
    for (int rank = 0; rank < w->team.ranks; rank++)
        if (!w->attempt_joined[rank]) violate(w, "a grant before rank %d has joined", rank);
    if (!w->seen.voice || action->connection != w->seen.voice) violate(w, "a grant to somebody other than rank 0");
    if (from != w->seen.granted)
        violate(w, "steps %lld..%lld granted after step %lld", (long long)from, (long long)to,
                (long long)w->seen.granted);
    if (to <= from || to > w->end_step)
        violate(w, "steps %lld..%lld granted, the run ends at %lld", (long long)from, (long long)to,
                (long long)w->end_step);
    if (action->grant.from_position != w->truth_position[from] || action->grant.to_position != w->truth_position[to])
        violate(w, "steps %lld..%lld granted at positions %lld..%lld", (long long)from, (long long)to,
                (long long)action->grant.from_position, (long long)action->grant.to_position);
    if (to - durable(w)->step > w->options.window_steps)
        violate(w, "the window is exceeded by grants up to %lld", (long long)to);
    if (w->seen.stopped) violate(w, "a grant after the stop");
    w->seen.granted = to;
}

static void judge_commit(struct world *w, const struct ls_core_action *action) {
    int64_t step = action->commit.step;
    if (w->committing) violate(w, "two commits at a time");
    if (step <= newest_folder(w) || step > w->end_step) violate(w, "a commit of step %lld", (long long)step);
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
}

static void judge_record(struct world *w, const struct ls_core_event *event, const struct ls_core_status *before,
                         const struct ls_core_record *record) {
    w->coverage->records[record->kind]++;
    if (record->attempt != w->options.attempt || record->generation != w->options.generation)
        violate(w, "a record of another life");
    switch (record->kind) {
    case LS_RECORD_STEP:
        if (record->step.step != before->step + 1)
            violate(w, "step %lld journaled after step %lld", (long long)record->step.step, (long long)before->step);
        if (record->payload != event->payload)
            violate(w, "the metrics of step %lld are lost", (long long)record->step.step);
        if (record->step.position != w->truth_position[before->step] ||
            !same(record->step.digest, w->truth_digest[record->step.step]) ||
            !same(record->step.chain, w->truth_chain[record->step.step]))
            violate(w, "step %lld journaled with wrong content", (long long)record->step.step);
        break;
    case LS_RECORD_VALIDATION:
        if (record->payload != event->payload) violate(w, "the metrics of a validation are lost");
        if (record->validation.step <= durable(w)->validation)
            violate(w, "validation of step %lld journaled twice", (long long)record->validation.step);
        for (int i = 0; i < w->pending_count; i++)
            if (w->pending[i].kind == LS_RECORD_VALIDATION && w->pending[i].validation.step >= record->validation.step)
                violate(w, "validation of step %lld journaled twice", (long long)record->validation.step);
        break;
    case LS_RECORD_STOP: w->seen.stop_code = record->stop.code; break;
    default: break;
    }
}

static void judge_end(struct world *w, const struct ls_core_action *action, const struct ls_core_status *after) {
    int code = (int)action->message.code;
    if (w->seen.ended) violate(w, "two ends");
    w->seen.ended = true;
    w->coverage->exits[code & 255]++;
    if (w->seen.now_signalled) {
        if (code != LS_STOPPED) violate(w, "ended with %d, not at once", code);
        return;
    }
    if (code == LS_OK) {
        if (w->end_step && (newest_folder(w) != w->end_step ||
                            !same(w->folders[w->folders_count - 1].chain, w->truth_chain[w->end_step])))
            violate(w, "done without the final checkpoint");
        return;
    }
    if (code == LS_STOPPED || code == LS_REQUEUE) {
        if (!w->seen.stop_code || code != (int)w->seen.stop_code)
            violate(w, "ended with %d, nobody asked for that", code);
        if (newest_folder(w) < after->step)
            violate(w, "stopped at step %lld, saved is %lld", (long long)after->step, (long long)newest_folder(w));
        return;
    }
    if (w->seen.exact_code) {
        if (code != w->seen.exact_code) violate(w, "ended with %d, the cause has %d", code, w->seen.exact_code);
        return;
    }
    if (code != LS_COMMUNICATION) violate(w, "ended with %d without a cause", code);
    bool healthy = w->team.running && !w->team.stuck;
    for (int rank = 0; rank < w->team.ranks; rank++) healthy &= !w->team.absent[rank] && w->team.wrong[rank] < 0;
    if (healthy && !w->seen.excuse) violate(w, "ended with 6, nothing is lost: %s", action->message.text);
    char name[32];
    snprintf(name, sizeof name, "rank %d on host", w->seen.lost_rank);
    if (w->seen.lost_rank >= 0 && !strstr(action->message.text, name))
        violate(w, "the lost rank is not named: %s", action->message.text);
}

static void judge_action(struct world *w, const struct ls_core_event *event, int variant,
                         const struct ls_core_status *before, const struct ls_core_status *after,
                         const struct ls_core_action *action) {
    if (action->attempt != w->options.attempt || action->generation != w->options.generation)
        violate(w, "an action of another life");
    switch (action->kind) {
    case LS_ACTION_WELCOME: judge_welcome(w, event, variant, before, action); break;
    case LS_ACTION_REFUSE:
        if (event->kind != LS_EVENT_HELLO) violate(w, "refused without a hello");
        if (variant < 0 && event->hello.attempt == w->options.attempt)
            violate(w, "refused without reason: %s", action->message.text);
        if (w->options.launched && event->hello.attempt == w->options.attempt &&
            (variant == FAULT_WRONG_VERSION || variant == FAULT_WRONG_DATASET || variant == FAULT_WRONG_WORLD_SIZE) &&
            !w->seen.joined[event->hello.ranks[0].rank])
            exact_cause(w, (int)action->message.code);
        break;
    case LS_ACTION_REJOIN: break;
    case LS_ACTION_GRANT: judge_grant(w, action); break;
    case LS_ACTION_ORDER:
        if (action->connection != w->seen.voice) violate(w, "an order to somebody other than rank 0");
        if (!action->order.stop) break;
        if (!durable(w)->stop) violate(w, "a stop is ordered that a crash would forget");
        w->seen.stop_ordered = true;
        break;
    case LS_ACTION_ACK:
        if (action->connection != w->seen.voice) violate(w, "an acknowledgement to somebody other than rank 0");
        if (action->ack.step > durable(w)->step)
            violate(w, "step %lld acknowledged, on disk is %lld", (long long)action->ack.step,
                    (long long)durable(w)->step);
        if (action->ack.validation > durable(w)->validation)
            violate(w, "a validation acknowledged that is not on disk");
        break;
    case LS_ACTION_COMMITTED:
        if (action->committed.step && !on_disk(w, action->committed.step))
            violate(w, "step %lld called committed", (long long)action->committed.step);
        break;
    case LS_ACTION_REPLY:
        if (action->message.code == LS_OK && strncmp(action->message.text, "stopping", 8) == 0 && !durable(w)->stop)
            violate(w, "a stop is confirmed that a crash would forget");
        if (action->message.code == LS_OK && strncmp(action->message.text, "saved", 5) == 0 &&
            !on_disk(w, atoll(strstr(action->message.text, "step ") + 5)))
            violate(w, "confirmed to an operator, not on disk: %s", action->message.text);
        break;
    case LS_ACTION_JOURNAL: judge_record(w, event, before, &action->record); break;
    case LS_ACTION_KEEP_PART:
        if (w->seen.kept_step != action->part.step) memset(w->seen.kept, 0, sizeof w->seen.kept);
        w->seen.kept_step = action->part.step;
        if (w->seen.kept[action->part.rank]) violate(w, "the part of rank %d kept twice", action->part.rank);
        if (event->kind != LS_EVENT_PART || event->part.rank != action->part.rank ||
            event->part.step != action->part.step)
            violate(w, "a part is kept that did not come");
        w->seen.kept[action->part.rank] = true;
        break;
    case LS_ACTION_COMMIT: judge_commit(w, action); break;
    case LS_ACTION_PRUNE: {
        int newer = 0;
        for (int i = 0; i < w->folders_count; i++) newer += w->folders[i].step > action->prune.step;
        if (!w->options.checkpoints_keep || newer < w->options.checkpoints_keep)
            violate(w, "step %lld pruned with %d newer checkpoints", (long long)action->prune.step, newer);
        break;
    }
    case LS_ACTION_KILL:
    case LS_ACTION_LAUNCH:
    case LS_ACTION_PREPARE:
    case LS_ACTION_KINDS: break;
    case LS_ACTION_END: judge_end(w, action, after); break;
    }
}

/* Nothing that rank 0 needs is held back. */
static void judge_omissions(struct world *w, const struct ls_core_status *after) {
    if (w->seen.exact_code && !w->seen.ended && !w->committing) violate(w, "the cause is known and nothing ends");
    if (w->seen.ended || after->phase == LS_PHASE_FAILING || !w->seen.voice || !w->seen.assembled || w->seen.stopped)
        return;
    int64_t limit = w->end_step, window = w->options.window_steps;
    if (after->journaled_step + window < limit) limit = after->journaled_step + window;
    if (after->saving_step && after->saving_step + window < limit) limit = after->saving_step + window;
    if (after->granted_step - after->step <= w->options.span_steps / 2 && after->granted_step < limit)
        violate(w, "rank 0 has %lld steps left and is granted no more", (long long)(after->granted_step - after->step));
    const struct journal_view *view = durable(w);
    bool told =
        view->stop && (view->stop_generation < w->options.generation || view->stop_sequence <= w->seen.journaled);
    if (told && !w->seen.stop_ordered && after->step < w->end_step)
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
