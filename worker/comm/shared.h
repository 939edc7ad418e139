/* Collectives of the ranks of one host through memory that all of them have mapped. A rank copies what others need into
 * its staging, a cache's size at a time, tells them, and takes what they staged; a reduction's slice is summed by one
 * rank, in rank order:
 *
 *     segment    rank 0: posted, summed, taken    rank 1: ...    |  rank 0: staging 0, 1  result 0, 1  |  rank 1: ...
 *
 *     round      post: own values -> staging      sum: everybody's staged -> own slice -> result       take: results
 *
 * Rounds alternate between two slots, and a rank posts one round ahead of the one it sums. Who waits, sleeps. */
#ifndef LS_WORKER_COMM_SHARED_H
#define LS_WORKER_COMM_SHARED_H

#include "worker/comm/implementation.h"

#include <stddef.h>

struct ls_shared;

/* What `size` ranks need; all of it zero before the first of them begins. Each rank's line is 64 bytes, in front. */
size_t ls_shared_bytes(int size);

/* `memory` [ls_shared_bytes(size)] is page-aligned, the same for all ranks, mapped by the caller, and outlives what is
 * made. LS_MEMORY. */
enum ls_code ls_shared_create(void *memory, int rank, int size, struct ls_shared **shared, struct ls_error *error);
/* Takes NULL. */
void ls_shared_destroy(struct ls_shared *shared);

/* As comm.h says of each kind, for collective->count > 0; returns when this rank's part is done. Every rank calls it
 * with the same collectives in the same order, from one thread at a time. */
void ls_shared_run(struct ls_shared *shared, const struct ls_collective *collective);

/* A segment that is nobody's: the descriptor of anonymous memory of `bytes`, which goes with the last process that has
 * it open or mapped; -1 and errno. */
int ls_shared_open(size_t bytes);
/* Maps the segment; `descriptor` may be closed then. NULL and errno. */
void *ls_shared_map(int descriptor, size_t bytes);
void ls_shared_unmap(void *memory, size_t bytes);

#endif
