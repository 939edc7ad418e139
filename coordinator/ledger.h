/* The ledger: what the journal and the checkpoints of a run say about which samples were used, and the proof that every
 * one was used as the order says, once. Records in, findings out; no files, no sockets.
 *
 *   attempt 1   step 1 ─ 2 ─ 3 ─ 4 ─ 5 ─ 6 ─ 7        6 and 7 were given up
 *   attempt 2                        └── 6 ─ 7 ─ 8    from the checkpoint of step 5
 *
 * The lineage is what the run's state comes from: the steps of the newest attempt, and below its start those of the
 * attempts it goes back to; a step that ran again counts by its highest attempt. Each attempt is proven by itself
 * first, given-up steps included: steps and positions without gap, sequences as configured, and the chain of digests
 * (ls_digest_chain) from its start, which every commit and checkpoint must name. Then the attempts are joined by that
 * chain. Sequences that an attempt put into quarantine (common/quarantine.h) are passed over by those after it:
 * positions go on behind them. Positions and quarantine are those of a generation of the data: an attempt that starts
 * from a step of another generation begins its own, at position 0, and the chain goes on. Errors are LS_DATA and name
 * the first difference, and LS_MEMORY. */
#ifndef LS_COORDINATOR_LEDGER_H
#define LS_COORDINATOR_LEDGER_H

#include "common/digest.h"
#include "common/order.h"
#include "common/quarantine.h"
#include "common/status.h"
#include "coordinator/core.h"

#include <stddef.h>
#include <stdint.h>

struct ls_ledger;

/* Where the steps that the journal knows begin, in a run that began with a checkpoint from elsewhere. */
struct ls_ledger_origin {
    int64_t step, position; /* 0: with step 1 */
    int64_t data_generation;
    struct ls_digest chain;
};

/* What the configuration says of every step of an attempt. */
struct ls_ledger_options {
    int64_t global_batch;
    int64_t steps;                  /* the run's last step */
    int64_t end_position;           /* the last step is truncated here; INT64_MAX: never */
    struct ls_ledger_origin origin; /* of the ledger */
};

struct ls_ledger_attempt {
    int64_t attempt, world_size;
    int64_t start_step, start_position;
    int64_t data_generation; /* 0 to LS_CORE_DATA_GENERATIONS_MAX */
    struct ls_digest start_chain;
    char parent_manifest[33];         /* hash of the checkpoint it started from, "" for none */
    struct ls_ledger_options options; /* global_batch 0: the ledger's */
};

/* What a committed checkpoint says of itself. */
struct ls_ledger_checkpoint {
    int64_t step, attempt, position;
    struct ls_digest chain;
    char parent_manifest[33], manifest_hash[33];
};

/* A step of the lineage. */
struct ls_ledger_step {
    int64_t step, position, sequences;
    int64_t end_position; /* behind it: position, its sequences and those passed over */
    struct ls_digest digest, chain;
    bool skipped;                /* no update was made */
    int64_t attempt, world_size; /* who ran it, on how many ranks */
    int64_t data_generation;
};

/* Sequences that `attempt` put into quarantine, because its step `step` was not finite with them. */
struct ls_ledger_quarantine {
    int64_t attempt, step; /* 0: it came with the checkpoint that the run began with */
    int64_t from, to;      /* positions */
    int64_t data_generation;
};

struct ls_ledger_summary {
    int64_t steps, sequences;   /* of the lineage */
    int64_t attempts, lineages; /* all; those that the lineage has steps of */
    int64_t skipped;            /* steps of the lineage that made no update */
    int64_t passed_over;        /* sequences in quarantine, among those of the lineage's steps */
    int64_t given_up;           /* steps run outside the lineage */
    int64_t checkpoints, commits;
    int64_t committed_step; /* the newest step of the lineage that a commit covers */
};

/* How often the samples of a source were used. */
struct ls_ledger_use {
    uint64_t samples;
    uint64_t draws;       /* uses of all samples together, and what was passed over */
    uint64_t passed_over; /* draws that were in quarantine */
    uint64_t unused;      /* samples that were never drawn but in quarantine */
    uint64_t least, most; /* uses of one sample */
    uint64_t begun;       /* samples drawn in the epoch that has begun and not ended */
};

enum ls_code ls_ledger_create(const struct ls_ledger_options *options, struct ls_ledger **ledger,
                              struct ls_error *error);
void ls_ledger_destroy(struct ls_ledger *ledger);

/* Attempts come in ascending order, each before its records; records in the order they were journaled. Copied. */
enum ls_code ls_ledger_add_attempt(struct ls_ledger *ledger, const struct ls_ledger_attempt *attempt,
                                   struct ls_error *error);
enum ls_code ls_ledger_add_record(struct ls_ledger *ledger, const struct ls_core_record *record,
                                  struct ls_error *error);
enum ls_code ls_ledger_add_checkpoint(struct ls_ledger *ledger, const struct ls_ledger_checkpoint *checkpoint,
                                      struct ls_error *error);

/* What was in quarantine when the run began: before the first attempt. */
enum ls_code ls_ledger_inherit(struct ls_ledger *ledger, const struct ls_core_record *quarantine,
                               struct ls_error *error);

/* Proves what was added. LS_DATA names the first difference: attempt, step, what is there and what should be. */
enum ls_code ls_ledger_prove(struct ls_ledger *ledger, struct ls_ledger_summary *summary, struct ls_error *error);

/* After the proof: the lineage, *count steps in order, from 1 or the one behind the origin on. The ledger's. */
const struct ls_ledger_step *ls_ledger_steps(const struct ls_ledger *ledger, size_t *count);

/* After the proof: what is in quarantine, in the order it was put there; the ledger's. */
const struct ls_ledger_quarantine *ls_ledger_quarantined(const struct ls_ledger *ledger, size_t *count);

/* The step of the lineage, NULL if it has none of that number. */
const struct ls_ledger_step *ls_ledger_find(const struct ls_ledger *ledger, int64_t step);

/* The position of sequence `index` (from 0) of a step of the lineage. */
int64_t ls_ledger_position(const struct ls_ledger *ledger, const struct ls_ledger_step *step, int64_t index);

/* Draws every sequence of the lineage's steps in a generation of the data, by its order, and counts into use[sources]:
 * within an epoch of a source no sample may come twice. samples[i] are those of source i. What a run's first step of
 * the generation found used before (its origin lies in it) is counted as drawn. */
enum ls_code ls_ledger_count_use(const struct ls_ledger *ledger, int64_t data_generation, const struct ls_order *order,
                                 const uint64_t *samples, int sources, struct ls_ledger_use *use,
                                 struct ls_error *error);

/* The digest of the sequence at `position`, computed anew (ls_digest_sample). */
typedef enum ls_code ls_ledger_sample(void *context, uint64_t position, struct ls_digest *digest,
                                      struct ls_error *error);
/* Computes the digest of a step's samples anew and compares it with the journaled one: a swapped token, a sample twice
 * and one left out all show here. Errors of `sample` are passed on. */
enum ls_code ls_ledger_prove_samples(const struct ls_ledger *ledger, const struct ls_ledger_step *step,
                                     ls_ledger_sample *sample, void *context, struct ls_error *error);

#endif
