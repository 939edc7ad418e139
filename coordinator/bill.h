/* The bill of a run: where its time went, and the changes that would have saved most of it. Pure. */
#ifndef LS_COORDINATOR_BILL_H
#define LS_COORDINATOR_BILL_H

#include "common/config.h"
#include "common/wire.h"

#include <stdbool.h>
#include <stdint.h>

enum ls_bill_row {
    LS_BILL_COMPUTE,       /* of a typical rank */
    LS_BILL_COMMUNICATION, /* that nothing was computed beside */
    LS_BILL_DATA,          /* waiting for batches */
    LS_BILL_RANKS,         /* waiting for the rank with the most work */
    LS_BILL_CHECKPOINTS,   /* waiting for saves */
    LS_BILL_REPEATED,      /* steps that had run before, and were lost */
    LS_BILL_REST,          /* start, evaluations, restarts */
    LS_BILL_ROWS
};
/* What a row is called, for people ("waiting for ranks") and for programs ("wait_seconds"); static storage. */
const char *ls_bill_name(enum ls_bill_row row);
const char *ls_bill_key(enum ls_bill_row row);

/* Sums over the steps so far; zero at first. */
struct ls_bill {
    double seconds[LS_BILL_ROWS];    /* REST: 0 */
    double waits[LS_WIRE_WORLD_MAX]; /* for each rank */
    int64_t newest_step, steps, repeated_steps;
};
/* Adds a step; one that ran before counts as repeated. */
void ls_bill_step(struct ls_bill *bill, const struct ls_step_report *report);
/* The rows with REST, which is what is missing to `wall` seconds. */
void ls_bill_rows(const struct ls_bill *bill, double wall, double rows[LS_BILL_ROWS]);

/* What advice depends on beside the sums. */
struct ls_bill_facts {
    const struct ls_config *config;
    int64_t ranks;
    double save_interval, best_interval; /* seconds between saves, as it was and as it should be; 0: not known */
};

enum { LS_BILL_ADVICE_MAX = 3, LS_BILL_ADVICE_BYTES = 240 };
struct ls_bill_advice {
    double seconds; /* that it would have saved, about */
    char text[LS_BILL_ADVICE_BYTES];
};
/* The changes that would have saved most, best first, each at least 2 % of `wall`; returns how many. The figures are
 * estimates from the sums:
 *     data           all waiting for batches
 *     ranks          what was waited for the worst rank beyond the mean of the others
 *     communication  accumulating micro-batches locally: all but one of their reductions; else gradients in bf16: half
 *                    of what they send (1/2 of the traffic at stage 0, 1/4 at 1 and 2, 1/6 at 3); else twice the global
 *                    batch: half
 *     checkpoints    saving at the best interval (common/interval.h) instead of more often
 *     repeated       the same, instead of more rarely
 *     recomputation  a forward out of four, where whole layers are computed again */
int ls_bill_advise(const struct ls_bill *bill, double wall, const struct ls_bill_facts *facts,
                   struct ls_bill_advice advice[LS_BILL_ADVICE_MAX]);

#endif
