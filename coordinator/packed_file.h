/* A file that is read from its beginning to its end, unpacked on the way: by gzip or zstd, told by its first bytes, or
 * not packed at all. Several streams one after another are one text. */
#ifndef LS_COORDINATOR_PACKED_FILE_H
#define LS_COORDINATOR_PACKED_FILE_H

#include "common/status.h"

#include <stddef.h>

struct ls_packed_file;

/* Takes over `file`, a descriptor at the file's beginning, also when it fails; `path` names it in errors and has to
 * stay. LS_MEMORY, LS_DATA. */
enum ls_code ls_packed_file_open(int file, const char *path, struct ls_packed_file **packed, struct ls_error *error);
void ls_packed_file_close(struct ls_packed_file *packed);

/* Reads up to `capacity` bytes; *count is 0 at the end and nowhere else. LS_DATA where the file cannot be read, ends in
 * the middle of a stream, or was damaged as far as its packing shows. */
enum ls_code ls_packed_file_read(struct ls_packed_file *packed, void *bytes, size_t capacity, size_t *count,
                                 struct ls_error *error);

#endif
