/* A plan as a table for a person, and as JSON for scripts. */
#ifndef LS_COORDINATOR_PLAN_REPORT_H
#define LS_COORDINATOR_PLAN_REPORT_H

#include "common/config.h"
#include "worker/advice.h"
#include "worker/memory/cost.h"
#include "worker/plan.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct ls_plan_report {
    const struct ls_config *config;
    const struct ls_plan *plan;
    const struct ls_cost_machine *machine;
    struct ls_cost cost;
    int64_t limit; /* bytes that a rank may have, 0: unknown */
    bool fits;
    struct ls_advice options[LS_ADVICE_MAX]; /* changes that fit, when it does not */
    int option_count;
};

void ls_plan_report_print(const struct ls_plan_report *report, FILE *out);
/* False when there is no memory, or `out` takes nothing. */
bool ls_plan_report_print_json(const struct ls_plan_report *report, FILE *out);

#endif
