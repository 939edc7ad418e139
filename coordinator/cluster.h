/* What a trial's figures say of a cluster: which host is slow, and which link between hosts that are not. */
#ifndef LS_COORDINATOR_CLUSTER_H
#define LS_COORDINATOR_CLUSTER_H

#include "coordinator/trial.h"

#include <stdbool.h>

enum ls_finding_kind {
    LS_FINDING_SLOW_HOST,   /* its best pair has less than half the rate of the best pair of all */
    LS_FINDING_SLOW_LINK,   /* less than half of what both hosts reach with others */
    LS_FINDING_LATE_HOST,   /* its shortest latency is five times the shortest of all, and 0.2 ms longer */
    LS_FINDING_LATE_LINK,   /* the same beside what both hosts reach with others */
    LS_FINDING_SLOW_INSIDE, /* all-reduce within the host: less than a third of the fastest with as many ranks */
    LS_FINDING_WRONG_CLOCK  /* 5 s or more beside the first host's */
};

/* One of them; `other` only of links, else -1. `value` and `best` in the finding's unit: MB/s, microseconds. */
struct ls_finding {
    enum ls_finding_kind kind;
    int host, other;
    double value, best;
};

/* Judges; writes at most `most` findings in the order of their kinds and returns how many there are. */
int ls_cluster_judge(const struct ls_trial *trial, struct ls_finding *findings, int most);

/* "host node3 is slow: at most 11.9 MB/s with any other host, the fastest pair has 117.2", and what to do about it. */
void ls_cluster_describe(const struct ls_trial *trial, const struct ls_finding *finding, char *text, size_t size,
                         const char **fix);

#endif
