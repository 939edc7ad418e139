/* One socket up, one down, and what is gathered between two flushes. */
#include "worker/relay.h"

#include "common/connections.h"
#include "common/wire.h"
#include "common/zap.h"
#include "worker/link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum {
    GATHERED_BYTES_MAX = 4 << 20,
    BUNDLE_BYTES_MAX = LS_WIRE_BYTES_MAX / 2, /* of reports in one message; their lengths come on top */
    ANSWER_BYTES_MAX = 2048,
    PARENT_SILENCE_MS = 5000, /* then the next one up is tried */
    FIRST_ANSWER_MS = 30000,  /* the same at first, when thousands of nodes connect at once */
    CHILD_SILENCE_MS = 15000, /* then a child is forgotten */
    ANCESTORS_MAX = 15,       /* 32^15 nodes */
    BACKLOG = 4               /* old reports are worth nothing */
};

/* Encoded reports one after another. */
struct gathered {
    uint8_t *bytes; /* [GATHERED_BYTES_MAX], made when the first one comes */
    size_t used;
    struct ls_wire_piece pieces[LS_WIRE_BUNDLE_MAX];
    int64_t count;
};

struct ls_relay {
    struct ls_key key;
    int64_t attempt;
    struct ls_link *link; /* up, NULL: not now */
    void *context, *down; /* NULL where no node is below */
    struct ls_zap *zap;
    char endpoints[LS_LINK_ENDPOINTS_SIZE];        /* the coordinator's */
    struct ls_relay_node ancestors[ANCESTORS_MAX]; /* from the parent up to, and without, the coordinator */
    int ancestors_count, parent;                   /* parent: ancestors_count is the coordinator */
    int64_t connected_ms, heard_ms;                /* heard: 0 before the first answer */
    struct ls_connections children;
    struct gathered *gathered;
    uint8_t *buffer; /* [LS_WIRE_BYTES_MAX] of a message on its way out */
    bool ended;
    enum ls_code code;
    char text[LS_WIRE_TEXT_BYTES];
};

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

static void set_int(void *socket, int option, int value) {
    zmq_setsockopt(socket, option, &value, sizeof value);
}

bool ls_relay_has_children(int64_t index, int64_t count) {
    return (index + 1) * LS_RELAY_FAN_IN < count;
}

enum ls_code ls_relay_create(const struct ls_relay_options *options, struct ls_relay **result, struct ls_error *error) {
    struct ls_relay *relay = calloc(1, sizeof *relay);
    if (!relay) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for the reports of this node");
    relay->key = *options->key;
    relay->attempt = options->attempt;
    relay->buffer = malloc(LS_WIRE_BYTES_MAX);
    relay->gathered = calloc(1, sizeof *relay->gathered);
    snprintf(relay->endpoints, sizeof relay->endpoints, "%s", options->endpoints);
    relay->connected_ms = now_ms();
    if (!relay->buffer || !relay->gathered) {
        ls_relay_destroy(relay);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for the reports of this node");
    }
    *result = relay;
    return LS_OK;
}

void ls_relay_destroy(struct ls_relay *relay) {
    if (!relay) return;
    ls_link_close(relay->link);
    if (relay->down) zmq_close(relay->down);
    ls_zap_stop(relay->zap);
    if (relay->context) zmq_ctx_term(relay->context);
    ls_connections_release(&relay->children);
    if (relay->gathered) free(relay->gathered->bytes);
    free(relay->gathered);
    free(relay->buffer);
    explicit_bzero(&relay->key, sizeof relay->key);
    free(relay);
}

/* ---- the socket down ---- */

/* A datagram socket is connected, and its own address looked at; nothing is sent. */
static bool source_of(const struct sockaddr *to, socklen_t size, char address[LS_RELAY_ADDRESS_BYTES]) {
    union {
        struct sockaddr any;
        struct sockaddr_in four;
        struct sockaddr_in6 six;
    } own;
    socklen_t own_size = sizeof own;
    const int probe = socket(to->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    const bool known = probe >= 0 && connect(probe, to, size) == 0 && getsockname(probe, &own.any, &own_size) == 0;
    if (probe >= 0) close(probe);
    const void *bytes = to->sa_family == AF_INET ? (void *)&own.four.sin_addr : (void *)&own.six.sin6_addr;
    return known && inet_ntop(to->sa_family, bytes, address, LS_RELAY_ADDRESS_BYTES) != NULL;
}

bool ls_relay_address(const char *endpoints, char address[LS_RELAY_ADDRESS_BYTES]) {
    char host[LS_RELAY_ADDRESS_BYTES];
    unsigned port;
    struct sockaddr_in four = {.sin_family = AF_INET};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6};
    if (sscanf(endpoints, "tcp://%45[0-9.]:%u", host, &port) == 2 && inet_pton(AF_INET, host, &four.sin_addr) == 1) {
        four.sin_port = htons((uint16_t)port);
        return source_of((struct sockaddr *)&four, sizeof four, address);
    }
    if (sscanf(endpoints, "tcp://[%45[0-9a-fA-F:.]]:%u", host, &port) == 2 &&
        inet_pton(AF_INET6, host, &six.sin6_addr) == 1) {
        six.sin6_port = htons((uint16_t)port);
        return source_of((struct sockaddr *)&six, sizeof six, address);
    }
    return false;
}

enum ls_code ls_relay_listen(struct ls_relay *relay, const char *address, struct ls_relay_node *node,
                             struct ls_error *error) {
    struct ls_keys keys;
    int64_t largest = LS_WIRE_BYTES_MAX;
    const bool six = strchr(address, ':') != NULL;
    enum ls_code code = ls_keys_generate(&keys, error);
    if (code != LS_OK) return code;
    keys.worker = relay->key; /* nobody has the operator's */
    relay->context = zmq_ctx_new();
    if (!relay->context) code = ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for the nodes below this one");
    if (code == LS_OK) code = ls_zap_start(relay->context, &keys, &relay->zap, error);
    relay->down = code == LS_OK ? zmq_socket(relay->context, ZMQ_ROUTER) : NULL;
    if (code == LS_OK && !relay->down)
        code = ls_fail(error, LS_ERROR, LS_SCOPE_RANK, "cannot make a ZeroMQ socket: %s", zmq_strerror(errno));
    if (code == LS_OK) code = ls_zap_guard(relay->down, &keys, error);
    if (code == LS_OK) {
        zmq_setsockopt(relay->down, ZMQ_MAXMSGSIZE, &largest, sizeof largest);
        set_int(relay->down, ZMQ_LINGER, 0);
        set_int(relay->down, ZMQ_IPV6, six);
        set_int(relay->down, ZMQ_HANDSHAKE_IVL, 5000);
        set_int(relay->down, ZMQ_BACKLOG, 1024);
        set_int(relay->down, ZMQ_ROUTER_HANDOVER, 1);
        size_t size = sizeof node->endpoint;
        snprintf(node->endpoint, sizeof node->endpoint, six ? "tcp://[%s]:*" : "tcp://%s:*", address);
        if (zmq_bind(relay->down, node->endpoint) ||
            zmq_getsockopt(relay->down, ZMQ_LAST_ENDPOINT, node->endpoint, &size))
            code = ls_fail(error, LS_COMMUNICATION, LS_SCOPE_RANK,
                           "this node cannot listen at %s for the nodes that report through it: %s", address,
                           zmq_strerror(errno));
        memcpy(node->public_key, keys.server.public_key, sizeof node->public_key);
    }
    explicit_bzero(&keys, sizeof keys);
    return code;
}

/* ---- the socket up ---- */

static enum ls_code connect_up(struct ls_relay *relay, struct ls_error *error) {
    const bool root = relay->parent == relay->ancestors_count;
    const int linger = 0;
    struct ls_key key = relay->key;
    ls_link_close(relay->link);
    relay->link = NULL;
    relay->connected_ms = now_ms();
    if (!root) memcpy(key.server, relay->ancestors[relay->parent].public_key, sizeof key.server);
    const enum ls_code code = ls_link_open(root ? relay->endpoints : relay->ancestors[relay->parent].endpoint, &key,
                                           BACKLOG, &relay->link, error);
    if (code == LS_OK) zmq_setsockopt(ls_link_socket(relay->link), ZMQ_LINGER, &linger, sizeof linger);
    explicit_bzero(&key, sizeof key);
    return code;
}

enum ls_code ls_relay_join(struct ls_relay *relay, const struct ls_relay_node *nodes, int64_t count, int64_t index,
                           struct ls_error *error) {
    relay->ancestors_count = 0;
    relay->parent = 0;
    for (int64_t node = index; count > 0 && node >= LS_RELAY_FAN_IN && relay->ancestors_count < ANCESTORS_MAX;) {
        node = node / LS_RELAY_FAN_IN - 1;
        if (nodes[node].endpoint[0]) relay->ancestors[relay->ancestors_count++] = nodes[node];
    }
    return connect_up(relay, error);
}

/* ---- reports ---- */

void ls_relay_add(struct ls_relay *relay, const void *report, size_t count) {
    struct gathered *gathered = relay->gathered;
    if (!gathered->bytes) gathered->bytes = malloc(GATHERED_BYTES_MAX);
    if (!gathered->bytes || gathered->count == LS_WIRE_BUNDLE_MAX || count > GATHERED_BYTES_MAX - gathered->used)
        return;
    uint8_t *at = gathered->bytes + gathered->used;
    memcpy(at, report, count);
    gathered->pieces[gathered->count++] = (struct ls_wire_piece){at, count};
    gathered->used += count;
}

static void send_pieces(struct ls_relay *relay, const struct ls_wire_piece *pieces, int64_t count) {
    struct ls_message message = {.kind = LS_MESSAGE_BUNDLE, .attempt = (uint32_t)relay->attempt};
    size_t bytes;
    message.bundle.reports = pieces;
    message.bundle.reports_count = count;
    void *up = ls_link_socket(relay->link);
    if (count == 1)
        zmq_send(up, pieces->bytes, pieces->count, ZMQ_DONTWAIT);
    else if (ls_wire_encode(&message, relay->buffer, LS_WIRE_BYTES_MAX, &bytes, NULL) == LS_OK)
        zmq_send(up, relay->buffer, bytes, ZMQ_DONTWAIT);
}

static void try_next_parent(struct ls_relay *relay) {
    const int64_t now = now_ms(), since = relay->heard_ms > relay->connected_ms ? relay->heard_ms : relay->connected_ms;
    if (relay->link && now - since < (relay->heard_ms ? PARENT_SILENCE_MS : FIRST_ANSWER_MS)) return;
    if (relay->ancestors_count == 0 && relay->link) return; /* the link looks for the coordinator by itself */
    relay->parent = (relay->parent + 1) % (relay->ancestors_count + 1);
    (void)connect_up(relay, NULL); /* tried again with the next flush */
}

void ls_relay_flush(struct ls_relay *relay) {
    struct gathered *gathered = relay->gathered;
    try_next_parent(relay);
    for (int64_t first = 0, end; relay->link && first < gathered->count; first = end) {
        size_t bytes = gathered->pieces[first].count;
        for (end = first + 1; end < gathered->count; end++) {
            bytes += gathered->pieces[end].count + 8;
            if (bytes > BUNDLE_BYTES_MAX) break;
        }
        send_pieces(relay, gathered->pieces + first, end - first);
    }
    gathered->count = 0;
    gathered->used = 0;
}

/* ---- what arrives ---- */

static void answer_child(struct ls_relay *relay, const struct ls_peer *child) {
    struct ls_message message = {.kind = relay->ended ? LS_MESSAGE_ENDED : LS_MESSAGE_PULSE,
                                 .attempt = (uint32_t)relay->attempt};
    uint8_t bytes[ANSWER_BYTES_MAX];
    size_t count;
    if (relay->ended) {
        message.answer.code = (int32_t)relay->code;
        memcpy(message.answer.text, relay->text, sizeof message.answer.text);
    }
    if (ls_wire_encode(&message, bytes, sizeof bytes, &count, NULL) != LS_OK) return;
    if (zmq_send(relay->down, child->route, child->route_size, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0) return;
    zmq_send(relay->down, bytes, count, ZMQ_DONTWAIT);
}

/* An answer from above. The end goes on to all below at once. */
static void hear_parent(struct ls_relay *relay, const void *bytes, size_t count) {
    struct ls_message message;
    if (ls_wire_decode(bytes, count, &message, NULL) != LS_OK) return;
    relay->heard_ms = now_ms();
    const bool ends = message.kind == LS_MESSAGE_ENDED || message.kind == LS_MESSAGE_REFUSED;
    if (message.protocol == LS_PROTOCOL && ends && !relay->ended) {
        relay->ended = true;
        relay->code = (enum ls_code)message.answer.code;
        memcpy(relay->text, message.answer.text, sizeof relay->text);
        int32_t slot = 0;
        for (struct ls_peer *child; (child = ls_connections_next(&relay->children, &slot));) answer_child(relay, child);
    }
    ls_message_release(&message);
}

/* Reports from below; a node that has not heard from above lately does not answer, so that silence spreads too. */
static void hear_child(struct ls_relay *relay, zmq_msg_t *route, zmq_msg_t *body) {
    struct ls_message message;
    const void *bytes = zmq_msg_data(body);
    const size_t count = zmq_msg_size(body);
    if (!zmq_msg_gets(body, "User-Id") || ls_wire_decode(bytes, count, &message, NULL) != LS_OK) return;
    struct ls_peer *child =
        ls_connections_meet(&relay->children, zmq_msg_data(route), zmq_msg_size(route), LS_CONNECTION_WORKER);
    const bool ours = child && message.protocol == LS_PROTOCOL && (int64_t)message.attempt == relay->attempt;
    if (ours && message.kind == LS_MESSAGE_REPORT) ls_relay_add(relay, bytes, count);
    if (ours && message.kind == LS_MESSAGE_BUNDLE)
        for (int64_t i = 0; i < message.bundle.reports_count; i++)
            ls_relay_add(relay, message.bundle.reports[i].bytes, message.bundle.reports[i].count);
    ls_message_release(&message);
    if (!child) return;
    child->heard_ms = now_ms();
    if (ours && (relay->ended || now_ms() - relay->heard_ms < PARENT_SILENCE_MS)) answer_child(relay, child);
}

static bool receive_up(struct ls_relay *relay) {
    zmq_msg_t body;
    zmq_msg_init(&body);
    const bool got = relay->link && zmq_msg_recv(&body, ls_link_socket(relay->link), ZMQ_DONTWAIT) >= 0;
    if (got && !zmq_msg_more(&body)) hear_parent(relay, zmq_msg_data(&body), zmq_msg_size(&body));
    zmq_msg_close(&body);
    return got;
}

static bool receive_down(struct ls_relay *relay) {
    zmq_msg_t frames[2], excess;
    int count = 0;
    if (!relay->down) return false;
    zmq_msg_init(&frames[0]);
    zmq_msg_init(&frames[1]);
    zmq_msg_init(&excess);
    for (int more = 1; more;) {
        zmq_msg_t *frame = count < 2 ? &frames[count] : &excess;
        if (zmq_msg_recv(frame, relay->down, count ? 0 : ZMQ_DONTWAIT) < 0) break;
        more = zmq_msg_more(frame);
        if (count < 3) count++;
    }
    if (count == 2) hear_child(relay, &frames[0], &frames[1]);
    zmq_msg_close(&frames[0]);
    zmq_msg_close(&frames[1]);
    zmq_msg_close(&excess);
    return count > 0;
}

void ls_relay_serve(struct ls_relay *relay, int milliseconds) {
    const int64_t end = now_ms() + milliseconds;
    int32_t slot = 0;
    for (struct ls_peer *child; (child = ls_connections_next(&relay->children, &slot));)
        if (now_ms() - child->heard_ms > CHILD_SILENCE_MS) ls_connections_forget(&relay->children, child);
    for (struct ls_link_state state;;) {
        if (relay->link) ls_link_turn(relay->link, &state);
        while (receive_up(relay))
            ;
        while (receive_down(relay))
            ;
        const int64_t left = end - now_ms();
        if (left <= 0) return;
        zmq_pollitem_t items[3];
        int count = 0;
        if (relay->link) {
            items[count++] = (zmq_pollitem_t){ls_link_socket(relay->link), 0, ZMQ_POLLIN, 0};
            items[count++] = (zmq_pollitem_t){ls_link_monitor(relay->link), 0, ZMQ_POLLIN, 0};
        }
        if (relay->down) items[count++] = (zmq_pollitem_t){relay->down, 0, ZMQ_POLLIN, 0};
        zmq_poll(items, count, (long)left);
    }
}

void ls_relay_read_news(const struct ls_relay *relay, struct ls_relay_news *news) {
    const int64_t since = relay->heard_ms ? relay->heard_ms : relay->connected_ms;
    *news = (struct ls_relay_news){.answered = relay->heard_ms != 0,
                                   .silence_seconds = 1e-3 * (double)(now_ms() - since),
                                   .ended = relay->ended,
                                   .code = relay->code};
    memcpy(news->text, relay->text, sizeof news->text);
}
