/* Comparing pairs of hosts. A slow host shows in all of its pairs, a slow link in one; with two hosts there is nothing
 * to compare with. */
#include "coordinator/cluster.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const double SLOW = 0.5, SLOW_INSIDE = 1.0 / 3, LATE = 5, LATE_MORE_US = 200, CLOCK_US = 5e6;

struct judging {
    const struct ls_trial *trial;
    struct ls_finding *findings;
    int count, most;
    double *rate, *latency; /* [hosts]: the best of each host's pairs */
    double best_rate, best_latency;
};

static void add(struct judging *judging, enum ls_finding_kind kind, int host, int other, double value, double best) {
    if (judging->count < judging->most)
        judging->findings[judging->count] = (struct ls_finding){kind, host, other, value, best};
    judging->count++;
}

static double smaller(double a, double b) {
    return a < b ? a : b;
}
static double larger(double a, double b) {
    return a > b ? a : b;
}

static bool is_late(double latency_us, double best_us) {
    return latency_us > LATE * best_us && latency_us > best_us + LATE_MORE_US;
}

static void find_best(struct judging *judging) {
    const struct ls_trial *trial = judging->trial;
    for (int i = 0; i < trial->hosts_count; i++) {
        judging->rate[i] = 0;
        judging->latency[i] = INFINITY;
    }
    judging->best_latency = INFINITY;
    for (int i = 0; i < trial->pairs_count; i++) {
        const struct ls_trial_pair *pair = &trial->pairs[i];
        for (int side = 0; side < 2; side++) {
            const int host = side ? pair->second : pair->first;
            judging->rate[host] = larger(judging->rate[host], pair->mbps);
            judging->latency[host] = smaller(judging->latency[host], pair->latency_us);
        }
        judging->best_rate = larger(judging->best_rate, pair->mbps);
        judging->best_latency = smaller(judging->best_latency, pair->latency_us);
    }
}

static void judge_rates(struct judging *judging) {
    const struct ls_trial *trial = judging->trial;
    for (int i = 0; i < trial->hosts_count; i++)
        if (judging->rate[i] > 0 && judging->rate[i] < SLOW * judging->best_rate)
            add(judging, LS_FINDING_SLOW_HOST, i, -1, judging->rate[i], judging->best_rate);
    for (int i = 0; i < trial->pairs_count; i++) {
        const struct ls_trial_pair *pair = &trial->pairs[i];
        const double both = smaller(judging->rate[pair->first], judging->rate[pair->second]);
        if (pair->mbps < SLOW * both) add(judging, LS_FINDING_SLOW_LINK, pair->first, pair->second, pair->mbps, both);
    }
}

static void judge_latencies(struct judging *judging) {
    const struct ls_trial *trial = judging->trial;
    for (int i = 0; i < trial->hosts_count; i++)
        if (isfinite(judging->latency[i]) && is_late(judging->latency[i], judging->best_latency))
            add(judging, LS_FINDING_LATE_HOST, i, -1, judging->latency[i], judging->best_latency);
    for (int i = 0; i < trial->pairs_count; i++) {
        const struct ls_trial_pair *pair = &trial->pairs[i];
        const double both = larger(judging->latency[pair->first], judging->latency[pair->second]);
        if (is_late(pair->latency_us, both))
            add(judging, LS_FINDING_LATE_LINK, pair->first, pair->second, pair->latency_us, both);
    }
}

static void judge_hosts(struct judging *judging) {
    const struct ls_trial *trial = judging->trial;
    for (int i = 0; i < trial->hosts_count; i++) {
        double best = 0;
        for (int j = 0; j < trial->hosts_count; j++)
            if (trial->hosts[j].ranks == trial->hosts[i].ranks) best = larger(best, trial->hosts[j].mbps);
        if (trial->hosts[i].mbps < SLOW_INSIDE * best)
            add(judging, LS_FINDING_SLOW_INSIDE, i, -1, trial->hosts[i].mbps, best);
    }
    for (int i = 0; i < trial->hosts_count; i++)
        if (fabs(trial->hosts[i].clock_us) >= CLOCK_US)
            add(judging, LS_FINDING_WRONG_CLOCK, i, -1, trial->hosts[i].clock_us, 0);
}

int ls_cluster_judge(const struct ls_trial *trial, struct ls_finding *findings, int most) {
    double *best = calloc((size_t)trial->hosts_count * 2 + 1, sizeof *best);
    if (!best) return 0;
    struct judging judging = {
        .trial = trial, .findings = findings, .most = most, .rate = best, .latency = best + trial->hosts_count};
    find_best(&judging);
    judge_rates(&judging);
    judge_latencies(&judging);
    judge_hosts(&judging);
    free(best);
    return judging.count;
}

void ls_cluster_describe(const struct ls_trial *trial, const struct ls_finding *finding, char *text, size_t size,
                         const char **fix) {
    const char *host = trial->hosts[finding->host].name;
    const char *other = finding->other >= 0 ? trial->hosts[finding->other].name : "";
    const double value = finding->value, best = finding->best;
    switch (finding->kind) {
    case LS_FINDING_SLOW_HOST:
        snprintf(text, size, "host %s is slow: at most %.1f MB/s with any other host, the fastest pair has %.1f", host,
                 value, best);
        *fix =
            "look at its cable, port and speed (ethtool), at what else uses its network, or leave it out of the hosts";
        return;
    case LS_FINDING_SLOW_LINK:
        snprintf(text, size, "the link between %s and %s is slow: %.1f MB/s, with others both reach %.1f", host, other,
                 value, best);
        *fix = "look at the switches between them and at which of their interfaces MPI uses (btl_tcp_if_include)";
        return;
    case LS_FINDING_LATE_HOST:
        snprintf(text, size, "host %s answers late: %.0f us at best, the fastest pair has %.0f", host, value, best);
        *fix = "look at its network card's interrupts and power saving, and at what else runs there";
        return;
    case LS_FINDING_LATE_LINK:
        snprintf(text, size, "messages between %s and %s are late: %.0f us, with others both have at most %.0f", host,
                 other, value, best);
        *fix = "look at the way between them (traceroute) and at the switches on it";
        return;
    case LS_FINDING_SLOW_INSIDE:
        snprintf(text, size, "host %s is slow inside: all-reduce of its own ranks %.1f MB/s, elsewhere %.1f", host,
                 value, best);
        *fix = "look at what else runs there, at its clock rate and at the binding of ranks";
        return;
    case LS_FINDING_WRONG_CLOCK:
        snprintf(text, size, "the clock of host %s is %.1f s beside that of %s", host, value / 1e6,
                 trial->hosts[0].name);
        *fix = "let NTP set it (chrony, systemd-timesyncd): times in logs of several hosts do not fit together";
        return;
    }
}
