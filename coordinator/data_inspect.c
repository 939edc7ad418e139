/* Showing datasets to a person. */
#define _GNU_SOURCE
#include "coordinator/data_inspect.h"

#include "common/byte_tokenizer.h"
#include "common/dataset.h"
#include "common/files.h"
#include "common/utf8.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    FIRST_TOKENS = 72,
    FIRST_WORDS = 18,
    FIRST_IDS = 12,
    WORD_BYTES = 4096,
    PIECE_TOKENS = 1 << 16,
    SHARDS_SHOWN = 20
};

static enum ls_code open_for_reading(const char *path, const char *dtype, struct ls_dataset **dataset,
                                     struct ls_error *error) {
    struct ls_config_source source = {.document_token_id = -1};
    if (snprintf(source.path, sizeof source.path, "%s", path) >= (int)sizeof source.path)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "the path %.200s... is too long", path);
    snprintf(source.dtype, sizeof source.dtype, "%s", dtype);
    return ls_dataset_open(&source, 1, dataset, error); /* T = 1: whatever has two tokens can be shown */
}

static bool holds_bytes(const struct ls_dataset *dataset) {
    return strcmp(ls_dataset_tokenizer(dataset), "byte") == 0;
}

/* Bytes of the UTF-8 character that begins at `tokens`, 0 if none does or it is a control character. */
static size_t character_length(const int32_t *tokens, int64_t left) {
    char bytes[LS_UTF8_BYTES_MAX];
    size_t count = 0;
    while (count < sizeof bytes && (int64_t)count < left && (uint32_t)tokens[count] < LS_BYTE_TOKEN_DOCUMENT) {
        bytes[count] = (char)tokens[count];
        count++;
    }
    return count ? ls_utf8_shown(bytes, count) : 0;
}

/* Bytes as text in one line: line ends as "\n", what cannot be shown as '.', a bar before a further document. */
static void print_bytes(const int32_t *tokens, int64_t count, FILE *out) {
    for (int64_t i = 0; i < count;) {
        const size_t length = character_length(tokens + i, count - i);
        if (tokens[i] >= LS_BYTE_TOKEN_DOCUMENT)
            fputs(i ? " | " : "", out);
        else if (tokens[i] == '\n')
            fputs("\\n", out);
        else if (length == 0)
            fputc('.', out);
        for (size_t k = 0; k < length; k++) fputc(tokens[i + (int64_t)k], out);
        i += length ? (int64_t)length : 1;
    }
}

enum ls_code ls_data_open_tokenizer(const struct ls_dataset *dataset, struct ls_tokenizer **tokenizer,
                                    struct ls_error *error) {
    const char *path = ls_dataset_tokenizer(dataset);
    char *json;
    size_t count;
    *tokenizer = NULL;
    if (!strchr(path, '/')) return LS_OK;
    enum ls_code code = ls_file_read(path, LS_TOKENIZER_JSON_BYTES_MAX, &json, &count, LS_DATA, error);
    if (code) return code;
    code = ls_tokenizer_parse(json, count, path, tokenizer, error);
    free(json);
    return code;
}

/* What is text of a token; 0 bytes of one that begins a document or is no text. *begins: a text begins with the token,
 * then with the next one. */
static const char *text_of(const struct ls_dataset *dataset, const struct ls_tokenizer *tokenizer, int32_t token,
                           bool *begins, size_t *count) {
    bool special = true;
    const char *text = ls_tokenizer_said(tokenizer, token, begins, count, &special);
    const bool document = token == ls_dataset_document_token(dataset);
    if (!text || special || document) *count = 0;
    if (document) *begins = true;
    return text;
}

/* Tokens as their bytes, as byte tokens would be. */
static void print_words(const struct ls_dataset *dataset, const struct ls_tokenizer *tokenizer, const int32_t *tokens,
                        int64_t count, FILE *out) {
    int32_t bytes[WORD_BYTES];
    int64_t used = 0;
    bool begins = false;
    for (int64_t i = 0; i < count; i++) {
        size_t length;
        const char *text = text_of(dataset, tokenizer, tokens[i], &begins, &length);
        if (used + (int64_t)length + 1 > WORD_BYTES) break;
        if (length == 0) bytes[used++] = LS_BYTE_TOKEN_DOCUMENT;
        for (size_t k = 0; k < length; k++) bytes[used++] = (unsigned char)text[k];
    }
    print_bytes(bytes, used, out);
}

void ls_data_print_tokens(const struct ls_dataset *dataset, const struct ls_tokenizer *tokenizer, const int32_t *tokens,
                          int64_t count, FILE *out) {
    if (holds_bytes(dataset))
        print_bytes(tokens, count, out);
    else if (tokenizer)
        print_words(dataset, tokenizer, tokens, count < FIRST_WORDS ? count : FIRST_WORDS, out);
    else
        for (int64_t i = 0; i < count && i < FIRST_IDS; i++) fprintf(out, "%s%d", i ? " " : "", tokens[i]);
}

static enum ls_code print_first_tokens(const struct ls_dataset *dataset, FILE *out, struct ls_error *error) {
    size_t shard = 0;
    while (ls_dataset_shard(dataset, shard)->tokens == 0) shard++; /* an open dataset has tokens */
    const int64_t tokens_there = ls_dataset_shard(dataset, shard)->tokens;
    int32_t tokens[FIRST_TOKENS];
    struct ls_tokenizer *tokenizer;
    const int64_t count = tokens_there < FIRST_TOKENS ? tokens_there : FIRST_TOKENS;
    enum ls_code code = ls_dataset_read_tokens(dataset, shard, 0, count, tokens, error);
    if (code) return code;
    ls_data_open_tokenizer(dataset, &tokenizer, NULL); /* one that is not there: ids are shown */
    fputs("  begins      ", out);
    ls_data_print_tokens(dataset, tokenizer, tokens, count, out);
    fputc('\n', out);
    ls_tokenizer_destroy(tokenizer);
    return LS_OK;
}

static void print_shards(const struct ls_dataset *dataset, int64_t T, FILE *out) {
    const size_t shards = ls_dataset_shard_count(dataset);
    int64_t samples = 0, tail = 0;
    for (size_t i = 0; i < shards; i++) {
        const struct ls_shard_info *shard = ls_dataset_shard(dataset, i);
        const int64_t here = shard->tokens > 0 ? (shard->tokens - 1) / T : 0;
        samples += here;
        tail += shard->tokens - (here ? here * T + 1 : 0);
    }
    fprintf(out, "  samples     %lld of %lld tokens each; %lld tokens at the ends of shards are in none\n",
            (long long)samples, (long long)T, (long long)tail);
    fprintf(out, "  shards      %zu\n", shards);
    for (size_t i = 0; i < shards && i < SHARDS_SHOWN; i++) {
        const struct ls_shard_info *shard = ls_dataset_shard(dataset, i);
        fprintf(out, "    %-24s %14lld tokens of %d bytes\n", shard->name, (long long)shard->tokens,
                shard->token_bytes);
    }
    if (shards > SHARDS_SHOWN) fprintf(out, "    and %zu more\n", shards - SHARDS_SHOWN);
}

static enum ls_code inspect_one(const char *path, const char *dtype, int64_t T, FILE *out, struct ls_error *error) {
    struct ls_dataset *dataset;
    enum ls_code code = open_for_reading(path, dtype, &dataset, error);
    if (code) return code;
    fprintf(out, "%s\n  tokens      %lld\n", path, (long long)ls_dataset_tokens(dataset));
    const char *tokenizer = ls_dataset_tokenizer(dataset);
    if (ls_dataset_vocab_size(dataset))
        fprintf(out, "  tokenizer   %s, %lld ids\n", tokenizer[0] ? tokenizer : "not named",
                (long long)ls_dataset_vocab_size(dataset));
    else
        fputs("  tokenizer   not known; set model.vocab_size\n", out);
    if (ls_dataset_document_token(dataset) >= 0)
        fprintf(out, "  documents   token %lld stands at the %s of each", (long long)ls_dataset_document_token(dataset),
                ls_dataset_document_token_at_end(dataset) ? "end" : "start");
    else
        fputs("  documents   no boundaries known", out);
    if (ls_dataset_documents(dataset)) fprintf(out, "; there are %lld", (long long)ls_dataset_documents(dataset));
    fputc('\n', out);
    if (ls_dataset_text_bytes(dataset))
        fprintf(out, "  text        %lld bytes, %.3f a token\n", (long long)ls_dataset_text_bytes(dataset),
                ls_dataset_bytes_per_token(dataset));
    print_shards(dataset, T, out);
    code = print_first_tokens(dataset, out, error);
    ls_dataset_close(dataset);
    return code;
}

/* "PATH/NAME" if it has a dataset.json, else NULL. The caller frees. */
static char *prepared_split(const char *path, const char *name) {
    char *folder, *json;
    if (asprintf(&folder, "%s/%s", path, name) < 0) return NULL;
    if (asprintf(&json, "%s/dataset.json", folder) < 0) {
        free(folder);
        return NULL;
    }
    const bool there = access(json, F_OK) == 0;
    free(json);
    if (there) return folder;
    free(folder);
    return NULL;
}

enum ls_code ls_data_inspect(const char *path, const char *dtype, int64_t sequence_length, FILE *out,
                             struct ls_error *error) {
    assert(sequence_length >= 1);
    char *train = prepared_split(path, "train"), *validation = prepared_split(path, "validation");
    enum ls_code code = LS_OK;
    if (!train && !validation) code = inspect_one(path, dtype, sequence_length, out, error);
    if (train) code = inspect_one(train, dtype, sequence_length, out, error);
    if (!code && validation) code = inspect_one(validation, dtype, sequence_length, out, error);
    free(train);
    free(validation);
    return code;
}

static enum ls_code print_shard_text(const struct ls_dataset *dataset, const struct ls_tokenizer *tokenizer,
                                     size_t shard, bool *begins, FILE *out, struct ls_error *error) {
    int32_t tokens[PIECE_TOKENS];
    const int64_t all = ls_dataset_shard(dataset, shard)->tokens;
    for (int64_t first = 0; first < all; first += PIECE_TOKENS) {
        const int64_t count = all - first < PIECE_TOKENS ? all - first : PIECE_TOKENS;
        enum ls_code code = ls_dataset_read_tokens(dataset, shard, first, count, tokens, error);
        if (code) return code;
        for (int64_t i = 0; i < count; i++) {
            const char byte = (char)tokens[i], *text = &byte;
            size_t length = tokens[i] < LS_BYTE_TOKEN_DOCUMENT;
            if (tokenizer) text = text_of(dataset, tokenizer, tokens[i], begins, &length);
            if (length > 0 && fwrite(text, 1, length, out) != length)
                return ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "cannot write the text: %s", strerror(errno));
        }
    }
    return LS_OK;
}

enum ls_code ls_data_print_text(const char *path, FILE *out, struct ls_error *error) {
    struct ls_dataset *dataset;
    enum ls_code code = open_for_reading(path, "", &dataset, error);
    if (code) return code;
    struct ls_tokenizer *tokenizer = NULL;
    code = ls_data_open_tokenizer(dataset, &tokenizer, error);
    if (!code && !tokenizer && !holds_bytes(dataset))
        code = ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                       "%s holds neither byte tokens nor those of a tokenizer that its dataset.json names; only such "
                       "can be turned back into text here",
                       path);
    bool begins = true;
    for (size_t i = 0; i < ls_dataset_shard_count(dataset) && !code; i++)
        code = print_shard_text(dataset, tokenizer, i, &begins, out, error);
    ls_tokenizer_destroy(tokenizer);
    ls_dataset_close(dataset);
    return code;
}
