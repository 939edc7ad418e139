/* Pieces between hosts. */
#include "worker/comm/peers.h"

#include "worker/comm/implementation.h"
#include "worker/comm/sum.h"

#include <sched.h>
#include <stdlib.h>
#include <time.h>

/* How long to look without sleeping, then with short sleeps, then with long ones (2 s later). */
enum { POLLS_AWAKE = 50, POLLS_SHORT = 20000, SLEEP_SHORT_NS = 50000, SLEEP_LONG_NS = 1000000 };
/* All that a rank receives in a piece; of many ranks each still has a message's worth. A message and its header are
 * within Open MPI's limit for sending over TCP without a handshake, 64 KiB. */
enum { PIECE_BYTES = 4 << 20, MESSAGE_BYTES = 60 << 10 };
/* Reductions with parts below this are MPI's: their time is that of messages, of which its algorithms send fewer. */
enum { PART_BYTES_MIN = 1 << 10 };

/* What goes to a rank and comes from it. */
struct route {
    const char *send;
    char *receive;
    int64_t send_bytes, receive_bytes;
};

struct ls_peers {
    MPI_Comm channel;
    int rank, size;
    int64_t stretch_bytes; /* of a rank, in a piece */
    char *workspace;       /* [size, stretch_bytes] */
    struct route *routes;  /* [size] */
    MPI_Request *requests; /* two for each message of a stretch of each rank */
    const void **sources;  /* [size], for sums */
};

enum ls_code ls_peers_failed(int status, const char *call, struct ls_error *error) {
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    if (MPI_Error_string(status, text, &length)) length = 0;
    return ls_fail(
        error, LS_COMMUNICATION, LS_SCOPE_JOB,
        "communication: %s failed: %.*s. A rank or the network between ranks is lost: see the other ranks' logs.", call,
        length, text);
}

static int await(MPI_Request *requests, int count) {
    int status = 0, done = 0;
    for (int poll = 0; !status; poll++) {
        status = MPI_Testall(count, requests, &done, MPI_STATUSES_IGNORE);
        if (done) break;
        if (poll < POLLS_AWAKE)
            sched_yield();
        else
            nanosleep(&(struct timespec){.tv_nsec = poll < POLLS_SHORT ? SLEEP_SHORT_NS : SLEEP_LONG_NS}, NULL);
    }
    return status;
}

enum ls_code ls_peers_end(int status, MPI_Request *request, const char *call, struct ls_error *error) {
    if (!status) status = await(request, 1);
    return status ? ls_peers_failed(status, call, error) : LS_OK;
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t messages_of(int64_t bytes) {
    return (bytes + MESSAGE_BYTES - 1) / MESSAGE_BYTES;
}

int ls_peers_swap(MPI_Comm channel, const char *send, int64_t send_bytes, int to, char *receive, int64_t receive_bytes,
                  int from) {
    enum { AT_A_TIME = 32 };
    const int64_t bytes = send_bytes > receive_bytes ? send_bytes : receive_bytes;
    MPI_Request requests[2 * AT_A_TIME];
    int status = 0;
    for (int64_t first = 0; first < bytes && !status; first += (int64_t)AT_A_TIME * MESSAGE_BYTES) {
        const int64_t end = smaller(first + (int64_t)AT_A_TIME * MESSAGE_BYTES, bytes);
        int count = 0;
        for (int64_t at = first; at < smaller(end, receive_bytes) && !status; at += MESSAGE_BYTES)
            status = MPI_Irecv(receive + at, (int)smaller(MESSAGE_BYTES, receive_bytes - at), MPI_BYTE, from, 0,
                               channel, &requests[count++]);
        for (int64_t at = first; at < smaller(end, send_bytes) && !status; at += MESSAGE_BYTES)
            status = MPI_Isend(send + at, (int)smaller(MESSAGE_BYTES, send_bytes - at), MPI_BYTE, to, 0, channel,
                               &requests[count++]);
        if (!status) status = await(requests, count);
    }
    return status; // NOLINT(clang-analyzer-optin.mpi.MPI-Checker): after an error nothing is waited for, the job ends
}

/* Sends and receives what the routes say; the own one is left out. Every rank begins with another one. */
static enum ls_code transfer(struct ls_peers *peers, struct ls_error *error) {
    int count = 0, status = 0;
    const int size = peers->size, rank = peers->rank;
    for (int i = 1; i < size; i++) {
        const int from = (rank + size - i) % size;
        const struct route *route = &peers->routes[from];
        for (int64_t at = 0; at < route->receive_bytes && !status; at += MESSAGE_BYTES)
            status = MPI_Irecv(route->receive + at, (int)smaller(MESSAGE_BYTES, route->receive_bytes - at), MPI_BYTE,
                               from, 0, peers->channel, &peers->requests[count++]);
    }
    if (status) return ls_peers_failed(status, "MPI_Irecv", error);
    for (int64_t at = 0; at < peers->stretch_bytes; at += MESSAGE_BYTES)
        for (int i = 1; i < size && !status; i++) {
            const int to = (rank + i) % size;
            const struct route *route = &peers->routes[to];
            if (at < route->send_bytes)
                status = MPI_Isend(route->send + at, (int)smaller(MESSAGE_BYTES, route->send_bytes - at), MPI_BYTE, to,
                                   0, peers->channel, &peers->requests[count++]);
        }
    if (status) return ls_peers_failed(status, "MPI_Isend", error);
    status = await(peers->requests, count);
    return status ? ls_peers_failed(status, "MPI_Testall", error) : LS_OK;
}

/* The own part, and what came for it into the workspace. */
static void sum_part(struct ls_peers *peers, char *own, int64_t count, enum ls_comm_type type) {
    for (int rank = 0; rank < peers->size; rank++)
        peers->sources[rank] = rank == peers->rank ? own : peers->workspace + rank * peers->stretch_bytes;
    ls_comm_sum(type, peers->sources, peers->size, 0, count, (void *const[]){own}, 1, false);
}

static void route_in(struct ls_peers *peers, int rank, const char *send, int64_t send_bytes, int64_t receive_bytes) {
    peers->routes[rank] =
        (struct route){send, peers->workspace + rank * peers->stretch_bytes, send_bytes, receive_bytes};
}

/* ---- the collectives ---- */

/* A piece that is cut over the ranks, the last ones' parts shorter or empty. */
static enum ls_code reduce_piece(struct ls_peers *peers, char *piece, int64_t count, enum ls_comm_type type,
                                 struct ls_error *error) {
    const int64_t element = (int64_t)ls_comm_type_bytes(type), part = (count + peers->size - 1) / peers->size;
    const int64_t begin = smaller(peers->rank * part, count), own = smaller(begin + part, count) - begin;
    for (int rank = 0; rank < peers->size; rank++) {
        const int64_t first = smaller(rank * part, count), length = smaller(first + part, count) - first;
        route_in(peers, rank, piece + first * element, length * element, own * element);
    }
    enum ls_code code = transfer(peers, error);
    if (code) return code;
    sum_part(peers, piece + begin * element, own, type);
    for (int rank = 0; rank < peers->size; rank++) {
        const int64_t first = smaller(rank * part, count), length = smaller(first + part, count) - first;
        peers->routes[rank] =
            (struct route){piece + begin * element, piece + first * element, own * element, length * element};
    }
    return transfer(peers, error);
}

static enum ls_code all_reduce_small(struct ls_peers *peers, void *buffer, int64_t count, enum ls_comm_type type,
                                     struct ls_error *error) {
    MPI_Request request;
    int status = MPI_Iallreduce(MPI_IN_PLACE, buffer, (int)count, type == LS_COMM_FLOAT ? MPI_FLOAT : MPI_DOUBLE,
                                MPI_SUM, peers->channel, &request);
    // NOLINTNEXTLINE(clang-analyzer-optin.mpi.MPI-Checker): it waits
    return ls_peers_end(status, &request, "MPI_Iallreduce", error);
}

enum ls_code ls_peers_all_reduce(struct ls_peers *peers, void *buffer, int64_t count, enum ls_comm_type type,
                                 struct ls_error *error) {
    const int64_t element = (int64_t)ls_comm_type_bytes(type), piece = peers->stretch_bytes / element * peers->size;
    if (type != LS_COMM_BF16 && count * element < (int64_t)PART_BYTES_MIN * peers->size)
        return all_reduce_small(peers, buffer, count, type, error);
    enum ls_code code = LS_OK;
    for (int64_t first = 0; first < count && !code; first += piece)
        code = reduce_piece(peers, (char *)buffer + first * element, smaller(piece, count - first), type, error);
    return code;
}

enum ls_code ls_peers_reduce_scatter(struct ls_peers *peers, void *buffer, int64_t stride, int64_t count,
                                     enum ls_comm_type type, struct ls_error *error) {
    const int64_t element = (int64_t)ls_comm_type_bytes(type), piece = peers->stretch_bytes / element;
    for (int64_t first = 0; first < count; first += piece) {
        const int64_t length = smaller(piece, count - first);
        char *slices = (char *)buffer + first * element;
        for (int rank = 0; rank < peers->size; rank++)
            route_in(peers, rank, slices + rank * stride * element, length * element, length * element);
        enum ls_code code = transfer(peers, error);
        if (code) return code;
        sum_part(peers, slices + peers->rank * stride * element, length, type);
    }
    return LS_OK;
}

enum ls_code ls_peers_all_gather(struct ls_peers *peers, void *buffer, int64_t stride, int64_t bytes,
                                 struct ls_error *error) {
    enum ls_code code = LS_OK;
    for (int64_t first = 0; first < bytes && !code; first += peers->stretch_bytes) {
        const int64_t length = smaller(peers->stretch_bytes, bytes - first);
        char *slices = (char *)buffer + first;
        for (int rank = 0; rank < peers->size; rank++)
            peers->routes[rank] = (struct route){slices + peers->rank * stride, slices + rank * stride, length, length};
        code = transfer(peers, error);
    }
    return code;
}

void ls_peers_destroy(struct ls_peers *peers) {
    if (!peers) return;
    free(peers->workspace);
    free(peers->routes);
    free(peers->requests);
    free(peers->sources);
    free(peers);
}

enum ls_code ls_peers_create(MPI_Comm channel, struct ls_peers **peers, struct ls_error *error) {
    struct ls_peers *made = calloc(1, sizeof *made);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "communication: no memory for a communicator");
    made->channel = channel;
    MPI_Comm_rank(channel, &made->rank);
    MPI_Comm_size(channel, &made->size);
    const size_t size = (size_t)made->size;
    made->stretch_bytes = PIECE_BYTES / made->size / MESSAGE_BYTES * MESSAGE_BYTES;
    if (made->stretch_bytes == 0) made->stretch_bytes = MESSAGE_BYTES;
    made->workspace = malloc(size * (size_t)made->stretch_bytes);
    made->routes = calloc(size, sizeof *made->routes);
    made->requests = calloc(2 * size * (size_t)messages_of(made->stretch_bytes), sizeof(MPI_Request));
    made->sources = calloc(size, sizeof *made->sources);
    if (made->workspace && made->routes && made->requests && made->sources) {
        *peers = made;
        return LS_OK;
    }
    ls_peers_destroy(made);
    return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "communication: no memory for pieces of %lld bytes of %zu hosts",
                   (long long)PIECE_BYTES, size);
}
