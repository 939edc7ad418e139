/* Where an attempt starts: the newest good checkpoint of a run, or step 0. */
#ifndef LS_COORDINATOR_RUN_START_H
#define LS_COORDINATOR_RUN_START_H

#include "common/checkpoint_retention.h"
#include "common/config.h"
#include "common/status.h"
#include "common/trainer_state.h"
#include "coordinator/journal.h"

#include <stdbool.h>
#include <stdint.h>

enum { LS_RUN_DAMAGED_MAX = 8 };

/* What is looked for. */
struct ls_run_start_wish {
    const char *run_dir;
    int64_t attempt;    /* that will start */
    int64_t below_step; /* checkpoints of this step and later ones are not to be used */
    const char *config_digest;
    bool best; /* RUN/best links to the one with the lowest validation loss */
};

/* What was found; what the attempt's number and world size are is the caller's, and whether its data are those of the
 * checkpoint. */
struct ls_run_start {
    bool found;                            /* a checkpoint; else all is zero */
    struct ls_trainer_state state;         /* of it */
    struct ls_journal_attempt attempt;     /* that goes on from it in its generation of the data */
    int damaged_count;                     /* checkpoints that were passed over */
    char damaged[LS_RUN_DAMAGED_MAX][400]; /* the first of them: name, and what is wrong */
};

/* Makes RUN/latest and RUN/best (if `best`) what the checkpoints say, with the run's lock held: a coordinator may have
 * been killed between a commit and what follows it. `attempt` as for ls_checkpoint_recover(). What cannot be done is
 * logged. */
void ls_run_mend_links(const char *run_dir, int64_t attempt, bool best);
/* The same of a run that is complete with `step`: no other commit follows, so RUN/final is made too, and checkpoints
 * that need not stay are removed. */
void ls_run_mend_complete(const char *run_dir, int64_t attempt, const struct ls_config *config, int64_t step);
/* Which checkpoints stay. */
struct ls_retention ls_run_retention(const struct ls_config *config);

/* Tidies RUN/checkpoints (ls_checkpoint_recover), rejects the checkpoints from below_step on, and takes the newest good
 * one; damaged ones above it are rejected and logged, and the links mended. Reads every byte of what it accepts. Done
 * again it finds the same. LS_CHECKPOINT, also when the checkpoint is of another configuration. */
enum ls_code ls_run_find_start(const struct ls_run_start_wish *wish, struct ls_run_start *start,
                               struct ls_error *error);

#endif
