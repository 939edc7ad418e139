/* The allocation: what a run was given. Which hosts, how many ranks, what starts them: by the command line, the
 * configuration, the hostfile and Slurm. */
#ifndef LS_COORDINATOR_ALLOCATION_H
#define LS_COORDINATOR_ALLOCATION_H

#include "common/config.h"
#include "common/status.h"
#include "coordinator/hosts.h"
#include "coordinator/slurm.h"

#include <stdbool.h>
#include <stdint.h>

struct ls_allocation {
    struct ls_slurm slurm;
    struct ls_hosts hosts;  /* none: this host alone, with as many ranks as are asked for */
    bool elsewhere;         /* some host is another one than this */
    bool by_slurm;          /* the hosts are those of the Slurm job */
    int64_t ranks;          /* at the start */
    int64_t ranks_per_node; /* launcher.ranks_per_node, 0: by slots */
    bool *answered;         /* [hosts.count]: by ls_allocation_ask(); NULL: not asked */
    int64_t threads;        /* of a rank: launcher.threads_per_rank, else Slurm's --cpus-per-task; 0: not said */
};

/* Finds it. `ranks` is -n (0: launcher.ranks, else Slurm's tasks, else the slots of the hosts, else GPUs, else 1),
 * `hostfile` may be NULL, `get` is getenv or a test's stand-in. LS_USAGE: the hostfile, Slurm's variables, ranks that
 * do not fit, srun outside Slurm, one of several `lockstep run` that srun started. The caller releases in either case.
 */
enum ls_code ls_allocation_find(const struct ls_config *config, int64_t ranks, const char *hostfile,
                                char *(*get)(const char *name), struct ls_allocation *allocation,
                                struct ls_error *error);
void ls_allocation_release(struct ls_allocation *allocation);

/* Asks which hosts are there at the start, so that one that is lost later can be told from one that never answers. */
void ls_allocation_ask(struct ls_allocation *allocation);
/* Writes the names of the hosts that answered then and do not now, `most` at most, and returns how many; waits for up
 * to two seconds. */
int ls_allocation_find_lost(const struct ls_allocation *allocation, const char **lost, int most);

/* Hosts that are not this one, for ls_network_choose(); NULL when all ranks are here. */
const struct ls_hosts *ls_allocation_elsewhere(const struct ls_allocation *allocation);

#endif
