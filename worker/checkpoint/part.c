/* Writing one file of a checkpoint. */
#define _GNU_SOURCE
#include "worker/checkpoint/part.h"

#include "common/files.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

/* What O_DIRECT asks of memory, on any disk we know of. */
enum { BUFFER_ALIGNMENT = 4096 };

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
    const bool large = total >= LS_PART_LARGE_BYTES;
    if (large && !(part->buffer = aligned_alloc(BUFFER_ALIGNMENT, LS_PART_BUFFER_BYTES))) {
        ls_part_abandon(part);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "checkpoint: no memory to write %s", name);
    }
    const int flags = O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC;
    part->direct = large;
    part->file = open(part->path, flags | (part->direct ? O_DIRECT : 0), 0644);
    if (part->file < 0 && part->direct && errno == EINVAL) {
        part->direct = false;
        part->file = open(part->path, flags, 0644);
    }
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

static enum ls_code append(struct ls_part *part, const void *bytes, size_t count, struct ls_error *error) {
    int failed = ls_pwrite_all(part->file, bytes, count, part->flushed);
    /* A file system that takes O_DIRECT at opening may refuse it here. */
    if (failed && part->direct && errno == EINVAL) {
        part->direct = false;
        failed = fcntl(part->file, F_SETFL, 0) || ls_pwrite_all(part->file, bytes, count, part->flushed);
    }
    if (failed) return ls_checkpoint_write_failed(part->path, errno, part->total - part->flushed, error);
    part->flushed += (int64_t)count;
    return LS_OK;
}

static enum ls_code flush(struct ls_part *part, size_t count, struct ls_error *error) {
    const int64_t first = part->flushed;
    enum ls_code code = append(part, part->buffer, count, error);
    if (!code && !part->direct) sync_file_range(part->file, first, (off_t)count, SYNC_FILE_RANGE_WRITE);
    return code;
}

enum ls_code ls_part_write(struct ls_part *part, const void *bytes, size_t count, struct ls_error *error) {
    assert((int64_t)count <= part->total - part->written);
    const char *from = bytes;
    if (!part->buffer) {
        XXH3_128bits_update(part->hash, bytes, count);
        part->written += (int64_t)count;
        return append(part, bytes, count, error);
    }
    while (count > 0) {
        const size_t held = (size_t)(part->written - part->flushed), room = LS_PART_BUFFER_BYTES - held;
        const size_t taken = count < room ? count : room;
        memcpy(part->buffer + held, from, taken);
        XXH3_128bits_update(part->hash, part->buffer + held, taken);
        part->written += (int64_t)taken;
        from += taken;
        count -= taken;
        if (taken < room) break;
        enum ls_code code = flush(part, LS_PART_BUFFER_BYTES, error);
        if (code) return code;
    }
    return LS_OK;
}

/* The tail fits no block of the device. */
static enum ls_code flush_tail(struct ls_part *part, struct ls_error *error) {
    if (part->written == part->flushed) return LS_OK;
    if (part->direct && fcntl(part->file, F_SETFL, 0))
        return ls_checkpoint_write_failed(part->path, errno, part->total - part->flushed, error);
    part->direct = false;
    return flush(part, (size_t)(part->written - part->flushed), error);
}

enum ls_code ls_part_finish(struct ls_part *part, struct ls_file_record *record, struct ls_error *error) {
    assert(part->written == part->total);
    enum ls_code code = flush_tail(part, error);
    if (code) return code;
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
    free(part->buffer);
    part->buffer = NULL;
}
