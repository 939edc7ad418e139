/* `lockstep data verify`: are the files of a dataset what they were when they were written? */
#ifndef LS_COORDINATOR_DATA_VERIFY_H
#define LS_COORDINATOR_DATA_VERIFY_H

#include "common/status.h"

#include <stdio.h>

/* Reads every shard of the dataset at `path` (a folder or a file; both splits if `path` was made by `data prepare`),
 * checks header, size, token ids and, with a dataset.json, count and hash, and prints a line for each. `dtype`: "" or
 * "uint16" for headerless files. Goes through all shards; LS_DATA then names the first that is bad. LS_STOPPED on a
 * signal, LS_MEMORY. */
enum ls_code ls_data_verify(const char *path, const char *dtype, FILE *out, struct ls_error *error);

#endif
