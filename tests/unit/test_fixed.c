/* train.reduction: fixed: the same bits however the training is split. */
#define _GNU_SOURCE
#include "trainer_harness.h"

#include "worker/shard/state.h"

#include <ftw.h>
#include <unistd.h>

/* 30 sequences in slots of 4: eight slots, the last of two sequences. */
static const char gpt2[] = "model: {model_type: gpt2, hidden_size: 32, num_hidden_layers: 3, num_attention_heads: 2}\n"
                           "data: {train: [{path: 'synthetic:9000'}], validation: [{path: 'synthetic:1000'}],\n"
                           "       sequence_length: 12}\n"
                           "train: {steps: 50, global_batch_size: 30, micro_batch_size: 4, gradient_clipping: 0.5,\n"
                           "        reduction: fixed}\n"
                           "evaluation: {every_steps: 1}\n"
                           "optimizer: {lr: 3.0e-3}\n";
static const char llama[] = "model: {model_type: llama, hidden_size: 24, num_hidden_layers: 3, num_attention_heads: 4, "
                            "num_key_value_heads: 2,\n"
                            "        intermediate_size: 40, tie_word_embeddings: false}\n"
                            "data: {train: [{path: 'synthetic:9000'}], validation: [{path: 'synthetic:1000'}],\n"
                            "       sequence_length: 10}\n"
                            "train: {steps: 50, global_batch_size: 30, micro_batch_size: 4, gradient_clipping: 0.5,\n"
                            "        reduction: fixed}\n"
                            "evaluation: {every_steps: 1}\n"
                            "optimizer: {lr: 3.0e-3}\n";
static const char *const families[] = {gpt2, llama};

/* One way of splitting the same training. */
struct split {
    int ranks, threads, stage;
    const char *checkpointing; /* NULL: none */
    int replicas;              /* 0: 1 */
    enum ls_accumulate accumulate;
    enum ls_stream_order order;
};

static struct run start(const struct ls_config *config, struct split split, int64_t steps) {
    struct run run = {.config = *config,
                      .ranks = split.ranks,
                      .threads = split.threads,
                      .steps = steps,
                      .order = split.order,
                      .evaluate = config->evaluation.every_steps > 0};
    run.config.zero.stage = split.stage;
    run.config.zero.accumulate = split.accumulate;
    run.config.zero.replicas = split.replicas ? split.replicas : 1;
    if (split.checkpointing) {
        const bool full = strncmp(split.checkpointing, "full", 4) == 0;
        run.config.activation_checkpointing.mode = full ? LS_CHECKPOINTING_FULL : LS_CHECKPOINTING_SELECTIVE;
        if (full) run.config.activation_checkpointing.every = split.checkpointing[4] == '2' ? 2 : 1;
    }
    return run;
}

static void check_same_bits(const struct run *one, const struct run *other) {
    char what[128];
    snprintf(what, sizeof what, "%d ranks, %d threads, stage %d, %d replicas, checkpointing %d", other->ranks,
             other->threads, (int)other->config.zero.stage, (int)other->config.zero.replicas,
             (int)other->config.activation_checkpointing.mode);
    for (int64_t i = 0; i < one->steps; i++) {
        const struct ls_step_report *a = &one->reports[i], *b = &other->reports[i];
        if (memcmp(&a->loss, &b->loss, sizeof a->loss) != 0)
            fail_msg("%s: loss of step %d is %.17g, not %.17g", what, (int)i + 1, b->loss, a->loss);
        if (memcmp(&a->grad_norm, &b->grad_norm, sizeof a->grad_norm) != 0)
            fail_msg("%s: norm of step %d is %.17g, not %.17g", what, (int)i + 1, b->grad_norm, a->grad_norm);
        assert_memory_equal(&a->digest, &b->digest, sizeof a->digest);
    }
    assert_int_equal(one->weight_count, other->weight_count);
    for (int64_t i = 0; i < one->weight_count; i++)
        if (memcmp(&one->weights[i], &other->weights[i], sizeof(float)) != 0)
            fail_msg("%s: weight %lld is %.9g, not %.9g", what, (long long)i, (double)other->weights[i],
                     (double)one->weights[i]);
    if (memcmp(&one->validation_loss, &other->validation_loss, sizeof one->validation_loss) != 0)
        fail_msg("%s: the validation loss is %.17g, not %.17g", what, other->validation_loss, one->validation_loss);
}

/* Against one rank with one thread at stage 0 that keeps all activations. */
static void check_splits(const struct ls_config *config, int64_t steps, const struct split *splits, size_t count) {
    struct run one = start(config, (struct split){.ranks = 1, .threads = 1}, steps);
    harness_run_well(&one);
    for (size_t i = 0; i < count; i++) {
        struct run other = start(config, splits[i], steps);
        harness_run_well(&other);
        check_same_bits(&one, &other);
        harness_free(&other);
    }
    harness_free(&one);
}

static bool is_long(void) {
    const char *mode = getenv("LS_TEST_LONG");
    return mode && strcmp(mode, "1") == 0;
}

/* Every pair of ranks, threads, stage and checkpointing; LS_TEST_LONG: all of them. */
static void weights_are_the_same_at_any_ranks_threads_stage_and_checkpointing(void **state) {
    (void)state;
    static const struct split pairs[] = {
        {1, 2, 0, "full", 0, 0, 0},      {1, 1, 1, "full2", 0, 0, 0}, {1, 2, 2, NULL, 0, 0, 0},
        {1, 1, 3, "selective", 0, 0, 0}, {2, 1, 0, NULL, 0, 0, 0},    {2, 2, 1, "full", 0, 0, 0},
        {2, 1, 2, "selective", 0, 0, 0}, {2, 2, 3, "full2", 0, 0, 0}, {3, 1, 0, "full2", 0, 0, 0},
        {3, 2, 1, "selective", 0, 0, 0}, {3, 1, 2, "full", 0, 0, 0},  {3, 2, 3, NULL, 0, 0, 0},
        {4, 2, 0, "selective", 0, 0, 0}, {4, 1, 1, NULL, 0, 0, 0},    {4, 2, 2, "full2", 0, 0, 0},
        {4, 1, 3, "full", 0, 0, 0},
    };
    static const char *const modes[] = {NULL, "full", "full2", "selective"};
    struct split all[128];
    size_t count = 0;
    for (int ranks = 1; ranks <= 4; ranks++)
        for (int threads = 1; threads <= 2; threads++)
            for (int stage = 0; stage <= 3; stage++)
                for (int mode = 0; mode < 4; mode++)
                    all[count++] = (struct split){ranks, threads, stage, modes[mode], 0, 0, 0};
    for (int family = 0; family < 2; family++) {
        const struct ls_config config = harness_config(families[family]);
        if (is_long())
            check_splits(&config, 10, all, count);
        else
            check_splits(&config, 5, pairs, sizeof pairs / sizeof *pairs);
    }
}

/* The weights that are compared are rounded; the norms in the reports are not, nor is what comes of the master weights
 * later. */
static void bf16_and_fp16_train_to_the_same_bits_too(void **state) {
    (void)state;
    static const struct split splits[] = {
        {1, 2, 3, "full2", 0, 0, 0}, {2, 1, 0, NULL, 0, 0, 0},        {2, 2, 1, "full", 0, 0, 0},
        {3, 1, 2, "full", 0, 0, 0},  {3, 2, 0, "selective", 0, 0, 0}, {4, 1, 3, "selective", 0, 0, 0},
        {4, 1, 2, NULL, 2, 0, 0},
    };
    for (int family = 0; family < 2; family++) {
        struct ls_config config = harness_config(families[family]);
        config.precision = LS_PRECISION_BF16;
        check_splits(&config, is_long() ? 10 : 4, splits, sizeof splits / sizeof *splits);
        config.optimizer.type = LS_MUON;
        check_splits(&config, is_long() ? 10 : 4, splits, is_long() ? sizeof splits / sizeof *splits : 5);
        config.optimizer.stochastic_rounding = true;
        check_splits(&config, is_long() ? 10 : 4, splits + 4, 3);
        config.optimizer.type = family == 0 ? LS_LION : LS_SGD;
        check_splits(&config, is_long() ? 10 : 4, splits + 1, is_long() ? sizeof splits / sizeof *splits - 1 : 2);
        config.optimizer.type = LS_ADAMW;
        check_splits(&config, is_long() ? 10 : 4, splits, is_long() ? sizeof splits / sizeof *splits : 4);
        config.optimizer.stochastic_rounding = false;
        config.precision = LS_PRECISION_FP16;
        check_splits(&config, 3, splits, is_long() ? sizeof splits / sizeof *splits : 4);
    }
}

static void replicas_accumulation_and_stream_order_do_not_matter(void **state) {
    (void)state;
    static const struct split splits[] = {
        {4, 1, 1, NULL, 2, 0, 0},
        {4, 1, 2, NULL, 2, 0, 0},
        {4, 1, 3, NULL, 2, 0, 0},
        {3, 1, 3, NULL, 3, 0, 0},
        {3, 1, 1, NULL, 0, LS_ACCUMULATE_SHARDED, 0},
        {3, 1, 1, NULL, 0, LS_ACCUMULATE_LOCAL, 0},
        {3, 1, 0, NULL, 0, 0, LS_STREAMS_LAZY},
        {2, 1, 2, NULL, 0, 0, LS_STREAMS_LAZY},
        {3, 1, 3, NULL, 0, 0, LS_STREAMS_LAZY},
        {3, 1, 0, NULL, 0, 0, LS_STREAMS_HASTY},
        {2, 1, 2, NULL, 0, 0, LS_STREAMS_HASTY},
        {3, 1, 3, NULL, 0, 0, LS_STREAMS_HASTY},
    };
    struct ls_config config = harness_config(gpt2);
    check_splits(&config, 3, splits, sizeof splits / sizeof *splits);
    config.optimizer.type = LS_MUON;
    check_splits(&config, 3, splits, sizeof splits / sizeof *splits);
}

/* One slot a rank at the most, slots of one sequence, and numbers of slots between. */
static void any_number_of_slots_is_summed_alike(void **state) {
    (void)state;
    static const int micro_batches[] = {1, 2, 3, 7, 8, 10, 30};
    for (size_t i = 0; i < sizeof micro_batches / sizeof *micro_batches; i++) {
        struct ls_config config = harness_config(llama);
        config.train.micro_batch_size = micro_batches[i];
        const int slots = (30 + micro_batches[i] - 1) / micro_batches[i];
        struct split splits[4];
        size_t count = 0;
        for (int ranks = 1; ranks <= 4 && ranks <= slots; ranks++)
            splits[count++] = (struct split){.ranks = ranks, .threads = 1, .stage = ((int)i + ranks) % 4};
        check_splits(&config, 3, splits, count);
    }
}

/* 63 samples: steps of 30, 30 and 3, the last of a single slot, so that most ranks have none. */
static void a_truncated_step_is_the_same_at_any_rank_count(void **state) {
    (void)state;
    static const char yaml[] =
        "model: {model_type: gpt2, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2}\n"
        "data: {train: [{path: 'synthetic:757'}], sequence_length: 12}\n"
        "train: {epochs: 1, global_batch_size: 30, micro_batch_size: 4, reduction: fixed}\n";
    static const struct split splits[] = {{.ranks = 2, .threads = 1},
                                          {.ranks = 3, .threads = 1, .stage = 1},
                                          {.ranks = 4, .threads = 1, .stage = 2},
                                          {.ranks = 4, .threads = 1, .stage = 3}};
    const struct ls_config config = harness_config(yaml);
    check_splits(&config, 3, splits, 4);
}

/* Products large enough that threads share them. */
static void threads_share_products_without_changing_a_bit(void **state) {
    (void)state;
    static const char yaml[] =
        "model: {model_type: gpt2, hidden_size: 144, num_hidden_layers: 1, num_attention_heads: 2}\n"
        "data: {train: [{path: 'synthetic:9000'}], sequence_length: 64}\n"
        "train: {steps: 2, global_batch_size: 11, micro_batch_size: 4, reduction: fixed}\n";
    static const struct split splits[] = {
        {.ranks = 1, .threads = 2}, {.ranks = 2, .threads = 3, .stage = 2}, {.ranks = 3, .threads = 1}};
    struct ls_config config = harness_config(yaml);
    check_splits(&config, 2, splits, 3);
    /* Products of 17 rows and columns: cut between two threads, one column would be left, which the library computes
     * by other code. */
    static const char narrow[] =
        "model: {model_type: gpt2, hidden_size: 17, num_hidden_layers: 1, num_attention_heads: 1, "
        "intermediate_size: 4096}\n"
        "data: {train: [{path: 'synthetic:9000'}], sequence_length: 17}\n"
        "train: {steps: 2, global_batch_size: 3, micro_batch_size: 1, reduction: fixed}\n";
    config = harness_config(narrow);
    check_splits(&config, 2, splits, 3);
}

/* A rank of a step whose gradients the test makes itself. */
struct norm_rank {
    const struct ls_config *config;
    struct ls_comm *comm;
    double squared;
    enum ls_code code;
};

enum { NORM_SLOTS = 4 };

static void make_gradients(struct ls_shard *shard, const struct ls_model *model, struct norm_rank *own) {
    int64_t first, slots;
    ls_rank_range(NORM_SLOTS, ls_comm_rank(own->comm), ls_comm_size(own->comm), &first, &slots);
    const int64_t micro_batches = (NORM_SLOTS + ls_comm_size(own->comm) - 1) / ls_comm_size(own->comm);
    ls_shard_begin(shard, NORM_SLOTS);
    for (int64_t micro = 0; micro < micro_batches; micro++)
        for (int block = ls_model_block_count(model) - 1; block >= 0; block--) {
            float *gradients = ls_shard_gradients(shard, block);
            for (int64_t i = 0; micro < slots && i < ls_model_block(model, block)->count; i++)
                gradients[i] = (float)((i * 7919 + (first + micro) * 104729 + block * 31) % 100003) / 1e5f;
            ls_shard_reduce(shard, block, micro == micro_batches - 1);
        }
}

static void *sum_squares_on_rank(void *argument) {
    struct norm_rank *own = argument;
    struct ls_device *device = NULL;
    struct ls_model *model = NULL;
    struct ls_shard_comms comms = {0};
    struct ls_arena *arena = NULL;
    struct ls_shard *shard = NULL;
    own->code = ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, NULL);
    struct ls_stream *stream = ls_stream_create(device, false);
    if (!own->code) own->code = ls_model_create(own->config, &model, NULL);
    if (!own->code) own->code = ls_shard_comms_create(own->config, own->comm, &comms, NULL);
    if (own->code) return NULL;
    struct ls_arena_plan *plan = calloc(1, sizeof *plan);
    const int first = ls_shard_plan(own->config, model, ls_comm_size(own->comm), plan);
    own->code = ls_arena_create(device, plan, &arena, NULL);
    if (!own->code) own->code = ls_shard_create(own->config, model, &comms, stream, arena, first, &shard, NULL);
    free(plan);
    if (own->code) return NULL;
    make_gradients(shard, model, own);
    double losses[NORM_SLOTS] = {0};
    ls_shard_reduce_values(shard, losses, NORM_SLOTS);
    ls_shard_update(shard, 0.1f, 1.0f, 1);
    own->code = ls_stream_synchronize(stream, NULL);
    own->squared = shard->scalars->squared;
    ls_shard_destroy(shard);
    ls_stream_destroy(stream);
    ls_arena_destroy(arena);
    ls_model_destroy(model);
    ls_shard_comms_destroy(&comms);
    ls_device_destroy(device);
    return NULL;
}

static double squared_norm(const struct ls_config *config, int ranks) {
    struct ls_comm *comms[HARNESS_RANKS_MAX];
    struct norm_rank states[HARNESS_RANKS_MAX] = {0};
    pthread_t threads[HARNESS_RANKS_MAX];
    assert_int_equal(ls_comm_create_threads(ranks, comms, NULL), LS_OK);
    for (int rank = 0; rank < ranks; rank++) {
        states[rank] = (struct norm_rank){.config = config, .comm = comms[rank]};
        assert_int_equal(pthread_create(&threads[rank], NULL, sum_squares_on_rank, &states[rank]), 0);
    }
    for (int rank = 0; rank < ranks; rank++) pthread_join(threads[rank], NULL);
    for (int rank = 0; rank < ranks; rank++) {
        assert_int_equal(states[rank].code, LS_OK);
        assert_memory_equal(&states[rank].squared, &states[0].squared, sizeof(double));
        ls_comm_destroy(comms[rank]);
    }
    return states[0].squared;
}

/* In double: rounded to a float, sums in another order would seldom be seen. */
static void squares_are_added_in_one_order_to_the_last_bit_of_a_double(void **state) {
    (void)state;
    struct ls_config config = harness_config(gpt2);
    config.train.global_batch_size = NORM_SLOTS;
    config.train.micro_batch_size = 1;
    const double one = squared_norm(&config, 1);
    assert_true(one > 0);
    for (int ranks = 1; ranks <= 4; ranks++)
        for (int stage = 0; stage <= 3; stage++) {
            config.zero.stage = stage;
            const double other = squared_norm(&config, ranks);
            if (memcmp(&one, &other, sizeof one) != 0)
                fail_msg("%d ranks, stage %d: %.17g, not %.17g", ranks, stage, other, one);
        }
}

/* What a rank sends in a step: a step's own, because the first one finds nothing gathered. The ranks that have most. */
static int64_t measured_wire(const struct ls_config *config, struct split split) {
    uint64_t sent[2][HARNESS_RANKS_MAX], most = 0;
    for (int longer = 0; longer < 2; longer++) {
        struct run run = start(config, split, 2 + longer);
        harness_run_well(&run);
        memcpy(sent[longer], run.wire_bytes, sizeof run.wire_bytes);
        harness_free(&run);
    }
    for (int rank = 0; rank < split.ranks; rank++)
        if (sent[1][rank] - sent[0][rank] > most) most = sent[1][rank] - sent[0][rank];
    return (int64_t)most;
}

/* Eight slots on three ranks are two, three and three: nodes [0, 2) | [2, 4) [4, 5) | [5, 6) [6, 8). */
static void the_plan_says_what_is_sent(void **state) {
    (void)state;
    struct ls_config config = harness_config(gpt2);
    config.evaluation.every_steps = 0;
    struct ls_model *model;
    assert_int_equal(ls_model_create(&config, &model, NULL), LS_OK);
    int64_t elements = 0;
    for (int block = 0; block < ls_model_block_count(model); block++)
        elements += (ls_model_block(model, block)->count + 47) / 48 * 48;
    for (int ranks = 1; ranks <= 4; ranks++)
        for (int stage = 0; stage <= 3; stage++) {
            const struct split split = {.ranks = ranks, .threads = 1, .stage = stage};
            config.zero.stage = stage;
            const struct ls_shard_wire wire = ls_shard_wire_bytes(&config, model, ranks);
            assert_int_equal(measured_wire(&config, split), wire.gradients + wire.parameters + wire.scalars);
            if (ranks == 1) assert_int_equal(wire.gradients + wire.parameters + wire.scalars, 0);
            /* Two nodes of every block to two owners of a third each, and the sums of the own third to two ranks. */
            if (ranks == 3 && stage == 0) assert_int_equal(wire.gradients, (2 * 2 + 2) * elements / 3 * 4);
        }
    ls_model_destroy(model);
}

static int64_t aligned(int64_t bytes) {
    return (bytes + 255) / 256 * 256;
}

/* Four slots on each of two ranks: while the fourth is computed, a range of three may be two nodes; and an owner gets
 * at most three nodes of a range of four from each rank. With one slot a rank nothing is kept, and two nodes come. */
static void the_plan_says_what_the_tree_holds(void **state) {
    (void)state;
    struct ls_arena_plan *plan = calloc(1, sizeof *plan);
    for (int slots = 1; slots <= 4; slots += 3) {
        struct ls_config config = harness_config(gpt2);
        config.train.micro_batch_size = slots == 4 ? 4 : 15;
        struct ls_model *model;
        assert_int_equal(ls_model_create(&config, &model, NULL), LS_OK);
        *plan = (struct ls_arena_plan){0};
        ls_shard_plan(&config, model, 2, plan);
        int64_t expected = 0, longest = 0;
        for (int block = 0; block < ls_model_block_count(model); block++) {
            const int64_t padded = (ls_model_block(model, block)->count + 31) / 32 * 32;
            if (slots == 4) expected += aligned(2 * padded * 4);
            if (padded / 2 > longest) longest = padded / 2;
        }
        expected += aligned((slots == 4 ? 6 : 2) * longest * 4);
        assert_int_equal(plan->category_bytes[LS_MEMORY_REDUCTION], expected);
        ls_model_destroy(model);
    }
    free(plan);
}

static int remove_entry(const char *path, const struct stat *status, int flag, struct FTW *walk) {
    (void)status, (void)flag, (void)walk;
    return remove(path);
}

static void a_checkpoint_goes_on_at_another_rank_count_and_stage_with_the_same_bits(void **state) {
    (void)state;
    char folder[] = "/tmp/lockstep-fixed-XXXXXX", checkpoint[128];
    assert_non_null(mkdtemp(folder));
    struct ls_config config = harness_config(gpt2);
    config.evaluation.every_steps = 0;
    struct run whole = start(&config, (struct split){.ranks = 1, .threads = 1}, 6);
    harness_run_well(&whole);
    /* At stages from 1 on, state files hold slices that begin at multiples of 1024 elements. */
    static const struct split first[] = {{.ranks = 3, .threads = 1, .stage = 2},
                                         {.ranks = 4, .threads = 1, .stage = 1, .replicas = 2},
                                         {.ranks = 2, .threads = 1, .stage = 0}};
    static const struct split then[] = {{.ranks = 2, .threads = 2, .stage = 3},
                                        {.ranks = 1, .threads = 1, .stage = 0},
                                        {.ranks = 4, .threads = 1, .stage = 3, .replicas = 2}};
    for (int i = 0; i < 3; i++) {
        char run_folder[64];
        snprintf(run_folder, sizeof run_folder, "%s/%d", folder, i);
        assert_int_equal(mkdir(run_folder, 0700), 0);
        struct run before = start(&config, first[i], 3);
        before.save = run_folder;
        harness_run_well(&before);
        struct run after = start(&config, then[i], 3);
        snprintf(checkpoint, sizeof checkpoint, "%s/checkpoints/step-00000003", run_folder);
        after.load = checkpoint;
        after.start_step = 3;
        harness_run_well(&after);
        assert_memory_equal(after.weights, whole.weights, (size_t)whole.weight_count * sizeof(float));
        harness_free(&before);
        harness_free(&after);
    }
    harness_free(&whole);
    assert_int_equal(nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS), 0);
}

/* Saved at 4 ranks and stage 3 beside the steps that follow, each time at step 2 of 5: goes on at any ranks and stage
 * with the same bits. Pairwise; LS_TEST_LONG: every rank count, stage, precision and family. The last round, or two,
 * are of bf16 that is rounded stochastically, by Lion; the second one's optimizer is Muon. */
static void a_save_beside_training_at_stage_3_goes_on_anywhere_with_the_same_bits(void **state) {
    (void)state;
    static const struct split pairs[] = {{.ranks = 1, .stage = 0}, {.ranks = 2, .stage = 1}, {.ranks = 3, .stage = 2},
                                         {.ranks = 1, .stage = 3}, {.ranks = 2, .stage = 2}, {.ranks = 3, .stage = 0},
                                         {.ranks = 3, .stage = 3}, {.ranks = 1, .stage = 1}};
    struct split all[12];
    for (int i = 0; i < 12; i++) all[i] = (struct split){.ranks = 1 + i % 3, .stage = i / 3};
    for (int round = 0; round < (is_long() ? 8 : 3); round++) {
        char folder[] = "/tmp/lockstep-fixed-XXXXXX", checkpoint[128];
        assert_non_null(mkdtemp(folder));
        struct ls_config config = harness_config(families[round % 2]);
        config.evaluation.every_steps = 0;
        const int kind = is_long() ? round / 2 : round == 2 ? 3 : round;
        config.optimizer.stochastic_rounding = kind == 3;
        config.optimizer.type = kind == 3 ? LS_LION : round == 1 ? LS_MUON : LS_ADAMW;
        config.precision = kind == 3 ? LS_PRECISION_BF16 : (enum ls_precision)kind;
        struct run before = start(&config, (struct split){.ranks = 4, .threads = 1, .stage = 3}, 5);
        before.save = folder;
        before.save_every = 2;
        harness_run_well(&before);
        snprintf(checkpoint, sizeof checkpoint, "%s/checkpoints/step-00000002", folder);
        for (int i = is_long() ? 0 : 4 * (round % 2); i < (is_long() ? 12 : 4 * (round % 2) + 4); i++) {
            struct split split = is_long() ? all[i] : pairs[i];
            split.threads = 1;
            struct run after = start(&config, split, 3);
            after.load = checkpoint;
            after.start_step = 2;
            harness_run_well(&after);
            if (memcmp(after.weights, before.weights, (size_t)before.weight_count * sizeof(float)) != 0)
                fail_msg("at %d ranks and stage %d the weights are others", split.ranks, split.stage);
            for (int step = 0; step < 3; step++)
                assert_memory_equal(&after.reports[step].loss, &before.reports[2 + step].loss, sizeof(double));
            harness_free(&after);
        }
        harness_free(&before);
        assert_int_equal(nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS), 0);
    }
}

/* What it is for: the fast way's bits do depend on the ranks, and the fixed way's on the micro-batch. */
static void fast_differs_between_rank_counts_and_fixed_between_micro_batches(void **state) {
    (void)state;
    struct ls_config config = harness_config(gpt2);
    struct run one = start(&config, (struct split){.ranks = 1, .threads = 1}, 5);
    struct run other = one;
    other.config.train.micro_batch_size = 5;
    harness_run_well(&one);
    harness_run_well(&other);
    assert_memory_not_equal(one.weights, other.weights, (size_t)one.weight_count * sizeof(float));
    harness_free(&one);
    harness_free(&other);
    config.train.reduction = LS_REDUCTION_FAST;
    one = start(&config, (struct split){.ranks = 1, .threads = 1}, 5);
    other = start(&config, (struct split){.ranks = 3, .threads = 1}, 5);
    harness_run_well(&one);
    harness_run_well(&other);
    assert_memory_not_equal(one.weights, other.weights, (size_t)one.weight_count * sizeof(float));
    harness_free(&one);
    harness_free(&other);
}

static void more_ranks_than_slots_are_refused(void **state) {
    (void)state;
    struct ls_config config = harness_config(gpt2);
    config.train.micro_batch_size = 10;
    struct run run = start(&config, (struct split){.ranks = 4, .threads = 1}, 1);
    harness_run(&run);
    for (int rank = 0; rank < 4; rank++) {
        assert_int_equal(run.codes[rank], LS_USAGE);
        assert_non_null(strstr(run.errors[rank].text, "has 3: not enough for 4 ranks"));
    }
    harness_free(&run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_the_same_at_any_ranks_threads_stage_and_checkpointing),
        cmocka_unit_test(bf16_and_fp16_train_to_the_same_bits_too),
        cmocka_unit_test(replicas_accumulation_and_stream_order_do_not_matter),
        cmocka_unit_test(any_number_of_slots_is_summed_alike),
        cmocka_unit_test(a_truncated_step_is_the_same_at_any_rank_count),
        cmocka_unit_test(threads_share_products_without_changing_a_bit),
        cmocka_unit_test(squares_are_added_in_one_order_to_the_last_bit_of_a_double),
        cmocka_unit_test(the_plan_says_what_is_sent),
        cmocka_unit_test(the_plan_says_what_the_tree_holds),
        cmocka_unit_test(a_checkpoint_goes_on_at_another_rank_count_and_stage_with_the_same_bits),
        cmocka_unit_test(a_save_beside_training_at_stage_3_goes_on_anywhere_with_the_same_bits),
        cmocka_unit_test(fast_differs_between_rank_counts_and_fixed_between_micro_batches),
        cmocka_unit_test(more_ranks_than_slots_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
