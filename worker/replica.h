/* The replica: one rank's copy of the model and everything its steps need in device memory, in one arena. Runs
 * micro-batches forward and backward, starts the reductions, updates. Knows nothing of datasets, orders or checkpoints.
 * All but create and the functions that say so only put work on streams. */
#ifndef LS_WORKER_REPLICA_H
#define LS_WORKER_REPLICA_H

#include "common/config.h"
#include "common/progress.h"
#include "common/status.h"
#include "worker/comm/comm.h"
#include "worker/device/device.h"
#include "worker/model/model.h"
#include "worker/optim/loss_scale.h"
#include "worker/shard/shard.h"

#include <stdbool.h>
#include <stdint.h>

struct ls_replica;

/* Plans and allocates; parameters are zero until ls_replica_initialize() or a checkpoint fills them. `config`
 * (vocab_size set), `device`, `comm` and `progress` (marked as blocks are computed, and matrices made orthogonal; NULL:
 * nowhere) must outlive the replica. Collective with zero.replicas above 1, and on GPUs. Errors: LS_USAGE (shapes),
 * LS_MEMORY, LS_COMMUNICATION. */
enum ls_code ls_replica_create(const struct ls_config *config, struct ls_device *device, struct ls_comm *comm,
                               struct ls_progress_record *progress, struct ls_replica **replica,
                               struct ls_error *error);
/* Takes NULL. */
void ls_replica_destroy(struct ls_replica *replica);

const struct ls_model *ls_replica_model(const struct ls_replica *replica);
struct ls_shard *ls_replica_shard(struct ls_replica *replica);
struct ls_stream *ls_replica_stream(struct ls_replica *replica);
/* Its arena, whose layout is ls_replica_plan()'s. */
struct ls_arena *ls_replica_arena(struct ls_replica *replica);
/* The loss scale, for checkpoints; it changes when a step is finished. */
struct ls_loss_scale *ls_replica_loss_scale(struct ls_replica *replica);
/* Bytes of device memory it holds. */
int64_t ls_replica_bytes(const struct ls_replica *replica);
/* Bytes of device memory that its communicators took meanwhile, for what a library needs to carry them. */
int64_t ls_replica_comms_bytes(const struct ls_replica *replica);

/* Collective. Has rank 0 find out how products and attention are computed best, and all ranks compute them so, where
 * the device has more than one way; with train.reduction `fixed`, whose bits are to be the same in every run, by rules
 * instead of measuring. What was measured is kept in `run_directory` (NULL: nowhere) and used again where it is for the
 * same shapes, GPU and libraries. Before parameters are there: everything is zeroed. */
enum ls_code ls_replica_tune(struct ls_replica *replica, const char *run_directory, struct ls_error *error);

/* Fills the parameters from train.seed: the same at any number of ranks. */
void ls_replica_initialize(struct ls_replica *replica);

/* Sequences of a micro-batch: host memory, [sequences, T], untouched until the stream has passed it. At most
 * train.micro_batch_size sequences; 0: nothing is computed, but every collective is joined. */
struct ls_micro_batch {
    const int32_t *inputs, *targets, *document_start;
    int64_t sequences;
    int64_t slot; /* its number in the step, all ranks; train.reduction: fixed */
};

/* A step: begin, a ls_replica_train() for each micro-batch, update, finish. `targets` and `sequences` of all ranks in
 * the whole step: a token's gradient counts 1 / targets. `step` is for the progress. */
void ls_replica_begin(struct ls_replica *replica, int64_t step, int64_t targets, int64_t sequences);
/* Forward and backward; gradients accumulate. After the `last` micro-batch the sums over the ranks are under way. */
void ls_replica_train(struct ls_replica *replica, const struct ls_micro_batch *batch, bool last);
/* Between the last ls_replica_train() and the update: the sum of token losses over all ranks. Waits for it. */
enum ls_code ls_replica_loss(struct ls_replica *replica, double *loss, struct ls_error *error);
/* The next update changes nothing, and does not speak about the loss scale. On every rank alike. */
void ls_replica_refuse_update(struct ls_replica *replica);
/* The optimizer's step number `optimizer_step` (from 1). */
void ls_replica_update(struct ls_replica *replica, float learning_rate, int64_t optimizer_step);

/* What came of a step. */
struct ls_replica_result {
    double loss;       /* sum of token losses, all ranks */
    double own_loss;   /* of this rank */
    float norm;        /* of the gradient, before clipping */
    double parameters; /* of the updated parameters, see struct ls_shard_scalars */
    bool not_finite;   /* the norm is not finite: nothing was updated */
    bool skipped;      /* likewise, but the loss scale was to blame: the next step has half of it */
};
/* Waits for the step. Errors: what the streams met, LS_COMMUNICATION mostly; in debug builds LS_ERROR when the step
 * wrote behind a buffer of the arena. */
enum ls_code ls_replica_finish(struct ls_replica *replica, struct ls_replica_result *result, struct ls_error *error);

/* An evaluation: begin, a ls_replica_forward() for each micro-batch, finish, which waits and gives the sum of token
 * losses over all ranks. */
void ls_replica_forward(struct ls_replica *replica, const struct ls_micro_batch *batch);
enum ls_code ls_replica_finish_forward(struct ls_replica *replica, double *loss, struct ls_error *error);

/* Seconds the compute stream waited for communication so far; up to date after a finish. */
double ls_replica_exposed_seconds(const struct ls_replica *replica);

#endif
