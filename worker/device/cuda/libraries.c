/* Looks for the libraries, opens them, fills the tables of their functions. */
#define _GNU_SOURCE
#include "worker/device/cuda/libraries.h"

#include "common/log.h"

#include <dlfcn.h>
#include <glob.h>
#include <link.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TEXT_OF(number) #number
#define TEXT(number)    TEXT_OF(number)

enum { PLACES_MAX = 64, LINKS_MAX = 8 };

/* One try; the linker's words when it fails. */
static void *try_path(const char *folder, const char *name, char *why, size_t size) {
    char path[LS_LIBRARY_PATH_MAX];
    const int length = snprintf(path, sizeof path, "%s%s%s", folder, folder[0] ? "/" : "", name);
    if (length < 0 || (size_t)length >= sizeof path) return NULL;
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const char *words = handle ? NULL : dlerror();
    /* "not there" is what most places answer; of a file that is there and does not load, the reason counts. */
    if (words && (!why[0] || !strstr(words, "No such file"))) snprintf(why, size, "%.300s", words);
    return handle;
}

static void *try_list(const char *folders, const char *name, char *why, size_t size) {
    void *handle = NULL;
    char copy[4096];
    snprintf(copy, sizeof copy, "%s", folders);
    char *rest = copy;
    for (char *folder = strsep(&rest, ":"); folder && !handle; folder = strsep(&rest, ":"))
        if (folder[0]) handle = try_path(folder, name, why, size);
    return handle;
}

static void *try_pattern(const char *prefix, const char *pattern, const char *name, char *why, size_t size) {
    char whole[LS_LIBRARY_PATH_MAX];
    glob_t found;
    void *handle = NULL;
    snprintf(whole, sizeof whole, "%s%s", prefix, pattern);
    if (glob(whole, 0, NULL, &found)) return NULL;
    for (size_t i = 0; i < found.gl_pathc && i < PLACES_MAX && !handle; i++)
        handle = try_path(found.gl_pathv[i], name, why, size);
    globfree(&found);
    return handle;
}

static const char packages[] = "/lib/python3*/site-packages/nvidia/*/lib";

/* The packages around a python3, and around what it is a link to: the program of a virtual environment, which stands
 * in that environment, is a link to the system's. */
static void *try_interpreter(const char *program, const char *name, char *why, size_t size) {
    char path[LS_LIBRARY_PATH_MAX], target[LS_LIBRARY_PATH_MAX], next[2 * LS_LIBRARY_PATH_MAX];
    void *handle = NULL;
    snprintf(path, sizeof path, "%s", program);
    for (int links = 0; links < LINKS_MAX && !handle; links++) {
        const ssize_t length = readlink(path, target, sizeof target - 1);
        char *slash = strrchr(path, '/');
        if (!slash) break;
        *slash = 0; /* the program's folder */
        snprintf(next, sizeof next, "%s/..", path);
        handle = try_pattern(next, packages, name, why, size);
        if (length <= 0) break;
        target[length] = 0;
        snprintf(next, sizeof next, "%s%s%s", target[0] == '/' ? "" : path, target[0] == '/' ? "" : "/", target);
        if (snprintf(path, sizeof path, "%s", next) >= (int)sizeof path) break;
    }
    return handle;
}

/* The python3 that a shell would start. */
static void *try_path_python(const char *name, char *why, size_t size) {
    const char *folders = getenv("PATH");
    char program[LS_LIBRARY_PATH_MAX];
    while (folders && *folders) {
        const int length = (int)strcspn(folders, ":");
        const int used = snprintf(program, sizeof program, "%.*s/python3", length, folders);
        if (length > 0 && used < (int)sizeof program && access(program, X_OK) == 0)
            return try_interpreter(program, name, why, size);
        folders += length + (folders[length] == ':');
    }
    return NULL;
}

/* A Python's packages: of the active environment, of the python3 on the path, of the user, of the system. */
static void *try_python(const char *name, char *why, size_t size) {
    static const char *const variables[] = {"VIRTUAL_ENV", "CONDA_PREFIX"};
    const char *home = getenv("HOME");
    char local[LS_LIBRARY_PATH_MAX];
    void *handle = NULL;
    for (size_t i = 0; i < sizeof variables / sizeof *variables && !handle; i++) {
        const char *prefix = getenv(variables[i]);
        if (prefix && prefix[0]) handle = try_pattern(prefix, packages, name, why, size);
    }
    if (!handle) handle = try_path_python(name, why, size);
    snprintf(local, sizeof local, "%s/.local", home ? home : "");
    if (!handle && home) handle = try_pattern(local, packages, name, why, size);
    if (!handle) handle = try_pattern("/usr/local", packages, name, why, size);
    if (!handle) handle = try_pattern("/usr/local/lib/python3*", "/dist-packages/nvidia/*/lib", name, why, size);
    if (!handle) handle = try_pattern("/usr/lib/python3*", "/dist-packages/nvidia/*/lib", name, why, size);
    return handle;
}

void *ls_library_open(const char *name, char *path, struct ls_error *error) {
    const char *folders = getenv("LOCKSTEP_CUDA_LIBRARIES");
    char why[320] = "";
    void *handle = NULL;
    if (folders && folders[0]) handle = try_list(folders, name, why, sizeof why);
    if (!handle) handle = try_path("", name, why, sizeof why);
    if (!handle) handle = try_path("/usr/local/cuda/lib64", name, why, sizeof why);
    if (!handle) handle = try_python(name, why, sizeof why);
    if (!handle) {
        ls_fail(error, LS_ERROR, LS_SCOPE_RANK,
                "device: %s cannot be opened (%s). It was looked for in LOCKSTEP_CUDA_LIBRARIES (%.200s), on the "
                "loader's path, in /usr/local/cuda/lib64 and in the nvidia packages of Python. Install it, or set "
                "LOCKSTEP_CUDA_LIBRARIES to the folder that holds it.",
                name, why, folders && folders[0] ? folders : "not set");
        return NULL;
    }
    struct link_map *map = NULL;
    const bool known = dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map && map->l_name;
    snprintf(path, LS_LIBRARY_PATH_MAX, "%s", known ? map->l_name : name);
    return handle;
}

/* False names the function that is missing. */
static bool find_function(void *handle, const char *name, void **function, const char **missing) {
    *function = dlsym(handle, name);
    if (!*function) *missing = name;
    return *function != NULL;
}

static enum ls_code refuse_incomplete(const char *path, const char *missing, struct ls_error *error) {
    return ls_fail(error, LS_ERROR, LS_SCOPE_RANK,
                   "device: %s has no function %s: it is older than this program needs. Update it, or set "
                   "LOCKSTEP_CUDA_LIBRARIES to the folder of a newer one.",
                   path, missing);
}

/* "13.1.0" from 130100 and the like. */
static void write_version(char *text, size_t size, size_t version, size_t major_unit, size_t minor_unit) {
    snprintf(text, size, "%zu.%zu.%zu", version / major_unit, version % major_unit / minor_unit, version % minor_unit);
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define FIND(name) complete = complete && find_function(handle, #name, (void **)&opened.name, &missing);

#define DEFINE_OPEN(kind, soname, FUNCTIONS, VERSION)                                                                  \
    static enum ls_code open_##kind(struct ls_##kind *library, struct ls_error *error) {                               \
        struct ls_##kind opened;                                                                                       \
        memset(&opened, 0, sizeof opened);                                                                             \
        const char *missing = NULL;                                                                                    \
        bool complete = true;                                                                                          \
        void *handle = ls_library_open(soname, opened.path, error);                                                    \
        if (!handle) return LS_ERROR;                                                                                  \
        FUNCTIONS(FIND)                                                                                                \
        if (!complete) return refuse_incomplete(opened.path, missing, error);                                          \
        VERSION;                                                                                                       \
        ls_log(LS_LOG_INFO, "%s: %s, version %s", #kind, opened.path, opened.version);                                 \
        *library = opened;                                                                                             \
        return LS_OK;                                                                                                  \
    }                                                                                                                  \
    enum ls_code ls_library_##kind(const struct ls_##kind **library, struct ls_error *error) {                         \
        static struct ls_##kind opened;                                                                                \
        static bool is_open;                                                                                           \
        pthread_mutex_lock(&lock);                                                                                     \
        enum ls_code code = is_open ? LS_OK : open_##kind(&opened, error);                                             \
        is_open = is_open || !code;                                                                                    \
        pthread_mutex_unlock(&lock);                                                                                   \
        if (!code) *library = &opened;                                                                                 \
        return code;                                                                                                   \
    }

static void name_cublaslt(struct ls_cublaslt *opened) {
    write_version(opened->version, sizeof opened->version, opened->cublasLtGetVersion(), 10000, 100);
}
static void name_nccl(struct ls_nccl *opened) {
    int version = 0;
    if (opened->ncclGetVersion(&version)) version = 0;
    write_version(opened->version, sizeof opened->version, (size_t)version, 10000, 100);
}
#ifdef LS_CUDNN
static void name_cudnn(struct ls_cudnn *opened) {
    write_version(opened->version, sizeof opened->version, opened->cudnnGetVersion(), 10000, 100);
}
#endif

DEFINE_OPEN(cublaslt, "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR), LS_CUBLASLT_FUNCTIONS, name_cublaslt(&opened))
DEFINE_OPEN(nccl, "libnccl.so." TEXT(NCCL_MAJOR), LS_NCCL_FUNCTIONS, name_nccl(&opened))
#ifdef LS_CUDNN
DEFINE_OPEN(cudnn, "libcudnn.so." TEXT(CUDNN_MAJOR), LS_CUDNN_FUNCTIONS, name_cudnn(&opened))
#endif
