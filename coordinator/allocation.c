/* From four sources to one answer. */
#include "coordinator/allocation.h"

#include "coordinator/network.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* For an answer of a host that is there, over any network. */
enum { ASK_SECONDS = 2 };

static enum ls_code find_hosts(const char *hostfile, char *(*get)(const char *), struct ls_allocation *allocation,
                               struct ls_error *error) {
    struct ls_hosts given = {0};
    enum ls_code code = hostfile ? ls_hosts_read(hostfile, &given, error) : LS_OK;
    if (code == LS_OK) code = ls_slurm_find(get, &allocation->slurm, &allocation->hosts, error);
    if (code != LS_OK || !hostfile) {
        ls_hosts_release(&given);
        allocation->by_slurm = allocation->slurm.job != 0;
        return code;
    }
    ls_hosts_release(&allocation->hosts);
    allocation->hosts = given;
    return LS_OK;
}

/* Open MPI reads a colon as the beginning of a host's slots. */
static enum ls_code check_names(const struct ls_config *config, const struct ls_hosts *hosts, struct ls_error *error) {
    for (int i = 0; i < hosts->count && config->launcher.type != LS_LAUNCH_NONE; i++)
        if (strchr(hosts->list[i].name, ':'))
            return ls_fail(
                error, LS_USAGE, LS_SCOPE_JOB,
                "the hostfile names %s, and mpirun takes no address of IPv6. Give the host a name, in DNS or "
                "in /etc/hosts of every host, and write that.",
                hosts->list[i].name);
    return LS_OK;
}

static enum ls_code check_slurm(const struct ls_config *config, const struct ls_slurm *slurm, const char *hostfile,
                                struct ls_error *error) {
    if (slurm->step_tasks > 1)
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_JOB,
            "srun started %lld copies of 'lockstep run', which starts its ranks itself. Call it once, in the "
            "batch script or under salloc, without srun.",
            (long long)slurm->step_tasks);
    if (config->launcher.type != LS_LAUNCH_SRUN) return LS_OK;
    if (!slurm->job)
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_JOB,
            "launcher.type: srun, but this is no Slurm job (SLURM_JOB_ID is not set). Submit it with sbatch, "
            "or use launcher.type: auto.");
    if (hostfile)
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_JOB,
            "launcher.type: srun takes its hosts from Slurm, not from the hostfile %s. Leave --hostfile out, "
            "or use launcher.type: mpirun.",
            hostfile);
    return LS_OK;
}

/* GPUs of this host that ranks may be started for: by CUDA_VISIBLE_DEVICES, else those of the driver. Not by CUDA,
 * which would not survive the forks to come. */
static int64_t count_gpus(const struct ls_config *config, char *(*get)(const char *)) {
#ifdef LS_CUDA
    const char *visible = get("CUDA_VISIBLE_DEVICES");
    DIR *driver = config->device == LS_DEVICE_CPU ? NULL : opendir("/proc/driver/nvidia/gpus");
    int64_t count = 0;
    if (!driver) return 0;
    for (const struct dirent *entry; (entry = readdir(driver));) count += entry->d_name[0] != '.';
    closedir(driver);
    if (!visible) return count;
    int64_t named = *visible != 0;
    for (const char *at = visible; (at = strchr(at, ',')); at++) named++;
    return named < count ? named : count;
#else
    (void)config;
    (void)get;
    return 0;
#endif
}

static enum ls_code find_ranks(const struct ls_config *config, int64_t ranks, char *(*get)(const char *),
                               struct ls_allocation *allocation, struct ls_error *error) {
    const int64_t per_node = allocation->ranks_per_node = config->launcher.ranks_per_node;
    allocation->ranks = ranks ? ranks : config->launcher.ranks;
    const bool hosts = allocation->hosts.count > 0;
    const int64_t gpus = allocation->slurm.tasks && allocation->by_slurm ? 0 : count_gpus(config, get);
    for (int i = 0; gpus > 0 && !allocation->by_slurm && i < allocation->hosts.count; i++)
        if (!allocation->hosts.list[i].slots) allocation->hosts.list[i].slots = gpus;
    const int64_t here = gpus ? gpus : 1;
    const int64_t room = hosts                         ? ls_hosts_room(&allocation->hosts, per_node, NULL, 0)
                         : per_node && per_node < here ? per_node
                                                       : here;
    if (!allocation->ranks) allocation->ranks = room;
    /* A Slurm job without --ntasks says nothing of ranks: -n is dealt evenly over its hosts. */
    if (allocation->by_slurm && !allocation->slurm.tasks && !per_node)
        for (int i = 0; i < allocation->hosts.count; i++)
            allocation->hosts.list[i].slots =
                allocation->ranks / allocation->hosts.count + (i < allocation->ranks % allocation->hosts.count);
    if (hosts && allocation->ranks > ls_hosts_room(&allocation->hosts, per_node, NULL, 0)) {
        int64_t counts[LS_HOSTS_MAX];
        return ls_hosts_deal(&allocation->hosts, allocation->ranks, per_node, NULL, 0, counts, error);
    }
    if (!hosts && per_node && allocation->ranks > per_node)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "%lld ranks with launcher.ranks_per_node %lld need more hosts than this one. Name them with "
                       "--hostfile, or raise it.",
                       (long long)allocation->ranks, (long long)per_node);
    return LS_OK;
}

enum ls_code ls_allocation_find(const struct ls_config *config, int64_t ranks, const char *hostfile,
                                char *(*get)(const char *name), struct ls_allocation *allocation,
                                struct ls_error *error) {
    memset(allocation, 0, sizeof *allocation);
    enum ls_code code = find_hosts(hostfile, get, allocation, error);
    if (code == LS_OK) code = check_slurm(config, &allocation->slurm, hostfile, error);
    if (code == LS_OK) code = check_names(config, &allocation->hosts, error);
    if (code == LS_OK) code = find_ranks(config, ranks, get, allocation, error);
    if (code != LS_OK) return code;
    allocation->threads =
        config->launcher.threads_per_rank ? config->launcher.threads_per_rank : allocation->slurm.cpus_per_task;
    for (int i = 0; i < allocation->hosts.count && !allocation->elsewhere; i++)
        allocation->elsewhere = !ls_host_is_here(allocation->hosts.list[i].name);
    return LS_OK;
}

void ls_allocation_release(struct ls_allocation *allocation) {
    ls_hosts_release(&allocation->hosts);
    free(allocation->answered);
    *allocation = (struct ls_allocation){0};
}

void ls_allocation_ask(struct ls_allocation *allocation) {
    if (!allocation->elsewhere || allocation->answered) return;
    allocation->answered = calloc((size_t)allocation->hosts.count, sizeof *allocation->answered);
    if (allocation->answered) ls_network_ask(&allocation->hosts, ASK_SECONDS, allocation->answered);
}

int ls_allocation_find_lost(const struct ls_allocation *allocation, const char **lost, int most) {
    if (!allocation->answered) return 0;
    bool *answers = calloc((size_t)allocation->hosts.count, sizeof *answers);
    int count = 0;
    if (!answers) return 0;
    ls_network_ask(&allocation->hosts, ASK_SECONDS, answers);
    for (int i = 0; i < allocation->hosts.count && count < most; i++)
        if (allocation->answered[i] && !answers[i]) lost[count++] = allocation->hosts.list[i].name;
    free(answers);
    return count;
}

const struct ls_hosts *ls_allocation_elsewhere(const struct ls_allocation *allocation) {
    return allocation->elsewhere ? &allocation->hosts : NULL;
}
