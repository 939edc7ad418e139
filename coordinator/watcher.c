/* Reading the progress file from outside. */
#define _GNU_SOURCE
#include "coordinator/watcher.h"

#include "common/files.h"
#include "common/progress.h"
#include "common/wire.h"

#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { RANKS_MAX = 4096 /* of this host */, TAIL_BYTES = 8192 };

struct ls_watcher {
    char run_dir[1000], run_id[17];
    int64_t attempt;
    off_t launcher_log;           /* bytes that were there before the attempt */
    struct ls_progress *progress; /* NULL: not there yet */
    bool told[RANKS_MAX];
    bool left[RANKS_MAX]; /* gone by itself when last looked at */
};

enum ls_code ls_watcher_create(const char *run_dir, const char *run_id, int64_t attempt, struct ls_watcher **result,
                               struct ls_error *error) {
    struct ls_watcher *watcher = calloc(1, sizeof *watcher);
    if (!watcher) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory to watch the workers");
    snprintf(watcher->run_dir, sizeof watcher->run_dir, "%s", run_dir);
    snprintf(watcher->run_id, sizeof watcher->run_id, "%s", run_id);
    watcher->attempt = attempt;
    struct stat status;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/logs/launcher.log", run_dir);
    const int64_t begun = ls_launcher_find_output(path, attempt); /* before a coordinator took over from another */
    watcher->launcher_log = begun >= 0 ? begun : stat(path, &status) == 0 ? status.st_size : 0;
    *result = watcher;
    return LS_OK;
}

void ls_watcher_destroy(struct ls_watcher *watcher) {
    if (!watcher) return;
    if (watcher->progress) ls_progress_close(watcher->progress);
    free(watcher);
}

static bool is_open(struct ls_watcher *watcher) {
    return watcher->progress ||
           ls_progress_open_existing(watcher->run_id, watcher->attempt, &watcher->progress, NULL) == LS_OK;
}

static int64_t rank_of(const struct ls_progress_record *record, int local_rank) {
    uint64_t rank = atomic_load_explicit(&record->world_rank, memory_order_relaxed);
    return rank < LS_WIRE_WORLD_MAX ? (int64_t)rank : local_rank;
}

/* The end of a file behind its first `skipped` bytes, at most TAIL_BYTES of it; false when there is nothing. */
static bool read_tail(const char *path, off_t skipped, char tail[TAIL_BYTES + 1]) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    off_t end = lseek(file, 0, SEEK_END), from = end - skipped > TAIL_BYTES ? end - TAIL_BYTES : skipped;
    bool read = end > from && ls_pread_all(file, tail, (size_t)(end - from), from) == 0;
    close(file);
    tail[read ? end - from : 0] = 0;
    return read;
}

bool ls_watcher_read_launcher(const struct ls_watcher *watcher, struct ls_watcher_loss *loss) {
    static const char prefix[] = "lockstep: ", last[] = "lockstep: exit ";
    char path[PATH_MAX], tail[TAIL_BYTES + 1];
    const char *full = NULL; /* the whole text stands in the line before the one with the code, if it is longer */
    bool found = false;
    snprintf(path, sizeof path, "%s/logs/launcher.log", watcher->run_dir);
    if (!read_tail(path, watcher->launcher_log, tail)) return false;
    for (char *line = tail, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        const char *reason = strstr(line, "): ");
        if (strncmp(line, last, sizeof last - 1) != 0 || !reason) {
            full = strncmp(line, prefix, sizeof prefix - 1) == 0 ? line + sizeof prefix - 1 : NULL;
            continue;
        }
        *loss = (struct ls_watcher_loss){.by_itself = true};
        loss->code = (enum ls_code)strtol(line + sizeof last - 1, NULL, 10);
        ls_wire_make_plain(loss->text, sizeof loss->text, full ? full : reason + strlen("): "));
        found = loss->code != LS_OK;
    }
    return found;
}

void ls_watcher_read_reason(const struct ls_watcher *watcher, struct ls_launcher_reason *reason) {
    struct ls_launcher_reason found;
    char path[PATH_MAX], tail[TAIL_BYTES + 1];
    *reason = (struct ls_launcher_reason){.text = ""};
    snprintf(path, sizeof path, "%s/logs/launcher.log", watcher->run_dir);
    if (!read_tail(path, watcher->launcher_log, tail) || strlen(tail) == TAIL_BYTES) return;
    if (!ls_launcher_find_reason(tail, &found)) return;
    ls_wire_make_plain(reason->text, sizeof reason->text, found.text);
    ls_wire_make_plain(reason->advice, sizeof reason->advice, found.advice);
}

/* The last line of the rank's log that tells an error, without its time; false when there is none. */
static bool read_last_words(const struct ls_watcher *watcher, int64_t rank, char *text, size_t size) {
    char path[PATH_MAX], tail[TAIL_BYTES + 1];
    snprintf(path, sizeof path, "%s/logs/rank-%05lld.log", watcher->run_dir, (long long)rank);
    if (!read_tail(path, 0, tail)) return false;
    bool found = false;
    for (char *line = tail, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        const char *words = strstr(line, " error ");
        if (!words) continue;
        ls_wire_make_plain(text, size, words + strlen(" error "));
        found = true;
    }
    return found;
}

static double seconds_since(const struct ls_progress_record *record) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t changed = atomic_load_explicit(&record->changed_ns, memory_order_relaxed);
    double seconds = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec - 1e-9 * (double)changed;
    return seconds > 0 && seconds < 1e6 ? seconds : 0; /* the field comes from outside */
}

static void describe_loss(const struct ls_watcher *watcher, const struct ls_progress_record *record, int local_rank,
                          struct ls_watcher_loss *loss) {
    uint64_t phase = atomic_load_explicit(&record->phase, memory_order_relaxed);
    uint64_t code = atomic_load_explicit(&record->exit_code, memory_order_relaxed);
    unsigned long long pid = atomic_load_explicit(&record->pid, memory_order_relaxed);
    const char *phase_name = ls_phase_name(phase < LS_PHASE_COUNT ? (enum ls_phase)phase : LS_PHASE_ABSENT);
    *loss = (struct ls_watcher_loss){.rank = rank_of(record, local_rank),
                                     .step = (int64_t)atomic_load_explicit(&record->step, memory_order_relaxed),
                                     .by_itself = phase == LS_PHASE_EXIT,
                                     .asked = atomic_load_explicit(&record->asked_to_end, memory_order_relaxed) != 0,
                                     .silent_seconds = seconds_since(record)};
    if (!loss->by_itself && loss->asked) {
        loss->code = LS_COMMUNICATION;
        snprintf(
            loss->text, sizeof loss->text,
            "communication: rank %lld (pid %llu) was ended by its launcher in phase %s. Look at logs/launcher.log.",
            (long long)loss->rank, pid, phase_name);
        return;
    }
    if (!loss->by_itself) {
        snprintf(loss->text, sizeof loss->text, "pid %llu was killed or crashed, phase %s", pid, phase_name);
        return;
    }
    loss->code = (enum ls_code)code;
    if (!read_last_words(watcher, loss->rank, loss->text, sizeof loss->text))
        snprintf(loss->text, sizeof loss->text, "pid %llu ended with code %llu (%s)", pid, (unsigned long long)code,
                 ls_code_name(loss->code));
}

bool ls_watcher_poll(struct ls_watcher *watcher, struct ls_watcher_loss *loss) {
    if (!is_open(watcher)) return false;
    int count = ls_progress_ranks(watcher->progress);
    for (int i = 0; i < count && i < RANKS_MAX; i++) {
        struct ls_progress_record *record = ls_progress_record(watcher->progress, i);
        if (watcher->told[i] || atomic_load_explicit(&record->pid, memory_order_relaxed) == 0 ||
            ls_progress_alive(record))
            continue;
        /* What it said before it left may not have been read yet, and says more. */
        const bool by_itself = atomic_load_explicit(&record->phase, memory_order_relaxed) == LS_PHASE_EXIT;
        if (by_itself && !watcher->left[i]) {
            watcher->left[i] = true;
            continue;
        }
        watcher->told[i] = true;
        describe_loss(watcher, record, i, loss);
        bool orderly = loss->code == LS_OK || loss->code == LS_REQUEUE || loss->code == LS_STOPPED;
        if (loss->by_itself && orderly) continue; /* its work was done */
        return true;
    }
    return false;
}

void ls_watcher_describe(struct ls_watcher *watcher, int64_t ranks, char *text, size_t size) {
    size_t used = 0;
    text[0] = 0;
    bool open = is_open(watcher);
    int count = open ? ls_progress_ranks(watcher->progress) : 0;
    for (int64_t i = 0; i < ranks && used + 64 < size; i++) {
        const struct ls_progress_record *record = i < count ? ls_progress_record(watcher->progress, (int)i) : NULL;
        uint64_t phase = record ? atomic_load_explicit(&record->phase, memory_order_relaxed) : LS_PHASE_ABSENT;
        const char *separator = used ? "; " : "";
        if (phase != LS_PHASE_ABSENT) {
            used += (size_t)snprintf(text + used, size - used, "%srank %lld (pid %llu) is in phase %s", separator,
                                     (long long)rank_of(record, (int)i),
                                     (unsigned long long)atomic_load_explicit(&record->pid, memory_order_relaxed),
                                     ls_phase_name(phase < LS_PHASE_COUNT ? (enum ls_phase)phase : LS_PHASE_ABSENT));
            continue;
        }
        int64_t last = i;
        while (last + 1 < ranks &&
               (last + 1 >= count || atomic_load_explicit(&ls_progress_record(watcher->progress, (int)last + 1)->phase,
                                                          memory_order_relaxed) == LS_PHASE_ABSENT))
            last++;
        if (last > i)
            used += (size_t)snprintf(text + used, size - used, "%sranks %lld to %lld have not started", separator,
                                     (long long)i, (long long)last);
        else
            used += (size_t)snprintf(text + used, size - used, "%srank %lld has not started", separator, (long long)i);
        i = last;
    }
}
