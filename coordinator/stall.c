/* Gathering scenes, and the dump. */
#define _GNU_SOURCE
#include "coordinator/stall.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum {
    STEP_TIMES_MAX = 64,
    TURN_MS_MAX = 1000,  /* what a turn counts at most */
    LOOK_MS = 1000,      /* between looks at the process of a rank that does not move */
    QUIET_LOOK_MS = 1500 /* after which it is looked at */
};

/* A rank as it was last seen; small, for there may be a hundred thousand of them. Times are the watch's own. */
struct entry {
    bool seen;          /* by a record of this host, or in a report */
    bool direct;        /* by a record */
    bool alive, joined; /* joined: HELLO named its host */
    int host;           /* -1: not known */
    int64_t moved_ms, looked_ms;
    struct ls_process_look *look; /* NULL: nothing is known */
    uint64_t beat, pid, step, micro_batch, block, phase, gpu;
    uint64_t collective, collective_done, host_collective, host_collective_done;
    struct ls_progress_step *operations; /* [operations_count], the oldest first; told of ranks that do not move */
    int operations_count;
};

struct host {
    char name[64];
    bool reports;
    int64_t heard_ms;
};

struct ls_stall {
    struct ls_stall_options options;
    struct ls_progress *progress; /* NULL: not there yet */
    struct entry *entries;        /* [ranks] */
    struct host *hosts;           /* [ranks + 1]; 0 is this one */
    int hosts_count;
    int *buckets; /* [buckets_count] by the hash of a host's name, probed in line; -1: empty */
    size_t buckets_count;
    int64_t turned_ms, clock_ms; /* turned: -1 before the first; the clock counts the time watched */
    double steps[STEP_TIMES_MAX], longest_save;
    int64_t steps_count;
    bool told;
};

/* The index of a host, made when it is new; -1 when there are more hosts than ranks. */
static int find_host(struct ls_stall *stall, const char *name) {
    size_t at = XXH3_64bits(name, strlen(name)) % stall->buckets_count;
    for (; stall->buckets[at] >= 0; at = (at + 1) % stall->buckets_count)
        if (strcmp(stall->hosts[stall->buckets[at]].name, name) == 0) return stall->buckets[at];
    if (stall->hosts_count > stall->options.ranks) return -1;
    struct host *host = &stall->hosts[stall->hosts_count];
    snprintf(host->name, sizeof host->name, "%s", name);
    host->reports = true;
    host->heard_ms = stall->clock_ms;
    return stall->buckets[at] = stall->hosts_count++;
}

enum ls_code ls_stall_create(const struct ls_stall_options *options, struct ls_stall **result, struct ls_error *error) {
    struct ls_stall *stall = calloc(1, sizeof *stall);
    const size_t ranks = (size_t)options->ranks;
    if (stall) {
        stall->options = *options;
        stall->turned_ms = -1;
        stall->entries = calloc(ranks, sizeof *stall->entries);
        stall->hosts = calloc(ranks + 1, sizeof *stall->hosts);
        stall->buckets_count = 2 * ranks + 3;
        stall->buckets = malloc(stall->buckets_count * sizeof *stall->buckets);
    }
    if (!stall || !stall->entries || !stall->hosts || !stall->buckets) {
        ls_stall_destroy(stall);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory to watch %zu ranks for stalls", ranks);
    }
    for (size_t i = 0; i < ranks; i++) stall->entries[i].host = -1;
    memset(stall->buckets, 0xFF, stall->buckets_count * sizeof *stall->buckets);
    find_host(stall, options->host);
    stall->hosts[0].reports = false;
    *result = stall;
    return LS_OK;
}

void ls_stall_destroy(struct ls_stall *stall) {
    if (!stall) return;
    ls_progress_close(stall->progress);
    for (int64_t rank = 0; stall->entries && rank < stall->options.ranks; rank++) {
        free(stall->entries[rank].look);
        free(stall->entries[rank].operations);
    }
    free(stall->entries);
    free(stall->hosts);
    free(stall->buckets);
    free(stall);
}

/* ---- what is told ---- */

void ls_stall_name_rank(struct ls_stall *stall, int64_t rank, const char *host, int64_t pid) {
    if (rank < 0 || rank >= stall->options.ranks) return;
    struct entry *entry = &stall->entries[rank];
    entry->host = find_host(stall, host);
    entry->joined = true;
    if (!entry->seen) entry->pid = (uint64_t)pid;
}

void ls_stall_step(struct ls_stall *stall, const struct ls_step_report *report) {
    stall->steps[stall->steps_count++ % STEP_TIMES_MAX] = report->step_seconds;
    if (report->checkpoint_seconds > stall->longest_save) stall->longest_save = report->checkpoint_seconds;
}

static void set_look(struct entry *entry, const struct ls_process_look *look) {
    if (!look->state && !look->text[0]) {
        free(entry->look);
        entry->look = NULL;
        return;
    }
    if (!entry->look) entry->look = malloc(sizeof *entry->look);
    if (entry->look) *entry->look = *look;
}

static void set_operations(struct entry *entry, const struct ls_progress_view *view) {
    struct ls_progress_step *list =
        view->count > 0 ? realloc(entry->operations, (size_t)view->count * sizeof *list) : NULL;
    if (!list) free(entry->operations);
    entry->operations = list;
    entry->operations_count = list ? view->count : 0;
    if (list) memcpy(list, view->operations, (size_t)view->count * sizeof *list);
}

/* Takes what was seen of a rank; a beat that changed says that it moves. */
static void take(struct ls_stall *stall, int64_t rank, int host, bool direct, bool alive,
                 const struct ls_progress_view *view) {
    if (rank < 0 || rank >= stall->options.ranks || (!direct && stall->entries[rank].direct)) return;
    struct entry *entry = &stall->entries[rank];
    if (!entry->seen || entry->beat != view->beat || entry->pid != view->pid) {
        entry->moved_ms = stall->clock_ms;
        set_look(entry, &(struct ls_process_look){0});
    }
    entry->seen = true;
    entry->direct = direct;
    entry->alive = alive;
    entry->host = host;
#define TAKE(field) entry->field = view->field
    TAKE(beat), TAKE(pid), TAKE(step), TAKE(micro_batch), TAKE(block), TAKE(phase), TAKE(gpu), TAKE(collective);
    TAKE(collective_done), TAKE(host_collective), TAKE(host_collective_done);
#undef TAKE
    if (view->count > 0 || entry->operations) set_operations(entry, view);
}

void ls_stall_report(struct ls_stall *stall, const struct ls_node_report *report) {
    const int host = find_host(stall, report->host);
    if (host < 0) return;
    stall->hosts[host].heard_ms = stall->clock_ms;
    if (host == 0 && stall->progress) return; /* seen directly */
    for (int64_t i = 0; i < report->ranks_count; i++) {
        const struct ls_rank_report *from = &report->ranks[i];
        take(stall, from->rank, host, false, from->alive, &from->view);
        if (from->rank >= 0 && from->rank < stall->options.ranks && !stall->entries[from->rank].direct)
            set_look(&stall->entries[from->rank], &from->look);
    }
}

/* ---- looking ---- */

/* The thread of a worker that is most likely to hang in this phase. */
static const char *thread_of(uint64_t phase) {
    return phase == LS_PHASE_DATA ? "ls-prefetch" : NULL;
}

/* The rank of a record; one that does not know it yet is taken for its local rank. */
static int64_t rank_of(const struct ls_progress_view *view, int local_rank) {
    return view->world_rank < INT32_MAX ? (int64_t)view->world_rank : local_rank;
}

static void look_around(struct ls_stall *stall, bool operations) {
    const struct ls_stall_options *options = &stall->options;
    if (!stall->progress &&
        ls_progress_open_existing(options->run_id, options->attempt, &stall->progress, NULL) != LS_OK)
        stall->progress = NULL;
    const int count = stall->progress ? ls_progress_ranks(stall->progress) : 0;
    for (int i = 0; i < count; i++) {
        const struct ls_progress_record *record = ls_progress_record(stall->progress, i);
        struct ls_progress_view view;
        ls_progress_read(record, operations, &view);
        if (view.pid == 0) continue;
        const int64_t rank = rank_of(&view, i);
        if (rank >= options->ranks) continue;
        struct entry *entry = &stall->entries[rank];
        take(stall, rank, 0, true, entry->seen ? entry->alive : true, &view);
        if (stall->clock_ms - entry->moved_ms < QUIET_LOOK_MS || stall->turned_ms - entry->looked_ms < LOOK_MS)
            continue;
        struct ls_process_look look;
        entry->looked_ms = stall->turned_ms;
        entry->alive = ls_progress_alive(record);
        ls_process_look((int64_t)view.pid, thread_of(view.phase), &look);
        set_look(entry, &look);
    }
}

static int compare_numbers(const void *a, const void *b) {
    const double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static double median_step(const struct ls_stall *stall) {
    double sorted[STEP_TIMES_MAX];
    const size_t count = stall->steps_count < STEP_TIMES_MAX ? (size_t)stall->steps_count : STEP_TIMES_MAX;
    if (count == 0) return 0;
    memcpy(sorted, stall->steps, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, compare_numbers);
    return sorted[count / 2];
}

static bool is_gone(const struct entry *entry) {
    return entry->seen && (!entry->alive || entry->phase == LS_PHASE_EXIT);
}

static void fill_rank(const struct ls_stall *stall, int64_t rank, struct ls_verdict_rank *to) {
    const struct entry *entry = &stall->entries[rank];
    *to = (struct ls_verdict_rank){.known = entry->seen || entry->joined,
                                   .gone = is_gone(entry),
                                   .host = entry->host,
                                   .pid = (int64_t)entry->pid,
                                   .gpu = entry->seen && entry->gpu <= INT64_MAX ? (int64_t)entry->gpu : -1,
                                   .phase = entry->seen ? entry->phase : (uint64_t)LS_PHASE_LOAD,
                                   .step = entry->step,
                                   .micro_batch = entry->micro_batch,
                                   .block = entry->block,
                                   .collective = entry->collective,
                                   .collective_done = entry->collective_done,
                                   .host_collective = entry->host_collective,
                                   .host_collective_done = entry->host_collective_done,
                                   .quiet_seconds = 1e-3 * (double)(stall->clock_ms - entry->moved_ms)};
    if (entry->look) to->look = *entry->look;
}

/* The usual case, without making a scene: somebody has moved lately. */
static bool moves(const struct ls_stall *stall, double patience_seconds) {
    for (int64_t rank = 0; rank < stall->options.ranks; rank++) {
        const struct entry *entry = &stall->entries[rank];
        const bool judged = (entry->seen || entry->joined) && !is_gone(entry);
        if (judged && 1e-3 * (double)(stall->clock_ms - entry->moved_ms) < patience_seconds) return true;
    }
    return false;
}

/* Makes the scene and asks. */
static bool judge(const struct ls_stall *stall, const struct ls_verdict_limits *limits, bool joined,
                  struct ls_verdict *verdict) {
    const size_t ranks_count = (size_t)stall->options.ranks, hosts_count = (size_t)stall->hosts_count;
    struct ls_verdict_rank *ranks = malloc(ranks_count * sizeof *ranks);
    struct ls_verdict_host *hosts = malloc(hosts_count * sizeof *hosts);
    bool found = false;
    if (ranks && hosts) {
        for (size_t rank = 0; rank < ranks_count; rank++) fill_rank(stall, (int64_t)rank, &ranks[rank]);
        for (size_t host = 0; host < hosts_count; host++) {
            memcpy(hosts[host].name, stall->hosts[host].name, sizeof hosts[host].name);
            hosts[host].reports = stall->hosts[host].reports;
            hosts[host].silent_seconds = 1e-3 * (double)(stall->clock_ms - stall->hosts[host].heard_ms);
        }
        const struct ls_verdict_scene scene = {.ranks = ranks,
                                               .ranks_count = (int)ranks_count,
                                               .hosts = hosts,
                                               .hosts_count = (int)hosts_count,
                                               .limits = *limits,
                                               .joined = joined,
                                               .stepped = stall->steps_count > 0,
                                               .waiting_seconds = 1e-3 * (double)stall->clock_ms};
        found = ls_verdict_find(&scene, verdict);
    }
    free(ranks);
    free(hosts);
    return found;
}

bool ls_stall_poll(struct ls_stall *stall, int64_t now_ms, bool joined, struct ls_verdict *verdict) {
    const struct ls_stall_options *options = &stall->options;
    int64_t turn = stall->turned_ms < 0 ? 0 : now_ms - stall->turned_ms;
    if (turn > TURN_MS_MAX) turn = TURN_MS_MAX;
    stall->turned_ms = now_ms;
    stall->clock_ms += turn;
    if (stall->told) return false;
    look_around(stall, false);
    const struct ls_verdict_limits limits = ls_verdict_limits(
        options->timeout, options->start_timeout, options->grant_timeout, median_step(stall), stall->longest_save);
    const bool late = !joined && 1e-3 * (double)stall->clock_ms >= limits.start;
    if (!late && moves(stall, ls_verdict_patience(&limits))) return false;
    stall->told = judge(stall, &limits, joined, verdict);
    return stall->told;
}

const char *ls_stall_host(const struct ls_stall *stall, int host) {
    return host >= 0 && host < stall->hosts_count ? stall->hosts[host].name : "";
}

const char *ls_stall_rank_host(const struct ls_stall *stall, int64_t rank) {
    return rank >= 0 && rank < stall->options.ranks ? ls_stall_host(stall, stall->entries[rank].host) : "";
}

/* ---- the dump ---- */

static void dump_operation(FILE *file, const struct ls_progress_step *operation) {
    const char *phase =
        ls_phase_name(operation->phase < LS_PHASE_COUNT ? (enum ls_phase)operation->phase : LS_PHASE_COUNT);
    fprintf(file, "  %12.6f s ago  step %" PRIu64 ", micro-batch %u, %s", 1e-9 * (double)operation->age_ns,
            operation->step, operation->micro_batch, phase);
    if (operation->block >= 0) fprintf(file, ", block %d", operation->block);
    if (operation->kind != LS_OPERATION_MARK) {
        fprintf(file, ", %scollective %" PRIu64, operation->kind == LS_OPERATION_HOST ? "host " : "",
                operation->collective);
        if (operation->took_ns == UINT64_MAX)
            fprintf(file, ", not ended");
        else
            fprintf(file, ", took %.6f s", 1e-9 * (double)operation->took_ns);
    }
    fputc('\n', file);
}

static void dump_rank(const struct ls_stall *stall, int64_t rank, FILE *file) {
    enum { DESCRIPTION_BYTES = 16384 };
    const struct entry *entry = &stall->entries[rank];
    fprintf(file, "\nrank %" PRId64, rank);
    if (entry->host >= 0) fprintf(file, " on %s", stall->hosts[entry->host].name);
    if (!entry->seen) {
        fprintf(file, ": nothing was seen of it\n");
        return;
    }
    fprintf(file,
            ", pid %" PRIu64 "%s: phase %s, step %" PRIu64 ", micro-batch %" PRIu64 ", block %" PRIu64
            "; collective %" PRIu64 " begun, %" PRIu64 " ended; on the host %" PRIu64 " begun, %" PRIu64
            " ended; has not moved for %.1f s\n",
            entry->pid, entry->alive ? "" : " (gone)",
            ls_phase_name(entry->phase < LS_PHASE_COUNT ? (enum ls_phase)entry->phase : LS_PHASE_COUNT), entry->step,
            entry->micro_batch, entry->block, entry->collective, entry->collective_done, entry->host_collective,
            entry->host_collective_done, 1e-3 * (double)(stall->clock_ms - entry->moved_ms));
    if (entry->look) fprintf(file, "  %s\n", entry->look->text);
    char *description = entry->direct ? malloc(DESCRIPTION_BYTES) : NULL;
    if (description) {
        ls_process_describe((int64_t)entry->pid, description, DESCRIPTION_BYTES);
        fputs(description, file);
        free(description);
    }
    for (int i = 0; i < entry->operations_count; i++) dump_operation(file, &entry->operations[i]);
}

enum ls_code ls_stall_dump(struct ls_stall *stall, const struct ls_verdict *verdict, char *path, size_t size,
                           struct ls_error *error) {
    const struct ls_stall_options *options = &stall->options;
    const uint64_t step = stall->entries[verdict->rank].step;
    snprintf(path, size, "%s/logs/stall-a%" PRId64 "-step%" PRIu64 ".txt", options->run_dir, options->attempt, step);
    look_around(stall, true);
    FILE *file = fopen(path, "we");
    if (!file) return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "cannot write %s: %s", path, strerror(errno));
    fprintf(file, "attempt %" PRId64 ", %s: rank %d on %s: %s\n", options->attempt, ls_verdict_name(verdict->kind),
            verdict->rank, ls_stall_host(stall, verdict->host), verdict->text);
    for (int64_t rank = 0; rank < options->ranks; rank++) dump_rank(stall, rank, file);
    const bool failed = ferror(file);
    if (fclose(file) || failed)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "cannot write %s: %s", path, strerror(errno));
    return LS_OK;
}
