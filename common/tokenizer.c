/* Reading tokenizer.json, and what it says of tokens. */
#define _GNU_SOURCE
#include "common/tokenizer_state.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { ALPHABET_END = 324 /* the last character of the byte-level alphabet, and 1 */ };

/* Letters, numbers and other signs, each with a space before it if there is one (Radford et al. 2019). */
static const char gpt2_pattern[] = "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

struct reading {
    const char *name; /* for messages */
    const json_t *root, *model;
    json_t *vocab, *added; /* of the model; tokens beside it */
    struct ls_tokenizer *tokenizer;
    bool byte_level;
    char space[LS_NORMALIZER_TEXT_MAX]; /* what stands for a space in tokens, "": nothing does */
    struct ls_error *error;
};

static enum ls_code refuse(const struct reading *reading, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static enum ls_code refuse(const struct reading *reading, const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return ls_fail(reading->error, LS_DATA, LS_SCOPE_JOB,
                   "tokenizer: %s %s. BPE of bytes, as in GPT-2, Llama 3 or Qwen, or with bytes as a fallback, as in "
                   "Llama 2, is understood; prepare the text elsewhere for others.",
                   reading->name, text);
}

static enum ls_code no_memory(const struct reading *reading) {
    return ls_fail(reading->error, LS_MEMORY, LS_SCOPE_CALL, "tokenizer: no memory");
}

static bool is_true(const json_t *object, const char *key) {
    return json_is_true(json_object_get(object, key));
}

/* Null, absent, or an empty string. */
static bool is_absent(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return !value || json_is_null(value) || (json_is_string(value) && json_string_length(value) == 0);
}

static const char *text_of(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static const char *type_of(const json_t *object) {
    return text_of(object, "type");
}

/* How many characters of UTF-8 a text has. */
static size_t characters(const char *text) {
    size_t count = 0;
    for (; *text; text++) count += ((unsigned char)*text & 0xc0) != 0x80;
    return count;
}

/* ---- what is done to a text before it is cut ---- */

static enum ls_code add_step(struct reading *reading, enum ls_normalizer_kind kind, const char *from, const char *to) {
    struct ls_normalizer *normalizer = &reading->tokenizer->normalizer;
    if (normalizer->count == LS_NORMALIZER_STEPS_MAX)
        return refuse(reading, "changes text in more than %d steps", LS_NORMALIZER_STEPS_MAX);
    struct ls_normalizer_step *step = &normalizer->steps[normalizer->count++];
    step->kind = kind;
    if (snprintf(step->from, sizeof step->from, "%s", from) >= (int)sizeof step->from ||
        snprintf(step->to, sizeof step->to, "%s", to) >= (int)sizeof step->to)
        return refuse(reading, "replaces or puts in front more than %d bytes", LS_NORMALIZER_TEXT_MAX - 1);
    if (strcmp(from, " ") == 0) strcpy(reading->space, step->to);
    return LS_OK;
}

static enum ls_code read_normalizer(struct reading *reading, const json_t *normalizer) {
    const char *type = type_of(normalizer);
    if (!normalizer || json_is_null(normalizer)) return LS_OK;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *one;
        size_t index;
        enum ls_code code = LS_OK;
        json_array_foreach(json_object_get(normalizer, "normalizers"), index, one) {
            if (!code)
                code = strcmp(type_of(one), "Sequence") == 0 ? refuse(reading, "nests its normalizers")
                                                             : read_normalizer(reading, one);
        }
        return code;
    }
    if (strcmp(type, "NFC") == 0) {
        if (reading->tokenizer->normalizer.count > 0)
            return refuse(reading, "composes characters (NFC) behind another step");
        return add_step(reading, LS_NORMALIZER_NFC, "", "");
    }
    if (strcmp(type, "Prepend") == 0) {
        const char *prepend = text_of(normalizer, "prepend");
        return *prepend ? add_step(reading, LS_NORMALIZER_PREPEND, "", prepend) : LS_OK;
    }
    if (strcmp(type, "Replace") == 0) {
        const char *from = text_of(json_object_get(normalizer, "pattern"), "String");
        if (characters(from) != 1 || !json_is_string(json_object_get(normalizer, "content")))
            return refuse(reading, "replaces what is not one character");
        return add_step(reading, LS_NORMALIZER_REPLACE, from, text_of(normalizer, "content"));
    }
    return refuse(reading, "changes text by the normalizer '%.40s' first", type);
}

/* ---- how a text is cut ---- */

static enum ls_code add_cut(struct reading *reading, const char *pattern, bool literal) {
    struct ls_tokenizer *tokenizer = reading->tokenizer;
    int number;
    PCRE2_SIZE place;
    if (tokenizer->cut_count == LS_TOKENIZER_CUTS_MAX)
        return refuse(reading, "cuts text in more than %d steps", LS_TOKENIZER_CUTS_MAX);
    struct ls_tokenizer_cut *cut = &tokenizer->cuts[tokenizer->cut_count];
    cut->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                              PCRE2_UTF | PCRE2_UCP | (literal ? PCRE2_LITERAL : 0), &number, &place, NULL);
    if (!cut->code) {
        PCRE2_UCHAR text[160];
        pcre2_get_error_message(number, text, sizeof text);
        return refuse(reading, "cuts text by a pattern that is not understood (%s at %zu): %.200s", (const char *)text,
                      (size_t)place, pattern);
    }
    tokenizer->cut_count++;
    /* The text before is gone when more of it comes. */
    uint32_t behind = 0;
    pcre2_pattern_info(cut->code, PCRE2_INFO_MAXLOOKBEHIND, &behind);
    if (behind > 0) return refuse(reading, "cuts text by a pattern that looks behind: %.200s", pattern);
    pcre2_jit_compile(cut->code, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD); /* faster, where it is there */
    cut->match = pcre2_match_data_create_from_pattern(cut->code, NULL);
    return cut->match ? LS_OK : no_memory(reading);
}

static enum ls_code read_metaspace(struct reading *reading, const json_t *splitter, bool first) {
    static const struct {
        const char *name;
        int kind;
    } schemes[] = {{"always", LS_NORMALIZER_PREPEND_ONCE}, {"first", LS_NORMALIZER_PREPEND_FIRST}, {"never", -1}};
    const char *space = text_of(splitter, "replacement"), *scheme = text_of(splitter, "prepend_scheme");
    const json_t *split = json_object_get(splitter, "split");
    if (!first) return refuse(reading, "cuts text by 'Metaspace' behind another step");
    if (characters(space) != 1) return refuse(reading, "has a 'Metaspace' whose replacement is not one character");
    if (!*scheme) scheme = json_is_false(json_object_get(splitter, "add_prefix_space")) ? "never" : "always";
    enum ls_code code = add_step(reading, LS_NORMALIZER_REPLACE, " ", space);
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes && !code; i++) {
        if (strcmp(scheme, schemes[i].name)) continue;
        if (schemes[i].kind >= 0) code = add_step(reading, schemes[i].kind, "", space);
        if (code || json_is_false(split)) return code;
        char pattern[64];
        snprintf(pattern, sizeof pattern, "\\Q%s\\E[^\\Q%s\\E]*|[^\\Q%s\\E]+", space, space, space);
        return add_cut(reading, pattern, false);
    }
    return code ? code : refuse(reading, "has a 'Metaspace' with the prepend_scheme '%.40s'", scheme);
}

static enum ls_code read_splitter(struct reading *reading, const json_t *splitter, bool first) {
    const char *type = type_of(splitter);
    if (reading->byte_level) return refuse(reading, "cuts text once more behind its byte level");
    if (strcmp(type, "ByteLevel") == 0) {
        reading->byte_level = true;
        if (is_true(splitter, "add_prefix_space")) {
            if (!first) return refuse(reading, "puts a space in front of pieces of text");
            enum ls_code code = add_step(reading, LS_NORMALIZER_PREPEND_ONCE, "", " ");
            if (code) return code;
        }
        return json_is_false(json_object_get(splitter, "use_regex")) ? LS_OK : add_cut(reading, gpt2_pattern, false);
    }
    if (strcmp(type, "Metaspace") == 0) return read_metaspace(reading, splitter, first);
    if (strcmp(type, "Digits") == 0)
        return add_cut(reading, is_true(splitter, "individual_digits") ? "\\p{N}" : "\\p{N}+", false);
    if (strcmp(type, "Split") == 0) {
        const json_t *pattern = json_object_get(splitter, "pattern");
        const char *regex = text_of(pattern, "Regex"), *string = text_of(pattern, "String");
        if (strcmp(text_of(splitter, "behavior"), "Isolated") || (!*regex && !*string))
            return refuse(reading, "cuts text by 'Split' with the behavior '%.40s'", text_of(splitter, "behavior"));
        return add_cut(reading, *regex ? regex : string, !*regex);
    }
    return refuse(reading, "cuts text by '%.40s'", type);
}

static enum ls_code read_splitters(struct reading *reading, const json_t *splitter) {
    const json_t *one;
    size_t index;
    enum ls_code code = LS_OK;
    if (!splitter || json_is_null(splitter)) return LS_OK;
    if (strcmp(type_of(splitter), "Sequence")) return read_splitter(reading, splitter, true);
    json_array_foreach(json_object_get(splitter, "pretokenizers"), index, one) {
        if (!code) code = read_splitter(reading, one, index == 0);
    }
    return code;
}

/* ---- tokens ---- */

/* The byte that each character of GPT-2's alphabet stands for: printable ones of Latin-1 for themselves, the others, in
 * order, from U+0100 on; -1: none. */
static void make_alphabet(int16_t byte_of[ALPHABET_END]) {
    int next = 256;
    for (int i = 0; i < ALPHABET_END; i++) byte_of[i] = -1;
    for (int byte = 0; byte < 256; byte++) {
        const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
        byte_of[printable ? byte : next++] = (int16_t)byte;
    }
}

/* The bytes that a key of a byte-level vocabulary stands for; its own where it has characters outside the alphabet.
 * jansson has checked its UTF-8. */
static size_t spell(const int16_t byte_of[ALPHABET_END], const char *key, char *to) {
    size_t count = 0;
    for (const unsigned char *c = (const unsigned char *)key; *c;) {
        const unsigned character = c[0] < 0x80 ? c[0] : c[0] < 0xe0 ? (c[0] & 31u) << 6 | (c[1] & 63u) : ALPHABET_END;
        if (character >= ALPHABET_END || byte_of[character] < 0) {
            memcpy(to, key, strlen(key));
            return strlen(key);
        }
        to[count++] = (char)byte_of[character];
        c += c[0] < 0x80 ? 1 : 2;
    }
    return count;
}

/* The byte that a token such as <0x0A> stands for where bytes are a fallback, -1: it is another one. */
static int fallback_byte(const char *key) {
    static const char digits[] = "0123456789ABCDEF";
    const char *high = strlen(key) == 6 && memcmp(key, "<0x", 3) == 0 && key[5] == '>' ? strchr(digits, key[3]) : NULL,
               *low = high ? strchr(digits, key[4]) : NULL;
    return low ? (int)(16 * (high - digits) + (low - digits)) : -1;
}

/* What a token of characters says: a byte, or its text with spaces. */
static size_t say(const char *space, const char *key, char *to) {
    const int byte = fallback_byte(key);
    const size_t step = strlen(space);
    size_t count = 0;
    if (byte >= 0) {
        *to = (char)byte;
        return 1;
    }
    while (*key) {
        const bool is_space = step > 0 && strncmp(key, space, step) == 0;
        to[count++] = is_space ? ' ' : *key;
        key += is_space ? step : 1;
    }
    return count;
}

static bool is_id(const json_t *value) {
    return json_is_integer(value) && json_integer_value(value) >= 0 &&
           json_integer_value(value) < LS_TOKENIZER_VOCABULARY_MAX;
}

/* How many ids there are, how many bytes their texts take at most, and the longest one. */
static enum ls_code measure(const struct reading *reading, int64_t *size, size_t *bytes, size_t *longest) {
    const char *key;
    json_t *value;
    size_t index;
    *size = 0;
    *bytes = *longest = 0;
    json_object_foreach(reading->vocab, key, value) {
        if (!is_id(value)) return refuse(reading, "gives the token '%.60s' no id from 0 on", key);
        if (json_integer_value(value) >= *size) *size = json_integer_value(value) + 1;
        *bytes += 2 * strlen(key);
        if (strlen(key) > *longest) *longest = strlen(key);
    }
    json_array_foreach(reading->added, index, value) {
        const char *content = text_of(value, "content");
        const json_t *id = json_object_get(value, "id");
        if (!*content || !is_id(id)) return refuse(reading, "has an added token without id or content");
        if (is_true(value, "lstrip") || is_true(value, "rstrip") || is_true(value, "single_word"))
            return refuse(reading, "wants spaces around the added token '%.60s' treated apart", content);
        if (is_true(value, "normalized") && !is_absent(reading->root, "normalizer"))
            return refuse(reading, "looks for the added token '%.60s' in text that it has changed", content);
        if (json_integer_value(id) >= *size) *size = json_integer_value(id) + 1;
        *bytes += strlen(content);
    }
    return LS_OK;
}

static enum ls_code read_words(const struct reading *reading, char *bytes, char *said) {
    int16_t byte_of[ALPHABET_END];
    struct ls_vocabulary *vocabulary = reading->tokenizer->vocabulary;
    const char *key;
    json_t *value;
    make_alphabet(byte_of);
    json_object_foreach(reading->vocab, key, value) {
        const int64_t id = json_integer_value(value);
        struct ls_token token = {.bytes = bytes, .said = bytes};
        if (ls_vocabulary_token(vocabulary, id)->bytes)
            return refuse(reading, "gives the id of '%.60s' to another token too", key);
        if (reading->byte_level) {
            token.count = token.said_count = (uint32_t)spell(byte_of, key, bytes);
        } else {
            token.bytes = key;
            token.count = (uint32_t)strlen(key);
            token.said = said;
            token.said_count = (uint32_t)say(reading->space, key, said);
        }
        ls_vocabulary_set(vocabulary, id, &token);
    }
    return LS_OK;
}

static int by_length(const void *a, const void *b, void *context) {
    const struct ls_vocabulary *vocabulary = context;
    const uint32_t first = ls_vocabulary_token(vocabulary, *(const int32_t *)a)->count,
                   second = ls_vocabulary_token(vocabulary, *(const int32_t *)b)->count;
    return first < second ? 1 : first > second ? -1 : 0;
}

static enum ls_code read_added(const struct reading *reading) {
    struct ls_tokenizer *tokenizer = reading->tokenizer;
    json_t *value;
    size_t index;
    json_array_foreach(reading->added, index, value) {
        const int32_t id = (int32_t)json_integer_value(json_object_get(value, "id"));
        const char *content = text_of(value, "content");
        const struct ls_token *there = ls_vocabulary_token(tokenizer->vocabulary, id);
        const uint32_t count = (uint32_t)strlen(content);
        const json_t *known = json_object_get(reading->vocab, content);
        if (there->added) return refuse(reading, "adds the id %d twice", id);
        if (there->bytes && (!known || json_integer_value(known) != id))
            return refuse(reading, "gives the id of '%.60s' to another token too", content);
        ls_vocabulary_set(tokenizer->vocabulary, id,
                          &(struct ls_token){.bytes = content,
                                             .count = count,
                                             .said = content,
                                             .said_count = count,
                                             .added = true,
                                             .special = is_true(value, "special")});
        tokenizer->added[tokenizer->added_count++] = id;
        tokenizer->added_begins[(unsigned char)content[0]] = true;
        if (count > tokenizer->added_longest) tokenizer->added_longest = count;
    }
    qsort_r(tokenizer->added, tokenizer->added_count, sizeof *tokenizer->added, by_length, tokenizer->vocabulary);
    return LS_OK;
}

static enum ls_code read_tokens(const struct reading *reading) {
    struct ls_tokenizer *tokenizer = reading->tokenizer;
    int64_t size;
    size_t bytes, longest;
    enum ls_code code = measure(reading, &size, &bytes, &longest);
    if (!code) code = ls_vocabulary_create(size, bytes, &tokenizer->vocabulary, reading->error);
    if (code) return code;
    char *word = malloc(longest + 1), *said = malloc(longest + 1);
    tokenizer->added = calloc(json_array_size(reading->added) + 1, sizeof *tokenizer->added);
    code = word && said && tokenizer->added ? read_words(reading, word, said) : no_memory(reading);
    free(word);
    free(said);
    if (!code) code = read_added(reading);
    return code ? code : ls_vocabulary_index(tokenizer->vocabulary, reading->error);
}

/* The token of each byte. */
static enum ls_code find_bytes(const struct reading *reading, int32_t ids[256]) {
    for (int byte = 0; byte < 256; byte++) {
        char key[8] = {(char)byte};
        if (!reading->byte_level) snprintf(key, sizeof key, "<0x%02X>", (unsigned)byte);
        ids[byte] = ls_vocabulary_find(reading->tokenizer->vocabulary, key, reading->byte_level ? 1 : strlen(key));
        if (ids[byte] < 0) return refuse(reading, "has no token for the byte 0x%02x", (unsigned)byte);
    }
    return LS_OK;
}

/* ---- merges ---- */

/* The ids of a merge's two halves: "a b", or ["a", "b"], and of both joined. False: one of them is not there, or empty,
 * or a byte of a fallback, of which text has none. */
static bool read_merge(const struct reading *reading, const json_t *merge, int32_t *left, int32_t *right, int32_t *id) {
    char text[1024], joined[2048];
    const char *first = json_string_value(json_array_get(merge, 0)),
               *second = json_string_value(json_array_get(merge, 1));
    if (json_is_string(merge)) {
        if (json_string_length(merge) >= sizeof text) return false;
        strcpy(text, json_string_value(merge));
        char *space = strchr(text, ' ');
        if (!space) return false;
        *space = 0;
        first = text, second = space + 1;
    }
    if (!first || !second || !*first || !*second) return false;
    if (snprintf(joined, sizeof joined, "%s%s", first, second) >= (int)sizeof joined) return false;
    if (!reading->byte_level && (fallback_byte(first) >= 0 || fallback_byte(second) >= 0)) return false;
    const json_t *a = json_object_get(reading->vocab, first), *b = json_object_get(reading->vocab, second),
                 *both = json_object_get(reading->vocab, joined);
    if (!a || !b || !both) return false;
    *left = (int32_t)json_integer_value(a);
    *right = (int32_t)json_integer_value(b);
    *id = (int32_t)json_integer_value(both);
    return true;
}

static enum ls_code read_merges(const struct reading *reading) {
    struct ls_tokenizer *tokenizer = reading->tokenizer;
    const json_t *merges = json_object_get(reading->model, "merges"), *merge;
    const bool whole_words = is_true(reading->model, "ignore_merges");
    int32_t byte_ids[256], left, right, id;
    size_t index;
    if (whole_words && tokenizer->cut_count == 0)
        return refuse(reading, "looks for whole texts among its tokens (ignore_merges, and no pre-tokenizer)");
    enum ls_code code = find_bytes(reading, byte_ids);
    if (!code)
        code = ls_bpe_create(tokenizer->vocabulary, reading->byte_level ? LS_BPE_BYTES : LS_BPE_CHARACTERS, byte_ids,
                             whole_words, json_array_size(merges), &tokenizer->bpe, reading->error);
    if (code) return code;
    json_array_foreach(merges, index, merge) {
        if (!read_merge(reading, merge, &left, &right, &id))
            return refuse(reading, "has a merge, number %zu, of tokens that are not in its vocabulary", index);
        ls_bpe_add(tokenizer->bpe, left, right, id);
    }
    if (tokenizer->cut_count == 0) tokenizer->cut_count = 1; /* where no merge joins */
    return LS_OK;
}

/* What comes in front of one text; a tokenizer may put that into the last of several processors. */
static void read_prefix(struct ls_tokenizer *tokenizer, const json_t *processor) {
    const json_t *list = json_object_get(processor, "processors"), *one;
    size_t index;
    json_array_foreach(list, index, one) {
        read_prefix(tokenizer, one);
    }
    json_array_foreach(json_object_get(processor, "single"), index, one) {
        const json_t *special = json_object_get(one, "SpecialToken");
        const char *content = json_string_value(json_object_get(special, "id"));
        const int32_t id = content ? ls_tokenizer_find(tokenizer, content) : -1;
        if (!special) return;
        if (id >= 0 && tokenizer->prefix_count < LS_TOKENIZER_PREFIX_MAX)
            tokenizer->prefix[tokenizer->prefix_count++] = id;
    }
}

static enum ls_code read_root(struct reading *reading) {
    const json_t *root = reading->root, *model = json_object_get(root, "model");
    reading->model = model;
    reading->vocab = json_object_get(model, "vocab");
    reading->added = json_object_get(root, "added_tokens");
    /* Old files do not name the type. */
    if (!json_is_object(reading->vocab) || !json_is_array(json_object_get(model, "merges")) ||
        (*type_of(model) && strcmp(type_of(model), "BPE")))
        return refuse(reading, "holds a model '%.40s', not BPE with its vocab and merges", type_of(model));
    if (!is_absent(model, "dropout") || !is_absent(model, "continuing_subword_prefix") ||
        !is_absent(model, "end_of_word_suffix"))
        return refuse(reading, "asks its BPE for dropout, a prefix or a suffix of words");
    if (reading->added && !json_is_array(reading->added)) return refuse(reading, "has no list of added tokens");
    enum ls_code code = read_normalizer(reading, json_object_get(root, "normalizer"));
    if (!code) code = read_splitters(reading, json_object_get(root, "pre_tokenizer"));
    if (!code && !reading->byte_level && !is_true(model, "byte_fallback"))
        code = refuse(reading, "is neither of the byte level nor has it bytes as a fallback");
    if (!code) code = read_tokens(reading);
    if (!code) code = read_merges(reading);
    if (!code) read_prefix(reading->tokenizer, json_object_get(root, "post_processor"));
    return code;
}

enum ls_code ls_tokenizer_parse(const char *json, size_t count, const char *name, struct ls_tokenizer **tokenizer,
                                struct ls_error *error) {
    json_error_t where;
    json_t *root = json_loadb(json, count, JSON_REJECT_DUPLICATES, &where);
    if (!root)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "tokenizer: %s, line %d: %s. Is it a tokenizer.json?", name,
                       where.line, where.text);
    struct reading reading = {.name = name, .root = root, .error = error};
    reading.tokenizer = calloc(1, sizeof *reading.tokenizer);
    const enum ls_code code = reading.tokenizer ? read_root(&reading) : no_memory(&reading);
    json_decref(root);
    if (code)
        ls_tokenizer_destroy(reading.tokenizer);
    else
        *tokenizer = reading.tokenizer;
    return code;
}

void ls_tokenizer_destroy(struct ls_tokenizer *tokenizer) {
    if (!tokenizer) return;
    for (int i = 0; i < tokenizer->cut_count; i++) {
        pcre2_code_free(tokenizer->cuts[i].code);
        pcre2_match_data_free(tokenizer->cuts[i].match);
    }
    ls_bpe_destroy(tokenizer->bpe);
    ls_vocabulary_destroy(tokenizer->vocabulary);
    free(tokenizer->added);
    free(tokenizer);
}

int64_t ls_tokenizer_vocabulary(const struct ls_tokenizer *tokenizer) {
    return ls_vocabulary_size(tokenizer->vocabulary);
}

int32_t ls_tokenizer_find(const struct ls_tokenizer *tokenizer, const char *text) {
    for (size_t i = 0; i < tokenizer->added_count; i++) {
        const struct ls_token *token = ls_vocabulary_token(tokenizer->vocabulary, tokenizer->added[i]);
        if (token->count == strlen(text) && memcmp(token->bytes, text, token->count) == 0) return tokenizer->added[i];
    }
    return *text ? ls_vocabulary_find(tokenizer->vocabulary, text, strlen(text)) : -1;
}

const char *ls_tokenizer_said(const struct ls_tokenizer *tokenizer, int64_t id, bool *begins, size_t *count,
                              bool *special) {
    if (id < 0 || id >= ls_tokenizer_vocabulary(tokenizer)) return NULL;
    const struct ls_token *token = ls_vocabulary_token(tokenizer->vocabulary, id);
    if (!token->bytes) return NULL;
    const bool spare = *begins && ls_normalizer_prepends(&tokenizer->normalizer, LS_NORMALIZER_FIRST) &&
                       !token->added && token->said_count > 0 && token->said[0] == ' ';
    *count = token->said_count - spare;
    *begins = token->added && ls_normalizer_prepends(&tokenizer->normalizer, LS_NORMALIZER_BEHIND);
    *special = token->special;
    return token->said + spare;
}

const int32_t *ls_tokenizer_prefix(const struct ls_tokenizer *tokenizer, size_t *count) {
    *count = tokenizer->prefix_count;
    return tokenizer->prefix;
}

enum ls_code ls_tokenizer_config_write(const char *document, char **json, struct ls_error *error) {
    json_t *root = json_pack("{s:s,s:s,s:s,s:b}", "tokenizer_class", "PreTrainedTokenizerFast", "bos_token", document,
                             "eos_token", document, "clean_up_tokenization_spaces", 0);
    *json = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    return *json ? LS_OK : ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "tokenizer_config.json: no memory");
}
