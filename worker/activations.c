/* Which layers share which buffers. Block b is layer b - 1; the embedding comes before, the head after the layers. */
#include "worker/activations.h"

#include <assert.h>

static void reserve(struct ls_arena_plan *plan, int count, int64_t bytes) {
    for (int i = 0; i < count; i++) ls_arena_reserve(plan, LS_MEMORY_ACTIVATIONS, bytes);
}

/* Segments of which the residual stream that enters is kept. */
static int segments(const struct ls_activations *activations) {
    return (activations->layers + activations->segment - 1) / activations->segment;
}

struct ls_activations ls_activations_share(const struct ls_config *config, const struct ls_model *model) {
    const int64_t every = config->activation_checkpointing.every;
    const bool full = config->activation_checkpointing.mode == LS_CHECKPOINTING_FULL;
    struct ls_activations activations = {.layers = ls_model_block_count(model) - 2};
    activations.segment = full && every < activations.layers ? (int)every : activations.layers;
    activations.recomputed_slots =
        config->activation_checkpointing.mode == LS_CHECKPOINTING_SELECTIVE ? 1 : activations.segment;
    return activations;
}

struct ls_activations ls_activations_plan(const struct ls_config *config, const struct ls_model *model,
                                          struct ls_arena_plan *plan) {
    const int64_t B = config->train.micro_batch_size, T = config->data.sequence_length, C = config->model.hidden_size;
    const int64_t residual = B * T * C * ls_dtype_bytes(ls_model_dtype(model));
    struct ls_activations activations = ls_activations_share(config, model);
    activations.first_residual = plan->count;
    reserve(plan, segments(&activations) + 1, residual);
    activations.first_pooled = plan->count;
    reserve(plan, activations.segment - 1, residual);
    activations.first_saved = plan->count;
    reserve(plan, activations.segment, ls_model_saved_bytes(model, 1, B));
    activations.first_recomputed = plan->count;
    reserve(plan, activations.recomputed_slots, ls_model_recomputed_bytes(model, 1, B));
    return activations;
}

static bool is_layer(const struct ls_activations *activations, int block) {
    return block >= 1 && block <= activations->layers;
}

void *ls_activations_output(const struct ls_activations *activations, struct ls_arena *arena, int block) {
    const int layer = block; /* that it enters; as many as there are: the head */
    assert(layer >= 0 && layer <= activations->layers);
    int buffer;
    if (layer == activations->layers)
        buffer = activations->first_residual + segments(activations);
    else if (layer % activations->segment == 0)
        buffer = activations->first_residual + layer / activations->segment;
    else
        buffer = activations->first_pooled + layer % activations->segment - 1;
    return ls_arena_buffer(arena, buffer);
}

void *ls_activations_saved(const struct ls_activations *activations, struct ls_arena *arena, int block) {
    if (!is_layer(activations, block)) return NULL;
    return ls_arena_buffer(arena, activations->first_saved + (block - 1) % activations->segment);
}

void *ls_activations_recomputed(const struct ls_activations *activations, struct ls_arena *arena, int block) {
    if (!is_layer(activations, block)) return NULL;
    return ls_arena_buffer(arena, activations->first_recomputed + (block - 1) % activations->recomputed_slots);
}

int ls_activations_forward_again(const struct ls_activations *activations, int block) {
    const int layer = block - 1, first_of_last = (segments(activations) - 1) * activations->segment;
    const bool ends_segment = layer % activations->segment == activations->segment - 1;
    if (!is_layer(activations, block) || layer >= first_of_last || !ends_segment) return block + 1;
    return block - activations->segment + 1;
}

int ls_activations_next(const struct ls_activations *activations, int block) {
    assert(is_layer(activations, block));
    const int before = block - 1, again = ls_activations_forward_again(activations, before);
    return again < before ? again : before;
}

bool ls_activations_recompute(const struct ls_activations *activations, int block) {
    return is_layer(activations, block) && block < activations->layers &&
           activations->recomputed_slots < activations->segment;
}
