/* The coordinator's core in its virtual world: LS_SIM_SEEDS runs (10,000 by default), every invariant checked after
 * every event. LS_SIM_SEED=n runs one seed and prints all that happens. */
#include "tests/sim/world.c"

#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

/* Counts of a table by name; returns how many that must not be zero are. */
static int print_counts(const char *title, const uint64_t *counts, int count, const char *(*name)(int)) {
    int zeros = 0;
    printf("%s:", title);
    for (int i = 0; i < count; i++) {
        printf("%s %s %llu", i ? "," : "", name(i), (unsigned long long)counts[i]);
        zeros += counts[i] == 0;
    }
    printf("\n");
    return zeros;
}

static const char *event_name(int i) {
    return ls_core_event_name((enum ls_core_event_kind)i);
}
static const char *action_name(int i) {
    return ls_core_action_name((enum ls_core_action_kind)i);
}
static const char *record_name(int i) {
    return ls_core_record_name((enum ls_core_record_kind)i);
}
static const char *fault_kind_name(int i) {
    return fault_name((enum fault_kind)i);
}

static int print_transitions(const struct coverage *counted) {
    static const struct {
        enum ls_core_phase from, to;
    } needed[] = {{LS_PHASE_WAITING, LS_PHASE_RUNNING},  {LS_PHASE_WAITING, LS_PHASE_STOPPING},
                  {LS_PHASE_WAITING, LS_PHASE_FAILING},  {LS_PHASE_WAITING, LS_PHASE_ENDED},
                  {LS_PHASE_RUNNING, LS_PHASE_STOPPING}, {LS_PHASE_RUNNING, LS_PHASE_FAILING},
                  {LS_PHASE_RUNNING, LS_PHASE_ENDED},    {LS_PHASE_STOPPING, LS_PHASE_FAILING},
                  {LS_PHASE_STOPPING, LS_PHASE_ENDED},   {LS_PHASE_FAILING, LS_PHASE_ENDED},
                  {LS_PHASE_WAITING, LS_PHASE_CLEARING}, {LS_PHASE_RUNNING, LS_PHASE_CLEARING},
                  {LS_PHASE_FAILING, LS_PHASE_CLEARING}, {LS_PHASE_CLEARING, LS_PHASE_PREPARING},
                  {LS_PHASE_CLEARING, LS_PHASE_ENDED},   {LS_PHASE_PREPARING, LS_PHASE_BACKOFF},
                  {LS_PHASE_PREPARING, LS_PHASE_ENDED},  {LS_PHASE_BACKOFF, LS_PHASE_WAITING},
                  {LS_PHASE_BACKOFF, LS_PHASE_ENDED}};
    int zeros = 0;
    printf("transitions:");
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        uint64_t count = counted->transitions[needed[i].from][needed[i].to];
        printf("%s %s to %s %llu", i ? "," : "", ls_core_phase_name(needed[i].from), ls_core_phase_name(needed[i].to),
               (unsigned long long)count);
        zeros += count == 0;
    }
    printf("\n");
    return zeros;
}

static int print_exits(const struct coverage *counted) {
    static const int needed[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 75, 130};
    int zeros = 0;
    printf("ends:");
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        printf("%s %d: %llu", i ? "," : "", needed[i], (unsigned long long)counted->exits[needed[i]]);
        zeros += counted->exits[needed[i]] == 0;
    }
    printf("\n");
    return zeros;
}

static int print_others(const struct coverage *counted) {
    static const char *const names[] = {"of old attempts", "duplicates",       "unplaced", "refused",
                                        "restarts",        "records restored", "resumes"};
    const uint64_t counts[] = {counted->old_attempt, counted->duplicates, counted->unplaced, counted->refused,
                               counted->restarts,    counted->restores,   counted->resumes};
    int zeros = 0;
    printf("messages and restarts:");
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        printf("%s %s %llu", i ? "," : "", names[i], (unsigned long long)counts[i]);
        zeros += counts[i] == 0;
    }
    printf("\n");
    return zeros;
}

static int print_attempts(const struct coverage *counted) {
    static const char *const names[] = {"restarted",
                                        "on fewer ranks",
                                        "on more ranks",
                                        "hosts left out",
                                        "hosts forgiven",
                                        "hosts silent",
                                        "from the checkpoint before",
                                        "from step 0 again",
                                        "on other data",
                                        "which begin again",
                                        "runs that ended on other data",
                                        "restarts used up",
                                        "backed off",
                                        "sequences passed over",
                                        "coordinator crashed while clearing",
                                        "while preparing",
                                        "while backing off"};
    const uint64_t counts[] = {counted->attempts,
                               counted->fewer_ranks,
                               counted->more_ranks,
                               counted->hosts_left_out,
                               counted->hosts_forgiven,
                               counted->hosts_silent,
                               counted->from_the_one_before,
                               counted->from_nothing,
                               counted->generations_begun,
                               counted->generations_begun_again,
                               counted->generations_left,
                               counted->restarts_used_up,
                               counted->backed_off,
                               counted->passed_over,
                               counted->crashes[LS_PHASE_CLEARING],
                               counted->crashes[LS_PHASE_PREPARING],
                               counted->crashes[LS_PHASE_BACKOFF]};
    int zeros = 0;
    printf("attempts:");
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        printf("%s %s %llu", i ? "," : "", names[i], (unsigned long long)counts[i]);
        zeros += counts[i] == 0;
    }
    printf("\n");
    return zeros;
}

/* ---- any message at all: nothing that a worker says may break the core ---- */

static int64_t odd_number(struct world *w) {
    static const int64_t extremes[] = {INT64_MIN, INT64_MIN + 1, -1, 0, INT32_MAX, INT64_MAX - 1, INT64_MAX};
    return chance(w, 80) ? between(w, 0, 12) : extremes[below(w, (int64_t)(sizeof extremes / sizeof *extremes))];
}

static void any_event(struct world *w, struct ls_core_event *event, struct ls_core_rank *rank) {
    *event = (struct ls_core_event){.kind = (enum ls_core_event_kind)below(w, LS_EVENT_KINDS),
                                    .connection = (ls_connection)between(w, 1, 4),
                                    .attempt = (uint32_t)between(w, 1, 3) / 2};
    *rank = (struct ls_core_rank){.rank = (int32_t)between(w, -1, 2), .pid = chance(w, 95)};
    switch (event->kind) {
    case LS_EVENT_HELLO:
        event->hello = (struct ls_core_hello){.attempt = event->attempt,
                                              .world_size = chance(w, 95) ? 2 : (int32_t)odd_number(w),
                                              .ranks = rank,
                                              .ranks_count = chance(w, 95),
                                              .started = chance(w, 80),
                                              .steps_done = odd_number(w),
                                              .granted_step = odd_number(w)};
        break;
    case LS_EVENT_STEP_DONE: {
        int64_t step = odd_number(w);
        event->step =
            (struct ls_core_step){.step = step,
                                  .end_position = chance(w, 95) && step > 0 && step < 99 ? step * 3 : odd_number(w),
                                  .sequences = chance(w, 95) ? 3 : odd_number(w),
                                  .digest = {(uint64_t)step, (uint64_t)chance(w, 2)}};
        break;
    }
    case LS_EVENT_VALIDATION: event->validation.step = odd_number(w); break;
    case LS_EVENT_SAVING:
        event->saving.step = odd_number(w);
        event->saving.order = (uint64_t)odd_number(w);
        event->saving.stop = chance(w, 3);
        break;
    case LS_EVENT_PART:
        event->part.step = odd_number(w);
        event->part.rank = (int32_t)odd_number(w);
        break;
    case LS_EVENT_SAVE_FAILED:
        event->kind = chance(w, 95) ? LS_EVENT_TICK : LS_EVENT_SAVE_FAILED;
        event->save_failed.rank = (int32_t)odd_number(w);
        event->save_failed.text = "";
        break;
    case LS_EVENT_FAULT:
        event->fault.rank = (int32_t)odd_number(w);
        event->fault.code = chance(w, 95) ? LS_COMMUNICATION : (enum ls_code)below(w, 200);
        event->fault.text = "";
        event->attempt = chance(w, 5);
        break;
    case LS_EVENT_RANK_LOST:
        event->rank_lost.rank = (int32_t)odd_number(w);
        event->rank_lost.how = "";
        event->attempt = chance(w, 5);
        break;
    case LS_EVENT_NODE_LOST:
        event->node_lost.host = event->node_lost.how = "";
        event->attempt = chance(w, 5);
        break;
    case LS_EVENT_STALLED:
        event->stalled.rank = (int32_t)odd_number(w);
        event->stalled.text = "";
        event->attempt = chance(w, 5);
        break;
    case LS_EVENT_REPLICA_DIFFERS:
        event->replica_differs.rank = (int32_t)odd_number(w);
        event->replica_differs.good_step = odd_number(w);
        event->attempt = chance(w, 5);
        break;
    case LS_EVENT_LAUNCHER_EXITED:
        event->launcher_exited.code = (int)odd_number(w);
        event->launcher_exited.rank = (int32_t)odd_number(w);
        event->launcher_exited.killed_by = (int)odd_number(w);
        event->attempt = chance(w, 5);
        break;
    case LS_EVENT_COMMIT_DONE:
    case LS_EVENT_COMMIT_FAILED:
        event->commit.step = odd_number(w);
        event->commit.text = "";
        break;
    case LS_EVENT_PREPARED:
        event->prepared.data_generation = below(w, 3);
        event->prepared.slots = event->prepared.slots_all = (int32_t)between(w, -1, 3);
        event->attempt = chance(w, 50);
        break;
    case LS_EVENT_PREPARE_FAILED:
        event->prepare_failed.code = LS_CHECKPOINT;
        event->prepare_failed.text = "";
        event->attempt = chance(w, 5);
        break;
    case LS_EVENT_JOURNAL_FAILED: event->kind = LS_EVENT_TICK; break;
    case LS_EVENT_REQUEST: event->request = chance(w, 90) ? LS_REQUEST_CHECKPOINT : LS_REQUEST_STOP; break;
    case LS_EVENT_SIGNAL: event->signal = chance(w, 97) ? LS_SIGNAL_SAVE : LS_SIGNAL_STOP; break;
    default: break;
    }
}

/* Feeds events that nobody would send to a core of two ranks; its assertions and the order of its steps must hold. */
static bool chaos(uint64_t seed, uint64_t *events) {
    static struct ls_core_actions actions;
    struct world w = {.random = seed};
    struct ls_core_options options = {.world_size = 2,
                                      .attempt = 1,
                                      .generation = 1,
                                      .global_batch = 3,
                                      .steps = 10,
                                      .span_steps = 3,
                                      .checkpoint_every = 4,
                                      .checkpoints_keep = 1,
                                      .start_timeout_ms = 50000,
                                      .rejoin_timeout_ms = 50000,
                                      .cause_grace_ms = 50000,
                                      .max_restarts = (int32_t)(seed % 3),
                                      .host_losses_max = 1,
                                      .min_ranks = 1,
                                      .nonfinite = LS_NONFINITE_ROLLBACK,
                                      .mismatch = LS_MISMATCH_ROLLBACK,
                                      .skips_max = 5,
                                      .backoff_ms = 20,
                                      .backoff_max_ms = 40,
                                      .clear_timeout_ms = 3000};
    struct ls_core *core;
    struct ls_error error;
    if (ls_core_create(&options, &core, &error)) return false;
    uint64_t sequence = 0;
    int64_t commit = 0, now_ms = 0;
    bool ended = false, held = true;
    for (int i = 0; i < 600 && !ended && held; i++, (*events)++) {
        struct ls_core_event event;
        struct ls_core_rank rank;
        any_event(&w, &event, &rank);
        if (event.kind == LS_EVENT_JOURNALED) event.journaled.sequence = sequence;
        if (event.kind == LS_EVENT_COMMIT_DONE && chance(&w, 80)) event.commit.step = commit;
        if (event.kind == LS_EVENT_TICK) event.tick.now_ms = now_ms += 10;
        /* Later attempts are spoken of as often as the first. */
        struct ls_core_status now;
        ls_core_read_status(core, &now);
        if (event.attempt == 1) event.attempt = now.attempt;
        ls_core_handle(core, &event, &actions);
        for (int k = 0; k < actions.count; k++) {
            held &= !ended;
            if (actions.list[k].kind == LS_ACTION_JOURNAL) sequence = actions.list[k].record.sequence;
            if (actions.list[k].kind == LS_ACTION_COMMIT) commit = actions.list[k].commit.step;
            ended |= actions.list[k].kind == LS_ACTION_END;
        }
        struct ls_core_status status;
        ls_core_read_status(core, &status);
        held &= status.journaled_step <= status.step && status.step <= status.granted_step &&
                status.granted_step <= status.end_step;
    }
    ls_core_destroy(core);
    return held;
}

/* ---- promises ---- */

static struct coverage coverage;
static uint64_t seeds;

static void every_invariant_holds_in_every_run(void **state) {
    (void)state;
    char violation[1024];
    int failed = 0;
    for (uint64_t seed = 1; seed <= seeds && failed < 10; seed++)
        if (!world_run(seed, false, &coverage, violation)) {
            printf("%s\n    again with everything printed: LS_SIM_SEED=%llu\n", violation, (unsigned long long)seed);
            failed++;
        }
    printf("%llu seeds, %d failed\n", (unsigned long long)seeds, failed);
    assert_int_equal(failed, 0);
}

static void every_event_action_fault_transition_and_exit_code_is_met(void **state) {
    (void)state;
    int zeros = print_counts("events", coverage.events, LS_EVENT_KINDS, event_name);
    zeros += print_counts("actions", coverage.actions, LS_ACTION_KINDS, action_name);
    zeros += print_counts("records", coverage.records, LS_RECORD_KINDS, record_name);
    zeros += print_counts("faults", coverage.faults, FAULT_COUNT, fault_kind_name);
    zeros += print_transitions(&coverage);
    zeros += print_exits(&coverage);
    zeros += print_others(&coverage);
    zeros += print_attempts(&coverage);
    if (seeds < 1000) {
        printf("skip - counts of %llu seeds say little\n", (unsigned long long)seeds);
        return;
    }
    assert_int_equal(zeros, 0);
}

static void no_message_at_all_breaks_the_core(void **state) {
    (void)state;
    uint64_t events = 0;
    for (uint64_t seed = 1; seed <= seeds / 5 + 1; seed++)
        if (!chaos(seed, &events))
            fail_msg("seed %llu: steps out of order, or something after the end", (unsigned long long)seed);
    printf("%llu events that nobody would send\n", (unsigned long long)events);
}

static void a_seed_reproduces_its_run(void **state) {
    (void)state;
    static struct coverage first, second;
    char violation[1024];
    for (uint64_t seed = 1; seed <= 100; seed++) world_run(seed, false, &first, violation);
    for (uint64_t seed = 1; seed <= 100; seed++) world_run(seed, false, &second, violation);
    assert_memory_equal(&first, &second, sizeof first);
}

int main(void) {
    const char *one = getenv("LS_SIM_SEED"), *many = getenv("LS_SIM_SEEDS");
    if (one) {
        char violation[1024];
        bool held = world_run(strtoull(one, NULL, 10), true, &coverage, violation);
        printf("%s\n", held ? "every invariant held" : violation);
        return !held;
    }
    seeds = many ? strtoull(many, NULL, 10) : 10000;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_invariant_holds_in_every_run),
        cmocka_unit_test(every_event_action_fault_transition_and_exit_code_is_met),
        cmocka_unit_test(no_message_at_all_breaks_the_core),
        cmocka_unit_test(a_seed_reproduces_its_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
