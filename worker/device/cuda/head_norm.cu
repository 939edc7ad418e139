/* Root-mean-square normalisation of every head by itself: a warp for each row, whose lanes share as many heads at a
 * time as keep them all busy; the lanes of a head take its channels in turns. */
#include "worker/device/cuda/columns.h"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / LS_WARP;

template <typename T> struct head_norm {
    T *output; /* backward: the input's gradient */
    const T *input, *weight, *output_gradient;
    float *rstd, *weight_gradient;
    void *workspace;
    int64_t rows, heads, head_size, stride;
    float epsilon;
};

template <int COUNT> struct lanes { static constexpr int count = COUNT; };

/* The sum over GROUP neighbouring lanes, the same in all of them. */
template <int GROUP> __device__ __forceinline__ float group_sum(float x) {
#pragma unroll
    for (int lanes = GROUP / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(LS_ALL_LANES, x, lanes);
    return x;
}

/* GROUP lanes have a head. Where a row's last heads are fewer than the warp has groups, the others go along idly. */
template <typename T, int N, int GROUP> __global__ void __launch_bounds__(THREADS, 4) forward(head_norm<T> n) {
    const int64_t begin = threadIdx.x % GROUP * N, step = GROUP * N, group = threadIdx.x % LS_WARP / GROUP;
    for (int64_t row = ls_grid_thread() / LS_WARP; row < n.rows; row += ls_grid_threads() / LS_WARP)
        for (int64_t first = 0; first < n.heads; first += LS_WARP / GROUP) {
            const int64_t head = first + group, end = head < n.heads ? n.head_size : 0;
            const int64_t at = row * n.stride + head * n.head_size;
            float x[N], w[N], square = 0.0f;
            for (int64_t c = begin; c < end; c += step) {
                ls_load(x, n.input + at + c);
#pragma unroll
                for (int k = 0; k < N; k++) square += x[k] * x[k];
            }
            const float rstd = 1.0f / sqrtf(group_sum<GROUP>(square) / static_cast<float>(n.head_size) + n.epsilon);
            for (int64_t c = begin; c < end; c += step) {
                ls_load(x, n.input + at + c);
                ls_load(w, n.weight + c);
#pragma unroll
                for (int k = 0; k < N; k++) x[k] = x[k] * rstd * w[k];
                ls_store(n.output + at + c, x);
            }
            if (begin == 0 && head < n.heads && n.rstd) n.rstd[row * n.heads + head] = rstd;
        }
}

/* With x^ = x rstd and d = dy * weight: dx = rstd (d - x^ mean(d x^)). */
template <typename T, int N, int GROUP> __global__ void __launch_bounds__(THREADS, 3) backward_input(head_norm<T> n) {
    const int64_t begin = threadIdx.x % GROUP * N, step = GROUP * N, group = threadIdx.x % LS_WARP / GROUP;
    for (int64_t row = ls_grid_thread() / LS_WARP; row < n.rows; row += ls_grid_threads() / LS_WARP)
        for (int64_t first = 0; first < n.heads; first += LS_WARP / GROUP) {
            const int64_t head = first + group, end = head < n.heads ? n.head_size : 0;
            const int64_t at = row * n.stride + head * n.head_size;
            const float rstd = head < n.heads ? n.rstd[row * n.heads + head] : 0.0f;
            float dy[N], x[N], w[N], product = 0.0f;
            for (int64_t c = begin; c < end; c += step) {
                ls_load(dy, n.output_gradient + at + c);
                ls_load(x, n.input + at + c);
                ls_load(w, n.weight + c);
#pragma unroll
                for (int k = 0; k < N; k++) product += dy[k] * w[k] * (x[k] * rstd);
            }
            const float mean = group_sum<GROUP>(product) / static_cast<float>(n.head_size);
            for (int64_t c = begin; c < end; c += step) {
                ls_load(dy, n.output_gradient + at + c);
                ls_load(x, n.input + at + c);
                ls_load(w, n.weight + c);
#pragma unroll
                for (int k = 0; k < N; k++) dy[k] = rstd * (dy[k] * w[k] - x[k] * rstd * mean);
                ls_store(n.output + at + c, dy);
            }
        }
}

/* A row's heads are added before the rows are. */
template <typename T, int N>
__global__ void __launch_bounds__(LS_COLUMN_THREADS, 2) backward_weight(head_norm<T> n, struct ls_slices slices) {
    float *const sums[1] = {n.weight_gradient};
    ls_sum_columns<T, N, 1>(sums, slices, n.rows, n.head_size, [&](int64_t row, int64_t column, float(&values)[1][N]) {
#pragma unroll
        for (int k = 0; k < N; k++) values[0][k] = 0.0f;
#pragma unroll 2
        for (int64_t head = 0; head < n.heads; head++) {
            const int64_t at = row * n.stride + head * n.head_size + column;
            const float rstd = n.rstd[row * n.heads + head];
            float dy[N], x[N];
            ls_load(dy, n.output_gradient + at);
            ls_load(x, n.input + at);
#pragma unroll
            for (int k = 0; k < N; k++) values[0][k] += dy[k] * (x[k] * rstd);
        }
    });
}

/* Calls put(GROUP) with the fewest lanes, a power of two from 4 on, that take a head in one go, or with all. */
template <int N, typename F> cudaError_t by_group(int64_t head_size, F put) {
    const int64_t packs = (head_size + N - 1) / N;
    if (packs <= 4) return put(lanes<4>());
    if (packs <= 8) return put(lanes<8>());
    if (packs <= 16) return put(lanes<16>());
    return put(lanes<LS_WARP>());
}

template <typename T, int N> cudaError_t put_forward(const head_norm<T> &n, cudaStream_t stream) {
    return by_group<N>(n.head_size, [=](auto group) {
        constexpr int GROUP = decltype(group)::count;
        return LS_LAUNCH((forward<T, N, GROUP>), ls_blocks(n.rows, WARPS), THREADS, 0, stream, n);
    });
}

/* The weight's gradient first: the input's may lie over what it reads. */
template <typename T, int N> cudaError_t put_backward(const head_norm<T> &n, cudaStream_t stream) {
    float *const sums[1] = {n.weight_gradient};
    const cudaError_t error = ls_put_column_sums<T, N>(
        sums, n.workspace, n.rows, n.head_size, stream, [=](dim3 grid, const struct ls_slices &slices) {
            return LS_LAUNCH((backward_weight<T, N>), grid, LS_COLUMN_THREADS, 0, stream, n, slices);
        });
    if (error != cudaSuccess) return error;
    return by_group<N>(n.head_size, [=](auto group) {
        constexpr int GROUP = decltype(group)::count;
        return LS_LAUNCH((backward_input<T, N, GROUP>), ls_blocks(n.rows, WARPS), THREADS, 0, stream, n);
    });
}

/* Whether every head begins at a multiple of 16 bytes. */
template <typename T> bool takes_packs(const head_norm<T> &n) {
    return ls_aligned(n.output, n.input, n.weight, n.output_gradient) && n.head_size % ls_pack<T> == 0 &&
           n.stride % ls_pack<T> == 0;
}

} // namespace

cudaError_t ls_cuda_head_norm_forward(const struct ls_op_head_norm_forward *op, cudaStream_t stream) {
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        if (op->rows <= 0 || op->heads <= 0) return cudaSuccess;
        const head_norm<T> n = {static_cast<T *>(op->output),
                                static_cast<const T *>(op->input),
                                static_cast<const T *>(op->weight),
                                nullptr,
                                op->rstd,
                                nullptr,
                                nullptr,
                                op->rows,
                                op->heads,
                                op->head_size,
                                op->stride,
                                op->epsilon};
        return takes_packs(n) ? put_forward<T, ls_pack<T>>(n, stream) : put_forward<T, 1>(n, stream);
    });
}

cudaError_t ls_cuda_head_norm_backward(const struct ls_op_head_norm_backward *op, cudaStream_t stream) {
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        if (op->rows <= 0 || op->heads <= 0) return cudaSuccess;
        const head_norm<T> n = {static_cast<T *>(op->input_gradient),
                                static_cast<const T *>(op->input),
                                static_cast<const T *>(op->weight),
                                static_cast<const T *>(op->output_gradient),
                                const_cast<float *>(op->rstd),
                                op->weight_gradient,
                                op->workspace,
                                op->rows,
                                op->heads,
                                op->head_size,
                                op->stride,
                                0.0f};
        return takes_packs(n) ? put_backward<T, ls_pack<T>>(n, stream) : put_backward<T, 1>(n, stream);
    });
}
