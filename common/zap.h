/* The door of a server (the coordinator, or a node that relays): answers libzmq's question whether a CURVE key may
 * connect (ZAP, RFC 27), on a thread of its own. The allow-list is the run's worker key and operator key; everything
 * else is refused, also what is malformed.
 */
#ifndef LS_COMMON_ZAP_H
#define LS_COMMON_ZAP_H

#include "common/keys.h"
#include "common/status.h"

struct ls_zap;

/* The ZAP domain of guarded sockets. */
#define LS_ZAP_DOMAIN "lockstep"

/* Starts answering in the ZeroMQ context `context`; to be called before a socket of it is bound. Messages of accepted
 * connections carry the property "User-Id": "worker" or "operator". */
enum ls_code ls_zap_start(void *context, const struct ls_keys *keys, struct ls_zap **zap, struct ls_error *error);
/* Ends the thread. From then on nobody is let in. */
void ls_zap_stop(struct ls_zap *zap);

/* Sets up a ROUTER socket (before it is bound) as the server of `keys` behind this door: CURVE, fails closed without
 * the thread. */
enum ls_code ls_zap_guard(void *socket, const struct ls_keys *keys, struct ls_error *error);

#endif
