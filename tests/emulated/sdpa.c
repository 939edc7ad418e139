/* Attention by cuDNN in pieces, over the stand-ins (LS_TEST_DEVICE=cuda): whatever the pieces, forward and backward are
 * those of our kernels. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#if defined(LS_CUDA) && defined(LS_CUDNN)

#include "worker/device/cpu/low_precision.h"
#include "worker/device/cuda/sdpa_plans.h"

#include <math.h>

enum { BATCH = 4, CHANNELS = 16 };

struct attention {
    struct ls_device *device;
    struct ls_stream *stream;
    int64_t length, rows, heads, kv_heads, row, output; /* rows: of all sequences; row, output: elements of one */
    uint16_t *qkv, *o, *d_o, *d_qkv;                    /* on the device */
    float *lse;
    int32_t *document_start; /* zeros */
    void *workspace;
};

static struct ls_op_attention_backward backward_of(const struct attention *a, int64_t batch) {
    return (struct ls_op_attention_backward){.q_gradient = a->d_qkv,
                                             .k_gradient = a->d_qkv + a->heads * CHANNELS,
                                             .v_gradient = a->d_qkv + (a->heads + a->kv_heads) * CHANNELS,
                                             .workspace = a->workspace,
                                             .output_gradient = a->d_o,
                                             .output = a->o,
                                             .q = a->qkv,
                                             .k = a->qkv + a->heads * CHANNELS,
                                             .v = a->qkv + (a->heads + a->kv_heads) * CHANNELS,
                                             .lse = a->lse,
                                             .batch = batch,
                                             .length = a->length,
                                             .heads = a->heads,
                                             .kv_heads = a->kv_heads,
                                             .head_size = CHANNELS,
                                             .q_stride = a->row,
                                             .kv_stride = a->row,
                                             .output_stride = a->output,
                                             .q_batch_stride = a->length * a->row,
                                             .kv_batch_stride = a->length * a->row,
                                             .output_batch_stride = a->length * a->output,
                                             .scale = 0.25f,
                                             .dtype = LS_BF16};
}

static struct ls_op_attention_forward forward_of(const struct attention *a, int64_t batch) {
    return (struct ls_op_attention_forward){.output = a->o,
                                            .workspace = a->workspace,
                                            .lse = a->lse,
                                            .q = a->qkv,
                                            .k = a->qkv + a->heads * CHANNELS,
                                            .v = a->qkv + (a->heads + a->kv_heads) * CHANNELS,
                                            .batch = batch,
                                            .query_length = a->length,
                                            .key_length = a->length,
                                            .heads = a->heads,
                                            .kv_heads = a->kv_heads,
                                            .head_size = CHANNELS,
                                            .q_stride = a->row,
                                            .kv_stride = a->row,
                                            .output_stride = a->output,
                                            .q_batch_stride = a->length * a->row,
                                            .kv_batch_stride = a->length * a->row,
                                            .output_batch_stride = a->length * a->output,
                                            .scale = 0.25f,
                                            .dtype = LS_BF16};
}

/* With document starts it is our kernels. */
static void run(const struct attention *a, int64_t batch, bool ours) {
    struct ls_op_attention_forward forward = forward_of(a, batch);
    struct ls_op_attention_backward backward = backward_of(a, batch);
    if (ours) forward.document_start = backward.document_start = a->document_start;
    ls_stream_submit(a->stream, LS_OP_attention_forward, &forward, sizeof forward);
    ls_stream_submit(a->stream, LS_OP_attention_backward, &backward, sizeof backward);
}

static void *take(struct attention *a, size_t bytes) {
    void *memory = ls_device_allocate(a->device, bytes);
    assert_non_null(memory);
    return memory;
}

static void synchronize(const struct attention *a) {
    struct ls_error error;
    if (ls_stream_synchronize(a->stream, &error)) fail_msg("%s", error.text);
}

static void fill(const struct attention *a, uint16_t *memory, int64_t count, unsigned seed) {
    uint16_t *host = malloc((size_t)count * sizeof *host);
    assert_non_null(host);
    for (int64_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        host[i] = ls_bf16_narrow((float)(seed >> 8) * 0x1p-22f - 2.0f);
    }
    ls_copy_to_device(a->stream, memory, host, (size_t)count * sizeof *host);
    synchronize(a);
    free(host);
}

static struct attention open_attention(int64_t length, int64_t heads, int64_t kv_heads) {
    struct attention a = {.length = length, .rows = BATCH * length, .heads = heads, .kv_heads = kv_heads};
    struct ls_error error;
    if (ls_device_create_cuda(0, false, &a.device, &error)) fail_msg("%s", error.text);
    a.stream = ls_stream_create(a.device, false);
    a.row = (heads + 2 * kv_heads) * CHANNELS;
    a.output = heads * CHANNELS;
    a.qkv = take(&a, (size_t)(a.rows * a.row) * 2);
    a.d_qkv = take(&a, (size_t)(a.rows * a.row) * 2);
    a.o = take(&a, (size_t)(a.rows * a.output) * 2);
    a.d_o = take(&a, (size_t)(a.rows * a.output) * 2);
    a.lse = take(&a, (size_t)(a.rows * heads) * sizeof(float));
    a.document_start = take(&a, (size_t)a.rows * sizeof(int32_t));
    const struct ls_op_attention_backward op = backward_of(&a, BATCH);
    a.workspace = take(&a, ls_op_workspace(a.device, LS_OP_attention_backward, &op));
    return a;
}

static void close_attention(const struct attention *a) {
    void *const all[] = {a->qkv, a->d_qkv, a->o, a->d_o, a->lse, a->document_start, a->workspace};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) ls_device_free(a->device, all[i]);
    ls_stream_destroy(a->stream);
    ls_device_destroy(a->device);
}

/* Chooses with pieces of this size instead of the planned, which would be everything at once. False: our kernels. */
static bool choose(const struct attention *a, int64_t batch, int64_t kv_heads) {
    struct ls_cuda_sdpa *sdpa = ((struct ls_cuda_device *)a->device)->sdpa;
    struct ls_error error;
    void *choices = NULL;
    int64_t bytes = 0;
    bool whole = false;
    ls_device_rehearse(a->device, true);
    run(a, BATCH, false);
    ls_device_rehearse(a->device, false);
    assert_int_equal(sdpa->piece.batch, BATCH);
    assert_int_equal(sdpa->piece.kv_heads, a->kv_heads);
    sdpa->piece.batch = batch;
    sdpa->piece.kv_heads = kv_heads;
    ls_device_set_fixed(a->device, true); /* no clock */
    if (ls_device_choose(a->device, &choices, &bytes, &error)) fail_msg("%s", error.text);
    if (ls_device_adopt(a->device, choices, bytes, &whole, &error)) fail_msg("%s", error.text);
    free(choices);
    assert_true(whole);
    return sdpa->used == LS_SDPA_BOTH;
}

static double difference(const uint16_t *one, const uint16_t *other, int64_t count) {
    double apart = 0, all = 0;
    for (int64_t i = 0; i < count; i++) {
        const double a = (double)ls_bf16_widen(one[i]), b = (double)ls_bf16_widen(other[i]);
        apart += (a - b) * (a - b);
        all += a * a;
    }
    return sqrt(apart / all);
}

/* Results of the first `batch` sequences by either; beyond them nothing is written. */
static void compare(const struct attention *a, int64_t batch) {
    const int64_t gradients = a->rows * a->row, mine = batch * a->length * a->row;
    uint16_t *host[2];
    for (int ours = 0; ours < 2; ours++) {
        host[ours] = malloc((size_t)gradients * sizeof **host);
        assert_non_null(host[ours]);
        ls_fill_zero(a->stream, a->d_qkv, (size_t)gradients * 2);
        run(a, batch, ours);
        ls_copy_to_host(a->stream, host[ours], a->d_qkv, (size_t)gradients * 2);
        synchronize(a);
        for (int64_t i = mine; i < gradients; i++) assert_int_equal(host[ours][i], 0);
    }
    /* Both round gradients to 2^-9 of themselves, and cuDNN probabilities before: see sdpa_choice.c. */
    assert_true(difference(host[1], host[0], mine) < 0x1p-6);
    assert_memory_not_equal(host[0], host[1], (size_t)mine * 2); /* they are not the same kernels */
    free(host[0]);
    free(host[1]);
}

static void pieces_make_no_difference(void **state) {
    static const struct {
        int64_t length, heads, kv_heads, batch, piece_kv_heads;
    } cases[] = {{37, 4, 4, BATCH, 4}, {37, 4, 2, 2, 2}, {44, 4, 4, 1, 2}, {38, 6, 2, 2, 2}, {44, 6, 2, 1, 1}};
    (void)state;
    if (!getenv("LS_TEST_DEVICE")) skip();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct attention a = open_attention(cases[i].length, cases[i].heads, cases[i].kv_heads);
        assert_true(choose(&a, cases[i].batch, cases[i].piece_kv_heads));
        fill(&a, a.qkv, a.rows * a.row, 2);
        fill(&a, a.d_o, a.rows * a.output, 3);
        compare(&a, BATCH);
        compare(&a, 3); /* sequence by sequence */
        compare(&a, 1);
        close_attention(&a);
    }
}

/* cuDNN wants addresses at multiples of 16 bytes: 3 heads of 37 tokens in fp32 end beside one. */
static void pieces_that_end_beside_an_alignment_are_our_kernels(void **state) {
    (void)state;
    if (!getenv("LS_TEST_DEVICE")) skip();
    const struct attention a = open_attention(37, 6, 2);
    assert_false(choose(&a, 1, 1));
    close_attention(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(pieces_make_no_difference),
                                       cmocka_unit_test(pieces_that_end_beside_an_alignment_are_our_kernels)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

static void there_is_nothing_to_test(void **state) {
    (void)state;
    skip();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(there_is_nothing_to_test)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
