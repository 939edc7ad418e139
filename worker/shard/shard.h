/* Parameter shards: every block's flat parameters, gradients and optimizer state, cut over the ranks by ZeRO stage, and the collectives
 * that bring them together beside the compute stream. Stage 0: nothing is cut, each block's gradients are all-reduced as its backward ends. */
#ifndef LS_WORKER_SHARD_SHARD_H
#define LS_WORKER_SHARD_SHARD_H

#include "common/config.h"
#include "worker/comm/comm.h"
#include "worker/memory/arena.h"
#include "worker/model/model.h"

struct ls_shard;

/* Adds what the shards need to the arena's plan; pure, so that `plan` can call it without a device. */
void ls_shard_plan(const struct ls_model *model, int64_t ranks, struct ls_arena_plan *plan);
enum ls_code ls_shard_create(const struct ls_config *config, const struct ls_model *model, struct ls_comm *comm,
                             struct ls_stream *compute, struct ls_arena *arena, struct ls_shard **shard,
                             struct ls_error *error);
void ls_shard_destroy(struct ls_shard *shard);

/* The block's whole flat parameters, valid on the compute stream until released. */
const float *ls_shard_acquire(struct ls_shard *shard, int block);
void ls_shard_release(struct ls_shard *shard, int block);
/* Where the block's gradients accumulate. */
float *ls_shard_gradients(struct ls_shard *shard, int block);
/* The block's gradients of the step are complete on the compute stream: its reduction starts beside what follows. */
void ls_shard_reduce(struct ls_shard *shard, int block);
/* After every block was reduced: norm, clipping, the optimizer's step on the own slices, gradients zeroed. Scalars stay on the device. */
void ls_shard_update(struct ls_shard *shard);

/* This rank's slice [first, first + count) of the block's master parameters, m and v, for checkpoints; device memory. */
struct ls_shard_slice {
    int64_t first, count;
    float *parameters, *m, *v;
};
struct ls_shard_slice ls_shard_slice(struct ls_shard *shard, int block);

#endif
