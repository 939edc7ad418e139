/* RUN/choices: how rank 0 once found products and attention to be computed fastest, for the attempts and resumed runs
 * after it, which would measure otherwise and might choose otherwise. What is in it is the device's (device.h). */
#ifndef LS_WORKER_CHOICES_H
#define LS_WORKER_CHOICES_H

#include <stdint.h>

/* The file's content (malloc'ed, the caller's) and its bytes; NULL where there is none, or a damaged one, which the log
 * says. */
void *ls_choices_read(const char *run_directory, int64_t *bytes);
/* Replaces the file, whole or not at all. Where that fails the next attempt measures again: a line in the log. */
void ls_choices_write(const char *run_directory, const void *choices, int64_t bytes);

#endif
