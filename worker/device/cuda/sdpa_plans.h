/* The record of attention by cuDNN, shared by its execution (sdpa.c) and its choice (sdpa_choice.c).
 *
 * A forward takes the whole micro-batch at once. A backward takes it in pieces, whose workspace is bounded (see
 * ls_cuda_attention_piece()). Micro-batches of another size go sequence by sequence: two plans for each direction. */
#ifndef LS_WORKER_DEVICE_CUDA_SDPA_PLANS_H
#define LS_WORKER_DEVICE_CUDA_SDPA_PLANS_H

#include "worker/device/cuda/sdpa.h"
#include "worker/device/cuda/sdpa_graph.h"

/* A plan and, behind it, the one for single sequences, which is there if the first takes several. */
enum ls_sdpa_plan_kind {
    LS_SDPA_FORWARD,
    LS_SDPA_FORWARD_SINGLE,
    LS_SDPA_BACKWARD,
    LS_SDPA_BACKWARD_SINGLE,
    LS_SDPA_PLAN_COUNT
};
enum { LS_SDPA_BOTH = LS_SDPA_USES_FORWARD | LS_SDPA_USES_BACKWARD };
_Static_assert((int)LS_SDPA_PLAN_COUNT == LS_SDPA_PLANS, "a choice has a place for each plan");

struct ls_sdpa_plan {
    int64_t batch, kv_heads;             /* that an execution takes; batch 0: there is no such plan */
    int64_t position, engine;            /* among the library's proposals; the engine's number there */
    cudnnBackendDescriptor_t descriptor; /* NULL: not made */
    struct ls_sdpa_graph graph;          /* its descriptors, the plan's among them */
};

struct ls_cuda_sdpa {
    struct ls_cuda_device *device;
    const struct ls_cudnn *library; /* NULL: `missing` says why */
    struct ls_error missing;
    cudnnHandle_t handle;                   /* NULL until plans are made */
    struct ls_op_attention_forward forward; /* as noted; no output: nothing was */
    struct ls_op_attention_backward backward;
    struct ls_attention_piece piece; /* of what was noted */
    struct ls_sdpa_plan plans[LS_SDPA_PLANS];
    int64_t used; /* chosen: LS_SDPA_USES_... */
    float scale, masked, one;
};

/* Why cuDNN does not serve, for the log. */
struct ls_sdpa_reason {
    char text[640];
};

/* Whether the library is there and serves what was noted, as far as can be said before it is asked. False: why. */
bool ls_sdpa_is_suitable(const struct ls_cuda_sdpa *sdpa, struct ls_sdpa_reason *why);
/* Plans of one direction of what is suitable, LS_SDPA_USES_..., for what was noted, by the library's first usable
 * proposals or those that were chosen. False: why, and there are none. */
bool ls_sdpa_make_plans(struct ls_cuda_sdpa *sdpa, int64_t direction, const struct ls_sdpa_choice *wanted,
                        struct ls_sdpa_reason *why);
/* Of the directions, one or both. */
void ls_sdpa_clear_plans(struct ls_cuda_sdpa *sdpa, int64_t directions);
/* The direction that a plan is for. */
static inline int64_t ls_sdpa_direction(int plan) {
    return plan < LS_SDPA_BACKWARD ? LS_SDPA_USES_FORWARD : LS_SDPA_USES_BACKWARD;
}
/* Bytes of the backward's scratch of `count` sums in front of the library's workspace. */
int64_t ls_sdpa_sums_bytes(int64_t count);

/* Runs the plans, for operations of the noted shape with at most its number of sequences. */
cudnnStatus_t ls_sdpa_run_forward(const struct ls_cuda_sdpa *sdpa, cudaStream_t stream,
                                  const struct ls_op_attention_forward *op);
cudnnStatus_t ls_sdpa_run_backward(const struct ls_cuda_sdpa *sdpa, cudaStream_t stream,
                                   const struct ls_op_attention_backward *op);

#endif
