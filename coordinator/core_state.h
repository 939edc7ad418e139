/* Inside the core: its state, and what its event handlers (core_join.c, core_span.c, core_checkpoint.c, core_stop.c,
 * core_cause.c, core_recover.c) share.
 *
 *   start_step <= committed_step <= journaled_step <= done_step <= granted_step <= end_step
 *                 (folders)         (fsynced)         (reported)   (rank 0 may run)
 *
 * holds at all times, but for committed_step right after a restart whose journal is still to be restored. */
#ifndef LS_COORDINATOR_CORE_STATE_H
#define LS_COORDINATOR_CORE_STATE_H

#include "coordinator/core.h"
#include "coordinator/core_mutation.h"

#include <assert.h>

/* A rank as it joined. */
struct core_rank {
    bool known;               /* has joined in this generation */
    ls_connection connection; /* 0: away */
    bool lost;                /* its process is gone */
    int64_t pid;
    char host[LS_CORE_HOST_BYTES];
};

/* A host that lost ranks in this invocation. */
struct core_host {
    char name[LS_CORE_HOST_BYTES];
    int32_t losses; /* that of the host as a whole counts for LS_CORE_NODE_LOSSES */
};

/* What is remembered of a step that was done: slot step % LS_CORE_WINDOW_STEPS. */
struct core_step {
    int64_t step;
    struct ls_digest digest, chain;
    uint64_t sequence;            /* of its record; 0: restored, survives already */
    uint64_t validation_sequence; /* of its validation's record; 0: none, or restored */
};

/* A checkpoint on its way. */
struct core_save {
    bool open;
    bool announced;  /* SAVING came; before it, parts of other connections may have come */
    bool committing; /* COMMIT was asked for, its result is awaited */
    int64_t step;
    uint64_t order; /* the highest order it honours */
    int32_t parts_present;
};

struct core_request {
    ls_connection connection; /* 0: free */
    enum ls_core_request kind;
    uint64_t order; /* CHECKPOINT: the order that fulfils it */
};

/* How well an event explains the end of an attempt; the first event of the highest rank is told to the user. */
enum core_cause {
    CAUSE_NONE,
    CAUSE_LAUNCHER,        /* the launcher is gone, nobody knows why */
    CAUSE_COMMUNICATION,   /* a rank says that a peer is gone: a consequence */
    CAUSE_RANK_LOST,       /* a process is gone: often the origin */
    CAUSE_NODE_LOST,       /* and all others of its host too */
    CAUSE_LAUNCHER_KILLED, /* and its ranks died of it */
    CAUSE_EXACT            /* a rank said what is wrong with it, or the core knows: nothing better can come */
};

/* Who or what is to blame for the end of an attempt. */
struct core_blame {
    enum core_cause cause;
    enum ls_code code;
    enum ls_scope scope;
    int32_t rank;       /* -1: none in particular */
    const char *host;   /* "": unknown; NULL: that of the rank */
    int64_t below_step; /* not 0: a restart from a checkpoint before this step mends it */
};

/* Where between two attempts the core is. */
enum core_recovery {
    RECOVERY_NONE,
    RECOVERY_CLEARING,  /* waits for CLEARED */
    RECOVERY_PREPARING, /* waits for FAULT to be on disk, then for PREPARED */
    RECOVERY_BACKOFF    /* the next attempt has begun; waits for ATTEMPT to be on disk and for its time */
};

struct ls_core {
    struct ls_core_options options; /* its parts that tell of the attempt are those of the present one */
    struct ls_quarantine quarantine;
    int64_t end_step, end_position;
    int64_t now_ms; /* of the last TICK; -1: none yet */

    /* Over the attempts of the invocation. */
    int32_t ranks_wanted; /* 0: any number */
    bool ever_joined, ever_assembled;
    int32_t restarts, restarts_all;
    int64_t best_step; /* the highest one ever committed: one above it is progress */
    struct core_host hosts[LS_CORE_HOSTS_MAX];
    int32_t hosts_count;

    enum core_recovery recovery;
    bool launched;                         /* LAUNCH was asked for, in this generation, for the present attempt */
    int64_t recovery_since_ms;             /* of its present phase; -1: no TICK since */
    uint64_t fault_sequence;               /* of the record FAULT, 0: none yet */
    uint64_t attempt_sequence;             /* of the record ATTEMPT */
    bool prepare_asked;                    /* and not answered */
    struct ls_quarantine_range bad;        /* what attempts after the present one pass over too; 0, 0: nothing */
    int32_t skips;                         /* skipped steps in a row */
    bool restored;                         /* the first event has come */
    bool begun;                            /* the first TICK has come */
    uint32_t restored_attempt;             /* of the last record restored, 0: none */
    bool restored_fault, restored_restart; /* the attempt is over: its end is still to be seen to */

    int32_t world_size; /* 0: not known yet */
    int32_t ranks_capacity, ranks_known, ranks_here;
    struct core_rank *ranks; /* [ranks_capacity] */
    char numerics[LS_CORE_NUMERICS_BYTES];
    bool assembled;           /* every rank has joined the attempt once */
    int64_t missing_since_ms; /* -1: nobody is missing */

    int64_t granted_step, done_step, journaled_step;
    int64_t validation_step, validation_journaled; /* -1: none */
    uint64_t sequence, journaled_sequence;
    struct core_step *steps; /* [LS_CORE_WINDOW_STEPS] */

    struct core_save save;
    uint8_t *parts; /* [ranks_capacity], 1: present in `save` */
    int64_t committed_step;
    int32_t checkpoints_count;
    int64_t checkpoints[LS_CORE_CHECKPOINTS_MAX];

    uint32_t order_count;
    uint64_t checkpoint_order; /* not honoured yet; 0: none */
    uint64_t stop_order;       /* once the wish is durable; 0: none */
    enum ls_code stop_code;    /* LS_OK: no wish to stop */
    /* Records of the wish: the first one makes it an order, the latest one (its code may change) is what is confirmed.
     */
    uint64_t stop_first_sequence, stop_sequence; /* 0: none, or durable */
    bool stop_signalled;                         /* by SIGINT: the next one ends at once */
    int64_t stopped_step;                        /* rank 0 stops behind this step; -1: it has not said so */
    struct core_request requests[LS_CORE_REQUESTS_MAX];

    enum core_cause cause;
    enum ls_code cause_code;
    enum ls_scope cause_scope;
    int32_t cause_rank;
    int64_t cause_below; /* as in struct core_blame */
    char cause_host[LS_CORE_HOST_BYTES];
    char cause_text[LS_CORE_TEXT_BYTES];
    int64_t cause_since_ms; /* -1: not seen by a TICK yet */
    bool launcher_exited, journal_failed;
    bool rank_ended_early; /* before it joined: the launcher works, doing it again may help */

    bool ended;
    uint64_t old_attempt, duplicates, unplaced, refused;
};

/* ---- core.c ---- */

/* Sets everything that belongs to an attempt to its beginning, as options and quarantine tell. */
void core_begin_attempt(struct ls_core *core);

/* Appends an action with the attempt and generation filled in, the rest zero. */
struct ls_core_action *core_act(const struct ls_core *core, struct ls_core_actions *out, enum ls_core_action_kind kind,
                                ls_connection connection);
/* Appends a JOURNAL action with the next sequence; the caller fills in the record's own part. */
struct ls_core_record *core_journal(struct ls_core *core, struct ls_core_actions *out, enum ls_core_record_kind kind);
/* The position behind `step`, start_step <= step <= end_step. */
int64_t core_position(const struct ls_core *core, int64_t step);
/* How many sequences `step` uses, start_step < step <= end_step. */
int64_t core_sequences(const struct ls_core *core, int64_t step);
/* Sequences used up to `step`, start_step <= step <= end_step, over all generations of the data. */
int64_t core_samples(const struct ls_core *core, int64_t step);
/* What is remembered of `step`, NULL if it is not done or too long ago. */
struct core_step *core_step_find(struct ls_core *core, int64_t step);
/* Connection that carries rank 0, 0 if it is away. */
ls_connection core_voice(const struct ls_core *core);
/* For messages: the host of a rank, "unknown host" if it never joined. */
const char *core_host(const struct ls_core *core, int32_t rank);

/* ---- core_join.c ---- */
void core_on_hello(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_on_connection_lost(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_check_missing(struct ls_core *core, struct ls_core_actions *out);
/* True for a message from rank 0's connection; otherwise counts it and asks for a HELLO. */
bool core_is_voice(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
bool core_is_joined(const struct ls_core *core, ls_connection connection);
void core_ask_rejoin(struct ls_core *core, ls_connection connection, struct ls_core_actions *out);

/* ---- core_span.c ---- */
void core_on_step_done(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_on_validation(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_on_journaled(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_on_journal_failed(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
/* Grants the next span if rank 0 is here and runs low. */
void core_grant_ahead(struct ls_core *core, struct ls_core_actions *out);
/* Books `step` as done and advances the chain; shared by reports and restored records. */
void core_book_step(struct ls_core *core, const struct ls_core_step *step, uint64_t sequence);

/* ---- core_checkpoint.c ---- */
void core_on_saving(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_on_part(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_on_save_failed(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_on_commit_done(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_on_commit_failed(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
/* Asks for the commit once every part is here and every step to it is durable. */
void core_try_commit(struct ls_core *core, struct ls_core_actions *out);
/* A commit beyond all before it is progress: restarts are counted anew. */
void core_note_progress(struct ls_core *core);
/* True if the save in flight needs nothing more from the workers. */
bool core_commit_will_come(const struct ls_core *core);

/* ---- core_cause.c ---- */
void core_on_fault(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_on_rank_lost(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_on_node_lost(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_on_stalled(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_on_replica_differs(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_on_launcher_exited(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
/* Notes why the attempt must end; ends it at once if nothing better can come. */
void core_blame(struct ls_core *core, const struct core_blame *blame, struct ls_core_actions *out, const char *format,
                ...) __attribute__((format(printf, 4, 5)));
/* The same for what takes the whole run with it. `rank` is -1 for none in particular. */
void core_fail(struct ls_core *core, enum core_cause cause, enum ls_code code, int32_t rank,
               struct ls_core_actions *out, const char *format, ...) __attribute__((format(printf, 6, 7)));
/* Between two attempts: what keeps the next one from beginning outweighs what ended the last; nobody is to blame. The
 * caller says it in cause_text. */
void core_blame_instead(struct ls_core *core, enum ls_code code);
/* Ends the attempt for the noted cause if its time has come; called on TICK and after a commit. */
void core_check_cause(struct ls_core *core, struct ls_core_actions *out);
/* Ends the run for the noted cause; `why` says why no attempt follows, "" if that needs no words. */
void core_end_for_cause(struct ls_core *core, const char *why, struct ls_core_actions *out);
/* The sequences of the step that the noted cause wants passed over: {0, 0} if it wants none. */
struct ls_quarantine_range core_bad_range(const struct ls_core *core);

/* ---- core_recover.c ---- */
void core_on_cleared(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_on_prepared(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_on_prepare_failed(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
/* The attempt is over, another one is to follow: clears it away. FAULT is in the journal, or on its way. */
void core_begin_recovery(struct ls_core *core, struct ls_core_actions *out);
/* What waits for time or disk: LAUNCH, PREPARE, the limit on clearing. */
void core_go_on_recovering(struct ls_core *core, struct ls_core_actions *out);
/* Asks for the workers of the present attempt. */
void core_launch(struct ls_core *core, struct ls_core_actions *out);
/* Counts a loss of `scope` for the host `name`, "" for none. */
void core_count_loss(struct ls_core *core, const char *name, enum ls_scope scope);
bool core_host_is_excluded(const struct ls_core *core, const struct core_host *host);

/* ---- core_stop.c ---- */
void core_on_request(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
void core_on_signal(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *out);
/* Sends rank 0 the orders it has not honoured. */
void core_send_orders(struct ls_core *core, struct ls_core_actions *out);
/* More of the journal is durable: answers those who asked for a stop and orders it, once a crash would not forget it.
 */
void core_stop_journaled(struct ls_core *core, struct ls_core_actions *out);
/* Tells operators who wait for a save that it will not come. */
void core_refuse_saves(struct ls_core *core, struct ls_core_actions *out);
/* Answers the operator requests that a save honouring `order` fulfils. */
void core_reply_saved(struct ls_core *core, uint64_t order, int64_t step, struct ls_core_actions *out);
/* Ends the run if it is complete, or stopped with everything saved. */
void core_check_finished(struct ls_core *core, struct ls_core_actions *out);
/* Ends the run as somebody asked for it. */
void core_end_stopped(struct ls_core *core, struct ls_core_actions *out);
/* Workers are gone: ends the run as asked if a stop was asked for and nothing is left to save; returns true then. */
bool core_end_if_saved(struct ls_core *core, struct ls_core_actions *out);
/* The last act. `kill`: workers may still be running. */
void core_end(struct ls_core *core, enum ls_code code, bool kill, const char *text, struct ls_core_actions *out);

#endif
