/* Dynamic loss scaling for fp16 (Micikevicius et al. 2018, section 3.2): the loss's gradient is multiplied by a power
 * of two, so that small gradients do not vanish, and the sums of gradients are divided by it before they are used. When
 * one of them is not finite the step's update is skipped and the factor halved; after a run of good steps it is
 * doubled. All ranks see the same gradients' norm, so their factors are equal. */
#ifndef LS_WORKER_OPTIM_LOSS_SCALE_H
#define LS_WORKER_OPTIM_LOSS_SCALE_H

#include "common/config.h"

#include <stdbool.h>
#include <stdint.h>

enum { LS_LOSS_SCALE_FIRST = 1 << 16, LS_LOSS_SCALE_MAX = 1 << 24, LS_LOSS_SCALE_GROWTH_STEPS = 1000 };

/* State of a run, part of its checkpoints. */
struct ls_loss_scale {
    int64_t factor;     /* a power of two from 1 to LS_LOSS_SCALE_MAX; 0: not in use, the precision is not fp16 */
    int64_t good_steps; /* since the factor last changed */
};

/* At the start of a run. */
struct ls_loss_scale ls_loss_scale_first(enum ls_precision precision);
/* After a step. Returns true when its update counts as skipped; false for a good step, and when a factor of 1 was too
 * large: then the gradients themselves are not finite. */
bool ls_loss_scale_advance(struct ls_loss_scale *scale, bool found_inf);
/* Whether a checkpoint can have held it. */
bool ls_loss_scale_is_valid(const struct ls_loss_scale *scale);

#endif
