/* A run's metrics as TensorBoard shows them: event files in RUN/tensorboard/, scalars under torchtitan's names, so that
 * dashboards made for those work. A file is records of
 *
 *      | length, 8 bytes | crc of them, 4 | Event (protobuf), length bytes | crc of them, 4 |
 *
 * all little-endian; a crc is CRC-32C, rotated right by 15 bits, plus 0xa282ead8. Every attempt, and every
 * coordinator, begins a file; the second event of an attempt's tells TensorBoard to forget what it knows of the
 * attempt's steps: they were lost, and come again. */
#ifndef LS_COORDINATOR_TENSORBOARD_H
#define LS_COORDINATOR_TENSORBOARD_H

#include "common/status.h"
#include "coordinator/journal.h"
#include "coordinator/metrics.h"

struct ls_tensorboard;

/* Begins a file, and the folder if need be, for the attempt of `facts`, which begins too or was begun by a coordinator
 * before. LS_CHECKPOINT, LS_MEMORY. */
enum ls_code ls_tensorboard_open(const struct ls_run_facts *facts, bool attempt_begins,
                                 struct ls_tensorboard **tensorboard, struct ls_error *error);
/* Writes the scalars of a step or a validation, and begins a file for a new attempt; other entries are passed over. A
 * failure is logged, once: nothing is written from then on. Called on the journal's thread. */
void ls_tensorboard_write(struct ls_tensorboard *tensorboard, const struct ls_journal_entry *entry);
/* Takes NULL. */
void ls_tensorboard_close(struct ls_tensorboard *tensorboard);

#endif
