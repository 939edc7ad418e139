/* Products of pairs of bf16, added in fp32, on processors that have instructions for them:
 *
 *     AMX            a matrix unit, at 16 times the rate of AVX-512's fp32
 *     AVX-512 BF16   vectors, at twice that rate
 *
 * Products of bf16 are what both multiply. Those of fp32 pay on the matrix unit: there a float is the sum of three
 * numbers in bf16, to its last bit: upper + middle + lower, each the rounding of what the ones before leave. Of the
 * nine products of two such sums six are computed; the three that are left out stay together below 2^-23 of |a b|, have
 * either sign, and are as small as what fp32 loses in rounding a product's sums (Henry, Tang & Heinecke 2019,
 * "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations"). Differences from fp32:
 * parts below 2^-126 count as zero, and a factor that is not finite, or above bf16's largest number (3.39e38), gives a
 * result that is not finite, be it infinite or NaN. */
#ifndef LS_WORKER_DEVICE_CPU_PAIRS_H
#define LS_WORKER_DEVICE_CPU_PAIRS_H

#include "worker/device/operations.h"

/* What multiplies pairs here: "amx", "avx512_bf16", or NULL for nothing. Processor and kernel have to let this process
 * use it, which the first call asks for; LOCKSTEP_AMX=0 and LOCKSTEP_AVX512_BF16=0 in the environment leave it out. The
 * answer never changes. */
const char *ls_pairs_unit(void);

/* Whether factors are multiplied as pairs: those that are bf16 or are `rounded` to it, or fp32 to its last bit. */
bool ls_pairs_available(bool rounded);

/* Whether products of this type and shape are faster so than by the libraries. */
bool ls_pairs_serve(enum ls_dtype dtype, int64_t m, int64_t n, int64_t k);

/* Called for each rectangle of the result, rows [row, row_end) by columns [column, column_end), once it is summed: in
 * `sums`, rows of `stride`, which begins at [row, column] and is op->c itself if that is fp32. */
typedef void ls_pairs_finish(const struct ls_op_gemm *op, float *sums, int64_t stride, int64_t row, int64_t row_end,
                             int64_t column, int64_t column_end);

/* Rows [row, row_end) and columns [column, column_end) of op's product, of fp32 or bf16, in the calling thread. What is
 * left to `finish`: the epilogue, and for results in bf16 rounding and op->accumulate. The bits of an element depend on
 * its factors and on op->k alone, so that they are the same however the result is cut. */
void ls_pairs_multiply(const struct ls_op_gemm *op, int64_t row, int64_t row_end, int64_t column, int64_t column_end,
                       ls_pairs_finish *finish);

/* ls_pack() and ls_multiply() (multiply.h) of pairs, with panels of LS_PANEL_FLOATS(k, n); k <= 384. Rows of b from k
 * to the next multiple of 32 count too, times zero. */
void ls_pairs_pack(bool rounded, bool transposed, const float *b, int64_t ldb, int64_t k, int64_t n, float *panels);
void ls_pairs_multiply_packed(bool rounded, int64_t m, int64_t n, int64_t k, bool transposed, const float *a,
                              int64_t lda, const float *panels, int64_t depth, float *c, int64_t ldc, bool add);

#endif
