/* Collectives over MPI. */
#include <mpi.h>
