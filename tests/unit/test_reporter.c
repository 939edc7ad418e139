/* The reporter: whose turn it is, and what arrives at the coordinator. */
#define _GNU_SOURCE
#include "common/wire.h"
#include "worker/reporter.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>
#include <cmocka.h>

enum { RANKS = 3, ATTEMPT = 7 };
static char run_id[17];

static struct ls_progress *open_node(void) {
    struct ls_progress *progress;
    snprintf(run_id, sizeof run_id, "%016lx", (unsigned long)getpid());
    ls_progress_remove(run_id, ATTEMPT);
    assert_int_equal(ls_progress_open(run_id, ATTEMPT, RANKS, &progress, NULL), LS_OK);
    return progress;
}

static void close_node(struct ls_progress *progress) {
    ls_progress_close(progress);
    ls_progress_remove(run_id, ATTEMPT);
}

static void stamp(struct ls_progress *progress, int rank, uint64_t when) {
    atomic_store(&ls_progress_record(progress, rank)->reported_ns, when);
}

static void the_lowest_rank_that_turns_reports(void **unused) {
    (void)unused;
    const uint64_t second = 1000000000, now = 1000 * second;
    struct ls_progress *progress = open_node();
    /* Nobody has turned yet: all may, for a moment. */
    for (int rank = 0; rank < RANKS; rank++) assert_true(ls_reporter_is_due(progress, rank, now));
    for (int rank = 0; rank < RANKS; rank++) stamp(progress, rank, now - second);
    assert_true(ls_reporter_is_due(progress, 0, now));
    assert_false(ls_reporter_is_due(progress, 1, now));
    assert_false(ls_reporter_is_due(progress, 2, now));
    stamp(progress, 0, now - 3 * second); /* rank 0 is stopped */
    assert_true(ls_reporter_is_due(progress, 1, now));
    assert_false(ls_reporter_is_due(progress, 2, now));
    stamp(progress, 1, now - 3 * second);
    assert_true(ls_reporter_is_due(progress, 2, now));
    stamp(progress, 0, now); /* and goes on */
    assert_false(ls_reporter_is_due(progress, 1, now));
    assert_false(ls_reporter_is_due(progress, 2, now));
    close_node(progress);
}

/* A coordinator's socket with the run's keys on a free port; whoever has the server's public key may talk to it. */
static void *listen_here(void *context, const struct ls_keys *keys, char endpoint[64]) {
    void *router = zmq_socket(context, ZMQ_ROUTER);
    const int server = 1, patience_ms = 20000;
    zmq_setsockopt(router, ZMQ_CURVE_SERVER, &server, sizeof server);
    zmq_setsockopt(router, ZMQ_CURVE_SECRETKEY, keys->server.secret_key, LS_KEY_CHARACTERS);
    zmq_setsockopt(router, ZMQ_RCVTIMEO, &patience_ms, sizeof patience_ms);
    assert_int_equal(zmq_bind(router, "tcp://127.0.0.1:*"), 0);
    size_t size = 64;
    zmq_getsockopt(router, ZMQ_LAST_ENDPOINT, endpoint, &size);
    return router;
}

/* The next report; the caller releases it. */
static void receive(void *router, struct ls_message *message) {
    static char bytes[LS_WIRE_BYTES_MAX];
    struct ls_error error;
    assert_true(zmq_recv(router, bytes, sizeof bytes, 0) > 0);
    const int count = zmq_recv(router, bytes, sizeof bytes, 0);
    assert_true(count > 0);
    if (ls_wire_decode(bytes, (size_t)count, message, &error)) fail_msg("%s", error.text);
    assert_int_equal(message->kind, LS_MESSAGE_REPORT);
}

static void a_node_is_reported_with_its_stopped_rank(void **unused) {
    (void)unused;
    struct ls_progress *progress = open_node();
    struct ls_keys keys;
    char endpoint[64], host[64] = "";
    assert_int_equal(ls_keys_generate(&keys, NULL), LS_OK);
    void *context = zmq_ctx_new();
    void *router = listen_here(context, &keys, endpoint);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        struct ls_progress_record *record = ls_progress_record(progress, 1);
        ls_progress_enter(record);
        atomic_store(&record->world_rank, 5);
        ls_progress_mark(record, LS_PHASE_FORWARD, 41, 1, 3);
        raise(SIGSTOP);
        _exit(0);
    }
    ls_progress_enter(ls_progress_record(progress, 0));
    atomic_store(&ls_progress_record(progress, 0)->world_rank, 4);
    const struct ls_reporter_options options = {
        .endpoints = endpoint, .key = &keys.worker, .progress = progress, .local_rank = 0, .attempt = ATTEMPT};
    struct ls_reporter *reporter;
    assert_int_equal(ls_reporter_start(&options, &reporter, NULL), LS_OK);
    gethostname(host, sizeof host - 1);
    /* Its ranks first; then, when the stopped one has not moved for a while, what it did last too. */
    bool told = false;
    for (int i = 0; i < 20 && !told; i++) {
        struct ls_message message;
        receive(router, &message);
        assert_int_equal(message.attempt, ATTEMPT);
        assert_string_equal(message.report.host, host);
        assert_int_equal(message.report.ranks_count, RANKS);
        const struct ls_rank_report *ranks = message.report.ranks;
        assert_int_equal(ranks[0].rank, 4);
        assert_int_equal(ranks[0].view.pid, getpid());
        assert_int_equal(ranks[2].rank, -1); /* never entered */
        assert_int_equal(ranks[2].view.pid, 0);
        if (ranks[1].view.phase == LS_PHASE_FORWARD && ranks[1].view.count > 0) {
            told = true;
            assert_int_equal(ranks[1].rank, 5);
            assert_int_equal(ranks[1].local_rank, 1);
            assert_int_equal(ranks[1].view.pid, child);
            assert_int_equal(ranks[1].view.step, 41);
            assert_int_equal(ranks[1].view.block, 3);
            assert_int_equal(ranks[1].look.state, 'T');
            assert_string_equal(ranks[1].look.text, "it is stopped by a signal");
            assert_true(ranks[1].alive);
            assert_int_equal(ranks[1].view.count, 2);
            assert_int_equal(ranks[1].view.operations[1].phase, LS_PHASE_FORWARD);
        }
        ls_message_release(&message);
    }
    assert_true(told);
    ls_reporter_stop(reporter);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    zmq_close(router);
    zmq_ctx_term(context);
    close_node(progress);
}

static void a_coordinator_that_is_not_there_holds_up_nobody(void **unused) {
    (void)unused;
    struct ls_progress *progress = open_node();
    struct ls_keys keys;
    assert_int_equal(ls_keys_generate(&keys, NULL), LS_OK);
    ls_progress_enter(ls_progress_record(progress, 0));
    const struct ls_reporter_options options = {
        .endpoints = "tcp://127.0.0.1:1", .key = &keys.worker, .progress = progress, .local_rank = 0, .attempt = 1};
    struct ls_reporter *reporter;
    assert_int_equal(ls_reporter_start(&options, &reporter, NULL), LS_OK);
    while (atomic_load(&ls_progress_record(progress, 0)->reported_ns) == 0)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    ls_reporter_stop(reporter);
    ls_reporter_stop(NULL);
    close_node(progress);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_lowest_rank_that_turns_reports),
        cmocka_unit_test(a_node_is_reported_with_its_stopped_rank),
        cmocka_unit_test(a_coordinator_that_is_not_there_holds_up_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
