/* The prefetch thread and its ring. One mutex guards the counters; the thread owns slot `made % depth` while it fills
 * it. */
#define _GNU_SOURCE
#include "worker/data/prefetch.h"

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { DEPTH_MAX = 16 };

/* Steps granted and not yet prepared. */
struct span {
    int64_t next_step, last_step;
    uint64_t position; /* of next_step */
    int64_t global_batch;
    uint64_t end_position;
};

struct ls_prefetch {
    struct ls_prefetch_options options;
    const struct ls_dataset *datasets[LS_PREFETCH_SOURCES_MAX];
    int32_t *memory; /* [depth, 3, rows, T] */
    int64_t rows;
    pthread_t thread;
    atomic_bool stop; /* set under the mutex, also looked at between sequences */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct span spans[LS_PREFETCH_SPANS_MAX]; /* a ring: the front is spans_first */
    int spans_first, spans_count;
    /* Steps since the start: made <= granted, made - depth <= released <= taken <= made. */
    uint64_t granted, made, taken, released;
    bool failed; /* the step after the last made could not be read */
    struct ls_error failure;
    struct ls_batch slots[DEPTH_MAX];
};

static int64_t divide_up(int64_t a, int64_t b) {
    return a / b + (a % b != 0);
}

static int64_t micro_batches(const struct ls_prefetch_options *options, int64_t step_sequences) {
    return divide_up(divide_up(step_sequences, options->world_size), options->micro_batch);
}

size_t ls_prefetch_bytes(const struct ls_prefetch_options *options) {
    size_t bytes = 3 * sizeof(int32_t) * (size_t)options->depth;
    if (__builtin_mul_overflow(bytes, (size_t)micro_batches(options, options->global_batch_max), &bytes) ||
        __builtin_mul_overflow(bytes, (size_t)options->micro_batch, &bytes) ||
        __builtin_mul_overflow(bytes, (size_t)options->sequence_length, &bytes))
        return SIZE_MAX;
    return bytes;
}

/* Draw `position` without an order: the datasets one after another. */
static struct ls_draw sequential_draw(const struct ls_prefetch *prefetch, uint64_t position) {
    uint32_t source = 0;
    for (uint64_t samples; position >= (samples = (uint64_t)ls_dataset_samples(prefetch->datasets[source])); source++)
        position -= samples;
    return (struct ls_draw){.source = source, .sample = position, .draw = position};
}

void ls_prefetch_limit(int32_t *document_start, int64_t length, int64_t window) {
    if (window == 0) return;
    for (int64_t t = window; t < length; t++)
        if (document_start[t] < t - window + 1) document_start[t] = (int32_t)(t - window + 1);
}

/* The arrays of one slot, [rows, T] each. */
struct arrays {
    int32_t *inputs, *targets, *document_start;
};

/* Reads one sequence into row `row` and adds it to the batch's sums. */
static enum ls_code read_sequence(const struct ls_prefetch *prefetch, struct ls_batch *batch, int64_t row,
                                  const struct arrays *arrays, struct ls_error *error) {
    const struct ls_prefetch_options *options = &prefetch->options;
    const int64_t T = options->sequence_length;
    const uint64_t position =
        (uint64_t)ls_quarantine_at(&options->quarantine, (int64_t)batch->position, batch->first_sequence + row);
    const struct ls_draw draw =
        options->order ? ls_order_at(options->order, position) : sequential_draw(prefetch, position);
    const struct ls_dataset *dataset = prefetch->datasets[draw.source];
    int32_t *inputs = arrays->inputs + row * T, *targets = arrays->targets + row * T;
    enum ls_code code = ls_dataset_read(dataset, (int64_t)draw.sample, options->vocab, options->document_mask, inputs,
                                        targets, arrays->document_start + row * T, error);
    if (code) return code;
    ls_prefetch_limit(arrays->document_start + row * T, T, options->window);
    for (int64_t t = 0; t < T; t++) batch->targets += targets[t] >= 0;
    uint32_t shard;
    uint64_t index;
    ls_dataset_locate(dataset, (int64_t)draw.sample, &shard, &index);
    batch->digest = ls_digest_add(batch->digest, ls_digest_sample(draw.source, shard, index, position, inputs, T));
    return LS_OK;
}

static enum ls_code fill_batch(const struct ls_prefetch *prefetch, struct ls_batch *batch, const struct arrays *arrays,
                               struct ls_error *error) {
    const struct ls_prefetch_options *options = &prefetch->options;
    const int64_t T = options->sequence_length;
    for (int64_t row = 0; row < batch->sequences; row++) {
        if (atomic_load(&prefetch->stop)) return LS_OK; /* nobody will take it */
        enum ls_code code = read_sequence(prefetch, batch, row, arrays, error);
        if (code) return code;
    }
    const int64_t filled = batch->sequences * T;
    const size_t padding = (size_t)(batch->micro_batches * options->micro_batch * T - filled) * sizeof(int32_t);
    memset(arrays->inputs + filled, 0, padding);
    memset(arrays->targets + filled, 0xff, padding); /* -1 */
    memset(arrays->document_start + filled, 0, padding);
    return LS_OK;
}

/* The sequences of this rank in the step. */
static void own_sequences(const struct ls_prefetch_options *options, struct ls_batch *batch) {
    if (!options->slots) {
        ls_rank_range(batch->step_sequences, options->rank, options->world_size, &batch->first_sequence,
                      &batch->sequences);
        return;
    }
    int64_t first_slot, slots;
    ls_rank_range(divide_up(batch->step_sequences, options->micro_batch), options->rank, options->world_size,
                  &first_slot, &slots);
    const int64_t first = first_slot * options->micro_batch, end = (first_slot + slots) * options->micro_batch;
    batch->first_sequence = first < batch->step_sequences ? first : batch->step_sequences;
    batch->sequences = (end < batch->step_sequences ? end : batch->step_sequences) - batch->first_sequence;
}

/* Sequences in [position, end) that are not quarantined; UINT64_MAX: no end. */
static int64_t usable(const struct ls_prefetch *prefetch, uint64_t position, uint64_t end) {
    const int64_t from = (int64_t)position, to = end > INT64_MAX ? INT64_MAX : (int64_t)end;
    return to - from - ls_quarantine_within(&prefetch->options.quarantine, from, to);
}

/* Takes the next step off the front span. */
static struct ls_batch next_step(struct ls_prefetch *prefetch) {
    struct span *span = &prefetch->spans[prefetch->spans_first];
    const int64_t left = usable(prefetch, span->position, span->end_position);
    struct ls_batch batch = {
        .step = span->next_step,
        .position = span->position,
        .step_sequences = left < span->global_batch ? left : span->global_batch,
    };
    batch.end_position =
        (uint64_t)ls_quarantine_behind(&prefetch->options.quarantine, (int64_t)batch.position, batch.step_sequences);
    if (left <= span->global_batch) batch.end_position = span->end_position;
    batch.micro_batches = micro_batches(&prefetch->options, batch.step_sequences);
    own_sequences(&prefetch->options, &batch);
    span->position = batch.end_position;
    if (++span->next_step == span->last_step) {
        prefetch->spans_first = (prefetch->spans_first + 1) % LS_PREFETCH_SPANS_MAX;
        prefetch->spans_count--;
    }
    return batch;
}

static bool has_work(const struct ls_prefetch *prefetch) {
    return !prefetch->failed && prefetch->spans_count > 0 &&
           prefetch->made - prefetch->released < (uint64_t)prefetch->options.depth;
}

static void *fill_ring(void *argument) {
    struct ls_prefetch *prefetch = argument;
    const int64_t array = prefetch->rows * prefetch->options.sequence_length;
    pthread_mutex_lock(&prefetch->mutex);
    for (;;) {
        while (!atomic_load(&prefetch->stop) && !has_work(prefetch))
            pthread_cond_wait(&prefetch->changed, &prefetch->mutex);
        if (atomic_load(&prefetch->stop)) break;
        struct ls_batch batch = next_step(prefetch);
        const int64_t slot = (int64_t)(prefetch->made % (uint64_t)prefetch->options.depth);
        pthread_mutex_unlock(&prefetch->mutex);

        int32_t *memory = prefetch->memory + slot * 3 * array;
        const struct arrays arrays = {memory, memory + array, memory + 2 * array};
        batch.inputs = arrays.inputs;
        batch.target_ids = arrays.targets;
        batch.document_start = arrays.document_start;
        struct ls_error failure;
        enum ls_code code = fill_batch(prefetch, &batch, &arrays, &failure);

        pthread_mutex_lock(&prefetch->mutex);
        if (code) {
            prefetch->failed = true;
            prefetch->failure = failure;
        } else {
            prefetch->slots[slot] = batch;
            prefetch->made++;
        }
        pthread_cond_broadcast(&prefetch->changed);
    }
    pthread_mutex_unlock(&prefetch->mutex);
    return NULL;
}

static void *allocate_ordinary(size_t bytes, void *context) {
    (void)context;
    return malloc(bytes);
}

static void release_ordinary(void *memory, void *context) {
    (void)context;
    free(memory);
}

/* Starts the thread with every signal blocked: signals belong to the program's main thread. */
static int start_thread(struct ls_prefetch *prefetch) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int cause = pthread_create(&prefetch->thread, NULL, fill_ring, prefetch);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!cause) pthread_setname_np(prefetch->thread, "ls-prefetch");
    return cause;
}

enum ls_code ls_prefetch_create(const struct ls_prefetch_options *options, struct ls_prefetch **prefetch,
                                struct ls_error *error) {
    assert(options->dataset_count >= 1 && options->dataset_count <= LS_PREFETCH_SOURCES_MAX);
    assert(options->rank >= 0 && options->rank < options->world_size);
    assert(options->depth >= 2 && options->depth <= DEPTH_MAX);
    assert(options->micro_batch >= 1 && options->global_batch_max >= 1 && options->sequence_length >= 1);
    struct ls_prefetch *made = calloc(1, sizeof *made);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for the prefetch of batches");
    made->options = *options;
    if (!made->options.allocator.allocate)
        made->options.allocator = (struct ls_prefetch_allocator){allocate_ordinary, release_ordinary, NULL};
    const struct ls_prefetch_allocator *allocator = &made->options.allocator;
    memcpy(made->datasets, options->datasets, (size_t)options->dataset_count * sizeof *options->datasets);
    made->options.datasets = made->datasets;
    const size_t bytes = ls_prefetch_bytes(options);
    made->memory = bytes == SIZE_MAX ? NULL : allocator->allocate(bytes, allocator->context);
    if (!made->memory) {
        free(made);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK,
                       "no memory for the %zu bytes of %d batches read ahead. Make train.global_batch_size smaller or "
                       "use more ranks.",
                       bytes, options->depth);
    }
    made->rows = micro_batches(options, options->global_batch_max) * options->micro_batch;
    memset(made->memory, 0, bytes); /* so that a lack of memory shows now and not in a step */
    pthread_mutex_init(&made->mutex, NULL);
    pthread_cond_init(&made->changed, NULL);
    int cause = start_thread(made);
    if (cause) {
        pthread_cond_destroy(&made->changed);
        pthread_mutex_destroy(&made->mutex);
        allocator->release(made->memory, allocator->context);
        free(made);
        return ls_fail(error, LS_ERROR, LS_SCOPE_RANK, "cannot start the prefetch thread: %s. Check 'ulimit -u'.",
                       strerror(cause));
    }
    *prefetch = made;
    return LS_OK;
}

void ls_prefetch_destroy(struct ls_prefetch *prefetch) {
    if (!prefetch) return;
    pthread_mutex_lock(&prefetch->mutex);
    atomic_store(&prefetch->stop, true);
    pthread_cond_broadcast(&prefetch->changed);
    pthread_mutex_unlock(&prefetch->mutex);
    pthread_join(prefetch->thread, NULL);
    pthread_cond_destroy(&prefetch->changed);
    pthread_mutex_destroy(&prefetch->mutex);
    prefetch->options.allocator.release(prefetch->memory, prefetch->options.allocator.context);
    free(prefetch);
}

/* Where the draws end at the latest: without an order they are the samples of the datasets, each once. */
static uint64_t draws_end(const struct ls_prefetch *prefetch, uint64_t end_position) {
    if (prefetch->options.order) return end_position;
    uint64_t samples = 0;
    for (int i = 0; i < prefetch->options.dataset_count; i++)
        samples += (uint64_t)ls_dataset_samples(prefetch->datasets[i]);
    return end_position < samples ? end_position : samples;
}

enum ls_code ls_prefetch_grant(struct ls_prefetch *prefetch, int64_t first_step, int64_t last_step, uint64_t position,
                               int64_t global_batch, uint64_t end_position, struct ls_error *error) {
    if (first_step < 0 || last_step <= first_step || global_batch < 1 ||
        global_batch > prefetch->options.global_batch_max)
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB,
                       "steps %lld to %lld of %lld sequences cannot be prepared: batches of 1 to %lld can",
                       (long long)first_step, (long long)last_step, (long long)global_batch,
                       (long long)prefetch->options.global_batch_max);
    const uint64_t end = draws_end(prefetch, end_position);
    const __int128 before_last = (__int128)(last_step - first_step - 1) * global_batch;
    if (position >= end || before_last >= (__int128)usable(prefetch, position, end))
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB,
                       "steps %lld to %lld of %lld sequences, from position %llu, cannot be prepared: the data end at "
                       "position %llu",
                       (long long)first_step, (long long)last_step, (long long)global_batch,
                       (unsigned long long)position, (unsigned long long)end);
    enum ls_code code = LS_OK;
    pthread_mutex_lock(&prefetch->mutex);
    if (prefetch->spans_count == LS_PREFETCH_SPANS_MAX) {
        code = ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "%d spans of steps wait to be prepared; no more can",
                       LS_PREFETCH_SPANS_MAX);
    } else {
        prefetch->spans[(prefetch->spans_first + prefetch->spans_count++) % LS_PREFETCH_SPANS_MAX] =
            (struct span){first_step, last_step, position, global_batch, end};
        prefetch->granted += (uint64_t)(last_step - first_step);
        pthread_cond_broadcast(&prefetch->changed);
    }
    pthread_mutex_unlock(&prefetch->mutex);
    return code;
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

enum ls_code ls_prefetch_next(struct ls_prefetch *prefetch, struct ls_batch *batch, double *waited_seconds,
                              struct ls_error *error) {
    enum ls_code code = LS_OK;
    double waited = 0;
    pthread_mutex_lock(&prefetch->mutex);
    if (prefetch->taken == prefetch->granted) {
        code = ls_fail(error, LS_ERROR, LS_SCOPE_RANK, "a batch was asked for beyond the %llu steps granted",
                       (unsigned long long)prefetch->granted);
    } else if (prefetch->taken - prefetch->released == (uint64_t)prefetch->options.depth) {
        code =
            ls_fail(error, LS_ERROR, LS_SCOPE_RANK, "all %d batches of the ring are in use", prefetch->options.depth);
    } else {
        if (prefetch->taken == prefetch->made && !prefetch->failed) {
            const double start = seconds_now();
            while (prefetch->taken == prefetch->made && !prefetch->failed)
                pthread_cond_wait(&prefetch->changed, &prefetch->mutex);
            waited = seconds_now() - start;
        }
        if (prefetch->taken < prefetch->made) {
            *batch = prefetch->slots[prefetch->taken % (uint64_t)prefetch->options.depth];
            prefetch->taken++;
        } else {
            code = prefetch->failure.code;
            if (error) *error = prefetch->failure;
        }
    }
    pthread_mutex_unlock(&prefetch->mutex);
    if (waited_seconds) *waited_seconds = waited;
    return code;
}

void ls_prefetch_release(struct ls_prefetch *prefetch) {
    pthread_mutex_lock(&prefetch->mutex);
    assert(prefetch->released < prefetch->taken);
    prefetch->released++;
    pthread_cond_broadcast(&prefetch->changed);
    pthread_mutex_unlock(&prefetch->mutex);
}
