/* TensorBoard's event files, read again by a reader of its own. */
#define _GNU_SOURCE
#include "common/files.h"
#include "coordinator/tensorboard.h"

#include <dirent.h>
#include <ftw.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cmocka.h>

static char folder[64];
static struct ls_run_facts facts;

static int begin(void **state) {
    (void)state;
    strcpy(folder, "/tmp/lockstep-tensorboard.XXXXXX");
    facts = (struct ls_run_facts){.ranks = 4,
                                  .sequence_length = 64,
                                  .start_step = 10,
                                  .start_samples = 1030,
                                  .start_tokens = 1030 * 32,
                                  .host = "here"};
    if (!mkdtemp(folder)) return -1;
    snprintf(facts.path, sizeof facts.path, "%s", folder);
    return 0;
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)status, (void)kind, (void)place;
    return remove(path);
}

static int end(void **state) {
    (void)state;
    return nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static struct ls_journal_entry step_entry(int64_t step) {
    struct ls_journal_entry entry = {.record = {.kind = LS_RECORD_STEP, .attempt = 2}};
    entry.record.step = (struct ls_core_step){.step = step, .samples = 1030 + 60 * (step - 10)};
    entry.report = (struct ls_step_report){.step = step,
                                           .loss = 2.5,
                                           .grad_norm = INFINITY,
                                           .lr = 6e-4,
                                           .step_seconds = 0.25,
                                           .comm_exposed_seconds = 0.03125,
                                           .data_wait_seconds = 0.0625,
                                           .tokens_per_second = 1000,
                                           .memory_peak_bytes = 1 << 29};
    return entry;
}

/* ---- a reader ---- */

/* By the definition: bit for bit, the reflected polynomial of Castagnoli. */
static uint32_t crc32c(const unsigned char *bytes, size_t count) {
    uint32_t crc = ~0u;
    for (size_t i = 0; i < count * 8; i++) {
        const uint32_t bit = (bytes[i / 8] >> (i % 8)) & 1;
        crc = (crc >> 1) ^ ((crc & 1) != bit ? 0x82f63b78u : 0);
    }
    return ~crc;
}

static uint32_t mask(uint32_t crc) {
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

struct scalar {
    char tag[64];
    float value;
};

struct event {
    double wall_time;
    int64_t step;
    char version[32];
    int session; /* 0: no session log */
    struct scalar scalars[32];
    int count;
};

static uint64_t varint(const unsigned char **at) {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        value |= (uint64_t)(**at & 0x7f) << shift;
        if (!(*(*at)++ & 0x80)) return value;
    }
}

/* Reads one field; *value its number, or *bytes[value] its text. */
static unsigned field(const unsigned char **at, uint64_t *value, const unsigned char **bytes) {
    const uint64_t key = varint(at);
    *bytes = *at;
    *value = 0;
    switch (key & 7) {
    case 0: *value = varint(at); break;
    case 1: memcpy(value, *at, 8), *at += 8; break;
    case 5: memcpy(value, *at, 4), *at += 4; break;
    case 2: *value = varint(at), *bytes = *at, *at += *value; break;
    default: fail_msg("wire type %d", (int)(key & 7));
    }
    return (unsigned)(key >> 3);
}

static void read_scalar(const unsigned char *at, const unsigned char *limit, struct scalar *scalar) {
    uint64_t value;
    const unsigned char *bytes;
    while (at < limit) {
        const unsigned number = field(&at, &value, &bytes);
        if (number == 1) snprintf(scalar->tag, sizeof scalar->tag, "%.*s", (int)value, (const char *)bytes);
        if (number == 2) memcpy(&scalar->value, &value, sizeof scalar->value);
    }
}

static void read_event(const unsigned char *at, const unsigned char *limit, struct event *event) {
    uint64_t value;
    const unsigned char *bytes;
    while (at < limit) {
        switch (field(&at, &value, &bytes)) {
        case 1: memcpy(&event->wall_time, &value, sizeof value); break;
        case 2: event->step = (int64_t)value; break;
        case 3: snprintf(event->version, sizeof event->version, "%.*s", (int)value, (const char *)bytes); break;
        case 5:
            for (const unsigned char *in = bytes, *inner; in < bytes + value;) {
                uint64_t length;
                assert_int_equal(field(&in, &length, &inner), 1);
                read_scalar(inner, inner + length, &event->scalars[event->count++]);
            }
            break;
        case 7: event->session = bytes[0] == 1 << 3 ? bytes[1] : -1; break;
        default: fail_msg("an unknown field");
        }
    }
}

static int is_event_file(const struct dirent *entry) {
    return strncmp(entry->d_name, "events.out.tfevents.", 20) == 0;
}

/* Reads the events of all files in the order of their names; *files: how many. */
static int read_events(struct event *events, int most, int *files) {
    char path[400];
    struct dirent **entries;
    int count = 0;
    snprintf(path, sizeof path, "%s/tensorboard", folder);
    *files = scandir(path, &entries, is_event_file, alphasort);
    for (int i = 0; i < *files; i++) {
        char *text;
        size_t bytes;
        snprintf(path, sizeof path, "%s/tensorboard/%s", folder, entries[i]->d_name);
        assert_int_equal(ls_file_read(path, 1 << 20, &text, &bytes, LS_ERROR, NULL), LS_OK);
        const unsigned char *at = (const unsigned char *)text, *limit = at + bytes;
        while (at < limit) {
            uint64_t length;
            uint32_t crc;
            assert_true(limit - at >= 16);
            memcpy(&length, at, 8);
            memcpy(&crc, at + 8, 4);
            assert_int_equal(crc, mask(crc32c(at, 8)));
            assert_true((uint64_t)(limit - at) >= 16 + length);
            memcpy(&crc, at + 12 + length, 4);
            assert_int_equal(crc, mask(crc32c(at + 12, length)));
            assert_true(count < most);
            events[count] = (struct event){.step = -1};
            read_event(at + 12, at + 12 + length, &events[count++]);
            at += 16 + length;
        }
        free(text);
        free(entries[i]);
    }
    free(entries);
    return count;
}

static float value_of(const struct event *event, const char *tag) {
    for (int i = 0; i < event->count; i++)
        if (strcmp(event->scalars[i].tag, tag) == 0) return event->scalars[i].value;
    return NAN;
}

/* ---- tests ---- */

static void the_reader_knows_the_crc(void **state) {
    (void)state;
    assert_int_equal(crc32c((const unsigned char *)"123456789", 9), 0xe3069283u); /* RFC 3720's check value */
}

static void a_step_is_scalars_under_the_known_names(void **state) {
    (void)state;
    struct ls_tensorboard *tensorboard;
    struct event events[8];
    int files;
    assert_int_equal(ls_tensorboard_open(&facts, true, &tensorboard, NULL), LS_OK);
    struct ls_journal_entry entry = step_entry(12);
    ls_tensorboard_write(tensorboard, &entry);
    entry.report.mfu = 0.45;
    entry.record.step.step = 13;
    ls_tensorboard_write(tensorboard, &entry);
    ls_tensorboard_close(tensorboard);
    assert_int_equal(read_events(events, 8, &files), 4);
    assert_int_equal(files, 1);
    assert_string_equal(events[0].version, "brain.Event:2");
    assert_int_equal(events[1].session, 1);
    assert_int_equal(events[1].step, 11);
    assert_int_equal(events[2].step, 12);
    assert_true(events[2].wall_time > 1.7e9);
    /* Before the attempt 1030 samples of 32 tokens, then two steps of 60 of 64. */
    const struct scalar expected[] = {
        {"loss_metrics/global_avg_loss", 2.5f},  {"lr", 6e-4f},
        {"n_tokens_seen", 1030 * 32 + 120 * 64}, {"throughput(tps)", 250},
        {"time_metrics/end_to_end(s)", 0.25f},   {"time_metrics/data_loading(s)", 0.0625f},
        {"time_metrics/data_loading(%)", 25},    {"time_metrics/communication_exposed(s)", 0.03125f},
        {"time_metrics/checkpoint(s)", 0},       {"memory/max_active(GiB)", 0.5f},
    };
    assert_int_equal(events[2].count, sizeof expected / sizeof *expected); /* no grad_norm, which is infinite, no mfu */
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        if (value_of(&events[2], expected[i].tag) != expected[i].value)
            fail_msg("%s is %g", expected[i].tag, (double)value_of(&events[2], expected[i].tag));
    assert_true(value_of(&events[3], "mfu(%)") == 45.0f);
}

static void a_validation_has_its_loss(void **state) {
    (void)state;
    struct ls_tensorboard *tensorboard;
    struct event events[8];
    int files;
    assert_int_equal(ls_tensorboard_open(&facts, true, &tensorboard, NULL), LS_OK);
    struct ls_journal_entry entry = {
        .record = {.kind = LS_RECORD_VALIDATION, .validation.step = 20}, .loss = 1.5, .bits_per_byte = 2};
    ls_tensorboard_write(tensorboard, &entry);
    entry = (struct ls_journal_entry){.record = {.kind = LS_RECORD_COMMIT, .commit.step = 20}};
    ls_tensorboard_write(tensorboard, &entry); /* nothing of it */
    ls_tensorboard_close(tensorboard);
    assert_int_equal(read_events(events, 8, &files), 3);
    assert_int_equal(events[2].step, 20);
    assert_true(value_of(&events[2], "validation_metrics/loss") == 1.5f);
    assert_true(value_of(&events[2], "validation_metrics/bits_per_byte") == 2);
}

static void an_attempt_forgets_the_steps_that_come_again(void **state) {
    (void)state;
    struct ls_tensorboard *tensorboard;
    struct event events[16];
    int files;
    assert_int_equal(ls_tensorboard_open(&facts, true, &tensorboard, NULL), LS_OK);
    struct ls_journal_entry entry = step_entry(15);
    ls_tensorboard_write(tensorboard, &entry);
    struct ls_journal_entry attempt = {.record = {.kind = LS_RECORD_ATTEMPT, .attempt = 3}};
    attempt.record.attempt_begun.world_size = 2;
    attempt.record.attempt_begun.start_step = 12;
    attempt.record.attempt_begun.start_samples = 1030;
    ls_tensorboard_write(tensorboard, &attempt);
    entry = step_entry(13);
    ls_tensorboard_write(tensorboard, &entry);
    ls_tensorboard_close(tensorboard);
    /* A coordinator that takes the attempt over: its steps stay. */
    facts.ranks = 2;
    assert_int_equal(ls_tensorboard_open(&facts, false, &tensorboard, NULL), LS_OK);
    entry = step_entry(14);
    ls_tensorboard_write(tensorboard, &entry);
    ls_tensorboard_close(tensorboard);
    assert_int_equal(read_events(events, 16, &files), 8);
    assert_int_equal(files, 3);
    const struct {
        int session;
        int64_t step;
    } expected[] = {{0, 0}, {1, 11}, {0, 15}, {0, 0}, {1, 13}, {0, 13}, {0, 0}, {0, 14}};
    for (int i = 0; i < 8; i++) {
        assert_int_equal(events[i].session, expected[i].session);
        assert_int_equal(events[i].step, expected[i].step);
    }
    assert_true(value_of(&events[5], "throughput(tps)") == 500);
}

/* Of attempts that end at once many begin in a second: the tenth's name has to stand behind the ninth's. */
static void files_of_one_second_are_read_in_their_order(void **state) {
    (void)state;
    enum { ATTEMPTS = 12 };
    struct ls_tensorboard *tensorboard;
    struct event events[2 * ATTEMPTS];
    int files;
    facts.start_step = 0;
    assert_int_equal(ls_tensorboard_open(&facts, true, &tensorboard, NULL), LS_OK);
    for (uint32_t i = 1; i < ATTEMPTS; i++) {
        struct ls_journal_entry attempt = {.record = {.kind = LS_RECORD_ATTEMPT, .attempt = i + 1}};
        attempt.record.attempt_begun.world_size = 4;
        attempt.record.attempt_begun.start_step = i;
        ls_tensorboard_write(tensorboard, &attempt);
    }
    ls_tensorboard_close(tensorboard);
    assert_int_equal(read_events(events, 2 * ATTEMPTS, &files), 2 * ATTEMPTS);
    assert_int_equal(files, ATTEMPTS);
    for (int i = 0; i < ATTEMPTS; i++) assert_int_equal(events[2 * i + 1].step, i + 1);
}

static void a_folder_that_cannot_be_made_is_told(void **state) {
    (void)state;
    struct ls_tensorboard *tensorboard;
    struct ls_error error = {0};
    char path[128];
    snprintf(path, sizeof path, "%s/tensorboard", folder);
    assert_int_equal(ls_file_replace(path, "", 0, LS_ERROR, NULL), LS_OK);
    assert_int_equal(ls_tensorboard_open(&facts, true, &tensorboard, &error), LS_CHECKPOINT);
    assert_non_null(strstr(error.text, path));
    assert_non_null(strstr(error.text, "metrics.tensorboard=false"));
}

/* A disk that takes so many bytes: what was whole stays, and the run goes on. */
static void a_full_disk_ends_the_file_and_not_the_run(void **state) {
    (void)state;
    struct ls_tensorboard *tensorboard;
    struct rlimit before, limit;
    struct ls_journal_entry entry = step_entry(12);
    assert_int_equal(ls_tensorboard_open(&facts, true, &tensorboard, NULL), LS_OK);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = 500;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    for (int i = 0; i < 5; i++) ls_tensorboard_write(tensorboard, &entry);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    ls_tensorboard_write(tensorboard, &entry); /* nothing behind half a record */
    ls_tensorboard_close(tensorboard);
    char path[400];
    struct dirent **entries;
    struct stat status;
    snprintf(path, sizeof path, "%s/tensorboard", folder);
    assert_int_equal(scandir(path, &entries, is_event_file, NULL), 1);
    snprintf(path, sizeof path, "%s/tensorboard/%s", folder, entries[0]->d_name);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_size, 500);
    free(entries[0]);
    free(entries);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(the_reader_knows_the_crc),
        TEST(a_step_is_scalars_under_the_known_names),
        TEST(a_validation_has_its_loss),
        TEST(an_attempt_forgets_the_steps_that_come_again),
        TEST(files_of_one_second_are_read_in_their_order),
        TEST(a_folder_that_cannot_be_made_is_told),
        TEST(a_full_disk_ends_the_file_and_not_the_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
