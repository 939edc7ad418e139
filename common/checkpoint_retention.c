/* Reasons for checkpoints to stay. */
#include "common/checkpoint_retention.h"

#include "common/checkpoint_folder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A committed checkpoint. */
struct kept {
    uint64_t step;
    double loss; /* of its validation; INFINITY: none */
    bool stays;
};

/* Those at or below `step`, newest first. *list is malloc'ed. */
static enum ls_code list_kept(const char *run_dir, uint64_t step, struct kept **list, size_t *count,
                              struct ls_error *error) {
    uint64_t *steps;
    size_t found;
    enum ls_code code = ls_checkpoint_list(run_dir, &steps, &found, error);
    if (code) return code;
    *count = 0;
    *list = calloc(found + 1, sizeof **list);
    for (size_t i = found; *list && i-- > 0;)
        if (steps[i] <= step) (*list)[(*count)++] = (struct kept){.step = steps[i], .loss = INFINITY};
    free(steps);
    return *list ? LS_OK : ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "checkpoint: no memory to list checkpoints");
}

/* A folder whose trainer.json cannot be read has no loss; whoever loads it says what is wrong with it. Nor has one that
 * was validated on other data than the newest: its loss does not compare. */
static void read_losses(const char *run_dir, struct kept *list, size_t count) {
    char digest[33] = "";
    for (size_t i = 0; i < count; i++) {
        struct ls_trainer_state state;
        if (ls_checkpoint_read_state(run_dir, list[i].step, &state, NULL) != LS_OK || !state.validated) continue;
        const char *own = state.validation_digest;
        if (!digest[0]) memcpy(digest, own, sizeof digest);
        if (!own[0] || strcmp(own, digest) == 0) list[i].loss = state.validation_loss;
    }
}

/* Removes the link RUN/NAME; `dangling`: unless its checkpoint is there. */
static void remove_link(const char *run_dir, const char *name, bool dangling) {
    char path[LS_CHECKPOINT_PATH_MAX];
    struct stat status;
    if (snprintf(path, sizeof path, "%s/%s", run_dir, name) >= (int)sizeof path) return;
    if (lstat(path, &status) || !S_ISLNK(status.st_mode) || (dangling && stat(path, &status) == 0)) return;
    unlink(path);
}

/* The lowest loss among those that do not stay yet, the newest of equals; NULL: none has one. */
static struct kept *best_of(struct kept *list, size_t count) {
    struct kept *best = NULL;
    for (size_t i = 0; i < count; i++)
        if (!list[i].stays && isfinite(list[i].loss) && (!best || list[i].loss < best->loss)) best = &list[i];
    return best;
}

static void choose(const struct ls_retention *retention, struct kept *list, size_t count) {
    struct kept *best;
    for (int i = 0; i < retention->keep_best && (best = best_of(list, count)); i++) best->stays = true;
    for (size_t i = 0; i < count; i++) {
        const bool newest = retention->keep == 0 || i < (size_t)retention->keep;
        const bool round = retention->keep_every > 0 && list[i].step % (uint64_t)retention->keep_every == 0;
        if (newest || round || i == 0) list[i].stays = true;
    }
}

enum ls_code ls_retention_prune(const char *run_dir, uint64_t step, const struct ls_retention *retention,
                                struct ls_error *error) {
    struct kept *list;
    size_t count, stay = 0;
    enum ls_code code = list_kept(run_dir, step, &list, &count, error);
    if (code) return code;
    if (retention->keep_best > 0) read_losses(run_dir, list, count);
    choose(retention, list, count);
    uint64_t *steps = calloc(count + 1, sizeof *steps);
    if (!steps) code = ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "checkpoint: no memory to list checkpoints");
    for (size_t i = 0; i < count && !code; i++)
        if (list[i].stays) steps[stay++] = list[i].step;
    if (!code) code = ls_checkpoint_prune(run_dir, step, steps, stay, error);
    remove_link(run_dir, "best", true);
    remove_link(run_dir, "final", true);
    free(steps);
    free(list);
    return code;
}

enum ls_code ls_retention_mark_best(const char *run_dir, uint64_t step, struct ls_error *error) {
    struct kept *list;
    size_t count;
    enum ls_code code = list_kept(run_dir, step, &list, &count, error);
    if (code) return code;
    read_losses(run_dir, list, count);
    const struct kept *best = best_of(list, count);
    if (best)
        code = ls_checkpoint_link(run_dir, "best", best->step, error);
    else
        remove_link(run_dir, "best", false);
    free(list);
    return code;
}
