/* Rates of the CPU kernels at the shapes of a small model, beside a large matrix product and a large copy measured in
 * the same run: build/scripts/bench/kernels [threads] Each row: the best of a few repetitions, GFLOP/s against the
 * product or GB/s against the copy, and the share of a training step that the kernel's calls would take, were the step
 * made of these rows alone. */
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

static struct row rows[64];
static int row_count;

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
        rows[row_count++] = (struct row){label, flop_count, byte_count, call_count, best};                             \
    } while (0)

#define GEMM(label, calls, M, N, K, ...)                                                                               \
    MEASURE(                                                                                                           \
        label, 2.0 * (M) * (N) * (K), 0, calls,                                                                        \
        ls_op(s, gemm, .c = y, .a = x, .b = w, .m = M, .n = N, .k = K, .ldc = N, .bias = w, .aux = z, __VA_ARGS__))

int main(int argc, char **argv) {
    struct ls_device *device;
    struct ls_error error;
    if (ls_device_create_cpu(argc > 1 ? atoi(argv[1]) : 1, LS_STREAMS_EAGER, &device, &error) != LS_OK) {
        fprintf(stderr, "%s\n", error.text);
        return error.code;
    }
    struct ls_stream *s = ls_stream_create(device, false);
    const size_t bytes = (size_t)ROWS * 4 * C * sizeof(float);
    float *x = ls_device_allocate(device, bytes), *y = ls_device_allocate(device, bytes),
          *z = ls_device_allocate(device, bytes);
    float *w = ls_device_allocate(device, (size_t)PARAMETERS * 4),
          *m = ls_device_allocate(device, (size_t)PARAMETERS * 4);
    float *v = ls_device_allocate(device, (size_t)PARAMETERS * 4),
          *g = ls_device_allocate(device, (size_t)PARAMETERS * 4);
    float *lse = ls_device_allocate(device, (size_t)ROWS * NH * 4), *mean = ls_device_allocate(device, ROWS * 4);
    float *rstd = ls_device_allocate(device, ROWS * 4), *dw = ls_device_allocate(device, 4 * C * 4),
          *db = ls_device_allocate(device, 4 * C * 4);
    int32_t *tokens = ls_device_allocate(device, ROWS * 4);
    const float one = 1.0f, rate = 1e-9f;
    const int64_t step = 1;
    double scalar = 0.0;
    for (int i = 0; i < ROWS; i++) tokens[i] = i * 7919 % V;
    ls_op(s, initialize, .output = x, .seed = 1, .count = ROWS * 4 * C, .deviation = 1.0f);
    ls_op(s, initialize, .output = z, .seed = 2, .count = ROWS * 4 * C, .deviation = 1.0f);
    ls_op(s, initialize, .output = w, .seed = 3, .count = PARAMETERS, .deviation = 0.02f);
    ls_op(s, initialize, .output = g, .seed = 4, .count = PARAMETERS, .deviation = 0.02f);

    GEMM("peak: product 1024^3", 0, 1024, 1024, 1024, .lda = 1024, .ldb = 1024);
    MEASURE("peak: copy", 0, 2.0 * (double)bytes, 0, ls_copy(s, y, x, bytes));
    GEMM("qkv forward + bias", LAYERS, ROWS, 3 * C, C, .lda = C, .ldb = C, .transpose_b = true,
         .epilogue = LS_EPILOGUE_BIAS);
    GEMM("projection forward + bias + residual", LAYERS, ROWS, C, C, .lda = C, .ldb = C, .transpose_b = true,
         .epilogue = LS_EPILOGUE_BIAS, .residual = z);
    GEMM("fc forward + bias + gelu", LAYERS, ROWS, 4 * C, C, .lda = C, .ldb = C, .transpose_b = true,
         .epilogue = LS_EPILOGUE_BIAS_GELU);
    GEMM("fc projection forward + bias + residual", LAYERS, ROWS, C, 4 * C, .lda = 4 * C, .ldb = 4 * C,
         .transpose_b = true, .epilogue = LS_EPILOGUE_BIAS, .residual = z);
    GEMM("head forward", 1, ROWS, V, C, .lda = C, .ldb = C, .transpose_b = true);
    GEMM("qkv input gradient", LAYERS, ROWS, C, 3 * C, .lda = 3 * C, .ldb = C);
    GEMM("projection input gradient", LAYERS, ROWS, C, C, .lda = C, .ldb = C);
    GEMM("fc input gradient", LAYERS, ROWS, C, 4 * C, .lda = 4 * C, .ldb = C);
    GEMM("fc projection input gradient * gelu'", LAYERS, ROWS, 4 * C, C, .lda = C, .ldb = 4 * C,
         .epilogue = LS_EPILOGUE_GELU_GRAD);
    GEMM("head input gradient", 1, ROWS, C, V, .lda = V, .ldb = C);
    MEASURE("qkv weight gradient", 2.0 * ROWS * 3 * C * C, 0, LAYERS,
            ls_op(s, gemm, .c = g, .a = x, .b = z, .m = 3 * C, .n = C, .k = ROWS, .lda = 3 * C, .ldb = C, .ldc = C,
                  .transpose_a = true, .accumulate = true));
    MEASURE("projection weight gradient", 2.0 * ROWS * C * C, 0, LAYERS,
            ls_op(s, gemm, .c = g, .a = x, .b = z, .m = C, .n = C, .k = ROWS, .lda = C, .ldb = C, .ldc = C,
                  .transpose_a = true, .accumulate = true));
    MEASURE("fc weight gradient", 2.0 * ROWS * 4 * C * C, 0, LAYERS,
            ls_op(s, gemm, .c = g, .a = x, .b = z, .m = 4 * C, .n = C, .k = ROWS, .lda = 4 * C, .ldb = C, .ldc = C,
                  .transpose_a = true, .accumulate = true));
    MEASURE("fc projection weight gradient", 2.0 * ROWS * 4 * C * C, 0, LAYERS,
            ls_op(s, gemm, .c = g, .a = x, .b = z, .m = C, .n = 4 * C, .k = ROWS, .lda = C, .ldb = 4 * C, .ldc = 4 * C,
                  .transpose_a = true, .accumulate = true));
    MEASURE("head weight gradient", 2.0 * ROWS * V * C, 0, 1,
            ls_op(s, gemm, .c = g, .a = x, .b = z, .m = V, .n = C, .k = ROWS, .lda = V, .ldb = C, .ldc = C,
                  .transpose_a = true, .accumulate = true));
    const double attention = 4.0 * B * NH * HD * T * (T + 1) / 2; /* the visible half */
    MEASURE("attention forward", attention, 0, LAYERS,
            ls_op(s, attention_forward, .output = y, .lse = lse, .q = x, .k = x + C, .v = x + 2 * C, .batch = B,
                  .query_length = T, .key_length = T, .heads = NH, .kv_heads = NH, .head_size = HD, .q_stride = 3 * C,
                  .kv_stride = 3 * C, .output_stride = C, .q_batch_stride = T * 3 * C, .kv_batch_stride = T * 3 * C,
                  .output_batch_stride = T * C, .scale = 0.125f));
    float *d = ls_device_allocate(device, bytes);
    MEASURE("attention backward", 2.5 * attention, 0, LAYERS,
            ls_op(s, attention_backward, .q_gradient = d, .k_gradient = d + C, .v_gradient = d + 2 * C,
                  .output_gradient = z, .output = y, .q = x, .k = x + C, .v = x + 2 * C, .lse = lse, .batch = B,
                  .length = T, .heads = NH, .kv_heads = NH, .head_size = HD, .q_stride = 3 * C, .kv_stride = 3 * C,
                  .output_stride = C, .q_batch_stride = T * 3 * C, .kv_batch_stride = T * 3 * C,
                  .output_batch_stride = T * C, .scale = 0.125f));
    const double n = (double)ROWS * C * 4;
    MEASURE("layernorm forward", 0, 2 * n, 2 * LAYERS,
            ls_op(s, layernorm_forward, .output = y, .mean = mean, .rstd = rstd, .input = x, .weight = w, .bias = w,
                  .rows = ROWS, .columns = C, .epsilon = 1e-5f));
    MEASURE("layernorm backward, accumulating", 0, 4 * n, 2 * LAYERS,
            ls_op(s, layernorm_backward, .input_gradient = d, .weight_gradient = dw, .bias_gradient = db,
                  .output_gradient = z, .input = x, .weight = w, .mean = mean, .rstd = rstd, .rows = ROWS, .columns = C,
                  .accumulate_input = true));
    MEASURE("bias gradient, 4C", 0, 4 * n, LAYERS,
            ls_op(s, bias_backward, .bias_gradient = db, .output_gradient = z, .rows = ROWS, .columns = 4 * C));
    MEASURE("bias gradient, 3C", 0, 3 * n, LAYERS,
            ls_op(s, bias_backward, .bias_gradient = db, .output_gradient = z, .rows = ROWS, .columns = 3 * C));
    MEASURE("bias gradient, C", 0, n, 2 * LAYERS,
            ls_op(s, bias_backward, .bias_gradient = db, .output_gradient = z, .rows = ROWS, .columns = C));
    MEASURE("gelu forward, 4C", 0, 8 * n, 0, ls_op(s, gelu_forward, .output = y, .input = x, .count = ROWS * 4 * C));
    MEASURE("gelu backward, 4C", 0, 12 * n, 0,
            ls_op(s, gelu_backward, .input_gradient = y, .output_gradient = z, .input = x, .count = ROWS * 4 * C));
    MEASURE("swiglu forward, 2C", 0, 6 * n, 0,
            ls_op(s, swiglu_forward, .output = y, .gate_up = x, .rows = ROWS, .columns = 2 * C));
    MEASURE("swiglu backward, 2C", 0, 10 * n, 0,
            ls_op(s, swiglu_backward, .gate_up_gradient = d, .output_gradient = z, .gate_up = x, .rows = ROWS,
                  .columns = 2 * C));
    MEASURE("add", 0, 3 * n, 0, ls_op(s, add, .sum = y, .a = x, .b = z, .count = ROWS * C));
    MEASURE("embedding forward", 0, 3 * n, 1,
            ls_op(s, embedding_forward, .output = y, .tokens = tokens, .token_table = w, .position_table = x,
                  .batch = B, .length = T, .channels = C));
    MEASURE("embedding backward", 0, 5 * n, 1,
            ls_op(s, embedding_backward, .token_gradient = g, .position_gradient = d, .output_gradient = z,
                  .tokens = tokens, .batch = B, .length = T, .channels = C, .vocabulary = V));
    MEASURE("cross-entropy + gradient", 0, 2.0 * ROWS * V * 4, 1,
            ls_op(s, cross_entropy, .logits = d, .loss = &scalar, .targets = tokens, .gradient_scale = &one,
                  .row_loss = rstd, .rows = ROWS, .vocabulary = V, .stride = V, .gradient = true));
    MEASURE("squared norm", 0, 4.0 * PARAMETERS, 1,
            ls_op(s, squared_norm, .result = &scalar, .input = g, .count = PARAMETERS, .partial = (double *)y));
    MEASURE("adamw", 0, 28.0 * PARAMETERS, 1,
            ls_op(s, update, .parameter = w, .m = m, .v = v, .gradient = g, .factor = &one, .learning_rate = &rate,
                  .step = &step, .count = PARAMETERS, .decay_count = PARAMETERS, .beta1 = 0.9f, .beta2 = 0.95f,
                  .epsilon = 1e-8f, .weight_decay = 0.1f));
    ls_op(s, convert, .output = y, .input = w, .count = PARAMETERS, .dtype = LS_BF16);
    MEASURE("adamw and a copy in bf16", 0, 30.0 * PARAMETERS, 0,
            ls_op(s, update, .parameter = w, .low_precision = y, .m = m, .v = v, .gradient = g, .factor = &one,
                  .learning_rate = &rate, .step = &step, .count = PARAMETERS, .decay_count = PARAMETERS, .beta1 = 0.9f,
                  .beta2 = 0.95f, .epsilon = 1e-8f, .weight_decay = 0.1f, .dtype = LS_BF16));
    MEASURE("adamw in bf16, rounding stochastically", 0, 24.0 * PARAMETERS, 0,
            ls_op(s, update, .low_precision = y, .m = m, .v = v, .gradient = g, .factor = &one, .learning_rate = &rate,
                  .step = &step, .count = PARAMETERS, .decay_count = PARAMETERS, .beta1 = 0.9f, .beta2 = 0.95f,
                  .epsilon = 1e-8f, .weight_decay = 0.1f, .dtype = LS_BF16));
    const struct ls_muon_matrix matrix = {.x = x,
                                          .result = y,
                                          .rows = C,
                                          .columns = 4 * C,
                                          .gram = v,
                                          .powers = m,
                                          .squared = &scalar,
                                          .partial = (double *)lse};
    MEASURE("muon: C x 4C made orthogonal", ls_muon_flops(C, 4 * C), 0, 0, ls_muon_orthogonalize(s, &matrix));
    MEASURE("initialize", 0, 4.0 * PARAMETERS, 0,
            ls_op(s, initialize, .output = m, .seed = 3, .count = PARAMETERS, .deviation = 0.02f));
    /* In bf16, in as many elements, whose values are no longer those of the rows above. */
    ls_op(s, convert, .output = y, .input = x, .count = ROWS * 4 * C, .dtype = LS_BF16);
    ls_op(s, convert, .output = z, .input = z, .count = ROWS * 4 * C, .dtype = LS_BF16);
    ls_op(s, convert, .output = v, .input = w, .count = PARAMETERS, .dtype = LS_BF16);
    MEASURE("bf16: from fp32", 0, 1.5 * n, 0,
            ls_op(s, convert, .output = d, .input = x, .count = ROWS * C, .dtype = LS_BF16));
    MEASURE("bf16: layernorm forward", 0, n, 0,
            ls_op(s, layernorm_forward, .output = d, .mean = mean, .rstd = rstd, .input = y, .weight = v, .bias = v,
                  .rows = ROWS, .columns = C, .epsilon = 1e-5f, .dtype = LS_BF16));
    MEASURE("bf16: layernorm backward, accumulating", 0, 2 * n, 0,
            ls_op(s, layernorm_backward, .input_gradient = d, .weight_gradient = dw, .bias_gradient = db,
                  .output_gradient = z, .input = y, .weight = v, .mean = mean, .rstd = rstd, .rows = ROWS, .columns = C,
                  .accumulate_input = true, .dtype = LS_BF16));
    MEASURE("bf16: gelu forward, 4C", 0, 4 * n, 0,
            ls_op(s, gelu_forward, .output = d, .input = y, .count = ROWS * 4 * C, .dtype = LS_BF16));
    MEASURE("bf16: gelu backward, 4C", 0, 6 * n, 0,
            ls_op(s, gelu_backward, .input_gradient = d, .output_gradient = z, .input = y, .count = ROWS * 4 * C,
                  .dtype = LS_BF16));
    MEASURE("bf16: swiglu backward, 2C", 0, 5 * n, 0,
            ls_op(s, swiglu_backward, .gate_up_gradient = d, .output_gradient = z, .gate_up = y, .rows = ROWS,
                  .columns = 2 * C, .dtype = LS_BF16));
    MEASURE("bf16: add", 0, 1.5 * n, 0, ls_op(s, add, .sum = d, .a = y, .b = z, .count = ROWS * C, .dtype = LS_BF16));
    MEASURE("bf16: bias gradient, 4C", 0, 2 * n, 0,
            ls_op(s, bias_backward, .bias_gradient = db, .output_gradient = z, .rows = ROWS, .columns = 4 * C,
                  .dtype = LS_BF16));
    MEASURE("bf16: cross-entropy + gradient", 0, 2.0 * ROWS * V * 2, 0,
            ls_op(s, cross_entropy, .logits = d, .loss = &scalar, .targets = tokens, .gradient_scale = &one,
                  .row_loss = rstd, .rows = ROWS, .vocabulary = V, .stride = V, .gradient = true, .dtype = LS_BF16));
    if (ls_stream_synchronize(s, &error) != LS_OK) {
        fprintf(stderr, "%s\n", error.text);
        return error.code;
    }

    const double flops = rows[0].flops / rows[0].seconds, rate_copy = rows[1].bytes / rows[1].seconds;
    double total = 0.0, floor = 0.0;
    for (int i = 0; i < row_count; i++)
        total += rows[i].calls * rows[i].seconds, floor += rows[i].calls * rows[i].flops / flops;
    printf("%-38s %9s %9s %7s %7s\n", "kernel", "us", "rate", "of peak", "of step");
    for (int i = 0; i < row_count; i++) {
        const struct row r = rows[i];
        const double r_rate = (r.flops > 0 ? r.flops : r.bytes) / r.seconds;
        printf("%-38s %9.1f %6.1f %s %6.0f%% %6.1f%%\n", r.name, 1e6 * r.seconds, 1e-9 * r_rate,
               r.flops > 0 ? "GF" : "GB", 100.0 * r_rate / (r.flops > 0 ? flops : rate_copy),
               100.0 * r.calls * r.seconds / total);
    }
    printf("step of %d tokens, %d layers: %.2f ms; products alone at the peak rate %.2f ms; ratio %.2f\n", ROWS, LAYERS,
           1e3 * total, 1e3 * floor, total / floor);
    return 0;
}
