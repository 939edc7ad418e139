/* Any bytes as a tokenizer.json, a NUL, and a text: refused, or the text has the same ids whole and byte by byte, each
 * a token. covers: common/tokenizer.c common/encoding.c common/bpe.c common/normalizer.c common/vocabulary.c
 * common/utf8.c */
#include "common/encoding.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool fact) {
    if (!fact) abort();
}

static void check_said(const struct ls_tokenizer *tokenizer, const struct ls_token_ids *ids) {
    bool begins = true, special;
    size_t count;
    for (size_t i = 0; i < ids->count; i++)
        require(ls_tokenizer_said(tokenizer, ids->ids[i], &begins, &count, &special) != NULL);
    require(!ls_tokenizer_said(tokenizer, ls_tokenizer_vocabulary(tokenizer), &begins, &count, &special));
}

static void encode(struct ls_tokenizer *tokenizer, const char *text, size_t count) {
    struct ls_error error = {0};
    struct ls_token_ids whole = {0}, pieces = {0};
    struct ls_encoding *encoding;
    require(ls_encoding_create(tokenizer, &encoding, &error) == LS_OK);
    const enum ls_code code = ls_encoding_add(encoding, text, count, true, &whole, &error);
    require(code == LS_OK || code == LS_DATA); /* a pattern that gives up */
    enum ls_code again = LS_OK;
    for (size_t i = 0; i < count && !again; i++) {
        char piece = text[i];
        again = ls_encoding_add(encoding, &piece, 1, i + 1 == count, &pieces, &error);
    }
    if (!code && !again) {
        check_said(tokenizer, &whole);
        require(whole.count == pieces.count);
        require(whole.count == 0 || memcmp(whole.ids, pieces.ids, whole.count * sizeof *whole.ids) == 0);
    }
    free(whole.ids);
    free(pieces.ids);
    ls_encoding_destroy(encoding);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct ls_error error = {0};
    struct ls_tokenizer *tokenizer;
    size_t prefix;
    const uint8_t *end = size > 0 ? memchr(data, 0, size) : NULL;
    const size_t json = end ? (size_t)(end - data) : size;
    enum ls_code code = ls_tokenizer_parse((const char *)data, json, "tokenizer.json", &tokenizer, &error);
    require(code == LS_OK || (error.code == code && error.text[0]));
    if (code) return 0;
    ls_tokenizer_prefix(tokenizer, &prefix);
    ls_tokenizer_find(tokenizer, "a");
    if (end) encode(tokenizer, (const char *)end + 1, size - json - 1);
    ls_tokenizer_destroy(tokenizer);
    return 0;
}
