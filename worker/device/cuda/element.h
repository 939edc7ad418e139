/* What the kernels share: elements of the three types as floats, 128-bit accesses, sums over warps and blocks, and the
 * way from a type's name to its instance. */
#ifndef LS_WORKER_DEVICE_CUDA_ELEMENT_H
#define LS_WORKER_DEVICE_CUDA_ELEMENT_H

#include "worker/device/cuda/kernels.h"
#include "worker/device/cuda/launch.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <string.h>

constexpr int LS_WARP = 32;
#define LS_ALL_LANES 0xffffffffu

static __device__ __forceinline__ float ls_to_float(float x) {
    return x;
}
static __device__ __forceinline__ float ls_to_float(__nv_bfloat16 x) {
    return __bfloat162float(x);
}
static __device__ __forceinline__ float ls_to_float(__half x) {
    return __half2float(x);
}

/* Rounds to nearest even. */
template <typename T> __device__ __forceinline__ T ls_from_float(float x);
template <> __device__ __forceinline__ float ls_from_float<float>(float x) {
    return x;
}
template <> __device__ __forceinline__ __nv_bfloat16 ls_from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
template <> __device__ __forceinline__ __half ls_from_float<__half>(float x) {
    return __float2half_rn(x);
}

/* `x` as it is after it was stored. */
template <typename T> static __device__ __forceinline__ float ls_rounded(float x) {
    return ls_to_float(ls_from_float<T>(x));
}

/* Elements of T in 128 bits. */
template <typename T> constexpr int ls_pack = 16 / static_cast<int>(sizeof(T));

/* N elements from `from`, which is aligned to them all, or to 16 bytes when they are more. */
template <typename T, int N> static __device__ __forceinline__ void ls_load(float (&to)[N], const T *from) {
    constexpr int bytes = N * static_cast<int>(sizeof(T));
    static_assert(N == 1 || bytes == 8 || bytes % 16 == 0, "what one access or several whole ones hold");
    T values[N];
    if constexpr (N == 1) {
        values[0] = from[0];
    } else if constexpr (bytes == 8) {
        const int2 bits = *reinterpret_cast<const int2 *>(from);
        memcpy(reinterpret_cast<char *>(values), &bits, sizeof bits);
    } else {
#pragma unroll
        for (int i = 0; i < bytes / 16; i++) {
            const int4 bits = reinterpret_cast<const int4 *>(from)[i];
            memcpy(reinterpret_cast<char *>(values) + i * 16, &bits, sizeof bits);
        }
    }
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = ls_to_float(values[i]);
}

template <typename T, int N> static __device__ __forceinline__ void ls_store(T *to, const float (&from)[N]) {
    constexpr int bytes = N * static_cast<int>(sizeof(T));
    static_assert(N == 1 || bytes == 8 || bytes % 16 == 0, "what one access or several whole ones hold");
    T values[N];
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = ls_from_float<T>(from[i]);
    if constexpr (N == 1) {
        to[0] = values[0];
    } else if constexpr (bytes == 8) {
        int2 bits;
        memcpy(&bits, reinterpret_cast<const char *>(values), sizeof bits);
        *reinterpret_cast<int2 *>(to) = bits;
    } else {
#pragma unroll
        for (int i = 0; i < bytes / 16; i++) {
            int4 bits;
            memcpy(&bits, reinterpret_cast<const char *>(values) + i * 16, sizeof bits);
            reinterpret_cast<int4 *>(to)[i] = bits;
        }
    }
}

/* 128 bits that are on their way from memory, and what is in them: what waits for them is the second. */
template <typename T> static __device__ __forceinline__ int4 ls_load_bits(const T *from) {
    return *reinterpret_cast<const int4 *>(from);
}
template <typename T>
static __device__ __forceinline__ void ls_unpack(float (&to)[ls_pack<T>], const int4 &bits, const T *) {
    T values[ls_pack<T>];
    memcpy(reinterpret_cast<char *>(values), &bits, sizeof bits);
#pragma unroll
    for (int i = 0; i < ls_pack<T>; i++) to[i] = ls_to_float(values[i]);
}

/* Sums and maxima over the lanes of a warp, the same in all of them. Butterflies: the order of additions is fixed. */
template <typename T> static __device__ __forceinline__ T ls_warp_sum(T x) {
#pragma unroll
    for (int lanes = LS_WARP / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(LS_ALL_LANES, x, lanes);
    return x;
}
static __device__ __forceinline__ float ls_warp_maximum(float x) {
#pragma unroll
    for (int lanes = LS_WARP / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(LS_ALL_LANES, x, lanes));
    return x;
}

/* The sum over a block of THREADS, the same in all of them. A barrier lies before and after the use of the array, so
 * that calls may follow one another. */
template <int THREADS, typename T> static __device__ __forceinline__ T ls_block_sum(T x) {
    constexpr int WARPS = THREADS / LS_WARP;
    LS_SHARED(T, sums, [WARPS]);
    x = ls_warp_sum(x);
    __syncthreads();
    if (threadIdx.x % LS_WARP == 0) sums[threadIdx.x / LS_WARP] = x;
    __syncthreads();
    T sum = sums[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; warp++) sum += sums[warp];
    return sum;
}
template <int THREADS> static __device__ __forceinline__ float ls_block_maximum(float x) {
    constexpr int WARPS = THREADS / LS_WARP;
    LS_SHARED(float, maxima, [WARPS]);
    x = ls_warp_maximum(x);
    __syncthreads();
    if (threadIdx.x % LS_WARP == 0) maxima[threadIdx.x / LS_WARP] = x;
    __syncthreads();
    float maximum = maxima[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; warp++) maximum = fmaxf(maximum, maxima[warp]);
    return maximum;
}

/* The number of this thread in the grid, and of threads in the grid, both along x. */
static __device__ __forceinline__ int64_t ls_grid_thread() {
    return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
static __device__ __forceinline__ int64_t ls_grid_threads() {
    return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

/* On the host: blocks for `work` items at `each` a block, at most `limit`. Kernels that stride over the grid take any
 * number; never 0. */
static inline unsigned ls_blocks(int64_t work, int64_t each, int64_t limit = INT32_MAX) {
    const int64_t blocks = (work + each - 1) / each;
    return static_cast<unsigned>(blocks < 1 ? 1 : blocks > limit ? limit : blocks);
}

/* On the host: whether all of the pointers (NULL too) stand at multiples of 16 bytes. */
template <typename... P> static inline bool ls_aligned(const P *...pointers) {
    return ((reinterpret_cast<uintptr_t>(pointers) | ...) & 15) == 0;
}

/* Calls `function` with a value of the type that `dtype` names: `using T = decltype(element)`. */
template <typename F> static inline cudaError_t ls_by_type(enum ls_dtype dtype, F function) {
    switch (dtype) {
    case LS_FP32: return function(float());
    case LS_BF16: return function(__nv_bfloat16());
    case LS_FP16: return function(__half());
    }
    return cudaErrorInvalidValue;
}

#endif
