/* The worker's life: welcome, set-up, join, load, loop, leave. */
#define _GNU_SOURCE
#include "worker/worker.h"

#include "common/corpus.h"
#include "common/files.h"
#include "common/log.h"
#include "worker/advice.h"
#include "worker/comm/nccl.h"
#include "worker/gpus.h"
#include "worker/link.h"
#include "worker/memory/host_memory.h"
#include "worker/replica.h"
#include "worker/reporter.h"
#include "worker/saving.h"
#include "worker/session.h"
#include "worker/trainer.h"

#include <assert.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* How long a host looks for the coordinator at first, and for the run directory's token; how often it looks after
 * signals while it waits, and how long it waits for the last acknowledgements. */
enum {
    OPEN_SECONDS = 30,
    TOKEN_SECONDS = 5,
    WAIT_SECONDS = 1,
    GOODBYE_SECONDS = 30,
    RELAY_ABOVE = 1000,
    REPORTS_PATIENCE_SECONDS = 10
};

static const double LATE_SECONDS = 0.1; /* a grant that came later than this is told */

struct ls_worker {
    struct ls_worker_options options;
    struct ls_comm *comm, *team; /* team: the trainer's, over NCCL where ranks are on GPUs, else the same */
    int rank, failed_rank;
    char failed_host[64]; /* "": not known */
    int sharers;          /* ranks on this rank's GPU; 0: CPUs */
    bool shared;          /* the error is every rank's */
    bool unloadable;      /* it is that the checkpoint to start from is no good */
    bool log_is_open;
    bool failed;                /* nothing is left to be said to the coordinator */
    struct ls_session *session; /* rank 0 */
    struct ls_welcome welcome;
    struct ls_config config;
    char config_digest[33];
    struct ls_corpus *corpus;
    struct ls_device *device;
    struct ls_trainer *trainer;
    struct ls_progress *progress; /* own, when the options had none */
    struct ls_progress_record *record;
    struct ls_key key; /* until the reporter has it */
    struct ls_reporter *reporter;
    struct ls_relay_node *nodes; /* of the tree that reports go through, where there is one */
    struct ls_saving *saving;
    bool wish_sent;
    double step_ended;                     /* rank 0: monotonic seconds; before the first step: when it could begin */
    int64_t late_from;                     /* rank 0: the step whose grant may be called late; 0 before the first */
    int64_t memory_planned, memory_before; /* bytes; before: of the process, when nothing of the plan was taken */
    int64_t nccl_bytes;                    /* of the GPU: what NCCL took as it connected the ranks */
};

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void mark(struct ls_worker *worker, enum ls_phase phase) {
    uint64_t step = worker->trainer ? (uint64_t)ls_trainer_steps_done(worker->trainer) : 0;
    if (worker->record) ls_progress_mark(worker->record, phase, step, 0, 0);
}

static enum ls_code agree(struct ls_worker *worker, const struct ls_error *own, struct ls_error *error) {
    enum ls_code code = ls_comm_agree(worker->comm, own, &worker->failed_rank, error);
    if (!code || worker->failed_rank < 0) return code;
    worker->shared = true;
    /* The coordinator knows no host of a rank that has not joined. */
    struct ls_error lost;
    if (gethostname(worker->failed_host, sizeof worker->failed_host - 1)) worker->failed_host[0] = 0;
    if (ls_comm_broadcast(worker->comm, worker->failed_host, sizeof worker->failed_host, worker->failed_rank, &lost))
        worker->failed_host[0] = 0;
    return code;
}

enum ls_code ls_worker_create(const struct ls_worker_options *options, struct ls_worker **worker,
                              struct ls_error *error) {
    struct ls_worker *made = calloc(1, sizeof *made);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the worker's records");
    made->options = *options;
    made->comm = options->comm;
    made->rank = ls_comm_rank(options->comm);
    made->failed_rank = -1;
    const int local_rank = ls_comm_local_rank(options->comm);
    if (options->progress && local_rank < ls_progress_ranks(options->progress))
        made->record = ls_progress_record(options->progress, local_rank);
    *worker = made;
    return LS_OK;
}

/* ---- set-up ---- */

static double patience_of(const struct ls_worker *worker) {
    return worker->options.connect_seconds > 0 ? worker->options.connect_seconds : OPEN_SECONDS;
}

/* The log of a rank that cannot write into the run directory. */
static void keep_log_here(const struct ls_worker *worker, struct ls_error *error) {
    const char *folder = getenv("TMPDIR");
    char path[PATH_MAX];
    const size_t length = strlen(error->text);
    snprintf(path, sizeof path, "%s/lockstep-%s-rank-%05d.log", folder && folder[0] == '/' ? folder : "/tmp",
             worker->welcome.run_id, worker->rank);
    if (!worker->options.logs || ls_log_open(path, LS_LOG_WARNING, NULL) != LS_OK) return;
    ls_log(LS_LOG_INFO, "rank %d: %s", worker->rank, error->text);
    ls_log_close();
    snprintf(error->text + length, sizeof error->text - length, " The log of rank %d is there as %s.", worker->rank,
             path);
}

/* True when this is not the host of rank 0. */
static bool elsewhere(const struct ls_worker *worker) {
    return worker->rank != 0 && ls_comm_local_size(worker->comm) < ls_comm_size(worker->comm);
}

/* What every host has to have, before it makes anything: a way to the coordinator, and the run directory. Its first
 * rank looks. */
static enum ls_code check_host(struct ls_worker *worker, struct ls_error *error) {
    struct ls_error own = {.code = LS_OK};
    enum ls_code code = ls_comm_broadcast(worker->comm, &worker->key, sizeof worker->key, 0, error);
    if (!code && ls_comm_local_rank(worker->comm) == 0) {
        if (ls_link_is_loopback(worker->options.endpoints) && elsewhere(worker))
            ls_log(LS_LOG_WARNING, "this host is not one that the coordinator knew of (launcher.arguments?), and it "
                                   "listens for its own host only: it hears nothing from here but through rank 0. Use "
                                   "--hostfile");
        else if (worker->rank != 0)
            ls_link_probe(worker->options.endpoints, &worker->key, patience_of(worker), &own);
        if (!own.code &&
            ls_run_token_check(worker->welcome.run_directory, worker->welcome.token, TOKEN_SECONDS, &own) != LS_OK)
            keep_log_here(worker, &own);
    }
    return code ? code : agree(worker, &own, error);
}

/* Rank 0 opens the session; all ranks get the welcome and the configuration's text, which the caller frees. */
static enum ls_code receive_welcome(struct ls_worker *worker, char **yaml, struct ls_error *error) {
    struct ls_error own = {.code = LS_OK};
    char *key_text = worker->options.key_text;
    *yaml = NULL;
    if (worker->rank == 0) {
        if (key_text)
            ls_key_parse(key_text, strlen(key_text), "the key on standard input", &worker->key, &own);
        else
            ls_key_read(worker->options.key_path, &worker->key, &own);
        if (!own.code)
            ls_session_open(worker->options.endpoints, &worker->key, worker->options.attempt, patience_of(worker),
                            &worker->session, &worker->welcome, yaml, &own);
    }
    if (key_text) explicit_bzero(key_text, strlen(key_text));
    enum ls_code code = ls_comm_broadcast(worker->comm, &own, sizeof own, 0, error);
    if (code) return code;
    if (own.code) {
        worker->shared = true;
        *error = own;
        return own.code;
    }
    uint64_t bytes = *yaml ? strlen(*yaml) + 1 : 0;
    code = ls_comm_sum_u64(worker->comm, &bytes, 1, error);
    if (!code) code = ls_comm_broadcast(worker->comm, &worker->welcome, sizeof worker->welcome, 0, error);
    if (code) return code;
    if (worker->rank != 0 && !(*yaml = calloc(1, bytes)))
        ls_fail(&own, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the configuration's %llu bytes",
                (unsigned long long)bytes);
    code = agree(worker, &own, error);
    if (!code) code = ls_comm_broadcast(worker->comm, *yaml, (int64_t)bytes, 0, error);
    return code ? code : check_host(worker, error);
}

/* The record of this rank in the node's progress file. Training goes on without one: only watching suffers. */
static void open_progress(struct ls_worker *worker) {
    struct ls_progress *progress = worker->options.progress;
    const int local_rank = ls_comm_local_rank(worker->comm);
    if (!progress) {
        struct ls_error error;
        if (ls_progress_open(worker->welcome.run_id, worker->welcome.attempt, ls_comm_local_size(worker->comm),
                             &worker->progress, &error)) {
            ls_log(LS_LOG_WARNING, "%s", error.text);
            return;
        }
        progress = worker->progress;
        ls_progress_enter(ls_progress_record(progress, local_rank));
    }
    if (local_rank >= ls_progress_ranks(progress)) return;
    worker->record = ls_progress_record(progress, local_rank);
    atomic_store_explicit(&worker->record->world_rank, (uint64_t)worker->rank, memory_order_relaxed);
    ls_comm_set_watch(worker->comm, worker->record);
}

/* ---- reports ---- */

/* So many nodes report to the coordinator themselves; more form a tree. LOCKSTEP_RELAY_ABOVE sets another number. */
static int64_t relay_above(void) {
    const char *text = getenv("LOCKSTEP_RELAY_ABOVE");
    const long long above = text ? strtoll(text, NULL, 10) : 0;
    return above > 0 ? above : RELAY_ABOVE;
}

/* What every rank tells the others about its node. */
struct place {
    int64_t leader; /* world rank of the node's first rank */
    struct ls_relay_node node;
};

/* Numbers the nodes by the rank of their leaders and gathers how they are reached. Collective. */
static enum ls_code make_tree(struct ls_worker *worker, struct ls_progress *progress,
                              struct ls_reporter_options *options, struct ls_error *error) {
    const int ranks = ls_comm_size(worker->comm);
    const bool leads = ls_comm_local_rank(worker->comm) == 0;
    struct place own = {.leader = -1}, *places = calloc((size_t)ranks, sizeof *places);
    worker->nodes = calloc((size_t)ranks, sizeof *worker->nodes);
    struct ls_error trouble = {.code = LS_OK};
    if (!places || !worker->nodes) ls_fail(&trouble, LS_MEMORY, LS_SCOPE_RANK, "no memory for the list of nodes");
    enum ls_code code = agree(worker, &trouble, error);
    if (code != LS_OK || !places || !worker->nodes) {
        free(places);
        return code;
    }
    if (progress)
        own.leader = (int64_t)atomic_load_explicit(&ls_progress_record(progress, 0)->world_rank, memory_order_relaxed);
    if (leads && progress && worker->options.reports) {
        const struct ls_relay_options way = {
            .key = &worker->key, .endpoints = worker->options.endpoints, .attempt = worker->welcome.attempt};
        char address[LS_RELAY_ADDRESS_BYTES];
        own.leader = worker->rank;
        if (!ls_relay_address(worker->options.endpoints, address) ||
            ls_relay_create(&way, &options->relay, &trouble) != LS_OK ||
            ls_relay_listen(options->relay, address, &own.node, &trouble) != LS_OK) {
            own.node.endpoint[0] = 0;
            ls_log(LS_LOG_WARNING, "no reports of other nodes go through this one: %s", trouble.text);
        }
    }
    code = ls_comm_gather_bytes(worker->comm, &own, sizeof own, places, error);
    for (int rank = 0; rank < ranks && code == LS_OK; rank++) {
        if (places[rank].leader != rank) continue;
        if (rank == own.leader) options->node = options->nodes_count;
        worker->nodes[options->nodes_count++] = places[rank].node;
    }
    if (!ls_relay_has_children(options->node, options->nodes_count)) {
        ls_relay_destroy(options->relay);
        options->relay = NULL;
    }
    options->nodes = worker->nodes;
    free(places);
    return code;
}

/* Collective, where there are other ranks that report. */
static enum ls_code start_reports(struct ls_worker *worker, struct ls_error *error) {
    struct ls_progress *progress = worker->options.progress ? worker->options.progress : worker->progress;
    struct ls_reporter_options options = {.endpoints = worker->options.endpoints,
                                          .key = &worker->key,
                                          .progress = worker->record ? progress : NULL,
                                          .local_rank = ls_comm_local_rank(worker->comm),
                                          .attempt = worker->welcome.attempt,
                                          .leave = worker->options.leave};
    uint64_t nodes = ls_comm_local_rank(worker->comm) == 0;
    enum ls_code code = ls_comm_sum_u64(worker->comm, &nodes, 1, error);
    if (code == LS_OK && (int64_t)nodes > relay_above()) code = make_tree(worker, options.progress, &options, error);
    if (code != LS_OK || !options.progress || !worker->options.reports || !worker->key.secret_key[0]) {
        ls_relay_destroy(options.relay);
        return code;
    }
    struct ls_error trouble;
    if (ls_reporter_start(&options, &worker->reporter, &trouble)) ls_log(LS_LOG_WARNING, "%s", trouble.text);
    return LS_OK;
}

static enum ls_code open_log(struct ls_worker *worker, struct ls_error *error) {
    if (!worker->options.logs) return LS_OK;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/logs", worker->welcome.run_directory);
    enum ls_code code = ls_folder_make(path, LS_CHECKPOINT, error);
    if (code) return code;
    snprintf(path, sizeof path, "%s/logs/rank-%05d.log", worker->welcome.run_directory, worker->rank);
    code = ls_log_open(path, LS_LOG_WARNING, error);
    worker->log_is_open = code == LS_OK;
    return code;
}

/* Threads of this rank: as configured, or by OMP_NUM_THREADS (0), or this rank's share of the cores. */
static int threads_of(const struct ls_worker *worker) {
    if (worker->config.launcher.threads_per_rank > 0) return (int)worker->config.launcher.threads_per_rank;
    if (getenv("OMP_NUM_THREADS")) return 0;
    cpu_set_t set;
    int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    int share = cores / ls_comm_local_size(worker->comm);
    return share < 1 ? 1 : share;
}

/* What each rank does by itself: log, configuration, datasets, device. */
static enum ls_code prepare(struct ls_worker *worker, const char *yaml, struct ls_error *error) {
    enum ls_code code = open_log(worker, error);
    if (!code) code = ls_config_parse(yaml, strlen(yaml), "coordinator", NULL, 0, &worker->config, error);
    if (!code) code = ls_corpus_open(&worker->config, &worker->corpus, error);
    if (!code) code = ls_corpus_resolve_vocab(worker->corpus, &worker->config, error);
    if (code) return code;
    ls_config_digest(&worker->config, worker->config_digest);
    code = ls_gpus_open(&worker->config, worker->comm, threads_of(worker), &worker->device, error);
    unsigned domain, bus, slot, function;
    if (!code && worker->record &&
        sscanf(ls_device_info(worker->device)->bus_id, "%x:%x:%x.%x", &domain, &bus, &slot, &function) == 4)
        atomic_store_explicit(&worker->record->gpu, (uint64_t)domain << 32 | bus << 16 | slot << 8 | function,
                              memory_order_relaxed);
    return code;
}

static enum ls_code check_gpus(struct ls_worker *worker, struct ls_error *error) {
    enum ls_code code = ls_gpus_check(&worker->config, worker->comm, worker->device, &worker->sharers, error);
    if (code == LS_USAGE) worker->shared = true;
    return code;
}

static void describe_rank(const struct ls_worker *worker, struct ls_rank_info *info) {
    memset(info, 0, sizeof *info);
    info->rank = worker->rank;
    info->local_rank = ls_comm_local_rank(worker->comm);
    info->pid = getpid();
    if (gethostname(info->host, sizeof info->host - 1)) snprintf(info->host, sizeof info->host, "unknown");
    snprintf(info->config_digest, sizeof info->config_digest, "%s", worker->config_digest);
    snprintf(info->dataset_digest, sizeof info->dataset_digest, "%s", worker->corpus->digest);
    snprintf(info->numerics_id, sizeof info->numerics_id, "%s", ls_device_numerics_id(worker->device));
}

static enum ls_code join(struct ls_worker *worker, struct ls_error *error) {
    const int size = ls_comm_size(worker->comm);
    struct ls_rank_info mine, *all = calloc((size_t)size, sizeof *all);
    struct ls_error own = {.code = LS_OK};
    if (!all) ls_fail(&own, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the descriptions of %d ranks", size);
    enum ls_code code = agree(worker, &own, error);
    if (!code) {
        describe_rank(worker, &mine);
        code = ls_comm_gather_bytes(worker->comm, &mine, sizeof mine, all, error);
    }
    if (!code && worker->rank == 0) ls_session_join(worker->session, all, size, &own);
    free(all);
    return code ? code : agree(worker, &own, error);
}

static bool coordinator_is_silent(const struct ls_worker *worker, struct ls_error *error) {
    const double limit = (double)worker->config.fault.coordinator_timeout_seconds;
    if (ls_session_silence(worker->session) <= limit) return false;
    ls_fail(error, LS_COMMUNICATION, LS_SCOPE_JOB,
            "the coordinator at %s was not heard for %.0f s (fault.coordinator_timeout_seconds). Look at its log, then "
            "--resume.",
            worker->options.endpoints, limit);
    return true;
}

/* What ends the run at once: the coordinator's word, or its silence. */
static bool must_leave(void *context, const struct ls_session_orders *orders, struct ls_error *error) {
    const struct ls_worker *worker = context;
    if (!orders->ended) return coordinator_is_silent(worker, error);
    if (orders->ended_code) ls_fail(error, orders->ended_code, LS_SCOPE_JOB, "%s", orders->ended_text);
    return true;
}

/* What the rank may take of its device, checked against the plan. */
static enum ls_code check_memory(struct ls_worker *worker, struct ls_error *error) {
    const struct ls_device_info *info = ls_device_info(worker->device);
    const struct ls_advice_gpu gpu = {
        .name = info->name,
        .bytes = worker->sharers > 0 ? (info->memory_bytes - info->overhead_bytes) / worker->sharers : 0};
    return ls_advice_check(&worker->config, ls_comm_size(worker->comm), ls_comm_local_size(worker->comm),
                           (int)worker->config.launcher.threads_per_rank,
                           info->kind == LS_DEVICE_KIND_CUDA ? &gpu : NULL, &worker->memory_planned, error);
}

/* The collectives on streams: NCCL's between GPUs. */
static enum ls_code connect(struct ls_worker *worker, struct ls_error *error) {
    worker->team = worker->comm;
    if (ls_device_info(worker->device)->kind != LS_DEVICE_KIND_CUDA || ls_comm_size(worker->comm) == 1) return LS_OK;
    const struct ls_comm_nccl_options options = {
        .host = worker->comm,
        .device = worker->device,
        .workspace_bytes = worker->config.zero.gradient_dtype == LS_GRADIENT_BF16 ? LS_NCCL_WORKSPACE_BYTES : 0,
        /* Twice: the coordinator sees all ranks, and its verdict comes first. */
        .timeout_seconds = 2 * (double)worker->config.fault.stall_timeout_seconds,
        .leave = worker->options.leave};
    const int64_t free_before = ls_device_free_bytes(worker->device);
    enum ls_code code = ls_comm_create_nccl(&options, &worker->team, error);
    worker->nccl_bytes = free_before - ls_device_free_bytes(worker->device) - options.workspace_bytes;
    return code;
}

/* What was planned beside what was taken. Where ranks share a GPU, what is taken is everybody's. */
static void log_memory(const struct ls_worker *worker) {
    const struct ls_device_info *info = ls_device_info(worker->device);
    ls_log(LS_LOG_INFO, "memory: %lld bytes planned, %lld resident before, %lld at the end",
           (long long)worker->memory_planned, (long long)worker->memory_before, (long long)ls_host_memory_resident());
    if (info->kind != LS_DEVICE_KIND_CUDA) return;
    const int64_t held = info->memory_bytes - ls_device_free_bytes(worker->device);
    const int64_t later = worker->trainer ? ls_replica_comms_bytes(ls_trainer_replica(worker->trainer)) : 0,
                  of_nccl = worker->nccl_bytes + later;
    ls_log(LS_LOG_INFO,
           "GPU memory: %lld bytes planned, %lld taken, beside %lld of context and libraries and %lld of NCCL",
           (long long)worker->memory_planned, (long long)(held - info->overhead_bytes - of_nccl),
           (long long)info->overhead_bytes, (long long)of_nccl);
}

static enum ls_code create_trainer(struct ls_worker *worker, struct ls_error *error) {
    const struct ls_welcome *welcome = &worker->welcome;
    const struct ls_trainer_options options = {.config = &worker->config,
                                               .corpus = worker->corpus,
                                               .device = worker->device,
                                               .comm = worker->team,
                                               .progress = worker->record,
                                               .start_step = welcome->start_step,
                                               .start_position = welcome->start_position,
                                               .optimizer_steps = welcome->optimizer_steps,
                                               .total_steps = welcome->total_steps,
                                               .end_step = welcome->end_step,
                                               .end_position = welcome->end_position,
                                               .quarantine = welcome->quarantine};
    worker->memory_before = ls_host_memory_resident();
    enum ls_code code = ls_trainer_create(&options, &worker->trainer, error);
    if (code) return code;
    const struct ls_saving_options saving = {.config = &worker->config,
                                             .welcome = welcome,
                                             .comm = worker->comm,
                                             .trainer = worker->trainer,
                                             .session = worker->session,
                                             .is_over = must_leave,
                                             .context = worker};
    return ls_saving_create(&saving, &worker->saving, error);
}

static enum ls_code fill(struct ls_worker *worker, struct ls_error *error) {
    const char *checkpoint = worker->welcome.checkpoint;
    return checkpoint[0] ? ls_trainer_load(worker->trainer, checkpoint, error)
                         : ls_trainer_initialize(worker->trainer, error);
}

/* What may fail on one rank alone; then all leave. */
static enum ls_code alone(struct ls_worker *worker, enum ls_code (*action)(struct ls_worker *, struct ls_error *),
                          struct ls_error *error) {
    struct ls_error own = {.code = LS_OK};
    action(worker, &own);
    return agree(worker, &own, error);
}

static enum ls_code load(struct ls_worker *worker, struct ls_error *error) {
    enum ls_code code = alone(worker, check_memory, error);
    if (!code) code = connect(worker, error);
    if (!code) code = alone(worker, create_trainer, error);
    if (!code) code = ls_trainer_tune(worker->trainer, worker->welcome.run_directory, error);
    if (code) return code;
    code = alone(worker, fill, error);
    /* Of storage that does not answer, or keeps this host out, nothing follows for the checkpoint. */
    worker->unloadable = code == LS_CHECKPOINT && worker->welcome.checkpoint[0] && error->scope != LS_SCOPE_NODE;
    return code;
}

static enum ls_code set_up(struct ls_worker *worker, struct ls_error *error) {
    struct ls_error own = {.code = LS_OK};
    char *yaml = NULL;
    enum ls_code code = receive_welcome(worker, &yaml, error);
    if (!code) {
        assert(yaml);
        open_progress(worker);
        code = start_reports(worker, error);
        explicit_bzero(&worker->key, sizeof worker->key);
        mark(worker, LS_PHASE_JOIN);
        if (!code) prepare(worker, yaml, &own);
        if (!code) code = agree(worker, &own, error);
        /* Rank 0 notices the silence itself, and says so better. */
        if (!code)
            ls_reporter_limit_silence(worker->reporter,
                                      worker->config.fault.coordinator_timeout_seconds + REPORTS_PATIENCE_SECONDS);
    }
    free(yaml);
    if (!code) code = check_gpus(worker, error);
    if (!code) code = join(worker, error);
    if (code) return code;
    mark(worker, LS_PHASE_LOAD);
    code = load(worker, error);
    if (code) return code;
    ls_log(LS_LOG_INFO, "rank %d of %d, process %d, attempt %lld: %s, from step %lld%s%s", worker->rank,
           ls_comm_size(worker->comm), (int)getpid(), (long long)worker->welcome.attempt,
           ls_device_numerics_id(worker->device), (long long)worker->welcome.start_step,
           worker->welcome.checkpoint[0] ? ", " : "", worker->welcome.checkpoint);
    return LS_OK;
}

/* ---- rank 0 and its orders ---- */

/* Rank 0: the orders of this boundary. Waits while there is nothing to run and nothing to do. `reason` says why to
 * leave. */
static void find_orders(struct ls_worker *worker, bool finished, struct ls_trainer_orders *orders,
                        struct ls_error *reason) {
    const int64_t next = ls_trainer_steps_done(worker->trainer) + 1;
    struct ls_session_orders session;
    bool waits = false;
    const double begin = seconds_now();
    reason->code = LS_OK;
    for (;;) {
        ls_session_orders(worker->session, &session);
        if (must_leave(worker, &session, reason)) {
            orders->leave = true;
            orders->leave_code = reason->code;
            return;
        }
        if (finished || session.grant.end_step > next || session.stop_id ||
            ls_saving_is_asked(worker->saving, &session))
            break;
        if (orders->save_wished) break;
        if (!waits) mark(worker, LS_PHASE_WAIT_GRANT); /* once: a beat would say that it gets on */
        waits = true;
        ls_session_wait(worker->session, WAIT_SECONDS);
        if (ls_saving_is_writing(worker->saving)) break; /* other ranks may have written meanwhile */
        if (worker->options.save_wished && atomic_load(worker->options.save_wished))
            orders->save_wished = !worker->wish_sent;
    }
    /* A healthy coordinator grants ahead of need, but for the first span. */
    if (seconds_now() - begin >= LATE_SECONDS && session.grant.end_step > next && worker->late_from == next)
        ls_log(LS_LOG_WARNING, "step %lld was granted late: rank 0 waited %.2f s for it", (long long)next,
               seconds_now() - begin);
    worker->late_from = next + 1;
    ls_saving_prepare(worker->saving, &session, orders);
    orders->granted_end = session.grant.end_step;
    orders->save_id = session.checkpoint_id;
    orders->stop_id = session.stop_id;
    orders->stop_code = session.stop_code;
}

/* ---- the loop ---- */

static enum ls_code evaluate(struct ls_worker *worker, struct ls_error *error) {
    double loss, bits_per_byte;
    enum ls_code code = ls_trainer_evaluate(worker->trainer, &loss, &bits_per_byte, error);
    if (!code && worker->rank == 0)
        ls_session_validation(worker->session, ls_trainer_steps_done(worker->trainer), loss, bits_per_byte);
    return code;
}

static enum ls_code step(struct ls_worker *worker, struct ls_error *error) {
    struct ls_step_report report;
    enum ls_code code = ls_trainer_step(worker->trainer, &report, error);
    if (code) return code;
    if (worker->rank == 0) {
        report.attempt = worker->welcome.attempt;
        /* Saves since the step before belong to this one: the times of steps add up to that of the run. */
        const double saves = ls_saving_take_seconds(worker->saving);
        report.tokens_per_second *= report.step_seconds / (report.step_seconds + saves);
        report.step_seconds += saves;
        report.checkpoint_seconds += saves;
        const double now = seconds_now();
        report.wall_seconds = now - worker->step_ended;
        worker->step_ended = now;
        ls_session_at(worker->session, report.step + 1);
        ls_session_step_done(worker->session, &report);
    }
    return ls_trainer_evaluation_due(worker->trainer) ? evaluate(worker, error) : LS_OK;
}

static enum ls_code leave(struct ls_worker *worker, const struct ls_trainer_orders *orders,
                          const struct ls_error *reason, struct ls_error *error) {
    worker->shared = true;
    if (worker->rank == 0)
        *error = *reason;
    else if (orders->leave_code)
        ls_fail(error, (enum ls_code)orders->leave_code, LS_SCOPE_JOB, "rank 0 ends the run: its log says why");
    return (enum ls_code)orders->leave_code;
}

/* From boundary to boundary. Returns what the run ends with. */
static enum ls_code loop(struct ls_worker *worker, struct ls_error *error) {
    worker->step_ended = seconds_now();
    for (;;) {
        const bool finished = ls_trainer_steps_done(worker->trainer) >= worker->welcome.end_step;
        struct ls_trainer_orders orders = {0};
        struct ls_error reason = {.code = LS_OK};
        if (worker->options.save_wished && atomic_load(worker->options.save_wished))
            orders.save_wished = !worker->wish_sent;
        if (worker->rank == 0)
            find_orders(worker, finished, &orders, &reason);
        else
            ls_saving_prepare(worker->saving, NULL, &orders);
        enum ls_code code = ls_trainer_boundary(worker->trainer, &orders, error);
        if (code) return code;
        if (orders.leave) return leave(worker, &orders, &reason, error);
        if (orders.save_wished) {
            worker->wish_sent = true;
            if (worker->rank == 0) ls_session_request_save(worker->session);
        }
        bool shared;
        code = ls_saving_at_boundary(worker->saving, &orders, finished, &shared, error);
        if (shared) worker->shared = true;
        if (code) return code;
        if (orders.stop_id) {
            worker->shared = true;
            return ls_fail(error, (enum ls_code)orders.stop_code, LS_SCOPE_JOB, "stopped and saved after step %lld",
                           (long long)ls_trainer_steps_done(worker->trainer));
        }
        if (finished) return LS_OK;
        if (ls_trainer_may_step(worker->trainer)) code = step(worker, error);
        if (code) return code;
    }
}

static void tell_fault(struct ls_worker *worker, const struct ls_error *error) {
    const int rank = worker->failed_rank >= 0 ? worker->failed_rank : worker->rank;
    const int64_t step = worker->trainer ? ls_trainer_steps_done(worker->trainer) + 1 : worker->welcome.start_step;
    if (worker->unloadable)
        ls_session_unloadable(worker->session, rank, step, error);
    else
        ls_session_fault(worker->session, rank, worker->failed_host, step, error);
}

enum ls_code ls_worker_run(struct ls_worker *worker, struct ls_error *error) {
    enum ls_code code = set_up(worker, error);
    if (!code) code = loop(worker, error);
    if (code == LS_OK || code == LS_REQUEUE || code == LS_STOPPED) {
        mark(worker, LS_PHASE_FINISH);
        log_memory(worker);
        return code;
    }
    if (worker->trainer && ls_trainer_failed_rank(worker->trainer) >= 0) {
        worker->shared = true;
        worker->failed_rank = ls_trainer_failed_rank(worker->trainer);
    }
    if (code == LS_NONFINITE) worker->shared = true;
    worker->failed = true;
    if (worker->log_is_open) ls_log(LS_LOG_INFO, "%s", error->text);
    const struct ls_replica_difference *difference = worker->trainer ? ls_trainer_difference(worker->trainer) : NULL;
    if (difference) worker->shared = true;
    if (difference && worker->rank == 0 && worker->session)
        ls_session_replicas_differ(worker->session, difference->rank, difference->step, difference->good_step, error);
    else if (worker->rank == 0 && worker->session)
        tell_fault(worker, error);
    return code;
}

bool ls_worker_error_is_shared(const struct ls_worker *worker) {
    return worker->shared;
}

void ls_worker_mark_exit(struct ls_worker *worker, int code) {
    if (!worker->record) return;
    atomic_store_explicit(&worker->record->exit_code, (uint64_t)code, memory_order_relaxed);
    mark(worker, LS_PHASE_EXIT);
}

void ls_worker_destroy(struct ls_worker *worker) {
    if (!worker) return;
    if (worker->session) ls_session_close(worker->session, worker->failed ? 0 : GOODBYE_SECONDS);
    ls_trainer_destroy(worker->trainer);
    ls_corpus_close(worker->corpus);
    if (worker->team != worker->comm) ls_comm_destroy(worker->team);
    if (worker->device) ls_device_destroy(worker->device);
    ls_comm_set_watch(worker->comm, NULL);
    ls_reporter_stop(worker->reporter);
    free(worker->nodes);
    ls_progress_close(worker->progress);
    ls_saving_destroy(worker->saving);
    free(worker);
}
