/* Sums in the order of elements, in double: what a contract asks for where results must not depend on how work was cut.
 * One thread adds, so these are for few values: one for each row or 1024 elements. */
#ifndef LS_WORKER_DEVICE_CUDA_ORDERED_H
#define LS_WORKER_DEVICE_CUDA_ORDERED_H

#include "worker/device/cuda/element.h"

constexpr int LS_ORDERED_THREADS = 256, LS_ORDERED_PIECE = 1024;

/* One block: result = (result when `add`, else 0) + input[0] + input[1] + ... in this order. Its threads fetch, the
 * first one adds. */
template <typename T>
static __global__ void __launch_bounds__(LS_ORDERED_THREADS)
    ls_ordered_sum(double *result, const T *input, int64_t count, bool add) {
    LS_SHARED(double, staged, [LS_ORDERED_PIECE]);
    double sum = add ? result[0] : 0.0;
    for (int64_t first = 0; first < count; first += LS_ORDERED_PIECE) {
        const int length = static_cast<int>(count - first < LS_ORDERED_PIECE ? count - first : LS_ORDERED_PIECE);
        for (int i = static_cast<int>(threadIdx.x); i < length; i += LS_ORDERED_THREADS)
            staged[i] = static_cast<double>(input[first + i]);
        __syncthreads();
        if (threadIdx.x == 0) {
#pragma unroll 16
            for (int i = 0; i < length; i++) sum += staged[i];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) result[0] = sum;
}

/* On the host: puts it on a stream. */
template <typename T>
static inline cudaError_t ls_put_ordered_sum(double *result, const T *input, int64_t count, bool add,
                                             cudaStream_t stream) {
    return LS_LAUNCH((ls_ordered_sum<T>), 1, LS_ORDERED_THREADS, 0, stream, result, input, count, add);
}

#endif
