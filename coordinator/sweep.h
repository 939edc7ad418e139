/* The sweep: a process on each of several other hosts that ends and removes what attempts of a run left there
 * (common/leftovers.h). Hosts of the next attempt need none: its workers do that before anything else. */
#ifndef LS_COORDINATOR_SWEEP_H
#define LS_COORDINATOR_SWEEP_H

#include "common/status.h"
#include "coordinator/launcher.h"

#include <stdint.h>
#include <sys/types.h>

struct ls_sweep {
    pid_t leader;     /* of its session, 0: none is under way */
    char names[256];  /* of its hosts, for messages: "h2, h3" */
    int64_t until_ms; /* the caller's limit, by its own clock */
};

/* Starts it on hosts[count], names as launcher and ranks know them, but for this host; what it finds goes to
 * `log_path`. `usual` has what every launch has in common. It removes what attempts before `attempt` left. With no host
 * left to sweep nothing is started. LS_USAGE, LS_ERROR, LS_CHECKPOINT: it cannot be started; *sweep is all zero then.
 */
enum ls_code ls_sweep_start(const struct ls_launch_options *usual, const char *const *hosts, int count,
                            const char *run_id, int64_t attempt, const char *log_path, struct ls_sweep *sweep,
                            struct ls_error *error);

#endif
