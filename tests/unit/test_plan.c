/* The plan of a run against formulas written here: state, transients, activations, wire, operations; what a run uses of
 * what was planned; predicted times of timelines small enough to draw; what is advised when a plan does not fit. */
#include "worker/advice.h"
#include "worker/checkpoint/part.h"
#include "worker/comm/comm.h"
#include "worker/device/backend.h"
#include "worker/memory/host_memory.h"
#include "worker/plan.h"
#include "worker/replica.h"
#include "worker/replica_plan.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* The shapes, for formulas; odd where they may be. */
struct shape {
    bool llama;
    int64_t C, L, NH, NKV, HD, I, V, T, B;
};
static const struct shape gpt2 = {false, 20, 3, 2, 2, 10, 80, 101, 13, 3};
static const struct shape llama = {true, 24, 3, 4, 2, 6, 40, 101, 10, 3};

static struct ls_config config_of(const struct shape *s, const char *more) {
    char yaml[1024];
    struct ls_config config;
    struct ls_error error = {0};
    snprintf(yaml, sizeof yaml,
             "model: {model_type: %s, hidden_size: %d, num_hidden_layers: %d, num_attention_heads: %d, vocab_size: %d, "
             "%s intermediate_size: %d}\n"
             "data: {train: [{path: 'synthetic:9000'}], sequence_length: %d}\n"
             "train: {steps: 9, global_batch_size: 24, micro_batch_size: %d}\n%s",
             s->llama ? "llama" : "gpt2", (int)s->C, (int)s->L, (int)s->NH, (int)s->V,
             s->llama ? "num_key_value_heads: 2," : "", (int)s->I, (int)s->T, (int)s->B, more);
    if (ls_config_parse(yaml, strlen(yaml), "test", NULL, 0, &config, &error)) fail_msg("%s", error.text);
    return config;
}

/* Parameters of the embedding (0), a layer (1) and the head (2): GPT-2's is tied to the embedding. */
static int64_t block_count(const struct shape *s, int kind) {
    const int64_t C = s->C, I = s->I, Q = s->NH * s->HD, KV = s->NKV * s->HD;
    if (kind == 0) return s->V * C + (s->llama ? 0 : s->T * C);
    if (kind == 2) return s->llama ? s->V * C + C : 2 * C;
    return s->llama ? Q * C + 2 * KV * C + C * Q + 3 * C * I + 2 * C
                    : 3 * C * C + C * C + 2 * C * I + 3 * C + C + I + C + 4 * C;
}

static int kind_of(const struct shape *s, int64_t block) {
    return block == 0 ? 0 : block <= s->L ? 1 : 2;
}

static int64_t parameters_of(const struct shape *s) {
    return block_count(s, 0) + s->L * block_count(s, 1) + block_count(s, 2);
}

static int64_t up(int64_t bytes) {
    return (bytes + 255) / 256 * 256;
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static struct ls_plan plan_of(const struct ls_config *config, int64_t ranks) {
    struct ls_plan plan;
    struct ls_error error = {0};
    if (ls_plan_make(config, ranks, false, &plan, &error)) fail_msg("%s", error.text);
    return plan;
}

/* Four arrays of a block at 4 bytes an element, each whole (padded to the ranks) or a slice, each rounded up to 256
 * bytes in the arena; in bf16 parameters take 2 bytes, and their fp32 master joins the optimizer. Llama's table of
 * angles is beside the parameters. */
static void check_state(const struct shape *s, int stage, int64_t ranks, bool bf16) {
    char more[64];
    snprintf(more, sizeof more, "zero: {stage: %d}\nprecision: %s\n", stage, bf16 ? "bf16" : "fp32");
    const struct ls_config config = config_of(s, more);
    const int64_t cut = stage > 0 ? ranks : 1;
    int64_t parameters = s->llama ? up(s->T * s->HD * 4) : up(0), gradients = 0, optimizer = 0;
    for (int64_t block = 0; block < s->L + 2; block++) {
        const int64_t slice = (block_count(s, kind_of(s, block)) + cut - 1) / cut;
        parameters += up((bf16 ? 2 : 4) * (stage == 3 ? slice : slice * cut));
        gradients += up(4 * (stage >= 2 ? slice : slice * cut));
        optimizer += (bf16 ? 3 : 2) * up(4 * slice);
    }
    struct ls_plan plan = plan_of(&config, ranks);
    assert_int_equal(plan.parameters, parameters_of(s));
    assert_int_equal(plan.category_bytes[LS_MEMORY_PARAMETERS], parameters);
    assert_int_equal(plan.category_bytes[LS_MEMORY_GRADIENTS], gradients);
    assert_int_equal(plan.category_bytes[LS_MEMORY_OPTIMIZER], optimizer);

    /* And by the formulas of the ZeRO paper (Rajbhandari et al. 2020, section 5), with fp32 gradients, but for padding
     * and rounding. */
    const double P = (double)plan.parameters, N = (double)ranks;
    const double formulas[2][4] = {{16 * P, 8 * P + 8 * P / N, 4 * P + 12 * P / N, 16 * P / N},
                                   {18 * P, 6 * P + 12 * P / N, 2 * P + 16 * P / N, 18 * P / N}};
    const double formula = formulas[bf16][stage];
    const double state = (double)(parameters + gradients + optimizer - (s->llama ? up(s->T * s->HD * 4) : 0));
    const double padding = (double)(s->L + 2) * 5 * (256 + 4 * N);
    assert_true(state >= formula - 1 && state <= formula + padding);

    /* Transients: two of the small blocks and one of the large ones, whole. A tied head is small. */
    const int64_t layer = (larger(block_count(s, 1), s->llama ? 0 : block_count(s, 2)) + cut - 1) / cut * cut;
    const int64_t large = (larger(block_count(s, 0), s->llama ? block_count(s, 2) : 0) + cut - 1) / cut * cut;
    const int64_t width = bf16 ? 2 : 4, reduced = 2 * up(4 * layer) + up(4 * large);
    const int64_t gathered = 2 * up(width * layer) + up(width * large);
    assert_int_equal(plan.category_bytes[LS_MEMORY_REDUCED], stage >= 2 ? reduced : 0);
    assert_int_equal(plan.category_bytes[LS_MEMORY_GATHERED], stage == 3 ? gathered : 0);
    ls_plan_release(&plan);
}

static void state_is_16P_or_18P_and_falls_with_the_stage(void **unused) {
    (void)unused;
    for (int stage = 0; stage <= 3; stage++)
        for (int64_t ranks = 1; ranks <= 5; ranks++) {
            check_state(&gpt2, stage, ranks, false);
            check_state(&llama, stage, ranks, false);
            check_state(&gpt2, stage, ranks, true);
            check_state(&llama, stage, ranks, true);
        }
}

/* What a layer leaves for its backward, an array each: kept in every mode, and what `selective` makes again. */
static void layer_bytes(const struct shape *s, int64_t width, int64_t *kept, int64_t *again) {
    const int64_t C = s->C, I = s->I, Q = s->NH * s->HD, W = (s->NH + 2 * s->NKV) * s->HD, R = s->B * s->T;
    const int64_t kept_gpt2[] = {3 * C, C, I}, again_gpt2[] = {C, C, s->NH, C, larger(I, 3 * C), 1, 1, 1, 1};
    const int64_t kept_llama[] = {W, C, larger(2 * I, W)}, again_llama[] = {C, Q, s->NH, C, larger(I, Q), 1, 1};
    *kept = *again = 0;
    for (int i = 0; i < 3; i++) *kept += up(width * R * (s->llama ? kept_llama[i] : kept_gpt2[i]));
    for (int i = 0; i < (s->llama ? 7 : 9); i++) {
        const bool statistic = i == 2 || i >= 5; /* of attention's rows and of the norms: fp32 always */
        *again += up((statistic ? 4 : width) * R * (s->llama ? again_llama[i] : again_gpt2[i]));
    }
}

static void check_activations(const struct shape *s, bool bf16) {
    int64_t kept, again;
    const int64_t width = bf16 ? 2 : 4, residual = up(width * s->B * s->T * s->C), L = s->L;
    layer_bytes(s, width, &kept, &again);
    /* What enters the L layers and the head, and the gradient of the stream. */
    const int64_t streams = (L + 2) * residual;
    const struct {
        const char *yaml;
        int64_t bytes;
    } modes[] = {
        {"", streams + L * (kept + again)},
        {"activation_checkpointing: {mode: selective}\n", streams + L * kept + again},
        {"activation_checkpointing: {mode: full}\n", streams + kept + again},
        /* 3 layers in segments of 2: what enters layers 0 and 2 and the head is kept, layer 1's is shared. */
        {"activation_checkpointing: {mode: full, every: 2}\n", 5 * residual + 2 * (kept + again)},
    };
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        char more[128];
        snprintf(more, sizeof more, "%sprecision: %s\n", modes[i].yaml, bf16 ? "bf16" : "fp32");
        const struct ls_config config = config_of(s, more);
        struct ls_plan plan = plan_of(&config, 2);
        assert_int_equal(plan.category_bytes[LS_MEMORY_ACTIVATIONS], modes[i].bytes);
        ls_plan_release(&plan);
    }
}

static void activations_are_what_backward_reads(void **unused) {
    (void)unused;
    for (int bf16 = 0; bf16 <= 1; bf16++) {
        check_activations(&gpt2, bf16);
        check_activations(&llama, bf16);
    }
}

static void full_checkpointing_keeps_a_fifth_at_12_layers(void **unused) {
    (void)unused;
    const struct shape deep[] = {{false, 64, 12, 4, 4, 16, 256, 257, 64, 4}, {true, 64, 12, 4, 2, 16, 172, 257, 64, 4}};
    for (int i = 0; i < 2; i++) {
        const struct ls_config none = config_of(&deep[i], "");
        const struct ls_config full = config_of(&deep[i], "activation_checkpointing: {mode: full}\n");
        struct ls_plan before = plan_of(&none, 1), after = plan_of(&full, 1);
        assert_true(5 * after.category_bytes[LS_MEMORY_ACTIVATIONS] <= before.category_bytes[LS_MEMORY_ACTIVATIONS]);
        ls_plan_release(&before);
        ls_plan_release(&after);
    }
}

/* Host memory: three steps of three arrays of 4 bytes a token, whole micro-batches; three slices of the largest block
 * on their way out of a checkpoint, and where the host cannot read all parameters the block itself. */
static void host_memory_is_the_ring_and_buffers_of_checkpoints(void **unused) {
    (void)unused;
    struct ls_config config = config_of(&llama, "");
    const int64_t ranks = 5, C = llama.C;
    /* 24 sequences over 5 ranks: 5 on the fullest, in 2 micro-batches of 3. */
    const int64_t ring = 3 * 3 * 4 * (2 * 3) * llama.T;
    const int64_t largest = larger(llama.V * C + C, block_count(&llama, 1)); /* the head, or a layer */
    const int64_t slices = 3 * 4 * ((largest + ranks - 1) / ranks), block = 4 * largest;
    struct ls_error error;
    struct ls_plan plan = plan_of(&config, ranks);
    assert_int_equal(plan.host_row_bytes[LS_PLAN_PREFETCH], ring);
    assert_int_equal(plan.host_row_bytes[LS_PLAN_EVALUATION], 0);
    assert_int_equal(plan.host_row_bytes[LS_PLAN_CHECKPOINT], slices);
    assert_int_equal(plan.host_bytes, ring + slices);
    ls_plan_release(&plan);
    if (ls_plan_make(&config, ranks, true, &plan, &error)) fail_msg("%s", error.text);
    assert_int_equal(plan.host_row_bytes[LS_PLAN_CHECKPOINT], slices + block);
    ls_plan_release(&plan);
    config.zero.stage = 3;
    plan = plan_of(&config, ranks);
    assert_int_equal(plan.host_row_bytes[LS_PLAN_CHECKPOINT], slices + block);
    ls_plan_release(&plan);
    config.zero.stage = 0;
    config.data.validation_count = 1;
    config.evaluation.every_steps = 2;
    plan = plan_of(&config, ranks);
    assert_int_equal(plan.host_row_bytes[LS_PLAN_EVALUATION], ring);
    ls_plan_release(&plan);
}

/* Weights, and state of 12 bytes a parameter; 4 less for a second moment that is not there (Muon's matrices have none:
 * GPT-2's are 12 C^2 in a layer), 2 less for master weights of two bytes. Headers are the same. */
static void a_checkpoints_bytes_follow_what_the_optimizer_keeps(void **unused) {
    (void)unused;
    const int64_t P = parameters_of(&gpt2), matrices = gpt2.L * 12 * gpt2.C * gpt2.C;
    const struct {
        const char *more;
        int64_t bytes;
    } rows[] = {{"optimizer: {type: adamw}\n", 16 * P},
                {"optimizer: {type: lion}\n", 12 * P},
                {"optimizer: {type: sgd}\n", 12 * P},
                {"optimizer: {type: muon}\n", 16 * P - 4 * matrices},
                {"precision: bf16\n", 14 * P},
                {"precision: bf16\noptimizer: {stochastic_rounding: true}\n", 12 * P},
                {"precision: bf16\noptimizer: {type: muon, stochastic_rounding: true}\n", 12 * P - 4 * matrices}};
    int64_t headers = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct ls_config config = config_of(&gpt2, rows[i].more);
        struct ls_plan plan = plan_of(&config, 3);
        if (i == 0) headers = plan.checkpoint_bytes - rows[i].bytes;
        assert_true(headers > 0 && headers < 2 << 20);
        assert_int_equal(plan.checkpoint_bytes, rows[i].bytes + headers);
        ls_plan_release(&plan);
    }
}

/* A layer of 5.4e9 parameters: two ranks send 5.4e9 bytes of bf16 at once, which is too much, six a third of that. */
static void slices_of_matrices_too_large_to_send_are_refused(void **unused) {
    (void)unused;
    const struct shape vast = {true, 20480, 2, 2, 2, 10240, 61440, 101, 10, 3};
    const struct ls_config config = config_of(&vast, "precision: bf16\nzero: {stage: 3}\noptimizer: {type: muon}\n");
    struct ls_plan plan;
    struct ls_error error = {0};
    assert_int_equal(ls_plan_make(&config, 2, false, &plan, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "optimizer.type: muon"));
    ls_plan_release(&plan);
    assert_int_equal(ls_plan_make(&config, 6, false, &plan, &error), LS_OK);
    ls_plan_release(&plan);
    assert_int_equal(ls_plan_make(&config, 1, false, &plan, &error), LS_OK);
    ls_plan_release(&plan);
}

/* However large a block, a CPU's state is read in pieces of 2^21 elements; two files have buffers of their own. */
static void buffers_of_checkpoints_stay_small_on_cpus(void **unused) {
    (void)unused;
    const struct shape wide = {false, 1024, 1, 4, 4, 256, 4096, 50257, 16, 2};
    struct ls_config config = config_of(&wide, "");
    struct ls_plan plan = plan_of(&config, 1);
    assert_int_equal(plan.host_row_bytes[LS_PLAN_CHECKPOINT], 3 * 4 * (2 << 20) + 2 * LS_PART_BUFFER_BYTES);
    ls_plan_release(&plan);
}

/* At most f P (2g | g+w | g+w | g+2w) bytes without accumulation, f = (N-1)/N, and padding; no less than that but for
 * blocks that stage 3 still has at hand. */
/* 2^31 tokens of a micro-batch are the most; of those, 1000 layers of 2^21 inner channels keep 1000 x 3 x 2^54 bytes.
 */
static void what_no_machine_can_hold_is_refused_and_never_negative(void **state) {
    (void)state;
    const struct shape wide = {true, 4, 1000, 2, 2, 2, 1 << 21, 101, 1 << 22, 1};
    struct ls_config config = config_of(&wide, "");
    struct ls_plan plan = {0};
    struct ls_error error = {0};
    config.train.global_batch_size = 1 << 16;
    config.train.micro_batch_size = 1 << 7;
    assert_int_equal(ls_plan_make(&config, 1, true, &plan, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "train.micro_batch_size"));
    ls_plan_release(&plan);
    config.train.micro_batch_size = 1 << 6;
    assert_int_equal(ls_plan_make(&config, 1, true, &plan, &error), LS_MEMORY);
    assert_non_null(strstr(error.text, "2^62"));
    ls_plan_release(&plan);
    config.train.micro_batch_size = 1;
    assert_int_equal(ls_plan_make(&config, 1, true, &plan, &error), LS_OK);
    int64_t sum = 0;
    for (int category = 0; category < LS_MEMORY_CATEGORIES; category++) sum += plan.category_bytes[category];
    assert_true(plan.category_bytes[LS_MEMORY_ACTIVATIONS] > (int64_t)1 << 55);
    assert_int_equal(sum, plan.arena_bytes);
    ls_plan_release(&plan);
}

static void the_wire_is_bounded_by_the_formulas_of_zero(void **unused) {
    (void)unused;
    for (int i = 0; i < 2 * 4 * 4; i++) {
        const int64_t ranks = i % 4 + 1, stage = i / 4 % 4;
        const bool bf16 = i / 16;
        const double g = 4, w = bf16 ? 2 : 4, widths[] = {2 * g, g + w, g + w, g + 2 * w};
        char more[64];
        snprintf(more, sizeof more, "zero: {stage: %d}\nprecision: %s\n", (int)stage, bf16 ? "bf16" : "fp32");
        struct ls_config config = config_of(&gpt2, more);
        config.train.micro_batch_size = config.train.global_batch_size;
        struct ls_plan plan = plan_of(&config, ranks);
        const double N = (double)ranks, f = (N - 1) / N;
        const double bound = f * (double)plan.parameters * widths[stage];
        const double padding = (double)(gpt2.L + 2) * widths[stage] * N + 64 * N;
        assert_int_equal(plan.micro_batches, 1);
        assert_true((double)plan.wire_bytes <= bound + padding);
        assert_true((double)plan.wire_bytes >= (stage == 3 ? 0.6 : 1) * bound - 64);
        ls_plan_release(&plan);
    }
}

/* What a rank sends of a layer after a micro-batch that is not the last: its slice to each other rank, in the type that
 * gradients travel in; train.reduction: fixed adds micro-batches up on the rank and sends once. */
static void micro_batches_are_reduced_in_the_type_of_the_wire(void **unused) {
    (void)unused;
    const int64_t ranks = 4, slice = (block_count(&gpt2, 1) + ranks - 1) / ranks;
    const struct {
        const char *more;
        int64_t bytes;
    } cases[] = {{"zero: {stage: 2}\n", 3 * slice * 4},
                 {"zero: {stage: 3, gradient_dtype: bf16}\n", 3 * slice * 2},
                 {"zero: {stage: 1}\n", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ls_config config = config_of(&gpt2, cases[i].more);
        for (int fixed = 0; fixed < 2; fixed++) {
            config.train.reduction = fixed ? LS_REDUCTION_FIXED : LS_REDUCTION_FAST;
            if (fixed) config.zero.gradient_dtype = LS_GRADIENT_FP32;
            struct ls_plan plan = plan_of(&config, ranks);
            assert_true(plan.micro_batches > 1);
            assert_true(plan.work.blocks[1].reduce_bytes == (fixed ? 0.0 : (double)cases[i].bytes));
            ls_plan_release(&plan);
        }
    }
}

/* 6N + 6LCT a token (llm.c); N leaves learned positions out. */
static void operations_are_6N_and_attention(void **unused) {
    (void)unused;
    const struct shape *shapes[] = {&gpt2, &llama};
    for (int i = 0; i < 2; i++) {
        const struct shape *s = shapes[i];
        const struct ls_config config = config_of(s, "");
        struct ls_plan plan = plan_of(&config, 4);
        const double N = (double)(parameters_of(s) - (s->llama ? 0 : s->T * s->C));
        const double token = 6 * N + 6.0 * (double)(s->L * s->NH * s->HD * s->T);
        assert_true(fabs(plan.flops_per_step / (24.0 * (double)s->T * token) - 1) < 1e-12);
        /* 24 sequences over 4 ranks, micro-batches of 3. */
        assert_int_equal(plan.sequences, 6);
        assert_int_equal(plan.micro_batches, 2);
        /* A rank's quarter: all matrices but the embedding's, 2 operations forward and 4 backward. */
        const int64_t C = s->C, Q = s->NH * s->HD, KV = s->NKV * s->HD;
        const int64_t layer = s->llama ? 2 * Q * C + 2 * KV * C + 3 * C * s->I : 4 * C * C + 2 * C * s->I;
        const double rank = 6 * (double)s->T * 6 * (double)(s->L * (layer + Q * s->T) + s->V * C);
        assert_true(fabs(plan.flops_of_rank / rank - 1) < 1e-12);
        ls_plan_release(&plan);
    }
}

/* ---- what a run uses of the plan ---- */

enum { POISON = 0x5a };

static bool is_poisoned(enum ls_memory_category category) {
    return category == LS_MEMORY_ACTIVATIONS || category == LS_MEMORY_WORKSPACE || category == LS_MEMORY_DATA;
}

/* Adds the used extent of every buffer, up to the last byte that the run changed, to its category. */
static void measure_used(struct ls_replica *replica, const struct ls_arena_plan *plan, bool gradients,
                         int64_t used[LS_MEMORY_CATEGORIES]) {
    for (int i = 0; i < plan->count; i++) {
        const enum ls_memory_category category = plan->buffers[i].category;
        if ((category == LS_MEMORY_GRADIENTS) != gradients) continue;
        const unsigned char *bytes = ls_arena_buffer(ls_replica_arena(replica), i);
        const unsigned char before = is_poisoned(category) ? POISON : 0;
        int64_t end = plan->buffers[i].bytes;
        while (end > 0 && bytes[end - 1] == before) end--;
        used[category] += up(end);
    }
}

/* One full micro-batch. On CPUs device memory can be looked at. */
static void check_used(const struct shape *s, const char *more) {
    const struct ls_config config = config_of(s, more);
    const int64_t R = s->B * s->T;
    struct ls_device *device;
    struct ls_comm *comm;
    struct ls_replica *replica;
    struct ls_replica_layout layout;
    struct ls_replica_result result;
    struct ls_error error = {0};
    struct ls_arena_plan *plan = calloc(1, sizeof *plan);
    int32_t *tokens = malloc((size_t)R * 3 * sizeof *tokens);
    assert_int_equal(ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, NULL), LS_OK);
    assert_int_equal(ls_comm_create_threads(1, &comm, NULL), LS_OK);
    if (ls_replica_create(&config, device, comm, NULL, &replica, &error)) fail_msg("%s", error.text);
    assert_int_equal(ls_replica_plan(&config, ls_replica_model(replica), device, 1, plan, &layout, NULL), LS_OK);
    assert_int_equal(ls_replica_bytes(replica), plan->bytes);
    for (int i = 0; i < plan->count; i++)
        if (is_poisoned(plan->buffers[i].category))
            memset(ls_arena_buffer(ls_replica_arena(replica), i), POISON, (size_t)plan->buffers[i].bytes);
    /* Each sequence is one document but for its last token, so that no array ends with what it began with. */
    for (int64_t i = 0; i < R; i++) {
        tokens[i] = (int32_t)(i * 7 % s->V);
        tokens[R + i] = (int32_t)((i * 7 + 7) % s->V);
        tokens[2 * R + i] = i % s->T == s->T - 1 ? (int32_t)(s->T - 1) : 0;
    }
    int64_t used[LS_MEMORY_CATEGORIES] = {0};
    ls_replica_initialize(replica);
    ls_replica_begin(replica, 1, R, s->B);
    ls_replica_train(replica, &(struct ls_micro_batch){tokens, tokens + R, tokens + 2 * R, s->B, 0}, true);
    assert_int_equal(ls_stream_synchronize(ls_replica_stream(replica), NULL), LS_OK);
    measure_used(replica, plan, true, used);
    ls_replica_update(replica, 1e-3f, 1);
    if (ls_replica_finish(replica, &result, &error)) fail_msg("%s", error.text);
    measure_used(replica, plan, false, used);
    for (int category = 0; category < LS_MEMORY_CATEGORIES; category++) {
        if (category == LS_MEMORY_SCALARS) continue; /* a few numbers, some of them 0 */
        if (used[category] != plan->category_bytes[category])
            fail_msg("%s: %lld bytes planned, %lld used", ls_memory_category_name((enum ls_memory_category)category),
                     (long long)plan->category_bytes[category], (long long)used[category]);
    }
    ls_replica_destroy(replica);
    ls_comm_destroy(comm);
    ls_device_destroy(device);
    free(tokens);
    free(plan);
}

static void a_step_uses_every_category_to_its_end(void **unused) {
    (void)unused;
    check_used(&gpt2, "");
    check_used(&llama, "");
    check_used(&gpt2, "precision: bf16\nactivation_checkpointing: {mode: selective}\n");
    check_used(&llama, "precision: bf16\nactivation_checkpointing: {mode: full}\n");
    check_used(&gpt2, "optimizer: {type: muon}\n");
    check_used(&llama, "precision: bf16\noptimizer: {type: muon}\n");
}

/* ---- predicted time ---- */

/* 100 operations a second, 10 bytes a second on the wire within a node of 2, 5 beyond it. */
static const struct ls_cost_machine machine = {.flops_per_second = 200,
                                               .efficiency = 0.5,
                                               .memory_bytes_per_second = 1000,
                                               .ranks_per_node = 2,
                                               .local_link_bytes_per_second = 10,
                                               .node_link_bytes_per_second = 5};

static void expect(const struct ls_cost *cost, double compute, double update, double wire, double exposed) {
    assert_true(fabs(cost->compute_seconds - compute) < 1e-9);
    assert_true(fabs(cost->update_seconds - update) < 1e-9);
    assert_true(fabs(cost->wire_seconds - wire) < 1e-9);
    assert_true(fabs(cost->exposed_seconds - exposed) < 1e-9);
    assert_true(fabs(cost->step_seconds - compute - update - exposed) < 1e-9);
}

/* compute  A1 B1 . B2 B2 A2 A2              wire  ............ B B B A
 * The reductions: B's from 4 to 7 s, A's, ready at 6 s, from 7 to 8 s; computing ends at 6 s. */
static void reductions_hide_behind_what_is_left_of_backward(void **unused) {
    (void)unused;
    const struct ls_cost_block blocks[] = {
        {.forward_flops = 100, .backward_flops = 200, .last_reduce_bytes = 10},
        {.forward_flops = 100, .backward_flops = 200, .last_reduce_bytes = 30},
    };
    struct ls_cost_work work = {.blocks = blocks, .block_count = 2, .micro_batches = 1, .update_bytes = 500};
    struct ls_cost cost = ls_cost_predict(&machine, 2, &work);
    expect(&cost, 6, 0.5, 4, 2);
    assert_int_equal(cost.limit, LS_COST_ARITHMETIC);
    /* Twice the micro-batches: the same end. */
    work.micro_batches = 2;
    cost = ls_cost_predict(&machine, 2, &work);
    expect(&cost, 12, 0.5, 4, 2);
    work.micro_batches = 1;
    /* Products of the update, and what it sends and waits for, come behind all that. */
    work.update_flops = 300;
    work.update_wire_bytes = 20;
    cost = ls_cost_predict(&machine, 2, &work);
    expect(&cost, 6, 3.5, 6, 4);
    work.update_flops = work.update_wire_bytes = 0;
    /* Beyond a node the wire has half the rate: B's from 4 to 10 s, A's to 12 s. */
    cost = ls_cost_predict(&machine, 3, &work);
    expect(&cost, 6, 0.5, 8, 6);
}

/* All gathered from the start: A there at 1 s, B at 4 s. Forward of A from 1 to 2, of B from 4 to 5, backward to 9. */
static void gathers_after_the_update_hide_behind_forward(void **unused) {
    (void)unused;
    const struct ls_cost_block blocks[] = {
        {.forward_flops = 100, .backward_flops = 200, .forward_gather_bytes = 10},
        {.forward_flops = 100, .backward_flops = 200, .forward_gather_bytes = 30},
    };
    struct ls_cost_work work = {.blocks = blocks, .block_count = 2, .micro_batches = 2};
    const struct ls_cost cost = ls_cost_predict(&machine, 1, &work);
    expect(&cost, 12, 0, 4, 3);
}

/* One block ahead, every time: A's gather from 0 to 1 s, B's beside A's forward from 1 to 4 s, B's forward from 4 to 5
 * and backward to 7 beside A's second gather from 5 to 6, A's backward to 9. Twice. */
static void gathers_of_every_pass_run_a_block_ahead(void **unused) {
    (void)unused;
    const struct ls_cost_block blocks[] = {
        {.forward_flops = 100, .backward_flops = 200, .forward_gather_bytes = 10, .backward_gather_bytes = 10},
        {.forward_flops = 100, .backward_flops = 200, .forward_gather_bytes = 30},
    };
    struct ls_cost_work work = {.blocks = blocks, .block_count = 2, .micro_batches = 2, .gathers_always = true};
    const struct ls_cost cost = ls_cost_predict(&machine, 1, &work);
    expect(&cost, 12, 0, 10, 6);
}

/* Micro-batches one after the other, told without the code's own steps: two clocks, for blocks that are gathered ahead
 * of every pass and reduced behind every backward. */
static double follow(const struct ls_cost_block *blocks, int count, int64_t micro_batches, double link) {
    double now = 0, wire = 0;
    for (int64_t m = 0; m < micro_batches; m++) {
        double there = wire = fmax(wire, now) + blocks[0].forward_gather_bytes / link;
        for (int pass = 0; pass < 2 * count; pass++) {
            const int b = pass < count ? pass : 2 * count - 1 - pass,
                      next = pass + 1 < count ? pass + 1 : 2 * count - 2 - pass;
            now = fmax(now, there);
            if (pass + 1 < 2 * count) {
                const double bytes =
                    pass + 1 < count ? blocks[next].forward_gather_bytes : blocks[next].backward_gather_bytes;
                there = wire = fmax(wire, now) + bytes / link;
            }
            now += (pass < count ? blocks[b].forward_flops : blocks[b].backward_flops) / 100;
            if (pass >= count) wire = fmax(wire, now) + blocks[b].reduce_bytes / link;
        }
    }
    return fmax(now, wire);
}

/* More than are followed one by one. */
static void any_number_of_micro_batches_is_predicted(void **unused) {
    (void)unused;
    const int64_t many = INT64_C(1) << 40;
    const struct ls_cost_block ahead[] = {
        {.forward_flops = 100, .backward_flops = 200, .forward_gather_bytes = 10, .backward_gather_bytes = 10},
        {.forward_flops = 100, .backward_flops = 200, .forward_gather_bytes = 30},
    };
    struct ls_cost_work work = {.blocks = ahead, .block_count = 2, .micro_batches = many, .gathers_always = true};
    struct ls_cost cost = ls_cost_predict(&machine, 1, &work);
    /* As two of them above, so many times. */
    assert_true(fabs(cost.compute_seconds / (6.0 * (double)many) - 1) < 1e-12);
    assert_true(fabs(cost.wire_seconds / (5.0 * (double)many) - 1) < 1e-12);
    assert_true(fabs(cost.exposed_seconds / (3.0 * (double)many) - 1) < 1e-12);
    /* Nothing but computing: nothing is exposed. The gather of the first pass is, once. */
    const struct ls_cost_block quiet = {.forward_flops = 10, .backward_flops = 10.0 / 3, .forward_gather_bytes = 10};
    work = (struct ls_cost_work){.blocks = &quiet, .block_count = 1, .micro_batches = 100000};
    cost = ls_cost_predict(&machine, 1, &work);
    assert_true(fabs(cost.exposed_seconds - 1) < 1e-9);
    assert_true(fabs(cost.compute_seconds / (100000 * 0.4 / 3) - 1) < 1e-12);
    /* A wire that falls behind by a little each time, until passes wait for it; one that is always late; one that never
     * is. */
    for (int i = 0; i < 40; i++) {
        struct ls_cost_block blocks[3];
        for (int b = 0; b < 3; b++)
            blocks[b] = (struct ls_cost_block){.forward_flops = 90 + 7 * b,
                                               .backward_flops = 210 + i,
                                               .reduce_bytes = i * (b + 1) / 2.0,
                                               .last_reduce_bytes = i * (b + 1) / 2.0,
                                               .forward_gather_bytes = 1 + (7 * i + 3 * b) % 23,
                                               .backward_gather_bytes = 1 + (5 * i + b) % 17 / 10.0};
        work = (struct ls_cost_work){.blocks = blocks, .block_count = 3, .micro_batches = 3000, .gathers_always = true};
        cost = ls_cost_predict(&machine, 1, &work);
        assert_true(fabs(cost.step_seconds / follow(blocks, 3, 3000, 10) - 1) < 1e-9);
        assert_true(fabs(cost.step_seconds - cost.compute_seconds - cost.exposed_seconds) < 1e-9 * cost.step_seconds);
    }
}

/* 2000 bytes take 2 s, 100 operations 1 s. */
static void the_bottleneck_is_what_takes_longest(void **unused) {
    (void)unused;
    struct ls_cost_block block = {.forward_flops = 100, .backward_flops = 100, .forward_bytes = 2000};
    struct ls_cost_work work = {.blocks = &block, .block_count = 1, .micro_batches = 1};
    struct ls_cost cost = ls_cost_predict(&machine, 1, &work);
    expect(&cost, 3, 0, 0, 0);
    assert_int_equal(cost.limit, LS_COST_MEMORY);
    block.last_reduce_bytes = 50;
    cost = ls_cost_predict(&machine, 1, &work);
    expect(&cost, 3, 0, 5, 5);
    assert_int_equal(cost.limit, LS_COST_LINK);
}

/* LS_CUDA_HEAD_SIZE_MAX; test_cuda_emulated.sh trains with heads of that width. */
static void heads_too_wide_for_gpus_are_refused(void **unused) {
    (void)unused;
    struct ls_config config = config_of(&llama, "");
    struct ls_error error = {0};
    struct ls_plan plan;
    config.model.head_dim = 256;
    assert_int_equal(ls_plan_make(&config, 1, true, &plan, &error), LS_OK);
    ls_plan_release(&plan);
    config.model.head_dim = 258;
    assert_int_equal(ls_plan_make(&config, 1, true, &plan, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "258 channels wide"));
    assert_int_equal(ls_plan_make(&config, 1, false, &plan, &error), LS_OK);
    ls_plan_release(&plan);
}

static void gpus_are_found_by_name(void **unused) {
    (void)unused;
    const struct ls_gpu *gpu = ls_gpu_find("H100-SXM");
    assert_non_null(gpu);
    assert_true(gpu->half_flops == 989.4e12 && gpu->memory_bytes == INT64_C(80000000000));
    assert_null(ls_gpu_find("h100"));
    assert_null(ls_gpu_find(""));
    for (int i = 0; ls_gpu_at(i); i++) { /* rates in their natural order, names that are found again */
        gpu = ls_gpu_at(i);
        assert_ptr_equal(ls_gpu_find(gpu->name), gpu);
        assert_true(gpu->half_flops > gpu->tf32_flops && gpu->tf32_flops >= gpu->fp32_flops);
        assert_true(gpu->memory_bytes_per_second > gpu->link_bytes_per_second);
    }
}

static void this_host_is_measured(void **unused) {
    (void)unused;
    struct ls_cost_machine measured;
    assert_int_equal(ls_cost_machine_measure(1, 2, 1e9, 128, 64, LS_FP32, &measured, NULL), LS_OK);
    assert_true(measured.measured && !measured.gpu);
    assert_true(measured.flops_per_second > 1e6 && measured.flops_per_second < 1e15);
    assert_true(measured.memory_bytes_per_second > 1e6 && measured.memory_bytes_per_second < 1e15);
    assert_int_equal(measured.memory_bytes, ls_host_memory_bytes() / 2);
    assert_true(ls_host_memory_resident() > 1 << 20 && ls_host_memory_resident() < ls_host_memory_bytes());
}

/* ---- advice ---- */

/* The change, applied as its text says, fits; and one step less of it does not. */
static void changes_fit_and_come_cheapest_first(void **unused) {
    (void)unused;
    const struct ls_config config = config_of(&gpt2, "");
    struct ls_plan plan = plan_of(&config, 2);
    const int64_t need = ls_plan_bytes(&plan, false);
    assert_int_equal(need, plan.arena_bytes + plan.host_bytes);
    struct ls_advice options[LS_ADVICE_MAX];
    const int count = ls_advice_find(&config, 2, &machine, need - 1, options);
    assert_int_equal(count, 4); /* ranks, stage, checkpointing, micro-batch: each saves a byte */
    for (int i = 0; i < count; i++) {
        char set[192];
        int64_t ranks = 2;
        struct ls_config changed = config;
        assert_true(options[i].bytes < need);
        if (i > 0)
            assert_true(options[i].cost.step_seconds * (double)options[i].ranks >=
                        options[i - 1].cost.step_seconds * (double)options[i - 1].ranks);
        if (sscanf(options[i].change, "--set train.micro_batch_size=%191s", set) == 1)
            changed.train.micro_batch_size = atoi(set);
        else if (sscanf(options[i].change, "--set zero.stage=%191s", set) == 1)
            changed.zero.stage = atoi(set);
        else if (strcmp(options[i].change, "--set activation_checkpointing.mode=selective") == 0)
            changed.activation_checkpointing.mode = LS_CHECKPOINTING_SELECTIVE;
        else if (sscanf(options[i].change, "-n %191s", set) == 1)
            ranks = atoi(set);
        else
            fail_msg("an unknown change: %s", options[i].change);
        struct ls_plan after = plan_of(&changed, ranks);
        assert_int_equal(ls_plan_bytes(&after, false), options[i].bytes);
        assert_int_equal(options[i].ranks, ranks);
        ls_plan_release(&after);
    }
    ls_plan_release(&plan);
}

/* A stage from 2 on refuses zero.accumulate: local, so what is advised sets both. */
static void a_stage_is_advised_with_its_accumulation(void **unused) {
    (void)unused;
    struct shape deep = gpt2;
    deep.L = 12; /* slices of gradients save more than the buffers of whole ones take */
    const struct ls_config config = config_of(&deep, "zero: {stage: 1, accumulate: local}\n");
    struct ls_plan plan = plan_of(&config, 2);
    struct ls_advice options[LS_ADVICE_MAX];
    const int count = ls_advice_find(&config, 2, &machine, ls_plan_bytes(&plan, false) - 1, options);
    int found = 0;
    for (int i = 0; i < count; i++) {
        if (!strstr(options[i].change, "zero.stage=")) continue;
        assert_non_null(strstr(options[i].change, " --set zero.accumulate=sharded"));
        found++;
    }
    assert_int_equal(found, 1);
    ls_plan_release(&plan);
}

/* State of 16 P does not fit below 16 P whatever the micro-batch; it does on more ranks at a higher stage. */
static void what_no_single_change_achieves_is_combined(void **unused) {
    (void)unused;
    const struct ls_config config = config_of(&llama, "");
    struct ls_advice options[LS_ADVICE_MAX];
    const int64_t limit = 4 * parameters_of(&llama) * 4;
    const int count = ls_advice_find(&config, 1, &machine, limit, options);
    assert_int_equal(count, 1); /* none with one rank */
    assert_true(options[0].ranks > 1 && options[0].bytes <= limit);
    assert_non_null(strstr(options[0].change, "-n "));
    assert_non_null(strstr(options[0].change, "zero.stage="));
    assert_int_equal(ls_advice_find(&config, 1, &machine, 1, options), 0);
}

static void a_run_beyond_its_limit_is_refused_with_advice(void **unused) {
    (void)unused;
    struct ls_config config = config_of(&gpt2, "");
    struct ls_error error;
    int64_t bytes = 0;
    assert_int_equal(ls_advice_check(&config, 2, 2, 1, NULL, &bytes, &error), LS_OK);
    config.memory.limit = bytes;
    assert_int_equal(ls_advice_check(&config, 2, 2, 1, NULL, NULL, &error), LS_OK);
    config.memory.limit = bytes - 1;
    assert_int_equal(ls_advice_check(&config, 2, 2, 1, NULL, NULL, &error), LS_MEMORY);
    assert_non_null(strstr(error.text, "memory.limit allows"));
    assert_non_null(strstr(error.text, "The cheapest change that fits: -"));
    config.memory.limit = 1;
    assert_int_equal(ls_advice_check(&config, 2, 2, 1, NULL, NULL, &error), LS_MEMORY);
    assert_non_null(strstr(error.text, "use a smaller model"));
    assert_int_equal(ls_advice_check(&config, 25, 25, 1, NULL, NULL, &error), LS_USAGE); /* more ranks than sequences */
}

static size_t workspace_of(enum ls_op op, const void *arguments) {
    struct ls_device *device = NULL;
    struct ls_error error;
    assert_int_equal(ls_device_create_planned_cuda(&device, &error), LS_OK);
    const size_t bytes = ls_op_workspace(device, op, arguments);
    ls_device_destroy(device);
    return bytes;
}

/* Two blocks of 64 columns for each of 132 multiprocessors: 768 columns are 12 blocks, so 22 slices of rows; 16,832 are
 * 263, 2 slices; one more block, and there is one slice, which needs nothing. */
static void sums_of_columns_on_gpus_have_room_for_their_slices(void **state) {
    const struct ls_op_bias_backward biases[] = {{.columns = 768}, {.columns = 16832}, {.columns = 16833}};
    const size_t expected[] = {22 * 768 * 4, 2 * 16832 * 4, 0};
    (void)state;
    for (size_t i = 0; i < 3; i++) assert_int_equal(workspace_of(LS_OP_bias_backward, &biases[i]), expected[i]);
    /* beside a product the library may make the sums, which then have a place too */
    const struct ls_op_gemm products[] = {{.n = 768}, {.n = 16832}, {.n = 16833}};
    const size_t sums[] = {22 * 768 * 4, 2 * 16832 * 4, 16833 * 4};
    for (size_t i = 0; i < 3; i++) assert_int_equal(workspace_of(LS_OP_gemm, &products[i]), sums[i]);
    const struct ls_op_layernorm_backward layer = {.rows = 5, .columns = 768};
    const struct ls_op_rmsnorm_backward root = {.rows = 16384, .columns = 768, .dtype = LS_BF16},
                                        odd = {.columns = 769};
    const struct ls_op_head_norm_backward head = {.rows = 16384, .heads = 16, .head_size = 128};
    const struct ls_op_embedding_backward embedding = {.batch = 3, .length = 1000};
    /* a block for 768 columns of fp32 has 192 threads, one of bf16 96: 352 and 704 of them for 132 x 512 */
    assert_int_equal(workspace_of(LS_OP_layernorm_backward, &layer), 2 * 352 * 768 * 4);
    assert_int_equal(workspace_of(LS_OP_rmsnorm_backward, &root), 704 * 768 * 4);
    assert_int_equal(workspace_of(LS_OP_rmsnorm_backward, &odd), 21 * 769 * 4); /* 13 blocks of columns, by 21 slices */
    assert_int_equal(workspace_of(LS_OP_head_norm_backward, &head), 132 * 128 * 4);
    assert_int_equal(workspace_of(LS_OP_embedding_backward, &embedding), 3000 * 16); /* two keys of 8 bytes a place */
}

/* A head takes 2 T T for the matrix (T rounded up to 128), 3 T HD 4 for gradients and 2 T 4 for sums; 64 KiB are to
 * spare, and a piece stays within 320 MiB = 335,544,320. */
static void attention_on_gpus_is_cut_into_pieces(void **state) {
    const struct {
        struct ls_op_attention_backward op;
        int64_t batch, kv_heads, bytes;
    } cases[] = {
        /* 12 heads of 2,097,152 + 786,432 + 8,192: nine sequences would fit, eight divide 16 */
        {{.batch = 16, .length = 1024, .heads = 12, .kv_heads = 12, .head_size = 64, .dtype = LS_BF16},
         8,
         12,
         8 * 12 * INT64_C(2891776) + 65536},
        /* 32 heads of 33,554,432 + 6,291,456 + 32,768: eight fit */
        {{.batch = 4, .length = 4096, .heads = 32, .kv_heads = 32, .head_size = 128, .dtype = LS_BF16},
         1,
         8,
         8 * INT64_C(39878656) + 65536},
        /* four heads share keys: 587 MB for the least there is, which is more than a piece and below 1 GiB */
        {{.batch = 1, .length = 8192, .heads = 32, .kv_heads = 8, .head_size = 128, .dtype = LS_FP16},
         1,
         1,
         4 * INT64_C(146866176) + 65536},
        {{.batch = 1, .length = 16384, .heads = 32, .kv_heads = 8, .head_size = 128, .dtype = LS_BF16}, 0, 0, 0},
        {{.batch = 3, .length = 13, .heads = 4, .kv_heads = 2, .head_size = 6, .dtype = LS_BF16}, 0, 0, 0},
        {{.batch = 3, .length = 128, .heads = 4, .kv_heads = 4, .head_size = 64, .dtype = LS_FP32}, 0, 0, 0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct ls_attention_piece piece = ls_cuda_attention_piece(&cases[i].op);
        assert_int_equal(piece.batch, cases[i].batch);
        assert_int_equal(piece.kv_heads, cases[i].kv_heads);
        assert_int_equal(piece.bytes, cases[i].bytes);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_on_gpus_is_cut_into_pieces),
        cmocka_unit_test(sums_of_columns_on_gpus_have_room_for_their_slices),
        cmocka_unit_test(state_is_16P_or_18P_and_falls_with_the_stage),
        cmocka_unit_test(activations_are_what_backward_reads),
        cmocka_unit_test(full_checkpointing_keeps_a_fifth_at_12_layers),
        cmocka_unit_test(host_memory_is_the_ring_and_buffers_of_checkpoints),
        cmocka_unit_test(buffers_of_checkpoints_stay_small_on_cpus),
        cmocka_unit_test(what_no_machine_can_hold_is_refused_and_never_negative),
        cmocka_unit_test(the_wire_is_bounded_by_the_formulas_of_zero),
        cmocka_unit_test(micro_batches_are_reduced_in_the_type_of_the_wire),
        cmocka_unit_test(operations_are_6N_and_attention),
        cmocka_unit_test(a_step_uses_every_category_to_its_end),
        cmocka_unit_test(reductions_hide_behind_what_is_left_of_backward),
        cmocka_unit_test(gathers_after_the_update_hide_behind_forward),
        cmocka_unit_test(gathers_of_every_pass_run_a_block_ahead),
        cmocka_unit_test(any_number_of_micro_batches_is_predicted),
        cmocka_unit_test(the_bottleneck_is_what_takes_longest),
        cmocka_unit_test(gpus_are_found_by_name),
        cmocka_unit_test(heads_too_wide_for_gpus_are_refused),
        cmocka_unit_test(a_checkpoints_bytes_follow_what_the_optimizer_keeps),
        cmocka_unit_test(slices_of_matrices_too_large_to_send_are_refused),
        cmocka_unit_test(this_host_is_measured),
        cmocka_unit_test(changes_fit_and_come_cheapest_first),
        cmocka_unit_test(a_stage_is_advised_with_its_accumulation),
        cmocka_unit_test(what_no_single_change_achieves_is_combined),
        cmocka_unit_test(a_run_beyond_its_limit_is_refused_with_advice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
