/* The oracle judges how attempts end and begin, and how the run ends. */

/* ---- the end of an attempt ---- */

/* True if the core has to see that doing the same again may help. */
static bool may_be_mended(const struct world *w) {
    if (w->att.exact_code) return w->att.exact_mendable;
    if (w->att.launcher_killed || w->att.lost_rank >= 0 || w->att.lost_host >= 0 || w->att.complaint) return true;
    if (w->att.launcher_exited) return w->seen.ever_joined || w->att.ended_early;
    return w->seen.ever_assembled && (w->att.assembled || w->options.launched);
}

static void name_host(char name[16], int host) {
    snprintf(name, 16, "host-%d", host);
}

/* A rank of which only the launcher knows is named, with its host; where the launcher does not say which, none is. */
static void judge_ended_rank(struct world *w, const struct ls_core_record *record) {
    char name[48];
    const int rank = w->att.ended_rank;
    if (rank < 0) {
        if (record->end.rank >= 0) violate(w, "nobody knows which rank it was: %s", record->end.text);
        return;
    }
    snprintf(name, sizeof name, "rank %d on host-%d", rank, w->team.host[rank]);
    if (!strstr(record->end.text, name)) violate(w, "%s ended: %s", name, record->end.text);
    if (record->end.scope != LS_SCOPE_RANK || record->end.rank != rank || strcmp(record->end.host, strchr(name, 'h')))
        violate(w, "%s ended, the record has rank %d on %s", name, record->end.rank, record->end.host);
}

/* A loss is told with the rank or host that was lost, and nothing is called lost that is there. */
static void judge_loss(struct world *w, const struct ls_core_record *record) {
    const char *text = record->end.text;
    if (record->end.code != LS_COMMUNICATION) violate(w, "attempt over with %d without a cause", record->end.code);
    bool healthy = w->team.running && !w->team.stuck && w->team.attempt == w->begun.attempt;
    for (int rank = 0; rank < w->team.ranks; rank++) healthy &= !w->team.absent[rank] && w->team.wrong[rank] < 0;
    if (healthy && !w->att.excuse) violate(w, "over with 6, nothing is lost: %s", text);
    if (w->att.launcher_killed) {
        if (!strstr(text, "the launcher of the workers was killed by signal 9"))
            violate(w, "the launcher was killed, and it is told: %s", text);
        return;
    }
    if (w->att.lost_host >= 0) {
        char name[16];
        name_host(name, w->att.lost_host);
        if (record->end.scope != LS_SCOPE_NODE || strcmp(record->end.host, name) != 0)
            violate(w, "%s is lost, the record names %s: %s", name, record->end.host, text);
        return;
    }
    if (w->att.lost_rank < 0 && !w->att.complaint && w->att.ended_code) judge_ended_rank(w, record);
    if (w->att.lost_rank < 0) return;
    char name[32], host[16];
    snprintf(name, sizeof name, "rank %d on host", w->att.lost_rank);
    if (!strstr(text, name)) violate(w, "the lost rank is not named: %s", text);
    name_host(host, w->team.host[w->att.lost_rank]);
    if (strcmp(record->end.host, host) != 0) violate(w, "rank %d was on %s: %s", w->att.lost_rank, host, text);
    if (record->end.scope != LS_SCOPE_NODE) return;
    for (int rank = 0; rank < w->team.ranks; rank++)
        if (w->team.host[rank] == w->team.host[w->att.lost_rank] && !w->att.told_lost[rank])
            violate(w, "a node is called lost while rank %d lives", rank);
}

static void judge_fault(struct world *w, const struct ls_core_status *before, const struct ls_core_record *record) {
    if (w->att.faulted) violate(w, "an attempt is over twice");
    if (w->committing) violate(w, "a checkpoint that needs nobody is thrown away");
    if (!w->att.exact_code)
        judge_loss(w, record);
    else if ((int)record->end.code != w->att.exact_code)
        violate(w, "over with %d, the cause has %d: %s", record->end.code, w->att.exact_code, record->end.text);
    if (record->end.below_step != w->att.exact_below)
        violate(w, "checkpoints from step %lld on are given up, it should be %lld", (long long)record->end.below_step,
                (long long)w->att.exact_below);
    if (record->end.step != before->step && record->end.step != before->step + 1)
        violate(w, "over at step %lld", (long long)record->end.step);
    int32_t restarts = restarts_recorded(w);
    bool restart = may_be_mended(w) && restarts < w->options.max_restarts;
    if (record->end.restart != restart)
        violate(w, "code %d after %d restarts of %d leads to %s", record->end.code, restarts, w->options.max_restarts,
                restart ? "an end" : "a restart");
    if (may_be_mended(w) && !restart && restarts) w->coverage->restarts_used_up++;
    w->att.faulted = true;
    w->att.restart = restart;
    w->att.fault = *record;
    w->att.fault_sequence = record->sequence;
}

static void judge_quarantine(struct world *w, const struct ls_core_record *record) {
    int64_t step = w->att.fault.end.below_step;
    if (!w->att.restart || w->att.fault.end.code != LS_NONFINITE || w->att.quarantined)
        violate(w, "a quarantine without reason");
    if (record->quarantine.step != step || record->quarantine.from != w->truth_position[step - 1] ||
        record->quarantine.to != w->truth_position[step] || record->quarantine.data_generation != w->generation)
        violate(w, "sequences %lld to %lld are quarantined for step %lld", (long long)record->quarantine.from,
                (long long)record->quarantine.to, (long long)step);
    w->att.quarantined = true;
    w->att.fault_sequence = record->sequence;
}

/* ---- between two attempts ---- */

/* What the present attempt started from, for when it is looked up again. */
static void note_attempt(struct world *w) {
    if (w->begun.attempt >= ATTEMPTS_MAX) violate(w, "attempt %u is beyond this world", w->begun.attempt);
    w->turns[w->begun.attempt] = w->begun.turns;
    w->generation_of[w->begun.attempt] = (uint8_t)w->generation;
}

static void judge_kill(struct world *w) {
    if (!w->att.faulted && !w->seen.now_signalled && !w->seen.journal_failed && w->att.begun_ms < 0)
        violate(w, "workers are killed without a cause");
    w->att.kill_asked = true;
}

static void judge_excluded(struct world *w) {
    for (int host = 0; host < w->hosts; host++) {
        char name[16];
        name_host(name, host);
        int most = w->options.host_losses_max;
        bool expected = most && losses_of(w, name) >= most, found = false;
        const char *excluded;
        for (int i = 0; (excluded = ls_core_excluded(w->core, i)); i++) found |= strcmp(excluded, name) == 0;
        if (found != expected) violate(w, "%s is %sleft out", name, found ? "" : "not ");
        w->coverage->hosts_left_out += found;
    }
}

static bool wants_quarantine(const struct world *w) {
    return w->att.fault.end.code == LS_NONFINITE && w->att.fault.end.restart;
}

static void judge_prepare(struct world *w, const struct ls_core_action *action) {
    if (!w->att.restart || !w->att.cleared) violate(w, "the next attempt is prepared before this one is cleared away");
    if (w->att.prepare_asked) violate(w, "prepared twice");
    if (!durable(w)->fault) violate(w, "the next attempt is prepared, a crash would forget why");
    if (wants_quarantine(w) && !durable(w)->quarantined) violate(w, "a crash would forget the quarantine");
    int64_t below = w->att.fault.end.below_step;
    if (action->prepare.below_step != (below ? below : INT64_MAX))
        violate(w, "a checkpoint below step %lld is looked for, it should be below %lld",
                (long long)action->prepare.below_step, (long long)below);
    judge_excluded(w);
    w->att.prepare_asked = true;
}

/* As many as wanted without hosts that lost ranks, fewer of them rather than those hosts; where there is no such
 * choice, fewer after a row of losses, and never more again where nothing is known of hosts; -1: too few in any case.
 */
static int32_t expected_world_size(const struct world *w, bool *forgiven) {
    int32_t wanted = w->ranks_wanted, least = w->options.min_ranks, most = w->options.host_losses_max;
    if (least == 0 || least > wanted) least = wanted;
    int32_t without = w->att.slots < 0 || w->att.slots > wanted ? wanted : w->att.slots;
    int32_t with = w->att.slots_all < 0 || w->att.slots_all > wanted ? wanted : w->att.slots_all;
    *forgiven = without < least;
    int32_t chosen = *forgiven ? with : without;
    bool choice = w->att.slots >= 0 && !*forgiven;
    if (w->att.slots < 0 && w->begun.world_size && w->begun.world_size < chosen) chosen = w->begun.world_size;
    enum ls_scope scope = w->att.fault.end.scope;
    bool again = most && restarts_recorded(w) >= most - 1 && (scope == LS_SCOPE_RANK || scope == LS_SCOPE_NODE);
    if (!choice && again && w->att.fewer && w->att.fewer >= least && w->att.fewer < chosen) chosen = w->att.fewer;
    for (int host = 0; w->att.slots < 0 && host < w->hosts; host++) {
        char name[16];
        name_host(name, host);
        *forgiven |= most && losses_of(w, name) >= most;
    }
    return chosen < least ? -1 : chosen;
}

static void judge_attempt(struct world *w, const struct ls_core_event *event, const struct ls_core_status *before,
                          const struct ls_core_record *record) {
    __typeof__(record->attempt_begun) begun = record->attempt_begun;
    if (!w->att.prepared || !w->att.cleared || event->kind != LS_EVENT_PREPARED)
        violate(w, "an attempt begins unprepared");
    if (record->payload != event->payload) violate(w, "what PREPARED said is lost");
    if (begun.start_step != w->att.next.step || begun.start_position != w->att.next.position ||
        !same(begun.start_chain, w->att.next.chain))
        violate(w, "the attempt begins at step %lld and position %lld", (long long)begun.start_step,
                (long long)begun.start_position);
    if (begun.start_samples != w->att.next.samples || begun.begins_generation != w->att.begins_generation)
        violate(w, "the attempt begins with %lld samples, %s", (long long)begun.start_samples,
                begun.begins_generation ? "its data anew" : "its data going on");
    if (wants_quarantine(w) && !w->att.quarantined) violate(w, "bad sequences are trained on again");
    bool forgiven;
    int32_t expected = expected_world_size(w, &forgiven);
    if (begun.world_size != expected || begun.hosts_forgiven != forgiven)
        violate(w, "%d ranks, it should be %d", begun.world_size, expected);
    int32_t restarts = restarts_recorded(w) + 1;
    if (begun.restarts != restarts || begun.restarts > w->options.max_restarts)
        violate(w, "restart %d of %d, it should be %d", begun.restarts, w->options.max_restarts, restarts);
    if (begun.best_step != w->best_step)
        violate(w, "the best step is called %lld, it is %lld", (long long)begun.best_step, (long long)w->best_step);
    int64_t lost = before->step > begun.start_step ? before->step - begun.start_step : 0;
    if (begun.lost_steps != lost) violate(w, "%lld steps are called lost", (long long)begun.lost_steps);
    w->coverage->attempts++;
    w->coverage->fewer_ranks += begun.world_size < w->begun.world_size;
    w->coverage->more_ranks += begun.world_size > w->begun.world_size;
    w->coverage->hosts_forgiven += forgiven;
    w->coverage->generations_begun_again += begun.begins_generation && begun.start_step > 0;
    w->coverage->from_nothing += begun.start_step == 0 && before->committed_step > 0;
    w->coverage->from_the_one_before += begun.start_step > 0 && begun.start_step < before->start_step;
    w->bad_above = -1;
    w->progress_before = w->progress;
    w->progress = false;
    w->progress_attempt = record->attempt;
    w->begun = w->att.next;
    w->begun.world_size = begun.world_size;
    note_attempt(w);
    w->limit_ms = w->now_ms + ATTEMPT_LIMIT_MS;
    /* The record itself does not count yet as one that came before. */
    oracle_enters_attempt(w);
    w->truth_attempt = w->begun.attempt;
    w->att.begun_ms = w->now_ms;
    w->att.begun_sequence = record->sequence;
    w->att.restarts = begun.restarts;
}

static int64_t expected_backoff(const struct world *w) {
    int64_t wait_ms = 0;
    for (int32_t i = 2; i <= w->att.restarts; i++) wait_ms = i == 2 ? w->options.backoff_ms : 2 * wait_ms;
    return wait_ms < w->options.backoff_max_ms ? wait_ms : w->options.backoff_max_ms;
}

static void judge_launch(struct world *w, const struct ls_core_action *action) {
    if (w->att.launched) violate(w, "launched twice");
    if (w->att.faulted) violate(w, "an attempt that is over is launched");
    if (w->options.launched && w->team.running && w->team.attempt < w->begun.attempt)
        violate(w, "attempt %u is launched while attempt %u may live", w->begun.attempt, w->team.attempt);
    if (w->att.begun_ms >= 0) {
        if (w->seen.journaled < w->att.begun_sequence) violate(w, "launched, and a crash would forget it");
        if (w->now_ms - w->att.begun_ms < expected_backoff(w))
            violate(w, "launched %lld ms after restart %d", (long long)(w->now_ms - w->att.begun_ms), w->att.restarts);
        w->coverage->backed_off += expected_backoff(w) > 0;
    }
    if (action->launch.start_step != w->begun.step || action->launch.start_position != w->begun.position ||
        action->launch.start_samples != w->begun.samples || !same(action->launch.start_chain, w->begun.chain) ||
        action->launch.world_size != w->begun.world_size)
        violate(w, "launched with %d ranks from step %lld", action->launch.world_size,
                (long long)action->launch.start_step);
    for (int i = 0; i < w->folders_count; i++)
        if (w->folders[i].step == w->begun.step && w->folders[i].suspect)
            violate(w, "launched from step %lld, saved when replicas differed", (long long)w->begun.step);
    w->att.launched = true;
}

/* What waits for nothing is done; `stop_told`: the core knows that a wish to stop is on disk. */
static void judge_recovery_omissions(struct world *w, bool stop_told) {
    if (!w->seen.ticked) return;
    bool between = w->att.restart || (w->att.begun_ms >= 0 && !w->att.launched);
    if (w->att.faulted && !w->att.restart) violate(w, "nothing follows the cause");
    if (w->att.restart && !w->att.kill_asked) violate(w, "what is left of the attempt is not killed");
    if (between && stop_told) violate(w, "a stop is wished between two attempts and the run goes on");
    if (w->att.restart && w->att.cleared && w->seen.journaled >= w->att.fault_sequence && !w->att.prepare_asked)
        violate(w, "the attempt is cleared away and nothing follows");
    /* A quarter of a second between two TICKs, and what the disk takes. */
    if (w->att.begun_ms >= 0 && !w->att.launched && w->seen.journaled >= w->att.begun_sequence &&
        w->now_ms > w->att.begun_ms + expected_backoff(w) + 500)
        violate(w, "the time has come and nothing is launched");
}

/* ---- the end of the run ---- */

/* The weights were trained on every sequence of the run once, generation by generation of the data as far as it went,
 * but for those in quarantine, which they never saw. */
static void judge_completeness(struct world *w) {
    const struct folder *last = w->folders_count ? &w->folders[w->folders_count - 1] : NULL;
    const struct sequences quarantined = quarantined_before(w, w->begun.attempt);
    struct turns turns = w->begun.turns;
    turns.reached[w->generation] = w->truth_position[w->truth_end];
    if (w->truth_end == 0) return;
    if (!last || last->step != w->truth_end || !same(last->chain, w->truth_chain[w->truth_end]))
        violate(w, "done without the final checkpoint");
    for (int64_t i = 0; i < SEQUENCES_MAX; i++) {
        const int64_t generation = i / POSITIONS_MAX + 1, position = i % POSITIONS_MAX;
        const bool had_turn = position < turns.reached[generation], wanted = had_turn && !has(&quarantined, i);
        if (has(&last->used, i) != wanted)
            violate(w, "position %lld of generation %lld was %s", (long long)position, (long long)generation,
                    wanted ? "never trained on" : "trained on");
        w->coverage->passed_over += had_turn && has(&quarantined, i);
    }
    for (int64_t generation = 1; generation < w->generation; generation++)
        w->coverage->generations_left += turns.reached[generation] > 0;
}

/* The codes that may end a run between two attempts. */
static bool ends_recovery_rightly(const struct world *w, int code) {
    bool forgiven;
    if (w->seen.journal_failed && code == LS_CHECKPOINT) return true;
    if (w->att.prepare_failed) return code == LS_CHECKPOINT;
    if (!w->att.restart || code != (int)w->att.fault.end.code) return false;
    if (w->att.prepared) return expected_world_size(w, &forgiven) < 0;
    return !w->att.cleared && w->kill_fails;
}

static void judge_end(struct world *w, const struct ls_core_action *action, const struct ls_core_status *before,
                      const struct ls_core_status *after) {
    int code = (int)action->message.code;
    if (w->seen.ended) violate(w, "two ends");
    w->seen.ended = true;
    w->coverage->exits[code & 255]++;
    w->coverage->ends[before->phase]++;
    bool between = w->att.restart || (w->att.begun_ms >= 0 && !w->att.launched);
    if (w->seen.now_signalled) {
        if (code != LS_STOPPED) violate(w, "ended with %d, not at once", code);
    } else if (code == LS_OK) {
        if (w->att.restart) violate(w, "done in an attempt that failed");
        judge_completeness(w);
    } else if (code == LS_STOPPED || code == LS_REQUEUE) {
        if (!w->seen.stop_code || code != (int)w->seen.stop_code || !durable(w)->stop)
            violate(w, "ended with %d, nobody asked for that", code);
        if (!between && newest_folder(w) < after->step)
            violate(w, "stopped at step %lld, saved is %lld", (long long)after->step, (long long)newest_folder(w));
        if (w->att.faulted && !w->att.restart) violate(w, "stopped where the cause should end the run");
    } else if (between) {
        if (!ends_recovery_rightly(w, code))
            violate(w, "ended with %d between two attempts: %s", code, action->message.text);
    } else if (!w->att.faulted || code != (int)w->att.fault.end.code) {
        violate(w, "ended with %d, the cause has %d: %s", code, w->att.fault.end.code, action->message.text);
    }
}
