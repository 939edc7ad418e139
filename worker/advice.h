/* What to change when a plan does not fit: every single change that would do, and what it costs. */
#ifndef LS_WORKER_ADVICE_H
#define LS_WORKER_ADVICE_H

#include "common/config.h"
#include "common/status.h"
#include "worker/memory/cost.h"
#include "worker/plan.h"

#include <stdint.h>

enum { LS_ADVICE_MAX = 8 };

/* A change that fits. */
struct ls_advice {
    char change[192];     /* as on the command line: "--set train.micro_batch_size=4", "-n 8" */
    int64_t ranks, bytes; /* of a rank; see ls_plan_bytes() */
    struct ls_cost cost;
};

/* Fills options[LS_ADVICE_MAX] with the changes after which a rank needs at most `limit` bytes, the cheapest first, by
 * seconds of a step times ranks; returns their number. Each change by itself; if none does, the cheapest combinations
 * with as many ranks and with more. 0: nothing fits. */
int ls_advice_find(const struct ls_config *config, int64_t ranks, const struct ls_cost_machine *machine, int64_t limit,
                   struct ls_advice options[LS_ADVICE_MAX]);

/* A GPU for a rank. */
struct ls_advice_gpu {
    const char *name; /* as its driver says it */
    int64_t bytes;    /* that a rank may have of its memory; 0: only memory.limit counts */
};

/* LS_OK if a rank's bytes are at most memory.limit (0: those of the machine, where they are known), else LS_MEMORY with
 * a table and the cheapest change. With `gpu` NULL, `threads` of a rank on the CPUs of this host, 0: its part of the
 * cores. *bytes: what a rank needs; may be NULL. */
enum ls_code ls_advice_check(const struct ls_config *config, int64_t ranks, int64_t ranks_per_node, int threads,
                             const struct ls_advice_gpu *gpu, int64_t *bytes, struct ls_error *error);

/* The same for a plan that was made. `cost` is its own. */
enum ls_code ls_advice_refuse(const struct ls_config *config, const struct ls_plan *plan, const struct ls_cost *cost,
                              const struct ls_cost_machine *machine, int64_t limit, struct ls_error *error);

#endif
