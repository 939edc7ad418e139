/* The operations a model needs, as argument lists. All matrices are row-major; B sequences of T tokens, C channels, V
 * vocabulary, NH heads of HD channels, NKV key-value heads. Gradients of parameters are accumulated (+=); gradients of
 * activations are written unless a field says otherwise. Every operation is deterministic: the same bits for the same
 * arguments and threads. */
#ifndef LS_WORKER_DEVICE_OPERATIONS_H
#define LS_WORKER_DEVICE_OPERATIONS_H

#include <stdbool.h>
#include <stdint.h>

/* One row per operation; a device has one kernel per row, but for products, which may be a library's. */
#define LS_OPERATIONS(X)                                                                                               \
    X(gemm)                                                                                                            \
    LS_OPERATIONS_BUT_PRODUCTS(X)
#define LS_OPERATIONS_BUT_PRODUCTS(X)                                                                                  \
    X(bias_backward)                                                                                                   \
    X(gelu_forward)                                                                                                    \
    X(gelu_backward)                                                                                                   \
    X(swiglu_forward)                                                                                                  \
    X(swiglu_backward)                                                                                                 \
    X(layernorm_forward)                                                                                               \
    X(layernorm_backward)                                                                                              \
    X(rmsnorm_forward)                                                                                                 \
    X(rmsnorm_backward)                                                                                                \
    X(head_norm_forward)                                                                                               \
    X(head_norm_backward)                                                                                              \
    X(embedding_forward)                                                                                               \
    X(embedding_backward)                                                                                              \
    X(rope)                                                                                                            \
    X(attention_forward)                                                                                               \
    X(attention_backward)                                                                                              \
    X(cross_entropy)                                                                                                   \
    X(add)                                                                                                             \
    X(squared_norm)                                                                                                    \
    X(ordered_sum)                                                                                                     \
    X(clip)                                                                                                            \
    X(momentum)                                                                                                        \
    X(normalize)                                                                                                       \
    X(polynomial)                                                                                                      \
    X(update)                                                                                                          \
    X(initialize)                                                                                                      \
    X(convert)                                                                                                         \
    X(widen)

enum ls_op {
#define X(name) LS_OP_##name,
    LS_OPERATIONS(X)
#undef X
        LS_OP_COUNT
};

/* The type of an operation's `void *` members; what is declared as float, gradients of parameters among it, is fp32.
 * Whatever the type, arithmetic is in fp32 (statistics, softmax and the sums of a product included) and each result is
 * rounded once, to nearest even. A value that is stored and used further in the same operation is used as it was
 * stored, so that computing on from the stored one gives the same bits. */
enum ls_dtype { LS_FP32, LS_BF16, LS_FP16 };
static inline int64_t ls_dtype_bytes(enum ls_dtype dtype) {
    return dtype == LS_FP32 ? 4 : 2;
}

enum ls_epilogue {
    LS_EPILOGUE_NONE,
    LS_EPILOGUE_BIAS,      /* c = ab + bias */
    LS_EPILOGUE_BIAS_GELU, /* aux = ab + bias; c = gelu(aux) */
    LS_EPILOGUE_GELU_GRAD  /* c = ab * gelu'(aux) */
};

/* c[m, n] = op(a)[m, k] op(b)[k, n] (+ c when accumulate), leading dimensions in elements. With `bias_gradient` (a
 * weight's gradient x^T dy, whose b is dy) also bias_gradient[n] += sum over k of b[k, n]: no epilogue then, b as it
 * is, ldb = n, c in fp32. workspace: ls_op_workspace() of a product with these m and n. Without an epilogue a device
 * may multiply with up to spare.m more rows, spare.n more columns or spare.k more terms, where that is faster: memory
 * is there. Rows: what they are made of is zero, and c's, to which it is added, are finite and stay as they are.
 * Columns: c's may become anything. Terms: a's are zero, b's finite. */
struct ls_op_gemm {
    void *c;
    const void *a, *b;
    int64_t m, n, k, lda, ldb, ldc;
    struct {
        int64_t m, n, k;
    } spare;
    bool transpose_a, transpose_b, accumulate;
    bool c_fp32;               /* c is fp32 whatever `dtype` says: a gradient of parameters; not with an epilogue */
    bool by_shape;             /* the bits are to follow from the shape, not from how many threads a device has */
    enum ls_epilogue epilogue; /* not with accumulate; NONE or BIAS with a residual */
    const void *bias;          /* [n] */
    const void *residual;      /* [m, n], leading dimension ldc, not c: is added last, where k > 0; NULL: none */
    void *aux;                 /* [m, n], leading dimension ldc */
    float *bias_gradient;      /* [n]; NULL: none */
    void *workspace;
    enum ls_dtype dtype;
};

/* bias_gradient[columns] += sum over rows of output_gradient[rows, columns]. workspace: ls_op_workspace(). */
struct ls_op_bias_backward {
    float *bias_gradient;
    void *workspace;
    const void *output_gradient;
    int64_t rows, columns;
    enum ls_dtype dtype;
};

/* GELU, tanh form (Hendrycks & Gimpel 2016, section 2): 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). */
struct ls_op_gelu_forward {
    void *output;
    const void *input;
    int64_t count;
    enum ls_dtype dtype;
};
struct ls_op_gelu_backward { /* input_gradient may be output_gradient */
    void *input_gradient;
    const void *output_gradient, *input;
    int64_t count;
    enum ls_dtype dtype;
};

/* SwiGLU (Shazeer 2020, eq. 5): output = silu(gate) * up; gate_up[rows, 2 * columns] holds gate then up in each row. */
struct ls_op_swiglu_forward {
    void *output; /* [rows, columns] */
    const void *gate_up;
    int64_t rows, columns;
    enum ls_dtype dtype;
};
struct ls_op_swiglu_backward { /* gate_up_gradient may be gate_up */
    void *gate_up_gradient;
    const void *output_gradient, *gate_up;
    int64_t rows, columns;
    enum ls_dtype dtype;
};

/* Layer normalisation (Ba et al. 2016); mean and reciprocal deviation [rows] in fp32 are kept for backward (NULL: not).
 */
struct ls_op_layernorm_forward {
    void *output;
    float *mean, *rstd;
    const void *input, *weight, *bias;
    int64_t rows, columns;
    float epsilon;
    enum ls_dtype dtype;
};
/* input_gradient (+)= the gradient through the norm; `accumulate_input` adds to what is there (the residual path).
 * workspace: ls_op_workspace(). */
struct ls_op_layernorm_backward {
    void *input_gradient, *workspace;
    float *weight_gradient, *bias_gradient;
    const void *output_gradient, *input, *weight;
    const float *mean, *rstd;
    int64_t rows, columns;
    bool accumulate_input;
    enum ls_dtype dtype;
};

/* Root-mean-square normalisation (Zhang & Sennrich 2019, eq. 4); the same conventions. */
struct ls_op_rmsnorm_forward {
    void *output;
    float *rstd;
    const void *input, *weight;
    int64_t rows, columns;
    float epsilon;
    enum ls_dtype dtype;
};
struct ls_op_rmsnorm_backward {
    void *input_gradient, *workspace;
    float *weight_gradient;
    const void *output_gradient, *input, *weight;
    const float *rstd;
    int64_t rows, columns;
    bool accumulate_input;
    enum ls_dtype dtype;
};

/* The same norm of every head by itself, as Qwen 3 has it for queries and keys: row r holds `heads` heads of
 * `head_size` elements, one after another from element r * stride on, and all share weight[head_size]. output has
 * input's stride and may be it; rstd[rows, heads] in fp32 is kept for backward (NULL: not). */
struct ls_op_head_norm_forward {
    void *output;
    float *rstd;
    const void *input, *weight;
    int64_t rows, heads, head_size, stride;
    float epsilon;
    enum ls_dtype dtype;
};
/* input_gradient is written; it has the stride of output_gradient and input, and may be output_gradient. workspace:
 * ls_op_workspace(). */
struct ls_op_head_norm_backward {
    void *input_gradient, *workspace;
    float *weight_gradient;
    const void *output_gradient, *input, *weight;
    const float *rstd;
    int64_t rows, heads, head_size, stride;
    enum ls_dtype dtype;
};

/* output[b, t] = token_table[tokens[b, t]] (+ position_table[first_position + t] when given). */
struct ls_op_embedding_forward {
    void *output; /* [B, T, C] */
    const int32_t *tokens;
    const void *token_table, *position_table;
    int64_t batch, length, channels, first_position;
    enum ls_dtype dtype;
};
/* token_gradient[V, C] += ..., position_gradient[length, C] += ... (NULL: none). Rows of equal tokens are added in
 * order of (b, t). workspace: ls_op_workspace(). */
struct ls_op_embedding_backward {
    float *token_gradient, *position_gradient;
    void *workspace;
    const void *output_gradient;
    const int32_t *tokens;
    int64_t batch, length, channels, vocabulary;
    enum ls_dtype dtype;
};

/* Rotary embedding (Su et al. 2021, eq. 34), rotating halves as Hugging Face's Llama does, in place on `heads` heads of
 * [rows, heads * HD] with row stride `stride`: x' = x cos + rotate_half(x) sin with angle table[position, HD / 2] pairs
 * (cos, sin); `inverse` rotates back (backward). Position of row r is first_position + r % length. */
struct ls_op_rope {
    void *x;
    const float *table; /* [positions, HD / 2, 2] */
    int64_t rows, length, heads, head_size, stride, first_position;
    bool inverse;
    enum ls_dtype dtype;
};

/* Causal attention, softmax(q k^T scale) v per head, streaming over keys (Milakov & Gimelshein 2018; Dao 2022,
 * algorithm 1): the T x T matrix is never stored. Query i of a sequence is at position key_length - query_length + i,
 * sees keys up to itself, and none before document_start[b, i] (NULL: 0; at most i's own position, never less than of
 * an earlier query). Head h uses key-value head h / (heads / kv_heads). Strides are elements between tokens; sequences
 * follow one another at `*_batch_stride` elements. lse[b, h, i] (log of the sum of exponentials) is kept for backward;
 * NULL: not. In 16 bits a device may round probabilities, and in backward the gradients of scores, before it multiplies
 * them. workspace: ls_op_workspace(). */
enum { LS_GPU_HEAD_SIZE_MAX = 256 }; /* of head_size on GPUs, forward and backward */
struct ls_op_attention_forward {
    void *output, *workspace;
    float *lse;
    const void *q, *k, *v;
    const int32_t *document_start; /* [B, query_length] */
    int64_t batch, query_length, key_length, heads, kv_heads, head_size;
    int64_t q_stride, kv_stride, output_stride;
    int64_t q_batch_stride, kv_batch_stride, output_batch_stride;
    float scale;
    enum ls_dtype dtype;
};
/* query_length == key_length. Gradients have the strides of their tensors and are written. workspace:
 * ls_op_workspace(). */
struct ls_op_attention_backward {
    void *q_gradient, *k_gradient, *v_gradient, *workspace;
    const void *output_gradient, *output, *q, *k, *v;
    const float *lse;
    const int32_t *document_start;
    int64_t batch, length, heads, kv_heads, head_size;
    int64_t q_stride, kv_stride, output_stride;
    int64_t q_batch_stride, kv_batch_stride, output_batch_stride;
    float scale;
    enum ls_dtype dtype;
};

/* Softmax cross-entropy over a chunk of rows: loss[0] += sum of -log p(target) over rows with target >= 0, in double,
 * in an order that follows from `rows` alone; when `gradient`, logits are replaced by (p - onehot) * gradient_scale[0],
 * zero rows where target < 0. Only the first `vocabulary` columns of each row of `stride` take part; the others get
 * zero. */
struct ls_op_cross_entropy {
    void *logits;
    double *loss;
    const int32_t *targets;
    const float *gradient_scale;
    float *row_loss; /* [rows] scratch */
    int64_t rows, vocabulary, stride;
    bool gradient;
    enum ls_dtype dtype;
};

/* sum = a + b; any may be the same. */
struct ls_op_add {
    void *sum;
    const void *a, *b;
    int64_t count;
    enum ls_dtype dtype;
};

/* result[0] += sum of squares: ordered sums of per-1024-element sums, in double. Either half alone: result NULL leaves
 * the sums of 1024 elements in `partial`, input NULL adds those that are there. `any_order`: a device may add those in
 * another order, the same one each time, if that is faster, and uses `partial` up. */
struct ls_op_squared_norm {
    double *result;
    const void *input;
    int64_t count;
    double *partial; /* [ceil(count / 1024)] */
    bool any_order;
    enum ls_dtype dtype;
};

/* result[0] = input[0] + input[1] + ... + input[count - 1], in this order. */
struct ls_op_ordered_sum {
    double *result;
    const double *input;
    int64_t count;
};

/* norm = sqrt(squared[0]) / loss_scale; factor = min(1, maximum / norm) / loss_scale, the first part 1 when maximum is
 * 0; found_inf = 1 when the norm is not finite. loss_scale: what the gradients are multiplied by, 0: 1. */
struct ls_op_clip {
    float *factor, *norm;
    int32_t *found_inf;
    const double *squared;
    float maximum, loss_scale;
};

/* m = beta m + (1 - beta) g with g = gradient * factor[0], and output = beta m + (1 - beta) g, which looks a step ahead
 * (Nesterov's momentum, as Jordan et al. 2024 have it for Muon). Nothing changes when found_inf[0]. `dtype` is the
 * output's. */
struct ls_op_momentum {
    float *m;
    void *output;
    const float *gradient;
    const float *factor;
    const int32_t *found_inf;
    int64_t count;
    float beta;
    enum ls_dtype dtype;
};

/* x /= max(sqrt(squared[0]), 1e-7). */
struct ls_op_normalize {
    void *x;
    const double *squared;
    int64_t count;
    enum ls_dtype dtype;
};

/* output = a I + b x + c y; matrices [side, side], output may be x or y. */
struct ls_op_polynomial {
    void *output;
    const void *x, *y;
    int64_t side;
    float a, b, c;
    enum ls_dtype dtype;
};

/* An optimizer's rule, with g = gradient * factor[0], lr = learning_rate[0], and for the first `decay_count` elements
 * `decay` = weight_decay, for the rest 0:
 *
 *     ADAMW   m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, u = m_hat / (sqrt(v_hat) + epsilon), where
 *             x_hat = x / (1 - beta^step) (Loshchilov & Hutter 2019, algorithm 2)
 *     LION    u = sign(beta1 m + (1 - beta1) g), then m = beta2 m + (1 - beta2) g (Chen et al. 2023, algorithm 2)
 *     SGD     m = beta1 m + g, u = m (Sutskever et al. 2013, equation 1, with the rate outside)
 *     GIVEN   u = scale * direction; gradient and moments have no part in it
 *
 * and then parameter -= lr (u + decay * parameter). */
enum ls_update_rule { LS_UPDATE_ADAMW, LS_UPDATE_LION, LS_UPDATE_SGD, LS_UPDATE_GIVEN };

/* One update of a flat range. step[0] counts from 1. Nothing changes when found_inf[0]. `dtype` is the copy's.
 *
 * Without a master the parameter is `low_precision` itself, in bf16, and the sum, in fp32, is rounded stochastically:
 * away from zero with the probability of its distance from the bf16 below in magnitude. Element e = `first` + i adds 16
 * random bits to those that bf16 has not, which carry or do not, and are cut off: of word e / 2 % 4 of Philox 4x32-10
 * the lower half where e is even, else the upper one. The counter is (e / 8, its upper half, tensor, step[0]), the key
 * `seed`. The same bits however the tensor is cut. What is not finite stays so. */
struct ls_op_update {
    enum ls_update_rule rule;
    float *parameter;    /* fp32 master, or NULL */
    float *m, *v;        /* moments; NULL where the rule has none */
    void *low_precision; /* NULL, or a copy of the parameter in `dtype` */
    const float *gradient;
    const void *direction; /* GIVEN: in fp32 where `dtype` is that, else in bf16 */
    const float *factor, *learning_rate;
    const int64_t *step;
    const int32_t *found_inf;
    int64_t count, decay_count;
    uint64_t seed, first; /* without a master */
    uint32_t tensor;
    float beta1, beta2, epsilon, weight_decay, scale;
    enum ls_dtype dtype;
};

/* Counter-based initialisation: element i of the tensor is mean + deviation * normal(seed, tensor, first + i) (Philox
 * 4x32-10, Salmon et al. 2011, and Box-Muller); deviation 0 fills with the mean. The same values however the tensor is
 * cut. */
struct ls_op_initialize {
    float *output;
    uint64_t seed, tensor;
    int64_t first, count;
    float mean, deviation;
};

/* output[count] in `dtype` from fp32. */
struct ls_op_convert {
    void *output;
    const float *input;
    int64_t count;
    enum ls_dtype dtype;
};

/* output[count] in fp32 = input in `dtype`, or += it. */
struct ls_op_widen {
    float *output;
    const void *input;
    int64_t count;
    bool accumulate;
    enum ls_dtype dtype;
};

#endif
