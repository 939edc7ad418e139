/* What worker/device/cuda/tensor.h takes from a GPU, in terms of scheduler.h: products of a warp on tensor cores, loads
 * of matrices, and copies beside arithmetic. A copy writes when its thread waits for it; until then the place holds
 * NaN, written when the copy began: who reads too early finds no number, and for the thread sanitizer both are writes.
 */
#ifndef LS_TESTS_EMULATOR_TENSOR_H
#define LS_TESTS_EMULATOR_TENSOR_H

#include "tests/emulator/emulator.h"

/* What a lane gives to ldmatrix and gets: elements [8] of one row, and of each matrix its two. */
struct ls_emulator_matrices {
    uint16_t row[8];
    unsigned *to;
};

template <bool TRANSPOSED> static inline void ls_emulator_matrices_of_warp(void *const lanes[LS_EMULATOR_WARP]) {
    for (int lane = 0; lane < LS_EMULATOR_WARP; lane++)
        for (int matrix = 0; matrix < 4; matrix++) {
            unsigned bits = 0;
            for (int k = 0; k < 2; k++) {
                const int g = lane / 4, pair = lane % 4 * 2 + k;
                const int row = TRANSPOSED ? pair : g, column = TRANSPOSED ? g : pair;
                const auto *from = static_cast<const ls_emulator_matrices *>(lanes[matrix * 8 + row]);
                bits |= static_cast<unsigned>(from->row[column]) << 16 * k;
            }
            static_cast<const ls_emulator_matrices *>(lanes[lane])->to[matrix] = bits;
        }
}

template <bool TRANSPOSED> static inline void ls_emulator_load_matrices(unsigned (&to)[4], const void *row) {
    ls_emulator_matrices own;
    const int4 bits = *static_cast<const int4 *>(row); /* 16 bytes, aligned */
    memcpy(own.row, &bits, sizeof own.row);
    own.to = to;
    ls_emulator_together(LS_EMULATOR_MATRICES, &own, ls_emulator_matrices_of_warp<TRANSPOSED>);
}
static inline void ls_load_matrices(unsigned (&to)[4], const void *row) {
    ls_emulator_load_matrices<false>(to, row);
}
static inline void ls_load_matrices_transposed(unsigned (&to)[4], const void *row) {
    ls_emulator_load_matrices<true>(to, row);
}

struct ls_emulator_product {
    float *d;
    const unsigned *a;
    unsigned b[2];
};

template <typename T> static inline float ls_emulator_half(unsigned bits, int which) {
    const uint16_t own = static_cast<uint16_t>(bits >> 16 * which);
    T value;
    memcpy(static_cast<void *>(&value), &own, sizeof value);
    return static_cast<float>(value);
}

template <typename T> static inline void ls_emulator_product_of_warp(void *const lanes[LS_EMULATOR_WARP]) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < LS_EMULATOR_WARP; lane++) {
        const auto *own = static_cast<const ls_emulator_product *>(lanes[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int k = 0; k < 2; k++) {
            for (int i = 0; i < 4; i++) a[g + i % 2 * 8][2 * t + i / 2 * 8 + k] = ls_emulator_half<T>(own->a[i], k);
            for (int i = 0; i < 2; i++) b[2 * t + i * 8 + k][g] = ls_emulator_half<T>(own->b[i], k);
        }
    }
    for (int lane = 0; lane < LS_EMULATOR_WARP; lane++) {
        const auto *own = static_cast<const ls_emulator_product *>(lanes[lane]);
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            for (int k = 0; k < 16; k++) own->d[i] += a[row][k] * b[k][column];
        }
    }
}

template <typename T>
static inline void ls_multiply_tile(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, T) {
    ls_emulator_product own = {d, a, {b0, b1}};
    ls_emulator_together(LS_EMULATOR_PRODUCT, &own, ls_emulator_product_of_warp<T>);
}

template <int BYTES> static inline void ls_copy_aside(void *to, const void *from, bool there) {
    static_assert(BYTES == 4 || BYTES == 16, "what one copy takes");
    ls_emulator_copies *copies = ls_emulator_copies_of_thread();
    if (reinterpret_cast<uintptr_t>(to) % BYTES || reinterpret_cast<uintptr_t>(from) % BYTES)
        ls_emulator_stop("a copy to shared memory is not aligned to its size");
    if (copies->count == LS_EMULATOR_COPIES_MAX) ls_emulator_stop("a thread has too many copies under way");
    memset(to, 0xff, BYTES);
    copies->under_way[copies->count++] = {to, there ? from : nullptr, BYTES};
}
static inline void ls_copies_wait() {
    ls_emulator_copies *copies = ls_emulator_copies_of_thread();
    for (int i = 0; i < copies->count; i++) {
        const ls_emulator_copy *copy = &copies->under_way[i];
        if (copy->from)
            memcpy(copy->to, copy->from, static_cast<size_t>(copy->bytes));
        else
            memset(copy->to, 0, static_cast<size_t>(copy->bytes));
    }
    copies->count = 0;
}

static inline int ls_made_anew(int x) {
    return x;
}

static inline float ls_power_of_two(float x) {
    return exp2f(x);
}

#endif
