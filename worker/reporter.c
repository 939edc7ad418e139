/* A thread that looks around once a second. */
#define _GNU_SOURCE
#include "worker/reporter.h"

#include "common/log.h"
#include "common/wire.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SERVE_MILLISECONDS = 50, MESSAGE_BYTES = 512 << 10 };
static const uint64_t TURN_NS = 1000000000u;
/* How long a rank has to leave by itself once the attempt is over: well, or because of a loss. */
static const uint64_t GOOD_END_NS = 60000000000u, BAD_END_NS = 2000000000u;
/* A reporter that has not turned for so long has stopped; ranks that have not moved for so long are told in full. */
static const uint64_t STOPPED_NS = 2500000000u, QUIET_NS = 1500000000u;

struct ls_reporter {
    struct ls_reporter_options options;
    struct ls_key key;
    char host[64];
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool closing;                    /* under the mutex */
    _Atomic int64_t silence_seconds; /* after which this rank leaves, 0: never */
    /* The thread's, from its first report on. */
    struct ls_relay *relay;
    bool joined, left;
    uint64_t turned_ns, awake_ns; /* when it looked for news last, and since when it did so at every turn */
    uint64_t over_ns;             /* when the end was heard of, 0: not yet */
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

/* ---- the way up ---- */

static void disconnect(struct ls_reporter *reporter) {
    ls_relay_destroy(reporter->relay);
    free(reporter->buffer);
    free(reporter->ranks);
    reporter->relay = NULL;
    reporter->buffer = NULL;
    reporter->ranks = NULL;
    reporter->joined = false;
}

static bool connect_relay(struct ls_reporter *reporter) {
    const struct ls_reporter_options *options = &reporter->options;
    const struct ls_relay_options way = {
        .key = &reporter->key, .endpoints = options->endpoints, .attempt = options->attempt};
    if (!reporter->buffer) reporter->buffer = malloc(MESSAGE_BYTES);
    if (!reporter->ranks) reporter->ranks = calloc(LS_WIRE_REPORT_RANKS_MAX, sizeof *reporter->ranks);
    if (!reporter->relay) ls_relay_create(&way, &reporter->relay, NULL);
    if (!reporter->buffer || !reporter->ranks || !reporter->relay) return false;
    if (!reporter->joined) /* without a connection now, the next flush tries again */
        ls_relay_join(reporter->relay, options->nodes, options->nodes_count, options->node, NULL);
    reporter->joined = true;
    return true;
}

/* ---- reports ---- */

static void report_rank(const struct ls_progress_record *record, int local_rank, struct ls_rank_report *report) {
    ls_progress_read(record, false, &report->view);
    const bool known = report->view.pid != 0 && report->view.world_rank < LS_WIRE_WORLD_MAX;
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
    if (!connect_relay(reporter)) return;
    for (int first = 0; first < count; first += LS_WIRE_REPORT_RANKS_MAX) {
        struct ls_message message = {.kind = LS_MESSAGE_REPORT, .attempt = (uint32_t)reporter->options.attempt};
        memcpy(message.report.host, reporter->host, sizeof message.report.host);
        message.report.ranks = reporter->ranks;
        for (int i = first; i < count && i < first + LS_WIRE_REPORT_RANKS_MAX; i++)
            report_rank(ls_progress_record(reporter->options.progress, i), i,
                        &reporter->ranks[message.report.ranks_count++]);
        size_t bytes;
        if (ls_wire_encode(&message, reporter->buffer, MESSAGE_BYTES, &bytes, NULL) == LS_OK)
            ls_relay_add(reporter->relay, reporter->buffer, bytes);
    }
    ls_relay_flush(reporter->relay);
}

/* ---- the end ---- */

/* The coordinator's silence. While this process, or its host, was stopped it could not hear: then it is counted from
 * there on. */
static double count_silence(struct ls_reporter *reporter, const struct ls_relay_news *news) {
    const uint64_t now = now_ns();
    if (now - reporter->turned_ns > STOPPED_NS) reporter->awake_ns = now;
    reporter->turned_ns = now;
    const double awake = (double)(now - reporter->awake_ns) * 1e-9;
    return news->silence_seconds < awake ? news->silence_seconds : awake;
}

/* What the working reporter hears is stamped into its record, where all find it. */
static void hear_news(struct ls_reporter *reporter, struct ls_progress_record *own) {
    struct ls_relay_news news;
    if (!reporter->relay) return;
    ls_relay_read_news(reporter->relay, &news);
    if (news.ended) atomic_store_explicit(&own->attempt_over, 1 + (uint64_t)news.code, memory_order_relaxed);
    const double limit = (double)atomic_load(&reporter->silence_seconds);
    const double silence = count_silence(reporter, &news);
    if (limit > 0 && news.answered && silence > limit && !reporter->left) {
        struct ls_error error;
        ls_fail(
            &error, LS_COMMUNICATION, LS_SCOPE_NODE,
            "%s has not heard of the coordinator at %s for %.0f s. Look at its log, and at the network between them.",
            reporter->host, reporter->options.endpoints, silence);
        reporter->left = true;
        if (reporter->options.leave) reporter->options.leave(&error);
    }
}

/* A rank that knows of the end leaves by itself within a moment; one that hangs is made to. */
static void leave_if_over(struct ls_reporter *reporter, uint64_t now) {
    uint64_t over = 0;
    for (int i = 0; i < ls_progress_ranks(reporter->options.progress) && !over; i++)
        over = atomic_load_explicit(&ls_progress_record(reporter->options.progress, i)->attempt_over,
                                    memory_order_relaxed);
    if (!over || reporter->left) return;
    const enum ls_code code = (enum ls_code)(over - 1);
    const bool good = code == LS_OK || code == LS_REQUEUE || code == LS_STOPPED;
    if (!reporter->over_ns) reporter->over_ns = now;
    if (now - reporter->over_ns < (good ? GOOD_END_NS : BAD_END_NS)) return;
    struct ls_error error;
    ls_fail(&error, code == LS_OK ? LS_COMMUNICATION : code, LS_SCOPE_JOB,
            "attempt %lld is over, and this rank did not notice by itself", (long long)reporter->options.attempt);
    reporter->left = true;
    if (reporter->options.leave) reporter->options.leave(&error);
}

/* ---- the thread ---- */

static bool is_closing(struct ls_reporter *reporter) {
    pthread_mutex_lock(&reporter->mutex);
    const bool closing = reporter->closing;
    pthread_mutex_unlock(&reporter->mutex);
    return closing;
}

/* The rest of a turn: waiting, or serving the nodes below. */
static void pass_turn(struct ls_reporter *reporter, uint64_t begin) {
    struct timespec end = {.tv_sec = (time_t)(begin / 1000000000) + 1, .tv_nsec = (long)(begin % 1000000000)};
    if (reporter->relay) {
        while (now_ns() < begin + TURN_NS && !is_closing(reporter)) ls_relay_serve(reporter->relay, SERVE_MILLISECONDS);
        return;
    }
    pthread_mutex_lock(&reporter->mutex);
    while (!reporter->closing && pthread_cond_timedwait(&reporter->changed, &reporter->mutex, &end) != ETIMEDOUT)
        ;
    pthread_mutex_unlock(&reporter->mutex);
}

static void *reporter_thread(void *argument) {
    struct ls_reporter *reporter = argument;
    struct ls_progress_record *own = ls_progress_record(reporter->options.progress, reporter->options.local_rank);
    while (!is_closing(reporter)) {
        const uint64_t now = now_ns();
        atomic_store_explicit(&own->reported_ns, now, memory_order_relaxed);
        if (ls_reporter_is_due(reporter->options.progress, reporter->options.local_rank, now))
            send_reports(reporter);
        else if (!reporter->options.relay)
            disconnect(reporter);
        pass_turn(reporter, now);
        hear_news(reporter, own);
        leave_if_over(reporter, now_ns());
    }
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
    if (!reporter) {
        ls_relay_destroy(options->relay);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for the reports of this node");
    }
    reporter->options = *options;
    reporter->relay = options->relay;
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
        ls_relay_destroy(reporter->relay);
        destroy(reporter);
        return ls_fail(error, LS_ERROR, LS_SCOPE_RANK, "cannot start the thread that reports: %s. Check 'ulimit -u'.",
                       strerror(cause));
    }
    pthread_setname_np(reporter->thread, "ls-reporter");
    *result = reporter;
    return LS_OK;
}

void ls_reporter_limit_silence(struct ls_reporter *reporter, int64_t seconds) {
    if (reporter) atomic_store(&reporter->silence_seconds, seconds);
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
