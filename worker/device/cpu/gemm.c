/* Matrix products of fp32, each thread's by itself: as pairs of bf16 where there is a matrix unit for them, else by
 * OpenBLAS and oneDNN, one single-threaded library call per thread. */
#include "worker/device/cpu/activation.h"
#include "worker/device/cpu/kernels.h"

#include <assert.h>
#include <cblas.h>
#include <dnnl.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <string.h>

/* The unit of cutting between threads; multiply-adds below which threads do not pay. */
enum { CUT = 32, THREADED_MIN = 1 << 20 };

/* Tiles by shape alone: FEW as soon as each has work worth a thread's wake-up, more for as long as each keeps enough
 * for the library to run at full speed. All are powers of two. */
enum { FIXED_FEW = 8, FIXED_FEW_MIN = 1 << 22, FIXED_MOST = 64, FIXED_MOST_MIN = 1 << 27 };

#ifdef __x86_64__
/* Whether OpenBLAS has kernels of this width for this processor: one that is younger than itself it takes for an older
 * one, so that its products are half as fast as oneDNN's where that knows AVX-512. */
static bool openblas_has_avx512;

static void ask_openblas(void) {
    static const char *const cores[] = {"SkylakeX", "Cooperlake", "SapphireRapids"};
    for (size_t i = 0; i < sizeof cores / sizeof *cores; i++)
        openblas_has_avx512 |= strcmp(openblas_get_corename(), cores[i]) == 0;
}
#endif

/* oneDNN is 1.1 to 1.4 times faster on x86, but for weight gradients (a transposed, long k): there OpenBLAS wins on
 * CPUs without AVX-512, and on others when the rows of `a` lie a multiple of 4 KiB apart, which oneDNN reads against
 * the cache's grain. On other processors it has no kernels of its own. */
static bool prefers_openblas(bool transpose_a, int64_t k, int64_t lda) {
#ifdef __x86_64__
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (!transpose_a || k < 256) return false;
    pthread_once(&once, ask_openblas);
    return __builtin_cpu_supports("avx512f") ? openblas_has_avx512 && lda % 1024 == 0 : true;
#else
    (void)transpose_a, (void)k, (void)lda;
    return true;
#endif
}

static void sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
                  const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    assert(m <= INT_MAX && n <= INT_MAX && k <= INT_MAX && lda <= INT_MAX && ldb <= INT_MAX && ldc <= INT_MAX);
    if (m <= 0 || n <= 0) return;
    if (k <= 0) {
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) c[i * ldc + j] = beta == 0.0f ? 0.0f : beta * c[i * ldc + j];
    } else if (prefers_openblas(transpose_a, k, lda)) {
        cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans,
                    (int)m, (int)n, (int)k, 1.0f, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
    } else {
        const dnnl_status_t status =
            dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, 1.0f, a, lda, b, ldb, beta, c, ldc);
        assert(status == dnnl_success);
        (void)status;
    }
}

/* c: the result from [row, begin) on; columns count from `begin`. */
static void epilogue_row(const struct ls_op_gemm *op, float *c, int64_t row, int64_t begin, int64_t columns) {
    float *aux = op->aux ? (float *)op->aux + row * op->ldc + begin : NULL;
    const float *bias = op->bias ? (const float *)op->bias + begin : NULL;
    switch (op->epilogue) {
    case LS_EPILOGUE_NONE: break;
    case LS_EPILOGUE_BIAS: assert(bias);
#pragma omp simd
        for (int64_t j = 0; j < columns; j++) c[j] += bias[j];
        break;
    case LS_EPILOGUE_BIAS_GELU: assert(bias && aux);
#pragma omp simd
        for (int64_t j = 0; j < columns; j++) {
            const float x = c[j] + bias[j];
            aux[j] = x;
            c[j] = ls_gelu(x);
        }
        break;
    case LS_EPILOGUE_GELU_GRAD: assert(aux);
#pragma omp simd
        for (int64_t j = 0; j < columns; j++) c[j] *= ls_gelu_derivative(aux[j]);
        break;
    }
    if (op->residual) {
        const float *residual = (const float *)op->residual + row * op->ldc + begin;
#pragma omp simd
        for (int64_t j = 0; j < columns; j++) c[j] += residual[j];
    }
}

static void epilogue(const struct ls_op_gemm *op, float *c, int64_t stride, int64_t r0, int64_t r1, int64_t c0,
                     int64_t c1) {
    if (op->epilogue == LS_EPILOGUE_NONE && !op->residual) return;
    for (int64_t r = r0; r < r1; r++, c += stride) epilogue_row(op, c, r, c0, c1 - c0);
}

/* Rows [r0, r1) and columns [c0, c1) of the product, on libraries where `pairs` is NULL. There the epilogue follows the
 * whole tile: smaller ones that stay in the cache cost more, because the library packs their rows and columns anew. */
static void tile(const struct ls_op_gemm *op, ls_pairs_finish *pairs, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
    if (pairs) {
        ls_pairs_multiply(op, r0, r1, c0, c1, pairs);
        return;
    }
    const float *a = (const float *)op->a + (op->transpose_a ? r0 : r0 * op->lda);
    const float *b = (const float *)op->b + (op->transpose_b ? c0 * op->ldb : c0);
    float *c = (float *)op->c + r0 * op->ldc + c0;
    sgemm(op->transpose_a, op->transpose_b, r1 - r0, c1 - c0, op->k, a, op->lda, b, op->ldb,
          op->accumulate ? 1.0f : 0.0f, c, op->ldc);
    epilogue(op, c, op->ldc, r0, r1, c0, c1);
}

struct grid {
    const struct ls_op_gemm *op;
    ls_pairs_finish *pairs;
    int64_t rows, columns; /* parts in each direction */
};

static int64_t cut(int64_t size, int64_t part, int64_t parts) {
    const int64_t units = (size + CUT - 1) / CUT, at = units * part / parts * CUT;
    return at < size ? at : size;
}

static void tiles(const void *arguments, int64_t begin, int64_t end) {
    const struct grid *grid = arguments;
    const struct ls_op_gemm *op = grid->op;
    for (int64_t i = begin; i < end; i++) {
        const int64_t row = i / grid->columns, column = i % grid->columns;
        tile(op, grid->pairs, cut(op->m, row, grid->rows), cut(op->m, row + 1, grid->rows),
             cut(op->n, column, grid->columns), cut(op->n, column + 1, grid->columns));
    }
}

/* `parts` tiles, cut so that the rows of a and columns of b that are read more than once are fewest. */
static struct grid choose_grid(const struct ls_op_gemm *op, ls_pairs_finish *pairs, int parts) {
    struct grid best = {op, pairs, 1, 1};
    double least = HUGE_VAL;
    for (int rows = 1; rows <= parts; rows++) {
        const double read = (double)op->m / rows + (double)op->n * rows / parts;
        if (parts % rows == 0 && read < least) least = read, best.rows = rows, best.columns = parts / rows;
    }
    return best;
}

static void run(int threads, const struct ls_op_gemm *op, ls_pairs_finish *pairs, int parts) {
    if (op->m <= 0 || op->n <= 0) return;
    const struct grid grid = choose_grid(op, pairs, parts);
    ls_cpu_parallel(threads, grid.rows * grid.columns, 1, tiles, &grid);
}

static int parts_of(int threads, const struct ls_op_gemm *op) {
    return op->m * op->n * op->k < THREADED_MIN ? 1 : threads;
}

void ls_cpu_gemm(int threads, const struct ls_op_gemm *op) {
    run(threads, op, ls_pairs_serve(LS_FP32, op->m, op->n, op->k) ? epilogue : NULL, parts_of(threads, op));
}

void ls_cpu_gemm_pairs(int threads, const struct ls_op_gemm *op, ls_pairs_finish *finish) {
    run(threads, op, finish, parts_of(threads, op));
}

void ls_cpu_gemm_fixed(int threads, const struct ls_op_gemm *op) {
    int parts = 1;
    if (ls_pairs_serve(LS_FP32, op->m, op->n, op->k)) { /* the same bits however it is cut */
        ls_cpu_gemm(threads, op);
        return;
    }
    while (parts < FIXED_MOST &&
           op->m * op->n * op->k / (2 * parts) >= (parts < FIXED_FEW ? FIXED_FEW_MIN : FIXED_MOST_MIN))
        parts *= 2;
    run(threads, op, NULL, parts);
}
