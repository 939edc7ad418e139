/* What a GPU is at: memory, power and clock, looked at once a second by a thread of its own, so that no step waits for
 * the driver. NVML is opened at run time; without it power and clock stay unknown. */
#ifndef LS_WORKER_DEVICE_CUDA_MONITOR_H
#define LS_WORKER_DEVICE_CUDA_MONITOR_H

#include "worker/device/device.h"

struct ls_cuda_device;
struct ls_cuda_monitor;

/* NULL when there is no memory or no thread: then nothing is known. */
struct ls_cuda_monitor *ls_cuda_monitor_start(struct ls_cuda_device *device);
/* Takes NULL. */
void ls_cuda_monitor_stop(struct ls_cuda_monitor *monitor);
/* What was seen last; never waits. Takes NULL. */
struct ls_device_gauges ls_cuda_monitor_read(const struct ls_cuda_monitor *monitor);

#endif
