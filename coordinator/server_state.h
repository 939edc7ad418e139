/* What the server's files share: server.c (the loop), server_messages.c (what connections say), server_actions.c (what
 * the core wants). */
#ifndef LS_COORDINATOR_SERVER_STATE_H
#define LS_COORDINATOR_SERVER_STATE_H

#include "common/wire.h"
#include "coordinator/channel.h"
#include "coordinator/committer.h"
#include "coordinator/connections.h"
#include "coordinator/console.h"
#include "coordinator/run_setup.h"
#include "coordinator/server.h"
#include "coordinator/stall.h"
#include "coordinator/watcher.h"
#include "coordinator/zap.h"

#include <sys/types.h>

enum {
    SERVER_SILENCE_MS = 15000, /* a connection not heard for so long is lost; pulses come every second */
    SERVER_FILES_MAX = 65536   /* of one checkpoint */
};

/* Complaints of one kind: counted, and told once a minute. */
struct server_count {
    uint64_t total, told;
    int64_t told_ms; /* -1: never */
};

/* The files of the save in flight, by the rank that wrote them. */
struct server_parts {
    int64_t step;
    struct ls_file_record *files; /* of all ranks, [files_count] */
    size_t files_count, files_capacity;
    int64_t optimizer_steps;
};

struct ls_server {
    struct ls_run *run;
    int channel, signals;
    pid_t launcher; /* leader of the workers' session, 0: none of ours */
    void *context, *router, *monitor;
    struct ls_zap *zap;
    int wake; /* eventfd of the journal's and the committer's thread */
    struct ls_committer *committer;
    struct ls_watcher *watcher;
    struct ls_stall *stall;
    struct ls_metrics *metrics;
    struct ls_console *console;
    char endpoint[128];
    uint8_t *buffer; /* of an outgoing message */
    struct ls_core_rank *ranks;
    struct ls_connections connections;
    struct server_parts parts;
    uint64_t journaled;
    bool journal_failed;
    /* For `status`. */
    double loss, tokens_per_second, step_seconds;
    struct server_count handshakes, undecodable, forbidden, crowded;
    /* The message being handled, for actions that need more of it than the core does. */
    const struct ls_message *current;
    bool ended;
    enum ls_code end_code;
    char end_text[LS_WIRE_TEXT_BYTES];
};

int64_t server_now_ms(void);
/* Hands an event to the core and does what it answers. */
void server_handle(struct ls_server *server, const struct ls_core_event *event);

/* server_messages.c */

/* Takes the messages that have arrived, up to a few hundred. */
void server_receive(struct ls_server *server);
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

#endif
