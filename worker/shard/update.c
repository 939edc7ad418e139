/* The optimizer's step on what this rank updates, and the start of the gathers that spread it. */
#include "worker/shard/state.h"

#include <assert.h>
#include <math.h>

float *ls_shard_own_gradients(const struct ls_shard *shard, const struct shard_block *block) {
    return shard->cut.gradients_sliced ? block->gradients : block->gradients + block->own_first;
}

static void copy_inputs(struct ls_shard *shard, float learning_rate, int64_t step) {
    struct scalars *scalars = shard->scalars;
    *shard->inputs = (struct update_inputs){.learning_rate = learning_rate, .step = step, .squared = NAN};
    ls_copy_to_device(shard->compute, &scalars->learning_rate, &shard->inputs->learning_rate,
                      sizeof scalars->learning_rate);
    ls_copy_to_device(shard->compute, &scalars->step, &shard->inputs->step, sizeof scalars->step);
}

/* The sum of squares of all gradients, the same bits on every rank. */
static void sum_squares(struct ls_shard *shard) {
    struct scalars *scalars = shard->scalars;
    ls_fill_zero(shard->compute, &scalars->squared, sizeof scalars->squared);
    /* Reductions end in the order of backward: the last block's first. The sum has an order of its own. */
    for (int i = shard->block_count - 1; i >= 0; i--) {
        struct shard_block *block = &shard->blocks[i];
        ls_shard_wait_for(shard, block->reduced);
        ls_op(shard->compute, squared_norm, .result = &scalars->squared, .input = ls_shard_own_gradients(shard, block),
              .count = block->own_count, .partial = shard->partial, .any_order = !shard->cut.fixed, .dtype = LS_FP32);
    }
    if (!shard->cut.state_sliced) return;
    /* Every rank adds up the slices' sums in the same order. */
    ls_copy(shard->compute, &shard->norms[shard->index], &scalars->squared, sizeof scalars->squared);
    ls_shard_hand_over(shard, shard->norm_complete);
    ls_comm_all_gather(shard->comms.group, shard->communication, shard->norms, sizeof *shard->norms, -1);
    ls_event_record(shard->norm_gathered, shard->communication);
    ls_shard_wait_for(shard, shard->norm_gathered);
    ls_op(shard->compute, ordered_sum, .result = &scalars->squared, .input = shard->norms, .count = shard->cut.ranks);
}

static enum ls_update_rule rule_of(const struct ls_config *config) {
    switch (config->optimizer.type) {
    case LS_ADAMW:
    case LS_MUON: break;
    case LS_LION: return LS_UPDATE_LION;
    case LS_SGD: return LS_UPDATE_SGD;
    }
    return LS_UPDATE_ADAMW;
}

void ls_shard_update_range(struct ls_shard *shard, const struct ls_shard_range *range) {
    const struct shard_block *block = &shard->blocks[range->block];
    const struct scalars *scalars = shard->scalars;
    const int64_t skipped = range->first - block->own_first;
    char *own = (char *)ls_shard_own_parameters(&shard->cut, block) + skipped * shard->cut.parameter_bytes;
    int64_t decayed = block->decay_count - range->first;
    if (decayed < 0) decayed = 0;
    if (decayed > range->count) decayed = range->count;
    const bool sgd = range->rule == LS_UPDATE_SGD, adamw = range->rule == LS_UPDATE_ADAMW;
    float *master = shard->cut.dtype == LS_FP32 ? (float *)(void *)own : block->master;
    if (shard->cut.dtype != LS_FP32 && master) master += skipped;
    ls_op(
        shard->compute, update, .rule = range->rule, .parameter = master,
        .low_precision = shard->cut.dtype == LS_FP32 ? NULL : own, .m = block->m + skipped,
        .v = adamw ? block->v + (range->first - block->second_first) : NULL,
        .gradient = ls_shard_own_gradients(shard, block) + skipped, .direction = range->direction,
        .factor = &scalars->factor, .learning_rate = &scalars->learning_rate, .step = &scalars->step,
        .found_inf = &scalars->found_inf, .count = range->count, .decay_count = decayed,
        .seed = (uint64_t)shard->config->train.seed, .first = (uint64_t)range->first, .tensor = (uint32_t)range->block,
        .beta1 = (float)(sgd ? shard->config->optimizer.momentum : shard->config->optimizer.beta1),
        .beta2 = (float)shard->config->optimizer.beta2, .epsilon = (float)shard->config->optimizer.eps,
        .weight_decay = (float)shard->config->optimizer.weight_decay, .scale = range->scale, .dtype = shard->cut.dtype);
}

static void update_block(struct ls_shard *shard, int index) {
    const struct shard_block *block = &shard->blocks[index];
    const struct ls_shard_range own = {
        .block = index, .first = block->own_first, .count = block->own_count, .rule = rule_of(shard->config)};
    ls_shard_update_range(shard, &own);
}

/* Stages 1 and 2: the block's updated slices come together beside what follows. */
static void gather_block(struct ls_shard *shard, struct shard_block *block, int index) {
    ls_shard_hand_over(shard, block->complete);
    ls_comm_all_gather(shard->comms.group, shard->communication, block->parameters,
                       block->slice * shard->cut.parameter_bytes, index);
    ls_event_record(block->gathered, shard->communication);
    block->gathering = true;
}

/* Stage 3: what the pool holds is old; the next forward's first blocks come, beside the update of the others. */
static void renew_pool(struct ls_shard *shard, int updated) {
    if (updated == 0) ls_gather_pool_clear(&shard->pool);
    if (updated > 1) return;
    ls_shard_hand_over(shard, shard->updated);
    ls_shard_prefetch(shard, updated);
}

void ls_shard_release_state(struct ls_shard *shard, int block) {
    assert(!shard->reading || !shard->blocks[block].passing_by);
    if (shard->reading) shard->reader.release(shard->reader.context, block);
}

void ls_shard_spread(struct ls_shard *shard, int index) {
    struct shard_block *block = &shard->blocks[index];
    if (shard->cut.parameters_sliced)
        renew_pool(shard, index);
    else if (shard->cut.state_sliced)
        gather_block(shard, block, index);
    if (!shard->cut.gradients_sliced)
        ls_fill_zero(shard->compute, block->gradients, (size_t)(block->padded * shard->cut.gradient_bytes));
}

void ls_shard_refuse_update(struct ls_shard *shard) {
    shard->refused = true;
}

void ls_shard_update(struct ls_shard *shard, float learning_rate, float loss_scale, int64_t step) {
    struct scalars *scalars = shard->scalars;
    copy_inputs(shard, learning_rate, step);
    ls_fill_zero(shard->compute, &scalars->found_inf, sizeof scalars->found_inf);
    ls_shard_await_values(shard);
    if (shard->cut.fixed && shard->cut.state_sliced)
        ls_shard_sum_squares_fixed(shard);
    else
        sum_squares(shard);
    if (shard->refused)
        ls_copy_to_device(shard->compute, &scalars->squared, &shard->inputs->squared, sizeof scalars->squared);
    shard->refused = false;
    ls_op(shard->compute, clip, .factor = &scalars->factor, .norm = &scalars->norm, .found_inf = &scalars->found_inf,
          .squared = &scalars->squared, .maximum = (float)shard->config->train.gradient_clipping,
          .loss_scale = loss_scale);
    for (int i = 0; i < shard->block_count;) {
        if (shard->cut.whole_matrices && ls_model_block(shard->model, i)->kind == LS_BLOCK_LAYER) {
            i = ls_shard_update_layers(shard, i);
            continue;
        }
        ls_shard_release_state(shard, i);
        update_block(shard, i);
        ls_shard_spread(shard, i++);
    }
    shard->reading = false;
    shard->check = (int)(step % shard->block_count);
    if (!shard->cut.state_sliced) ls_shard_acquire(shard, shard->check);
}
