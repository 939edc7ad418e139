/* Text made uniform: composition by utf8proc, the rest here. */
#define _GNU_SOURCE
#include "common/normalizer.h"

#include "common/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { COMBINING_BEGINS = 0x300, VOWELS_BEGIN = 0x1160, TRAILING_CONSONANTS_END = 0x1200 };

enum ls_code ls_text_add(struct ls_text *text, const char *bytes, size_t count, struct ls_error *error) {
    if (!text->bytes || text->capacity - text->count < count) {
        const size_t capacity = 2 * text->capacity + count + 256;
        char *grown = realloc(text->bytes, capacity);
        if (!grown) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "tokenizer: no memory for %zu bytes", capacity);
        text->bytes = grown;
        text->capacity = capacity;
    }
    if (count > 0) memcpy(text->bytes + text->count, bytes, count);
    text->count += count;
    return LS_OK;
}

void ls_text_drop(struct ls_text *text, size_t count) {
    text->count -= count;
    if (text->count > 0) memmove(text->bytes, text->bytes + count, text->count);
}

static utf8proc_int32_t character_at(const char *text, size_t length) {
    utf8proc_int32_t character = -1;
    utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)length, &character);
    return character;
}

/* Whether a character never becomes one with what is before it: no mark, no vowel or last consonant of Hangul. */
static bool stands_alone(utf8proc_int32_t character) {
    if (character < COMBINING_BEGINS) return true;
    if (character >= VOWELS_BEGIN && character < TRAILING_CONSONANTS_END) return false;
    const utf8proc_category_t category = utf8proc_category(character);
    return category != UTF8PROC_CATEGORY_MN && category != UTF8PROC_CATEGORY_MC && category != UTF8PROC_CATEGORY_ME &&
           utf8proc_get_property(character)->combining_class == 0;
}

bool ls_normalizer_prepends(const struct ls_normalizer *normalizer, enum ls_normalizer_place place) {
    for (int i = 0; i < normalizer->count && place != LS_NORMALIZER_WITHIN; i++) {
        const enum ls_normalizer_kind kind = normalizer->steps[i].kind;
        if (kind == LS_NORMALIZER_PREPEND || kind == LS_NORMALIZER_PREPEND_ONCE) return true;
        if (kind == LS_NORMALIZER_PREPEND_FIRST && place == LS_NORMALIZER_FIRST) return true;
    }
    return false;
}

static bool composes(const struct ls_normalizer *normalizer) {
    return normalizer->count > 0 && normalizer->steps[0].kind == LS_NORMALIZER_NFC;
}

size_t ls_normalizer_whole(const struct ls_normalizer *normalizer, const char *text, size_t count) {
    count = ls_utf8_whole(text, count);
    if (!composes(normalizer)) return count;
    /* Up to the last character that begins anew. */
    for (size_t at = count; at-- > 0;) {
        bool short_of;
        const size_t length = ls_utf8_character(text + at, count - at, &short_of);
        const bool within = ((unsigned char)text[at] & 0xc0) == 0x80; /* a character, or none */
        if (length > 0 ? stands_alone(character_at(text + at, length)) : !within) return at;
    }
    return 0;
}

/* UTF-8 throughout. */
static enum ls_code compose(const char *text, size_t count, struct ls_text *out, struct ls_error *error) {
    bool simple = true;
    for (size_t i = 0; i < count && simple; i++) simple = (unsigned char)text[i] < 0xcc; /* U+0300 is CC 80 */
    if (simple) return ls_text_add(out, text, count, error);
    utf8proc_uint8_t *composed = NULL;
    const utf8proc_ssize_t length = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)count, &composed,
                                                 UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (length < 0) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "tokenizer: %s", utf8proc_errmsg(length));
    const enum ls_code code = ls_text_add(out, (const char *)composed, (size_t)length, error);
    free(composed);
    return code;
}

static enum ls_code compose_runs(const char *text, size_t count, struct ls_text *out, struct ls_error *error) {
    enum ls_code code = LS_OK;
    for (size_t at = 0; at < count && !code;) {
        bool valid;
        const size_t run = ls_utf8_run(text + at, count - at, &valid);
        code = valid ? compose(text + at, run, out, error) : ls_text_add(out, text + at, run, error);
        at += run;
    }
    return code;
}

static enum ls_code replace(const struct ls_normalizer_step *step, const char *text, size_t count, struct ls_text *out,
                            struct ls_error *error) {
    const size_t from = strlen(step->from), to = strlen(step->to);
    enum ls_code code = LS_OK;
    for (size_t at = 0; at < count && !code;) {
        const char *found = memmem(text + at, count - at, step->from, from);
        const size_t next = found ? (size_t)(found - text) : count;
        code = ls_text_add(out, text + at, next - at, error);
        if (!code && found) code = ls_text_add(out, step->to, to, error);
        at = found ? next + from : count;
    }
    return code;
}

static enum ls_code prepend(const struct ls_normalizer_step *step, enum ls_normalizer_place place, const char *text,
                            size_t count, struct ls_text *out, struct ls_error *error) {
    const size_t to = strlen(step->to);
    const bool is_there = count >= to && memcmp(text, step->to, to) == 0;
    const bool wanted = place != LS_NORMALIZER_WITHIN && (step->kind == LS_NORMALIZER_PREPEND || !is_there) &&
                        (step->kind != LS_NORMALIZER_PREPEND_FIRST || place == LS_NORMALIZER_FIRST);
    enum ls_code code = wanted ? ls_text_add(out, step->to, to, error) : LS_OK;
    return code ? code : ls_text_add(out, text, count, error);
}

enum ls_code ls_normalizer_apply(const struct ls_normalizer *normalizer, enum ls_normalizer_place place,
                                 const char *text, size_t count, struct ls_text *out, struct ls_error *error) {
    if (count == 0) return LS_OK;
    if (normalizer->count == 0) return ls_text_add(out, text, count, error);
    struct ls_text made[2] = {{0}};
    enum ls_code code = LS_OK;
    for (int i = 0; i < normalizer->count && !code; i++) {
        const struct ls_normalizer_step *step = &normalizer->steps[i];
        struct ls_text *to = i + 1 == normalizer->count ? out : &made[i % 2];
        if (to != out) to->count = 0;
        switch (step->kind) {
        case LS_NORMALIZER_NFC: code = compose_runs(text, count, to, error); break;
        case LS_NORMALIZER_REPLACE: code = replace(step, text, count, to, error); break;
        default: code = prepend(step, place, text, count, to, error);
        }
        text = to->bytes;
        count = to->count;
    }
    free(made[0].bytes);
    free(made[1].bytes);
    return code;
}
