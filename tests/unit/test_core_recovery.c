/* What the coordinator's core promises between two attempts, one promise a test. tests/sim tries the combinations. */
#include "tests/unit/core_harness.h"

#include "common/quarantine.h"

/* Two ranks on two hosts that may be restarted three times. */
static struct ls_core_options restartable(void) {
    struct ls_core_options options = usual();
    options.max_restarts = 3;
    options.backoff_ms = 1000;
    options.backoff_max_ms = 3000;
    options.clear_timeout_ms = 20000;
    return options;
}

static struct ls_core_status now(void) {
    struct ls_core_status status;
    ls_core_read_status(core, &status);
    return status;
}

static void of_attempt(enum ls_core_event_kind kind) {
    happen(&(struct ls_core_event){.kind = kind, .attempt = now().attempt});
}

static void lose(int32_t rank) {
    happen(&(struct ls_core_event){
        .kind = LS_EVENT_RANK_LOST,
        .attempt = now().attempt,
        .rank_lost = {.rank = rank, .host = rank ? "node1" : "node0", .how = "killed by signal 9"}});
    if (now().phase == LS_PHASE_FAILING) of_attempt(LS_EVENT_LAUNCHER_EXITED); /* nothing better can come */
}

static void blame(int32_t rank, int64_t step, enum ls_code code) {
    happen(&(struct ls_core_event){.kind = LS_EVENT_FAULT,
                                   .attempt = now().attempt,
                                   .fault = {.rank = rank, .step = step, .code = code, .text = "its last words"}});
}

/* The checkpoint it starts from is no good. */
static void blame_checkpoint(int32_t rank, int64_t step) {
    happen(&(struct ls_core_event){
        .kind = LS_EVENT_FAULT,
        .attempt = now().attempt,
        .fault = {.rank = rank, .step = step, .code = LS_CHECKPOINT, .text = "its last words", .unloadable = true}});
}

static int further;           /* what PREPARED hands on to the record */
static int32_t further_fewer; /* what it says of fewer ranks */

static void prepared_on(int64_t step, int32_t slots, int32_t slots_all) {
    struct ls_core_event event = {.kind = LS_EVENT_PREPARED, .attempt = now().attempt, .payload = &further};
    event.prepared.step = step;
    event.prepared.position = step * 10;
    event.prepared.chain = (struct ls_digest){(uint64_t)step, 9};
    event.prepared.slots = slots;
    event.prepared.slots_all = slots_all;
    event.prepared.fewer = further_fewer;
    happen(&event);
}

/* From a loss to the LAUNCH of the next attempt, from `step`, at once. */
static void clear_and_prepare(int64_t step) {
    of_attempt(LS_EVENT_CLEARED);
    sync_journal();
    prepared_on(step, -1, -1);
    sync_journal();
}

static void join_again(void) {
    for (int32_t rank = 1; rank >= 0; rank--) {
        struct ls_core_rank described = rank_of(rank);
        struct ls_core_event event = hello_of(rank ? OTHER : VOICE, &described);
        event.hello.attempt = now().attempt;
        happen(&event);
    }
}

static void begin(struct ls_core_options options) {
    create(options);
    tick(0);
    join_both();
}

static void save(int64_t step) {
    struct ls_core_event event = {.kind = LS_EVENT_SAVING, .connection = VOICE, .attempt = now().attempt};
    event.saving.step = step;
    happen(&event);
    for (int32_t rank = 0; rank < 2; rank++)
        happen(&(struct ls_core_event){.kind = LS_EVENT_PART,
                                       .connection = rank ? OTHER : VOICE,
                                       .attempt = now().attempt,
                                       .part = {.step = step, .rank = rank}});
    sync_journal();
    happen(&(struct ls_core_event){.kind = LS_EVENT_COMMIT_DONE, .attempt = now().attempt, .commit = {.step = step}});
}

/* ---- from one attempt to the next ---- */

static void the_first_attempt_is_launched_too(void **state) {
    (void)state;
    create(restartable());
    tick(0);
    assert_int_equal(asked(LS_ACTION_LAUNCH)->attempt, 3);
    assert_int_equal(asked(LS_ACTION_LAUNCH)->launch.world_size, 2);
    tick(100);
    assert_null(asked(LS_ACTION_LAUNCH));
}

static void a_lost_rank_is_followed_by_the_next_attempt(void **state) {
    (void)state;
    begin(restartable());
    do_steps(1, 3);
    lose(1);
    const struct ls_core_record *record = recorded(LS_RECORD_FAULT);
    assert_int_equal(record->end.code, LS_COMMUNICATION);
    assert_int_equal(record->end.scope, LS_SCOPE_RANK);
    assert_int_equal(record->end.rank, 1);
    assert_string_equal(record->end.host, "node1");
    assert_int_equal(record->end.step, 3);
    assert_true(record->end.restart);
    assert_int_equal(asked(LS_ACTION_KILL)->attempt, 3);
    assert_null(asked(LS_ACTION_END));
    assert_int_equal(now().phase, LS_PHASE_CLEARING);
    sync_journal();
    assert_null(asked(LS_ACTION_PREPARE)); /* the processes may still run */
    of_attempt(LS_EVENT_CLEARED);
    assert_true(asked(LS_ACTION_PREPARE)->prepare.below_step == INT64_MAX);
    prepared_on(2, -1, -1);
    record = recorded(LS_RECORD_ATTEMPT);
    assert_int_equal(record->attempt, 4);
    assert_ptr_equal(record->payload, &further);
    assert_int_equal(record->attempt_begun.start_step, 2);
    assert_int_equal(record->attempt_begun.lost_steps, 1);
    assert_int_equal(record->attempt_begun.restarts, 1);
    assert_null(asked(LS_ACTION_LAUNCH)); /* a crash would forget the attempt */
    sync_journal();
    assert_int_equal(asked(LS_ACTION_LAUNCH)->attempt, 4);
    assert_int_equal(asked(LS_ACTION_LAUNCH)->launch.start_step, 2);
    assert_int_equal(now().phase, LS_PHASE_WAITING);
    join_again();
    const struct ls_core_action *grant = asked(LS_ACTION_GRANT);
    assert_int_equal(grant->attempt, 4);
    assert_int_equal(grant->grant.from_step, 2);
    assert_int_equal(grant->grant.from_position, 20);
}

static void nothing_is_prepared_before_the_loss_is_on_disk(void **state) {
    (void)state;
    begin(restartable());
    lose(1);
    of_attempt(LS_EVENT_CLEARED);
    assert_null(asked(LS_ACTION_PREPARE));
    sync_journal();
    assert_non_null(asked(LS_ACTION_PREPARE));
}

static void the_old_attempt_is_not_heard_in_between(void **state) {
    (void)state;
    begin(restartable());
    do_steps(1, 2);
    lose(1);
    struct ls_core_event late = step_done(3);
    happen(&late);
    assert_int_equal(done.count, 0);
    join(VOICE, 0);
    assert_refused(LS_COMMUNICATION, "belongs to attempt 3, which is over");
    assert_false(ls_core_is_joined(core, VOICE));
    clear_and_prepare(0);
    join(VOICE, 0);
    assert_refused(LS_COMMUNICATION, "belongs to attempt 3, the run is at attempt 4");
}

static void restarts_in_a_row_wait_longer_each_time(void **state) {
    (void)state;
    static const int64_t waits_ms[] = {0, 1000, 2000, 3000};
    struct ls_core_options options = restartable();
    options.max_restarts = 4;
    begin(options);
    int64_t time_ms = 0;
    for (int i = 0; i < 4; i++) {
        lose(1);
        clear_and_prepare(0);
        if (waits_ms[i]) {
            assert_int_equal(now().phase, LS_PHASE_BACKOFF);
            tick(time_ms += 10000); /* counted from here */
            assert_null(asked(LS_ACTION_LAUNCH));
            tick(time_ms + waits_ms[i] - 1);
            assert_null(asked(LS_ACTION_LAUNCH));
            tick(time_ms += waits_ms[i]);
        }
        assert_int_equal(asked(LS_ACTION_LAUNCH)->attempt, 4 + i);
        join_again();
    }
}

static void restarts_used_up_end_the_run_with_the_last_cause(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.max_restarts = 1;
    begin(options);
    lose(1);
    clear_and_prepare(0);
    join_again();
    happen(&(struct ls_core_event){.kind = LS_EVENT_STALLED,
                                   .attempt = 4,
                                   .stalled = {.rank = 0, .host = "", .text = "stall: rank 0 waits for nobody."}});
    assert_false(recorded(LS_RECORD_FAULT)->end.restart);
    assert_string_equal(recorded(LS_RECORD_FAULT)->end.host, "node0");
    assert_ended(LS_STALL, "1 restart without progress is used up (fault.max_restarts)");
}

static void a_commit_beyond_all_before_counts_restarts_anew(void **state) {
    (void)state;
    begin(restartable());
    do_steps(1, 2);
    lose(1);
    clear_and_prepare(0);
    join_again();
    assert_int_equal(now().restarts, 1);
    for (int64_t step = 1; step <= 2; step++) {
        struct ls_core_event event = step_done(step);
        event.attempt = 4;
        happen(&event);
    }
    save(2);
    assert_int_equal(now().restarts, 0);
    assert_int_equal(now().restarts_all, 1);
    lose(0);
    assert_true(recorded(LS_RECORD_FAULT)->end.restart);
}

static void what_a_restart_cannot_mend_ends_at_once(void **state) {
    (void)state;
    static const enum ls_code codes[] = {LS_MEMORY, LS_DATA, LS_USAGE, LS_ERROR, LS_NONFINITE};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        begin(restartable());
        blame(1, 1, codes[i]);
        assert_ended(codes[i], "its last words");
        forget(NULL);
    }
}

static void a_run_that_never_came_together_is_not_started_again(void **state) {
    (void)state;
    create(restartable());
    tick(0);
    of_attempt(LS_EVENT_LAUNCHER_EXITED);
    tick(10);
    tick(5000);
    assert_ended(LS_COMMUNICATION, "the launcher ended with status 0");
    forget(NULL);
    create(restartable());
    tick(0);
    tick(61000);
    assert_ended(LS_COMMUNICATION, "2 of 2 ranks have not joined within 60 s");
}

/* The launcher works, though it does not know which one it was. */
static void a_rank_that_was_killed_before_any_joined_is_started_again(void **state) {
    (void)state;
    create(restartable());
    tick(0);
    happen(&(struct ls_core_event){.kind = LS_EVENT_LAUNCHER_EXITED,
                                   .attempt = 3,
                                   .launcher_exited = {.status = 137, .code = 137, .rank = -1, .killed_by = 9}});
    tick(10);
    tick(1010);
    assert_non_null(strstr(recorded(LS_RECORD_FAULT)->end.text, "a rank was killed by signal 9 before it joined"));
    assert_int_equal(recorded(LS_RECORD_FAULT)->end.scope, LS_SCOPE_RANK);
    assert_int_equal(recorded(LS_RECORD_FAULT)->end.rank, -1);
    assert_non_null(asked(LS_ACTION_KILL));
}

/* A container that one host cannot start: told with all that is known, and tried again. */
static void a_rank_that_ended_before_any_joined_is_named_and_started_again(void **state) {
    (void)state;
    create(restartable());
    tick(0);
    happen(&(struct ls_core_event){
        .kind = LS_EVENT_LAUNCHER_EXITED,
        .attempt = 3,
        .launcher_exited = {.status = 125, .code = 125, .rank = 1, .host = "node7", .said = "no such image"}});
    tick(10);
    tick(1010);
    assert_string_equal(
        recorded(LS_RECORD_FAULT)->end.text,
        "communication: rank 1 on node7 ended with code 125 before it joined, at step 1 of 20, says the "
        "launcher, and gave no reason; it says 'no such image'. Look in logs/ at launcher.log and "
        "the end of rank-00001.log, and at what starts it (launcher.wrapper).");
    assert_int_equal(recorded(LS_RECORD_FAULT)->end.rank, 1);
    assert_string_equal(recorded(LS_RECORD_FAULT)->end.host, "node7");
    assert_non_null(asked(LS_ACTION_KILL));
}

static void a_program_that_is_not_there_is_not_started_again(void **state) {
    (void)state;
    create(restartable());
    tick(0);
    happen(&(struct ls_core_event){.kind = LS_EVENT_LAUNCHER_EXITED,
                                   .attempt = 3,
                                   .launcher_exited = {.status = 127, .code = 127, .rank = 1, .host = "node7"}});
    tick(10);
    tick(1010);
    assert_ended(LS_COMMUNICATION, "rank 1 on node7 ended with code 127");
}

static void a_launcher_that_was_killed_is_started_again(void **state) {
    (void)state;
    create(restartable());
    tick(0);
    happen(&(struct ls_core_event){.kind = LS_EVENT_LAUNCHER_EXITED, .attempt = 3, .launcher_exited = {.status = -9}});
    assert_non_null(strstr(recorded(LS_RECORD_FAULT)->end.text, "killed by signal 9"));
    assert_non_null(asked(LS_ACTION_KILL));
}

static void processes_that_cannot_be_ended_end_the_run(void **state) {
    (void)state;
    begin(restartable());
    lose(1);
    tick(1000);
    tick(20999);
    assert_null(asked(LS_ACTION_END));
    tick(21000);
    assert_ended(LS_COMMUNICATION, "could not be ended");
}

static void without_a_place_to_go_on_from_the_run_ends(void **state) {
    (void)state;
    begin(restartable());
    lose(1);
    sync_journal();
    of_attempt(LS_EVENT_CLEARED);
    happen(&(struct ls_core_event){.kind = LS_EVENT_PREPARE_FAILED,
                                   .attempt = 3,
                                   .prepare_failed = {.code = LS_CHECKPOINT, .text = "checkpoints/ is gone."}});
    assert_ended(LS_CHECKPOINT, "checkpoints/ is gone.");
}

static void workers_by_hand_are_waited_for_again(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.launched = false;
    begin(options);
    lose(1);
    clear_and_prepare(0);
    assert_int_equal(asked(LS_ACTION_LAUNCH)->attempt, 4);
    tick(1000);
    tick(61000); /* nobody came */
    assert_ended(LS_COMMUNICATION, "have not joined within 60 s");
}

/* ---- where it goes on ---- */

static void a_checkpoint_that_does_not_load_is_left_for_the_one_before(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.start_step = 6;
    options.start_position = 60;
    begin(options);
    blame_checkpoint(1, 6);
    assert_int_equal(recorded(LS_RECORD_FAULT)->end.below_step, 6);
    sync_journal();
    of_attempt(LS_EVENT_CLEARED);
    assert_int_equal(asked(LS_ACTION_PREPARE)->prepare.below_step, 6);
    prepared_on(4, -1, -1);
    assert_int_equal(recorded(LS_RECORD_ATTEMPT)->attempt_begun.lost_steps, 2);
}

static void a_save_that_fails_is_no_damaged_checkpoint(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.start_step = 6;
    begin(options);
    struct ls_core_event event = step_done(7);
    event.step.end_position = 10;
    happen(&event);
    blame_checkpoint(1, 8);
    assert_ended(LS_CHECKPOINT, "its last words");
}

/* A host that does not see the run directory, or whose storage does not answer, ends with the same code. */
static void trouble_with_files_before_the_first_step_leaves_the_checkpoint_alone(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.start_step = 6;
    options.start_position = 60;
    begin(options);
    blame(1, 6, LS_CHECKPOINT);
    assert_int_equal(recorded(LS_RECORD_FAULT)->end.below_step, 0);
    assert_ended(LS_CHECKPOINT, "its last words");
}

static void replicas_that_differ_go_back_to_where_they_were_equal(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.mismatch = LS_MISMATCH_ROLLBACK;
    begin(options);
    do_steps(1, 4);
    struct ls_core_event event = {.kind = LS_EVENT_REPLICA_DIFFERS, .attempt = 3};
    event.replica_differs.step = 4;
    event.replica_differs.good_step = 2;
    event.replica_differs.rank = 1;
    happen(&event);
    assert_int_equal(recorded(LS_RECORD_FAULT)->end.below_step, 3);
    assert_non_null(strstr(recorded(LS_RECORD_FAULT)->end.text, "that of rank 1 on node1 is wrong"));
    assert_null(recorded(LS_RECORD_QUARANTINE));
    forget(NULL);
    options.mismatch = LS_MISMATCH_STOP;
    begin(options);
    do_steps(1, 4);
    event.replica_differs.rank = -1;
    happen(&event);
    assert_ended(LS_ERROR, "which copy is wrong cannot be told");
}

/* A stall waits for the commit; the restart after it must not begin at what is committed then. */
static void replicas_found_to_differ_behind_a_stall_still_give_their_checkpoint_up(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.mismatch = LS_MISMATCH_ROLLBACK;
    begin(options);
    do_steps(1, 5);
    sync_journal();
    saving(5, 0, false);
    part(VOICE, 5, 0);
    part(OTHER, 5, 1);
    assert_non_null(asked(LS_ACTION_COMMIT));
    happen(&(struct ls_core_event){
        .kind = LS_EVENT_STALLED, .attempt = 3, .stalled = {.rank = 1, .host = "", .text = "stall: rank 1 sleeps."}});
    assert_null(recorded(LS_RECORD_FAULT));
    happen(&(struct ls_core_event){
        .kind = LS_EVENT_REPLICA_DIFFERS, .attempt = 3, .replica_differs = {.step = 5, .good_step = 2, .rank = 1}});
    commit_done(5);
    assert_int_equal(recorded(LS_RECORD_FAULT)->end.code, LS_ERROR);
    assert_int_equal(recorded(LS_RECORD_FAULT)->end.below_step, 3);
    assert_true(recorded(LS_RECORD_FAULT)->end.restart);
}

/* ---- quarantine ---- */

static void a_loss_that_is_not_finite_takes_its_sequences_out(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.nonfinite = LS_NONFINITE_ROLLBACK;
    begin(options);
    do_steps(1, 2);
    blame(0, 3, LS_NONFINITE);
    const struct ls_core_record *record = recorded(LS_RECORD_QUARANTINE);
    assert_int_equal(record->attempt, 3);
    assert_int_equal(record->quarantine.step, 3);
    assert_int_equal(record->quarantine.from, 20);
    assert_int_equal(record->quarantine.to, 30);
    assert_int_equal(ls_core_quarantine(core)->count, 0); /* it holds for attempts after this one */
    sync_journal();
    of_attempt(LS_EVENT_CLEARED);
    assert_int_equal(asked(LS_ACTION_PREPARE)->prepare.below_step, 3);
    prepared_on(0, -1, -1);
    sync_journal();
    join_again();
    assert_true(ls_quarantine_has(ls_core_quarantine(core), 20));
    /* Four steps of ten are 0 to 19 and 30 to 49; the run of 20 steps ends ten sequences later. */
    const struct ls_core_action *grant = asked(LS_ACTION_GRANT);
    assert_int_equal(grant->grant.from_position, 0);
    assert_int_equal(grant->grant.to_position, 50);
    assert_int_equal(now().end_step, 20);
    assert_int_equal(now().end_position, 210);
    assert_int_equal(now().quarantined, 10);
    static const int64_t ends[] = {10, 20, 40};
    for (int64_t step = 1; step <= 3; step++) {
        struct ls_core_event event = step_done(step);
        event.attempt = 4;
        event.step.end_position = ends[step - 1];
        happen(&event);
        assert_int_equal(recorded(LS_RECORD_STEP)->step.position, step == 3 ? 20 : (step - 1) * 10);
    }
}

/* ---- generations of the data ---- */

/* An attempt of generation 2 restarts from a checkpoint of generation 1, and from one of its own. */
static void from_a_checkpoint_of_another_generation_the_data_begin_anew(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.start_step = 8;
    options.start_position = 0;
    options.start_samples = 80;
    options.data_generation = 2;
    begin(options);
    for (int64_t step = 9; step <= 10; step++) {
        struct ls_core_event event = step_done(step);
        event.step.end_position = (step - 8) * 10;
        happen(&event);
        assert_int_equal(recorded(LS_RECORD_STEP)->step.samples, step * 10);
    }
    assert_int_equal(now().samples, 100);
    for (int64_t own = 0; own <= 1; own++) {
        lose(1);
        of_attempt(LS_EVENT_CLEARED);
        sync_journal();
        struct ls_core_event event = {.kind = LS_EVENT_PREPARED, .attempt = now().attempt};
        event.prepared.step = own ? 9 : 7;
        event.prepared.position = own ? 20 : 70;
        event.prepared.samples = own ? 90 : 70;
        event.prepared.data_generation = own ? 2 : 1;
        event.prepared.slots = event.prepared.slots_all = -1;
        happen(&event);
        const struct ls_core_record *record = recorded(LS_RECORD_ATTEMPT);
        assert_int_equal(record->attempt_begun.start_position, own ? 20 : 0);
        assert_int_equal(record->attempt_begun.start_samples, own ? 90 : 70);
        assert_int_equal(record->attempt_begun.begins_generation, !own);
        assert_int_equal(now().samples, own ? 90 : 70);
        sync_journal();
        tick(10000 * (own + 1)); /* the back-off is counted from here */
        tick(10000 * (own + 1) + 5000);
        join_again();
        assert_int_equal(asked(LS_ACTION_GRANT)->grant.from_position, own ? 20 : 0);
    }
}

static void a_quarantine_holds_for_its_generation_alone(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    struct ls_error error;
    options.data_generation = 2;
    options.steps = 0;
    options.end_position = 45;
    create(options);
    /* Attempt 0: what came with a checkpoint. */
    struct ls_core_record record = {.kind = LS_RECORD_QUARANTINE, .attempt = 0};
    record.quarantine.to = 10;
    record.quarantine.data_generation = 1;
    assert_int_equal(ls_core_restore(core, &record, &error), LS_OK);
    assert_int_equal(now().end_step, 5);
    record.quarantine.data_generation = 2;
    assert_int_equal(ls_core_restore(core, &record, &error), LS_OK);
    assert_true(ls_quarantine_has(ls_core_quarantine(core), 9));
    assert_int_equal(now().end_step, 4); /* 35 sequences are left */
}

static void a_run_by_epochs_loses_what_is_in_quarantine(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.nonfinite = LS_NONFINITE_ROLLBACK;
    options.steps = 0;
    options.end_position = 45;
    begin(options);
    assert_int_equal(now().end_step, 5);
    blame(0, 1, LS_NONFINITE);
    clear_and_prepare(0);
    assert_int_equal(now().end_step, 4); /* 35 sequences: three steps of ten and one of five */
    assert_int_equal(now().end_position, 45);
}

static void under_stop_and_skip_a_loss_that_is_not_finite_ends_the_run(void **state) {
    (void)state;
    for (int policy = LS_NONFINITE_STOP; policy <= LS_NONFINITE_SKIP; policy++) {
        struct ls_core_options options = restartable();
        options.nonfinite = (enum ls_core_nonfinite)policy;
        begin(options);
        blame(0, 1, LS_NONFINITE);
        assert_null(recorded(LS_RECORD_QUARANTINE));
        assert_ended(LS_NONFINITE, "its last words");
        forget(NULL);
    }
}

static void only_so_many_skipped_steps_in_a_row_are_borne(void **state) {
    (void)state;
    static const bool skipped[] = {true, true, false, true, true, true};
    struct ls_core_options options = restartable();
    options.nonfinite = LS_NONFINITE_SKIP;
    options.skips_max = 3;
    begin(options);
    for (int64_t step = 1; step <= 6; step++) {
        struct ls_core_event event = step_done(step);
        event.step.skipped = skipped[step - 1];
        assert_null(asked(LS_ACTION_END));
        happen(&event);
    }
    assert_ended(LS_NONFINITE, "steps 4 to 6 were not finite, 3 updates in a row");
}

/* ---- ranks and hosts ---- */

static void fewer_ranks_go_on_down_to_the_least_allowed(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.min_ranks = 1;
    begin(options);
    lose(1);
    sync_journal();
    of_attempt(LS_EVENT_CLEARED);
    prepared_on(0, 1, 1);
    assert_int_equal(recorded(LS_RECORD_ATTEMPT)->attempt_begun.world_size, 1);
    sync_journal();
    assert_int_equal(asked(LS_ACTION_LAUNCH)->launch.world_size, 1);
    lose(0);
    sync_journal();
    of_attempt(LS_EVENT_CLEARED);
    prepared_on(0, 5, 5); /* there is room again: as many as wanted, no more */
    assert_int_equal(recorded(LS_RECORD_ATTEMPT)->attempt_begun.world_size, 2);
}

static void too_few_ranks_end_the_run(void **state) {
    (void)state;
    begin(restartable());
    lose(1);
    sync_journal();
    of_attempt(LS_EVENT_CLEARED);
    prepared_on(0, 1, 1);
    assert_ended(LS_COMMUNICATION, "1 ranks can be placed, 2 are needed (fault.min_ranks)");
}

static void a_host_that_loses_ranks_is_left_out(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.host_losses_max = 2;
    begin(options);
    lose(1);
    assert_null(ls_core_excluded(core, 0));
    sync_journal();
    of_attempt(LS_EVENT_CLEARED);
    prepared_on(0, 2, 2);
    sync_journal();
    join_again();
    lose(1);
    assert_string_equal(ls_core_excluded(core, 0), "node1");
    assert_null(ls_core_excluded(core, 1));
    sync_journal();
    of_attempt(LS_EVENT_CLEARED);
    prepared_on(0, 1, 2); /* without it there is not enough room: it has to do */
    assert_true(recorded(LS_RECORD_ATTEMPT)->attempt_begun.hosts_forgiven);
    assert_int_equal(recorded(LS_RECORD_ATTEMPT)->attempt_begun.world_size, 2);
    assert_null(ls_core_excluded(core, 0));
}

static void hosts_that_are_not_ours_to_choose_are_not_left_out(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.host_losses_max = 1;
    begin(options);
    lose(1);
    assert_string_equal(ls_core_excluded(core, 0), "node1");
    clear_and_prepare(0); /* any number of ranks, wherever they are */
    assert_int_equal(asked(LS_ACTION_LAUNCH)->launch.world_size, 2);
    assert_null(ls_core_excluded(core, 0));
}

static void a_lost_node_counts_for_two_losses(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.host_losses_max = 2;
    begin(options);
    happen(&(struct ls_core_event){
        .kind = LS_EVENT_NODE_LOST, .attempt = 3, .node_lost = {.host = "node1", .how = "not heard for 15 s."}});
    of_attempt(LS_EVENT_LAUNCHER_EXITED);
    const struct ls_core_record *record = recorded(LS_RECORD_FAULT);
    assert_int_equal(record->end.scope, LS_SCOPE_NODE);
    assert_int_equal(record->end.rank, 1);
    assert_non_null(strstr(record->end.text, "host node1 with 1 rank was lost at step 1: not heard for 15 s."));
    assert_string_equal(ls_core_excluded(core, 0), "node1");
    options.host_losses_max = 3;
    forget(NULL);
    begin(options);
    happen(&(struct ls_core_event){
        .kind = LS_EVENT_NODE_LOST, .attempt = 3, .node_lost = {.host = "node1", .how = "not heard for 15 s."}});
    of_attempt(LS_EVENT_LAUNCHER_EXITED);
    assert_null(ls_core_excluded(core, 0)); /* once may be the network's fault */
}

static void a_rank_that_is_lost_before_it_joins_counts_for_the_host_that_is_told(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.host_losses_max = 1;
    create(options);
    tick(0);
    happen(&(struct ls_core_event){.kind = LS_EVENT_RANK_LOST,
                                   .attempt = 3,
                                   .rank_lost = {.rank = 1, .host = "node7", .how = "killed by signal 9"}});
    of_attempt(LS_EVENT_LAUNCHER_EXITED);
    assert_string_equal(recorded(LS_RECORD_FAULT)->end.host, "node7");
    assert_non_null(strstr(recorded(LS_RECORD_FAULT)->end.text, "rank 1 on node7 was lost"));
    assert_string_equal(ls_core_excluded(core, 0), "node7");
}

/* Loses a rank at the start of every attempt until `expected` ranks are begun with; returns the number of losses.
 * `slots`: of the one host; -1: hosts are not ours to choose. */
static int lose_until(int32_t slots, int32_t fewer, int32_t expected) {
    for (int losses = 1; losses < 10; losses++) {
        lose(1);
        if (now().phase == LS_PHASE_ENDED) return 0;
        sync_journal();
        of_attempt(LS_EVENT_CLEARED);
        further_fewer = fewer;
        prepared_on(0, slots > 0 && ls_core_excluded(core, 0) ? 0 : slots, slots);
        further_fewer = 0;
        if (recorded(LS_RECORD_ATTEMPT)->attempt_begun.world_size == expected) return losses;
        sync_journal();
        tick(losses * INT64_C(100000));
        tick(losses * INT64_C(100000) + 50000);
    }
    return -1;
}

static void where_no_host_can_be_left_out_a_row_of_losses_costs_a_rank(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.host_losses_max = 3;
    options.min_ranks = 1;
    options.max_restarts = 5;
    static const int32_t slots[] = {-1, 2};
    for (int i = 0; i < 2; i++) {
        begin(options);
        assert_int_equal(lose_until(slots[i], 1, 1), 3);
        forget(NULL);
    }
    /* Without a smaller number that the run can have, or with another lower limit, it stays as it is. */
    begin(options);
    assert_int_equal(lose_until(-1, 0, 1), 0);
    forget(NULL);
    options.min_ranks = 2;
    begin(options);
    assert_int_equal(lose_until(-1, 1, 1), 0);
}

static void what_was_given_up_where_hosts_are_not_ours_is_not_tried_again(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.host_losses_max = 3;
    options.min_ranks = 1;
    begin(options);
    assert_int_equal(lose_until(-1, 1, 1), 3);
    sync_journal();
    tick(900000);
    tick(1000000);
    assert_int_equal(asked(LS_ACTION_LAUNCH)->launch.world_size, 1);
    struct ls_core_rank described = rank_of(0);
    struct ls_core_event event = hello_of(VOICE, &described);
    event.hello.attempt = now().attempt;
    event.hello.world_size = 1;
    happen(&event);
    event = step_done(1);
    event.attempt = now().attempt;
    happen(&event);
    event = (struct ls_core_event){.kind = LS_EVENT_SAVING, .connection = VOICE, .attempt = now().attempt};
    event.saving.step = 1;
    happen(&event);
    happen(&(struct ls_core_event){
        .kind = LS_EVENT_PART, .connection = VOICE, .attempt = now().attempt, .part = {.step = 1, .rank = 0}});
    sync_journal();
    happen(&(struct ls_core_event){.kind = LS_EVENT_COMMIT_DONE, .attempt = now().attempt, .commit = {.step = 1}});
    assert_int_equal(now().restarts, 0); /* it made progress */
    lose(0);
    sync_journal();
    of_attempt(LS_EVENT_CLEARED);
    prepared_on(1, -1, -1);
    assert_int_equal(recorded(LS_RECORD_ATTEMPT)->attempt_begun.world_size, 1);
}

static void the_loss_of_every_rank_of_a_host_is_that_of_the_node(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.world_size = 3;
    create(options);
    tick(0);
    for (int32_t rank = 0; rank < 3; rank++) {
        struct ls_core_rank described = rank_of(rank);
        if (rank == 2) strcpy(described.host, "node1");
        struct ls_core_event event = hello_of(rank ? OTHER : VOICE, &described);
        event.hello.world_size = 3;
        happen(&event);
    }
    lose_rank(2);
    lose_rank(1);
    of_attempt(LS_EVENT_LAUNCHER_EXITED);
    assert_int_equal(recorded(LS_RECORD_FAULT)->end.scope, LS_SCOPE_NODE);
    assert_int_equal(recorded(LS_RECORD_FAULT)->end.rank, 2);
    assert_non_null(strstr(recorded(LS_RECORD_FAULT)->end.text, "All 2 ranks of node1 are gone."));
}

/* ---- wishes in between ---- */

static void a_stop_between_two_attempts_ends_the_run_once_it_is_on_disk(void **state) {
    (void)state;
    begin(restartable());
    do_steps(1, 3);
    lose(1);
    send_signal(LS_SIGNAL_REQUEUE);
    assert_null(asked(LS_ACTION_END));
    sync_journal();
    assert_ended(LS_REQUEUE, "steps up to 3 were done");
}

static void a_stop_that_a_loss_overtakes_ends_as_it_was_wished(void **state) {
    (void)state;
    begin(restartable());
    do_steps(1, 3);
    send_signal(LS_SIGNAL_STOP);
    sync_journal();
    assert_true(asked(LS_ACTION_ORDER)->order.stop);
    lose(1);
    assert_ended(LS_STOPPED, "saved is step 0 of 20");
    assert_non_null(asked(LS_ACTION_KILL));
}

static void an_operator_who_waits_for_a_save_is_told_of_the_loss(void **state) {
    (void)state;
    begin(restartable());
    do_steps(1, 3);
    request(OPERATOR, LS_REQUEST_CHECKPOINT);
    lose(1);
    assert_int_equal(asked(LS_ACTION_REPLY)->message.code, LS_COMMUNICATION);
    assert_non_null(strstr(asked(LS_ACTION_REPLY)->message.text, "not saved"));
}

/* ---- restarts of the coordinator ---- */

static struct ls_core_record record_of(enum ls_core_record_kind kind, uint32_t attempt) {
    return (struct ls_core_record){.kind = kind, .attempt = attempt, .generation = 4};
}

static void restore(const struct ls_core_record *record) {
    struct ls_error error;
    if (ls_core_restore(core, record, &error)) fail_msg("%s", error.text);
}

static void a_restarted_core_goes_on_clearing_an_attempt_that_is_over(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.restarted = true;
    options.nonfinite = LS_NONFINITE_ROLLBACK;
    create(options);
    struct ls_core_record joined = record_of(LS_RECORD_JOINED, 3), over = record_of(LS_RECORD_FAULT, 3);
    over.end.code = LS_NONFINITE;
    over.end.below_step = 3;
    over.end.restart = true;
    restore(&joined);
    restore(&over);
    tick(0);
    assert_int_equal(asked(LS_ACTION_KILL)->attempt, 3);
    assert_null(asked(LS_ACTION_LAUNCH));
    assert_null(recorded(LS_RECORD_FAULT)); /* it is there already; what it wants out of the way is not */
    assert_int_equal(recorded(LS_RECORD_QUARANTINE)->quarantine.from, 20);
    clear_and_prepare(0);
    assert_int_equal(asked(LS_ACTION_LAUNCH)->attempt, 4);
    assert_int_equal(now().quarantined, 10);
}

static void a_restarted_core_remembers_restarts_hosts_and_quarantine(void **state) {
    (void)state;
    struct ls_core_options options = restartable();
    options.restarted = true;
    options.host_losses_max = 1;
    create(options);
    struct ls_core_record before = record_of(LS_RECORD_FAULT, 1), over = record_of(LS_RECORD_FAULT, 2);
    struct ls_core_record joined = record_of(LS_RECORD_JOINED, 2), bad = record_of(LS_RECORD_QUARANTINE, 1);
    struct ls_core_record begun = record_of(LS_RECORD_ATTEMPT, 3);
    before.end.scope = over.end.scope = LS_SCOPE_RANK;
    strcpy(before.end.host, "node7"); /* of an invocation before this one: forgotten, but for its quarantine */
    bad.quarantine.from = 40;
    bad.quarantine.to = 50;
    strcpy(over.end.host, "node1");
    begun.attempt_begun.restarts = 2;
    restore(&before);
    restore(&bad);
    restore(&joined);
    restore(&over);
    restore(&begun);
    tick(0);
    assert_int_equal(asked(LS_ACTION_LAUNCH)->attempt, 3); /* it may have been asked for, or not */
    assert_int_equal(now().restarts, 2);
    assert_int_equal(now().quarantined, 10);
    assert_string_equal(ls_core_excluded(core, 0), "node1");
    assert_null(ls_core_excluded(core, 1));
}

static void a_new_invocation_knows_only_what_is_in_quarantine(void **state) {
    (void)state;
    create(restartable());
    struct ls_core_record stop = record_of(LS_RECORD_STOP, 2), bad = record_of(LS_RECORD_QUARANTINE, 2);
    struct ls_core_record begun = record_of(LS_RECORD_ATTEMPT, 2);
    stop.stop.code = LS_STOPPED;
    bad.quarantine.to = 10;
    begun.attempt_begun.restarts = 3;
    restore(&begun);
    restore(&stop);
    restore(&bad);
    tick(0);
    assert_int_equal(now().stop_code, LS_OK);
    assert_int_equal(now().restarts, 0);
    assert_int_equal(now().quarantined, 10);
    struct ls_error error;
    struct ls_core *other;
    struct ls_core_options options = restartable();
    assert_int_equal(ls_core_create(&options, &other, &error), LS_OK);
    bad.quarantine.to = -1;
    assert_int_equal(ls_core_restore(other, &bad, &error), LS_DATA);
    ls_core_destroy(other);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        PROMISE(the_first_attempt_is_launched_too),
        PROMISE(a_lost_rank_is_followed_by_the_next_attempt),
        PROMISE(nothing_is_prepared_before_the_loss_is_on_disk),
        PROMISE(the_old_attempt_is_not_heard_in_between),
        PROMISE(restarts_in_a_row_wait_longer_each_time),
        PROMISE(restarts_used_up_end_the_run_with_the_last_cause),
        PROMISE(a_commit_beyond_all_before_counts_restarts_anew),
        PROMISE(what_a_restart_cannot_mend_ends_at_once),
        PROMISE(a_run_that_never_came_together_is_not_started_again),
        PROMISE(a_launcher_that_was_killed_is_started_again),
        PROMISE(a_rank_that_ended_before_any_joined_is_named_and_started_again),
        PROMISE(a_program_that_is_not_there_is_not_started_again),
        PROMISE(a_rank_that_was_killed_before_any_joined_is_started_again),
        PROMISE(processes_that_cannot_be_ended_end_the_run),
        PROMISE(without_a_place_to_go_on_from_the_run_ends),
        PROMISE(workers_by_hand_are_waited_for_again),
        PROMISE(a_checkpoint_that_does_not_load_is_left_for_the_one_before),
        PROMISE(a_save_that_fails_is_no_damaged_checkpoint),
        PROMISE(trouble_with_files_before_the_first_step_leaves_the_checkpoint_alone),
        PROMISE(replicas_that_differ_go_back_to_where_they_were_equal),
        PROMISE(replicas_found_to_differ_behind_a_stall_still_give_their_checkpoint_up),
        PROMISE(a_loss_that_is_not_finite_takes_its_sequences_out),
        PROMISE(from_a_checkpoint_of_another_generation_the_data_begin_anew),
        PROMISE(a_quarantine_holds_for_its_generation_alone),
        PROMISE(a_run_by_epochs_loses_what_is_in_quarantine),
        PROMISE(under_stop_and_skip_a_loss_that_is_not_finite_ends_the_run),
        PROMISE(only_so_many_skipped_steps_in_a_row_are_borne),
        PROMISE(fewer_ranks_go_on_down_to_the_least_allowed),
        PROMISE(too_few_ranks_end_the_run),
        PROMISE(a_host_that_loses_ranks_is_left_out),
        PROMISE(hosts_that_are_not_ours_to_choose_are_not_left_out),
        PROMISE(a_lost_node_counts_for_two_losses),
        PROMISE(a_rank_that_is_lost_before_it_joins_counts_for_the_host_that_is_told),
        PROMISE(where_no_host_can_be_left_out_a_row_of_losses_costs_a_rank),
        PROMISE(what_was_given_up_where_hosts_are_not_ours_is_not_tried_again),
        PROMISE(the_loss_of_every_rank_of_a_host_is_that_of_the_node),
        PROMISE(a_stop_between_two_attempts_ends_the_run_once_it_is_on_disk),
        PROMISE(a_stop_that_a_loss_overtakes_ends_as_it_was_wished),
        PROMISE(an_operator_who_waits_for_a_save_is_told_of_the_loss),
        PROMISE(a_restarted_core_goes_on_clearing_an_attempt_that_is_over),
        PROMISE(a_restarted_core_remembers_restarts_hosts_and_quarantine),
        PROMISE(a_new_invocation_knows_only_what_is_in_quarantine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
