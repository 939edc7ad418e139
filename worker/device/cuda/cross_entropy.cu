/* Softmax cross-entropy fused with its gradient: a block per row, which it reads twice and writes once. */
#include "worker/device/cuda/shared_sum.h"

#include <float.h>

namespace {

constexpr int THREADS = 512;

__device__ __forceinline__ float exponential(float x) {
    return exp2f(x * 1.44269504f);
}

/* The sum of exponentials so far, relative to the largest value so far; that one is finite from the beginning, so that
 * a logit of -infinity adds nothing. */
struct softmax {
    float maximum, sum;
};

/* A NaN passes by the maximum and stays in the sum. */
template <int N> __device__ __forceinline__ void take(softmax &s, const float (&x)[N]) {
    float most = x[0], sum = 0.0f;
#pragma unroll
    for (int k = 1; k < N; k++) most = fmaxf(most, x[k]);
    if (most > s.maximum) {
        s.sum *= exponential(s.maximum - most);
        s.maximum = most;
    }
#pragma unroll
    for (int k = 0; k < N; k++) sum += exponential(x[k] - s.maximum);
    s.sum += sum;
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    rows(T *logits, float *row_loss, const int32_t *targets, const float *gradient_scale, int64_t vocabulary,
         int64_t stride, bool gradient) {
    T *x = logits + blockIdx.x * stride;
    const int32_t target = targets[blockIdx.x];
    const int64_t begin = static_cast<int64_t>(threadIdx.x) * N, step = static_cast<int64_t>(THREADS) * N;
    const int64_t whole = vocabulary / N * N; /* packs below `whole` are whole; columns behind are taken singly */
    float v[N];
    if (target < 0) {
        if (threadIdx.x == 0) row_loss[blockIdx.x] = 0.0f;
        if (!gradient) return;
        for (int64_t i = threadIdx.x; i < stride; i += THREADS) x[i] = ls_from_float<T>(0.0f);
        return;
    }
    softmax s = {-FLT_MAX, 0.0f};
#pragma unroll 2
    for (int64_t i = begin; i < whole; i += step) {
        ls_load(v, x + i);
        take(s, v);
    }
    for (int64_t i = whole + threadIdx.x; i < vocabulary; i += THREADS) {
        const float single[1] = {ls_to_float(x[i])};
        take(s, single);
    }
    const float maximum = ls_block_maximum<THREADS>(s.maximum);
    const double own = s.sum > 0.0f ? static_cast<double>(s.sum * exponential(s.maximum - maximum))
                                    : static_cast<double>(s.sum); /* zero, or NaN */
    const double sum = ls_block_sum<THREADS>(own);
    if (threadIdx.x == 0)
        row_loss[blockIdx.x] =
            static_cast<float>(log(sum) + (static_cast<double>(maximum) - static_cast<double>(ls_to_float(x[target]))));
    if (!gradient) return;
    const float scale = gradient_scale[0], factor = static_cast<float>(static_cast<double>(scale) / sum);
    __syncthreads(); /* the target's logit has been read */
    for (int64_t i = begin; i < whole; i += step) {
        ls_load(v, x + i);
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float p = exponential(v[k] - maximum) * factor;
            v[k] = i + k == target ? p - scale : p;
        }
        ls_store(x + i, v);
    }
    for (int64_t i = whole + threadIdx.x; i < stride; i += THREADS) {
        const float p = i < vocabulary ? exponential(ls_to_float(x[i]) - maximum) * factor : 0.0f;
        x[i] = ls_from_float<T>(i == target ? p - scale : p);
    }
}

} // namespace

cudaError_t ls_cuda_cross_entropy(const struct ls_op_cross_entropy *op, cudaStream_t stream) {
    if (op->rows <= 0) return cudaSuccess;
    const cudaError_t error = ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        constexpr int N = ls_pack<T>;
        T *logits = static_cast<T *>(op->logits);
        if (ls_aligned(logits) && op->stride % N == 0)
            return LS_LAUNCH((rows<T, N>), ls_blocks(op->rows, 1), THREADS, 0, stream, logits, op->row_loss,
                             op->targets, op->gradient_scale, op->vocabulary, op->stride, op->gradient);
        return LS_LAUNCH((rows<T, 1>), ls_blocks(op->rows, 1), THREADS, 0, stream, logits, op->row_loss, op->targets,
                         op->gradient_scale, op->vocabulary, op->stride, op->gradient);
    });
    if (error != cudaSuccess) return error;
    return LS_LAUNCH((ls_add_shared_sum<float>), 1, LS_SUM_THREADS, 0, stream, op->loss, op->row_loss, op->rows, 1);
}
