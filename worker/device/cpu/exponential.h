/* Vectorised exponential: plain C that compilers turn into SIMD inside a `#pragma omp simd` loop; no tables, no
 * branches. */
#ifndef LS_WORKER_DEVICE_CPU_EXPONENTIAL_H
#define LS_WORKER_DEVICE_CPU_EXPONENTIAL_H

#include <stdint.h>
#include <string.h>

/* Value-range propagation sees that a clamped argument is sometimes a constant, computes both ways and blends them: a
 * third slower. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-vrp")
#endif

/* exp(x) within 2 units in the last place for x in [-60, 60]; outside it the value at the nearer end (8.8e-27, 1.1e26).
 * That is as good as zero and infinity beside 1 in float, and far enough from the ends of float's range that what
 * callers multiply it by stays clear of denormal numbers, each of which costs over a hundred cycles. NaN gives NaN.
 * Range reduction to |r| <= ln(2)/2 with ln 2 in two parts (Cody & Waite 1980, chapter 6), then 1 + r + r^2 q(r) with
 * the minimax polynomial q of degree 4, whose error is 3.1e-9 of the value. */
static inline float ls_exp(float x) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, held in the low bits */
    x = x < -60.0f ? -60.0f : x;
    x = x > 60.0f ? 60.0f : x;
    const float shifted = x * 1.44269504f + shift;
    const float n = shifted - shift;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float q = 1.38145406e-3f;
    q = q * r + 8.36874545e-3f;
    q = q * r + 4.1668389e-2f;
    q = q * r + 1.66665211e-1f;
    q = q * r + 0.49999994f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23; /* 2^n: the shift's own bits leave at the top */
    float power;
    memcpy(&power, &bits, sizeof power);
    return ((q * r) * r + r + 1.0f) * power;
}

#endif
