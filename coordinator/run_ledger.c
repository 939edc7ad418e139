/* Reading a run directory into its ledger. */
#define _GNU_SOURCE
#include "coordinator/run_ledger.h"

#include "common/checkpoint_folder.h"
#include "coordinator/journal.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DATASETS_BYTES_MAX = 1 << 18 };

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

static enum ls_code take_attempt(void *context, const struct ls_journal_attempt *attempt, struct ls_error *error) {
    const struct journal_context *into = context;
    struct ls_ledger_attempt facts = {.attempt = attempt->attempt,
                                      .world_size = attempt->world_size,
                                      .start_step = attempt->start_step,
                                      .start_position = attempt->start_position,
                                      .start_chain = attempt->start_chain};
    memcpy(facts.parent_manifest, attempt->parent_manifest, sizeof facts.parent_manifest);
    for (int i = 0; i < into->run->shapes_count && into->run->shapes[i].first_attempt <= attempt->attempt; i++)
        facts.options = (struct ls_ledger_options){.global_batch = into->run->shapes[i].global_batch,
                                                   .steps = into->run->shapes[i].steps,
                                                   .end_position = into->run->shapes[i].end_position};
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
    if (strcmp(state->dataset_digest, run->corpus->digest) != 0)
        code = ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                       "the datasets have changed since step %llu was saved: their digest was %s and is %s. Put them "
                       "back.",
                       (unsigned long long)step, state->dataset_digest, run->corpus->digest);
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

/* Names the first dataset that is not the one the journal knows. `then` and `now` hold a line for each dataset. */
static enum ls_code compare_datasets(const char *then, const char *now, struct ls_error *error) {
    while (*then || *now) {
        size_t before = strcspn(then, "\n"), after = strcspn(now, "\n");
        if (before < 33 || after < 33)
            return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                           "the configuration of the run names another number of datasets than it was trained on");
        if (memcmp(then, now, 32) != 0)
            return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                           "the dataset %.*s has changed since the run began: its digest was %.32s and is %.32s. Put "
                           "back what was trained on.",
                           (int)(after - 33), now + 33, then, now);
        then += before + (then[before] == '\n');
        now += after + (now[after] == '\n');
    }
    return LS_OK;
}

static enum ls_code check_datasets(const struct ls_run_ledger *run, struct ls_journal *journal,
                                   struct ls_error *error) {
    char *then = malloc(DATASETS_BYTES_MAX), *now = NULL;
    if (!then) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for the list of datasets");
    enum ls_code code = ls_journal_read_meta(journal, "datasets", then, DATASETS_BYTES_MAX, error);
    if (code == LS_OK) code = ls_corpus_list(run->corpus, run->config, &now, error);
    if (code == LS_OK && *then) code = compare_datasets(then, now, error);
    free(then);
    free(now);
    return code;
}

static enum ls_code open_data(struct ls_run_ledger *run, struct ls_error *error) {
    char path[PATH_MAX];
    run->config = calloc(1, sizeof *run->config);
    if (!run->config) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for the configuration");
    snprintf(path, sizeof path, "%s/config.yaml", run->directory.path);
    enum ls_code code = ls_config_load(path, NULL, 0, run->config, error);
    if (code == LS_OK) code = ls_corpus_open(run->config, &run->corpus, error);
    if (code == LS_OK) code = ls_corpus_end(run->corpus, run->config, &run->total_steps, &run->end_position, error);
    if (code != LS_OK) return code;
    run->tokens = calloc((size_t)run->config->data.sequence_length, sizeof *run->tokens);
    return run->tokens ? LS_OK : ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for a sequence");
}

/* ---- all together ---- */

static enum ls_code read_journal(struct ls_run_ledger *run, struct ls_error *error) {
    char path[PATH_MAX];
    struct ls_journal *journal;
    snprintf(path, sizeof path, "%s/journal.db", run->directory.path);
    enum ls_code code = ls_journal_open_existing(path, &journal, error);
    if (code != LS_OK) return code;
    struct journal_context context = {journal, run};
    code = check_datasets(run, journal, error);
    if (code == LS_OK) code = ls_journal_read_shapes(journal, take_shape, run, error);
    if (code == LS_OK) code = ls_journal_read_attempts(journal, take_attempt, &context, error);
    /* With the journal open no coordinator can begin and change them. */
    if (code == LS_OK) code = add_checkpoints(run, error);
    ls_journal_close(journal);
    return code;
}

enum ls_code ls_run_ledger_open(const char *path, struct ls_run_ledger *run, struct ls_error *error) {
    memset(run, 0, sizeof *run);
    enum ls_code code = ls_run_directory_find(path, &run->directory, error);
    if (code == LS_OK && ls_run_directory_is_locked(&run->directory))
        code = ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                       "the run %s is going on, and its ledger is still being written. Wait for its end, or end it "
                       "with 'lockstep stop %s'.",
                       run->directory.path, run->directory.path);
    if (code == LS_OK) code = open_data(run, error);
    if (code != LS_OK) return code;
    struct ls_ledger_options options = {.global_batch = run->config->train.global_batch_size,
                                        .steps = run->total_steps,
                                        .end_position =
                                            run->end_position > INT64_MAX ? INT64_MAX : (int64_t)run->end_position};
    code = ls_ledger_create(&options, &run->ledger, error);
    if (code == LS_OK) code = read_journal(run, error);
    if (code == LS_OK) code = ls_ledger_prove(run->ledger, &run->summary, error);
    return code;
}

void ls_run_ledger_close(struct ls_run_ledger *run) {
    ls_ledger_destroy(run->ledger);
    ls_corpus_close(run->corpus);
    free(run->config);
    free(run->shapes);
    free(run->tokens);
    memset(run, 0, sizeof *run);
}

enum ls_code ls_run_ledger_read(struct ls_run_ledger *run, uint64_t position, struct ls_error *error) {
    const struct ls_draw draw = ls_order_at(run->corpus->order, position);
    const int64_t T = run->config->data.sequence_length;
    uint32_t shard;
    uint64_t index;
    ls_dataset_locate(run->corpus->train[draw.source], (int64_t)draw.sample, &shard, &index);
    return ls_dataset_read_tokens(run->corpus->train[draw.source], shard, (int64_t)index * T, T, run->tokens, error);
}

enum ls_code ls_run_ledger_sample(void *context, uint64_t position, struct ls_digest *digest, struct ls_error *error) {
    struct ls_run_ledger *run = context;
    enum ls_code code = ls_run_ledger_read(run, position, error);
    if (code != LS_OK) return code;
    const struct ls_draw draw = ls_order_at(run->corpus->order, position);
    uint32_t shard;
    uint64_t index;
    ls_dataset_locate(run->corpus->train[draw.source], (int64_t)draw.sample, &shard, &index);
    *digest = ls_digest_sample(draw.source, shard, index, position, run->tokens, run->config->data.sequence_length);
    return LS_OK;
}
