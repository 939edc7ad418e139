/* Products on cuBLASLt. Ours are row-major, the library's column-major: what is c = a b here is c' = b' a' there, so
 * the library's first factor is our b, its rows are our columns, and a bias per column of ours is its bias per row.
 *
 * What a product's epilogue does in the library: the bias, and the derivative of GELU. GELU itself is a kernel of its
 * own: the library applies it to the sum before that is rounded, a layer that is computed again applies it to what was
 * stored, and both have to give the same bits. The gradient of a bias is the library's where that was measured and is
 * faster than a kernel that reads the matrix once more: it makes some products much slower. */
#include "worker/device/cuda/gemm.h"

#include "common/log.h"
#include "worker/device/cuda/kernels.h"
#include "worker/device/cuda/stream.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    PRODUCTS = 256, /* plans that are kept */
    NOTED = 64,     /* shapes that are measured */
    WAYS = 8,       /* algorithms of a shape that are measured */
    REPEATS = 5,
    RUNS_MOST = 16,             /* of short products, between two events */
    TOLD_MOST = 8,              /* products not measured that the log names */
    WORKSPACE_BYTES = 32 << 20, /* what NVIDIA recommends from compute capability 9.0 on */
    WORKSPACE_BYTES_SMALL = 8 << 20,
    /* The widest access of a tensor kernel. The library is not told of more: where a buffer begins then makes no other
     * plan. */
    ALIGNMENT_MOST = 16,
    FUSED_ALIGNMENT = 16, /* of a bias and of aux */
    AUX_MULTIPLE = 8      /* elements, of the leading dimension of aux; the library wants it */
};

/* Short products are repeated for so long between two events: the events cost some microseconds too. */
static const float MEASURED_MS = 0.2f;

/* What the library is asked for beside the product. */
enum beside { BESIDE_NOTHING, BESIDE_BIAS, BESIDE_GELU_GRAD, BESIDE_BIAS_GRADIENT };

/* All that a plan depends on. */
struct shape {
    int64_t m, n, k, lda, ldb, ldc;
    int32_t align_a, align_b, align_c, align_residual; /* 0: there is no residual */
    uint8_t transpose_a, transpose_b, accumulate, c_fp32;
    uint8_t dtype, beside;
    uint8_t zero[2]; /* no padding: shapes are compared byte by byte */
};

struct product {
    struct shape shape;
    bool made, refused; /* refused: the library has no algorithm that does this beside, or multiplies by none it has */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
};

/* What was chosen for a shape; ranks exchange these. */
struct choice {
    struct shape shape;
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
    struct product products[PRODUCTS]; /* a hash table */
    int noted_count;
    struct ls_op_gemm noted[NOTED];
    int choice_count;
    struct choice choices[NOTED];
    int told; /* products that were not measured */
};

static enum ls_code library_failed(const struct ls_cuda_gemm *gemm, cublasStatus_t status, const char *call,
                                   const struct shape *shape, struct ls_error *error) {
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

/* What the library may do for `op` beside its product. */
static enum beside beside_of(const struct ls_op_gemm *op) {
    if (op->bias_gradient)
        return alignment_of(op->workspace) >= FUSED_ALIGNMENT ? BESIDE_BIAS_GRADIENT : BESIDE_NOTHING;
    if (op->epilogue == LS_EPILOGUE_BIAS || op->epilogue == LS_EPILOGUE_BIAS_GELU)
        return alignment_of(op->bias) >= FUSED_ALIGNMENT ? BESIDE_BIAS : BESIDE_NOTHING;
    return op->epilogue == LS_EPILOGUE_GELU_GRAD && alignment_of(op->aux) >= FUSED_ALIGNMENT &&
                   op->ldc % AUX_MULTIPLE == 0
               ? BESIDE_GELU_GRAD
               : BESIDE_NOTHING;
}

/* The product that the library computes for `op`; with GELU, that is the sum it is applied to. */
static struct shape shape_of(const struct ls_op_gemm *op, enum beside beside) {
    struct shape shape;
    memset(&shape, 0, sizeof shape);
    shape.m = op->m, shape.n = op->n, shape.k = op->k;
    shape.lda = op->lda, shape.ldb = op->ldb, shape.ldc = op->ldc;
    shape.align_a = alignment_of(op->a), shape.align_b = alignment_of(op->b), shape.align_c = alignment_of(op->c);
    if (beside == BESIDE_BIAS && op->epilogue == LS_EPILOGUE_BIAS_GELU) shape.align_c = alignment_of(op->aux);
    if (op->residual) shape.align_residual = alignment_of(op->residual);
    shape.transpose_a = op->transpose_a, shape.transpose_b = op->transpose_b;
    shape.accumulate = op->accumulate, shape.c_fp32 = op->c_fp32;
    shape.dtype = (uint8_t)op->dtype;
    shape.beside = (uint8_t)beside;
    return shape;
}

static void release_product(const struct ls_cuda_gemm *gemm, struct product *product) {
    if (product->a) gemm->library->cublasLtMatrixLayoutDestroy(product->a);
    if (product->b) gemm->library->cublasLtMatrixLayoutDestroy(product->b);
    if (product->c) gemm->library->cublasLtMatrixLayoutDestroy(product->c);
    if (product->desc) gemm->library->cublasLtMatmulDescDestroy(product->desc);
    memset(product, 0, sizeof *product);
}

/* The descriptors of a shape. */
static cublasStatus_t describe(const struct ls_cuda_gemm *gemm, struct product *product) {
    const struct ls_cublaslt *lt = gemm->library;
    const struct shape *shape = &product->shape;
    const cudaDataType_t type = type_of(shape->dtype), result = shape->c_fp32 ? CUDA_R_32F : type;
    const cublasComputeType_t compute =
        type == CUDA_R_32F && gemm->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    const int32_t none = CUBLAS_OP_N, transposed = CUBLAS_OP_T;
    static const cublasLtEpilogue_t epilogues[] = {[BESIDE_NOTHING] = CUBLASLT_EPILOGUE_DEFAULT,
                                                   [BESIDE_BIAS] = CUBLASLT_EPILOGUE_BIAS,
                                                   [BESIDE_GELU_GRAD] = CUBLASLT_EPILOGUE_DGELU,
                                                   [BESIDE_BIAS_GRADIENT] = CUBLASLT_EPILOGUE_BGRADA};
    const cublasLtEpilogue_t epilogue = epilogues[shape->beside];
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
    if (!status && shape->beside == BESIDE_GELU_GRAD)
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
static cublasStatus_t set_pointer(const struct ls_cuda_gemm *gemm, const struct product *product, const void *pointer) {
    const cublasLtMatmulDescAttributes_t attribute = product->shape.beside == BESIDE_GELU_GRAD
                                                         ? CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER
                                                         : CUBLASLT_MATMUL_DESC_BIAS_POINTER;
    if (product->shape.beside == BESIDE_NOTHING) return CUBLAS_STATUS_SUCCESS;
    return gemm->library->cublasLtMatmulDescSetAttribute(product->desc, attribute, &pointer, sizeof pointer);
}

/* The library's proposals, the one it thinks best first; sums that are split over k are added in fp32 only. It looks at
 * the addresses of bias and aux for their alignment: what it is shown has no more than all have. */
static cublasStatus_t propose(const struct ls_cuda_gemm *gemm, const struct product *product,
                              cublasLtMatmulHeuristicResult_t proposals[WAYS], int *count) {
    const struct ls_cublaslt *lt = gemm->library;
    const struct shape *shape = &product->shape;
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
                                                    product->c, preference, WAYS, proposals, count);
    lt->cublasLtMatmulPreferenceDestroy(preference);
    const int proposed = status ? 0 : *count;
    *count = 0;
    for (int i = 0; i < proposed; i++)
        if (!proposals[i].state && proposals[i].workspaceSize <= gemm->workspace_bytes)
            proposals[(*count)++] = proposals[i];
    return !status && *count == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : status;
}

static uint64_t hash_of(const struct shape *shape) {
    const unsigned char *bytes = (const unsigned char *)shape;
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof *shape; i++) hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return hash;
}

static const struct choice *find_choice(const struct ls_cuda_gemm *gemm, const struct shape *shape) {
    for (int i = 0; i < gemm->choice_count; i++)
        if (memcmp(&gemm->choices[i].shape, shape, sizeof *shape) == 0) return &gemm->choices[i];
    return NULL;
}

static void clear_products(struct ls_cuda_gemm *gemm) {
    for (int i = 0; i < PRODUCTS; i++) release_product(gemm, &gemm->products[i]);
    gemm->product_count = 0;
}

/* Where there are choices, a product without one is worth a line: a shape that the rehearsal did not have. */
static void tell_unmeasured(struct ls_cuda_gemm *gemm, const struct shape *shape) {
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

/* The plan of a shape, made if there is none. NULL and LS_OK: the library refuses what it is asked for beside. */
static enum ls_code find_product(struct ls_cuda_gemm *gemm, const struct shape *shape, struct product **found,
                                 struct ls_error *error) {
    uint64_t place = hash_of(shape) % PRODUCTS;
    while (gemm->products[place].made && memcmp(&gemm->products[place].shape, shape, sizeof *shape) != 0)
        place = (place + 1) % PRODUCTS;
    struct product *product = &gemm->products[place];
    if (product->made) {
        *found = product->refused ? NULL : product;
        return LS_OK;
    }
    if (gemm->product_count >= PRODUCTS / 2) { /* shapes without end: inference at growing lengths */
        clear_products(gemm);
        product = &gemm->products[hash_of(shape) % PRODUCTS];
    }
    product->shape = *shape;
    cublasLtMatmulHeuristicResult_t proposals[WAYS];
    int count = 0;
    cublasStatus_t status = describe(gemm, product);
    const struct choice *choice = find_choice(gemm, shape);
    if (!status && !choice) status = propose(gemm, product, proposals, &count);
    if (!status && !choice) tell_unmeasured(gemm, shape);
    if (status && shape->beside == BESIDE_NOTHING) {
        library_failed(gemm, status, "cublasLtMatmulAlgoGetHeuristic", shape, error);
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

static cublasStatus_t multiply(const struct ls_cuda_gemm *gemm, cudaStream_t stream, const struct product *product,
                               const cublasLtMatmulAlgo_t *algorithm, const struct ls_op_gemm *op) {
    const float one = 1.0f, beta = op->accumulate || op->residual ? 1.0f : 0.0f;
    const enum beside beside = (enum beside)product->shape.beside;
    const bool sum_apart = beside == BESIDE_BIAS && op->epilogue == LS_EPILOGUE_BIAS_GELU;
    void *result = sum_apart ? op->aux : op->c;
    const cublasStatus_t status = set_pointer(gemm, product,
                                              beside == BESIDE_BIAS        ? op->bias
                                              : beside == BESIDE_GELU_GRAD ? op->aux
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
static cublasStatus_t multiply_somehow(const struct ls_cuda_gemm *gemm, cudaStream_t stream, struct product *product,
                                       const struct ls_op_gemm *op) {
    cublasLtMatmulHeuristicResult_t proposals[WAYS];
    int count = 0;
    const cublasStatus_t refusal = multiply(gemm, stream, product, &product->algorithm, op);
    if (!is_refusal(refusal) || propose(gemm, product, proposals, &count)) return refusal;
    for (int way = 0; way < count; way++) {
        const cublasStatus_t status = multiply(gemm, stream, product, &proposals[way].algo, op);
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

/* From now on the product is made without what our kernel then does. */
static void refuse_beside(const struct ls_cuda_gemm *gemm, struct product *product, cublasStatus_t status) {
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

/* What the library was not asked for. */
static cudaError_t finish(const struct product *product, const struct ls_op_gemm *op, cudaStream_t stream) {
    const enum beside beside = (enum beside)product->shape.beside;
    if (op->bias_gradient) return finish_bias_gradient(beside == BESIDE_BIAS_GRADIENT, op, stream);
    if (op->epilogue == LS_EPILOGUE_NONE || (beside == BESIDE_BIAS && op->epilogue == LS_EPILOGUE_BIAS) ||
        beside == BESIDE_GELU_GRAD)
        return cudaSuccess;
    if (beside == BESIDE_NOTHING) return ls_cuda_epilogue(op, stream);
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

/* The plan with as much in the library as it takes; where that was measured, as is faster. */
static enum ls_code plan_product(struct ls_cuda_gemm *gemm, const struct ls_op_gemm *op, struct product **product,
                                 struct ls_error *error) {
    const struct shape fused = shape_of(op, beside_of(op)), plain = shape_of(op, BESIDE_NOTHING);
    const bool unmeasured = !find_choice(gemm, &plain) && fused.beside != BESIDE_BIAS_GRADIENT;
    *product = NULL;
    if (find_choice(gemm, &fused) || unmeasured) {
        const enum ls_code code = find_product(gemm, &fused, product, error);
        if (code || *product) return code;
    }
    return find_product(gemm, &plain, product, error);
}

/* The product alone if need be; *product is the plan that served. */
static enum ls_code compute(struct ls_cuda_gemm *gemm, cudaStream_t stream, const struct ls_op_gemm *op,
                            struct product **product, struct ls_error *error) {
    for (;;) {
        const enum ls_code code = plan_product(gemm, op, product, error);
        if (code) return code;
        assert(*product); /* with nothing beside it none is refused */
        const cublasStatus_t status = multiply_somehow(gemm, stream, *product, op);
        if (!status) return LS_OK;
        if (!is_refusal(status) || (*product)->shape.beside == BESIDE_NOTHING)
            return library_failed(gemm, status, "cublasLtMatmul", &(*product)->shape, error);
        refuse_beside(gemm, *product, status);
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
    struct product *product = NULL;
    if (op->m == 0 || op->n == 0) return;
    if (op->k == 0) {
        ls_cuda_stream_note(stream, multiply_nothing(op, ls_cuda_stream(stream)), "a product of nothing");
        return;
    }
    take_workspace(gemm, stream);
    if (compute(gemm, ls_cuda_stream(stream), op, &product, &error))
        ls_cuda_stream_fail(stream, &error);
    else
        ls_cuda_stream_note(stream, finish(product, op, ls_cuda_stream(stream)), "a product's epilogue");
}

/* ---- choosing ---- */

void ls_cuda_gemm_note(struct ls_cuda_gemm *gemm, const struct ls_op_gemm *op) {
    if (op->m == 0 || op->n == 0 || op->k == 0 || gemm->noted_count == NOTED) return;
    const struct shape shape = shape_of(op, beside_of(op));
    for (int i = 0; i < gemm->noted_count; i++) {
        const struct shape other = shape_of(&gemm->noted[i], beside_of(&gemm->noted[i]));
        if (memcmp(&shape, &other, sizeof shape) == 0) return;
    }
    gemm->noted[gemm->noted_count++] = *op;
}

/* Where and what is measured. */
struct measurement {
    struct ls_cuda_gemm *gemm;
    cudaStream_t stream;
    cudaEvent_t events[2];
    const struct ls_op_gemm *op;
};

/* Milliseconds of one of `runs` runs, HUGE_VALF when the algorithm does not run; with what follows, where that is a
 * matter of choice. */
static float time_runs(const struct measurement *m, const struct product *product,
                       const cublasLtMatmulAlgo_t *algorithm, int runs) {
    float milliseconds = 0;
    if (cudaEventRecord(m->events[0], m->stream)) return HUGE_VALF;
    for (int run = 0; run < runs; run++)
        if (multiply(m->gemm, m->stream, product, algorithm, m->op) ||
            (m->op->bias_gradient && finish(product, m->op, m->stream)))
            return HUGE_VALF;
    if (cudaEventRecord(m->events[1], m->stream) || cudaEventSynchronize(m->events[1]) ||
        cudaEventElapsedTime(&milliseconds, m->events[0], m->events[1]))
        return HUGE_VALF;
    return milliseconds / (float)runs;
}

/* The fastest of the proposals, and how fast each is; times[best] is HUGE_VALF where none runs, *status then says why.
 * The ways take turns, so that none has the better clock. */
static int measure_ways(const struct measurement *m, const struct product *product,
                        const cublasLtMatmulHeuristicResult_t proposals[WAYS], int count, float times[WAYS],
                        cublasStatus_t *status) {
    float least = HUGE_VALF;
    int best = 0;
    *status = CUBLAS_STATUS_EXECUTION_FAILED;
    for (int way = 0; way < count; way++) { /* what is run for the first time is loaded first */
        const cublasStatus_t answer = multiply(m->gemm, m->stream, product, &proposals[way].algo, m->op);
        if (answer) *status = answer;
        times[way] = answer ? HUGE_VALF : time_runs(m, product, &proposals[way].algo, 1);
        least = fminf(least, times[way]);
    }
    const float runs = fminf(ceilf(MEASURED_MS / least), RUNS_MOST);
    for (int repeat = 0; repeat < REPEATS; repeat++)
        for (int way = 0; way < count; way++)
            if (times[way] < HUGE_VALF)
                times[way] = fminf(times[way], time_runs(m, product, &proposals[way].algo, runs > 1 ? (int)runs : 1));
    for (int way = 0; way < count; way++)
        if (times[way] < times[best]) best = way;
    return best;
}

static void tell_choice(const struct ls_op_gemm *op, enum beside beside, const float times[WAYS], int best, int count) {
    char first[32] = "none";
    if (times[0] < HUGE_VALF) snprintf(first, sizeof first, "%.3f ms", (double)times[0]);
    ls_log(LS_LOG_INFO, "product %lld x %lld x %lld%s%s%s: %.3f ms by way %d of %d, %s by the first", (long long)op->m,
           (long long)op->n, (long long)op->k, op->transpose_a ? " (a transposed)" : "",
           op->transpose_b ? " (b transposed)" : "",
           !op->bias_gradient               ? ""
           : beside == BESIDE_BIAS_GRADIENT ? ", the bias's gradient with it"
                                            : ", the bias's gradient after it",
           (double)times[best], best + 1, count, first);
}

/* Measures the ways of a shape; less than *least: *choice and *least are it. No way that runs, where something is asked
 * for beside the product: both stay. */
static enum ls_code measure_shape(const struct measurement *m, const struct shape *shape, struct choice *choice,
                                  float *least, struct ls_error *error) {
    cublasLtMatmulHeuristicResult_t proposals[WAYS];
    float times[WAYS];
    struct product *product = NULL;
    int count = 0;
    const enum ls_code code = find_product(m->gemm, shape, &product, error);
    if (code || !product) return code;
    cublasStatus_t status = propose(m->gemm, product, proposals, &count);
    if (status) return library_failed(m->gemm, status, "cublasLtMatmulAlgoGetHeuristic", shape, error);
    assert(count > 0);
    const int best = measure_ways(m, product, proposals, count, times, &status);
    if (times[best] < *least) {
        memset(choice, 0, sizeof *choice);
        choice->shape = *shape;
        choice->algorithm = proposals[best].algo;
        *least = times[best];
    }
    if (times[best] < HUGE_VALF)
        tell_choice(m->op, (enum beside)shape->beside, times, best, count);
    else if (shape->beside == BESIDE_NOTHING)
        return library_failed(m->gemm, status, "cublasLtMatmul", shape, error);
    else
        refuse_beside(m->gemm, product, status);
    return LS_OK;
}

/* The product alone where no way does what is asked for beside it, and where that is faster with a bias's gradient. */
static enum ls_code choose_one(const struct measurement *m, struct choice *choice, struct ls_error *error) {
    const struct shape fused = shape_of(m->op, beside_of(m->op)), plain = shape_of(m->op, BESIDE_NOTHING);
    float least = HUGE_VALF;
    enum ls_code code = measure_shape(m, &fused, choice, &least, error);
    if (!code && fused.beside != BESIDE_NOTHING && (least == HUGE_VALF || fused.beside == BESIDE_BIAS_GRADIENT))
        code = measure_shape(m, &plain, choice, &least, error);
    return code;
}

static int run_once(void *context) {
    const struct measurement *m = context;
    struct product *product;
    struct ls_error error;
    return compute(m->gemm, m->stream, m->op, &product, &error);
}

/* The largest product for a while. What is wrong with it shows when its turn comes. */
static void warm_up(struct measurement m) {
    double most = 0;
    for (int i = 0; i < m.gemm->noted_count; i++) {
        const struct ls_op_gemm *op = &m.gemm->noted[i];
        const double size = (double)op->m * (double)op->n * (double)op->k;
        if (size > most) most = size, m.op = op;
    }
    if (m.op) ls_cuda_warm_up(m.stream, run_once, &m);
}

enum ls_code ls_cuda_gemm_choose(struct ls_cuda_gemm *gemm, void **result, int64_t *bytes, struct ls_error *error) {
    const int count = gemm->device->base.fixed ? 0 : gemm->noted_count;
    struct choice *choices = calloc((size_t)count + 1, sizeof *choices);
    struct measurement m = {.gemm = gemm};
    if (!choices) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "device: no memory for %d choices", count);
    ls_cuda_use(gemm->device);
    cudaError_t status = cudaStreamCreateWithFlags(&m.stream, cudaStreamNonBlocking);
    for (int i = 0; i < 2 && !status; i++) status = cudaEventCreateWithFlags(&m.events[i], cudaEventDefault);
    enum ls_code code = status ? ls_cuda_fail(gemm->device, status, "a stream to measure on", error) : LS_OK;
    if (!code && count > 0) warm_up(m);
    for (int i = 0; i < count && !code; i++) {
        m.op = &gemm->noted[i];
        code = choose_one(&m, &choices[i], error);
    }
    if (m.stream) cudaStreamSynchronize(m.stream);
    for (int i = 0; i < 2; i++)
        if (m.events[i]) cudaEventDestroy(m.events[i]);
    if (m.stream) cudaStreamDestroy(m.stream);
    if (code) {
        free(choices);
        return code;
    }
    *result = choices;
    *bytes = count * (int64_t)sizeof *choices;
    return LS_OK;
}

static bool is_among(const struct shape *shape, const struct choice *choices, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (memcmp(&choices[i].shape, shape, sizeof *shape) == 0) return true;
    return false;
}

bool ls_cuda_gemm_covers(const struct ls_cuda_gemm *gemm, const void *choices, int64_t bytes) {
    const int64_t count = bytes / (int64_t)sizeof(struct choice);
    struct choice copies[NOTED];
    if (bytes % (int64_t)sizeof(struct choice) != 0 || count > NOTED) return false;
    memcpy(copies, choices, (size_t)bytes);
    for (int i = 0; i < gemm->noted_count; i++) {
        /* the one that was chosen, or left */
        const struct shape fused = shape_of(&gemm->noted[i], beside_of(&gemm->noted[i]));
        const struct shape plain = shape_of(&gemm->noted[i], BESIDE_NOTHING);
        if (!is_among(&fused, copies, count) && !is_among(&plain, copies, count)) return false;
    }
    return true;
}

enum ls_code ls_cuda_gemm_adopt(struct ls_cuda_gemm *gemm, const void *choices, int64_t bytes, struct ls_error *error) {
    const int64_t count = bytes / (int64_t)sizeof(struct choice);
    if (bytes % (int64_t)sizeof(struct choice) != 0 || count > NOTED)
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB,
                       "device: %lld bytes of choices for products are not of this program. Do all ranks run the same "
                       "build?",
                       (long long)bytes);
    memcpy(gemm->choices, choices, (size_t)bytes);
    gemm->choice_count = (int)count;
    clear_products(gemm);
    return LS_OK;
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
    if (gemm->library) clear_products(gemm);
    if (gemm->passed) cudaEventDestroy(gemm->passed);
    if (gemm->workspace) cudaFree(gemm->workspace);
    if (gemm->library && gemm->handle) gemm->library->cublasLtDestroy(gemm->handle);
    free(gemm);
}
