/* The tree of slot gradients against a sum that descends from the root. */
#include "common/order.h"
#include "tests/unit/support.h"
#include "worker/shard/tree.h"

/* The definition. */
static float descend(const float *slots, int64_t begin, int64_t end) {
    if (end - begin == 1) return slots[begin];
    int64_t half = 1;
    while (2 * half < end - begin) half *= 2;
    return descend(slots, begin, begin + half) + descend(slots, begin + half, end);
}

/* A stack of values beside the tree's. */
static void put(struct ls_tree *tree, float values[LS_TREE_HEIGHT_MAX], struct ls_tree_node node, float value) {
    int additions = ls_tree_push(tree, node), place = tree->height + additions - 1;
    values[place] = value;
    for (; additions > 0; additions--, place--) values[place - 1] += values[place];
    assert_int_equal(place, tree->height - 1);
}

/* As ranks do it: each its own slots, then all nodes in rank order. */
static float sum_by_ranks(const float *slots, int64_t count, int ranks) {
    struct ls_tree whole, part;
    float all[LS_TREE_HEIGHT_MAX] = {0}, own[LS_TREE_HEIGHT_MAX];
    ls_tree_begin(&whole, count);
    for (int rank = 0; rank < ranks; rank++) {
        int64_t first, held;
        ls_rank_range(count, rank, ranks, &first, &held);
        ls_tree_begin(&part, count);
        for (int64_t slot = first; slot < first + held; slot++) {
            put(&part, own, (struct ls_tree_node){slot, slot + 1}, slots[slot]);
            assert_true(part.height <= ls_tree_height(slot + 1 - first));
        }
        struct ls_tree cover;
        ls_tree_cover(count, first, first + held, &cover);
        assert_int_equal(cover.height, part.height);
        assert_memory_equal(cover.nodes, part.nodes, (size_t)part.height * sizeof *part.nodes);
        for (int i = 0; i < part.height; i++) put(&whole, all, part.nodes[i], own[i]);
    }
    assert_int_equal(whole.height, 1);
    assert_int_equal(whole.nodes[0].begin, 0);
    assert_int_equal(whole.nodes[0].end, count);
    return all[0];
}

static void any_number_of_ranks_sums_any_number_of_slots_as_the_definition_does(void **state) {
    (void)state;
    for (int64_t count = 1; count <= 130; count++) {
        float *slots = random_floats(count, 1);
        const float expected = descend(slots, 0, count);
        for (int ranks = 1; ranks <= 9 && ranks <= count + 2; ranks++) {
            const float got = sum_by_ranks(slots, count, ranks);
            check_same_bits("sum", &got, &expected, 1);
        }
        free(slots);
    }
}

/* Seven slots, as drawn in the header: not the order from left to right, nor that of halves. */
static void the_sum_of_seven_slots_is_the_one_written_here(void **state) {
    (void)state;
    float s[7];
    bool others_differ[2] = {false};
    for (int i = 0; i < 100; i++) {
        for (int slot = 0; slot < 7; slot++) s[slot] = (float)random_between(-1, 1);
        const float expected = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + s[6]);
        const float in_order = ((((((s[0] + s[1]) + s[2]) + s[3]) + s[4]) + s[5]) + s[6]);
        const float by_halves = ((s[0] + (s[1] + s[2])) + ((s[3] + s[4]) + (s[5] + s[6])));
        for (int ranks = 1; ranks <= 7; ranks++) {
            const float got = sum_by_ranks(s, 7, ranks);
            check_same_bits("sum", &got, &expected, 1);
        }
        others_differ[0] |= expected != in_order;
        others_differ[1] |= expected != by_halves;
    }
    assert_true(others_differ[0] && others_differ[1]);
}

static void the_most_nodes_of_a_range_are_those_found_by_trying(void **state) {
    (void)state;
    int most = 0;
    for (int64_t length = 0; length <= 40; length++) {
        for (int64_t count = length > 0 ? length : 1; count <= 200; count++)
            for (int64_t begin = 0; begin + length <= count; begin++) {
                struct ls_tree tree;
                ls_tree_cover(count, begin, begin + length, &tree);
                if (tree.height > most) most = tree.height;
            }
        assert_int_equal(ls_tree_height(length), most);
    }
    assert_true(ls_tree_height((int64_t)1 << 31) <= LS_TREE_HEIGHT_MAX);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_number_of_ranks_sums_any_number_of_slots_as_the_definition_does),
        cmocka_unit_test(the_sum_of_seven_slots_is_the_one_written_here),
        cmocka_unit_test(the_most_nodes_of_a_range_are_those_found_by_trying),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
