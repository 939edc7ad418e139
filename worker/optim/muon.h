/* Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"): the matrices of a model's
 * layers take steps that are orthogonal but for rounding and the iteration's own error; everything else, embedding,
 * head, norms and biases, is AdamW's.
 *
 *     M = beta M + (1 - beta) G, U = beta M + (1 - beta) G          the operation `momentum`
 *     X = U / |U|, five times: A = X X^T, X = (a I + b A + c A A) X  with (a, b, c) = (3.4445, -4.7750, 2.0315)
 *     W -= lr (0.2 sqrt(max(rows, columns)) X + weight_decay W)
 *
 * The iteration brings each singular value of U that is not next to nothing to between 0.65 and 1.25. The factor is
 * that of Liu et al. 2025 ("Muon is scalable for LLM training", section 2.2): steps are then as long as AdamW's, at the
 * same rate and weight decay. A matrix is a tensor as Hugging Face's folders hold it: GPT-2's queries, keys and values
 * are one. */
#ifndef LS_WORKER_OPTIM_MUON_H
#define LS_WORKER_OPTIM_MUON_H

#include "worker/model/model.h"

/* True for the matrices that Muon updates, where optimizer.type is muon; they are the first tensors of their block, and
 * its first decay_count elements. */
bool ls_muon_is_for(const struct ls_config *config, const struct ls_block *block, const struct ls_tensor *tensor);

/* The first element of a block that has a second moment, which those behind it have too: 0 with adamw, decay_count in
 * Muon's layers, the block's count where there is none. */
int64_t ls_second_moment_from(const struct ls_config *config, const struct ls_block *block);

/* What the products are computed in: the arithmetic of fp32 where precision is that, else bf16. */
enum ls_dtype ls_muon_dtype(const struct ls_config *config);

/* One matrix to be made orthogonal; device memory, elements of `dtype` but for the sums. */
struct ls_muon_matrix {
    void *x;      /* [rows, columns], used up */
    void *result; /* [rows, columns] */
    int64_t rows, columns;
    void *gram, *powers; /* scratch, [side, side] each, side the smaller of rows and columns */
    double *squared;     /* scratch, 1 */
    double *partial;     /* scratch, squared_norm's for rows x columns elements */
    bool any_order;      /* squared_norm's */
    bool by_shape;       /* the products' */
    enum ls_dtype dtype;
};
void ls_muon_orthogonalize(struct ls_stream *stream, const struct ls_muon_matrix *matrix);

/* Floating-point operations of ls_muon_orthogonalize(). */
double ls_muon_flops(int64_t rows, int64_t columns);

/* 0.2 sqrt(max(rows, columns)). */
float ls_muon_scale(int64_t rows, int64_t columns);

#endif
