/* The CUDA device's own record, shared by the files of this folder. */
#ifndef LS_WORKER_DEVICE_CUDA_DEVICE_H
#define LS_WORKER_DEVICE_CUDA_DEVICE_H

#include "worker/device/backend.h"

#include <cuda_runtime_api.h>
#include <pthread.h>

struct ls_cuda_gemm;
struct ls_cuda_monitor;
struct ls_cuda_sdpa;
struct ls_cuda_stream;

struct ls_cuda_device {
    struct ls_device base;
    int index; /* CUDA's number of the GPU */
    struct ls_device_info info;
    bool rehearsing;           /* operations are noted, not run */
    struct ls_cuda_gemm *gemm; /* products: library, algorithms, workspace */
    struct ls_cuda_sdpa *sdpa; /* attention by cuDNN */
    struct ls_cuda_monitor *monitor;
    pthread_mutex_t lock; /* guards the list */
    struct ls_cuda_stream *streams;
};

/* Makes the device's GPU current in the calling thread; cheap when it is. */
void ls_cuda_use(const struct ls_cuda_device *device);
/* CUDA's answer to `what` in words, as LS_MEMORY or LS_ERROR. Clears CUDA's record of the error. */
enum ls_code ls_cuda_fail(const struct ls_cuda_device *device, cudaError_t status, const char *what,
                          struct ls_error *error);
/* What a kernel's fault has made of the GPU's context: every call answers so then, a library's in words of its own.
 * cudaSuccess: nothing. Any thread. */
cudaError_t ls_cuda_fault(const struct ls_cuda_device *device);
/* Runs `work` on an otherwise idle stream, again and again for a tenth of a second: the clocks of a GPU that was idle
 * rise meanwhile, and what is measured afterwards is measured alike. Ends early with what `work` returned, if not 0. */
int ls_cuda_warm_up(cudaStream_t stream, int (*work)(void *context), void *context);

#endif
