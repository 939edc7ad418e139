/* How blocks are cut, and what that costs in memory and on the wire. */
#include "common/order.h"
#include "worker/activations.h"
#include "worker/optim/muon.h"
#include "worker/shard/state.h"

/* Owners' stretches of whole gradients begin at cache lines. */
enum { OWNER_UNIT = 16 };
/* An exchange brings about so many elements, but of each node no fewer than so many. */
enum { EXCHANGE_ELEMENTS = 1 << 20, EXCHANGE_NODE_MIN = 1 << 14 };

int64_t ls_shard_replicas(const struct ls_config *config) {
    return config->zero.stage > 0 ? config->zero.replicas : 1;
}

/* With replicas, a slice has an owner in each of them. */
int64_t ls_shard_slice_unit(const struct ls_config *config) {
    const bool fixed = config->train.reduction == LS_REDUCTION_FIXED && config->zero.stage > 0;
    return fixed ? LS_NORM_STRETCH * ls_shard_replicas(config) : 1;
}

struct ls_shard_cut ls_shard_cut(const struct ls_config *config, int64_t ranks) {
    const int64_t stage = config->zero.stage;
    const bool fixed = config->train.reduction == LS_REDUCTION_FIXED;
    const int64_t slots = ls_config_micro_batches(config, config->train.global_batch_size, ranks);
    return (struct ls_shard_cut){
        .fixed = fixed,
        .owners = ranks,
        .tree_buffers = fixed ? ls_tree_height(slots - 1) : 0,
        .received_nodes = fixed && ranks > 1 ? ranks * ls_tree_height(slots) : 0,
        .unit = fixed && stage == 0 ? ranks * OWNER_UNIT : ls_shard_slice_unit(config),
        .ranks = stage > 0 ? ranks / ls_shard_replicas(config) : 1,
        .parameters_sliced = stage == 3,
        .gradients_sliced = stage >= 2 || config->zero.accumulate == LS_ACCUMULATE_SHARDED,
        .state_sliced = stage >= 1,
        .parameter_bytes = ls_dtype_bytes(ls_model_dtype_of(config)),
        .gradient_bytes = sizeof(float),
        .wire_bytes = config->zero.gradient_dtype == LS_GRADIENT_BF16 ? sizeof(uint16_t) : sizeof(float),
        .wire_dtype = config->zero.gradient_dtype == LS_GRADIENT_BF16 ? LS_BF16 : LS_FP32,
        .state_bytes = sizeof(float),
        .master_apart = config->precision != LS_PRECISION_FP32 && !config->optimizer.stochastic_rounding,
        .dtype = ls_model_dtype_of(config),
        .whole_matrices = config->optimizer.type == LS_MUON,
        .whole_dtype = ls_muon_dtype(config),
    };
}

struct shard_block ls_shard_describe_block(const struct ls_config *config, const struct ls_shard_cut *cut,
                                           const struct ls_block *shape) {
    const int64_t slice = ls_shard_slice_count(cut, shape->count),
                  second = shape->count - ls_second_moment_from(config, shape);
    return (struct shard_block){.count = shape->count,
                                .decay_count = shape->decay_count,
                                .slice = slice,
                                .padded = slice * cut->ranks,
                                .second_room = second < slice ? second : slice};
}

static void *place(struct ls_shard_placer *placer, enum ls_memory_category category, int64_t bytes) {
    if (placer->arena) return ls_arena_buffer(placer->arena, placer->next++);
    ls_arena_reserve(placer->plan, category, bytes);
    return NULL;
}

/* The largest of the blocks that pass through the slot, padded. */
static int64_t slot_count(const struct ls_model *model, const struct ls_shard_cut *cut, int slot) {
    int64_t largest = 0;
    for (int block = 0; block < ls_model_block_count(model); block++) {
        if (ls_shard_block_is_large(model, block) != (slot == POOL_LARGE)) continue;
        int64_t padded = ls_shard_slice_count(cut, ls_model_block(model, block)->count) * cut->ranks;
        if (padded > largest) largest = padded;
    }
    return largest;
}

void ls_shard_place_block(struct ls_shard_placer *placer, const struct ls_shard_cut *cut, struct shard_block *block) {
    const int64_t parameters = cut->parameters_sliced ? block->slice : block->padded;
    const int64_t gradients = cut->gradients_sliced ? block->slice : block->padded;
    block->parameters = place(placer, LS_MEMORY_PARAMETERS, parameters * cut->parameter_bytes);
    block->gradients = place(placer, LS_MEMORY_GRADIENTS, gradients * cut->gradient_bytes);
    if (cut->master_apart) block->master = place(placer, LS_MEMORY_OPTIMIZER, block->slice * cut->state_bytes);
    block->m = place(placer, LS_MEMORY_OPTIMIZER, block->slice * cut->state_bytes);
    if (block->second_room > 0) block->v = place(placer, LS_MEMORY_OPTIMIZER, block->second_room * cut->state_bytes);
    if (cut->tree_buffers > 0)
        block->nodes = place(placer, LS_MEMORY_REDUCTION, cut->tree_buffers * block->padded * cut->gradient_bytes);
}

int64_t ls_shard_exchange_count(const struct ls_shard_cut *cut, int64_t longest) {
    const int64_t nodes = cut->received_nodes > 0 ? cut->received_nodes : 1;
    const int64_t count = EXCHANGE_ELEMENTS / nodes > EXCHANGE_NODE_MIN ? EXCHANGE_ELEMENTS / nodes : EXCHANGE_NODE_MIN;
    return count < longest ? count : longest;
}

/* Where the owners finish the trees, and the partial sums of norms from all slices. */
static void place_fixed(struct ls_shard_placer *placer, const struct ls_model *model, const struct ls_shard_cut *cut,
                        struct fixed_reduction *fixed) {
    int64_t longest = 0;
    for (int block = 0; block < ls_model_block_count(model); block++) {
        const int64_t count = ls_model_block(model, block)->count, stretch = ls_shard_stretch_count(cut, count);
        if (stretch > longest) longest = stretch;
        fixed->partial_count += ls_shard_slice_count(cut, count) / LS_NORM_STRETCH;
    }
    fixed->stretch = ls_shard_exchange_count(cut, longest);
    fixed->received = place(placer, LS_MEMORY_REDUCTION, cut->received_nodes * fixed->stretch * cut->gradient_bytes);
    if (cut->state_sliced)
        fixed->partials =
            place(placer, LS_MEMORY_REDUCTION, cut->ranks * fixed->partial_count * (int64_t)sizeof(double));
}

/* Room for a layer in slices, or its matrices alone where nothing travels, and for the squares of its largest matrix.
 */
static void place_whole(struct ls_shard_placer *placer, const struct ls_model *model, const struct ls_shard_cut *cut,
                        struct whole_update *whole) {
    const int64_t element = ls_dtype_bytes(cut->whole_dtype);
    int64_t room = 0, side = 0;
    for (int i = 0; i < ls_model_block_count(model); i++) {
        const struct ls_block *block = ls_model_block(model, i);
        if (block->kind != LS_BLOCK_LAYER) continue;
        room = cut->ranks > 1 ? ls_shard_slice_count(cut, block->count) * cut->ranks : block->decay_count;
        for (int t = block->first_tensor; t < block->first_tensor + block->tensor_count; t++) {
            const struct ls_tensor *tensor = ls_model_tensor(model, t);
            const int64_t shorter = tensor->shape[0] < tensor->shape[1] ? tensor->shape[0] : tensor->shape[1];
            if (tensor->dimensions == 2 && shorter > side) side = shorter;
        }
    }
    whole->outgoing = place(placer, LS_MEMORY_WORKSPACE, room * element);
    whole->whole = place(placer, LS_MEMORY_WORKSPACE, room * element);
    whole->gram = place(placer, LS_MEMORY_WORKSPACE, side * side * element);
    whole->powers = place(placer, LS_MEMORY_WORKSPACE, side * side * element);
}

void ls_shard_place_rest(struct ls_shard_placer *placer, const struct ls_model *model, const struct ls_shard_cut *cut,
                         struct ls_shard *shard) {
    int64_t largest = 0;
    for (int slot = 0; slot < POOL_SLOTS; slot++) {
        const int64_t count = slot_count(model, cut, slot);
        if (count > largest) largest = count;
        if (cut->gradients_sliced)
            shard->passing[slot].memory = place(placer, LS_MEMORY_REDUCED, count * cut->gradient_bytes);
        if (cut->parameters_sliced)
            shard->gathered[slot].memory = place(placer, LS_MEMORY_GATHERED, count * cut->parameter_bytes);
    }
    if (cut->wire_dtype != LS_FP32) shard->wire = place(placer, LS_MEMORY_REDUCED, largest * cut->wire_bytes);
    if (cut->fixed) place_fixed(placer, model, cut, &shard->fixed);
    if (cut->whole_matrices) place_whole(placer, model, cut, &shard->whole);
    shard->scalars = place(placer, LS_MEMORY_SCALARS, sizeof(struct scalars));
    shard->norms = place(placer, LS_MEMORY_SCALARS, cut->ranks * (int64_t)sizeof(double));
    shard->partial =
        place(placer, LS_MEMORY_WORKSPACE, (largest + LS_NORM_STRETCH - 1) / LS_NORM_STRETCH * (int64_t)sizeof(double));
}

int ls_shard_plan(const struct ls_config *config, const struct ls_model *model, int64_t ranks,
                  struct ls_arena_plan *plan) {
    const struct ls_shard_cut cut = ls_shard_cut(config, ranks);
    struct ls_shard_placer placer = {.plan = plan};
    const int first = plan->count;
    for (int i = 0; i < ls_model_block_count(model); i++) {
        struct shard_block block = ls_shard_describe_block(config, &cut, ls_model_block(model, i));
        ls_shard_place_block(&placer, &cut, &block);
    }
    ls_shard_place_rest(&placer, model, &cut, &(struct ls_shard){0});
    return first;
}

void ls_gather_pool_clear(struct ls_gather_pool *pool) {
    *pool = (struct ls_gather_pool){0};
    for (int slot = 0; slot < POOL_SLOTS; slot++) pool->slots[slot].block = -1;
}

int ls_gather_pool_place(struct ls_gather_pool *pool, const struct ls_model *model, int block, bool *missing) {
    const bool large = ls_shard_block_is_large(model, block);
    const int first = large ? POOL_LARGE : POOL_FIRST, last = large ? POOL_LARGE : POOL_SECOND;
    int chosen = -1;
    for (int slot = first; slot <= last; slot++) {
        if (pool->slots[slot].block == block) {
            *missing = false;
            pool->slots[slot].turn = ++pool->turns;
            return slot;
        }
        if (pool->slots[slot].users == 0 && (chosen < 0 || pool->slots[slot].turn < pool->slots[chosen].turn))
            chosen = slot;
    }
    if (chosen < 0) return -1;
    *missing = true;
    pool->slots[chosen].block = block;
    pool->slots[chosen].turn = ++pool->turns;
    return chosen;
}

/* What the ring of a collective sends of a slice to the other ranks of the group. */
static int64_t ring_bytes(const struct ls_shard_cut *cut, const struct ls_model *model, int block, int64_t element) {
    return (cut->ranks - 1) * ls_shard_slice_count(cut, ls_model_block(model, block)->count) * element;
}

/* A training step at stage 3 as the replica walks it, counted instead of run. */
struct walk {
    struct ls_gather_pool pool;
    const struct ls_model *model;
    const struct ls_shard_cut *cut;
    struct ls_activations activations;
    int64_t bytes;
};

static int walk_to(struct walk *walk, int block) {
    bool missing = false;
    const int slot = ls_gather_pool_place(&walk->pool, walk->model, block, &missing);
    if (missing) walk->bytes += ring_bytes(walk->cut, walk->model, block, walk->cut->parameter_bytes);
    return slot;
}

/* Acquires the block, prefetches the next one, releases. */
static void walk_through(struct walk *walk, int block, int next) {
    const int slot = walk_to(walk, block);
    walk->pool.slots[slot].users++;
    if (next >= 0) walk_to(walk, next);
    walk->pool.slots[slot].users--;
}

static void walk_micro_batch(struct walk *walk, bool last) {
    const int head = ls_model_block_count(walk->model) - 1;
    for (int block = 0; block < head; block++) walk_through(walk, block, block + 1);
    const int slot = walk_to(walk, head);
    walk->pool.slots[slot].users++;
    if (ls_model_head_is_tied(walk->model))
        walk_through(walk, 0, head - 1);
    else
        walk_to(walk, head - 1);
    walk->pool.slots[slot].users--;
    for (int block = head - 1; block > 0; block--) {
        for (int again = ls_activations_forward_again(&walk->activations, block); again < block; again++)
            walk_through(walk, again, again + 1);
        walk_through(walk, block, block == 1 && last ? -1 : ls_activations_next(&walk->activations, block));
    }
}

/* Between two micro-batches nobody uses a slot: what the next one gathers follows from which blocks are there, and
 * which of them was placed before which. */
static bool is_pool_like(const struct ls_gather_pool *a, const struct ls_gather_pool *b) {
    for (int slot = 0; slot < POOL_SLOTS; slot++) {
        if (a->slots[slot].block != b->slots[slot].block) return false;
        for (int other = 0; other < slot; other++)
            if ((a->slots[slot].turn < a->slots[other].turn) != (b->slots[slot].turn < b->slots[other].turn))
                return false;
    }
    return true;
}

/* Walks through all micro-batches of a step but the last; once the pool is as it was before, the rest is so many times
 * what was gathered in between. */
static void walk_but_last(struct walk *walk, int64_t count) {
    struct walk before = *walk;
    int64_t at = 0;
    for (int64_t i = 1; i <= count; i++) {
        walk_micro_batch(walk, false);
        if (is_pool_like(&walk->pool, &before.pool)) {
            const int64_t period = i - at, times = (count - i) / period;
            walk->bytes += times * (walk->bytes - before.bytes);
            for (int64_t left = (count - i) % period; left > 0; left--) walk_micro_batch(walk, false);
            return;
        }
        if (i != 2 * at + 1) continue; /* later and later, so that it is behind what does not come again */
        before = *walk;
        at = i;
    }
}

static int64_t gathered_bytes(const struct ls_config *config, const struct ls_model *model,
                              const struct ls_shard_cut *cut, int64_t micro_batches) {
    struct walk walk = {.model = model, .cut = cut, .activations = ls_activations_share(config, model)};
    ls_gather_pool_clear(&walk.pool);
    walk_to(&walk, 0);
    walk_to(&walk, 1);
    walk_but_last(&walk, micro_batches - 1);
    walk_micro_batch(&walk, true);
    return walk.bytes;
}

/* The most nodes that a rank sends of a full step. */
static int64_t sent_nodes(const struct ls_config *config, int64_t ranks) {
    const int64_t slots = ls_config_slots(config, config->train.global_batch_size);
    int64_t most = 0;
    for (int64_t rank = 0; rank < ranks; rank++) {
        struct ls_tree tree;
        int64_t first, count;
        ls_rank_range(slots, (int)rank, (int)ranks, &first, &count);
        ls_tree_cover(slots, first, first + count, &tree);
        if (tree.height > most) most = tree.height;
    }
    return most;
}

/* The nodes' stretches to their owners; what owners have summed to those who update it. */
static int64_t fixed_bytes(const struct ls_config *config, const struct ls_shard_cut *cut, int64_t count) {
    const int64_t stretch = ls_shard_stretch_count(cut, count) * cut->gradient_bytes;
    const int64_t spread = cut->state_sliced ? ls_shard_replicas(config) - 1 : cut->owners - 1;
    return ((cut->owners - 1) * sent_nodes(config, cut->owners) + spread) * stretch;
}

int64_t ls_shard_reduce_bytes(const struct ls_config *config, const struct ls_model *model, int64_t ranks, int block) {
    const struct ls_shard_cut cut = ls_shard_cut(config, ranks);
    const int64_t replicas = ls_shard_replicas(config), count = ls_model_block(model, block)->count;
    if (cut.fixed) return fixed_bytes(config, &cut, count);
    if (!cut.state_sliced) return 2 * (ranks - 1) * count * cut.wire_bytes / ranks;
    return ring_bytes(&cut, model, block, cut.wire_bytes) +
           2 * (replicas - 1) * ls_shard_slice_count(&cut, count) * cut.wire_bytes / replicas;
}

int64_t ls_shard_gather_bytes(const struct ls_config *config, const struct ls_model *model, int64_t ranks, int block) {
    const struct ls_shard_cut cut = ls_shard_cut(config, ranks);
    return ring_bytes(&cut, model, block, cut.parameter_bytes);
}

int64_t ls_shard_matrix_slice_bytes(const struct ls_config *config, const struct ls_model *model, int64_t ranks) {
    const struct ls_shard_cut cut = ls_shard_cut(config, ranks);
    if (!cut.whole_matrices || cut.ranks == 1) return 0;
    return ls_shard_slice_count(&cut, ls_model_block(model, 1)->count) * ls_dtype_bytes(cut.whole_dtype);
}

/* A rank's slices of the layers of a round go out, and slices of one layer back; rounds have as many as the group has
 * ranks. */
static int64_t matrix_bytes(const struct ls_model *model, const struct ls_shard_cut *cut) {
    const int64_t layers = ls_model_block_count(model) - 2;
    if (!cut->whole_matrices) return 0;
    return (layers + cut->ranks - 1) / cut->ranks * 2 * ring_bytes(cut, model, 1, ls_dtype_bytes(cut->whole_dtype));
}

struct ls_shard_wire ls_shard_wire_bytes(const struct ls_config *config, const struct ls_model *model, int64_t ranks) {
    const struct ls_shard_cut cut = ls_shard_cut(config, ranks);
    const int64_t micro_batches = ls_config_micro_batches(config, config->train.global_batch_size, ranks);
    const int64_t losses = cut.fixed ? ls_config_slots(config, config->train.global_batch_size) : 1;
    struct ls_shard_wire wire = {.scalars = 2 * (ranks - 1) * losses * (int64_t)sizeof(double) / ranks};
    if (cut.state_sliced && !cut.fixed) wire.scalars += (cut.ranks - 1) * (int64_t)sizeof(double);
    if (cut.parameters_sliced) wire.parameters = gathered_bytes(config, model, &cut, micro_batches);
    for (int block = 0; block < ls_model_block_count(model); block++) {
        wire.gradients += ls_shard_reduce_bytes(config, model, ranks, block);
        if (cut.fixed && cut.state_sliced)
            wire.scalars += ring_bytes(&cut, model, block, sizeof(double)) / LS_NORM_STRETCH;
        if (cut.gradients_sliced && !cut.fixed)
            wire.gradients += (micro_batches - 1) * ring_bytes(&cut, model, block, cut.wire_bytes);
        if (!cut.parameters_sliced) wire.parameters += ring_bytes(&cut, model, block, cut.parameter_bytes);
    }
    wire.matrices = matrix_bytes(model, &cut);
    return wire;
}
