/* Machines for the prediction: GPUs by their data sheets, this host's CPUs by a short measurement. */
#define _GNU_SOURCE
#include "worker/device/device.h"
#include "worker/memory/cost.h"
#include "worker/memory/host_memory.h"

#include <sched.h>
#include <stdio.h>
#include <time.h>

/* Of the data sheet's rate: large dense models reach 40 to 55 % of it (Chowdhery et al. 2022, table 3; Grattafiori et
 * al. 2024, section 3.3). Of the rate that products alone reach on CPUs: attention, norms and the loss take the rest.
 */
static const double gpu_efficiency = 0.45, cpu_efficiency = 0.6;

/* A byte that passes through shared memory is written, read, and read and written again with the sum. */
enum { COPIES_OF_A_BYTE = 4 };

enum { VECTOR_ELEMENTS = 4 << 20, ROWS_MAX = 1024, COLUMNS_MIN = 64, COLUMNS_MAX = 1024 };
static const double measure_seconds = 0.1;

struct ls_cost_machine ls_cost_machine_of_gpu(const struct ls_gpu *gpu, bool half, int64_t ranks_per_node,
                                              double node_link_bytes_per_second) {
    struct ls_cost_machine machine = {.gpu = true,
                                      .flops_per_second = half ? gpu->half_flops : gpu->fp32_flops,
                                      .efficiency = gpu_efficiency,
                                      .memory_bytes_per_second = gpu->memory_bytes_per_second,
                                      .memory_bytes = gpu->memory_bytes,
                                      .ranks_per_node = ranks_per_node,
                                      .local_link_bytes_per_second = gpu->link_bytes_per_second,
                                      .node_link_bytes_per_second = node_link_bytes_per_second};
    snprintf(machine.name, sizeof machine.name, "%s", gpu->full_name);
    return machine;
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int64_t between(int64_t value, int64_t least, int64_t most) {
    return value < least ? least : value > most ? most : value;
}

/* A product as it is shaped, or without one a sum of vectors. */
static void put(struct ls_stream *stream, float *memory, const struct ls_op_gemm *product) {
    if (product) {
        const int64_t rows = product->m, columns = product->n;
        float *a = memory, *b = a + rows * columns, *c = b + columns * columns;
        ls_op(stream, gemm, .c = c, .a = a, .b = b, .m = rows, .n = columns, .k = columns, .lda = columns,
              .ldb = columns, .ldc = columns, .dtype = product->dtype);
    } else {
        ls_op(stream, add, .sum = memory, .a = memory, .b = memory + VECTOR_ELEMENTS, .count = VECTOR_ELEMENTS);
    }
}

/* The work of one repetition over the seconds of the fastest. */
static enum ls_code measure(struct ls_device *device, const struct ls_op_gemm *product, double work, double *rate,
                            struct ls_error *error) {
    float *memory = ls_device_allocate(device, 2 * VECTOR_ELEMENTS * sizeof(float));
    struct ls_stream *stream = ls_stream_create(device, false);
    enum ls_code code = LS_OK;
    if (!memory || !stream)
        code = ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "plan: no 32 MiB for measuring this CPU. Free some memory.");
    double fastest = 0;
    for (const double begin = seconds_now(); !code && (fastest == 0 || seconds_now() - begin < measure_seconds);) {
        const double start = seconds_now();
        put(stream, memory, product);
        code = ls_stream_synchronize(stream, error);
        const double seconds = seconds_now() - start;
        if (fastest == 0 || seconds < fastest) fastest = seconds;
    }
    if (!code) *rate = work / fastest;
    if (stream) ls_stream_destroy(stream);
    ls_device_free(device, memory);
    return code;
}

static enum ls_code measure_with(int threads, const struct ls_op_gemm *product, double work, double *rate,
                                 struct ls_error *error) {
    struct ls_device *device;
    enum ls_code code = ls_device_create_cpu(threads, LS_STREAMS_EAGER, &device, error);
    if (code) return code;
    code = measure(device, product, work, rate, error);
    ls_device_destroy(device);
    return code;
}

enum ls_code ls_cost_machine_measure(int threads, int64_t ranks_per_node, double node_link_bytes_per_second,
                                     int64_t rows, int64_t columns, enum ls_dtype dtype,
                                     struct ls_cost_machine *machine, struct ls_error *error) {
    cpu_set_t set;
    const int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    if (threads == 0) threads = (int)between(cores / ranks_per_node, 1, cores);
    const double wanted = (double)threads * (double)ranks_per_node;
    const double share = wanted > cores ? cores / wanted : 1; /* of a core that a thread gets */
    rows = between(rows, 1, ROWS_MAX);
    columns = between(columns, COLUMNS_MIN, COLUMNS_MAX);
    *machine = (struct ls_cost_machine){.measured = true,
                                        .efficiency = cpu_efficiency,
                                        .memory_bytes = ls_host_memory_bytes() / ranks_per_node,
                                        .ranks_per_node = ranks_per_node,
                                        .node_link_bytes_per_second = node_link_bytes_per_second};
    double products, sums;
    const struct ls_op_gemm product = {.m = rows, .n = columns, .dtype = dtype};
    enum ls_code code = measure_with(threads, &product, 2.0 * (double)(rows * columns * columns), &products, error);
    if (!code)
        code = measure_with(wanted < cores ? (int)wanted : cores, NULL, 3.0 * VECTOR_ELEMENTS * sizeof(float), &sums,
                            error);
    if (code) return code;
    snprintf(machine->name, sizeof machine->name, "the CPUs of this host, %d thread%s a rank", threads,
             threads == 1 ? "" : "s");
    machine->flops_per_second = products * share;
    machine->memory_bytes_per_second = sums / (double)ranks_per_node;
    machine->local_link_bytes_per_second = machine->memory_bytes_per_second / COPIES_OF_A_BYTE;
    return LS_OK;
}
