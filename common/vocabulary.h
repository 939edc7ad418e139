/* A tokenizer's vocabulary: its tokens by their ids and by the text they are; and lists of ids. */
#ifndef LS_COMMON_VOCABULARY_H
#define LS_COMMON_VOCABULARY_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ls_token {
    const char *bytes; /* what it is in a text that is cut into tokens; NULL: there is no such id */
    const char *said;  /* what it says in a text made of tokens */
    uint32_t count, said_count;
    bool added;   /* recognised in a text before that is cut */
    bool special; /* stands for what is no text, such as the end of a document */
};

struct ls_vocabulary;

/* Room for the ids [0, size) and for text_bytes of what they are and say. LS_MEMORY. */
enum ls_code ls_vocabulary_create(int64_t size, size_t text_bytes, struct ls_vocabulary **vocabulary,
                                  struct ls_error *error);
/* Takes NULL. */
void ls_vocabulary_destroy(struct ls_vocabulary *vocabulary);

/* Copies a token to `id`, over one that is there, within the room that was made. `said` may be `bytes`. */
void ls_vocabulary_set(struct ls_vocabulary *vocabulary, int64_t id, const struct ls_token *token);
/* After the last token: ls_vocabulary_find knows all. LS_MEMORY. */
enum ls_code ls_vocabulary_index(struct ls_vocabulary *vocabulary, struct ls_error *error);

int64_t ls_vocabulary_size(const struct ls_vocabulary *vocabulary);
/* id in [0, size). */
const struct ls_token *ls_vocabulary_token(const struct ls_vocabulary *vocabulary, int64_t id);
/* The first token that is bytes[count], count > 0; -1: none. */
int32_t ls_vocabulary_find(const struct ls_vocabulary *vocabulary, const char *bytes, size_t count);

/* Token ids that grow as they are added; zeroed at first, ids free()d by the caller. */
struct ls_token_ids {
    int32_t *ids;
    size_t count, capacity;
};

/* LS_MEMORY. */
enum ls_code ls_token_ids_add(struct ls_token_ids *ids, const int32_t *from, size_t count, struct ls_error *error);

#endif
