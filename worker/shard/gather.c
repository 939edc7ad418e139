/* Whole parameters for those who compute: where they stay whole, the gathers of the last update end here; at stage 3
 * they pass through the pool. */
#include "worker/shard/state.h"

#include <assert.h>

/* Starts to gather a block into the slot that was chosen for it. */
static void gather(struct ls_shard *shard, int index, int place) {
    const struct shard_block *block = &shard->blocks[index];
    struct gather_slot *slot = &shard->gathered[place];
    const int64_t bytes = block->slice * shard->cut.parameter_bytes;
    ls_stream_wait(shard->communication, slot->idle);
    ls_copy(shard->communication, (char *)slot->memory + shard->index * bytes, block->parameters, (size_t)bytes);
    ls_comm_all_gather(shard->comms.group, shard->communication, slot->memory, bytes, index);
    ls_event_record(slot->ready, shard->communication);
    slot->awaited = false;
}

static int place_of(struct ls_shard *shard, int block) {
    bool missing = false;
    const int place = ls_gather_pool_place(&shard->pool, shard->model, block, &missing);
    if (place >= 0 && missing) gather(shard, block, place);
    return place;
}

static const void *acquire_gathered(struct ls_shard *shard, int block) {
    const int place = place_of(shard, block);
    assert(place >= 0);
    struct gather_slot *slot = &shard->gathered[place];
    if (!slot->awaited) ls_shard_wait_for(shard, slot->ready);
    slot->awaited = true;
    shard->pool.slots[place].users++;
    return slot->memory;
}

static const void *acquire_whole(struct ls_shard *shard, int index) {
    struct shard_block *block = &shard->blocks[index];
    if (block->gathering) ls_shard_wait_for(shard, block->gathered);
    block->gathering = false;
    return block->parameters;
}

/* The reader's turn. */
static void pass(struct ls_shard *shard, int block, const void *parameters) {
    if (!shard->reading || !shard->blocks[block].passing_by) return;
    shard->blocks[block].passing_by = false;
    shard->reader.passed(shard->reader.context, block, parameters);
}

struct ls_shard_copy ls_shard_copy(struct ls_shard *shard, int index) {
    const struct shard_block *block = &shard->blocks[index];
    if (shard->cut.parameters_sliced) return (struct ls_shard_copy){block->parameters, block->own_count};
    return (struct ls_shard_copy){acquire_whole(shard, index), block->count};
}

const void *ls_shard_acquire(struct ls_shard *shard, int block) {
    const void *parameters =
        shard->cut.parameters_sliced ? acquire_gathered(shard, block) : acquire_whole(shard, block);
    pass(shard, block, parameters);
    if (shard->check == block) {
        shard->check = -1;
        ls_fill_zero(shard->compute, &shard->scalars->parameters, sizeof shard->scalars->parameters);
        ls_op(shard->compute, squared_norm, .result = &shard->scalars->parameters, .input = parameters,
              .count = shard->blocks[block].count, .partial = shard->partial, .any_order = true,
              .dtype = shard->cut.dtype);
    }
    return parameters;
}

void ls_shard_release(struct ls_shard *shard, int block) {
    if (!shard->cut.parameters_sliced) return;
    for (int place = 0; place < POOL_SLOTS; place++) {
        if (shard->pool.slots[place].block != block) continue;
        assert(shard->pool.slots[place].users > 0);
        shard->pool.slots[place].users--;
        ls_event_record(shard->gathered[place].idle, shard->compute);
    }
}

void ls_shard_prefetch(struct ls_shard *shard, int block) {
    if (shard->cut.parameters_sliced && block >= 0) place_of(shard, block);
}

void ls_shard_read(struct ls_shard *shard, const struct ls_shard_reader *reader) {
    shard->reader = *reader;
    shard->reading = true;
    for (int i = 0; i < shard->block_count; i++) {
        struct shard_block *block = &shard->blocks[i];
        block->passing_by = true;
        if (!shard->cut.parameters_sliced && !block->gathering) pass(shard, i, block->parameters);
    }
}

void ls_shard_pass_all(struct ls_shard *shard) {
    for (int block = 0; block < shard->block_count && shard->reading; block++) {
        if (!shard->blocks[block].passing_by) continue;
        ls_shard_acquire(shard, block);
        ls_shard_release(shard, block);
    }
}
