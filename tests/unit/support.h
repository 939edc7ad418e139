/* What the unit tests of the device share: fresh random numbers, a device with a stream, comparison with a
 * double-precision reference. */
#ifndef LS_TESTS_UNIT_SUPPORT_H
#define LS_TESTS_UNIT_SUPPORT_H

#include "worker/device/device.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

/* Half the distance from 1 to the next float: the relative error of one rounding. */
#define ROUNDING 5.96e-8

/* The seed of this process: LS_TEST_SEED, or the clock. Printed once, so that a failure can be repeated. */
static inline uint64_t *support_state(void) {
    static uint64_t state;
    if (state == 0) {
        const char *given = getenv("LS_TEST_SEED");
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        state = given ? strtoull(given, NULL, 0) : (uint64_t)now.tv_sec * 1000000007u + (uint64_t)now.tv_nsec;
        printf("# seed: LS_TEST_SEED=%llu\n", (unsigned long long)state);
        state |= 1ull << 63;
    }
    return &state;
}

/* SplitMix64. */
static inline uint64_t random_bits(void) {
    uint64_t z = *support_state() += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Uniform in [0, limit). */
static inline int64_t random_below(int64_t limit) {
    return (int64_t)(random_bits() % (uint64_t)limit);
}

/* Uniform in [low, high). */
static inline double random_between(double low, double high) {
    return low + (high - low) * ((double)(random_bits() >> 11) * 0x1p-53);
}

/* A new array of `count` floats uniform in [-scale, scale); freed by the caller. */
static inline float *random_floats(int64_t count, double scale) {
    float *x = malloc((size_t)(count + 1) * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < count; i++) x[i] = (float)random_between(-scale, scale);
    return x;
}

static inline float *copy_floats(const float *from, int64_t count) {
    float *x = malloc((size_t)(count + 1) * sizeof *x);
    assert_non_null(x);
    memcpy(x, from, (size_t)count * sizeof *x);
    return x;
}

static inline double *zero_doubles(int64_t count) {
    double *x = calloc((size_t)count + 1, sizeof *x);
    assert_non_null(x);
    return x;
}

/* Fails unless |actual - expected| <= tolerance * max(|expected|) for every element; NaN fails. `what` names the array.
 */
static inline void check_close(const char *what, const float *actual, const double *expected, int64_t count,
                               double tolerance) {
    double largest = 0.0;
    for (int64_t i = 0; i < count; i++) largest = fmax(largest, fabs(expected[i]));
    for (int64_t i = 0; i < count; i++)
        if (!(fabs((double)actual[i] - expected[i]) <= tolerance * largest))
            fail_msg("%s[%lld] is %.9g, the reference %.9g (largest %.3g, allowed %.3g)", what, (long long)i,
                     (double)actual[i], expected[i], largest, tolerance * largest);
}

static inline void check_same_bits(const char *what, const float *a, const float *b, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0)
            fail_msg("%s[%lld] differs: %.9g and %.9g", what, (long long)i, (double)a[i], (double)b[i]);
}

/* True with LS_TEST_DEVICE=cuda in the environment, where the program is linked with the stand-ins (tests/standin/). */
static inline bool support_is_cuda(void) {
    const char *device = getenv("LS_TEST_DEVICE");
    return device && strcmp(device, "cuda") == 0;
}

/* A device and its compute stream. Device memory of a CPU device is host memory: the tests of its kernels use that. */
struct support {
    struct ls_device *device;
    struct ls_stream *stream;
};

static inline struct support support_open(int threads, enum ls_stream_order order) {
    struct support s;
    struct ls_error error;
    static const char *const orders[] = {"eager", "lazy", "hasty"};
    setenv("LS_STANDIN_ORDER", orders[order], 1);
    if ((support_is_cuda() ? ls_device_create_cuda(0, false, &s.device, &error)
                           : ls_device_create_cpu(threads, order, &s.device, &error)) != LS_OK)
        fail_msg("%s", error.text);
    s.stream = ls_stream_create(s.device, false);
    assert_non_null(s.stream);
    return s;
}

static inline void support_close(struct support s) {
    struct ls_error error;
    if (ls_stream_synchronize(s.stream, &error) != LS_OK) fail_msg("%s", error.text);
    ls_stream_destroy(s.stream);
    ls_device_destroy(s.device);
}

/* The variable that leaves out what multiplies pairs of bf16 on this CPU device; NULL: nothing does. */
static inline const char *support_pairs(struct support s) {
    const char *id = ls_device_numerics_id(s.device);
    return strstr(id, " and amx,") ? "LOCKSTEP_AMX" : strstr(id, " and avx512_bf16,") ? "LOCKSTEP_AVX512_BF16" : NULL;
}

/* The end of main(), with how many tests failed: where the CPU device multiplies pairs of bf16, the program runs once
 * more without what does that, until nothing is left, so that what other processors compute with is tested as well. */
static inline int support_again_without_pairs(int failed, char **argv) {
    if (failed || support_is_cuda()) return failed;
    struct support s = support_open(1, LS_STREAMS_EAGER);
    const char *pairs = support_pairs(s);
    support_close(s);
    if (!pairs) return 0;
    fflush(stdout);
    setenv(pairs, "0", 1);
    execv("/proc/self/exe", argv);
    return 1;
}

#endif
