/* The ledger of a run directory: journal, checkpoints, configurations and datasets read and put together, for a run
 * that is not going on. No lock is held afterwards. */
#ifndef LS_COORDINATOR_RUN_LEDGER_H
#define LS_COORDINATOR_RUN_LEDGER_H

#include "common/config.h"
#include "common/corpus.h"
#include "common/status.h"
#include "coordinator/journal.h"
#include "coordinator/ledger.h"
#include "coordinator/run_directory.h"
#include "coordinator/run_generation.h"

#include <stdint.h>

/* A generation of the data: what the journal says of it, and its datasets as they are now. */
struct ls_run_ledger_generation {
    int64_t number;
    struct ls_config *config; /* of its attempts; what is not of data may be that of the last one */
    /* What the journal says of data.train, [config->data.train_count]. */
    uint64_t samples[LS_CONFIG_SOURCES_MAX];
    char digests[LS_CONFIG_SOURCES_MAX][33];
    struct ls_order *order;
    struct ls_corpus *corpus; /* NULL: the datasets are gone, or others: */
    struct ls_error gone;     /* why */
};

struct ls_run_ledger {
    struct ls_run_directory directory;
    struct ls_run_ledger_generation *generations; /* [generations_count], ascending */
    int generations_count;
    int64_t newest; /* the number of the one of the newest attempt */
    struct ls_run_origin origin;
    struct ls_ledger *ledger;
    struct ls_ledger_summary summary; /* of the proof */
    struct ls_journal_shape *shapes;  /* [shapes_count], by attempt */
    int shapes_count;
    int64_t total_steps;
    uint64_t end_position; /* UINT64_MAX: train.steps says where the run ends */
    int32_t *tokens;       /* [data.sequence_length, the longest], what ls_run_ledger_sample() reads */
};

/* Reads and proves (ls_ledger_prove). Damaged checkpoints prove nothing: they are named on standard error and passed
 * over. Datasets of the newest generation must be there and be those that were trained on; of earlier ones it is noted.
 * LS_CHECKPOINT while the run is going on or when the journal cannot be read, LS_USAGE for no run directory, LS_DATA
 * when a dataset cannot be read, is not the one that was trained on, or the proof fails. ls_run_ledger_close()
 * afterwards in any case. */
enum ls_code ls_run_ledger_open(const char *path, struct ls_run_ledger *run, struct ls_error *error);
void ls_run_ledger_close(struct ls_run_ledger *run);

/* The generation of a number that the ledger has steps of. */
const struct ls_run_ledger_generation *ls_run_ledger_generation(const struct ls_run_ledger *run, int64_t number);

/* A generation whose samples are read. */
struct ls_run_ledger_reader {
    struct ls_run_ledger *run;
    const struct ls_run_ledger_generation *generation; /* with its corpus */
};

/* Reads the tokens of the sequence at `position` into run->tokens. LS_DATA. */
enum ls_code ls_run_ledger_read(const struct ls_run_ledger_reader *reader, uint64_t position, struct ls_error *error);
/* An ls_ledger_sample; its context is a struct ls_run_ledger_reader: reads the tokens of the sequence anew. */
enum ls_code ls_run_ledger_sample(void *reader, uint64_t position, struct ls_digest *digest, struct ls_error *error);

#endif
