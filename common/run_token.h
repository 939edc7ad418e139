/* The token: a random text that the coordinator writes into the run directory, so that every host can show that it sees
 * the same one. */
#ifndef LS_COMMON_RUN_TOKEN_H
#define LS_COMMON_RUN_TOKEN_H

#include "common/status.h"

#include <stdbool.h>

enum { LS_RUN_TOKEN_SIZE = 33 };

/* Writes RUN/token with 32 new hex digits into `token`; with `keep` takes over what is there: workers may be about to
 * compare it. LS_CHECKPOINT. */
enum ls_code ls_run_token_make(const char *run_directory, bool keep, char token[LS_RUN_TOKEN_SIZE],
                               struct ls_error *error);
/* Compares RUN/token with `token` (empty: nothing is asked), for up to `seconds` while it is not there: a network file
 * system may show it late. LS_CHECKPOINT names this host, what it sees instead, and what to do. */
enum ls_code ls_run_token_check(const char *run_directory, const char *token, double seconds, struct ls_error *error);

#endif
