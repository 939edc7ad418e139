/* The data of a run: every dataset of the configuration open, the order over them, and what both processes derive from
 * them, so that both derive the same. */
#ifndef LS_COMMON_CORPUS_H
#define LS_COMMON_CORPUS_H

#include "common/config.h"
#include "common/dataset.h"
#include "common/order.h"
#include "common/status.h"

#include <stdint.h>

struct ls_corpus {
    struct ls_dataset *train[LS_CONFIG_SOURCES_MAX], *validation[LS_CONFIG_SOURCES_MAX];
    int train_count, validation_count;
    struct ls_order *order; /* over train */
    uint64_t epoch_length;  /* sequences; 0 for weighted mixtures */
    int64_t train_samples, validation_samples;
    int64_t vocab_size;                /* the largest of the datasets, 0: unknown */
    double validation_bytes_per_token; /* of the validation datasets together; 0: unknown */
    char digest[33];                   /* over all datasets, in their order */
    char validation_digest[33];        /* over what those of data.validation hold */
    /* Over what a position of the order is: the datasets of data.train and every other key of data that is part of the
     * run's identity. Another one is another generation of the data. */
    char train_digest[33];
};

/* Opens data.train and data.validation. LS_DATA for a dataset that cannot be used, LS_USAGE for weights that cannot. */
enum ls_code ls_corpus_open(const struct ls_config *config, struct ls_corpus **corpus, struct ls_error *error);
void ls_corpus_close(struct ls_corpus *corpus);

/* One line for each dataset, data.train first: its digest (32 hex digits), a space, its path. *text is malloc'ed; the
 * caller frees. LS_MEMORY. */
enum ls_code ls_corpus_list(const struct ls_corpus *corpus, const struct ls_config *config, char **text,
                            struct ls_error *error);

/* The same of data.train alone, with the digests of what the datasets hold (ls_dataset_content_digest) and the number
 * of samples between: digest, samples, path. */
enum ls_code ls_corpus_list_train(const struct ls_corpus *corpus, const struct ls_config *config, char **text,
                                  struct ls_error *error);

/* Fills config->model.vocab_size when it is 0. LS_USAGE when it stays unknown or is smaller than the datasets'. */
enum ls_code ls_corpus_resolve_vocab(const struct ls_corpus *corpus, struct ls_config *config, struct ls_error *error);

/* Where the run ends: the number of its last step, and the sequences after which the last step is truncated (UINT64_MAX
 * with train.steps: never). LS_USAGE for train.epochs of a weighted mixture, or ones beyond 2^60 sequences. */
enum ls_code ls_corpus_end(const struct ls_corpus *corpus, const struct ls_config *config, int64_t *total_steps,
                           uint64_t *end_position, struct ls_error *error);

#endif
