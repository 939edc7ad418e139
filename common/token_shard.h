/* One data shard: a file of token ids with llm.c's header, or a headerless file of uint16.
 *
 *      0       4         8        12              1024
 *      | magic | version | tokens | unused ...    | token 0 | token 1 | ...
 *
 * Magic 20240520, version 1: uint16 tokens. Magic 20240801, version 7: uint32 tokens. All little-endian; `tokens` is an
 * int32, so one such file holds at most 2^31 - 1 of them. A headerless file has no such limit: its size decides. */
#ifndef LS_COMMON_TOKEN_SHARD_H
#define LS_COMMON_TOKEN_SHARD_H

#include "common/digest.h"
#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    LS_SHARD_HEADER_BYTES = 1024,
    LS_SHARD_MAGIC_UINT16 = 20240520,
    LS_SHARD_MAGIC_UINT32 = 20240801,
    LS_SHARD_TOKENS_MAX = INT32_MAX /* in one file with a header */
};

struct ls_token_shard {
    int file;            /* a descriptor, the caller's */
    int magic;           /* 0: headerless */
    int token_bytes;     /* 2 or 4 */
    int64_t data_offset; /* of the first token */
    int64_t tokens;
    int64_t bytes, mtime_nanoseconds; /* of the file when it was looked at */
};

/* Reads the header of the open regular file `file` and checks it against the file's size. A file without a known magic
 * is taken as uint16 tokens if `headerless`, and refused otherwise. `name` is for messages. Errors are LS_DATA. */
enum ls_code ls_token_shard_inspect(int file, const char *name, bool headerless, struct ls_token_shard *shard,
                                    struct ls_error *error);

/* Reads tokens[count] from token `first` on; first + count <= shard->tokens, count >= 1. A file that ends early is
 * LS_DATA, as are ids of 2^31 and above. Safe from several threads. */
enum ls_code ls_token_shard_read(const struct ls_token_shard *shard, const char *name, int64_t first, int64_t count,
                                 int32_t *tokens, struct ls_error *error);

/* Reads the whole file: *hash becomes XXH3-128 of its bytes, and every id is checked against `vocab` (0: not checked).
 * `progress` (may be NULL) is told the bytes of each piece; when it returns false, the scan ends with LS_STOPPED.
 * Errors are LS_DATA, LS_MEMORY. */
enum ls_code ls_token_shard_scan(const struct ls_token_shard *shard, const char *name, int64_t vocab,
                                 struct ls_digest *hash, bool (*progress)(void *context, int64_t bytes), void *context,
                                 struct ls_error *error);

/* Fills the header of a shard of `tokens` tokens of 2 or 4 bytes. */
void ls_token_shard_header(int64_t tokens, int token_bytes, unsigned char header[LS_SHARD_HEADER_BYTES]);

#endif
