/* Text to ids: added tokens are found, what lies between them is normalised, cut into pieces, and each piece encoded.
 */
#define _GNU_SOURCE
#include "common/encoding.h"

#include "common/tokenizer_state.h"
#include "common/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { PLAIN_BYTES = 512 };

struct ls_encoding {
    struct ls_tokenizer *tokenizer;
    struct ls_text held;            /* as it came, from where an added token may begin */
    struct ls_text plain;           /* normalised, without added tokens, from the first piece that may go on */
    size_t plain_enough;            /* so many bytes of it are worth another look */
    enum ls_normalizer_place place; /* of the bytes held */
};

enum ls_code ls_encoding_create(struct ls_tokenizer *tokenizer, struct ls_encoding **encoding, struct ls_error *error) {
    struct ls_encoding *made = calloc(1, sizeof *made);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "tokenizer: no memory");
    *made = (struct ls_encoding){.tokenizer = tokenizer, .place = LS_NORMALIZER_FIRST};
    *encoding = made;
    return LS_OK;
}

void ls_encoding_destroy(struct ls_encoding *encoding) {
    if (!encoding) return;
    free(encoding->held.bytes);
    free(encoding->plain.bytes);
    free(encoding);
}

/* ---- pieces ---- */

/* The first piece that a cut finds in text from `from` on, [*begin, *end); both `count` where there is none, or, with
 * `open`, where that depends on what follows the text. */
static enum ls_code find_piece(const struct ls_tokenizer *tokenizer, const struct ls_tokenizer_cut *cut,
                               const char *text, size_t count, bool open, size_t from, size_t *begin, size_t *end,
                               struct ls_error *error) {
    *begin = *end = count;
    if (!cut->code) {
        const size_t run = ls_bpe_run(tokenizer->bpe, text + from, count - from);
        if (open && from + run == count) return LS_OK;
        *begin = from;
        *end = from + run;
        return LS_OK;
    }
    const uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY | (open ? PCRE2_PARTIAL_HARD : 0);
    const int found = pcre2_match(cut->code, (PCRE2_SPTR)text, count, from, options, cut->match, NULL);
    const PCRE2_SIZE *place = pcre2_get_ovector_pointer(cut->match);
    if (found == PCRE2_ERROR_NOMATCH || found == PCRE2_ERROR_PARTIAL) return LS_OK;
    if (found < 0)
        return ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                       "tokenizer: the pattern that cuts text gives up (%d) at \"%.40s\"", found, text + from);
    if (place[0] < from || place[1] <= place[0]) return LS_OK; /* a look behind, by \\K: no piece */
    *begin = place[0];
    *end = place[1];
    return LS_OK;
}

/* A piece of UTF-8, cut by the cuts from `number` on. */
static enum ls_code encode_cut(struct ls_tokenizer *tokenizer, int number, const char *text, size_t count,
                               struct ls_token_ids *ids, struct ls_error *error) {
    if (count == 0) return LS_OK;
    if (number == tokenizer->cut_count) return ls_bpe_encode(tokenizer->bpe, text, count, ids, error);
    enum ls_code code = LS_OK;
    for (size_t from = 0; from < count && !code;) {
        size_t begin, end;
        code = find_piece(tokenizer, &tokenizer->cuts[number], text, count, false, from, &begin, &end, error);
        if (!code) code = encode_cut(tokenizer, number + 1, text + from, begin - from, ids, error);
        if (!code) code = encode_cut(tokenizer, number + 1, text + begin, end - begin, ids, error);
        from = end;
    }
    return code;
}

/* The same where more follows. *used: bytes of the pieces that are certain. */
static enum ls_code encode_begun(struct ls_tokenizer *tokenizer, const char *text, size_t count,
                                 struct ls_token_ids *ids, size_t *used, struct ls_error *error) {
    enum ls_code code = LS_OK;
    *used = 0;
    while (!code) {
        size_t begin, end;
        code = find_piece(tokenizer, &tokenizer->cuts[0], text, count, true, *used, &begin, &end, error);
        if (code || begin == count) break;
        code = encode_cut(tokenizer, 1, text + *used, begin - *used, ids, error);
        if (!code) code = encode_cut(tokenizer, 1, text + begin, end - begin, ids, error);
        *used = end;
    }
    return code;
}

/* Ids of the plain text; with `open` more of it follows, and what may go on stays. */
static enum ls_code encode_plain(struct ls_encoding *encoding, bool open, struct ls_token_ids *ids,
                                 struct ls_error *error) {
    struct ls_text *plain = &encoding->plain;
    const char *text = plain->bytes;
    enum ls_code code = LS_OK;
    size_t used = 0;
    if (open && plain->count < encoding->plain_enough) return LS_OK;
    while (used < plain->count && !code) {
        bool valid = false;
        const size_t run = ls_utf8_run(text + used, plain->count - used, &valid);
        if (open && used + run == plain->count) { /* what ends here may go on */
            size_t taken = 0;
            if (valid) code = encode_begun(encoding->tokenizer, text + used, run, ids, &taken, error);
            used += taken;
            break;
        }
        code = valid ? encode_cut(encoding->tokenizer, 0, text + used, run, ids, error)
                     : ls_bpe_encode(encoding->tokenizer->bpe, text + used, run, ids, error);
        used += run;
    }
    ls_text_drop(plain, used);
    /* What is left is one long piece: more of it is needed. */
    encoding->plain_enough = 2 * plain->count > PLAIN_BYTES ? 2 * plain->count : (size_t)PLAIN_BYTES;
    return code;
}

/* ---- a text ---- */

/* The id of the added token that begins at text, the longest one; -1: none. */
static int32_t find_added(const struct ls_tokenizer *tokenizer, const char *text, size_t count) {
    if (!tokenizer->added_begins[(unsigned char)*text]) return -1;
    for (size_t i = 0; i < tokenizer->added_count; i++) {
        const struct ls_token *token = ls_vocabulary_token(tokenizer->vocabulary, tokenizer->added[i]);
        if (token->count <= count && memcmp(token->bytes, text, token->count) == 0) return tokenizer->added[i];
    }
    return -1;
}

/* Text without added tokens; with `open` more of it follows, and *used bytes were taken. */
static enum ls_code take_plain(struct ls_encoding *encoding, const char *text, size_t count, bool open,
                               struct ls_token_ids *ids, size_t *used, struct ls_error *error) {
    const struct ls_normalizer *normalizer = &encoding->tokenizer->normalizer;
    *used = open ? ls_normalizer_whole(normalizer, text, count) : count;
    enum ls_code code = ls_normalizer_apply(normalizer, encoding->place, text, *used, &encoding->plain, error);
    if (*used > 0) encoding->place = LS_NORMALIZER_WITHIN;
    return code ? code : encode_plain(encoding, open, ids, error);
}

static enum ls_code take_held(struct ls_encoding *encoding, bool last, struct ls_token_ids *ids,
                              struct ls_error *error) {
    const struct ls_tokenizer *tokenizer = encoding->tokenizer;
    const char *text = encoding->held.bytes;
    const size_t count = encoding->held.count;
    size_t used = 0;
    for (bool more = true; more;) {
        size_t next = used, taken;
        int32_t added = -1;
        while (next < count && (added = find_added(tokenizer, text + next, count - next)) < 0) next++;
        const bool open = !last && added < 0;
        /* A longer one may begin there. */
        const bool unsure = !last && added >= 0 && count - next < tokenizer->added_longest;
        /* An added token may have begun in the last bytes. */
        const size_t spare = open ? tokenizer->added_longest : 0, plain = next - used;
        enum ls_code code =
            take_plain(encoding, text + used, plain > spare ? plain - spare : 0, open, ids, &taken, error);
        used += taken;
        more = added >= 0 && !unsure;
        if (!code && more) {
            code = ls_token_ids_add(ids, &added, 1, error);
            used += ls_vocabulary_token(tokenizer->vocabulary, added)->count;
            encoding->place = LS_NORMALIZER_BEHIND;
        }
        if (code) return code;
    }
    ls_text_drop(&encoding->held, used);
    return LS_OK;
}

enum ls_code ls_encoding_add(struct ls_encoding *encoding, const char *text, size_t count, bool last,
                             struct ls_token_ids *ids, struct ls_error *error) {
    enum ls_code code = ls_text_add(&encoding->held, text, count, error);
    if (!code) code = take_held(encoding, last, ids, error);
    if (!last && !code) return LS_OK;
    encoding->held.count = encoding->plain.count = 0;
    encoding->plain_enough = PLAIN_BYTES;
    encoding->place = LS_NORMALIZER_FIRST;
    return code;
}
