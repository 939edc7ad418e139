/* ZeRO stages, with ranks as threads: every stage trains alike, holds and sends what it says. */
#define _GNU_SOURCE
#include "trainer_harness.h"

#include "worker/shard/shard.h"

#include <ftw.h>
#include <math.h>
#include <unistd.h>

/* 30 sequences divide among 1, 2 and 3 ranks, not among 4; few of the blocks' sizes divide by 3 or 4. */
static const char gpt2[] = "model: {model_type: gpt2, hidden_size: 18, num_hidden_layers: 3, num_attention_heads: 2}\n"
                           "data: {train: [{path: 'synthetic:9000'}], sequence_length: 12}\n"
                           "train: {steps: 40, global_batch_size: 30, micro_batch_size: 30}\n"
                           "optimizer: {lr: 1.0e-3, weight_decay: 0.7}\n"
                           "lr_schedule: {warmup_steps: 3}\n";
static const char llama[] = "model: {model_type: llama, hidden_size: 20, num_hidden_layers: 2, num_attention_heads: 2, "
                            "num_key_value_heads: 1,\n"
                            "        intermediate_size: 37, tie_word_embeddings: false}\n"
                            "data: {train: [{path: 'synthetic:9000'}], sequence_length: 10}\n"
                            "train: {steps: 40, global_batch_size: 30, micro_batch_size: 30}\n"
                            "optimizer: {lr: 1.0e-3, weight_decay: 0.7}\n";

static const char *const families[] = {gpt2, llama};

static double relative(double a, double b) {
    return fabs(a - b) / fmax(fabs(a), fabs(b));
}

/* One way of splitting the same training. */
struct split {
    int stage, ranks, micro_batch;
    int replicas; /* 0: 1 */
    enum ls_accumulate accumulate;
};

static struct run start(const char *yaml, struct split split, int64_t steps) {
    struct run run = {.config = harness_config(yaml), .ranks = split.ranks, .steps = steps};
    run.config.train.micro_batch_size = split.micro_batch;
    run.config.zero.stage = split.stage;
    run.config.zero.accumulate = split.accumulate;
    run.config.zero.replicas = split.replicas ? split.replicas : 1;
    return run;
}

/* Sums of gradients are in another order, so rounding differs, and grows with training: by Muon's iteration up to 485
 * times in a step (test_optimizer.c), for directions that have next to no gradient. */
static void check_same_training(const struct run *one, const struct run *other) {
    const double growth = one->config.optimizer.type == LS_MUON ? 10 : 1;
    for (int64_t i = 0; i < other->steps; i++) {
        const struct ls_step_report *a = &one->reports[i], *b = &other->reports[i];
        assert_memory_equal(&a->digest, &b->digest, sizeof a->digest);
        const double bound = growth * (i < 10 ? 1e-6 : 1e-4);
        if (!(relative(a->loss, b->loss) <= bound))
            fail_msg("stage %lld, %d ranks, %lld replicas, micro-batch %lld, step %lld: %.9g, expected %.9g",
                     (long long)other->config.zero.stage, other->ranks, (long long)other->config.zero.replicas,
                     (long long)other->config.train.micro_batch_size, (long long)b->step, b->loss, a->loss);
        assert_true(relative(a->grad_norm, b->grad_norm) <= 100 * bound);
    }
}

static void check_splits_by(enum ls_optimizer_type optimizer, const char *yaml, const struct split *splits,
                            size_t count) {
    struct run one = start(yaml, (struct split){.ranks = 1, .micro_batch = 30}, 30);
    one.config.optimizer.type = optimizer;
    one.config.optimizer.momentum = 0.95;
    harness_run_well(&one);
    assert_true(one.reports[29].loss < 0.98 * one.reports[0].loss);
    for (size_t i = 0; i < count; i++) {
        struct run other = start(yaml, splits[i], 30);
        other.config.optimizer = one.config.optimizer;
        harness_run_well(&other);
        check_same_training(&one, &other);
        harness_free(&other);
    }
    harness_free(&one);
}

static void check_splits(const char *yaml, const struct split *splits, size_t count) {
    check_splits_by(LS_ADAMW, yaml, splits, count);
}

/* Whether whole matrices are run instead of pairs. */
static bool is_long(void) {
    const char *mode = getenv("LS_TEST_LONG");
    return mode && !strcmp(mode, "1");
}

/* Pairwise over stage, ranks and accumulation; LS_TEST_LONG: all of them. */
static void every_stage_trains_alike_at_any_rank_count_and_accumulation(void **unused) {
    (void)unused;
    static const struct split pairs[] = {
        {0, 4, 3, 0, 0}, {1, 1, 30, 0, 0}, {1, 2, 4, 0, 0},  {1, 3, 30, 0, 0}, {1, 4, 4, 0, 0},
        {2, 1, 4, 0, 0}, {2, 2, 30, 0, 0}, {2, 3, 4, 0, 0},  {2, 4, 30, 0, 0}, {3, 1, 30, 0, 0},
        {3, 2, 4, 0, 0}, {3, 3, 4, 0, 0},  {3, 4, 30, 0, 0}, {3, 4, 4, 0, 0},
    };
    struct split all[32];
    size_t count = 0;
    for (int stage = 0; stage <= 3; stage++)
        for (int ranks = 1; ranks <= 4; ranks++)
            for (int accumulate = 0; accumulate < 2; accumulate++)
                all[count++] = (struct split){stage, ranks, accumulate ? 4 : 30, 0, 0};
    for (int family = 0; family < 2; family++) {
        if (is_long())
            check_splits(families[family], all, count);
        else
            check_splits(families[family], pairs, sizeof pairs / sizeof *pairs);
    }
}

static void replicas_and_sharded_accumulation_train_alike(void **unused) {
    (void)unused;
    static const struct split splits[] = {
        {1, 4, 4, 2, 0},
        {2, 4, 4, 2, 0},
        {3, 4, 4, 2, 0},
        {3, 4, 4, 4, 0},
        {2, 2, 4, 2, 0},
        {1, 3, 30, 3, 0},
        {1, 3, 4, 1, LS_ACCUMULATE_SHARDED},
        {1, 4, 4, 2, LS_ACCUMULATE_SHARDED},
    };
    for (int family = 0; family < 2; family++) check_splits(families[family], splits, sizeof splits / sizeof *splits);
}

/* Rounds with as many layers as ranks, with fewer, whose matrices are shared, and more rounds than one. */
static void matrices_become_orthogonal_wherever_their_slices_are(void **unused) {
    (void)unused;
    static const struct split splits[] = {
        {0, 2, 4, 0, 0},  {1, 2, 30, 0, 0}, {1, 4, 4, 2, 0}, {1, 3, 30, 0, 0}, {1, 4, 4, 0, LS_ACCUMULATE_SHARDED},
        {2, 3, 30, 0, 0}, {2, 8, 3, 0, 0},  {3, 2, 4, 0, 0}, {3, 4, 4, 0, 0},  {3, 8, 3, 2, 0},
        {3, 7, 3, 0, 0}};
    for (int family = 0; family < 2; family++)
        check_splits_by(LS_MUON, families[family], splits, sizeof splits / sizeof *splits);
}

/* Ranks on hosts with more cores, or fewer ranks, have more threads. 129 channels: products that libraries compute with
 * other bits where they are cut otherwise, on processors without a matrix unit. */
static void copies_of_matrices_stay_equal_whatever_the_threads(void **unused) {
    (void)unused;
    static const char wide[] =
        "model: {model_type: gpt2, hidden_size: 129, num_hidden_layers: 1, num_attention_heads: 1}\n"
        "data: {train: [{path: 'synthetic:9000'}], sequence_length: 4}\n"
        "train: {steps: 40, global_batch_size: 4, micro_batch_size: 1}\n"
        "optimizer: {type: muon, lr: 1.0e-3}\n";
    static const struct split splits[] = {{0, 2, 2, 0, 0}, {1, 2, 2, 2, 0}, {3, 4, 1, 2, 0}};
    for (size_t i = 0; i < sizeof splits / sizeof *splits; i++) {
        struct run run = start(wide, splits[i], 3);
        run.threads_of_last = 5;
        harness_run_well(&run);
        harness_free(&run);
    }
}

/* A missing wait shows where streams run as late, or as early, as they may. */
static void the_order_of_streams_does_not_change_a_bit(void **unused) {
    (void)unused;
    for (int round = 0; round < 4; round++)
        for (int stage = 1; stage <= 3; stage++) {
            const int family = round % 2;
            const bool muon = round >= 2;
            struct run runs[3];
            for (int order = 0; order < 3; order++) {
                runs[order] = start(families[family], (struct split){stage, 4, 4, stage == 3 ? 2 : 1, 0}, 5);
                runs[order].config.optimizer.type = muon ? LS_MUON : LS_ADAMW;
                runs[order].order =
                    (enum ls_stream_order[]){LS_STREAMS_EAGER, LS_STREAMS_LAZY, LS_STREAMS_HASTY}[order];
                runs[order].evaluate = true;
                runs[order].config.evaluation.every_steps = 5;
                runs[order].config.data.validation[0] = runs[order].config.data.train[0];
                runs[order].config.data.validation_count = 1;
                harness_run_well(&runs[order]);
                for (int i = 0; i < 5; i++) {
                    assert_memory_equal(&runs[order].reports[i].loss, &runs[0].reports[i].loss, sizeof(double));
                    assert_memory_equal(&runs[order].reports[i].grad_norm, &runs[0].reports[i].grad_norm,
                                        sizeof(double));
                }
                assert_memory_equal(&runs[order].validation_loss, &runs[0].validation_loss, sizeof(double));
                assert_memory_equal(runs[order].weights, runs[0].weights, (size_t)runs[0].weight_count * sizeof(float));
            }
            for (int order = 0; order < 3; order++) harness_free(&runs[order]);
        }
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *where) {
    (void)status, (void)kind, (void)where;
    return remove(path);
}

/* Saves after 4 steps at one split and goes on for 6 at others; at the same split with the same bits. */
static void check_resume(enum ls_optimizer_type optimizer, const char *yaml, struct split saved,
                         const struct split *loaded, size_t count) {
    char folder[] = "/tmp/lockstep-zero-XXXXXX", checkpoint[LS_CHECKPOINT_PATH_MAX];
    assert_non_null(mkdtemp(folder));
    struct run whole = start(yaml, saved, 10), first = start(yaml, saved, 4);
    whole.config.optimizer.type = first.config.optimizer.type = optimizer;
    first.save = folder;
    harness_run_well(&whole);
    harness_run_well(&first);
    assert_int_equal(ls_checkpoint_path(folder, 4, checkpoint, NULL), LS_OK);
    for (size_t i = 0; i <= count; i++) {
        struct run second = start(yaml, i < count ? loaded[i] : saved, 6);
        second.config.optimizer.type = optimizer;
        second.start_step = 4;
        second.load = checkpoint;
        harness_run_well(&second);
        for (int step = 0; step < 6; step++) {
            assert_true(relative(whole.reports[4 + step].loss, second.reports[step].loss) <=
                        (optimizer == LS_MUON ? 1e-5 : 1e-6));
            if (i == count)
                assert_memory_equal(&whole.reports[4 + step].loss, &second.reports[step].loss, sizeof(double));
        }
        if (i == count) assert_memory_equal(whole.weights, second.weights, (size_t)whole.weight_count * sizeof(float));
        harness_free(&second);
    }
    harness_free(&whole);
    harness_free(&first);
    nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void a_checkpoint_goes_on_at_any_stage_and_rank_count(void **unused) {
    (void)unused;
    static const struct split others[] = {{0, 1, 30, 0, 0}, {1, 2, 4, 0, 0}, {2, 3, 4, 0, 0}, {2, 4, 4, 2, 0}};
    static const struct split sharded[] = {{3, 3, 4, 0, 0}, {3, 4, 4, 2, 0}};
    for (int family = 0; family < 2; family++) {
        check_resume(LS_ADAMW, families[family], (struct split){3, 4, 4, 0, 0}, others, 4);
        check_resume(LS_ADAMW, families[family], (struct split){2, 4, 4, 2, 0}, sharded, 2);
        check_resume(LS_ADAMW, families[family], (struct split){1, 3, 4, 0, 0}, sharded, 2);
        check_resume(LS_MUON, families[family], (struct split){3, 4, 4, 0, 0}, others, 4);
        check_resume(LS_MUON, families[family], (struct split){2, 4, 4, 2, 0}, sharded, 2);
    }
}

/* Computing again changes no bit; nor does what is gathered for it. Three layers in segments of two: the first two run
 * forward again before their backward. */
static void check_recomputation(const char *yaml, struct split split) {
    static const struct {
        enum ls_checkpointing_mode mode;
        int every;
    } modes[] = {{LS_CHECKPOINTING_FULL, 1}, {LS_CHECKPOINTING_FULL, 2}, {LS_CHECKPOINTING_SELECTIVE, 1}};
    struct run plain = start(yaml, split, 10);
    harness_run_well(&plain);
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        struct run again = start(yaml, split, 10);
        again.config.activation_checkpointing.mode = modes[i].mode;
        again.config.activation_checkpointing.every = modes[i].every;
        harness_run_well(&again);
        for (int step = 0; step < 10; step++)
            assert_memory_equal(&plain.reports[step].loss, &again.reports[step].loss, sizeof(double));
        assert_memory_equal(plain.weights, again.weights, (size_t)plain.weight_count * sizeof(float));
        harness_free(&again);
    }
    harness_free(&plain);
}

static void recomputation_changes_no_bit_at_any_stage(void **unused) {
    (void)unused;
    for (int family = 0; family < 2; family++)
        for (int stage = 0; stage <= 3; stage++)
            for (int ranks = 1; ranks <= 4; ranks++)
                for (int accumulate = 0; accumulate < 2; accumulate++)
                    if (is_long() || (stage == 3 && ranks == 3 && accumulate) || (stage == 1 && ranks == 4))
                        check_recomputation(families[family], (struct split){stage, ranks, accumulate ? 4 : 30, 0, 0});
}

/* A gradient is rounded to 8 bits before it is sent and as a sum: what AdamW makes of it differs by about 2^-8, and the
 * losses, which have fallen by a tenth, by about 2^-8 of that. */
static void gradients_may_travel_in_bf16(void **unused) {
    (void)unused;
    static const struct split splits[] = {
        {0, 3, 4, 0, 0}, {1, 2, 30, 0, 0}, {1, 3, 4, 0, LS_ACCUMULATE_SHARDED}, {2, 4, 4, 2, 0}, {3, 3, 4, 0, 0}};
    for (int family = 0; family < 2; family++) {
        struct run one = start(families[family], (struct split){.ranks = 1, .micro_batch = 30}, 20);
        harness_run_well(&one);
        for (size_t i = 0; i < sizeof splits / sizeof *splits; i++) {
            struct run runs[3];
            for (int order = 0; order < 3; order++) {
                runs[order] = start(families[family], splits[i], 20);
                runs[order].order =
                    (enum ls_stream_order[]){LS_STREAMS_EAGER, LS_STREAMS_LAZY, LS_STREAMS_HASTY}[order];
                runs[order].config.zero.gradient_dtype = LS_GRADIENT_BF16;
                harness_run_well(&runs[order]);
                assert_memory_equal(runs[order].weights, runs[0].weights, (size_t)runs[0].weight_count * sizeof(float));
            }
            double largest = 0;
            for (int step = 0; step < 20; step++)
                largest = fmax(largest, relative(one.reports[step].loss, runs[0].reports[step].loss));
            assert_true(largest < 1e-3 && largest > 1e-7);
            for (int order = 0; order < 3; order++) harness_free(&runs[order]);
        }
        harness_free(&one);
    }
}

static int64_t round_up(int64_t count, int64_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

/* Elements of all blocks, each padded to a multiple of the ranks of a group. */
static int64_t padded_parameters(const struct ls_model *model, int64_t ranks) {
    int64_t sum = 0;
    for (int block = 0; block < ls_model_block_count(model); block++)
        sum += round_up(ls_model_block(model, block)->count, ranks);
    return sum;
}

static struct ls_arena_plan *plan_of(const struct ls_config *config, const struct ls_model *model, int64_t ranks) {
    struct ls_arena_plan *plan = calloc(1, sizeof *plan);
    assert_int_equal(ls_shard_plan(config, model, ranks, plan), 0);
    return plan;
}

/* Bytes a rank holds of parameters, gradients and optimizer state, P parameters over N ranks. fp32: 16P, 8P + 8P/N,
 * 4P + 12P/N, 16P/N. bf16, with fp32 master parameters: 18P, 6P + 12P/N, 2P + 16P/N, 18P/N; rounded stochastically,
 * without: 14P, 6P + 8P/N, 2P + 12P/N, 14P/N. Lion and SGD have one moment less: 4P or 4P/N. So has Muon, but for what
 * is AdamW's: of GPT-2 the embedding's 4842 elements and the head's 36, or N-ths of them, and a layer's 18 x 13 on
 * every rank; of Llama 5140 and 5160, and 2 x 20. The arena rounds each of the four or five buffers of a block up to
 * 256 bytes, padding is less than N elements each. */
static void check_state_bytes(int family, enum ls_precision precision, bool stochastic_rounding,
                              enum ls_optimizer_type optimizer) {
    struct ls_config config = harness_config(families[family]);
    struct ls_model *model;
    config.precision = precision;
    config.optimizer.stochastic_rounding = stochastic_rounding;
    config.optimizer.type = optimizer;
    assert_int_equal(ls_model_create(&config, &model, NULL), LS_OK);
    const double P = (double)ls_model_parameter_count(model);
    for (int64_t N = 1; N <= 8; N++)
        for (int stage = 0; stage <= 3; stage++) {
            config.zero.stage = stage;
            struct ls_arena_plan *plan = plan_of(&config, model, N);
            const double n = (double)N;
            const double full[] = {16 * P, 8 * P + 8 * P / n, 4 * P + 12 * P / n, 16 * P / n};
            const double half[] = {18 * P, 6 * P + 12 * P / n, 2 * P + 16 * P / n, 18 * P / n};
            const double bare[] = {14 * P, 6 * P + 8 * P / n, 2 * P + 12 * P / n, 14 * P / n};
            const double cut = stage == 0 ? 1 : n, second = family == 0 ? 4878 / cut + 3 * 234 : 10300 / cut + 2 * 40;
            const double moment = optimizer == LS_ADAMW  ? 0
                                  : optimizer == LS_MUON ? 4 * P / cut - 4 * second
                                                         : 4 * P / cut;
            const double formula = precision == LS_PRECISION_FP32 ? full[stage]
                                   : stochastic_rounding          ? bare[stage]
                                                                  : half[stage];
            const int64_t state = plan->category_bytes[LS_MEMORY_PARAMETERS] +
                                  plan->category_bytes[LS_MEMORY_GRADIENTS] + plan->category_bytes[LS_MEMORY_OPTIMIZER];
            const double slack = (double)ls_model_block_count(model) * 5 * (4.0 * n + 256);
            assert_true((double)state >= formula - moment && (double)state <= formula - moment + slack);
            free(plan);
        }
    ls_model_destroy(model);
}

static void state_bytes_follow_the_formulas(void **unused) {
    (void)unused;
    for (int family = 0; family < 2; family++) {
        for (int type = LS_ADAMW; type <= LS_MUON; type++) {
            const enum ls_optimizer_type optimizer = (enum ls_optimizer_type)type;
            check_state_bytes(family, LS_PRECISION_FP32, false, optimizer);
            check_state_bytes(family, LS_PRECISION_BF16, false, optimizer);
            check_state_bytes(family, LS_PRECISION_BF16, true, optimizer);
        }
    }
}

/* GPT-2, V 257, T 12, C 18, three layers: embedding (V + T) C = 4842, a layer 12 C^2 + 13 C = 4122, head 2 C = 36.
 * Llama, V 257, C 20, two heads of 10 and one of keys, I 37: embedding V C = 5140, a layer C (2 C + 20 + 3 I + 2) =
 * 3460, head V C + C = 5160. Over 4 ranks: 4844, 4124 and 36; 5140, 3460, 5160. */
static void whole_blocks_pass_through_one_large_and_two_layer_buffers(void **unused) {
    (void)unused;
    static const int64_t large[] = {4844, 5160}, layer[] = {4124, 3460};
    for (int family = 0; family < 2; family++) {
        struct ls_config config = harness_config(families[family]);
        struct ls_model *model;
        assert_int_equal(ls_model_create(&config, &model, NULL), LS_OK);
        const int64_t passing = round_up(4 * large[family], 256) + 2 * round_up(4 * layer[family], 256);
        for (int stage = 0; stage <= 3; stage++) {
            config.zero.stage = stage;
            struct ls_arena_plan *plan = plan_of(&config, model, 4);
            assert_int_equal(plan->category_bytes[LS_MEMORY_REDUCED], stage >= 2 ? passing : 0);
            assert_int_equal(plan->category_bytes[LS_MEMORY_GATHERED], stage == 3 ? passing : 0);
            free(plan);
        }
        ls_model_destroy(model);
    }
}

/* What travels. */
struct types {
    enum ls_gradient_dtype gradients;
    enum ls_precision precision;
    enum ls_optimizer_type optimizer;
};
static const struct types fp32 = {LS_GRADIENT_FP32, LS_PRECISION_FP32, LS_ADAMW},
                          narrow_gradients = {LS_GRADIENT_BF16, LS_PRECISION_FP32, LS_ADAMW},
                          bf16 = {LS_GRADIENT_FP32, LS_PRECISION_BF16, LS_ADAMW},
                          muon = {LS_GRADIENT_FP32, LS_PRECISION_FP32, LS_MUON},
                          muon_bf16 = {LS_GRADIENT_BF16, LS_PRECISION_BF16, LS_MUON};

/* What the steps after the first five sent: a step's own, because the first one finds nothing gathered. */
static int64_t measured_wire(const char *yaml, struct split split, int every, struct types types) {
    uint64_t sent[2][HARNESS_RANKS_MAX];
    for (int longer = 0; longer < 2; longer++) {
        struct run run = start(yaml, split, 5 + longer);
        run.config.zero.gradient_dtype = types.gradients;
        run.config.precision = types.precision;
        run.config.optimizer.type = types.optimizer;
        if (every > 0) {
            run.config.activation_checkpointing.mode = LS_CHECKPOINTING_FULL;
            run.config.activation_checkpointing.every = every;
        }
        harness_run_well(&run);
        memcpy(sent[longer], run.wire_bytes, sizeof run.wire_bytes);
        harness_free(&run);
    }
    for (int rank = 1; rank < split.ranks; rank++)
        assert_int_equal(sent[1][rank] - sent[0][rank], sent[1][0] - sent[0][0]);
    return (int64_t)(sent[1][0] - sent[0][0]);
}

static int64_t planned_wire(const char *yaml, struct split split, int every, struct types types,
                            struct ls_shard_wire *wire) {
    struct run run = start(yaml, split, 1);
    run.config.zero.gradient_dtype = types.gradients;
    run.config.precision = types.precision;
    run.config.optimizer.type = types.optimizer;
    struct ls_model *model;
    if (every > 0) {
        run.config.activation_checkpointing.mode = LS_CHECKPOINTING_FULL;
        run.config.activation_checkpointing.every = every;
    }
    assert_int_equal(ls_model_create(&run.config, &model, NULL), LS_OK);
    *wire = ls_shard_wire_bytes(&run.config, model, split.ranks);
    ls_model_destroy(model);
    return wire->gradients + wire->parameters + wire->scalars + wire->matrices;
}

/* Runs, plans, compares. */
static struct ls_shard_wire check_wire(const char *yaml, struct split split, int every, struct types types) {
    struct ls_shard_wire wire;
    assert_int_equal(measured_wire(yaml, split, every, types), planned_wire(yaml, split, every, types, &wire));
    return wire;
}

/* f P (2g | g + w | g + w | g + 2w), f = (N - 1) / N, w and g the bytes of a parameter and a gradient on the wire,
 * without accumulation; padding may add N - 1 elements to each collective of a block. The two numbers that travel too,
 * loss and norm, are apart. */
static void check_wire_bounds(const char *yaml, const struct ls_model *model, struct types types) {
    const double P = (double)ls_model_parameter_count(model);
    const int w = types.precision == LS_PRECISION_BF16 ? 2 : 4, g = types.gradients == LS_GRADIENT_BF16 ? 2 : 4;
    const int bytes_per_parameter[] = {2 * g, g + w, g + w, g + 2 * w};
    for (int stage = 0; stage <= 3; stage++)
        for (int ranks = 1; ranks <= 4; ranks++) {
            const struct ls_shard_wire wire = check_wire(yaml, (struct split){stage, ranks, 30, 0, 0}, 0, types);
            const double f = (double)(ranks - 1) / ranks;
            const double padding = 3.0 * ls_model_block_count(model) * 4 * (ranks - 1);
            assert_true((double)(wire.gradients + wire.parameters) <= f * P * bytes_per_parameter[stage] + padding);
            assert_true(wire.scalars <= 24 * ranks);
        }
}

static void wire_bytes_are_counted_planned_and_bounded(void **unused) {
    (void)unused;
    for (int family = 0; family < 2; family++) {
        const char *yaml = families[family];
        struct ls_config config = harness_config(yaml);
        struct ls_model *model;
        assert_int_equal(ls_model_create(&config, &model, NULL), LS_OK);
        check_wire_bounds(yaml, model, fp32);
        check_wire_bounds(yaml, model, narrow_gradients);
        check_wire_bounds(yaml, model, bf16);
        /* 30 sequences over 3 ranks in micro-batches of 4: three of them. */
        const double gradients = 4 * (double)padded_parameters(model, 3) * 2 / 3;
        for (int stage = 2; stage <= 3; stage++)
            assert_true((double)check_wire(yaml, (struct split){stage, 3, 4, 0, 0}, 0, fp32).gradients ==
                        3 * gradients);
        assert_true((double)check_wire(yaml, (struct split){1, 3, 4, 0, 0}, 0, fp32).gradients == gradients);
        assert_true((double)check_wire(yaml, (struct split){1, 3, 4, 0, LS_ACCUMULATE_SHARDED}, 0, narrow_gradients)
                        .gradients == 3 * gradients / 2);
        /* Two groups of two ranks: a reduce-scatter of half in a group, then half a block all-reduced by two. */
        assert_true((double)check_wire(yaml, (struct split){2, 4, 30, 2, 0}, 0, fp32).gradients ==
                    4.0 * (double)padded_parameters(model, 2));
        check_wire(yaml, (struct split){3, 4, 4, 2, 0}, 0, narrow_gradients);
        for (int every = 1; every <= 2; every++) check_wire(yaml, (struct split){3, 4, 4, 0, 0}, every, fp32);
        ls_model_destroy(model);
    }
}

/* Muon's directions go out and come back once in each round of as many layers as the group has ranks: slices of GPT-2's
 * three layers of 4122 elements, and of Llama's two of 3460. */
static void matrices_travel_there_and_back_once_a_round(void **unused) {
    (void)unused;
    static const int64_t sizes[] = {4122, 3460}, layers[] = {3, 2};
    for (int family = 0; family < 2; family++)
        for (int ranks = 1; ranks <= 5; ranks++)
            for (int stage = 0; stage <= 3; stage++) {
                const struct types types = (ranks + stage) % 2 ? muon : muon_bf16;
                const struct ls_shard_wire wire =
                    check_wire(families[family], (struct split){stage, ranks, 30, 0, 0}, 0, types);
                const int64_t slice = round_up(sizes[family], ranks) / ranks, element = types.precision ? 2 : 4;
                const int64_t rounds = (layers[family] + ranks - 1) / ranks;
                assert_int_equal(wire.matrices, stage == 0 ? 0 : rounds * 2 * (ranks - 1) * slice * element);
            }
    check_wire(gpt2, (struct split){3, 4, 4, 2, 0}, 0, muon); /* two groups of two */
}

/* GPT-2's matrices of 18 x 54, 18 x 18, 18 x 72 and 72 x 18 take 5 (4 m n 18 + 2 18^3) operations each: 408,240,
 * 174,960 and twice 524,880. Two ranks have a layer each, then share the third: the largest go one to each, then the
 * others; three have one each; of eight the third layer's two have as much as those two; of twelve each has one matrix,
 * and so it is where there are more ranks than matrices. Two groups of two do what two do. */
static void an_updates_products_are_counted(void **unused) {
    (void)unused;
    static const struct {
        int ranks, replicas;
        double flops;
    } rows[] = {{1, 1, 4898880}, {2, 1, 1632960 + 933120}, {3, 1, 1632960},          {8, 1, 933120},
                {12, 1, 524880}, {100, 1, 524880},         {4, 2, 1632960 + 933120}, {7, 1, 933120}};
    struct ls_config config = harness_config(gpt2);
    struct ls_model *model;
    assert_int_equal(ls_model_create(&config, &model, NULL), LS_OK);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        config.optimizer.type = LS_MUON;
        config.zero.stage = 2;
        config.zero.replicas = rows[i].replicas;
        assert_true(ls_shard_update_flops(&config, model, rows[i].ranks) == rows[i].flops);
        config.optimizer.type = LS_ADAMW;
        assert_true(ls_shard_update_flops(&config, model, rows[i].ranks) == 0);
        config.optimizer.type = LS_MUON; /* nothing is cut: everybody does everything */
        config.zero.stage = 0, config.zero.replicas = 1;
        assert_true(ls_shard_update_flops(&config, model, rows[i].ranks) == 4898880);
    }
    ls_model_destroy(model);
}

/* Three layers of four matrices, each of which may take as long as a block's backward: nothing else of Muon moves on
 * one rank. */
static void an_update_gets_on_with_each_matrix(void **unused) {
    (void)unused;
    enum { STEPS = 2 };
    uint64_t beats[2];
    for (int type = 0; type < 2; type++) {
        struct ls_progress_record record = {0};
        struct run run = start(gpt2, (struct split){0, 1, 30, 0, 0}, STEPS);
        run.config.optimizer.type = type ? LS_MUON : LS_ADAMW;
        run.progress = &record;
        harness_run_well(&run);
        beats[type] = record.beat;
        harness_free(&run);
    }
    assert_int_equal(beats[1] - beats[0], STEPS * 3 * 4);
}

static void a_step_that_is_not_finite_ends_every_stage_alike(void **unused) {
    (void)unused;
    for (int stage = 1; stage <= 3; stage++) {
        struct run run = start(gpt2, (struct split){stage, 3, 4, 0, 0}, 20);
        run.config.optimizer.lr = 1e38;
        run.config.lr_schedule.warmup_steps = 0;
        harness_run(&run);
        for (int rank = 0; rank < 3; rank++) {
            assert_int_equal(run.codes[rank], LS_NONFINITE);
            assert_non_null(strstr(run.errors[rank].text, "step 2 is not finite"));
        }
        harness_free(&run);
    }
}

/* The last rank's seed is another, so it starts with other parameters; at stages 1 and 2 the first update spreads
 * everybody's slices and heals that, unless groups differ. */
static void replicas_that_differ_are_noticed(void **unused) {
    (void)unused;
    for (int stage = 1; stage <= 3; stage++) {
        struct run run = start(gpt2, (struct split){stage, 4, 30, 2, 0}, 20);
        run.differs = true;
        run.config_of_last = run.config;
        run.config_of_last.train.seed = 7;
        harness_run(&run);
        for (int rank = 0; rank < 4; rank++) {
            assert_int_equal(run.codes[rank], LS_ERROR); /* nothing is wrong with the way between them */
            assert_non_null(strstr(run.errors[rank].text, "hold different parameters"));
        }
        harness_free(&run);
    }
}

static void replicas_that_do_not_divide_the_ranks_are_refused(void **unused) {
    (void)unused;
    struct run run = start(gpt2, (struct split){2, 3, 30, 2, 0}, 1);
    harness_run(&run);
    for (int rank = 0; rank < 3; rank++) assert_int_equal(run.codes[rank], LS_USAGE);
    harness_free(&run);
}

static void a_rank_that_cannot_save_does_not_hold_up_the_others(void **unused) {
    (void)unused;
    for (int stage = 1; stage <= 3; stage += 2) {
        char folder[] = "/tmp/lockstep-zero-XXXXXX";
        assert_non_null(mkdtemp(folder));
        struct run run = start(gpt2, (struct split){stage, 3, 30, 0, 0}, 2);
        run.save = folder;
        run.unwritable_rank = 2;
        harness_run(&run);
        for (int rank = 0; rank < 3; rank++) assert_int_equal(run.codes[rank], rank == 1 ? LS_CHECKPOINT : LS_OK);
        nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    }
}

/* The last rank's validation data have ids beyond the vocabulary; the others still gather parameters with it. */
static void a_rank_that_cannot_evaluate_ends_all_of_them(void **unused) {
    (void)unused;
    char path[] = "/tmp/lockstep-zero-tokens-XXXXXX";
    int32_t header[256] = {20240520, 1, 1000};
    uint16_t tokens[1000];
    for (int i = 0; i < 1000; i++) tokens[i] = (uint16_t)(i % 90);
    int file = mkstemp(path);
    assert_true(file >= 0 && write(file, header, sizeof header) == sizeof header &&
                write(file, tokens, sizeof tokens) == sizeof tokens);
    close(file);
    struct run run = start(gpt2, (struct split){3, 3, 4, 0, 0}, 0);
    run.evaluate = true;
    run.config.model.vocab_size = 100;
    run.config.evaluation.every_steps = 1;
    run.config.data.validation[0] = run.config.data.train[0];
    run.config.data.validation_count = 1;
    run.config_of_last = run.config;
    run.differs = true;
    snprintf(run.config.data.validation[0].path, sizeof run.config.data.validation[0].path, "%s", path);
    snprintf(run.config_of_last.data.validation[0].path, sizeof run.config.data.validation[0].path, "synthetic:1000");
    harness_run(&run);
    for (int rank = 0; rank < 3; rank++) {
        assert_int_equal(run.codes[rank], LS_DATA);
        assert_int_equal(run.failed_ranks[rank], 2);
    }
    harness_free(&run);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_stage_trains_alike_at_any_rank_count_and_accumulation),
        cmocka_unit_test(replicas_and_sharded_accumulation_train_alike),
        cmocka_unit_test(matrices_become_orthogonal_wherever_their_slices_are),
        cmocka_unit_test(copies_of_matrices_stay_equal_whatever_the_threads),
        cmocka_unit_test(the_order_of_streams_does_not_change_a_bit),
        cmocka_unit_test(a_checkpoint_goes_on_at_any_stage_and_rank_count),
        cmocka_unit_test(recomputation_changes_no_bit_at_any_stage),
        cmocka_unit_test(gradients_may_travel_in_bf16),
        cmocka_unit_test(state_bytes_follow_the_formulas),
        cmocka_unit_test(whole_blocks_pass_through_one_large_and_two_layer_buffers),
        cmocka_unit_test(wire_bytes_are_counted_planned_and_bounded),
        cmocka_unit_test(matrices_travel_there_and_back_once_a_round),
        cmocka_unit_test(an_updates_products_are_counted),
        cmocka_unit_test(an_update_gets_on_with_each_matrix),
        cmocka_unit_test(a_step_that_is_not_finite_ends_every_stage_alike),
        cmocka_unit_test(replicas_that_differ_are_noticed),
        cmocka_unit_test(a_rank_that_cannot_save_does_not_hold_up_the_others),
        cmocka_unit_test(a_rank_that_cannot_evaluate_ends_all_of_them),
        cmocka_unit_test(replicas_that_do_not_divide_the_ranks_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
