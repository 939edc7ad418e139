/* Parameter shards: every block's flat parameters, gradients and optimizer state, cut over the ranks by ZeRO stage, and
 * the collectives that bring them together beside the compute stream.
 *
 *     stage  parameters  gradients  m, v     collectives
 *     0      whole       whole      whole    all-reduce of a block's gradients as its backward ends
 *     1      whole       whole      slices   reduce-scatter of gradients; own slice updated; all-gather of parameters
 *     2      whole       slices     slices   the same; a whole gradient lives from a backward to its reduction
 *     3      slices      slices     slices   all-gather before a block's forward and backward instead
 *
 *     a block's flat array   [ slice 0 ][ slice 1 ] ... [ slice G-1 .. pad ]   G: ranks of a shard group
 *
 * A shard group is ranks / zero.replicas consecutive ranks; within it everything is cut, and slices are all-reduced
 * over the groups. With zero.accumulate: sharded (stages 2 and 3 always) every micro-batch's gradients are reduced into
 * the slices; with local, once a step. Stage 1 with sharded accumulation is stage 2.
 *
 * With train.reduction: fixed nothing is summed by a collective. The gradients of slots (micro-batches) are added in
 * one tree over all slots of the step (tree.h): each rank adds those of its own slots, sends the nodes to the owners of
 * the stretches of the block, one each rank, and those finish the tree. Slices begin at multiples of 1024 elements, the
 * stretches behind the partial sums of norms, which are added in the order of elements.
 *
 * With optimizer.type: muon the matrices of layers are updated by steps that need them whole: their momentum goes,
 * layer by layer, to one rank of the group and comes back orthogonal (whole.c).
 *
 * Order of a step: begin; for every micro-batch, prefetch, acquire, release and gradients as the blocks are computed,
 * reduce after each block's backward; reduce_values for the losses; update. Every rank does all of it in the same
 * order, with or without sequences. */
#ifndef LS_WORKER_SHARD_SHARD_H
#define LS_WORKER_SHARD_SHARD_H

#include "common/config.h"
#include "common/progress.h"
#include "worker/comm/comm.h"
#include "worker/memory/arena.h"
#include "worker/model/model.h"

struct ls_shard;

/* Adds what the shards of each of `ranks` ranks need to the arena's plan and returns the number of their first buffer;
 * pure, so that `plan` can call it without a device. State is in the categories parameters, gradients and optimizer;
 * what lives for a while only in gathered (parameters at stage 3) and reduced (whole gradients). */
int ls_shard_plan(const struct ls_config *config, const struct ls_model *model, int64_t ranks,
                  struct ls_arena_plan *plan);

/* Bytes a rank sends in the collectives of one full training step, as ls_comm_wire_bytes() counts them. Pure. */
struct ls_shard_wire {
    int64_t gradients, parameters, scalars;
    int64_t matrices; /* there and back, to be made orthogonal: Muon */
};
struct ls_shard_wire ls_shard_wire_bytes(const struct ls_config *config, const struct ls_model *model, int64_t ranks);
/* Of them, for one block: after the last micro-batch's backward, and each time its parameters are gathered. */
int64_t ls_shard_reduce_bytes(const struct ls_config *config, const struct ls_model *model, int64_t ranks, int block);
int64_t ls_shard_gather_bytes(const struct ls_config *config, const struct ls_model *model, int64_t ranks, int block);

/* Bytes of a layer's slice that an update sends at a time, less than 2^31; 0 but for Muon. Pure. */
int64_t ls_shard_matrix_slice_bytes(const struct ls_config *config, const struct ls_model *model, int64_t ranks);

/* Floating-point operations of the update's products: of the rank that has the most in each of its rounds. 0 but for
 * Muon. Pure. */
double ls_shard_update_flops(const struct ls_config *config, const struct ls_model *model, int64_t ranks);

/* Copies of what is cut: zero.replicas, 1 at stage 0. */
int64_t ls_shard_replicas(const struct ls_config *config);

/* Elements that slices of a block begin at multiples of, where blocks are cut. */
int64_t ls_shard_slice_unit(const struct ls_config *config);

/* The communicators that shards need. `group` is `world` when there is one group; `across` connects the ranks with the
 * same slices in all groups, NULL when there is one group. */
struct ls_shard_comms {
    struct ls_comm *world, *group, *across;
};
/* Splits `world`, and has all of them take what they need of a GPU (ls_comm_warm_up()); collective when there are
 * several groups or GPUs, and then without other ways to fail than a lost rank or no memory. */
enum ls_code ls_shard_comms_create(const struct ls_config *config, struct ls_comm *world, struct ls_shard_comms *comms,
                                   struct ls_error *error);
void ls_shard_comms_destroy(struct ls_shard_comms *comms);

/* `first_buffer` is what ls_shard_plan() returned for the arena's plan. Config, model, comms, stream and arena must
 * outlive the shards. All is zero at first: parameters come by ls_model_initialize() or a checkpoint. LS_MEMORY. */
enum ls_code ls_shard_create(const struct ls_config *config, const struct ls_model *model,
                             const struct ls_shard_comms *comms, struct ls_stream *compute, struct ls_arena *arena,
                             int first_buffer, struct ls_shard **shard, struct ls_error *error);
/* From now on the matrices of an update that are made orthogonal are marked in the record, which outlives the shards,
 * as LS_PHASE_UPDATE of their block: each may take as long as a block of the model. NULL: nowhere. */
void ls_shard_set_watch(struct ls_shard *shard, struct ls_progress_record *record);
/* Waits for what is under way. Takes NULL. */
void ls_shard_destroy(struct ls_shard *shard);

/* A step of `sequences` sequences over all ranks begins. */
void ls_shard_begin(struct ls_shard *shard, int64_t sequences);

/* The block's whole flat parameters in the model's type, valid on the compute stream until released. At stage 3 they
 * are gathered, unless they are there still or a prefetch began it; two layers can be held at once, and of embedding
 * and untied head one. Collective at stage 3: all ranks acquire and prefetch the same blocks in the same order. */
const void *ls_shard_acquire(struct ls_shard *shard, int block);
void ls_shard_release(struct ls_shard *shard, int block);
/* Starts to gather a block that will be acquired after the one in use, where there is room; -1: none. */
void ls_shard_prefetch(struct ls_shard *shard, int block);

/* Where the block's gradients of this micro-batch are added: zero, or what came before, at the first call. */
float *ls_shard_gradients(struct ls_shard *shard, int block);
/* The block's gradients of this micro-batch, and of the step if it is the `last`, are complete on the compute stream:
 * their sum over the ranks starts beside what follows, where it is due. A tied head adds to the embedding's gradients,
 * so the embedding comes last. */
void ls_shard_reduce(struct ls_shard *shard, int block, bool last);
/* The same for numbers in device memory. What follows on the compute stream sees the sum after ls_shard_update() or
 * ls_shard_await_values(). */
void ls_shard_reduce_values(struct ls_shard *shard, double *values, int64_t count);
void ls_shard_await_values(struct ls_shard *shard);

/* Results of an update, in device memory. */
struct ls_shard_scalars {
    float *norm;        /* of all gradients, before clipping; the same bits on every rank */
    int32_t *found_inf; /* 1: the norm is not finite, and nothing was changed */
    /* Squared norm of the parameters of one block, each in its turn: equal on equal replicas. At stage 0 after the
     * update; later those the step began with, as they were gathered. */
    double *parameters;
};
struct ls_shard_scalars ls_shard_scalars(struct ls_shard *shard);
/* After every block was reduced: norm, clipping, the optimizer's step number `step` (from 1) at `learning_rate`.
 * Gradients are `loss_scale` times what they should be; 0: 1. Gathering starts. The compute stream must be synchronised
 * between two updates. */
void ls_shard_update(struct ls_shard *shard, float learning_rate, float loss_scale, int64_t step);
/* Puts the products of an update on the compute stream, for a device that is to note them: matrices are made orthogonal
 * where optimizer.type is muon. Their results mean nothing. */
void ls_shard_rehearse(struct ls_shard *shard);
/* The next update changes nothing, as one whose norm is not finite: norm is NAN, found_inf 1. On every rank alike. */
void ls_shard_refuse_update(struct ls_shard *shard);
/* Returns what the collectives met whose results the compute stream has waited for; waits for no others. */
enum ls_code ls_shard_check(struct ls_shard *shard, struct ls_error *error);
/* Seconds the compute stream waited for collectives so far; up to date after it was synchronised. */
double ls_shard_exposed_seconds(const struct ls_shard *shard);

/* This rank's part [first, first + count) of the block's master parameters, m and v, for checkpoints; device memory.
 * Where there is no master apart from the parameters `master` points to those, in their type. `v` is of those elements
 * alone that have a second moment (ls_second_moment_from()), NULL when none of the part's has.
 * The ranks' parts cover the block's count (without padding), each element once; some ranks may have nothing. It is
 * ls_checkpoint_slice() of ls_shard_replicas() and ls_shard_slice_unit(). */
struct ls_shard_slice {
    int64_t first, count;
    void *master;
    float *m, *v;
};
struct ls_shard_slice ls_shard_slice(struct ls_shard *shard, int block);

/* Somebody who reads what an update left while training goes on: it runs beside the next forward and backward, and no
 * copy of the state is made. Both functions are called by the thread that trains. */
struct ls_shard_reader {
    void *context;
    /* Once for every block, in the order of first use: behind this point of the compute stream the block's whole
     * parameters, in the model's type, are what the update left. At stage 3 until what comes after this call on that
     * stream, where they pass through; else until the block's next update. */
    void (*passed)(void *context, int block, const void *parameters);
    /* Before the block's next update is put on the compute stream: returns once nothing of the block is read any more,
     * in ls_shard_slice() or in the parameters, or the stream has failed. */
    void (*release)(void *context, int block);
};
/* Calls the reader from here to the end of the next update; copied. The compute stream is idle, no reader is at work.
 * Blocks whose parameters are whole already pass at once. */
void ls_shard_read(struct ls_shard *shard, const struct ls_shard_reader *reader);
/* Lets the blocks pass that have not yet, for a reader that cannot wait for the next step. Collective at stage 3. */
void ls_shard_pass_all(struct ls_shard *shard);

/* What other ranks hold a copy of, as the last update left it: the block's whole parameters, or at stage 3 this rank's
 * slice of them; `count` elements of the model's type. The compute stream waits for gathers. */
struct ls_shard_copy {
    const void *parameters;
    int64_t count;
};
struct ls_shard_copy ls_shard_copy(struct ls_shard *shard, int block);

/* This rank's memory for the block, for filling: elements [first, first + count) of the parameters, in the model's
 * type, and [state_first, state_first + state_count) of master parameters and m, padding left out; `v` is of those from
 * second_first on. `master` is NULL where there is none apart from the parameters, v where there is none. `m` has room
 * for `scratch_count` fp32 elements on their way to parameters of another type, before it is filled itself. The compute
 * stream must be synchronised after filling. */
struct ls_shard_held {
    int64_t first, count;
    void *parameters;
    int64_t state_first, state_count, second_first, scratch_count;
    float *master, *m, *v;
};
struct ls_shard_held ls_shard_held(struct ls_shard *shard, int block);

#endif
