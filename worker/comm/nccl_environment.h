/* The environment that NCCL reads: what sharing a GPU needs, and what is in effect. */
#ifndef LS_WORKER_COMM_NCCL_ENVIRONMENT_H
#define LS_WORKER_COMM_NCCL_ENVIRONMENT_H

#include <stdbool.h>
#include <stddef.h>

/* Lets ranks share one GPU (gpu.share), for tests: NCCL refuses two ranks on a device of one host, so each rank claims
 * a host of its own, and everything goes by sockets, by the protocol that waits best; by the loopback interface when
 * all ranks are on one host. Call it before the first call of CUDA or NCCL in the process. What the user has set stays.
 */
void ls_nccl_share_gpu(int rank, bool one_host);

/* The variables NCCL_* as "NAME=value NAME=value ...", sorted, cut off at `bytes`; "none" without any. */
void ls_nccl_environment(char *text, size_t bytes);

#endif
