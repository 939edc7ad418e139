/* cuBLASLt by plain loops, column-major. It takes what the program uses and checks shapes, leading dimensions, types
 * and alignment as the real one does; GELU's derivative for fp32 it has not unless it is asked to
 * (LS_STANDIN_CUBLASLT), so that the program's own way is walked. What a proposal can do it learns of the arguments of
 * the question, addresses included, and a product that is not so is refused. */
#include "tests/standin/standin.h"
#include "worker/device/cpu/activation.h"
#include "worker/device/cpu/low_precision.h"

#include <cublasLt.h>
#include <stdint.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { WAYS = 3, MAGIC = 0x4c53 };

struct description {
    cublasComputeType_t compute;
    int32_t transpose_a, transpose_b;
    cublasLtEpilogue_t epilogue;
    void *bias, *aux;
    int64_t aux_ld;
};
struct layout {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t ld;
};
struct preference {
    uint32_t alignment[4]; /* of a, b, c, d */
};
/* What an algorithm is good for: the real one's is opaque. */
struct algorithm {
    uint64_t magic, way, m, n, k, extra; /* extra: alignment of bias or aux */
};

/* What is wrong with the library. */
static bool is_set(const char *fault) {
    const char *value = getenv("LS_STANDIN_CUBLASLT");
    return value && strcmp(value, fault) == 0;
}

static uint64_t alignment_of(const void *pointer) {
    const uintptr_t address = (uintptr_t)pointer | 256;
    return address & -address;
}

static uint64_t alignment_of_extra(const struct description *d) {
    return d->epilogue == CUBLASLT_EPILOGUE_BIAS || d->epilogue == CUBLASLT_EPILOGUE_BGRADA ? alignment_of(d->bias)
           : d->epilogue == CUBLASLT_EPILOGUE_DGELU                                         ? alignment_of(d->aux)
                                                                                            : 0;
}

size_t cublasLtGetVersion(void) {
    return CUBLAS_VERSION;
}
cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = calloc(1, 1);
    return *handle ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType_t scale) {
    if (scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    struct description *made = calloc(1, sizeof *made);
    if (!made) return CUBLAS_STATUS_ALLOC_FAILED;
    made->compute = compute;
    made->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    *out = (cublasLtMatmulDesc_t)made;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
    free(description);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t handle, cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes) {
    struct description *d = (struct description *)handle;
    void *member;
    size_t size;
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA: member = &d->transpose_a, size = sizeof d->transpose_a; break;
    case CUBLASLT_MATMUL_DESC_TRANSB: member = &d->transpose_b, size = sizeof d->transpose_b; break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE: member = &d->epilogue, size = sizeof d->epilogue; break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: member = &d->bias, size = sizeof d->bias; break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: member = &d->aux, size = sizeof d->aux; break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: member = &d->aux_ld, size = sizeof d->aux_ld; break;
    default: return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (bytes != size) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(member, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t ld) {
    if (ld < (int64_t)rows) return CUBLAS_STATUS_INVALID_VALUE;
    struct layout *made = malloc(sizeof *made);
    if (!made) return CUBLAS_STATUS_ALLOC_FAILED;
    *made = (struct layout){type, rows, columns, ld};
    *out = (cublasLtMatrixLayout_t)made;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    free(layout);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out) {
    struct preference *made = malloc(sizeof *made);
    if (!made) return CUBLAS_STATUS_ALLOC_FAILED;
    *made = (struct preference){{256, 256, 256, 256}};
    *out = (cublasLtMatmulPreference_t)made;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    free(preference);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t handle,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
                                                    size_t bytes) {
    struct preference *preference = (struct preference *)handle;
    int matrix;
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return bytes == sizeof(uint64_t) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return bytes == sizeof(uint32_t) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: matrix = 0; break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: matrix = 1; break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: matrix = 2; break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: matrix = 3; break;
    default: return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (bytes != sizeof(uint32_t)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&preference->alignment[matrix], value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

static bool is_half(cudaDataType_t type) {
    return type == CUDA_R_16BF || type == CUDA_R_16F;
}
static size_t bytes_of(cudaDataType_t type) {
    return is_half(type) ? 2 : 4;
}

/* Shapes that go together, types that the real one has. k: of the inner dimension. */
static cublasStatus_t check(const struct description *d, const struct layout *a, const struct layout *b,
                            const struct layout *c, uint64_t *k) {
    const uint64_t m = d->transpose_a ? a->columns : a->rows, n = d->transpose_b ? b->rows : b->columns;
    *k = d->transpose_a ? a->rows : a->columns;
    if (m != c->rows || n != c->columns || *k != (d->transpose_b ? b->columns : b->rows) || m == 0 || n == 0 || *k == 0)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (a->type != b->type || (!is_half(a->type) && a->type != CUDA_R_32F)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (c->type != CUDA_R_32F && c->type != a->type) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (d->compute != CUBLAS_COMPUTE_32F && (d->compute != CUBLAS_COMPUTE_32F_FAST_TF32 || a->type != CUDA_R_32F))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (d->epilogue == CUBLASLT_EPILOGUE_DGELU)
        return c->type == CUDA_R_32F && !is_set("gelu") ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
    return d->epilogue == CUBLASLT_EPILOGUE_DEFAULT || d->epilogue == CUBLASLT_EPILOGUE_BIAS ||
                   d->epilogue == CUBLASLT_EPILOGUE_BGRADA
               ? CUBLAS_STATUS_SUCCESS
               : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t handle_of_preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int *count) {
    const struct preference *preference = (const struct preference *)handle_of_preference;
    const struct layout *result = (const struct layout *)c;
    uint64_t k;
    (void)handle, (void)d;
    *count = 0;
    cublasStatus_t status =
        check((struct description *)description, (struct layout *)a, (struct layout *)b, result, &k);
    if (status) return status;
    for (int i = 0; i < wanted && i < WAYS; i++) {
        struct algorithm algorithm = {.magic = MAGIC,
                                      .way = (uint64_t)i,
                                      .m = result->rows,
                                      .n = result->columns,
                                      .k = k,
                                      .extra = alignment_of_extra((struct description *)description)};
        /* What was said of the pointers is part of the algorithm: the last words of its 64 bytes hold it. */
        memset(&results[i], 0, sizeof results[i]);
        memcpy(&results[i].algo, &algorithm, sizeof algorithm);
        for (int matrix = 0; matrix < 4; matrix++)
            results[i].algo.data[6 + matrix / 2] |= (uint64_t)preference->alignment[matrix] << 32 * (matrix % 2);
        results[i].state = CUBLAS_STATUS_SUCCESS;
        ++*count;
    }
    return CUBLAS_STATUS_SUCCESS;
}

struct product {
    struct description d;
    struct layout a, b, c;
    const void *a_memory, *b_memory, *c_memory;
    void *d_memory;
    uint64_t k, way;
    float alpha, beta;
};

static float get(const void *memory, cudaDataType_t type, int64_t index) {
    if (type == CUDA_R_32F) return ((const float *)memory)[index];
    const uint16_t bits = ((const uint16_t *)memory)[index];
    return type == CUDA_R_16BF ? ls_bf16_widen(bits) : ls_fp16_widen(bits);
}

static void set(void *memory, cudaDataType_t type, int64_t index, float value) {
    if (type == CUDA_R_32F)
        ((float *)memory)[index] = value;
    else
        ((uint16_t *)memory)[index] = type == CUDA_R_16BF ? ls_bf16_narrow(value) : ls_fp16_narrow(value);
}

/* op(matrix) as floats, [outer][k]: the inner products run along memory. */
static float *unpack(const void *memory, const struct layout *layout, bool k_in_rows, uint64_t outer, uint64_t k) {
    float *values = malloc(outer * k * sizeof *values);
    if (!values) abort();
    for (uint64_t o = 0; o < outer; o++)
        for (uint64_t i = 0; i < k; i++) {
            const uint64_t row = k_in_rows ? i : o, column = k_in_rows ? o : i;
            values[o * k + i] = get(memory, layout->type, (int64_t)(row + column * (uint64_t)layout->ld));
        }
    return values;
}

static float inner(const float *a, const float *b, uint64_t k) {
    float sums[16] = {0}, sum = 0;
    uint64_t i = 0;
    for (; i + 16 <= k; i += 16)
        for (int lane = 0; lane < 16; lane++) sums[lane] += a[i + (uint64_t)lane] * b[i + (uint64_t)lane];
    for (; i < k; i++) sum += a[i] * b[i];
    for (int lane = 0; lane < 16; lane++) sum += sums[lane];
    return sum;
}

static void sleep_us(long us) {
    nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL);
}

/* A GPU that was idle: the first product takes 32 ms longer, the next ones each half as much. The first way is the
 * fastest by 3 ms. */
static void rise(uint64_t way) {
    static _Atomic long late_us = 32000;
    const long late = atomic_load(&late_us);
    sleep_us(late + (way > 0 ? 3000 : 0));
    atomic_store(&late_us, late / 2);
}

/* The sums of a's rows, in the type of the result; what was there is overwritten. As faults they lack a number, or are
 * slow and so wrong that it shows where they are used. */
static void sum_rows(const struct product *p, const float *a) {
    for (uint64_t row = 0; row < p->c.rows; row++) {
        float sum = 0;
        for (uint64_t i = is_set("short-sums"); i < p->k; i++) sum += a[row * p->k + i];
        set(p->d.bias, p->c.type, (int64_t)row, is_set("slow-sums") ? 3 * sum : sum);
    }
    if (is_set("slow-sums")) sleep_us(10000);
}

/* GELU's derivative; as faults a twentieth too large, or slow and so wrong that it shows where it is used. */
static float derivative(float x) {
    return ls_gelu_derivative(x) * (is_set("coarse-gelu") ? 1.05f : is_set("slow-gelu") ? 3.0f : 1.0f);
}

static void run(void *argument) {
    const struct product *p = argument;
    float *a = unpack(p->a_memory, &p->a, p->d.transpose_a, p->c.rows, p->k);
    float *b = unpack(p->b_memory, &p->b, !p->d.transpose_b, p->c.columns, p->k);
    for (uint64_t column = 0; column < p->c.columns; column++)
        for (uint64_t row = 0; row < p->c.rows; row++) {
            const int64_t at = (int64_t)(row + column * (uint64_t)p->c.ld);
            float value = p->alpha * inner(a + row * p->k, b + column * p->k, p->k);
            if (p->beta != 0.0f) value += p->beta * get(p->c_memory, p->c.type, at);
            if (p->d.epilogue == CUBLASLT_EPILOGUE_BIAS) value += get(p->d.bias, p->c.type, (int64_t)row);
            if (p->d.epilogue == CUBLASLT_EPILOGUE_DGELU)
                value *= derivative(get(p->d.aux, p->c.type, (int64_t)(row + column * (uint64_t)p->d.aux_ld)));
            set(p->d_memory, p->c.type, at, value);
        }
    if (p->d.epilogue == CUBLASLT_EPILOGUE_BGRADA) sum_rows(p, a);
    if (p->d.epilogue == CUBLASLT_EPILOGUE_DGELU && is_set("slow-gelu")) sleep_us(10000);
    if (p->d.epilogue == CUBLASLT_EPILOGUE_DEFAULT && (is_set("quick-gelu") || is_set("coarse-gelu"))) sleep_us(1000);
    free(a);
    free(b);
    if (is_set("rising")) rise(p->way);
    if (is_set("odd") && (p->c.rows | p->c.columns | p->k) % 8) sleep_us(3000);
}

/* Ways that a library proposes and does not run. */
static bool is_refused(const struct description *d, const struct algorithm *algorithm) {
    return is_set("dead") || (is_set("late") && d->epilogue != CUBLASLT_EPILOGUE_DEFAULT) ||
           (is_set("first") && algorithm->way == 0);
}

static bool is_there(const void *memory, const struct layout *layout) {
    const uint64_t elements = (uint64_t)layout->ld * (layout->columns - 1) + layout->rows;
    return ls_standin_is_device_memory(memory, elements * bytes_of(layout->type));
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description, const void *alpha,
                              const void *a_memory, cublasLtMatrixLayout_t a, const void *b_memory,
                              cublasLtMatrixLayout_t b, const void *beta, const void *c_memory,
                              cublasLtMatrixLayout_t c, void *d_memory, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
    struct product p = {.d = *(struct description *)description,
                        .a = *(struct layout *)a,
                        .b = *(struct layout *)b,
                        .c = *(struct layout *)d,
                        .a_memory = a_memory,
                        .b_memory = b_memory,
                        .c_memory = c_memory,
                        .d_memory = d_memory};
    struct algorithm algorithm;
    (void)handle;
    cublasStatus_t status = check(&p.d, &p.a, &p.b, &p.c, &p.k);
    if (status) return status;
    if (c != d || !algo) return CUBLAS_STATUS_NOT_SUPPORTED; /* the program does neither */
    memcpy(&algorithm, algo, sizeof algorithm);
    if (algorithm.magic != MAGIC || algorithm.way >= WAYS || algorithm.m != p.c.rows || algorithm.n != p.c.columns ||
        algorithm.k != p.k || algorithm.extra > alignment_of_extra(&p.d))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (is_refused(&p.d, &algorithm)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (cudaPeekAtLastError() == cudaErrorIllegalAddress)
        return CUBLAS_STATUS_EXECUTION_FAILED; /* whoever's fault it was */
    p.way = algorithm.way;
    const void *const memory[] = {a_memory, b_memory, c_memory, d_memory};
    for (int i = 0; i < 4; i++) {
        const uint64_t alignment = algo->data[6 + i / 2] >> 32 * (i % 2) & UINT32_MAX;
        if (alignment == 0 || (uintptr_t)memory[i] % alignment) return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (!is_there(a_memory, &p.a) || !is_there(b_memory, &p.b) || !is_there(c_memory, &p.c) ||
        !is_there(d_memory, &p.c) || !ls_standin_is_device_memory(workspace, workspace_bytes))
        return CUBLAS_STATUS_INVALID_VALUE;
    if ((p.d.epilogue == CUBLASLT_EPILOGUE_BIAS || p.d.epilogue == CUBLASLT_EPILOGUE_BGRADA) &&
        !ls_standin_is_device_memory(p.d.bias, p.c.rows * bytes_of(p.c.type)))
        return CUBLAS_STATUS_INVALID_VALUE;
    const struct layout aux = {p.c.type, p.c.rows, p.c.columns, p.d.aux_ld};
    if (p.d.epilogue == CUBLASLT_EPILOGUE_DGELU &&
        (!is_there(p.d.aux, &aux) || (uintptr_t)p.d.aux % 16 || aux.ld % 8 || aux.ld < (int64_t)aux.rows))
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&p.alpha, alpha, sizeof p.alpha);
    memcpy(&p.beta, beta, sizeof p.beta);
    ls_standin_enqueue_copy(stream, run, &p, sizeof p);
    return CUBLAS_STATUS_SUCCESS;
}
