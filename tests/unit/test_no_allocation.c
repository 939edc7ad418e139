/* Nothing is allocated once the first step is done: the program counts what every thread asks of malloc and the like
 * while training goes on, with ranks as threads. Libraries that allocate inside a call are counted apart, by the
 * library that asked. */
#define _GNU_SOURCE
#include "trainer_harness.h"

#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <unistd.h>

#include "tests/unit/sanitized.h"

enum { CALLERS_MAX = 1 << 16 };

/* While `counting`, who asked: return addresses. */
static atomic_bool counting;
static atomic_int asked;
static void *_Atomic callers[CALLERS_MAX];

static void count(void *caller) {
    if (!atomic_load_explicit(&counting, memory_order_relaxed)) return;
    const int index = atomic_fetch_add(&asked, 1);
    if (index < CALLERS_MAX) callers[index] = caller;
}

/* Matrix libraries take scratch of their own inside a product, of a size that only they know, and give it back before
 * it returns; the C++ runtime asks for them. oneDNN does so in every product. */
static bool is_product_library(const void *address) {
    static const char *const names[] = {"libdnnl", "libopenblas", "libstdc++", "libgomp"};
    Dl_info info;
    if (!dladdr(address, &info) || !info.dli_fname) return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strstr(info.dli_fname, names[i])) return true;
    return false;
}

#ifdef SANITIZED
#include <execinfo.h>

enum { FRAMES_MAX = 24 };

/* The way to the first one that no such library asked for. */
static void *way[FRAMES_MAX];
static int way_length;
static atomic_bool way_taken;

/* Of the sanitizers' runtime; gcc comes without its header. */
int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void *, size_t),
                                              void (*free_hook)(const volatile void *));

/* Whether nobody stands on the way but the sanitizer's runtime and libc: behind the two frames of backtrace() and of
 * the hook. So it is where a thread starts, however late it comes to that: the runtime asks libc for its stack. */
static bool is_start_of_thread(void *const *frames, int count) {
    for (int i = 2; i < count; i++) {
        Dl_info info;
        if (!dladdr(frames[i], &info) || !info.dli_fname) return false;
        if (!strstr(info.dli_fname, "libasan") && !strstr(info.dli_fname, "libtsan") &&
            !strstr(info.dli_fname, "libc.so"))
            return false;
    }
    return true;
}

/* The sanitizer's own malloc calls this: who asked it is further up. */
static void hook(const volatile void *memory, size_t bytes) {
    (void)memory, (void)bytes;
    if (!atomic_load_explicit(&counting, memory_order_relaxed)) return;
    void *frames[FRAMES_MAX];
    const int frame_count = backtrace(frames, FRAMES_MAX);
    if (is_start_of_thread(frames, frame_count)) return;
    int caller = frame_count - 1;
    for (int i = frame_count - 1; i >= 0; i--)
        if (is_product_library(frames[i])) caller = i;
    if (!is_product_library(frames[caller]) && !atomic_exchange(&way_taken, true)) {
        memcpy(way, frames, sizeof way);
        way_length = frame_count;
    }
    count(frames[caller]);
}
static void ignore(const volatile void *memory) {
    (void)memory;
}
static void install(void) {
    void *frame;
    backtrace(&frame, 1); /* loads its library, which allocates */
    __sanitizer_install_malloc_and_free_hooks(hook, ignore);
}
static void forget_way(void) {
    atomic_store(&way_taken, false);
    way_length = 0;
}
static void tell_way(void) {
    backtrace_symbols_fd(way, way_length, STDOUT_FILENO);
}
#else
/* glibc's own names of its functions, for programs that define malloc themselves. */
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

void *malloc(size_t bytes) {
    count(__builtin_return_address(0));
    return __libc_malloc(bytes);
}
void *calloc(size_t items, size_t bytes) {
    count(__builtin_return_address(0));
    return __libc_calloc(items, bytes);
}
void *realloc(void *memory, size_t bytes) {
    count(__builtin_return_address(0));
    return __libc_realloc(memory, bytes);
}
void *memalign(size_t alignment, size_t bytes) {
    count(__builtin_return_address(0));
    return __libc_memalign(alignment, bytes);
}
void *aligned_alloc(size_t alignment, size_t bytes) {
    count(__builtin_return_address(0));
    return __libc_memalign(alignment, bytes);
}
int posix_memalign(void **memory, size_t alignment, size_t bytes) {
    count(__builtin_return_address(0));
    *memory = __libc_memalign(alignment, bytes);
    return *memory ? 0 : ENOMEM;
}
static void install(void) {}
static void forget_way(void) {}
static void tell_way(void) {}
#endif

/* All ranks meet after the first step and before the end: what is between is counted. */
static pthread_barrier_t meeting;
static int64_t last_step;

static void after_step(int rank, int64_t step) {
    if (step != 1 && step != last_step) return;
    pthread_barrier_wait(&meeting);
    if (rank == 0) atomic_store(&counting, step == 1);
    pthread_barrier_wait(&meeting);
}

static const char gpt2[] = "model: {model_type: gpt2, hidden_size: 16, num_hidden_layers: 3, num_attention_heads: 2}\n"
                           "data: {train: [{path: 'synthetic:9000'}], sequence_length: 12}\n"
                           "train: {steps: 30, global_batch_size: 12, micro_batch_size: 2}\n";
static const char llama[] = "model: {model_type: llama, hidden_size: 24, num_hidden_layers: 3, num_attention_heads: 4, "
                            "num_key_value_heads: 2, intermediate_size: 40}\n"
                            "data: {train: [{path: 'synthetic:9000'}], sequence_length: 10}\n"
                            "train: {steps: 30, global_batch_size: 12, micro_batch_size: 2}\n";

static void check(const char *yaml, int ranks, int64_t stage, enum ls_checkpointing_mode mode,
                  enum ls_optimizer_type optimizer) {
    struct run run = {.config = harness_config(yaml), .ranks = ranks, .steps = 12, .after_step = after_step};
    run.config.zero.stage = stage;
    run.config.activation_checkpointing.mode = mode;
    run.config.optimizer.type = optimizer;
    run.config.precision = stage % 2 ? LS_PRECISION_BF16 : LS_PRECISION_FP32;
    last_step = run.steps;
    forget_way();
    pthread_barrier_init(&meeting, NULL, (unsigned)ranks);
    atomic_store(&asked, 0);
    harness_run_well(&run);
    pthread_barrier_destroy(&meeting);
    harness_free(&run);
    const int total = atomic_load(&asked);
    for (int i = 0; i < total && i < CALLERS_MAX; i++) {
        Dl_info info = {0};
        if (is_product_library(callers[i])) continue;
        dladdr(callers[i], &info);
        fflush(stdout);
        tell_way();
        fail_msg("stage %d, %d ranks: %d allocations, one by %s %s", (int)stage, ranks, total,
                 info.dli_fname ? info.dli_fname : "an unknown caller", info.dli_sname ? info.dli_sname : "");
    }
    assert_true(total <= CALLERS_MAX);
}

static void the_counter_counts(void **unused) {
    (void)unused;
    atomic_store(&asked, 0);
    atomic_store(&counting, true);
    void *volatile memory = malloc(100);
    free(memory);
    memory = calloc(2, 100);
    free(memory);
    atomic_store(&counting, false);
    assert_int_equal(atomic_load(&asked), 2);
}

static void *do_nothing(void *unused) {
    return unused;
}

/* One that was made before, and only comes to its start in a counted step, must not count. The first one leaves its
 * stack for the second, which has to ask for nothing else. */
static void a_thread_that_starts_does_not_count(void **unused) {
    (void)unused;
    for (int again = 0; again < 2; again++) {
        pthread_t thread;
        atomic_store(&asked, 0);
        atomic_store(&counting, again == 1);
        assert_int_equal(pthread_create(&thread, NULL, do_nothing, NULL), 0);
        assert_int_equal(pthread_join(thread, NULL), 0);
        atomic_store(&counting, false);
    }
    assert_int_equal(atomic_load(&asked), 0);
}

static void no_step_after_the_first_allocates(void **unused) {
    (void)unused;
    static const enum ls_checkpointing_mode modes[] = {LS_CHECKPOINTING_NONE, LS_CHECKPOINTING_FULL,
                                                       LS_CHECKPOINTING_SELECTIVE};
    for (int ranks = 1; ranks <= 3; ranks++)
        for (int stage = 0; stage <= 3; stage++) {
            const bool odd = (stage + ranks) % 2;
            check(gpt2, ranks, stage, modes[(stage + ranks) % 3], odd ? LS_MUON : LS_ADAMW);
            check(llama, ranks, stage, modes[(stage + ranks + 1) % 3], odd ? LS_ADAMW : LS_MUON);
        }
}

int main(void) {
    install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_counter_counts),
        cmocka_unit_test(a_thread_that_starts_does_not_count),
        cmocka_unit_test(no_step_after_the_first_allocates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
