/* Connections that a coordinator must survive:
 *
 *   hostile ENDPOINT WORKER-KEY-FILE COUNT SEED
 *
 * makes COUNT of them to tcp://HOST:PORT, a quarter each of: random bytes; half-open ones, which send nothing or the
 * beginning of a greeting and stay; CURVE with a key that nobody knows; and the worker's own key with frames larger
 * than the wire allows. Prints how many of each were made. Exit 1: the coordinator stopped answering at all. */
#include "common/keys.h"
#include "common/wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum { WAVE = 400, FRAME_BYTES = LS_WIRE_BYTES_MAX + 1, HOLD_MS = 1500, GREETING_BYTES = 64 };

static uint64_t state;

/* SplitMix64. */
static uint64_t random_bits(void) {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static void sleep_ms(int milliseconds) {
    nanosleep(&(struct timespec){.tv_sec = milliseconds / 1000, .tv_nsec = milliseconds % 1000 * 1000000L}, NULL);
}

static void die(const char *what) {
    fprintf(stderr, "hostile: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int connect_plain(const struct sockaddr_in *address) {
    int connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection < 0) die("socket");
    for (int tries = 0; connect(connection, (const struct sockaddr *)address, sizeof *address); tries++) {
        if (tries == 100) die("the coordinator takes no connection any more");
        sleep_ms(20);
    }
    return connection;
}

/* A greeting of ZMTP 3.1 with the mechanism CURVE, and what follows it is noise. */
static void greet(int connection, size_t bytes) {
    uint8_t greeting[GREETING_BYTES] = {0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0x7F, 3, 1, 'C', 'U', 'R', 'V', 'E'};
    send(connection, greeting, bytes < GREETING_BYTES ? bytes : GREETING_BYTES, MSG_NOSIGNAL);
}

static void send_noise(int connection) {
    uint64_t noise[512];
    const size_t bytes = 1 + random_bits() % sizeof noise;
    for (size_t i = 0; i < sizeof noise / sizeof *noise; i++) noise[i] = random_bits();
    if (random_bits() % 2) greet(connection, GREETING_BYTES);
    send(connection, noise, bytes, MSG_NOSIGNAL);
}

/* Waves of plain connections that are held for a while together. */
static int attack_plain(const struct sockaddr_in *address, int count, int half_open) {
    int made = 0, held[WAVE];
    while (made < count) {
        int wave = count - made < WAVE ? count - made : WAVE;
        for (int i = 0; i < wave; i++) {
            held[i] = connect_plain(address);
            if (!half_open)
                send_noise(held[i]);
            else if (random_bits() % 2)
                greet(held[i], 1 + random_bits() % GREETING_BYTES);
        }
        sleep_ms(HOLD_MS / 10);
        for (int i = 0; i < wave; i++) {
            if (half_open && random_bits() % 4 == 0) continue; /* stays until this process ends, or it is thrown out */
            close(held[i]);
        }
        made += wave;
    }
    return made;
}

/* Waves of CURVE clients. With the worker's key frames go out that are too large; each such connection is thrown out,
 * and ZeroMQ makes the next one. */
static int attack_curve(void *context, const char *endpoint, const struct ls_key *worker, int count, int oversized) {
    static char frame[FRAME_BYTES];
    void *clients[WAVE];
    int made = 0;
    while (made < count) {
        int wave = count - made < WAVE ? count - made : WAVE;
        for (int i = 0; i < wave; i++) {
            char public_key[41], secret_key[41];
            const int zero = 0, again = oversized ? 1000 : -1;
            if (zmq_curve_keypair(public_key, secret_key)) die("zmq_curve_keypair");
            clients[i] = zmq_socket(context, ZMQ_DEALER);
            if (!clients[i]) die("zmq_socket");
            zmq_setsockopt(clients[i], ZMQ_LINGER, &zero, sizeof zero);
            zmq_setsockopt(clients[i], ZMQ_RECONNECT_IVL, &again, sizeof again);
            zmq_setsockopt(clients[i], ZMQ_CURVE_SERVERKEY, worker->server, LS_KEY_CHARACTERS);
            zmq_setsockopt(clients[i], ZMQ_CURVE_PUBLICKEY, oversized ? worker->public_key : public_key,
                           LS_KEY_CHARACTERS);
            zmq_setsockopt(clients[i], ZMQ_CURVE_SECRETKEY, oversized ? worker->secret_key : secret_key,
                           LS_KEY_CHARACTERS);
            if (zmq_connect(clients[i], endpoint)) die("zmq_connect");
            if (oversized)
                zmq_send(clients[i], frame, i % 8 == 0 ? sizeof frame : 1 + random_bits() % 64, ZMQ_DONTWAIT);
        }
        sleep_ms(HOLD_MS);
        for (int i = 0; i < wave; i++) zmq_close(clients[i]);
        made += wave;
    }
    return made;
}

int main(int argc, char **argv) {
    struct ls_key worker;
    struct ls_error error;
    struct sockaddr_in address = {.sin_family = AF_INET};
    char host[64];
    unsigned port;
    if (argc != 5 || sscanf(argv[1], "tcp://%63[0-9.]:%u", host, &port) != 2 ||
        inet_pton(AF_INET, host, &address.sin_addr) != 1) {
        fprintf(stderr, "usage: hostile tcp://ADDRESS:PORT WORKER-KEY-FILE COUNT SEED\n");
        return 2;
    }
    if (ls_key_read(argv[2], &worker, &error) != LS_OK) {
        fprintf(stderr, "hostile: %s\n", error.text);
        return 2;
    }
    address.sin_port = htons((uint16_t)port);
    const int each = atoi(argv[3]) / 4;
    state = strtoull(argv[4], NULL, 0);
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    void *context = zmq_ctx_new();
    zmq_ctx_set(context, ZMQ_MAX_SOCKETS, 4 * WAVE);
    const int noise = attack_plain(&address, each, 0), half_open = attack_plain(&address, each, 1);
    const int unknown = attack_curve(context, argv[1], &worker, each, 0);
    const int oversized = attack_curve(context, argv[1], &worker, each, 1);
    printf(
        "%d with random bytes, %d half-open, %d with an unknown key, %d with the worker's key and frames too large\n",
        noise, half_open, unknown, oversized);
    zmq_ctx_term(context);
    return 0;
}
