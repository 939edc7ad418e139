/* The runs behind `lockstep bench`: the same configuration at several rank counts, each a `lockstep run` of its own. */
#ifndef LS_COORDINATOR_BENCH_H
#define LS_COORDINATOR_BENCH_H

#include "common/status.h"
#include "coordinator/scaling.h"

#include <stdbool.h>
#include <stdint.h>

enum { LS_BENCH_SETTINGS_MAX = 256 };

struct ls_bench_options {
    const char *config_path;
    const char *const *settings; /* --set, settings_count of them, at most LS_BENCH_SETTINGS_MAX */
    int settings_count;
    int64_t ranks[LS_SCALING_ROWS_MAX]; /* ascending, each once */
    int ranks_count;
    const char *hostfile;                  /* handed to every run, NULL: none */
    const char *folder;                    /* where the results and the runs' folders go; NULL: runs/NAME-bench-TIME */
    int64_t steps, warm_up_steps, repeats; /* measured, left out, runs of every row */
    double link_bytes_per_second;          /* between nodes, for the prediction; 0: 100 Gbit/s */
    bool weak, quiet;                      /* quiet: no line for every run on standard error */
};

/* Runs all of it, one after another, round by round, and leaves bench.json, bench.csv, bench.svg and bench.png in
 * `folder`
 * ([1024], made; its path is returned) beside the runs' folders without their checkpoints. A run that fails is a row
 * with its reason, and the others go on; the code is the first failure's. LS_USAGE for what no run could do, before the
 * first one; LS_STOPPED or LS_REQUEUE when a signal ended it. *scaling holds what was measured in any case. */
enum ls_code ls_bench_run(const struct ls_bench_options *options, struct ls_scaling *scaling, char folder[1024],
                          struct ls_error *error);

#endif
