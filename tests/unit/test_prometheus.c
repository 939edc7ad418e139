/* The file for Prometheus, read again by a reader of its own that knows the text format's rules. */
#define _GNU_SOURCE
#include "coordinator/prometheus.h"

#include <ctype.h>
#include <ftw.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64];
static struct ls_run_facts facts;
static struct ls_prometheus *prometheus;

static void open_file(const char *run_path) {
    struct ls_error error;
    snprintf(facts.path, sizeof facts.path, "%s", run_path);
    assert_int_equal(ls_prometheus_open(folder, &facts, &prometheus, &error), LS_OK);
}

static int begin(void **state) {
    (void)state;
    strcpy(folder, "/tmp/lockstep-prometheus.XXXXXX");
    facts = (struct ls_run_facts){
        .ranks = 4, .attempt = 2, .sequence_length = 64, .total_steps = 500, .config_digest = "0123456789abcdef"};
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)status, (void)kind, (void)place;
    return remove(path);
}

static int end(void **state) {
    (void)state;
    ls_prometheus_close(prometheus);
    prometheus = NULL;
    return nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static struct ls_journal_entry step_entry(int64_t step, double seconds) {
    struct ls_journal_entry entry = {.record = {.kind = LS_RECORD_STEP, .attempt = 2}};
    entry.record.step = (struct ls_core_step){.step = step, .samples = 1000 + 60 * step};
    entry.report = (struct ls_step_report){.step = step,
                                           .sequences = 60,
                                           .epoch = 0.5,
                                           .loss = 2.5,
                                           .grad_norm = 1.25,
                                           .lr = 6e-4,
                                           .step_seconds = seconds,
                                           .compute_seconds = seconds / 2,
                                           .comm_exposed_seconds = seconds / 4,
                                           .data_wait_seconds = seconds / 8,
                                           .wait_seconds = seconds / 16,
                                           .checkpoint_seconds = seconds / 16,
                                           .tokens_per_second = 1000,
                                           .memory_peak_bytes = (uint64_t)5 << 30};
    return entry;
}

static void write_step(int64_t step, double seconds) {
    const struct ls_journal_entry entry = step_entry(step, seconds);
    ls_prometheus_write(prometheus, &entry);
}

/* An event that changes no number, behind which the file holds what came before it. */
static void write_event(void) {
    const struct ls_journal_entry entry = {.record = {.kind = LS_RECORD_JOINED, .attempt = 2}};
    ls_prometheus_write(prometheus, &entry);
}

/* ---- a reader ---- */

enum { SAMPLES_MAX = 128 };
static struct sample {
    char name[64], run[512], le[16], run_dir[1100], type[16];
    double value;
} samples[SAMPLES_MAX];
static int samples_count;

/* A label's value behind its opening quote. */
static const char *read_value(const char *at, char *value, size_t size) {
    size_t count = 0;
    for (; *at != '"'; at++) {
        char c = *at;
        assert_true(c && (unsigned char)c >= ' ');
        if (c == '\\') {
            c = *++at;
            assert_true(c == '\\' || c == '"' || c == 'n');
            if (c == 'n') c = '\n';
        }
        assert_true(count + 1 < size);
        value[count++] = c;
    }
    value[count] = 0;
    return at + 1;
}

static double read_number(const char *text) {
    char *rest;
    if (!strcmp(text, "NaN")) return NAN;
    if (!strcmp(text, "+Inf")) return INFINITY;
    const double value = strtod(text, &rest);
    assert_true(*text && !*rest && (isdigit((unsigned char)*text) || *text == '-'));
    return value;
}

/* name{label="value",...} number */
static void read_sample(const char *line, const char *family, const char *type) {
    struct sample *sample = &samples[samples_count++];
    char other[1100] = "";
    memset(sample, 0, sizeof *sample);
    const size_t length = strcspn(line, "{");
    assert_in_range(length, strlen("lockstep_") + 1, sizeof sample->name - 1);
    memcpy(sample->name, line, length);
    assert_memory_equal(sample->name, "lockstep_", strlen("lockstep_"));
    snprintf(sample->type, sizeof sample->type, "%s", type);
    const char *suffix = sample->name + strlen(family); /* a sample is of the family that its comments began */
    assert_memory_equal(sample->name, family, strlen(family));
    assert_true(!*suffix || (!strcmp(type, "histogram") &&
                             (!strcmp(suffix, "_bucket") || !strcmp(suffix, "_sum") || !strcmp(suffix, "_count"))));
    const char *at = line + length;
    do {
        char label[32];
        const size_t size = strcspn(++at, "=");
        assert_in_range(size, 1, sizeof label - 1);
        memcpy(label, at, size);
        label[size] = 0;
        at += size + 1;
        assert_int_equal(*at, '"');
        char *into = !strcmp(label, "run")       ? sample->run
                     : !strcmp(label, "le")      ? sample->le
                     : !strcmp(label, "run_dir") ? sample->run_dir
                                                 : other;
        at = read_value(at + 1, into,
                        into == sample->run  ? sizeof sample->run
                        : into == sample->le ? sizeof sample->le
                                             : sizeof other);
    } while (*at == ',');
    assert_memory_equal(at, "} ", 2);
    sample->value = read_number(at + 2);
}

static void path_of(const char *name, char path[256]) {
    snprintf(path, 256, "%s/%s", folder, name);
}

static void read_file(const char *name) {
    char path[256], line[4096], family[64] = "", type[16] = "";
    path_of(name, path);
    FILE *in = fopen(path, "r");
    assert_non_null(in);
    samples_count = 0;
    while (fgets(line, sizeof line, in)) {
        assert_true(strlen(line) < sizeof line - 1 && line[strlen(line) - 1] == '\n');
        line[strlen(line) - 1] = 0;
        char told[64];
        if (sscanf(line, "# HELP %63s", told) == 1) {
            assert_string_not_equal(told, family); /* a family is in one piece */
            for (int i = 0; i < samples_count; i++) assert_string_not_equal(samples[i].name, told);
            snprintf(family, sizeof family, "%s", told);
        } else if (line[0] == '#') {
            assert_int_equal(sscanf(line, "# TYPE %63s %15s", told, type), 2);
            assert_string_equal(told, family);
        } else {
            read_sample(line, family, type);
        }
    }
    fclose(in);
}

static const struct sample *find(const char *name) {
    for (int i = 0; i < samples_count; i++)
        if (!strcmp(samples[i].name + strlen("lockstep_"), name)) return &samples[i];
    return NULL;
}

static double value(const char *name) {
    const struct sample *sample = find(name);
    if (!sample) fail_msg("no lockstep_%s", name);
    return sample->value;
}

static double bucket(const char *le) {
    for (int i = 0; i < samples_count; i++)
        if (!strcmp(samples[i].name, "lockstep_step_seconds_bucket") && !strcmp(samples[i].le, le))
            return samples[i].value;
    fail_msg("no bucket %s", le);
    return 0;
}

/* ---- tests ---- */

static void a_run_without_a_step_is_told(void **state) {
    (void)state;
    const double before = (double)time(NULL);
    open_file("/runs/one");
    read_file("lockstep-one.prom");
    assert_true(value("running") == 1 && value("ranks") == 4 && value("attempt") == 2 && value("total_steps") == 500);
    assert_true(value("start_time_seconds") >= before && value("start_time_seconds") < before + 1000);
    assert_true(value("tokens_total") == 0 && value("step_seconds_count") == 0 && bucket("+Inf") == 0);
    assert_true(value("run_info") == 1);
    assert_string_equal(find("run_info")->run_dir, "/runs/one");
    static const char *const unknown[] = {
        "exit_code", "step", "loss", "mfu_ratio", "validation_loss", "validation_bits_per_byte", "checkpoint_step"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) assert_null(find(unknown[i]));
    for (int i = 0; i < samples_count; i++) assert_string_equal(samples[i].run, "one");
}

static void gauges_are_of_the_newest_step_and_counters_of_all(void **state) {
    (void)state;
    open_file("/runs/one");
    write_step(11, 0.25);
    write_step(12, 0.5);
    write_step(12, 600); /* again, behind a rollback */
    write_event();
    read_file("lockstep-one.prom");
    assert_true(value("step") == 12 && value("samples") == 1000 + 60 * 12 && value("epoch") == 0.5);
    assert_true(value("loss") == 2.5 && value("grad_norm") == 1.25 && value("lr") == 6e-4);
    assert_true(value("tokens_per_second") == 1000 && value("memory_peak_bytes") == 5368709120.0);
    assert_true(value("compute_seconds") == 300 && value("comm_exposed_seconds") == 150);
    assert_true(value("data_wait_seconds") == 75 && value("rank_wait_seconds") == 37.5);
    assert_true(value("checkpoint_seconds") == 37.5);
    assert_true(value("tokens_total") == 3 * 60 * 64);
    assert_true(value("step_compute_seconds_total") == 300.375 && value("step_comm_exposed_seconds_total") == 150.1875);
    assert_true(value("step_data_wait_seconds_total") == 75.09375 &&
                value("step_rank_wait_seconds_total") == 37.546875);
    assert_true(value("step_checkpoint_seconds_total") == 37.546875);
    assert_true(value("step_seconds_sum") == 600.75 && value("step_seconds_count") == 3);
    assert_true(fabs(value("step_timestamp_seconds") - (double)time(NULL)) < 1000);
    assert_null(find("mfu_ratio"));
    assert_null(find("gpu_power_watts"));
}

static void the_histogram_counts_each_step_up_from_its_bucket(void **state) {
    (void)state;
    open_file("/runs/one");
    write_step(1, 0.001); /* an upper end belongs to its bucket */
    write_step(2, 0.0011);
    write_step(3, 7);
    write_step(4, 500.5);
    write_event();
    read_file("lockstep-one.prom");
    assert_true(bucket("0.001") == 1 && bucket("0.002") == 2 && bucket("0.5") == 2 && bucket("5") == 2);
    assert_true(bucket("10") == 3 && bucket("500") == 3 && bucket("+Inf") == 4 && value("step_seconds_count") == 4);
    double below = 0, upper = 0;
    for (int i = 0; i < samples_count; i++) {
        if (strcmp(samples[i].name, "lockstep_step_seconds_bucket") != 0) continue;
        assert_true(read_number(samples[i].le) > upper && samples[i].value >= below);
        upper = read_number(samples[i].le), below = samples[i].value;
    }
    assert_true(isinf(upper));
}

static void counters_are_named_as_such(void **state) {
    (void)state;
    open_file("/runs/one");
    write_step(1, 1);
    write_event();
    read_file("lockstep-one.prom");
    for (int i = 0; i < samples_count; i++) {
        const size_t length = strlen(samples[i].name);
        const bool total = !strcmp(samples[i].name + length - strlen("_total"), "_total");
        assert_int_equal(total, !strcmp(samples[i].type, "counter"));
        /* OpenMetrics takes a counter's name without the suffix: nothing else may have it. */
        for (int j = 0; total && j < samples_count; j++)
            assert_false(strlen(samples[j].name) == length - strlen("_total") &&
                         !memcmp(samples[j].name, samples[i].name, length - strlen("_total")));
        for (int j = 0; j < i; j++)
            assert_false(!strcmp(samples[i].name, samples[j].name) && !strcmp(samples[i].le, samples[j].le));
    }
}

static void events_are_counted(void **state) {
    (void)state;
    struct ls_journal_note *note = calloc(1, sizeof *note + 3);
    struct ls_journal_attempt attempt = {.tokens = 7};
    struct ls_journal_entry fault = {.record = {.kind = LS_RECORD_FAULT}},
                            commit = {.record = {.kind = LS_RECORD_COMMIT}},
                            validation = {.record = {.kind = LS_RECORD_VALIDATION}, .loss = 1.5},
                            again = {.record = {.kind = LS_RECORD_ATTEMPT, .attempt = 3}, .attempt = &attempt},
                            stall = {.note = note};
    commit.record.commit.step = 40;
    again.record.attempt_begun.world_size = 3;
    strcpy(note->event, "stall");
    strcpy(note->fields, "{}");
    open_file("/runs/one");
    ls_prometheus_write(prometheus, &fault);
    ls_prometheus_write(prometheus, &stall);
    ls_prometheus_write(prometheus, &stall);
    ls_prometheus_write(prometheus, &commit);
    ls_prometheus_write(prometheus, &validation);
    read_file("lockstep-one.prom");
    assert_true(value("fault_total") == 1 && value("stall_total") == 2 && value("checkpoint_total") == 1);
    assert_true(fabs(value("checkpoint_timestamp_seconds") - (double)time(NULL)) < 1000);
    assert_true(value("checkpoint_step") == 40 && value("validation_loss") == 1.5 && value("attempt") == 2);
    assert_null(find("validation_bits_per_byte"));
    validation.bits_per_byte = 2.25;
    ls_prometheus_write(prometheus, &validation);
    ls_prometheus_write(prometheus, &again);
    strcpy(note->event, "recovered");
    ls_prometheus_write(prometheus, &stall);
    read_file("lockstep-one.prom");
    assert_true(value("validation_bits_per_byte") == 2.25 && value("attempt") == 3 && value("ranks") == 3);
    assert_true(value("stall_total") == 2);
    free(note);
}

static void numbers_that_are_none_are_told_as_such(void **state) {
    (void)state;
    struct ls_journal_entry entry = step_entry(1, 1),
                            validation = {.record = {.kind = LS_RECORD_VALIDATION}, .loss = NAN};
    open_file("/runs/one");
    entry.report.loss = NAN;
    entry.report.grad_norm = INFINITY;
    entry.report.skipped = true;
    ls_prometheus_write(prometheus, &entry);
    ls_prometheus_write(prometheus, &validation);
    read_file("lockstep-one.prom");
    assert_true(isnan(value("loss")) && isinf(value("grad_norm")) && isnan(value("validation_loss")));
    assert_true(value("skipped_steps_total") == 1);
}

static void gpus_are_told_where_there_are_some(void **state) {
    (void)state;
    struct ls_journal_entry entry = step_entry(1, 1);
    open_file("/runs/one");
    entry.report.mfu = 0.5;
    entry.report.gpu_power_watts = 650;
    entry.report.gpu_clock_mhz = 1755;
    ls_prometheus_write(prometheus, &entry);
    write_event();
    read_file("lockstep-one.prom");
    assert_true(value("mfu_ratio") == 0.5 && value("gpu_power_watts") == 650 && value("gpu_clock_hertz") == 1.755e9);
}

/* The collector reads every *.prom of the folder at any time. */
static void no_half_of_a_file_is_called_as_the_collector_looks_for(void **state) {
    (void)state;
    _Alignas(struct inotify_event) char events[8192];
    const int watch = inotify_init1(IN_NONBLOCK);
    assert_true(watch >= 0 && inotify_add_watch(watch, folder, IN_CREATE | IN_OPEN) >= 0);
    open_file("/runs/one");
    const ssize_t bytes = read(watch, events, sizeof events);
    int seen = 0;
    for (char *at = events; bytes > 0 && at < events + bytes; seen++) {
        const struct inotify_event *event = (const struct inotify_event *)at;
        if (event->len) assert_null(strstr(event->name, ".prom"));
        at += sizeof *event + event->len;
    }
    assert_true(seen > 0);
    close(watch);
}

static void names_are_escaped(void **state) {
    (void)state;
    open_file("/runs/a \"b\"\\c\nd\xff");
    read_file("lockstep-a__b__c_d_.prom");
    assert_string_equal(find("running")->run, "a \"b\"\\c?d?");
    assert_string_equal(find("run_info")->run_dir, "/runs/a \"b\"\\c?d?");
    ls_prometheus_close(prometheus);
    char long_path[sizeof facts.path] = "";
    for (size_t length = 0; length + 10 < sizeof long_path; length += 10) strcat(long_path, "/123456789");
    open_file(long_path);
    read_file("lockstep-123456789.prom");
    assert_string_equal(find("run_info")->run_dir, long_path);
}

static void a_thousand_steps_do_not_make_a_thousand_files(void **state) {
    (void)state;
    char path[256];
    struct stat status;
    open_file("/runs/one");
    path_of("lockstep-one.prom", path);
    assert_int_equal(stat(path, &status), 0);
    ino_t last = status.st_ino;
    int files = 0;
    struct timespec first, now;
    clock_gettime(CLOCK_MONOTONIC, &first);
    for (int64_t step = 1; step <= 1000; step++) {
        write_step(step, 0.001);
        assert_int_equal(stat(path, &status), 0);
        files += status.st_ino != last;
        last = status.st_ino;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    assert_in_range(files, 0, now.tv_sec - first.tv_sec + 1);
    write_event();
    read_file("lockstep-one.prom");
    assert_true(value("step") == 1000 && value("step_seconds_count") == 1000);
}

static void the_end_is_told(void **state) {
    (void)state;
    open_file("/runs/one");
    write_step(500, 1);
    ls_prometheus_end(prometheus, LS_STALL);
    read_file("lockstep-one.prom");
    assert_true(value("running") == 0 && value("exit_code") == 8 && value("step") == 500);
}

static void a_folder_that_goes_away_and_comes_back_costs_nothing_else(void **state) {
    (void)state;
    char path[256], moved[80];
    struct ls_error error;
    open_file("/runs/one");
    snprintf(moved, sizeof moved, "%s.moved", folder);
    assert_int_equal(rename(folder, moved), 0);
    write_step(1, 1);
    write_event();
    assert_int_equal(ls_prometheus_check(folder, &error), LS_USAGE);
    assert_non_null(strstr(error.text, folder));
    assert_int_equal(rename(moved, folder), 0);
    write_event();
    read_file("lockstep-one.prom");
    assert_true(value("step") == 1);
    assert_int_equal(ls_prometheus_check(folder, &error), LS_OK);
    path_of("lockstep-one.prom", path);
    assert_int_equal(ls_prometheus_check(path, &error), LS_USAGE);
    /* Nothing else is left in the folder: the collector, and people, see one file. */
    assert_int_equal(remove(path), 0);
    assert_int_equal(rmdir(folder), 0);
    assert_int_equal(mkdir(folder, 0700), 0);
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, begin, end)
    const struct CMUnitTest tests[] = {
        TEST(a_run_without_a_step_is_told),
        TEST(gauges_are_of_the_newest_step_and_counters_of_all),
        TEST(the_histogram_counts_each_step_up_from_its_bucket),
        TEST(counters_are_named_as_such),
        TEST(events_are_counted),
        TEST(numbers_that_are_none_are_told_as_such),
        TEST(gpus_are_told_where_there_are_some),
        TEST(no_half_of_a_file_is_called_as_the_collector_looks_for),
        TEST(names_are_escaped),
        TEST(a_thousand_steps_do_not_make_a_thousand_files),
        TEST(the_end_is_told),
        TEST(a_folder_that_goes_away_and_comes_back_costs_nothing_else),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
