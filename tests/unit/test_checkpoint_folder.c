/* Checkpoint folders: a commit is all or nothing, the newest good one is found, damage costs one checkpoint and no
 * more. */
#define _GNU_SOURCE
#include "tests/unit/checkpoint_harness.h"

#include "common/checkpoint_retention.h"
#include "worker/checkpoint/part.h"

#include <errno.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>

enum { DAMAGED_MAX = 8 };

struct damaged_list {
    char names[DAMAGED_MAX][LS_CHECKPOINT_NAME_MAX], texts[DAMAGED_MAX][256];
    int count;
};

static void note_damaged(void *context, const char *name, const char *text) {
    struct damaged_list *list = context;
    assert_true(list->count < DAMAGED_MAX);
    snprintf(list->names[list->count], sizeof list->names[0], "%s", name);
    snprintf(list->texts[list->count++], sizeof list->texts[0], "%.255s", text);
}

/* Writes a part into a build folder as a rank does. */
static void put_part(const char *build, const char *name, const char *text, struct ls_file_record *record) {
    struct ls_part part;
    expect_ok(ls_part_create(&part, build, name, (int64_t)strlen(text), error));
    expect_ok(ls_part_write(&part, text, strlen(text), error));
    expect_ok(ls_part_finish(&part, record, error));
    ls_part_abandon(&part);
}

/* The validation loss of every step that has one, and the digest of the data that it is of; NULL: not known. */
static const double *losses;
static const char *validated_on;

static enum ls_code commit(const char *run, uint64_t step, uint64_t attempt, const struct ls_file_record *records,
                           size_t count) {
    struct ls_trainer_state state = {.step = step, .attempt = attempt, .position = 30 * step, .world_size = 2};
    if (losses && losses[step] > 0) state.validated = true, state.validation_loss = losses[step];
    if (validated_on) strcpy(state.validation_digest, validated_on);
    return ls_checkpoint_commit(run, step, attempt, records, count, &state, NULL, error);
}

/* A committed checkpoint of two small parts. */
static void save(const char *run, uint64_t step, uint64_t attempt) {
    struct ls_file_record records[2];
    char build[LS_CHECKPOINT_PATH_MAX], text[64];
    snprintf(text, sizeof text, "step %llu of attempt %llu", (unsigned long long)step, (unsigned long long)attempt);
    expect_ok(ls_checkpoint_begin(run, step, attempt, 1000, build, error));
    put_part(build, "model.safetensors", text, &records[0]);
    put_part(build, "state/rank-00000.safetensors", text, &records[1]);
    expect_ok(commit(run, step, attempt, records, 2));
}

/* The newest good step, 0 for none. */
static uint64_t newest(const char *run, struct damaged_list *damaged) {
    struct damaged_list ignored = {0};
    struct ls_checkpoint_found found;
    bool any;
    struct damaged_list *list = damaged ? damaged : &ignored;
    list->count = 0;
    expect_ok(ls_checkpoint_newest(run, &any, &found, note_damaged, list, error));
    return any ? found.state.step : 0;
}

static void expect_text(const char *path, const char *text) {
    char *bytes;
    size_t count;
    expect_ok(ls_file_read(path, 4096, &bytes, &count, LS_CHECKPOINT, error));
    assert_string_equal(bytes, text);
    free(bytes);
}

static void a_run_without_checkpoints_has_none_and_that_is_no_error(void **unused) {
    (void)unused;
    char *run = harness_folder();
    assert_int_equal(newest(run, NULL), 0);
    expect_ok(ls_checkpoint_recover(run, 1, error));
    expect_ok(ls_retention_prune(run, 5, &(struct ls_retention){.keep = 2}, error));
    harness_remove(run);
}

static void the_newest_commit_is_found_with_its_state_and_latest_names_it(void **unused) {
    (void)unused;
    char *run = harness_folder();
    struct ls_checkpoint_found found;
    bool any;
    char hash[33];
    save(run, 5, 1);
    save(run, 123456789, 2);
    save(run, 20, 2);
    expect_ok(ls_checkpoint_newest(run, &any, &found, NULL, NULL, error));
    assert_true(any && found.state.step == 123456789 && found.state.attempt == 2 && found.state.world_size == 2);
    assert_string_equal(found.name, "step-123456789");
    expect_ok(ls_manifest_verify(found.path, true, NULL, hash, error));
    assert_string_equal(found.manifest_hash, hash);
    expect_text(harness_path(run, "latest"), "step-00000020\n");
    harness_remove(run);
}

static void a_damaged_checkpoint_is_named_and_the_one_before_is_used(void **unused) {
    (void)unused;
    char *run = harness_folder();
    struct damaged_list damaged;
    save(run, 10, 1);
    save(run, 20, 1);
    save(run, 30, 1);
    harness_write(harness_path(run, "checkpoints/step-00000030/model.safetensors"), "step 30 of attempt 2", 20);
    assert_int_equal(newest(run, &damaged), 20);
    assert_int_equal(damaged.count, 1);
    assert_string_equal(damaged.names[0], "step-00000030");
    assert_non_null(strstr(damaged.texts[0], "model.safetensors"));
    assert_int_equal(unlink(harness_path(run, "checkpoints/step-00000020/trainer.json")), 0);
    assert_int_equal(newest(run, &damaged), 10);
    assert_int_equal(damaged.count, 2);
    assert_int_equal(unlink(harness_path(run, "checkpoints/step-00000010/manifest.json")), 0);
    assert_int_equal(newest(run, &damaged), 0);
    assert_int_equal(damaged.count, 3);
    harness_remove(run);
}

/* A process without a descriptor left cannot say that a checkpoint is damaged: none is passed over for it. */
static void a_lack_of_descriptors_is_no_damage(void **unused) {
    (void)unused;
    char *run = harness_folder();
    struct ls_checkpoint_found found;
    struct rlimit before, low;
    bool any;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    save(run, 10, 1);
    save(run, 20, 1);
    for (int spare = 0; spare < 4; spare++) {
        struct damaged_list damaged = {0};
        const int next = open("/", O_RDONLY | O_DIRECTORY);
        low = (struct rlimit){.rlim_cur = (rlim_t)next + (rlim_t)spare, .rlim_max = before.rlim_max};
        close(next);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
        const enum ls_code code = ls_checkpoint_newest(run, &any, &found, note_damaged, &damaged, error);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
        assert_int_equal(damaged.count, 0);
        if (spare == 1) assert_int_equal(code, LS_MEMORY);
        if (code == LS_OK) assert_true(any && found.state.step == 20);
    }
    harness_remove(run);
}

static void a_folder_under_another_steps_name_is_damaged(void **unused) {
    (void)unused;
    char *run = harness_folder();
    struct damaged_list damaged;
    char from[512], to[512];
    save(run, 10, 1);
    save(run, 20, 1);
    snprintf(from, sizeof from, "%s/checkpoints/step-00000020", run);
    snprintf(to, sizeof to, "%s/checkpoints/step-00000040", run);
    assert_int_equal(rename(from, to), 0);
    assert_int_equal(newest(run, &damaged), 10);
    assert_string_equal(damaged.names[0], "step-00000040");
    harness_remove(run);
}

static void a_build_folder_is_never_taken_for_a_checkpoint(void **unused) {
    (void)unused;
    char *run = harness_folder(), build[LS_CHECKPOINT_PATH_MAX];
    struct ls_file_record record;
    save(run, 10, 1);
    expect_ok(ls_checkpoint_begin(run, 20, 1, 0, build, error));
    put_part(build, "model.safetensors", "x", &record);
    assert_int_equal(newest(run, NULL), 10);
    harness_remove(run);
}

static void parts_of_another_attempt_do_not_commit(void **unused) {
    (void)unused;
    char *run = harness_folder(), build[LS_CHECKPOINT_PATH_MAX], other[LS_CHECKPOINT_PATH_MAX];
    struct ls_file_record records[2];
    expect_ok(ls_checkpoint_begin(run, 20, 1, 0, other, error));
    put_part(other, "state/rank-00000.safetensors", "late", &records[1]);
    expect_ok(ls_checkpoint_begin(run, 20, 2, 0, build, error));
    put_part(build, "model.safetensors", "x", &records[0]);
    assert_int_equal(commit(run, 20, 2, records, 2), LS_CHECKPOINT);
    assert_non_null(strstr(error->text, "rank-00000"));
    assert_int_equal(newest(run, NULL), 0);
    assert_false(harness_exists(harness_path(run, "latest")));
    harness_remove(run);
}

static void a_commit_with_a_short_missing_or_misnamed_part_leaves_the_earlier_checkpoint(void **unused) {
    (void)unused;
    char *run = harness_folder(), build[LS_CHECKPOINT_PATH_MAX];
    struct ls_file_record records[2], good;
    save(run, 10, 1);
    expect_ok(ls_checkpoint_begin(run, 20, 1, 0, build, error));
    put_part(build, "model.safetensors", "abc", &records[0]);
    put_part(build, "state/rank-00000.safetensors", "def", &records[1]);
    good = records[1];
    records[1].bytes = 4;
    assert_int_equal(commit(run, 20, 1, records, 2), LS_CHECKPOINT);
    records[1] = good;
    const char *names[] = {"state/rank-00001.safetensors", "../model.safetensors", "trainer.json", "manifest.json"};
    for (size_t i = 0; i < 4; i++) {
        strcpy(records[1].name, names[i]);
        assert_int_equal(commit(run, 20, 1, records, 2), LS_CHECKPOINT);
    }
    records[1] = records[0];
    assert_int_equal(commit(run, 20, 1, records, 2), LS_CHECKPOINT);
    struct ls_trainer_state state = {.step = 19, .attempt = 1};
    records[1] = good;
    assert_int_equal(ls_checkpoint_commit(run, 20, 1, records, 2, &state, NULL, error), LS_CHECKPOINT);
    assert_int_equal(newest(run, NULL), 10);
    expect_text(harness_path(run, "latest"), "step-00000010\n");
    expect_ok(commit(run, 20, 1, records, 2));
    assert_int_equal(newest(run, NULL), 20);
    harness_remove(run);
}

static void what_an_earlier_try_left_is_not_in_the_commit(void **unused) {
    (void)unused;
    char *run = harness_folder(), build[LS_CHECKPOINT_PATH_MAX];
    struct ls_file_record record;
    expect_ok(ls_checkpoint_begin(run, 20, 1, 0, build, error));
    put_part(build, "state/rank-00007.safetensors", "old", &record);
    expect_ok(ls_checkpoint_begin(run, 20, 1, 0, build, error));
    assert_false(harness_exists(harness_path(build, "state/rank-00007.safetensors")));
    harness_write(harness_path(build, "core.1234"), "x", 1);
    harness_write(harness_path(build, "state/rank-00009.safetensors"), "x", 1);
    put_part(build, "model.safetensors", "abc", &record);
    expect_ok(commit(run, 20, 1, &record, 1));
    assert_false(harness_exists(harness_path(run, "checkpoints/step-00000020/core.1234")));
    assert_false(harness_exists(harness_path(run, "checkpoints/step-00000020/state/rank-00009.safetensors")));
    assert_int_equal(newest(run, NULL), 20);
    harness_remove(run);
}

static void a_second_save_of_a_step_puts_the_first_aside(void **unused) {
    (void)unused;
    char *run = harness_folder();
    save(run, 20, 1);
    save(run, 20, 3);
    save(run, 20, 3);
    assert_true(harness_exists(harness_path(run, "checkpoints/step-00000020.superseded-a3")));
    /* The list knows committed folders only, by step. */
    uint64_t *steps;
    size_t count;
    save(run, 7, 3);
    expect_ok(ls_checkpoint_list(run, &steps, &count, error));
    assert_int_equal(count, 2);
    assert_int_equal(steps[0], 7);
    assert_int_equal(steps[1], 20);
    free(steps);
    expect_text(harness_path(run, "checkpoints/step-00000020/model.safetensors"), "step 20 of attempt 3");
    assert_int_equal(newest(run, NULL), 20);
    expect_ok(ls_retention_prune(run, 20, &(struct ls_retention){.keep = 2}, error));
    assert_false(harness_exists(harness_path(run, "checkpoints/step-00000020.superseded-a3")));
    assert_int_equal(newest(run, NULL), 20);
    harness_remove(run);
}

static void recovery_puts_a_superseded_folder_back_when_its_replacement_never_came(void **unused) {
    (void)unused;
    char *run = harness_folder(), build[LS_CHECKPOINT_PATH_MAX];
    char from[512], to[512];
    save(run, 10, 1);
    save(run, 20, 1);
    /* A crash between the two renames of a commit of attempt 2. */
    snprintf(from, sizeof from, "%s/checkpoints/step-00000020", run);
    snprintf(to, sizeof to, "%s/checkpoints/step-00000020.superseded-a2", run);
    assert_int_equal(rename(from, to), 0);
    expect_ok(ls_checkpoint_begin(run, 20, 2, 0, build, error));
    expect_ok(ls_checkpoint_recover(run, 3, error));
    assert_int_equal(newest(run, NULL), 20);
    assert_false(harness_exists(build));
    assert_false(harness_exists(to));
    expect_text(harness_path(run, "latest"), "step-00000020\n");
    harness_remove(run);
}

static bool has(const char *run, const char *name) {
    char path[LS_CHECKPOINT_PATH_MAX];
    snprintf(path, sizeof path, "checkpoints/%s", name);
    return access(harness_path(run, path), F_OK) == 0;
}

static void a_rejected_checkpoint_is_none_and_stays_until_a_later_one_is_kept(void **unused) {
    (void)unused;
    char *run = harness_folder();
    save(run, 10, 1);
    save(run, 20, 1);
    save(run, 30, 1);
    expect_ok(ls_checkpoint_reject(run, "step-00000030", 2, error));
    assert_int_equal(newest(run, NULL), 20);
    assert_true(has(run, "step-00000030.rejected-a2"));
    expect_ok(ls_checkpoint_recover(run, 2, error)); /* does not bring it back */
    assert_int_equal(newest(run, NULL), 20);
    expect_text(harness_path(run, "latest"), "step-00000020\n");
    expect_ok(ls_retention_prune(run, 20, &(struct ls_retention){.keep = 3}, error));
    assert_true(has(run, "step-00000030.rejected-a2"));
    save(run, 30, 2);                                                /* the step comes again */
    expect_ok(ls_checkpoint_reject(run, "step-00000030", 2, error)); /* and is rejected again: the first makes room */
    assert_int_equal(newest(run, NULL), 20);
    save(run, 40, 3);
    expect_ok(ls_retention_prune(run, 40, &(struct ls_retention){.keep = 3}, error));
    assert_false(has(run, "step-00000030.rejected-a2"));
    assert_true(has(run, "step-00000010") && has(run, "step-00000020") && has(run, "step-00000040"));
    assert_int_equal(ls_checkpoint_reject(run, "../elsewhere", 2, error), LS_CHECKPOINT);
    assert_int_equal(ls_checkpoint_reject(run, "step-00000030.rejected-a2", 2, error), LS_CHECKPOINT);
    harness_remove(run);
}

static void all_from_a_step_on_are_rejected_superseded_ones_too(void **unused) {
    (void)unused;
    char *run = harness_folder();
    save(run, 10, 1);
    save(run, 20, 1);
    save(run, 20, 2); /* puts the first aside */
    save(run, 30, 2);
    assert_true(has(run, "step-00000020.superseded-a2"));
    expect_ok(ls_checkpoint_reject_from(run, 20, 3, error));
    expect_ok(ls_checkpoint_recover(run, 3, error));
    assert_int_equal(newest(run, NULL), 10);
    assert_false(has(run, "step-00000020") || has(run, "step-00000030") || has(run, "step-00000020.superseded-a2"));
    expect_ok(ls_checkpoint_reject_from(run, 20, 3, error)); /* again: nothing is left to do */
    assert_int_equal(newest(run, NULL), 10);
    harness_remove(run);
}

static void recovery_keeps_the_build_folders_of_the_living_attempt(void **unused) {
    (void)unused;
    char *run = harness_folder(), old[LS_CHECKPOINT_PATH_MAX], living[LS_CHECKPOINT_PATH_MAX];
    expect_ok(ls_checkpoint_begin(run, 20, 2, 0, old, error));
    expect_ok(ls_checkpoint_begin(run, 20, 3, 0, living, error));
    char removed[512], other[512];
    snprintf(removed, sizeof removed, "%s/checkpoints/.step-00000010.removed", run);
    snprintf(other, sizeof other, "%s/checkpoints/notes", run);
    assert_true(mkdir(removed, 0755) == 0 && mkdir(other, 0755) == 0);
    expect_ok(ls_checkpoint_recover(run, 3, error));
    assert_false(harness_exists(old));
    assert_false(harness_exists(removed));
    assert_true(harness_exists(living));
    assert_true(harness_exists(other));
    harness_remove(run);
}

static void pruning_keeps_the_newest_and_what_lies_above(void **unused) {
    (void)unused;
    char *run = harness_folder(), outside[512];
    snprintf(outside, sizeof outside, "%s/precious", run);
    harness_write(outside, "x", 1);
    for (uint64_t step = 10; step <= 50; step += 10) save(run, step, 1);
    /* A link inside a checkpoint is removed, not followed. */
    assert_int_equal(symlink(run, harness_path(run, "checkpoints/step-00000010/state/link")), 0);
    expect_ok(ls_retention_prune(run, 40, &(struct ls_retention){.keep = 2}, error));
    for (int step = 10; step <= 50; step += 10) {
        char name[64];
        snprintf(name, sizeof name, "checkpoints/step-%08d", step);
        assert_int_equal(harness_exists(harness_path(run, name)), step >= 30);
    }
    assert_true(harness_exists(outside));
    expect_ok(ls_retention_prune(run, 50, &(struct ls_retention){.keep = 1}, error));
    assert_int_equal(newest(run, NULL), 50);
    assert_false(harness_exists(harness_path(run, "checkpoints/step-00000040")));
    harness_remove(run);
}

/* Checkpoints of steps 1 to 12 with these losses, 0: none; then what `retention` keeps, as a text of their steps. */
static char *kept_of(const double *with_losses, struct ls_retention retention, uint64_t step) {
    static char kept[128];
    char *run = harness_folder();
    size_t count, used = 0;
    uint64_t *steps;
    losses = with_losses;
    for (uint64_t s = 1; s <= 12; s++) save(run, s, 1);
    losses = NULL;
    expect_ok(ls_retention_prune(run, step, &retention, error));
    expect_ok(ls_retention_prune(run, step, &retention, error)); /* what was kept has the same reasons again */
    expect_ok(ls_checkpoint_list(run, &steps, &count, error));
    kept[0] = 0;
    for (size_t i = 0; i < count; i++) used += (size_t)snprintf(kept + used, sizeof kept - used, " %d", (int)steps[i]);
    free(steps);
    harness_remove(run);
    return kept;
}

static void what_has_a_reason_to_stay_stays(void **unused) {
    (void)unused;
    /* Lowest: 4, then 7 and 9 alike, of which 9 is newer; 12 is the newest and has the highest. */
    static const double some[13] = {0, 9, 8, 0, 1, 7, 6, 2, 5, 2, 0, 3, 11};
    assert_string_equal(kept_of(some, (struct ls_retention){.keep = 1}, 12), " 12");
    assert_string_equal(kept_of(some, (struct ls_retention){.keep = 1, .keep_best = 1}, 12), " 4 12");
    assert_string_equal(kept_of(some, (struct ls_retention){.keep = 1, .keep_best = 2}, 12), " 4 9 12");
    assert_string_equal(kept_of(some, (struct ls_retention){.keep = 2, .keep_best = 3}, 12), " 4 7 9 11 12");
    assert_string_equal(kept_of(some, (struct ls_retention){.keep = 1, .keep_every = 5}, 12), " 5 10 12");
    assert_string_equal(kept_of(some, (struct ls_retention){.keep = 2, .keep_every = 6, .keep_best = 1}, 12),
                        " 4 6 11 12");
    assert_string_equal(kept_of(some, (struct ls_retention){.keep = 0, .keep_every = 6, .keep_best = 1}, 12),
                        " 1 2 3 4 5 6 7 8 9 10 11 12");
    /* What lies above the step is neither counted nor removed. */
    assert_string_equal(kept_of(some, (struct ls_retention){.keep = 1, .keep_best = 1}, 3),
                        " 2 3 4 5 6 7 8 9 10 11 12");
    assert_string_equal(kept_of(NULL, (struct ls_retention){.keep = 1, .keep_best = 3}, 12), " 12");
}

static void best_links_to_the_lowest_loss_and_moves_with_it(void **unused) {
    (void)unused;
    static const double falling[] = {0, 3, 2, 5, 1}, none[5] = {0};
    static const int best[] = {0, 1, 2, 2, 4};
    char *run = harness_folder();
    struct ls_checkpoint_found found;
    losses = none;
    save(run, 4, 1);
    expect_ok(ls_retention_mark_best(run, 4, error));
    assert_false(harness_exists(harness_path(run, "best")));
    losses = falling;
    for (uint64_t step = 1; step <= 4; step++) {
        save(run, step, 2);
        expect_ok(ls_retention_mark_best(run, step, error));
        expect_ok(ls_checkpoint_open(harness_path(run, "best"), &found, error));
        assert_int_equal(found.state.step, best[step]);
        assert_true(found.state.validated && found.state.validation_loss == falling[best[step]]);
    }
    losses = NULL;
    harness_remove(run);
}

static void losses_on_other_validation_data_do_not_compare(void **unused) {
    (void)unused;
    static const double some[] = {0, 1, 2, 9, 8, 8.5};
    static const char before[] = "00000000000000000000000000000001", after[] = "00000000000000000000000000000002";
    char *run = harness_folder();
    struct ls_checkpoint_found found;
    losses = some;
    for (uint64_t step = 1; step <= 5; step++) {
        validated_on = step < 3 ? before : after;
        save(run, step, 1);
    }
    validated_on = NULL;
    losses = NULL;
    expect_ok(ls_retention_mark_best(run, 2, error));
    expect_ok(ls_checkpoint_open(harness_path(run, "best"), &found, error));
    assert_int_equal(found.state.step, 1);
    expect_ok(ls_retention_mark_best(run, 5, error));
    expect_ok(ls_checkpoint_open(harness_path(run, "best"), &found, error));
    assert_int_equal(found.state.step, 4);
    expect_ok(ls_retention_prune(run, 5, &(struct ls_retention){.keep = 1, .keep_best = 1}, error));
    assert_false(has(run, "step-00000001"));
    assert_true(has(run, "step-00000004"));
    harness_remove(run);
}

static bool has_link(const char *path) {
    struct stat status;
    return lstat(path, &status) == 0;
}

static void no_link_names_a_checkpoint_that_is_gone(void **unused) {
    (void)unused;
    static const double some[] = {0, 1, 2, 3};
    char *run = harness_folder();
    struct ls_checkpoint_found found;
    losses = some;
    for (uint64_t step = 1; step <= 3; step++) save(run, step, 1);
    losses = NULL;
    expect_ok(ls_retention_mark_best(run, 3, error));
    expect_ok(ls_checkpoint_link(run, "final", 1, error));
    expect_ok(ls_checkpoint_reject(run, "step-00000001", 2, error));
    expect_ok(ls_retention_mark_best(run, 3, error));
    expect_ok(ls_checkpoint_open(harness_path(run, "best"), &found, error));
    assert_int_equal(found.state.step, 2);
    /* Nobody asks for the best any more, and so it does not stay. */
    expect_ok(ls_retention_prune(run, 3, &(struct ls_retention){.keep = 1}, error));
    assert_false(has_link(harness_path(run, "best")) || has_link(harness_path(run, "final")));
    expect_ok(ls_retention_mark_best(run, 3, error));
    assert_true(has_link(harness_path(run, "best")));
    expect_ok(ls_checkpoint_reject_from(run, 1, 2, error));
    expect_ok(ls_checkpoint_recover(run, 2, error));
    expect_ok(ls_retention_mark_best(run, 3, error));
    assert_false(has_link(harness_path(run, "best")) || has_link(harness_path(run, "latest")));
    harness_remove(run);
}

static void final_links_to_the_last_step_and_moves_with_it(void **unused) {
    (void)unused;
    char *run = harness_folder();
    struct ls_checkpoint_found found;
    save(run, 10, 1);
    save(run, 20, 1);
    expect_ok(ls_checkpoint_link(run, "final", 10, error));
    expect_ok(ls_checkpoint_link(run, "final", 20, error));
    expect_ok(ls_checkpoint_open(harness_path(run, "final"), &found, error));
    assert_int_equal(found.state.step, 20);
    harness_remove(run);
}

static void too_little_space_is_refused_with_both_numbers_before_anything_is_made(void **unused) {
    (void)unused;
    char *run = harness_folder(), build[LS_CHECKPOINT_PATH_MAX];
    save(run, 10, 1);
    assert_int_equal(ls_checkpoint_begin(run, 20, 1, INT64_C(1) << 61, build, error), LS_CHECKPOINT);
    assert_non_null(strstr(error->text, "2305843009213693952 bytes"));
    assert_non_null(strstr(error->text, "free"));
    assert_false(harness_exists(build));
    assert_int_equal(newest(run, NULL), 10);
    harness_remove(run);
}

static void a_write_to_a_full_device_names_the_bytes_needed(void **unused) {
    (void)unused;
    struct ls_part part;
    char text[100] = {0};
    expect_ok(ls_part_create(&part, "/dev", "full", sizeof text, error));
    assert_int_equal(ls_part_write(&part, text, sizeof text, error), LS_CHECKPOINT);
    assert_non_null(strstr(error->text, "100 bytes needed"));
    ls_part_abandon(&part);
}

/* A file system of 4 MiB of our own; false when this process may not mount. */
static bool mount_small(const char *folder) {
    return unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount("none", folder, "tmpfs", 0, "size=4m") == 0;
}

static void a_full_disk_is_noticed_before_the_first_byte_and_keeps_earlier_checkpoints(void **unused) {
    (void)unused;
    char *run = harness_folder(), build[LS_CHECKPOINT_PATH_MAX];
    struct ls_config config = harness_gpt2();
    struct ls_model *model;
    struct ls_checkpoint_writer *writer;
    if (!mount_small(run)) {
        printf("skip - a full disk keeps earlier checkpoints # mounting needs root\n");
        rmdir(run);
        free(run);
        skip();
    }
    harness_checkpoint(run, &config, 1, 10, 1, 0);
    config.model.vocab_size = 100000;
    expect_ok(ls_model_create(&config, &model, error));
    expect_ok(ls_checkpoint_begin(run, 20, 1, 0, build, error));
    struct ls_checkpoint_writer_options options = {.folder = build,
                                                   .model = model,
                                                   .config = &config,
                                                   .rank = 0,
                                                   .world_size = 1,
                                                   .replicas = 1,
                                                   .unit = 1,
                                                   .document_token = -1};
    assert_int_equal(ls_checkpoint_writer_create(&options, &writer, error), LS_CHECKPOINT);
    assert_non_null(strstr(error->text, "bytes needed"));
    assert_non_null(strstr(error->text, strerror(ENOSPC)));
    assert_int_equal(newest(run, NULL), 10);
    /* With the reservation given back, a small checkpoint fits again. */
    expect_ok(ls_checkpoint_recover(run, 2, error));
    config.model.vocab_size = 29;
    harness_checkpoint(run, &config, 1, 20, 2, 0);
    assert_int_equal(newest(run, NULL), 20);
    ls_model_destroy(model);
    assert_int_equal(umount(run), 0);
    harness_remove(run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_run_without_checkpoints_has_none_and_that_is_no_error),
        cmocka_unit_test(the_newest_commit_is_found_with_its_state_and_latest_names_it),
        cmocka_unit_test(a_damaged_checkpoint_is_named_and_the_one_before_is_used),
        cmocka_unit_test(a_lack_of_descriptors_is_no_damage),
        cmocka_unit_test(a_folder_under_another_steps_name_is_damaged),
        cmocka_unit_test(a_build_folder_is_never_taken_for_a_checkpoint),
        cmocka_unit_test(parts_of_another_attempt_do_not_commit),
        cmocka_unit_test(a_commit_with_a_short_missing_or_misnamed_part_leaves_the_earlier_checkpoint),
        cmocka_unit_test(what_an_earlier_try_left_is_not_in_the_commit),
        cmocka_unit_test(a_second_save_of_a_step_puts_the_first_aside),
        cmocka_unit_test(recovery_puts_a_superseded_folder_back_when_its_replacement_never_came),
        cmocka_unit_test(a_rejected_checkpoint_is_none_and_stays_until_a_later_one_is_kept),
        cmocka_unit_test(all_from_a_step_on_are_rejected_superseded_ones_too),
        cmocka_unit_test(recovery_keeps_the_build_folders_of_the_living_attempt),
        cmocka_unit_test(pruning_keeps_the_newest_and_what_lies_above),
        cmocka_unit_test(what_has_a_reason_to_stay_stays),
        cmocka_unit_test(best_links_to_the_lowest_loss_and_moves_with_it),
        cmocka_unit_test(losses_on_other_validation_data_do_not_compare),
        cmocka_unit_test(no_link_names_a_checkpoint_that_is_gone),
        cmocka_unit_test(final_links_to_the_last_step_and_moves_with_it),
        cmocka_unit_test(too_little_space_is_refused_with_both_numbers_before_anything_is_made),
        cmocka_unit_test(a_write_to_a_full_device_names_the_bytes_needed),
        cmocka_unit_test(a_full_disk_is_noticed_before_the_first_byte_and_keeps_earlier_checkpoints),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
