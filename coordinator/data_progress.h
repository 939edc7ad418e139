/* A line on standard error that says how far a long pass over data is, and the wish to stop it. */
#ifndef LS_COORDINATOR_DATA_PROGRESS_H
#define LS_COORDINATOR_DATA_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct ls_data_progress {
    const char *what;      /* "writing" */
    int64_t done, total;   /* bytes; total 0: not known */
    double started, shown; /* seconds */
    bool terminal, visible;
};

struct ls_data_progress ls_data_progress_start(const char *what, int64_t total);
/* Adds bytes done. Shows a line at most twice a second on a terminal, every ten seconds elsewhere, and none in the
 * first second. Returns false once the user wants to stop. */
bool ls_data_progress_add(struct ls_data_progress *progress, int64_t bytes);
/* Clears the line. */
void ls_data_progress_end(const struct ls_data_progress *progress);

/* From here on SIGINT, SIGTERM and SIGHUP make ls_data_progress_add return false, a second one ends the process; an
 * output that nobody reads any more is no end. */
void ls_data_progress_catch_signals(void);

#endif
