/* Finding and removing what attempts leave behind. */
#define _GNU_SOURCE
#include "common/leftovers.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { ENVIRONMENT_BYTES_MAX = 1 << 20, FOLDER_DEPTH_MAX = 16, WAIT_MS = 10 };

static bool is_run_id(const char *run_id) {
    return strlen(run_id) == 16 && strspn(run_id, "0123456789abcdef") == 16;
}

void ls_leftovers_folder(const char *run_id, int64_t attempt, char path[64]) {
    snprintf(path, 64, "/dev/shm/lockstep-%.16s-a%lld.mpi", run_id, (long long)attempt);
}

/* ---- processes ---- */

/* The environment of a process, NUL-separated and NUL-terminated, in a buffer of ENVIRONMENT_BYTES_MAX + 1 bytes; its
 * length, 0 when it cannot be read (another user's, a zombie's). */
static size_t read_environment(const char *pid, char *text) {
    char path[64];
    if (snprintf(path, sizeof path, "/proc/%s/environ", pid) >= (int)sizeof path) return 0;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    size_t length = 0;
    for (ssize_t count; length < ENVIRONMENT_BYTES_MAX; length += (size_t)count) {
        count = read(file, text + length, ENVIRONMENT_BYTES_MAX - length);
        if (count <= 0) break;
    }
    close(file);
    text[length] = 0;
    return length;
}

/* True when the environment says that its process is of an attempt of `run_id` before `attempt`. */
static bool is_older(const char *environment, size_t length, const char *run_id, int64_t attempt) {
    bool ours = false, older = false;
    for (const char *entry = environment; entry < environment + length; entry += strlen(entry) + 1) {
        if (strncmp(entry, "LOCKSTEP_RUN_ID=", 16) == 0) ours = strcmp(entry + 16, run_id) == 0;
        if (strncmp(entry, "LOCKSTEP_ATTEMPT=", 17) == 0) {
            char *end;
            errno = 0;
            long long number = strtoll(entry + 17, &end, 10);
            older = errno == 0 && end > entry + 17 && *end == 0 && number < attempt;
        }
    }
    return ours && older;
}

/* Kills what is found; returns how many there were and stores the last one's pid. */
static int kill_processes(const char *run_id, int64_t attempt, char *text, int64_t *last) {
    int found = 0;
    DIR *processes = opendir("/proc");
    for (struct dirent *entry; processes && (entry = readdir(processes));) {
        char *end;
        long pid = strtol(entry->d_name, &end, 10);
        if (*end || pid <= 1 || pid == getpid()) continue;
        size_t length = read_environment(entry->d_name, text);
        if (!length || !is_older(text, length, run_id, attempt) || kill((pid_t)pid, SIGKILL)) continue;
        found++;
        *last = pid;
    }
    if (processes) closedir(processes);
    return found;
}

/* ---- shared memory ---- */

static bool remove_tree(int folder, const char *name, int depth) {
    if (unlinkat(folder, name, 0) == 0) return true;
    if ((errno != EISDIR && errno != EPERM) || depth == FOLDER_DEPTH_MAX) return false;
    int inside = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *entries = inside < 0 ? NULL : fdopendir(inside);
    if (!entries) {
        if (inside >= 0) close(inside);
        return false;
    }
    for (struct dirent *entry; (entry = readdir(entries));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            remove_tree(dirfd(entries), entry->d_name, depth + 1);
    closedir(entries);
    return unlinkat(folder, name, AT_REMOVEDIR) == 0;
}

int ls_leftovers_remove_memory(const char *run_id, int64_t attempt) {
    char prefix[40];
    if (!is_run_id(run_id)) return 0;
    int removed = 0, length = snprintf(prefix, sizeof prefix, "lockstep-%s-a", run_id);
    DIR *entries = opendir("/dev/shm");
    for (struct dirent *entry; entries && (entry = readdir(entries));) {
        if (strncmp(entry->d_name, prefix, (size_t)length) != 0) continue;
        const char *digits = entry->d_name + length;
        if (*digits < '0' || *digits > '9' || strtoll(digits, NULL, 10) >= attempt) continue;
        struct stat status;
        if (fstatat(dirfd(entries), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) || status.st_uid != geteuid())
            continue;
        removed += remove_tree(dirfd(entries), entry->d_name, 0);
    }
    if (entries) closedir(entries);
    return removed;
}

struct ls_leftovers ls_leftovers_remove(const char *run_id, int64_t attempt, double seconds) {
    struct ls_leftovers result = {0};
    char *text = is_run_id(run_id) ? malloc(ENVIRONMENT_BYTES_MAX + 1) : NULL;
    if (!text) return result;
    result.processes = kill_processes(run_id, attempt, text, &result.stuck_pid);
    bool left = result.processes > 0;
    for (double waited = 0; left && waited < seconds; waited += WAIT_MS * 1e-3) {
        nanosleep(&(struct timespec){0, WAIT_MS * 1000000}, NULL);
        left = kill_processes(run_id, attempt, text, &result.stuck_pid) > 0;
    }
    if (!left) result.stuck_pid = 0;
    free(text);
    result.files = ls_leftovers_remove_memory(run_id, attempt);
    return result;
}
