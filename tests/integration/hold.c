/* Preloaded into a run: it stands still for as long as a file is there, whose name a variable says: the coordinator in
 * the commit of a checkpoint, before the folder gets its name (HOLD_BEFORE) or behind that (HOLD_AFTER), where a
 * damaged one is renamed (HOLD_REJECTED), or at its end, once its journal is closed (HOLD_ENDED); the supervisor before
 * it tells which launcher it has started (HOLD_STARTED). Meanwhile NAME.held is there too. */
#define _GNU_SOURCE
#include "coordinator/channel.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int renameat(int from_folder, const char *from, int to_folder, const char *to);

static void hold(const char *variable) {
    const char *path = getenv(variable);
    char held[4096];
    if (!path || access(path, F_OK)) return;
    snprintf(held, sizeof held, "%s.held", path);
    const int file = open(held, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    while (access(path, F_OK) == 0) usleep(10000);
    unlink(held);
    if (file >= 0) close(file);
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

ssize_t send(int channel, const void *bytes, size_t count, int flags) {
    ssize_t (*original)(int, const void *, size_t, int);
    *(void **)&original = dlsym(RTLD_NEXT, "send");
    const struct ls_channel_message *message = bytes;
    if (count == sizeof *message && message->kind == LS_CHANNEL_LAUNCHER_STARTED) hold("HOLD_STARTED");
    return original(channel, bytes, count, flags);
}

int sqlite3_close(sqlite3 *database) {
    int (*original)(sqlite3 *);
    *(void **)&original = dlsym(RTLD_NEXT, "sqlite3_close");
    const int result = original(database);
    hold("HOLD_ENDED");
    return result;
}
