/* One file of a checkpoint while it is written: front to back, hashed on the way, fsynced at the end.
 *
 *     small file:   bytes ---> hash ---> file
 *     large file:   bytes ---> buffer, aligned ---> hash ---> file
 *
 * Large files go past the page cache where the file system allows it (O_DIRECT): a checkpoint is not read again soon,
 * and neither pushes out what is, nor leaves everything to the fsync. Elsewhere the disk is told to begin at once. */
#ifndef LS_WORKER_CHECKPOINT_PART_H
#define LS_WORKER_CHECKPOINT_PART_H

#include "common/checkpoint_folder.h"
#include "common/manifest.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of a large file's buffer; and from how many bytes on a file is large. */
enum { LS_PART_BUFFER_BYTES = 4 << 20, LS_PART_LARGE_BYTES = 32 << 20 };

struct ls_part {
    int file;                          /* -1: not open */
    char path[LS_CHECKPOINT_PATH_MAX]; /* for messages */
    char name[LS_RECORD_NAME_MAX];     /* as in the manifest */
    int64_t written, total;            /* bytes, buffered ones included */
    int64_t flushed;                   /* bytes in the file */
    bool direct;                       /* past the page cache */
    char *buffer;                      /* large: bytes [flushed, written) of the file */
    void *hash;                        /* of what was written */
};

/* Makes folder/name, empty, and reserves `total` bytes of disk where the file system can. LS_CHECKPOINT with the bytes
 * needed and free when the disk is full. ls_part_abandon() closes it. */
enum ls_code ls_part_create(struct ls_part *part, const char *folder, const char *name, int64_t total,
                            struct ls_error *error);
/* Appends bytes; never more than `total`. */
enum ls_code ls_part_write(struct ls_part *part, const void *bytes, size_t count, struct ls_error *error);
/* All `total` bytes were written: fsyncs, closes, and fills `record`. */
enum ls_code ls_part_finish(struct ls_part *part, struct ls_file_record *record, struct ls_error *error);
/* Closes what is open and frees. */
void ls_part_abandon(struct ls_part *part);

#endif
