/* What orthogonal updates are made of beside products: a momentum, a matrix's division by its norm, polynomials of
 * square matrices. A thread has one pack of elements; the last one may be broken. */
#include "worker/device/cuda/element.h"

namespace {

/* BLOCKS_MAX: the first packs of all threads are numbered in 32 bits. */
constexpr int THREADS = 256, BLOCKS_MAX = 4096;

template <int N, typename T>
__device__ __forceinline__ void gain(const struct ls_op_momentum &op, int64_t i, float factor) {
    float m[N], g[N], output[N];
    ls_load(m, op.m + i);
    ls_load(g, op.gradient + i);
#pragma unroll
    for (int k = 0; k < N; k++) {
        g[k] *= factor;
        m[k] = op.beta * m[k] + (1.0f - op.beta) * g[k];
        output[k] = op.beta * m[k] + (1.0f - op.beta) * g[k];
    }
    ls_store(op.m + i, m);
    ls_store(static_cast<T *>(op.output) + i, output);
}

template <typename T> __global__ void __launch_bounds__(THREADS, 4) momentum(struct ls_op_momentum op, bool aligned) {
    constexpr int N = ls_pack<T>;
    if (op.found_inf && *op.found_inf) return;
    const float factor = op.factor ? *op.factor : 1.0f;
    for (int64_t i = ls_grid_thread() * N; i < op.count; i += ls_grid_threads() * N) {
        if (aligned && i + N <= op.count)
            gain<N, T>(op, i, factor);
        else
            for (int64_t k = i; k < i + N && k < op.count; k++) gain<1, T>(op, k, factor);
    }
}

template <int N, typename T> __device__ __forceinline__ void scale(T *x, float factor) {
    float values[N];
    ls_load(values, x);
#pragma unroll
    for (int k = 0; k < N; k++) values[k] *= factor;
    ls_store(x, values);
}

template <typename T> __global__ void __launch_bounds__(THREADS) normalize(struct ls_op_normalize op, bool aligned) {
    constexpr int N = ls_pack<T>;
    LS_SHARED(float, factor, [1]);
    if (threadIdx.x == 0) factor[0] = static_cast<float>(1.0 / fmax(sqrt(op.squared[0]), 1e-7));
    __syncthreads();
    T *const x = static_cast<T *>(op.x);
    for (int64_t i = ls_grid_thread() * N; i < op.count; i += ls_grid_threads() * N) {
        if (aligned && i + N <= op.count)
            scale<N>(x + i, factor[0]);
        else
            for (int64_t k = i; k < i + N && k < op.count; k++) scale<1>(x + k, factor[0]);
    }
}

/* `behind`: elements since the one on the diagonal before, whose number is a multiple of side + 1. A pack has one of
 * these at most. */
template <int N, typename T>
__device__ __forceinline__ void combine(const struct ls_op_polynomial &op, int64_t i, unsigned behind) {
    const int diagonal = behind == 0 ? 0 : static_cast<int>(static_cast<unsigned>(op.side) + 1 - behind);
    float x[N], y[N];
    ls_load(x, static_cast<const T *>(op.x) + i);
    ls_load(y, static_cast<const T *>(op.y) + i);
#pragma unroll
    for (int k = 0; k < N; k++) {
        x[k] = op.b * x[k] + op.c * y[k];
        if (k == diagonal) x[k] += op.a;
    }
    ls_store(static_cast<T *>(op.output) + i, x);
}

/* Packs of N elements; from one of a thread's packs to its next, `behind` grows by `step`, mod side + 1. The first ones
 * are numbered in 32 bits: divisions of 64 are calls. */
template <int N, typename T>
__global__ void __launch_bounds__(THREADS) polynomial(struct ls_op_polynomial op, unsigned step) {
    const int64_t count = op.side * op.side;
    const unsigned period = static_cast<unsigned>(op.side) + 1;
    unsigned behind = static_cast<unsigned>(ls_grid_thread()) * N % period;
    for (int64_t i = ls_grid_thread() * N; i < count; i += ls_grid_threads() * N) {
        if (i + N <= count)
            combine<N, T>(op, i, behind);
        else
            for (unsigned k = 0; i + k < count; k++) combine<1, T>(op, i + k, (behind + k) % period);
        behind = behind < period - step ? behind + step : behind - (period - step);
    }
}

template <int N, typename T> cudaError_t put_polynomial(const struct ls_op_polynomial *op, cudaStream_t stream) {
    const unsigned blocks = ls_blocks(op->side * op->side, THREADS * N, BLOCKS_MAX);
    const unsigned step = static_cast<unsigned>(static_cast<int64_t>(blocks) * THREADS * N % (op->side + 1));
    return LS_LAUNCH((polynomial<N, T>), blocks, THREADS, 0, stream, *op, step);
}

} // namespace

cudaError_t ls_cuda_momentum(const struct ls_op_momentum *op, cudaStream_t stream) {
    if (op->count <= 0) return cudaSuccess;
    const bool aligned = ls_aligned(op->m, op->gradient, op->output);
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        return LS_LAUNCH((momentum<T>), ls_blocks(op->count, THREADS * ls_pack<T>), THREADS, 0, stream, *op, aligned);
    });
}

cudaError_t ls_cuda_normalize(const struct ls_op_normalize *op, cudaStream_t stream) {
    if (op->count <= 0) return cudaSuccess;
    const bool aligned = ls_aligned(op->x);
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        return LS_LAUNCH((normalize<T>), ls_blocks(op->count, THREADS * ls_pack<T>), THREADS, 0, stream, *op, aligned);
    });
}

cudaError_t ls_cuda_polynomial(const struct ls_op_polynomial *op, cudaStream_t stream) {
    if (op->side <= 0) return cudaSuccess;
    if (op->side >= INT32_MAX) return cudaErrorInvalidValue;
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        const bool aligned = ls_aligned(op->output, op->x, op->y) && op->side >= ls_pack<T>;
        return aligned ? put_polynomial<ls_pack<T>, T>(op, stream) : put_polynomial<1, T>(op, stream);
    });
}
