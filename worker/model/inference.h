/* Inference: the forward pass of one sequence, a piece at a time, with a key-value cache. The blocks are training's;
 * what is kept between calls are every layer's keys and values. */
#ifndef LS_WORKER_MODEL_INFERENCE_H
#define LS_WORKER_MODEL_INFERENCE_H

#include "common/status.h"
#include "worker/device/device.h"
#include "worker/model/model.h"

#include <stdbool.h>
#include <stdint.h>

struct ls_inference;

/* A cache of as many positions as the configured sequence length of `model`, room for the weights, and scratch for
 * `rows` tokens a pass (1 to the sequence length). The weights are zero until ls_inference_put_block(). model and
 * device must outlive it. LS_MEMORY. */
enum ls_code ls_inference_create(const struct ls_model *model, struct ls_device *device, int64_t rows,
                                 struct ls_inference **inference, struct ls_error *error);
void ls_inference_destroy(struct ls_inference *inference);

/* Copies a block's flat fp32 parameters, host memory of the block's count, to the device. */
enum ls_code ls_inference_put_block(struct ls_inference *inference, int block, const float *parameters,
                                    struct ls_error *error);

/* Positions that are filled, and how many there are. */
int64_t ls_inference_position(const struct ls_inference *inference);
int64_t ls_inference_capacity(const struct ls_inference *inference);
/* Forgets the sequence. */
void ls_inference_reset(struct ls_inference *inference);

/* Appends `count` tokens (each in [0, V), at least one, at most what capacity is left). logits, host memory: after the
 * last token [V], or, with `all`, after each [count, V]. */
enum ls_code ls_inference_append(struct ls_inference *inference, const int32_t *tokens, int64_t count, bool all,
                                 float *logits, struct ls_error *error);

#endif
