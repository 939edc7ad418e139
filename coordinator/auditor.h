/* The auditor: hashes each file of a run's data once, in the background and with what processor and disk have to spare,
 * and tells of those that are not what dataset.json says, or what they were when the run hashed them before. What it
 * has hashed is a line of RUN/data.jsonl: {"file", "bytes", "mtime_nanoseconds", "xxh3"}; a file with the same path,
 * size and time is not read again. */
#ifndef LS_COORDINATOR_AUDITOR_H
#define LS_COORDINATOR_AUDITOR_H

#include "common/config.h"
#include "common/status.h"
#include "common/wire.h"
#include "coordinator/run_directory.h"

#include <stdbool.h>

enum { LS_AUDIT_BYTES_PER_SECOND = 100000000 };

struct ls_auditor;

/* `config` is resolved and outlives the auditor. `wake` is an eventfd written to when there is a finding. LS_MEMORY,
 * LS_ERROR. */
enum ls_code ls_auditor_start(const struct ls_run_directory *run, const struct ls_config *config, int wake,
                              struct ls_auditor **auditor, struct ls_error *error);
/* Takes the text of a file that is not as it should be; false when there is none. */
bool ls_auditor_take(struct ls_auditor *auditor, char text[LS_WIRE_TEXT_BYTES]);
/* Ends it, in the middle of a file if need be. One that waits for its storage for more than a second is left behind
 * with what it uses. Takes NULL. */
void ls_auditor_stop(struct ls_auditor *auditor);

#endif
