/* The prefetch ring: every sample goes to one rank once, whatever the ranks, batches and restarts. */
#define _GNU_SOURCE
#include "tests/unit/token_files.h"
#include "worker/data/prefetch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum { T = 6, SOURCES = 3, SAMPLES = 31 };
static const int64_t source_samples[SOURCES] = {17, 4, 10};

/* Three datasets; token k of source s is 1000 s + k, so a sample's first input tells which one it is. */
static void open_sources(struct ls_dataset **datasets) {
    for (int s = 0; s < SOURCES; s++) {
        uint32_t tokens[17 * T + 1];
        char name[16];
        snprintf(name, sizeof name, "%d.bin", s);
        for (uint32_t k = 0; k < source_samples[s] * T + 1; k++) tokens[k] = 1000 * (uint32_t)s + k;
        write_gpt2_shard(name, tokens, source_samples[s] * T + 1);
        struct ls_config_source source = test_source(in_test_folder(name));
        assert_int_equal(ls_dataset_open(&source, T, &datasets[s], NULL), LS_OK);
        assert_int_equal(ls_dataset_samples(datasets[s]), source_samples[s]);
    }
}

static void close_sources(struct ls_dataset **datasets) {
    for (int s = 0; s < SOURCES; s++) ls_dataset_close(datasets[s]);
}

static struct ls_order *create_order(void) {
    static const uint64_t samples[SOURCES] = {17, 4, 10};
    struct ls_order *order;
    assert_int_equal(ls_order_create(5, samples, NULL, SOURCES, &order, NULL), LS_OK);
    return order;
}

static struct ls_prefetch *create_with(const struct ls_order *order, struct ls_dataset **datasets, int rank,
                                       int world_size, bool slots, struct ls_quarantine quarantine) {
    const struct ls_prefetch_options options = {.order = order,
                                                .datasets = (const struct ls_dataset *const *)datasets,
                                                .dataset_count = SOURCES,
                                                .rank = rank,
                                                .world_size = world_size,
                                                .sequence_length = T,
                                                .vocab = 50257,
                                                .document_mask = true,
                                                .micro_batch = 2,
                                                .slots = slots,
                                                .global_batch_max = 7,
                                                .quarantine = quarantine,
                                                .depth = 3};
    struct ls_prefetch *prefetch;
    struct ls_error error;
    if (ls_prefetch_create(&options, &prefetch, &error)) fail_msg("%s", error.text);
    return prefetch;
}

static struct ls_prefetch *create(const struct ls_order *order, struct ls_dataset **datasets, int rank, int world_size,
                                  bool slots) {
    return create_with(order, datasets, rank, world_size, slots, (struct ls_quarantine){.count = 0});
}

static struct ls_prefetch *create_quarantined(const struct ls_order *order, struct ls_dataset **datasets, int rank,
                                              int world_size) {
    return create_with(order, datasets, rank, world_size, false,
                       (struct ls_quarantine){.count = 2, .ranges = {{5, 10}, {12, 13}}});
}

static struct ls_prefetch *create_prefetch(const struct ls_order *order, struct ls_dataset **datasets, int rank,
                                           int world_size) {
    return create(order, datasets, rank, world_size, false);
}

static void grant(struct ls_prefetch *prefetch, int64_t first, int64_t last, uint64_t position, int64_t batch,
                  uint64_t end) {
    struct ls_error error;
    if (ls_prefetch_grant(prefetch, first, last, position, batch, end, &error)) fail_msg("%s", error.text);
}

/* How often each sample was fed, and the sums of one step over all ranks. */
struct tally {
    int fed[SOURCES][17];
    int64_t sequences[64], targets[64];
    struct ls_digest digests[64];
};

static void check_rows(const struct ls_batch *batch, struct tally *tally) {
    for (int64_t row = 0; row < batch->micro_batches * 2; row++)
        for (int t = 0; t < T; t++) {
            const int64_t at = row * T + t;
            if (row >= batch->sequences) {
                assert_int_equal(batch->inputs[at], 0);
                assert_int_equal(batch->target_ids[at], -1);
                assert_int_equal(batch->document_start[at], 0);
                continue;
            }
            assert_int_equal(batch->inputs[at], batch->inputs[row * T] + t);
            assert_int_equal(batch->target_ids[at], batch->inputs[at] + 1);
            if (t == 0) tally->fed[batch->inputs[at] / 1000][batch->inputs[at] % 1000 / T]++;
        }
}

/* Trains steps [first, last) with `world_size` ranks, the batch `batch`, from `position` to `end`, and adds them to the
 * tally. Returns the position after. */
static uint64_t train(const struct ls_order *order, struct ls_dataset **datasets, int world_size, int64_t first,
                      int64_t last, uint64_t position, int64_t batch, uint64_t end, struct tally *tally) {
    uint64_t after = 0;
    for (int rank = 0; rank < world_size; rank++) {
        struct ls_prefetch *prefetch = create_prefetch(order, datasets, rank, world_size);
        grant(prefetch, first, last, position, batch, end);
        after = position;
        for (int64_t step = first; step < last; step++) {
            struct ls_batch got;
            struct ls_error error;
            double waited = -1;
            if (ls_prefetch_next(prefetch, &got, &waited, &error)) fail_msg("%s", error.text);
            assert_true(waited >= 0);
            const int64_t all = (int64_t)(end - after) < batch ? (int64_t)(end - after) : batch;
            assert_int_equal(got.step, step);
            assert_int_equal(got.position, after);
            assert_int_equal(got.step_sequences, all);
            assert_int_equal(got.micro_batches, ((all + world_size - 1) / world_size + 1) / 2);
            assert_true(got.sequences <= got.micro_batches * 2);
            assert_int_equal(got.targets, got.sequences * T);
            check_rows(&got, tally);
            tally->sequences[step] += got.sequences;
            tally->targets[step] += got.targets;
            tally->digests[step] = ls_digest_add(tally->digests[step], got.digest);
            after += (uint64_t)got.step_sequences;
            ls_prefetch_release(prefetch);
        }
        ls_prefetch_destroy(prefetch);
    }
    return after;
}

/* Steps of 7 from position 3 on, with 5 to 9 and 12 passed over: step 1 has 3, 4, 10, 11, 13, 14, 15 and step 2 the
 * seven behind. The run ends at 26, where the last step is cut to 23, 24 and 25. */
static void what_is_in_quarantine_is_passed_over(void **state) {
    (void)state;
    static const int64_t expected[3][7] = {
        {3, 4, 10, 11, 13, 14, 15}, {16, 17, 18, 19, 20, 21, 22}, {23, 24, 25, -1, -1, -1, -1}};
    struct ls_dataset *datasets[SOURCES];
    open_sources(datasets);
    struct ls_order *order = create_order();
    for (int world_size = 1; world_size <= 4; world_size++) {
        int fed[31] = {0};
        for (int rank = 0; rank < world_size; rank++) {
            struct ls_prefetch *prefetch = create_quarantined(order, datasets, rank, world_size);
            grant(prefetch, 1, 4, 3, 7, 26);
            for (int step = 0; step < 3; step++) {
                struct ls_batch got;
                assert_int_equal(ls_prefetch_next(prefetch, &got, NULL, NULL), LS_OK);
                assert_int_equal(got.step_sequences, step < 2 ? 7 : 3);
                assert_int_equal(got.position, step == 0 ? 3 : step == 1 ? 16 : 23);
                assert_int_equal(got.end_position, step == 0 ? 16 : step == 1 ? 23 : 26);
                for (int64_t row = 0; row < got.sequences; row++) {
                    const int64_t position = expected[step][got.first_sequence + row];
                    const struct ls_draw draw = ls_order_at(order, (uint64_t)position);
                    assert_int_equal(got.inputs[row * T], 1000 * (int)draw.source + (int)draw.sample * T);
                    fed[position]++;
                }
                ls_prefetch_release(prefetch);
            }
            /* Nothing is left of the run: 26 and what is in quarantine. */
            struct ls_error error;
            assert_int_equal(ls_prefetch_grant(prefetch, 4, 5, 26, 7, 26, &error), LS_ERROR);
            ls_prefetch_destroy(prefetch);
        }
        for (int i = 0; i < 26; i++) assert_int_equal(fed[i], i >= 3 && (i < 5 || i > 9) && i != 12);
    }
    ls_order_destroy(order);
    close_sources(datasets);
}

/* Three steps of 7 sequences in slots of 2, the last step cut to 3: what each slot holds, by its rows' first tokens
 * (-1: no row). */
enum { SLOT_STEPS = 3, SLOTS = 4 };
static void train_in_slots(const struct ls_order *order, struct ls_dataset **datasets, int world_size,
                           int32_t held[SLOT_STEPS][SLOTS][2]) {
    memset(held, 0xff, sizeof(int32_t[SLOT_STEPS][SLOTS][2]));
    for (int rank = 0; rank < world_size; rank++) {
        struct ls_prefetch *prefetch = create(order, datasets, rank, world_size, true);
        grant(prefetch, 0, SLOT_STEPS, 5, 7, 5 + 2 * 7 + 3);
        for (int step = 0; step < SLOT_STEPS; step++) {
            const int64_t sequences = step < 2 ? 7 : 3, slots = step < 2 ? 4 : 2;
            struct ls_batch got;
            assert_int_equal(ls_prefetch_next(prefetch, &got, NULL, NULL), LS_OK);
            assert_int_equal(got.micro_batches, (slots + world_size - 1) / world_size);
            assert_true(got.sequences == 0 || got.first_sequence % 2 == 0);
            assert_true(got.sequences % 2 == 0 || got.first_sequence + got.sequences == sequences);
            assert_true(got.first_sequence + got.sequences <= sequences);
            for (int64_t row = 0; row < got.sequences; row++) {
                int32_t *place = &held[step][(got.first_sequence + row) / 2][row % 2];
                assert_int_equal(*place, -1); /* no other rank has it */
                *place = got.inputs[row * T];
            }
            ls_prefetch_release(prefetch);
        }
        ls_prefetch_destroy(prefetch);
    }
}

static void a_slot_holds_the_same_sequences_at_any_world_size(void **state) {
    (void)state;
    struct ls_dataset *datasets[SOURCES];
    open_sources(datasets);
    struct ls_order *order = create_order();
    int32_t one[SLOT_STEPS][SLOTS][2], more[SLOT_STEPS][SLOTS][2];
    train_in_slots(order, datasets, 1, one);
    for (int step = 0; step < SLOT_STEPS; step++)
        for (int slot = 0; slot < SLOTS; slot++)
            for (int row = 0; row < 2; row++)
                assert_int_equal(one[step][slot][row] >= 0, 2 * slot + row < (step < 2 ? 7 : 3));
    for (int world_size = 2; world_size <= 5; world_size++) {
        train_in_slots(order, datasets, world_size, more);
        assert_memory_equal(one, more, sizeof one);
    }
    ls_order_destroy(order);
    close_sources(datasets);
}

static void assert_fed(const struct tally *tally, int times) {
    for (int s = 0; s < SOURCES; s++)
        for (int64_t i = 0; i < source_samples[s]; i++) assert_int_equal(tally->fed[s][i], times);
}

static void two_epochs_feed_every_sample_twice_at_any_world_size(void **state) {
    (void)state;
    struct ls_dataset *datasets[SOURCES];
    open_sources(datasets);
    struct ls_order *order = create_order();
    struct tally first = {0};
    for (int world_size = 1; world_size <= 5; world_size++) {
        struct tally tally = {0};
        /* 62 sequences in steps of 7: nine steps, the last of 6. */
        assert_int_equal(train(order, datasets, world_size, 0, 9, 0, 7, 2 * SAMPLES, &tally), 2 * SAMPLES);
        assert_fed(&tally, 2);
        for (int step = 0; step < 9; step++) {
            assert_int_equal(tally.sequences[step], step < 8 ? 7 : 6);
            assert_int_equal(tally.targets[step], tally.sequences[step] * T);
        }
        if (world_size == 1)
            first = tally;
        else
            assert_memory_equal(tally.digests, first.digests, sizeof first.digests);
    }
    for (int step = 1; step < 9; step++)
        assert_memory_not_equal(&first.digests[step], &first.digests[0], sizeof *first.digests);
    ls_order_destroy(order);
    close_sources(datasets);
}

static void a_run_resumed_with_other_ranks_and_batches_feeds_the_rest_once(void **state) {
    (void)state;
    struct ls_dataset *datasets[SOURCES];
    open_sources(datasets);
    struct ls_order *order = create_order();
    struct tally whole = {0}, parts = {0};
    train(order, datasets, 1, 0, 13, 0, 5, 2 * SAMPLES, &whole);
    uint64_t position = train(order, datasets, 4, 0, 5, 0, 5, 2 * SAMPLES, &parts);
    assert_int_equal(position, 25);
    position = train(order, datasets, 3, 5, 9, position, 5, 2 * SAMPLES, &parts);
    assert_memory_equal(parts.digests, whole.digests, 9 * sizeof *whole.digests);
    /* And with a larger batch from there: 17 sequences are left, 7 + 7 + 3. */
    position = train(order, datasets, 5, 9, 12, position, 7, 2 * SAMPLES, &parts);
    assert_int_equal(position, 2 * SAMPLES);
    assert_fed(&parts, 2);
    ls_order_destroy(order);
    close_sources(datasets);
}

static void a_rank_without_sequences_has_the_same_micro_batches(void **state) {
    (void)state;
    struct ls_dataset *datasets[SOURCES];
    open_sources(datasets);
    struct ls_order *order = create_order();
    struct tally tally = {0};
    train(order, datasets, 5, 0, 2, 0, 5, 7, &tally); /* a step of 5, a step of 2: three ranks get nothing */
    assert_int_equal(tally.sequences[1], 2);
    ls_order_destroy(order);
    close_sources(datasets);
}

static void evaluation_reads_the_datasets_in_order_as_often_as_granted(void **state) {
    (void)state;
    struct ls_dataset *datasets[SOURCES];
    open_sources(datasets);
    struct ls_prefetch *prefetch = create_prefetch(NULL, datasets, 0, 1);
    struct ls_batch batch;
    for (int pass = 0; pass < 2; pass++) {
        grant(prefetch, 0, 5, 0, 7, UINT64_MAX);
        int64_t expected_source = 0, expected_sample = 0, sequences = 0;
        for (int step = 0; step < 5; step++) {
            assert_int_equal(ls_prefetch_next(prefetch, &batch, NULL, NULL), LS_OK);
            for (int64_t row = 0; row < batch.sequences; row++, sequences++) {
                assert_int_equal(batch.inputs[row * T], 1000 * expected_source + expected_sample * T);
                if (++expected_sample == source_samples[expected_source]) expected_source++, expected_sample = 0;
            }
            ls_prefetch_release(prefetch);
        }
        assert_int_equal(sequences, SAMPLES);
    }
    struct ls_error error;
    assert_int_equal(ls_prefetch_grant(prefetch, 0, 6, 0, 7, UINT64_MAX, &error),
                     LS_ERROR); /* the sixth step would be empty */
    assert_non_null(strstr(error.text, "position 31"));
    ls_prefetch_destroy(prefetch);
    close_sources(datasets);
}

static void targets_in_other_documents_are_not_counted(void **state) {
    (void)state;
    write_gpt2_shard("d.bin", (uint32_t[]){50256, 1, 2, 50256, 3, 50256, 4}, 7);
    struct ls_config_source source = test_source(in_test_folder("d.bin"));
    struct ls_dataset *dataset;
    assert_int_equal(ls_dataset_open(&source, T, &dataset, NULL), LS_OK);
    const struct ls_prefetch_options options = {.datasets = (const struct ls_dataset *const *)&dataset,
                                                .dataset_count = 1,
                                                .rank = 0,
                                                .world_size = 1,
                                                .sequence_length = T,
                                                .vocab = 50257,
                                                .document_mask = true,
                                                .micro_batch = 1,
                                                .global_batch_max = 1,
                                                .depth = 2};
    struct ls_prefetch *prefetch;
    assert_int_equal(ls_prefetch_create(&options, &prefetch, NULL), LS_OK);
    grant(prefetch, 0, 1, 0, 1, UINT64_MAX);
    struct ls_batch batch;
    assert_int_equal(ls_prefetch_next(prefetch, &batch, NULL, NULL), LS_OK);
    assert_int_equal(batch.targets, 4); /* 1, 2, 3 and 4 */
    assert_int_equal(batch.document_start[4], 3);
    ls_prefetch_destroy(prefetch);
    ls_dataset_close(dataset);
}

/* Documents begin at 0, 3 and 5. A window of w leaves position t no earlier one than t - w + 1. */
static void a_window_and_documents_both_end_what_is_seen(void **state) {
    (void)state;
    static const struct {
        int64_t window;
        bool document_mask;
        int32_t start[T];
    } rows[] = {{0, true, {0, 0, 0, 3, 3, 5}},  {1, true, {0, 1, 2, 3, 4, 5}}, {2, true, {0, 0, 1, 3, 3, 5}},
                {3, false, {0, 0, 0, 1, 2, 3}}, {T, true, {0, 0, 0, 3, 3, 5}}, {T, false, {0}},
                {1 << 22, false, {0}}};
    write_gpt2_shard("w.bin", (uint32_t[]){50256, 1, 2, 50256, 3, 50256, 4}, 7);
    struct ls_config_source source = test_source(in_test_folder("w.bin"));
    struct ls_dataset *dataset;
    assert_int_equal(ls_dataset_open(&source, T, &dataset, NULL), LS_OK);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct ls_prefetch_options options = {.datasets = (const struct ls_dataset *const *)&dataset,
                                                    .dataset_count = 1,
                                                    .world_size = 1,
                                                    .sequence_length = T,
                                                    .vocab = 50257,
                                                    .document_mask = rows[i].document_mask,
                                                    .window = rows[i].window,
                                                    .micro_batch = 1,
                                                    .global_batch_max = 1,
                                                    .depth = 2};
        struct ls_prefetch *prefetch;
        struct ls_batch batch;
        assert_int_equal(ls_prefetch_create(&options, &prefetch, NULL), LS_OK);
        grant(prefetch, 0, 1, 0, 1, UINT64_MAX);
        assert_int_equal(ls_prefetch_next(prefetch, &batch, NULL, NULL), LS_OK);
        assert_memory_equal(batch.document_start, rows[i].start, sizeof rows[i].start);
        ls_prefetch_destroy(prefetch);
    }
    ls_dataset_close(dataset);
}

static void several_batches_can_be_held_and_no_more_than_there_are(void **state) {
    (void)state;
    struct ls_dataset *datasets[SOURCES];
    open_sources(datasets);
    struct ls_order *order = create_order();
    struct ls_prefetch *prefetch = create_prefetch(order, datasets, 0, 1);
    struct ls_batch held[3], batch;
    struct ls_error error;
    assert_int_equal(ls_prefetch_next(prefetch, &batch, NULL, &error), LS_ERROR);
    assert_non_null(strstr(error.text, "beyond the 0 steps granted"));
    grant(prefetch, 10, 12, 0, 3, UINT64_MAX);
    grant(prefetch, 12, 15, 6, 4, UINT64_MAX);
    int32_t first_inputs[3];
    for (int i = 0; i < 3; i++) {
        assert_int_equal(ls_prefetch_next(prefetch, &held[i], NULL, NULL), LS_OK);
        first_inputs[i] = held[i].inputs[0];
    }
    assert_int_equal(ls_prefetch_next(prefetch, &batch, NULL, &error), LS_ERROR);
    assert_non_null(strstr(error.text, "all 3 batches"));
    for (int i = 0; i < 3; i++) assert_int_equal(held[i].inputs[0], first_inputs[i]);
    ls_prefetch_release(prefetch);
    assert_int_equal(ls_prefetch_next(prefetch, &batch, NULL, NULL), LS_OK);
    assert_int_equal(batch.step, 13);
    assert_int_equal(batch.position, 10);
    for (int i = 1; i < 3; i++) assert_int_equal(held[i].inputs[0], first_inputs[i]);
    ls_prefetch_destroy(prefetch);
    ls_order_destroy(order);
    close_sources(datasets);
}

static void grants_that_cannot_be_honoured_are_refused(void **state) {
    (void)state;
    struct ls_dataset *datasets[SOURCES];
    open_sources(datasets);
    struct ls_order *order = create_order();
    struct ls_prefetch *prefetch = create_prefetch(order, datasets, 0, 1);
    struct ls_error error;
    static const struct {
        int64_t first, last, batch;
        uint64_t position, end;
    } bad[] = {{0, 1, 8, 0, 100},
               {0, 1, 0, 0, 100},
               {3, 3, 7, 0, 100},
               {-1, 1, 7, 0, 100},
               {0, 1, 7, 100, 100},
               {0, 3, 7, 86, 100},
               {0, INT64_MAX, 7, 0, UINT64_MAX}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(
            ls_prefetch_grant(prefetch, bad[i].first, bad[i].last, bad[i].position, bad[i].batch, bad[i].end, &error),
            LS_ERROR);
    struct ls_batch batch;
    assert_int_equal(ls_prefetch_next(prefetch, &batch, NULL, &error), LS_ERROR); /* none of them granted anything */
    int granted = 0; /* the ring holds 3 steps and takes one more into hand; the spans that wait are limited */
    while (granted < 100 && !ls_prefetch_grant(prefetch, granted, granted + 1, 0, 1, 100, &error)) granted++;
    assert_true(granted >= LS_PREFETCH_SPANS_MAX && granted <= LS_PREFETCH_SPANS_MAX + 3);
    ls_prefetch_destroy(prefetch);
    ls_order_destroy(order);
    close_sources(datasets);
}

static void a_shard_cut_while_in_use_is_told_at_its_step(void **state) {
    (void)state;
    struct ls_dataset *datasets[SOURCES];
    open_sources(datasets);
    /* Source 0 keeps its first 8 samples and their targets. */
    assert_int_equal(truncate(in_test_folder("0.bin"), 1024 + 2 * (8 * T + 1)), 0);
    struct ls_prefetch *prefetch = create_prefetch(NULL, datasets, 0, 1);
    grant(prefetch, 0, 10, 0, 3, UINT64_MAX); /* steps 2 to 5 cannot be read, those after could */
    struct ls_batch batch;
    struct ls_error error;
    for (int step = 0; step < 2; step++) {
        assert_int_equal(ls_prefetch_next(prefetch, &batch, NULL, &error), LS_OK);
        ls_prefetch_release(prefetch);
    }
    for (int call = 0; call < 50; call++) {
        usleep(200); /* time for a thread that went on to make a later step */
        error = (struct ls_error){0};
        assert_int_equal(ls_prefetch_next(prefetch, &batch, NULL, &error), LS_DATA);
        assert_int_equal(error.code, LS_DATA);
        assert_non_null(strstr(error.text, "0.bin became shorter"));
    }
    ls_prefetch_destroy(prefetch);
    close_sources(datasets);
}

static void destroying_is_clean_at_any_moment(void **state) {
    (void)state;
    struct ls_dataset *datasets[SOURCES];
    open_sources(datasets);
    struct ls_order *order = create_order();
    ls_prefetch_destroy(NULL);
    ls_prefetch_destroy(create_prefetch(order, datasets, 0, 1)); /* nothing granted */
    for (int i = 0; i < 50; i++) {                               /* reading, or waiting for a slot */
        struct ls_prefetch *prefetch = create_prefetch(order, datasets, 0, 1);
        grant(prefetch, 0, 1000, 0, 7, UINT64_MAX);
        struct ls_batch batch;
        for (int step = 0; step < i % 5; step++) {
            assert_int_equal(ls_prefetch_next(prefetch, &batch, NULL, NULL), LS_OK);
            ls_prefetch_release(prefetch);
        }
        ls_prefetch_destroy(prefetch);
    }
    ls_order_destroy(order);
    close_sources(datasets);
}

static int64_t bytes_allocated;

static void *allocate_counted(size_t bytes, void *context) {
    if (*(bool *)context) return NULL;
    bytes_allocated += (int64_t)bytes;
    int64_t *memory = malloc(bytes + 64);
    *memory = (int64_t)bytes;
    return (char *)memory + 64;
}

static void release_counted(void *memory, void *context) {
    (void)context;
    int64_t *start = (int64_t *)((char *)memory - 64);
    bytes_allocated -= *start;
    free(start);
}

static void buffers_come_from_the_allocator_and_go_back(void **state) {
    (void)state;
    struct ls_dataset *datasets[SOURCES];
    open_sources(datasets);
    bool refuse = false;
    struct ls_prefetch_options options = {.datasets = (const struct ls_dataset *const *)datasets,
                                          .dataset_count = SOURCES,
                                          .rank = 1,
                                          .world_size = 2,
                                          .sequence_length = T,
                                          .vocab = 50257,
                                          .document_mask = true,
                                          .micro_batch = 4,
                                          .global_batch_max = 11,
                                          .depth = 2,
                                          .allocator = {allocate_counted, release_counted, &refuse}};
    /* ceil(11 / 2) = 6 sequences, 2 micro-batches of 4: 8 rows of 6 in 3 arrays of 4 bytes, twice. */
    assert_int_equal(ls_prefetch_bytes(&options), 8 * T * 3 * 4 * 2);
    struct ls_prefetch *prefetch;
    assert_int_equal(ls_prefetch_create(&options, &prefetch, NULL), LS_OK);
    assert_int_equal(bytes_allocated, 8 * T * 3 * 4 * 2);
    ls_prefetch_destroy(prefetch);
    assert_int_equal(bytes_allocated, 0);
    refuse = true;
    struct ls_error error;
    assert_int_equal(ls_prefetch_create(&options, &prefetch, &error), LS_MEMORY);
    refuse = false;
    options.global_batch_max = INT64_MAX;
    assert_int_equal(ls_prefetch_create(&options, &prefetch, &error), LS_MEMORY);
    close_sources(datasets);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_test_folder, remove_test_folder)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(what_is_in_quarantine_is_passed_over),
        TEST(two_epochs_feed_every_sample_twice_at_any_world_size),
        TEST(a_slot_holds_the_same_sequences_at_any_world_size),
        TEST(a_run_resumed_with_other_ranks_and_batches_feeds_the_rest_once),
        TEST(a_rank_without_sequences_has_the_same_micro_batches),
        TEST(evaluation_reads_the_datasets_in_order_as_often_as_granted),
        TEST(targets_in_other_documents_are_not_counted),
        TEST(a_window_and_documents_both_end_what_is_seen),
        TEST(several_batches_can_be_held_and_no_more_than_there_are),
        TEST(grants_that_cannot_be_honoured_are_refused),
        TEST(a_shard_cut_while_in_use_is_told_at_its_step),
        TEST(destroying_is_clean_at_any_moment),
        TEST(buffers_come_from_the_allocator_and_go_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
