/* zlib reads what is packed by gzip or not at all, zstd's library the rest. */
#include "coordinator/packed_file.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

enum { BLOCK_BYTES = 1 << 18 };

struct ls_packed_file {
    const char *path;
    gzFile gzip; /* NULL: zstd */
    /* zstd */
    int file;
    ZSTD_DStream *stream;
    ZSTD_inBuffer input;
    bool inside; /* a frame that has not ended */
    char block[BLOCK_BYTES];
};

static bool is_zstd(int file) {
    static const unsigned char magic[4] = {0x28, 0xb5, 0x2f, 0xfd};
    unsigned char bytes[4];
    return pread(file, bytes, sizeof bytes, 0) == (ssize_t)sizeof bytes && memcmp(bytes, magic, sizeof magic) == 0;
}

enum ls_code ls_packed_file_open(int file, const char *path, struct ls_packed_file **packed, struct ls_error *error) {
    struct ls_packed_file *made = calloc(1, sizeof *made);
    const bool zstd = is_zstd(file);
    if (made) {
        made->path = path;
        made->file = -1;
        made->input.src = made->block;
        if (zstd)
            made->stream = ZSTD_createDStream();
        else
            made->gzip = gzdopen(file, "rb");
    }
    if (!made || (!made->stream && !made->gzip)) {
        free(made);
        close(file);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory to read %s", path);
    }
    if (zstd)
        made->file = file;
    else
        gzbuffer(made->gzip, BLOCK_BYTES);
    *packed = made;
    return LS_OK;
}

void ls_packed_file_close(struct ls_packed_file *packed) {
    if (!packed) return;
    if (packed->gzip) gzclose(packed->gzip);
    ZSTD_freeDStream(packed->stream);
    if (packed->file >= 0) close(packed->file);
    free(packed);
}

static enum ls_code refuse_unread(const char *path, const char *why, struct ls_error *error) {
    return ls_fail(error, LS_DATA, LS_SCOPE_CALL, "data: cannot read %s: %s. Copy it again.", path, why);
}

static enum ls_code refuse_truncated(const char *path, const char *packing, struct ls_error *error) {
    return ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                   "data: %s ends in the middle of its %s stream (truncated copy?). Copy it again.", path, packing);
}

static enum ls_code read_gzip(struct ls_packed_file *packed, void *bytes, size_t capacity, size_t *count,
                              struct ls_error *error) {
    int got = gzread(packed->gzip, bytes, (unsigned)(capacity < BLOCK_BYTES ? capacity : BLOCK_BYTES));
    int cause = Z_OK;
    const char *text = gzerror(packed->gzip, &cause);
    if (got > 0 || (got == 0 && cause == Z_OK)) {
        *count = (size_t)got;
        return LS_OK;
    }
    if (cause == Z_BUF_ERROR) return refuse_truncated(packed->path, "gzip", error);
    return refuse_unread(packed->path, cause == Z_ERRNO ? strerror(errno) : text, error);
}

/* The next block of packed bytes; none at the end of the file. */
static enum ls_code fill(struct ls_packed_file *packed, struct ls_error *error) {
    ssize_t got;
    do got = read(packed->file, packed->block, sizeof packed->block);
    while (got < 0 && errno == EINTR);
    if (got < 0) return refuse_unread(packed->path, strerror(errno), error);
    packed->input.size = (size_t)got;
    packed->input.pos = 0;
    return LS_OK;
}

static enum ls_code refuse_frame(const struct ls_packed_file *packed, size_t result, struct ls_error *error) {
    if (ZSTD_getErrorCode(result) == ZSTD_error_frameParameter_windowTooLarge)
        return ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                       "data: %s was packed by zstd with a window of more than 128 MiB (--long). Unpack it ('zstd -d "
                       "--long=31') first.",
                       packed->path);
    return refuse_unread(packed->path, ZSTD_getErrorName(result), error);
}

static enum ls_code read_zstd(struct ls_packed_file *packed, void *bytes, size_t capacity, size_t *count,
                              struct ls_error *error) {
    ZSTD_outBuffer output = {.dst = bytes, .size = capacity};
    while (output.pos == 0) {
        if (packed->input.pos == packed->input.size) {
            enum ls_code code = fill(packed, error);
            if (code) return code;
            if (packed->input.size == 0 && packed->inside) {
                /* What the library still holds comes without more input. */
                const size_t left = ZSTD_decompressStream(packed->stream, &output, &packed->input);
                if (ZSTD_isError(left)) return refuse_frame(packed, left, error);
                if (output.pos == 0) return refuse_truncated(packed->path, "zstd", error);
                packed->inside = left > 0;
                break;
            }
            if (packed->input.size == 0) break;
        }
        const size_t left = ZSTD_decompressStream(packed->stream, &output, &packed->input);
        if (ZSTD_isError(left)) return refuse_frame(packed, left, error);
        packed->inside = left > 0;
    }
    *count = output.pos;
    return LS_OK;
}

enum ls_code ls_packed_file_read(struct ls_packed_file *packed, void *bytes, size_t capacity, size_t *count,
                                 struct ls_error *error) {
    return packed->gzip ? read_gzip(packed, bytes, capacity, count, error)
                        : read_zstd(packed, bytes, capacity, count, error);
}
