/* What our kernels keep in the `workspace` of an operation, by its shape alone: for the kernels, and for plans on hosts
 * without CUDA. */
#ifndef LS_WORKER_DEVICE_CUDA_WORKSPACE_H
#define LS_WORKER_DEVICE_CUDA_WORKSPACE_H

#include "worker/device/operations.h"

/* Sums over the rows of a matrix are made by slices of rows, so that matrices of few columns fill a GPU too: two blocks
 * of LS_SLICE_COLUMNS columns for each of an H100's 132 multiprocessors, and at least LS_SLICE_ROWS_MIN rows a slice.
 * The cuts follow from the shape, so the bits do. */
enum { LS_SLICE_BLOCKS = 264, LS_SLICE_COLUMNS = 64, LS_SLICE_ROWS = 64, LS_SLICE_ROWS_MIN = 128 };

/* Slices of a matrix of that many columns, at most. */
static inline int64_t ls_cuda_slices_most(int64_t columns) {
    const int64_t blocks = (columns + LS_SLICE_COLUMNS - 1) / LS_SLICE_COLUMNS;
    return blocks < 1 ? 1 : (LS_SLICE_BLOCKS + blocks - 1) / blocks;
}
/* Rows of each slice but the last, which may have fewer: whole multiples of LS_SLICE_ROWS. */
static inline int64_t ls_cuda_slice_rows(int64_t rows, int64_t columns) {
    const int64_t most = ls_cuda_slices_most(columns), even = (rows + most - 1) / most;
    const int64_t whole = (even + LS_SLICE_ROWS - 1) / LS_SLICE_ROWS * LS_SLICE_ROWS;
    return whole < LS_SLICE_ROWS_MIN ? (int64_t)LS_SLICE_ROWS_MIN : whole;
}
/* Bytes for `sums` sums of each column: a number for each slice, enough for any number of rows; 0 with one slice. */
static inline int64_t ls_cuda_column_workspace(int64_t columns, int64_t sums) {
    const int64_t slices = ls_cuda_slices_most(columns);
    return slices > 1 ? sums * slices * columns * (int64_t)sizeof(float) : 0;
}

/* The gradients of a norm in one pass: a block has a slice of whole rows and a thread 16 bytes of each, so many blocks
 * that each of 132 multiprocessors has LS_NORM_THREADS threads. Threads of a block: 0 where columns are not whole packs
 * of 16 bytes, or too many. */
enum { LS_NORM_THREADS = 512, LS_NORM_ROWS_MIN = 4 };
static inline int64_t ls_cuda_norm_threads(int64_t columns, int64_t element_bytes) {
    const int64_t pack = 16 / element_bytes, threads = (columns / pack + 31) / 32 * 32;
    return columns % pack == 0 && threads <= LS_NORM_THREADS ? threads : 0;
}
/* Slices at most, where there are threads; rows of each but the last. */
static inline int64_t ls_cuda_norm_slices_most(int64_t threads) {
    return LS_SLICE_BLOCKS / 2 * LS_NORM_THREADS / threads;
}
static inline int64_t ls_cuda_norm_slice_rows(int64_t rows, int64_t threads) {
    const int64_t most = ls_cuda_norm_slices_most(threads), even = (rows + most - 1) / most;
    return even < LS_NORM_ROWS_MIN ? (int64_t)LS_NORM_ROWS_MIN : even;
}
/* layernorm_backward and rmsnorm_backward: a number of each sum for each slice, also where tensors are not aligned and
 * two passes serve. */
static inline int64_t ls_cuda_norm_workspace(int64_t columns, enum ls_dtype dtype, int64_t sums) {
    const int64_t threads = ls_cuda_norm_threads(columns, ls_dtype_bytes(dtype)),
                  two_passes = ls_cuda_column_workspace(columns, sums);
    const int64_t one_pass =
        threads > 0 ? sums * ls_cuda_norm_slices_most(threads) * columns * (int64_t)sizeof(float) : 0;
    return one_pass > two_passes ? one_pass : two_passes;
}

/* gemm with a bias's gradient, whoever sums: a kernel by slices, or the library, which overwrites. */
static inline int64_t ls_cuda_gemm_workspace(const struct ls_op_gemm *op) {
    const int64_t slices = ls_cuda_column_workspace(op->n, 1), sums = op->n * (int64_t)sizeof(float);
    return slices > sums ? slices : sums;
}

/* embedding_backward: the places of a micro-batch in order of their tokens, and room to sort them. */
static inline int64_t ls_cuda_embedding_workspace(const struct ls_op_embedding_backward *op) {
    return 2 * op->batch * op->length * (int64_t)sizeof(uint64_t);
}

#endif
