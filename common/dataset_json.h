/* dataset.json: what a folder of data shards holds. */
#ifndef LS_COMMON_DATASET_JSON_H
#define LS_COMMON_DATASET_JSON_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LS_DATASET_JSON_BYTES_MAX = 64 << 20, LS_DATASET_SHARDS_MAX = 65536 };
#define LS_DATASET_JSON "dataset.json"

struct ls_dataset_json_shard {
    char name[256]; /* safe: one component of [A-Za-z0-9._-] */
    int64_t tokens;
    char xxh3[33]; /* XXH3-128 of the whole file, high half first; "": not given */
};

struct ls_dataset_json {
    char tokenizer[256];                  /* "byte", ..., "" when not given */
    int64_t vocab_size;                   /* 1 to 2^31 - 1 */
    int64_t document_token;               /* its id, below vocab_size; -1: none */
    bool document_token_at_end;           /* it ends a document; else it starts one */
    int64_t documents;                    /* 0: not given */
    int64_t tokens;                       /* the sum over the shards */
    int64_t text_bytes;                   /* 0: not given */
    size_t shard_count;                   /* at least 1 */
    struct ls_dataset_json_shard *shards; /* owned: ls_dataset_json_free */
};

/* Parses dataset.json. `name` is for messages. Errors are LS_MEMORY and LS_DATA: bad JSON (with its position), another
 * format or version, a missing or impossible value, a hostile shard name, the same name twice, counts that do not add
 * up. Unknown members are passed over. */
enum ls_code ls_dataset_json_parse(const char *bytes, size_t count, const char *name,
                                   struct ls_dataset_json *description, struct ls_error *error);

/* The text ls_dataset_json_parse reads back: malloc'ed, NUL-terminated, the caller's. NULL: no memory. */
char *ls_dataset_json_write(const struct ls_dataset_json *description);

void ls_dataset_json_free(struct ls_dataset_json *description);

#endif
