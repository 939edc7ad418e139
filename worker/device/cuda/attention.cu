/* Causal attention, forward, multiplied in fp32: fp32 itself, and in 16 bits what tensor cores' tiles do not hold
 * (tensor_attention.cu). A block takes a tile of queries of one head through the tiles of keys that any of them
 * sees, with a streaming softmax (Milakov & Gimelshein 2018; Dao 2022, algorithm 1). */
#include "worker/device/cuda/attention.h"

namespace {

template <int SIZE, int TILE> constexpr int forward_bytes = 3 * ls_tile_floats(TILE, SIZE) * 4;

template <typename T, int SIZE, int TILE>
__global__ void __launch_bounds__(LS_TILE_THREADS, 2) forward(ls_attention<T> p, int64_t tiles) {
    constexpr int R = TILE / LS_TILE_SIDE, P_PITCH = TILE + LS_TILE_PAD;
    static_assert(TILE <= SIZE, "the scores take the place of the keys");
    LS_DYNAMIC_SHARED(float, shared);
    float *const queries = shared, *const keys = queries + ls_tile_floats(TILE, SIZE),
                 *const values = keys + ls_tile_floats(TILE, SIZE), *const scores = keys;
    /* The last tiles, which see the most keys, come first. */
    const int64_t tile = tiles - 1 - blockIdx.x % tiles, head = blockIdx.x / tiles % p.heads,
                  b = blockIdx.x / tiles / p.heads;
    const int64_t i0 = tile * TILE, rows = p.query_length - i0 < TILE ? p.query_length - i0 : TILE;
    const int64_t position = p.key_length - p.query_length + i0, last = position + rows;
    const int32_t *start = p.document_start ? p.document_start + b * p.query_length + i0 : nullptr;
    const int64_t kv = b * p.kv_batch_stride + head / (p.heads / p.kv_heads) * p.size;
    ls_load_tile<TILE, SIZE>(queries, p.q + b * p.q_batch_stride + i0 * p.q_stride + head * p.size, p.q_stride, rows,
                             p.size, p.wide);
    const float scale = p.scale * LS_LOG2_E; /* exponentials are powers of two */
    float sum[R], maximum[R], out[R][SIZE / 16];
#pragma unroll
    for (int i = 0; i < R; i++) {
        sum[i] = 0.0f;
        maximum[i] = -INFINITY;
#pragma unroll
        for (int c = 0; c < SIZE / 16; c++) out[i][c] = 0.0f;
    }
    for (int64_t k0 = ls_first_key(start); k0 < last; k0 += TILE) {
        ls_load_tile<TILE, SIZE>(keys, p.k + kv + k0 * p.kv_stride, p.kv_stride, last - k0, p.size, p.wide);
        ls_load_tile<TILE, SIZE>(values, p.v + kv + k0 * p.kv_stride, p.kv_stride, last - k0, p.size, p.wide);
        __syncthreads();
        float s[R][R];
        ls_multiply_rows<R, SIZE, SIZE == 128 ? 1 : 2>(s, queries, keys);
#pragma unroll
        for (int i = 0; i < R; i++) {
            const int row = ls_tile_y() + i * LS_TILE_SIDE;
            /* keys [lo, hi) of the tile are seen */
            const int64_t first = start && row < rows ? start[row] : 0;
            const int lo = first > k0 ? static_cast<int>(first - k0 < TILE ? first - k0 : TILE) : 0;
            const int64_t end = position + row + 1 - k0;
            const int hi = row < rows ? static_cast<int>(end < TILE ? end : TILE) : 0;
            float highest = maximum[i];
#pragma unroll
            for (int j = 0; j < R; j++) {
                const int key = ls_tile_x() + j * LS_TILE_SIDE;
                s[i][j] = key >= lo && key < hi ? s[i][j] * scale : -INFINITY;
                highest = fmaxf(highest, s[i][j]);
            }
            highest = ls_row_maximum(highest);
            const float base = highest == -INFINITY ? 0.0f : highest, factor = exp2f(maximum[i] - base);
            float part = 0.0f;
#pragma unroll
            for (int j = 0; j < R; j++) {
                s[i][j] = exp2f(s[i][j] - base);
                part += s[i][j];
            }
            sum[i] = sum[i] * factor + ls_row_sum(part);
            maximum[i] = highest;
#pragma unroll
            for (int c = 0; c < SIZE / 16; c++) out[i][c] *= factor;
        }
        __syncthreads(); /* the keys have been read */
#pragma unroll
        for (int i = 0; i < R; i++)
#pragma unroll
            for (int j = 0; j < R; j++)
                scores[(ls_tile_y() + i * LS_TILE_SIDE) * P_PITCH + ls_tile_x() + j * LS_TILE_SIDE] = s[i][j];
        __syncthreads();
        ls_multiply_add<R, TILE, SIZE>(out, scores, values);
        __syncthreads(); /* scores and values have been read */
    }
#pragma unroll
    for (int i = 0; i < R; i++) {
        const int64_t row = ls_tile_y() + i * LS_TILE_SIDE;
        if (row >= rows) continue;
        T *to = p.result + b * p.output_batch_stride + (i0 + row) * p.output_stride + head * p.size;
        ls_store_row<SIZE>(to, out[i], 1.0f / sum[i], p.size, p.wide);
        if (p.lse_result && ls_tile_x() == 0)
            p.lse_result[(b * p.heads + head) * p.query_length + i0 + row] = (maximum[i] + log2f(sum[i])) * LS_LN_2;
    }
}

template <typename T, int SIZE, int TILE> cudaError_t put(const ls_attention<T> &p, cudaStream_t stream) {
    const int64_t tiles = (p.query_length + TILE - 1) / TILE;
    const cudaError_t error = LS_ALLOW_SHARED((forward<T, SIZE, TILE>), (forward_bytes<SIZE, TILE>));
    if (error != cudaSuccess) return error;
    return LS_LAUNCH((forward<T, SIZE, TILE>), ls_blocks(p.batch * p.heads * tiles, 1), LS_TILE_THREADS,
                     (forward_bytes<SIZE, TILE>), stream, p, tiles);
}

} // namespace

cudaError_t ls_cuda_attention_forward(const struct ls_op_attention_forward *op, cudaStream_t stream) {
    if (op->head_size > LS_CUDA_HEAD_SIZE_MAX) return cudaErrorInvalidValue;
    if (op->batch <= 0 || op->query_length <= 0) return cudaSuccess;
    return ls_by_type(op->dtype, [=](auto element) {
        using T = decltype(element);
        ls_attention<T> p = ls_attention_base<T>(op);
        p.result = static_cast<T *>(op->output);
        p.lse_result = op->lse;
        p.query_length = op->query_length;
        p.key_length = op->key_length;
        p.wide = p.wide && ls_aligned(p.result);
        if constexpr (sizeof(T) == 2) {
            if (ls_on_tensor_cores(p)) return ls_tensor_attention(p, stream);
        } else { /* what 16 bits leave for here is rare: two sizes of tiles do */
            if (p.size <= 64) return put<T, 64, 64>(p, stream);
        }
        if (p.size <= 128) return put<T, 128, 64>(p, stream);
        return put<T, 256, 32>(p, stream);
    });
}
