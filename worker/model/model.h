/* Models: their blocks, tensors and the arithmetic of a block, forward and backward, written once against device.h. A
 * block (embedding, each transformer layer, head) holds its parameters flat and contiguous: the unit of gather, reduce
 * and recompute. Knows nothing of ZeRO. */
#ifndef LS_WORKER_MODEL_MODEL_H
#define LS_WORKER_MODEL_MODEL_H

#include "common/config.h"
#include "common/status.h"
#include "worker/device/device.h"

#include <stdbool.h>
#include <stdint.h>

struct ls_model;

enum ls_block_kind { LS_BLOCK_EMBEDDING, LS_BLOCK_LAYER, LS_BLOCK_HEAD };

/* A parameter tensor, by its Hugging Face name and layout (GPT-2: [in, out]; Llama: [out, in]); stored as Hugging Face
 * stores it. */
struct ls_tensor {
    char name[96];  /* "h.3.attn.c_attn.weight", "model.layers.3.self_attn.q_proj.weight" */
    int dimensions; /* 1 or 2 */
    int64_t shape[2];
    int64_t count;
    int block;
    int64_t offset;        /* elements, in the block's flat parameters */
    float mean, deviation; /* of the initial values */
};

/* Inside a block the matrices come first: the first `decay_count` elements take weight decay. */
struct ls_block {
    enum ls_block_kind kind;
    char name[24]; /* "embedding", "layer 3", "head" */
    int first_tensor, tensor_count;
    int64_t count, decay_count; /* elements */
};

/* `config` is resolved and its vocab_size set; sequences have at most data.sequence_length tokens (the rotary table
 * ends there). LS_USAGE for shapes that do not fit together, LS_MEMORY. */
enum ls_code ls_model_create(const struct ls_config *config, struct ls_model **model, struct ls_error *error);
void ls_model_destroy(struct ls_model *model);

int ls_model_block_count(const struct ls_model *model);
const struct ls_block *ls_model_block(const struct ls_model *model, int block);
int ls_model_tensor_count(const struct ls_model *model);
const struct ls_tensor *ls_model_tensor(const struct ls_model *model, int tensor);
int64_t ls_model_parameter_count(const struct ls_model *model);
/* The head uses the embedding block's token table: its forward needs, and its backward adds to, that block too. */
bool ls_model_head_is_tied(const struct ls_model *model);

/* Bytes for `sequences` of the configured length. Saved and recomputed: what a block's forward leaves for its backward,
 * which uses it up (0 but for layers); the second part is what ls_block_recompute() makes again from the first, so that
 * blocks may share its memory. Scratch: used within one call, the most that any block needs. */
int64_t ls_model_saved_bytes(const struct ls_model *model, int block, int64_t sequences);
int64_t ls_model_recomputed_bytes(const struct ls_model *model, int block, int64_t sequences);
int64_t ls_model_scratch_bytes(const struct ls_model *model, const struct ls_device *device, int64_t sequences);
/* Constant tables in device memory (the rotary angles); 0 for GPT-2. Filled once by ls_model_fill_tables (synchronous).
 */
int64_t ls_model_table_bytes(const struct ls_model *model);
enum ls_code ls_model_fill_tables(const struct ls_model *model, struct ls_stream *stream, void *tables,
                                  struct ls_error *error);

/* Puts the initial values of elements [first, first + count) of a block's flat parameters at `output`: keyed by (seed,
 * tensor, index), so the same however blocks are cut. Elements beyond the block's count (padding) are zeroed. */
void ls_model_initialize(const struct ls_model *model, int block, int64_t first, int64_t count, uint64_t seed,
                         struct ls_stream *stream, float *output);

/* The type of parameters, activations and gradients of activations: `precision`'s. */
enum ls_dtype ls_model_dtype(const struct ls_model *model);
enum ls_dtype ls_model_dtype_of(const struct ls_config *config);

/* Everything one call on one block of one micro-batch reads and writes; device memory throughout. `void *` arrays hold
 * elements of the model's type but for tables, saved, recomputed and scratch, whose layout is the model's own. */
struct ls_block_pass {
    struct ls_stream *stream;
    int64_t sequences, length;
    const void *tables;
    const void *parameters, *tied_parameters; /* flat; tied: the embedding block's, for a tied head, else NULL */
    float *gradients, *tied_gradients;        /* flat, accumulated, fp32; NULL: forward only */
    const int32_t *tokens, *targets;
    const int32_t *document_start; /* [sequences, length], the first position that each sees; NULL: all see 0 */
    const void *input;             /* residual stream entering [B, T, C]; embedding: NULL */
    void *output; /* residual stream leaving [B, T, C]; head: NULL. NULL for a layer: a forward for its own backward
                      alone, which leaves out what only `output` needs */
    void *stream_gradient; /* backward: the gradient of `output` on entry, of `input` on return, in place */
    void *saved, *recomputed, *scratch;
    double *loss;                /* head: += sum of token losses */
    const float *gradient_scale; /* head: what a token's gradient is multiplied by, 1 / (target tokens of the step) */
    void *cache; /* layers, inference of one sequence: keys and values of its earlier tokens, to which these are added;
                     else NULL */
    int64_t cached; /* how many those are: `tokens` begins at this position. 0 without a cache */
};

/* Embedding and layers. Forward leaves in `saved` and `recomputed` what backward needs; `input` is still there in
 * backward. Recompute puts into `recomputed`, from `input` and `saved`, the bits that forward left there: the norms,
 * the activation function and attention. A pass of 0 sequences puts nothing on the stream. */
void ls_block_forward(const struct ls_model *model, int block, const struct ls_block_pass *pass);
void ls_block_recompute(const struct ls_model *model, int block, const struct ls_block_pass *pass);
void ls_block_backward(const struct ls_model *model, int block, const struct ls_block_pass *pass);
/* Head: final norm, projection, loss, in chunks of rows so that all logits are never stored. With `gradients`, its
 * backward in the same go: stream_gradient is written. */
void ls_head_loss(const struct ls_model *model, const struct ls_block_pass *pass);
/* Inference: writes logits[rows, vocabulary] of the last `rows` tokens of a pass. Its scratch is rows * (C + 2) floats.
 * Models in fp32 only. */
void ls_head_logits(const struct ls_model *model, const struct ls_block_pass *pass, int64_t rows, float *logits);
/* Bytes of one layer's `cache` for the configured length: rows [2, NKV, HD], one a position. */
int64_t ls_model_cache_bytes(const struct ls_model *model);
/* Rows of logits that ls_head_loss holds at once on this kind of device, and elements from one row to the next. */
int64_t ls_model_head_chunk(const struct ls_model *model, const struct ls_device *device, int64_t rows);
int64_t ls_model_logits_stride(const struct ls_model *model);

/* Floating-point operations of one training step's forward and backward per token, 6N + 6LCT as llm.c counts them: N
 * all parameters but learned positions, C the width of all heads. */
double ls_model_flops_per_token(const struct ls_model *model);

#endif
