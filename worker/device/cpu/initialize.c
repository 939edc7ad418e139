/* Counter-based normal numbers: Philox 4x32-10 and Box-Muller, in double, so that the value of an element is the
 * rounding of an exact rule. */
#include "worker/device/cpu/kernels.h"

#include <math.h>

enum { ELEMENTS_PER_TASK = 4096 };

/* Philox 4x32-10 (Salmon et al. 2011, section 3.3): ten rounds of two 32-bit multiplications; the key grows by Weyl
 * constants. */
static void philox(uint32_t counter[4], uint64_t seed) {
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        const uint64_t first = (uint64_t)0xD2511F53 * counter[0], second = (uint64_t)0xCD9E8D57 * counter[2];
        const uint32_t next[4] = {(uint32_t)(second >> 32) ^ counter[1] ^ key[0], (uint32_t)second,
                                  (uint32_t)(first >> 32) ^ counter[3] ^ key[1], (uint32_t)first};
        for (int i = 0; i < 4; i++) counter[i] = next[i];
        key[0] += 0x9E3779B9;
        key[1] += 0xBB67AE85;
    }
}

/* Normals 4 group .. 4 group + 3 of a tensor: (radius cos, radius sin) of words 0, 1, then of words 2, 3 (Box & Muller
 * 1958). */
static void normals(const struct ls_op_initialize *op, uint64_t group, double normal[4]) {
    uint32_t word[4] = {(uint32_t)group, (uint32_t)(group >> 32), (uint32_t)op->tensor, (uint32_t)(op->tensor >> 32)};
    philox(word, op->seed);
    for (int pair = 0; pair < 4; pair += 2) {
        const double radius = sqrt(-2.0 * log(((double)word[pair] + 1.0) * 0x1p-32)); /* of a number in (0, 1] */
        const double angle = 2.0 * M_PI * ((double)word[pair + 1] * 0x1p-32);
        normal[pair] = radius * cos(angle);
        normal[pair + 1] = radius * sin(angle);
    }
}

static void initialize(const void *arguments, int64_t begin, int64_t end) {
    const struct ls_op_initialize *op = arguments;
    if (op->deviation == 0.0f) {
        for (int64_t i = begin; i < end; i++) op->output[i] = op->mean;
        return;
    }
    double normal[4];
    for (int64_t i = begin; i < end; i++) {
        const uint64_t element = op->first + (uint64_t)i;
        if (i == begin || element % 4 == 0) normals(op, element / 4, normal);
        op->output[i] = (float)((double)op->mean + (double)op->deviation * normal[element % 4]);
    }
}

void ls_cpu_initialize(int threads, const struct ls_op_initialize *op) {
    ls_cpu_parallel(threads, op->count, ELEMENTS_PER_TASK, initialize, op);
}
