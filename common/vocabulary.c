/* Tokens in an array by their ids, and in a hash table by their bytes. */
#define _GNU_SOURCE
#include "common/vocabulary.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

struct ls_vocabulary {
    int64_t size;
    struct ls_token *tokens; /* [size] */
    char *text;              /* all that tokens are and say */
    size_t text_count, text_capacity;
    int32_t *words; /* a hash table of word_slots, a power of two: ids by bytes; -1: empty */
    size_t word_slots;
};

static enum ls_code no_memory(struct ls_error *error) {
    return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "tokenizer: no memory for its vocabulary");
}

enum ls_code ls_vocabulary_create(int64_t size, size_t text_bytes, struct ls_vocabulary **result,
                                  struct ls_error *error) {
    struct ls_vocabulary *vocabulary = calloc(1, sizeof *vocabulary);
    if (!vocabulary) return no_memory(error);
    vocabulary->size = size;
    vocabulary->tokens = calloc((size_t)size + 1, sizeof *vocabulary->tokens);
    vocabulary->text = malloc(text_bytes + 1);
    vocabulary->text_capacity = text_bytes;
    if (!vocabulary->tokens || !vocabulary->text) {
        ls_vocabulary_destroy(vocabulary);
        return no_memory(error);
    }
    *result = vocabulary;
    return LS_OK;
}

void ls_vocabulary_destroy(struct ls_vocabulary *vocabulary) {
    if (!vocabulary) return;
    free(vocabulary->tokens);
    free(vocabulary->text);
    free(vocabulary->words);
    free(vocabulary);
}

static const char *keep(struct ls_vocabulary *vocabulary, const char *bytes, uint32_t count) {
    assert(vocabulary->text_capacity - vocabulary->text_count >= count);
    char *to = vocabulary->text + vocabulary->text_count;
    memcpy(to, bytes, count);
    vocabulary->text_count += count;
    return to;
}

void ls_vocabulary_set(struct ls_vocabulary *vocabulary, int64_t id, const struct ls_token *token) {
    assert(id >= 0 && id < vocabulary->size);
    struct ls_token *kept = &vocabulary->tokens[id];
    *kept = *token;
    kept->bytes = keep(vocabulary, token->bytes, token->count);
    kept->said = token->said == token->bytes ? kept->bytes : keep(vocabulary, token->said, token->said_count);
}

enum ls_code ls_vocabulary_index(struct ls_vocabulary *vocabulary, struct ls_error *error) {
    size_t slots = 16;
    while (slots < 2 * (size_t)vocabulary->size) slots *= 2;
    vocabulary->words = malloc(slots * sizeof *vocabulary->words);
    if (!vocabulary->words) return no_memory(error);
    vocabulary->word_slots = slots;
    memset(vocabulary->words, 0xff, slots * sizeof *vocabulary->words);
    for (int64_t id = 0; id < vocabulary->size; id++) {
        const struct ls_token *token = &vocabulary->tokens[id];
        if (!token->bytes || token->count == 0 || ls_vocabulary_find(vocabulary, token->bytes, token->count) >= 0)
            continue;
        size_t at = XXH3_64bits(token->bytes, token->count) & (slots - 1);
        while (vocabulary->words[at] >= 0) at = (at + 1) & (slots - 1);
        vocabulary->words[at] = (int32_t)id;
    }
    return LS_OK;
}

int64_t ls_vocabulary_size(const struct ls_vocabulary *vocabulary) {
    return vocabulary->size;
}

const struct ls_token *ls_vocabulary_token(const struct ls_vocabulary *vocabulary, int64_t id) {
    assert(id >= 0 && id < vocabulary->size);
    return &vocabulary->tokens[id];
}

int32_t ls_vocabulary_find(const struct ls_vocabulary *vocabulary, const char *bytes, size_t count) {
    const size_t mask = vocabulary->word_slots - 1;
    for (size_t at = XXH3_64bits(bytes, count) & mask;; at = (at + 1) & mask) {
        const int32_t id = vocabulary->words[at];
        if (id < 0) return -1;
        const struct ls_token *token = &vocabulary->tokens[id];
        if (token->count == count && memcmp(token->bytes, bytes, count) == 0) return id;
    }
}

enum ls_code ls_token_ids_add(struct ls_token_ids *ids, const int32_t *from, size_t count, struct ls_error *error) {
    if (ids->capacity - ids->count < count) {
        const size_t capacity = 2 * ids->capacity + count + 256;
        int32_t *grown = reallocarray(ids->ids, capacity, sizeof *grown);
        if (!grown) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "tokenizer: no memory for %zu tokens", capacity);
        ids->ids = grown;
        ids->capacity = capacity;
    }
    memcpy(ids->ids + ids->count, from, count * sizeof *from);
    ids->count += count;
    return LS_OK;
}
