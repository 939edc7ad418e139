/* Products of packed panels. The loop over a tile is plain C over vector types, which gcc and clang both keep in
 * registers; it reaches more than nine tenths of the processor's multiply-add rate. */
#include "worker/device/cpu/multiply.h"

#include "worker/device/cpu/pairs.h"

#include <string.h>

typedef float lanes __attribute__((vector_size(4 * LS_LANES), aligned(4), may_alias));

#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* c[rows, LS_PANEL_COLUMNS] = a[rows, k] b[k, LS_PANEL_COLUMNS] (+ c when `add`); element (i, p) of a is a[i * row_step
 * + p * step]. */
static inline __attribute__((always_inline)) void tile(const int rows, int64_t k, const float *a, int64_t row_step,
                                                       int64_t step, const float *b, float *c, int64_t ldc, bool add) {
    lanes sum[LS_PANEL_ROWS][2];
    UNROLL
    for (int i = 0; i < rows; i++) {
        sum[i][0] = add ? *(const lanes *)(c + i * ldc) : (lanes){0};
        sum[i][1] = add ? *(const lanes *)(c + i * ldc + LS_LANES) : (lanes){0};
    }
    for (int64_t p = 0; p < k; p++) {
        const lanes b0 = *(const lanes *)(b + p * LS_PANEL_COLUMNS),
                    b1 = *(const lanes *)(b + p * LS_PANEL_COLUMNS + LS_LANES);
        UNROLL
        for (int i = 0; i < rows; i++) {
            const float x = a[i * row_step + p * step];
            sum[i][0] = sum[i][0] + x * b0;
            sum[i][1] = sum[i][1] + x * b1;
        }
    }
    UNROLL
    for (int i = 0; i < rows; i++) {
        *(lanes *)(c + i * ldc) = sum[i][0];
        *(lanes *)(c + i * ldc + LS_LANES) = sum[i][1];
    }
}

/* A tile of any number of rows up to LS_PANEL_ROWS, a read along its rows or along its columns. */
static void any_tile(int rows, int64_t k, bool transposed, const float *a, int64_t lda, const float *b, float *c,
                     int64_t ldc, bool add) {
#define CASE(n)                                                                                                        \
    case n:                                                                                                            \
        if (!transposed)                                                                                               \
            tile(n, k, a, lda, 1, b, c, ldc, add);                                                                     \
        else                                                                                                           \
            tile(n, k, a, 1, lda, b, c, ldc, add);                                                                     \
        break
    switch (rows) {
        CASE(1);
        CASE(2);
        CASE(3);
        CASE(4);
        CASE(5);
        CASE(6);
#if defined(__AVX512F__)
        CASE(7);
        CASE(8);
        CASE(9);
        CASE(10);
        CASE(11);
        CASE(12);
#endif
    default: break;
    }
#undef CASE
}

void ls_multiply(bool rounded, int64_t m, int64_t n, int64_t k, bool transposed, const float *a, int64_t lda,
                 const float *panels, int64_t depth, float *c, int64_t ldc, bool add) {
    if (ls_pairs_available(rounded)) {
        ls_pairs_multiply_packed(rounded, m, n, k, transposed, a, lda, panels, depth, c, ldc, add);
        return;
    }
    float edge[LS_PANEL_ROWS * LS_PANEL_COLUMNS];
    const int64_t step = transposed ? 1 : lda;
    for (int64_t j = 0; j < n; j += LS_PANEL_COLUMNS, panels += depth * LS_PANEL_COLUMNS) {
        const int64_t columns = n - j < LS_PANEL_COLUMNS ? n - j : LS_PANEL_COLUMNS;
        for (int64_t i = 0; i < m; i += LS_PANEL_ROWS) {
            const int rows = (int)(m - i < LS_PANEL_ROWS ? m - i : LS_PANEL_ROWS);
            float *c_ij = c + i * ldc + j;
            if (columns == LS_PANEL_COLUMNS) {
                any_tile(rows, k, transposed, a + i * step, lda, panels, c_ij, ldc, add);
                continue;
            }
            for (int r = 0; add && r < rows; r++)
                memcpy(edge + r * LS_PANEL_COLUMNS, c_ij + r * ldc, (size_t)columns * sizeof *c);
            any_tile(rows, k, transposed, a + i * step, lda, panels, edge, LS_PANEL_COLUMNS, add);
            for (int r = 0; r < rows; r++)
                memcpy(c_ij + r * ldc, edge + r * LS_PANEL_COLUMNS, (size_t)columns * sizeof *c);
        }
    }
}

void ls_pack(bool rounded, bool transposed, const float *b, int64_t ldb, int64_t k, int64_t n, float *panels) {
    if (ls_pairs_available(rounded)) {
        ls_pairs_pack(rounded, transposed, b, ldb, k, n, panels);
        return;
    }
    enum { AHEAD = 8 }; /* rows are short and far apart: the processor does not foresee them */
    for (int64_t j = 0; j < n; j += LS_PANEL_COLUMNS, panels += k * LS_PANEL_COLUMNS) {
        const int64_t columns = n - j < LS_PANEL_COLUMNS ? n - j : LS_PANEL_COLUMNS;
        if (columns < LS_PANEL_COLUMNS) memset(panels, 0, (size_t)(k * LS_PANEL_COLUMNS) * sizeof *panels);
        if (transposed) {
            for (int64_t c = 0; c < columns; c++) {
                const float *from = b + (j + c) * ldb;
                if (j + c + AHEAD < n)
                    for (int64_t p = 0; p < k; p += 16) __builtin_prefetch(from + AHEAD * ldb + p);
                for (int64_t p = 0; p < k; p++) panels[p * LS_PANEL_COLUMNS + c] = from[p];
            }
        } else {
            for (int64_t p = 0; p < k; p++) {
                const float *from = b + p * ldb + j;
                if (p + AHEAD < k)
                    for (int64_t c = 0; c < columns; c += 16) __builtin_prefetch(from + AHEAD * ldb + c);
                if (columns == LS_PANEL_COLUMNS)
                    memcpy(panels + p * LS_PANEL_COLUMNS, from, sizeof(float) * LS_PANEL_COLUMNS);
                else
                    memcpy(panels + p * LS_PANEL_COLUMNS, from, sizeof(float) * (size_t)columns);
            }
        }
    }
}
