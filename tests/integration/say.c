/* Says one thing to a coordinator as a worker would, and prints what is answered within two seconds, a line each: what
 * it is and, of the end, code and text:
 *
 *   say ENDPOINT WORKER-KEY-FILE ATTEMPT open|step
 *
 * `open` is the first message of a worker (of attempt 0: one that was started by hand), `step` a report of step 1 with
 * a loss of 777, from a connection that has not joined. */
#include "common/keys.h"
#include "common/wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

static double now_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

int main(int argc, char **argv) {
    struct ls_key key;
    struct ls_error error = {.text = "usage: say ENDPOINT WORKER-KEY-FILE ATTEMPT open|step"};
    struct ls_message message = {.kind = LS_MESSAGE_OPEN};
    if (argc != 5 || ls_key_read(argv[2], &key, &error) != LS_OK) {
        fprintf(stderr, "say: %s\n", error.text);
        return 2;
    }
    message.attempt = (uint32_t)strtoul(argv[3], NULL, 10);
    snprintf(message.open.version, sizeof message.open.version, "%s", LS_VERSION);
    if (strcmp(argv[4], "step") == 0)
        message =
            (struct ls_message){.kind = LS_MESSAGE_STEP,
                                .attempt = message.attempt,
                                .step = {.step = 1, .sequences = 4, .targets = 32, .loss = 777, .wait_for_rank = -1}};
    static uint8_t bytes[4096];
    size_t count;
    const int patience_ms = 100, linger = 500;
    void *context = zmq_ctx_new(), *socket = zmq_socket(context, ZMQ_DEALER);
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &patience_ms, sizeof patience_ms);
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, key.server, LS_KEY_CHARACTERS);
    zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, key.public_key, LS_KEY_CHARACTERS);
    zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, key.secret_key, LS_KEY_CHARACTERS);
    if (zmq_connect(socket, argv[1]) || ls_wire_encode(&message, bytes, sizeof bytes, &count, &error) != LS_OK ||
        zmq_send(socket, bytes, count, 0) < 0) {
        fprintf(stderr, "say: nothing was sent\n");
        return 2;
    }
    static uint8_t answer[LS_WIRE_BYTES_MAX];
    for (const double end = now_seconds() + 2; now_seconds() < end;) {
        const int size = zmq_recv(socket, answer, sizeof answer, 0);
        if (size < 0 || ls_wire_decode(answer, (size_t)size, &message, &error) != LS_OK) continue;
        if (message.kind == LS_MESSAGE_ENDED)
            printf("ended %d: %s\n", message.answer.code, message.answer.text);
        else
            printf("%s\n", ls_message_name(message.kind));
        fflush(stdout);
        ls_message_release(&message);
    }
    zmq_close(socket);
    zmq_ctx_term(context);
    return 0;
}
