/* The coordinator's core: a state machine without I/O, clock or randomness; events in, actions out.
 *
 *   workers, watcher, journal, operator ---> server --- ls_core_event --->  core
 *                                            server <-- ls_core_action ---  core
 *
 * Steps are numbered from 1, as people read them: step s takes the run from s-1 to s steps done, its checkpoint is
 * "step s", and 0 is the state before the first. Positions count sequences: step s uses the next draws of the sample
 * order that are not quarantined (common/quarantine.h), from the position behind step s-1 on. Both are pure functions
 * of where the attempt starts and what is quarantined at that time, so that a step can never have two meanings within
 * an attempt.
 *
 * Positions are those of a generation of the data. A run that is resumed on other data begins a new one, at position 0
 * of its order: steps, chain and totals go on, positions and what is quarantined are the generation's own. An
 * invocation has one generation; an attempt that starts from a checkpoint of another one begins it, again at position
 * 0.
 *
 * One core serves many attempts. One that fails for a cause that a restart can mend is cleared away and followed by the
 * next, from the newest good checkpoint:
 *
 *   failing -- FAULT on disk, KILL --> clearing -- CLEARED, PREPARE --> preparing -- PREPARED, ATTEMPT --> backing off
 *                                                                                                               |
 *   running <-- every rank has joined -- waiting <--- ATTEMPT on disk, the time has come: LAUNCH ---------------+
 *
 * A restart mends lost ranks and nodes, a launcher that is gone, ranks that stay away, stalls, a checkpoint that cannot
 * be loaded (the next attempt starts from the one before) and, where the policy says so, a loss that is not finite (its
 * sequences are quarantined) and replicas that differ. It does not mend what is wrong with command line, configuration,
 * data, memory, disk or program, nor a run that never came together: a launcher that ends before any rank of the
 * invocation has joined, ranks that do not join in time before any attempt of it has assembled.
 *
 * Restarts are counted since the last progress, a commit beyond every step committed before in this invocation; after
 * max_restarts of them the run ends with the code of the last cause. An invocation is the life of a `lockstep run`: its
 * first attempt is begun by run_setup, the others by the core.
 *
 * The workers' half of the protocol:
 *  - A connection carries the reports of one or more ranks. The one that carries world rank 0 is the voice: only it
 *    receives grants, orders and acknowledgements. One connection is first in, first out, but may lose messages
 *    without notice; between connections nothing is promised.
 *  - HELLO states everything the worker holds and may be sent at any time. It is sent on connecting, when REJOIN asks
 *    for it, and when a grant, acknowledgement, commit or welcome has been awaited for a second. A REJOIN within a
 *    second of a HELLO not yet answered asks for nothing new. Until its first WELCOME a worker heeds nothing else.
 *  - After every WELCOME rank 0 sends again, in the order of the steps: STEP_DONE and VALIDATION not acknowledged, and
 *    SAVING of a save not COMMITTED; every rank sends again its PART of such a save.
 *  - A GRANT that starts behind the last granted step is ignored (one before it got lost); one that overlaps is the
 *    same grant again.
 *  - Orders apply at the next step boundary of rank 0, which spreads them in the collective that opens a step. At the
 *    boundary behind step s, before anything of step s+1, rank 0 sends SAVING{s}, then every rank writes its part,
 *    beside further steps or not, and sends PART{s}. If step s is saved already, SAVING alone answers the order. An
 *    order that comes again after it was honoured is answered by SAVING again. Nobody starts a save before COMMITTED of
 *    the one before, nor runs more than LS_CORE_WINDOW_STEPS / 2 steps beyond it. Rank 0 saves unasked at multiples of
 *    checkpoint_every, when checkpoint.every_seconds have passed since the last save, and behind the last step.
 *  - A step that makes no update because its loss or gradient is not finite is reported as skipped. With
 *    fault.nonfinite: skip that is all; else the rank sends FAULT with LS_NONFINITE, which names the step that was not
 *    finished.
 *  - A checkpoint that cannot be loaded is told by FAULT with LS_CHECKPOINT before the first step.
 *  - VALIDATION of step s is sent before SAVING{s}. After SAVING with stop, and after the last step, workers run no
 *    further step and leave when COMMITTED arrives or the server closes.
 *
 * The server's half:
 *  - It does the actions of a list in order, and hands events over one at a time.
 *  - TICK comes first and then a few times a second.
 *  - RANK_LOST is told for every joined rank whose process is gone, also for one that was gone when it joined;
 *    NODE_LOST when all of a host is, or nothing is heard of it any more, in its place. LAUNCHER_EXITED of the newest
 *    attempt launched is told to every generation that begins after it, and signals wait for the next generation.
 *  - CONNECTION_LOST is told if it is known; the core does without.
 *  - LAUNCH is asked for every attempt, the first included, and again by a coordinator that starts again: an attempt
 *    that has been launched is not launched twice. Without a launcher of ours it means that workers started by hand are
 *    served from now on, and told how to join. An attempt's number is that of its workers from LAUNCH on.
 *  - KILL is answered by CLEARED when no process of the attempt is left on any host that answers, its shared memory is
 *    removed, and no commit of it can happen any more; at once if there is nothing, or no launcher of ours (its workers
 *    are told that the attempt is over). Those of a host that does not answer leave by themselves.
 *  - PREPARE is answered by PREPARED or PREPARE_FAILED. First the checkpoints of steps not below `below_step` are set
 *    aside (renamed, not removed); then the newest good one is looked for, and damaged ones above it are set aside too.
 *    It may be asked again, by a coordinator that starts again, and then gives the same. */
#ifndef LS_COORDINATOR_CORE_H
#define LS_COORDINATOR_CORE_H

#include "common/digest.h"
#include "common/quarantine.h"
#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    LS_CORE_RANKS_MAX = 1 << 17,
    LS_CORE_ACTIONS_MAX = 32, /* the most one event can ask for */
    LS_CORE_REQUESTS_MAX = 8, /* operator requests waiting for their reply */
    /* Steps that may wait for the disk, or run beyond a save in flight, before grants pause. */
    LS_CORE_WINDOW_STEPS = 1024,
    LS_CORE_CHECKPOINTS_MAX = 64, /* committed checkpoints known at a time */
    LS_CORE_HOSTS_MAX = 64,       /* hosts with losses remembered at a time */
    LS_CORE_NODE_LOSSES = 2,      /* what the loss of a whole node counts for */
    LS_CORE_DATA_GENERATIONS_MAX = 1000,
    LS_CORE_HOST_BYTES = 64,
    LS_CORE_NUMERICS_BYTES = 256,
    LS_CORE_TEXT_BYTES = 512
};

/* A connection as the server names it; 0 is none. A name is never used twice within a generation. */
typedef uint64_t ls_connection;

/* What to do about a loss or gradient that is not finite, or spikes. */
enum ls_core_nonfinite {
    LS_NONFINITE_STOP,    /* the run ends with 7 */
    LS_NONFINITE_SKIP,    /* workers pass over the update; skips_max in a row end the run with 7 */
    LS_NONFINITE_ROLLBACK /* a restart before the step, whose sequences are quarantined */
};

/* What to do about replicas that hold different parameters. */
enum ls_core_mismatch {
    LS_MISMATCH_STOP,    /* the run ends with 1 */
    LS_MISMATCH_ROLLBACK /* a restart from a checkpoint at which they agreed */
};

/* Why ranks whose numerics id differs from the first one's are refused. */
enum ls_core_numerics {
    LS_NUMERICS_ANY,    /* they are not */
    LS_NUMERICS_FIXED,  /* train.reduction: fixed promises the same bits */
    LS_NUMERICS_COPIES, /* ranks compute the same matrices for the update (Muon), and copies are to stay equal */
};

/* What the core needs to know before its first event. Plain data, copied by ls_core_create. */
struct ls_core_options {
    /* Ranks of the attempt; 0: the first HELLO of each attempt says. Of the invocation's first attempt it is also the
     * number that is wanted. */
    int32_t world_size;
    int32_t ranks_wanted;         /* 0: world_size; of an attempt after the first, what the first one had */
    uint32_t attempt;             /* from 1: the life of the set of workers */
    uint32_t generation;          /* from 1: the life of the coordinator, over all attempts */
    int64_t start_step;           /* where the attempt starts: its checkpoint's step, 0 without one */
    int64_t start_position;       /* position behind that step */
    int64_t start_samples;        /* sequences used before, over all generations */
    int64_t data_generation;      /* of the invocation, 0 to LS_CORE_DATA_GENERATIONS_MAX */
    struct ls_digest start_chain; /* the ledger's chain there; zero at step 0 */
    int64_t global_batch;         /* sequences per step */
    int64_t steps;                /* the run ends after this many steps; 0: end_position says */
    int64_t end_position;         /* the run ends here, its last step truncated; used when steps is 0 */
    int64_t window_steps;         /* 0: LS_CORE_WINDOW_STEPS, else less than that */
    int64_t span_steps;           /* steps per grant, at least 1 */
    int64_t checkpoint_every;     /* steps; 0: only at the end and on request */
    int64_t evaluation_every;     /* steps; 0: never; passed on in WELCOME */
    int32_t checkpoints_keep;     /* newest ones kept; 0: all */
    /* Steps of the good checkpoints of this run's lineage, ascending; after a restart some are the attempt's own. */
    int64_t checkpoints[LS_CORE_CHECKPOINTS_MAX];
    int32_t checkpoints_count;
    uint32_t protocol; /* version of the messages */
    char version[32];  /* of this program: workers must be the same */
    char config_digest[33], dataset_digest[33];
    enum ls_core_numerics numerics;
    bool restarted;            /* a coordinator before this one served the attempt: its workers may be running */
    bool launched;             /* a launcher of ours runs the workers: a refused worker ends the run */
    int64_t start_timeout_ms;  /* how long ranks may take to join first */
    int64_t rejoin_timeout_ms; /* how long a known rank may stay away (fault.coordinator_timeout_seconds) */
    int64_t cause_grace_ms;    /* how long to wait for a better explanation once something is lost; 1000 is good */
    int32_t max_restarts;      /* without progress in between; 0: the first loss ends the run */
    int32_t min_ranks;         /* fewer than wanted may go on, down to this many; 0: only as many as wanted */
    /* A host that lost ranks so often is left out if there are others, else a loss so often in a row is met with fewer
     * ranks; the loss of a whole node counts for two. 0: never. */
    int32_t host_losses_max;
    int64_t backoff_ms; /* before the second restart in a row; doubles with each one after it, none before the first */
    int64_t backoff_max_ms;   /* and no more than this */
    int64_t clear_timeout_ms; /* how long the end of an attempt's processes may take */
    enum ls_core_nonfinite nonfinite;
    enum ls_core_mismatch mismatch;
    int32_t skips_max; /* skipped steps in a row that are borne; 0: any number */
};

/* ---- events: what happened ---- */

enum ls_core_event_kind {
    LS_EVENT_HELLO,
    LS_EVENT_STEP_DONE,
    LS_EVENT_VALIDATION,
    LS_EVENT_SAVING,
    LS_EVENT_PART,
    LS_EVENT_SAVE_FAILED,
    LS_EVENT_FAULT,
    LS_EVENT_CONNECTION_LOST,
    LS_EVENT_RANK_LOST,
    LS_EVENT_NODE_LOST,
    LS_EVENT_STALLED,
    LS_EVENT_REPLICA_DIFFERS,
    LS_EVENT_LAUNCHER_EXITED,
    LS_EVENT_CLEARED,
    LS_EVENT_PREPARED,
    LS_EVENT_PREPARE_FAILED,
    LS_EVENT_JOURNALED,
    LS_EVENT_JOURNAL_FAILED,
    LS_EVENT_COMMIT_DONE,
    LS_EVENT_COMMIT_FAILED,
    LS_EVENT_REQUEST,
    LS_EVENT_SIGNAL,
    LS_EVENT_TICK,
    LS_EVENT_KINDS
};

/* One rank as a HELLO describes it. Strings are NUL-terminated and already checked for control characters. */
struct ls_core_rank {
    int32_t rank;
    int64_t pid;
    char host[LS_CORE_HOST_BYTES];
    char config_digest[33], dataset_digest[33];
    char numerics[LS_CORE_NUMERICS_BYTES];
};

struct ls_core_hello {
    uint32_t attempt; /* 0: started by hand, wants to be told */
    uint32_t protocol;
    char version[32];
    int32_t world_size;
    const struct ls_core_rank *ranks; /* [ranks_count], the caller's, read during the call only */
    int32_t ranks_count;
    bool started;         /* false: has never received a WELCOME, holds nothing; the next two do not count */
    int64_t steps_done;   /* rank 0: the last step finished */
    int64_t granted_step; /* rank 0: the last step it may run */
};

/* One executed step: a report from rank 0, and the journal's record of it. */
struct ls_core_step {
    int64_t step;
    int64_t position;     /* behind the step before; filled by the core */
    int64_t end_position; /* behind this one: further on by `sequences` and what was passed over; not journaled */
    int64_t sequences;
    int64_t targets;         /* tokens that carried loss */
    double loss_sum;         /* over the targets */
    bool skipped;            /* no update was made: loss or gradient were not finite */
    struct ls_digest digest; /* of the step's samples */
    struct ls_digest chain;  /* of all steps to this one; filled by the core */
    int64_t samples;         /* used up to this step, over all generations; filled by the core, not journaled */
};

enum ls_core_request { LS_REQUEST_STOP, LS_REQUEST_CHECKPOINT };

enum ls_core_signal {
    LS_SIGNAL_REQUEUE, /* SIGTERM, SIGUSR1, the supervisor is gone: save, exit 75 */
    LS_SIGNAL_SAVE,    /* SIGUSR2, or a worker got a SIGTERM: save and go on */
    LS_SIGNAL_STOP,    /* SIGINT: finish the step, save, exit 130; the second one is NOW */
    LS_SIGNAL_NOW      /* SIGQUIT: exit 130 at once */
};

struct ls_core_event {
    enum ls_core_event_kind kind;
    ls_connection connection; /* events up to CONNECTION_LOST, and REQUEST: where it came from */
    uint32_t attempt; /* all but HELLO, CONNECTION_LOST, JOURNALED to JOURNAL_FAILED, REQUEST to TICK: of which one */
    /* STEP_DONE, VALIDATION: further metrics; PREPARED: what else an attempt begins with. Handed on in the JOURNAL
     * action of the call. */
    const void *payload;
    union {
        struct ls_core_hello hello;
        struct ls_core_step step; /* STEP_DONE */
        struct {
            int64_t step;
        } validation;
        struct {
            int64_t step;
            uint64_t order; /* the highest order id honoured so far, 0: none */
            bool stop;      /* no further step will run */
        } saving;
        struct {
            int64_t step;
            int32_t rank;
        } part; /* names, sizes and hashes stay with the server: see KEEP_PART */
        struct {
            int64_t step;
            int32_t rank;
            const char *text;
        } save_failed;
        struct {
            int32_t rank;
            int64_t step;
            enum ls_code code;
            const char *text;
            bool unloadable;  /* of code LS_CHECKPOINT: it is the one that the attempt starts from, and is no good */
            const char *host; /* of a rank that has not joined; else, and where NULL or "": where it joined from */
        } fault;              /* a rank's own last words */
        struct {
            int32_t rank;
            const char *host; /* of a rank that has not joined; else, and where NULL: where it joined from */
            const char *how;  /* "killed by signal 9"; both are read during the call only */
        } rank_lost;
        struct {
            const char *host; /* every rank there is gone, or out of reach */
            const char *how;  /* "not heard for 9 s. Check its network."; both are read during the call only */
        } node_lost;
        struct {
            int32_t rank;     /* that others wait for; -1: none in particular */
            const char *host; /* "": that of the rank, if it has joined */
            const char *text; /* the verdict, told as it is; both are read during the call only */
        } stalled;
        struct {
            int64_t step;      /* behind which copies were found to differ */
            int64_t good_step; /* behind which they were last found equal; below the attempt's start: never */
            int32_t rank;      /* whose copy differs; -1: it cannot be told */
        } replica_differs;
        struct {
            int status; /* exit status, or minus the signal that killed it: then it is the cause */
            /* Of its output, told when no rank ever came, and what to do about it; "" or NULL: none. Both are read
             * during the call only. */
            const char *said, *advice;
            int code; /* of a rank that made it end, as it says; 0: it says nothing of one. The rest goes with it: */
            int32_t rank;     /* -1: it does not say which */
            int killed_by;    /* the signal that the code stands for; 0: none */
            const char *host; /* where it was started, if it has not joined; "" or NULL: not known. For the call only */
        } launcher_exited;
        struct {
            int64_t step, position, samples; /* of the newest good checkpoint; 0: none */
            int64_t data_generation;         /* that the position is of */
            struct ls_digest chain;
            int32_t slots, slots_all; /* ranks that can be placed, without the hosts left out and with them; -1: any,
                                       * hosts are not ours to choose */
            int32_t fewer; /* the most ranks below those of this attempt that the run can have; 0: it cannot */
        } prepared;
        struct {
            enum ls_code code;
            const char *text;
        } prepare_failed;
        struct {
            uint64_t sequence; /* every record up to this one survives a crash */
        } journaled;
        struct {
            const char *text;
        } journal_failed;
        struct {
            int64_t step;
            const char *text; /* COMMIT_FAILED */
        } commit;
        enum ls_core_request request;
        enum ls_core_signal signal;
        struct {
            int64_t now_ms; /* monotonic, never goes back */
        } tick;
    };
};

/* ---- records: what the journal keeps ---- */

enum ls_core_record_kind {
    LS_RECORD_JOINED, /* every rank of the attempt is here */
    LS_RECORD_STEP,
    LS_RECORD_VALIDATION,
    LS_RECORD_STOP, /* somebody asked for the end; survives a restart of the coordinator */
    LS_RECORD_COMMIT,
    LS_RECORD_FAULT,      /* why the attempt is over, once per attempt; nothing of it counts any more */
    LS_RECORD_QUARANTINE, /* sequences that attempts after this one pass over */
    LS_RECORD_ATTEMPT,    /* a restart: the first record of the new attempt */
    LS_RECORD_END,
    LS_RECORD_KINDS
};

struct ls_core_record {
    enum ls_core_record_kind kind;
    uint64_t sequence; /* counts from 1 in each generation */
    uint32_t attempt, generation;
    const void *payload; /* the event's: STEP, VALIDATION, ATTEMPT */
    union {
        struct {
            int32_t world_size;
        } joined;
        struct ls_core_step step;
        struct {
            int64_t step;
        } validation;
        struct {
            enum ls_code code; /* what the run will end with */
        } stop;
        struct {
            int64_t step;
            int64_t position;
            struct ls_digest chain;
        } commit;
        struct {
            enum ls_code code;
            enum ls_scope scope;           /* what is lost: a rank, a node or, whatever else it is, the job */
            int32_t rank;                  /* -1: none in particular */
            int64_t step;                  /* the last one done */
            int64_t below_step;            /* FAULT: checkpoints from this step on are not to be used; 0: all may be */
            bool restart;                  /* FAULT: another attempt follows, unless somebody stops the run */
            char host[LS_CORE_HOST_BYTES]; /* of the rank or node, "" if unknown */
            char text[LS_CORE_TEXT_BYTES];
        } end; /* FAULT and END */
        struct {
            int64_t step;     /* that was not finite */
            int64_t from, to; /* positions */
            int64_t data_generation;
        } quarantine;
        struct {
            int32_t world_size; /* 0: the first HELLO says */
            int32_t restarts;   /* since the last progress, this one included */
            int64_t best_step;  /* the highest one committed in this invocation so far */
            int64_t start_step, start_position, start_samples;
            bool begins_generation; /* of the data, behind the step: its checkpoint is of another one */
            struct ls_digest start_chain;
            int64_t lost_steps;  /* done by the attempt before, and to be done again */
            bool hosts_forgiven; /* hosts that were left out are needed, and their losses forgotten */
        } attempt_begun;         /* ATTEMPT */
    };
};

/* ---- actions: what to do about it ---- */

enum ls_core_action_kind {
    LS_ACTION_WELCOME, /* the connection is in; tells it the shape of the run */
    LS_ACTION_REFUSE,  /* tell it code and text; it is not in */
    LS_ACTION_REJOIN,  /* a message came that cannot be placed: ask for a HELLO */
    LS_ACTION_GRANT,   /* rank 0 may run the steps after from_step up to to_step */
    LS_ACTION_ORDER, /* rank 0: save, or save and stop, at the next boundary; sent again after a HELLO until honoured */
    LS_ACTION_ACK,   /* rank 0: steps and validations up to these survive a crash, forget them */
    LS_ACTION_COMMITTED, /* the checkpoint of `step` is committed: to connection, or to every joined one if it is 0 */
    LS_ACTION_REPLY,     /* to an operator */
    LS_ACTION_JOURNAL,   /* append the record now, fsync when it suits, then say JOURNALED */
    LS_ACTION_KEEP_PART, /* keep what this PART says about files for the COMMIT of its step; forget other steps' */
    LS_ACTION_COMMIT,    /* write trainer.json and manifest.json, rename, fsync; then COMMIT_DONE or COMMIT_FAILED */
    LS_ACTION_PRUNE,     /* the checkpoint of `step` is no longer needed */
    LS_ACTION_LAUNCH,    /* start the attempt's workers, leaving out the hosts that ls_core_excluded names */
    LS_ACTION_KILL,      /* kill what is left of the attempt, then say CLEARED */
    LS_ACTION_PREPARE,   /* find what the next attempt can start from and on, then say PREPARED */
    LS_ACTION_END,       /* the last action ever: flush the journal, tell everybody, exit with code and text */
    LS_ACTION_KINDS
};

struct ls_core_action {
    enum ls_core_action_kind kind;
    ls_connection connection; /* WELCOME to REPLY: where to send it */
    uint32_t attempt, generation;
    union {
        struct {
            int32_t world_size;
            int64_t start_step, start_position; /* which checkpoint to load, and the first sequence behind it */
            struct ls_digest start_chain;
            int64_t end_step, end_position;
            int64_t global_batch;
            int64_t checkpoint_every, evaluation_every;
            int64_t acked_step, acked_validation; /* as in ACK */
        } welcome;                                /* and what is quarantined: ls_core_quarantine */
        struct {
            enum ls_code code;
            char text[LS_CORE_TEXT_BYTES];
        } message; /* REFUSE, REPLY, END */
        struct {
            int64_t from_step, to_step; /* steps from_step + 1 to to_step */
            /* Sequences [from, to) that are not quarantined: global_batch each, the rest in the last. */
            int64_t from_position, to_position;
        } grant;
        struct {
            uint64_t id; /* rises over all generations of an attempt */
            bool stop;   /* after the save, run no further step */
        } order;
        struct {
            int64_t step, validation;
        } ack;
        struct {
            int64_t step;
        } committed;
        struct ls_core_record record; /* JOURNAL */
        struct {
            int64_t step;
            int32_t rank;
            bool first; /* of its save: parts kept before are of another, whatever its step */
        } part;
        struct {
            int64_t step, position, samples;
            struct ls_digest chain;
        } commit;
        struct {
            int64_t step;
        } prune;
        struct {
            int32_t world_size; /* 0: any */
            int64_t start_step, start_position, start_samples;
            struct ls_digest start_chain;
        } launch;
        struct {
            int64_t below_step; /* INT64_MAX: all checkpoints may be used */
        } prepare;
    };
};

struct ls_core_actions {
    int count;
    struct ls_core_action list[LS_CORE_ACTIONS_MAX];
};

/* ---- the machine ---- */

enum ls_core_phase {
    LS_PHASE_WAITING, /* for ranks to join */
    LS_PHASE_RUNNING,
    LS_PHASE_STOPPING,  /* a stop was asked for */
    LS_PHASE_FAILING,   /* something is lost; waiting a moment for the best explanation */
    LS_PHASE_CLEARING,  /* the attempt is over; its processes are being ended */
    LS_PHASE_PREPARING, /* a checkpoint to go on from is being looked for */
    LS_PHASE_BACKOFF,   /* the next attempt waits for its time */
    LS_PHASE_ENDED
};

/* What `status` shows. */
struct ls_core_status {
    enum ls_core_phase phase;
    uint32_t attempt, generation;
    int32_t world_size, ranks_joined;
    int64_t start_step, start_position, end_step, end_position;
    int64_t step, position; /* executed */
    int64_t samples;        /* sequences used up to it, over all generations of the data */
    int64_t granted_step;
    int64_t journaled_step; /* survives a crash of the coordinator */
    int64_t committed_step; /* survives a crash of everything; the attempt's start if nothing was saved since */
    int64_t saving_step;    /* 0: no save in flight */
    int32_t parts_present;  /* of world_size */
    struct ls_digest chain;
    enum ls_code stop_code; /* LS_OK: no stop asked for */
    int32_t restarts;       /* since the last progress */
    int32_t restarts_all;   /* in this invocation */
    int64_t quarantined;    /* sequences that are passed over, in all */
    int32_t skips;          /* skipped steps in a row, up to the last one done */
    /* Messages that changed nothing, since this generation began. */
    uint64_t old_attempt, duplicates, unplaced, refused;
};

struct ls_core;

/* Allocates everything the core will ever use. Errors are LS_USAGE (a shape that makes no sense) and LS_MEMORY. */
enum ls_code ls_core_create(const struct ls_core_options *options, struct ls_core **core, struct ls_error *error);
void ls_core_destroy(struct ls_core *core);

/* Between create and the first event, hand in the journal's records in the order written: of every attempt at least
 * QUARANTINE and, for a coordinator that starts again (`restarted`), all but STEP and VALIDATION, and all of its own
 * attempt. What does not matter is passed over. LS_DATA when steps are missing, the chain does not hold, or what is
 * quarantined cannot be. */
enum ls_code ls_core_restore(struct ls_core *core, const struct ls_core_record *record, struct ls_error *error);

/* Takes one event and lists in `actions` (emptied first) what is to be done, in this order. Never fails: what is wrong
 * with an event becomes an action or a count. After END every further event gives an empty list. */
void ls_core_handle(struct ls_core *core, const struct ls_core_event *event, struct ls_core_actions *actions);

/* True if the connection carries a joined rank. The server answers other messages of a worker that is not joined with
 * REJOIN too. */
bool ls_core_is_joined(const struct ls_core *core, ls_connection connection);

/* True while a request of the connection waits for its REPLY. The server answers the pulses of an operator whose
 * request is not known, because a coordinator before this one had it, with REJOIN: it asks again. */
bool ls_core_is_asked(const struct ls_core *core, ls_connection connection);

void ls_core_read_status(const struct ls_core *core, struct ls_core_status *status);

/* What the present attempt passes over, positions of its generation of the data. The core's; changes when an attempt
 * begins (ATTEMPT) only. */
const struct ls_quarantine *ls_core_quarantine(const struct ls_core *core);

/* Name of the index-th host (from 0) that is left out of the next LAUNCH, NULL behind the last. The core's, until the
 * next event. */
const char *ls_core_excluded(const struct ls_core *core, int index);

/* One word for each kind: "hello", "grant", ... Static storage. */
const char *ls_core_event_name(enum ls_core_event_kind kind);
const char *ls_core_action_name(enum ls_core_action_kind kind);
const char *ls_core_record_name(enum ls_core_record_kind kind);
const char *ls_core_phase_name(enum ls_core_phase phase);

#endif
