/* Which device a rank computes on: the configuration's `device` and `gpu`, the GPUs that this process sees, and the
 * other ranks. As many GPUs as ranks on the node: each its own by local rank; one visible: that one; anything else has
 * to be said by whoever started the ranks. */
#ifndef LS_WORKER_GPUS_H
#define LS_WORKER_GPUS_H

#include "common/config.h"
#include "common/status.h"
#include "worker/comm/comm.h"
#include "worker/device/device.h"

/* The number of the GPU of local rank `local_rank` of `local_size` when each sees `visible`; with `share` ranks take
 * turns. LS_USAGE with both counts. */
enum ls_code ls_gpus_pick(int visible, int local_rank, int local_size, bool share, int *gpu, struct ls_error *error);

/* Whether ranks started on this host will be on GPUs, for plans made before they are. */
bool ls_gpus_expected(const struct ls_config *config);

/* This rank's device; `threads` are for CPUs. With device: auto a host without GPUs is one with CPUs, and the log says
 * why. Not collective. LS_USAGE: see ls_gpus_pick() and ls_device_count_cuda(). */
enum ls_code ls_gpus_open(const struct ls_config *config, const struct ls_comm *comm, int threads,
                          struct ls_device **device, struct ls_error *error);

/* What the other ranks hear of a rank's device. */
struct ls_gpus_place {
    char host[64];
    char bus_id[24]; /* PCI; "": CPUs */
    char name[128];
};
/* Refuses two of places[ranks] on one GPU unless `share` says so, and GPUs beside CPUs: LS_USAGE names the first rank
 * that does not go together with one before it, and that one. LS_MEMORY. Pure. */
enum ls_code ls_gpus_compare(const struct ls_gpus_place *places, int ranks, bool share, struct ls_error *error);

/* Collective. Refuses two ranks on one GPU unless gpu.share says so, and GPUs beside CPUs: LS_USAGE on all ranks,
 * naming both ranks. *sharers: ranks on this rank's GPU, itself included; 0 on CPUs. */
enum ls_code ls_gpus_check(const struct ls_config *config, struct ls_comm *comm, const struct ls_device *device,
                           int *sharers, struct ls_error *error);

#endif
