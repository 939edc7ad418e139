/* The server's loop, and its beginning and end. */
#define _GNU_SOURCE
#include "coordinator/server.h"

#include "common/leftovers.h"
#include "common/log.h"
#include "common/progress.h"
#include "coordinator/descriptors.h"
#include "coordinator/launcher.h"
#include "coordinator/launcher_output.h"
#include "coordinator/prometheus.h"
#include "coordinator/pulse.h"
#include "coordinator/server_state.h"
#include "coordinator/tensorboard.h"

#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum {
    TURN_MS = 50,
    WATCH_MS = 200,
    TICK_MS_MAX = 1000, /* what the time between two of them counts at most */
    HELD_MS = 5000,
    GOODBYE_MS = 3000,  /* for rank 0 to have heard of the end */
    LEAVE_SECONDS = 10, /* for orphaned workers */
    GONE_SECONDS = 3    /* for killed ones to be gone */
};

int64_t server_now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

void server_handle(struct ls_server *server, const struct ls_core_event *event) {
    /* An action can lead to another event (a commit that cannot begin), so each has its own list. */
    struct ls_core_actions *actions = malloc(sizeof *actions);
    if (!actions) {
        ls_log(LS_LOG_ERROR, "coordinator: no memory to handle '%s'", ls_core_event_name(event->kind));
        return;
    }
    ls_core_handle(server->run->machine, event, actions);
    server_perform(server, actions);
    free(actions);
}

/* ---- what wakes the loop ---- */

static void read_threads(struct ls_server *server) {
    uint64_t woken, sequence;
    char text[LS_WIRE_TEXT_BYTES];
    if (read(server->wake, &woken, sizeof woken) < 0 && errno != EAGAIN) return;
    bool fine = ls_journal_durable(server->run->journal, &sequence, text);
    if (sequence > server->journaled) {
        server->journaled = sequence;
        struct ls_core_event event = {.kind = LS_EVENT_JOURNALED};
        event.journaled.sequence = sequence;
        server_handle(server, &event);
    }
    if (!fine && !server->journal_failed) {
        server->journal_failed = true;
        struct ls_core_event event = {.kind = LS_EVENT_JOURNAL_FAILED};
        event.journal_failed.text = text;
        server_handle(server, &event);
    }
    while (server->auditor && ls_auditor_take(server->auditor, text)) server_tell(server, "data_damaged", "%s", text);
    struct ls_commit_result result;
    server_take_start(server);
    if (ls_committer_take(server->committer, &result)) {
        struct ls_core_event event = {.kind = result.done ? LS_EVENT_COMMIT_DONE : LS_EVENT_COMMIT_FAILED,
                                      .attempt = (uint32_t)result.attempt};
        event.commit.step = result.step;
        event.commit.text = result.text;
        server_handle(server, &event);
    }
}

static void tell_fault(struct ls_server *server, const struct ls_watcher_loss *loss) {
    struct ls_core_event event = {.kind = LS_EVENT_FAULT, .attempt = server_attempt(server)};
    event.fault.rank = (int32_t)loss->rank;
    event.fault.step = loss->step;
    event.fault.code = loss->code;
    event.fault.text = loss->text;
    server_handle(server, &event);
}

static void tell_lost_rank(struct ls_server *server, int64_t attempt, int32_t rank, const char *host, const char *how) {
    struct ls_core_event event = {.kind = LS_EVENT_RANK_LOST, .attempt = (uint32_t)attempt};
    event.rank_lost.rank = rank;
    event.rank_lost.host = host;
    event.rank_lost.how = how;
    server_handle(server, &event);
}

static void tell_lost_node(struct ls_server *server, int64_t attempt, const char *host, const char *how) {
    struct ls_core_event event = {.kind = LS_EVENT_NODE_LOST, .attempt = (uint32_t)attempt};
    event.node_lost.host = host;
    event.node_lost.how = how;
    server_handle(server, &event);
}

static bool is_equal(const char *a, const char *b) {
    return strcmp(a, b) == 0;
}

/* The name of the first rank's host of which `is` says that it is `name`, as the ranks told it; NULL: none. */
static const char *rank_host(const struct ls_server *server, const char *name, bool (*is)(const char *, const char *)) {
    const int64_t ranks = server->stall ? server->run->ranks : 0;
    for (int64_t rank = 0; rank < ranks; rank++) {
        const char *host = ls_stall_rank_host(server->stall, rank);
        if (host[0] && is(host, name)) return host;
    }
    return NULL;
}

/* The host's name as its ranks told it; a launcher may call it otherwise, by an address too. */
static const char *joined_name(const struct ls_server *server, const char *name) {
    const int64_t ranks = server->stall ? server->run->ranks : 0;
    struct ls_hosts joined = {0};
    const char *before = "", *same = rank_host(server, name, ls_host_is);
    if (same) return same;
    for (int64_t rank = 0; rank < ranks; rank++) {
        const char *host = ls_stall_rank_host(server->stall, rank);
        if (!host[0] || strcmp(host, before) == 0) continue;
        before = host;
        if (ls_hosts_add(&joined, host, strlen(host), 0, NULL) != LS_OK) break;
    }
    const int index = ls_hosts_find(&joined, name);
    const char *called = index >= 0 && joined.list ? rank_host(server, joined.list[index].name, is_equal) : NULL;
    if (called) name = called;
    ls_hosts_release(&joined);
    return name;
}

/* A launcher knows which ranks of any host were lost, or which host, and says so in its output. */
static void tell_launchers_verdict(struct ls_server *server, int64_t attempt) {
    char path[PATH_MAX];
    struct ls_launcher_loss loss;
    snprintf(path, sizeof path, "%s/logs/launcher.log", server->run->directory.path);
    if (!ls_launcher_read_loss(path, attempt, &loss)) return;
    if (loss.count == 0) tell_lost_node(server, attempt, joined_name(server, loss.host), loss.text);
    for (int i = 0; i < loss.count && !server->ended; i++)
        tell_lost_rank(server, attempt, loss.ranks[i], joined_name(server, loss.host), loss.text);
}

/* A rank that was ended by its launcher is told when nothing better came. */
static void tell_held(struct ls_server *server) {
    if (!server->held_ms || server->ended) return;
    server->held_ms = 0;
    tell_fault(server, &server->held);
}

/* What a rank said on its standard error comes first: it may have reached nobody else. */
static void on_launcher_exited(struct ls_server *server, const struct ls_channel_message *message) {
    struct ls_watcher_loss loss;
    struct ls_launcher_exit exited;
    struct ls_launcher_reason reason;
    char path[PATH_MAX], host[LS_HOST_NAME_SIZE];
    snprintf(path, sizeof path, "%s/logs/launcher.log", server->run->directory.path);
    if (message->status && ls_watcher_read_launcher(server->watcher, &loss)) tell_fault(server, &loss);
    if (!server->ended) tell_launchers_verdict(server, message->attempt);
    struct ls_core_event event = {.kind = LS_EVENT_LAUNCHER_EXITED, .attempt = (uint32_t)message->attempt};
    event.launcher_exited.status = message->status;
    if (ls_launcher_read_exit(path, message->attempt, message->status, &exited)) {
        if (exited.host[0])
            snprintf(host, sizeof host, "%s", joined_name(server, exited.host));
        else
            server_find_host(server, exited.rank, host, sizeof host);
        event.launcher_exited.code = exited.code;
        event.launcher_exited.rank = exited.rank;
        event.launcher_exited.killed_by = exited.killed_by;
        event.launcher_exited.host = host;
        server->held_ms = 0; /* it was ended for that one */
    }
    tell_held(server);
    if (server->ended) return;
    if (message->status) {
        ls_watcher_read_reason(server->watcher, &reason);
        event.launcher_exited.said = reason.text;
        event.launcher_exited.advice = reason.advice;
    }
    server_note_loss(server, 0);
    server_handle(server, &event);
}

static void on_signal(struct ls_server *server, enum ls_core_signal signal_kind) {
    struct ls_core_event event = {.kind = LS_EVENT_SIGNAL, .signal = signal_kind};
    server_handle(server, &event);
}

static void read_channel(struct ls_server *server) {
    struct ls_channel_message message;
    int got;
    while (!server->ended && (got = ls_channel_receive(server->channel, &message)) != 0) {
        if (got < 0) {
            ls_log(LS_LOG_WARNING, "coordinator: the supervisor is gone; saving and ending");
            close(server->channel);
            server->channel = -1;
            server_tell(server, "supervisor_lost", "the supervisor is gone; saving and ending");
            on_signal(server, LS_SIGNAL_REQUEUE);
            return;
        }
        if (message.kind == LS_CHANNEL_SIGNAL) on_signal(server, message.signal);
        if (message.kind == LS_CHANNEL_LAUNCHER_STARTED) server->launcher = message.pid;
        if (message.kind == LS_CHANNEL_LAUNCHER_EXITED) on_launcher_exited(server, &message);
        if (message.kind == LS_CHANNEL_GONE && message.attempt == server->clearing) server->processes_gone = true;
    }
}

static void read_signals(struct ls_server *server) {
    struct signalfd_siginfo info;
    while (!server->ended && read(server->signals, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGINT)
            on_signal(server, LS_SIGNAL_STOP);
        else if (info.ssi_signo == SIGQUIT)
            on_signal(server, LS_SIGNAL_NOW);
        else if (info.ssi_signo == SIGUSR2)
            on_signal(server, LS_SIGNAL_SAVE);
        else if (info.ssi_signo != SIGHUP)
            on_signal(server, LS_SIGNAL_REQUEUE);
    }
}

static void read_monitor(struct ls_server *server) {
    for (int i = 0; i < 100; i++) {
        uint8_t event[6];
        char address[256];
        if (zmq_recv(server->monitor, event, sizeof event, ZMQ_DONTWAIT) < 0) return;
        int length = zmq_recv(server->monitor, address, sizeof address - 1, 0);
        if (length < 0) return;
        address[length < (int)sizeof address ? length : (int)sizeof address - 1] = 0;
        uint16_t kind;
        memcpy(&kind, event, sizeof kind);
        server_complain(&server->handshakes, "a connection failed its handshake",
                        kind == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH ? "its key is not of this run"
                                                                : "it does not speak CURVE, or broke off");
    }
}

/* While a better explanation of a failure is awaited the launcher may have given it, long before it ends. */
static void ask_launcher_why(struct ls_server *server) {
    struct ls_core_status status;
    ls_core_read_status(server->run->machine, &status);
    if (status.phase == LS_PHASE_FAILING) tell_launchers_verdict(server, server_attempt(server));
}

static void watch(struct ls_server *server) {
    struct ls_watcher_loss loss;
    while (!server->ended && ls_watcher_poll(server->watcher, &loss)) {
        server_note_loss(server, loss.silent_seconds);
        if (!loss.by_itself && loss.asked) {
            if (!server->held_ms) server->held = loss;
            if (!server->held_ms) server->held_ms = server_now_ms();
            continue;
        }
        if (loss.by_itself) {
            tell_fault(server, &loss);
            continue;
        }
        tell_lost_rank(server, server_attempt(server), (int32_t)loss.rank, server->run->facts.host, loss.text);
    }
    if (server->held_ms && server_now_ms() - server->held_ms > HELD_MS) tell_held(server);
}

/* The event of a stall, for programs (`dump` NULL: there is none); the line for people is that of the fault. */
static void tell_stall(struct ls_server *server, const struct ls_verdict *verdict, const char *dump) {
    char line[PATH_MAX + 64] = "what every rank did last could not be written";
    if (dump) snprintf(line, sizeof line, "what every rank did last is in %s", dump);
    json_t *fields =
        json_pack("{s:s, s:i, s:s, s:s, s:f, s:I, s:b, s:s, s:s?, s:s}", "verdict", ls_verdict_name(verdict->kind),
                  "rank", verdict->rank, "host", ls_stall_host(server->stall, verdict->host), "phase", verdict->phase,
                  "seconds", verdict->seconds, "collective", (json_int_t)verdict->collective, "collective_on_host",
                  verdict->collective_on_host, "waiting", verdict->waiting, "dump", dump, "text", line);
    char *json = fields ? json_dumps(fields, JSON_COMPACT) : NULL;
    if (json) ls_journal_tell(server->run->journal, server_attempt(server), "stall", json);
    free(json);
    json_decref(fields);
}

/* Tells the core of an attempt that stands still, once the dump of what its ranks did last is written. */
static void watch_progress(struct ls_server *server) {
    struct ls_core_status status;
    struct ls_verdict verdict;
    struct ls_error error;
    char path[PATH_MAX];
    ls_core_read_status(server->run->machine, &status);
    const bool joined = status.ranks_joined == status.world_size;
    if (!server->stall || !ls_stall_poll(server->stall, server_now_ms(), joined, &verdict)) return;
    const bool dumped = ls_stall_dump(server->stall, &verdict, path, sizeof path, &error) == LS_OK;
    if (!dumped) ls_log(LS_LOG_WARNING, "%s", error.text);
    tell_stall(server, &verdict, dumped ? path : NULL);
    char text[LS_CORE_TEXT_BYTES];
    const bool of_one = verdict.kind != LS_VERDICT_NETWORK && verdict.kind != LS_VERDICT_DEADLOCK;
    const char *host = ls_stall_host(server->stall, verdict.host);
    server_note_loss(server, verdict.seconds);
    if (verdict.kind == LS_VERDICT_SILENT) {
        tell_lost_node(server, server_attempt(server), host, verdict.text);
        return;
    }
    snprintf(text, sizeof text, "stall: ");
    if (of_one)
        snprintf(text, sizeof text, "stall: rank %d on %s, step %lld: ", verdict.rank, host[0] ? host : "unknown host",
                 (long long)status.step + 1);
    snprintf(text + strlen(text), sizeof text - strlen(text), "%s", verdict.text);
    struct ls_core_event event = {.kind = LS_EVENT_STALLED, .attempt = server_attempt(server)};
    event.stalled.rank = of_one ? verdict.rank : -1;
    event.stalled.host = host;
    event.stalled.text = text;
    server_handle(server, &event);
}

static void tick(struct ls_server *server) {
    struct ls_core_status before;
    ls_core_read_status(server->run->machine, &before);
    struct ls_core_event event = {.kind = LS_EVENT_TICK};
    const int64_t now = server_now_ms(), passed = server->ticked_ms ? now - server->ticked_ms : 0;
    server->ticked_ms = now;
    server->clock_ms += passed < TICK_MS_MAX ? passed : TICK_MS_MAX;
    event.tick.now_ms = server->clock_ms;
    server_handle(server, &event);
    /* Ranks that never came: the core knows who, the progress file how far they got. */
    if (!server->ended || server->end_code != LS_COMMUNICATION || before.phase != LS_PHASE_WAITING) return;
    char progress[LS_WIRE_TEXT_BYTES / 2], text[sizeof server->end_text];
    ls_watcher_describe(server->watcher, server->run->ranks, progress, sizeof progress);
    const char *advice = strstr(server->end_text, ". ");
    int fact = advice ? (int)(advice - server->end_text) : (int)strlen(server->end_text);
    snprintf(text, sizeof text, "%.*s (%s)%s", fact, server->end_text, progress, advice ? advice : "");
    memcpy(server->end_text, text, sizeof text);
}

static void serve(struct ls_server *server) {
    int64_t watched_ms = 0;
    while (!server->ended) {
        ls_pulse_beat(server->run->pulse);
        zmq_pollitem_t items[] = {{server->router, 0, ZMQ_POLLIN, 0},
                                  {server->monitor, 0, ZMQ_POLLIN, 0},
                                  {NULL, server->wake, ZMQ_POLLIN, 0},
                                  {NULL, server->channel >= 0 ? server->channel : server->signals, ZMQ_POLLIN, 0}};
        int count = server->channel >= 0 || server->signals >= 0 ? 4 : 3;
        if (zmq_poll(items, count, TURN_MS) < 0 && errno != EINTR)
            ls_log(LS_LOG_ERROR, "coordinator: poll: %s", zmq_strerror(errno));
        if (items[0].revents) server_receive(server);
        if (items[1].revents) read_monitor(server);
        if (!server->ended) read_threads(server);
        if (server->channel >= 0)
            read_channel(server);
        else if (server->signals >= 0)
            read_signals(server);
        if (!server->ended) server_check_cleared(server);
        if (!server->ended) server_check_room(server);
        int64_t now = server_now_ms();
        if (server->ended || now - watched_ms < WATCH_MS) continue;
        watched_ms = now;
        watch(server);
        if (!server->ended) ask_launcher_why(server);
        if (!server->ended) watch_progress(server);
        if (!server->ended) tick(server);
        if (!server->ended) server_drop_silent(server);
    }
}

/* ---- beginning and end ---- */

static void set_int(void *socket, int option, int value) {
    zmq_setsockopt(socket, option, &value, sizeof value);
}

/* Binds every address, all to one port: the wanted one, or what the first one got. */
static enum ls_code listen_at(struct ls_server *server, struct ls_error *error) {
    struct ls_run *run = server->run;
    char endpoint[128];
    for (int i = 0; i < run->listen.listen_count; i++) {
        ls_network_endpoint(run->listen.listen[i], run->port, endpoint);
        if (zmq_bind(server->router, endpoint))
            return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                           "the coordinator cannot listen at %s: %s. Set coordinator.bind and coordinator.port.",
                           endpoint, zmq_strerror(errno));
        size_t size = sizeof endpoint;
        zmq_getsockopt(server->router, ZMQ_LAST_ENDPOINT, endpoint, &size);
        run->port = strtol(strrchr(endpoint, ':') + 1, NULL, 10);
    }
    ls_network_endpoints(&run->listen, run->port, server->endpoints);
    snprintf(endpoint, sizeof endpoint, "%.*s", (int)strcspn(server->endpoints, ","), server->endpoints);
    return ls_run_directory_sign(&run->directory, run->core.generation, endpoint, error);
}

static enum ls_code bind_router(struct ls_server *server, struct ls_error *error) {
    struct ls_run *run = server->run;
    server->router = zmq_socket(server->context, ZMQ_ROUTER);
    if (!server->router)
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "cannot make a ZeroMQ socket: %s", zmq_strerror(errno));
    enum ls_code code = ls_zap_guard(server->router, &run->keys, error);
    if (code != LS_OK) return code;
    int64_t largest = LS_WIRE_BYTES_MAX;
    zmq_setsockopt(server->router, ZMQ_MAXMSGSIZE, &largest, sizeof largest);
    set_int(server->router, ZMQ_LINGER, 2000);
    bool six = false;
    for (int i = 0; i < run->listen.listen_count; i++) six = six || strchr(run->listen.listen[i], ':') != NULL;
    set_int(server->router, ZMQ_IPV6, six);
    set_int(server->router, ZMQ_ROUTER_MANDATORY, 1);
    set_int(server->router, ZMQ_ROUTER_HANDOVER, 1);
    set_int(server->router, ZMQ_HANDSHAKE_IVL, 5000);
    set_int(server->router, ZMQ_HEARTBEAT_IVL, 1000);
    set_int(server->router, ZMQ_HEARTBEAT_TIMEOUT, 10000);
    set_int(server->router, ZMQ_BACKLOG, 4096);
    zmq_socket_monitor(server->router, "inproc://server-monitor",
                       ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                           ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL);
    server->monitor = zmq_socket(server->context, ZMQ_PAIR);
    /* libzmq's thread never waits for whoever reads: at the end nobody does, while strangers may knock. */
    if (server->monitor) set_int(server->monitor, ZMQ_RCVHWM, 0);
    if (!server->monitor || zmq_connect(server->monitor, "inproc://server-monitor"))
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "cannot watch the socket: %s", zmq_strerror(errno));
    return listen_at(server, error);
}

/* Every journal entry goes to metrics.jsonl and to the console too. */
static void observe(void *context, const struct ls_journal_entry *entry) {
    struct ls_server *server = context;
    ls_metrics_write(server->metrics, entry);
    if (server->tensorboard) ls_tensorboard_write(server->tensorboard, entry);
    if (server->prometheus) ls_prometheus_write(server->prometheus, entry);
    ls_console_show(server->console, entry);
}

enum ls_code server_start_watching(struct ls_server *server, struct ls_error *error) {
    const struct ls_run *run = server->run;
    enum ls_code code =
        ls_watcher_create(run->directory.path, run->directory.run_id, run->attempt.attempt, &server->watcher, error);
    if (code != LS_OK) return code;
    struct ls_stall_options options = {.attempt = run->attempt.attempt,
                                       .ranks = run->ranks,
                                       .timeout = (double)run->config->fault.stall_timeout_seconds,
                                       .start_timeout = (double)run->config->fault.start_timeout_seconds,
                                       .grant_timeout = (double)run->config->fault.coordinator_timeout_seconds};
    snprintf(options.run_dir, sizeof options.run_dir, "%s", run->directory.path);
    snprintf(options.run_id, sizeof options.run_id, "%s", run->directory.run_id);
    snprintf(options.host, sizeof options.host, "%s", run->facts.host);
    code = ls_stall_create(&options, &server->stall, error);
    return code ? code : ls_stragglers_create(run->ranks, &server->stragglers, error);
}

static void note_validation(void *server, int64_t step, double loss) {
    server_note_validation(server, step, loss);
}

static enum ls_code start(struct ls_server *server, struct ls_error *error) {
    struct ls_run *run = server->run;
    ls_descriptors_raise();
    server->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    server->buffer = malloc(LS_WIRE_BYTES_MAX);
    server->ranks = calloc(LS_WIRE_RANKS_MAX, sizeof *server->ranks);
    server->context = zmq_ctx_new();
    if (server->wake < 0 || !server->buffer || !server->ranks || !server->context)
        return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for the coordinator");
    enum ls_code code =
        ls_journal_history(run->journal, &run->facts.earlier_seconds, &run->facts.earlier_faults, error);
    if (code == LS_OK)
        code = ls_journal_read_validations(run->journal, run->attempt.attempt, SERVER_VALIDATIONS, note_validation,
                                           server, error);
    if (code == LS_OK) code = ls_metrics_open(&run->facts, &server->metrics, error);
    if (code == LS_OK && run->config->metrics.tensorboard)
        code = ls_tensorboard_open(&run->facts, !run->core.restarted, &server->tensorboard, error);
    if (code == LS_OK && run->config->metrics.prometheus[0])
        code = ls_prometheus_open(run->config->metrics.prometheus, &run->facts, &server->prometheus, error);
    if (code == LS_OK) code = ls_console_open(&run->facts, &server->console, error);
    if (code == LS_OK) code = server_start_watching(server, error);
    if (code == LS_OK) code = ls_zap_start(server->context, &run->keys, &server->zap, error);
    if (code == LS_OK) code = bind_router(server, error);
    /* Where this process is the coordinator's alone, strangers' connections cannot take the descriptors that
     * checkpoints and /proc need. */
    if (code == LS_OK && getpid() == gettid() && !ls_descriptors_part())
        ls_log(LS_LOG_WARNING,
               "coordinator: this system does not let it set descriptors aside (%s); a flood of "
               "connections could keep it from opening files",
               strerror(errno));
    if (code == LS_OK)
        code = ls_committer_start(&run->directory, run->core.generation, server->wake, &server->committer, error);
    if (code == LS_OK && run->config->data.audit)
        code = ls_auditor_start(&run->directory, run->config, server->wake, &server->auditor, error);
    if (code == LS_OK)
        code = ls_journal_start(run->journal, run->core.generation, server->wake, observe, server, error);
    return code;
}

static void stop(struct ls_server *server) {
    ls_auditor_stop(server->auditor);
    ls_committer_stop(server->committer);
    ls_journal_close(server->run->journal);
    server->run->journal = NULL;
    if (server->router) {
        zmq_socket_monitor(server->router, NULL, 0);
        zmq_close(server->router);
    }
    if (server->monitor) zmq_close(server->monitor);
    ls_zap_stop(server->zap);
    if (server->context) zmq_ctx_term(server->context);
    ls_stragglers_destroy(server->stragglers);
    ls_stall_destroy(server->stall);
    ls_watcher_destroy(server->watcher);
    if (server->wake >= 0) close(server->wake);
    ls_save_parts_drop(&server->parts);
    ls_connections_release(&server->connections);
    free(server->ranks);
    free(server->buffer);
}

static void announce(struct ls_server *server) {
    const struct ls_run *run = server->run;
    if (!run->core.restarted)
        ls_console_print(server->console, "%s: %lld step%s, %lld rank%s, from step %lld, attempt %lld; files in %s",
                         run->config->name, (long long)run->total_steps, run->total_steps == 1 ? "" : "s",
                         (long long)run->ranks, run->ranks == 1 ? "" : "s", (long long)run->attempt.start_step,
                         (long long)run->attempt.attempt, run->directory.path);
    if (server->channel < 0) {
        ls_console_print(server->console, "listening at %s; join with", server->endpoints);
        ls_console_print(server->console, "mpirun -n %lld lockstep-worker --coordinator %s --key %s/keys/worker.key",
                         (long long)run->ranks, server->endpoints, run->directory.path);
        return;
    }
    struct ls_channel_message message = {.kind = LS_CHANNEL_READY};
    snprintf(message.ready.run_dir, sizeof message.ready.run_dir, "%s", run->directory.path);
    snprintf(message.ready.run_id, sizeof message.ready.run_id, "%s", run->directory.run_id);
    memcpy(message.ready.endpoints, server->endpoints, sizeof message.ready.endpoints);
    message.ready.attempt = run->attempt.attempt;
    message.ready.ranks = run->ranks;
    message.ready.port = run->port;
    ls_key_format(&run->keys.worker, message.ready.key_text);
    ls_channel_send(server->channel, &message);
    explicit_bzero(&message, sizeof message);
}

static bool all_are_here(const struct ls_server *server) {
    struct ls_core_status status;
    ls_core_read_status(server->run->machine, &status);
    return status.ranks_joined == status.world_size;
}

/* What happened before this coordinator began. */
static void tell_beginning(struct ls_server *server) {
    struct ls_core_status status;
    ls_core_read_status(server->run->machine, &status);
    const struct ls_run *run = server->run;
    if (run->unheard_attempt)
        server_tell(server, "unheard_end",
                    "attempt %lld ended without a word behind step %lld: everything was killed, or the disk was full",
                    (long long)run->unheard_attempt, (long long)run->unheard_step);
    server_tell_damaged(server, &run->start);
    if (!run->core.restarted) ls_run_generation_tell(&run->generation, &run->attempt, run->journal);
    if (run->core.restarted)
        server_tell(server, "coordinator_restarted", "a new coordinator took over at step %lld of attempt %u (%u)",
                    (long long)status.step, status.attempt, status.generation);
}

/* The last checkpoint was committed before it was known to be the last one where a coordinator was killed behind its
 * commit, before anything was pruned too, or where what was left to train on went into quarantine. */
static void mend_complete(const struct ls_server *server) {
    const struct ls_run *run = server->run;
    struct ls_core_status status;
    ls_core_read_status(run->machine, &status);
    ls_run_mend_complete(run->directory.path, run->attempt.attempt, run->config, status.committed_step);
}

/* The supervisor is dead, who would have ended the workers; maybe before it could say which launcher it had started. */
static void end_orphans(const struct ls_server *server) {
    if (server->launcher > 0) ls_launch_end_session(server->launcher, LEAVE_SECONDS);
    ls_leftovers_remove(server->run->directory.run_id, server->run->attempt.attempt + 1, GONE_SECONDS);
}

enum ls_code ls_server_run(struct ls_run *run, int channel, int signals, struct ls_error *reason) {
    struct ls_server *server = calloc(1, sizeof *server);
    if (!server) return ls_fail(reason, LS_MEMORY, LS_SCOPE_JOB, "no memory for the coordinator");
    server->run = run;
    server->channel = channel;
    server->signals = signals;
    server->wake = -1;
    server->loss = server->tokens_per_second = NAN;
    for (int i = 0; i < SERVER_VALIDATIONS; i++) server->validations[i].step = -1;
    enum ls_code code = start(server, reason);
    bool served = code == LS_OK;
    if (served) {
        announce(server);
        tell_beginning(server);
        serve(server);
        const bool orderly =
            server->end_code == LS_OK || server->end_code == LS_REQUEUE || server->end_code == LS_STOPPED;
        if (orderly && all_are_here(server)) server_await_goodbye(server, GOODBYE_MS);
        code = ls_fail(reason, server->end_code, LS_SCOPE_JOB, "%s", server->end_text);
    }
    stop(server);
    if (served && code == LS_OK && ls_run_directory_is_ours(&run->directory, run->core.generation))
        mend_complete(server);
    if (served) {
        struct ls_metrics_summary summary;
        ls_metrics_summarise(server->metrics, &summary);
        ls_metrics_write_summary(server->metrics, code);
        ls_console_show_summary(server->console, &summary);
        if (server->prometheus) ls_prometheus_end(server->prometheus, code);
        ls_progress_remove(run->directory.run_id, run->attempt.attempt);
        if (run->core.launched && server->channel < 0) end_orphans(server);
    }
    ls_console_close(server->console);
    ls_metrics_close(server->metrics);
    ls_tensorboard_close(server->tensorboard);
    ls_prometheus_close(server->prometheus);
    free(server);
    return code;
}
