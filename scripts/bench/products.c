/* Rates of every matrix product of a training step, in one thread: by OpenBLAS, by oneDNN, and as the CPU device
 * computes it in fp32 and in bf16, with the time that a step of each model spends in them: build/scripts/bench/products
 * [small|baby|124M]...
 */
#include "worker/device/device.h"

#include <cblas.h>
#include <dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct model {
    const char *name;
    int64_t rows, channels, intermediate, vocabulary, layers, head_rows; /* head_rows: of a chunk of logits */
};

static const struct model models[] = {
    {"small", (int64_t)12 * 64, 128, 512, 65, 4, (int64_t)12 * 64},
    {"baby", (int64_t)64 * 256, 384, 1536, 65, 6, (int64_t)64 * 256},
    {"124M", (int64_t)8 * 256, 768, 3072, 50257, 12, 512},
};

struct product {
    const char *name;
    int64_t m, n, k;
    bool transpose_a, transpose_b, accumulate;
    double calls;
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum way { OPENBLAS, ONEDNN, DEVICE, DEVICE_BF16, WAYS };

/* a and b hold bf16 for DEVICE_BF16. */
static void multiply(enum way way, struct ls_stream *stream, const struct product *p, const float *a, const float *b,
                     float *c) {
    const int64_t lda = p->transpose_a ? p->m : p->k, ldb = p->transpose_b ? p->k : p->n;
    const float beta = p->accumulate ? 1.0f : 0.0f;
    switch (way) {
    case OPENBLAS:
        cblas_sgemm(CblasRowMajor, p->transpose_a ? CblasTrans : CblasNoTrans,
                    p->transpose_b ? CblasTrans : CblasNoTrans, (int)p->m, (int)p->n, (int)p->k, 1.0f, a, (int)lda, b,
                    (int)ldb, beta, c, (int)p->n);
        break;
    case ONEDNN:
        dnnl_sgemm(p->transpose_a ? 'T' : 'N', p->transpose_b ? 'T' : 'N', p->m, p->n, p->k, 1.0f, a, lda, b, ldb, beta,
                   c, p->n);
        break;
    default:
        ls_op(stream, gemm, .c = c, .a = a, .b = b, .m = p->m, .n = p->n, .k = p->k, .lda = lda, .ldb = ldb,
              .ldc = p->n, .transpose_a = p->transpose_a, .transpose_b = p->transpose_b, .accumulate = p->accumulate,
              .c_fp32 = p->accumulate, .dtype = way == DEVICE_BF16 ? LS_BF16 : LS_FP32);
        break;
    }
}

/* The best of at least three repetitions and 40 ms. */
static double seconds_of(enum way way, struct ls_stream *stream, const struct product *p, const float *a,
                         const float *b, float *c) {
    double best = 1e30, start = now();
    for (int repetition = 0; repetition < 3 || now() - start < 0.04; repetition++) {
        const double before = now();
        multiply(way, stream, p, a, b, c);
        const double seconds = now() - before;
        if (seconds < best) best = seconds;
    }
    return best;
}

static void bench(const struct model *model, struct ls_device *device) {
    const int64_t R = model->rows, C = model->channels, W = model->intermediate, V = model->vocabulary;
    const int64_t H = model->head_rows;
    const int64_t whole_chunks = (R + H - 1) / H;
    const double L = (double)model->layers, chunks = (double)whole_chunks;
    const struct product products[] = {
        {"qkv", R, 3 * C, C, .calls = L},
        {"projection", R, C, C, .calls = L},
        {"fc", R, W, C, .calls = L},
        {"fc projection", R, C, W, .calls = L},
        {"head", H, V, C, .transpose_b = true, .calls = chunks},
        {"qkv input gradient", R, C, 3 * C, .transpose_b = true, .calls = L},
        {"projection input gradient", R, C, C, .transpose_b = true, .calls = L},
        {"fc input gradient", R, C, W, .transpose_b = true, .calls = L},
        {"fc projection input gradient", R, W, C, .transpose_b = true, .calls = L},
        {"head input gradient", H, C, V, .calls = chunks},
        {"qkv weight gradient", C, 3 * C, R, .transpose_a = true, .accumulate = true, .calls = L},
        {"projection weight gradient", C, C, R, .transpose_a = true, .accumulate = true, .calls = L},
        {"fc weight gradient", C, W, R, .transpose_a = true, .accumulate = true, .calls = L},
        {"fc projection weight gradient", W, C, R, .transpose_a = true, .accumulate = true, .calls = L},
        {"head weight gradient", V, C, H, .transpose_a = true, .accumulate = true, .calls = chunks},
    };
    struct ls_stream *stream = ls_stream_create(device, false);
    const int64_t most = R * (W > 3 * C ? W : 3 * C), logits = H * V > V * C ? H * V : V * C;
    const size_t bytes = (size_t)(most > logits ? most : logits) * sizeof(float);
    float *a = ls_device_allocate(device, bytes), *b = ls_device_allocate(device, bytes),
          *c = ls_device_allocate(device, bytes), *low = ls_device_allocate(device, bytes);
    if (!stream || !a || !b || !c || !low) {
        fprintf(stderr, "products: no memory for %zu bytes, four times\n", bytes);
        exit(5);
    }
    for (size_t i = 0; i < bytes / sizeof(float); i++)
        a[i] = 1e-3f * (float)(i % 97), b[i] = 1e-3f * (float)(i % 89) - 0.04f;
    ls_op(stream, convert, .output = low, .input = a, .count = (int64_t)(bytes / sizeof(float)), .dtype = LS_BF16);
    printf("\n| %s: GFLOP/s in one thread | m | n | k | OpenBLAS | oneDNN | device | bf16 "
           "|\n|---|---|---|---|---|---|---|---|\n",
           model->name);
    double total[WAYS] = {0}, flops = 0;
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        const struct product *p = &products[i];
        double rates[WAYS];
        for (enum way way = OPENBLAS; way < WAYS; way++) {
            const bool narrow = way == DEVICE_BF16;
            const double seconds = seconds_of(way, stream, p, narrow ? low : a, narrow ? low : b, c);
            rates[way] = 2e-9 * (double)(p->m * p->n * p->k) / seconds;
            total[way] += p->calls * seconds;
        }
        flops += p->calls * 2.0 * (double)(p->m * p->n * p->k);
        printf("| %s | %d | %d | %d | %.0f | %.0f | %.0f | %.0f |\n", p->name, (int)p->m, (int)p->n, (int)p->k,
               rates[OPENBLAS], rates[ONEDNN], rates[DEVICE], rates[DEVICE_BF16]);
        fflush(stdout);
    }
    printf("| all of a step, %.4g GFLOP: seconds | | | | %.4g | %.4g | %.4g | %.4g |\n", 1e-9 * flops, total[OPENBLAS],
           total[ONEDNN], total[DEVICE], total[DEVICE_BF16]);
    ls_device_free(device, a);
    ls_device_free(device, b);
    ls_device_free(device, c);
    ls_device_free(device, low);
    ls_stream_destroy(stream);
}

int main(int argc, char **argv) {
    struct ls_device *device;
    struct ls_error error;
    omp_set_num_threads(1);
    if (ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, &error) != LS_OK) {
        fprintf(stderr, "%s\n", error.text);
        return error.code;
    }
    printf("%s\n", ls_device_numerics_id(device));
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        bool wanted = argc == 1;
        for (int j = 1; j < argc; j++) wanted |= strcmp(argv[j], models[i].name) == 0;
        if (wanted) bench(&models[i], device);
    }
    ls_device_destroy(device);
    return 0;
}
