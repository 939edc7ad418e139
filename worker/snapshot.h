/* Snapshots: a replica's parameters and optimizer state to and from checkpoint folders, through host memory that is
 * taken at creation. */
#ifndef LS_WORKER_SNAPSHOT_H
#define LS_WORKER_SNAPSHOT_H

#include "common/corpus.h"
#include "common/manifest.h"
#include "common/status.h"
#include "worker/replica.h"

#include <stddef.h>
#include <stdint.h>

struct ls_snapshot;

/* Bytes of host memory that a snapshot takes: the largest block and three slices of it. Pure. */
int64_t ls_snapshot_host_bytes(const struct ls_config *config, const struct ls_model *model, int64_t ranks);
/* Takes host memory for the largest block and for three slices of it. The pointers must outlive the snapshot.
 * LS_MEMORY.
 */
enum ls_code ls_snapshot_create(const struct ls_config *config, const struct ls_corpus *corpus, struct ls_comm *comm,
                                struct ls_device *device, struct ls_replica *replica, struct ls_snapshot **snapshot,
                                struct ls_error *error);
/* Takes NULL. */
void ls_snapshot_destroy(struct ls_snapshot *snapshot);

/* Collective: blocks are gathered. Writes this rank's files into the build folder `folder`, fsyncs them, and describes
 * them in files[LS_CHECKPOINT_RANK_FILES_MAX]. The compute stream must be idle. LS_CHECKPOINT, which other ranks need
 * not have met. */
enum ls_code ls_snapshot_write(struct ls_snapshot *snapshot, const char *folder, struct ls_file_record *files,
                               size_t *count, struct ls_error *error);
/* Bytes that all ranks' files take together. */
int64_t ls_snapshot_bytes(const struct ls_snapshot *snapshot);

/* Fills what this rank holds from a checkpoint folder, written at any number of ranks and any ZeRO stage. Not
 * collective. LS_CHECKPOINT. */
enum ls_code ls_snapshot_read(struct ls_snapshot *snapshot, const char *folder, struct ls_error *error);
/* Fills what this rank holds from the weights of a Hugging Face folder, with moments of zero. Not collective.
 * LS_CHECKPOINT. */
enum ls_code ls_snapshot_read_weights(struct ls_snapshot *snapshot, const char *folder, struct ls_error *error);

#endif
