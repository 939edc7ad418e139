/* A whole virtual world around the coordinator's core: disks that forget, links that lose, workers that die, users who
 * stop.
 *
 *   team (ranks, links) --- messages with delay and loss ---> coordinator (core, journal, commits) ---> disk
 *
 * Virtual time, one seed, no threads: the same seed gives the same events. world.c runs it, team.c plays the workers,
 * faults.c breaks things, oracle.c knows the truth and checks every action of the core against it. The files are
 * included by the test programs, so that the core they drive can be the library's or one compiled with planted faults.
 */
#ifndef LS_TESTS_SIM_WORLD_H
#define LS_TESTS_SIM_WORLD_H

#include "coordinator/core.h"

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum {
    RANKS_MAX = 6,
    STEPS_MAX = 64,
    RECORDS_MAX = 512,
    EVENTS_MAX = 8192,
    CHECKPOINTS_MAX = 64,
    ATTEMPTS_MAX = 12,        /* the run must be complete by then */
    ATTEMPTS_WITH_FAULTS = 5, /* from then on nothing is broken any more */
    ATTEMPT_LIMIT_MS = 900000 /* an attempt that has not ended by then hangs */
};

#define FAULT_KINDS(X)                                                                                                 \
    X(CONNECTION_BREAKS)                                                                                               \
    X(MESSAGES_VANISH)                                                                                                 \
    X(COORDINATOR_CRASHES)                                                                                             \
    X(COORDINATOR_IS_LONG_AWAY)                                                                                        \
    X(CRASH_BEFORE_END)                                                                                                \
    X(RANK_KILLED)                                                                                                     \
    X(PEERS_COMPLAIN_FIRST)                                                                                            \
    X(RANK_NEVER_JOINS)                                                                                                \
    X(WRONG_VERSION)                                                                                                   \
    X(WRONG_DATASET)                                                                                                   \
    X(WRONG_WORLD_SIZE)                                                                                                \
    X(IMPOSTOR)                                                                                                        \
    X(OLD_ATTEMPT_SPEAKS)                                                                                              \
    X(NONSENSE)                                                                                                        \
    X(SLOW_FSYNC)                                                                                                      \
    X(SLOW_COMMIT)                                                                                                     \
    X(JOURNAL_FAILS)                                                                                                   \
    X(COMMIT_FAILS)                                                                                                    \
    X(SAVE_FAILS)                                                                                                      \
    X(LATE_PART)                                                                                                       \
    X(NONFINITE)                                                                                                       \
    X(OUT_OF_MEMORY)                                                                                                   \
    X(DIGEST_CHANGES)                                                                                                  \
    X(STEP_NOT_GRANTED)                                                                                                \
    X(LAUNCHER_DIES)                                                                                                   \
    X(SIGNAL_SAVE)                                                                                                     \
    X(SIGNAL_REQUEUE)                                                                                                  \
    X(SIGNAL_STOP)                                                                                                     \
    X(SIGNAL_STOP_TWICE)                                                                                               \
    X(SIGNAL_NOW)                                                                                                      \
    X(OPERATOR_STOPS)                                                                                                  \
    X(OPERATOR_SAVES)                                                                                                  \
    X(OPERATORS_FLOOD)                                                                                                 \
    X(CHECKPOINT_DAMAGED)                                                                                              \
    X(OTHER_WORLD_SIZE)
#define FAULT_ENUM(name) FAULT_##name,
enum fault_kind { FAULT_KINDS(FAULT_ENUM) FAULT_COUNT };

/* What happened over all runs: a zero in a needed place is a test that does not test. */
struct coverage {
    uint64_t events[LS_EVENT_KINDS], actions[LS_ACTION_KINDS], records[LS_RECORD_KINDS], faults[FAULT_COUNT];
    uint64_t transitions[LS_PHASE_ENDED + 1][LS_PHASE_ENDED + 1];
    uint64_t exits[256];
    uint64_t old_attempt, duplicates, unplaced, refused, restarts, restores, resumes;
};

/* A checkpoint on disk. */
struct folder {
    int64_t step, position;
    struct ls_digest chain;
};

enum item_kind {
    ITEM_TO_CORE, /* a message of a worker arrives */
    ITEM_TO_TEAM, /* a message of the coordinator arrives */
    ITEM_LOCAL,   /* an event of the coordinator's own host: watcher, signal, operator */
    ITEM_TICK,
    ITEM_FSYNC,
    ITEM_COMMIT,      /* the rename has happened, or failed */
    ITEM_COMMIT_TOLD, /* the core learns of it */
    ITEM_START,       /* a coordinator starts */
    ITEM_CONNECT,     /* a link comes up */
    ITEM_BEAT,        /* once a second per link */
    ITEM_STEP_ENDS,
    ITEM_PART_ENDS,
    ITEM_DEATH, /* what is left of the team dies */
    ITEM_LEAVE, /* the team gives up waiting for a coordinator */
    ITEM_FAULT
};

enum message_kind {
    MESSAGE_EVENT, /* to the core: `event`; a HELLO's ranks are filled in on arrival */
    MESSAGE_BEAT,  /* to the core's server: answered with REJOIN by the server if the link is not joined */
    MESSAGE_ACTION /* to the team: `action` */
};

/* Something that will happen. */
struct item {
    int64_t time_ms;
    uint64_t order; /* ties are taken in order of creation */
    enum item_kind kind;
    enum message_kind message;
    uint32_t attempt, generation;
    int link, rank;
    int variant; /* HELLO: what is wrong with it; FAULT: its kind */
    union {
        struct ls_core_event event;
        struct ls_core_action action;
        struct {
            int64_t step, position;
            struct ls_digest chain;
        } commit;
        uint64_t sequence;
    };
};

/* One connection of the workers: it carries ranks [first, first + count). */
struct link {
    int first, count;
    ls_connection connection; /* as the coordinator names it */
    int64_t last_to_core_ms, last_to_team_ms;
    int vanish_to_core, vanish_to_team; /* this many messages get lost */
    bool hello_open;                    /* a HELLO waits for its WELCOME */
    int64_t hello_ms;
};

/* The workers of an attempt. They move together, as collectives make them. */
struct team {
    bool running; /* false: nothing of it is left */
    bool stuck;   /* a rank is dead, the others wait in a collective */
    bool launched;
    int ranks, links;
    bool dead[RANKS_MAX], absent[RANKS_MAX];
    int wrong[RANKS_MAX]; /* enum fault_kind of a rank that will be refused, or -1 */
    struct link link[RANKS_MAX];
    bool started;      /* rank 0 has been welcomed */
    bool asynchronous; /* steps go on while a save is written */
    bool impatient;    /* answers every REJOIN with a HELLO */
    int64_t start_step, end_step, end_position, batch, checkpoint_every, evaluation_every;
    int64_t done, granted, acked, acked_validation;
    int64_t position[STEPS_MAX + 1]; /* [s]: behind step s, as granted; -1: not granted */
    uint64_t order_seen, order_honoured;
    bool stop_seen, stopped;
    bool stepping;
    int64_t saved_step; /* the last SAVING; start_step: none */
    bool saving_told;   /* that a SAVING was sent at all */
    bool save_open;     /* it is not committed yet */
    bool part_written[RANKS_MAX];
    int64_t waiting_since_ms;
    int64_t last_heard_ms;
};

/* What the durable part of the journal says about the attempt. */
struct journal_view {
    uint32_t attempt;
    int count; /* records looked at */
    int64_t step, validation;
    enum ls_code stop, fault;
    uint32_t stop_generation;
    uint64_t stop_sequence;
    bool joined;
};

/* The coordinator's process and the disk under it. */
struct world {
    uint64_t seed, random;
    bool trace;
    bool quiet; /* no faults any more */
    struct coverage *coverage;
    jmp_buf violated;
    char violation[1024];

    int items_count;
    uint64_t items_order;
    int64_t now_ms, restart_ms;

    /* the run */
    int64_t steps, end_position, end_step, batch;
    int64_t truth_position[STEPS_MAX + 1];
    struct ls_digest truth_digest[STEPS_MAX + 1], truth_chain[STEPS_MAX + 1];
    struct ls_core_options options;
    struct team team;
    ls_connection connections;
    bool over; /* the attempt */
    int exit_code;

    /* disk */
    struct folder folders[CHECKPOINTS_MAX];
    int folders_count;
    struct ls_core_record *durable, *pending; /* [RECORDS_MAX] */
    int durable_count, pending_count;
    struct journal_view view;
    bool part_on_disk[STEPS_MAX + 1][RANKS_MAX]; /* of this attempt */

    /* coordinator */
    struct ls_core *core; /* NULL: down */
    bool fsyncing, committing;
    int64_t commit_step;
    struct ls_core_actions actions;
    bool fsync_fails, commit_fails, crash_before_end;
    int slow_fsyncs, slow_commits, late_parts, save_fails;
    bool launcher_gone;
    int launcher_status;

    /* oracle: what this generation was told and has said */
    struct {
        int64_t granted;
        ls_connection voice;
        bool joined[RANKS_MAX], told_lost[RANKS_MAX], assembled, stopped;
        bool stop_ordered; /* on this voice connection */
        bool kept[RANKS_MAX];
        int64_t kept_step;
        uint64_t journaled;
        bool ended, now_signalled;
        int stop_signals;
        int exact_code; /* of the first exact cause, 0: none */
        int lost_rank;  /* of the first rank lost, -1: none */
        bool excuse;    /* something happened that may end an attempt with 6 */
        enum ls_code stop_code;
        uint64_t counters[4];
        ls_connection stop_request;
    } seen;
    bool attempt_joined[RANKS_MAX]; /* in any generation of the attempt */
};

/* Runs one seed to its end. Returns true, or false with world->violation set. */
bool world_run(uint64_t seed, bool trace, struct coverage *coverage, char violation[1024]);

#endif
