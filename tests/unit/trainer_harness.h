/* Runs training with ranks as threads of the test, each with a device of its own. */
#ifndef TESTS_TRAINER_HARNESS_H
#define TESTS_TRAINER_HARNESS_H

#include "common/checkpoint_folder.h"
#include "worker/checkpoint/save.h"
#include "worker/model/model.h"
#include "worker/trainer.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { HARNESS_RANKS_MAX = 8, HARNESS_STEPS_MAX = 64 };

/* A training run: what goes in, and what rank 0 saw of it. */
struct run {
    struct ls_config config, config_of_last; /* config_of_last: what the last rank has, when `differs` */
    bool differs;
    int ranks;
    int threads;         /* of each rank; 0: 1 */
    int threads_of_last; /* 0: as the others */
    enum ls_stream_order order;
    int64_t start_step, steps; /* steps done before, steps to do */
    int64_t skipped_before;    /* of the steps done before, those without an update */
    int64_t optimizer_steps;   /* updates done in the end */
    const char *load;          /* checkpoint folder, NULL: initial weights */
    const char *save;          /* run directory: the state after the last step is committed there, too */
    int64_t save_every;        /* with `save`: steps between saves on the way, beside training; 0: none */
    bool save_waits;           /* no step runs until a save is written */
    bool bounce;               /* see struct ls_saver_options */
    int unwritable_rank;       /* from 1: this rank finds no folder to save in; 0: none. Weights are not copied then */
    bool evaluate;             /* after the last step */
    struct ls_progress_record *progress; /* rank 0's, NULL: none */
    void (*after_step)(int rank, int64_t step);
    int flip_rank;     /* from 1: this rank's copy gets a wrong bit ... */
    int64_t flip_step; /* ... before this step, in the first block; 0: none */
    struct ls_step_report reports[HARNESS_STEPS_MAX];
    uint64_t wire_bytes[HARNESS_RANKS_MAX]; /* that each rank sent in the steps */
    double validation_loss, bits_per_byte;
    float *weights; /* all blocks of rank 0; freed by harness_free */
    int64_t weight_count;
    enum ls_code codes[HARNESS_RANKS_MAX];
    struct ls_error errors[HARNESS_RANKS_MAX];
    int failed_ranks[HARNESS_RANKS_MAX];
    bool weights_agree; /* every rank's are rank 0's */
};

/* What the threads share. */
struct harness {
    struct run *run;
    struct ls_comm *comms[HARNESS_RANKS_MAX];
    char folder[LS_CHECKPOINT_PATH_MAX];
    struct ls_trainer_state state; /* of the save under way */
    struct ls_file_record records[HARNESS_RANKS_MAX][LS_CHECKPOINT_RANK_FILES_MAX];
    size_t record_counts[HARNESS_RANKS_MAX];
    float *weights[HARNESS_RANKS_MAX];
};

struct harness_rank {
    struct harness *harness;
    int rank;
};

static inline enum ls_code harness_copy_weights(struct ls_trainer *trainer, float **weights, int64_t *count,
                                                struct ls_error *error) {
    const struct ls_model *model = ls_trainer_model(trainer);
    *count = ls_model_parameter_count(model);
    *weights = calloc((size_t)*count, sizeof **weights); /* blocks of 2-byte elements leave zeros behind them */
    enum ls_code code = LS_OK;
    int64_t offset = 0;
    for (int block = 0; block < ls_model_block_count(model) && !code; block++) {
        code = ls_trainer_parameters(trainer, block, *weights + offset, error);
        offset += ls_model_block(model, block)->count;
    }
    return code;
}

/* Waits for every rank. */
static inline enum ls_code harness_meet(struct ls_comm *comm, struct ls_error *error) {
    uint64_t nothing = 0;
    return ls_comm_sum_u64(comm, &nothing, 1, error);
}

/* Every rank begins to write the steps done; rank 0 makes the folder. */
static inline enum ls_code harness_begin_save(struct harness *harness, int rank, struct ls_trainer *trainer,
                                              struct ls_error *error) {
    struct run *run = harness->run;
    const uint64_t step = (uint64_t)ls_trainer_steps_done(trainer);
    enum ls_code code = LS_OK;
    if (rank == 0) {
        code = ls_checkpoint_begin(run->save, step, 1, ls_trainer_save_bytes(trainer), harness->folder, error);
        harness->state = (struct ls_trainer_state){.step = step,
                                                   .attempt = 1,
                                                   .position = ls_trainer_position(trainer),
                                                   .optimizer_steps = (uint64_t)ls_trainer_optimizer_steps(trainer),
                                                   .world_size = (uint64_t)run->ranks,
                                                   .ledger_chain = "00000000000000000000000000000000"};
    }
    if (!code) code = harness_meet(harness->comms[rank], error);
    if (code) return code;
    ls_trainer_save_begin(trainer, rank + 1 == run->unwritable_rank ? "/tmp/lockstep-no-such-folder" : harness->folder);
    return LS_OK;
}

/* Every rank finishes its part; rank 0 commits. */
static inline enum ls_code harness_end_save(struct harness *harness, int rank, struct ls_trainer *trainer,
                                            struct ls_error *error) {
    struct run *run = harness->run;
    double seconds;
    const enum ls_code saved =
        ls_trainer_save_finish(trainer, harness->records[rank], &harness->record_counts[rank], &seconds, error);
    enum ls_code code = harness_meet(harness->comms[rank], NULL);
    if (!saved && !code && rank == 0 && !run->unwritable_rank) {
        struct ls_file_record files[HARNESS_RANKS_MAX * LS_CHECKPOINT_RANK_FILES_MAX];
        size_t count = 0;
        for (int other = 0; other < run->ranks; other++)
            for (size_t i = 0; i < harness->record_counts[other]; i++) files[count++] = harness->records[other][i];
        struct ls_trainer_state *state = &harness->state;
        ls_config_digest(&run->config, state->config_digest);
        snprintf(state->dataset_digest, sizeof state->dataset_digest, "%s", state->config_digest);
        code = ls_checkpoint_commit(run->save, state->step, 1, files, count, state, NULL, error);
    }
    /* Nobody begins the next save before this one is committed. */
    const enum ls_code met = harness_meet(harness->comms[rank], NULL);
    return saved ? saved : code ? code : met;
}

static inline enum ls_code harness_save(struct harness *harness, int rank, struct ls_trainer *trainer,
                                        struct ls_error *error) {
    enum ls_code code = harness_begin_save(harness, rank, trainer, error);
    return code ? code : harness_end_save(harness, rank, trainer, error);
}

/* The lowest bit of a number in the middle of the first block's parameters that this rank holds. */
static inline void harness_flip_bit(struct ls_trainer *trainer) {
    const struct ls_shard_copy copy = ls_shard_copy(ls_replica_shard(ls_trainer_replica(trainer)), 0);
    assert_int_equal(ls_stream_synchronize(ls_replica_stream(ls_trainer_replica(trainer)), NULL), LS_OK);
    ((uint8_t *)(uintptr_t)
         copy.parameters)[copy.count / 2 * ls_dtype_bytes(ls_model_dtype(ls_trainer_model(trainer)))] ^= 1;
}

/* Steps are granted in spans of 3, so that the ranks learn of them on the way. */
static inline enum ls_code harness_train(struct harness *harness, int rank, struct ls_trainer *trainer,
                                         struct ls_error *error) {
    struct run *run = harness->run;
    const int64_t last = run->start_step + run->steps;
    int64_t saved = -1;
    bool saving = false;
    enum ls_code code = LS_OK;
    while (ls_trainer_steps_done(trainer) < last && !code) {
        struct ls_trainer_orders orders = {.save_written = saving && ls_trainer_save_is_written(trainer)};
        const int64_t done = ls_trainer_steps_done(trainer);
        int64_t end = done + 1 + 3;
        if (rank == 0) orders.granted_end = end < last + 1 ? end : last + 1;
        code = ls_trainer_boundary(trainer, &orders, error);
        const bool due = run->save_every > 0 && done > run->start_step && done % run->save_every == 0 && done != saved;
        if (!code && saving && (due || orders.save_written)) {
            code = harness_end_save(harness, rank, trainer, error);
            saving = false;
        }
        if (!code && due) {
            saved = done;
            code = harness_begin_save(harness, rank, trainer, error);
            saving = !code && !run->save_waits;
            if (!code && run->save_waits) code = harness_end_save(harness, rank, trainer, error);
        }
        if (code || !ls_trainer_may_step(trainer)) continue;
        if (rank + 1 == run->flip_rank && ls_trainer_steps_done(trainer) + 1 == run->flip_step)
            harness_flip_bit(trainer);
        struct ls_step_report report;
        code = ls_trainer_step(trainer, &report, error);
        if (!code && run->after_step) run->after_step(rank, report.step);
        if (!code && rank == 0) run->reports[report.step - run->start_step - 1] = report;
    }
    return code || !saving ? code : harness_end_save(harness, rank, trainer, error);
}

static inline enum ls_code harness_run_rank(struct harness *harness, int rank, struct ls_device *device,
                                            struct ls_trainer **trainer, struct ls_corpus **corpus,
                                            struct ls_error *error) {
    struct run *run = harness->run;
    const struct ls_config *config = run->differs && rank == run->ranks - 1 ? &run->config_of_last : &run->config;
    struct ls_trainer_options options = {.config = config,
                                         .device = device,
                                         .comm = harness->comms[rank],
                                         .progress = rank == 0 ? run->progress : NULL,
                                         .start_step = run->start_step,
                                         .start_position =
                                             (uint64_t)(run->start_step * run->config.train.global_batch_size),
                                         .optimizer_steps = run->start_step - run->skipped_before,
                                         .bounce = run->bounce};
    enum ls_code code = ls_corpus_open(config, corpus, error);
    options.corpus = *corpus;
    if (!code) code = ls_corpus_end(*corpus, config, &options.total_steps, &options.end_position, error);
    options.end_step = options.total_steps;
    if (!code) code = ls_trainer_create(&options, trainer, error);
    if (!code) code = run->load ? ls_trainer_load(*trainer, run->load, error) : ls_trainer_initialize(*trainer, error);
    if (!code) code = harness_train(harness, rank, *trainer, error);
    run->wire_bytes[rank] = ls_comm_wire_bytes(harness->comms[rank]);
    double loss = 0, bits = 0;
    if (!code && run->evaluate) code = ls_trainer_evaluate(*trainer, &loss, &bits, error);
    const bool save_at_end = run->save && !(run->save_every && run->unwritable_rank);
    if (!code && save_at_end) code = harness_save(harness, rank, *trainer, error);
    int64_t count = 0;
    if (!code && !run->unwritable_rank) code = harness_copy_weights(*trainer, &harness->weights[rank], &count, error);
    if (rank == 0) {
        run->optimizer_steps = *trainer ? ls_trainer_optimizer_steps(*trainer) : 0;
        run->validation_loss = loss;
        run->bits_per_byte = bits;
        run->weight_count = count;
    }
    return code;
}

static inline void *harness_thread(void *argument) {
    struct harness_rank *own = argument;
    struct run *run = own->harness->run;
    struct ls_device *device = NULL;
    struct ls_trainer *trainer = NULL;
    struct ls_corpus *corpus = NULL;
    struct ls_error *error = &run->errors[own->rank];
    const int others = run->threads ? run->threads : 1, last = run->threads_of_last ? run->threads_of_last : others;
    run->codes[own->rank] =
        ls_device_create_cpu(own->rank == run->ranks - 1 ? last : others, run->order, &device, error);
    if (!run->codes[own->rank])
        run->codes[own->rank] = harness_run_rank(own->harness, own->rank, device, &trainer, &corpus, error);
    run->failed_ranks[own->rank] = trainer ? ls_trainer_failed_rank(trainer) : -1;
    ls_trainer_destroy(trainer);
    ls_corpus_close(corpus);
    ls_device_destroy(device);
    return NULL;
}

/* Runs it; the caller looks at codes[]. */
static inline void harness_run(struct run *run) {
    struct harness *harness = calloc(1, sizeof *harness);
    struct harness_rank ranks[HARNESS_RANKS_MAX];
    pthread_t threads[HARNESS_RANKS_MAX];
    harness->run = run;
    assert_int_equal(ls_comm_create_threads(run->ranks, harness->comms, NULL), LS_OK);
    for (int rank = 0; rank < run->ranks; rank++) {
        ranks[rank] = (struct harness_rank){harness, rank};
        assert_int_equal(pthread_create(&threads[rank], NULL, harness_thread, &ranks[rank]), 0);
    }
    for (int rank = 0; rank < run->ranks; rank++) pthread_join(threads[rank], NULL);
    run->weights = harness->weights[0];
    run->weights_agree = true;
    for (int rank = 1; rank < run->ranks; rank++) {
        if (!harness->weights[0] || !harness->weights[rank] ||
            memcmp(harness->weights[0], harness->weights[rank], (size_t)run->weight_count * sizeof(float)) != 0)
            run->weights_agree = false;
        free(harness->weights[rank]);
    }
    for (int rank = 0; rank < run->ranks; rank++) ls_comm_destroy(harness->comms[rank]);
    free(harness);
}

/* The same, and it has to succeed. */
static inline void harness_run_well(struct run *run) {
    harness_run(run);
    for (int rank = 0; rank < run->ranks; rank++)
        if (run->codes[rank]) fail_msg("rank %d: %s", rank, run->errors[rank].text);
    assert_true(run->weights_agree);
}

static inline void harness_free(struct run *run) {
    free(run->weights);
    run->weights = NULL;
}

/* A configuration from YAML, its vocabulary that of the data. */
static inline struct ls_config harness_config(const char *yaml) {
    struct ls_config config;
    struct ls_corpus *corpus;
    struct ls_error error = {0};
    if (ls_config_parse(yaml, strlen(yaml), "test", NULL, 0, &config, &error)) fail_msg("%s", error.text);
    if (ls_corpus_open(&config, &corpus, &error)) fail_msg("%s", error.text);
    if (ls_corpus_resolve_vocab(corpus, &config, &error)) fail_msg("%s", error.text);
    ls_corpus_close(corpus);
    return config;
}

#endif
