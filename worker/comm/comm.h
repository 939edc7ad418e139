/* Collectives that sharding needs, over the ranks of one attempt. Those on device memory are put on a stream and run in its order;
 * every rank puts the same collectives in the same order. Knows nothing of models. Implementations: mpi.c (CPU devices), threads.c
 * (ranks as threads of one process, for tests); later nccl.c. */
#ifndef LS_WORKER_COMM_COMM_H
#define LS_WORKER_COMM_COMM_H

#include "common/status.h"
#include "worker/device/device.h"

#include <stdint.h>

struct ls_comm;

enum ls_comm_type { LS_COMM_FLOAT, LS_COMM_DOUBLE };

int ls_comm_rank(const struct ls_comm *comm);
int ls_comm_size(const struct ls_comm *comm);
/* Rank and number of ranks on this node. */
int ls_comm_local_rank(const struct ls_comm *comm);
int ls_comm_local_size(const struct ls_comm *comm);

/* On a stream, device memory, in place. `block` names the block in debug builds' agreement check (number, block, bytes, type). */
void ls_comm_all_reduce_sum(struct ls_comm *comm, struct ls_stream *stream, void *buffer, int64_t count,
                            enum ls_comm_type type, int block);
/* buffer[size * count]: rank r ends with the sum of everybody's slice r in slice r; other slices are undefined afterwards. */
void ls_comm_reduce_scatter_sum(struct ls_comm *comm, struct ls_stream *stream, void *buffer, int64_t count,
                                enum ls_comm_type type, int block);
/* buffer[size * count]: slice r comes from rank r. `bytes` of one slice. */
void ls_comm_all_gather(struct ls_comm *comm, struct ls_stream *stream, void *buffer, int64_t bytes, int block);

/* Small collectives on host memory that wait; called by the training thread only, while the stream given to the others is either
 * idle or has a thread of its own (they use a communicator of their own). */
enum ls_code ls_comm_sum_u64(struct ls_comm *comm, uint64_t *values, int count, struct ls_error *error);
enum ls_code ls_comm_broadcast(struct ls_comm *comm, void *bytes, int64_t count, int root, struct ls_error *error);
/* all[size * count] on every rank. */
enum ls_code ls_comm_gather_bytes(struct ls_comm *comm, const void *mine, int64_t count, void *all, struct ls_error *error);
enum ls_code ls_comm_barrier(struct ls_comm *comm, struct ls_error *error);

/* Bytes this rank has sent in collectives on streams, by the ring's count: all-reduce 2 (N-1)/N, the others (N-1)/N of the buffer. */
uint64_t ls_comm_wire_bytes(const struct ls_comm *comm);
/* Seconds the streams' collectives ran, in total. */
double ls_comm_seconds(const struct ls_comm *comm);

void ls_comm_destroy(struct ls_comm *comm);

/* After MPI_Init_thread(MPI_THREAD_MULTIPLE). Duplicates MPI_COMM_WORLD. */
enum ls_code ls_comm_create_mpi(struct ls_comm **comm, struct ls_error *error);
/* `size` communicators for threads of this process: comms[r] belongs to thread r. */
enum ls_code ls_comm_create_threads(int size, struct ls_comm **comms, struct ls_error *error);

#endif
