/* The server around the core: sockets, timers and threads. It turns what happens into events, and does what the core
 * answers. */
#ifndef LS_COORDINATOR_SERVER_H
#define LS_COORDINATOR_SERVER_H

#include "common/status.h"
#include "coordinator/run_setup.h"

/* Serves a prepared run until the core ends it: binds, says READY on `channel` (-1: no supervisor; then it prints the
 * mpirun line that joins, and `signals`, a signalfd, is read instead), and returns the exit code with its reason.
 * Everybody is told before it returns; the journal is flushed, the summary written. */
enum ls_code ls_server_run(struct ls_run *run, int channel, int signals, struct ls_error *reason);

#endif
