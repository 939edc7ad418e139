/* Causal attention, backward, multiplied in fp32 as in attention.cu (Dao 2022, algorithm 4), in passes of which each
 * writes what is its own: the products of output and gradient per query; the gradient of the queries, a block per tile
 * of queries; those of keys and values, a block per tile of keys, which meets the query heads and tiles in order. No
 * atomics. */
#include "worker/device/cuda/attention.h"

namespace {

constexpr int PRODUCT_THREADS = 256;

/* The sums over channels of output times its gradient, of each query of each head. LANES threads share a row, and each
 * takes N neighbouring channels at a time. */
template <typename T, int LANES, int N>
__global__ void __launch_bounds__(PRODUCT_THREADS) products(ls_attention<T> p, int64_t count) {
    static_assert(LS_WARP % LANES == 0, "a row lies within a warp");
    const int64_t item = ls_grid_thread() / LANES, i = item % p.query_length, head = item / p.query_length % p.heads,
                  b = item / p.query_length / p.heads;
    const int64_t at = b * p.output_batch_stride + i * p.output_stride + head * p.size;
    const int lane = static_cast<int>(threadIdx.x) % LANES;
    float sum = 0.0f;
    for (int c = lane * N; c < p.size && item < count; c += LANES * N) {
        float x[N], y[N];
        ls_load(x, p.d_output + at + c);
        ls_load(y, p.output + at + c);
#pragma unroll
        for (int k = 0; k < N; k++) sum += x[k] * y[k];
    }
#pragma unroll
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(LS_ALL_LANES, sum, lanes);
    if (lane == 0 && item < count) p.product[item] = sum;
}

template <typename T> cudaError_t put_products(const ls_attention<T> &p, cudaStream_t stream) {
    const int64_t count = p.batch * p.heads * p.query_length;
    constexpr int LANES = 8; /* of 8 channels in 16 bits, 64 together */
    if (p.wide && ls_aligned(p.output))
        return LS_LAUNCH((products<T, LANES, ls_pack<T>>), ls_blocks(count, PRODUCT_THREADS / LANES), PRODUCT_THREADS,
                         0, stream, p, count);
    return LS_LAUNCH((products<T, LS_WARP, 1>), ls_blocks(count, PRODUCT_THREADS / LS_WARP), PRODUCT_THREADS, 0, stream,
                     p, count);
}

/* Of the queries [q0, q0 + rows) and keys from k0 on: this thread's probabilities, and the gradients of its scores. */
template <typename T, int SIZE, int TILE>
__device__ __forceinline__ void score_gradients(const ls_attention<T> &p, int64_t row_base, const int32_t *start,
                                                int64_t q0, int64_t rows, int64_t k0, const float *queries,
                                                const float *d_outputs, const float *keys, const float *values,
                                                float (&s)[TILE / 16][TILE / 16], float (&ds)[TILE / 16][TILE / 16]) {
    constexpr int R = TILE / LS_TILE_SIDE;
    ls_multiply_rows<R, SIZE, SIZE == 64 ? 1 : 2>(s, queries, keys);
    ls_multiply_rows<R, SIZE, SIZE == 64 ? 1 : 2>(ds, d_outputs, values);
#pragma unroll
    for (int i = 0; i < R; i++) {
        const int row = ls_tile_y() + i * LS_TILE_SIDE;
        const bool there = row < rows;
        const float lse = there ? p.lse[row_base + row] * LS_LOG2_E : 0.0f,
                    product = there ? p.product[row_base + row] : 0.0f;
        const int64_t first = start && there ? start[row] : 0, end = there ? q0 + row + 1 : 0;
#pragma unroll
        for (int j = 0; j < R; j++) {
            const int64_t key = k0 + ls_tile_x() + j * LS_TILE_SIDE;
            const bool seen = key >= first && key < end;
            s[i][j] = seen ? exp2f(s[i][j] * (p.scale * LS_LOG2_E) - lse) : 0.0f;
            ds[i][j] = seen ? s[i][j] * (ds[i][j] - product) * p.scale : 0.0f;
        }
    }
}

template <int TILE> __device__ __forceinline__ void store_scores(float *tile, const float (&s)[TILE / 16][TILE / 16]) {
#pragma unroll
    for (int i = 0; i < TILE / LS_TILE_SIDE; i++)
#pragma unroll
        for (int j = 0; j < TILE / LS_TILE_SIDE; j++)
            tile[(ls_tile_y() + i * LS_TILE_SIDE) * (TILE + LS_TILE_PAD) + ls_tile_x() + j * LS_TILE_SIDE] = s[i][j];
}

template <int SIZE, int TILE>
constexpr int backward_bytes = (4 * ls_tile_floats(TILE, SIZE) + ls_tile_floats(TILE, TILE)) * 4;

template <typename T, int SIZE, int TILE>
__global__ void __launch_bounds__(LS_TILE_THREADS, 2) query_gradient(ls_attention<T> p, int64_t tiles) {
    constexpr int R = TILE / LS_TILE_SIDE, FLOATS = ls_tile_floats(TILE, SIZE);
    LS_DYNAMIC_SHARED(float, shared);
    float *const queries = shared, *const d_outputs = queries + FLOATS, *const keys = d_outputs + FLOATS,
                 *const values = keys + FLOATS, *const scores = values + FLOATS;
    const int64_t tile = tiles - 1 - blockIdx.x % tiles, head = blockIdx.x / tiles % p.heads,
                  b = blockIdx.x / tiles / p.heads;
    const int64_t q0 = tile * TILE, rows = p.query_length - q0 < TILE ? p.query_length - q0 : TILE, last = q0 + rows;
    const int32_t *start = p.document_start ? p.document_start + b * p.query_length + q0 : nullptr;
    const int64_t kv = b * p.kv_batch_stride + head / (p.heads / p.kv_heads) * p.size;
    const int64_t at_q = b * p.q_batch_stride + q0 * p.q_stride + head * p.size;
    const int64_t at_output = b * p.output_batch_stride + q0 * p.output_stride + head * p.size;
    const int64_t row_base = (b * p.heads + head) * p.query_length + q0;
    ls_load_tile<TILE, SIZE>(queries, p.q + at_q, p.q_stride, rows, p.size, p.wide);
    ls_load_tile<TILE, SIZE>(d_outputs, p.d_output + at_output, p.output_stride, rows, p.size, p.wide);
    float dq[R][SIZE / 16] = {};
    for (int64_t k0 = ls_first_key(start); k0 < last; k0 += TILE) {
        ls_load_tile<TILE, SIZE>(keys, p.k + kv + k0 * p.kv_stride, p.kv_stride, last - k0, p.size, p.wide);
        ls_load_tile<TILE, SIZE>(values, p.v + kv + k0 * p.kv_stride, p.kv_stride, last - k0, p.size, p.wide);
        __syncthreads();
        float s[R][R], ds[R][R];
        score_gradients<T, SIZE, TILE>(p, row_base, start, q0, rows, k0, queries, d_outputs, keys, values, s, ds);
        store_scores<TILE>(scores, ds);
        __syncthreads();
        ls_multiply_add<R, TILE, SIZE>(dq, scores, keys);
        __syncthreads(); /* keys, values and scores have been read */
    }
#pragma unroll
    for (int i = 0; i < R; i++) {
        const int64_t row = ls_tile_y() + i * LS_TILE_SIDE;
        if (row < rows) ls_store_row<SIZE>(p.dq + at_q + row * p.q_stride, dq[i], 1.0f, p.size, p.wide);
    }
}

template <typename T, int SIZE, int TILE>
__global__ void __launch_bounds__(LS_TILE_THREADS, 2) key_gradients(ls_attention<T> p, int64_t tiles) {
    constexpr int R = TILE / LS_TILE_SIDE, FLOATS = ls_tile_floats(TILE, SIZE);
    LS_DYNAMIC_SHARED(float, shared);
    float *const queries = shared, *const d_outputs = queries + FLOATS, *const keys = d_outputs + FLOATS,
                 *const values = keys + FLOATS, *const scores = values + FLOATS;
    const int64_t k0 = blockIdx.x % tiles * TILE, kv_head = blockIdx.x / tiles % p.kv_heads,
                  b = blockIdx.x / tiles / p.kv_heads;
    const int64_t key_rows = p.query_length - k0 < TILE ? p.query_length - k0 : TILE, group = p.heads / p.kv_heads;
    const int64_t kv = b * p.kv_batch_stride + k0 * p.kv_stride + kv_head * p.size;
    ls_load_tile<TILE, SIZE>(keys, p.k + kv, p.kv_stride, key_rows, p.size, p.wide);
    ls_load_tile<TILE, SIZE>(values, p.v + kv, p.kv_stride, key_rows, p.size, p.wide);
    float dk[R][SIZE / 16] = {}, dv[R][SIZE / 16] = {};
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (int64_t q0 = k0; q0 < p.query_length; q0 += TILE) {
            const int64_t rows = p.query_length - q0 < TILE ? p.query_length - q0 : TILE;
            const int32_t *start = p.document_start ? p.document_start + b * p.query_length + q0 : nullptr;
            if (ls_first_key(start) >= k0 + key_rows) continue; /* all of these are in later documents */
            ls_load_tile<TILE, SIZE>(queries, p.q + b * p.q_batch_stride + q0 * p.q_stride + head * p.size, p.q_stride,
                                     rows, p.size, p.wide);
            ls_load_tile<TILE, SIZE>(d_outputs,
                                     p.d_output + b * p.output_batch_stride + q0 * p.output_stride + head * p.size,
                                     p.output_stride, rows, p.size, p.wide);
            __syncthreads();
            float s[R][R], ds[R][R];
            score_gradients<T, SIZE, TILE>(p, (b * p.heads + head) * p.query_length + q0, start, q0, rows, k0, queries,
                                           d_outputs, keys, values, s, ds);
            store_scores<TILE>(scores, s);
            __syncthreads();
            ls_multiply_add_transposed<R, TILE, SIZE>(dv, scores, d_outputs);
            __syncthreads(); /* the probabilities have been read */
            store_scores<TILE>(scores, ds);
            __syncthreads();
            ls_multiply_add_transposed<R, TILE, SIZE>(dk, scores, queries);
            __syncthreads(); /* queries, gradients and scores have been read */
        }
#pragma unroll
    for (int i = 0; i < R; i++) {
        const int64_t row = ls_tile_y() * R + i;
        if (row >= key_rows) continue;
        ls_store_row<SIZE>(p.dk + kv + row * p.kv_stride, dk[i], 1.0f, p.size, p.wide);
        ls_store_row<SIZE>(p.dv + kv + row * p.kv_stride, dv[i], 1.0f, p.size, p.wide);
    }
}

template <typename T, int SIZE, int TILE> cudaError_t put(const ls_attention<T> &p, cudaStream_t stream) {
    constexpr int BYTES = backward_bytes<SIZE, TILE>;
    const int64_t tiles = (p.query_length + TILE - 1) / TILE;
    cudaError_t error = LS_ALLOW_SHARED((query_gradient<T, SIZE, TILE>), BYTES);
    if (error == cudaSuccess)
        error = LS_LAUNCH((query_gradient<T, SIZE, TILE>), ls_blocks(p.batch * p.heads * tiles, 1), LS_TILE_THREADS,
                          BYTES, stream, p, tiles);
    if (error == cudaSuccess) error = LS_ALLOW_SHARED((key_gradients<T, SIZE, TILE>), BYTES);
    if (error == cudaSuccess)
        error = LS_LAUNCH((key_gradients<T, SIZE, TILE>), ls_blocks(p.batch * p.kv_heads * tiles, 1), LS_TILE_THREADS,
                          BYTES, stream, p, tiles);
    return error;
}

} // namespace

size_t ls_cuda_attention_backward_workspace(const struct ls_op_attention_backward *op) {
    return static_cast<size_t>(op->batch * op->heads * op->length) * sizeof(float);
}

cudaError_t ls_cuda_attention_backward(const struct ls_op_attention_backward *op, cudaStream_t stream) {
    if (op->head_size > LS_CUDA_HEAD_SIZE_MAX) return cudaErrorInvalidValue;
    if (op->batch <= 0 || op->length <= 0) return cudaSuccess;
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        ls_attention<T> p = ls_attention_base<T>(op);
        p.dq = static_cast<T *>(op->q_gradient);
        p.dk = static_cast<T *>(op->k_gradient);
        p.dv = static_cast<T *>(op->v_gradient);
        p.product = static_cast<float *>(op->workspace);
        p.d_output = static_cast<const T *>(op->output_gradient);
        p.output = static_cast<const T *>(op->output);
        p.lse = op->lse;
        p.query_length = p.key_length = op->length;
        p.wide = p.wide && ls_aligned(p.dq, p.dk, p.dv, p.d_output);
        const cudaError_t error = put_products(p, stream);
        if (error != cudaSuccess) return error;
        if constexpr (sizeof(T) == 2) {
            if (ls_on_tensor_cores(p)) return ls_tensor_attention_backward(p, stream);
        } else { /* what 16 bits leave for here is rare: two sizes of tiles do */
            if (p.size <= 64) return put<T, 64, 64>(p, stream);
        }
        if (p.size <= 128) return put<T, 128, 32>(p, stream);
        return put<T, 256, 16>(p, stream);
    });
}
