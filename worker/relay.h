/* A node's way to the coordinator for its reports, and the way of the nodes below it. With few nodes each reports to
 * the coordinator itself; with many they form a tree of fan-in 32, so that the coordinator has 32 connections to hear:
 *
 *                     coordinator
 *          .-------------+-------------.
 *        node 0   ...   node 31                  node i below 32 reports to the coordinator,
 *       .--+--.
 *   node 32 ... node 63     ...                  every other one to node i / 32 - 1
 *
 * Reports go up, gathered on the way; every one is answered, so a node knows whether its attempt goes on, and the end
 * of an attempt spreads down. A node whose parent does not answer for five seconds (thirty at first) turns to the
 * parent's parent, in the end to the coordinator. Connections are CURVE-encrypted; a node lets in whoever has the run's
 * worker key. For one thread. */
#ifndef LS_WORKER_RELAY_H
#define LS_WORKER_RELAY_H

#include "common/keys.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LS_RELAY_FAN_IN = 32, LS_RELAY_ADDRESS_BYTES = 46 };

struct ls_relay;

struct ls_relay_options {
    const struct ls_key *key; /* the worker's; copied */
    const char *endpoints;    /* the coordinator's, as ls_link_open() takes them; copied */
    int64_t attempt;
};

/* How a node is reached by those below it; an empty endpoint: not at all. Plain data, to be exchanged between nodes. */
struct ls_relay_node {
    char endpoint[96];
    char public_key[LS_KEY_CHARACTERS + 1];
};

/* What the node knows of its attempt. */
struct ls_relay_news {
    bool answered;          /* ever, by the coordinator or a node that heard it */
    double silence_seconds; /* since the last answer, or the beginning */
    bool ended;             /* the attempt is over, with this */
    enum ls_code code;
    char text[512];
};

/* Whether node `index` of `count` has nodes below it. */
bool ls_relay_has_children(int64_t index, int64_t count);

/* The address of this host from which packets to the first numeric one of `endpoints` leave: where other nodes reach it
 * too. False when there is none. */
bool ls_relay_address(const char *endpoints, char address[LS_RELAY_ADDRESS_BYTES]);

/* LS_MEMORY, LS_ERROR. */
enum ls_code ls_relay_create(const struct ls_relay_options *options, struct ls_relay **relay, struct ls_error *error);
/* Takes NULL. */
void ls_relay_destroy(struct ls_relay *relay);

/* Lets the nodes below connect, at a free port of `address` ("10.0.0.1", "::1"), and says how. LS_COMMUNICATION names
 * the address. */
enum ls_code ls_relay_listen(struct ls_relay *relay, const char *address, struct ls_relay_node *node,
                             struct ls_error *error);
/* Finds its place: this is node `index` of nodes[count], of which those above it are remembered. count 0: there is no
 * tree, reports go to the coordinator. */
enum ls_code ls_relay_join(struct ls_relay *relay, const struct ls_relay_node *nodes, int64_t count, int64_t index,
                           struct ls_error *error);

/* Adds an encoded REPORT to what goes up with the next flush. Copied. */
void ls_relay_add(struct ls_relay *relay, const void *report, size_t count);
/* Sends what was added and what came from below. Never waits; what cannot be sent now is dropped: newer ones follow. */
void ls_relay_flush(struct ls_relay *relay);
/* Handles what arrives for `milliseconds`; 0: only what is there. */
void ls_relay_serve(struct ls_relay *relay, int milliseconds);

void ls_relay_read_news(const struct ls_relay *relay, struct ls_relay_news *news);

#endif
