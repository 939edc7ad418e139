/* Reads /proc and the control groups. */
#define _GNU_SOURCE
#include "worker/memory/host_memory.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void limit_by_file(const char *path, int64_t *bytes) {
    FILE *file = fopen(path, "re");
    long long limit;
    if (!file) return;
    if (fscanf(file, "%lld", &limit) == 1 && limit > 0 && limit < *bytes) *bytes = limit;
    fclose(file);
}

/* The group and all groups above it: each may have a limit. `file` is cut from the end. */
static void limit_by_group(const char *root, const char *group, const char *file, int64_t *bytes) {
    char folder[PATH_MAX], path[PATH_MAX + 32];
    snprintf(folder, sizeof folder, "%s%s", root, group);
    const size_t stop = strlen(root);
    for (;;) {
        snprintf(path, sizeof path, "%s/%s", folder, file);
        limit_by_file(path, bytes);
        char *slash = strrchr(folder, '/');
        if (!slash || (size_t)(slash - folder) < stop) return;
        *slash = 0;
    }
}

int64_t ls_host_memory_bytes(void) {
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages <= 0 || page <= 0) return 0;
    int64_t bytes = (int64_t)pages * page;
    FILE *file = fopen("/proc/self/cgroup", "re");
    char line[PATH_MAX];
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = 0;
        if (strcmp(controllers, ":") == 0) limit_by_group("/sys/fs/cgroup", group, "memory.max", &bytes);
        if (strcmp(controllers, ":memory") == 0)
            limit_by_group("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes", &bytes);
    }
    if (file) fclose(file);
    return bytes;
}

int64_t ls_host_memory_available(void) {
    FILE *file = fopen("/proc/meminfo", "re");
    char line[256];
    long long kibibytes = 0;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %lld kB", &kibibytes) == 1) break;
    if (file) fclose(file);
    return kibibytes * 1024;
}

int64_t ls_host_memory_resident(void) {
    FILE *file = fopen("/proc/self/status", "re");
    char line[256];
    int64_t bytes = 0;
    long long kibibytes;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "RssAnon: %lld kB", &kibibytes) == 1 || sscanf(line, "RssShmem: %lld kB", &kibibytes) == 1)
            bytes += kibibytes * 1024;
    if (file) fclose(file);
    return bytes;
}
