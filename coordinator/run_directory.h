/* The run directory: making it, refusing one that is there, and the lock that makes one coordinator its owner. */
#ifndef LS_COORDINATOR_RUN_DIRECTORY_H
#define LS_COORDINATOR_RUN_DIRECTORY_H

#include "common/config.h"
#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

enum { LS_RUN_PATH_MAX = 1000 };

struct ls_run_directory {
    char path[LS_RUN_PATH_MAX]; /* absolute */
    char run_id[17];            /* 16 hex digits of the path's hash */
    int lock;                   /* descriptor of RUN/lock while it is held, else -1 */
};

/* Finds RUN for a new or resumed run: `path` or, when NULL, runs/NAME. Without `resume` an existing one is refused
 * (LS_USAGE) with its last step and both ways on; with it, it must be a run directory, empty or absent. Makes RUN with
 * logs/ and checkpoints/ when absent. A path that is not plain UTF-8 is refused (LS_USAGE), and not made. */
enum ls_code ls_run_directory_make(const char *path, const char *name, bool resume, struct ls_run_directory *run,
                                   struct ls_error *error);
/* Finds an existing RUN for a command about it (LS_USAGE when it is none). */
enum ls_code ls_run_directory_find(const char *path, struct ls_run_directory *run, struct ls_error *error);

/* Takes RUN/lock (flock; text: host, pid, boot id, parent, endpoint, generation), or says who has it (LS_CHECKPOINT). A
 * coordinator that was killed may take a moment to leave: waits for up to `seconds`. The text then says that its new
 * owner does not listen yet. */
enum ls_code ls_run_directory_lock(struct ls_run_directory *run, double seconds, struct ls_error *error);
/* Writes the generation, and where the coordinator listens ("" while it does not), into the lock that is held. */
enum ls_code ls_run_directory_sign(struct ls_run_directory *run, uint32_t generation, const char *endpoint,
                                   struct ls_error *error);
/* Reads from the lock file where the coordinator listens; false when it says nothing. */
bool ls_run_directory_endpoint(const struct ls_run_directory *run, char *endpoint, size_t size);
/* False when the lock file no longer says `generation`: a newer coordinator has taken over, this one may commit
 * nothing. */
bool ls_run_directory_is_ours(const struct ls_run_directory *run, uint32_t generation);
/* Says why it is not ours; returns LS_CHECKPOINT. */
enum ls_code ls_run_directory_tell_lost(const struct ls_run_directory *run, struct ls_error *error);
/* True when whoever would start another coordinator in the place of the one that had the lock last is known to be dead,
 * as it can be only where that one ran: under the same kernel, with the same process ids. */
bool ls_run_directory_is_abandoned(const struct ls_run_directory *run);
/* True when some process holds the lock. */
bool ls_run_directory_is_locked(const struct ls_run_directory *run);
void ls_run_directory_unlock(struct ls_run_directory *run);

/* The last step in metrics.jsonl; -1 when there is none. */
int64_t ls_run_directory_last_step(const struct ls_run_directory *run);

/* Compares `config` with RUN/config.yaml, which is written if absent. Each change is logged, with its effect. LS_USAGE
 * where one of them is in the way (ls_config_changes_check); accepted[count] are the keys and sections that may change
 * numbers or data. Checkpoints of the configuration before belong to the run from then on. `changed` becomes a line
 * about the numbers that changed, cut if long, "" for none; *data_changed: keys of the data did. */
enum { LS_CHANGED_BYTES = 1024 };
enum ls_code ls_run_directory_check_config(const struct ls_run_directory *run, const struct ls_config *config,
                                           const char *const *accepted, int count, char changed[LS_CHANGED_BYTES],
                                           bool *data_changed, struct ls_error *error);
/* Writes RUN/config.yaml: once nothing of `config` is in the way. */
enum ls_code ls_run_directory_keep_config(const struct ls_run_directory *run, const struct ls_config *config,
                                          struct ls_error *error);
/* True when a checkpoint of a configuration with this digest belongs to the run: `current` is that of RUN/config.yaml,
 * and RUN/config.lineage lists those before it. */
bool ls_run_directory_knows_config(const char *run_dir, const char *current, const char *digest);

#endif
