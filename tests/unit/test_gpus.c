/* Which devices go together. */
#include "worker/gpus.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

/* host, GPU ("" for CPUs). */
static struct ls_gpus_place place(const char *host, const char *bus_id) {
    struct ls_gpus_place place = {.name = "a GPU"};
    snprintf(place.host, sizeof place.host, "%s", host);
    snprintf(place.bus_id, sizeof place.bus_id, "%s", bus_id);
    return place;
}

static void assert_refused(const struct ls_gpus_place *places, int ranks, bool share, const char *text) {
    struct ls_error error = {.code = LS_OK};
    assert_int_equal(ls_gpus_compare(places, ranks, share, &error), text ? LS_USAGE : LS_OK);
    if (text && !strstr(error.text, text)) fail_msg("no '%s' in: %s", text, error.text);
}

static void a_gpu_has_one_rank(void **unused) {
    (void)unused;
    const struct ls_gpus_place apart[] = {place("b", "1"), place("a", "1"), place("a", "2"), place("b", "2")};
    const struct ls_gpus_place together[] = {place("b", "1"), place("a", "2"), place("a", "1"), place("b", "2"),
                                             place("a", "1"), place("a", "1"), place("b", "1")};
    const struct ls_gpus_place cpus[] = {place("a", ""), place("a", ""), place("b", "")};
    assert_refused(apart, 1, false, NULL);
    assert_refused(apart, 4, false, NULL);
    assert_refused(cpus, 3, false, NULL);
    assert_refused(together, 4, false, NULL);
    assert_refused(together, 5, false, "ranks 2 and 4 are both on GPU 1 (a GPU) of a");
    assert_refused(together, 7, false, "ranks 2 and 4 are both on GPU 1 (a GPU) of a");
    assert_refused(together, 7, true, NULL);
}

static void all_ranks_are_on_gpus_or_none(void **unused) {
    (void)unused;
    const struct ls_gpus_place places[] = {place("a", "1"), place("a", "2"), place("b", ""), place("a", "1")};
    assert_refused(places, 2, false, NULL);
    assert_refused(places, 3, false, "rank 2 on b computes on CPUs, rank 0 on a on a GPU");
    assert_refused(places, 4, false, "rank 2 on b computes on CPUs");
    assert_refused(places, 4, true, "rank 2 on b computes on CPUs");
    assert_refused(&places[2], 2, false, "rank 0 on b computes on CPUs, rank 1 on a on a GPU");
    const struct ls_gpus_place earlier[] = {place("a", "1"), place("a", "1"), place("b", "")};
    assert_refused(earlier, 3, false, "ranks 0 and 1 are both on GPU 1");
}

/* Each rank compares all of them; by pairs this took minutes. */
static void a_hundred_thousand_ranks_are_compared_in_a_moment(void **unused) {
    (void)unused;
    enum { HOSTS = 12288, GPUS = 8, RANKS = HOSTS * GPUS, SECONDS_MAX = 20 };
    struct ls_gpus_place *places = calloc(RANKS, sizeof *places);
    assert_non_null(places);
    alarm(SECONDS_MAX * 30); /* or it ends much later */
    const clock_t begin = clock();
    for (int rank = 0; rank < RANKS; rank++) {
        char host[32], gpu[16];
        snprintf(host, sizeof host, "node-of-a-cluster-%05d", rank / GPUS);
        snprintf(gpu, sizeof gpu, "0000:%02x:00.0", rank % GPUS);
        places[rank] = place(host, gpu);
    }
    assert_refused(places, RANKS, false, NULL);
    places[RANKS - 1] = places[RANKS - 3];
    assert_refused(places, RANKS, false, "ranks 98301 and 98303 are both on GPU 0000:05:00.0");
    for (int rank = 0; rank < RANKS; rank++) places[rank].bus_id[0] = 0;
    assert_refused(places, RANKS, false, NULL);
    assert_true((double)(clock() - begin) / CLOCKS_PER_SEC < SECONDS_MAX);
    alarm(0);
    free(places);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_gpu_has_one_rank),
        cmocka_unit_test(all_ranks_are_on_gpus_or_none),
        cmocka_unit_test(a_hundred_thousand_ranks_are_compared_in_a_moment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
