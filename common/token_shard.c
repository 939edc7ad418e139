/* Headers and tokens of one data shard. */
#define _GNU_SOURCE
#define XXH_STATIC_LINKING_ONLY /* for the layout of the streaming state */
#include "common/token_shard.h"
#include "common/files.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "token files are little-endian and read as they are");

/* Other files llm.c writes, to say what was met instead of tokens. */
static const char *foreign_kind(int32_t magic) {
    switch (magic) {
    case 20240522: return "an llm.c evaluation file";
    case 20240326:
    case 20240803: return "llm.c model weights";
    case 20240327: return "an llm.c debug state";
    case 20240328: return "an llm.c tokenizer";
    case 20240527: return "an llm.c optimizer state";
    }
    return NULL;
}

enum ls_code ls_token_shard_inspect(int file, const char *name, bool headerless, struct ls_token_shard *shard,
                                    struct ls_error *error) {
    struct stat status;
    if (fstat(file, &status) || !S_ISREG(status.st_mode))
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "data: %s is not a regular file", name);
    struct ls_token_shard found = {
        .file = file,
        .bytes = status.st_size,
        .mtime_nanoseconds = (int64_t)status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec,
    };
    int32_t header[3] = {0};
    if (found.bytes >= (int64_t)sizeof header && ls_pread_all(file, header, sizeof header, 0))
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "data: cannot read the header of %s: %s", name, strerror(errno));
    const int32_t magic = header[0], version = header[1];
    if (magic != LS_SHARD_MAGIC_UINT16 && magic != LS_SHARD_MAGIC_UINT32) {
        const char *kind = foreign_kind(magic);
        if (kind)
            return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "data: %s is %s (magic %d), not tokens. Leave it out.", name,
                           kind, magic);
        if (!headerless)
            return ls_fail(
                error, LS_DATA, LS_SCOPE_JOB,
                "data: %s (%lld bytes) does not begin with the header of a token file (found %d, expected %d or %d). "
                "If it holds plain uint16 tokens, say 'dtype: uint16'; text goes through 'lockstep data prepare'.",
                name, (long long)found.bytes, magic, LS_SHARD_MAGIC_UINT16, LS_SHARD_MAGIC_UINT32);
        if (found.bytes % 2)
            return ls_fail(
                error, LS_DATA, LS_SCOPE_JOB,
                "data: %s has %lld bytes, an odd number, so it is not uint16 tokens (truncated copy?). Copy it again.",
                name, (long long)found.bytes);
        found.token_bytes = 2;
        found.tokens = found.bytes / 2;
        *shard = found;
        return LS_OK;
    }
    const int32_t version_expected = magic == LS_SHARD_MAGIC_UINT16 ? 1 : 7;
    if (version != version_expected)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                       "data: %s has version %d of the token format, %d is the one known for magic %d. Write it again "
                       "with this version.",
                       name, version, version_expected, magic);
    if (found.bytes < LS_SHARD_HEADER_BYTES)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                       "data: %s has %lld bytes, its header alone has %d (truncated copy?). Copy it again.", name,
                       (long long)found.bytes, LS_SHARD_HEADER_BYTES);
    found.magic = magic;
    found.token_bytes = magic == LS_SHARD_MAGIC_UINT16 ? 2 : 4;
    found.data_offset = LS_SHARD_HEADER_BYTES;
    found.tokens = header[2];
    if (found.tokens < 0)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                       "data: the header of %s says %lld tokens; the count overflowed or the file is damaged. Split it "
                       "into files of at most %d tokens.",
                       name, (long long)found.tokens, LS_SHARD_TOKENS_MAX);
    const int64_t body = found.bytes - LS_SHARD_HEADER_BYTES;
    if (body != found.tokens * found.token_bytes)
        return ls_fail(
            error, LS_DATA, LS_SCOPE_JOB,
            "data: %s holds %lld bytes of tokens (%lld tokens of %d bytes), its header says %lld tokens (%s). "
            "Copy it again, or run 'lockstep data verify'.",
            name, (long long)body, (long long)(body / found.token_bytes), found.token_bytes, (long long)found.tokens,
            body < found.tokens * found.token_bytes ? "truncated copy?" : "bytes too many");
    *shard = found;
    return LS_OK;
}

enum ls_code ls_token_shard_read(const struct ls_token_shard *shard, const char *name, int64_t first, int64_t count,
                                 int32_t *tokens, struct ls_error *error) {
    assert(first >= 0 && count >= 1 && first + count <= shard->tokens);
    /* uint16 tokens are read into the upper half of the result and widened from its lower end, each before it is
     * overwritten. */
    const size_t bytes = (size_t)count * (size_t)shard->token_bytes;
    unsigned char *raw = (unsigned char *)tokens + (size_t)count * sizeof *tokens - bytes;
    if (ls_pread_all(shard->file, raw, bytes, shard->data_offset + first * shard->token_bytes)) {
        if (errno == ENODATA)
            return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                           "data: %s became shorter while in use: no token %lld to %lld, it had %lld when it was "
                           "opened. Restore the file.",
                           name, (long long)first, (long long)(first + count - 1), (long long)shard->tokens);
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "data: cannot read tokens %lld to %lld of %s: %s. Check the disk.",
                       (long long)first, (long long)(first + count - 1), name, strerror(errno));
    }
    if (shard->token_bytes == 2) {
        for (int64_t i = 0; i < count; i++) {
            uint16_t token;
            memcpy(&token, raw + 2 * i, sizeof token);
            tokens[i] = token;
        }
        return LS_OK;
    }
    for (int64_t i = 0; i < count; i++)
        if (tokens[i] < 0)
            return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                           "data: token %lld of %s is %u, more than any vocabulary has. Run 'lockstep data verify'.",
                           (long long)(first + i), name, (unsigned)tokens[i]);
    return LS_OK;
}

/* The first of `count` raw tokens that is not below `vocab`, or `count`. */
static int64_t find_foreign_token(const unsigned char *raw, int64_t count, int token_bytes, int64_t vocab,
                                  uint32_t *token) {
    for (int64_t i = 0; i < count; i++) {
        *token = 0;
        memcpy(token, raw + i * token_bytes, (size_t)token_bytes);
        if (*token >= vocab) return i;
    }
    return count;
}

enum ls_code ls_token_shard_scan(const struct ls_token_shard *shard, const char *name, int64_t vocab,
                                 struct ls_digest *hash, bool (*progress)(void *context, int64_t bytes), void *context,
                                 struct ls_error *error) {
    enum { PIECE_BYTES = 1 << 20 };
    unsigned char *piece = malloc(PIECE_BYTES);
    if (!piece) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory to read %s", name);
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    XXH3_128bits_reset(&state);
    enum ls_code code = LS_OK;
    for (int64_t offset = 0; offset < shard->bytes && !code;) {
        /* The header is a piece of its own, so that tokens never lie across two pieces. */
        const int64_t end = offset < shard->data_offset ? shard->data_offset : shard->bytes;
        const int64_t bytes = end - offset < PIECE_BYTES ? end - offset : PIECE_BYTES;
        if (ls_pread_all(shard->file, piece, (size_t)bytes, offset)) {
            code = ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                           "data: cannot read %s at byte %lld: %s. Check the disk or copy the file again.", name,
                           (long long)offset, errno == ENODATA ? "it became shorter" : strerror(errno));
            break;
        }
        XXH3_128bits_update(&state, piece, (size_t)bytes);
        const int64_t count = offset < shard->data_offset || vocab == 0 ? 0 : bytes / shard->token_bytes;
        uint32_t token;
        const int64_t foreign = find_foreign_token(piece, count, shard->token_bytes, vocab, &token);
        if (foreign < count)
            code = ls_fail(
                error, LS_DATA, LS_SCOPE_CALL,
                "data: token %lld of %s is %u, its vocabulary has %lld. Copy the file again, or prepare it again.",
                (long long)((offset - shard->data_offset) / shard->token_bytes + foreign), name, token,
                (long long)vocab);
        else if (progress && !progress(context, bytes))
            code = ls_fail(error, LS_STOPPED, LS_SCOPE_CALL, "stopped while reading %s", name);
        offset += bytes;
    }
    free(piece);
    const XXH128_hash_t hashed = XXH3_128bits_digest(&state);
    if (!code) *hash = (struct ls_digest){.low = hashed.low64, .high = hashed.high64};
    return code;
}

void ls_token_shard_header(int64_t tokens, int token_bytes, unsigned char header[LS_SHARD_HEADER_BYTES]) {
    assert(tokens >= 0 && tokens <= LS_SHARD_TOKENS_MAX && (token_bytes == 2 || token_bytes == 4));
    const bool wide = token_bytes == 4;
    const int32_t fields[3] = {wide ? LS_SHARD_MAGIC_UINT32 : LS_SHARD_MAGIC_UINT16, wide ? 7 : 1, (int32_t)tokens};
    memset(header, 0, LS_SHARD_HEADER_BYTES);
    memcpy(header, fields, sizeof fields);
}
