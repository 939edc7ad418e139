/* Collectives by NCCL on the streams of a CUDA device; those on the host stay with the communicator over MPI that it is
 * made from. A watchdog thread looks at NCCL's state and at the other ranks' processes: when something is lost, it
 * aborts what hangs on the GPU, every later call fails with the reason, and a process that is still there afterwards is
 * made to leave.
 *
 * Every rank ends with the same bits: NCCL's all-reduce sums each element in one place and spreads it. Values of bf16
 * are not added by NCCL, which would round at every rank they pass: each rank gets its slice of everybody's and adds in
 * fp32 in rank order, as comm.h promises. What crosses the wire is the same. */
#ifndef LS_WORKER_COMM_NCCL_H
#define LS_WORKER_COMM_NCCL_H

#include "worker/comm/comm.h"

struct ls_comm_nccl_options {
    struct ls_comm *host;     /* of ls_comm_create_mpi(); outlives what is made, and may be used meanwhile */
    struct ls_device *device; /* this rank's, of ls_device_create_cuda(); outlives what is made */
    /* Device memory for sums of bf16, from which pieces are cut; 0 when LS_COMM_BF16 is never used. The caller counts
     * it in its plan. */
    int64_t workspace_bytes;
    double timeout_seconds; /* longest time without any collective ending while one is under way; 0: no limit */
    /* Called by the watchdog's thread when the process has not left LS_NCCL_GRACE_SECONDS after a loss: the training
     * thread is stuck and will not come back. Must not return. */
    void (*leave)(const struct ls_error *error);
};

/* What the worker gives as workspace where it is needed. */
enum { LS_NCCL_WORKSPACE_BYTES = 32 << 20 };

enum { LS_NCCL_GRACE_SECONDS = 4, LS_NCCL_INIT_SECONDS = 300 };

/* Collective. LS_ERROR when NCCL is missing or too old, with path and version; LS_COMMUNICATION when the ranks do not
 * find each other within LS_NCCL_INIT_SECONDS. One line in the log says the version, where it came from, and the
 * NCCL_* variables in effect. */
enum ls_code ls_comm_create_nccl(const struct ls_comm_nccl_options *options, struct ls_comm **comm,
                                 struct ls_error *error);

#endif
