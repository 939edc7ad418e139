/* The committer's thread. */
#define _GNU_SOURCE
#include "coordinator/committer.h"

#include "common/checkpoint_folder.h"
#include "common/log.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct ls_committer {
    struct ls_run_directory run;
    uint32_t generation;
    int wake;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    /* Under the mutex. */
    bool stopping, busy, has_result;
    int64_t prune_step; /* 0: nothing to prune */
    struct ls_retention retention;
    struct ls_commit_job job;
    struct ls_commit_result result;
    bool prepare, has_start;
    struct ls_run_start_wish wish;
    struct ls_prepare_result start;
};

static enum ls_code commit(const struct ls_committer *committer, const struct ls_commit_job *job,
                           struct ls_error *error) {
    const char *run = committer->run.path;
    if (!ls_run_directory_is_ours(&committer->run, committer->generation))
        return ls_run_directory_tell_lost(&committer->run, error);
    enum ls_code code = ls_checkpoint_commit(run, job->state.step, job->state.attempt, job->files, job->files_count,
                                             &job->state, NULL, error);
    struct ls_error minor;
    /* It is committed all the same when a link fails. */
    if (code == LS_OK && job->final && ls_checkpoint_link(run, "final", job->state.step, &minor) != LS_OK)
        ls_log(LS_LOG_WARNING, "%s", minor.text);
    if (code == LS_OK && job->best && ls_retention_mark_best(run, job->state.step, &minor) != LS_OK)
        ls_log(LS_LOG_WARNING, "%s", minor.text);
    return code;
}

/* With the mutex, which is given up meanwhile. */
static void prune(struct ls_committer *committer) {
    int64_t step = committer->prune_step;
    const struct ls_retention retention = committer->retention;
    struct ls_error error;
    committer->prune_step = 0;
    pthread_mutex_unlock(&committer->mutex);
    if (ls_run_directory_is_ours(&committer->run, committer->generation) &&
        ls_retention_prune(committer->run.path, (uint64_t)step, &retention, &error) != LS_OK)
        ls_log(LS_LOG_WARNING, "older checkpoints stay: %s", error.text);
    pthread_mutex_lock(&committer->mutex);
}

static void wake(const struct ls_committer *committer) {
    uint64_t one = 1;
    (void)!write(committer->wake, &one, sizeof one); /* full: the server will wake up anyway */
}

/* With the mutex, which is given up meanwhile. A wish that comes in between is looked for next. */
static void prepare(struct ls_committer *committer) {
    struct ls_run_start_wish wish = committer->wish;
    struct ls_prepare_result *result = calloc(1, sizeof *result);
    committer->prepare = false;
    pthread_mutex_unlock(&committer->mutex);
    if (result && ls_run_directory_is_ours(&committer->run, committer->generation))
        ls_run_find_start(&wish, &result->start, &result->error);
    else if (result)
        ls_run_directory_tell_lost(&committer->run, &result->error);
    pthread_mutex_lock(&committer->mutex);
    if (!result) {
        ls_fail(&committer->start.error, LS_MEMORY, LS_SCOPE_JOB, "no memory to look for checkpoints");
    } else {
        committer->start = *result;
        committer->start.start.attempt.attempt = wish.attempt;
    }
    committer->has_start = true;
    free(result);
    wake(committer);
}

static void *committer_thread(void *argument) {
    struct ls_committer *committer = argument;
    pthread_mutex_lock(&committer->mutex);
    for (;;) {
        while (!committer->busy && !committer->prune_step && !committer->prepare && !committer->stopping)
            pthread_cond_wait(&committer->changed, &committer->mutex);
        if (!committer->busy && committer->prepare && !committer->stopping) {
            prepare(committer);
            continue;
        }
        if (!committer->busy && committer->prune_step) {
            prune(committer);
            continue;
        }
        if (!committer->busy) break;
        struct ls_commit_job job = committer->job;
        pthread_mutex_unlock(&committer->mutex);
        struct ls_error error = {0};
        bool done = commit(committer, &job, &error) == LS_OK;
        free(job.files);
        pthread_mutex_lock(&committer->mutex);
        committer->busy = false;
        committer->has_result = true;
        committer->result = (struct ls_commit_result){
            .step = (int64_t)job.state.step, .attempt = (int64_t)job.state.attempt, .done = done};
        if (!done) snprintf(committer->result.text, sizeof committer->result.text, "%s", error.text);
        wake(committer);
    }
    pthread_mutex_unlock(&committer->mutex);
    return NULL;
}

enum ls_code ls_committer_start(const struct ls_run_directory *run, uint32_t generation, int wake,
                                struct ls_committer **result, struct ls_error *error) {
    struct ls_committer *committer = calloc(1, sizeof *committer);
    if (!committer) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for the committer");
    committer->run = *run;
    committer->generation = generation;
    committer->wake = wake;
    pthread_mutex_init(&committer->mutex, NULL);
    pthread_cond_init(&committer->changed, NULL);
    const int cause = pthread_create(&committer->thread, NULL, committer_thread, committer);
    if (cause) {
        enum ls_code code = ls_fail(error, LS_ERROR, LS_SCOPE_JOB,
                                    "cannot start the committer's thread: %s. Check 'ulimit -u'.", strerror(cause));
        free(committer);
        return code;
    }
    *result = committer;
    return LS_OK;
}

bool ls_committer_begin(struct ls_committer *committer, const struct ls_commit_job *job) {
    pthread_mutex_lock(&committer->mutex);
    bool free_now = !committer->busy;
    if (free_now) {
        committer->job = *job;
        committer->busy = true;
        pthread_cond_broadcast(&committer->changed);
    }
    pthread_mutex_unlock(&committer->mutex);
    return free_now;
}

void ls_committer_prepare(struct ls_committer *committer, const struct ls_run_start_wish *wish) {
    pthread_mutex_lock(&committer->mutex);
    committer->wish = *wish;
    committer->prepare = true;
    pthread_cond_broadcast(&committer->changed);
    pthread_mutex_unlock(&committer->mutex);
}

bool ls_committer_take_start(struct ls_committer *committer, struct ls_prepare_result *result) {
    pthread_mutex_lock(&committer->mutex);
    bool taken = committer->has_start;
    if (taken) *result = committer->start;
    committer->has_start = false;
    pthread_mutex_unlock(&committer->mutex);
    return taken;
}

bool ls_committer_is_busy(struct ls_committer *committer) {
    pthread_mutex_lock(&committer->mutex);
    bool busy = committer->busy || committer->has_result;
    pthread_mutex_unlock(&committer->mutex);
    return busy;
}

void ls_committer_prune(struct ls_committer *committer, int64_t step, const struct ls_retention *retention) {
    pthread_mutex_lock(&committer->mutex);
    committer->prune_step = step;
    committer->retention = *retention;
    pthread_cond_broadcast(&committer->changed);
    pthread_mutex_unlock(&committer->mutex);
}

bool ls_committer_take(struct ls_committer *committer, struct ls_commit_result *result) {
    pthread_mutex_lock(&committer->mutex);
    bool taken = committer->has_result;
    if (taken) *result = committer->result;
    committer->has_result = false;
    pthread_mutex_unlock(&committer->mutex);
    return taken;
}

void ls_committer_stop(struct ls_committer *committer) {
    if (!committer) return;
    pthread_mutex_lock(&committer->mutex);
    committer->stopping = true;
    pthread_cond_broadcast(&committer->changed);
    pthread_mutex_unlock(&committer->mutex);
    pthread_join(committer->thread, NULL);
    pthread_cond_destroy(&committer->changed);
    pthread_mutex_destroy(&committer->mutex);
    free(committer);
}
