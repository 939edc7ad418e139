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
    {"Slurm", "SLURM_NTASKS", "SLURM_LOCALID", NULL},
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

void ls_placement_find(char *(*get)(const char *name), struct ls_placement *placement) {
    *placement = (struct ls_placement){0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int size = number_of(get, rows[i].size);
        if (size < 1) continue;
        int local_rank = number_of(get, rows[i].local_rank), local_size = number_of(get, rows[i].local_size);
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
