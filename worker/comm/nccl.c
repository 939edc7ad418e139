/* Collectives over NCCL: what is put on a stream, and the life of communicators. nccl_team.h says how they are watched.
 */
#define _GNU_SOURCE
#include "worker/comm/nccl.h"

#include "common/log.h"
#include "worker/comm/implementation.h"
#include "worker/comm/nccl_environment.h"
#include "worker/comm/nccl_team.h"
#include "worker/device/cuda/kernels.h"
#include "worker/device/cuda/stream.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { VERSION_MIN = 21801 }; /* ncclCommSplit */

struct nccl_comm {
    struct ls_comm common;
    struct ls_nccl_member member;
    struct ls_nccl_team *team; /* a communicator's and its parts' */
    struct ls_comm *host;      /* the same ranks over MPI; a part's is its own */
    ncclComm_t part;           /* where NCCL leaves the communicator of a split, also after we have given up on it */
};

/* ---- collectives ---- */

static ncclDataType_t type_of(enum ls_comm_type type) {
    return type == LS_COMM_DOUBLE ? ncclFloat64 : ncclFloat32;
}

/* Runs `put` between the two ends of a group, and waits until NCCL has taken the group. */
static enum ls_code run_group(struct nccl_comm *comm, const char *call,
                              ncclResult_t (*put)(struct nccl_comm *comm, const void *argument, cudaStream_t stream),
                              const void *argument, cudaStream_t stream, struct ls_error *error) {
    struct ls_nccl_team *team = comm->team;
    pthread_mutex_lock(&team->mutex);
    ncclResult_t result = ncclSuccess;
    if (comm->member.handle && !team->failure.code) {
        result = team->library->ncclGroupStart();
        if (result == ncclSuccess) {
            const ncclResult_t taken = put(comm, argument, stream);
            result = team->library->ncclGroupEnd();
            if (taken != ncclSuccess && taken != ncclInProgress) result = taken;
        }
    }
    pthread_mutex_unlock(&team->mutex);
    return ls_nccl_team_settle(comm->team, &comm->member, result, call, error);
}

static ncclResult_t put_reduction(struct nccl_comm *comm, const void *argument, cudaStream_t stream) {
    const struct ls_collective *collective = argument;
    const struct ls_nccl *library = comm->team->library;
    char *buffer = collective->buffer;
    const int64_t slice = collective->count * (int64_t)ls_comm_type_bytes(collective->type);
    const size_t count = (size_t)collective->count;
    const ncclDataType_t type = type_of(collective->type);
    if (collective->kind == LS_ALL_REDUCE)
        return library->ncclAllReduce(buffer, buffer, count, type, ncclSum, comm->member.handle, stream);
    return library->ncclReduceScatter(buffer, buffer + comm->common.rank * slice, count, type, ncclSum,
                                      comm->member.handle, stream);
}

static ncclResult_t put_all_gather(struct nccl_comm *comm, const void *argument, cudaStream_t stream) {
    const struct ls_collective *collective = argument;
    char *buffer = collective->buffer;
    return comm->team->library->ncclAllGather(buffer + comm->common.rank * collective->count, buffer,
                                              (size_t)collective->count, ncclUint8, comm->member.handle, stream);
}

/* Every pair of ranks sends its parcels in the order of the parts. */
static ncclResult_t put_exchange(struct nccl_comm *comm, const void *argument, cudaStream_t stream) {
    const struct ls_comm_exchange *exchange = argument;
    const struct ls_nccl *library = comm->team->library;
    const int rank = comm->common.rank, size = comm->common.size;
    char *place = exchange->received;
    ncclResult_t result = ncclSuccess;
    for (int peer = 0; peer < size; peer++) {
        const int64_t offset = ls_exchange_offset(exchange, size, peer);
        for (int part = 0; peer != rank && part < exchange->parts[rank] && result == ncclSuccess; part++)
            result = library->ncclSend((const char *)exchange->buffers[part] + offset, (size_t)exchange->bytes,
                                       ncclUint8, peer, comm->member.handle, stream);
        for (int part = 0; part < exchange->parts[peer]; part++, place += exchange->bytes)
            if (peer != rank && result == ncclSuccess)
                result =
                    library->ncclRecv(place, (size_t)exchange->bytes, ncclUint8, peer, comm->member.handle, stream);
    }
    return result;
}

static enum ls_code enqueue_exchange(struct nccl_comm *comm, struct ls_stream *stream,
                                     const struct ls_comm_exchange *exchange, struct ls_error *error) {
    const int rank = comm->common.rank, size = comm->common.size;
    const int64_t offset = ls_exchange_offset(exchange, size, rank);
    char *place = exchange->received;
    for (int before = 0; before < rank; before++) place += exchange->parts[before] * exchange->bytes;
    for (int part = 0; part < exchange->parts[rank]; part++, place += exchange->bytes)
        ls_copy(stream, place, (const char *)exchange->buffers[part] + offset, (size_t)exchange->bytes);
    return run_group(comm, "an exchange", put_exchange, exchange, ls_cuda_stream(stream), error);
}

/* Sums of bf16. A stretch of the buffer is cut over the ranks: rank r adds everybody's values [first + r spacing, and
 * `each` more], as far as they are among the first `total`. They come to the workspace,
 *     [ of rank 0 ][ of rank 1 ] ...        piece_bf16() elements each */
struct stretch {
    uint16_t *buffer;
    int64_t first, spacing, each, total;
};

/* Pieces begin where vectors may. */
enum { PIECE_UNIT = 128 };

static int64_t piece_bf16(const struct nccl_comm *comm) {
    const int64_t elements = comm->team->options.workspace_bytes / (int64_t)sizeof(uint16_t);
    return elements / comm->common.size / PIECE_UNIT * PIECE_UNIT;
}

static uint16_t *part_of(const struct stretch *stretch, int rank) {
    return stretch->buffer + stretch->first + rank * stretch->spacing;
}

static int64_t length_of(const struct stretch *stretch, int rank) {
    const int64_t left = stretch->total - rank * stretch->each;
    return left < 0 ? 0 : left < stretch->each ? left : stretch->each;
}

static ncclResult_t put_pair(struct nccl_comm *comm, int peer, const void *sent, int64_t sent_count, void *received,
                             int64_t received_count, cudaStream_t stream) {
    const struct ls_nccl *library = comm->team->library;
    ncclResult_t result = ncclSuccess;
    if (sent_count > 0)
        result = library->ncclSend(sent, (size_t)sent_count, ncclBfloat16, peer, comm->member.handle, stream);
    if (received_count > 0 && result == ncclSuccess)
        result = library->ncclRecv(received, (size_t)received_count, ncclBfloat16, peer, comm->member.handle, stream);
    return result;
}

/* Brings every rank's values of the own part to the workspace. */
static ncclResult_t put_parts(struct nccl_comm *comm, const void *argument, cudaStream_t stream) {
    const struct stretch *stretch = argument;
    uint16_t *received = (uint16_t *)comm->team->workspace;
    const int64_t piece = piece_bf16(comm), own = length_of(stretch, comm->common.rank);
    ncclResult_t result = ncclSuccess;
    for (int peer = 0; peer < comm->common.size && result == ncclSuccess; peer++)
        if (peer != comm->common.rank)
            result = put_pair(comm, peer, part_of(stretch, peer), length_of(stretch, peer), received + peer * piece,
                              own, stream);
    return result;
}

/* Brings every part's sum to every rank. */
static ncclResult_t put_sums(struct nccl_comm *comm, const void *argument, cudaStream_t stream) {
    const struct stretch *stretch = argument;
    const int rank = comm->common.rank;
    ncclResult_t result = ncclSuccess;
    for (int peer = 0; peer < comm->common.size && result == ncclSuccess; peer++)
        if (peer != rank)
            result = put_pair(comm, peer, part_of(stretch, rank), length_of(stretch, rank), part_of(stretch, peer),
                              length_of(stretch, peer), stream);
    return result;
}

/* Leaves the sums of a stretch in the own part. */
static enum ls_code sum_parts(struct nccl_comm *comm, struct ls_stream *stream, const struct stretch *stretch,
                              struct ls_error *error) {
    const int64_t piece = piece_bf16(comm), count = length_of(stretch, comm->common.rank);
    uint16_t *received = (uint16_t *)comm->team->workspace, *own = part_of(stretch, comm->common.rank);
    ls_copy(stream, received + comm->common.rank * piece, own, (size_t)count * sizeof *own);
    enum ls_code code = run_group(comm, "sending bf16", put_parts, stretch, ls_cuda_stream(stream), error);
    if (code || count == 0 || ls_cuda_stream_has_failed(stream)) return code;
    const struct ls_cuda_parts parts = {.sum = own,
                                        .parts = received,
                                        .stride = piece,
                                        .count = count,
                                        .part_count = comm->common.size,
                                        .dtype = LS_BF16};
    ls_cuda_stream_note(stream, ls_cuda_sum_parts(&parts, ls_cuda_stream(stream)), "the sum of bf16 gradients");
    return LS_OK;
}

static enum ls_code enqueue_bf16(struct nccl_comm *comm, struct ls_stream *stream,
                                 const struct ls_collective *collective, struct ls_error *error) {
    const int64_t size = comm->common.size, piece = piece_bf16(comm);
    const bool scatter = collective->kind == LS_REDUCE_SCATTER;
    const int64_t longest = scatter ? piece : piece * size;
    enum ls_code code = LS_OK;
    assert(piece > 0);
    for (int64_t first = 0; first < collective->count && !code; first += longest) {
        const int64_t left = collective->count - first, count = left < longest ? left : longest;
        struct stretch stretch = {.buffer = collective->buffer, .first = first};
        if (scatter) {
            stretch.spacing = collective->count;
            stretch.each = count;
            stretch.total = size * count;
        } else {
            stretch.spacing = stretch.each = (count + size - 1) / size;
            stretch.total = count;
        }
        code = sum_parts(comm, stream, &stretch, error);
        if (!code && !scatter)
            code = run_group(comm, "spreading bf16", put_sums, &stretch, ls_cuda_stream(stream), error);
    }
    return code;
}

static enum ls_code nccl_enqueue(struct ls_comm *comm, struct ls_stream *stream, const struct ls_collective *collective,
                                 struct ls_error *error) {
    struct nccl_comm *nccl = (struct nccl_comm *)comm;
    enum ls_code code = ls_nccl_team_check(nccl->team, error);
    if (code) return code;
    if (collective->kind == LS_EXCHANGE)
        code = enqueue_exchange(nccl, stream, &collective->exchange, error);
    else if (collective->kind == LS_ALL_GATHER)
        code = run_group(nccl, "an all-gather", put_all_gather, collective, ls_cuda_stream(stream), error);
    else if (collective->type == LS_COMM_BF16)
        code = enqueue_bf16(nccl, stream, collective, error);
    else
        code = run_group(nccl, collective->kind == LS_ALL_REDUCE ? "an all-reduce" : "a reduce-scatter", put_reduction,
                         collective, ls_cuda_stream(stream), error);
    if (!code) ls_nccl_team_record(nccl->team, stream, collective->number);
    return code;
}

/* ---- what NCCL takes with its first collectives ---- */

/* NCCL connects a ring, a tree, or a pair of ranks when it is used for the first time, and takes the buffers of the
 * connection then; by which of them a collective goes follows from its kind and bytes. */
enum { FIRST_BYTES = 1 << 10, FIRST_FACTOR = 8 };

/* One element from each to each: buffer[size]. */
static ncclResult_t put_pairs(struct nccl_comm *comm, const void *argument, cudaStream_t stream) {
    uint16_t *buffer = *(uint16_t *const *)argument;
    ncclResult_t result = ncclSuccess;
    for (int peer = 0; peer < comm->common.size && result == ncclSuccess; peer++)
        if (peer != comm->common.rank)
            result = put_pair(comm, peer, buffer + comm->common.rank, 1, buffer + peer, 1, stream);
    return result;
}

static enum ls_code put_first(struct nccl_comm *comm, cudaStream_t stream, void *buffer, int64_t bytes, bool slices,
                              struct ls_error *error) {
    const int64_t count = bytes / (int64_t)sizeof(float), slice = count / comm->common.size;
    const struct ls_collective whole = {.kind = LS_ALL_REDUCE, .buffer = buffer, .count = count},
                               scatter = {.kind = LS_REDUCE_SCATTER, .buffer = buffer, .count = slice},
                               gather = {.kind = LS_ALL_GATHER, .buffer = buffer, .count = slice};
    enum ls_code code = run_group(comm, "a first all-reduce", put_reduction, &whole, stream, error);
    if (!code && slices && slice > 0)
        code = run_group(comm, "a first reduce-scatter", put_reduction, &scatter, stream, error);
    if (!code && slices && slice > 0)
        code = run_group(comm, "a first all-gather", put_all_gather, &gather, stream, error);
    return code;
}

static enum ls_code nccl_warm_up(struct ls_comm *comm, int64_t most, bool slices, bool pairs, struct ls_error *error) {
    struct nccl_comm *nccl = (struct nccl_comm *)comm;
    struct ls_device *device = nccl->team->options.device;
    const int64_t room = most > 2 * comm->size ? most : 2 * comm->size;
    struct ls_stream *stream = ls_stream_create(device, true);
    uint16_t *buffer = ls_device_allocate(device, (size_t)room);
    struct ls_error own = {.code = LS_OK};
    int failed_rank;
    if (!stream || !buffer)
        ls_fail(&own, LS_MEMORY, LS_SCOPE_RANK,
                "communication: no device memory for a first collective of %lld bytes. Give this run a GPU of its own.",
                (long long)room);
    enum ls_code code = ls_comm_agree(nccl->host, &own, &failed_rank, error);
    for (int64_t bytes = FIRST_BYTES; bytes <= most && !code; bytes *= FIRST_FACTOR)
        code = put_first(nccl, ls_cuda_stream(stream), buffer, bytes, slices, error);
    if (!code && pairs) code = run_group(nccl, "a first exchange", put_pairs, &buffer, ls_cuda_stream(stream), error);
    if (!code) code = ls_stream_synchronize(stream, error);
    if (!code) code = ls_nccl_team_check(nccl->team, error);
    if (stream) ls_stream_destroy(stream);
    ls_device_free(device, buffer);
    return code;
}

/* ---- the host's collectives: over MPI, as long as the team is whole before and after ---- */

static enum ls_code nccl_sum_u64(struct ls_comm *comm, uint64_t *values, int count, struct ls_error *error) {
    struct nccl_comm *nccl = (struct nccl_comm *)comm;
    enum ls_code code = ls_nccl_team_check(nccl->team, error);
    if (!code) code = nccl->host->operations->sum_u64(nccl->host, values, count, error);
    return code ? code : ls_nccl_team_check(nccl->team, error);
}

static enum ls_code nccl_broadcast(struct ls_comm *comm, void *bytes, int64_t count, int root, struct ls_error *error) {
    struct nccl_comm *nccl = (struct nccl_comm *)comm;
    enum ls_code code = ls_nccl_team_check(nccl->team, error);
    if (!code) code = nccl->host->operations->broadcast(nccl->host, bytes, count, root, error);
    return code ? code : ls_nccl_team_check(nccl->team, error);
}

static enum ls_code nccl_gather(struct ls_comm *comm, enum ls_comm_channel channel, const void *mine, int64_t count,
                                void *all, struct ls_error *error) {
    struct nccl_comm *nccl = (struct nccl_comm *)comm;
    enum ls_code code = ls_nccl_team_check(nccl->team, error);
    if (!code) code = nccl->host->operations->gather(nccl->host, channel, mine, count, all, error);
    return code ? code : ls_nccl_team_check(nccl->team, error);
}

/* ---- life ---- */

/* Ends a communicator in order. After a loss it was aborted, or hangs and is left to the end of the process. */
static void disconnect(struct nccl_comm *comm) {
    struct ls_nccl_team *team = comm->team;
    if (!comm->member.handle || atomic_load(&team->failed)) return;
    ncclResult_t result = team->library->ncclCommFinalize(comm->member.handle);
    if (ls_nccl_team_settle(team, &comm->member, result, "ncclCommFinalize", NULL) == LS_OK)
        team->library->ncclCommDestroy(comm->member.handle);
}

static void nccl_destroy(struct ls_comm *comm) {
    struct nccl_comm *nccl = (struct nccl_comm *)comm;
    const bool whole = comm->root == comm;
    if (whole) ls_nccl_team_stop(nccl->team);
    ls_nccl_team_remove(nccl->team, &nccl->member);
    disconnect(nccl);
    if (whole)
        ls_nccl_team_destroy(nccl->team);
    else
        ls_comm_destroy(nccl->host);
    free(nccl);
}

static const struct ls_comm_operations nccl_operations;

/* A member of the team that is not connected yet. */
static enum ls_code create(struct ls_nccl_team *team, struct ls_comm *host, struct nccl_comm **comm,
                           struct ls_error *error) {
    struct nccl_comm *made = calloc(1, sizeof *made);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "communication: no memory for a communicator");
    enum ls_code code = ls_comm_initialize(&made->common, &nccl_operations, host->rank, host->size, host->local_rank,
                                           host->local_size, error);
    if (code) {
        free(made);
        return code;
    }
    made->host = host;
    made->team = team;
    ls_nccl_team_add(team, &made->member);
    *comm = made;
    return LS_OK;
}

/* A split that takes its time leaves the new communicator's address when the old one is ready again: in the old one,
 * which outlives a split that fails. */
static enum ls_code connect_part(struct nccl_comm *whole, struct nccl_comm *part, int color, struct ls_error *error) {
    struct ls_nccl_team *team = whole->team;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclResult_t result = ncclSuccess;
    config.blocking = 0;
    pthread_mutex_lock(&team->mutex);
    whole->part = NULL;
    if (whole->member.handle)
        result = team->library->ncclCommSplit(whole->member.handle, color, part->common.rank, &whole->part, &config);
    pthread_mutex_unlock(&team->mutex);
    enum ls_code code = ls_nccl_team_settle(team, &whole->member, result, "ncclCommSplit", error);
    if (code) return code;
    pthread_mutex_lock(&team->mutex);
    part->member.handle = __atomic_load_n(&whole->part, __ATOMIC_ACQUIRE);
    pthread_mutex_unlock(&team->mutex);
    return ls_nccl_team_settle(team, &part->member, ncclInProgress, "ncclCommSplit", error);
}

static enum ls_code nccl_split(struct ls_comm *comm, int rank, int size, const int *members, struct ls_comm **part,
                               struct ls_error *error) {
    struct nccl_comm *whole = (struct nccl_comm *)comm, *made = NULL;
    struct ls_comm *host = NULL;
    enum ls_code code = ls_nccl_team_check(whole->team, error);
    if (!code) code = whole->host->operations->split(whole->host, rank, size, members, &host, error);
    if (code) return code;
    host->root = whole->host;
    code = create(whole->team, host, &made, error);
    if (code) {
        ls_comm_destroy(host);
        return code;
    }
    made->common.root = comm;
    int color = members[0];
    for (int i = 1; i < size; i++)
        if (members[i] < color) color = members[i];
    code = connect_part(whole, made, color, error);
    if (code) {
        ls_comm_destroy(&made->common);
        return code;
    }
    *part = &made->common;
    return LS_OK;
}

static const struct ls_comm_operations nccl_operations = {
    .enqueue = nccl_enqueue,
    .sum_u64 = nccl_sum_u64,
    .broadcast = nccl_broadcast,
    .gather = nccl_gather,
    .split = nccl_split,
    .warm_up = nccl_warm_up,
    .destroy = nccl_destroy,
};

static enum ls_code check_version(const struct ls_nccl *library, struct ls_error *error) {
    int version = 0;
    if (library->ncclGetVersion(&version) == ncclSuccess && version >= VERSION_MIN) return LS_OK;
    return ls_fail(
        error, LS_ERROR, LS_SCOPE_NODE,
        "communication: NCCL %d.%d.%d at %s is too old, %d.%d.%d or newer is needed. Install one, or name its "
        "folder in LOCKSTEP_CUDA_LIBRARIES.",
        version / 10000, version / 100 % 100, version % 100, library->path, VERSION_MIN / 10000,
        VERSION_MIN / 100 % 100, VERSION_MIN % 100);
}

/* The unique id lets whoever has it join: it goes from rank 0 by MPI, and is forgotten at once. */
static enum ls_code connect_all(struct nccl_comm *comm, struct ls_error *error) {
    struct ls_nccl_team *team = comm->team;
    struct {
        ncclResult_t result;
        ncclUniqueId id;
    } secret = {.result = ncclSuccess};
    if (comm->common.rank == 0) secret.result = team->library->ncclGetUniqueId(&secret.id);
    enum ls_code code = ls_comm_broadcast(comm->host, &secret, sizeof secret, 0, error);
    if (code) return code;
    ncclResult_t result = secret.result;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    cudaSetDevice(team->gpu);
    pthread_mutex_lock(&team->mutex);
    if (result == ncclSuccess)
        result = team->library->ncclCommInitRankConfig(&comm->member.handle, comm->common.size, secret.id,
                                                       comm->common.rank, &config);
    pthread_mutex_unlock(&team->mutex);
    explicit_bzero(&secret, sizeof secret);
    return ls_nccl_team_settle(team, &comm->member, result, "ncclCommInitRank", error);
}

static void log_library(const struct ls_nccl_team *team) {
    char variables[768];
    ls_nccl_environment(variables, sizeof variables);
    ls_log(LS_LOG_INFO, "NCCL %s connects %d ranks; variables: %s", team->library->version, team->size, variables);
}

/* What this rank can do by itself. */
static enum ls_code prepare(const struct ls_comm_nccl_options *options, struct nccl_comm **comm,
                            struct ls_error *error) {
    const struct ls_nccl *library = NULL;
    struct ls_nccl_team *team = NULL;
    enum ls_code code = ls_library_nccl(&library, error);
    if (!code) code = check_version(library, error);
    if (!code) code = ls_nccl_team_create(options, library, &team, error);
    if (code) return code;
    code = create(team, options->host, comm, error);
    if (code) {
        ls_nccl_team_destroy(team);
        return code;
    }
    team->root = &(*comm)->common;
    ls_comm_set_watch(team->root, options->host->watch);
    return LS_OK;
}

enum ls_code ls_comm_create_nccl(const struct ls_comm_nccl_options *options, struct ls_comm **comm,
                                 struct ls_error *error) {
    struct ls_error own = {.code = LS_OK};
    struct nccl_comm *made = NULL;
    int failed_rank = -1;
    prepare(options, &made, &own);
    enum ls_code code = ls_comm_agree(options->host, &own, &failed_rank, error);
    assert(code || made);
    if (!code) code = ls_nccl_team_meet(made->team, error);
    if (!code) {
        ls_nccl_team_start(made->team, &own);
        code = ls_comm_agree(options->host, &own, &failed_rank, error);
    }
    if (!code) {
        connect_all(made, &own);
        code = ls_comm_agree(options->host, &own, &failed_rank, error);
    }
    if (code) {
        if (made) ls_comm_destroy(&made->common);
        return code;
    }
    log_library(made->team);
    *comm = &made->common;
    return LS_OK;
}
