/* Learning rate schedules: formulas in the header. */
#include "worker/optim/schedule.h"

#include <math.h>

/* Where update n stands between `begin` and `end`, within [0, 1]. */
static double progress(int64_t n, int64_t begin, int64_t end) {
    if (n <= begin) return 0;
    return n >= end ? 1 : (double)(n - begin) / (double)(end - begin);
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
        int64_t decay = S - (int64_t)ceil(config->lr_schedule.decay_ratio * (double)S);
        return base * (m + (1 - m) * (1 - sqrt(progress(n, decay > W ? decay : W, S))));
    }
    }
    return base;
}
