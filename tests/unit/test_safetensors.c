/* Safetensors headers: what is accepted, what is refused and why, and that what is written reads back. */
#include "tests/unit/checkpoint_harness.h"

#include "common/safetensors.h"

#include <time.h>

/* Parses a file whose header is `json` and whose tensors have `data_bytes` bytes, of which none are there: only the
 * header is read. */
static enum ls_code parse(const char *json, int64_t data_bytes, struct ls_safetensors **file) {
    size_t length = strlen(json);
    char *bytes = malloc(8 + length);
    assert_non_null(bytes);
    for (int i = 0; i < 8; i++) bytes[i] = (char)((uint64_t)length >> 8 * i);
    memcpy(bytes + 8, json, length);
    enum ls_code code = ls_safetensors_parse(bytes, 8 + length, 8 + (int64_t)length + data_bytes, file, error);
    free(bytes);
    return code;
}

struct refusal {
    const char *json;
    int64_t data_bytes;
    const char *word;
};

static void hostile_headers_are_refused_with_their_reason(void **unused) {
    (void)unused;
#define A8 "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"
    const struct refusal refusals[] = {
        {"", 0, "start with '{'"},
        {" {}", 0, "start with '{'"},
        {"[]", 0, "start with '{'"},
        {"{", 0, "JSON"},
        {"{} x", 0, "JSON"},
        {"{" A8 "," A8 "}", 8, "JSON"},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "JSON"},
        {"{" A8 "}", 4, "outside"},
        {"{" A8 "}", 12, "end at byte 8 of 12"},
        {"{}", 1, "end at byte 0 of 1"},
        {"{" A8 ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", 12, "overlaps"},
        {"{" A8 ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "overlaps"},
        {"{" A8 ",\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[12,16]}}", 16, "hole"},
        {"{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "hole"},
        {"{\"b\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[4,4]}," A8 "}", 8, "overlaps"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, "does not fit"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "outside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", 8, "outside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, "two integers"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,9]}}", 8, "two integers"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8.0]}}", 8, "two integers"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,99999999999999999999]}}", 8, "JSON"},
        {"{\"a\":{\"dtype\":\"F33\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "dtype"},
        {"{\"a\":{\"dtype\":4,\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":2,\"data_offsets\":[0,8]}}", 8, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[\"2\"],\"data_offsets\":[0,8]}}", 8, "shape"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1, "shape"},
        /* 2^31 x 2^31 x 4 elements are 2^64: a product that wraps to 0. */
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2147483648,2147483648,4],\"data_offsets\":[0,0]}}", 0, "63 bits"},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0, "63 bits"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"more\":1}}", 8, "exactly"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "exactly"},
        {"{\"a\":[]}", 0, "exactly"},
        {"{\"\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "name"},
        {"{\"a\\u0000b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "JSON"},
        {"{\"__metadata__\":[]}", 0, "__metadata__"},
        {"{\"__metadata__\":{\"format\":1}}", 0, "__metadata__"},
    };
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        struct ls_safetensors *file;
        if (parse(refusals[i].json, refusals[i].data_bytes, &file) != LS_CHECKPOINT)
            fail_msg("accepted: %s", refusals[i].json);
        if (!strstr(error->text, refusals[i].word))
            fail_msg("'%s' is not in the reason for %s: %s", refusals[i].word, refusals[i].json, error->text);
    }
}

static void a_name_of_more_than_511_bytes_is_refused(void **unused) {
    (void)unused;
    char json[1024], name[600];
    for (int length = 511; length <= 512; length++) {
        struct ls_safetensors *file;
        memset(name, 'n', sizeof name);
        name[length] = 0;
        snprintf(json, sizeof json, "{\"%s\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", name);
        assert_int_equal(parse(json, 1, &file), length == 511 ? LS_OK : LS_CHECKPOINT);
        if (length == 511) ls_safetensors_close(file);
    }
}

static void header_lengths_beyond_the_file_or_the_limit_are_refused(void **unused) {
    (void)unused;
    struct ls_safetensors *file;
    const char bytes[16] = "\x02\0\0\0\0\0\0\0{}";
    char length[16] = {0};
    assert_int_equal(ls_safetensors_parse(bytes, 10, 10, &file, error), LS_OK);
    ls_safetensors_close(file);
    for (size_t count = 0; count < 10; count++)
        assert_int_equal(ls_safetensors_parse(bytes, count, (int64_t)count, &file, error), LS_CHECKPOINT);
    memset(length, 0xff, 8);
    assert_int_equal(ls_safetensors_parse(length, 16, 16, &file, error), LS_CHECKPOINT);
    /* One byte over the limit in a file that is large enough. */
    const uint64_t over = LS_SAFETENSORS_HEADER_MAX + 1;
    for (int i = 0; i < 8; i++) length[i] = (char)(over >> 8 * i);
    assert_int_equal(ls_safetensors_parse(length, 16, (int64_t)over * 2, &file, error), LS_CHECKPOINT);
    assert_non_null(strstr(error->text, "limit"));
}

static void a_good_header_gives_tensors_in_the_order_of_their_bytes(void **unused) {
    (void)unused;
    struct ls_safetensors *file;
    expect_ok(parse("{\"second\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[8,20]},"
                    "\"__metadata__\":{\"format\":\"pt\",\"by\":\"hand\"},"
                    "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,5],\"data_offsets\":[8,8]},"
                    "\"first\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]}}   ",
                    20, &file));
    assert_int_equal(file->tensor_count, 3);
    assert_string_equal(file->tensors[0].name, "first");
    assert_string_equal(file->tensors[1].name, "empty");
    assert_string_equal(file->tensors[2].name, "second");
    assert_int_equal(ls_tensor_elements(&file->tensors[0]), 1);
    assert_int_equal(ls_tensor_elements(&file->tensors[1]), 0);
    assert_int_equal(ls_tensor_elements(ls_safetensors_find(file, "second")), 6);
    assert_string_equal(ls_tensor_type_name(file->tensors[2].type), "BF16");
    assert_null(ls_safetensors_find(file, "third"));
    assert_string_equal(ls_safetensors_metadata(file, "by"), "hand");
    assert_null(ls_safetensors_metadata(file, "at"));
    ls_safetensors_close(file);
}

/* State files say of every slice where it begins: a model of thousands of layers has tens of thousands of them. */
static void metadata_of_very_many_keys_is_looked_up_in_no_time(void **unused) {
    (void)unused;
    enum { KEYS = 150000, SECONDS_MAX = 20 };
    struct ls_safetensors_pair *pairs = calloc(KEYS, sizeof *pairs);
    char(*keys)[40] = calloc(KEYS, sizeof *keys), *bytes;
    struct ls_safetensors *file;
    size_t length;
    assert_true(pairs && keys);
    alarm(SECONDS_MAX * 30); /* or it ends much later */
    const clock_t begin = clock();
    for (int i = 0; i < KEYS; i++) {
        snprintf(keys[i], sizeof keys[i], "model.layers.%d.first", (int)(i * INT64_C(7919) % KEYS));
        pairs[i] = (struct ls_safetensors_pair){.key = keys[i], .value = keys[i]};
    }
    expect_ok(ls_safetensors_header(NULL, 0, pairs, KEYS, &bytes, &length, error));
    expect_ok(ls_safetensors_parse(bytes, length, (int64_t)length, &file, error));
    for (int i = 0; i < KEYS; i++) assert_string_equal(ls_safetensors_metadata(file, keys[i]), keys[i]);
    assert_null(ls_safetensors_metadata(file, "a"));
    assert_null(ls_safetensors_metadata(file, "z"));
    assert_true((double)(clock() - begin) / CLOCKS_PER_SEC < SECONDS_MAX);
    alarm(0);
    ls_safetensors_close(file);
    free(bytes);
    free(keys);
    free(pairs);
}

static void what_is_written_reads_back_and_is_aligned(void **unused) {
    (void)unused;
    for (size_t count = 0; count < 40; count++) {
        struct ls_tensor_info infos[40];
        char names[40][32], *bytes;
        size_t length;
        struct ls_safetensors *file;
        for (size_t i = 0; i < count; i++) {
            snprintf(names[i], sizeof names[i], "t\xc3\xa4\"\\%zu", i);
            infos[i] = (struct ls_tensor_info){.name = names[i],
                                               .type = (enum ls_tensor_type)random_below(15),
                                               .dimensions = (int)random_below(4),
                                               .shape = {random_below(5), random_below(5), random_below(5)}};
        }
        const struct ls_safetensors_pair pair = {"key", "value \"quoted\""};
        expect_ok(ls_safetensors_header(infos, count, &pair, 1, &bytes, &length, error));
        int64_t end = count ? infos[count - 1].end : 0;
        assert_int_equal(length % LS_SAFETENSORS_ALIGNMENT, 0);
        expect_ok(ls_safetensors_parse(bytes, length, (int64_t)length + end, &file, error));
        assert_int_equal(file->tensor_count, count);
        assert_int_equal(file->data_offset, length);
        assert_string_equal(ls_safetensors_metadata(file, "format"), "pt");
        assert_string_equal(ls_safetensors_metadata(file, "key"), "value \"quoted\"");
        for (size_t i = 0; i < count; i++) {
            const struct ls_tensor_info *read = ls_safetensors_find(file, names[i]);
            assert_non_null(read);
            assert_true(read->type == infos[i].type && read->dimensions == infos[i].dimensions &&
                        read->begin == infos[i].begin && read->end == infos[i].end);
            for (int d = 0; d < read->dimensions; d++) assert_true(read->shape[d] == infos[i].shape[d]);
        }
        ls_safetensors_close(file);
        free(bytes);
    }
}

static void any_flipped_byte_of_a_header_is_refused_or_stays_inside_the_file(void **unused) {
    (void)unused;
    struct ls_tensor_info infos[] = {{.name = "a", .type = LS_TENSOR_F32, .dimensions = 2, .shape = {3, 4}},
                                     {.name = "b", .type = LS_TENSOR_F16, .dimensions = 1, .shape = {7}},
                                     {.name = "c", .type = LS_TENSOR_U8, .dimensions = 0}};
    char *bytes;
    size_t length;
    expect_ok(ls_safetensors_header(infos, 3, NULL, 0, &bytes, &length, error));
    int64_t total = (int64_t)length + infos[2].end;
    for (int round = 0; round < 20000; round++) {
        size_t at = (size_t)random_below((int64_t)length);
        char saved = bytes[at];
        struct ls_safetensors *file;
        bytes[at] = (char)random_below(256);
        if (ls_safetensors_parse(bytes, length, total, &file, error) == LS_OK) {
            int64_t covered = 0;
            for (size_t i = 0; i < file->tensor_count; i++) {
                const struct ls_tensor_info *tensor = &file->tensors[i];
                assert_true(tensor->begin == covered && tensor->end >= covered);
                covered = tensor->end;
            }
            assert_true(file->data_offset + covered == total);
            ls_safetensors_close(file);
        }
        bytes[at] = saved;
    }
    free(bytes);
}

static void files_that_are_links_fifos_or_elsewhere_are_not_opened(void **unused) {
    (void)unused;
    char *folder = harness_folder();
    const char *names[] = {"link.safetensors",
                           "fifo.safetensors",
                           "folder.safetensors",
                           "../x.safetensors",
                           "/etc/passwd",
                           "missing",
                           "short"};
    struct ls_safetensors *file;
    harness_write(harness_path(folder, "good"), "\x02\0\0\0\0\0\0\0{}", 10);
    harness_write(harness_path(folder, "short"), "\x02\0\0", 3);
    assert_int_equal(symlink("good", harness_path(folder, names[0])), 0);
    assert_int_equal(mkfifo(harness_path(folder, names[1]), 0600), 0);
    assert_int_equal(mkdir(harness_path(folder, names[2]), 0700), 0);
    int parent = open(folder, O_RDONLY | O_DIRECTORY);
    expect_ok(ls_safetensors_open(parent, "good", &file, error));
    ls_safetensors_close(file);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (ls_safetensors_open(parent, names[i], &file, error) != LS_CHECKPOINT) fail_msg("opened %s", names[i]);
    close(parent);
    harness_remove(folder);
}

static void a_file_that_became_shorter_is_an_error(void **unused) {
    (void)unused;
    char *folder = harness_folder(), *bytes;
    size_t length;
    float values[4] = {1, 2, 3, 4}, read[4];
    struct ls_tensor_info info = {.name = "a", .type = LS_TENSOR_F32, .dimensions = 1, .shape = {4}};
    struct ls_safetensors *file;
    expect_ok(ls_safetensors_header(&info, 1, NULL, 0, &bytes, &length, error));
    const char *path = harness_path(folder, "a.safetensors");
    int written = open(path, O_WRONLY | O_CREAT, 0644), parent = open(folder, O_RDONLY | O_DIRECTORY);
    assert_true(ls_write_all(written, bytes, length) == 0 && ls_write_all(written, values, sizeof values) == 0);
    expect_ok(ls_safetensors_open(parent, "a.safetensors", &file, error));
    expect_ok(ls_safetensors_read(file, file->tensors, 1, 2, read, error));
    assert_true(read[0] == 2 && read[1] == 3);
    assert_int_equal(ftruncate(written, (off_t)length + 8), 0);
    assert_int_equal(ls_safetensors_read(file, file->tensors, 1, 2, read, error), LS_CHECKPOINT);
    assert_non_null(strstr(error->text, "shorter"));
    ls_safetensors_close(file);
    close(written);
    close(parent);
    free(bytes);
    harness_remove(folder);
}

static void an_index_reads_back_and_hostile_ones_are_refused(void **unused) {
    (void)unused;
    const struct ls_safetensors_pair entries[] = {{"b", "model-00002-of-00002.safetensors"},
                                                  {"a", "model-00001-of-00002.safetensors"}};
    const char *hostile[] = {"",
                             "{}",
                             "[]",
                             "{\"weight_map\":[]}",
                             "{\"weight_map\":{\"a\":1}}",
                             "{\"weight_map\":{\"a\":\"../model.safetensors\"}}",
                             "{\"weight_map\":{\"a\":\"/model.safetensors\"}}",
                             "{\"weight_map\":{\"a\":\"x/model.safetensors\"}}",
                             "{\"weight_map\":{\"a\":\".safetensors\"}}",
                             "{\"weight_map\":{\"a\":\"pytorch_model.bin\"}}",
                             "{\"weight_map\":{\"a\":\"m.safetensors\",\"a\":\"m.safetensors\"}}"};
    char *json;
    struct ls_weight_map *map;
    expect_ok(ls_weight_map_write(entries, 2, 12345, &json, error));
    expect_ok(ls_weight_map_parse(json, strlen(json), &map, error));
    assert_int_equal(map->total_bytes, 12345);
    assert_int_equal(map->entry_count, 2);
    assert_string_equal(map->entries[0].key, "a");
    assert_string_equal(map->entries[0].value, entries[1].value);
    assert_string_equal(map->entries[1].key, "b");
    assert_string_equal(map->entries[1].value, entries[0].value);
    ls_weight_map_destroy(map);
    free(json);
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++)
        if (ls_weight_map_parse(hostile[i], strlen(hostile[i]), &map, error) != LS_CHECKPOINT)
            fail_msg("accepted: %s", hostile[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_headers_are_refused_with_their_reason),
        cmocka_unit_test(a_name_of_more_than_511_bytes_is_refused),
        cmocka_unit_test(header_lengths_beyond_the_file_or_the_limit_are_refused),
        cmocka_unit_test(a_good_header_gives_tensors_in_the_order_of_their_bytes),
        cmocka_unit_test(metadata_of_very_many_keys_is_looked_up_in_no_time),
        cmocka_unit_test(what_is_written_reads_back_and_is_aligned),
        cmocka_unit_test(any_flipped_byte_of_a_header_is_refused_or_stays_inside_the_file),
        cmocka_unit_test(files_that_are_links_fifos_or_elsewhere_are_not_opened),
        cmocka_unit_test(a_file_that_became_shorter_is_an_error),
        cmocka_unit_test(an_index_reads_back_and_hostile_ones_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
