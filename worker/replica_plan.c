/* What a rank's arena holds, in the order in which it lies there. */
#include "worker/replica_plan.h"

#include "worker/shard/shard.h"

/* Of a micro-batch: what a layer keeps of them is counted in 64 bits. */
static const int64_t tokens_most = INT64_C(1) << 28;

/* What shards (6) and activations (3) reserve for a layer; what the two other blocks leave of as many and that of two
 * more is enough for the rest. */
enum { BUFFERS_PER_LAYER_MAX = 9 };
_Static_assert((LS_CONFIG_LAYERS_MAX + 4) * BUFFERS_PER_LAYER_MAX <= LS_ARENA_BUFFERS_MAX,
               "the arena has too few buffers");

int64_t ls_replica_losses(const struct ls_config *config) {
    const bool fixed = config->train.reduction == LS_REDUCTION_FIXED;
    return fixed ? ls_config_slots(config, config->train.global_batch_size) : 1;
}

enum ls_code ls_replica_plan(const struct ls_config *config, const struct ls_model *model,
                             const struct ls_device *device, int64_t ranks, struct ls_arena_plan *plan,
                             struct ls_replica_layout *layout, struct ls_error *error) {
    const int64_t B = config->train.micro_batch_size, T = config->data.sequence_length, C = config->model.hidden_size;
    const int64_t ids = B * T * (int64_t)sizeof(int32_t), residual = B * T * C * ls_dtype_bytes(ls_model_dtype(model));
    if (B * T > tokens_most)
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_JOB,
            "model: train.micro_batch_size %lld x data.sequence_length %lld are %lld tokens, at most 2^28 are "
            "possible. Lower train.micro_batch_size.",
            (long long)B, (long long)T, (long long)(B * T));
    if (ls_device_info(device)->kind == LS_DEVICE_KIND_CUDA && config->model.head_dim > LS_GPU_HEAD_SIZE_MAX)
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_JOB,
            "model: heads are %lld channels wide (model.head_dim, or hidden_size / num_attention_heads), GPUs "
            "take at most %d. Use more and narrower heads, or set device: cpu.",
            (long long)config->model.head_dim, LS_GPU_HEAD_SIZE_MAX);
    const int64_t sent = ls_shard_matrix_slice_bytes(config, model, ranks);
    if (sent >= INT32_MAX)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "model: with optimizer.type: muon a rank sends its slice of a layer at once, here %lld bytes; "
                       "2^31 are too many. Use more ranks or fewer zero.replicas, or another optimizer.",
                       (long long)sent);
    layout->shard = ls_shard_plan(config, model, ranks, plan);
    layout->tables = ls_arena_reserve(plan, LS_MEMORY_PARAMETERS, ls_model_table_bytes(model));
    layout->scalars = ls_arena_reserve(plan, LS_MEMORY_SCALARS, sizeof(struct ls_replica_scalars));
    layout->losses = ls_arena_reserve(plan, LS_MEMORY_SCALARS, ls_replica_losses(config) * (int64_t)sizeof(double));
    layout->inputs = ls_arena_reserve(plan, LS_MEMORY_DATA, ids);
    layout->targets = ls_arena_reserve(plan, LS_MEMORY_DATA, ids);
    layout->document_start = ls_arena_reserve(plan, LS_MEMORY_DATA, ids);
    layout->activations = ls_activations_plan(config, model, plan);
    layout->stream_gradient = ls_arena_reserve(plan, LS_MEMORY_ACTIVATIONS, residual);
    layout->scratch = ls_arena_reserve(plan, LS_MEMORY_WORKSPACE, ls_model_scratch_bytes(model, device, B));
    if (plan->bytes == LS_ARENA_BYTES_MAX)
        return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB,
                       "memory: a rank would need more than 2^62 bytes. Lower train.micro_batch_size, set "
                       "activation_checkpointing.mode: full, or use a smaller model.");
    return LS_OK;
}
