/* A text on its way to token ids: taken in pieces of any size, its ids come as soon as they are certain. */
#ifndef LS_COMMON_ENCODING_H
#define LS_COMMON_ENCODING_H

#include "common/status.h"
#include "common/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>

struct ls_encoding;

/* By a tokenizer that lives longer and is changed by it: not for two threads at once. LS_MEMORY. */
enum ls_code ls_encoding_create(struct ls_tokenizer *tokenizer, struct ls_encoding **encoding, struct ls_error *error);
/* Takes NULL. */
void ls_encoding_destroy(struct ls_encoding *encoding);

/* Takes the text's next bytes, `last`: the last ones, behind which another text begins, and appends the ids that are
 * certain by now. Tokens that were added to the vocabulary are recognised. Bytes that are no UTF-8 are pieces of their
 * own. LS_MEMORY; LS_DATA: a piece of more than 2^29 bytes. After an error another text begins. */
enum ls_code ls_encoding_add(struct ls_encoding *encoding, const char *text, size_t count, bool last,
                             struct ls_token_ids *ids, struct ls_error *error);

#endif
