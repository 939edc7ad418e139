/* Newton and Schulz's iteration, and what Muon is for. */
#include "worker/optim/muon.h"

#include <math.h>

enum { ITERATIONS = 5 };
_Static_assert(ITERATIONS % 2 == 1, "x and result take turns, and the last turn is result's");

bool ls_muon_is_for(const struct ls_config *config, const struct ls_block *block, const struct ls_tensor *tensor) {
    return config->optimizer.type == LS_MUON && block->kind == LS_BLOCK_LAYER && tensor->dimensions == 2;
}

int64_t ls_second_moment_from(const struct ls_config *config, const struct ls_block *block) {
    switch (config->optimizer.type) {
    case LS_ADAMW: return 0;
    case LS_MUON: return block->kind == LS_BLOCK_LAYER ? block->decay_count : 0;
    case LS_LION:
    case LS_SGD: break;
    }
    return block->count;
}

enum ls_dtype ls_muon_dtype(const struct ls_config *config) {
    return config->precision == LS_PRECISION_FP32 ? LS_FP32 : LS_BF16;
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* One turn: from `x` to `result`. The side on which a matrix is multiplied is its shorter one. */
static void iterate(struct ls_stream *stream, const struct ls_muon_matrix *a, const void *x, void *result) {
    const bool tall = a->rows > a->columns;
    const int64_t side = smaller(a->rows, a->columns), n = a->columns;
    ls_op(stream, gemm, .c = a->gram, .a = x, .b = x, .m = side, .n = side, .k = tall ? a->rows : n, .lda = n, .ldb = n,
          .ldc = side, .transpose_a = tall, .transpose_b = !tall, .by_shape = a->by_shape, .dtype = a->dtype);
    ls_op(stream, gemm, .c = a->powers, .a = a->gram, .b = a->gram, .m = side, .n = side, .k = side, .lda = side,
          .ldb = side, .ldc = side, .by_shape = a->by_shape, .dtype = a->dtype);
    ls_op(stream, polynomial, .output = a->powers, .x = a->gram, .y = a->powers, .side = side, .a = 3.4445f,
          .b = -4.7750f, .c = 2.0315f, .dtype = a->dtype);
    ls_op(stream, gemm, .c = result, .a = tall ? x : a->powers, .b = tall ? a->powers : x, .m = a->rows, .n = n,
          .k = side, .lda = side, .ldb = n, .ldc = n, .by_shape = a->by_shape, .dtype = a->dtype);
}

void ls_muon_orthogonalize(struct ls_stream *stream, const struct ls_muon_matrix *matrix) {
    const int64_t count = matrix->rows * matrix->columns;
    ls_fill_zero(stream, matrix->squared, sizeof *matrix->squared);
    ls_op(stream, squared_norm, .result = matrix->squared, .input = matrix->x, .count = count,
          .partial = matrix->partial, .any_order = matrix->any_order, .dtype = matrix->dtype);
    ls_op(stream, normalize, .x = matrix->x, .squared = matrix->squared, .count = count, .dtype = matrix->dtype);
    for (int i = 0; i < ITERATIONS; i++)
        iterate(stream, matrix, i % 2 == 0 ? matrix->x : matrix->result, i % 2 == 0 ? matrix->result : matrix->x);
}

double ls_muon_flops(int64_t rows, int64_t columns) {
    const double side = (double)smaller(rows, columns);
    return ITERATIONS * (4.0 * (double)rows * (double)columns * side + 2.0 * side * side * side);
}

float ls_muon_scale(int64_t rows, int64_t columns) {
    return (float)(0.2 * sqrt((double)(rows > columns ? rows : columns)));
}
