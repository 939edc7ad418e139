/* The ZAP handler. */
#include "common/zap.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

enum { KEY_BYTES = 32, FRAMES_MAX = 7, FRAME_BYTES_MAX = 255 };

struct ls_zap {
    void *handler, *control, *control_end; /* handler and control_end are the thread's */
    uint8_t worker[KEY_BYTES], operator_[KEY_BYTES];
    pthread_t thread;
};

struct request {
    char frames[FRAMES_MAX][FRAME_BYTES_MAX + 1];
    size_t sizes[FRAMES_MAX];
    int count; /* of frames, FRAMES_MAX + 1 for more */
};

static bool receive_request(void *socket, struct request *request) {
    request->count = 0;
    for (int more = 1; more;) {
        char excess[FRAME_BYTES_MAX + 1];
        int i = request->count;
        char *frame = i < FRAMES_MAX ? request->frames[i] : excess;
        int size = zmq_recv(socket, frame, FRAME_BYTES_MAX, 0);
        if (size < 0) return false;
        frame[size < FRAME_BYTES_MAX ? size : FRAME_BYTES_MAX] = 0;
        if (i < FRAMES_MAX) request->sizes[i] = (size_t)size;
        if (i <= FRAMES_MAX) request->count++;
        size_t length = sizeof more;
        if (zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &length)) return false;
    }
    return true;
}

/* "worker", "operator", or NULL. Frames: version, request id, domain, address, identity, mechanism, key. */
static const char *user_of(const struct ls_zap *zap, const struct request *request) {
    if (request->count != FRAMES_MAX || strcmp(request->frames[0], "1.0") != 0 ||
        strcmp(request->frames[2], LS_ZAP_DOMAIN) != 0 || strcmp(request->frames[5], "CURVE") != 0 ||
        request->sizes[6] != KEY_BYTES)
        return NULL;
    if (memcmp(request->frames[6], zap->worker, KEY_BYTES) == 0) return "worker";
    if (memcmp(request->frames[6], zap->operator_, KEY_BYTES) == 0) return "operator";
    return NULL;
}

static void answer(void *socket, const struct request *request, const char *user) {
    const char *id = request->count > 1 ? request->frames[1] : "";
    size_t id_size = request->count > 1 ? request->sizes[1] : 0;
    const char *frames[] = {
        "1.0", id, user ? "200" : "400", user ? "" : "this key is not of this run", user ? user : "", ""};
    for (int i = 0; i < 6; i++)
        zmq_send(socket, frames[i], i == 1 ? id_size : strlen(frames[i]), i < 5 ? ZMQ_SNDMORE : 0);
}

static void *zap_thread(void *argument) {
    struct ls_zap *zap = argument;
    struct request *request = calloc(1, sizeof *request);
    while (request) {
        zmq_pollitem_t items[] = {{zap->handler, 0, ZMQ_POLLIN, 0}, {zap->control_end, 0, ZMQ_POLLIN, 0}};
        if (zmq_poll(items, 2, -1) < 0) {
            if (errno == EINTR) continue;
            break;
        }
        if (items[1].revents) break;
        if (!items[0].revents) continue;
        if (!receive_request(zap->handler, request)) break;
        answer(zap->handler, request, user_of(zap, request));
    }
    free(request);
    zmq_close(zap->handler);
    zmq_close(zap->control_end);
    return NULL;
}

enum ls_code ls_zap_start(void *context, const struct ls_keys *keys, struct ls_zap **result, struct ls_error *error) {
    struct ls_zap *zap = calloc(1, sizeof *zap);
    if (!zap) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for the key check");
    if (!zmq_z85_decode(zap->worker, keys->worker.public_key) ||
        !zmq_z85_decode(zap->operator_, keys->operator_.public_key)) {
        free(zap);
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "the run's keys are not keys");
    }
    zap->handler = zmq_socket(context, ZMQ_REP);
    zap->control = zmq_socket(context, ZMQ_PAIR);
    zap->control_end = zmq_socket(context, ZMQ_PAIR);
    bool made = zap->handler && zap->control && zap->control_end &&
                zmq_bind(zap->handler, "inproc://zeromq.zap.01") == 0 &&
                zmq_bind(zap->control, "inproc://zap-control") == 0 &&
                zmq_connect(zap->control_end, "inproc://zap-control") == 0;
    const int cause = made ? pthread_create(&zap->thread, NULL, zap_thread, zap) : errno;
    if (made && !cause) {
        *result = zap;
        return LS_OK;
    }
    enum ls_code code = ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "cannot start the key check: %s", zmq_strerror(cause));
    if (zap->handler) zmq_close(zap->handler);
    if (zap->control) zmq_close(zap->control);
    if (zap->control_end) zmq_close(zap->control_end);
    free(zap);
    return code;
}

void ls_zap_stop(struct ls_zap *zap) {
    if (!zap) return;
    zmq_send(zap->control, "", 0, 0);
    pthread_join(zap->thread, NULL);
    zmq_close(zap->control);
    free(zap);
}

enum ls_code ls_zap_guard(void *socket, const struct ls_keys *keys, struct ls_error *error) {
    int one = 1;
    if (zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &one, sizeof one) ||
        zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, keys->server.secret_key, LS_KEY_CHARACTERS) ||
        zmq_setsockopt(socket, ZMQ_ZAP_DOMAIN, LS_ZAP_DOMAIN, strlen(LS_ZAP_DOMAIN)))
        return ls_fail(
            error, LS_ERROR, LS_SCOPE_JOB,
            "this libzmq has no CURVE encryption (%s). Install one built with libsodium; 'lockstep doctor' checks it.",
            zmq_strerror(errno));
    /* Without an answering thread nobody gets in. Not every libzmq knows this; the server therefore also drops messages
     * whose connection has no user. */
    enum { ZAP_ENFORCE_DOMAIN = 93 };
    zmq_setsockopt(socket, ZAP_ENFORCE_DOMAIN, &one, sizeof one);
    return LS_OK;
}
