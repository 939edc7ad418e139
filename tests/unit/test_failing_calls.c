/* A training in which one system call of a save fails, or every read and write does less than was asked, or one
 * allocation finds no memory: an error with the right code, a good checkpoint left, and no other bits. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What the test itself allocates does not count. */
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);
#define calloc __libc_calloc
#include "trainer_harness.h"
#undef calloc

#include "tests/unit/sanitized.h"

#ifndef SANITIZED

/* Calls of this program, libraries left out, until one fails; below 0: none does. */
static atomic_long files_left = -1, memory_left = -1;
static atomic_bool failed, scanty, slow, opens_fail_too; /* those under a folder, which saves have some of by the way */
static atomic_uint turns;
extern char __executable_start, etext;

static bool is_due(atomic_long *left, const char *caller) {
    if (atomic_load(left) < 0 || caller < &__executable_start || caller >= &etext) return false;
    if (atomic_fetch_sub(left, 1) != 0) return false;
    atomic_store(&failed, true);
    return true;
}

#define FILE_CALL_FAILS (is_due(&files_left, __builtin_return_address(0)) && (errno = EIO))
#define NO_MEMORY       (is_due(&memory_left, __builtin_return_address(0)) && (errno = ENOMEM))

/* True for an interruption; else *count becomes what is done of it. */
static bool is_cut(size_t *count) {
    if (!atomic_load(&scanty)) return false;
    const unsigned turn = atomic_fetch_add(&turns, 1);
    if (turn % 3 == 0 && (errno = EINTR)) return true;
    if (*count > 1) *count = 1 + turn * 2654435761u % *count;
    return false;
}

#define PASS_ON(type, name, parameters)                                                                                \
    static type(*_Atomic real) parameters; /* NOLINT(bugprone-macro-parentheses) */                                    \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name)

ssize_t write(int file, const void *bytes, size_t count) {
    PASS_ON(ssize_t, write, (int, const void *, size_t));
    return FILE_CALL_FAILS ? -1 : real(file, bytes, count);
}
ssize_t pwrite(int file, const void *bytes, size_t count, off_t offset) {
    PASS_ON(ssize_t, pwrite, (int, const void *, size_t, off_t));
    if (atomic_load(&slow)) usleep(5000);
    return FILE_CALL_FAILS || is_cut(&count) ? -1 : real(file, bytes, count, offset);
}
ssize_t pread(int file, void *bytes, size_t count, off_t offset) {
    PASS_ON(ssize_t, pread, (int, void *, size_t, off_t));
    return FILE_CALL_FAILS || is_cut(&count) ? -1 : real(file, bytes, count, offset);
}
int fsync(int file) {
    PASS_ON(int, fsync, (int));
    return FILE_CALL_FAILS ? -1 : real(file);
}
int mkdir(const char *path, mode_t mode) {
    PASS_ON(int, mkdir, (const char *, mode_t));
    return FILE_CALL_FAILS ? -1 : real(path, mode);
}
int rename(const char *from, const char *to) {
    PASS_ON(int, rename, (const char *, const char *));
    return FILE_CALL_FAILS ? -1 : real(from, to);
}
int renameat(int folder, const char *from, int target, const char *to) {
    PASS_ON(int, renameat, (int, const char *, int, const char *));
    return FILE_CALL_FAILS ? -1 : real(folder, from, target, to);
}
int open(const char *path, int flags, ...) {
    PASS_ON(int, open, (const char *, int, ...));
    va_list arguments;
    va_start(arguments, flags);
    const mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return FILE_CALL_FAILS ? -1 : real(path, flags, mode);
}
int openat(int folder, const char *path, int flags, ...) {
    PASS_ON(int, openat, (int, const char *, int, ...));
    va_list arguments;
    va_start(arguments, flags);
    const mode_t mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return atomic_load(&opens_fail_too) && FILE_CALL_FAILS ? -1 : real(folder, path, flags, mode);
}

void *malloc(size_t bytes) {
    return NO_MEMORY ? NULL : __libc_malloc(bytes);
}
void *calloc(size_t count, size_t bytes) {
    return NO_MEMORY ? NULL : __libc_calloc(count, bytes);
}
void *realloc(void *memory, size_t bytes) {
    return NO_MEMORY ? NULL : __libc_realloc(memory, bytes);
}

static const char yaml[] = "model: {model_type: llama, hidden_size: 8, num_hidden_layers: 2, num_attention_heads: 2,\n"
                           "        intermediate_size: 12}\n"
                           "data: {train: [{path: 'synthetic:3000'}], sequence_length: 6}\n"
                           "train: {steps: 9, global_batch_size: 7, micro_batch_size: 2}\n"
                           "optimizer: {lr: 3.0e-3}\n"
                           "precision: bf16\n"
                           "zero: {stage: 3}\n";

static long pending; /* what files_left becomes once the step is done whose save follows */

static void arm_files(int rank, int64_t step) {
    (void)rank, (void)step;
    atomic_store(&files_left, pending);
}

static void remove_folder(const char *folder) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    assert_int_equal(system(command), 0);
}

static void count_damaged(void *context, const char *name, const char *text) {
    (void)name, (void)text;
    ++*(int *)context;
}

/* `latest` is no part of the commit, and is repaired at the next start: to open, write, fsync and rename it, to open
 * its folder and fsync that may fail. Everything else is an error. */
enum { CALLS_OF_LATEST = 6 };

static void every_call_of_a_save_that_fails_is_an_error_and_leaves_a_good_checkpoint(void **state) {
    (void)state;
    struct ls_config config = harness_config(yaml);
    char folder[] = "/tmp/lockstep-failing-XXXXXX", path[64], newer[64];
    int borne = 0, calls = 0;
    config.zero.stage = 1; /* at stage 3 the number of writes depends on how far the compute stream is */
    assert_non_null(mkdtemp(folder));
    struct run first = {.config = config, .ranks = 1, .steps = 1, .save = folder};
    harness_run_well(&first);
    harness_free(&first);
    snprintf(path, sizeof path, "%s/checkpoints/step-00000001", folder);
    snprintf(newer, sizeof newer, "%s/checkpoints/step-00000002", folder);
    for (bool more = true; more; calls++) {
        struct ls_checkpoint_found found;
        bool any = false;
        int damaged = 0;
        struct run second = {.config = config,
                             .ranks = 1,
                             .start_step = 1,
                             .steps = 1,
                             .load = path,
                             .save = folder,
                             .after_step = arm_files};
        pending = calls;
        atomic_store(&failed, false);
        harness_run(&second);
        atomic_store(&files_left, -1);
        more = atomic_load(&failed);
        assert_int_equal(ls_checkpoint_newest(folder, &any, &found, count_damaged, &damaged, NULL), LS_OK);
        assert_true(any && damaged == 0);
        if (second.codes[0] == LS_OK)
            assert_int_equal(found.state.step, 2);
        else
            assert_int_equal(second.codes[0], LS_CHECKPOINT);
        borne += more && second.codes[0] == LS_OK;
        harness_free(&second);
        remove_folder(newer);
    }
    assert_true(calls > 20);
    assert_int_equal(borne, CALLS_OF_LATEST);
    remove_folder(folder);
}

/* Storage that does not answer says nothing of what it holds: no checkpoint is passed over for it. */
static void what_cannot_be_read_is_not_called_damaged(void **state) {
    (void)state;
    const struct ls_config config = harness_config(yaml);
    char folder[] = "/tmp/lockstep-failing-XXXXXX", path[64];
    assert_non_null(mkdtemp(folder));
    struct run first = {.config = config, .ranks = 1, .steps = 1, .save = folder};
    harness_run_well(&first);
    snprintf(path, sizeof path, "%s/checkpoints/step-00000001", folder);
    struct run second = {.config = config, .ranks = 1, .start_step = 1, .steps = 1, .load = path, .save = folder};
    harness_run_well(&second);
    int calls = 0, refused = 0;
    atomic_store(&opens_fail_too, true);
    for (bool more = true; more; calls++) {
        struct ls_checkpoint_found found;
        struct ls_error error = {0};
        bool any = false;
        int damaged = 0;
        atomic_store(&failed, false);
        atomic_store(&files_left, calls);
        const enum ls_code code = ls_checkpoint_newest(folder, &any, &found, count_damaged, &damaged, &error);
        atomic_store(&files_left, -1);
        more = atomic_load(&failed);
        assert_int_equal(damaged, 0);
        if (code == LS_OK)
            assert_true(any && found.state.step == 2);
        else
            assert_int_equal(code, LS_CHECKPOINT);
        if (code) assert_non_null(strstr(error.text, "Input/output error"));
        refused += code != LS_OK;
    }
    atomic_store(&opens_fail_too, false);
    assert_true(refused > 8 && refused == calls - 1);
    harness_free(&first);
    harness_free(&second);
    remove_folder(folder);
}

/* The same for a rank that loads: what it says of storage is that, and not of the checkpoint, which others would then
 * put aside. */
static void what_a_rank_cannot_read_is_not_called_damaged_either(void **state) {
    (void)state;
    const struct ls_config config = harness_config(yaml);
    char folder[] = "/tmp/lockstep-failing-XXXXXX", path[64];
    assert_non_null(mkdtemp(folder));
    struct run first = {.config = config, .ranks = 2, .steps = 1, .save = folder};
    harness_run_well(&first);
    snprintf(path, sizeof path, "%s/checkpoints/step-00000001", folder);
    int calls = 0, refused = 0;
    atomic_store(&opens_fail_too, true);
    for (bool more = true; more; calls++) {
        struct run second = {.config = config, .ranks = 1, .start_step = 1, .load = path};
        atomic_store(&failed, false);
        atomic_store(&files_left, calls);
        harness_run(&second);
        atomic_store(&files_left, -1);
        more = atomic_load(&failed);
        if (more) {
            assert_int_equal(second.codes[0], LS_CHECKPOINT);
            if (second.errors[0].scope != LS_SCOPE_NODE) fail_msg("call %d: %s", calls, second.errors[0].text);
            assert_non_null(strstr(second.errors[0].text, "Input/output error"));
            refused++;
        }
        harness_free(&second);
    }
    atomic_store(&opens_fail_too, false);
    assert_true(refused > 20 && refused == calls - 1);
    harness_free(&first);
    remove_folder(folder);
}

/* Who watches a rank sees that it gets on, however long all of it takes: by each piece of state or weights. */
static void a_slow_save_and_a_load_are_no_standstill(void **state) {
    (void)state;
    enum { BLOCKS = 4, KINDS = 3, MARKS_OF_A_SAVE = 2 };
    struct ls_progress_record record = {0};
    struct ls_config config = harness_config(yaml);
    char folder[] = "/tmp/lockstep-failing-XXXXXX", path[64];
    config.zero.stage = 1;
    assert_non_null(mkdtemp(folder));
    struct run saves = {.config = config, .ranks = 1, .save = folder, .progress = &record};
    atomic_store(&slow, true);
    harness_run_well(&saves);
    atomic_store(&slow, false);
    assert_int_equal(record.phase, LS_PHASE_CHECKPOINT);
    assert_true(record.operations >= MARKS_OF_A_SAVE + BLOCKS * KINDS);
    memset(&record, 0, sizeof record);
    snprintf(path, sizeof path, "%s/checkpoints/step-00000000", folder);
    struct run loads = {.config = config, .ranks = 1, .load = path, .progress = &record};
    harness_run_well(&loads);
    assert_int_equal(record.phase, LS_PHASE_LOAD);
    assert_true(record.operations >= BLOCKS);
    harness_free(&saves);
    harness_free(&loads);
    remove_folder(folder);
}

static void short_and_interrupted_reads_and_writes_change_nothing(void **state) {
    (void)state;
    const struct ls_config config = harness_config(yaml);
    char folder[] = "/tmp/lockstep-failing-XXXXXX", path[64];
    assert_non_null(mkdtemp(folder));
    struct run whole = {.config = config, .ranks = 1, .steps = 3};
    harness_run_well(&whole);
    atomic_store(&scanty, true);
    struct run first = {.config = config, .ranks = 2, .steps = 2, .save = folder};
    harness_run_well(&first);
    snprintf(path, sizeof path, "%s/checkpoints/step-00000002", folder);
    struct run second = {.config = config, .ranks = 1, .start_step = 2, .steps = 1, .load = path, .save = folder};
    harness_run_well(&second);
    atomic_store(&scanty, false);
    assert_true(atomic_load(&turns) > 100);
    assert_true(fabs(second.reports[0].loss - whole.reports[2].loss) < 1e-3 * whole.reports[2].loss);
    struct run third = {.config = config, .ranks = 1, .start_step = 2, .steps = 1, .load = path};
    harness_run_well(&third);
    assert_memory_equal(second.weights, third.weights, (size_t)third.weight_count * sizeof(float));
    harness_free(&whole);
    harness_free(&first);
    harness_free(&second);
    harness_free(&third);
    remove_folder(folder);
}

static void every_allocation_that_fails_is_told_as_such(void **state) {
    (void)state;
    for (int fixed = 0; fixed < 2; fixed++) {
        struct ls_config config = harness_config(yaml);
        config.train.reduction = fixed ? LS_REDUCTION_FIXED : LS_REDUCTION_FAST;
        int allocations = 0;
        for (bool more = true; more; allocations++) {
            struct ls_trainer *trainer = NULL;
            struct ls_corpus *corpus = NULL;
            struct ls_device *device;
            struct ls_comm *comm;
            struct ls_error error = {0};
            assert_int_equal(ls_comm_create_threads(1, &comm, NULL), LS_OK);
            assert_int_equal(ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, NULL), LS_OK);
            atomic_store(&failed, false);
            atomic_store(&memory_left, allocations);
            enum ls_code code = ls_corpus_open(&config, &corpus, &error);
            const struct ls_trainer_options options = {.config = &config,
                                                       .corpus = corpus,
                                                       .device = device,
                                                       .comm = comm,
                                                       .total_steps = 9,
                                                       .end_step = 9,
                                                       .end_position = UINT64_MAX};
            if (!code) code = ls_trainer_create(&options, &trainer, &error);
            if (!code) code = ls_trainer_initialize(trainer, &error);
            atomic_store(&memory_left, -1);
            more = atomic_load(&failed);
            if (code != (more ? LS_MEMORY : LS_OK))
                fail_msg("allocation %d: code %d, %s", allocations, code, error.text);
            if (!code) ls_trainer_destroy(trainer);
            ls_corpus_close(corpus);
            ls_device_destroy(device);
            ls_comm_destroy(comm);
        }
        assert_true(allocations > 40);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_call_of_a_save_that_fails_is_an_error_and_leaves_a_good_checkpoint),
        cmocka_unit_test(what_cannot_be_read_is_not_called_damaged),
        cmocka_unit_test(what_a_rank_cannot_read_is_not_called_damaged_either),
        cmocka_unit_test(a_slow_save_and_a_load_are_no_standstill),
        cmocka_unit_test(short_and_interrupted_reads_and_writes_change_nothing),
        cmocka_unit_test(every_allocation_that_fails_is_told_as_such),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

/* Sanitizers have these calls for themselves. */
static void nothing_fails_under_sanitizers(void **state) {
    (void)state;
    puts("a sanitizer has system calls and allocations for itself");
    skip();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(nothing_fails_under_sanitizers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
