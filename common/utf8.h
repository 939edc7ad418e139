/* UTF-8 (RFC 3629): where its characters begin and end. */
#ifndef LS_COMMON_UTF8_H
#define LS_COMMON_UTF8_H

#include <stdbool.h>
#include <stddef.h>

enum { LS_UTF8_BYTES_MAX = 4 }; /* of a character */

/* Bytes of the character at text[0], count > 0; 0: that is none. *short_of: the text ends within what may be one. */
size_t ls_utf8_character(const char *text, size_t count, bool *short_of);

/* The same of a character that a terminal shows: control characters, U+0080 to U+009F among them, are none. */
size_t ls_utf8_shown(const char *text, size_t count);

/* Bytes from text[0] on, count > 0, that are UTF-8 throughout, or, *valid false, that are not at all. */
size_t ls_utf8_run(const char *text, size_t count, bool *valid);

/* Bytes of text without a last character of which there is only a beginning. */
size_t ls_utf8_whole(const char *text, size_t count);

#endif
