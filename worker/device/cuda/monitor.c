/* The thread that looks at a GPU. NVML comes with the driver and has no header where only the toolkit is: the few
 * functions used here, whose interface NVIDIA keeps from release to release, are declared below. */
#include "worker/device/cuda/monitor.h"

#include "worker/device/cuda/device.h"
#include "worker/device/cuda/libraries.h"

#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

enum { PERIOD_SECONDS = 1, NVML_CLOCK_SM = 1 };

/* NVML's. Every function returns 0 on success. */
struct nvml {
    int (*init)(void);
    int (*by_bus_id)(const char *bus_id, void **gpu);
    int (*power)(void *gpu, unsigned *milliwatts);
    int (*clock)(void *gpu, int domain, unsigned *megahertz);
};

struct ls_cuda_monitor {
    struct ls_cuda_device *device;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop;
    atomic_llong memory_bytes, memory_peak_bytes;
    atomic_uint power_milliwatts, clock_megahertz;
};

/* The GPU in NVML; NULL without it. */
static void *open_nvml(const char *bus_id, struct nvml *nvml) {
    char path[LS_LIBRARY_PATH_MAX];
    void *gpu = NULL, *handle = ls_library_open("libnvidia-ml.so.1", path, NULL);
    if (!handle) return NULL;
    *(void **)&nvml->init = dlsym(handle, "nvmlInit_v2");
    *(void **)&nvml->by_bus_id = dlsym(handle, "nvmlDeviceGetHandleByPciBusId_v2");
    *(void **)&nvml->power = dlsym(handle, "nvmlDeviceGetPowerUsage");
    *(void **)&nvml->clock = dlsym(handle, "nvmlDeviceGetClockInfo");
    if (!nvml->init || !nvml->by_bus_id || !nvml->power || !nvml->clock) return NULL;
    return nvml->init() == 0 && nvml->by_bus_id(bus_id, &gpu) == 0 ? gpu : NULL;
}

static void look(struct ls_cuda_monitor *monitor, const struct nvml *nvml, void *gpu) {
    const int64_t held = monitor->device->info.memory_bytes - ls_device_free_bytes(&monitor->device->base);
    unsigned milliwatts, megahertz;
    atomic_store(&monitor->memory_bytes, held);
    if (held > atomic_load(&monitor->memory_peak_bytes)) atomic_store(&monitor->memory_peak_bytes, held);
    if (!gpu) return;
    if (nvml->power(gpu, &milliwatts) == 0) atomic_store(&monitor->power_milliwatts, milliwatts);
    if (nvml->clock(gpu, NVML_CLOCK_SM, &megahertz) == 0) atomic_store(&monitor->clock_megahertz, megahertz);
}

static void *watch(void *argument) {
    struct ls_cuda_monitor *monitor = argument;
    struct nvml nvml = {0};
    void *gpu = open_nvml(monitor->device->info.bus_id, &nvml);
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    pthread_mutex_lock(&monitor->lock);
    while (!monitor->stop) {
        pthread_mutex_unlock(&monitor->lock);
        look(monitor, &nvml, gpu);
        pthread_mutex_lock(&monitor->lock);
        until.tv_sec += PERIOD_SECONDS;
        while (!monitor->stop && pthread_cond_timedwait(&monitor->wake, &monitor->lock, &until) != ETIMEDOUT) {
        }
    }
    pthread_mutex_unlock(&monitor->lock);
    return NULL;
}

struct ls_cuda_monitor *ls_cuda_monitor_start(struct ls_cuda_device *device) {
    struct ls_cuda_monitor *monitor = calloc(1, sizeof *monitor);
    pthread_condattr_t attributes;
    sigset_t all, before;
    if (!monitor) return NULL;
    monitor->device = device;
    pthread_mutex_init(&monitor->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&monitor->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    sigfillset(&all); /* signals are for the program's main thread */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&monitor->thread, NULL, watch, monitor);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) return monitor;
    pthread_cond_destroy(&monitor->wake);
    pthread_mutex_destroy(&monitor->lock);
    free(monitor);
    return NULL;
}

void ls_cuda_monitor_stop(struct ls_cuda_monitor *monitor) {
    if (!monitor) return;
    pthread_mutex_lock(&monitor->lock);
    monitor->stop = true;
    pthread_cond_signal(&monitor->wake);
    pthread_mutex_unlock(&monitor->lock);
    pthread_join(monitor->thread, NULL);
    pthread_cond_destroy(&monitor->wake);
    pthread_mutex_destroy(&monitor->lock);
    free(monitor);
}

struct ls_device_gauges ls_cuda_monitor_read(const struct ls_cuda_monitor *monitor) {
    if (!monitor) return (struct ls_device_gauges){0};
    return (struct ls_device_gauges){.memory_bytes = atomic_load(&monitor->memory_bytes),
                                     .memory_peak_bytes = atomic_load(&monitor->memory_peak_bytes),
                                     .power_watts = 1e-3 * (double)atomic_load(&monitor->power_milliwatts),
                                     .clock_mhz = (int)atomic_load(&monitor->clock_megahertz)};
}
