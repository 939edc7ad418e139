/* Which of cuBLASLt's algorithms multiplies each shape, by measuring. */
#include "common/log.h"
#include "worker/device/cpu/low_precision.h"
#include "worker/device/cuda/gemm_plans.h"
#include "worker/device/cuda/kernels.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    REPEATS = 5,
    RUNS_MOST = 16,     /* of short products, between two events */
    COMPARED = 16 << 20 /* elements of a result, at most */
};

/* Short products are repeated for so long between two events: the events cost some microseconds too. */
static const float MEASURED_MS = 0.2f;

void ls_cuda_gemm_note(struct ls_cuda_gemm *gemm, const struct ls_op_gemm *op) {
    if (op->m == 0 || op->n == 0 || op->k == 0 || gemm->noted_count == LS_GEMM_NOTED) return;
    const struct ls_gemm_shape shape = ls_gemm_shape_of(op, ls_gemm_epilogue_of(op));
    for (int i = 0; i < gemm->noted_count; i++) {
        const struct ls_gemm_shape other = ls_gemm_shape_of(&gemm->noted[i], ls_gemm_epilogue_of(&gemm->noted[i]));
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

/* Whether what follows the product may be the library's or a kernel's, as is faster: a bias's gradient, GELU's
 * derivative. A bias is always the library's. */
static bool has_choice(const struct ls_op_gemm *op) {
    return op->bias_gradient || op->epilogue == LS_EPILOGUE_GELU_GRAD;
}

/* Milliseconds of one of `runs` runs, HUGE_VALF when the algorithm does not run; with what follows, where that is a
 * matter of choice. */
static float time_runs(const struct measurement *m, const struct ls_gemm_product *product,
                       const cublasLtMatmulAlgo_t *algorithm, int runs) {
    float milliseconds = 0;
    if (cudaEventRecord(m->events[0], m->stream)) return HUGE_VALF;
    for (int run = 0; run < runs; run++)
        if (ls_gemm_multiply(m->gemm, m->stream, product, algorithm, m->op) ||
            (has_choice(m->op) && ls_gemm_finish(product, m->op, m->stream)))
            return HUGE_VALF;
    if (cudaEventRecord(m->events[1], m->stream) || cudaEventSynchronize(m->events[1]) ||
        cudaEventElapsedTime(&milliseconds, m->events[0], m->events[1]))
        return HUGE_VALF;
    return milliseconds / (float)runs;
}

/* The fastest of the proposals, and how fast each is; times[best] is HUGE_VALF where none runs, *status then says why.
 * The ways take turns, so that none has the better clock. */
static int measure_ways(const struct measurement *m, const struct ls_gemm_product *product,
                        const cublasLtMatmulHeuristicResult_t proposals[LS_GEMM_WAYS], int count,
                        float times[LS_GEMM_WAYS], cublasStatus_t *status) {
    float least = HUGE_VALF;
    int best = 0;
    *status = CUBLAS_STATUS_EXECUTION_FAILED;
    for (int way = 0; way < count; way++) { /* what is run for the first time is loaded first */
        const cublasStatus_t answer = ls_gemm_multiply(m->gemm, m->stream, product, &proposals[way].algo, m->op);
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

static void tell_choice(const struct ls_op_gemm *op, const struct ls_gemm_shape *shape, const float times[LS_GEMM_WAYS],
                        int best, int count) {
    char first[32] = "none", what[48] = "";
    if (times[0] < HUGE_VALF) snprintf(first, sizeof first, "%.3f ms", (double)times[0]);
    if (has_choice(op))
        snprintf(what, sizeof what, ", %s %s it", op->bias_gradient ? "the bias's gradient" : "GELU's derivative",
                 shape->epilogue == LS_GEMM_EPILOGUE_NONE ? "after" : "with");
    ls_log(LS_LOG_INFO, "product %lld x %lld x %lld%s%s%s: %.3f ms by way %d of %d, %s by the first",
           (long long)shape->m, (long long)shape->n, (long long)shape->k, op->transpose_a ? " (a transposed)" : "",
           op->transpose_b ? " (b transposed)" : "", what, (double)times[best], best + 1, count, first);
}

/* Measures the ways of a shape: *choice is the fastest, *time its milliseconds; HUGE_VALF where none runs, which is an
 * error of the product alone only. */
static enum ls_code measure_shape(const struct measurement *m, const struct ls_gemm_shape *shape,
                                  struct ls_gemm_choice *choice, float *time, struct ls_error *error) {
    cublasLtMatmulHeuristicResult_t proposals[LS_GEMM_WAYS];
    float times[LS_GEMM_WAYS];
    struct ls_gemm_product *product = NULL;
    int count = 0;
    *time = HUGE_VALF;
    const enum ls_code code = ls_gemm_find_product(m->gemm, shape, &product, error);
    if (code || !product) return code;
    cublasStatus_t status = ls_gemm_propose(m->gemm, product, proposals, &count);
    if (status) return ls_gemm_failed(m->gemm, status, "cublasLtMatmulAlgoGetHeuristic", shape, error);
    assert(count > 0);
    const int best = measure_ways(m, product, proposals, count, times, &status);
    memset(choice, 0, sizeof *choice);
    choice->shape = *shape;
    choice->algorithm = proposals[best].algo;
    *time = times[best];
    if (times[best] < HUGE_VALF)
        tell_choice(m->op, shape, times, best, count);
    else if (shape->epilogue == LS_GEMM_EPILOGUE_NONE)
        return ls_gemm_failed(m->gemm, status, "cublasLtMatmul", shape, error);
    else
        ls_gemm_refuse_epilogue(m->gemm, product, status);
    return LS_OK;
}

/* Normal numbers in `rows` rows of `columns` elements, `stride` apart, by way of the library's workspace. */
static cudaError_t fill(const struct measurement *m, const void *matrix, uint64_t seed, int64_t rows, int64_t columns,
                        int64_t stride) {
    const int64_t count = (rows - 1) * stride + columns, element = ls_dtype_bytes(m->op->dtype);
    const int64_t piece = (int64_t)(m->gemm->workspace_bytes / sizeof(float));
    cudaError_t status = cudaSuccess;
    for (int64_t first = 0; first < count && !status; first += piece) {
        const int64_t length = count - first < piece ? count - first : piece;
        status = ls_cuda_initialize(
            &(struct ls_op_initialize){
                .output = m->gemm->workspace, .seed = seed, .first = first, .count = length, .deviation = 1},
            m->stream);
        if (!status)
            status = ls_cuda_convert(&(struct ls_op_convert){.output = (char *)(uintptr_t)matrix + first * element,
                                                             .input = m->gemm->workspace,
                                                             .count = length,
                                                             .dtype = m->op->dtype},
                                     m->stream);
    }
    return status;
}

/* A bias's gradient by `choice`, or by our kernel where that is NULL. */
static bool sum_columns(const struct measurement *m, const struct ls_gemm_choice *choice, float *sums) {
    const struct ls_gemm_shape alone = ls_gemm_shape_of(m->op, LS_GEMM_EPILOGUE_NONE);
    const size_t bytes = (size_t)m->op->n * sizeof *sums;
    struct ls_gemm_product *product = NULL;
    struct ls_error error;
    if (ls_gemm_find_product(m->gemm, choice ? &choice->shape : &alone, &product, &error) || !product) return false;
    return cudaMemsetAsync(m->op->bias_gradient, 0, bytes, m->stream) == cudaSuccess &&
           (!choice || !ls_gemm_multiply(m->gemm, m->stream, product, &choice->algorithm, m->op)) &&
           ls_gemm_finish(product, m->op, m->stream) == cudaSuccess &&
           cudaMemcpyAsync(sums, m->op->bias_gradient, bytes, cudaMemcpyDeviceToHost, m->stream) == cudaSuccess &&
           cudaStreamSynchronize(m->stream) == cudaSuccess;
}

/* Whether the library's sums are our kernel's, over k normal numbers. Sums in fp32 in whatever order are apart by less
 * than 1e-6 k, numbers rounded to TF32 by some 1e-3 k^(1/2); one number that is left out by 0.7 at the median. */
static bool are_sums_right(const struct measurement *m, const struct ls_gemm_choice *choice) {
    const struct ls_op_gemm *op = m->op;
    const double most = 1e-6 * (double)op->k + 1e-3 * sqrt((double)op->k);
    float *theirs = calloc((size_t)op->n, sizeof *theirs), *ours = calloc((size_t)op->n, sizeof *ours);
    bool right = theirs && ours && fill(m, op->b, 1, op->k, op->n, op->ldb) == cudaSuccess &&
                 sum_columns(m, choice, theirs) && sum_columns(m, NULL, ours);
    for (int64_t i = 0; i < op->n && right; i++) {
        right = fabs((double)theirs[i] - (double)ours[i]) <= most;
        if (!right)
            ls_log(LS_LOG_WARNING,
                   "product %lld x %lld x %lld: cuBLASLt %s adds up a bias's gradient to %g, our kernel to %g (%.2g is "
                   "allowed); it goes without",
                   (long long)op->m, (long long)op->n, (long long)op->k, m->gemm->library->version, (double)theirs[i],
                   (double)ours[i], most);
    }
    free(theirs);
    free(ours);
    return right;
}

/* The last `rows` rows of the result by `choice`, with what follows it. */
static bool compute(const struct measurement *m, const struct ls_gemm_choice *choice, int64_t rows, void *result) {
    const struct ls_op_gemm *op = m->op;
    const int64_t element = ls_dtype_bytes(op->dtype);
    struct ls_gemm_product *product = NULL;
    struct ls_error error;
    return ls_gemm_find_product(m->gemm, &choice->shape, &product, &error) == LS_OK && product &&
           !ls_gemm_multiply(m->gemm, m->stream, product, &choice->algorithm, op) &&
           ls_gemm_finish(product, op, m->stream) == cudaSuccess &&
           cudaMemcpyAsync(result, (const char *)op->c + (op->m - rows) * op->ldc * element,
                           (size_t)(((rows - 1) * op->ldc + op->n) * element), cudaMemcpyDeviceToHost,
                           m->stream) == cudaSuccess &&
           cudaStreamSynchronize(m->stream) == cudaSuccess;
}

/* The norm of the difference over that of `ours`. */
static double difference(const struct ls_op_gemm *op, const void *theirs, const void *ours, int64_t rows) {
    double apart = 0, whole = 0;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = row * op->ldc; i < row * op->ldc + op->n; i++) {
            const double own = (double)ls_load(op->dtype, ours, i), d = (double)ls_load(op->dtype, theirs, i) - own;
            apart += d * d;
            whole += own * own;
        }
    return sqrt(apart / whole);
}

/* Whether the library's product with GELU's derivative is the product `alone` with our kernel's, over normal numbers:
 * in the last rows, where a library's tiles are broken. The second is rounded once more to the type, and sums have
 * another order. A library that takes the tangent from a table of 11 bits is 3e-4 away, which 16 bits take. */
static bool is_derivative_right(const struct measurement *m, const struct ls_gemm_choice *choice,
                                const struct ls_gemm_choice *alone) {
    const struct ls_op_gemm *op = m->op;
    const double most = op->dtype == LS_BF16 ? 0x1p-6 : op->dtype == LS_FP16 ? 0x1p-9 : 0x1p-16;
    const int64_t whole = COMPARED / op->ldc + 1, rows = whole < op->m ? whole : op->m;
    const size_t bytes = (size_t)(rows * op->ldc * ls_dtype_bytes(op->dtype));
    void *theirs = malloc(bytes), *ours = malloc(bytes);
    const bool computed =
        theirs && ours && fill(m, op->a, 1, op->m, op->k, op->lda) == cudaSuccess &&
        fill(m, op->b, 2, op->transpose_b ? op->n : op->k, op->transpose_b ? op->k : op->n, op->ldb) == cudaSuccess &&
        fill(m, op->aux, 3, op->m, op->n, op->ldc) == cudaSuccess && compute(m, choice, rows, theirs) &&
        compute(m, alone, rows, ours);
    const double apart = computed ? difference(op, theirs, ours, rows) : HUGE_VAL;
    free(theirs);
    free(ours);
    if (apart <= most) return true;
    ls_log(LS_LOG_WARNING,
           "product %lld x %lld x %lld: GELU's derivative by cuBLASLt %s differs from our kernel's by %.2g of the norm "
           "(%.2g is allowed); it goes without",
           (long long)op->m, (long long)op->n, (long long)op->k, m->gemm->library->version, apart, most);
    return false;
}

/* Tensor kernels move 16 bytes at a time: a product of a few more rows, columns or terms may be the faster one. */
static void try_wider(const struct measurement *m, struct ls_gemm_choice *choice, float time) {
    const struct ls_op_gemm *op = m->op;
    const struct ls_gemm_shape shape = ls_gemm_wide_shape_of(op);
    struct ls_gemm_choice wide;
    struct ls_error error;
    float wide_time;
    if (measure_shape(m, &shape, &wide, &wide_time, &error) || wide_time == HUGE_VALF) return;
    ls_log(LS_LOG_INFO, "product %lld x %lld x %lld: %.3f ms, %.3f ms as one of %lld x %lld x %lld, which is %s",
           (long long)op->m, (long long)op->n, (long long)op->k, (double)time, (double)wide_time, (long long)shape.m,
           (long long)shape.n, (long long)shape.k, wide_time < time ? "taken" : "left");
    if (wide_time < time) *choice = wide;
}

/* The gradient of a bias and GELU's derivative are the library's where they come out right and are faster than a kernel
 * that goes through the matrix once more: some products become much slower by them. A bias is the library's where some
 * way of it runs. */
static enum ls_code choose_one(const struct measurement *m, struct ls_gemm_choice *choice, struct ls_error *error) {
    const struct ls_gemm_shape fused = ls_gemm_shape_of(m->op, ls_gemm_epilogue_of(m->op)),
                               plain = ls_gemm_shape_of(m->op, LS_GEMM_EPILOGUE_NONE);
    float time;
    enum ls_code code = measure_shape(m, &fused, choice, &time, error);
    if (!code && ls_gemm_has_spare(m->op)) try_wider(m, choice, time);
    if (code || fused.epilogue == LS_GEMM_EPILOGUE_NONE) return code;
    if (time < HUGE_VALF && !has_choice(m->op)) return LS_OK;
    struct ls_gemm_choice alone;
    float time_alone;
    code = measure_shape(m, &plain, &alone, &time_alone, error);
    if (code) return code;
    if (time >= time_alone ||
        !(m->op->bias_gradient ? are_sums_right(m, choice) : is_derivative_right(m, choice, &alone)))
        *choice = alone;
    return LS_OK;
}

static int run_once(void *context) {
    const struct measurement *m = context;
    struct ls_gemm_product *product;
    struct ls_error error;
    return ls_gemm_compute(m->gemm, m->stream, m->op, &product, &error);
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
    struct ls_gemm_choice *choices = calloc((size_t)count + 1, sizeof *choices);
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

static bool is_among(const struct ls_gemm_shape *shape, const struct ls_gemm_choice *choices, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (memcmp(&choices[i].shape, shape, sizeof *shape) == 0) return true;
    return false;
}

bool ls_cuda_gemm_covers(const struct ls_cuda_gemm *gemm, const void *choices, int64_t bytes) {
    const int64_t count = bytes / (int64_t)sizeof(struct ls_gemm_choice);
    struct ls_gemm_choice copies[LS_GEMM_NOTED];
    if (bytes % (int64_t)sizeof(struct ls_gemm_choice) != 0 || count > LS_GEMM_NOTED) return false;
    memcpy(copies, choices, (size_t)bytes);
    for (int i = 0; i < gemm->noted_count; i++) {
        /* the one that was chosen, or left */
        const struct ls_gemm_shape fused = ls_gemm_shape_of(&gemm->noted[i], ls_gemm_epilogue_of(&gemm->noted[i]));
        const struct ls_gemm_shape plain = ls_gemm_shape_of(&gemm->noted[i], LS_GEMM_EPILOGUE_NONE);
        const struct ls_gemm_shape wide = ls_gemm_wide_shape_of(&gemm->noted[i]);
        if (!is_among(&fused, copies, count) && !is_among(&plain, copies, count) && !is_among(&wide, copies, count))
            return false;
    }
    return true;
}

enum ls_code ls_cuda_gemm_adopt(struct ls_cuda_gemm *gemm, const void *choices, int64_t bytes, struct ls_error *error) {
    const int64_t count = bytes / (int64_t)sizeof(struct ls_gemm_choice);
    if (bytes % (int64_t)sizeof(struct ls_gemm_choice) != 0 || count > LS_GEMM_NOTED)
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB,
                       "device: %lld bytes of choices for products are not of this program. Do all ranks run the same "
                       "build?",
                       (long long)bytes);
    memcpy(gemm->choices, choices, (size_t)bytes);
    gemm->choice_count = (int)count;
    ls_gemm_clear(gemm);
    return LS_OK;
}
