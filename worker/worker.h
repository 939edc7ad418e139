/* The worker: one rank from the coordinator's welcome to the end of the run. World rank 0 holds the session with the
 * coordinator and is its voice; the others hear of everything through collectives. Knows nothing of MPI or signals. */
#ifndef LS_WORKER_WORKER_H
#define LS_WORKER_WORKER_H

#include "common/progress.h"
#include "common/status.h"
#include "worker/comm/comm.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct ls_worker_options {
    const char *endpoints; /* tcp://HOST:PORT, several separated by commas */
    const char *key_path;  /* rank 0: the key file, NULL: `key_text` holds its text */
    char *key_text;        /* wiped once it was used */
    int64_t attempt;       /* these workers were started for, 0: not known */
    struct ls_comm *comm;
    bool logs;                    /* this process is this rank: its log goes to RUN/logs/rank-N.log */
    bool reports;                 /* this process reports where its node's ranks are, when it is its turn */
    struct ls_progress *progress; /* of this node, NULL: opened once run and attempt are known */
    /* Ends the process when the training thread is stuck in a lost collective on a GPU: called by another thread, must
     * not return. */
    void (*leave)(const struct ls_error *error);
    double connect_seconds;         /* every host tries to reach the coordinator for so long, 0: 30 s */
    const atomic_bool *save_wished; /* set by a signal handler: ask for a save; NULL: never */
};

struct ls_worker;

/* Opens the session, joins, loads, and trains until the run ends. Returns the exit code of this rank: LS_OK, what a
 * stop asked for (LS_REQUEUE, LS_STOPPED; *error tells so), or that of *error. The coordinator has been told by then.
 * After an error that is not a stop, collectives may hang: the process leaves by _exit(). */
enum ls_code ls_worker_create(const struct ls_worker_options *options, struct ls_worker **worker,
                              struct ls_error *error);
enum ls_code ls_worker_run(struct ls_worker *worker, struct ls_error *error);
/* True when every rank has the same error and rank 0 speaks of it. */
bool ls_worker_error_is_shared(const struct ls_worker *worker);
/* Writes the exit code into the progress record. */
void ls_worker_mark_exit(struct ls_worker *worker, int code);
/* Says goodbye, frees everything; after an error only where no collective can be under way. */
void ls_worker_destroy(struct ls_worker *worker);

#endif
