/* The order of samples: a pure function of (seed, sizes, weights), the same on every process at any world size. */
#ifndef LS_COMMON_ORDER_H
#define LS_COMMON_ORDER_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

/* A keyed bijection on [0, n): a Feistel network over the next even power of two with cycle walking. `round` (the epoch
 * of a source) gives an independent permutation. n >= 1, index < n. */
uint64_t ls_permute(uint64_t key, uint64_t round, uint64_t index, uint64_t n);

enum { LS_ORDER_SOURCES_MAX = 64 };

struct ls_order;

/* What the k-th sequence of the run is. */
struct ls_draw {
    uint32_t source;
    uint64_t sample; /* within the source */
    uint64_t draw;   /* how many draws of this source came before */
    uint64_t epoch;  /* draw / samples of the source */
};

/* `samples[i]` and `weights[i]` of `sources` sources; weights NULL: in proportion to size, one epoch covers all samples
 * exactly once. Weights: draws are dealt by a binary tree over the sources, a node sends floor(c * L / (L + R)) of its
 * first c draws left. Errors are LS_USAGE (a weight below 1, too many sources), LS_DATA (a source without samples) and
 * LS_MEMORY.
 */
enum ls_code ls_order_create(uint64_t seed, const uint64_t *samples, const uint64_t *weights, int sources,
                             struct ls_order **order, struct ls_error *error);
void ls_order_destroy(struct ls_order *order);

/* Draw `position` of the run. O(log sources). */
struct ls_draw ls_order_at(const struct ls_order *order, uint64_t position);

/* Sequences in one epoch: the sum of samples without weights; 0 with weights (an epoch is not defined). */
uint64_t ls_order_epoch_length(const struct ls_order *order);

/* The sequences of rank `rank` of `world_size` in a step of `sequences`: [first, first + count), consecutive and as
 * even as possible: from rank * sequences / world_size to (rank + 1) * sequences / world_size. sequences >= 0, 0 <=
 * rank < world_size. */
void ls_rank_range(int64_t sequences, int rank, int world_size, int64_t *first, int64_t *count);
/* The rank in whose range `sequence` is, 0 <= sequence < sequences. */
int ls_rank_of(int64_t sequences, int world_size, int64_t sequence);

#endif
