/* Collectives over shared memory, by ranks that are threads with one mapping, so that a thread sanitizer sees what they
 * do to each other. Processes: mpi_comm.c. */
#include "worker/comm/shared.h"

#include "worker/device/cpu/low_precision.h"

#include <pthread.h>
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

enum { RANKS_MAX = 7, COLLECTIVES = 60, COUNT_MAX = 700000, PARTS_MAX = 3 };

struct rank {
    void *memory;
    int rank, size;
    uint64_t seed; /* equal on all ranks */
    char wrong[200];
};

static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Any float in [-1, 1): sums of them are rounded, so their order shows. */
static float value_of(uint64_t key, int rank, int64_t i) {
    return (float)(int32_t)(mix(key + (uint64_t)rank * 1000003 + (uint64_t)i * 77) >> 40) * 0x1p-23f - 1;
}

static float sum_of(uint64_t key, int size, int64_t i) {
    float sum = value_of(key, 0, i);
    for (int rank = 1; rank < size; rank++) sum += value_of(key, rank, i);
    return sum;
}

static uint16_t bf16_sum_of(uint64_t key, int size, int64_t i) {
    float sum = 0;
    for (int rank = 0; rank < size; rank++) sum += ls_bf16_widen(ls_bf16_narrow(value_of(key, rank, i)));
    return ls_bf16_narrow(sum);
}

static void expect(struct rank *rank, bool right, const char *what, int64_t i) {
    if (!right && rank->wrong[0] == 0)
        snprintf(rank->wrong, sizeof rank->wrong, "rank %d: %s, element %lld", rank->rank, what, (long long)i);
}

/* A reduction of `count` elements, of every slice if it is scattered. */
static void reduce(struct rank *rank, struct ls_shared *shared, uint64_t key, int64_t count, bool scatter, bool bf16) {
    const int size = rank->size, own = rank->rank;
    const int64_t length = scatter ? count * size : count;
    float *floats = malloc((size_t)(length + 1) * sizeof *floats);
    uint16_t *halves = malloc((size_t)(length + 1) * sizeof *halves);
    for (int64_t i = 0; i < length; i++) {
        floats[i] = value_of(key, own, i);
        halves[i] = ls_bf16_narrow(floats[i]);
    }
    floats[length] = 5, halves[length] = 5;
    const struct ls_collective collective = {.kind = scatter ? LS_REDUCE_SCATTER : LS_ALL_REDUCE,
                                             .type = bf16 ? LS_COMM_BF16 : LS_COMM_FLOAT,
                                             .buffer = bf16 ? (void *)halves : (void *)floats,
                                             .count = count};
    ls_shared_run(shared, &collective);
    for (int64_t i = scatter ? own * count : 0; i < (scatter ? (own + 1) * count : count); i++)
        expect(rank, bf16 ? halves[i] == bf16_sum_of(key, size, i) : floats[i] == sum_of(key, size, i), "a sum", i);
    expect(rank, floats[length] == 5 && halves[length] == 5, "behind the buffer", length);
    free(floats);
    free(halves);
}

static void gather(struct rank *rank, struct ls_shared *shared, uint64_t key, int64_t bytes) {
    unsigned char *buffer = calloc((size_t)(bytes * rank->size + 1), 1);
    for (int64_t i = 0; i < bytes; i++)
        buffer[rank->rank * bytes + i] = (unsigned char)mix(key + (uint64_t)(rank->rank * bytes + i));
    ls_shared_run(shared, &(struct ls_collective){.kind = LS_ALL_GATHER, .buffer = buffer, .count = bytes});
    for (int64_t i = 0; i < bytes * rank->size; i++)
        expect(rank, buffer[i] == (unsigned char)mix(key + (uint64_t)i), "a gathered byte", i);
    expect(rank, buffer[bytes * rank->size] == 0, "behind the buffer", bytes);
    free(buffer);
}

/* Rank r has (r + key) % 4 parts, in two groups where that divides. */
static void exchange(struct rank *rank, struct ls_shared *shared, uint64_t key, int64_t bytes) {
    const int size = rank->size, groups = size % 2 == 0 ? 2 : 1;
    const int64_t first = 3, stride = bytes + 5, length = stride * size;
    int parts[RANKS_MAX], all = 0;
    for (int other = 0; other < size; other++) all += parts[other] = (int)((uint64_t)other + key % 7) % (PARTS_MAX + 1);
    unsigned char *memory = malloc((size_t)(PARTS_MAX * length)), *received = calloc((size_t)(all * bytes + 1), 1);
    const void *buffers[PARTS_MAX];
    for (int part = 0; part < PARTS_MAX; part++) {
        buffers[part] = memory + part * length;
        for (int64_t i = 0; i < length; i++)
            memory[part * length + i] = (unsigned char)(mix(key + (uint64_t)i) + (uint64_t)(rank->rank * 7 + part));
    }
    const struct ls_collective collective = {.kind = LS_EXCHANGE,
                                             .count = bytes,
                                             .exchange = {.parts = parts,
                                                          .buffers = buffers,
                                                          .received = received,
                                                          .stride = stride,
                                                          .first = first,
                                                          .bytes = bytes,
                                                          .groups = groups}};
    ls_shared_run(shared, &collective);
    const int members = size / groups;
    const int64_t slice = rank->rank % members * groups + rank->rank / members;
    const unsigned char *got = received;
    for (int other = 0; other < size; other++)
        for (int part = 0; part < parts[other]; part++)
            for (int64_t i = 0; i < bytes; i++)
                expect(rank,
                       *got++ == (unsigned char)(mix(key + (uint64_t)(slice * stride + first + i)) +
                                                 (uint64_t)(other * 7 + part)),
                       "an exchanged byte", i);
    expect(rank, *got == 0, "behind what was received", all);
    free(memory);
    free(received);
}

/* The same random collectives on every rank, one after another; now and then a rank is late. */
static void *run_rank(void *argument) {
    struct rank *rank = argument;
    struct ls_shared *shared = NULL;
    if (ls_shared_create(rank->memory, rank->rank, rank->size, &shared, NULL)) return NULL;
    for (uint64_t i = 0; i < COLLECTIVES; i++) {
        const uint64_t key = mix(rank->seed + i * 3), kind = key % 6;
        int64_t count = 1 + (int64_t)(mix(key + 1) % (mix(key + 2) % 3 ? 3000 : COUNT_MAX));
        if (mix(key + 3) % (uint64_t)(4 * rank->size) == (uint64_t)rank->rank)
            nanosleep(&(struct timespec){.tv_nsec = 300000}, NULL);
        if (kind < 4)
            reduce(rank, shared, key, kind < 2 ? count : count / rank->size + 1, kind >= 2, kind % 2 == 1);
        else if (kind == 4)
            gather(rank, shared, key, count);
        else
            exchange(rank, shared, key, count / 2 + 1);
    }
    ls_shared_destroy(shared);
    return NULL;
}

/* Counters, three words at the begin of each rank's line, start at `start`. */
static void run(int size, uint64_t seed, uint32_t start) {
    const size_t bytes = ls_shared_bytes(size);
    const int descriptor = ls_shared_open(bytes);
    assert_true(descriptor >= 0);
    void *memory = ls_shared_map(descriptor, bytes);
    assert_non_null(memory);
    for (int rank = 0; rank < size; rank++)
        for (int word = 0; word < 3; word++) ((uint32_t *)memory)[rank * 16 + word] = start;
    struct rank ranks[RANKS_MAX];
    pthread_t threads[RANKS_MAX];
    for (int rank = 0; rank < size; rank++) {
        ranks[rank] = (struct rank){.memory = memory, .rank = rank, .size = size, .seed = seed};
        assert_int_equal(pthread_create(&threads[rank], NULL, run_rank, &ranks[rank]), 0);
    }
    for (int rank = 0; rank < size; rank++) pthread_join(threads[rank], NULL);
    for (int rank = 0; rank < size; rank++)
        if (ranks[rank].wrong[0]) fail_msg("seed %llu: %s", (unsigned long long)seed, ranks[rank].wrong);
    ls_shared_unmap(memory, bytes);
    close(descriptor);
}

static void collectives_of_every_kind_give_the_sums_in_rank_order(void **unused) {
    (void)unused;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    const uint64_t seed = mix((uint64_t)now.tv_nsec);
    for (int size = 2; size <= RANKS_MAX; size++) run(size, seed + (uint64_t)size, 0);
}

/* A long run's counters of rounds pass 2^32: here they begin shortly before. */
static void rounds_may_wrap_around(void **unused) {
    (void)unused;
    for (int size = 2; size <= 3; size++) run(size, 4711, UINT32_MAX - 40);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(collectives_of_every_kind_give_the_sums_in_rank_order),
        cmocka_unit_test(rounds_may_wrap_around),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
