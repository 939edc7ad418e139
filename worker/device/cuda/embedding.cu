/* Token and position embedding. Backward gives every row of the token table to one block, that of the first place where
 * the token occurs: it meets the others in order and adds them up, without atomics or sorting. */
#include "worker/device/cuda/element.h"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / LS_WARP;

template <typename T> struct table {
    T *output;
    const int32_t *tokens;
    const T *token, *position;
    int64_t rows, length, channels, first_position;
};

template <typename T, int N> __global__ void __launch_bounds__(THREADS) forward(table<T> t) {
    const int64_t count = t.rows * t.channels;
    for (int64_t i = ls_grid_thread() * N; i < count; i += ls_grid_threads() * N) {
        const int64_t row = i / t.channels, channel = i % t.channels;
        float x[N], p[N];
        ls_load(x, t.token + t.tokens[row] * t.channels + channel);
        if (t.position) {
            ls_load(p, t.position + (t.first_position + row % t.length) * t.channels + channel);
#pragma unroll
            for (int k = 0; k < N; k++) x[k] += p[k];
        }
        ls_store(t.output + i, x);
    }
}

/* One block for each place of a token; it leaves when the token stands further to the front too. Places of the token
 * are collected THREADS at a time, in order, and their rows added to the table's, each thread for its own channels. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    token_backward(float *gradient, const T *output_gradient, const int32_t *tokens, int64_t rows, int64_t channels) {
    LS_SHARED(int64_t, places, [THREADS]);
    LS_SHARED(int, found, [WARPS]);
    const int thread = static_cast<int>(threadIdx.x), lane = thread % LS_WARP, warp = thread / LS_WARP;
    const int64_t own = blockIdx.x;
    const int32_t token = tokens[own];
    for (int64_t first = 0; first < own; first += THREADS) {
        const bool same = first + thread < own && tokens[first + thread] == token;
        const unsigned votes = __ballot_sync(LS_ALL_LANES, same);
        if (lane == 0) found[warp] = votes != 0;
        __syncthreads();
        bool earlier = false;
        for (int w = 0; w < WARPS; w++) earlier |= found[w] != 0;
        __syncthreads();
        if (earlier) return; /* the same for all threads */
    }
    float *to = gradient + token * channels;
    for (int64_t first = own; first < rows; first += THREADS) {
        const bool same = first + thread < rows && tokens[first + thread] == token;
        const unsigned votes = __ballot_sync(LS_ALL_LANES, same);
        if (lane == 0) found[warp] = __popc(votes);
        __syncthreads();
        int before = 0, count = 0;
        for (int w = 0; w < WARPS; w++) {
            if (w < warp) before += found[w];
            count += found[w];
        }
        if (same) places[before + __popc(votes & ((1u << lane) - 1))] = first + thread;
        __syncthreads();
        if (count > 0)
            for (int64_t channel = thread; channel < channels; channel += THREADS) {
                float sum = to[channel];
                for (int i = 0; i < count; i++) sum += ls_to_float(output_gradient[places[i] * channels + channel]);
                to[channel] = sum;
            }
        /* The next places are written behind a barrier that no thread passes while another reads these. */
    }
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    position_backward(float *gradient, const T *output_gradient, int64_t batch, int64_t row_elements) {
    for (int64_t i = ls_grid_thread() * N; i < row_elements; i += ls_grid_threads() * N) {
        float sum[N], x[N];
        ls_load(sum, gradient + i);
        for (int64_t b = 0; b < batch; b++) {
            ls_load(x, output_gradient + b * row_elements + i);
#pragma unroll
            for (int k = 0; k < N; k++) sum[k] += x[k];
        }
        ls_store(gradient + i, sum);
    }
}

} // namespace

cudaError_t ls_cuda_embedding_forward(const struct ls_op_embedding_forward *op, cudaStream_t stream) {
    const int64_t count = op->batch * op->length * op->channels;
    if (count <= 0) return cudaSuccess;
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        constexpr int N = ls_pack<T>;
        const table<T> t = {static_cast<T *>(op->output),
                            op->tokens,
                            static_cast<const T *>(op->token_table),
                            static_cast<const T *>(op->position_table),
                            op->batch * op->length,
                            op->length,
                            op->channels,
                            op->first_position};
        if (ls_aligned(t.output, t.token, t.position) && op->channels % N == 0)
            return LS_LAUNCH((forward<T, N>), ls_blocks(count, THREADS * N), THREADS, 0, stream, t);
        return LS_LAUNCH((forward<T, 1>), ls_blocks(count, THREADS), THREADS, 0, stream, t);
    });
}

cudaError_t ls_cuda_embedding_backward(const struct ls_op_embedding_backward *op, cudaStream_t stream) {
    const int64_t rows = op->batch * op->length, row_elements = op->length * op->channels;
    if (rows <= 0 || op->channels <= 0) return cudaSuccess;
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        constexpr int N = ls_pack<T>;
        const T *gradient = static_cast<const T *>(op->output_gradient);
        cudaError_t error = cudaSuccess;
        if (op->token_gradient)
            error = LS_LAUNCH((token_backward<T>), ls_blocks(rows, 1), THREADS, 0, stream, op->token_gradient, gradient,
                              op->tokens, rows, op->channels);
        if (error != cudaSuccess || !op->position_gradient) return error;
        if (ls_aligned(op->position_gradient, gradient) && row_elements % N == 0)
            return LS_LAUNCH((position_backward<T, N>), ls_blocks(row_elements, THREADS * N), THREADS, 0, stream,
                             op->position_gradient, gradient, op->batch, row_elements);
        return LS_LAUNCH((position_backward<T, 1>), ls_blocks(row_elements, THREADS), THREADS, 0, stream,
                         op->position_gradient, gradient, op->batch, row_elements);
    });
}
