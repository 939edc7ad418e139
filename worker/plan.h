/* The plan of a run: what every rank needs and does, before anything is allocated. The same functions lay out the
 * memory of the run, so that what is planned is what is taken. Pure but for the memory of the plan itself; needs no MPI
 * and no device. */
#ifndef LS_WORKER_PLAN_H
#define LS_WORKER_PLAN_H

#include "common/config.h"
#include "common/status.h"
#include "worker/memory/arena.h"
#include "worker/memory/cost.h"

#include <stdint.h>

/* What a rank holds in host memory beside the arena. */
enum ls_plan_host {
    LS_PLAN_PREFETCH,   /* the ring of batches */
    LS_PLAN_EVALUATION, /* the ring of the evaluation */
    LS_PLAN_CHECKPOINT, /* a block on its way into a checkpoint */
    LS_PLAN_HOST_ROWS
};
const char *ls_plan_host_name(enum ls_plan_host row);

/* Bytes are a rank's, and the same on every rank. */
struct ls_plan {
    int64_t ranks, parameters, sequences, micro_batches; /* sequences, micro-batches: of a step on the fullest rank */
    int64_t category_bytes[LS_MEMORY_CATEGORIES], arena_bytes;
    int64_t host_row_bytes[LS_PLAN_HOST_ROWS], host_bytes;
    int64_t checkpoint_bytes; /* of all ranks' files, at most */
    int64_t wire_bytes;       /* sent by a rank in a step */
    double flops_per_step;    /* of all ranks together, as MFU counts them: 6N + 6LCT a token */
    double flops_of_rank;     /* of the fullest rank in a step, with what is computed again */
    struct ls_cost_work work; /* what the prediction needs */
};

/* `config` has its vocab_size set. The caller releases what was made. Errors: LS_USAGE (shapes, ranks), LS_MEMORY. */
enum ls_code ls_plan_make(const struct ls_config *config, int64_t ranks, bool gpu, struct ls_plan *plan,
                          struct ls_error *error);
void ls_plan_release(struct ls_plan *plan);

/* Bytes that count against memory.limit and the device's memory: on CPUs, where both are one, arena and host. */
int64_t ls_plan_bytes(const struct ls_plan *plan, bool gpu);

#endif
