/* Making, checking and locking run directories. */
#define _GNU_SOURCE
#include "coordinator/run_directory.h"

#include "common/files.h"
#include "common/log.h"
#include "common/wire.h"
#include "coordinator/config_change.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

enum { TAIL_BYTES = 1 << 16, CONFIG_BYTES_MAX = 1 << 20, LINEAGE_BYTES_MAX = 1 << 20, LINEAGE_DIGITS = 32 };

static bool under(const struct ls_run_directory *run, const char *name, char path[PATH_MAX]) {
    return snprintf(path, PATH_MAX, "%s/%s", run->path, name) < PATH_MAX;
}

/* The path goes to every worker as text. */
static enum ls_code check_plain(const char *path, struct ls_error *error) {
    size_t length = 1;
    for (const char *p = path; *p && length > 0; p += length) length = ls_wire_character(p, false);
    return length > 0 ? LS_OK
                      : ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                                "the path of the run directory is not UTF-8, or has control characters: %.800s. Choose "
                                "another one with --run-dir.",
                                path);
}

/* Sets the absolute path, links resolved, and the run id. RUN exists. */
static enum ls_code identify(const char *path, struct ls_run_directory *run, struct ls_error *error) {
    char resolved[PATH_MAX];
    if (!realpath(path, resolved))
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "cannot use the run directory %s: %s. Name the folder of a run, such as runs/NAME.", path,
                       strerror(errno));
    if (snprintf(run->path, sizeof run->path, "%s", resolved) >= (int)sizeof run->path)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "the path of the run directory is longer than %d bytes: %.100s...", LS_RUN_PATH_MAX - 1,
                       resolved);
    snprintf(run->run_id, sizeof run->run_id, "%016llx", (unsigned long long)XXH3_64bits(run->path, strlen(run->path)));
    run->lock = -1;
    return check_plain(run->path, error);
}

int64_t ls_run_directory_last_step(const struct ls_run_directory *run) {
    char path[PATH_MAX];
    int64_t last = -1;
    int file = under(run, "metrics.jsonl", path) ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return -1;
    off_t end = lseek(file, 0, SEEK_END), from = end > TAIL_BYTES ? end - TAIL_BYTES : 0;
    char *text = malloc(TAIL_BYTES + 1);
    if (text && end > 0 && ls_pread_all(file, text, (size_t)(end - from), from) == 0) {
        text[end - from] = 0;
        for (char *line = text, *next; line; line = next) {
            next = strchr(line, '\n');
            if (next) *next++ = 0;
            json_t *object = json_loads(line, 0, NULL);
            const char *kind = json_string_value(json_object_get(object, "kind"));
            if (kind && strcmp(kind, "step") == 0) last = json_integer_value(json_object_get(object, "step"));
            json_decref(object);
        }
    }
    free(text);
    close(file);
    return last;
}

static enum ls_code refuse_existing(const struct ls_run_directory *run, struct ls_error *error) {
    char state[64];
    int64_t last = ls_run_directory_last_step(run);
    if (last >= 0)
        snprintf(state, sizeof state, "its last step is %lld", (long long)last);
    else
        snprintf(state, sizeof state, "it has no step yet");
    return ls_fail(
        error, LS_USAGE, LS_SCOPE_JOB,
        "the run directory %s exists, %s. Add --resume to go on, or --run-dir DIR to start anew elsewhere; nothing is "
        "overwritten.",
        run->path, state);
}

static bool is_run_directory(const struct ls_run_directory *run) {
    char path[PATH_MAX];
    return under(run, "config.yaml", path) && access(path, F_OK) == 0;
}

/* A start that failed before config.yaml was written leaves the folders only. */
static bool was_begun(const char *path) {
    struct stat status;
    char logs[PATH_MAX];
    return snprintf(logs, sizeof logs, "%s/logs", path) < PATH_MAX && stat(logs, &status) == 0;
}

static bool is_empty(const char *path) {
    DIR *folder = opendir(path);
    if (!folder) return false;
    int entries = 0;
    while (readdir(folder)) entries++;
    closedir(folder);
    return entries == 2; /* . and .. */
}

enum ls_code ls_run_directory_make(const char *path, const char *name, bool resume, struct ls_run_directory *run,
                                   struct ls_error *error) {
    char chosen[PATH_MAX], folder[PATH_MAX], here[PATH_MAX];
    if (snprintf(chosen, sizeof chosen, path ? "%s" : "runs/%s", path ? path : name) >= LS_RUN_PATH_MAX)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "the path of the run directory is longer than %d bytes: %.100s...", LS_RUN_PATH_MAX - 1, chosen);
    if (!*chosen)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "--run-dir is empty. Name a folder, or leave it out: runs/%s.",
                       name);
    struct stat status;
    enum ls_code plain = check_plain(chosen, error);
    if (plain == LS_OK && chosen[0] != '/' && getcwd(here, sizeof here)) plain = check_plain(here, error);
    if (plain != LS_OK) return plain;
    if (stat(chosen, &status) == 0) {
        if (!S_ISDIR(status.st_mode))
            return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "%s is there and is no folder. Choose another --run-dir.",
                           chosen);
        enum ls_code code = identify(chosen, run, error);
        if (code != LS_OK) return code;
        const bool is_ours = is_run_directory(run) || was_begun(chosen) || is_empty(chosen);
        if (is_ours && !resume) return refuse_existing(run, error);
        if (!is_ours && access(chosen, R_OK | X_OK))
            return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                           "cannot look into %s: %s. Be the user whose run it is, or choose another --run-dir.", chosen,
                           strerror(errno));
        if (!is_ours)
            return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                           "%s is there but is no run directory (no config.yaml). Choose another --run-dir.", chosen);
    }
    for (int i = 0; i < 2; i++) {
        if (snprintf(folder, sizeof folder, "%s/%s", chosen, i ? "checkpoints" : "logs") >= (int)sizeof folder) break;
        enum ls_code code = ls_folder_make(folder, LS_CHECKPOINT, error);
        if (code != LS_OK) return code;
    }
    return identify(chosen, run, error);
}

enum ls_code ls_run_directory_find(const char *path, struct ls_run_directory *run, struct ls_error *error) {
    enum ls_code code = identify(path, run, error);
    if (code == LS_OK && !is_run_directory(run) && errno == EACCES)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "cannot look into %s: %s. Ask as the user whose run it is.", path,
                       strerror(errno));
    if (code == LS_OK && !is_run_directory(run))
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "%s is no run directory (no config.yaml). Name the folder that 'lockstep run' made.", path);
    return code;
}

/* ---- the lock ---- */

static void read_boot_id(char text[64]) {
    int file = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t count = file >= 0 ? read(file, text, 63) : -1;
    if (file >= 0) close(file);
    text[count > 0 ? count : 0] = 0;
    text[strcspn(text, "\n")] = 0;
}

/* Of the processes that this one can see: containers on one host have a boot id in common, and not their pids. */
static void read_pid_namespace(char text[64]) {
    ssize_t count = readlink("/proc/self/ns/pid", text, 63);
    text[count > 0 ? count : 0] = 0;
}

static void read_lock(int file, char *text, size_t size) {
    ssize_t count = pread(file, text, size - 1, 0);
    text[count > 0 ? count : 0] = 0;
    for (char *c = text; *c; c++)
        if (*c == '\n') *c = c[1] ? ',' : 0;
}

enum ls_code ls_run_directory_lock(struct ls_run_directory *run, double seconds, struct ls_error *error) {
    char path[PATH_MAX], owner[512];
    if (!under(run, "lock", path)) return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "path too long: %s", run->path);
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (file < 0)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                       "cannot open %s: %s. Be the user whose run it is, with the right to write there.", path,
                       strerror(errno));
    for (double waited = 0; flock(file, LOCK_EX | LOCK_NB); waited += 0.05) {
        if (errno != EWOULDBLOCK && errno != EINTR) {
            enum ls_code code =
                ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "cannot lock %s: %s", path, strerror(errno));
            close(file);
            return code;
        }
        if (waited >= seconds) {
            read_lock(file, owner, sizeof owner);
            close(file);
            return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                           "the run %s is in use (%s). Wait for it, or end it with 'lockstep stop %s'.", run->path,
                           owner, run->path);
        }
        nanosleep(&(struct timespec){0, 50000000}, NULL);
    }
    run->lock = file;
    /* What the one before wrote there is over: nobody listens where it did. */
    enum ls_code code = ls_run_directory_sign(run, 0, "", error);
    if (code != LS_OK) ls_run_directory_unlock(run);
    return code;
}

enum ls_code ls_run_directory_sign(struct ls_run_directory *run, uint32_t generation, const char *endpoint,
                                   struct ls_error *error) {
    char text[512], host[64] = "", boot[64], pids[64];
    gethostname(host, sizeof host - 1);
    read_boot_id(boot);
    read_pid_namespace(pids);
    int length = snprintf(text, sizeof text, "host %s\npid %d\nboot %s\nparent %d in %s\nendpoint %s\ngeneration %u\n",
                          host, (int)getpid(), boot, (int)getppid(), pids, endpoint, generation);
    if (ls_pwrite_all(run->lock, text, (size_t)length, 0) || ftruncate(run->lock, length) || fsync(run->lock))
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "cannot write %s/lock: %s", run->path, strerror(errno));
    return LS_OK;
}

bool ls_run_directory_is_ours(const struct ls_run_directory *run, uint32_t generation) {
    /* By name, not by our descriptor: the file may have been replaced. */
    char path[PATH_MAX], text[512], ours[32];
    int file = under(run, "lock", path) ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return false;
    read_lock(file, text, sizeof text);
    close(file);
    snprintf(ours, sizeof ours, ",generation %u", generation);
    size_t length = strlen(text), tail = strlen(ours);
    return length >= tail && strcmp(text + length - tail, ours) == 0;
}

enum ls_code ls_run_directory_tell_lost(const struct ls_run_directory *run, struct ls_error *error) {
    char path[PATH_MAX];
    if (under(run, "lock", path) && access(path, F_OK))
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                       "the run directory was moved, removed or unmounted: %s: %s; put it back", path, strerror(errno));
    return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                   "another coordinator has taken over the run %s; this one must end", run->path);
}

bool ls_run_directory_endpoint(const struct ls_run_directory *run, char *endpoint, size_t size) {
    char path[PATH_MAX], text[512];
    int file = under(run, "lock", path) ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return false;
    read_lock(file, text, sizeof text);
    close(file);
    const char *found = strstr(text, ",endpoint tcp://");
    if (!found) return false;
    found += strlen(",endpoint ");
    return snprintf(endpoint, size, "%.*s", (int)strcspn(found, ","), found) < (int)size;
}

bool ls_run_directory_is_abandoned(const struct ls_run_directory *run) {
    char path[PATH_MAX], text[512], boot[64], pids[64], parent[80];
    int file = under(run, "lock", path) ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return false;
    read_lock(file, text, sizeof text);
    close(file);
    read_boot_id(boot);
    read_pid_namespace(pids);
    const char *its_boot = strstr(text, ",boot "), *its_parent = strstr(text, ",parent ");
    if (!boot[0] || !pids[0] || !its_boot || !its_parent) return false;
    its_boot += strlen(",boot "), its_parent += strlen(",parent ");
    const long pid = strtol(its_parent, NULL, 10);
    snprintf(parent, sizeof parent, "%ld in %s,", pid, pids);
    const bool same_pids = strncmp(its_parent, parent, strlen(parent)) == 0;
    const bool same_boot = strncmp(its_boot, boot, strlen(boot)) == 0 && its_boot[strlen(boot)] == ',';
    return same_boot && same_pids && pid > 1 && kill((pid_t)pid, 0) && errno == ESRCH;
}

bool ls_run_directory_is_locked(const struct ls_run_directory *run) {
    char path[PATH_MAX];
    /* Readable for those who may not write it: what they ask of the run says by itself what they may. */
    int file = under(run, "lock", path) ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return false;
    bool locked = flock(file, LOCK_SH | LOCK_NB) != 0;
    close(file);
    return locked;
}

void ls_run_directory_unlock(struct ls_run_directory *run) {
    if (run->lock >= 0) close(run->lock);
    run->lock = -1;
}

/* ---- the configuration of the run ---- */

static enum ls_code write_config(const char *path, const struct ls_config *config, struct ls_error *error) {
    char *yaml;
    enum ls_code code = ls_config_write(config, &yaml, error);
    if (code != LS_OK) return code;
    code = ls_file_replace(path, yaml, strlen(yaml), LS_CHECKPOINT, error);
    free(yaml);
    return code;
}

bool ls_run_directory_knows_config(const char *run_dir, const char *current, const char *digest) {
    if (strcmp(current, digest) == 0) return true;
    char path[PATH_MAX], *text;
    size_t count;
    snprintf(path, sizeof path, "%s/config.lineage", run_dir);
    if (ls_file_read(path, LINEAGE_BYTES_MAX, &text, &count, LS_CHECKPOINT, NULL) != LS_OK) return false;
    const bool known = strlen(digest) == LINEAGE_DIGITS && strstr(text, digest) != NULL;
    free(text);
    return known;
}

/* Before config.yaml changes: a crash in between leaves one digest too many, never one too few. */
static enum ls_code append_lineage(const struct ls_run_directory *run, const struct ls_config *before,
                                   struct ls_error *error) {
    char path[PATH_MAX], digest[33], *text = NULL, *longer = NULL;
    size_t count = 0;
    if (!under(run, "config.lineage", path))
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "path too long: %s", run->path);
    ls_config_digest(before, digest);
    enum ls_code code = LS_OK;
    if (!access(path, F_OK)) code = ls_file_read(path, LINEAGE_BYTES_MAX, &text, &count, LS_CHECKPOINT, error);
    if (code == LS_OK && asprintf(&longer, "%s%s\n", text ? text : "", digest) < 0)
        code = ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for the configuration");
    else if (code == LS_OK)
        code = ls_file_replace(path, longer, strlen(longer), LS_CHECKPOINT, error);
    free(text);
    free(longer);
    return code;
}

static enum ls_code take_changes(const struct ls_run_directory *run, const struct ls_config *before,
                                 const struct ls_config_change *changes, int count, struct ls_error *error) {
    static const char *const effects[] = {
        [LS_EFFECT_NONE] = "changes no result",
        [LS_EFFECT_NUMBERS] = "changes the numbers from here on; accepted",
        [LS_EFFECT_DATA] = "changes what is trained on from here on: a new generation of the data; accepted"};
    bool counts = false;
    for (int i = 0; i < count; i++) {
        counts |= changes[i].effect != LS_EFFECT_NONE;
        ls_log(LS_LOG_INFO, "%s: %s, it was %s (%s)", changes[i].key, changes[i].after, changes[i].before,
               effects[changes[i].effect]);
    }
    return counts ? append_lineage(run, before, error) : LS_OK;
}

enum ls_code ls_run_directory_keep_config(const struct ls_run_directory *run, const struct ls_config *config,
                                          struct ls_error *error) {
    char path[PATH_MAX];
    if (!under(run, "config.yaml", path)) return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "path too long: %s", run->path);
    return write_config(path, config, error);
}

enum ls_code ls_run_directory_check_config(const struct ls_run_directory *run, const struct ls_config *config,
                                           const char *const *accepted, int accepted_count,
                                           char changed[LS_CHANGED_BYTES], bool *data_changed, struct ls_error *error) {
    char path[PATH_MAX];
    changed[0] = 0;
    *data_changed = false;
    if (!under(run, "config.yaml", path)) return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "path too long: %s", run->path);
    if (access(path, F_OK)) return write_config(path, config, error);
    struct ls_config *before = malloc(sizeof *before);
    struct ls_config_change *changes = calloc(LS_CONFIG_CHANGES_MAX, sizeof *changes);
    enum ls_code code = LS_OK;
    if (!before || !changes) code = ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for the configuration");
    if (code == LS_OK) code = ls_config_load(path, NULL, 0, before, error);
    const int count = code == LS_OK ? ls_config_changes(before, config, changes) : 0;
    if (count < 0) code = ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory to compare configurations");
    if (code == LS_OK) code = ls_config_changes_check(changes, count, accepted, accepted_count, run->path, error);
    if (code == LS_OK) code = take_changes(run, before, changes, count, error);
    for (int i = 0; i < count && code == LS_OK; i++) {
        const size_t used = strlen(changed);
        *data_changed |= changes[i].effect == LS_EFFECT_DATA;
        if (changes[i].effect == LS_EFFECT_NUMBERS)
            snprintf(changed + used, LS_CHANGED_BYTES - used, "%s%s: %s -> %s", used ? "; " : "", changes[i].key,
                     changes[i].before, changes[i].after);
    }
    free(changes);
    free(before);
    return code;
}
