/* The coordinator's core in its virtual world: LS_SIM_SEEDS runs (10,000 by default), every invariant checked after
 * every event. LS_SIM_SEED=n runs one seed and prints all that happens. */
#include "tests/sim/world.c"

/* Counts of a table by name; returns how many that must not be zero are. */
static int print_counts(const char *title, const uint64_t *counts, int count, const char *(*name)(int)) {
    int zeros = 0;
    printf("%s:", title);
    for (int i = 0; i < count; i++) {
        printf("%s %s %llu", i ? "," : "", name(i), (unsigned long long)counts[i]);
        zeros += counts[i] == 0;
    }
    printf("\n");
    return zeros;
}

static const char *event_name(int i) {
    return ls_core_event_name((enum ls_core_event_kind)i);
}
static const char *action_name(int i) {
    return ls_core_action_name((enum ls_core_action_kind)i);
}
static const char *record_name(int i) {
    return ls_core_record_name((enum ls_core_record_kind)i);
}
static const char *fault_kind_name(int i) {
    return fault_name((enum fault_kind)i);
}

static int print_transitions(const struct coverage *coverage) {
    static const struct {
        enum ls_core_phase from, to;
    } needed[] = {{LS_PHASE_WAITING, LS_PHASE_RUNNING},  {LS_PHASE_WAITING, LS_PHASE_STOPPING},
                  {LS_PHASE_WAITING, LS_PHASE_FAILING},  {LS_PHASE_WAITING, LS_PHASE_ENDED},
                  {LS_PHASE_RUNNING, LS_PHASE_STOPPING}, {LS_PHASE_RUNNING, LS_PHASE_FAILING},
                  {LS_PHASE_RUNNING, LS_PHASE_ENDED},    {LS_PHASE_STOPPING, LS_PHASE_FAILING},
                  {LS_PHASE_STOPPING, LS_PHASE_ENDED},   {LS_PHASE_FAILING, LS_PHASE_ENDED}};
    int zeros = 0;
    printf("transitions:");
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        uint64_t count = coverage->transitions[needed[i].from][needed[i].to];
        printf("%s %s to %s %llu", i ? "," : "", ls_core_phase_name(needed[i].from), ls_core_phase_name(needed[i].to),
               (unsigned long long)count);
        zeros += count == 0;
    }
    printf("\n");
    return zeros;
}

static int print_exits(const struct coverage *coverage) {
    static const int needed[] = {0, 1, 2, 3, 4, 5, 6, 7, 75, 130};
    int zeros = 0;
    printf("ends:");
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        printf("%s %d: %llu", i ? "," : "", needed[i], (unsigned long long)coverage->exits[needed[i]]);
        zeros += coverage->exits[needed[i]] == 0;
    }
    printf("\n");
    return zeros;
}

int main(void) {
    static struct coverage coverage;
    char violation[1024];
    const char *one = getenv("LS_SIM_SEED"), *many = getenv("LS_SIM_SEEDS");
    if (one) {
        bool held = world_run(strtoull(one, NULL, 10), true, &coverage, violation);
        printf("%s\n", held ? "every invariant held" : violation);
        return !held;
    }
    uint64_t seeds = many ? strtoull(many, NULL, 10) : 10000;
    int failed = 0;
    for (uint64_t seed = 1; seed <= seeds && failed < 10; seed++)
        if (!world_run(seed, false, &coverage, violation)) {
            printf("%s\n    again with everything printed: LS_SIM_SEED=%llu\n", violation, (unsigned long long)seed);
            failed++;
        }
    int zeros = print_counts("events", coverage.events, LS_EVENT_KINDS, event_name);
    zeros += print_counts("actions", coverage.actions, LS_ACTION_KINDS, action_name);
    zeros += print_counts("records", coverage.records, LS_RECORD_KINDS, record_name);
    zeros += print_counts("faults", coverage.faults, FAULT_COUNT, fault_kind_name);
    zeros += print_transitions(&coverage);
    zeros += print_exits(&coverage);
    const uint64_t others[] = {coverage.old_attempt, coverage.duplicates, coverage.unplaced, coverage.refused,
                               coverage.restarts,    coverage.restores,   coverage.resumes};
    printf("messages of old attempts %llu, duplicates %llu, unplaced %llu, refused %llu; restarts %llu, records "
           "restored %llu, "
           "resumes %llu\n",
           (unsigned long long)others[0], (unsigned long long)others[1], (unsigned long long)others[2],
           (unsigned long long)others[3], (unsigned long long)others[4], (unsigned long long)others[5],
           (unsigned long long)others[6]);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) zeros += others[i] == 0;
    if (zeros && seeds >= 1000) printf("%d counts are zero: the simulation does not reach them\n", zeros);
    printf("%llu seeds, %d failed\n", (unsigned long long)seeds, failed);
    return failed || (zeros && seeds >= 1000);
}
