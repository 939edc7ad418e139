/* CUDA C++ on CPUs: what a kernel may use, in terms of scheduler.h. A .cu file is compiled unchanged by
 *     g++ -x c++ -std=c++20 -fno-strict-aliasing -DLS_EMULATE -isystem CUDA/include ...
 * and includes this through worker/device/cuda/launch.h. bf16, fp16 and vectors are NVIDIA's own headers. */
#ifndef LS_TESTS_EMULATOR_EMULATOR_H
#define LS_TESTS_EMULATOR_EMULATOR_H

#include "tests/emulator/scheduler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __constant__    const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

#define threadIdx (ls_emulator_self->thread)
#define blockIdx  (ls_emulator_self->block)
#define blockDim  (ls_emulator_self->block_size)
#define gridDim   (ls_emulator_self->grid_size)
#define warpSize  32

/* A static shared array is known by the address of a byte of its own. */
#define LS_SHARED(type, name, dimensions)                                                                              \
    using name##_array = type dimensions;                                                                              \
    static const char name##_key = 0;                                                                                  \
    name##_array &name = *static_cast<name##_array *>(ls_emulator_shared(&name##_key, sizeof(name##_array), 16))
#define LS_DYNAMIC_SHARED(type, name) type *const name = static_cast<type *>(ls_emulator_shared(nullptr, 0, 16))
#define LS_ALLOW_SHARED(kernel, bytes)                                                                                 \
    (ls_emulator_allow_shared(reinterpret_cast<const void *>(kernel), static_cast<size_t>(bytes)), cudaSuccess)
#define LS_LAUNCH(kernel, grid, block, shared, stream, ...)                                                            \
    ls_emulator_put(#kernel, kernel, (grid), (block), static_cast<size_t>(shared), (stream), __VA_ARGS__)

#define __syncthreads() ls_emulator_barrier(__FILE__, __LINE__)

/* The arguments are taken now: a stream may run the kernel when what they were read from is gone. */
template <typename... Parameters, typename... Arguments>
static inline cudaError_t ls_emulator_put(const char *name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                          size_t shared, cudaStream_t stream, Arguments... arguments) {
    auto thread = [kernel, ... values = static_cast<Parameters>(arguments)] { kernel(values...); };
    using closure = decltype(thread);
    static_assert(__is_trivially_copyable(closure), "arguments of kernels are plain");
    void *copy = malloc(sizeof(closure));
    if (!copy) abort();
    memcpy(copy, &thread, sizeof(closure));
    const ls_emulator_launch launch = {name,
                                       reinterpret_cast<const void *>(kernel),
                                       {grid.x, grid.y, grid.z},
                                       {block.x, block.y, block.z},
                                       shared,
                                       [](const void *values) { (*static_cast<const closure *>(values))(); },
                                       copy};
    ls_emulator_submit(&launch, stream);
    return cudaSuccess;
}

static inline void __syncwarp(unsigned mask = 0xffffffffu) {
    ls_emulator_exchange(LS_EMULATOR_SYNCWARP, mask, 0);
}

/* A lane outside its group of `width`, or the mask, is not read: the caller's own value comes back for the first, the
 * second is undefined on a GPU and NaN here. */
template <typename T> static inline T ls_emulator_shuffle(unsigned mask, T value, int source, int width) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a lane gives at most 64 bits");
    const int lane = ls_emulator_self->lane, group = lane & -width;
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    const uint64_t *all = ls_emulator_exchange(LS_EMULATOR_SHUFFLE, mask, bits);
    if (source < group || source >= group + width) source = lane;
    const uint64_t undefined = UINT64_MAX, *from = mask >> source & 1 ? &all[source] : &undefined;
    memcpy(&value, from, sizeof value);
    return value;
}
template <typename T> static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    return ls_emulator_shuffle(mask, value, ls_emulator_self->lane ^ bits, width);
}
template <typename T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    return ls_emulator_shuffle(mask, value, ls_emulator_self->lane + static_cast<int>(by), width);
}
template <typename T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    return ls_emulator_shuffle(mask, value, ls_emulator_self->lane - static_cast<int>(by), width);
}
template <typename T> static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return ls_emulator_shuffle(mask, value, (ls_emulator_self->lane & -width) + (lane & (width - 1)), width);
}

static inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const uint64_t *all = ls_emulator_exchange(LS_EMULATOR_VOTE, mask, predicate != 0);
    unsigned votes = 0;
    for (int lane = 0; lane < LS_EMULATOR_WARP; lane++)
        if (mask >> lane & 1) votes |= static_cast<unsigned>(all[lane]) << lane;
    return votes;
}
static inline int __any_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) != 0;
}
static inline int __all_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) == mask;
}
static inline int __popc(unsigned bits) {
    return __builtin_popcount(bits);
}

/* Atomics, of any plain type of 4 or 8 bytes: `update` makes the new value from the old one, which is returned. */
template <typename T, typename F> static inline T ls_emulator_atomic(T *place, F update) {
    T before, after;
    __atomic_load(place, &before, __ATOMIC_RELAXED);
    do after = update(before);
    while (!__atomic_compare_exchange(place, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return before;
}
template <typename T> static inline T atomicAdd(T *place, T value) {
    return ls_emulator_atomic(place, [=](T before) { return static_cast<T>(before + value); });
}
template <typename T> static inline T atomicMax(T *place, T value) {
    return ls_emulator_atomic(place, [=](T before) { return before > value ? before : value; });
}
template <typename T> static inline T atomicMin(T *place, T value) {
    return ls_emulator_atomic(place, [=](T before) { return before < value ? before : value; });
}
template <typename T> static inline T atomicExch(T *place, T value) {
    return ls_emulator_atomic(place, [=](T) { return value; });
}
template <typename T> static inline T atomicCAS(T *place, T expected, T value) {
    return ls_emulator_atomic(place, [=](T before) { return before == expected ? value : before; });
}
static inline void __threadfence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

#endif
