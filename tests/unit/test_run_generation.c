/* Which generation of the data an attempt is of: what needs to be accepted, what begins anew, what goes on. */
#include "coordinator/run_generation.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char text[] = "model: {model_type: gpt2, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2}\n"
                           "data: {train: [{path: a}], sequence_length: 8}\n"
                           "train: {steps: 100, global_batch_size: 8, micro_batch_size: 8}\n";

/* A run as its journal and its checkpoints have it, and the data that it is to go on with. */
static struct stage {
    char folder[64];
    struct ls_journal *journal;
    struct ls_journal_attempt before, attempt;
    struct ls_run_start start;
    struct ls_run_data data;
    struct ls_config config;
    char *yaml;
    struct ls_run_generation generation;
    struct ls_error error;
} stage;

/* The data are named by a letter; "A9" are those of A with the seed 9. The validation set is v unless it is told. */
static void configure(const char *data) {
    char train[33], content[33], sources[128], setting[32];
    memset(train, data[0], 32);
    memset(content, data[0], 32);
    if (data[1]) train[31] = data[1];
    train[32] = content[32] = 0;
    snprintf(setting, sizeof setting, "data.seed=%s", data[1] ? data + 1 : "0");
    const char *const settings[] = {setting};
    if (ls_config_parse(text, strlen(text), "test", settings, 1, &stage.config, &stage.error) != LS_OK)
        fail_msg("%s", stage.error.text);
    free(stage.yaml);
    assert_int_equal(ls_config_write(&stage.config, &stage.yaml, NULL), LS_OK);
    ls_run_data_release(&stage.data);
    memcpy(stage.data.train_digest, train, sizeof train);
    memset(stage.data.validation_digest, 'v', 32);
    memset(stage.data.dataset_digest, data[0], 32);
    snprintf(sources, sizeof sources, "%s 300 /data/%c\n", content, data[0]);
    stage.data.sources = strdup(sources);
    stage.data.datasets = strdup("");
}

static int open_stage(void **state) {
    char path[96];
    (void)state;
    memset(&stage, 0, sizeof stage);
    strcpy(stage.folder, "/tmp/lockstep-generation-XXXXXX");
    if (!mkdtemp(stage.folder)) return -1;
    snprintf(path, sizeof path, "%s/journal.db", stage.folder);
    return ls_journal_open(path, &stage.journal, &stage.error) != LS_OK;
}

static int close_stage(void **state) {
    char command[96];
    (void)state;
    ls_journal_close(stage.journal);
    ls_run_data_release(&stage.data);
    free(stage.yaml);
    snprintf(command, sizeof command, "rm -rf %s", stage.folder);
    return system(command);
}

static struct ls_run_generation_wish wish_with(const char *const *accepted, int count) {
    return (struct ls_run_generation_wish){.journal = stage.journal,
                                           .before = &stage.before,
                                           .start = &stage.start,
                                           .data = &stage.data,
                                           .config = &stage.config,
                                           .yaml = stage.yaml,
                                           .accepted = accepted,
                                           .accepted_count = count,
                                           .run = "runs/test"};
}

/* The next attempt, on `data`, with what is accepted; "" is nothing. */
static enum ls_code settle(const char *data, const char *accepted) {
    const char *const names[] = {accepted};
    configure(data);
    const struct ls_run_generation_wish wish = wish_with(names, *accepted != 0);
    stage.attempt = stage.start.attempt;
    stage.attempt.attempt = stage.before.attempt + 1;
    return ls_run_generation_settle(&wish, &stage.attempt, &stage.generation, &stage.error);
}

/* What was settled begins: rows are written. */
static void begin(void) {
    const struct ls_run_generation_wish wish = wish_with(NULL, 0);
    if (ls_run_generation_write(&wish, &stage.generation, &stage.error) != LS_OK ||
        ls_journal_begin_attempt(stage.journal, &stage.attempt, &stage.error) != LS_OK)
        fail_msg("%s", stage.error.text);
    stage.before = stage.attempt;
}

/* The attempt that began last saves `step`, `used` sequences behind its start: the next one starts from there. */
static struct ls_run_start saved(int64_t step, int64_t used) {
    struct ls_run_start start = {.found = true};
    start.state = (struct ls_trainer_state){.step = (uint64_t)step,
                                            .attempt = (uint64_t)stage.attempt.attempt,
                                            .position = (uint64_t)(stage.attempt.start_position + used),
                                            .samples = (uint64_t)(stage.attempt.samples + used),
                                            .data_generation = (uint64_t)stage.attempt.data_generation,
                                            .data_generation_step = (uint64_t)stage.attempt.generation_step};
    memcpy(start.state.train_digest, stage.data.train_digest, sizeof start.state.train_digest);
    memcpy(start.state.dataset_digest, stage.data.dataset_digest, sizeof start.state.dataset_digest);
    memset(start.state.ledger_chain, 'c', 32);
    start.attempt = (struct ls_journal_attempt){.start_step = step,
                                                .start_position = (int64_t)start.state.position,
                                                .samples = (int64_t)start.state.samples,
                                                .data_generation = stage.attempt.data_generation,
                                                .generation_step = stage.attempt.generation_step};
    return start;
}

static void expect(const char *data, const char *accepted, int64_t generation, int64_t position, int64_t begun) {
    if (settle(data, accepted) != LS_OK) fail_msg("%s", stage.error.text);
    assert_int_equal(stage.generation.facts.number, generation);
    assert_int_equal(stage.attempt.data_generation, generation);
    assert_int_equal(stage.attempt.start_position, position);
    assert_int_equal(stage.attempt.generation_step, begun);
    assert_int_equal(stage.attempt.start_step, (int64_t)stage.start.state.step);
}

static void refuse(const char *data, const char *accepted, enum ls_code code, const char *words) {
    assert_int_equal(settle(data, accepted), code);
    if (!strstr(stage.error.text, words)) fail_msg("'%s' does not say '%s'", stage.error.text, words);
}

/* Twenty steps on A are saved. */
static void train_on_a(void) {
    expect("A", "", 1, 0, 0);
    assert_false(stage.generation.changed);
    begin();
    stage.start = saved(20, 160);
}

static void test_the_same_data_stay_in_their_generation(void **state) {
    (void)state;
    train_on_a();
    expect("A", "", 1, 160, 0);
    assert_false(stage.generation.changed);
    assert_false(stage.generation.begins);
    /* What is accepted and has not changed is fine. */
    expect("A", "data", 1, 160, 0);
    assert_string_equal(stage.generation.differences, "");
}

static void test_other_data_have_to_be_accepted(void **state) {
    (void)state;
    train_on_a();
    refuse("B", "", LS_DATA, "/data/B (digest BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB, 300 samples), it was /data/A");
    refuse("B", "data.seed", LS_DATA, "--accept data.train");
    refuse("A9", "", LS_USAGE, "--accept data.seed");
    refuse("A9", "data.train", LS_USAGE, "data.seed differs");
    refuse("B9", "data.train", LS_USAGE, "data.seed differs");
    refuse("B9", "data.seed", LS_DATA, "--accept data.train");
    /* Nothing of it is remembered. */
    expect("A", "", 1, 160, 0);
}

static void test_accepted_they_begin_a_generation_behind_the_step(void **state) {
    (void)state;
    static const char *const accepted[][2] = {{"B", "data.train"}, {"B", "data"}, {"A9", "data.seed"}, {"A9", "data"}};
    train_on_a();
    for (size_t i = 0; i < sizeof accepted / sizeof *accepted; i++) {
        expect(accepted[i][0], accepted[i][1], 2, 0, 20);
        assert_true(stage.generation.is_new && stage.generation.begins && stage.generation.changed);
        assert_int_equal(stage.generation.before, 1);
        assert_int_equal(stage.generation.before_position, 160);
        assert_int_equal(stage.attempt.samples, 160);
        assert_non_null(
            strstr(stage.generation.differences, accepted[i][0][0] == 'B' ? "/data/B" : "data.seed: 0 -> 9"));
    }
    expect("B9", "data", 2, 0, 20);
    assert_non_null(strstr(stage.generation.differences, "/data/B"));
    assert_non_null(strstr(stage.generation.differences, "data.seed: 0 -> 9"));
    begin();
    /* Once it has begun, nothing needs to be accepted any more. */
    stage.start = saved(30, 80);
    expect("B9", "", 2, 80, 20);
    /* And changed again. */
    expect("C", "data", 3, 0, 30);
    assert_int_equal(stage.generation.before, 2);
}

static void test_from_a_checkpoint_of_before_a_generation_begins_again(void **state) {
    (void)state;
    train_on_a();
    const struct ls_run_start first = stage.start;
    expect("B", "data", 2, 0, 20);
    begin();
    stage.start = first;
    expect("B", "", 2, 0, 20);
    assert_true(stage.generation.begins && !stage.generation.is_new && !stage.generation.changed);
    /* From an earlier one, and from nothing at all. */
    stage.start.state.step = 10;
    stage.start.attempt.start_step = 10;
    expect("B", "", 2, 0, 10);
    assert_int_equal(stage.generation.facts.start_step, 20); /* where it began first */
    stage.start = (struct ls_run_start){.found = false};
    expect("B", "", 2, 0, 0);
}

static void test_set_back_to_the_data_of_the_checkpoint_it_goes_on(void **state) {
    (void)state;
    train_on_a();
    const struct ls_run_start first = stage.start;
    expect("B", "data", 2, 0, 20);
    begin();
    stage.start = first;
    refuse("A", "", LS_DATA, "--accept data.train");
    expect("A", "data", 1, 160, 0);
    assert_true(stage.generation.changed && !stage.generation.begins);
    begin();
    stage.start = saved(40, 160);
    expect("A", "", 1, 320, 0);
    /* B once more is not the one of before: that one's samples belong to a lineage that was left. */
    expect("B", "data", 3, 0, 40);
}

static void test_the_first_data_behind_others_begin_anew(void **state) {
    (void)state;
    train_on_a();
    expect("B", "data", 2, 0, 20);
    begin();
    stage.start = saved(30, 80);
    expect("A", "data", 3, 0, 30);
    assert_int_equal(stage.attempt.samples, 240);
}

static void test_a_start_that_was_cut_short_takes_no_number(void **state) {
    (void)state;
    train_on_a();
    expect("B", "data", 2, 0, 20);
    const struct ls_run_generation_wish wish = wish_with(NULL, 0);
    assert_int_equal(ls_run_generation_write(&wish, &stage.generation, NULL), LS_OK);
    refuse("B", "", LS_DATA, "--accept data.train");
    expect("C", "data", 2, 0, 20);
}

static void test_other_validation_data_are_no_generation(void **state) {
    (void)state;
    static const char *const accepted[] = {"data.validation"};
    train_on_a();
    configure("A");
    memset(stage.data.validation_digest, 'w', 32);
    for (int given = 0; given < 2; given++) {
        const struct ls_run_generation_wish wish = wish_with(accepted, given);
        stage.attempt = stage.start.attempt;
        const enum ls_code code = ls_run_generation_settle(&wish, &stage.attempt, &stage.generation, &stage.error);
        assert_int_equal(code, given ? LS_OK : LS_DATA);
        if (!given) assert_non_null(strstr(stage.error.text, "--accept data.validation"));
    }
    assert_int_equal(stage.attempt.data_generation, 1);
    assert_int_equal(stage.attempt.start_position, 160);
    assert_false(stage.generation.changed);
    assert_true(stage.generation.validation_changed);
    /* Once an attempt has begun with them, they are those of the run. */
    begin();
    const struct ls_run_generation_wish wish = wish_with(NULL, 0);
    assert_int_equal(ls_run_generation_settle(&wish, &stage.attempt, &stage.generation, &stage.error), LS_OK);
    assert_false(stage.generation.validation_changed);
}

static enum ls_code count_records(void *context, const struct ls_core_record *record, struct ls_error *error) {
    (void)error;
    if (record->quarantine.from == 8 && record->quarantine.to == 16 && record->quarantine.data_generation == 2)
        ++*(int *)context;
    return LS_OK;
}

/* A folder that was copied without its journal, from the second generation of another run. */
static void test_a_copied_checkpoint_brings_its_quarantine_and_its_place(void **state) {
    (void)state;
    struct ls_run_origin origin;
    int inherited = 0;
    configure("A");
    stage.attempt = (struct ls_journal_attempt){.data_generation = 2, .generation_step = 100, .samples = 500};
    stage.start = saved(200, 320);
    stage.start.state.quarantine = (struct ls_quarantine){1, {{8, 16}}};
    refuse("B", "", LS_DATA, "does not say which");
    expect("B", "data.train", 3, 0, 200);
    expect("A", "", 2, 320, 100);
    begin();
    assert_int_equal(ls_run_origin_read(stage.journal, &origin, NULL), LS_OK);
    assert_int_equal(origin.step, 200);
    assert_int_equal(origin.position, 320);
    assert_int_equal(origin.samples, 820);
    assert_int_equal(origin.data_generation, 2);
    assert_int_equal(ls_journal_read_records(stage.journal, 0, count_records, &inherited, NULL), LS_OK);
    assert_int_equal(inherited, 1);
    /* Later starts leave it as it is. */
    stage.start = saved(210, 80);
    expect("A", "", 2, 400, 100);
    begin();
    assert_int_equal(ls_run_origin_read(stage.journal, &origin, NULL), LS_OK);
    assert_int_equal(origin.step, 200);
}

/* The journal of a version that kept no generations has attempts, and checkpoints without the digest of their data. */
static void test_a_run_of_an_older_version_goes_on_with_its_data(void **state) {
    (void)state;
    const char *const names[] = {"data"};
    train_on_a();
    close_stage(NULL);
    struct ls_run_start start = stage.start;
    assert_int_equal(open_stage(NULL), 0);
    stage.before = (struct ls_journal_attempt){.attempt = 1, .data_generation = 1};
    stage.start = start;
    stage.start.state.train_digest[0] = 0;
    refuse("B", "data", LS_DATA, "Go on with the data of before for one attempt first");
    configure("A9"); /* the datasets are the same */
    struct ls_run_generation_wish wish = wish_with(names, 1);
    wish.keys_changed = true;
    stage.attempt = stage.start.attempt;
    assert_int_equal(ls_run_generation_settle(&wish, &stage.attempt, &stage.generation, &stage.error), LS_DATA);
    expect("A", "", 1, 160, 0);
    assert_false(stage.generation.changed);
    begin();
    stage.start = saved(30, 80);
    expect("B", "data", 2, 0, 30);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_the_same_data_stay_in_their_generation, open_stage, close_stage),
        cmocka_unit_test_setup_teardown(test_other_data_have_to_be_accepted, open_stage, close_stage),
        cmocka_unit_test_setup_teardown(test_accepted_they_begin_a_generation_behind_the_step, open_stage, close_stage),
        cmocka_unit_test_setup_teardown(test_from_a_checkpoint_of_before_a_generation_begins_again, open_stage,
                                        close_stage),
        cmocka_unit_test_setup_teardown(test_set_back_to_the_data_of_the_checkpoint_it_goes_on, open_stage,
                                        close_stage),
        cmocka_unit_test_setup_teardown(test_the_first_data_behind_others_begin_anew, open_stage, close_stage),
        cmocka_unit_test_setup_teardown(test_a_start_that_was_cut_short_takes_no_number, open_stage, close_stage),
        cmocka_unit_test_setup_teardown(test_other_validation_data_are_no_generation, open_stage, close_stage),
        cmocka_unit_test_setup_teardown(test_a_run_of_an_older_version_goes_on_with_its_data, open_stage, close_stage),
        cmocka_unit_test_setup_teardown(test_a_copied_checkpoint_brings_its_quarantine_and_its_place, open_stage,
                                        close_stage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
