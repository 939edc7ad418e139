/* Causal attention, backward (Dao 2022, algorithm 4), in passes of which each writes what is its own: the products of
 * output and gradient per query; the gradient of the queries, a block per tile of queries; those of keys and values, a
 * block per tile of keys, which meets the query heads and tiles in order. No atomics. */
#include "worker/device/cuda/attention.h"

namespace {

constexpr float LOG2_E = 1.44269504f;
constexpr int PRODUCT_THREADS = 256;

template <typename T> struct problem {
    T *dq, *dk, *dv;
    float *product; /* [B, heads, length]: sum over channels of output times its gradient */
    const T *d_output, *output, *q, *k, *v;
    const float *lse;
    const int32_t *document_start;
    int64_t length, heads, kv_heads, tiles;
    int64_t q_stride, kv_stride, output_stride, q_batch_stride, kv_batch_stride, output_batch_stride;
    float scale;
    int size;
    bool wide;
};

template <typename T> __global__ void __launch_bounds__(PRODUCT_THREADS) products(problem<T> p, int64_t count) {
    const int64_t item = ls_grid_thread() / LS_WARP;
    if (item >= count) return; /* the whole warp */
    const int64_t i = item % p.length, head = item / p.length % p.heads, b = item / p.length / p.heads;
    const int64_t at = b * p.output_batch_stride + i * p.output_stride + head * p.size;
    float sum = 0.0f;
    for (int c = static_cast<int>(threadIdx.x) % LS_WARP; c < p.size; c += LS_WARP)
        sum += ls_to_float(p.d_output[at + c]) * ls_to_float(p.output[at + c]);
    sum = ls_warp_sum(sum);
    if (threadIdx.x % LS_WARP == 0) p.product[item] = sum;
}

/* Of the queries [q0, q0 + rows) and keys from k0 on: this thread's probabilities, and the gradients of its scores. */
template <typename T, int SIZE, int TILE>
__device__ __forceinline__ void score_gradients(const problem<T> &p, int64_t row_base, const int32_t *start, int64_t q0,
                                                int64_t rows, int64_t k0, const float *queries, const float *d_outputs,
                                                const float *keys, const float *values,
                                                float (&s)[TILE / 16][TILE / 16], float (&ds)[TILE / 16][TILE / 16]) {
    constexpr int R = TILE / LS_TILE_SIDE;
    ls_multiply_rows<R, SIZE, SIZE == 64 ? 1 : 2>(s, queries, keys);
    ls_multiply_rows<R, SIZE, SIZE == 64 ? 1 : 2>(ds, d_outputs, values);
#pragma unroll
    for (int i = 0; i < R; i++) {
        const int row = ls_tile_y() + i * LS_TILE_SIDE;
        const bool there = row < rows;
        const float lse = there ? p.lse[row_base + row] * LOG2_E : 0.0f,
                    product = there ? p.product[row_base + row] : 0.0f;
        const int64_t first = start && there ? start[row] : 0, end = there ? q0 + row + 1 : 0;
#pragma unroll
        for (int j = 0; j < R; j++) {
            const int64_t key = k0 + ls_tile_x() + j * LS_TILE_SIDE;
            const bool seen = key >= first && key < end;
            s[i][j] = seen ? exp2f(s[i][j] * (p.scale * LOG2_E) - lse) : 0.0f;
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
__global__ void __launch_bounds__(LS_TILE_THREADS, 2) query_gradient(problem<T> p) {
    constexpr int R = TILE / LS_TILE_SIDE, FLOATS = ls_tile_floats(TILE, SIZE);
    LS_DYNAMIC_SHARED(float, shared);
    float *const queries = shared, *const d_outputs = queries + FLOATS, *const keys = d_outputs + FLOATS,
                 *const values = keys + FLOATS, *const scores = values + FLOATS;
    const int64_t tile = p.tiles - 1 - blockIdx.x % p.tiles, head = blockIdx.x / p.tiles % p.heads,
                  b = blockIdx.x / p.tiles / p.heads;
    const int64_t q0 = tile * TILE, rows = p.length - q0 < TILE ? p.length - q0 : TILE, last = q0 + rows;
    const int32_t *start = p.document_start ? p.document_start + b * p.length + q0 : nullptr;
    const int64_t kv = b * p.kv_batch_stride + head / (p.heads / p.kv_heads) * p.size;
    const int64_t at_q = b * p.q_batch_stride + q0 * p.q_stride + head * p.size;
    const int64_t at_output = b * p.output_batch_stride + q0 * p.output_stride + head * p.size;
    const int64_t row_base = (b * p.heads + head) * p.length + q0;
    ls_load_tile<TILE, SIZE>(queries, p.q + at_q, p.q_stride, rows, p.size, p.wide);
    ls_load_tile<TILE, SIZE>(d_outputs, p.d_output + at_output, p.output_stride, rows, p.size, p.wide);
    float dq[R][SIZE / 16] = {};
    for (int64_t k0 = ls_first_key(start, rows); k0 < last; k0 += TILE) {
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
__global__ void __launch_bounds__(LS_TILE_THREADS, 2) key_gradients(problem<T> p) {
    constexpr int R = TILE / LS_TILE_SIDE, FLOATS = ls_tile_floats(TILE, SIZE);
    LS_DYNAMIC_SHARED(float, shared);
    float *const queries = shared, *const d_outputs = queries + FLOATS, *const keys = d_outputs + FLOATS,
                 *const values = keys + FLOATS, *const scores = values + FLOATS;
    const int64_t k0 = blockIdx.x % p.tiles * TILE, kv_head = blockIdx.x / p.tiles % p.kv_heads,
                  b = blockIdx.x / p.tiles / p.kv_heads;
    const int64_t key_rows = p.length - k0 < TILE ? p.length - k0 : TILE, group = p.heads / p.kv_heads;
    const int64_t kv = b * p.kv_batch_stride + k0 * p.kv_stride + kv_head * p.size;
    ls_load_tile<TILE, SIZE>(keys, p.k + kv, p.kv_stride, key_rows, p.size, p.wide);
    ls_load_tile<TILE, SIZE>(values, p.v + kv, p.kv_stride, key_rows, p.size, p.wide);
    float dk[R][SIZE / 16] = {}, dv[R][SIZE / 16] = {};
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (int64_t q0 = k0; q0 < p.length; q0 += TILE) {
            const int64_t rows = p.length - q0 < TILE ? p.length - q0 : TILE;
            const int32_t *start = p.document_start ? p.document_start + b * p.length + q0 : nullptr;
            if (ls_first_key(start, rows) >= k0 + key_rows) continue; /* all of these are in later documents */
            ls_load_tile<TILE, SIZE>(queries, p.q + b * p.q_batch_stride + q0 * p.q_stride + head * p.size, p.q_stride,
                                     rows, p.size, p.wide);
            ls_load_tile<TILE, SIZE>(d_outputs,
                                     p.d_output + b * p.output_batch_stride + q0 * p.output_stride + head * p.size,
                                     p.output_stride, rows, p.size, p.wide);
            __syncthreads();
            float s[R][R], ds[R][R];
            score_gradients<T, SIZE, TILE>(p, (b * p.heads + head) * p.length + q0, start, q0, rows, k0, queries,
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

template <typename T, int SIZE, int TILE> cudaError_t put(problem<T> p, int64_t batch, cudaStream_t stream) {
    constexpr int BYTES = backward_bytes<SIZE, TILE>;
    const int64_t items = batch * p.heads * p.length;
    p.tiles = (p.length + TILE - 1) / TILE;
    cudaError_t error =
        LS_LAUNCH((products<T>), ls_blocks(items, PRODUCT_THREADS / LS_WARP), PRODUCT_THREADS, 0, stream, p, items);
    if (error == cudaSuccess) error = LS_ALLOW_SHARED((query_gradient<T, SIZE, TILE>), BYTES);
    if (error == cudaSuccess)
        error = LS_LAUNCH((query_gradient<T, SIZE, TILE>), ls_blocks(batch * p.heads * p.tiles, 1), LS_TILE_THREADS,
                          BYTES, stream, p);
    if (error == cudaSuccess) error = LS_ALLOW_SHARED((key_gradients<T, SIZE, TILE>), BYTES);
    if (error == cudaSuccess)
        error = LS_LAUNCH((key_gradients<T, SIZE, TILE>), ls_blocks(batch * p.kv_heads * p.tiles, 1), LS_TILE_THREADS,
                          BYTES, stream, p);
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
        const int64_t offsets[] = {op->head_size,      op->q_stride,        op->kv_stride,          op->output_stride,
                                   op->q_batch_stride, op->kv_batch_stride, op->output_batch_stride};
        problem<T> p = {};
        p.dq = static_cast<T *>(op->q_gradient);
        p.dk = static_cast<T *>(op->k_gradient);
        p.dv = static_cast<T *>(op->v_gradient);
        p.product = static_cast<float *>(op->workspace);
        p.d_output = static_cast<const T *>(op->output_gradient);
        p.output = static_cast<const T *>(op->output);
        p.q = static_cast<const T *>(op->q);
        p.k = static_cast<const T *>(op->k);
        p.v = static_cast<const T *>(op->v);
        p.lse = op->lse;
        p.document_start = op->document_start;
        p.length = op->length;
        p.heads = op->heads;
        p.kv_heads = op->kv_heads;
        p.q_stride = op->q_stride;
        p.kv_stride = op->kv_stride;
        p.output_stride = op->output_stride;
        p.q_batch_stride = op->q_batch_stride;
        p.kv_batch_stride = op->kv_batch_stride;
        p.output_batch_stride = op->output_batch_stride;
        p.scale = op->scale;
        p.size = static_cast<int>(op->head_size);
        p.wide = ls_aligned(p.dq, p.dk, p.dv, p.d_output, p.q, p.k, p.v);
        for (const int64_t offset : offsets) p.wide = p.wide && offset % ls_pack<T> == 0;
        if (p.size <= 64) return put<T, 64, 64>(p, op->batch, stream);
        if (p.size <= 128) return put<T, 128, 32>(p, op->batch, stream);
        return put<T, 256, 16>(p, op->batch, stream);
    });
}
