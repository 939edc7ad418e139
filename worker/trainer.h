/* The trainer: the training loop of one rank, without sockets or signals. At every step boundary rank 0's orders spread
 * to all ranks in the one small collective that opens a step; then either a step runs, or an evaluation, or a save, the
 * same on every rank. Everything is allocated at creation.
 *
 *     ls_trainer_boundary -> [save: every rank begins its part] -> ls_trainer_step -> [ls_trainer_evaluate] -> boundary
 *     -> [every rank has written: ls_trainer_save_finish] -> ...
 *
 * Every function returns the same code on all ranks where it can: an error met by one rank before the collective
 * reaches all of them, with that rank's number in its text. Steps count from 1. */
#ifndef LS_WORKER_TRAINER_H
#define LS_WORKER_TRAINER_H

#include "common/config.h"
#include "common/corpus.h"
#include "common/manifest.h"
#include "common/progress.h"
#include "common/status.h"
#include "common/wire.h" /* struct ls_step_report */
#include "worker/comm/comm.h"
#include "worker/device/device.h"
#include "worker/replica_check.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ls_trainer;

/* Steps read ahead into the ring of batches. */
enum { LS_TRAINER_PREFETCH_DEPTH = 3 };

/* All pointers must outlive the trainer. */
struct ls_trainer_options {
    const struct ls_config *config; /* vocab_size set */
    const struct ls_corpus *corpus;
    struct ls_device *device;
    struct ls_comm *comm;
    struct ls_progress_record *progress; /* NULL: none */
    int64_t start_step;                  /* steps done before */
    uint64_t start_position;             /* sequences used before */
    int64_t optimizer_steps;             /* updates done before */
    int64_t total_steps;                 /* of the whole run, for the learning rate */
    int64_t end_step;                    /* behind which this attempt ends */
    uint64_t end_position;               /* the last step is truncated there; UINT64_MAX: never */
    struct ls_quarantine quarantine;     /* sequences that are passed over */
    bool bounce;                         /* for tests, see struct ls_saver_options */
};

/* Errors: LS_USAGE (shapes, fewer sequences in a full step than ranks), LS_MEMORY, LS_ERROR. Parameters are zero until
 * ls_trainer_initialize() or ls_trainer_load(). Collective with zero.replicas above 1. */
enum ls_code ls_trainer_create(const struct ls_trainer_options *options, struct ls_trainer **trainer,
                               struct ls_error *error);
/* Takes NULL. */
void ls_trainer_destroy(struct ls_trainer *trainer);

/* Collective, before ls_trainer_initialize() or ls_trainer_load(): see ls_replica_tune(). */
enum ls_code ls_trainer_tune(struct ls_trainer *trainer, const char *run_directory, struct ls_error *error);

/* Parameters from the folder model.init_from (LS_CHECKPOINT), else from train.seed; the same at any number of ranks. */
enum ls_code ls_trainer_initialize(struct ls_trainer *trainer, struct ls_error *error);
/* Parameters and optimizer state from a checkpoint folder, written at any number of ranks and ZeRO stage. Not
 * collective. LS_CHECKPOINT. */
enum ls_code ls_trainer_load(struct ls_trainer *trainer, const char *folder, struct ls_error *error);

/* What rank 0 wants at a boundary. */
struct ls_trainer_orders {
    int64_t granted_end; /* steps below this one may run */
    uint64_t save_id;    /* the newest request to save */
    uint64_t stop_id;    /* not 0: save and leave with `stop_code` */
    int stop_code;
    bool leave; /* leave at once with `leave_code` */
    int leave_code;
    bool save_due;          /* an interval has passed: save */
    int64_t committed_step; /* newest checkpoint that is committed, -1: none */
    bool save_wished;       /* any rank: it wishes for a save, as after a SIGTERM; on return: some rank does */
    bool save_written;      /* any rank: it has a part to finish, ls_trainer_save_is_written(); on return: all have */
};

/* Collective. On rank 0 *orders is what it wants (other ranks: only save_wished counts), on return it is that on every
 * rank. Takes the next step's batch when that step was granted before. Errors: what any rank met since (LS_DATA
 * mostly); LS_COMMUNICATION; LS_ERROR when the ranks' parameters are found to differ: the norm of one block is
 * compared after each step, all of them every fault.replica_check_every steps. */
enum ls_code ls_trainer_boundary(struct ls_trainer *trainer, struct ls_trainer_orders *orders, struct ls_error *error);
/* True when the next step's batch was taken at the last boundary, on all ranks. */
bool ls_trainer_may_step(const struct ls_trainer *trainer);

/* Collective. Runs the next step; *report (attempt stays 0) is the same on every rank; its times are those of
 * worker/step_times.h. Errors: LS_NONFINITE when loss or gradient are not finite, or the loss spikes
 * (fault.loss_spike_factor); the update is not applied when the gradient is not finite. With fault.nonfinite: skip such
 * a step is none of these: it makes no update. In fp16 a gradient that is not finite only skips the update while the
 * loss scale can be lowered. A step that skipped its update counts, and so do its samples; the optimizer's steps do
 * not. */
enum ls_code ls_trainer_step(struct ls_trainer *trainer, struct ls_step_report *report, struct ls_error *error);

/* Collective. Loss over the validation datasets, or their first evaluation.batches global batches, in nats per target;
 * *bits_per_byte is NAN where the bytes behind a token are unknown. Only with data.validation and
 * evaluation.every_steps. */
enum ls_code ls_trainer_evaluate(struct ls_trainer *trainer, double *loss, double *bits_per_byte,
                                 struct ls_error *error);
/* True after a step that evaluation.every_steps asks for, or the last one. */
bool ls_trainer_evaluation_due(const struct ls_trainer *trainer);

/* Begins to write this rank's files of the steps done into the build folder, beside the next step, whose update waits
 * where it must. Between two steps, on every rank; no save is under way. */
void ls_trainer_save_begin(struct ls_trainer *trainer, const char *folder);
/* True when this rank's part is written, or failed, and ls_trainer_save_finish() will not wait. */
bool ls_trainer_save_is_written(struct ls_trainer *trainer);
/* Collective, also when some rank cannot write. Waits until this rank's files are written, and describes them in
 * files[LS_CHECKPOINT_RANK_FILES_MAX]; *seconds it took since the beginning. LS_CHECKPOINT. */
enum ls_code ls_trainer_save_finish(struct ls_trainer *trainer, struct ls_file_record *files, size_t *count,
                                    double *seconds, struct ls_error *error);
/* Bytes that all ranks' files take together. */
int64_t ls_trainer_save_bytes(const struct ls_trainer *trainer);

/* Steps done, sequences used, updates done, over the whole run. */
int64_t ls_trainer_steps_done(const struct ls_trainer *trainer);
uint64_t ls_trainer_position(const struct ls_trainer *trainer);
int64_t ls_trainer_optimizer_steps(const struct ls_trainer *trainer);
/* What the last error found to differ, NULL: something else was wrong. */
const struct ls_replica_difference *ls_trainer_difference(const struct ls_trainer *trainer);
/* The rank that the last error came from, -1: none in particular. */
int ls_trainer_failed_rank(const struct ls_trainer *trainer);

struct ls_replica *ls_trainer_replica(struct ls_trainer *trainer);
/* Collective. Copies the flat parameters of a block to host memory. */
enum ls_code ls_trainer_parameters(struct ls_trainer *trainer, int block, void *parameters, struct ls_error *error);
const struct ls_model *ls_trainer_model(const struct ls_trainer *trainer);

#endif
