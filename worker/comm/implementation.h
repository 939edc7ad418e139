/* What the implementations of comm.h share: the common part of a communicator and the table of what each does itself.
 */
#ifndef LS_WORKER_COMM_IMPLEMENTATION_H
#define LS_WORKER_COMM_IMPLEMENTATION_H

#include "worker/comm/comm.h"

#include <stddef.h>

enum ls_collective_kind { LS_ALL_REDUCE, LS_REDUCE_SCATTER, LS_ALL_GATHER, LS_EXCHANGE };

/* A collective on a stream, in place. */
struct ls_collective {
    enum ls_collective_kind kind;
    enum ls_comm_type type; /* not for LS_ALL_GATHER and LS_EXCHANGE */
    int block;
    void *buffer;
    int64_t count;   /* all-reduce: elements; reduce-scatter: elements of a slice; others: bytes of a slice */
    uint64_t number; /* counts the collectives put on streams */
    struct ls_comm_exchange exchange;
};

/* Collectives on streams and on the host may be under way at the same time: two channels that never mix. */
enum ls_comm_channel { LS_CHANNEL_STREAM, LS_CHANNEL_HOST, LS_CHANNEL_COUNT };

/* All of them but enqueue() wait until done. `split`: collective; members[size] are the ranks of the part this rank
 * belongs to, in their new order, and `rank` is its own place there. */
struct ls_comm_operations {
    /* One of the two: run() is called in the stream's order, on the host; enqueue() puts the collective on the stream
     * and returns. */
    enum ls_code (*enqueue)(struct ls_comm *comm, struct ls_stream *stream, const struct ls_collective *collective,
                            struct ls_error *error);
    enum ls_code (*run)(struct ls_comm *comm, const struct ls_collective *collective, struct ls_error *error);
    enum ls_code (*sum_u64)(struct ls_comm *comm, uint64_t *values, int count, struct ls_error *error);
    enum ls_code (*broadcast)(struct ls_comm *comm, void *bytes, int64_t count, int root, struct ls_error *error);
    enum ls_code (*gather)(struct ls_comm *comm, enum ls_comm_channel channel, const void *mine, int64_t count,
                           void *all, struct ls_error *error);
    enum ls_code (*split)(struct ls_comm *comm, int rank, int size, const int *members, struct ls_comm **part,
                          struct ls_error *error);
    /* NULL: there is nothing to take. */
    enum ls_code (*warm_up)(struct ls_comm *comm, int64_t most, bool slices, bool pairs, struct ls_error *error);
    void (*destroy)(struct ls_comm *comm);
};

/* The first member of every implementation's structure. */
struct ls_comm {
    const struct ls_comm_operations *operations;
    struct ls_comm *root; /* what it was split from, or itself; the root counts for its parts */
    int rank, size, local_rank, local_size;
    bool checks;
    uint64_t submitted; /* collectives put on streams so far */
    uint64_t host_collectives;
    uint64_t wire_bytes;
    struct ls_progress_record *_Atomic watch; /* of the root; NULL: none */
    struct ls_error refusal;                  /* of the first collective that enqueue() or its check refused */
    struct ls_error *errors;                  /* [size], for ls_comm_share */
    uint64_t *signatures;                     /* [2][size][4], for the check: one half per channel */
};

/* Fills the common part, `checks` included; the communicator is its own root. LS_MEMORY. */
enum ls_code ls_comm_initialize(struct ls_comm *comm, const struct ls_comm_operations *operations, int rank, int size,
                                int local_rank, int local_size, struct ls_error *error);

/* Where a rank's stretch of each buffer begins. */
static inline int64_t ls_exchange_offset(const struct ls_comm_exchange *exchange, int size, int rank) {
    const int members = size / exchange->groups;
    return (rank % members * exchange->groups + rank / members) * exchange->stride + exchange->first;
}

static inline size_t ls_comm_type_bytes(enum ls_comm_type type) {
    static const size_t bytes[] = {sizeof(float), sizeof(double), sizeof(uint16_t)};
    return bytes[type];
}

#endif
