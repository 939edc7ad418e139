/* Writing and finding the token. */
#define _GNU_SOURCE
#include "common/run_token.h"

#include "common/files.h"

#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { DIGITS = LS_RUN_TOKEN_SIZE - 1, LOOK_AGAIN_MS = 100 };

/* False when there is no token file, or none of ours. */
static bool read_token(const char *path, char token[LS_RUN_TOKEN_SIZE]) {
    char *text;
    size_t count;
    if (ls_file_read(path, 4096, &text, &count, LS_CHECKPOINT, NULL) != LS_OK) return false;
    bool fine = count == DIGITS && strspn(text, "0123456789abcdef") == DIGITS;
    if (fine) memcpy(token, text, LS_RUN_TOKEN_SIZE);
    free(text);
    return fine;
}

enum ls_code ls_run_token_make(const char *run_directory, bool keep, char token[LS_RUN_TOKEN_SIZE],
                               struct ls_error *error) {
    char path[PATH_MAX];
    uint64_t bits[2];
    if (snprintf(path, sizeof path, "%s/token", run_directory) >= PATH_MAX)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "path too long: %s", run_directory);
    if (keep && read_token(path, token)) return LS_OK;
    if (getrandom(bits, sizeof bits, 0) != (ssize_t)sizeof bits)
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "the system gives no random numbers: %s", strerror(errno));
    snprintf(token, LS_RUN_TOKEN_SIZE, "%016llx%016llx", (unsigned long long)bits[0], (unsigned long long)bits[1]);
    return ls_file_replace(path, token, DIGITS, LS_CHECKPOINT, error);
}

enum ls_code ls_run_token_check(const char *run_directory, const char *token, double seconds, struct ls_error *error) {
    char path[PATH_MAX], found[LS_RUN_TOKEN_SIZE] = "", host[64] = "this host";
    struct stat status;
    if (!token[0]) return LS_OK;
    gethostname(host, sizeof host - 1);
    snprintf(path, sizeof path, "%s/token", run_directory);
    for (double waited = 0;; waited += LOOK_AGAIN_MS * 1e-3) {
        if (read_token(path, found) && strcmp(found, token) == 0) return LS_OK;
        if (waited >= seconds) break;
        nanosleep(&(struct timespec){0, LOOK_AGAIN_MS * 1000000L}, NULL);
    }
    const char *instead = found[0]                            ? "there is another folder of that name"
                          : stat(run_directory, &status) == 0 ? "its folder of that name lacks the run's token"
                                                              : "there is no such folder";
    return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_NODE,
                   "host %s does not see the run directory %s: %s. Put it on a file system that all hosts share "
                   "(--run-dir).",
                   host, run_directory, instead);
}
