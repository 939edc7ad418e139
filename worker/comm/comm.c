/* What all communicators have in common: numbering, the agreement check, and the way onto a stream. */
#include "worker/comm/implementation.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum ls_code ls_comm_initialize(struct ls_comm *comm, const struct ls_comm_operations *operations, int rank, int size,
                                int local_rank, int local_size, struct ls_error *error) {
    *comm = (struct ls_comm){
        .operations = operations, .rank = rank, .size = size, .local_rank = local_rank, .local_size = local_size};
    comm->root = comm;
#ifdef LS_DEBUG
    comm->checks = true;
#endif
    comm->signatures = calloc((size_t)LS_CHANNEL_COUNT * (size_t)size * 4, sizeof *comm->signatures);
    comm->errors = calloc((size_t)size, sizeof *comm->errors);
    if (!comm->signatures || !comm->errors) {
        free(comm->signatures);
        free(comm->errors);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "communication: no memory for the records of %d ranks", size);
    }
    return LS_OK;
}

int ls_comm_rank(const struct ls_comm *comm) {
    return comm->rank;
}
int ls_comm_size(const struct ls_comm *comm) {
    return comm->size;
}
int ls_comm_local_rank(const struct ls_comm *comm) {
    return comm->local_rank;
}
int ls_comm_local_size(const struct ls_comm *comm) {
    return comm->local_size;
}
uint64_t ls_comm_wire_bytes(const struct ls_comm *comm) {
    return comm->wire_bytes;
}
void ls_comm_set_checks(struct ls_comm *comm, bool on) {
    comm->checks = on;
}
void ls_comm_set_watch(struct ls_comm *comm, struct ls_progress_record *record) {
    comm->watch = record;
}

enum ls_code ls_comm_warm_up(struct ls_comm *comm, int64_t most, bool slices, bool pairs, struct ls_error *error) {
    if (comm->size == 1 || !comm->operations->warm_up) return LS_OK;
    return comm->operations->warm_up(comm, most, slices, pairs, error);
}

void ls_comm_destroy(struct ls_comm *comm) {
    if (!comm) return;
    free(comm->signatures);
    free(comm->errors);
    comm->operations->destroy(comm);
}

/* Compares signature[4] = (number, block, bytes, kind and type) over the ranks. */
static enum ls_code check_agreement(struct ls_comm *comm, enum ls_comm_channel channel, const uint64_t signature[4],
                                    struct ls_error *error) {
    uint64_t(*all)[4] = (void *)(comm->signatures + (size_t)channel * (size_t)comm->size * 4);
    enum ls_code code = comm->operations->gather(comm, channel, signature, 4 * sizeof *signature, all, error);
    if (code) return code;
    for (int rank = 1; rank < comm->size; rank++)
        if (memcmp(all[0], all[rank], sizeof all[0]) != 0)
            return ls_fail(
                error, LS_COMMUNICATION, LS_SCOPE_JOB,
                "communication: ranks disagree about the next collective: rank 0 is at number %llu, block %lld, %llu "
                "bytes, kind %llu; rank %d at number %llu, block %lld, %llu bytes, kind %llu. This is an error of "
                "the program: please report it.",
                (unsigned long long)all[0][0], (long long)all[0][1], (unsigned long long)all[0][2],
                (unsigned long long)all[0][3], rank, (unsigned long long)all[rank][0], (long long)all[rank][1],
                (unsigned long long)all[rank][2], (unsigned long long)all[rank][3]);
    return LS_OK;
}

/* A collective on the host begins: it is counted, told to whoever watches, and compared. Host collectives have no
 * block. Kinds 16 and up, so that they differ from those on streams. Parts of a communicator are not watched: their
 * collectives on the host are counted apart. */
static enum ls_code begin_host(struct ls_comm *comm, uint64_t kind, int64_t bytes, uint64_t *operation,
                               struct ls_error *error) {
    uint64_t number = ++comm->host_collectives;
    *operation = ls_progress_begin_collective(comm->watch, false, number, -1);
    if (!comm->checks) return LS_OK;
    return check_agreement(comm, LS_CHANNEL_HOST, (uint64_t[4]){number, (uint64_t)-1, (uint64_t)bytes, 16 + kind},
                           error);
}

/* Is this the collective that the others are at? */
static enum ls_code check_collective(struct ls_comm *comm, const struct ls_collective *collective,
                                     struct ls_error *error) {
    if (!comm->root->checks) return LS_OK;
    const bool bytes = collective->kind == LS_ALL_GATHER || collective->kind == LS_EXCHANGE;
    uint64_t element = bytes ? 1 : ls_comm_type_bytes(collective->type);
    return check_agreement(comm, LS_CHANNEL_STREAM,
                           (uint64_t[4]){collective->number, (uint64_t)(int64_t)collective->block,
                                         (uint64_t)collective->count * element,
                                         (uint64_t)collective->kind * 4 + (uint64_t)collective->type},
                           error);
}

static enum ls_code end_host(struct ls_comm *comm, uint64_t operation, enum ls_code code) {
    ls_progress_end_collective(comm->watch, false, comm->host_collectives, operation);
    return code;
}

struct submission {
    struct ls_comm *comm;
    struct ls_collective collective;
};

static enum ls_code run_on_stream(const void *argument, struct ls_error *error) {
    const struct submission *submission = argument;
    struct ls_comm *comm = submission->comm;
    const struct ls_collective *collective = &submission->collective;
    struct ls_progress_record *watch = comm->root->watch;
    const uint64_t operation = ls_progress_begin_collective(watch, true, collective->number, collective->block);
    enum ls_code code = check_collective(comm, collective, error);
    if (!code && collective->count > 0) code = comm->operations->run(comm, collective, error);
    ls_progress_end_collective(watch, true, collective->number, operation);
    return code;
}

static enum ls_code report_refusal(const void *argument, struct ls_error *error) {
    const struct ls_comm *root = *(struct ls_comm *const *)argument;
    if (error) *error = root->refusal;
    return root->refusal.code;
}

/* What is on the stream already ends first: a stream that runs late would leave a rank waiting for one of these
 * collectives, which this rank, as it compares the next one, waits for. */
static void let_pass(struct ls_stream *stream) {
    struct ls_event *event = ls_event_create(ls_stream_device(stream));
    if (!event) return;
    ls_event_record(event, stream);
    ls_event_synchronize(event, NULL);
    ls_event_destroy(event);
}

/* What was refused once is refused for ever: the ranks are no longer at the same collective. */
static void enqueue(struct ls_comm *comm, struct ls_stream *stream, const struct ls_collective *collective) {
    struct ls_comm *root = comm->root;
    if (root->checks) let_pass(stream);
    if (root->refusal.code == LS_OK && check_collective(comm, collective, &root->refusal) == LS_OK &&
        collective->count > 0)
        comm->operations->enqueue(comm, stream, collective, &root->refusal);
    if (root->refusal.code) ls_stream_call(stream, report_refusal, &root, sizeof root);
}

static void submit(struct ls_comm *comm, struct ls_stream *stream, struct ls_collective collective,
                   uint64_t wire_bytes) {
    collective.number = ++comm->root->submitted;
    comm->root->wire_bytes += wire_bytes;
    if (comm->size == 1) return;
    if (comm->operations->enqueue) {
        enqueue(comm, stream, &collective);
        return;
    }
    struct submission submission = {comm, collective};
    static_assert(sizeof submission <= LS_STREAM_ARGUMENT_MAX, "a collective fits a stream's argument");
    ls_stream_call(stream, run_on_stream, &submission, sizeof submission);
}

void ls_comm_all_reduce_sum(struct ls_comm *comm, struct ls_stream *stream, void *buffer, int64_t count,
                            enum ls_comm_type type, int block) {
    assert(count >= 0);
    uint64_t others = (uint64_t)comm->size - 1, bytes = (uint64_t)count * ls_comm_type_bytes(type);
    submit(
        comm, stream,
        (struct ls_collective){.kind = LS_ALL_REDUCE, .type = type, .block = block, .buffer = buffer, .count = count},
        2 * others * bytes / (uint64_t)comm->size);
}

void ls_comm_reduce_scatter_sum(struct ls_comm *comm, struct ls_stream *stream, void *buffer, int64_t count,
                                enum ls_comm_type type, int block) {
    assert(count >= 0);
    uint64_t others = (uint64_t)comm->size - 1, bytes = (uint64_t)count * ls_comm_type_bytes(type);
    submit(comm, stream,
           (struct ls_collective){
               .kind = LS_REDUCE_SCATTER, .type = type, .block = block, .buffer = buffer, .count = count},
           others * bytes);
}

void ls_comm_all_gather(struct ls_comm *comm, struct ls_stream *stream, void *buffer, int64_t bytes, int block) {
    assert(bytes >= 0);
    submit(comm, stream,
           (struct ls_collective){.kind = LS_ALL_GATHER, .block = block, .buffer = buffer, .count = bytes},
           ((uint64_t)comm->size - 1) * (uint64_t)bytes);
}

void ls_comm_exchange(struct ls_comm *comm, struct ls_stream *stream, const struct ls_comm_exchange *exchange,
                      int block) {
    const int parts = exchange->parts[comm->rank];
    assert(exchange->bytes >= 0 && exchange->bytes < INT32_MAX && parts <= LS_COMM_PARTS_MAX);
    assert(exchange->groups >= 1 && comm->size % exchange->groups == 0);
    if (comm->size == 1)
        for (int part = 0; part < parts; part++)
            ls_copy(stream, (char *)exchange->received + part * exchange->bytes,
                    (const char *)exchange->buffers[part] + exchange->first, (size_t)exchange->bytes);
    submit(comm, stream,
           (struct ls_collective){.kind = LS_EXCHANGE, .block = block, .count = exchange->bytes, .exchange = *exchange},
           ((uint64_t)comm->size - 1) * (uint64_t)parts * (uint64_t)exchange->bytes);
}

enum ls_code ls_comm_sum_u64(struct ls_comm *comm, uint64_t *values, int count, struct ls_error *error) {
    assert(count >= 0 && count <= LS_COMM_SUM_MAX);
    uint64_t operation;
    enum ls_code code = begin_host(comm, 0, (int64_t)count * 8, &operation, error);
    if (!code) code = comm->operations->sum_u64(comm, values, count, error);
    return end_host(comm, operation, code);
}

enum ls_code ls_comm_broadcast(struct ls_comm *comm, void *bytes, int64_t count, int root, struct ls_error *error) {
    assert(count >= 0 && root >= 0 && root < comm->size);
    uint64_t operation;
    enum ls_code code = begin_host(comm, 1, count, &operation, error);
    if (!code) code = comm->operations->broadcast(comm, bytes, count, root, error);
    return end_host(comm, operation, code);
}

enum ls_code ls_comm_gather_bytes(struct ls_comm *comm, const void *mine, int64_t count, void *all,
                                  struct ls_error *error) {
    assert(count >= 0 && count < INT32_MAX);
    uint64_t operation;
    enum ls_code code = begin_host(comm, 2, count, &operation, error);
    if (!code) code = comm->operations->gather(comm, LS_CHANNEL_HOST, mine, count, all, error);
    return end_host(comm, operation, code);
}

/* What a rank says of itself in a split. */
struct choice {
    int32_t color, key;
};

enum ls_code ls_comm_split(struct ls_comm *comm, int color, int key, struct ls_comm **part, struct ls_error *error) {
    assert(comm->root == comm);
    struct choice *choices = calloc((size_t)comm->size, sizeof *choices);
    int *members = calloc((size_t)comm->size, sizeof *members);
    enum ls_code code = LS_OK;
    if (!choices || !members)
        code = ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "communication: no memory for a group of %d ranks", comm->size);
    if (!code) code = ls_comm_gather_bytes(comm, &(struct choice){color, key}, sizeof *choices, choices, error);
    if (code) goto free_lists;
    int size = 0, rank = 0;
    for (int other = 0; other < comm->size; other++) {
        if (choices[other].color != color) continue;
        int place = size++;
        for (; place > 0 && choices[members[place - 1]].key > choices[other].key; place--)
            members[place] = members[place - 1];
        members[place] = other;
    }
    while (members[rank] != comm->rank) rank++;
    struct ls_comm *made;
    code = comm->operations->split(comm, rank, size, members, &made, error);
    if (code) goto free_lists;
    made->root = comm;
    *part = made;
free_lists:
    free(choices);
    free(members);
    return code;
}

enum ls_code ls_comm_share(struct ls_comm *comm, const struct ls_error *own, int *failed_rank, struct ls_error *error) {
    enum ls_code code = ls_comm_gather_bytes(comm, own, sizeof *own, comm->errors, error);
    if (code) return code;
    for (int rank = 0; rank < comm->size; rank++) {
        if (comm->errors[rank].code == LS_OK) continue;
        *failed_rank = rank;
        if (!error) return comm->errors[rank].code;
        *error = comm->errors[rank];
        return ls_fail_within(error, "rank %d", rank);
    }
    return LS_OK;
}

enum ls_code ls_comm_agree(struct ls_comm *comm, const struct ls_error *own, int *failed_rank, struct ls_error *error) {
    uint64_t failed = own->code != LS_OK;
    enum ls_code code = ls_comm_sum_u64(comm, &failed, 1, error);
    if (code) return code;
    return failed ? ls_comm_share(comm, own, failed_rank, error) : LS_OK;
}
