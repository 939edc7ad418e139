/* Descriptors: the limit, and a table apart. */
#define _GNU_SOURCE
#include "coordinator/descriptors.h"

#include <sched.h>
#include <sys/resource.h>

int64_t ls_descriptors_raise(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit)) return 0;
    if (limit.rlim_cur < limit.rlim_max) {
        const rlim_t before = limit.rlim_cur;
        limit.rlim_cur = limit.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &limit)) limit.rlim_cur = before;
    }
    return (int64_t)limit.rlim_cur;
}

bool ls_descriptors_part(void) {
    return unshare(CLONE_FILES) == 0;
}
