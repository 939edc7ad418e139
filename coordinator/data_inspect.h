/* `lockstep data inspect`: what is in a dataset. */
#ifndef LS_COORDINATOR_DATA_INSPECT_H
#define LS_COORDINATOR_DATA_INSPECT_H

#include "common/tokenizer.h"
#include "common/dataset.h"
#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Prints shards, tokens, samples for sequences of `sequence_length`, tail tokens and first words of the dataset at
 * `path` (as in data.train: folder, file, pattern, synthetic:TOKENS), or of both splits if `path` was made by `data
 * prepare`. `dtype`: "" or "uint16" for headerless files. Errors: LS_DATA, LS_USAGE. */
enum ls_code ls_data_inspect(const char *path, const char *dtype, int64_t sequence_length, FILE *out,
                             struct ls_error *error);

/* The tokenizer of a dataset that names one by its file; NULL where tokens are bytes, or nothing is known of them. The
 * caller destroys it. LS_DATA: the file cannot be read, or is no tokenizer that is understood. */
enum ls_code ls_data_open_tokenizer(const struct ls_dataset *dataset, struct ls_tokenizer **tokenizer,
                                    struct ls_error *error);

/* Prints tokens[count], count >= 1, of a dataset in one line: as text in which line ends are "\n" and what cannot be
 * shown is '.', where tokens are bytes or `tokenizer` is theirs; others as the first few ids. */
void ls_data_print_tokens(const struct ls_dataset *dataset, const struct ls_tokenizer *tokenizer, const int32_t *tokens,
                          int64_t count, FILE *out);

/* Writes the text of a dataset back, document tokens left out. LS_USAGE where tokens are neither bytes nor of a known
 * tokenizer, LS_ERROR if `out` takes no more. */
enum ls_code ls_data_print_text(const char *path, FILE *out, struct ls_error *error);

#endif
