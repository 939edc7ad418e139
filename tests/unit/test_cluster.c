/* What figures say of a cluster: scenes of hosts and links, and who is named. */
#include "coordinator/cluster.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

/* The findings as text, one a line. */
static const char *judged(const char *printed) {
    static char text[2048];
    struct ls_trial trial = {0};
    struct ls_finding findings[16];
    if (!ls_trial_parse(printed, &trial)) fail_msg("not understood: %s", printed);
    const int count = ls_cluster_judge(&trial, findings, 16);
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < count; i++) {
        const char *fix = NULL;
        char line[256];
        ls_cluster_describe(&trial, &findings[i], line, sizeof line, &fix);
        assert_non_null(fix);
        used += (size_t)snprintf(text + used, sizeof text - used, "%s\n", line);
    }
    ls_trial_release(&trial);
    return text;
}

#define HOSTS                                                                                                          \
    "examine ranks 6 hosts 3\nhost 0 a ranks 2 clock_us 0 mbps 900\nhost 1 b ranks 2 clock_us 12 mbps 800\n"           \
    "host 2 c ranks 2 clock_us -40 mbps 850\n"

static void test_even_clusters_have_no_finding(void **state) {
    (void)state;
    assert_string_equal(judged(HOSTS "pair 0 1 latency_us 30 mbps 100\npair 0 2 latency_us 90 mbps 60\n"
                                     "pair 1 2 latency_us 40 mbps 80\nallreduce mbps 50\nend\n"),
                        "");
    /* Two hosts cannot be told apart. */
    assert_string_equal(
        judged("examine ranks 2 hosts 2\nhost 0 a ranks 1 clock_us 0 mbps 0\nhost 1 b ranks 1 clock_us 1 "
               "mbps 0\npair 0 1 latency_us 9000 mbps 1\nallreduce mbps 1\nend\n"),
        "");
}

static void test_a_slow_host_is_named_and_not_its_links(void **state) {
    (void)state;
    assert_string_equal(judged(HOSTS "pair 0 1 latency_us 30 mbps 100\npair 0 2 latency_us 30 mbps 12\n"
                                     "pair 1 2 latency_us 30 mbps 11\nallreduce mbps 5\nend\n"),
                        "host c is slow: at most 12.0 MB/s with any other host, the fastest pair has 100.0\n");
}

static void test_a_slow_link_is_named_and_not_its_hosts(void **state) {
    (void)state;
    assert_string_equal(judged(HOSTS "pair 0 1 latency_us 30 mbps 100\npair 0 2 latency_us 30 mbps 90\n"
                                     "pair 1 2 latency_us 30 mbps 11\nallreduce mbps 5\nend\n"),
                        "the link between b and c is slow: 11.0 MB/s, with others both reach 90.0\n");
}

static void test_late_hosts_and_links_are_named(void **state) {
    (void)state;
    assert_string_equal(judged(HOSTS "pair 0 1 latency_us 30 mbps 100\npair 0 2 latency_us 2000 mbps 90\n"
                                     "pair 1 2 latency_us 2100 mbps 99\nallreduce mbps 5\nend\n"),
                        "host c answers late: 2000 us at best, the fastest pair has 30\n");
    assert_string_equal(judged(HOSTS "pair 0 1 latency_us 30 mbps 100\npair 0 2 latency_us 40 mbps 90\n"
                                     "pair 1 2 latency_us 2100 mbps 99\nallreduce mbps 5\nend\n"),
                        "messages between b and c are late: 2100 us, with others both have at most 40\n");
}

static void test_what_is_inside_a_host_is_judged_too(void **state) {
    (void)state;
    assert_string_equal(
        judged("examine ranks 6 hosts 3\nhost 0 a ranks 2 clock_us 0 mbps 900\nhost 1 b ranks 2 clock_us "
               "7000000 mbps 800\nhost 2 c ranks 2 clock_us 0 mbps 100\nallreduce mbps 1\nend\n"),
        "host c is slow inside: all-reduce of its own ranks 100.0 MB/s, elsewhere 900.0\n"
        "the clock of host b is 7.0 s beside that of a\n");
}

static void test_what_is_cut_off_or_nonsense_is_not_taken(void **state) {
    (void)state;
    static const char *const bad[] = {"",
                                      "end\n",
                                      "examine ranks 2 hosts 1\n",
                                      "mpirun: error\n",
                                      "examine ranks 2 hosts 1\nhost 1 a ranks 2 clock_us 0 mbps 1\nend\n",
                                      "examine ranks 2 hosts 1\npair 0 1 latency_us 1 mbps 1\nend\n",
                                      HOSTS "pair 2 1 latency_us 1 mbps 1\nend\n",
                                      HOSTS "pair -1 1 latency_us 1 mbps 1\nend\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct ls_trial trial = {0};
        if (ls_trial_parse(bad[i], &trial)) fail_msg("taken: %s", bad[i]);
        ls_trial_release(&trial);
    }
    /* Lines of the launcher between those of rank 0. */
    struct ls_trial trial = {0};
    assert_true(ls_trial_parse("srun: hello\nexamine ranks 2 hosts 1\nwarning\nend\ntrailing", &trial));
    assert_int_equal(trial.ranks, 2);
    ls_trial_release(&trial);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_even_clusters_have_no_finding),
        cmocka_unit_test(test_a_slow_host_is_named_and_not_its_links),
        cmocka_unit_test(test_a_slow_link_is_named_and_not_its_hosts),
        cmocka_unit_test(test_late_hosts_and_links_are_named),
        cmocka_unit_test(test_what_is_inside_a_host_is_judged_too),
        cmocka_unit_test(test_what_is_cut_off_or_nonsense_is_not_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
