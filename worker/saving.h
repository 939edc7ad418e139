/* Saving: a worker's half of the protocol by which a checkpoint comes to be (coordinator/core.h): when one is due, who
 * writes what, what the coordinator is told and when, and what has to be waited for.
 *
 *     boundary behind step s: SAVING, rank 0 makes the folder, every rank begins to write
 *     steps go on; the collective that opens each counts the ranks that have written
 *     all have: their parts are gathered, PART for each; the coordinator commits and says COMMITTED
 *
 * What is waited for: with checkpoint.async off, behind the last step and for a stop, everything; else only a save that
 * is due before the one before is committed. Every rank has the same state here: all decisions are made from what the
 * opening collective spread. */
#ifndef LS_WORKER_SAVING_H
#define LS_WORKER_SAVING_H

#include "common/config.h"
#include "common/status.h"
#include "common/wire.h"
#include "worker/comm/comm.h"
#include "worker/session.h"
#include "worker/trainer.h"

#include <stdbool.h>

struct ls_saving;

/* What it points to must outlive it. */
struct ls_saving_options {
    const struct ls_config *config;
    const struct ls_welcome *welcome;
    struct ls_comm *comm;
    struct ls_trainer *trainer;
    struct ls_session *session; /* rank 0, else NULL */
    /* Rank 0: true when the run is over, with the reason where there is one. */
    bool (*is_over)(void *context, const struct ls_session_orders *orders, struct ls_error *reason);
    void *context;
};

/* LS_MEMORY. */
enum ls_code ls_saving_create(const struct ls_saving_options *options, struct ls_saving **saving,
                              struct ls_error *error);
/* Takes NULL. */
void ls_saving_destroy(struct ls_saving *saving);

/* Before a boundary: fills in what this rank says of saves there. `session` on rank 0, else NULL. */
void ls_saving_prepare(struct ls_saving *saving, const struct ls_session_orders *session,
                       struct ls_trainer_orders *orders);
/* Rank 0: true when the coordinator asks for a save, or an interval has passed, that has not been begun. */
bool ls_saving_is_asked(const struct ls_saving *saving, const struct ls_session_orders *session);
/* True from the beginning of a save until the parts of all ranks are gathered. */
bool ls_saving_is_writing(const struct ls_saving *saving);
/* Collective, behind a boundary that brought `orders`, unless all leave: does what is due. `finished`: the last step of
 * the run is done. With a stop, or finished, it returns when everything is committed. A rank that cannot write is told
 * to the coordinator, which ends the run. LS_COMMUNICATION, or the reason why rank 0 was not to wait any longer, then
 * with *shared true: every rank has it. */
enum ls_code ls_saving_at_boundary(struct ls_saving *saving, const struct ls_trainer_orders *orders, bool finished,
                                   bool *shared, struct ls_error *error);
/* Seconds that this rank has spent here since the last call. */
double ls_saving_take_seconds(struct ls_saving *saving);

#endif
