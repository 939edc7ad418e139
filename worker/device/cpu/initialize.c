/* Counter-based normal numbers: Philox 4x32-10 and Box-Muller, in double, so that the value of an element is the
 * rounding of an exact rule. */
#include "worker/device/cpu/kernels.h"
#include "worker/device/philox.h"

#include <math.h>

enum { ELEMENTS_PER_TASK = 4096 };

/* Normals 4 group .. 4 group + 3 of a tensor: (radius cos, radius sin) of words 0, 1, then of words 2, 3 (Box & Muller
 * 1958). */
static void normals(const struct ls_op_initialize *op, uint64_t group, double normal[4]) {
    const struct ls_philox words =
        ls_philox_draw((struct ls_philox){(uint32_t)group, (uint32_t)(group >> 32), (uint32_t)op->tensor,
                                          (uint32_t)(op->tensor >> 32)},
                       op->seed);
    const uint32_t word[4] = {words.a, words.b, words.c, words.d};
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
