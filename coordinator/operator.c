/* One question, one answer. */
#define _GNU_SOURCE
#include "coordinator/operator.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

enum { PULSE_MS = 1000 };

static double now_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void *connect_to(void *context, const char *endpoint, const struct ls_key *key) {
    void *socket = zmq_socket(context, ZMQ_DEALER);
    int linger = 500, handshake = 5000;
    int64_t largest = LS_WIRE_BYTES_MAX;
    if (!socket) return NULL;
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(socket, ZMQ_HANDSHAKE_IVL, &handshake, sizeof handshake);
    zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &largest, sizeof largest);
    if (zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, key->server, LS_KEY_CHARACTERS) == 0 &&
        zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, key->public_key, LS_KEY_CHARACTERS) == 0 &&
        zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, key->secret_key, LS_KEY_CHARACTERS) == 0 &&
        zmq_connect(socket, endpoint) == 0)
        return socket;
    zmq_close(socket);
    return NULL;
}

static void send_message(void *socket, struct ls_message *message) {
    uint8_t bytes[1024];
    size_t count;
    if (ls_wire_encode(message, bytes, sizeof bytes, &count, NULL) == LS_OK)
        zmq_send(socket, bytes, count, ZMQ_DONTWAIT);
}

static void send_request(void *socket, enum ls_wire_request request) {
    struct ls_message message = {.kind = LS_MESSAGE_REQUEST, .request = request};
    send_message(socket, &message);
}

static bool is_answer(enum ls_message_kind kind) {
    return kind == LS_MESSAGE_REPLY || kind == LS_MESSAGE_STATUS || kind == LS_MESSAGE_REFUSED ||
           kind == LS_MESSAGE_ENDED;
}

static enum ls_code wait_for_answer(void *socket, enum ls_wire_request request, double answer_seconds,
                                    bool (*is_over)(const void *run), const void *run, struct ls_message *answer) {
    double heard = now_seconds();
    while (now_seconds() - heard < answer_seconds) {
        zmq_pollitem_t item = {socket, 0, ZMQ_POLLIN, 0};
        if (zmq_poll(&item, 1, PULSE_MS) <= 0) {
            struct ls_message pulse = {.kind = LS_MESSAGE_PULSE};
            send_message(socket, &pulse);
            if (is_over && is_over(run)) return LS_ERROR;
            continue;
        }
        zmq_msg_t frame;
        zmq_msg_init(&frame);
        if (zmq_msg_recv(&frame, socket, ZMQ_DONTWAIT) >= 0 &&
            ls_wire_decode(zmq_msg_data(&frame), zmq_msg_size(&frame), answer, NULL) == LS_OK) {
            heard = now_seconds();
            if (is_answer(answer->kind) && answer->protocol == LS_PROTOCOL) {
                zmq_msg_close(&frame);
                return LS_OK;
            }
            if (answer->kind == LS_MESSAGE_REJOIN) send_request(socket, request);
            ls_message_release(answer);
        }
        zmq_msg_close(&frame);
    }
    return LS_COMMUNICATION;
}

enum ls_code ls_operator_ask(const char *endpoint, const struct ls_key *key, enum ls_wire_request request,
                             double answer_seconds, bool (*is_over)(const void *run), const void *run,
                             struct ls_message *answer, struct ls_error *error) {
    void *context = zmq_ctx_new();
    void *socket = context ? connect_to(context, endpoint, key) : NULL;
    enum ls_code code = LS_OK;
    if (!socket) {
        code =
            ls_fail(error, LS_COMMUNICATION, LS_SCOPE_CALL, "cannot connect to %s: %s", endpoint, zmq_strerror(errno));
    } else {
        send_request(socket, request);
        code = wait_for_answer(socket, request, answer_seconds, is_over, run, answer);
        if (code == LS_ERROR)
            ls_fail(error, code, LS_SCOPE_CALL, "the run ended before the coordinator at %s answered", endpoint);
        else if (code != LS_OK)
            ls_fail(error, code, LS_SCOPE_CALL,
                    "the coordinator at %s does not answer. It may be ending, or the operator key is not of this run.",
                    endpoint);
        zmq_close(socket);
    }
    if (context) zmq_ctx_term(context);
    return code;
}
