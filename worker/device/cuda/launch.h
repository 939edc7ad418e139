/* How a .cu file says what differs between nvcc and the emulator (tests/emulator/), which runs the same kernels on
 * CPUs: launches, and arrays in shared memory. Everything else is CUDA C++ as it is.
 *
 *     LS_LAUNCH((kernel<float, 4>), blocks, threads, shared_bytes, stream, arguments...)   a cudaError_t, of the launch
 *     LS_SHARED(float, tile, [16][17]);        a static shared array `tile`
 *     LS_DYNAMIC_SHARED(float, rows);          a pointer to the launch's dynamic shared memory, 16-byte aligned
 *     LS_ALLOW_SHARED((kernel<float>), bytes)  a cudaError_t; before a launch with more than 48 KiB of it
 *
 * A kernel keeps to what the emulator has: __syncthreads, the _sync forms of shuffles, votes and __syncwarp, atomics,
 * bf16 and fp16, and what tensor.h has of tensor cores. A block has whole warps, and at most 99 KiB of shared memory,
 * the least of all GPUs from sm_80 on. */
#ifndef LS_WORKER_DEVICE_CUDA_LAUNCH_H
#define LS_WORKER_DEVICE_CUDA_LAUNCH_H

#ifdef LS_EMULATE
#include "tests/emulator/emulator.h"
#else

#include <cuda_runtime.h>

#define LS_LAUNCH(kernel, grid, block, shared, stream, ...)                                                            \
    (kernel<<<(grid), (block), (shared), (stream)>>>(__VA_ARGS__), cudaGetLastError())
#define LS_SHARED(type, name, dimensions) __shared__ type name dimensions
#define LS_DYNAMIC_SHARED(type, name)                                                                                  \
    extern __shared__ __align__(16) unsigned char ls_dynamic_shared_memory[];                                          \
    type *const name = reinterpret_cast<type *>(ls_dynamic_shared_memory)
#define LS_ALLOW_SHARED(kernel, bytes)                                                                                 \
    cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,          \
                         static_cast<int>(bytes))

#endif
#endif
