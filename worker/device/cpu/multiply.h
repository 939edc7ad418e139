/* Products of small matrices that fit the caches, from packed panels: what attention is made of. An element of a
 * product depends on its row, its column and k alone, so that the bits of a product are the same however its rows and
 * columns are cut: a chain of fused multiply-adds in the order of k, or what pairs of bf16 make of them (pairs.h).
 * `rounded` allows factors to be rounded to bf16: for results in bf16. */
#ifndef LS_WORKER_DEVICE_CPU_MULTIPLY_H
#define LS_WORKER_DEVICE_CPU_MULTIPLY_H

#include <stdbool.h>
#include <stdint.h>

/* A tile of LS_PANEL_ROWS by LS_PANEL_COLUMNS sums fills the registers: with AVX-512 24 of 32, with AVX2 12 of 16,
 * beside two of b. */
#ifdef __AVX512F__
enum { LS_LANES = 16, LS_PANEL_ROWS = 12, LS_PANEL_COLUMNS = 2 * LS_LANES };
#else
enum { LS_LANES = 8, LS_PANEL_ROWS = 6, LS_PANEL_COLUMNS = 2 * LS_LANES };
#endif

/* n rounded up to whole panels: the columns that ls_pack fills. */
static inline int64_t ls_panel_round(int64_t n) {
    return (n + LS_PANEL_COLUMNS - 1) / LS_PANEL_COLUMNS * LS_PANEL_COLUMNS;
}

/* Room for the panels of a factor [k, n]; k and n are multiples of 32. Three parts of half a float as pairs. */
#define LS_PANEL_FLOATS(k, n) ((k) * (n) / 2 * 3)

/* Packs b[k, n], or its transpose given as b[n, k], into ls_panel_round(n) / LS_PANEL_COLUMNS panels of [k,
 * LS_PANEL_COLUMNS], one after another; columns beyond n are zero. Pairs have panels of their own. `panels` is
 * aligned to 64 bytes. */
void ls_pack(bool rounded, bool transposed, const float *b, int64_t ldb, int64_t k, int64_t n, float *panels);

/* c[m, n] = a b (+ c when `add`), with the `rounded` of b's ls_pack. a is [m, k] in rows of lda, or `transposed`, [k,
 * m] in rows of lda. b comes from ls_pack, with at least n columns and with `depth` rows, of which the first k take
 * part; k <= 256. */
void ls_multiply(bool rounded, int64_t m, int64_t n, int64_t k, bool transposed, const float *a, int64_t lda,
                 const float *panels, int64_t depth, float *c, int64_t ldc, bool add);

#endif
