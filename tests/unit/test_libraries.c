/* Where the CUDA libraries are looked for: a made-up library in made-up folder trees. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#ifdef LS_CUDA

#include "worker/device/cuda/libraries.h"

#include "common/files.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[] = "/tmp/lockstep-libraries-XXXXXX";

/* An empty tree, and an environment that names none of the usual places. */
static int set_up(void **state) {
    (void)state;
    strcpy(strrchr(root, '-'), "-XXXXXX");
    if (!mkdtemp(root)) return 1;
    unsetenv("LOCKSTEP_CUDA_LIBRARIES");
    unsetenv("VIRTUAL_ENV");
    unsetenv("CONDA_PREFIX");
    setenv("HOME", root, 1);
    setenv("PATH", "/nonexistent", 1);
    return 0;
}

static int tear_down(void **state) {
    char command[PATH_MAX + 8];
    (void)state;
    snprintf(command, sizeof command, "/bin/rm -rf %s", root);
    return system(command);
}

/* ROOT/FOLDER, with those above it. */
static void make_folder(const char *folder) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", root, folder);
    for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        mkdir(path, 0755);
        *slash = '/';
    }
    assert_int_equal(mkdir(path, 0755), 0);
}

/* A library of that name in ROOT/FOLDER: a copy of one that this program uses. */
static void put_library(const char *folder, const char *name) {
    char path[PATH_MAX], *bytes;
    size_t count;
    Dl_info place;
    make_folder(folder);
    assert_int_not_equal(dladdr((void *)(uintptr_t)&_assert_true, &place), 0);
    assert_int_equal(ls_file_read(place.dli_fname, 1 << 24, &bytes, &count, LS_ERROR, NULL), LS_OK);
    snprintf(path, sizeof path, "%s/%s/%s", root, folder, name);
    assert_int_equal(ls_file_replace(path, bytes, count, LS_ERROR, NULL), LS_OK);
    free(bytes);
}

static void put_program(const char *name) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", root, name);
    assert_int_equal(ls_file_replace(path, "", 0, LS_ERROR, NULL), LS_OK);
    assert_int_equal(chmod(path, 0755), 0);
}

static void put_link(const char *name, const char *target) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", root, name);
    assert_int_equal(symlink(target, path), 0);
}

/* ROOT and what follows it; valid until the next call. */
static const char *in_root(const char *text) {
    static char path[PATH_MAX];
    snprintf(path, sizeof path, "%s%s", root, text);
    return path;
}

/* It is found in ROOT/FOLDER. */
static void finds(const char *name, const char *folder) {
    char path[LS_LIBRARY_PATH_MAX], real[PATH_MAX], wanted[PATH_MAX];
    struct ls_error error = {.text = ""};
    void *handle = ls_library_open(name, path, &error);
    if (!handle) fail_msg("%s", error.text);
    snprintf(wanted, sizeof wanted, "%s/%s/%s", root, folder, name);
    assert_non_null(realpath(path, real));
    assert_string_equal(real, wanted);
    assert_int_equal(dlclose(handle), 0);
}

static const char packages[] = "venv/lib/python3.12/site-packages/nvidia/made_up/lib";

static void a_virtual_environment_need_not_be_active(void **state) {
    (void)state;
    put_library(packages, "libmadeup.so.1");
    make_folder("venv/bin");
    put_program("venv/bin/python3");
    char path[PATH_MAX];
    snprintf(path, sizeof path, "/nonexistent::%s/venv/bin:/usr/bin", root);
    setenv("PATH", path, 1);
    finds("libmadeup.so.1", packages);
}

/* As in a real one: its program is a link to the system's, whose folders hold nothing. */
static void links_are_followed_from_where_they_stand(void **state) {
    (void)state;
    put_library(packages, "libmadeup.so.1");
    make_folder("venv/bin");
    make_folder("system/bin");
    make_folder("elsewhere/bin");
    put_program("system/bin/python3.12");
    put_link("venv/bin/python3", "python");
    put_link("venv/bin/python", "../../system/bin/python3.12");
    put_link("elsewhere/bin/python3", "../../venv/bin/python3");
    setenv("PATH", in_root("/venv/bin"), 1);
    finds("libmadeup.so.1", packages);
    setenv("PATH", in_root("/elsewhere/bin"), 1);
    finds("libmadeup.so.1", packages);
}

/* What a shell would start is asked, and no other. */
static void the_first_python_on_the_path_counts(void **state) {
    (void)state;
    char path[PATH_MAX], found[LS_LIBRARY_PATH_MAX];
    struct ls_error error;
    put_library(packages, "libmadeup.so.1");
    make_folder("venv/bin");
    make_folder("other/bin");
    put_program("venv/bin/python3");
    put_program("other/bin/python3");
    snprintf(path, sizeof path, "%s/other/bin:%s/venv/bin", root, root);
    setenv("PATH", path, 1);
    assert_null(ls_library_open("libmadeup.so.1", found, &error));
    assert_non_null(strstr(error.text, "LOCKSTEP_CUDA_LIBRARIES"));
}

static void links_in_a_circle_end(void **state) {
    (void)state;
    char found[LS_LIBRARY_PATH_MAX];
    make_folder("bin");
    put_link("bin/python3", "python");
    put_link("bin/python", "python3");
    setenv("PATH", in_root("/bin"), 1);
    assert_null(ls_library_open("libmadeup.so.1", found, NULL));
}

static void what_is_named_comes_first_then_the_active_environment(void **state) {
    (void)state;
    put_library(packages, "libmadeup.so.1");
    put_library("active/lib/python3.13/site-packages/nvidia/made_up/lib", "libmadeup.so.1");
    put_library("named", "libmadeup.so.1");
    make_folder("venv/bin");
    put_program("venv/bin/python3");
    setenv("PATH", in_root("/venv/bin"), 1);
    finds("libmadeup.so.1", packages);
    setenv("VIRTUAL_ENV", in_root("/active"), 1);
    finds("libmadeup.so.1", "active/lib/python3.13/site-packages/nvidia/made_up/lib");
    setenv("LOCKSTEP_CUDA_LIBRARIES", in_root("/named"), 1);
    finds("libmadeup.so.1", "named");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_virtual_environment_need_not_be_active, set_up, tear_down),
        cmocka_unit_test_setup_teardown(links_are_followed_from_where_they_stand, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_first_python_on_the_path_counts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(links_in_a_circle_end, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_named_comes_first_then_the_active_environment, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

static void there_is_nothing_to_test(void **state) {
    (void)state;
    print_message("this build has no CUDA\n");
    skip();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(there_is_nothing_to_test)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
