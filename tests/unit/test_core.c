/* What the coordinator's core promises, one promise a test. tests/sim tries the combinations. */
#include "coordinator/core.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { VOICE = 11, OTHER = 12, OPERATOR = 90 };

static struct ls_core *core;
static struct ls_core_actions done;
static uint64_t journal_sequence; /* of the last record asked for */

static struct ls_core_options usual(void) {
    struct ls_core_options options = {.world_size = 2,
                                      .attempt = 3,
                                      .generation = 5,
                                      .global_batch = 10,
                                      .steps = 20,
                                      .span_steps = 4,
                                      .checkpoint_every = 0,
                                      .protocol = 1,
                                      .launched = true,
                                      .start_timeout_ms = 60000,
                                      .rejoin_timeout_ms = 30000,
                                      .cause_grace_ms = 1000};
    strcpy(options.version, "1.0");
    strcpy(options.config_digest, "c0");
    strcpy(options.dataset_digest, "d0");
    return options;
}

static int forget(void **state) {
    (void)state;
    ls_core_destroy(core);
    core = NULL;
    journal_sequence = 0;
    return 0;
}

static void create(struct ls_core_options options) {
    struct ls_error error;
    assert_int_equal(ls_core_create(&options, &core, &error), LS_OK);
}

static void happen(const struct ls_core_event *event) {
    ls_core_handle(core, event, &done);
    for (int i = 0; i < done.count; i++)
        if (done.list[i].kind == LS_ACTION_JOURNAL) journal_sequence = done.list[i].record.sequence;
}

/* The n-th action of a kind that the last event asked for, NULL if there are fewer. */
static const struct ls_core_action *nth(enum ls_core_action_kind kind, int n) {
    for (int i = 0; i < done.count; i++)
        if (done.list[i].kind == kind && n-- == 0) return &done.list[i];
    return NULL;
}

static const struct ls_core_action *asked(enum ls_core_action_kind kind) {
    return nth(kind, 0);
}

static const struct ls_core_record *recorded(enum ls_core_record_kind kind) {
    for (int i = 0; i < done.count; i++)
        if (done.list[i].kind == LS_ACTION_JOURNAL && done.list[i].record.kind == kind) return &done.list[i].record;
    return NULL;
}

static struct ls_core_rank rank_of(int32_t rank) {
    struct ls_core_rank described = {.rank = rank, .pid = 100 + rank};
    snprintf(described.host, sizeof described.host, "node%d", rank);
    strcpy(described.config_digest, "c0");
    strcpy(described.dataset_digest, "d0");
    strcpy(described.numerics, "avx2");
    return described;
}

static struct ls_core_event hello_of(ls_connection connection, const struct ls_core_rank *rank) {
    struct ls_core_event event = {.kind = LS_EVENT_HELLO, .connection = connection};
    event.hello = (struct ls_core_hello){.attempt = 3, .protocol = 1, .world_size = 2, .ranks = rank, .ranks_count = 1};
    strcpy(event.hello.version, "1.0");
    return event;
}

static void join(ls_connection connection, int32_t rank) {
    struct ls_core_rank described = rank_of(rank);
    struct ls_core_event event = hello_of(connection, &described);
    happen(&event);
}

static void join_both(void) {
    join(OTHER, 1);
    join(VOICE, 0);
}

static struct ls_core_event step_done(int64_t step) {
    struct ls_core_event event = {.kind = LS_EVENT_STEP_DONE, .connection = VOICE, .attempt = 3};
    event.step = (struct ls_core_step){
        .step = step, .position = (step - 1) * 10, .sequences = 10, .digest = {(uint64_t)step * 77, 5}};
    return event;
}

static void do_steps(int64_t from, int64_t to) {
    for (int64_t step = from; step <= to; step++) {
        struct ls_core_event event = step_done(step);
        happen(&event);
    }
}

static void sync_journal(void) {
    happen(&(struct ls_core_event){.kind = LS_EVENT_JOURNALED, .journaled = {.sequence = journal_sequence}});
}

static void tick(int64_t now_ms) {
    happen(&(struct ls_core_event){.kind = LS_EVENT_TICK, .tick = {.now_ms = now_ms}});
}

static void saving(int64_t step, uint64_t order, bool stop) {
    happen(&(struct ls_core_event){.kind = LS_EVENT_SAVING,
                                   .connection = VOICE,
                                   .attempt = 3,
                                   .saving = {.step = step, .order = order, .stop = stop}});
}

static void part(ls_connection connection, int64_t step, int32_t rank) {
    happen(&(struct ls_core_event){
        .kind = LS_EVENT_PART, .connection = connection, .attempt = 3, .part = {.step = step, .rank = rank}});
}

static void commit_done(int64_t step) {
    happen(&(struct ls_core_event){.kind = LS_EVENT_COMMIT_DONE, .attempt = 3, .commit = {.step = step}});
}

static void send_signal(enum ls_core_signal signal) {
    happen(&(struct ls_core_event){.kind = LS_EVENT_SIGNAL, .signal = signal});
}

static void request(ls_connection connection, enum ls_core_request what) {
    happen(&(struct ls_core_event){.kind = LS_EVENT_REQUEST, .connection = connection, .request = what});
}

static void lose_rank(int32_t rank) {
    happen(&(struct ls_core_event){
        .kind = LS_EVENT_RANK_LOST, .attempt = 3, .rank_lost = {.rank = rank, .how = "killed by signal 9"}});
}

static void fault(int32_t rank, enum ls_code code) {
    happen(&(struct ls_core_event){.kind = LS_EVENT_FAULT,
                                   .connection = OTHER,
                                   .attempt = 3,
                                   .fault = {.rank = rank, .step = 7, .code = code, .text = "loss is nan"}});
}

static void assert_ended(enum ls_code code, const char *words) {
    const struct ls_core_action *end = asked(LS_ACTION_END);
    assert_non_null(end);
    assert_int_equal(end->message.code, code);
    assert_non_null(strstr(end->message.text, words));
    assert_ptr_equal(end, &done.list[done.count - 1]);
}

static void assert_refused(enum ls_code code, const char *words) {
    const struct ls_core_action *refusal = asked(LS_ACTION_REFUSE);
    assert_non_null(refusal);
    assert_null(asked(LS_ACTION_WELCOME));
    assert_int_equal(refusal->message.code, code);
    if (!strstr(refusal->message.text, words)) fail_msg("'%s' is not in: %s", words, refusal->message.text);
}

/* ---- joining ---- */

static void the_first_span_is_granted_when_the_last_rank_joins(void **state) {
    (void)state;
    create(usual());
    join(VOICE, 0);
    assert_non_null(asked(LS_ACTION_WELCOME));
    assert_null(asked(LS_ACTION_GRANT));
    join(OTHER, 1);
    assert_int_equal(recorded(LS_RECORD_JOINED)->joined.world_size, 2);
    const struct ls_core_action *grant = asked(LS_ACTION_GRANT);
    assert_int_equal(grant->connection, VOICE);
    assert_int_equal(grant->grant.from_step, 0);
    assert_int_equal(grant->grant.to_step, 4);
    assert_int_equal(grant->grant.to_position, 40);
}

static void the_welcome_tells_where_the_run_starts_and_ends(void **state) {
    (void)state;
    struct ls_core_options options = usual();
    options.steps = 0;
    options.end_position = 47; /* from 30: a full step of 10 and one of 7 */
    options.start_step = 6;
    options.start_position = 30;
    create(options);
    join(VOICE, 0);
    const struct ls_core_action *welcome = asked(LS_ACTION_WELCOME);
    assert_int_equal(welcome->welcome.start_step, 6);
    assert_int_equal(welcome->welcome.start_position, 30);
    assert_int_equal(welcome->welcome.end_step, 8);
    assert_int_equal(welcome->welcome.end_position, 47);
    join(OTHER, 1);
    assert_int_equal(asked(LS_ACTION_GRANT)->grant.to_step, 8);
    assert_int_equal(asked(LS_ACTION_GRANT)->grant.to_position, 47);
}

static void another_version_is_refused_naming_rank_and_host(void **state) {
    (void)state;
    create(usual());
    struct ls_core_rank rank = rank_of(1);
    struct ls_core_event event = hello_of(OTHER, &rank);
    strcpy(event.hello.version, "0.9");
    happen(&event);
    assert_refused(LS_USAGE, "rank 1 on node1 runs lockstep-worker 0.9 (protocol 1), the coordinator is 1.0");
    assert_ended(LS_USAGE, "rank 1 on node1");
}

static void another_configuration_is_refused_naming_rank_and_host(void **state) {
    (void)state;
    create(usual());
    struct ls_core_rank rank = rank_of(1);
    strcpy(rank.config_digest, "c1");
    struct ls_core_event event = hello_of(OTHER, &rank);
    happen(&event);
    assert_refused(LS_USAGE, "rank 1 on node1 has a configuration with digest c1, the run's is c0");
}

static void another_dataset_is_refused_as_data(void **state) {
    (void)state;
    create(usual());
    struct ls_core_rank rank = rank_of(1);
    strcpy(rank.dataset_digest, "d1");
    struct ls_core_event event = hello_of(OTHER, &rank);
    happen(&event);
    assert_refused(LS_DATA, "rank 1 on node1 sees a dataset with digest d1");
}

static void mixed_numerics_are_refused_only_where_they_matter(void **state) {
    (void)state;
    struct ls_core_options options = usual();
    for (int matters = 0; matters < 2; matters++) {
        options.numerics_must_match = matters;
        create(options);
        join(VOICE, 0);
        struct ls_core_rank rank = rank_of(1);
        strcpy(rank.numerics, "avx512");
        struct ls_core_event event = hello_of(OTHER, &rank);
        happen(&event);
        if (matters)
            assert_refused(LS_USAGE, "rank 1 on node1 computes as 'avx512', the ranks before it as 'avx2'");
        else
            assert_non_null(asked(LS_ACTION_WELCOME));
        forget(NULL);
    }
}

static void a_second_process_for_a_rank_is_refused_and_harms_nothing(void **state) {
    (void)state;
    create(usual());
    join_both();
    struct ls_core_rank rank = rank_of(0);
    rank.pid = 999;
    struct ls_core_event event = hello_of(77, &rank);
    happen(&event);
    assert_refused(LS_COMMUNICATION, "rank 0 is already here: process 100 on node0");
    assert_null(asked(LS_ACTION_END));
    do_steps(1, 1);
    assert_non_null(recorded(LS_RECORD_STEP));
}

static void workers_of_an_old_attempt_are_refused_and_not_heard(void **state) {
    (void)state;
    create(usual());
    join_both();
    struct ls_core_rank rank = rank_of(0);
    struct ls_core_event event = hello_of(77, &rank);
    event.hello.attempt = 2;
    happen(&event);
    assert_refused(LS_COMMUNICATION, "belongs to attempt 2, the run is at attempt 3");
    event = step_done(1);
    event.attempt = 2;
    happen(&event);
    assert_int_equal(done.count, 0);
    struct ls_core_status status;
    ls_core_read_status(core, &status);
    assert_int_equal(status.old_attempt, 2);
    assert_int_equal(status.step, 0);
}

static void workers_by_hand_bring_the_world_size_and_learn_the_attempt(void **state) {
    (void)state;
    struct ls_core_options options = usual();
    options.world_size = 0;
    options.launched = false;
    create(options);
    struct ls_core_rank rank = rank_of(1);
    struct ls_core_event event = hello_of(OTHER, &rank);
    event.hello.attempt = 0;
    happen(&event);
    assert_int_equal(asked(LS_ACTION_WELCOME)->attempt, 3);
    assert_int_equal(asked(LS_ACTION_WELCOME)->welcome.world_size, 2);
    rank = rank_of(0);
    event = hello_of(VOICE, &rank);
    event.hello.world_size = 4;
    happen(&event);
    assert_refused(LS_USAGE, "says there are 4 ranks, 2 are expected");
}

static void ranks_that_never_join_are_named(void **state) {
    (void)state;
    struct ls_core_options options = usual();
    options.world_size = 6;
    create(options);
    tick(5000);
    struct ls_core_rank ranks[2] = {rank_of(0), rank_of(3)};
    struct ls_core_event event = hello_of(VOICE, ranks);
    event.hello.ranks_count = 2;
    event.hello.world_size = 6;
    happen(&event);
    tick(64999);
    assert_null(asked(LS_ACTION_END));
    tick(65000);
    assert_ended(LS_COMMUNICATION, "4 of 6 ranks have not joined within 60 s: 1 to 2, 4 to 5.");
}

static void a_rank_that_stays_away_is_named_with_its_host(void **state) {
    (void)state;
    create(usual());
    join_both();
    tick(1000);
    happen(&(struct ls_core_event){.kind = LS_EVENT_CONNECTION_LOST, .connection = OTHER});
    tick(2000);
    tick(31999);
    assert_null(asked(LS_ACTION_END));
    tick(32000);
    assert_ended(LS_COMMUNICATION, "1 of 2 ranks have been away for 30 s: 1 on node1;");
}

static void a_rank_that_comes_back_in_time_is_no_loss(void **state) {
    (void)state;
    create(usual());
    join_both();
    tick(1000);
    happen(&(struct ls_core_event){.kind = LS_EVENT_CONNECTION_LOST, .connection = OTHER});
    tick(2000);
    join(OTHER + 1, 1);
    tick(40000);
    assert_int_equal(done.count, 0);
}

/* ---- spans and the ledger ---- */

static void spans_are_granted_ahead_without_waiting_for_the_disk(void **state) {
    (void)state;
    create(usual());
    join_both();
    do_steps(1, 1);
    assert_null(asked(LS_ACTION_GRANT)); /* 3 of 4 left */
    do_steps(2, 2);
    const struct ls_core_action *grant = asked(LS_ACTION_GRANT); /* half is left, nothing is on disk */
    assert_int_equal(grant->grant.from_step, 4);
    assert_int_equal(grant->grant.to_step, 8);
    assert_int_equal(grant->grant.from_position, 40);
    assert_null(asked(LS_ACTION_ACK));
}

static void a_step_is_acknowledged_once_it_is_on_disk(void **state) {
    (void)state;
    create(usual());
    join_both();
    do_steps(1, 1);
    uint64_t first = journal_sequence;
    do_steps(2, 2);
    happen(&(struct ls_core_event){.kind = LS_EVENT_JOURNALED, .journaled = {.sequence = first}});
    assert_int_equal(asked(LS_ACTION_ACK)->ack.step, 1);
    sync_journal();
    assert_int_equal(asked(LS_ACTION_ACK)->ack.step, 2);
    assert_int_equal(asked(LS_ACTION_ACK)->connection, VOICE);
}

static void a_slow_disk_stops_the_grants_at_the_window_only(void **state) {
    (void)state;
    struct ls_core_options options = usual();
    options.window_steps = 6;
    create(options);
    join_both();
    do_steps(1, 2);
    assert_int_equal(asked(LS_ACTION_GRANT)->grant.to_step, 6);
    do_steps(3, 6);
    assert_null(asked(LS_ACTION_GRANT));
    sync_journal();
    assert_int_equal(asked(LS_ACTION_GRANT)->grant.to_step, 10);
}

static void metrics_travel_with_their_step(void **state) {
    (void)state;
    create(usual());
    join_both();
    struct ls_core_event event = step_done(1);
    event.step.loss_sum = 2.5;
    event.payload = "metrics";
    happen(&event);
    const struct ls_core_record *record = recorded(LS_RECORD_STEP);
    assert_ptr_equal(record->payload, event.payload);
    assert_true(record->step.loss_sum == 2.5);
}

static void the_chain_is_that_of_every_digest_in_order(void **state) {
    (void)state;
    create(usual());
    join_both();
    do_steps(1, 3);
    struct ls_digest chain = {0, 0};
    for (uint64_t step = 1; step <= 3; step++) chain = ls_digest_chain(chain, step, (struct ls_digest){step * 77, 5});
    assert_true(recorded(LS_RECORD_STEP)->step.chain.low == chain.low);
    assert_true(recorded(LS_RECORD_STEP)->step.chain.high == chain.high);
}

static void a_step_sent_twice_is_booked_once(void **state) {
    (void)state;
    create(usual());
    join_both();
    do_steps(1, 2);
    do_steps(1, 2);
    assert_int_equal(done.count, 0);
}

static void the_same_step_with_other_samples_ends_the_run_as_data(void **state) {
    (void)state;
    create(usual());
    join_both();
    do_steps(1, 2);
    struct ls_core_event event = step_done(1);
    event.step.digest.high = 6;
    happen(&event);
    assert_non_null(asked(LS_ACTION_KILL));
    assert_ended(LS_DATA, "reported step 1 twice");
}

static void a_missing_report_is_asked_for(void **state) {
    (void)state;
    create(usual());
    join_both();
    do_steps(2, 2);
    assert_int_equal(asked(LS_ACTION_REJOIN)->connection, VOICE);
    assert_null(recorded(LS_RECORD_STEP));
}

static void a_step_at_another_position_ends_the_run_as_data(void **state) {
    (void)state;
    create(usual());
    join_both();
    struct ls_core_event event = step_done(1);
    event.step.position = 1;
    happen(&event);
    assert_ended(LS_DATA, "on 10 sequences from position 1, granted were 10 from position 0");
}

static void a_lost_grant_is_granted_again_with_the_same_meaning(void **state) {
    (void)state;
    create(usual());
    join_both();
    do_steps(1, 2); /* grants 4 to 8, which gets lost */
    struct ls_core_rank rank = rank_of(0);
    struct ls_core_event event = hello_of(VOICE + 100, &rank);
    event.hello.started = true;
    event.hello.steps_done = 3;
    event.hello.granted_step = 4;
    happen(&event);
    const struct ls_core_action *grant = asked(LS_ACTION_GRANT);
    assert_int_equal(grant->connection, VOICE + 100);
    assert_int_equal(grant->grant.from_step, 4);
    assert_int_equal(grant->grant.to_step, 8);
    assert_int_equal(grant->grant.from_position, 40);
}

static void a_hello_that_was_overtaken_changes_nothing(void **state) {
    (void)state;
    create(usual());
    join_both();
    do_steps(1, 3);
    struct ls_core_rank rank = rank_of(0);
    struct ls_core_event event = hello_of(VOICE + 100, &rank);
    event.hello.started = true;
    event.hello.steps_done = 1;
    event.hello.granted_step = 4;
    happen(&event);
    assert_int_equal(done.count, 0);
    assert_false(ls_core_is_joined(core, VOICE + 100));
}

/* ---- checkpoints ---- */

static void a_checkpoint_is_committed_when_every_part_and_step_is_safe(void **state) {
    (void)state;
    create(usual());
    join_both();
    do_steps(1, 2);
    part(OTHER, 2, 1); /* may come before rank 0's word */
    assert_int_equal(asked(LS_ACTION_KEEP_PART)->part.rank, 1);
    saving(2, 0, false);
    part(OTHER, 2, 1);
    assert_int_equal(done.count, 0); /* not counted twice */
    part(VOICE, 2, 0);
    assert_null(asked(LS_ACTION_COMMIT)); /* steps 1 and 2 are not on disk */
    sync_journal();
    const struct ls_core_action *commit = asked(LS_ACTION_COMMIT);
    assert_int_equal(commit->commit.step, 2);
    assert_int_equal(commit->commit.position, 20);
    commit_done(2);
    assert_non_null(recorded(LS_RECORD_COMMIT));
    assert_int_equal(asked(LS_ACTION_COMMITTED)->committed.step, 2);
    assert_int_equal(asked(LS_ACTION_COMMITTED)->connection, 0);
}

static void the_chain_of_a_checkpoint_is_that_of_its_step(void **state) {
    (void)state;
    create(usual());
    join_both();
    do_steps(1, 2);
    struct ls_digest chain = recorded(LS_RECORD_STEP)->step.chain;
    saving(2, 0, false);
    do_steps(3, 4); /* training goes on while parts are written */
    sync_journal();
    part(VOICE, 2, 0);
    part(OTHER, 2, 1);
    assert_true(asked(LS_ACTION_COMMIT)->commit.chain.low == chain.low);
    assert_true(asked(LS_ACTION_COMMIT)->commit.chain.high == chain.high);
}

static void a_lost_committed_is_told_again(void **state) {
    (void)state;
    struct ls_core_options options = usual();
    options.restarted = true;
    options.checkpoints_count = 1;
    options.checkpoints[0] = 5;
    create(options);
    join(OTHER, 1);
    part(OTHER, 5, 1);
    assert_int_equal(asked(LS_ACTION_COMMITTED)->connection, OTHER);
    assert_int_equal(asked(LS_ACTION_COMMITTED)->committed.step, 5);
}

static void old_checkpoints_are_pruned_and_the_newest_kept(void **state) {
    (void)state;
    struct ls_core_options options = usual();
    options.checkpoints_keep = 2;
    create(options);
    join_both();
    for (int64_t step = 1; step <= 3; step++) {
        do_steps(step, step);
        saving(step, 0, false);
        part(VOICE, step, 0);
        part(OTHER, step, 1);
        sync_journal();
        commit_done(step);
        if (step < 3) assert_null(asked(LS_ACTION_PRUNE));
    }
    assert_int_equal(asked(LS_ACTION_PRUNE)->prune.step, 1);
    assert_null(nth(LS_ACTION_PRUNE, 1));
}

static void a_full_disk_ends_the_run_as_checkpoint(void **state) {
    (void)state;
    create(usual());
    join_both();
    do_steps(1, 2);
    saving(2, 0, false);
    happen(&(struct ls_core_event){.kind = LS_EVENT_SAVE_FAILED,
                                   .connection = OTHER,
                                   .attempt = 3,
                                   .save_failed = {.step = 2, .rank = 1, .text = "No space left on device"}});
    assert_ended(LS_CHECKPOINT, "rank 1 on node1 could not write its part of step 2 (No space left on device)");
}

static void the_run_is_done_when_its_last_checkpoint_is_committed(void **state) {
    (void)state;
    struct ls_core_options options = usual();
    options.steps = 2;
    create(options);
    join_both();
    do_steps(1, 2);
    sync_journal();
    assert_null(asked(LS_ACTION_END));
    saving(2, 0, false);
    part(VOICE, 2, 0);
    part(OTHER, 2, 1);
    assert_null(asked(LS_ACTION_END));
    commit_done(2);
    assert_ended(LS_OK, "done: 2 steps, 20 sequences");
    assert_null(asked(LS_ACTION_KILL));
    tick(1);
    assert_int_equal(done.count, 0); /* nothing comes after the end */
}

static void a_complete_run_ends_without_workers(void **state) {
    (void)state;
    struct ls_core_options options = usual();
    options.start_step = 20;
    options.start_position = 200;
    create(options);
    tick(0);
    assert_ended(LS_OK, "done");
}

/* ---- stopping ---- */

static void a_stop_is_ordered_once_a_crash_cannot_forget_it(void **state) {
    (void)state;
    create(usual());
    join_both();
    do_steps(1, 1);
    send_signal(LS_SIGNAL_REQUEUE);
    assert_int_equal(recorded(LS_RECORD_STOP)->stop.code, LS_REQUEUE);
    assert_null(asked(LS_ACTION_ORDER));
    sync_journal();
    assert_true(asked(LS_ACTION_ORDER)->order.stop);
    uint64_t order = asked(LS_ACTION_ORDER)->order.id;
    do_steps(2, 2);
    saving(2, order, true);
    assert_null(asked(LS_ACTION_GRANT));
    part(VOICE, 2, 0);
    part(OTHER, 2, 1);
    sync_journal();
    commit_done(2);
    assert_ended(LS_REQUEUE, "saved at step 2 of 20");
}

static void a_stop_before_anything_ran_ends_at_once(void **state) {
    (void)state;
    create(usual());
    join(VOICE, 0);
    send_signal(LS_SIGNAL_STOP);
    sync_journal();
    assert_ended(LS_STOPPED, "nothing to save");
}

static void a_stop_where_all_is_saved_needs_no_save(void **state) {
    (void)state;
    struct ls_core_options options = usual();
    options.start_step = 4;
    options.start_position = 40;
    create(options);
    join_both();
    send_signal(LS_SIGNAL_STOP);
    sync_journal();
    saving(4, asked(LS_ACTION_ORDER)->order.id, true);
    assert_ended(LS_STOPPED, "saved at step 4");
}

static void the_second_interrupt_ends_at_once(void **state) {
    (void)state;
    create(usual());
    join_both();
    do_steps(1, 3);
    send_signal(LS_SIGNAL_STOP);
    assert_null(asked(LS_ACTION_END));
    send_signal(LS_SIGNAL_STOP);
    assert_non_null(asked(LS_ACTION_KILL));
    assert_ended(LS_STOPPED, "stopped at once at step 3, not saved since step 0");
}

static void what_the_user_stopped_is_not_requeued(void **state) {
    (void)state;
    create(usual());
    join_both();
    send_signal(LS_SIGNAL_REQUEUE);
    request(OPERATOR, LS_REQUEST_STOP);
    assert_int_equal(recorded(LS_RECORD_STOP)->stop.code, LS_STOPPED);
    send_signal(LS_SIGNAL_REQUEUE);
    assert_int_equal(done.count, 0);
    struct ls_core_status status;
    ls_core_read_status(core, &status);
    assert_int_equal(status.stop_code, LS_STOPPED);
    assert_int_equal(status.phase, LS_PHASE_STOPPING);
}

static void an_operators_stop_is_confirmed_once_it_is_on_disk(void **state) {
    (void)state;
    create(usual());
    join_both();
    request(OPERATOR, LS_REQUEST_STOP);
    assert_null(asked(LS_ACTION_REPLY));
    sync_journal();
    assert_int_equal(asked(LS_ACTION_REPLY)->connection, OPERATOR);
    assert_int_equal(asked(LS_ACTION_REPLY)->message.code, LS_OK);
    request(OPERATOR + 1, LS_REQUEST_STOP);
    assert_int_equal(asked(LS_ACTION_REPLY)->connection, OPERATOR + 1); /* nothing new to write */
}

static void an_operators_save_is_confirmed_once_it_is_committed(void **state) {
    (void)state;
    create(usual());
    join_both();
    do_steps(1, 1);
    request(OPERATOR, LS_REQUEST_CHECKPOINT);
    uint64_t order = asked(LS_ACTION_ORDER)->order.id;
    assert_false(asked(LS_ACTION_ORDER)->order.stop);
    saving(1, order, false);
    part(VOICE, 1, 0);
    part(OTHER, 1, 1);
    sync_journal();
    assert_null(asked(LS_ACTION_REPLY));
    commit_done(1);
    assert_string_equal(asked(LS_ACTION_REPLY)->message.text, "saved: step 1");
}

static void a_save_begun_before_the_order_does_not_fulfil_it(void **state) {
    (void)state;
    create(usual());
    join_both();
    do_steps(1, 1);
    saving(1, 0, false);
    do_steps(2, 2);
    request(OPERATOR, LS_REQUEST_CHECKPOINT);
    part(VOICE, 1, 0);
    part(OTHER, 1, 1);
    sync_journal();
    commit_done(1);
    assert_non_null(asked(LS_ACTION_COMMITTED));
    assert_null(asked(LS_ACTION_REPLY));
}

static void too_many_operators_are_told_so(void **state) {
    (void)state;
    create(usual());
    join_both();
    do_steps(1, 1);
    for (int i = 0; i < LS_CORE_REQUESTS_MAX; i++) request(OPERATOR + (ls_connection)i, LS_REQUEST_CHECKPOINT);
    assert_null(asked(LS_ACTION_REPLY));
    request(OPERATOR + 50, LS_REQUEST_CHECKPOINT);
    assert_int_equal(asked(LS_ACTION_REPLY)->connection, OPERATOR + 50);
    assert_int_equal(asked(LS_ACTION_REPLY)->message.code, LS_ERROR);
}

static void an_order_is_sent_again_to_a_reconnected_rank_0(void **state) {
    (void)state;
    create(usual());
    join_both();
    send_signal(LS_SIGNAL_STOP);
    sync_journal();
    uint64_t order = asked(LS_ACTION_ORDER)->order.id;
    struct ls_core_rank rank = rank_of(0);
    struct ls_core_event event = hello_of(VOICE + 100, &rank);
    event.hello.started = true;
    event.hello.granted_step = 4;
    happen(&event);
    assert_int_equal(asked(LS_ACTION_ORDER)->order.id, order);
    assert_int_equal(asked(LS_ACTION_ORDER)->connection, VOICE + 100);
}

/* ---- losses ---- */

static void a_lost_rank_ends_the_run_naming_rank_host_and_step(void **state) {
    (void)state;
    create(usual());
    tick(0);
    join_both();
    do_steps(1, 6);
    lose_rank(1);
    assert_null(asked(LS_ACTION_END));
    tick(100);
    tick(1100);
    assert_non_null(asked(LS_ACTION_KILL));
    assert_ended(LS_COMMUNICATION, "rank 1 on node1 was lost at step 7 (killed by signal 9)");
}

static void the_lost_rank_is_blamed_before_those_who_miss_it(void **state) {
    (void)state;
    create(usual());
    tick(0);
    join_both();
    fault(0, LS_COMMUNICATION);
    lose_rank(1);
    happen(&(struct ls_core_event){.kind = LS_EVENT_LAUNCHER_EXITED, .attempt = 3, .launcher_exited = {.status = 137}});
    assert_ended(LS_COMMUNICATION, "rank 1 on node1 was lost");
    assert_null(asked(LS_ACTION_KILL)); /* nobody is left */
}

static void a_rank_that_knows_what_is_wrong_is_believed_at_once(void **state) {
    (void)state;
    create(usual());
    join_both();
    fault(1, LS_NONFINITE);
    assert_ended(LS_NONFINITE, "rank 1 on node1, step 7: loss is nan");
}

static void a_rank_cannot_declare_the_run_done(void **state) {
    (void)state;
    create(usual());
    join_both();
    fault(1, LS_OK);
    assert_ended(LS_ERROR, "rank 1");
}

static void a_launcher_that_ends_early_is_reported_after_a_moment(void **state) {
    (void)state;
    create(usual());
    tick(0);
    join_both();
    happen(&(struct ls_core_event){.kind = LS_EVENT_LAUNCHER_EXITED, .attempt = 3, .launcher_exited = {.status = 1}});
    assert_null(asked(LS_ACTION_END));
    tick(10);
    tick(1010);
    assert_ended(LS_COMMUNICATION, "the launcher ended with status 1 at step 1 of 20");
}

static void a_checkpoint_that_needs_nobody_is_not_thrown_away(void **state) {
    (void)state;
    create(usual());
    tick(0);
    join_both();
    do_steps(1, 2);
    saving(2, 0, false);
    part(VOICE, 2, 0);
    part(OTHER, 2, 1);
    lose_rank(1);
    tick(100);
    tick(5000);
    assert_null(asked(LS_ACTION_END));
    sync_journal();
    assert_non_null(asked(LS_ACTION_COMMIT));
    commit_done(2);
    assert_non_null(recorded(LS_RECORD_COMMIT));
    assert_ended(LS_COMMUNICATION, "rank 1 on node1 was lost");
    assert_ended(LS_COMMUNICATION, "goes on from step 2.");
}

/* ---- restarts of the coordinator ---- */

static struct ls_core_record step_record(int64_t step, struct ls_digest *chain) {
    struct ls_core_event event = step_done(step);
    *chain = ls_digest_chain(*chain, (uint64_t)step, event.step.digest);
    event.step.chain = *chain;
    return (struct ls_core_record){.kind = LS_RECORD_STEP, .attempt = 3, .generation = 4, .step = event.step};
}

static void a_restarted_core_goes_on_with_the_span_that_workers_hold(void **state) {
    (void)state;
    struct ls_core_options options = usual();
    options.restarted = true;
    create(options);
    struct ls_digest chain = {0, 0};
    struct ls_error error;
    for (int64_t step = 1; step <= 2; step++) {
        struct ls_core_record record = step_record(step, &chain);
        assert_int_equal(ls_core_restore(core, &record, &error), LS_OK);
    }
    struct ls_core_rank rank = rank_of(0);
    struct ls_core_event event = hello_of(VOICE, &rank);
    event.hello.started = true;
    event.hello.steps_done = 3;
    event.hello.granted_step = 8;
    happen(&event);
    assert_int_equal(asked(LS_ACTION_WELCOME)->welcome.acked_step, 2);
    assert_null(asked(LS_ACTION_GRANT));
    do_steps(3, 3);
    assert_non_null(recorded(LS_RECORD_STEP));
    do_steps(4, 6);
    assert_int_equal(asked(LS_ACTION_GRANT)->grant.from_step, 8);
}

static void a_restarted_core_remembers_the_stop(void **state) {
    (void)state;
    struct ls_core_options options = usual();
    options.restarted = true;
    create(options);
    struct ls_error error;
    struct ls_core_record stop = {.kind = LS_RECORD_STOP, .attempt = 3, .stop = {.code = LS_REQUEUE}};
    struct ls_core_record joined = {.kind = LS_RECORD_JOINED, .attempt = 3};
    assert_int_equal(ls_core_restore(core, &joined, &error), LS_OK);
    assert_int_equal(ls_core_restore(core, &stop, &error), LS_OK);
    struct ls_core_rank rank = rank_of(0);
    struct ls_core_event event = hello_of(VOICE, &rank);
    event.hello.started = true;
    event.hello.granted_step = 4;
    happen(&event);
    assert_true(asked(LS_ACTION_ORDER)->order.stop);
    assert_int_equal(asked(LS_ACTION_ORDER)->order.id >> 32, 5); /* above every id of older generations */
}

static void a_journal_with_a_gap_or_a_broken_chain_is_not_restored(void **state) {
    (void)state;
    struct ls_error error;
    struct ls_digest chain = {0, 0};
    create(usual());
    struct ls_core_record first = step_record(1, &chain), second = step_record(2, &chain);
    assert_int_equal(ls_core_restore(core, &second, &error), LS_DATA);
    assert_non_null(strstr(error.text, "expected was step 1"));
    second.attempt = 2; /* another attempt's records are passed over */
    assert_int_equal(ls_core_restore(core, &second, &error), LS_OK);
    first.step.chain.low ^= 1;
    assert_int_equal(ls_core_restore(core, &first, &error), LS_DATA);
    assert_non_null(strstr(error.text, "chain is broken at step 1"));
}

static void shapes_that_make_no_sense_are_refused(void **state) {
    (void)state;
    struct ls_error error;
    struct ls_core *none = NULL;
    struct ls_core_options options = usual();
    options.global_batch = 0;
    assert_int_equal(ls_core_create(&options, &none, &error), LS_USAGE);
    options = usual();
    options.start_step = 21;
    assert_int_equal(ls_core_create(&options, &none, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "before its start"));
    options = usual();
    options.world_size = LS_CORE_RANKS_MAX + 1;
    assert_int_equal(ls_core_create(&options, &none, &error), LS_USAGE);
    assert_null(none);
}

int main(void) {
#define PROMISE(name) cmocka_unit_test_teardown(name, forget)
    const struct CMUnitTest tests[] = {
        PROMISE(the_first_span_is_granted_when_the_last_rank_joins),
        PROMISE(the_welcome_tells_where_the_run_starts_and_ends),
        PROMISE(another_version_is_refused_naming_rank_and_host),
        PROMISE(another_configuration_is_refused_naming_rank_and_host),
        PROMISE(another_dataset_is_refused_as_data),
        PROMISE(mixed_numerics_are_refused_only_where_they_matter),
        PROMISE(a_second_process_for_a_rank_is_refused_and_harms_nothing),
        PROMISE(workers_of_an_old_attempt_are_refused_and_not_heard),
        PROMISE(workers_by_hand_bring_the_world_size_and_learn_the_attempt),
        PROMISE(ranks_that_never_join_are_named),
        PROMISE(a_rank_that_stays_away_is_named_with_its_host),
        PROMISE(a_rank_that_comes_back_in_time_is_no_loss),
        PROMISE(spans_are_granted_ahead_without_waiting_for_the_disk),
        PROMISE(a_step_is_acknowledged_once_it_is_on_disk),
        PROMISE(a_slow_disk_stops_the_grants_at_the_window_only),
        PROMISE(metrics_travel_with_their_step),
        PROMISE(the_chain_is_that_of_every_digest_in_order),
        PROMISE(a_step_sent_twice_is_booked_once),
        PROMISE(the_same_step_with_other_samples_ends_the_run_as_data),
        PROMISE(a_missing_report_is_asked_for),
        PROMISE(a_step_at_another_position_ends_the_run_as_data),
        PROMISE(a_lost_grant_is_granted_again_with_the_same_meaning),
        PROMISE(a_hello_that_was_overtaken_changes_nothing),
        PROMISE(a_checkpoint_is_committed_when_every_part_and_step_is_safe),
        PROMISE(the_chain_of_a_checkpoint_is_that_of_its_step),
        PROMISE(a_lost_committed_is_told_again),
        PROMISE(old_checkpoints_are_pruned_and_the_newest_kept),
        PROMISE(a_full_disk_ends_the_run_as_checkpoint),
        PROMISE(the_run_is_done_when_its_last_checkpoint_is_committed),
        PROMISE(a_complete_run_ends_without_workers),
        PROMISE(a_stop_is_ordered_once_a_crash_cannot_forget_it),
        PROMISE(a_stop_before_anything_ran_ends_at_once),
        PROMISE(a_stop_where_all_is_saved_needs_no_save),
        PROMISE(the_second_interrupt_ends_at_once),
        PROMISE(what_the_user_stopped_is_not_requeued),
        PROMISE(an_operators_stop_is_confirmed_once_it_is_on_disk),
        PROMISE(an_operators_save_is_confirmed_once_it_is_committed),
        PROMISE(a_save_begun_before_the_order_does_not_fulfil_it),
        PROMISE(too_many_operators_are_told_so),
        PROMISE(an_order_is_sent_again_to_a_reconnected_rank_0),
        PROMISE(a_lost_rank_ends_the_run_naming_rank_host_and_step),
        PROMISE(the_lost_rank_is_blamed_before_those_who_miss_it),
        PROMISE(a_rank_that_knows_what_is_wrong_is_believed_at_once),
        PROMISE(a_rank_cannot_declare_the_run_done),
        PROMISE(a_launcher_that_ends_early_is_reported_after_a_moment),
        PROMISE(a_checkpoint_that_needs_nobody_is_not_thrown_away),
        PROMISE(a_restarted_core_goes_on_with_the_span_that_workers_hold),
        PROMISE(a_restarted_core_remembers_the_stop),
        PROMISE(a_journal_with_a_gap_or_a_broken_chain_is_not_restored),
        PROMISE(shapes_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
