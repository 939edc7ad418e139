/* Reading a run directory into its ledger. */
#define _GNU_SOURCE
#include "coordinator/run_ledger.h"

#include "common/checkpoint_folder.h"
#include "coordinator/journal.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIGEST_DIGITS = 32 };

/* ---- the journal ---- */

struct journal_context {
    struct ls_journal *journal;
    struct ls_run_ledger *run;
};

static enum ls_code take_shape(void *run_ledger, const struct ls_journal_shape *shape, struct ls_error *error) {
    struct ls_run_ledger *run = run_ledger;
    struct ls_journal_shape *grown = reallocarray(run->shapes, (size_t)run->shapes_count + 1, sizeof *grown);
    if (!grown) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for the shapes of the run");
    run->shapes = grown;
    run->shapes[run->shapes_count++] = *shape;
    run->total_steps = shape->steps;
    return LS_OK;
}

static enum ls_code take_record(void *ledger, const struct ls_core_record *record, struct ls_error *error) {
    return ls_ledger_add_record(ledger, record, error);
}

static enum ls_code take_inherited(void *ledger, const struct ls_core_record *record, struct ls_error *error) {
    return record->kind == LS_RECORD_QUARANTINE ? ls_ledger_inherit(ledger, record, error) : LS_OK;
}

static enum ls_code take_attempt(void *context, const struct ls_journal_attempt *attempt, struct ls_error *error) {
    const struct journal_context *into = context;
    struct ls_ledger_attempt facts = {.attempt = attempt->attempt,
                                      .world_size = attempt->world_size,
                                      .start_step = attempt->start_step,
                                      .start_position = attempt->start_position,
                                      .data_generation = attempt->data_generation,
                                      .start_chain = attempt->start_chain};
    memcpy(facts.parent_manifest, attempt->parent_manifest, sizeof facts.parent_manifest);
    for (int i = 0; i < into->run->shapes_count && into->run->shapes[i].first_attempt <= attempt->attempt; i++)
        facts.options = (struct ls_ledger_options){.global_batch = into->run->shapes[i].global_batch,
                                                   .steps = into->run->shapes[i].steps,
                                                   .end_position = into->run->shapes[i].end_position};
    into->run->newest = attempt->data_generation;
    enum ls_code code = ls_ledger_add_attempt(into->run->ledger, &facts, error);
    if (code != LS_OK) return code;
    return ls_journal_read_records(into->journal, attempt->attempt, take_record, into->run->ledger, error);
}

/* ---- the checkpoints ---- */

static enum ls_code add_checkpoint(struct ls_run_ledger *run, uint64_t step, struct ls_error *error) {
    struct ls_checkpoint_found *found = calloc(1, sizeof *found);
    char path[LS_CHECKPOINT_PATH_MAX], name[LS_CHECKPOINT_NAME_MAX];
    struct ls_error damage;
    if (!found) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory to read checkpoints");
    ls_checkpoint_name(step, name);
    enum ls_code code = ls_checkpoint_path(run->directory.path, step, path, error);
    if (code != LS_OK) {
        free(found);
        return code;
    }
    enum ls_code opened = ls_checkpoint_open(path, found, &damage);
    if (opened == LS_OK && found->state.step != step)
        opened = ls_fail(&damage, LS_CHECKPOINT, LS_SCOPE_CALL, "its trainer.json is of another step");
    if (opened != LS_OK) {
        fprintf(stderr, "lockstep: %s is damaged and proves nothing: %s\n", name, damage.text);
        free(found);
        return LS_OK;
    }
    const struct ls_trainer_state *state = &found->state;
    struct ls_ledger_checkpoint checkpoint = {
        .step = (int64_t)state->step, .attempt = (int64_t)state->attempt, .position = (int64_t)state->position};
    ls_digest_parse(state->ledger_chain, &checkpoint.chain);
    memcpy(checkpoint.parent_manifest, state->parent_manifest, sizeof checkpoint.parent_manifest);
    memcpy(checkpoint.manifest_hash, found->manifest_hash, sizeof checkpoint.manifest_hash);
    const struct ls_run_ledger_generation *generation = ls_run_ledger_generation(run, (int64_t)state->data_generation);
    if (generation && generation->corpus && state->train_digest[0] &&
        strcmp(state->train_digest, generation->corpus->train_digest) != 0)
        code = ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                       "the checkpoint of step %llu says of generation %lld of the data that its digest was %s, the "
                       "datasets give %s. Put them back.",
                       (unsigned long long)step, (long long)generation->number, state->train_digest,
                       generation->corpus->train_digest);
    if (code == LS_OK) code = ls_ledger_add_checkpoint(run->ledger, &checkpoint, error);
    free(found);
    return code;
}

static enum ls_code add_checkpoints(struct ls_run_ledger *run, struct ls_error *error) {
    uint64_t *steps;
    size_t count;
    enum ls_code code = ls_checkpoint_list(run->directory.path, &steps, &count, error);
    if (code != LS_OK) return code;
    for (size_t i = 0; i < count && code == LS_OK; i++) code = add_checkpoint(run, steps[i], error);
    free(steps);
    return code;
}

/* ---- the data ---- */

const struct ls_run_ledger_generation *ls_run_ledger_generation(const struct ls_run_ledger *run, int64_t number) {
    for (int i = 0; i < run->generations_count; i++)
        if (run->generations[i].number == number) return &run->generations[i];
    return NULL;
}

/* What the journal lists of data.train: digest, samples, path. */
static enum ls_code read_sources(struct ls_run_ledger_generation *generation, const char *text,
                                 struct ls_error *error) {
    int count = 0;
    for (; *text && count < generation->config->data.train_count; count++) {
        const size_t length = strcspn(text, "\n");
        if (length < DIGEST_DIGITS + 2) break;
        memcpy(generation->digests[count], text, DIGEST_DIGITS);
        generation->samples[count] = strtoull(text + DIGEST_DIGITS + 1, NULL, 10);
        text += length + (text[length] == '\n');
    }
    if (count == generation->config->data.train_count && !*text) return LS_OK;
    return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                   "the journal's list of the datasets of generation %lld of the data does not fit its configuration "
                   "(damaged?). Put a copy of it back.",
                   (long long)generation->number);
}

static enum ls_code make_order(struct ls_run_ledger_generation *generation, struct ls_error *error) {
    const struct ls_config *config = generation->config;
    uint64_t weights[LS_CONFIG_SOURCES_MAX] = {0};
    for (int i = 0; i < config->data.train_count; i++) weights[i] = (uint64_t)config->data.train[i].weight;
    return ls_order_create(config->data.seed, generation->samples, weights[0] ? weights : NULL,
                           config->data.train_count, &generation->order, error);
}

/* Opens the datasets as they are now; what is not as it was is noted in `gone`. */
static void open_corpus(struct ls_run_ledger_generation *generation) {
    struct ls_corpus *corpus;
    char digest[33];
    /* Whether the validation datasets are still there matters to no step. */
    generation->config->data.validation_count = 0;
    if (ls_corpus_open(generation->config, &corpus, &generation->gone) != LS_OK) return;
    for (int i = 0; i < corpus->train_count; i++) {
        ls_dataset_content_digest(corpus->train[i], digest);
        if (strcmp(digest, generation->digests[i]) == 0) continue;
        ls_fail(&generation->gone, LS_DATA, LS_SCOPE_JOB,
                "the dataset %s has changed since the run began: its digest was %s and is %s. Put back what was "
                "trained on.",
                generation->config->data.train[i].path, generation->digests[i], digest);
        ls_corpus_close(corpus);
        return;
    }
    generation->corpus = corpus;
}

static struct ls_run_ledger_generation *add_generation(struct ls_run_ledger *run, int64_t number,
                                                       struct ls_error *error) {
    struct ls_run_ledger_generation *grown =
        reallocarray(run->generations, (size_t)run->generations_count + 1, sizeof *grown);
    struct ls_config *config = calloc(1, sizeof *config);
    if (grown) run->generations = grown;
    if (!grown || !config) {
        free(config);
        ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for the generations of the data");
        return NULL;
    }
    struct ls_run_ledger_generation *added = &run->generations[run->generations_count++];
    *added = (struct ls_run_ledger_generation){.number = number, .config = config};
    return added;
}

static enum ls_code take_generation(void *run_ledger, const struct ls_journal_data_generation *row,
                                    struct ls_error *error) {
    struct ls_run_ledger *run = run_ledger;
    struct ls_run_ledger_generation *generation = add_generation(run, row->number, error);
    if (!generation) return LS_MEMORY;
    enum ls_code code =
        ls_config_parse(row->config, strlen(row->config), "the journal", NULL, 0, generation->config, error);
    if (code == LS_OK) code = read_sources(generation, row->sources, error);
    if (code == LS_OK) code = make_order(generation, error);
    if (code == LS_OK) open_corpus(generation);
    return code;
}

/* A journal that keeps no generations: RUN/config.yaml has the data. */
static enum ls_code take_configured(struct ls_run_ledger *run, struct ls_error *error) {
    char path[PATH_MAX];
    struct ls_run_ledger_generation *generation = add_generation(run, 1, error);
    if (!generation) return LS_MEMORY;
    snprintf(path, sizeof path, "%s/config.yaml", run->directory.path);
    enum ls_code code = ls_config_load(path, NULL, 0, generation->config, error);
    if (code == LS_OK) code = ls_corpus_open(generation->config, &generation->corpus, error);
    for (int i = 0; code == LS_OK && i < generation->corpus->train_count; i++)
        generation->samples[i] = (uint64_t)ls_dataset_samples(generation->corpus->train[i]);
    return code == LS_OK ? make_order(generation, error) : code;
}

static enum ls_code make_room(struct ls_run_ledger *run, struct ls_error *error) {
    int64_t longest = 0;
    for (int i = 0; i < run->generations_count; i++)
        if (run->generations[i].config->data.sequence_length > longest)
            longest = run->generations[i].config->data.sequence_length;
    run->tokens = calloc((size_t)longest, sizeof *run->tokens);
    return run->tokens ? LS_OK : ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for a sequence");
}

/* What the configuration says of the run's end, where the journal has no shape. */
static enum ls_code read_config(struct ls_run_ledger *run, struct ls_ledger_options *options, struct ls_error *error) {
    const struct ls_run_ledger_generation *newest = &run->generations[run->generations_count - 1];
    uint64_t end = UINT64_MAX;
    int64_t steps = newest->config->train.steps;
    enum ls_code code = LS_OK;
    if (newest->corpus) code = ls_corpus_end(newest->corpus, newest->config, &steps, &end, error);
    run->total_steps = steps;
    run->end_position = end;
    options->global_batch = newest->config->train.global_batch_size;
    options->steps = steps;
    options->end_position = end > INT64_MAX ? INT64_MAX : (int64_t)end;
    return code;
}

/* ---- all together ---- */

static enum ls_code read_journal(struct ls_run_ledger *run, struct ls_journal *journal, struct ls_error *error) {
    struct journal_context context = {journal, run};
    struct ls_ledger_options options = {.global_batch = 0};
    enum ls_code code = ls_journal_read_data_generations(journal, take_generation, run, error);
    if (code == LS_OK && run->generations_count == 0) code = take_configured(run, error);
    if (code == LS_OK) code = make_room(run, error);
    if (code == LS_OK) code = read_config(run, &options, error);
    if (code == LS_OK) code = ls_run_origin_read(journal, &run->origin, error);
    options.origin = (struct ls_ledger_origin){.step = run->origin.step,
                                               .position = run->origin.position,
                                               .data_generation = run->origin.data_generation,
                                               .chain = run->origin.chain};
    if (code == LS_OK) code = ls_ledger_create(&options, &run->ledger, error);
    if (code == LS_OK) code = ls_journal_read_records(journal, 0, take_inherited, run->ledger, error);
    if (code == LS_OK) code = ls_journal_read_shapes(journal, take_shape, run, error);
    if (code == LS_OK) code = ls_journal_read_attempts(journal, take_attempt, &context, error);
    /* With the journal open no coordinator can begin and change them. */
    return code == LS_OK ? add_checkpoints(run, error) : code;
}

enum ls_code ls_run_ledger_open(const char *path, struct ls_run_ledger *run, struct ls_error *error) {
    memset(run, 0, sizeof *run);
    enum ls_code code = ls_run_directory_find(path, &run->directory, error);
    if (code == LS_OK && ls_run_directory_is_locked(&run->directory))
        code = ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                       "the run %s is going on, and its ledger is still being written. Wait for its end, or end it "
                       "with 'lockstep stop %s'.",
                       run->directory.path, run->directory.path);
    if (code != LS_OK) return code;
    char file[PATH_MAX];
    struct ls_journal *journal;
    snprintf(file, sizeof file, "%s/journal.db", run->directory.path);
    code = ls_journal_open_existing(file, &journal, error);
    if (code != LS_OK) return code;
    code = read_journal(run, journal, error);
    ls_journal_close(journal);
    const struct ls_run_ledger_generation *newest = ls_run_ledger_generation(run, run->newest);
    if (code == LS_OK && newest && !newest->corpus) {
        *error = newest->gone;
        return LS_DATA;
    }
    return code == LS_OK ? ls_ledger_prove(run->ledger, &run->summary, error) : code;
}

void ls_run_ledger_close(struct ls_run_ledger *run) {
    ls_ledger_destroy(run->ledger);
    for (int i = 0; i < run->generations_count; i++) {
        ls_corpus_close(run->generations[i].corpus);
        ls_order_destroy(run->generations[i].order);
        free(run->generations[i].config);
    }
    free(run->generations);
    free(run->shapes);
    free(run->tokens);
    memset(run, 0, sizeof *run);
}

enum ls_code ls_run_ledger_read(const struct ls_run_ledger_reader *reader, uint64_t position, struct ls_error *error) {
    const struct ls_corpus *corpus = reader->generation->corpus;
    const struct ls_draw draw = ls_order_at(corpus->order, position);
    const int64_t T = reader->generation->config->data.sequence_length;
    uint32_t shard;
    uint64_t index;
    ls_dataset_locate(corpus->train[draw.source], (int64_t)draw.sample, &shard, &index);
    return ls_dataset_read_tokens(corpus->train[draw.source], shard, (int64_t)index * T, T, reader->run->tokens, error);
}

enum ls_code ls_run_ledger_sample(void *context, uint64_t position, struct ls_digest *digest, struct ls_error *error) {
    const struct ls_run_ledger_reader *reader = context;
    enum ls_code code = ls_run_ledger_read(reader, position, error);
    if (code != LS_OK) return code;
    const struct ls_corpus *corpus = reader->generation->corpus;
    const struct ls_draw draw = ls_order_at(corpus->order, position);
    uint32_t shard;
    uint64_t index;
    ls_dataset_locate(corpus->train[draw.source], (int64_t)draw.sample, &shard, &index);
    *digest = ls_digest_sample(draw.source, shard, index, position, reader->run->tokens,
                               reader->generation->config->data.sequence_length);
    return LS_OK;
}
