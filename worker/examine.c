/* Measuring over MPI: pairs of hosts in rounds, then all-reduces. */
#define _GNU_SOURCE
#include "worker/examine.h"

#include <mpi.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    HOST_BYTES = 64,
    ROUNDS_MAX = 63, /* of pairs: on more than 64 hosts each meets 63 others */
    MESSAGE_BYTES = 1 << 20,
    WARM_UP_BYTES = 1 << 18,
    PINGS = 50,
    REPEATS_MAX = 10000
};
/* Parts of the time: pairs, all-reduce within hosts, all-reduce of all. */
static const double PAIRS_PART = 0.6, LOCAL_PART = 0.15, ALL_PART = 0.25;

/* What the first rank of a host has measured with a partner. */
struct pair {
    int first, second;                 /* hosts */
    double latency_us, mbps, clock_us; /* the second's clock beside the first's */
};

struct examination {
    MPI_Comm all, local, leaders; /* leaders: MPI_COMM_NULL elsewhere */
    int rank, size, local_rank, local_size;
    int host, hosts;
    char *buffer; /* [MESSAGE_BYTES] */
};

static double clock_seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* ---- pairs ---- */

/* The partner of `host` in `round` of a tournament of `hosts` (made even) in which each meets each once; -1: none. */
static int partner_of(int host, int round, int hosts) {
    const int players = hosts + hosts % 2, fixed = players - 1;
    int partner;
    if (host == fixed)
        partner = round % fixed % 2 == 0 ? round % fixed / 2 : (round % fixed + fixed) / 2;
    else
        partner = (2 * fixed + round % fixed - host) % fixed;
    if (partner == host) partner = fixed;
    return partner < hosts ? partner : -1;
}

/* Both sides of an exchange of `bytes` there and back; returns the seconds it took. */
static double exchange(struct examination *examination, int partner, bool first, int bytes) {
    const double begin = clock_seconds(CLOCK_MONOTONIC);
    MPI_Status status;
    if (first) {
        MPI_Send(examination->buffer, bytes, MPI_CHAR, partner, 0, examination->leaders);
        MPI_Recv(examination->buffer, bytes, MPI_CHAR, partner, 0, examination->leaders, &status);
    } else {
        MPI_Recv(examination->buffer, bytes, MPI_CHAR, partner, 0, examination->leaders, &status);
        MPI_Send(examination->buffer, bytes, MPI_CHAR, partner, 0, examination->leaders);
    }
    return clock_seconds(CLOCK_MONOTONIC) - begin;
}

/* The second's clock beside the first's, by the fastest of a few questions. */
static double compare_clocks(struct examination *examination, int partner, bool first) {
    double best = 1e9, offset = 0;
    for (int i = 0; i < PINGS / 5; i++) {
        double theirs = 0, asked = clock_seconds(CLOCK_REALTIME);
        MPI_Status status;
        if (first) {
            MPI_Send(&asked, 1, MPI_DOUBLE, partner, 1, examination->leaders);
            MPI_Recv(&theirs, 1, MPI_DOUBLE, partner, 1, examination->leaders, &status);
            const double answered = clock_seconds(CLOCK_REALTIME);
            if (answered - asked >= best) continue;
            best = answered - asked;
            offset = theirs - (asked + answered) / 2;
        } else {
            MPI_Recv(&theirs, 1, MPI_DOUBLE, partner, 1, examination->leaders, &status);
            asked = clock_seconds(CLOCK_REALTIME);
            MPI_Send(&asked, 1, MPI_DOUBLE, partner, 1, examination->leaders);
        }
    }
    return offset;
}

/* The first decides when it is enough, and tells the second with each exchange. */
static double measure_rate(struct examination *examination, int partner, bool first, double seconds) {
    exchange(examination, partner, first, WARM_UP_BYTES);
    const double begin = clock_seconds(CLOCK_MONOTONIC);
    double spent = 0;
    int count = 0;
    for (char more = 1; more;) {
        exchange(examination, partner, first, MESSAGE_BYTES);
        count++;
        spent = clock_seconds(CLOCK_MONOTONIC) - begin;
        more = spent < seconds && count < REPEATS_MAX;
        if (first)
            MPI_Send(&more, 1, MPI_CHAR, partner, 2, examination->leaders);
        else
            MPI_Recv(&more, 1, MPI_CHAR, partner, 2, examination->leaders, MPI_STATUS_IGNORE);
    }
    return 2.0 * count * MESSAGE_BYTES / spent / 1e6;
}

static void measure_pair(struct examination *examination, int partner, double seconds, struct pair *pair) {
    const bool first = examination->host < partner;
    double fastest = 1e9;
    for (int i = 0; i < PINGS; i++) {
        const double took = exchange(examination, partner, first, 1);
        if (took < fastest) fastest = took;
    }
    *pair = (struct pair){.first = first ? examination->host : partner, .second = first ? partner : examination->host};
    pair->clock_us = compare_clocks(examination, partner, first) * 1e6;
    pair->latency_us = fastest / 2 * 1e6;
    pair->mbps = measure_rate(examination, partner, first, seconds);
}

/* Leaders only. pairs[rounds * hosts] on leader 0: what each leader measured as the first of a pair. */
static void measure_pairs(struct examination *examination, double seconds, int rounds, struct pair *pairs) {
    for (int round = 0; round < rounds; round++) {
        struct pair own = {.first = -1};
        const int partner = partner_of(examination->host, round, examination->hosts);
        if (partner >= 0) measure_pair(examination, partner, seconds / rounds, &own);
        if (own.first != examination->host) own.first = -1;
        MPI_Gather(&own, sizeof own, MPI_BYTE, pairs ? pairs + (ptrdiff_t)round * examination->hosts : NULL, sizeof own,
                   MPI_BYTE, 0, examination->leaders);
    }
}

/* ---- all-reduce ---- */

/* MB of buffer a second; all ranks of the communicator repeat it equally often. */
static double measure_allreduce(struct examination *examination, MPI_Comm comm, double seconds) {
    float *values = (float *)(void *)examination->buffer;
    const int count = MESSAGE_BYTES / (int)sizeof *values;
    memset(values, 0, MESSAGE_BYTES);
    MPI_Barrier(comm);
    const double begin = clock_seconds(CLOCK_MONOTONIC);
    double spent = 0;
    int repeats = 0;
    for (int more = 1; more; repeats++) {
        MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_FLOAT, MPI_SUM, comm);
        spent = clock_seconds(CLOCK_MONOTONIC) - begin;
        more = spent < seconds && repeats < REPEATS_MAX;
        MPI_Bcast(&more, 1, MPI_INT, 0, comm);
    }
    return (double)repeats * MESSAGE_BYTES / spent / 1e6;
}

/* ---- the whole ---- */

static void split(struct examination *examination) {
    MPI_Comm_dup(MPI_COMM_WORLD, &examination->all);
    MPI_Comm_rank(examination->all, &examination->rank);
    MPI_Comm_size(examination->all, &examination->size);
    MPI_Comm_split_type(examination->all, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &examination->local);
    MPI_Comm_rank(examination->local, &examination->local_rank);
    MPI_Comm_size(examination->local, &examination->local_size);
    const bool leads = examination->local_rank == 0;
    MPI_Comm_split(examination->all, leads ? 0 : MPI_UNDEFINED, 0, &examination->leaders);
    int place[2] = {0, 0};
    if (leads) {
        MPI_Comm_rank(examination->leaders, &place[0]);
        MPI_Comm_size(examination->leaders, &place[1]);
    }
    MPI_Bcast(place, 2, MPI_INT, 0, examination->local);
    examination->host = place[0];
    examination->hosts = place[1];
}

struct host_result {
    char name[HOST_BYTES];
    int ranks;
    double mbps;
};

static void print_hosts(const struct examination *examination, const struct host_result *results,
                        const struct pair *pairs, int pairs_count, FILE *out) {
    for (int host = 0; host < examination->hosts; host++) {
        double clock_us = 0;
        for (int i = 0; i < pairs_count; i++)
            if (pairs[i].first == 0 && pairs[i].second == host) clock_us = pairs[i].clock_us;
        fprintf(out, "host %d %s ranks %d clock_us %.1f mbps %.1f\n", host, results[host].name, results[host].ranks,
                clock_us, results[host].mbps);
    }
    for (int i = 0; i < pairs_count; i++)
        if (pairs[i].first >= 0)
            fprintf(out, "pair %d %d latency_us %.1f mbps %.1f\n", pairs[i].first, pairs[i].second, pairs[i].latency_us,
                    pairs[i].mbps);
}

static void measure(struct examination *examination, double seconds, struct pair *pairs, struct host_result *results,
                    int rounds, FILE *out) {
    const bool leads = examination->local_rank == 0;
    if (leads && rounds > 0) measure_pairs(examination, seconds * PAIRS_PART, rounds, pairs);
    MPI_Barrier(examination->all);
    struct host_result own = {.ranks = examination->local_size};
    if (gethostname(own.name, sizeof own.name - 1)) memcpy(own.name, "unknown", sizeof "unknown");
    if (examination->local_size > 1)
        own.mbps = measure_allreduce(examination, examination->local, seconds * LOCAL_PART);
    if (leads) MPI_Gather(&own, sizeof own, MPI_BYTE, results, sizeof own, MPI_BYTE, 0, examination->leaders);
    const double mbps = measure_allreduce(examination, examination->all, seconds * ALL_PART);
    if (examination->rank != 0) return;
    print_hosts(examination, results, pairs, rounds * examination->hosts, out);
    fprintf(out, "allreduce mbps %.1f\n", mbps);
}

enum ls_code ls_examine(double seconds, FILE *out, struct ls_error *error) {
    struct examination examination = {.leaders = MPI_COMM_NULL};
    split(&examination);
    int rounds = examination.hosts + examination.hosts % 2 - 1;
    if (examination.hosts < 2) rounds = 0;
    if (rounds > ROUNDS_MAX) rounds = ROUNDS_MAX;
    const size_t hosts = (size_t)examination.hosts;
    examination.buffer = malloc(MESSAGE_BYTES);
    struct pair *pairs = calloc((size_t)rounds * hosts + 1, sizeof *pairs);
    struct host_result *results = calloc(hosts, sizeof *results);
    const bool own_fine = examination.buffer && pairs && results;
    int fine = own_fine, all_fine = 0;
    MPI_Allreduce(&fine, &all_fine, 1, MPI_INT, MPI_MIN, examination.all);
    enum ls_code code = LS_OK;
    if (own_fine && all_fine) {
        if (examination.rank == 0) fprintf(out, "examine ranks %d hosts %d\n", examination.size, examination.hosts);
        if (seconds > 0) measure(&examination, seconds, pairs, results, rounds, out);
        if (examination.rank == 0) fprintf(out, "end\n");
        fflush(out);
    } else {
        code = ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room to examine the cluster");
    }
    free(results);
    free(pairs);
    free(examination.buffer);
    if (examination.leaders != MPI_COMM_NULL) MPI_Comm_free(&examination.leaders);
    MPI_Comm_free(&examination.local);
    MPI_Comm_free(&examination.all);
    return code;
}
