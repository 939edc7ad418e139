/* manifest.json: making, parsing and checking a folder against it; the hashes of its records. */
#define _GNU_SOURCE
#include "common/manifest.h"

#include "common/files.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static const char manifest_format[] = "lockstep-checkpoint";
static const char state_folder[] = "state/";
enum { MANIFEST_VERSION = 1, STATE_PREFIX = sizeof state_folder - 1 };

static const char *without_folder(const char *name) {
    return strncmp(name, state_folder, STATE_PREFIX) == 0 ? name + STATE_PREFIX : name;
}

bool ls_manifest_name_is_valid(const char *name) {
    return strlen(name) < LS_RECORD_NAME_MAX && strcmp(name, "manifest.json") != 0 &&
           ls_file_name_is_safe(without_folder(name));
}

static bool hash_is_valid(const char *hash) {
    return strlen(hash) == 32 && strspn(hash, "0123456789abcdef") == 32;
}

static enum ls_code refuse(struct ls_error *error, const char *what) {
    return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                   "manifest.json: %s. It is damaged or was not written by this program: use another checkpoint.",
                   what);
}

static int compare_names(const void *left, const void *right) {
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

static enum ls_code check_records(const struct ls_manifest *manifest, struct ls_error *error) {
    const char **names = calloc(manifest->file_count + 1, sizeof *names);
    if (!names) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "manifest.json: no memory");
    enum ls_code code = LS_OK;
    for (size_t i = 0; i < manifest->file_count && !code; i++) {
        const struct ls_file_record *file = &manifest->files[i];
        names[i] = file->name;
        if (!ls_manifest_name_is_valid(file->name))
            code = ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                           "manifest.json: file name '%.100s' is neither one component of [A-Za-z0-9._-] nor state/ "
                           "and one. It is "
                           "damaged or hostile: use another checkpoint.",
                           file->name);
        else if (file->bytes < 0 || !hash_is_valid(file->hash))
            code = refuse(error, "a file's size is negative or its hash is not 32 hex digits");
    }
    if (!code) qsort(names, manifest->file_count, sizeof *names, compare_names);
    for (size_t i = 1; i < manifest->file_count && !code; i++)
        if (strcmp(names[i - 1], names[i]) == 0) code = refuse(error, "a file is listed twice");
    free(names);
    return code;
}

enum ls_code ls_manifest_write(const struct ls_manifest *manifest, char **json, struct ls_error *error) {
    enum ls_code code = check_records(manifest, error);
    if (code) return code;
    bool failed = false;
    json_t *files = json_array();
    for (size_t i = 0; i < manifest->file_count; i++) {
        const struct ls_file_record *file = &manifest->files[i];
        json_t *entry =
            json_pack("{s:s,s:I,s:s}", "name", file->name, "size", (json_int_t)file->bytes, "xxh3", file->hash);
        if (json_array_append_new(files, entry)) failed = true;
    }
    json_t *root = json_pack("{s:s,s:i,s:I,s:I,s:o}", "format", manifest_format, "version", MANIFEST_VERSION, "step",
                             (json_int_t)manifest->step, "attempt", (json_int_t)manifest->attempt, "files", files);
    char *text = failed || !root ? NULL : json_dumps(root, JSON_INDENT(1));
    json_decref(root);
    if (!text) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "manifest.json: no memory");
    *json = text;
    return LS_OK;
}

static enum ls_code parse_file(const json_t *entry, struct ls_file_record *file, struct ls_error *error) {
    const char *name = json_string_value(json_object_get(entry, "name"));
    const char *hash = json_string_value(json_object_get(entry, "xxh3"));
    const json_t *size = json_object_get(entry, "size");
    if (!name || !hash || !json_is_integer(size)) return refuse(error, "a file has no name, size or xxh3");
    if (strlen(name) >= sizeof file->name || strlen(hash) >= sizeof file->hash)
        return refuse(error, "a file's name or hash is too long");
    strcpy(file->name, name);
    strcpy(file->hash, hash);
    file->bytes = json_integer_value(size);
    return LS_OK;
}

static enum ls_code fill_manifest(const json_t *root, struct ls_manifest *manifest, struct ls_error *error) {
    const char *format = json_string_value(json_object_get(root, "format"));
    const json_t *version = json_object_get(root, "version"), *step = json_object_get(root, "step");
    const json_t *attempt = json_object_get(root, "attempt"), *files = json_object_get(root, "files");
    if (!format || strcmp(format, manifest_format) != 0 || !json_is_integer(version))
        return refuse(error, "it does not say \"format\": \"lockstep-checkpoint\" and a version");
    if (json_integer_value(version) != MANIFEST_VERSION)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                       "manifest.json: version %lld; this program reads version %d. Use the program that wrote it.",
                       (long long)json_integer_value(version), MANIFEST_VERSION);
    if (!json_is_integer(step) || !json_is_integer(attempt) || json_integer_value(step) < 0 ||
        json_integer_value(attempt) < 0)
        return refuse(error, "step or attempt is missing or negative");
    if (!json_is_array(files) || json_array_size(files) > LS_MANIFEST_FILES_MAX)
        return refuse(error, "there is no list of files, or it is too long");
    manifest->step = (uint64_t)json_integer_value(step);
    manifest->attempt = (uint64_t)json_integer_value(attempt);
    manifest->file_count = json_array_size(files);
    manifest->files = calloc(manifest->file_count + 1, sizeof *manifest->files);
    if (!manifest->files) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "manifest.json: no memory");
    for (size_t i = 0; i < manifest->file_count; i++) {
        enum ls_code code = parse_file(json_array_get(files, i), &manifest->files[i], error);
        if (code) return code;
    }
    return check_records(manifest, error);
}

enum ls_code ls_manifest_parse(const char *json, size_t count, struct ls_manifest **result, struct ls_error *error) {
    json_error_t cause;
    json_t *root = json_loadb(json, count, JSON_REJECT_DUPLICATES, &cause);
    if (!root)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                       "manifest.json: not valid JSON (line %d: %s). It is damaged: use another checkpoint.",
                       cause.line, cause.text);
    struct ls_manifest *manifest = calloc(1, sizeof *manifest);
    enum ls_code code = manifest ? fill_manifest(root, manifest, error)
                                 : ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "manifest.json: no memory");
    json_decref(root);
    if (code) {
        ls_manifest_destroy(manifest);
        return code;
    }
    *result = manifest;
    return LS_OK;
}

void ls_manifest_destroy(struct ls_manifest *manifest) {
    if (!manifest) return;
    free(manifest->files);
    free(manifest);
}

const struct ls_file_record *ls_manifest_find(const struct ls_manifest *manifest, const char *name) {
    for (size_t i = 0; i < manifest->file_count; i++)
        if (strcmp(manifest->files[i].name, name) == 0) return &manifest->files[i];
    return NULL;
}

int ls_manifest_open_file(int folder, const char *name, struct ls_error *error) {
    const char *component = without_folder(name);
    if (component == name) return ls_file_open_under(folder, name, LS_CHECKPOINT, error);
    int state = openat(folder, "state", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (state < 0) {
        ls_fail(error, ls_file_code(errno, LS_CHECKPOINT), ls_file_scope(errno, LS_SCOPE_CALL),
                "cannot open the folder state: %s",
                errno == ELOOP || errno == ENOTDIR ? "it is a link or no folder" : strerror(errno));
        return -1;
    }
    int file = ls_file_open_under(state, component, LS_CHECKPOINT, error);
    close(state);
    return file;
}

static void format_hash(XXH128_hash_t hash, char text[33]) {
    snprintf(text, 33, "%016llx%016llx", (unsigned long long)hash.high64, (unsigned long long)hash.low64);
}

void ls_hash_bytes(const void *bytes, size_t count, char hash[33]) {
    format_hash(XXH3_128bits(bytes, count), hash);
}

enum ls_code ls_hash_file(int file, const char *name, char hash[33], struct ls_error *error) {
    enum { PIECE = 1 << 20 };
    XXH3_state_t *state = XXH3_createState();
    char *piece = malloc(PIECE);
    enum ls_code code = LS_OK;
    if (!state || !piece || XXH3_128bits_reset(state) == XXH_ERROR)
        code = ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory to hash %s", name);
    for (int64_t offset = 0; !code;) {
        ssize_t done = pread(file, piece, PIECE, offset);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0)
            code = ls_fail(error, LS_CHECKPOINT, ls_file_scope(errno, LS_SCOPE_CALL), "cannot read %s: %s", name,
                           strerror(errno));
        if (done <= 0) break;
        XXH3_128bits_update(state, piece, (size_t)done);
        offset += done;
    }
    if (!code) format_hash(XXH3_128bits_digest(state), hash);
    XXH3_freeState(state);
    free(piece);
    return code;
}

static enum ls_code verify_file(int folder, const struct ls_file_record *record, bool hashes, struct ls_error *error) {
    char hash[33] = "";
    struct stat status;
    struct ls_error own = {.code = LS_OK};
    int file = ls_manifest_open_file(folder, record->name, error ? error : &own);
    if (file < 0) return error ? error->code : own.code;
    enum ls_code code = LS_OK;
    if (fstat(file, &status))
        code = ls_fail(error, LS_CHECKPOINT, ls_file_scope(errno, LS_SCOPE_CALL), "cannot read %s: %s", record->name,
                       strerror(errno));
    else if (status.st_size != record->bytes)
        code = ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL, "%s has %lld bytes, its manifest says %lld", record->name,
                       (long long)status.st_size, (long long)record->bytes);
    else if (hashes)
        code = ls_hash_file(file, record->name, hash, error);
    if (!code && hashes && strcmp(hash, record->hash) != 0)
        code = ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                       "%s has the hash %s, its manifest says %s: its bytes changed", record->name, hash, record->hash);
    close(file);
    return code;
}

static enum ls_code verify_folder(int folder, bool hashes, struct ls_manifest **result, char hash[33],
                                  struct ls_error *error) {
    char *json;
    size_t count;
    struct ls_manifest *manifest;
    enum ls_code code =
        ls_file_read_under(folder, "manifest.json", LS_MANIFEST_BYTES_MAX, &json, &count, LS_CHECKPOINT, error);
    if (code) return code;
    code = ls_manifest_parse(json, count, &manifest, error);
    if (!code && hash) ls_hash_bytes(json, count, hash);
    free(json);
    if (code) return code;
    for (size_t i = 0; i < manifest->file_count && !code; i++)
        code = verify_file(folder, &manifest->files[i], hashes, error);
    if (!code && result)
        *result = manifest;
    else
        ls_manifest_destroy(manifest);
    return code;
}

enum ls_code ls_manifest_verify(const char *path, bool hashes, struct ls_manifest **manifest, char hash[33],
                                struct ls_error *error) {
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return ls_fail(error, ls_file_code(errno, LS_CHECKPOINT), ls_file_scope(errno, LS_SCOPE_CALL),
                       "cannot open the folder %s: %s", path, strerror(errno));
    enum ls_code code = verify_folder(folder, hashes, manifest, hash, error);
    close(folder);
    return code;
}
