/* Hashing the run's data beside the run. */
#define _GNU_SOURCE
#include "coordinator/auditor.h"

#include "common/dataset.h"
#include "common/files.h"
#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    FINDINGS_MAX = 16, /* that wait to be told; of more the number is */
    IO_PRIORITY_OF_A_THREAD = 1,
    IO_PRIORITY_IDLE = 3 << 13
};

struct ls_auditor {
    const struct ls_config *config;
    char path[LS_RUN_PATH_MAX + sizeof "/data.jsonl"];
    int wake;
    json_t *known; /* path: the newest line of it */
    int file;      /* RUN/data.jsonl, to append to; -1: not open yet, or it cannot be */
    pthread_t thread;
    atomic_bool stopping;
    /* Of the file being read. */
    double began;
    int64_t bytes_read;
    pthread_mutex_t mutex; /* of what follows */
    char (*findings)[LS_WIRE_TEXT_BYTES];
    int findings_count;
    int64_t untold;
};

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- RUN/data.jsonl ---- */

static void remember(struct ls_auditor *auditor, json_t *line) {
    const char *file = json_string_value(json_object_get(line, "file"));
    if (file && json_is_string(json_object_get(line, "xxh3"))) json_object_set(auditor->known, file, line);
}

/* Lines that a crash cut off are passed over. */
static void read_known(struct ls_auditor *auditor) {
    FILE *file = fopen(auditor->path, "re");
    char *line = NULL;
    size_t size = 0;
    while (file && getline(&line, &size, file) > 0) {
        json_t *known = json_loads(line, 0, NULL);
        remember(auditor, known);
        json_decref(known);
    }
    free(line);
    if (file) fclose(file);
}

/* A line behind a whole one: after half a line it begins anew. */
static void append(struct ls_auditor *auditor, json_t *line) {
    char *text = json_dumps(line, JSON_COMPACT), last = '\n', *whole = NULL;
    if (auditor->file < 0) auditor->file = open(auditor->path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    const off_t end = lseek(auditor->file, 0, SEEK_END);
    if (end > 0 && pread(auditor->file, &last, 1, end - 1) != 1) last = 0;
    const int length = text ? asprintf(&whole, "%s%s\n", last == '\n' ? "" : "\n", text) : -1;
    if (length > 0 && (auditor->file < 0 || ls_write_all(auditor->file, whole, (size_t)length)))
        ls_log(LS_LOG_WARNING, "data: cannot write %s: %s. The file will be hashed again.", auditor->path,
               strerror(errno));
    if (length > 0) free(whole);
    free(text);
}

/* ---- a file ---- */

static void tell(struct ls_auditor *auditor, const char *text) {
    const uint64_t one = 1;
    pthread_mutex_lock(&auditor->mutex);
    if (auditor->findings_count < FINDINGS_MAX) {
        snprintf(auditor->findings[auditor->findings_count++], LS_WIRE_TEXT_BYTES, "%s", text);
    } else {
        ls_log(LS_LOG_WARNING, "%s", text);
        auditor->untold++;
    }
    pthread_mutex_unlock(&auditor->mutex);
    /* Full: the server will wake up anyway. One that has stopped has closed it. */
    if (!atomic_load(&auditor->stopping)) (void)!write(auditor->wake, &one, sizeof one);
}

/* Sleeps so long that no more than LS_AUDIT_BYTES_PER_SECOND are read. */
static bool pace(void *context, int64_t bytes) {
    struct ls_auditor *auditor = context;
    auditor->bytes_read += bytes;
    const double due = auditor->began + (double)auditor->bytes_read / LS_AUDIT_BYTES_PER_SECOND;
    for (double left; !atomic_load(&auditor->stopping) && (left = due - seconds_now()) > 0;) {
        const double slice = left < 0.05 ? left : 0.05;
        nanosleep(&(struct timespec){.tv_nsec = (long)(slice * 1e9)}, NULL);
    }
    return !atomic_load(&auditor->stopping);
}

/* Of other bytes in a file of the same size nobody else takes notice; another size is other data. */
static bool is_size_known(const json_t *known, const struct ls_shard_info *info) {
    return known && json_integer_value(json_object_get(known, "bytes")) == info->bytes;
}

/* Whether the file was hashed before, as it is now. */
static bool is_known(const json_t *known, const struct ls_shard_info *info) {
    return is_size_known(known, info) &&
           json_integer_value(json_object_get(known, "mtime_nanoseconds")) == info->mtime_nanoseconds;
}

static void compare(struct ls_auditor *auditor, const struct ls_shard_info *info, const char *before,
                    const char *hash) {
    static const char advice[] = "The run goes on with what it reads. To train without it, stop, put the right file "
                                 "back and resume from a checkpoint of before: 'lockstep verify --deep' then names the "
                                 "steps that read other tokens.";
    char text[LS_WIRE_TEXT_BYTES];
    const bool described = info->xxh3[0];
    const char *other = described ? info->xxh3 : before;
    if (!other || strcmp(other, hash) == 0) return;
    snprintf(text, sizeof text, "data: the bytes of %s have the hash %s, %s %s: it was changed or damaged. %s",
             info->path, hash, described ? "dataset.json says" : "before they had", other, advice);
    tell(auditor, text);
}

/* False: to be stopped. */
static bool audit_shard(struct ls_auditor *auditor, const struct ls_dataset *dataset, size_t shard) {
    const struct ls_shard_info *info = ls_dataset_shard(dataset, shard);
    const json_t *known = json_object_get(auditor->known, info->path);
    struct ls_digest digest;
    struct ls_error error;
    char hash[33];
    if (is_known(known, info)) {
        compare(auditor, info, NULL, json_string_value(json_object_get(known, "xxh3")));
        return !atomic_load(&auditor->stopping);
    }
    auditor->began = seconds_now();
    auditor->bytes_read = 0;
    const enum ls_code code =
        ls_dataset_scan(dataset, shard, auditor->config->model.vocab_size, &digest, pace, auditor, &error);
    if (code == LS_STOPPED) return false;
    if (code) {
        tell(auditor, error.text);
        return true;
    }
    ls_digest_format(digest, hash);
    compare(auditor, info, is_size_known(known, info) ? json_string_value(json_object_get(known, "xxh3")) : NULL, hash);
    json_t *line = json_pack("{s:s,s:I,s:I,s:s}", "file", info->path, "bytes", (json_int_t)info->bytes,
                             "mtime_nanoseconds", (json_int_t)info->mtime_nanoseconds, "xxh3", hash);
    if (line) {
        append(auditor, line);
        remember(auditor, line);
    }
    json_decref(line);
    return true;
}

static bool audit_source(struct ls_auditor *auditor, const struct ls_config_source *source) {
    struct ls_dataset *dataset;
    struct ls_error error;
    bool on = true;
    if (strncmp(source->path, "synthetic:", strlen("synthetic:")) == 0) return true;
    if (ls_dataset_open(source, auditor->config->data.sequence_length, &dataset, &error)) {
        tell(auditor, error.text); /* it could be opened a moment ago */
        return true;
    }
    for (size_t i = 0; i < ls_dataset_shard_count(dataset) && on; i++) on = audit_shard(auditor, dataset, i);
    ls_dataset_close(dataset);
    return on;
}

static void *auditor_thread(void *argument) {
    struct ls_auditor *auditor = argument;
    const struct ls_config *config = auditor->config;
    /* Of this thread alone; where the system refuses it reads as others do. */
    setpriority(PRIO_PROCESS, (id_t)gettid(), 19);
    syscall(SYS_ioprio_set, IO_PRIORITY_OF_A_THREAD, 0, IO_PRIORITY_IDLE);
    read_known(auditor);
    bool on = true;
    for (int i = 0; i < config->data.train_count && on; i++) on = audit_source(auditor, &config->data.train[i]);
    for (int i = 0; i < config->data.validation_count && on; i++)
        on = audit_source(auditor, &config->data.validation[i]);
    return NULL;
}

enum ls_code ls_auditor_start(const struct ls_run_directory *run, const struct ls_config *config, int wake,
                              struct ls_auditor **result, struct ls_error *error) {
    struct ls_auditor *auditor = calloc(1, sizeof *auditor);
    if (auditor) {
        auditor->findings = calloc(FINDINGS_MAX, sizeof *auditor->findings);
        auditor->known = json_object();
    }
    int cause = auditor && auditor->findings && auditor->known ? 0 : ENOMEM;
    if (!cause) {
        auditor->config = config;
        auditor->wake = wake;
        auditor->file = -1;
        snprintf(auditor->path, sizeof auditor->path, "%s/data.jsonl", run->path);
        pthread_mutex_init(&auditor->mutex, NULL);
        cause = pthread_create(&auditor->thread, NULL, auditor_thread, auditor);
    }
    if (!cause) {
        *result = auditor;
        return LS_OK;
    }
    if (auditor) {
        free(auditor->findings);
        json_decref(auditor->known);
    }
    free(auditor);
    return ls_fail(error, cause == ENOMEM ? LS_MEMORY : LS_ERROR, LS_SCOPE_JOB,
                   "cannot start the thread that hashes data: %s. Check 'ulimit -u'.", strerror(cause));
}

bool ls_auditor_take(struct ls_auditor *auditor, char text[LS_WIRE_TEXT_BYTES]) {
    pthread_mutex_lock(&auditor->mutex);
    const bool taken = auditor->findings_count > 0 || auditor->untold > 0;
    if (auditor->findings_count > 0) {
        memcpy(text, auditor->findings[0], LS_WIRE_TEXT_BYTES);
        auditor->findings_count--;
        memmove(auditor->findings[0], auditor->findings[1],
                (size_t)auditor->findings_count * sizeof *auditor->findings);
    } else if (taken) {
        snprintf(text, LS_WIRE_TEXT_BYTES, "data: %lld more files are not as they should be: see the coordinator's log",
                 (long long)auditor->untold);
        auditor->untold = 0;
    }
    pthread_mutex_unlock(&auditor->mutex);
    return taken;
}

void ls_auditor_stop(struct ls_auditor *auditor) {
    if (!auditor) return;
    struct timespec until;
    atomic_store(&auditor->stopping, true);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 1;
    if (pthread_timedjoin_np(auditor->thread, NULL, &until)) return;
    if (auditor->file >= 0) close(auditor->file);
    pthread_mutex_destroy(&auditor->mutex);
    json_decref(auditor->known);
    free(auditor->findings);
    free(auditor);
}
