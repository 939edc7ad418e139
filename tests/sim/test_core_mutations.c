/* The virtual world finds faults: the core is compiled here with planted ones (coordinator/core_mutation.h), and each
 * must break an invariant within LS_SIM_MUTATION_SEEDS runs (3,000 by default). A fault that nothing finds would be an
 * invariant that nothing checks. */
#define LS_CORE_MUTATED
#include "coordinator/core_mutation.h"
enum ls_core_mutation ls_core_mutation;

#include "coordinator/core.c"
#include "coordinator/core_cause.c"
#include "coordinator/core_checkpoint.c"
#include "coordinator/core_join.c"
#include "coordinator/core_recover.c"
#include "coordinator/core_span.c"
#include "coordinator/core_stop.c"

#include "tests/sim/world.c"

#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* What the process that runs a mutation leaves behind, even if an assertion of the core ends it. */
struct finding {
    uint64_t seed;
    bool found;
    char violation[1024];
};

static void search(struct finding *result, uint64_t limit) {
    static struct coverage coverage;
    for (uint64_t seed = 1; seed <= limit && !result->found; seed++) {
        result->seed = seed;
        result->found = !world_run(seed, false, &coverage, result->violation);
    }
}

/* Runs the seeds in a process of its own. Returns true if an invariant or an assertion broke. */
static bool find(enum ls_core_mutation mutation, uint64_t limit, struct finding *result) {
    memset(result, 0, sizeof *result);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        /* Dies of its own, not into the test runner's handlers. */
        static const int deadly[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
        for (size_t i = 0; i < sizeof deadly / sizeof *deadly; i++) signal(deadly[i], SIG_DFL);
        ls_core_mutation = mutation;
        if (!freopen("/dev/null", "w", stderr)) fclose(stderr); /* the assertion's own words */
        search(result, limit);
        _exit(0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return false;
    if (WIFSIGNALED(status)) {
        snprintf(result->violation, sizeof result->violation, "seed %llu: %s", (unsigned long long)result->seed,
                 WTERMSIG(status) == SIGABRT ? "an assertion of the core" : strsignal(WTERMSIG(status)));
        result->found = true;
    }
    return result->found;
}

static struct finding *finding; /* shared with the processes that search */
static uint64_t seeds;

static void is_found(void **state) {
    if (!find(*(enum ls_core_mutation *)*state, seeds, finding))
        fail_msg("not found in %llu seeds", (unsigned long long)seeds);
    printf("found after %llu seeds (%s)\n", (unsigned long long)finding->seed, finding->violation);
}

static void the_core_without_a_planted_fault_is_found_right(void **state) {
    (void)state;
    if (find(LS_MUTATION_NONE, seeds, finding)) fail_msg("%s", finding->violation);
}

int main(void) {
#define MUTATION_NAME(name) #name,
    static const char *const names[LS_MUTATION_COUNT] = {"NONE", LS_CORE_MUTATIONS(MUTATION_NAME)};
    finding = mmap(NULL, sizeof *finding, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (finding == MAP_FAILED) return 1;
    const char *limit = getenv("LS_SIM_MUTATION_SEEDS");
    seeds = limit ? strtoull(limit, NULL, 10) : 3000;
    static enum ls_core_mutation mutations[LS_MUTATION_COUNT];
    static struct CMUnitTest tests[LS_MUTATION_COUNT];
    tests[0] = (struct CMUnitTest)cmocka_unit_test(the_core_without_a_planted_fault_is_found_right);
    for (int i = 1; i < LS_MUTATION_COUNT; i++) {
        mutations[i] = (enum ls_core_mutation)i;
        tests[i] = (struct CMUnitTest){.name = names[i], .test_func = is_found, .initial_state = &mutations[i]};
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
