/* The committer: turns the parts of a save into a committed checkpoint, and finds the one that an attempt can start
 * from, on a thread of its own because hashing, renames and fsyncs take their time. One thing at a time. */
#ifndef LS_COORDINATOR_COMMITTER_H
#define LS_COORDINATOR_COMMITTER_H

#include "common/checkpoint_retention.h"
#include "common/manifest.h"
#include "common/trainer_state.h"
#include "common/wire.h"
#include "coordinator/run_directory.h"
#include "coordinator/run_start.h"

#include <stdbool.h>
#include <stdint.h>

struct ls_committer;

/* A save to be committed. The committer owns `files` from ls_committer_begin() on. */
struct ls_commit_job {
    struct ls_trainer_state state; /* with step and attempt */
    struct ls_file_record *files;  /* malloc'ed */
    size_t files_count;
    bool final; /* the last step of the run: RUN/final points to it */
    bool best;  /* RUN/best is to point to the best one */
};

/* What became of it. */
struct ls_commit_result {
    int64_t step, attempt;
    bool done;
    char text[LS_WIRE_TEXT_BYTES]; /* when not done */
};

/* A start that was looked for (ls_run_find_start). */
struct ls_prepare_result {
    struct ls_run_start start; /* attempt.attempt: the one it is for */
    struct ls_error error;     /* code LS_OK: found */
};

/* `run` and `generation` fence: nothing is committed once a newer coordinator has taken over. `wake` is an eventfd
 * written to when a result is there. */
enum ls_code ls_committer_start(const struct ls_run_directory *run, uint32_t generation, int wake,
                                struct ls_committer **committer, struct ls_error *error);
/* Begins a job. False, and the files stay the caller's, when one is running. */
bool ls_committer_begin(struct ls_committer *committer, const struct ls_commit_job *job);
/* Takes a result; false when there is none. */
bool ls_committer_take(struct ls_committer *committer, struct ls_commit_result *result);
/* Looks for the start of an attempt, after what is being committed. The wish's texts must outlive the search. */
void ls_committer_prepare(struct ls_committer *committer, const struct ls_run_start_wish *wish);
/* Takes its result; false when there is none. */
bool ls_committer_take_start(struct ls_committer *committer, struct ls_prepare_result *result);
/* True while a commit runs, or its result has not been taken. */
bool ls_committer_is_busy(struct ls_committer *committer);
/* Removes, after what is being committed, the checkpoints up to the committed `step` that `retention` does not keep; a
 * failure is logged. */
void ls_committer_prune(struct ls_committer *committer, int64_t step, const struct ls_retention *retention);
/* Lets a running job and a pruning asked for end, then ends the thread. */
void ls_committer_stop(struct ls_committer *committer);

#endif
