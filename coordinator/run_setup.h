/* Everything a coordinator has resolved and checked before it listens: configuration, data, run directory, keys,
 * journal, where the attempt starts. Whatever is wrong with a run is found here, before a worker is started. */
#ifndef LS_COORDINATOR_RUN_SETUP_H
#define LS_COORDINATOR_RUN_SETUP_H

#include "common/config.h"
#include "common/keys.h"
#include "common/status.h"
#include "coordinator/allocation.h"
#include "coordinator/core.h"
#include "coordinator/journal.h"
#include "coordinator/metrics.h"
#include "coordinator/network.h"
#include "coordinator/run_directory.h"
#include "coordinator/run_generation.h"
#include "coordinator/run_start.h"

#include <stdbool.h>
#include <stdint.h>

/* What the command line says. */
struct ls_run_options {
    const char *config_path;
    const char *const *settings; /* --set, settings_count of them */
    int settings_count;
    const char *const *accepted; /* --accept, accepted_count of them: keys that may change numbers */
    int accepted_count;
    int64_t ranks;        /* -n, 0: see ls_allocation_find() */
    const char *hostfile; /* --hostfile, may be NULL */
    const char *run_dir;  /* --run-dir, NULL: runs/NAME */
    bool resume;
    bool launched;                          /* by a supervisor that starts the workers */
    const struct ls_allocation *allocation; /* what the supervisor found; NULL: still to be found */
    double started_seconds;                 /* CLOCK_MONOTONIC at which the command began; 0: now */
    /* A coordinator that takes over from one that died: config_path is RUN/config.yaml, run_dir is RUN, the attempt
     * goes on. */
    bool restarted;
    int64_t port; /* restarted: of the one before; else 0 */
};

struct ls_pulse;

struct ls_run {
    struct ls_config *config;
    char *yaml; /* resolved, as the workers get it */
    struct ls_run_data data;
    struct ls_run_directory directory;
    struct ls_keys keys;
    struct ls_journal *journal;
    struct ls_run_start start;             /* as it was found; empty when `restarted` */
    int64_t unheard_attempt, unheard_step; /* the attempt before ended without a word behind this step; 0: it did not */
    struct ls_run_generation generation;   /* of the data; number 0 when `restarted` */
    struct ls_journal_attempt attempt;     /* whose workers are served */
    struct ls_core_options core;           /* as they were when the core was made */
    struct ls_core *machine;
    const struct ls_allocation *allocation;
    struct ls_allocation own_allocation; /* where the options had none */
    struct ls_listen listen;
    char token[LS_RUN_TOKEN_SIZE]; /* in the run directory */
    int64_t ranks;                 /* of the attempt */
    int64_t total_steps, port;
    uint64_t end_position;          /* in the order of a generation of the data; UINT64_MAX: none */
    char changed[LS_CHANGED_BYTES]; /* what was accepted on resuming, "" for nothing */
    bool data_changed;              /* keys of the data are among it */
    struct ls_journal_shape shape;  /* in force; first_attempt 0: none is known yet */
    struct ls_run_facts facts;
    bool complete; /* nothing is left to do */
    /* Beaten by the coordinator as it goes on, once it serves; not the run's own. NULL: nobody looks. */
    struct ls_pulse *pulse;
};

/* Resolves and checks. On LS_OK the run's lock is held, unless `complete`. The caller releases in either case. */
enum ls_code ls_run_prepare(const struct ls_run_options *options, struct ls_run *run, struct ls_error *error);
void ls_run_release(struct ls_run *run);

/* Says why a `complete` run has nothing left to do; it may be beyond an end that was moved. */
void ls_run_tell_complete(const struct ls_run *run, char *text, size_t size);

#endif
