/* What ranks report of a save is listed whole, however many they are. */
#include "coordinator/save_parts.h"

#include "coordinator/core.h"
#include "tests/unit/support.h"

static void report(struct ls_save_parts *parts, int64_t rank, int64_t files) {
    static struct ls_part_file list[LS_WIRE_FILES_MAX];
    struct ls_message message = {.kind = LS_MESSAGE_PART};
    message.part.rank = rank;
    message.part.optimizer_steps = 7;
    message.part.seconds = rank == 3 ? 2.5 : 1;
    message.part.files = list;
    message.part.files_count = files;
    for (int64_t i = 0; i < files; i++) {
        snprintf(list[i].name, sizeof list[i].name, "%s-%05lld-%lld.safetensors", i ? "model" : "state/rank",
                 (long long)rank, (long long)i);
        list[i].bytes = 10;
        snprintf(list[i].hash, sizeof list[i].hash, "%032llx", (unsigned long long)rank);
    }
    ls_save_parts_keep(parts, 40, &message);
}

/* A file of state for each of 131,072 ranks and weights in 65,536 files, more than any model has tensors. */
static void the_parts_of_the_largest_run_are_listed_and_fit_in_a_manifest(void **unused) {
    (void)unused;
    struct ls_save_parts parts = {0};
    struct ls_manifest manifest = {.step = 40, .attempt = 1}, *back;
    struct ls_error error;
    char *json;
    assert_int_equal(LS_CORE_RANKS_MAX, 131072);
    for (int64_t rank = 0; rank < 131072; rank++) report(&parts, rank, rank < 65536 ? 2 : 1);
    assert_null(parts.missing);
    assert_int_equal(parts.files_count, 196608);
    assert_int_equal(parts.bytes, 1966080);
    assert_int_equal(parts.optimizer_steps, 7);
    assert_true(parts.seconds == 2.5);
    assert_string_equal(parts.files[196607].name, "state/rank-131071-0.safetensors");
    manifest.files = parts.files;
    manifest.file_count = parts.files_count;
    assert_int_equal(ls_manifest_write(&manifest, &json, &error), LS_OK);
    assert_true(strlen(json) < LS_MANIFEST_BYTES_MAX);
    assert_int_equal(ls_manifest_parse(json, strlen(json), &back, &error), LS_OK);
    assert_int_equal(back->file_count, 196608);
    ls_manifest_destroy(back);
    free(json);
    ls_save_parts_drop(&parts);
}

static void more_files_than_a_manifest_lists_are_refused_until_the_next_save(void **unused) {
    (void)unused;
    struct ls_save_parts parts = {0};
    for (int64_t rank = 0; rank < 1023; rank++) report(&parts, rank, LS_WIRE_FILES_MAX);
    report(&parts, 1023, LS_WIRE_FILES_MAX - 1);
    assert_null(parts.missing);
    assert_int_equal(parts.files_count, 262143);
    report(&parts, 1024, 1);
    assert_non_null(strstr(parts.missing, "more files than a manifest can list"));
    report(&parts, 1025, 0);
    assert_non_null(parts.missing);
    ls_save_parts_drop(&parts);
    report(&parts, 0, 2);
    assert_null(parts.missing);
    assert_int_equal(parts.files_count, 2);
    ls_save_parts_drop(&parts);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_parts_of_the_largest_run_are_listed_and_fit_in_a_manifest),
        cmocka_unit_test(more_files_than_a_manifest_lists_are_refused_until_the_next_save),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
