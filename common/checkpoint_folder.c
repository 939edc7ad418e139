/* Checkpoint folders of a run: begin, commit, find, recover, prune. */
#define _GNU_SOURCE
#include "common/checkpoint_folder.h"

#include "common/files.h"
#include "common/log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { TRAINER_STATE_BYTES_MAX = 1 << 20, FOLDER_DEPTH_MAX = 4, NAME_DIGITS = 8 };

static enum ls_code fail_errno(struct ls_error *error, const char *what, const char *path) {
    int cause = errno;
    return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "checkpoint: cannot %s %s: %s. Check the run directory.", what,
                   path, strerror(cause));
}

static enum ls_code join(struct ls_error *error, char path[LS_CHECKPOINT_PATH_MAX], const char *folder,
                         const char *name) {
    if (snprintf(path, LS_CHECKPOINT_PATH_MAX, "%s/%s", folder, name) < LS_CHECKPOINT_PATH_MAX) return LS_OK;
    return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                   "checkpoint: the path %.200s... is too long. Use a shorter run directory.", folder);
}

/* Names. */

void ls_checkpoint_name(uint64_t step, char name[LS_CHECKPOINT_NAME_MAX]) {
    snprintf(name, LS_CHECKPOINT_NAME_MAX, "step-%0*" PRIu64, NAME_DIGITS, step);
}

static void superseded_name(uint64_t step, uint64_t attempt, char name[LS_CHECKPOINT_NAME_MAX]) {
    snprintf(name, LS_CHECKPOINT_NAME_MAX, "step-%0*" PRIu64 ".superseded-a%" PRIu64, NAME_DIGITS, step, attempt);
}

/* Reads decimal digits; false when there are none or they exceed 64 bits. */
static bool take_number(const char **text, uint64_t *number) {
    const char *start = *text;
    for (*number = 0; **text >= '0' && **text <= '9'; ++*text)
        if (__builtin_mul_overflow(*number, (uint64_t)10, number) ||
            __builtin_add_overflow(*number, (uint64_t)(**text - '0'), number))
            return false;
    return *text > start;
}

/* "step-00000200" exactly as ls_checkpoint_name() writes it, followed by `rest`. */
static bool parse_name(const char *name, uint64_t *step, const char **rest) {
    char expected[LS_CHECKPOINT_NAME_MAX];
    const char *next = name + 5;
    if (strncmp(name, "step-", 5) != 0 || !take_number(&next, step)) return false;
    ls_checkpoint_name(*step, expected);
    *rest = next;
    return strlen(expected) == (size_t)(next - name) && strncmp(name, expected, strlen(expected)) == 0;
}

static bool is_committed(const char *name, uint64_t *step) {
    const char *rest;
    return parse_name(name, step, &rest) && *rest == 0;
}

/* A step's name with a mark and a number behind it. */
static bool is_marked(const char *name, const char *mark, uint64_t *step, uint64_t *attempt) {
    const char *rest;
    if (!parse_name(name, step, &rest) || strncmp(rest, mark, strlen(mark)) != 0) return false;
    rest += strlen(mark);
    return take_number(&rest, attempt) && *rest == 0;
}

static const char superseded_mark[] = ".superseded-a", rejected_mark[] = ".rejected-a";

/* A build folder ".step-00000200.a2", or a folder half removed, which counts as of attempt 0. */
static bool is_unfinished(const char *name, uint64_t *step, uint64_t *attempt) {
    const char *rest;
    if (*name != '.' || !parse_name(name + 1, step, &rest) || *rest != '.') return false;
    const char *next = rest + 2;
    if (rest[1] != 'a' || !take_number(&next, attempt) || *next) *attempt = 0;
    return true;
}

static enum ls_code checkpoints_path(const char *run_dir, char path[LS_CHECKPOINT_PATH_MAX], struct ls_error *error) {
    return join(error, path, run_dir, "checkpoints");
}

enum ls_code ls_checkpoint_path(const char *run_dir, uint64_t step, char path[LS_CHECKPOINT_PATH_MAX],
                                struct ls_error *error) {
    char folder[LS_CHECKPOINT_PATH_MAX], name[LS_CHECKPOINT_NAME_MAX];
    ls_checkpoint_name(step, name);
    enum ls_code code = checkpoints_path(run_dir, folder, error);
    return code ? code : join(error, path, folder, name);
}

enum ls_code ls_checkpoint_build_path(const char *run_dir, uint64_t step, uint64_t attempt,
                                      char path[LS_CHECKPOINT_PATH_MAX], struct ls_error *error) {
    char folder[LS_CHECKPOINT_PATH_MAX], name[LS_CHECKPOINT_NAME_MAX];
    snprintf(name, sizeof name, ".step-%0*" PRIu64 ".a%" PRIu64, NAME_DIGITS, step, attempt);
    enum ls_code code = checkpoints_path(run_dir, folder, error);
    return code ? code : join(error, path, folder, name);
}

/* Space. */

static int64_t free_bytes(const char *path) {
    struct statvfs status;
    return statvfs(path, &status) ? -1 : (int64_t)status.f_bavail * (int64_t)status.f_frsize;
}

enum ls_code ls_checkpoint_check_space(const char *path, int64_t bytes_needed, struct ls_error *error) {
    int64_t available = free_bytes(path);
    if (available < 0) return fail_errno(error, "ask for the free space of", path);
    if (available >= bytes_needed) return LS_OK;
    return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                   "checkpoint: %s needs %" PRId64 " bytes, the file system has %" PRId64
                   " free. Earlier checkpoints are untouched: free some space, then resume.",
                   path, bytes_needed, available);
}

enum ls_code ls_checkpoint_write_failed(const char *path, int cause, int64_t bytes_needed, struct ls_error *error) {
    if (cause != ENOSPC && cause != EDQUOT) {
        errno = cause;
        return fail_errno(error, "write", path);
    }
    char folder[LS_CHECKPOINT_PATH_MAX];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash && slash != folder) *slash = 0;
    return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                   "checkpoint: cannot write %s: %s (%" PRId64 " bytes needed, %" PRId64
                   " free). Earlier checkpoints are untouched: free some space, then resume.",
                   path, strerror(cause), bytes_needed, free_bytes(folder));
}

/* Removing. Links are removed, never followed. */

static enum ls_code remove_content(int folder, const char *path, int depth, struct ls_error *error);

static enum ls_code remove_entry(int folder, const char *name, int depth, struct ls_error *error) {
    if (!unlinkat(folder, name, 0) || errno == ENOENT) return LS_OK;
    if (errno != EISDIR && errno != EPERM) return fail_errno(error, "remove", name);
    int below = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (below < 0) return fail_errno(error, "open", name);
    enum ls_code code = depth < FOLDER_DEPTH_MAX
                            ? remove_content(below, name, depth + 1, error)
                            : ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                                      "checkpoint: %s holds folders too deep to be ours. Remove it by hand.", name);
    close(below);
    if (!code && unlinkat(folder, name, AT_REMOVEDIR)) code = fail_errno(error, "remove", name);
    return code;
}

static enum ls_code remove_content(int folder, const char *path, int depth, struct ls_error *error) {
    int again = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = again < 0 ? NULL : fdopendir(again);
    if (!entries) {
        enum ls_code code = fail_errno(error, "list", path);
        if (again >= 0) close(again);
        return code;
    }
    enum ls_code code = LS_OK;
    for (struct dirent *entry; !code && (entry = readdir(entries));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            code = remove_entry(folder, entry->d_name, depth, error);
    closedir(entries);
    return code;
}

/* Removes the folder `name` of the open folder `checkpoints`. A committed name first becomes an unfinished one, so that
 * a crash in between leaves nothing that looks like a checkpoint. */
static enum ls_code remove_checkpoint(int checkpoints, const char *name, struct ls_error *error) {
    char hidden[LS_CHECKPOINT_NAME_MAX + 16];
    if (*name == '.') return remove_entry(checkpoints, name, 0, error);
    snprintf(hidden, sizeof hidden, ".%s.removed", name);
    enum ls_code code = remove_entry(checkpoints, hidden, 0, error);
    if (!code && renameat(checkpoints, name, checkpoints, hidden)) code = fail_errno(error, "rename", name);
    return code ? code : remove_entry(checkpoints, hidden, 0, error);
}

/* Beginning. */

enum ls_code ls_checkpoint_begin(const char *run_dir, uint64_t step, uint64_t attempt, int64_t bytes_needed,
                                 char path[LS_CHECKPOINT_PATH_MAX], struct ls_error *error) {
    char folder[LS_CHECKPOINT_PATH_MAX], state[LS_CHECKPOINT_PATH_MAX];
    enum ls_code code = checkpoints_path(run_dir, folder, error);
    if (!code) code = ls_folder_make(folder, LS_CHECKPOINT, error);
    /* The commit's fsync makes names in checkpoints/ last; its own name must last before. */
    if (!code) code = ls_folder_sync(run_dir, LS_CHECKPOINT, error);
    if (!code) code = ls_checkpoint_build_path(run_dir, step, attempt, path, error);
    if (!code) code = remove_entry(AT_FDCWD, path, 0, error);
    if (!code && bytes_needed > 0) code = ls_checkpoint_check_space(folder, bytes_needed, error);
    if (!code) code = join(error, state, path, "state");
    if (!code) code = ls_folder_make(state, LS_CHECKPOINT, error);
    return code;
}

/* Committing. */

static bool is_listed(const struct ls_file_record *files, size_t count, const char *prefix, const char *name) {
    char whole[LS_RECORD_NAME_MAX + 256];
    snprintf(whole, sizeof whole, "%s%s", prefix, name);
    for (size_t i = 0; i < count; i++)
        if (strcmp(files[i].name, whole) == 0) return true;
    return false;
}

/* Removes what is in `folder` and not listed as prefix + name; `state` itself stays. */
static enum ls_code remove_unlisted(int folder, const char *prefix, const struct ls_file_record *files, size_t count,
                                    struct ls_error *error) {
    int again = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = again < 0 ? NULL : fdopendir(again);
    if (!entries) {
        enum ls_code code = fail_errno(error, "list", *prefix ? prefix : "the build folder");
        if (again >= 0) close(again);
        return code;
    }
    enum ls_code code = LS_OK;
    for (struct dirent *entry; !code && (entry = readdir(entries));) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || (!*prefix && strcmp(name, "state") == 0)) continue;
        if (!is_listed(files, count, prefix, name)) code = remove_entry(folder, name, 0, error);
    }
    closedir(entries);
    return code;
}

static enum ls_code check_part(int folder, const struct ls_file_record *record, struct ls_error *error) {
    struct stat status;
    int file = ls_manifest_open_file(folder, record->name, error);
    if (file < 0) return ls_fail_within(error, "checkpoint: a part that was reported as written is missing");
    enum ls_code code = LS_OK;
    if (fstat(file, &status) || fsync(file))
        code = fail_errno(error, "fsync", record->name);
    else if (status.st_size != record->bytes)
        code = ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                       "checkpoint: part %s has %lld bytes, its writer reported %lld. Is the run directory the same on "
                       "every host?",
                       record->name, (long long)status.st_size, (long long)record->bytes);
    close(file);
    return code;
}

static enum ls_code check_parts(const char *build, const struct ls_file_record *files, size_t count,
                                struct ls_error *error) {
    int folder = open(build, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return fail_errno(error, "open the build folder", build);
    int state = openat(folder, "state", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    enum ls_code code = state < 0 ? fail_errno(error, "open the state folder of", build) : LS_OK;
    for (size_t i = 0; i < count && !code; i++) code = check_part(folder, &files[i], error);
    if (!code) code = remove_unlisted(folder, "", files, count, error);
    if (!code) code = remove_unlisted(state, "state/", files, count, error);
    if (!code && fsync(state)) code = fail_errno(error, "fsync the state folder of", build);
    if (state >= 0) close(state);
    close(folder);
    return code;
}

static enum ls_code write_text(const char *folder, const char *name, const char *text, struct ls_error *error) {
    char path[LS_CHECKPOINT_PATH_MAX];
    enum ls_code code = join(error, path, folder, name);
    if (!code) code = ls_checkpoint_check_space(folder, (int64_t)strlen(text), error);
    return code ? code : ls_file_replace(path, text, strlen(text), LS_CHECKPOINT, error);
}

/* The manifest of the parts and trainer.json; refuses parts of wrong or repeated names. *json is malloc'ed. */
static enum ls_code make_manifest(uint64_t step, uint64_t attempt, const struct ls_file_record *files, size_t count,
                                  const char *trainer_json, char **json, struct ls_error *error) {
    struct ls_file_record *records = calloc(count + 1, sizeof *records);
    if (!records) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "checkpoint: no memory for %zu records", count);
    if (count) memcpy(records, files, count * sizeof *records);
    strcpy(records[count].name, "trainer.json");
    records[count].bytes = (int64_t)strlen(trainer_json);
    ls_hash_bytes(trainer_json, strlen(trainer_json), records[count].hash);
    struct ls_manifest manifest = {.step = step, .attempt = attempt, .files = records, .file_count = count + 1};
    enum ls_code code = ls_manifest_write(&manifest, json, error);
    free(records);
    return code;
}

/* Puts a folder of that step aside, gives the build folder its name, and makes both last. */
static enum ls_code rename_into_place(const char *run_dir, const char *build, uint64_t step, uint64_t attempt,
                                      struct ls_error *error) {
    char folder[LS_CHECKPOINT_PATH_MAX], name[LS_CHECKPOINT_NAME_MAX], aside[LS_CHECKPOINT_NAME_MAX];
    ls_checkpoint_name(step, name);
    superseded_name(step, attempt, aside);
    enum ls_code code = checkpoints_path(run_dir, folder, error);
    if (code) return code;
    int checkpoints = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (checkpoints < 0) return fail_errno(error, "open", folder);
    if (!faccessat(checkpoints, name, F_OK, AT_SYMLINK_NOFOLLOW)) {
        code = faccessat(checkpoints, aside, F_OK, AT_SYMLINK_NOFOLLOW) ? LS_OK
                                                                        : remove_checkpoint(checkpoints, aside, error);
        if (!code && renameat(checkpoints, name, checkpoints, aside)) code = fail_errno(error, "put aside", name);
    }
    if (!code && renameat(AT_FDCWD, build, checkpoints, name)) code = fail_errno(error, "rename into place", build);
    if (!code && fsync(checkpoints)) code = fail_errno(error, "fsync", folder);
    close(checkpoints);
    return code;
}

static enum ls_code write_latest(const char *run_dir, uint64_t step, struct ls_error *error) {
    char name[LS_CHECKPOINT_NAME_MAX];
    ls_checkpoint_name(step, name);
    strcat(name, "\n");
    return write_text(run_dir, "latest", name, error);
}

enum ls_code ls_checkpoint_commit(const char *run_dir, uint64_t step, uint64_t attempt,
                                  const struct ls_file_record *files, size_t count,
                                  const struct ls_trainer_state *state, char manifest_hash[33],
                                  struct ls_error *error) {
    char build[LS_CHECKPOINT_PATH_MAX], *trainer = NULL, *manifest = NULL;
    struct ls_error late;
    if (state->step != step || state->attempt != attempt)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                       "checkpoint: the state is of step %" PRIu64 " and attempt %" PRIu64
                       ", the commit of step %" PRIu64 " and attempt %" PRIu64,
                       state->step, state->attempt, step, attempt);
    enum ls_code code = ls_checkpoint_build_path(run_dir, step, attempt, build, error);
    if (!code) code = ls_trainer_state_write(state, &trainer, error);
    if (!code) code = make_manifest(step, attempt, files, count, trainer, &manifest, error);
    if (!code) code = check_parts(build, files, count, error);
    if (!code) code = write_text(build, "trainer.json", trainer, error);
    if (!code) code = write_text(build, "manifest.json", manifest, error);
    if (!code && manifest_hash) ls_hash_bytes(manifest, strlen(manifest), manifest_hash);
    free(manifest);
    free(trainer);
    if (!code) code = rename_into_place(run_dir, build, step, attempt, error);
    if (!code && write_latest(run_dir, step, &late))
        ls_log(LS_LOG_WARNING, "checkpoint of step %" PRIu64 " is committed, but: %s", step, late.text);
    return code;
}

/* Finding. */

static enum ls_code read_state(const char *path, const struct ls_manifest *manifest, struct ls_trainer_state *state,
                               struct ls_error *error) {
    char *json;
    size_t count;
    if (!ls_manifest_find(manifest, "trainer.json"))
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "manifest.json does not list trainer.json");
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return ls_fail(error, ls_file_code(errno, LS_CHECKPOINT), ls_file_scope(errno, LS_SCOPE_JOB),
                       "cannot open %s: %s", path, strerror(errno));
    enum ls_code code =
        ls_file_read_under(folder, "trainer.json", TRAINER_STATE_BYTES_MAX, &json, &count, LS_CHECKPOINT, error);
    close(folder);
    if (code) return code;
    code = ls_trainer_state_parse(json, count, state, error);
    free(json);
    if (!code && (state->step != manifest->step || state->attempt != manifest->attempt))
        code = ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                       "trainer.json and manifest.json are of different steps or attempts");
    return code;
}

enum ls_code ls_checkpoint_open(const char *path, struct ls_checkpoint_found *checkpoint, struct ls_error *error) {
    struct ls_checkpoint_found found = {0};
    struct ls_manifest *manifest = NULL;
    if (snprintf(found.path, sizeof found.path, "%s", path) >= (int)sizeof found.path)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "checkpoint: path too long: %.200s...", path);
    enum ls_code code = ls_manifest_verify(path, true, &manifest, found.manifest_hash, error);
    if (!code) code = read_state(path, manifest, &found.state, error);
    ls_manifest_destroy(manifest);
    if (code) return code;
    ls_checkpoint_name(found.state.step, found.name);
    *checkpoint = found;
    return LS_OK;
}

struct folder_entry {
    char name[LS_CHECKPOINT_NAME_MAX];
    uint64_t step;
    uint64_t attempt;
    enum { FOLDER_COMMITTED, FOLDER_SUPERSEDED, FOLDER_REJECTED, FOLDER_UNFINISHED } kind;
};

/* By step, newest first; a step's committed folder before those it superseded, of these the latest first. */
static int compare_entries(const void *left, const void *right) {
    const struct folder_entry *a = left, *b = right;
    if (a->step != b->step) return a->step > b->step ? -1 : 1;
    if (a->kind != b->kind) return a->kind < b->kind ? -1 : 1;
    return a->attempt == b->attempt ? 0 : a->attempt > b->attempt ? -1 : 1;
}

static bool classify(const char *name, struct folder_entry *entry) {
    *entry = (struct folder_entry){0};
    if (strlen(name) >= sizeof entry->name) return false;
    strcpy(entry->name, name);
    if (is_committed(name, &entry->step))
        entry->kind = FOLDER_COMMITTED;
    else if (is_marked(name, superseded_mark, &entry->step, &entry->attempt))
        entry->kind = FOLDER_SUPERSEDED;
    else if (is_marked(name, rejected_mark, &entry->step, &entry->attempt))
        entry->kind = FOLDER_REJECTED;
    else if (is_unfinished(name, &entry->step, &entry->attempt))
        entry->kind = FOLDER_UNFINISHED;
    else
        return false;
    return true;
}

/* Lists the folders of RUN/checkpoints that have one of our names, sorted. No such folder: none. *entries is malloc'ed.
 */
static enum ls_code list_folders(const char *folder, struct folder_entry **entries, size_t *count,
                                 struct ls_error *error) {
    struct folder_entry *list = NULL, one;
    size_t used = 0, capacity = 0;
    DIR *stream = opendir(folder);
    if (!stream && errno != ENOENT) return fail_errno(error, "list", folder);
    for (struct dirent *entry; stream && (entry = readdir(stream));) {
        if (!classify(entry->d_name, &one)) continue;
        if (used == capacity) {
            capacity = capacity ? 2 * capacity : 16;
            struct folder_entry *grown = realloc(list, capacity * sizeof *list);
            if (!grown) {
                free(list);
                closedir(stream);
                return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "checkpoint: no memory to list %s", folder);
            }
            list = grown;
        }
        list[used++] = one;
    }
    if (stream) closedir(stream);
    if (used) qsort(list, used, sizeof *list, compare_entries);
    *entries = list;
    *count = used;
    return LS_OK;
}

enum ls_code ls_checkpoint_list(const char *run_dir, uint64_t **steps, size_t *count, struct ls_error *error) {
    char folder[LS_CHECKPOINT_PATH_MAX];
    struct folder_entry *entries;
    size_t all, used = 0;
    enum ls_code code = checkpoints_path(run_dir, folder, error);
    if (!code) code = list_folders(folder, &entries, &all, error);
    if (code) return code;
    uint64_t *list = calloc(all + 1, sizeof *list);
    for (size_t i = all; list && i-- > 0;)
        if (entries[i].kind == FOLDER_COMMITTED) list[used++] = entries[i].step;
    free(entries);
    if (!list) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "checkpoint: no memory to list %s", folder);
    *steps = list;
    *count = used;
    return LS_OK;
}

static void report_damaged(ls_checkpoint_damaged *damaged, void *context, const char *name, const char *text) {
    if (damaged)
        damaged(context, name, text);
    else
        ls_log(LS_LOG_WARNING, "checkpoint %s is damaged and passed over: %s", name, text);
}

enum ls_code ls_checkpoint_newest(const char *run_dir, bool *found, struct ls_checkpoint_found *checkpoint,
                                  ls_checkpoint_damaged *damaged, void *context, struct ls_error *error) {
    char folder[LS_CHECKPOINT_PATH_MAX], path[LS_CHECKPOINT_PATH_MAX];
    struct folder_entry *entries;
    size_t count;
    enum ls_code code = checkpoints_path(run_dir, folder, error);
    if (!code) code = list_folders(folder, &entries, &count, error);
    if (code) return code;
    *found = false;
    for (size_t i = 0; i < count && !*found && !code; i++) {
        struct ls_error cause = {0};
        if (entries[i].kind != FOLDER_COMMITTED) continue;
        code = join(error, path, folder, entries[i].name);
        if (code) break;
        enum ls_code opened = ls_checkpoint_open(path, checkpoint, &cause);
        if (!opened && checkpoint->state.step != entries[i].step)
            opened = ls_fail(&cause, LS_CHECKPOINT, LS_SCOPE_JOB, "its trainer.json is of step %" PRIu64,
                             checkpoint->state.step);
        if (opened == LS_MEMORY)
            code = ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "%s", cause.text);
        else if (opened && cause.scope == LS_SCOPE_NODE)
            code = ls_fail(error, opened, LS_SCOPE_JOB,
                           "checkpoint: %s cannot be read (%s), so that nobody knows whether it is good. Is its file "
                           "system there? Resume once it answers; if the file is lost for good, move %s away first.",
                           entries[i].name, cause.text, path);
        else if (opened)
            report_damaged(damaged, context, entries[i].name, cause.text);
        else
            *found = true;
    }
    free(entries);
    return code;
}

/* Recovering and pruning. */

static bool has_committed(const struct folder_entry *entries, size_t count, uint64_t step) {
    for (size_t i = 0; i < count; i++)
        if (entries[i].kind == FOLDER_COMMITTED && entries[i].step == step) return true;
    return false;
}

static enum ls_code recover_entries(int checkpoints, uint64_t attempt, struct folder_entry *entries, size_t count,
                                    struct ls_error *error) {
    enum ls_code code = LS_OK;
    for (size_t i = 0; i < count && !code; i++) {
        if (entries[i].kind == FOLDER_UNFINISHED && entries[i].attempt < attempt)
            code = remove_checkpoint(checkpoints, entries[i].name, error);
        if (entries[i].kind != FOLDER_SUPERSEDED || has_committed(entries, count, entries[i].step)) continue;
        char name[LS_CHECKPOINT_NAME_MAX];
        ls_checkpoint_name(entries[i].step, name);
        if (renameat(checkpoints, entries[i].name, checkpoints, name))
            code = fail_errno(error, "put back", entries[i].name);
        else
            ls_log(LS_LOG_WARNING, "checkpoint %s was put back: what was to replace it never came", name);
        strcpy(entries[i].name, name);
        entries[i].kind = FOLDER_COMMITTED;
    }
    if (!code && fsync(checkpoints)) code = fail_errno(error, "fsync", "the checkpoints folder");
    return code;
}

/* Runs over the sorted folders of RUN/checkpoints with the folder open; no such folder: nothing to do. */
static enum ls_code open_folders(const char *run_dir, int *checkpoints, struct folder_entry **entries, size_t *count,
                                 struct ls_error *error) {
    char folder[LS_CHECKPOINT_PATH_MAX];
    *checkpoints = -1;
    *entries = NULL;
    *count = 0;
    enum ls_code code = checkpoints_path(run_dir, folder, error);
    if (code) return code;
    *checkpoints = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*checkpoints < 0) return errno == ENOENT ? LS_OK : fail_errno(error, "open", folder);
    return list_folders(folder, entries, count, error);
}

enum ls_code ls_checkpoint_recover(const char *run_dir, uint64_t attempt, struct ls_error *error) {
    struct folder_entry *entries;
    size_t count;
    int checkpoints;
    enum ls_code code = open_folders(run_dir, &checkpoints, &entries, &count, error);
    if (!code && checkpoints >= 0) code = recover_entries(checkpoints, attempt, entries, count, error);
    size_t newest = 0;
    while (newest < count && entries[newest].kind != FOLDER_COMMITTED) newest++;
    char latest[LS_CHECKPOINT_PATH_MAX];
    if (!code && newest < count)
        code = write_latest(run_dir, entries[newest].step, error);
    else if (!code && !join(NULL, latest, run_dir, "latest") && unlink(latest) && errno != ENOENT)
        code = fail_errno(error, "remove", latest);
    if (checkpoints >= 0) close(checkpoints);
    free(entries);
    return code;
}

/* Renames a folder of the open folder `checkpoints`; a rejected one of that name makes room. */
static enum ls_code reject(int checkpoints, const char *name, uint64_t step, uint64_t attempt, struct ls_error *error) {
    char rejected[LS_CHECKPOINT_NAME_MAX];
    snprintf(rejected, sizeof rejected, "step-%0*" PRIu64 "%s%" PRIu64, NAME_DIGITS, step, rejected_mark, attempt);
    enum ls_code code = LS_OK;
    if (!faccessat(checkpoints, rejected, F_OK, AT_SYMLINK_NOFOLLOW))
        code = remove_checkpoint(checkpoints, rejected, error);
    if (!code && renameat(checkpoints, name, checkpoints, rejected)) code = fail_errno(error, "put aside", name);
    if (!code && fsync(checkpoints)) code = fail_errno(error, "fsync", "the checkpoints folder");
    return code;
}

enum ls_code ls_checkpoint_reject(const char *run_dir, const char *name, uint64_t attempt, struct ls_error *error) {
    char folder[LS_CHECKPOINT_PATH_MAX];
    uint64_t step;
    if (!is_committed(name, &step))
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "checkpoint: '%.100s' is not the name of one", name);
    enum ls_code code = checkpoints_path(run_dir, folder, error);
    if (code) return code;
    int checkpoints = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (checkpoints < 0) return fail_errno(error, "open", folder);
    code = reject(checkpoints, name, step, attempt, error);
    close(checkpoints);
    return code;
}

enum ls_code ls_checkpoint_reject_from(const char *run_dir, uint64_t step, uint64_t attempt, struct ls_error *error) {
    struct folder_entry *entries;
    size_t count;
    int checkpoints;
    enum ls_code code = open_folders(run_dir, &checkpoints, &entries, &count, error);
    for (size_t i = 0; i < count && !code; i++) {
        /* A superseded one would be put back in place of what is rejected. */
        bool usable = entries[i].kind == FOLDER_COMMITTED || entries[i].kind == FOLDER_SUPERSEDED;
        if (usable && entries[i].step >= step)
            code = reject(checkpoints, entries[i].name, entries[i].step, attempt, error);
    }
    if (checkpoints >= 0) close(checkpoints);
    free(entries);
    return code;
}

static bool is_among(uint64_t step, const uint64_t *steps, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (steps[i] == step) return true;
    return false;
}

enum ls_code ls_checkpoint_prune(const char *run_dir, uint64_t step, const uint64_t *kept, size_t kept_count,
                                 struct ls_error *error) {
    struct folder_entry *entries;
    size_t count;
    int checkpoints;
    enum ls_code code = open_folders(run_dir, &checkpoints, &entries, &count, error);
    for (size_t i = 0; i < count && !code; i++) {
        bool below = entries[i].kind == FOLDER_COMMITTED && entries[i].step <= step &&
                     !is_among(entries[i].step, kept, kept_count);
        bool replaced = entries[i].kind == FOLDER_SUPERSEDED && has_committed(entries, count, entries[i].step);
        bool rejected = entries[i].kind == FOLDER_REJECTED && entries[i].step <= step;
        if (below || replaced || rejected) code = remove_checkpoint(checkpoints, entries[i].name, error);
    }
    if (checkpoints >= 0) close(checkpoints);
    free(entries);
    return code;
}

enum ls_code ls_checkpoint_link(const char *run_dir, const char *name, uint64_t step, struct ls_error *error) {
    char folder[LS_CHECKPOINT_NAME_MAX], target[LS_CHECKPOINT_NAME_MAX + 16], new_name[LS_CHECKPOINT_NAME_MAX];
    char link[LS_CHECKPOINT_PATH_MAX], temporary[LS_CHECKPOINT_PATH_MAX];
    ls_checkpoint_name(step, folder);
    snprintf(target, sizeof target, "checkpoints/%s", folder);
    snprintf(new_name, sizeof new_name, "%s.new", name);
    enum ls_code code = join(error, link, run_dir, name);
    if (!code) code = join(error, temporary, run_dir, new_name);
    if (code) return code;
    if (unlink(temporary) && errno != ENOENT) return fail_errno(error, "remove", temporary);
    if (symlink(target, temporary)) return fail_errno(error, "make the link", temporary);
    if (rename(temporary, link)) return fail_errno(error, "make the link", link);
    return ls_folder_sync(run_dir, LS_CHECKPOINT, error);
}

enum ls_code ls_checkpoint_read_state(const char *run_dir, uint64_t step, struct ls_trainer_state *state,
                                      struct ls_error *error) {
    char path[LS_CHECKPOINT_PATH_MAX], file[LS_CHECKPOINT_PATH_MAX];
    char *json;
    size_t count;
    enum ls_code code = ls_checkpoint_path(run_dir, step, path, error);
    if (!code) code = join(error, file, path, "trainer.json");
    if (!code) code = ls_file_read(file, TRAINER_STATE_BYTES_MAX, &json, &count, LS_CHECKPOINT, error);
    if (code) return code;
    code = ls_trainer_state_parse(json, count, state, error);
    free(json);
    return code;
}
