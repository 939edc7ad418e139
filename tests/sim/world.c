/* The virtual world: what happens to whom, and the course of a run. */
#include "tests/sim/world.h"

#include <assert.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/clock.c"

static void handle(struct world *w, struct ls_core_event *event, int variant);
static void disturb_recovery(struct world *w, enum ls_core_phase phase);

#include "tests/sim/oracle.c"

#include "tests/sim/oracle_recovery.c"

#include "tests/sim/oracle_judge.c"

#include "tests/sim/process.c"

#include "tests/sim/team.c"

/* ---- how workers introduce themselves ---- */

static struct ls_core_rank rank_described(const struct world *w, uint32_t attempt, int rank) {
    struct ls_core_rank described = {.rank = rank, .pid = 1000 * (int64_t)attempt + rank};
    name_host(described.host, w->team.host[rank]);
    snprintf(described.config_digest, sizeof described.config_digest, "%s", w->options.config_digest);
    snprintf(described.dataset_digest, sizeof described.dataset_digest, "%s", w->options.dataset_digest);
    snprintf(described.numerics, sizeof described.numerics, "cpu");
    return described;
}

static void describe_process(const struct world *w, struct ls_core_hello *hello) {
    hello->protocol = w->options.protocol;
    snprintf(hello->version, sizeof hello->version, "%s", w->options.version);
    hello->world_size = w->team.ranks;
}

/* Fills in who says hello. Returns what is wrong with it, -1 for nothing; *ranks_count is 0 if nobody is there to say
 * it. */
static int introduce(struct world *w, const struct item *item, struct ls_core_hello *hello,
                     struct ls_core_rank *ranks) {
    int wrong = item->variant, count = hello->ranks_count;
    describe_process(w, hello);
    hello->ranks = ranks;
    hello->ranks_count = 0;
    if (item->variant >= 0) {
        ranks[hello->ranks_count++] = rank_described(w, item->attempt, item->rank);
        ranks[0].pid++;
        return wrong;
    }
    for (int rank = item->rank; rank < item->rank + count; rank++) {
        bool present = item->attempt == w->team.attempt;
        if (present && w->team.absent[rank]) continue;
        struct ls_core_rank *described = &ranks[hello->ranks_count++];
        *described = rank_described(w, item->attempt, rank);
        if (!present || w->team.wrong[rank] < 0) continue;
        if (wrong < 0) wrong = w->team.wrong[rank];
        if (w->team.wrong[rank] == FAULT_WRONG_VERSION) snprintf(hello->version, sizeof hello->version, "0.0.9");
        if (w->team.wrong[rank] == FAULT_WRONG_DATASET) described->dataset_digest[0] ^= 1;
        if (w->team.wrong[rank] == FAULT_WRONG_WORLD_SIZE) hello->world_size++;
    }
    return wrong;
}

#include "tests/sim/faults.c"

/* ---- the run of time ---- */

static void arrives_at_core(struct world *w, struct item *item) {
    if (item->variant == FAULT_CONNECTION_BREAKS) return;
    if (!w->core) {
        /* ZeroMQ keeps for later what it had not begun to send. */
        if (chance(w, 50)) return;
        item->time_ms = w->restart_ms + 1;
        push(w, item);
        return;
    }
    bool of_old_team = item->attempt != w->team.attempt;
    /* It died with its sender. */
    if (item->generation != w->options.generation && (!w->team.running || of_old_team)) return;
    ls_connection now = of_old_team ? item->event.connection : w->team.link[item->link].connection;
    if (item->generation != w->options.generation) item->event.connection = now;
    if (item->message == MESSAGE_BEAT) {
        if (!ls_core_is_joined(w->core, now)) send_to_team(w, now, &(struct ls_core_action){.kind = LS_ACTION_REJOIN});
        return;
    }
    int variant = item->variant;
    struct ls_core_rank ranks[RANKS_MAX];
    if (item->event.kind == LS_EVENT_HELLO) {
        variant = introduce(w, item, &item->event.hello, ranks);
        if (!item->event.hello.ranks_count) return;
    }
    handle(w, &item->event, variant);
}

static void happens_here(struct world *w, struct item *item) {
    enum ls_core_event_kind kind = item->event.kind;
    if (!w->core) {
        /* The supervisor hands signals on; the launcher's end it tells every coordinator (see ITEM_START). */
        if (kind != LS_EVENT_SIGNAL) return;
        item->time_ms = w->restart_ms + 1;
        push(w, item);
        return;
    }
    struct ls_core_rank ranks[RANKS_MAX];
    int variant = item->variant;
    if (kind == LS_EVENT_HELLO) variant = introduce(w, item, &item->event.hello, ranks);
    handle(w, &item->event, variant);
}

/* The watcher looks at the processes of the ranks that have joined. */
static void watch(struct world *w) {
    for (int rank = 0; rank < w->team.ranks && w->core && w->team.attempt == w->begun.attempt; rank++) {
        bool gone = !w->team.running || w->team.dead[rank];
        if (!gone || !w->att.joined[rank] || w->att.told_lost[rank]) continue;
        w->att.told_lost[rank] = true;
        struct item item = report(w, LS_EVENT_RANK_LOST);
        item.event.rank_lost.rank = rank;
        item.event.rank_lost.how = "its process is gone";
        handle(w, &item.event, -1);
    }
}

/* The verdict on a rank that does not move, told until somebody acts on it. */
static void watch_stall(struct world *w) {
    if (!w->core || !w->team.running || !w->team.stalled || w->team.attempt != w->begun.attempt) return;
    if (w->att.told_stalled) return;
    w->att.told_stalled = true;
    struct item item = report(w, LS_EVENT_STALLED);
    item.event.stalled.rank = w->team.stalled - 1;
    item.event.stalled.host = "";
    item.event.stalled.text = "stall: a rank is stopped in phase backward";
    handle(w, &item.event, -1);
}

static void fsync_ends(struct world *w, const struct item *item) {
    w->fsyncing = false;
    struct item told = report(w, LS_EVENT_JOURNALED);
    if (w->fsync_fails) {
        w->fsync_fails = false;
        w->coverage->faults[FAULT_JOURNAL_FAILS]++;
        told.event.kind = LS_EVENT_JOURNAL_FAILED;
        told.event.journal_failed.text = "No space left on device";
        handle(w, &told.event, -1);
        return;
    }
    int count = 0;
    while (count < w->pending_count && w->pending[count].sequence <= item->sequence) count++;
    make_durable(w, count);
    told.event.journaled.sequence = item->sequence;
    handle(w, &told.event, -1);
    if (w->core) start_fsync(w);
}

static void commit_ends(struct world *w, const struct item *item) {
    struct item told = *item;
    told.kind = ITEM_COMMIT_TOLD;
    told.order = 0;
    told.time_ms = w->now_ms + below(w, 20);
    told.rank = w->commit_fails;
    if (w->commit_fails) {
        w->commit_fails = false;
        w->coverage->faults[FAULT_COMMIT_FAILS]++;
    } else {
        add_folder(w, item->commit.step, item->commit.position, item->commit.chain);
    }
    push(w, &told);
}

static void commit_is_told(struct world *w, const struct item *item) {
    w->committing = false;
    struct item told = report(w, item->rank ? LS_EVENT_COMMIT_FAILED : LS_EVENT_COMMIT_DONE);
    told.event.attempt = w->begun.attempt;
    told.event.commit.step = item->commit.step;
    told.event.commit.text = "No space left on device";
    handle(w, &told.event, -1);
}

static void cleared(struct world *w, struct item *item) {
    if (w->options.launched && w->team.running && w->team.attempt <= item->attempt) {
        item->time_ms = w->now_ms + 20;
        push(w, item);
        return;
    }
    struct ls_core_event event = {.kind = LS_EVENT_CLEARED, .attempt = item->attempt};
    handle(w, &event, -1);
}

static void prepared(struct world *w, const struct item *item) {
    static const int further = 7;
    struct ls_core_event event = {.kind = LS_EVENT_PREPARED, .attempt = item->attempt, .payload = &further};
    if (w->prepare_fails) {
        w->prepare_fails = false;
        w->coverage->faults[FAULT_PREPARE_FAILS]++;
        event.kind = LS_EVENT_PREPARE_FAILED;
        event.prepare_failed.code = LS_CHECKPOINT;
        event.prepare_failed.text = "checkpoints/ cannot be read";
        handle(w, &event, -1);
        return;
    }
    const struct folder *start = newest_of(w);
    /* Hosts that do not answer have no room, if anybody asks them. */
    bool excluded[HOSTS_MAX] = {false};
    const char *name;
    int32_t room = 0, room_all = 0;
    w->hosts_asked = chance(w, 70);
    for (int i = 0; (name = ls_core_excluded(w->core, i)); i++) excluded[atoi(name + strlen("host-"))] = true;
    for (int host = 0; host < w->hosts; host++) {
        const bool silent = w->hosts_asked && w->host_dead[host];
        room += silent || excluded[host] ? 0 : HOST_SLOTS;
        room_all += silent ? 0 : HOST_SLOTS;
        w->coverage->hosts_silent += silent;
    }
    event.prepared.step = start->step;
    event.prepared.position = start->position;
    event.prepared.samples = count_of(&start->used);
    event.prepared.data_generation = start->generation;
    event.prepared.chain = start->chain;
    event.prepared.slots = w->options.launched ? room : -1;
    event.prepared.slots_all = w->options.launched ? room_all : -1;
    if (w->begun.world_size > 1 && chance(w, 80))
        event.prepared.fewer = (int32_t)between(w, 1, w->begun.world_size - 1);
    handle(w, &event, -1);
}

/* Whoever starts workers by hand waits until the ones before have left. */
static void workers_start(struct world *w, struct item *item) {
    if (w->team.running) {
        item->time_ms = w->now_ms + 500;
        push(w, item);
        return;
    }
    if (item->attempt == w->begun.attempt) start_team(w, item->attempt, item->ranks);
}

static void coordinator_returns(struct world *w) {
    start_coordinator(w, true);
    for (int i = 0; i < w->team.links; i++)
        if (w->team.link[i].connection) connect_link(w, i, chance(w, 50));
    if (!w->launcher_gone || w->supervisor_dead) return;
    struct item item = report(w, LS_EVENT_LAUNCHER_EXITED);
    say_why_launcher_ended(w, &item);
    local_event(w, item, between(w, 1, 50));
}

static void happen(struct world *w, struct item *item) {
    bool of_generation = item->generation == w->options.generation && w->core;
    bool of_team = item->kind >= ITEM_CONNECT && item->kind <= ITEM_DEATH;
    if (of_team && item->attempt != w->team.attempt) return;
    switch (item->kind) {
    case ITEM_TO_CORE: arrives_at_core(w, item); break;
    case ITEM_TO_TEAM: team_hears(w, item->link, &item->action); break;
    case ITEM_LOCAL: happens_here(w, item); break;
    case ITEM_TICK:
        if (!of_generation) break;
        push_plain(w, ITEM_TICK, 250, 0, 0);
        if (chance(w, 60)) watch(w);
        if (chance(w, 30)) watch_stall(w);
        if (!w->core) break;
        handle(w, &(struct ls_core_event){.kind = LS_EVENT_TICK, .tick = {.now_ms = w->now_ms}}, -1);
        break;
    case ITEM_FSYNC:
        if (of_generation) fsync_ends(w, item);
        break;
    case ITEM_COMMIT:
        if (of_generation) commit_ends(w, item);
        break;
    case ITEM_COMMIT_TOLD:
        if (of_generation) commit_is_told(w, item);
        break;
    case ITEM_START: coordinator_returns(w); break;
    case ITEM_CONNECT: connect_link(w, item->link, true); break;
    case ITEM_BEAT: beat(w, item->link); break;
    case ITEM_STEP_ENDS: step_ends(w); break;
    case ITEM_PART_ENDS: part_ends(w, item->link, item->rank); break;
    case ITEM_DEATH: leave(w, 137); break;
    case ITEM_CLEARED:
        if (of_generation) cleared(w, item);
        break;
    case ITEM_PREPARED:
        if (of_generation) prepared(w, item);
        break;
    case ITEM_WORKERS: workers_start(w, item); break;
    case ITEM_FAULT:
        if (!w->over) inject(w, (enum fault_kind)item->rank);
        break;
    }
}

/* ---- a run: invocations until it is complete ---- */

static void plan_run(struct world *w) {
    w->batch = between(w, 1, 9);
    w->steps = chance(w, 50) ? between(w, 1, 40) : 0;
    w->end_position = w->steps ? w->steps * w->batch : between(w, 0, 40 * w->batch);
    w->end_step = (w->end_position + w->batch - 1) / w->batch;
    w->hosts = (int)between(w, 1, HOSTS_MAX);
    for (int i = 0; w->end_position && i < 3 && chance(w, 25); i++) {
        const int64_t first = below(w, w->end_position),
                      generation = chance(w, 85) ? 1 : between(w, 2, GENERATIONS_MAX);
        for (int64_t k = first; k < first + (chance(w, 30) ? 4 * w->batch : 1) && k < w->end_position; k++)
            put(w, &w->poison, sequence_at(generation, k));
        w->coverage->faults[FAULT_SAMPLE_SPOILS_LOSS]++;
    }
    struct ls_core_options *options = &w->options;
    options->global_batch = w->batch;
    options->steps = w->steps;
    options->end_position = w->steps ? 0 : w->end_position;
    options->checkpoint_every = chance(w, 70) ? between(w, 1, 8) : 0;
    options->evaluation_every = chance(w, 70) ? between(w, 1, 5) : 0;
    options->checkpoints_keep = (int32_t)between(w, 0, 3);
    options->protocol = 1;
    options->numerics = chance(w, 50) ? LS_NUMERICS_FIXED : LS_NUMERICS_ANY;
    snprintf(options->version, sizeof options->version, "1.2.3");
    snprintf(options->config_digest, sizeof options->config_digest, "0123456789abcdef0123456789abcdef");
    snprintf(options->dataset_digest, sizeof options->dataset_digest, "fedcba9876543210fedcba9876543210");
    options->start_timeout_ms = 60000;
    options->rejoin_timeout_ms = 30000;
    options->cause_grace_ms = 1000;
    options->nonfinite = (enum ls_core_nonfinite)below(w, 3);
    options->mismatch = (enum ls_core_mismatch)below(w, 2);
    options->skips_max = options->nonfinite == LS_NONFINITE_SKIP && chance(w, 80) ? 3 : 0;
    options->host_losses_max = (int32_t)below(w, 4);
    options->backoff_ms = 500;
    options->backoff_max_ms = 1800;
    options->clear_timeout_ms = 10000;
}

/* What is wrong with the world is mended from here on. */
static void mend(struct world *w) {
    memset(&w->poison, 0, sizeof w->poison);
    memset(w->host_dead, 0, sizeof w->host_dead);
    for (int i = 0; i < w->folders_count; i++) w->folders[i].unloadable = false;
}

/* Somebody resumes on other data, or sets them back to those of the checkpoint that is there. */
static void change_data(struct world *w, const struct folder *start) {
    if (w->quiet || w->begun.attempt == 0) return;
    if (start->generation && start->generation != w->generation && chance(w, 30)) {
        w->generation = start->generation;
        w->coverage->faults[FAULT_DATA_SET_BACK]++;
    } else if (w->generations < GENERATIONS_MAX && chance(w, 25)) {
        w->generation = ++w->generations;
        w->coverage->faults[FAULT_DATA_CHANGED]++;
        w->coverage->generations_begun += start->step > 0;
    }
}

/* `--resume`: from the newest good checkpoint, but for those that the last FAULT gave up. */
static void find_start(struct world *w) {
    int64_t below_step = INT64_MAX;
    for (int i = 0; i < w->durable_count; i++)
        if (w->durable[i].kind == LS_RECORD_FAULT)
            below_step = w->durable[i].attempt == w->begun.attempt && w->durable[i].end.below_step
                             ? w->durable[i].end.below_step
                             : INT64_MAX;
    set_folders_aside(w, below_step);
    change_data(w, newest_of(w));
    w->first_begun = begun_from(w, newest_of(w));
}

static void plan_invocation(struct world *w, int invocation) {
    struct ls_core_options *options = &w->options;
    w->quiet = invocation > INVOCATIONS_WITH_FAULTS;
    if (w->quiet) mend(w);
    if (!w->quiet && w->folders_count && chance(w, 10)) {
        w->folders[w->folders_count - 1].damaged = true;
        w->coverage->faults[FAULT_CHECKPOINT_DAMAGED]++;
    }
    find_attempt(w);
    find_start(w);
    options->launched = chance(w, 75);
    int32_t most = w->hosts * HOST_SLOTS < RANKS_MAX ? w->hosts * HOST_SLOTS : RANKS_MAX;
    int32_t world_size = (int32_t)between(w, 1, most);
    if (invocation > 1) w->coverage->faults[FAULT_OTHER_WORLD_SIZE] += world_size != w->first_begun.world_size;
    if (!options->launched && chance(w, 30)) world_size = 0;
    w->first_begun.world_size = w->ranks_wanted = world_size;
    w->begun = w->first_begun;
    note_attempt(w);
    w->first_attempt = w->begun.attempt;
    w->best_step = w->begun.step;
    w->progress = w->progress_before = false;
    w->progress_attempt = w->first_attempt;
    options->max_restarts = chance(w, 20) ? 0 : (int32_t)between(w, 1, 4);
    options->min_ranks = world_size && chance(w, 60) ? (int32_t)between(w, 1, world_size) : 0;
    options->span_steps = between(w, 1, 8);
    options->window_steps = chance(w, 50) ? between(w, 4, 12) : 0;
    if (!options->window_steps) options->window_steps = LS_CORE_WINDOW_STEPS - 1;
    w->over = false;
    w->fsyncing = w->committing = w->fsync_fails = w->commit_fails = w->crash_before_end = w->launcher_gone = false;
    w->supervisor_dead = w->kill_fails = w->prepare_fails = false;
    w->slow_fsyncs = w->slow_commits = w->late_parts = w->save_fails = 0;
    w->bad_above = -1;
    w->pending_count = 0;
    w->launched_attempt = 0;
    w->team = (struct team){.running = false};
    clear_items(w);
}

static void run_invocation(struct world *w, int invocation) {
    plan_invocation(w, invocation);
    start_coordinator(w, false);
    if (!w->quiet) plan_faults(w);
    w->limit_ms = w->now_ms + ATTEMPT_LIMIT_MS;
    while (!w->over) {
        if (!w->items_count) violate(w, "nothing will ever happen again");
        struct item item = pop(w);
        w->now_ms = item.time_ms;
        if (w->now_ms > w->limit_ms) violate(w, "the attempt hangs");
        happen(w, &item);
    }
    lose_coordinator(w);
}

bool world_run(uint64_t seed, bool trace_it, struct coverage *coverage, char violation[1024]) {
    static struct world world;
    static struct ls_core_record durable_records[RECORDS_MAX], pending_records[RECORDS_MAX];
    struct world *w = &world;
    ls_core_destroy(w->core); /* what a violation left behind */
    memset(w, 0, sizeof *w);
    w->seed = w->random = seed;
    w->trace = trace_it;
    w->coverage = coverage;
    w->durable = durable_records;
    w->pending = pending_records;
    if (setjmp(w->violated)) {
        memcpy(violation, w->violation, sizeof w->violation);
        return false;
    }
    w->generation = w->generations = 1;
    plan_run(w);
    for (int invocation = 1; invocation <= INVOCATIONS_MAX; invocation++) {
        run_invocation(w, invocation);
        if (invocation > 1) coverage->resumes++;
        if (w->exit_code == LS_OK) return true;
        if (w->quiet) violate(w, "ended with %d though nothing was wrong", w->exit_code);
    }
    violate(w, "not complete after %d invocations", INVOCATIONS_MAX);
}
