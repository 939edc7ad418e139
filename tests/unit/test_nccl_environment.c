/* The variables that NCCL reads: set for sharing a GPU, never against the user, and listed. */
#define _GNU_SOURCE
#include "worker/comm/nccl_environment.h"

#include "tests/unit/support.h"

#include <stdlib.h>
#include <string.h>

extern char **environ;

static int clear(void **unused) {
    (void)unused;
    return clearenv();
}

static void ranks_that_share_a_gpu_claim_a_host_each(void **unused) {
    (void)unused;
    ls_nccl_share_gpu(7, true);
    assert_string_equal(getenv("NCCL_HOSTID"), "lockstep-rank-7");
    assert_string_equal(getenv("NCCL_NET"), "Socket");
    assert_string_equal(getenv("NCCL_P2P_DISABLE"), "1");
    assert_string_equal(getenv("NCCL_SHM_DISABLE"), "1");
    assert_string_equal(getenv("NCCL_PROTO"), "Simple");
    assert_string_equal(getenv("NCCL_SOCKET_IFNAME"), "lo");
}

static void ranks_on_several_hosts_do_not_take_the_loopback_interface(void **unused) {
    (void)unused;
    ls_nccl_share_gpu(0, false);
    assert_null(getenv("NCCL_SOCKET_IFNAME"));
    assert_string_equal(getenv("NCCL_NET"), "Socket");
}

static void what_the_user_has_set_stays(void **unused) {
    (void)unused;
    setenv("NCCL_SOCKET_IFNAME", "eth7", 1);
    setenv("NCCL_HOSTID", "mine", 1);
    setenv("NCCL_MAX_CTAS", "", 1);
    setenv("NCCL_PROTO", "LL", 1);
    ls_nccl_share_gpu(3, true);
    assert_string_equal(getenv("NCCL_SOCKET_IFNAME"), "eth7");
    assert_string_equal(getenv("NCCL_HOSTID"), "mine");
    assert_string_equal(getenv("NCCL_MAX_CTAS"), "");
    assert_string_equal(getenv("NCCL_PROTO"), "LL");
}

static void variables_are_listed_in_order_and_others_are_not(void **unused) {
    (void)unused;
    char text[64], eight[8];
    ls_nccl_environment(text, sizeof text);
    assert_string_equal(text, "none");
    setenv("NCCL_NET", "Socket", 1);
    setenv("XNCCL_NET", "no", 1);
    setenv("NCCL", "no", 1);
    setenv("NCCL_DEBUG", "WARN", 1);
    ls_nccl_environment(text, sizeof text);
    assert_string_equal(text, "NCCL_DEBUG=WARN NCCL_NET=Socket");
    ls_nccl_environment(eight, sizeof eight);
    assert_string_equal(eight, "NCCL_DE");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(ranks_that_share_a_gpu_claim_a_host_each, clear),
        cmocka_unit_test_setup(ranks_on_several_hosts_do_not_take_the_loopback_interface, clear),
        cmocka_unit_test_setup(what_the_user_has_set_stays, clear),
        cmocka_unit_test_setup(variables_are_listed_in_order_and_others_are_not, clear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
