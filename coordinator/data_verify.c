/* Verifying datasets shard by shard, so that one bad shard does not hide another. */
#define _GNU_SOURCE
#include "coordinator/data_verify.h"

#include "common/dataset_json.h"
#include "common/files.h"
#include "common/token_shard.h"
#include "coordinator/data_progress.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What is found over all folders. */
struct verification {
    FILE *out;
    bool headerless;
    int64_t shards, bad;
    struct ls_error first; /* of the bad ones */
};

static bool tell_progress(void *context, int64_t bytes) {
    return ls_data_progress_add(context, bytes);
}

/* Checks an open shard; `described` is its entry in dataset.json, or NULL. */
static enum ls_code check_shard(int file, const char *path, bool headerless,
                                const struct ls_dataset_json_shard *described, int64_t vocab,
                                struct ls_token_shard *shard, struct ls_error *error) {
    enum ls_code code = ls_token_shard_inspect(file, path, headerless, shard, error);
    if (code) return code;
    if (described && described->tokens != shard->tokens)
        return ls_fail(error, LS_DATA, LS_SCOPE_CALL, "data: %s holds %lld tokens, %s says %lld. Copy both again.",
                       path, (long long)shard->tokens, LS_DATASET_JSON, (long long)described->tokens);
    if (!vocab)
        vocab = shard->magic == LS_SHARD_MAGIC_UINT16 ? 50257 : shard->magic == LS_SHARD_MAGIC_UINT32 ? 128256 : 0;
    struct ls_data_progress progress = ls_data_progress_start(path, shard->bytes);
    struct ls_digest hash;
    code = ls_token_shard_scan(shard, path, vocab, &hash, tell_progress, &progress, error);
    ls_data_progress_end(&progress);
    if (code) return code;
    char hex[33];
    ls_digest_format(hash, hex);
    if (described && described->xxh3[0] && strcmp(described->xxh3, hex))
        return ls_fail(
            error, LS_DATA, LS_SCOPE_CALL,
            "data: the bytes of %s have the hash %s, %s says %s. The file was changed or damaged; copy it again.", path,
            hex, LS_DATASET_JSON, described->xxh3);
    return LS_OK;
}

/* Verifies the shard `file`, or tells why it could not be opened (-1, `error` says so), prints its line, and keeps the
 * first error. Closes the file. Returns what ends the verification: LS_STOPPED, LS_MEMORY. */
static enum ls_code verify_shard(struct verification *verification, int file, const char *path,
                                 const struct ls_dataset_json_shard *described, int64_t vocab, struct ls_error *error) {
    struct ls_token_shard shard = {0};
    enum ls_code code = LS_DATA;
    if (file >= 0) {
        code = check_shard(file, path, verification->headerless, described, vocab, &shard, error);
        close(file);
    }
    if (code == LS_STOPPED || code == LS_MEMORY) {
        verification->first = *error;
        return code;
    }
    verification->shards++;
    if (code) {
        if (verification->bad++ == 0) verification->first = *error;
        fprintf(verification->out, "BAD  %s: %s\n", path, error->text);
    } else {
        fprintf(verification->out, "ok   %s: %lld tokens%s\n", path, (long long)shard.tokens,
                described && described->xxh3[0] ? "" : ", no hash to compare with");
    }
    return LS_OK;
}

static enum ls_code verify_described(struct verification *verification, int folder, const char *folder_path,
                                     const struct ls_dataset_json_shard *described, int64_t vocab) {
    char path[PATH_MAX + 256];
    snprintf(path, sizeof path, "%s/%s", folder_path, described->name);
    struct ls_error error;
    int file = ls_file_open_under(folder, described->name, LS_DATA, &error);
    if (file < 0) ls_fail_within(&error, "data: %s", folder_path);
    return verify_shard(verification, file, path, described, vocab, &error);
}

static enum ls_code verify_file(struct verification *verification, const char *path) {
    struct ls_error error;
    int file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (file < 0) ls_fail(&error, LS_DATA, LS_SCOPE_CALL, "data: cannot open %s: %s", path, strerror(errno));
    return verify_shard(verification, file, path, NULL, 0, &error);
}

static int is_token_file(const struct dirent *entry) {
    return fnmatch("*.bin", entry->d_name, FNM_PERIOD) == 0;
}

/* A folder without dataset.json: its *.bin files. */
static enum ls_code verify_files(struct verification *verification, const char *path) {
    struct dirent **entries;
    int count = scandir(path, &entries, is_token_file, alphasort);
    if (count <= 0) {
        if (count == 0) free(entries);
        return ls_fail(&verification->first, LS_DATA, LS_SCOPE_CALL,
                       "data: %s has no %s and no *.bin files. Correct the path.", path, LS_DATASET_JSON);
    }
    enum ls_code code = LS_OK;
    for (int i = 0; i < count; i++) {
        char file[PATH_MAX + 256];
        snprintf(file, sizeof file, "%s/%s", path, entries[i]->d_name);
        if (!code) code = verify_file(verification, file);
        free(entries[i]);
    }
    free(entries);
    return code;
}

static enum ls_code verify_folder(struct verification *verification, const char *path) {
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return ls_fail(&verification->first, LS_DATA, LS_SCOPE_CALL, "data: cannot open the folder %s: %s", path,
                       strerror(errno));
    struct ls_dataset_json description;
    char *text;
    size_t bytes;
    enum ls_code code;
    if (faccessat(folder, LS_DATASET_JSON, F_OK, 0)) {
        code = verify_files(verification, path);
    } else if (!(code = ls_file_read_under(folder, LS_DATASET_JSON, LS_DATASET_JSON_BYTES_MAX, &text, &bytes, LS_DATA,
                                           &verification->first))) {
        char name[PATH_MAX];
        snprintf(name, sizeof name, "%.*s/%s", (int)(sizeof name - sizeof LS_DATASET_JSON - 1), path, LS_DATASET_JSON);
        code = ls_dataset_json_parse(text, bytes, name, &description, &verification->first);
        free(text);
        if (!code) {
            for (size_t i = 0; i < description.shard_count && !code; i++)
                code = verify_described(verification, folder, path, &description.shards[i], description.vocab_size);
            ls_dataset_json_free(&description);
        }
    }
    close(folder);
    return code;
}

static bool has_dataset(const char *path) {
    char json[PATH_MAX];
    return snprintf(json, sizeof json, "%s/%s", path, LS_DATASET_JSON) < (int)sizeof json && access(json, F_OK) == 0;
}

static enum ls_code verify_path(struct verification *verification, const char *path) {
    static const char *const splits[] = {"train", "validation"};
    struct stat status;
    if (stat(path, &status))
        return ls_fail(&verification->first, LS_DATA, LS_SCOPE_CALL, "data: cannot open %s: %s. Correct the path.",
                       path, strerror(errno));
    if (!S_ISDIR(status.st_mode)) return verify_file(verification, path);
    bool prepared = false;
    for (int i = 0; i < 2; i++) {
        char split[PATH_MAX];
        if (snprintf(split, sizeof split, "%s/%s", path, splits[i]) >= (int)sizeof split || !has_dataset(split))
            continue;
        prepared = true;
        enum ls_code code = verify_folder(verification, split);
        if (code) return code;
    }
    return prepared ? LS_OK : verify_folder(verification, path);
}

enum ls_code ls_data_verify(const char *path, const char *dtype, FILE *out, struct ls_error *error) {
    struct verification verification = {.out = out, .headerless = strcmp(dtype, "uint16") == 0};
    enum ls_code code = verify_path(&verification, path);
    if (code) {
        *error = verification.first;
        return code;
    }
    if (verification.bad == 0) {
        fprintf(out, "%lld shard%s good\n", (long long)verification.shards, verification.shards == 1 ? "" : "s");
        return LS_OK;
    }
    *error = verification.first;
    return ls_fail_within(error, "%lld of %lld shards bad", (long long)verification.bad,
                          (long long)verification.shards);
}
