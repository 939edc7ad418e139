/* Root-mean-square normalisation of every head by itself: a warp for each row, which takes its heads one after another;
 * the lanes take a head's channels in turns. */
#include "worker/device/cuda/columns.h"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / LS_WARP;

template <typename T> struct head_norm {
    T *output; /* backward: the input's gradient */
    const T *input, *weight, *output_gradient;
    float *rstd, *weight_gradient;
    int64_t rows, heads, head_size, stride;
    float epsilon;
};

template <typename T, int N> __global__ void __launch_bounds__(THREADS, 4) forward(head_norm<T> n) {
    const int64_t begin = threadIdx.x % LS_WARP * N, step = LS_WARP * N;
    for (int64_t row = ls_grid_thread() / LS_WARP; row < n.rows; row += ls_grid_threads() / LS_WARP)
        for (int64_t head = 0; head < n.heads; head++) {
            const int64_t at = row * n.stride + head * n.head_size;
            float x[N], w[N], square = 0.0f;
            for (int64_t c = begin; c < n.head_size; c += step) {
                ls_load(x, n.input + at + c);
#pragma unroll
                for (int k = 0; k < N; k++) square += x[k] * x[k];
            }
            const float rstd = 1.0f / sqrtf(ls_warp_sum(square) / static_cast<float>(n.head_size) + n.epsilon);
            for (int64_t c = begin; c < n.head_size; c += step) {
                ls_load(x, n.input + at + c);
                ls_load(w, n.weight + c);
#pragma unroll
                for (int k = 0; k < N; k++) x[k] = x[k] * rstd * w[k];
                ls_store(n.output + at + c, x);
            }
            if (begin == 0 && n.rstd) n.rstd[row * n.heads + head] = rstd;
        }
}

/* With x^ = x rstd and d = dy * weight: dx = rstd (d - x^ mean(d x^)). */
template <typename T, int N> __global__ void __launch_bounds__(THREADS, 3) backward_input(head_norm<T> n) {
    const int64_t begin = threadIdx.x % LS_WARP * N, step = LS_WARP * N;
    for (int64_t row = ls_grid_thread() / LS_WARP; row < n.rows; row += ls_grid_threads() / LS_WARP)
        for (int64_t head = 0; head < n.heads; head++) {
            const int64_t at = row * n.stride + head * n.head_size;
            const float rstd = n.rstd[row * n.heads + head];
            float dy[N], x[N], w[N], product = 0.0f;
            for (int64_t c = begin; c < n.head_size; c += step) {
                ls_load(dy, n.output_gradient + at + c);
                ls_load(x, n.input + at + c);
                ls_load(w, n.weight + c);
#pragma unroll
                for (int k = 0; k < N; k++) product += dy[k] * w[k] * (x[k] * rstd);
            }
            const float mean = ls_warp_sum(product) / static_cast<float>(n.head_size);
            for (int64_t c = begin; c < n.head_size; c += step) {
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
template <typename T, int N> __global__ void __launch_bounds__(LS_COLUMN_THREADS) backward_weight(head_norm<T> n) {
    float *const sums[1] = {n.weight_gradient};
    ls_sum_columns<T, N>(sums, n.rows, n.head_size, [&](int64_t row, int64_t column, float(&values)[1][N]) {
#pragma unroll
        for (int k = 0; k < N; k++) values[0][k] = 0.0f;
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

template <typename T, int N> cudaError_t put_forward(const head_norm<T> &n, cudaStream_t stream) {
    return LS_LAUNCH((forward<T, N>), ls_blocks(n.rows, WARPS), THREADS, 0, stream, n);
}

/* The weight's gradient first: the input's may lie over what it reads. It takes half packs: its registers hold no whole
 * ones of two tensors beside their sums. */
template <typename T, int N> cudaError_t put_backward(const head_norm<T> &n, cudaStream_t stream) {
    constexpr int HALF = N > 1 ? N / 2 : 1;
    const cudaError_t error = LS_LAUNCH((backward_weight<T, HALF>), (ls_column_blocks<T, HALF>(n.head_size)),
                                        LS_COLUMN_THREADS, 0, stream, n);
    if (error != cudaSuccess) return error;
    return LS_LAUNCH((backward_input<T, N>), ls_blocks(n.rows, WARPS), THREADS, 0, stream, n);
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
                                op->rows,
                                op->heads,
                                op->head_size,
                                op->stride,
                                0.0f};
        return takes_packs(n) ? put_backward<T, ls_pack<T>>(n, stream) : put_backward<T, 1>(n, stream);
    });
}
