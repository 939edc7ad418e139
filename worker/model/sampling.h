/* Choosing the next token from logits, on the host. */
#ifndef LS_WORKER_MODEL_SAMPLING_H
#define LS_WORKER_MODEL_SAMPLING_H

#include "common/status.h"

#include <stdint.h>

struct ls_sampler {
    double temperature; /* 0: the most likely token */
    int64_t top_k;      /* only the k most likely tokens; 0: all */
    uint64_t seed;
    uint64_t drawn; /* tokens drawn so far; the same seed draws the same tokens */
};

/* Draws a token from softmax(logits / temperature) over the top_k most likely of V tokens; of equal logits the lower
 * token counts as more likely. `order` is scratch of V entries. LS_NONFINITE when a logit is not finite. */
enum ls_code ls_sample(struct ls_sampler *sampler, const float *logits, int64_t V, int32_t *order, int32_t *token,
                       struct ls_error *error);

#endif
