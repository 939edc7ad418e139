/* Counts bytes, operations and traffic. */
#include "worker/plan.h"

#include "worker/comm/nccl.h"
#include "worker/data/prefetch.h"
#include "worker/model/model.h"
#include "worker/optim/muon.h"
#include "worker/replica_plan.h"
#include "worker/shard/shard.h"
#include "worker/checkpoint/save.h"
#include "worker/snapshot.h"
#include "worker/trainer.h"

#include <stdlib.h>

const char *ls_plan_host_name(enum ls_plan_host row) {
    static const char *const names[LS_PLAN_HOST_ROWS] = {"batches read ahead", "evaluation batches",
                                                         "checkpoint staging"};
    return names[row];
}

static int64_t divide_up(int64_t a, int64_t b) {
    return a / b + (a % b != 0);
}

/* Sums of gradients in bf16 between ranks are made in memory of their own on GPUs. */
static int64_t comm_bytes(const struct ls_config *config, int64_t ranks) {
    return ranks > 1 && config->zero.gradient_dtype == LS_GRADIENT_BF16 ? LS_NCCL_WORKSPACE_BYTES : 0;
}

static enum ls_code plan_arena(const struct ls_config *config, const struct ls_model *model, bool gpu,
                               struct ls_plan *plan, struct ls_activations *activations, struct ls_error *error) {
    struct ls_arena_plan *arena = calloc(1, sizeof *arena);
    struct ls_device *device = NULL;
    struct ls_replica_layout layout = {0};
    if (!arena) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "plan: no memory for the list of buffers. Free some.");
    enum ls_code code =
        gpu ? ls_device_create_planned_cuda(&device, error) : ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, error);
    if (!code) code = ls_replica_plan(config, model, device, plan->ranks, arena, &layout, error);
    if (!code) {
        *activations = layout.activations;
        plan->arena_bytes = arena->bytes;
        for (int category = 0; category < LS_MEMORY_CATEGORIES; category++)
            plan->category_bytes[category] = arena->category_bytes[category];
    }
    if (!code && gpu) {
        plan->arena_bytes += comm_bytes(config, plan->ranks);
        plan->category_bytes[LS_MEMORY_WORKSPACE] += comm_bytes(config, plan->ranks);
    }
    if (device) ls_device_destroy(device);
    free(arena);
    return code;
}

static void plan_host(const struct ls_config *config, const struct ls_model *model, bool gpu, struct ls_plan *plan) {
    const struct ls_prefetch_options ring = {.world_size = (int)plan->ranks,
                                             .sequence_length = config->data.sequence_length,
                                             .micro_batch = config->train.micro_batch_size,
                                             .global_batch_max = config->train.global_batch_size,
                                             .depth = LS_TRAINER_PREFETCH_DEPTH};
    const bool evaluates = config->evaluation.every_steps > 0 && config->data.validation_count > 0;
    plan->host_row_bytes[LS_PLAN_PREFETCH] = (int64_t)ls_prefetch_bytes(&ring);
    plan->host_row_bytes[LS_PLAN_EVALUATION] = evaluates ? (int64_t)ls_prefetch_bytes(&ring) : 0;
    plan->host_row_bytes[LS_PLAN_CHECKPOINT] = ls_snapshot_host_bytes(config, model, plan->ranks, gpu);
    plan->checkpoint_bytes = ls_checkpoint_bytes(config, model, plan->ranks);
    for (int row = 0; row < LS_PLAN_HOST_ROWS; row++) plan->host_bytes += plan->host_row_bytes[row];
}

/* Forward of `rows` rows through a block. A product of a row with a matrix takes 2 operations an element, the causal
 * half of attention 2 Q T a row. Traffic: parameters are read, what backward needs is written, the residual stream read
 * and written. */
struct pass {
    double matrix_bytes, gradient_bytes, flops, attention_flops, saved_bytes, recomputed_bytes, bytes;
};

static struct pass forward_of(const struct ls_config *config, const struct ls_model *model, int block, double rows) {
    const struct ls_block *shape = ls_model_block(model, block);
    const double length = (double)config->data.sequence_length, width = (double)config->model.hidden_size;
    const double element = (double)ls_dtype_bytes(ls_model_dtype(model));
    double matrix = 0;
    struct pass pass = {.saved_bytes = (double)ls_model_saved_bytes(model, block, 1) * rows / length,
                        .recomputed_bytes = (double)ls_model_recomputed_bytes(model, block, 1) * rows / length};
    if (shape->kind == LS_BLOCK_LAYER) {
        matrix = (double)shape->decay_count;
        pass.attention_flops = rows * 2 * (double)(config->model.num_attention_heads * config->model.head_dim) * length;
    } else if (shape->kind == LS_BLOCK_HEAD) {
        matrix = (double)config->model.vocab_size * width;
    }
    pass.matrix_bytes = matrix * element;
    pass.gradient_bytes = matrix * sizeof(float);
    pass.flops = rows * 2 * matrix + pass.attention_flops;
    pass.bytes = pass.matrix_bytes + pass.saved_bytes + pass.recomputed_bytes + 2 * rows * width * element;
    return pass;
}

/* Whether every micro-batch's gradients are sent, and not the step's sums alone. */
static bool reduces_always(const struct ls_config *config) {
    if (config->train.reduction == LS_REDUCTION_FIXED) return false;
    return config->zero.stage >= 2 || (config->zero.stage == 1 && config->zero.accumulate == LS_ACCUMULATE_SHARDED);
}

/* Stage 3 gathers a layer for its forward and, but for the last one, which is still there, for its backward, along with
 * those that are computed again before it. A reduction within a group sends the elements that a gather does, in the
 * gradients' type. */
static void plan_wire(const struct ls_config *config, const struct ls_model *model,
                      const struct ls_activations *activations, int block, int64_t ranks, struct ls_cost_block *cost) {
    const int layers = ls_model_block_count(model) - 2;
    if (config->zero.stage == 0) return;
    const int64_t gathered = ls_shard_gather_bytes(config, model, ranks, block);
    const int64_t elements = gathered / ls_dtype_bytes(ls_model_dtype(model));
    const bool narrow = config->zero.gradient_dtype == LS_GRADIENT_BF16;
    if (reduces_always(config)) cost->reduce_bytes = (double)elements * (narrow ? sizeof(uint16_t) : sizeof(float));
    cost->forward_gather_bytes = (double)gathered;
    if (config->zero.stage < 3 || block < 1 || block >= layers) return;
    cost->backward_gather_bytes = cost->forward_gather_bytes;
    for (int again = ls_activations_forward_again(activations, block); again < block; again++)
        cost->backward_gather_bytes += (double)ls_shard_gather_bytes(config, model, ranks, again);
}

/* One micro-batch. Backward takes twice the operations of forward, reads the parameters, and reads and writes their
 * gradients. What activation checkpointing computes again is a part of it: whole layers, of the block's own all but the
 * last product, or what is not a product with parameters. */
static struct ls_cost_block plan_block(const struct ls_config *config, const struct ls_model *model,
                                       const struct ls_activations *activations, int block, int64_t ranks,
                                       double rows) {
    const struct pass forward = forward_of(config, model, block, rows);
    struct ls_cost_block cost = {.forward_flops = forward.flops,
                                 .backward_flops = 2 * forward.flops,
                                 .forward_bytes = forward.bytes,
                                 .backward_bytes = forward.bytes + 2 * forward.gradient_bytes,
                                 .last_reduce_bytes = (double)ls_shard_reduce_bytes(config, model, ranks, block)};
    const int again = ls_activations_forward_again(activations, block);
    for (int other = again; other < block; other++) {
        const struct pass pass = forward_of(config, model, other, rows);
        cost.backward_flops += pass.flops;
        cost.backward_bytes += pass.bytes;
    }
    if (again <= block) {
        const double last = (double)(config->model.hidden_size * config->model.intermediate_size);
        cost.backward_flops += forward.flops - rows * 2 * last;
        cost.backward_bytes += forward.bytes;
    } else if (ls_activations_recompute(activations, block)) {
        cost.backward_flops += forward.attention_flops;
        cost.backward_bytes += forward.saved_bytes + forward.recomputed_bytes;
    }
    plan_wire(config, model, activations, block, ranks, &cost);
    return cost;
}

/* Norm: 4 bytes a parameter. AdamW: reads 16, writes 12, and a copy of another type; rules without a second moment read
 * and write 4 less each, and so do all without a master, but for the copy. Zeroing the gradient: 4. Muon's matrices
 * have no second moment, and a direction that is written and read. */
static double update_bytes(const struct ls_config *config, const struct ls_model *model) {
    const enum ls_dtype dtype = ls_model_dtype(model);
    const double copy = (double)ls_dtype_bytes(dtype);
    double with_second = 0, all = (double)ls_model_parameter_count(model);
    for (int i = 0; i < ls_model_block_count(model); i++) {
        const struct ls_block *block = ls_model_block(model, i);
        with_second += (double)(block->count - ls_second_moment_from(config, block));
    }
    const double directions = config->optimizer.type == LS_MUON ? 2 * (double)ls_dtype_bytes(ls_muon_dtype(config)) : 0;
    const double moments = 16 * with_second + (8 + directions) * (all - with_second);
    if (config->optimizer.stochastic_rounding) return (12 + 2 * copy) * all + moments;
    return (20 + (dtype == LS_FP32 ? 0 : copy)) * all + moments;
}

static enum ls_code plan_work(const struct ls_config *config, const struct ls_model *model,
                              const struct ls_activations *activations, struct ls_plan *plan, struct ls_error *error) {
    const int count = ls_model_block_count(model);
    struct ls_cost_block *blocks = calloc((size_t)count, sizeof *blocks);
    if (!blocks) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "plan: no memory for %d blocks. Free some.", count);
    const double rows = (double)plan->sequences * (double)config->data.sequence_length / (double)plan->micro_batches;
    const double tokens = (double)config->train.global_batch_size * (double)config->data.sequence_length;
    plan->flops_per_step = ls_model_flops_per_token(model) * tokens;
    const struct ls_shard_wire wire = ls_shard_wire_bytes(config, model, plan->ranks);
    plan->wire_bytes = wire.gradients + wire.parameters + wire.scalars + wire.matrices;
    for (int block = 0; block < count; block++) {
        blocks[block] = plan_block(config, model, activations, block, plan->ranks, rows);
        plan->flops_of_rank += blocks[block].forward_flops + blocks[block].backward_flops;
    }
    plan->flops_of_rank *= (double)plan->micro_batches;
    const int64_t slices = config->zero.stage > 0 ? plan->ranks / ls_shard_replicas(config) : 1;
    plan->work = (struct ls_cost_work){.blocks = blocks,
                                       .block_count = count,
                                       .micro_batches = plan->micro_batches,
                                       .gathers_always = config->zero.stage == 3,
                                       .update_bytes = update_bytes(config, model) / (double)slices,
                                       .update_flops = ls_shard_update_flops(config, model, plan->ranks),
                                       .update_wire_bytes = (double)wire.matrices};
    return LS_OK;
}

enum ls_code ls_plan_make(const struct ls_config *config, int64_t ranks, bool gpu, struct ls_plan *plan,
                          struct ls_error *error) {
    struct ls_model *model;
    struct ls_activations activations;
    enum ls_code code = ls_config_check_ranks(config, ranks, error);
    if (!code) code = ls_model_create(config, &model, error);
    *plan = (struct ls_plan){0};
    if (code) return code;
    *plan = (struct ls_plan){.ranks = ranks, .parameters = ls_model_parameter_count(model)};
    plan->sequences = divide_up(config->train.global_batch_size, ranks);
    plan->micro_batches = ls_config_micro_batches(config, config->train.global_batch_size, ranks);
    code = plan_arena(config, model, gpu, plan, &activations, error);
    if (!code) code = plan_work(config, model, &activations, plan, error);
    if (!code) plan_host(config, model, gpu, plan);
    ls_model_destroy(model);
    return code;
}

void ls_plan_release(struct ls_plan *plan) {
    free((void *)plan->work.blocks);
    plan->work.blocks = NULL;
}

int64_t ls_plan_bytes(const struct ls_plan *plan, bool gpu) {
    return gpu ? plan->arena_bytes : plan->arena_bytes + plan->host_bytes;
}
