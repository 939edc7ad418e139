/* Bytes on the wire, counted three times: by the communicator, by the plan, and by what is really asked of MPI. The
 * functions that MPI's profiling interface lets a program put in front of the library count here; run by mpirun on 1,
 * 2, 3 and 4 ranks. */
#include "worker/comm/comm.h"
#include "worker/model/model.h"
#include "worker/shard/shard.h"
#include "worker/trainer.h"

#include <mpi.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* ---- in front of MPI ---- */

static pthread_t training_thread;
static _Atomic uint64_t asked_bytes, asked_calls;

/* Collectives of the training thread are the host's small ones, which are no part of the wire's bytes. A ring sends
 * `numerator` / N bytes for this call. */
static void count(MPI_Comm channel, uint64_t numerator_per_other) {
    int size;
    if (pthread_equal(pthread_self(), training_thread)) return;
    PMPI_Comm_size(channel, &size);
    atomic_fetch_add(&asked_bytes, numerator_per_other * (uint64_t)(size - 1) / (uint64_t)size);
    atomic_fetch_add(&asked_calls, 1);
}

static uint64_t bytes_of(int elements, MPI_Datatype type) {
    int size;
    PMPI_Type_size(type, &size);
    return (uint64_t)elements * (uint64_t)size;
}

int MPI_Iallreduce(const void *from, void *to, int elements, MPI_Datatype type, MPI_Op operation, MPI_Comm channel,
                   MPI_Request *request) {
    count(channel, 2 * bytes_of(elements, type));
    return PMPI_Iallreduce(from, to, elements, type, operation, channel, request);
}

int MPI_Isend(const void *from, int elements, MPI_Datatype type, int to_rank, int tag, MPI_Comm channel,
              MPI_Request *request) {
    if (!pthread_equal(pthread_self(), training_thread)) {
        atomic_fetch_add(&asked_bytes, bytes_of(elements, type));
        atomic_fetch_add(&asked_calls, 1);
    }
    return PMPI_Isend(from, elements, type, to_rank, tag, channel, request);
}

/* Every rank is alone on its host: nothing goes through shared memory, where nobody counts. */
int MPI_Comm_split_type(MPI_Comm channel, int type, int key, MPI_Info info, MPI_Comm *part) {
    int rank;
    (void)type, (void)info;
    PMPI_Comm_rank(channel, &rank);
    return PMPI_Comm_split(channel, rank, key, part);
}

int MPI_Sendrecv(const void *from, int sent, MPI_Datatype sent_type, int to_rank, int to_tag, void *to, int elements,
                 MPI_Datatype type, int from_rank, int from_tag, MPI_Comm channel, MPI_Status *status) {
    if (to_rank != MPI_PROC_NULL && !pthread_equal(pthread_self(), training_thread)) {
        atomic_fetch_add(&asked_bytes, bytes_of(sent, sent_type));
        atomic_fetch_add(&asked_calls, 1);
    }
    return PMPI_Sendrecv(from, sent, sent_type, to_rank, to_tag, to, elements, type, from_rank, from_tag, channel,
                         status);
}

/* ---- the tests ---- */

static struct ls_comm *comm;
static struct ls_device *device;

struct counted {
    int64_t told, asked, calls;
};

static struct counted counted_so_far(void) {
    return (struct counted){(int64_t)ls_comm_wire_bytes(comm), (int64_t)atomic_load(&asked_bytes),
                            (int64_t)atomic_load(&asked_calls)};
}

static struct counted difference(struct counted after, struct counted before) {
    return (struct counted){after.told - before.told, after.asked - before.asked, after.calls - before.calls};
}

/* A rank's parts of a collective may be shorter than another's, but all ranks together send what they tell; of each
 * collective a rank tells whole bytes, so that less than one is missing, and asks at least once. */
static void check_together(struct counted counted) {
    int64_t sums[3] = {counted.told, counted.asked, counted.calls};
    MPI_Allreduce(MPI_IN_PLACE, sums, 3, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
    assert_in_range(sums[1] - sums[0], 0, sums[2]);
}

static const char *const families[] = {
    "model: {model_type: gpt2, hidden_size: 18, num_hidden_layers: 3, num_attention_heads: 2}\n"
    "data: {train: [{path: 'synthetic:9000'}], sequence_length: 12}\n"
    "train: {steps: 40, global_batch_size: 12, micro_batch_size: 2}\n",
    "model: {model_type: llama, hidden_size: 20, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: "
    "1,\n"
    "        intermediate_size: 37, tie_word_embeddings: false}\n"
    "data: {train: [{path: 'synthetic:9000'}], sequence_length: 10}\n"
    "train: {steps: 40, global_batch_size: 12, micro_batch_size: 3}\n",
};

/* How gradients travel. */
static const struct way {
    enum ls_reduction reduction;
    enum ls_gradient_dtype type;
    int first_stage;
} ways[] = {{LS_REDUCTION_FAST, LS_GRADIENT_FP32, 0},
            {LS_REDUCTION_FAST, LS_GRADIENT_BF16, 1},
            {LS_REDUCTION_FIXED, LS_GRADIENT_FP32, 0}};
enum { WAYS = sizeof ways / sizeof *ways };

static void check(enum ls_code code, const struct ls_error *error) {
    if (code) fail_msg("%s", error->text);
}

/* What a training of that many steps sends, from its creation to its end. */
static struct counted train(const struct ls_config *config, const struct ls_corpus *corpus, int64_t steps) {
    const struct counted before = counted_so_far();
    struct ls_error error = {0};
    struct ls_trainer_options options = {.config = config, .corpus = corpus, .device = device, .comm = comm};
    struct ls_trainer *trainer;
    check(ls_corpus_end(corpus, config, &options.total_steps, &options.end_position, &error), &error);
    options.end_step = options.total_steps;
    check(ls_trainer_create(&options, &trainer, &error), &error);
    check(ls_trainer_initialize(trainer, &error), &error);
    while (ls_trainer_steps_done(trainer) < steps) {
        struct ls_trainer_orders orders = {.granted_end = ls_comm_rank(comm) == 0 ? steps + 1 : 0};
        check(ls_trainer_boundary(trainer, &orders, &error), &error);
        struct ls_step_report report;
        if (ls_trainer_may_step(trainer)) check(ls_trainer_step(trainer, &report, &error), &error);
    }
    ls_trainer_destroy(trainer);
    return difference(counted_so_far(), before);
}

static void check_step(const char *yaml, const struct way *way, int stage) {
    const int ranks = ls_comm_size(comm);
    struct ls_config config;
    struct ls_corpus *corpus;
    struct ls_model *model;
    struct ls_error error = {0};
    check(ls_config_parse(yaml, strlen(yaml), "test", NULL, 0, &config, &error), &error);
    config.zero.stage = stage;
    config.zero.gradient_dtype = way->type;
    config.train.reduction = way->reduction;
    check(ls_corpus_open(&config, &corpus, &error), &error);
    check(ls_corpus_resolve_vocab(corpus, &config, &error), &error);
    check(ls_model_create(&config, &model, &error), &error);
    const struct ls_shard_wire wire = ls_shard_wire_bytes(&config, model, ranks);
    const int64_t planned = wire.gradients + wire.parameters + wire.scalars;
    const struct counted shorter = train(&config, corpus, 2), longer = train(&config, corpus, 3);
    /* With fixed, slots need not divide by the ranks: the plan is of those with most of them. */
    int64_t most = longer.told - shorter.told;
    if (way->reduction == LS_REDUCTION_FIXED)
        MPI_Allreduce(MPI_IN_PLACE, &most, 1, MPI_INT64_T, MPI_MAX, MPI_COMM_WORLD);
    assert_int_equal(most, planned);
    check_together(longer);
    check_together(shorter);
    assert_true(ranks == 1 ? planned == 0 : planned > ls_model_parameter_count(model));
    ls_model_destroy(model);
    ls_corpus_close(corpus);
}

static void the_plan_the_communicator_and_mpi_count_the_same_bytes_of_a_step(void **unused) {
    (void)unused;
    for (int family = 0; family < 2; family++)
        for (int way = 0; way < WAYS; way++)
            for (int stage = ways[way].first_stage; stage <= 3; stage++)
                check_step(families[family], &ways[way], stage);
}

static void large_collectives_go_in_pieces_that_send_no_more(void **unused) {
    (void)unused;
    enum { COUNT = 3 * (4 << 20) / 4 + 12345 };
    const int size = ls_comm_size(comm);
    struct ls_stream *stream = ls_stream_create(device, true);
    float *buffer = calloc((size_t)size * COUNT, sizeof *buffer);
    for (int kind = 0; kind < 5; kind++) {
        const struct counted before = counted_so_far();
        if (kind == 0) ls_comm_all_reduce_sum(comm, stream, buffer, COUNT, LS_COMM_FLOAT, 0);
        if (kind == 1) ls_comm_all_reduce_sum(comm, stream, buffer, COUNT, LS_COMM_BF16, 0);
        if (kind == 2) ls_comm_reduce_scatter_sum(comm, stream, buffer, COUNT, LS_COMM_FLOAT, 0);
        if (kind == 3) ls_comm_reduce_scatter_sum(comm, stream, buffer, COUNT, LS_COMM_BF16, 0);
        if (kind == 4) ls_comm_all_gather(comm, stream, buffer, COUNT * (int64_t)sizeof *buffer, 0);
        assert_int_equal(ls_stream_synchronize(stream, NULL), LS_OK);
        const struct counted counted = difference(counted_so_far(), before);
        assert_true(size == 1 ? counted.calls == 0 : counted.calls > 1);
        check_together(counted);
    }
    free(buffer);
    ls_stream_destroy(stream);
}

/* Rank r sends r + 1 buffers to every other rank. */
static void an_exchange_sends_its_own_stretches_to_everybody_else(void **unused) {
    (void)unused;
    enum { BYTES = 1000, STRIDE = 1024, RANKS_MAX = 4 };
    const int size = ls_comm_size(comm), rank = ls_comm_rank(comm);
    assert_in_range(size, 1, RANKS_MAX);
    int parts[RANKS_MAX], all = 0;
    const void *buffers[RANKS_MAX];
    for (int other = 0; other < size; other++) all += parts[other] = other + 1;
    char *memory = calloc((size_t)size, STRIDE), *received = calloc((size_t)all, BYTES);
    for (int part = 0; part <= rank; part++) buffers[part] = memory;
    const struct ls_comm_exchange exchange = {
        .parts = parts, .buffers = buffers, .received = received, .stride = STRIDE, .bytes = BYTES, .groups = 1};
    struct ls_stream *stream = ls_stream_create(device, true);
    const struct counted before = counted_so_far();
    ls_comm_exchange(comm, stream, &exchange, 0);
    assert_int_equal(ls_stream_synchronize(stream, NULL), LS_OK);
    const struct counted after = counted_so_far();
    assert_int_equal(after.told - before.told, (rank + 1) * (size - 1) * BYTES);
    assert_int_equal(after.asked - before.asked, (rank + 1) * (size - 1) * BYTES);
    ls_stream_destroy(stream);
    free(memory);
    free(received);
}

int main(int argc, char **argv) {
    int level, failed = 1;
    training_thread = pthread_self();
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
    struct ls_error error;
    if (ls_comm_create_mpi(&comm, &error)) {
        fprintf(stderr, "%s\n", error.text);
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    ls_comm_set_checks(comm, false); /* their gathers would be counted */
    if (!ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, NULL)) {
        const struct CMUnitTest tests[] = {
            cmocka_unit_test(the_plan_the_communicator_and_mpi_count_the_same_bytes_of_a_step),
            cmocka_unit_test(large_collectives_go_in_pieces_that_send_no_more),
            cmocka_unit_test(an_exchange_sends_its_own_stretches_to_everybody_else),
        };
        failed = cmocka_run_group_tests(tests, NULL, NULL);
        ls_device_destroy(device);
    }
    ls_comm_destroy(comm);
    MPI_Finalize();
    return failed != 0;
}
