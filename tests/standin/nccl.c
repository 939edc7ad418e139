/* A stand-in for NCCL, over MPI, for machines without GPUs: the functions of the real nccl.h that the worker calls, as
 * a library that it opens in NCCL's place. Work is put on streams of the stand-in for cudart and runs in their order;
 * communicators that do not block say so for a while after each call; what is used wrongly is refused as NCCL would
 * (wrong memory, calls while one is in progress, two ranks on one GPU) or, where NCCL would hang or corrupt (counts
 * that differ), becomes an asynchronous error. Sums are in rank order.
 *
 * Variables plant faults, RANK:N meaning the N-th group of calls of that rank, counted from 1:
 *     LS_STANDIN_NCCL_VERSION=21400     the version that is reported
 *     LS_STANDIN_NCCL_DIE=RANK:N        the process is killed inside the collective
 *     LS_STANDIN_NCCL_HANG=RANK:N       the rank does not take part, until it is aborted
 *     LS_STANDIN_NCCL_FAIL=RANK:N       the rank meets ncclRemoteError
 *     LS_STANDIN_NCCL_MEMORY=BYTES      of the GPU, that a communicator takes when it is made, and again with the first
 *                                       collective over each of its rings, trees (all-reduces below 64 KiB) and pairs:
 *                                       NCCL connects what it has not used yet when it is used (NCCL_RUNTIME_CONNECT)
 *
 * Ranks must be those of MPI_COMM_WORLD. */
#define _GNU_SOURCE
#include "tests/standin/standin.h"

#include <mpi.h>
#include <nccl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

/* How often a communicator that does not block answers "in progress" after a call. */
enum { BUSY_ANSWERS = 3, GROUP_MAX = 4096, SLEEP_NS = 50000, TREE_BYTES = 64 << 10 };

enum kind { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, SEND, RECEIVE };
enum connection { OWN, RING, TREE, PAIRS, CONNECTIONS };

struct operation {
    enum kind kind;
    const void *send;
    void *receive;
    size_t count; /* as NCCL counts: of the result's slice for the two that slice */
    ncclDataType_t type;
    int peer;
};

struct ncclComm {
    MPI_Comm mpi;
    int rank, size, world_rank;
    bool blocking;
    atomic_int references; /* the user's, and one for each batch on a stream */
    atomic_int busy;
    atomic_int error; /* ncclResult_t */
    atomic_bool aborted;
    uint64_t groups;
    void *memory[CONNECTIONS]; /* on the device, that a connection holds */
    ncclComm_t *child_place;   /* a split in progress */
    ncclComm_t child;
};

/* The calls of one group, on its way through a stream. */
struct batch {
    ncclComm_t comm;
    uint64_t number;
    size_t count;
    struct operation operations[];
};

/* nccl.h declares these two without their arguments. */
ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);

static _Thread_local struct {
    int depth;
    ncclComm_t comm;
    cudaStream_t stream;
    size_t count;
    ncclResult_t refused;
    struct operation operations[GROUP_MAX];
} group;

static char last_error[256]; /* of the process, as NCCL's */

static ncclResult_t refuse(ncclResult_t result, const char *text) {
    snprintf(last_error, sizeof last_error, "%s", text);
    return result;
}

static size_t bytes_of(ncclDataType_t type) {
    switch (type) {
    case ncclFloat64:
    case ncclInt64:
    case ncclUint64: return 8;
    case ncclFloat32:
    case ncclInt32:
    case ncclUint32: return 4;
    case ncclFloat16:
    case ncclBfloat16: return 2;
    default: return 1;
    }
}

/* VARIABLE is "RANK:N" and this is it. */
static bool is_planted(const char *variable, const struct batch *batch) {
    const char *text = getenv(variable);
    char *rest = NULL;
    if (!text) return false;
    const long rank = strtol(text, &rest, 10);
    return *rest == ':' && rank == batch->comm->world_rank &&
           strtoull(rest + 1, NULL, 10) == (unsigned long long)batch->number;
}

/* ---- communicators ---- */

static void release(ncclComm_t comm) {
    if (atomic_fetch_sub(&comm->references, 1) > 1) return;
    free(comm);
}

/* What a call on `comm` answers when it was fine. */
static ncclResult_t accept(ncclComm_t comm) {
    if (comm->blocking) return ncclSuccess;
    atomic_store(&comm->busy, BUSY_ANSWERS);
    return ncclInProgress;
}

static ncclResult_t check(ncclComm_t comm) {
    if (!comm) return refuse(ncclInvalidArgument, "no communicator");
    if (atomic_load(&comm->aborted)) return refuse(ncclInvalidUsage, "the communicator was aborted");
    if (atomic_load(&comm->busy) > 0) return refuse(ncclInvalidUsage, "the call before is still in progress");
    return (ncclResult_t)atomic_load(&comm->error);
}

/* Takes what a connection needs, once; false: the GPU does not have it, which the communicator says when it is asked.
 */
static bool connect_by(ncclComm_t comm, enum connection connection) {
    const char *text = getenv("LS_STANDIN_NCCL_MEMORY");
    const size_t bytes = text ? strtoull(text, NULL, 10) : 0;
    if (bytes == 0 || comm->memory[connection] || !cudaMalloc(&comm->memory[connection], bytes)) return true;
    snprintf(last_error, sizeof last_error, "Failed to CUDA calloc %zu bytes", bytes);
    atomic_store(&comm->error, ncclUnhandledCudaError);
    return false;
}

static ncclComm_t make(MPI_Comm mpi, bool blocking) {
    ncclComm_t comm = calloc(1, sizeof *comm);
    if (!comm) return NULL;
    comm->mpi = mpi;
    comm->blocking = blocking;
    atomic_store(&comm->references, 1);
    MPI_Comm_rank(mpi, &comm->rank);
    MPI_Comm_size(mpi, &comm->size);
    MPI_Comm_rank(MPI_COMM_WORLD, &comm->world_rank);
    connect_by(comm, OWN);
    return comm;
}

ncclResult_t ncclGetVersion(int *version) {
    const char *text = getenv("LS_STANDIN_NCCL_VERSION");
    *version = text ? atoi(text) : NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    return getrandom(id, sizeof *id, 0) == (ssize_t)sizeof *id ? ncclSuccess : ncclSystemError;
}

/* What a rank says of itself when it joins. */
struct introduction {
    ncclUniqueId id;
    char place[128]; /* host and GPU */
};

static void introduce(const ncclUniqueId *id, struct introduction *own) {
    char host[64] = "", bus[32] = "";
    int device = 0;
    memset(own, 0, sizeof *own);
    own->id = *id;
    gethostname(host, sizeof host - 1);
    cudaGetDevice(&device);
    cudaDeviceGetPCIBusId(bus, sizeof bus, device);
    const char *claimed = getenv("NCCL_HOSTID");
    snprintf(own->place, sizeof own->place, "%.80s %s", claimed ? claimed : host, bus);
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *made, int size, ncclUniqueId id, int rank, ncclConfig_t *config) {
    int world_rank, world_size;
    MPI_Comm mpi;
    MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world_size);
    if (size != world_size || rank != world_rank)
        return refuse(ncclInvalidArgument, "the stand-in knows the ranks of MPI_COMM_WORLD only");
    struct introduction own, *all = calloc((size_t)size, sizeof *all);
    if (!all) return refuse(ncclSystemError, "no memory");
    introduce(&id, &own);
    MPI_Comm_dup(MPI_COMM_WORLD, &mpi);
    MPI_Allgather(&own, sizeof own, MPI_BYTE, all, sizeof own, MPI_BYTE, mpi);
    ncclResult_t result = ncclSuccess;
    for (int i = 0; i < size && !result; i++) {
        if (memcmp(&all[i].id, &id, sizeof id) != 0) result = refuse(ncclInvalidArgument, "the unique ids differ");
        for (int j = 0; j < i && !result; j++)
            if (strcmp(all[i].place, all[j].place) == 0) result = refuse(ncclInvalidUsage, "Duplicate GPU detected");
    }
    free(all);
    if (result) return result;
    *made = make(mpi, config && config->blocking != 0);
    return *made ? accept(*made) : refuse(ncclSystemError, "no memory");
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *made, ncclConfig_t *config) {
    ncclResult_t result = check(comm);
    MPI_Comm mpi;
    if (result) return result;
    MPI_Comm_split(comm->mpi, color, key, &mpi);
    ncclComm_t child = make(mpi, config ? config->blocking != 0 : comm->blocking);
    if (!child) return refuse(ncclSystemError, "no memory");
    *made = NULL;
    if (comm->blocking) {
        *made = child;
        return ncclSuccess;
    }
    comm->child_place = made; /* filled when the parent is ready again, as in NCCL */
    comm->child = child;
    atomic_store(&child->busy, BUSY_ANSWERS);
    return accept(comm);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error) {
    if (!comm || atomic_load(&comm->aborted)) return refuse(ncclInvalidArgument, "the communicator was aborted");
    *error = (ncclResult_t)atomic_load(&comm->error);
    if (*error != ncclSuccess) return ncclSuccess;
    int busy = atomic_load(&comm->busy);
    while (busy > 0 && !atomic_compare_exchange_weak(&comm->busy, &busy, busy - 1)) {
    }
    if (busy > 1) {
        *error = ncclInProgress;
    } else if (comm->child_place) {
        __atomic_store_n(comm->child_place, comm->child, __ATOMIC_RELEASE);
        comm->child_place = NULL;
    }
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    ncclResult_t result = check(comm);
    return result ? result : accept(comm);
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    MPI_Comm_free(&comm->mpi);
    for (int connection = 0; connection < CONNECTIONS; connection++) cudaFree(comm->memory[connection]);
    release(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
    atomic_store(&comm->aborted, true);
    release(comm);
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result) {
    static const char *const words[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or there was a network error"};
    return (unsigned)result < sizeof words / sizeof *words ? words[result] : "unknown result code";
}

const char *ncclGetLastError(ncclComm_t comm) {
    (void)comm;
    return last_error;
}

/* ---- running a batch ---- */

/* False when the communicator was aborted meanwhile; what was posted stays posted. */
static bool wait_all(const struct batch *batch, int count, MPI_Request *requests) {
    for (int done = 0;;) {
        MPI_Testall(count, requests, &done, MPI_STATUSES_IGNORE);
        if (done) return true;
        if (atomic_load(&batch->comm->aborted)) return false;
        nanosleep(&(struct timespec){.tv_nsec = SLEEP_NS}, NULL);
    }
}

static void fail_batch(const struct batch *batch, ncclResult_t error) {
    int none = ncclSuccess;
    atomic_compare_exchange_strong(&batch->comm->error, &none, (int)error);
}

static void add(void *sum, const void *addend, size_t count, ncclDataType_t type) {
    if (type == ncclFloat64)
        for (size_t i = 0; i < count; i++) ((double *)sum)[i] += ((const double *)addend)[i];
    else
        for (size_t i = 0; i < count; i++) ((float *)sum)[i] += ((const float *)addend)[i];
}

/* Adds everybody's `count` elements, side by side, in rank order. */
static void add_all(const struct batch *batch, const struct operation *operation, char *all) {
    const size_t bytes = operation->count * bytes_of(operation->type);
    for (int rank = 1; rank < batch->comm->size; rank++)
        add(all, all + (size_t)rank * bytes, operation->count, operation->type);
    memcpy(operation->receive, all, bytes);
}

/* Kind, count and type must be everybody's. */
static bool agree(const struct batch *batch, const struct operation *operation) {
    const int64_t own[3] = {operation->kind, (int64_t)operation->count, operation->type};
    int64_t(*all)[3] = calloc((size_t)batch->comm->size, sizeof *all);
    MPI_Request request;
    if (!all) abort();
    MPI_Iallgather(own, 3, MPI_INT64_T, all, 3, MPI_INT64_T, batch->comm->mpi, &request);
    bool same = wait_all(batch, 1, &request);
    if (!same) return false; /* aborted: `all` may still be written to */
    for (int rank = 0; rank < batch->comm->size; rank++) same &= memcmp(all[rank], own, sizeof own) == 0;
    free(all);
    if (!same) fail_batch(batch, ncclInvalidUsage);
    return same;
}

static void run_collective(const struct batch *batch, const struct operation *operation) {
    const size_t bytes = operation->count * bytes_of(operation->type);
    const int size = batch->comm->size;
    if (!agree(batch, operation)) return;
    char *all = malloc((size_t)size * bytes + 1), *own = malloc((size_t)size * bytes + 1);
    if (!all || !own) abort();
    MPI_Request request;
    memcpy(own, operation->send, operation->kind == REDUCE_SCATTER ? (size_t)size * bytes : bytes);
    if (operation->kind == REDUCE_SCATTER)
        MPI_Ialltoall(own, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, batch->comm->mpi, &request);
    else
        MPI_Iallgather(own, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, batch->comm->mpi, &request);
    if (!wait_all(batch, 1, &request)) return; /* MPI may still write to both */
    if (operation->kind == ALL_GATHER)
        memcpy(operation->receive, all, (size_t)size * bytes);
    else
        add_all(batch, operation, all);
    free(all);
    free(own);
}

/* Sizes go first, so that a receiver knows when they differ. */
enum { TAG_SIZE, TAG_DATA };

static void run_pairs(const struct batch *batch) {
    MPI_Request *requests = calloc(4 * batch->count, sizeof *requests);
    uint64_t *sizes = calloc(2 * batch->count, sizeof *sizes);
    void **arrived = calloc(batch->count, sizeof *arrived);
    if (!requests || !sizes || !arrived) abort();
    int posted = 0, sent = 0;
    for (size_t i = 0; i < batch->count; i++) {
        const struct operation *operation = &batch->operations[i];
        sizes[i] = operation->count * bytes_of(operation->type);
        if (operation->kind == RECEIVE) {
            MPI_Irecv(&sizes[batch->count + i], 1, MPI_UINT64_T, operation->peer, TAG_SIZE, batch->comm->mpi,
                      &requests[posted++]);
            continue;
        }
        MPI_Isend(&sizes[i], 1, MPI_UINT64_T, operation->peer, TAG_SIZE, batch->comm->mpi, &requests[posted++]);
        MPI_Isend(operation->send, (int)sizes[i], MPI_BYTE, operation->peer, TAG_DATA, batch->comm->mpi,
                  &requests[3 * batch->count + (size_t)sent++]);
    }
    if (!wait_all(batch, posted, requests)) return; /* MPI may still write to all of it */
    int receives = 0;
    for (size_t i = 0; i < batch->count; i++) {
        const struct operation *operation = &batch->operations[i];
        if (operation->kind != RECEIVE) continue;
        const uint64_t size = sizes[batch->count + i];
        if (size != sizes[i]) fail_batch(batch, ncclInvalidUsage);
        arrived[i] = malloc(size + 1);
        if (!arrived[i]) abort();
        MPI_Irecv(arrived[i], (int)size, MPI_BYTE, operation->peer, TAG_DATA, batch->comm->mpi,
                  &requests[2 * batch->count + (size_t)receives++]);
    }
    if (!wait_all(batch, receives, requests + 2 * batch->count)) return;
    if (!wait_all(batch, sent, requests + 3 * batch->count)) return;
    for (size_t i = 0; i < batch->count; i++) {
        if (arrived[i] && sizes[batch->count + i] == sizes[i])
            memcpy(batch->operations[i].receive, arrived[i], sizes[i]);
        free(arrived[i]);
    }
    free(arrived);
    free(sizes);
    free(requests);
}

static void run_batch(void *argument) {
    struct batch *batch = argument;
    ncclComm_t comm = batch->comm;
    if (is_planted("LS_STANDIN_NCCL_DIE", batch)) kill(getpid(), SIGKILL);
    if (is_planted("LS_STANDIN_NCCL_FAIL", batch)) fail_batch(batch, ncclRemoteError);
    if (is_planted("LS_STANDIN_NCCL_HANG", batch))
        while (!atomic_load(&comm->aborted)) nanosleep(&(struct timespec){.tv_nsec = SLEEP_NS}, NULL);
    if (!atomic_load(&comm->aborted) && atomic_load(&comm->error) == ncclSuccess) {
        if (batch->operations[0].kind >= SEND)
            run_pairs(batch);
        else
            for (size_t i = 0; i < batch->count; i++) run_collective(batch, &batch->operations[i]);
    }
    free(batch);
    release(comm);
}

/* ---- putting work on streams ---- */

static bool is_on_device(const void *memory, size_t bytes) {
    return bytes == 0 || ls_standin_is_device_memory(memory, bytes);
}

static enum connection connection_of(const struct operation *operation) {
    if (operation->kind >= SEND) return PAIRS;
    return operation->kind == ALL_REDUCE && operation->count * bytes_of(operation->type) < TREE_BYTES ? TREE : RING;
}

static ncclResult_t submit(void) {
    const size_t bytes = group.count * sizeof group.operations[0];
    if (cudaPeekAtLastError() == cudaErrorIllegalAddress) {
        snprintf(last_error, sizeof last_error, "Cuda failure 'an illegal memory access was encountered'");
        atomic_store(&group.comm->error, ncclUnhandledCudaError);
        return accept(group.comm);
    }
    for (size_t i = 0; i < group.count; i++)
        if (!connect_by(group.comm, connection_of(&group.operations[i]))) return accept(group.comm);
    struct batch *batch = malloc(sizeof *batch + bytes);
    if (!batch) return refuse(ncclSystemError, "no memory");
    batch->comm = group.comm;
    batch->number = ++group.comm->groups;
    batch->count = group.count;
    memcpy(batch->operations, group.operations, bytes);
    atomic_fetch_add(&group.comm->references, 1);
    ls_standin_enqueue(group.stream, run_batch, batch);
    return accept(group.comm);
}

ncclResult_t ncclGroupStart(void) {
    if (group.depth++ == 0) {
        group.count = 0;
        group.comm = NULL;
        group.refused = ncclSuccess;
    }
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    if (group.depth == 0) return refuse(ncclInvalidUsage, "no group was begun");
    if (--group.depth > 0 || group.count == 0) return ncclSuccess;
    return group.refused ? group.refused : submit();
}

static ncclResult_t put(ncclComm_t comm, cudaStream_t stream, const struct operation *operation) {
    const size_t bytes = operation->count * bytes_of(operation->type), slices = comm ? (size_t)comm->size : 1;
    ncclResult_t result = check(comm);
    const bool pair = operation->kind >= SEND;
    if (!result && (!is_on_device(operation->send, operation->kind == REDUCE_SCATTER ? slices * bytes
                                                   : operation->kind == RECEIVE      ? 0
                                                                                     : bytes) ||
                    !is_on_device(operation->receive, operation->kind == ALL_GATHER ? slices * bytes
                                                      : operation->kind == SEND     ? 0
                                                                                    : bytes)))
        result = refuse(ncclInvalidArgument, "a buffer is not in device memory");
    if (!result && (operation->kind == ALL_REDUCE || operation->kind == REDUCE_SCATTER) &&
        operation->type != ncclFloat32 && operation->type != ncclFloat64)
        result = refuse(ncclInvalidArgument, "the stand-in adds floats and doubles only");
    if (!result && group.depth > 0 && group.count > 0 &&
        (group.comm != comm || group.stream != stream || (group.operations[0].kind >= SEND) != pair))
        result = refuse(ncclInvalidUsage, "the stand-in's groups have one communicator, one stream and one kind");
    if (!result && group.count == GROUP_MAX) result = refuse(ncclInvalidUsage, "the group is too large");
    if (result) {
        group.refused = result;
        return result;
    }
    ncclGroupStart();
    group.comm = comm;
    group.stream = stream;
    group.operations[group.count++] = *operation;
    return ncclGroupEnd();
}

ncclResult_t ncclAllReduce(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
    if (op != ncclSum) return refuse(ncclInvalidArgument, "the stand-in sums only");
    return put(comm, stream, &(struct operation){ALL_REDUCE, send, receive, count, type, -1});
}

ncclResult_t ncclReduceScatter(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream) {
    if (op != ncclSum) return refuse(ncclInvalidArgument, "the stand-in sums only");
    return put(comm, stream, &(struct operation){REDUCE_SCATTER, send, receive, count, type, -1});
}

ncclResult_t ncclAllGather(const void *send, void *receive, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
    return put(comm, stream, &(struct operation){ALL_GATHER, send, receive, count, type, -1});
}

ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return put(comm, stream, &(struct operation){SEND, send, NULL, count, type, peer});
}

ncclResult_t ncclRecv(void *receive, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return put(comm, stream, &(struct operation){RECEIVE, NULL, receive, count, type, peer});
}
