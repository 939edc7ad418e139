/* What device.h says of GPUs in a build without CUDA. */
#include "worker/device/device.h"

enum ls_code ls_device_count_cuda(int *count, struct ls_error *error) {
    *count = 0;
    return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                   "device: this build has no CUDA (nvcc was not there when it was made, or CUDA=0 was asked for). "
                   "Build it with 'make CUDA=/usr/local/cuda', or use device: cpu.");
}

enum ls_code ls_device_create_cuda(int index, bool tf32, struct ls_device **device, struct ls_error *error) {
    int count;
    (void)index, (void)tf32, (void)device;
    return ls_device_count_cuda(&count, error);
}
