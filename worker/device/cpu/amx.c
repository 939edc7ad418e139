/* Blocks of both factors are packed into tiles of one or three parts, which a loop over 2 x 2 tiles of the result
 * multiplies.
 *
 *     strip     32 rows of a, or columns of b: a group for every STEP of k
 *     group     [part: upper, middle, lower; or upper alone][half of the strip] tiles
 *     tile      16 rows of 16 pairs of bf16; a's rows are rows of a, b's rows are pairs
 *     pair      of fp32 elements p and p + 16 of a STEP, so that two loads make 16 pairs; of bf16 2p and 2p + 1, which
 *               are a pair in memory already where k runs along it
 */
#include "worker/device/cpu/amx.h"

#if defined(__x86_64__)
#include <assert.h>
#include <cpuid.h>
#include <immintrin.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WITH_AMX __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl")))

enum { TILE = 16, STEP = 2 * TILE, STRIP = 2 * TILE, TILE_PAIRS = TILE * TILE };
enum { UPPER, MIDDLE, LOWER, PARTS, PART_PAIRS = 2 * TILE_PAIRS };

/* What elements are in memory, and how many parts of them are multiplied. */
enum kind { EXACT, ROUNDED, BF16 }; /* fp32 in three parts, fp32 rounded to one, bf16 */

static inline int64_t group_pairs(enum kind kind) {
    return kind == EXACT ? PARTS * PART_PAIRS : PART_PAIRS;
}

/* A block of b stays in the second cache while strips of a pass by; of a single part it is deeper, and has up to
 * SUM_ROWS rows of sums beside it, which are to be rounded. */
enum { COLUMNS = 384, DEPTH = 384, DEPTH_OF_ONE = 768, SUM_ROWS = 192, COLUMNS_MOST = 1536 };
enum { STRIP_PAIRS = DEPTH / STEP * PARTS * PART_PAIRS };
_Static_assert(STRIP_PAIRS >= DEPTH_OF_ONE / STEP * PART_PAIRS, "a strip of either kind fits");

/* Smaller products do not pay for packing. */
enum { SIDE_MIN = 32, PRODUCT_MIN = 1 << 17 };

static bool available;

/* Linux saves the tiles' 8 KiB only for processes that have asked (Documentation/arch/x86/xstate.rst). */
static void find_out(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18, AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };
    const char *wish = getenv("LOCKSTEP_AMX");
    unsigned a, b, c, d;
    if (wish && strcmp(wish, "0") == 0) return;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & AMX_BF16) || !(d & AMX_TILE)) return;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return;
    available = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

bool ls_amx_available(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_out);
    return available;
}

bool ls_amx_serves(int64_t m, int64_t n, int64_t k) {
    return m >= SIDE_MIN && n >= SIDE_MIN && k >= SIDE_MIN && m * n * k >= PRODUCT_MIN && ls_amx_available();
}

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* All tiles are 16 rows of 64 bytes. */
WITH_AMX static void configure(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } configuration = {.palette = 1};
    for (int i = 0; i < 8; i++) configuration.row_bytes[i] = 64, configuration.rows[i] = TILE;
    _tile_loadconfig(&configuration);
}

/* Four rows of four by four: afterwards a row holds a column of each. */
WITH_AMX static inline void transpose_fours(__m512 x[4]) {
    const __m512 low = _mm512_unpacklo_ps(x[0], x[1]), high = _mm512_unpackhi_ps(x[0], x[1]);
    const __m512 low2 = _mm512_unpacklo_ps(x[2], x[3]), high2 = _mm512_unpackhi_ps(x[2], x[3]);
    x[0] = _mm512_shuffle_ps(low, low2, 0x44), x[1] = _mm512_shuffle_ps(low, low2, 0xee);
    x[2] = _mm512_shuffle_ps(high, high2, 0x44), x[3] = _mm512_shuffle_ps(high, high2, 0xee);
}

/* to[j][i] = from[i][j], 16 x 16 of four bytes, in rows of `step` bytes. Four columns at a time are gathered as four
 * rows of four by four: loads are cheaper than moves between registers. */
WITH_AMX static void transpose(const void *from, int64_t step, void *to) {
    const char *x = from;
    for (int64_t j = 0; j < TILE; j += 4, x += sizeof(__m128)) {
        __m512 fours[4];
        for (int i = 0; i < 4; i++) {
            fours[i] = _mm512_broadcast_f32x4(_mm_loadu_ps((const float *)(const void *)(x + i * step)));
            for (int quarter = 1; quarter < 4; quarter++) {
                const void *row = x + (i + 4 * quarter) * step;
                fours[i] = _mm512_mask_broadcast_f32x4(fours[i], (__mmask16)(0xf << 4 * quarter), _mm_loadu_ps(row));
            }
        }
        transpose_fours(fours);
        for (int i = 0; i < 4; i++) _mm512_store_ps((float *)to + (j + i) * TILE, fours[i]);
    }
}

/* The same of floats in rows of `step`, of which rows below `rows` and columns in `mask` exist; the others are zero. */
WITH_AMX static void transpose_floats(const float *from, int64_t step, int64_t rows, __mmask16 mask, float *to) {
    float edge[TILE_PAIRS] __attribute__((aligned(64)));
    if (rows >= TILE && mask == 0xffff) {
        transpose(from, step * (int64_t)sizeof *from, to);
        return;
    }
    for (int64_t i = 0; i < TILE; i++)
        _mm512_store_ps(edge + i * TILE, _mm512_maskz_loadu_ps(i < rows ? mask : 0, from + i * step));
    transpose(edge, TILE * sizeof *edge, to);
}

/* The upper half of x, rounded to nearest, as a float's bits. */
WITH_AMX static inline __m512i round_upper(__m512 x) {
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32((int)0xffff0000);
    return _mm512_and_epi32(_mm512_add_epi32(_mm512_castps_si512(x), half), upper);
}

WITH_AMX static inline __m512i pair(__m512i first, __m512i second) {
    return _mm512_or_epi32(_mm512_srli_epi32(first, 16), second);
}

/* Sixteen pairs of x and y, to the same row of the three parts' tiles. */
WITH_AMX static inline void split(__m512 x, __m512 y, uint32_t *row) {
    const __m512i x_upper = round_upper(x), y_upper = round_upper(y);
    const __m512 x_rest = _mm512_sub_ps(x, _mm512_castsi512_ps(x_upper)),
                 y_rest = _mm512_sub_ps(y, _mm512_castsi512_ps(y_upper));
    const __m512i x_middle = round_upper(x_rest), y_middle = round_upper(y_rest);
    /* at most 8 bits are left, so that the lower halves are zero but in numbers below 2^-126, which count as zero */
    const __m512 x_lower = _mm512_sub_ps(x_rest, _mm512_castsi512_ps(x_middle)),
                 y_lower = _mm512_sub_ps(y_rest, _mm512_castsi512_ps(y_middle));
    _mm512_store_si512(row + UPPER * PART_PAIRS, pair(x_upper, y_upper));
    _mm512_store_si512(row + MIDDLE * PART_PAIRS, pair(x_middle, y_middle));
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    _mm512_store_si512(row + LOWER * PART_PAIRS,
                       pair(_mm512_castps_si512(x_lower), _mm512_and_epi32(_mm512_castps_si512(y_lower), upper)));
}

WITH_AMX static inline void store_pairs(enum kind kind, __m512 x, __m512 y, uint32_t *row) {
    if (kind == EXACT)
        split(x, y, row);
    else
        _mm512_store_si512(row, pair(round_upper(x), round_upper(y)));
}

/* Where the 16 x 32 elements of a tile of fp32 are: pair (i, j) is made of x[i * step + j] and x[i * step + second +
 * j]. Of the first ones rows below `rows` and columns in `mask` exist, and so with the second ones. */
struct source {
    const float *x;
    int64_t step, second, rows, second_rows;
    __mmask16 mask, second_mask;
};

WITH_AMX static inline __attribute__((always_inline)) void pack_tile(const enum kind kind, const struct source *s,
                                                                     bool transposed, uint32_t *tile) {
    if (transposed) {
        float x[TILE_PAIRS] __attribute__((aligned(64))), y[TILE_PAIRS] __attribute__((aligned(64)));
        transpose_floats(s->x, s->step, s->rows, s->mask, x);
        transpose_floats(s->x + s->second, s->step, s->second_rows, s->second_mask, y);
        for (int i = 0; i < TILE; i++)
            store_pairs(kind, _mm512_load_ps(x + i * TILE), _mm512_load_ps(y + i * TILE), tile + i * TILE);
        return;
    }
    const float *x = s->x, *y = s->x + s->second;
    if (s->rows >= TILE && s->second_rows >= TILE && s->second_mask == 0xffff) {
        for (int i = 0; i < TILE; i++, x += s->step, y += s->step)
            store_pairs(kind, _mm512_loadu_ps(x), _mm512_loadu_ps(y), tile + i * TILE);
        return;
    }
    for (int64_t i = 0; i < TILE; i++, x += s->step, y += s->step)
        store_pairs(kind, _mm512_maskz_loadu_ps(i < s->rows ? s->mask : 0, x),
                    _mm512_maskz_loadu_ps(i < s->second_rows ? s->second_mask : 0, y), tile + i * TILE);
}

WITH_AMX static void pack_exact(const struct source *s, bool transposed, uint32_t *tile) {
    pack_tile(EXACT, s, transposed, tile);
}

WITH_AMX static void pack_rounded(const struct source *s, bool transposed, uint32_t *tile) {
    pack_tile(ROUNDED, s, transposed, tile);
}

static __mmask16 first_lanes(int64_t count) {
    return count >= TILE ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

/* A factor of the product: element (i, k) is x[i * ld + k] where `along` says that k runs along memory, else x[k * ld +
 * i]; i counts rows of a or columns of b. */
struct factor {
    const void *x;
    int64_t ld;
    bool along, is_a;
    enum kind kind;
};

static const void *element(const struct factor *f, int64_t i, int64_t k) {
    const int64_t at = f->along ? i * f->ld + k : k * f->ld + i;
    return (const char *)f->x + at * (f->kind == BF16 ? 2 : 4);
}

static void pack_fp32(const struct factor *f, int64_t i, int64_t count, int64_t k, int64_t depth, uint32_t *tile) {
    const struct source along = {.x = element(f, i, k),
                                 .step = f->ld,
                                 .second = TILE,
                                 .rows = count,
                                 .second_rows = count,
                                 .mask = first_lanes(depth),
                                 .second_mask = first_lanes(depth - TILE)};
    const struct source across = {.x = element(f, i, k),
                                  .step = f->ld,
                                  .second = TILE * f->ld,
                                  .rows = depth,
                                  .second_rows = depth - TILE,
                                  .mask = first_lanes(count),
                                  .second_mask = first_lanes(count)};
    (f->kind == EXACT ? pack_exact : pack_rounded)(f->along ? &along : &across, f->is_a != f->along, tile);
}

/* Pairs are rows of two from memory that runs along k; else they are made of the elements of two rows. */
WITH_AMX static void pack_bf16(const struct factor *f, int64_t i, int64_t count, int64_t k, int64_t depth,
                               uint32_t *tile) {
    uint32_t aside[TILE_PAIRS] __attribute__((aligned(64)));
    const bool transposed = f->is_a != f->along;
    uint32_t *to = transposed ? aside : tile;
    const uint16_t *x = element(f, i, k);
    if (f->along && transposed && count >= TILE && depth >= STEP) {
        transpose(x, f->ld * 2, tile);
        return;
    }
    if (f->along && count >= TILE && depth >= STEP) {
        for (int64_t row = 0; row < TILE; row++, x += f->ld, to += TILE) _mm512_store_si512(to, _mm512_loadu_si512(x));
    } else if (f->along) {
        const __mmask32 mask = depth >= STEP ? 0xffffffff : (1u << depth) - 1;
        for (int64_t row = 0; row < TILE; row++, x += f->ld, to += TILE)
            _mm512_store_si512(to, _mm512_maskz_loadu_epi16(row < count ? mask : 0, x));
    } else {
        const __mmask16 mask = first_lanes(count);
        for (int64_t row = 0; row < STEP; row += 2, x += 2 * f->ld, to += TILE) {
            const __m256i first = _mm256_maskz_loadu_epi16(row < depth ? mask : 0, x),
                          second = _mm256_maskz_loadu_epi16(row + 1 < depth ? mask : 0, x + f->ld);
            const __m512i upper = _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16);
            _mm512_store_si512(to, _mm512_or_epi32(_mm512_cvtepu16_epi32(first), upper));
        }
    }
    if (transposed) transpose(aside, sizeof *aside * TILE, tile);
}

/* Packs rows of a, or columns of b, [first, first + count) at [k, k + depth) into strips. Memory is read along its
 * rows.
 */
static void pack(const struct factor *f, int64_t first, int64_t count, int64_t k, int64_t depth, uint32_t *strips) {
    const int64_t steps = (depth + STEP - 1) / STEP, halves = (count + STRIP - 1) / STRIP * 2;
    const int64_t outer = f->along ? halves : steps, inner = f->along ? steps : halves;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t n = 0; n < inner; n++) {
            const int64_t half = f->along ? o : n, step = f->along ? n : o;
            uint32_t *tile = strips + (half / 2 * steps + step) * group_pairs(f->kind) + half % 2 * TILE_PAIRS;
            const int64_t i = first + half * TILE, exist = min64(TILE, count - half * TILE);
            (f->kind == BF16 ? pack_bf16 : pack_fp32)(f, i, exist, k + step * STEP, min64(STEP, depth - step * STEP),
                                                      tile);
        }
}

#define LOAD_A(part)                                                                                                   \
    do {                                                                                                               \
        _tile_loadd(4, a + (part)*PART_PAIRS, 64);                                                                     \
        if (tall) _tile_loadd(5, a + (part)*PART_PAIRS + TILE_PAIRS, 64);                                              \
    } while (0)
#define LOAD_B(part)                                                                                                   \
    do {                                                                                                               \
        _tile_loadd(6, b + (part)*PART_PAIRS, 64);                                                                     \
        if (wide) _tile_loadd(7, b + (part)*PART_PAIRS + TILE_PAIRS, 64);                                              \
    } while (0)
#define MULTIPLY()                                                                                                     \
    do {                                                                                                               \
        _tile_dpbf16ps(0, 4, 6);                                                                                       \
        if (wide) _tile_dpbf16ps(1, 4, 7);                                                                             \
        if (tall) _tile_dpbf16ps(2, 5, 6);                                                                             \
        if (tall && wide) _tile_dpbf16ps(3, 5, 7);                                                                     \
    } while (0)

/* What comes next, while the unit multiplies: lines of memory that are on their way to the cache. */
struct ahead {
    const float *c;                          /* a strip's rows of the result, `c_stride` apart; NULL: none */
    const float *aux;                        /* and of what its epilogue reads or writes; NULL: none */
    const char *factor[DEPTH_OF_ONE / STEP]; /* 32 rows of a line or two each, `factor_stride` bytes apart */
    int64_t c_stride, factor_stride, factors;
};

enum { LINE = 64 }; /* bytes that the caches move at a time */

static inline __attribute__((always_inline)) void fetch(const bool exact, const struct ahead *ahead, int64_t first,
                                                        int64_t end) {
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

/* c[32, 32] = a b (+ c when `add`) over one strip of each; of 16 rows unless `tall`, 16 columns unless `wide`. Of three
 * parts, when `exact`, the smallest products are added first, and from one to the next only one factor has to be
 * loaded. */
WITH_AMX static inline __attribute__((always_inline)) void
multiply_strips(const bool exact, const bool tall, const bool wide, int64_t steps, const uint32_t *a, const uint32_t *b,
                float *c, int64_t ldc, bool add, const struct ahead *ahead) {
    const int64_t group = group_pairs(exact ? EXACT : BF16);
    const int64_t stride = ldc * (int64_t)sizeof *c;
    if (add) {
        _tile_loadd(0, c, stride);
        if (wide) _tile_loadd(1, c + TILE, stride);
        if (tall) _tile_loadd(2, c + TILE * ldc, stride);
        if (tall && wide) _tile_loadd(3, c + TILE * ldc + TILE, stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t step = 0; step < steps; step++, a += group, b += group) {
        LOAD_A(UPPER);
        if (!exact) {
            LOAD_B(UPPER);
            MULTIPLY();
            fetch(exact, ahead, step * STRIP / steps, (step + 1) * STRIP / steps);
            continue;
        }
        LOAD_B(LOWER);
        MULTIPLY();
        fetch(exact, ahead, step * STRIP / steps, (step + 1) * STRIP / steps);
        LOAD_B(MIDDLE);
        MULTIPLY();
        LOAD_A(MIDDLE);
        MULTIPLY();
        LOAD_B(UPPER);
        MULTIPLY();
        LOAD_A(LOWER);
        MULTIPLY();
        LOAD_A(UPPER);
        MULTIPLY();
    }
    _tile_stored(0, c, stride);
    if (wide) _tile_stored(1, c + TILE, stride);
    if (tall) _tile_stored(2, c + TILE * ldc, stride);
    if (tall && wide) _tile_stored(3, c + TILE * ldc + TILE, stride);
}

WITH_AMX static inline __attribute__((always_inline)) void multiply_shape(const bool exact, bool tall, bool wide,
                                                                          int64_t steps, const uint32_t *a,
                                                                          const uint32_t *b, float *c, int64_t ldc,
                                                                          bool add, const struct ahead *ahead) {
    if (tall && wide)
        multiply_strips(exact, true, true, steps, a, b, c, ldc, add, ahead);
    else if (tall)
        multiply_strips(exact, true, false, steps, a, b, c, ldc, add, ahead);
    else if (wide)
        multiply_strips(exact, false, true, steps, a, b, c, ldc, add, ahead);
    else
        multiply_strips(exact, false, false, steps, a, b, c, ldc, add, ahead);
}

WITH_AMX static void multiply_any(enum kind kind, bool tall, bool wide, int64_t steps, const uint32_t *a,
                                  const uint32_t *b, float *c, int64_t ldc, bool add, const struct ahead *ahead) {
    if (kind == EXACT)
        multiply_shape(true, tall, wide, steps, a, b, c, ldc, add, ahead);
    else
        multiply_shape(false, tall, wide, steps, a, b, c, ldc, add, ahead);
}

static void copy_rows(float *to, int64_t to_stride, const float *from, int64_t from_stride, int64_t rows,
                      int64_t columns) {
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * to_stride, from + i * from_stride, (size_t)columns * sizeof *to);
}

/* A strip of a, `steps` long, a block of b, whose strips are `b_steps` long, and where their product goes; `below`: the
 * rows that come next, NULL: none; `aux` as in struct ahead. */
struct strips {
    enum kind kind;
    int64_t rows, columns, steps, b_steps, ldc;
    const uint32_t *a, *b;
    float *c;
    const float *below, *aux;
};

/* c[rows, columns] = a b (+ c when `add`). Tiles that stick out are summed aside. Meanwhile the rows of c below are
 * fetched, and a's next strip, `next` at [i, k]; NULL: none. */
static void multiply_block(const struct strips *s, bool add, const struct factor *next, int64_t i, int64_t k) {
    float aside[STRIP * STRIP] __attribute__((aligned(64)));
    const int64_t strips = (s->columns + STRIP - 1) / STRIP, share = next ? (s->steps + strips - 1) / strips : 0;
    int64_t fetched = 0;
    /* The compiler is not told that tiles are loaded from memory: what was packed has to be there. */
    __asm__ volatile("" ::: "memory");
    for (int64_t j = 0; j < strips; j++) {
        const int64_t width = min64(STRIP, s->columns - j * STRIP);
        const uint32_t *b = s->b + j * s->b_steps * group_pairs(s->kind);
        float *c = s->c + j * STRIP;
        struct ahead ahead = {.c = j + 1 < strips ? c + STRIP : s->below,
                              .aux = s->aux ? s->aux + j * STRIP : NULL,
                              .c_stride = s->ldc,
                              .factor_stride = next ? next->ld * (next->kind == BF16 ? 2 : 4) : 0};
        for (; ahead.factors < share && fetched < s->steps; ahead.factors++, fetched++)
            ahead.factor[ahead.factors] = element(next, i, k + fetched * STEP);
        if (s->rows % TILE == 0 && width % TILE == 0) {
            multiply_any(s->kind, s->rows > TILE, width > TILE, s->steps, s->a, b, c, s->ldc, add, &ahead);
            continue;
        }
        if (add) {
            copy_rows(aside, STRIP, c, s->ldc, s->rows, width);
            __asm__ volatile("" ::: "memory");
        }
        multiply_any(s->kind, s->rows > TILE, width > TILE, s->steps, s->a, b, aside, STRIP, add, &ahead);
        __asm__ volatile("" ::: "memory");
        copy_rows(c, s->ldc, aside, STRIP, s->rows, width);
    }
    __asm__ volatile("" ::: "memory");
}

/* The depth of blocks for a whole depth of k: equal steps, but for the last block. */
static int64_t block_depth(enum kind kind, int64_t k) {
    const int64_t most = kind == EXACT ? DEPTH : DEPTH_OF_ONE;
    const int64_t blocks = (k + most - 1) / most, depth = (k + blocks - 1) / blocks;
    return (depth + STEP - 1) / STEP * STEP;
}

/* How many columns a block of this depth has: the shallower, the more, so that a's strips are packed less often. */
static int64_t block_columns(enum kind kind, int64_t depth) {
    const int64_t most = kind == EXACT ? DEPTH : DEPTH_OF_ONE;
    return min64(COLUMNS * most / depth / STRIP * STRIP, COLUMNS_MOST);
}

/* Sums that are to be rounded are made aside: a strip at a time where one block is as deep as k, else a slab of strips,
 * through which the blocks go one after another. */
WITH_AMX void ls_amx_multiply(const struct ls_op_gemm *op, int64_t row, int64_t row_end, int64_t column,
                              int64_t column_end, ls_amx_finish *finish) {
    uint32_t a_strip[STRIP_PAIRS] __attribute__((aligned(64)));
    uint32_t b_strips[COLUMNS / STRIP * STRIP_PAIRS] __attribute__((aligned(64)));
    float sums[SUM_ROWS * COLUMNS] __attribute__((aligned(64)));
    const enum kind kind = op->dtype == LS_BF16 ? BF16 : EXACT;
    const struct factor a = {.x = op->a, .ld = op->lda, .along = !op->transpose_a, .is_a = true, .kind = kind};
    const struct factor b = {.x = op->b, .ld = op->ldb, .along = op->transpose_b, .kind = kind};
    const int64_t depth = block_depth(kind, op->k), width = block_columns(kind, depth);
    const bool aside = kind == BF16 && !op->c_fp32, whole = depth >= op->k;
    const int64_t slab = aside && !whole ? SUM_ROWS * COLUMNS / width / STRIP * STRIP : row_end - row;
    configure();
    for (int64_t j = column; j < column_end; j += width)
        for (int64_t top = row; top < row_end; top += slab) {
            const int64_t columns = min64(width, column_end - j), bottom = min64(row_end, top + slab);
            for (int64_t k = 0; k < op->k; k += depth) {
                const int64_t now = min64(depth, op->k - k), steps = (now + STEP - 1) / STEP;
                if (top == row || !whole) pack(&b, j, columns, k, now, b_strips);
                for (int64_t i = top; i < bottom; i += STRIP) {
                    const int64_t rows = min64(STRIP, bottom - i), next = i + rows, ldc = aside ? width : op->ldc;
                    const bool last = k + now == op->k;
                    float *c = aside ? sums + (whole ? 0 : i - top) * width : (float *)op->c + i * op->ldc + j;
                    const struct strips strips = {
                        .kind = kind,
                        .rows = rows,
                        .columns = columns,
                        .steps = steps,
                        .b_steps = steps,
                        .ldc = ldc,
                        .a = a_strip,
                        .b = b_strips,
                        .c = c,
                        .below = next < bottom && !aside ? c + rows * ldc : NULL,
                        .aux = last && op->aux && !aside ? (const float *)op->aux + i * op->ldc + j : NULL};
                    pack(&a, i, rows, k, now, a_strip);
                    multiply_block(&strips, k > 0 || (op->accumulate && !aside), next < bottom ? &a : NULL, next, k);
                    if (last) finish(op, c, ldc, i, next, j, j + columns);
                }
            }
        }
    _tile_release();
}

WITH_AMX void ls_amx_pack(bool rounded, bool transposed, const float *b, int64_t ldb, int64_t k, int64_t n,
                          float *panels) {
    const struct factor factor = {.x = b, .ld = ldb, .along = transposed, .kind = rounded ? ROUNDED : EXACT};
    pack(&factor, 0, n, 0, k, (uint32_t *)(void *)panels);
}

WITH_AMX void ls_amx_multiply_packed(bool rounded, int64_t m, int64_t n, int64_t k, bool transposed, const float *a,
                                     int64_t lda, const float *panels, int64_t depth, float *c, int64_t ldc, bool add) {
    uint32_t a_strip[STRIP_PAIRS] __attribute__((aligned(64)));
    const enum kind kind = rounded ? ROUNDED : EXACT;
    const struct factor factor = {.x = a, .ld = lda, .along = !transposed, .is_a = true, .kind = kind};
    assert(k <= DEPTH);
    configure();
    for (int64_t i = 0; i < m; i += STRIP) {
        const struct strips strips = {.kind = kind,
                                      .rows = min64(STRIP, m - i),
                                      .columns = n,
                                      .steps = (k + STEP - 1) / STEP,
                                      .b_steps = (depth + STEP - 1) / STEP,
                                      .ldc = ldc,
                                      .a = a_strip,
                                      .b = (const uint32_t *)(const void *)panels,
                                      .c = c + i * ldc};
        pack(&factor, i, strips.rows, 0, k, a_strip);
        multiply_block(&strips, add, NULL, 0, 0);
    }
    _tile_release();
}

#else

bool ls_amx_available(void) {
    return false;
}

bool ls_amx_serves(int64_t m, int64_t n, int64_t k) {
    (void)m, (void)n, (void)k;
    return false;
}

void ls_amx_multiply(const struct ls_op_gemm *op, int64_t row, int64_t row_end, int64_t column, int64_t column_end,
                     ls_amx_finish *finish) {
    (void)op, (void)row, (void)row_end, (void)column, (void)column_end, (void)finish;
}

void ls_amx_pack(bool rounded, bool transposed, const float *b, int64_t ldb, int64_t k, int64_t n, float *panels) {
    (void)rounded, (void)transposed, (void)b, (void)ldb, (void)k, (void)n, (void)panels;
}

void ls_amx_multiply_packed(bool rounded, int64_t m, int64_t n, int64_t k, bool transposed, const float *a, int64_t lda,
                            const float *panels, int64_t depth, float *c, int64_t ldc, bool add) {
    (void)rounded, (void)m, (void)n, (void)k, (void)transposed, (void)a, (void)lda, (void)panels, (void)depth, (void)c,
        (void)ldc;
    (void)add;
}

#endif
