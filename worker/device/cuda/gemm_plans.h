/* The record of products by cuBLASLt, shared by their execution (gemm.c) and their choice (gemm_choice.c). */
#ifndef LS_WORKER_DEVICE_CUDA_GEMM_PLANS_H
#define LS_WORKER_DEVICE_CUDA_GEMM_PLANS_H

#include "worker/device/cuda/gemm.h"

enum {
    LS_GEMM_PRODUCTS = 256, /* plans that are kept */
    LS_GEMM_NOTED = 64,     /* shapes that are measured */
    LS_GEMM_WAYS = 8        /* algorithms of a shape that are measured */
};

/* What the library is asked for with the product. */
enum ls_gemm_epilogue {
    LS_GEMM_EPILOGUE_NONE,
    LS_GEMM_EPILOGUE_BIAS,
    LS_GEMM_EPILOGUE_GELU_GRAD,
    LS_GEMM_EPILOGUE_BIAS_GRADIENT
};

/* All that a plan depends on. */
struct ls_gemm_shape {
    int64_t m, n, k, lda, ldb, ldc;
    int32_t align_a, align_b, align_c, align_residual; /* 0: there is no residual */
    uint8_t transpose_a, transpose_b, accumulate, c_fp32;
    uint8_t dtype, epilogue;
    uint8_t zero[2]; /* no padding: shapes are compared byte by byte */
};

struct ls_gemm_product {
    struct ls_gemm_shape shape;
    bool made, refused; /* refused: the library has no algorithm with this epilogue, or multiplies by none it has */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
};

/* What was chosen for a shape; ranks exchange these. */
struct ls_gemm_choice {
    struct ls_gemm_shape shape;
    cublasLtMatmulAlgo_t algorithm;
};

struct ls_cuda_gemm {
    struct ls_cuda_device *device;
    const struct ls_cublaslt *library;
    cublasLtHandle_t handle;
    bool tf32;
    void *workspace;
    size_t workspace_bytes;
    struct ls_stream *last; /* where the workspace was used last */
    cudaEvent_t passed;
    int product_count;
    struct ls_gemm_product products[LS_GEMM_PRODUCTS]; /* a hash table */
    int noted_count;
    struct ls_op_gemm noted[LS_GEMM_NOTED];
    int choice_count;
    struct ls_gemm_choice choices[LS_GEMM_NOTED];
    int told; /* products that were not measured */
};

/* LS_ERROR: a call of the library's answered so. */
enum ls_code ls_gemm_failed(const struct ls_cuda_gemm *gemm, cublasStatus_t status, const char *call,
                            const struct ls_gemm_shape *shape, struct ls_error *error);
/* What the library may do for `op` with its product. */
enum ls_gemm_epilogue ls_gemm_epilogue_of(const struct ls_op_gemm *op);
/* The product that the library computes for `op`; with GELU, that is the sum it is applied to. */
struct ls_gemm_shape ls_gemm_shape_of(const struct ls_op_gemm *op, enum ls_gemm_epilogue epilogue);
/* The same with what `op` can spare, and whether that is anything. */
struct ls_gemm_shape ls_gemm_wide_shape_of(const struct ls_op_gemm *op);
bool ls_gemm_has_spare(const struct ls_op_gemm *op);
/* The plan of a shape, made if there is none. NULL and LS_OK: the library refuses the epilogue. */
enum ls_code ls_gemm_find_product(struct ls_cuda_gemm *gemm, const struct ls_gemm_shape *shape,
                                  struct ls_gemm_product **found, struct ls_error *error);
/* Forgets all plans. */
void ls_gemm_clear(struct ls_cuda_gemm *gemm);
/* The library's proposals, the one it thinks best first; at least one, or a status that says why not. */
cublasStatus_t ls_gemm_propose(const struct ls_cuda_gemm *gemm, const struct ls_gemm_product *product,
                               cublasLtMatmulHeuristicResult_t proposals[LS_GEMM_WAYS], int *count);
/* The product with its epilogue, by one algorithm. */
cublasStatus_t ls_gemm_multiply(const struct ls_cuda_gemm *gemm, cudaStream_t stream,
                                const struct ls_gemm_product *product, const cublasLtMatmulAlgo_t *algorithm,
                                const struct ls_op_gemm *op);
/* What the library was not asked for. */
cudaError_t ls_gemm_finish(const struct ls_gemm_product *product, const struct ls_op_gemm *op, cudaStream_t stream);
/* From now on the product is made without what our kernel then does. */
void ls_gemm_refuse_epilogue(const struct ls_cuda_gemm *gemm, struct ls_gemm_product *product, cublasStatus_t status);
/* The product, alone if need be, without what follows it; *product is the plan that served. */
enum ls_code ls_gemm_compute(struct ls_cuda_gemm *gemm, cudaStream_t stream, const struct ls_op_gemm *op,
                             struct ls_gemm_product **product, struct ls_error *error);

#endif
