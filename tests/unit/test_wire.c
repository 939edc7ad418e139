/* The wire: what goes in comes out, and what may not come in does not. */
#include "common/wire.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint8_t bytes[LS_WIRE_BYTES_MAX];

static size_t encode(const struct ls_message *message) {
    struct ls_error error = {0};
    size_t count = 0;
    assert_int_equal(ls_wire_encode(message, bytes, sizeof bytes, &count, &error), LS_OK);
    return count;
}

/* Encodes and decodes; the caller releases. */
static struct ls_message round_trip(const struct ls_message *message) {
    struct ls_message decoded;
    struct ls_error error = {0};
    size_t count = encode(message);
    if (ls_wire_decode(bytes, count, &decoded, &error) != LS_OK) fail_msg("%s", error.text);
    assert_int_equal(decoded.kind, message->kind);
    assert_int_equal(decoded.protocol, LS_PROTOCOL);
    assert_int_equal(decoded.attempt, message->attempt);
    assert_int_equal(decoded.generation, message->generation);
    return decoded;
}

static void assert_refused(const void *data, size_t count, const char *text) {
    struct ls_message decoded;
    struct ls_error error = {0};
    assert_int_equal(ls_wire_decode(data, count, &decoded, &error), LS_ERROR);
    if (!strstr(error.text, text)) fail_msg("'%s' does not say '%s'", error.text, text);
}

static void test_a_step_keeps_every_field(void **state) {
    (void)state;
    struct ls_message message = {.kind = LS_MESSAGE_STEP, .attempt = 3, .generation = 7};
    message.step = (struct ls_step_report){.step = 12345678901,
                                           .attempt = 3,
                                           .position = UINT64_C(1) << 50,
                                           .sequences = 30,
                                           .targets = 7680,
                                           .epoch = 0.125,
                                           .loss = 2.3456789,
                                           .grad_norm = 1e-30,
                                           .lr = 6e-4,
                                           .step_seconds = 0.1,
                                           .compute_seconds = 0.2,
                                           .comm_exposed_seconds = 0.3,
                                           .data_wait_seconds = 0.4,
                                           .wait_seconds = 0.45,
                                           .wait_for_rank = 4095,
                                           .checkpoint_seconds = 0.5,
                                           .tokens_per_second = 1e6,
                                           .memory_peak_bytes = UINT64_MAX,
                                           .mfu = 0.45,
                                           .gpu_power_watts = 699.5,
                                           .gpu_clock_mhz = 1980,
                                           .wall_seconds = 0.55,
                                           .digest = {UINT64_MAX, 1},
                                           .skipped = true};
    struct ls_message decoded = round_trip(&message);
    assert_memory_equal(&decoded.step, &message.step, sizeof message.step);
    ls_message_release(&decoded);
}

static void test_ranks_share_what_they_have_in_common(void **state) {
    (void)state;
    enum { RANKS = LS_WIRE_RANKS_MAX };
    struct ls_rank_info *ranks = calloc(RANKS, sizeof *ranks);
    assert_non_null(ranks);
    for (int i = 0; i < RANKS; i++) {
        ranks[i].rank = i;
        ranks[i].local_rank = i % 8;
        ranks[i].pid = 1000 + i;
        snprintf(ranks[i].host, sizeof ranks[i].host, "node-%d", i / 8);
        memset(ranks[i].config_digest, 'a', 32);
        memset(ranks[i].dataset_digest, i < 10 ? 'b' : 'c', 32);
        memset(ranks[i].numerics_id, 'n', sizeof ranks[i].numerics_id - 1);
    }
    struct ls_message message = {.kind = LS_MESSAGE_HELLO, .attempt = 1};
    strcpy(message.hello.version, "0.1.0");
    message.hello.world_size = RANKS;
    message.hello.ranks = ranks;
    message.hello.ranks_count = RANKS;
    message.hello.started = true;
    message.hello.steps_done = 10;
    message.hello.granted_step = 42;
    struct ls_message decoded = round_trip(&message);
    assert_int_equal(decoded.hello.ranks_count, RANKS);
    assert_memory_equal(decoded.hello.ranks, ranks, RANKS * sizeof *ranks);
    assert_string_equal(decoded.hello.version, "0.1.0");
    assert_true(decoded.hello.started);
    assert_int_equal(decoded.hello.steps_done, 10);
    assert_int_equal(decoded.hello.granted_step, 42);
    /* 4096 numerics ids of 255 bytes alone would be a megabyte. */
    assert_true(encode(&message) < 200000);
    ls_message_release(&decoded);
    message.hello.ranks_count = RANKS + 1;
    size_t count;
    assert_int_equal(ls_wire_encode(&message, bytes, sizeof bytes, &count, NULL), LS_ERROR);
    free(ranks);
}

static void test_a_part_keeps_its_files(void **state) {
    (void)state;
    struct ls_part_file files[2] = {{"model.safetensors", 1 << 30, "0123456789abcdef0123456789abcdef"},
                                    {"state/rank-00001.safetensors", 0, "ffffffffffffffffffffffffffffffff"}};
    struct ls_message message = {.kind = LS_MESSAGE_PART};
    message.part.step = 200;
    message.part.rank = 1;
    message.part.optimizer_steps = 199;
    message.part.files = files;
    message.part.files_count = 2;
    struct ls_message decoded = round_trip(&message);
    assert_int_equal(decoded.part.files_count, 2);
    for (int i = 0; i < 2; i++) {
        assert_string_equal(decoded.part.files[i].name, files[i].name);
        assert_string_equal(decoded.part.files[i].hash, files[i].hash);
        assert_int_equal(decoded.part.files[i].bytes, files[i].bytes);
    }
    assert_int_equal(decoded.part.optimizer_steps, 199);
    ls_message_release(&decoded);
}

static void test_a_report_keeps_where_its_ranks_are(void **state) {
    (void)state;
    static struct ls_rank_report ranks[LS_WIRE_REPORT_RANKS_MAX];
    struct ls_message message = {.kind = LS_MESSAGE_REPORT};
    strcpy(message.report.host, "node-7");
    message.report.ranks = ranks;
    message.report.ranks_count = LS_WIRE_REPORT_RANKS_MAX;
    for (int i = 0; i < LS_WIRE_REPORT_RANKS_MAX; i++) {
        ranks[i] = (struct ls_rank_report){.rank = i ? 64 + i : -1, .local_rank = i, .alive = i != 3};
        ranks[i].look.state = 'T';
        strcpy(ranks[i].look.text, "it is stopped by a signal");
        ranks[i].view = (struct ls_progress_view){.beat = UINT64_MAX,
                                                  .pid = 4000 + (uint64_t)i,
                                                  .step = 41,
                                                  .micro_batch = 2,
                                                  .block = 9,
                                                  .collective = 118,
                                                  .collective_done = 117,
                                                  .host_collective = 12,
                                                  .host_collective_done = 11,
                                                  .phase = LS_PHASE_DATA,
                                                  .exit_code = UINT64_MAX,
                                                  .gpu = 5,
                                                  .age_ns = 77,
                                                  .count = LS_PROGRESS_OPERATIONS};
        for (int j = 0; j < LS_PROGRESS_OPERATIONS; j++)
            ranks[i].view.operations[j] = (struct ls_progress_step){.age_ns = UINT64_MAX - 1,
                                                                    .took_ns = UINT64_MAX,
                                                                    .step = 40,
                                                                    .collective = 118 - (uint64_t)j,
                                                                    .phase = LS_PHASE_FORWARD,
                                                                    .kind = LS_OPERATION_STREAM,
                                                                    .micro_batch = 1,
                                                                    .block = j - 1};
    }
    struct ls_message decoded = round_trip(&message);
    assert_string_equal(decoded.report.host, "node-7");
    assert_int_equal(decoded.report.ranks_count, LS_WIRE_REPORT_RANKS_MAX);
    for (int i = 0; i < LS_WIRE_REPORT_RANKS_MAX; i++) {
        ranks[i].view.world_rank = i ? (uint64_t)ranks[i].rank : UINT64_MAX;
        assert_memory_equal(&decoded.report.ranks[i], &ranks[i], sizeof ranks[i]);
    }
    ls_message_release(&decoded);
    ranks[1].rank = LS_WIRE_WORLD_MAX;
    assert_refused(bytes, encode(&message), "rank is out of range");
    ranks[1].rank = 1;
    ranks[1].look.text[0] = '\033';
    assert_refused(bytes, encode(&message), "doing is not plain UTF-8");
    struct ls_error error;
    size_t count;
    message.report.ranks_count = LS_WIRE_REPORT_RANKS_MAX + 1;
    assert_int_equal(ls_wire_encode(&message, bytes, sizeof bytes, &count, &error), LS_ERROR);
}

static void test_hostile_file_names_are_refused(void **state) {
    (void)state;
    static const char *const names[] = {"../model.safetensors", "/etc/passwd", "state/../x", "state/", "", "a/b",
                                        "state/state/x",        ".."};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct ls_part_file file = {"", 1, "0123456789abcdef0123456789abcdef"};
        snprintf(file.name, sizeof file.name, "%s", names[i]);
        struct ls_message message = {.kind = LS_MESSAGE_PART};
        message.part.files = &file;
        message.part.files_count = 1;
        size_t count = encode(&message);
        assert_refused(bytes, count, "no file name of a checkpoint");
    }
}

static void test_a_setup_carries_yaml_with_line_ends(void **state) {
    (void)state;
    char yaml[] = "name: caf\xc3\xa9\ntrain:\n\tsteps: 3\n";
    struct ls_message message = {.kind = LS_MESSAGE_SETUP, .attempt = 2, .generation = 5};
    struct ls_welcome *shape = &message.setup.shape;
    shape->world_size = 4;
    strcpy(shape->run_directory, "/runs/a");
    strcpy(shape->run_id, "0123456789abcdef");
    strcpy(shape->checkpoint, "/runs/a/checkpoints/step-00000005");
    shape->start_step = 5;
    shape->start_position = 150;
    shape->total_steps = 9;
    shape->end_position = UINT64_MAX;
    shape->optimizer_steps = 4;
    shape->attempt = 2;
    shape->end_step = 8;
    assert_true(ls_quarantine_add(&shape->quarantine, 160, 170));
    assert_true(ls_quarantine_add(&shape->quarantine, INT64_C(1) << 40, (INT64_C(1) << 40) + 1));
    message.setup.yaml = yaml;
    struct ls_message decoded = round_trip(&message);
    const struct ls_welcome *found = &decoded.setup.shape;
    assert_string_equal(found->run_directory, shape->run_directory);
    assert_string_equal(found->run_id, shape->run_id);
    assert_string_equal(found->checkpoint, shape->checkpoint);
    assert_int_equal(found->attempt, 2);
    assert_int_equal(found->world_size, 4);
    assert_int_equal(found->start_step, 5);
    assert_int_equal(found->start_position, 150);
    assert_int_equal(found->total_steps, 9);
    assert_true(found->end_position == UINT64_MAX);
    assert_int_equal(found->optimizer_steps, 4);
    assert_int_equal(found->end_step, 8);
    assert_int_equal(found->quarantine.count, 2);
    assert_int_equal(found->quarantine.ranges[0].from, 160);
    assert_int_equal(found->quarantine.ranges[0].to, 170);
    assert_true(found->quarantine.ranges[1].from == INT64_C(1) << 40);
    assert_string_equal(decoded.setup.yaml, yaml);
    ls_message_release(&decoded);
}

static void test_ranges_that_cannot_be_are_refused(void **state) {
    (void)state;
    char yaml[] = "";
    struct ls_message message = {.kind = LS_MESSAGE_SETUP};
    message.setup.yaml = yaml;
    message.setup.shape.quarantine = (struct ls_quarantine){.count = 2, .ranges = {{10, 20}, {15, 30}}};
    assert_refused(bytes, encode(&message), "not a list of ascending ranges");
    message.setup.shape.quarantine = (struct ls_quarantine){.count = 1, .ranges = {{20, 20}}};
    assert_refused(bytes, encode(&message), "not a list of ascending ranges");
}

static void test_texts_are_cut_between_characters(void **state) {
    (void)state;
    struct ls_message message = {.kind = LS_MESSAGE_FAULT};
    message.fault.code = LS_DATA;
    /* A two-byte character that would be torn at the last byte. */
    memset(message.fault.text, 'x', sizeof message.fault.text - 2);
    message.fault.text[sizeof message.fault.text - 2] = '\xc3';
    message.fault.text[sizeof message.fault.text - 1] = 0;
    struct ls_message decoded = round_trip(&message);
    assert_int_equal(strlen(decoded.fault.text), sizeof message.fault.text - 2);
    ls_message_release(&decoded);
}

/* Control characters could move a terminal's cursor; overlong forms, surrogates and lone bytes are no UTF-8. */
static const char *const not_plain[][2] = {{"a\033[2J", "a?[2J"},
                                           {"bell\a", "bell?"},
                                           {"tab\t", "tab?"},
                                           {"line\nline", "line?line"},
                                           {"\xc0\xaf", "??"},
                                           {"\xed\xa0\x80", "???"},
                                           {"\xff", "?"},
                                           {"\xe2\x82", ""},
                                           {"\xe2\x82x", "??x"},
                                           {"\xc2\x9b[31m", "??[31m"},
                                           {"\xf4\x90\x80\x80", "????"},
                                           {"\xe0\x80\xaf", "???"},
                                           {"\xf0\x80\x80\xaf", "????"},
                                           {"\x7f", "?"}};

static void test_text_that_is_not_plain_is_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof not_plain / sizeof not_plain[0]; i++) {
        struct ls_message message = {.kind = LS_MESSAGE_OPEN};
        strcpy(message.open.version, not_plain[i][0]);
        size_t count = encode(&message);
        assert_refused(bytes, count, "not plain UTF-8");
    }
}

/* A reason may quote a file's tensor name or a system's message: it arrives, whatever it quotes. */
static void test_reasons_are_sent_plain(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof not_plain / sizeof not_plain[0]; i++) {
        struct ls_message message = {.kind = LS_MESSAGE_SAVE_FAILED};
        strcpy(message.save_failed.text, not_plain[i][0]);
        struct ls_message decoded = round_trip(&message);
        assert_string_equal(decoded.save_failed.text, not_plain[i][1]);
        ls_message_release(&decoded);
    }
    struct ls_message fine = {.kind = LS_MESSAGE_SAVE_FAILED};
    strcpy(fine.save_failed.text, "na\xc3\xafve \xe2\x82\xac \xf0\x9f\x98\x80");
    struct ls_message decoded = round_trip(&fine);
    assert_string_equal(decoded.save_failed.text, fine.save_failed.text);
    ls_message_release(&decoded);
}

static void test_numbers_out_of_range_are_refused(void **state) {
    (void)state;
    struct ls_message message = {.kind = LS_MESSAGE_STEP};
    message.step.step = -1;
    assert_refused(bytes, encode(&message), "step is out of range");
    message = (struct ls_message){.kind = LS_MESSAGE_STEP, .step = {.wait_for_rank = -2}};
    assert_refused(bytes, encode(&message), "wait_for_rank is out of range");
    message = (struct ls_message){.kind = LS_MESSAGE_PART};
    message.part.rank = LS_WIRE_WORLD_MAX;
    assert_refused(bytes, encode(&message), "rank is out of range");
    message = (struct ls_message){.kind = LS_MESSAGE_FAULT};
    message.fault.code = 99;
    assert_refused(bytes, encode(&message), "code is no exit code");
    message = (struct ls_message){.kind = LS_MESSAGE_GRANT};
    message.grant.from_step = 5;
    message.grant.to_step = 4;
    assert_refused(bytes, encode(&message), "to_step is out of range");
    message = (struct ls_message){.kind = LS_MESSAGE_REQUEST, .request = (enum ls_wire_request)9};
    assert_refused(bytes, encode(&message), "kind is out of range");
}

static void test_bytes_that_are_no_message_are_refused(void **state) {
    (void)state;
    assert_refused("\xff\xff\xff\xff", 4, "no message");
    assert_refused("", 0, "no known kind");
    /* Field 99, of a later version, in an envelope of protocol 1. */
    static const uint8_t later[] = {0x08, 0x01, 0x9a, 0x06, 0x00};
    assert_refused(later, sizeof later, "no known kind");
    assert_refused(bytes, (size_t)LS_WIRE_BYTES_MAX + 1, "more than");
    /* A HELLO (field 11) of two-byte empty ranks (field 3): small on the wire, large in memory. */
    enum { RANKS = 200000 };
    static uint8_t many[RANKS * 2 + 16];
    size_t count = 0;
    many[count++] = 0x08;
    many[count++] = 0x01;
    many[count++] = 0x5a;
    for (uint32_t left = RANKS * 2; left || many[count - 1] & 0x80; left >>= 7)
        many[count++] = (uint8_t)((left & 0x7f) | (left > 0x7f ? 0x80 : 0));
    for (int i = 0; i < RANKS; i++) {
        many[count++] = 0x1a;
        many[count++] = 0x00;
    }
    assert_refused(many, count, "no message");
}

/* So that a refusal can be sent to a program of another version. */
static void test_another_protocol_decodes_to_its_kind_only(void **state) {
    (void)state;
    struct ls_message message = {.kind = LS_MESSAGE_OPEN}, decoded;
    strcpy(message.open.version, "9.9");
    size_t count = encode(&message);
    assert_int_equal(bytes[0], 0x08); /* field 1, protocol */
    bytes[1] = LS_PROTOCOL + 1;
    assert_int_equal(ls_wire_decode(bytes, count, &decoded, NULL), LS_OK);
    assert_int_equal(decoded.kind, LS_MESSAGE_OPEN);
    assert_int_equal(decoded.protocol, LS_PROTOCOL + 1);
    assert_string_equal(decoded.open.version, "");
    ls_message_release(&decoded);
}

static void test_every_kind_has_a_name_and_survives_the_wire(void **state) {
    (void)state;
    for (int kind = 0; kind < LS_MESSAGE_KINDS; kind++) {
        struct ls_message message = {.kind = (enum ls_message_kind)kind, .attempt = 1, .generation = 2};
        char empty[] = "";
        if (kind == LS_MESSAGE_SETUP) message.setup.yaml = empty;
        if (kind == LS_MESSAGE_REQUEST) message.request = LS_WIRE_STOP;
        struct ls_message decoded = round_trip(&message);
        ls_message_release(&decoded);
        for (int other = 0; other < kind; other++)
            assert_string_not_equal(ls_message_name((enum ls_message_kind)kind),
                                    ls_message_name((enum ls_message_kind)other));
    }
}

static void test_a_message_larger_than_its_buffer_is_an_error(void **state) {
    (void)state;
    struct ls_message message = {.kind = LS_MESSAGE_FAULT};
    memset(message.fault.text, 'x', 100);
    uint8_t small[50];
    size_t count;
    struct ls_error error;
    assert_int_equal(ls_wire_encode(&message, small, sizeof small, &count, &error), LS_ERROR);
}

static void test_a_bundle_keeps_its_reports_byte_for_byte(void **state) {
    (void)state;
    static uint8_t buffer[LS_WIRE_BYTES_MAX];
    const struct ls_wire_piece pieces[] = {{"ab\0c", 4}, {"", 0}, {"\xff", 1}};
    struct ls_message message = {.kind = LS_MESSAGE_BUNDLE, .attempt = 3}, decoded;
    struct ls_error error;
    size_t count;
    message.bundle.reports = pieces;
    message.bundle.reports_count = 3;
    assert_int_equal(ls_wire_encode(&message, buffer, sizeof buffer, &count, &error), LS_OK);
    assert_int_equal(ls_wire_decode(buffer, count, &decoded, &error), LS_OK);
    assert_int_equal(decoded.kind, LS_MESSAGE_BUNDLE);
    assert_int_equal(decoded.bundle.reports_count, 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(decoded.bundle.reports[i].count, pieces[i].count);
        assert_memory_equal(decoded.bundle.reports[i].bytes, pieces[i].bytes, pieces[i].count);
    }
    ls_message_release(&decoded);
    message.bundle.reports_count = LS_WIRE_BUNDLE_MAX + 1;
    assert_int_equal(ls_wire_encode(&message, buffer, sizeof buffer, &count, &error), LS_ERROR);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_step_keeps_every_field),
        cmocka_unit_test(test_ranks_share_what_they_have_in_common),
        cmocka_unit_test(test_a_part_keeps_its_files),
        cmocka_unit_test(test_a_report_keeps_where_its_ranks_are),
        cmocka_unit_test(test_a_bundle_keeps_its_reports_byte_for_byte),
        cmocka_unit_test(test_hostile_file_names_are_refused),
        cmocka_unit_test(test_a_setup_carries_yaml_with_line_ends),
        cmocka_unit_test(test_ranges_that_cannot_be_are_refused),
        cmocka_unit_test(test_texts_are_cut_between_characters),
        cmocka_unit_test(test_text_that_is_not_plain_is_refused),
        cmocka_unit_test(test_reasons_are_sent_plain),
        cmocka_unit_test(test_numbers_out_of_range_are_refused),
        cmocka_unit_test(test_bytes_that_are_no_message_are_refused),
        cmocka_unit_test(test_another_protocol_decodes_to_its_kind_only),
        cmocka_unit_test(test_every_kind_has_a_name_and_survives_the_wire),
        cmocka_unit_test(test_a_message_larger_than_its_buffer_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
