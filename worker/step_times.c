/* The split of a step's time. */
#define _GNU_SOURCE
#include "worker/step_times.h"

#include <stdbool.h>
#include <stdlib.h>

static double work_of(const struct ls_step_times *times) {
    return times->compute + times->data_wait + times->checkpoint;
}

static int compare_work(const void *a, const void *b, void *context) {
    const struct ls_step_times *times = context;
    const double left = work_of(&times[*(const int *)a]), right = work_of(&times[*(const int *)b]);
    return left != right ? (left > right) - (left < right) : *(const int *)a - *(const int *)b;
}

static void add_gpus(const struct ls_step_times *times, int ranks, struct ls_step_split *split) {
    bool flops = true, power = true;
    split->clock_mhz = times[0].clock_mhz;
    for (int rank = 0; rank < ranks; rank++) {
        flops = flops && times[rank].peak_flops > 0;
        power = power && times[rank].power_watts > 0;
        split->peak_flops += times[rank].peak_flops;
        split->power_watts += times[rank].power_watts / ranks;
        if (times[rank].clock_mhz < split->clock_mhz) split->clock_mhz = times[rank].clock_mhz;
    }
    if (!flops) split->peak_flops = 0;
    if (!power) split->power_watts = 0;
}

void ls_step_times_split(const struct ls_step_times *times, int ranks, int *order, struct ls_step_split *split) {
    *split = (struct ls_step_split){.wait_for_rank = -1};
    for (int rank = 0; rank < ranks; rank++) {
        order[rank] = rank;
        if (times[rank].seconds > split->seconds) split->seconds = times[rank].seconds;
        if (times[rank].memory_peak_bytes > split->memory_peak_bytes)
            split->memory_peak_bytes = times[rank].memory_peak_bytes;
    }
    add_gpus(times, ranks, split);
    qsort_r(order, (size_t)ranks, sizeof *order, compare_work, (void *)(uintptr_t)times);
    const int slowest = order[ranks - 1], typical = ranks > 1 ? order[(ranks - 1) / 2] : slowest;
    split->compute = times[typical].compute;
    split->data_wait = times[typical].data_wait;
    split->checkpoint = times[typical].checkpoint;
    split->wait = work_of(&times[slowest]) - work_of(&times[typical]);
    split->exposed = split->seconds - work_of(&times[slowest]);
    if (ranks > 1) split->wait_for_rank = slowest;
}
