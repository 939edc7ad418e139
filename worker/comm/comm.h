/* Collectives that sharding needs, over the ranks of one attempt. Those on device memory are put on a stream and run in
 * its order; every rank puts the same collectives in the same order. Knows nothing of models. Implementations: mpi.c
 * (CPU devices: shared.h within a host, peers.h between hosts), nccl.c (GPUs), threads.c (ranks as threads of one
 * process, for tests).
 *
 * Every rank ends with the same bits, so replicas that start equal stay equal: each part of a buffer is summed by one
 * rank of a host, in rank order, and then by one of all hosts, in theirs; MPI requires it of MPI_Allreduce (MPI 3.1,
 * section 5.9.6), which sums a few numbers between hosts. */
#ifndef LS_WORKER_COMM_COMM_H
#define LS_WORKER_COMM_COMM_H

#include "common/progress.h"
#include "common/status.h"
#include "worker/device/device.h"

#include <stdbool.h>
#include <stdint.h>

struct ls_comm;

/* LS_COMM_BF16: values of two bytes, added in fp32 in rank order, the sum rounded once; over several hosts with several
 * ranks each, once within each host and once between them. */
enum ls_comm_type { LS_COMM_FLOAT, LS_COMM_DOUBLE, LS_COMM_BF16 };

int ls_comm_rank(const struct ls_comm *comm);
int ls_comm_size(const struct ls_comm *comm);
/* Rank and number of ranks on this node. */
int ls_comm_local_rank(const struct ls_comm *comm);
int ls_comm_local_size(const struct ls_comm *comm);

/* On a stream, in place; an error becomes the stream's. `block` names the block in the agreement check.
 * `count` may be 0 and need not divide by anything. */
void ls_comm_all_reduce_sum(struct ls_comm *comm, struct ls_stream *stream, void *buffer, int64_t count,
                            enum ls_comm_type type, int block);
/* buffer[size * count]: rank r ends with the sum of everybody's slice r in slice r; other slices are undefined
 * afterwards. */
void ls_comm_reduce_scatter_sum(struct ls_comm *comm, struct ls_stream *stream, void *buffer, int64_t count,
                                enum ls_comm_type type, int block);
/* buffer[size * bytes]: slice r comes from rank r. */
void ls_comm_all_gather(struct ls_comm *comm, struct ls_stream *stream, void *buffer, int64_t bytes, int block);

/* Sums whose order the caller makes: every rank sends every rank its slice of some buffers, and nothing is added. Rank
 * r has parts[r] buffers, each of `size` slices that lie `stride` bytes apart, and ends with the stretch [first, first
 * + bytes) of its own slice of everybody's, one after another in rank order and for each rank in the order of its
 * buffers. The slice of rank r is number (r % G) groups + r / G with G = size / groups; that is r with one group. */
enum { LS_COMM_PARTS_MAX = 64 };
struct ls_comm_exchange {
    const int *parts;           /* [size], at most LS_COMM_PARTS_MAX each; equal on every rank */
    const void *const *buffers; /* [parts[rank]] */
    void *received;             /* [sum of parts, bytes]; touches no buffer */
    int64_t stride, first, bytes;
    int groups; /* divides the ranks */
};
/* *exchange is copied; what it points to stays as it is until the stream has passed. bytes < 2^31. */
void ls_comm_exchange(struct ls_comm *comm, struct ls_stream *stream, const struct ls_comm_exchange *exchange,
                      int block);

/* Small collectives on host memory that wait for every rank; called by the training thread only. They have a channel of
 * their own, so collectives on streams may be under way meanwhile. Errors are LS_COMMUNICATION. */
enum { LS_COMM_SUM_MAX = 64 };
/* values[i] becomes the sum over the ranks mod 2^64, on every rank; count <= LS_COMM_SUM_MAX. */
enum ls_code ls_comm_sum_u64(struct ls_comm *comm, uint64_t *values, int count, struct ls_error *error);
enum ls_code ls_comm_broadcast(struct ls_comm *comm, void *bytes, int64_t count, int root, struct ls_error *error);
/* all[size * count] on every rank, in rank order; count < 2^31. */
enum ls_code ls_comm_gather_bytes(struct ls_comm *comm, const void *mine, int64_t count, void *all,
                                  struct ls_error *error);

/* Makes an error of one rank that of all. Every rank passes its own (code LS_OK: none). When no rank has one, LS_OK;
 * else every rank gets the error of the lowest rank that has, with "rank N: " in front of its text, and *failed_rank =
 * N. ls_comm_share() is the second half, for ranks that know already that one of them has an error. */
enum ls_code ls_comm_agree(struct ls_comm *comm, const struct ls_error *own, int *failed_rank, struct ls_error *error);
enum ls_code ls_comm_share(struct ls_comm *comm, const struct ls_error *own, int *failed_rank, struct ls_error *error);

/* Collective on the host. Ranks with the same color become a communicator of their own, ordered by key, then by rank;
 * what it sends, counts and checks is counted and numbered by `comm`, which must outlive it and is not a part itself.
 * Collectives of a communicator and of its parts are put on one stream, in the same order by all ranks. Local ranks of
 * a part are those of `comm`. LS_MEMORY, LS_COMMUNICATION. */
enum ls_code ls_comm_split(struct ls_comm *comm, int color, int key, struct ls_comm **part, struct ls_error *error);

/* Where a library carries the collectives on streams, it takes memory of the GPU with the first of them: this runs
 * some of up to `most` bytes, so that what is taken is taken now. `slices`: reduce-scatters and all-gathers too;
 * `pairs`: what exchanges and sums of bf16 are made of. Nothing counts them. Collective, every rank with the same
 * arguments; nothing happens over MPI and threads. LS_MEMORY, LS_COMMUNICATION, on all ranks or before a loss. */
enum ls_code ls_comm_warm_up(struct ls_comm *comm, int64_t most, bool slices, bool pairs, struct ls_error *error);

/* Agreement check: before each collective the ranks compare (number, block, bytes, kind and type), and all of them fail
 * with LS_COMMUNICATION, naming two that differ. On in debug builds (LS_DEBUG). All ranks set the same, while no
 * collective is under way. */
void ls_comm_set_checks(struct ls_comm *comm, bool on);
/* Where to note the beginning and the end of every collective, on streams and on the host, for whoever watches this
 * rank; NULL: nowhere. Where a device runs them by itself, it is
 * when they are put on its stream, and when they were seen to have ended. */
void ls_comm_set_watch(struct ls_comm *comm, struct ls_progress_record *record);

/* Bytes this rank has sent in collectives on streams, by the ring's count: all-reduce 2 (N-1)/N, the others (N-1)/N of
 * the buffer; of an exchange (N-1)/N of its own buffers' stretches. */
uint64_t ls_comm_wire_bytes(const struct ls_comm *comm);

/* Collective over MPI. Streams that were given collectives must be idle. Takes NULL. */
void ls_comm_destroy(struct ls_comm *comm);

/* After MPI_Init_thread(MPI_THREAD_MULTIPLE). Duplicates MPI_COMM_WORLD, whose errors are returned from here on. */
enum ls_code ls_comm_create_mpi(struct ls_comm **comm, struct ls_error *error);
/* `size` communicators for threads of this process: comms[r] belongs to thread r. Each is destroyed by itself. */
enum ls_code ls_comm_create_threads(int size, struct ls_comm **comms, struct ls_error *error);

#endif
