/* Files: whole-file reads and durable writes, and names from outside kept inside their folder. */
#ifndef LS_COMMON_FILES_H
#define LS_COMMON_FILES_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* True for one path component of 1 to 255 characters [A-Za-z0-9._-] that is neither "." nor "..". */
bool ls_file_name_is_safe(const char *name);

/* The code of what `cause`, an errno of opening or reading, says: LS_MEMORY when this process or host has no descriptor
 * or memory left, which says nothing of the file; else `code`. */
enum ls_code ls_file_code(int cause, enum ls_code code);
/* What that error tells of: LS_SCOPE_NODE where the storage does not answer, or keeps this process out, so that nothing
 * is known of the file itself; else `scope`. */
enum ls_scope ls_file_scope(int cause, enum ls_scope scope);

/* Opens a regular file named by data from outside (a manifest, an index) under the open folder `folder`: the name must
 * be safe, links are not followed, and a FIFO, device or directory is refused without blocking. `code` is the code of
 * its errors, but see ls_file_code(). Returns a descriptor the caller closes, or -1. */
int ls_file_open_under(int folder, const char *name, enum ls_code code, struct ls_error *error);

/* Raises this process's limit on open files, where it has to be and as far as it can be, so that `count` more fit
 * beside those that are open and some hundred that others open. A limit that is too low all the same shows when a file
 * cannot be opened. */
void ls_files_allow(size_t count);

/* Reads a whole file of at most `limit` bytes into *bytes (malloc; the caller frees; a NUL follows, uncounted). */
enum ls_code ls_file_read(const char *path, size_t limit, char **bytes, size_t *count, enum ls_code code,
                          struct ls_error *error);
enum ls_code ls_file_read_under(int folder, const char *name, size_t limit, char **bytes, size_t *count,
                                enum ls_code code, struct ls_error *error);

/* Writes `path` so that after a crash it holds the old bytes or the new: temporary name, fsync, rename, fsync of the
 * folder. */
enum ls_code ls_file_replace(const char *path, const void *bytes, size_t count, enum ls_code code,
                             struct ls_error *error);

/* write(2) / pwrite(2) / pread(2) until all is done; return 0, or -1 with errno (pread: ENODATA at a premature end). */
int ls_write_all(int file, const void *bytes, size_t count);
int ls_pwrite_all(int file, const void *bytes, size_t count, int64_t offset);
int ls_pread_all(int file, void *bytes, size_t count, int64_t offset);

/* Waits up to `milliseconds` until writing a line to `file` would not wait; false: nobody reads it (a pipe that is
 * full, a terminal that was stopped). What is broken counts as ready: writing tells. */
bool ls_file_takes(int file, int milliseconds);

/* Occupies standard input, output and error where whoever started this process closed them, so that no file or socket
 * opened later gets their numbers and what is printed; reading and writing them fails as before. To be called before
 * anything is opened. */
void ls_files_occupy_standard(void);

/* Makes a folder and its parents (0755). An existing folder is success. */
enum ls_code ls_folder_make(const char *path, enum ls_code code, struct ls_error *error);
/* fsync of a folder, so that renames in it last. */
enum ls_code ls_folder_sync(const char *path, enum ls_code code, struct ls_error *error);

#endif
