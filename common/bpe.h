/* Byte-level BPE (Sennrich et al. 2016, algorithm 1; over bytes as Radford et al. 2019, section 2.2), as a Hugging Face
 * tokenizer.json describes it: text to token ids and back. GPT-2's, Llama 3's and their kin; what it asks for beside
 * that (a normalizer, a space put in front, bytes as a fallback, pieces that are removed) is refused by name, since ids
 * that differ from the model's would train another one. */
#ifndef LS_COMMON_BPE_H
#define LS_COMMON_BPE_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LS_BPE_JSON_BYTES_MAX = 256 << 20, LS_BPE_VOCABULARY_MAX = 1 << 22 };

struct ls_bpe;

/* Parses tokenizer.json; `name` is for messages. LS_DATA: bad JSON, or a tokenizer this is not, saying what is missing.
 * LS_MEMORY. */
enum ls_code ls_bpe_parse(const char *json, size_t count, const char *name, struct ls_bpe **bpe,
                          struct ls_error *error);
/* Takes NULL. */
void ls_bpe_destroy(struct ls_bpe *bpe);

/* The largest id and 1. */
int64_t ls_bpe_vocabulary(const struct ls_bpe *bpe);
/* The id of the token that stands for `text`, -1: there is none. */
int32_t ls_bpe_find(const struct ls_bpe *bpe, const char *text);
/* What a token stands for, owned by the tokenizer; NULL: there is no such id. *special: a token that was added to the
 * vocabulary for what is no text, the end of a document among it (NULL: not asked). */
const char *ls_bpe_bytes(const struct ls_bpe *bpe, int64_t id, size_t *count, bool *special);
/* The tokens that the tokenizer puts in front of a text (its post-processor): *count of them. */
const int32_t *ls_bpe_prefix(const struct ls_bpe *bpe, size_t *count);

/* Token ids that grow as they are added; zeroed at first, ids free()d by the caller. */
struct ls_bpe_ids {
    int32_t *ids;
    size_t count, capacity;
};

/* Appends the ids of text[count]; tokens that were added to the vocabulary are recognised in it. Bytes that are no
 * UTF-8 are pieces of their own. With `last` all of it is taken; else more text follows, and *used bytes were taken:
 * none of their tokens depends on what follows. Not for two threads at once. LS_MEMORY. */
enum ls_code ls_bpe_encode(struct ls_bpe *bpe, const char *text, size_t count, bool last, struct ls_bpe_ids *ids,
                           size_t *used, struct ls_error *error);

#endif
