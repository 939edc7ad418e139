/* Reading documents: jansson parses lines, PCRE2 finds where documents start. */
#define _GNU_SOURCE
#define PCRE2_CODE_UNIT_WIDTH 8
#include "coordinator/text_input.h"

#include "common/token_shard.h"
#include "coordinator/packed_file.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK_BYTES = 1 << 18, LINE_BYTES_MAX = 1 << 30 };

struct ls_text_splitter {
    pcre2_code *code;
    pcre2_match_data *match;
};

/* A file being read, and whom its documents go to. */
struct reading {
    const char *path;
    struct ls_packed_file *file;
    const char *member; /* of a line of JSONL */
    ls_text_visit visit;
    void *context;
};

/* Bytes that grow. */
struct buffer {
    char *bytes;
    size_t count, capacity;
};

enum ls_code ls_text_splitter_create(const char *pattern, struct ls_text_splitter **splitter, struct ls_error *error) {
    int cause;
    PCRE2_SIZE offset;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_MULTILINE | PCRE2_NEVER_UTF,
                                     &cause, &offset, NULL);
    if (!code) {
        PCRE2_UCHAR text[200];
        pcre2_get_error_message(cause, text, sizeof text);
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                       "--split-on '%s' is not a regular expression: %s at character %zu. Correct the pattern.",
                       pattern, (const char *)text, offset);
    }
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* where there is no JIT, the interpreter does it */
    struct ls_text_splitter *made = malloc(sizeof *made);
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(code, NULL);
    if (!made || !match) {
        free(made);
        pcre2_match_data_free(match);
        pcre2_code_free(code);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for the pattern of --split-on");
    }
    *made = (struct ls_text_splitter){code, match};
    *splitter = made;
    return LS_OK;
}

void ls_text_splitter_destroy(struct ls_text_splitter *splitter) {
    if (!splitter) return;
    pcre2_match_data_free(splitter->match);
    pcre2_code_free(splitter->code);
    free(splitter);
}

/* Makes room for one more block. */
static enum ls_code reserve(struct buffer *buffer, const char *path, struct ls_error *error) {
    if (buffer->capacity - buffer->count >= BLOCK_BYTES) return LS_OK;
    size_t capacity = buffer->capacity * 2 + BLOCK_BYTES;
    char *bytes = realloc(buffer->bytes, capacity);
    if (!bytes)
        return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL,
                       "no memory for the text of %s, of which %zu bytes are read. Cut it into several files.", path,
                       buffer->count);
    buffer->bytes = bytes;
    buffer->capacity = capacity;
    return LS_OK;
}

static enum ls_code read_as_one(const struct reading *reading, struct ls_error *error) {
    char block[BLOCK_BYTES];
    for (bool first = true;; first = false) {
        size_t count = 0;
        enum ls_code code = ls_packed_file_read(reading->file, block, sizeof block, &count, error);
        if (!code && count) code = reading->visit(reading->context, block, count, first, error);
        if (code || !count) return code;
    }
}

/* Visits a text whose documents start at the splitter's matches. What stands before the first match is a document too.
 */
static enum ls_code visit_split(const struct reading *reading, const struct ls_text_splitter *splitter,
                                const char *bytes, size_t count, struct ls_error *error) {
    size_t start = 0, search = 0;
    while (start < count) {
        const int found = search <= count
                              ? pcre2_match(splitter->code, (PCRE2_SPTR)bytes, count, search, 0, splitter->match, NULL)
                              : PCRE2_ERROR_NOMATCH;
        if (found < 0 && found != PCRE2_ERROR_NOMATCH) {
            PCRE2_UCHAR text[200];
            pcre2_get_error_message(found, text, sizeof text);
            return ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                           "data: the pattern of --split-on fails in %s after byte %zu: %s. Use a simpler pattern.",
                           reading->path, search, (const char *)text);
        }
        const PCRE2_SIZE *match = pcre2_get_ovector_pointer(splitter->match);
        const size_t next = found < 0 ? count : match[0];
        if (next > start) {
            enum ls_code code = reading->visit(reading->context, bytes + start, next - start, true, error);
            if (code) return code;
            start = next;
        }
        if (found < 0) return LS_OK;
        search = match[1] > match[0] ? match[1] : match[0] + 1; /* an empty match must not be found again */
    }
    return LS_OK;
}

static enum ls_code read_and_split(const struct reading *reading, const struct ls_text_splitter *splitter,
                                   struct ls_error *error) {
    struct buffer text = {0};
    enum ls_code code = LS_OK;
    for (size_t count = 1; count > 0; text.count += count) {
        code = reserve(&text, reading->path, error);
        if (!code) code = ls_packed_file_read(reading->file, text.bytes + text.count, BLOCK_BYTES, &count, error);
        if (code) break;
    }
    if (!code) code = visit_split(reading, splitter, text.bytes, text.count, error);
    free(text.bytes);
    return code;
}

static bool is_blank(const char *bytes, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!strchr(" \t\r", bytes[i]) || !bytes[i]) return false;
    return true;
}

enum { BOM_BYTES = 3 };

static bool begins_with_bom(const char *bytes, size_t count) {
    return count >= BOM_BYTES && memcmp(bytes, "\xef\xbb\xbf", BOM_BYTES) == 0;
}

static enum ls_code visit_line(const struct reading *reading, const char *line, size_t count, int64_t number,
                               struct ls_error *error) {
    if (number == 1 && begins_with_bom(line, count)) {
        line += BOM_BYTES;
        count -= BOM_BYTES;
    }
    if (is_blank(line, count)) return LS_OK;
    json_error_t where;
    /* Other members may hold any number: 64-bit hashes without a sign are no integers of jansson's. */
    json_t *object = json_loadb(line, count, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &where);
    const json_t *text = json_object_get(object, reading->member);
    enum ls_code code = LS_OK;
    if (!object)
        code = ls_fail(
            error, LS_DATA, LS_SCOPE_CALL,
            "data: %s, line %lld: %s at column %d. Every line has to be one JSON object; a text that only looks "
            "like JSON takes --format plain.",
            reading->path, (long long)number, where.text, where.column);
    else if (!json_is_string(text))
        code = ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                       "data: %s, line %lld: no member \"%s\" that is a string. Every line has to have one; --json-key "
                       "names another.",
                       reading->path, (long long)number, reading->member);
    else if (json_string_length(text) > 0)
        code = reading->visit(reading->context, json_string_value(text), json_string_length(text), true, error);
    json_decref(object);
    return code;
}

/* Visits the complete lines in the buffer and keeps the rest at its front. */
static enum ls_code visit_lines(const struct reading *reading, struct buffer *text, size_t searched, int64_t *number,
                                struct ls_error *error) {
    size_t start = 0;
    for (const char *end; (end = memchr(text->bytes + searched, '\n', text->count - searched));) {
        const size_t length = (size_t)(end - text->bytes) - start;
        enum ls_code code = visit_line(reading, text->bytes + start, length, ++*number, error);
        if (code) return code;
        searched = start += length + 1;
    }
    memmove(text->bytes, text->bytes + start, text->count - start);
    text->count -= start;
    if (text->count > LINE_BYTES_MAX)
        return ls_fail(error, LS_DATA, LS_SCOPE_CALL, "data: %s, line %lld is longer than %d bytes. Is it JSONL?",
                       reading->path, (long long)*number + 1, LINE_BYTES_MAX);
    return LS_OK;
}

static enum ls_code read_json_lines(const struct reading *reading, struct ls_error *error) {
    struct buffer text = {0};
    int64_t number = 0;
    enum ls_code code;
    for (;;) {
        size_t count = 0;
        const size_t searched = text.count;
        code = reserve(&text, reading->path, error);
        if (!code) code = ls_packed_file_read(reading->file, text.bytes + text.count, BLOCK_BYTES, &count, error);
        if (code || !count) break;
        text.count += count;
        code = visit_lines(reading, &text, searched, &number, error);
        if (code) break;
    }
    if (!code) code = visit_line(reading, text.bytes, text.count, number + 1, error);
    free(text.bytes);
    return code;
}

static bool ends_with(const char *text, const char *end) {
    const size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

static bool is_named_jsonl(const char *path) {
    static const char *const ends[] = {".jsonl", ".ndjson", ".json"}, *const packings[] = {"", ".gz", ".zst"};
    char end[16];
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        for (size_t j = 0; j < sizeof packings / sizeof *packings; j++) {
            snprintf(end, sizeof end, "%s%s", ends[i], packings[j]);
            if (ends_with(path, end)) return true;
        }
    return false;
}

/* Files that are no text, by their first bytes, and the program that unpacks them. */
static const struct {
    const char *bytes;
    size_t count;
    const char *kind, *remedy;
} not_texts[] = {
    {"\xfd\x37\x7a\x58\x5a", 6, "packed by xz", "Unpack it ('xz -d')"}, /* with the NUL behind it */
    {"\x42\x5a\x68", 3, "packed by bzip2", "Unpack it ('bzip2 -d')"},
    {"\x04\x22\x4d\x18", 4, "packed by lz4", "Unpack it ('lz4 -d')"},
    {"\x50\x4b\x03\x04", 4, "a zip archive", "Unpack it ('unzip')"},
    {"\x37\x7a\xbc\xaf\x27\x1c", 6, "a 7z archive", "Unpack it ('7z x')"},
    {"\x50\x41\x52\x31\x15", 5, "a Parquet file", "Write its texts as JSONL"},      /* a text may begin with PAR1 */
    {"\x41\x52\x52\x4f\x57\x31\0", 8, "an Arrow file", "Write its texts as JSONL"}, /* and the NUL behind it */
};

/* "BZh1" to "BZh9" and the digits of pi that begin a block: a text may begin with the letters. */
static bool is_bzip2(const unsigned char *bytes, size_t count) {
    return count >= 10 && bytes[3] >= '1' && bytes[3] <= '9' && memcmp(bytes + 4, "\x31\x41\x59\x26\x53\x59", 6) == 0;
}

/* The kind of a file that begins with these bytes and is no text, NULL for any other. */
static const char *kind_of_other(const unsigned char *bytes, size_t count, const char **remedy) {
    for (size_t i = 0; i < sizeof not_texts / sizeof *not_texts; i++) {
        if (count < not_texts[i].count || memcmp(bytes, not_texts[i].bytes, not_texts[i].count) != 0) continue;
        if (bytes[0] == 'B' && !is_bzip2(bytes, count)) continue;
        *remedy = not_texts[i].remedy;
        return not_texts[i].kind;
    }
    return NULL;
}

/* Opens a regular file that is not one of tokens, nor packed by what is not understood here. Returns its descriptor or
 * -1. */
static int open_text(const char *path, struct ls_error *error) {
    int file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    struct stat status;
    const bool known = file >= 0 && fstat(file, &status) == 0;
    if (known && S_ISDIR(status.st_mode)) {
        ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                "data: %s is a folder, not a regular file. Name the files in it, such as %s/*.txt.", path, path);
    } else if (!known) {
        ls_fail(error, LS_DATA, LS_SCOPE_CALL, "data: cannot open %s: %s. Correct the path.", path, strerror(errno));
    } else if (!S_ISREG(status.st_mode)) {
        ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                "data: %s is not a regular file. Name files of text; they are read twice.", path);
    } else {
        unsigned char bytes[16];
        int32_t magic = 0;
        const char *remedy = "";
        const ssize_t count = pread(file, bytes, sizeof bytes, 0);
        if (count >= (ssize_t)sizeof magic) memcpy(&magic, bytes, sizeof magic);
        const bool tokens = magic == LS_SHARD_MAGIC_UINT16 || magic == LS_SHARD_MAGIC_UINT32;
        const char *kind = count > 0 ? kind_of_other(bytes, (size_t)count, &remedy) : NULL;
        if (!tokens && !kind) return file;
        if (kind)
            ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                    "data: %s is %s, no text. %s first; gzip and zstd are the packings that are read here.", path, kind,
                    remedy);
        else
            ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                    "data: %s holds tokens already. Name it in data.train as it is; 'lockstep data inspect' shows what "
                    "is in it.",
                    path);
    }
    if (file >= 0) close(file);
    return -1;
}

enum ls_code ls_text_read(const char *path, enum ls_text_format format, const char *member,
                          const struct ls_text_splitter *splitter, ls_text_visit visit, void *context,
                          struct ls_error *error) {
    if (format == LS_TEXT_BY_NAME) format = is_named_jsonl(path) ? LS_TEXT_JSONL : LS_TEXT_PLAIN;
    if (format == LS_TEXT_JSONL && splitter)
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_CALL,
            "--split-on is for plain text, and the documents of %s are its lines. Leave it out, or say --format plain.",
            path);
    int file = open_text(path, error);
    if (file < 0) return LS_DATA;
    struct reading reading = {.path = path, .member = member ? member : "text", .visit = visit, .context = context};
    enum ls_code code = ls_packed_file_open(file, path, &reading.file, error);
    if (code) return code;
    code = format == LS_TEXT_JSONL ? read_json_lines(&reading, error)
           : splitter              ? read_and_split(&reading, splitter, error)
                                   : read_as_one(&reading, error);
    ls_packed_file_close(reading.file);
    return code;
}
