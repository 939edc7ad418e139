/* The order in which the slots' gradients of a step are summed under train.reduction: fixed: one binary tree over the
 * slots, whatever rank has them. Node [a, b) of two slots or more is the sum of [a, m) and [m, b), where m - a is the
 * largest power of two below b - a.
 *
 *     [0, 7)  =  [0, 4)                            + [4, 7)
 *                [0, 2)          + [2, 4)            [4, 6)          + [6, 7)
 *                [0, 1) + [1, 2)   [2, 3) + [3, 4)   [4, 5) + [5, 6)
 *
 * Nodes are put on a stack from left to right; as soon as the two on top are the halves of a node they are added. So a
 * rank needs few buffers for many slots, and a few nodes for each rank, put on the owner's stack in rank order, end as
 * the root. Pure. */
#ifndef LS_WORKER_SHARD_TREE_H
#define LS_WORKER_SHARD_TREE_H

#include <stdbool.h>
#include <stdint.h>

/* At least the nodes that any range of up to 2^31 slots has. */
enum { LS_TREE_HEIGHT_MAX = 64 };

struct ls_tree_node {
    int64_t begin, end;
};

/* Nodes on the stack touch one another: each begins where the one below it ends. */
struct ls_tree {
    int64_t slots;
    int height;
    struct ls_tree_node nodes[LS_TREE_HEIGHT_MAX];
};

/* An empty stack for a tree over `slots` >= 1 slots. */
void ls_tree_begin(struct ls_tree *tree, int64_t slots);

/* Puts a node on the stack that begins where the top ends. Returns how many additions are due: that many times the
 * value of the node on top joins the one below it, left + right, and leaves the stack. The stack itself is already
 * after them, so the new node's value was at place height + additions - 1. */
int ls_tree_push(struct ls_tree *tree, struct ls_tree_node node);

/* The most nodes that the stack holds after any range of at most `slots` consecutive slots of any tree. */
int ls_tree_height(int64_t slots);

/* The fewest nodes that cover slots [begin, end), which is what the stack holds after them. */
void ls_tree_cover(int64_t slots, int64_t begin, int64_t end, struct ls_tree *tree);

#endif
