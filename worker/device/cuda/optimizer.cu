/* AdamW in one pass over memory. */
#include "worker/device/cuda/element.h"
#include "worker/device/philox.h"

namespace {

/* Each block computes the bias corrections in double, so there are a few per multiprocessor and no more. */
constexpr int THREADS = 256, BLOCKS_MAX = 2048, N = 4;

/* The random words of WIDTH elements from `element` on: those of its group of four, and of the next where the elements
 * reach into that. */
template <int WIDTH>
__device__ __forceinline__ void draw(const struct ls_op_adamw &op, uint64_t element, uint32_t step,
                                     uint32_t (&word)[WIDTH]) {
    const uint64_t group = element / 4;
    const unsigned skipped = element % 4;
    const struct ls_philox own =
        ls_philox_draw({static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), op.tensor, step}, op.seed);
    struct ls_philox next = {};
    if (skipped + WIDTH > 4)
        next = ls_philox_draw(
            {static_cast<uint32_t>(group + 1), static_cast<uint32_t>((group + 1) >> 32), op.tensor, step}, op.seed);
    uint32_t words[8] = {own.a, own.b, own.c, own.d, next.a, next.b, next.c, next.d};
    if (skipped & 1) {
#pragma unroll
        for (int k = 0; k < 7; k++) words[k] = words[k + 1];
    }
    if (skipped & 2) {
#pragma unroll
        for (int k = 0; k < 6; k++) words[k] = words[k + 2];
    }
#pragma unroll
    for (int k = 0; k < WIDTH; k++) word[k] = words[k];
}

/* The bf16 below in magnitude, or above where the random bits carry, as a float. */
__device__ __forceinline__ float round_by(float value, uint32_t word) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7f800000u) == 0x7f800000u) return value;
    bits = (bits + (word >> 16)) & 0xffff0000u;
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <int WIDTH, typename T, bool MASTER>
__device__ __forceinline__ void adamw_pack(const struct ls_op_adamw &op, int64_t i, float factor, float rate,
                                           float momentum_scale, float variance_scale) {
    float p[WIDTH], m[WIDTH], v[WIDTH], g[WIDTH];
    if constexpr (MASTER)
        ls_load(p, op.parameter + i);
    else
        ls_load(p, static_cast<const T *>(op.low_precision) + i);
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
    ls_store(op.m + i, m);
    ls_store(op.v + i, v);
    if constexpr (MASTER) {
        ls_store(op.parameter + i, p);
    } else {
        uint32_t word[WIDTH];
        draw(op, op.first + static_cast<uint64_t>(i), static_cast<uint32_t>(*op.step), word);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) p[k] = round_by(p[k], word[k]);
    }
    if (op.low_precision) ls_store(static_cast<T *>(op.low_precision) + i, p);
}

template <typename T, bool MASTER>
__global__ void __launch_bounds__(THREADS) adamw(struct ls_op_adamw op, bool aligned) {
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
            adamw_pack<N, T, MASTER>(op, i, factor, rate, momentum_scale, variance_scale);
        else
            for (int64_t k = i; k < i + N && k < op.count; k++)
                adamw_pack<1, T, MASTER>(op, k, factor, rate, momentum_scale, variance_scale);
    }
}

} // namespace

cudaError_t ls_cuda_adamw(const struct ls_op_adamw *op, cudaStream_t stream) {
    if (op->count <= 0) return cudaSuccess;
    const bool aligned = ls_aligned(op->parameter, op->m, op->v, op->gradient, op->low_precision);
    const unsigned blocks = ls_blocks(op->count, THREADS * N, BLOCKS_MAX);
    if (!op->parameter) {
        if (!op->low_precision || op->dtype != LS_BF16) return cudaErrorInvalidValue;
        return LS_LAUNCH((adamw<__nv_bfloat16, false>), blocks, THREADS, 0, stream, *op, aligned);
    }
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        return LS_LAUNCH((adamw<T, true>), blocks, THREADS, 0, stream, *op, aligned);
    });
}
