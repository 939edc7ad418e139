/* Placement: what the launcher says in the environment about where this rank is, before MPI can be asked. */
#ifndef LS_WORKER_PLACEMENT_H
#define LS_WORKER_PLACEMENT_H

#include "common/status.h"

#include <stdbool.h>

/* What a launcher said. */
struct ls_placement {
    const char *launcher;       /* "Open MPI", "Slurm", "PMI", or NULL: started by hand */
    int world_size;             /* 0: not said */
    int local_rank, local_size; /* local_size 0: not said */
};

/* `get` is getenv, or a test's stand-in. Open MPI's variables come first, then PMI's, then Slurm's; values that are no
 * numbers count as not said. */
void ls_placement_find(char *(*get)(const char *name), struct ls_placement *placement);

/* LS_COMMUNICATION when MPI sees another number of ranks than the launcher started: then each rank is alone with
 * itself. */
enum ls_code ls_placement_check(const struct ls_placement *placement, int mpi_size, struct ls_error *error);

#endif
