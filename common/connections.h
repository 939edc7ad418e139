/* The coordinator's connections: by the name the core knows them by, and by the route that ZeroMQ's ROUTER gave them.
 * As many as there are nodes may come; each takes 128 bytes. */
#ifndef LS_COMMON_CONNECTIONS_H
#define LS_COMMON_CONNECTIONS_H

#include <stddef.h>
#include <stdint.h>

enum { LS_CONNECTIONS_MAX = 1 << 16, LS_ROUTE_BYTES_MAX = 64 };

/* What a peer may do. */
enum ls_connection_role { LS_CONNECTION_WORKER, LS_CONNECTION_OPERATOR };

struct ls_peer {
    uint64_t name; /* 0: a free slot */
    uint8_t route[LS_ROUTE_BYTES_MAX];
    size_t route_size;
    enum ls_connection_role role;
    int64_t heard_ms;
    int32_t next; /* in its bucket, -1: the last */
};

struct ls_connections {
    struct ls_peer *peers; /* [capacity] */
    int32_t *buckets;      /* [2 * capacity], -1: empty */
    int32_t capacity, count;
    int32_t free_slot; /* of a list through `next`, -1: none */
    uint64_t named;    /* names given so far */
};

void ls_connections_release(struct ls_connections *connections);

/* The peer of a route, made with a name never used before when it is new (its `heard_ms` is then 0). Pointers stay
 * valid until the next call. NULL: the route is too long, there are too many, or there is no memory. */
struct ls_peer *ls_connections_meet(struct ls_connections *connections, const void *route, size_t size,
                                    enum ls_connection_role role);
/* NULL for a name that is not there, or 0. */
struct ls_peer *ls_connections_find(const struct ls_connections *connections, uint64_t name);
void ls_connections_forget(struct ls_connections *connections, struct ls_peer *peer);
/* The first peer from *slot on, for which *slot is set behind it; NULL when there is none. Start with 0. */
struct ls_peer *ls_connections_next(const struct ls_connections *connections, int32_t *slot);

#endif
