/* The arithmetic of a scaling table and its faces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "coordinator/scaling.h"

static void near(double found, double expected) {
    if (!(found >= expected - 1e-9 && found <= expected + 1e-9)) fail_msg("%.12g, not %.12g", found, expected);
}

static void write_text(char path[32], const char *text) {
    strcpy(path, "/tmp/test_scaling.XXXXXX");
    const int file = mkstemp(path);
    assert_true(file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text));
    close(file);
}

#define STEP(number, seconds, rate, bytes)                                                                             \
    "{\"kind\":\"step\",\"step\":" number ",\"step_seconds\":" seconds ",\"compute_seconds\":" seconds                 \
    ",\"comm_exposed_seconds\":0.25,\"tokens_per_second\":" rate ",\"memory_peak_bytes\":" bytes "}\n"

static void medians_leave_the_warm_up_out_and_span_all_runs(void **unused) {
    (void)unused;
    char path[32];
    struct ls_scaling_samples samples = {0};
    struct ls_scaling_row row = {.ranks = 2};
    struct ls_error error;
    write_text(path,
               "{\"kind\":\"event\",\"event\":\"joined\"}\n" STEP("1", "9", "1", "700") STEP("2", "4", "10", "500")
                   STEP("3", "2", "20", "600") "{\"kind\":\"summary\",\"ranks_per_node\":2}\n");
    assert_int_equal(ls_scaling_read(path, 1, &samples, &error), LS_OK);
    assert_int_equal(samples.count, 2);
    unlink(path);
    write_text(path, STEP("1", "9", "1", "1") STEP("2", "3", "40", "800"));
    assert_int_equal(ls_scaling_read(path, 1, &samples, &error), LS_OK);
    unlink(path);
    ls_scaling_measure(&samples, &row);
    assert_int_equal(row.steps, 3);
    near(row.measured.step_seconds, 3); /* of 2, 3, 4 */
    near(row.measured.exposed_seconds, 0.25);
    near(row.tokens_per_second, 20); /* of 10, 20, 40 */
    near(row.tokens_per_second_p10, 12);
    near(row.tokens_per_second_p90, 36);
    assert_int_equal(row.memory_bytes, 800);
    assert_int_equal(row.ranks_per_node, 2);
    ls_scaling_samples_release(&samples);
}

static void metrics_that_are_none_are_named(void **unused) {
    (void)unused;
    char path[32];
    struct ls_scaling_samples samples = {0};
    struct ls_error error;
    assert_int_equal(ls_scaling_read("/tmp/test_scaling.none", 1, &samples, &error), LS_ERROR);
    assert_non_null(strstr(error.text, "test_scaling.none"));
    write_text(path, STEP("1", "1", "1", "1") "{\"kind\":\n");
    assert_int_equal(ls_scaling_read(path, 0, &samples, &error), LS_ERROR);
    assert_non_null(strstr(error.text, "line 2"));
    unlink(path);
    write_text(path, STEP("5", "1", "1", "1"));
    ls_scaling_samples_release(&samples);
    assert_int_equal(ls_scaling_read(path, 5, &samples, &error), LS_ERROR);
    assert_non_null(strstr(error.text, "first 5"));
    unlink(path);
    ls_scaling_samples_release(&samples);
}

/* 1 rank failed, 2 ranks gave 100 tokens/s, 4 gave 150, 8 gave 500: 50, 37.5 and 62.5 a rank. */
static struct ls_scaling *example(void) {
    struct ls_scaling *scaling = calloc(1, sizeof *scaling);
    assert_non_null(scaling);
    *scaling = (struct ls_scaling){.name = "x", .machine = "m", .time = "t", .sequence_length = 10, .count = 4};
    scaling->rows[0] =
        (struct ls_scaling_row){.ranks = 1, .code = LS_MEMORY, .reason = "too \"big\"", .global_batch = 5};
    for (int i = 1; i < 4; i++)
        scaling->rows[i] = (struct ls_scaling_row){.ranks = 1 << i,
                                                   .global_batch = 5,
                                                   .measured = {.step_seconds = 0.5},
                                                   .tokens_per_second = (const double[]){0, 100, 150, 500}[i],
                                                   .predicts = i != 2,
                                                   .predicted = {.step_seconds = 0.25}};
    ls_scaling_complete(scaling);
    return scaling;
}

static void efficiency_counts_from_the_first_good_row(void **unused) {
    (void)unused;
    struct ls_scaling *scaling = example();
    near(scaling->rows[1].efficiency, 1);
    near(scaling->rows[2].efficiency, 0.75);
    near(scaling->rows[3].efficiency, 1.25);
    free(scaling);
}

static char *face(bool (*print)(const struct ls_scaling *, FILE *)) {
    struct ls_scaling *scaling = example();
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    assert_true(print(scaling, out));
    fclose(out);
    free(scaling);
    return text;
}

static void the_table_shows_rates_failures_and_what_was_predicted(void **unused) {
    (void)unused;
    char *text = face(ls_scaling_print);
    assert_non_null(strstr(text, "failed: too \"big\""));
    assert_non_null(strstr(text, "75.0%"));
    assert_non_null(strstr(text, "+100%")); /* 0.5 s measured, 0.25 s predicted */
    free(text);
}

static void the_json_is_one_with_a_row_for_each_number_of_ranks(void **unused) {
    (void)unused;
    char *text = face(ls_scaling_print_json);
    json_t *root = json_loads(text, 0, NULL), *rows = json_object_get(root, "rows");
    assert_int_equal(json_array_size(rows), 4);
    assert_string_equal(json_string_value(json_object_get(json_array_get(rows, 0), "reason")), "too \"big\"");
    const json_t *predicted = json_object_get(json_array_get(rows, 3), "predicted");
    near(json_number_value(json_object_get(predicted, "tokens_per_second")), 200); /* 5 x 10 tokens in 0.25 s */
    assert_null(json_object_get(json_array_get(rows, 2), "predicted"));
    json_decref(root);
    free(text);
}

static void every_line_of_the_csv_has_as_many_fields_as_its_head(void **unused) {
    (void)unused;
    char *text = face(ls_scaling_print_csv);
    int lines = 0, fields = 0;
    for (char *rest = text, *line; (line = strsep(&rest, "\n")) && *line; lines++) {
        int commas = 0;
        for (const char *c = line; *c; c++) commas += *c == ',';
        if (lines == 0) fields = commas;
        assert_int_equal(commas, fields);
    }
    assert_int_equal(lines, 5);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(medians_leave_the_warm_up_out_and_span_all_runs),
        cmocka_unit_test(metrics_that_are_none_are_named),
        cmocka_unit_test(efficiency_counts_from_the_first_good_row),
        cmocka_unit_test(the_table_shows_rates_failures_and_what_was_predicted),
        cmocka_unit_test(the_json_is_one_with_a_row_for_each_number_of_ranks),
        cmocka_unit_test(every_line_of_the_csv_has_as_many_fields_as_its_head),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
