/* The watcher: looks at the progress file of this host's ranks for processes that are gone, and says of ranks that
 * never came how far they got. The first rank found dead is the culprit: its peers die of it a moment later. */
#ifndef LS_COORDINATOR_WATCHER_H
#define LS_COORDINATOR_WATCHER_H

#include "common/status.h"
#include "coordinator/launcher_output.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ls_watcher;

/* A rank whose process is gone. */
struct ls_watcher_loss {
    int64_t rank, step;
    bool by_itself; /* it ended on purpose with `code`; else it was killed or crashed */
    bool asked;     /* it was asked to end before: a launcher does so when another rank is lost */
    enum ls_code code;
    double silent_seconds; /* since its last sign of life */
    char text[400];        /* "pid 123 is gone in phase forward", or its last words from the log, made plain */
};

enum ls_code ls_watcher_create(const char *run_dir, const char *run_id, int64_t attempt, struct ls_watcher **watcher,
                               struct ls_error *error);
void ls_watcher_destroy(struct ls_watcher *watcher);
/* Finds the next rank that is gone and was not told before; false when there is none. To be called a few times a
 * second: one that left by itself is told the second time it is found gone, after its own words had time to come. */
bool ls_watcher_poll(struct ls_watcher *watcher, struct ls_watcher_loss *loss);
/* The last words in the launcher's log since the attempt was started: what a rank said that could reach nobody else.
 * False when there are none; *loss has rank 0, `by_itself`, code and text. */
bool ls_watcher_read_launcher(const struct ls_watcher *watcher, struct ls_watcher_loss *loss);
/* Why the launcher could start nobody, by its log since the attempt was started, made plain; empty when that says
 * nothing, or too much to have all of it. */
void ls_watcher_read_reason(const struct ls_watcher *watcher, struct ls_launcher_reason *reason);
/* Says how far each of `ranks` ranks of this host got, as "rank 0 (pid 12) is in phase join; ranks 1 to 3 have not
 * started". */
void ls_watcher_describe(struct ls_watcher *watcher, int64_t ranks, char *text, size_t size);

#endif
