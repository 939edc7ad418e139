/* Text input: the documents of plain and JSONL files, packed or not, piece by piece. */
#ifndef LS_COORDINATOR_TEXT_INPUT_H
#define LS_COORDINATOR_TEXT_INPUT_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>

enum ls_text_format {
    LS_TEXT_BY_NAME, /* JSONL if the name ends in .jsonl, .ndjson or .json, with .gz, .zst or not; else plain */
    LS_TEXT_PLAIN,   /* the file is one document, or several if a splitter is given */
    LS_TEXT_JSONL    /* a JSON object a line, one of whose members is a document; a byte order mark is passed over */
};

/* Where documents start inside a plain text: at every match of a regular expression. */
struct ls_text_splitter;

/* Compiles a PCRE2 pattern. It sees bytes, whatever the encoding, and '^' matches at every line. Errors are LS_USAGE,
 * with the place. */
enum ls_code ls_text_splitter_create(const char *pattern, struct ls_text_splitter **splitter, struct ls_error *error);
void ls_text_splitter_destroy(struct ls_text_splitter *splitter);

/* Gets the bytes of one document after the other, in pieces of at least one byte; `starts_document` on a document's
 * first piece. Documents without text are passed over. Anything but LS_OK ends the reading and is handed on. */
typedef enum ls_code (*ls_text_visit)(void *context, const char *bytes, size_t count, bool starts_document,
                                      struct ls_error *error);

/* Reads the file `path`, packed as packed_file.h has it or not, and visits its documents; `member` of a line of JSONL
 * is the document, NULL: "text". With a splitter (may be NULL) the unpacked text is held in memory as a whole, as is a
 * line of JSONL (at most 1 GiB); else memory is constant. Errors: LS_DATA for a file that cannot be read, is no regular
 * file, is a token file already or packed by something else (by its first bytes), is truncated or bad JSONL (with its
 * line); LS_USAGE for a splitter with JSONL; LS_MEMORY. */
enum ls_code ls_text_read(const char *path, enum ls_text_format format, const char *member,
                          const struct ls_text_splitter *splitter, ls_text_visit visit, void *context,
                          struct ls_error *error);

#endif
