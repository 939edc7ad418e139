/* The reporter: tells the coordinator once a second where the ranks of this node are, over a connection of its own that
 * says nothing else. Every rank has the thread; the lowest local rank that turns does the work: one whose process is
 * stopped no longer stamps its record, and after three seconds the next one takes over. The thread reads shared memory
 * and /proc, never the device, and takes no lock that training holds.
 *
 * It is also how a rank learns that its attempt is over when nothing else can tell it: MPI may hang for ever, and the
 * launcher may be out of reach. What the working reporter hears reaches the node's other ranks through their records.
 */
#ifndef LS_WORKER_REPORTER_H
#define LS_WORKER_REPORTER_H

#include "common/keys.h"
#include "common/progress.h"
#include "common/status.h"
#include "worker/relay.h"

#include <stdbool.h>
#include <stdint.h>

struct ls_reporter;

/* `endpoints`, `progress` and `nodes` must outlive the reporter; the key is copied, and wiped in the end. */
struct ls_reporter_options {
    const char *endpoints; /* as ls_link_open() takes them */
    const struct ls_key *key;
    struct ls_progress *progress; /* of this node */
    int local_rank;
    int64_t attempt;
    /* The tree of nodes (relay.h); nodes_count 0: none. `relay`: of a node that has others below it, listening; it
     * becomes the reporter's, and is destroyed when it could not be started. NULL: none. */
    const struct ls_relay_node *nodes;
    int64_t nodes_count, node;
    struct ls_relay *relay;
    /* Called once, from the thread, when this rank has to leave: the attempt is over, or nobody has answered for too
     * long. NULL: nothing happens then. */
    void (*leave)(const struct ls_error *error);
};

/* Starts the thread. LS_MEMORY, LS_ERROR. What it cannot do later (no socket, no coordinator) it tries again. */
enum ls_code ls_reporter_start(const struct ls_reporter_options *options, struct ls_reporter **reporter,
                               struct ls_error *error);
/* From now on this rank leaves when nobody has answered its node's reports for so long. Takes NULL. */
void ls_reporter_limit_silence(struct ls_reporter *reporter, int64_t seconds);
/* Ends the thread, within a moment. Takes NULL. */
void ls_reporter_stop(struct ls_reporter *reporter);

/* True when local rank `local_rank` is to report at `now_ns`: no lower one has looked around in the last three seconds.
 * For the thread, and tests. */
bool ls_reporter_is_due(struct ls_progress *progress, int local_rank, uint64_t now_ns);

#endif
