/* What nccl.h says in a build without CUDA. */
#include "worker/comm/nccl.h"

enum ls_code ls_comm_create_nccl(const struct ls_comm_nccl_options *options, struct ls_comm **comm,
                                 struct ls_error *error) {
    (void)options, (void)comm;
    return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                   "communication: this build has no NCCL (nvcc was not there when it was made, or CUDA=0 was asked "
                   "for). Build it with 'make CUDA=/usr/local/cuda', or use device: cpu.");
}
