/* Sums over the rows of a matrix, one for each column: gradients of biases and of norms' weights. A block owns a few
 * columns, its threads take the rows in turns, and what they have is added over each warp and then over the warps: an
 * order that follows from the shape alone, no atomics, no scratch. */
#ifndef LS_WORKER_DEVICE_CUDA_COLUMNS_H
#define LS_WORKER_DEVICE_CUDA_COLUMNS_H

#include "worker/device/cuda/element.h"

constexpr int LS_COLUMN_THREADS = 512;

/* Threads side by side in a row: with packs of N elements they take the 32 bytes that memory is read in, or one row's
 * worth of single elements. */
template <typename T, int N> constexpr int ls_column_lanes = N == 1 ? 16 : 32 / (N * static_cast<int>(sizeof(T)));

/* Adds to sums[s][column] for the SUMS sums of each of the block's columns. term(row, column, values) gives N columns'
 * terms, values[SUMS][N]; sums[s] NULL: not kept. */
template <typename T, int N, int SUMS, typename F>
static __device__ __forceinline__ void ls_sum_columns(float *const (&sums)[SUMS], int64_t rows, int64_t columns,
                                                      F term) {
    constexpr int LANES = ls_column_lanes<T, N>, ROWS = LS_COLUMN_THREADS / LANES, WARPS = LS_COLUMN_THREADS / LS_WARP;
    constexpr int WIDTH = LANES * N;
    static_assert(LANES <= LS_WARP && SUMS * WIDTH <= LS_COLUMN_THREADS, "a warp has whole rows; a thread has a sum");
    LS_SHARED(float, parts, [SUMS][WARPS][WIDTH]);
    const int thread = static_cast<int>(threadIdx.x), lane = thread % LANES, warp = thread / LS_WARP;
    const int64_t column = (static_cast<int64_t>(blockIdx.x) * LANES + lane) * N;
    float total[SUMS][N] = {};
    if (column < columns) {
        for (int64_t row = thread / LANES; row < rows; row += ROWS) {
            float values[SUMS][N];
            term(row, column, values);
#pragma unroll
            for (int s = 0; s < SUMS; s++)
#pragma unroll
                for (int k = 0; k < N; k++) total[s][k] += values[s][k];
        }
    }
#pragma unroll
    for (int s = 0; s < SUMS; s++)
#pragma unroll
        for (int k = 0; k < N; k++) {
#pragma unroll
            for (int lanes = LS_WARP / 2; lanes >= LANES; lanes /= 2)
                total[s][k] += __shfl_xor_sync(LS_ALL_LANES, total[s][k], lanes);
            if (thread % LS_WARP < LANES) parts[s][warp][lane * N + k] = total[s][k];
        }
    __syncthreads();
    if (thread >= SUMS * WIDTH) return;
    const int s = thread / WIDTH, own = thread % WIDTH;
    const int64_t own_column = static_cast<int64_t>(blockIdx.x) * WIDTH + own;
    float *const to = s == 0 ? sums[0] : sums[SUMS - 1];
    static_assert(SUMS <= 2, "the first or the last");
    if (own_column >= columns || !to) return;
    float sum = 0.0f;
    for (int w = 0; w < WARPS; w++) sum += parts[s][w][own];
    to[own_column] += sum;
}

/* On the host: blocks for `columns` columns. */
template <typename T, int N> static inline unsigned ls_column_blocks(int64_t columns) {
    return ls_blocks(columns, ls_column_lanes<T, N> * N);
}

#endif
