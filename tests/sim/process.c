/* The coordinator's process: its disk, the supervisor beside it, what it does for the core, and how it starts again. */

/* ---- disk ---- */

static void start_fsync(struct world *w) {
    if (w->fsyncing || !w->pending_count) return;
    w->fsyncing = true;
    int64_t latency = chance(w, 10) ? between(w, 20, 400) : between(w, 1, 8);
    if (w->slow_fsyncs) {
        w->slow_fsyncs--;
        latency = between(w, 500, 8000);
    }
    struct item item = {.kind = ITEM_FSYNC, .time_ms = w->now_ms + latency, .generation = w->options.generation};
    item.sequence = w->pending[w->pending_count - 1].sequence;
    push(w, &item);
}

static void make_durable(struct world *w, int count) {
    for (int i = 0; i < count; i++) {
        if (w->durable_count == RECORDS_MAX) violate(w, "the journal is full");
        w->durable[w->durable_count++] = w->pending[i];
    }
    memmove(w->pending, w->pending + count, (size_t)(w->pending_count - count) * sizeof *w->pending);
    w->pending_count -= count;
}

static void add_folder(struct world *w, int64_t step, int64_t position, struct ls_digest chain) {
    if (w->folders_count == CHECKPOINTS_MAX) {
        memmove(w->folders, w->folders + 1, (CHECKPOINTS_MAX - 1) * sizeof *w->folders);
        w->folders_count--;
    }
    struct turns turns = w->begun.turns;
    turns.reached[w->generation] = position;
    w->folders[w->folders_count++] = (struct folder){.step = step,
                                                     .position = position,
                                                     .generation = w->generation,
                                                     .turns = turns,
                                                     .chain = chain,
                                                     .used = w->team.saved[step],
                                                     .suspect = w->bad_above >= 0 && step > w->bad_above};
    if (step <= w->best_step) return;
    w->best_step = step;
    w->progress = true;
}

/* What PREPARE asks for: later ones are set aside, damaged ones too. */
static void set_folders_aside(struct world *w, int64_t below_step) {
    while (w->folders_count &&
           (w->folders[w->folders_count - 1].step >= below_step || w->folders[w->folders_count - 1].damaged))
        w->folders_count--;
}

/* ---- the supervisor: starts and ends workers ---- */

/* On which hosts the ranks of the next team are: first those that are not left out and not known to be dead. */
static void place_ranks(struct world *w) {
    bool excluded[HOSTS_MAX] = {false};
    const char *name;
    for (int i = 0; w->options.launched && (name = ls_core_excluded(w->core, i)); i++)
        excluded[atoi(name + strlen("host-"))] = true;
    for (int host = 0; w->hosts_asked && host < w->hosts; host++) excluded[host] |= w->host_dead[host];
    int rank = 0;
    for (int round = 0; rank < RANKS_MAX; round++)
        for (int host = 0; host < w->hosts; host++)
            for (int slot = 0; slot < HOST_SLOTS && rank < RANKS_MAX; slot++)
                if (!excluded[host] || round) w->placement[rank++] = host;
}

static void launch(struct world *w, const struct ls_core_action *action) {
    if (action->attempt <= w->launched_attempt || w->supervisor_dead) return;
    w->launched_attempt = action->attempt;
    place_ranks(w);
    w->handed = *ls_core_quarantine(w->core);
    struct item item = {.kind = ITEM_WORKERS, .attempt = action->attempt, .ranks = action->launch.world_size};
    item.time_ms = w->now_ms + (w->options.launched ? between(w, 1, 50) : between(w, 1, 20000));
    if (!w->options.launched && !w->quiet && chance(w, 15))
        w->coverage->faults[FAULT_NOBODY_STARTS_WORKERS]++;
    else
        push(w, &item);
}

static void kill_team(struct world *w, const struct ls_core_action *action) {
    /* Without a launcher of ours workers are only told that it is over, if they hear it. */
    bool reached = w->options.launched || !w->team.started || chance(w, 80);
    if (w->kill_fails && w->options.launched) {
        w->coverage->faults[FAULT_KILL_FAILS]++;
        return;
    }
    if (reached) push_plain(w, ITEM_DEATH, between(w, 1, 100), 0, 0);
    struct item item = {.kind = ITEM_CLEARED,
                        .time_ms = w->now_ms + between(w, 1, 200),
                        .attempt = action->attempt,
                        .generation = w->options.generation};
    push(w, &item);
}

static void prepare(struct world *w, const struct ls_core_action *action) {
    struct item item = {.kind = ITEM_PREPARED,
                        .time_ms = w->now_ms + between(w, 1, 60),
                        .attempt = action->attempt,
                        .generation = w->options.generation};
    set_folders_aside(w, action->prepare.below_step);
    for (int host = 0; host < w->hosts; host++) w->host_dead[host] &= !chance(w, 60);
    push(w, &item);
}

static void lose_coordinator(struct world *w) {
    ls_core_destroy(w->core);
    w->core = NULL;
    w->fsyncing = w->committing = false;
}

/* The process dies: what was not synced may be on disk up to some record, or not. */
static void crash_coordinator(struct world *w, int64_t away_ms) {
    trace(w, "coordinator crashes, back in %lld ms", (long long)away_ms);
    make_durable(w, (int)below(w, w->pending_count + 1));
    w->pending_count = 0;
    lose_coordinator(w);
    if (w->supervisor_dead) { /* nobody starts it again */
        w->over = true;
        w->exit_code = -1;
        return;
    }
    w->restart_ms = w->now_ms + away_ms;
    push_plain(w, ITEM_START, away_ms, 0, 0);
}

static void perform(struct world *w, const struct ls_core_action *action) {
    switch (action->kind) {
    case LS_ACTION_COMMITTED:
        if (action->connection) {
            send_to_team(w, action->connection, action);
            break;
        }
        for (int i = 0; i < w->team.links; i++)
            if (ls_core_is_joined(w->core, w->team.link[i].connection))
                send_to_team(w, w->team.link[i].connection, action);
        break;
    case LS_ACTION_WELCOME:
    case LS_ACTION_REFUSE:
    case LS_ACTION_REJOIN:
    case LS_ACTION_GRANT:
    case LS_ACTION_ORDER:
    case LS_ACTION_ACK: send_to_team(w, action->connection, action); break;
    case LS_ACTION_REPLY:
    case LS_ACTION_KEEP_PART: break;
    case LS_ACTION_LAUNCH: launch(w, action); break;
    case LS_ACTION_PREPARE: prepare(w, action); break;
    case LS_ACTION_KILL: kill_team(w, action); break;
    case LS_ACTION_JOURNAL:
        if (w->pending_count == RECORDS_MAX) violate(w, "too many records wait for the disk");
        w->pending[w->pending_count++] = action->record;
        start_fsync(w);
        break;
    case LS_ACTION_COMMIT: {
        int64_t latency = chance(w, 10) ? between(w, 100, 900) : between(w, 2, 40);
        if (w->slow_commits) {
            w->slow_commits--;
            latency = between(w, 1000, 9000);
        }
        struct item item = {.kind = ITEM_COMMIT, .time_ms = w->now_ms + latency, .generation = w->options.generation};
        item.commit.step = action->commit.step;
        item.commit.position = action->commit.position;
        item.commit.chain = action->commit.chain;
        w->committing = true;
        push(w, &item);
        break;
    }
    case LS_ACTION_PRUNE:
        for (int i = 0; i < w->folders_count; i++)
            if (w->folders[i].step == action->prune.step) {
                memmove(w->folders + i, w->folders + i + 1, (size_t)(w->folders_count - i - 1) * sizeof *w->folders);
                w->folders_count--;
                break;
            }
        break;
    case LS_ACTION_END:
        if (w->crash_before_end) {
            w->crash_before_end = false;
            w->coverage->faults[FAULT_CRASH_BEFORE_END]++;
            crash_coordinator(w, between(w, 50, 1000));
            break;
        }
        make_durable(w, w->pending_count);
        w->over = true;
        w->exit_code = (int)action->message.code;
        break;
    case LS_ACTION_KINDS: break;
    }
}

static void trace_action(struct world *w, const struct ls_core_action *action) {
    if (!w->trace) return;
    switch (action->kind) {
    case LS_ACTION_GRANT:
        trace(w, "    -> grant %lld..%lld at %lld..%lld", (long long)action->grant.from_step,
              (long long)action->grant.to_step, (long long)action->grant.from_position,
              (long long)action->grant.to_position);
        break;
    case LS_ACTION_JOURNAL:
        trace(w, "    -> journal #%llu %s %lld", (unsigned long long)action->record.sequence,
              ls_core_record_name(action->record.kind), (long long)action->record.step.step);
        break;
    case LS_ACTION_REFUSE:
    case LS_ACTION_REPLY:
    case LS_ACTION_END:
        trace(w, "    -> %s %d: %s", ls_core_action_name(action->kind), (int)action->message.code,
              action->message.text);
        break;
    case LS_ACTION_ORDER:
        trace(w, "    -> order %llx%s", (unsigned long long)action->order.id, action->order.stop ? " stop" : "");
        break;
    case LS_ACTION_PREPARE: trace(w, "    -> prepare below %lld", (long long)action->prepare.below_step); break;
    case LS_ACTION_LAUNCH:
        trace(w, "    -> launch attempt %u at step %lld, %d ranks", action->attempt,
              (long long)action->launch.start_step, action->launch.world_size);
        break;
    default:
        trace(w, "    -> %s %llx %lld", ls_core_action_name(action->kind), (unsigned long long)action->connection,
              (long long)action->ack.step);
    }
}

/* One event through the core, checked. `variant` is what the world knows to be wrong with it, -1 for nothing. */
static void handle(struct world *w, struct ls_core_event *event, int variant) {
    if (!w->core || w->over) return;
    w->coverage->events[event->kind]++;
    if (event->kind != LS_EVENT_TICK)
        trace(w, "%s from %llx attempt %u: %lld (gen %u)", ls_core_event_name(event->kind),
              (unsigned long long)event->connection, event->attempt, (long long)event->step.step,
              w->options.generation);
    struct ls_core_status before, after;
    ls_core_read_status(w->core, &before);
    oracle_hears(w, event, &before);
    ls_core_handle(w->core, event, &w->actions);
    ls_core_read_status(w->core, &after);
    w->phase = after.phase;
    w->coverage->transitions[before.phase][after.phase]++;
    for (int i = 0; i < w->actions.count; i++) trace_action(w, &w->actions.list[i]);
    oracle_judges(w, event, variant, &before, &after);
    /* Actions are done from a copy: a crash in the middle of them must not disturb the list. */
    static struct ls_core_actions actions;
    actions = (struct ls_core_actions){.count = w->actions.count};
    memcpy(actions.list, w->actions.list, (size_t)w->actions.count * sizeof *actions.list);
    for (int i = 0; i < actions.count && w->core; i++) perform(w, &actions.list[i]);
    if (after.phase != before.phase && w->core && !w->over) disturb_recovery(w, after.phase);
}

/* Which attempt the journal says it is. */
static void find_attempt(struct world *w) {
    w->begun = w->first_begun;
    for (int i = 0; i < w->durable_count; i++) {
        const struct ls_core_record *record = &w->durable[i];
        if (record->kind == LS_RECORD_ATTEMPT && record->attempt > w->begun.attempt)
            w->begun = (struct begun){.attempt = record->attempt,
                                      .world_size = record->attempt_begun.world_size,
                                      .step = record->attempt_begun.start_step,
                                      .position = record->attempt_begun.start_position,
                                      .samples = record->attempt_begun.start_samples,
                                      .turns = w->turns[record->attempt],
                                      .chain = record->attempt_begun.start_chain};
    }
    if (w->progress_attempt > w->begun.attempt) { /* its beginning got lost */
        w->progress |= w->progress_before;
        w->progress_attempt = w->begun.attempt;
    }
}

/* Steps and validations of attempts that are over may be left out. */
static void shorten_journal(struct world *w) {
    int kept = 0;
    for (int i = 0; i < w->durable_count; i++) {
        const struct ls_core_record *record = &w->durable[i];
        bool of_steps = record->kind == LS_RECORD_STEP || record->kind == LS_RECORD_VALIDATION;
        if (!of_steps || record->attempt >= w->begun.attempt) w->durable[kept++] = *record;
    }
    w->durable_count = kept;
    w->view.attempt = 0;
}

static void start_coordinator(struct world *w, bool restarted) {
    struct ls_core_options *options = &w->options;
    find_attempt(w);
    options->generation++;
    options->restarted = restarted;
    options->attempt = w->begun.attempt;
    options->world_size = w->begun.world_size;
    options->ranks_wanted = w->ranks_wanted;
    options->start_step = w->begun.step;
    options->start_position = w->begun.position;
    options->start_samples = w->begun.samples;
    options->data_generation = w->generation;
    options->start_chain = w->begun.chain;
    options->checkpoints_count = 0;
    for (int i = 0; i < w->folders_count; i++) options->checkpoints[options->checkpoints_count++] = w->folders[i].step;
    struct ls_error error;
    if (ls_core_create(options, &w->core, &error)) violate(w, "the core is not created: %s", error.text);
    trace(w, "coordinator starts: generation %u, attempt %u at step %lld, world %d", options->generation,
          options->attempt, (long long)options->start_step, options->world_size);
    if (w->durable_count > RECORDS_MAX / 2 || chance(w, 30)) shorten_journal(w);
    for (int i = 0; i < w->durable_count; i++) {
        w->coverage->restores += restarted;
        if (ls_core_restore(w->core, &w->durable[i], &error)) violate(w, "the journal is not restored: %s", error.text);
    }
    w->coverage->restarts += restarted;
    w->phase = LS_PHASE_WAITING;
    oracle_starts(w, restarted);
    push_plain(w, ITEM_TICK, 0, 0, 0);
}
