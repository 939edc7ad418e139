/* AdamW in one pass over memory. */
#include "worker/device/cuda/element.h"

namespace {

/* Each block computes the bias corrections in double, so there are a few per multiprocessor and no more. */
constexpr int THREADS = 256, BLOCKS_MAX = 2048, N = 4;

template <int WIDTH, typename T>
__device__ __forceinline__ void adamw_pack(const struct ls_op_adamw &op, int64_t i, float factor, float rate,
                                           float momentum_scale, float variance_scale) {
    float p[WIDTH], m[WIDTH], v[WIDTH], g[WIDTH];
    ls_load(p, op.parameter + i);
    ls_load(m, op.m + i);
    ls_load(v, op.v + i);
    ls_load(g, op.gradient + i);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        const float gradient = g[k] * factor, decay = i + k < op.decay_count ? op.weight_decay : 0.0f;
        m[k] = op.beta1 * m[k] + (1.0f - op.beta1) * gradient;
        v[k] = op.beta2 * v[k] + (1.0f - op.beta2) * (gradient * gradient);
        const float update = m[k] * momentum_scale / (sqrtf(v[k] * variance_scale) + op.epsilon);
        p[k] -= rate * (update + decay * p[k]);
    }
    ls_store(op.parameter + i, p);
    ls_store(op.m + i, m);
    ls_store(op.v + i, v);
    if (op.low_precision) ls_store(static_cast<T *>(op.low_precision) + i, p);
}

template <typename T> __global__ void __launch_bounds__(THREADS) adamw(struct ls_op_adamw op, bool aligned) {
    LS_SHARED(float, scales, [2]);
    if (op.found_inf && *op.found_inf) return;
    if (threadIdx.x == 0) {
        const double step = static_cast<double>(*op.step);
        scales[0] = static_cast<float>(1.0 / (1.0 - pow(static_cast<double>(op.beta1), step)));
        scales[1] = static_cast<float>(1.0 / (1.0 - pow(static_cast<double>(op.beta2), step)));
    }
    __syncthreads();
    const float factor = op.factor ? *op.factor : 1.0f, rate = *op.learning_rate;
    const float momentum_scale = scales[0], variance_scale = scales[1];
    for (int64_t i = ls_grid_thread() * N; i < op.count; i += ls_grid_threads() * N) {
        if (aligned && i + N <= op.count)
            adamw_pack<N, T>(op, i, factor, rate, momentum_scale, variance_scale);
        else
            for (int64_t k = i; k < i + N && k < op.count; k++)
                adamw_pack<1, T>(op, k, factor, rate, momentum_scale, variance_scale);
    }
}

} // namespace

cudaError_t ls_cuda_adamw(const struct ls_op_adamw *op, cudaStream_t stream) {
    if (op->count <= 0) return cudaSuccess;
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        const bool aligned = ls_aligned(op->parameter, op->m, op->v, op->gradient, op->low_precision);
        return LS_LAUNCH((adamw<T>), ls_blocks(op->count, THREADS * N, BLOCKS_MAX), THREADS, 0, stream, *op, aligned);
    });
}
