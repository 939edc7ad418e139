/* Products on cuBLASLt. Ours are row-major, the library's column-major: what is c = a b here is c' = b' a' there, so
 * the library's first factor is our b, its rows are our columns, and a bias per column of ours is its bias per row.
 *
 * What a product's epilogue does in the library: the bias, and the derivative of GELU. GELU itself is a kernel of its
 * own: the library applies it to the sum before that is rounded, a layer that is computed again applies it to what was
 * stored, and both have to give the same bits. */
#include "worker/device/cuda/gemm_plans.h"

#include "common/log.h"
#include "worker/device/cuda/kernels.h"
#include "worker/device/cuda/stream.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum {
    TOLD_MOST = 8,              /* products not measured that the log names */
    WORKSPACE_BYTES = 32 << 20, /* what NVIDIA recommends from compute capability 9.0 on */
    WORKSPACE_BYTES_SMALL = 8 << 20,
    /* The widest access of a tensor kernel. The library is not told of more: where a buffer begins then makes no other
     * plan. */
    ALIGNMENT_MOST = 16,
    FUSED_ALIGNMENT = 16, /* of a bias and of aux */
    AUX_MULTIPLE = 8      /* elements, of the leading dimension of aux; the library wants it */
};

enum ls_code ls_gemm_failed(const struct ls_cuda_gemm *gemm, cublasStatus_t status, const char *call,
                            const struct ls_gemm_shape *shape, struct ls_error *error) {
    const cudaError_t fault = ls_cuda_fault(gemm->device);
    if (fault) return ls_cuda_fail(gemm->device, fault, "a product, or a kernel before it", error);
    return ls_fail(error, LS_ERROR, LS_SCOPE_RANK,
                   "device: %s of %s answered %d for a product of %lld x %lld x %lld. Is the library made for this GPU "
                   "(%s) and driver? Set LOCKSTEP_CUDA_LIBRARIES to the folder of another one.",
                   call, gemm->library->path, (int)status, (long long)shape->m, (long long)shape->n,
                   (long long)shape->k, gemm->device->info.name);
}

static cudaDataType_t type_of(uint8_t dtype) {
    return dtype == LS_BF16 ? CUDA_R_16BF : dtype == LS_FP16 ? CUDA_R_16F : CUDA_R_32F;
}

/* The largest power of two that divides the address, as far as it matters. */
static int32_t alignment_of(const void *pointer) {
    const uintptr_t address = (uintptr_t)pointer | ALIGNMENT_MOST;
    return (int32_t)(address & -address);
}

enum ls_gemm_epilogue ls_gemm_epilogue_of(const struct ls_op_gemm *op) {
    if (op->bias_gradient)
        return alignment_of(op->workspace) >= FUSED_ALIGNMENT ? LS_GEMM_EPILOGUE_BIAS_GRADIENT : LS_GEMM_EPILOGUE_NONE;
    if (op->epilogue == LS_EPILOGUE_BIAS || op->epilogue == LS_EPILOGUE_BIAS_GELU)
        return alignment_of(op->bias) >= FUSED_ALIGNMENT ? LS_GEMM_EPILOGUE_BIAS : LS_GEMM_EPILOGUE_NONE;
    return op->epilogue == LS_EPILOGUE_GELU_GRAD && alignment_of(op->aux) >= FUSED_ALIGNMENT &&
                   op->ldc % AUX_MULTIPLE == 0
               ? LS_GEMM_EPILOGUE_GELU_GRAD
               : LS_GEMM_EPILOGUE_NONE;
}

struct ls_gemm_shape ls_gemm_shape_of(const struct ls_op_gemm *op, enum ls_gemm_epilogue epilogue) {
    struct ls_gemm_shape shape;
    memset(&shape, 0, sizeof shape);
    shape.m = op->m, shape.n = op->n, shape.k = op->k;
    shape.lda = op->lda, shape.ldb = op->ldb, shape.ldc = op->ldc;
    shape.align_a = alignment_of(op->a), shape.align_b = alignment_of(op->b), shape.align_c = alignment_of(op->c);
    if (epilogue == LS_GEMM_EPILOGUE_BIAS && op->epilogue == LS_EPILOGUE_BIAS_GELU)
        shape.align_c = alignment_of(op->aux);
    if (op->residual) shape.align_residual = alignment_of(op->residual);
    shape.transpose_a = op->transpose_a, shape.transpose_b = op->transpose_b;
    shape.accumulate = op->accumulate, shape.c_fp32 = op->c_fp32;
    shape.dtype = (uint8_t)op->dtype;
    shape.epilogue = (uint8_t)epilogue;
    return shape;
}

bool ls_gemm_has_spare(const struct ls_op_gemm *op) {
    return op->spare.m > 0 || op->spare.n > 0 || op->spare.k > 0;
}

struct ls_gemm_shape ls_gemm_wide_shape_of(const struct ls_op_gemm *op) {
    struct ls_gemm_shape shape = ls_gemm_shape_of(op, LS_GEMM_EPILOGUE_NONE);
    shape.m += op->spare.m, shape.n += op->spare.n, shape.k += op->spare.k;
    return shape;
}

static void release_product(const struct ls_cuda_gemm *gemm, struct ls_gemm_product *product) {
    if (product->a) gemm->library->cublasLtMatrixLayoutDestroy(product->a);
    if (product->b) gemm->library->cublasLtMatrixLayoutDestroy(product->b);
    if (product->c) gemm->library->cublasLtMatrixLayoutDestroy(product->c);
    if (product->desc) gemm->library->cublasLtMatmulDescDestroy(product->desc);
    memset(product, 0, sizeof *product);
}

/* The descriptors of a shape. */
static cublasStatus_t describe(const struct ls_cuda_gemm *gemm, struct ls_gemm_product *product) {
    const struct ls_cublaslt *lt = gemm->library;
    const struct ls_gemm_shape *shape = &product->shape;
    const cudaDataType_t type = type_of(shape->dtype), result = shape->c_fp32 ? CUDA_R_32F : type;
    const cublasComputeType_t compute =
        type == CUDA_R_32F && gemm->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    const int32_t none = CUBLAS_OP_N, transposed = CUBLAS_OP_T;
    static const cublasLtEpilogue_t epilogues[] = {[LS_GEMM_EPILOGUE_NONE] = CUBLASLT_EPILOGUE_DEFAULT,
                                                   [LS_GEMM_EPILOGUE_BIAS] = CUBLASLT_EPILOGUE_BIAS,
                                                   [LS_GEMM_EPILOGUE_GELU_GRAD] = CUBLASLT_EPILOGUE_DGELU,
                                                   [LS_GEMM_EPILOGUE_BIAS_GRADIENT] = CUBLASLT_EPILOGUE_BGRADA};
    const cublasLtEpilogue_t epilogue = epilogues[shape->epilogue];
    const uint64_t m = (uint64_t)shape->m, n = (uint64_t)shape->n, k = (uint64_t)shape->k;
    cublasStatus_t status = lt->cublasLtMatmulDescCreate(&product->desc, compute, CUDA_R_32F);
    if (!status)
        status = lt->cublasLtMatmulDescSetAttribute(product->desc, CUBLASLT_MATMUL_DESC_TRANSA,
                                                    shape->transpose_b ? &transposed : &none, sizeof none);
    if (!status)
        status = lt->cublasLtMatmulDescSetAttribute(product->desc, CUBLASLT_MATMUL_DESC_TRANSB,
                                                    shape->transpose_a ? &transposed : &none, sizeof none);
    if (!status)
        status = lt->cublasLtMatmulDescSetAttribute(product->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                                    sizeof epilogue);
    if (!status && shape->epilogue == LS_GEMM_EPILOGUE_GELU_GRAD)
        status = lt->cublasLtMatmulDescSetAttribute(product->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &shape->ldc,
                                                    sizeof shape->ldc);
    if (!status)
        status = shape->transpose_b ? lt->cublasLtMatrixLayoutCreate(&product->b, type, k, n, shape->ldb)
                                    : lt->cublasLtMatrixLayoutCreate(&product->b, type, n, k, shape->ldb);
    if (!status)
        status = shape->transpose_a ? lt->cublasLtMatrixLayoutCreate(&product->a, type, m, k, shape->lda)
                                    : lt->cublasLtMatrixLayoutCreate(&product->a, type, k, m, shape->lda);
    if (!status) status = lt->cublasLtMatrixLayoutCreate(&product->c, result, n, m, shape->ldc);
    return status;
}

/* Bias, aux, or where the sums for a bias's gradient go: the call's own. */
static cublasStatus_t set_pointer(const struct ls_cuda_gemm *gemm, const struct ls_gemm_product *product,
                                  const void *pointer) {
    const cublasLtMatmulDescAttributes_t attribute = product->shape.epilogue == LS_GEMM_EPILOGUE_GELU_GRAD
                                                         ? CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER
                                                         : CUBLASLT_MATMUL_DESC_BIAS_POINTER;
    if (product->shape.epilogue == LS_GEMM_EPILOGUE_NONE) return CUBLAS_STATUS_SUCCESS;
    return gemm->library->cublasLtMatmulDescSetAttribute(product->desc, attribute, &pointer, sizeof pointer);
}

/* Sums that are split over k are added in fp32 only. The library looks at
 * the addresses of bias and aux for their alignment: what it is shown has no more than all have. */
cublasStatus_t ls_gemm_propose(const struct ls_cuda_gemm *gemm, const struct ls_gemm_product *product,
                               cublasLtMatmulHeuristicResult_t proposals[LS_GEMM_WAYS], int *count) {
    const struct ls_cublaslt *lt = gemm->library;
    const struct ls_gemm_shape *shape = &product->shape;
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const uint32_t a = (uint32_t)shape->align_b, b = (uint32_t)shape->align_a, d = (uint32_t)shape->align_c;
    const uint32_t c = shape->align_residual ? (uint32_t)shape->align_residual : d;
    void *aligned = (char *)gemm->workspace + FUSED_ALIGNMENT;
    cublasLtMatmulPreference_t preference;
    cublasStatus_t status = set_pointer(gemm, product, aligned);
    if (!status) status = lt->cublasLtMatmulPreferenceCreate(&preference);
    if (status) return status;
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        const void *value;
        size_t bytes;
    } settings[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &gemm->workspace_bytes, sizeof gemm->workspace_bytes},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &a, sizeof a},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &b, sizeof b},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c, sizeof c},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &d, sizeof d},
    };
    for (size_t i = 0; i < sizeof settings / sizeof *settings && !status; i++)
        status = lt->cublasLtMatmulPreferenceSetAttribute(preference, settings[i].attribute, settings[i].value,
                                                          settings[i].bytes);
    if (!status)
        status = lt->cublasLtMatmulAlgoGetHeuristic(gemm->handle, product->desc, product->b, product->a, product->c,
                                                    product->c, preference, LS_GEMM_WAYS, proposals, count);
    lt->cublasLtMatmulPreferenceDestroy(preference);
    const int proposed = status ? 0 : *count;
    *count = 0;
    for (int i = 0; i < proposed; i++)
        if (!proposals[i].state && proposals[i].workspaceSize <= gemm->workspace_bytes)
            proposals[(*count)++] = proposals[i];
    return !status && *count == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : status;
}

static uint64_t hash_of(const struct ls_gemm_shape *shape) {
    const unsigned char *bytes = (const unsigned char *)shape;
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof *shape; i++) hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return hash;
}

static const struct ls_gemm_choice *find_choice(const struct ls_cuda_gemm *gemm, const struct ls_gemm_shape *shape) {
    for (int i = 0; i < gemm->choice_count; i++)
        if (memcmp(&gemm->choices[i].shape, shape, sizeof *shape) == 0) return &gemm->choices[i];
    return NULL;
}

void ls_gemm_clear(struct ls_cuda_gemm *gemm) {
    for (int i = 0; i < LS_GEMM_PRODUCTS; i++) release_product(gemm, &gemm->products[i]);
    gemm->product_count = 0;
}

/* Where there are choices, a product without one is worth a line: a shape that the rehearsal did not have. */
static void tell_unmeasured(struct ls_cuda_gemm *gemm, const struct ls_gemm_shape *shape) {
    if (gemm->choice_count == 0 || gemm->told == TOLD_MOST) return;
    gemm->told++;
    ls_log(
        LS_LOG_INFO,
        "product %lld x %lld x %lld%s%s was not measured (rows of %lld, %lld and %lld elements at multiples of %d, %d "
        "and %d bytes): the library's first proposal",
        (long long)shape->m, (long long)shape->n, (long long)shape->k, shape->transpose_a ? " (a transposed)" : "",
        shape->transpose_b ? " (b transposed)" : "", (long long)shape->lda, (long long)shape->ldb,
        (long long)shape->ldc, (int)shape->align_a, (int)shape->align_b, (int)shape->align_c);
}

enum ls_code ls_gemm_find_product(struct ls_cuda_gemm *gemm, const struct ls_gemm_shape *shape,
                                  struct ls_gemm_product **found, struct ls_error *error) {
    uint64_t place = hash_of(shape) % LS_GEMM_PRODUCTS;
    while (gemm->products[place].made && memcmp(&gemm->products[place].shape, shape, sizeof *shape) != 0)
        place = (place + 1) % LS_GEMM_PRODUCTS;
    struct ls_gemm_product *product = &gemm->products[place];
    if (product->made) {
        *found = product->refused ? NULL : product;
        return LS_OK;
    }
    if (gemm->product_count >= LS_GEMM_PRODUCTS / 2) { /* shapes without end: inference at growing lengths */
        ls_gemm_clear(gemm);
        product = &gemm->products[hash_of(shape) % LS_GEMM_PRODUCTS];
    }
    product->shape = *shape;
    cublasLtMatmulHeuristicResult_t proposals[LS_GEMM_WAYS];
    int count = 0;
    cublasStatus_t status = describe(gemm, product);
    const struct ls_gemm_choice *choice = find_choice(gemm, shape);
    if (!status && !choice) status = ls_gemm_propose(gemm, product, proposals, &count);
    if (!status && !choice) tell_unmeasured(gemm, shape);
    if (status && shape->epilogue == LS_GEMM_EPILOGUE_NONE) {
        ls_gemm_failed(gemm, status, "cublasLtMatmulAlgoGetHeuristic", shape, error);
        release_product(gemm, product);
        return LS_ERROR;
    }
    product->made = true;
    product->refused = status != CUBLAS_STATUS_SUCCESS;
    if (!product->refused) product->algorithm = choice ? choice->algorithm : proposals[0].algo;
    gemm->product_count++;
    *found = product->refused ? NULL : product;
    return LS_OK;
}

cublasStatus_t ls_gemm_multiply(const struct ls_cuda_gemm *gemm, cudaStream_t stream,
                                const struct ls_gemm_product *product, const cublasLtMatmulAlgo_t *algorithm,
                                const struct ls_op_gemm *op) {
    const float one = 1.0f, beta = op->accumulate || op->residual ? 1.0f : 0.0f;
    const enum ls_gemm_epilogue epilogue = (enum ls_gemm_epilogue)product->shape.epilogue;
    const bool sum_apart = epilogue == LS_GEMM_EPILOGUE_BIAS && op->epilogue == LS_EPILOGUE_BIAS_GELU;
    void *result = sum_apart ? op->aux : op->c;
    const cublasStatus_t status = set_pointer(gemm, product,
                                              epilogue == LS_GEMM_EPILOGUE_BIAS        ? op->bias
                                              : epilogue == LS_GEMM_EPILOGUE_GELU_GRAD ? op->aux
                                                                                       : op->workspace);
    if (status) return status;
    return gemm->library->cublasLtMatmul(gemm->handle, product->desc, &one, op->b, product->b, op->a, product->a, &beta,
                                         op->residual ? op->residual : result, product->c, result, product->c,
                                         algorithm, gemm->workspace, gemm->workspace_bytes, stream);
}

/* A library that cannot compute what it is asked for, and has launched nothing. */
static bool is_refusal(cublasStatus_t status) {
    return status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE ||
           status == CUBLAS_STATUS_ARCH_MISMATCH;
}

/* A refused algorithm gives way to the first proposal that is not; the plan keeps that. */
static cublasStatus_t multiply_somehow(const struct ls_cuda_gemm *gemm, cudaStream_t stream,
                                       struct ls_gemm_product *product, const struct ls_op_gemm *op) {
    cublasLtMatmulHeuristicResult_t proposals[LS_GEMM_WAYS];
    int count = 0;
    const cublasStatus_t refusal = ls_gemm_multiply(gemm, stream, product, &product->algorithm, op);
    if (!is_refusal(refusal) || ls_gemm_propose(gemm, product, proposals, &count)) return refusal;
    for (int way = 0; way < count; way++) {
        const cublasStatus_t status = ls_gemm_multiply(gemm, stream, product, &proposals[way].algo, op);
        if (is_refusal(status)) continue;
        if (status) return status;
        product->algorithm = proposals[way].algo;
        ls_log(LS_LOG_INFO, "product %lld x %lld x %lld: cuBLASLt %s answered %d, by its proposal %d of %d it runs",
               (long long)op->m, (long long)op->n, (long long)op->k, gemm->library->version, (int)refusal, way + 1,
               count);
        return CUBLAS_STATUS_SUCCESS;
    }
    return refusal;
}

void ls_gemm_refuse_epilogue(const struct ls_cuda_gemm *gemm, struct ls_gemm_product *product, cublasStatus_t status) {
    product->refused = true;
    ls_log(LS_LOG_INFO,
           "product %lld x %lld x %lld: cuBLASLt %s proposes ways with its epilogue and answers %d to them; it goes "
           "without",
           (long long)product->shape.m, (long long)product->shape.n, (long long)product->shape.k,
           gemm->library->version, (int)status);
}

/* The library overwrites, the operation adds. */
static cudaError_t finish_bias_gradient(bool summed, const struct ls_op_gemm *op, cudaStream_t stream) {
    if (summed)
        return ls_cuda_widen(
            &(struct ls_op_widen){
                .output = op->bias_gradient, .input = op->workspace, .count = op->n, .accumulate = true},
            stream);
    return ls_cuda_bias_backward(&(struct ls_op_bias_backward){.bias_gradient = op->bias_gradient,
                                                               .workspace = op->workspace,
                                                               .output_gradient = op->b,
                                                               .rows = op->k,
                                                               .columns = op->n,
                                                               .dtype = op->dtype},
                                 stream);
}

cudaError_t ls_gemm_finish(const struct ls_gemm_product *product, const struct ls_op_gemm *op, cudaStream_t stream) {
    const enum ls_gemm_epilogue epilogue = (enum ls_gemm_epilogue)product->shape.epilogue;
    if (op->bias_gradient) return finish_bias_gradient(epilogue == LS_GEMM_EPILOGUE_BIAS_GRADIENT, op, stream);
    if (op->epilogue == LS_EPILOGUE_NONE || (epilogue == LS_GEMM_EPILOGUE_BIAS && op->epilogue == LS_EPILOGUE_BIAS) ||
        epilogue == LS_GEMM_EPILOGUE_GELU_GRAD)
        return cudaSuccess;
    if (epilogue == LS_GEMM_EPILOGUE_NONE) return ls_cuda_epilogue(op, stream);
    cudaError_t status = cudaSuccess; /* bias done, GELU to do */
    const int64_t element = ls_dtype_bytes(op->dtype), rows = op->ldc == op->n ? 1 : op->m;
    for (int64_t row = 0; row < rows && !status; row++) {
        const int64_t at = row * op->ldc * element;
        status = ls_cuda_gelu_forward(&(struct ls_op_gelu_forward){.output = (char *)op->c + at,
                                                                   .input = (char *)op->aux + at,
                                                                   .count = rows == 1 ? op->m * op->n : op->n,
                                                                   .dtype = op->dtype},
                                      stream);
    }
    return status;
}

/* The plan with as much in the library as it takes; where that was measured, as is faster, and as wide as is faster. */
static enum ls_code plan_product(struct ls_cuda_gemm *gemm, const struct ls_op_gemm *op,
                                 struct ls_gemm_product **product, struct ls_error *error) {
    const struct ls_gemm_shape fused = ls_gemm_shape_of(op, ls_gemm_epilogue_of(op)),
                               plain = ls_gemm_shape_of(op, LS_GEMM_EPILOGUE_NONE), wide = ls_gemm_wide_shape_of(op);
    *product = NULL;
    if (ls_gemm_has_spare(op) && find_choice(gemm, &wide)) return ls_gemm_find_product(gemm, &wide, product, error);
    /* What nobody has compared is left to our kernels: a bias alone is not worth that. */
    const bool trusted =
        fused.epilogue != LS_GEMM_EPILOGUE_BIAS_GRADIENT && fused.epilogue != LS_GEMM_EPILOGUE_GELU_GRAD;
    if (find_choice(gemm, &fused) || (trusted && !find_choice(gemm, &plain))) {
        const enum ls_code code = ls_gemm_find_product(gemm, &fused, product, error);
        if (code || *product) return code;
    }
    return ls_gemm_find_product(gemm, &plain, product, error);
}

enum ls_code ls_gemm_compute(struct ls_cuda_gemm *gemm, cudaStream_t stream, const struct ls_op_gemm *op,
                             struct ls_gemm_product **product, struct ls_error *error) {
    for (;;) {
        const enum ls_code code = plan_product(gemm, op, product, error);
        if (code) return code;
        assert(*product); /* without an epilogue none is refused */
        const cublasStatus_t status = multiply_somehow(gemm, stream, *product, op);
        if (!status) return LS_OK;
        if (!is_refusal(status) || (*product)->shape.epilogue == LS_GEMM_EPILOGUE_NONE)
            return ls_gemm_failed(gemm, status, "cublasLtMatmul", &(*product)->shape, error);
        ls_gemm_refuse_epilogue(gemm, *product, status);
    }
}

/* There is one workspace: a product on another stream than the last one's waits for it. */
static void take_workspace(struct ls_cuda_gemm *gemm, struct ls_stream *stream) {
    if (gemm->last == stream) return;
    if (gemm->last) {
        ls_cuda_stream_note(stream, cudaEventRecord(gemm->passed, ls_cuda_stream(gemm->last)), "an event");
        ls_cuda_stream_note(stream, cudaStreamWaitEvent(ls_cuda_stream(stream), gemm->passed, 0), "a wait");
    }
    gemm->last = stream;
}

void ls_cuda_gemm_forget_stream(struct ls_cuda_gemm *gemm, struct ls_stream *stream) {
    if (gemm && gemm->last == stream) gemm->last = NULL;
}

/* A sum of nothing. */
static cudaError_t multiply_nothing(const struct ls_op_gemm *op, cudaStream_t stream) {
    const size_t element = op->c_fp32 ? sizeof(float) : (size_t)ls_dtype_bytes(op->dtype);
    cudaError_t status = cudaSuccess;
    if (!op->accumulate)
        status = cudaMemset2DAsync(op->c, (size_t)op->ldc * element, 0, (size_t)op->n * element, (size_t)op->m, stream);
    return status || op->epilogue == LS_EPILOGUE_NONE ? status : ls_cuda_epilogue(op, stream);
}

void ls_cuda_gemm(struct ls_cuda_gemm *gemm, struct ls_stream *stream, const struct ls_op_gemm *op) {
    struct ls_error error;
    struct ls_gemm_product *product = NULL;
    if (op->m == 0 || op->n == 0) return;
    if (op->k == 0) {
        ls_cuda_stream_note(stream, multiply_nothing(op, ls_cuda_stream(stream)), "a product of nothing");
        return;
    }
    take_workspace(gemm, stream);
    if (ls_gemm_compute(gemm, ls_cuda_stream(stream), op, &product, &error))
        ls_cuda_stream_fail(stream, &error);
    else
        ls_cuda_stream_note(stream, ls_gemm_finish(product, op, ls_cuda_stream(stream)), "a product's epilogue");
}

/* ---- life ---- */

const struct ls_cublaslt *ls_cuda_gemm_library(const struct ls_cuda_gemm *gemm) {
    return gemm->library;
}

enum ls_code ls_cuda_gemm_create(struct ls_cuda_device *device, bool tf32, struct ls_cuda_gemm **result,
                                 struct ls_error *error) {
    struct ls_cuda_gemm *gemm = calloc(1, sizeof *gemm);
    if (!gemm) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "device: no memory for the records of products");
    gemm->device = device;
    gemm->tf32 = tf32;
    gemm->workspace_bytes = device->info.capability >= 90 ? WORKSPACE_BYTES : WORKSPACE_BYTES_SMALL;
    enum ls_code code = ls_library_cublaslt(&gemm->library, error);
    const cublasStatus_t status = code ? CUBLAS_STATUS_SUCCESS : gemm->library->cublasLtCreate(&gemm->handle);
    if (status)
        code = ls_fail(error, LS_ERROR, LS_SCOPE_RANK,
                       "device: cublasLtCreate of %s answered %d. Is the library made for this GPU (%s) and driver?",
                       gemm->library->path, (int)status, device->info.name);
    cudaError_t failed = cudaSuccess;
    if (!code) failed = cudaMalloc(&gemm->workspace, gemm->workspace_bytes);
    if (!code && !failed) failed = cudaEventCreateWithFlags(&gemm->passed, cudaEventDisableTiming);
    if (failed) code = ls_cuda_fail(device, failed, "the workspace of products", error);
    if (code) {
        ls_cuda_gemm_destroy(gemm);
        return code;
    }
    *result = gemm;
    return LS_OK;
}

void ls_cuda_gemm_destroy(struct ls_cuda_gemm *gemm) {
    if (!gemm) return;
    if (gemm->library) ls_gemm_clear(gemm);
    if (gemm->passed) cudaEventDestroy(gemm->passed);
    if (gemm->workspace) cudaFree(gemm->workspace);
    if (gemm->library && gemm->handle) gemm->library->cublasLtDestroy(gemm->handle);
    free(gemm);
}
