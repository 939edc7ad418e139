/* The link: an encrypted ZeroMQ socket to the coordinator, which may be reached at one of several addresses. They are
 * tried in turn until one answers; a link that breaks is looked for at all of them again. Not thread-safe: one owner.
 */
#ifndef LS_WORKER_LINK_H
#define LS_WORKER_LINK_H

#include "common/keys.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LS_LINK_ENDPOINTS_MAX = 8, LS_LINK_ENDPOINTS_SIZE = 512 };

struct ls_link;

/* What came of connecting so far. */
struct ls_link_state {
    bool connected;                       /* the handshake of the present connection is done */
    unsigned refused;                     /* handshakes that the coordinator refused: the key is not of its run */
    unsigned failed_handshakes, failures; /* others that failed; connections that could not be made */
};

/* Begins to connect to `endpoints`, "tcp://HOST:PORT" separated by commas, with the worker's key. `backlog`
 * messages at most wait to be sent, 0: a thousand. LS_USAGE names an endpoint that is none. */
enum ls_code ls_link_open(const char *endpoints, const struct ls_key *key, int backlog, struct ls_link **link,
                          struct ls_error *error);
/* The DEALER to poll, send and receive on, and the monitor to poll. */
void *ls_link_socket(struct ls_link *link);
void *ls_link_monitor(struct ls_link *link);
/* To be called at least a few times a second: reads the monitor, and goes on to the next address when the present one
 * has not answered. Fills *state; returns true when it has changed. */
bool ls_link_turn(struct ls_link *link, struct ls_link_state *state);
/* True when every address is this host's own to itself, 127.*. or ::1. */
bool ls_link_is_loopback(const char *endpoints);
/* Takes NULL. */
void ls_link_close(struct ls_link *link);

/* Tries all addresses for up to `seconds`, until one answers with its handshake. LS_COMMUNICATION names this host, and
 * for each address what happened there. */
enum ls_code ls_link_probe(const char *endpoints, const struct ls_key *key, double seconds, struct ls_error *error);
/* The same verdict about a link that is open: what was tried in `seconds`. */
enum ls_code ls_link_explain(const struct ls_link *link, double seconds, struct ls_error *error);

#endif
