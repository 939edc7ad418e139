/* Attention by cuDNN at the tensor cores' speed, where it serves: plain causal attention in bf16 and fp16, no document
 * boundary in sight. Forward and backward are used, each by itself, once rank 0 has compared it with our own kernels at
 * the run's shape and found it right and, unless results have to be the same in every run, faster. Engines that the
 * library calls nondeterministic are not used, nor those whose results differ from one time to the next. Whatever
 * speaks against it, our kernels serve and the log says why. */
#ifndef LS_WORKER_DEVICE_CUDA_SDPA_H
#define LS_WORKER_DEVICE_CUDA_SDPA_H

#include "worker/device/cuda/device.h"

/* What rank 0 decided, for all: which of the library's proposals serves each of the plans. No padding: it is sent and
 * stored as it is. */
enum { LS_SDPA_PLANS = 4, LS_SDPA_VERSION_MAX = 24 };
enum { LS_SDPA_USES_FORWARD = 1, LS_SDPA_USES_BACKWARD = 2 };
struct ls_sdpa_choice {
    int64_t used; /* LS_SDPA_USES_...; the rest is our kernels'. What follows says for which attention all the same */
    int64_t capability, batch, length, heads, kv_heads, head_size, dtype;
    int64_t position[LS_SDPA_PLANS], engine[LS_SDPA_PLANS]; /* -1: no such plan */
    char version[LS_SDPA_VERSION_MAX];
};

/* Opens the library if it is there; without it nothing fails. LS_MEMORY. */
enum ls_code ls_cuda_sdpa_create(struct ls_cuda_device *device, struct ls_cuda_sdpa **sdpa, struct ls_error *error);
/* Takes NULL. Nothing is under way. */
void ls_cuda_sdpa_destroy(struct ls_cuda_sdpa *sdpa);
/* The library's version, NULL: there is none. */
const char *ls_cuda_sdpa_version(const struct ls_cuda_sdpa *sdpa);

/* Remembers a forward or backward, with its pointers, for ls_cuda_sdpa_choose(). */
void ls_cuda_sdpa_note(struct ls_cuda_sdpa *sdpa, enum ls_op op, const void *arguments);
/* Compares and measures with the pointers of what was noted, whose contents are lost. Says what came of it in the log;
 * nothing is said where nothing in 16 bits was noted. */
void ls_cuda_sdpa_choose(struct ls_cuda_sdpa *sdpa, struct ls_sdpa_choice *choice);
/* True where a choice that was made before is for what was noted and, if it is cuDNN, its results still agree with
 * ours. The same pointers' contents are lost. */
bool ls_cuda_sdpa_recall(struct ls_cuda_sdpa *sdpa, const struct ls_sdpa_choice *choice);
/* Uses what was chosen; false: this GPU or library cannot, the log says why, and our kernels are used. */
bool ls_cuda_sdpa_adopt(struct ls_cuda_sdpa *sdpa, const struct ls_sdpa_choice *choice);
/* Our kernels from now on. */
void ls_cuda_sdpa_abandon(struct ls_cuda_sdpa *sdpa);

/* Puts the operation on the stream; false: it is not one that cuDNN was chosen for, and nothing happened. */
bool ls_cuda_sdpa_forward(struct ls_cuda_sdpa *sdpa, struct ls_stream *stream,
                          const struct ls_op_attention_forward *op);
bool ls_cuda_sdpa_backward(struct ls_cuda_sdpa *sdpa, struct ls_stream *stream,
                           const struct ls_op_attention_backward *op);

#endif
