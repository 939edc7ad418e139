/* What the stand-in for cuDNN makes of an operation graph: nodes over numbered tensors, and their execution in double
 * on host memory. Virtual tensors are rounded to their type like real ones. */
#ifndef LS_TESTS_STANDIN_CUDNN_GRAPH_H
#define LS_TESTS_STANDIN_CUDNN_GRAPH_H

#include <cudnn.h>
#include <stdbool.h>
#include <stdint.h>

enum { AXES = 4, TENSORS_MAX = 64, NODES_MAX = 32 };

struct tensor {
    int64_t uid, sizes[AXES], strides[AXES], alignment;
    cudnnDataType_t type;
    bool is_virtual, by_value;
    bool written, read; /* by a node */
};

struct node {
    enum node_kind { NODE_MATMUL, NODE_POINTWISE, NODE_REDUCTION, NODE_RESHAPE } kind;
    int mode; /* cudnnPointwiseMode_t or cudnnReduceTensorOp_t */
    cudnnDataType_t type;
    int64_t axis;
    int x, b, t, y; /* tensors; -1: none */
};

struct graph {
    int tensor_count, node_count, matmul_count;
    struct tensor tensors[TENSORS_MAX];
    struct node nodes[NODES_MAX];
};

/* Adds nodes in their order: BAD_PARAM for shapes and types that do not go together, NOT_SUPPORTED_GRAPH_PATTERN for an
 * order in which a tensor is read before it is written, or what an engine for attention does not take. */
cudnnStatus_t graph_add(struct graph *graph, struct node node);
/* The whole: what is virtual is written once and read; what is real is read or written, not both. */
cudnnStatus_t graph_check(const struct graph *graph);
/* Elements from the first to behind the last. */
int64_t graph_span(const struct tensor *tensor);
int64_t graph_type_bytes(cudnnDataType_t type);

/* How results are made wrong. */
struct graph_fault {
    bool sees_next; /* a query sees the key behind its own */
    double factor;  /* of what is stored */
};
/* pointers[i] of tensor i; NULL for virtual ones. */
void graph_run(const struct graph *graph, void *const pointers[TENSORS_MAX], struct graph_fault fault);

#endif
