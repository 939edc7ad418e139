/* The CPU device: its memory, its numerics id, and the way from an operation to its kernel. */
#include "worker/device/cpu/pairs.h"
#include "worker/device/cpu/kernels.h"
#include "worker/device/cpu/low_precision_kernels.h"
#include "worker/device/cpu/stream.h"

#include <cblas.h>
#include <dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { CACHE_LINE = 64, HUGE_PAGE = 2 << 20, MODEL_BYTES = 128 };

#define X(name)                                                                                                        \
    static void run_##name(int threads, const void *arguments) {                                                       \
        ls_cpu_##name(threads, arguments);                                                                             \
    }
LS_OPERATIONS(X)
#undef X

static void (*const kernels[LS_OP_COUNT])(int threads, const void *arguments) = {
#define X(name) run_##name,
    LS_OPERATIONS(X)
#undef X
};

#define X(name)                                                                                                        \
    static void run_low_##name(int threads, const void *arguments) {                                                   \
        ls_cpu_low_##name(threads, arguments);                                                                         \
    }
LS_LOW_PRECISION_OPERATIONS(X)
#undef X

/* For bf16 and fp16; NULL: the operation's kernel handles every type itself. */
static void (*const low_precision_kernels[LS_OP_COUNT])(int threads, const void *arguments) = {
#define X(name) [LS_OP_##name] = run_low_##name,
    LS_LOW_PRECISION_OPERATIONS(X)
#undef X
};

/* What a product is asked for beside its result. */
static void sum_columns(int threads, const struct ls_op_gemm *op) {
    const struct ls_op_bias_backward sums = {.bias_gradient = op->bias_gradient,
                                             .output_gradient = op->b,
                                             .rows = op->k,
                                             .columns = op->n,
                                             .dtype = op->dtype};
    if (!op->bias_gradient) return;
    if (op->dtype == LS_FP32)
        ls_cpu_bias_backward(threads, &sums);
    else
        ls_cpu_low_bias_backward(threads, &sums);
}

enum ls_code ls_cpu_run(int threads, bool fixed, enum ls_op op, const void *arguments, struct ls_error *error) {
    enum ls_dtype dtype = LS_FP32;
    enum ls_code code = ls_op_type(op, arguments, &dtype, error);
    if (code) return code;
    /* The libraries size their teams by this thread's setting: one thread each, since the kernels share out the work
     * themselves. */
    const int before = omp_get_max_threads();
    if (before != 1) omp_set_num_threads(1);
    const bool by_shape = op == LS_OP_gemm && (fixed || ((const struct ls_op_gemm *)arguments)->by_shape);
    if (dtype != LS_FP32 && low_precision_kernels[op])
        low_precision_kernels[op](threads, arguments);
    else if (by_shape)
        ls_cpu_gemm_fixed(threads, arguments);
    else
        kernels[op](threads, arguments);
    if (op == LS_OP_gemm) sum_columns(threads, arguments);
    if (before != 1) omp_set_num_threads(before);
    return LS_OK;
}

static void *allocate(struct ls_device *device, size_t bytes) {
    (void)device;
    const size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : CACHE_LINE;
    if (bytes > PTRDIFF_MAX - alignment) return NULL;
    const size_t rounded = bytes ? (bytes + alignment - 1) / alignment * alignment : alignment;
    void *memory = aligned_alloc(alignment, rounded);
    if (!memory) return NULL;
    if (alignment == HUGE_PAGE) madvise(memory, rounded, MADV_HUGEPAGE); /* advice only: without it pages are small */
    memset(memory, 0, rounded);
    return memory;
}

static void release(struct ls_device *device, void *memory) {
    (void)device;
    free(memory);
}

static void destroy(struct ls_device *base) {
    struct ls_cpu_device *device = (struct ls_cpu_device *)base;
    ls_cpu_streams_finalize(device);
    free(device);
}

static size_t workspace(const struct ls_device *device, enum ls_op op, const void *arguments) {
    (void)device;
    const struct ls_op_attention_forward *forward = arguments;
    const struct ls_op_attention_backward *backward = arguments;
    if (op == LS_OP_attention_forward && forward->dtype != LS_FP32)
        return ls_cpu_low_attention_forward_workspace(forward);
    if (op == LS_OP_attention_backward && backward->dtype != LS_FP32)
        return ls_cpu_low_attention_backward_workspace(backward);
    return 0; /* what other kernels keep fits their stacks */
}

static const struct ls_device_info *info(const struct ls_device *device) {
    static const struct ls_device_info cpu = {.kind = LS_DEVICE_KIND_CPU};
    (void)device;
    return &cpu;
}

static int64_t free_bytes(const struct ls_device *device) {
    (void)device;
    return 0;
}

static const struct ls_backend backend = {
    .host_reads = true,
    .device_destroy = destroy,
    .allocate = allocate,
    .free = release,
    .allocate_host = allocate,
    .free_host = release,
    .stream_create = ls_cpu_stream_create,
    .stream_destroy = ls_cpu_stream_destroy,
    .stream_synchronize = ls_cpu_stream_synchronize,
    .stream_wait = ls_cpu_stream_wait,
    .stream_wait_measured = ls_cpu_stream_wait_measured,
    .stream_waited_seconds = ls_cpu_stream_waited_seconds,
    .stream_copy = ls_cpu_stream_copy,
    .stream_fill_zero = ls_cpu_stream_fill_zero,
    .stream_call = ls_cpu_stream_call,
    .stream_submit = ls_cpu_stream_submit,
    .event_create = ls_cpu_event_create,
    .event_destroy = ls_cpu_event_destroy,
    .event_record = ls_cpu_event_record,
    .event_synchronize = ls_cpu_event_synchronize,
    .info = info,
    .free_bytes = free_bytes,
    .workspace = workspace,
};

/* The first processor's name or, where Linux has none (Arm), the numbers of its maker, design and revision. */
static void cpu_model(char model[MODEL_BYTES]) {
    static const char *const parts[] = {"model name", "CPU implementer", "CPU variant", "CPU part", "CPU revision"};
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[8192]; /* room for the names of all features */
    size_t length = 0;
    while (file && fgets(line, sizeof line, file) && line[0] != '\n') {
        const char *value = line + strcspn(line, ":\n");
        line[strcspn(line, "\n")] = '\0';
        value += strspn(value, ": ");
        for (size_t i = 0; i < sizeof parts / sizeof *parts && length < MODEL_BYTES; i++)
            if (strncmp(line, parts[i], strlen(parts[i])) == 0)
                length += (size_t)snprintf(model + length, MODEL_BYTES - length, "%s%s", length ? " " : "", value);
    }
    if (file) fclose(file);
    if (!length) snprintf(model, MODEL_BYTES, "unknown CPU");
}

static const char *instruction_set(void) {
#if defined(__AVX512F__)
    return "avx512";
#elif defined(__AVX2__)
    return "avx2";
#elif defined(__ARM_FEATURE_SVE)
    return "sve";
#elif defined(__ARM_NEON)
    return "neon";
#else
    return "baseline";
#endif
}

static void describe(char *text, size_t size) {
    char model[MODEL_BYTES];
    const dnnl_version_t *onednn = dnnl_version();
    const char *pairs = ls_pairs_unit(), *openblas = openblas_get_config(); /* "OpenBLAS 0.3.21 ..." */
    const size_t name = strcspn(openblas, " "), version = openblas[name] ? strcspn(openblas + name + 1, " ") + 1 : 0;
    cpu_model(model);
    snprintf(text, size, "cpu; %s; kernels %s%s%s, %s; %.*s %s; oneDNN %d.%d.%d isa %d", model, instruction_set(),
             pairs ? " and " : "", pairs ? pairs : "", __VERSION__, (int)(name + version), openblas,
             openblas_get_corename(), onednn->major, onednn->minor, onednn->patch, (int)dnnl_get_effective_cpu_isa());
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < ' ' || (unsigned char)*c > '~') *c = '?';
}

enum ls_code ls_device_create_cpu(int threads, enum ls_stream_order order, struct ls_device **out,
                                  struct ls_error *error) {
    if (threads < 0)
        return ls_fail(error, LS_USAGE, LS_SCOPE_RANK,
                       "device: %d threads were asked for. Give 1 or more, or 0 for all.", threads);
    struct ls_cpu_device *device = calloc(1, sizeof *device);
    if (!device)
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK,
                       "device: no memory for a device of %zu bytes. Free memory on this host.", sizeof *device);
    device->base.backend = &backend;
    device->threads = threads ? threads : omp_get_max_threads();
    device->order = order;
    ls_cpu_streams_initialize(device);
    describe(device->base.numerics_id, sizeof device->base.numerics_id);
    *out = &device->base;
    return LS_OK;
}
