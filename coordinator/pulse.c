/* A time in a shared page. */
#define _GNU_SOURCE
#include "coordinator/pulse.h"

#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <time.h>

struct ls_pulse {
    _Atomic int64_t beat_ms; /* CLOCK_MONOTONIC */
};

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

struct ls_pulse *ls_pulse_create(void) {
    void *memory = mmap(NULL, sizeof(struct ls_pulse), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    ls_pulse_beat(memory);
    return memory;
}

void ls_pulse_destroy(struct ls_pulse *pulse) {
    if (pulse) munmap(pulse, sizeof *pulse);
}

void ls_pulse_beat(struct ls_pulse *pulse) {
    if (pulse) atomic_store_explicit(&pulse->beat_ms, now_ms(), memory_order_relaxed);
}

int64_t ls_pulse_silent_ms(const struct ls_pulse *pulse) {
    return pulse ? now_ms() - atomic_load_explicit(&pulse->beat_ms, memory_order_relaxed) : 0;
}
