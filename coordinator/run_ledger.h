/* The ledger of a run directory: journal, checkpoints, configuration and datasets read and put together, for a run that
 * is not going on. Nothing is changed, and no lock is held afterwards. */
#ifndef LS_COORDINATOR_RUN_LEDGER_H
#define LS_COORDINATOR_RUN_LEDGER_H

#include "common/config.h"
#include "common/corpus.h"
#include "common/status.h"
#include "coordinator/journal.h"
#include "coordinator/ledger.h"
#include "coordinator/run_directory.h"

#include <stdint.h>

struct ls_run_ledger {
    struct ls_run_directory directory;
    struct ls_config *config;
    struct ls_corpus *corpus;
    struct ls_ledger *ledger;
    struct ls_ledger_summary summary; /* of the proof */
    struct ls_journal_shape *shapes;  /* [shapes_count], by attempt */
    int shapes_count;
    int64_t total_steps;
    uint64_t end_position; /* UINT64_MAX: train.steps says where the run ends */
    int32_t *tokens;       /* [data.sequence_length], what ls_run_ledger_sample() reads */
};

/* Reads and proves (ls_ledger_prove). Damaged checkpoints prove nothing: they are named on standard error and passed
 * over. LS_CHECKPOINT while the run is going on or when the journal cannot be read, LS_USAGE for no run directory,
 * LS_DATA when a dataset cannot be read, is not the one that was trained on, or the proof fails. ls_run_ledger_close()
 * afterwards in any case. */
enum ls_code ls_run_ledger_open(const char *path, struct ls_run_ledger *run, struct ls_error *error);
void ls_run_ledger_close(struct ls_run_ledger *run);

/* Reads the tokens of the sequence at `position` into run->tokens. LS_DATA. */
enum ls_code ls_run_ledger_read(struct ls_run_ledger *run, uint64_t position, struct ls_error *error);
/* An ls_ledger_sample; its context is a struct ls_run_ledger: reads the tokens of the sequence anew. */
enum ls_code ls_run_ledger_sample(void *run, uint64_t position, struct ls_digest *digest, struct ls_error *error);

#endif
