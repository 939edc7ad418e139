/* Slurm's variables and its short forms of lists. */
#include "coordinator/slurm.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { COUNT_MAX = 10000000, MARGIN_SECONDS_LEAST = 20, MARGIN_SECONDS_MOST = 300 };

/* ---- lists of hosts ---- */

/* Name so far, and what is still to be expanded; recursion over the brackets of one name. */
struct expansion {
    char name[LS_HOST_NAME_SIZE];
    struct ls_hosts *hosts;
    struct ls_error *error;
};

static enum ls_code refuse_list(const char *text, struct ls_error *error) {
    return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "'%.100s' is no list of hosts as Slurm writes it", text);
}

static enum ls_code expand(struct expansion *expansion, size_t used, const char *rest, const char *end);

/* The numbers from `first` to `last`, with as many digits as `first` has, each followed by the rest of the name. */
static enum ls_code expand_range(struct expansion *expansion, size_t used, const char *range, size_t length,
                                 const char *rest, const char *end) {
    unsigned long first, last;
    size_t width = strspn(range, "0123456789"), second = 0;
    if (width == 0 || width > 9 || width > length) return refuse_list(range, expansion->error);
    first = last = strtoul(range, NULL, 10);
    if (width < length) {
        second = range[width] == '-' ? strspn(range + width + 1, "0123456789") : 0;
        if (second == 0 || second > 9 || width + 1 + second != length) return refuse_list(range, expansion->error);
        last = strtoul(range + width + 1, NULL, 10);
    }
    if (last < first || last - first >= LS_HOSTS_MAX) return refuse_list(range, expansion->error);
    for (unsigned long number = first; number <= last; number++) {
        int more = snprintf(expansion->name + used, sizeof expansion->name - used, "%0*lu", (int)width, number);
        if (more < 0 || used + (size_t)more >= sizeof expansion->name) return refuse_list(range, expansion->error);
        enum ls_code code = expand(expansion, used + (size_t)more, rest, end);
        if (code != LS_OK) return code;
    }
    return LS_OK;
}

static enum ls_code expand(struct expansion *expansion, size_t used, const char *rest, const char *end) {
    while (rest < end && *rest != '[') {
        if (used + 1 >= sizeof expansion->name) return refuse_list(rest, expansion->error);
        expansion->name[used++] = *rest++;
    }
    if (rest == end) return ls_hosts_add(expansion->hosts, expansion->name, used, 0, expansion->error);
    const char *close = memchr(rest, ']', (size_t)(end - rest));
    if (!close) return refuse_list(rest, expansion->error);
    for (const char *range = rest + 1, *comma;; range = comma + 1) {
        comma = memchr(range, ',', (size_t)(close - range));
        const char *stop = comma ? comma : close;
        enum ls_code code = expand_range(expansion, used, range, (size_t)(stop - range), close + 1, end);
        if (code != LS_OK || !comma) return code;
    }
}

enum ls_code ls_slurm_expand_hosts(const char *text, struct ls_hosts *hosts, struct ls_error *error) {
    struct expansion expansion = {.hosts = hosts, .error = error};
    const char *item = text;
    for (int depth = 0;; text++) {
        depth += *text == '[' ? 1 : *text == ']' ? -1 : 0;
        if (depth < 0 || depth > 1 || (depth && !*text)) return refuse_list(item, error);
        if (*text && (*text != ',' || depth)) continue;
        enum ls_code code = expand(&expansion, 0, item, text);
        if (code != LS_OK || !*text) return code;
        item = text + 1;
    }
}

int ls_slurm_expand_counts(const char *text, int64_t *counts, int most) {
    int total = 0;
    for (const char *at = text;;) {
        char *end;
        long count = isdigit((unsigned char)*at) ? strtol(at, &end, 10) : -1, times = 1;
        if (count < 1 || count > COUNT_MAX) return -1;
        if (strncmp(end, "(x", 2) == 0) {
            times = isdigit((unsigned char)end[2]) ? strtol(end + 2, &end, 10) : -1;
            if (times < 1 || times > LS_HOSTS_MAX || *end++ != ')') return -1;
        }
        for (long i = 0; i < times && total < LS_HOSTS_MAX; i++, total++)
            if (total < most) counts[total] = count;
        if (!*end) return total;
        if (*end != ',') return -1;
        at = end + 1;
    }
}

/* ---- the environment ---- */

/* A whole number of at least `least`; 0 when the variable is not set or empty. */
static enum ls_code read_number(char *(*get)(const char *), const char *name, int64_t *number, struct ls_error *error) {
    const char *text = get(name);
    *number = 0;
    if (!text || !*text) return LS_OK;
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno || *end || value < 0 || !isdigit((unsigned char)text[0]))
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "the environment says %s=%.40s, which is no number: is this a Slurm job? Unset SLURM_JOB_ID to "
                       "run without Slurm.",
                       name, text);
    *number = value;
    return LS_OK;
}

static enum ls_code read_hosts(char *(*get)(const char *), struct ls_slurm *slurm, struct ls_hosts *hosts,
                               struct ls_error *error) {
    const char *list = get("SLURM_JOB_NODELIST"), *tasks = get("SLURM_TASKS_PER_NODE");
    if (!list || !*list)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "the environment has SLURM_JOB_ID and no SLURM_JOB_NODELIST: is this a Slurm job? Unset "
                       "SLURM_JOB_ID to run without Slurm.");
    enum ls_code code = ls_slurm_expand_hosts(list, hosts, error);
    if (code != LS_OK) {
        ls_fail_within(error, "SLURM_JOB_NODELIST");
        return code;
    }
    int64_t *counts = calloc((size_t)hosts->count, sizeof *counts);
    if (!counts) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for %d hosts", hosts->count);
    int64_t sum = 0;
    /* Without --ntasks Slurm counts one task a CPU here, which says nothing about ranks. */
    if (slurm->tasks && tasks && ls_slurm_expand_counts(tasks, counts, hosts->count) == hosts->count)
        for (int i = 0; i < hosts->count; i++) sum += hosts->list[i].slots = counts[i];
    /* --ntasks in a step of other shape: deal them evenly. */
    for (int i = 0; sum < slurm->tasks; i = (i + 1) % hosts->count, sum++) hosts->list[i].slots++;
    free(counts);
    return LS_OK;
}

enum ls_code ls_slurm_find(char *(*get)(const char *name), struct ls_slurm *slurm, struct ls_hosts *hosts,
                           struct ls_error *error) {
    *slurm = (struct ls_slurm){.array_task = -1};
    enum ls_code code = read_number(get, "SLURM_JOB_ID", &slurm->job, error);
    if (code != LS_OK || !slurm->job) return code;
    int64_t per_node = 0, nodes = 0;
    const struct {
        const char *name;
        int64_t *number;
    } numbers[] = {{"SLURM_NTASKS", &slurm->tasks},
                   {"SLURM_NTASKS_PER_NODE", &per_node},
                   {"SLURM_JOB_NUM_NODES", &nodes},
                   {"SLURM_CPUS_PER_TASK", &slurm->cpus_per_task},
                   {"SLURM_JOB_START_TIME", &slurm->start_time},
                   {"SLURM_JOB_END_TIME", &slurm->end_time},
                   {"SLURM_RESTART_COUNT", &slurm->restarts},
                   {"SLURM_STEP_NUM_TASKS", &slurm->step_tasks}};
    for (size_t i = 0; code == LS_OK && i < sizeof numbers / sizeof *numbers; i++)
        code = read_number(get, numbers[i].name, numbers[i].number, error);
    const char *task = get("SLURM_ARRAY_TASK_ID");
    if (code == LS_OK && task && *task) code = read_number(get, "SLURM_ARRAY_TASK_ID", &slurm->array_task, error);
    if (code == LS_OK) code = read_number(get, "SLURM_ARRAY_JOB_ID", &slurm->array_job, error);
    if (code != LS_OK) return code;
    if (!slurm->tasks) slurm->tasks = per_node * nodes;
    if (slurm->tasks > COUNT_MAX)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "the environment says SLURM_NTASKS=%lld, more than %d",
                       (long long)slurm->tasks, COUNT_MAX);
    return read_hosts(get, slurm, hosts, error);
}

/* ---- time ---- */

int64_t ls_slurm_parse_duration(const char *text) {
    int64_t parts[4] = {0};
    int count = 0;
    bool days = false;
    for (const char *at = text; count < 4; at++) {
        char *end;
        if (!isdigit((unsigned char)*at)) return -1;
        parts[count++] = strtoll(at, &end, 10);
        if (parts[count - 1] > COUNT_MAX) return -1;
        at = end;
        if (!*at || *at == '\n' || *at == ' ') break;
        if (*at == '-' && count == 1 && !days)
            days = true;
        else if (*at != ':')
            return -1;
    }
    if (count < 2 || (days && count != 4) || (!days && count == 4)) return -1;
    const int64_t seconds = parts[count - 1], minutes = parts[count - 2], hours = count > 2 ? parts[count - 3] : 0;
    return (((days ? parts[0] : 0) * 24 + hours) * 60 + minutes) * 60 + seconds;
}

void ls_slurm_ask_times(struct ls_slurm *slurm) {
    char command[160], job[64], limit[64], left[64];
    if (!slurm->job) return;
    /* One task of an array has the array's number, by which squeue would tell of all of them. */
    if (slurm->array_job && slurm->array_task >= 0)
        snprintf(job, sizeof job, "%lld_%lld", (long long)slurm->array_job, (long long)slurm->array_task);
    else
        snprintf(job, sizeof job, "%lld", (long long)slurm->job);
    snprintf(command, sizeof command, "timeout 5 squeue --noheader --jobs=%s --format='%%l %%L' 2>/dev/null", job);
    FILE *pipe = popen(command, "re");
    if (!pipe) return;
    const int64_t now = (int64_t)time(NULL);
    if (fscanf(pipe, "%63s %63s", limit, left) == 2) {
        const int64_t whole = ls_slurm_parse_duration(limit), rest = ls_slurm_parse_duration(left);
        if (strcmp(left, "UNLIMITED") == 0) {
            slurm->end_time = 0;
        } else if (whole >= 0 && rest >= 0) {
            slurm->end_time = now + rest;
            slurm->start_time = slurm->end_time - whole;
        }
    }
    pclose(pipe);
}

double ls_slurm_seconds_to_save(const struct ls_slurm *slurm, int64_t before_end_seconds, double now) {
    if (!slurm->job || !slurm->end_time) return INFINITY;
    double margin = (double)before_end_seconds;
    if (before_end_seconds == 0) {
        margin = slurm->start_time ? (double)(slurm->end_time - slurm->start_time) / 10 : MARGIN_SECONDS_MOST;
        if (margin < MARGIN_SECONDS_LEAST) margin = MARGIN_SECONDS_LEAST;
        if (margin > MARGIN_SECONDS_MOST) margin = MARGIN_SECONDS_MOST;
    }
    return (double)slurm->end_time - margin - now;
}
