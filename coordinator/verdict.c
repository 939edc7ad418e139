/* Who waits for whom. */
#define _GNU_SOURCE
#include "coordinator/verdict.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Reports come once a second. Without one for the first time nothing is known for certain: the rank that reports may be
 * stopped, and the next one takes over. After the second the host is silent. */
static const double DOUBT_SECONDS = 2.5, SILENCE_SECONDS = 8;

const char *ls_verdict_name(enum ls_verdict_kind kind) {
    static const char *const names[LS_VERDICT_KINDS] = {"none",   "stopped", "stuck",    "missing",
                                                        "silent", "network", "deadlock", "grant"};
    return kind < LS_VERDICT_KINDS ? names[kind] : "unknown";
}

static double larger(double a, double b) {
    return a > b ? a : b;
}

struct ls_verdict_limits ls_verdict_limits(double timeout, double start_timeout, double grant_timeout,
                                           double median_step, double longest_save) {
    struct ls_verdict_limits limits = {.start = start_timeout};
    limits.step = timeout > 0 ? timeout : larger(10, 20 * median_step);
    limits.first_step = timeout > 0 ? timeout : start_timeout;
    limits.checkpoint = larger(limits.step, longest_save > 0 ? larger(60, 10 * longest_save) : 600);
    limits.grant = larger(limits.step, grant_timeout);
    return limits;
}

/* ---- texts ---- */

static void append(char *text, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void append(char *text, size_t size, const char *format, ...) {
    const size_t used = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, size - used, format, arguments);
    va_end(arguments);
}

void ls_verdict_list(const bool *listed, int count, char *text, size_t size) {
    enum { ROOM_FOR_REST = 24 };
    int left = 0;
    text[0] = 0;
    for (int rank = 0; rank < count; rank++) left += listed[rank];
    for (int rank = 0; rank < count; rank++) {
        if (!listed[rank]) continue;
        int last = rank;
        while (last + 1 < count && listed[last + 1]) last++;
        if (strlen(text) + ROOM_FOR_REST + 24 > size) {
            append(text, size, " and %d more", left);
            return;
        }
        append(text, size, "%s%d", text[0] ? ", " : "", rank);
        if (last > rank) append(text, size, "%s%d", last > rank + 1 ? "-" : ", ", last);
        left -= last - rank + 1;
        rank = last;
    }
}

static const char *phase_name(uint64_t phase) {
    return ls_phase_name(phase < LS_PHASE_COUNT ? (enum ls_phase)phase : LS_PHASE_COUNT);
}

/* ---- who waits for whom ---- */

static bool is_judged(const struct ls_verdict_rank *rank) {
    return rank->known && !rank->gone && rank->phase < LS_PHASE_FINISH;
}

/* Before this rank can take part in a collective. */
static bool is_early(const struct ls_verdict_rank *rank) {
    return rank->phase <= LS_PHASE_MPI_INIT;
}

/* `rank` is in a collective, on the host or on a stream, to which `other` has not come. */
static bool waits_on_host(const struct ls_verdict_rank *rank, const struct ls_verdict_rank *other) {
    return rank->host_collective > rank->host_collective_done && other->host_collective < rank->host_collective;
}
static bool waits_on_stream(const struct ls_verdict_rank *rank, const struct ls_verdict_rank *other) {
    return rank->collective > rank->collective_done && other->collective < rank->collective;
}

static bool waits_for(const struct ls_verdict_rank *rank, const struct ls_verdict_rank *other) {
    if (is_early(other)) return is_early(rank) ? other->phase < rank->phase : true;
    return !is_early(rank) && (waits_on_host(rank, other) || waits_on_stream(rank, other));
}

static bool is_stopped(const struct ls_verdict_rank *rank) {
    return rank->look.state == 'T' || rank->look.state == 't';
}

/* Seconds since the host of the rank was heard; 0 when it is seen directly. */
static double silence_of(const struct ls_verdict_scene *scene, const struct ls_verdict_rank *rank) {
    if (rank->host < 0 || rank->host >= scene->hosts_count || !scene->hosts[rank->host].reports) return 0;
    return scene->hosts[rank->host].silent_seconds;
}

static bool is_silent(const struct ls_verdict_scene *scene, const struct ls_verdict_rank *rank) {
    return silence_of(scene, rank) >= SILENCE_SECONDS;
}

/* What is known of the rank is old, and will be replaced, or its host will be silent. */
static bool is_doubtful(const struct ls_verdict_scene *scene, const struct ls_verdict_rank *rank) {
    const double silence = silence_of(scene, rank);
    return silence >= DOUBT_SECONDS && silence < SILENCE_SECONDS;
}

/* What makes a rank that waits for nobody the one to look at. */
static int suspicion(const struct ls_verdict_scene *scene, const struct ls_verdict_rank *rank) {
    if (is_silent(scene, rank)) return 3;
    if (is_stopped(rank)) return 2;
    return rank->look.state == 'D';
}

static int compare_looks(const void *a, const void *b, void *ranks) {
    const struct ls_verdict_rank *list = ranks;
    return strcmp(list[*(const int *)a].look.text, list[*(const int *)b].look.text);
}

/* In MPI_Init nothing tells who waits for whom, but that the ones who wait all do the same: for every rank how many
 * judged ones do what it does, [ranks_count], the caller's; 0 for ranks elsewhere. NULL without memory. */
static int *find_company(const struct ls_verdict_scene *scene) {
    const size_t count = (size_t)scene->ranks_count;
    int *company = calloc(count + 1, sizeof *company), *order = calloc(count + 1, sizeof *order), judged = 0;
    for (int i = 0; order && i < scene->ranks_count; i++)
        if (is_judged(&scene->ranks[i])) order[judged++] = i;
    if (company && order) qsort_r(order, (size_t)judged, sizeof *order, compare_looks, (void *)(uintptr_t)scene->ranks);
    for (int first = 0, next; company && order && first < judged; first = next) {
        for (next = first + 1; next < judged; next++)
            if (compare_looks(&order[first], &order[next], (void *)(uintptr_t)scene->ranks) != 0) break;
        for (int i = first; i < next; i++)
            if (scene->ranks[order[i]].phase == LS_PHASE_MPI_INIT) company[order[i]] = next - first;
    }
    free(order);
    return company;
}

/* True when rank number `number` is more likely to be the one to look at than `before`; neither waits for anybody. */
static bool is_likelier(const struct ls_verdict_scene *scene, const int *company, int number, int before) {
    const struct ls_verdict_rank *rank = &scene->ranks[number], *best = &scene->ranks[before];
    if (suspicion(scene, rank) != suspicion(scene, best)) return suspicion(scene, rank) > suspicion(scene, best);
    if (company && company[number] != company[before]) return company[number] < company[before];
    const bool file = strstr(rank->look.text, " of "), file_before = strstr(best->look.text, " of ");
    if (file != file_before) return file;
    return rank->quiet_seconds > best->quiet_seconds + 1;
}

/* How far the least far of the judged ranks are: enough to know who waits, without a look at every pair of what may be
 * a hundred thousand. */
struct least {
    uint64_t phase;                       /* of those that cannot take part in a collective yet; UINT64_MAX: none */
    uint64_t host_collective, collective; /* of the others */
};

static struct least find_least(const struct ls_verdict_scene *scene) {
    struct least least = {UINT64_MAX, UINT64_MAX, UINT64_MAX};
    for (int i = 0; i < scene->ranks_count; i++) {
        const struct ls_verdict_rank *rank = &scene->ranks[i];
        if (!is_judged(rank)) continue;
        if (is_early(rank)) {
            if (rank->phase < least.phase) least.phase = rank->phase;
            continue;
        }
        if (rank->host_collective < least.host_collective) least.host_collective = rank->host_collective;
        if (rank->collective < least.collective) least.collective = rank->collective;
    }
    return least;
}

/* True when waits_for() holds for the rank and some judged one. */
static bool waits_for_any(const struct ls_verdict_rank *rank, const struct least *least) {
    if (is_early(rank)) return least->phase < rank->phase;
    return least->phase != UINT64_MAX ||
           (rank->host_collective > rank->host_collective_done && least->host_collective < rank->host_collective) ||
           (rank->collective > rank->collective_done && least->collective < rank->collective);
}

/* Some judged rank waits for nobody that is judged; -1: every one waits for another. */
static int find_root(const struct ls_verdict_scene *scene) {
    const struct least least = find_least(scene);
    int *company = least.phase == UINT64_MAX ? NULL : find_company(scene);
    int root = -1;
    for (int i = 0; i < scene->ranks_count; i++) {
        if (!is_judged(&scene->ranks[i]) || waits_for_any(&scene->ranks[i], &least)) continue;
        if (root < 0 || is_likelier(scene, company, i, root)) root = i;
    }
    free(company);
    return root;
}

static bool is_in_host_collective(const struct ls_verdict_rank *rank) {
    return rank->host_collective > rank->host_collective_done;
}
static bool is_in_stream_collective(const struct ls_verdict_rank *rank) {
    return rank->collective > rank->collective_done;
}

/* Its process is stopped, or its host is silent: others wait for it wherever it is. */
static bool is_held(const struct ls_verdict_scene *scene, const struct ls_verdict_rank *rank) {
    return suspicion(scene, rank) >= 2;
}

/* A rank in a collective waits for those that have left it too: what they sent may be held back with them. So of a root
 * in a collective and a rank that is held the latter is the one to look at. */
static int prefer_held(const struct ls_verdict_scene *scene, int root) {
    const struct ls_verdict_rank *rank = root < 0 ? NULL : &scene->ranks[root];
    if (!rank || is_early(rank) || is_held(scene, rank)) return root;
    if (!is_in_host_collective(rank) && !is_in_stream_collective(rank)) return root;
    for (int i = 0; i < scene->ranks_count; i++)
        if (is_judged(&scene->ranks[i]) && is_held(scene, &scene->ranks[i])) return i;
    return root;
}

/* All judged ranks are in one collective, so that none of them holds up the others by itself. */
static bool all_in_one_collective(const struct ls_verdict_scene *scene, const struct ls_verdict_rank *root) {
    int count = 0;
    const bool host = root->host_collective > root->host_collective_done;
    if (!host && root->collective <= root->collective_done) return false;
    for (int i = 0; i < scene->ranks_count; i++) {
        const struct ls_verdict_rank *rank = &scene->ranks[i];
        if (!is_judged(rank)) continue;
        if (is_early(rank)) return false;
        if (host ? rank->host_collective != root->host_collective || rank->host_collective_done >= rank->host_collective
                 : rank->collective != root->collective || rank->collective_done >= rank->collective)
            return false;
        count++;
    }
    return count > 1;
}

static double limit_of(const struct ls_verdict_scene *scene, const struct ls_verdict_rank *rank) {
    const struct ls_verdict_limits *limits = &scene->limits;
    /* Where it is now is not known. */
    if (is_silent(scene, rank) && scene->joined) return scene->stepped ? limits->step : limits->first_step;
    if (rank->phase <= LS_PHASE_LOAD) return limits->start;
    if (rank->phase == LS_PHASE_CHECKPOINT) return limits->checkpoint;
    if (rank->phase == LS_PHASE_WAIT_GRANT) return limits->grant;
    return scene->stepped ? limits->step : limits->first_step;
}

/* Both are in it, and it has not ended. */
static bool shares_host_collective(const struct ls_verdict_rank *a, const struct ls_verdict_rank *b) {
    return a->host_collective == b->host_collective && is_in_host_collective(a) && is_in_host_collective(b);
}
static bool shares_stream_collective(const struct ls_verdict_rank *a, const struct ls_verdict_rank *b) {
    return a->collective == b->collective && is_in_stream_collective(a) && is_in_stream_collective(b);
}

/* Who waits for the root, and in which collective: the first one that it has not come to, else the one that they are in
 * together. */
static void find_waiting(const struct ls_verdict_scene *scene, int root, struct ls_verdict *verdict) {
    bool *listed = calloc((size_t)scene->ranks_count, sizeof *listed);
    const struct ls_verdict_rank *rank = &scene->ranks[root];
    for (int i = 0; i < scene->ranks_count; i++) {
        const struct ls_verdict_rank *other = &scene->ranks[i];
        if (i == root || !is_judged(other)) continue;
        if (is_silent(scene, rank) && other->host == rank->host) continue; /* as little heard as the root */
        const bool early = is_early(rank) || is_early(other), held = is_held(scene, rank);
        const bool on_host = !early && (waits_on_host(other, rank) || shares_host_collective(other, rank) ||
                                        (held && is_in_host_collective(other)));
        const bool on_stream = !early && (waits_on_stream(other, rank) || shares_stream_collective(other, rank) ||
                                          (held && is_in_stream_collective(other)));
        if (listed) listed[i] = on_host || on_stream || waits_for(other, rank);
        const uint64_t number = on_host ? other->host_collective : on_stream ? other->collective : 0;
        if (number && (!verdict->collective || number < verdict->collective)) {
            verdict->collective = number;
            verdict->collective_on_host = on_host;
        }
    }
    if (listed) ls_verdict_list(listed, scene->ranks_count, verdict->waiting, sizeof verdict->waiting);
    free(listed);
}

/* ---- the verdict ---- */

/* "step 41, micro-batch 1, block 7": as far as it means something in the phase. */
static void tell_place(const struct ls_verdict_rank *rank, char *text, size_t size) {
    snprintf(text, size, "in phase %s", phase_name(rank->phase));
    if (rank->phase > LS_PHASE_LOAD) append(text, size, " of step %llu", (unsigned long long)rank->step);
    if (rank->phase == LS_PHASE_FORWARD || rank->phase == LS_PHASE_BACKWARD)
        append(text, size, ", micro-batch %llu, block %llu", (unsigned long long)rank->micro_batch,
               (unsigned long long)rank->block);
}

static void tell_waiting(const struct ls_verdict *verdict, char *text, size_t size) {
    if (!verdict->waiting[0]) return;
    const bool one = strspn(verdict->waiting, "0123456789") == strlen(verdict->waiting);
    append(text, size, "; rank%s %s wait%s for it", one ? "" : "s", verdict->waiting, one ? "s" : "");
    if (verdict->collective)
        append(text, size, " in %scollective %llu", verdict->collective_on_host ? "host " : "",
               (unsigned long long)verdict->collective);
}

static void tell_culprit(const struct ls_verdict_scene *scene, struct ls_verdict *verdict) {
    const struct ls_verdict_rank *rank = &scene->ranks[verdict->rank];
    char *text = verdict->text;
    const size_t size = sizeof verdict->text;
    char place[96], gpu[32] = "";
    tell_place(rank, place, sizeof place);
    const uint64_t bus = (uint64_t)rank->gpu;
    if (rank->gpu >= 0)
        snprintf(gpu, sizeof gpu, ", GPU %04x:%02x:%02x.%x", (unsigned)(bus >> 32), (unsigned)(bus >> 16 & 0xff),
                 (unsigned)(bus >> 8 & 0xff), (unsigned)(bus & 0xff));
    snprintf(text, size, "no progress for %.0f s, pid %lld%s, %s", verdict->seconds, (long long)rank->pid, gpu, place);
    if (rank->look.text[0]) append(text, size, ": %s", rank->look.text);
    tell_waiting(verdict, text, size);
    if (verdict->kind == LS_VERDICT_STOPPED)
        append(text, size, ". Find out who stopped it ('kill -CONT %lld' lets it go on)", (long long)rank->pid);
    else if (verdict->kind == LS_VERDICT_GRANT)
        append(text, size, ". It waits for the coordinator: is the disk of the run directory slow or full?");
    else if (rank->phase == LS_PHASE_DATA || strstr(rank->look.text, "read of "))
        append(text, size, ". Does the file system of the data still answer?");
    else if (rank->phase == LS_PHASE_CHECKPOINT)
        append(text, size, ". Does the file system of the run directory still answer?");
    else if (rank->phase <= LS_PHASE_MPI_INIT)
        append(text, size, ". 'lockstep doctor' tells whether MPI works there");
    else
        append(text, size, ". The end of its log may tell more");
    /* Many ranks on few cores, weights that come from far, a long sequence's attention: nothing need be wrong. */
    if (verdict->kind == LS_VERDICT_STUCK && rank->phase <= LS_PHASE_LOAD)
        append(text, size, "; if it is only slow, raise fault.start_timeout_seconds");
    else if (verdict->kind == LS_VERDICT_STUCK && rank->look.state == 'R' && rank->phase != LS_PHASE_CHECKPOINT)
        append(text, size, "; if it is only slow, set fault.stall_timeout_seconds higher");
    append(text, size, ".");
}

/* How many hosts have judged ranks; *reporting: of these are known by reports, of which *silent are silent. */
static int count_hosts(const struct ls_verdict_scene *scene, int *reporting, int *silent) {
    bool *seen = calloc((size_t)scene->hosts_count + 1, sizeof *seen);
    int count = 0;
    *reporting = *silent = 0;
    for (int i = 0; seen && i < scene->ranks_count; i++) {
        const struct ls_verdict_rank *rank = &scene->ranks[i];
        if (!is_judged(rank) || rank->host < 0 || rank->host >= scene->hosts_count || seen[rank->host]) continue;
        seen[rank->host] = true;
        count++;
        if (!scene->hosts[rank->host].reports) continue;
        ++*reporting;
        *silent += is_silent(scene, rank);
    }
    free(seen);
    return count;
}

/* Several hosts do not fall silent at once, but this one may hear nobody. */
static bool judge_own_network(const struct ls_verdict_scene *scene, struct ls_verdict *verdict) {
    int silent, count;
    count_hosts(scene, &count, &silent);
    if (count < 2 || silent < count) return false;
    verdict->kind = LS_VERDICT_NETWORK;
    snprintf(verdict->text, sizeof verdict->text,
             "none of the %d other hosts has been heard for %.0f s: the network of the coordinator's host is cut, or "
             "all of them are gone. Check its network.",
             count, scene->hosts[verdict->host].silent_seconds);
    return true;
}

static void judge_silent(const struct ls_verdict_scene *scene, struct ls_verdict *verdict) {
    const struct ls_verdict_host *host = &scene->hosts[verdict->host];
    bool *listed = calloc((size_t)scene->ranks_count, sizeof *listed);
    char ranks[LS_VERDICT_RANKS_TEXT_BYTES] = "";
    int last_heard = -1;
    for (int i = 0; i < scene->ranks_count; i++) {
        if (listed) listed[i] = is_judged(&scene->ranks[i]) && scene->ranks[i].host == verdict->host;
        if (is_judged(&scene->ranks[i]) && scene->ranks[i].host != verdict->host) last_heard = i;
    }
    if (listed) ls_verdict_list(listed, scene->ranks_count, ranks, sizeof ranks);
    free(listed);
    verdict->kind = LS_VERDICT_SILENT;
    char place[96];
    tell_place(&scene->ranks[verdict->rank], place, sizeof place);
    snprintf(verdict->text, sizeof verdict->text,
             "not heard for %.0f s, rank%s %s last seen %s: its link is cut, or it is gone", host->silent_seconds,
             strpbrk(ranks, ",-") ? "s" : "", ranks, place);
    if (verdict->waiting[0]) {
        tell_waiting(verdict, verdict->text, sizeof verdict->text);
    } else if (last_heard >= 0) {
        const struct ls_verdict_rank *rank = &scene->ranks[last_heard];
        tell_place(rank, place, sizeof place);
        append(verdict->text, sizeof verdict->text, "; rank %d waits for it %s", last_heard, place);
    }
    int silent, count;
    count_hosts(scene, &count, &silent);
    if (silent > 1)
        append(verdict->text, sizeof verdict->text, "; %d more host%s silent too", silent - 1,
               silent > 2 ? "s are" : " is");
    append(verdict->text, sizeof verdict->text, ". Check the network to %s, and the host.", host->name);
}

static void judge_network(const struct ls_verdict_scene *scene, struct ls_verdict *verdict) {
    const struct ls_verdict_rank *root = &scene->ranks[verdict->rank];
    const bool host = root->host_collective > root->host_collective_done;
    char place[96];
    int reporting, silent;
    const int hosts = count_hosts(scene, &reporting, &silent);
    verdict->kind = LS_VERDICT_NETWORK;
    verdict->collective = host ? root->host_collective : root->collective;
    verdict->collective_on_host = host;
    tell_place(root, place, sizeof place);
    snprintf(verdict->text, sizeof verdict->text,
             "no progress for %.0f s: every rank has come to %scollective %llu (%s), and it does not end, though no "
             "process is stopped. %s",
             verdict->seconds, host ? "host " : "", (unsigned long long)verdict->collective, place,
             hosts > 1 ? "Check the network between the hosts ('lockstep doctor')."
                       : "MPI hangs: see logs/launcher.log, and 'lockstep doctor'.");
}

/* Ranks that have no record when others have started: nothing of them was ever seen. */
static bool judge_missing(const struct ls_verdict_scene *scene, struct ls_verdict *verdict) {
    bool *listed = calloc((size_t)scene->ranks_count, sizeof *listed);
    int first = -1, missing = 0;
    for (int i = 0; i < scene->ranks_count; i++) {
        const bool absent = !scene->ranks[i].known || scene->ranks[i].phase == LS_PHASE_ABSENT;
        if (listed) listed[i] = absent;
        if (absent && first < 0) first = i;
        missing += absent;
    }
    char ranks[LS_VERDICT_RANKS_TEXT_BYTES] = "";
    if (listed) ls_verdict_list(listed, scene->ranks_count, ranks, sizeof ranks);
    free(listed);
    if (first < 0 || missing == scene->ranks_count) return false;
    *verdict = (struct ls_verdict){.kind = LS_VERDICT_MISSING,
                                   .rank = first,
                                   .host = -1,
                                   .seconds = scene->waiting_seconds,
                                   .phase = ls_phase_name(LS_PHASE_ABSENT)};
    snprintf(verdict->text, sizeof verdict->text,
             "after %.0f s rank%s %s ha%s not started (fault.start_timeout_seconds). Look at logs/launcher.log: does "
             "the launcher reach every host, and is lockstep-worker there?",
             scene->waiting_seconds, missing > 1 ? "s" : "", ranks, missing > 1 ? "ve" : "s");
    return true;
}

/* Unless nobody at all has moved for half the limit, reports are late, or the run is only slow. */
static bool anybody_moves(const struct ls_verdict_scene *scene, double patience) {
    for (int i = 0; i < scene->ranks_count; i++)
        if (is_judged(&scene->ranks[i]) && scene->ranks[i].quiet_seconds < patience) return true;
    return false;
}

double ls_verdict_patience(const struct ls_verdict_limits *limits) {
    const double all[] = {limits->start, limits->first_step, limits->step, limits->checkpoint, limits->grant};
    double shortest = all[0];
    for (size_t i = 1; i < sizeof all / sizeof *all; i++)
        if (all[i] < shortest) shortest = all[i];
    return shortest / 2;
}

bool ls_verdict_find(const struct ls_verdict_scene *scene, struct ls_verdict *verdict) {
    /* Before all have joined the attempt's own time counts: phases of the start are short, and many. */
    const bool late = !scene->joined && scene->waiting_seconds >= scene->limits.start;
    if (!late && anybody_moves(scene, ls_verdict_patience(&scene->limits)))
        return false; /* the usual case, at little cost */
    if (late && judge_missing(scene, verdict)) return true;
    int root = prefer_held(scene, find_root(scene));
    const bool deadlock = root < 0;
    for (int i = 0; i < scene->ranks_count && root < 0; i++)
        if (is_judged(&scene->ranks[i])) root = i;
    if (root < 0) return false;
    const struct ls_verdict_rank *rank = &scene->ranks[root];
    if (is_doubtful(scene, rank)) return false;
    const double limit = limit_of(scene, rank);
    if (!late && (rank->quiet_seconds < limit || anybody_moves(scene, limit / 2))) return false;
    *verdict = (struct ls_verdict){.kind = is_stopped(rank)                     ? LS_VERDICT_STOPPED
                                           : deadlock                           ? LS_VERDICT_DEADLOCK
                                           : rank->phase == LS_PHASE_WAIT_GRANT ? LS_VERDICT_GRANT
                                                                                : LS_VERDICT_STUCK,
                                   .rank = root,
                                   .host = rank->host,
                                   .seconds = rank->quiet_seconds,
                                   .phase = phase_name(rank->phase)};
    find_waiting(scene, root, verdict);
    if (is_silent(scene, rank)) {
        if (!judge_own_network(scene, verdict)) judge_silent(scene, verdict);
    } else if (verdict->kind == LS_VERDICT_STUCK && all_in_one_collective(scene, rank))
        judge_network(scene, verdict);
    else
        tell_culprit(scene, verdict);
    return true;
}
