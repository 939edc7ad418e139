/* bf16 and fp16 in software: single values for loops, and ranges. Rounding is to nearest, ties to even; what overflows
 * becomes infinite, NaN stays NaN. */
#ifndef LS_WORKER_DEVICE_CPU_LOW_PRECISION_H
#define LS_WORKER_DEVICE_CPU_LOW_PRECISION_H

#include "worker/device/operations.h"

#include <string.h>

static inline float ls_float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t ls_bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* bf16 is the upper half of fp32. */
static inline float ls_bf16_widen(uint16_t value) {
    return ls_float_of_bits((uint32_t)value << 16);
}

static inline uint16_t ls_bf16_narrow(float value) {
    const uint32_t bits = ls_bits_of_float(value), nan = bits >> 16 | 0x40;
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

/* fp16: 5 bits of exponent with bias 15, 10 of fraction. Denormal numbers are made by an addition whose sum has the
 * bits of the fraction in the right place. */
static inline float ls_fp16_widen(uint16_t value) {
    const uint32_t sign = (uint32_t)(value & 0x8000) << 16, magnitude = (uint32_t)(value & 0x7fff) << 13;
    const uint32_t normal = magnitude + ((127u - 15) << 23), special = magnitude + ((255u - 31) << 23);
    const float denormal = ls_float_of_bits(magnitude + ((127u - 14) << 23)) - ls_float_of_bits((127u - 14) << 23);
    const uint32_t exponent = magnitude >> 23;
    const uint32_t bits = exponent == 0 ? ls_bits_of_float(denormal) : exponent == 31 ? special : normal;
    return ls_float_of_bits(sign | bits);
}

static inline uint16_t ls_fp16_narrow(float value) {
    const uint32_t bits = ls_bits_of_float(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    /* 0.5 has its last bit worth 2^-24, the smallest fp16 */
    const uint32_t denormal = ls_bits_of_float(ls_float_of_bits(magnitude) + 0.5f) - ls_bits_of_float(0.5f);
    const uint32_t normal = (magnitude - ((127u - 15) << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    const uint32_t result = magnitude >= (127u + 16) << 23  ? special
                            : magnitude < (127u - 14) << 23 ? denormal
                                                            : normal;
    return (uint16_t)(sign | result);
}

/* Element i of an array of `dtype`. Always inlined: with a constant `dtype` a loop over elements has no branch. */
static inline __attribute__((always_inline)) float ls_load(enum ls_dtype dtype, const void *values, int64_t i) {
    if (dtype == LS_FP32) return ((const float *)values)[i];
    const uint16_t value = ((const uint16_t *)values)[i];
    return dtype == LS_BF16 ? ls_bf16_widen(value) : ls_fp16_widen(value);
}

/* Returns the value as it was stored. */
static inline __attribute__((always_inline)) float ls_store(enum ls_dtype dtype, void *values, int64_t i, float value) {
    if (dtype == LS_FP32) return ((float *)values)[i] = value;
    const uint16_t narrow = dtype == LS_BF16 ? ls_bf16_narrow(value) : ls_fp16_narrow(value);
    ((uint16_t *)values)[i] = narrow;
    return dtype == LS_BF16 ? ls_bf16_widen(narrow) : ls_fp16_widen(narrow);
}

/* The address of element i. */
static inline void *ls_element(enum ls_dtype dtype, const void *values, int64_t i) {
    return (char *)(uintptr_t)values + i * ls_dtype_bytes(dtype);
}

/* Ranges; fp32 is copied. */
void ls_widen(enum ls_dtype dtype, float *to, const void *from, int64_t count);
void ls_narrow(enum ls_dtype dtype, void *to, const float *from, int64_t count);

#endif
