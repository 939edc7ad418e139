/* The split of a step's time. */
#define _GNU_SOURCE
#include "worker/step_times.h"

#include <stdlib.h>

static double work_of(const struct ls_step_times *times) {
    return times->compute + times->data_wait + times->checkpoint;
}

static int compare_work(const void *a, const void *b, void *context) {
    const struct ls_step_times *times = context;
    const double left = work_of(&times[*(const int *)a]), right = work_of(&times[*(const int *)b]);
    return left != right ? (left > right) - (left < right) : *(const int *)a - *(const int *)b;
}

void ls_step_times_split(const struct ls_step_times *times, int ranks, int *order, struct ls_step_split *split) {
    *split = (struct ls_step_split){.wait_for_rank = -1};
    for (int rank = 0; rank < ranks; rank++) {
        order[rank] = rank;
        if (times[rank].seconds > split->seconds) split->seconds = times[rank].seconds;
        if (times[rank].memory_peak_bytes > split->memory_peak_bytes)
            split->memory_peak_bytes = times[rank].memory_peak_bytes;
    }
    qsort_r(order, (size_t)ranks, sizeof *order, compare_work, (void *)(uintptr_t)times);
    const int slowest = order[ranks - 1], typical = ranks > 1 ? order[(ranks - 1) / 2] : slowest;
    split->compute = times[typical].compute;
    split->data_wait = times[typical].data_wait;
    split->checkpoint = times[typical].checkpoint;
    split->wait = work_of(&times[slowest]) - work_of(&times[typical]);
    split->exposed = split->seconds - work_of(&times[slowest]);
    if (ranks > 1) split->wait_for_rank = slowest;
}
