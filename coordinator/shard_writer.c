/* Writing tokens into llm.c shards. */
#define _GNU_SOURCE
#include "coordinator/shard_writer.h"

#include "common/byte_tokenizer.h"
#include "common/dataset_json.h"
#include "common/encoding.h"
#include "common/files.h"
#include "common/token_shard.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BUFFER_TOKENS = 1 << 17 };

static const char tokenizer_json[] = "tokenizer.json", tokenizer_config_json[] = "tokenizer_config.json";

struct ls_shard_writer {
    char folder[PATH_MAX], prefix[64];
    int64_t shard_tokens;
    int file;        /* the open shard's, or -1 */
    int64_t written; /* tokens of the open shard that are in the file */
    size_t buffered; /* and those that follow in the buffer */
    int token_bytes; /* 2 or 4 */
    union {
        uint16_t narrow[BUFFER_TOKENS];
        uint32_t wide[BUFFER_TOKENS];
    } buffer;
    struct ls_dataset_json description;
    struct ls_shard_tokenizer tokenizer;
    struct ls_encoding *encoding; /* NULL: tokens are bytes */
    bool text_open;               /* a document's text has begun that may have tokens to come */
    struct ls_token_ids ids;
};

enum ls_code ls_shard_writer_create(const char *folder, const char *prefix, int64_t shard_tokens,
                                    const struct ls_shard_tokenizer *tokenizer, struct ls_shard_writer **writer,
                                    struct ls_error *error) {
    if (mkdir(folder, 0777))
        return ls_fail(error, LS_DATA, LS_SCOPE_CALL, "data: cannot make the folder %s: %s", folder, strerror(errno));
    struct ls_shard_writer *made = calloc(1, sizeof *made);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory to write the dataset %s", folder);
    snprintf(made->folder, sizeof made->folder, "%s", folder);
    snprintf(made->prefix, sizeof made->prefix, "%s", prefix);
    made->shard_tokens = shard_tokens;
    made->file = -1;
    made->tokenizer = *tokenizer;
    made->description.vocab_size =
        tokenizer->encoder ? ls_tokenizer_vocabulary(tokenizer->encoder) : LS_BYTE_VOCABULARY;
    made->description.document_token = tokenizer->encoder ? tokenizer->document_token : LS_BYTE_TOKEN_DOCUMENT;
    made->token_bytes = made->description.vocab_size > UINT16_MAX + 1 ? 4 : 2;
    snprintf(made->description.tokenizer, sizeof made->description.tokenizer, "%s%s", tokenizer->encoder ? "./" : "",
             tokenizer->encoder ? tokenizer_json : "byte");
    enum ls_code code = tokenizer->encoder ? ls_encoding_create(tokenizer->encoder, &made->encoding, error) : LS_OK;
    if (code)
        ls_shard_writer_destroy(made);
    else
        *writer = made;
    return code;
}

/* The last shard of the description: the open one, if one is open. */
static struct ls_dataset_json_shard *last_shard(struct ls_shard_writer *writer) {
    return &writer->description.shards[writer->description.shard_count - 1];
}

static enum ls_code fail_to_write(struct ls_shard_writer *writer, int cause, struct ls_error *error) {
    return ls_fail(error, LS_DATA, LS_SCOPE_CALL, "data: cannot write %s/%s after %lld tokens: %s. %s", writer->folder,
                   last_shard(writer)->name, (long long)writer->written, strerror(cause),
                   cause == ENOSPC || cause == EDQUOT || cause == EFBIG ? "Make room, or write elsewhere."
                                                                        : "Check the disk.");
}

static enum ls_code open_next_shard(struct ls_shard_writer *writer, struct ls_error *error) {
    struct ls_dataset_json *description = &writer->description;
    if (description->shard_count == LS_DATASET_SHARDS_MAX)
        return ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                       "data: the text needs more than %d shards of %lld tokens. Make --shard-tokens larger.",
                       LS_DATASET_SHARDS_MAX, (long long)writer->shard_tokens);
    struct ls_dataset_json_shard *shards =
        reallocarray(description->shards, description->shard_count + 1, sizeof *shards);
    if (!shards) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for the list of shards");
    description->shards = shards;
    struct ls_dataset_json_shard *shard = &shards[description->shard_count];
    *shard = (struct ls_dataset_json_shard){0};
    snprintf(shard->name, sizeof shard->name, "%s-%03zu.bin", writer->prefix, description->shard_count);
    char path[PATH_MAX + sizeof shard->name];
    snprintf(path, sizeof path, "%s/%s", writer->folder, shard->name);
    writer->file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (writer->file < 0)
        return ls_fail(error, LS_DATA, LS_SCOPE_CALL, "data: cannot create %s: %s", path, strerror(errno));
    description->shard_count++;
    writer->written = 0;
    /* The header is written when the count is known; until then the file does not pass for a shard. */
    static const unsigned char blank[LS_SHARD_HEADER_BYTES];
    return ls_write_all(writer->file, blank, sizeof blank) ? fail_to_write(writer, errno, error) : LS_OK;
}

static enum ls_code flush_buffer(struct ls_shard_writer *writer, struct ls_error *error) {
    if (ls_write_all(writer->file, &writer->buffer, writer->buffered * (size_t)writer->token_bytes))
        return fail_to_write(writer, errno, error);
    writer->written += (int64_t)writer->buffered;
    writer->buffered = 0;
    return LS_OK;
}

/* Completes the open shard: header, disk, hash of what is in the file now. */
static enum ls_code close_shard(struct ls_shard_writer *writer, struct ls_error *error) {
    enum ls_code code = flush_buffer(writer, error);
    if (code) return code;
    struct ls_dataset_json_shard *described = last_shard(writer);
    unsigned char header[LS_SHARD_HEADER_BYTES];
    ls_token_shard_header(writer->written, writer->token_bytes, header);
    if (ls_pwrite_all(writer->file, header, sizeof header, 0) || fsync(writer->file))
        return fail_to_write(writer, errno, error);
    struct ls_token_shard shard;
    struct ls_digest hash;
    code = ls_token_shard_inspect(writer->file, described->name, false, &shard, error);
    if (!code)
        code = ls_token_shard_scan(&shard, described->name, writer->description.vocab_size, &hash, NULL, NULL, error);
    if (code) return code;
    ls_digest_format(hash, described->xxh3);
    described->tokens = writer->written;
    writer->description.tokens += writer->written;
    const int failed = close(writer->file);
    writer->file = -1;
    return failed ? fail_to_write(writer, errno, error) : LS_OK;
}

static enum ls_code add_token(struct ls_shard_writer *writer, int32_t token, struct ls_error *error) {
    enum ls_code code = LS_OK;
    if (writer->file >= 0 && writer->written + (int64_t)writer->buffered == writer->shard_tokens)
        code = close_shard(writer, error);
    if (!code && writer->file < 0) code = open_next_shard(writer, error);
    if (!code && writer->buffered == BUFFER_TOKENS) code = flush_buffer(writer, error);
    if (code) return code;
    if (writer->token_bytes == 2)
        writer->buffer.narrow[writer->buffered++] = (uint16_t)token;
    else
        writer->buffer.wide[writer->buffered++] = (uint32_t)token;
    return LS_OK;
}

/* Makes tokens of a document's next bytes; `last`: there are no more. */
static enum ls_code take_text(struct ls_shard_writer *writer, const char *bytes, size_t count, bool last,
                              struct ls_error *error) {
    writer->ids.count = 0;
    writer->text_open = !last;
    enum ls_code code = ls_encoding_add(writer->encoding, bytes, count, last, &writer->ids, error);
    for (size_t i = 0; i < writer->ids.count && !code; i++) code = add_token(writer, writer->ids.ids[i], error);
    return code;
}

static enum ls_code end_text(struct ls_shard_writer *writer, struct ls_error *error) {
    return writer->text_open ? take_text(writer, "", 0, true, error) : LS_OK;
}

enum ls_code ls_shard_writer_add(struct ls_shard_writer *writer, const char *bytes, size_t count, bool starts_document,
                                 struct ls_error *error) {
    enum ls_code code = LS_OK;
    if (starts_document) {
        code = end_text(writer, error);
        if (!code) code = add_token(writer, (int32_t)writer->description.document_token, error);
        if (code) return code;
        writer->description.documents++;
    }
    writer->description.text_bytes += (int64_t)count;
    if (writer->encoding) return take_text(writer, bytes, count, false, error);
    for (size_t i = 0; i < count && !code; i++) code = add_token(writer, (unsigned char)bytes[i], error);
    return code;
}

static enum ls_code write_tokenizer(const struct ls_shard_writer *writer, struct ls_error *error) {
    const struct ls_shard_tokenizer *tokenizer = &writer->tokenizer;
    char path[PATH_MAX + sizeof tokenizer_config_json];
    if (!tokenizer->encoder) return LS_OK;
    snprintf(path, sizeof path, "%s/%s", writer->folder, tokenizer_json);
    enum ls_code code = ls_file_replace(path, tokenizer->json, tokenizer->json_bytes, LS_DATA, error);
    if (code) return code;
    snprintf(path, sizeof path, "%s/%s", writer->folder, tokenizer_config_json);
    return ls_file_replace(path, tokenizer->config, tokenizer->config_bytes, LS_DATA, error);
}

enum ls_code ls_shard_writer_finish(struct ls_shard_writer *writer, struct ls_error *error) {
    enum ls_code code = end_text(writer, error);
    if (!code && writer->file >= 0) code = close_shard(writer, error);
    if (!code) code = write_tokenizer(writer, error);
    if (code) return code;
    char path[PATH_MAX + sizeof LS_DATASET_JSON];
    snprintf(path, sizeof path, "%s/%s", writer->folder, LS_DATASET_JSON);
    char *text = ls_dataset_json_write(&writer->description);
    if (!text) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory to write %s", path);
    code = ls_file_replace(path, text, strlen(text), LS_DATA,
                           error); /* it fsyncs the folder, and with it the shards' names */
    free(text);
    return code;
}

struct ls_shard_writer_totals ls_shard_writer_totals(const struct ls_shard_writer *writer) {
    const bool open = writer->file >= 0;
    return (struct ls_shard_writer_totals){
        .documents = writer->description.documents,
        .tokens = writer->description.tokens + (open ? writer->written + (int64_t)writer->buffered : 0),
        .text_bytes = writer->description.text_bytes,
        .shards = writer->description.shard_count,
    };
}

void ls_shard_writer_destroy(struct ls_shard_writer *writer) {
    if (!writer) return;
    if (writer->file >= 0) close(writer->file);
    ls_dataset_json_free(&writer->description);
    ls_encoding_destroy(writer->encoding);
    free(writer->ids.ids);
    free(writer);
}
