/* Layer and root-mean-square normalisation. Both are one computation: the second takes the mean as zero and has no
 * bias. A row has a warp, or a block when it is long; it is read again where it is needed again, from the cache. */
#include "worker/device/cuda/columns.h"

namespace {

constexpr int THREADS = 256, LONG_ROW = 4096;

template <typename T> struct norm_arguments {
    T *output;
    float *mean, *rstd;
    const T *input, *weight, *bias;
    int64_t rows, columns;
    float epsilon;
};

template <typename T> struct norm_gradient {
    T *input;             /* its gradient */
    float *weight, *bias; /* their gradients */
    void *workspace;
    const T *output_gradient, *x, *scale;
    const float *mean, *rstd;
    int64_t rows, columns;
    bool accumulate_input;
};

/* The sum over the GROUP threads of a row. */
template <int GROUP> __device__ __forceinline__ float row_sum(float x) {
    if constexpr (GROUP == LS_WARP)
        return ls_warp_sum(x);
    else
        return ls_block_sum<GROUP>(x);
}

template <typename T, int N, int GROUP, bool CENTRED>
__global__ void __launch_bounds__(THREADS, 4) forward(norm_arguments<T> n) {
    const int64_t group = ls_grid_thread() / GROUP, groups = ls_grid_threads() / GROUP;
    const int64_t begin = threadIdx.x % GROUP * N, step = GROUP * N;
    for (int64_t row = group; row < n.rows; row += groups) {
        const T *x = n.input + row * n.columns;
        T *y = n.output + row * n.columns;
        float v[N], w[N], b[N], mean = 0.0f, square = 0.0f;
        if (CENTRED) {
            for (int64_t c = begin; c < n.columns; c += step) {
                ls_load(v, x + c);
#pragma unroll
                for (int k = 0; k < N; k++) mean += v[k];
            }
            mean = row_sum<GROUP>(mean) / static_cast<float>(n.columns);
        }
        for (int64_t c = begin; c < n.columns; c += step) {
            ls_load(v, x + c);
#pragma unroll
            for (int k = 0; k < N; k++) square += (v[k] - mean) * (v[k] - mean);
        }
        const float rstd = 1.0f / sqrtf(row_sum<GROUP>(square) / static_cast<float>(n.columns) + n.epsilon);
        for (int64_t c = begin; c < n.columns; c += step) {
            ls_load(v, x + c);
            ls_load(w, n.weight + c);
#pragma unroll
            for (int k = 0; k < N; k++) v[k] = (v[k] - mean) * rstd * w[k];
            if (CENTRED) {
                ls_load(b, n.bias + c);
#pragma unroll
                for (int k = 0; k < N; k++) v[k] += b[k];
            }
            ls_store(y + c, v);
        }
        if (begin == 0) {
            if (CENTRED && n.mean) n.mean[row] = mean;
            if (n.rstd) n.rstd[row] = rstd;
        }
    }
}

/* With x^ = (x - mean) rstd and d = dy * weight: dx = rstd (d - mean(d) - x^ mean(d x^)), the second term only where
 * the mean is taken off. */
template <typename T, int N, int GROUP, bool CENTRED>
__global__ void __launch_bounds__(THREADS, 3) backward_input(norm_gradient<T> n) {
    const int64_t group = ls_grid_thread() / GROUP, groups = ls_grid_threads() / GROUP;
    const int64_t begin = threadIdx.x % GROUP * N, step = GROUP * N;
    for (int64_t row = group; row < n.rows; row += groups) {
        const int64_t at = row * n.columns;
        const float mean = CENTRED ? n.mean[row] : 0.0f, rstd = n.rstd[row];
        float dy[N], x[N], w[N], sum = 0.0f, product = 0.0f;
        for (int64_t c = begin; c < n.columns; c += step) {
            ls_load(dy, n.output_gradient + at + c);
            ls_load(x, n.x + at + c);
            ls_load(w, n.scale + c);
#pragma unroll
            for (int k = 0; k < N; k++) {
                const float d = dy[k] * w[k];
                sum += d;
                product += d * ((x[k] - mean) * rstd);
            }
        }
        const float columns = static_cast<float>(n.columns);
        const float d_mean = CENTRED ? row_sum<GROUP>(sum) / columns : 0.0f;
        const float d_product = row_sum<GROUP>(product) / columns;
        for (int64_t c = begin; c < n.columns; c += step) {
            ls_load(dy, n.output_gradient + at + c);
            ls_load(x, n.x + at + c);
            ls_load(w, n.scale + c);
#pragma unroll
            for (int k = 0; k < N; k++) dy[k] = rstd * (dy[k] * w[k] - d_mean - (x[k] - mean) * rstd * d_product);
            if (n.accumulate_input) {
                ls_load(x, n.input + at + c);
#pragma unroll
                for (int k = 0; k < N; k++) dy[k] += x[k];
            }
            ls_store(n.input + at + c, dy);
        }
    }
}

template <typename T, int N, bool CENTRED>
__global__ void __launch_bounds__(LS_COLUMN_THREADS, 2)
    backward_parameters(norm_gradient<T> n, struct ls_slices slices) {
    float *const sums[2] = {n.weight, CENTRED ? n.bias : nullptr};
    ls_sum_columns<T, N, 2>(sums, slices, n.rows, n.columns, [&](int64_t row, int64_t column, float(&values)[2][N]) {
        const float mean = CENTRED ? n.mean[row] : 0.0f, rstd = n.rstd[row];
        float x[N];
        ls_load(values[1], n.output_gradient + row * n.columns + column);
        ls_load(x, n.x + row * n.columns + column);
#pragma unroll
        for (int k = 0; k < N; k++) values[0][k] = values[1][k] * ((x[k] - mean) * rstd);
    });
}

template <typename T, int N, bool CENTRED> cudaError_t put_forward(const norm_arguments<T> &n, cudaStream_t stream) {
    if (n.rows <= 0) return cudaSuccess;
    if (n.columns > LONG_ROW)
        return LS_LAUNCH((forward<T, N, THREADS, CENTRED>), ls_blocks(n.rows, 1), THREADS, 0, stream, n);
    return LS_LAUNCH((forward<T, N, LS_WARP, CENTRED>), ls_blocks(n.rows, THREADS / LS_WARP), THREADS, 0, stream, n);
}

/* Sums of two numbers over the block, the same in all its threads, in the order of its warps. Calls alternate between
 * the two halves of `parts`, so that one barrier for each is enough. */
__device__ __forceinline__ void add_over_block(float &a, float &b, float (&parts)[2][LS_NORM_THREADS / LS_WARP]) {
    const int warp = static_cast<int>(threadIdx.x) / LS_WARP, warps = static_cast<int>(blockDim.x) / LS_WARP;
    a = ls_warp_sum(a);
    b = ls_warp_sum(b);
    if (threadIdx.x % LS_WARP == 0) parts[0][warp] = a, parts[1][warp] = b;
    __syncthreads();
    a = parts[0][0], b = parts[1][0];
    for (int w = 1; w < warps; w++) a += parts[0][w], b += parts[1][w];
}

/* Both gradients in one pass: dy, x and the residual's gradient are read once. A block has a slice of rows, a thread a
 * pack of columns whose sums it keeps; a row is under way from memory while the one before is worked on. */
template <typename T, bool CENTRED>
__global__ void __launch_bounds__(LS_NORM_THREADS) backward(norm_gradient<T> n, struct ls_slices slices) {
    constexpr int N = ls_pack<T>;
    LS_SHARED(float, parts, [2][2][LS_NORM_THREADS / LS_WARP]);
    const int64_t column = static_cast<int64_t>(threadIdx.x) * N, slice = blockIdx.x, first = slice * slices.rows;
    const int64_t end = n.rows - first < slices.rows ? n.rows : first + slices.rows;
    const bool own = column < n.columns;
    const float columns = static_cast<float>(n.columns);
    float w[N] = {}, weight[N] = {}, bias[N] = {}, next_mean = 0.0f, next_rstd = 0.0f;
    int4 next_dy = {}, next_x = {}, next_dx = {};
    const auto load = [&](int64_t row) {
        const int64_t at = row * n.columns + column;
        if (CENTRED) next_mean = n.mean[row];
        next_rstd = n.rstd[row];
        if (!own) return;
        next_dy = ls_load_bits(n.output_gradient + at);
        next_x = ls_load_bits(n.x + at);
        if (n.accumulate_input) next_dx = ls_load_bits(n.input + at);
    };
    if (own) ls_load(w, n.scale + column);
    load(first);
    for (int64_t row = first; row < end; row++) {
        const int64_t at = row * n.columns + column;
        const float mean = next_mean, rstd = next_rstd;
        const int4 dx_bits = next_dx;
        float dy[N], x[N], sum = 0.0f, product = 0.0f;
        ls_unpack(dy, next_dy, n.x);
        ls_unpack(x, next_x, n.x);
        if (row + 1 < end) load(row + 1);
#pragma unroll
        for (int k = 0; k < N; k++) {
            x[k] = (x[k] - mean) * rstd;
            weight[k] += dy[k] * x[k];
            bias[k] += dy[k];
            dy[k] *= w[k];
            sum += dy[k];
            product += dy[k] * x[k];
        }
        add_over_block(sum, product, parts[(row - first) % 2]);
        if (!own) continue;
        const float d_mean = CENTRED ? sum / columns : 0.0f, d_product = product / columns;
#pragma unroll
        for (int k = 0; k < N; k++) dy[k] = rstd * (dy[k] - d_mean - x[k] * d_product);
        if (n.accumulate_input) {
            ls_unpack(x, dx_bits, n.x);
#pragma unroll
            for (int k = 0; k < N; k++) dy[k] += x[k];
        }
        ls_store(n.input + at, dy);
    }
    if (!own) return;
#pragma unroll
    for (int k = 0; k < N; k++) {
        float *const partial = slices.partial + slice * n.columns + column + k;
        if (slices.count == 1) {
            n.weight[column + k] += weight[k];
            if (CENTRED) n.bias[column + k] += bias[k];
        } else {
            *partial = weight[k];
            if (CENTRED) partial[slices.count * n.columns] = bias[k];
        }
    }
}

template <typename T, bool CENTRED>
cudaError_t put_backward_at_once(const norm_gradient<T> &n, int64_t threads, cudaStream_t stream) {
    const int64_t each = ls_cuda_norm_slice_rows(n.rows, threads), count = (n.rows + each - 1) / each;
    if (n.rows <= 0) return cudaSuccess;
    if (count > 1 && !n.workspace) return cudaErrorInvalidValue;
    const struct ls_slices slices = {static_cast<float *>(n.workspace), each, count};
    const cudaError_t error = LS_LAUNCH((backward<T, CENTRED>), static_cast<unsigned>(count),
                                        static_cast<unsigned>(threads), 0, stream, n, slices);
    return error != cudaSuccess || count == 1
               ? error
               : ls_put_slice_sums(n.weight, CENTRED ? n.bias : nullptr, slices, n.columns, stream);
}

/* The parameters' gradients first: the input's may lie over what they read. */
template <typename T, int N, bool CENTRED> cudaError_t put_backward(const norm_gradient<T> &n, cudaStream_t stream) {
    if (n.rows <= 0) return cudaSuccess;
    float *const sums[2] = {n.weight, CENTRED ? n.bias : nullptr};
    const cudaError_t error = ls_put_column_sums<T, N>(
        sums, n.workspace, n.rows, n.columns, stream, [=](dim3 grid, const struct ls_slices &slices) {
            return LS_LAUNCH((backward_parameters<T, N, CENTRED>), grid, LS_COLUMN_THREADS, 0, stream, n, slices);
        });
    if (error != cudaSuccess) return error;
    if (n.columns > LONG_ROW)
        return LS_LAUNCH((backward_input<T, N, THREADS, CENTRED>), ls_blocks(n.rows, 1), THREADS, 0, stream, n);
    return LS_LAUNCH((backward_input<T, N, LS_WARP, CENTRED>), ls_blocks(n.rows, THREADS / LS_WARP), THREADS, 0, stream,
                     n);
}

template <typename T, bool CENTRED> cudaError_t run(const norm_arguments<T> &n, cudaStream_t stream) {
    const bool aligned = ls_aligned(n.output, n.input, n.weight, n.bias);
    if (aligned && n.columns % ls_pack<T> == 0) return put_forward<T, ls_pack<T>, CENTRED>(n, stream);
    return put_forward<T, 1, CENTRED>(n, stream);
}

template <typename T, bool CENTRED> cudaError_t run(const norm_gradient<T> &n, cudaStream_t stream) {
    const bool aligned = ls_aligned(n.input, n.output_gradient, n.x, n.scale);
    const int64_t threads = ls_cuda_norm_threads(n.columns, static_cast<int64_t>(sizeof(T)));
    if (aligned && threads > 0) return put_backward_at_once<T, CENTRED>(n, threads, stream);
    if (aligned && n.columns % ls_pack<T> == 0) return put_backward<T, ls_pack<T>, CENTRED>(n, stream);
    return put_backward<T, 1, CENTRED>(n, stream);
}

} // namespace

cudaError_t ls_cuda_layernorm_forward(const struct ls_op_layernorm_forward *op, cudaStream_t stream) {
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        const norm_arguments<T> n = {static_cast<T *>(op->output),
                                     op->mean,
                                     op->rstd,
                                     static_cast<const T *>(op->input),
                                     static_cast<const T *>(op->weight),
                                     static_cast<const T *>(op->bias),
                                     op->rows,
                                     op->columns,
                                     op->epsilon};
        return run<T, true>(n, stream);
    });
}

cudaError_t ls_cuda_rmsnorm_forward(const struct ls_op_rmsnorm_forward *op, cudaStream_t stream) {
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        const norm_arguments<T> n = {static_cast<T *>(op->output),
                                     nullptr,
                                     op->rstd,
                                     static_cast<const T *>(op->input),
                                     static_cast<const T *>(op->weight),
                                     nullptr,
                                     op->rows,
                                     op->columns,
                                     op->epsilon};
        return run<T, false>(n, stream);
    });
}

cudaError_t ls_cuda_layernorm_backward(const struct ls_op_layernorm_backward *op, cudaStream_t stream) {
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        const norm_gradient<T> n = {static_cast<T *>(op->input_gradient),
                                    op->weight_gradient,
                                    op->bias_gradient,
                                    op->workspace,
                                    static_cast<const T *>(op->output_gradient),
                                    static_cast<const T *>(op->input),
                                    static_cast<const T *>(op->weight),
                                    op->mean,
                                    op->rstd,
                                    op->rows,
                                    op->columns,
                                    op->accumulate_input};
        return run<T, true>(n, stream);
    });
}

cudaError_t ls_cuda_rmsnorm_backward(const struct ls_op_rmsnorm_backward *op, cudaStream_t stream) {
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        const norm_gradient<T> n = {static_cast<T *>(op->input_gradient),
                                    op->weight_gradient,
                                    nullptr,
                                    op->workspace,
                                    static_cast<const T *>(op->output_gradient),
                                    static_cast<const T *>(op->input),
                                    static_cast<const T *>(op->weight),
                                    nullptr,
                                    op->rstd,
                                    op->rows,
                                    op->columns,
                                    op->accumulate_input};
        return run<T, false>(n, stream);
    });
}
