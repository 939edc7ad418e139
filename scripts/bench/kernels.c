/* Rates of the CPU kernels at the shapes of a small model, beside a large matrix product and a large copy measured in
 * the same run. Each row: the best of a few repetitions, GFLOP/s against the product or GB/s against the copy, and the
 * share of a training step that the kernel's calls would take, were the step made of these rows alone.
 *
 *     build/scripts/bench/kernels [THREADS]
 */
#include "worker/device/device.h"
#include "worker/optim/muon.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum {
    B = 16,
    T = 256,
    C = 256,
    NH = 4,
    V = 257,
    LAYERS = 4,
    ROWS = B * T,
    HD = C / NH,
    PARAMETERS = 12 * C * C * LAYERS
};

/* Processor time, so that other programs on the host disturb less: of all threads together. */
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

struct row {
    const char *name;
    double flops, bytes, calls; /* of one call; calls in a step */
    double seconds;
};

/* What the kernels read and write. Their values matter little: each buffer serves wherever its size is enough. */
struct bench {
    struct ls_stream *stream;
    float *x, *y, *z, *d; /* [ROWS, 4 C] */
    float *w, *m, *v, *g; /* [PARAMETERS] */
    float *lse;           /* [ROWS, NH] */
    float *mean, *rstd;   /* [ROWS] */
    float *dw, *db;       /* [4 C] */
    int32_t *tokens;      /* [ROWS] */
    float one, rate;      /* a factor, a learning rate */
    int64_t step;
    double scalar;
    struct row rows[64]; /* first the two peaks */
    int row_count;
};

/* Times an operation: at least 3 repetitions and 30 ms, the best one counts. */
#define MEASURE(label, flop_count, byte_count, call_count, ...)                                                        \
    do {                                                                                                               \
        double best = 1e30, start = now();                                                                             \
        for (int repetition = 0; repetition < 3 || now() - start < 0.03; repetition++) {                               \
            const double before = now();                                                                               \
            __VA_ARGS__;                                                                                               \
            const double seconds = now() - before;                                                                     \
            if (seconds < best) best = seconds;                                                                        \
        }                                                                                                              \
        b->rows[b->row_count++] = (struct row){label, flop_count, byte_count, call_count, best};                       \
    } while (0)

#define OP(operation, ...) ls_op(b->stream, operation, __VA_ARGS__)

#define GEMM(label, calls, M, N, K, ...)                                                                               \
    MEASURE(label, 2.0 * (M) * (N) * (K), 0, calls,                                                                    \
            OP(gemm, .c = b->y, .a = b->x, .b = b->w, .m = M, .n = N, .k = K, .ldc = N, .bias = b->w, .aux = b->z,     \
               __VA_ARGS__))

/* A weight's gradient [M, N], added to what is there, of ROWS rows. */
static void measure_weight_gradient(struct bench *b, const char *label, double calls, int64_t M, int64_t N) {
    MEASURE(label, 2.0 * ROWS * (double)(M * N), 0, calls,
            OP(gemm, .c = b->g, .a = b->x, .b = b->z, .m = M, .n = N, .k = ROWS, .lda = M, .ldb = N, .ldc = N,
               .transpose_a = true, .accumulate = true));
}

static void prepare(struct bench *b, struct ls_device *device) {
    const size_t activations = (size_t)ROWS * 4 * C * sizeof(float), parameters = PARAMETERS * sizeof(float);
    float **const large[] = {&b->x, &b->y, &b->z, &b->d}, **const flat[] = {&b->w, &b->m, &b->v, &b->g};
    b->stream = ls_stream_create(device, false);
    for (int i = 0; i < 4; i++) *large[i] = ls_device_allocate(device, activations);
    for (int i = 0; i < 4; i++) *flat[i] = ls_device_allocate(device, parameters);
    b->lse = ls_device_allocate(device, (size_t)ROWS * NH * 4);
    b->mean = ls_device_allocate(device, ROWS * 4);
    b->rstd = ls_device_allocate(device, ROWS * 4);
    b->dw = ls_device_allocate(device, 4 * C * 4);
    b->db = ls_device_allocate(device, 4 * C * 4);
    b->tokens = ls_device_allocate(device, ROWS * 4);
    b->one = 1.0f, b->rate = 1e-9f, b->step = 1;
    for (int i = 0; i < ROWS; i++) b->tokens[i] = i * 7919 % V;
    OP(initialize, .output = b->x, .seed = 1, .count = ROWS * 4 * C, .deviation = 1.0f);
    OP(initialize, .output = b->z, .seed = 2, .count = ROWS * 4 * C, .deviation = 1.0f);
    OP(initialize, .output = b->w, .seed = 3, .count = PARAMETERS, .deviation = 0.02f);
    OP(initialize, .output = b->g, .seed = 4, .count = PARAMETERS, .deviation = 0.02f);
}

static void measure_products(struct bench *b) {
    GEMM("peak: product 1024^3", 0, 1024, 1024, 1024, .lda = 1024, .ldb = 1024);
    MEASURE("peak: copy", 0, 2.0 * ROWS * 4 * C * 4, 0, ls_copy(b->stream, b->y, b->x, (size_t)ROWS * 4 * C * 4));
    GEMM("qkv forward + bias", LAYERS, ROWS, 3 * C, C, .lda = C, .ldb = C, .transpose_b = true,
         .epilogue = LS_EPILOGUE_BIAS);
    GEMM("projection forward + bias + residual", LAYERS, ROWS, C, C, .lda = C, .ldb = C, .transpose_b = true,
         .epilogue = LS_EPILOGUE_BIAS, .residual = b->z);
    GEMM("fc forward + bias + gelu", LAYERS, ROWS, 4 * C, C, .lda = C, .ldb = C, .transpose_b = true,
         .epilogue = LS_EPILOGUE_BIAS_GELU);
    GEMM("fc projection forward + bias + residual", LAYERS, ROWS, C, 4 * C, .lda = 4 * C, .ldb = 4 * C,
         .transpose_b = true, .epilogue = LS_EPILOGUE_BIAS, .residual = b->z);
    GEMM("head forward", 1, ROWS, V, C, .lda = C, .ldb = C, .transpose_b = true);
    GEMM("qkv input gradient", LAYERS, ROWS, C, 3 * C, .lda = 3 * C, .ldb = C);
    GEMM("projection input gradient", LAYERS, ROWS, C, C, .lda = C, .ldb = C);
    GEMM("fc input gradient", LAYERS, ROWS, C, 4 * C, .lda = 4 * C, .ldb = C);
    GEMM("fc projection input gradient * gelu'", LAYERS, ROWS, 4 * C, C, .lda = C, .ldb = 4 * C,
         .epilogue = LS_EPILOGUE_GELU_GRAD);
    GEMM("head input gradient", 1, ROWS, C, V, .lda = V, .ldb = C);
    measure_weight_gradient(b, "qkv weight gradient", LAYERS, 3 * C, C);
    measure_weight_gradient(b, "projection weight gradient", LAYERS, C, C);
    measure_weight_gradient(b, "fc weight gradient", LAYERS, 4 * C, C);
    measure_weight_gradient(b, "fc projection weight gradient", LAYERS, C, 4 * C);
    measure_weight_gradient(b, "head weight gradient", 1, V, C);
}

static void measure_attention(struct bench *b) {
    const double attention = 4.0 * B * NH * HD * T * (T + 1) / 2; /* the visible half */
    MEASURE("attention forward", attention, 0, LAYERS,
            OP(attention_forward, .output = b->y, .lse = b->lse, .q = b->x, .k = b->x + C, .v = b->x + 2 * C,
               .batch = B, .query_length = T, .key_length = T, .heads = NH, .kv_heads = NH, .head_size = HD,
               .q_stride = 3 * C, .kv_stride = 3 * C, .output_stride = C, .q_batch_stride = T * 3 * C,
               .kv_batch_stride = T * 3 * C, .output_batch_stride = T * C, .scale = 0.125f));
    MEASURE("attention backward", 2.5 * attention, 0, LAYERS,
            OP(attention_backward, .q_gradient = b->d, .k_gradient = b->d + C, .v_gradient = b->d + 2 * C,
               .output_gradient = b->z, .output = b->y, .q = b->x, .k = b->x + C, .v = b->x + 2 * C, .lse = b->lse,
               .batch = B, .length = T, .heads = NH, .kv_heads = NH, .head_size = HD, .q_stride = 3 * C,
               .kv_stride = 3 * C, .output_stride = C, .q_batch_stride = T * 3 * C, .kv_batch_stride = T * 3 * C,
               .output_batch_stride = T * C, .scale = 0.125f));
}

static void measure_rows(struct bench *b) {
    const double n = (double)ROWS * C * 4;
    MEASURE("layernorm forward", 0, 2 * n, 2 * LAYERS,
            OP(layernorm_forward, .output = b->y, .mean = b->mean, .rstd = b->rstd, .input = b->x, .weight = b->w,
               .bias = b->w, .rows = ROWS, .columns = C, .epsilon = 1e-5f));
    MEASURE("layernorm backward, accumulating", 0, 4 * n, 2 * LAYERS,
            OP(layernorm_backward, .input_gradient = b->d, .weight_gradient = b->dw, .bias_gradient = b->db,
               .output_gradient = b->z, .input = b->x, .weight = b->w, .mean = b->mean, .rstd = b->rstd, .rows = ROWS,
               .columns = C, .accumulate_input = true));
    MEASURE("bias gradient, 4C", 0, 4 * n, LAYERS,
            OP(bias_backward, .bias_gradient = b->db, .output_gradient = b->z, .rows = ROWS, .columns = 4 * C));
    MEASURE("bias gradient, 3C", 0, 3 * n, LAYERS,
            OP(bias_backward, .bias_gradient = b->db, .output_gradient = b->z, .rows = ROWS, .columns = 3 * C));
    MEASURE("bias gradient, C", 0, n, 2 * LAYERS,
            OP(bias_backward, .bias_gradient = b->db, .output_gradient = b->z, .rows = ROWS, .columns = C));
    MEASURE("gelu forward, 4C", 0, 8 * n, 0, OP(gelu_forward, .output = b->y, .input = b->x, .count = ROWS * 4 * C));
    MEASURE("gelu backward, 4C", 0, 12 * n, 0,
            OP(gelu_backward, .input_gradient = b->y, .output_gradient = b->z, .input = b->x, .count = ROWS * 4 * C));
    MEASURE("swiglu forward, 2C", 0, 6 * n, 0,
            OP(swiglu_forward, .output = b->y, .gate_up = b->x, .rows = ROWS, .columns = 2 * C));
    MEASURE("swiglu backward, 2C", 0, 10 * n, 0,
            OP(swiglu_backward, .gate_up_gradient = b->d, .output_gradient = b->z, .gate_up = b->x, .rows = ROWS,
               .columns = 2 * C));
    MEASURE("add", 0, 3 * n, 0, OP(add, .sum = b->y, .a = b->x, .b = b->z, .count = ROWS * C));
}

static void measure_embedding_and_loss(struct bench *b) {
    const double n = (double)ROWS * C * 4;
    MEASURE("embedding forward", 0, 3 * n, 1,
            OP(embedding_forward, .output = b->y, .tokens = b->tokens, .token_table = b->w, .position_table = b->x,
               .batch = B, .length = T, .channels = C));
    MEASURE("embedding backward", 0, 5 * n, 1,
            OP(embedding_backward, .token_gradient = b->g, .position_gradient = b->d, .output_gradient = b->z,
               .tokens = b->tokens, .batch = B, .length = T, .channels = C, .vocabulary = V));
    MEASURE("cross-entropy + gradient", 0, 2.0 * ROWS * V * 4, 1,
            OP(cross_entropy, .logits = b->d, .loss = &b->scalar, .targets = b->tokens, .gradient_scale = &b->one,
               .row_loss = b->rstd, .rows = ROWS, .vocabulary = V, .stride = V, .gradient = true));
}

static void measure_updates(struct bench *b) {
    MEASURE("squared norm", 0, 4.0 * PARAMETERS, 1,
            OP(squared_norm, .result = &b->scalar, .input = b->g, .count = PARAMETERS, .partial = (double *)b->y));
    MEASURE("adamw", 0, 28.0 * PARAMETERS, 1,
            OP(update, .parameter = b->w, .m = b->m, .v = b->v, .gradient = b->g, .factor = &b->one,
               .learning_rate = &b->rate, .step = &b->step, .count = PARAMETERS, .decay_count = PARAMETERS,
               .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .weight_decay = 0.1f));
    OP(convert, .output = b->y, .input = b->w, .count = PARAMETERS, .dtype = LS_BF16);
    MEASURE("adamw and a copy in bf16", 0, 30.0 * PARAMETERS, 0,
            OP(update, .parameter = b->w, .low_precision = b->y, .m = b->m, .v = b->v, .gradient = b->g,
               .factor = &b->one, .learning_rate = &b->rate, .step = &b->step, .count = PARAMETERS,
               .decay_count = PARAMETERS, .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .weight_decay = 0.1f,
               .dtype = LS_BF16));
    MEASURE("adamw in bf16, rounding stochastically", 0, 24.0 * PARAMETERS, 0,
            OP(update, .low_precision = b->y, .m = b->m, .v = b->v, .gradient = b->g, .factor = &b->one,
               .learning_rate = &b->rate, .step = &b->step, .count = PARAMETERS, .decay_count = PARAMETERS,
               .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .weight_decay = 0.1f, .dtype = LS_BF16));
    const struct ls_muon_matrix matrix = {.x = b->x,
                                          .result = b->y,
                                          .rows = C,
                                          .columns = 4 * C,
                                          .gram = b->v,
                                          .powers = b->m,
                                          .squared = &b->scalar,
                                          .partial = (double *)b->lse};
    MEASURE("muon: C x 4C made orthogonal", ls_muon_flops(C, 4 * C), 0, 0, ls_muon_orthogonalize(b->stream, &matrix));
    MEASURE("initialize", 0, 4.0 * PARAMETERS, 0,
            OP(initialize, .output = b->m, .seed = 3, .count = PARAMETERS, .deviation = 0.02f));
}

/* In as many elements, whose values are no longer those of the rows before. */
static void measure_bf16(struct bench *b) {
    const double n = (double)ROWS * C * 4;
    OP(convert, .output = b->y, .input = b->x, .count = ROWS * 4 * C, .dtype = LS_BF16);
    OP(convert, .output = b->z, .input = b->z, .count = ROWS * 4 * C, .dtype = LS_BF16);
    OP(convert, .output = b->v, .input = b->w, .count = PARAMETERS, .dtype = LS_BF16);
    MEASURE("bf16: from fp32", 0, 1.5 * n, 0,
            OP(convert, .output = b->d, .input = b->x, .count = ROWS * C, .dtype = LS_BF16));
    MEASURE("bf16: layernorm forward", 0, n, 0,
            OP(layernorm_forward, .output = b->d, .mean = b->mean, .rstd = b->rstd, .input = b->y, .weight = b->v,
               .bias = b->v, .rows = ROWS, .columns = C, .epsilon = 1e-5f, .dtype = LS_BF16));
    MEASURE("bf16: layernorm backward, accumulating", 0, 2 * n, 0,
            OP(layernorm_backward, .input_gradient = b->d, .weight_gradient = b->dw, .bias_gradient = b->db,
               .output_gradient = b->z, .input = b->y, .weight = b->v, .mean = b->mean, .rstd = b->rstd, .rows = ROWS,
               .columns = C, .accumulate_input = true, .dtype = LS_BF16));
    MEASURE("bf16: gelu forward, 4C", 0, 4 * n, 0,
            OP(gelu_forward, .output = b->d, .input = b->y, .count = ROWS * 4 * C, .dtype = LS_BF16));
    MEASURE("bf16: gelu backward, 4C", 0, 6 * n, 0,
            OP(gelu_backward, .input_gradient = b->d, .output_gradient = b->z, .input = b->y, .count = ROWS * 4 * C,
               .dtype = LS_BF16));
    MEASURE("bf16: swiglu backward, 2C", 0, 5 * n, 0,
            OP(swiglu_backward, .gate_up_gradient = b->d, .output_gradient = b->z, .gate_up = b->y, .rows = ROWS,
               .columns = 2 * C, .dtype = LS_BF16));
    MEASURE("bf16: add", 0, 1.5 * n, 0,
            OP(add, .sum = b->d, .a = b->y, .b = b->z, .count = ROWS * C, .dtype = LS_BF16));
    MEASURE("bf16: bias gradient, 4C", 0, 2 * n, 0,
            OP(bias_backward, .bias_gradient = b->db, .output_gradient = b->z, .rows = ROWS, .columns = 4 * C,
               .dtype = LS_BF16));
    MEASURE("bf16: cross-entropy + gradient", 0, 2.0 * ROWS * V * 2, 0,
            OP(cross_entropy, .logits = b->d, .loss = &b->scalar, .targets = b->tokens, .gradient_scale = &b->one,
               .row_loss = b->rstd, .rows = ROWS, .vocabulary = V, .stride = V, .gradient = true, .dtype = LS_BF16));
}

static void report(const struct bench *b) {
    const double flops = b->rows[0].flops / b->rows[0].seconds, rate_copy = b->rows[1].bytes / b->rows[1].seconds;
    double total = 0.0, floor = 0.0;
    for (int i = 0; i < b->row_count; i++)
        total += b->rows[i].calls * b->rows[i].seconds, floor += b->rows[i].calls * b->rows[i].flops / flops;
    printf("%-38s %9s %9s %7s %7s\n", "kernel", "us", "rate", "of peak", "of step");
    for (int i = 0; i < b->row_count; i++) {
        const struct row r = b->rows[i];
        const double r_rate = (r.flops > 0 ? r.flops : r.bytes) / r.seconds;
        printf("%-38s %9.1f %6.1f %s %6.0f%% %6.1f%%\n", r.name, 1e6 * r.seconds, 1e-9 * r_rate,
               r.flops > 0 ? "GF" : "GB", 100.0 * r_rate / (r.flops > 0 ? flops : rate_copy),
               100.0 * r.calls * r.seconds / total);
    }
    printf("step of %d tokens, %d layers: %.2f ms; products alone at the peak rate %.2f ms; ratio %.2f\n", ROWS, LAYERS,
           1e3 * total, 1e3 * floor, total / floor);
}

int main(int argc, char **argv) {
    struct ls_device *device;
    struct ls_error error;
    static struct bench bench;
    enum ls_code code = ls_device_create_cpu(argc > 1 ? atoi(argv[1]) : 1, LS_STREAMS_EAGER, &device, &error);
    if (code == LS_OK) {
        prepare(&bench, device);
        measure_products(&bench);
        measure_attention(&bench);
        measure_rows(&bench);
        measure_embedding_and_loss(&bench);
        measure_updates(&bench);
        measure_bf16(&bench);
        code = ls_stream_synchronize(bench.stream, &error);
    }
    if (code != LS_OK) {
        fprintf(stderr, "%s\n", error.text);
        return code;
    }
    report(&bench);
    return 0;
}
