/* Checkpoints written beside training, ranks as threads: they hold what checkpoints hold that training waits for, byte
 * for byte, and training computes what it does without them. */
#define _GNU_SOURCE
#include "trainer_harness.h"

#include <ftw.h>
#include <unistd.h>

static const char gpt2[] = "model: {model_type: gpt2, hidden_size: 18, num_hidden_layers: 3, num_attention_heads: 2}\n"
                           "data: {train: [{path: 'synthetic:9000'}], sequence_length: 12}\n"
                           "train: {steps: 40, global_batch_size: 30, micro_batch_size: 4}\n"
                           "optimizer: {lr: 1.0e-3, weight_decay: 0.7}\n";
static const char llama[] = "model: {model_type: llama, hidden_size: 20, num_hidden_layers: 2, num_attention_heads: 2, "
                            "num_key_value_heads: 1,\n"
                            "        intermediate_size: 37, tie_word_embeddings: false}\n"
                            "data: {train: [{path: 'synthetic:9000'}], sequence_length: 10}\n"
                            "train: {steps: 40, global_batch_size: 30, micro_batch_size: 4}\n"
                            "optimizer: {lr: 1.0e-3, weight_decay: 0.7}\n";
/* State of 43 MB and a step of a few tokens: the update comes long before a slow disk is done. */
static const char wide[] = "model: {model_type: gpt2, hidden_size: 320, num_hidden_layers: 2, num_attention_heads: 2}\n"
                           "data: {train: [{path: 'synthetic:9000'}], sequence_length: 2}\n"
                           "train: {steps: 40, global_batch_size: 3, micro_batch_size: 1}\n"
                           "optimizer: {lr: 1.0e-3, weight_decay: 0.7}\n";
static const char *const families[] = {gpt2, llama};

/* One way of training. */
struct split {
    int stage, ranks, replicas;
    enum ls_precision precision;
    enum ls_stream_order order;
    bool bounce, stochastic_rounding;
    enum ls_optimizer_type optimizer;
};

static struct run start(const char *yaml, struct split split, int64_t steps) {
    struct run run = {.config = harness_config(yaml),
                      .ranks = split.ranks,
                      .steps = steps,
                      .order = split.order,
                      .bounce = split.bounce};
    run.config.zero.stage = split.stage;
    run.config.zero.replicas = split.replicas ? split.replicas : 1;
    run.config.precision = split.precision;
    run.config.optimizer.stochastic_rounding = split.stochastic_rounding;
    run.config.optimizer.type = split.optimizer;
    return run;
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *where) {
    (void)status, (void)kind, (void)where;
    return remove(path);
}

static void make_folder(const char *parent, char folder[64]) {
    snprintf(folder, 64, "%s/lockstep-saver-XXXXXX", parent);
    assert_non_null(mkdtemp(folder));
}

static void remove_folder(const char *folder) {
    assert_int_equal(nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS), 0);
}

/* The hash of a checkpoint's manifest.json, which holds the hashes of all its files; they are what they say. */
static void read_hash(const char *folder, int64_t step, char hash[33]) {
    char path[LS_CHECKPOINT_PATH_MAX];
    struct ls_checkpoint_found found;
    struct ls_error error;
    assert_int_equal(ls_checkpoint_path(folder, (uint64_t)step, path, NULL), LS_OK);
    if (ls_checkpoint_open(path, &found, &error)) fail_msg("step %d: %s", (int)step, error.text);
    memcpy(hash, found.manifest_hash, sizeof found.manifest_hash);
}

static void check_same_training(const struct run *one, const struct run *other) {
    for (int64_t i = 0; i < one->steps; i++)
        assert_memory_equal(&one->reports[i].loss, &other->reports[i].loss, sizeof(double));
    assert_memory_equal(one->weights, other->weights, (size_t)one->weight_count * sizeof(float));
}

/* Saves every `every` steps beside training and while training waits. */
static void check_saves(const char *yaml, struct split split, int64_t steps, int64_t every) {
    char beside_folder[64], waiting_folder[64];
    make_folder("/tmp", beside_folder);
    make_folder("/dev/shm", waiting_folder); /* no disk has to be waited for */
    struct run without = start(yaml, split, steps), beside = without, waiting = without;
    beside.save = beside_folder;
    waiting.save = waiting_folder;
    beside.save_every = waiting.save_every = every;
    waiting.save_waits = true;
    waiting.bounce = false;
    waiting.order = LS_STREAMS_EAGER;
    harness_run_well(&without);
    harness_run_well(&beside);
    harness_run_well(&waiting);
    check_same_training(&without, &beside);
    check_same_training(&without, &waiting);
    for (int64_t step = every; step <= steps; step += every) {
        char one[33], other[33];
        read_hash(beside_folder, step, one);
        read_hash(waiting_folder, step, other);
        if (strcmp(one, other) != 0)
            fail_msg("stage %d, %d ranks, %d replicas, precision %d, order %d, bounce %d: step %d is not what it was",
                     split.stage, split.ranks, split.replicas, split.precision, split.order, split.bounce, (int)step);
    }
    harness_free(&without);
    harness_free(&beside);
    harness_free(&waiting);
    remove_folder(beside_folder);
    remove_folder(waiting_folder);
}

static bool is_long(void) {
    const char *mode = getenv("LS_TEST_LONG");
    return mode && strcmp(mode, "1") == 0;
}

/* Pairwise over stage, ranks, precision, order and bounce; LS_TEST_LONG: all of stage, ranks and precision. */
static void saves_beside_training_hold_the_bytes_of_saves_it_waits_for(void **unused) {
    (void)unused;
    static const struct split pairs[] = {
        {0, 1, 0, LS_PRECISION_FP32, LS_STREAMS_EAGER, false, false, LS_ADAMW},
        {0, 2, 0, LS_PRECISION_BF16, LS_STREAMS_LAZY, true, false, LS_ADAMW},
        {0, 4, 0, LS_PRECISION_FP16, LS_STREAMS_HASTY, false, false, LS_ADAMW},
        {1, 1, 0, LS_PRECISION_BF16, LS_STREAMS_HASTY, true, false, LS_ADAMW},
        {1, 2, 0, LS_PRECISION_FP32, LS_STREAMS_LAZY, false, false, LS_ADAMW},
        {1, 4, 2, LS_PRECISION_FP32, LS_STREAMS_EAGER, true, false, LS_ADAMW},
        {1, 3, 0, LS_PRECISION_FP16, LS_STREAMS_EAGER, false, false, LS_ADAMW},
        {2, 2, 0, LS_PRECISION_FP16, LS_STREAMS_LAZY, false, false, LS_ADAMW},
        {2, 3, 0, LS_PRECISION_BF16, LS_STREAMS_EAGER, true, false, LS_ADAMW},
        {2, 4, 0, LS_PRECISION_FP32, LS_STREAMS_HASTY, false, false, LS_ADAMW},
        {3, 1, 0, LS_PRECISION_FP32, LS_STREAMS_LAZY, true, false, LS_ADAMW},
        {3, 2, 0, LS_PRECISION_BF16, LS_STREAMS_EAGER, false, false, LS_ADAMW},
        {3, 3, 0, LS_PRECISION_FP32, LS_STREAMS_HASTY, true, false, LS_ADAMW},
        {3, 4, 0, LS_PRECISION_FP32, LS_STREAMS_EAGER, false, false, LS_ADAMW},
        {3, 4, 2, LS_PRECISION_FP16, LS_STREAMS_LAZY, false, false, LS_ADAMW},
        {0, 3, 0, LS_PRECISION_BF16, LS_STREAMS_EAGER, true, true, LS_ADAMW},
        {1, 3, 0, LS_PRECISION_BF16, LS_STREAMS_LAZY, false, true, LS_LION},
        {2, 4, 2, LS_PRECISION_BF16, LS_STREAMS_HASTY, true, true, LS_SGD},
        {3, 3, 0, LS_PRECISION_BF16, LS_STREAMS_LAZY, true, true, LS_LION},
        {0, 2, 0, LS_PRECISION_FP32, LS_STREAMS_LAZY, true, false, LS_MUON},
        {1, 3, 0, LS_PRECISION_BF16, LS_STREAMS_HASTY, true, false, LS_MUON},
        {2, 2, 0, LS_PRECISION_BF16, LS_STREAMS_EAGER, false, true, LS_MUON},
        {3, 4, 2, LS_PRECISION_FP32, LS_STREAMS_LAZY, false, false, LS_MUON},
        {3, 4, 0, LS_PRECISION_FP16, LS_STREAMS_HASTY, true, false, LS_MUON},
    };
    for (int family = 0; family < 2; family++) {
        if (!is_long()) {
            for (size_t i = (size_t)family; i < sizeof pairs / sizeof *pairs; i += 2)
                check_saves(families[family], pairs[i], 7, 3);
            continue;
        }
        for (int stage = 0; stage <= 3; stage++)
            for (int ranks = 1; ranks <= 4; ranks++)
                for (int kind = 0; kind < 4; kind++)
                    check_saves(families[family],
                                (struct split){stage, ranks, stage > 0 && ranks == 4 && kind % 2 == 1 ? 2 : 0,
                                               kind == 3 ? LS_PRECISION_BF16 : (enum ls_precision)kind,
                                               (enum ls_stream_order)((stage + ranks + kind + family) % 3),
                                               (ranks + kind) % 2 == family, kind == 3,
                                               (enum ls_optimizer_type)((stage + kind) % 4)},
                                7, 3);
    }
}

/* A save at every step: each begins when the one before has just been written. */
static void a_save_at_every_step_changes_nothing(void **unused) {
    (void)unused;
    for (int stage = 0; stage <= 3; stage++) check_saves(gpt2, (struct split){.stage = stage, .ranks = 2}, 5, 1);
}

/* Where the disk is slower than a step, the update has to wait: without, the state file would hold later moments. */
static void an_update_waits_for_the_bytes_it_changes(void **unused) {
    (void)unused;
    for (int stage = 0; stage <= 3; stage++)
        for (int order = 0; order < 3; order++)
            for (int muon = 0; muon < 2; muon++)
                if (is_long() || order == (stage + muon) % 3)
                    check_saves(wide,
                                (struct split){.stage = stage,
                                               .ranks = 1 + (stage + muon) % 3,
                                               .order = (enum ls_stream_order)order,
                                               .optimizer = muon ? LS_MUON : LS_ADAMW},
                                3, 1);
}

/* The other ranks go on, and so does the training: only the save is lost. */
static void a_rank_that_cannot_write_stops_nobody(void **unused) {
    (void)unused;
    for (int stage = 0; stage <= 3; stage++) {
        char folder[64];
        make_folder("/tmp", folder);
        struct run run = start(gpt2, (struct split){.stage = stage, .ranks = 3}, 5);
        run.save = folder;
        run.save_every = 4;
        run.unwritable_rank = 2;
        harness_run(&run);
        /* The error is met where the save is finished, behind step 5. */
        assert_int_equal(run.codes[1], LS_CHECKPOINT);
        assert_non_null(strstr(run.errors[1].text, "lockstep-no-such-folder"));
        assert_int_equal(run.reports[4].step, 5);
        harness_free(&run);
        remove_folder(folder);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(saves_beside_training_hold_the_bytes_of_saves_it_waits_for),
        cmocka_unit_test(a_save_at_every_step_changes_nothing),
        cmocka_unit_test(an_update_waits_for_the_bytes_it_changes),
        cmocka_unit_test(a_rank_that_cannot_write_stops_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
