/* The reporter: tells the coordinator once a second where the ranks of this node are, over a connection of its own that
 * says nothing else. Every rank has the thread; the lowest local rank that turns does the work: one whose process is
 * stopped no longer stamps its record, and after three seconds the next one takes over. The thread reads shared memory
 * and /proc, never the device, and takes no lock that training holds. */
#ifndef LS_WORKER_REPORTER_H
#define LS_WORKER_REPORTER_H

#include "common/keys.h"
#include "common/progress.h"
#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

struct ls_reporter;

/* `endpoints` and `progress` must outlive the reporter; the key is copied, and wiped in the end. */
struct ls_reporter_options {
    const char *endpoints; /* as ls_link_open() takes them */
    const struct ls_key *key;
    struct ls_progress *progress; /* of this node */
    int local_rank;
    int64_t attempt;
};

/* Starts the thread. LS_MEMORY, LS_ERROR. What it cannot do later (no socket, no coordinator) it tries again. */
enum ls_code ls_reporter_start(const struct ls_reporter_options *options, struct ls_reporter **reporter,
                               struct ls_error *error);
/* Ends the thread, within a moment. Takes NULL. */
void ls_reporter_stop(struct ls_reporter *reporter);

/* True when local rank `local_rank` is to report at `now_ns`: no lower one has looked around in the last three seconds.
 * For the thread, and tests. */
bool ls_reporter_is_due(struct ls_progress *progress, int local_rank, uint64_t now_ns);

#endif
