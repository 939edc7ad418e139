/* Sums of the ranks' values, in rank order: the same bits wherever they are made. */
#ifndef LS_WORKER_COMM_SUM_H
#define LS_WORKER_COMM_SUM_H

#include "worker/comm/comm.h"

/* Copies to where nobody looks soon: past the caches, which saves reading the lines that are overwritten. */
void ls_comm_copy_past_caches(void *to, const void *from, size_t bytes);

/* Adds elements [begin, end) of sources[ranks], in that order, into the same elements of each of sums[sums_count],
 * which may be among the sources; into the first of them past the caches, if told so. bf16 is added in fp32 and rounded
 * once. */
void ls_comm_sum(enum ls_comm_type type, const void *const *sources, int ranks, int64_t begin, int64_t end,
                 void *const *sums, int sums_count, bool past_caches);

#endif
