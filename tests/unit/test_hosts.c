/* Hosts, slots and Slurm's variables: what each text means, and what is refused with which words. */
#include "coordinator/allocation.h"
#include "coordinator/network.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static struct ls_error error;

/* A network whose hosts answer one after the other: in the place of the C library's calls, where a test asks for it. */
static bool answers_come_singly;

/* Not by <poll.h>, which says that poll() does not read what it is given. */
struct pollfd {
    int fd;
    short events, revents;
};
enum { CAN_WRITE = 4 };
int poll(struct pollfd *items, unsigned long count, int timeout_ms);

int connect(int file, const struct sockaddr *to, socklen_t size) {
    (void)file, (void)to, (void)size;
    errno = EINPROGRESS;
    return -1;
}

int poll(struct pollfd *items, unsigned long count, int timeout_ms) {
    (void)timeout_ms;
    for (unsigned long i = 0; i < count; i++) items[i].revents = 0;
    for (unsigned long i = 0; answers_come_singly && i < count; i++) {
        if (items[i].fd < 0) continue;
        items[i].revents = CAN_WRITE;
        return 1;
    }
    return 0;
}

static void test_hosts_that_answer_one_by_one_have_all_answered(void **state) {
    (void)state;
    enum { HOSTS = 250 };
    struct ls_hosts hosts = {0};
    bool answers[HOSTS];
    char name[32];
    for (int i = 0; i < HOSTS; i++) {
        const int length = snprintf(name, sizeof name, "198.51.100.%d", i + 1); /* of nobody: for documents */
        assert_int_equal(ls_hosts_add(&hosts, name, (size_t)length, 1, &error), LS_OK);
    }
    answers_come_singly = true;
    ls_network_ask(&hosts, 4, answers); /* turns of 20 ms would be 200 */
    for (int i = 0; i < HOSTS; i++) assert_true(answers[i]);
    answers_come_singly = false;
    ls_network_ask(&hosts, 0.05, answers);
    for (int i = 0; i < HOSTS; i++) assert_false(answers[i]);
    ls_hosts_release(&hosts);
}

/* "a:2 b:0", the slots behind the names. */
static const char *shown(const struct ls_hosts *hosts) {
    static char text[4096];
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < hosts->count && used + 300 < sizeof text; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s:%lld", i ? " " : "", hosts->list[i].name,
                                 (long long)hosts->list[i].slots);
    return text;
}

static void reads(const char *text, const char *expected) {
    struct ls_hosts hosts = {0};
    if (ls_hosts_parse(text, strlen(text), "file", &hosts, &error) != LS_OK) fail_msg("%s", error.text);
    assert_string_equal(shown(&hosts), expected);
    ls_hosts_release(&hosts);
}

static void refuses(const char *text, const char *words) {
    struct ls_hosts hosts = {0};
    error.text[0] = 0;
    assert_int_equal(ls_hosts_parse(text, strlen(text), "file", &hosts, &error), LS_USAGE);
    if (!strstr(error.text, words)) fail_msg("'%s' is not in '%s'", words, error.text);
    ls_hosts_release(&hosts);
}

static void test_a_hostfile_is_lines_of_host_and_slots(void **state) {
    (void)state;
    reads("a", "a:0");
    reads("a slots=1\n", "a:1");
    reads("# x\n\n  a\tslots=3 # y\r\nb#z\n10.0.0.3 slots=4096\nfd00::1\n", "a:3 b:0 10.0.0.3:4096 fd00::1:0");
}

static void test_bad_lines_are_named(void **state) {
    (void)state;
    refuses("", "file names no host");
    refuses("#a\n \n", "file names no host");
    refuses("a\nb slots=0\n", "file:2: 'slots=0' is not understood. Write a line as HOST slots=N, N from 1 to 4096");
    refuses("a slots=4097", "file:1: 'slots=4097' is not understood");
    refuses("a slots=99999999999999999999", "file:1:");
    refuses("a slots=", "file:1: 'slots=' is not understood");
    refuses("a max_slots=2", "file:1: 'max_slots=2' is not understood");
    refuses("a slots=2 slots=2", "file:1: 'slots=2' is not understood after the first slots");
    refuses("a\n\n-b\n", "file:3: '-b' is no name of a host");
    refuses("a;reboot", "file:1: 'a;reboot' is no name of a host");
    refuses("a\nb\nA slots=2\nb\n", "file:3: host A is named twice, first in line 1");
    char text[600];
    memset(text, 'x', sizeof text);
    text[300] = 0;
    refuses(text, "is no name of a host");
}

static void test_names_with_and_without_a_domain_are_one_host(void **state) {
    (void)state;
    assert_true(ls_host_is("node1", "NODE1"));
    assert_true(ls_host_is("node1", "node1.cluster.local"));
    assert_true(ls_host_is("node1.cluster.local", "node1"));
    assert_false(ls_host_is("node1.a", "node1.b"));
    assert_false(ls_host_is("node1", "node10"));
    assert_false(ls_host_is("10", "10.0.0.1"));
    char own[64] = "";
    gethostname(own, sizeof own - 1);
    assert_true(ls_host_is_here(own));
    assert_true(ls_host_is_here("localhost"));
    assert_true(ls_host_is_here("127.0.0.1"));
    assert_false(ls_host_is_here("192.0.2.1")); /* reserved for documentation: nobody's */
}

static void test_slurm_lists_are_expanded(void **state) {
    (void)state;
    static const char *const texts[][2] = {
        {"a", "a:0"},
        {"n[1-3]", "n1:0 n2:0 n3:0"},
        {"n[08-11],b", "n08:0 n09:0 n10:0 n11:0 b:0"},
        {"n[1,3-4,9]x", "n1x:0 n3x:0 n4x:0 n9x:0"},
        {"r[1-2]n[1-2],z", "r1n1:0 r1n2:0 r2n1:0 r2n2:0 z:0"},
    };
    static const char *const bad[] = {"",     "a,",    ",a",    "n[1-",   "n[1]]",    "n[[1]]",        "n[2-1]",
                                      "n[]x", "n[1-]", "n[-1]", "n[a-b]", "n[1-2-3]", "n[0-99999999]", "n[1 2]",
                                      "n[,]"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct ls_hosts hosts = {0};
        if (ls_slurm_expand_hosts(texts[i][0], &hosts, &error) != LS_OK) fail_msg("%s", error.text);
        assert_string_equal(shown(&hosts), texts[i][1]);
        ls_hosts_release(&hosts);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct ls_hosts hosts = {0};
        if (ls_slurm_expand_hosts(bad[i], &hosts, &error) != LS_USAGE) fail_msg("'%s' was taken", bad[i]);
        ls_hosts_release(&hosts);
    }
    int64_t counts[4] = {0};
    assert_int_equal(ls_slurm_expand_counts("8(x2),4", counts, 4), 3);
    assert_int_equal(counts[0] * 10000 + counts[1] * 100 + counts[2], 80804);
    assert_int_equal(ls_slurm_expand_counts("1(x9)", counts, 4), 9);
    static const char *const no_counts[] = {"", "x", "8(x", "8(x2", "8(x0)", "0", "-1", "8,", "8 ,4"};
    for (size_t i = 0; i < sizeof no_counts / sizeof *no_counts; i++)
        assert_int_equal(ls_slurm_expand_counts(no_counts[i], counts, 4), -1);
}

/* ---- the allocation ---- */

struct variable {
    const char *name;
    char *value;
};
static const struct variable *environment;
static char *get(const char *name) {
    for (const struct variable *variable = environment; variable && variable->name; variable++)
        if (strcmp(variable->name, name) == 0) return variable->value;
    return NULL;
}

static struct ls_config config;
static struct ls_allocation allocation;

static enum ls_code find(const struct variable *variables, int64_t ranks) {
    environment = variables;
    ls_allocation_release(&allocation);
    return ls_allocation_find(&config, ranks, NULL, get, &allocation, &error);
}

static void test_ranks_come_from_the_nearest_source(void **state) {
    (void)state;
    static const struct variable job[] = {{"SLURM_JOB_ID", "7"},           {"SLURM_NTASKS", "5"},
                                          {"SLURM_CPUS_PER_TASK", "3"},    {"SLURM_JOB_NODELIST", "n[1-2]"},
                                          {"SLURM_TASKS_PER_NODE", "3,2"}, {NULL, NULL}};
    memset(&config, 0, sizeof config);
    assert_int_equal(find(NULL, 0), LS_OK);
    assert_int_equal(allocation.ranks, 1);
    assert_int_equal(allocation.hosts.count, 0);
    assert_null(ls_allocation_elsewhere(&allocation));
    assert_int_equal(find(job, 0), LS_OK);
    assert_int_equal(allocation.ranks, 5);
    assert_int_equal(allocation.threads, 3);
    assert_true(allocation.by_slurm && allocation.elsewhere);
    assert_string_equal(shown(&allocation.hosts), "n1:3 n2:2");
    config.launcher.ranks = 4;
    assert_int_equal(find(job, 0), LS_OK);
    assert_int_equal(allocation.ranks, 4);
    assert_int_equal(find(job, 2), LS_OK);
    assert_int_equal(allocation.ranks, 2);
    config.launcher.ranks = 0;
    config.launcher.ranks_per_node = 2;
    config.launcher.threads_per_rank = 1;
    assert_int_equal(find(job, 0), LS_OK);
    assert_int_equal(allocation.ranks, 4);
    assert_int_equal(allocation.threads, 1);
    assert_int_equal(find(job, 5), LS_USAGE);
    assert_non_null(strstr(error.text, "5 ranks do not fit on 2 hosts with room for 4 (n1 2, n2 2)"));
    assert_int_equal(find(NULL, 3), LS_USAGE);
    assert_non_null(strstr(error.text, "need more hosts than this one"));
    /* A limit asks for no ranks. */
    config.device = LS_DEVICE_CPU;
    assert_int_equal(find(NULL, 0), LS_OK);
    assert_int_equal(allocation.ranks, 1);
}

static void test_a_slurm_job_without_tasks_is_filled_evenly(void **state) {
    (void)state;
    static const struct variable job[] = {{"SLURM_JOB_ID", "7"},
                                          {"SLURM_JOB_NODELIST", "n[1-3]"},
                                          {"SLURM_TASKS_PER_NODE", "64(x3)"}, /* its CPUs */
                                          {NULL, NULL}};
    memset(&config, 0, sizeof config);
    assert_int_equal(find(job, 0), LS_OK);
    assert_int_equal(allocation.ranks, 3);
    assert_int_equal(find(job, 8), LS_OK);
    assert_string_equal(shown(&allocation.hosts), "n1:3 n2:3 n3:2");
    int64_t counts[3];
    assert_int_equal(ls_hosts_deal(&allocation.hosts, 8, 0, NULL, 0, counts, &error), LS_OK);
    assert_int_equal(counts[0] * 100 + counts[1] * 10 + counts[2], 332);
}

static void test_what_slurm_cannot_mean_is_refused(void **state) {
    (void)state;
    memset(&config, 0, sizeof config);
    static const struct variable copies[] = {
        {"SLURM_JOB_ID", "7"}, {"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_JOB_NODELIST", "n1"}, {NULL, NULL}};
    assert_int_equal(find(copies, 0), LS_USAGE);
    assert_non_null(strstr(error.text, "srun started 4 copies of 'lockstep run'"));
    static const struct variable bad[] = {
        {"SLURM_JOB_ID", "7"}, {"SLURM_NTASKS", "many"}, {"SLURM_JOB_NODELIST", "n1"}, {NULL, NULL}};
    assert_int_equal(find(bad, 0), LS_USAGE);
    assert_non_null(strstr(error.text, "SLURM_NTASKS=many"));
    static const struct variable no_list[] = {{"SLURM_JOB_ID", "7"}, {NULL, NULL}};
    assert_int_equal(find(no_list, 0), LS_USAGE);
    assert_non_null(strstr(error.text, "no SLURM_JOB_NODELIST"));
    config.launcher.type = LS_LAUNCH_SRUN;
    assert_int_equal(find(NULL, 0), LS_USAGE);
    assert_non_null(strstr(error.text, "SLURM_JOB_ID is not set"));
    ls_allocation_release(&allocation);
}

/* Puts a squeue into PATH that tells of job 36 and of its other task, 36_1, as Slurm does of an array. */
static void put_squeue(const char *folder, const char *left) {
    char path[128], search[4096];
    snprintf(path, sizeof path, "%s/squeue", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file,
            "#!/bin/sh\ncase \"$*\" in\n*--jobs=36_3*) echo '2:00:00 %s' ;;\n*--jobs=36*) echo '2:00:00 1:00'; echo "
            "'2:00:00 %s' ;;\nesac\n",
            left, left);
    assert_int_equal(fchmod(fileno(file), 0700), 0);
    assert_int_equal(fclose(file), 0);
    const char *before = getenv("PATH");
    if (strncmp(before, folder, strlen(folder)) == 0) return;
    snprintf(search, sizeof search, "%s:%s", folder, before);
    assert_int_equal(setenv("PATH", search, 1), 0);
}

static void test_squeue_is_asked_for_this_job_alone(void **state) {
    (void)state;
    char folder[] = "/tmp/lockstep-squeue-XXXXXX", path[128];
    assert_non_null(mkdtemp(folder));
    static const struct variable job[] = {{"SLURM_JOB_ID", "36"},
                                          {"SLURM_JOB_NODELIST", "n1"},
                                          {"SLURM_ARRAY_JOB_ID", "36"},
                                          {"SLURM_ARRAY_TASK_ID", "3"},
                                          {NULL, NULL}};
    memset(&config, 0, sizeof config);
    assert_int_equal(find(job, 1), LS_OK);
    put_squeue(folder, "1:00:00");
    ls_slurm_ask_times(&allocation.slurm);
    const int64_t left = allocation.slurm.end_time - (int64_t)time(NULL);
    assert_in_range(left, 3500, 3600);
    assert_int_equal(allocation.slurm.end_time - allocation.slurm.start_time, 7200);
    /* Its limit is taken away. */
    put_squeue(folder, "UNLIMITED");
    ls_slurm_ask_times(&allocation.slurm);
    assert_int_equal(allocation.slurm.end_time, 0);
    snprintf(path, sizeof path, "%s/squeue", folder);
    unlink(path);
    rmdir(folder);
}

static void test_a_job_is_saved_before_its_end(void **state) {
    (void)state;
    struct ls_slurm slurm = {.job = 1, .start_time = 1000, .end_time = 2000};
    assert_true(ls_slurm_seconds_to_save(&slurm, 0, 1000) == 900); /* a tenth before the end */
    assert_true(ls_slurm_seconds_to_save(&slurm, 30, 1970) == 0);
    slurm.end_time = 1060;
    assert_true(ls_slurm_seconds_to_save(&slurm, 0, 1000) == 40);
    slurm.end_time = 101000;
    assert_true(ls_slurm_seconds_to_save(&slurm, 0, 100800) == -100);
    static const struct {
        const char *text;
        int64_t seconds;
    } times[] = {
        {"3:04", 184}, {"02:03:04", 7384}, {"1-02:03:04", 93784}, {"0:00\n", 0},   {"UNLIMITED", -1}, {"INVALID", -1},
        {"", -1},      {"5", -1},          {"1-02:03", -1},       {"1:2:3:4", -1}, {"1:-2", -1},      {"1-2-3:4", -1}};
    for (size_t i = 0; i < sizeof times / sizeof *times; i++)
        assert_int_equal(ls_slurm_parse_duration(times[i].text), times[i].seconds);
    slurm.end_time = 0;
    assert_true(isinf(ls_slurm_seconds_to_save(&slurm, 30, 1970)));
}

/* ---- addresses ---- */

static void test_a_bound_address_is_what_is_offered(void **state) {
    (void)state;
    struct ls_listen chosen;
    char text[LS_ENDPOINTS_SIZE];
    memset(&config, 0, sizeof config);
    strcpy(config.coordinator.bind, "auto");
    assert_int_equal(ls_network_choose(&config, NULL, &chosen, &error), LS_OK);
    ls_network_endpoints(&chosen, 4000, text);
    assert_string_equal(text, "tcp://127.0.0.1:4000");
    strcpy(config.coordinator.bind, "::1");
    assert_int_equal(ls_network_choose(&config, NULL, &chosen, &error), LS_OK);
    ls_network_endpoints(&chosen, 4000, text);
    assert_string_equal(text, "tcp://[::1]:4000");
    strcpy(config.coordinator.bind, "0.0.0.0");
    assert_int_equal(ls_network_choose(&config, NULL, &chosen, &error), LS_OK);
    assert_string_equal(chosen.listen[0], "0.0.0.0");
    assert_int_equal(chosen.listen_count, 1);
    for (int i = 0; i < chosen.offered_count; i++) assert_string_not_equal(chosen.offered[i], "0.0.0.0");
    assert_string_equal(chosen.offered[chosen.offered_count - 1], "127.0.0.1");
    strcpy(config.coordinator.bind, "auto");
    strcpy(config.coordinator.interface, "lo");
    assert_int_equal(ls_network_choose(&config, NULL, &chosen, &error), LS_OK);
    assert_string_equal(chosen.listen[0], "127.0.0.1");
    strcpy(config.coordinator.interface, "none-such");
    assert_int_equal(ls_network_choose(&config, NULL, &chosen, &error), LS_USAGE);
    assert_non_null(strstr(error.text, "no interface 'none-such'. There are: "));
    assert_non_null(strstr(error.text, "lo (127.0.0.1)"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_hostfile_is_lines_of_host_and_slots),
        cmocka_unit_test(test_bad_lines_are_named),
        cmocka_unit_test(test_hosts_that_answer_one_by_one_have_all_answered),
        cmocka_unit_test(test_names_with_and_without_a_domain_are_one_host),
        cmocka_unit_test(test_slurm_lists_are_expanded),
        cmocka_unit_test(test_ranks_come_from_the_nearest_source),
        cmocka_unit_test(test_a_slurm_job_without_tasks_is_filled_evenly),
        cmocka_unit_test(test_what_slurm_cannot_mean_is_refused),
        cmocka_unit_test(test_squeue_is_asked_for_this_job_alone),
        cmocka_unit_test(test_a_job_is_saved_before_its_end),
        cmocka_unit_test(test_a_bound_address_is_what_is_offered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
