/* The checkpoints of a run directory: building, committing, finding, pruning. The coordinator, which holds the run's
 * lock, changes them; world rank 0 only makes the build folder; any process may look.
 *
 *     RUN/checkpoints/.step-00000200.a2/              being built by attempt 2
 *     RUN/checkpoints/step-00000200/                  committed: renamed once all was written and fsynced
 *     RUN/checkpoints/step-00000200.superseded-a2/    an earlier one of that step, put aside by attempt 2
 *     RUN/checkpoints/step-00000200.rejected-a3/      damaged or given up, put aside by attempt 3
 *     RUN/latest                                      text: step-00000200
 *     RUN/final                                       link to checkpoints/step-N of the last step
 *     RUN/best                                        link to the one with the lowest validation loss
 *
 * The order of a save: ls_checkpoint_begin() on world rank 0, every rank writes its files into the build folder, fsyncs
 * them and reports (name, bytes, hash), ls_checkpoint_commit() in the coordinator, then ls_checkpoint_prune(). Errors
 * are LS_CHECKPOINT, and LS_MEMORY where this process has no memory or descriptor left. */
#ifndef LS_COMMON_CHECKPOINT_FOLDER_H
#define LS_COMMON_CHECKPOINT_FOLDER_H

#include "common/manifest.h"
#include "common/status.h"
#include "common/trainer_state.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LS_CHECKPOINT_PATH_MAX = 4096, LS_CHECKPOINT_NAME_MAX = 64 };

/* "step-00000200": at least eight digits. */
void ls_checkpoint_name(uint64_t step, char name[LS_CHECKPOINT_NAME_MAX]);
/* RUN/checkpoints/step-00000200, and RUN/checkpoints/.step-00000200.a2. */
enum ls_code ls_checkpoint_path(const char *run_dir, uint64_t step, char path[LS_CHECKPOINT_PATH_MAX],
                                struct ls_error *error);
enum ls_code ls_checkpoint_build_path(const char *run_dir, uint64_t step, uint64_t attempt,
                                      char path[LS_CHECKPOINT_PATH_MAX], struct ls_error *error);

/* Makes an empty build folder with its state/ (what an earlier try of the same step and attempt left is removed) and
 * puts its path in `path`. When `bytes_needed` > 0 the file system must have that much free, else the error names both
 * numbers and nothing is made. */
enum ls_code ls_checkpoint_begin(const char *run_dir, uint64_t step, uint64_t attempt, int64_t bytes_needed,
                                 char path[LS_CHECKPOINT_PATH_MAX], struct ls_error *error);

/* Commits the build folder of (step, attempt): checks that every file of `files` is there with its size (parts of
 * another attempt lie in another folder and are therefore missing), removes what is not listed, writes trainer.json and
 * then manifest.json, fsyncs, puts an existing folder of that step aside, renames, fsyncs checkpoints/. From here it is
 * committed; `latest` follows (a failure there is only logged). `state->step` and `state->attempt` must be step and
 * attempt. manifest_hash[33] (may be NULL) becomes the hash of manifest.json. On failure the earlier checkpoints are as
 * they were. */
enum ls_code ls_checkpoint_commit(const char *run_dir, uint64_t step, uint64_t attempt,
                                  const struct ls_file_record *files, size_t count,
                                  const struct ls_trainer_state *state, char manifest_hash[33], struct ls_error *error);

/* A good checkpoint. */
struct ls_checkpoint_found {
    char path[LS_CHECKPOINT_PATH_MAX];
    char name[LS_CHECKPOINT_NAME_MAX];
    struct ls_trainer_state state;
    char manifest_hash[33];
};

/* Told of each damaged checkpoint that was passed over: the folder's name and what is wrong with it. */
typedef void ls_checkpoint_damaged(void *context, const char *name, const char *text);

/* Finds the newest checkpoint whose every file has its size and hash. Damaged ones are reported to `damaged` (NULL: the
 * log, as warnings) and passed over. *found is false when there is none; that is no error. Reads every byte of what it
 * accepts. */
enum ls_code ls_checkpoint_newest(const char *run_dir, bool *found, struct ls_checkpoint_found *checkpoint,
                                  ls_checkpoint_damaged *damaged, void *context, struct ls_error *error);

/* Renames the folder `name` of RUN/checkpoints, as ls_checkpoint_newest() tells it, to that of a rejected one: it is
 * no checkpoint any more, and stays until ls_checkpoint_prune() of a later step. */
enum ls_code ls_checkpoint_reject(const char *run_dir, const char *name, uint64_t attempt, struct ls_error *error);
/* Rejects every checkpoint of `step` and those above it. */
enum ls_code ls_checkpoint_reject_from(const char *run_dir, uint64_t step, uint64_t attempt, struct ls_error *error);

/* The steps that have a committed folder, damaged ones too, ascending. *steps is malloc'ed; the caller frees. */
enum ls_code ls_checkpoint_list(const char *run_dir, uint64_t **steps, size_t *count, struct ls_error *error);

/* Checks one checkpoint folder in full and reads its trainer.json. */
enum ls_code ls_checkpoint_open(const char *path, struct ls_checkpoint_found *checkpoint, struct ls_error *error);

/* At start, with the run's lock held: removes the build folders of attempts before `attempt` and what was half removed,
 * puts back a superseded folder whose replacement never came, and makes `latest` name the newest committed folder;
 * without one there is no such file. */
enum ls_code ls_checkpoint_recover(const char *run_dir, uint64_t attempt, struct ls_error *error);

/* After `step` was committed: removes the committed folders at or below it whose steps are not among kept[count], and
 * every superseded folder whose step is committed, and the rejected ones up to `step`. Which ones stay is
 * checkpoint_retention.h's. */
enum ls_code ls_checkpoint_prune(const char *run_dir, uint64_t step, const uint64_t *kept, size_t count,
                                 struct ls_error *error);

/* Makes RUN/NAME, a file name, link to the checkpoint of `step`, replacing an earlier link. */
enum ls_code ls_checkpoint_link(const char *run_dir, const char *name, uint64_t step, struct ls_error *error);

/* Reads trainer.json of the committed checkpoint of `step`, without looking at its other files. */
enum ls_code ls_checkpoint_read_state(const char *run_dir, uint64_t step, struct ls_trainer_state *state,
                                      struct ls_error *error);

/* LS_OK when the file system of `path` has `bytes_needed` free for this user; else both numbers in an error. */
enum ls_code ls_checkpoint_check_space(const char *path, int64_t bytes_needed, struct ls_error *error);

/* The error for a failed write of `path` with errno `cause`: for a full disk with the bytes needed and the bytes free.
 */
enum ls_code ls_checkpoint_write_failed(const char *path, int cause, int64_t bytes_needed, struct ls_error *error);

#endif
