/* Key files: who may read them, what is in them, and that a run keeps its own. */
#include "common/files.h"
#include "common/keys.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/lockstep-keys-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static void path_of(const char *name, char path[128]) {
    snprintf(path, 128, "%s/keys/%s", folder, name);
}

static void assert_same_key(const struct ls_key *a, const struct ls_key *b) {
    assert_int_equal(a->role, b->role);
    assert_string_equal(a->server, b->server);
    assert_string_equal(a->public_key, b->public_key);
    assert_string_equal(a->secret_key, b->secret_key);
}

static void test_a_run_makes_its_keys_once_and_keeps_them(void **state) {
    (void)state;
    struct ls_keys first, second;
    struct ls_error error;
    assert_int_equal(ls_keys_open(folder, &first, &error), LS_OK);
    assert_int_equal(ls_keys_open(folder, &second, &error), LS_OK);
    assert_same_key(&first.server, &second.server);
    assert_same_key(&first.worker, &second.worker);
    assert_same_key(&first.operator_, &second.operator_);
    assert_string_equal(first.worker.server, first.server.public_key);
    assert_string_equal(first.operator_.server, first.server.public_key);
    assert_string_not_equal(first.worker.secret_key, first.operator_.secret_key);
    assert_string_not_equal(first.worker.public_key, first.server.public_key);
}

static void test_nobody_else_can_read_the_keys(void **state) {
    (void)state;
    struct ls_keys keys;
    struct stat status;
    char path[128];
    assert_int_equal(ls_keys_open(folder, &keys, NULL), LS_OK);
    path_of("", path);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0700);
    static const char *const names[] = {"server.key", "worker.key", "operator.key"};
    for (int i = 0; i < 3; i++) {
        path_of(names[i], path);
        assert_int_equal(stat(path, &status), 0);
        assert_int_equal(status.st_mode & 07777, 0600);
    }
}

static void test_a_key_file_others_may_read_is_refused(void **state) {
    (void)state;
    struct ls_keys keys;
    struct ls_key key;
    struct ls_error error = {0};
    char path[128];
    assert_int_equal(ls_keys_open(folder, &keys, NULL), LS_OK);
    path_of("worker.key", path);
    static const mode_t modes[] = {0640, 0604, 0620, 0700, 0644};
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        chmod(path, modes[i]);
        assert_int_equal(ls_key_read(path, &key, &error), LS_USAGE);
        assert_non_null(strstr(error.text, "chmod 600"));
        assert_int_equal(ls_keys_open(folder, &keys, &error), LS_USAGE);
    }
    chmod(path, 0400);
    assert_int_equal(ls_key_read(path, &key, &error), LS_OK);
}

static void test_a_fifo_or_missing_key_file_is_refused_without_waiting(void **state) {
    (void)state;
    struct ls_key key;
    char path[128];
    snprintf(path, sizeof path, "%s/fifo", folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(ls_key_read(path, &key, NULL), LS_USAGE);
    assert_int_equal(ls_key_read("/nowhere/worker.key", &key, NULL), LS_USAGE);
}

static void test_the_text_of_a_key_is_read_back(void **state) {
    (void)state;
    struct ls_keys keys;
    struct ls_key key;
    char text[LS_KEY_TEXT_MAX], commented[LS_KEY_TEXT_MAX + 64];
    assert_int_equal(ls_keys_generate(&keys, NULL), LS_OK);
    ls_key_format(&keys.operator_, text);
    assert_int_equal(ls_key_parse(text, strlen(text), "text", &key, NULL), LS_OK);
    assert_same_key(&key, &keys.operator_);
    snprintf(commented, sizeof commented, "# mine\n\n%s# the end", text);
    assert_int_equal(ls_key_parse(commented, strlen(commented), "text", &key, NULL), LS_OK);
}

static void test_damaged_key_texts_are_refused_without_showing_them(void **state) {
    (void)state;
    struct ls_keys keys;
    struct ls_key key;
    struct ls_error error = {0};
    char text[LS_KEY_TEXT_MAX], damaged[2 * LS_KEY_TEXT_MAX];
    assert_int_equal(ls_keys_generate(&keys, NULL), LS_OK);
    ls_key_format(&keys.worker, text);
    for (size_t length = 0; length + 1 < strlen(text); length++)
        assert_int_equal(ls_key_parse(text, length, "text", &key, NULL), LS_USAGE);
    static const char *const additions[] = {"role: worker\n", "colour: red\n", "role: admin\n", "secret: short\n",
                                            "lockstep-key 1\n"};
    for (size_t i = 0; i < sizeof additions / sizeof additions[0]; i++) {
        snprintf(damaged, sizeof damaged, "%s%s", text, additions[i]);
        assert_int_equal(ls_key_parse(damaged, strlen(damaged), "text", &key, &error), LS_USAGE);
        assert_null(strstr(error.text, keys.worker.secret_key));
    }
    text[strlen(text) - 2] = '~'; /* outside Z85 */
    assert_int_equal(ls_key_parse(text, strlen(text), "text", &key, &error), LS_USAGE);
}

static void test_keys_of_two_runs_do_not_mix(void **state) {
    (void)state;
    struct ls_keys keys, other;
    struct ls_error error = {0};
    char path[128], text[LS_KEY_TEXT_MAX];
    assert_int_equal(ls_keys_open(folder, &keys, NULL), LS_OK);
    assert_int_equal(ls_keys_generate(&other, NULL), LS_OK);
    ls_key_format(&other.worker, text);
    path_of("worker.key", path);
    assert_int_equal(ls_file_replace(path, text, strlen(text), LS_ERROR, NULL), LS_OK);
    chmod(path, 0600);
    assert_int_equal(ls_keys_open(folder, &keys, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "different runs"));
    ls_key_format(&keys.operator_, text);
    assert_int_equal(ls_file_replace(path, text, strlen(text), LS_ERROR, NULL), LS_OK);
    chmod(path, 0600);
    assert_int_equal(ls_keys_open(folder, &keys, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "role operator"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_run_makes_its_keys_once_and_keeps_them, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_nobody_else_can_read_the_keys, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_a_key_file_others_may_read_is_refused, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_a_fifo_or_missing_key_file_is_refused_without_waiting, make_folder,
                                        remove_folder),
        cmocka_unit_test(test_the_text_of_a_key_is_read_back),
        cmocka_unit_test(test_damaged_key_texts_are_refused_without_showing_them),
        cmocka_unit_test_setup_teardown(test_keys_of_two_runs_do_not_mix, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
