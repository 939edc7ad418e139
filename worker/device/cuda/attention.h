/* What attention's passes share: the problem as kernels get it, and, for those that multiply in fp32, tiles of queries
 * and keys in shared memory and products of tiles in registers. There a block has 16 x 16 threads: thread (y, x) of
 * them has the scores of rows y, y + 16, ... by columns x, x + 16, ... of a square tile, and of a result the columns 4
 * x .. 4 x + 3, then 64 further, and so on. A tile's rows lie SIZE + 4 floats apart, so that 128-bit accesses of
 * neighbouring threads fall on different banks. */
#ifndef LS_WORKER_DEVICE_CUDA_ATTENTION_H
#define LS_WORKER_DEVICE_CUDA_ATTENTION_H

#include "worker/device/cuda/element.h"

/* Forward has query_length queries behind key_length - query_length earlier keys; backward as many as keys. Members
 * that a pass does not use are zero. */
template <typename T> struct ls_attention {
    T *result, *dq, *dk, *dv; /* result: forward's output */
    float *lse_result, *product;
    const T *q, *k, *v, *output, *d_output;
    const float *lse;
    const int32_t *document_start;
    int64_t batch, query_length, key_length, heads, kv_heads;
    int64_t q_stride, kv_stride, output_stride, q_batch_stride, kv_batch_stride, output_batch_stride;
    float scale;
    int size;
    bool wide; /* every pointer, stride and the size allow 128-bit accesses */
};

/* On the host: what both passes' operations have. */
template <typename T, typename OP> static inline ls_attention<T> ls_attention_base(const OP *op) {
    const int64_t offsets[] = {op->head_size,      op->q_stride,        op->kv_stride,          op->output_stride,
                               op->q_batch_stride, op->kv_batch_stride, op->output_batch_stride};
    ls_attention<T> p = {};
    p.q = static_cast<const T *>(op->q);
    p.k = static_cast<const T *>(op->k);
    p.v = static_cast<const T *>(op->v);
    p.document_start = op->document_start;
    p.batch = op->batch;
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
    p.wide = ls_aligned(p.q, p.k, p.v);
    for (const int64_t offset : offsets) p.wide = p.wide && offset % ls_pack<T> == 0;
    return p;
}

/* The order of the blocks of a grid that has a block for each of `tiles` tiles of each of `pairs` heads of sequences.
 * Heads come in sections, whose keys and values the GPU's cache can hold; in a section all heads' first tiles come
 * before the second ones, so that, where tiles differ in work and the largest are the first, small ones are what is
 * left when the grid ends. */
struct ls_attention_order {
    int pairs, tiles, section;
};
struct ls_attention_place {
    int pair, tile;
};

static __device__ __forceinline__ ls_attention_place ls_attention_at(const ls_attention_order &order, unsigned block) {
    const unsigned whole = static_cast<unsigned>(order.section) * static_cast<unsigned>(order.tiles);
    const int first = static_cast<int>(block / whole) * order.section, left = order.pairs - first;
    const unsigned pairs = static_cast<unsigned>(left < order.section ? left : order.section);
    return {first + static_cast<int>(block % whole % pairs), static_cast<int>(block % whole / pairs)};
}

/* On the host: for tiles of `rows` rows, with sections of 16 MiB of keys and values, or more where these would not fill
 * a large GPU twice. */
template <typename T>
static inline ls_attention_order ls_attention_order_of(const ls_attention<T> &p, int64_t heads, int rows) {
    const int64_t cache_bytes = 16 << 20, blocks = 528, pairs = p.batch * heads;
    const int64_t tiles = (p.query_length + rows - 1) / rows, head_bytes = 4 * p.key_length * p.size;
    int64_t section = cache_bytes / head_bytes * (heads / p.kv_heads);
    if (section * tiles < blocks) section = (blocks + tiles - 1) / tiles;
    if (section > pairs) section = pairs;
    return {static_cast<int>(pairs), static_cast<int>(tiles), static_cast<int>(section)};
}
static inline unsigned ls_attention_blocks(const ls_attention_order &order) {
    return ls_blocks(static_cast<int64_t>(order.pairs) * order.tiles, 1);
}

/* On the host, in tensor_attention.cu and tensor_attention_backward.cu: for 16-bit elements, where
 * ls_on_tensor_cores(). The backward takes over after the products. */
template <typename T> cudaError_t ls_tensor_attention(const ls_attention<T> &p, cudaStream_t stream);
template <typename T> cudaError_t ls_tensor_attention_backward(const ls_attention<T> &p, cudaStream_t stream);

template <typename T> static inline bool ls_on_tensor_cores(const ls_attention<T> &p) {
    return sizeof(T) == 2 && p.wide && p.size <= 128 && p.scale > 0.0f;
}

constexpr float LS_LOG2_E = 1.44269504f, LS_LN_2 = 0.693147181f;

constexpr int LS_TILE_SIDE = 16, LS_TILE_THREADS = LS_TILE_SIDE * LS_TILE_SIDE, LS_TILE_PAD = 4;

static constexpr __device__ __host__ int ls_tile_floats(int rows, int columns) {
    return rows * (columns + LS_TILE_PAD);
}

static __device__ __forceinline__ int ls_tile_y() {
    return static_cast<int>(threadIdx.x) / LS_TILE_SIDE;
}
static __device__ __forceinline__ int ls_tile_x() {
    return static_cast<int>(threadIdx.x) % LS_TILE_SIDE;
}

/* ROWS rows of a head to a tile of SIZE columns; zeros beyond the `rows` and `size` that are there. `wide`: pointer,
 * stride and size allow 128-bit accesses. */
template <int ROWS, int SIZE, typename T>
static __device__ __forceinline__ void ls_load_tile(float *tile, const T *from, int64_t stride, int64_t rows, int size,
                                                    bool wide) {
    constexpr int N = ls_pack<T>, PACKS = SIZE / N;
    if (wide) {
        for (int i = static_cast<int>(threadIdx.x); i < ROWS * PACKS; i += LS_TILE_THREADS) {
            const int row = i / PACKS, column = i % PACKS * N;
            float x[N] = {};
            if (row < rows && column < size) ls_load(x, from + row * stride + column);
            ls_store(tile + row * (SIZE + LS_TILE_PAD) + column, x);
        }
    } else {
        for (int i = static_cast<int>(threadIdx.x); i < ROWS * SIZE; i += LS_TILE_THREADS) {
            const int row = i / SIZE, column = i % SIZE;
            tile[row * (SIZE + LS_TILE_PAD) + column] =
                row < rows && column < size ? ls_to_float(from[row * stride + column]) : 0.0f;
        }
    }
}

/* s[i][j] = row y + 16 i of tile a times row x + 16 j of tile b. UNROLL steps are taken at a time where registers
 * allow. */
template <int R, int SIZE, int UNROLL>
static __device__ __forceinline__ void ls_multiply_rows(float (&s)[R][R], const float *a, const float *b) {
    constexpr int PITCH = SIZE + LS_TILE_PAD;
    a += ls_tile_y() * PITCH;
    b += ls_tile_x() * PITCH;
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int j = 0; j < R; j++) s[i][j] = 0.0f;
#pragma unroll UNROLL
    for (int c = 0; c < SIZE; c += 4) {
        float4 x[R], y[R];
#pragma unroll
        for (int i = 0; i < R; i++) {
            x[i] = *reinterpret_cast<const float4 *>(a + i * LS_TILE_SIDE * PITCH + c);
            y[i] = *reinterpret_cast<const float4 *>(b + i * LS_TILE_SIDE * PITCH + c);
        }
#pragma unroll
        for (int i = 0; i < R; i++)
#pragma unroll
            for (int j = 0; j < R; j++) {
                s[i][j] += x[i].x * y[j].x;
                s[i][j] += x[i].y * y[j].y;
                s[i][j] += x[i].z * y[j].z;
                s[i][j] += x[i].w * y[j].w;
            }
    }
}

template <int COLUMNS>
static __device__ __forceinline__ void ls_add_scaled(float (&sum)[COLUMNS], int group, float factor, const float4 &x) {
    sum[group * 4] += factor * x.x;
    sum[group * 4 + 1] += factor * x.y;
    sum[group * 4 + 2] += factor * x.z;
    sum[group * 4 + 3] += factor * x.w;
}

/* sum[i] += row y + 16 i of tile p [., DEPTH] times tile b [DEPTH, SIZE]. */
template <int R, int DEPTH, int SIZE>
static __device__ __forceinline__ void ls_multiply_add(float (&sum)[R][SIZE / 16], const float *p, const float *b) {
    constexpr int PITCH = SIZE + LS_TILE_PAD, P_PITCH = DEPTH + LS_TILE_PAD;
    p += ls_tile_y() * P_PITCH;
    b += ls_tile_x() * 4;
#pragma unroll 1
    for (int k = 0; k < DEPTH; k += 4) {
        float4 factor[R];
#pragma unroll
        for (int i = 0; i < R; i++) factor[i] = *reinterpret_cast<const float4 *>(p + i * LS_TILE_SIDE * P_PITCH + k);
#pragma unroll
        for (int d = 0; d < 4; d++)
#pragma unroll
            for (int group = 0; group < SIZE / 64; group++) {
                const float4 x = *reinterpret_cast<const float4 *>(b + (k + d) * PITCH + group * 64);
#pragma unroll
                for (int i = 0; i < R; i++) {
                    const float f = d == 0 ? factor[i].x : d == 1 ? factor[i].y : d == 2 ? factor[i].z : factor[i].w;
                    ls_add_scaled(sum[i], group, f, x);
                }
            }
    }
}

/* sum[i] += column R y + i of tile p [DEPTH, .] times tile b [DEPTH, SIZE]: the first tile transposed. Here a thread's
 * rows are neighbours. */
template <int R, int DEPTH, int SIZE>
static __device__ __forceinline__ void ls_multiply_add_transposed(float (&sum)[R][SIZE / 16], const float *p,
                                                                  const float *b) {
    constexpr int PITCH = SIZE + LS_TILE_PAD, P_PITCH = DEPTH + LS_TILE_PAD;
    p += ls_tile_y() * R;
    b += ls_tile_x() * 4;
#pragma unroll 2
    for (int k = 0; k < DEPTH; k++) {
        float factor[R];
        if constexpr (R == 4) {
            ls_load(factor, p + k * P_PITCH);
        } else if constexpr (R == 2) {
            ls_load(factor, p + k * P_PITCH);
        } else {
            factor[0] = p[k * P_PITCH];
        }
#pragma unroll
        for (int group = 0; group < SIZE / 64; group++) {
            const float4 x = *reinterpret_cast<const float4 *>(b + k * PITCH + group * 64);
#pragma unroll
            for (int i = 0; i < R; i++) ls_add_scaled(sum[i], group, factor[i], x);
        }
    }
}

/* Writes a thread's columns of one row, times `factor`. */
template <int SIZE, typename T>
static __device__ __forceinline__ void ls_store_row(T *row, const float (&sum)[SIZE / 16], float factor, int size,
                                                    bool wide) {
#pragma unroll
    for (int group = 0; group < SIZE / 64; group++) {
        const int column = group * 64 + ls_tile_x() * 4;
        float x[4];
#pragma unroll
        for (int k = 0; k < 4; k++) x[k] = sum[group * 4 + k] * factor;
        if (wide) {
            if (column < size) ls_store(row + column, x);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++)
                if (column + k < size) row[column + k] = ls_from_float<T>(x[k]);
        }
    }
}

/* The sum or maximum over the 16 threads of a row. */
static __device__ __forceinline__ float ls_row_sum(float x) {
#pragma unroll
    for (int lanes = LS_TILE_SIDE / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(LS_ALL_LANES, x, lanes);
    return x;
}
static __device__ __forceinline__ float ls_row_maximum(float x) {
#pragma unroll
    for (int lanes = LS_TILE_SIDE / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(LS_ALL_LANES, x, lanes));
    return x;
}

/* The first key that any query sees, from the one on whose document_start this is; NULL: 0. */
static __device__ __forceinline__ int64_t ls_first_key(const int32_t *document_start) {
    return document_start ? document_start[0] : 0;
}

#endif
