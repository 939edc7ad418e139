/* Stragglers: ranks that the others wait for, step after step. Pure: from what each step says of whom was waited for
 * and how long (worker/step_times.h).
 *
 * Each rank has a cost: the time that was spent waiting for it, as a part of all time, over the last
 * LS_STRAGGLER_STEPS steps or LS_STRAGGLER_SECONDS, whichever is longer; older steps fade out. Some rank is always last
 * by a little, so what counts is the cost above that of the middle one of the other ranks, and only of a rank that is
 * last more often than chance would have it: equal ranks are all alike, however much their times jitter. */
#ifndef LS_COORDINATOR_STRAGGLER_H
#define LS_COORDINATOR_STRAGGLER_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    LS_STRAGGLER_STEPS = 32,
    LS_STRAGGLER_SECONDS = 10,
    LS_STRAGGLER_WARM_UP = 5, /* first steps of an attempt that do not count */
    LS_STRAGGLER_NAMED = 5,   /* percent: above this a rank is named */
    LS_STRAGGLER_CLEARED = 3  /* percent: below this it no longer is one */
};

struct ls_stragglers;

/* LS_MEMORY. */
enum ls_code ls_stragglers_create(int64_t ranks, struct ls_stragglers **stragglers, struct ls_error *error);
/* Takes NULL. */
void ls_stragglers_destroy(struct ls_stragglers *stragglers);

/* A step took `seconds`, of which the others waited `wait` for `rank` (-1: nobody). */
void ls_stragglers_step(struct ls_stragglers *stragglers, int64_t rank, double wait, double seconds);

/* What has changed. */
struct ls_straggler {
    int64_t rank;
    bool named;     /* it became one; else it no longer is */
    double percent; /* of each step, that the others wait for it */
    int64_t steps;  /* over about so many */
};
/* The next change that was not told, after each step until there is none. None before the first
 * LS_STRAGGLER_STEPS steps and LS_STRAGGLER_SECONDS have passed. */
bool ls_stragglers_next(struct ls_stragglers *stragglers, struct ls_straggler *change);

#endif
