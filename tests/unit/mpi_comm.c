/* Collectives over MPI; run by mpirun on 1, 2, 3 and 4 ranks. Every rank runs every test. */
#include "worker/comm/comm.h"
#include "worker/device/cpu/low_precision.h"

#include <math.h>
#include <mpi.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static struct ls_comm *comm;
static struct ls_device *device;
static struct ls_stream *stream;

/* One rounding each, so that no contraction changes them; signs differ. */
static double value_of(int rank, int64_t i) {
    return (double)((float)((rank + 1) * (i % 13 - 5)) / (float)(i % 97 + 3));
}

static double sum_of(int64_t i) {
    double sum = 0;
    for (int rank = 0; rank < ls_comm_size(comm); rank++) sum += value_of(rank, i);
    return sum;
}

static double magnitude_of(int64_t i) {
    double sum = 0;
    for (int rank = 0; rank < ls_comm_size(comm); rank++) sum += fabs(value_of(rank, i));
    return sum;
}

/* Each of the additions rounds by half a unit of a partial sum, which is at most the sum of magnitudes. */
static void check_float(float got, int64_t i) {
    double bound = (ls_comm_size(comm) - 1) * 0x1p-24 * magnitude_of(i);
    if (!(fabs((double)got - sum_of(i)) <= bound))
        fail_msg("element %lld: %.9g, expected %.9g", (long long)i, (double)got, sum_of(i));
}

/* More than a piece of 4 MiB, odd, fewer than ranks, none. */
static const int64_t counts[] = {0, 1, 2, 3, 1023, 100003, (4 << 20) / 4, 2 * (4 << 20) / 4 + 12345};

static void all_reduce_sums_floats_with_the_same_bits_on_every_rank(void **unused) {
    (void)unused;
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        int64_t count = counts[c];
        float *buffer = malloc((size_t)(count + 1) * sizeof *buffer);
        for (int64_t i = 0; i < count; i++) buffer[i] = (float)value_of(ls_comm_rank(comm), i);
        buffer[count] = -77;
        ls_comm_all_reduce_sum(comm, stream, buffer, count, LS_COMM_FLOAT, 3);
        assert_int_equal(ls_stream_synchronize(stream, NULL), LS_OK);
        for (int64_t i = 0; i < count; i++) check_float(buffer[i], i);
        assert_true(buffer[count] == -77);
        float *first = malloc((size_t)(count + 1) * sizeof *first);
        memcpy(first, buffer, (size_t)count * sizeof *first);
        assert_int_equal(ls_comm_broadcast(comm, first, count * (int64_t)sizeof *first, 0, NULL), LS_OK);
        assert_memory_equal(first, buffer, (size_t)count * sizeof *first);
        free(first);
        free(buffer);
    }
}

static void all_reduce_sums_doubles(void **unused) {
    (void)unused;
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        int64_t count = counts[c];
        double *buffer = malloc((size_t)(count + 1) * sizeof *buffer);
        for (int64_t i = 0; i < count; i++) buffer[i] = value_of(ls_comm_rank(comm), i);
        ls_comm_all_reduce_sum(comm, stream, buffer, count, LS_COMM_DOUBLE, -1);
        assert_int_equal(ls_stream_synchronize(stream, NULL), LS_OK);
        for (int64_t i = 0; i < count; i++)
            if (!(fabs(buffer[i] - sum_of(i)) <= 1e-15 * magnitude_of(i))) fail_msg("element %lld", (long long)i);
        free(buffer);
    }
}

static void reduce_scatter_leaves_each_rank_its_slice(void **unused) {
    (void)unused;
    int size = ls_comm_size(comm), rank = ls_comm_rank(comm);
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        int64_t count = counts[c];
        float *buffer = malloc((size_t)(size * count + 1) * sizeof *buffer);
        for (int64_t i = 0; i < size * count; i++) buffer[i] = (float)value_of(rank, i);
        buffer[size * count] = -77;
        ls_comm_reduce_scatter_sum(comm, stream, buffer, count, LS_COMM_FLOAT, 3);
        assert_int_equal(ls_stream_synchronize(stream, NULL), LS_OK);
        for (int64_t i = rank * count; i < (rank + 1) * count; i++) check_float(buffer[i], i);
        assert_true(buffer[size * count] == -77);
        free(buffer);
    }
}

static void all_gather_brings_every_slice_to_every_rank(void **unused) {
    (void)unused;
    int size = ls_comm_size(comm), rank = ls_comm_rank(comm);
    static const int64_t bytes[] = {0, 1, 3, 4097, (2 << 20) + 5, 5 << 20};
    for (size_t b = 0; b < sizeof bytes / sizeof *bytes; b++) {
        int64_t count = bytes[b];
        unsigned char *buffer = calloc((size_t)(size * count + 1), 1);
        for (int64_t i = 0; i < count; i++) buffer[rank * count + i] = (unsigned char)(rank * 31 + i % 251);
        ls_comm_all_gather(comm, stream, buffer, count, 3);
        assert_int_equal(ls_stream_synchronize(stream, NULL), LS_OK);
        for (int other = 0; other < size; other++)
            for (int64_t i = 0; i < count; i++)
                if (buffer[other * count + i] != (unsigned char)(other * 31 + i % 251))
                    fail_msg("slice %d byte %lld", other, (long long)i);
        assert_int_equal(buffer[size * count], 0);
        free(buffer);
    }
}

/* Rank r has (r + 1) % 4 buffers; between hosts the largest stretch goes as more messages than are on their way at a
 * time. */
static void an_exchange_brings_everybodys_stretches_in_rank_order(void **unused) {
    (void)unused;
    enum { PARTS = 3 };
    const int size = ls_comm_size(comm), rank = ls_comm_rank(comm);
    static const int64_t bytes[] = {0, 1, 5003, 2500001};
    int *parts = calloc((size_t)size, sizeof *parts), all = 0;
    for (int other = 0; other < size; other++) all += parts[other] = (other + 1) % 4;
    for (size_t b = 0; b < sizeof bytes / sizeof *bytes; b++) {
        const int64_t count = bytes[b], stride = count + 3, first = 2, length = size * stride;
        unsigned char *memory = malloc((size_t)(PARTS * length)), *received = calloc((size_t)(all * count + 1), 1);
        const void *buffers[PARTS];
        for (int part = 0; part < PARTS; part++) {
            buffers[part] = memory + part * length;
            for (int64_t i = 0; i < length; i++)
                memory[part * length + i] = (unsigned char)(rank * 53 + part * 17 + i % 251);
        }
        const struct ls_comm_exchange exchange = {.parts = parts,
                                                  .buffers = buffers,
                                                  .received = received,
                                                  .stride = stride,
                                                  .first = first,
                                                  .bytes = count,
                                                  .groups = 1};
        ls_comm_exchange(comm, stream, &exchange, 3);
        assert_int_equal(ls_stream_synchronize(stream, NULL), LS_OK);
        const unsigned char *got = received;
        for (int other = 0; other < size; other++)
            for (int part = 0; part < parts[other]; part++)
                for (int64_t i = 0; i < count; i++)
                    if (*got++ != (unsigned char)(other * 53 + part * 17 + (rank * stride + first + i) % 251))
                        fail_msg("rank %d part %d byte %lld", other, part, (long long)i);
        assert_int_equal(*got, 0);
        free(memory);
        free(received);
    }
    free(parts);
}

/* Small integers and their sums are exact in bf16; thirds are rounded once on the way in and once as a sum, of the
 * ranks of a host and of the hosts: half a unit in the 8th bit each. */
static void bf16_is_added_in_fp32_and_rounded_once(void **unused) {
    (void)unused;
    const int size = ls_comm_size(comm), rank = ls_comm_rank(comm);
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
        for (int scatter = 0; scatter < 2; scatter++) {
            const int64_t count = counts[c], length = scatter ? size * count : count;
            uint16_t *buffer = malloc((size_t)(length + 1) * sizeof *buffer);
            for (int64_t i = 0; i < length; i++)
                buffer[i] = ls_bf16_narrow(i % 2 ? (float)(rank + i % 13) : (float)((rank + 1) * (i % 97)) / 3);
            buffer[length] = 77;
            if (scatter)
                ls_comm_reduce_scatter_sum(comm, stream, buffer, count, LS_COMM_BF16, 3);
            else
                ls_comm_all_reduce_sum(comm, stream, buffer, count, LS_COMM_BF16, 3);
            assert_int_equal(ls_stream_synchronize(stream, NULL), LS_OK);
            for (int64_t i = scatter ? rank * count : 0; i < (scatter ? (rank + 1) * count : count); i++) {
                float sum = 0;
                for (int other = 0; other < size; other++)
                    sum += ls_bf16_widen(
                        ls_bf16_narrow(i % 2 ? (float)(other + i % 13) : (float)((other + 1) * (i % 97)) / 3));
                const bool once = ls_comm_local_size(comm) == size || ls_comm_local_size(comm) == 1 || i % 2;
                if (once ? buffer[i] != ls_bf16_narrow(sum) : fabsf(ls_bf16_widen(buffer[i]) - sum) > sum * 0x1.02p-7f)
                    fail_msg("element %lld of %lld", (long long)i, (long long)count);
            }
            assert_int_equal(buffer[length], 77);
            free(buffer);
        }
}

static void a_split_makes_parts_that_gather_and_reduce_among_themselves(void **unused) {
    (void)unused;
    enum { COUNT = 1234567 };
    const int size = ls_comm_size(comm), rank = ls_comm_rank(comm);
    struct ls_comm *part = NULL;
    assert_int_equal(ls_comm_split(comm, rank % 2, rank, &part, NULL), LS_OK);
    const int members = (size - rank % 2 + 1) / 2;
    assert_int_equal(ls_comm_size(part), members);
    assert_int_equal(ls_comm_rank(part), rank / 2);
    float *buffer = malloc((size_t)members * COUNT * sizeof *buffer);
    for (int64_t i = 0; i < members * (int64_t)COUNT; i++) buffer[i] = (float)(rank + i % 7);
    ls_comm_reduce_scatter_sum(part, stream, buffer, COUNT, LS_COMM_FLOAT, 0);
    ls_comm_all_gather(part, stream, buffer, COUNT * (int64_t)sizeof *buffer, 0);
    assert_int_equal(ls_stream_synchronize(stream, NULL), LS_OK);
    int64_t ranks = 0;
    for (int other = rank % 2; other < size; other += 2) ranks += other;
    for (int64_t i = 0; i < members * (int64_t)COUNT; i++)
        if (buffer[i] != (float)(ranks + members * (i % 7))) fail_msg("element %lld", (long long)i);
    free(buffer);
    ls_comm_destroy(part);
}

static void host_collectives_run_while_the_stream_is_busy(void **unused) {
    (void)unused;
    int size = ls_comm_size(comm), rank = ls_comm_rank(comm);
    enum { COUNT = 3 << 20 };
    float *buffer = malloc(COUNT * sizeof *buffer);
    int *all = calloc((size_t)size, sizeof *all);
    for (int64_t i = 0; i < COUNT; i++) buffer[i] = (float)value_of(rank, i);
    ls_comm_all_reduce_sum(comm, stream, buffer, COUNT, LS_COMM_FLOAT, 0);
    for (int round = 0; round < 10; round++) {
        uint64_t sums[] = {(uint64_t)rank, UINT64_MAX};
        assert_int_equal(ls_comm_sum_u64(comm, sums, 2, NULL), LS_OK);
        assert_int_equal(sums[0], size * (size - 1) / 2);
        assert_true(sums[1] == UINT64_MAX - (uint64_t)size + 1);
        int mine = rank * 100 + round;
        assert_int_equal(ls_comm_gather_bytes(comm, &mine, sizeof mine, all, NULL), LS_OK);
        for (int other = 0; other < size; other++) assert_int_equal(all[other], other * 100 + round);
        int last = rank == size - 1 ? round : -1;
        assert_int_equal(ls_comm_broadcast(comm, &last, sizeof last, size - 1, NULL), LS_OK);
        assert_int_equal(last, round);
    }
    assert_int_equal(ls_stream_synchronize(stream, NULL), LS_OK);
    for (int64_t i = 0; i < COUNT; i++) check_float(buffer[i], i);
    free(all);
    free(buffer);
}

static void checks_name_two_ranks_that_disagree(void **unused) {
    (void)unused;
    if (ls_comm_size(comm) == 1) skip();
    float buffer[8] = {0};
    struct ls_error error = {0};
    ls_comm_set_checks(comm, true);
    ls_comm_all_reduce_sum(comm, stream, buffer, ls_comm_rank(comm) == 1 ? 7 : 8, LS_COMM_FLOAT, 0);
    assert_int_equal(ls_stream_synchronize(stream, &error), LS_COMMUNICATION);
    assert_non_null(strstr(error.text, "28 bytes"));
    assert_non_null(strstr(error.text, "32 bytes"));
    ls_comm_set_checks(comm, false);
}

int main(int argc, char **argv) {
    int level, size, failed = 1;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
    struct ls_error error;
    if (ls_comm_create_mpi(&comm, &error)) {
        fprintf(stderr, "%s\n", error.text);
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (ls_comm_size(comm) == size && ls_comm_local_size(comm) <= size &&
        !ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, NULL) && (stream = ls_stream_create(device, true))) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(all_reduce_sums_floats_with_the_same_bits_on_every_rank),
            cmocka_unit_test(all_reduce_sums_doubles),
            cmocka_unit_test(reduce_scatter_leaves_each_rank_its_slice),
            cmocka_unit_test(all_gather_brings_every_slice_to_every_rank),
            cmocka_unit_test(an_exchange_brings_everybodys_stretches_in_rank_order),
            cmocka_unit_test(bf16_is_added_in_fp32_and_rounded_once),
            cmocka_unit_test(a_split_makes_parts_that_gather_and_reduce_among_themselves),
            cmocka_unit_test(host_collectives_run_while_the_stream_is_busy),
            cmocka_unit_test(checks_name_two_ranks_that_disagree),
        };
        failed = cmocka_run_group_tests(tests, NULL, NULL);
        ls_stream_destroy(stream);
        ls_device_destroy(device);
    }
    ls_comm_destroy(comm);
    MPI_Finalize();
    return failed != 0;
}
