/* Sums a stretch at a time, which stays in the first cache. */
#include "worker/comm/sum.h"

#include "worker/device/cpu/low_precision.h"

#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

enum { STRETCH = 512, LINE_BYTES = 64 };

void ls_comm_copy_past_caches(void *to, const void *from, size_t bytes) {
    size_t done = 0;
#ifdef __AVX__
    done = -(uintptr_t)to % LINE_BYTES;
    if (done > bytes) done = bytes;
    memcpy(to, from, done);
    for (; bytes - done >= LINE_BYTES; done += LINE_BYTES) {
        const char *line = (const char *)from + done;
#ifdef __AVX512F__
        _mm512_stream_si512((__m512i *)((char *)to + done), _mm512_loadu_si512(line));
#else
        _mm256_stream_si256((__m256i *)((char *)to + done), _mm256_loadu_si256((const __m256i *)line));
        _mm256_stream_si256((__m256i *)((char *)to + done) + 1, _mm256_loadu_si256((const __m256i *)line + 1));
#endif
    }
    _mm_sfence();
#endif
    memcpy((char *)to + done, (const char *)from + done, bytes - done);
}

/* A stretch's sums go where they belong. */
static void give(const void *sum, void *const *sums, int sums_count, size_t offset, size_t bytes, bool past_caches) {
    for (int i = 0; i < sums_count; i++)
        if (past_caches && i == 0)
            ls_comm_copy_past_caches((char *)sums[i] + offset, sum, bytes);
        else
            memcpy((char *)sums[i] + offset, sum, bytes);
}

#define DEFINE_SUM(name, type)                                                                                         \
    static void name(const void *const *sources, int ranks, int64_t begin, int64_t end, void *const *sums,             \
                     int sums_count, bool past_caches) {                                                               \
        type sum[STRETCH];                                                                                             \
        for (int64_t start = begin; start < end; start += STRETCH) {                                                   \
            const int64_t count = end - start < STRETCH ? end - start : STRETCH;                                       \
            memcpy(sum, (const type *)sources[0] + start, (size_t)count * sizeof *sum);                                \
            for (int rank = 1; rank < ranks; rank++) {                                                                 \
                const type *addend = (const type *)sources[rank] + start;                                              \
                for (int64_t i = 0; i < count; i++) sum[i] += addend[i];                                               \
            }                                                                                                          \
            give(sum, sums, sums_count, (size_t)start * sizeof *sum, (size_t)count * sizeof *sum, past_caches);        \
        }                                                                                                              \
    }
DEFINE_SUM(sum_float, float)
DEFINE_SUM(sum_double, double)

static void sum_bf16(const void *const *sources, int ranks, int64_t begin, int64_t end, void *const *sums,
                     int sums_count, bool past_caches) {
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
        give(rounded, sums, sums_count, (size_t)start * sizeof *rounded, (size_t)count * sizeof *rounded, past_caches);
    }
}

void ls_comm_sum(enum ls_comm_type type, const void *const *sources, int ranks, int64_t begin, int64_t end,
                 void *const *sums, int sums_count, bool past_caches) {
    static void (*const functions[])(const void *const *, int, int64_t, int64_t, void *const *, int,
                                     bool) = {sum_float, sum_double, sum_bf16};
    functions[type](sources, ranks, begin, end, sums, sums_count, past_caches);
}
