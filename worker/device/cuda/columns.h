/* Sums over the rows of a matrix, one for each column: gradients of biases and of norms' weights. Rows are cut into
 * slices (workspace.h), so that few columns fill a GPU too. A block owns a slice of a few columns: its threads take the
 * rows in turns, and what they have is added over each warp and then over the warps; a second kernel adds the slices in
 * order. All orders follow from the shape alone, and there are no atomics. */
#ifndef LS_WORKER_DEVICE_CUDA_COLUMNS_H
#define LS_WORKER_DEVICE_CUDA_COLUMNS_H

#include "worker/device/cuda/element.h"
#include "worker/device/cuda/workspace.h"

constexpr int LS_COLUMN_THREADS = 512;

/* Threads side by side in a row: with packs of N elements they take a whole line of 128 bytes, or 16 single elements.
 */
template <typename T, int N> constexpr int ls_column_lanes = N == 1 ? 16 : 128 / (N * static_cast<int>(sizeof(T)));

/* How the rows are cut. `partial`: [sums, slices, columns], unused with one slice. */
struct ls_slices {
    float *partial;
    int64_t rows, count; /* rows: of each but the last */
};

/* The block's sums of its columns, added to sums[s][column], or with several slices put into `partial`; SUMS at a time,
 * AHEAD rows of a thread loaded before the first is added. term(row, column, values) gives N columns' terms,
 * values[SUMS][N]; sums[s] NULL: not kept. */
template <typename T, int N, int AHEAD, int SUMS, typename F>
static __device__ __forceinline__ void ls_sum_columns(float *const (&sums)[SUMS], const struct ls_slices &slices,
                                                      int64_t rows, int64_t columns, F term) {
    constexpr int LANES = ls_column_lanes<T, N>, ROWS = LS_COLUMN_THREADS / LANES, WARPS = LS_COLUMN_THREADS / LS_WARP;
    constexpr int WIDTH = LANES * N;
    static_assert(LANES <= LS_WARP && SUMS * WIDTH <= LS_COLUMN_THREADS, "a warp has whole rows; a thread has a sum");
    LS_SHARED(float, parts, [SUMS][WARPS][WIDTH]);
    const int thread = static_cast<int>(threadIdx.x), lane = thread % LANES, warp = thread / LS_WARP;
    const int64_t column = (static_cast<int64_t>(blockIdx.x) * LANES + lane) * N, slice = blockIdx.y;
    const int64_t first = slice * slices.rows, end = rows - first < slices.rows ? rows : first + slices.rows;
    float total[SUMS][N] = {};
    if (column < columns) {
#pragma unroll AHEAD
        for (int64_t row = first + thread / LANES; row < end; row += ROWS) {
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
    if (slices.count == 1)
        to[own_column] += sum;
    else
        slices.partial[(s * slices.count + slice) * columns + own_column] = sum;
}

/* first[column] += the sum of the slices' first sums, and second[column] that of their second ones: a warp takes every
 * WARPSth slice for 32 columns, then the warps' sums are added. */
static __global__ void __launch_bounds__(LS_COLUMN_THREADS)
    ls_add_slices(float *first, float *second, struct ls_slices slices, int64_t columns) {
    constexpr int WARPS = LS_COLUMN_THREADS / LS_WARP;
    LS_SHARED(float, parts, [WARPS][LS_WARP]);
    const int lane = static_cast<int>(threadIdx.x) % LS_WARP, warp = static_cast<int>(threadIdx.x) / LS_WARP;
    const int64_t column = static_cast<int64_t>(blockIdx.x) * LS_WARP + lane;
    const float *const partial = slices.partial + blockIdx.y * slices.count * columns + column;
    float *const to = blockIdx.y == 0 ? first : second;
    float sum = 0.0f;
    if (column < columns)
#pragma unroll 8
        for (int64_t slice = warp; slice < slices.count; slice += WARPS) sum += partial[slice * columns];
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= columns) return;
    for (int w = 1; w < WARPS; w++) sum += parts[w][lane];
    to[column] += sum;
}

/* On the host: adds what slices left. second NULL: there is one sum of each column. */
static inline cudaError_t ls_put_slice_sums(float *first, float *second, const struct ls_slices &slices,
                                            int64_t columns, cudaStream_t stream) {
    return LS_LAUNCH(ls_add_slices, dim3(ls_blocks(columns, LS_WARP), second ? 2 : 1), LS_COLUMN_THREADS, 0, stream,
                     first, second, slices, columns);
}

/* On the host: sums of rows in `columns` columns, SUMS for each. put(grid, slices) launches the kernel that calls
 * ls_sum_columns<T, N>. */
template <typename T, int N, int SUMS, typename F>
static inline cudaError_t ls_put_column_sums(float *const (&sums)[SUMS], void *workspace, int64_t rows, int64_t columns,
                                             cudaStream_t stream, F put) {
    const int64_t each = ls_cuda_slice_rows(rows, columns), count = (rows + each - 1) / each;
    if (count > 1 && !workspace) return cudaErrorInvalidValue;
    const struct ls_slices slices = {static_cast<float *>(workspace), each, count};
    const cudaError_t error =
        put(dim3(ls_blocks(columns, ls_column_lanes<T, N> * N), static_cast<unsigned>(count)), slices);
    return error != cudaSuccess || count == 1
               ? error
               : ls_put_slice_sums(sums[0], SUMS > 1 ? sums[SUMS - 1] : nullptr, slices, columns, stream);
}

#endif
