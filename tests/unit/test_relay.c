/* Reports through a tree of nodes: node 0 below the coordinator, node 32 below it, node 1056 below that. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>
#include <zmq.h>

#include "common/wire.h"
#include "worker/relay.h"

enum { ATTEMPT = 7, NODES = 1100, LEVELS = 3, TRIES = 400 };
static const int64_t indices[LEVELS] = {0, 32, 1056};

struct stage {
    struct ls_keys keys;
    void *context, *router;
    char endpoint[64];
    struct ls_relay *relays[LEVELS];
    struct ls_relay_node nodes[NODES];
    bool answers;        /* the coordinator answers reports with a pulse */
    int reports[LEVELS]; /* that arrived, by level */
    int messages;        /* that brought them */
    uint8_t route[64];   /* of the last message */
    size_t route_size;
};

static size_t encode(const struct ls_message *message, uint8_t *bytes, size_t capacity) {
    size_t count;
    struct ls_error error;
    if (ls_wire_encode(message, bytes, capacity, &count, &error) != LS_OK) fail_msg("%s", error.text);
    return count;
}

static void answer(struct stage *stage, const struct ls_message *message) {
    uint8_t bytes[1024];
    const size_t count = encode(message, bytes, sizeof bytes);
    zmq_send(stage->router, stage->route, stage->route_size, ZMQ_SNDMORE);
    zmq_send(stage->router, bytes, count, 0);
}

static void take_report(struct stage *stage, const struct ls_message *report) {
    assert_int_equal(report->kind, LS_MESSAGE_REPORT);
    assert_int_equal(report->attempt, ATTEMPT);
    stage->reports[atoi(report->report.host)]++;
}

static void take(struct stage *stage, const void *bytes, size_t count) {
    struct ls_message message, report;
    assert_int_equal(ls_wire_decode(bytes, count, &message, NULL), LS_OK);
    stage->messages++;
    if (message.kind == LS_MESSAGE_BUNDLE)
        for (int64_t i = 0; i < message.bundle.reports_count; i++) {
            const struct ls_wire_piece *piece = &message.bundle.reports[i];
            assert_int_equal(ls_wire_decode(piece->bytes, piece->count, &report, NULL), LS_OK);
            take_report(stage, &report);
            ls_message_release(&report);
        }
    else
        take_report(stage, &message);
    ls_message_release(&message);
    if (stage->answers) answer(stage, &(struct ls_message){.kind = LS_MESSAGE_PULSE, .attempt = ATTEMPT});
}

static void serve_coordinator(struct stage *stage) {
    static uint8_t bytes[LS_WIRE_BYTES_MAX];
    for (int size; (size = zmq_recv(stage->router, stage->route, sizeof stage->route, ZMQ_DONTWAIT)) >= 0;) {
        stage->route_size = (size_t)size;
        const int count = zmq_recv(stage->router, bytes, sizeof bytes, 0);
        assert_true(count > 0);
        take(stage, bytes, (size_t)count);
    }
}

/* A turn of every node that is there, the lowest first, each with a report of its own. */
static void turn(struct stage *stage) {
    uint8_t bytes[1024];
    for (int level = LEVELS - 1; level >= 0; level--) {
        struct ls_message report = {.kind = LS_MESSAGE_REPORT, .attempt = ATTEMPT};
        if (!stage->relays[level]) continue;
        snprintf(report.report.host, sizeof report.report.host, "%d", level);
        ls_relay_add(stage->relays[level], bytes, encode(&report, bytes, sizeof bytes));
        ls_relay_flush(stage->relays[level]);
    }
    for (int i = 0; i < 3; i++) {
        serve_coordinator(stage);
        for (int level = 0; level < LEVELS; level++)
            if (stage->relays[level]) ls_relay_serve(stage->relays[level], 5);
    }
}

static int open_stage(void **state) {
    struct stage *stage = calloc(1, sizeof *stage);
    const int server = 1, linger = 0;
    size_t size = sizeof stage->endpoint;
    *state = stage;
    stage->answers = true;
    assert_int_equal(ls_keys_generate(&stage->keys, NULL), LS_OK);
    stage->context = zmq_ctx_new();
    stage->router = zmq_socket(stage->context, ZMQ_ROUTER);
    zmq_setsockopt(stage->router, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(stage->router, ZMQ_CURVE_SERVER, &server, sizeof server);
    zmq_setsockopt(stage->router, ZMQ_CURVE_SECRETKEY, stage->keys.server.secret_key, LS_KEY_CHARACTERS);
    assert_int_equal(zmq_bind(stage->router, "tcp://127.0.0.1:*"), 0);
    zmq_getsockopt(stage->router, ZMQ_LAST_ENDPOINT, stage->endpoint, &size);
    const struct ls_relay_options options = {
        .key = &stage->keys.worker, .endpoints = stage->endpoint, .attempt = ATTEMPT};
    for (int level = 0; level < LEVELS; level++) {
        assert_int_equal(ls_relay_create(&options, &stage->relays[level], NULL), LS_OK);
        if (level < LEVELS - 1)
            assert_int_equal(ls_relay_listen(stage->relays[level], "127.0.0.1", &stage->nodes[indices[level]], NULL),
                             LS_OK);
    }
    for (int level = 0; level < LEVELS; level++)
        assert_int_equal(ls_relay_join(stage->relays[level], stage->nodes, NODES, indices[level], NULL), LS_OK);
    return 0;
}

static int close_stage(void **state) {
    struct stage *stage = *state;
    for (int level = 0; level < LEVELS; level++) ls_relay_destroy(stage->relays[level]);
    zmq_close(stage->router);
    zmq_ctx_term(stage->context);
    free(stage);
    return 0;
}

static struct ls_relay_news news_of(const struct stage *stage, int level) {
    struct ls_relay_news news;
    ls_relay_read_news(stage->relays[level], &news);
    return news;
}

static void reports_of_all_levels_arrive_over_one_connection(void **state) {
    struct stage *stage = *state;
    for (int i = 0; i < TRIES && (stage->reports[2] < 10 || !news_of(stage, 2).answered); i++) turn(stage);
    for (int level = 0; level < LEVELS; level++) {
        assert_true(stage->reports[level] >= 10);
        assert_true(news_of(stage, level).answered && !news_of(stage, level).ended);
    }
    /* Were they not gathered, there would be as many messages as reports. */
    assert_true(stage->messages < stage->reports[0] + stage->reports[1] / 2);
}

static void the_end_of_the_attempt_reaches_the_lowest_node(void **state) {
    struct stage *stage = *state;
    for (int i = 0; i < TRIES && !news_of(stage, 2).answered; i++) turn(stage);
    struct ls_message ended = {.kind = LS_MESSAGE_ENDED, .attempt = ATTEMPT};
    ended.answer.code = LS_STALL;
    strcpy(ended.answer.text, "rank 3 stood still");
    answer(stage, &ended); /* to node 0, which alone is connected here */
    for (int i = 0; i < TRIES && !news_of(stage, 2).ended; i++)
        for (int level = 0; level < LEVELS; level++) ls_relay_serve(stage->relays[level], 5);
    for (int level = 0; level < LEVELS; level++) {
        assert_true(news_of(stage, level).ended);
        assert_int_equal(news_of(stage, level).code, LS_STALL);
        assert_string_equal(news_of(stage, level).text, "rank 3 stood still");
    }
}

static void silence_of_the_coordinator_is_silence_below(void **state) {
    struct stage *stage = *state;
    stage->answers = false;
    for (int i = 0; i < 40; i++) turn(stage);
    for (int level = 0; level < LEVELS; level++) assert_false(news_of(stage, level).answered);
}

static void a_node_whose_parent_is_gone_turns_to_the_next_one_up(void **state) {
    struct stage *stage = *state;
    for (int i = 0; i < TRIES && stage->reports[2] == 0; i++) turn(stage);
    ls_relay_destroy(stage->relays[1]);
    stage->relays[1] = NULL;
    for (int i = 0; i < 20; i++) turn(stage); /* what was under way */
    const int before = stage->reports[2];
    for (int i = 0; i < 3 * TRIES && stage->reports[2] < before + 3; i++) turn(stage);
    assert_true(stage->reports[2] >= before + 3);
    ls_relay_destroy(stage->relays[0]);
    stage->relays[0] = NULL;
    for (int i = 0; i < 20; i++) turn(stage);
    const int then = stage->reports[2];
    for (int i = 0; i < 3 * TRIES && stage->reports[2] < then + 3; i++) turn(stage);
    assert_true(stage->reports[2] >= then + 3); /* to the coordinator itself */
}

static void nodes_without_a_key_of_the_run_are_not_let_in(void **state) {
    struct stage *stage = *state;
    struct ls_keys others;
    assert_int_equal(ls_keys_generate(&others, NULL), LS_OK);
    memcpy(others.worker.server, stage->keys.worker.server, sizeof others.worker.server);
    const struct ls_relay_options options = {.key = &others.worker, .endpoints = stage->endpoint, .attempt = ATTEMPT};
    ls_relay_destroy(stage->relays[2]);
    assert_int_equal(ls_relay_create(&options, &stage->relays[2], NULL), LS_OK);
    assert_int_equal(ls_relay_join(stage->relays[2], stage->nodes, NODES, indices[2], NULL), LS_OK);
    for (int i = 0; i < TRIES && stage->reports[1] < 20; i++) turn(stage);
    assert_true(stage->reports[1] >= 20);
    assert_int_equal(stage->reports[2], 0);
}

static void only_nodes_with_others_below_them_have_children(void **state) {
    (void)state;
    assert_true(ls_relay_has_children(0, 33)); /* node 32 */
    assert_false(ls_relay_has_children(0, 32));
    assert_true(ls_relay_has_children(1, 65)); /* nodes 64 to 95 */
    assert_false(ls_relay_has_children(1, 64));
    assert_true(ls_relay_has_children(389, 12500)); /* node 12480 */
    assert_false(ls_relay_has_children(390, 12500));
}

static void an_address_is_the_one_towards_the_coordinator(void **state) {
    (void)state;
    char address[LS_RELAY_ADDRESS_BYTES];
    assert_true(ls_relay_address("tcp://127.0.0.1:4000,tcp://10.0.0.1:4000", address));
    assert_string_equal(address, "127.0.0.1");
    assert_false(ls_relay_address("tcp://nowhere:4000", address));
    assert_false(ls_relay_address("", address));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(reports_of_all_levels_arrive_over_one_connection, open_stage, close_stage),
        cmocka_unit_test_setup_teardown(the_end_of_the_attempt_reaches_the_lowest_node, open_stage, close_stage),
        cmocka_unit_test_setup_teardown(silence_of_the_coordinator_is_silence_below, open_stage, close_stage),
        cmocka_unit_test_setup_teardown(a_node_whose_parent_is_gone_turns_to_the_next_one_up, open_stage, close_stage),
        cmocka_unit_test_setup_teardown(nodes_without_a_key_of_the_run_are_not_let_in, open_stage, close_stage),
        cmocka_unit_test(only_nodes_with_others_below_them_have_children),
        cmocka_unit_test(an_address_is_the_one_towards_the_coordinator),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
