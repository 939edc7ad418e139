/* Collectives by NCCL on the streams of a CUDA device, over the stand-ins of both; run by mpirun on 1 to 4 ranks, each
 * with a GPU of its own, in any order of streams. With the argument "faults": collectives until something is lost; ends
 * with the code and the words of the loss. */
#include "worker/comm/nccl.h"

#include "common/log.h"
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
#include <unistd.h>
#include <cmocka.h>

enum { WORKSPACE = 1 << 20 };

static struct ls_comm *host, *comm;
static struct ls_device *device;
static struct ls_stream *stream, *compute;

/* A copy of `bytes` on the device, and a guard of 8 bytes behind. */
static void *upload(const void *from, size_t bytes) {
    char *memory = ls_device_allocate(device, bytes + 8);
    const uint64_t guard = UINT64_C(0x5ca1ab1e5ca1ab1e);
    assert_non_null(memory);
    ls_copy_to_device(stream, memory, from, bytes);
    ls_copy_to_device(stream, memory + bytes, &guard, sizeof guard);
    assert_int_equal(ls_stream_synchronize(stream, NULL), LS_OK);
    return memory;
}

/* What the device has there now; the guard must be whole. Frees the device's memory. */
static void *download(void *memory, size_t bytes) {
    char *copy = malloc(bytes + 8);
    struct ls_error error = {.code = LS_OK};
    ls_copy_to_host(stream, copy, memory, bytes + 8);
    if (ls_stream_synchronize(stream, &error)) fail_msg("%s", error.text);
    uint64_t guard;
    memcpy(&guard, copy + bytes, sizeof guard);
    assert_true(guard == UINT64_C(0x5ca1ab1e5ca1ab1e));
    ls_device_free(device, memory);
    return copy;
}

/* One rounding each; signs differ. */
static double value_of(int rank, int64_t i) {
    return (double)((float)((rank + 1) * (i % 13 - 5)) / (float)(i % 97 + 3));
}

/* Each addition rounds by half a unit of a partial sum, which is at most the sum of the magnitudes. */
static void check_sum(double got, int64_t i, double unit) {
    double sum = 0, magnitude = 0;
    for (int rank = 0; rank < ls_comm_size(comm); rank++) {
        sum += value_of(rank, i);
        magnitude += fabs(value_of(rank, i));
    }
    if (!(fabs(got - sum) <= (ls_comm_size(comm) - 1) * unit * magnitude))
        fail_msg("element %lld: %.9g, expected %.9g", (long long)i, got, sum);
}

/* None, fewer than ranks, odd, and more than a piece of the workspace for bf16 holds. */
static const int64_t counts[] = {0, 1, 2, 3, 1023, 100003, 700001};

static void reductions_sum_floats_with_the_same_bits_on_every_rank(void **unused) {
    (void)unused;
    const int size = ls_comm_size(comm), rank = ls_comm_rank(comm);
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        const int64_t count = counts[c];
        const size_t bytes = (size_t)(size * count) * sizeof(float);
        float *values = malloc(bytes + 1);
        for (int64_t i = 0; i < size * count; i++) values[i] = (float)value_of(rank, i);
        float *reduced = upload(values, (size_t)count * sizeof(float)), *scattered = upload(values, bytes);
        ls_comm_all_reduce_sum(comm, stream, reduced, count, LS_COMM_FLOAT, 3);
        ls_comm_reduce_scatter_sum(comm, stream, scattered, count, LS_COMM_FLOAT, 3);
        reduced = download(reduced, (size_t)count * sizeof(float));
        scattered = download(scattered, bytes);
        for (int64_t i = 0; i < count; i++) check_sum(reduced[i], i, 0x1p-24);
        for (int64_t i = rank * count; i < (rank + 1) * count; i++) check_sum(scattered[i], i, 0x1p-24);
        memcpy(values, reduced, (size_t)count * sizeof(float));
        assert_int_equal(ls_comm_broadcast(comm, values, count * (int64_t)sizeof(float), 0, NULL), LS_OK);
        assert_memory_equal(values, reduced, (size_t)count * sizeof(float));
        free(values), free(reduced), free(scattered);
    }
}

static void all_reduce_sums_doubles(void **unused) {
    (void)unused;
    enum { COUNT = 1001 };
    double values[COUNT];
    for (int64_t i = 0; i < COUNT; i++) values[i] = value_of(ls_comm_rank(comm), i);
    double *reduced = upload(values, sizeof values);
    ls_comm_all_reduce_sum(comm, stream, reduced, COUNT, LS_COMM_DOUBLE, -1);
    reduced = download(reduced, sizeof values);
    for (int64_t i = 0; i < COUNT; i++) check_sum(reduced[i], i, 0x1p-53);
    free(reduced);
}

static void all_gather_brings_every_slice_to_every_rank(void **unused) {
    (void)unused;
    const int size = ls_comm_size(comm), rank = ls_comm_rank(comm);
    static const int64_t bytes[] = {0, 1, 3, 4097, (1 << 20) + 5};
    for (size_t b = 0; b < sizeof bytes / sizeof *bytes; b++) {
        const int64_t count = bytes[b];
        unsigned char *values = calloc((size_t)(size * count + 1), 1);
        for (int64_t i = 0; i < count; i++) values[rank * count + i] = (unsigned char)(rank * 31 + i % 251);
        unsigned char *all = upload(values, (size_t)(size * count));
        ls_comm_all_gather(comm, stream, all, count, 3);
        all = download(all, (size_t)(size * count));
        for (int other = 0; other < size; other++)
            for (int64_t i = 0; i < count; i++)
                if (all[other * count + i] != (unsigned char)(other * 31 + i % 251))
                    fail_msg("slice %d byte %lld", other, (long long)i);
        free(values), free(all);
    }
}

/* Rank r has (r + 1) % 4 buffers. With groups the slices lie in another order: number (r % G) groups + r / G. */
static void an_exchange_brings_everybodys_stretches_in_rank_order(void **unused) {
    (void)unused;
    enum { PARTS = 3 };
    const int size = ls_comm_size(comm), rank = ls_comm_rank(comm);
    static const int64_t bytes[] = {0, 1, 5003};
    int parts[4] = {0}, all = 0;
    for (int other = 0; other < size; other++) all += parts[other] = (other + 1) % 4;
    for (int groups = 1; groups <= size; groups++)
        for (size_t b = 0; b < sizeof bytes / sizeof *bytes; b++) {
            if (size % groups) continue;
            const int64_t count = bytes[b], stride = count + 3, first = 2, length = size * stride;
            unsigned char *memory = malloc((size_t)(PARTS * length)), *zeros = calloc((size_t)(all * count + 1), 1);
            for (int part = 0; part < PARTS; part++)
                for (int64_t i = 0; i < length; i++)
                    memory[part * length + i] = (unsigned char)(rank * 53 + part * 17 + i % 251);
            char *sent = upload(memory, (size_t)(PARTS * length));
            unsigned char *received = upload(zeros, (size_t)(all * count));
            const void *buffers[PARTS] = {sent, sent + length, sent + 2 * length};
            const struct ls_comm_exchange exchange = {.parts = parts,
                                                      .buffers = buffers,
                                                      .received = received,
                                                      .stride = stride,
                                                      .first = first,
                                                      .bytes = count,
                                                      .groups = groups};
            ls_comm_exchange(comm, stream, &exchange, 3);
            received = download(received, (size_t)(all * count));
            const int members = size / groups;
            const int64_t slice = rank % members * groups + rank / members;
            const unsigned char *got = received;
            for (int other = 0; other < size; other++)
                for (int part = 0; part < parts[other]; part++)
                    for (int64_t i = 0; i < count; i++)
                        if (*got++ != (unsigned char)(other * 53 + part * 17 + (slice * stride + first + i) % 251))
                            fail_msg("rank %d part %d byte %lld, %d groups", other, part, (long long)i, groups);
            free(received), free(memory), free(zeros), free(download(sent, (size_t)(PARTS * length)));
        }
}

static float bf16_value(int rank, int64_t i) {
    return i % 2 ? (float)(rank + i % 13) : (float)((rank + 1) * (i % 97)) / 3;
}

/* Small integers and their sums are exact in bf16; thirds are rounded once on the way in and once as a sum. */
static void bf16_is_added_in_fp32_and_rounded_once(void **unused) {
    (void)unused;
    const int size = ls_comm_size(comm), rank = ls_comm_rank(comm);
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
        for (int scatter = 0; scatter < 2; scatter++) {
            const int64_t count = counts[c], length = scatter ? size * count : count;
            uint16_t *values = malloc((size_t)(length + 1) * sizeof *values);
            for (int64_t i = 0; i < length; i++) values[i] = ls_bf16_narrow(bf16_value(rank, i));
            uint16_t *sums = upload(values, (size_t)length * sizeof *values);
            if (scatter)
                ls_comm_reduce_scatter_sum(comm, stream, sums, count, LS_COMM_BF16, 3);
            else
                ls_comm_all_reduce_sum(comm, stream, sums, count, LS_COMM_BF16, 3);
            sums = download(sums, (size_t)length * sizeof *values);
            for (int64_t i = scatter ? rank * count : 0; i < (scatter ? (rank + 1) * count : count); i++) {
                float sum = 0;
                for (int other = 0; other < size; other++) sum += ls_bf16_widen(ls_bf16_narrow(bf16_value(other, i)));
                if (sums[i] != ls_bf16_narrow(sum)) fail_msg("element %lld of %lld", (long long)i, (long long)count);
            }
            free(values), free(sums);
        }
}

/* Even and odd ranks apart, in reverse order, so that the places in the part differ from those in the whole. */
static void a_split_makes_parts_that_gather_and_reduce_among_themselves(void **unused) {
    (void)unused;
    enum { COUNT = 12345 };
    const int size = ls_comm_size(comm), rank = ls_comm_rank(comm);
    struct ls_comm *part = NULL;
    const uint64_t sent = ls_comm_wire_bytes(comm);
    assert_int_equal(ls_comm_split(comm, rank % 2, -rank, &part, NULL), LS_OK);
    const int members = (size - rank % 2 + 1) / 2;
    assert_int_equal(ls_comm_size(part), members);
    assert_int_equal(ls_comm_rank(part), members - 1 - rank / 2);
    const size_t bytes = (size_t)members * COUNT * sizeof(float);
    float *values = malloc(bytes);
    for (int64_t i = 0; i < members * (int64_t)COUNT; i++) values[i] = (float)(rank + i % 7);
    float *sums = upload(values, bytes);
    ls_comm_reduce_scatter_sum(part, stream, sums, COUNT, LS_COMM_FLOAT, 0);
    ls_comm_all_gather(part, stream, sums, COUNT * (int64_t)sizeof(float), 0);
    sums = download(sums, bytes);
    int64_t ranks = 0;
    for (int other = rank % 2; other < size; other += 2) ranks += other;
    for (int64_t i = 0; i < members * (int64_t)COUNT; i++)
        if (sums[i] != (float)(ranks + members * (i % 7))) fail_msg("element %lld", (long long)i);
    assert_int_equal(ls_comm_wire_bytes(comm) - sent, 2 * (members - 1) * COUNT * sizeof(float));
    free(values), free(sums);
    ls_comm_destroy(part);
}

/* NCCL takes memory with the first collective over a ring, a tree and pairs (LS_STANDIN_NCCL_MEMORY). */
static void a_warm_up_takes_what_later_collectives_would(void **unused) {
    (void)unused;
    enum { COUNT = 1 << 16, TAKEN = 1 << 20 };
    const size_t bytes = COUNT * sizeof(float);
    float *values = calloc(1, bytes), *buffer = upload(values, bytes);
    struct ls_comm *part = NULL;
    const int64_t before = ls_device_free_bytes(device);
    const uint64_t sent = ls_comm_wire_bytes(comm);
    setenv("LS_STANDIN_NCCL_MEMORY", "1048576", 1);
    assert_int_equal(ls_comm_split(comm, ls_comm_rank(comm) % 2, 0, &part, NULL), LS_OK);
    assert_int_equal(ls_comm_warm_up(part, 1 << 20, true, true, NULL), LS_OK);
    const int64_t warm = ls_device_free_bytes(device), members = ls_comm_size(part);
    assert_int_equal(before - warm, (members > 1 ? 4 : 1) * TAKEN);
    assert_true(ls_comm_wire_bytes(comm) == sent);
    ls_comm_all_reduce_sum(part, stream, buffer, 1, LS_COMM_FLOAT, 0);
    ls_comm_all_reduce_sum(part, stream, buffer, COUNT, LS_COMM_FLOAT, 0);
    ls_comm_reduce_scatter_sum(part, stream, buffer, COUNT / members, LS_COMM_FLOAT, 0);
    ls_comm_all_gather(part, stream, buffer, COUNT / members, 0);
    ls_comm_all_reduce_sum(part, stream, buffer, COUNT, LS_COMM_BF16, 0);
    assert_int_equal(ls_stream_synchronize(stream, NULL), LS_OK);
    assert_int_equal(ls_device_free_bytes(device), warm);
    ls_comm_destroy(part);
    unsetenv("LS_STANDIN_NCCL_MEMORY");
    assert_int_equal(ls_device_free_bytes(device), before);
    free(values), free(download(buffer, bytes));
}

/* Compute, then communication that waits for it, then compute that waits for communication: in every order of streams.
 */
static void streams_wait_for_collectives_and_collectives_for_streams(void **unused) {
    (void)unused;
    enum { COUNT = 4099, ROUNDS = 5 };
    struct ls_event *filled = ls_event_create(device), *reduced = ls_event_create(device);
    float ones[COUNT];
    for (int i = 0; i < COUNT; i++) ones[i] = 1;
    float *a = upload(ones, sizeof ones), *b = upload(ones, sizeof ones);
    for (int round = 0; round < ROUNDS; round++) {
        ls_copy(compute, b, a, sizeof ones);
        ls_event_record(filled, compute);
        ls_stream_wait(stream, filled);
        ls_comm_all_reduce_sum(comm, stream, b, COUNT, LS_COMM_FLOAT, 0);
        ls_event_record(reduced, stream);
        ls_stream_wait(compute, reduced);
        ls_copy(compute, a, b, sizeof ones);
    }
    assert_int_equal(ls_stream_synchronize(compute, NULL), LS_OK);
    a = download(a, sizeof ones);
    free(download(b, sizeof ones));
    for (int i = 0; i < COUNT; i++)
        if (a[i] != powf((float)ls_comm_size(comm), ROUNDS)) fail_msg("element %d: %g", i, (double)a[i]);
    free(a);
    ls_event_destroy(filled);
    ls_event_destroy(reduced);
}

static void host_collectives_go_on_beside_those_on_the_stream(void **unused) {
    (void)unused;
    const int size = ls_comm_size(comm), rank = ls_comm_rank(comm);
    float *buffer = upload(&(float){(float)rank}, sizeof(float));
    ls_comm_all_reduce_sum(comm, stream, buffer, 1, LS_COMM_FLOAT, 0);
    for (int round = 0; round < 10; round++) {
        uint64_t sums[] = {(uint64_t)rank, UINT64_MAX};
        int all[4], mine = rank * 100 + round;
        assert_int_equal(ls_comm_sum_u64(comm, sums, 2, NULL), LS_OK);
        assert_int_equal(sums[0], size * (size - 1) / 2);
        assert_int_equal(ls_comm_gather_bytes(comm, &mine, sizeof mine, all, NULL), LS_OK);
        for (int other = 0; other < size; other++) assert_int_equal(all[other], other * 100 + round);
        assert_int_equal(ls_comm_sum_u64(host, sums, 1, NULL), LS_OK);
    }
    buffer = download(buffer, sizeof(float));
    assert_true(2 * buffer[0] == (float)(size * (size - 1)));
    free(buffer);
}

/* The last test: what was refused stays refused. */
static void checks_name_two_ranks_that_disagree(void **unused) {
    (void)unused;
    if (ls_comm_size(comm) == 1) skip();
    const float zeros[8] = {0};
    struct ls_error error = {.code = LS_OK};
    float *buffer = upload(zeros, sizeof zeros);
    ls_comm_set_checks(comm, true);
    ls_comm_all_reduce_sum(comm, stream, buffer, ls_comm_rank(comm) == 1 ? 7 : 8, LS_COMM_FLOAT, 0);
    assert_int_equal(ls_stream_synchronize(stream, &error), LS_COMMUNICATION);
    assert_non_null(strstr(error.text, "28 bytes"));
    assert_non_null(strstr(error.text, "32 bytes"));
    ls_comm_set_checks(comm, false);
    ls_comm_all_reduce_sum(comm, stream, buffer, 8, LS_COMM_FLOAT, 0);
    assert_int_equal(ls_stream_synchronize(stream, &error), LS_COMMUNICATION);
    ls_device_free(device, buffer);
}

static void leave(const struct ls_error *error) {
    ls_report_exit(error->code, error->text);
    _exit(error->code);
}

/* A step's way: collectives on the stream, a wait for it, a collective on the host. */
static int run_until_loss(void) {
    struct ls_error error = {.code = LS_OK};
    const float value = 1;
    float *buffer = upload(&value, sizeof value);
    for (int step = 0; step < 1000000; step++) {
        uint64_t sum = 1;
        for (int i = 0; i < 3; i++) ls_comm_all_reduce_sum(comm, stream, buffer, 1, LS_COMM_FLOAT, 0);
        enum ls_code code = ls_stream_synchronize(stream, &error);
        if (!code) code = ls_comm_sum_u64(comm, &sum, 1, &error);
        if (code) leave(&error);
    }
    return 1;
}

static bool set_up(struct ls_error *error) {
    const char *timeout = getenv("LS_TEST_TIMEOUT");
    if (ls_comm_create_mpi(&host, error)) return false;
    const char *first = getenv("LS_TEST_GPU");
    if (ls_device_create_cuda(first ? atoi(first) : ls_comm_rank(host), false, &device, error)) return false;
    stream = ls_stream_create(device, true);
    compute = ls_stream_create(device, false);
    const struct ls_comm_nccl_options options = {.host = host,
                                                 .device = device,
                                                 .workspace_bytes = WORKSPACE,
                                                 .timeout_seconds = timeout ? atof(timeout) : 0,
                                                 .leave = leave};
    return stream && compute && ls_comm_create_nccl(&options, &comm, error) == LS_OK;
}

int main(int argc, char **argv) {
    int level, failed;
    struct ls_error error = {.code = LS_OK};
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
    if (!set_up(&error)) leave(&error);
    if (argc > 1 && strcmp(argv[1], "faults") == 0) return run_until_loss();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reductions_sum_floats_with_the_same_bits_on_every_rank),
        cmocka_unit_test(all_reduce_sums_doubles),
        cmocka_unit_test(all_gather_brings_every_slice_to_every_rank),
        cmocka_unit_test(an_exchange_brings_everybodys_stretches_in_rank_order),
        cmocka_unit_test(bf16_is_added_in_fp32_and_rounded_once),
        cmocka_unit_test(a_split_makes_parts_that_gather_and_reduce_among_themselves),
        cmocka_unit_test(a_warm_up_takes_what_later_collectives_would),
        cmocka_unit_test(streams_wait_for_collectives_and_collectives_for_streams),
        cmocka_unit_test(host_collectives_go_on_beside_those_on_the_stream),
        cmocka_unit_test(checks_name_two_ranks_that_disagree),
    };
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    ls_stream_destroy(stream);
    ls_stream_destroy(compute);
    ls_comm_destroy(comm);
    ls_device_destroy(device);
    ls_comm_destroy(host);
    MPI_Finalize();
    return failed != 0;
}
