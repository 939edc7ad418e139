/* Learning rate schedules: formulas in the header. */
#include "worker/optim/schedule.h"

#include <float.h>
#include <math.h>

/* Where update n stands between `begin` and `end`, within [0, 1]. */
static double progress(int64_t n, int64_t begin, int64_t end) {
    if (n <= begin) return 0;
    return n >= end ? 1 : (double)(n - begin) / (double)(end - begin);
}

/* The steps that are `ratio` of all, rounded up. A ratio such as 0.07 is not exact in double: a product that is whole
 * but for that is whole. */
static int64_t part_of(double ratio, int64_t steps) {
    const double part = ratio * (double)steps, whole = nearbyint(part);
    return (int64_t)(fabs(part - whole) <= 2 * DBL_EPSILON * part ? whole : ceil(part));
}

double ls_schedule_learning_rate(const struct ls_config *config, int64_t step, int64_t total_steps) {
    const double base = config->optimizer.lr, m = config->lr_schedule.min_lr_ratio;
    const int64_t n = step - 1, W = config->lr_schedule.warmup_steps, S = total_steps;
    if (n < W) return base * (double)(n + 1) / (double)W;

    switch (config->lr_schedule.type) {
    case LS_CONSTANT: return base;
    case LS_COSINE: return base * (m + (1 - m) * 0.5 * (1 + cos(M_PI * progress(n, W, S))));
    case LS_LINEAR: return base * (1 - (1 - m) * progress(n, W, S));
    case LS_WSD: {
        const int64_t decay = S - part_of(config->lr_schedule.decay_ratio, S);
        return base * (m + (1 - m) * (1 - sqrt(progress(n, decay > W ? decay : W, S))));
    }
    }
    return base;
}
