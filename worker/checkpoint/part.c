/* Writing one file of a checkpoint. */
#define _GNU_SOURCE
#include "worker/checkpoint/part.h"

#include "common/files.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

enum ls_code ls_part_create(struct ls_part *part, const char *folder, const char *name, int64_t total,
                            struct ls_error *error) {
    *part = (struct ls_part){.file = -1, .total = total};
    if (snprintf(part->name, sizeof part->name, "%s", name) >= (int)sizeof part->name ||
        snprintf(part->path, sizeof part->path, "%s/%s", folder, name) >= (int)sizeof part->path)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                       "checkpoint: the path %.200s... is too long. Use a shorter run directory.", folder);
    XXH3_state_t *hash = XXH3_createState();
    if (!hash || XXH3_128bits_reset(hash) == XXH_ERROR) {
        XXH3_freeState(hash);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "checkpoint: no memory to hash %s", name);
    }
    part->hash = hash;
    part->file = open(part->path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (part->file < 0) {
        int cause = errno;
        ls_part_abandon(part);
        return ls_checkpoint_write_failed(part->path, cause, total, error);
    }
    if (total > 0 && fallocate(part->file, 0, 0, total) && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) {
        int cause = errno;
        /* A part of the reservation may have been granted; it would only be in the way of whoever frees space. */
        if (ftruncate(part->file, 0)) cause = errno;
        ls_part_abandon(part);
        return ls_checkpoint_write_failed(part->path, cause, total, error);
    }
    return LS_OK;
}

enum ls_code ls_part_write(struct ls_part *part, const void *bytes, size_t count, struct ls_error *error) {
    assert((int64_t)count <= part->total - part->written);
    if (ls_pwrite_all(part->file, bytes, count, part->written))
        return ls_checkpoint_write_failed(part->path, errno, part->total - part->written, error);
    XXH3_128bits_update(part->hash, bytes, count);
    part->written += (int64_t)count;
    return LS_OK;
}

enum ls_code ls_part_finish(struct ls_part *part, struct ls_file_record *record, struct ls_error *error) {
    assert(part->written == part->total);
    if (fsync(part->file)) return ls_checkpoint_write_failed(part->path, errno, part->total, error);
    int failed = close(part->file), cause = errno;
    part->file = -1;
    if (failed) return ls_checkpoint_write_failed(part->path, cause, part->total, error);
    XXH128_hash_t hash = XXH3_128bits_digest(part->hash);
    memcpy(record->name, part->name, sizeof record->name);
    record->bytes = part->total;
    snprintf(record->hash, sizeof record->hash, "%016llx%016llx", (unsigned long long)hash.high64,
             (unsigned long long)hash.low64);
    return LS_OK;
}

void ls_part_abandon(struct ls_part *part) {
    if (part->file >= 0) close(part->file);
    part->file = -1;
    XXH3_freeState(part->hash);
    part->hash = NULL;
}
