/* The kernels of bf16 and fp16: those of kernels.h whose operation has a type, called for types other than fp32. The
 * bits of a result do not depend on `threads`. */
#ifndef LS_WORKER_DEVICE_CPU_LOW_PRECISION_KERNELS_H
#define LS_WORKER_DEVICE_CPU_LOW_PRECISION_KERNELS_H

#include "worker/device/operations.h"

#include <stddef.h>

#define LS_LOW_PRECISION_OPERATIONS(X)                                                                                 \
    X(gemm)                                                                                                            \
    X(bias_backward)                                                                                                   \
    X(gelu_forward)                                                                                                    \
    X(gelu_backward)                                                                                                   \
    X(swiglu_forward)                                                                                                  \
    X(swiglu_backward)                                                                                                 \
    X(embedding_forward)                                                                                               \
    X(embedding_backward)                                                                                              \
    X(rope)                                                                                                            \
    X(attention_forward)                                                                                               \
    X(attention_backward)                                                                                              \
    X(add)

#define X(name) void ls_cpu_low_##name(int threads, const struct ls_op_##name *op);
LS_LOW_PRECISION_OPERATIONS(X)
#undef X

/* Bytes of fp32 copies of one sequence that attention works on. */
size_t ls_cpu_low_attention_forward_workspace(const struct ls_op_attention_forward *op);
size_t ls_cpu_low_attention_backward_workspace(const struct ls_op_attention_backward *op);

#endif
