/* What rank 0 says again to a coordinator that has not heard it, and how much it can hold until then. The coordinator
 * here is a script on a socket. */
#define _GNU_SOURCE
#include "common/wire.h"
#include "common/zap.h"
#include "worker/session.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include <cmocka.h>

enum { ATTEMPT = 3, TRIES = 600, WAIT_MS = 50, MANY_RANKS = 20000 };

struct stage {
    struct ls_keys keys;
    void *context, *router;
    struct ls_zap *zap;
    char endpoint[64];
    uint8_t route[64];
    size_t route_size;
    uint32_t generation; /* of the coordinator that answers */
    struct ls_session *session;
    int64_t ranks;
    pthread_t thread;
};

static int open_stage(void **state) {
    struct stage *stage = calloc(1, sizeof *stage);
    const int linger = 0, wait = WAIT_MS;
    size_t size = sizeof stage->endpoint;
    *state = stage;
    stage->generation = 1;
    stage->context = zmq_ctx_new();
    if (ls_keys_generate(&stage->keys, NULL) || ls_zap_start(stage->context, &stage->keys, &stage->zap, NULL))
        return -1;
    stage->router = zmq_socket(stage->context, ZMQ_ROUTER);
    zmq_setsockopt(stage->router, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(stage->router, ZMQ_RCVTIMEO, &wait, sizeof wait);
    if (ls_zap_guard(stage->router, &stage->keys, NULL) || zmq_bind(stage->router, "tcp://127.0.0.1:*") ||
        zmq_getsockopt(stage->router, ZMQ_LAST_ENDPOINT, stage->endpoint, &size))
        return -1;
    return 0;
}

static int close_stage(void **state) {
    struct stage *stage = *state;
    zmq_close(stage->router);
    ls_zap_stop(stage->zap);
    zmq_ctx_term(stage->context);
    free(stage);
    return 0;
}

static void answer(struct stage *stage, struct ls_message message) {
    static uint8_t bytes[LS_WIRE_BYTES_MAX];
    size_t count;
    message.attempt = ATTEMPT;
    message.generation = stage->generation;
    assert_int_equal(ls_wire_encode(&message, bytes, sizeof bytes, &count, NULL), LS_OK);
    assert_true(zmq_send(stage->router, stage->route, stage->route_size, ZMQ_SNDMORE) >= 0);
    assert_true(zmq_send(stage->router, bytes, count, 0) >= 0);
}

static bool hear(struct stage *stage, struct ls_message *message) {
    static uint8_t bytes[LS_WIRE_BYTES_MAX];
    const int size = zmq_recv(stage->router, stage->route, sizeof stage->route, 0);
    if (size < 0) return false;
    stage->route_size = (size_t)size;
    const int count = zmq_recv(stage->router, bytes, sizeof bytes, 0);
    assert_true(count > 0);
    assert_int_equal(ls_wire_decode(bytes, (size_t)count, message, NULL), LS_OK);
    return true;
}

static void welcome(struct stage *stage) {
    answer(stage, (struct ls_message){.kind = LS_MESSAGE_WELCOME});
}

/* Answers OPEN and every HELLO until a message of `kind` comes, whose step is returned; -1: none came. */
static int64_t serve_until(struct stage *stage, enum ls_message_kind kind) {
    for (int i = 0; i < TRIES; i++) {
        struct ls_message message;
        if (!hear(stage, &message)) continue;
        if (message.kind == LS_MESSAGE_OPEN) {
            static char yaml[] = "name: script\n";
            struct ls_message setup = {.kind = LS_MESSAGE_SETUP};
            setup.setup.yaml = yaml;
            setup.setup.shape.end_step = setup.setup.shape.total_steps = 10;
            answer(stage, setup);
        }
        if (message.kind == LS_MESSAGE_HELLO) welcome(stage);
        const int64_t step = message.kind == LS_MESSAGE_SAVE_FAILED ? message.save_failed.step : 0;
        const bool found = message.kind == kind;
        ls_message_release(&message);
        if (found) return step;
    }
    return -1;
}

static void *join(void *argument) {
    struct stage *stage = argument;
    struct ls_welcome shape;
    struct ls_error error = {0};
    struct ls_rank_info *ranks = calloc((size_t)stage->ranks, sizeof *ranks);
    char *yaml = NULL;
    for (int64_t rank = 0; rank < stage->ranks; rank++) {
        ranks[rank].rank = rank;
        strcpy(ranks[rank].host, "here");
    }
    if (ls_session_open(stage->endpoint, &stage->keys.worker, ATTEMPT, 30, &stage->session, &shape, &yaml, &error) ||
        ls_session_join(stage->session, ranks, stage->ranks, &error))
        print_error("%s\n", error.text);
    free(yaml);
    free(ranks);
    return NULL;
}

static void join_with(struct stage *stage, int64_t ranks) {
    stage->ranks = ranks;
    assert_int_equal(pthread_create(&stage->thread, NULL, join, stage), 0);
    assert_int_equal(serve_until(stage, LS_MESSAGE_HELLO), 0);
    pthread_join(stage->thread, NULL);
    assert_non_null(stage->session);
}

/* A coordinator that dies with a rank's word that it could not write leaves one that waits for its part. */
static void test_a_failed_save_is_told_to_the_next_coordinator(void **state) {
    struct stage *stage = *state;
    join_with(stage, 2);
    ls_session_save_failed(stage->session, 4, 1, "No space left on device");
    assert_int_equal(serve_until(stage, LS_MESSAGE_SAVE_FAILED), 4);
    stage->generation = 2;
    answer(stage, (struct ls_message){.kind = LS_MESSAGE_REJOIN});
    assert_int_equal(serve_until(stage, LS_MESSAGE_SAVE_FAILED), 4);
    struct ls_message end = {.kind = LS_MESSAGE_ENDED};
    end.answer.code = LS_CHECKPOINT;
    answer(stage, end);
    ls_session_close(stage->session, 10);
}

/* True when a message of `kind` comes before one of `last`. */
static bool comes_before(struct stage *stage, enum ls_message_kind kind, enum ls_message_kind last) {
    for (int i = 0; i < TRIES; i++) {
        struct ls_message message;
        if (!hear(stage, &message)) continue;
        const enum ls_message_kind heard = message.kind;
        ls_message_release(&message);
        if (heard == LS_MESSAGE_HELLO) welcome(stage);
        if (heard == kind || heard == last) return heard == kind;
    }
    fail_msg("neither came");
    return false;
}

/* A coordinator that dies before it has ordered the save that a worker's SIGTERM asks for leaves one that knows
 * nothing of it. */
static void test_a_wish_to_save_is_told_to_every_coordinator_until_a_save_begins(void **state) {
    struct stage *stage = *state;
    join_with(stage, 2);
    ls_session_request_save(stage->session);
    assert_int_equal(serve_until(stage, LS_MESSAGE_SAVE_REQUEST), 0);
    stage->generation = 2;
    answer(stage, (struct ls_message){.kind = LS_MESSAGE_REJOIN});
    assert_int_equal(serve_until(stage, LS_MESSAGE_SAVE_REQUEST), 0);
    ls_session_saving(stage->session, 4, 0, false);
    assert_int_equal(serve_until(stage, LS_MESSAGE_SAVING), 0);
    stage->generation = 3;
    answer(stage, (struct ls_message){.kind = LS_MESSAGE_REJOIN});
    assert_int_equal(serve_until(stage, LS_MESSAGE_SAVING), 0);
    assert_false(comes_before(stage, LS_MESSAGE_SAVE_REQUEST, LS_MESSAGE_HELLO));
    struct ls_message end = {.kind = LS_MESSAGE_ENDED};
    end.answer.code = LS_STOPPED;
    answer(stage, end);
    ls_session_close(stage->session, 10);
}

static void *save_many(void *argument) {
    struct stage *stage = argument;
    ls_session_saving(stage->session, 4, 0, false);
    for (int64_t rank = 0; rank < MANY_RANKS; rank++) ls_session_part(stage->session, 4, rank, 4, 0.5, NULL, 0);
    return NULL;
}

/* Nothing of a save is acknowledged before its commit, which needs the parts of all ranks. */
static void test_the_parts_of_twenty_thousand_ranks_are_held_until_the_commit(void **state) {
    struct stage *stage = *state;
    static bool seen[MANY_RANKS];
    int64_t parts = 0;
    join_with(stage, MANY_RANKS);
    assert_int_equal(pthread_create(&stage->thread, NULL, save_many, stage), 0);
    for (int i = 0; i < TRIES && parts < MANY_RANKS;) {
        struct ls_message message;
        if (!hear(stage, &message)) {
            i++;
            continue;
        }
        if (message.kind == LS_MESSAGE_HELLO) welcome(stage);
        if (message.kind == LS_MESSAGE_PART && !seen[message.part.rank]) {
            seen[message.part.rank] = true;
            parts++;
        }
        ls_message_release(&message);
    }
    struct ls_message committed = {.kind = LS_MESSAGE_COMMITTED};
    committed.committed.step = 4;
    answer(stage, committed);
    pthread_join(stage->thread, NULL);
    assert_int_equal(parts, MANY_RANKS);
    ls_session_close(stage->session, 10);
}

#define STAGED(test) cmocka_unit_test_setup_teardown(test, open_stage, close_stage)

int main(void) {
    const struct CMUnitTest tests[] = {
        STAGED(test_a_failed_save_is_told_to_the_next_coordinator),
        STAGED(test_a_wish_to_save_is_told_to_every_coordinator_until_a_save_begins),
        STAGED(test_the_parts_of_twenty_thousand_ranks_are_held_until_the_commit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
