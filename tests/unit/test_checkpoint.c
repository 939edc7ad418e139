/* Saving and loading: any number of ranks writes, any number reads, every bit comes back; weights from Hugging Face
 * folders. */
#include "tests/unit/checkpoint_harness.h"

#include "common/byte_tokenizer.h"
#include "common/hf_config.h"
#include "common/safetensors.h"

#include <sys/resource.h>

/* Every rank of `world_size` reads its slice of every block, padded to a multiple of 8, and finds the values that were
 * saved. */
static void load_and_compare(const char *folder, const struct ls_model *model, int64_t world_size) {
    struct ls_checkpoint_reader *reader;
    expect_ok(ls_checkpoint_reader_open(folder, model, &reader, error));
    for (int64_t rank = 0; rank < world_size; rank++)
        for (int b = 0; b < ls_model_block_count(model); b++) {
            int64_t count = ls_model_block(model, b)->count, first, length;
            ls_checkpoint_slice(count, rank, world_size, 1, 1, &first, &length);
            int64_t padded = (length + 7) / 8 * 8;
            float *read[3];
            for (int kind = 0; kind < 3; kind++) read[kind] = random_floats(padded, 1);
            expect_ok(ls_checkpoint_reader_read(reader, b, first, padded, read[0], read[1], read[2], error));
            for (int kind = 0; kind < 3; kind++) {
                for (int64_t i = 0; i < padded; i++) {
                    float expected = first + i < count ? harness_value(kind, b, first + i) : 0;
                    if (read[kind][i] != expected)
                        fail_msg("block %d kind %d element %lld is %g, saved was %g", b, kind, (long long)(first + i),
                                 (double)read[kind][i], (double)expected);
                }
                free(read[kind]);
            }
        }
    ls_checkpoint_reader_close(reader);
}

static void compare_weights(const char *folder, const struct ls_model *model) {
    struct ls_weights *weights;
    expect_ok(ls_weights_open(folder, model, &weights, error));
    for (int b = 0; b < ls_model_block_count(model); b++) {
        int64_t count = ls_model_block(model, b)->count;
        float *read = random_floats(count + 3, 1);
        expect_ok(ls_weights_read(weights, b, 0, count + 3, read, error));
        for (int64_t i = 0; i < count; i++) assert_true(read[i] == harness_value(0, b, i));
        for (int64_t i = count; i < count + 3; i++) assert_true(read[i] == 0);
        free(read);
    }
    ls_weights_close(weights);
}

static void save_load(const struct ls_config *config) {
    char *run = harness_folder();
    struct ls_model *model;
    struct ls_checkpoint_found found;
    bool any;
    expect_ok(ls_model_create(config, &model, error));
    for (int64_t writers = 1; writers <= 4; writers++) {
        harness_checkpoint(run, config, writers, (uint64_t)writers, 1, writers == 4 ? 0 : 1);
        expect_ok(ls_checkpoint_newest(run, &any, &found, NULL, NULL, error));
        assert_true(any && found.state.step == (uint64_t)writers);
        for (int64_t readers = 1; readers <= 5; readers++) load_and_compare(found.path, model, readers);
        compare_weights(found.path, model);
        /* Small models are one file unless smaller files are asked for. */
        bool sharded = writers == 2 || writers == 3;
        assert_int_equal(harness_exists(harness_path(found.path, "model.safetensors")), !sharded);
        assert_int_equal(harness_exists(harness_path(found.path, "model.safetensors.index.json")), sharded);
    }
    ls_model_destroy(model);
    harness_remove(run);
}

static void gpt2_saved_by_1_to_4_ranks_loads_at_1_to_5_bit_equal(void **unused) {
    (void)unused;
    struct ls_config config = harness_gpt2();
    save_load(&config);
}

static void llama_saved_by_1_to_4_ranks_loads_at_1_to_5_bit_equal(void **unused) {
    (void)unused;
    struct ls_config config = harness_llama();
    save_load(&config);
}

static void slices_cover_a_block_once_for_any_world_size(void **unused) {
    (void)unused;
    for (int64_t count = 0; count < 40; count++)
        for (int64_t world = 1; world < 50; world++) {
            int64_t next = 0;
            for (int64_t rank = 0; rank < world; rank++) {
                int64_t first, length;
                ls_checkpoint_slice(count, rank, world, 1, 1, &first, &length);
                assert_true(first == next && length >= 0);
                next += length;
            }
            assert_int_equal(next, count);
        }
}

static void model_files_are_balanced_and_hold_whole_tensors(void **unused) {
    (void)unused;
    char *run = harness_folder();
    struct ls_config config = harness_llama();
    harness_checkpoint(run, &config, 3, 1, 1, 1);
    int folder = open(harness_path(run, "checkpoints/step-00000001"), O_RDONLY | O_DIRECTORY);
    int64_t least = INT64_MAX, most = 0, largest = 0;
    size_t tensors = 0;
    for (int i = 1; i <= 3; i++) {
        char name[64];
        struct ls_safetensors *file;
        snprintf(name, sizeof name, "model-%05d-of-00003.safetensors", i);
        expect_ok(ls_safetensors_open(folder, name, &file, error));
        assert_string_equal(ls_safetensors_metadata(file, "format"), "pt");
        least = file->data_bytes < least ? file->data_bytes : least;
        most = file->data_bytes > most ? file->data_bytes : most;
        tensors += file->tensor_count;
        for (size_t t = 0; t < file->tensor_count; t++)
            if (file->tensors[t].end - file->tensors[t].begin > largest)
                largest = file->tensors[t].end - file->tensors[t].begin;
        ls_safetensors_close(file);
    }
    close(folder);
    /* 9 tensors a layer, the table, the final norm, the head of an untied model. */
    assert_int_equal(tensors, 3 * 9 + 3);
    assert_true(most - least <= largest);
    harness_remove(run);
}

/* What the index says of all files together is what they hold, in the type that they hold it in. */
static void the_index_counts_the_bytes_of_the_weights(void **unused) {
    (void)unused;
    static const enum ls_precision precisions[] = {LS_PRECISION_FP32, LS_PRECISION_BF16};
    for (int p = 0; p < 2; p++) {
        char *run = harness_folder(), *json;
        struct ls_config config = harness_llama();
        struct ls_weight_map *map;
        size_t count;
        int64_t bytes = 0;
        config.precision = precisions[p];
        harness_checkpoint(run, &config, 3, 1, 1, 1);
        int folder = open(harness_path(run, "checkpoints/step-00000001"), O_RDONLY | O_DIRECTORY);
        for (int i = 1; i <= 3; i++) {
            char name[64];
            struct ls_safetensors *file;
            snprintf(name, sizeof name, "model-%05d-of-00003.safetensors", i);
            expect_ok(ls_safetensors_open(folder, name, &file, error));
            bytes += file->data_bytes;
            ls_safetensors_close(file);
        }
        expect_ok(
            ls_file_read_under(folder, "model.safetensors.index.json", 1 << 20, &json, &count, LS_CHECKPOINT, error));
        expect_ok(ls_weight_map_parse(json, count, &map, error));
        assert_int_equal(map->total_bytes, bytes);
        ls_weight_map_destroy(map);
        free(json);
        close(folder);
        harness_remove(run);
    }
}

/* All files of a folder of weights are open while it is read. */
static void weights_in_more_files_than_the_limit_allows_are_read(void **unused) {
    (void)unused;
    enum { FILES = 30 };
    char *run = harness_folder();
    struct ls_config config = harness_llama();
    struct ls_model *model;
    struct rlimit before;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    harness_checkpoint(run, &config, FILES, 1, 1, 1);
    assert_true(harness_exists(harness_path(run, "checkpoints/step-00000001/model-00030-of-00030.safetensors")));
    const struct rlimit low = {.rlim_cur = FILES - 1, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    expect_ok(ls_model_create(&config, &model, error));
    compare_weights(harness_path(run, "checkpoints/step-00000001"), model);
    ls_model_destroy(model);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    harness_remove(run);
}

/* A rank without a descriptor left knows nothing of the checkpoint. */
static void a_lack_of_descriptors_is_no_damaged_checkpoint(void **unused) {
    (void)unused;
    char *run = harness_folder();
    struct ls_config config = harness_gpt2();
    struct ls_model *model;
    struct rlimit before;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    harness_checkpoint(run, &config, 2, 1, 1, 1);
    const char *folder = harness_path(run, "checkpoints/step-00000001");
    expect_ok(ls_model_create(&config, &model, error));
    const int next = open("/", O_RDONLY | O_DIRECTORY);
    close(next);
    for (int spare = 0;; spare++) { /* of the folder, of state/ and of a file in it */
        struct ls_checkpoint_reader *reader;
        const struct rlimit low = {.rlim_cur = (rlim_t)(next + spare), .rlim_max = before.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
        const enum ls_code code = ls_checkpoint_reader_open(folder, model, &reader, error);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
        if (code == LS_OK) {
            assert_true(spare >= 3);
            ls_checkpoint_reader_close(reader);
            break;
        }
        assert_int_equal(code, LS_MEMORY);
        assert_int_equal(error->code, LS_MEMORY);
        assert_non_null(strstr(error->text, "Too many open files"));
    }
    ls_model_destroy(model);
    harness_remove(run);
}

static void a_state_file_missing_from_the_manifest_is_noticed(void **unused) {
    (void)unused;
    char *run = harness_folder(), *json;
    struct ls_config config = harness_gpt2();
    struct ls_model *model;
    struct ls_manifest *manifest;
    struct ls_checkpoint_reader *reader;
    harness_checkpoint(run, &config, 3, 7, 1, 0);
    char folder[512];
    snprintf(folder, sizeof folder, "%s/checkpoints/step-00000007", run);
    expect_ok(ls_model_create(&config, &model, error));
    expect_ok(ls_manifest_verify(folder, true, &manifest, NULL, error));
    for (size_t i = 0; i < manifest->file_count; i++)
        if (strcmp(manifest->files[i].name, "state/rank-00001.safetensors") == 0)
            manifest->files[i] = manifest->files[--manifest->file_count];
    expect_ok(ls_manifest_write(manifest, &json, error));
    harness_write(harness_path(folder, "manifest.json"), json, strlen(json));
    assert_int_equal(ls_checkpoint_reader_open(folder, model, &reader, error), LS_CHECKPOINT);
    assert_non_null(strstr(error->text, "hole"));
    free(json);
    ls_manifest_destroy(manifest);
    ls_model_destroy(model);
    harness_remove(run);
}

static void a_checkpoint_of_another_model_is_refused_with_both_shapes(void **unused) {
    (void)unused;
    char *run = harness_folder();
    struct ls_config config = harness_gpt2(), other = harness_gpt2();
    struct ls_model *model;
    struct ls_checkpoint_reader *reader;
    struct ls_weights *weights;
    harness_checkpoint(run, &config, 2, 7, 1, 0);
    char folder[512];
    snprintf(folder, sizeof folder, "%s/checkpoints/step-00000007", run);
    other.model.vocab_size = 30;
    expect_ok(ls_model_create(&other, &model, error));
    assert_int_equal(ls_checkpoint_reader_open(folder, model, &reader, error), LS_CHECKPOINT);
    assert_int_equal(ls_weights_open(folder, model, &weights, error), LS_CHECKPOINT);
    assert_non_null(strstr(error->text, "[29, 15]"));
    assert_non_null(strstr(error->text, "[30, 15]"));
    ls_model_destroy(model);
    other = harness_llama();
    expect_ok(ls_model_create(&other, &model, error));
    assert_int_equal(ls_checkpoint_reader_open(folder, model, &reader, error), LS_CHECKPOINT);
    assert_int_equal(ls_weights_open(folder, model, &weights, error), LS_CHECKPOINT);
    ls_model_destroy(model);
    harness_remove(run);
}

/* Half precision patterns and their values from IEEE 754-2008, table 3.5; bfloat16 is the upper half of a float. */
static void weights_in_bf16_and_fp16_become_fp32(void **unused) {
    (void)unused;
    char *folder = harness_folder(), *header;
    const uint16_t half[] = {0x3c00, 0xc000, 0x7bff, 0x0001, 0x8400, 0x03ff, 0x7c00, 0x8000};
    const float half_values[] = {1, -2, 65504, 0x1p-24f, -0x1p-14f, 0x3ffp-24f, INFINITY, -0.0f};
    const uint16_t brain[] = {0x3f80, 0xc020, 0x0001};
    const float brain_values[] = {1, -2.5f, 0x1p-133f};
    const double wide[] = {1.0, 1e-3};
    struct ls_tensor_info infos[] = {
        {.name = "half", .type = LS_TENSOR_F16, .dimensions = 2, .shape = {2, 4}},
        {.name = "brain", .type = LS_TENSOR_BF16, .dimensions = 1, .shape = {3}},
        {.name = "wide", .type = LS_TENSOR_F64, .dimensions = 1, .shape = {2}},
        {.name = "other", .type = LS_TENSOR_I32, .dimensions = 0},
    };
    size_t bytes = 0;
    float read[8];
    struct ls_safetensors *file;
    expect_ok(ls_safetensors_header(infos, 4, NULL, 0, &header, &bytes, error));
    const char *path = harness_path(folder, "mixed.safetensors");
    int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    assert_true(ls_write_all(descriptor, header, bytes) == 0 && ls_write_all(descriptor, half, sizeof half) == 0 &&
                ls_write_all(descriptor, brain, sizeof brain) == 0 &&
                ls_write_all(descriptor, wide, sizeof wide) == 0 && ls_write_all(descriptor, "\1\0\0\0", 4) == 0);
    close(descriptor);
    int parent = open(folder, O_RDONLY | O_DIRECTORY);
    expect_ok(ls_safetensors_open(parent, "mixed.safetensors", &file, error));
    expect_ok(ls_safetensors_read_fp32(file, ls_safetensors_find(file, "half"), 0, 8, read, error));
    check_same_bits("half", read, half_values, 8);
    expect_ok(ls_safetensors_read_fp32(file, ls_safetensors_find(file, "brain"), 1, 2, read, error));
    check_same_bits("brain", read, brain_values + 1, 2);
    expect_ok(ls_safetensors_read_fp32(file, ls_safetensors_find(file, "wide"), 0, 2, read, error));
    assert_true(read[0] == 1 && read[1] == 1e-3f);
    assert_int_equal(ls_safetensors_read_fp32(file, ls_safetensors_find(file, "other"), 0, 1, read, error),
                     LS_CHECKPOINT);
    assert_int_equal(ls_safetensors_read(file, ls_safetensors_find(file, "half"), 5, 4, read, error), LS_CHECKPOINT);
    ls_safetensors_close(file);
    close(parent);
    free(header);
    harness_remove(folder);
}

/* Writes a file of one-element... tensors as other programs do: prefix, extra buffers, a copy of the tied table. */
static void write_foreign_weights(const char *path, const struct ls_model *model, const char *prefix, const char *extra,
                                  int left_out) {
    int count = 0, tensors = ls_model_tensor_count(model);
    char(*names)[160] = calloc((size_t)tensors, sizeof *names), *header;
    struct ls_tensor_info *infos = calloc((size_t)tensors + 1, sizeof *infos);
    assert_true(names && infos);
    for (int i = tensors - 1; i >= 0; i--) {
        const struct ls_tensor *tensor = ls_model_tensor(model, i);
        if (i == left_out) continue;
        snprintf(names[i], sizeof names[i], "%s%s", prefix, tensor->name);
        infos[count++] = (struct ls_tensor_info){.name = names[i],
                                                 .dimensions = tensor->dimensions,
                                                 .shape = {tensor->shape[0], tensor->shape[1]},
                                                 .type = LS_TENSOR_F32};
    }
    if (*extra) infos[count++] = (struct ls_tensor_info){.name = extra, .dimensions = 0, .type = LS_TENSOR_U8};
    size_t bytes = 0;
    expect_ok(ls_safetensors_header(infos, (size_t)count, NULL, 0, &header, &bytes, error));
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    assert_int_equal(ls_write_all(file, header, bytes), 0);
    for (int i = tensors - 1; i >= 0; i--) {
        const struct ls_tensor *tensor = ls_model_tensor(model, i);
        float *values = harness_values(model, 0, tensor->block);
        if (i != left_out)
            assert_int_equal(ls_write_all(file, values + tensor->offset, (size_t)tensor->count * sizeof *values), 0);
        free(values);
    }
    if (*extra) assert_int_equal(ls_write_all(file, "x", 1), 0);
    close(file);
    free(header);
    free(infos);
    free(names);
}

static void weights_load_with_and_without_prefix_in_any_order(void **unused) {
    (void)unused;
    char *folder = harness_folder();
    struct ls_config config = harness_gpt2();
    struct ls_model *model;
    struct ls_weights *weights;
    const char *path = harness_path(folder, "model.safetensors");
    expect_ok(ls_model_create(&config, &model, error));
    write_foreign_weights(path, model, "", "", -1);
    compare_weights(folder, model);
    write_foreign_weights(path, model, "transformer.", "transformer.h.0.attn.bias", -1);
    compare_weights(folder, model);
    write_foreign_weights(path, model, "", "lm_head.weight", -1);
    compare_weights(folder, model);
    write_foreign_weights(path, model, "", "h.0.attn.q_norm.weight", -1);
    assert_int_equal(ls_weights_open(folder, model, &weights, error), LS_CHECKPOINT);
    assert_non_null(strstr(error->text, "q_norm"));
    write_foreign_weights(path, model, "", "", 4);
    assert_int_equal(ls_weights_open(folder, model, &weights, error), LS_CHECKPOINT);
    assert_non_null(strstr(error->text, ls_model_tensor(model, 4)->name));
    ls_model_destroy(model);
    harness_remove(folder);
}

static void config_json_round_trips_for_all_families(void **unused) {
    (void)unused;
    struct ls_config configs[] = {harness_gpt2(), harness_llama(), harness_llama(), harness_llama()};
    configs[2].model.model_type = LS_QWEN2;
    configs[3].model.model_type = LS_QWEN3;
    for (int i = 0; i < 4; i++) {
        char *json;
        struct ls_config back = {0};
        struct ls_hf_tokens tokens;
        expect_ok(ls_hf_config_write(&configs[i], 256, &json, error));
        expect_ok(ls_hf_config_parse(json, strlen(json), &back, &tokens, error));
        assert_int_equal(back.model.model_type, configs[i].model.model_type);
        assert_int_equal(back.model.hidden_size, configs[i].model.hidden_size);
        assert_int_equal(back.model.num_hidden_layers, 3);
        assert_int_equal(back.model.num_attention_heads, configs[i].model.num_attention_heads);
        assert_int_equal(back.model.num_key_value_heads, configs[i].model.num_key_value_heads);
        assert_int_equal(back.model.head_dim, configs[i].model.head_dim);
        assert_int_equal(back.model.intermediate_size, configs[i].model.intermediate_size);
        assert_int_equal(back.model.max_position_embeddings, 11);
        assert_int_equal(back.model.vocab_size, 29);
        assert_int_equal(back.model.tie_word_embeddings, i == 0);
        assert_memory_equal(&back.model.rope_scaling, &configs[i].model.rope_scaling, sizeof back.model.rope_scaling);
        assert_true(back.model.rope_theta == 10000 && tokens.bos == 256 && tokens.end_count == 1 &&
                    tokens.ends[0] == 256);
        assert_true(back.model.layer_norm_epsilon == 1e-5 && back.model.rms_norm_eps == 1e-6);
        free(json);
    }
}

/* Ends of the ranges in docs/configuration.md. */
static void config_json_takes_what_the_keys_allow(void **unused) {
    (void)unused;
    struct ls_config small = harness_llama(), large = harness_llama();
    small.model.initializer_range = 0;
    small.model.rms_norm_eps = 1e-20;
    small.model.rope_theta = 1;
    small.model.rope_scaling.factor = 1;
    small.model.rope_scaling.low_freq_factor = 1e-6;
    small.model.rope_scaling.original_max_position_embeddings = small.model.vocab_size = 1;
    large.model.initializer_range = 10;
    large.model.rms_norm_eps = 1;
    large.model.rope_theta = 1e12;
    large.model.rope_scaling.factor = large.model.rope_scaling.high_freq_factor = 1e6;
    large.model.hidden_size = 262144;
    large.model.num_hidden_layers = 4096;
    large.model.num_attention_heads = large.model.num_key_value_heads = 16384;
    large.model.head_dim = 65536;
    large.model.intermediate_size = 2097152;
    large.model.max_position_embeddings = large.model.vocab_size = 4194304;
    large.model.rope_scaling.original_max_position_embeddings = 4194304;
    const struct ls_config *const configs[] = {&small, &large};
    for (int i = 0; i < 2; i++) {
        char *json;
        struct ls_config back = {0};
        struct ls_hf_tokens tokens;
        expect_ok(ls_hf_config_write(configs[i], -1, &json, error));
        expect_ok(ls_hf_config_parse(json, strlen(json), &back, &tokens, error));
        back.model.layer_norm_epsilon = configs[i]->model.layer_norm_epsilon; /* not in Llama's */
        assert_memory_equal(&back.model, &configs[i]->model, sizeof back.model);
        free(json);
    }
}

struct refusal {
    const char *json, *word;
};

static void config_json_features_we_do_not_compute_are_refused_by_name(void **unused) {
    (void)unused;
#define LLAMA_SIZES                                                                                                    \
    "\"model_type\":\"llama\",\"vocab_size\":9,\"hidden_size\":8,\"num_hidden_layers\":1,\"num_attention_heads\":2,"   \
    "\"intermediate_size\":8"
#define QWEN_SIZES                                                                                                     \
    "\"model_type\":\"qwen3\",\"vocab_size\":9,\"hidden_size\":8,\"num_hidden_layers\":1,\"num_attention_heads\":2,"   \
    "\"num_key_value_heads\":2,\"intermediate_size\":8"
#define MISTRAL_SIZES                                                                                                  \
    "\"model_type\":\"mistral\",\"vocab_size\":9,\"hidden_size\":64,\"num_hidden_layers\":1,"                          \
    "\"num_attention_heads\":16,\"intermediate_size\":8"
    const struct refusal refusals[] = {
        {"{\"model_type\":\"mixtral\"}", "mixtral"},
        {"{" MISTRAL_SIZES ",\"sliding_window\":0}", "sliding_window"},
        {"{" MISTRAL_SIZES ",\"sliding_window\":\"none\"}", "sliding_window"},
        {"{\"vocab_size\":5}", "model_type"},
        {"{\"model_type\":\"gpt2\",\"activation_function\":\"relu\"}", "relu"},
        {"{\"model_type\":\"gpt2\",\"scale_attn_by_inverse_layer_idx\":true}", "scale_attn_by_inverse_layer_idx"},
        {"{\"model_type\":\"gpt2\",\"n_embd\":10,\"n_head\":3}", "n_head"},
        {"{\"model_type\":\"gpt2\",\"n_embd\":-4}", "n_embd"},
        {"{\"model_type\":\"gpt2\",\"n_embd\":4,\"n_embd\":8}", "JSON"},
        {"{\"model_type\":\"gpt2\",\"quantization_config\":{}}", "quantised"},
        {"{" LLAMA_SIZES ",\"attention_bias\":true}", "attention_bias"},
        {"{" LLAMA_SIZES ",\"mlp_bias\":true}", "mlp_bias"},
        {"{" LLAMA_SIZES ",\"hidden_act\":\"gelu\"}", "gelu"},
        {"{" LLAMA_SIZES ",\"num_key_value_heads\":3}", "num_key_value_heads"},
        {"{" LLAMA_SIZES ",\"head_dim\":3}", "head_dim"},
        {"{" LLAMA_SIZES ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}", "linear"},
        {"{" LLAMA_SIZES ",\"rope_parameters\":{\"rope_type\":\"yarn\"}}", "yarn"},
        {"{" LLAMA_SIZES ",\"rope_parameters\":{\"rope_type\":\"llama3\"}}", "factor"},
        {"{\"model_type\":\"llama\",\"vocab_size\":9}", "hidden_size"},
        {"{" QWEN_SIZES ",\"use_sliding_window\":true}", "use_sliding_window"},
        {"{" QWEN_SIZES ",\"layer_types\":[\"sliding_attention\"]}", "sliding_attention"},
        {"{" QWEN_SIZES ",\"layer_types\":[3]}", "layer_types"},
        {"{" QWEN_SIZES ",\"layer_types\":\"full_attention\"}", "layer_types"},
        {"{" QWEN_SIZES ",\"attention_bias\":true}", "attention_bias"},
        {"{" QWEN_SIZES ",\"hidden_act\":\"gelu\"}", "gelu"},
        {"{" QWEN_SIZES ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4}}", "yarn"},
    };
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        struct ls_config config = {0};
        struct ls_hf_tokens tokens;
        assert_int_equal(ls_hf_config_parse(refusals[i].json, strlen(refusals[i].json), &config, &tokens, error),
                         LS_CHECKPOINT);
        if (!strstr(error->text, refusals[i].word)) fail_msg("'%s' is not in: %s", refusals[i].word, error->text);
    }
}

/* Qwen3Config's own defaults are 128 channels a head whatever the width, 32 key-value heads and 32768 positions. */
static void what_a_qwen_config_json_leaves_out_is_as_in_transformers(void **unused) {
    (void)unused;
    static const char qwen3[] =
        "{\"model_type\":\"qwen3\",\"vocab_size\":9,\"hidden_size\":64,\"num_hidden_layers\":1,"
        "\"num_attention_heads\":32,\"intermediate_size\":8,\"layer_types\":[\"full_attention\"],"
        "\"use_sliding_window\":false,\"sliding_window\":4096}";
    struct ls_config config = {0};
    struct ls_hf_tokens tokens;
    expect_ok(ls_hf_config_parse(qwen3, strlen(qwen3), &config, &tokens, error));
    assert_true(config.model.head_dim == 128 && config.model.num_key_value_heads == 32);
    assert_true(config.model.max_position_embeddings == 32768 && !config.model.tie_word_embeddings);
    assert_true(config.model.rope_theta == 10000 && config.model.rms_norm_eps == 1e-6);
    /* What says that it has none has one key-value head for each head. */
    static const char null[] = "{\"model_type\":\"qwen2\",\"vocab_size\":9,\"hidden_size\":8,\"num_hidden_layers\":1,"
                               "\"num_attention_heads\":4,\"num_key_value_heads\":null,\"intermediate_size\":8}";
    expect_ok(ls_hf_config_parse(null, strlen(null), &config, &tokens, error));
    assert_int_equal(config.model.num_key_value_heads, 4);
}

/* MistralConfig's own defaults are a window of 4096, 8 key-value heads and 131072 positions; null is no window. What is
 * written says the window, or null, since nothing would be 4096 again. */
static void the_window_of_a_mistral_config_json_is_kept(void **unused) {
    (void)unused;
    static const struct {
        const char *json, *written;
        int64_t window;
    } rows[] = {{"{" MISTRAL_SIZES "}", "\"sliding_window\": 4096", 4096},
                {"{" MISTRAL_SIZES ",\"sliding_window\":null}", "\"sliding_window\": null", 0},
                {"{" MISTRAL_SIZES ",\"sliding_window\":17}", "\"sliding_window\": 17", 17}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct ls_config config = {0};
        struct ls_hf_tokens tokens;
        char *written;
        expect_ok(ls_hf_config_parse(rows[i].json, strlen(rows[i].json), &config, &tokens, error));
        assert_int_equal(config.model.sliding_window, rows[i].window);
        assert_true(config.model.num_key_value_heads == 8 && config.model.max_position_embeddings == 131072);
        expect_ok(ls_hf_config_write(&config, -1, &written, error));
        assert_non_null(strstr(written, rows[i].written));
        assert_non_null(strstr(written, "MistralForCausalLM"));
        expect_ok(ls_hf_config_parse(written, strlen(written), &config, &tokens, error));
        assert_int_equal(config.model.sliding_window, rows[i].window);
        free(written);
    }
}

static void config_json_spellings_of_both_worlds_are_read(void **unused) {
    (void)unused;
    const char *gpt2[] = {
        "{\"model_type\":\"gpt2\",\"n_embd\":8,\"n_layer\":3,\"n_head\":2,\"n_positions\":16,"
        "\"vocab_size\":9,\"n_inner\":null}",
        "{\"model_type\":\"gpt2\",\"hidden_size\":8,\"num_hidden_layers\":3,\"num_attention_heads\":2,"
        "\"max_position_embeddings\":16,\"vocab_size\":9}"};
    const char *llama[] = {"{" LLAMA_SIZES ",\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\","
                           "\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,"
                           "\"original_max_position_embeddings\":32},\"eos_token_id\":[1,2]}",
                           "{" LLAMA_SIZES ",\"rope_scaling\":null,\"rope_parameters\":{\"rope_theta\":500000.0,"
                           "\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,"
                           "\"original_max_position_embeddings\":32},\"eos_token_id\":[1,2]}"};
    struct ls_config config = {0};
    struct ls_hf_tokens tokens;
    for (int i = 0; i < 2; i++) {
        expect_ok(ls_hf_config_parse(gpt2[i], strlen(gpt2[i]), &config, &tokens, error));
        assert_true(config.model.hidden_size == 8 && config.model.num_hidden_layers == 3 &&
                    config.model.num_attention_heads == 2 && config.model.max_position_embeddings == 16 &&
                    config.model.intermediate_size == 32 && config.model.tie_word_embeddings);
        expect_ok(ls_hf_config_parse(llama[i], strlen(llama[i]), &config, &tokens, error));
        assert_true(config.model.rope_theta == 500000 && config.model.rope_scaling.llama3 &&
                    config.model.rope_scaling.factor == 8 && !config.model.tie_word_embeddings &&
                    config.model.head_dim == 4 && config.model.num_key_value_heads == 2);
        assert_true(tokens.end_count == 2 && tokens.ends[1] == 2 && tokens.bos == -1);
    }
}

static void the_byte_tokenizer_is_recognised_and_others_are_not(void **unused) {
    (void)unused;
    char *json, *merged;
    expect_ok(ls_byte_tokenizer_write(&json, error));
    assert_true(ls_byte_tokenizer_matches(json, strlen(json)));
    /* Byte 0 is U+0100, byte 0x20 is U+0120 and byte 0xff is U+00FF in GPT-2's published vocabulary. */
    assert_non_null(strstr(json, "\"\xc4\x80\": 0,"));
    assert_non_null(strstr(json, "\"\xc4\xa0\": 32,"));
    assert_non_null(strstr(json, "\"\xc3\xbf\": 255,"));
    merged = strdup(json);
    char *merges = strstr(merged, "\"merges\": []");
    assert_non_null(merges);
    memcpy(merges, "\"merges\":[5]", 12);
    assert_false(ls_byte_tokenizer_matches(merged, strlen(merged)));
    assert_false(ls_byte_tokenizer_matches("{}", 2));
    assert_false(ls_byte_tokenizer_matches("", 0));
    free(merged);
    free(json);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpt2_saved_by_1_to_4_ranks_loads_at_1_to_5_bit_equal),
        cmocka_unit_test(llama_saved_by_1_to_4_ranks_loads_at_1_to_5_bit_equal),
        cmocka_unit_test(slices_cover_a_block_once_for_any_world_size),
        cmocka_unit_test(model_files_are_balanced_and_hold_whole_tensors),
        cmocka_unit_test(the_index_counts_the_bytes_of_the_weights),
        cmocka_unit_test(weights_in_more_files_than_the_limit_allows_are_read),
        cmocka_unit_test(a_lack_of_descriptors_is_no_damaged_checkpoint),
        cmocka_unit_test(a_state_file_missing_from_the_manifest_is_noticed),
        cmocka_unit_test(a_checkpoint_of_another_model_is_refused_with_both_shapes),
        cmocka_unit_test(weights_in_bf16_and_fp16_become_fp32),
        cmocka_unit_test(weights_load_with_and_without_prefix_in_any_order),
        cmocka_unit_test(config_json_round_trips_for_all_families),
        cmocka_unit_test(config_json_takes_what_the_keys_allow),
        cmocka_unit_test(what_a_qwen_config_json_leaves_out_is_as_in_transformers),
        cmocka_unit_test(config_json_features_we_do_not_compute_are_refused_by_name),
        cmocka_unit_test(the_window_of_a_mistral_config_json_is_kept),
        cmocka_unit_test(config_json_spellings_of_both_worlds_are_read),
        cmocka_unit_test(the_byte_tokenizer_is_recognised_and_others_are_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
