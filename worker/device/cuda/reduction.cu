/* Sums whose order the contract gives: column sums of bias gradients, sums of squares per 1024 elements in double, and
 * what is made of the norm. */
#include "worker/device/cuda/columns.h"
#include "worker/device/cuda/ordered.h"
#include "worker/device/cuda/shared_sum.h"

namespace {

/* A warp sums one piece of 1024 elements. */
constexpr int THREADS = 256, NORM_PIECE = 1024;

template <typename T, int N>
__global__ void __launch_bounds__(LS_COLUMN_THREADS, 2)
    bias_backward(float *bias_gradient, const T *output_gradient, struct ls_slices slices, int64_t rows,
                  int64_t columns) {
    float *const sums[1] = {bias_gradient};
    ls_sum_columns<T, N, 4>(sums, slices, rows, columns, [=](int64_t row, int64_t column, float(&values)[1][N]) {
        ls_load(values[0], output_gradient + row * columns + column);
    });
}

template <typename T, int N> cudaError_t put_bias_backward(const struct ls_op_bias_backward *op, cudaStream_t stream) {
    float *const sums[1] = {op->bias_gradient};
    return ls_put_column_sums<T, N>(
        sums, op->workspace, op->rows, op->columns, stream, [=](dim3 grid, const struct ls_slices &slices) {
            return LS_LAUNCH((bias_backward<T, N>), grid, LS_COLUMN_THREADS, 0, stream, op->bias_gradient,
                             static_cast<const T *>(op->output_gradient), slices, op->rows, op->columns);
        });
}

template <typename T, int N> __device__ __forceinline__ double sum_of_squares(const T *x, int64_t count, int lane) {
    double sum = 0.0;
    for (int64_t i = lane * N; i < count; i += LS_WARP * N) {
        float v[N];
        if (i + N <= count) {
            ls_load(v, x + i);
        } else {
#pragma unroll
            for (int k = 0; k < N; k++) v[k] = i + k < count ? ls_to_float(x[i + k]) : 0.0f;
        }
#pragma unroll
        for (int k = 0; k < N; k++) sum += static_cast<double>(v[k]) * static_cast<double>(v[k]);
    }
    return ls_warp_sum(sum);
}

/* The order of a piece's sum does not depend on where it lies: an input that is not aligned is read element by element
 * in the same order. */
template <typename T>
__global__ void __launch_bounds__(THREADS) squares(double *partial, const T *input, int64_t count, bool aligned) {
    const int64_t piece = ls_grid_thread() / LS_WARP, first = piece * NORM_PIECE;
    if (first >= count) return;
    const int64_t length = count - first < NORM_PIECE ? count - first : NORM_PIECE;
    const int lane = static_cast<int>(threadIdx.x) % LS_WARP;
    constexpr int N = ls_pack<T>;
    double sum = 0.0;
    if (aligned) {
        sum = sum_of_squares<T, N>(input + first, length, lane);
    } else {
        for (int64_t i = lane * N; i < length; i += LS_WARP * N)
            for (int64_t k = i; k < i + N && k < length; k++) {
                const double x = static_cast<double>(ls_to_float(input[first + k]));
                sum += x * x;
            }
        sum = ls_warp_sum(sum);
    }
    if (lane == 0) partial[piece] = sum;
}

/* A block for each LS_SUM_SPAN values, whose sum it puts in the place of the first. */
__global__ void __launch_bounds__(LS_SUM_THREADS) sum_spans(double *values, int64_t count) {
    const int64_t first = static_cast<int64_t>(blockIdx.x) * LS_SUM_SPAN, left = count - first;
    const double sum = ls_shared_sum(values + first, left < LS_SUM_SPAN ? left : LS_SUM_SPAN, 1);
    if (threadIdx.x == 0) values[first] = sum; /* all have been read: the sum has been through barriers */
}

__global__ void __launch_bounds__(LS_WARP) clip(struct ls_op_clip op) {
    if (threadIdx.x != 0) return;
    const double scale = op.loss_scale > 0.0f ? static_cast<double>(op.loss_scale) : 1.0;
    const double norm = sqrt(op.squared[0]) / scale, maximum = static_cast<double>(op.maximum);
    *op.norm = static_cast<float>(norm);
    *op.factor = static_cast<float>((maximum > 0.0 && norm > maximum ? maximum / norm : 1.0) / scale);
    *op.found_inf = !isfinite(norm);
}

/* Sums of spans first where there are several. */
cudaError_t put_shared_sum(double *result, double *values, int64_t count, cudaStream_t stream) {
    if (count <= LS_SUM_SPAN)
        return LS_LAUNCH((ls_add_shared_sum<double>), 1, LS_SUM_THREADS, 0, stream, result, values, count, 1);
    const unsigned spans = ls_blocks(count, LS_SUM_SPAN);
    const cudaError_t error = LS_LAUNCH(sum_spans, spans, LS_SUM_THREADS, 0, stream, values, count);
    if (error != cudaSuccess) return error;
    return LS_LAUNCH((ls_add_shared_sum<double>), 1, LS_SUM_THREADS, 0, stream, result, values, spans, LS_SUM_SPAN);
}

} // namespace

cudaError_t ls_cuda_bias_backward(const struct ls_op_bias_backward *op, cudaStream_t stream) {
    if (op->rows <= 0 || op->columns <= 0) return cudaSuccess;
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        constexpr int N = ls_pack<T>;
        return ls_aligned(op->output_gradient) && op->columns % N == 0 ? put_bias_backward<T, N>(op, stream)
                                                                       : put_bias_backward<T, 1>(op, stream);
    });
}

cudaError_t ls_cuda_squared_norm(const struct ls_op_squared_norm *op, cudaStream_t stream) {
    if (op->count <= 0) return cudaSuccess;
    const int64_t pieces = (op->count + NORM_PIECE - 1) / NORM_PIECE;
    if (op->input) {
        const cudaError_t error = ls_by_type(op->dtype, [=](auto element) {
            using T = decltype(element);
            return LS_LAUNCH((squares<T>), ls_blocks(pieces, THREADS / LS_WARP), THREADS, 0, stream, op->partial,
                             static_cast<const T *>(op->input), op->count, ls_aligned(op->input));
        });
        if (error != cudaSuccess) return error;
    }
    if (!op->result) return cudaSuccess;
    if (op->any_order) return put_shared_sum(op->result, op->partial, pieces, stream);
    return ls_put_ordered_sum(op->result, op->partial, pieces, true, stream);
}

cudaError_t ls_cuda_ordered_sum(const struct ls_op_ordered_sum *op, cudaStream_t stream) {
    return ls_put_ordered_sum(op->result, op->input, op->count, false, stream);
}

cudaError_t ls_cuda_clip(const struct ls_op_clip *op, cudaStream_t stream) {
    return LS_LAUNCH(clip, 1, LS_WARP, 0, stream, *op);
}
