/* The plan of a replica's memory: which buffers one rank's arena holds. Pure: `lockstep plan` and the run call the same
 * function, so what is planned is what is allocated. */
#ifndef LS_WORKER_REPLICA_PLAN_H
#define LS_WORKER_REPLICA_PLAN_H

#include "common/config.h"
#include "common/status.h"
#include "worker/activations.h"
#include "worker/device/device.h"
#include "worker/memory/arena.h"
#include "worker/model/model.h"

#include <stdint.h>

/* Numbers in device memory. */
struct ls_replica_scalars {
    double own_loss;
    float gradient_scale;
};

/* Sums of token losses that are kept apart until the ranks' are summed: one of each slot, train.reduction: fixed. */
int64_t ls_replica_losses(const struct ls_config *config);

/* Numbers of the buffers in the arena's plan. */
struct ls_replica_layout {
    int shard, tables, scalars, losses, inputs, targets, document_start, stream_gradient, scratch;
    struct ls_activations activations;
};

/* Adds all buffers of a rank among `ranks` to the empty `plan`. Errors: LS_USAGE, more layers than a plan has buffers
 * for, more tokens in a micro-batch than are counted, or heads wider than the device takes; LS_MEMORY, more bytes than
 * are counted. */
enum ls_code ls_replica_plan(const struct ls_config *config, const struct ls_model *model,
                             const struct ls_device *device, int64_t ranks, struct ls_arena_plan *plan,
                             struct ls_replica_layout *layout, struct ls_error *error);

#endif
