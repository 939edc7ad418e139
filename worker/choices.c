/* The file: a head with size and hash, then the device's bytes. */
#define _GNU_SOURCE
#include "worker/choices.h"

#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

enum { BYTES_MOST = 1 << 20 };
static const char magic[8] = "LSCHOIC1";

struct head {
    char magic[8];
    int64_t bytes;
    uint64_t hash;
};

static bool read_whole(int file, void *to, size_t bytes) {
    size_t done = 0;
    for (ssize_t got = 1; done < bytes && got > 0; done += got > 0 ? (size_t)got : 0)
        got = read(file, (char *)to + done, bytes - done);
    return done == bytes;
}

static bool write_whole(int file, const void *from, size_t bytes) {
    size_t done = 0;
    for (ssize_t put = 1; done < bytes && put > 0; done += put > 0 ? (size_t)put : 0)
        put = write(file, (const char *)from + done, bytes - done);
    return done == bytes;
}

static void *read_content(int file) {
    struct head head;
    if (!read_whole(file, &head, sizeof head) || memcmp(head.magic, magic, sizeof magic) != 0 || head.bytes < 1 ||
        head.bytes > BYTES_MOST)
        return NULL;
    void *choices = malloc((size_t)head.bytes);
    if (choices && read_whole(file, choices, (size_t)head.bytes) &&
        XXH3_64bits(choices, (size_t)head.bytes) == head.hash)
        return choices;
    free(choices);
    return NULL;
}

void *ls_choices_read(const char *run_directory, int64_t *bytes) {
    char path[PATH_MAX];
    *bytes = 0;
    snprintf(path, sizeof path, "%s/choices", run_directory);
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (file < 0) return NULL;
    void *choices = read_content(file);
    if (choices)
        *bytes = (int64_t)lseek(file, 0, SEEK_CUR) - (int64_t)sizeof(struct head);
    else
        ls_log(LS_LOG_WARNING, "choices: %s is damaged; how to compute is measured again", path);
    close(file);
    return choices;
}

void ls_choices_write(const char *run_directory, const void *choices, int64_t bytes) {
    char path[PATH_MAX], next[PATH_MAX];
    struct head head = {.bytes = bytes, .hash = XXH3_64bits(choices, (size_t)bytes)};
    if (bytes < 1 || bytes > BYTES_MOST) return;
    memcpy(head.magic, magic, sizeof magic);
    snprintf(path, sizeof path, "%s/choices", run_directory);
    snprintf(next, sizeof next, "%s/.choices.next", run_directory);
    const int file = open(next, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    bool written = file >= 0 && write_whole(file, &head, sizeof head) && write_whole(file, choices, (size_t)bytes) &&
                   fsync(file) == 0;
    if (file >= 0) close(file);
    written = written && rename(next, path) == 0;
    if (!written)
        ls_log(LS_LOG_WARNING, "choices: %s was not written (%s); the next attempt measures again", path,
               strerror(errno));
}
