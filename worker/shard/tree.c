/* Which two nodes are halves of one. */
#include "worker/shard/tree.h"

#include <assert.h>

/* The largest power of two below a count of two or more. */
static int64_t half_of(int64_t count) {
    int64_t half = 1;
    while (2 * half < count) half *= 2;
    return half;
}

/* Whether [begin, end) is a node of the tree over `slots` slots: the way down from the root passes it. */
static bool is_node(int64_t slots, int64_t begin, int64_t end) {
    int64_t a = 0, b = slots;
    while (a <= begin && end <= b && (a < begin || end < b)) {
        const int64_t middle = a + half_of(b - a);
        if (begin < middle)
            b = middle;
        else
            a = middle;
    }
    return a == begin && b == end;
}

void ls_tree_begin(struct ls_tree *tree, int64_t slots) {
    assert(slots >= 1);
    tree->slots = slots;
    tree->height = 0;
}

int ls_tree_push(struct ls_tree *tree, struct ls_tree_node node) {
    assert(tree->height < LS_TREE_HEIGHT_MAX && node.begin < node.end && node.end <= tree->slots);
    assert(tree->height == 0 || tree->nodes[tree->height - 1].end == node.begin);
    tree->nodes[tree->height++] = node;
    int additions = 0;
    while (tree->height > 1) {
        struct ls_tree_node *below = &tree->nodes[tree->height - 2];
        if (!is_node(tree->slots, below->begin, node.end)) break;
        below->end = node.end;
        tree->height--;
        additions++;
    }
    return additions;
}

/* A range is covered by rising powers of two, then falling ones: with k of both together it has at least
 * (2^ceil(k/2) - 1) + (2^floor(k/2) - 1) slots. */
int ls_tree_height(int64_t slots) {
    int height = 0;
    while (((int64_t)1 << (height + 2) / 2) - 1 + ((int64_t)1 << (height + 1) / 2) - 1 <= slots) height++;
    return height;
}

/* Nodes within [begin, end) that are node [a, b) or below it. */
static void cover_below(int64_t a, int64_t b, int64_t begin, int64_t end, struct ls_tree *tree) {
    if (b <= begin || end <= a) return;
    if (begin <= a && b <= end) {
        assert(tree->height < LS_TREE_HEIGHT_MAX);
        tree->nodes[tree->height++] = (struct ls_tree_node){a, b};
        return;
    }
    const int64_t middle = a + half_of(b - a);
    cover_below(a, middle, begin, end, tree);
    cover_below(middle, b, begin, end, tree);
}

void ls_tree_cover(int64_t slots, int64_t begin, int64_t end, struct ls_tree *tree) {
    ls_tree_begin(tree, slots);
    if (begin < end) cover_below(0, slots, begin, end, tree);
}
