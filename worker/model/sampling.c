/* Sampling with temperature and top-k. */
#define _GNU_SOURCE
#include "worker/model/sampling.h"

#include <math.h>
#include <stdlib.h>

/* Uniform in [0, 1): SplitMix64 (Steele et al. 2014) of a counter. */
static double uniform(uint64_t seed, uint64_t counter) {
    uint64_t z = seed + (counter + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static int compare_likelihood(const void *left, const void *right, void *logits) {
    int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;
    float x = ((const float *)logits)[a], y = ((const float *)logits)[b];
    if (x != y) return x > y ? -1 : 1;
    return a < b ? -1 : a > b;
}

static int32_t most_likely(const float *logits, int64_t V) {
    int32_t best = 0;
    for (int32_t i = 1; i < V; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* Draws from the `count` tokens order[0...]: the first whose cumulated probability exceeds a uniform number. */
static int32_t draw(struct ls_sampler *sampler, const float *logits, const int32_t *order, int64_t count, double top) {
    double sum = 0, cumulated = 0;
    for (int64_t i = 0; i < count; i++) sum += exp(((double)logits[order[i]] - top) / sampler->temperature);
    double target = uniform(sampler->seed, sampler->drawn++) * sum;
    for (int64_t i = 0; i < count; i++) {
        cumulated += exp(((double)logits[order[i]] - top) / sampler->temperature);
        if (cumulated > target) return order[i];
    }
    return order[count - 1];
}

enum ls_code ls_sample(struct ls_sampler *sampler, const float *logits, int64_t V, int32_t *order, int32_t *token,
                       struct ls_error *error) {
    for (int64_t i = 0; i < V; i++)
        if (!isfinite(logits[i]))
            return ls_fail(
                error, LS_NONFINITE, LS_SCOPE_CALL,
                "generate: the logit of token %lld is %g. The weights are damaged or their training diverged: use an "
                "earlier checkpoint.",
                (long long)i, (double)logits[i]);
    int32_t best = most_likely(logits, V);
    if (sampler->temperature == 0) {
        *token = best;
        return LS_OK;
    }
    int64_t count = sampler->top_k && sampler->top_k < V ? sampler->top_k : V;
    for (int32_t i = 0; i < V; i++) order[i] = i;
    if (count < V) qsort_r(order, (size_t)V, sizeof *order, compare_likelihood, (void *)logits);
    *token = draw(sampler, logits, order, count, (double)logits[best]);
    return LS_OK;
}
