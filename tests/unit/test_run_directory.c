/* The run directory: nothing is overwritten, one coordinator owns it, and its identity does not change. */
#include "coordinator/run_directory.h"

#include "common/files.h"

#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64], run_path[96];
static struct ls_config config;
static char changed[LS_CHANGED_BYTES];
static bool data_changed;

static const char yaml[] = "model: {model_type: gpt2, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1}\n"
                           "data: {train: [{path: 'synthetic:2000'}], sequence_length: 8}\n"
                           "train: {steps: 6, global_batch_size: 4, micro_batch_size: 2}\n"
                           "optimizer: {lr: 1.0e-3}\n";

static void parse(const char *setting) {
    struct ls_error error;
    if (ls_config_parse(yaml, strlen(yaml), "test", &setting, setting ? 1 : 0, &config, &error) != LS_OK)
        fail_msg("%s", error.text);
}

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/lockstep-run-XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(run_path, sizeof run_path, "%s/run", folder);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static void write_under(const char *name, const char *text) {
    char path[160];
    snprintf(path, sizeof path, "%s/%s", run_path, name);
    assert_int_equal(ls_file_replace(path, text, strlen(text), LS_ERROR, NULL), LS_OK);
}

static void test_an_existing_one_is_refused_with_its_last_step(void **state) {
    (void)state;
    struct ls_run_directory run, again;
    struct ls_error error = {0};
    assert_int_equal(ls_run_directory_make(run_path, "name", false, &run, &error), LS_OK);
    assert_int_equal(ls_run_directory_make(run_path, "name", false, &again, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "it has no step yet"));
    write_under(
        "metrics.jsonl",
        "{\"kind\":\"step\",\"step\":41}\n{\"kind\":\"step\",\"step\":42}\n{\"kind\":\"validation\",\"step\":99}\n"
        "{\"kind\":\"step\",\"step\":4");
    assert_int_equal(ls_run_directory_make(run_path, "name", false, &again, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "its last step is 42"));
    assert_non_null(strstr(error.text, "--resume"));
    assert_non_null(strstr(error.text, "--run-dir"));
    /* The same folder by another path is the same run. */
    char other[160];
    snprintf(other, sizeof other, "%s/../run/.", run_path);
    assert_int_equal(ls_run_directory_make(other, "name", true, &again, &error), LS_OK);
    assert_string_equal(again.run_id, run.run_id);
    assert_int_equal(strlen(run.run_id), 16);
}

static void test_a_folder_of_something_else_is_refused(void **state) {
    (void)state;
    struct ls_run_directory run;
    assert_int_equal(mkdir(run_path, 0755), 0);
    write_under("thesis.txt", "do not touch");
    assert_int_equal(ls_run_directory_make(run_path, "name", true, &run, NULL), LS_USAGE);
    assert_int_equal(ls_run_directory_find(run_path, &run, NULL), LS_USAGE);
    assert_int_equal(ls_run_directory_find("/nowhere", &run, NULL), LS_USAGE);
}

static void test_an_empty_folder_is_begun_with_resume_only(void **state) {
    (void)state;
    struct ls_run_directory run;
    struct ls_error error = {0};
    assert_int_equal(mkdir(run_path, 0755), 0);
    assert_int_equal(ls_run_directory_make(run_path, "name", false, &run, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "Add --resume"));
    assert_int_equal(ls_run_directory_make(run_path, "name", true, &run, &error), LS_OK);
}

/* What is neither empty nor a run's is not said to be one that --resume would go on with. */
static void test_another_folder_is_told_as_such_without_resume_too(void **state) {
    (void)state;
    struct ls_run_directory run;
    struct ls_error error = {0};
    assert_int_equal(mkdir(run_path, 0755), 0);
    write_under("thesis.txt", "do not touch");
    assert_int_equal(ls_run_directory_make(run_path, "name", false, &run, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "is no run directory"));
    assert_null(strstr(error.text, "--resume"));
}

static void test_a_path_that_no_message_can_hold_is_refused(void **state) {
    (void)state;
    static const char *const names[] = {"new\nline", "tab\t", "latin\xe4", "c1\xc2\x85"};
    struct ls_run_directory run;
    struct ls_error error = {0};
    struct stat status;
    char path[160], under[192];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        assert_int_equal(ls_run_directory_make(path, "name", false, &run, &error), LS_USAGE);
        assert_non_null(strstr(error.text, "not UTF-8"));
        assert_int_equal(stat(path, &status), -1);
        /* A plain name in such a folder. */
        assert_int_equal(mkdir(path, 0755), 0);
        char *here = getcwd(NULL, 0);
        assert_non_null(here);
        assert_int_equal(chdir(path), 0);
        assert_int_equal(ls_run_directory_make("run", "name", false, &run, &error), LS_USAGE);
        snprintf(under, sizeof under, "%s/run", path);
        assert_int_equal(stat(under, &status), -1);
        assert_int_equal(chdir(here), 0);
        free(here);
    }
    snprintf(path, sizeof path, "%s/\xc3\xbcn\xc3\xaf '\"$x", folder);
    assert_int_equal(ls_run_directory_make(path, "name", false, &run, &error), LS_OK);
}

static void test_the_lock_has_one_owner_and_says_who(void **state) {
    (void)state;
    struct ls_run_directory run, other;
    struct ls_error error = {0};
    char endpoint[64];
    assert_int_equal(ls_run_directory_make(run_path, "name", false, &run, &error), LS_OK);
    assert_false(ls_run_directory_is_locked(&run));
    assert_int_equal(ls_run_directory_lock(&run, 0, &error), LS_OK);
    assert_int_equal(ls_run_directory_sign(&run, 3, "tcp://127.0.0.1:4000", &error), LS_OK);
    assert_true(ls_run_directory_is_locked(&run));
    other = run;
    assert_int_equal(ls_run_directory_lock(&other, 0, &error), LS_CHECKPOINT);
    assert_non_null(strstr(error.text, "generation 3"));
    assert_true(ls_run_directory_endpoint(&run, endpoint, sizeof endpoint));
    assert_string_equal(endpoint, "tcp://127.0.0.1:4000");
    ls_run_directory_unlock(&run);
    assert_false(ls_run_directory_is_locked(&run));
    /* The next owner does not listen where the one before did, and is no older generation. */
    assert_int_equal(ls_run_directory_lock(&run, 0, &error), LS_OK);
    assert_false(ls_run_directory_endpoint(&run, endpoint, sizeof endpoint));
    assert_false(ls_run_directory_is_ours(&run, 3));
    ls_run_directory_unlock(&run);
}

/* Replaces the first `before` in the lock's text. */
static void change_lock(const char *before, const char *after) {
    char path[PATH_MAX], text[1024], edited[1200];
    snprintf(path, sizeof path, "%s/lock", run_path);
    int file = open(path, O_RDONLY);
    ssize_t count = read(file, text, sizeof text - 1);
    close(file);
    assert_true(count > 0);
    text[count] = 0;
    char *place = strstr(text, before);
    assert_non_null(place);
    snprintf(edited, sizeof edited, "%.*s%s%s", (int)(place - text), text, after, place + strlen(before));
    write_under("lock", edited);
}

/* A parent with a child that has the lock, signs and dies, and that lives on until `end` is closed. */
static void supervise(struct ls_run_directory *run, int ready, int end) {
    struct ls_error error;
    char byte = 0;
    pid_t child = fork();
    if (child == 0)
        _exit(ls_run_directory_lock(run, 0, &error) || ls_run_directory_sign(run, 3, "tcp://127.0.0.1:4000", &error));
    int status = 1;
    if (waitpid(child, &status, 0) != child || status) _exit(1);
    if (write(ready, &byte, 1) != 1) _exit(1);
    _exit(read(end, &byte, 1) != 0);
}

static void test_a_lock_is_abandoned_once_its_owners_parent_is_dead_here(void **state) {
    (void)state;
    struct ls_run_directory run;
    struct ls_error error;
    int ready[2], end[2], status;
    char byte;
    assert_int_equal(ls_run_directory_make(run_path, "name", false, &run, &error), LS_OK);
    assert_false(ls_run_directory_is_abandoned(&run));
    assert_true(pipe(ready) == 0 && pipe(end) == 0);
    pid_t parent = fork();
    if (parent == 0) {
        close(end[1]);
        supervise(&run, ready[1], end[0]);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    assert_false(ls_run_directory_is_locked(&run));
    assert_false(ls_run_directory_is_abandoned(&run));
    close(end[1]);
    assert_true(waitpid(parent, &status, 0) == parent && status == 0);
    assert_true(ls_run_directory_is_abandoned(&run));
    /* Of another host, or a container beside this one, nothing is known. */
    change_lock("boot ", "boot 0");
    assert_false(ls_run_directory_is_abandoned(&run));
    change_lock("boot 0", "boot ");
    assert_true(ls_run_directory_is_abandoned(&run));
    change_lock("pid:[", "pid:[9");
    assert_false(ls_run_directory_is_abandoned(&run));
    /* As versions before wrote it. */
    write_under("lock", "host here\npid 1\nboot x\nendpoint \ngeneration 4\n");
    assert_false(ls_run_directory_is_abandoned(&run));
    close(ready[0]), close(ready[1]), close(end[0]);
}

static void test_a_newer_generation_fences_an_older_one(void **state) {
    (void)state;
    struct ls_run_directory run;
    struct ls_error error = {0};
    char moved[160];
    assert_int_equal(ls_run_directory_make(run_path, "name", false, &run, NULL), LS_OK);
    assert_int_equal(ls_run_directory_lock(&run, 0, NULL), LS_OK);
    assert_int_equal(ls_run_directory_sign(&run, 3, "", NULL), LS_OK);
    assert_true(ls_run_directory_is_ours(&run, 3));
    assert_false(ls_run_directory_is_ours(&run, 2));
    assert_false(ls_run_directory_is_ours(&run, 13));
    assert_int_equal(ls_run_directory_tell_lost(&run, &error), LS_CHECKPOINT);
    assert_non_null(strstr(error.text, "another coordinator has taken over"));
    /* On a file system whose locks do not reach, another host replaces the file. */
    write_under("lock", "host elsewhere\npid 1\nboot x\nendpoint \ngeneration 4\n");
    assert_false(ls_run_directory_is_ours(&run, 3));
    /* What was moved is not said to be another coordinator's. */
    snprintf(moved, sizeof moved, "%s/moved", folder);
    assert_int_equal(rename(run_path, moved), 0);
    assert_false(ls_run_directory_is_ours(&run, 3));
    assert_int_equal(ls_run_directory_tell_lost(&run, &error), LS_CHECKPOINT);
    assert_non_null(strstr(error.text, "moved, removed or unmounted"));
    ls_run_directory_unlock(&run);
}

static void test_a_changed_identity_is_refused_by_its_key(void **state) {
    (void)state;
    static const struct {
        const char *setting, *key;
    } rows[] = {{"train.seed=7", "train.seed"},
                {"optimizer.lr=2.0e-3", "optimizer.lr"},
                {"optimizer.betas=[0.9, 0.99]", "optimizer.betas"},
                {"model.tie_word_embeddings=false", "model.tie_word_embeddings"},
                {"lr_schedule.type=constant", "lr_schedule.type"},
                {"train.steps=7", "train.steps"}};
    struct ls_run_directory run;
    struct ls_error error = {0};
    parse(NULL);
    assert_int_equal(ls_run_directory_make(run_path, "name", false, &run, &error), LS_OK);
    assert_int_equal(ls_run_directory_check_config(&run, &config, NULL, 0, changed, &data_changed, &error), LS_OK);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        parse(rows[i].setting);
        assert_int_equal(ls_run_directory_check_config(&run, &config, NULL, 0, changed, &data_changed, &error),
                         LS_USAGE);
        if (strncmp(error.text, rows[i].key, strlen(rows[i].key)) != 0)
            fail_msg("'%s' does not name %s", error.text, rows[i].key);
    }
    parse("checkpoint.every_steps=2");
    assert_int_equal(ls_run_directory_check_config(&run, &config, NULL, 0, changed, &data_changed, &error), LS_OK);
}

static enum ls_code check_with(const struct ls_run_directory *run, const char *const *accepted, int count,
                               struct ls_error *error) {
    enum ls_code code = ls_run_directory_check_config(run, &config, accepted, count, changed, &data_changed, error);
    return code == LS_OK ? ls_run_directory_keep_config(run, &config, error) : code;
}

/* What changes only numbers goes on once it is accepted by name, and the checkpoints of before still belong to the run.
 */
static void test_a_change_of_numbers_is_accepted_by_name(void **state) {
    (void)state;
    static const char *const lr[] = {"optimizer.lr"}, *const both[] = {"train.steps", "optimizer.lr"};
    static const char *const seed[] = {"train.seed"}, *const nonsense[] = {"optimizer.rate"};
    static const char strange[] = "0123456789abcdef0123456789abcdef";
    struct ls_run_directory run;
    struct ls_error error = {0};
    char first[33], second[33], third[33];
    parse(NULL);
    ls_config_digest(&config, first);
    assert_int_equal(ls_run_directory_make(run_path, "name", false, &run, &error), LS_OK);
    assert_int_equal(check_with(&run, lr, 1, &error), LS_OK);
    assert_true(ls_run_directory_knows_config(run.path, first, first));
    assert_false(ls_run_directory_knows_config(run.path, first, strange));
    parse("optimizer.lr=2.0e-3");
    ls_config_digest(&config, second);
    assert_int_equal(check_with(&run, NULL, 0, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "(0.002, it was 0.001)"));
    assert_non_null(strstr(error.text, "--accept optimizer.lr"));
    assert_false(ls_run_directory_knows_config(run.path, second, first));
    assert_int_equal(check_with(&run, nonsense, 1, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "'optimizer.rate' is no key"));
    assert_int_equal(check_with(&run, lr, 1, &error), LS_OK);
    assert_true(ls_run_directory_knows_config(run.path, second, first));
    /* The same line again, and one key more. */
    assert_int_equal(check_with(&run, lr, 1, &error), LS_OK);
    parse("train.steps=9");
    ls_config_digest(&config, third);
    assert_int_equal(check_with(&run, lr, 1, &error), LS_USAGE);
    assert_int_equal(strncmp(error.text, "train.steps differs", 19), 0);
    assert_int_equal(check_with(&run, both, 2, &error), LS_OK);
    assert_false(data_changed);
    assert_true(ls_run_directory_knows_config(run.path, third, first));
    assert_true(ls_run_directory_knows_config(run.path, third, second));
    assert_false(ls_run_directory_knows_config(run.path, third, strange));
    assert_false(ls_run_directory_knows_config(run.path, third, ""));
    /* Until it is kept, a configuration that was compared leaves the one before in force. */
    parse("train.steps=11");
    assert_int_equal(ls_run_directory_check_config(&run, &config, both, 2, changed, &data_changed, &error), LS_OK);
    assert_int_equal(check_with(&run, NULL, 0, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "(11, it was 9)"));
    /* What checkpoints rest on cannot be accepted. */
    parse("train.seed=7");
    assert_int_equal(check_with(&run, seed, 1, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "cannot go on with another train.seed"));
}

/* Keys of the data are accepted by name or with their section, and are no change of the numbers. */
static void test_a_change_of_the_data_is_accepted_by_name(void **state) {
    (void)state;
    static const char *const seed[] = {"data.seed"}, *const section[] = {"data"}, *const other[] = {"train"};
    static const char *const settings[] = {"data.seed=9", "data.document_mask=false",
                                           "data.train=[{path: \"synthetic:999\", weight: 3}]"};
    struct ls_run_directory run;
    struct ls_error error = {0};
    char first[33], second[33];
    parse(NULL);
    ls_config_digest(&config, first);
    assert_int_equal(ls_run_directory_make(run_path, "name", false, &run, &error), LS_OK);
    assert_int_equal(check_with(&run, NULL, 0, &error), LS_OK);
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        parse(settings[i]);
        assert_int_equal(check_with(&run, NULL, 0, &error), LS_USAGE);
        assert_int_equal(strncmp(error.text, settings[i], strcspn(settings[i], "=")), 0);
        assert_non_null(strstr(error.text, "a new generation of the data"));
        assert_int_equal(check_with(&run, other, 1, &error), LS_USAGE);
        if (i) assert_int_equal(check_with(&run, seed, 1, &error), LS_USAGE);
    }
    parse(settings[2]);
    assert_int_equal(check_with(&run, NULL, 0, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "([{weight: 3}], it was [{}])"));
    parse("data.seed=9");
    ls_config_digest(&config, second);
    assert_int_equal(check_with(&run, seed, 1, &error), LS_OK);
    assert_string_equal(changed, "");
    assert_true(data_changed);
    assert_true(ls_run_directory_knows_config(run.path, second, first));
    parse("data.document_mask=false");
    assert_int_equal(check_with(&run, section, 1, &error), LS_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_an_existing_one_is_refused_with_its_last_step, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_a_folder_of_something_else_is_refused, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_an_empty_folder_is_begun_with_resume_only, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_another_folder_is_told_as_such_without_resume_too, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(test_a_path_that_no_message_can_hold_is_refused, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_the_lock_has_one_owner_and_says_who, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_a_lock_is_abandoned_once_its_owners_parent_is_dead_here, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(test_a_newer_generation_fences_an_older_one, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_a_changed_identity_is_refused_by_its_key, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_a_change_of_numbers_is_accepted_by_name, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_a_change_of_the_data_is_accepted_by_name, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
