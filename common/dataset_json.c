/* Reading and writing dataset.json with jansson. */
#include "common/dataset_json.h"

#include "common/config.h"
#include "common/digest.h"
#include "common/files.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char format_name[] = "lockstep-dataset";
enum { FORMAT_VERSION = 1 };

static enum ls_code reject(struct ls_error *error, const char *name, const char *what) {
    return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "data: %s: %s. Prepare the dataset again, or correct the file.", name,
                   what);
}

/* Reads an integer member into *value; an absent one keeps it. Returns false if it is no integer of [minimum, maximum].
 */
static bool read_integer(const json_t *object, const char *key, int64_t minimum, int64_t maximum, int64_t *value) {
    const json_t *member = json_object_get(object, key);
    if (!member) return true;
    if (!json_is_integer(member) || json_integer_value(member) < minimum || json_integer_value(member) > maximum)
        return false;
    *value = json_integer_value(member);
    return true;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static enum ls_code check_names_differ(const struct ls_dataset_json *description, const char *name,
                                       struct ls_error *error) {
    const char **names = malloc(description->shard_count * sizeof *names);
    if (!names)
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for the %zu shards of %s", description->shard_count,
                       name);
    for (size_t i = 0; i < description->shard_count; i++) names[i] = description->shards[i].name;
    qsort(names, description->shard_count, sizeof *names, compare_names);
    bool duplicate = false;
    for (size_t i = 1; i < description->shard_count; i++) duplicate |= strcmp(names[i - 1], names[i]) == 0;
    free(names);
    return duplicate ? reject(error, name, "two shards have the same name") : LS_OK;
}

static enum ls_code read_shard(const json_t *object, const char *name, struct ls_dataset_json_shard *shard,
                               struct ls_error *error) {
    const char *file = json_string_value(json_object_get(object, "name"));
    if (!file || !ls_file_name_is_safe(file)) {
        char what[160];
        snprintf(what, sizeof what, "the shard name '%.80s' is not one component of [A-Za-z0-9._-]", file ? file : "");
        return reject(error, name, what);
    }
    memcpy(shard->name, file, strlen(file) + 1);
    shard->tokens = -1;
    if (!read_integer(object, "tokens", 0, INT64_MAX / 8, &shard->tokens) || shard->tokens < 0)
        return reject(error, name, "'tokens' of a shard has to be an integer of at least 0");
    const json_t *hash = json_object_get(object, "xxh3");
    if (!hash) return LS_OK;
    struct ls_digest parsed;
    if (!json_is_string(hash) || ls_digest_parse(json_string_value(hash), &parsed))
        return reject(error, name, "'xxh3' of a shard has to be 32 hex digits");
    ls_digest_format(parsed, shard->xxh3);
    return LS_OK;
}

static enum ls_code read_shards(const json_t *array, const char *name, struct ls_dataset_json *description,
                                struct ls_error *error) {
    const size_t count = json_array_size(array); /* 0 if it is no array */
    if (count < 1 || count > LS_DATASET_SHARDS_MAX)
        return reject(error, name, "'shards' has to be a list of 1 to 65536 shards");
    description->shards = calloc(count, sizeof *description->shards);
    if (!description->shards)
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for the %zu shards of %s", count, name);
    description->shard_count = count;
    int64_t tokens = 0;
    for (size_t i = 0; i < count; i++) {
        enum ls_code code = read_shard(json_array_get(array, i), name, &description->shards[i], error);
        if (code) return code;
        if (__builtin_add_overflow(tokens, description->shards[i].tokens, &tokens))
            return reject(error, name, "the tokens of its shards add up to more than 2^63");
    }
    if (tokens != description->tokens) return reject(error, name, "'tokens' is not the sum over its shards");
    return check_names_differ(description, name, error);
}

static enum ls_code read_document_token(const json_t *object, const char *name, struct ls_dataset_json *description,
                                        struct ls_error *error) {
    if (!object || json_is_null(object)) return LS_OK;
    const char *at = json_string_value(json_object_get(object, "at"));
    if (!read_integer(object, "id", 0, description->vocab_size - 1, &description->document_token) ||
        description->document_token < 0)
        return reject(error, name, "'document_token.id' has to be a token id below 'vocab_size'");
    if (!at || (strcmp(at, "start") && strcmp(at, "end")))
        return reject(error, name, "'document_token.at' has to be 'start' or 'end'");
    description->document_token_at_end = strcmp(at, "end") == 0;
    return LS_OK;
}

static enum ls_code read_description(const json_t *root, const char *name, struct ls_dataset_json *description,
                                     struct ls_error *error) {
    const char *format = json_string_value(json_object_get(root, "format"));
    int64_t version = 0;
    if (!format || strcmp(format, format_name)) return reject(error, name, "'format' is not 'lockstep-dataset'");
    if (!read_integer(root, "version", 1, INT64_MAX, &version) || version != FORMAT_VERSION)
        return reject(error, name, "'version' is not 1, the one this program reads");
    const json_t *tokenizer = json_object_get(root, "tokenizer");
    if (tokenizer && (!json_is_string(tokenizer) || json_string_length(tokenizer) >= sizeof description->tokenizer))
        return reject(error, name, "'tokenizer' has to be a string of at most 255 bytes");
    if (tokenizer) memcpy(description->tokenizer, json_string_value(tokenizer), json_string_length(tokenizer) + 1);
    if (!read_integer(root, "vocab_size", 1, LS_CONFIG_VOCABULARY_MAX, &description->vocab_size) ||
        description->vocab_size == 0)
        return reject(error, name, "'vocab_size' has to be an integer of 1 to 4194304, as model.vocab_size");
    if (!read_integer(root, "documents", 0, INT64_MAX, &description->documents) ||
        !read_integer(root, "tokens", 0, INT64_MAX, &description->tokens) ||
        !read_integer(root, "text_bytes", 0, INT64_MAX, &description->text_bytes))
        return reject(error, name, "'documents', 'tokens' and 'text_bytes' have to be integers of at least 0");
    enum ls_code code = read_document_token(json_object_get(root, "document_token"), name, description, error);
    return code ? code : read_shards(json_object_get(root, "shards"), name, description, error);
}

enum ls_code ls_dataset_json_parse(const char *bytes, size_t count, const char *name,
                                   struct ls_dataset_json *description, struct ls_error *error) {
    json_error_t where;
    json_t *root = json_loadb(bytes, count, JSON_REJECT_DUPLICATES, &where);
    if (!root)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                       "data: %s, line %d: %s. Prepare the dataset again, or correct the file.", name, where.line,
                       where.text);
    struct ls_dataset_json read = {.document_token = -1};
    enum ls_code code = read_description(root, name, &read, error);
    json_decref(root);
    if (code)
        ls_dataset_json_free(&read);
    else
        *description = read;
    return code;
}

char *ls_dataset_json_write(const struct ls_dataset_json *description) {
    json_t *shards = json_array();
    for (size_t i = 0; i < description->shard_count; i++) {
        const struct ls_dataset_json_shard *shard = &description->shards[i];
        json_t *object = json_pack("{s:s, s:I}", "name", shard->name, "tokens", (json_int_t)shard->tokens);
        if (shard->xxh3[0]) json_object_set_new(object, "xxh3", json_string(shard->xxh3));
        json_array_append_new(shards, object);
    }
    json_t *document_token = description->document_token < 0
                                 ? json_null()
                                 : json_pack("{s:I, s:s}", "id", (json_int_t)description->document_token, "at",
                                             description->document_token_at_end ? "end" : "start");
    json_t *root =
        json_pack("{s:s, s:i, s:s, s:I, s:o, s:I, s:I, s:I, s:o}", "format", format_name, "version", FORMAT_VERSION,
                  "tokenizer", description->tokenizer, "vocab_size", (json_int_t)description->vocab_size,
                  "document_token", document_token, "documents", (json_int_t)description->documents, "tokens",
                  (json_int_t)description->tokens, "text_bytes", (json_int_t)description->text_bytes, "shards", shards);
    char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    return text;
}

void ls_dataset_json_free(struct ls_dataset_json *description) {
    free(description->shards);
    description->shards = NULL;
    description->shard_count = 0;
}
