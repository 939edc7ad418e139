/* Generations of the data: what a run is trained on, from a step on, and in which order.
 *
 *   step             0 ....... 20 ....... 50
 *   generation 1     A ───────┤
 *   generation 2              └─ B ───────┤            resumed on other data, accepted
 *   generation 3                          └─ A ──      and on the first ones again: from their beginning
 *
 * A run that is resumed on other data, or on the same in another order, begins a new generation: at position 0 of its
 * order, with epochs of its own. Steps, totals and the chain of digests go on. What the data are is told by
 * struct ls_corpus's train_digest. A run whose data are those of its newest attempt stays in that attempt's generation;
 * if its checkpoint is of another one, the generation begins again behind that checkpoint. One that is set back to the
 * data of the very checkpoint it starts from goes on in the checkpoint's generation. */
#ifndef LS_COORDINATOR_RUN_GENERATION_H
#define LS_COORDINATOR_RUN_GENERATION_H

#include "common/config.h"
#include "common/corpus.h"
#include "common/status.h"
#include "coordinator/journal.h"
#include "coordinator/run_start.h"

#include <stdbool.h>
#include <stdint.h>

/* What the configuration's datasets are. */
struct ls_run_data {
    char train_digest[33], validation_digest[33], dataset_digest[33]; /* struct ls_corpus's */
    char *sources;                                                    /* ls_corpus_list_train() */
    char *datasets;                                                   /* ls_corpus_list() */
    uint64_t epoch_length;                                            /* 0: not defined */
};

enum { LS_GENERATION_CHANGED_BYTES = 512 };

/* What an attempt trains on, and what is to be told of it. */
struct ls_run_generation {
    struct ls_journal_data_generation facts; /* sources are those of struct ls_run_data, config that of the caller */
    int64_t before;                          /* that of the checkpoint it starts from; 0: there is none */
    int64_t before_position;                 /* of the checkpoint, in that one's order */
    bool begins;                             /* behind the attempt's start; else it goes on there */
    bool is_new;                             /* no attempt has had it before */
    bool changed;                            /* from the generation of the attempt before; not in a run's first */
    bool validation_changed;                 /* other datasets to validate on: of no generation */
    /* What differs from the generation of the attempt before: keys with both values, datasets. Cut if long, "" for
     * nothing. */
    char differences[LS_GENERATION_CHANGED_BYTES];
};

/* What it is decided by. `accepted` are the names of --accept. */
struct ls_run_generation_wish {
    struct ls_journal *journal;
    const struct ls_journal_attempt *before; /* the newest attempt; attempt 0: there is none */
    const struct ls_run_start *start;        /* the checkpoint that was found */
    const struct ls_run_data *data;
    const struct ls_config *config;
    const char *yaml;  /* the configuration, resolved */
    bool keys_changed; /* those of the data, since RUN/config.yaml was written */
    const char *const *accepted;
    int accepted_count;
    const char *run; /* its directory, for messages */
};

/* Takes the digests and lists of the datasets. LS_MEMORY. */
enum ls_code ls_run_data_read(const struct ls_corpus *corpus, const struct ls_config *config, struct ls_run_data *data,
                              struct ls_error *error);
void ls_run_data_release(struct ls_run_data *data);

/* Decides which generation the attempt that follows `before` is of, and sets the attempt's data_generation,
 * generation_step and start_position; its start is that of the checkpoint otherwise. Writes nothing. LS_USAGE for a key
 * of the data, LS_DATA for datasets, that differ and are not accepted (data.train, data.validation, or `data` for all);
 * both name what differs. */
enum ls_code ls_run_generation_settle(const struct ls_run_generation_wish *wish, struct ls_journal_attempt *attempt,
                                      struct ls_run_generation *generation, struct ls_error *error);
/* Writes down what was settled: the generation, the digest of the validation datasets, and for the first attempt of a
 * journal that starts from a checkpoint what came with it. Before ls_journal_begin_attempt(). */
enum ls_code ls_run_generation_write(const struct ls_run_generation_wish *wish,
                                     const struct ls_run_generation *generation, struct ls_error *error);
/* Tells of a generation that begins, or is gone back to: an event `data_generation` for metrics.jsonl and a line for
 * the console; of other validation data likewise, `validation_data`. Nothing where the data are as they were. After
 * ls_journal_start(). */
void ls_run_generation_tell(const struct ls_run_generation *generation, const struct ls_journal_attempt *attempt,
                            struct ls_journal *journal);

/* Where a run whose journal began with a checkpoint from elsewhere started; step 0: it began with step 1. */
struct ls_run_origin {
    int64_t step, position, samples, data_generation;
    struct ls_digest chain;
};
enum ls_code ls_run_origin_read(struct ls_journal *journal, struct ls_run_origin *origin, struct ls_error *error);

#endif
