/* Collectives between threads of one process. */
#include "worker/comm/comm.h"
#include "worker/device/cpu/low_precision.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { RANKS_MAX = 5, COUNT_MAX = 5000 };

struct rank {
    struct ls_comm *comm;
    struct ls_device *device;
    struct ls_stream *stream;
    int64_t count;
    float floats[RANKS_MAX * COUNT_MAX];
    double doubles[COUNT_MAX];
    uint64_t sums[3];
    char text[64];
    int all[RANKS_MAX];
    bool disagree;
    struct ls_error error;
    enum ls_code code;
};

static void run_ranks(int ranks, enum ls_stream_order order, struct rank *states, void *(*body)(void *)) {
    struct ls_comm *comms[RANKS_MAX];
    pthread_t threads[RANKS_MAX];
    assert_int_equal(ls_comm_create_threads(ranks, comms, NULL), LS_OK);
    for (int r = 0; r < ranks; r++) {
        states[r].comm = comms[r];
        assert_int_equal(ls_device_create_cpu(1, order, &states[r].device, NULL), LS_OK);
        states[r].stream = ls_stream_create(states[r].device, true);
        assert_non_null(states[r].stream);
    }
    for (int r = 0; r < ranks; r++) assert_int_equal(pthread_create(&threads[r], NULL, body, &states[r]), 0);
    for (int r = 0; r < ranks; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < ranks; r++) {
        ls_stream_destroy(states[r].stream);
        ls_device_destroy(states[r].device);
        ls_comm_destroy(comms[r]);
    }
}

/* Values whose sum depends on the order of addition in the last bits; one rounding each, so that no contraction changes
 * them. */
static float value_of(int rank, int64_t i) {
    return (float)((rank + 1) * (i % 13 + 1)) / (float)(i % 97 + 3);
}

static void *reduce_all(void *argument) {
    struct rank *state = argument;
    for (int64_t i = 0; i < state->count; i++) {
        state->floats[i] = value_of(ls_comm_rank(state->comm), i);
        state->doubles[i] = value_of(ls_comm_rank(state->comm), i);
    }
    ls_comm_all_reduce_sum(state->comm, state->stream, state->floats, state->count, LS_COMM_FLOAT, 0);
    ls_comm_all_reduce_sum(state->comm, state->stream, state->doubles, state->count, LS_COMM_DOUBLE, 1);
    state->code = ls_stream_synchronize(state->stream, &state->error);
    return NULL;
}

static void check_all_reduce(enum ls_stream_order order) {
    static const int64_t counts[] = {0, 1, 2, 3, 7, 511, 512, 513, 1024, 4999};
    struct rank *states = calloc(RANKS_MAX, sizeof *states);
    for (int ranks = 1; ranks <= RANKS_MAX; ranks++)
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            for (int r = 0; r < ranks; r++) states[r].count = counts[c];
            run_ranks(ranks, order, states, reduce_all);
            for (int r = 0; r < ranks; r++) {
                assert_int_equal(states[r].code, LS_OK);
                assert_memory_equal(states[r].floats, states[0].floats, (size_t)counts[c] * sizeof(float));
                assert_memory_equal(states[r].doubles, states[0].doubles, (size_t)counts[c] * sizeof(double));
            }
            for (int64_t i = 0; i < counts[c]; i++) {
                float in_order = value_of(0, i);
                double exact = value_of(0, i);
                for (int r = 1; r < ranks; r++) {
                    in_order += value_of(r, i);
                    exact += value_of(r, i);
                }
                assert_memory_equal(&states[0].floats[i], &in_order, sizeof in_order);
                assert_memory_equal(&states[0].doubles[i], &exact, sizeof exact);
            }
        }
    free(states);
}

static void all_reduce_sums_in_rank_order_with_the_same_bits_on_every_rank(void **unused) {
    (void)unused;
    check_all_reduce(LS_STREAMS_EAGER);
}

static void all_reduce_on_lazy_streams_gives_the_same(void **unused) {
    (void)unused;
    check_all_reduce(LS_STREAMS_LAZY);
}

static void *scatter_and_gather(void *argument) {
    struct rank *state = argument;
    int size = ls_comm_size(state->comm), rank = ls_comm_rank(state->comm);
    for (int64_t i = 0; i < size * state->count; i++) state->floats[i] = value_of(rank, i);
    ls_comm_reduce_scatter_sum(state->comm, state->stream, state->floats, state->count, LS_COMM_FLOAT, 0);
    ls_comm_all_gather(state->comm, state->stream, state->floats, state->count * (int64_t)sizeof(float), 0);
    state->code = ls_stream_synchronize(state->stream, &state->error);
    return NULL;
}

static void reduce_scatter_then_all_gather_is_an_all_reduce(void **unused) {
    (void)unused;
    static const int64_t counts[] = {0, 1, 5, 513, 1001};
    struct rank *states = calloc(RANKS_MAX, sizeof *states);
    for (int ranks = 1; ranks <= RANKS_MAX; ranks++)
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            for (int r = 0; r < ranks; r++) states[r].count = counts[c];
            run_ranks(ranks, LS_STREAMS_EAGER, states, scatter_and_gather);
            for (int64_t i = 0; i < ranks * counts[c]; i++) {
                float in_order = value_of(0, i);
                for (int r = 1; r < ranks; r++) in_order += value_of(r, i);
                for (int r = 0; r < ranks; r++) assert_memory_equal(&states[r].floats[i], &in_order, sizeof in_order);
            }
        }
    free(states);
}

static uint16_t bf16_of(int rank, int64_t i) {
    return ls_bf16_narrow(value_of(rank, i));
}

static void *reduce_bf16(void *argument) {
    struct rank *state = argument;
    const int size = ls_comm_size(state->comm), rank = ls_comm_rank(state->comm);
    uint16_t *whole = (uint16_t *)state->floats, *cut = (uint16_t *)state->doubles;
    for (int64_t i = 0; i < state->count; i++) whole[i] = bf16_of(rank, i);
    for (int64_t i = 0; i < size * state->count; i++) cut[i] = bf16_of(rank, i);
    ls_comm_all_reduce_sum(state->comm, state->stream, whole, state->count, LS_COMM_BF16, 0);
    ls_comm_reduce_scatter_sum(state->comm, state->stream, cut, state->count, LS_COMM_BF16, 1);
    state->code = ls_stream_synchronize(state->stream, &state->error);
    state->sums[0] = ls_comm_wire_bytes(state->comm);
    return NULL;
}

static void bf16_is_added_in_fp32_and_rounded_once(void **unused) {
    (void)unused;
    static const int64_t counts[] = {0, 1, 5, 513, 1001};
    struct rank *states = calloc(RANKS_MAX, sizeof *states);
    for (int ranks = 1; ranks <= RANKS_MAX; ranks++)
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            const int64_t count = counts[c];
            for (int r = 0; r < ranks; r++) states[r].count = count;
            run_ranks(ranks, LS_STREAMS_EAGER, states, reduce_bf16);
            for (int r = 0; r < ranks; r++) {
                assert_int_equal(states[r].sums[0], 2 * (ranks - 1) * 2 * count / ranks + (ranks - 1) * 2 * count);
                for (int64_t i = 0; i < ranks * count; i++) {
                    float sum = ls_bf16_widen(bf16_of(0, i));
                    for (int other = 1; other < ranks; other++) sum += ls_bf16_widen(bf16_of(other, i));
                    if (i < count) assert_int_equal(((uint16_t *)states[r].floats)[i], ls_bf16_narrow(sum));
                    if (i / count == r) assert_int_equal(((uint16_t *)states[r].doubles)[i], ls_bf16_narrow(sum));
                }
            }
        }
    free(states);
}

/* What byte `i` of buffer `part` of `rank` holds. */
static unsigned char byte_of(int rank, int part, int64_t i) {
    return (unsigned char)(rank * 53 + part * 17 + i % 251);
}

enum { STRIDE = 700, FIRST = 90, BYTES = 301, PARTS = 3 };

/* Rank r has (r + 1) % 4 buffers: none is possible. */
static void *exchange(void *argument) {
    struct rank *state = argument;
    const int size = ls_comm_size(state->comm), rank = ls_comm_rank(state->comm);
    static unsigned char memory[RANKS_MAX][PARTS][RANKS_MAX * STRIDE];
    const void *buffers[PARTS];
    int parts[RANKS_MAX];
    for (int other = 0; other < size; other++) parts[other] = (other + 1) % 4;
    for (int part = 0; part < PARTS; part++) {
        for (int64_t i = 0; i < size * STRIDE; i++) memory[rank][part][i] = byte_of(rank, part, i);
        buffers[part] = memory[rank][part];
    }
    const struct ls_comm_exchange what = {.parts = parts,
                                          .buffers = buffers,
                                          .received = state->floats,
                                          .stride = STRIDE,
                                          .first = FIRST,
                                          .bytes = BYTES,
                                          .groups = (int)state->count};
    ls_comm_exchange(state->comm, state->stream, &what, 2);
    state->code = ls_stream_synchronize(state->stream, &state->error);
    state->sums[0] = ls_comm_wire_bytes(state->comm);
    return NULL;
}

static void an_exchange_brings_everybodys_stretches_in_rank_order(void **unused) {
    (void)unused;
    struct rank *states = calloc(RANKS_MAX, sizeof *states);
    /* With two groups of two, ranks 0 and 2 share what would be one rank's slice. */
    static const int two_groups[] = {0, 2, 1, 3};
    for (int ranks = 1; ranks <= RANKS_MAX; ranks++)
        for (int groups = 1; groups <= 2; groups++) {
            if (groups == 2 && ranks != 4) continue;
            for (int r = 0; r < ranks; r++) states[r].count = groups;
            run_ranks(ranks, LS_STREAMS_EAGER, states, exchange);
            for (int r = 0; r < ranks; r++) {
                const unsigned char *got = (const unsigned char *)states[r].floats;
                const int slice = groups == 2 ? two_groups[r] : r;
                assert_int_equal(states[r].code, LS_OK);
                assert_int_equal(states[r].sums[0], (ranks - 1) * ((r + 1) % 4) * BYTES);
                for (int other = 0; other < ranks; other++)
                    for (int part = 0; part < (other + 1) % 4; part++)
                        for (int64_t i = 0; i < BYTES; i++)
                            assert_int_equal(*got++, byte_of(other, part, slice * STRIDE + FIRST + i));
            }
        }
    free(states);
}

/* Two parts, even and odd ranks, the higher ranks first; then a collective of all on the same stream. */
static void *split_by_parity(void *argument) {
    struct rank *state = argument;
    const int rank = ls_comm_rank(state->comm);
    struct ls_comm *part = NULL;
    state->code = ls_comm_split(state->comm, rank % 2, -rank, &part, &state->error);
    if (state->code) return NULL;
    state->all[0] = ls_comm_rank(part);
    state->all[1] = ls_comm_size(part);
    for (int i = 0; i < 8; i++) state->floats[i] = (float)rank;
    ls_comm_all_reduce_sum(part, state->stream, state->floats, 4, LS_COMM_FLOAT, 1);
    ls_comm_all_reduce_sum(state->comm, state->stream, state->floats + 4, 4, LS_COMM_FLOAT, 2);
    state->code = ls_stream_synchronize(state->stream, &state->error);
    state->sums[0] = ls_comm_wire_bytes(state->comm);
    ls_comm_destroy(part);
    return NULL;
}

static void a_split_makes_parts_whose_traffic_counts_for_the_whole(void **unused) {
    (void)unused;
    for (int ranks = 1; ranks <= RANKS_MAX; ranks++) {
        struct rank *states = calloc(RANKS_MAX, sizeof *states);
        run_ranks(ranks, ranks == 3 ? LS_STREAMS_LAZY : LS_STREAMS_EAGER, states, split_by_parity);
        for (int r = 0; r < ranks; r++) {
            int size = 0, sum = 0, higher = 0;
            for (int other = r % 2; other < ranks; other += 2) {
                size++;
                sum += other;
                higher += other > r;
            }
            assert_int_equal(states[r].code, LS_OK);
            assert_int_equal(states[r].all[0], higher);
            assert_int_equal(states[r].all[1], size);
            assert_true(states[r].floats[0] == (float)sum && states[r].floats[3] == (float)sum);
            assert_true(states[r].floats[4] == 0.5f * (float)(ranks * (ranks - 1)));
            assert_int_equal(states[r].sums[0], 2 * (size - 1) * 16 / size + 2 * (ranks - 1) * 16 / ranks);
        }
        free(states);
    }
}

/* Host collectives while collectives are under way on the stream, several rounds. */
static void *mix_host_and_stream(void *argument) {
    struct rank *state = argument;
    uint64_t rank = (uint64_t)ls_comm_rank(state->comm);
    for (uint64_t round = 0; round < 20 && !state->code; round++) {
        ls_comm_all_reduce_sum(state->comm, state->stream, state->floats, 1000, LS_COMM_FLOAT, 0);
        state->sums[0] = rank + round;
        state->sums[1] = UINT64_MAX;
        state->sums[2] = rank == 1;
        state->code = ls_comm_sum_u64(state->comm, state->sums, 3, &state->error);
        if (rank == 1) memcpy(state->text, "from rank one", 14);
        if (!state->code) state->code = ls_comm_broadcast(state->comm, state->text, 14, 1, &state->error);
        int mine = (int)(rank * 10 + round);
        if (!state->code)
            state->code = ls_comm_gather_bytes(state->comm, &mine, sizeof mine, state->all, &state->error);
    }
    if (!state->code) state->code = ls_stream_synchronize(state->stream, &state->error);
    return NULL;
}

static void host_collectives_do_not_mix_with_those_on_streams(void **unused) {
    (void)unused;
    for (int order = LS_STREAMS_EAGER; order <= LS_STREAMS_LAZY; order++) {
        struct rank *states = calloc(RANKS_MAX, sizeof *states);
        for (int r = 0; r < 3; r++) states[r].floats[999] = 1;
        run_ranks(3, order, states, mix_host_and_stream);
        for (int r = 0; r < 3; r++) {
            assert_int_equal(states[r].code, LS_OK);
            assert_int_equal(states[r].sums[0], 0 + 1 + 2 + 3 * 19);
            assert_true(states[r].sums[1] == UINT64_MAX - 2); /* 3 (2^64 - 1) mod 2^64 */
            assert_int_equal(states[r].sums[2], 1);
            assert_string_equal(states[r].text, "from rank one");
            for (int other = 0; other < 3; other++) assert_int_equal(states[r].all[other], other * 10 + 19);
            assert_true(states[r].floats[999] == 3486784401.0f); /* 3^20, 24 bits of it are enough: 3^20 < 2^32 */
        }
        free(states);
    }
}

static void *call_differently(void *argument) {
    struct rank *state = argument;
    ls_comm_set_checks(state->comm, true);
    int block = state->disagree ? 7 : 6;
    ls_comm_all_reduce_sum(state->comm, state->stream, state->floats, 10, LS_COMM_FLOAT, block);
    state->code = ls_stream_synchronize(state->stream, &state->error);
    return NULL;
}

static void checks_name_two_ranks_that_disagree(void **unused) {
    (void)unused;
    struct rank *states = calloc(RANKS_MAX, sizeof *states);
    states[2].disagree = true;
    run_ranks(3, LS_STREAMS_EAGER, states, call_differently);
    for (int r = 0; r < 3; r++) {
        assert_int_equal(states[r].code, LS_COMMUNICATION);
        assert_non_null(strstr(states[r].error.text, "rank 0"));
        assert_non_null(strstr(states[r].error.text, "rank 2"));
        assert_non_null(strstr(states[r].error.text, "block 7"));
    }
    free(states);
}

static void *count_bytes(void *argument) {
    struct rank *state = argument;
    ls_comm_all_reduce_sum(state->comm, state->stream, state->floats, 1000, LS_COMM_FLOAT, 0);
    ls_comm_reduce_scatter_sum(state->comm, state->stream, state->floats, 100, LS_COMM_FLOAT, 0);
    ls_comm_all_gather(state->comm, state->stream, state->floats, 400, 0);
    state->code = ls_stream_synchronize(state->stream, &state->error);
    state->sums[0] = ls_comm_wire_bytes(state->comm);
    return NULL;
}

static void wire_bytes_are_those_of_a_ring(void **unused) {
    (void)unused;
    struct rank *states = calloc(RANKS_MAX, sizeof *states);
    run_ranks(4, LS_STREAMS_EAGER, states, count_bytes);
    assert_int_equal(states[0].sums[0], 2 * 3 * 4000 / 4 + 3 * 400 + 3 * 400);
    run_ranks(1, LS_STREAMS_EAGER, states, count_bytes);
    assert_int_equal(states[0].sums[0], 0);
    free(states);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_reduce_sums_in_rank_order_with_the_same_bits_on_every_rank),
        cmocka_unit_test(all_reduce_on_lazy_streams_gives_the_same),
        cmocka_unit_test(reduce_scatter_then_all_gather_is_an_all_reduce),
        cmocka_unit_test(an_exchange_brings_everybodys_stretches_in_rank_order),
        cmocka_unit_test(bf16_is_added_in_fp32_and_rounded_once),
        cmocka_unit_test(a_split_makes_parts_whose_traffic_counts_for_the_whole),
        cmocka_unit_test(host_collectives_do_not_mix_with_those_on_streams),
        cmocka_unit_test(checks_name_two_ranks_that_disagree),
        cmocka_unit_test(wire_bytes_are_those_of_a_ring),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
