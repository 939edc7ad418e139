/* Learning rate schedules: the rate of a step as a pure function of the configuration, so that a resumed run goes on
 * with the same rates.
 *
 * With S total steps, W warm-up steps, m = min_lr_ratio and n = step - 1 updates done before (steps count from 1), the
 * rate is lr times n < W      (n + 1) / W                                  linear warm-up, the last of its steps at the
 * full rate constant   1 cosine     m + (1 - m) (1 + cos(pi p)) / 2              p = (n - W) / (S - W) (Loshchilov &
 * Hutter 2017, eq. 5) linear     1 - (1 - m) p                                the same p wsd        m + (1 - m) (1 -
 * sqrt(p))                    p = (n - D) / (S - D) for n >= D, 1 before  (Hägele et al. 2024, eq. 1) where D = max(W,
 * S - ceil(decay_ratio S)) is where wsd's decay begins. p is held within [0, 1]: steps beyond S keep the last rate, m.
 */
#ifndef LS_WORKER_OPTIM_SCHEDULE_H
#define LS_WORKER_OPTIM_SCHEDULE_H

#include "common/config.h"

#include <stdint.h>

/* The learning rate of `step` (from 1) of `total_steps`; `config` gives optimizer.lr and lr_schedule. */
double ls_schedule_learning_rate(const struct ls_config *config, int64_t step, int64_t total_steps);

#endif
