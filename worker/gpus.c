/* Picks a GPU by counting, then compares with the other ranks by PCI address. */
#define _GNU_SOURCE
#include "worker/gpus.h"

#include "common/log.h"
#include "worker/comm/nccl_environment.h"

#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

static bool is_on_gpu(const struct ls_gpus_place *place) {
    return place->bus_id[0] != 0;
}

static bool is_same_gpu(const struct ls_gpus_place *a, const struct ls_gpus_place *b) {
    return is_on_gpu(a) && strcmp(a->bus_id, b->bus_id) == 0 && strcmp(a->host, b->host) == 0;
}

/* Ranks by host, GPU and number. qsort_r's argument are the places. */
static int compare_places(const void *left, const void *right, void *places) {
    const int first = *(const int *)left, second = *(const int *)right;
    const struct ls_gpus_place *a = (const struct ls_gpus_place *)places + first,
                               *b = (const struct ls_gpus_place *)places + second;
    const int host = strcmp(a->host, b->host), gpu = host ? host : strcmp(a->bus_id, b->bus_id);
    return gpu ? gpu : first - second;
}

static enum ls_code refuse_kinds(const struct ls_gpus_place *places, int first, int second, struct ls_error *error) {
    const int cpu = is_on_gpu(&places[first]) ? second : first, gpu = cpu == first ? second : first;
    return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                   "device: rank %d on %s computes on CPUs, rank %d on %s on %s. Set device: cuda to hear why the "
                   "first has no GPU, or device: cpu for all.",
                   cpu, places[cpu].host, gpu, places[gpu].host, places[gpu].name);
}

enum ls_code ls_gpus_compare(const struct ls_gpus_place *places, int ranks, bool share, struct ls_error *error) {
    int other = 1, first = 0, second = ranks;
    while (other < ranks && is_on_gpu(&places[other]) == is_on_gpu(&places[0])) other++;
    int *order = calloc((size_t)ranks, sizeof *order);
    if (!order) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the devices of %d ranks", ranks);
    for (int rank = 0; rank < ranks; rank++) order[rank] = rank;
    if (!share) qsort_r(order, (size_t)ranks, sizeof *order, compare_places, (void *)(uintptr_t)places);
    for (int i = 1; i < ranks && !share; i++)
        if (is_same_gpu(&places[order[i - 1]], &places[order[i]]) && order[i] < second)
            first = order[i - 1], second = order[i];
    free(order);
    if (other < ranks && other <= second) return refuse_kinds(places, 0, other, error);
    if (second == ranks) return LS_OK;
    return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                   "device: ranks %d and %d are both on GPU %s (%s) of %s. Show each rank a GPU of its own "
                   "(CUDA_VISIBLE_DEVICES, srun --gpus-per-task=1), or, for tests, set gpu.share: true.",
                   first, second, places[first].bus_id, places[first].name, places[first].host);
}

enum ls_code ls_gpus_check(const struct ls_config *config, struct ls_comm *comm, const struct ls_device *device,
                           int *sharers, struct ls_error *error) {
    const int size = ls_comm_size(comm);
    const struct ls_device_info *info = ls_device_info(device);
    struct ls_gpus_place mine, *places = calloc((size_t)size, sizeof *places);
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
    if (!code) code = ls_gpus_compare(places, size, config->gpu.share, error);
    int same = 0;
    for (int rank = 0; rank < size && !code; rank++) same += is_same_gpu(&mine, &places[rank]);
    free(places);
    if (!code) *sharers = same;
    return code;
}
