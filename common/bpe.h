/* Byte-pair encoding (Sennrich et al. 2016, algorithm 1) of a piece of text: it begins as the tokens of its bytes
 * (Radford et al. 2019, section 2.2) or of its characters, and neighbours are joined in the order in which that was
 * learned. */
#ifndef LS_COMMON_BPE_H
#define LS_COMMON_BPE_H

#include "common/status.h"
#include "common/vocabulary.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum ls_bpe_unit {
    LS_BPE_BYTES,
    LS_BPE_CHARACTERS /* of UTF-8; one that is no token begins as the tokens of its bytes */
};

struct ls_bpe;

/* For `merges` of them at most, over a vocabulary that lives longer and is indexed. byte_ids: each byte's token.
 * whole_words: a piece that is a token is that token, whatever merges say. LS_MEMORY. */
enum ls_code ls_bpe_create(const struct ls_vocabulary *vocabulary, enum ls_bpe_unit unit, const int32_t byte_ids[256],
                           bool whole_words, size_t merges, struct ls_bpe **bpe, struct ls_error *error);
/* Takes NULL. */
void ls_bpe_destroy(struct ls_bpe *bpe);

/* The next merge: `left` and `right`, tokens of some bytes, become `joined`. Of two with the same halves the first one
 * counts. */
void ls_bpe_add(struct ls_bpe *bpe, int32_t left, int32_t right, int32_t joined);

/* Bytes of text[count], count > 0, up to the first place between characters that no merge crosses, or all: what is cut
 * there has the ids of the whole. */
size_t ls_bpe_run(const struct ls_bpe *bpe, const char *text, size_t count);

/* Appends the ids of a piece, count > 0. Not for two threads at once. LS_MEMORY; LS_DATA: longer than 2^29 bytes. */
enum ls_code ls_bpe_encode(struct ls_bpe *bpe, const char *piece, size_t count, struct ls_token_ids *ids,
                           struct ls_error *error);

#endif
