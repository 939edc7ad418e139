/* What the server's files share: server.c (the loop), server_messages.c (what connections say), server_actions.c (what
 * the core wants), server_recovery.c (between two attempts). */
#ifndef LS_COORDINATOR_SERVER_STATE_H
#define LS_COORDINATOR_SERVER_STATE_H

#include "common/wire.h"
#include "coordinator/channel.h"
#include "coordinator/auditor.h"
#include "coordinator/committer.h"
#include "common/connections.h"
#include "coordinator/console.h"
#include "coordinator/run_setup.h"
#include "coordinator/save_parts.h"
#include "coordinator/server.h"
#include "coordinator/stall.h"
#include "coordinator/straggler.h"
#include "coordinator/watcher.h"
#include "common/zap.h"

#include <sys/types.h>

enum {
    SERVER_SILENCE_MS = 15000, /* a connection not heard for so long is lost; pulses come every second */
    SERVER_VALIDATIONS = LS_CORE_WINDOW_STEPS
};

/* Complaints of one kind: counted, and told once a minute. */
struct server_count {
    uint64_t total, told;
    int64_t told_ms; /* -1: never */
};

/* The save that was handed to the committer last. */
struct server_saved {
    int64_t step;
    double seconds;
    int64_t bytes;
};

/* When the steps of a recovery were taken, by server_now_ms(); 0: not yet. */
struct server_recovery {
    int64_t lost_ms; /* the rank gave its last sign of life */
    int64_t killed_ms, cleared_ms, prepared_ms, launched_ms, joined_ms;
};

/* Where the ranks of the next attempt can go. */
struct server_room {
    int64_t since_ms; /* when a start was found, and room was first looked for; 0: none is looked for */
    int64_t asked_ms; /* when the hosts were last asked; 0: never */
    bool told;        /* that some are waited for */
    const char *silent[LS_CORE_HOSTS_MAX]; /* [silent_count]: were there at the start, and did not answer then */
    int silent_count;
};

struct server_validation {
    int64_t step;
    double loss;
};

struct ls_server {
    struct ls_run *run;
    int channel, signals;
    pid_t launcher; /* leader of the workers' session, 0: none of ours */
    void *context, *router, *monitor;
    struct ls_zap *zap;
    int wake; /* eventfd of the journal's, the committer's and the auditor's thread */
    struct ls_committer *committer;
    struct ls_auditor *auditor; /* NULL: not wished for */
    struct ls_watcher *watcher;
    struct ls_stall *stall;
    struct ls_stragglers *stragglers;
    struct ls_metrics *metrics;
    struct ls_tensorboard *tensorboard; /* NULL: not wished for */
    struct ls_prometheus *prometheus;   /* NULL: likewise */
    struct ls_console *console;
    char endpoints[LS_ENDPOINTS_SIZE]; /* that are offered */
    uint8_t *buffer;                   /* of an outgoing message */
    struct ls_core_rank *ranks;
    struct ls_connections connections;
    struct ls_save_parts parts; /* of the save in flight */
    struct server_saved saved;
    /* The newest validations, of step s in place s % SERVER_VALIDATIONS; -1: none. A step is committed when later ones
     * may have been validated. */
    struct server_validation validations[SERVER_VALIDATIONS];
    uint64_t journaled;
    bool journal_failed;
    uint32_t clearing;              /* the attempt that is being ended; 0: none */
    bool processes_gone;            /* of it */
    uint32_t preparing;             /* the attempt after which a start is looked for */
    struct ls_journal_attempt next; /* what was found */
    struct server_room room;
    struct server_recovery recovery;
    /* Time as the core and the connections' silence are told it: not what passes while this process is stopped or its
     * host stands still, for nobody could be heard then. ticked: of the last TICK by server_now_ms(), 0: none yet. */
    int64_t clock_ms, ticked_ms;
    struct ls_watcher_loss held; /* a rank that its launcher ended: the launcher is waited for, which knows why */
    int64_t held_ms;             /* since then; 0: none */
    /* For `status`. */
    double loss, tokens_per_second, step_seconds;
    struct server_count handshakes, undecodable, forbidden, crowded;
    /* The message being handled, for actions that need more of it than the core does. */
    const struct ls_message *current;
    bool ended;
    bool left; /* rank 0 has heard of the end, and said goodbye */
    enum ls_code end_code;
    char end_text[LS_WIRE_TEXT_BYTES];
};

int64_t server_now_ms(void);
/* The attempt whose workers are served. */
static inline uint32_t server_attempt(const struct ls_server *server) {
    return (uint32_t)server->run->attempt.attempt;
}
/* Makes the watches over the ranks of the attempt. */
enum ls_code server_start_watching(struct ls_server *server, struct ls_error *error);
/* Hands an event to the core and does what it answers. */
void server_handle(struct ls_server *server, const struct ls_core_event *event);

/* server_messages.c */

/* Takes the messages that have arrived, up to a few hundred. */
void server_receive(struct ls_server *server);
/* Once the run has ended: waits until rank 0 says goodbye, for so long at most; takes no other message. A socket that
 * is closed before may lose the last words on their way: what arrives unread at a closed one makes the other side's
 * system throw away what it has not read. */
void server_await_goodbye(struct ls_server *server, int64_t milliseconds);
/* Encodes and sends to one connection; a peer that is gone or does not take it is skipped: it will ask again. */
void server_send(struct ls_server *server, ls_connection connection, struct ls_message *message);
/* Forgets connections that have been silent, telling the core. */
void server_drop_silent(struct ls_server *server);
/* Counts a complaint and logs it at most once a minute. */
void server_complain(struct server_count *count, const char *what, const char *detail);

/* server_actions.c */

/* Does what the core wants, in its order. A STEP record carries its struct ls_step_report, a VALIDATION record its
 * message. */
void server_perform(struct ls_server *server, const struct ls_core_actions *actions);

/* Remembers the loss of a validation. */
void server_note_validation(struct ls_server *server, int64_t step, double loss);

/* server_recovery.c */

/* Tells an event that is no record: a line of metrics.jsonl and of the console. */
void server_tell(struct ls_server *server, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Ends what is left of the attempt; CLEARED follows from server_check_cleared(). Workers that nobody here can kill are
 * told that another attempt follows. */
void server_kill(struct ls_server *server, uint32_t attempt);
/* The same when the run is over, which is told to everybody, and nothing is waited for. */
void server_kill_at_end(struct ls_server *server);
/* Says CLEARED once the processes are gone and no commit is under way. */
void server_check_cleared(struct ls_server *server);
/* The host that the launcher was told to start `rank` on; "" where that is not known. */
void server_find_host(const struct ls_server *server, int32_t rank, char *host, size_t size);
/* Looks for where the attempt after action->attempt can start; PREPARED follows from server_take_start(). */
void server_prepare(struct ls_server *server, const struct ls_core_action *action);
void server_take_start(struct ls_server *server);
/* Says PREPARED once the hosts that answer have room for as many ranks as are needed, or once those that do not have
 * been waited for as long as ranks may take to come. */
void server_check_room(struct ls_server *server);
/* Tells of the damaged checkpoints that were passed over. */
void server_tell_damaged(struct ls_server *server, const struct ls_run_start *start);
/* Starts the workers of action->attempt, which is served from now on. */
void server_launch(struct ls_server *server, const struct ls_core_action *action);
/* Times of a recovery: a rank was lost and had been silent for so long; every rank has joined; a step was reported,
 * which tells of the recovery if it is the first one after it. */
void server_note_loss(struct ls_server *server, double silent_seconds);
void server_note_joined(struct ls_server *server);
void server_note_step(struct ls_server *server, const struct ls_step_report *report);

#endif
