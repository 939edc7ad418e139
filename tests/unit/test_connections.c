/* The table of connections against a plain list. */
#include "tests/unit/support.h"

#include "common/connections.h"

enum { ROUTES = 5000 };

static size_t route_of(int i, uint8_t route[8]) {
    memcpy(route, &i, sizeof i);
    route[4] = (uint8_t)(i * 7);
    return 5 - (size_t)(i % 2); /* some routes are the beginning of others */
}

static void a_route_has_one_name_until_it_is_forgotten_and_none_comes_twice(void **state) {
    (void)state;
    struct ls_connections connections = {0};
    uint64_t names[ROUTES] = {0}, newest = 0;
    int there = 0;
    for (int turn = 0; turn < 60000; turn++) {
        const int i = (int)random_below(ROUTES);
        uint8_t route[8];
        const size_t size = route_of(i, route);
        if (random_below(3) > 0) {
            struct ls_peer *peer = ls_connections_meet(&connections, route, size, LS_CONNECTION_OPERATOR);
            assert_non_null(peer);
            assert_true(peer->route_size == size && memcmp(peer->route, route, size) == 0);
            if (names[i]) {
                assert_true(peer->name == names[i] && peer->heard_ms == i + 1);
            } else {
                assert_true(peer->name > newest && peer->heard_ms == 0 && peer->role == LS_CONNECTION_OPERATOR);
                newest = names[i] = peer->name;
                there++;
            }
            peer->heard_ms = i + 1;
        } else {
            struct ls_peer *peer = ls_connections_find(&connections, names[i]);
            assert_true((peer != NULL) == (names[i] != 0));
            if (!peer) continue;
            ls_connections_forget(&connections, peer);
            assert_null(ls_connections_find(&connections, names[i]));
            names[i] = 0;
            there--;
        }
    }
    int32_t slot = 0;
    for (struct ls_peer *peer; (peer = ls_connections_next(&connections, &slot)); there--)
        assert_true(names[peer->heard_ms - 1] == peer->name);
    assert_int_equal(there, 0);
    ls_connections_release(&connections);
}

static void what_is_too_long_or_too_many_is_turned_away(void **state) {
    (void)state;
    struct ls_connections connections = {0};
    uint8_t route[LS_ROUTE_BYTES_MAX + 1] = {0};
    int32_t slot = 0;
    assert_null(ls_connections_find(&connections, 0));
    assert_null(ls_connections_find(&connections, 65536));
    assert_null(ls_connections_next(&connections, &slot));
    assert_null(ls_connections_meet(&connections, route, sizeof route, LS_CONNECTION_WORKER));
    for (int i = 0; i < LS_CONNECTIONS_MAX; i++) {
        memcpy(route, &i, sizeof i);
        assert_non_null(ls_connections_meet(&connections, route, sizeof i, LS_CONNECTION_WORKER));
    }
    const int more = LS_CONNECTIONS_MAX;
    assert_null(ls_connections_meet(&connections, &more, sizeof more, LS_CONNECTION_WORKER));
    const int known = 17;
    struct ls_peer *peer = ls_connections_meet(&connections, &known, sizeof known, LS_CONNECTION_WORKER);
    assert_non_null(peer);
    ls_connections_forget(&connections, peer);
    assert_non_null(ls_connections_meet(&connections, &more, sizeof more, LS_CONNECTION_WORKER));
    ls_connections_release(&connections);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_route_has_one_name_until_it_is_forgotten_and_none_comes_twice),
        cmocka_unit_test(what_is_too_long_or_too_many_is_turned_away),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
