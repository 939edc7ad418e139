/* Looking for the checkpoint to start from. */
#include "coordinator/run_start.h"

#include "common/checkpoint_folder.h"
#include "common/log.h"
#include "coordinator/run_directory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct search {
    const struct ls_run_start_wish *wish;
    struct ls_run_start *start;
};

static void pass_over(void *context, const char *name, const char *text) {
    const struct search *search = context;
    struct ls_run_start *start = search->start;
    struct ls_error error;
    ls_log(LS_LOG_WARNING, "checkpoint %s is damaged and passed over: %s", name, text);
    if (start->damaged_count < LS_RUN_DAMAGED_MAX)
        snprintf(start->damaged[start->damaged_count++], sizeof start->damaged[0],
                 "checkpoint %s is damaged and passed over: %s", name, text);
    if (ls_checkpoint_reject(search->wish->run_dir, name, (uint64_t)search->wish->attempt, &error) != LS_OK)
        ls_log(LS_LOG_WARNING, "%s", error.text);
}

static enum ls_code check_lineage(const struct ls_run_start_wish *wish, const struct ls_trainer_state *state,
                                  struct ls_error *error) {
    if (!ls_run_directory_knows_config(wish->run_dir, wish->config_digest, state->config_digest))
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                       "the newest checkpoint, step %lld, was made with another configuration (digest %s, this one has "
                       "%s). Start anew with --run-dir DIR.",
                       (long long)state->step, state->config_digest, wish->config_digest);
    return LS_OK;
}

static void take(const struct ls_checkpoint_found *found, struct ls_run_start *start) {
    struct ls_journal_attempt *attempt = &start->attempt;
    start->found = true;
    start->state = found->state;
    attempt->start_step = (int64_t)found->state.step;
    attempt->start_position = (int64_t)found->state.position;
    attempt->optimizer_steps = (int64_t)found->state.optimizer_steps;
    attempt->tokens = (int64_t)found->state.tokens;
    attempt->samples = (int64_t)found->state.samples;
    attempt->data_generation = (int64_t)found->state.data_generation;
    attempt->generation_step = (int64_t)found->state.data_generation_step;
    ls_digest_parse(found->state.ledger_chain, &attempt->start_chain);
    snprintf(attempt->checkpoint, sizeof attempt->checkpoint, "%s", found->path);
    snprintf(attempt->parent_manifest, sizeof attempt->parent_manifest, "%s", found->manifest_hash);
}

void ls_run_mend_links(const char *run_dir, int64_t attempt, bool best) {
    struct ls_error error;
    if (ls_checkpoint_recover(run_dir, (uint64_t)attempt, &error) != LS_OK) ls_log(LS_LOG_WARNING, "%s", error.text);
    if (best && ls_retention_mark_best(run_dir, UINT64_MAX, &error) != LS_OK) ls_log(LS_LOG_WARNING, "%s", error.text);
}

void ls_run_mend_complete(const char *run_dir, int64_t attempt, const struct ls_config *config, int64_t step) {
    const struct ls_retention retention = ls_run_retention(config);
    struct ls_error error;
    ls_run_mend_links(run_dir, attempt, config->checkpoint.keep_best > 0);
    if (step <= 0) return;
    if (ls_checkpoint_link(run_dir, "final", (uint64_t)step, &error) != LS_OK) ls_log(LS_LOG_WARNING, "%s", error.text);
    if (ls_retention_prune(run_dir, (uint64_t)step, &retention, &error) != LS_OK)
        ls_log(LS_LOG_WARNING, "older checkpoints stay: %s", error.text);
}

struct ls_retention ls_run_retention(const struct ls_config *config) {
    return (struct ls_retention){.keep = (int)config->checkpoint.keep,
                                 .keep_every = config->checkpoint.keep_every,
                                 .keep_best = (int)config->checkpoint.keep_best};
}

enum ls_code ls_run_find_start(const struct ls_run_start_wish *wish, struct ls_run_start *start,
                               struct ls_error *error) {
    struct search search = {wish, start};
    struct ls_checkpoint_found *found = calloc(1, sizeof *found);
    memset(start, 0, sizeof *start);
    if (!found) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory to look for checkpoints");
    bool any = false;
    enum ls_code code = LS_OK;
    if (wish->below_step < INT64_MAX)
        code = ls_checkpoint_reject_from(wish->run_dir, (uint64_t)wish->below_step, (uint64_t)wish->attempt, error);
    if (code == LS_OK) code = ls_checkpoint_recover(wish->run_dir, (uint64_t)wish->attempt, error);
    if (code == LS_OK) code = ls_checkpoint_newest(wish->run_dir, &any, found, pass_over, &search, error);
    if (code == LS_OK) ls_run_mend_links(wish->run_dir, wish->attempt, wish->best);
    if (code == LS_OK && any) code = check_lineage(wish, &found->state, error);
    if (code == LS_OK && any) take(found, start);
    free(found);
    return code;
}
