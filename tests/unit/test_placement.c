/* What launchers say in the environment. */
#include "worker/placement.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

struct variable {
    const char *name;
    char *value;
};

static const struct variable *environment;

static char *get(const char *name) {
    for (const struct variable *variable = environment; variable->name; variable++)
        if (strcmp(variable->name, name) == 0) return variable->value;
    return NULL;
}

static struct ls_placement find(const struct variable *variables) {
    struct ls_placement placement;
    environment = variables;
    ls_placement_find(get, &placement);
    return placement;
}

static void started_by_hand_says_nothing(void **unused) {
    (void)unused;
    const struct variable none[] = {{NULL, NULL}};
    struct ls_placement placement = find(none);
    assert_null(placement.launcher);
    assert_int_equal(placement.local_size, 0);
    assert_int_equal(ls_placement_check(&placement, 1, NULL), LS_OK);
    assert_int_equal(ls_placement_check(&placement, 4, NULL), LS_OK);
}

static void mpirun_within_a_slurm_job_counts_before_slurm(void **unused) {
    (void)unused;
    const struct variable both[] = {{"SLURM_NTASKS", "8"},
                                    {"SLURM_LOCALID", "0"},
                                    {"OMPI_COMM_WORLD_SIZE", "2"},
                                    {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                                    {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                                    {NULL, NULL}};
    struct ls_placement placement = find(both);
    assert_string_equal(placement.launcher, "Open MPI");
    assert_int_equal(placement.local_rank, 1);
    assert_int_equal(placement.local_size, 2);
    assert_int_equal(ls_placement_check(&placement, 2, NULL), LS_OK);
}

static void ranks_that_slurm_started_and_mpi_does_not_see_are_refused(void **unused) {
    (void)unused;
    const struct variable slurm[] = {{"SLURM_NTASKS", "8"}, {"SLURM_LOCALID", "3"}, {NULL, NULL}};
    struct ls_placement placement = find(slurm);
    struct ls_error error;
    assert_string_equal(placement.launcher, "Slurm");
    assert_int_equal(placement.local_size, 0);
    assert_int_equal(ls_placement_check(&placement, 1, &error), LS_COMMUNICATION);
    assert_non_null(strstr(error.text, "MPI sees 1 rank, Slurm started 8"));
}

static void slurms_short_form_tells_the_ranks_of_this_node(void **unused) {
    (void)unused;
    static const struct {
        char *tasks, *node, *local;
        int size;
    } cases[] = {{"2(x3),1", "0", "1", 2}, {"2(x3),1", "2", "0", 2}, {"2(x3),1", "3", "0", 1}, {"2(x3),1", "4", "0", 0},
                 {"3", "0", "2", 3},       {"3", "0", "3", 0},       {"1,4", "1", "3", 4},     {"x", "0", "0", 0},
                 {"2(x", "0", "0", 0},     {"", "0", "0", 0},        {"2(x-1),3", "1", "0", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct variable slurm[] = {{"SLURM_NTASKS", "7"},
                                         {"SLURM_LOCALID", cases[i].local},
                                         {"SLURM_NODEID", cases[i].node},
                                         {"SLURM_STEP_TASKS_PER_NODE", cases[i].tasks},
                                         {NULL, NULL}};
        assert_int_equal(find(slurm).local_size, cases[i].size);
    }
}

static void values_that_are_no_numbers_count_as_not_said(void **unused) {
    (void)unused;
    static char *const bad[] = {"", "x", "2x", "-1", "0", "99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const struct variable odd[] = {{"OMPI_COMM_WORLD_SIZE", bad[i]}, {NULL, NULL}};
        assert_null(find(odd).launcher);
    }
    const struct variable outside[] = {{"OMPI_COMM_WORLD_SIZE", "4"},
                                       {"OMPI_COMM_WORLD_LOCAL_RANK", "4"},
                                       {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                                       {NULL, NULL}};
    assert_int_equal(find(outside).local_size, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(started_by_hand_says_nothing),
        cmocka_unit_test(mpirun_within_a_slurm_job_counts_before_slurm),
        cmocka_unit_test(ranks_that_slurm_started_and_mpi_does_not_see_are_refused),
        cmocka_unit_test(slurms_short_form_tells_the_ranks_of_this_node),
        cmocka_unit_test(values_that_are_no_numbers_count_as_not_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
