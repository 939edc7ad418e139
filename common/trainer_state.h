/* trainer.json: what a run needs beside its tensors to go on from a checkpoint at any world size. */
#ifndef LS_COMMON_TRAINER_STATE_H
#define LS_COMMON_TRAINER_STATE_H

#include "common/quarantine.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Digests are 32 hex digits, or "" where there is none. What a file of an older version does not say is as it was then:
 * the first generation of the data, from step 0 on, nothing in quarantine. */
struct ls_trainer_state {
    uint64_t step;                 /* steps executed */
    uint64_t attempt;              /* the attempt that wrote the checkpoint */
    uint64_t position;             /* in the order of its generation of the data: the next step starts here */
    uint64_t samples;              /* sequences used, over all generations; of an older file `position` */
    uint64_t epoch;                /* whole epochs of the generation behind `position`; 0 for weighted mixtures */
    uint64_t data_generation;      /* from 1; 0 is written as 1 */
    uint64_t data_generation_step; /* the generation began behind this step */
    uint64_t optimizer_steps;      /* AdamW's step count; behind `step` where updates were skipped */
    uint64_t tokens;               /* tokens fed, cumulative */
    uint64_t world_size;           /* of the attempt; any other may load it */
    uint64_t data_seed, train_seed;
    bool validated;           /* an evaluation ran behind the step: */
    double validation_loss;   /* nats per target, finite */
    char ledger_chain[33];    /* chain of the step digests after `step` */
    char parent_manifest[33]; /* hash of the manifest.json of the checkpoint this lineage started from; "": from step 0
                               */
    char config_digest[33], dataset_digest[33];
    char train_digest[33];           /* struct ls_corpus's: the generation's data and their order; "": not known */
    char validation_digest[33];      /* struct ls_corpus's: what the loss is of; "": not known */
    struct ls_quarantine quarantine; /* what the generation passes over */
};

/* Makes the JSON. *json is malloc'ed, NUL-terminated; the caller frees. Errors: LS_MEMORY. */
enum ls_code ls_trainer_state_write(const struct ls_trainer_state *state, char **json, struct ls_error *error);
/* Parses and checks it; unknown keys are ignored, missing ones refused. Errors: LS_CHECKPOINT. */
enum ls_code ls_trainer_state_parse(const char *json, size_t count, struct ls_trainer_state *state,
                                    struct ls_error *error);

#endif
