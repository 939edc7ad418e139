/* The launchers' variables, one row each. */
#include "worker/placement.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

struct row {
    const char *launcher, *size, *local_rank, *local_size;
};

static const struct row rows[] = {
    {"Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"},
    {"PMI", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"},
    {"Slurm", "SLURM_NTASKS", "SLURM_LOCALID", NULL}, /* the local size: see tasks_of_node() */
};

/* A whole number from 0 to 10 million, or -1. */
static int number_of(char *(*get)(const char *), const char *name) {
    const char *text = name ? get(name) : NULL;
    if (!text || !*text) return -1;
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    return errno || *end || value < 0 || value > 10000000 ? -1 : (int)value;
}

/* Slurm says the tasks of all nodes of a step in its short form, "2(x3),1", and the number of this node. -1: not said.
 */
static int tasks_of_node(char *(*get)(const char *)) {
    const char *text = get("SLURM_STEP_TASKS_PER_NODE");
    int node = number_of(get, "SLURM_NODEID");
    while (text && *text && node >= 0) {
        char *end;
        long count = strtol(text, &end, 10), times = 1;
        if (end == text || count < 1 || count > 100000) return -1;
        if (end[0] == '(' && end[1] == 'x') times = strtol(end + 2, &end, 10);
        if (*end == ')') end++;
        if (node < times) return (int)count;
        if (times < 1 || *end != ',') return -1;
        node -= (int)times;
        text = end + 1;
    }
    return -1;
}

void ls_placement_find(char *(*get)(const char *name), struct ls_placement *placement) {
    *placement = (struct ls_placement){0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int size = number_of(get, rows[i].size);
        if (size < 1) continue;
        int local_rank = number_of(get, rows[i].local_rank);
        int local_size = rows[i].local_size ? number_of(get, rows[i].local_size) : tasks_of_node(get);
        placement->launcher = rows[i].launcher;
        placement->world_size = size;
        if (local_rank >= 0 && local_rank < local_size) {
            placement->local_rank = local_rank;
            placement->local_size = local_size;
        }
        return;
    }
}

enum ls_code ls_placement_check(const struct ls_placement *placement, int mpi_size, struct ls_error *error) {
    if (placement->world_size == 0 || placement->world_size == mpi_size) return LS_OK;
    return ls_fail(
        error, LS_COMMUNICATION, LS_SCOPE_JOB,
        "MPI sees %d rank%s, %s started %d. This build's MPI and the launcher do not speak to each other: use the "
        "mpirun of the MPI it was built with, or srun --mpi=pmix.",
        mpi_size, mpi_size == 1 ? "" : "s", placement->launcher, placement->world_size);
}
