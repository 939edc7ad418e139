/* Byte-pair encoding with a heap of what may be joined, and a cache of short pieces. */
#define _GNU_SOURCE
#include "common/bpe.h"

#include "common/utf8.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum {
    CACHE_SLOTS = 1 << 15,
    CACHE_BYTES = 24, /* of a piece, and ids of it: longer ones are not kept */
    CACHE_IDS = 11
};

struct merge {
    uint64_t pair; /* left id << 32 | right id */
    int32_t rank, id;
};

struct cached {
    uint8_t bytes_count, ids_count; /* no bytes: empty */
    char bytes[CACHE_BYTES];
    int32_t ids[CACHE_IDS];
};

struct symbol {
    int32_t id; /* -1: joined to the one before */
    int32_t previous, next;
};

/* Two neighbours that may be joined; out of date where their ids are others by now. */
struct candidate {
    int32_t rank, left, left_id, right_id, id;
};

struct ls_bpe {
    const struct ls_vocabulary *vocabulary;
    enum ls_bpe_unit unit;
    int32_t byte_ids[256];
    bool whole_words;
    int32_t merge_count;
    struct merge *merges; /* a hash table of `slots`, a power of two; id -1: empty */
    uint64_t *joints;     /* another: last unit of a merge's left half << 32 | first unit of its right one; 0: empty */
    size_t slots;
    struct cached *cache;
    /* of a piece under way */
    struct symbol *symbols;
    struct candidate *heap;
    size_t symbol_capacity, heap_count;
};

enum ls_code ls_bpe_create(const struct ls_vocabulary *vocabulary, enum ls_bpe_unit unit, const int32_t byte_ids[256],
                           bool whole_words, size_t merges, struct ls_bpe **result, struct ls_error *error) {
    struct ls_bpe *bpe = calloc(1, sizeof *bpe);
    if (!bpe) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "tokenizer: no memory");
    *bpe = (struct ls_bpe){.vocabulary = vocabulary, .unit = unit, .whole_words = whole_words, .slots = 16};
    memcpy(bpe->byte_ids, byte_ids, sizeof bpe->byte_ids);
    while (bpe->slots < 2 * merges) bpe->slots *= 2;
    bpe->merges = calloc(bpe->slots, sizeof *bpe->merges);
    bpe->joints = calloc(bpe->slots, sizeof *bpe->joints);
    bpe->cache = calloc(CACHE_SLOTS, sizeof *bpe->cache);
    if (!bpe->merges || !bpe->joints || !bpe->cache) {
        ls_bpe_destroy(bpe);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "tokenizer: no memory for %zu merges", merges);
    }
    for (size_t i = 0; i < bpe->slots; i++) bpe->merges[i].id = -1;
    *result = bpe;
    return LS_OK;
}

void ls_bpe_destroy(struct ls_bpe *bpe) {
    if (!bpe) return;
    free(bpe->merges);
    free(bpe->joints);
    free(bpe->cache);
    free(bpe->symbols);
    free(bpe->heap);
    free(bpe);
}

/* ---- tables ---- */

static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 32) * 0x9e3779b97f4a7c15u;
    return x ^ x >> 29;
}

/* Where a pair of ids is, or would be. */
static struct merge *find_merge(const struct ls_bpe *bpe, int32_t left, int32_t right) {
    const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t at = mix(pair) & (bpe->slots - 1);
    while (bpe->merges[at].id >= 0 && bpe->merges[at].pair != pair) at = (at + 1) & (bpe->slots - 1);
    return &bpe->merges[at];
}

/* Where a joint is, or would be. */
static uint64_t *find_joint(const struct ls_bpe *bpe, uint32_t last, uint32_t first) {
    const uint64_t joint = (uint64_t)last << 32 | first;
    size_t at = mix(joint) & (bpe->slots - 1);
    while (bpe->joints[at] && bpe->joints[at] != joint) at = (at + 1) & (bpe->slots - 1);
    return &bpe->joints[at];
}

/* The unit at text[0] and its bytes: a character's as they are, and 1 and a byte, so that none is 0. */
static uint32_t unit_at(const struct ls_bpe *bpe, const char *text, size_t count, size_t *length) {
    bool short_of;
    uint32_t unit = 0;
    *length = bpe->unit == LS_BPE_CHARACTERS ? ls_utf8_character(text, count, &short_of) : 0;
    for (size_t i = 0; i < *length; i++) unit = unit << 8 | (unsigned char)text[i];
    if (*length > 1 || (*length == 1 && unit > 0)) return unit;
    *length = 1;
    return 0x100u | (unsigned char)text[0];
}

static uint32_t last_unit(const struct ls_bpe *bpe, const char *text, size_t count) {
    uint32_t unit = 0;
    for (size_t at = 0, length; at < count; at += length) unit = unit_at(bpe, text + at, count - at, &length);
    return unit;
}

void ls_bpe_add(struct ls_bpe *bpe, int32_t left, int32_t right, int32_t joined) {
    const int32_t rank = bpe->merge_count++;
    const struct ls_token *first = ls_vocabulary_token(bpe->vocabulary, left),
                          *second = ls_vocabulary_token(bpe->vocabulary, right);
    size_t length;
    assert((size_t)rank < bpe->slots / 2 && first->count > 0 && second->count > 0);
    struct merge *merge = find_merge(bpe, left, right);
    if (merge->id >= 0) return;
    *merge = (struct merge){(uint64_t)(uint32_t)left << 32 | (uint32_t)right, rank, joined};
    const uint32_t last = last_unit(bpe, first->bytes, first->count),
                   next = unit_at(bpe, second->bytes, second->count, &length);
    *find_joint(bpe, last, next) = (uint64_t)last << 32 | next;
}

size_t ls_bpe_run(const struct ls_bpe *bpe, const char *text, size_t count) {
    size_t length, at;
    uint32_t last = unit_at(bpe, text, count, &at);
    for (; at < count; at += length) {
        const uint32_t next = unit_at(bpe, text + at, count - at, &length);
        const bool within = ((unsigned char)text[at] & 0xc0) == 0x80; /* a character of UTF-8, which stays whole */
        if (!within && !*find_joint(bpe, last, next)) return at;
        last = next;
    }
    return at;
}

/* ---- a piece ---- */

/* Lower ranks first, of equal ones the one further left. */
static bool is_before(const struct candidate *a, const struct candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->left < b->left;
}

static void push(struct ls_bpe *bpe, int32_t left) {
    const struct symbol *symbols = bpe->symbols;
    if (left < 0 || symbols[left].next < 0) return;
    const int32_t left_id = symbols[left].id, right_id = symbols[symbols[left].next].id;
    const struct merge *merge = find_merge(bpe, left_id, right_id);
    if (merge->id < 0) return;
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
    if (!heap) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "tokenizer: no memory for a piece of %zu bytes", count);
    bpe->heap = heap;
    bpe->symbol_capacity = capacity;
    return LS_OK;
}

/* The piece's first symbols: how many. */
static int32_t begin(struct ls_bpe *bpe, const char *bytes, size_t count) {
    struct symbol *symbols = bpe->symbols;
    int32_t made = 0;
    for (size_t at = 0, length = 0; at < count; at += length) {
        bool short_of;
        length = bpe->unit == LS_BPE_CHARACTERS ? ls_utf8_character(bytes + at, count - at, &short_of) : 0;
        const int32_t whole = length > 0 ? ls_vocabulary_find(bpe->vocabulary, bytes + at, length) : -1;
        if (whole >= 0) {
            symbols[made++].id = whole;
            continue;
        }
        if (length == 0) length = 1;
        for (size_t i = 0; i < length; i++) symbols[made++].id = bpe->byte_ids[(unsigned char)bytes[at + i]];
    }
    for (int32_t i = 0; i < made; i++) {
        symbols[i].previous = i - 1;
        symbols[i].next = i + 1 < made ? i + 1 : -1;
    }
    return made;
}

static enum ls_code join(struct ls_bpe *bpe, const char *bytes, size_t count, struct ls_token_ids *ids,
                         struct ls_error *error) {
    enum ls_code code = make_room(bpe, count, error);
    if (code) return code;
    struct symbol *symbols = bpe->symbols;
    const int32_t made = begin(bpe, bytes, count);
    bpe->heap_count = 0;
    for (int32_t i = 0; i < made; i++) push(bpe, i);
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
    for (int32_t i = 0; i >= 0 && !code; i = symbols[i].next) code = ls_token_ids_add(ids, &symbols[i].id, 1, error);
    return code;
}

enum ls_code ls_bpe_encode(struct ls_bpe *bpe, const char *piece, size_t count, struct ls_token_ids *ids,
                           struct ls_error *error) {
    const size_t before = ids->count;
    struct cached *cached = count <= CACHE_BYTES ? &bpe->cache[XXH3_64bits(piece, count) & (CACHE_SLOTS - 1)] : NULL;
    if (cached && cached->bytes_count == count && memcmp(cached->bytes, piece, count) == 0)
        return ls_token_ids_add(ids, cached->ids, cached->ids_count, error);
    const int32_t whole = bpe->whole_words ? ls_vocabulary_find(bpe->vocabulary, piece, count) : -1;
    const bool is_whole = whole >= 0 && !ls_vocabulary_token(bpe->vocabulary, whole)->added;
    const enum ls_code code = is_whole ? ls_token_ids_add(ids, &whole, 1, error) : join(bpe, piece, count, ids, error);
    if (code || !cached || ids->count - before > CACHE_IDS) return code;
    cached->bytes_count = (uint8_t)count;
    cached->ids_count = (uint8_t)(ids->count - before);
    memcpy(cached->bytes, piece, count);
    memcpy(cached->ids, ids->ids + before, cached->ids_count * sizeof *ids->ids);
    return LS_OK;
}
