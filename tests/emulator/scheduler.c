/* Fibers, barriers, warp operations and shared memory of the emulator. Compiled without sanitizers, whose view of the
 * fibers is given by the calls below; LS_EMULATOR_ASAN and LS_EMULATOR_TSAN say which of them the program has. */
#include "tests/emulator/scheduler.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef LS_EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef LS_EMULATOR_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#ifndef __x86_64__
// cppcheck-suppress preprocessorErrorDirective
#error "the emulator switches fibers with x86-64 code"
#endif

enum {
    WARPS_MAX = LS_EMULATOR_THREADS_MAX / LS_EMULATOR_WARP,
    STACK_BYTES = 256 << 10,
    GUARD_BYTES = 4 << 10,
    SHARED_ARRAYS_MAX = 64,
    RED_ZONE = 64,
    SYNC_BYTES = 4 << 10, /* addresses by which the thread sanitizer knows the barrier and the warps of a block */
    POOL_BYTES = SYNC_BYTES + LS_EMULATOR_SHARED_MAX + (SHARED_ARRAYS_MAX + 1) * 2 * RED_ZONE,
    ALLOWED_MAX = 256
};

enum state { READY, AT_BARRIER, IN_WARP, DONE };

struct fiber {
    struct ls_emulator_thread self; /* first: ls_emulator_self points here */
    void *stack_pointer;
    char *stack;
    enum state state;
    int warp;
    const char *barrier_file;
    int barrier_line;
    unsigned mask; /* of the warp operation it waits in */
    enum ls_emulator_warp_operation operation;
    uint64_t given, received[LS_EMULATOR_WARP];
    struct ls_emulator_copies copies;
    void *asan_stack, *tsan_fiber;
};

struct warp {
    unsigned live, waiting; /* lanes */
    unsigned whole;         /* operations of all 32 lanes so far */
};

struct shared_array {
    const void *key;
    char *memory;
};

/* One block at a time; one of these for each CPU thread that runs blocks. */
struct engine {
    struct fiber fibers[LS_EMULATOR_THREADS_MAX], host;
    struct fiber *threads[LS_EMULATOR_THREADS_MAX]; /* the fiber of each thread of the block */
    struct warp warps[WARPS_MAX];
    const struct ls_emulator_launch *launch;
    int thread_count, live, at_barrier;
    unsigned barriers; /* that all threads of the block have come to */
    char *pool;        /* of the block's shared memory */
    size_t pool_used, shared_bytes;
    struct shared_array shared[SHARED_ARRAYS_MAX];
    int shared_count;
    const void *host_stack;
    size_t host_stack_bytes;
    uint64_t random; /* 0: in order */
    char *
        *retired; /* pools of the grid's finished blocks, for the thread sanitizer, to which a new one is new memory */
    int64_t retired_count;
};

static __thread struct engine *engine;
static __thread struct fiber *current;
__thread struct ls_emulator_thread *ls_emulator_self;

static struct {
    const void *kernel;
    size_t bytes;
} allowed[ALLOWED_MAX];
static int allowed_count;

void ls_emulator_stop(const char *what) {
    const struct ls_emulator_thread *self = current && current != &engine->host ? &current->self : NULL;
    fprintf(stderr, "emulator: %s (kernel %s", what, engine->launch->name);
    if (self)
        fprintf(stderr, ", block %u,%u,%u, thread %u,%u,%u", self->block.x, self->block.y, self->block.z,
                self->thread.x, self->thread.y, self->thread.z);
    fprintf(stderr, ")\n");
    abort();
}

/* Pushes the registers a function keeps, stores the stack pointer at `save`, takes that of `load`, pops. */
void ls_emulator_switch_stack(void **save, void *load);
__asm__(".text\n"
        ".globl ls_emulator_switch_stack\n"
        ".type ls_emulator_switch_stack, @function\n"
        "ls_emulator_switch_stack:\n"
        "    pushq %rbx\n    pushq %rbp\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbp\n    popq %rbx\n"
        "    retq\n"
        ".size ls_emulator_switch_stack, . - ls_emulator_switch_stack\n");

static void switch_to(struct fiber *to, bool finished) {
    struct fiber *from = current;
    current = to;
    ls_emulator_self = &to->self;
#ifdef LS_EMULATOR_ASAN
    const bool host = to == &engine->host;
    __sanitizer_start_switch_fiber(finished ? NULL : &from->asan_stack, host ? engine->host_stack : to->stack,
                                   host ? engine->host_stack_bytes : STACK_BYTES);
#endif
#ifdef LS_EMULATOR_TSAN
    enum { NO_ORDER = 1 };
    __tsan_switch_to_fiber(to->tsan_fiber, NO_ORDER);
#endif
    (void)finished;
    ls_emulator_switch_stack(&from->stack_pointer, to->stack_pointer);
#ifdef LS_EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(from->asan_stack, NULL, NULL);
#endif
}

static void sync_release(void *address) {
#ifdef LS_EMULATOR_TSAN
    __tsan_release(address);
#endif
    (void)address;
}

static void sync_acquire(void *address) {
#ifdef LS_EMULATOR_TSAN
    __tsan_acquire(address);
#endif
    (void)address;
}

/* Threads of a block run after one another: when a late one leaves a barrier, an early one may have come to the next.
 * So that this is not taken for an order between them, one barrier and the next, and likewise the operations of a warp,
 * are known by two addresses in turn. Operations of a part of a warp share a third, which sees less. */
static void *barrier_address(void) {
    return engine->pool + 8 * (engine->barriers & 1);
}
static void *warp_address(int warp, unsigned mask) {
    const unsigned turn = mask == UINT32_MAX ? engine->warps[warp].whole & 1 : 2;
    return engine->pool + 8 * (2 + 3 * (unsigned)warp + turn);
}

/* Launches and finished threads are ordered with the host by the closure's and the launch's addresses. */
static _Noreturn void fiber_main(void) {
#ifdef LS_EMULATOR_ASAN
    const bool first = !engine->host_stack;
    __sanitizer_finish_switch_fiber(NULL, first ? &engine->host_stack : NULL, first ? &engine->host_stack_bytes : NULL);
#endif
    sync_acquire(engine->launch->closure);
    engine->launch->run(engine->launch->closure);
    sync_release((void *)(uintptr_t)engine->launch);
    if (current->copies.count) ls_emulator_stop("a thread ends with copies to shared memory under way");
    current->state = DONE;
    engine->live--;
    engine->warps[current->warp].live &= ~(1u << current->self.lane);
    switch_to(&engine->host, true);
    abort();
}

static void *map(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) ls_emulator_stop("no memory for stacks or shared memory");
    return memory;
}

/* Lays out a stack on which the first switch to the fiber returns into fiber_main. */
static void prepare_stack(struct fiber *fiber) {
    enum { REGISTERS = 6 };
    if (!fiber->stack) {
        char *memory = map(GUARD_BYTES + STACK_BYTES);
        mprotect(memory, GUARD_BYTES, PROT_NONE);
        fiber->stack = memory + GUARD_BYTES;
    }
    void **top = (void **)(fiber->stack + STACK_BYTES);
    top[-1] = NULL;
    top[-2] = (void *)(uintptr_t)fiber_main; /* at a multiple of 16, so that a function finds its stack as it expects */
    for (int i = 0; i < REGISTERS; i++) top[-3 - i] = NULL;
    fiber->stack_pointer = top - 2 - REGISTERS;
}

static struct ls_emulator_index index_of(uint64_t i, struct ls_emulator_index size) {
    return (struct ls_emulator_index){(unsigned)(i % size.x), (unsigned)(i / size.x % size.y),
                                      (unsigned)(i / size.x / size.y)};
}

static uint64_t next_random(void) { /* xorshift64 (Marsaglia 2003) */
    uint64_t x = engine->random;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return engine->random = x;
}

static void begin_shared(size_t dynamic_bytes) {
    if (!engine->pool) engine->pool = map(POOL_BYTES);
    engine->pool_used = SYNC_BYTES;
    engine->shared_count = 0;
    engine->shared_bytes = 0;
#ifdef LS_EMULATOR_ASAN
    __asan_poison_memory_region(engine->pool + SYNC_BYTES, POOL_BYTES - SYNC_BYTES);
#endif
    if (dynamic_bytes) ls_emulator_shared(NULL, dynamic_bytes, 16);
}

void *ls_emulator_shared(const void *key, size_t bytes, size_t alignment) {
    for (int i = 0; i < engine->shared_count; i++)
        if (engine->shared[i].key == key) return engine->shared[i].memory;
    if (!key && engine->live > 0) ls_emulator_stop("dynamic shared memory used, and none in the launch");
    engine->shared_bytes += bytes;
    if (engine->shared_bytes > LS_EMULATOR_SHARED_MAX) ls_emulator_stop("more than 99 KiB of shared memory");
    if (engine->shared_count == SHARED_ARRAYS_MAX)
        ls_emulator_stop("more shared arrays than the emulator has places for");
    if (alignment < 8) alignment = 8;
    const size_t first = (engine->pool_used + RED_ZONE + alignment - 1) / alignment * alignment;
    char *memory = engine->pool + first;
    engine->pool_used = first + bytes;
    engine->shared[engine->shared_count++] = (struct shared_array){key, memory};
#ifdef LS_EMULATOR_ASAN
    __asan_unpoison_memory_region(memory, bytes);
#endif
    /* 0xff: NaN in every type of float. Not by memset, which the thread sanitizer would take for this thread's doing.
     */
    for (volatile char *byte = memory; byte < memory + bytes; byte++) *byte = (char)0xff;
    return memory;
}

/* With the thread sanitizer every block has shared memory that was never used, or the order of blocks would be taken
 * for an order of their threads. */
static void end_shared(void) {
#ifdef LS_EMULATOR_TSAN
    engine->retired = realloc(engine->retired, (size_t)(engine->retired_count + 1) * sizeof *engine->retired);
    if (!engine->retired) ls_emulator_stop("no memory");
    engine->retired[engine->retired_count++] = engine->pool;
    engine->pool = NULL;
#endif
}

static void free_retired(void) {
    for (int64_t i = 0; i < engine->retired_count; i++) munmap(engine->retired[i], POOL_BYTES);
    engine->retired_count = 0;
    free(engine->retired);
    engine->retired = NULL;
}

static void open_barrier(void) {
    const struct fiber *first = NULL;
    for (int i = 0; i < engine->thread_count; i++) {
        struct fiber *fiber = engine->threads[i];
        if (fiber->state != AT_BARRIER) continue;
        if (!first) first = fiber;
        if (fiber->barrier_line != first->barrier_line || strcmp(fiber->barrier_file, first->barrier_file) != 0) {
            char text[512];
            snprintf(text, sizeof text, "divergent barrier: threads wait at %s:%d and at %s:%d", first->barrier_file,
                     first->barrier_line, fiber->barrier_file, fiber->barrier_line);
            current = fiber;
            ls_emulator_stop(text);
        }
        fiber->state = READY;
    }
    engine->at_barrier = 0;
    engine->barriers++;
}

static _Noreturn void stop_deadlock(void) {
    int at_barrier = 0, in_warp = 0;
    for (int i = 0; i < engine->thread_count; i++) {
        const struct fiber *fiber = engine->threads[i];
        at_barrier += fiber->state == AT_BARRIER;
        in_warp += fiber->state == IN_WARP;
        if (fiber->state == IN_WARP) current = engine->threads[i];
    }
    char text[256];
    snprintf(text, sizeof text, "deadlock: %d threads wait at a barrier, %d for lanes of their warp that do not come",
             at_barrier, in_warp);
    ls_emulator_stop(text);
}

static void run_block(uint64_t number) {
    const struct ls_emulator_launch *launch = engine->launch;
    const int count = engine->thread_count;
    engine->live = 0;
    begin_shared(launch->shared_bytes);
    memset(engine->warps, 0, sizeof engine->warps);
    for (int i = 0; i < count; i++) {
        /* Another fiber for a thread in each block: the thread sanitizer sees no order between two of them. */
        struct fiber *fiber = &engine->fibers[((uint64_t)i + number) % (uint64_t)count];
        fiber->self = (struct ls_emulator_thread){.thread = index_of((uint64_t)i, launch->block_size),
                                                  .block = index_of(number, launch->grid_size),
                                                  .block_size = launch->block_size,
                                                  .grid_size = launch->grid_size,
                                                  .lane = i % LS_EMULATOR_WARP};
        fiber->state = READY;
        fiber->copies.count = 0;
        fiber->warp = i / LS_EMULATOR_WARP;
        engine->warps[fiber->warp].live |= 1u << fiber->self.lane;
        engine->threads[i] = fiber;
        prepare_stack(fiber);
#ifdef LS_EMULATOR_TSAN
        if (!fiber->tsan_fiber) fiber->tsan_fiber = __tsan_create_fiber(0);
#endif
    }
    engine->live = count;
    engine->at_barrier = 0;
    while (engine->live > 0) {
        const bool backward = engine->random && next_random() & 1;
        const int offset = engine->random ? (int)(next_random() % (uint64_t)count) : 0;
        bool ran = false;
        for (int k = 0; k < count; k++) {
            const int i = ((backward ? count - 1 - k : k) + offset) % count;
            if (engine->threads[i]->state != READY) continue;
            ran = true;
            switch_to(engine->threads[i], false);
        }
        if (engine->live > 0 && engine->at_barrier == engine->live)
            open_barrier();
        else if (!ran)
            stop_deadlock();
    }
    end_shared();
}

static void begin_engine(const struct ls_emulator_launch *launch) {
    if (!engine) {
        engine = map(sizeof *engine);
        const char *seed = getenv("LS_EMULATOR_SEED");
        if (seed) engine->random = strtoull(seed, NULL, 0) * 0x9E3779B97F4A7C15u + 1;
    }
    engine->launch = launch;
    engine->thread_count = (int)(launch->block_size.x * launch->block_size.y * launch->block_size.z);
    engine->host_stack = NULL;
    current = &engine->host;
#ifdef LS_EMULATOR_TSAN
    engine->host.tsan_fiber = __tsan_get_current_fiber();
#endif
}

static void run_launch(void *argument) {
    struct ls_emulator_launch *launch = argument;
    const struct ls_emulator_index grid = launch->grid_size;
    const int64_t blocks = (int64_t)grid.x * grid.y * grid.z;
    sync_release(launch->closure);
#ifdef _OPENMP
#pragma omp parallel if (blocks > 1)
#endif
    {
        begin_engine(launch);
        const int64_t offset = engine->random ? (int64_t)(next_random() % (uint64_t)blocks) : 0;
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t i = 0; i < blocks; i++) run_block((uint64_t)((i + offset) % blocks));
        sync_acquire(launch);
        free_retired();
        current = NULL;
    }
    free(launch->closure);
    free(launch);
}

__attribute__((weak)) void ls_emulator_enqueue(void *stream, void (*function)(void *argument), void *argument) {
    (void)stream;
    function(argument);
}

static void check_launch(const struct ls_emulator_launch *launch) {
    const struct ls_emulator_index grid = launch->grid_size, block = launch->block_size;
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;
    size_t limit = LS_EMULATOR_SHARED_DEFAULT;
    const char *what = NULL;
    for (int i = 0; i < allowed_count; i++)
        if (allowed[i].kernel == launch->kernel) limit = allowed[i].bytes;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > INT32_MAX || grid.y > UINT16_MAX || grid.z > UINT16_MAX)
        what = "a launch of no blocks, or of more than a GPU takes";
    else if (threads == 0 || threads > LS_EMULATOR_THREADS_MAX || threads % LS_EMULATOR_WARP)
        what = "a block of no whole warps, or of more than 1024 threads";
    else if (launch->shared_bytes > limit)
        what = "a launch with more dynamic shared memory than was allowed";
    if (!what) return;
    fprintf(stderr, "emulator: %s (kernel %s, grid %u,%u,%u, block %u,%u,%u, %zu bytes)\n", what, launch->name, grid.x,
            grid.y, grid.z, block.x, block.y, block.z, launch->shared_bytes);
    abort();
}

void ls_emulator_submit(const struct ls_emulator_launch *launch, void *stream) {
    check_launch(launch);
    struct ls_emulator_launch *copy = malloc(sizeof *copy);
    if (!copy) abort();
    *copy = *launch;
    ls_emulator_enqueue(stream, run_launch, copy);
}

void ls_emulator_allow_shared(const void *kernel, size_t bytes) {
    int place = 0;
    while (place < allowed_count && allowed[place].kernel != kernel) place++;
    if (place == ALLOWED_MAX || bytes > LS_EMULATOR_SHARED_MAX) {
        fprintf(stderr, "emulator: %zu bytes of shared memory asked for, a block has %d\n", bytes,
                LS_EMULATOR_SHARED_MAX);
        abort();
    }
    allowed[place].kernel = kernel;
    allowed[place].bytes = bytes;
    if (place == allowed_count) allowed_count++;
}

void ls_emulator_barrier(const char *file, int line) {
    void *address = barrier_address();
    sync_release(address);
    current->barrier_file = file;
    current->barrier_line = line;
    current->state = AT_BARRIER;
    engine->at_barrier++;
    switch_to(&engine->host, false);
    sync_acquire(address);
}

/* The lanes of `mask` are all there: `function` runs on what they gave, or, without one, each gets what all gave. */
static void complete_exchange(struct warp *warp, int number, unsigned mask,
                              void (*function)(void *const own[LS_EMULATOR_WARP])) {
    struct fiber **lanes = engine->threads + number * LS_EMULATOR_WARP;
    for (int to = 0; to < LS_EMULATOR_WARP; to++) {
        if (!(mask >> to & 1)) continue;
        if (lanes[to]->mask != mask) ls_emulator_stop("the lanes of a warp operation name different masks");
        if (lanes[to]->operation != current->operation)
            ls_emulator_stop("the lanes of a warp are at different operations");
        for (int from = 0; from < LS_EMULATOR_WARP && !function; from++)
            if (mask >> from & 1) lanes[to]->received[from] = lanes[from]->given;
        lanes[to]->state = READY;
    }
    if (function) {
        void *address = warp_address(number, mask), *own[LS_EMULATOR_WARP];
        for (int i = 0; i < LS_EMULATOR_WARP; i++) own[i] = (void *)(uintptr_t)lanes[i]->given;
        sync_acquire(address);
        function(own);
        sync_release(address);
    }
    warp->waiting &= ~mask;
    if (mask == UINT32_MAX) warp->whole++;
}

static const uint64_t *meet(enum ls_emulator_warp_operation operation, unsigned mask, uint64_t value,
                            void (*function)(void *const own[LS_EMULATOR_WARP])) {
    struct fiber *self = current;
    struct warp *warp = &engine->warps[self->warp];
    if (!(mask >> self->self.lane & 1)) ls_emulator_stop("the mask of a warp operation leaves out its caller");
    if (mask & ~warp->live) ls_emulator_stop("the mask of a warp operation names a lane that has exited");
    self->given = value;
    self->mask = mask;
    self->operation = operation;
    warp->waiting |= 1u << self->self.lane;
    void *address = warp_address(self->warp, mask);
    sync_release(address);
    if ((warp->waiting & mask) == mask) {
        complete_exchange(warp, self->warp, mask, function);
    } else {
        self->state = IN_WARP;
        switch_to(&engine->host, false);
    }
    sync_acquire(address);
    return self->received;
}

const uint64_t *ls_emulator_exchange(enum ls_emulator_warp_operation operation, unsigned mask, uint64_t value) {
    return meet(operation, mask, value, NULL);
}

void ls_emulator_together(enum ls_emulator_warp_operation operation, void *own,
                          void (*function)(void *const own[LS_EMULATOR_WARP])) {
    meet(operation, UINT32_MAX, (uint64_t)(uintptr_t)own, function);
}

struct ls_emulator_copies *ls_emulator_copies_of_thread(void) {
    return &current->copies;
}
