/* The CUDA libraries that are opened when a device was found: cuBLASLt, cuDNN, NCCL and NVML. One program serves hosts
 * with and without them. Types come from the libraries' own headers (NVML's: see monitor.c). Each is looked for in the
 * folders of LOCKSTEP_CUDA_LIBRARIES (separated by ':'), on the loader's path, in /usr/local/cuda/lib64, and in the
 * nvidia packages of a Python (an active environment's, those around the python3 on the path, the user's, the
 * system's); what was found is logged once with path and version, and stays open until the process ends. */
#ifndef LS_WORKER_DEVICE_CUDA_LIBRARIES_H
#define LS_WORKER_DEVICE_CUDA_LIBRARIES_H

#include "common/status.h"

#include <cublasLt.h>
#ifdef LS_CUDNN
#include <cudnn.h>
#endif
#include <nccl.h>

#define LS_CUBLASLT_FUNCTIONS(X)                                                                                       \
    X(cublasLtCreate)                                                                                                  \
    X(cublasLtDestroy)                                                                                                 \
    X(cublasLtGetVersion)                                                                                              \
    X(cublasLtMatmul)                                                                                                  \
    X(cublasLtMatmulAlgoGetHeuristic)                                                                                  \
    X(cublasLtMatmulDescCreate)                                                                                        \
    X(cublasLtMatmulDescDestroy)                                                                                       \
    X(cublasLtMatmulDescSetAttribute)                                                                                  \
    X(cublasLtMatmulPreferenceCreate)                                                                                  \
    X(cublasLtMatmulPreferenceDestroy)                                                                                 \
    X(cublasLtMatmulPreferenceSetAttribute)                                                                            \
    X(cublasLtMatrixLayoutCreate)                                                                                      \
    X(cublasLtMatrixLayoutDestroy)

#define LS_CUDNN_FUNCTIONS(X)                                                                                          \
    X(cudnnGetVersion)                                                                                                 \
    X(cudnnGetErrorString)                                                                                             \
    X(cudnnGetLastErrorString)                                                                                         \
    X(cudnnCreate)                                                                                                     \
    X(cudnnDestroy)                                                                                                    \
    X(cudnnSetStream)                                                                                                  \
    X(cudnnBackendCreateDescriptor)                                                                                    \
    X(cudnnBackendDestroyDescriptor)                                                                                   \
    X(cudnnBackendFinalize)                                                                                            \
    X(cudnnBackendSetAttribute)                                                                                        \
    X(cudnnBackendGetAttribute)                                                                                        \
    X(cudnnBackendExecute)

#define LS_NCCL_FUNCTIONS(X)                                                                                           \
    X(ncclGetVersion)                                                                                                  \
    X(ncclGetUniqueId)                                                                                                 \
    X(ncclGetErrorString)                                                                                              \
    X(ncclGetLastError)                                                                                                \
    X(ncclCommInitRankConfig)                                                                                          \
    X(ncclCommFinalize)                                                                                                \
    X(ncclCommDestroy)                                                                                                 \
    X(ncclCommAbort)                                                                                                   \
    X(ncclCommGetAsyncError)                                                                                           \
    X(ncclCommSplit)                                                                                                   \
    X(ncclAllReduce)                                                                                                   \
    X(ncclReduceScatter)                                                                                               \
    X(ncclAllGather)                                                                                                   \
    X(ncclSend)                                                                                                        \
    X(ncclRecv)                                                                                                        \
    X(ncclGroupStart)                                                                                                  \
    X(ncclGroupEnd)

enum { LS_LIBRARY_PATH_MAX = 512 };

#define X(name) __typeof__ (&(name))(name);
struct ls_cublaslt {
    char path[LS_LIBRARY_PATH_MAX], version[24];
    LS_CUBLASLT_FUNCTIONS(X)
};
struct ls_nccl {
    char path[LS_LIBRARY_PATH_MAX], version[24];
    LS_NCCL_FUNCTIONS(X)
};
#ifdef LS_CUDNN
struct ls_cudnn {
    char path[LS_LIBRARY_PATH_MAX], version[24];
    LS_CUDNN_FUNCTIONS(X)
};
#endif
#undef X

/* The library's functions; the same static structure at every call. Any thread. LS_ERROR: it is nowhere, does not load,
 * or lacks a function, with the places that were tried. */
enum ls_code ls_library_cublaslt(const struct ls_cublaslt **library, struct ls_error *error);
enum ls_code ls_library_nccl(const struct ls_nccl **library, struct ls_error *error);
#ifdef LS_CUDNN /* its headers were there when this program was built */
enum ls_code ls_library_cudnn(const struct ls_cudnn **library, struct ls_error *error);
#endif

/* Opens any library by its file name, for what has no header here (NVML); path[LS_LIBRARY_PATH_MAX]: where it was. The
 * handle is dlopen()'s, NULL: LS_ERROR. Nothing is logged. */
void *ls_library_open(const char *name, char *path, struct ls_error *error);

#endif
