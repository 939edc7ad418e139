/* Preloaded into a run: its coordinator stands still in the commit of a checkpoint for as long as a file is there,
 * named by HOLD_BEFORE (before the folder gets its name) or by HOLD_AFTER (behind that). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int renameat(int from_folder, const char *from, int to_folder, const char *to);

static void hold(const char *variable) {
    const char *path = getenv(variable);
    while (path && access(path, F_OK) == 0) usleep(10000);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    int (*original)(int, const char *, int, const char *);
    *(void **)&original = dlsym(RTLD_NEXT, "renameat");
    const int commits = strncmp(to, "step-", 5) == 0 && !strchr(to, '.');
    if (commits) hold("HOLD_BEFORE");
    if (strstr(to, ".rejected-a")) hold("HOLD_REJECTED");
    const int result = original(from_folder, from, to_folder, to);
    if (commits) hold("HOLD_AFTER");
    return result;
}
