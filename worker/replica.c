/* The replica's memory, the walk over the blocks and back, and where reductions start. */
#include "worker/replica.h"

#include "common/log.h"
#include "worker/choices.h"
#include "worker/replica_plan.h"
#include "worker/shard/tree.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

/* Their host side. */
struct replica_staging {
    float gradient_scale;
    double own_loss, parameters;
    float norm;
    int32_t found_inf;
};

struct ls_replica {
    const struct ls_config *config;
    struct ls_device *device;
    struct ls_model *model;
    struct ls_stream *stream;
    struct ls_arena *arena;
    struct ls_shard_comms comms;
    struct ls_shard *shard;
    struct ls_progress_record *progress;
    struct replica_staging *staging;
    struct ls_replica_scalars *scalars;
    bool fixed;                   /* train.reduction */
    bool refused;                 /* the update of this step changes nothing */
    int64_t loss_count;           /* 1, or slots at most */
    double *losses;               /* device, [loss_count] */
    double *summed_losses;        /* their host side */
    int64_t first_slot, end_slot; /* this rank's so far */
    int32_t *inputs, *targets, *document_start;
    bool documents; /* the micro-batch has a document boundary */
    void *stream_gradient;
    void *tables, *scratch;
    struct ls_replica_layout layout;
    struct ls_loss_scale loss_scale;
    int64_t bytes, comms_bytes;
    uint64_t step, micro_batch; /* for the progress */
};

static enum ls_code allocate_memory(struct ls_replica *replica, struct ls_error *error) {
    struct ls_arena_plan *plan = calloc(1, sizeof *plan);
    if (!plan) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the plan of the arena");
    enum ls_code code = ls_replica_plan(replica->config, replica->model, replica->device,
                                        ls_comm_size(replica->comms.world), plan, &replica->layout, error);
    replica->bytes = plan->bytes;
#ifdef LS_DEBUG
    plan->guarded = true;
#endif
    if (!code) code = ls_arena_create(replica->device, plan, &replica->arena, error);
    free(plan);
    if (code) return code;
    const struct ls_replica_layout *layout = &replica->layout;
    replica->tables = ls_arena_buffer(replica->arena, layout->tables);
    replica->scalars = ls_arena_buffer(replica->arena, layout->scalars);
    replica->losses = ls_arena_buffer(replica->arena, layout->losses);
    replica->inputs = ls_arena_buffer(replica->arena, layout->inputs);
    replica->targets = ls_arena_buffer(replica->arena, layout->targets);
    replica->document_start = ls_arena_buffer(replica->arena, layout->document_start);
    replica->stream_gradient = ls_arena_buffer(replica->arena, layout->stream_gradient);
    replica->scratch = ls_arena_buffer(replica->arena, layout->scratch);
    code = ls_shard_create(replica->config, replica->model, &replica->comms, replica->stream, replica->arena,
                           layout->shard, &replica->shard, error);
    if (!code) ls_shard_set_watch(replica->shard, replica->progress);
    return code;
}

enum ls_code ls_replica_create(const struct ls_config *config, struct ls_device *device, struct ls_comm *comm,
                               struct ls_progress_record *progress, struct ls_replica **replica,
                               struct ls_error *error) {
    struct ls_replica *made = calloc(1, sizeof *made);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the replica's records");
    /* First, while nothing else can have failed on one rank alone. */
    const int64_t free_before = ls_device_free_bytes(device);
    enum ls_code code = ls_shard_comms_create(config, comm, &made->comms, error);
    if (code) {
        free(made);
        return code;
    }
    made->comms_bytes = free_before - ls_device_free_bytes(device);
    made->config = config;
    made->device = device;
    made->progress = progress;
    made->loss_scale = ls_loss_scale_first(config->precision);
    made->stream = ls_stream_create(device, false);
    made->fixed = config->train.reduction == LS_REDUCTION_FIXED;
    made->loss_count = ls_replica_losses(config);
    made->staging = ls_device_allocate_host(device, sizeof *made->staging);
    made->summed_losses = ls_device_allocate_host(device, (size_t)made->loss_count * sizeof(double));
    ls_device_set_fixed(device, made->fixed);
    if (!made->stream || !made->staging || !made->summed_losses)
        code = ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the compute stream");
    if (!code) code = ls_model_create(config, &made->model, error);
    if (!code) code = allocate_memory(made, error);
    if (!code) code = ls_model_fill_tables(made->model, made->stream, made->tables, error);
    if (code) {
        ls_replica_destroy(made);
        return code;
    }
    *replica = made;
    return LS_OK;
}

void ls_replica_destroy(struct ls_replica *replica) {
    if (!replica) return;
    ls_shard_destroy(replica->shard);
    if (replica->stream) ls_stream_destroy(replica->stream);
    assert(!replica->arena || ls_arena_check(replica->arena, NULL) == LS_OK);
    ls_arena_destroy(replica->arena);
    ls_model_destroy(replica->model);
    ls_shard_comms_destroy(&replica->comms);
    if (replica->staging) ls_device_free_host(replica->device, replica->staging);
    if (replica->summed_losses) ls_device_free_host(replica->device, replica->summed_losses);
    free(replica);
}

const struct ls_model *ls_replica_model(const struct ls_replica *replica) {
    return replica->model;
}
struct ls_shard *ls_replica_shard(struct ls_replica *replica) {
    return replica->shard;
}
struct ls_stream *ls_replica_stream(struct ls_replica *replica) {
    return replica->stream;
}
struct ls_arena *ls_replica_arena(struct ls_replica *replica) {
    return replica->arena;
}
struct ls_loss_scale *ls_replica_loss_scale(struct ls_replica *replica) {
    return &replica->loss_scale;
}
int64_t ls_replica_bytes(const struct ls_replica *replica) {
    return replica->bytes;
}
int64_t ls_replica_comms_bytes(const struct ls_replica *replica) {
    return replica->comms_bytes;
}

/* Parameters of another type than fp32 from initial values, which are made in the scratch, and the master, where there
 * is one, from the same. */
static void initialize_low_precision(struct ls_replica *replica, int block, const struct ls_shard_held *held) {
    const enum ls_dtype dtype = ls_model_dtype(replica->model);
    const uint64_t seed = replica->config->train.seed;
    for (int64_t done = 0; done < held->count; done += held->scratch_count) {
        const int64_t left = held->count - done, count = left < held->scratch_count ? left : held->scratch_count;
        ls_model_initialize(replica->model, block, held->first + done, count, seed, replica->stream, held->m);
        ls_op(replica->stream, convert, .output = (char *)held->parameters + done * ls_dtype_bytes(dtype),
              .input = held->m, .count = count, .dtype = dtype);
    }
    ls_fill_zero(replica->stream, held->m, (size_t)held->scratch_count * sizeof *held->m);
    if (held->master)
        ls_model_initialize(replica->model, block, held->state_first, held->state_count, seed, replica->stream,
                            held->master);
}

void ls_replica_initialize(struct ls_replica *replica) {
    for (int block = 0; block < ls_model_block_count(replica->model); block++) {
        const struct ls_shard_held held = ls_shard_held(replica->shard, block);
        if (ls_model_dtype(replica->model) == LS_FP32)
            ls_model_initialize(replica->model, block, held.first, held.count, replica->config->train.seed,
                                replica->stream, held.parameters);
        else
            initialize_low_precision(replica, block, &held);
    }
}

static void mark(struct ls_replica *replica, enum ls_phase phase, int block) {
    if (replica->progress)
        ls_progress_mark(replica->progress, phase, replica->step, replica->micro_batch, (uint64_t)block);
}

void ls_replica_begin(struct ls_replica *replica, int64_t step, int64_t targets, int64_t sequences) {
    replica->step = (uint64_t)step;
    replica->micro_batch = 0;
    const double scale = replica->loss_scale.factor ? (double)replica->loss_scale.factor : 1.0;
    replica->staging->gradient_scale = targets > 0 ? (float)(scale / (double)targets) : 0.0f;
    ls_copy_to_device(replica->stream, &replica->scalars->gradient_scale, &replica->staging->gradient_scale,
                      sizeof replica->scalars->gradient_scale);
    ls_fill_zero(replica->stream, replica->losses, (size_t)replica->loss_count * sizeof(double));
    replica->first_slot = replica->end_slot = 0;
    ls_shard_begin(replica->shard, sequences);
}

/* Where the micro-batch's losses are added. */
static double *own_loss(struct ls_replica *replica) {
    return &replica->losses[replica->fixed && replica->end_slot > 0 ? replica->end_slot - 1 : 0];
}

static struct ls_block_pass pass_of(struct ls_replica *replica, int64_t sequences, int block) {
    const struct ls_activations *activations = &replica->layout.activations;
    return (struct ls_block_pass){
        .stream = replica->stream,
        .sequences = sequences,
        .length = replica->config->data.sequence_length,
        .tables = replica->tables,
        .tokens = replica->inputs,
        .targets = replica->targets,
        .document_start = replica->documents ? replica->document_start : NULL,
        .input = block > 0 ? ls_activations_output(activations, replica->arena, block - 1) : NULL,
        .output = block < ls_model_block_count(replica->model) - 1
                      ? ls_activations_output(activations, replica->arena, block)
                      : NULL,
        .saved = ls_activations_saved(activations, replica->arena, block),
        .recomputed = ls_activations_recomputed(activations, replica->arena, block),
        .scratch = replica->scratch,
        .loss = own_loss(replica),
        .gradient_scale = &replica->scalars->gradient_scale,
    };
}

/* A layer and the head of the largest micro-batch, forward and backward, and the update. Parameters and their gradients
 * lie at the arena's beginning: what counts is where they are to one another. */
static void rehearse(struct ls_replica *replica) {
    const int64_t sequences = replica->config->train.micro_batch_size;
    void *parameters = ls_arena_buffer(replica->arena, 0);
    struct ls_block_pass pass = pass_of(replica, sequences, 1);
    pass.parameters = parameters;
    pass.gradients = parameters;
    pass.stream_gradient = replica->stream_gradient;
    ls_block_forward(replica->model, 1, &pass);
    ls_block_backward(replica->model, 1, &pass);
    pass = pass_of(replica, sequences, ls_model_block_count(replica->model) - 1);
    pass.parameters = pass.tied_parameters = parameters;
    pass.gradients = pass.tied_gradients = parameters;
    pass.stream_gradient = replica->stream_gradient;
    ls_head_loss(replica->model, &pass);
    ls_shard_rehearse(replica->shard);
}

/* Rank 0's choice: that of an earlier attempt, if it still fits. */
static void make_choices(struct ls_replica *replica, const char *run_directory, void **choices, int64_t *bytes,
                         struct ls_error *error) {
    *choices = run_directory ? ls_choices_read(run_directory, bytes) : NULL;
    if (*choices && ls_device_recall(replica->device, *choices, *bytes)) {
        ls_log(LS_LOG_INFO, "products and attention are computed as the run's first attempt chose");
        return;
    }
    free(*choices);
    *choices = NULL;
    *bytes = 0;
    if (!ls_device_choose(replica->device, choices, bytes, error) && run_directory)
        ls_choices_write(run_directory, *choices, *bytes);
}

/* For all. */
static enum ls_code share_choices(struct ls_replica *replica, const char *run_directory, struct ls_error *error) {
    struct ls_comm *comm = replica->comms.world;
    struct ls_error own = {.code = LS_OK};
    void *choices = NULL;
    int64_t bytes = 0;
    int failed_rank;
    if (ls_comm_rank(comm) == 0) make_choices(replica, run_directory, &choices, &bytes, &own);
    enum ls_code code = ls_comm_broadcast(comm, &bytes, sizeof bytes, 0, error);
    if (!code && ls_comm_rank(comm) != 0 && bytes > 0 && !(choices = malloc((size_t)bytes)))
        ls_fail(&own, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for %lld bytes of choices", (long long)bytes);
    if (!code) code = ls_comm_agree(comm, &own, &failed_rank, error);
    if (!code && bytes > 0) code = ls_comm_broadcast(comm, choices, bytes, 0, error);
    bool whole = true;
    if (!code) ls_device_adopt(replica->device, choices, bytes, &whole, &own);
    free(choices);
    if (!code) code = ls_comm_agree(comm, &own, &failed_rank, error);
    uint64_t without = !whole;
    if (!code) code = ls_comm_sum_u64(comm, &without, 1, error);
    if (!code && without > 0) ls_device_abandon(replica->device);
    return code;
}

enum ls_code ls_replica_tune(struct ls_replica *replica, const char *run_directory, struct ls_error *error) {
    if (ls_device_info(replica->device)->kind == LS_DEVICE_KIND_CPU) return LS_OK;
    ls_device_rehearse(replica->device, true);
    rehearse(replica);
    ls_device_rehearse(replica->device, false);
    enum ls_code code = share_choices(replica, replica->fixed ? NULL : run_directory, error);
    if (!code) code = ls_arena_clear(replica->arena, replica->stream, error);
    return code ? code : ls_model_fill_tables(replica->model, replica->stream, replica->tables, error);
}

static bool any_set(const int32_t *values, size_t count) {
    int32_t bits = 0;
    for (size_t i = 0; i < count; i++) bits |= values[i];
    return bits != 0;
}

static void copy_batch(struct ls_replica *replica, const struct ls_micro_batch *batch) {
    assert(batch->sequences <= replica->config->train.micro_batch_size);
    if (batch->sequences > 0) {
        if (replica->end_slot == 0) replica->first_slot = batch->slot;
        replica->end_slot = batch->slot + 1;
    }
    size_t bytes = (size_t)(batch->sequences * replica->config->data.sequence_length) * sizeof(int32_t);
    ls_copy_to_device(replica->stream, replica->inputs, batch->inputs, bytes);
    ls_copy_to_device(replica->stream, replica->targets, batch->targets, bytes);
    /* Without a boundary or a window attention is plain, which some devices compute faster. */
    replica->documents = (replica->config->data.document_mask || replica->config->model.sliding_window > 0) &&
                         any_set(batch->document_start, bytes / sizeof *batch->document_start);
    if (replica->documents) ls_copy_to_device(replica->stream, replica->document_start, batch->document_start, bytes);
}

/* Embedding and layers [first, end). Ranks without sequences go the same way: gathering and reducing is collective. */
static void run_forward(struct ls_replica *replica, int64_t sequences, int first, int end) {
    for (int block = first; block < end; block++) {
        mark(replica, LS_PHASE_FORWARD, block);
        struct ls_block_pass pass = pass_of(replica, sequences, block);
        pass.parameters = ls_shard_acquire(replica->shard, block);
        ls_shard_prefetch(replica->shard, block + 1);
        ls_block_forward(replica->model, block, &pass);
        ls_shard_release(replica->shard, block);
    }
}

/* The head: its loss and, when training, its whole backward. */
static void run_head(struct ls_replica *replica, int64_t sequences, bool train) {
    const int head = ls_model_block_count(replica->model) - 1;
    const bool tied = ls_model_head_is_tied(replica->model);
    mark(replica, train ? LS_PHASE_BACKWARD : LS_PHASE_FORWARD, head);
    struct ls_block_pass pass = pass_of(replica, sequences, head);
    pass.parameters = ls_shard_acquire(replica->shard, head);
    if (tied) pass.tied_parameters = ls_shard_acquire(replica->shard, 0);
    if (train) {
        ls_shard_prefetch(replica->shard, head - 1);
        pass.gradients = ls_shard_gradients(replica->shard, head);
        if (tied) pass.tied_gradients = ls_shard_gradients(replica->shard, 0);
        pass.stream_gradient = replica->stream_gradient;
    }
    ls_head_loss(replica->model, &pass);
    if (tied) ls_shard_release(replica->shard, 0);
    ls_shard_release(replica->shard, head);
}

/* Backward of a layer, after what activation checkpointing did not keep is computed again. Parameters are acquired once
 * for the layer's recomputation and its backward. `next` is the block whose parameters are needed after it, -1: none.
 */
static void run_backward(struct ls_replica *replica, int64_t sequences, int block, int next) {
    const struct ls_activations *activations = &replica->layout.activations;
    const int again = ls_activations_forward_again(activations, block);
    run_forward(replica, sequences, again, block);
    mark(replica, LS_PHASE_BACKWARD, block);
    struct ls_block_pass pass = pass_of(replica, sequences, block);
    pass.parameters = ls_shard_acquire(replica->shard, block);
    ls_shard_prefetch(replica->shard, next);
    if (again <= block) {
        pass.output = NULL;
        ls_block_forward(replica->model, block, &pass);
    } else if (ls_activations_recompute(activations, block)) {
        ls_block_recompute(replica->model, block, &pass);
    }
    pass.gradients = ls_shard_gradients(replica->shard, block);
    pass.stream_gradient = replica->stream_gradient;
    ls_block_backward(replica->model, block, &pass);
    ls_shard_release(replica->shard, block);
}

/* The embedding, whose backward reads no parameters. */
static void run_embedding_backward(struct ls_replica *replica, int64_t sequences) {
    mark(replica, LS_PHASE_BACKWARD, 0);
    struct ls_block_pass pass = pass_of(replica, sequences, 0);
    pass.gradients = ls_shard_gradients(replica->shard, 0);
    pass.stream_gradient = replica->stream_gradient;
    ls_block_backward(replica->model, 0, &pass);
}

/* The sums of losses, this rank's kept beside them. */
static void reduce_losses(struct ls_replica *replica) {
    ls_copy(replica->stream, &replica->scalars->own_loss, own_loss(replica), sizeof(double));
    ls_shard_reduce_values(replica->shard, replica->losses, replica->loss_count);
}

/* Losses are summed as gradients are. */
static double sum_losses(const struct ls_replica *replica) {
    double sums[LS_TREE_HEIGHT_MAX] = {0};
    struct ls_tree tree;
    ls_tree_begin(&tree, replica->loss_count);
    for (int64_t slot = 0; slot < replica->loss_count; slot++) {
        int additions = ls_tree_push(&tree, (struct ls_tree_node){slot, slot + 1});
        int place = tree.height + additions - 1;
        sums[place] = replica->summed_losses[slot];
        for (; additions > 0; additions--, place--) sums[place - 1] += sums[place];
    }
    return sums[0];
}

void ls_replica_train(struct ls_replica *replica, const struct ls_micro_batch *batch, bool last) {
    const int head = ls_model_block_count(replica->model) - 1;
    const struct ls_activations *activations = &replica->layout.activations;
    copy_batch(replica, batch);
    run_forward(replica, batch->sequences, 0, head);
    run_head(replica, batch->sequences, true);
    if (last) reduce_losses(replica);
    ls_shard_reduce(replica->shard, head, last);
    for (int block = head - 1; block > 0; block--) {
        run_backward(replica, batch->sequences, block,
                     block == 1 && last ? -1 : ls_activations_next(activations, block));
        ls_shard_reduce(replica->shard, block, last);
    }
    run_embedding_backward(replica, batch->sequences);
    ls_shard_reduce(replica->shard, 0, last);
    replica->micro_batch++;
}

/* Both streams, and the guards of the arena where it has some. */
static enum ls_code synchronize(struct ls_replica *replica, struct ls_error *error) {
    enum ls_code code = ls_stream_synchronize(replica->stream, error);
    if (!code) code = ls_shard_check(replica->shard, error);
    return code ? code : ls_arena_check(replica->arena, error);
}

enum ls_code ls_replica_loss(struct ls_replica *replica, double *loss, struct ls_error *error) {
    ls_shard_await_values(replica->shard);
    ls_copy_to_host(replica->stream, replica->summed_losses, replica->losses,
                    (size_t)replica->loss_count * sizeof(double));
    enum ls_code code = synchronize(replica, error);
    if (!code) *loss = sum_losses(replica);
    return code;
}

void ls_replica_refuse_update(struct ls_replica *replica) {
    replica->refused = true;
    ls_shard_refuse_update(replica->shard);
}

void ls_replica_update(struct ls_replica *replica, float learning_rate, int64_t optimizer_step) {
    mark(replica, LS_PHASE_REDUCE, 0);
    ls_shard_update(replica->shard, learning_rate, (float)replica->loss_scale.factor, optimizer_step);
}

/* Of this rank alone. */
static double sum_own_losses(const struct ls_replica *replica) {
    double sum = 0;
    if (!replica->fixed) return replica->staging->own_loss;
    for (int64_t slot = replica->first_slot; slot < replica->end_slot; slot++) sum += replica->summed_losses[slot];
    return sum;
}

static void copy_losses(struct ls_replica *replica) {
    ls_copy_to_host(replica->stream, replica->summed_losses, replica->losses,
                    (size_t)replica->loss_count * sizeof(double));
}

enum ls_code ls_replica_finish(struct ls_replica *replica, struct ls_replica_result *result, struct ls_error *error) {
    struct ls_shard_scalars scalars = ls_shard_scalars(replica->shard);
    struct replica_staging *staging = replica->staging;
    copy_losses(replica);
    ls_copy_to_host(replica->stream, &staging->own_loss, &replica->scalars->own_loss, sizeof staging->own_loss);
    ls_copy_to_host(replica->stream, &staging->norm, scalars.norm, sizeof staging->norm);
    ls_copy_to_host(replica->stream, &staging->parameters, scalars.parameters, sizeof staging->parameters);
    ls_copy_to_host(replica->stream, &staging->found_inf, scalars.found_inf, sizeof staging->found_inf);
    mark(replica, LS_PHASE_UPDATE, 0);
    enum ls_code code = synchronize(replica, error);
    if (code) return code;
    const double loss = sum_losses(replica);
    const bool found_inf = staging->found_inf != 0;
    const bool skipped = !replica->refused && isfinite(loss) && ls_loss_scale_advance(&replica->loss_scale, found_inf);
    replica->refused = false;
    *result = (struct ls_replica_result){.loss = loss,
                                         .own_loss = sum_own_losses(replica),
                                         .norm = staging->norm,
                                         .parameters = staging->parameters,
                                         .not_finite = found_inf && !skipped,
                                         .skipped = skipped};
    return LS_OK;
}

void ls_replica_forward(struct ls_replica *replica, const struct ls_micro_batch *batch) {
    copy_batch(replica, batch);
    run_forward(replica, batch->sequences, 0, ls_model_block_count(replica->model) - 1);
    run_head(replica, batch->sequences, false);
    replica->micro_batch++;
}

enum ls_code ls_replica_finish_forward(struct ls_replica *replica, double *loss, struct ls_error *error) {
    reduce_losses(replica);
    ls_shard_await_values(replica->shard);
    copy_losses(replica);
    enum ls_code code = synchronize(replica, error);
    if (!code) *loss = sum_losses(replica);
    return code;
}

double ls_replica_exposed_seconds(const struct ls_replica *replica) {
    return ls_shard_exposed_seconds(replica->shard);
}
