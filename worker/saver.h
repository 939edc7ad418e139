/* The saver: a thread of a rank that writes its part of a checkpoint while training goes on. State is immutable from
 * one update to the next, so the thread reads it where it lies, and the training thread puts the update of a block on
 * the compute stream once the block's own bytes are read.
 *
 *     boundary      step s+1: forward ..... backward ..... update of block 0, 1, ...
 *     begin(s) ---> weights pass by ...............        each waits for the thread, if that is still at the block
 *       thread:     state of block 0, weights of block 0, state of block 1, ...      fsync, written
 *
 *     weights     at stages 0 to 2 from the parameters, once their gather has ended; at stage 3 whole tensors are
 *                 copied as the block passes by in the forward, into a ring of a block's size that the thread empties
 *     state       from device memory where the host reads it, else through three buffers of a slice by a copying stream
 *
 * A write that fails releases everything at once: training never waits for a disk that is full. One save at a time. */
#ifndef LS_WORKER_SAVER_H
#define LS_WORKER_SAVER_H

#include "common/corpus.h"
#include "common/manifest.h"
#include "common/progress.h"
#include "common/status.h"
#include "worker/checkpoint/save.h"
#include "worker/replica.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ls_saver;

/* What it points to must outlive the saver. The buffers are host memory that the device copies to. */
struct ls_saver_options {
    const struct ls_config *config;
    const struct ls_corpus *corpus;
    struct ls_comm *comm;
    struct ls_device *device;
    struct ls_replica *replica;
    struct ls_progress_record *progress; /* says when training waits for the thread; NULL: none */
    char *weights;                       /* [weights_bytes], a whole block's parameters: at stage 3, and to bounce */
    int64_t weights_bytes;
    float *slices[LS_CHECKPOINT_KINDS]; /* to bounce: each of the largest slice of a block */
    bool bounce;                        /* as if the host could not read the device's memory */
};

/* Starts the thread, which sleeps. LS_MEMORY, LS_ERROR. */
enum ls_code ls_saver_create(const struct ls_saver_options *options, struct ls_saver **saver, struct ls_error *error);
/* Gives up what is being written. The compute stream is idle. Takes NULL. */
void ls_saver_destroy(struct ls_saver *saver);

/* Begins to write this rank's files into the build folder `folder` (copied). The compute stream is idle; nothing is
 * being written. Returns at once; not collective. */
void ls_saver_begin(struct ls_saver *saver, const char *folder);
/* True when begun and ready to be finished: written, or failed. Never waits. */
bool ls_saver_is_written(struct ls_saver *saver);
/* Waits until all is written and fsynced, and describes it in files[LS_CHECKPOINT_RANK_FILES_MAX]; *seconds is from
 * ls_saver_begin() to there. Collective at stage 3 when no step has run since. LS_CHECKPOINT, which other ranks need
 * not have met; what the streams met. */
enum ls_code ls_saver_finish(struct ls_saver *saver, struct ls_file_record *files, size_t *count, double *seconds,
                             struct ls_error *error);
/* Seconds the compute stream has stood still for the thread so far. */
double ls_saver_blocked_seconds(const struct ls_saver *saver);

#endif
