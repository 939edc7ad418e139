/* A GPT-2 and a Llama in double precision, forward, backward and AdamW, written from the papers' formulas and sharing
 * nothing with worker/model but the names and shapes of tensors: what a training in less precision is held against.
 * And how far from it a training may be: with a `unit` every value that the product stores is multiplied by 1 + e,
 * with e random within the rounding error of its making (Monte Carlo arithmetic, Parker 1997), so that the difference
 * of the two runs is a sample of what rounding does to each result at these very parameters, cancellation included. */
#ifndef LS_TESTS_UNIT_DOUBLE_MODEL_H
#define LS_TESTS_UNIT_DOUBLE_MODEL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker/model/model.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DOUBLE_LAYERS_MAX = 4 };

/* One step's input: [sequences, length], targets below 0 ignored, no key before document_start is seen. */
struct double_batch {
    const int32_t *tokens, *targets, *document_start;
    int64_t sequences;
};

/* What a layer's forward leaves; R rows. */
struct double_layer {
    double *input, *norm_1, *qkv, *probabilities, *lse, *attention, *mid, *norm_2, *hidden, *activation;
};

struct double_model {
    const struct ls_model *model;
    bool gpt2, tied;
    int64_t V, C, L, NH, NKV, HD, I, T, sequences; /* sequences: at most */
    int64_t Q, W;                                  /* columns of q, and of q, k and v together */
    double epsilon, theta;
    double *parameters, *gradients, *m, *v; /* all tensors one after another */
    int64_t *place;                         /* where each begins */
    int64_t count;
    struct double_layer layers[DOUBLE_LAYERS_MAX];
    double *last, *normalised, *logits, *d_stream, *d_rows, *d_wide, *d_hidden, *d_scores, *row_loss;
    /* Rounding to be imitated; unit 0: none. */
    double unit;       /* the most that a rounding to the run's type changes a value by, relative to it */
    bool sums;         /* the type is fp32: results of sums are off by more than a rounding */
    double least;      /* half of the smallest number of the type */
    double loss_scale; /* gradients of activations are stored times this */
    uint64_t state;
};

static inline double *double_array(int64_t count) {
    double *x = calloc((size_t)count, sizeof *x);
    assert_non_null(x);
    return x;
}

static inline struct double_model *double_create(const struct ls_config *config, const struct ls_model *model,
                                                 int64_t sequences) {
    struct double_model *d = calloc(1, sizeof *d);
    assert_non_null(d);
    d->model = model;
    d->gpt2 = config->model.model_type == LS_GPT2;
    d->tied = config->model.tie_word_embeddings;
    d->V = config->model.vocab_size, d->C = config->model.hidden_size, d->L = config->model.num_hidden_layers;
    d->NH = config->model.num_attention_heads;
    d->NKV = d->gpt2 ? d->NH : config->model.num_key_value_heads;
    d->HD = config->model.head_dim ? config->model.head_dim : d->C / d->NH;
    d->I = config->model.intermediate_size ? config->model.intermediate_size : 4 * d->C;
    d->T = config->data.sequence_length, d->sequences = sequences;
    d->Q = d->NH * d->HD, d->W = d->Q + 2 * d->NKV * d->HD;
    d->epsilon = d->gpt2 ? config->model.layer_norm_epsilon : config->model.rms_norm_eps;
    d->theta = config->model.rope_theta;
    d->loss_scale = 1;
    d->state = 88172645463325252u;
    const int tensors = ls_model_tensor_count(model);
    d->place = calloc((size_t)tensors, sizeof *d->place);
    assert_non_null(d->place);
    for (int i = 0; i < tensors; i++) {
        d->place[i] = d->count;
        d->count += ls_model_tensor(model, i)->count;
    }
    d->parameters = double_array(d->count), d->gradients = double_array(d->count);
    d->m = double_array(d->count), d->v = double_array(d->count);
    const int64_t R = sequences * d->T, hidden = d->gpt2 ? d->I : 2 * d->I;
    assert_true(d->L <= DOUBLE_LAYERS_MAX);
    for (int64_t l = 0; l < d->L; l++) {
        struct double_layer *s = &d->layers[l];
        s->input = double_array(R * d->C), s->norm_1 = double_array(R * d->C), s->qkv = double_array(R * d->W);
        s->probabilities = double_array(R * d->NH * d->T), s->lse = double_array(R * d->NH);
        s->attention = double_array(R * d->Q);
        s->mid = double_array(R * d->C), s->norm_2 = double_array(R * d->C), s->hidden = double_array(R * hidden);
        s->activation = double_array(R * d->I);
    }
    d->last = double_array(R * d->C), d->normalised = double_array(R * d->C), d->logits = double_array(R * d->V);
    d->d_stream = double_array(R * d->C), d->d_rows = double_array(R * d->C), d->row_loss = double_array(R);
    d->d_wide = double_array(R * (d->W + d->Q)), d->d_hidden = double_array(R * (hidden + d->I));
    d->d_scores = double_array(d->T);
    return d;
}

static inline void double_destroy(struct double_model *d) {
    for (int64_t l = 0; l < d->L; l++) {
        struct double_layer *s = &d->layers[l];
        free(s->input), free(s->norm_1), free(s->qkv), free(s->probabilities), free(s->lse), free(s->attention),
            free(s->mid);
        free(s->norm_2), free(s->hidden), free(s->activation);
    }
    free(d->parameters), free(d->gradients), free(d->m), free(d->v), free(d->place), free(d->last), free(d->normalised);
    free(d->logits), free(d->d_stream), free(d->d_rows), free(d->d_wide), free(d->d_hidden), free(d->d_scores);
    free(d->row_loss), free(d);
}

/* Where the tensor of layer `layer` (-1: of none) begins in d->parameters and d->gradients. */
static inline int64_t double_place(const struct double_model *d, int64_t layer, const char *name) {
    char whole[96];
    if (layer < 0)
        snprintf(whole, sizeof whole, "%s", name);
    else
        snprintf(whole, sizeof whole, d->gpt2 ? "h.%d.%s" : "model.layers.%d.%s", (int)layer, name);
    for (int i = 0; i < ls_model_tensor_count(d->model); i++)
        if (strcmp(ls_model_tensor(d->model, i)->name, whole) == 0) return d->place[i];
    fail_msg("the model has no %s", whole);
    return 0;
}

/* Uniform in [-1, 1): xorshift64* (Vigna 2016). */
static inline double double_random(struct double_model *d) {
    d->state ^= d->state >> 12;
    d->state ^= d->state << 25;
    d->state ^= d->state >> 27;
    return (double)(int64_t)(d->state * 2685821657736338717u) * 0x1p-63;
}

/* What a sum of `terms` terms in fp32 is off by at most, relative to it. A chain of n additions whose partial sums grow
 * like a walk, each rounded by u / 3^(1/2) of itself in the mean of squares, ends off by n / 6^(1/2) of a term, or (n /
 * 6)^(1/2) u of the sum; a uniform error within (n / 2)^(1/2) u is as much. */
static inline double double_sum_rounding(int64_t terms) {
    return 0x1p-24 * (terms > 2 ? sqrt((double)terms / 2) : 1);
}

static inline void double_perturb(struct double_model *d, double *x, int64_t count, double relative, double absolute) {
    for (int64_t i = 0; i < count; i++) x[i] += x[i] * relative * double_random(d) + absolute * double_random(d);
}

/* Imitates the storing of sums of `terms` terms in the run's type, each `scale` times the value. In 16 bits sums are
 * exact beside the one rounding of the result. */
static inline void double_store(struct double_model *d, double *x, int64_t count, int64_t terms, double scale) {
    if (d->unit > 0) double_perturb(d, x, count, d->sums ? double_sum_rounding(terms) : d->unit, d->least / scale);
}
/* The same of what is fp32 whatever the run's type. */
static inline void double_store_fp32(struct double_model *d, double *x, int64_t count, int64_t terms) {
    if (d->unit > 0) double_perturb(d, x, count, double_sum_rounding(terms), 0);
}

/* c[m, n] (+)= a[m, k] b[k, n]. */
static inline void double_product(double *c, const double *a, const double *b, int64_t m, int64_t n, int64_t k,
                                  bool add) {
    if (!add) memset(c, 0, (size_t)(m * n) * sizeof *c);
    for (int64_t i = 0; i < m; i++)
        for (int64_t p = 0; p < k; p++) {
            const double x = a[i * k + p];
#pragma omp simd
            for (int64_t j = 0; j < n; j++) c[i * n + j] += x * b[p * n + j];
        }
}
/* c[m, n] (+)= a[m, k] b[n, k]^T. */
static inline void double_product_transposed(double *c, const double *a, const double *b, int64_t m, int64_t n,
                                             int64_t k, bool add) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t p = 0; p < k; p++) sum += a[i * k + p] * b[j * k + p];
            c[i * n + j] = add ? c[i * n + j] + sum : sum;
        }
}
/* c[m, n] += a[k, m]^T b[k, n]. */
static inline void double_product_of_rows(double *c, const double *a, const double *b, int64_t m, int64_t n,
                                          int64_t k) {
    for (int64_t p = 0; p < k; p++)
        for (int64_t i = 0; i < m; i++) {
            const double x = a[p * m + i];
#pragma omp simd
            for (int64_t j = 0; j < n; j++) c[i * n + j] += x * b[p * n + j];
        }
}

/* y[R, OUT] (+)= x[R, IN] w + bias, where w is [IN, OUT] in GPT-2, [OUT, IN] in a Llama. bias -1: none. */
static inline void double_linear(const struct double_model *d, double *y, const double *x, int64_t w, int64_t bias,
                                 int64_t R, int64_t IN, int64_t OUT, bool transposed) {
    const double *p = d->parameters;
    if (transposed)
        double_product_transposed(y, x, p + w, R, OUT, IN, false);
    else
        double_product(y, x, p + w, R, OUT, IN, false);
    for (int64_t r = 0; bias >= 0 && r < R; r++)
        for (int64_t j = 0; j < OUT; j++) y[r * OUT + j] += p[bias + j];
}
/* dx = dy w^T, and the gradients of w and bias. dx NULL: not. */
static inline void double_linear_backward(struct double_model *d, double *dx, const double *dy, const double *x,
                                          int64_t w, int64_t bias, int64_t R, int64_t IN, int64_t OUT,
                                          bool transposed) {
    double *g = d->gradients;
    if (transposed) {
        double_product_of_rows(g + w, dy, x, OUT, IN, R);
        if (dx) double_product(dx, dy, d->parameters + w, R, IN, OUT, false);
    } else {
        double_product_of_rows(g + w, x, dy, IN, OUT, R);
        if (dx) double_product_transposed(dx, dy, d->parameters + w, R, IN, OUT, false);
    }
    for (int64_t r = 0; bias >= 0 && r < R; r++)
        for (int64_t j = 0; j < OUT; j++) g[bias + j] += dy[r * OUT + j];
}

/* Layer norm with a bias (Ba et al. 2016), or the root-mean-square norm without (Zhang & Sennrich 2019). */
static inline void double_statistics(const struct double_model *d, const double *x, double *mean, double *rstd) {
    double sum = 0, square = 0;
    for (int64_t c = 0; c < d->C; c++) sum += x[c];
    *mean = d->gpt2 ? sum / (double)d->C : 0;
    for (int64_t c = 0; c < d->C; c++) square += (x[c] - *mean) * (x[c] - *mean);
    *rstd = 1 / sqrt(square / (double)d->C + d->epsilon);
}
static inline void double_norm(const struct double_model *d, double *y, const double *x, int64_t weight, int64_t bias,
                               int64_t R) {
    for (int64_t r = 0; r < R; r++, x += d->C, y += d->C) {
        double mean, rstd;
        double_statistics(d, x, &mean, &rstd);
        for (int64_t c = 0; c < d->C; c++)
            y[c] = (x[c] - mean) * rstd * d->parameters[weight + c] + (bias >= 0 ? d->parameters[bias + c] : 0);
    }
}
/* dx (+)= the gradient through the norm, and the gradients of weight and bias. */
static inline void double_norm_backward(struct double_model *d, double *dx, const double *dy, const double *x,
                                        int64_t weight, int64_t bias, int64_t R, bool add) {
    for (int64_t r = 0; r < R; r++, x += d->C, dy += d->C, dx += d->C) {
        double mean, rstd, sum = 0, product = 0;
        double_statistics(d, x, &mean, &rstd);
        for (int64_t c = 0; c < d->C; c++) {
            const double unit = (x[c] - mean) * rstd, g = dy[c] * d->parameters[weight + c];
            d->gradients[weight + c] += dy[c] * unit;
            if (bias >= 0) d->gradients[bias + c] += dy[c];
            sum += g, product += g * unit;
        }
        const double n = (double)d->C, mean_gradient = d->gpt2 ? sum / n : 0;
        for (int64_t c = 0; c < d->C; c++) {
            const double g = dy[c] * d->parameters[weight + c], unit = (x[c] - mean) * rstd;
            dx[c] = (add ? dx[c] : 0) + rstd * (g - mean_gradient - unit * product / n);
        }
    }
}

/* Rotates halves of each head of q and k by position (Su et al. 2021); `sign` -1: back. */
static inline void double_rotate(const struct double_model *d, double *qkv, int64_t R, double sign) {
    for (int64_t r = 0; r < R; r++)
        for (int64_t head = 0; head < d->NH + d->NKV; head++)
            for (int64_t i = 0; i < d->HD / 2; i++) {
                double *x = qkv + r * d->W + head * d->HD + i, *y = x + d->HD / 2;
                const double angle = (double)(r % d->T) * pow(d->theta, -2.0 * (double)i / (double)d->HD);
                const double c = cos(angle), s = sign * sin(angle), first = *x * c - *y * s;
                *y = *y * c + *x * s;
                *x = first;
            }
}

static inline double double_dot(const double *a, const double *b, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += a[i] * b[i];
    return sum;
}

/* Rows of q, k and v of a head of sequence b, `d->W` apart, in an array of [R, W]. */
static inline double *double_head(const struct double_model *d, double *qkv, int64_t b, int64_t head, int part) {
    const int64_t shared = head / (d->NH / d->NKV);
    return qkv + b * d->T * d->W + (part == 0 ? head * d->HD : d->Q + (part == 1 ? shared : d->NKV + shared) * d->HD);
}

static inline void double_attention(struct double_model *d, struct double_layer *s, const struct double_batch *batch) {
    const int64_t T = d->T, HD = d->HD, W = d->W;
    const double scale = 1 / sqrt((double)HD);
    for (int64_t b = 0; b < batch->sequences; b++)
        for (int64_t head = 0; head < d->NH; head++) {
            const double *q = double_head(d, s->qkv, b, head, 0), *k = double_head(d, s->qkv, b, head, 1),
                         *v = double_head(d, s->qkv, b, head, 2);
            for (int64_t i = 0; i < T; i++) {
                double *p = s->probabilities + ((b * d->NH + head) * T + i) * T, most = -INFINITY, sum = 0;
                const int64_t first = batch->document_start[b * T + i];
                memset(p, 0, (size_t)T * sizeof *p);
                for (int64_t j = first; j <= i; j++) p[j] = double_dot(q + i * W, k + j * W, HD) * scale;
                double_store_fp32(d, p + first, i + 1 - first, HD);
                for (int64_t j = first; j <= i; j++) most = fmax(most, p[j]);
                for (int64_t j = first; j <= i; j++) sum += p[j] = exp(p[j] - most);
                for (int64_t j = first; j <= i; j++) p[j] /= sum;
                s->lse[(b * d->NH + head) * T + i] = most + log(sum);
                double_store(d, p + first, i + 1 - first, 4, 1);
                double *out = s->attention + (b * T + i) * d->Q + head * HD;
                memset(out, 0, (size_t)HD * sizeof *out);
                for (int64_t j = first; j <= i; j++)
                    for (int64_t c = 0; c < HD; c++) out[c] += p[j] * v[j * W + c];
            }
        }
    double_store(d, s->attention, batch->sequences * T * d->Q, T / 2, 1);
}

/* dqkv from the gradient of attention's output, whose product with the output is what scores' gradients have in common
 * (Dao 2022, section 3.1). Backward makes probabilities anew, from the stored logarithm of the sum of exponentials and
 * from scores that are not rounded as in forward. */
static inline void double_attention_backward(struct double_model *d, struct double_layer *s,
                                             const struct double_batch *batch, double *dqkv, const double *d_out) {
    const int64_t T = d->T, HD = d->HD, W = d->W;
    const double scale = 1 / sqrt((double)HD);
    memset(dqkv, 0, (size_t)(batch->sequences * T * W) * sizeof *dqkv);
    for (int64_t b = 0; b < batch->sequences; b++)
        for (int64_t head = 0; head < d->NH; head++) {
            const double *q = double_head(d, s->qkv, b, head, 0), *k = double_head(d, s->qkv, b, head, 1),
                         *v = double_head(d, s->qkv, b, head, 2);
            double *dq = double_head(d, dqkv, b, head, 0), *dk = double_head(d, dqkv, b, head, 1),
                   *dv = double_head(d, dqkv, b, head, 2);
            for (int64_t i = 0; i < T; i++) {
                double *p = s->probabilities + ((b * d->NH + head) * T + i) * T;
                const double *g = d_out + (b * T + i) * d->Q + head * HD;
                const int64_t first = batch->document_start[b * T + i];
                double common = double_dot(g, s->attention + (b * T + i) * d->Q + head * HD, HD);
                double lse = s->lse[(b * d->NH + head) * T + i];
                const double exact = lse;
                double_store_fp32(d, &common, 1, HD);
                double_store_fp32(d, &lse, 1, 1);
                for (int64_t j = first; j <= i; j++) {
                    if (d->unit > 0 && p[j] > 0) p[j] *= 1 + 0x1p-24 * (log(p[j]) + exact) * double_random(d);
                    p[j] *= exp(exact - lse);
                    d->d_scores[j] = double_dot(g, v + j * W, HD);
                }
                double_store_fp32(d, d->d_scores + first, i + 1 - first, HD);
                for (int64_t j = first; j <= i; j++) d->d_scores[j] = p[j] * (d->d_scores[j] - common) * scale;
                double_store(d, d->d_scores + first, i + 1 - first, 4, d->loss_scale);
                for (int64_t j = first; j <= i; j++)
                    for (int64_t c = 0; c < HD; c++) {
                        dq[i * W + c] += d->d_scores[j] * k[j * W + c];
                        dk[j * W + c] += d->d_scores[j] * q[i * W + c];
                        dv[j * W + c] += p[j] * g[c];
                    }
            }
        }
    double_store(d, dqkv, batch->sequences * T * W, T, d->loss_scale);
}

/* GELU in its tanh form (Hendrycks & Gimpel 2016), and its derivative. */
static inline double double_gelu(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
static inline double double_gelu_derivative(double x) {
    const double t = tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

/* The places of a layer's tensors; a Llama's have no biases, and q, k and v, gate and up follow one another. */
struct double_places {
    int64_t norm_1, norm_1_bias, qkv, qkv_bias, output, output_bias, norm_2, norm_2_bias, up, up_bias, down, down_bias;
};
static inline struct double_places double_places(const struct double_model *d, int64_t l) {
    if (d->gpt2)
        return (struct double_places){double_place(d, l, "ln_1.weight"),        double_place(d, l, "ln_1.bias"),
                                      double_place(d, l, "attn.c_attn.weight"), double_place(d, l, "attn.c_attn.bias"),
                                      double_place(d, l, "attn.c_proj.weight"), double_place(d, l, "attn.c_proj.bias"),
                                      double_place(d, l, "ln_2.weight"),        double_place(d, l, "ln_2.bias"),
                                      double_place(d, l, "mlp.c_fc.weight"),    double_place(d, l, "mlp.c_fc.bias"),
                                      double_place(d, l, "mlp.c_proj.weight"),  double_place(d, l, "mlp.c_proj.bias")};
    const int64_t KV = d->NKV * d->HD * d->C, q = double_place(d, l, "self_attn.q_proj.weight"),
                  gate = double_place(d, l, "mlp.gate_proj.weight");
    assert_int_equal(double_place(d, l, "self_attn.k_proj.weight"), q + d->Q * d->C);
    assert_int_equal(double_place(d, l, "self_attn.v_proj.weight"), q + d->Q * d->C + KV);
    assert_int_equal(double_place(d, l, "mlp.up_proj.weight"), gate + d->I * d->C);
    return (struct double_places){double_place(d, l, "input_layernorm.weight"),
                                  -1,
                                  q,
                                  -1,
                                  double_place(d, l, "self_attn.o_proj.weight"),
                                  -1,
                                  double_place(d, l, "post_attention_layernorm.weight"),
                                  -1,
                                  gate,
                                  -1,
                                  double_place(d, l, "mlp.down_proj.weight"),
                                  -1};
}

static inline void double_add(double *sum, const double *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) sum[i] += x[i];
}

/* Reads layers[l].input and leaves the layer's result in `output`. */
static inline void double_layer_forward(struct double_model *d, int64_t l, const struct double_batch *batch,
                                        double *output) {
    struct double_layer *s = &d->layers[l];
    const struct double_places at = double_places(d, l);
    const int64_t R = batch->sequences * d->T, C = d->C, I = d->I;
    double_norm(d, s->norm_1, s->input, at.norm_1, at.norm_1_bias, R);
    double_store(d, s->norm_1, R * C, C, 1);
    double_linear(d, s->qkv, s->norm_1, at.qkv, at.qkv_bias, R, C, d->W, !d->gpt2);
    double_store(d, s->qkv, R * d->W, C, 1);
    if (!d->gpt2) {
        double_rotate(d, s->qkv, R, 1);
        double_store(d, s->qkv, R * d->W, 2, 1);
    }
    double_attention(d, s, batch);
    double_linear(d, s->mid, s->attention, at.output, at.output_bias, R, d->Q, C, !d->gpt2);
    double_add(s->mid, s->input, R * C);
    double_store(d, s->mid, R * C, d->Q, 1);
    double_norm(d, s->norm_2, s->mid, at.norm_2, at.norm_2_bias, R);
    double_store(d, s->norm_2, R * C, C, 1);
    double_linear(d, s->hidden, s->norm_2, at.up, at.up_bias, R, C, d->gpt2 ? I : 2 * I, !d->gpt2);
    double_store(d, s->hidden, R * (d->gpt2 ? I : 2 * I), C, 1);
    for (int64_t r = 0; r < R; r++)
        for (int64_t j = 0; j < I; j++) {
            if (d->gpt2) {
                s->activation[r * I + j] = double_gelu(s->hidden[r * I + j]);
            } else { /* SwiGLU (Shazeer 2020) */
                const double gate = s->hidden[r * 2 * I + j], up = s->hidden[r * 2 * I + I + j];
                s->activation[r * I + j] = gate / (1 + exp(-gate)) * up;
            }
        }
    double_store(d, s->activation, R * I, 4, 1);
    double_linear(d, output, s->activation, at.down, at.down_bias, R, I, C, !d->gpt2);
    double_add(output, s->mid, R * C);
    double_store(d, output, R * C, I, 1);
}

/* d->d_stream: the gradient of the layer's result, then of its input. */
static inline void double_layer_backward(struct double_model *d, int64_t l, const struct double_batch *batch) {
    struct double_layer *s = &d->layers[l];
    const struct double_places at = double_places(d, l);
    const int64_t R = batch->sequences * d->T, C = d->C, I = d->I, hidden = d->gpt2 ? I : 2 * I;
    double *d_hidden = d->d_hidden, *d_activation = d->d_hidden + R * hidden;
    double_linear_backward(d, d_activation, d->d_stream, s->activation, at.down, at.down_bias, R, I, C, !d->gpt2);
    if (!d->gpt2) double_store(d, d_activation, R * I, C, d->loss_scale);
    for (int64_t r = 0; r < R; r++)
        for (int64_t j = 0; j < I; j++) {
            const double g = d_activation[r * I + j];
            if (d->gpt2) {
                d_hidden[r * I + j] = g * double_gelu_derivative(s->hidden[r * I + j]);
            } else {
                const double gate = s->hidden[r * 2 * I + j], up = s->hidden[r * 2 * I + I + j];
                const double sigmoid = 1 / (1 + exp(-gate));
                d_hidden[r * 2 * I + j] = g * up * (sigmoid + gate * sigmoid * (1 - sigmoid));
                d_hidden[r * 2 * I + I + j] = g * gate * sigmoid;
            }
        }
    double_store(d, d_hidden, R * hidden, C, d->loss_scale);
    double_linear_backward(d, d->d_rows, d_hidden, s->norm_2, at.up, at.up_bias, R, C, hidden, !d->gpt2);
    double_store(d, d->d_rows, R * C, hidden, d->loss_scale);
    double_norm_backward(d, d->d_stream, d->d_rows, s->mid, at.norm_2, at.norm_2_bias, R, true);
    double_store(d, d->d_stream, R * C, C, d->loss_scale);

    double *dqkv = d->d_wide, *d_attention = d->d_wide + R * d->W;
    double_linear_backward(d, d_attention, d->d_stream, s->attention, at.output, at.output_bias, R, d->Q, C, !d->gpt2);
    double_store(d, d_attention, R * d->Q, C, d->loss_scale);
    double_attention_backward(d, s, batch, dqkv, d_attention);
    if (!d->gpt2) {
        double_rotate(d, dqkv, R, -1);
        double_store(d, dqkv, R * d->W, 2, d->loss_scale);
    }
    double_linear_backward(d, d->d_rows, dqkv, s->norm_1, at.qkv, at.qkv_bias, R, C, d->W, !d->gpt2);
    double_store(d, d->d_rows, R * C, d->W, d->loss_scale);
    double_norm_backward(d, d->d_stream, d->d_rows, s->input, at.norm_1, at.norm_1_bias, R, true);
    double_store(d, d->d_stream, R * C, C, d->loss_scale);
}

/* Rows' losses, and in d->logits their gradient, each target counted `weight`. */
static inline void double_cross_entropy(struct double_model *d, const struct double_batch *batch, double weight) {
    for (int64_t r = 0; r < batch->sequences * d->T; r++) {
        double *x = d->logits + r * d->V, most = -INFINITY, sum = 0;
        const int32_t target = batch->targets[r];
        d->row_loss[r] = 0;
        if (target < 0) {
            memset(x, 0, (size_t)d->V * sizeof *x);
            continue;
        }
        for (int64_t j = 0; j < d->V; j++) most = fmax(most, x[j]);
        for (int64_t j = 0; j < d->V; j++) sum += exp(x[j] - most);
        d->row_loss[r] = log(sum) + most - x[target];
        double_store_fp32(d, &d->row_loss[r], 1, 1);
        for (int64_t j = 0; j < d->V; j++) x[j] = exp(x[j] - most) / sum;
        if (d->sums) double_store(d, x, d->V, d->V, 1);
        x[target] -= 1;
        for (int64_t j = 0; j < d->V; j++) x[j] *= weight;
    }
    double_store(d, d->logits, batch->sequences * d->T * d->V, 2, d->loss_scale);
}

/* Forward and backward; d->gradients are those of the sum of token losses times `weight`. Returns the sum, whose terms
 * are in d->row_loss. */
static inline double double_run(struct double_model *d, const struct double_batch *batch, double weight) {
    const int64_t R = batch->sequences * d->T, C = d->C;
    const int64_t table = double_place(d, -1, d->gpt2 ? "wte.weight" : "model.embed_tokens.weight");
    const int64_t positions = d->gpt2 ? double_place(d, -1, "wpe.weight") : -1;
    const int64_t norm = double_place(d, -1, d->gpt2 ? "ln_f.weight" : "model.norm.weight");
    const int64_t norm_bias = d->gpt2 ? double_place(d, -1, "ln_f.bias") : -1;
    const int64_t head = d->tied ? table : double_place(d, -1, "lm_head.weight");
    assert_true(batch->sequences <= d->sequences);
    memset(d->gradients, 0, (size_t)d->count * sizeof *d->gradients);
    for (int64_t r = 0; r < R; r++)
        for (int64_t c = 0; c < C; c++)
            d->layers[0].input[r * C + c] = d->parameters[table + batch->tokens[r] * C + c] +
                                            (d->gpt2 ? d->parameters[positions + r % d->T * C + c] : 0);
    if (d->gpt2) double_store(d, d->layers[0].input, R * C, 2, 1);
    for (int64_t l = 0; l < d->L; l++)
        double_layer_forward(d, l, batch, l + 1 < d->L ? d->layers[l + 1].input : d->last);
    double_norm(d, d->normalised, d->last, norm, norm_bias, R);
    double_store(d, d->normalised, R * C, C, 1);
    double_linear(d, d->logits, d->normalised, head, -1, R, C, d->V, true);
    double_store(d, d->logits, R * d->V, C, 1);
    double_cross_entropy(d, batch, weight);

    double_linear_backward(d, d->d_rows, d->logits, d->normalised, head, -1, R, C, d->V, true);
    double_store(d, d->d_rows, R * C, d->V, d->loss_scale);
    double_norm_backward(d, d->d_stream, d->d_rows, d->last, norm, norm_bias, R, false);
    double_store(d, d->d_stream, R * C, C, d->loss_scale);
    for (int64_t l = d->L - 1; l >= 0; l--) double_layer_backward(d, l, batch);
    for (int64_t r = 0; r < R; r++)
        for (int64_t c = 0; c < C; c++) {
            d->gradients[table + batch->tokens[r] * C + c] += d->d_stream[r * C + c];
            if (d->gpt2) d->gradients[positions + r % d->T * C + c] += d->d_stream[r * C + c];
        }
    double_store_fp32(d, d->gradients, d->count, R);
    double sum = 0;
    for (int64_t r = 0; r < R; r++) sum += d->row_loss[r];
    return sum;
}

/* The norm of all gradients. */
static inline double double_norm_of_gradients(const struct double_model *d) {
    double sum = 0;
    for (int64_t i = 0; i < d->count; i++) sum += d->gradients[i] * d->gradients[i];
    return sqrt(sum);
}

/* Clips by the norm of all gradients and makes AdamW's step number `step` (Loshchilov & Hutter 2019, algorithm 2);
 * matrices decay. */
static inline void double_update(struct double_model *d, const struct ls_config *config, double rate, int64_t step) {
    const double b1 = config->optimizer.beta1, b2 = config->optimizer.beta2, most = config->train.gradient_clipping;
    const double norm = double_norm_of_gradients(d), factor = most > 0 && norm > most ? most / norm : 1;
    const double first = 1 - pow(b1, (double)step), second = 1 - pow(b2, (double)step);
    for (int t = 0; t < ls_model_tensor_count(d->model); t++) {
        const struct ls_tensor *tensor = ls_model_tensor(d->model, t);
        const double decay = tensor->dimensions == 2 ? config->optimizer.weight_decay : 0;
        for (int64_t i = d->place[t]; i < d->place[t] + tensor->count; i++) {
            const double g = d->gradients[i] * factor;
            d->m[i] = b1 * d->m[i] + (1 - b1) * g;
            d->v[i] = b2 * d->v[i] + (1 - b2) * g * g;
            const double update = d->m[i] / first / (sqrt(d->v[i] / second) + config->optimizer.eps);
            d->parameters[i] -= rate * (update + decay * d->parameters[i]);
        }
    }
}

#endif
