/* Retention: which of a run's checkpoints stay (checkpoint.keep, keep_every, keep_best), and which one is the best. All
 * is read from the folders, so that it does not matter which process died when. */
#ifndef LS_COMMON_CHECKPOINT_RETENTION_H
#define LS_COMMON_CHECKPOINT_RETENTION_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

/* A checkpoint stays for any of these reasons. */
struct ls_retention {
    int keep;           /* it is one of so many newest; 0: all stay */
    int64_t keep_every; /* its step is a multiple of this; 0: no such reason */
    int keep_best;      /* its validation loss is one of the so many lowest; 0: no such reason */
};

/* After `step` was committed: removes the checkpoints at or below it that have no reason to stay, superseded folders
 * whose step is committed (ls_checkpoint_prune), and links to what is gone. The one of `step` always stays. Losses
 * compare where the validation data were those of the newest. LS_CHECKPOINT, LS_MEMORY. */
enum ls_code ls_retention_prune(const char *run_dir, uint64_t step, const struct ls_retention *retention,
                                struct ls_error *error);

/* Makes RUN/best link to the checkpoint at or below `step` with the lowest validation loss, the newest one of equals.
 * Without one there is no such link. LS_CHECKPOINT, LS_MEMORY. */
enum ls_code ls_retention_mark_best(const char *run_dir, uint64_t step, struct ls_error *error);

#endif
