/* The progress file: a header and a record per local rank in shared memory. */
#define _GNU_SOURCE
#include "common/progress.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PROGRESS_RANKS_MAX = 4096, PROGRESS_PATH_MAX = 128 };
static const uint64_t progress_magic = 0x32676f72702d736c; /* "ls-prog2" */

/* Two cache lines, so that records stay on lines of their own. */
struct progress_header {
    uint64_t magic, ranks, reserved[14];
};

struct ls_progress {
    struct progress_header *header;
    struct ls_progress_record *records;
    size_t bytes;
    int ranks;
};

static_assert(sizeof(struct progress_header) % 64 == 0 && sizeof(struct ls_progress_record) % 64 == 0,
              "records are whole cache lines");

const char *ls_phase_name(enum ls_phase phase) {
    static const char *const names[LS_PHASE_COUNT] = {
        "absent",  "start",    "MPI_Init", "join",   "load",       "wait for a grant", "step open", "data",
        "forward", "backward", "reduce",   "update", "evaluation", "checkpoint",       "finish",    "exit"};
    return phase >= 0 && phase < LS_PHASE_COUNT ? names[phase] : "unknown";
}

/* Run ids come from outside (environment, wire): hex digits only, so the path stays in /dev/shm. */
static enum ls_code path_of(const char *run_id, int64_t attempt, char path[PROGRESS_PATH_MAX], struct ls_error *error) {
    size_t length = strlen(run_id);
    if (length != 16 || strspn(run_id, "0123456789abcdef") != length || attempt < 0)
        return ls_fail(
            error, LS_ERROR, LS_SCOPE_RANK,
            "progress: '%.40s' is not a run id of 16 hex digits, or attempt %lld is negative. Unset LOCKSTEP_RUN_ID "
            "and LOCKSTEP_ATTEMPT.",
            run_id, (long long)attempt);
    snprintf(path, PROGRESS_PATH_MAX, "/dev/shm/lockstep-%s-a%lld", run_id, (long long)attempt);
    return LS_OK;
}

/* A file of another owner may have been put there by anybody: /dev/shm is open to all. */
static enum ls_code check_owner(int file, const char *path, struct stat *status, struct ls_error *error) {
    if (fstat(file, status))
        return ls_fail(error, LS_ERROR, LS_SCOPE_NODE, "progress: cannot look at %s: %s", path, strerror(errno));
    if (!S_ISREG(status->st_mode) || status->st_uid != geteuid())
        return ls_fail(error, LS_ERROR, LS_SCOPE_NODE, "progress: %s is not a file of this user. Remove it.", path);
    return LS_OK;
}

/* Maps an open file of `ranks` records. The descriptor stays the caller's. */
static enum ls_code map(int file, const char *path, int ranks, struct ls_progress **progress, struct ls_error *error) {
    struct ls_progress *made = malloc(sizeof *made);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "progress: no memory to open %s", path);
    made->bytes = sizeof(struct progress_header) + (size_t)ranks * sizeof(struct ls_progress_record);
    made->ranks = ranks;
    void *memory = mmap(NULL, made->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) {
        int cause = errno;
        free(made);
        return ls_fail(error, LS_ERROR, LS_SCOPE_NODE, "progress: cannot map %s: %s", path, strerror(cause));
    }
    made->header = memory;
    made->records = (struct ls_progress_record *)(made->header + 1);
    *progress = made;
    return LS_OK;
}

enum ls_code ls_progress_open(const char *run_id, int64_t attempt, int ranks, struct ls_progress **progress,
                              struct ls_error *error) {
    char path[PROGRESS_PATH_MAX];
    enum ls_code code = path_of(run_id, attempt, path, error);
    if (code) return code;
    if (ranks < 1 || ranks > PROGRESS_RANKS_MAX)
        return ls_fail(error, LS_ERROR, LS_SCOPE_NODE, "progress: %d ranks on this node, 1 to %d are possible", ranks,
                       PROGRESS_RANKS_MAX);
    int file = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0)
        return ls_fail(error, LS_ERROR, LS_SCOPE_NODE,
                       "progress: cannot open %s: %s. Is /dev/shm mounted and not full?", path, strerror(errno));
    struct stat status;
    size_t bytes = sizeof(struct progress_header) + (size_t)ranks * sizeof(struct ls_progress_record);
    code = check_owner(file, path, &status, error);
    /* Allocated before it is mapped: a full /dev/shm is an error here, not a SIGBUS later. Several ranks may do this at
     * once. */
    if (!code) {
        int failed;
        do failed = posix_fallocate(file, 0, (off_t)bytes);
        while (failed == EINTR);
        if (failed)
            code = ls_fail(error, LS_ERROR, LS_SCOPE_NODE, "progress: cannot allocate %zu bytes of %s: %s", bytes, path,
                           strerror(failed));
    }
    if (!code) code = map(file, path, ranks, progress, error);
    close(file);
    if (code) return code;
    (*progress)->header->ranks = (uint64_t)ranks;
    __atomic_store_n(&(*progress)->header->magic, progress_magic, __ATOMIC_RELEASE);
    return LS_OK;
}

enum ls_code ls_progress_open_existing(const char *run_id, int64_t attempt, struct ls_progress **progress,
                                       struct ls_error *error) {
    char path[PROGRESS_PATH_MAX];
    struct stat status;
    struct progress_header header = {0};
    enum ls_code code = path_of(run_id, attempt, path, error);
    if (code) return code;
    int file = open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (file < 0) return ls_fail(error, LS_ERROR, LS_SCOPE_NODE, "progress: cannot open %s: %s", path, strerror(errno));
    code = check_owner(file, path, &status, error);
    if (!code) {
        int64_t records = (status.st_size - (off_t)sizeof header) / (off_t)sizeof(struct ls_progress_record);
        if (pread(file, &header, sizeof header, 0) != sizeof header || header.magic != progress_magic ||
            header.ranks < 1 || header.ranks > PROGRESS_RANKS_MAX || (int64_t)header.ranks > records)
            code = ls_fail(error, LS_ERROR, LS_SCOPE_NODE, "progress: %s is not complete (%lld bytes)", path,
                           (long long)status.st_size);
    }
    if (!code) code = map(file, path, (int)header.ranks, progress, error);
    close(file);
    return code;
}

int ls_progress_ranks(const struct ls_progress *progress) {
    return progress->ranks;
}

struct ls_progress_record *ls_progress_record(struct ls_progress *progress, int local_rank) {
    assert(local_rank >= 0 && local_rank < progress->ranks);
    return &progress->records[local_rank];
}

static void store(_Atomic uint64_t *field, uint64_t value) {
    atomic_store_explicit(field, value, memory_order_relaxed);
}

static uint64_t load(const _Atomic uint64_t *field) {
    return atomic_load_explicit(field, memory_order_relaxed);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

enum { PLACE_BLOCK_NONE = 0xffffff };

static uint64_t pack_place(uint64_t phase, enum ls_operation_kind kind, uint64_t micro_batch, int64_t block) {
    return (phase & 0xff) | (uint64_t)kind << 8 |
           (block < 0 ? (uint64_t)PLACE_BLOCK_NONE : (uint64_t)block & PLACE_BLOCK_NONE) << 16 |
           (micro_batch & 0xffffff) << 40;
}

/* Puts an operation into the ring and counts the beat; returns its number. */
static uint64_t note(struct ls_progress_record *record, uint64_t when, uint64_t place, uint64_t collective) {
    const uint64_t number = atomic_fetch_add_explicit(&record->operations, 1, memory_order_relaxed);
    struct ls_progress_operation *operation = &record->ring[number % LS_PROGRESS_OPERATIONS];
    store(&operation->when_ns, when);
    store(&operation->ended_ns, 0);
    store(&operation->step, load(&record->step));
    store(&operation->place, place);
    store(&operation->collective, collective);
    store(&record->changed_ns, when);
    atomic_fetch_add_explicit(&record->beat, 1, memory_order_relaxed);
    return number;
}

void ls_progress_mark(struct ls_progress_record *record, enum ls_phase phase, uint64_t step, uint64_t micro_batch,
                      uint64_t block) {
    store(&record->phase, phase);
    store(&record->step, step);
    store(&record->micro_batch, micro_batch);
    store(&record->block, block);
    note(record, now_ns(), pack_place(phase, LS_OPERATION_MARK, micro_batch, (int64_t)block), 0);
}

uint64_t ls_progress_begin_collective(struct ls_progress_record *record, bool stream, uint64_t number, int block) {
    if (!record) return 0;
    store(stream ? &record->collective : &record->host_collective, number);
    return note(record, now_ns(),
                pack_place(load(&record->phase), stream ? LS_OPERATION_STREAM : LS_OPERATION_HOST,
                           load(&record->micro_batch), block),
                number);
}

void ls_progress_end_collective(struct ls_progress_record *record, bool stream, uint64_t number, uint64_t operation) {
    if (!record) return;
    const uint64_t now = now_ns();
    struct ls_progress_operation *slot = &record->ring[operation % LS_PROGRESS_OPERATIONS];
    /* Unless later ones have gone all around the ring since. */
    if (load(&slot->collective) == number) store(&slot->ended_ns, now);
    store(stream ? &record->collective_done : &record->host_collective_done, number);
    store(&record->changed_ns, now);
    atomic_fetch_add_explicit(&record->beat, 1, memory_order_relaxed);
}

static uint64_t age_of(uint64_t now, uint64_t when) {
    return now > when ? now - when : 0;
}

static void read_operations(const struct ls_progress_record *record, uint64_t now, struct ls_progress_view *view) {
    const uint64_t end = load(&record->operations);
    const uint64_t first = end > LS_PROGRESS_OPERATIONS ? end - LS_PROGRESS_OPERATIONS : 0;
    for (uint64_t number = first; number < end; number++) {
        const struct ls_progress_operation *from = &record->ring[number % LS_PROGRESS_OPERATIONS];
        const uint64_t when = load(&from->when_ns), ended = load(&from->ended_ns), place = load(&from->place);
        if (when == 0) continue;
        struct ls_progress_step *to = &view->operations[view->count++];
        const uint32_t block = place >> 16 & PLACE_BLOCK_NONE;
        *to = (struct ls_progress_step){.age_ns = age_of(now, when),
                                        .took_ns = ended ? age_of(ended, when) : UINT64_MAX,
                                        .step = load(&from->step),
                                        .collective = load(&from->collective),
                                        .phase = place & 0xff,
                                        .kind = place >> 8 & 0xff,
                                        .micro_batch = (uint32_t)(place >> 40),
                                        .block = block == PLACE_BLOCK_NONE ? -1 : (int32_t)block};
        if (to->kind == LS_OPERATION_MARK) to->took_ns = 0;
    }
}

void ls_progress_read(const struct ls_progress_record *record, bool operations, struct ls_progress_view *view) {
    const uint64_t now = now_ns();
    view->beat = load(&record->beat);
    view->pid = load(&record->pid);
    view->pid_start = load(&record->pid_start);
    view->world_rank = load(&record->world_rank);
    view->step = load(&record->step);
    view->micro_batch = load(&record->micro_batch);
    view->block = load(&record->block);
    /* Ends before beginnings: what has not ended when it is looked at has begun by then. */
    view->collective_done = load(&record->collective_done);
    view->collective = load(&record->collective);
    view->host_collective_done = load(&record->host_collective_done);
    view->host_collective = load(&record->host_collective);
    view->phase = load(&record->phase);
    view->exit_code = load(&record->exit_code);
    view->gpu = load(&record->gpu);
    view->age_ns = age_of(now, load(&record->changed_ns));
    view->count = 0;
    if (operations) read_operations(record, now, view);
}

/* Field 22 of /proc/PID/stat; 0 when there is no such process or it is a zombie. The name (field 2) may hold anything,
 * so the fields are counted from its last closing parenthesis. */
static uint64_t start_time_of(uint64_t pid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%llu/stat", (unsigned long long)pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    ssize_t count = read(file, text, sizeof text - 1);
    close(file);
    if (count <= 0) return 0;
    text[count] = 0;
    char *next = strrchr(text, ')');
    if (!next || next[1] != ' ' || next[2] == 'Z' || next[2] == 'X') return 0;
    for (int field = 2; field < 22; field++) {
        next = strchr(next + 1, ' ');
        if (!next) return 0;
    }
    return strtoull(next + 1, NULL, 10);
}

/* What was there before: a run whose folder was removed and made again has attempts of the same name. */
static void forget(struct ls_progress_record *record) {
    _Atomic uint64_t *const fields[] = {
        &record->collective,  &record->collective_done, &record->host_collective, &record->host_collective_done,
        &record->reported_ns, &record->operations,      &record->attempt_over,    &record->asked_to_end};
    store(&record->pid, 0); /* nobody's from here on */
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) store(fields[i], 0);
    for (int i = 0; i < LS_PROGRESS_OPERATIONS; i++) store(&record->ring[i].when_ns, 0);
}

void ls_progress_enter(struct ls_progress_record *record) {
    uint64_t pid = (uint64_t)getpid();
    forget(record);
    store(&record->world_rank, UINT64_MAX);
    store(&record->exit_code, UINT64_MAX);
    store(&record->gpu, UINT64_MAX);
    store(&record->pid_start, start_time_of(pid));
    store(&record->pid, pid);
    ls_progress_mark(record, LS_PHASE_START, 0, 0, 0);
}

int ls_progress_alive(const struct ls_progress_record *record) {
    uint64_t pid = atomic_load_explicit(&record->pid, memory_order_relaxed);
    uint64_t start = atomic_load_explicit(&record->pid_start, memory_order_relaxed);
    return pid != 0 && start != 0 && start_time_of(pid) == start;
}

void ls_progress_close(struct ls_progress *progress) {
    if (!progress) return;
    munmap(progress->header, progress->bytes);
    free(progress);
}

void ls_progress_remove(const char *run_id, int64_t attempt) {
    char path[PROGRESS_PATH_MAX];
    if (!path_of(run_id, attempt, path, NULL)) unlink(path);
}
