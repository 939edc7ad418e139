/* The auditor: every file is hashed once, and what is not as it should be is told. */
#define _GNU_SOURCE
#include "common/token_shard.h"
#include "coordinator/auditor.h"
#include "tests/unit/token_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#include <cmocka.h>

enum { TOKENS = 1000, VOCABULARY = 300 };

static struct ls_config config;
static struct ls_run_directory run;

static void write_shard(const char *name, uint32_t other) {
    uint32_t tokens[TOKENS];
    for (uint32_t i = 0; i < TOKENS; i++) tokens[i] = i % VOCABULARY;
    tokens[TOKENS / 2] = other;
    write_gpt2_shard(name, tokens, TOKENS);
}

static void set_time(const char *name, time_t seconds) {
    const struct timespec times[2] = {{.tv_sec = seconds}, {.tv_sec = seconds}};
    assert_int_equal(utimensat(AT_FDCWD, in_test_folder(name), times, 0), 0);
}

static void write_text(const char *name, const char *mode, const char *text) {
    FILE *file = fopen(in_test_folder(name), mode);
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0 && fclose(file) == 0);
}

/* Two sources, a folder for training and a file for validation, and the run directory beside them. */
static void begin(void **state) {
    assert_int_equal(make_test_folder(state), 0);
    config = (struct ls_config){.data.sequence_length = 10, .model.vocab_size = VOCABULARY};
    run = (struct ls_run_directory){.lock = -1};
    snprintf(run.path, sizeof run.path, "%s", in_test_folder("run"));
    for (int i = 0; i < 2; i++) assert_int_equal(mkdir(i ? in_test_folder("train") : run.path, 0777), 0);
    config.data.train_count = config.data.validation_count = 1;
    config.data.train[0] = test_source(in_test_folder("train"));
    config.data.validation[0] = test_source(in_test_folder("held.bin"));
    write_shard("train/a.bin", 1);
    write_shard("train/b.bin", 2);
    write_shard("held.bin", 3);
}

/* Lines of RUN/data.jsonl that are whole; *last: one for `name`. */
static int recorded(const char *name, json_t **last) {
    FILE *file = fopen(in_test_folder("run/data.jsonl"), "r");
    char line[4096];
    int count = 0;
    if (last) *last = NULL;
    while (file && fgets(line, sizeof line, file)) {
        json_t *found = json_loads(line, 0, NULL);
        count += found != NULL;
        if (found && last && strstr(json_string_value(json_object_get(found, "file")), name)) {
            json_decref(*last);
            *last = json_incref(found);
        }
        json_decref(found);
    }
    if (file) fclose(file);
    return count;
}

/* Audits until `lines` are recorded and `findings` told, and a little longer. The texts, one a line. */
static void audit(int lines, int findings, char text[4 * LS_WIRE_TEXT_BYTES]) {
    struct ls_auditor *auditor;
    struct ls_error error = {0};
    char finding[LS_WIRE_TEXT_BYTES];
    const int wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    int found = 0;
    text[0] = 0;
    if (ls_auditor_start(&run, &config, wake, &auditor, &error)) fail_msg("%s", error.text);
    for (int turns = 0, calm = 0; turns < 3000 && calm < 10; turns++) {
        uint64_t woken;
        poll(&(struct pollfd){.fd = wake, .events = POLLIN}, 1, 10);
        (void)!read(wake, &woken, sizeof woken);
        while (ls_auditor_take(auditor, finding)) {
            found++;
            snprintf(text + strlen(text), 4 * LS_WIRE_TEXT_BYTES - strlen(text), "%s\n", finding);
        }
        if (recorded("", NULL) >= lines && found >= findings) calm++;
    }
    ls_auditor_stop(auditor);
    close(wake);
    assert_int_equal(recorded("", NULL), lines);
    if (found != findings) fail_msg("%d findings, not %d: %s", found, findings, text);
}

static void files_are_hashed_once(void **state) {
    char text[4 * LS_WIRE_TEXT_BYTES];
    json_t *line;
    begin(state);
    set_time("train/a.bin", 1000);
    audit(3, 0, text);
    assert_int_equal(recorded("train/a.bin", &line), 3);
    assert_int_equal(json_integer_value(json_object_get(line, "bytes")), 1024 + 2 * TOKENS);
    assert_int_equal(json_integer_value(json_object_get(line, "mtime_nanoseconds")), 1000000000000);
    assert_int_equal(json_string_length(json_object_get(line, "xxh3")), 32);
    json_decref(line);
    /* Other bytes at the same time: nobody would know without reading. */
    write_shard("train/a.bin", 9);
    set_time("train/a.bin", 1000);
    audit(3, 0, text);
}

static void other_bytes_in_a_file_of_the_same_size_are_told(void **state) {
    char text[4 * LS_WIRE_TEXT_BYTES];
    json_t *before, *after;
    begin(state);
    set_time("train/a.bin", 1000);
    set_time("held.bin", 1000);
    audit(3, 0, text);
    write_shard("train/a.bin", 9);
    set_time("train/a.bin", 2000);
    set_time("held.bin", 2000); /* the same bytes: copied, say */
    recorded("train/a.bin", &before);
    audit(5, 1, text);
    recorded("train/a.bin", &after);
    assert_non_null(strstr(text, "train/a.bin"));
    assert_non_null(strstr(text, json_string_value(json_object_get(before, "xxh3"))));
    assert_non_null(strstr(text, json_string_value(json_object_get(after, "xxh3"))));
    json_decref(before);
    json_decref(after);
    audit(5, 0, text); /* told once */
}

static void data_of_another_size_are_other_data(void **state) {
    char text[4 * LS_WIRE_TEXT_BYTES];
    uint32_t tokens[TOKENS + 1] = {0};
    begin(state);
    audit(3, 0, text);
    write_gpt2_shard("held.bin", tokens, TOKENS + 1);
    audit(4, 0, text);
}

static void what_dataset_json_says_is_compared(void **state) {
    char text[4 * LS_WIRE_TEXT_BYTES], description[2000];
    json_t *a, *b;
    begin(state);
    audit(3, 0, text);
    recorded("train/a.bin", &a);
    recorded("train/b.bin", &b);
    snprintf(description, sizeof description,
             "{\"format\": \"lockstep-dataset\", \"version\": 1, \"vocab_size\": 300, \"tokens\": 2000, \"shards\": ["
             "{\"name\": \"a.bin\", \"tokens\": 1000, \"xxh3\": \"%s\"},"
             "{\"name\": \"b.bin\", \"tokens\": 1000, \"xxh3\": \"00000000000000000000000000000000\"}]}",
             json_string_value(json_object_get(a, "xxh3")));
    write_text("train/dataset.json", "w", description);
    audit(3, 1, text); /* known, and compared all the same */
    assert_non_null(strstr(text, "train/b.bin"));
    assert_non_null(strstr(text, "dataset.json says 00000000000000000000000000000000"));
    assert_non_null(strstr(text, json_string_value(json_object_get(b, "xxh3"))));
    json_decref(a);
    json_decref(b);
}

static void tokens_that_the_model_does_not_have_are_told(void **state) {
    char text[4 * LS_WIRE_TEXT_BYTES];
    begin(state);
    write_shard("train/b.bin", VOCABULARY);
    audit(2, 1, text);
    assert_non_null(strstr(text, "train/b.bin"));
    assert_non_null(strstr(text, "300"));
}

static void half_a_line_is_passed_over(void **state) {
    char text[4 * LS_WIRE_TEXT_BYTES];
    begin(state);
    write_text("run/data.jsonl", "w", "[1]\n{\"file\": 3, \"xxh3\": 4}\n\n{\"file\": \"tra");
    audit(5, 0, text); /* two of them were whole */
    audit(5, 0, text);
}

static void a_file_that_goes_away_is_told(void **state) {
    char text[4 * LS_WIRE_TEXT_BYTES];
    begin(state);
    assert_int_equal(unlink(in_test_folder("held.bin")), 0);
    audit(2, 1, text);
    assert_non_null(strstr(text, "held.bin"));
}

/* More files than findings that wait, and nobody who takes them meanwhile. */
static void findings_that_are_too_many_are_counted(void **state) {
    struct ls_auditor *auditor;
    char name[32], text[LS_WIRE_TEXT_BYTES];
    begin(state);
    for (int i = 0; i < 20; i++) {
        snprintf(name, sizeof name, "train/c%02d.bin", i);
        write_shard(name, VOCABULARY);
    }
    const int wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    assert_int_equal(ls_auditor_start(&run, &config, wake, &auditor, NULL), LS_OK);
    for (int turns = 0; turns < 3000 && recorded("", NULL) < 3; turns++) poll(NULL, 0, 10);
    int named = 0;
    for (bool more = true; more && ls_auditor_take(auditor, text);) {
        more = !strstr(text, "4 more files");
        named += more;
    }
    assert_int_equal(named, 16);
    assert_false(ls_auditor_take(auditor, text));
    ls_auditor_stop(auditor);
    close(wake);
}

static int threads(void) {
    DIR *tasks = opendir("/proc/self/task");
    int count = 0;
    assert_non_null(tasks);
    for (const struct dirent *entry; (entry = readdir(tasks));) count += entry->d_name[0] != '.';
    closedir(tasks);
    return count;
}

/* Of gigabytes at the pace of an auditor: it leaves long before, and is not left behind. */
static void it_ends_in_the_middle_of_a_file(void **state) {
    struct ls_auditor *auditor;
    unsigned char header[LS_SHARD_HEADER_BYTES];
    begin(state);
    const int before = threads();
    ls_token_shard_header(INT32_MAX, 2, header);
    const int file = open(in_test_folder("train/a.bin"), O_WRONLY | O_TRUNC);
    assert_int_equal(write(file, header, sizeof header), sizeof header);
    assert_int_equal(ftruncate(file, LS_SHARD_HEADER_BYTES + 2 * (off_t)INT32_MAX), 0);
    close(file);
    const int wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    assert_int_equal(ls_auditor_start(&run, &config, wake, &auditor, NULL), LS_OK);
    poll(NULL, 0, 100);
    assert_int_equal(threads(), before + 1);
    ls_auditor_stop(auditor);
    assert_int_equal(threads(), before);
    assert_int_equal(recorded("", NULL), 0);
    ls_auditor_stop(NULL);
    close(wake);
}

#define TEST(name) cmocka_unit_test_teardown(name, remove_test_folder)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(files_are_hashed_once),
        TEST(other_bytes_in_a_file_of_the_same_size_are_told),
        TEST(data_of_another_size_are_other_data),
        TEST(what_dataset_json_says_is_compared),
        TEST(tokens_that_the_model_does_not_have_are_told),
        TEST(half_a_line_is_passed_over),
        TEST(a_file_that_goes_away_is_told),
        TEST(findings_that_are_too_many_are_counted),
        TEST(it_ends_in_the_middle_of_a_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
