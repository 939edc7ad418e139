/* Rates of a GPU's kernels at the shapes of GPT-2 124M in bf16, beside a large product and a large copy measured in the
 * same run: build/scripts/bench/gpu_kernels [--tiny], a Markdown table. A row's time is the mean of its repetitions
 * between two events; its rate is against the product's (FLOPs) or the copy's (bytes read and written); its share is of
 * a step made of these rows alone. --tiny takes small shapes, to try the program where kernels are emulated. */
#include "worker/device/cuda/stream.h"
#include "worker/model/model.h"
#include "worker/optim/muon.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_MAX = 64, REPETITIONS = 10 };

struct shape {
    int64_t B, T, C, NH, V, layers, square, copy_bytes;
};

struct row {
    const char *name;
    double flops, bytes, calls; /* of one call; calls in a step */
    double seconds;
};

struct buffers {
    uint16_t *x, *y, *z, *w, *d; /* [most] */
    float *master, *m, *v, *g;   /* [parameters] */
    float *lse, *mean, *rstd, *row_loss, *one;
    int32_t *tokens, *document_start;
    double *sum, *partial;
    int64_t *step;
    void *workspace;
    int64_t rows, stride, chunk, parameters, most; /* stride: of rows of logits; chunk: of rows, that the head takes */
};

struct bench {
    struct ls_device *device;
    struct ls_stream *stream;
    cudaEvent_t begin, end;
    int repetitions;
    bool timed; /* else the shapes of products are only noted */
    struct shape shape;
    struct buffers b;
    struct row rows[ROWS_MAX];
    int count;
};

static void check(enum ls_code code, const struct ls_error *error) {
    if (!code) return;
    fprintf(stderr, "%s\n", error->text);
    exit(code);
}

static void *take(struct bench *bench, int64_t bytes) {
    void *memory = ls_device_allocate(bench->device, (size_t)bytes);
    if (memory) return memory;
    fprintf(stderr, "gpu_kernels: the GPU has no %lld bytes left\n", (long long)bytes);
    exit(LS_MEMORY);
}

/* Times what is between begin and end: once to warm up, then REPETITIONS times. */
#define MEASURE(label, flop_count, byte_count, call_count, ...)                                                        \
    do {                                                                                                               \
        __VA_ARGS__;                                                                                                   \
        if (!bench->timed) break;                                                                                      \
        cudaEventRecord(bench->begin, ls_cuda_stream(s));                                                              \
        for (int repetition = 0; repetition < bench->repetitions; repetition++) {                                      \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
        cudaEventRecord(bench->end, ls_cuda_stream(s));                                                                \
        finish_row(bench, (struct row){label, flop_count, byte_count, call_count, 0});                                 \
    } while (0)

static void finish_row(struct bench *bench, struct row row) {
    struct ls_error error;
    float milliseconds = 0;
    check(ls_stream_synchronize(bench->stream, &error), &error);
    cudaEventElapsedTime(&milliseconds, bench->begin, bench->end);
    row.seconds = 1e-3 * (double)milliseconds / bench->repetitions;
    bench->rows[bench->count++] = row;
}

#define GEMM(label, calls, M, N, K, ...)                                                                               \
    MEASURE(label, 2.0 * (double)(M) * (double)(N) * (double)(K), 0, calls,                                            \
            ls_op(s, gemm, .a = x, .b = w, .m = M, .n = N, .k = K, .dtype = LS_BF16, __VA_ARGS__))

/* How a model of this shape takes its logits, and the scratch that its operations share. */
static void take_scratch(struct bench *bench, struct buffers *b) {
    const struct shape *shape = &bench->shape;
    const struct ls_config config = {.model = {.model_type = LS_GPT2,
                                               .hidden_size = shape->C,
                                               .num_hidden_layers = shape->layers,
                                               .num_attention_heads = shape->NH,
                                               .vocab_size = shape->V,
                                               .tie_word_embeddings = true},
                                     .data.sequence_length = shape->T,
                                     .precision = LS_PRECISION_BF16};
    struct ls_model *model;
    struct ls_error error;
    check(ls_model_create(&config, &model, &error), &error);
    b->chunk = ls_model_head_chunk(model, bench->device, b->rows);
    b->stride = ls_model_logits_stride(model);
    b->workspace = take(bench, ls_model_scratch_bytes(model, bench->device, shape->B));
    ls_model_destroy(model);
}

/* The vocabulary as PyTorch's models have it, so that rows of logits and what is summed over are multiples of 8. */
static int64_t padded_vocabulary(const struct shape *shape) {
    return (shape->V + 63) / 64 * 64;
}

static void take_buffers(struct bench *bench) {
    const struct shape *shape = &bench->shape;
    struct buffers b = {.rows = shape->B * shape->T};
    take_scratch(bench, &b);
    b.parameters = 12 * shape->C * shape->C * shape->layers + shape->V * shape->C;
    const int64_t padded = padded_vocabulary(shape);
    const int64_t wanted[] = {
        shape->square * shape->square, b.rows * 4 * shape->C, b.chunk * b.stride, b.chunk * padded,
        shape->copy_bytes / 2,         padded * shape->C,     b.parameters};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (wanted[i] > b.most) b.most = wanted[i];
    uint16_t **const halves[] = {&b.x, &b.y, &b.z, &b.w, &b.d};
    for (int i = 0; i < 5; i++) *halves[i] = take(bench, 2 * b.most);
    float **const floats[] = {&b.master, &b.m, &b.v, &b.g};
    for (int i = 0; i < 4; i++) *floats[i] = take(bench, 4 * b.parameters);
    b.lse = take(bench, 4 * b.rows * shape->NH);
    b.mean = take(bench, 4 * b.rows);
    b.rstd = take(bench, 4 * b.rows);
    b.row_loss = take(bench, 4 * b.rows);
    b.tokens = take(bench, 4 * b.rows);
    b.document_start = take(bench, 4 * b.rows);
    b.partial = take(bench, (b.parameters + 1023) / 1024 * 8);
    b.one = take(bench, 8);
    b.sum = take(bench, 8);
    b.step = take(bench, 8);
    bench->b = b;
}

static void fill_buffers(struct bench *bench) {
    const struct buffers *b = &bench->b;
    struct ls_stream *s = bench->stream;
    int32_t *host = malloc((size_t)b->rows * sizeof *host);
    struct ls_error error;
    if (!host) exit(LS_MEMORY);
    for (int64_t i = 0; i < b->rows; i++) host[i] = (int32_t)(i * 7919 % bench->shape.V);
    ls_copy_to_device(s, b->tokens, host, (size_t)b->rows * sizeof *host);
    ls_copy_to_device(s, b->one, &(float){1e-4f}, sizeof(float));
    ls_copy_to_device(s, b->step, &(int64_t){1}, sizeof(int64_t));
    ls_op(s, initialize, .output = b->master, .seed = 1, .count = b->parameters, .deviation = 0.02f);
    ls_op(s, initialize, .output = b->g, .seed = 2, .count = b->parameters, .deviation = 1e-3f);
    uint16_t *const filled[] = {b->x, b->z, b->w, b->d};
    for (int i = 0; i < 4; i++)
        for (int64_t first = 0; first < b->most; first += b->parameters)
            ls_op(s, convert, .output = filled[i] + first, .input = b->master,
                  .count = b->most - first < b->parameters ? b->most - first : b->parameters, .dtype = LS_BF16);
    check(ls_stream_synchronize(s, &error), &error);
    free(host);
}

static void measure_products(struct bench *bench) {
    struct ls_stream *s = bench->stream;
    const struct buffers *b = &bench->b;
    const int64_t C = bench->shape.C, V = bench->shape.V, L = bench->shape.layers, Q = bench->shape.square;
    const int64_t rows = b->rows, chunk = b->chunk, stride = b->stride;
    uint16_t *x = b->x, *y = b->y, *z = b->z, *w = b->w;
    float *g = b->g;
    GEMM("peak: large product", 0, Q, Q, Q, .c = y, .lda = Q, .ldb = Q, .ldc = Q, .transpose_b = true);
    MEASURE("peak: large copy", 0, 2.0 * (double)bench->shape.copy_bytes, 0,
            ls_copy(s, y, z, (size_t)bench->shape.copy_bytes));
    GEMM("qkv forward + bias", (double)L, rows, 3 * C, C, .c = y, .lda = C, .ldb = 3 * C, .ldc = 3 * C,
         .epilogue = LS_EPILOGUE_BIAS, .bias = w);
    GEMM("projection forward + bias + residual", (double)L, rows, C, C, .c = y, .lda = C, .ldb = C, .ldc = C,
         .epilogue = LS_EPILOGUE_BIAS, .bias = w, .residual = z);
    GEMM("fc forward + bias + gelu", (double)L, rows, 4 * C, C, .c = y, .lda = C, .ldb = 4 * C, .ldc = 4 * C,
         .epilogue = LS_EPILOGUE_BIAS_GELU, .bias = w, .aux = z);
    GEMM("fc projection forward + bias + residual", (double)L, rows, C, 4 * C, .c = y, .lda = 4 * C, .ldb = C, .ldc = C,
         .epilogue = LS_EPILOGUE_BIAS, .bias = w, .residual = z);
    GEMM("head forward, a chunk", (double)rows / (double)chunk, chunk, V, C, .c = y, .lda = C, .ldb = C, .ldc = stride,
         .transpose_b = true);
    GEMM("qkv input gradient", (double)L, rows, C, 3 * C, .c = y, .lda = 3 * C, .ldb = 3 * C, .ldc = C,
         .transpose_b = true);
    GEMM("projection input gradient", (double)L, rows, C, C, .c = y, .lda = C, .ldb = C, .ldc = C, .transpose_b = true);
    GEMM("fc input gradient", (double)L, rows, C, 4 * C, .c = y, .lda = 4 * C, .ldb = 4 * C, .ldc = C,
         .transpose_b = true);
    GEMM("fc projection input gradient, gelu'", (double)L, rows, 4 * C, C, .c = y, .lda = C, .ldb = C, .ldc = 4 * C,
         .transpose_b = true, .epilogue = LS_EPILOGUE_GELU_GRAD, .aux = z);
    GEMM("head input gradient, a chunk", (double)rows / (double)chunk, chunk, C, V, .c = y, .lda = stride, .ldb = C,
         .ldc = C);
    GEMM("qkv weight + bias gradient", (double)L, C, 3 * C, rows, .c = g, .lda = C, .ldb = 3 * C, .ldc = 3 * C,
         .transpose_a = true, .accumulate = true, .c_fp32 = true, .bias_gradient = b->v, .workspace = b->workspace);
    GEMM("projection weight + bias gradient", (double)L, C, C, rows, .c = g, .lda = C, .ldb = C, .ldc = C,
         .transpose_a = true, .accumulate = true, .c_fp32 = true, .bias_gradient = b->v, .workspace = b->workspace);
    GEMM("fc weight + bias gradient", (double)L, C, 4 * C, rows, .c = g, .lda = C, .ldb = 4 * C, .ldc = 4 * C,
         .transpose_a = true, .accumulate = true, .c_fp32 = true, .bias_gradient = b->v, .workspace = b->workspace);
    GEMM("fc projection weight + bias gradient", (double)L, 4 * C, C, rows, .c = g, .lda = 4 * C, .ldb = C, .ldc = C,
         .transpose_a = true, .accumulate = true, .c_fp32 = true, .bias_gradient = b->v, .workspace = b->workspace);
    GEMM("head weight gradient, a chunk", (double)rows / (double)chunk, V, C, chunk, .c = g, .lda = stride, .ldb = C,
         .ldc = C, .transpose_a = true, .accumulate = true, .c_fp32 = true);
}

/* The head's products once more, over a vocabulary of whole multiples of 64: what an odd one costs. Not in a step. */
static void measure_padded_head(struct bench *bench) {
    struct ls_stream *s = bench->stream;
    const int64_t C = bench->shape.C, V = padded_vocabulary(&bench->shape), chunk = bench->b.chunk;
    uint16_t *x = bench->b.x, *y = bench->b.y, *w = bench->b.w;
    GEMM("head forward, a chunk, V to 64", 0, chunk, V, C, .c = y, .lda = C, .ldb = C, .ldc = V, .transpose_b = true);
    GEMM("head input gradient, a chunk, V to 64", 0, chunk, C, V, .c = y, .lda = V, .ldb = C, .ldc = C);
    GEMM("head weight gradient, a chunk, V to 64", 0, V, C, chunk, .c = bench->b.g, .lda = V, .ldb = C, .ldc = C,
         .transpose_a = true, .accumulate = true, .c_fp32 = true);
}

static void measure_attention(struct bench *bench) {
    struct ls_stream *s = bench->stream;
    const struct buffers *b = &bench->b;
    const int64_t B = bench->shape.B, T = bench->shape.T, C = bench->shape.C, NH = bench->shape.NH, HD = C / NH;
    const int64_t L = bench->shape.layers;
    uint16_t *x = b->x, *y = b->y, *z = b->z, *d = b->d;
    float *lse = b->lse;
    /* The visible half of the scores, twice: q k^T and p v. */
    const double attention = 4.0 * (double)(B * NH * HD) * (double)T * (double)(T + 1) / 2;
    struct ls_op_attention_forward forward = {.output = y,
                                              .lse = lse,
                                              .q = x,
                                              .k = x + C,
                                              .v = x + 2 * C,
                                              .batch = B,
                                              .query_length = T,
                                              .key_length = T,
                                              .heads = NH,
                                              .kv_heads = NH,
                                              .head_size = HD,
                                              .q_stride = 3 * C,
                                              .kv_stride = 3 * C,
                                              .output_stride = C,
                                              .q_batch_stride = T * 3 * C,
                                              .kv_batch_stride = T * 3 * C,
                                              .output_batch_stride = T * C,
                                              .scale = 0.125f,
                                              .dtype = LS_BF16};
    struct ls_op_attention_backward backward = {.q_gradient = d,
                                                .k_gradient = d + C,
                                                .v_gradient = d + 2 * C,
                                                .output_gradient = z,
                                                .output = y,
                                                .q = x,
                                                .k = x + C,
                                                .v = x + 2 * C,
                                                .lse = lse,
                                                .batch = B,
                                                .length = T,
                                                .heads = NH,
                                                .kv_heads = NH,
                                                .head_size = HD,
                                                .q_stride = 3 * C,
                                                .kv_stride = 3 * C,
                                                .output_stride = C,
                                                .q_batch_stride = T * 3 * C,
                                                .kv_batch_stride = T * 3 * C,
                                                .output_batch_stride = T * C,
                                                .scale = 0.125f,
                                                .dtype = LS_BF16};
    forward.workspace = backward.workspace = b->workspace;
    MEASURE("attention forward", attention, 0, (double)L,
            ls_stream_submit(s, LS_OP_attention_forward, &forward, sizeof forward));
    MEASURE("attention backward", 2.5 * attention, 0, (double)L,
            ls_stream_submit(s, LS_OP_attention_backward, &backward, sizeof backward));
    /* Where documents may begin it is our kernels', whatever was chosen for the rows above; none begins here. */
    forward.document_start = backward.document_start = b->document_start;
    MEASURE("attention forward, our kernel", attention, 0, 0,
            ls_stream_submit(s, LS_OP_attention_forward, &forward, sizeof forward));
    MEASURE("attention backward, our kernels", 2.5 * attention, 0, 0,
            ls_stream_submit(s, LS_OP_attention_backward, &backward, sizeof backward));
}

static void measure_rest(struct bench *bench) {
    struct ls_stream *s = bench->stream;
    const struct buffers *b = &bench->b;
    const int64_t B = bench->shape.B, T = bench->shape.T, C = bench->shape.C, V = bench->shape.V,
                  L = bench->shape.layers;
    const int64_t rows = b->rows, chunk = b->chunk, stride = b->stride, parameters = b->parameters;
    uint16_t *x = b->x, *y = b->y, *z = b->z, *w = b->w, *d = b->d;
    float *g = b->g, *mean = b->mean, *rstd = b->rstd, *row_loss = b->row_loss, *one = b->one;
    double *sum = b->sum;
    const double n = 2.0 * (double)(rows * C), p = (double)parameters;
    MEASURE("layernorm forward", 0, 2 * n, 2.0 * (double)L,
            ls_op(s, layernorm_forward, .output = y, .mean = mean, .rstd = rstd, .input = x, .weight = w, .bias = w,
                  .rows = rows, .columns = C, .epsilon = 1e-5f, .dtype = LS_BF16));
    MEASURE("layernorm backward, accumulating", 0, 4 * n, 2.0 * (double)L,
            ls_op(s, layernorm_backward, .input_gradient = d, .workspace = b->workspace, .weight_gradient = g,
                  .bias_gradient = g + C, .output_gradient = z, .input = x, .weight = w, .mean = mean, .rstd = rstd,
                  .rows = rows, .columns = C, .accumulate_input = true, .dtype = LS_BF16));
    MEASURE("bias gradient alone, 4C", 0, 4 * n, 0,
            ls_op(s, bias_backward, .bias_gradient = g, .workspace = b->workspace, .output_gradient = z, .rows = rows,
                  .columns = 4 * C, .dtype = LS_BF16));
    MEASURE("bias gradient alone, 3C", 0, 3 * n, 0,
            ls_op(s, bias_backward, .bias_gradient = g, .workspace = b->workspace, .output_gradient = z, .rows = rows,
                  .columns = 3 * C, .dtype = LS_BF16));
    MEASURE("bias gradient alone, C", 0, n, 0,
            ls_op(s, bias_backward, .bias_gradient = g, .workspace = b->workspace, .output_gradient = z, .rows = rows,
                  .columns = C, .dtype = LS_BF16));
    MEASURE("embedding forward", 0, 2 * n, 1,
            ls_op(s, embedding_forward, .output = y, .tokens = b->tokens, .token_table = w, .position_table = z,
                  .batch = B, .length = T, .channels = C, .dtype = LS_BF16));
    MEASURE("embedding backward", 0, n + 8.0 * (double)(V * C), 1,
            ls_op(s, embedding_backward, .token_gradient = g, .workspace = b->workspace, .output_gradient = z,
                  .tokens = b->tokens, .batch = B, .length = T, .channels = C, .vocabulary = V, .dtype = LS_BF16));
    MEASURE("cross-entropy + gradient, a chunk", 0, 4.0 * (double)(chunk * V), (double)rows / (double)chunk,
            ls_op(s, cross_entropy, .logits = d, .loss = sum, .targets = b->tokens, .gradient_scale = one,
                  .row_loss = row_loss, .rows = chunk, .vocabulary = V, .stride = stride, .gradient = true,
                  .dtype = LS_BF16));
    MEASURE("squared norm", 0, 4 * p, 1,
            ls_op(s, squared_norm, .result = sum, .input = g, .count = parameters, .partial = b->partial));
    MEASURE("adamw", 0, 30 * p, 1,
            ls_op(s, update, .parameter = b->master, .m = b->m, .v = b->v, .low_precision = d, .gradient = g,
                  .factor = one, .learning_rate = one, .step = b->step, .count = parameters, .decay_count = 0,
                  .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .weight_decay = 0.1f, .dtype = LS_BF16));
    MEASURE("adamw, rounding stochastically", 0, 24 * p, 0,
            ls_op(s, update, .m = b->m, .v = b->v, .low_precision = d, .gradient = g, .factor = one,
                  .learning_rate = one, .step = b->step, .count = parameters, .decay_count = 0, .beta1 = 0.9f,
                  .beta2 = 0.95f, .epsilon = 1e-8f, .weight_decay = 0.1f, .dtype = LS_BF16));
    MEASURE("muon: momentum", 0, 14 * p, 0,
            ls_op(s, momentum, .m = b->m, .output = d, .gradient = g, .factor = one, .count = parameters, .beta = 0.95f,
                  .dtype = LS_BF16));
    const struct ls_muon_matrix matrix = {.x = x,
                                          .result = y,
                                          .rows = C,
                                          .columns = 4 * C,
                                          .gram = z,
                                          .powers = z + C * C,
                                          .squared = sum,
                                          .partial = b->partial,
                                          .any_order = true,
                                          .dtype = LS_BF16};
    MEASURE("muon: C x 4C made orthogonal", ls_muon_flops(C, 4 * C), 0, 0, ls_muon_orthogonalize(s, &matrix));
    MEASURE("muon: update", 0, 12 * p, 0,
            ls_op(s, update, .rule = LS_UPDATE_GIVEN, .parameter = b->master, .low_precision = d, .direction = d,
                  .factor = one, .learning_rate = one, .step = b->step, .count = parameters, .decay_count = 0,
                  .weight_decay = 0.1f, .scale = 1e-9f, .dtype = LS_BF16));
}

static void release_buffers(struct bench *bench) {
    const struct buffers *b = &bench->b;
    void *const all[] = {b->x,      b->y,   b->z,       b->w,    b->d,         b->master,        b->m,
                         b->v,      b->g,   b->lse,     b->mean, b->rstd,      b->row_loss,      b->one,
                         b->tokens, b->sum, b->partial, b->step, b->workspace, b->document_start};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) ls_device_free(bench->device, all[i]);
}

static void measure(struct bench *bench) {
    struct ls_error error;
    measure_products(bench);
    measure_padded_head(bench);
    measure_attention(bench);
    measure_rest(bench);
    check(ls_stream_synchronize(bench->stream, &error), &error);
}

static void print(const struct bench *bench) {
    const struct shape *shape = &bench->shape;
    const struct row *rows = bench->rows;
    const double flops = rows[0].flops / rows[0].seconds, bandwidth = rows[1].bytes / rows[1].seconds;
    double total = 0;
    for (int i = 0; i < bench->count; i++) total += rows[i].calls * rows[i].seconds;
    printf("%s; B%lld T%lld C%lld V%lld, %lld layers, bf16; %lld repetitions\n\n", ls_device_numerics_id(bench->device),
           (long long)shape->B, (long long)shape->T, (long long)shape->C, (long long)shape->V, (long long)shape->layers,
           (long long)bench->repetitions);
    printf("| kernel | us | rate | of the measured peak | of a step |\n|---|---|---|---|---|\n");
    for (int i = 0; i < bench->count; i++) {
        const bool product = rows[i].flops > 0;
        const double rate = (product ? rows[i].flops : rows[i].bytes) / rows[i].seconds;
        printf("| %s | %.1f | %.*f %s | %.0f %% | %.1f %% |\n", rows[i].name, 1e6 * rows[i].seconds, product ? 1 : 0,
               rate * (product ? 1e-12 : 1e-9), product ? "TFLOP/s" : "GB/s",
               100 * rate / (product ? flops : bandwidth), 100 * rows[i].calls * rows[i].seconds / total);
    }
    printf("| all calls of a step | %.1f | %.0f tokens/s | | |\n", 1e6 * total, (double)(shape->B * shape->T) / total);
}

int main(int argc, char **argv) {
    const bool tiny = argc > 1 && strcmp(argv[1], "--tiny") == 0;
    if (argc > 1 && !tiny) {
        fprintf(stderr, "usage: gpu_kernels [--tiny]\n");
        return LS_USAGE;
    }
    static struct bench bench = {.repetitions = REPETITIONS,
                                 .shape = {.B = 16,
                                           .T = 1024,
                                           .C = 768,
                                           .NH = 12,
                                           .V = 50257,
                                           .layers = 12,
                                           .square = 8192,
                                           .copy_bytes = INT64_C(1) << 30}};
    struct ls_error error;
    if (tiny) {
        bench.repetitions = 1;
        bench.shape =
            (struct shape){.B = 1, .T = 16, .C = 32, .NH = 2, .V = 131, .layers = 1, .square = 32, .copy_bytes = 4096};
    }
    check(ls_device_create_cuda(0, false, &bench.device, &error), &error);
    bench.stream = ls_stream_create(bench.device, false);
    if (!bench.stream || cudaEventCreate(&bench.begin) || cudaEventCreate(&bench.end)) return LS_MEMORY;
    /* As a worker does at its start: note products and attention, measure the ways to compute them, use the fastest. */
    void *choices = NULL;
    int64_t bytes = 0;
    bool whole;
    take_buffers(&bench);
    ls_device_rehearse(bench.device, true);
    measure(&bench);
    ls_device_rehearse(bench.device, false);
    check(ls_device_choose(bench.device, &choices, &bytes, &error), &error);
    check(ls_device_adopt(bench.device, choices, bytes, &whole, &error), &error);
    free(choices);
    fill_buffers(&bench);
    bench.timed = true;
    measure(&bench);
    print(&bench);
    release_buffers(&bench);
    cudaEventDestroy(bench.begin);
    cudaEventDestroy(bench.end);
    ls_stream_destroy(bench.stream);
    ls_device_destroy(bench.device);
    return 0;
}
