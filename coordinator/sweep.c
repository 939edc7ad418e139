/* A launch of one process a host that is no rank of a run. */
#include "coordinator/sweep.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The hosts to sweep with a slot each; their names for messages. */
static enum ls_code choose_hosts(const struct ls_allocation *allocation, const char *const *hosts, int count,
                                 struct ls_hosts *chosen, char *names, size_t size, struct ls_error *error) {
    enum ls_code code = LS_OK;
    size_t used = 0;
    for (int i = 0; i < count && code == LS_OK; i++) {
        const int index = ls_hosts_find(&allocation->hosts, hosts[i]);
        if (index < 0) continue;
        const char *name = allocation->hosts.list[index].name;
        if (ls_host_is_here(name)) continue;
        code = ls_hosts_add(chosen, name, strlen(name), 1, error);
        if (used + strlen(name) + 3 < size)
            used += (size_t)snprintf(names + used, size - used, "%s%s", used ? ", " : "", name);
    }
    return code;
}

enum ls_code ls_sweep_start(const struct ls_launch_options *usual, const char *const *hosts, int count,
                            const char *run_id, int64_t attempt, const char *log_path, struct ls_sweep *sweep,
                            struct ls_error *error) {
    struct ls_launch_options options = *usual;
    struct ls_allocation allocation = *usual->allocation;
    char argument[64];
    *sweep = (struct ls_sweep){.leader = 0};
    allocation.hosts = (struct ls_hosts){0};
    allocation.ranks_per_node = 1;
    allocation.threads = 0;
    enum ls_code code =
        choose_hosts(usual->allocation, hosts, count, &allocation.hosts, sweep->names, sizeof sweep->names, error);
    if (code == LS_OK && allocation.hosts.count > 0) {
        snprintf(argument, sizeof argument, "--clean=%.16s:%lld", run_id, (long long)attempt);
        options.allocation = &allocation;
        options.ranks = allocation.hosts.count;
        options.worker_argument = argument;
        struct ls_launch *launch = malloc(sizeof *launch);
        code = launch ? ls_launch_plan(&options, launch, error)
                      : ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory to start the launcher");
        if (code == LS_OK) code = ls_launch_start(launch, "", log_path, &sweep->leader, error);
        free(launch);
    }
    ls_hosts_release(&allocation.hosts);
    if (code != LS_OK) *sweep = (struct ls_sweep){.leader = 0};
    return code;
}
