/* The CUDA kernels: one host function per operation of operations.h, with its contract, which puts the operation on a
 * stream and returns the error of the launch. Products of matrices are the library's (gemm). Every kernel is
 * deterministic: no atomics on floats, sums in an order that follows from the shapes alone. Nothing is allocated and
 * nothing waits. Pointers are to device memory and aligned to their elements at least; where they are aligned to 16
 * bytes, accesses are 128 bits wide. */
#ifndef LS_WORKER_DEVICE_CUDA_KERNELS_H
#define LS_WORKER_DEVICE_CUDA_KERNELS_H

#include "worker/device/operations.h"

#include <cuda_runtime_api.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define X(name) cudaError_t ls_cuda_##name(const struct ls_op_##name *op, cudaStream_t stream);
LS_OPERATIONS_BUT_PRODUCTS(X)
#undef X

/* Heads of attention may have up to this many channels, odd numbers too; larger ones: cudaErrorInvalidValue. Up to 128
 * channels in 16 bits, in tensors aligned to 16 bytes, run on tensor cores. */
enum { LS_CUDA_HEAD_SIZE_MAX = 256 };

/* Bytes of `workspace` that attention_backward needs. Forward needs none. */
size_t ls_cuda_attention_backward_workspace(const struct ls_op_attention_backward *op);

/* The epilogue of a product whose result alone is in op->c, for where the library has no fused one. In bf16 and fp16
 * the product has then been rounded once more than the operation says. */
cudaError_t ls_cuda_epilogue(const struct ls_op_gemm *op, cudaStream_t stream);

/* sum[i] = part 0 [i] + part 1 [i] + ..., in this order, in fp32, rounded once; part p begins `stride` elements after
 * part p - 1 and `parts` may begin at `sum`. For what ranks received from one another. */
struct ls_cuda_parts {
    void *sum;
    const void *parts;
    int64_t stride, count;
    int part_count;
    enum ls_dtype dtype;
};
cudaError_t ls_cuda_sum_parts(const struct ls_cuda_parts *op, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
