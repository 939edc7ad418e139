/* manifest.json: the list of a checkpoint's files with their sizes and hashes. It is written last, so a folder that has
 * one is complete, and every byte in it can be checked. Hashes protect against accident, not against a writer of the
 * folder.
 *
 *     {"format": "lockstep-checkpoint", "version": 1, "step": 200, "attempt": 1,
 *      "files": [{"name": "model.safetensors", "size": 1234, "xxh3": "32 hex digits"},
 *                {"name": "state/rank-00000.safetensors", ...}, ...]}
 *
 * A file's name is one safe component (files.h), or "state/" and one: there is no other folder in a checkpoint.
 * Errors are LS_CHECKPOINT, and LS_MEMORY where this process has no memory or descriptor left. */
#ifndef LS_COMMON_MANIFEST_H
#define LS_COMMON_MANIFEST_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LS_RECORD_NAME_MAX = 128, LS_MANIFEST_FILES_MAX = 1 << 18, LS_MANIFEST_BYTES_MAX = 64 << 20 };

/* A file of a checkpoint as its writer saw it. */
struct ls_file_record {
    char name[LS_RECORD_NAME_MAX]; /* with its NUL */
    int64_t bytes;
    char hash[33]; /* XXH3-128 of the content, 32 lower-case hex digits, high half first */
};

struct ls_manifest {
    uint64_t step, attempt;
    struct ls_file_record *files;
    size_t file_count;
};

/* True for the names a manifest may hold: COMPONENT or state/COMPONENT, shorter than LS_RECORD_NAME_MAX, not
 * manifest.json. */
bool ls_manifest_name_is_valid(const char *name);

/* Makes the JSON. *json is malloc'ed, NUL-terminated; the caller frees. Refuses invalid or repeated names. */
enum ls_code ls_manifest_write(const struct ls_manifest *manifest, char **json, struct ls_error *error);
/* Parses and checks: format, version, every name valid and there once, sizes >= 0, hashes of 32 hex digits.
 * ls_manifest_destroy() frees *manifest. */
enum ls_code ls_manifest_parse(const char *json, size_t count, struct ls_manifest **manifest, struct ls_error *error);
void ls_manifest_destroy(struct ls_manifest *manifest);
/* The record of a file, or NULL. */
const struct ls_file_record *ls_manifest_find(const struct ls_manifest *manifest, const char *name);

/* Opens a file of a checkpoint for reading under the open folder `folder`; the name must be valid, neither `state` nor
 * the file may be a link, and only regular files are opened. The caller closes it. -1 on failure. */
int ls_manifest_open_file(int folder, const char *name, struct ls_error *error);

/* Reads manifest.json of the checkpoint folder `path` and checks every file it lists: present, of its size and, when
 * `hashes`, of its content. The error names the first damaged file; LS_MEMORY says
 * nothing of them. *manifest (may be NULL) is set on success only;
 * hash[33] (may be NULL) becomes the XXH3-128 of manifest.json itself, by which a later checkpoint names its parent. */
enum ls_code ls_manifest_verify(const char *path, bool hashes, struct ls_manifest **manifest, char hash[33],
                                struct ls_error *error);

/* XXH3-128 of bytes, and of an open file from its start, as in a record. */
void ls_hash_bytes(const void *bytes, size_t count, char hash[33]);
enum ls_code ls_hash_file(int file, const char *name, char hash[33], struct ls_error *error);

#endif
