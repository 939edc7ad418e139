/* What the coordinator's core promises about stops, losses and its own restarts, one promise a test. */
#include "tests/unit/core_harness.h"

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

static void a_rank_that_has_not_joined_is_told_with_its_host(void **state) {
    (void)state;
    create(usual());
    join(VOICE, 0);
    happen(&(struct ls_core_event){
        .kind = LS_EVENT_FAULT,
        .connection = VOICE,
        .attempt = 3,
        .fault = {.rank = 1, .step = 0, .code = LS_DATA, .text = "cannot open /data", .host = "node7"}});
    assert_ended(LS_DATA, "rank 1 on node7, step 0: cannot open /data");
}

static void a_rank_cannot_declare_the_run_done(void **state) {
    (void)state;
    create(usual());
    join_both();
    fault(1, LS_OK);
    assert_ended(LS_ERROR, "rank 1");
}

static void a_launcher_that_could_start_nobody_is_quoted(void **state) {
    (void)state;
    create(usual());
    tick(0);
    happen(&(struct ls_core_event){
        .kind = LS_EVENT_LAUNCHER_EXITED,
        .attempt = 3,
        .launcher_exited = {.status = 255, .said = "ssh: no route to host", .advice = "Look for one."}});
    tick(10);
    tick(1010);
    assert_ended(LS_COMMUNICATION,
                 "no rank said why; it says 'ssh: no route to host'. Look for one. Look at logs/launcher.log");
}

static void a_launcher_that_ends_early_is_reported_after_a_moment(void **state) {
    (void)state;
    create(usual());
    tick(0);
    join_both();
    /* What it said, with every rank here, has nothing to do with its end. */
    happen(&(struct ls_core_event){.kind = LS_EVENT_LAUNCHER_EXITED,
                                   .attempt = 3,
                                   .launcher_exited = {.status = 1, .said = "a greeting", .advice = "Greet."}});
    assert_null(asked(LS_ACTION_END));
    tick(10);
    tick(1010);
    assert_ended(LS_COMMUNICATION, "the launcher ended with status 1 at step 1 of 20, no rank said why. Look");
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
    event.step.position = (step - 1) * 10;
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
    struct ls_core_options options = usual();
    options.restarted = true;
    create(options);
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
    const struct CMUnitTest tests[] = {
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
        PROMISE(a_rank_that_has_not_joined_is_told_with_its_host),
        PROMISE(a_rank_cannot_declare_the_run_done),
        PROMISE(a_launcher_that_could_start_nobody_is_quoted),
        PROMISE(a_launcher_that_ends_early_is_reported_after_a_moment),
        PROMISE(a_checkpoint_that_needs_nobody_is_not_thrown_away),
        PROMISE(a_restarted_core_goes_on_with_the_span_that_workers_hold),
        PROMISE(a_restarted_core_remembers_the_stop),
        PROMISE(a_journal_with_a_gap_or_a_broken_chain_is_not_restored),
        PROMISE(shapes_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
