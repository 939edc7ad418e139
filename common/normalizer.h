/* What a tokenizer does to a text before it cuts it: characters composed (Unicode Standard Annex 15, form NFC), one
 * replaced by another, something put in front. */
#ifndef LS_COMMON_NORMALIZER_H
#define LS_COMMON_NORMALIZER_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>

enum { LS_NORMALIZER_STEPS_MAX = 8, LS_NORMALIZER_TEXT_MAX = 16 };

enum ls_normalizer_kind {
    LS_NORMALIZER_NFC,          /* the first step, if it is one */
    LS_NORMALIZER_REPLACE,      /* `from`, one character, by `to` */
    LS_NORMALIZER_PREPEND,      /* `to` in front */
    LS_NORMALIZER_PREPEND_ONCE, /* the same unless the text begins with it */
    LS_NORMALIZER_PREPEND_FIRST /* the same, and nothing where the text follows an added token */
};

struct ls_normalizer {
    struct ls_normalizer_step {
        enum ls_normalizer_kind kind;
        char from[LS_NORMALIZER_TEXT_MAX], to[LS_NORMALIZER_TEXT_MAX]; /* NUL-terminated */
    } steps[LS_NORMALIZER_STEPS_MAX];
    int count;
};

/* Bytes that grow as they are added; zeroed at first, bytes free()d by the owner. */
struct ls_text {
    char *bytes;
    size_t count, capacity;
};

/* LS_MEMORY. */
enum ls_code ls_text_add(struct ls_text *text, const char *bytes, size_t count, struct ls_error *error);
/* Takes away its first bytes. */
void ls_text_drop(struct ls_text *text, size_t count);

/* Where a part of a text stands. */
enum ls_normalizer_place {
    LS_NORMALIZER_FIRST,  /* the text begins here */
    LS_NORMALIZER_BEHIND, /* it follows an added token */
    LS_NORMALIZER_WITHIN  /* it follows other text */
};

/* Whether something is put in front of most texts at `place`. */
bool ls_normalizer_prepends(const struct ls_normalizer *normalizer, enum ls_normalizer_place place);

/* Bytes of text[count] that become the same whatever follows. */
size_t ls_normalizer_whole(const struct ls_normalizer *normalizer, const char *text, size_t count);

/* Appends what text[count] becomes; nothing becomes of nothing. Bytes that are no UTF-8 stay. LS_MEMORY. */
enum ls_code ls_normalizer_apply(const struct ls_normalizer *normalizer, enum ls_normalizer_place place,
                                 const char *text, size_t count, struct ls_text *out, struct ls_error *error);

#endif
