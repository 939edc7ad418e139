/* A thread that looks around once a second. */
#define _GNU_SOURCE
#include "worker/reporter.h"

#include "common/log.h"
#include "common/wire.h"
#include "worker/link.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

/* Old reports are worth nothing: a few wait for the connection. */
enum { TURN_MILLISECONDS = 1000, MESSAGE_BYTES = 512 << 10, BACKLOG = 4 };
/* A reporter that has not turned for so long has stopped; ranks that have not moved for so long are told in full. */
static const uint64_t STOPPED_NS = 3000000000u, QUIET_NS = 1500000000u;

struct ls_reporter {
    struct ls_reporter_options options;
    struct ls_key key;
    char host[64];
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool closing; /* under the mutex */
    /* The thread's, from its first report on. */
    struct ls_link *link;
    void *socket; /* the link's */
    uint8_t *buffer;              /* [MESSAGE_BYTES] */
    struct ls_rank_report *ranks; /* [LS_WIRE_REPORT_RANKS_MAX] */
};

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

bool ls_reporter_is_due(struct ls_progress *progress, int local_rank, uint64_t now) {
    for (int lower = 0; lower < local_rank; lower++) {
        const struct ls_progress_record *record = ls_progress_record(progress, lower);
        const uint64_t turned = atomic_load_explicit(&record->reported_ns, memory_order_relaxed);
        if (turned + STOPPED_NS > now) return false;
    }
    return true;
}

/* ---- the connection ---- */

static void disconnect(struct ls_reporter *reporter) {
    ls_link_close(reporter->link);
    free(reporter->buffer);
    free(reporter->ranks);
    reporter->link = NULL;
    reporter->socket = NULL;
    reporter->buffer = NULL;
    reporter->ranks = NULL;
}

static bool connect_socket(struct ls_reporter *reporter) {
    struct ls_link_state state;
    if (reporter->link) {
        ls_link_turn(reporter->link, &state);
        return true;
    }
    const int linger = 0;
    reporter->buffer = malloc(MESSAGE_BYTES);
    reporter->ranks = calloc(LS_WIRE_REPORT_RANKS_MAX, sizeof *reporter->ranks);
    if (!reporter->buffer || !reporter->ranks ||
        ls_link_open(reporter->options.endpoints, &reporter->key, BACKLOG, &reporter->link, NULL) != LS_OK) {
        disconnect(reporter);
        return false;
    }
    reporter->socket = ls_link_socket(reporter->link);
    zmq_setsockopt(reporter->socket, ZMQ_LINGER, &linger, sizeof linger);
    return true;
}

/* Nothing that is sent back matters. */
static void drop_answers(struct ls_reporter *reporter) {
    char answer[16];
    for (int i = 0; i < 100 && zmq_recv(reporter->socket, answer, sizeof answer, ZMQ_DONTWAIT) >= 0; i++)
        ;
}

/* ---- reports ---- */

static void report_rank(const struct ls_progress_record *record, int local_rank, struct ls_rank_report *report) {
    ls_progress_read(record, false, &report->view);
    const bool known = report->view.pid != 0 && report->view.world_rank < LS_WIRE_RANKS_MAX;
    report->rank = known ? (int64_t)report->view.world_rank : -1;
    report->local_rank = local_rank;
    report->look = (struct ls_process_look){0};
    report->alive = true;
    if (report->view.age_ns < QUIET_NS || report->view.pid == 0) return;
    report->alive = ls_progress_alive(record);
    ls_process_look((int64_t)report->view.pid, report->view.phase == LS_PHASE_DATA ? "ls-prefetch" : NULL,
                    &report->look);
    ls_progress_read(record, true, &report->view);
}

static void send_reports(struct ls_reporter *reporter) {
    const int count = ls_progress_ranks(reporter->options.progress);
    if (!connect_socket(reporter)) return;
    drop_answers(reporter);
    for (int first = 0; first < count; first += LS_WIRE_REPORT_RANKS_MAX) {
        struct ls_message message = {.kind = LS_MESSAGE_REPORT, .attempt = (uint32_t)reporter->options.attempt};
        memcpy(message.report.host, reporter->host, sizeof message.report.host);
        message.report.ranks = reporter->ranks;
        for (int i = first; i < count && i < first + LS_WIRE_REPORT_RANKS_MAX; i++)
            report_rank(ls_progress_record(reporter->options.progress, i), i,
                        &reporter->ranks[message.report.ranks_count++]);
        size_t bytes;
        if (ls_wire_encode(&message, reporter->buffer, MESSAGE_BYTES, &bytes, NULL) == LS_OK)
            zmq_send(reporter->socket, reporter->buffer, bytes, ZMQ_DONTWAIT);
    }
}

/* ---- the thread ---- */

static struct timespec next_turn(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    time.tv_nsec += TURN_MILLISECONDS % 1000 * 1000000L;
    time.tv_sec += TURN_MILLISECONDS / 1000 + time.tv_nsec / 1000000000;
    time.tv_nsec %= 1000000000;
    return time;
}

static void *reporter_thread(void *argument) {
    struct ls_reporter *reporter = argument;
    struct ls_progress_record *own = ls_progress_record(reporter->options.progress, reporter->options.local_rank);
    pthread_mutex_lock(&reporter->mutex);
    while (!reporter->closing) {
        pthread_mutex_unlock(&reporter->mutex);
        const uint64_t now = now_ns();
        atomic_store_explicit(&own->reported_ns, now, memory_order_relaxed);
        if (ls_reporter_is_due(reporter->options.progress, reporter->options.local_rank, now))
            send_reports(reporter);
        else
            disconnect(reporter);
        const struct timespec turn = next_turn();
        pthread_mutex_lock(&reporter->mutex);
        while (!reporter->closing && pthread_cond_timedwait(&reporter->changed, &reporter->mutex, &turn) != ETIMEDOUT)
            ;
    }
    pthread_mutex_unlock(&reporter->mutex);
    disconnect(reporter);
    return NULL;
}

static void destroy(struct ls_reporter *reporter) {
    pthread_cond_destroy(&reporter->changed);
    pthread_mutex_destroy(&reporter->mutex);
    explicit_bzero(&reporter->key, sizeof reporter->key);
    free(reporter);
}

enum ls_code ls_reporter_start(const struct ls_reporter_options *options, struct ls_reporter **result,
                               struct ls_error *error) {
    struct ls_reporter *reporter = calloc(1, sizeof *reporter);
    if (!reporter) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for the reports of this node");
    reporter->options = *options;
    reporter->key = *options->key;
    reporter->options.key = &reporter->key;
    if (gethostname(reporter->host, sizeof reporter->host - 1))
        snprintf(reporter->host, sizeof reporter->host, "unknown");
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&reporter->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&reporter->mutex, NULL);
    /* Signals belong to the program's main thread. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int cause = pthread_create(&reporter->thread, NULL, reporter_thread, reporter);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (cause) {
        destroy(reporter);
        return ls_fail(error, LS_ERROR, LS_SCOPE_RANK, "cannot start the thread that reports: %s. Check 'ulimit -u'.",
                       strerror(cause));
    }
    pthread_setname_np(reporter->thread, "ls-reporter");
    *result = reporter;
    return LS_OK;
}

void ls_reporter_stop(struct ls_reporter *reporter) {
    if (!reporter) return;
    pthread_mutex_lock(&reporter->mutex);
    reporter->closing = true;
    pthread_cond_broadcast(&reporter->changed);
    pthread_mutex_unlock(&reporter->mutex);
    pthread_join(reporter->thread, NULL);
    destroy(reporter);
}
