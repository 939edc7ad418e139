/* Boundaries, steps, evaluations. */
#include "worker/trainer.h"

#include "worker/data/prefetch.h"
#include "worker/memory/gpu_table.h"
#include "worker/optim/schedule.h"
#include "worker/optim/spike.h"
#include "worker/replica.h"
#include "worker/snapshot.h"
#include "worker/step_times.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

/* How many granted steps the prefetch is told of at least. */
enum { PREFETCH_STEPS_AHEAD = 32 };

struct ls_trainer {
    struct ls_trainer_options options;
    const struct ls_config *config;
    struct ls_comm *comm;
    struct ls_replica *replica;
    struct ls_snapshot *snapshot;
    struct ls_prefetch *prefetch, *evaluation; /* evaluation: NULL when never due */
    int64_t steps_done, optimizer_steps;
    uint64_t position;     /* sequences used */
    int64_t granted_end;   /* steps below it may run */
    int64_t prefetch_end;  /* of them, steps below it were given to the prefetch */
    bool has_batch;        /* `batch` is the next step's */
    struct ls_batch batch; /* of this rank */
    int64_t targets;       /* of the next step, all ranks */
    struct ls_digest digest;
    double opening_seconds, opening_wait, data_wait; /* of the boundary that opened the step */
    double parameters;                               /* what the last step left, see struct ls_shard_scalars */
    double peak_flops;                               /* of this rank's GPU, 0: not known */
    struct ls_replica_check *check;
    bool differs;
    struct ls_replica_difference difference;
    struct ls_spike spike;
    int failed_rank;
    struct ls_step_times *times; /* [ranks] */
    int *order;                  /* [ranks]: scratch */
    unsigned char *not_finite;   /* [ranks] */
};

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void mark(struct ls_trainer *trainer, enum ls_phase phase) {
    if (trainer->options.progress)
        ls_progress_mark(trainer->options.progress, phase, (uint64_t)trainer->steps_done + 1, 0, 0);
}

static void *allocate_host(size_t bytes, void *device) {
    return ls_device_allocate_host(device, bytes);
}
static void release_host(void *memory, void *device) {
    ls_device_free_host(device, memory);
}

static enum ls_code create_prefetch(struct ls_trainer *trainer, bool evaluation, struct ls_prefetch **prefetch,
                                    struct ls_error *error) {
    const struct ls_config *config = trainer->config;
    const struct ls_corpus *corpus = trainer->options.corpus;
    struct ls_dataset *const *datasets = evaluation ? corpus->validation : corpus->train;
    static const struct ls_quarantine nothing;
    const struct ls_quarantine *quarantine = evaluation ? &nothing : &trainer->options.quarantine;
    const struct ls_prefetch_options options = {
        .order = evaluation ? NULL : corpus->order,
        .datasets = (const struct ls_dataset *const *)datasets,
        .dataset_count = evaluation ? corpus->validation_count : corpus->train_count,
        .rank = ls_comm_rank(trainer->comm),
        .world_size = ls_comm_size(trainer->comm),
        .sequence_length = config->data.sequence_length,
        .vocab = config->model.vocab_size,
        .document_mask = config->data.document_mask,
        .window = config->model.sliding_window,
        .micro_batch = config->train.micro_batch_size,
        .slots = config->train.reduction == LS_REDUCTION_FIXED,
        .global_batch_max = config->train.global_batch_size,
        .quarantine = *quarantine,
        .depth = LS_TRAINER_PREFETCH_DEPTH,
        .allocator = {.allocate = allocate_host, .release = release_host, .context = trainer->options.device},
    };
    return ls_prefetch_create(&options, prefetch, error);
}

static enum ls_code allocate_records(struct ls_trainer *trainer, struct ls_error *error) {
    size_t ranks = (size_t)ls_comm_size(trainer->comm);
    trainer->times = calloc(ranks, sizeof *trainer->times);
    trainer->not_finite = calloc(ranks, sizeof *trainer->not_finite);
    trainer->order = calloc(ranks, sizeof *trainer->order);
    if (trainer->times && trainer->not_finite && trainer->order) return LS_OK;
    return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the records of %zu ranks", ranks);
}

/* Dense peak of this rank's GPU for the products that the configuration asks for; 0: CPUs, or a GPU that the table does
 * not know. */
static double peak_flops_of(const struct ls_trainer_options *options) {
    const struct ls_gpu *gpu = ls_gpu_of_driver(ls_device_info(options->device)->name);
    if (!gpu) return 0;
    if (options->config->precision != LS_PRECISION_FP32) return gpu->half_flops;
    return options->config->gpu.tf32 ? gpu->tf32_flops : gpu->fp32_flops;
}

enum ls_code ls_trainer_create(const struct ls_trainer_options *options, struct ls_trainer **trainer,
                               struct ls_error *error) {
    const struct ls_config *config = options->config;
    enum ls_code code = ls_config_check_ranks(config, ls_comm_size(options->comm), error);
    if (code) return code;
    struct ls_trainer *made = calloc(1, sizeof *made);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the trainer's records");
    made->options = *options;
    made->config = config;
    made->comm = options->comm;
    made->steps_done = options->start_step;
    made->optimizer_steps = options->optimizer_steps;
    made->position = options->start_position;
    made->granted_end = made->prefetch_end = options->start_step + 1;
    made->failed_rank = -1;
    made->peak_flops = peak_flops_of(options);
    code = allocate_records(made, error);
    if (!code)
        code = ls_replica_create(config, options->device, options->comm, options->progress, &made->replica, error);
    const struct ls_saver_options saver = {.config = config,
                                           .corpus = options->corpus,
                                           .comm = options->comm,
                                           .device = options->device,
                                           .replica = made->replica,
                                           .progress = options->progress,
                                           .bounce = options->bounce};
    if (!code) code = ls_snapshot_create(&saver, &made->snapshot, error);
    if (!code)
        code = ls_replica_check_create(config, options->device, options->comm, made->replica, &made->check, error);
    if (!code) code = create_prefetch(made, false, &made->prefetch, error);
    if (!code && config->evaluation.every_steps > 0 && options->corpus->validation_count > 0)
        code = create_prefetch(made, true, &made->evaluation, error);
    if (code) {
        ls_trainer_destroy(made);
        return code;
    }
    *trainer = made;
    return LS_OK;
}

void ls_trainer_destroy(struct ls_trainer *trainer) {
    if (!trainer) return;
    /* What an unfinished step left on the stream may still read a batch, and speak with the saver. */
    if (trainer->replica) ls_stream_synchronize(ls_replica_stream(trainer->replica), NULL);
    ls_prefetch_destroy(trainer->evaluation);
    ls_prefetch_destroy(trainer->prefetch);
    ls_snapshot_destroy(trainer->snapshot);
    ls_replica_check_destroy(trainer->check);
    ls_replica_destroy(trainer->replica);
    free(trainer->times);
    free(trainer->order);
    free(trainer->not_finite);
    free(trainer);
}

enum ls_code ls_trainer_tune(struct ls_trainer *trainer, const char *run_directory, struct ls_error *error) {
    return ls_replica_tune(trainer->replica, run_directory, error);
}

enum ls_code ls_trainer_initialize(struct ls_trainer *trainer, struct ls_error *error) {
    const char *folder = trainer->config->model.init_from;
    if (folder[0]) return ls_snapshot_read_weights(trainer->snapshot, folder, error);
    ls_replica_initialize(trainer->replica);
    return ls_stream_synchronize(ls_replica_stream(trainer->replica), error);
}

enum ls_code ls_trainer_load(struct ls_trainer *trainer, const char *folder, struct ls_error *error) {
    return ls_snapshot_read(trainer->snapshot, folder, error);
}

void ls_trainer_save_begin(struct ls_trainer *trainer, const char *folder) {
    mark(trainer, LS_PHASE_CHECKPOINT);
    ls_saver_begin(ls_snapshot_saver(trainer->snapshot), folder);
}

bool ls_trainer_save_is_written(struct ls_trainer *trainer) {
    return ls_saver_is_written(ls_snapshot_saver(trainer->snapshot));
}

enum ls_code ls_trainer_save_finish(struct ls_trainer *trainer, struct ls_file_record *files, size_t *count,
                                    double *seconds, struct ls_error *error) {
    mark(trainer, LS_PHASE_CHECKPOINT);
    return ls_saver_finish(ls_snapshot_saver(trainer->snapshot), files, count, seconds, error);
}

int64_t ls_trainer_save_bytes(const struct ls_trainer *trainer) {
    return ls_snapshot_bytes(trainer->snapshot);
}
int64_t ls_trainer_steps_done(const struct ls_trainer *trainer) {
    return trainer->steps_done;
}
uint64_t ls_trainer_position(const struct ls_trainer *trainer) {
    return trainer->position;
}
int64_t ls_trainer_optimizer_steps(const struct ls_trainer *trainer) {
    return trainer->optimizer_steps;
}
const struct ls_replica_difference *ls_trainer_difference(const struct ls_trainer *trainer) {
    return trainer->differs ? &trainer->difference : NULL;
}
struct ls_replica *ls_trainer_replica(struct ls_trainer *trainer) {
    return trainer->replica;
}
int ls_trainer_failed_rank(const struct ls_trainer *trainer) {
    return trainer->failed_rank;
}
bool ls_trainer_may_step(const struct ls_trainer *trainer) {
    return trainer->has_batch;
}
const struct ls_model *ls_trainer_model(const struct ls_trainer *trainer) {
    return ls_replica_model(trainer->replica);
}

/* Tells the prefetch of granted steps, a few dozen at a time: it holds a limited number of spans. */
static enum ls_code extend_prefetch(struct ls_trainer *trainer, struct ls_error *error) {
    const int64_t next = trainer->steps_done + 1;
    if (trainer->prefetch_end >= trainer->granted_end || trainer->prefetch_end - next > PREFETCH_STEPS_AHEAD)
        return LS_OK;
    const int64_t batch = trainer->config->train.global_batch_size;
    const int64_t before = trainer->prefetch_end - 1 - trainer->options.start_step;
    const uint64_t position = (uint64_t)ls_quarantine_behind(&trainer->options.quarantine,
                                                             (int64_t)trainer->options.start_position, before * batch);
    enum ls_code code = ls_prefetch_grant(trainer->prefetch, trainer->prefetch_end, trainer->granted_end, position,
                                          batch, trainer->options.end_position, error);
    if (!code) trainer->prefetch_end = trainer->granted_end;
    return code;
}

/* What the collective at a boundary sums. Orders come from rank 0 alone, the others add zeros. */
enum opening {
    OPENING_GRANTED_END,
    OPENING_SAVE_ID,
    OPENING_STOP_ID,
    OPENING_STOP_CODE,
    OPENING_LEAVE,
    OPENING_LEAVE_CODE,
    OPENING_SAVE_DUE,
    OPENING_COMMITTED, /* the step after the newest committed one */
    OPENING_WRITTEN,   /* ranks whose part of a save is written */
    OPENING_WISHES,    /* ranks that were asked to end and wish for a save */
    OPENING_ERRORS,    /* ranks that met one */
    OPENING_BATCHES,   /* ranks that hold a batch */
    OPENING_TARGETS,
    OPENING_REPLICA, /* a hash of the parameters' norm: the number of ranks times the own one, or replicas differ */
    OPENING_DIGEST,  /* four limbs of 32 bits, so that sums do not overflow */
    OPENING_COUNT = OPENING_DIGEST + 4
};

static void put_orders(const struct ls_trainer_orders *orders, uint64_t values[OPENING_COUNT]) {
    values[OPENING_GRANTED_END] = (uint64_t)orders->granted_end;
    values[OPENING_SAVE_ID] = orders->save_id;
    values[OPENING_STOP_ID] = orders->stop_id;
    values[OPENING_STOP_CODE] = (uint64_t)orders->stop_code;
    values[OPENING_LEAVE] = orders->leave;
    values[OPENING_LEAVE_CODE] = (uint64_t)orders->leave_code;
    values[OPENING_SAVE_DUE] = orders->save_due;
    values[OPENING_COMMITTED] = (uint64_t)(orders->committed_step + 1);
}

static struct ls_trainer_orders get_orders(const uint64_t values[OPENING_COUNT], uint64_t ranks) {
    return (struct ls_trainer_orders){.granted_end = (int64_t)values[OPENING_GRANTED_END],
                                      .save_id = values[OPENING_SAVE_ID],
                                      .stop_id = values[OPENING_STOP_ID],
                                      .stop_code = (int)values[OPENING_STOP_CODE],
                                      .leave = values[OPENING_LEAVE] != 0,
                                      .leave_code = (int)values[OPENING_LEAVE_CODE],
                                      .save_due = values[OPENING_SAVE_DUE] != 0,
                                      .committed_step = (int64_t)values[OPENING_COMMITTED] - 1,
                                      .save_wished = values[OPENING_WISHES] != 0,
                                      .save_written = values[OPENING_WRITTEN] == ranks};
}

static void put_digest(struct ls_digest digest, uint64_t limbs[4]) {
    limbs[0] = digest.low & UINT32_MAX;
    limbs[1] = digest.low >> 32;
    limbs[2] = digest.high & UINT32_MAX;
    limbs[3] = digest.high >> 32;
}

/* The sum mod 2^128 from sums of limbs. */
static struct ls_digest get_digest(const uint64_t limbs[4]) {
    struct ls_digest digest = {0};
    for (int i = 3; i >= 0; i--) {
        digest.high = digest.high << 32 | digest.low >> 32;
        digest.low <<= 32;
        digest = ls_digest_add(digest, (struct ls_digest){.low = limbs[i]});
    }
    return digest;
}

/* Spreads the bits over the word, so that sums of different norms are not the same by accident (Steele et al. 2014). */
static uint64_t hash_norm(double norm) {
    uint64_t bits;
    memcpy(&bits, &norm, sizeof bits);
    uint64_t x = bits + UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static void take_batch(struct ls_trainer *trainer, struct ls_error *error) {
    mark(trainer, LS_PHASE_DATA);
    trainer->data_wait = 0;
    if (ls_prefetch_next(trainer->prefetch, &trainer->batch, &trainer->data_wait, error)) return;
    trainer->has_batch = true;
}

static enum ls_code refuse_difference(struct ls_trainer *trainer, struct ls_error *error) {
    trainer->failed_rank = trainer->difference.rank;
    return ls_replica_refuse(&trainer->difference, error);
}

/* Compares all parameters where that is due. */
static enum ls_code check_replicas(struct ls_trainer *trainer, struct ls_error *error) {
    const int64_t every = trainer->config->fault.replica_check_every;
    if (every == 0 || trainer->steps_done % every || ls_comm_size(trainer->comm) == 1) return LS_OK;
    enum ls_code code =
        ls_replica_check_run(trainer->check, trainer->steps_done, &trainer->differs, &trainer->difference, error);
    return code || !trainer->differs ? code : refuse_difference(trainer, error);
}

enum ls_code ls_trainer_boundary(struct ls_trainer *trainer, struct ls_trainer_orders *orders, struct ls_error *error) {
    const double begin = seconds_now();
    struct ls_error own = {.code = LS_OK};
    if (!trainer->has_batch && trainer->steps_done + 1 < trainer->prefetch_end) take_batch(trainer, &own);
    mark(trainer, LS_PHASE_STEP_OPEN);
    uint64_t values[OPENING_COUNT] = {0};
    if (ls_comm_rank(trainer->comm) == 0) put_orders(orders, values);
    values[OPENING_WISHES] = orders->save_wished;
    values[OPENING_WRITTEN] = orders->save_written;
    values[OPENING_ERRORS] = own.code != LS_OK;
    values[OPENING_REPLICA] = hash_norm(trainer->parameters);
    if (trainer->has_batch) {
        values[OPENING_BATCHES] = 1;
        values[OPENING_TARGETS] = (uint64_t)trainer->batch.targets;
        put_digest(trainer->batch.digest, &values[OPENING_DIGEST]);
    }
    const double collective = seconds_now();
    enum ls_code code = ls_comm_sum_u64(trainer->comm, values, OPENING_COUNT, error);
    if (code) return code;
    if (values[OPENING_ERRORS] > 0) return ls_comm_share(trainer->comm, &own, &trainer->failed_rank, error);
    const uint64_t ranks = (uint64_t)ls_comm_size(trainer->comm);
    if (values[OPENING_REPLICA] != ranks * hash_norm(trainer->parameters)) {
        code = ls_replica_check_compare(trainer->check, trainer->steps_done, hash_norm(trainer->parameters),
                                        &trainer->differs, &trainer->difference, error);
        return code ? code : refuse_difference(trainer, error);
    }
    assert(values[OPENING_BATCHES] == (trainer->has_batch ? ranks : 0));
    *orders = get_orders(values, ranks);
    trainer->targets = (int64_t)values[OPENING_TARGETS];
    trainer->digest = get_digest(&values[OPENING_DIGEST]);
    if (orders->granted_end > trainer->granted_end) trainer->granted_end = orders->granted_end;
    code = extend_prefetch(trainer, error);
    const double end = seconds_now();
    trainer->opening_seconds = end - begin;
    trainer->opening_wait = end - collective;
    return code;
}

static struct ls_micro_batch micro_batch_of(const struct ls_trainer *trainer, const struct ls_batch *batch,
                                            int64_t index) {
    const int64_t B = trainer->config->train.micro_batch_size, T = trainer->config->data.sequence_length;
    const int64_t left = batch->sequences - index * B, first = index * B * T;
    return (struct ls_micro_batch){.inputs = batch->inputs + first,
                                   .targets = batch->target_ids + first,
                                   .document_start = batch->document_start + first,
                                   .sequences = left < 0   ? 0
                                                : left < B ? left
                                                           : B,
                                   .slot = batch->first_sequence / B + index};
}

/* Loss or gradient are not finite, which every rank sees. Who saw it first is found in the ranks' own losses. */
static enum ls_code refuse_not_finite(struct ls_trainer *trainer, const struct ls_replica_result *result, double loss,
                                      struct ls_error *error) {
    const unsigned char mine = !isfinite(result->own_loss);
    enum ls_code code = ls_comm_gather_bytes(trainer->comm, &mine, 1, trainer->not_finite, error);
    if (code) return code;
    char where[64] = "on no rank alone";
    for (int rank = 0; rank < ls_comm_size(trainer->comm) && trainer->failed_rank < 0; rank++)
        if (trainer->not_finite[rank]) trainer->failed_rank = rank;
    if (trainer->failed_rank >= 0) snprintf(where, sizeof where, "first on rank %d", trainer->failed_rank);
    if (isfinite(loss) && !result->not_finite)
        return ls_fail(error, LS_NONFINITE, LS_SCOPE_JOB,
                       "the loss of step %lld is %g, the median of the steps before it %g: a spike above "
                       "fault.loss_spike_factor %g. Look at its samples with 'lockstep blame', or set fault.nonfinite.",
                       (long long)trainer->steps_done + 1, loss, ls_spike_median(&trainer->spike),
                       trainer->config->fault.loss_spike_factor);
    return ls_fail(
        error, LS_NONFINITE, LS_SCOPE_JOB,
        "step %lld is not finite: loss %g, gradient norm %g, seen %s. Nothing of it was saved. Lower optimizer.lr "
        "or lengthen lr_schedule.warmup_steps, then --resume from the last checkpoint.",
        (long long)trainer->steps_done + 1, fabs(loss), fabs((double)result->norm), where);
}

/* Where the step's time went, on all ranks. Memory is the largest. */
static enum ls_code report_times(struct ls_trainer *trainer, double seconds, double exposed, double blocked,
                                 struct ls_step_report *report, struct ls_error *error) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    const struct ls_device_gauges gauges = ls_device_gauges(trainer->options.device);
    const bool gpu = ls_device_info(trainer->options.device)->kind == LS_DEVICE_KIND_CUDA;
    const struct ls_step_times mine = {.seconds = seconds,
                                       .compute = seconds - exposed - blocked - trainer->data_wait,
                                       .exposed = exposed,
                                       .data_wait = trainer->data_wait,
                                       .checkpoint = blocked,
                                       .memory_peak_bytes =
                                           gpu ? (uint64_t)gauges.memory_peak_bytes : (uint64_t)usage.ru_maxrss * 1024,
                                       .peak_flops = trainer->peak_flops,
                                       .power_watts = gauges.power_watts,
                                       .clock_mhz = gauges.clock_mhz};
    enum ls_code code = ls_comm_gather_bytes(trainer->comm, &mine, sizeof mine, trainer->times, error);
    if (code) return code;
    struct ls_step_split split;
    ls_step_times_split(trainer->times, ls_comm_size(trainer->comm), trainer->order, &split);
    report->step_seconds = split.seconds;
    report->memory_peak_bytes = split.memory_peak_bytes;
    report->compute_seconds = split.compute;
    report->comm_exposed_seconds = split.exposed;
    report->data_wait_seconds = split.data_wait;
    report->checkpoint_seconds = split.checkpoint;
    report->wait_seconds = split.wait;
    report->wait_for_rank = split.wait_for_rank;
    report->gpu_power_watts = split.power_watts;
    report->gpu_clock_mhz = split.clock_mhz;
    const double tokens = (double)(report->sequences * trainer->config->data.sequence_length);
    if (split.peak_flops > 0)
        report->mfu = ls_model_flops_per_token(ls_trainer_model(trainer)) * tokens / split.seconds / split.peak_flops;
    return LS_OK;
}

static void finish_step(struct ls_trainer *trainer, bool skipped) {
    trainer->steps_done++;
    trainer->optimizer_steps += !skipped;
    trainer->position = trainer->batch.end_position;
    trainer->has_batch = false;
    ls_prefetch_release(trainer->prefetch);
}

static double mean_loss(const struct ls_trainer *trainer, double sum) {
    return trainer->targets > 0 ? sum / (double)trainer->targets : 0;
}

/* The same on every rank: they have the same losses. */
static bool is_bad_loss(const struct ls_trainer *trainer, double loss) {
    return !isfinite(loss) || ls_spike_is(&trainer->spike, trainer->config->fault.loss_spike_factor, loss);
}

/* With fault.nonfinite: skip the loss is waited for before the update, which a bad one must not bring. The other
 * policies throw away what the update has made. */
static enum ls_code look_before_update(struct ls_trainer *trainer, bool *refused, struct ls_error *error) {
    if (trainer->config->fault.nonfinite != LS_POLICY_SKIP) return LS_OK;
    double sum;
    enum ls_code code = ls_replica_loss(trainer->replica, &sum, error);
    if (code) return code;
    *refused = is_bad_loss(trainer, mean_loss(trainer, sum));
    if (*refused) ls_replica_refuse_update(trainer->replica);
    return LS_OK;
}

enum ls_code ls_trainer_step(struct ls_trainer *trainer, struct ls_step_report *report, struct ls_error *error) {
    assert(trainer->has_batch && trainer->batch.step == trainer->steps_done + 1);
    const double begin = seconds_now(), exposed = ls_replica_exposed_seconds(trainer->replica);
    const double blocked = ls_saver_blocked_seconds(ls_snapshot_saver(trainer->snapshot));
    const struct ls_batch *batch = &trainer->batch;
    const double learning_rate = ls_schedule_learning_rate(trainer->config, batch->step, trainer->options.total_steps);
    ls_replica_begin(trainer->replica, batch->step, trainer->targets, batch->step_sequences);
    for (int64_t i = 0; i < batch->micro_batches; i++) {
        const struct ls_micro_batch micro = micro_batch_of(trainer, batch, i);
        ls_replica_train(trainer->replica, &micro, i == batch->micro_batches - 1);
    }
    bool refused = false;
    enum ls_code code = look_before_update(trainer, &refused, error);
    if (code) return code;
    ls_replica_update(trainer->replica, (float)learning_rate, trainer->optimizer_steps + 1);
    struct ls_replica_result result;
    code = ls_replica_finish(trainer->replica, &result, error);
    if (code) return code;
    const double loss = mean_loss(trainer, result.loss);
    const bool skips = trainer->config->fault.nonfinite == LS_POLICY_SKIP;
    const bool bad = refused || result.not_finite || is_bad_loss(trainer, loss);
    if (bad && !skips) return refuse_not_finite(trainer, &result, loss, error);
    const bool skipped = bad || result.skipped;
    if (!bad) ls_spike_add(&trainer->spike, loss);
    trainer->parameters = result.parameters;
    *report = (struct ls_step_report){.step = batch->step,
                                      .position = batch->end_position,
                                      .sequences = batch->step_sequences,
                                      .targets = trainer->targets,
                                      .loss = loss,
                                      .grad_norm = result.norm,
                                      .lr = learning_rate,
                                      .skipped = skipped,
                                      .digest = trainer->digest};
    const uint64_t epoch_length = trainer->options.corpus->epoch_length;
    if (epoch_length > 0) report->epoch = (double)report->position / (double)epoch_length;
    finish_step(trainer, skipped);
    code = check_replicas(trainer, error);
    if (code) return code;
    code = report_times(trainer, trainer->opening_seconds + seconds_now() - begin,
                        trainer->opening_wait + ls_replica_exposed_seconds(trainer->replica) - exposed,
                        ls_saver_blocked_seconds(ls_snapshot_saver(trainer->snapshot)) - blocked, report, error);
    if (code) return code;
    report->tokens_per_second =
        (double)(report->sequences * trainer->config->data.sequence_length) / report->step_seconds;
    return LS_OK;
}

bool ls_trainer_evaluation_due(const struct ls_trainer *trainer) {
    return trainer->evaluation && (trainer->steps_done % trainer->config->evaluation.every_steps == 0 ||
                                   trainer->steps_done == trainer->options.end_step);
}

/* Runs this rank's share of one batch of the evaluation; its buffers are handed back when the stream has passed them.
 * A rank that met an error goes on without sequences: the others gather parameters with it. */
static void evaluate_batch(struct ls_trainer *trainer, int64_t step_sequences, int64_t *targets, struct ls_error *own) {
    struct ls_batch batch;
    const bool taken = !own->code && ls_prefetch_next(trainer->evaluation, &batch, NULL, own) == LS_OK;
    const int64_t micro_batches = ls_config_micro_batches(trainer->config, step_sequences, ls_comm_size(trainer->comm));
    for (int64_t i = 0; i < micro_batches; i++) {
        const struct ls_micro_batch micro =
            taken ? micro_batch_of(trainer, &batch, i) : (struct ls_micro_batch){.sequences = 0};
        ls_replica_forward(trainer->replica, &micro);
    }
    if (taken) *targets += batch.targets;
    ls_stream_synchronize(ls_replica_stream(trainer->replica), own->code ? NULL : own);
    if (taken) ls_prefetch_release(trainer->evaluation);
}

enum ls_code ls_trainer_evaluate(struct ls_trainer *trainer, double *loss, double *bits_per_byte,
                                 struct ls_error *error) {
    const struct ls_corpus *corpus = trainer->options.corpus;
    const int64_t batch = trainer->config->train.global_batch_size, batches = trainer->config->evaluation.batches;
    int64_t sequences = corpus->validation_samples, targets = 0;
    if (batches > 0 && sequences / batch >= batches) sequences = batches * batch;
    const int64_t steps = (sequences + batch - 1) / batch;
    mark(trainer, LS_PHASE_EVALUATE);
    struct ls_error own = {.code = LS_OK};
    ls_replica_begin(trainer->replica, trainer->steps_done, 0, batch);
    ls_prefetch_grant(trainer->evaluation, 0, steps, 0, batch, (uint64_t)sequences, &own);
    for (int64_t step = 0; step < steps; step++) {
        const int64_t left = sequences - step * batch;
        evaluate_batch(trainer, left < batch ? left : batch, &targets, &own);
    }
    uint64_t values[2] = {own.code != LS_OK, (uint64_t)targets};
    enum ls_code code = ls_comm_sum_u64(trainer->comm, values, 2, error);
    if (code) return code;
    if (values[0] > 0) return ls_comm_share(trainer->comm, &own, &trainer->failed_rank, error);
    double sum;
    code = ls_replica_finish_forward(trainer->replica, &sum, error);
    if (code) return code;
    *loss = values[1] > 0 ? sum / (double)values[1] : 0;
    const double bytes_per_token = corpus->validation_bytes_per_token;
    *bits_per_byte = bytes_per_token > 0 ? *loss / M_LN2 / bytes_per_token : NAN;
    return LS_OK;
}

enum ls_code ls_trainer_parameters(struct ls_trainer *trainer, int block, void *parameters, struct ls_error *error) {
    struct ls_shard *shard = ls_replica_shard(trainer->replica);
    struct ls_stream *stream = ls_replica_stream(trainer->replica);
    const struct ls_model *model = ls_trainer_model(trainer);
    const int64_t bytes = ls_model_block(model, block)->count * ls_dtype_bytes(ls_model_dtype(model));
    ls_copy_to_host(stream, parameters, ls_shard_acquire(shard, block), (size_t)bytes);
    ls_shard_release(shard, block);
    enum ls_code code = ls_stream_synchronize(stream, error);
    return code ? code : ls_shard_check(shard, error);
}
