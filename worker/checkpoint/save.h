/* Saving: one rank's files of a checkpoint, streamed from host memory.
 *
 *     model.safetensors                        all weights, or, for a model that several ranks write,
 *     model-00001-of-00004.safetensors ...     whole tensors, dealt to the first ranks by size, and
 *     model.safetensors.index.json             which says where each is (rank 0)
 *     config.json, tokenizer.json, tokenizer_config.json    what Hugging Face needs beside the weights (rank 0)
 *     state/rank-00000.safetensors             this rank's slices of master weights and moments (every rank), fp32,
 *                                              master weights bf16 under optimizer.stochastic_rounding
 *
 * Every block's flat parameters are cut into one slice per rank (ls_checkpoint_slice). A slice meets some of the
 * block's tensors; for each the state file holds 1-D tensors `master:NAME`, `exp_avg:NAME` (the first moment, or the
 * only one) and, where AdamW updates it, `exp_avg_sq:NAME`, and in its metadata under NAME the element of the whole
 * tensor they start at. So any number of ranks can read what any other number wrote. Errors are LS_CHECKPOINT and
 * LS_MEMORY; a full disk is noticed before the first byte where the file system can reserve space. */
#ifndef LS_WORKER_CHECKPOINT_SAVE_H
#define LS_WORKER_CHECKPOINT_SAVE_H

#include "common/config.h"
#include "common/manifest.h"
#include "common/status.h"
#include "worker/model/model.h"
#include "worker/optim/loss_scale.h"

#include <stdint.h>

enum { LS_CHECKPOINT_RANK_FILES_MAX = 6 };

struct ls_checkpoint_writer;

/* What a state file holds of every parameter. */
enum ls_checkpoint_kind { LS_CHECKPOINT_MASTER, LS_CHECKPOINT_EXP_AVG, LS_CHECKPOINT_EXP_AVG_SQ, LS_CHECKPOINT_KINDS };

/* What it points to must outlive the writer. */
struct ls_checkpoint_writer_options {
    const char *folder; /* the build folder, with its state/ (checkpoint_folder.h) */
    const struct ls_model *model;
    const struct ls_config *config;
    const char *tokenizer;  /* "byte": its tokenizer.json is written; the path of a tokenizer.json: copied if it is
                               there; else: none */
    int64_t document_token; /* bos_token_id and eos_token_id of config.json; -1: null */
    struct ls_loss_scale loss_scale; /* factor 0: none; else in the metadata of every state file */
    int64_t rank, world_size;
    int64_t replicas, unit;   /* see ls_checkpoint_slice() */
    int64_t model_file_bytes; /* a model file for each so many bytes of weights, at most one per rank; 0: 64 MiB */
};

/* Rank `rank`'s slice of a block of `count` elements. The ranks form `replicas` groups of consecutive ranks; within a
 * group slices have ceil(count / ranks of a group) elements each, rounded up to a multiple of `unit`, the last ones
 * shorter or empty, and a slice is cut over the groups into pieces of ceil(slice / replicas). */
void ls_checkpoint_slice(int64_t count, int64_t rank, int64_t world_size, int64_t replicas, int64_t unit,
                         int64_t *first, int64_t *length);

/* Deals the model's tensors to ranks, whole, the largest first, each to the file with the fewest bytes so far:
 * owners[tensor count] becomes the rank that writes each, *files the number of model files. `model_file_bytes` as in
 * the options. LS_MEMORY. */
enum ls_code ls_checkpoint_deal(const struct ls_model *model, int64_t world_size, int64_t model_file_bytes, int *owners,
                                int64_t *files, struct ls_error *error);

/* Bytes that all ranks' files take together, headers estimated from above: for ls_checkpoint_begin(). */
int64_t ls_checkpoint_bytes(const struct ls_config *config, const struct ls_model *model, int64_t world_size);

/* Makes this rank's files, reserves their space and writes their headers. */
enum ls_code ls_checkpoint_writer_create(const struct ls_checkpoint_writer_options *options,
                                         struct ls_checkpoint_writer **writer, struct ls_error *error);

/* What stands before the colon of a tensor of this kind. */
extern const char *const ls_checkpoint_kind_names[LS_CHECKPOINT_KINDS];
/* The first element of a block whose state files hold this kind, as they do of those behind it: tensors are held whole
 * or not at all. The block's count: none is. */
int64_t ls_checkpoint_held_from(const struct ls_config *config, const struct ls_block *block,
                                enum ls_checkpoint_kind kind);
/* Elements of all blocks of which state files hold this kind. */
int64_t ls_checkpoint_held(const struct ls_config *config, const struct ls_model *model, enum ls_checkpoint_kind kind);
/* The type in which a state file holds what is of this kind. */
enum ls_dtype ls_checkpoint_state_dtype(const struct ls_config *config, enum ls_checkpoint_kind kind);

/* Master weights and moments of `block`: `values`, of that type, points to the first element of the rank's slice that
 * is held; NULL where none is. Blocks come in order, for each all kinds in order, each once. Host memory, free after
 * the call. */
enum ls_code ls_checkpoint_writer_put_state(struct ls_checkpoint_writer *writer, int block,
                                            enum ls_checkpoint_kind kind, const void *values, struct ls_error *error);

/* The next `count` bytes of the tensors that ls_checkpoint_deal() gave to this rank, in the order of the model, in the
 * model's type; beside the state, in any order with it. Host memory, free after the call. */
enum ls_code ls_checkpoint_writer_put_weights(struct ls_checkpoint_writer *writer, const void *bytes, size_t count,
                                              struct ls_error *error);

/* After all state and weights: fsyncs the files and fills files[LS_CHECKPOINT_RANK_FILES_MAX]. */
enum ls_code ls_checkpoint_writer_finish(struct ls_checkpoint_writer *writer, struct ls_file_record *files,
                                         size_t *count, struct ls_error *error);
/* Closes the files; what was written of an unfinished checkpoint stays in the build folder, which is never committed.
 */
void ls_checkpoint_writer_destroy(struct ls_checkpoint_writer *writer);

#endif
