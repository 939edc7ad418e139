/* A trial: starts ranks that only examine the cluster (worker/examine.h), as a run would be started, and reads what
 * they found. `lockstep doctor` shows it; in a Slurm job it decides between srun and mpirun. */
#ifndef LS_COORDINATOR_TRIAL_H
#define LS_COORDINATOR_TRIAL_H

#include "common/status.h"
#include "coordinator/launcher.h"

#include <stdbool.h>

/* What the first rank of a host, or of two, measured. */
struct ls_trial_host {
    char name[LS_HOST_NAME_SIZE];
    int ranks;
    double clock_us; /* beside the first host's */
    double mbps;     /* all-reduce within the host; 0: a single rank */
};
struct ls_trial_pair {
    int first, second; /* hosts */
    double latency_us, mbps;
};

struct ls_trial {
    int ranks; /* that found each other; 0: none reported */
    struct ls_trial_host *hosts;
    struct ls_trial_pair *pairs;
    int hosts_count, pairs_count;
    double allreduce_mbps;
    double seconds;  /* from start to end */
    char words[200]; /* of the launcher, where it failed: why */
};

/* Starts options->ranks ranks for `examine_seconds` of measuring (0: none) and waits for their end, `patience_seconds`
 * longer at most. LS_COMMUNICATION when they do not find each other, with what the launcher said; LS_ERROR, LS_MEMORY.
 * A signal that ends this process ends them too. The caller releases in either case. */
enum ls_code ls_trial_run(const struct ls_launch_options *options, double examine_seconds, double patience_seconds,
                          struct ls_trial *trial, struct ls_error *error);
/* Reads what ranks printed into *trial; false when the last line is missing. */
bool ls_trial_parse(const char *text, struct ls_trial *trial);
void ls_trial_release(struct ls_trial *trial);

/* In a Slurm job: srun if ranks on two hosts (or two on one) find each other under it, else mpirun if they do there.
 * `why` says in a line which and why. LS_COMMUNICATION with both reasons when neither works. */
enum ls_code ls_trial_choose(const struct ls_launch_options *options, enum ls_launcher_type *type, char why[512],
                             struct ls_error *error);

#endif
