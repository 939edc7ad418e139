/* Reductions and gathers between ranks of different hosts, over MPI: pieces, in which every rank sends every other its
 * part and has its own summed in rank order. Each byte crosses a host's link as rarely as it can, and both ways at
 * once: the parts go as messages small enough to be sent without a handshake, for on one connection a handshake waits
 * behind the data before it (over TCP, exchanges of large messages reach half the link's rate). Who waits, sleeps
 * between looks. */
#ifndef LS_WORKER_COMM_PEERS_H
#define LS_WORKER_COMM_PEERS_H

#include "worker/comm/comm.h"

#include <mpi.h>

struct ls_peers;

/* For the ranks of `channel`, which is used for nothing else meanwhile and outlives what is made. LS_MEMORY,
 * LS_COMMUNICATION. */
enum ls_code ls_peers_create(MPI_Comm channel, struct ls_peers **peers, struct ls_error *error);
/* Takes NULL. */
void ls_peers_destroy(struct ls_peers *peers);

/* buffer[count] becomes the sum, with the same bits everywhere. LS_COMMUNICATION, here and below. */
enum ls_code ls_peers_all_reduce(struct ls_peers *peers, void *buffer, int64_t count, enum ls_comm_type type,
                                 struct ls_error *error);
/* Slices of `count` elements begin `stride` elements apart: rank r's slice r becomes the sum. */
enum ls_code ls_peers_reduce_scatter(struct ls_peers *peers, void *buffer, int64_t stride, int64_t count,
                                     enum ls_comm_type type, struct ls_error *error);
/* Slices of `bytes` begin `stride` bytes apart: slice r comes from rank r. */
enum ls_code ls_peers_all_gather(struct ls_peers *peers, void *buffer, int64_t stride, int64_t bytes,
                                 struct ls_error *error);

/* To one rank of any channel and from another one, as such messages; bytes may be 0, for nobody. Returns MPI's status.
 */
int ls_peers_swap(MPI_Comm channel, const char *send, int64_t send_bytes, int to, char *receive, int64_t receive_bytes,
                  int from);

/* Waits for what `call` began with `status`: looks after it, asleep between looks. MPI itself waits by spinning, which
 * takes the core from the thread that is awaited wherever there are more threads than cores, and where the system deals
 * time to sessions, all of it. */
enum ls_code ls_peers_end(int status, MPI_Request *request, const char *call, struct ls_error *error);
/* What MPI says of a status, as an error of the job. */
enum ls_code ls_peers_failed(int status, const char *call, struct ls_error *error);

#endif
