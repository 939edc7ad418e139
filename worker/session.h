/* The session with the coordinator, held by world rank 0: a thread owns the socket, the training thread exchanges plain
 * structs with it and never waits for the network. Reconnects with back-off and re-joins a restarted coordinator;
 * reports are kept until acknowledged.
 *
 * `lockstep run` starts workers with this environment: LOCKSTEP_COORDINATOR (endpoints), LOCKSTEP_KEY_FILE="-" (the
 * key's text is on rank 0's standard input, up to its end), LOCKSTEP_RUN_ID and LOCKSTEP_ATTEMPT (for the progress
 * file, before MPI_Init). By hand: --coordinator and --key, or the same two variables with a path. */
#ifndef LS_WORKER_SESSION_H
#define LS_WORKER_SESSION_H

#include "common/keys.h"
#include "common/status.h"
#include "common/wire.h" /* struct ls_welcome, ls_rank_info, ls_step_report, ls_part_file */

#include <stdbool.h>
#include <stdint.h>

struct ls_session;

/* Steps that may be run: [first_step, end_step), sequences from first_position on. Step numbers count from 1. */
struct ls_grant {
    int64_t first_step, end_step;
    uint64_t first_position;
};

/* What the coordinator wants at the next step boundary. */
struct ls_session_orders {
    struct ls_grant grant; /* the newest, end_step 0: none so far */
    uint64_t
        checkpoint_id; /* the newest order to save; it is honoured once ls_session_saving() names it or a later one */
    uint64_t stop_id;  /* not 0: finish the step, save, then leave with `stop_code` once that is committed */
    int stop_code;
    int64_t committed_step; /* newest checkpoint of this attempt that is committed, -1: none */
    bool ended;             /* the run is over or this worker was refused: leave with `ended_code` */
    enum ls_code ended_code;
    char ended_text[LS_WIRE_TEXT_BYTES];
};

/* Connects with the worker's key to one of `endpoints`, which are tried in turn (ls_link_open), and waits up to
 * `timeout_seconds` for the welcome. `attempt` is the one these workers were started for, 0: not known; the coordinator
 * refuses those of another. *yaml is malloc'ed. LS_COMMUNICATION names this host and what was tried; a refusal has the
 * refusal's code and text. */
enum ls_code ls_session_open(const char *endpoints, const struct ls_key *key, int64_t attempt, double timeout_seconds,
                             struct ls_session **session, struct ls_welcome *welcome, char **yaml,
                             struct ls_error *error);
/* Reports all ranks; waits until the coordinator has accepted or refused them. */
enum ls_code ls_session_join(struct ls_session *session, const struct ls_rank_info *ranks, int64_t count,
                             struct ls_error *error);
/* Where the run stands; called at every step so that a re-join can tell it. Cheap, no system call. */
void ls_session_at(struct ls_session *session, int64_t next_step);
/* The newest orders; never waits. */
void ls_session_orders(struct ls_session *session, struct ls_session_orders *orders);
/* Waits until the orders changed since the last call, at most `seconds`. */
void ls_session_wait(struct ls_session *session, double seconds);
/* Reports; copied, sent in order, kept until acknowledged. No allocation: a ring made when the ranks join, with room
 * for a part of each; step_done waits if 4096 steps are unacknowledged. */
void ls_session_step_done(struct ls_session *session, const struct ls_step_report *report);
void ls_session_validation(struct ls_session *session, int64_t step, double loss, double bits_per_byte);
/* World rank 0, at the boundary behind `step` and before anything of the next one: this step is being saved. `order_id`
 * is the highest order honoured by it or before (0: none), `stop` that no further step will run. Rank 0 makes the build
 * folder (ls_checkpoint_begin), then every rank writes its files into it, maybe while steps go on, then comes one
 * ls_session_part() per rank, and orders.committed_step >= step in the end; before that nothing else is saved. The last
 * step is saved too. */
void ls_session_saving(struct ls_session *session, int64_t step, uint64_t order_id, bool stop);
/* The files of a rank are written and fsynced, `seconds` after it began; `optimizer_steps` for trainer.json. At most
 * LS_WIRE_FILES_MAX files. Resent until committed. */
void ls_session_part(struct ls_session *session, int64_t step, int64_t rank, int64_t optimizer_steps, double seconds,
                     const struct ls_part_file *files, int64_t count);
/* A rank could not write its part. Resent until the run ends, or this step or a later one is committed. */
void ls_session_save_failed(struct ls_session *session, int64_t step, int64_t rank, const char *text);
/* A worker got a SIGTERM: asks the coordinator, and each one that follows it, to order a save, until one begins. */
void ls_session_request_save(struct ls_session *session);
/* Says that this run ends because of an error of `rank`; waits up to a second for the coordinator to end it. `host` is
 * the rank's where it may not have joined yet, else "". */
void ls_session_fault(struct ls_session *session, int64_t rank, const char *host, int64_t step,
                      const struct ls_error *error);
/* The same for a checkpoint: it was read, and is not what it should be, so that the run has to go on from another one.
 */
void ls_session_unloadable(struct ls_session *session, int64_t rank, int64_t step, const struct ls_error *error);
/* The same for copies of the parameters that differ behind `step`, that of `rank` being wrong (-1: not known), and were
 * last found equal behind `good_step` (-1: never). */
void ls_session_replicas_differ(struct ls_session *session, int64_t rank, int64_t step, int64_t good_step,
                                const struct ls_error *error);
/* Waits up to `seconds` until everything is acknowledged, says goodbye, ends the thread. */
void ls_session_close(struct ls_session *session, double seconds);
/* Seconds since the coordinator was last heard. */
double ls_session_silence(struct ls_session *session);

#endif
