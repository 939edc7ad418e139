/* Sums over the rows of a matrix, one for each column: gradients of biases and of norms' weights. A block owns a few
 * columns, its threads take the rows in turns, and what they have is added in a tree: an order that follows from the
 * shape alone, no atomics, no scratch. */
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
    constexpr int LANES = ls_column_lanes<T, N>, ROWS = LS_COLUMN_THREADS / LANES;
    LS_SHARED(float, parts, [ROWS][LANES * N + 1]);
    const int lane = static_cast<int>(threadIdx.x) % LANES, first = static_cast<int>(threadIdx.x) / LANES;
    const int64_t column = (static_cast<int64_t>(blockIdx.x) * LANES + lane) * N;
    float total[SUMS][N] = {};
    if (column < columns) {
        for (int64_t row = first; row < rows; row += ROWS) {
            float values[SUMS][N];
            term(row, column, values);
#pragma unroll
            for (int s = 0; s < SUMS; s++)
#pragma unroll
                for (int k = 0; k < N; k++) total[s][k] += values[s][k];
        }
    }
#pragma unroll
    for (int s = 0; s < SUMS; s++) {
#pragma unroll
        for (int k = 0; k < N; k++) parts[first][lane * N + k] = total[s][k];
        __syncthreads();
        for (int rest = ROWS / 2; rest > 0; rest /= 2) {
            for (int i = static_cast<int>(threadIdx.x); i < rest * LANES * N; i += LS_COLUMN_THREADS)
                parts[i / (LANES * N)][i % (LANES * N)] += parts[i / (LANES * N) + rest][i % (LANES * N)];
            __syncthreads();
        }
        const int64_t own = static_cast<int64_t>(blockIdx.x) * LANES * N + threadIdx.x;
        if (threadIdx.x < LANES * N && own < columns && sums[s]) sums[s][own] += parts[0][threadIdx.x];
        __syncthreads();
    }
}

/* On the host: blocks for `columns` columns. */
template <typename T, int N> static inline unsigned ls_column_blocks(int64_t columns) {
    return ls_blocks(columns, ls_column_lanes<T, N> * N);
}

#endif
