/* The supervisor of `lockstep run`: no sockets, no journal, so little that it does not fail. It keeps two children
 * alive for the run: the coordinator, which is started again within a second when it dies, and the launcher of the
 * workers; and it turns signals into messages.
 *
 *   SIGTERM, SIGUSR1, SIGHUP   save, exit 75         SIGUSR2   save and go on
 *   SIGINT                     finish the step, save, exit 130; twice: at once
 *   SIGQUIT                    exit 130 at once, nothing is saved
 *
 * The launcher is in a session of its own and receives none of these before the save is done. */
#ifndef LS_COORDINATOR_SUPERVISOR_H
#define LS_COORDINATOR_SUPERVISOR_H

#include "common/status.h"
#include "coordinator/run_setup.h"

/* Runs a whole run and returns its exit code with the reason; no child is left. */
enum ls_code ls_supervisor_run(const struct ls_run_options *options, struct ls_error *reason);

/* The coordinator alone, without a supervisor: prints the mpirun line that joins it. */
enum ls_code ls_coordinator_run(const struct ls_run_options *options, struct ls_error *reason);

#endif
