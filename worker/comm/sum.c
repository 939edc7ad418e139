/* Sums a stretch at a time, which stays in the first cache. */
#include "worker/comm/sum.h"

#include "worker/device/cpu/low_precision.h"

#include <string.h>

enum { STRETCH = 512 };

#define DEFINE_SUM(name, type)                                                                                         \
    static void name(const void *const *sources, int ranks, int64_t begin, int64_t end, void *const *sums,             \
                     int sums_count) {                                                                                 \
        type sum[STRETCH];                                                                                             \
        for (int64_t start = begin; start < end; start += STRETCH) {                                                   \
            const int64_t count = end - start < STRETCH ? end - start : STRETCH;                                       \
            memcpy(sum, (const type *)sources[0] + start, (size_t)count * sizeof *sum);                                \
            for (int rank = 1; rank < ranks; rank++) {                                                                 \
                const type *addend = (const type *)sources[rank] + start;                                              \
                for (int64_t i = 0; i < count; i++) sum[i] += addend[i];                                               \
            }                                                                                                          \
            for (int i = 0; i < sums_count; i++) memcpy((type *)sums[i] + start, sum, (size_t)count * sizeof *sum);    \
        }                                                                                                              \
    }
DEFINE_SUM(sum_float, float)
DEFINE_SUM(sum_double, double)

static void sum_bf16(const void *const *sources, int ranks, int64_t begin, int64_t end, void *const *sums,
                     int sums_count) {
    float sum[STRETCH];
    uint16_t rounded[STRETCH];
    for (int64_t start = begin; start < end; start += STRETCH) {
        const int64_t count = end - start < STRETCH ? end - start : STRETCH;
        memset(sum, 0, sizeof sum);
        for (int rank = 0; rank < ranks; rank++) {
            const uint16_t *addend = (const uint16_t *)sources[rank] + start;
            for (int64_t i = 0; i < count; i++) sum[i] += ls_bf16_widen(addend[i]);
        }
        for (int64_t i = 0; i < count; i++) rounded[i] = ls_bf16_narrow(sum[i]);
        for (int i = 0; i < sums_count; i++)
            memcpy((uint16_t *)sums[i] + start, rounded, (size_t)count * sizeof *rounded);
    }
}

void ls_comm_sum(enum ls_comm_type type, const void *const *sources, int ranks, int64_t begin, int64_t end,
                 void *const *sums, int sums_count) {
    static void (*const functions[])(const void *const *, int, int64_t, int64_t, void *const *,
                                     int) = {sum_float, sum_double, sum_bf16};
    functions[type](sources, ranks, begin, end, sums, sums_count);
}
