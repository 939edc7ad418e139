/* A table of slots, with buckets by the hash of the route. A name is the number of names given before and the slot. */
#include "common/connections.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { CAPACITY_FIRST = 64, SLOT_BITS = 16 };

void ls_connections_release(struct ls_connections *connections) {
    free(connections->peers);
    free(connections->buckets);
    memset(connections, 0, sizeof *connections);
}

static int32_t *bucket_of(const struct ls_connections *connections, const void *route, size_t size) {
    assert(connections->capacity > 0);
    return &connections->buckets[XXH3_64bits(route, size) % (2 * (uint64_t)connections->capacity)];
}

static void link_peer(struct ls_connections *connections, int32_t slot) {
    struct ls_peer *peer = &connections->peers[slot];
    int32_t *bucket = bucket_of(connections, peer->route, peer->route_size);
    peer->next = *bucket;
    *bucket = slot;
}

/* Only called when every slot is taken. */
static int grow(struct ls_connections *connections) {
    const int32_t before = connections->capacity, capacity = before ? 2 * before : CAPACITY_FIRST;
    if (capacity > LS_CONNECTIONS_MAX) return -1;
    struct ls_peer *peers = realloc(connections->peers, (size_t)capacity * sizeof *peers);
    if (!peers) return -1;
    connections->peers = peers;
    int32_t *buckets = malloc(2 * (size_t)capacity * sizeof *buckets);
    if (!buckets) return -1;
    free(connections->buckets);
    connections->buckets = buckets;
    connections->capacity = capacity;
    memset(buckets, 0xFF, 2 * (size_t)capacity * sizeof *buckets);
    for (int32_t slot = 0; slot < before; slot++) link_peer(connections, slot);
    connections->free_slot = -1;
    for (int32_t slot = capacity - 1; slot >= before; slot--) {
        peers[slot] = (struct ls_peer){.next = connections->free_slot};
        connections->free_slot = slot;
    }
    return 0;
}

struct ls_peer *ls_connections_meet(struct ls_connections *connections, const void *route, size_t size,
                                    enum ls_connection_role role) {
    if (size > LS_ROUTE_BYTES_MAX) return NULL;
    if (connections->capacity)
        for (int32_t slot = *bucket_of(connections, route, size); slot >= 0; slot = connections->peers[slot].next) {
            struct ls_peer *peer = &connections->peers[slot];
            if (peer->route_size == size && memcmp(peer->route, route, size) == 0) return peer;
        }
    if (connections->count == connections->capacity && grow(connections)) return NULL;
    const int32_t slot = connections->free_slot;
    struct ls_peer *peer = &connections->peers[slot];
    connections->free_slot = peer->next;
    *peer =
        (struct ls_peer){.name = ++connections->named << SLOT_BITS | (uint64_t)slot, .route_size = size, .role = role};
    memcpy(peer->route, route, size);
    link_peer(connections, slot);
    connections->count++;
    return peer;
}

struct ls_peer *ls_connections_find(const struct ls_connections *connections, uint64_t name) {
    const uint64_t slot = name & ((1u << SLOT_BITS) - 1);
    if (!name || slot >= (uint64_t)connections->capacity || connections->peers[slot].name != name) return NULL;
    return &connections->peers[slot];
}

void ls_connections_forget(struct ls_connections *connections, struct ls_peer *peer) {
    const int32_t slot = (int32_t)(peer - connections->peers);
    int32_t *link = bucket_of(connections, peer->route, peer->route_size);
    while (*link != slot) link = &connections->peers[*link].next;
    *link = peer->next;
    *peer = (struct ls_peer){.next = connections->free_slot};
    connections->free_slot = slot;
    connections->count--;
}

struct ls_peer *ls_connections_next(const struct ls_connections *connections, int32_t *slot) {
    while (*slot < connections->capacity) {
        struct ls_peer *peer = &connections->peers[(*slot)++];
        if (peer->name) return peer;
    }
    return NULL;
}
