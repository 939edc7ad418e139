/* Streams and events of the CPU device. A stream is a ring of entries with two counts, `submitted` and `completed`; an
 * event is a stream and a value of `submitted`, and has happened once `completed` has reached it. Entries run in one of
 * three ways: at once in the caller (inline), in the stream's own thread (threaded), or in the thread of a
 * synchronising call (queued). */
#include "worker/device/cpu/stream.h"

#include "worker/device/cpu/kernels.h"

#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum way { INLINE, THREADED, QUEUED };

struct entry {
    enum { OPERATION, COPY, FILL_ZERO, CALL, WAIT } kind;
    enum ls_op op;
    ls_host_function *function;
    void *to; /* of a copy or fill */
    const void *from;
    size_t bytes;
    struct ls_cpu_stream *source; /* of a wait: until source->completed >= position */
    uint64_t position;
    _Alignas(16) unsigned char argument[LS_STREAM_ARGUMENT_MAX];
};

struct ls_cpu_stream {
    struct ls_stream base;
    struct ls_cpu_stream *next; /* in the device's list */
    bool in_use, stop;
    enum way way;
    int threads;
    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows where the stream is threaded */
    pthread_cond_t work, progress;
    struct entry *ring; /* entry i is at i % capacity, for i in [completed, submitted) */
    uint64_t capacity, submitted, completed;
    uint64_t wait_began_ns, waited_ns; /* of measured waits; written in the stream's order */
    bool failed;
    struct ls_error error;
};

struct ls_cpu_event {
    struct ls_event base;
    struct ls_cpu_stream *stream; /* NULL: never recorded */
    uint64_t position;
};

/* Entries of a ring at first. A threaded stream's never grows: nothing is allocated while training goes on, and a
 * submitter that is so far ahead waits. */
enum { RING_FIRST = 64, RING_THREADED = 1024 };

static struct ls_cpu_stream *cpu_stream(struct ls_stream *stream) {
    return (struct ls_cpu_stream *)stream;
}
static struct ls_cpu_event *cpu_event(struct ls_event *event) {
    return (struct ls_cpu_event *)event;
}

static void lock(struct ls_cpu_stream *stream) {
    if (stream->way == THREADED) pthread_mutex_lock(&stream->lock);
}

static void unlock(struct ls_cpu_stream *stream) {
    if (stream->way == THREADED) pthread_mutex_unlock(&stream->lock);
}

/* Bytes of a copy or fill that are worth a thread's wake-up. */
enum { BYTES_PER_TASK = 256 << 10 };

static void fill_part(const void *entry, int64_t begin, int64_t end) {
    memset((char *)((const struct entry *)entry)->to + begin, 0, (size_t)(end - begin));
}

static void copy_part(const void *argument, int64_t begin, int64_t end) {
    const struct entry *entry = argument;
    memcpy((char *)entry->to + begin, (const char *)entry->from + begin, (size_t)(end - begin));
}

static void copy(int threads, const struct entry *entry) {
    const uintptr_t to = (uintptr_t)entry->to, from = (uintptr_t)entry->from;
    if ((to < from ? from - to : to - from) < entry->bytes)
        memmove(entry->to, entry->from, entry->bytes);
    else
        ls_cpu_parallel(threads, (int64_t)entry->bytes, BYTES_PER_TASK, copy_part, entry);
}

static enum ls_code run_entry(struct ls_cpu_stream *stream, const struct entry *entry, const void *argument,
                              struct ls_error *error) {
    switch (entry->kind) {
    case OPERATION: return ls_cpu_run(stream->threads, stream->base.device->fixed, entry->op, argument, error);
    case COPY: copy(stream->threads, entry); return LS_OK;
    case FILL_ZERO:
        ls_cpu_parallel(stream->threads, (int64_t)entry->bytes, BYTES_PER_TASK, fill_part, entry);
        return LS_OK;
    case CALL: return entry->function(argument, error);
    case WAIT: return LS_OK;
    }
    return LS_OK;
}

static void latch(struct ls_cpu_stream *stream, enum ls_code code, const struct ls_error *error) {
    lock(stream);
    if (!stream->failed) {
        stream->failed = true;
        stream->error = *error;
        stream->error.code = code;
    }
    unlock(stream);
}

/* Waits in the calling thread until a threaded stream has passed `position`. */
static void await(struct ls_cpu_stream *stream, uint64_t position) {
    if (stream->way != THREADED) return;
    pthread_mutex_lock(&stream->lock);
    while (stream->completed < position) pthread_cond_wait(&stream->progress, &stream->lock);
    pthread_mutex_unlock(&stream->lock);
}

static void run_and_latch(struct ls_cpu_stream *stream, const struct entry *entry, const void *argument) {
    struct ls_error error;
    error.text[0] = '\0';
    error.scope = LS_SCOPE_CALL;
    const enum ls_code code = run_entry(stream, entry, argument, &error);
    if (code != LS_OK) latch(stream, code, &error);
}

/* The thread of a background stream. An entry stays in the ring until it has run. */
static void *stream_thread(void *argument) {
    struct ls_cpu_stream *stream = argument;
    pthread_mutex_lock(&stream->lock);
    for (;;) {
        while (stream->completed == stream->submitted && !stream->stop) pthread_cond_wait(&stream->work, &stream->lock);
        if (stream->completed == stream->submitted) break;
        const struct entry entry = stream->ring[stream->completed % stream->capacity];
        const bool skip = stream->failed && entry.kind != WAIT;
        pthread_mutex_unlock(&stream->lock);
        if (entry.kind == WAIT) await(entry.source, entry.position);
        if (!skip) run_and_latch(stream, &entry, entry.argument);
        pthread_mutex_lock(&stream->lock);
        stream->completed++;
        pthread_cond_broadcast(&stream->progress);
    }
    pthread_mutex_unlock(&stream->lock);
    return NULL;
}

/* Runs queued streams until `target` has passed `position`, an entry at a time and none that it does not need: while
 * the next entry is a wait for another stream, that stream has the turn. Waits name points of the past, so the chain
 * ends. */
static void run_queued(struct ls_cpu_stream *target, uint64_t position) {
    while (target->completed < position) {
        struct ls_cpu_stream *stream = target;
        struct entry *entry = &stream->ring[stream->completed % stream->capacity];
        while (entry->kind == WAIT && entry->source->completed < entry->position) {
            stream = entry->source;
            entry = &stream->ring[stream->completed % stream->capacity];
        }
        if (entry->kind != WAIT && !stream->failed) run_and_latch(stream, entry, entry->argument);
        stream->completed++;
    }
}

/* Called while nothing else has the stream: at its creation, or on a stream without a thread. */
static bool grow(struct ls_cpu_stream *stream) {
    const uint64_t first = stream->way == THREADED ? RING_THREADED : RING_FIRST;
    const uint64_t capacity = stream->capacity >= first ? 2 * stream->capacity : first;
    struct entry *ring = malloc(capacity * sizeof *ring);
    if (!ring) return false;
    for (uint64_t i = stream->completed; stream->capacity && i < stream->submitted; i++)
        ring[i % capacity] = stream->ring[i % stream->capacity];
    free(stream->ring);
    stream->ring = ring;
    stream->capacity = capacity;
    return true;
}

/* Puts an entry on the stream: runs it now (inline) or copies it, with `bytes` of argument, into the ring. */
static void put(struct ls_cpu_stream *stream, const struct entry *entry, const void *argument, size_t bytes) {
    if (stream->way == INLINE) {
        if (!stream->failed) run_and_latch(stream, entry, argument);
        return;
    }
    lock(stream);
    while (stream->way == THREADED && stream->submitted - stream->completed == stream->capacity)
        pthread_cond_wait(&stream->progress, &stream->lock);
    if (stream->submitted - stream->completed == stream->capacity && !grow(stream)) {
        unlock(stream);
        struct ls_error error;
        latch(stream,
              ls_fail(&error, LS_MEMORY, LS_SCOPE_RANK,
                      "device: no memory for more than %llu queued operations of a stream. Free memory on this host.",
                      (unsigned long long)stream->capacity),
              &error);
        return;
    }
    struct entry *slot = &stream->ring[stream->submitted % stream->capacity];
    memcpy(slot, entry, offsetof(struct entry, argument));
    if (bytes) memcpy(slot->argument, argument, bytes);
    stream->submitted++;
    if (stream->way == THREADED) pthread_cond_signal(&stream->work);
    unlock(stream);
}

/* Reports the latched error, and forgets it when asked. */
static enum ls_code take_error(struct ls_cpu_stream *stream, bool forget, struct ls_error *error) {
    enum ls_code code = LS_OK;
    lock(stream);
    if (stream->failed) {
        code = stream->error.code;
        if (error) *error = stream->error;
        if (forget) stream->failed = false;
    }
    unlock(stream);
    return code;
}

static void finish(struct ls_cpu_stream *stream, uint64_t position) {
    if (stream->way == THREADED) await(stream, position);
    if (stream->way == QUEUED) run_queued(stream, position);
}

enum ls_code ls_cpu_stream_synchronize(struct ls_stream *base, struct ls_error *error) {
    struct ls_cpu_stream *stream = cpu_stream(base);
    finish(stream, stream->submitted);
    return take_error(stream, true, error);
}

void ls_cpu_stream_copy(struct ls_stream *stream, void *to, const void *from, size_t bytes, enum ls_copy_kind kind) {
    (void)kind;
    put(cpu_stream(stream), &(struct entry){.kind = COPY, .to = to, .from = from, .bytes = bytes}, NULL, 0);
}

void ls_cpu_stream_fill_zero(struct ls_stream *stream, void *memory, size_t bytes) {
    put(cpu_stream(stream), &(struct entry){.kind = FILL_ZERO, .to = memory, .bytes = bytes}, NULL, 0);
}

void ls_cpu_stream_call(struct ls_stream *stream, ls_host_function *function, const void *argument, size_t bytes) {
    put(cpu_stream(stream), &(struct entry){.kind = CALL, .function = function}, argument, bytes);
}

void ls_cpu_stream_submit(struct ls_stream *stream, enum ls_op op, const void *arguments, size_t bytes) {
    put(cpu_stream(stream), &(struct entry){.kind = OPERATION, .op = op}, arguments, bytes);
}

struct ls_event *ls_cpu_event_create(struct ls_device *device) {
    struct ls_cpu_event *event = calloc(1, sizeof *event);
    if (!event) return NULL;
    event->base.device = device;
    return &event->base;
}

void ls_cpu_event_destroy(struct ls_event *event) {
    free(event);
}

void ls_cpu_event_record(struct ls_event *base, struct ls_stream *stream) {
    struct ls_cpu_event *event = cpu_event(base);
    event->stream = cpu_stream(stream);
    event->position = event->stream->submitted; /* only the submitting thread changes it */
}

void ls_cpu_stream_wait(struct ls_stream *base, struct ls_event *waited) {
    struct ls_cpu_stream *stream = cpu_stream(base);
    const struct ls_cpu_event *event = cpu_event(waited);
    if (!event->stream || event->stream == stream || event->stream->way == INLINE) return; /* in order already */
    if (stream->way == INLINE)
        finish(event->stream, event->position);
    else
        put(stream, &(struct entry){.kind = WAIT, .source = event->stream, .position = event->position}, NULL, 0);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static enum ls_code begin_waiting(const void *argument, struct ls_error *error) {
    (void)error;
    struct ls_cpu_stream *stream = *(struct ls_cpu_stream *const *)argument;
    stream->wait_began_ns = now_ns();
    return LS_OK;
}

static enum ls_code end_waiting(const void *argument, struct ls_error *error) {
    (void)error;
    struct ls_cpu_stream *stream = *(struct ls_cpu_stream *const *)argument;
    stream->waited_ns += now_ns() - stream->wait_began_ns;
    return LS_OK;
}

void ls_cpu_stream_wait_measured(struct ls_stream *base, struct ls_event *event) {
    struct ls_cpu_stream *stream = cpu_stream(base);
    ls_cpu_stream_call(base, begin_waiting, &stream, sizeof stream);
    ls_cpu_stream_wait(base, event);
    ls_cpu_stream_call(base, end_waiting, &stream, sizeof stream);
}

double ls_cpu_stream_waited_seconds(const struct ls_stream *stream) {
    return 1e-9 * (double)((const struct ls_cpu_stream *)stream)->waited_ns;
}

enum ls_code ls_cpu_event_synchronize(struct ls_event *base, struct ls_error *error) {
    struct ls_cpu_event *event = cpu_event(base);
    if (!event->stream) return LS_OK;
    finish(event->stream, event->position);
    return take_error(event->stream, false, error);
}

static struct ls_cpu_stream *reuse_or_make(struct ls_cpu_device *device) {
    struct ls_cpu_stream *stream;
    pthread_mutex_lock(&device->lock);
    for (stream = device->streams; stream && stream->in_use; stream = stream->next) {
    }
    if (!stream && (stream = calloc(1, sizeof *stream))) {
        stream->base.device = &device->base;
        pthread_mutex_init(&stream->lock, NULL);
        pthread_cond_init(&stream->work, NULL);
        pthread_cond_init(&stream->progress, NULL);
        stream->next = device->streams;
        device->streams = stream;
    }
    if (stream) stream->in_use = true;
    pthread_mutex_unlock(&device->lock);
    return stream;
}

/* Signals are for the program's main thread: the new thread inherits a mask that blocks them all. */
static bool start_thread(struct ls_cpu_stream *stream) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failure = pthread_create(&stream->thread, NULL, stream_thread, stream);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failure == 0;
}

struct ls_stream *ls_cpu_stream_create(struct ls_device *base, bool background) {
    struct ls_cpu_device *device = (struct ls_cpu_device *)base;
    struct ls_cpu_stream *stream = reuse_or_make(device);
    if (!stream) return NULL;
    static const enum way ways[][2] = {[LS_STREAMS_EAGER] = {INLINE, THREADED},
                                       [LS_STREAMS_LAZY] = {QUEUED, QUEUED},
                                       [LS_STREAMS_HASTY] = {QUEUED, INLINE}};
    stream->way = ways[device->order][background];
    stream->threads = background ? 1 : device->threads;
    stream->failed = stream->stop = false;
    stream->waited_ns = 0;
    const bool roomy = stream->way != THREADED || stream->capacity >= RING_THREADED || grow(stream);
    if (stream->way == THREADED && (!roomy || !start_thread(stream))) {
        stream->in_use = false;
        return NULL;
    }
    return &stream->base;
}

void ls_cpu_stream_destroy(struct ls_stream *base) {
    struct ls_cpu_stream *stream = cpu_stream(base);
    struct ls_cpu_device *device = (struct ls_cpu_device *)base->device;
    finish(stream, stream->submitted);
    if (stream->way == THREADED) {
        pthread_mutex_lock(&stream->lock);
        stream->stop = true;
        pthread_cond_signal(&stream->work);
        pthread_mutex_unlock(&stream->lock);
        pthread_join(stream->thread, NULL);
    }
    pthread_mutex_lock(&device->lock);
    stream->in_use = false;
    pthread_mutex_unlock(&device->lock);
}

void ls_cpu_streams_initialize(struct ls_cpu_device *device) {
    pthread_mutex_init(&device->lock, NULL);
    device->streams = NULL;
}

void ls_cpu_streams_finalize(struct ls_cpu_device *device) {
    for (struct ls_cpu_stream *stream = device->streams; stream; stream = stream->next)
        if (stream->in_use) ls_cpu_stream_destroy(&stream->base);
    for (struct ls_cpu_stream *stream = device->streams, *next; stream; stream = next) {
        next = stream->next;
        pthread_cond_destroy(&stream->progress);
        pthread_cond_destroy(&stream->work);
        pthread_mutex_destroy(&stream->lock);
        free(stream->ring);
        free(stream);
    }
    pthread_mutex_destroy(&device->lock);
}
