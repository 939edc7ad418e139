/* Stand-ins for CUDA on hosts without a GPU: cudart.c is linked in place of the runtime; cublaslt.c, cudnn*.c, nvml.c
 * and nccl*.c are shared libraries that the program opens as it opens the real ones (LOCKSTEP_CUDA_LIBRARIES =
 * BUILD/emulator/lib). They are written against the real headers and refuse what the real ones refuse.
 *
 * "Device" memory is host memory: counted, limited, filled with NaN. Streams are queues. The environment says how:
 *
 *     LS_STANDIN_ORDER     eager (default): work runs when it is put on a stream; lazy: as late as a synchronising call
 *                          allows, and only what that call needs; hasty: high-priority streams at once, others late
 *     LS_STANDIN_MEMORY    bytes of a GPU, 1 GiB
 *     LS_STANDIN_DEVICES   GPUs, 1; CUDA_VISIBLE_DEVICES names those of them that are seen
 *     LS_STANDIN_NAME      what they are called, "Stand-in GPU"
 *     LS_STANDIN_CAPABILITY   their compute capability, 90 for 9.0
 *     LS_STANDIN_EXCLUSIVE=1   another process has them for itself
 *     LS_STANDIN_STATUS    what the driver answers to the question for GPUs, CUDA's number of the error
 *     LS_STANDIN_DRIVER    the driver's version, 13000; 0: there is no driver
 *     LS_STANDIN_GUARD=1   device memory, but for allocations above 8 MiB, can be touched only by work on streams: the
 *                          host's own access is a SIGSEGV
 *     LS_STANDIN_ENGINE=1  copies to the host pass one engine in the order in which they were given, whatever their
 *                          streams
 *     LS_STANDIN_DROP=N    the N-th wait of a stream for an event (from 1) is left out: a planted fault
 *     LS_STANDIN_FAIL=N    the N-th allocation of device memory (from 1) is refused
 *     LS_STANDIN_FAULT=N   the N-th launch (from 1) of a kernel, or of NCCL's, faults; it and what follows does nothing
 *     LS_STANDIN_STOP=FILE the first launch that finds the file takes it away and stops its process, as SIGSTOP does
 *     LS_STANDIN_LOG=FILE  at exit, a line is appended: peak bytes of device memory, waits, launches
 *     LS_STANDIN_CUBLASLT  what is special about cuBLASLt: gelu (GELU's derivative in fp32 too), first (each first
 *                          proposal is refused when it is to run), late (so is every one with an epilogue), dead (all
 *                          are), rising (a GPU's clock: the first products are slow), short-sums and slow-sums (a
 *                          bias's gradient), quick-gelu, coarse-gelu and slow-gelu (its derivative; products alone are
 *                          slow with the first two), odd (products are slow but for multiples of eight)
 *     LS_STANDIN_CUDNN     what is wrong with cuDNN, followed by ":RANK" for one rank: old, uncreated, refuse (graphs),
 *                          none (no engine), nondeterministic (every engine), other (engines' numbers), hungry
 *                          (workspace), wrong (results), wrong-gradient, unsteady (other bits each time), slow,
 *                          slow-backward, failing (after a while)
 *     LS_STANDIN_CUDNN_LOG=FILE   at exit, a line is appended: executions of forward and backward */
#ifndef LS_TESTS_STANDIN_STANDIN_H
#define LS_TESTS_STANDIN_STANDIN_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

/* Runs `function(argument)` in the stream's order. */
void ls_standin_enqueue(cudaStream_t stream, void (*function)(void *argument), void *argument);
/* The same with a copy of `bytes` of argument, which the stream frees. */
void ls_standin_enqueue_copy(cudaStream_t stream, void (*function)(void *argument), const void *argument, size_t bytes);
/* True when [memory, memory + bytes) lies in one allocation of device memory. */
bool ls_standin_is_device_memory(const void *memory, size_t bytes);

#endif
