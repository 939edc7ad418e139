/* A link that is closed while its peer leaves. */
#define _GNU_SOURCE
#include "worker/link.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>
#include <zmq.h>

enum { PATIENCE_SECONDS = 60 };

static struct {
    void *context, *router;
    bool leaves; /* with the first socket that is closed */
} peer;

static int close_really(void *socket) {
    int (*close)(void *) = (int (*)(void *))dlsym(RTLD_NEXT, "zmq_close");
    return close(socket);
}

/* In the place of libzmq's: behind the first socket that a link closes its connection breaks, and libzmq's thread has
 * the time to notice. */
int zmq_close(void *socket) {
    const int result = close_really(socket);
    if (!peer.leaves) return result;
    peer.leaves = false;
    close_really(peer.router);
    zmq_ctx_term(peer.context);
    usleep(300000);
    return result;
}

static void a_link_closes_though_its_connection_breaks_at_that_moment(void **state) {
    (void)state;
    const int server = 1, linger = 0;
    struct ls_keys keys;
    struct ls_link *link;
    struct ls_link_state seen = {.connected = false};
    char endpoint[64];
    size_t size = sizeof endpoint;
    assert_int_equal(ls_keys_generate(&keys, NULL), LS_OK);
    peer.context = zmq_ctx_new();
    peer.router = zmq_socket(peer.context, ZMQ_ROUTER);
    zmq_setsockopt(peer.router, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(peer.router, ZMQ_CURVE_SERVER, &server, sizeof server);
    zmq_setsockopt(peer.router, ZMQ_CURVE_SECRETKEY, keys.server.secret_key, LS_KEY_CHARACTERS);
    assert_int_equal(zmq_bind(peer.router, "tcp://127.0.0.1:*"), 0);
    assert_int_equal(zmq_getsockopt(peer.router, ZMQ_LAST_ENDPOINT, endpoint, &size), 0);
    assert_int_equal(ls_link_open(endpoint, &keys.worker, 0, &link, NULL), LS_OK);
    alarm(PATIENCE_SECONDS); /* one that hangs is a failure */
    while (!seen.connected) {
        usleep(1000);
        ls_link_turn(link, &seen);
    }
    peer.leaves = true;
    ls_link_close(link);
    assert_false(peer.leaves);
    alarm(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_link_closes_though_its_connection_breaks_at_that_moment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
