/* The shards' life, their waits, and what checkpoints see of them. */
#include "worker/shard/shard.h"

#include "worker/checkpoint/save.h"
#include "worker/optim/muon.h"
#include "worker/shard/state.h"

#include <stdlib.h>

enum { FIRST_BYTES_MOST = 32 << 20, FIRST_BYTES_SHARED = 64 << 10 };

/* The communicators take of the GPU what they need for collectives of the kinds that a step has, up to about the
 * largest block's size: before the arena takes what is left, and counted apart from it. */
static enum ls_code warm_up(const struct ls_config *config, const struct ls_shard_comms *comms,
                            struct ls_error *error) {
    const bool fixed = config->train.reduction == LS_REDUCTION_FIXED, slices = config->zero.stage > 0 || fixed,
               whole = config->optimizer.type == LS_MUON && config->zero.stage > 0,
               pairs = fixed || whole || config->zero.gradient_dtype == LS_GRADIENT_BF16;
    const int64_t limit = config->gpu.share ? FIRST_BYTES_SHARED : FIRST_BYTES_MOST,
                  largest = config->model.vocab_size * config->model.hidden_size * (int64_t)sizeof(float);
    struct ls_comm *const all[] = {comms->world, comms->group != comms->world ? comms->group : NULL, comms->across};
    enum ls_code code = LS_OK;
    for (size_t i = 0; i < sizeof all / sizeof *all && !code; i++)
        if (all[i]) code = ls_comm_warm_up(all[i], largest < limit ? largest : limit, slices, pairs, error);
    return code;
}

enum ls_code ls_shard_comms_create(const struct ls_config *config, struct ls_comm *world, struct ls_shard_comms *comms,
                                   struct ls_error *error) {
    const int replicas = (int)ls_shard_replicas(config), ranks = ls_comm_size(world) / replicas;
    struct ls_shard_comms made = {.world = world, .group = world};
    enum ls_code code = LS_OK;
    if (replicas > 1) {
        const int rank = ls_comm_rank(world);
        code = ls_comm_split(world, rank / ranks, rank, &made.group, error);
        if (!code) code = ls_comm_split(world, rank % ranks, rank, &made.across, error);
    }
    if (!code) code = warm_up(config, &made, error);
    if (code) {
        ls_shard_comms_destroy(&made);
        return code;
    }
    *comms = made;
    return LS_OK;
}

void ls_shard_comms_destroy(struct ls_shard_comms *comms) {
    if (comms->group != comms->world) ls_comm_destroy(comms->group);
    ls_comm_destroy(comms->across);
    *comms = (struct ls_shard_comms){0};
}

/* Notes that `made` was to be made; false when it could not be. */
static bool create_event(struct ls_device *device, struct ls_event **event) {
    *event = ls_event_create(device);
    return *event != NULL;
}

static bool create_events(struct ls_shard *shard, struct ls_device *device) {
    struct ls_event **const single[] = {&shard->value_complete, &shard->value_reduced, &shard->norm_complete,
                                        &shard->norm_gathered,  &shard->updated,       &shard->whole.complete,
                                        &shard->whole.exchanged};
    bool complete = true;
    for (size_t i = 0; i < sizeof single / sizeof *single; i++) complete &= create_event(device, single[i]);
    for (int slot = 0; slot < POOL_SLOTS; slot++) {
        complete &= create_event(device, &shard->passing[slot].idle);
        complete &= create_event(device, &shard->gathered[slot].ready);
        complete &= create_event(device, &shard->gathered[slot].idle);
    }
    for (int block = 0; block < shard->block_count; block++) {
        complete &= create_event(device, &shard->blocks[block].complete);
        complete &= create_event(device, &shard->blocks[block].reduced);
        complete &= create_event(device, &shard->blocks[block].gathered);
    }
    return complete;
}

static struct shard_block describe_block(const struct ls_shard *shard, const struct ls_block *shape) {
    const int64_t second_from = ls_second_moment_from(shard->config, shape);
    struct shard_block block = ls_shard_describe_block(shard->config, &shard->cut, shape);
    block.own_first = shard->index * block.slice < block.count ? shard->index * block.slice : block.count;
    const int64_t left = block.count - block.own_first;
    block.own_count = left < block.slice ? left : block.slice;
    block.second_first = block.own_first > second_from ? block.own_first : second_from;
    return block;
}

enum ls_code ls_shard_create(const struct ls_config *config, const struct ls_model *model,
                             const struct ls_shard_comms *comms, struct ls_stream *compute, struct ls_arena *arena,
                             int first_buffer, struct ls_shard **shard, struct ls_error *error) {
    const int count = ls_model_block_count(model);
    struct ls_device *device = ls_stream_device(compute);
    struct ls_shard *made = calloc(1, sizeof *made + (size_t)count * sizeof made->blocks[0]);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the records of %d blocks", count);
    made->config = config;
    made->model = model;
    made->comms = *comms;
    made->compute = compute;
    made->cut = ls_shard_cut(config, ls_comm_size(comms->world));
    made->index = made->cut.state_sliced ? ls_comm_rank(comms->group) : 0;
    made->check = -1;
    made->block_count = count;
    struct ls_shard_placer placer = {.arena = arena, .next = first_buffer};
    for (int block = 0; block < count; block++) {
        made->blocks[block] = describe_block(made, ls_model_block(model, block));
        ls_shard_place_block(&placer, &made->cut, &made->blocks[block]);
    }
    ls_shard_place_rest(&placer, model, &made->cut, made);
    const bool fixed = ls_shard_create_fixed(made), whole = ls_shard_create_whole(made);
    ls_gather_pool_clear(&made->pool);
    made->communication = ls_stream_create(device, true);
    made->inputs = ls_device_allocate_host(device, sizeof *made->inputs);
    if (!create_events(made, device) || !made->communication || !made->inputs || !fixed || !whole) {
        ls_shard_destroy(made);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for streams and events of %d blocks", count);
    }
    *shard = made;
    return LS_OK;
}

void ls_shard_set_watch(struct ls_shard *shard, struct ls_progress_record *record) {
    shard->watch = record;
}

static void destroy_event(struct ls_event *event) {
    if (event) ls_event_destroy(event);
}

void ls_shard_destroy(struct ls_shard *shard) {
    if (!shard) return;
    if (shard->communication) ls_stream_destroy(shard->communication);
    ls_shard_destroy_fixed(shard);
    ls_shard_destroy_whole(shard);
    for (int block = 0; block < shard->block_count; block++) {
        destroy_event(shard->blocks[block].complete);
        destroy_event(shard->blocks[block].reduced);
        destroy_event(shard->blocks[block].gathered);
    }
    for (int slot = 0; slot < POOL_SLOTS; slot++) {
        destroy_event(shard->passing[slot].idle);
        destroy_event(shard->gathered[slot].ready);
        destroy_event(shard->gathered[slot].idle);
    }
    destroy_event(shard->value_complete);
    destroy_event(shard->value_reduced);
    destroy_event(shard->norm_complete);
    destroy_event(shard->norm_gathered);
    destroy_event(shard->updated);
    destroy_event(shard->whole.complete);
    destroy_event(shard->whole.exchanged);
    if (shard->inputs) ls_device_free_host(ls_stream_device(shard->compute), shard->inputs);
    free(shard);
}

void ls_shard_hand_over(struct ls_shard *shard, struct ls_event *complete) {
    ls_event_record(complete, shard->compute);
    ls_stream_wait(shard->communication, complete);
}

void ls_shard_wait_for(struct ls_shard *shard, struct ls_event *event) {
    ls_stream_wait_measured(shard->compute, event);
    shard->awaited = event;
}

enum ls_code ls_shard_check(struct ls_shard *shard, struct ls_error *error) {
    return shard->awaited ? ls_event_synchronize(shard->awaited, error) : LS_OK;
}

double ls_shard_exposed_seconds(const struct ls_shard *shard) {
    return ls_stream_waited_seconds(shard->compute);
}

struct ls_shard_scalars ls_shard_scalars(struct ls_shard *shard) {
    return (struct ls_shard_scalars){.norm = &shard->scalars->norm,
                                     .found_inf = &shard->scalars->found_inf,
                                     .parameters = &shard->scalars->parameters};
}

/* Where element `first` of the block is in `values`, which holds the whole block, or the own slice. */
static float *element(const struct shard_block *block, float *values, bool sliced, int64_t first) {
    return values + (sliced ? first - block->own_first : first);
}

struct ls_shard_slice ls_shard_slice(struct ls_shard *shard, int index) {
    const struct shard_block *block = &shard->blocks[index];
    const struct ls_shard_cut *cut = &shard->cut;
    struct ls_shard_slice slice;
    ls_checkpoint_slice(block->count, ls_comm_rank(shard->comms.world), ls_comm_size(shard->comms.world),
                        ls_shard_replicas(shard->config), ls_shard_slice_unit(shard->config), &slice.first,
                        &slice.count);
    slice.master = cut->master_apart ? (char *)block->master : (char *)ls_shard_own_parameters(cut, block);
    slice.master = (char *)slice.master +
                   (slice.first - block->own_first) * (cut->master_apart ? cut->state_bytes : cut->parameter_bytes);
    slice.m = element(block, block->m, cut->state_sliced, slice.first);
    slice.v = block->v && slice.first + slice.count > block->second_first
                  ? block->v + (slice.first > block->second_first ? slice.first - block->second_first : 0)
                  : NULL;
    return slice;
}

struct ls_shard_held ls_shard_held(struct ls_shard *shard, int index) {
    const struct shard_block *block = &shard->blocks[index];
    ls_gather_pool_clear(&shard->pool);
    const bool sliced = shard->cut.parameters_sliced;
    return (struct ls_shard_held){.first = sliced ? block->own_first : 0,
                                  .count = sliced ? block->own_count : block->count,
                                  .parameters = block->parameters,
                                  .scratch_count = block->slice,
                                  .master = block->master,
                                  .state_first = block->own_first,
                                  .state_count = block->own_count,
                                  .m = block->m,
                                  .second_first = block->second_first,
                                  .v = block->v};
}
