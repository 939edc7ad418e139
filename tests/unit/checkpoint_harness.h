/* What the tests of checkpoints share: a folder of their own, small models with known values, saving by any number of
 * ranks. Failures are cmocka's. */
#ifndef LS_TESTS_UNIT_CHECKPOINT_HARNESS_H
#define LS_TESTS_UNIT_CHECKPOINT_HARNESS_H

#include "common/checkpoint_folder.h"
#include "common/files.h"
#include "tests/unit/support.h"
#include "worker/checkpoint/load.h"
#include "worker/checkpoint/save.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* What the last failed call said. */
static struct ls_error harness_error, *const error = &harness_error;

#define expect_ok(call)                                                                                                \
    do {                                                                                                               \
        if ((call) != LS_OK) fail_msg("%s: %s", #call, error->text);                                                   \
    } while (0)

/* A fresh folder, removed with harness_remove(). Owned by the caller. */
static inline char *harness_folder(void) {
    char *folder = strdup("/tmp/lockstep-test-XXXXXX");
    if (!folder || !mkdtemp(folder)) fail_msg("cannot make a folder in /tmp");
    return folder;
}

static inline void harness_remove(char *folder) {
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    assert_int_equal(system(command), 0);
    free(folder);
}

/* folder/name, in static storage that the next but three calls reuse. */
static inline const char *harness_path(const char *folder, const char *name) {
    static char paths[4][4352];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static inline void harness_write(const char *path, const void *bytes, size_t count) {
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || ls_write_all(file, bytes, count)) fail_msg("cannot write %s", path);
    close(file);
}

static inline bool harness_exists(const char *path) {
    struct stat status;
    return lstat(path, &status) == 0;
}

/* Odd sizes, so that no slice ends where a tensor does. */
static inline struct ls_config harness_gpt2(void) {
    struct ls_config config = {0};
    config.model.model_type = LS_GPT2;
    config.model.hidden_size = 15;
    config.model.num_hidden_layers = 3;
    config.model.num_attention_heads = config.model.num_key_value_heads = 5;
    config.model.head_dim = 3;
    config.model.intermediate_size = 22;
    config.model.max_position_embeddings = config.data.sequence_length = 11;
    config.model.vocab_size = 29;
    config.model.tie_word_embeddings = true;
    config.model.layer_norm_epsilon = 1e-5;
    config.model.rms_norm_eps = 1e-6;
    config.model.initializer_range = 0.02;
    config.model.rope_theta = 10000;
    return config;
}

static inline struct ls_config harness_llama(void) {
    struct ls_config config = harness_gpt2();
    config.model.model_type = LS_LLAMA;
    config.model.hidden_size = 18;
    config.model.num_attention_heads = 6;
    config.model.num_key_value_heads = 2;
    config.model.head_dim = 6;
    config.model.intermediate_size = 25;
    config.model.tie_word_embeddings = false;
    config.model.rope_scaling = (struct ls_config_rope_scaling){.llama3 = true,
                                                                .factor = 8,
                                                                .low_freq_factor = 1,
                                                                .high_freq_factor = 4,
                                                                .original_max_position_embeddings = 7};
    return config;
}

/* The value of element `index` of a block for kind 0 (parameters), 1 (m) and 2 (v): all different, all exact in fp32
 * (24 bits). */
static inline float harness_value(int kind, int block, int64_t index) {
    return (float)(kind * 4000000 + block * 500000 + index + 1);
}

static inline float *harness_values(const struct ls_model *model, int kind, int block) {
    int64_t count = ls_model_block(model, block)->count;
    float *values = calloc((size_t)count + 1, sizeof *values);
    assert_non_null(values);
    for (int64_t i = 0; i < count; i++) values[i] = harness_value(kind, block, i);
    return values;
}

enum { HARNESS_TENSORS_MAX = 128 };

/* Saves what one rank owes into `folder` and appends its records. */
static inline void harness_save_rank(const char *folder, const struct ls_config *config, const struct ls_model *model,
                                     int64_t rank, int64_t world_size, int64_t model_file_bytes,
                                     struct ls_file_record *records, size_t *count) {
    struct ls_checkpoint_writer *writer;
    struct ls_checkpoint_writer_options options = {.folder = folder,
                                                   .model = model,
                                                   .config = config,
                                                   .tokenizer = "byte",
                                                   .document_token = 256,
                                                   .rank = rank,
                                                   .world_size = world_size,
                                                   .replicas = 1,
                                                   .unit = 1,
                                                   .model_file_bytes = model_file_bytes};
    int owners[HARNESS_TENSORS_MAX];
    int64_t files;
    expect_ok(ls_checkpoint_deal(model, world_size, model_file_bytes, owners, &files, error));
    expect_ok(ls_checkpoint_writer_create(&options, &writer, error));
    for (int b = 0; b < ls_model_block_count(model); b++) {
        const struct ls_block *block = ls_model_block(model, b);
        int64_t first, length;
        ls_checkpoint_slice(block->count, rank, world_size, 1, 1, &first, &length);
        for (int kind = 0; kind < LS_CHECKPOINT_KINDS; kind++) {
            float *values = harness_values(model, kind, b);
            for (int i = block->first_tensor; kind == 0 && i < block->first_tensor + block->tensor_count; i++)
                if (owners[i] == rank)
                    expect_ok(ls_checkpoint_writer_put_weights(
                        writer, values + ls_model_tensor(model, i)->offset,
                        (size_t)(ls_model_tensor(model, i)->count * ls_dtype_bytes(ls_model_dtype(model))), error));
            expect_ok(ls_checkpoint_writer_put_state(writer, b, (enum ls_checkpoint_kind)kind, values + first, error));
            free(values);
        }
    }
    size_t made = 0;
    expect_ok(ls_checkpoint_writer_finish(writer, records + *count, &made, error));
    assert_true(made <= LS_CHECKPOINT_RANK_FILES_MAX);
    *count += made;
    ls_checkpoint_writer_destroy(writer);
}

enum { HARNESS_RECORDS_MAX = 128 };

/* Saves and commits a checkpoint of `step` by `world_size` ranks. */
static inline void harness_checkpoint(const char *run_dir, const struct ls_config *config, int64_t world_size,
                                      uint64_t step, uint64_t attempt, int64_t model_file_bytes) {
    struct ls_model *model;
    struct ls_file_record records[HARNESS_RECORDS_MAX];
    size_t count = 0;
    char build[LS_CHECKPOINT_PATH_MAX];
    struct ls_trainer_state state = {
        .step = step, .attempt = attempt, .world_size = (uint64_t)world_size, .position = 30 * step};
    expect_ok(ls_model_create(config, &model, error));
    expect_ok(
        ls_checkpoint_begin(run_dir, step, attempt, ls_checkpoint_bytes(config, model, world_size), build, error));
    for (int64_t rank = 0; rank < world_size; rank++)
        harness_save_rank(build, config, model, rank, world_size, model_file_bytes, records, &count);
    expect_ok(ls_checkpoint_commit(run_dir, step, attempt, records, count, &state, NULL, error));
    ls_model_destroy(model);
}

#endif
