/* Stage 0: every rank holds everything, gradients are summed block by block beside the rest of backward. */
#include "worker/shard/shard.h"

#include <stdlib.h>
#include <time.h>

/* Elements behind each of squared_norm's partial sums. */
enum { NORM_STRETCH = 1024 };

/* Buffers of a block in the arena's plan, after one another; scalars and the norm's scratch follow the last block's. */
enum { BUFFER_PARAMETERS, BUFFER_GRADIENTS, BUFFER_M, BUFFER_V, BUFFERS_PER_BLOCK };

struct shard_block {
    int64_t count, padded, decay_count;
    float *parameters, *gradients, *m, *v;
    struct ls_event *complete; /* on the compute stream: gradients of the step are */
    struct ls_event *reduced;  /* on the communication stream */
};

/* The scalars in device memory, each on a line of its own. */
struct scalars {
    double squared, parameters;
    float norm, factor, learning_rate;
    int32_t found_inf;
    int64_t step;
};

/* What is copied to the device before an update. */
struct update_inputs {
    float learning_rate;
    int64_t step;
};

struct ls_shard {
    const struct ls_config *config;
    struct ls_comm *comm;
    struct ls_stream *compute, *communication;
    struct scalars *scalars;      /* device */
    double *partial;              /* device */
    struct update_inputs *inputs; /* host, for asynchronous copies */
    struct ls_event *value_complete, *value_reduced;
    uint64_t wait_began_ns, waited_ns; /* written on the compute stream */
    int block_count;
    struct shard_block blocks[];
};

static int64_t padded_count(int64_t count, int64_t ranks) {
    return (count + ranks - 1) / ranks * ranks;
}

int ls_shard_plan(const struct ls_model *model, int64_t ranks, struct ls_arena_plan *plan) {
    int first = plan->count;
    int64_t largest = 0;
    for (int block = 0; block < ls_model_block_count(model); block++) {
        int64_t padded = padded_count(ls_model_block(model, block)->count, ranks);
        int64_t bytes = padded * (int64_t)sizeof(float);
        if (padded > largest) largest = padded;
        ls_arena_reserve(plan, LS_MEMORY_PARAMETERS, bytes);
        ls_arena_reserve(plan, LS_MEMORY_GRADIENTS, bytes);
        ls_arena_reserve(plan, LS_MEMORY_OPTIMIZER, bytes);
        ls_arena_reserve(plan, LS_MEMORY_OPTIMIZER, bytes);
    }
    ls_arena_reserve(plan, LS_MEMORY_SCALARS, sizeof(struct scalars));
    ls_arena_reserve(plan, LS_MEMORY_WORKSPACE, (largest + NORM_STRETCH - 1) / NORM_STRETCH * (int64_t)sizeof(double));
    return first;
}

int64_t ls_shard_wire_bytes(const struct ls_model *model, int64_t ranks, int block) {
    const int64_t bytes =
        block < 0 ? (int64_t)sizeof(double) : ls_model_block(model, block)->count * (int64_t)sizeof(float);
    return 2 * (ranks - 1) * bytes / ranks;
}

enum ls_code ls_shard_create(const struct ls_config *config, const struct ls_model *model, struct ls_comm *comm,
                             struct ls_stream *compute, struct ls_arena *arena, int first_buffer,
                             struct ls_shard **shard, struct ls_error *error) {
    int count = ls_model_block_count(model);
    struct ls_device *device = ls_stream_device(compute);
    struct ls_shard *made = calloc(1, sizeof *made + (size_t)count * sizeof made->blocks[0]);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the records of %d blocks", count);
    made->config = config;
    made->comm = comm;
    made->compute = compute;
    made->block_count = count;
    made->communication = ls_stream_create(device, true);
    made->inputs = ls_device_allocate_host(device, sizeof *made->inputs);
    made->value_complete = ls_event_create(device);
    made->value_reduced = ls_event_create(device);
    made->scalars = ls_arena_buffer(arena, first_buffer + count * BUFFERS_PER_BLOCK);
    made->partial = ls_arena_buffer(arena, first_buffer + count * BUFFERS_PER_BLOCK + 1);
    bool complete = made->communication && made->inputs && made->value_complete && made->value_reduced;
    for (int i = 0; i < count; i++) {
        struct shard_block *block = &made->blocks[i];
        const struct ls_block *shape = ls_model_block(model, i);
        int buffer = first_buffer + i * BUFFERS_PER_BLOCK;
        block->count = shape->count;
        block->padded = padded_count(shape->count, ls_comm_size(comm));
        block->decay_count = shape->decay_count;
        block->parameters = ls_arena_buffer(arena, buffer + BUFFER_PARAMETERS);
        block->gradients = ls_arena_buffer(arena, buffer + BUFFER_GRADIENTS);
        block->m = ls_arena_buffer(arena, buffer + BUFFER_M);
        block->v = ls_arena_buffer(arena, buffer + BUFFER_V);
        block->complete = ls_event_create(device);
        block->reduced = ls_event_create(device);
        complete &= block->complete && block->reduced;
    }
    if (!complete) {
        ls_shard_destroy(made);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for streams and events of %d blocks", count);
    }
    *shard = made;
    return LS_OK;
}

void ls_shard_destroy(struct ls_shard *shard) {
    if (!shard) return;
    if (shard->communication) ls_stream_destroy(shard->communication);
    for (int block = 0; block < shard->block_count; block++) {
        if (shard->blocks[block].complete) ls_event_destroy(shard->blocks[block].complete);
        if (shard->blocks[block].reduced) ls_event_destroy(shard->blocks[block].reduced);
    }
    if (shard->value_complete) ls_event_destroy(shard->value_complete);
    if (shard->value_reduced) ls_event_destroy(shard->value_reduced);
    if (shard->inputs) ls_device_free_host(ls_stream_device(shard->compute), shard->inputs);
    free(shard);
}

const float *ls_shard_acquire(struct ls_shard *shard, int block) {
    return shard->blocks[block].parameters;
}

/* Nothing was gathered at stage 0, so nothing is given up. */
void ls_shard_release(struct ls_shard *shard, int block) {
    (void)shard;
    (void)block;
}

float *ls_shard_gradients(struct ls_shard *shard, int block) {
    return shard->blocks[block].gradients;
}

/* Lets the communication stream go on with what `complete` marks on the compute stream. */
static void hand_over(struct ls_shard *shard, struct ls_event *complete) {
    ls_event_record(complete, shard->compute);
    ls_stream_wait(shard->communication, complete);
}

void ls_shard_reduce(struct ls_shard *shard, int index) {
    struct shard_block *block = &shard->blocks[index];
    hand_over(shard, block->complete);
    ls_comm_all_reduce_sum(shard->comm, shard->communication, block->gradients, block->count, LS_COMM_FLOAT, index);
    ls_event_record(block->reduced, shard->communication);
}

void ls_shard_reduce_value(struct ls_shard *shard, double *value) {
    hand_over(shard, shard->value_complete);
    ls_comm_all_reduce_sum(shard->comm, shard->communication, value, 1, LS_COMM_DOUBLE, -1);
    ls_event_record(shard->value_reduced, shard->communication);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static enum ls_code begin_waiting(const void *argument, struct ls_error *error) {
    (void)error;
    struct ls_shard *shard = *(struct ls_shard *const *)argument;
    shard->wait_began_ns = now_ns();
    return LS_OK;
}

static enum ls_code end_waiting(const void *argument, struct ls_error *error) {
    (void)error;
    struct ls_shard *shard = *(struct ls_shard *const *)argument;
    shard->waited_ns += now_ns() - shard->wait_began_ns;
    return LS_OK;
}

/* Makes the compute stream wait for a reduction, and measures on that stream how long it did. */
static void wait_for(struct ls_shard *shard, struct ls_event *reduced) {
    ls_stream_call(shard->compute, begin_waiting, &shard, sizeof shard);
    ls_stream_wait(shard->compute, reduced);
    ls_stream_call(shard->compute, end_waiting, &shard, sizeof shard);
}

struct ls_shard_scalars ls_shard_scalars(struct ls_shard *shard) {
    return (struct ls_shard_scalars){.norm = &shard->scalars->norm,
                                     .found_inf = &shard->scalars->found_inf,
                                     .parameters = &shard->scalars->parameters};
}

void ls_shard_update(struct ls_shard *shard, float learning_rate, int64_t step) {
    struct ls_stream *stream = shard->compute;
    struct scalars *scalars = shard->scalars;
    *shard->inputs = (struct update_inputs){.learning_rate = learning_rate, .step = step};
    ls_copy_to_device(stream, &scalars->learning_rate, &shard->inputs->learning_rate, sizeof scalars->learning_rate);
    ls_copy_to_device(stream, &scalars->step, &shard->inputs->step, sizeof scalars->step);
    ls_fill_zero(stream, &scalars->squared, sizeof scalars->squared);
    ls_fill_zero(stream, &scalars->found_inf, sizeof scalars->found_inf);
    wait_for(shard, shard->value_reduced);
    /* Reductions end in the order of backward: the last block's first. The sum has an order of its own. */
    for (int i = shard->block_count - 1; i >= 0; i--) {
        struct shard_block *block = &shard->blocks[i];
        wait_for(shard, block->reduced);
        ls_op(stream, squared_norm, .result = &scalars->squared, .input = block->gradients, .count = block->count,
              .partial = shard->partial, .dtype = LS_FP32);
    }
    ls_op(stream, clip, .factor = &scalars->factor, .norm = &scalars->norm, .found_inf = &scalars->found_inf,
          .squared = &scalars->squared, .maximum = (float)shard->config->train.gradient_clipping);
    for (int i = 0; i < shard->block_count; i++) {
        struct shard_block *block = &shard->blocks[i];
        ls_op(stream, adamw, .parameter = block->parameters, .m = block->m, .v = block->v, .gradient = block->gradients,
              .factor = &scalars->factor, .learning_rate = &scalars->learning_rate, .step = &scalars->step,
              .found_inf = &scalars->found_inf, .count = block->count, .decay_count = block->decay_count,
              .beta1 = (float)shard->config->optimizer.beta1, .beta2 = (float)shard->config->optimizer.beta2,
              .epsilon = (float)shard->config->optimizer.eps,
              .weight_decay = (float)shard->config->optimizer.weight_decay, .dtype = LS_FP32);
        ls_fill_zero(stream, block->gradients, (size_t)block->count * sizeof(float));
    }
    const struct shard_block *checked = &shard->blocks[step % shard->block_count];
    ls_fill_zero(stream, &scalars->parameters, sizeof scalars->parameters);
    ls_op(stream, squared_norm, .result = &scalars->parameters, .input = checked->parameters, .count = checked->count,
          .partial = shard->partial, .dtype = LS_FP32);
}

void ls_shard_await_value(struct ls_shard *shard) {
    wait_for(shard, shard->value_reduced);
}

enum ls_code ls_shard_synchronize(struct ls_shard *shard, struct ls_error *error) {
    return ls_stream_synchronize(shard->communication, error);
}

double ls_shard_exposed_seconds(const struct ls_shard *shard) {
    return 1e-9 * (double)shard->waited_ns;
}

static struct ls_shard_slice part_of(const struct shard_block *block, int64_t first, int64_t end) {
    if (end > block->count) end = block->count;
    if (first > end) first = end;
    return (struct ls_shard_slice){.first = first,
                                   .count = end - first,
                                   .parameters = block->parameters + first,
                                   .m = block->m + first,
                                   .v = block->v + first};
}

struct ls_shard_slice ls_shard_slice(struct ls_shard *shard, int block) {
    int64_t slice = shard->blocks[block].padded / ls_comm_size(shard->comm);
    int64_t first = slice * ls_comm_rank(shard->comm);
    return part_of(&shard->blocks[block], first, first + slice);
}

struct ls_shard_slice ls_shard_held(struct ls_shard *shard, int block) {
    return part_of(&shard->blocks[block], 0, shard->blocks[block].count);
}
