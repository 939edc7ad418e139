/* A whole virtual world around the coordinator's core: disks that forget, links that lose, workers and hosts that die,
 * samples that spoil the loss, users who stop.
 *
 *   team (ranks, links) --- messages with delay and loss ---> coordinator (core, journal, commits) ---> disk
 *
 * Virtual time, one seed, no threads: the same seed gives the same events. world.c runs it, clock.c has time and
 * network, process.c the coordinator's process with its disk and the supervisor, team.c plays the workers, faults.c
 * breaks things, oracle.c knows the truth, oracle_judge.c and oracle_recovery.c check every action of the core against
 * it. The files are included by the test programs, so that the core they drive can be the library's or one compiled
 * with planted faults.
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
    HOSTS_MAX = 4,
    HOST_SLOTS = 2,
    STEPS_MAX = 128,
    GENERATIONS_MAX = 3, /* of the data */
    POSITIONS_MAX = 1024,
    SEQUENCES_MAX = GENERATIONS_MAX * POSITIONS_MAX,
    ATTEMPTS_MAX = 2048,
    RECORDS_MAX = 4096,
    EVENTS_MAX = 8192,
    CHECKPOINTS_MAX = 64,
    INVOCATIONS_MAX = 12,        /* the run must be complete by then */
    INVOCATIONS_WITH_FAULTS = 5, /* from then on nothing is broken any more */
    ATTEMPT_LIMIT_MS = 900000    /* an attempt that has not ended by then hangs */
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
    X(RANK_ENDS)                                                                                                       \
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
    X(CHECKPOINT_ROTS)                                                                                                 \
    X(CHECKPOINT_DOES_NOT_LOAD)                                                                                        \
    X(OTHER_WORLD_SIZE)                                                                                                \
    X(HOST_DIES)                                                                                                       \
    X(HOST_FLAPS)                                                                                                      \
    X(STALL)                                                                                                           \
    X(SAMPLE_SPOILS_LOSS)                                                                                              \
    X(REPLICA_DIFFERS)                                                                                                 \
    X(SUPERVISOR_DIES)                                                                                                 \
    X(KILL_FAILS)                                                                                                      \
    X(PREPARE_FAILS)                                                                                                   \
    X(NOBODY_STARTS_WORKERS)                                                                                           \
    X(DATA_CHANGED)                                                                                                    \
    X(DATA_SET_BACK)
#define FAULT_ENUM(name) FAULT_##name,
enum fault_kind { FAULT_KINDS(FAULT_ENUM) FAULT_COUNT };

/* What happened over all runs: a zero in a needed place is a test that does not test. */
struct coverage {
    uint64_t events[LS_EVENT_KINDS], actions[LS_ACTION_KINDS], records[LS_RECORD_KINDS], faults[FAULT_COUNT];
    uint64_t transitions[LS_PHASE_ENDED + 1][LS_PHASE_ENDED + 1];
    uint64_t exits[256];
    uint64_t old_attempt, duplicates, unplaced, refused, restarts, restores, resumes;
    /* Of attempts: how they began and what came in between. */
    uint64_t attempts, fewer_ranks, more_ranks, hosts_left_out, hosts_forgiven, hosts_silent, from_the_one_before,
        from_nothing;
    uint64_t generations_begun, generations_begun_again, generations_left;
    uint64_t passed_over, restarts_used_up, backed_off, crashes[LS_PHASE_ENDED + 1], ends[LS_PHASE_ENDED + 1];
};

/* Sequences, a bit each: position p of generation g of the data is number (g - 1) POSITIONS_MAX + p. */
struct sequences {
    uint64_t word[SEQUENCES_MAX / 64];
};

/* How far a state was trained on each generation of the data: positions [0, reached[g]) had their turn. */
struct turns {
    int64_t reached[GENERATIONS_MAX + 1];
};

/* A checkpoint on disk. */
struct folder {
    int64_t step, position;
    int64_t generation; /* of the data, that the position is of */
    struct turns turns;
    struct ls_digest chain;
    struct sequences used; /* what its weights were trained on */
    bool damaged;          /* its hashes tell */
    bool unloadable;       /* only those who load it notice */
    bool suspect;          /* saved when replicas differed */
};

/* An attempt as the journal has it. */
struct begun {
    uint32_t attempt;
    int32_t world_size;
    int64_t step, position, samples;
    struct turns turns; /* of the state it starts from */
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
    ITEM_CLEARED,
    ITEM_PREPARED,
    ITEM_WORKERS, /* somebody starts workers */
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
        int32_t ranks; /* WORKERS; 0: any */
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
    uint32_t attempt;
    bool running; /* false: nothing of it is left */
    bool stuck;   /* a rank is dead, the others wait in a collective */
    bool launched;
    int ranks, links;
    bool dead[RANKS_MAX], absent[RANKS_MAX];
    int host[RANKS_MAX];
    bool nameless;        /* started by hand, wants to be told which attempt it is */
    int wrong[RANKS_MAX]; /* enum fault_kind of a rank that will be refused, or -1 */
    struct link link[RANKS_MAX];
    bool started;      /* rank 0 has been welcomed */
    bool asynchronous; /* steps go on while a save is written */
    bool impatient;    /* answers every REJOIN with a HELLO */
    int64_t start_step, end_step, end_position, batch, checkpoint_every, evaluation_every;
    int64_t done, granted, acked, acked_validation;
    int64_t position[STEPS_MAX + 1]; /* [s]: behind step s, as granted; -1: not granted */
    struct ls_quarantine quarantine;
    struct sequences used; /* what its weights were trained on */
    struct sequences saved[STEPS_MAX + 1];
    struct ls_digest digest[STEPS_MAX + 1]; /* of the steps it did */
    bool skipped[STEPS_MAX + 1];
    int stalled; /* 1 + the rank that is stopped; 0: none */
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

/* What the durable part of the journal says about the attempt, and about the invocation. */
struct journal_view {
    uint32_t attempt, invocation;
    int count; /* records looked at */
    int64_t step, validation, skips;
    bool fault; /* the attempt is over */
    struct ls_core_record fault_record;
    bool quarantined; /* its bad sequences */
    bool joined;
    /* of the invocation */
    enum ls_code stop;
    uint32_t stop_generation;
    uint64_t stop_sequence;
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
    int64_t generation, generations;  /* of the data: of the invocation, how many there have been */
    struct turns turns[ATTEMPTS_MAX]; /* of the states that attempts started from */
    uint8_t generation_of[ATTEMPTS_MAX];
    struct sequences poison; /* spoil the loss of the step that trains on them */
    struct ls_core_options options;
    struct team team;
    ls_connection connections;
    bool over; /* the invocation */
    int exit_code;
    int hosts; /* of the cluster */
    bool host_dead[HOSTS_MAX];
    bool hosts_asked;          /* before the attempt, which of them answer */
    uint32_t first_attempt;    /* of the invocation */
    uint32_t launched_attempt; /* the newest that the supervisor has launched */
    int32_t ranks_wanted;
    bool supervisor_dead, kill_fails, prepare_fails;
    struct ls_quarantine handed; /* to the next team */
    int placement[RANKS_MAX];    /* the host of each rank of the next team */
    int64_t bad_above;           /* checkpoints of later steps hold replicas that differ; -1: none */
    int64_t limit_ms;
    enum ls_core_phase phase; /* of the core */

    /* the truth of the present attempt: [s] of step s, from its start on */
    struct begun begun, first_begun;
    uint32_t truth_attempt;    /* whose truth it is */
    uint32_t progress_attempt; /* whose beginning cleared `progress` */
    int64_t truth_position[STEPS_MAX + 1], truth_samples[STEPS_MAX + 1], truth_end;
    struct ls_digest truth_digest[STEPS_MAX + 1], truth_chain[STEPS_MAX + 1];
    struct sequences quarantined;

    /* disk */
    struct folder folders[CHECKPOINTS_MAX];
    int folders_count;
    struct ls_core_record *durable, *pending; /* [RECORDS_MAX] */
    int durable_count, pending_count;
    struct journal_view view;
    bool part_on_disk[STEPS_MAX + 1][RANKS_MAX]; /* of this attempt */
    int64_t best_step;                           /* the highest one ever committed in this invocation */
    bool progress;                               /* a commit above all before it since the last ATTEMPT */
    bool progress_before;                        /* and before that, in case it gets lost */

    /* coordinator */
    struct ls_core *core; /* NULL: down */
    bool fsyncing, committing;
    int64_t commit_step;
    struct ls_core_actions actions;
    bool fsync_fails, commit_fails, crash_before_end;
    int slow_fsyncs, slow_commits, late_parts, save_fails;
    bool launcher_gone;
    int launcher_status;
    int launcher_code; /* of a rank that made it end, as it says; 0: none */
    int launcher_rank; /* which one it was; -1: it does not say */

    /* oracle: what this generation was told and has said */
    struct {
        uint64_t journaled;
        bool ended, now_signalled, ticked, journal_failed;
        int stop_signals;
        enum ls_code stop_code;
        bool ever_joined, ever_assembled; /* in this invocation, as far as this generation or the journal knows */
        uint64_t counters[4];
        ls_connection stop_request;
        bool kept[RANKS_MAX]; /* parts that the server has the names of, from whichever attempt, until a commit */
        int64_t kept_step;
    } seen;
    /* ... of the present attempt */
    struct {
        int64_t granted;
        ls_connection voice;
        bool joined[RANKS_MAX], told_lost[RANKS_MAX], told_stalled, assembled, stopped;
        bool stop_ordered; /* on this voice connection */
        int64_t skips;     /* steps in a row that made no update */
        /* causes */
        int exact_code; /* of the first exact one, 0: none */
        bool exact_mendable;
        int64_t exact_below; /* checkpoints below this step mend it; 0: any */
        int lost_rank;       /* the first rank lost, -1: none */
        int lost_host;       /* the first node lost, -1: none */
        bool excuse;         /* something happened that may end an attempt with 6 */
        bool complaint, launcher_exited, launcher_killed;
        int ended_code, ended_rank; /* of a rank that made the launcher end, as that says; code 0: none, rank -1: any */
        bool ended_early;           /* before all had joined, and not as a program that is not there */
        /* recovery */
        bool faulted, restart; /* FAULT is asked for or restored, and says that another attempt follows */
        struct ls_core_record fault;
        uint64_t fault_sequence; /* of the last record that tells of it, 0: restored */
        bool quarantined;
        bool kill_asked, cleared, prepare_asked, prepared, prepare_failed, launched;
        struct begun next;      /* as PREPARED told it */
        bool begins_generation; /* its checkpoint is of another one */
        int32_t slots, slots_all, fewer;
        int64_t begun_ms; /* ATTEMPT was asked for; -1: not in this generation */
        uint64_t begun_sequence;
        int32_t restarts;
    } att;
    bool attempt_joined[RANKS_MAX]; /* in any generation of the attempt */
};

/* Runs one seed to its end. Returns true, or false with world->violation set. */
bool world_run(uint64_t seed, bool trace, struct coverage *coverage, char violation[1024]);

#endif
