/* What pairs.c and the instructions that multiply its packed pairs have in common.
 *
 *     strip     32 rows of a, or columns of b: a group for every STEP of k
 *     group     [part: upper, middle, lower; or upper alone][half of the strip] tiles
 *     tile      16 rows of 16 pairs of bf16; a's rows are rows of a, b's rows are pairs
 *     pair      of fp32 elements p and p + 16 of a STEP, so that two loads make 16 pairs; of bf16 2p and 2p + 1, which
 *               are a pair in memory already where k runs along it
 */
#ifndef LS_WORKER_DEVICE_CPU_PAIRS_UNIT_H
#define LS_WORKER_DEVICE_CPU_PAIRS_UNIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TILE = 16, STEP = 2 * TILE, STRIP = 2 * TILE, TILE_PAIRS = TILE * TILE };
enum { UPPER, MIDDLE, LOWER, PARTS, PART_PAIRS = 2 * TILE_PAIRS };

/* Of a single part a block is this deep at most. */
enum { DEPTH_OF_ONE = 768 };

/* What comes next, while pairs are multiplied: lines of memory that are on their way to the cache. */
struct ls_pairs_ahead {
    const float *c;                          /* a strip's rows of the result, `c_stride` apart; NULL: none */
    const float *aux;                        /* and of what its epilogue reads or writes; NULL: none */
    const char *factor[DEPTH_OF_ONE / STEP]; /* 32 rows of a line or two each, `factor_stride` bytes apart */
    int64_t c_stride, factor_stride, factors;
};

enum { LINE = 64 }; /* bytes that the caches move at a time */

/* Fetches rows [first, end) of the strip that comes next. */
static inline __attribute__((always_inline)) void ls_pairs_fetch(const bool exact, const struct ls_pairs_ahead *ahead,
                                                                 int64_t first, int64_t end) {
    for (int64_t row = first; row < end; row++) {
        if (ahead->c) {
            __builtin_prefetch(ahead->c + row * ahead->c_stride, 1);
            __builtin_prefetch(ahead->c + row * ahead->c_stride + TILE, 1);
        }
        if (ahead->aux) {
            __builtin_prefetch(ahead->aux + row * ahead->c_stride, 0, 2);
            __builtin_prefetch(ahead->aux + row * ahead->c_stride + TILE, 0, 2);
        }
        for (int64_t f = 0; f < ahead->factors; f++) {
            const char *factor = ahead->factor[f] + row * ahead->factor_stride;
            __builtin_prefetch(factor, 0, 2);
            if (exact) __builtin_prefetch(factor + LINE, 0, 2);
        }
    }
}

/* Instructions that multiply strips. */
struct ls_pairs_unit {
    const char *name;
    bool exact; /* fast enough for fp32 in three parts */

    /* Around any number of products in one thread. */
    void (*begin)(void);
    void (*end)(void);

    /* c[32, 32] = a b (+ c when `add`) over `steps` groups of one strip of each; c has 16 rows unless `tall`, 16
     * columns unless `wide`. Groups have three parts when `exact`, else one. */
    void (*multiply)(bool exact, bool tall, bool wide, int64_t steps, const uint32_t *a, const uint32_t *b, float *c,
                     int64_t ldc, bool add, const struct ls_pairs_ahead *ahead);
};

/* NULL where the processor, the kernel or the environment says no. */
const struct ls_pairs_unit *ls_pairs_amx(void);
const struct ls_pairs_unit *ls_pairs_avx512(void);

#endif
