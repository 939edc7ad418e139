/* Byte-level BPE: a piece of text by its bytes, pairs of tokens joined in the order in which they were learned. */
#define _GNU_SOURCE
#define PCRE2_CODE_UNIT_WIDTH 8
#include "common/bpe.h"

#include <jansson.h>
#include <pcre2.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum {
    STEPS_MAX = 8,
    PREFIX_MAX = 8,
    CACHE_SLOTS = 1 << 15,
    CACHE_BYTES = 24, /* of a piece, and ids of it: longer ones are not kept */
    CACHE_IDS = 11,
    CHARACTER_MAX = 324 /* the last character of the byte-level alphabet, and 1 */
};

/* Letters, numbers and other signs, each with a space before it if there is one (Radford et al. 2019). */
static const char gpt2_pattern[] = "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

struct token {
    const char *bytes; /* NULL: no such id */
    uint32_t count;
    bool added, special;
};

struct merge {
    uint64_t pair; /* left id << 32 | right id */
    int32_t rank, id;
};

/* Cuts a text into the matches of a pattern and what lies between them. */
struct step {
    pcre2_code *code;
    pcre2_match_data *match;
};

struct cached {
    uint8_t bytes_count, ids_count; /* no bytes: empty */
    char bytes[CACHE_BYTES];
    int32_t ids[CACHE_IDS];
};

struct ls_bpe {
    int64_t vocabulary;
    struct token *tokens; /* [vocabulary] */
    char *text;           /* all tokens' bytes */
    int32_t byte_ids[256];
    bool whole_words;     /* a piece that is a token is that token, whatever merges say */
    struct merge *merges; /* a hash table of merge_slots, a power of two; id -1: empty */
    size_t merge_slots;
    int32_t *words; /* a hash table of word_slots: tokens by their bytes; -1: empty */
    size_t word_slots;
    int32_t *added; /* ids, the longest first */
    size_t added_count, added_longest;
    bool added_begins[256];
    struct step steps[STEPS_MAX];
    int step_count;
    int32_t prefix[PREFIX_MAX];
    size_t prefix_count;
    struct cached *cache;
    /* of a piece under way */
    struct symbol *symbols;
    struct candidate *heap;
    size_t symbol_capacity, heap_count;
};

struct symbol {
    int32_t id; /* -1: joined to the one before */
    int32_t previous, next;
};

/* Two neighbours that may be joined; out of date where their ids are others by now. */
struct candidate {
    int32_t rank, left, left_id, right_id, id;
};

static enum ls_code refuse(struct ls_error *error, const char *name, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static enum ls_code refuse(struct ls_error *error, const char *name, const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                   "tokenizer: %s %s. Byte-level BPE as in GPT-2 or Llama 3 is understood; prepare the text elsewhere "
                   "for others.",
                   name, text);
}

static enum ls_code no_memory(struct ls_error *error) {
    return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "tokenizer: no memory");
}

/* ---- tables ---- */

static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 32) * 0x9e3779b97f4a7c15u;
    return x ^ x >> 29;
}

static const struct merge *find_merge(const struct ls_bpe *bpe, int32_t left, int32_t right) {
    const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    for (size_t at = mix(pair) & (bpe->merge_slots - 1);; at = (at + 1) & (bpe->merge_slots - 1)) {
        if (bpe->merges[at].id < 0) return NULL;
        if (bpe->merges[at].pair == pair) return &bpe->merges[at];
    }
}

static int32_t find_word(const struct ls_bpe *bpe, const char *bytes, size_t count) {
    for (size_t at = XXH3_64bits(bytes, count) & (bpe->word_slots - 1);; at = (at + 1) & (bpe->word_slots - 1)) {
        const int32_t id = bpe->words[at];
        if (id < 0) return -1;
        const struct token *token = &bpe->tokens[id];
        if (token->count == count && memcmp(token->bytes, bytes, count) == 0) return id;
    }
}

static size_t slots_for(size_t count) {
    size_t slots = 16;
    while (slots < 2 * count) slots *= 2;
    return slots;
}

/* Of several tokens with the same bytes the first is found. */
static enum ls_code make_words(struct ls_bpe *bpe, struct ls_error *error) {
    bpe->word_slots = slots_for((size_t)bpe->vocabulary);
    bpe->words = malloc(bpe->word_slots * sizeof *bpe->words);
    if (!bpe->words) return no_memory(error);
    memset(bpe->words, 0xff, bpe->word_slots * sizeof *bpe->words);
    for (int64_t id = 0; id < bpe->vocabulary; id++) {
        const struct token *token = &bpe->tokens[id];
        if (!token->bytes || token->count == 0 || find_word(bpe, token->bytes, token->count) >= 0) continue;
        size_t at = XXH3_64bits(token->bytes, token->count) & (bpe->word_slots - 1);
        while (bpe->words[at] >= 0) at = (at + 1) & (bpe->word_slots - 1);
        bpe->words[at] = (int32_t)id;
    }
    return LS_OK;
}

/* ---- reading tokenizer.json ---- */

/* The byte that each character of GPT-2's alphabet stands for: printable ones of Latin-1 for themselves, the others, in
 * order, from U+0100 on; -1: none. */
static void make_alphabet(int16_t byte_of[CHARACTER_MAX]) {
    int next = 256;
    for (int i = 0; i < CHARACTER_MAX; i++) byte_of[i] = -1;
    for (int byte = 0; byte < 256; byte++) {
        const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
        byte_of[printable ? byte : next++] = (int16_t)byte;
    }
}

/* The bytes that a key of the vocabulary stands for; its own where it has characters outside the alphabet. jansson has
 * checked its UTF-8. */
static size_t spell(const int16_t byte_of[CHARACTER_MAX], const char *key, char *to) {
    size_t count = 0;
    for (const unsigned char *c = (const unsigned char *)key; *c;) {
        const unsigned character = c[0] < 0x80 ? c[0] : c[0] < 0xe0 ? (c[0] & 31u) << 6 | (c[1] & 63u) : CHARACTER_MAX;
        if (character >= CHARACTER_MAX || byte_of[character] < 0) {
            memcpy(to, key, strlen(key));
            return strlen(key);
        }
        to[count++] = (char)byte_of[character];
        c += c[0] < 0x80 ? 1 : 2;
    }
    return count;
}

static bool is_true(const json_t *object, const char *key) {
    return json_is_true(json_object_get(object, key));
}

/* Null, absent, or an empty string. */
static bool is_absent(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return !value || json_is_null(value) || (json_is_string(value) && json_string_length(value) == 0);
}

static const char *type_of(const json_t *object) {
    const char *type = json_string_value(json_object_get(object, "type"));
    return type ? type : "";
}

static bool is_id(const json_t *value) {
    return json_is_integer(value) && json_integer_value(value) >= 0 &&
           json_integer_value(value) < LS_BPE_VOCABULARY_MAX;
}

/* How many ids there are, and how many bytes their texts take at most. */
static enum ls_code measure(struct ls_bpe *bpe, json_t *vocab, json_t *added, const char *name, size_t *bytes,
                            struct ls_error *error) {
    const char *key;
    json_t *value;
    size_t index;
    *bytes = 0;
    json_object_foreach(vocab, key, value) {
        if (!is_id(value)) return refuse(error, name, "gives the token '%.60s' no id from 0 on", key);
        if (json_integer_value(value) >= bpe->vocabulary) bpe->vocabulary = json_integer_value(value) + 1;
        *bytes += strlen(key);
    }
    json_array_foreach(added, index, value) {
        const char *content = json_string_value(json_object_get(value, "content"));
        const json_t *id = json_object_get(value, "id");
        if (!content || !*content || !is_id(id)) return refuse(error, name, "has an added token without id or content");
        if (is_true(value, "lstrip") || is_true(value, "rstrip") || is_true(value, "single_word"))
            return refuse(error, name, "wants spaces around the added token '%.60s' treated apart", content);
        if (json_integer_value(id) >= bpe->vocabulary) bpe->vocabulary = json_integer_value(id) + 1;
        *bytes += strlen(content);
    }
    return LS_OK;
}

static int by_length(const void *a, const void *b, void *context) {
    const struct ls_bpe *bpe = context;
    const uint32_t first = bpe->tokens[*(const int32_t *)a].count, second = bpe->tokens[*(const int32_t *)b].count;
    return first < second ? 1 : first > second ? -1 : 0;
}

static enum ls_code read_tokens(struct ls_bpe *bpe, json_t *vocab, json_t *added, const char *name,
                                struct ls_error *error) {
    int16_t byte_of[CHARACTER_MAX];
    const char *key;
    json_t *value;
    size_t index, bytes;
    enum ls_code code = measure(bpe, vocab, added, name, &bytes, error);
    if (code) return code;
    bpe->tokens = calloc((size_t)bpe->vocabulary + 1, sizeof *bpe->tokens);
    bpe->text = malloc(bytes + 1);
    bpe->added = calloc(json_array_size(added) + 1, sizeof *bpe->added);
    if (!bpe->tokens || !bpe->text || !bpe->added) return no_memory(error);
    make_alphabet(byte_of);
    char *end = bpe->text;
    json_object_foreach(vocab, key, value) {
        struct token *token = &bpe->tokens[json_integer_value(value)];
        if (token->bytes) return refuse(error, name, "gives the id of '%.60s' to another token too", key);
        *token = (struct token){.bytes = end, .count = (uint32_t)spell(byte_of, key, end)};
        end += token->count;
    }
    json_array_foreach(added, index, value) {
        const int32_t id = (int32_t)json_integer_value(json_object_get(value, "id"));
        const char *content = json_string_value(json_object_get(value, "content"));
        struct token *token = &bpe->tokens[id];
        const size_t count = strlen(content);
        if (token->added) return refuse(error, name, "adds the id %d twice", id);
        memcpy(end, content, count);
        *token =
            (struct token){.bytes = end, .count = (uint32_t)count, .added = true, .special = is_true(value, "special")};
        end += count;
        bpe->added[bpe->added_count++] = id;
        bpe->added_begins[(unsigned char)content[0]] = true;
        if (count > bpe->added_longest) bpe->added_longest = count;
    }
    qsort_r(bpe->added, bpe->added_count, sizeof *bpe->added, by_length, bpe);
    return make_words(bpe, error);
}

/* The ids of a merge's two halves: "a b", or ["a", "b"]. False: it has none. */
static bool read_pair(const json_t *merge, const json_t *vocab, char *joined, size_t joined_size, int32_t *left,
                      int32_t *right) {
    char text[1024];
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
    if (!first || !second) return false;
    const json_t *a = json_object_get(vocab, first), *b = json_object_get(vocab, second);
    if (!a || !b || snprintf(joined, joined_size, "%s%s", first, second) >= (int)joined_size) return false;
    *left = (int32_t)json_integer_value(a);
    *right = (int32_t)json_integer_value(b);
    return true;
}

static enum ls_code read_merges(struct ls_bpe *bpe, json_t *merges, json_t *vocab, const char *name,
                                struct ls_error *error) {
    const json_t *merge;
    size_t rank;
    bpe->merge_slots = slots_for(json_array_size(merges));
    bpe->merges = calloc(bpe->merge_slots, sizeof *bpe->merges);
    if (!bpe->merges) return no_memory(error);
    for (size_t i = 0; i < bpe->merge_slots; i++) bpe->merges[i].id = -1;
    json_array_foreach(merges, rank, merge) {
        char joined[2048];
        int32_t left, right;
        const json_t *id = NULL;
        if (read_pair(merge, vocab, joined, sizeof joined, &left, &right)) id = json_object_get(vocab, joined);
        if (!id) return refuse(error, name, "has a merge, number %zu, of tokens that are not in its vocabulary", rank);
        if (find_merge(bpe, left, right)) continue; /* the first one counts */
        const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
        size_t at = mix(pair) & (bpe->merge_slots - 1);
        while (bpe->merges[at].id >= 0) at = (at + 1) & (bpe->merge_slots - 1);
        bpe->merges[at] = (struct merge){pair, (int32_t)rank, (int32_t)json_integer_value(id)};
    }
    return LS_OK;
}

static enum ls_code add_step(struct ls_bpe *bpe, const char *pattern, bool literal, const char *name,
                             struct ls_error *error) {
    int number;
    PCRE2_SIZE place;
    if (bpe->step_count == STEPS_MAX) return refuse(error, name, "cuts text in more than %d steps", STEPS_MAX);
    struct step *step = &bpe->steps[bpe->step_count];
    step->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                               PCRE2_UTF | PCRE2_UCP | (literal ? PCRE2_LITERAL : 0), &number, &place, NULL);
    if (!step->code) {
        PCRE2_UCHAR text[160];
        pcre2_get_error_message(number, text, sizeof text);
        return refuse(error, name, "cuts text by a pattern that is not understood (%s at %zu): %.200s",
                      (const char *)text, (size_t)place, pattern);
    }
    bpe->step_count++;
    pcre2_jit_compile(step->code, PCRE2_JIT_COMPLETE); /* faster, where it is there */
    step->match = pcre2_match_data_create_from_pattern(step->code, NULL);
    return step->match ? LS_OK : no_memory(error);
}

static enum ls_code read_splitter(struct ls_bpe *bpe, const json_t *splitter, const char *name,
                                  struct ls_error *error) {
    const char *type = type_of(splitter);
    if (strcmp(type, "ByteLevel") == 0) {
        if (is_true(splitter, "add_prefix_space")) return refuse(error, name, "puts a space in front of texts");
        const json_t *use_regex = json_object_get(splitter, "use_regex");
        return json_is_false(use_regex) ? LS_OK : add_step(bpe, gpt2_pattern, false, name, error);
    }
    if (strcmp(type, "Digits") == 0)
        return add_step(bpe, is_true(splitter, "individual_digits") ? "\\p{N}" : "\\p{N}+", false, name, error);
    if (strcmp(type, "Split") == 0) {
        const json_t *pattern = json_object_get(splitter, "pattern");
        const char *behavior = json_string_value(json_object_get(splitter, "behavior"));
        const char *regex = json_string_value(json_object_get(pattern, "Regex")),
                   *string = json_string_value(json_object_get(pattern, "String"));
        if (!behavior || strcmp(behavior, "Isolated") || (!regex && !string))
            return refuse(error, name, "cuts text by 'Split' with the behavior '%.40s'", behavior ? behavior : "");
        return add_step(bpe, regex ? regex : string, !regex, name, error);
    }
    return refuse(error, name, "cuts text by '%.40s'", type);
}

static enum ls_code read_splitters(struct ls_bpe *bpe, const json_t *splitter, const char *name,
                                   struct ls_error *error) {
    const json_t *list = json_object_get(splitter, "pretokenizers"), *one;
    size_t index;
    enum ls_code code = LS_OK;
    bool bytes = false;
    if (strcmp(type_of(splitter), "Sequence")) {
        if (strcmp(type_of(splitter), "ByteLevel")) return refuse(error, name, "is not of the byte level");
        return read_splitter(bpe, splitter, name, error);
    }
    json_array_foreach(list, index, one) {
        if (bytes) return refuse(error, name, "cuts text once more behind its byte level");
        bytes = strcmp(type_of(one), "ByteLevel") == 0;
        code = read_splitter(bpe, one, name, error);
        if (code) return code;
    }
    return bytes ? LS_OK : refuse(error, name, "is not of the byte level");
}

/* What comes in front of one text; a tokenizer may put that into the last of several processors. */
static void read_prefix(struct ls_bpe *bpe, const json_t *processor) {
    const json_t *list = json_object_get(processor, "processors"), *one;
    size_t index;
    json_array_foreach(list, index, one) {
        read_prefix(bpe, one);
    }
    json_array_foreach(json_object_get(processor, "single"), index, one) {
        const json_t *special = json_object_get(one, "SpecialToken");
        const char *content = json_string_value(json_object_get(special, "id"));
        const int32_t id = content ? ls_bpe_find(bpe, content) : -1;
        if (!special) return;
        if (id >= 0 && bpe->prefix_count < PREFIX_MAX) bpe->prefix[bpe->prefix_count++] = id;
    }
}

static enum ls_code read_model(struct ls_bpe *bpe, const json_t *root, const char *name, struct ls_error *error) {
    const json_t *model = json_object_get(root, "model"), *normalizer = json_object_get(root, "normalizer");
    json_t *vocab = json_object_get(model, "vocab"), *merges = json_object_get(model, "merges"),
           *added = json_object_get(root, "added_tokens");
    /* Old files do not name the type. */
    if (!json_is_object(vocab) || !json_is_array(merges) || (*type_of(model) && strcmp(type_of(model), "BPE")))
        return refuse(error, name, "holds a model '%.40s', not BPE with its vocab and merges", type_of(model));
    if (is_true(model, "byte_fallback") || !is_absent(model, "dropout") ||
        !is_absent(model, "continuing_subword_prefix") || !is_absent(model, "end_of_word_suffix"))
        return refuse(error, name, "asks its BPE for byte_fallback, dropout, a prefix or a suffix of words");
    if (normalizer && !json_is_null(normalizer))
        return refuse(error, name, "changes text by the normalizer '%.40s' first", type_of(normalizer));
    if (added && !json_is_array(added)) return refuse(error, name, "has no list of added tokens");
    bpe->whole_words = is_true(model, "ignore_merges");
    enum ls_code code = read_tokens(bpe, vocab, added, name, error);
    if (!code) code = read_merges(bpe, merges, vocab, name, error);
    if (!code) code = read_splitters(bpe, json_object_get(root, "pre_tokenizer"), name, error);
    for (int byte = 0; byte < 256 && !code; byte++) {
        const char text = (char)byte;
        bpe->byte_ids[byte] = find_word(bpe, &text, 1);
        if (bpe->byte_ids[byte] < 0) code = refuse(error, name, "has no token for the byte 0x%02x", (unsigned)byte);
    }
    if (!code) read_prefix(bpe, json_object_get(root, "post_processor"));
    return code;
}

enum ls_code ls_bpe_parse(const char *json, size_t count, const char *name, struct ls_bpe **result,
                          struct ls_error *error) {
    json_error_t where;
    json_t *root = json_loadb(json, count, JSON_REJECT_DUPLICATES, &where);
    if (!root)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "tokenizer: %s, line %d: %s. Is it a tokenizer.json?", name,
                       where.line, where.text);
    struct ls_bpe *bpe = calloc(1, sizeof *bpe);
    enum ls_code code = bpe && (bpe->cache = calloc(CACHE_SLOTS, sizeof *bpe->cache))
                            ? read_model(bpe, root, name, error)
                            : no_memory(error);
    json_decref(root);
    if (code)
        ls_bpe_destroy(bpe);
    else
        *result = bpe;
    return code;
}

void ls_bpe_destroy(struct ls_bpe *bpe) {
    if (!bpe) return;
    for (int i = 0; i < bpe->step_count; i++) {
        pcre2_code_free(bpe->steps[i].code);
        pcre2_match_data_free(bpe->steps[i].match);
    }
    free(bpe->tokens);
    free(bpe->text);
    free(bpe->merges);
    free(bpe->words);
    free(bpe->added);
    free(bpe->cache);
    free(bpe->symbols);
    free(bpe->heap);
    free(bpe);
}

int64_t ls_bpe_vocabulary(const struct ls_bpe *bpe) {
    return bpe->vocabulary;
}

int32_t ls_bpe_find(const struct ls_bpe *bpe, const char *text) {
    for (size_t i = 0; i < bpe->added_count; i++) {
        const struct token *token = &bpe->tokens[bpe->added[i]];
        if (token->count == strlen(text) && memcmp(token->bytes, text, token->count) == 0) return bpe->added[i];
    }
    return *text ? find_word(bpe, text, strlen(text)) : -1;
}

const char *ls_bpe_bytes(const struct ls_bpe *bpe, int64_t id, size_t *count, bool *special) {
    if (id < 0 || id >= bpe->vocabulary || !bpe->tokens[id].bytes) return NULL;
    *count = bpe->tokens[id].count;
    if (special) *special = bpe->tokens[id].special;
    return bpe->tokens[id].bytes;
}

const int32_t *ls_bpe_prefix(const struct ls_bpe *bpe, size_t *count) {
    *count = bpe->prefix_count;
    return bpe->prefix;
}

/* ---- a piece ---- */

static enum ls_code put(struct ls_bpe_ids *ids, const int32_t *from, size_t count, struct ls_error *error) {
    if (ids->capacity - ids->count < count) {
        const size_t capacity = 2 * ids->capacity + count + 256;
        int32_t *grown = reallocarray(ids->ids, capacity, sizeof *grown);
        if (!grown) return no_memory(error);
        ids->ids = grown;
        ids->capacity = capacity;
    }
    memcpy(ids->ids + ids->count, from, count * sizeof *from);
    ids->count += count;
    return LS_OK;
}

/* Lower ranks first, of equal ones the one further left. */
static bool is_before(const struct candidate *a, const struct candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->left < b->left;
}

static void push(struct ls_bpe *bpe, int32_t left) {
    const struct symbol *symbols = bpe->symbols;
    if (left < 0 || symbols[left].next < 0) return;
    const int32_t left_id = symbols[left].id, right_id = symbols[symbols[left].next].id;
    const struct merge *merge = find_merge(bpe, left_id, right_id);
    if (!merge) return;
    const struct candidate candidate = {merge->rank, left, left_id, right_id, merge->id};
    size_t at = bpe->heap_count++;
    for (; at > 0 && is_before(&candidate, &bpe->heap[(at - 1) / 2]); at = (at - 1) / 2)
        bpe->heap[at] = bpe->heap[(at - 1) / 2];
    bpe->heap[at] = candidate;
}

static struct candidate pop(struct ls_bpe *bpe) {
    struct candidate *heap = bpe->heap;
    const struct candidate first = heap[0], last = heap[--bpe->heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= bpe->heap_count) break;
        if (child + 1 < bpe->heap_count && is_before(&heap[child + 1], &heap[child])) child++;
        if (!is_before(&heap[child], &last)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return first;
}

/* Every joining pushes two candidates at most, and takes one symbol away: three for each byte are enough. */
static enum ls_code make_room(struct ls_bpe *bpe, size_t count, struct ls_error *error) {
    if (bpe->symbol_capacity >= count) return LS_OK;
    if (count > INT32_MAX / 4)
        return ls_fail(error, LS_DATA, LS_SCOPE_CALL, "tokenizer: a piece of text has more than %d bytes",
                       INT32_MAX / 4);
    const size_t capacity = 2 * count + 64;
    struct symbol *symbols = reallocarray(bpe->symbols, capacity, sizeof *symbols);
    if (symbols) bpe->symbols = symbols;
    struct candidate *heap = symbols ? reallocarray(bpe->heap, 3 * capacity, sizeof *heap) : NULL;
    if (!heap) return no_memory(error);
    bpe->heap = heap;
    bpe->symbol_capacity = capacity;
    return LS_OK;
}

static enum ls_code join(struct ls_bpe *bpe, const char *bytes, size_t count, struct ls_bpe_ids *ids,
                         struct ls_error *error) {
    enum ls_code code = make_room(bpe, count, error);
    if (code) return code;
    struct symbol *symbols = bpe->symbols;
    bpe->heap_count = 0;
    for (size_t i = 0; i < count; i++)
        symbols[i] = (struct symbol){bpe->byte_ids[(unsigned char)bytes[i]], (int32_t)i - 1,
                                     i + 1 < count ? (int32_t)i + 1 : -1};
    for (size_t i = 0; i < count; i++) push(bpe, (int32_t)i);
    while (bpe->heap_count > 0) {
        const struct candidate best = pop(bpe);
        struct symbol *left = &symbols[best.left];
        if (left->id != best.left_id || left->next < 0 || symbols[left->next].id != best.right_id) continue;
        struct symbol *right = &symbols[left->next];
        left->id = best.id;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) symbols[left->next].previous = best.left;
        push(bpe, left->previous);
        push(bpe, best.left);
    }
    for (int32_t i = 0; i >= 0 && !code; i = symbols[i].next) code = put(ids, &symbols[i].id, 1, error);
    return code;
}

static enum ls_code encode_piece(struct ls_bpe *bpe, const char *bytes, size_t count, struct ls_bpe_ids *ids,
                                 struct ls_error *error) {
    const size_t before = ids->count;
    struct cached *cached = count <= CACHE_BYTES ? &bpe->cache[XXH3_64bits(bytes, count) & (CACHE_SLOTS - 1)] : NULL;
    if (cached && cached->bytes_count == count && memcmp(cached->bytes, bytes, count) == 0)
        return put(ids, cached->ids, cached->ids_count, error);
    const int32_t whole = bpe->whole_words ? find_word(bpe, bytes, count) : -1;
    const bool is_whole = whole >= 0 && !bpe->tokens[whole].added;
    const enum ls_code code = is_whole ? put(ids, &whole, 1, error) : join(bpe, bytes, count, ids, error);
    if (code || !cached || ids->count - before > CACHE_IDS) return code;
    cached->bytes_count = (uint8_t)count;
    cached->ids_count = (uint8_t)(ids->count - before);
    memcpy(cached->bytes, bytes, count);
    memcpy(cached->ids, ids->ids + before, cached->ids_count * sizeof *ids->ids);
    return LS_OK;
}

/* ---- a text ---- */

/* Bytes of the character at text[0], 0: no UTF-8. *short_of: the text ends within what may be one. */
static size_t character_bytes(const unsigned char *text, size_t count, bool *short_of) {
    const unsigned lead = text[0];
    const size_t length = lead < 0x80                   ? 1
                          : lead >= 0xc2 && lead < 0xe0 ? 2
                          : lead >= 0xe0 && lead < 0xf0 ? 3
                          : lead >= 0xf0 && lead < 0xf5 ? 4
                                                        : 0;
    *short_of = false;
    for (size_t i = 1; i < length; i++) {
        if (i == count) {
            *short_of = true;
            return 0;
        }
        /* Not longer than need be, no surrogate, not beyond U+10FFFF. */
        const unsigned low = i > 1          ? 0x80
                             : lead == 0xe0 ? 0xa0
                             : lead == 0xf0 ? 0x90
                                            : 0x80,
                       high = i > 1          ? 0xbf
                              : lead == 0xed ? 0x9f
                              : lead == 0xf4 ? 0x8f
                                             : 0xbf;
        if (text[i] < low || text[i] > high) return 0;
    }
    return length;
}

/* Bytes from text on that are UTF-8 throughout, or, *valid false, that are not at all. */
static size_t run_bytes(const char *text, size_t count, bool *valid) {
    bool short_of;
    size_t at = 0;
    for (; at < count; at++) {
        const size_t length = character_bytes((const unsigned char *)text + at, count - at, &short_of);
        if (at == 0) *valid = length > 0;
        if ((length > 0) != *valid) break;
        if (length > 0) at += length - 1;
    }
    return at;
}

/* The first match of a step in text from `from` on, [*begin, *end); both `count` where there is none. */
static enum ls_code find_match(const struct step *step, const char *text, size_t count, size_t from, size_t *begin,
                               size_t *end, struct ls_error *error) {
    const int found =
        pcre2_match(step->code, (PCRE2_SPTR)text, count, from, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, step->match, NULL);
    const PCRE2_SIZE *place = pcre2_get_ovector_pointer(step->match);
    *begin = *end = count;
    if (found == PCRE2_ERROR_NOMATCH) return LS_OK;
    if (found < 0)
        return ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                       "tokenizer: the pattern that cuts text gives up (%d) at \"%.40s\"", found, text + from);
    if (place[0] < from || place[1] <= place[0]) return LS_OK; /* a look behind, by \\K: no piece */
    *begin = place[0];
    *end = place[1];
    return LS_OK;
}

/* A piece of UTF-8, cut by the steps from `step` on. */
static enum ls_code cut(struct ls_bpe *bpe, int step, const char *text, size_t count, struct ls_bpe_ids *ids,
                        struct ls_error *error) {
    if (count == 0) return LS_OK;
    if (step == bpe->step_count) return encode_piece(bpe, text, count, ids, error);
    enum ls_code code = LS_OK;
    for (size_t from = 0; from < count && !code;) {
        size_t begin, end;
        code = find_match(&bpe->steps[step], text, count, from, &begin, &end, error);
        if (!code) code = cut(bpe, step + 1, text + from, begin - from, ids, error);
        if (!code) code = cut(bpe, step + 1, text + begin, end - begin, ids, error);
        from = end;
    }
    return code;
}

/* The same where more follows: the last two pieces of the first step stay, since a pattern looks one character ahead.
 * *used: bytes of those before. */
static enum ls_code cut_begun(struct ls_bpe *bpe, const char *text, size_t count, struct ls_bpe_ids *ids, size_t *used,
                              struct ls_error *error) {
    enum ls_code code = LS_OK;
    size_t ends[2] = {0, 0}; /* of the last two pieces but one, and but none */
    *used = 0;
    if (bpe->step_count == 0) return LS_OK;
    for (size_t from = 0; from < count && !code;) {
        size_t begin, end;
        code = find_match(&bpe->steps[0], text, count, from, &begin, &end, error);
        if (code || begin == count) break;
        const size_t pieces[2] = {begin, end};
        for (int i = 0; i < 2 && !code; i++) {
            if (pieces[i] == from) continue;
            code = cut(bpe, 1, text + *used, ends[0] - *used, ids, error);
            *used = ends[0];
            ends[0] = ends[1];
            ends[1] = from = pieces[i];
        }
    }
    return code;
}

/* The id of the added token that begins at text, the longest one; -1: none. */
static int32_t find_added(const struct ls_bpe *bpe, const char *text, size_t count) {
    if (!bpe->added_begins[(unsigned char)*text]) return -1;
    for (size_t i = 0; i < bpe->added_count; i++) {
        const struct token *token = &bpe->tokens[bpe->added[i]];
        if (token->count <= count && memcmp(token->bytes, text, token->count) == 0) return bpe->added[i];
    }
    return -1;
}

/* Bytes of text without a last character of which there is only a beginning. */
static size_t whole_characters(const char *text, size_t count) {
    for (size_t back = 1; back <= 3 && back <= count; back++) {
        bool short_of;
        character_bytes((const unsigned char *)text + count - back, back, &short_of);
        if (short_of) return count - back;
    }
    return count;
}

/* Text without added tokens. `open`: more of it follows. */
static enum ls_code encode_plain(struct ls_bpe *bpe, const char *text, size_t count, bool open, struct ls_bpe_ids *ids,
                                 size_t *used, struct ls_error *error) {
    enum ls_code code = LS_OK;
    *used = 0;
    if (open) count = whole_characters(text, count);
    while (*used < count && !code) {
        bool valid = false;
        const size_t run = run_bytes(text + *used, count - *used, &valid);
        if (open && *used + run == count) { /* what ends here may go on */
            size_t taken = 0;
            if (valid) code = cut_begun(bpe, text + *used, run, ids, &taken, error);
            *used += taken;
            break;
        }
        code = valid ? cut(bpe, 0, text + *used, run, ids, error) : encode_piece(bpe, text + *used, run, ids, error);
        *used += run;
    }
    return code;
}

enum ls_code ls_bpe_encode(struct ls_bpe *bpe, const char *text, size_t count, bool last, struct ls_bpe_ids *ids,
                           size_t *used, struct ls_error *error) {
    enum ls_code code = LS_OK;
    *used = 0;
    while (*used < count && !code) {
        size_t next = *used, taken;
        int32_t added = -1;
        while (next < count && (added = find_added(bpe, text + next, count - next)) < 0) next++;
        const bool open = !last && next == count;
        /* A longer one may begin there. */
        const bool unsure = !last && added >= 0 && count - next < bpe->added_longest;
        /* An added token may have begun in the last bytes. */
        const size_t spare = open ? bpe->added_longest : 0, plain = next - *used;
        code = encode_plain(bpe, text + *used, plain > spare ? plain - spare : 0, open, ids, &taken, error);
        if (code) return code;
        *used += taken;
        if (added < 0 || unsure) break;
        code = put(ids, &added, 1, error);
        *used += bpe->tokens[added].count;
    }
    return code;
}
