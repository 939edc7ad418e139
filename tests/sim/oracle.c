/* The oracle: knows the truth of the run and of the disk, and hears what the core hears. oracle_judge.c judges the
 * core's actions by it. */

/* ---- the truth ---- */

static bool has(const struct sequences *sequences, int64_t i) {
    return i >= 0 && i < SEQUENCES_MAX && sequences->word[i / 64] >> (i % 64) & 1;
}

static void put(struct world *w, struct sequences *sequences, int64_t i) {
    if (i < 0 || i >= SEQUENCES_MAX) violate(w, "sequence %lld is beyond this world", (long long)i);
    sequences->word[i / 64] |= UINT64_C(1) << (i % 64);
}

/* The sequence at `position` of a generation of the data. */
static int64_t sequence_at(int64_t generation, int64_t position) {
    return position < 0 || position >= POSITIONS_MAX ? -1 : (generation - 1) * POSITIONS_MAX + position;
}

static bool is_quarantined(const struct world *w, int64_t position) {
    return has(&w->quarantined, sequence_at(w->generation, position));
}

static int64_t count_of(const struct sequences *sequences) {
    int64_t count = 0;
    for (int i = 0; i < SEQUENCES_MAX / 64; i++) count += __builtin_popcountll(sequences->word[i]);
    return count;
}

/* The digest of a sequence, as workers compute it. */
static struct ls_digest digest_of(int64_t i) {
    uint64_t z = ((uint64_t)i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 31) * 0x94d049bb133111ebu;
    return (struct ls_digest){z, z * 0xbf58476d1ce4e5b9u ^ (uint64_t)i};
}

static bool same(struct ls_digest a, struct ls_digest b) {
    return a.low == b.low && a.high == b.high;
}

/* What every step of the present attempt has to be, found one sequence after the other. */
static void oracle_knows_attempt(struct world *w) {
    int64_t step = w->begun.step, position = w->begun.position, left = 0;
    memset(w->truth_digest, 0, sizeof w->truth_digest);
    for (int i = 0; i <= STEPS_MAX; i++) w->truth_position[i] = -1;
    w->truth_position[step] = position;
    w->truth_samples[step] = w->begun.samples;
    w->truth_chain[step] = w->begun.chain;
    for (int64_t i = position; !w->steps && i < w->end_position; i++) left += !is_quarantined(w, i);
    while (w->steps ? step < w->steps : left > 0) {
        int64_t wanted = !w->steps && left < w->batch ? left : w->batch;
        struct ls_digest digest = {0, 0};
        left -= wanted;
        step++;
        w->truth_samples[step] = w->truth_samples[step - 1] + wanted;
        for (; wanted; position++) {
            if (is_quarantined(w, position)) continue;
            digest = ls_digest_add(digest, digest_of(sequence_at(w->generation, position)));
            wanted--;
        }
        w->truth_position[step] = position;
        w->truth_digest[step] = digest;
        w->truth_chain[step] = ls_digest_chain(w->truth_chain[step - 1], (uint64_t)step, digest);
    }
    if (!w->steps && step > w->begun.step) w->truth_position[step] = w->end_position;
    w->truth_end = step;
}

static int64_t truth_sequences(const struct world *w, int64_t step) {
    int64_t count = 0;
    for (int64_t i = w->truth_position[step - 1]; i < w->truth_position[step]; i++) count += !is_quarantined(w, i);
    return count;
}

/* What the disk's journal says about this attempt; looked up again when records were added. */
static const struct journal_view *durable(struct world *w) {
    struct journal_view *view = &w->view;
    if (view->attempt != w->begun.attempt || view->invocation != w->first_attempt)
        *view = (struct journal_view){
            .attempt = w->begun.attempt, .invocation = w->first_attempt, .step = w->begun.step, .validation = -1};
    for (; view->count < w->durable_count; view->count++) {
        const struct ls_core_record *record = &w->durable[view->count];
        if (record->kind == LS_RECORD_STOP && record->attempt >= w->first_attempt) {
            if (!view->stop) {
                view->stop_generation = record->generation;
                view->stop_sequence = record->sequence;
            }
            view->stop = record->stop.code;
        }
        if (record->attempt != w->begun.attempt) continue;
        switch (record->kind) {
        case LS_RECORD_STEP:
            if (record->step.step != view->step + 1)
                violate(w, "the journal holds step %lld after step %lld", (long long)record->step.step,
                        (long long)view->step);
            view->step++;
            view->skips = record->step.skipped ? view->skips + 1 : 0;
            break;
        case LS_RECORD_VALIDATION: view->validation = record->validation.step; break;
        case LS_RECORD_JOINED: view->joined = true; break;
        case LS_RECORD_QUARANTINE: view->quarantined = true; break;
        case LS_RECORD_FAULT:
            view->fault = true;
            view->fault_record = *record;
            break;
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

/* The newest checkpoint, or the state before the first step. */
static const struct folder *newest_of(const struct world *w) {
    static const struct folder nothing;
    return w->folders_count ? &w->folders[w->folders_count - 1] : &nothing;
}

/* The attempt that follows the present one, from a checkpoint: where that is of another generation of the data than the
 * invocation, at the beginning of the order. */
static struct begun begun_from(const struct world *w, const struct folder *start) {
    return (struct begun){.attempt = w->begun.attempt + 1,
                          .step = start->step,
                          .position = start->generation == w->generation ? start->position : 0,
                          .samples = count_of(&start->used),
                          .turns = start->turns,
                          .chain = start->chain};
}

static int64_t newest_folder(struct world *w) {
    return w->folders_count ? w->folders[w->folders_count - 1].step : 0;
}

/* The index-th record of the journal, those on their way to the disk too; NULL behind the last. */
static const struct ls_core_record *journal_at(const struct world *w, int index) {
    if (index < w->durable_count) return &w->durable[index];
    index -= w->durable_count;
    return index < w->pending_count ? &w->pending[index] : NULL;
}

/* Everything that attempts before `attempt` put into quarantine, in the generations of the data that they had. */
static struct sequences quarantined_before(struct world *w, uint32_t attempt) {
    struct sequences all = {{0}};
    const struct ls_core_record *record;
    for (int i = 0; (record = journal_at(w, i)); i++)
        if (record->kind == LS_RECORD_QUARANTINE && record->attempt < attempt)
            for (int64_t k = record->quarantine.from; k < record->quarantine.to; k++)
                put(w, &all, sequence_at(w->generation_of[record->attempt], k));
    return all;
}

/* How often the ranks of `host` were lost in this invocation; a whole node counts for two. */
static int losses_of(const struct world *w, const char *host) {
    int losses = 0;
    const struct ls_core_record *record;
    for (int i = 0; (record = journal_at(w, i)); i++) {
        if (record->attempt < w->first_attempt) continue;
        if (record->kind == LS_RECORD_ATTEMPT && record->attempt_begun.hosts_forgiven) losses = 0;
        if (record->kind != LS_RECORD_FAULT || strcmp(record->end.host, host) != 0) continue;
        if (record->end.scope == LS_SCOPE_NODE) losses += 2;
        if (record->end.scope == LS_SCOPE_RANK) losses++;
    }
    return losses;
}

/* Restarts since the last progress, as the ATTEMPT records of the invocation count them. */
static int32_t restarts_recorded(const struct world *w) {
    int32_t restarts = 0;
    const struct ls_core_record *record;
    for (int i = 0; (record = journal_at(w, i)); i++)
        if (record->kind == LS_RECORD_ATTEMPT && record->attempt > w->first_attempt)
            restarts = record->attempt_begun.restarts;
    return w->progress ? 0 : restarts;
}

/* ---- beginnings ---- */

static void oracle_forgets_attempt(struct world *w) {
    memset(&w->att, 0, sizeof w->att);
    memset(w->part_on_disk, 0, sizeof w->part_on_disk);
    memset(w->attempt_joined, 0, sizeof w->attempt_joined);
    w->att.lost_rank = w->att.lost_host = -1;
    w->att.granted = w->begun.step;
    w->att.begun_ms = -1;
}

static void oracle_enters_attempt(struct world *w) {
    w->quarantined = quarantined_before(w, w->begun.attempt);
    oracle_knows_attempt(w);
    oracle_forgets_attempt(w);
}

/* A coordinator starts again in the midst of an attempt, or of what comes between two. */
static void oracle_starts(struct world *w, bool restarted) {
    bool joined[RANKS_MAX], part_on_disk[STEPS_MAX + 1][RANKS_MAX];
    bool same_attempt = w->truth_attempt == w->begun.attempt;
    memcpy(joined, w->attempt_joined, sizeof joined);
    memcpy(part_on_disk, w->part_on_disk, sizeof part_on_disk);
    oracle_enters_attempt(w);
    if (same_attempt) {
        memcpy(w->attempt_joined, joined, sizeof joined);
        memcpy(w->part_on_disk, part_on_disk, sizeof part_on_disk);
    }
    w->truth_attempt = w->begun.attempt;
    memset(&w->seen, 0, sizeof w->seen);
    const struct journal_view *view = durable(w);
    if (!view->fault) { /* that replicas differ got lost, if it was so */
        w->bad_above = -1;
        for (int i = 0; i < w->folders_count; i++) w->folders[i].suspect = false;
    }
    if (!restarted) return;
    w->seen.stop_code = view->stop;
    w->att.assembled = view->joined;
    w->att.skips = view->skips;
    w->att.faulted = view->fault;
    w->att.fault = view->fault_record;
    w->att.restart = view->fault && view->fault_record.end.restart;
    w->att.quarantined = view->quarantined;
    for (int i = 0; i < w->durable_count; i++)
        if (w->durable[i].kind == LS_RECORD_JOINED && w->durable[i].attempt >= w->first_attempt)
            w->seen.ever_joined = w->seen.ever_assembled = true;
}

/* ---- hearing ---- */

static void exact_cause(struct world *w, int code, bool mendable, int64_t below) {
    const bool knows_better_checkpoint = w->att.exact_mendable && !w->att.exact_below && below;
    if (w->att.exact_code && !knows_better_checkpoint) return;
    w->att.exact_code = code;
    w->att.exact_mendable = mendable;
    w->att.exact_below = below;
}

static void hear_fault(struct world *w, const struct ls_core_event *event, const struct ls_core_status *before) {
    w->att.excuse = true;
    if (event->fault.code == LS_COMMUNICATION) {
        w->att.complaint = true;
        return;
    }
    bool loading = event->fault.code == LS_CHECKPOINT && event->fault.unloadable && w->begun.step > 0 &&
                   before->step == w->begun.step && event->fault.step <= w->begun.step + 1;
    bool rollback = event->fault.code == LS_NONFINITE && w->options.nonfinite == LS_NONFINITE_ROLLBACK &&
                    event->fault.step > w->begun.step && event->fault.step <= before->granted_step;
    exact_cause(w, (int)event->fault.code, loading || rollback,
                loading    ? w->begun.step
                : rollback ? event->fault.step
                           : 0);
}

static void hear_step(struct world *w, const struct ls_core_event *event, const struct ls_core_status *before) {
    const struct ls_core_step *step = &event->step;
    if (step->step <= before->step && step->step > before->start_step &&
        !same(step->digest, w->truth_digest[step->step]))
        exact_cause(w, LS_DATA, false, 0);
    if (step->step != before->step + 1) return;
    if (step->step > before->granted_step || w->att.stopped) {
        exact_cause(w, LS_ERROR, false, 0);
        return;
    }
    if (step->end_position != w->truth_position[step->step]) {
        exact_cause(w, LS_DATA, false, 0);
        return;
    }
    w->att.skips = step->skipped ? w->att.skips + 1 : 0;
    if (w->options.skips_max && w->att.skips >= w->options.skips_max) exact_cause(w, LS_NONFINITE, false, 0);
}

/* Facts that follow from the event alone, noted before the core sees it. */
static void oracle_hears(struct world *w, const struct ls_core_event *event, const struct ls_core_status *before) {
    bool current = event->attempt == w->begun.attempt && !w->att.faulted;
    bool voice = event->connection && event->connection == w->att.voice;
    switch (event->kind) {
    case LS_EVENT_FAULT:
        if (current) hear_fault(w, event, before);
        break;
    case LS_EVENT_RANK_LOST:
        if (!current) break;
        w->att.excuse = true;
        if (w->att.lost_rank < 0) w->att.lost_rank = event->rank_lost.rank;
        break;
    case LS_EVENT_NODE_LOST:
        if (!current) break;
        w->att.excuse = true;
        if (w->att.lost_host < 0) w->att.lost_host = atoi(event->node_lost.host + strlen("host-"));
        break;
    case LS_EVENT_STALLED:
        if (current) exact_cause(w, LS_STALL, true, 0);
        break;
    case LS_EVENT_REPLICA_DIFFERS:
        if (current)
            exact_cause(w, LS_ERROR, w->options.mismatch == LS_MISMATCH_ROLLBACK,
                        w->options.mismatch == LS_MISMATCH_ROLLBACK ? event->replica_differs.good_step + 1 : 0);
        break;
    case LS_EVENT_LAUNCHER_EXITED:
        if (!current) break;
        w->att.excuse = w->att.launcher_exited = true;
        w->att.launcher_killed |= event->launcher_exited.status < 0;
        w->att.ended_code = event->launcher_exited.code;
        w->att.ended_rank = event->launcher_exited.rank;
        w->att.ended_early |= event->launcher_exited.code && !w->att.assembled && event->launcher_exited.code != 126 &&
                              event->launcher_exited.code != 127;
        break;
    case LS_EVENT_CLEARED:
        if (event->attempt == w->begun.attempt && w->att.kill_asked) w->att.cleared = true;
        break;
    case LS_EVENT_PREPARED:
        if (event->attempt != w->begun.attempt) break;
        w->att.prepared = true;
        w->att.next = begun_from(w, newest_of(w));
        w->att.begins_generation = event->prepared.data_generation != w->generation;
        w->att.slots = event->prepared.slots;
        w->att.slots_all = event->prepared.slots_all;
        w->att.fewer = event->prepared.fewer;
        break;
    case LS_EVENT_PREPARE_FAILED:
        if (event->attempt == w->begun.attempt) w->att.prepare_failed = true;
        break;
    case LS_EVENT_SAVE_FAILED:
        if (current && ls_core_is_joined(w->core, event->connection)) exact_cause(w, LS_CHECKPOINT, false, 0);
        break;
    case LS_EVENT_JOURNAL_FAILED: w->seen.journal_failed = true; break;
    case LS_EVENT_COMMIT_FAILED:
        if (current) exact_cause(w, LS_CHECKPOINT, false, 0);
        break;
    case LS_EVENT_STEP_DONE:
        if (current && voice) hear_step(w, event, before);
        break;
    case LS_EVENT_SAVING:
        if (current && voice && event->saving.stop && event->saving.step <= before->step &&
            event->saving.step >= before->start_step)
            w->att.stopped = true;
        break;
    case LS_EVENT_CONNECTION_LOST:
        if (voice) w->att.voice = 0;
        break;
    case LS_EVENT_JOURNALED: w->seen.journaled = event->journaled.sequence; break;
    case LS_EVENT_TICK: w->seen.ticked = true; break;
    case LS_EVENT_SIGNAL:
        if (event->signal == LS_SIGNAL_STOP) w->seen.stop_signals++;
        w->seen.now_signalled |= event->signal == LS_SIGNAL_NOW || w->seen.stop_signals > 1;
        break;
    default: break;
    }
    if (event->kind == LS_EVENT_JOURNAL_FAILED && !w->att.faulted) exact_cause(w, LS_CHECKPOINT, false, 0);
}
