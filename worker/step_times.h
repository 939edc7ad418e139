/* Where the time of a step went, over all ranks. Pure.
 *
 *     rank 0  [ compute ][data]................[ comm ]
 *     rank 1  [ compute      ][data]...........[ comm ]      the typical one: the middle one but for the slowest
 *     rank 2  [ compute             ][ data   ][ comm ]      the slowest
 *              compute of rank 1, data of rank 1, waiting for rank 2, exposed communication: together the step */
#ifndef LS_WORKER_STEP_TIMES_H
#define LS_WORKER_STEP_TIMES_H

#include <stdint.h>

/* Of one rank. What it did not wait for anybody is its work: compute, data and saving. */
struct ls_step_times {
    double seconds;    /* the step and its opening */
    double compute;    /* seconds - exposed - data_wait - checkpoint */
    double exposed;    /* waiting for collectives: for the wire, or for ranks that come late */
    double data_wait;  /* waiting for its batch */
    double checkpoint; /* waiting for its saving thread */
    uint64_t memory_peak_bytes;
    /* Of its GPU, 0: not known */
    double peak_flops, power_watts;
    int clock_mhz;
};

/* compute + data_wait + checkpoint + exposed + wait = seconds. */
struct ls_step_split {
    double seconds; /* of the rank that took longest */
    double compute, data_wait, checkpoint, exposed;
    double wait;       /* what the rank with the most work worked longer than a typical one */
    int wait_for_rank; /* which one that is; -1: there is one rank only */
    uint64_t memory_peak_bytes;
    double peak_flops;  /* of all GPUs together; 0: of one it is not known */
    double power_watts; /* of a GPU, on average; 0: of one it is not known */
    int clock_mhz;      /* of the slowest GPU */
};

/* `order` is room for `ranks` numbers. */
void ls_step_times_split(const struct ls_step_times *times, int ranks, int *order, struct ls_step_split *split);

#endif
