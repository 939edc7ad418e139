/* Products of matrices on cuBLASLt: one plan per shape, made when the shape is first met, and the workspace. */
#ifndef LS_WORKER_DEVICE_CUDA_GEMM_H
#define LS_WORKER_DEVICE_CUDA_GEMM_H

#include "worker/device/cuda/device.h"
#include "worker/device/cuda/libraries.h"

/* Opens the library and allocates the workspace. LS_ERROR, LS_MEMORY. */
enum ls_code ls_cuda_gemm_create(struct ls_cuda_device *device, bool tf32, struct ls_cuda_gemm **gemm,
                                 struct ls_error *error);
/* Takes NULL. No product is under way. */
void ls_cuda_gemm_destroy(struct ls_cuda_gemm *gemm);
/* The library that is used. */
const struct ls_cublaslt *ls_cuda_gemm_library(const struct ls_cuda_gemm *gemm);

/* Puts a product on the stream. Without a choice it is the library's first proposal that the library does not refuse to
 * run, which follows from the shape, the library and the GPU alone; where there are choices for others, the log says
 * so. An epilogue that the library proposes ways for and runs none of is our kernel's. */
void ls_cuda_gemm(struct ls_cuda_gemm *gemm, struct ls_stream *stream, const struct ls_op_gemm *op);
/* Remembers a product for ls_cuda_gemm_choose(). */
void ls_cuda_gemm_note(struct ls_cuda_gemm *gemm, const struct ls_op_gemm *op);
/* A stream is about to go: products are no longer ordered against it. */
void ls_cuda_gemm_forget_stream(struct ls_cuda_gemm *gemm, struct ls_stream *stream);

/* True where there is a choice for every product that was noted. */
bool ls_cuda_gemm_covers(const struct ls_cuda_gemm *gemm, const void *choices, int64_t bytes);
/* See device.h. */
enum ls_code ls_cuda_gemm_choose(struct ls_cuda_gemm *gemm, void **choices, int64_t *bytes, struct ls_error *error);
enum ls_code ls_cuda_gemm_adopt(struct ls_cuda_gemm *gemm, const void *choices, int64_t bytes, struct ls_error *error);

#endif
