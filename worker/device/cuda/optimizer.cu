/* The optimizers' rules, each in one pass over memory. */
#include "worker/device/cuda/element.h"
#include "worker/device/philox.h"

#include <type_traits>

namespace {

/* Each block computes the bias corrections in double, so there are a few per multiprocessor and no more. */
constexpr int THREADS = 256, BLOCKS_MAX = 2048, N = 4;

/* 16 random bits for each of WIDTH elements from `element` on: from its group of eight, and the next one where the
 * elements reach into that. */
template <int WIDTH>
__device__ __forceinline__ void draw(const struct ls_op_update &op, uint64_t element, uint32_t step,
                                     uint32_t (&random)[WIDTH]) {
    const uint64_t group = element / 8;
    const unsigned skipped = element % 8;
    const struct ls_philox own =
        ls_philox_draw({static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), op.tensor, step}, op.seed);
    struct ls_philox next = {};
    if (skipped + WIDTH > 8)
        next = ls_philox_draw(
            {static_cast<uint32_t>(group + 1), static_cast<uint32_t>((group + 1) >> 32), op.tensor, step}, op.seed);
    uint32_t words[8] = {own.a, own.b, own.c, own.d, next.a, next.b, next.c, next.d};
    if (skipped & 4) {
#pragma unroll
        for (int k = 0; k < 6; k++) words[k] = words[k + 2];
    }
    if (skipped & 2) {
#pragma unroll
        for (int k = 0; k < 7; k++) words[k] = words[k + 1];
    }
    if (skipped & 1) {
#pragma unroll
        for (int k = 0; k < 7; k++) words[k] = words[k] >> 16 | words[k + 1] << 16;
    }
#pragma unroll
    for (int k = 0; k < WIDTH; k++) random[k] = words[k / 2] >> 16 * (k % 2) & 0xffffu;
}

/* The bf16 below in magnitude, or above where the random bits carry, as a float. */
__device__ __forceinline__ float round_by(float value, uint32_t random) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7f800000u) == 0x7f800000u) return value;
    bits = (bits + random) & 0xffff0000u;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* What all elements share. */
struct shared {
    float factor, rate, momentum_scale, variance_scale; /* rate: lr; scales: 1 / bias correction */
};

/* The rule for one element, whose gradient, or direction, is `given`; returns what is added to the decay. */
template <enum ls_update_rule RULE>
__device__ __forceinline__ float direction(const struct ls_op_update &op, const struct shared &s, float given, float &m,
                                           float &v) {
    const float g = given * s.factor;
    if constexpr (RULE == LS_UPDATE_GIVEN) {
        return op.scale * given;
    } else if constexpr (RULE == LS_UPDATE_ADAMW) {
        m = op.beta1 * m + (1.0f - op.beta1) * g;
        v = op.beta2 * v + (1.0f - op.beta2) * (g * g);
        return m * s.momentum_scale / (sqrtf(v * s.variance_scale) + op.epsilon);
    } else if constexpr (RULE == LS_UPDATE_LION) {
        const float mixed = op.beta1 * m + (1.0f - op.beta1) * g;
        m = op.beta2 * m + (1.0f - op.beta2) * g;
        return mixed > 0.0f ? 1.0f : mixed < 0.0f ? -1.0f : 0.0f;
    } else {
        return m = op.beta1 * m + g;
    }
}

template <enum ls_update_rule RULE, int WIDTH, typename T, bool MASTER>
__device__ __forceinline__ void update_pack(const struct ls_op_update &op, int64_t i, const struct shared &s) {
    float p[WIDTH], m[WIDTH] = {}, v[WIDTH] = {}, g[WIDTH];
    if constexpr (MASTER)
        ls_load(p, op.parameter + i);
    else
        ls_load(p, static_cast<const T *>(op.low_precision) + i);
    if constexpr (RULE == LS_UPDATE_GIVEN) {
        using D = std::conditional_t<std::is_same_v<T, float>, float, __nv_bfloat16>;
        ls_load(g, static_cast<const D *>(op.direction) + i);
    } else {
        ls_load(m, op.m + i);
        if constexpr (RULE == LS_UPDATE_ADAMW) ls_load(v, op.v + i);
        ls_load(g, op.gradient + i);
    }
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        const float decay = i + k < op.decay_count ? op.weight_decay : 0.0f;
        const float update = direction<RULE>(op, s, g[k], m[k], v[k]);
        p[k] -= s.rate * (update + decay * p[k]);
    }
    if constexpr (RULE != LS_UPDATE_GIVEN) ls_store(op.m + i, m);
    if constexpr (RULE == LS_UPDATE_ADAMW) ls_store(op.v + i, v);
    if constexpr (MASTER) {
        ls_store(op.parameter + i, p);
    } else {
        uint32_t random[WIDTH];
        draw(op, op.first + static_cast<uint64_t>(i), static_cast<uint32_t>(*op.step), random);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) p[k] = round_by(p[k], random[k]);
    }
    if (op.low_precision) ls_store(static_cast<T *>(op.low_precision) + i, p);
}

template <enum ls_update_rule RULE, typename T, bool MASTER>
__global__ void __launch_bounds__(THREADS) update(struct ls_op_update op, bool aligned) {
    if (op.found_inf && *op.found_inf) return;
    float momentum_scale = 1.0f, variance_scale = 1.0f;
    if constexpr (RULE == LS_UPDATE_ADAMW) {
        LS_SHARED(float, scales, [2]);
        if (threadIdx.x == 0) {
            const double step = static_cast<double>(*op.step);
            scales[0] = static_cast<float>(1.0 / (1.0 - pow(static_cast<double>(op.beta1), step)));
            scales[1] = static_cast<float>(1.0 / (1.0 - pow(static_cast<double>(op.beta2), step)));
        }
        __syncthreads();
        momentum_scale = scales[0], variance_scale = scales[1];
    }
    const struct shared s = {op.factor ? *op.factor : 1.0f, *op.learning_rate, momentum_scale, variance_scale};
    for (int64_t i = ls_grid_thread() * N; i < op.count; i += ls_grid_threads() * N) {
        if (aligned && i + N <= op.count)
            update_pack<RULE, N, T, MASTER>(op, i, s);
        else
            for (int64_t k = i; k < i + N && k < op.count; k++) update_pack<RULE, 1, T, MASTER>(op, k, s);
    }
}

template <enum ls_update_rule RULE> cudaError_t launch(const struct ls_op_update *op, cudaStream_t stream) {
    const bool aligned = ls_aligned(op->parameter, op->m, op->v, op->gradient, op->direction, op->low_precision);
    const unsigned blocks = ls_blocks(op->count, THREADS * N, BLOCKS_MAX);
    if (!op->parameter) {
        if (!op->low_precision || op->dtype != LS_BF16) return cudaErrorInvalidValue;
        return LS_LAUNCH((update<RULE, __nv_bfloat16, false>), blocks, THREADS, 0, stream, *op, aligned);
    }
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        return LS_LAUNCH((update<RULE, T, true>), blocks, THREADS, 0, stream, *op, aligned);
    });
}

} // namespace

cudaError_t ls_cuda_update(const struct ls_op_update *op, cudaStream_t stream) {
    if (op->count <= 0) return cudaSuccess;
    switch (op->rule) {
    case LS_UPDATE_ADAMW: return launch<LS_UPDATE_ADAMW>(op, stream);
    case LS_UPDATE_LION: return launch<LS_UPDATE_LION>(op, stream);
    case LS_UPDATE_SGD: return launch<LS_UPDATE_SGD>(op, stream);
    case LS_UPDATE_GIVEN: return launch<LS_UPDATE_GIVEN>(op, stream);
    }
    return cudaErrorInvalidValue;
}
