/* Llama 3 (Grattafiori et al. 2024, section 3.2) and its relatives Qwen 2 and 3, with Hugging Face's names and layouts:
 * matrices are [out, in].
 *
 *     x    = embed_tokens[token]
 *
 *     n    = input_layernorm(x)                                                      L times
 *     mid  = x + attention(rope(n q_proj^T), rope(n k_proj^T), n v_proj^T) o_proj^T
 *     n'   = post_attention_layernorm(mid)
 *     x'   = mid + (silu(n' gate_proj^T) * n' up_proj^T) down_proj^T
 *
 *     loss = cross_entropy(norm(x) lm_head^T)
 *
 * Qwen 2 (Yang et al. 2024, section 2.2) adds a bias to q, k and v. Qwen 3 (Yang et al. 2025, section 2) has none, but
 * normalises every head of q and k before the rotation.
 *
 * q, k and v lie one after another in the block, so do gate and up: each group is one product into packed rows.
 * B sequences of T tokens, R = B T rows, C channels, I hidden, V vocabulary, NH heads and NKV key-value heads of HD
 * channels, Q = NH HD, W = (NH + 2 NKV) HD. */
#include "worker/model/family.h"

#include <math.h>
#include <stdio.h>

enum {
    Q_PROJ,
    K_PROJ,
    V_PROJ,
    O_PROJ,
    GATE_PROJ,
    UP_PROJ,
    DOWN_PROJ,
    INPUT_LAYERNORM,
    POST_ATTENTION_LAYERNORM,
    LAYER_TENSORS,
    /* Qwen 2 */
    Q_BIAS = LAYER_TENSORS,
    K_BIAS,
    V_BIAS,
    /* Qwen 3 */
    Q_NORM = LAYER_TENSORS,
    K_NORM
};

/* Initial values: N(0, initializer_range), as in GPT-2 with the two projections into the residual stream scaled by 1 /
 * sqrt(2 L); norms 1. */
static enum ls_code llama_describe(struct ls_model *model, struct ls_error *error) {
    const int64_t C = model->channels, I = model->hidden, V = model->vocabulary, HD = model->head_size;
    const int64_t NH = model->heads, NKV = model->kv_heads;
    const float normal = model->deviation, residual = normal / sqrtf(2 * (float)model->layers);
    if (NH % NKV != 0) {
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_JOB,
            "model: %lld attention heads cannot share %lld key-value heads evenly. Choose num_key_value_heads "
            "that divides num_attention_heads.",
            (long long)NH, (long long)NKV);
    }
    if (HD % 2 != 0 || HD < 2) {
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "model: heads of %lld channels cannot be rotated in pairs. Choose an even head_dim.",
                       (long long)HD);
    }

    const struct ls_tensor_row embedding[] = {{"model.embed_tokens.weight", V, C, .deviation = normal}};
    ls_model_add_block(model, LS_BLOCK_EMBEDDING, "", embedding, 1);

    struct ls_tensor_row layer[V_BIAS + 1] = {
        [Q_PROJ] = {"self_attn.q_proj.weight", NH * HD, C, .deviation = normal},
        [K_PROJ] = {"self_attn.k_proj.weight", NKV * HD, C, .deviation = normal},
        [V_PROJ] = {"self_attn.v_proj.weight", NKV * HD, C, .deviation = normal},
        [O_PROJ] = {"self_attn.o_proj.weight", C, NH * HD, .deviation = residual},
        [GATE_PROJ] = {"mlp.gate_proj.weight", I, C, .deviation = normal},
        [UP_PROJ] = {"mlp.up_proj.weight", I, C, .deviation = normal},
        [DOWN_PROJ] = {"mlp.down_proj.weight", C, I, .deviation = residual},
        [INPUT_LAYERNORM] = {"input_layernorm.weight", C, 0, .mean = 1},
        [POST_ATTENTION_LAYERNORM] = {"post_attention_layernorm.weight", C, 0, .mean = 1},
    };
    if (model->qkv_bias) {
        layer[Q_BIAS] = (struct ls_tensor_row){"self_attn.q_proj.bias", NH * HD, 0, .mean = 0};
        layer[K_BIAS] = (struct ls_tensor_row){"self_attn.k_proj.bias", NKV * HD, 0, .mean = 0};
        layer[V_BIAS] = (struct ls_tensor_row){"self_attn.v_proj.bias", NKV * HD, 0, .mean = 0};
    } else if (model->head_norm) {
        layer[Q_NORM] = (struct ls_tensor_row){"self_attn.q_norm.weight", HD, 0, .mean = 1};
        layer[K_NORM] = (struct ls_tensor_row){"self_attn.k_norm.weight", HD, 0, .mean = 1};
    }
    for (int64_t l = 0; l < model->layers; l++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, "model.layers.%d.", (int)l);
        ls_model_add_block(model, LS_BLOCK_LAYER, prefix, layer, V_BIAS + 1);
    }

    const struct ls_tensor_row head[] = {
        {model->tied ? NULL : "lm_head.weight", V, C, .deviation = normal},
        {"model.norm.weight", C, 0, .mean = 1},
    };
    ls_model_add_block(model, LS_BLOCK_HEAD, "", head, 2);
    return LS_OK;
}

static void llama_embedding_forward(const struct ls_model *model, const struct ls_block_pass *pass) {
    ls_op(pass->stream, embedding_forward, .output = pass->output, .tokens = pass->tokens,
          .token_table = pass->parameters, .batch = pass->sequences, .length = pass->length,
          .channels = model->channels, .dtype = model->dtype);
}

static void llama_embedding_backward(const struct ls_model *model, const struct ls_block_pass *pass) {
    ls_op(pass->stream, embedding_backward, .token_gradient = pass->gradients, .workspace = pass->scratch,
          .output_gradient = pass->stream_gradient, .tokens = pass->tokens, .batch = pass->sequences,
          .length = pass->length, .channels = model->channels, .vocabulary = model->vocabulary, .dtype = model->dtype);
}

/* What a layer's forward leaves, in two parts. Backward puts its own intermediate results over parts it is done with,
 * whose sizes allow for it. */
struct llama_saved {
    /* in `saved`: what products made */
    void *qkv;     /* [R, W], q and k rotated, or with norms of heads as they were projected */
    void *mid;     /* [R, C] */
    void *gate_up; /* [R, 2 I]; backward: its gradient, then that of qkv [R, W] */
    /* in `recomputed`: what follows from these and the layer's input without a product of matrices */
    void *norm_1;           /* [R, C]; backward: its gradient */
    void *attention;        /* [R, Q] */
    float *lse;             /* [B, NH, T] */
    void *norm_2;           /* [R, C]; backward: its gradient */
    void *swiglu;           /* [R, I]; backward: its gradient, then the attention's [R, Q] */
    float *rstd_1, *rstd_2; /* [R] */
    void *qk;               /* [R, W], the last NKV heads unused: q and k normalised and rotated; else qkv */
    float *rstd_q, *rstd_k; /* [R, NH], [R, NKV] */
    int64_t saved_bytes, recomputed_bytes;
};

static struct llama_saved llama_layout(const struct ls_model *model, int64_t R, void *saved, void *recomputed) {
    const int64_t C = model->channels, I = model->hidden;
    const int64_t Q = model->heads * model->head_size, W = Q + 2 * model->kv_heads * model->head_size;
    struct ls_layout kept = {.base = saved}, again = {.base = recomputed};
    struct llama_saved s = {0};
    s.qkv = ls_layout_elements(&kept, model, R * W);
    s.mid = ls_layout_elements(&kept, model, R * C);
    s.gate_up = ls_layout_elements(&kept, model, R * (2 * I > W ? 2 * I : W));
    s.norm_1 = ls_layout_elements(&again, model, R * C);
    s.attention = ls_layout_elements(&again, model, R * Q);
    s.lse = ls_layout_floats(&again, R * model->heads);
    s.norm_2 = ls_layout_elements(&again, model, R * C);
    s.swiglu = ls_layout_elements(&again, model, R * (I > Q ? I : Q));
    s.rstd_1 = ls_layout_floats(&again, R);
    s.rstd_2 = ls_layout_floats(&again, R);
    s.qk = s.qkv;
    if (model->head_norm) {
        s.qk = ls_layout_elements(&again, model, R * W);
        s.rstd_q = ls_layout_floats(&again, R * model->heads);
        s.rstd_k = ls_layout_floats(&again, R * model->kv_heads);
    }
    s.saved_bytes = kept.bytes;
    s.recomputed_bytes = again.bytes;
    return s;
}

static void llama_saved_bytes(const struct ls_model *model, int64_t rows, int64_t *saved, int64_t *recomputed) {
    const struct llama_saved s = llama_layout(model, rows, NULL, NULL);
    *saved = s.saved_bytes;
    *recomputed = s.recomputed_bytes;
}

/* Rotates neighbouring heads of rows that are `stride` apart; `inverse` rotates gradients back. */
static void rotate(const struct ls_model *model, const struct ls_block_pass *pass, void *x, int64_t heads,
                   int64_t stride, bool inverse) {
    ls_op(pass->stream, rope, .x = x, .table = pass->tables, .rows = pass->sequences * pass->length,
          .length = pass->length, .heads = heads, .head_size = model->head_size, .stride = stride,
          .first_position = pass->cached, .inverse = inverse, .dtype = model->dtype);
}

/* Normalises neighbouring heads of rows that are `stride` apart. */
static void normalise(const struct ls_model *model, const struct ls_block_pass *pass, void *output, float *rstd,
                      const void *input, const struct ls_tensor *weight, int64_t heads, int64_t stride) {
    ls_op(pass->stream, head_norm_forward, .output = output, .rstd = rstd, .input = input,
          .weight = ls_weight(model, pass, weight), .rows = pass->sequences * pass->length, .heads = heads,
          .head_size = model->head_size, .stride = stride, .epsilon = model->epsilon, .dtype = model->dtype);
}

/* y[R, OUT] = x[R, C] w[OUT, C]^T + bias. */
static void project(const struct ls_model *model, const struct ls_block_pass *pass, void *y, const void *x,
                    const struct ls_tensor *w, const struct ls_tensor *bias, int64_t OUT) {
    const int64_t R = pass->sequences * pass->length, C = model->channels;
    ls_op(pass->stream, gemm, .c = y, .a = x, .b = ls_weight(model, pass, w), .m = R, .n = OUT, .k = C, .lda = C,
          .ldb = C, .ldc = OUT, .transpose_b = true, .epilogue = bias ? LS_EPILOGUE_BIAS : LS_EPILOGUE_NONE,
          .bias = bias ? ls_weight(model, pass, bias) : NULL, .dtype = model->dtype);
}

/* What follows from qkv: q and k normalised, where the model does that, and rotated. */
static void position_qk(const struct ls_model *model, const struct ls_block_pass *pass, const struct llama_saved *s,
                        const struct ls_tensor *t) {
    const int64_t NH = model->heads, NKV = model->kv_heads, Q = NH * model->head_size,
                  W = Q + 2 * NKV * model->head_size;
    if (model->head_norm) {
        normalise(model, pass, s->qk, s->rstd_q, s->qkv, &t[Q_NORM], NH, W);
        normalise(model, pass, ls_at(model, s->qk, Q), s->rstd_k, ls_at(model, s->qkv, Q), &t[K_NORM], NKV, W);
    }
    rotate(model, pass, s->qk, NH + NKV, W, false);
}

/* The three products are one: their matrices follow one another, and so do the biases. With a cache q[R, Q] goes to
 * `qk`, keys and values into the cache. */
static void project_qkv(const struct ls_model *model, const struct ls_block_pass *pass, const struct llama_saved *s,
                        const struct ls_tensor *t) {
    const int64_t NH = model->heads, NKV = model->kv_heads;
    const int64_t Q = NH * model->head_size, KV = 2 * NKV * model->head_size, W = Q + KV;
    if (pass->cache == NULL) {
        project(model, pass, s->qkv, s->norm_1, &t[Q_PROJ], model->qkv_bias ? &t[Q_BIAS] : NULL, W);
        position_qk(model, pass, s, t);
        return;
    }
    void *kv = ls_cache_row(model, pass);
    project(model, pass, s->qk, s->norm_1, &t[Q_PROJ], model->qkv_bias ? &t[Q_BIAS] : NULL, Q);
    project(model, pass, kv, s->norm_1, &t[K_PROJ], model->qkv_bias ? &t[K_BIAS] : NULL, KV);
    if (model->head_norm) {
        normalise(model, pass, s->qk, NULL, s->qk, &t[Q_NORM], NH, Q);
        normalise(model, pass, kv, NULL, kv, &t[K_NORM], NKV, KV);
    }
    rotate(model, pass, s->qk, NH, Q, false);
    rotate(model, pass, kv, NKV, KV, false);
}

static void llama_layer_forward(const struct ls_model *model, int block, const struct ls_block_pass *pass) {
    const int64_t R = pass->sequences * pass->length, C = model->channels, I = model->hidden;
    const int64_t Q = model->heads * model->head_size;
    const struct ls_tensor *t = ls_model_tensors(model, block);
    const void *x = pass->input;
    struct ls_stream *stream = pass->stream;
    const struct llama_saved s = llama_layout(model, R, pass->saved, pass->recomputed);

    ls_op(stream, rmsnorm_forward, .output = s.norm_1, .rstd = s.rstd_1, .input = x,
          .weight = ls_weight(model, pass, &t[INPUT_LAYERNORM]), .rows = R, .columns = C, .epsilon = model->epsilon,
          .dtype = model->dtype);
    project_qkv(model, pass, &s, t);
    ls_attention_forward(model, pass, s.attention, s.lse, s.qk, s.qkv);
    ls_linear_forward(model, stream, s.mid, s.attention, ls_weight(model, pass, &t[O_PROJ]), x, R, Q, C);
    ls_op(stream, rmsnorm_forward, .output = s.norm_2, .rstd = s.rstd_2, .input = s.mid,
          .weight = ls_weight(model, pass, &t[POST_ATTENTION_LAYERNORM]), .rows = R, .columns = C,
          .epsilon = model->epsilon, .dtype = model->dtype);
    ls_linear_forward(model, stream, s.gate_up, s.norm_2, ls_weight(model, pass, &t[GATE_PROJ]), NULL, R, C, 2 * I);
    ls_op(stream, swiglu_forward, .output = s.swiglu, .gate_up = s.gate_up, .rows = R, .columns = I,
          .dtype = model->dtype);
    if (pass->output == NULL) return;
    ls_linear_forward(model, stream, pass->output, s.swiglu, ls_weight(model, pass, &t[DOWN_PROJ]), s.mid, R, I, C);
}

static void llama_layer_recompute(const struct ls_model *model, int block, const struct ls_block_pass *pass) {
    const int64_t R = pass->sequences * pass->length, C = model->channels, I = model->hidden;
    const struct ls_tensor *t = ls_model_tensors(model, block);
    const struct llama_saved s = llama_layout(model, R, pass->saved, pass->recomputed);

    ls_op(pass->stream, rmsnorm_forward, .output = s.norm_1, .rstd = s.rstd_1, .input = pass->input,
          .weight = ls_weight(model, pass, &t[INPUT_LAYERNORM]), .rows = R, .columns = C, .epsilon = model->epsilon,
          .dtype = model->dtype);
    if (model->head_norm) position_qk(model, pass, &s, t);
    ls_attention_forward(model, pass, s.attention, s.lse, s.qk, s.qkv);
    ls_op(pass->stream, rmsnorm_forward, .output = s.norm_2, .rstd = s.rstd_2, .input = s.mid,
          .weight = ls_weight(model, pass, &t[POST_ATTENTION_LAYERNORM]), .rows = R, .columns = C,
          .epsilon = model->epsilon, .dtype = model->dtype);
    ls_op(pass->stream, swiglu_forward, .output = s.swiglu, .gate_up = s.gate_up, .rows = R, .columns = I,
          .dtype = model->dtype);
}

/* The gradient goes through the norm of neighbouring heads in place; `input` is what forward normalised. */
static void normalise_backward(const struct ls_model *model, const struct ls_block_pass *pass, void *gradient,
                               const float *rstd, const void *input, const struct ls_tensor *weight, int64_t heads,
                               int64_t stride) {
    ls_op(pass->stream, head_norm_backward, .input_gradient = gradient, .workspace = pass->scratch,
          .weight_gradient = pass->gradients + weight->offset, .output_gradient = gradient, .input = input,
          .weight = ls_weight(model, pass, weight), .rstd = rstd, .rows = pass->sequences * pass->length,
          .heads = heads, .head_size = model->head_size, .stride = stride, .dtype = model->dtype);
}

static void llama_layer_backward(const struct ls_model *model, int block, const struct ls_block_pass *pass) {
    const int64_t R = pass->sequences * pass->length, C = model->channels, I = model->hidden;
    const int64_t Q = model->heads * model->head_size, W = Q + 2 * model->kv_heads * model->head_size;
    const struct ls_tensor *t = ls_model_tensors(model, block);
    const void *x = pass->input;
    float *dw = pass->gradients;
    void *dx = pass->stream_gradient;
    struct ls_stream *stream = pass->stream;
    const struct llama_saved s = llama_layout(model, R, pass->saved, pass->recomputed);

    /* x' = mid + swiglu(norm_2 [gate_proj, up_proj]^T) down_proj^T */
    void *dswiglu = s.swiglu, *dgate_up = s.gate_up, *dnorm_2 = s.norm_2;
    ls_linear_backward(model, stream, dswiglu, dw + t[DOWN_PROJ].offset, dx, s.swiglu,
                       ls_weight(model, pass, &t[DOWN_PROJ]), R, I, C);
    ls_op(stream, swiglu_backward, .gate_up_gradient = dgate_up, .output_gradient = dswiglu, .gate_up = s.gate_up,
          .rows = R, .columns = I, .dtype = model->dtype);
    ls_linear_backward(model, stream, dnorm_2, dw + t[GATE_PROJ].offset, dgate_up, s.norm_2,
                       ls_weight(model, pass, &t[GATE_PROJ]), R, C, 2 * I);
    ls_op(stream, rmsnorm_backward, .input_gradient = dx, .workspace = pass->scratch,
          .weight_gradient = dw + t[POST_ATTENTION_LAYERNORM].offset, .output_gradient = dnorm_2, .input = s.mid,
          .weight = ls_weight(model, pass, &t[POST_ATTENTION_LAYERNORM]), .rstd = s.rstd_2, .rows = R, .columns = C,
          .accumulate_input = true, .dtype = model->dtype);

    /* mid = x + attention(norm_1 [q_proj, k_proj, v_proj]^T) o_proj^T; the gradient of `attention` cannot lie over it:
     * its backward needs both */
    void *dattention = s.swiglu, *dqkv = s.gate_up, *dnorm_1 = s.norm_1;
    ls_linear_backward(model, stream, dattention, dw + t[O_PROJ].offset, dx, s.attention,
                       ls_weight(model, pass, &t[O_PROJ]), R, Q, C);
    ls_attention_backward(model, pass, dqkv, dattention, s.attention, s.lse, s.qk, s.qkv);
    rotate(model, pass, dqkv, model->heads + model->kv_heads, W, true);
    if (model->head_norm) {
        normalise_backward(model, pass, dqkv, s.rstd_q, s.qkv, &t[Q_NORM], model->heads, W);
        normalise_backward(model, pass, ls_at(model, dqkv, Q), s.rstd_k, ls_at(model, s.qkv, Q), &t[K_NORM],
                           model->kv_heads, W);
    }
    if (model->qkv_bias)
        ls_op(stream, bias_backward, .bias_gradient = dw + t[Q_BIAS].offset, .workspace = pass->scratch,
              .output_gradient = dqkv, .rows = R, .columns = W, .dtype = model->dtype);
    ls_linear_backward(model, stream, dnorm_1, dw + t[Q_PROJ].offset, dqkv, s.norm_1,
                       ls_weight(model, pass, &t[Q_PROJ]), R, C, W);
    ls_op(stream, rmsnorm_backward, .input_gradient = dx, .workspace = pass->scratch,
          .weight_gradient = dw + t[INPUT_LAYERNORM].offset, .output_gradient = dnorm_1, .input = x,
          .weight = ls_weight(model, pass, &t[INPUT_LAYERNORM]), .rstd = s.rstd_1, .rows = R, .columns = C,
          .accumulate_input = true, .dtype = model->dtype);
}

/* model.norm is the last tensor of the head. */
static int64_t final_norm_offset(const struct ls_model *model) {
    return model->tensors[model->tensor_count - 1].offset;
}

static void llama_final_norm_forward(const struct ls_model *model, const struct ls_block_pass *pass, int64_t first,
                                     int64_t rows, float *statistics, void *normalised) {
    ls_op(pass->stream, rmsnorm_forward, .output = normalised, .rstd = statistics,
          .input = ls_at(model, pass->input, first * model->channels),
          .weight = ls_at(model, pass->parameters, final_norm_offset(model)), .rows = rows, .columns = model->channels,
          .epsilon = model->epsilon, .dtype = model->dtype);
}

static void llama_final_norm_backward(const struct ls_model *model, const struct ls_block_pass *pass, int64_t first,
                                      int64_t rows, const float *statistics, const void *gradient, void *workspace) {
    const int64_t C = model->channels;
    ls_op(pass->stream, rmsnorm_backward, .input_gradient = ls_at(model, pass->stream_gradient, first * C),
          .workspace = workspace, .weight_gradient = pass->gradients + final_norm_offset(model),
          .output_gradient = gradient, .input = ls_at(model, pass->input, first * C),
          .weight = ls_at(model, pass->parameters, final_norm_offset(model)), .rstd = statistics, .rows = rows,
          .columns = C, .dtype = model->dtype);
}

const struct ls_model_family ls_model_llama = {
    .describe = llama_describe,
    .saved_bytes = llama_saved_bytes,
    .embedding_forward = llama_embedding_forward,
    .embedding_backward = llama_embedding_backward,
    .layer_forward = llama_layer_forward,
    .layer_recompute = llama_layer_recompute,
    .layer_backward = llama_layer_backward,
    .final_norm_forward = llama_final_norm_forward,
    .final_norm_backward = llama_final_norm_backward,
};
