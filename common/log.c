/* The log, its file and its level. */
#define _GNU_SOURCE
#include "common/log.h"

#include "common/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE_MS = 100 };

static struct {
    int file;
    enum ls_log_level echo;
} log_state = {.file = -1, .echo = LS_LOG_INFO};

enum ls_code ls_log_open(const char *path, enum ls_log_level echo, struct ls_error *error) {
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (file < 0)
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "log: cannot open %s: %s. Check the run directory's permissions.",
                       path, strerror(errno));
    ls_log_close();
    log_state.file = file;
    log_state.echo = echo;
    return LS_OK;
}

void ls_log(enum ls_log_level level, const char *format, ...) {
    static const char *const names[] = {"debug", "info", "warning", "error"};
    char line[2048];
    struct timespec now;
    struct tm parts;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &parts);
    size_t length = strftime(line, sizeof line, "%Y-%m-%d %H:%M:%S", &parts);
    length += (size_t)snprintf(line + length, sizeof line - length, ".%03ld %s ", now.tv_nsec / 1000000, names[level]);
    size_t start = length;
    va_list arguments;
    va_start(arguments, format);
    int written = vsnprintf(line + length, sizeof line - length - 1, format, arguments);
    va_end(arguments);
    if (written < 0) return;
    length += (size_t)written;
    if (length > sizeof line - 2) length = sizeof line - 2;
    line[length++] = '\n';
    if (log_state.file >= 0 && write(log_state.file, line, length) < 0) log_state.file = -1;
    /* A standard error that nobody reads must not stop who speaks. */
    if (level < log_state.echo || !ls_file_takes(STDERR_FILENO, PATIENCE_MS)) return;
    (void)!write(STDERR_FILENO, line + start, length - start);
}

void ls_log_close(void) {
    if (log_state.file >= 0) close(log_state.file);
    log_state.file = -1;
}
