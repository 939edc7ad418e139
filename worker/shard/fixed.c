/* train.reduction: fixed. Every rank adds the gradients of its own slots on a stack of nodes, in the order of the tree;
 * at the end of a step the nodes' stretches go to their owners, who add them in the same order.
 *
 *     stack of a rank     nodes[0], nodes[1] ...  and on top, at the end of a step, maybe the gradient of its last slot
 *     received by owner   [ nodes of rank 0 ][ nodes of rank 1 ] ...       from left to right in the tree
 */
#include "common/order.h"
#include "worker/shard/state.h"

#include <assert.h>
#include <stdlib.h>

bool ls_shard_create_fixed(struct ls_shard *shard) {
    if (!shard->cut.fixed) return true;
    shard->fixed.parts = calloc((size_t)shard->cut.owners, sizeof *shard->fixed.parts);
    shard->fixed.cover = calloc(1, sizeof *shard->fixed.cover);
    bool complete = shard->fixed.parts && shard->fixed.cover;
    for (int block = 0; block < shard->block_count; block++) {
        const size_t places = (size_t)shard->cut.tree_buffers + 1;
        shard->blocks[block].sent = calloc(places, sizeof *shard->blocks[block].sent);
        complete &= shard->blocks[block].sent != NULL;
    }
    return complete;
}

void ls_shard_destroy_fixed(struct ls_shard *shard) {
    free(shard->fixed.parts);
    free(shard->fixed.cover);
    for (int block = 0; block < shard->block_count; block++) free(shard->blocks[block].sent);
}

void ls_shard_begin(struct ls_shard *shard, int64_t sequences) {
    struct fixed_reduction *fixed = &shard->fixed;
    if (!shard->cut.fixed) return;
    const int ranks = ls_comm_size(shard->comms.world), own = ls_comm_rank(shard->comms.world);
    fixed->slots = ls_config_slots(shard->config, sequences);
    for (int rank = 0; rank < ranks; rank++) {
        int64_t first, count;
        ls_rank_range(fixed->slots, rank, ranks, &first, &count);
        ls_tree_cover(fixed->slots, first, first + count, fixed->cover);
        fixed->parts[rank] = fixed->cover->height;
        if (rank == own) fixed->first_slot = first, fixed->end_slot = first + count;
    }
    for (int block = 0; block < shard->block_count; block++) ls_tree_begin(&shard->blocks[block].tree, fixed->slots);
}

static float *node(const struct shard_block *block, int place) {
    return block->nodes + place * block->padded;
}

static void add(struct ls_stream *stream, float *sum, const float *a, const float *b, int64_t count) {
    ls_op(stream, add, .sum = sum, .a = a, .b = b, .count = count, .dtype = LS_FP32);
}

/* Puts the gradient of the rank's next slot, in `leaf`, on the block's stack. The leaf stays a node of its own only at
 * the end of the step. */
static void push_slot(struct ls_shard *shard, struct shard_block *block, int64_t slot, float *leaf, bool last) {
    int additions = ls_tree_push(&block->tree, (struct ls_tree_node){slot, slot + 1});
    int place = block->tree.height + additions - 1;
    if (additions == 0) {
        if (!last) ls_copy(shard->compute, node(block, place), leaf, (size_t)block->padded * sizeof(float));
        block->sent[place] = last ? leaf : node(block, place);
        return;
    }
    const float *top = leaf;
    for (; additions > 0; additions--, place--) {
        add(shard->compute, node(block, place - 1), node(block, place - 1), top, block->padded);
        top = node(block, place - 1);
    }
}

/* The slot of the micro-batch that is complete: the next one, or -1 when the rank has no more. */
static int64_t next_slot(const struct ls_shard *shard, const struct shard_block *block) {
    const struct ls_tree *tree = &block->tree;
    const int64_t next = tree->height > 0 ? tree->nodes[tree->height - 1].end : shard->fixed.first_slot;
    return next < shard->fixed.end_slot ? next : -1;
}

/* Adds the received nodes, [nodes, count], in the order of the tree, to `sum`. */
static void finish_tree(struct ls_shard *shard, float *sum, int64_t count) {
    struct fixed_reduction *fixed = &shard->fixed;
    struct ls_tree tree;
    float *values[LS_TREE_HEIGHT_MAX] = {NULL}, *received = fixed->received;
    ls_tree_begin(&tree, fixed->slots);
    for (int rank = 0; rank < shard->cut.owners; rank++) {
        int64_t first, slots;
        ls_rank_range(fixed->slots, rank, (int)shard->cut.owners, &first, &slots);
        ls_tree_cover(fixed->slots, first, first + slots, fixed->cover);
        for (int i = 0; i < fixed->cover->height; i++, received += count) {
            int additions = ls_tree_push(&tree, fixed->cover->nodes[i]), place = tree.height + additions - 1;
            values[place] = received;
            for (; additions > 0; additions--, place--)
                add(shard->communication, values[place - 1], values[place - 1], values[place], count);
        }
    }
    assert(tree.height == 1 && tree.nodes[0].end == fixed->slots);
    ls_copy(shard->communication, sum, values[0], (size_t)count * sizeof(float));
}

/* The sum over all slots of this rank's stretch of the block, to `sum`. */
static void exchange(struct ls_shard *shard, struct shard_block *block, int index, float *sum) {
    const int64_t stretch = block->padded / shard->cut.owners;
    for (int64_t first = 0; first < stretch; first += shard->fixed.stretch) {
        const int64_t count = stretch - first < shard->fixed.stretch ? stretch - first : shard->fixed.stretch;
        const struct ls_comm_exchange what = {.parts = shard->fixed.parts,
                                              .buffers = block->sent,
                                              .received = shard->fixed.received,
                                              .stride = stretch * (int64_t)sizeof(float),
                                              .first = first * (int64_t)sizeof(float),
                                              .bytes = count * (int64_t)sizeof(float),
                                              .groups = (int)(shard->cut.owners / ls_comm_size(shard->comms.group))};
        ls_comm_exchange(shard->comms.world, shard->communication, &what, index);
        finish_tree(shard, sum + first, count);
    }
}

/* The sums of all stretches come to where they are needed: the whole block at stage 0, else the own slice, whose owners
 * are in all groups. */
static void reduce_step(struct ls_shard *shard, struct shard_block *block, int index) {
    const struct ls_shard_cut *cut = &shard->cut;
    const int64_t stretch = block->padded / cut->owners, bytes = stretch * (int64_t)sizeof(float);
    struct ls_comm *spread = cut->state_sliced ? shard->comms.across : shard->comms.world;
    float *sums = cut->gradients_sliced ? block->gradients : block->gradients + shard->index * block->slice;
    ls_shard_hand_over(shard, block->complete);
    if (cut->owners == 1) {
        ls_copy(shard->communication, sums, block->sent[0], (size_t)bytes);
    } else {
        exchange(shard, block, index, spread ? sums + ls_comm_rank(spread) * stretch : sums);
        if (spread) ls_comm_all_gather(spread, shard->communication, sums, bytes, index);
    }
    if (block->passing) ls_event_record(shard->passing[block->passing_slot].idle, shard->communication);
    ls_event_record(block->reduced, shard->communication);
}

void ls_shard_reduce_fixed(struct ls_shard *shard, int index, bool last) {
    struct shard_block *block = &shard->blocks[index];
    float *leaf = shard->cut.gradients_sliced ? block->passing : block->gradients;
    const int64_t slot = next_slot(shard, block);
    assert(leaf);
    for (int place = 0; place < block->tree.height; place++) block->sent[place] = node(block, place);
    if (slot >= 0) push_slot(shard, block, slot, leaf, last);
    if (last)
        reduce_step(shard, block, index);
    else if (block->passing)
        ls_event_record(shard->passing[block->passing_slot].idle, shard->compute);
    else
        ls_fill_zero(shard->compute, leaf, (size_t)block->padded * sizeof(float));
    block->passing = NULL;
}

void ls_shard_sum_squares_fixed(struct ls_shard *shard) {
    const struct ls_shard_cut *cut = &shard->cut;
    struct fixed_reduction *fixed = &shard->fixed;
    double *partial = fixed->partials + shard->index * fixed->partial_count;
    for (int i = shard->block_count - 1; i >= 0; i--) {
        const struct shard_block *block = &shard->blocks[i];
        ls_shard_wait_for(shard, block->reduced);
        ls_op(shard->compute, squared_norm, .input = ls_shard_own_gradients(shard, block), .count = block->own_count,
              .partial = partial, .dtype = LS_FP32);
        partial += block->slice / LS_NORM_STRETCH;
    }
    ls_shard_hand_over(shard, shard->norm_complete);
    ls_comm_all_gather(shard->comms.group, shard->communication, fixed->partials,
                       fixed->partial_count * (int64_t)sizeof(double), -1);
    ls_event_record(shard->norm_gathered, shard->communication);
    ls_shard_wait_for(shard, shard->norm_gathered);
    ls_fill_zero(shard->compute, &shard->scalars->squared, sizeof shard->scalars->squared);
    int64_t before = 0;
    for (int i = shard->block_count - 1; i >= 0; i--) {
        const int64_t slice = shard->blocks[i].slice;
        for (int64_t rank = 0; rank < cut->ranks; rank++)
            ls_op(shard->compute, squared_norm, .result = &shard->scalars->squared, .count = slice,
                  .partial = fixed->partials + rank * fixed->partial_count + before, .dtype = LS_FP32);
        before += slice / LS_NORM_STRETCH;
    }
}
