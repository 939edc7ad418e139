/* Activations: the buffers that carry a micro-batch's values from forward to backward, and what
 * activation_checkpointing keeps of them. L layers are cut into segments of k consecutive ones:
 *
 *     entering layer     0     1 ... k-1     k    k+1 ... 2k-1   ...   L (the head)
 *     residual stream    own   pool          own  pool                 own
 *     saved              slot 0, 1 ... k-1   slot 0, 1 ... k-1   ...
 *
 * none: k = L. full: k = activation_checkpointing.every; segments share the pool and the slots, so forward leaves the
 * last segment's values there, and each earlier one is run forward again before its backward. selective: k = L, but one
 * slot for the part of `saved` that ls_block_recompute() makes again. */
#ifndef LS_WORKER_ACTIVATIONS_H
#define LS_WORKER_ACTIVATIONS_H

#include "common/config.h"
#include "worker/memory/arena.h"
#include "worker/model/model.h"

#include <stdbool.h>

/* Numbers of the buffers in the arena's plan, and how layers share them. */
struct ls_activations {
    int layers, segment;
    int recomputed_slots; /* the segment's layers; 1: shared */
    int first_residual, first_pooled, first_saved, first_recomputed;
};

/* How the configuration has layers share, before buffers are planned. Pure. */
struct ls_activations ls_activations_share(const struct ls_config *config, const struct ls_model *model);

/* Adds the buffers for one micro-batch to the plan. Pure. */
struct ls_activations ls_activations_plan(const struct ls_config *config, const struct ls_model *model,
                                          struct ls_arena_plan *plan);

/* What leaves `block` and enters the next one [B, T, C]; not the head. */
void *ls_activations_output(const struct ls_activations *activations, struct ls_arena *arena, int block);
/* The two parts of what a layer saves; NULL for the embedding and the head. */
void *ls_activations_saved(const struct ls_activations *activations, struct ls_arena *arena, int block);
void *ls_activations_recomputed(const struct ls_activations *activations, struct ls_arena *arena, int block);

/* Before the backward of `block`: the first of the blocks, up to `block` itself, whose forward has to run again;
 * block + 1: none. */
int ls_activations_forward_again(const struct ls_activations *activations, int block);
/* After the backward of layer `block`: the block whose parameters are needed next; after the first layer's that is the
 * embedding, for the next micro-batch. */
int ls_activations_next(const struct ls_activations *activations, int block);
/* Before the backward of `block`: whether ls_block_recompute() has to run. */
bool ls_activations_recompute(const struct ls_activations *activations, int block);

#endif
