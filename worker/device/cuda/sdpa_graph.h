/* Plain causal attention as a graph of cuDNN's operations: softmax(q k^T scale) v with queries that see keys up to
 * their own place, forward with the logarithm of each query's sum of exponentials, and backward. Composed of products,
 * element-wise operations and sums, since the library's single descriptor for attention has no mask in the versions
 * that are served; the library recognises the whole as attention.
 *
 * The backward is the form without sums in memory that several blocks add to, which the library computes in the same
 * order every time. */
#ifndef LS_WORKER_DEVICE_CUDA_SDPA_GRAPH_H
#define LS_WORKER_DEVICE_CUDA_SDPA_GRAPH_H

#include "worker/device/cuda/libraries.h"
#include "worker/device/operations.h"

/* Strides in elements; a head's channels are contiguous, heads follow one another. */
struct ls_sdpa_shape {
    int64_t batch, length, heads, kv_heads, head_size;
    int64_t q_stride, q_batch_stride, kv_stride, kv_batch_stride, output_stride, output_batch_stride;
    enum ls_dtype dtype; /* LS_BF16 or LS_FP16 */
};

/* Tensors that are given at each execution; the library's unique ids. Gradients have the strides of their tensors;
 * statistics and sums are fp32 [batch, heads, length]. */
enum ls_sdpa_tensor {
    LS_SDPA_Q = 1,
    LS_SDPA_K,
    LS_SDPA_V,
    LS_SDPA_OUTPUT,
    LS_SDPA_STATISTICS, /* the logarithm of the sum of exponentials */
    LS_SDPA_SCALE,      /* scalars in host memory, fp32 */
    LS_SDPA_MASKED,     /* what a masked score is: -infinity */
    LS_SDPA_ONE,
    LS_SDPA_OUTPUT_GRADIENT,
    LS_SDPA_SUMS, /* scratch of the backward: sum over channels of output times its gradient */
    LS_SDPA_Q_GRADIENT,
    LS_SDPA_K_GRADIENT,
    LS_SDPA_V_GRADIENT,
    LS_SDPA_TENSORS
};

enum { LS_SDPA_DESCRIPTORS_MAX = 160, LS_SDPA_OPERATIONS_MAX = 32 };

/* A graph, all descriptors it is made of, and those that were added for its execution. */
struct ls_sdpa_graph {
    const struct ls_cudnn *library;
    cudnnStatus_t status; /* of the first call that failed; with it `failed`: which */
    const char *failed;
    int descriptor_count, operation_count;
    cudnnBackendDescriptor_t descriptors[LS_SDPA_DESCRIPTORS_MAX];
    cudnnBackendDescriptor_t operations[LS_SDPA_OPERATIONS_MAX];
    cudnnBackendDescriptor_t graph; /* among the descriptors */
};

/* Makes the descriptors. With a handle of NULL they are made and finalised but for the graph, which needs a device. The
 * status is also returned; whatever it is, ls_sdpa_graph_clear() is called. */
cudnnStatus_t ls_sdpa_graph_forward(const struct ls_cudnn *library, cudnnHandle_t handle,
                                    const struct ls_sdpa_shape *shape, struct ls_sdpa_graph *graph);
cudnnStatus_t ls_sdpa_graph_backward(const struct ls_cudnn *library, cudnnHandle_t handle,
                                     const struct ls_sdpa_shape *shape, struct ls_sdpa_graph *graph);
/* A descriptor that goes with the graph; NULL: the graph's status says why. */
cudnnBackendDescriptor_t ls_sdpa_graph_add(struct ls_sdpa_graph *graph, cudnnBackendDescriptorType_t kind);
/* Destroys the descriptors; status and `failed` stay. */
void ls_sdpa_graph_clear(struct ls_sdpa_graph *graph);

#endif
