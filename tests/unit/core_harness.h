/* What the tests of the coordinator's core share: a core of two ranks, events in one line, and questions about the
 * actions that the last event asked for. */
#ifndef LS_TESTS_UNIT_CORE_HARNESS_H
#define LS_TESTS_UNIT_CORE_HARNESS_H

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

static inline struct ls_core_options usual(void) {
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

static inline int forget(void **state) {
    (void)state;
    ls_core_destroy(core);
    core = NULL;
    journal_sequence = 0;
    return 0;
}

static inline void create(struct ls_core_options options) {
    struct ls_error error;
    assert_int_equal(ls_core_create(&options, &core, &error), LS_OK);
}

static inline void happen(const struct ls_core_event *event) {
    ls_core_handle(core, event, &done);
    for (int i = 0; i < done.count; i++)
        if (done.list[i].kind == LS_ACTION_JOURNAL) journal_sequence = done.list[i].record.sequence;
}

/* The n-th action of a kind that the last event asked for, NULL if there are fewer. */
static inline const struct ls_core_action *nth(enum ls_core_action_kind kind, int n) {
    for (int i = 0; i < done.count; i++)
        if (done.list[i].kind == kind && n-- == 0) return &done.list[i];
    return NULL;
}

static inline const struct ls_core_action *asked(enum ls_core_action_kind kind) {
    return nth(kind, 0);
}

static inline const struct ls_core_record *recorded(enum ls_core_record_kind kind) {
    for (int i = 0; i < done.count; i++)
        if (done.list[i].kind == LS_ACTION_JOURNAL && done.list[i].record.kind == kind) return &done.list[i].record;
    return NULL;
}

static inline struct ls_core_rank rank_of(int32_t rank) {
    struct ls_core_rank described = {.rank = rank, .pid = 100 + rank};
    snprintf(described.host, sizeof described.host, "node%d", rank);
    strcpy(described.config_digest, "c0");
    strcpy(described.dataset_digest, "d0");
    strcpy(described.numerics, "cpu; avx2; BLAS 3");
    return described;
}

static inline struct ls_core_event hello_of(ls_connection connection, const struct ls_core_rank *rank) {
    struct ls_core_event event = {.kind = LS_EVENT_HELLO, .connection = connection};
    event.hello = (struct ls_core_hello){.attempt = 3, .protocol = 1, .world_size = 2, .ranks = rank, .ranks_count = 1};
    strcpy(event.hello.version, "1.0");
    return event;
}

static inline void join(ls_connection connection, int32_t rank) {
    struct ls_core_rank described = rank_of(rank);
    struct ls_core_event event = hello_of(connection, &described);
    happen(&event);
}

static inline void join_both(void) {
    join(OTHER, 1);
    join(VOICE, 0);
}

static inline struct ls_core_event step_done(int64_t step) {
    struct ls_core_event event = {.kind = LS_EVENT_STEP_DONE, .connection = VOICE, .attempt = 3};
    event.step = (struct ls_core_step){
        .step = step, .end_position = step * 10, .sequences = 10, .digest = {(uint64_t)step * 77, 5}};
    return event;
}

static inline void do_steps(int64_t from, int64_t to) {
    for (int64_t step = from; step <= to; step++) {
        struct ls_core_event event = step_done(step);
        happen(&event);
    }
}

static inline void sync_journal(void) {
    happen(&(struct ls_core_event){.kind = LS_EVENT_JOURNALED, .journaled = {.sequence = journal_sequence}});
}

static inline void tick(int64_t now_ms) {
    happen(&(struct ls_core_event){.kind = LS_EVENT_TICK, .tick = {.now_ms = now_ms}});
}

static inline void saving(int64_t step, uint64_t order, bool stop) {
    happen(&(struct ls_core_event){.kind = LS_EVENT_SAVING,
                                   .connection = VOICE,
                                   .attempt = 3,
                                   .saving = {.step = step, .order = order, .stop = stop}});
}

static inline void part(ls_connection connection, int64_t step, int32_t rank) {
    happen(&(struct ls_core_event){
        .kind = LS_EVENT_PART, .connection = connection, .attempt = 3, .part = {.step = step, .rank = rank}});
}

static inline void commit_done(int64_t step) {
    happen(&(struct ls_core_event){.kind = LS_EVENT_COMMIT_DONE, .attempt = 3, .commit = {.step = step}});
}

static inline void send_signal(enum ls_core_signal signal) {
    happen(&(struct ls_core_event){.kind = LS_EVENT_SIGNAL, .signal = signal});
}

static inline void request(ls_connection connection, enum ls_core_request what) {
    happen(&(struct ls_core_event){.kind = LS_EVENT_REQUEST, .connection = connection, .request = what});
}

static inline void lose_rank(int32_t rank) {
    happen(&(struct ls_core_event){
        .kind = LS_EVENT_RANK_LOST, .attempt = 3, .rank_lost = {.rank = rank, .how = "killed by signal 9"}});
}

static inline void fault(int32_t rank, enum ls_code code) {
    happen(&(struct ls_core_event){.kind = LS_EVENT_FAULT,
                                   .connection = OTHER,
                                   .attempt = 3,
                                   .fault = {.rank = rank, .step = 7, .code = code, .text = "loss is nan"}});
}

static inline void assert_ended(enum ls_code code, const char *words) {
    const struct ls_core_action *end = asked(LS_ACTION_END);
    assert_non_null(end);
    assert_int_equal(end->message.code, code);
    assert_non_null(strstr(end->message.text, words));
    assert_ptr_equal(end, &done.list[done.count - 1]);
}

static inline void assert_refused(enum ls_code code, const char *words) {
    const struct ls_core_action *refusal = asked(LS_ACTION_REFUSE);
    assert_non_null(refusal);
    assert_null(asked(LS_ACTION_WELCOME));
    assert_int_equal(refusal->message.code, code);
    if (!strstr(refusal->message.text, words)) fail_msg("'%s' is not in: %s", words, refusal->message.text);
}

#define PROMISE(name) cmocka_unit_test_teardown(name, forget)

#endif
