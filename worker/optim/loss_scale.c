/* The factor's course. */
#include "worker/optim/loss_scale.h"

struct ls_loss_scale ls_loss_scale_first(enum ls_precision precision) {
    return (struct ls_loss_scale){.factor = precision == LS_PRECISION_FP16 ? LS_LOSS_SCALE_FIRST : 0};
}

bool ls_loss_scale_advance(struct ls_loss_scale *scale, bool found_inf) {
    if (scale->factor == 0) return false;
    if (found_inf) {
        const bool skipped = scale->factor > 1;
        if (skipped) scale->factor /= 2;
        scale->good_steps = 0;
        return skipped;
    }
    if (++scale->good_steps < LS_LOSS_SCALE_GROWTH_STEPS) return false;
    if (scale->factor < LS_LOSS_SCALE_MAX) scale->factor *= 2;
    scale->good_steps = 0;
    return false;
}

bool ls_loss_scale_is_valid(const struct ls_loss_scale *scale) {
    return scale->factor >= 1 && scale->factor <= LS_LOSS_SCALE_MAX && (scale->factor & (scale->factor - 1)) == 0 &&
           scale->good_steps >= 0 && scale->good_steps < LS_LOSS_SCALE_GROWTH_STEPS;
}
