/* AMX: tiles of 1 KiB in eight registers; four hold the results of 2 x 2 tiles, two each the factors. */
#include "worker/device/cpu/pairs_unit.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WITH_AMX __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl")))

/* All tiles are 16 rows of 64 bytes. */
WITH_AMX static void begin(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } configuration = {.palette = 1};
    for (int i = 0; i < 8; i++) configuration.row_bytes[i] = 64, configuration.rows[i] = TILE;
    __asm__ volatile("" ::"m"(configuration)); /* the compiler knows of the first eight bytes only that they are read */
    _tile_loadconfig(&configuration);
}

WITH_AMX static void end(void) {
    _tile_release();
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

/* Of three parts the smallest products are added first, and from one to the next only one factor has to be loaded. */
WITH_AMX static inline __attribute__((always_inline)) void
multiply_strips(const bool exact, const bool tall, const bool wide, int64_t steps, const uint32_t *a, const uint32_t *b,
                float *c, int64_t ldc, bool add, const struct ls_pairs_ahead *ahead) {
    const int64_t group = (exact ? PARTS : 1) * PART_PAIRS;
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
            ls_pairs_fetch(exact, ahead, step * STRIP / steps, (step + 1) * STRIP / steps);
            continue;
        }
        LOAD_B(LOWER);
        MULTIPLY();
        ls_pairs_fetch(exact, ahead, step * STRIP / steps, (step + 1) * STRIP / steps);
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

WITH_AMX static inline __attribute__((always_inline)) void
multiply_shape(const bool exact, bool tall, bool wide, int64_t steps, const uint32_t *a, const uint32_t *b, float *c,
               int64_t ldc, bool add, const struct ls_pairs_ahead *ahead) {
    if (tall && wide)
        multiply_strips(exact, true, true, steps, a, b, c, ldc, add, ahead);
    else if (tall)
        multiply_strips(exact, true, false, steps, a, b, c, ldc, add, ahead);
    else if (wide)
        multiply_strips(exact, false, true, steps, a, b, c, ldc, add, ahead);
    else
        multiply_strips(exact, false, false, steps, a, b, c, ldc, add, ahead);
}

WITH_AMX static void multiply(bool exact, bool tall, bool wide, int64_t steps, const uint32_t *a, const uint32_t *b,
                              float *c, int64_t ldc, bool add, const struct ls_pairs_ahead *ahead) {
    /* The compiler is not told that tiles are loaded from memory and stored there. */
    __asm__ volatile("" ::: "memory");
    if (exact)
        multiply_shape(true, tall, wide, steps, a, b, c, ldc, add, ahead);
    else
        multiply_shape(false, tall, wide, steps, a, b, c, ldc, add, ahead);
    __asm__ volatile("" ::: "memory");
}

/* Linux saves the tiles' 8 KiB only for processes that have asked (Documentation/arch/x86/xstate.rst). */
const struct ls_pairs_unit *ls_pairs_amx(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18, AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };
    static const struct ls_pairs_unit unit = {
        .name = "amx", .exact = true, .begin = begin, .end = end, .multiply = multiply};
    const char *wish = getenv("LOCKSTEP_AMX");
    unsigned a, b, c, d;
    if (wish && strcmp(wish, "0") == 0) return NULL;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & AMX_BF16) || !(d & AMX_TILE)) return NULL;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 ? &unit : NULL;
}

#else

const struct ls_pairs_unit *ls_pairs_amx(void) {
    return NULL;
}

#endif
