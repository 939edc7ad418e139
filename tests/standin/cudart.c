/* The CUDA runtime on host memory. A stream is a ring of entries with two counts; an event is a stream and a count. */
#define _GNU_SOURCE
#include "tests/standin/standin.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, RUNTIME = CUDART_VERSION, RING_FIRST = 64, GUARDED_MOST = 8 << 20, DEVICES_MOST = 64 };

struct entry {
    enum { RUN, WAIT, STAMP } kind;
    void (*function)(void *argument);
    void *argument;
    bool owned; /* the argument is freed behind the call */
    struct CUstream_st *source;
    struct CUevent_st *event;
    uint64_t position;
};

struct CUstream_st {
    struct CUstream_st *next;
    bool late, destroyed, running; /* running: a thread is at the entry behind `completed` */
    struct entry *ring;
    uint64_t capacity, submitted, completed;
};

struct CUevent_st {
    struct CUstream_st *stream; /* NULL: never recorded */
    uint64_t position;
    bool timed, happened;
    double at;
};

/* An allocation of device memory, or of pinned host memory. */
struct allocation {
    struct allocation *next;
    char *memory;
    size_t bytes, mapped;
    bool device;
};

/* One lock for all records. It is given up while an entry runs: a collective waits there for other ranks. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t passed = PTHREAD_COND_INITIALIZER;
static struct CUstream_st *streams, null_stream;
static struct allocation *allocations;
static size_t used_bytes, peak_bytes;
static unsigned long waits, dropped, launches, asked; /* asked: allocations of device memory */
static _Thread_local int current_device;
static _Thread_local cudaError_t last_error;
static int opened; /* entries that run now: device memory may be touched */

static const char *setting(const char *name, const char *standard) {
    const char *value = getenv(name);
    return value && value[0] ? value : standard;
}
static unsigned long long number(const char *name, const char *standard) {
    return strtoull(setting(name, standard), NULL, 10);
}
static size_t memory_limit(void) {
    return (size_t)number("LS_STANDIN_MEMORY", "1073741824");
}
/* The GPUs that this process sees, by their numbers on the machine: all, or those that CUDA_VISIBLE_DEVICES names up to
 * the first that is none. */
static int see_devices(int seen[DEVICES_MOST]) {
    const int there = (int)number("LS_STANDIN_DEVICES", "1");
    const char *text = getenv("CUDA_VISIBLE_DEVICES");
    int count = 0;
    for (; !text && count < there && count < DEVICES_MOST; count++) seen[count] = count;
    while (text && count < DEVICES_MOST) {
        char *end;
        const long device = strtol(text, &end, 10);
        if (end == text || device < 0 || device >= there) break;
        seen[count++] = (int)device;
        text = *end == ',' ? end + 1 : NULL;
    }
    return count;
}
static int device_count(void) {
    int seen[DEVICES_MOST];
    return see_devices(seen);
}
static int driver_version(void) {
    return (int)number("LS_STANDIN_DRIVER", "13000");
}
static bool is_guarded(void) {
    return setting("LS_STANDIN_GUARD", "")[0] == '1';
}

static cudaError_t answer(cudaError_t status) {
    if (status) last_error = status;
    return status;
}

/* A kernel has faulted: nothing runs any more, and every call says so from now on. */
static bool is_dead(void) {
    const unsigned long long fault = number("LS_STANDIN_FAULT", "0");
    return fault && launches >= fault;
}
#define LIVE_OR_ANSWER()                                                                                               \
    if (is_dead()) return answer(cudaErrorIllegalAddress)

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- guarded memory ---- */

static void protect(int protection) {
    for (struct allocation *a = allocations; a; a = a->next)
        if (a->device && a->bytes <= GUARDED_MOST && mprotect(a->memory, a->mapped, protection)) abort();
}

/* The lock is held. */
static void open_memory(void) {
    if (opened++ == 0 && is_guarded()) protect(PROT_READ | PROT_WRITE);
}
static void close_memory(void) {
    if (--opened == 0 && is_guarded()) protect(PROT_NONE);
}

/* ---- streams ---- */

static struct CUstream_st *known(cudaStream_t stream) {
    return stream ? stream : &null_stream;
}

/* The lock is held, and given up meanwhile. */
static void run_entry(struct CUstream_st *stream, const struct entry *entry) {
    stream->running = true;
    open_memory();
    if (entry->kind == STAMP) {
        entry->event->at = seconds_now();
        entry->event->happened = true;
    }
    if (entry->kind == RUN) {
        pthread_mutex_unlock(&lock);
        entry->function(entry->argument);
        if (entry->owned) free(entry->argument);
        pthread_mutex_lock(&lock);
    }
    close_memory();
    stream->running = false;
    stream->completed++;
    pthread_cond_broadcast(&passed);
}

/* Runs queued streams until `target` has passed `position`, and nothing that this does not need. The lock is held. */
static void run_until(struct CUstream_st *target, uint64_t position) {
    while (target->completed < position) {
        struct CUstream_st *stream = target;
        const struct entry *entry = NULL;
        for (;;) {
            if (stream->running || !stream->late) break;
            entry = &stream->ring[stream->completed % stream->capacity];
            if (entry->kind != WAIT || entry->source->completed >= entry->position) break;
            stream = entry->source;
        }
        if (stream->running || !stream->late) { /* another thread is at it */
            pthread_cond_wait(&passed, &lock);
            continue;
        }
        const struct entry copy = *entry;
        run_entry(stream, &copy);
    }
}

static void put(struct CUstream_st *stream, struct entry entry) {
    if (is_dead()) {
        if (entry.owned) free(entry.argument);
        return;
    }
    pthread_mutex_lock(&lock);
    if (!stream->late) {
        stream->submitted++;
        if (entry.kind == WAIT) run_until(entry.source, entry.position);
        run_entry(stream, &entry);
    } else {
        if (stream->submitted - stream->completed == stream->capacity) {
            const uint64_t capacity = stream->capacity ? 2 * stream->capacity : RING_FIRST;
            struct entry *ring = malloc(capacity * sizeof *ring);
            if (!ring) abort();
            for (uint64_t i = stream->completed; stream->capacity && i < stream->submitted; i++)
                ring[i % capacity] = stream->ring[i % stream->capacity];
            free(stream->ring);
            stream->ring = ring;
            stream->capacity = capacity;
        }
        stream->ring[stream->submitted++ % stream->capacity] = entry;
    }
    pthread_mutex_unlock(&lock);
}

static void drain(struct CUstream_st *stream) {
    pthread_mutex_lock(&lock);
    run_until(stream, stream->submitted);
    pthread_mutex_unlock(&lock);
}

static void drain_all(void) {
    pthread_mutex_lock(&lock);
    for (struct CUstream_st *stream = streams; stream; stream = stream->next) run_until(stream, stream->submitted);
    run_until(&null_stream, null_stream.submitted);
    pthread_mutex_unlock(&lock);
}

void ls_standin_enqueue(cudaStream_t stream, void (*function)(void *), void *argument) {
    const char *stop = getenv("LS_STANDIN_STOP");
    launches++;
    if (stop && unlink(stop) == 0) raise(SIGSTOP);
    put(known(stream), (struct entry){.kind = RUN, .function = function, .argument = argument});
}

void ls_standin_enqueue_copy(cudaStream_t stream, void (*function)(void *), const void *argument, size_t bytes) {
    void *copy = malloc(bytes + 1);
    if (!copy) abort();
    memcpy(copy, argument, bytes);
    put(known(stream), (struct entry){.kind = RUN, .function = function, .argument = copy, .owned = true});
}

/* Launches of emulated kernels come here (tests/emulator/scheduler.h). */
void ls_emulator_enqueue(void *stream, void (*function)(void *), void *argument);
void ls_emulator_enqueue(void *stream, void (*function)(void *), void *argument) {
    ls_standin_enqueue(stream, function, argument);
}

static void make_stream(struct CUstream_st *stream, bool preferred) {
    const char *order = setting("LS_STANDIN_ORDER", "eager");
    memset(stream, 0, sizeof *stream);
    stream->late = strcmp(order, "lazy") == 0 || (strcmp(order, "hasty") == 0 && !preferred);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0, *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    LIVE_OR_ANSWER();
    (void)flags;
    struct CUstream_st *made = malloc(sizeof *made);
    if (!made) return answer(cudaErrorMemoryAllocation);
    make_stream(made, priority < 0);
    pthread_mutex_lock(&lock);
    made->next = streams;
    streams = made;
    pthread_mutex_unlock(&lock);
    *stream = made;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithPriority(stream, cudaStreamDefault, 0);
}

/* Events may still name it: its record stays. */
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    LIVE_OR_ANSWER();
    if (!stream || stream->destroyed) return answer(cudaErrorInvalidResourceHandle);
    drain(stream);
    stream->destroyed = true;
    free(stream->ring);
    stream->ring = NULL;
    stream->capacity = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    LIVE_OR_ANSWER();
    drain(known(stream));
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    LIVE_OR_ANSWER();
    struct CUstream_st *s = known(stream);
    if (s->completed == s->submitted) return cudaSuccess;
    pthread_mutex_lock(&lock);
    run_until(s, s->completed + 1);
    pthread_mutex_unlock(&lock);
    return cudaErrorNotReady;
}
cudaError_t cudaDeviceSynchronize(void) {
    LIVE_OR_ANSWER();
    drain_all();
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    LIVE_OR_ANSWER();
    *event = calloc(1, sizeof **event);
    if (!*event) return answer(cudaErrorMemoryAllocation);
    (*event)->timed = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    LIVE_OR_ANSWER();
    pthread_mutex_lock(&lock);
    if (event->timed && event->stream) run_until(event->stream, event->position);
    pthread_mutex_unlock(&lock);
    free(event);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    LIVE_OR_ANSWER();
    struct CUstream_st *on = known(stream);
    if (on->destroyed) return answer(cudaErrorInvalidResourceHandle);
    if (event->timed) {
        event->happened = false;
        put(on, (struct entry){.kind = STAMP, .event = event});
    }
    event->stream = on;
    event->position = on->submitted;
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    LIVE_OR_ANSWER();
    pthread_mutex_lock(&lock);
    if (event->stream) run_until(event->stream, event->position);
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    LIVE_OR_ANSWER();
    return !event->stream || event->stream->completed >= event->position ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    LIVE_OR_ANSWER();
    if (!begin->timed || !end->timed) return answer(cudaErrorInvalidResourceHandle);
    if (!begin->happened || !end->happened) return cudaErrorNotReady;
    *milliseconds = (float)(1e3 * (end->at - begin->at));
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    LIVE_OR_ANSWER();
    (void)flags;
    struct CUstream_st *waiting = known(stream);
    if (!event->stream || event->stream == waiting) return cudaSuccess;
    if (++waits == number("LS_STANDIN_DROP", "0")) {
        dropped++;
        return cudaSuccess;
    }
    put(waiting, (struct entry){.kind = WAIT, .source = event->stream, .position = event->position});
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument) {
    LIVE_OR_ANSWER();
    put(known(stream), (struct entry){.kind = RUN, .function = function, .argument = argument});
    return cudaSuccess;
}

/* ---- memory ---- */

static const struct allocation *find(const void *memory) {
    const struct allocation *a = allocations;
    while (a && ((const char *)memory < a->memory || (const char *)memory >= a->memory + (a->bytes ? a->bytes : 1)))
        a = a->next;
    return a;
}

static bool holds(const struct allocation *a, const void *memory, size_t bytes) {
    return a && bytes <= a->bytes - (size_t)((const char *)memory - a->memory);
}

bool ls_standin_is_device_memory(const void *memory, size_t bytes) {
    pthread_mutex_lock(&lock);
    const struct allocation *a = find(memory);
    const bool is = holds(a, memory, bytes) && a->device;
    pthread_mutex_unlock(&lock);
    return is;
}

static cudaError_t allocate(void **memory, size_t bytes, bool device) {
    *memory = NULL;
    if (bytes > SIZE_MAX - 2 * PAGE) return answer(cudaErrorMemoryAllocation);
    pthread_mutex_lock(&lock);
    const bool planted = device && ++asked == number("LS_STANDIN_FAIL", "0");
    const size_t mapped = (bytes + PAGE - 1) / PAGE * PAGE + (bytes == 0) * PAGE;
    struct allocation *made = malloc(sizeof *made);
    void *pages = MAP_FAILED;
    if (made && !planted && (!device || (bytes <= memory_limit() && used_bytes <= memory_limit() - bytes)))
        pages = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
        free(made);
        pthread_mutex_unlock(&lock);
        return answer(cudaErrorMemoryAllocation);
    }
    memset(pages, 0xff, mapped);
    *made =
        (struct allocation){.next = allocations, .memory = pages, .bytes = bytes, .mapped = mapped, .device = device};
    allocations = made;
    if (device) used_bytes += bytes;
    if (used_bytes > peak_bytes) peak_bytes = used_bytes;
    if (device && bytes <= GUARDED_MOST && is_guarded() && !opened && mprotect(pages, mapped, PROT_NONE)) abort();
    pthread_mutex_unlock(&lock);
    *memory = pages;
    return cudaSuccess;
}

static cudaError_t release(void *memory, bool device) {
    if (!memory) return cudaSuccess;
    drain_all();
    pthread_mutex_lock(&lock);
    struct allocation **place = &allocations;
    while (*place && (*place)->memory != memory) place = &(*place)->next;
    struct allocation *found = *place;
    if (!found || found->device != device) {
        pthread_mutex_unlock(&lock);
        return answer(cudaErrorInvalidValue);
    }
    *place = found->next;
    if (device) used_bytes -= found->bytes;
    munmap(found->memory, found->mapped);
    free(found);
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **memory, size_t bytes) {
    LIVE_OR_ANSWER();
    return allocate(memory, bytes, true);
}
cudaError_t cudaFree(void *memory) {
    LIVE_OR_ANSWER();
    return release(memory, true);
}
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags) {
    LIVE_OR_ANSWER();
    (void)flags;
    return allocate(memory, bytes, false);
}
cudaError_t cudaMallocHost(void **memory, size_t bytes) {
    return allocate(memory, bytes, false);
}
cudaError_t cudaFreeHost(void *memory) {
    LIVE_OR_ANSWER();
    return release(memory, false);
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    LIVE_OR_ANSWER();
    *total = memory_limit();
    *available = *total - used_bytes;
    return cudaSuccess;
}

struct copy {
    void *to;
    const void *from;
    size_t bytes, rows, to_pitch, from_pitch;
    int value;
};

/* Copies to the host that share one engine pass it in the order in which they were given: one that cannot begin yet
 * holds up those behind it, whatever their streams. */
static void enqueue_copy_to_host(cudaStream_t stream, void (*function)(void *), const struct copy *copy) {
    static pthread_mutex_t queue = PTHREAD_MUTEX_INITIALIZER;
    static struct CUstream_st *last;
    static uint64_t position;
    pthread_mutex_lock(&queue);
    if (last && last != known(stream))
        put(known(stream), (struct entry){.kind = WAIT, .source = last, .position = position});
    ls_standin_enqueue_copy(stream, function, copy, sizeof *copy);
    last = known(stream);
    position = last->submitted;
    pthread_mutex_unlock(&queue);
}

static void run_copy(void *argument) {
    const struct copy *copy = argument;
    memmove(copy->to, copy->from, copy->bytes);
}
static void run_fill(void *argument) {
    const struct copy *copy = argument;
    for (size_t row = 0; row < copy->rows; row++)
        memset((char *)copy->to + row * copy->to_pitch, copy->value, copy->bytes);
}

/* Each side is where the kind says, whole. Host memory that is not pinned makes the copy synchronous. */
static cudaError_t check_copy(const struct copy *copy, enum cudaMemcpyKind kind, bool *synchronous) {
    const struct allocation *to = find(copy->to), *from = find(copy->from);
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if ((to && to->device) != to_device || (from && from->device) != from_device) return cudaErrorInvalidValue;
    if ((to && !holds(to, copy->to, copy->bytes)) || (from && !holds(from, copy->from, copy->bytes)))
        return cudaErrorInvalidValue;
    *synchronous = !to || !from;
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    LIVE_OR_ANSWER();
    const struct copy copy = {.to = to, .from = from, .bytes = bytes};
    bool synchronous = false;
    pthread_mutex_lock(&lock);
    const cudaError_t status = check_copy(&copy, kind, &synchronous);
    pthread_mutex_unlock(&lock);
    if (status) return answer(status);
    if (kind == cudaMemcpyDeviceToHost && setting("LS_STANDIN_ENGINE", "")[0] == '1')
        enqueue_copy_to_host(stream, run_copy, &copy);
    else
        ls_standin_enqueue_copy(stream, run_copy, &copy, sizeof copy);
    if (synchronous) drain(known(stream));
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    const cudaError_t status = cudaMemcpyAsync(to, from, bytes, kind, NULL);
    drain(&null_stream);
    return status;
}
cudaError_t cudaMemset2DAsync(void *memory, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream) {
    LIVE_OR_ANSWER();
    if (height > 0 && !ls_standin_is_device_memory(memory, pitch * (height - 1) + width))
        return answer(cudaErrorInvalidValue);
    ls_standin_enqueue_copy(
        stream, run_fill,
        &(struct copy){.to = memory, .bytes = width, .rows = height, .to_pitch = pitch, .value = value},
        sizeof(struct copy));
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream) {
    return cudaMemset2DAsync(memory, bytes, value, bytes, 1, stream);
}
cudaError_t cudaMemset(void *memory, int value, size_t bytes) {
    const cudaError_t status = cudaMemsetAsync(memory, value, bytes, NULL);
    drain(&null_stream);
    return status;
}

/* ---- devices ---- */

static cudaError_t check_driver(void) {
    return driver_version() < RUNTIME / 1000 * 1000 ? cudaErrorInsufficientDriver : cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
    if (check_driver()) return answer(cudaErrorInsufficientDriver);
    if (number("LS_STANDIN_STATUS", "0")) return answer((cudaError_t)number("LS_STANDIN_STATUS", "0"));
    *count = device_count();
    return *count ? cudaSuccess : answer(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
    if (check_driver()) return answer(cudaErrorInsufficientDriver);
    if (device < 0 || device >= device_count()) return answer(cudaErrorInvalidDevice);
    if (setting("LS_STANDIN_EXCLUSIVE", "")[0] == '1') return answer(cudaErrorDevicesUnavailable);
    current_device = device;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    if (device < 0 || device >= device_count()) return answer(cudaErrorInvalidDevice);
    memset(properties, 0, sizeof *properties);
    snprintf(properties->name, sizeof properties->name, "%s", setting("LS_STANDIN_NAME", "Stand-in GPU"));
    properties->major = (int)number("LS_STANDIN_CAPABILITY", "90") / 10;
    properties->minor = (int)number("LS_STANDIN_CAPABILITY", "90") % 10;
    properties->multiProcessorCount = 4;
    properties->totalGlobalMem = memory_limit();
    properties->warpSize = 32;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    if (device < 0 || device >= device_count()) return answer(cudaErrorInvalidDevice);
    switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 4; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; return cudaSuccess;
    default: return answer(cudaErrorInvalidValue);
    }
}
/* Domain, bus and device of a PCI address; every GPU has a bus of its own. */
cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
    int seen[DEVICES_MOST];
    if (device < 0 || device >= see_devices(seen)) return answer(cudaErrorInvalidDevice);
    snprintf(text, (size_t)size, "0000:%02X:00.0", seen[device] + 1);
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = driver_version();
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = RUNTIME;
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void) {
    const cudaError_t status = is_dead() ? cudaErrorIllegalAddress : last_error;
    last_error = cudaSuccess;
    return status;
}
cudaError_t cudaPeekAtLastError(void) {
    return is_dead() ? cudaErrorIllegalAddress : last_error;
}
const char *cudaGetErrorName(cudaError_t status) {
    switch (status) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorDevicesUnavailable: return "cudaErrorDevicesUnavailable";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorSystemNotReady: return "cudaErrorSystemNotReady";
    default: return "another error";
    }
}
const char *cudaGetErrorString(cudaError_t status) {
    return status ? "the stand-in refuses this" : "no error";
}

__attribute__((destructor)) static void write_log(void) {
    const char *path = setting("LS_STANDIN_LOG", "");
    FILE *file = path[0] ? fopen(path, "a") : NULL;
    if (!file) return;
    fprintf(file, "peak_bytes %zu waits %lu dropped %lu launches %lu\n", peak_bytes, waits, dropped, launches);
    fclose(file);
}
