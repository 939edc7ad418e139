/* The byte tokenizer: token i < 256 is byte i, token 256 separates documents; and its tokenizer.json. */
#ifndef LS_COMMON_BYTE_TOKENIZER_H
#define LS_COMMON_BYTE_TOKENIZER_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>

#define LS_BYTE_TEXT_DOCUMENT "<|endoftext|>"
enum { LS_BYTE_TOKEN_DOCUMENT = 256, LS_BYTE_VOCABULARY = 257 };

/* Makes a tokenizer.json that the Hugging Face tokenizers library reads as exactly this mapping: its byte-level
 * alphabet (each byte as a printable character) as a BPE vocabulary without merges, and "<|endoftext|>" as token 256.
 * *json is malloc'ed, NUL-terminated; the caller frees. Errors: LS_MEMORY. */
enum ls_code ls_byte_tokenizer_write(char **json, struct ls_error *error);

/* True when tokenizer.json describes the byte tokenizer, whoever wrote it: the same vocabulary, no merges, no
 * normalizer. */
bool ls_byte_tokenizer_matches(const char *json, size_t count);

#endif
