/* The graphs of attention against the real cuDNN: every descriptor of them finalises, and the library has engines for
 * them on GPUs that are only described to it. Without the library, or with one that is older than such descriptions,
 * the tests are skipped. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#if defined(LS_CUDA) && defined(LS_CUDNN)

#include "worker/device/backend.h"
#include "worker/device/cuda/sdpa_graph.h"
#include "worker/device/cuda/sdpa_plans.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct ls_cudnn *open_library(void) {
    const struct ls_cudnn *library = NULL;
    struct ls_error error;
    if (ls_library_cudnn(&library, &error) != LS_OK) {
        print_message("%s\n", error.text);
        skip();
    }
    return library;
}

/* The layout of a layer's packed rows [q: heads, k: kv heads, v: kv heads]. */
static struct ls_sdpa_shape packed_rows(int64_t batch, int64_t length, int64_t heads, int64_t kv_heads,
                                        int64_t head_size, enum ls_dtype dtype) {
    const int64_t row = (heads + 2 * kv_heads) * head_size, output = heads * head_size;
    return (struct ls_sdpa_shape){.batch = batch,
                                  .length = length,
                                  .heads = heads,
                                  .kv_heads = kv_heads,
                                  .head_size = head_size,
                                  .q_stride = row,
                                  .kv_stride = row,
                                  .output_stride = output,
                                  .q_batch_stride = length * row,
                                  .kv_batch_stride = length * row,
                                  .output_batch_stride = length * output,
                                  .dtype = dtype};
}

static const struct {
    int64_t batch, length, heads, kv_heads, head_size;
    enum ls_dtype dtype;
} shapes[] = {{16, 1024, 12, 12, 64, LS_BF16}, /* GPT-2 124M */
              {4, 4096, 32, 8, 128, LS_BF16},  /* Llama with shared key-value heads */
              {1, 1000, 25, 25, 64, LS_FP16},  /* a length that is no multiple of a tile */
              {3, 77, 6, 1, 8, LS_BF16},
              {2, 256, 4, 2, 256, LS_BF16}}; /* the largest heads */

static void every_descriptor_finalises(void **state) {
    const struct ls_cudnn *library = open_library();
    static struct ls_sdpa_graph graph;
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const struct ls_sdpa_shape shape = packed_rows(shapes[i].batch, shapes[i].length, shapes[i].heads,
                                                       shapes[i].kv_heads, shapes[i].head_size, shapes[i].dtype);
        for (int backward = 0; backward < 2; backward++) {
            const cudnnStatus_t status =
                (backward ? ls_sdpa_graph_backward : ls_sdpa_graph_forward)(library, NULL, &shape, &graph);
            if (status)
                fail_msg("shape %zu, %s: %s answered %d, %s", i, backward ? "backward" : "forward", graph.failed,
                         (int)status, library->cudnnGetErrorString(status));
            /* forward: 2 products, 2 reductions, 10 element-wise (scale, 4 of the mask, sub, exp, log, add, div);
             * backward: 5 products, a reduction and one for each of dk and dv where heads are shared, 12 element-wise,
             * 3 reshapes */
            const bool shared = shapes[i].heads != shapes[i].kv_heads;
            assert_int_equal(graph.operation_count, backward ? (shared ? 23 : 21) : 14);
            assert_null(graph.graph);
            ls_sdpa_graph_clear(&graph);
            assert_int_equal(graph.descriptor_count, 0);
        }
    }
}

/* The check above can fail: the library looks at what it is given. */
static void a_wrong_tensor_is_refused(void **state) {
    const struct ls_cudnn *library = open_library();
    static struct ls_sdpa_graph graph;
    struct ls_sdpa_shape shape = packed_rows(2, 64, 4, 4, 64, LS_BF16);
    (void)state;
    shape.length = -1;
    assert_int_not_equal(ls_sdpa_graph_forward(library, NULL, &shape, &graph), CUDNN_STATUS_SUCCESS);
    assert_non_null(graph.failed);
    ls_sdpa_graph_clear(&graph);
    shape = packed_rows(2, 64, 4, 3, 64, LS_BF16); /* 4 heads on 3 */
    assert_int_not_equal(ls_sdpa_graph_backward(library, NULL, &shape, &graph), CUDNN_STATUS_SUCCESS);
    ls_sdpa_graph_clear(&graph);
}

/* What differs between the GPUs that are described, as NVIDIA's data sheets and CUDA's guide have it. */
struct gpu {
    const char *name;
    int capability; /* in hundredths */
    int processors, shared_most, clock_khz, memory_clock_khz, cache;
    /* With a backward; larger heads are left to our kernels. cuDNN 9.19 has one for heads of 256 neither on an A100
     * with an H100's shared memory nor on one with its capability. */
    int64_t head_most;
};
static const struct gpu h100 = {"NVIDIA H100 80GB HBM3", 900, 132, 232448, 1980000, 2619000, 50 << 20, 256},
                        a100 = {"NVIDIA A100-SXM4-80GB", 800, 108, 166912, 1410000, 1593000, 40 << 20, 128};

/* All that cuDNN asks of a device. */
static void describe(const struct gpu *gpu, char *text, size_t size) {
    snprintf(text, size,
             "{\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],\"regsPerBlock\":65536,"
             "\"multiProcessorCount\":%d,\"warpSize\":32,\"maxSharedMemoryPerBlock\":49152,"
             "\"maxSharedMemoryPerBlockOptin\":%d,\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,"
             "\"maxCtasPerSM\":32,\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"pciDeviceId\":0,"
             "\"isTccDriver\":0,\"supportCoopLaunch\":1,\"totalGlobalMem\":85000000000,\"deviceName\":\"%s\","
             "\"smClockRateKHz\":%d,\"memClockRateKHz\":%d,\"l2CacheSize\":%d,\"cudaDeviceId\":0,"
             "\"deviceVer\":%d,\"driverVer\":13000}",
             gpu->processors, gpu->shared_most, gpu->name, gpu->clock_khz, gpu->memory_clock_khz, gpu->cache,
             gpu->capability);
}

/* A driver has to answer to its name before the library looks for one. */
static void open_driver(void) {
    char path[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", path, sizeof path - 64);
    assert_true(length > 0);
    path[length] = 0;
    snprintf(strrchr(path, '/'), 64, "/../standin/libcuda.so.1");
    if (!dlopen(path, RTLD_NOW | RTLD_GLOBAL)) fail_msg("%s", dlerror());
}

/* Skips where the library takes no descriptions. */
static cudnnBackendDescriptor_t make_device(const struct ls_cudnn *library, const struct gpu *gpu) {
    char text[1024];
    describe(gpu, text, sizeof text);
    cudnnBackendDescriptor_t device = NULL;
    cudnnStatus_t status = library->cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &device);
    if (!status)
        status = library->cudnnBackendSetAttribute(device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                                                   (int64_t)strlen(text), text);
    if (!status) status = library->cudnnBackendFinalize(device);
    if (!status) return device;
    print_message("cuDNN %s takes no description of a device: %s\n", library->version,
                  library->cudnnGetErrorString(status));
    skip();
    return NULL;
}

static cudnnBackendDescriptor_t add(struct ls_sdpa_graph *graph, cudnnBackendDescriptorType_t kind) {
    cudnnBackendDescriptor_t made = ls_sdpa_graph_add(graph, kind);
    if (!made) fail_msg("%s: %s", graph->failed, graph->library->cudnnGetErrorString(graph->status));
    return made;
}

static void set(struct ls_sdpa_graph *graph, cudnnBackendDescriptor_t to, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t count, const void *values) {
    const cudnnStatus_t status = graph->library->cudnnBackendSetAttribute(to, name, type, count, values);
    if (status) fail_msg("attribute %d: %s", (int)name, graph->library->cudnnGetErrorString(status));
}

static int64_t get_int64(struct ls_sdpa_graph *graph, cudnnBackendDescriptor_t of, cudnnBackendAttributeName_t name) {
    int64_t count = 0, value = -1;
    const cudnnStatus_t status =
        graph->library->cudnnBackendGetAttribute(of, name, CUDNN_TYPE_INT64, 1, &count, &value);
    if (status) fail_msg("attribute %d: %s", (int)name, graph->library->cudnnGetErrorString(status));
    return value;
}

static bool is_deterministic(struct ls_sdpa_graph *graph, cudnnBackendDescriptor_t engine) {
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    int64_t count = 0;
    assert_int_equal(graph->library->cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
                                                              CUDNN_TYPE_NUMERICAL_NOTE,
                                                              CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &count, notes),
                     CUDNN_STATUS_SUCCESS);
    for (int64_t i = 0; i < count; i++)
        if (notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) return false;
    return true;
}

/* Engines of the graph's operations that are deterministic and have a plan within `most` bytes. */
static int count_engines(struct ls_sdpa_graph *graph, cudnnBackendDescriptor_t device, int64_t most) {
    enum { PROPOSALS = 8 };
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    const struct ls_cudnn *library = graph->library;
    cudnnBackendDescriptor_t whole = add(graph, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR), configs[PROPOSALS],
                             question = add(graph, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    int64_t count = 0;
    int usable = 0;
    set(graph, whole, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, graph->operation_count,
        graph->operations);
    if (library->cudnnBackendFinalize(whole)) return 0;
    set(graph, question, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &whole);
    set(graph, question, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    set(graph, question, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &device);
    for (int i = 0; i < PROPOSALS; i++) configs[i] = add(graph, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (library->cudnnBackendFinalize(question) ||
        library->cudnnBackendGetAttribute(question, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                          PROPOSALS, &count, configs))
        return 0;
    for (int64_t i = 0; i < count && i < PROPOSALS; i++) {
        cudnnBackendDescriptor_t engine = add(graph, CUDNN_BACKEND_ENGINE_DESCRIPTOR),
                                 plan = add(graph, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        int64_t engines = 0;
        assert_int_equal(library->cudnnBackendGetAttribute(configs[i], CUDNN_ATTR_ENGINECFG_ENGINE,
                                                           CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &engines, &engine),
                         CUDNN_STATUS_SUCCESS);
        set(graph, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &configs[i]);
        set(graph, plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &device);
        if (library->cudnnBackendFinalize(plan)) continue;
        usable +=
            is_deterministic(graph, engine) && get_int64(graph, plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE) <= most;
    }
    return usable;
}

/* Forward of a whole micro-batch, backward of the piece that the plan of memory has room for: the workspace is within
 * it. */
static void has_deterministic_engines_within_the_planned_workspace(void **state) {
    const struct gpu *gpu = *state;
    open_driver();
    const struct ls_cudnn *library = open_library();
    cudnnBackendDescriptor_t device = make_device(library, gpu);
    static struct ls_sdpa_graph graph;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct ls_sdpa_shape shape = packed_rows(shapes[i].batch, shapes[i].length, shapes[i].heads, shapes[i].kv_heads,
                                                 shapes[i].head_size, shapes[i].dtype);
        const struct ls_op_attention_backward op = {.batch = shape.batch,
                                                    .length = shape.length,
                                                    .heads = shape.heads,
                                                    .kv_heads = shape.kv_heads,
                                                    .head_size = shape.head_size,
                                                    .dtype = shape.dtype};
        const struct ls_attention_piece piece = ls_cuda_attention_piece(&op);
        assert_int_equal(ls_sdpa_graph_forward(library, NULL, &shape, &graph), CUDNN_STATUS_SUCCESS);
        const int forward = count_engines(&graph, device, piece.bytes);
        ls_sdpa_graph_clear(&graph);
        shape.heads = piece.kv_heads * (shape.heads / shape.kv_heads);
        shape.kv_heads = piece.kv_heads;
        shape.batch = piece.batch;
        assert_int_equal(ls_sdpa_graph_backward(library, NULL, &shape, &graph), CUDNN_STATUS_SUCCESS);
        const int backward =
            count_engines(&graph, device, piece.bytes - ls_sdpa_sums_bytes(shape.batch * shape.heads * shape.length));
        ls_sdpa_graph_clear(&graph);
        if (forward == 0 || (backward == 0 && shape.head_size <= gpu->head_most))
            fail_msg("%s, shape %zu: %d engines forward and %d backward by cuDNN %s", gpu->name, i, forward, backward,
                     library->version);
    }
    library->cudnnBackendDestroyDescriptor(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_descriptor_finalises),
        cmocka_unit_test(a_wrong_tensor_is_refused),
        {"an_h100_has_deterministic_engines_within_the_planned_workspace",
         has_deterministic_engines_within_the_planned_workspace, NULL, NULL, (void *)&h100},
        {"an_a100_has_deterministic_engines_within_the_planned_workspace",
         has_deterministic_engines_within_the_planned_workspace, NULL, NULL, (void *)&a100}};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

static void there_is_nothing_to_test(void **state) {
    (void)state;
    print_message("this build has no CUDA, or cuDNN's headers were not there\n");
    skip();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(there_is_nothing_to_test)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
