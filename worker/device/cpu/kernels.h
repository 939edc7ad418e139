/* The CPU kernels: one function per row of LS_OPERATIONS, run to the end in the calling thread and, for `threads` > 1,
 * in that many OpenMP threads. fp32, but for norms, cross-entropy, normalize and polynomial, which take every type, and
 * the types of squared_norm's input, of momentum's output, of update's copy and direction and of convert's result;
 * low_precision_kernels.h has the others. Attention's type may be bf16: then its arrays, fp32 all the same, are copies
 * of bf16, and its products may round to that. The bits of a result do not depend on `threads`, except gemm's. */
#ifndef LS_WORKER_DEVICE_CPU_KERNELS_H
#define LS_WORKER_DEVICE_CPU_KERNELS_H

#include "worker/device/cpu/pairs.h"
#include "worker/device/operations.h"

#include <stddef.h>

#define X(name) void ls_cpu_##name(int threads, const struct ls_op_##name *op);
LS_OPERATIONS(X)
#undef X

/* gemm of pairs, which have to serve its type and shape, cut between threads. */
void ls_cpu_gemm_pairs(int threads, const struct ls_op_gemm *op, ls_pairs_finish *finish);

/* gemm in tiles that depend on the shape alone, so that its bits do not depend on `threads` either. */
void ls_cpu_gemm_fixed(int threads, const struct ls_op_gemm *op);

/* Runs body(op, begin, end) over ranges that cover [0, count), cut at multiples of `grain`, in up to `threads` OpenMP
 * threads. With one thread, or no more than one grain, there is a single call and no OpenMP. */
typedef void ls_cpu_body(const void *op, int64_t begin, int64_t end);
void ls_cpu_parallel(int threads, int64_t count, int64_t grain, ls_cpu_body *body, const void *op);

#endif
