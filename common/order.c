/* The order of samples: a Feistel bijection per source and epoch, and a binary tree that deals draws to sources. */
#include "common/order.h"

#include <stdlib.h>

enum { FEISTEL_ROUNDS = 8 };

struct ls_order {
    int sources;
    bool weighted;
    uint64_t samples[LS_ORDER_SOURCES_MAX];
    uint64_t keys[LS_ORDER_SOURCES_MAX];
    uint64_t weight_before[LS_ORDER_SOURCES_MAX + 1]; /* sum of the weights of sources [0, i) */
};

/* The output function of SplitMix64 (Steele, Lea, Flood 2014, with Stafford's mix 13 constants): a bijection on 64
 * bits. */
static uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* A key made of a key and a number; for one `key`, different numbers give different keys. */
static uint64_t derive(uint64_t key, uint64_t number) {
    return mix(mix(key + 0x9e3779b97f4a7c15u) + number);
}

uint64_t ls_permute(uint64_t key, uint64_t round, uint64_t index, uint64_t n) {
    if (n == 1) return 0;
    int half_bits = 1; /* the least with 2^(2 * half_bits) >= n */
    while (half_bits < 32 && (n - 1) >> (2 * half_bits)) half_bits++;
    const uint64_t mask = (UINT64_C(1) << half_bits) - 1;
    const uint64_t epoch_key = derive(key, round);
    uint64_t round_keys[FEISTEL_ROUNDS];
    for (int r = 0; r < FEISTEL_ROUNDS; r++) round_keys[r] = derive(epoch_key, (uint64_t)r);
    /* The walk stays on the cycle of `index`, which comes back to [0, n) at `index` itself at the latest; as n is more
     * than a quarter of the domain, it takes fewer than four turns on average. */
    do {
        uint64_t left = index >> half_bits, right = index & mask;
        for (int r = 0; r < FEISTEL_ROUNDS; r++) {
            uint64_t next = left ^ (mix(right + round_keys[r]) & mask);
            left = right;
            right = next;
        }
        index = left << half_bits | right;
    } while (index >= n);
    return index;
}

enum ls_code ls_order_create(uint64_t seed, const uint64_t *samples, const uint64_t *weights, int sources,
                             struct ls_order **order, struct ls_error *error) {
    if (sources < 1 || sources > LS_ORDER_SOURCES_MAX)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "data.train has %d sources; 1 to %d are possible. Merge some of them.", sources,
                       LS_ORDER_SOURCES_MAX);
    struct ls_order *made = calloc(1, sizeof *made);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "no memory for the order of %d sources", sources);
    made->sources = sources;
    made->weighted = weights != NULL;
    for (int i = 0; i < sources; i++) {
        const uint64_t weight = weights ? weights[i] : samples[i];
        enum ls_code code = LS_OK;
        if (samples[i] == 0)
            code = ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                           "source %d of data.train holds no samples. Remove it or give it text.", i);
        else if (weight == 0)
            code = ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                           "source %d of data.train has the weight 0; weights are integers from 1. Remove the source "
                           "to leave it out.",
                           i);
        else if (__builtin_add_overflow(made->weight_before[i], weight, &made->weight_before[i + 1]))
            code = ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                           "the %s of data.train add up to 2^64 or more at source %d. Make them smaller.",
                           weights ? "weights" : "samples", i);
        if (code) {
            free(made);
            return code;
        }
        made->samples[i] = samples[i];
        made->keys[i] = derive(seed, (uint64_t)i);
    }
    *order = made;
    return LS_OK;
}

void ls_order_destroy(struct ls_order *order) {
    free(order);
}

struct ls_draw ls_order_at(const struct ls_order *order, uint64_t position) {
    /* At each node [first, end) of the tree, `draw` counts the earlier draws that came here. */
    int first = 0, end = order->sources;
    uint64_t draw = position;
    while (end - first > 1) {
        const int middle = first + (end - first) / 2;
        const uint64_t left = order->weight_before[middle] - order->weight_before[first];
        const uint64_t both = order->weight_before[end] - order->weight_before[first];
        const uint64_t left_before = (uint64_t)((unsigned __int128)draw * left / both);
        const uint64_t left_after = (uint64_t)(((unsigned __int128)draw + 1) * left / both);
        if (left_after > left_before) {
            end = middle;
            draw = left_before;
        } else {
            first = middle;
            draw -= left_before;
        }
    }
    const uint64_t samples = order->samples[first], epoch = draw / samples;
    return (struct ls_draw){
        .source = (uint32_t)first,
        .sample = ls_permute(order->keys[first], epoch, draw % samples, samples),
        .draw = draw,
        .epoch = epoch,
    };
}

uint64_t ls_order_epoch_length(const struct ls_order *order) {
    return order->weighted ? 0 : order->weight_before[order->sources];
}

void ls_rank_range(int64_t sequences, int rank, int world_size, int64_t *first, int64_t *count) {
    const __int128 all = sequences;
    *first = (int64_t)(all * rank / world_size);
    *count = (int64_t)(all * (rank + 1) / world_size) - *first;
}

/* The first rank r with (r + 1) sequences / world_size >= sequence + 1. */
int ls_rank_of(int64_t sequences, int world_size, int64_t sequence) {
    return (int)(((__int128)(sequence + 1) * world_size - 1) / sequences);
}
