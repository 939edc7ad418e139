/* A model's tokenizer as a Hugging Face tokenizer.json describes it, text to token ids and back: byte-pair encoding
 * over bytes (GPT-2, Llama 3, Qwen) or over characters with bytes as a fallback (Llama 2, Mistral). What it asks for
 * beyond what is known here is refused by name, since ids that differ from the model's would train another one. */
#ifndef LS_COMMON_TOKENIZER_H
#define LS_COMMON_TOKENIZER_H

#include "common/status.h"
#include "common/vocabulary.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LS_TOKENIZER_JSON_BYTES_MAX = 256 << 20, LS_TOKENIZER_VOCABULARY_MAX = 1 << 22 };

struct ls_tokenizer;

/* Parses tokenizer.json; `name` is for messages. LS_DATA: bad JSON, or a tokenizer this is not, saying what is missing.
 * LS_MEMORY. */
enum ls_code ls_tokenizer_parse(const char *json, size_t count, const char *name, struct ls_tokenizer **tokenizer,
                                struct ls_error *error);
/* Takes NULL. */
void ls_tokenizer_destroy(struct ls_tokenizer *tokenizer);

/* The largest id and 1. */
int64_t ls_tokenizer_vocabulary(const struct ls_tokenizer *tokenizer);
/* The id of the token that is `text`, -1: there is none. */
int32_t ls_tokenizer_find(const struct ls_tokenizer *tokenizer, const char *text);
/* What a token says, owned by the tokenizer; NULL: there is no such id. *begins: a text begins with the token, so that
 * a space that the tokenizer put in front is left out, then, with the next one. *special: a token that was added to the
 * vocabulary for what is no text, the end of a document among it. */
const char *ls_tokenizer_said(const struct ls_tokenizer *tokenizer, int64_t id, bool *begins, size_t *count,
                              bool *special);
/* The tokens that the tokenizer puts in front of a text (its post-processor): *count of them. */
const int32_t *ls_tokenizer_prefix(const struct ls_tokenizer *tokenizer, size_t *count);

/* Makes a tokenizer_config.json: transformers takes the tokenizer.json beside it as it is, whatever the model, and
 * `document` as the token that begins and ends a text. *json is the caller's to free.
 * LS_MEMORY. */
enum ls_code ls_tokenizer_config_write(const char *document, char **json, struct ls_error *error);

#endif
