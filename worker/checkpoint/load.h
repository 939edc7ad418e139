/* Loading: parameters and optimizer state for any rank of any world size, and weights from any Hugging Face folder of a
 * known model. All memory is the host's. Errors are LS_CHECKPOINT and name file and tensor, or
 * LS_MEMORY. */
#ifndef LS_WORKER_CHECKPOINT_LOAD_H
#define LS_WORKER_CHECKPOINT_LOAD_H

#include "common/status.h"
#include "worker/model/model.h"
#include "worker/optim/loss_scale.h"

#include <stdint.h>

struct ls_checkpoint_reader;
struct ls_weights;

/* Opens a committed checkpoint folder for `model` and finds every slice that its manifest's state files hold. Each
 * tensor's master weights and moments must be covered exactly once, but for second moments, which a tensor may lack;
 * unknown tensors and other shapes are refused.
 * Contents are not hashed here: ls_checkpoint_newest() did that. `model` must outlive the reader. */
enum ls_code ls_checkpoint_reader_open(const char *folder, const struct ls_model *model,
                                       struct ls_checkpoint_reader **reader, struct ls_error *error);
void ls_checkpoint_reader_close(struct ls_checkpoint_reader *reader);

/* The loss scale that was saved; factor 0: none was. */
struct ls_loss_scale ls_checkpoint_reader_loss_scale(const struct ls_checkpoint_reader *reader);

/* Reads elements [first, first + count) of the block's flat parameters, first moments and second moments into
 * parameters, m and v, [count] each; NULL: not wanted. Elements that belong to no tensor (padding, also beyond the
 * block's end) become 0. Second moments of a tensor that has none, in the checkpoint of another optimizer, are refused.
 */
enum ls_code ls_checkpoint_reader_read(const struct ls_checkpoint_reader *reader, int block, int64_t first,
                                       int64_t count, float *parameters, float *m, float *v, struct ls_error *error);

/* Opens the weights of a Hugging Face folder: model.safetensors, or the files of model.safetensors.index.json; GPT-2's
 * names with or without "transformer.". Refused: a tensor of the model that is missing or has another shape, and a
 * tensor in the files that the model does not have (known buffers and a tied head aside). `model` must outlive it. */
enum ls_code ls_weights_open(const char *folder, const struct ls_model *model, struct ls_weights **weights,
                             struct ls_error *error);
void ls_weights_close(struct ls_weights *weights);

/* Reads elements [first, first + count) of the block's flat parameters, converted to fp32; padding becomes 0. */
enum ls_code ls_weights_read(const struct ls_weights *weights, int block, int64_t first, int64_t count,
                             float *parameters, struct ls_error *error);

#endif
