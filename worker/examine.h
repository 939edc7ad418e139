/* Examining the cluster: do the ranks find each other over MPI, how fast is every pair of hosts, how fast an
 * all-reduce. `lockstep doctor` and the choice of a launcher start workers as ranks of nothing but this
 * (lockstep-worker
 * --examine=SECONDS); rank 0 prints what was found, a line each:
 *
 *   examine ranks 6 hosts 3                    always
 *   host 0 node1 ranks 2 clock_us 0 mbps 4100  clock beside host 0's; all-reduce within the host, 0: a single rank
 *   pair 0 1 latency_us 31.5 mbps 112.4        between the first ranks of two hosts, MB/s one way
 *   allreduce mbps 98.1                        over all ranks: bytes of the buffer per time
 *   end */
#ifndef LS_WORKER_EXAMINE_H
#define LS_WORKER_EXAMINE_H

#include "common/status.h"

#include <stdio.h>

/* Collective, between MPI_Init and MPI_Finalize. `seconds` for all measurements together, 0: none, only the first line.
 * LS_MEMORY, LS_COMMUNICATION. */
enum ls_code ls_examine(double seconds, FILE *out, struct ls_error *error);

#endif
