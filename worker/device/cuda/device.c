/* The CUDA device: which GPU, its memory, its numerics id, and the way from an operation to its kernel. */
#include "worker/device/cuda/device.h"

#include "worker/device/cuda/gemm.h"
#include "worker/device/cuda/kernels.h"
#include "worker/device/cuda/monitor.h"
#include "worker/device/cuda/sdpa.h"
#include "worker/device/cuda/stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

enum { CAPABILITY_LEAST = 80 }; /* of the GPUs that the Makefile builds kernels for */

#define X(name)                                                                                                        \
    static cudaError_t run_##name(const void *arguments, cudaStream_t stream) {                                        \
        return ls_cuda_##name(arguments, stream);                                                                      \
    }
LS_OPERATIONS_BUT_PRODUCTS(X)
#undef X

static cudaError_t (*const kernels[LS_OP_COUNT])(const void *arguments, cudaStream_t stream) = {
#define X(name) [LS_OP_##name] = run_##name,
    LS_OPERATIONS_BUT_PRODUCTS(X)
#undef X
};

static struct ls_cuda_device *cuda_device(struct ls_device *device) {
    return (struct ls_cuda_device *)device;
}

void ls_cuda_use(const struct ls_cuda_device *device) {
    static _Thread_local int current = -1;
    if (current == device->index) return;
    if (cudaSetDevice(device->index) == cudaSuccess) current = device->index;
}

enum ls_code ls_cuda_fail(const struct ls_cuda_device *device, cudaError_t status, const char *what,
                          struct ls_error *error) {
    cudaGetLastError();
    if (status == cudaErrorMemoryAllocation)
        return ls_fail(
            error, LS_MEMORY, LS_SCOPE_RANK,
            "device: GPU %d (%s, %s) has no memory for %s: %.1f of %.1f MiB are free. Give this run a GPU of "
            "its own, or lower train.micro_batch_size.",
            device->index, device->info.name, device->info.bus_id, what,
            (double)ls_device_free_bytes(&device->base) / 1048576, (double)device->info.memory_bytes / 1048576);
    return ls_fail(error, LS_ERROR, LS_SCOPE_RANK, "device: GPU %d (%s, %s) failed at %s: %s (%s). %s", device->index,
                   device->info.name, device->info.bus_id, what, cudaGetErrorName(status), cudaGetErrorString(status),
                   status == cudaErrorDevicesUnavailable
                       ? "Another process has it for itself, or its compute mode lets nobody in (nvidia-smi -q -d "
                         "COMPUTE,PIDS): end that process, or take another GPU."
                       : "Look for Xid in the kernel's log; if there is none, run a short step under compute-sanitizer "
                         "and report what it says.");
}

cudaError_t ls_cuda_fault(const struct ls_cuda_device *device) {
    size_t available, total;
    ls_cuda_use(device);
    return cudaMemGetInfo(&available, &total);
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int ls_cuda_warm_up(cudaStream_t stream, int (*work)(void *context), void *context) {
    const double end = seconds_now() + 0.1;
    int failed = 0;
    while (!failed && seconds_now() < end) {
        failed = work(context);
        if (!failed) failed = (int)cudaStreamSynchronize(stream);
    }
    return failed;
}

static void destroy(struct ls_device *base) {
    struct ls_cuda_device *device = cuda_device(base);
    ls_cuda_use(device);
    ls_cuda_monitor_stop(device->monitor);
    ls_cuda_streams_finalize(device);
    ls_cuda_sdpa_destroy(device->sdpa);
    ls_cuda_gemm_destroy(device->gemm);
    pthread_mutex_destroy(&device->lock);
    free(device);
}

static void *allocate(struct ls_device *base, size_t bytes) {
    void *memory = NULL;
    ls_cuda_use(cuda_device(base));
    if (cudaMalloc(&memory, bytes ? bytes : 1) || cudaMemset(memory, 0, bytes ? bytes : 1) || cudaDeviceSynchronize()) {
        cudaGetLastError();
        if (memory) cudaFree(memory);
        return NULL;
    }
    return memory;
}

static void release(struct ls_device *base, void *memory) {
    ls_cuda_use(cuda_device(base));
    cudaFree(memory);
}

static void *allocate_host(struct ls_device *base, size_t bytes) {
    void *memory = NULL;
    ls_cuda_use(cuda_device(base));
    if (cudaHostAlloc(&memory, bytes ? bytes : 1, cudaHostAllocPortable)) {
        cudaGetLastError();
        return NULL;
    }
    memset(memory, 0, bytes ? bytes : 1);
    return memory;
}

static void release_host(struct ls_device *base, void *memory) {
    ls_cuda_use(cuda_device(base));
    cudaFreeHost(memory);
}

static void submit(struct ls_stream *stream, enum ls_op op, const void *arguments, size_t bytes) {
    struct ls_cuda_device *device = cuda_device(stream->device);
    enum ls_dtype dtype;
    struct ls_error error;
    (void)bytes;
    if (device->rehearsing) {
        if (op == LS_OP_gemm) ls_cuda_gemm_note(device->gemm, arguments);
        if (op == LS_OP_attention_forward || op == LS_OP_attention_backward)
            ls_cuda_sdpa_note(device->sdpa, op, arguments);
        return;
    }
    if (ls_cuda_stream_has_failed(stream)) return;
    if (ls_op_type(op, arguments, &dtype, &error)) {
        ls_cuda_stream_fail(stream, &error);
        return;
    }
    ls_cuda_use(device);
    if (op == LS_OP_attention_forward && ls_cuda_sdpa_forward(device->sdpa, stream, arguments)) return;
    if (op == LS_OP_attention_backward && ls_cuda_sdpa_backward(device->sdpa, stream, arguments)) return;
    if (op == LS_OP_gemm)
        ls_cuda_gemm(device->gemm, stream, arguments);
    else
        ls_cuda_stream_note(stream, kernels[op](arguments, ls_cuda_stream(stream)), ls_op_name(op));
}

static const struct ls_device_info *info(const struct ls_device *device) {
    return &((const struct ls_cuda_device *)device)->info;
}

static int64_t free_bytes(const struct ls_device *device) {
    size_t available = 0, total = 0;
    ls_cuda_use((const struct ls_cuda_device *)device);
    if (cudaMemGetInfo(&available, &total) == cudaSuccess) return (int64_t)available;
    cudaGetLastError();
    return 0;
}

static struct ls_device_gauges gauges(const struct ls_device *device) {
    return ls_cuda_monitor_read(((const struct ls_cuda_device *)device)->monitor);
}

static void rehearse(struct ls_device *device, bool on) {
    cuda_device(device)->rehearsing = on;
}

/* Choices are these, then those of products. */
struct choices {
    uint64_t identity; /* of this program, GPU and libraries */
    struct ls_sdpa_choice attention;
};

static uint64_t identity_of(const struct ls_cuda_device *device) {
    char text[sizeof device->base.numerics_id + sizeof LS_VERSION];
    const int length = snprintf(text, sizeof text, "%s%s", LS_VERSION, device->base.numerics_id);
    return XXH3_64bits(text, (size_t)length);
}

/* What libraries took of the GPU since: kernels that they loaded, a handle. */
static void count_overhead(struct ls_cuda_device *device, int64_t free_before) {
    const int64_t taken = free_before - free_bytes(&device->base);
    if (taken > 0) device->info.overhead_bytes += taken;
}

static bool recall(struct ls_device *base, const void *choices, int64_t bytes) {
    struct ls_cuda_device *device = cuda_device(base);
    struct choices head;
    if (bytes < (int64_t)sizeof head) return false;
    memcpy(&head, choices, sizeof head);
    const int64_t free_before = free_bytes(base);
    const bool fits =
        head.identity == identity_of(device) &&
        ls_cuda_gemm_covers(device->gemm, (const char *)choices + sizeof head, bytes - (int64_t)sizeof head) &&
        (device->sdpa ? ls_cuda_sdpa_recall(device->sdpa, &head.attention) : !head.attention.used);
    count_overhead(device, free_before);
    return fits;
}

static enum ls_code choose(struct ls_device *base, void **choices, int64_t *bytes, struct ls_error *error) {
    struct ls_cuda_device *device = cuda_device(base);
    struct choices head = {.identity = identity_of(device)};
    void *products = NULL;
    int64_t product_bytes = 0;
    const int64_t free_before = free_bytes(base);
    enum ls_code code = ls_cuda_gemm_choose(device->gemm, &products, &product_bytes, error);
    if (code) return code;
    if (device->sdpa) ls_cuda_sdpa_choose(device->sdpa, &head.attention);
    count_overhead(device, free_before);
    char *all = malloc(sizeof head + (size_t)product_bytes);
    if (!all) {
        free(products);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "device: no memory for %lld bytes of choices",
                       (long long)product_bytes);
    }
    memcpy(all, &head, sizeof head);
    if (product_bytes) memcpy(all + sizeof head, products, (size_t)product_bytes);
    free(products);
    *choices = all;
    *bytes = (int64_t)sizeof head + product_bytes;
    return LS_OK;
}

static enum ls_code adopt(struct ls_device *base, const void *choices, int64_t bytes, bool *whole,
                          struct ls_error *error) {
    struct ls_cuda_device *device = cuda_device(base);
    struct choices head;
    if (bytes < (int64_t)sizeof head)
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB,
                       "device: %lld bytes of choices are not of this program. Do all ranks run the same build?",
                       (long long)bytes);
    memcpy(&head, choices, sizeof head);
    const int64_t free_before = free_bytes(base);
    *whole = device->sdpa ? ls_cuda_sdpa_adopt(device->sdpa, &head.attention) : !head.attention.used;
    count_overhead(device, free_before);
    return ls_cuda_gemm_adopt(device->gemm, (const char *)choices + sizeof head, bytes - (int64_t)sizeof head, error);
}

static void abandon(struct ls_device *device) {
    ls_cuda_sdpa_abandon(cuda_device(device)->sdpa);
}

static const struct ls_backend backend = {
    .device_destroy = destroy,
    .allocate = allocate,
    .free = release,
    .allocate_host = allocate_host,
    .free_host = release_host,
    .stream_create = ls_cuda_stream_create,
    .stream_destroy = ls_cuda_stream_destroy,
    .stream_synchronize = ls_cuda_stream_synchronize,
    .stream_wait = ls_cuda_stream_wait,
    .stream_wait_measured = ls_cuda_stream_wait_measured,
    .stream_waited_seconds = ls_cuda_stream_waited_seconds,
    .stream_copy = ls_cuda_stream_copy,
    .stream_fill_zero = ls_cuda_stream_fill_zero,
    .stream_call = ls_cuda_stream_call,
    .stream_submit = submit,
    .event_create = ls_cuda_event_create,
    .event_destroy = ls_cuda_event_destroy,
    .event_record = ls_cuda_event_record,
    .event_synchronize = ls_cuda_event_synchronize,
    .info = info,
    .free_bytes = free_bytes,
    .gauges = gauges,
    .rehearse = rehearse,
    .recall = recall,
    .choose = choose,
    .adopt = adopt,
    .abandon = abandon,
    .workspace = ls_cuda_planned_workspace,
};

static int major_of(int version) {
    return version / 1000;
}
static int minor_of(int version) {
    return version % 1000 / 10;
}

/* What helps where the driver is there and has no GPU to show. */
static const char *remedy_of(cudaError_t status) {
    switch (status) {
    case cudaErrorSystemNotReady:
        return "Start the fabric manager of its NVSwitches (systemctl start nvidia-fabricmanager)";
    case cudaErrorSystemDriverMismatch:
        return "Its kernel module and its libraries are of different versions: load the module again, or restart the "
               "host";
    case cudaErrorCompatNotSupportedOnDevice:
        return "Take the libraries of CUDA's forward compatibility (cuda-compat) off the loader's path";
    case cudaErrorMpsConnectionFailed: return "Start the daemon of MPS, or unset CUDA_MPS_PIPE_DIRECTORY";
    default: return "Run nvidia-smi";
    }
}

static enum ls_code refuse_driver(cudaError_t status, struct ls_error *error) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    cudaGetLastError();
    if (status == cudaErrorInsufficientDriver && driver == 0)
        return ls_fail(error, LS_USAGE, LS_SCOPE_NODE,
                       "device: no NVIDIA driver is loaded on this host (CUDA says: %s). Run where nvidia-smi shows a "
                       "GPU, or use device: cpu.",
                       cudaGetErrorName(status));
    if (status == cudaErrorInsufficientDriver || (driver > 0 && major_of(driver) < major_of(runtime)))
        return ls_fail(error, LS_USAGE, LS_SCOPE_NODE,
                       "device: this host's NVIDIA driver is for CUDA %d.%d, this program was built with CUDA %d.%d. "
                       "Update the driver, build with an older toolkit (make CUDA=PATH), or use device: cpu.",
                       major_of(driver), minor_of(driver), major_of(runtime), minor_of(runtime));
    return ls_fail(error, LS_USAGE, LS_SCOPE_NODE,
                   "device: the NVIDIA driver shows no GPU: %s (%s). %s, or use device: cpu.", cudaGetErrorName(status),
                   cudaGetErrorString(status), remedy_of(status));
}

enum ls_code ls_device_count_cuda(int *count, struct ls_error *error) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    int found = 0;
    *count = 0;
    const cudaError_t status = cudaGetDeviceCount(&found);
    if (status != cudaSuccess && status != cudaErrorNoDevice) return refuse_driver(status, error);
    cudaGetLastError();
    if (status == cudaErrorNoDevice || found == 0)
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_NODE,
            "device: the NVIDIA driver shows no GPU to this process (CUDA_VISIBLE_DEVICES is %s%.100s%s). Ask "
            "the batch system for GPUs, correct the variable, or use device: cpu.",
            visible ? "'" : "not set", visible ? visible : "", visible ? "'" : "");
    *count = found;
    return LS_OK;
}

static cudaError_t describe_gpu(struct ls_cuda_device *device) {
    struct ls_device_info *info_of = &device->info;
    struct cudaDeviceProp properties;
    size_t available = 0, total = 0;
    info_of->kind = LS_DEVICE_KIND_CUDA;
    cudaError_t status = cudaGetDeviceProperties(&properties, device->index);
    if (!status) status = cudaDeviceGetPCIBusId(info_of->bus_id, sizeof info_of->bus_id, device->index);
    if (status) return status;
    snprintf(info_of->name, sizeof info_of->name, "%s", properties.name);
    info_of->capability = properties.major * 10 + properties.minor;
    status = cudaSetDevice(device->index);
    if (!status) status = cudaMemGetInfo(&available, &total); /* makes the context */
    info_of->memory_bytes = (int64_t)total;
    return status;
}

/* There is no kernel for it, nor one that its driver could make. */
static enum ls_code refuse_old(const struct ls_cuda_device *device, struct ls_error *error) {
    return ls_fail(error, LS_USAGE, LS_SCOPE_RANK,
                   "device: GPU %d (%s, %s) has compute capability %d.%d, this program was built for %d.%d and newer. "
                   "Use a newer GPU, or device: cpu.",
                   device->index, device->info.name, device->info.bus_id, device->info.capability / 10,
                   device->info.capability % 10, CAPABILITY_LEAST / 10, CAPABILITY_LEAST % 10);
}

/* What the GPU's results depend on. */
static void describe_numerics(struct ls_cuda_device *device, bool tf32) {
    char *text = device->base.numerics_id;
    const char *cudnn = ls_cuda_sdpa_version(device->sdpa);
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    snprintf(text, sizeof device->base.numerics_id,
             "cuda; %s; compute capability %d.%d; driver CUDA %d.%d; runtime CUDA %d.%d; cuBLASLt %s%s%s%s",
             device->info.name, device->info.capability / 10, device->info.capability % 10, major_of(driver),
             minor_of(driver), major_of(runtime), minor_of(runtime), ls_cuda_gemm_library(device->gemm)->version,
             cudnn ? "; cuDNN " : "", cudnn ? cudnn : "", tf32 ? "; TF32" : "");
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < ' ' || (unsigned char)*c > '~') *c = '?';
}

enum ls_code ls_device_create_cuda(int index, bool tf32, struct ls_device **out, struct ls_error *error) {
    int count;
    enum ls_code code = ls_device_count_cuda(&count, error);
    if (code) return code;
    if (index < 0 || index >= count)
        return ls_fail(error, LS_USAGE, LS_SCOPE_RANK,
                       "device: GPU %d was asked for, this process sees %d (numbers count from 0).", index, count);
    struct ls_cuda_device *device = calloc(1, sizeof *device);
    if (!device)
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK,
                       "device: no memory for a device of %zu bytes. Free memory on this host.", sizeof *device);
    device->base.backend = &backend;
    device->index = index;
    pthread_mutex_init(&device->lock, NULL);
    const cudaError_t status = describe_gpu(device);
    code = status ? ls_cuda_fail(device, status, "its start", error) : LS_OK;
    if (!code && device->info.capability < CAPABILITY_LEAST) code = refuse_old(device, error);
    if (!code) code = ls_cuda_gemm_create(device, tf32, &device->gemm, error);
    if (!code) code = ls_cuda_sdpa_create(device, &device->sdpa, error);
    if (code) {
        destroy(&device->base);
        return code;
    }
    device->info.overhead_bytes = device->info.memory_bytes - free_bytes(&device->base);
    describe_numerics(device, tf32);
    device->monitor = ls_cuda_monitor_start(device);
    *out = &device->base;
    return LS_OK;
}
