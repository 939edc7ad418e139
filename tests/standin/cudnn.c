/* cuDNN's backend descriptors: attributes are kept as they are set, looked at when a descriptor is finalised, and a
 * graph of them is executed by cudnn_graph.c. LS_STANDIN_CUDNN says what is wrong with it (standin.h). */
#include "tests/standin/cudnn_graph.h"
#include "tests/standin/standin.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ATTRIBUTES_MAX = 8, ENGINES = 3, ENGINE_FIRST = 3, TILE = 128, EXECUTIONS_BEFORE_FAILURE = 12 };

struct attribute {
    cudnnBackendAttributeName_t name;
    int64_t count;
    void *values;
};

struct descriptor {
    cudnnBackendDescriptorType_t kind;
    bool finalized;
    int attribute_count;
    struct attribute attributes[ATTRIBUTES_MAX];
    struct graph *graph; /* graphs own theirs; what is made from them points there */
    int position;        /* of an engine among the proposals */
};

struct cudnnContext {
    cudaStream_t stream;
};

static atomic_ulong forwards, backwards;

__attribute__((destructor)) static void write_log(void) {
    const char *path = getenv("LS_STANDIN_CUDNN_LOG");
    FILE *file = path && path[0] ? fopen(path, "a") : NULL;
    if (!file) return;
    fprintf(file, "forward %lu backward %lu\n", atomic_load(&forwards), atomic_load(&backwards));
    fclose(file);
}

/* "old:1": on rank 1 alone. */
static bool is(const char *fault) {
    const char *setting = getenv("LS_STANDIN_CUDNN"), *rank = getenv("OMPI_COMM_WORLD_RANK");
    const size_t length = strlen(fault);
    if (!setting || strncmp(setting, fault, length) != 0) return false;
    return !setting[length] || (setting[length] == ':' && rank && strcmp(setting + length + 1, rank) == 0);
}

/* What may be set, in which type, how often, and what has to be. */
static const struct {
    cudnnBackendDescriptorType_t kind;
    cudnnBackendAttributeName_t name;
    cudnnBackendAttributeType_t type;
    int64_t count_most;
    bool needed;
} known[] = {
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, true},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, true},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, AXES, true},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, AXES, true},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, true},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, false},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, false},
    {CUDNN_BACKEND_MATMUL_DESCRIPTOR, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, true},
    {CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, CUDNN_ATTR_OPERATION_MATMUL_ADESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
     true},
    {CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, CUDNN_ATTR_OPERATION_MATMUL_BDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
     true},
    {CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, CUDNN_ATTR_OPERATION_MATMUL_CDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
     true},
    {CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, CUDNN_ATTR_OPERATION_MATMUL_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
     true},
    {CUDNN_BACKEND_POINTWISE_DESCRIPTOR, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, true},
    {CUDNN_BACKEND_POINTWISE_DESCRIPTOR, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, true},
    {CUDNN_BACKEND_POINTWISE_DESCRIPTOR, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, false},
    {CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true},
    {CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR,
     1, true},
    {CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR,
     1, false},
    {CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR,
     1, false},
    {CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR,
     1, true},
    {CUDNN_BACKEND_REDUCTION_DESCRIPTOR, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, true},
    {CUDNN_BACKEND_REDUCTION_DESCRIPTOR, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, true},
    {CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR,
     1, true},
    {CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR,
     1, true},
    {CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, CUDNN_ATTR_OPERATION_REDUCTION_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR,
     1, true},
    {CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
     true},
    {CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
     true},
    {CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, true},
    {CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, NODES_MAX,
     true},
    {CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
     true},
    {CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, true},
    {CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, true},
    {CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
     true},
    {CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, TENSORS_MAX, true},
    {CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, TENSORS_MAX,
     true},
    {CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, true},
};
enum { KNOWN = sizeof known / sizeof *known };

static size_t bytes_of(cudnnBackendAttributeType_t type) {
    switch (type) {
    case CUDNN_TYPE_BOOLEAN: return sizeof(bool);
    case CUDNN_TYPE_INT64: return sizeof(int64_t);
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR: return sizeof(void *);
    default: return sizeof(cudnnDataType_t); /* enumerations */
    }
}

static const struct attribute *find(const struct descriptor *d, cudnnBackendAttributeName_t name) {
    for (int i = 0; i < d->attribute_count; i++)
        if (d->attributes[i].name == name) return &d->attributes[i];
    return NULL;
}
static int64_t number(const struct descriptor *d, cudnnBackendAttributeName_t name) {
    const struct attribute *attribute = find(d, name);
    return attribute ? *(const int64_t *)attribute->values : 0;
}
static int choice(const struct descriptor *d, cudnnBackendAttributeName_t name) {
    const struct attribute *attribute = find(d, name);
    return attribute ? *(const int *)attribute->values : 0;
}
static bool flag(const struct descriptor *d, cudnnBackendAttributeName_t name) {
    const struct attribute *attribute = find(d, name);
    return attribute && *(const bool *)attribute->values;
}
static struct descriptor *link(const struct descriptor *d, cudnnBackendAttributeName_t name) {
    const struct attribute *attribute = find(d, name);
    return attribute ? *(struct descriptor **)attribute->values : NULL;
}

/* ---- the library's own ---- */

size_t cudnnGetVersion(void) {
    return is("old") ? 90900 : CUDNN_VERSION;
}
const char *cudnnGetErrorString(cudnnStatus_t status) {
    return status == CUDNN_STATUS_SUCCESS                       ? "CUDNN_STATUS_SUCCESS"
           : status / 1000 == CUDNN_STATUS_BAD_PARAM / 1000     ? "CUDNN_STATUS_BAD_PARAM"
           : status / 1000 == CUDNN_STATUS_NOT_SUPPORTED / 1000 ? "CUDNN_STATUS_NOT_SUPPORTED"
                                                                : "CUDNN_STATUS_OTHER";
}
void cudnnGetLastErrorString(char *message, size_t size) {
    snprintf(message, size, "none is kept");
}
cudnnStatus_t cudnnCreate(cudnnHandle_t *handle) {
    if (is("uncreated")) return CUDNN_STATUS_NOT_INITIALIZED;
    *handle = calloc(1, sizeof **handle);
    return *handle ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
    free(handle);
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
    handle->stream = stream;
    return CUDNN_STATUS_SUCCESS;
}

/* ---- descriptors ---- */

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t kind, cudnnBackendDescriptor_t *out) {
    struct descriptor *made = calloc(1, sizeof *made);
    if (!made) return CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED;
    made->kind = kind;
    *out = made;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t handle) {
    struct descriptor *d = handle;
    if (!d) return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
    for (int i = 0; i < d->attribute_count; i++) free(d->attributes[i].values);
    if (d->kind == CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR) free(d->graph);
    free(d);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t handle, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void *values) {
    struct descriptor *d = handle;
    if (!d || !values) return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
    if (d->finalized || find(d, name) || d->attribute_count == ATTRIBUTES_MAX) return CUDNN_STATUS_BAD_PARAM;
    for (int i = 0; i < KNOWN; i++) {
        if (known[i].kind != d->kind || known[i].name != name) continue;
        if (known[i].type != type || count < 1 || count > known[i].count_most)
            return CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE;
        const size_t bytes = (size_t)count * bytes_of(type);
        void *copy = malloc(bytes);
        if (!copy) return CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED;
        memcpy(copy, values, bytes);
        if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR)
            for (int64_t j = 0; j < count; j++)
                if (!((struct descriptor *const *)values)[j] || !((struct descriptor *const *)values)[j]->finalized) {
                    free(copy);
                    return CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED;
                }
        d->attributes[d->attribute_count++] = (struct attribute){name, count, copy};
        return CUDNN_STATUS_SUCCESS;
    }
    return CUDNN_STATUS_NOT_SUPPORTED; /* the program sets no other */
}

/* ---- graphs ---- */

static cudnnStatus_t finalize_tensor(const struct descriptor *d) {
    const struct attribute *sizes = find(d, CUDNN_ATTR_TENSOR_DIMENSIONS),
                           *strides = find(d, CUDNN_ATTR_TENSOR_STRIDES);
    if (sizes->count != AXES || strides->count != AXES) return CUDNN_STATUS_BAD_PARAM;
    for (int i = 0; i < AXES; i++)
        if (((const int64_t *)sizes->values)[i] < 1 || ((const int64_t *)strides->values)[i] < 1)
            return CUDNN_STATUS_BAD_PARAM;
    if (flag(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL) && flag(d, CUDNN_ATTR_TENSOR_IS_BY_VALUE)) return CUDNN_STATUS_BAD_PARAM;
    return number(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT) % 4 == 0 ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_BAD_PARAM;
}

/* The tensor's number in the graph; -1: none, -2: another tensor has its id. */
static int add_tensor(struct graph *graph, const struct descriptor *d) {
    struct tensor tensor;
    if (!d) return -1;
    memset(&tensor, 0, sizeof tensor);
    tensor.uid = number(d, CUDNN_ATTR_TENSOR_UNIQUE_ID);
    tensor.alignment = number(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT);
    tensor.type = (cudnnDataType_t)choice(d, CUDNN_ATTR_TENSOR_DATA_TYPE);
    tensor.is_virtual = flag(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL);
    tensor.by_value = flag(d, CUDNN_ATTR_TENSOR_IS_BY_VALUE);
    memcpy(tensor.sizes, find(d, CUDNN_ATTR_TENSOR_DIMENSIONS)->values, sizeof tensor.sizes);
    memcpy(tensor.strides, find(d, CUDNN_ATTR_TENSOR_STRIDES)->values, sizeof tensor.strides);
    for (int i = 0; i < graph->tensor_count; i++) {
        const struct tensor *other = &graph->tensors[i];
        if (other->uid != tensor.uid) continue;
        return memcmp(other->sizes, tensor.sizes, sizeof tensor.sizes) == 0 && other->type == tensor.type &&
                       other->is_virtual == tensor.is_virtual
                   ? i
                   : -2;
    }
    if (graph->tensor_count == TENSORS_MAX) return -2;
    graph->tensors[graph->tensor_count] = tensor;
    return graph->tensor_count++;
}

static cudnnStatus_t add_operation(struct graph *graph, const struct descriptor *d) {
    struct node node = {.x = -1, .b = -1, .t = -1, .y = -1};
    const struct descriptor *how = NULL;
    switch (d->kind) {
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
        node.kind = NODE_MATMUL;
        how = link(d, CUDNN_ATTR_OPERATION_MATMUL_DESC);
        node.type = (cudnnDataType_t)choice(how, CUDNN_ATTR_MATMUL_COMP_TYPE);
        node.x = add_tensor(graph, link(d, CUDNN_ATTR_OPERATION_MATMUL_ADESC));
        node.b = add_tensor(graph, link(d, CUDNN_ATTR_OPERATION_MATMUL_BDESC));
        node.y = add_tensor(graph, link(d, CUDNN_ATTR_OPERATION_MATMUL_CDESC));
        break;
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
        node.kind = NODE_POINTWISE;
        how = link(d, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
        node.mode = choice(how, CUDNN_ATTR_POINTWISE_MODE);
        node.type = (cudnnDataType_t)choice(how, CUDNN_ATTR_POINTWISE_MATH_PREC);
        node.axis = find(how, CUDNN_ATTR_POINTWISE_AXIS) ? number(how, CUDNN_ATTR_POINTWISE_AXIS) : -1;
        node.x = add_tensor(graph, link(d, CUDNN_ATTR_OPERATION_POINTWISE_XDESC));
        node.b = add_tensor(graph, link(d, CUDNN_ATTR_OPERATION_POINTWISE_BDESC));
        node.t = add_tensor(graph, link(d, CUDNN_ATTR_OPERATION_POINTWISE_TDESC));
        node.y = add_tensor(graph, link(d, CUDNN_ATTR_OPERATION_POINTWISE_YDESC));
        break;
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
        node.kind = NODE_REDUCTION;
        how = link(d, CUDNN_ATTR_OPERATION_REDUCTION_DESC);
        node.mode = choice(how, CUDNN_ATTR_REDUCTION_OPERATOR);
        node.type = (cudnnDataType_t)choice(how, CUDNN_ATTR_REDUCTION_COMP_TYPE);
        node.x = add_tensor(graph, link(d, CUDNN_ATTR_OPERATION_REDUCTION_XDESC));
        node.y = add_tensor(graph, link(d, CUDNN_ATTR_OPERATION_REDUCTION_YDESC));
        break;
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR:
        node.kind = NODE_RESHAPE;
        node.x = add_tensor(graph, link(d, CUDNN_ATTR_OPERATION_RESHAPE_XDESC));
        node.y = add_tensor(graph, link(d, CUDNN_ATTR_OPERATION_RESHAPE_YDESC));
        break;
    default: return CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE;
    }
    if (node.x < 0 || node.y < 0 || node.b < -1 || node.t < -1) return CUDNN_STATUS_BAD_PARAM_DUPLICATED_ENTRIES;
    return graph_add(graph, node);
}

/* An operation by itself: its tensors fit. */
static cudnnStatus_t finalize_operation(const struct descriptor *d) {
    struct graph *alone = calloc(1, sizeof *alone);
    if (!alone) return CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED;
    cudnnStatus_t status = add_operation(alone, d);
    free(alone);
    /* what is virtual comes from another */
    return status == CUDNN_STATUS_NOT_SUPPORTED_GRAPH_PATTERN ? CUDNN_STATUS_SUCCESS : status;
}

static cudnnStatus_t finalize_graph(struct descriptor *d) {
    const struct attribute *operations = find(d, CUDNN_ATTR_OPERATIONGRAPH_OPS);
    cudnnStatus_t status = is("refuse") ? CUDNN_STATUS_NOT_SUPPORTED : CUDNN_STATUS_SUCCESS;
    d->graph = calloc(1, sizeof *d->graph);
    if (!d->graph) return CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED;
    for (int64_t i = 0; i < operations->count && !status; i++)
        status = add_operation(d->graph, ((struct descriptor *const *)operations->values)[i]);
    return status ? status : graph_check(d->graph);
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t handle) {
    struct descriptor *d = handle;
    cudnnStatus_t status = CUDNN_STATUS_SUCCESS;
    if (!d) return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
    for (int i = 0; i < KNOWN; i++)
        if (known[i].kind == d->kind && known[i].needed && !find(d, known[i].name)) return CUDNN_STATUS_BAD_PARAM;
    switch (d->kind) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR: status = finalize_tensor(d); break;
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR: status = finalize_operation(d); break;
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR: status = finalize_graph(d); break;
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR: d->graph = link(d, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH)->graph; break;
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
        d->graph = link(d, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->graph;
        d->position = link(d, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->position;
        break;
    case CUDNN_BACKEND_MATMUL_DESCRIPTOR:
    case CUDNN_BACKEND_POINTWISE_DESCRIPTOR:
    case CUDNN_BACKEND_REDUCTION_DESCRIPTOR:
    case CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR: break;
    default: return CUDNN_STATUS_NOT_SUPPORTED;
    }
    d->finalized = status == CUDNN_STATUS_SUCCESS;
    return status;
}

/* ---- engines: the first is fast and not deterministic, the second is meant to be used ---- */

static bool is_backward(const struct graph *graph) {
    return graph->matmul_count == 5;
}

/* The backward's matrices of scores in 16 bits, with whole tiles. */
static int64_t workspace_of(const struct graph *graph) {
    if (is("hungry")) return INT64_C(1) << 40;
    if (!is_backward(graph)) return 512;
    for (int i = 0; i < graph->node_count; i++) {
        if (graph->nodes[i].kind != NODE_MATMUL) continue;
        const int64_t *sizes = graph->tensors[graph->nodes[i].y].sizes; /* the first product's are the scores' */
        const int64_t length = (sizes[2] + TILE - 1) / TILE * TILE;
        return sizes[0] * sizes[1] * length * length * 2;
    }
    return 0;
}

static cudnnStatus_t propose(const struct descriptor *d, int64_t wanted, int64_t *count,
                             struct descriptor *const *configs) {
    *count = is("none") ? 0 : wanted < ENGINES ? wanted : ENGINES;
    for (int64_t i = 0; i < *count; i++) {
        if (configs[i]->kind != CUDNN_BACKEND_ENGINECFG_DESCRIPTOR) return CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE;
        configs[i]->graph = d->graph;
        configs[i]->position = (int)i;
        configs[i]->finalized = true;
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const handle, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t wanted, int64_t *count, void *values) {
    const struct descriptor *d = handle;
    if (!d || !d->finalized || wanted < 1) return CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED;
    *count = 1;
    if (d->kind == CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR && name == CUDNN_ATTR_ENGINEHEUR_RESULTS &&
        type == CUDNN_TYPE_BACKEND_DESCRIPTOR)
        return propose(d, wanted, count, values);
    if (d->kind == CUDNN_BACKEND_ENGINECFG_DESCRIPTOR && name == CUDNN_ATTR_ENGINECFG_ENGINE &&
        type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
        struct descriptor *engine = *(struct descriptor **)values;
        if (!engine || engine->kind != CUDNN_BACKEND_ENGINE_DESCRIPTOR) return CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE;
        engine->graph = d->graph;
        engine->position = d->position;
        engine->finalized = true;
        return CUDNN_STATUS_SUCCESS;
    }
    if (d->kind == CUDNN_BACKEND_ENGINE_DESCRIPTOR && name == CUDNN_ATTR_ENGINE_GLOBAL_INDEX &&
        type == CUDNN_TYPE_INT64) {
        *(int64_t *)values = ENGINE_FIRST + d->position + (is("other") ? 10 : 0);
        return CUDNN_STATUS_SUCCESS;
    }
    if (d->kind == CUDNN_BACKEND_ENGINE_DESCRIPTOR && name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE &&
        type == CUDNN_TYPE_NUMERICAL_NOTE) {
        cudnnBackendNumericalNote_t *notes = values;
        const bool shaky = d->position == 0 || is("nondeterministic");
        *count = shaky ? 2 : 1;
        if (wanted < *count) return CUDNN_STATUS_BAD_PARAM_SIZE_INSUFFICIENT;
        notes[0] = CUDNN_NUMERICAL_NOTE_TENSOR_CORE;
        if (shaky) notes[1] = CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
        return CUDNN_STATUS_SUCCESS;
    }
    if (d->kind == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR && name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE &&
        type == CUDNN_TYPE_INT64) {
        *(int64_t *)values = workspace_of(d->graph);
        return CUDNN_STATUS_SUCCESS;
    }
    return CUDNN_STATUS_BAD_PARAM;
}

/* ---- execution ---- */

struct execution {
    const struct graph *graph;
    void *pointers[TENSORS_MAX];
    float scalars[TENSORS_MAX]; /* copied: they are the caller's */
    void *workspace;
};

static void run(void *argument) {
    struct execution *execution = argument;
    static atomic_ulong runs;
    const unsigned long number_of_run = atomic_fetch_add(&runs, 1);
    struct graph_fault fault = {.sees_next = is("wrong"), .factor = 1};
    if (is("wrong-gradient") && is_backward(execution->graph)) fault.factor = 1.25;
    if (is("unsteady") && number_of_run % 2 && is_backward(execution->graph)) fault.factor = 1 + 0x1p-8;
    if (is("slow") || (is("slow-backward") && is_backward(execution->graph)))
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    for (int i = 0; i < execution->graph->tensor_count; i++)
        if (execution->graph->tensors[i].by_value) execution->pointers[i] = &execution->scalars[i];
    memset(execution->workspace, 0xff, (size_t)workspace_of(execution->graph));
    graph_run(execution->graph, execution->pointers, fault);
}

/* The pointer that the pack has for a tensor. */
static cudnnStatus_t take_pointer(const struct tensor *tensor, const struct descriptor *pack, void **pointer) {
    const struct attribute *ids = find(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS),
                           *pointers = find(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
    for (int64_t i = 0; i < ids->count; i++)
        if (((const int64_t *)ids->values)[i] == tensor->uid) *pointer = ((void *const *)pointers->values)[i];
    if (!*pointer) return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
    const size_t bytes = (size_t)(graph_span(tensor) * graph_type_bytes(tensor->type));
    if (ls_standin_is_device_memory(*pointer, bytes) == tensor->by_value) return CUDNN_STATUS_BAD_PARAM_OUT_OF_BOUND;
    if (!tensor->by_value && (uintptr_t)*pointer % (uintptr_t)tensor->alignment)
        return CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan_handle,
                                  cudnnBackendDescriptor_t pack_handle) {
    const struct descriptor *plan = plan_handle, *pack = pack_handle;
    struct execution execution = {.graph = plan->graph};
    int64_t given = 0;
    if (!handle || plan->kind != CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR || !plan->finalized || !pack->finalized)
        return CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED;
    for (int i = 0; i < plan->graph->tensor_count; i++) {
        const struct tensor *tensor = &plan->graph->tensors[i];
        if (tensor->is_virtual) continue;
        const cudnnStatus_t status = take_pointer(tensor, pack, &execution.pointers[i]);
        if (status) return status;
        if (tensor->by_value) execution.scalars[i] = *(const float *)execution.pointers[i];
        given++;
    }
    if (find(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS)->count != given ||
        find(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS)->count != given)
        return CUDNN_STATUS_BAD_PARAM_DUPLICATED_ENTRIES;
    execution.workspace = *(void **)find(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE)->values;
    if (!ls_standin_is_device_memory(execution.workspace, (size_t)workspace_of(plan->graph)))
        return CUDNN_STATUS_BAD_PARAM_OUT_OF_BOUND;
    const unsigned long before = atomic_fetch_add(is_backward(plan->graph) ? &backwards : &forwards, 1);
    if (cudaPeekAtLastError() == cudaErrorIllegalAddress) return CUDNN_STATUS_EXECUTION_FAILED;
    if (is("failing") && before >= EXECUTIONS_BEFORE_FAILURE) return CUDNN_STATUS_EXECUTION_FAILED;
    ls_standin_enqueue_copy(handle->stream, run, &execution, sizeof execution);
    return CUDNN_STATUS_SUCCESS;
}
