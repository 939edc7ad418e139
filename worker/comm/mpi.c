/* Collectives over MPI on host memory. Two communicators, one per channel, so that collectives of the communication
 * thread and of the training thread never mix. No collective moves more than a piece: above the size of a last-level
 * cache whole-buffer collectives are two to six times slower than pieces of 4 MiB. */
#include "worker/comm/implementation.h"

#include <mpi.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* How long to look for the other ranks without sleeping, then with short sleeps, then with long ones (2 s later). */
enum { POLLS_AWAKE = 50, POLLS_SHORT = 20000, SLEEP_SHORT_NS = 50000, SLEEP_LONG_NS = 1000000 };
enum { PIECE_BYTES = 4 << 20, SLICE_PIECE_BYTES_MIN = 64 << 10 };

struct mpi_comm {
    struct ls_comm common;
    MPI_Comm channels[LS_CHANNEL_COUNT];
    void *workspace; /* where reduce-scatter packs a piece of every slice; that of the root, in a part */
    size_t workspace_bytes;
};

static enum ls_code mpi_failed(int status, const char *call, struct ls_error *error) {
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    if (MPI_Error_string(status, text, &length)) length = 0;
    return ls_fail(
        error, LS_COMMUNICATION, LS_SCOPE_JOB,
        "communication: %s failed: %.*s. A rank or the network between ranks is lost: see the other ranks' logs.", call,
        length, text);
}

/* Waits until every rank has come to this collective, asleep: MPI itself waits by spinning, which takes the core from
 * the thread that is awaited wherever there are more threads than cores. What follows finds all ranks ready and is
 * short. */
static enum ls_code await_ranks(struct mpi_comm *comm, enum ls_comm_channel channel, struct ls_error *error) {
    MPI_Request request;
    int status = MPI_Ibarrier(comm->channels[channel], &request), done = 0;
    for (int poll = 0; !status; poll++) {
        status = MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (done) break;
        if (poll < POLLS_AWAKE)
            sched_yield();
        else
            nanosleep(&(struct timespec){.tv_nsec = poll < POLLS_SHORT ? SLEEP_SHORT_NS : SLEEP_LONG_NS}, NULL);
    }
    return status ? mpi_failed(status, "MPI_Ibarrier", error) : LS_OK;
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* MPI knows no bf16: every rank gets everybody's part of its stretch and adds them up. The workspace holds `count`
 * elements for each rank, side by side; its other half receives. The sum is left where the own part was received. */
static enum ls_code exchange_bf16(struct mpi_comm *comm, int64_t count, uint16_t **sum, struct ls_error *error) {
    const int size = comm->common.size;
    uint16_t *sent = comm->workspace, *received = sent + size * count;
    int status = MPI_Alltoall(sent, (int)count, MPI_UINT16_T, received, (int)count, MPI_UINT16_T,
                              comm->channels[LS_CHANNEL_STREAM]);
    if (status) return mpi_failed(status, "MPI_Alltoall", error);
    *sum = received + comm->common.rank * count;
    for (int64_t start = 0; start < count; start += LS_BF16_STRETCH) {
        const int64_t length = smaller(count - start, LS_BF16_STRETCH);
        float stretch[LS_BF16_STRETCH] = {0};
        for (int rank = 0; rank < size; rank++) ls_comm_add_bf16(stretch, received + rank * count + start, length);
        ls_comm_round_bf16(*sum + start, stretch, length);
    }
    return LS_OK;
}

/* Elements a rank may have in the workspace, twice. */
static int64_t piece_bf16(const struct mpi_comm *comm) {
    return (int64_t)(comm->workspace_bytes / sizeof(uint16_t)) / 2 / comm->common.size;
}

static enum ls_code run_reduce_scatter_bf16(struct mpi_comm *comm, const struct ls_collective *collective,
                                            struct ls_error *error) {
    const int64_t size = comm->common.size, piece = piece_bf16(comm);
    uint16_t *buffer = collective->buffer, *packed = comm->workspace, *sum;
    for (int64_t first = 0; first < collective->count; first += piece) {
        const int64_t count = smaller(piece, collective->count - first);
        for (int64_t rank = 0; rank < size; rank++)
            memcpy(packed + rank * count, buffer + rank * collective->count + first, (size_t)count * sizeof *packed);
        enum ls_code code = exchange_bf16(comm, count, &sum, error);
        if (code) return code;
        memcpy(buffer + comm->common.rank * collective->count + first, sum, (size_t)count * sizeof *sum);
    }
    return LS_OK;
}

/* A stretch is cut over the ranks, the last one's part filled up with zeros; the sums are gathered. */
static enum ls_code run_all_reduce_bf16(struct mpi_comm *comm, const struct ls_collective *collective,
                                        struct ls_error *error) {
    const int64_t size = comm->common.size, piece = piece_bf16(comm) * size;
    uint16_t *buffer = collective->buffer, *packed = comm->workspace, *sum;
    for (int64_t first = 0; first < collective->count; first += piece) {
        const int64_t elements = smaller(piece, collective->count - first), count = (elements + size - 1) / size;
        memcpy(packed, buffer + first, (size_t)elements * sizeof *packed);
        memset(packed + elements, 0, (size_t)(size * count - elements) * sizeof *packed);
        enum ls_code code = exchange_bf16(comm, count, &sum, error);
        if (code) return code;
        int status = MPI_Allgather(sum, (int)count, MPI_UINT16_T, packed, (int)count, MPI_UINT16_T,
                                   comm->channels[LS_CHANNEL_STREAM]);
        if (status) return mpi_failed(status, "MPI_Allgather", error);
        memcpy(buffer + first, packed, (size_t)elements * sizeof *packed);
    }
    return LS_OK;
}

static enum ls_code run_all_reduce(struct mpi_comm *comm, const struct ls_collective *collective,
                                   struct ls_error *error) {
    if (collective->type == LS_COMM_BF16) return run_all_reduce_bf16(comm, collective, error);
    MPI_Datatype type = collective->type == LS_COMM_FLOAT ? MPI_FLOAT : MPI_DOUBLE;
    int64_t element = (int64_t)ls_comm_type_bytes(collective->type), piece = PIECE_BYTES / element;
    for (int64_t first = 0; first < collective->count; first += piece) {
        int status = MPI_Allreduce(MPI_IN_PLACE, (char *)collective->buffer + first * element,
                                   (int)smaller(piece, collective->count - first), type, MPI_SUM,
                                   comm->channels[LS_CHANNEL_STREAM]);
        if (status) return mpi_failed(status, "MPI_Allreduce", error);
    }
    return LS_OK;
}

/* A piece is the same stretch of every slice; MPI wants the stretches side by side, so they are packed. */
static enum ls_code run_reduce_scatter(struct mpi_comm *comm, const struct ls_collective *collective,
                                       struct ls_error *error) {
    if (collective->type == LS_COMM_BF16) return run_reduce_scatter_bf16(comm, collective, error);
    MPI_Datatype type = collective->type == LS_COMM_FLOAT ? MPI_FLOAT : MPI_DOUBLE;
    int64_t element = (int64_t)ls_comm_type_bytes(collective->type), size = comm->common.size;
    int64_t piece = (int64_t)comm->workspace_bytes / element / size;
    for (int64_t first = 0; first < collective->count; first += piece) {
        int64_t count = smaller(piece, collective->count - first);
        for (int64_t rank = 0; rank < size; rank++)
            memcpy((char *)comm->workspace + rank * count * element,
                   (char *)collective->buffer + (rank * collective->count + first) * element,
                   (size_t)(count * element));
        char *slice = (char *)collective->buffer + (comm->common.rank * collective->count + first) * element;
        int status = MPI_Reduce_scatter_block(comm->workspace, slice, (int)count, type, MPI_SUM,
                                              comm->channels[LS_CHANNEL_STREAM]);
        if (status) return mpi_failed(status, "MPI_Reduce_scatter_block", error);
    }
    return LS_OK;
}

/* A piece is a stretch of every slice, `count` bytes apart: a type of the stretch's size with the slice's extent. */
static enum ls_code run_all_gather(struct mpi_comm *comm, const struct ls_collective *collective,
                                   struct ls_error *error) {
    int64_t piece = (int64_t)comm->workspace_bytes / comm->common.size;
    for (int64_t first = 0; first < collective->count; first += piece) {
        MPI_Datatype stretch, spaced;
        int status = MPI_Type_contiguous((int)smaller(piece, collective->count - first), MPI_BYTE, &stretch);
        if (status) return mpi_failed(status, "MPI_Type_contiguous", error);
        status = MPI_Type_create_resized(stretch, 0, (MPI_Aint)collective->count, &spaced);
        MPI_Type_free(&stretch);
        if (status) return mpi_failed(status, "MPI_Type_create_resized", error);
        status = MPI_Type_commit(&spaced);
        if (!status)
            status = MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, (char *)collective->buffer + first, 1, spaced,
                                   comm->channels[LS_CHANNEL_STREAM]);
        MPI_Type_free(&spaced);
        if (status) return mpi_failed(status, "MPI_Allgather", error);
    }
    return LS_OK;
}

/* Pairwise: in each round every rank sends to one rank and receives from another. */
static enum ls_code run_exchange(struct mpi_comm *comm, const struct ls_collective *collective,
                                 struct ls_error *error) {
    const struct ls_comm_exchange *exchange = &collective->exchange;
    const int rank = comm->common.rank, size = comm->common.size, own = exchange->parts[rank];
    const int bytes = (int)exchange->bytes;
    for (int round = 0; round < size; round++) {
        const int to = (rank + round) % size, from = (rank + size - round) % size;
        const int64_t offset = ls_exchange_offset(exchange, size, to);
        char *place = exchange->received;
        for (int before = 0; before < from; before++) place += (int64_t)exchange->parts[before] * bytes;
        if (round == 0) {
            for (int part = 0; part < own; part++, place += bytes)
                memcpy(place, (const char *)exchange->buffers[part] + offset, (size_t)bytes);
            continue;
        }
        /* As long as one of the two sides has a part; the other side is nobody then. */
        const int theirs = exchange->parts[from], parts = own > theirs ? own : theirs;
        for (int part = 0; part < parts; part++, place += bytes) {
            const bool sends = part < own, receives = part < theirs;
            int status = MPI_Sendrecv(sends ? (const char *)exchange->buffers[part] + offset : NULL, sends ? bytes : 0,
                                      MPI_BYTE, sends ? to : MPI_PROC_NULL, part, receives ? place : NULL,
                                      receives ? bytes : 0, MPI_BYTE, receives ? from : MPI_PROC_NULL, part,
                                      comm->channels[LS_CHANNEL_STREAM], MPI_STATUS_IGNORE);
            if (status) return mpi_failed(status, "MPI_Sendrecv", error);
        }
    }
    return LS_OK;
}

static enum ls_code mpi_run(struct ls_comm *comm, const struct ls_collective *collective, struct ls_error *error) {
    struct mpi_comm *mpi = (struct mpi_comm *)comm;
    enum ls_code code = await_ranks(mpi, LS_CHANNEL_STREAM, error);
    if (code) return code;
    switch (collective->kind) {
    case LS_ALL_REDUCE: return run_all_reduce(mpi, collective, error);
    case LS_REDUCE_SCATTER: return run_reduce_scatter(mpi, collective, error);
    case LS_ALL_GATHER: return run_all_gather(mpi, collective, error);
    case LS_EXCHANGE: return run_exchange(mpi, collective, error);
    }
    return LS_OK;
}

static enum ls_code mpi_sum_u64(struct ls_comm *comm, uint64_t *values, int count, struct ls_error *error) {
    enum ls_code code = await_ranks((struct mpi_comm *)comm, LS_CHANNEL_HOST, error);
    if (code) return code;
    MPI_Comm channel = ((struct mpi_comm *)comm)->channels[LS_CHANNEL_HOST];
    int status = MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_UINT64_T, MPI_SUM, channel);
    return status ? mpi_failed(status, "MPI_Allreduce", error) : LS_OK;
}

static enum ls_code mpi_broadcast(struct ls_comm *comm, void *bytes, int64_t count, int root, struct ls_error *error) {
    enum ls_code code = await_ranks((struct mpi_comm *)comm, LS_CHANNEL_HOST, error);
    if (code) return code;
    MPI_Comm channel = ((struct mpi_comm *)comm)->channels[LS_CHANNEL_HOST];
    for (int64_t first = 0; first < count; first += PIECE_BYTES) {
        int status =
            MPI_Bcast((char *)bytes + first, (int)smaller(PIECE_BYTES, count - first), MPI_BYTE, root, channel);
        if (status) return mpi_failed(status, "MPI_Bcast", error);
    }
    return LS_OK;
}

static enum ls_code mpi_gather(struct ls_comm *comm, enum ls_comm_channel channel, const void *mine, int64_t count,
                               void *all, struct ls_error *error) {
    enum ls_code code = await_ranks((struct mpi_comm *)comm, channel, error);
    if (code) return code;
    int status = MPI_Allgather(mine, (int)count, MPI_BYTE, all, (int)count, MPI_BYTE,
                               ((struct mpi_comm *)comm)->channels[channel]);
    return status ? mpi_failed(status, "MPI_Allgather", error) : LS_OK;
}

static void mpi_destroy(struct ls_comm *comm) {
    struct mpi_comm *mpi = (struct mpi_comm *)comm;
    for (int channel = 0; channel < LS_CHANNEL_COUNT; channel++)
        if (mpi->channels[channel] != MPI_COMM_NULL) MPI_Comm_free(&mpi->channels[channel]);
    if (comm->root == comm) free(mpi->workspace);
    free(mpi);
}

static const struct ls_comm_operations mpi_operations;

/* A communicator without channels. */
static enum ls_code create(int rank, int size, int local_rank, int local_size, struct mpi_comm **comm,
                           struct ls_error *error) {
    struct mpi_comm *mpi = calloc(1, sizeof *mpi);
    if (!mpi) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "communication: no memory for a communicator");
    enum ls_code code = ls_comm_initialize(&mpi->common, &mpi_operations, rank, size, local_rank, local_size, error);
    if (code) {
        free(mpi);
        return code;
    }
    for (int channel = 0; channel < LS_CHANNEL_COUNT; channel++) mpi->channels[channel] = MPI_COMM_NULL;
    *comm = mpi;
    return LS_OK;
}

static enum ls_code mpi_split(struct ls_comm *comm, int rank, int size, const int *members, struct ls_comm **part,
                              struct ls_error *error) {
    struct mpi_comm *whole = (struct mpi_comm *)comm, *mpi = NULL;
    enum ls_code code = create(rank, size, comm->local_rank, comm->local_size, &mpi, error);
    if (code) return code;
    mpi->common.root = comm;
    mpi->workspace = whole->workspace;
    mpi->workspace_bytes = whole->workspace_bytes;
    for (int channel = 0; channel < LS_CHANNEL_COUNT && !code; channel++) {
        /* The lowest rank of a part names it. */
        int color = members[0];
        for (int i = 1; i < size; i++)
            if (members[i] < color) color = members[i];
        int status = MPI_Comm_split(whole->channels[channel], color, rank, &mpi->channels[channel]);
        if (status) code = mpi_failed(status, "MPI_Comm_split", error);
    }
    if (code) {
        ls_comm_destroy(&mpi->common);
        return code;
    }
    *part = &mpi->common;
    return LS_OK;
}

static const struct ls_comm_operations mpi_operations = {
    .run = mpi_run,
    .sum_u64 = mpi_sum_u64,
    .broadcast = mpi_broadcast,
    .gather = mpi_gather,
    .split = mpi_split,
    .destroy = mpi_destroy,
};

static enum ls_code find_local_ranks(int *local_rank, int *local_size, struct ls_error *error) {
    MPI_Comm node;
    int status = MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
    if (status) return mpi_failed(status, "MPI_Comm_split_type", error);
    MPI_Comm_rank(node, local_rank);
    MPI_Comm_size(node, local_size);
    MPI_Comm_free(&node);
    return LS_OK;
}

enum ls_code ls_comm_create_mpi(struct ls_comm **comm, struct ls_error *error) {
    int level, rank, size, local_rank, local_size;
    MPI_Query_thread(&level);
    if (level < MPI_THREAD_MULTIPLE)
        return ls_fail(
            error, LS_COMMUNICATION, LS_SCOPE_JOB,
            "communication: MPI grants thread level %d, MPI_THREAD_MULTIPLE (%d) is needed. Use an MPI library "
            "built with thread support.",
            level, MPI_THREAD_MULTIPLE);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    enum ls_code code = find_local_ranks(&local_rank, &local_size, error);
    if (code) return code;
    struct mpi_comm *mpi = NULL;
    code = create(rank, size, local_rank, local_size, &mpi, error);
    if (code) return code;
    mpi->workspace_bytes = (size_t)size * SLICE_PIECE_BYTES_MIN;
    if (mpi->workspace_bytes < PIECE_BYTES) mpi->workspace_bytes = PIECE_BYTES;
    mpi->workspace = malloc(mpi->workspace_bytes);
    if (!mpi->workspace)
        code = ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "communication: no memory for %zu bytes of workspace",
                       mpi->workspace_bytes);
    for (int channel = 0; channel < LS_CHANNEL_COUNT && !code; channel++) {
        int status = MPI_Comm_dup(MPI_COMM_WORLD, &mpi->channels[channel]); /* the error handler is copied too */
        if (status) code = mpi_failed(status, "MPI_Comm_dup", error);
    }
    if (code) {
        ls_comm_destroy(&mpi->common);
        return code;
    }
    *comm = &mpi->common;
    return LS_OK;
}
