/* Datasets: which tokens a sample has, where documents end, and what is refused. */
#define _GNU_SOURCE
#include "common/dataset.h"
#include "common/dataset_json.h"
#include "tests/unit/token_files.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <cmocka.h>

enum { ANY_VOCABULARY = 1 << 30 };

static struct ls_dataset *open_path(const char *path, int64_t sequence_length) {
    struct ls_config_source source = test_source(path);
    struct ls_dataset *dataset = NULL;
    struct ls_error error = {0};
    if (ls_dataset_open(&source, sequence_length, &dataset, &error)) fail_msg("%s", error.text);
    return dataset;
}

/* Opening `source` fails with LS_DATA, and the text has `evidence` in it. */
static void assert_source_refused(const struct ls_config_source *source, int64_t sequence_length,
                                  const char *evidence) {
    struct ls_dataset *dataset = NULL;
    struct ls_error error = {0};
    assert_int_equal(ls_dataset_open(source, sequence_length, &dataset, &error), LS_DATA);
    assert_null(dataset);
    if (!strstr(error.text, evidence)) fail_msg("no '%s' in: %s", evidence, error.text);
}

static void assert_refused(const char *path, int64_t sequence_length, const char *evidence) {
    struct ls_config_source source = test_source(path);
    assert_source_refused(&source, sequence_length, evidence);
}

static void assert_sample(const struct ls_dataset *dataset, int64_t sample, int T, bool mask, const int32_t *inputs,
                          const int32_t *targets, const int32_t *document_start) {
    int32_t found[3][64];
    struct ls_error error = {0};
    if (ls_dataset_read(dataset, sample, ANY_VOCABULARY, mask, found[0], found[1], found[2], &error))
        fail_msg("%s", error.text);
    for (int t = 0; t < T; t++) {
        assert_int_equal(found[0][t], inputs[t]);
        assert_int_equal(found[1][t], targets[t]);
        assert_int_equal(found[2][t], document_start[t]);
    }
}

static void samples_lie_inside_shards_and_tails_are_reported(void **state) {
    (void)state;
    uint32_t tokens[10];
    for (uint32_t i = 0; i < 10; i++) tokens[i] = 100 + i;
    write_gpt2_shard("a.bin", tokens, 10);
    write_gpt2_shard("b.bin", tokens, 3); /* too short for a sample */
    write_gpt2_shard("c.bin", tokens, 9);
    write_gpt2_shard("d.bin", tokens, 0);
    struct ls_dataset *dataset = open_path(test_folder, 4);
    assert_int_equal(ls_dataset_samples(dataset), 4);
    assert_int_equal(ls_dataset_tokens(dataset), 22);
    assert_int_equal(ls_dataset_shard_count(dataset), 4);
    static const struct { int64_t samples, tail; } expected[] = {{2, 1}, {0, 3}, {2, 0}, {0, 0}};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(ls_dataset_shard(dataset, i)->samples, expected[i].samples);
        assert_int_equal(ls_dataset_shard(dataset, i)->tail, expected[i].tail);
    }
    static const int32_t starts[4] = {0};
    assert_sample(dataset, 0, 4, true, (int32_t[]){100, 101, 102, 103}, (int32_t[]){101, 102, 103, 104}, starts);
    assert_sample(dataset, 1, 4, true, (int32_t[]){104, 105, 106, 107}, (int32_t[]){105, 106, 107, 108}, starts);
    assert_sample(dataset, 2, 4, true, (int32_t[]){100, 101, 102, 103}, (int32_t[]){101, 102, 103, 104}, starts);
    assert_sample(dataset, 3, 4, true, (int32_t[]){104, 105, 106, 107}, (int32_t[]){105, 106, 107, 108}, starts);
    static const struct {
        uint32_t shard;
        uint64_t index;
    } places[] = {{0, 0}, {0, 1}, {2, 0}, {2, 1}};
    for (int64_t i = 0; i < 4; i++) {
        uint32_t shard;
        uint64_t index;
        ls_dataset_locate(dataset, i, &shard, &index);
        assert_int_equal(shard, places[i].shard);
        assert_int_equal(index, places[i].index);
    }
    ls_dataset_close(dataset);
}

static void a_document_token_at_the_start_opens_its_document(void **state) {
    (void)state;
    static const uint32_t tokens[] = {50256, 1, 2, 50256, 50256, 3, 4, 50256, 5};
    write_gpt2_shard("a.bin", tokens, 9);
    struct ls_dataset *dataset = open_path(in_test_folder("a.bin"), 4);
    assert_int_equal(ls_dataset_document_token(dataset), 50256);
    assert_int_equal(ls_dataset_vocab_size(dataset), 50257);
    assert_string_equal(ls_dataset_tokenizer(dataset), "gpt2");
    assert_sample(dataset, 0, 4, true, (int32_t[]){50256, 1, 2, 50256}, (int32_t[]){1, 2, -1, -1},
                  (int32_t[]){0, 0, 0, 3});
    assert_sample(dataset, 1, 4, true, (int32_t[]){50256, 3, 4, 50256}, (int32_t[]){3, 4, -1, 5},
                  (int32_t[]){0, 0, 0, 3});
    assert_sample(dataset, 1, 4, false, (int32_t[]){50256, 3, 4, 50256}, (int32_t[]){3, 4, -1, 5},
                  (int32_t[]){0, 0, 0, 0});
    ls_dataset_close(dataset);
}

static void a_document_token_at_the_end_closes_its_document(void **state) {
    (void)state;
    static const uint32_t tokens[] = {1, 2, 7, 3, 7, 7, 4, 5, 7};
    write_gpt2_shard("a.bin", tokens, 9);
    struct ls_config_source source = test_source(in_test_folder("a.bin"));
    source.document_token_id = 7;
    source.document_token_at_end = true;
    struct ls_dataset *dataset;
    assert_int_equal(ls_dataset_open(&source, 8, &dataset, NULL), LS_OK);
    assert_int_equal(ls_dataset_document_token(dataset), 7);
    assert_sample(dataset, 0, 8, true, (int32_t[]){1, 2, 7, 3, 7, 7, 4, 5}, (int32_t[]){2, 7, -1, 7, -1, -1, 5, 7},
                  (int32_t[]){0, 0, 0, 3, 3, 5, 6, 6});
    ls_dataset_close(dataset);
    /* A sample that begins with the end of a document, and one of a single position. */
    write_gpt2_shard("a.bin", (uint32_t[]){7, 1, 2, 7}, 4);
    assert_int_equal(ls_dataset_open(&source, 3, &dataset, NULL), LS_OK);
    assert_sample(dataset, 0, 3, true, (int32_t[]){7, 1, 2}, (int32_t[]){-1, 2, 7}, (int32_t[]){0, 1, 1});
    ls_dataset_close(dataset);
    assert_int_equal(ls_dataset_open(&source, 1, &dataset, NULL), LS_OK);
    assert_sample(dataset, 0, 1, true, (int32_t[]){7}, (int32_t[]){-1}, (int32_t[]){0});
    assert_sample(dataset, 2, 1, true, (int32_t[]){2}, (int32_t[]){7}, (int32_t[]){0});
    ls_dataset_close(dataset);
}

static void llama_shards_hold_four_bytes_a_token(void **state) {
    (void)state;
    static const uint32_t tokens[] = {128000, 70000, 128255, 5};
    write_token_file("a.bin", 20240801, 7, 4, tokens, 4, 4);
    struct ls_dataset *dataset = open_path(test_folder, 3);
    assert_int_equal(ls_dataset_vocab_size(dataset), 128256);
    assert_int_equal(ls_dataset_document_token(dataset), 128000);
    assert_int_equal(ls_dataset_shard(dataset, 0)->token_bytes, 4);
    assert_sample(dataset, 0, 3, true, (int32_t[]){128000, 70000, 128255}, (int32_t[]){70000, 128255, 5},
                  (int32_t[]){0, 0, 0});
    ls_dataset_close(dataset);
}

static void headerless_files_need_their_dtype(void **state) {
    (void)state;
    static const uint16_t tokens[] = {1, 65535, 3, 50256, 5};
    write_test_file("a.bin", tokens, sizeof tokens);
    assert_refused(test_folder, 2, "dtype: uint16");
    struct ls_config_source source = test_source(test_folder);
    strcpy(source.dtype, "uint16");
    struct ls_dataset *dataset;
    assert_int_equal(ls_dataset_open(&source, 4, &dataset, NULL), LS_OK);
    assert_int_equal(ls_dataset_document_token(dataset), -1);
    assert_int_equal(ls_dataset_vocab_size(dataset), 0);
    assert_sample(dataset, 0, 4, true, (int32_t[]){1, 65535, 3, 50256}, (int32_t[]){65535, 3, 50256, 5},
                  (int32_t[]){0, 0, 0, 0});
    ls_dataset_close(dataset);
    write_test_file("a.bin", tokens, sizeof tokens - 1);
    assert_source_refused(&source, 2, "odd number");
    strcpy(source.dtype, "int8");
    struct ls_error error;
    assert_int_equal(ls_dataset_open(&source, 4, &dataset, &error), LS_USAGE);
}

static void damaged_and_foreign_files_are_refused_by_name(void **state) {
    (void)state;
    static const uint32_t tokens[8] = {0};
    static const struct {
        int32_t magic, version, stated;
        const char *evidence;
    } cases[] = {
        {20240520, 1, 9, "truncated copy?"},
        {20240520, 1, 7, "bytes too many"},
        {20240520, 2, 8, "version 2"},
        {20240801, 1, 8, "version 1"},
        {20240520, 1, -1, "overflowed"},
        {20240520, 1, INT32_MAX, "2147483647"},
        {20240522, 1, 8, "an llm.c evaluation file"},
        {20240326, 3, 8, "llm.c model weights"},
        {20240328, 2, 8, "an llm.c tokenizer"},
        {12345, 1, 8, "found 12345"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_token_file("shard.bin", cases[i].magic, cases[i].version, cases[i].stated, tokens, 8, 2);
        assert_refused(test_folder, 2, cases[i].evidence);
        assert_refused(test_folder, 2, "shard.bin");
    }
    const int32_t header[3] = {20240520, 1, 0};
    write_test_file("shard.bin", header, sizeof header);
    assert_refused(test_folder, 2, "12 bytes");
    write_test_file("shard.bin", header, 3);
    assert_refused(test_folder, 2, "3 bytes");
    write_token_file("shard.bin", 20240520, 1, 8, tokens, 8, 2);
    write_token_file("shard2.bin", 20240801, 7, 8, tokens, 8, 4);
    assert_refused(test_folder, 2, "another kind");
}

static void what_is_too_short_for_a_sample_is_refused_with_its_size(void **state) {
    (void)state;
    static const uint32_t tokens[8] = {0};
    assert_refused(test_folder, 2, "no file that matches '*.bin'");
    assert_refused(in_test_folder("absent"), 2, "No such file");
    write_gpt2_shard("a.bin", tokens, 0);
    assert_refused(test_folder, 2, "0 tokens");
    write_gpt2_shard("a.bin", tokens, 8);
    assert_refused(test_folder, 8, "holds 8 tokens");
    assert_refused(test_folder, 8, "the 9 that one sample");
    ls_dataset_close(open_path(test_folder, 7));
    mkfifo(in_test_folder("b.bin"), 0600);
    assert_refused(test_folder, 7, "not a regular file");
}

static void a_folder_with_splits_points_at_them(void **state) {
    (void)state;
    mkdir(in_test_folder("train"), 0700);
    assert_refused(test_folder, 2, "in its folder 'train'");
}

static void a_pattern_takes_the_files_it_matches_in_name_order(void **state) {
    (void)state;
    write_gpt2_shard("fineweb_train_000002.bin", (uint32_t[]){3, 4}, 2);
    write_gpt2_shard("fineweb_train_000001.bin", (uint32_t[]){1, 2}, 2);
    write_gpt2_shard("fineweb_val_000000.bin", (uint32_t[]){5, 6}, 2);
    struct ls_dataset *dataset = open_path(in_test_folder("fineweb_train_*.bin"), 1);
    assert_int_equal(ls_dataset_samples(dataset), 2);
    assert_string_equal(ls_dataset_shard(dataset, 0)->name, "fineweb_train_000001.bin");
    assert_string_equal(ls_dataset_shard(dataset, 1)->name, "fineweb_train_000002.bin");
    ls_dataset_close(dataset);
    assert_refused(in_test_folder("fineweb_test_*.bin"), 1, "fineweb_test_*.bin");
}

static void write_json(const char *text) {
    write_test_file("dataset.json", text, strlen(text));
}

static void dataset_json_gives_order_vocabulary_and_document_token(void **state) {
    (void)state;
    write_gpt2_shard("a.bin", (uint32_t[]){256, 1, 2}, 3);
    write_gpt2_shard("b.bin", (uint32_t[]){256, 50256, 4}, 3);
    write_gpt2_shard("left-out.bin", (uint32_t[]){9, 9, 9}, 3);
    write_json(
        "{\"format\": \"lockstep-dataset\", \"version\": 1, \"tokenizer\": \"byte\", \"vocab_size\": 300,"
        " \"document_token\": {\"id\": 256, \"at\": \"start\"}, \"documents\": 2, \"tokens\": 6, \"text_bytes\": 9,"
        " \"new member\": [1], \"shards\": [{\"name\": \"b.bin\", \"tokens\": 3}, {\"name\": \"a.bin\", \"tokens\": "
        "3}]}");
    struct ls_dataset *dataset = open_path(test_folder, 2);
    assert_int_equal(ls_dataset_vocab_size(dataset), 300);
    assert_int_equal(ls_dataset_document_token(dataset), 256);
    assert_false(ls_dataset_document_token_at_end(dataset));
    assert_int_equal(ls_dataset_documents(dataset), 2);
    assert_int_equal(ls_dataset_text_bytes(dataset), 9);
    assert_true(ls_dataset_bytes_per_token(dataset) == 1.5);
    assert_string_equal(ls_dataset_tokenizer(dataset), "byte");
    assert_sample(dataset, 0, 2, true, (int32_t[]){256, 50256}, (int32_t[]){50256, 4}, (int32_t[]){0, 0});
    assert_sample(dataset, 1, 2, true, (int32_t[]){256, 1}, (int32_t[]){1, 2}, (int32_t[]){0, 0});
    ls_dataset_close(dataset);
    struct ls_config_source source = test_source(test_folder);
    source.document_token_id = 1; /* what the user says goes before dataset.json */
    assert_int_equal(ls_dataset_open(&source, 2, &dataset, NULL), LS_OK);
    assert_sample(dataset, 1, 2, true, (int32_t[]){256, 1}, (int32_t[]){-1, 2}, (int32_t[]){0, 1});
    ls_dataset_close(dataset);
}

/* dataset.json with one shard entry; `shard` is JSON text. */
static void write_json_with_shard(const char *shard) {
    char text[1024];
    snprintf(text, sizeof text,
             "{\"format\": \"lockstep-dataset\", \"version\": 1, \"tokenizer\": \"byte\", \"vocab_size\": 257,"
             " \"document_token\": null, \"tokens\": 3, \"shards\": [%s]}",
             shard);
    write_json(text);
}

static void hostile_names_in_dataset_json_open_nothing(void **state) {
    (void)state;
    write_gpt2_shard("a.bin", (uint32_t[]){1, 2, 3}, 3);
    if (symlink("a.bin", in_test_folder("link.bin")) || mkfifo(in_test_folder("fifo.bin"), 0600)) fail();
    static const struct {
        const char *shard, *evidence;
    } cases[] = {
        {"{\"name\": \"../a.bin\", \"tokens\": 3}", "not one component"},
        {"{\"name\": \"/etc/passwd\", \"tokens\": 3}", "not one component"},
        {"{\"name\": \"..\", \"tokens\": 3}", "not one component"},
        {"{\"name\": \"\", \"tokens\": 3}", "not one component"},
        {"{\"name\": \"a\\u0001.bin\", \"tokens\": 3}", "not one component"},
        {"{\"tokens\": 3}", "not one component"},
        {"{\"name\": \"link.bin\", \"tokens\": 3}", "symbolic link"},
        {"{\"name\": \"fifo.bin\", \"tokens\": 3}", "not a regular file"},
        {"{\"name\": \"absent.bin\", \"tokens\": 3}", "absent.bin"},
        {"{\"name\": \"a.bin\", \"tokens\": -3}", "'tokens' of a shard"},
        {"{\"name\": \"a.bin\", \"tokens\": 3.0}", "'tokens' of a shard"},
        {"{\"name\": \"a.bin\", \"tokens\": 2}", "not the sum"},
        {"{\"name\": \"a.bin\", \"tokens\": 3, \"xxh3\": \"12\"}", "32 hex digits"},
        {"{\"name\": \"a.bin\", \"tokens\": 2}, {\"name\": \"a.bin\", \"tokens\": 1}", "same name"},
        {"{\"name\": \"a.bin\", \"tokens\": 9223372036854775807}", "'tokens' of a shard"},
        {"", "1 to 65536"},
        {"3", "not one component"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_json_with_shard(cases[i].shard);
        assert_refused(test_folder, 2, cases[i].evidence);
    }
    write_json_with_shard("{\"name\": \"a.bin\", \"tokens\": 3}");
    ls_dataset_close(open_path(test_folder, 2));
    write_gpt2_shard("a.bin", (uint32_t[]){1, 2, 3, 4}, 4);
    assert_refused(test_folder, 2, "holds 4 tokens, dataset.json says 3");
}

static void dataset_json_that_makes_no_sense_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *text, *evidence;
    } cases[] = {
        {"", "line 1"},
        {"{", "line 1"},
        {"[]", "'format'"},
        {"{\"format\": \"other\"}", "'format'"},
        {"{\"format\": \"lockstep-dataset\", \"format\": \"lockstep-dataset\"}", "duplicate"},
        {"{\"format\": \"lockstep-dataset\", \"version\": 2}", "'version'"},
        {"{\"format\": \"lockstep-dataset\"}", "'version'"},
        {"{\"format\": \"lockstep-dataset\", \"version\": 1, \"tokenizer\": 3}", "'tokenizer'"},
        {"{\"format\": \"lockstep-dataset\", \"version\": 1}", "'vocab_size'"},
        {"{\"format\": \"lockstep-dataset\", \"version\": 1, \"vocab_size\": 0}", "'vocab_size'"},
        {"{\"format\": \"lockstep-dataset\", \"version\": 1, \"vocab_size\": 4194305}", "'vocab_size'"},
        {"{\"format\": \"lockstep-dataset\", \"version\": 1, \"vocab_size\": 4194304, \"documents\": -1}",
         "'documents'"},
        {"{\"format\": \"lockstep-dataset\", \"version\": 1, \"vocab_size\": 5, \"document_token\": 5}",
         "document_token.id"},
        {"{\"format\": \"lockstep-dataset\", \"version\": 1, \"vocab_size\": 5, \"document_token\": {\"id\": 5, "
         "\"at\": \"end\"}}",
         "document_token.id"},
        {"{\"format\": \"lockstep-dataset\", \"version\": 1, \"vocab_size\": 5, \"document_token\": {\"id\": 4}}",
         "document_token.at"},
        {"{\"format\": \"lockstep-dataset\", \"version\": 1, \"vocab_size\": 5, \"document_token\": {\"id\": 4, "
         "\"at\": \"x\"}}",
         "document_token.at"},
        {"{\"format\": \"lockstep-dataset\", \"version\": 1, \"vocab_size\": 5, \"shards\": 4}", "'shards'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_json(cases[i].text);
        assert_refused(test_folder, 1, cases[i].evidence);
    }
}

static void dataset_json_comes_back_as_it_was_written(void **state) {
    (void)state;
    struct ls_dataset_json_shard shards[2] = {{"x-000.bin", 5, "0123456789abcdef0123456789abcdef"},
                                              {"x-001.bin", 7, ""}};
    struct ls_dataset_json description = {.tokenizer = "byte",
                                          .vocab_size = 257,
                                          .document_token = 256,
                                          .document_token_at_end = true,
                                          .documents = 4,
                                          .tokens = 12,
                                          .text_bytes = 8,
                                          .shard_count = 2,
                                          .shards = shards};
    char *text = ls_dataset_json_write(&description);
    struct ls_dataset_json read;
    struct ls_error error = {0};
    if (ls_dataset_json_parse(text, strlen(text), "dataset.json", &read, &error)) fail_msg("%s", error.text);
    assert_string_equal(read.tokenizer, "byte");
    assert_int_equal(read.vocab_size, 257);
    assert_int_equal(read.document_token, 256);
    assert_true(read.document_token_at_end);
    assert_int_equal(read.documents, 4);
    assert_int_equal(read.tokens, 12);
    assert_int_equal(read.text_bytes, 8);
    assert_int_equal(read.shard_count, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_string_equal(read.shards[i].name, shards[i].name);
        assert_string_equal(read.shards[i].xxh3, shards[i].xxh3);
        assert_int_equal(read.shards[i].tokens, shards[i].tokens);
    }
    ls_dataset_json_free(&read);
    free(text);
}

static void ids_beyond_the_vocabulary_are_named_with_shard_and_offset(void **state) {
    (void)state;
    write_gpt2_shard("a.bin", (uint32_t[]){1, 2, 3, 4, 5, 6, 300}, 7);
    struct ls_dataset *dataset = open_path(test_folder, 3);
    int32_t out[3][3];
    struct ls_error error;
    assert_int_equal(ls_dataset_read(dataset, 0, 5, true, out[0], out[1], out[2], &error), LS_OK);
    assert_int_equal(ls_dataset_read(dataset, 0, 4, true, out[0], out[1], out[2], &error),
                     LS_DATA); /* the last target */
    assert_non_null(strstr(error.text, "token 3 of"));
    assert_int_equal(ls_dataset_read(dataset, 1, 300, true, out[0], out[1], out[2], &error), LS_DATA);
    assert_non_null(strstr(error.text, "token 6 of"));
    assert_non_null(strstr(error.text, "a.bin is 300"));
    assert_int_equal(ls_dataset_read(dataset, 1, 301, true, out[0], out[1], out[2], &error), LS_OK);
    ls_dataset_close(dataset);
    static const uint32_t huge[] = {1, 2, 0x80000000};
    write_token_file("b.bin", 20240801, 7, 3, huge, 3, 4);
    dataset = open_path(in_test_folder("b.bin"), 2);
    assert_int_equal(ls_dataset_read(dataset, 0, INT64_MAX, true, out[0], out[1], out[2], &error), LS_DATA);
    assert_non_null(strstr(error.text, "token 2 of"));
    ls_dataset_close(dataset);
}

static void a_file_cut_while_in_use_is_an_error_and_not_a_signal(void **state) {
    (void)state;
    static const uint32_t tokens[4000] = {0};
    write_gpt2_shard("a.bin", tokens, 4000);
    struct ls_dataset *dataset = open_path(test_folder, 100);
    int32_t out[3][100];
    struct ls_error error;
    assert_int_equal(truncate(in_test_folder("a.bin"), 1024 + 2 * 1050), 0);
    assert_int_equal(ls_dataset_read(dataset, 9, 50257, true, out[0], out[1], out[2], &error), LS_OK);
    assert_int_equal(ls_dataset_read(dataset, 10, 50257, true, out[0], out[1], out[2], &error), LS_DATA);
    assert_non_null(strstr(error.text, "became shorter"));
    assert_non_null(strstr(error.text, "a.bin"));
    ls_dataset_close(dataset);
}

/* Makes a file of `bytes` bytes that takes no room, but for `count` bytes at its end. */
static void write_sparse_file(const char *name, const void *header, size_t header_bytes, int64_t bytes, const void *end,
                              size_t count) {
    int file = open(in_test_folder(name), O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || ftruncate(file, bytes) || pwrite(file, header, header_bytes, 0) != (ssize_t)header_bytes ||
        pwrite(file, end, count, bytes - (int64_t)count) != (ssize_t)count || close(file))
        fail_msg("cannot make a sparse file of %lld bytes", (long long)bytes);
}

static void shards_of_five_gigabytes_are_read_at_their_end(void **state) {
    (void)state;
    /* 2.5e9 uint16 tokens without a header; 1.25e9 uint32 tokens with one. */
    static const uint16_t end16[] = {11, 12, 13, 14, 15};
    static const uint32_t end32[] = {21, 22, 23, 24, 25};
    static const int32_t header[3] = {20240801, 7, 1250000001};
    write_sparse_file("sixteen.bin", end16, 0, 5000000002, end16, sizeof end16);
    write_sparse_file("thirty-two.bin", header, sizeof header, 1024 + 4 * INT64_C(1250000001), end32, sizeof end32);
    struct ls_config_source source = test_source(in_test_folder("sixteen.bin"));
    strcpy(source.dtype, "uint16");
    struct ls_dataset *dataset;
    assert_int_equal(ls_dataset_open(&source, 4, &dataset, NULL), LS_OK);
    assert_int_equal(ls_dataset_tokens(dataset), 2500000001);
    assert_int_equal(ls_dataset_samples(dataset), 625000000);
    static const int32_t starts[4] = {0};
    assert_sample(dataset, 624999999, 4, true, (int32_t[]){11, 12, 13, 14}, (int32_t[]){12, 13, 14, 15}, starts);
    assert_sample(dataset, 624999998, 4, true, (int32_t[]){0, 0, 0, 0}, (int32_t[]){0, 0, 0, 11}, starts);
    ls_dataset_close(dataset);
    dataset = open_path(in_test_folder("thirty-two.bin"), 4);
    assert_int_equal(ls_dataset_samples(dataset), 312500000);
    assert_sample(dataset, 312499999, 4, true, (int32_t[]){21, 22, 23, 24}, (int32_t[]){22, 23, 24, 25}, starts);
    ls_dataset_close(dataset);
}

/* Data sets of a corpus are open at the same time: what one of them asks for comes on top of the others. */
static void many_shards_of_several_datasets_are_open_at_once(void **state) {
    (void)state;
    enum { DATASETS = 2, SHARDS = 700 };
    static const uint32_t tokens[6] = {50256, 1, 2, 3, 4, 5};
    struct ls_dataset *datasets[DATASETS];
    struct rlimit before;
    char name[64];
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    if (before.rlim_max < 4096) skip();
    for (int d = 0; d < DATASETS; d++) {
        snprintf(name, sizeof name, "many-%d", d);
        assert_int_equal(mkdir(in_test_folder(name), 0700), 0);
        for (int i = 0; i < SHARDS; i++) {
            snprintf(name, sizeof name, "many-%d/%04d.bin", d, i);
            write_gpt2_shard(name, tokens, 6);
        }
    }
    const struct rlimit low = {.rlim_cur = 64, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    for (int d = 0; d < DATASETS; d++) {
        snprintf(name, sizeof name, "many-%d", d);
        datasets[d] = open_path(in_test_folder(name), 5);
        assert_int_equal(ls_dataset_samples(datasets[d]), SHARDS);
    }
    for (int d = 0; d < DATASETS; d++) ls_dataset_close(datasets[d]);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
}

/* That there is no descriptor left says nothing of the data, however their files are named. */
static void shards_beyond_what_may_be_open_are_a_lack_of_memory(void **state) {
    (void)state;
    enum { SHARDS = 64 };
    static const uint32_t tokens[6] = {50256, 1, 2, 3, 4, 5};
    char name[64], folder[64], pattern[80], described[64];
    struct ls_dataset_json_shard shards[SHARDS] = {{.tokens = 0}};
    struct ls_dataset_json description = {
        .tokenizer = "gpt2", .vocab_size = 50257, .document_token = 50256, .shards = shards, .shard_count = SHARDS};
    snprintf(folder, sizeof folder, "%s", in_test_folder("some"));
    snprintf(pattern, sizeof pattern, "%s/*.bin", folder);
    snprintf(described, sizeof described, "%s", in_test_folder("described"));
    assert_int_equal(mkdir(folder, 0700), 0);
    assert_int_equal(mkdir(described, 0700), 0);
    for (int i = 0; i < SHARDS; i++) {
        snprintf(name, sizeof name, "some/%04d.bin", i);
        write_gpt2_shard(name, tokens, 6);
        snprintf(name, sizeof name, "described/%04d.bin", i);
        write_gpt2_shard(name, tokens, 6);
        snprintf(shards[i].name, sizeof shards[i].name, "%04d.bin", i);
        shards[i].tokens = 6;
        description.tokens += 6;
    }
    char *text = ls_dataset_json_write(&description);
    write_test_file("described/dataset.json", text, strlen(text));
    free(text);
    const pid_t child = fork(); /* a hard limit cannot be taken back */
    if (child == 0) {
        const struct rlimit low = {.rlim_cur = 32, .rlim_max = 32};
        struct ls_dataset *dataset;
        struct ls_error error;
        bool fine = setrlimit(RLIMIT_NOFILE, &low) == 0;
        for (int i = 0; i < 3; i++) {
            const struct ls_config_source source = test_source(i == 0 ? folder : i == 1 ? pattern : described);
            fine = fine && ls_dataset_open(&source, 5, &dataset, &error) == LS_MEMORY && error.code == LS_MEMORY;
            fine = fine && strstr(error.text, "64 token files") && strstr(error.text, "may have 32 files open");
        }
        _exit(fine ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void what_a_source_says_and_its_files_do_not_is_refused(void **state) {
    (void)state;
    write_token_file("a.bin", 20240801, 7, 3, (uint32_t[]){1, 2, 3}, 3, 4);
    struct ls_config_source source = test_source(test_folder);
    strcpy(source.dtype, "uint16");
    assert_source_refused(&source, 2, "4 bytes a token");
    source.dtype[0] = 0;
    source.document_token_id = 128256;
    assert_source_refused(&source, 2, "128256 ids");
    source.document_token_id = 128255;
    struct ls_dataset *dataset;
    assert_int_equal(ls_dataset_open(&source, 2, &dataset, NULL), LS_OK);
    ls_dataset_close(dataset);
    source = test_source("synthetic:100");
    strcpy(source.dtype, "uint16");
    assert_int_equal(ls_dataset_open(&source, 2, &dataset, NULL), LS_USAGE);
}

static void synthetic_tokens_depend_on_their_position_alone(void **state) {
    (void)state;
    struct ls_dataset *dataset = open_path("synthetic:1000001", 50), *other = open_path("synthetic:101", 10);
    assert_int_equal(ls_dataset_samples(dataset), 20000);
    assert_int_equal(ls_dataset_vocab_size(dataset), 257);
    int32_t a[3][50], b[3][10], values[256] = {0}, different = 0;
    assert_int_equal(ls_dataset_read(dataset, 1, 256, true, a[0], a[1], a[2], NULL), LS_OK);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(ls_dataset_read(other, 5 + i, 256, true, b[0], b[1], b[2], NULL), LS_OK);
        assert_memory_equal(b[0], a[0] + 10 * i, sizeof b[0]);
        assert_memory_equal(b[1], a[1] + 10 * i, sizeof b[1]);
    }
    for (int64_t sample = 0; sample < 100; sample++) {
        assert_int_equal(ls_dataset_read(dataset, sample, 256, true, a[0], a[1], a[2], NULL), LS_OK);
        for (int t = 0; t < 50; t++) different += values[a[0][t]]++ == 0;
    }
    assert_true(different > 100);
    ls_dataset_close(dataset);
    ls_dataset_close(other);
    static const char *const bad[] = {"synthetic:",   "synthetic:x",  "synthetic:-5",
                                      "synthetic:5x", "synthetic: 5", "synthetic:99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_refused(bad[i], 1, "synthetic:TOKENS");
    assert_refused("synthetic:10", 10, "10 tokens");
}

static void the_digest_changes_with_what_training_sees(void **state) {
    (void)state;
    char digests[6][33];
    mkdir(in_test_folder("one"), 0700);
    mkdir(in_test_folder("two"), 0700);
    static const uint32_t tokens[20] = {0};
    write_gpt2_shard("one/a.bin", tokens, 20);
    write_gpt2_shard("two/a.bin", tokens, 20);
    struct ls_config_source source = test_source(in_test_folder("one"));
    for (int i = 0; i < 6; i++) {
        struct ls_dataset *dataset;
        if (i == 1) source = test_source(in_test_folder("two")); /* a copy: the same */
        if (i == 3) source.document_token_id = 3;                /* after another T, another document token */
        if (i == 4) source.document_token_at_end = true;         /* its other place */
        if (i == 5) write_gpt2_shard("two/a.bin", tokens, 19);   /* another size */
        assert_int_equal(ls_dataset_open(&source, i == 2 ? 4 : 5, &dataset, NULL), LS_OK);
        ls_dataset_digest(dataset, digests[i]);
        ls_dataset_close(dataset);
    }
    assert_string_equal(digests[0], digests[1]);
    for (int i = 1; i < 6; i++)
        for (int j = i + 1; j < 6; j++) assert_string_not_equal(digests[i], digests[j]);
}

struct reader {
    const struct ls_dataset *dataset;
    int64_t offset;
    int wrong;
};

static void *read_all_samples(void *argument) {
    struct reader *reader = argument;
    for (int64_t i = 0; i < 400; i++) {
        const int64_t sample = (i + reader->offset) % 400;
        int32_t out[3][16];
        if (ls_dataset_read(reader->dataset, sample, 50257, true, out[0], out[1], out[2], NULL)) reader->wrong++;
        for (int t = 0; t < 16; t++)
            reader->wrong += out[0][t] != (int32_t)(sample * 16 + t) || out[1][t] != out[0][t] + 1;
    }
    return NULL;
}

static void several_threads_read_at_once(void **state) {
    (void)state;
    uint32_t tokens[6401];
    for (uint32_t i = 0; i < 6401; i++) tokens[i] = i;
    write_gpt2_shard("a.bin", tokens, 6401);
    struct ls_dataset *dataset = open_path(test_folder, 16);
    pthread_t threads[3];
    struct reader readers[3];
    for (int i = 0; i < 3; i++) {
        readers[i] = (struct reader){dataset, i * 133, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, read_all_samples, &readers[i]), 0);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(readers[i].wrong, 0);
    }
    ls_dataset_close(dataset);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_test_folder, remove_test_folder)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(samples_lie_inside_shards_and_tails_are_reported),
        TEST(a_document_token_at_the_start_opens_its_document),
        TEST(a_document_token_at_the_end_closes_its_document),
        TEST(llama_shards_hold_four_bytes_a_token),
        TEST(headerless_files_need_their_dtype),
        TEST(damaged_and_foreign_files_are_refused_by_name),
        TEST(what_is_too_short_for_a_sample_is_refused_with_its_size),
        TEST(a_folder_with_splits_points_at_them),
        TEST(a_pattern_takes_the_files_it_matches_in_name_order),
        TEST(dataset_json_gives_order_vocabulary_and_document_token),
        TEST(hostile_names_in_dataset_json_open_nothing),
        TEST(dataset_json_that_makes_no_sense_is_refused),
        TEST(dataset_json_comes_back_as_it_was_written),
        TEST(ids_beyond_the_vocabulary_are_named_with_shard_and_offset),
        TEST(a_file_cut_while_in_use_is_an_error_and_not_a_signal),
        TEST(shards_of_five_gigabytes_are_read_at_their_end),
        TEST(many_shards_of_several_datasets_are_open_at_once),
        TEST(shards_beyond_what_may_be_open_are_a_lack_of_memory),
        TEST(what_a_source_says_and_its_files_do_not_is_refused),
        TEST(synthetic_tokens_depend_on_their_position_alone),
        TEST(the_digest_changes_with_what_training_sees),
        TEST(several_threads_read_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
