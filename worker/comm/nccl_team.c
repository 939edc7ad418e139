/* The team of nccl_team.h: failure, waiting, the watchdog. */
#define _GNU_SOURCE
#include "worker/comm/nccl_team.h"

#include "common/log.h"
#include "common/progress.h"
#include "worker/comm/implementation.h"
#include "worker/device/cuda/stream.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    WATCH_MILLISECONDS = 20,
    PEERS_MILLISECONDS = 250,
    /* From a failure to its report: the others must see the first loss, not this rank's end. */
    LINGER_MILLISECONDS = 2500,
    HOLD_MILLISECONDS = 1000,     /* the same for what the watchdog finds: four looks of the others */
    PATIENCE_MILLISECONDS = 2000, /* for a lost rank's process to be gone after NCCL missed it */
    FLIGHTS = 64,
    POLLS_AWAKE = 1000,
    POLL_SLEEP_NS = 20000
};

/* A process, for those that can look: on the same host, in the same pid namespace. */
struct ls_nccl_peer {
    struct ls_progress_record record; /* pid and start time */
    char host[64];
    uint64_t pid_namespace;
};

/* A collective that was put on a stream, until its event has passed. */
struct ls_nccl_flight {
    cudaEvent_t event;
    uint64_t number;
    int64_t began_ns;
    uint64_t operation; /* in the progress record */
};

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static void sleep_ns(int64_t nanoseconds) {
    nanosleep(&(struct timespec){.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000}, NULL);
}

/* ---- failure ---- */

/* The first one counts. The mutex is held. */
static void set_failure(struct ls_nccl_team *team, const struct ls_error *failure) {
    if (team->failure.code) return;
    team->failure = *failure;
    team->failed_ns = now_ns();
    atomic_store(&team->failed, true);
    if (team->stream) ls_cuda_stream_fail(team->stream, failure);
    pthread_cond_broadcast(&team->changed);
}

/* For the watchdog: who synchronises the stream leaves as soon as that has failed, and the others are to see the first
 * loss before. The mutex is held, and given up meanwhile. */
static void set_failure_late(struct ls_nccl_team *team, const struct ls_error *failure) {
    pthread_mutex_unlock(&team->mutex);
    sleep_ns(HOLD_MILLISECONDS * INT64_C(1000000));
    pthread_mutex_lock(&team->mutex);
    if (!atomic_load(&team->closing)) set_failure(team, failure);
}

enum ls_code ls_nccl_team_check(struct ls_nccl_team *team, struct ls_error *error) {
    if (!atomic_load(&team->failed)) return LS_OK;
    pthread_mutex_lock(&team->mutex);
    if (error) *error = team->failure;
    const enum ls_code code = team->failure.code;
    const int64_t linger = team->failed_ns + LINGER_MILLISECONDS * INT64_C(1000000) - now_ns();
    pthread_mutex_unlock(&team->mutex);
    if (linger > 0) sleep_ns(linger);
    return code;
}

enum ls_code ls_nccl_team_fail(struct ls_nccl_team *team, const struct ls_error *failure, struct ls_error *error) {
    pthread_mutex_lock(&team->mutex);
    set_failure(team, failure);
    pthread_mutex_unlock(&team->mutex);
    return ls_nccl_team_check(team, error);
}

/* A local rank whose process is gone, or -1. */
static int lost_peer(const struct ls_nccl_team *team) {
    const struct ls_nccl_peer *own = &team->peers[team->rank];
    for (int rank = 0; rank < team->size; rank++) {
        const struct ls_nccl_peer *peer = &team->peers[rank];
        if (strcmp(peer->host, own->host) != 0 || peer->pid_namespace != own->pid_namespace) continue;
        if (!ls_progress_alive(&peer->record)) return rank;
    }
    return -1;
}

static void describe_lost_peer(const struct ls_nccl_team *team, int rank, struct ls_error *failure) {
    ls_fail(failure, LS_COMMUNICATION, LS_SCOPE_JOB,
            "communication: rank %d (process %lld on %s) is gone. Its log says why; --resume goes on from the newest "
            "checkpoint.",
            rank, (long long)atomic_load_explicit(&team->peers[rank].record.pid, memory_order_relaxed),
            team->peers[rank].host);
}

/* What NCCL noticed is often the end of a process that is still on its way out: it is given time to be gone. */
static void describe_nccl_error(const struct ls_nccl_team *team, ncclResult_t result, const char *call,
                                ncclComm_t handle, struct ls_error *failure) {
    const bool remote = result == ncclRemoteError || result == ncclSystemError || result == ncclInternalError;
    for (int waited = 0; remote && waited < PATIENCE_MILLISECONDS; waited += WATCH_MILLISECONDS) {
        const int lost = lost_peer(team);
        if (lost >= 0) {
            describe_lost_peer(team, lost, failure);
            return;
        }
        sleep_ns(WATCH_MILLISECONDS * 1000000);
    }
    const struct ls_cuda_device *device = (const struct ls_cuda_device *)team->options.device;
    const cudaError_t fault = result == ncclUnhandledCudaError ? ls_cuda_fault(device) : cudaSuccess;
    if (fault) {
        ls_cuda_fail(device, fault, "a collective, or a kernel before it", failure);
        return;
    }
    const char *detail = handle ? team->library->ncclGetLastError(handle) : NULL;
    if (result == ncclUnhandledCudaError && detail &&
        (strstr(detail, "out of memory") || strstr(detail, "Failed to CUDA"))) {
        ls_fail(failure, LS_MEMORY, LS_SCOPE_RANK,
                "communication: NCCL finds no memory on the GPU in %s (%s), %.1f MiB are free. Lower "
                "train.micro_batch_size, or end other programs on the device.",
                call, detail, (double)ls_device_free_bytes(team->options.device) / 1048576);
        return;
    }
    ls_fail(failure, LS_COMMUNICATION, LS_SCOPE_JOB,
            "communication: NCCL reports '%s' in %s%s%s. A rank or the network between ranks is lost: see the other "
            "ranks' logs; NCCL_DEBUG=WARN makes NCCL say more.",
            team->library->ncclGetErrorString(result), call, detail && *detail ? ": " : "", detail ? detail : "");
}

enum ls_code ls_nccl_team_settle(struct ls_nccl_team *team, struct ls_nccl_member *member, ncclResult_t result,
                                 const char *call, struct ls_error *error) {
    const int64_t deadline = now_ns() + LS_NCCL_INIT_SECONDS * INT64_C(1000000000);
    struct ls_error failure;
    for (int poll = 0; result == ncclInProgress; poll++) {
        if (poll < POLLS_AWAKE)
            sched_yield();
        else
            sleep_ns(POLL_SLEEP_NS);
        const enum ls_code code = ls_nccl_team_check(team, error);
        if (code) return code;
        pthread_mutex_lock(&team->mutex);
        ncclResult_t asked =
            member->handle ? team->library->ncclCommGetAsyncError(member->handle, &result) : ncclSuccess;
        pthread_mutex_unlock(&team->mutex);
        if (asked != ncclSuccess) result = asked;
        if (result != ncclInProgress || now_ns() < deadline) continue;
        ls_fail(&failure, LS_COMMUNICATION, LS_SCOPE_JOB,
                "communication: %s was not done after %d s. A rank did not come, or NCCL picked an interface that does "
                "not reach the others: look at NCCL_SOCKET_IFNAME, and set NCCL_DEBUG=INFO.",
                call, LS_NCCL_INIT_SECONDS);
        return ls_nccl_team_fail(team, &failure, error);
    }
    if (result == ncclSuccess) return ls_nccl_team_check(team, error);
    describe_nccl_error(team, result, call, member->handle, &failure);
    return ls_nccl_team_fail(team, &failure, error);
}

/* ---- what is under way ---- */

void ls_nccl_team_record(struct ls_nccl_team *team, struct ls_stream *stream, uint64_t number) {
    pthread_mutex_lock(&team->mutex);
    team->stream = stream;
    if (team->newest - team->oldest < FLIGHTS) {
        struct ls_nccl_flight *flight = &team->flights[team->newest % FLIGHTS];
        if (cudaEventRecord(flight->event, ls_cuda_stream(stream)) == cudaSuccess) {
            flight->number = number;
            flight->began_ns = now_ns();
            flight->operation = ls_progress_begin_collective(team->root->watch, true, number, -1);
            team->newest++;
        }
    }
    pthread_mutex_unlock(&team->mutex);
}

/* Takes what has ended off the list. The mutex is held. */
static void look_at_flights(struct ls_nccl_team *team) {
    const int64_t now = now_ns();
    while (team->oldest < team->newest) {
        const struct ls_nccl_flight *flight = &team->flights[team->oldest % FLIGHTS];
        if (cudaEventQuery(flight->event) == cudaErrorNotReady) break;
        ls_progress_end_collective(team->root->watch, true, flight->number, flight->operation);
        team->oldest++;
        team->progress_ns = now;
    }
    if (team->oldest == team->newest) return;
    const struct ls_nccl_flight *oldest = &team->flights[team->oldest % FLIGHTS];
    const int64_t since = oldest->began_ns > team->progress_ns ? oldest->began_ns : team->progress_ns;
    const double seconds = 1e-9 * (double)(now - since), limit = team->options.timeout_seconds;
    struct ls_error failure;
    if (limit <= 0 || seconds <= limit) return;
    ls_fail(&failure, LS_COMMUNICATION, LS_SCOPE_JOB,
            "communication: collective %llu has not ended for %.0f s (the limit is %.0f s). A rank does not take part: "
            "the one that is at another step or phase than the others is the cause.",
            (unsigned long long)oldest->number, seconds, limit);
    set_failure(team, &failure);
}

/* ---- the watchdog ---- */

/* Frees what hangs on the GPU; in a thread of its own, since an abort may hang itself. */
static void *abort_members(void *argument) {
    struct ls_nccl_team *team = argument;
    for (ncclComm_t handle = NULL;; handle = NULL) {
        pthread_mutex_lock(&team->mutex);
        for (struct ls_nccl_member *member = team->members; member && !handle; member = member->next) {
            handle = member->handle;
            member->handle = NULL;
        }
        pthread_mutex_unlock(&team->mutex);
        if (!handle) return NULL;
        team->library->ncclCommAbort(handle);
    }
}

/* Aborts, and sees to it that the process leaves. Not under the mutex. */
static void end_team(struct ls_nccl_team *team) {
    const int64_t deadline = now_ns() + LS_NCCL_GRACE_SECONDS * INT64_C(1000000000);
    pthread_t aborter;
    ls_log(LS_LOG_ERROR, "%s", team->failure.text);
    const bool aborting = pthread_create(&aborter, NULL, abort_members, team) == 0;
    while (!atomic_load(&team->closing) && now_ns() < deadline) sleep_ns(WATCH_MILLISECONDS * 1000000);
    if (!atomic_load(&team->closing) && team->options.leave) team->options.leave(&team->failure);
    if (aborting) pthread_join(aborter, NULL);
}

/* The mutex is held, and given up while waiting. */
static void wait_for_change(struct ls_nccl_team *team) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += WATCH_MILLISECONDS * 1000000;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    pthread_cond_timedwait(&team->changed, &team->mutex, &until);
}

/* What NCCL says by itself. The mutex is held. */
static void look_at_members(struct ls_nccl_team *team) {
    for (struct ls_nccl_member *member = team->members; member; member = member->next) {
        ncclResult_t result = ncclSuccess;
        if (member->handle && team->library->ncclCommGetAsyncError(member->handle, &result) != ncclSuccess)
            result = ncclInternalError;
        if (result == ncclSuccess || result == ncclInProgress) continue;
        struct ls_error failure;
        describe_nccl_error(team, result, "a collective", member->handle, &failure);
        set_failure_late(team, &failure);
        return;
    }
}

static void look_at_peers(struct ls_nccl_team *team) {
    struct ls_error failure;
    const int lost = lost_peer(team);
    if (lost < 0) return;
    describe_lost_peer(team, lost, &failure);
    set_failure_late(team, &failure);
}

static void *watch(void *argument) {
    struct ls_nccl_team *team = argument;
    int64_t peers_seen_ns = now_ns();
    cudaSetDevice(team->gpu);
    pthread_mutex_lock(&team->mutex);
    while (!atomic_load(&team->closing) && !team->failure.code) {
        wait_for_change(team);
        look_at_flights(team);
        look_at_members(team);
        if (now_ns() - peers_seen_ns < PEERS_MILLISECONDS * INT64_C(1000000)) continue;
        look_at_peers(team);
        peers_seen_ns = now_ns();
    }
    pthread_mutex_unlock(&team->mutex);
    if (!atomic_load(&team->closing)) end_team(team);
    return NULL;
}

/* ---- life ---- */

enum ls_code ls_nccl_team_create(const struct ls_comm_nccl_options *options, const struct ls_nccl *library,
                                 struct ls_nccl_team **team, struct ls_error *error) {
    const int size = ls_comm_size(options->host);
    struct ls_nccl_team *made = calloc(1, sizeof *made);
    if (made) made->peers = calloc((size_t)size, sizeof *made->peers);
    if (made) made->flights = calloc(FLIGHTS, sizeof *made->flights);
    if (!made || !made->peers || !made->flights) {
        if (made) free(made->peers);
        free(made);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "communication: no memory for the records of %d ranks", size);
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&made->mutex, NULL);
    pthread_cond_init(&made->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    made->options = *options;
    made->library = library;
    made->gpu = ((const struct ls_cuda_device *)options->device)->index;
    made->rank = ls_comm_rank(options->host);
    made->size = size;
    *team = made;
    return LS_OK;
}

enum ls_code ls_nccl_team_meet(struct ls_nccl_team *team, struct ls_error *error) {
    struct ls_nccl_peer own = {0};
    struct stat pids;
    ls_progress_enter(&own.record);
    if (gethostname(own.host, sizeof own.host - 1)) own.host[0] = 0;
    if (stat("/proc/self/ns/pid", &pids) == 0) own.pid_namespace = pids.st_ino;
    return ls_comm_gather_bytes(team->options.host, &own, sizeof own, team->peers, error);
}

enum ls_code ls_nccl_team_start(struct ls_nccl_team *team, struct ls_error *error) {
    const int64_t bytes = team->options.workspace_bytes;
    if (bytes > 0 && !(team->workspace = ls_device_allocate(team->options.device, (size_t)bytes)))
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK,
                       "communication: no device memory for a workspace of %lld bytes. Lower train.micro_batch_size.",
                       (long long)bytes);
    for (int flight = 0; flight < FLIGHTS; flight++) {
        const cudaError_t status = cudaEventCreateWithFlags(&team->flights[flight].event, cudaEventDisableTiming);
        if (status != cudaSuccess)
            return ls_fail(error, LS_ERROR, LS_SCOPE_RANK,
                           "communication: cudaEventCreate failed: %s. The driver's log (dmesg) may say more.",
                           cudaGetErrorString(status));
    }
    team->watched = pthread_create(&team->watchdog, NULL, watch, team) == 0;
    if (!team->watched) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "communication: no thread for the watchdog");
    return LS_OK;
}

void ls_nccl_team_stop(struct ls_nccl_team *team) {
    pthread_mutex_lock(&team->mutex);
    atomic_store(&team->closing, true);
    pthread_cond_broadcast(&team->changed);
    pthread_mutex_unlock(&team->mutex);
    if (team->watched) pthread_join(team->watchdog, NULL);
    team->watched = false;
}

void ls_nccl_team_destroy(struct ls_nccl_team *team) {
    if (!team) return;
    for (int flight = 0; flight < FLIGHTS; flight++)
        if (team->flights[flight].event) cudaEventDestroy(team->flights[flight].event);
    ls_device_free(team->options.device, team->workspace);
    pthread_cond_destroy(&team->changed);
    pthread_mutex_destroy(&team->mutex);
    free(team->flights);
    free(team->peers);
    free(team);
}

void ls_nccl_team_add(struct ls_nccl_team *team, struct ls_nccl_member *member) {
    pthread_mutex_lock(&team->mutex);
    member->next = team->members;
    team->members = member;
    pthread_mutex_unlock(&team->mutex);
}

void ls_nccl_team_remove(struct ls_nccl_team *team, struct ls_nccl_member *member) {
    pthread_mutex_lock(&team->mutex);
    for (struct ls_nccl_member **link = &team->members; *link; link = &(*link)->next)
        if (*link == member) {
            *link = member->next;
            break;
        }
    pthread_mutex_unlock(&team->mutex);
}
