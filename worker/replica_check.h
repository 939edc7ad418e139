/* The replica check: every fault.replica_check_every steps the ranks compare hashes of what they hold copies of, and a
 * difference is laid to the rank whose copy stands alone.
 *
 *     stage 0, 1, 2   whole parameters: a copy on every rank
 *     stage 3         slices: a copy in each of zero.replicas groups of ranks
 *
 * At stages 1 and 2 the parameters are gathered anew after each update from the ranks that own them, so within a group
 * of ranks only what came wrong is found, not what was updated wrong; between groups both are. In bf16 and fp16 it is
 * the parameters that blocks compute with: a wrong master shows when it reaches them. */
#ifndef LS_WORKER_REPLICA_CHECK_H
#define LS_WORKER_REPLICA_CHECK_H

#include "common/config.h"
#include "common/status.h"
#include "worker/comm/comm.h"
#include "worker/replica.h"

#include <stdbool.h>
#include <stdint.h>

/* What was found. */
struct ls_replica_difference {
    int64_t step;      /* behind which copies differ */
    int64_t good_step; /* behind which all were last compared and equal; -1: never */
    int rank;          /* whose copy is wrong; -1: it cannot be told, since as many say one thing as the other */
    int one, other;    /* two ranks whose copies differ */
};

/* Compares the hashes of all ranks; hashes r and s are of copies when r and s leave the same remainder by `parts`. True
 * when copies differ; then *difference gets rank, one and other. The wrong one is that which most copies contradict:
 * with three or more it can be told. Pure. */
bool ls_replica_vote(const uint64_t *hashes, int ranks, int parts, struct ls_replica_difference *difference);

/* Into how many parts the copies are cut: 1, or the ranks of a group. Copies of a part: ranks / parts. Pure. */
int ls_replica_parts(const struct ls_config *config, int ranks);

struct ls_replica_check;

/* Takes host memory for a piece of parameters. The pointers must outlive it. LS_MEMORY. */
enum ls_code ls_replica_check_create(const struct ls_config *config, struct ls_device *device, struct ls_comm *comm,
                                     struct ls_replica *replica, struct ls_replica_check **check,
                                     struct ls_error *error);
/* Takes NULL. */
void ls_replica_check_destroy(struct ls_replica_check *check);

/* Collective, behind `step`: hashes and compares. LS_OK with *differs. */
enum ls_code ls_replica_check_run(struct ls_replica_check *check, int64_t step, bool *differs,
                                  struct ls_replica_difference *difference, struct ls_error *error);
/* Collective: compares a number that every rank has of all parameters, whatever it is. */
enum ls_code ls_replica_check_compare(struct ls_replica_check *check, int64_t step, uint64_t own, bool *differs,
                                      struct ls_replica_difference *difference, struct ls_error *error);

/* The error of a difference: LS_ERROR, with what can be told. */
enum ls_code ls_replica_refuse(const struct ls_replica_difference *difference, struct ls_error *error);

#endif
