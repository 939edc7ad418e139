/* Connecting, the monitor, and the turn from address to address. */
#define _GNU_SOURCE
#include "worker/link.h"

#include "common/wire.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

/* An address has so long to answer; a coordinator's restart takes less than that many turns. */
enum { ADDRESS_MS = 2000, POLL_MS = 100 };

/* What an address has done so far. */
struct address {
    char endpoint[128];
    bool tried;
    int cause; /* errno of the last connection that failed, 0: none did: silence */
};

struct ls_link {
    void *context, *socket, *monitor;
    struct address addresses[LS_LINK_ENDPOINTS_MAX];
    int count, present;
    int64_t since_ms; /* the present address is tried, or its connection broke */
    struct ls_link_state state;
    bool changed;
};

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

static void set_int(void *socket, int option, int value) {
    zmq_setsockopt(socket, option, &value, sizeof value);
}

static enum ls_code read_endpoints(struct ls_link *link, const char *endpoints, struct ls_error *error) {
    for (const char *at = endpoints; link->count < LS_LINK_ENDPOINTS_MAX; at++) {
        const size_t length = strcspn(at, ",");
        struct address *address = &link->addresses[link->count];
        if (strncmp(at, "tcp://", 6) != 0 || length >= sizeof address->endpoint)
            return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                           "'%.*s' is no address of a coordinator. Give --coordinator tcp://HOST:PORT, several "
                           "separated by commas.",
                           length > 100 ? 100 : (int)length, at);
        memcpy(address->endpoint, at, length);
        link->count++;
        at += length;
        if (!*at) return LS_OK;
    }
    return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "more than %d addresses of a coordinator are given",
                   LS_LINK_ENDPOINTS_MAX);
}

static enum ls_code try_present(struct ls_link *link, struct ls_error *error) {
    struct address *address = &link->addresses[link->present];
    link->since_ms = now_ms();
    address->tried = true;
    if (zmq_connect(link->socket, address->endpoint) == 0) return LS_OK;
    return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                   "'%s' is no address of a coordinator (%s). Give --coordinator tcp://HOST:PORT.", address->endpoint,
                   zmq_strerror(errno));
}

static enum ls_code make_socket(struct ls_link *link, const struct ls_key *key, struct ls_error *error) {
    link->context = zmq_ctx_new();
    link->socket = link->context ? zmq_socket(link->context, ZMQ_DEALER) : NULL;
    if (!link->socket)
        return ls_fail(error, LS_COMMUNICATION, LS_SCOPE_JOB, "cannot make a ZeroMQ socket: %s", zmq_strerror(errno));
    void *socket = link->socket;
    set_int(socket, ZMQ_LINGER, 1000);
    set_int(socket, ZMQ_IMMEDIATE, 1);
    set_int(socket, ZMQ_IPV6, 1);
    set_int(socket, ZMQ_RECONNECT_IVL, 100);
    set_int(socket, ZMQ_RECONNECT_IVL_MAX, 2000);
    set_int(socket, ZMQ_HANDSHAKE_IVL, 5000);
    set_int(socket, ZMQ_HEARTBEAT_IVL, 1000);
    set_int(socket, ZMQ_HEARTBEAT_TIMEOUT, 10000);
    int64_t largest = LS_WIRE_BYTES_MAX;
    zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &largest, sizeof largest);
    zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, key->server, LS_KEY_CHARACTERS);
    zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, key->public_key, LS_KEY_CHARACTERS);
    if (zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, key->secret_key, LS_KEY_CHARACTERS))
        return ls_fail(error, LS_COMMUNICATION, LS_SCOPE_JOB,
                       "this libzmq has no CURVE encryption (%s). Install one built with libsodium.",
                       zmq_strerror(errno));
    zmq_socket_monitor(socket, "inproc://link-monitor",
                       ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                           ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                           ZMQ_EVENT_CLOSED | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_CONNECT_RETRIED);
    link->monitor = zmq_socket(link->context, ZMQ_PAIR);
    set_int(link->monitor, ZMQ_LINGER, 0);
    set_int(link->monitor, ZMQ_RCVHWM, 0); /* libzmq's thread never waits for whoever reads */
    zmq_connect(link->monitor, "inproc://link-monitor");
    return LS_OK;
}

enum ls_code ls_link_open(const char *endpoints, const struct ls_key *key, int backlog, struct ls_link **result,
                          struct ls_error *error) {
    struct ls_link *link = calloc(1, sizeof *link);
    if (!link) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for the link to the coordinator");
    enum ls_code code = read_endpoints(link, endpoints, error);
    if (code == LS_OK) code = make_socket(link, key, error);
    if (code == LS_OK && backlog > 0) set_int(link->socket, ZMQ_SNDHWM, backlog);
    if (code == LS_OK) code = try_present(link, error);
    if (code == LS_OK)
        *result = link;
    else
        ls_link_close(link);
    return code;
}

bool ls_link_is_loopback(const char *endpoints) {
    for (const char *at = endpoints; at; at = strchr(at, ','), at = at ? at + 1 : NULL)
        if (strncmp(at, "tcp://127.", 10) != 0 && strncmp(at, "tcp://[::1]", 11) != 0) return false;
    return true;
}

/* The monitor's reader goes after what it reads: libzmq's thread would wait for ever to tell one that is closed of a
 * connection that breaks now, and whoever closes the socket for that thread. */
void ls_link_close(struct ls_link *link) {
    if (!link) return;
    if (link->socket) {
        zmq_socket_monitor(link->socket, NULL, 0);
        zmq_close(link->socket);
    }
    if (link->monitor) zmq_close(link->monitor);
    if (link->context) zmq_ctx_term(link->context);
    free(link);
}

void *ls_link_socket(struct ls_link *link) {
    return link->socket;
}

void *ls_link_monitor(struct ls_link *link) {
    return link->monitor;
}

/* ---- what the monitor says ---- */

static void on_event(struct ls_link *link, uint16_t kind) {
    struct ls_link_state *state = &link->state;
    struct address *address = &link->addresses[link->present];
    switch (kind) {
    case ZMQ_EVENT_HANDSHAKE_SUCCEEDED: state->connected = true; break;
    case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
        state->refused++;
        address->cause = EACCES;
        break;
    case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
    case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
        state->failed_handshakes++;
        address->cause = EPROTO;
        break;
    case ZMQ_EVENT_CONNECT_RETRIED:
        state->failures++;
        if (!address->cause) address->cause = ECONNREFUSED;
        break;
    default:
        if (state->connected) link->since_ms = now_ms();
        state->connected = false;
        break;
    }
    link->changed = true;
}

static void read_monitor(struct ls_link *link) {
    for (int i = 0; i < 100; i++) {
        uint8_t event[6];
        char address[256];
        if (zmq_recv(link->monitor, event, sizeof event, ZMQ_DONTWAIT) < 0) return;
        const int length = zmq_recv(link->monitor, address, sizeof address - 1, 0);
        if (length < 0) return;
        address[length < (int)sizeof address ? length : (int)sizeof address - 1] = 0;
        /* What is left of an address that was given up says nothing of the present one. */
        if (link->count > 1 && strcmp(address, link->addresses[link->present].endpoint) != 0) continue;
        uint16_t kind;
        memcpy(&kind, event, sizeof kind);
        on_event(link, kind);
    }
}

bool ls_link_turn(struct ls_link *link, struct ls_link_state *state) {
    link->changed = false;
    read_monitor(link);
    if (!link->state.connected && link->count > 1 && now_ms() - link->since_ms > ADDRESS_MS) {
        zmq_disconnect(link->socket, link->addresses[link->present].endpoint);
        link->present = (link->present + 1) % link->count;
        (void)try_present(link, NULL); /* an address that cannot be connected to is passed over at the next turn */
    }
    *state = link->state;
    return link->changed;
}

/* ---- what came of it ---- */

static const char *name_of(int cause) {
    switch (cause) {
    case 0: return "no answer";
    case ECONNREFUSED: return "refused or unreachable";
    case EACCES: return "the key was refused";
    default: return "something else answered";
    }
}

enum ls_code ls_link_explain(const struct ls_link *link, double seconds, struct ls_error *error) {
    char host[64] = "this host", tried[700] = "";
    size_t used = 0;
    gethostname(host, sizeof host - 1);
    for (int i = 0; i < link->count && used + 160 < sizeof tried; i++)
        used += (size_t)snprintf(tried + used, sizeof tried - used, "%s%s (%s)", used ? ", " : "",
                                 link->addresses[i].endpoint,
                                 link->addresses[i].tried ? name_of(link->addresses[i].cause) : "not tried");
    if (link->state.refused)
        return ls_fail(error, LS_COMMUNICATION, LS_SCOPE_JOB,
                       "the coordinator at %s refused the key. Use RUN/keys/worker.key of this very run (--key or "
                       "LOCKSTEP_KEY_FILE).",
                       link->addresses[link->present].endpoint);
    if (link->state.failed_handshakes)
        return ls_fail(error, LS_COMMUNICATION, LS_SCOPE_JOB,
                       "%u encrypted handshakes with %s failed. Something else listens there, or the key file is of "
                       "another run: use RUN/keys/worker.key of this run.",
                       link->state.failed_handshakes, link->addresses[link->present].endpoint);
    return ls_fail(error, LS_COMMUNICATION, LS_SCOPE_NODE,
                   "host %s cannot reach the coordinator: no coordinator answered within %.0f s at %s. Check that it "
                   "runs, the firewall between the hosts, and coordinator.interface, .bind and .port.",
                   host, seconds, tried);
}

enum ls_code ls_link_probe(const char *endpoints, const struct ls_key *key, double seconds, struct ls_error *error) {
    struct ls_link *link;
    enum ls_code code = ls_link_open(endpoints, key, 0, &link, error);
    if (code != LS_OK) return code;
    struct ls_link_state state = {0};
    for (int64_t end_ms = now_ms() + (int64_t)(seconds * 1000); now_ms() < end_ms && !state.refused;) {
        zmq_pollitem_t item = {link->monitor, 0, ZMQ_POLLIN, 0};
        zmq_poll(&item, 1, POLL_MS);
        ls_link_turn(link, &state);
        if (state.connected) break;
    }
    if (!state.connected) code = ls_link_explain(link, seconds, error);
    ls_link_close(link);
    return code;
}
