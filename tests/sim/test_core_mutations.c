/* The virtual world finds faults: the core is compiled here with planted ones (coordinator/core_mutation.h), and each
 * must break an invariant within LS_SIM_MUTATION_SEEDS runs (3,000 by default). A fault that nothing finds would be an
 * invariant that nothing checks. */
#define LS_CORE_MUTATED
#include "coordinator/core_mutation.h"
enum ls_core_mutation ls_core_mutation;

#include "coordinator/core.c"
#include "coordinator/core_checkpoint.c"
#include "coordinator/core_join.c"
#include "coordinator/core_span.c"
#include "coordinator/core_stop.c"

#include "tests/sim/world.c"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* What the process that runs a mutation leaves behind, even if an assertion of the core ends it. */
struct finding {
    uint64_t seed;
    bool found;
    char violation[1024];
};

static void search(struct finding *finding, uint64_t seeds) {
    static struct coverage coverage;
    for (uint64_t seed = 1; seed <= seeds && !finding->found; seed++) {
        finding->seed = seed;
        finding->found = !world_run(seed, false, &coverage, finding->violation);
    }
}

/* Runs the seeds in a process of its own. Returns true if an invariant or an assertion broke. */
static bool find(enum ls_core_mutation mutation, uint64_t seeds, struct finding *finding) {
    memset(finding, 0, sizeof *finding);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        ls_core_mutation = mutation;
        freopen("/dev/null", "w", stderr); /* the assertion's own words */
        search(finding, seeds);
        _exit(0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return false;
    if (WIFSIGNALED(status)) {
        snprintf(finding->violation, sizeof finding->violation, "seed %llu: %s", (unsigned long long)finding->seed,
                 WTERMSIG(status) == SIGABRT ? "an assertion of the core" : strsignal(WTERMSIG(status)));
        finding->found = true;
    }
    return finding->found;
}

int main(void) {
#define MUTATION_NAME(name) #name,
    static const char *const names[LS_MUTATION_COUNT] = {"NONE", LS_CORE_MUTATIONS(MUTATION_NAME)};
    struct finding *finding = mmap(NULL, sizeof *finding, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (finding == MAP_FAILED) return 1;
    const char *limit = getenv("LS_SIM_MUTATION_SEEDS");
    uint64_t seeds = limit ? strtoull(limit, NULL, 10) : 3000;
    int missed = 0;
    if (find(LS_MUTATION_NONE, seeds, finding)) {
        printf("without a planted fault: %s\n", finding->violation);
        missed++;
    }
    for (int mutation = 1; mutation < LS_MUTATION_COUNT; mutation++) {
        if (find((enum ls_core_mutation)mutation, seeds, finding)) {
            printf("%-32s found after %4llu seeds (%s)\n", names[mutation], (unsigned long long)finding->seed,
                   finding->violation);
        } else {
            printf("%-32s NOT FOUND in %llu seeds\n", names[mutation], (unsigned long long)seeds);
            missed++;
        }
    }
    printf("%d planted faults, %d not found\n", LS_MUTATION_COUNT - 1, missed);
    return missed != 0;
}
