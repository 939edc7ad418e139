/* Parameter shards: every block's flat parameters, gradients and optimizer state, cut over the ranks by ZeRO stage, and
 * the collectives that bring them together beside the compute stream. Stage 0: nothing is cut, each block's gradients
 * are all-reduced as its backward ends.
 *
 *     parameters   [ block 0 .... pad ][ block 1 ......... pad ] ...   a buffer per block; also for gradients, m, v
 *     slices       [ rank 0 ][ rank 1 ]                                a block's length, padded to a multiple of ranks
 *
 * Order of a step: acquire, release and gradients as the blocks are computed; reduce once per block, each after the
 * last micro-batch's backward of it; reduce_value for the loss; update. Every rank does all of it, with or without
 * sequences. */
#ifndef LS_WORKER_SHARD_SHARD_H
#define LS_WORKER_SHARD_SHARD_H

#include "common/config.h"
#include "worker/comm/comm.h"
#include "worker/memory/arena.h"
#include "worker/model/model.h"

struct ls_shard;

/* Adds what the shards need to the arena's plan and returns the number of their first buffer; pure, so that `plan` can
 * call it without a device. */
int ls_shard_plan(const struct ls_model *model, int64_t ranks, struct ls_arena_plan *plan);
/* Bytes that one rank sends in a step for `block`, as ls_comm_wire_bytes() counts them; block -1: for the loss. Pure.
 */
int64_t ls_shard_wire_bytes(const struct ls_model *model, int64_t ranks, int block);

/* `first_buffer` is what ls_shard_plan() returned for the arena's plan. Config, model, comm, stream and arena must
 * outlive the shards. All is zero at first: parameters come by ls_model_initialize() or a checkpoint. LS_MEMORY. */
enum ls_code ls_shard_create(const struct ls_config *config, const struct ls_model *model, struct ls_comm *comm,
                             struct ls_stream *compute, struct ls_arena *arena, int first_buffer,
                             struct ls_shard **shard, struct ls_error *error);
/* Waits for what is under way. Takes NULL. */
void ls_shard_destroy(struct ls_shard *shard);

/* The block's whole flat parameters, valid on the compute stream until released. */
const float *ls_shard_acquire(struct ls_shard *shard, int block);
void ls_shard_release(struct ls_shard *shard, int block);

/* Where the block's gradients accumulate; zero at the start of a step. */
float *ls_shard_gradients(struct ls_shard *shard, int block);
/* The block's gradients of the step are complete on the compute stream: their sum over the ranks starts beside what
 * follows. A tied head adds to the embedding's gradients, so the embedding comes last. */
void ls_shard_reduce(struct ls_shard *shard, int block);
/* The same for one number in device memory. What follows on the compute stream sees the sum after ls_shard_update() or
 * ls_shard_await_value(). */
void ls_shard_reduce_value(struct ls_shard *shard, double *value);
void ls_shard_await_value(struct ls_shard *shard);

/* Results of an update, in device memory. */
struct ls_shard_scalars {
    float *norm;        /* of all gradients, before clipping */
    int32_t *found_inf; /* 1: the norm is not finite, and nothing was changed */
    double *
        parameters; /* squared norm of the updated parameters of one block, each in its turn: equal on equal replicas */
};
struct ls_shard_scalars ls_shard_scalars(struct ls_shard *shard);
/* After every block was reduced: norm, clipping, the optimizer's step number `step` (from 1) at `learning_rate`,
 * gradients zeroed. The compute stream must be synchronised between two updates. */
void ls_shard_update(struct ls_shard *shard, float learning_rate, int64_t step);
/* Waits for the communication stream; returns what its collectives met. */
enum ls_code ls_shard_synchronize(struct ls_shard *shard, struct ls_error *error);
/* Seconds the compute stream waited for reductions so far; up to date after it was synchronised. */
double ls_shard_exposed_seconds(const struct ls_shard *shard);

/* This rank's part [first, first + count) of the block's master parameters, m and v, for checkpoints; device memory.
 * The ranks' parts are consecutive and cover the block's count (without padding); late ranks may have nothing. */
struct ls_shard_slice {
    int64_t first, count;
    float *parameters, *m, *v;
};
struct ls_shard_slice ls_shard_slice(struct ls_shard *shard, int block);
/* This rank's memory for elements [first, first + count) of the block, for filling parameters, m and v: at stage 0 the
 * whole block, padding left out. */
struct ls_shard_slice ls_shard_held(struct ls_shard *shard, int block);

#endif
