/* Gradients: where they accumulate, and their sums over the ranks. */
#include "worker/shard/state.h"

#include <assert.h>

/* A buffer for the block's whole gradient, zeroed; waits until the one who had it before is reduced. */
static float *take_passing(struct ls_shard *shard, int index) {
    struct shard_block *block = &shard->blocks[index];
    int place = POOL_LARGE;
    if (!ls_shard_block_is_large(shard->model, index)) {
        place = POOL_FIRST + shard->next_passing;
        shard->next_passing = !shard->next_passing;
    }
    struct passing_slot *slot = &shard->passing[place];
    for (int other = 0; other < shard->block_count; other++)
        assert(!shard->blocks[other].passing || shard->blocks[other].passing_slot != place);
    ls_shard_wait_for(shard, slot->idle);
    ls_fill_zero(shard->compute, slot->memory, (size_t)(block->padded * shard->cut.gradient_bytes));
    block->passing_slot = place;
    block->passing = slot->memory;
    return slot->memory;
}

float *ls_shard_gradients(struct ls_shard *shard, int index) {
    const struct shard_block *block = &shard->blocks[index];
    if (!shard->cut.gradients_sliced) return block->gradients;
    return block->passing ? block->passing : take_passing(shard, index);
}

/* Sums the slices of all groups. */
static void reduce_across(struct ls_shard *shard, const struct shard_block *block, float *slice, int index) {
    if (shard->comms.across)
        ls_comm_all_reduce_sum(shard->comms.across, shard->communication, slice, block->slice, LS_COMM_FLOAT, index);
}

/* Once a step: whole gradients accumulated. */
static void reduce_whole(struct ls_shard *shard, struct shard_block *block, int index) {
    ls_shard_hand_over(shard, block->complete);
    if (!shard->cut.state_sliced) {
        ls_comm_all_reduce_sum(shard->comms.world, shard->communication, block->gradients, block->count, LS_COMM_FLOAT,
                               index);
    } else {
        ls_comm_reduce_scatter_sum(shard->comms.group, shard->communication, block->gradients, block->slice,
                                   LS_COMM_FLOAT, index);
        reduce_across(shard, block, block->gradients + shard->index * block->slice, index);
    }
    ls_event_record(block->reduced, shard->communication);
}

/* Every micro-batch: the sum of a slice joins what the slice accumulates. */
static void reduce_passing(struct ls_shard *shard, struct shard_block *block, int index, bool last) {
    assert(block->passing);
    const float *slice = block->passing + shard->index * block->slice;
    ls_shard_hand_over(shard, block->complete);
    ls_comm_reduce_scatter_sum(shard->comms.group, shard->communication, block->passing, block->slice, LS_COMM_FLOAT,
                               index);
    if (block->accumulated)
        ls_op(shard->communication, add, .sum = block->gradients, .a = block->gradients, .b = slice,
              .count = block->slice, .dtype = LS_FP32);
    else
        ls_copy(shard->communication, block->gradients, slice, (size_t)(block->slice * shard->cut.gradient_bytes));
    ls_event_record(shard->passing[block->passing_slot].idle, shard->communication);
    block->passing = NULL;
    block->accumulated = !last;
    if (!last) return;
    reduce_across(shard, block, block->gradients, index);
    ls_event_record(block->reduced, shard->communication);
}

void ls_shard_reduce(struct ls_shard *shard, int index, bool last) {
    struct shard_block *block = &shard->blocks[index];
    if (shard->cut.gradients_sliced)
        reduce_passing(shard, block, index, last);
    else if (last)
        reduce_whole(shard, block, index);
}

void ls_shard_reduce_value(struct ls_shard *shard, double *value) {
    ls_shard_hand_over(shard, shard->value_complete);
    ls_comm_all_reduce_sum(shard->comms.world, shard->communication, value, 1, LS_COMM_DOUBLE, -1);
    ls_event_record(shard->value_reduced, shard->communication);
}

void ls_shard_await_value(struct ls_shard *shard) {
    ls_shard_wait_for(shard, shard->value_reduced);
}
