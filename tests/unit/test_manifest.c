/* manifest.json and trainer.json: what they say survives, damage is named, hostile ones are refused. */
#include "tests/unit/checkpoint_harness.h"

#include "common/manifest.h"
#include "common/trainer_state.h"

#define HASH        "0123456789abcdef0123456789abcdef"
#define START       "{\"format\":\"lockstep-checkpoint\",\"version\":1,\"step\":3,\"attempt\":1,\"files\":["
#define ENTRY(name) "{\"name\":\"" name "\",\"size\":1,\"xxh3\":\"" HASH "\"}"

static void hostile_manifests_are_refused(void **unused) {
    (void)unused;
    const char *hostile[] = {
        "",
        "[]",
        "{}",
        START "]}x",
        START ENTRY("../model.safetensors") "]}",
        START ENTRY("/etc/passwd") "]}",
        START ENTRY("state/../x") "]}",
        START ENTRY("state/") "]}",
        START ENTRY("state") "," ENTRY("state") "]}",
        START ENTRY("state/a/b") "]}",
        START ENTRY("other/a") "]}",
        START ENTRY(".") "]}",
        START ENTRY("..") "]}",
        START ENTRY("state/..") "]}",
        START ENTRY("") "]}",
        START ENTRY("a b") "]}",
        START ENTRY("a\\u0000b") "]}",
        START ENTRY("a\\nb") "]}",
        START ENTRY("\xc3\xa4") "]}",
        START ENTRY("manifest.json") "]}",
        START ENTRY("a") "," ENTRY("b") "," ENTRY("a") "]}",
        START "{\"name\":\"a\",\"size\":-1,\"xxh3\":\"" HASH "\"}]}",
        START "{\"name\":\"a\",\"size\":1.5,\"xxh3\":\"" HASH "\"}]}",
        START "{\"name\":\"a\",\"size\":9223372036854775808,\"xxh3\":\"" HASH "\"}]}",
        START "{\"name\":\"a\",\"size\":1,\"xxh3\":\"" HASH "0\"}]}",
        START "{\"name\":\"a\",\"size\":1,\"xxh3\":\"0123456789ABCDEF0123456789ABCDEF\"}]}",
        START "{\"name\":\"a\",\"size\":1}]}",
        START "{\"size\":1,\"xxh3\":\"" HASH "\"}]}",
        START "7]}",
        "{\"format\":\"lockstep-checkpoint\",\"version\":2,\"step\":3,\"attempt\":1,\"files\":[]}",
        "{\"format\":\"other\",\"version\":1,\"step\":3,\"attempt\":1,\"files\":[]}",
        "{\"format\":\"lockstep-checkpoint\",\"version\":1,\"step\":-3,\"attempt\":1,\"files\":[]}",
        "{\"format\":\"lockstep-checkpoint\",\"version\":1,\"step\":3,\"attempt\":1,\"files\":{}}",
        "{\"format\":\"lockstep-checkpoint\",\"version\":1,\"step\":3,\"files\":[]}",
    };
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        struct ls_manifest *manifest;
        if (ls_manifest_parse(hostile[i], strlen(hostile[i]), &manifest, error) != LS_CHECKPOINT)
            fail_msg("accepted: %s", hostile[i]);
    }
}

static void a_name_is_at_most_127_bytes_long(void **unused) {
    (void)unused;
    char name[200] = "state/";
    memset(name + 6, 'n', sizeof name - 6);
    name[127] = 0;
    assert_true(ls_manifest_name_is_valid(name));
    name[127] = 'n';
    name[128] = 0;
    assert_false(ls_manifest_name_is_valid(name));
}

static void what_is_written_reads_back(void **unused) {
    (void)unused;
    struct ls_file_record files[] = {{.name = "model.safetensors", .bytes = INT64_MAX, .hash = HASH},
                                     {.name = "state/rank-00000.safetensors", .bytes = 0, .hash = HASH}};
    struct ls_manifest manifest = {.step = 1234567, .attempt = 9, .files = files, .file_count = 2}, *back;
    char *json;
    expect_ok(ls_manifest_write(&manifest, &json, error));
    expect_ok(ls_manifest_parse(json, strlen(json), &back, error));
    assert_true(back->step == 1234567 && back->attempt == 9 && back->file_count == 2);
    assert_true(ls_manifest_find(back, "model.safetensors")->bytes == INT64_MAX);
    assert_string_equal(ls_manifest_find(back, "state/rank-00000.safetensors")->hash, HASH);
    assert_null(ls_manifest_find(back, "rank-00000.safetensors"));
    ls_manifest_destroy(back);
    free(json);
    strcpy(files[1].name, "model.safetensors");
    assert_int_equal(ls_manifest_write(&manifest, &json, error), LS_CHECKPOINT);
    strcpy(files[1].name, "../model.safetensors");
    assert_int_equal(ls_manifest_write(&manifest, &json, error), LS_CHECKPOINT);
}

/* Published vectors of xxHash 0.8: XXH3_128bits of nothing, seed 0 (xxh3 specification). */
static void hashes_are_xxh3_128_high_half_first(void **unused) {
    (void)unused;
    char hash[33];
    ls_hash_bytes("", 0, hash);
    assert_string_equal(hash, "99aa06d3014798d86001c324468d497f");
}

/* Makes a folder with two files and a manifest that fits them. */
static char *make_folder(void) {
    char *folder = harness_folder(), *json;
    struct ls_file_record files[2] = {{.name = "model.safetensors"}, {.name = "state/rank-00000.safetensors"}};
    assert_int_equal(mkdir(harness_path(folder, "state"), 0755), 0);
    for (int i = 0; i < 2; i++) {
        char content[5000];
        for (size_t b = 0; b < sizeof content; b++) content[b] = (char)(b * 7 + (size_t)i);
        harness_write(harness_path(folder, files[i].name), content, sizeof content);
        files[i].bytes = sizeof content;
        ls_hash_bytes(content, sizeof content, files[i].hash);
    }
    struct ls_manifest manifest = {.step = 3, .attempt = 1, .files = files, .file_count = 2};
    expect_ok(ls_manifest_write(&manifest, &json, error));
    harness_write(harness_path(folder, "manifest.json"), json, strlen(json));
    free(json);
    return folder;
}

static void expect_damaged(const char *folder, const char *word) {
    assert_int_equal(ls_manifest_verify(folder, true, NULL, NULL, error), LS_CHECKPOINT);
    if (!strstr(error->text, word)) fail_msg("'%s' is not in: %s", word, error->text);
}

static void a_whole_folder_verifies_and_its_hash_is_that_of_the_manifest(void **unused) {
    (void)unused;
    char *folder = make_folder(), hash[33], expected[33], *bytes;
    size_t count;
    struct ls_manifest *manifest;
    expect_ok(ls_manifest_verify(folder, true, &manifest, hash, error));
    expect_ok(ls_file_read(harness_path(folder, "manifest.json"), 1 << 20, &bytes, &count, LS_CHECKPOINT, error));
    ls_hash_bytes(bytes, count, expected);
    assert_string_equal(hash, expected);
    assert_int_equal(manifest->file_count, 2);
    free(bytes);
    ls_manifest_destroy(manifest);
    harness_remove(folder);
}

static void a_flipped_bit_anywhere_is_found_and_the_file_named(void **unused) {
    (void)unused;
    char *folder = make_folder();
    const char *name = "state/rank-00000.safetensors";
    for (int round = 0; round < 64; round++) {
        int file = open(harness_path(folder, name), O_RDWR);
        int64_t at = random_below(5000);
        unsigned char byte, flipped;
        assert_int_equal(ls_pread_all(file, &byte, 1, at), 0);
        flipped = (unsigned char)(byte ^ 1u << random_below(8));
        assert_int_equal(ls_pwrite_all(file, &flipped, 1, at), 0);
        expect_damaged(folder, name);
        /* Sizes alone do not see it. */
        expect_ok(ls_manifest_verify(folder, false, NULL, NULL, error));
        assert_int_equal(ls_pwrite_all(file, &byte, 1, at), 0);
        close(file);
    }
    expect_ok(ls_manifest_verify(folder, true, NULL, NULL, error));
    harness_remove(folder);
}

static void torn_missing_and_replaced_files_are_found_and_named(void **unused) {
    (void)unused;
    char *folder = make_folder();
    char path[512];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    assert_int_equal(truncate(path, 4999), 0);
    expect_damaged(folder, "model.safetensors has 4999 bytes, its manifest says 5000");
    assert_int_equal(unlink(path), 0);
    expect_damaged(folder, "model.safetensors");
    assert_int_equal(symlink("state/rank-00000.safetensors", path), 0);
    expect_damaged(folder, "symbolic link");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_damaged(folder, "regular");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    expect_damaged(folder, "regular");
    harness_remove(folder);
}

static void a_state_folder_that_is_a_link_is_refused(void **unused) {
    (void)unused;
    char *folder = make_folder();
    char state[512], moved[512];
    snprintf(state, sizeof state, "%s/state", folder);
    snprintf(moved, sizeof moved, "%s/moved", folder);
    assert_int_equal(rename(state, moved), 0);
    assert_int_equal(symlink("moved", state), 0);
    expect_damaged(folder, "link");
    harness_remove(folder);
}

static void a_manifest_that_is_a_fifo_does_not_block(void **unused) {
    (void)unused;
    char *folder = make_folder();
    char path[512];
    snprintf(path, sizeof path, "%s/manifest.json", folder);
    assert_int_equal(unlink(path), 0);
    expect_damaged(folder, "manifest.json");
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_damaged(folder, "manifest.json");
    harness_remove(folder);
}

static void trainer_state_reads_back_with_all_64_bits_of_the_seeds(void **unused) {
    (void)unused;
    struct ls_trainer_state back, state = {.step = 200,
                                           .attempt = 2,
                                           .position = INT64_MAX,
                                           .samples = INT64_MAX - 5,
                                           .epoch = 3,
                                           .data_generation = 2,
                                           .data_generation_step = 150,
                                           .optimizer_steps = 199,
                                           .tokens = 1 << 30,
                                           .world_size = 4,
                                           .data_seed = UINT64_MAX,
                                           .train_seed = 7,
                                           .validated = true,
                                           .validation_loss = 0.1,
                                           .ledger_chain = HASH,
                                           .config_digest = HASH,
                                           .train_digest = HASH,
                                           .quarantine = {2, {{3, 7}, {INT64_MAX - 9, INT64_MAX}}}};
    char *json;
    expect_ok(ls_trainer_state_write(&state, &json, error));
    memset(&back, 1, sizeof back);
    expect_ok(ls_trainer_state_parse(json, strlen(json), &back, error));
    assert_memory_equal(&back, &state, sizeof state);
    /* Every single key is needed, but for the validation loss, which not every checkpoint has, and for those below. */
    char *unvalidated = strdup(json), *loss = strstr(unvalidated, "\"validation_loss\"");
    assert_non_null(loss);
    loss[1] = 'X';
    expect_ok(ls_trainer_state_parse(unvalidated, strlen(unvalidated), &back, error));
    assert_false(back.validated);
    free(unvalidated);
    const char *keys[] = {
        "step",      "attempt",    "position",     "epoch",           "optimizer_steps", "tokens",         "world_size",
        "data_seed", "train_seed", "ledger_chain", "parent_manifest", "config_digest",   "dataset_digest", "version"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char quoted[40], *copy = strdup(json);
        snprintf(quoted, sizeof quoted, "\"%s\"", keys[i]);
        char *at = strstr(copy, quoted);
        assert_non_null(at);
        at[1] = 'X';
        assert_int_equal(ls_trainer_state_parse(copy, strlen(copy), &back, error), LS_CHECKPOINT);
        assert_non_null(strstr(error->text, keys[i]));
        free(copy);
    }
    free(json);
}

/* A file of a version that knew one generation of the data and listed no quarantine. */
static void trainer_state_without_generations_is_of_the_first(void **unused) {
    (void)unused;
    static const char *const newer[] = {"samples", "data_generation", "data_generation_step", "train_digest",
                                        "quarantined"};
    struct ls_trainer_state back, state = {.step = 20,
                                           .position = 160,
                                           .samples = 400,
                                           .data_generation = 3,
                                           .data_generation_step = 10,
                                           .train_digest = HASH,
                                           .quarantine = {1, {{8, 16}}}};
    char *json;
    expect_ok(ls_trainer_state_write(&state, &json, error));
    for (size_t i = 0; i < sizeof newer / sizeof *newer; i++) {
        char quoted[40];
        snprintf(quoted, sizeof quoted, "\"%s\"", newer[i]);
        char *at = strstr(json, quoted);
        assert_non_null(at);
        at[1] = 'X';
    }
    expect_ok(ls_trainer_state_parse(json, strlen(json), &back, error));
    assert_int_equal(back.samples, 160);
    assert_int_equal(back.data_generation, 1);
    assert_int_equal(back.data_generation_step, 0);
    assert_string_equal(back.train_digest, "");
    assert_int_equal(back.quarantine.count, 0);
    free(json);
}

static void trainer_state_with_wrong_values_is_refused(void **unused) {
    (void)unused;
    struct ls_trainer_state state = {.step = 5, .data_seed = 6}, back;
    struct {
        const char *from, *to;
    } changes[] = {{"\"step\": 5", "\"step\": -5"},
                   {"\"step\": 5", "\"step\": \"5\""},
                   {"\"step\": 5", "\"step\": 5.0"},
                   {"\"data_seed\": \"6\"", "\"data_seed\": 6"},
                   {"\"data_seed\": \"6\"", "\"data_seed\": \"\""},
                   {"\"data_seed\": \"6\"", "\"data_seed\": \"6x\""},
                   {"\"data_seed\": \"6\"", "\"data_seed\": \"18446744073709551616\""},
                   {"\"ledger_chain\": \"\"", "\"ledger_chain\": \"abc\""},
                   {"\"data_generation\": 1", "\"data_generation\": 0"},
                   {"\"data_generation_step\": 0", "\"data_generation_step\": 6"},
                   {"\"quarantined\": []", "\"quarantined\": [[3, 3]]"},
                   {"\"quarantined\": []", "\"quarantined\": [[3, 9], [8, 12]]"},
                   {"\"quarantined\": []", "\"quarantined\": [[-1, 3]]"},
                   {"\"quarantined\": []", "\"quarantined\": [[1, 3, 5]]"},
                   {"\"quarantined\": []", "\"quarantined\": [1, 3]"},
                   {"\"quarantined\": []", "\"quarantined\": {\"1\": 3}"},
                   {"\"version\": 1", "\"version\": 2"}};
    char *json, changed[2048];
    expect_ok(ls_trainer_state_write(&state, &json, error));
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        const char *at = strstr(json, changes[i].from);
        assert_non_null(at);
        snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - json), json, changes[i].to,
                 at + strlen(changes[i].from));
        if (ls_trainer_state_parse(changed, strlen(changed), &back, error) != LS_CHECKPOINT)
            fail_msg("accepted: %s", changes[i].to);
    }
    assert_int_equal(ls_trainer_state_parse(json, strlen(json) - 2, &back, error), LS_CHECKPOINT);
    free(json);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_manifests_are_refused),
        cmocka_unit_test(a_name_is_at_most_127_bytes_long),
        cmocka_unit_test(what_is_written_reads_back),
        cmocka_unit_test(hashes_are_xxh3_128_high_half_first),
        cmocka_unit_test(a_whole_folder_verifies_and_its_hash_is_that_of_the_manifest),
        cmocka_unit_test(a_flipped_bit_anywhere_is_found_and_the_file_named),
        cmocka_unit_test(torn_missing_and_replaced_files_are_found_and_named),
        cmocka_unit_test(a_state_folder_that_is_a_link_is_refused),
        cmocka_unit_test(a_manifest_that_is_a_fifo_does_not_block),
        cmocka_unit_test(trainer_state_reads_back_with_all_64_bits_of_the_seeds),
        cmocka_unit_test(trainer_state_without_generations_is_of_the_first),
        cmocka_unit_test(trainer_state_with_wrong_values_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
