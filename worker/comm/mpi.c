/* Collectives on host memory between processes. Two MPI communicators, one per channel, so that collectives of the
 * communication thread and of the training thread never mix. Where all ranks are on one host, those on streams go
 * through memory they share; between hosts no collective of MPI moves more than a piece: above the size of a last-level
 * cache whole-buffer collectives are two to six times slower than pieces of 4 MiB. */
#include "common/log.h"
#include "worker/comm/peers.h"
#include "worker/comm/shared.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* MPI_Bcast in pieces: above the size of a last-level cache whole buffers are slower. */
enum { PIECE_BYTES = 4 << 20 };

/* Ranks are numbered host by host, `members` on each: rank = host * members + member. Members of a host reduce and
 * gather through the memory they share, each of them its part with the same members of the other hosts. Where ranks are
 * spread otherwise, or share no memory, each is a host by itself. */
struct mpi_comm {
    struct ls_comm common;
    MPI_Comm channels[LS_CHANNEL_COUNT];
    int hosts, members, member;
    struct ls_shared *shared; /* NULL: one member */
    void *segment;            /* [ls_shared_bytes(members)] */
    MPI_Comm same_member;     /* MPI_COMM_NULL: one host */
    struct ls_peers *peers;   /* NULL: one host */
};

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Within the host each member sums a part, which goes on to the other hosts; then the members gather. The few elements
 * that do not divide are summed by all of them. */
static enum ls_code run_all_reduce(struct mpi_comm *comm, const struct ls_collective *collective,
                                   struct ls_error *error) {
    if (comm->hosts == 1) {
        ls_shared_run(comm->shared, collective);
        return LS_OK;
    }
    if (comm->members == 1)
        return ls_peers_all_reduce(comm->peers, collective->buffer, collective->count, collective->type, error);
    const int64_t element = (int64_t)ls_comm_type_bytes(collective->type), part = collective->count / comm->members;
    char *rest = (char *)collective->buffer + part * comm->members * element;
    struct ls_collective step = *collective;
    enum ls_code code = LS_OK;
    if (part > 0) {
        step.kind = LS_REDUCE_SCATTER;
        step.count = part;
        ls_shared_run(comm->shared, &step);
        code = ls_peers_all_reduce(comm->peers, (char *)collective->buffer + comm->member * part * element, part,
                                   collective->type, error);
        if (code) return code;
        step.kind = LS_ALL_GATHER;
        step.count = part * element;
        ls_shared_run(comm->shared, &step);
    }
    step.kind = LS_ALL_REDUCE;
    step.buffer = rest;
    step.count = collective->count - part * comm->members;
    if (step.count == 0) return LS_OK;
    ls_shared_run(comm->shared, &step);
    return ls_peers_all_reduce(comm->peers, rest, step.count, collective->type, error);
}

/* A collective of the members on the slices of every host's ranks, one host after another; `count` elements or bytes.
 */
static void run_for_hosts(struct mpi_comm *comm, const struct ls_collective *collective, int64_t slice_bytes) {
    struct ls_collective step = *collective;
    for (int host = 0; host < comm->hosts && comm->shared; host++) {
        step.buffer = (char *)collective->buffer + host * comm->members * slice_bytes;
        ls_shared_run(comm->shared, &step);
    }
}

static enum ls_code run_reduce_scatter(struct mpi_comm *comm, const struct ls_collective *collective,
                                       struct ls_error *error) {
    const int64_t slice_bytes = collective->count * (int64_t)ls_comm_type_bytes(collective->type);
    run_for_hosts(comm, collective, slice_bytes);
    if (comm->hosts == 1) return LS_OK;
    return ls_peers_reduce_scatter(comm->peers, (char *)collective->buffer + comm->member * slice_bytes,
                                   comm->members * collective->count, collective->count, collective->type, error);
}

static enum ls_code run_all_gather(struct mpi_comm *comm, const struct ls_collective *collective,
                                   struct ls_error *error) {
    enum ls_code code = LS_OK;
    if (comm->hosts > 1)
        code = ls_peers_all_gather(comm->peers, (char *)collective->buffer + comm->member * collective->count,
                                   comm->members * collective->count, collective->count, error);
    if (!code) run_for_hosts(comm, collective, collective->count);
    return code;
}

/* Pairwise: in each round every rank sends to one rank and receives from another. */
static enum ls_code run_exchange(struct mpi_comm *comm, const struct ls_collective *collective,
                                 struct ls_error *error) {
    if (comm->hosts == 1) {
        ls_shared_run(comm->shared, collective);
        return LS_OK;
    }
    MPI_Request request;
    int status = MPI_Ibarrier(comm->channels[LS_CHANNEL_STREAM], &request);
    enum ls_code code = ls_peers_end(status, &request, "MPI_Ibarrier", error);
    if (code) return code;
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
            status = ls_peers_swap(comm->channels[LS_CHANNEL_STREAM],
                                   sends ? (const char *)exchange->buffers[part] + offset : NULL, sends ? bytes : 0, to,
                                   receives ? place : NULL, receives ? bytes : 0, from);
            if (status) return ls_peers_failed(status, "an exchange", error);
        }
    }
    return LS_OK;
}

static enum ls_code mpi_run(struct ls_comm *comm, const struct ls_collective *collective, struct ls_error *error) {
    struct mpi_comm *mpi = (struct mpi_comm *)comm;
    switch (collective->kind) {
    case LS_ALL_REDUCE: return run_all_reduce(mpi, collective, error);
    case LS_REDUCE_SCATTER: return run_reduce_scatter(mpi, collective, error);
    case LS_ALL_GATHER: return run_all_gather(mpi, collective, error);
    case LS_EXCHANGE: return run_exchange(mpi, collective, error);
    }
    return LS_OK;
}

static enum ls_code mpi_sum_u64(struct ls_comm *comm, uint64_t *values, int count, struct ls_error *error) {
    MPI_Request request;
    int status = MPI_Iallreduce(MPI_IN_PLACE, values, count, MPI_UINT64_T, MPI_SUM,
                                ((struct mpi_comm *)comm)->channels[LS_CHANNEL_HOST], &request);
    // NOLINTNEXTLINE(clang-analyzer-optin.mpi.MPI-Checker): it waits
    return ls_peers_end(status, &request, "MPI_Iallreduce", error);
}

static enum ls_code mpi_broadcast(struct ls_comm *comm, void *bytes, int64_t count, int root, struct ls_error *error) {
    enum ls_code code = LS_OK;
    for (int64_t first = 0; first < count && !code; first += PIECE_BYTES) {
        MPI_Request request;
        int status = MPI_Ibcast((char *)bytes + first, (int)smaller(PIECE_BYTES, count - first), MPI_BYTE, root,
                                ((struct mpi_comm *)comm)->channels[LS_CHANNEL_HOST], &request);
        // NOLINTNEXTLINE(clang-analyzer-optin.mpi.MPI-Checker): it waits
        code = ls_peers_end(status, &request, "MPI_Ibcast", error);
    }
    return code;
}

static enum ls_code mpi_gather(struct ls_comm *comm, enum ls_comm_channel channel, const void *mine, int64_t count,
                               void *all, struct ls_error *error) {
    MPI_Request request;
    int status = MPI_Iallgather(mine, (int)count, MPI_BYTE, all, (int)count, MPI_BYTE,
                                ((struct mpi_comm *)comm)->channels[channel], &request);
    // NOLINTNEXTLINE(clang-analyzer-optin.mpi.MPI-Checker): it waits
    return ls_peers_end(status, &request, "MPI_Iallgather", error);
}

static void mpi_destroy(struct ls_comm *comm) {
    struct mpi_comm *mpi = (struct mpi_comm *)comm;
    ls_peers_destroy(mpi->peers);
    ls_shared_destroy(mpi->shared);
    ls_shared_unmap(mpi->segment, ls_shared_bytes(mpi->members));
    if (mpi->same_member != MPI_COMM_NULL) MPI_Comm_free(&mpi->same_member);
    for (int channel = 0; channel < LS_CHANNEL_COUNT; channel++)
        if (mpi->channels[channel] != MPI_COMM_NULL) MPI_Comm_free(&mpi->channels[channel]);
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
    mpi->hosts = size;
    mpi->members = 1;
    mpi->same_member = MPI_COMM_NULL;
    for (int channel = 0; channel < LS_CHANNEL_COUNT; channel++) mpi->channels[channel] = MPI_COMM_NULL;
    *comm = mpi;
    return LS_OK;
}

/* Maps memory that the first rank makes, through its descriptor in /proc; NULL where that cannot be done. Where a rank
 * has another view of processes, that path may lead to another file: the inode tells. */
static void *map_segment(MPI_Comm channel, int rank, size_t bytes) {
    enum { PROCESS, DESCRIPTOR, DEVICE, INODE, WORDS };
    struct stat file;
    int64_t owner[WORDS] = {getpid(), rank == 0 ? ls_shared_open(bytes) : -1};
    if (rank == 0 && owner[DESCRIPTOR] >= 0 && fstat((int)owner[DESCRIPTOR], &file) == 0) {
        owner[DEVICE] = (int64_t)file.st_dev;
        owner[INODE] = (int64_t)file.st_ino;
    }
    MPI_Bcast(owner, WORDS, MPI_INT64_T, 0, channel);
    char path[64];
    snprintf(path, sizeof path, "/proc/%lld/fd/%lld", (long long)owner[PROCESS], (long long)owner[DESCRIPTOR]);
    int descriptor = (int)owner[DESCRIPTOR];
    if (rank != 0 && descriptor >= 0) descriptor = open(path, O_RDWR | O_CLOEXEC);
    void *memory = NULL;
    if (descriptor >= 0 && fstat(descriptor, &file) == 0 && (int64_t)file.st_dev == owner[DEVICE] &&
        (int64_t)file.st_ino == owner[INODE])
        memory = ls_shared_map(descriptor, bytes);
    MPI_Barrier(channel);
    if (descriptor >= 0) close(descriptor);
    return memory;
}

/* Whether the ranks on `host`, the part of the channel on this host, are numbered host by host with as many everywhere.
 */
static bool are_regular(MPI_Comm channel, MPI_Comm host) {
    int rank, size, members, member, extremes[4];
    MPI_Comm_rank(channel, &rank);
    MPI_Comm_size(channel, &size);
    MPI_Comm_rank(host, &member);
    MPI_Comm_size(host, &members);
    int first = rank;
    MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_MIN, host);
    const int regular = size % members == 0 && first % members == 0 && rank == first + member;
    const int own[4] = {members, -members, regular, 0};
    MPI_Allreduce(own, extremes, 4, MPI_INT, MPI_MIN, channel);
    return extremes[0] == -extremes[1] && extremes[2] == 1;
}

/* Gives the members of a host their shared memory. Collective over the channel. Where some cannot map it (containers
 * that do not see each other's processes), all do without. */
static enum ls_code share_memory(struct mpi_comm *mpi, MPI_Comm host, struct ls_error *error) {
    int members, member;
    MPI_Comm_rank(host, &member);
    MPI_Comm_size(host, &members);
    void *segment = map_segment(host, member, ls_shared_bytes(members));
    struct ls_shared *shared = NULL;
    enum ls_code code = segment ? ls_shared_create(segment, member, members, &shared, error) : LS_OK;
    int everybody = shared != NULL;
    MPI_Allreduce(MPI_IN_PLACE, &everybody, 1, MPI_INT, MPI_MIN, mpi->channels[LS_CHANNEL_STREAM]);
    if (everybody) {
        mpi->segment = segment;
        mpi->shared = shared;
        mpi->hosts = mpi->common.size / members;
        mpi->members = members;
        mpi->member = member;
        return LS_OK;
    }
    ls_shared_destroy(shared);
    ls_shared_unmap(segment, ls_shared_bytes(members));
    if (mpi->common.rank == 0 && !code)
        ls_log(LS_LOG_WARNING,
               "communication: ranks of a host cannot map memory of each other (containers apart?); MPI moves "
               "everything, which is slower");
    return code;
}

/* Finds out which ranks share a host, and how they reach the others. Collective over the channel. */
static enum ls_code arrange(struct mpi_comm *mpi, struct ls_error *error) {
    MPI_Comm channel = mpi->channels[LS_CHANNEL_STREAM], host;
    int members;
    if (mpi->common.size == 1) return LS_OK;
    int status = MPI_Comm_split_type(channel, MPI_COMM_TYPE_SHARED, mpi->common.rank, MPI_INFO_NULL, &host);
    if (status) return ls_peers_failed(status, "MPI_Comm_split_type", error);
    MPI_Comm_size(host, &members);
    enum ls_code code = LS_OK;
    if (are_regular(channel, host) && members > 1) code = share_memory(mpi, host, error);
    MPI_Comm_free(&host);
    if (code || mpi->hosts == 1) return code;
    status = MPI_Comm_split(channel, mpi->member, mpi->common.rank, &mpi->same_member);
    if (status) return ls_peers_failed(status, "MPI_Comm_split", error);
    return ls_peers_create(mpi->same_member, &mpi->peers, error);
}

static enum ls_code mpi_split(struct ls_comm *comm, int rank, int size, const int *members, struct ls_comm **part,
                              struct ls_error *error) {
    struct mpi_comm *whole = (struct mpi_comm *)comm, *mpi = NULL;
    enum ls_code code = create(rank, size, comm->local_rank, comm->local_size, &mpi, error);
    if (code) return code;
    mpi->common.root = comm;
    for (int channel = 0; channel < LS_CHANNEL_COUNT && !code; channel++) {
        /* The lowest rank of a part names it. */
        int color = members[0];
        for (int i = 1; i < size; i++)
            if (members[i] < color) color = members[i];
        int status = MPI_Comm_split(whole->channels[channel], color, rank, &mpi->channels[channel]);
        if (status) code = ls_peers_failed(status, "MPI_Comm_split", error);
    }
    if (!code) code = arrange(mpi, error);
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
    if (status) return ls_peers_failed(status, "MPI_Comm_split_type", error);
    MPI_Comm_rank(node, local_rank);
    MPI_Comm_size(node, local_size);
    MPI_Comm_free(&node);
    return LS_OK;
}

enum ls_code ls_comm_create_mpi(struct ls_comm **comm, struct ls_error *error) {
    int level, rank, size, local_rank = 0, local_size = 1;
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
    for (int channel = 0; channel < LS_CHANNEL_COUNT && !code; channel++) {
        int status = MPI_Comm_dup(MPI_COMM_WORLD, &mpi->channels[channel]); /* the error handler is copied too */
        if (status) code = ls_peers_failed(status, "MPI_Comm_dup", error);
    }
    if (!code) code = arrange(mpi, error);
    if (code) {
        ls_comm_destroy(&mpi->common);
        return code;
    }
    *comm = &mpi->common;
    return LS_OK;
}
