/* What the tests of the kernels share. They run natively on a GPU and, with LS_EMULATE, on CPUs: device memory is taken
 * by cudaMalloc or malloc, at its exact size. Inputs are fresh random numbers, the seed is printed; each test prints
 * "ok - ..." or "not ok - ..." and the program fails if one does. */
#ifndef LS_TESTS_GPU_HARNESS_H
#define LS_TESTS_GPU_HARNESS_H

#include "worker/device/cuda/element.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Half the distance from 1 to the next value: the relative error of one rounding to the type. */
static inline double rounding_of(enum ls_dtype dtype) {
    return dtype == LS_FP32 ? 0x1p-24 : dtype == LS_BF16 ? 0x1p-8 : 0x1p-11;
}

static const char *const dtype_names[] = {"fp32", "bf16", "fp16"};
static uint64_t random_state;
static int failures;
static bool current_failed;
static bool
    brief; /* LS_TEST_BRIEF is set: for the thread sanitizer, under which a kernel takes a hundred times longer */

static void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void fail(const char *format, ...) {
    if (current_failed) return; /* the first finding of a test says enough */
    current_failed = true;
    va_list arguments;
    va_start(arguments, format);
    printf("# ");
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
}

static void run_test(const char *what, void (*test)(void)) {
    current_failed = false;
    test();
    failures += current_failed;
    printf("%s - %s\n", current_failed ? "not ok" : "ok", what);
    fflush(stdout);
}

static inline void begin_tests(void) {
    const char *given = getenv("LS_TEST_SEED");
    brief = getenv("LS_TEST_BRIEF") != NULL;
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    random_state = given ? strtoull(given, NULL, 0) : (uint64_t)now.tv_sec * 1000000007u + (uint64_t)now.tv_nsec;
    printf("# seed: LS_TEST_SEED=%llu\n", (unsigned long long)random_state);
}

static inline uint64_t random_bits(void) { /* SplitMix64 */
    uint64_t z = random_state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
static inline int64_t random_below(int64_t limit) {
    return (int64_t)(random_bits() % (uint64_t)limit);
}
static inline double random_between(double low, double high) {
    return low + (high - low) * ((double)(random_bits() >> 11) * 0x1p-53);
}

static inline void check_cuda(cudaError_t error) {
    if (error == cudaSuccess) return;
    printf("not ok - CUDA: error %d\n", (int)error);
    exit(1);
}

#ifdef LS_EMULATE
static inline void *device_allocate(size_t bytes) {
    return malloc(bytes);
}
static inline void device_free(void *memory) {
    free(memory);
}
static inline void device_copy(void *to, const void *from, size_t bytes) {
    memcpy(to, from, bytes);
}
#else
static inline void *device_allocate(size_t bytes) {
    void *memory;
    check_cuda(cudaMalloc(&memory, bytes ? bytes : 1));
    return memory;
}
static inline void device_free(void *memory) {
    check_cuda(cudaFree(memory));
}
/* Either way; waits for all that runs. */
static inline void device_copy(void *to, const void *from, size_t bytes) {
    check_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
}
#endif

/* An array of `count` elements of a type on the device, `offset` elements into its allocation, with the values that
 * they have there as doubles on the host. */
struct array {
    enum ls_dtype dtype;
    int64_t count, offset;
    void *memory;  /* the allocation */
    void *device;  /* the elements */
    double *value; /* host; what was put, or what fetch() found */
};

static inline double to_double(enum ls_dtype dtype, const void *values, int64_t i) {
    if (dtype == LS_FP32) return (double)((const float *)values)[i];
    if (dtype == LS_BF16) return (double)__bfloat162float(((const __nv_bfloat16 *)values)[i]);
    return (double)__half2float(((const __half *)values)[i]);
}
static inline void from_double(enum ls_dtype dtype, void *values, int64_t i, double value) {
    if (dtype == LS_FP32)
        ((float *)values)[i] = (float)value;
    else if (dtype == LS_BF16)
        ((__nv_bfloat16 *)values)[i] = __float2bfloat16_rn((float)value);
    else
        ((__half *)values)[i] = __float2half_rn((float)value);
}

/* Sends a.value to the device; a.value becomes what the type holds of it. */
static inline void send(struct array *a) {
    const size_t bytes = (size_t)(a->count * ls_dtype_bytes(a->dtype));
    void *staging = malloc(bytes + 1);
    for (int64_t i = 0; i < a->count; i++) {
        from_double(a->dtype, staging, i, a->value[i]);
        a->value[i] = to_double(a->dtype, staging, i);
    }
    device_copy(a->device, staging, bytes);
    free(staging);
}

static inline void fetch(struct array *a) {
    const size_t bytes = (size_t)(a->count * ls_dtype_bytes(a->dtype));
    void *staging = malloc(bytes + 1);
    device_copy(staging, a->device, bytes);
    for (int64_t i = 0; i < a->count; i++) a->value[i] = to_double(a->dtype, staging, i);
    free(staging);
}

/* Uniform in [-scale, scale). `offset` elements in front make it unaligned; 0: aligned to 16 bytes. */
static inline struct array make_array(enum ls_dtype dtype, int64_t count, double scale, int64_t offset = 0) {
    struct array a = {dtype, count, offset, NULL, NULL, NULL};
    a.memory = device_allocate((size_t)((count + offset) * ls_dtype_bytes(dtype)));
    a.device = (char *)a.memory + offset * ls_dtype_bytes(dtype);
    a.value = (double *)malloc((size_t)(count + 1) * sizeof(double));
    for (int64_t i = 0; i < count; i++) a.value[i] = random_between(-scale, scale);
    send(&a);
    return a;
}

static inline void free_array(struct array *a) {
    device_free(a->memory);
    free(a->value);
}

static inline double *copy_values(const struct array *a) {
    double *copy = (double *)malloc((size_t)(a->count + 1) * sizeof *copy);
    memcpy(copy, a->value, (size_t)a->count * sizeof *copy);
    return copy;
}
static inline double *zero_doubles(int64_t count) {
    return (double *)calloc((size_t)count + 1, sizeof(double));
}

/* Plain values on the device. */
template <typename T> static inline T *put_values(const T *values, int64_t count) {
    T *device = (T *)device_allocate((size_t)count * sizeof(T));
    device_copy(device, values, (size_t)count * sizeof(T));
    return device;
}
template <typename T> static inline T get_value(const T *device) {
    T value;
    device_copy(&value, device, sizeof value);
    return value;
}

/* Fetches, and fails unless |actual - expected| <= absolute + relative * |expected| for every element; NaN fails. Where
 * rounding is allowed, fp16's below its normal range is too: half of its smallest number. */
static inline void check_close(const char *what, struct array *actual, const double *expected, double relative,
                               double absolute) {
    fetch(actual);
    if (actual->dtype == LS_FP16 && relative > 0.0) absolute += 0x1p-25;
    for (int64_t i = 0; i < actual->count; i++)
        if (!(fabs(actual->value[i] - expected[i]) <= absolute + relative * fabs(expected[i])))
            return fail("%s (%s)[%lld of %lld] is %.9g, the reference %.9g, allowed %.3g", what,
                        dtype_names[actual->dtype], (long long)i, (long long)actual->count, actual->value[i],
                        expected[i], absolute + relative * fabs(expected[i]));
}

static inline int end_tests(void) {
    return failures ? 1 : 0;
}

#endif
