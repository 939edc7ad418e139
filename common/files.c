/* Whole-file reads, durable writes and safe names. */
#define _GNU_SOURCE
#include "common/files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILES_OF_OTHERS = 512 };

bool ls_file_name_is_safe(const char *name) {
    size_t length = strlen(name);
    if (length == 0 || length > 255 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) return false;
    return strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == length;
}

enum ls_code ls_file_code(int cause, enum ls_code code) {
    return cause == EMFILE || cause == ENFILE || cause == ENOMEM ? LS_MEMORY : code;
}

enum ls_scope ls_file_scope(int cause, enum ls_scope scope) {
    static const int causes[] = {EIO,      ESTALE, EREMOTEIO, ETIMEDOUT, EHOSTDOWN, EHOSTUNREACH,
                                 ENOTCONN, ENODEV, ENXIO,     EACCES,    EPERM};
    for (size_t i = 0; i < sizeof causes / sizeof *causes; i++)
        if (cause == causes[i]) return LS_SCOPE_NODE;
    return scope;
}

int ls_file_open_under(int folder, const char *name, enum ls_code code, struct ls_error *error) {
    if (!ls_file_name_is_safe(name)) {
        ls_fail(
            error, code, LS_SCOPE_CALL,
            "file name '%.100s' is not one component of [A-Za-z0-9._-]. The file that names it is damaged or hostile.",
            name);
        return -1;
    }
    int file = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (file < 0) {
        ls_fail(error, ls_file_code(errno, code), ls_file_scope(errno, LS_SCOPE_CALL), "cannot open %s: %s", name,
                errno == ELOOP ? "it is a symbolic link, which is not followed here. Copy the folder with 'cp -rL'."
                               : strerror(errno));
        return -1;
    }
    struct stat status;
    if (fstat(file, &status) || !S_ISREG(status.st_mode)) {
        ls_fail(error, code, LS_SCOPE_CALL, "%s is not a regular file", name);
        close(file);
        return -1;
    }
    return file;
}

void ls_files_allow(size_t count) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur == RLIM_INFINITY) return;
    /* The lowest free descriptor: those below it are taken. */
    const int next = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const rlim_t taken = next < 0 ? limit.rlim_cur : (rlim_t)next, wanted = taken + count + FILES_OF_OTHERS;
    if (next >= 0) close(next);
    if (limit.rlim_cur >= wanted) return;
    limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

static enum ls_code read_descriptor(int file, const char *name, size_t limit, char **bytes, size_t *count,
                                    enum ls_code code, struct ls_error *error) {
    struct stat status;
    if (fstat(file, &status) || !S_ISREG(status.st_mode))
        return ls_fail(error, code, LS_SCOPE_CALL, "%s is not a regular file", name);
    if ((uint64_t)status.st_size > limit)
        return ls_fail(error, code, LS_SCOPE_CALL, "%s has %lld bytes, more than the %zu allowed for its kind", name,
                       (long long)status.st_size, limit);
    size_t size = (size_t)status.st_size;
    char *content = malloc(size + 1);
    if (!content) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for the %zu bytes of %s", size, name);
    if (ls_pread_all(file, content, size, 0)) {
        const int cause = errno;
        free(content);
        return ls_fail(error, code, ls_file_scope(cause, LS_SCOPE_CALL), "cannot read %s: %s", name, strerror(cause));
    }
    content[size] = 0;
    *bytes = content;
    *count = size;
    return LS_OK;
}

enum ls_code ls_file_read(const char *path, size_t limit, char **bytes, size_t *count, enum ls_code code,
                          struct ls_error *error) {
    int file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (file < 0) return ls_fail(error, code, LS_SCOPE_CALL, "cannot open %s: %s", path, strerror(errno));
    enum ls_code result = read_descriptor(file, path, limit, bytes, count, code, error);
    close(file);
    return result;
}

enum ls_code ls_file_read_under(int folder, const char *name, size_t limit, char **bytes, size_t *count,
                                enum ls_code code, struct ls_error *error) {
    struct ls_error own = {.code = LS_OK};
    int file = ls_file_open_under(folder, name, code, error ? error : &own);
    if (file < 0) return error ? error->code : own.code;
    enum ls_code result = read_descriptor(file, name, limit, bytes, count, code, error);
    close(file);
    return result;
}

enum ls_code ls_file_replace(const char *path, const void *bytes, size_t count, enum ls_code code,
                             struct ls_error *error) {
    char temporary[PATH_MAX], folder[PATH_MAX];
    if (snprintf(temporary, sizeof temporary, "%s.new", path) >= (int)sizeof temporary)
        return ls_fail(error, code, LS_SCOPE_CALL, "path too long: %.200s...", path);
    int file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file < 0) return ls_fail(error, code, LS_SCOPE_CALL, "cannot create %s: %s", temporary, strerror(errno));
    if (ls_write_all(file, bytes, count) || fsync(file)) {
        int cause = errno;
        close(file);
        unlink(temporary);
        return ls_fail(error, code, LS_SCOPE_CALL, "cannot write %s: %s", temporary, strerror(cause));
    }
    close(file);
    if (rename(temporary, path))
        return ls_fail(error, code, LS_SCOPE_CALL, "cannot rename %s to %s: %s", temporary, path, strerror(errno));
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (!slash) return ls_folder_sync(".", code, error);
    slash[slash == folder] = 0;
    return ls_folder_sync(folder, code, error);
}

bool ls_file_takes(int file, int milliseconds) {
    struct pollfd item = {.fd = file, .events = POLLOUT};
    return poll(&item, 1, milliseconds) != 0;
}

void ls_files_occupy_standard(void) {
    for (int number = STDIN_FILENO; number <= STDERR_FILENO; number++) {
        if (fcntl(number, F_GETFD) >= 0) continue;
        /* The lowest free number is this one. */
        if (open("/dev/null", number == STDIN_FILENO ? O_WRONLY : O_RDONLY) != number) return;
    }
}

int ls_write_all(int file, const void *bytes, size_t count) {
    for (const char *next = bytes; count > 0;) {
        ssize_t done = write(file, next, count);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return -1;
        next += done;
        count -= (size_t)done;
    }
    return 0;
}

int ls_pwrite_all(int file, const void *bytes, size_t count, int64_t offset) {
    for (const char *next = bytes; count > 0;) {
        ssize_t done = pwrite(file, next, count, offset);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return -1;
        next += done;
        offset += done;
        count -= (size_t)done;
    }
    return 0;
}

int ls_pread_all(int file, void *bytes, size_t count, int64_t offset) {
    for (char *next = bytes; count > 0;) {
        ssize_t done = pread(file, next, count, offset);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return -1;
        if (done == 0) {
            errno = ENODATA;
            return -1;
        }
        next += done;
        offset += done;
        count -= (size_t)done;
    }
    return 0;
}

enum ls_code ls_folder_make(const char *path, enum ls_code code, struct ls_error *error) {
    char part[PATH_MAX];
    if (snprintf(part, sizeof part, "%s", path) >= (int)sizeof part)
        return ls_fail(error, code, LS_SCOPE_CALL, "path too long: %.200s...", path);
    for (char *slash = part + 1;; slash++) {
        slash = strchrnul(slash, '/');
        char end = *slash;
        *slash = 0;
        struct stat status;
        if (mkdir(part, 0755) && (errno != EEXIST || stat(part, &status) || !S_ISDIR(status.st_mode)))
            return ls_fail(error, code, LS_SCOPE_CALL,
                           "cannot make the folder %s: %s. Choose a place that exists and may be written.", part,
                           strerror(errno));
        if (!end) return LS_OK;
        *slash = '/';
    }
}

enum ls_code ls_folder_sync(const char *path, enum ls_code code, struct ls_error *error) {
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return ls_fail(error, code, LS_SCOPE_CALL, "cannot open the folder %s: %s", path, strerror(errno));
    int failed = fsync(folder), cause = errno;
    close(folder);
    if (failed) return ls_fail(error, code, LS_SCOPE_CALL, "cannot fsync the folder %s: %s", path, strerror(cause));
    return LS_OK;
}
