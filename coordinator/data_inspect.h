/* `lockstep data inspect`: what is in a dataset. */
#ifndef LS_COORDINATOR_DATA_INSPECT_H
#define LS_COORDINATOR_DATA_INSPECT_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Prints shards, tokens, samples for sequences of `sequence_length`, tail tokens and first words of the dataset at
 * `path` (as in data.train: folder, file, pattern, synthetic:TOKENS), or of both splits if `path` was made by `data
 * prepare`. `dtype`: "" or "uint16" for headerless files. Errors: LS_DATA, LS_USAGE. */
enum ls_code ls_data_inspect(const char *path, const char *dtype, int64_t sequence_length, FILE *out,
                             struct ls_error *error);

/* Writes the text of a dataset of byte tokens back, document tokens left out. LS_USAGE for other tokens, LS_ERROR if
 * `out` takes no more. */
enum ls_code ls_data_print_text(const char *path, FILE *out, struct ls_error *error);

#endif
