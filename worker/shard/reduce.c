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

/* Where sums go. */
struct destination {
    float *sum;
    int64_t first, count; /* of the elements that were reduced */
    bool add;             /* to what is there */
};

/* Reduces `count` elements, or slices of `count`, in the type of the wire, on the communication stream. `values` are
 * free once `taken` is recorded, which may be NULL. */
static void reduce(struct ls_shard *shard, struct ls_comm *comm, bool scatter, float *values, int64_t count,
                   const struct destination *to, struct ls_event *taken, int index) {
    struct ls_stream *stream = shard->communication;
    const bool narrow = shard->cut.wire_dtype != LS_FP32;
    const enum ls_comm_type type = narrow ? LS_COMM_BF16 : LS_COMM_FLOAT;
    void *wire = narrow ? shard->wire : values;
    if (narrow)
        ls_op(stream, convert, .output = wire, .input = values, .count = scatter ? ls_comm_size(comm) * count : count,
              .dtype = shard->cut.wire_dtype);
    if (narrow && taken) ls_event_record(taken, stream);
    if (scatter)
        ls_comm_reduce_scatter_sum(comm, stream, wire, count, type, index);
    else
        ls_comm_all_reduce_sum(comm, stream, wire, count, type, index);
    const char *sums = (const char *)wire + to->first * shard->cut.wire_bytes;
    if (narrow || to->add)
        ls_op(stream, widen, .output = to->sum, .input = sums, .count = to->count, .accumulate = to->add,
              .dtype = shard->cut.wire_dtype);
    else
        ls_copy(stream, to->sum, sums, (size_t)to->count * sizeof(float));
    if (!narrow && taken) ls_event_record(taken, stream);
}

/* Sums the slices of all groups. */
static void reduce_across(struct ls_shard *shard, const struct shard_block *block, float *slice, int index) {
    const struct destination same = {.sum = slice, .count = block->slice};
    if (shard->comms.across) reduce(shard, shard->comms.across, false, slice, block->slice, &same, NULL, index);
}

/* Once a step: whole gradients accumulated. */
static void reduce_whole(struct ls_shard *shard, struct shard_block *block, int index) {
    ls_shard_hand_over(shard, block->complete);
    if (!shard->cut.state_sliced) {
        const struct destination same = {.sum = block->gradients, .count = block->count};
        reduce(shard, shard->comms.world, false, block->gradients, block->count, &same, NULL, index);
    } else {
        const int64_t first = shard->index * block->slice;
        const struct destination own = {.sum = block->gradients + first, .first = first, .count = block->slice};
        reduce(shard, shard->comms.group, true, block->gradients, block->slice, &own, NULL, index);
        reduce_across(shard, block, own.sum, index);
    }
    ls_event_record(block->reduced, shard->communication);
}

/* Every micro-batch: the sum of a slice joins what the slice accumulates. */
static void reduce_passing(struct ls_shard *shard, struct shard_block *block, int index, bool last) {
    assert(block->passing);
    const struct destination own = {.sum = block->gradients,
                                    .first = shard->index * block->slice,
                                    .count = block->slice,
                                    .add = block->accumulated};
    ls_shard_hand_over(shard, block->complete);
    reduce(shard, shard->comms.group, true, block->passing, block->slice, &own,
           shard->passing[block->passing_slot].idle, index);
    block->passing = NULL;
    block->accumulated = !last;
    if (!last) return;
    reduce_across(shard, block, block->gradients, index);
    ls_event_record(block->reduced, shard->communication);
}

void ls_shard_reduce(struct ls_shard *shard, int index, bool last) {
    struct shard_block *block = &shard->blocks[index];
    if (shard->cut.fixed)
        ls_shard_reduce_fixed(shard, index, last);
    else if (shard->cut.gradients_sliced)
        reduce_passing(shard, block, index, last);
    else if (last)
        reduce_whole(shard, block, index);
}

void ls_shard_reduce_values(struct ls_shard *shard, double *values, int64_t count) {
    ls_shard_hand_over(shard, shard->value_complete);
    ls_comm_all_reduce_sum(shard->comms.world, shard->communication, values, count, LS_COMM_DOUBLE, -1);
    ls_event_record(shard->value_reduced, shard->communication);
}

void ls_shard_await_values(struct ls_shard *shard) {
    ls_shard_wait_for(shard, shard->value_reduced);
}
