/* Ranks on all hosts, what they measure, and who is slow. */
#include "coordinator/cluster.h"
#include "coordinator/doctor.h"

#include <stdio.h>

enum { FINDINGS_MAX = 20, PAIRS_SHOWN = 28, HOSTS_SHOWN = 32, PATIENCE_SECONDS = 90 };

static void show(struct ls_examination *examination, const struct ls_trial *trial) {
    for (int i = 0; i < trial->hosts_count && i < HOSTS_SHOWN; i++) {
        const struct ls_trial_host *host = &trial->hosts[i];
        char inside[64] = "";
        if (host->mbps > 0) snprintf(inside, sizeof inside, ", all-reduce within it %.0f MB/s", host->mbps);
        ls_doctor_report(examination, LS_HEALTH_FINE, "host", NULL, "%s: %d rank%s%s, clock %+.1f ms", host->name,
                         host->ranks, host->ranks == 1 ? "" : "s", inside, host->clock_us / 1e3);
    }
    for (int i = 0; i < trial->pairs_count && i < PAIRS_SHOWN; i++) {
        const struct ls_trial_pair *pair = &trial->pairs[i];
        ls_doctor_report(examination, LS_HEALTH_FINE, "pair", NULL, "%s - %s: %.0f us, %.1f MB/s",
                         trial->hosts[pair->first].name, trial->hosts[pair->second].name, pair->latency_us, pair->mbps);
    }
    if (trial->pairs_count > PAIRS_SHOWN || trial->hosts_count > HOSTS_SHOWN)
        ls_doctor_report(examination, LS_HEALTH_FINE, "more", NULL, "%d hosts and %d pairs in all", trial->hosts_count,
                         trial->pairs_count);
    ls_doctor_report(examination, LS_HEALTH_FINE, "all-reduce", NULL, "%.1f MB/s over all ranks",
                     trial->allreduce_mbps);
}

static void judge(struct ls_examination *examination, const struct ls_trial *trial) {
    struct ls_finding findings[FINDINGS_MAX];
    const int count = ls_cluster_judge(trial, findings, FINDINGS_MAX);
    for (int i = 0; i < count && i < FINDINGS_MAX; i++) {
        char text[512];
        const char *fix;
        ls_cluster_describe(trial, &findings[i], text, sizeof text, &fix);
        ls_doctor_report(examination, LS_HEALTH_WRONG, "cluster", fix, "%s", text);
    }
    if (count > FINDINGS_MAX)
        ls_doctor_report(examination, LS_HEALTH_NOTED, "cluster", NULL, "%d more findings", count - FINDINGS_MAX);
}

void ls_doctor_examine_cluster(struct ls_examination *examination, const struct ls_launch_options *given) {
    struct ls_launch_options options = *given;
    const struct ls_allocation *allocation = &examination->allocation;
    const bool several = allocation->hosts.count > 1;
    struct ls_error error;
    char why[512] = "mpirun";
    options.ranks = allocation->ranks > 1 || several ? allocation->ranks : 2;
    if (options.type == LS_LAUNCH_AUTO && allocation->by_slurm) {
        if (ls_trial_choose(&options, &options.type, why, &error) != LS_OK) {
            ls_doctor_report(examination, LS_HEALTH_WRONG, "launcher", "see each of the two", "%s", error.text);
            return;
        }
        ls_doctor_report(examination, LS_HEALTH_FINE, "launcher", NULL, "%s", why);
    } else if (options.type != LS_LAUNCH_SRUN) {
        options.type = LS_LAUNCH_MPIRUN;
    }
    struct ls_trial trial = {0};
    enum ls_code code = ls_trial_run(&options, several ? examination->seconds : 0, PATIENCE_SECONDS, &trial, &error);
    if (code != LS_OK) {
        ls_doctor_report(examination, LS_HEALTH_WRONG, "ranks",
                         several
                             ? "the name, the password-free login (ssh) and the firewall of each host; the same Open "
                               "MPI and lockstep-worker on all; the interface MPI uses (OMPI_MCA_btl_tcp_if_include)"
                             : "the mpirun in PATH must be that of the MPI this was built with",
                         "%lld ranks do not find each other: %s", (long long)options.ranks, error.text);
    } else {
        ls_doctor_report(examination, LS_HEALTH_FINE, "ranks", NULL, "%d found each other on %s in %.1f s", trial.ranks,
                         several ? "all hosts" : "this host", trial.seconds - (several ? examination->seconds : 0));
        if (several) show(examination, &trial);
        if (several) judge(examination, &trial);
    }
    ls_trial_release(&trial);
}
