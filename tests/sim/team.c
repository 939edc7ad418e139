/* The workers of an attempt, as the protocol in coordinator/core.h wants them. */

static void rank_faults(struct world *w, int rank, enum ls_code code, const char *text);
static void kill_rank(struct world *w, int rank);

enum { REJOIN_MS = 1000, STEP_MS_MAX = 300, COORDINATOR_TIMEOUT_MS = 20000, LINK_IMPOSTOR = 200, LINK_OPERATOR = 201 };

/* The position behind the first `count` sequences of a step that starts at `position`. */
static int64_t team_position(const struct team *team, int64_t position, int64_t count) {
    return ls_quarantine_behind(&team->quarantine, position, count);
}

static int64_t team_sequences(const struct team *team, int64_t step) {
    int64_t from = team->position[step - 1], to = team->position[step];
    return to - from - ls_quarantine_within(&team->quarantine, from, to);
}

/* Takes the sequences of `step` into the weights. */
static void train(struct world *w, int64_t step) {
    struct team *team = &w->team;
    team->digest[step] = (struct ls_digest){0, 0};
    for (int64_t i = 0; i < team_sequences(team, step); i++) {
        int64_t sequence = sequence_at(w->generation, ls_quarantine_at(&team->quarantine, team->position[step - 1], i));
        if (has(&team->used, sequence)) violate(w, "sequence %lld is trained on twice", (long long)sequence);
        put(w, &team->used, sequence);
        team->digest[step] = ls_digest_add(team->digest[step], digest_of(sequence));
    }
}

/* True if a sequence of `step` makes the loss something that is no number. */
static bool is_spoilt(const struct world *w, int64_t step) {
    const struct team *team = &w->team;
    for (int64_t i = 0; i < team_sequences(team, step); i++)
        if (has(&w->poison,
                sequence_at(w->generation, ls_quarantine_at(&team->quarantine, team->position[step - 1], i))))
            return true;
    return false;
}

static struct ls_core_step executed_step(struct world *w, int64_t step) {
    struct team *team = &w->team;
    int64_t sequences = team_sequences(team, step);
    return (struct ls_core_step){.step = step,
                                 .end_position = team->position[step],
                                 .sequences = sequences,
                                 .targets = sequences * 7,
                                 .loss_sum = (double)sequences * 3.5,
                                 .skipped = team->skipped[step],
                                 .digest = team->digest[step]};
}

static struct item report(struct world *w, enum ls_core_event_kind kind) {
    return (struct item){.message = MESSAGE_EVENT, .variant = -1, .event = {.kind = kind, .attempt = w->team.attempt}};
}

static void send_hello(struct world *w, int index) {
    struct team *team = &w->team;
    struct link *link = &team->link[index];
    if (!team->running) return;
    struct item item = report(w, LS_EVENT_HELLO);
    item.event.hello.attempt = team->nameless && !team->started ? 0 : team->attempt;
    item.event.hello.ranks_count = link->count;
    item.rank = link->first;
    item.event.hello.started = team->started;
    item.event.hello.steps_done = team->started ? team->done : 0;
    item.event.hello.granted_step = team->started ? team->granted : 0;
    link->hello_open = true;
    link->hello_ms = w->now_ms;
    send_to_core(w, index, &item);
}

static void send_step(struct world *w, int64_t step) {
    struct item item = report(w, LS_EVENT_STEP_DONE);
    item.event.step = executed_step(w, step);
    item.event.payload = &w->truth_digest[step];
    send_to_core(w, 0, &item);
}

static bool is_validated(const struct team *team, int64_t step) {
    return team->evaluation_every && step % team->evaluation_every == 0;
}

static void send_validation(struct world *w, int64_t step) {
    struct item item = report(w, LS_EVENT_VALIDATION);
    item.event.validation.step = step;
    item.event.payload = &w->truth_chain[step];
    send_to_core(w, 0, &item);
}

static void send_saving(struct world *w) {
    struct item item = report(w, LS_EVENT_SAVING);
    item.event.saving.step = w->team.saved_step;
    item.event.saving.order = w->team.order_honoured;
    item.event.saving.stop = w->team.stopped;
    send_to_core(w, 0, &item);
}

static void send_part(struct world *w, int link, int rank) {
    struct item item = report(w, LS_EVENT_PART);
    item.event.part.step = w->team.saved_step;
    item.event.part.rank = rank;
    send_to_core(w, link, &item);
}

static int link_of(const struct team *team, int rank) {
    for (int i = 0; i < team->links; i++)
        if (rank >= team->link[i].first && rank < team->link[i].first + team->link[i].count) return i;
    return 0;
}

/* ---- at a step boundary ---- */

static bool is_last(const struct team *team) {
    return team->done == team->end_step || team->stopped;
}

static void begin_save(struct world *w, int64_t step) {
    struct team *team = &w->team;
    team->saved_step = step;
    team->saved[step] = team->used;
    team->save_open = true;
    for (int rank = 0; rank < team->ranks; rank++) {
        team->part_written[rank] = false;
        int64_t delay = between(w, 1, 60);
        if (w->late_parts) {
            w->late_parts--;
            delay = between(w, 500, 6000);
        }
        if (!team->dead[rank]) push_plain(w, ITEM_PART_ENDS, delay, link_of(team, rank), rank);
    }
}

/* What rank 0 does whenever it is free: save, stop, run the next step, or wait. */
static void advance(struct world *w) {
    struct team *team = &w->team;
    if (!team->running || team->stuck || !team->started || team->stepping || is_last(team)) {
        /* The last boundary still has its save to do. */
        if (!team->running || team->stuck || !team->started || team->stepping || team->stopped) return;
    }
    bool due = team->done > team->start_step && team->saved_step < team->done &&
               (team->done == team->end_step || (team->checkpoint_every && team->done % team->checkpoint_every == 0));
    bool ordered = team->order_seen > team->order_honoured;
    if (due || ordered) {
        bool again = team->saved_step == team->done || team->done == 0;
        if (team->save_open && !again) return; /* nobody starts a save before the one before is committed */
        team->order_honoured = team->order_seen;
        team->stopped = team->stop_seen;
        team->saving_told = true;
        if (!again && team->done > team->start_step)
            begin_save(w, team->done);
        else if (!team->save_open)
            team->saved_step = team->done;
        send_saving(w);
        team->waiting_since_ms = w->now_ms;
    }
    if (is_last(team) || (team->save_open && !team->asynchronous)) return;
    if (team->granted == team->done) return;
    team->stepping = true;
    push_plain(w, ITEM_STEP_ENDS, between(w, 5, STEP_MS_MAX), 0, 0);
}

static void step_ends(struct world *w) {
    struct team *team = &w->team;
    if (!team->running || team->stuck) return;
    team->stepping = false;
    team->skipped[team->done + 1] = is_spoilt(w, team->done + 1);
    if (team->skipped[team->done + 1] && w->options.nonfinite != LS_NONFINITE_SKIP) {
        rank_faults(w, (int)below(w, team->ranks), LS_NONFINITE, "the loss is not finite");
        kill_rank(w, 0);
        return;
    }
    train(w, ++team->done);
    team->waiting_since_ms = w->now_ms;
    send_step(w, team->done);
    if (is_validated(team, team->done)) send_validation(w, team->done);
    advance(w);
}

static void part_ends(struct world *w, int link, int rank) {
    struct team *team = &w->team;
    if (!team->running || team->dead[rank] || !team->save_open) return;
    if (w->save_fails) {
        w->save_fails--;
        w->coverage->faults[FAULT_SAVE_FAILS]++;
        struct item item = report(w, LS_EVENT_SAVE_FAILED);
        item.event.save_failed.step = team->saved_step;
        item.event.save_failed.rank = rank;
        item.event.save_failed.text = "No space left on device";
        send_to_core(w, link, &item);
        team->stuck = true;
        push_plain(w, ITEM_DEATH, 3000, 0, 0);
        return;
    }
    team->part_written[rank] = true;
    if (team->attempt == w->begun.attempt) w->part_on_disk[team->saved_step][rank] = true;
    send_part(w, link, rank);
}

/* ---- what the coordinator says ---- */

/* Reads the checkpoint that the attempt starts from. */
static void load_checkpoint(struct world *w) {
    struct team *team = &w->team;
    const struct folder *folder = NULL;
    for (int i = 0; i < w->folders_count; i++)
        if (w->folders[i].step == team->start_step) folder = &w->folders[i];
    if (folder) team->used = folder->used;
    if (!folder || !folder->unloadable) return;
    int rank = (int)below(w, team->ranks);
    rank_faults(w, rank, LS_CHECKPOINT, "state/rank-00000.safetensors is torn");
    kill_rank(w, rank);
}

static void take_grant(struct world *w, const struct ls_core_action *action) {
    struct team *team = &w->team;
    int64_t from = action->grant.from_step, to = action->grant.to_step;
    if (from > team->granted) return; /* one got lost before it: the next HELLO brings both */
    for (int64_t step = from; step <= to; step++) {
        int64_t position = team_position(team, action->grant.from_position, (step - from) * team->batch);
        if (step == to) position = action->grant.to_position;
        if (team->position[step] >= 0 && team->position[step] != position)
            violate(w, "step %lld is granted with two meanings", (long long)step);
        team->position[step] = position;
    }
    if (to > team->granted) team->granted = to;
}

/* After a WELCOME: everything that may have been lost, in the order it happened. */
static void repeat_reports(struct world *w, int index) {
    struct team *team = &w->team;
    if (index == 0) {
        for (int64_t step = team->start_step + 1; step <= team->done; step++) {
            if (step > team->acked) send_step(w, step);
            if (is_validated(team, step) && step > team->acked_validation) send_validation(w, step);
            if (step == team->saved_step && team->saving_told && (team->save_open || team->stopped)) send_saving(w);
        }
        if (team->saving_told && team->saved_step == team->start_step) send_saving(w);
    }
    if (!team->save_open) return;
    for (int rank = team->link[index].first; rank < team->link[index].first + team->link[index].count; rank++)
        if (team->part_written[rank] && !team->dead[rank]) send_part(w, index, rank);
}

static void take_welcome(struct world *w, int index, const struct ls_core_action *action) {
    struct team *team = &w->team;
    team->link[index].hello_open = false;
    if (index == 0) {
        if (!team->started) {
            team->started = true;
            team->start_step = team->done = team->granted = team->saved_step = action->welcome.start_step;
            team->position[team->start_step] = action->welcome.start_position;
            team->end_step = action->welcome.end_step;
            team->end_position = action->welcome.end_position;
            team->batch = action->welcome.global_batch;
            team->checkpoint_every = action->welcome.checkpoint_every;
            team->evaluation_every = action->welcome.evaluation_every;
            team->acked = team->start_step;
            team->acked_validation = -1;
            team->attempt = action->attempt;
            load_checkpoint(w);
        }
        if (action->welcome.acked_step > team->acked) team->acked = action->welcome.acked_step;
        if (action->welcome.acked_validation > team->acked_validation)
            team->acked_validation = action->welcome.acked_validation;
    }
    if (team->started) repeat_reports(w, index);
}

static void say_why_launcher_ended(const struct world *w, struct item *item) {
    static const char *const names[HOSTS_MAX] = {"host-0", "host-1", "host-2", "host-3"};
    item->event.launcher_exited.status = w->launcher_status;
    item->event.launcher_exited.code = w->launcher_code;
    item->event.launcher_exited.rank = w->launcher_rank;
    item->event.launcher_exited.killed_by = w->launcher_code > 128 ? w->launcher_code - 128 : 0;
    if (w->launcher_code && w->launcher_rank >= 0)
        item->event.launcher_exited.host = names[w->team.host[w->launcher_rank]];
}

static void leave(struct world *w, int status) {
    struct team *team = &w->team;
    if (!team->running) return;
    trace(w, "workers leave with %d", status);
    team->running = false;
    if (!team->launched) return;
    w->launcher_gone = true;
    w->launcher_status = status;
    if (w->supervisor_dead) return;
    struct item item = report(w, LS_EVENT_LAUNCHER_EXITED);
    item.kind = ITEM_LOCAL;
    item.time_ms = w->now_ms + between(w, 1, 50);
    say_why_launcher_ended(w, &item);
    push(w, &item);
}

static void team_hears(struct world *w, int index, const struct ls_core_action *action) {
    struct team *team = &w->team;
    struct link *link = &team->link[index];
    if (!team->running || action->connection != link->connection) return;
    bool first =
        action->kind == LS_ACTION_WELCOME || action->kind == LS_ACTION_REFUSE || action->kind == LS_ACTION_REJOIN;
    if (!team->started && !first) return; /* its WELCOME got lost: the next HELLO brings it all again */
    switch (action->kind) {
    case LS_ACTION_WELCOME: take_welcome(w, index, action); break;
    case LS_ACTION_REFUSE: leave(w, (int)action->message.code); break;
    case LS_ACTION_REJOIN:
        /* The impatient do not wait for the answer, but they take a breath. */
        if ((team->impatient && w->now_ms - link->hello_ms > 20) || !link->hello_open ||
            w->now_ms - link->hello_ms > REJOIN_MS)
            send_hello(w, index);
        break;
    case LS_ACTION_GRANT: take_grant(w, action); break;
    case LS_ACTION_ORDER:
        if (action->order.id <= team->order_honoured) {
            if (team->saving_told) send_saving(w);
            break;
        }
        if (action->order.id > team->order_seen) team->order_seen = action->order.id;
        team->stop_seen |= action->order.stop;
        break;
    case LS_ACTION_ACK:
        if (action->ack.step > team->acked) team->acked = action->ack.step;
        if (action->ack.validation > team->acked_validation) team->acked_validation = action->ack.validation;
        break;
    case LS_ACTION_COMMITTED:
        if (index == 0 && team->started && action->committed.step >= team->saved_step) {
            team->save_open = false;
            if (is_last(team) && team->saved_step == team->done && team->saving_told) leave(w, 0);
        }
        break;
    default: break;
    }
    advance(w);
}

/* Once a second: a sign of life, and a HELLO if something is overdue. */
static void beat(struct world *w, int index) {
    struct team *team = &w->team;
    struct link *link = &team->link[index];
    if (!team->running) return;
    push_plain(w, ITEM_BEAT, between(w, 900, 1100), index, 0);
    if (w->core) team->last_heard_ms = w->now_ms;
    if (index == 0 && w->now_ms - team->last_heard_ms > COORDINATOR_TIMEOUT_MS) {
        leave(w, LS_COMMUNICATION);
        return;
    }
    struct item item = {.message = MESSAGE_BEAT, .variant = -1};
    send_to_core(w, index, &item);
    bool waits = link->hello_open;
    if (team->started && team->save_open) waits = true;
    if (index == 0) waits |= !team->started || (!team->stepping && !team->stuck) || team->acked < team->done;
    if (waits && w->now_ms - link->hello_ms >= REJOIN_MS) send_hello(w, index);
}

static void connect_link(struct world *w, int index, bool noticed) {
    struct link *link = &w->team.link[index];
    link->connection = new_connection(w, index);
    link->last_to_core_ms = link->last_to_team_ms = w->now_ms;
    if (noticed) send_hello(w, index);
}

static void start_team(struct world *w, uint32_t attempt, int ranks) {
    struct team *team = &w->team;
    if (!ranks) ranks = (int)between(w, 1, RANKS_MAX);
    memset(team, 0, sizeof *team);
    team->attempt = attempt;
    team->running = true;
    team->ranks = ranks;
    team->quarantine = w->handed;
    team->launched = w->options.launched;
    team->nameless = !team->launched && chance(w, 50);
    trace(w, "%d workers of attempt %u start", ranks, attempt);
    int per_link = chance(w, 40) ? ranks : (int)between(w, 1, 2);
    for (int first = 0; first < ranks; first += per_link) {
        struct link *link = &team->link[team->links++];
        link->first = first;
        link->count = first + per_link < ranks ? per_link : ranks - first;
    }
    team->asynchronous = chance(w, 40);
    team->impatient = chance(w, 30);
    w->launcher_gone = false;
    w->launcher_code = 0;
    bool host_missing = false;
    for (int rank = 0; rank < ranks; rank++) {
        team->wrong[rank] = -1;
        team->host[rank] = w->placement[rank];
        team->absent[rank] = w->host_dead[team->host[rank]];
        host_missing |= team->absent[rank];
    }
    for (int step = 0; step <= STEPS_MAX; step++) team->position[step] = -1;
    for (int i = 0; i < team->links; i++) {
        push_plain(w, ITEM_CONNECT, between(w, 1, 2000), i, 0);
        push_plain(w, ITEM_BEAT, between(w, 2001, 3000), i, 0);
    }
    /* The launcher does not reach a host that is dead. */
    if (host_missing) push_plain(w, ITEM_DEATH, between(w, 500, 2500), 0, 0);
    team->last_heard_ms = w->now_ms;
}
