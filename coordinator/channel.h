/* The line between the supervisor and its coordinator: small messages over a socket pair, one write each. Its end means
 * that the other side is dead. */
#ifndef LS_COORDINATOR_CHANNEL_H
#define LS_COORDINATOR_CHANNEL_H

#include "common/keys.h"
#include "common/wire.h"
#include "coordinator/core.h"
#include "coordinator/network.h"

#include <stdbool.h>
#include <stdint.h>

enum { LS_CHANNEL_HOSTS_BYTES = LS_CORE_HOSTS_MAX * LS_CORE_HOST_BYTES };

enum ls_channel_kind {
    /* from the coordinator */
    LS_CHANNEL_READY, /* it listens */
    /* Start the workers of `attempt` on `ranks` ranks, once all of the attempts before are gone. Said again of an
     * attempt that was started, it is only answered again. */
    LS_CHANNEL_LAUNCH,
    LS_CHANNEL_KILL, /* kill what is left of `attempt` */
    LS_CHANNEL_END,  /* the run is over: code and text; the coordinator leaves */
    /* from the supervisor */
    LS_CHANNEL_SIGNAL,
    LS_CHANNEL_LAUNCHER_STARTED, /* the launcher of `attempt` runs as process `pid`, leader of its session */
    LS_CHANNEL_LAUNCHER_EXITED,  /* it ended with `status` */
    LS_CHANNEL_GONE              /* nothing of `attempt` is left on this host: no process, no shared memory */
};

/* Plain data; what a kind does not use is zero. */
struct ls_channel_message {
    enum ls_channel_kind kind;
    struct {
        char run_dir[1000], run_id[17], endpoints[LS_ENDPOINTS_SIZE]; /* as ls_network_endpoints() writes them */
        int64_t attempt, ranks, port;
        char key_text[LS_KEY_TEXT_MAX]; /* of the workers */
    } ready;
    int64_t attempt; /* LAUNCH, KILL, LAUNCHER_STARTED, LAUNCHER_EXITED, GONE */
    int64_t ranks;   /* LAUNCH */
    /* LAUNCH: hosts to be left out, with commas between them: for their losses, and because they do not answer. */
    char excluded[LS_CHANNEL_HOSTS_BYTES], silent[LS_CHANNEL_HOSTS_BYTES];
    int32_t code;                  /* END */
    char text[LS_WIRE_TEXT_BYTES]; /* END */
    enum ls_core_signal signal;    /* SIGNAL */
    int32_t pid, status;           /* LAUNCHER_STARTED; LAUNCHER_EXITED: exit status, or minus the signal */
};

/* Sends; false when the other side is gone. Waits for room if the other side is slow. */
bool ls_channel_send(int channel, const struct ls_channel_message *message);
/* True when the other side has taken all that was sent: sending does not wait. */
bool ls_channel_is_read(int channel);
/* Takes the next message without waiting: 1, 0 when there is none now, -1 when the other side is gone. */
int ls_channel_receive(int channel, struct ls_channel_message *message);
/* A connected pair, closed on exec. 0, or -1 with errno. */
int ls_channel_pair(int pair[2]);

#endif
