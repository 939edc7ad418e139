/* The sum of many values in double by one block whose threads share them: an order that follows from their number
 * alone. */
#ifndef LS_WORKER_DEVICE_CUDA_SHARED_SUM_H
#define LS_WORKER_DEVICE_CUDA_SHARED_SUM_H

#include "worker/device/cuda/element.h"

/* Each thread has every 512th of LS_SUM_SPAN values at a time, loaded before the first is added. */
constexpr int LS_SUM_THREADS = 512, LS_SUM_EACH = 8, LS_SUM_SPAN = LS_SUM_THREADS * LS_SUM_EACH;

/* In all threads of a block: the sum of input[0], input[stride], ... input[(count - 1) * stride]. */
template <typename T>
static __device__ __forceinline__ double ls_shared_sum(const T *input, int64_t count, int64_t stride) {
    double sum = 0.0;
    for (int64_t first = threadIdx.x; first < count; first += LS_SUM_SPAN) {
        T values[LS_SUM_EACH];
#pragma unroll
        for (int i = 0; i < LS_SUM_EACH; i++) {
            const int64_t at = first + i * LS_SUM_THREADS;
            values[i] = at < count ? input[at * stride] : T(0);
        }
#pragma unroll
        for (int i = 0; i < LS_SUM_EACH; i++) sum += static_cast<double>(values[i]);
    }
    return ls_block_sum<LS_SUM_THREADS>(sum);
}

/* One block: result += that sum. */
template <typename T>
static __global__ void __launch_bounds__(LS_SUM_THREADS)
    ls_add_shared_sum(double *result, const T *input, int64_t count, int64_t stride) {
    const double sum = ls_shared_sum(input, count, stride);
    if (threadIdx.x == 0) result[0] += sum;
}

#endif
