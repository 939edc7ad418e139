/* AVX-512 BF16: an instruction that adds the products of 16 pairs to 16 sums. The sums of 8 rows by 32 columns stay in
 * registers, beside a row of b's pairs and a pair of a in all lanes. */
#include "worker/device/cpu/pairs_unit.h"

#if defined(__x86_64__)
#include <assert.h>
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#define WITH_BF16 __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")))

enum { ROWS = 8 };

/* ROWS rows of c, from ROWS of the rows of a's tiles. */
WITH_BF16 static inline __attribute__((always_inline)) void multiply_rows(const bool wide, int64_t steps,
                                                                          const uint32_t *a, const uint32_t *b,
                                                                          float *c, int64_t ldc, bool add,
                                                                          const struct ls_pairs_ahead *ahead) {
    __m512 sum[ROWS][2];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
        sum[i][0] = add ? _mm512_loadu_ps(c + i * ldc) : _mm512_setzero_ps();
        sum[i][1] = add && wide ? _mm512_loadu_ps(c + i * ldc + TILE) : _mm512_setzero_ps();
    }
    for (int64_t step = 0; step < steps; step++, a += PART_PAIRS, b += PART_PAIRS) {
        if (ahead) ls_pairs_fetch(false, ahead, step * STRIP / steps, (step + 1) * STRIP / steps);
#pragma GCC unroll 4
        for (int pair = 0; pair < TILE; pair++) {
            const __m512bh left = (__m512bh)_mm512_load_si512(b + pair * TILE);
            const __m512bh right = (__m512bh)_mm512_load_si512(b + TILE_PAIRS + pair * TILE);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++) {
                const __m512bh x = (__m512bh)_mm512_set1_epi32((int)a[i * TILE + pair]);
                sum[i][0] = _mm512_dpbf16_ps(sum[i][0], x, left);
                if (wide) sum[i][1] = _mm512_dpbf16_ps(sum[i][1], x, right);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
        _mm512_storeu_ps(c + i * ldc, sum[i][0]);
        if (wide) _mm512_storeu_ps(c + i * ldc + TILE, sum[i][1]);
    }
}

WITH_BF16 static void multiply(bool exact, bool tall, bool wide, int64_t steps, const uint32_t *a, const uint32_t *b,
                               float *c, int64_t ldc, bool add, const struct ls_pairs_ahead *ahead) {
    assert(!exact);
    (void)exact;
    for (int row = 0; row < (tall ? STRIP : TILE); row += ROWS, c += ROWS * ldc) {
        const uint32_t *rows = a + row / TILE * TILE_PAIRS + row % TILE * TILE;
        if (wide)
            multiply_rows(true, steps, rows, b, c, ldc, add, row == 0 ? ahead : NULL);
        else
            multiply_rows(false, steps, rows, b, c, ldc, add, row == 0 ? ahead : NULL);
    }
}

static void nothing(void) {}

const struct ls_pairs_unit *ls_pairs_avx512(void) {
    static const struct ls_pairs_unit unit = {
        .name = "avx512_bf16", .begin = nothing, .end = nothing, .multiply = multiply};
    const char *wish = getenv("LOCKSTEP_AVX512_BF16");
    if (wish && strcmp(wish, "0") == 0) return NULL;
    return __builtin_cpu_supports("avx512bf16") ? &unit : NULL;
}

#else

const struct ls_pairs_unit *ls_pairs_avx512(void) {
    return NULL;
}

#endif
