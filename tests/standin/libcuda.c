/* A driver for cuDNN where there is none: it answers to its name and has no device. What cuDNN looks up in it before it
 * makes a plan for a GPU that was described to it is here; nothing of it runs anything. */
#include <stdint.h>

enum { NOT_SUPPORTED = 801, DRIVER_VERSION = 13000 };

int cuInit(unsigned flags);
int cuDriverGetVersion(int *version);
int cuGetExportTable(const void **table, const void *id);
int cuLibraryLoadData(void **library);
int cuLibraryGetKernel(void **kernel);

int cuInit(unsigned flags) {
    (void)flags;
    return 0;
}

int cuDriverGetVersion(int *version) {
    *version = DRIVER_VERSION;
    return 0;
}

int cuGetExportTable(const void **table, const void *id) {
    (void)id;
    *table = 0;
    return NOT_SUPPORTED;
}

/* Code is taken as it is, and each kernel is another one. */
int cuLibraryLoadData(void **library) {
    static char loaded;
    *library = &loaded;
    return 0;
}

int cuLibraryGetKernel(void **kernel) {
    static uintptr_t kernels = 0x1000;
    kernels += 16;
    *kernel = (void *)kernels; /* NOLINT(performance-no-int-to-ptr): a handle that nobody follows */
    return 0;
}

/* Looked up, and called at most for what does not matter here. */
#define LOOKED_UP(X)                                                                                                   \
    X(cuCtxGetCurrent)                                                                                                 \
    X(cuCtxGetLimit)                                                                                                   \
    X(cuCtxPopCurrent)                                                                                                 \
    X(cuCtxPushCurrent)                                                                                                \
    X(cuDeviceGet)                                                                                                     \
    X(cuDeviceGetCount)                                                                                                \
    X(cuGetErrorName)                                                                                                  \
    X(cuGetErrorString)                                                                                                \
    X(cuKernelGetAttribute)                                                                                            \
    X(cuKernelSetAttribute)                                                                                            \
    X(cuLaunchCooperativeKernel)                                                                                       \
    X(cuLaunchKernel)                                                                                                  \
    X(cuLaunchKernelEx)                                                                                                \
    X(cuLibraryLoadFromFile)                                                                                           \
    X(cuLibraryUnload)                                                                                                 \
    X(cuLinkAddData)                                                                                                   \
    X(cuLinkComplete)                                                                                                  \
    X(cuLinkCreate)                                                                                                    \
    X(cuLinkDestroy)                                                                                                   \
    X(cuOccupancyMaxPotentialClusterSize)                                                                              \
    X(cuStreamGetCtx)
#define X(name)                                                                                                        \
    int name(void);                                                                                                    \
    int name(void) {                                                                                                   \
        return 0;                                                                                                      \
    }
LOOKED_UP(X)
#undef X
