/* A team: the communicators of NCCL that one process holds, and the watchdog over them. nccl.c puts collectives on
 * streams; the team knows what is under way, who takes part, and what was lost.
 *
 *     training thread                                     watchdog
 *     calls NCCL under the mutex, polls until it is       every 20 ms: NCCL's own errors and the oldest flight,
 *     ready, records a flight                             the processes of the local ranks every 250 ms
 *     fails once the team has failed                      on a loss: failure, abort, and leave() after the grace
 *
 * An abort frees a communicator, so that its handle is used under the mutex only. */
#ifndef LS_WORKER_COMM_NCCL_TEAM_H
#define LS_WORKER_COMM_NCCL_TEAM_H

#include "worker/comm/nccl.h"
#include "worker/device/cuda/libraries.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <pthread.h>

struct ls_nccl_peer;
struct ls_nccl_flight;

/* A communicator of the team. */
struct ls_nccl_member {
    ncclComm_t handle; /* NULL: not connected, or aborted */
    struct ls_nccl_member *next;
};

struct ls_nccl_team {
    struct ls_comm_nccl_options options;
    const struct ls_nccl *library;
    struct ls_comm *root; /* the communicator of all ranks */
    int gpu, rank, size;
    char *workspace;            /* options.workspace_bytes on the device */
    struct ls_nccl_peer *peers; /* [size] */
    pthread_t watchdog;
    bool watched;                /* the watchdog runs */
    atomic_bool closing, failed; /* failed: after `failure` is set */
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* closing, or a failure */
    /* All below under the mutex. */
    struct ls_nccl_member *members;
    struct ls_nccl_flight *flights; /* a ring, [oldest, newest) under way */
    uint64_t oldest, newest;
    int64_t progress_ns;      /* when a collective last ended */
    struct ls_stream *stream; /* of the newest collective: a loss becomes its error */
    struct ls_error failure;  /* stays once set */
    int64_t failed_ns;
};

/* A team without members. LS_MEMORY. */
enum ls_code ls_nccl_team_create(const struct ls_comm_nccl_options *options, const struct ls_nccl *library,
                                 struct ls_nccl_team **team, struct ls_error *error);
/* Collective over options.host: tells the ranks of each other's processes. */
enum ls_code ls_nccl_team_meet(struct ls_nccl_team *team, struct ls_error *error);
/* Takes workspace and events, starts the watchdog. LS_MEMORY, LS_ERROR. */
enum ls_code ls_nccl_team_start(struct ls_nccl_team *team, struct ls_error *error);
/* Ends the watchdog; before the members leave in order. */
void ls_nccl_team_stop(struct ls_nccl_team *team);
/* Stopped, without members. Takes NULL. */
void ls_nccl_team_destroy(struct ls_nccl_team *team);

void ls_nccl_team_add(struct ls_nccl_team *team, struct ls_nccl_member *member);
void ls_nccl_team_remove(struct ls_nccl_team *team, struct ls_nccl_member *member);

/* LS_OK while nothing is lost, else the first failure and its code, LS_COMMUNICATION or, where NCCL found no memory on
 * the GPU or a kernel had faulted there, LS_MEMORY or LS_ERROR, a second after it was noticed: a process that left at
 * once would be taken for the cause by those that had not seen it yet. */
enum ls_code ls_nccl_team_check(struct ls_nccl_team *team, struct ls_error *error);
/* Makes `failure` the team's, unless it has one, and returns what check would. */
enum ls_code ls_nccl_team_fail(struct ls_nccl_team *team, const struct ls_error *failure, struct ls_error *error);
/* Waits until `member` is ready for its next call; `result` is what the last call, `call` by name, gave. An error of
 * NCCL becomes the team's. Not under the mutex. */
enum ls_code ls_nccl_team_settle(struct ls_nccl_team *team, struct ls_nccl_member *member, ncclResult_t result,
                                 const char *call, struct ls_error *error);
/* Collective `number` has just been put on `stream`. When too many are under way, those before stand for it. */
void ls_nccl_team_record(struct ls_nccl_team *team, struct ls_stream *stream, uint64_t number);

#endif
