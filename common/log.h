/* The log: timed lines to standard error and, once opened, to a file. The one global of the project. */
#ifndef LS_COMMON_LOG_H
#define LS_COMMON_LOG_H

#include "common/status.h"

enum ls_log_level { LS_LOG_DEBUG, LS_LOG_INFO, LS_LOG_WARNING, LS_LOG_ERROR };

/* Appends log lines to `path` as well. `echo` is the least level that also goes to standard error. */
enum ls_code ls_log_open(const char *path, enum ls_log_level echo, struct ls_error *error);

/* Writes one line, in one write(2), so that lines of several processes never mix. Never called in the training step.
 * What standard error does not take within a tenth of a second is left out there. */
void ls_log(enum ls_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

void ls_log_close(void);

#endif
