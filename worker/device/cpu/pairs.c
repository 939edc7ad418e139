/* Blocks of both factors are packed into tiles of one or three parts (pairs_unit.h has their layout), which a loop over
 * strips of the result multiplies. */
#include "worker/device/cpu/pairs.h"

#include "worker/device/cpu/pairs_unit.h"

#if defined(__x86_64__)
#include <assert.h>
#include <immintrin.h>
#include <pthread.h>
#include <string.h>

#define WITH_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

/* What elements are in memory, and how many parts of them are multiplied. */
enum kind { EXACT, ROUNDED, BF16 }; /* fp32 in three parts, fp32 rounded to one, bf16 */

static inline int64_t group_pairs(enum kind kind) {
    return kind == EXACT ? PARTS * PART_PAIRS : PART_PAIRS;
}

/* A block of b stays in the second cache while strips of a pass by; of a single part it is deeper, and has up to
 * SUM_ROWS rows of sums beside it, which are to be rounded. */
enum { COLUMNS = 384, DEPTH = 384, SUM_ROWS = 192, COLUMNS_MOST = 1536 };
enum { STRIP_PAIRS = DEPTH / STEP * PARTS * PART_PAIRS };
_Static_assert(STRIP_PAIRS >= DEPTH_OF_ONE / STEP * PART_PAIRS, "a strip of either kind fits");

/* Smaller products do not pay for packing. */
enum { SIDE_MIN = 32, PRODUCT_MIN = 1 << 17 };

static const struct ls_pairs_unit *unit;

static void find_unit(void) {
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return;
    unit = ls_pairs_amx();
    if (!unit) unit = ls_pairs_avx512();
}

const char *ls_pairs_unit(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_unit);
    return unit ? unit->name : NULL;
}

bool ls_pairs_available(bool rounded) {
    return ls_pairs_unit() && (rounded || unit->exact);
}

bool ls_pairs_serve(enum ls_dtype dtype, int64_t m, int64_t n, int64_t k) {
    return dtype != LS_FP16 && m >= SIDE_MIN && n >= SIDE_MIN && k >= SIDE_MIN && m * n * k >= PRODUCT_MIN &&
           ls_pairs_available(dtype == LS_BF16);
}

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Four rows of four by four: afterwards a row holds a column of each. */
WITH_AVX512 static inline void transpose_fours(__m512 x[4]) {
    const __m512 low = _mm512_unpacklo_ps(x[0], x[1]), high = _mm512_unpackhi_ps(x[0], x[1]);
    const __m512 low2 = _mm512_unpacklo_ps(x[2], x[3]), high2 = _mm512_unpackhi_ps(x[2], x[3]);
    x[0] = _mm512_shuffle_ps(low, low2, 0x44), x[1] = _mm512_shuffle_ps(low, low2, 0xee);
    x[2] = _mm512_shuffle_ps(high, high2, 0x44), x[3] = _mm512_shuffle_ps(high, high2, 0xee);
}

/* to[j][i] = from[i][j], 16 x 16 of four bytes, in rows of `step` bytes. Four columns at a time are gathered as four
 * rows of four by four: loads are cheaper than moves between registers. */
WITH_AVX512 static void transpose(const void *from, int64_t step, void *to) {
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
WITH_AVX512 static void transpose_floats(const float *from, int64_t step, int64_t rows, __mmask16 mask, float *to) {
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
WITH_AVX512 static inline __m512i round_upper(__m512 x) {
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32((int)0xffff0000);
    return _mm512_and_epi32(_mm512_add_epi32(_mm512_castps_si512(x), half), upper);
}

WITH_AVX512 static inline __m512i pair(__m512i first, __m512i second) {
    return _mm512_or_epi32(_mm512_srli_epi32(first, 16), second);
}

/* Sixteen pairs of x and y, to the same row of the three parts' tiles. */
WITH_AVX512 static inline void split(__m512 x, __m512 y, uint32_t *row) {
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

WITH_AVX512 static inline void store_pairs(enum kind kind, __m512 x, __m512 y, uint32_t *row) {
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

WITH_AVX512 static inline __attribute__((always_inline)) void pack_tile(const enum kind kind, const struct source *s,
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

WITH_AVX512 static void pack_exact(const struct source *s, bool transposed, uint32_t *tile) {
    pack_tile(EXACT, s, transposed, tile);
}

WITH_AVX512 static void pack_rounded(const struct source *s, bool transposed, uint32_t *tile) {
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
WITH_AVX512 static void pack_bf16(const struct factor *f, int64_t i, int64_t count, int64_t k, int64_t depth,
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
    for (int64_t j = 0; j < strips; j++) {
        const int64_t width = min64(STRIP, s->columns - j * STRIP);
        const uint32_t *b = s->b + j * s->b_steps * group_pairs(s->kind);
        float *c = s->c + j * STRIP;
        struct ls_pairs_ahead ahead = {.c = j + 1 < strips ? c + STRIP : s->below,
                                       .aux = s->aux ? s->aux + j * STRIP : NULL,
                                       .c_stride = s->ldc,
                                       .factor_stride = next ? next->ld * (next->kind == BF16 ? 2 : 4) : 0};
        for (; ahead.factors < share && fetched < s->steps; ahead.factors++, fetched++)
            ahead.factor[ahead.factors] = element(next, i, k + fetched * STEP);
        if (s->rows % TILE == 0 && width % TILE == 0) {
            unit->multiply(s->kind == EXACT, s->rows > TILE, width > TILE, s->steps, s->a, b, c, s->ldc, add, &ahead);
            continue;
        }
        if (add) copy_rows(aside, STRIP, c, s->ldc, s->rows, width);
        unit->multiply(s->kind == EXACT, s->rows > TILE, width > TILE, s->steps, s->a, b, aside, STRIP, add, &ahead);
        copy_rows(c, s->ldc, aside, STRIP, s->rows, width);
    }
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
WITH_AVX512 void ls_pairs_multiply(const struct ls_op_gemm *op, int64_t row, int64_t row_end, int64_t column,
                                   int64_t column_end, ls_pairs_finish *finish) {
    uint32_t a_strip[STRIP_PAIRS] __attribute__((aligned(64)));
    uint32_t b_strips[COLUMNS / STRIP * STRIP_PAIRS] __attribute__((aligned(64)));
    float sums[SUM_ROWS * COLUMNS] __attribute__((aligned(64)));
    const enum kind kind = op->dtype == LS_BF16 ? BF16 : EXACT;
    const struct factor a = {.x = op->a, .ld = op->lda, .along = !op->transpose_a, .is_a = true, .kind = kind};
    const struct factor b = {.x = op->b, .ld = op->ldb, .along = op->transpose_b, .kind = kind};
    const int64_t depth = block_depth(kind, op->k), width = block_columns(kind, depth);
    const bool aside = kind == BF16 && !op->c_fp32, whole = depth >= op->k;
    const int64_t slab = aside && !whole ? SUM_ROWS * COLUMNS / width / STRIP * STRIP : row_end - row;
    unit->begin();
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
    unit->end();
}

WITH_AVX512 void ls_pairs_pack(bool rounded, bool transposed, const float *b, int64_t ldb, int64_t k, int64_t n,
                               float *panels) {
    const struct factor factor = {.x = b, .ld = ldb, .along = transposed, .kind = rounded ? ROUNDED : EXACT};
    pack(&factor, 0, n, 0, k, (uint32_t *)(void *)panels);
}

WITH_AVX512 void ls_pairs_multiply_packed(bool rounded, int64_t m, int64_t n, int64_t k, bool transposed,
                                          const float *a, int64_t lda, const float *panels, int64_t depth, float *c,
                                          int64_t ldc, bool add) {
    uint32_t a_strip[STRIP_PAIRS] __attribute__((aligned(64)));
    const enum kind kind = rounded ? ROUNDED : EXACT;
    const struct factor factor = {.x = a, .ld = lda, .along = !transposed, .is_a = true, .kind = kind};
    assert(k <= DEPTH);
    unit->begin();
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
    unit->end();
}

#else

const char *ls_pairs_unit(void) {
    return NULL;
}

bool ls_pairs_available(bool rounded) {
    (void)rounded;
    return false;
}

bool ls_pairs_serve(enum ls_dtype dtype, int64_t m, int64_t n, int64_t k) {
    (void)dtype, (void)m, (void)n, (void)k;
    return false;
}

void ls_pairs_multiply(const struct ls_op_gemm *op, int64_t row, int64_t row_end, int64_t column, int64_t column_end,
                       ls_pairs_finish *finish) {
    (void)op, (void)row, (void)row_end, (void)column, (void)column_end, (void)finish;
}

void ls_pairs_pack(bool rounded, bool transposed, const float *b, int64_t ldb, int64_t k, int64_t n, float *panels) {
    (void)rounded, (void)transposed, (void)b, (void)ldb, (void)k, (void)n, (void)panels;
}

void ls_pairs_multiply_packed(bool rounded, int64_t m, int64_t n, int64_t k, bool transposed, const float *a,
                              int64_t lda, const float *panels, int64_t depth, float *c, int64_t ldc, bool add) {
    (void)rounded, (void)m, (void)n, (void)k, (void)transposed, (void)a, (void)lda, (void)panels, (void)depth, (void)c,
        (void)ldc;
    (void)add;
}

#endif
