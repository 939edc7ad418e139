/* From a boundary where a save is due to its commit. */
#include "worker/saving.h"

#include "common/checkpoint_folder.h"
#include "common/log.h"
#include "worker/checkpoint/save.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* How often rank 0 looks after the run while it waits; steps that may run beyond a save that is not committed: half of
 * those that the coordinator remembers (core.h). */
enum { WAIT_SECONDS = 1, STEPS_AHEAD_MAX = 512 };

/* What a rank says of its part of a checkpoint. */
struct part {
    struct ls_error error; /* code LS_OK: written */
    uint32_t count;
    double seconds;
    struct ls_file_record files[LS_CHECKPOINT_RANK_FILES_MAX];
};

struct ls_saving {
    struct ls_saving_options options;
    int rank;
    bool writing;            /* the parts of `step` are not gathered yet */
    int64_t step;            /* the newest step whose save was begun by this attempt, -1: none */
    int64_t committed_step;  /* newest one known to all ranks */
    int64_t optimizer_steps; /* behind `step` */
    uint64_t order_id;       /* the newest order honoured */
    double began;            /* monotonic seconds: the newest save, or this attempt */
    struct part *parts;      /* [ranks] */
    double seconds;          /* spent, see ls_saving_take_seconds() */
};

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

enum ls_code ls_saving_create(const struct ls_saving_options *options, struct ls_saving **saving,
                              struct ls_error *error) {
    struct ls_saving *made = calloc(1, sizeof *made);
    if (made) made->parts = calloc((size_t)ls_comm_size(options->comm), sizeof *made->parts);
    if (!made || !made->parts) {
        free(made);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the records of saves");
    }
    made->options = *options;
    made->rank = ls_comm_rank(options->comm);
    made->step = made->committed_step = -1;
    made->began = seconds_now();
    *saving = made;
    return LS_OK;
}

void ls_saving_destroy(struct ls_saving *saving) {
    if (!saving) return;
    free(saving->parts);
    free(saving);
}

double ls_saving_take_seconds(struct ls_saving *saving) {
    const double seconds = saving->seconds;
    saving->seconds = 0;
    return seconds;
}

/* ---- before a boundary ---- */

/* A save that is late is not hurried: the next one is due an interval behind the commit of the one before at the
 * earliest. */
static bool interval_has_passed(const struct ls_saving *saving, int64_t committed_step) {
    const int64_t every = saving->options.config->checkpoint.every_seconds;
    const int64_t done = ls_trainer_steps_done(saving->options.trainer);
    return every > 0 && done > saving->options.welcome->start_step && done != saving->step &&
           saving->step <= committed_step && seconds_now() - saving->began >= (double)every;
}

bool ls_saving_is_asked(const struct ls_saving *saving, const struct ls_session_orders *session) {
    return session->checkpoint_id > saving->order_id || interval_has_passed(saving, session->committed_step);
}

bool ls_saving_is_writing(const struct ls_saving *saving) {
    return saving->writing;
}

void ls_saving_prepare(struct ls_saving *saving, const struct ls_session_orders *session,
                       struct ls_trainer_orders *orders) {
    orders->save_written = saving->writing && ls_trainer_save_is_written(saving->options.trainer);
    if (!session) return;
    orders->save_due = interval_has_passed(saving, session->committed_step);
    orders->committed_step = session->committed_step;
}

/* ---- behind it ---- */

/* Rank 0: tells the coordinator what every rank wrote. */
static void report_parts(struct ls_saving *saving) {
    for (int rank = 0; rank < ls_comm_size(saving->options.comm); rank++) {
        const struct part *part = &saving->parts[rank];
        if (part->error.code) {
            ls_session_save_failed(saving->options.session, saving->step, rank, part->error.text);
            continue;
        }
        struct ls_part_file files[LS_CHECKPOINT_RANK_FILES_MAX] = {0};
        for (uint32_t i = 0; i < part->count; i++) {
            files[i].bytes = part->files[i].bytes;
            snprintf(files[i].name, sizeof files[i].name, "%s", part->files[i].name);
            snprintf(files[i].hash, sizeof files[i].hash, "%s", part->files[i].hash);
        }
        ls_session_part(saving->options.session, saving->step, rank, saving->optimizer_steps, part->seconds, files,
                        part->count);
    }
}

/* Collective: waits for every rank's part of the save under way and gathers them. */
static enum ls_code collect(struct ls_saving *saving, struct ls_error *error) {
    struct part mine;
    size_t count = 0;
    memset(&mine, 0, sizeof mine);
    ls_trainer_save_finish(saving->options.trainer, mine.files, &count, &mine.seconds, &mine.error);
    mine.count = (uint32_t)count;
    saving->writing = false;
    if (!mine.error.code) ls_log(LS_LOG_INFO, "step %lld written in %.2f s", (long long)saving->step, mine.seconds);
    enum ls_code code = ls_comm_gather_bytes(saving->options.comm, &mine, sizeof mine, saving->parts, error);
    if (!code && saving->rank == 0) report_parts(saving);
    return code;
}

/* All ranks wait until the checkpoint of `step` is committed, or until rank 0 knows that it will not be. */
static enum ls_code await_commit(struct ls_saving *saving, int64_t step, bool *shared, struct ls_error *error) {
    struct ls_error reason = {.code = LS_OK};
    if (saving->rank == 0) {
        struct ls_session_orders orders;
        for (;;) {
            ls_session_orders(saving->options.session, &orders);
            if (orders.committed_step >= step) break;
            if (saving->options.is_over(saving->options.context, &orders, &reason)) {
                if (!reason.code)
                    ls_fail(&reason, LS_CHECKPOINT, LS_SCOPE_JOB,
                            "the coordinator ended before the checkpoint of step %lld was committed. --resume goes on "
                            "from the one before.",
                            (long long)step);
                break;
            }
            ls_session_wait(saving->options.session, WAIT_SECONDS);
        }
    }
    enum ls_code code = ls_comm_broadcast(saving->options.comm, &reason, sizeof reason, 0, error);
    if (code) return code;
    if (!reason.code) {
        saving->committed_step = step;
        return LS_OK;
    }
    *shared = true;
    *error = reason;
    return reason.code;
}

/* Collective: everything that was begun is written and committed. */
static enum ls_code settle(struct ls_saving *saving, int64_t step, bool *shared, struct ls_error *error) {
    enum ls_code code = saving->writing ? collect(saving, error) : LS_OK;
    return code ? code : await_commit(saving, step, shared, error);
}

/* Collective. Rank 0 makes the folder; where it cannot, nobody writes, and the coordinator, which is told, ends the
 * run.
 */
static enum ls_code begin(struct ls_saving *saving, struct ls_error *error) {
    const struct ls_welcome *welcome = saving->options.welcome;
    char folder[LS_CHECKPOINT_PATH_MAX];
    struct ls_error refused;
    memset(folder, 0, sizeof folder);
    if (saving->rank == 0 &&
        ls_checkpoint_begin(welcome->run_directory, (uint64_t)saving->step, (uint64_t)welcome->attempt,
                            ls_trainer_save_bytes(saving->options.trainer), folder, &refused)) {
        ls_session_save_failed(saving->options.session, saving->step, 0, refused.text);
        memset(folder, 0, sizeof folder);
    }
    enum ls_code code = ls_comm_broadcast(saving->options.comm, folder, LS_CHECKPOINT_PATH_MAX, 0, error);
    if (code || !folder[0]) return code;
    ls_trainer_save_begin(saving->options.trainer, folder);
    saving->writing = true;
    return LS_OK;
}

static bool is_due(const struct ls_saving *saving, const struct ls_trainer_orders *orders, bool finished) {
    const int64_t done = ls_trainer_steps_done(saving->options.trainer);
    const int64_t every = saving->options.config->checkpoint.every_steps;
    if (orders->stop_id || orders->save_id > saving->order_id) return true;
    if (done == saving->step || done == saving->options.welcome->start_step) return false;
    return finished || orders->save_due || (every > 0 && done % every == 0);
}

static enum ls_code act(struct ls_saving *saving, const struct ls_trainer_orders *orders, bool finished, bool *shared,
                        struct ls_error *error) {
    const int64_t done = ls_trainer_steps_done(saving->options.trainer);
    const bool wait = orders->stop_id || finished || !saving->options.config->checkpoint.async;
    enum ls_code code = LS_OK;
    if (orders->committed_step > saving->committed_step) saving->committed_step = orders->committed_step;
    if (saving->writing && orders->save_written) code = collect(saving, error);
    const bool uncommitted = saving->step > saving->committed_step;
    if (code || !is_due(saving, orders, finished)) {
        const bool far = uncommitted && done - saving->step >= STEPS_AHEAD_MAX;
        return code || !(far || (wait && uncommitted)) ? code : settle(saving, saving->step, shared, error);
    }
    /* What was saved already, or what the attempt began with, only has to be spoken of. */
    const bool again = done == saving->step || done == saving->options.welcome->start_step;
    if (!again && uncommitted) code = settle(saving, saving->step, shared, error);
    if (code) return code;
    if (orders->save_id > saving->order_id) saving->order_id = orders->save_id;
    if (saving->rank == 0) ls_session_saving(saving->options.session, done, saving->order_id, orders->stop_id != 0);
    if (!again) {
        saving->step = done;
        saving->optimizer_steps = ls_trainer_optimizer_steps(saving->options.trainer);
        saving->began = seconds_now();
        code = begin(saving, error);
    }
    return code || !wait ? code : settle(saving, done, shared, error);
}

enum ls_code ls_saving_at_boundary(struct ls_saving *saving, const struct ls_trainer_orders *orders, bool finished,
                                   bool *shared, struct ls_error *error) {
    const double begin_seconds = seconds_now();
    *shared = false;
    enum ls_code code = act(saving, orders, finished, shared, error);
    saving->seconds += seconds_now() - begin_seconds;
    return code;
}
