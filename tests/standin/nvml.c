/* NVML's few functions that the program calls: a GPU that draws 300 W at 1500 MHz. */
int nvmlInit_v2(void);
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **gpu);
int nvmlDeviceGetPowerUsage(void *gpu, unsigned *milliwatts);
int nvmlDeviceGetClockInfo(void *gpu, int domain, unsigned *megahertz);

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, CLOCK_SM = 1 };

static int gpu_of_all;

int nvmlInit_v2(void) {
    return SUCCESS;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **gpu) {
    if (bus_id[0] != '0') return INVALID_ARGUMENT;
    *gpu = &gpu_of_all;
    return SUCCESS;
}
int nvmlDeviceGetPowerUsage(void *gpu, unsigned *milliwatts) {
    if (gpu != &gpu_of_all) return INVALID_ARGUMENT;
    *milliwatts = 300000;
    return SUCCESS;
}
int nvmlDeviceGetClockInfo(void *gpu, int domain, unsigned *megahertz) {
    if (gpu != &gpu_of_all || domain != CLOCK_SM) return INVALID_ARGUMENT;
    *megahertz = 1500;
    return SUCCESS;
}
