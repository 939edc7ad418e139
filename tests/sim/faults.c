/* Everything that can go wrong. */

static const char *fault_name(enum fault_kind kind) {
#define FAULT_NAME(name) #name,
    static const char *const names[FAULT_COUNT] = {FAULT_KINDS(FAULT_NAME)};
    return names[kind];
}

static void local_event(struct world *w, struct item item, int64_t delay_ms) {
    item.kind = ITEM_LOCAL;
    item.time_ms = w->now_ms + delay_ms;
    push(w, &item);
}

static void signal_core(struct world *w, enum ls_core_signal signal, int64_t delay_ms) {
    struct item item = report(w, LS_EVENT_SIGNAL);
    item.event.signal = signal;
    local_event(w, item, delay_ms);
}

static void ask_core(struct world *w, enum ls_core_request request) {
    struct item item = report(w, LS_EVENT_REQUEST);
    item.event.connection = new_connection(w, LINK_OPERATOR);
    item.event.request = request;
    local_event(w, item, below(w, 20));
    if (!chance(w, 30)) return;
    item.event.kind = LS_EVENT_CONNECTION_LOST;
    local_event(w, item, between(w, 20, 400));
}

/* Messages in flight on an old connection: a beginning of them arrives, perhaps after those of the new one. */
static void break_connection(struct world *w, int index) {
    struct link *link = &w->team.link[index];
    if (!link->connection) return;
    ls_connection old = link->connection;
    /* Sometimes the last word on it is a HELLO that lingers. */
    if (chance(w, 30)) {
        link->last_to_core_ms = w->now_ms + between(w, 100, 1500);
        send_hello(w, index);
    }
    uint64_t low = UINT64_MAX, high = 0;
    for (int i = 0; i < w->items_count; i++) {
        const struct item *item = &pool[heap[i].slot];
        if (item->kind != ITEM_TO_CORE || item->event.connection != old) continue;
        if (item->order < low) low = item->order;
        if (item->order > high) high = item->order;
    }
    if (high) {
        uint64_t cut = low + (uint64_t)below(w, (int64_t)(high - low) + 2);
        for (int i = 0; i < w->items_count; i++) {
            struct item *item = &pool[heap[i].slot];
            if (item->kind == ITEM_TO_CORE && item->event.connection == old && item->order >= cut)
                item->variant = FAULT_CONNECTION_BREAKS;
        }
    }
    connect_link(w, index, chance(w, 60));
    if (!chance(w, 60)) return;
    struct item item = report(w, LS_EVENT_CONNECTION_LOST);
    item.event.connection = old;
    local_event(w, item, between(w, 0, 500));
}

static void kill_rank(struct world *w, int rank) {
    struct team *team = &w->team;
    if (!team->running || team->dead[rank]) return;
    team->dead[rank] = true;
    team->stuck = true;
    push_plain(w, ITEM_DEATH, between(w, 300, 2500), 0, 0);
}

/* A rank ends with a code and without a word; of one that ends at once its launcher may not say which. */
static bool end_rank(struct world *w, int rank) {
    static const int codes[] = {3, 126, 127, 137};
    if (!w->team.running || !w->team.launched) return false;
    w->launcher_code = codes[below(w, (int64_t)(sizeof codes / sizeof *codes))];
    w->launcher_rank = chance(w, 60) ? rank : -1;
    leave(w, w->launcher_code);
    return true;
}

static void rank_faults(struct world *w, int rank, enum ls_code code, const char *text) {
    struct team *team = &w->team;
    if (!team->running || team->dead[rank]) return;
    struct item item = report(w, LS_EVENT_FAULT);
    item.event.fault.rank = rank;
    item.event.fault.step = team->done + 1;
    item.event.fault.code = code;
    item.event.fault.unloadable = code == LS_CHECKPOINT; /* which ranks here meet in loading alone */
    item.event.fault.text = text;
    send_to_core(w, link_of(team, rank), &item);
}

static void old_attempt_speaks(struct world *w) {
    static const enum ls_core_event_kind kinds[] = {
        LS_EVENT_HELLO,       LS_EVENT_STEP_DONE, LS_EVENT_VALIDATION, LS_EVENT_SAVING,          LS_EVENT_PART,
        LS_EVENT_SAVE_FAILED, LS_EVENT_FAULT,     LS_EVENT_RANK_LOST,  LS_EVENT_LAUNCHER_EXITED, LS_EVENT_COMMIT_DONE,
        LS_EVENT_CLEARED,     LS_EVENT_PREPARED,  LS_EVENT_STALLED,    LS_EVENT_NODE_LOST};
    struct item item = report(w, kinds[below(w, (int64_t)(sizeof kinds / sizeof *kinds))]);
    struct ls_core_status status;
    ls_core_read_status(w->core, &status);
    item.variant = FAULT_OLD_ATTEMPT_SPEAKS;
    item.event.attempt = w->begun.attempt > 1 && chance(w, 70) ? w->begun.attempt - 1 : w->begun.attempt + 5;
    item.attempt = item.event.attempt;
    item.event.connection = chance(w, 50) ? w->team.link[0].connection : new_connection(w, LINK_IMPOSTOR);
    int64_t step = status.step < w->truth_end ? status.step + 1 : status.step;
    switch (item.event.kind) {
    case LS_EVENT_HELLO:
        item.event.hello.attempt = item.event.attempt;
        item.event.connection = new_connection(w, LINK_IMPOSTOR);
        item.event.hello.started = true;
        item.event.hello.steps_done = item.event.hello.granted_step = step;
        break;
    case LS_EVENT_STEP_DONE:
        item.event.step =
            (struct ls_core_step){.step = step, .end_position = w->truth_position[step], .sequences = w->batch};
        break;
    case LS_EVENT_VALIDATION: item.event.validation.step = status.step; break;
    case LS_EVENT_SAVING: item.event.saving.step = status.step; break;
    case LS_EVENT_PART: item.event.part.step = step; break;
    case LS_EVENT_SAVE_FAILED: item.event.save_failed.text = "old"; break;
    case LS_EVENT_FAULT:
        item.event.fault.text = "old";
        item.event.fault.code = LS_DATA;
        break;
    case LS_EVENT_RANK_LOST: item.event.rank_lost.how = "old"; break;
    case LS_EVENT_NODE_LOST: item.event.node_lost.host = item.event.node_lost.how = "host-0"; break;
    case LS_EVENT_STALLED: item.event.stalled.host = item.event.stalled.text = "old"; break;
    case LS_EVENT_PREPARED: item.event.prepared.step = step; break;
    case LS_EVENT_COMMIT_DONE: item.event.commit.step = status.saving_step; break;
    default: break;
    }
    local_event(w, item, 0);
}

/* Messages that make no sense, from the right worker and from strangers. */
static void talk_nonsense(struct world *w) {
    struct ls_core_status status;
    ls_core_read_status(w->core, &status);
    struct item item = report(w, LS_EVENT_HELLO);
    struct ls_core_rank rank;
    item.variant = FAULT_NONSENSE;
    item.event.connection = w->team.link[0].connection;
    switch (status.saving_step && chance(w, 80) ? 5 : below(w, 9)) {
    case 0:
        item.event.kind = LS_EVENT_STEP_DONE;
        item.event.step.step = status.step + between(w, 2, 1000);
        break;
    case 1:
        item.event.kind = LS_EVENT_VALIDATION;
        item.event.validation.step = status.step + between(w, 1, 1000);
        break;
    case 2:
        item.event.kind = LS_EVENT_SAVING;
        item.event.saving.step = chance(w, 50) ? status.step + between(w, 1, 9) : status.start_step - between(w, 1, 9);
        break;
    case 3:
        item.event.kind = LS_EVENT_PART;
        item.event.part.step = status.step;
        item.event.part.rank = chance(w, 50) ? -1 : w->team.ranks + (int)below(w, 9);
        break;
    case 4:
        item.event.kind = LS_EVENT_PART;
        item.event.part.step = w->truth_end + between(w, 1, 9);
        break;
    case 5: /* a part of a save that is not the one in flight */
        item.event.kind = LS_EVENT_PART;
        item.event.part.step = status.committed_step;
        if (status.saving_step)
            item.event.part.step = status.saving_step + (status.saving_step < w->truth_end ? 1 : -1);
        item.event.part.rank = (int)below(w, w->team.ranks);
        break;
    case 6:
        item.event.kind = LS_EVENT_PART;
        item.event.part.step = status.step + 1;
        item.event.connection = new_connection(w, LINK_IMPOSTOR);
        break;
    case 7:
        item.event.kind = LS_EVENT_STEP_DONE;
        item.event.step.step = status.step + 1;
        item.event.connection = new_connection(w, LINK_IMPOSTOR);
        break;
    default: {
        rank = rank_described(w, w->team.attempt, 0);
        struct ls_core_hello *hello = &item.event.hello;
        describe_process(w, hello);
        hello->ranks = &rank;
        hello->ranks_count = 1;
        hello->started = true;
        hello->steps_done = status.step;
        hello->granted_step = status.granted_step;
        int what = (int)below(w, 4);
        if (what == 0) hello->ranks_count = 0;
        if (what == 1) rank.rank = w->team.ranks;
        if (what == 2) hello->granted_step = w->truth_end + 1;
        if (what == 3) hello->granted_step = hello->steps_done - 1;
    }
    }
    handle(w, &item.event, FAULT_NONSENSE);
}

/* A report of rank 0 that contradicts what it was granted. */
static void disobey(struct world *w) {
    struct ls_core_status status;
    ls_core_read_status(w->core, &status);
    if (!w->att.voice || status.step == w->truth_end) return;
    struct item item = report(w, LS_EVENT_STEP_DONE);
    item.event.connection = w->att.voice;
    item.event.step =
        (struct ls_core_step){.step = status.step + 1,
                              .end_position = w->truth_position[status.step + 1] + (chance(w, 50) ? 1 : 0),
                              .sequences = w->batch};
    bool allowed = status.step < status.granted_step && !w->att.stopped;
    if (allowed && item.event.step.end_position == w->truth_position[status.step + 1]) item.event.step.end_position++;
    handle(w, &item.event, -1);
}

static void change_digest(struct world *w) {
    struct ls_core_status status;
    ls_core_read_status(w->core, &status);
    if (!w->att.voice || status.step == status.start_step) return;
    struct item item = report(w, LS_EVENT_STEP_DONE);
    item.event.connection = w->att.voice;
    item.event.step = executed_step(w, status.step);
    item.event.step.digest.low ^= 1;
    handle(w, &item.event, -1);
}

/* A host dies with all its ranks; only its loss is told, or each rank's. */
static bool lose_host(struct world *w, int host) {
    struct team *team = &w->team;
    bool any = false;
    if (host == 0 || w->host_dead[host]) return false; /* the coordinator is on the first */
    w->host_dead[host] = true;
    for (int rank = 0; rank < team->ranks; rank++) any |= team->host[rank] == host && !team->dead[rank];
    if (!team->running || !any) return false;
    bool told = chance(w, 60) && team->attempt == w->begun.attempt;
    for (int rank = 0; rank < team->ranks; rank++) {
        if (team->host[rank] != host) continue;
        kill_rank(w, rank);
        w->att.told_lost[rank] |= told;
    }
    if (!told) return true;
    static const char *const names[HOSTS_MAX] = {"host-0", "host-1", "host-2", "host-3"};
    struct item item = report(w, LS_EVENT_NODE_LOST);
    item.event.node_lost.host = names[host];
    item.event.node_lost.how = "not heard for 15 s";
    local_event(w, item, below(w, 800));
    return true;
}

static void differ(struct world *w, int rank) {
    struct ls_core_status status;
    ls_core_read_status(w->core, &status);
    struct item item = report(w, LS_EVENT_REPLICA_DIFFERS);
    int64_t good_step = between(w, w->begun.step, status.step);
    item.event.replica_differs.step = status.step;
    item.event.replica_differs.good_step = good_step;
    item.event.replica_differs.rank = chance(w, 50) ? rank : -1;
    if (w->options.mismatch == LS_MISMATCH_ROLLBACK) {
        w->bad_above = good_step;
        for (int i = 0; i < w->folders_count; i++) w->folders[i].suspect |= w->folders[i].step > good_step;
    }
    handle(w, &item.event, -1);
}

static bool needs_team(enum fault_kind kind) {
    return kind < FAULT_COORDINATOR_CRASHES || (kind >= FAULT_RANK_KILLED && kind <= FAULT_IMPOSTOR) ||
           kind == FAULT_NONSENSE || kind == FAULT_NONFINITE || kind == FAULT_OUT_OF_MEMORY || kind == FAULT_STALL ||
           kind == FAULT_REPLICA_DIFFERS || kind == FAULT_LAUNCHER_DIES || kind == FAULT_RANK_ENDS ||
           kind == FAULT_DIGEST_CHANGES || kind == FAULT_STEP_NOT_GRANTED || kind == FAULT_OLD_ATTEMPT_SPEAKS;
}

static void inject(struct world *w, enum fault_kind kind) {
    struct team *team = &w->team;
    int rank = team->ranks ? (int)below(w, team->ranks) : 0;
    int link = team->links ? (int)below(w, team->links) : 0;
    bool counted = true;
    bool alive = w->core && team->running && team->attempt == w->begun.attempt; /* the workers of the attempt */
    if (!team->links && needs_team(kind)) return;
    trace(w, "FAULT %s", fault_name(kind));
    switch (kind) {
    case FAULT_CONNECTION_BREAKS: break_connection(w, link); break;
    case FAULT_MESSAGES_VANISH:
        if (chance(w, 50))
            team->link[link].vanish_to_core += (int)between(w, 1, 5);
        else
            team->link[link].vanish_to_team += (int)between(w, 1, 5);
        break;
    case FAULT_COORDINATOR_CRASHES:
        counted = w->core;
        if (w->core) w->coverage->crashes[w->phase]++;
        if (w->core) crash_coordinator(w, between(w, 50, 1000));
        break;
    case FAULT_COORDINATOR_IS_LONG_AWAY:
        counted = w->core;
        if (w->core) crash_coordinator(w, between(w, COORDINATOR_TIMEOUT_MS / 2, 2 * COORDINATOR_TIMEOUT_MS));
        break;
    case FAULT_CRASH_BEFORE_END:
        counted = false;
        w->crash_before_end = true;
        break;
    case FAULT_RANK_KILLED: kill_rank(w, rank); break;
    case FAULT_PEERS_COMPLAIN_FIRST:
        rank_faults(w, (rank + 1) % team->ranks, LS_COMMUNICATION, "communication: the connection to a peer is gone");
        kill_rank(w, rank);
        break;
    case FAULT_RANK_NEVER_JOINS:
        counted = !w->attempt_joined[rank];
        team->absent[rank] |= counted;
        break;
    case FAULT_WRONG_VERSION:
    case FAULT_WRONG_DATASET: team->wrong[rank] = (int)kind; break;
    case FAULT_WRONG_WORLD_SIZE:
        if (w->options.world_size) team->wrong[rank] = (int)kind;
        break;
    case FAULT_IMPOSTOR: {
        if (!alive || !w->att.joined[rank] || w->att.faulted) return;
        struct item item = report(w, LS_EVENT_HELLO);
        item.variant = kind;
        item.event.connection = new_connection(w, LINK_IMPOSTOR);
        item.event.hello.attempt = w->begun.attempt;
        item.rank = rank;
        local_event(w, item, 0);
        break;
    }
    case FAULT_OLD_ATTEMPT_SPEAKS:
        counted = w->core;
        if (w->core) old_attempt_speaks(w);
        break;
    case FAULT_NONSENSE:
        counted = alive && !w->att.faulted && w->att.voice && w->att.voice == team->link[0].connection;
        if (counted) talk_nonsense(w);
        if (chance(w, 80)) push_plain(w, ITEM_FAULT, between(w, 1, 200), 0, (int)kind); /* and goes on talking */
        break;
    case FAULT_SLOW_FSYNC: w->slow_fsyncs += (int)between(w, 1, 3); break;
    case FAULT_SLOW_COMMIT: w->slow_commits += (int)between(w, 1, 3); break;
    case FAULT_JOURNAL_FAILS:
        w->fsync_fails = true;
        counted = false;
        break;
    case FAULT_COMMIT_FAILS:
        w->commit_fails = true;
        counted = false;
        break;
    case FAULT_SAVE_FAILS:
        w->save_fails++;
        counted = false;
        break;
    case FAULT_LATE_PART: w->late_parts += (int)between(w, 1, 3); break;
    case FAULT_NONFINITE:
        rank_faults(w, rank, LS_NONFINITE, "the loss is not finite");
        kill_rank(w, rank);
        break;
    case FAULT_OUT_OF_MEMORY:
        rank_faults(w, rank, LS_MEMORY, "no memory for activations");
        kill_rank(w, rank);
        break;
    case FAULT_DIGEST_CHANGES:
        if (alive) change_digest(w);
        break;
    case FAULT_STEP_NOT_GRANTED:
        if (alive) disobey(w);
        break;
    case FAULT_RANK_ENDS: counted = end_rank(w, rank); break;
    case FAULT_LAUNCHER_DIES: leave(w, chance(w, 50) ? 1 : -9); break;
    case FAULT_SIGNAL_SAVE: signal_core(w, LS_SIGNAL_SAVE, 0); break;
    case FAULT_SIGNAL_REQUEUE: signal_core(w, LS_SIGNAL_REQUEUE, 0); break;
    case FAULT_SIGNAL_STOP: signal_core(w, LS_SIGNAL_STOP, 0); break;
    case FAULT_SIGNAL_STOP_TWICE:
        signal_core(w, LS_SIGNAL_STOP, 0);
        signal_core(w, LS_SIGNAL_STOP, below(w, 300));
        break;
    case FAULT_SIGNAL_NOW: signal_core(w, LS_SIGNAL_NOW, 0); break;
    case FAULT_OPERATOR_STOPS: ask_core(w, LS_REQUEST_STOP); break;
    case FAULT_OPERATOR_SAVES: ask_core(w, LS_REQUEST_CHECKPOINT); break;
    case FAULT_OPERATORS_FLOOD:
        for (int i = 0; i < 12; i++) ask_core(w, i % 5 == 4 ? LS_REQUEST_STOP : LS_REQUEST_CHECKPOINT);
        break;
    case FAULT_HOST_DIES: counted = lose_host(w, (int)below(w, w->hosts)); break;
    case FAULT_HOST_FLAPS: /* loses a rank, again and again */
        kill_rank(w, team->ranks - 1);
        if (chance(w, 80)) push_plain(w, ITEM_FAULT, between(w, 2000, 9000), 0, (int)kind);
        break;
    case FAULT_STALL:
        counted = team->running && !team->stalled;
        if (!counted) break;
        team->stuck = true;
        team->stalled = rank + 1;
        break;
    case FAULT_REPLICA_DIFFERS:
        counted = alive && team->started && !w->att.faulted;
        if (counted) differ(w, rank);
        break;
    case FAULT_CHECKPOINT_ROTS:
    case FAULT_CHECKPOINT_DOES_NOT_LOAD:
        counted = w->folders_count > 0;
        if (!counted) break;
        if (kind == FAULT_CHECKPOINT_ROTS)
            w->folders[w->folders_count - 1].damaged = true;
        else
            w->folders[w->folders_count - 1].unloadable = true;
        break;
    case FAULT_SUPERVISOR_DIES:
        counted = w->options.launched && !w->supervisor_dead && w->core;
        if (!counted) break;
        w->supervisor_dead = true;
        signal_core(w, LS_SIGNAL_REQUEUE, 0);
        break;
    case FAULT_KILL_FAILS:
        w->kill_fails = true;
        counted = false;
        break;
    case FAULT_PREPARE_FAILS:
        w->prepare_fails = true;
        counted = false;
        break;
    case FAULT_SAMPLE_SPOILS_LOSS:
    case FAULT_NOBODY_STARTS_WORKERS:
    case FAULT_CHECKPOINT_DAMAGED:
    case FAULT_OTHER_WORLD_SIZE:
    case FAULT_DATA_CHANGED:
    case FAULT_DATA_SET_BACK:
    case FAULT_COUNT: return;
    }
    w->coverage->faults[kind] += counted;
}

/* Things that happen while one attempt gives way to the next. */
static void disturb_recovery(struct world *w, enum ls_core_phase phase) {
    static const enum fault_kind kinds[] = {
        FAULT_COORDINATOR_CRASHES, FAULT_COORDINATOR_CRASHES, FAULT_COORDINATOR_CRASHES, FAULT_OLD_ATTEMPT_SPEAKS,
        FAULT_SIGNAL_REQUEUE,      FAULT_OPERATOR_STOPS,      FAULT_SIGNAL_NOW,          FAULT_SUPERVISOR_DIES,
        FAULT_OPERATOR_SAVES,      FAULT_SLOW_FSYNC,          FAULT_JOURNAL_FAILS,       FAULT_HOST_DIES};
    bool between_attempts = phase == LS_PHASE_CLEARING || phase == LS_PHASE_PREPARING || phase == LS_PHASE_BACKOFF;
    if (w->quiet || !between_attempts || !chance(w, 20)) return;
    enum fault_kind kind = kinds[below(w, (int64_t)(sizeof kinds / sizeof *kinds))];
    push_plain(w, ITEM_FAULT, chance(w, 50) ? 0 : between(w, 0, 400), 0, (int)kind);
}

/* Faults of an invocation: few, of any kind, most of them while it runs; some must be there before the ranks join. */
static void plan_faults(struct world *w) {
    bool storm = chance(w, 8);
    int count = storm ? (int)between(w, 20, 60) : chance(w, 25) ? 0 : (int)between(w, 1, 6);
    for (int i = 0; i < count; i++) {
        enum fault_kind kind = (enum fault_kind)below(w, FAULT_COUNT);
        /* What ends a run at once is rarer, so that the rest meets longer ones. */
        bool fatal = (kind >= FAULT_RANK_NEVER_JOINS && kind <= FAULT_WRONG_WORLD_SIZE) ||
                     (kind >= FAULT_NONFINITE && kind <= FAULT_STEP_NOT_GRANTED) || kind == FAULT_SIGNAL_NOW ||
                     kind == FAULT_SIGNAL_STOP_TWICE || kind == FAULT_COORDINATOR_IS_LONG_AWAY;
        if (fatal && chance(w, storm ? 97 : 60))
            kind = chance(w, 50) ? FAULT_CONNECTION_BREAKS : FAULT_COORDINATOR_CRASHES;
        bool early = kind >= FAULT_RANK_NEVER_JOINS && kind <= FAULT_WRONG_WORLD_SIZE;
        early |= kind == FAULT_RANK_ENDS && chance(w, 50);
        int64_t span_ms = 2000 + w->end_step * STEP_MS_MAX / 2;
        if (storm) span_ms *= 4;
        push_plain(w, ITEM_FAULT, early ? 100 : between(w, 0, span_ms), 0, (int)kind);
    }
}
