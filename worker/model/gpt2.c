/* GPT-2 (Radford et al. 2019), with Hugging Face's names and layouts: Conv1D matrices are [in, out].
 *
 *     x    = wte[token] + wpe[position]
 *     mid  = x + attention(ln_1(x) c_attn) c_proj         L times
 *     x'   = mid + gelu(ln_2(mid) c_fc) mlp.c_proj
 *     loss = cross_entropy(ln_f(x) wte^T)
 *
 * B sequences of T tokens, R = B T rows, C channels, I = 4 C unless configured, V vocabulary, NH heads of HD = C / NH
 * channels. */
#include "worker/model/family.h"

#include <math.h>
#include <stdio.h>

enum { WTE, WPE, EMBEDDING_TENSORS };
enum {
    C_ATTN,
    C_PROJ,
    C_FC,
    MLP_C_PROJ,
    LN_1,
    LN_1_BIAS,
    C_ATTN_BIAS,
    C_PROJ_BIAS,
    LN_2,
    LN_2_BIAS,
    C_FC_BIAS,
    MLP_C_PROJ_BIAS,
    LAYER_TENSORS
};

/* Initial values: N(0, initializer_range), the two projections into the residual stream scaled by 1 / sqrt(2 L) (GPT-2
 * paper, section 2.3), norms 1, biases 0. */
static enum ls_code gpt2_describe(struct ls_model *model, struct ls_error *error) {
    (void)error;
    const int64_t C = model->channels, I = model->hidden, V = model->vocabulary;
    const float normal = model->deviation, residual = normal / sqrtf(2 * (float)model->layers);

    const struct ls_tensor_row embedding[EMBEDDING_TENSORS] = {
        [WTE] = {"wte.weight", V, C, .deviation = normal},
        [WPE] = {"wpe.weight", model->positions, C, .deviation = normal},
    };
    ls_model_add_block(model, LS_BLOCK_EMBEDDING, "", embedding, EMBEDDING_TENSORS);

    const struct ls_tensor_row layer[LAYER_TENSORS] = {
        [C_ATTN] = {"attn.c_attn.weight", C, 3 * C, .deviation = normal},
        [C_PROJ] = {"attn.c_proj.weight", C, C, .deviation = residual},
        [C_FC] = {"mlp.c_fc.weight", C, I, .deviation = normal},
        [MLP_C_PROJ] = {"mlp.c_proj.weight", I, C, .deviation = residual},
        [LN_1] = {"ln_1.weight", C, 0, .mean = 1},
        [LN_1_BIAS] = {"ln_1.bias", C, 0, .mean = 0},
        [C_ATTN_BIAS] = {"attn.c_attn.bias", 3 * C, 0, .mean = 0},
        [C_PROJ_BIAS] = {"attn.c_proj.bias", C, 0, .mean = 0},
        [LN_2] = {"ln_2.weight", C, 0, .mean = 1},
        [LN_2_BIAS] = {"ln_2.bias", C, 0, .mean = 0},
        [C_FC_BIAS] = {"mlp.c_fc.bias", I, 0, .mean = 0},
        [MLP_C_PROJ_BIAS] = {"mlp.c_proj.bias", C, 0, .mean = 0},
    };
    for (int64_t l = 0; l < model->layers; l++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, "h.%d.", (int)l);
        ls_model_add_block(model, LS_BLOCK_LAYER, prefix, layer, LAYER_TENSORS);
    }

    const struct ls_tensor_row head[] = {
        {model->tied ? NULL : "lm_head.weight", V, C, .deviation = normal},
        {"ln_f.weight", C, 0, .mean = 1},
        {"ln_f.bias", C, 0, .mean = 0},
    };
    ls_model_add_block(model, LS_BLOCK_HEAD, "", head, 3);
    return LS_OK;
}

static void gpt2_embedding_forward(const struct ls_model *model, const struct ls_block_pass *pass) {
    const struct ls_tensor *t = ls_model_tensors(model, 0);
    ls_op(pass->stream, embedding_forward, .output = pass->output, .tokens = pass->tokens,
          .token_table = ls_weight(model, pass, &t[WTE]), .position_table = ls_weight(model, pass, &t[WPE]),
          .batch = pass->sequences, .length = pass->length, .channels = model->channels, .first_position = pass->cached,
          .dtype = model->dtype);
}

static void gpt2_embedding_backward(const struct ls_model *model, const struct ls_block_pass *pass) {
    const struct ls_tensor *t = ls_model_tensors(model, 0);
    ls_op(pass->stream, embedding_backward, .token_gradient = pass->gradients + t[WTE].offset,
          .position_gradient = pass->gradients + t[WPE].offset, .workspace = pass->scratch,
          .output_gradient = pass->stream_gradient, .tokens = pass->tokens, .batch = pass->sequences,
          .length = pass->length, .channels = model->channels, .vocabulary = model->vocabulary, .dtype = model->dtype);
}

/* What a layer's forward leaves: 7 C + 2 I floats a row and its statistics, in two parts. Backward puts its own
 * intermediate results over parts it is done with. */
struct gpt2_saved {
    /* in `saved`: what products made */
    void *qkv; /* [R, 3 C] */
    void *mid; /* [R, C] */
    void *fc;  /* [R, I], before the GELU */
    /* in `recomputed`: what follows from these and the layer's input without a product of matrices */
    void *ln_1;             /* [R, C]; backward: its gradient */
    void *attention;        /* [R, C] */
    float *lse;             /* [B, NH, T] */
    void *ln_2;             /* [R, C]; backward: its gradient, then the attention's */
    void *gelu;             /* [R, I]; backward: the gradient of fc, then that of qkv [R, 3 C] */
    float *mean_1, *rstd_1; /* [R] */
    float *mean_2, *rstd_2;
    int64_t saved_bytes, recomputed_bytes;
};

static struct gpt2_saved gpt2_layout(const struct ls_model *model, int64_t R, void *saved, void *recomputed) {
    const int64_t C = model->channels, I = model->hidden;
    struct ls_layout kept = {.base = saved}, again = {.base = recomputed};
    struct gpt2_saved s = {0};
    s.qkv = ls_layout_elements(&kept, model, R * 3 * C);
    s.mid = ls_layout_elements(&kept, model, R * C);
    s.fc = ls_layout_elements(&kept, model, R * I);
    s.ln_1 = ls_layout_elements(&again, model, R * C);
    s.attention = ls_layout_elements(&again, model, R * C);
    s.lse = ls_layout_floats(&again, R * model->heads);
    s.ln_2 = ls_layout_elements(&again, model, R * C);
    s.gelu = ls_layout_elements(&again, model, R * (I > 3 * C ? I : 3 * C));
    s.mean_1 = ls_layout_floats(&again, R);
    s.rstd_1 = ls_layout_floats(&again, R);
    s.mean_2 = ls_layout_floats(&again, R);
    s.rstd_2 = ls_layout_floats(&again, R);
    s.saved_bytes = kept.bytes;
    s.recomputed_bytes = again.bytes;
    return s;
}

static void gpt2_saved_bytes(const struct ls_model *model, int64_t rows, int64_t *saved, int64_t *recomputed) {
    const struct gpt2_saved s = gpt2_layout(model, rows, NULL, NULL);
    *saved = s.saved_bytes;
    *recomputed = s.recomputed_bytes;
}

/* y[R, OUT] = x[R, IN] w[IN, OUT] + bias (+ residual[R, OUT], unless NULL). */
static void conv1d_forward(const struct ls_model *model, struct ls_stream *stream, void *y, const void *x,
                           const void *w, const void *bias, const void *residual, int64_t R, int64_t IN, int64_t OUT) {
    ls_op(stream, gemm, .c = y, .a = x, .b = w, .m = R, .n = OUT, .k = IN, .lda = IN, .ldb = OUT, .ldc = OUT,
          .epilogue = LS_EPILOGUE_BIAS, .bias = bias, .residual = residual, .dtype = model->dtype);
}

/* qkv[R, 3 C]; with a cache q[R, C], and keys and values into the cache: the same product, cut by columns of the
 * matrix. */
static void project_qkv(const struct ls_model *model, const struct ls_block_pass *pass, void *qkv, const void *x,
                        const void *w, const void *bias) {
    const int64_t R = pass->sequences * pass->length, C = model->channels;
    if (pass->cache == NULL) {
        conv1d_forward(model, pass->stream, qkv, x, w, bias, NULL, R, C, 3 * C);
        return;
    }
    ls_op(pass->stream, gemm, .c = qkv, .a = x, .b = w, .m = R, .n = C, .k = C, .lda = C, .ldb = 3 * C, .ldc = C,
          .epilogue = LS_EPILOGUE_BIAS, .bias = bias, .dtype = model->dtype);
    ls_op(pass->stream, gemm, .c = ls_cache_row(model, pass), .a = x, .b = ls_at(model, w, C), .m = R, .n = 2 * C,
          .k = C, .lda = C, .ldb = 3 * C, .ldc = 2 * C, .epilogue = LS_EPILOGUE_BIAS, .bias = ls_at(model, bias, C),
          .dtype = model->dtype);
}

/* dw += x^T dy, dbias += the sum of dy's rows. */
static void conv1d_backward_weight(const struct ls_model *model, const struct ls_block_pass *pass, float *dw,
                                   float *dbias, const void *dy, const void *x, int64_t R, int64_t IN, int64_t OUT) {
    ls_op(pass->stream, gemm, .c = dw, .a = x, .b = dy, .m = IN, .n = OUT, .k = R, .lda = IN, .ldb = OUT, .ldc = OUT,
          .transpose_a = true, .accumulate = true, .c_fp32 = true, .bias_gradient = dbias, .workspace = pass->scratch,
          .dtype = model->dtype);
}

/* dx = dy w^T. */
static void conv1d_backward_input(const struct ls_model *model, struct ls_stream *stream, void *dx, const void *dy,
                                  const void *w, int64_t R, int64_t IN, int64_t OUT) {
    ls_op(stream, gemm, .c = dx, .a = dy, .b = w, .m = R, .n = IN, .k = OUT, .lda = OUT, .ldb = OUT, .ldc = IN,
          .transpose_b = true, .dtype = model->dtype);
}

static void gpt2_layer_forward(const struct ls_model *model, int block, const struct ls_block_pass *pass) {
    const int64_t R = pass->sequences * pass->length, C = model->channels, I = model->hidden;
    const struct ls_tensor *t = ls_model_tensors(model, block);
    const void *x = pass->input;
    struct ls_stream *stream = pass->stream;
    const struct gpt2_saved s = gpt2_layout(model, R, pass->saved, pass->recomputed);

    ls_op(stream, layernorm_forward, .output = s.ln_1, .mean = s.mean_1, .rstd = s.rstd_1, .input = x,
          .weight = ls_weight(model, pass, &t[LN_1]), .bias = ls_weight(model, pass, &t[LN_1_BIAS]), .rows = R,
          .columns = C, .epsilon = model->epsilon, .dtype = model->dtype);
    project_qkv(model, pass, s.qkv, s.ln_1, ls_weight(model, pass, &t[C_ATTN]),
                ls_weight(model, pass, &t[C_ATTN_BIAS]));
    ls_attention_forward(model, pass, s.attention, s.lse, s.qkv, s.qkv);
    conv1d_forward(model, stream, s.mid, s.attention, ls_weight(model, pass, &t[C_PROJ]),
                   ls_weight(model, pass, &t[C_PROJ_BIAS]), x, R, C, C);
    ls_op(stream, layernorm_forward, .output = s.ln_2, .mean = s.mean_2, .rstd = s.rstd_2, .input = s.mid,
          .weight = ls_weight(model, pass, &t[LN_2]), .bias = ls_weight(model, pass, &t[LN_2_BIAS]), .rows = R,
          .columns = C, .epsilon = model->epsilon, .dtype = model->dtype);
    ls_op(stream, gemm, .c = s.gelu, .aux = s.fc, .a = s.ln_2, .b = ls_weight(model, pass, &t[C_FC]), .m = R, .n = I,
          .k = C, .lda = C, .ldb = I, .ldc = I, .epilogue = LS_EPILOGUE_BIAS_GELU,
          .bias = ls_weight(model, pass, &t[C_FC_BIAS]), .dtype = model->dtype);
    if (pass->output == NULL) return;
    conv1d_forward(model, stream, pass->output, s.gelu, ls_weight(model, pass, &t[MLP_C_PROJ]),
                   ls_weight(model, pass, &t[MLP_C_PROJ_BIAS]), s.mid, R, I, C);
}

static void gpt2_layer_recompute(const struct ls_model *model, int block, const struct ls_block_pass *pass) {
    const int64_t R = pass->sequences * pass->length, C = model->channels, I = model->hidden;
    const struct ls_tensor *t = ls_model_tensors(model, block);
    const struct gpt2_saved s = gpt2_layout(model, R, pass->saved, pass->recomputed);

    ls_op(pass->stream, layernorm_forward, .output = s.ln_1, .mean = s.mean_1, .rstd = s.rstd_1, .input = pass->input,
          .weight = ls_weight(model, pass, &t[LN_1]), .bias = ls_weight(model, pass, &t[LN_1_BIAS]), .rows = R,
          .columns = C, .epsilon = model->epsilon, .dtype = model->dtype);
    ls_attention_forward(model, pass, s.attention, s.lse, s.qkv, s.qkv);
    ls_op(pass->stream, layernorm_forward, .output = s.ln_2, .mean = s.mean_2, .rstd = s.rstd_2, .input = s.mid,
          .weight = ls_weight(model, pass, &t[LN_2]), .bias = ls_weight(model, pass, &t[LN_2_BIAS]), .rows = R,
          .columns = C, .epsilon = model->epsilon, .dtype = model->dtype);
    ls_op(pass->stream, gelu_forward, .output = s.gelu, .input = s.fc, .count = R * I, .dtype = model->dtype);
}

static void gpt2_layer_backward(const struct ls_model *model, int block, const struct ls_block_pass *pass) {
    const int64_t R = pass->sequences * pass->length, C = model->channels, I = model->hidden;
    const struct ls_tensor *t = ls_model_tensors(model, block);
    const void *x = pass->input;
    float *dw = pass->gradients;
    void *dx = pass->stream_gradient;
    struct ls_stream *stream = pass->stream;
    const struct gpt2_saved s = gpt2_layout(model, R, pass->saved, pass->recomputed);

    /* x' = mid + gelu(fc) mlp.c_proj, where fc = ln_2 c_fc */
    void *dfc = s.gelu, *dln_2 = s.ln_2;
    conv1d_backward_weight(model, pass, dw + t[MLP_C_PROJ].offset, dw + t[MLP_C_PROJ_BIAS].offset, dx, s.gelu, R, I, C);
    ls_op(stream, gemm, .c = dfc, .aux = s.fc, .a = dx, .b = ls_weight(model, pass, &t[MLP_C_PROJ]), .m = R, .n = I,
          .k = C, .lda = C, .ldb = C, .ldc = I, .transpose_b = true, .epilogue = LS_EPILOGUE_GELU_GRAD,
          .dtype = model->dtype);
    conv1d_backward_weight(model, pass, dw + t[C_FC].offset, dw + t[C_FC_BIAS].offset, dfc, s.ln_2, R, C, I);
    conv1d_backward_input(model, stream, dln_2, dfc, ls_weight(model, pass, &t[C_FC]), R, C, I);
    ls_op(stream, layernorm_backward, .input_gradient = dx, .workspace = pass->scratch,
          .weight_gradient = dw + t[LN_2].offset, .bias_gradient = dw + t[LN_2_BIAS].offset, .output_gradient = dln_2,
          .input = s.mid, .weight = ls_weight(model, pass, &t[LN_2]), .mean = s.mean_2, .rstd = s.rstd_2, .rows = R,
          .columns = C, .accumulate_input = true, .dtype = model->dtype);

    /* mid = x + attention(ln_1 c_attn) c_proj */
    void *dattention = s.ln_2, *dqkv = s.gelu, *dln_1 = s.ln_1;
    conv1d_backward_weight(model, pass, dw + t[C_PROJ].offset, dw + t[C_PROJ_BIAS].offset, dx, s.attention, R, C, C);
    conv1d_backward_input(model, stream, dattention, dx, ls_weight(model, pass, &t[C_PROJ]), R, C, C);
    ls_attention_backward(model, pass, dqkv, dattention, s.attention, s.lse, s.qkv, s.qkv);
    conv1d_backward_weight(model, pass, dw + t[C_ATTN].offset, dw + t[C_ATTN_BIAS].offset, dqkv, s.ln_1, R, C, 3 * C);
    conv1d_backward_input(model, stream, dln_1, dqkv, ls_weight(model, pass, &t[C_ATTN]), R, C, 3 * C);
    ls_op(stream, layernorm_backward, .input_gradient = dx, .workspace = pass->scratch,
          .weight_gradient = dw + t[LN_1].offset, .bias_gradient = dw + t[LN_1_BIAS].offset, .output_gradient = dln_1,
          .input = x, .weight = ls_weight(model, pass, &t[LN_1]), .mean = s.mean_1, .rstd = s.rstd_1, .rows = R,
          .columns = C, .accumulate_input = true, .dtype = model->dtype);
}

/* ln_f's weight and bias are the last two tensors of the head. */
static const struct ls_tensor *final_norm(const struct ls_model *model) {
    return &model->tensors[model->tensor_count - 2];
}

static void gpt2_final_norm_forward(const struct ls_model *model, const struct ls_block_pass *pass, int64_t first,
                                    int64_t rows, float *statistics, void *normalised) {
    const struct ls_tensor *t = final_norm(model);
    ls_op(pass->stream, layernorm_forward, .output = normalised, .mean = statistics, .rstd = statistics + rows,
          .input = ls_at(model, pass->input, first * model->channels), .weight = ls_weight(model, pass, &t[0]),
          .bias = ls_weight(model, pass, &t[1]), .rows = rows, .columns = model->channels, .epsilon = model->epsilon,
          .dtype = model->dtype);
}

static void gpt2_final_norm_backward(const struct ls_model *model, const struct ls_block_pass *pass, int64_t first,
                                     int64_t rows, const float *statistics, const void *gradient, void *workspace) {
    const struct ls_tensor *t = final_norm(model);
    const int64_t C = model->channels;
    ls_op(pass->stream, layernorm_backward, .input_gradient = ls_at(model, pass->stream_gradient, first * C),
          .workspace = workspace, .weight_gradient = pass->gradients + t[0].offset,
          .bias_gradient = pass->gradients + t[1].offset, .output_gradient = gradient,
          .input = ls_at(model, pass->input, first * C), .weight = ls_weight(model, pass, &t[0]), .mean = statistics,
          .rstd = statistics + rows, .rows = rows, .columns = C, .dtype = model->dtype);
}

const struct ls_model_family ls_model_gpt2 = {
    .describe = gpt2_describe,
    .saved_bytes = gpt2_saved_bytes,
    .embedding_forward = gpt2_embedding_forward,
    .embedding_backward = gpt2_embedding_backward,
    .layer_forward = gpt2_layer_forward,
    .layer_recompute = gpt2_layer_recompute,
    .layer_backward = gpt2_layer_backward,
    .final_norm_forward = gpt2_final_norm_forward,
    .final_norm_backward = gpt2_final_norm_backward,
};
