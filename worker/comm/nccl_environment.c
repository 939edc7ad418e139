/* NCCL's variables. The values for sharing are those that its sources (2.28) ask for: the refusal compares host and bus
 * id, NCCL_HOSTID stands in for the host; shared memory and peer access find no common host then and sockets remain.
 * The protocols for small messages spin on flags in memory while the rank they wait for is not on the GPU; Simple does
 * so less (8.7 ms a collective instead of 12 to 17 have been reported). */
#include "worker/comm/nccl_environment.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern char **environ;

void ls_nccl_share_gpu(int rank, bool one_host) {
    static const char *const variables[][2] = {
        {"NCCL_NET", "Socket"},
        {"NCCL_NET_PLUGIN", "none"},
        {"NCCL_IB_DISABLE", "1"},
        {"NCCL_P2P_DISABLE", "1"},
        {"NCCL_SHM_DISABLE", "1"},
        {"NCCL_NVLS_ENABLE", "0"},
        {"NCCL_MNNVL_ENABLE", "0"},
        {"NCCL_CUMEM_ENABLE", "0"},
        {"NCCL_PROTO", "Simple"},
        {"NCCL_MAX_CTAS", "4"},
        {"CUDA_DEVICE_MAX_CONNECTIONS", "8"},
    };
    char host[64];
    snprintf(host, sizeof host, "lockstep-rank-%d", rank);
    setenv("NCCL_HOSTID", host, 0);
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) setenv(variables[i][0], variables[i][1], 0);
    if (one_host) setenv("NCCL_SOCKET_IFNAME", "lo", 0);
}

static int compare(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

void ls_nccl_environment(char *text, size_t bytes) {
    enum { VARIABLES_MAX = 64 };
    const char *found[VARIABLES_MAX] = {NULL};
    size_t count = 0, used = 0;
    for (char **variable = environ; variable && *variable && count < VARIABLES_MAX; variable++)
        if (strncmp(*variable, "NCCL_", 5) == 0) found[count++] = *variable;
    qsort(found, count, sizeof *found, compare);
    if (bytes > 0) text[0] = 0;
    for (size_t i = 0; i < count && used < bytes; i++)
        used += (size_t)snprintf(text + used, bytes - used, "%s%s", i > 0 ? " " : "", found[i]);
    if (count == 0) snprintf(text, bytes, "none");
}
