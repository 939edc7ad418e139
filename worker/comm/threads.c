/* Collectives between threads of one process. Ranks publish the address of their buffer, meet, work on each other's
 * memory, and meet again. A waiting rank sleeps. Every slice is summed by one rank, in rank order: the same bits
 * everywhere. */
#include "worker/comm/implementation.h"
#include "worker/comm/sum.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* A place to meet: everybody's buffer and a barrier. */
struct meeting {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int arrived;
    uint64_t generation;
    void **buffers; /* [size] */
};

struct group {
    _Atomic int members;
    int size;
    struct meeting meetings[LS_CHANNEL_COUNT];
};

struct thread_comm {
    struct ls_comm common;
    struct group *group;
};

static struct group *group_of(struct ls_comm *comm) {
    return ((struct thread_comm *)comm)->group;
}

/* Returns when all ranks have come. What a rank wrote before is seen by all of them after. */
static void meet(struct group *group, struct meeting *meeting) {
    pthread_mutex_lock(&meeting->mutex);
    uint64_t generation = meeting->generation;
    if (++meeting->arrived == group->size) {
        meeting->arrived = 0;
        meeting->generation++;
        pthread_cond_broadcast(&meeting->changed);
    } else {
        while (meeting->generation == generation) pthread_cond_wait(&meeting->changed, &meeting->mutex);
    }
    pthread_mutex_unlock(&meeting->mutex);
}

static struct meeting *publish(struct ls_comm *comm, enum ls_comm_channel channel, void *buffer) {
    struct group *group = group_of(comm);
    struct meeting *meeting = &group->meetings[channel];
    meeting->buffers[comm->rank] = buffer;
    meet(group, meeting);
    return meeting;
}

static enum ls_code threads_run(struct ls_comm *comm, const struct ls_collective *collective, struct ls_error *error) {
    (void)error;
    int rank = comm->rank, size = comm->size;
    int64_t count = collective->count;
    const struct ls_comm_exchange *exchange = &collective->exchange;
    void *published = collective->kind == LS_EXCHANGE ? (void *)(uintptr_t)exchange->buffers : collective->buffer;
    struct meeting *meeting = publish(comm, LS_CHANNEL_STREAM, published);
    const void *const *buffers = (const void *const *)meeting->buffers;
    switch (collective->kind) {
    case LS_ALL_REDUCE: {
        int64_t even = count / size, rest = count % size, extra = rank < rest ? rank : rest;
        int64_t begin = rank * even + extra;
        ls_comm_sum(collective->type, buffers, size, begin, begin + even + (rank < rest), meeting->buffers, size,
                    false);
        break;
    }
    case LS_REDUCE_SCATTER:
        ls_comm_sum(collective->type, buffers, size, rank * count, (rank + 1) * count, &meeting->buffers[rank], 1,
                    false);
        break;
    case LS_ALL_GATHER:
        for (int other = 0; other < size; other++)
            if (other != rank)
                memcpy((char *)collective->buffer + other * count, (char *)meeting->buffers[other] + other * count,
                       (size_t)count);
        break;
    case LS_EXCHANGE: {
        char *place = exchange->received;
        for (int other = 0; other < size; other++) {
            const void *const *parts = (const void *const *)meeting->buffers[other];
            for (int part = 0; part < exchange->parts[other]; part++, place += count)
                memcpy(place, (const char *)parts[part] + ls_exchange_offset(exchange, size, rank), (size_t)count);
        }
        break;
    }
    }
    meet(group_of(comm), meeting);
    return LS_OK;
}

static enum ls_code threads_sum_u64(struct ls_comm *comm, uint64_t *values, int count, struct ls_error *error) {
    (void)error;
    uint64_t sums[LS_COMM_SUM_MAX] = {0};
    struct meeting *meeting = publish(comm, LS_CHANNEL_HOST, values);
    for (int rank = 0; rank < comm->size; rank++)
        for (int i = 0; i < count; i++) sums[i] += ((const uint64_t *)meeting->buffers[rank])[i];
    meet(group_of(comm), meeting);
    memcpy(values, sums, (size_t)count * sizeof *values);
    return LS_OK;
}

static enum ls_code threads_broadcast(struct ls_comm *comm, void *bytes, int64_t count, int root,
                                      struct ls_error *error) {
    (void)error;
    struct meeting *meeting = publish(comm, LS_CHANNEL_HOST, bytes);
    if (comm->rank != root && count > 0) memcpy(bytes, meeting->buffers[root], (size_t)count);
    meet(group_of(comm), meeting);
    return LS_OK;
}

static enum ls_code threads_gather(struct ls_comm *comm, enum ls_comm_channel channel, const void *mine, int64_t count,
                                   void *all, struct ls_error *error) {
    (void)error;
    struct meeting *meeting = publish(comm, channel, (void *)(uintptr_t)mine);
    if (count > 0)
        for (int rank = 0; rank < comm->size; rank++)
            memcpy((char *)all + rank * count, meeting->buffers[rank], (size_t)count);
    meet(group_of(comm), meeting);
    return LS_OK;
}

static void group_leave(struct group *group) {
    if (atomic_fetch_sub(&group->members, 1) > 1) return;
    for (int channel = 0; channel < LS_CHANNEL_COUNT; channel++) {
        pthread_mutex_destroy(&group->meetings[channel].mutex);
        pthread_cond_destroy(&group->meetings[channel].changed);
        free(group->meetings[channel].buffers);
    }
    free(group);
}

static void threads_destroy(struct ls_comm *comm) {
    group_leave(group_of(comm));
    free(comm);
}

/* With one member, the caller, who leaves once the communicators have joined. */
static struct group *group_create(int size) {
    struct group *group = calloc(1, sizeof *group);
    if (!group) return NULL;
    group->members = 1;
    group->size = size;
    bool complete = true;
    for (int channel = 0; channel < LS_CHANNEL_COUNT; channel++) {
        struct meeting *meeting = &group->meetings[channel];
        pthread_mutex_init(&meeting->mutex, NULL);
        pthread_cond_init(&meeting->changed, NULL);
        meeting->buffers = calloc((size_t)size, sizeof *meeting->buffers);
        complete &= meeting->buffers != NULL;
    }
    if (complete) return group;
    group_leave(group);
    return NULL;
}

static const struct ls_comm_operations threads_operations;

/* A member of the group. */
static enum ls_code member_create(struct group *group, int rank, int local_rank, int local_size, struct ls_comm **comm,
                                  struct ls_error *error) {
    struct thread_comm *made = calloc(1, sizeof *made);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "communication: no memory for %d ranks", group->size);
    enum ls_code code =
        ls_comm_initialize(&made->common, &threads_operations, rank, group->size, local_rank, local_size, error);
    if (code) {
        free(made);
        return code;
    }
    made->group = group;
    atomic_fetch_add(&group->members, 1);
    *comm = &made->common;
    return LS_OK;
}

/* The part's first rank makes the group; all of them have joined before it leaves the group it made. */
static enum ls_code threads_split(struct ls_comm *comm, int rank, int size, const int *members, struct ls_comm **part,
                                  struct ls_error *error) {
    struct group *group = rank == 0 ? group_create(size) : NULL;
    struct group **groups = calloc((size_t)comm->size, sizeof *groups);
    enum ls_code code = LS_OK;
    if (!groups) code = ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "communication: no memory for %d ranks", comm->size);
    if (!code) code = threads_gather(comm, LS_CHANNEL_HOST, &group, sizeof group, groups, error);
    if (!code && !groups[members[0]])
        code = ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "communication: no memory for a group of %d ranks", size);
    if (!code) code = member_create(groups[members[0]], rank, comm->local_rank, comm->local_size, part, error);
    if (groups) threads_gather(comm, LS_CHANNEL_HOST, &group, sizeof group, groups, error);
    if (group) group_leave(group);
    free(groups);
    return code;
}

static const struct ls_comm_operations threads_operations = {
    .run = threads_run,
    .sum_u64 = threads_sum_u64,
    .broadcast = threads_broadcast,
    .gather = threads_gather,
    .split = threads_split,
    .destroy = threads_destroy,
};

enum ls_code ls_comm_create_threads(int size, struct ls_comm **comms, struct ls_error *error) {
    struct group *group = group_create(size);
    if (!group) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "communication: no memory for %d ranks", size);
    enum ls_code code = LS_OK;
    int created = 0;
    while (created < size && !code) {
        code = member_create(group, created, created, size, &comms[created], error);
        if (!code) created++;
    }
    if (code)
        while (created-- > 0) ls_comm_destroy(comms[created]);
    group_leave(group);
    return code;
}
