/* From a command line to a run that can begin. */
#define _GNU_SOURCE
#include "coordinator/run_setup.h"

#include "common/checkpoint_folder.h"
#include "common/corpus.h"
#include "common/files.h"
#include "common/leftovers.h"
#include "coordinator/prometheus.h"
#include "worker/advice.h"
#include "worker/gpus.h"
#include "worker/model/model.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SPAN_STEPS =
        256, /* granted ahead: the next span comes half of it before the end, 0.1 s with steps of a millisecond */
    CAUSE_GRACE_MS = 1000,
    BACKOFF_MS = 1000, /* before the second restart without progress; then twice as long each time */
    BACKOFF_MAX_MS = 60000,
    /* Steps in a row that make no update, with fault.nonfinite: skip. In fp16 the loss scale's search is among them. */
    SKIPS_MAX = 10,
    SKIPS_MAX_FP16 = 32,
    CLEAR_TIMEOUT_MS = 30000, /* for killed workers to be gone */
    HOST_LOSSES_MAX = 3,      /* a host that lost ranks so often is left out where others can take its ranks */
    /* Weights, master weights and two moments, in fp32. */
    CHECKPOINT_BYTES_PER_PARAMETER = 16
};

/* ---- data and shape ---- */

static enum ls_code open_data(struct ls_run *run, struct ls_error *error) {
    struct ls_corpus *corpus;
    enum ls_code code = ls_corpus_open(run->config, &corpus, error);
    if (code != LS_OK) return code;
    code = ls_corpus_resolve_vocab(corpus, run->config, error);
    if (code == LS_OK) code = ls_corpus_end(corpus, run->config, &run->total_steps, &run->end_position, error);
    memcpy(run->core.dataset_digest, corpus->digest, sizeof run->core.dataset_digest);
    if (code == LS_OK) code = ls_run_data_read(corpus, run->config, &run->data, error);
    ls_corpus_close(corpus);
    return code;
}

static enum ls_code check_space(const struct ls_run *run, struct ls_error *error) {
    struct ls_model *model;
    enum ls_code code = ls_model_create(run->config, &model, error);
    if (code != LS_OK) return code;
    int64_t bytes = ls_model_parameter_count(model) * CHECKPOINT_BYTES_PER_PARAMETER;
    ls_model_destroy(model);
    return ls_checkpoint_check_space(run->directory.path, bytes, error);
}

/* Only memory.limit: what the hosts of the workers have is known to them. */
static enum ls_code check_memory(const struct ls_config *config, int64_t ranks, const struct ls_allocation *allocation,
                                 struct ls_error *error) {
    int64_t local = 0;
    for (int i = 0; i < allocation->hosts.count; i++)
        if (allocation->hosts.list[i].slots > local) local = allocation->hosts.list[i].slots;
    if (local == 0 || local > ranks) local = ranks;
    if (allocation->ranks_per_node && local > allocation->ranks_per_node) local = allocation->ranks_per_node;
    if (config->memory.limit == 0) return LS_OK;
    const struct ls_advice_gpu gpu = {.name = "", .bytes = 0};
    return ls_advice_check(config, ranks, local, (int)config->launcher.threads_per_rank,
                           ls_gpus_expected(config) ? &gpu : NULL, NULL, error);
}

/* ---- where the attempt starts ---- */

/* The newest step that this very attempt has committed, or its start: after a coordinator's death. */
static int64_t newest_committed(const struct ls_run *run) {
    char path[PATH_MAX];
    int64_t newest = run->attempt.start_step;
    snprintf(path, sizeof path, "%s/checkpoints", run->directory.path);
    DIR *folder = opendir(path);
    if (!folder) return newest;
    for (struct dirent *entry; (entry = readdir(folder));) {
        long long step;
        char name[LS_CHECKPOINT_NAME_MAX];
        if (sscanf(entry->d_name, "step-%lld", &step) != 1 || step <= newest) continue;
        ls_checkpoint_name((uint64_t)step, name);
        if (strcmp(name, entry->d_name) != 0) continue;
        struct ls_manifest *manifest;
        char *json;
        size_t count;
        snprintf(path, sizeof path, "%s/checkpoints/%s/manifest.json", run->directory.path, name);
        if (ls_file_read(path, LS_MANIFEST_BYTES_MAX, &json, &count, LS_CHECKPOINT, NULL) != LS_OK) continue;
        if (ls_manifest_parse(json, count, &manifest, NULL) == LS_OK) {
            if ((int64_t)manifest->attempt == run->attempt.attempt) newest = step;
            ls_manifest_destroy(manifest);
        }
        free(json);
    }
    closedir(folder);
    return newest;
}

/* Tells the core which checkpoints are there, so that it knows when there are more than are to be kept. */
static enum ls_code list_checkpoints(struct ls_run *run, bool restarted, struct ls_error *error) {
    struct ls_core_options *core = &run->core;
    uint64_t *steps;
    size_t count, first = 0;
    enum ls_code code = ls_checkpoint_list(run->directory.path, &steps, &count, error);
    if (code != LS_OK) return code;
    /* Those above the start belong to attempts that were given up, or are this one's own. */
    while (count && (int64_t)steps[count - 1] > run->attempt.start_step) count--;
    if (count > LS_CORE_CHECKPOINTS_MAX - 1) first = count - (LS_CORE_CHECKPOINTS_MAX - 1);
    for (size_t i = first; i < count; i++) core->checkpoints[core->checkpoints_count++] = (int64_t)steps[i];
    free(steps);
    int64_t committed = restarted ? newest_committed(run) : 0;
    if (committed > run->attempt.start_step) core->checkpoints[core->checkpoints_count++] = committed;
    return LS_OK;
}

/* How the newest attempt ended. */
struct last_words {
    int64_t below_step; /* it is not to be started again from this step on; INT64_MAX: nothing was said */
    int64_t step;       /* the last one in the journal */
    bool ended;         /* there is a record of the end */
    bool done;          /* and it says that nothing is left to do */
};

static enum ls_code note_last_words(void *context, const struct ls_core_record *record, struct ls_error *error) {
    struct last_words *last = context;
    (void)error;
    if (record->kind == LS_RECORD_FAULT && record->end.below_step) last->below_step = record->end.below_step;
    if (record->kind == LS_RECORD_STEP) last->step = record->step.step;
    last->ended = record->kind == LS_RECORD_END;
    last->done = last->ended && record->end.code == LS_OK;
    return LS_OK;
}

/* ---- what the configuration says of every step ---- */

static enum ls_code note_shape(void *run, const struct ls_journal_shape *shape, struct ls_error *error) {
    (void)error;
    ((struct ls_run *)run)->shape = *shape;
    return LS_OK;
}

/* A run without a shape gets its first; one whose numbers change, or whose data begin anew, another one. The last step
 * of a run by epochs follows from where the new batch begins. What the shape says of the end holds until the next one.
 */
static enum ls_code settle_shape(struct ls_run *run, struct ls_error *error) {
    struct ls_journal_shape shape = {.first_attempt = run->attempt.attempt,
                                     .global_batch = run->config->train.global_batch_size,
                                     .steps = run->total_steps,
                                     .end_position = INT64_MAX};
    const bool begins = run->generation.begins && run->generation.before;
    if (run->shape.first_attempt && !begins && !*run->changed &&
        strcmp(run->shape.config_digest, run->core.config_digest) == 0) {
        run->total_steps = run->shape.steps;
        return LS_OK;
    }
    if (run->end_position != UINT64_MAX) {
        shape.end_position = (int64_t)run->end_position;
        const int64_t left = shape.end_position - run->attempt.start_position;
        shape.steps = run->attempt.start_step + (left + shape.global_batch - 1) / shape.global_batch;
    }
    run->total_steps = shape.steps;
    memcpy(shape.config_digest, run->core.config_digest, sizeof shape.config_digest);
    memcpy(shape.accepted, run->changed, sizeof shape.accepted);
    run->shape = shape;
    return ls_journal_write_shape(run->journal, &shape, error);
}

/* Which generation of the data the attempt is of, what the configuration says of its steps, and its row. */
static enum ls_code begin_on_data(struct ls_run *run, const struct ls_run_options *options,
                                  const struct ls_journal_attempt *before, struct ls_error *error) {
    const struct ls_run_generation_wish wish = {.journal = run->journal,
                                                .before = before,
                                                .start = &run->start,
                                                .data = &run->data,
                                                .config = run->config,
                                                .yaml = run->yaml,
                                                .keys_changed = run->data_changed,
                                                .accepted = options->accepted,
                                                .accepted_count = options->accepted_count,
                                                .run = run->directory.path};
    enum ls_code code = ls_run_generation_settle(&wish, &run->attempt, &run->generation, error);
    if (code != LS_OK) return code;
    const size_t used = strlen(run->changed);
    if (*run->generation.differences)
        snprintf(run->changed + used, sizeof run->changed - used, "%s%s", used ? "; " : "",
                 run->generation.differences);
    code = settle_shape(run, error);
    if (code != LS_OK) return code;
    run->complete = run->end_position == UINT64_MAX ? run->attempt.start_step >= run->total_steps
                                                    : (uint64_t)run->attempt.start_position >= run->end_position;
    if (run->complete) return LS_OK;
    code = ls_run_directory_keep_config(&run->directory, run->config, error);
    if (code == LS_OK) code = ls_run_generation_write(&wish, &run->generation, error);
    return code == LS_OK ? ls_journal_begin_attempt(run->journal, &run->attempt, error) : code;
}

void ls_run_tell_complete(const struct ls_run *run, char *text, size_t size) {
    const long long step = (long long)run->attempt.start_step;
    const char *nothing = "nothing is left to do";
    if (run->end_position == UINT64_MAX && step > run->total_steps)
        snprintf(text, size, "complete: step %lld is saved, train.steps is %lld: %s", step, (long long)run->total_steps,
                 nothing);
    else if (run->end_position < (uint64_t)run->attempt.start_position)
        snprintf(text, size,
                 "complete: step %lld is saved with %lld sequences used, train.epochs: %lld ends at %llu: %s", step,
                 (long long)run->attempt.start_position, (long long)run->config->train.epochs,
                 (unsigned long long)run->end_position, nothing);
    else
        snprintf(text, size, "complete: step %lld of %lld is saved, %s", step, (long long)run->total_steps, nothing);
}

/* The attempt that made the last save was killed before it could say so, or was told to end at once. */
static enum ls_code end_last(const struct ls_run *run, int64_t attempt, struct ls_error *error) {
    char text[LS_CORE_TEXT_BYTES];
    ls_run_tell_complete(run, text, sizeof text);
    return ls_journal_complete(run->journal, attempt, run->attempt.start_step, text, error);
}

/* A new attempt, from the newest good checkpoint or from step 0. */
static enum ls_code begin_attempt(struct ls_run *run, const struct ls_run_options *options, struct ls_error *error) {
    struct ls_journal_attempt before;
    struct ls_run_start_wish wish = {.run_dir = run->directory.path,
                                     .below_step = INT64_MAX,
                                     .config_digest = run->core.config_digest,
                                     .best = run->config->checkpoint.keep_best > 0};
    enum ls_code code = ls_journal_last_attempt(run->journal, &before, error);
    struct last_words last = {.below_step = INT64_MAX, .step = before.start_step};
    if (code == LS_OK) code = ls_journal_read_records(run->journal, before.attempt, note_last_words, &last, error);
    wish.below_step = last.below_step;
    if (before.attempt && !last.ended) {
        run->unheard_attempt = before.attempt;
        run->unheard_step = last.step;
    }
    wish.attempt = before.attempt + 1;
    /* Another run that was here before, and is gone with its folder, may have left what this one's will be called. */
    ls_leftovers_remove_memory(run->directory.run_id, INT64_MAX);
    if (code == LS_OK) code = ls_run_find_start(&wish, &run->start, error);
    if (code != LS_OK) return code;
    run->attempt = run->start.attempt;
    run->attempt.attempt = wish.attempt;
    run->attempt.world_size = run->ranks;
    code = begin_on_data(run, options, &before, error);
    return code == LS_OK && run->complete && before.attempt && !last.done ? end_last(run, before.attempt, error) : code;
}

static enum ls_code begin(struct ls_run *run, const struct ls_run_options *options, struct ls_error *error) {
    enum ls_code code = ls_journal_read_shapes(run->journal, note_shape, run, error);
    if (code != LS_OK) return code;
    if (options->restarted) {
        if (run->shape.first_attempt) run->total_steps = run->shape.steps;
        code = ls_journal_last_attempt(run->journal, &run->attempt, error);
        if (code == LS_OK && run->attempt.attempt == 0)
            code = ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "the journal of %s has no attempt to go on with",
                           run->directory.path);
        if (code == LS_OK)
            ls_run_mend_links(run->directory.path, run->attempt.attempt, run->config->checkpoint.keep_best > 0);
    } else {
        code = begin_attempt(run, options, error);
        if (code == LS_OK && run->complete)
            ls_run_mend_complete(run->directory.path, run->attempt.attempt, run->config, run->attempt.start_step);
    }
    if (code == LS_OK && !run->complete)
        code = ls_journal_begin_generation(run->journal, run->attempt.attempt, &run->core.generation, error);
    if (code == LS_OK && !run->complete) code = ls_run_directory_sign(&run->directory, run->core.generation, "", error);
    return code;
}

/* ---- the core ---- */

static enum ls_code restore(void *core, const struct ls_core_record *record, struct ls_error *error) {
    return ls_core_restore(core, record, error);
}

static enum ls_core_nonfinite nonfinite_of(enum ls_nonfinite_policy policy) {
    if (policy == LS_POLICY_SKIP) return LS_NONFINITE_SKIP;
    return policy == LS_POLICY_ROLLBACK ? LS_NONFINITE_ROLLBACK : LS_NONFINITE_STOP;
}

/* Gradients are reduced, and what an optimizer does element by element comes out alike everywhere; products do not. */
static enum ls_core_numerics numerics_of(const struct ls_config *config) {
    if (config->train.reduction == LS_REDUCTION_FIXED) return LS_NUMERICS_FIXED;
    const bool copies = config->zero.stage == 0 || config->zero.replicas > 1;
    return config->optimizer.type == LS_MUON && copies ? LS_NUMERICS_COPIES : LS_NUMERICS_ANY;
}

static enum ls_code make_core(struct ls_run *run, const struct ls_run_options *options, struct ls_error *error) {
    struct ls_core_options *core = &run->core;
    const struct ls_config *config = run->config;
    core->world_size = (int32_t)run->attempt.world_size;
    core->ranks_wanted = (int32_t)run->ranks;
    core->attempt = (uint32_t)run->attempt.attempt;
    core->start_step = run->attempt.start_step;
    core->start_position = run->attempt.start_position;
    core->start_samples = run->attempt.samples;
    core->data_generation = run->attempt.data_generation;
    core->start_chain = run->attempt.start_chain;
    core->global_batch = config->train.global_batch_size;
    core->steps = run->end_position == UINT64_MAX ? run->total_steps : 0;
    core->end_position = run->end_position == UINT64_MAX ? 0 : (int64_t)run->end_position;
    core->span_steps = SPAN_STEPS;
    core->checkpoint_every = config->checkpoint.every_steps;
    core->evaluation_every = config->evaluation.every_steps;
    core->mismatch = config->fault.replica_mismatch == LS_REPLICA_ROLLBACK ? LS_MISMATCH_ROLLBACK : LS_MISMATCH_STOP;
    core->numerics = numerics_of(config);
    core->protocol = LS_PROTOCOL;
    snprintf(core->version, sizeof core->version, "%s", LS_VERSION);
    core->restarted = options->restarted;
    core->launched = options->launched;
    core->start_timeout_ms = config->fault.start_timeout_seconds * 1000;
    core->rejoin_timeout_ms = config->fault.coordinator_timeout_seconds * 1000;
    core->cause_grace_ms = CAUSE_GRACE_MS;
    core->checkpoints_keep = (int32_t)config->checkpoint.keep;
    core->max_restarts = (int32_t)config->fault.max_restarts;
    core->min_ranks = (int32_t)config->fault.min_ranks;
    core->nonfinite = nonfinite_of(config->fault.nonfinite);
    if (config->fault.nonfinite == LS_POLICY_SKIP)
        core->skips_max = config->precision == LS_PRECISION_FP16 ? SKIPS_MAX_FP16 : SKIPS_MAX;
    core->backoff_ms = BACKOFF_MS;
    core->backoff_max_ms = BACKOFF_MAX_MS;
    core->clear_timeout_ms = CLEAR_TIMEOUT_MS;
    core->host_losses_max = HOST_LOSSES_MAX;
    enum ls_code code = list_checkpoints(run, options->restarted, error);
    if (code == LS_OK) code = ls_core_create(core, &run->machine, error);
    if (code == LS_OK) code = ls_journal_read_history(run->journal, run->attempt.attempt, restore, run->machine, error);
    run->ranks = run->attempt.world_size;
    return code;
}

/* ---- all together ---- */

static const struct ls_allocation *allocation_of(const struct ls_run *run, const struct ls_run_options *options) {
    return options->allocation ? options->allocation : &run->own_allocation;
}

static enum ls_code load_config(struct ls_run *run, const struct ls_run_options *options, struct ls_error *error) {
    run->config = calloc(1, sizeof *run->config);
    if (!run->config) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for the configuration");
    enum ls_code code =
        ls_config_load(options->config_path, options->settings, options->settings_count, run->config, error);
    if (code != LS_OK) return code;
    run->port = options->port ? options->port : run->config->coordinator.port;
    const struct ls_allocation *allocation = run->allocation = allocation_of(run, options);
    if (!options->allocation)
        code = ls_allocation_find(run->config, options->ranks, options->hostfile, getenv, &run->own_allocation, error);
    if (code != LS_OK) return code;
    run->ranks = options->ranks ? options->ranks : allocation->ranks;
    code = ls_config_check_ranks(run->config, run->ranks, error);
    if (code == LS_OK) code = ls_network_choose(run->config, ls_allocation_elsewhere(allocation), &run->listen, error);
    if (code == LS_OK && run->ranks > LS_CORE_RANKS_MAX)
        code = ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "%lld ranks are more than the %d that one coordinator serves",
                       (long long)run->ranks, LS_CORE_RANKS_MAX);
    if (code == LS_OK && !options->restarted && run->port) code = ls_network_check_port(&run->listen, run->port, error);
    return code;
}

static void state_facts(struct ls_run *run, const struct ls_run_options *options) {
    struct ls_run_facts *facts = &run->facts;
    snprintf(facts->name, sizeof facts->name, "%s", run->config->name);
    snprintf(facts->path, sizeof facts->path, "%s", run->directory.path);
    gethostname(facts->host, sizeof facts->host - 1);
    facts->started_seconds = options->started_seconds;
    facts->config = run->config;
    memcpy(facts->config_digest, run->core.config_digest, sizeof facts->config_digest);
    facts->attempt = run->attempt.attempt;
    facts->ranks = run->attempt.world_size;
    facts->start_step = run->attempt.start_step;
    facts->total_steps = run->total_steps;
    facts->zero_stage = run->config->zero.stage;
    facts->max_restarts = run->config->fault.max_restarts;
    facts->sequence_length = run->config->data.sequence_length;
    facts->start_samples = run->attempt.samples;
    facts->start_tokens = run->attempt.tokens;
}

/* From the data on, with the run directory's lock. */
static enum ls_code open_run(struct ls_run *run, const struct ls_run_options *options, struct ls_error *error) {
    char path[PATH_MAX];
    enum ls_code code = ls_run_directory_lock(&run->directory, options->restarted ? 10 : 0.5, error);
    if (code == LS_OK)
        code = ls_run_directory_check_config(&run->directory, run->config, options->accepted, options->accepted_count,
                                             run->changed, &run->data_changed, error);
    if (code == LS_OK) code = check_space(run, error);
    if (code == LS_OK) code = ls_keys_open(run->directory.path, &run->keys, error);
    snprintf(path, sizeof path, "%s/journal.db", run->directory.path);
    if (code == LS_OK) code = ls_journal_open(path, &run->journal, error);
    if (code == LS_OK) code = begin(run, options, error);
    if (code == LS_OK && !run->complete)
        code = ls_run_token_make(run->directory.path, options->restarted, run->token, error);
    if (code == LS_OK && !run->complete) code = make_core(run, options, error);
    return code;
}

/* The tasks of a Slurm array are runs of their own. */
static void name_run(const struct ls_run *run, const struct ls_run_options *options, char *name, size_t size) {
    const int64_t task = allocation_of(run, options)->slurm.array_task;
    if (allocation_of(run, options)->slurm.job && task >= 0)
        snprintf(name, size, "%s-%lld", run->config->name, (long long)task);
    else
        snprintf(name, size, "%s", run->config->name);
}

enum ls_code ls_run_prepare(const struct ls_run_options *options, struct ls_run *run, struct ls_error *error) {
    memset(run, 0, sizeof *run);
    run->directory.lock = -1;
    enum ls_code code = load_config(run, options, error);
    if (code == LS_OK) code = open_data(run, error);
    if (code == LS_OK && !options->restarted)
        code = check_memory(run->config, run->ranks, allocation_of(run, options), error);
    if (code == LS_OK) code = ls_config_write(run->config, &run->yaml, error);
    if (code != LS_OK) return code;
    if (strlen(run->yaml) > LS_WIRE_YAML_BYTES_MAX)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "the configuration is longer than %d bytes",
                       LS_WIRE_YAML_BYTES_MAX);
    if (run->config->metrics.prometheus[0] && !options->restarted)
        code = ls_prometheus_check(run->config->metrics.prometheus, error);
    if (code != LS_OK) return code;
    ls_config_digest(run->config, run->core.config_digest);
    char name[LS_CONFIG_NAME_SIZE + 32];
    name_run(run, options, name, sizeof name);
    code = ls_run_directory_make(options->run_dir, name, options->resume || options->restarted, &run->directory, error);
    if (code == LS_OK) code = open_run(run, options, error);
    if (code == LS_OK) state_facts(run, options);
    return code;
}

void ls_run_release(struct ls_run *run) {
    ls_core_destroy(run->machine);
    ls_journal_close(run->journal);
    ls_run_directory_unlock(&run->directory);
    ls_allocation_release(&run->own_allocation);
    explicit_bzero(&run->keys, sizeof run->keys);
    free(run->yaml);
    ls_run_data_release(&run->data);
    free(run->config);
    memset(run, 0, sizeof *run);
    run->directory.lock = -1;
}
