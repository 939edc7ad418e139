/* Causal attention on tensor cores, forward (Dao 2022, algorithm 1; Dao 2023 for what a warp owns): a block takes 128
 * queries of one head through the tiles of keys that any of them sees. Each of its warps has 32 queries, whose scores,
 * exponentials and sums stay in its registers; exponentials are rounded to 16 bits for their product with the values,
 * and added up unrounded. Values arrive while scores are made, the next keys while values are used. */
#include "worker/device/cuda/attention.h"
#include "worker/device/cuda/tensor.h"

namespace {

constexpr int THREADS = 128, M = 2, WARP_ROWS = 16 * M, ROWS = THREADS / LS_WARP * WARP_ROWS;
/* Of a tile: what registers hold the scores of. */
template <int SIZE> constexpr int keys_of = SIZE == 64 ? 64 : 32;
template <int SIZE> constexpr int shared_bytes = (ROWS + 2 * keys_of<SIZE>)*SIZE * 2;

/* Makes the scores of keys that a row does not see -infinity. The first key's place is k0, the warp's first row's is
 * position; start: of the first row's document, the last one's counts for all behind it; NULL: no documents. */
template <int N>
__device__ __forceinline__ void mask(float (&s)[M][N][4], int k0, int position, int last_row, const int32_t *start) {
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
        const int row = ls_row_of(i, ls_lane()), low = start ? start[row < last_row ? row : last_row] : 0,
                  high = position + row;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int key = k0 + n * 8 + ls_lane() % 4 * 2 + e;
                if (key < low || key > high) s[i / 2][n][i % 2 * 2 + e] = -INFINITY;
            }
    }
}

/* Scores become exponentials above the rows' maxima so far; sums, each lane's own part, and results so far follow where
 * a maximum has grown. */
template <int SIZE, int N>
__device__ __forceinline__ void add_exponentials(float (&s)[M][N][4], float (&maximum)[2 * M], float (&sum)[2 * M],
                                                 float (&out)[M][SIZE / 8][4], float scale) {
    float factor[2 * M];
    bool grown = false;
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
        float highest = maximum[i];
#pragma unroll
        for (int n = 0; n < N; n++) highest = fmaxf(highest, fmaxf(s[i / 2][n][i % 2 * 2], s[i / 2][n][i % 2 * 2 + 1]));
        highest = fmaxf(highest, __shfl_xor_sync(LS_ALL_LANES, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(LS_ALL_LANES, highest, 2));
        /* The factor is 1 where the maximum stays, which maximum * scale - base would miss by a product's rounding. */
        const float top = highest == -INFINITY ? 0.0f : highest, base = top * scale;
        factor[i] = ls_power_of_two((maximum[i] - top) * scale);
        grown = grown || highest != maximum[i];
        maximum[i] = highest;
        float part = 0.0f;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &x = s[i / 2][n][i % 2 * 2 + e];
                x = ls_power_of_two(x * scale - base);
                part += x;
            }
        sum[i] = sum[i] * factor[i] + part;
    }
    if (!__any_sync(LS_ALL_LANES, grown)) return;
#pragma unroll
    for (int i = 0; i < 2 * M; i++)
#pragma unroll
        for (int c = 0; c < SIZE / 8; c++)
#pragma unroll
            for (int e = 0; e < 2; e++) out[i / 2][c][i % 2 * 2 + e] *= factor[i];
}

template <typename T, int SIZE>
__global__ void __launch_bounds__(THREADS, 2) forward(ls_attention<T> p, ls_attention_order order) {
    constexpr int KEYS = keys_of<SIZE>, N = KEYS / 8;
    LS_DYNAMIC_SHARED(T, shared);
    T *const queries = shared, *const keys = queries + ROWS * SIZE, *const values = keys + KEYS * SIZE;
    const ls_attention_place place = ls_attention_at(order, blockIdx.x);
    const int64_t head = place.pair % p.heads, b = place.pair / p.heads;
    const int tile = order.tiles - 1 - place.tile; /* the last ones, which see the most keys, first */
    const int i0 = tile * ROWS, queries_left = static_cast<int>(p.query_length) - i0,
              rows = queries_left < ROWS ? queries_left : ROWS;
    const int position = static_cast<int>(p.key_length - p.query_length) + i0, last = position + rows;
    const int32_t *start = p.document_start ? p.document_start + b * p.query_length + i0 : nullptr;
    const int64_t kv = b * p.kv_batch_stride + head / (p.heads / p.kv_heads) * p.size;
    const float scale = p.scale * LS_LOG2_E; /* exponentials are powers of two */
    int k0 = static_cast<int>(ls_first_key(start));
    using reader = ls_tile_reader<THREADS, SIZE, T>;
    reader(p.q + b * p.q_batch_stride + i0 * p.q_stride + head * p.size, p.q_stride, rows, p.size)
        .template read<ROWS>(queries, p.q_stride);
    reader next_keys(p.k + kv + k0 * p.kv_stride, p.kv_stride, last - k0, p.size),
        next_values(p.v + kv + k0 * p.kv_stride, p.kv_stride, last - k0, p.size);
    next_keys.template read<KEYS>(keys, p.kv_stride);

    /* Of the warp: its rows that are there, the last of them, and the keys from which on the first and the last row
     * see; a row that is not there has zeros for a query, and its result is not stored. */
    const int own = static_cast<int>(threadIdx.x) / LS_WARP * WARP_ROWS, own_rows = rows - own;
    const int last_row = own_rows < WARP_ROWS ? own_rows - 1 : WARP_ROWS - 1;
    const int low = own_rows <= 0 ? INT32_MAX - KEYS : start ? start[own] : 0;
    const int all_low = start && own_rows > 0 ? start[own + last_row] : 0;
    float sum[2 * M], maximum[2 * M], out[M][SIZE / 8][4] = {};
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
        sum[i] = 0.0f;
        maximum[i] = -INFINITY;
    }
    for (; k0 < last; k0 += KEYS) {
        ls_copies_wait();
        __syncthreads(); /* keys are there; the last values have been read */
        next_values.template read<KEYS>(values, p.kv_stride);
        const bool seen = k0 <= position + own + last_row && k0 + KEYS > low;
        float s[M][N][4] = {};
        if (seen) ls_multiply_rows<SIZE>(s, queries, own, keys, 0);
        ls_copies_wait();
        __syncthreads(); /* values are there; the keys have been read */
        if (k0 + KEYS < last) next_keys.template read<KEYS>(keys, p.kv_stride);
        if (!seen) continue;
        if (k0 < all_low || k0 + KEYS - 1 > position + own)
            mask(s, k0, position + own, last_row, start ? start + own : nullptr);
        add_exponentials<SIZE>(s, maximum, sum, out, scale);
        unsigned probabilities[N / 2][M][4];
        ls_round<T>(probabilities, s);
        ls_multiply_add<SIZE>(out, probabilities, values, 0);
    }
    if (own_rows <= 0) return;
    float factor[2 * M];
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
        sum[i] += __shfl_xor_sync(LS_ALL_LANES, sum[i], 1);
        sum[i] += __shfl_xor_sync(LS_ALL_LANES, sum[i], 2);
        factor[i] = 1.0f / sum[i];
        const int row = own + ls_row_of(i, ls_lane());
        if (p.lse_result && ls_lane() % 4 == 0 && row < rows)
            p.lse_result[(b * p.heads + head) * p.query_length + i0 + row] =
                (maximum[i] * scale + log2f(sum[i])) * LS_LN_2;
    }
    ls_store_rows<SIZE>(p.result + b * p.output_batch_stride + (i0 + own) * p.output_stride + head * p.size,
                        p.output_stride, own_rows, p.size, queries, own, out, factor);
}

template <typename T, int SIZE> cudaError_t put(const ls_attention<T> &p, cudaStream_t stream) {
    const ls_attention_order order = ls_attention_order_of(p, p.heads, ROWS);
    const cudaError_t error = LS_ALLOW_SHARED((forward<T, SIZE>), shared_bytes<SIZE>);
    if (error != cudaSuccess) return error;
    return LS_LAUNCH((forward<T, SIZE>), ls_attention_blocks(order), THREADS, shared_bytes<SIZE>, stream, p, order);
}

} // namespace

template <typename T> cudaError_t ls_tensor_attention(const ls_attention<T> &p, cudaStream_t stream) {
    return p.size <= 64 ? put<T, 64>(p, stream) : put<T, 128>(p, stream);
}
template cudaError_t ls_tensor_attention(const ls_attention<__nv_bfloat16> &p, cudaStream_t stream);
template cudaError_t ls_tensor_attention(const ls_attention<__half> &p, cudaStream_t stream);
