/* The one OpenMP loop of the CPU device. */
#include "worker/device/cpu/kernels.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
/* The OpenMP run time is not built for ThreadSanitizer and synchronises in ways that it cannot see: what it does itself
 * is not judged. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) {
    return "ignore_noninstrumented_modules=1";
}
#endif
#endif

void ls_cpu_parallel(int threads, int64_t count, int64_t grain, ls_cpu_body *body, const void *op) {
    const int64_t grains = (count + grain - 1) / grain;
    const int64_t parts = grains < threads ? grains : threads;
    if (count <= 0) return;
    if (parts <= 1) {
        body(op, 0, count);
        return;
    }
#pragma omp parallel for num_threads((int)parts) schedule(static, 1)
    for (int64_t part = 0; part < parts; part++) {
        int64_t begin = grains * part / parts * grain;
        int64_t end = grains * (part + 1) / parts * grain;
        body(op, begin, end < count ? end : count);
    }
}
