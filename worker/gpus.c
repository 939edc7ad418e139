/* Picks a GPU by counting, then compares with the other ranks by PCI address. */
#define _GNU_SOURCE
#include "worker/gpus.h"

#include "common/log.h"
#include "worker/comm/nccl_environment.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What the other ranks hear of a rank's device. */
struct place {
    char host[64];
    char bus_id[24]; /* "": CPUs */
    char name[128];
};

enum ls_code ls_gpus_pick(int visible, int local_rank, int local_size, bool share, int *gpu, struct ls_error *error) {
    if (share || visible == 1) {
        *gpu = local_rank % visible;
        return LS_OK;
    }
    if (visible != local_size)
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_NODE,
            "device: %d ranks run on this node and each sees %d GPUs. Start one rank for each GPU (-n, "
            "--ntasks-per-node), show as many GPUs as there are ranks (CUDA_VISIBLE_DEVICES), or, for tests, "
            "let ranks share GPUs (gpu.share: true).",
            local_size, visible);
    *gpu = local_rank;
    return LS_OK;
}

bool ls_gpus_expected(const struct ls_config *config) {
    int visible = 0;
    if (config->device != LS_DEVICE_AUTO) return config->device == LS_DEVICE_CUDA;
    return ls_device_count_cuda(&visible, NULL) == LS_OK;
}

enum ls_code ls_gpus_open(const struct ls_config *config, const struct ls_comm *comm, int threads,
                          struct ls_device **device, struct ls_error *error) {
    struct ls_error reason;
    int visible = 0, gpu = 0;
    if (config->device == LS_DEVICE_CPU) return ls_device_create_cpu(threads, LS_STREAMS_EAGER, device, error);
    if (config->gpu.share) ls_nccl_share_gpu(ls_comm_rank(comm), ls_comm_local_size(comm) == ls_comm_size(comm));
    enum ls_code code = ls_device_count_cuda(&visible, &reason);
    if (code && config->device == LS_DEVICE_CUDA) {
        *error = reason;
        return code;
    }
    if (code) {
        ls_log(LS_LOG_INFO, "no GPU is used: %s", reason.text);
        return ls_device_create_cpu(threads, LS_STREAMS_EAGER, device, error);
    }
    code = ls_gpus_pick(visible, ls_comm_local_rank(comm), ls_comm_local_size(comm), config->gpu.share, &gpu, error);
    return code ? code : ls_device_create_cuda(gpu, config->gpu.tf32, device, error);
}

/* Two ranks that must not go together, and why. */
static enum ls_code compare(const struct ls_config *config, const struct place *places, int first, int second,
                            struct ls_error *error) {
    const struct place *a = &places[first], *b = &places[second];
    if (!a->bus_id[0] != !b->bus_id[0]) {
        const int cpu = a->bus_id[0] ? second : first, gpu = a->bus_id[0] ? first : second;
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "device: rank %d on %s computes on CPUs, rank %d on %s on %s. Set device: cuda to hear why the "
                       "first has no GPU, or device: cpu for all.",
                       cpu, places[cpu].host, gpu, places[gpu].host, places[gpu].name);
    }
    if (!a->bus_id[0] || config->gpu.share || strcmp(a->host, b->host) != 0 || strcmp(a->bus_id, b->bus_id) != 0)
        return LS_OK;
    return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                   "device: ranks %d and %d are both on GPU %s (%s) of %s. Show each rank a GPU of its own "
                   "(CUDA_VISIBLE_DEVICES, srun --gpus-per-task=1), or, for tests, set gpu.share: true.",
                   first, second, a->bus_id, a->name, a->host);
}

enum ls_code ls_gpus_check(const struct ls_config *config, struct ls_comm *comm, const struct ls_device *device,
                           int *sharers, struct ls_error *error) {
    const int size = ls_comm_size(comm);
    const struct ls_device_info *info = ls_device_info(device);
    struct place mine, *places = calloc((size_t)size, sizeof *places);
    struct ls_error own = {.code = LS_OK};
    int failed_rank;
    memset(&mine, 0, sizeof mine);
    if (gethostname(mine.host, sizeof mine.host - 1)) snprintf(mine.host, sizeof mine.host, "unknown");
    snprintf(mine.bus_id, sizeof mine.bus_id, "%s", info->bus_id);
    snprintf(mine.name, sizeof mine.name, "%s", info->name);
    if (!places) ls_fail(&own, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the devices of %d ranks", size);
    enum ls_code code = ls_comm_agree(comm, &own, &failed_rank, error);
    if (!code) code = ls_comm_gather_bytes(comm, &mine, sizeof mine, places, error);
    assert(code || places);
    int same = 0;
    for (int second = 0; second < size && !code; second++) {
        /* With rank 0 for the kind of device, with the ranks of the same host for the GPU. */
        for (int first = 0; first < second && !code; first++)
            if (first == 0 || strcmp(places[first].host, places[second].host) == 0)
                code = compare(config, places, first, second, error);
        if (info->kind != LS_DEVICE_KIND_CPU && strcmp(places[second].host, mine.host) == 0 &&
            strcmp(places[second].bus_id, mine.bus_id) == 0)
            same++;
    }
    free(places);
    if (!code) *sharers = same;
    return code;
}
