/* Snapshots: a replica's parameters and optimizer state to and from checkpoint folders, through host memory that is
 * taken at creation. */
#ifndef LS_WORKER_SNAPSHOT_H
#define LS_WORKER_SNAPSHOT_H

#include "common/corpus.h"
#include "common/manifest.h"
#include "common/status.h"
#include "worker/replica.h"
#include "worker/saver.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ls_snapshot;

/* Bytes of host memory that a snapshot takes: the largest block, three slices of it, and the buffers of two files where
 * they are large. Without `bounce`, where the host reads the device's memory, the block is there at stage 3 alone, and
 * slices are 8 MiB at most. Pure. */
int64_t ls_snapshot_host_bytes(const struct ls_config *config, const struct ls_model *model, int64_t ranks,
                               bool bounce);
/* Takes that memory, and starts the thread that saves. *options is as the saver's, but for the buffers, which are made
 * here; what it points to must outlive the snapshot. LS_MEMORY, LS_ERROR. */
enum ls_code ls_snapshot_create(const struct ls_saver_options *options, struct ls_snapshot **snapshot,
                                struct ls_error *error);
/* Takes NULL. */
void ls_snapshot_destroy(struct ls_snapshot *snapshot);

/* Writes the replica's state, with the snapshot's memory: no save while something is read. Owned by the snapshot. */
struct ls_saver *ls_snapshot_saver(struct ls_snapshot *snapshot);
/* Bytes that all ranks' files take together. */
int64_t ls_snapshot_bytes(const struct ls_snapshot *snapshot);

/* Fills what this rank holds from a checkpoint folder, written at any number of ranks and any ZeRO stage. Not
 * collective. LS_CHECKPOINT. */
enum ls_code ls_snapshot_read(struct ls_snapshot *snapshot, const char *folder, struct ls_error *error);
/* Fills what this rank holds from the weights of a Hugging Face folder, with moments of zero. Not collective.
 * LS_CHECKPOINT. */
enum ls_code ls_snapshot_read_weights(struct ls_snapshot *snapshot, const char *folder, struct ls_error *error);

#endif
