/* The graphs of attention, one node after another. A failed call is remembered, and what comes after it does nothing.
 */
#include "worker/device/cuda/sdpa_graph.h"

#include <assert.h>
#include <string.h>

enum { AXES = 4, ALIGNMENT = 16, VIRTUAL_FIRST = 100, ROW_AXIS = 2, COLUMN_AXIS = 3 };

typedef cudnnBackendDescriptor_t descriptor;

/* What a graph is built with. Tensors are [batch, heads, rows, columns]. */
struct builder {
    struct ls_sdpa_graph *graph;
    const struct ls_sdpa_shape *shape;
    cudnnDataType_t type;
    int64_t next_virtual;
    descriptor scale, masked;
};

struct axes {
    int64_t of[AXES];
};

static bool fail(struct ls_sdpa_graph *graph, cudnnStatus_t status, const char *call) {
    if (status && !graph->status) {
        graph->status = status;
        graph->failed = call;
    }
    return graph->status != CUDNN_STATUS_SUCCESS;
}

descriptor ls_sdpa_graph_add(struct ls_sdpa_graph *graph, cudnnBackendDescriptorType_t kind) {
    descriptor made = NULL;
    if (graph->status) return NULL;
    assert(graph->descriptor_count < LS_SDPA_DESCRIPTORS_MAX);
    if (fail(graph, graph->library->cudnnBackendCreateDescriptor(kind, &made), "cudnnBackendCreateDescriptor"))
        return NULL;
    graph->descriptors[graph->descriptor_count++] = made;
    return made;
}

static descriptor create(struct builder *b, cudnnBackendDescriptorType_t kind) {
    return ls_sdpa_graph_add(b->graph, kind);
}

static void set(struct builder *b, descriptor made, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                int64_t count, const void *values) {
    if (b->graph->status) return;
    fail(b->graph, b->graph->library->cudnnBackendSetAttribute(made, name, type, count, values),
         "cudnnBackendSetAttribute");
}

static void set_descriptor(struct builder *b, descriptor made, cudnnBackendAttributeName_t name, descriptor value) {
    if (value) set(b, made, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static descriptor finalize(struct builder *b, descriptor made, const char *what) {
    if (b->graph->status) return NULL;
    fail(b->graph, b->graph->library->cudnnBackendFinalize(made), what);
    return made;
}

static descriptor operation(struct builder *b, descriptor made, const char *what) {
    finalize(b, made, what);
    if (b->graph->status) return NULL;
    assert(b->graph->operation_count < LS_SDPA_OPERATIONS_MAX);
    b->graph->operations[b->graph->operation_count++] = made;
    return made;
}

/* ---- tensors ---- */

static descriptor tensor(struct builder *b, int64_t id, cudnnDataType_t type, struct axes sizes, struct axes strides,
                         cudnnBackendAttributeName_t kind) {
    const descriptor made = create(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    const int64_t alignment = ALIGNMENT;
    const bool yes = true;
    set(b, made, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    set(b, made, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(b, made, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, AXES, sizes.of);
    set(b, made, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, AXES, strides.of);
    set(b, made, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    if (kind) set(b, made, kind, CUDNN_TYPE_BOOLEAN, 1, &yes);
    return finalize(b, made, "a tensor");
}

static descriptor given(struct builder *b, enum ls_sdpa_tensor id, cudnnDataType_t type, struct axes sizes,
                        struct axes strides) {
    return tensor(b, id, type, sizes, strides, (cudnnBackendAttributeName_t)0);
}

static descriptor scalar(struct builder *b, enum ls_sdpa_tensor id) {
    const struct axes one = {{1, 1, 1, 1}};
    return tensor(b, id, CUDNN_DATA_FLOAT, one, one, CUDNN_ATTR_TENSOR_IS_BY_VALUE);
}

/* A value between two nodes, which exists nowhere in memory. */
static descriptor between(struct builder *b, cudnnDataType_t type, struct axes sizes, struct axes strides) {
    return tensor(b, b->next_virtual++, type, sizes, strides, CUDNN_ATTR_TENSOR_IS_VIRTUAL);
}

static struct axes packed(struct axes sizes) {
    const int64_t *n = sizes.of;
    return (struct axes){{n[1] * n[2] * n[3], n[2] * n[3], n[3], 1}};
}
static struct axes transposed(struct axes axes) {
    return (struct axes){{axes.of[0], axes.of[1], axes.of[3], axes.of[2]}};
}

static struct axes score_sizes(const struct builder *b) {
    return (struct axes){{b->shape->batch, b->shape->heads, b->shape->length, b->shape->length}};
}
/* A number for each query. */
static struct axes row_sizes(const struct builder *b) {
    return (struct axes){{b->shape->batch, b->shape->heads, b->shape->length, 1}};
}
/* Queries, outputs, their gradients; with `kv`, what belongs to keys and values. */
static struct axes head_sizes(const struct builder *b, bool kv) {
    const struct ls_sdpa_shape *shape = b->shape;
    return (struct axes){{shape->batch, kv ? shape->kv_heads : shape->heads, shape->length, shape->head_size}};
}
static struct axes q_strides(const struct builder *b) {
    return (struct axes){{b->shape->q_batch_stride, b->shape->head_size, b->shape->q_stride, 1}};
}
static struct axes kv_strides(const struct builder *b) {
    return (struct axes){{b->shape->kv_batch_stride, b->shape->head_size, b->shape->kv_stride, 1}};
}
static struct axes output_strides(const struct builder *b) {
    return (struct axes){{b->shape->output_batch_stride, b->shape->head_size, b->shape->output_stride, 1}};
}

static descriptor scores(struct builder *b, cudnnDataType_t type) {
    return between(b, type, score_sizes(b), packed(score_sizes(b)));
}
static descriptor rows(struct builder *b) {
    return between(b, CUDNN_DATA_FLOAT, row_sizes(b), packed(row_sizes(b)));
}

/* ---- nodes: the last argument is what they write, which they return ---- */

static descriptor multiply(struct builder *b, descriptor left, descriptor right, descriptor product) {
    const cudnnDataType_t sums = CUDNN_DATA_FLOAT;
    const descriptor how = create(b, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set(b, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums);
    finalize(b, how, "a product's description");
    const descriptor node = create(b, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_descriptor(b, node, CUDNN_ATTR_OPERATION_MATMUL_ADESC, left);
    set_descriptor(b, node, CUDNN_ATTR_OPERATION_MATMUL_BDESC, right);
    set_descriptor(b, node, CUDNN_ATTR_OPERATION_MATMUL_CDESC, product);
    set_descriptor(b, node, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    operation(b, node, "a product");
    return product;
}

struct pointwise {
    cudnnPointwiseMode_t mode;
    cudnnDataType_t type; /* of the arithmetic */
    descriptor a, b, t;
    const int64_t *axis;
};

static descriptor apply(struct builder *b, struct pointwise of, descriptor result) {
    const descriptor how = create(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(b, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &of.mode);
    set(b, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &of.type);
    if (of.axis) set(b, how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, of.axis);
    finalize(b, how, "an element-wise operation's description");
    const descriptor node = create(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_descriptor(b, node, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    set_descriptor(b, node, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, of.a);
    set_descriptor(b, node, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, of.b);
    set_descriptor(b, node, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, of.t);
    set_descriptor(b, node, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, result);
    operation(b, node, "an element-wise operation");
    return result;
}

static descriptor unary(struct builder *b, cudnnPointwiseMode_t mode, descriptor x, descriptor result) {
    return apply(b, (struct pointwise){mode, CUDNN_DATA_FLOAT, x, NULL, NULL, NULL}, result);
}
static descriptor binary(struct builder *b, cudnnPointwiseMode_t mode, descriptor x, descriptor y, descriptor result) {
    return apply(b, (struct pointwise){mode, CUDNN_DATA_FLOAT, x, y, NULL, NULL}, result);
}

/* Along every axis in which the result has fewer. */
static descriptor reduce(struct builder *b, cudnnReduceTensorOp_t operator, descriptor x, descriptor result) {
    const cudnnDataType_t type = CUDNN_DATA_FLOAT;
    const descriptor how = create(b, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(b, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &operator);
    set(b, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    finalize(b, how, "a reduction's description");
    const descriptor node = create(b, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_descriptor(b, node, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_descriptor(b, node, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, result);
    set_descriptor(b, node, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    operation(b, node, "a reduction");
    return result;
}

/* The same elements under other sizes and strides. */
static descriptor reshape(struct builder *b, descriptor x, descriptor result) {
    const descriptor node = create(b, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_descriptor(b, node, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_descriptor(b, node, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, result);
    operation(b, node, "a reshape");
    return result;
}

/* Scores of keys behind the query become -infinity. */
static descriptor mask(struct builder *b, descriptor x) {
    static const int64_t axes[] = {ROW_AXIS, COLUMN_AXIS};
    descriptor index[2];
    for (int i = 0; i < 2; i++)
        index[i] = apply(b, (struct pointwise){CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, x, NULL, NULL, &axes[i]},
                         scores(b, CUDNN_DATA_INT32));
    const descriptor seen =
        apply(b, (struct pointwise){CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, index[0], index[1], NULL, NULL},
              scores(b, CUDNN_DATA_BOOLEAN));
    return apply(b, (struct pointwise){CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, x, b->masked, seen, NULL},
                 scores(b, CUDNN_DATA_FLOAT));
}

/* ---- graphs ---- */

static struct builder begin(const struct ls_cudnn *library, const struct ls_sdpa_shape *shape,
                            struct ls_sdpa_graph *graph) {
    memset(graph, 0, sizeof *graph);
    graph->library = library;
    struct builder b = {.graph = graph,
                        .shape = shape,
                        .type = shape->dtype == LS_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF,
                        .next_virtual = VIRTUAL_FIRST};
    b.scale = scalar(&b, LS_SDPA_SCALE);
    b.masked = scalar(&b, LS_SDPA_MASKED);
    return b;
}

static cudnnStatus_t finish(struct builder *b, cudnnHandle_t handle) {
    struct ls_sdpa_graph *graph = b->graph;
    if (graph->status || !handle) return graph->status;
    const descriptor made = create(b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(b, made, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    set(b, made, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, graph->operation_count,
        graph->operations);
    graph->graph = finalize(b, made, "the graph");
    return graph->status;
}

cudnnStatus_t ls_sdpa_graph_forward(const struct ls_cudnn *library, cudnnHandle_t handle,
                                    const struct ls_sdpa_shape *shape, struct ls_sdpa_graph *graph) {
    struct builder builder = begin(library, shape, graph), *b = &builder;
    const descriptor q = given(b, LS_SDPA_Q, b->type, head_sizes(b, false), q_strides(b));
    const descriptor k_transposed =
        given(b, LS_SDPA_K, b->type, transposed(head_sizes(b, true)), transposed(kv_strides(b)));
    const descriptor v = given(b, LS_SDPA_V, b->type, head_sizes(b, true), kv_strides(b));
    const descriptor output = given(b, LS_SDPA_OUTPUT, b->type, head_sizes(b, false), output_strides(b));
    const descriptor statistics = given(b, LS_SDPA_STATISTICS, CUDNN_DATA_FLOAT, row_sizes(b), packed(row_sizes(b)));

    const descriptor raw = multiply(b, q, k_transposed, scores(b, CUDNN_DATA_FLOAT));
    const descriptor scaled = binary(b, CUDNN_POINTWISE_MUL, raw, b->scale, scores(b, CUDNN_DATA_FLOAT));
    const descriptor masked = mask(b, scaled);
    const descriptor maximum = reduce(b, CUDNN_REDUCE_TENSOR_MAX, masked, rows(b));
    const descriptor below = binary(b, CUDNN_POINTWISE_SUB, masked, maximum, scores(b, CUDNN_DATA_FLOAT));
    const descriptor exponentials = unary(b, CUDNN_POINTWISE_EXP, below, scores(b, CUDNN_DATA_FLOAT));
    const descriptor sum = reduce(b, CUDNN_REDUCE_TENSOR_ADD, exponentials, rows(b));
    const descriptor logarithm = unary(b, CUDNN_POINTWISE_LOG, sum, rows(b));
    binary(b, CUDNN_POINTWISE_ADD, maximum, logarithm, statistics);
    const descriptor p = binary(b, CUDNN_POINTWISE_DIV, exponentials, sum, scores(b, b->type));
    multiply(b, p, v, output);
    return finish(b, handle);
}

/* gradient = matrix^T other, where matrix is [T, T] for each query head; key-value heads get the sum over the queries'
 * heads that share them, whose own gradients are rounded to the type before. */
static void sum_over_queries(struct builder *b, descriptor matrix, descriptor other, descriptor gradient) {
    const descriptor turned =
        reshape(b, matrix, between(b, b->type, transposed(score_sizes(b)), transposed(packed(score_sizes(b)))));
    if (b->shape->heads == b->shape->kv_heads) {
        multiply(b, turned, other, gradient);
        return;
    }
    const descriptor every =
        multiply(b, turned, other, between(b, b->type, head_sizes(b, false), packed(head_sizes(b, false))));
    reduce(b, CUDNN_REDUCE_TENSOR_ADD, every, gradient);
}

cudnnStatus_t ls_sdpa_graph_backward(const struct ls_cudnn *library, cudnnHandle_t handle,
                                     const struct ls_sdpa_shape *shape, struct ls_sdpa_graph *graph) {
    struct builder builder = begin(library, shape, graph), *b = &builder;
    const struct axes q_sizes = head_sizes(b, false), kv_sizes = head_sizes(b, true);
    const descriptor one = scalar(b, LS_SDPA_ONE);
    const descriptor q = given(b, LS_SDPA_Q, b->type, q_sizes, q_strides(b));
    const descriptor k_transposed = given(b, LS_SDPA_K, b->type, transposed(kv_sizes), transposed(kv_strides(b)));
    const descriptor v_transposed = given(b, LS_SDPA_V, b->type, transposed(kv_sizes), transposed(kv_strides(b)));
    const descriptor output = given(b, LS_SDPA_OUTPUT, b->type, q_sizes, output_strides(b));
    const descriptor d_output = given(b, LS_SDPA_OUTPUT_GRADIENT, b->type, q_sizes, output_strides(b));
    const descriptor statistics = given(b, LS_SDPA_STATISTICS, CUDNN_DATA_FLOAT, row_sizes(b), packed(row_sizes(b)));
    const descriptor sums = given(b, LS_SDPA_SUMS, CUDNN_DATA_FLOAT, row_sizes(b), packed(row_sizes(b)));
    const descriptor dq = given(b, LS_SDPA_Q_GRADIENT, b->type, q_sizes, q_strides(b));
    const descriptor dk = given(b, LS_SDPA_K_GRADIENT, b->type, kv_sizes, kv_strides(b));
    const descriptor dv = given(b, LS_SDPA_V_GRADIENT, b->type, kv_sizes, kv_strides(b));

    /* The factor of one is where dropout would be scaled: engines look for the node. */
    const descriptor products =
        binary(b, CUDNN_POINTWISE_MUL, d_output, output, between(b, CUDNN_DATA_FLOAT, q_sizes, output_strides(b)));
    const descriptor unscaled = reduce(b, CUDNN_REDUCE_TENSOR_ADD, products, rows(b));
    binary(b, CUDNN_POINTWISE_MUL, unscaled, one, sums);

    const descriptor raw = multiply(b, q, k_transposed, scores(b, CUDNN_DATA_FLOAT));
    const descriptor scaled = binary(b, CUDNN_POINTWISE_MUL, raw, b->scale, scores(b, CUDNN_DATA_FLOAT));
    const descriptor below = binary(b, CUDNN_POINTWISE_SUB, scaled, statistics, scores(b, CUDNN_DATA_FLOAT));
    const descriptor p = unary(b, CUDNN_POINTWISE_EXP, mask(b, below), scores(b, CUDNN_DATA_FLOAT));
    sum_over_queries(b, p, d_output, dv);

    const descriptor dp = multiply(b, d_output, v_transposed, scores(b, CUDNN_DATA_FLOAT));
    const descriptor apart = binary(b, CUDNN_POINTWISE_SUB, dp, sums, scores(b, CUDNN_DATA_FLOAT));
    const descriptor unscaled_ds = binary(b, CUDNN_POINTWISE_MUL, apart, p, scores(b, CUDNN_DATA_FLOAT));
    const descriptor ds = binary(b, CUDNN_POINTWISE_MUL, unscaled_ds, b->scale, scores(b, CUDNN_DATA_FLOAT));
    sum_over_queries(b, ds, q, dk);

    const descriptor k = reshape(b, k_transposed, between(b, CUDNN_DATA_FLOAT, kv_sizes, kv_strides(b)));
    multiply(b, ds, k, dq);
    return finish(b, handle);
}

void ls_sdpa_graph_clear(struct ls_sdpa_graph *graph) {
    while (graph->descriptor_count > 0)
        graph->library->cudnnBackendDestroyDescriptor(graph->descriptors[--graph->descriptor_count]);
    graph->operation_count = 0;
    graph->graph = NULL;
}
