/* The session: one thread owns the socket; what it and the training thread share is under one mutex, held for copies
 * only. */
#define _GNU_SOURCE
#include "worker/session.h"

#include "common/keys.h"
#include "common/log.h"
#include "worker/link.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum {
    HELLO_RANKS = 2048,  /* in a message: some 120 bytes each */
    REPORTS_MAX = 16384, /* ring of reports not yet acknowledged: steps, validations; and the parts of all ranks */
    STEPS_UNACKNOWLEDGED_MAX = 4096,
    PULSE_MILLISECONDS = 1000, /* between signs of life, and the wait before HELLO is repeated */
    POLL_MILLISECONDS = 200,
    STOPPED_MILLISECONDS = 2000, /* a turn that took longer: this process was stopped, or its host */
    FAILED_HANDSHAKES_MAX = 5    /* before the first answer: it will not become better */
};

/* What rank 0 says of a save. */
struct saving {
    int64_t step;
    uint64_t order;
    bool stop;
};

/* A report in the ring. PART owns its files. */
struct report {
    enum ls_message_kind kind;
    bool settled; /* acknowledged, or sent and never to be repeated */
    int64_t queued_ns;
    union {
        struct ls_step_report step;
        struct {
            int64_t step;
            double loss, bits_per_byte;
        } validation;
        struct saving saving;
        struct {
            int64_t step, rank, optimizer_steps;
            double seconds;
            struct ls_part_file *files;
            int64_t files_count;
        } part;
        struct {
            int64_t rank, step;
            int32_t code;
            char text[LS_WIRE_TEXT_BYTES], host[64];
            bool replicas_differ, unloadable;
            int64_t good_step;
        } words; /* FAULT, SAVE_FAILED */
    };
};

struct ls_session {
    struct ls_link *link;
    void *socket; /* the link's */
    int wake;     /* eventfd: the training thread has something for the session's thread */
    pthread_t thread;
    bool thread_runs;
    uint8_t *buffer; /* of one message, the session's thread's */

    atomic_llong heard_ns, steps_done;
    atomic_llong turned_ns; /* when the session's thread listened last */

    pthread_mutex_t mutex;
    pthread_cond_t changed;
    /* All below under the mutex. */
    uint64_t changes, changes_seen;
    bool closing, close_now;
    bool opened, joined, started;
    uint32_t attempt, generation;
    int64_t granted_step;
    struct ls_welcome welcome;
    char *yaml;
    struct ls_rank_info *ranks;
    int64_t ranks_count, world_size;
    struct ls_session_orders orders;
    struct saving saved;         /* the newest save announced; order 0: it honours none */
    bool save_wished, wish_sent; /* until a save begins; said once to each coordinator */
    struct report *ring;
    uint64_t ring_size;        /* REPORTS_MAX, and a part of every rank once they have joined */
    uint64_t head, sent, tail; /* head <= sent <= tail: oldest unsettled, next to send, next free */
    bool flowing;              /* reports were sent, until the connection took no more */
    int64_t steps_unacknowledged;
    struct ls_link_state link_state;
};

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static struct report *report_at(struct ls_session *session, uint64_t index) {
    return &session->ring[index % session->ring_size];
}

static void orders_changed(struct ls_session *session) {
    session->changes++;
    pthread_cond_broadcast(&session->changed);
}

/* ---- the session's thread: sending ---- */

/* Sends; false when the connection takes nothing now. */
static bool send_message(struct ls_session *session, struct ls_message *message) {
    struct ls_error error;
    size_t count;
    message->attempt = session->attempt;
    message->generation = session->generation;
    if (ls_wire_encode(message, session->buffer, LS_WIRE_BYTES_MAX, &count, &error) != LS_OK) {
        ls_log(LS_LOG_ERROR, "%s", error.text);
        return true;
    }
    return zmq_send(session->socket, session->buffer, count, ZMQ_DONTWAIT) >= 0;
}

static bool send_plain(struct ls_session *session, enum ls_message_kind kind) {
    struct ls_message message = {.kind = kind};
    return send_message(session, &message);
}

static bool send_open(struct ls_session *session) {
    struct ls_message message = {.kind = LS_MESSAGE_OPEN};
    snprintf(message.open.version, sizeof message.open.version, "%s", LS_VERSION);
    return send_message(session, &message);
}

/* Says everything this worker holds, many ranks in several messages; called with the mutex held. */
static bool send_hello(struct ls_session *session) {
    struct ls_message message = {.kind = LS_MESSAGE_HELLO};
    snprintf(message.hello.version, sizeof message.hello.version, "%s", LS_VERSION);
    message.hello.world_size = session->world_size;
    message.hello.started = session->started;
    message.hello.steps_done = atomic_load(&session->steps_done);
    message.hello.granted_step = session->granted_step;
    bool sent = true;
    for (int64_t first = 0; first < session->ranks_count && sent; first += HELLO_RANKS) {
        const int64_t left = session->ranks_count - first;
        message.hello.ranks = session->ranks + first;
        message.hello.ranks_count = left < HELLO_RANKS ? left : HELLO_RANKS;
        sent = send_message(session, &message);
    }
    return sent;
}

static bool send_report(struct ls_session *session, const struct report *report) {
    struct ls_message message = {.kind = report->kind};
    switch (report->kind) {
    case LS_MESSAGE_STEP: message.step = report->step; break;
    case LS_MESSAGE_VALIDATION:
        message.validation.step = report->validation.step;
        message.validation.loss = report->validation.loss;
        message.validation.bits_per_byte = report->validation.bits_per_byte;
        break;
    case LS_MESSAGE_SAVING:
        message.saving.step = report->saving.step;
        message.saving.order = report->saving.order;
        message.saving.stop = report->saving.stop;
        break;
    case LS_MESSAGE_PART:
        message.part.step = report->part.step;
        message.part.rank = report->part.rank;
        message.part.optimizer_steps = report->part.optimizer_steps;
        message.part.seconds = report->part.seconds;
        message.part.files = report->part.files;
        message.part.files_count = report->part.files_count;
        break;
    case LS_MESSAGE_FAULT:
        message.fault.rank = report->words.rank;
        message.fault.step = report->words.step;
        message.fault.code = report->words.code;
        message.fault.replicas_differ = report->words.replicas_differ;
        message.fault.good_step = report->words.good_step;
        message.fault.unloadable = report->words.unloadable;
        memcpy(message.fault.text, report->words.text, sizeof message.fault.text);
        memcpy(message.fault.host, report->words.host, sizeof message.fault.host);
        break;
    case LS_MESSAGE_SAVE_FAILED:
        message.save_failed.rank = report->words.rank;
        message.save_failed.step = report->words.step;
        memcpy(message.save_failed.text, report->words.text, sizeof message.save_failed.text);
        break;
    default: break; /* no other is a report */
    }
    return send_message(session, &message);
}

/* Answers an order that was honoured before: what said so got lost, or the coordinator is a new one. */
static void send_saving_again(struct ls_session *session) {
    for (uint64_t i = session->sent; i < session->tail; i++)
        if (report_at(session, i)->kind == LS_MESSAGE_SAVING) return; /* it is on its way, behind its steps */
    const struct report again = {.kind = LS_MESSAGE_SAVING, .saving = session->saved};
    send_report(session, &again);
}

/* Removes settled reports from the old end of the ring. */
static void drop_settled(struct ls_session *session) {
    bool dropped = false;
    while (session->head < session->tail && report_at(session, session->head)->settled) {
        struct report *report = report_at(session, session->head++);
        if (report->kind == LS_MESSAGE_PART) free(report->part.files);
        if (report->kind == LS_MESSAGE_STEP) session->steps_unacknowledged--;
        dropped = true;
    }
    if (session->sent < session->head) session->sent = session->head;
    if (dropped) pthread_cond_broadcast(&session->changed);
}

/* Sends what has not been sent. Faults go out even before the welcome: they may be the reason why there is none. */
static void send_reports(struct ls_session *session) {
    uint64_t before = session->sent;
    session->flowing = false;
    for (; session->sent < session->tail; session->sent++) {
        struct report *report = report_at(session, session->sent);
        if (report->settled) continue;
        if (!session->joined && report->kind != LS_MESSAGE_FAULT) break;
        if (!send_report(session, report)) {
            session->flowing = session->sent != before;
            break;
        }
        if (report->kind == LS_MESSAGE_FAULT) report->settled = true;
    }
    if (session->sent != before) pthread_cond_broadcast(&session->changed);
    drop_settled(session);
}

static void send_wish(struct ls_session *session) {
    if (session->joined && session->save_wished && !session->wish_sent)
        session->wish_sent = send_plain(session, LS_MESSAGE_SAVE_REQUEST);
}

/* ---- the session's thread: receiving ---- */

static void settle(struct ls_session *session, int64_t step, int64_t validation, int64_t committed) {
    for (uint64_t i = session->head; i < session->tail; i++) {
        struct report *report = report_at(session, i);
        if ((report->kind == LS_MESSAGE_STEP && report->step.step <= step) ||
            (report->kind == LS_MESSAGE_VALIDATION && report->validation.step <= validation) ||
            (report->kind == LS_MESSAGE_SAVING && report->saving.step <= committed) ||
            (report->kind == LS_MESSAGE_PART && report->part.step <= committed) ||
            (report->kind == LS_MESSAGE_SAVE_FAILED && report->words.step <= committed))
            report->settled = true;
    }
    drop_settled(session);
}

static void handle_ended(struct ls_session *session, int32_t code, const char *text) {
    session->orders.ended = true;
    session->orders.ended_code = (enum ls_code)code;
    snprintf(session->orders.ended_text, sizeof session->orders.ended_text, "%s", text);
}

static void handle_setup(struct ls_session *session, struct ls_message *message) {
    if (session->opened) return;
    session->opened = true;
    session->welcome = message->setup.shape;
    session->attempt = message->attempt;
    session->yaml = message->setup.yaml;
    message->storage = NULL; /* the YAML is ours now */
}

/* Takes one message; the mutex is held. True when the training thread should look. */
static bool handle_message(struct ls_session *session, struct ls_message *message) {
    if (message->protocol != LS_PROTOCOL) {
        char text[LS_WIRE_TEXT_BYTES];
        snprintf(text, sizeof text,
                 "the coordinator speaks protocol %u, this worker %d. Use the same build of lockstep for both.",
                 message->protocol, LS_PROTOCOL);
        handle_ended(session, LS_COMMUNICATION, text);
        return true;
    }
    /* An older coordinator may still be on its way out; of another attempt only our own end concerns us. */
    const bool is_end = message->kind == LS_MESSAGE_REFUSED || message->kind == LS_MESSAGE_ENDED;
    if (message->generation < session->generation) return false;
    if (session->attempt && message->attempt && message->attempt != session->attempt && !is_end) return false;
    if (message->generation > session->generation) {
        session->joined = false;
        session->generation = message->generation;
    }
    struct ls_session_orders *orders = &session->orders;
    switch (message->kind) {
    case LS_MESSAGE_SETUP: handle_setup(session, message); return true;
    case LS_MESSAGE_WELCOME:
        session->joined = session->started = true;
        session->wish_sent = false;
        settle(session, message->welcome.acknowledged_step, message->welcome.acknowledged_validation, -1);
        session->sent = session->head;
        return true;
    case LS_MESSAGE_REFUSED:
    case LS_MESSAGE_ENDED: handle_ended(session, message->answer.code, message->answer.text); return true;
    case LS_MESSAGE_REJOIN:
        if (session->ranks)
            send_hello(session);
        else
            send_open(session);
        return false;
    case LS_MESSAGE_GRANT:
        /* Known already, or the one before it got lost: HELLO will bring both. */
        if (message->grant.to_step <= session->granted_step || message->grant.from_step > session->granted_step)
            return false;
        session->granted_step = message->grant.to_step;
        orders->grant =
            (struct ls_grant){message->grant.from_step + 1, message->grant.to_step + 1, message->grant.from_position};
        return true;
    case LS_MESSAGE_ORDER:
        if (message->order.id <= session->saved.order) send_saving_again(session);
        if (message->order.id > orders->checkpoint_id) orders->checkpoint_id = message->order.id;
        if (message->order.stop && message->order.id > orders->stop_id) {
            orders->stop_id = message->order.id;
            orders->stop_code = message->order.code;
        }
        return true;
    case LS_MESSAGE_ACK: settle(session, message->ack.step, message->ack.validation, -1); return false;
    case LS_MESSAGE_COMMITTED:
        if (message->committed.step > orders->committed_step) orders->committed_step = message->committed.step;
        settle(session, -1, -1, message->committed.step);
        return true;
    default: return false; /* PULSE: being heard was its purpose */
    }
}

/* Takes everything that has arrived. */
static bool receive_all(struct ls_session *session) {
    bool heard = false;
    for (int i = 0; i < 1000; i++) {
        zmq_msg_t frame;
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, session->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&frame);
            break;
        }
        struct ls_message message;
        if (ls_wire_decode(zmq_msg_data(&frame), zmq_msg_size(&frame), &message, NULL) == LS_OK) {
            heard = true;
            pthread_mutex_lock(&session->mutex);
            if (handle_message(session, &message)) orders_changed(session);
            pthread_mutex_unlock(&session->mutex);
            ls_message_release(&message);
        }
        zmq_msg_close(&frame);
    }
    if (heard) atomic_store(&session->heard_ns, now_ns());
    return heard;
}

/* The oldest report that should have been answered is old; the mutex is held. SAVING has no answer before the parts of
 * its save, which may take long to write. */
static bool is_overdue(struct ls_session *session) {
    for (uint64_t i = session->head; i < session->tail; i++) {
        const struct report *report = report_at(session, i);
        if (report->settled || report->kind == LS_MESSAGE_SAVING) continue;
        return now_ns() - report->queued_ns > PULSE_MILLISECONDS * INT64_C(1000000);
    }
    return false;
}

/* Something has been asked of the coordinator that it has not answered; the mutex is held. While reports go out as fast
 * as the connection takes them they are not begun again, which a HELLO would bring: those of many ranks take long. */
static bool waits_for_answer(struct ls_session *session) {
    if (!session->opened || (session->ranks && !session->joined)) return true;
    if (!session->joined || session->flowing) return false;
    return is_overdue(session) || atomic_load(&session->steps_done) >= session->granted_step;
}

/* What was stopped could not hear: that time is no silence of the coordinator's. */
static void take_turn(struct ls_session *session) {
    const int64_t now = now_ns(), passed = now - atomic_load(&session->turned_ns);
    if (passed > STOPPED_MILLISECONDS * INT64_C(1000000)) atomic_fetch_add(&session->heard_ns, passed);
    atomic_store(&session->turned_ns, now);
}

static void *session_thread(void *argument) {
    struct ls_session *session = argument;
    int64_t spoke_ns = 0;
    bool flowing = false;
    for (;;) {
        zmq_pollitem_t items[] = {{session->socket, 0, (short)(ZMQ_POLLIN | (flowing ? ZMQ_POLLOUT : 0)), 0},
                                  {NULL, session->wake, ZMQ_POLLIN, 0},
                                  {ls_link_monitor(session->link), 0, ZMQ_POLLIN, 0}};
        zmq_poll(items, 3, POLL_MILLISECONDS);
        uint64_t woken;
        if (items[1].revents && read(session->wake, &woken, sizeof woken) < 0 && errno != EAGAIN) break;
        take_turn(session);
        receive_all(session);
        pthread_mutex_lock(&session->mutex);
        if (ls_link_turn(session->link, &session->link_state)) pthread_cond_broadcast(&session->changed);
        bool asked_now = session->ranks && !session->joined && !session->started && items[1].revents;
        if (asked_now || now_ns() - spoke_ns >= PULSE_MILLISECONDS * INT64_C(1000000)) {
            bool waits = waits_for_answer(session);
            bool sent = !waits            ? send_plain(session, LS_MESSAGE_PULSE)
                        : session->ranks  ? send_hello(session)
                        : session->opened ? send_plain(session, LS_MESSAGE_PULSE)
                                          : send_open(session);
            /* Until the connection stands, try at every turn. */
            if (sent) spoke_ns = now_ns();
        }
        send_reports(session);
        send_wish(session);
        flowing = session->flowing;
        bool done = session->closing && (session->close_now || session->head == session->tail);
        if (done) send_plain(session, LS_MESSAGE_GOODBYE);
        pthread_mutex_unlock(&session->mutex);
        if (done) break;
    }
    return NULL;
}

static void wake_thread(struct ls_session *session) {
    uint64_t one = 1;
    if (write(session->wake, &one, sizeof one) < 0) return; /* full: it will wake up anyway */
}

/* ---- opening and closing ---- */

static struct timespec deadline_after(double seconds) {
    struct timespec deadline;
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    if (seconds < 0) seconds = 0;
    if (seconds > 1e8) seconds = 1e8;
    int64_t ns = deadline.tv_nsec + (int64_t)((seconds - (double)(int64_t)seconds) * 1e9);
    deadline.tv_sec += (time_t)seconds + (time_t)(ns / 1000000000);
    deadline.tv_nsec = ns % 1000000000;
    return deadline;
}

/* Frees everything; the thread is not running. */
static void destroy(struct ls_session *session) {
    ls_link_close(session->link);
    if (session->wake >= 0) close(session->wake);
    for (uint64_t i = session->head; session->ring && i < session->tail; i++)
        if (report_at(session, i)->kind == LS_MESSAGE_PART) free(report_at(session, i)->part.files);
    pthread_cond_destroy(&session->changed);
    pthread_mutex_destroy(&session->mutex);
    free(session->ring);
    free(session->ranks);
    free(session->yaml);
    free(session->buffer);
    free(session);
}

static struct ls_session *create(void) {
    struct ls_session *session = calloc(1, sizeof *session);
    if (!session) return NULL;
    session->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    session->orders.committed_step = -1;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&session->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&session->mutex, NULL);
    session->ring_size = REPORTS_MAX;
    session->ring = calloc(session->ring_size, sizeof *session->ring);
    session->buffer = malloc(LS_WIRE_BYTES_MAX);
    atomic_store(&session->heard_ns, now_ns());
    atomic_store(&session->turned_ns, now_ns());
    if (session->wake >= 0 && session->ring && session->buffer) return session;
    destroy(session);
    return NULL;
}

/* Waits with the mutex held; false once `deadline` has passed. */
static bool wait_until(struct ls_session *session, const struct timespec *deadline) {
    return pthread_cond_timedwait(&session->changed, &session->mutex, deadline) != ETIMEDOUT;
}

/* Why nothing came of the connection; the mutex is held. */
static enum ls_code explain_silence(struct ls_session *session, double waited_seconds, struct ls_error *error) {
    if (session->orders.ended)
        return ls_fail(error, session->orders.ended_code ? session->orders.ended_code : LS_COMMUNICATION, LS_SCOPE_JOB,
                       "%s", session->orders.ended_text);
    return ls_link_explain(session->link, waited_seconds, error);
}

enum ls_code ls_session_open(const char *endpoints, const struct ls_key *key, int64_t attempt, double timeout_seconds,
                             struct ls_session **result, struct ls_welcome *welcome, char **yaml,
                             struct ls_error *error) {
    struct ls_session *session = create();
    if (!session) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for the session with the coordinator");
    session->attempt = (uint32_t)attempt;
    enum ls_code code = ls_link_open(endpoints, key, 0, &session->link, error);
    if (code == LS_OK) session->socket = ls_link_socket(session->link);
    const int cause = code ? 0 : pthread_create(&session->thread, NULL, session_thread, session);
    if (cause)
        code = ls_fail(error, LS_ERROR, LS_SCOPE_RANK, "cannot start the session's thread: %s. Check 'ulimit -u'.",
                       strerror(cause));
    if (code != LS_OK) {
        destroy(session);
        return code;
    }
    session->thread_runs = true;
    struct timespec deadline = deadline_after(timeout_seconds);
    pthread_mutex_lock(&session->mutex);
    while (!session->opened && !session->orders.ended && !session->link_state.refused &&
           session->link_state.failed_handshakes < FAILED_HANDSHAKES_MAX && wait_until(session, &deadline))
        ;
    if (session->opened) {
        *welcome = session->welcome;
        *yaml = session->yaml;
        session->yaml = NULL;
    } else {
        code = explain_silence(session, timeout_seconds, error);
    }
    pthread_mutex_unlock(&session->mutex);
    if (code != LS_OK) {
        ls_session_close(session, 0);
        return code;
    }
    *result = session;
    return LS_OK;
}

enum ls_code ls_session_join(struct ls_session *session, const struct ls_rank_info *ranks, int64_t count,
                             struct ls_error *error) {
    struct ls_rank_info *copy = malloc((size_t)count * sizeof *copy + 1);
    struct report *ring = calloc(REPORTS_MAX + (size_t)count, sizeof *ring);
    if (!copy || !ring) {
        free(copy);
        free(ring);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for %lld ranks", (long long)count);
    }
    memcpy(copy, ranks, (size_t)count * sizeof *copy);
    enum ls_code code = LS_OK;
    pthread_mutex_lock(&session->mutex);
    assert(session->tail == 0); /* nothing is reported before */
    free(session->ring);
    session->ring = ring;
    session->ring_size = REPORTS_MAX + (uint64_t)count;
    atomic_store(&session->steps_done, session->welcome.start_step);
    session->granted_step = session->welcome.start_step;
    session->world_size = count;
    session->ranks_count = count;
    session->ranks = copy;
    wake_thread(session);
    while (!session->joined && !session->orders.ended) pthread_cond_wait(&session->changed, &session->mutex);
    if (!session->joined) code = explain_silence(session, 0, error);
    pthread_mutex_unlock(&session->mutex);
    return code;
}

void ls_session_close(struct ls_session *session, double seconds) {
    if (!session) return;
    struct timespec deadline = deadline_after(seconds);
    pthread_mutex_lock(&session->mutex);
    session->closing = true;
    while (session->head < session->tail && !session->orders.ended && wait_until(session, &deadline))
        ;
    session->close_now = true;
    pthread_mutex_unlock(&session->mutex);
    if (session->thread_runs) {
        wake_thread(session);
        pthread_join(session->thread, NULL);
    }
    destroy(session);
}

/* ---- the training thread ---- */

void ls_session_at(struct ls_session *session, int64_t next_step) {
    atomic_store(&session->steps_done, next_step - 1);
}

double ls_session_silence(struct ls_session *session) {
    const int64_t silence = atomic_load(&session->turned_ns) - atomic_load(&session->heard_ns);
    return silence > 0 ? (double)silence * 1e-9 : 0;
}

void ls_session_orders(struct ls_session *session, struct ls_session_orders *orders) {
    pthread_mutex_lock(&session->mutex);
    *orders = session->orders;
    session->changes_seen = session->changes;
    pthread_mutex_unlock(&session->mutex);
}

void ls_session_wait(struct ls_session *session, double seconds) {
    struct timespec deadline = deadline_after(seconds);
    pthread_mutex_lock(&session->mutex);
    while (session->changes == session->changes_seen && wait_until(session, &deadline))
        ;
    session->changes_seen = session->changes;
    pthread_mutex_unlock(&session->mutex);
}

/* The next free report, with the mutex locked; waits while the ring is full. */
static struct report *begin_report(struct ls_session *session, enum ls_message_kind kind) {
    pthread_mutex_lock(&session->mutex);
    while (!session->orders.ended &&
           (session->tail - session->head >= session->ring_size ||
            (kind == LS_MESSAGE_STEP && session->steps_unacknowledged >= STEPS_UNACKNOWLEDGED_MAX)))
        pthread_cond_wait(&session->changed, &session->mutex);
    /* After the end nobody listens: reports beyond the ring are let go. */
    if (session->tail - session->head >= session->ring_size) {
        report_at(session, session->head)->settled = true;
        drop_settled(session);
    }
    struct report *report = report_at(session, session->tail);
    report->kind = kind;
    report->settled = false;
    report->queued_ns = now_ns();
    return report;
}

static void end_report(struct ls_session *session) {
    session->tail++;
    pthread_mutex_unlock(&session->mutex);
    wake_thread(session);
}

void ls_session_step_done(struct ls_session *session, const struct ls_step_report *report) {
    struct report *slot = begin_report(session, LS_MESSAGE_STEP);
    slot->step = *report;
    session->steps_unacknowledged++;
    end_report(session);
}

void ls_session_validation(struct ls_session *session, int64_t step, double loss, double bits_per_byte) {
    struct report *slot = begin_report(session, LS_MESSAGE_VALIDATION);
    slot->validation.step = step;
    slot->validation.loss = loss;
    slot->validation.bits_per_byte = bits_per_byte;
    end_report(session);
}

void ls_session_saving(struct ls_session *session, int64_t step, uint64_t order_id, bool stop) {
    struct report *slot = begin_report(session, LS_MESSAGE_SAVING);
    slot->saving = session->saved = (struct saving){step, order_id, stop};
    session->save_wished = false;
    end_report(session);
}

void ls_session_part(struct ls_session *session, int64_t step, int64_t rank, int64_t optimizer_steps, double seconds,
                     const struct ls_part_file *files, int64_t count) {
    struct ls_part_file *copy = malloc((size_t)count * sizeof *copy + 1);
    if (!copy) {
        ls_session_save_failed(session, step, rank, "no memory for the list of files");
        return;
    }
    if (count > 0) memcpy(copy, files, (size_t)count * sizeof *copy);
    struct report *slot = begin_report(session, LS_MESSAGE_PART);
    slot->part.step = step;
    slot->part.rank = rank;
    slot->part.optimizer_steps = optimizer_steps;
    slot->part.seconds = seconds;
    slot->part.files = copy;
    slot->part.files_count = count;
    end_report(session);
}

/* With the mutex locked: the next report, filled but for what only some say. */
static struct report *begin_words(struct ls_session *session, enum ls_message_kind kind, int64_t rank, int64_t step,
                                  int code, const char *text) {
    struct report *slot = begin_report(session, kind);
    slot->words.rank = rank;
    slot->words.step = step;
    slot->words.code = code;
    slot->words.replicas_differ = slot->words.unloadable = false;
    slot->words.good_step = 0;
    slot->words.host[0] = 0;
    snprintf(slot->words.text, sizeof slot->words.text, "%s", text);
    return slot;
}

void ls_session_save_failed(struct ls_session *session, int64_t step, int64_t rank, const char *text) {
    begin_words(session, LS_MESSAGE_SAVE_FAILED, rank, step, 0, text);
    end_report(session);
}

void ls_session_request_save(struct ls_session *session) {
    pthread_mutex_lock(&session->mutex);
    session->save_wished = true;
    session->wish_sent = false;
    pthread_mutex_unlock(&session->mutex);
    wake_thread(session);
}

/* Waits up to a second for the coordinator to end the run. */
static void await_end(struct ls_session *session) {
    struct timespec deadline = deadline_after(1);
    pthread_mutex_lock(&session->mutex);
    /* Sent is not received: what ZeroMQ still holds dies with the process. The coordinator's answer to a fault is the
     * end. */
    while (!session->orders.ended && wait_until(session, &deadline))
        ;
    pthread_mutex_unlock(&session->mutex);
}

void ls_session_fault(struct ls_session *session, int64_t rank, const char *host, int64_t step,
                      const struct ls_error *error) {
    struct report *slot = begin_words(session, LS_MESSAGE_FAULT, rank, step, error->code, error->text);
    snprintf(slot->words.host, sizeof slot->words.host, "%s", host);
    end_report(session);
    await_end(session);
}

void ls_session_unloadable(struct ls_session *session, int64_t rank, int64_t step, const struct ls_error *error) {
    begin_words(session, LS_MESSAGE_FAULT, rank, step, error->code, error->text)->words.unloadable = true;
    end_report(session);
    await_end(session);
}

void ls_session_replicas_differ(struct ls_session *session, int64_t rank, int64_t step, int64_t good_step,
                                const struct ls_error *error) {
    struct report *slot = begin_words(session, LS_MESSAGE_FAULT, rank, step, error->code, error->text);
    slot->words.replicas_differ = true;
    slot->words.good_step = good_step;
    end_report(session);
    await_end(session);
}
