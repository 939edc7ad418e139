/* Nodes over tensors, checked as they are added and executed one after another. */
#include "tests/standin/cudnn_graph.h"

#include "worker/device/cpu/low_precision.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool is_half(cudnnDataType_t type) {
    return type == CUDNN_DATA_BFLOAT16 || type == CUDNN_DATA_HALF;
}

int64_t graph_type_bytes(cudnnDataType_t type) {
    return is_half(type) ? 2 : type == CUDNN_DATA_BOOLEAN ? 1 : 4;
}

int64_t graph_span(const struct tensor *tensor) {
    int64_t last = 0;
    for (int i = 0; i < AXES; i++) last += (tensor->sizes[i] - 1) * tensor->strides[i];
    return last + 1;
}

static int64_t count_of(const struct tensor *tensor) {
    return tensor->sizes[0] * tensor->sizes[1] * tensor->sizes[2] * tensor->sizes[3];
}

static bool same_sizes(const struct tensor *a, const struct tensor *b) {
    return memcmp(a->sizes, b->sizes, sizeof a->sizes) == 0;
}

/* ---- checks ---- */

/* c[.., m, n] = a[.., m, k] b[.., k, n]; several heads of a may share one of b. */
static bool is_product(const struct tensor *a, const struct tensor *b, const struct tensor *c) {
    return a->sizes[0] == b->sizes[0] && a->sizes[0] == c->sizes[0] && a->sizes[1] == c->sizes[1] &&
           a->sizes[1] % b->sizes[1] == 0 && a->sizes[3] == b->sizes[2] && a->sizes[2] == c->sizes[2] &&
           b->sizes[3] == c->sizes[3];
}

static bool broadcasts(const struct tensor *from, const struct tensor *to) {
    for (int i = 0; i < AXES; i++)
        if (from->sizes[i] != to->sizes[i] && from->sizes[i] != 1) return false;
    return true;
}

/* Axes that go, and heads that are added up in groups. */
static bool reduces(const struct tensor *from, const struct tensor *to) {
    for (int i = 0; i < AXES; i++)
        if (from->sizes[i] != to->sizes[i] && to->sizes[i] != 1 && (i != 1 || from->sizes[i] % to->sizes[i] != 0))
            return false;
    return true;
}

static bool is_pointwise(const struct node *node, const struct tensor *x, const struct tensor *b,
                         const struct tensor *t, const struct tensor *y) {
    if (!broadcasts(x, y) || (b && !broadcasts(b, y)) || (t && !broadcasts(t, y))) return false;
    switch (node->mode) {
    case CUDNN_POINTWISE_EXP:
    case CUDNN_POINTWISE_LOG: return !b && !t && node->type == CUDNN_DATA_FLOAT;
    case CUDNN_POINTWISE_ADD:
    case CUDNN_POINTWISE_SUB:
    case CUDNN_POINTWISE_MUL:
    case CUDNN_POINTWISE_DIV: return b && !t && node->type == CUDNN_DATA_FLOAT;
    case CUDNN_POINTWISE_GEN_INDEX:
        return !b && !t && y->type == CUDNN_DATA_INT32 && node->axis >= 0 && node->axis < AXES;
    case CUDNN_POINTWISE_CMP_GE:
        return b && !t && y->type == CUDNN_DATA_BOOLEAN && node->type == CUDNN_DATA_BOOLEAN &&
               x->type == CUDNN_DATA_INT32 && b->type == CUDNN_DATA_INT32;
    case CUDNN_POINTWISE_BINARY_SELECT: return b && t && t->type == CUDNN_DATA_BOOLEAN;
    default: return false;
    }
}

static const struct tensor *tensor_at(const struct graph *graph, int index) {
    return index >= 0 ? &graph->tensors[index] : NULL;
}

cudnnStatus_t graph_add(struct graph *graph, struct node node) {
    const struct tensor *x = tensor_at(graph, node.x), *b = tensor_at(graph, node.b), *t = tensor_at(graph, node.t),
                        *y = tensor_at(graph, node.y);
    const int read[] = {node.x, node.b, node.t};
    if (graph->node_count == NODES_MAX || !x || !y) return CUDNN_STATUS_BAD_PARAM;
    switch (node.kind) {
    case NODE_MATMUL:
        if (!b || !is_product(x, b, y) || node.type != CUDNN_DATA_FLOAT) return CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH;
        /* The second product of the forward and those of keys and values take probabilities in 16 bits. */
        if (x->is_virtual && b->type != CUDNN_DATA_FLOAT && !is_half(x->type))
            return CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE;
        graph->matmul_count++;
        break;
    case NODE_POINTWISE:
        if (!is_pointwise(&node, x, b, t, y)) return CUDNN_STATUS_BAD_PARAM;
        break;
    case NODE_REDUCTION:
        if (!reduces(x, y) || same_sizes(x, y) || node.type != CUDNN_DATA_FLOAT ||
            (node.mode != CUDNN_REDUCE_TENSOR_MAX && node.mode != CUDNN_REDUCE_TENSOR_ADD))
            return CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH;
        break;
    case NODE_RESHAPE:
        if (count_of(x) != count_of(y) || graph_span(x) != graph_span(y)) return CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH;
        break;
    }
    for (int i = 0; i < 3; i++) {
        if (read[i] < 0) continue;
        struct tensor *from = &graph->tensors[read[i]];
        if (from->is_virtual && !from->written) return CUDNN_STATUS_NOT_SUPPORTED_GRAPH_PATTERN;
        from->read = true;
    }
    struct tensor *to = &graph->tensors[node.y];
    if (to->written || to->by_value) return CUDNN_STATUS_BAD_PARAM_DUPLICATED_ENTRIES;
    to->written = true;
    graph->nodes[graph->node_count++] = node;
    return CUDNN_STATUS_SUCCESS;
}

/* Real tensors of heads have contiguous channels, which is the last axis or, turned, the one before. */
static bool is_readable(const struct tensor *tensor) {
    return tensor->is_virtual || tensor->by_value || !is_half(tensor->type) ||
           ((tensor->strides[3] == 1 && tensor->sizes[3] % 8 == 0) ||
            (tensor->strides[2] == 1 && tensor->sizes[2] % 8 == 0));
}

cudnnStatus_t graph_check(const struct graph *graph) {
    for (int i = 0; i < graph->tensor_count; i++) {
        const struct tensor *tensor = &graph->tensors[i];
        if (tensor->is_virtual && !(tensor->written && tensor->read)) return CUDNN_STATUS_NOT_SUPPORTED_GRAPH_PATTERN;
        if (!tensor->is_virtual && !tensor->written && !tensor->read) return CUDNN_STATUS_NOT_SUPPORTED_GRAPH_PATTERN;
        if (!is_readable(tensor)) return CUDNN_STATUS_NOT_SUPPORTED_LAYOUT;
    }
    /* Attention and its backward are all there is. */
    return graph->matmul_count == 2 || graph->matmul_count == 5 ? CUDNN_STATUS_SUCCESS
                                                                : CUDNN_STATUS_NOT_SUPPORTED_GRAPH_PATTERN;
}

/* ---- execution ---- */

struct run {
    const struct graph *graph;
    void *const *pointers;
    struct graph_fault fault;
    double *values[TENSORS_MAX]; /* in row-major order of sizes */
};

static double rounded(cudnnDataType_t type, double value) {
    if (type == CUDNN_DATA_BFLOAT16) return (double)ls_bf16_widen(ls_bf16_narrow((float)value));
    if (type == CUDNN_DATA_HALF) return (double)ls_fp16_widen(ls_fp16_narrow((float)value));
    return type == CUDNN_DATA_FLOAT ? (double)(float)value : value;
}

/* The tensor's elements in row-major order, as offsets in memory. */
static int64_t offset_of(const struct tensor *tensor, int64_t index) {
    int64_t offset = 0;
    for (int i = AXES - 1; i >= 0; i--) {
        offset += index % tensor->sizes[i] * tensor->strides[i];
        index /= tensor->sizes[i];
    }
    return offset;
}

static double *values_of(struct run *run, int index) {
    const struct tensor *tensor = &run->graph->tensors[index];
    if (run->values[index]) return run->values[index];
    const int64_t count = count_of(tensor);
    double *values = malloc((size_t)count * sizeof *values);
    if (!values) abort();
    run->values[index] = values;
    if (tensor->is_virtual || tensor->written) return values;
    const enum ls_dtype type = tensor->type == CUDNN_DATA_BFLOAT16 ? LS_BF16
                               : tensor->type == CUDNN_DATA_HALF   ? LS_FP16
                                                                   : LS_FP32;
    for (int64_t i = 0; i < count; i++) values[i] = (double)ls_load(type, run->pointers[index], offset_of(tensor, i));
    return values;
}

static void store(struct run *run, int index) {
    const struct tensor *tensor = &run->graph->tensors[index];
    double *values = run->values[index];
    const int64_t count = count_of(tensor);
    for (int64_t i = 0; i < count; i++) values[i] = rounded(tensor->type, values[i]);
    if (tensor->is_virtual) return;
    for (int64_t i = 0; i < count; i++) {
        const int64_t at = offset_of(tensor, i);
        const float value = (float)(values[i] * run->fault.factor);
        if (tensor->type == CUDNN_DATA_FLOAT)
            ((float *)run->pointers[index])[at] = value;
        else
            ((uint16_t *)run->pointers[index])[at] =
                tensor->type == CUDNN_DATA_BFLOAT16 ? ls_bf16_narrow(value) : ls_fp16_narrow(value);
    }
}

static void multiply(const struct tensor *a, const double *av, const struct tensor *b, const double *bv, double *cv) {
    const int64_t M = a->sizes[2], K = a->sizes[3], N = b->sizes[3], group = a->sizes[1] / b->sizes[1];
    for (int64_t head = 0; head < a->sizes[0] * a->sizes[1]; head++) {
        const int64_t shared = head / a->sizes[1] * b->sizes[1] + head % a->sizes[1] / group;
        const double *left = av + head * M * K, *right = bv + shared * K * N;
        double *result = cv + head * M * N;
        memset(result, 0, (size_t)(M * N) * sizeof *result);
        for (int64_t i = 0; i < M; i++)
            for (int64_t k = 0; k < K; k++)
                for (int64_t j = 0; j < N; j++) result[i * N + j] += left[i * K + k] * right[k * N + j];
    }
}

/* Where element `index` of `to` lies in what is spread over it. */
static int64_t spread(const struct tensor *from, const struct tensor *to, int64_t index) {
    int64_t place = 0, scale = 1;
    for (int i = AXES - 1; i >= 0; i--) {
        const int64_t at = index % to->sizes[i];
        index /= to->sizes[i];
        if (from->sizes[i] > 1) place += at * scale;
        scale *= from->sizes[i];
    }
    return place;
}

static int64_t coordinate(const struct tensor *tensor, int64_t index, int64_t axis) {
    for (int64_t i = AXES - 1; i > axis; i--) index /= tensor->sizes[i];
    return index % tensor->sizes[axis];
}

static double apply(const struct node *node, const struct run *run, double x, double b, double t) {
    switch (node->mode) {
    case CUDNN_POINTWISE_ADD: return x + b;
    case CUDNN_POINTWISE_SUB: return x - b;
    case CUDNN_POINTWISE_MUL: return x * b;
    case CUDNN_POINTWISE_DIV: return x / b;
    case CUDNN_POINTWISE_EXP: return exp(x);
    case CUDNN_POINTWISE_LOG: return log(x);
    case CUDNN_POINTWISE_CMP_GE: return x + (double)run->fault.sees_next >= b;
    default: return t != 0 ? x : b; /* BINARY_SELECT */
    }
}

static void pointwise(struct run *run, const struct node *node, double *result) {
    const struct graph *graph = run->graph;
    const struct tensor *y = &graph->tensors[node->y], *x = tensor_at(graph, node->x), *b = tensor_at(graph, node->b),
                        *t = tensor_at(graph, node->t);
    const double *xv = values_of(run, node->x), *bv = b ? values_of(run, node->b) : NULL,
                 *tv = t ? values_of(run, node->t) : NULL;
    const int64_t count = count_of(y);
    for (int64_t i = 0; i < count; i++) {
        if (node->mode == CUDNN_POINTWISE_GEN_INDEX)
            result[i] = (double)coordinate(y, i, node->axis);
        else
            result[i] =
                apply(node, run, xv[spread(x, y, i)], bv ? bv[spread(b, y, i)] : 0, tv ? tv[spread(t, y, i)] : 0);
    }
}

static void reduce(const struct node *node, const struct tensor *x, const double *xv, const struct tensor *y,
                   double *yv) {
    const int64_t count = count_of(y);
    const bool largest = node->mode == CUDNN_REDUCE_TENSOR_MAX;
    for (int64_t i = 0; i < count; i++) yv[i] = largest ? -INFINITY : 0;
    for (int64_t i = 0; i < count_of(x); i++) {
        int64_t index = i, place = 0, scale = 1;
        for (int axis = AXES - 1; axis >= 0; axis--) {
            const int64_t at = index % x->sizes[axis], group = x->sizes[axis] / y->sizes[axis];
            index /= x->sizes[axis];
            place += at / group * scale;
            scale *= y->sizes[axis];
        }
        yv[place] = largest ? fmax(yv[place], xv[i]) : yv[place] + xv[i];
    }
}

/* The elements keep their places in memory. */
static void reshape(const struct tensor *x, const double *xv, const struct tensor *y, double *yv) {
    double *memory = malloc((size_t)graph_span(x) * sizeof *memory);
    if (!memory) abort();
    for (int64_t i = 0; i < count_of(x); i++) memory[offset_of(x, i)] = xv[i];
    for (int64_t i = 0; i < count_of(y); i++) yv[i] = memory[offset_of(y, i)];
    free(memory);
}

void graph_run(const struct graph *graph, void *const pointers[TENSORS_MAX], struct graph_fault fault) {
    struct run run = {.graph = graph, .pointers = pointers, .fault = fault};
    for (int i = 0; i < graph->node_count; i++) {
        const struct node *node = &graph->nodes[i];
        const struct tensor *x = &graph->tensors[node->x], *y = &graph->tensors[node->y];
        const double *xv = values_of(&run, node->x);
        double *yv = values_of(&run, node->y);
        switch (node->kind) {
        case NODE_MATMUL: multiply(x, xv, &graph->tensors[node->b], values_of(&run, node->b), yv); break;
        case NODE_POINTWISE: pointwise(&run, node, yv); break;
        case NODE_REDUCTION: reduce(node, x, xv, y, yv); break;
        case NODE_RESHAPE: reshape(x, xv, y, yv); break;
        }
        store(&run, node->y);
    }
    for (int i = 0; i < graph->tensor_count; i++) free(run.values[i]);
}
