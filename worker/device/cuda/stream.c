/* Streams and events on CUDA's. */
#include "worker/device/cuda/stream.h"

#include "worker/device/cuda/gemm.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Calls and measured waits that may be under way on a stream; a submitter that is further ahead waits. */
enum { CALLS = 256, WAITS = 1024 };

/* A call of the host that is queued. It is free again once it has run. */
struct call {
    struct ls_cuda_stream *stream;
    ls_host_function *function;
    atomic_bool queued;
    _Alignas(16) unsigned char argument[LS_STREAM_ARGUMENT_MAX];
};

/* What stands before and after a measured wait. */
struct measured_wait {
    cudaEvent_t begin, end;
};

struct ls_cuda_stream {
    struct ls_stream base;
    struct ls_cuda_stream *next; /* in the device's list */
    bool in_use;
    cudaStream_t handle;
    pthread_mutex_t lock; /* guards the error */
    atomic_bool failed;
    struct ls_error error;
    struct call *calls; /* [CALLS], a ring; made with the first call */
    uint64_t calls_queued;
    struct measured_wait *waits; /* [WAITS], a ring; made with the first measured wait */
    uint64_t waits_begun, waits_read;
    double waited_seconds;
};

struct ls_cuda_event {
    struct ls_event base;
    cudaEvent_t handle;
    struct ls_cuda_stream *stream; /* NULL: never recorded */
};

static struct ls_cuda_stream *cuda_stream(struct ls_stream *stream) {
    return (struct ls_cuda_stream *)stream;
}
static struct ls_cuda_event *cuda_event(struct ls_event *event) {
    return (struct ls_cuda_event *)event;
}
static const struct ls_cuda_device *device_of(const struct ls_stream *stream) {
    return (const struct ls_cuda_device *)stream->device;
}

cudaStream_t ls_cuda_stream(struct ls_stream *stream) {
    return cuda_stream(stream)->handle;
}

bool ls_cuda_stream_has_failed(struct ls_stream *stream) {
    return atomic_load_explicit(&cuda_stream(stream)->failed, memory_order_acquire);
}

void ls_cuda_stream_fail(struct ls_stream *base, const struct ls_error *error) {
    struct ls_cuda_stream *stream = cuda_stream(base);
    pthread_mutex_lock(&stream->lock);
    if (!atomic_load(&stream->failed)) {
        stream->error = *error;
        atomic_store_explicit(&stream->failed, true, memory_order_release);
    }
    pthread_mutex_unlock(&stream->lock);
}

void ls_cuda_stream_note(struct ls_stream *stream, cudaError_t status, const char *what) {
    struct ls_error error;
    if (status == cudaSuccess) return;
    ls_cuda_fail(device_of(stream), status, what, &error);
    ls_cuda_stream_fail(stream, &error);
}

static enum ls_code take_error(struct ls_cuda_stream *stream, bool forget, struct ls_error *error) {
    enum ls_code code = LS_OK;
    pthread_mutex_lock(&stream->lock);
    if (atomic_load(&stream->failed)) {
        code = stream->error.code;
        if (error) *error = stream->error;
        if (forget) atomic_store(&stream->failed, false);
    }
    pthread_mutex_unlock(&stream->lock);
    return code;
}

/* Adds up the measured waits that have ended; all of them when `last`, else those from before half a ring. */
static void read_waits(struct ls_cuda_stream *stream, bool last) {
    while (stream->waits_read < stream->waits_begun && (last || stream->waits_begun - stream->waits_read > WAITS / 2)) {
        const struct measured_wait *wait = &stream->waits[stream->waits_read++ % WAITS];
        float milliseconds = 0;
        if (!last) cudaEventSynchronize(wait->end);
        if (cudaEventElapsedTime(&milliseconds, wait->begin, wait->end) == cudaSuccess)
            stream->waited_seconds += 1e-3 * (double)milliseconds;
        else
            cudaGetLastError();
    }
}

enum ls_code ls_cuda_stream_synchronize(struct ls_stream *base, struct ls_error *error) {
    struct ls_cuda_stream *stream = cuda_stream(base);
    ls_cuda_use(device_of(base));
    ls_cuda_stream_note(base, cudaStreamSynchronize(stream->handle), "a stream");
    read_waits(stream, true);
    return take_error(stream, true, error);
}

void ls_cuda_stream_wait(struct ls_stream *base, struct ls_event *waited) {
    struct ls_cuda_event *event = cuda_event(waited);
    ls_cuda_use(device_of(base));
    if (event->stream)
        ls_cuda_stream_note(base, cudaStreamWaitEvent(cuda_stream(base)->handle, event->handle, 0), "a wait");
}

static bool create_waits(struct ls_cuda_stream *stream) {
    if (stream->waits) return true;
    stream->waits = calloc(WAITS, sizeof *stream->waits);
    for (int i = 0; stream->waits && i < WAITS; i++)
        if (cudaEventCreateWithFlags(&stream->waits[i].begin, cudaEventDefault) ||
            cudaEventCreateWithFlags(&stream->waits[i].end, cudaEventDefault))
            return false;
    return stream->waits != NULL;
}

void ls_cuda_stream_wait_measured(struct ls_stream *base, struct ls_event *event) {
    struct ls_cuda_stream *stream = cuda_stream(base);
    ls_cuda_use(device_of(base));
    if (!create_waits(stream)) {
        ls_cuda_stream_note(base, cudaErrorMemoryAllocation, "events for measured waits");
        return;
    }
    if (stream->waits_begun - stream->waits_read == WAITS) read_waits(stream, false);
    const struct measured_wait *wait = &stream->waits[stream->waits_begun++ % WAITS];
    ls_cuda_stream_note(base, cudaEventRecord(wait->begin, stream->handle), "an event");
    ls_cuda_stream_wait(base, event);
    ls_cuda_stream_note(base, cudaEventRecord(wait->end, stream->handle), "an event");
}

double ls_cuda_stream_waited_seconds(const struct ls_stream *stream) {
    return ((const struct ls_cuda_stream *)stream)->waited_seconds;
}

void ls_cuda_stream_copy(struct ls_stream *base, void *to, const void *from, size_t bytes, enum ls_copy_kind kind) {
    static const enum cudaMemcpyKind kinds[] = {[LS_COPY_TO_DEVICE] = cudaMemcpyHostToDevice,
                                                [LS_COPY_TO_HOST] = cudaMemcpyDeviceToHost,
                                                [LS_COPY_WITHIN_DEVICE] = cudaMemcpyDeviceToDevice};
    if (device_of(base)->rehearsing || ls_cuda_stream_has_failed(base)) return;
    ls_cuda_use(device_of(base));
    ls_cuda_stream_note(base, cudaMemcpyAsync(to, from, bytes, kinds[kind], cuda_stream(base)->handle), "a copy");
}

void ls_cuda_stream_fill_zero(struct ls_stream *base, void *memory, size_t bytes) {
    if (device_of(base)->rehearsing || ls_cuda_stream_has_failed(base)) return;
    ls_cuda_use(device_of(base));
    ls_cuda_stream_note(base, cudaMemsetAsync(memory, 0, bytes, cuda_stream(base)->handle), "a fill");
}

/* In a thread of the driver, which must not call CUDA. */
static void run_call(void *argument) {
    struct call *call = argument;
    struct ls_cuda_stream *stream = call->stream;
    if (!ls_cuda_stream_has_failed(&stream->base)) {
        struct ls_error error = {.scope = LS_SCOPE_CALL};
        const enum ls_code code = call->function(call->argument, &error);
        error.code = code;
        if (code) ls_cuda_stream_fail(&stream->base, &error);
    }
    atomic_store_explicit(&call->queued, false, memory_order_release);
}

void ls_cuda_stream_call(struct ls_stream *base, ls_host_function *function, const void *argument, size_t bytes) {
    struct ls_cuda_stream *stream = cuda_stream(base);
    if (device_of(base)->rehearsing) return;
    ls_cuda_use(device_of(base));
    if (!stream->calls && !(stream->calls = calloc(CALLS, sizeof *stream->calls))) {
        ls_cuda_stream_note(base, cudaErrorMemoryAllocation, "calls of the host");
        return;
    }
    struct call *call = &stream->calls[stream->calls_queued++ % CALLS];
    if (atomic_load_explicit(&call->queued, memory_order_acquire))
        ls_cuda_stream_note(base, cudaStreamSynchronize(stream->handle), "a stream");
    call->stream = stream;
    call->function = function;
    if (bytes) memcpy(call->argument, argument, bytes);
    atomic_store(&call->queued, true);
    const cudaError_t status = cudaLaunchHostFunc(stream->handle, run_call, call);
    if (status) atomic_store(&call->queued, false);
    ls_cuda_stream_note(base, status, "a call of the host");
}

struct ls_event *ls_cuda_event_create(struct ls_device *device) {
    struct ls_cuda_event *event = calloc(1, sizeof *event);
    if (!event) return NULL;
    event->base.device = device;
    ls_cuda_use((struct ls_cuda_device *)device);
    if (!cudaEventCreateWithFlags(&event->handle, cudaEventDisableTiming)) return &event->base;
    cudaGetLastError();
    free(event);
    return NULL;
}

void ls_cuda_event_destroy(struct ls_event *event) {
    cudaEventDestroy(cuda_event(event)->handle);
    free(event);
}

void ls_cuda_event_record(struct ls_event *base, struct ls_stream *stream) {
    struct ls_cuda_event *event = cuda_event(base);
    ls_cuda_use(device_of(stream));
    ls_cuda_stream_note(stream, cudaEventRecord(event->handle, cuda_stream(stream)->handle), "an event");
    event->stream = cuda_stream(stream);
}

enum ls_code ls_cuda_event_synchronize(struct ls_event *base, struct ls_error *error) {
    struct ls_cuda_event *event = cuda_event(base);
    if (!event->stream) return LS_OK;
    ls_cuda_use((struct ls_cuda_device *)base->device);
    const cudaError_t status = cudaEventSynchronize(event->handle);
    if (event->stream->in_use) ls_cuda_stream_note(&event->stream->base, status, "a stream");
    return take_error(event->stream, false, error);
}

static struct ls_cuda_stream *reuse_or_make(struct ls_cuda_device *device) {
    struct ls_cuda_stream *stream;
    pthread_mutex_lock(&device->lock);
    for (stream = device->streams; stream && stream->in_use; stream = stream->next) {
    }
    if (!stream && (stream = calloc(1, sizeof *stream))) {
        stream->base.device = &device->base;
        pthread_mutex_init(&stream->lock, NULL);
        stream->next = device->streams;
        device->streams = stream;
    }
    if (stream) stream->in_use = true;
    pthread_mutex_unlock(&device->lock);
    return stream;
}

struct ls_stream *ls_cuda_stream_create(struct ls_device *base, bool background) {
    struct ls_cuda_device *device = (struct ls_cuda_device *)base;
    struct ls_cuda_stream *stream = reuse_or_make(device);
    int least = 0, greatest = 0;
    if (!stream) return NULL;
    ls_cuda_use(device);
    atomic_store(&stream->failed, false);
    stream->waited_seconds = 0;
    /* What other ranks wait for goes first. */
    if (cudaDeviceGetStreamPriorityRange(&least, &greatest)) least = greatest = 0;
    if (!cudaStreamCreateWithPriority(&stream->handle, cudaStreamNonBlocking, background ? greatest : least))
        return &stream->base;
    cudaGetLastError();
    stream->in_use = false;
    return NULL;
}

void ls_cuda_stream_destroy(struct ls_stream *base) {
    struct ls_cuda_stream *stream = cuda_stream(base);
    struct ls_cuda_device *device = (struct ls_cuda_device *)base->device;
    ls_cuda_use(device);
    cudaStreamSynchronize(stream->handle);
    read_waits(stream, true);
    ls_cuda_gemm_forget_stream(device->gemm, base);
    cudaStreamDestroy(stream->handle);
    pthread_mutex_lock(&device->lock);
    stream->in_use = false;
    pthread_mutex_unlock(&device->lock);
}

void ls_cuda_streams_finalize(struct ls_cuda_device *device) {
    for (struct ls_cuda_stream *stream = device->streams; stream; stream = stream->next)
        if (stream->in_use) ls_cuda_stream_destroy(&stream->base);
    for (struct ls_cuda_stream *stream = device->streams, *next; stream; stream = next) {
        next = stream->next;
        for (int i = 0; stream->waits && i < WAITS; i++) {
            if (stream->waits[i].begin) cudaEventDestroy(stream->waits[i].begin);
            if (stream->waits[i].end) cudaEventDestroy(stream->waits[i].end);
        }
        pthread_mutex_destroy(&stream->lock);
        free(stream->waits);
        free(stream->calls);
        free(stream);
    }
    device->streams = NULL;
}
