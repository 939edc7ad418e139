/* The thread that writes, and what it shares with the training thread and the compute stream. */
#define _GNU_SOURCE
#include "worker/saver.h"

#include "common/checkpoint_folder.h"

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum phase { IDLE, WRITING, WRITTEN };

/* How far the thread is with a block. */
struct saver_block {
    const void *parameters; /* whole, once they passed; NULL: not yet. Not at stage 3 */
    bool state_read, weights_read;
};

struct ls_saver {
    struct ls_saver_options options;
    struct ls_shard *shard;
    const struct ls_model *model;
    int block_count;
    bool staged, bounce;      /* staged: weights come through the ring; bounce: state through the slices */
    int *owners;              /* [tensors] the rank that writes the tensor's weights */
    int64_t own_bytes;        /* of the tensors that this rank writes */
    struct ls_stream *copies; /* bounce: from the device, used by the thread alone */
    struct ls_event *copied[LS_CHECKPOINT_KINDS];
    /* The training thread's. */
    struct ls_event *arrived; /* how far the compute stream is */
    int64_t staging;          /* bytes put on the compute stream for the ring */
    uint64_t blocked_ns;
    pthread_t thread;
    bool thread_runs;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    /* Under the mutex, but what the thread writes while WRITING: it reads that itself without. */
    enum phase phase;
    bool closing, given_up;     /* given_up: nobody waits for what is being written */
    bool awaited;               /* the training thread stands still for what is being written */
    struct saver_block *blocks; /* [block_count] */
    int64_t staged_bytes, drained_bytes;
    char folder[LS_CHECKPOINT_PATH_MAX];
    struct ls_loss_scale loss_scale;
    uint64_t began_ns;
    double seconds;
    enum ls_code code;
    struct ls_error error;
    struct ls_file_record files[LS_CHECKPOINT_RANK_FILES_MAX];
    size_t file_count;
};

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- the thread ---- */

static int64_t tensor_bytes(const struct ls_saver *saver, int tensor) {
    return ls_model_tensor(saver->model, tensor)->count * ls_dtype_bytes(ls_model_dtype(saver->model));
}

static bool is_own(const struct ls_saver *saver, int tensor) {
    return saver->owners[tensor] == ls_comm_rank(saver->options.comm);
}

/* Where a job is: the next piece of state (a kind of a block), the next block whose weights are read where they lie. */
struct job {
    struct ls_checkpoint_writer *writer;
    int64_t piece, copied_pieces;
    int64_t due_pieces; /* may be read */
    int weights_block;
};

static const void *source_of(const struct ls_saver *saver, int64_t piece, size_t *bytes) {
    const enum ls_checkpoint_kind kind = (enum ls_checkpoint_kind)(piece % LS_CHECKPOINT_KINDS);
    const int block = (int)(piece / LS_CHECKPOINT_KINDS);
    const struct ls_shard_slice slice = ls_shard_slice(saver->shard, block);
    const void *const sources[LS_CHECKPOINT_KINDS] = {slice.master, slice.m, slice.v};
    const int64_t held =
        ls_checkpoint_held_from(saver->options.config, ls_model_block(saver->model, block), kind) - slice.first;
    const int64_t count = slice.count - (held > 0 ? held : 0);
    *bytes = count > 0 ? (size_t)(count * ls_dtype_bytes(ls_checkpoint_state_dtype(saver->options.config, kind))) : 0;
    return sources[kind];
}

static void mark_read(struct ls_saver *saver, bool *read) {
    pthread_mutex_lock(&saver->mutex);
    *read = true;
    pthread_cond_broadcast(&saver->changed);
    pthread_mutex_unlock(&saver->mutex);
}

/* Has the piece in a slice's buffer, and two more on their way. */
static enum ls_code bounce(struct ls_saver *saver, struct job *job, const void **values, struct ls_error *error) {
    const int64_t most = job->piece + LS_CHECKPOINT_KINDS;
    for (; job->copied_pieces < job->due_pieces && job->copied_pieces < most; job->copied_pieces++) {
        size_t bytes;
        const int place = (int)(job->copied_pieces % LS_CHECKPOINT_KINDS);
        const void *from = source_of(saver, job->copied_pieces, &bytes);
        if (bytes > 0) ls_copy_to_host(saver->copies, saver->options.slices[place], from, bytes);
        ls_event_record(saver->copied[place], saver->copies);
    }
    *values = saver->options.slices[job->piece % LS_CHECKPOINT_KINDS];
    return ls_event_synchronize(saver->copied[job->piece % LS_CHECKPOINT_KINDS], error);
}

static enum ls_code write_state(struct ls_saver *saver, struct job *job, struct ls_error *error) {
    const int block = (int)(job->piece / LS_CHECKPOINT_KINDS);
    const enum ls_checkpoint_kind kind = (enum ls_checkpoint_kind)(job->piece % LS_CHECKPOINT_KINDS);
    const bool last = kind + 1 == LS_CHECKPOINT_KINDS;
    size_t bytes;
    const void *values = source_of(saver, job->piece, &bytes);
    enum ls_code code = LS_OK;
    if (saver->bounce) {
        code = bounce(saver, job, &values, error);
        if (!code && last) mark_read(saver, &saver->blocks[block].state_read);
    }
    if (!code) code = ls_checkpoint_writer_put_state(job->writer, block, kind, values, error);
    if (!code && !saver->bounce && last) mark_read(saver, &saver->blocks[block].state_read);
    job->piece++;
    return code;
}

/* A tensor's bytes where the host can read them. */
static enum ls_code fetch_weights(struct ls_saver *saver, const char *from, int64_t bytes, const char **values,
                                  struct ls_error *error) {
    *values = from;
    if (!saver->bounce) return LS_OK;
    *values = saver->options.weights;
    ls_copy_to_host(saver->copies, saver->options.weights, from, (size_t)bytes);
    return ls_stream_synchronize(saver->copies, error);
}

static enum ls_code write_whole_weights(struct ls_saver *saver, struct job *job, struct ls_error *error) {
    struct saver_block *progress = &saver->blocks[job->weights_block];
    const struct ls_block *block = ls_model_block(saver->model, job->weights_block);
    const int64_t element = ls_dtype_bytes(ls_model_dtype(saver->model));
    enum ls_code code = LS_OK;
    for (int i = block->first_tensor; i < block->first_tensor + block->tensor_count && !code; i++) {
        if (!is_own(saver, i)) continue;
        const char *from = (const char *)progress->parameters + ls_model_tensor(saver->model, i)->offset * element;
        const char *values;
        code = fetch_weights(saver, from, tensor_bytes(saver, i), &values, error);
        if (!code) code = ls_checkpoint_writer_put_weights(job->writer, values, (size_t)tensor_bytes(saver, i), error);
    }
    if (!code) mark_read(saver, &progress->weights_read);
    job->weights_block++;
    return code;
}

/* Empties the ring of what was there when it was looked at, up to its end. */
static enum ls_code write_staged_weights(struct ls_saver *saver, struct job *job, int64_t available,
                                         struct ls_error *error) {
    const int64_t capacity = saver->options.weights_bytes, place = saver->drained_bytes % capacity;
    const int64_t count = available < capacity - place ? available : capacity - place;
    enum ls_code code =
        ls_checkpoint_writer_put_weights(job->writer, saver->options.weights + place, (size_t)count, error);
    pthread_mutex_lock(&saver->mutex);
    saver->drained_bytes += count;
    pthread_cond_broadcast(&saver->changed);
    pthread_mutex_unlock(&saver->mutex);
    return code;
}

/* Tells those who watch this rank that it waits for its disk, and when it goes on. Returns the phase it was in. */
static uint64_t mark_phase(struct ls_saver *saver, uint64_t phase) {
    struct ls_progress_record *record = saver->options.progress;
    if (!record) return 0;
    const uint64_t before = atomic_load_explicit(&record->phase, memory_order_relaxed);
    ls_progress_mark(record, (enum ls_phase)phase, atomic_load_explicit(&record->step, memory_order_relaxed),
                     atomic_load_explicit(&record->micro_batch, memory_order_relaxed),
                     atomic_load_explicit(&record->block, memory_order_relaxed));
    return before;
}

/* Pieces of state that may be read; the mutex is held. Where parameters stay whole, the own slice lies among what a
 * gather is receiving (Open MPI moves it about meanwhile), so state waits for the block's gather. */
static int64_t count_due_pieces(const struct ls_saver *saver, const struct job *job) {
    int block = (int)(job->piece / LS_CHECKPOINT_KINDS);
    while (block < saver->block_count && (saver->staged || saver->blocks[block].parameters)) block++;
    return (int64_t)block * LS_CHECKPOINT_KINDS;
}

enum turn { TURN_STATE, TURN_WEIGHTS, TURN_DONE, TURN_GIVEN_UP };

/* What can be written next; waits while nothing can. Staged weights come first, since the forward may wait for room;
 * else blocks are finished one after another, in the order of the update. */
static enum turn next_turn(struct ls_saver *saver, struct job *job, int64_t *available) {
    const bool state_left = job->piece < (int64_t)saver->block_count * LS_CHECKPOINT_KINDS;
    const int state_block = (int)(job->piece / LS_CHECKPOINT_KINDS);
    enum turn turn = TURN_DONE;
    pthread_mutex_lock(&saver->mutex);
    /* A rank whose save gets on does not stand still, however long that takes. */
    if (saver->awaited) mark_phase(saver, LS_PHASE_CHECKPOINT);
    for (;;) {
        bool weights_due, weights_left;
        if (saver->staged) {
            *available = saver->staged_bytes - saver->drained_bytes;
            weights_due = *available > 0;
            weights_left = saver->drained_bytes < saver->own_bytes;
        } else {
            weights_left = job->weights_block < saver->block_count;
            weights_due = weights_left && saver->blocks[job->weights_block].parameters &&
                          (job->weights_block < state_block || !state_left);
        }
        job->due_pieces = count_due_pieces(saver, job);
        turn = saver->given_up                ? TURN_GIVEN_UP
               : weights_due                  ? TURN_WEIGHTS
               : job->piece < job->due_pieces ? TURN_STATE
                                              : TURN_DONE;
        if (turn != TURN_DONE || (!weights_left && !state_left)) break;
        pthread_cond_wait(&saver->changed, &saver->mutex);
    }
    pthread_mutex_unlock(&saver->mutex);
    return turn;
}

static enum ls_code write_everything(struct ls_saver *saver, struct ls_checkpoint_writer *writer,
                                     struct ls_error *error) {
    struct job job = {.writer = writer};
    enum ls_code code = LS_OK;
    while (!code) {
        int64_t available = 0;
        const enum turn turn = next_turn(saver, &job, &available);
        if (turn == TURN_DONE) break;
        if (turn == TURN_GIVEN_UP)
            code = ls_fail(error, LS_CHECKPOINT, LS_SCOPE_RANK, "checkpoint: given up while it was written");
        else if (turn == TURN_STATE)
            code = write_state(saver, &job, error);
        else
            code = saver->staged ? write_staged_weights(saver, &job, available, error)
                                 : write_whole_weights(saver, &job, error);
    }
    return code;
}

static enum ls_code write_job(struct ls_saver *saver, struct ls_error *error) {
    const struct ls_config *config = saver->options.config;
    const struct ls_dataset *dataset = saver->options.corpus->train[0];
    const struct ls_checkpoint_writer_options options = {.folder = saver->folder,
                                                         .model = saver->model,
                                                         .config = config,
                                                         .tokenizer = ls_dataset_tokenizer(dataset),
                                                         .document_token = ls_dataset_document_token(dataset),
                                                         .loss_scale = saver->loss_scale,
                                                         .rank = ls_comm_rank(saver->options.comm),
                                                         .world_size = ls_comm_size(saver->options.comm),
                                                         .replicas = ls_shard_replicas(config),
                                                         .unit = ls_shard_slice_unit(config)};
    struct ls_checkpoint_writer *writer;
    enum ls_code code = ls_checkpoint_writer_create(&options, &writer, error);
    if (code) return code;
    code = write_everything(saver, writer, error);
    if (saver->bounce) ls_stream_synchronize(saver->copies, NULL); /* what a failure left on its way */
    if (!code) code = ls_checkpoint_writer_finish(writer, saver->files, &saver->file_count, error);
    ls_checkpoint_writer_destroy(writer);
    return code;
}

static void *saver_thread(void *argument) {
    struct ls_saver *saver = argument;
    pthread_mutex_lock(&saver->mutex);
    for (;;) {
        while (saver->phase != WRITING && !saver->closing) pthread_cond_wait(&saver->changed, &saver->mutex);
        if (saver->phase != WRITING) break;
        pthread_mutex_unlock(&saver->mutex);
        struct ls_error error = {.code = LS_OK};
        const enum ls_code code = write_job(saver, &error);
        pthread_mutex_lock(&saver->mutex);
        saver->code = code;
        saver->error = error;
        saver->seconds = 1e-9 * (double)(now_ns() - saver->began_ns);
        saver->phase = WRITTEN;
        pthread_cond_broadcast(&saver->changed);
    }
    pthread_mutex_unlock(&saver->mutex);
    return NULL;
}

/* ---- beside the compute stream ---- */

/* What a call on the stream is told. */
struct notice {
    struct ls_saver *saver;
    int64_t value; /* a block, or a count of bytes */
    const void *parameters;
};

static void put(struct ls_saver *saver, ls_host_function *function, int64_t value, const void *parameters) {
    const struct notice notice = {.saver = saver, .value = value, .parameters = parameters};
    ls_stream_call(ls_replica_stream(saver->options.replica), function, &notice, sizeof notice);
}

static bool is_released(const struct ls_saver *saver, int64_t block) {
    return saver->phase != WRITING || (saver->blocks[block].state_read && saver->blocks[block].weights_read);
}

static bool has_room(const struct ls_saver *saver, int64_t end) {
    return saver->phase != WRITING || end - saver->drained_bytes <= saver->options.weights_bytes;
}

/* In the training thread: returns once `condition` holds, or the compute stream has failed. First the stream arrives
 * where the wait is, since what the thread waits for may be queued there; from then on the time is counted. A call on
 * the stream must not wait in its place: the thread copies from the device too, and CUDA may keep its copies behind
 * those that the stream has queued behind the call. */
static void wait_until(struct ls_saver *saver, bool (*condition)(const struct ls_saver *saver, int64_t value),
                       int64_t value) {
    pthread_mutex_lock(&saver->mutex);
    const bool holds = condition(saver, value);
    pthread_mutex_unlock(&saver->mutex);
    if (holds) return;
    ls_event_record(saver->arrived, ls_replica_stream(saver->options.replica));
    if (ls_event_synchronize(saver->arrived, NULL)) return;
    pthread_mutex_lock(&saver->mutex);
    if (!condition(saver, value)) {
        const uint64_t begin = now_ns();
        const uint64_t phase = mark_phase(saver, LS_PHASE_CHECKPOINT);
        saver->awaited = true;
        while (!condition(saver, value)) pthread_cond_wait(&saver->changed, &saver->mutex);
        saver->awaited = false;
        mark_phase(saver, phase);
        saver->blocked_ns += now_ns() - begin;
    }
    pthread_mutex_unlock(&saver->mutex);
}

static enum ls_code tell_staged(const void *argument, struct ls_error *error) {
    (void)error;
    const struct notice *notice = argument;
    pthread_mutex_lock(&notice->saver->mutex);
    notice->saver->staged_bytes = notice->value;
    pthread_cond_broadcast(&notice->saver->changed);
    pthread_mutex_unlock(&notice->saver->mutex);
    return LS_OK;
}

static enum ls_code tell_passed(const void *argument, struct ls_error *error) {
    (void)error;
    const struct notice *notice = argument;
    pthread_mutex_lock(&notice->saver->mutex);
    notice->saver->blocks[notice->value].parameters = notice->parameters;
    pthread_cond_broadcast(&notice->saver->changed);
    pthread_mutex_unlock(&notice->saver->mutex);
    return LS_OK;
}

/* Copies a tensor into the ring, in pieces of at most half of it, so that one is written while the next comes. */
static void stage(struct ls_saver *saver, const char *from, int64_t bytes) {
    const int64_t capacity = saver->options.weights_bytes, most = capacity / 2 + 1;
    while (bytes > 0) {
        const int64_t place = saver->staging % capacity;
        int64_t count = bytes < capacity - place ? bytes : capacity - place;
        if (count > most) count = most;
        saver->staging += count;
        wait_until(saver, has_room, saver->staging);
        ls_copy_to_host(ls_replica_stream(saver->options.replica), saver->options.weights + place, from, (size_t)count);
        put(saver, tell_staged, saver->staging, NULL);
        from += count;
        bytes -= count;
    }
}

static void on_passed(void *context, int index, const void *parameters) {
    struct ls_saver *saver = context;
    const struct ls_block *block = ls_model_block(saver->model, index);
    const int64_t element = ls_dtype_bytes(ls_model_dtype(saver->model));
    if (!saver->staged) {
        put(saver, tell_passed, index, parameters);
        return;
    }
    for (int i = block->first_tensor; i < block->first_tensor + block->tensor_count; i++)
        if (is_own(saver, i))
            stage(saver, (const char *)parameters + ls_model_tensor(saver->model, i)->offset * element,
                  tensor_bytes(saver, i));
}

static void on_release(void *context, int block) {
    wait_until(context, is_released, block);
}

/* ---- from outside ---- */

void ls_saver_begin(struct ls_saver *saver, const char *folder) {
    const struct ls_shard_reader reader = {.context = saver, .passed = on_passed, .release = on_release};
    pthread_mutex_lock(&saver->mutex);
    assert(saver->phase == IDLE);
    snprintf(saver->folder, sizeof saver->folder, "%s", folder);
    saver->loss_scale = *ls_replica_loss_scale(saver->options.replica);
    for (int block = 0; block < saver->block_count; block++)
        saver->blocks[block] = (struct saver_block){.weights_read = saver->staged};
    saver->staging = saver->staged_bytes = saver->drained_bytes = 0;
    saver->file_count = 0;
    saver->began_ns = now_ns();
    saver->phase = WRITING;
    pthread_cond_broadcast(&saver->changed);
    pthread_mutex_unlock(&saver->mutex);
    ls_shard_read(saver->shard, &reader);
}

bool ls_saver_is_written(struct ls_saver *saver) {
    pthread_mutex_lock(&saver->mutex);
    const bool written = saver->phase == WRITTEN;
    pthread_mutex_unlock(&saver->mutex);
    return written;
}

enum ls_code ls_saver_finish(struct ls_saver *saver, struct ls_file_record *files, size_t *count, double *seconds,
                             struct ls_error *error) {
    struct ls_error met = {.code = LS_OK};
    ls_shard_pass_all(saver->shard);
    enum ls_code code = ls_stream_synchronize(ls_replica_stream(saver->options.replica), &met);
    if (!code) code = ls_shard_check(saver->shard, &met);
    pthread_mutex_lock(&saver->mutex);
    assert(saver->phase != IDLE);
    if (code) {
        saver->given_up = true;
        pthread_cond_broadcast(&saver->changed);
    }
    saver->awaited = true;
    while (saver->phase != WRITTEN) pthread_cond_wait(&saver->changed, &saver->mutex);
    saver->awaited = false;
    if (!code) {
        code = saver->code;
        met = saver->error;
        memcpy(files, saver->files, saver->file_count * sizeof *files);
        *count = saver->file_count;
        *seconds = saver->seconds;
    }
    saver->given_up = false;
    saver->phase = IDLE;
    pthread_mutex_unlock(&saver->mutex);
    if (code && error) *error = met;
    return code;
}

double ls_saver_blocked_seconds(const struct ls_saver *saver) {
    return 1e-9 * (double)saver->blocked_ns;
}

/* Signals are for the program's main thread: the new thread inherits a mask that blocks them all. */
static bool start_thread(struct ls_saver *saver) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    saver->thread_runs = pthread_create(&saver->thread, NULL, saver_thread, saver) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (saver->thread_runs) pthread_setname_np(saver->thread, "ls-saver");
    return saver->thread_runs;
}

/* What copies through buffers need; true when they are not needed. */
static bool create_copies(struct ls_saver *saver) {
    if (!saver->bounce) return true;
    saver->copies = ls_stream_create(saver->options.device, true);
    bool complete = saver->copies != NULL;
    for (int place = 0; place < LS_CHECKPOINT_KINDS; place++) {
        saver->copied[place] = ls_event_create(saver->options.device);
        complete &= saver->copied[place] != NULL;
    }
    return complete;
}

enum ls_code ls_saver_create(const struct ls_saver_options *options, struct ls_saver **result, struct ls_error *error) {
    struct ls_saver *saver = calloc(1, sizeof *saver);
    if (!saver) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the records of checkpoints");
    saver->options = *options;
    saver->shard = ls_replica_shard(options->replica);
    saver->model = ls_replica_model(options->replica);
    saver->block_count = ls_model_block_count(saver->model);
    saver->staged = options->config->zero.stage == 3;
    saver->bounce = options->bounce || !ls_device_host_reads(options->device);
    pthread_mutex_init(&saver->mutex, NULL);
    pthread_cond_init(&saver->changed, NULL);
    saver->blocks = calloc((size_t)saver->block_count, sizeof *saver->blocks);
    saver->owners = calloc((size_t)ls_model_tensor_count(saver->model) + 1, sizeof *saver->owners);
    enum ls_code code = LS_OK;
    int64_t files;
    saver->arrived = ls_event_create(options->device);
    if (!saver->blocks || !saver->owners || !saver->arrived || !create_copies(saver))
        code = ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the records of checkpoints");
    if (!code) code = ls_checkpoint_deal(saver->model, ls_comm_size(options->comm), 0, saver->owners, &files, error);
    for (int i = 0; i < ls_model_tensor_count(saver->model) && !code; i++)
        if (is_own(saver, i)) saver->own_bytes += tensor_bytes(saver, i);
    if (!code && !start_thread(saver))
        code = ls_fail(error, LS_ERROR, LS_SCOPE_RANK,
                       "checkpoint: cannot start the thread that saves. Raise the limit of threads (ulimit -u).");
    if (code) {
        ls_saver_destroy(saver);
        return code;
    }
    *result = saver;
    return LS_OK;
}

void ls_saver_destroy(struct ls_saver *saver) {
    if (!saver) return;
    if (saver->thread_runs) {
        pthread_mutex_lock(&saver->mutex);
        saver->closing = saver->given_up = true;
        pthread_cond_broadcast(&saver->changed);
        pthread_mutex_unlock(&saver->mutex);
        pthread_join(saver->thread, NULL);
    }
    ls_stream_destroy(saver->copies);
    for (int place = 0; place < LS_CHECKPOINT_KINDS; place++)
        if (saver->copied[place]) ls_event_destroy(saver->copied[place]);
    if (saver->arrived) ls_event_destroy(saver->arrived);
    pthread_cond_destroy(&saver->changed);
    pthread_mutex_destroy(&saver->mutex);
    free(saver->owners);
    free(saver->blocks);
    free(saver);
}
