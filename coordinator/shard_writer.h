/* The shard writer: text in, a dataset folder out: token shards, dataset.json, and the tokenizer.json they were made
 * with, unless tokens are bytes. */
#ifndef LS_COORDINATOR_SHARD_WRITER_H
#define LS_COORDINATOR_SHARD_WRITER_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ls_tokenizer;
struct ls_shard_writer;

/* What makes tokens of text; borrowed until the writer is destroyed. */
struct ls_shard_tokenizer {
    struct ls_tokenizer *encoder; /* NULL: tokens are bytes, and the others are not read */
    int32_t document_token;       /* begins each document */
    char *json;                   /* the text of its tokenizer.json */
    char *config;                 /* and of the tokenizer_config.json beside it */
    size_t json_bytes, config_bytes;
};

struct ls_shard_writer_totals {
    int64_t documents, tokens, text_bytes;
    size_t shards;
};

/* Makes the folder `folder` (its parent exists) for shards "PREFIX-000.bin" and so on, of `shard_tokens` tokens but for
 * the last (1 to LS_SHARD_TOKENS_MAX). Errors: LS_DATA, LS_MEMORY. */
enum ls_code ls_shard_writer_create(const char *folder, const char *prefix, int64_t shard_tokens,
                                    const struct ls_shard_tokenizer *tokenizer, struct ls_shard_writer **writer,
                                    struct ls_error *error);

/* Appends bytes of text; `starts_document` puts the document token in front. Errors are LS_DATA (a full disk, with what
 * was written). */
enum ls_code ls_shard_writer_add(struct ls_shard_writer *writer, const char *bytes, size_t count, bool starts_document,
                                 struct ls_error *error);

/* Completes the last shard and writes dataset.json; all of it has reached the disk on return. */
enum ls_code ls_shard_writer_finish(struct ls_shard_writer *writer, struct ls_error *error);

/* What was added so far; its tokens are known once it is finished. */
struct ls_shard_writer_totals ls_shard_writer_totals(const struct ls_shard_writer *writer);

/* Closes what is open and frees; the files stay. Takes NULL. */
void ls_shard_writer_destroy(struct ls_shard_writer *writer);

#endif
