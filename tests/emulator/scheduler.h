/* Runs the threads of a CUDA block as fibers of one CPU thread: each has a stack of its own and runs until it waits at
 * a barrier or for lanes of its warp. What a GPU leaves undefined stops the program with one line, "emulator: ...",
 * that names kernel, block and thread, and SIGABRT:
 *
 *     threads wait at different barriers; a barrier that some threads of the block never reach
 *     a mask that leaves out its caller, names a lane that has exited, or differs between the lanes that meet
 *     lanes of a warp that meet at different operations
 *     copies to shared memory that a thread did not wait for before it ended
 *     a launch no GPU would take: no blocks, broken warps, more shared memory than was allowed or than there is
 *
 * Built with sanitizers, every switch is told to them. The address sanitizer sees each shared array at its exact size;
 * the thread sanitizer sees each CUDA thread as a thread whose only order is that of barriers, warp operations and
 * launches: a missing barrier is a race. This file is C so that it can be built without sanitizers itself.
 *
 * LS_EMULATOR_SEED=N in the environment runs threads and blocks in random orders. */
#ifndef LS_TESTS_EMULATOR_SCHEDULER_H
#define LS_TESTS_EMULATOR_SCHEDULER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    LS_EMULATOR_WARP = 32,
    LS_EMULATOR_THREADS_MAX = 1024,
    LS_EMULATOR_SHARED_MAX = 99 << 10,     /* bytes of a block, what every GPU from sm_80 on has */
    LS_EMULATOR_SHARED_DEFAULT = 48 << 10, /* dynamic, without ls_emulator_allow_shared() */
    LS_EMULATOR_COPIES_MAX = 128           /* of a thread, under way at a time */
};

struct ls_emulator_index {
    unsigned x, y, z;
};

/* What a CUDA thread knows of itself. */
struct ls_emulator_thread {
    struct ls_emulator_index thread, block, block_size, grid_size;
    int lane;
};
extern __thread struct ls_emulator_thread *ls_emulator_self;

/* `run(closure)` is one thread of the kernel. The closure, from malloc, belongs to the launch, which frees it. */
struct ls_emulator_launch {
    const char *name;
    const void *kernel;
    struct ls_emulator_index grid_size, block_size;
    size_t shared_bytes;
    void (*run)(const void *closure);
    void *closure;
};

/* Puts a launch on `stream`, through ls_emulator_enqueue(). */
void ls_emulator_submit(const struct ls_emulator_launch *launch, void *stream);

/* Runs `function(argument)` in the order of `stream`. Here: at once. A program with streams of its own defines it too,
 * and its definition is taken. */
void ls_emulator_enqueue(void *stream, void (*function)(void *argument), void *argument);

/* From here on `kernel` may be launched with up to `bytes` of dynamic shared memory. */
void ls_emulator_allow_shared(const void *kernel, size_t bytes);

/* Called by CUDA threads. A barrier is known by the line it is on. */
void ls_emulator_barrier(const char *file, int line);

enum ls_emulator_warp_operation {
    LS_EMULATOR_SYNCWARP,
    LS_EMULATOR_SHUFFLE,
    LS_EMULATOR_VOTE,
    LS_EMULATOR_MATRICES,
    LS_EMULATOR_PRODUCT
};
/* Waits for all lanes of `mask` and returns what each of them gave, [32], until the caller's next call. */
const uint64_t *ls_emulator_exchange(enum ls_emulator_warp_operation operation, unsigned mask, uint64_t value);

/* Waits for all 32 lanes of the warp; then `function(own)` runs once, with what each lane gave, which it may change. */
void ls_emulator_together(enum ls_emulator_warp_operation operation, void *own,
                          void (*function)(void *const own[LS_EMULATOR_WARP]));

/* The copies to shared memory that the calling thread has under way; `from` NULL: zeros. A thread that ends with some
 * stops the program. */
struct ls_emulator_copy {
    void *to;
    const void *from;
    int bytes;
};
struct ls_emulator_copies {
    int count;
    struct ls_emulator_copy under_way[LS_EMULATOR_COPIES_MAX];
};
struct ls_emulator_copies *ls_emulator_copies_of_thread(void);

/* Stops the program with one line that names the calling thread. */
__attribute__((noreturn)) void ls_emulator_stop(const char *what);

/* The block's array known by `key`, filled with NaN when a thread of the block first asks for it. `key` NULL: the
 * dynamic one. */
void *ls_emulator_shared(const void *key, size_t bytes, size_t alignment);

#ifdef __cplusplus
}
#endif
#endif
