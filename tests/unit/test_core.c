/* What the coordinator's core promises about joining, spans, the ledger and checkpoints, one promise a test. tests/sim
 * tries the combinations. */
#include "tests/unit/core_harness.h"

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
    static const char *const instead[] = {[LS_NUMERICS_FIXED] = "or train.reduction: fast",
                                          [LS_NUMERICS_COPIES] = "or zero.stage 1, 2 or 3 and zero.replicas 1"};
    for (int matters = LS_NUMERICS_ANY; matters <= LS_NUMERICS_COPIES; matters++) {
        options.numerics = (enum ls_core_numerics)matters;
        create(options);
        join(VOICE, 0);
        struct ls_core_rank rank = rank_of(1);
        strcpy(rank.numerics, "cpu; avx512; BLAS 3");
        struct ls_core_event event = hello_of(OTHER, &rank);
        happen(&event);
        if (matters == LS_NUMERICS_ANY) {
            assert_non_null(asked(LS_ACTION_WELCOME));
        } else {
            assert_refused(LS_USAGE, "rank 1 on node1 computes with 'avx512', the ranks before it with 'avx2'");
            assert_refused(LS_USAGE, instead[matters]);
        }
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
    event.step.end_position = 11;
    happen(&event);
    assert_ended(LS_DATA, "on 10 sequences up to position 11, granted were 10 up to position 10");
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
    assert_true(asked(LS_ACTION_KEEP_PART)->part.first); /* what the server kept before is another save's */
    saving(2, 0, false);
    part(OTHER, 2, 1);
    assert_int_equal(done.count, 0); /* not counted twice */
    part(VOICE, 2, 0);
    assert_false(asked(LS_ACTION_KEEP_PART)->part.first);
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

int main(void) {
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
