/* Any bytes as a token shard and as the dataset.json beside it: they are refused with a data error, or what they say
 * holds. The input is dataset.json if it begins with '{', up to a NUL byte; what follows is the shard, else all of it.
 * covers: common/token_shard.c common/dataset_json.c */
#define _GNU_SOURCE
#include "common/dataset_json.h"
#include "common/files.h"
#include "common/token_shard.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool fact) {
    if (!fact) abort();
}

static void require_data_error(enum ls_code code, const struct ls_error *error) {
    require(code == LS_DATA && error->code == LS_DATA && error->text[0]);
}

static void try_json(const char *bytes, size_t count) {
    struct ls_dataset_json description, again;
    struct ls_error error = {0};
    enum ls_code code = ls_dataset_json_parse(bytes, count, "dataset.json", &description, &error);
    if (code) return require_data_error(code, &error);
    int64_t tokens = 0;
    require(description.shard_count >= 1 && description.document_token < description.vocab_size);
    for (size_t i = 0; i < description.shard_count; i++) {
        require(ls_file_name_is_safe(description.shards[i].name));
        require(description.shards[i].tokens >= 0);
        tokens += description.shards[i].tokens;
    }
    require(tokens == description.tokens);
    char *text = ls_dataset_json_write(&description);
    require(text && ls_dataset_json_parse(text, strlen(text), "again", &again, &error) == LS_OK);
    require(again.tokens == description.tokens && again.shard_count == description.shard_count &&
            again.vocab_size == description.vocab_size && again.document_token == description.document_token &&
            again.document_token_at_end == description.document_token_at_end &&
            again.documents == description.documents && again.text_bytes == description.text_bytes &&
            !strcmp(again.tokenizer, description.tokenizer));
    require(!memcmp(again.shards, description.shards, again.shard_count * sizeof *again.shards));
    free(text);
    ls_dataset_json_free(&again);
    ls_dataset_json_free(&description);
}

static bool stop_at_once(void *context, int64_t bytes) {
    *(int64_t *)context += bytes;
    return false;
}

/* Reads all tokens of an accepted shard, whole and as its file gets shorter. */
static void try_tokens(const struct ls_token_shard *shard) {
    struct ls_error error = {0};
    require(shard->tokens >= 0 && shard->data_offset + shard->tokens * shard->token_bytes == shard->bytes);
    if (shard->tokens == 0) return;
    int32_t *tokens = malloc((size_t)shard->tokens * sizeof *tokens);
    require(tokens);
    enum ls_code code = ls_token_shard_read(shard, "shard", 0, shard->tokens, tokens, &error);
    if (code) require_data_error(code, &error);
    for (int64_t i = 0; i < shard->tokens && !code; i++)
        require(tokens[i] >= 0 && (shard->token_bytes == 4 || tokens[i] < 65536));
    struct ls_digest hash;
    enum ls_code scanned = ls_token_shard_scan(shard, "shard", 50257, &hash, NULL, NULL, &error);
    if (scanned) require_data_error(scanned, &error);
    if (code) require(scanned); /* an id no vocabulary has is not in this one either */
    int64_t seen = 0;
    scanned = ls_token_shard_scan(shard, "shard", 0, &hash, stop_at_once, &seen, &error);
    require(scanned == LS_STOPPED && seen > 0 && seen <= shard->bytes);
    require(ftruncate(shard->file, shard->bytes - 1) == 0);
    require_data_error(ls_token_shard_read(shard, "shard", shard->tokens - 1, 1, tokens, &error), &error);
    require_data_error(ls_token_shard_scan(shard, "shard", 0, &hash, NULL, NULL, &error), &error);
    free(tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *start = data;
    if (size && *data == '{') {
        const uint8_t *nul = memchr(data, 0, size);
        try_json((const char *)data, nul ? (size_t)(nul - data) : size);
        start = nul ? nul + 1 : data + size;
    }
    const size_t count = size - (size_t)(start - data);
    for (int headerless = 0; headerless < 2; headerless++) {
        int file = memfd_create("shard", MFD_CLOEXEC);
        require(file >= 0 && ls_write_all(file, start, count) == 0);
        struct ls_token_shard shard;
        struct ls_error error = {0};
        enum ls_code code = ls_token_shard_inspect(file, "shard", headerless, &shard, &error);
        if (code)
            require_data_error(code, &error);
        else
            try_tokens(&shard);
        close(file);
    }
    unsigned char header[LS_SHARD_HEADER_BYTES];
    ls_token_shard_header((int64_t)count, 2, header); /* what the writer puts in front is a header that is read back */
    int file = memfd_create("written", MFD_CLOEXEC);
    require(file >= 0 && ls_write_all(file, header, sizeof header) == 0 && ls_write_all(file, start, count) == 0 &&
            ls_write_all(file, start, count) == 0);
    struct ls_token_shard written;
    require(ls_token_shard_inspect(file, "written", false, &written, NULL) == LS_OK &&
            written.tokens == (int64_t)count);
    close(file);
    return 0;
}
