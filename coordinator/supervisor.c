/* Two children, a handful of signals, and the order in which everything ends. */
#define _GNU_SOURCE
#include "coordinator/supervisor.h"

#include "common/log.h"
#include "common/progress.h"
#include "coordinator/channel.h"
#include "coordinator/launcher.h"
#include "coordinator/server.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    TURN_MS = 100,
    RESTARTS_MAX = 5,        /* of the coordinator in a row */
    ROW_MS = 60000,          /* a life longer than this ends the row */
    LEAVE_MS = 15000,        /* for workers to leave once the run is over */
    KILL_MS = 1500,          /* from SIGTERM to SIGKILL of an attempt */
    PATIENCE_MS = 5000,      /* with the coordinator, after the second SIGINT */
    SAME_INTERRUPT_MS = 200, /* two SIGINTs closer than this are one */
    PENDING_MAX = 8
};

struct supervisor {
    struct ls_run_options options; /* of the next coordinator */
    struct ls_config *config;
    char worker[PATH_MAX], config_path[PATH_MAX];
    int signals;
    int channel;                 /* -1: no coordinator */
    pid_t coordinator, launcher; /* 0: none */
    bool launched, launcher_exited;
    int launcher_status;
    int restarts;
    int64_t born_ms;                 /* of the coordinator */
    struct ls_channel_message ready; /* the last READY; attempt 0: none yet */
    bool ended;
    enum ls_code code;
    char text[LS_WIRE_TEXT_BYTES];
    int64_t kill_ms; /* when SIGTERM was sent to the attempt, 0: not */
    bool killed;
    int interrupts;
    int64_t interrupted_ms;
    enum ls_core_signal pending[PENDING_MAX]; /* came while there was no coordinator */
    int pending_count;
};

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

static void end(struct supervisor *supervisor, enum ls_code code, const char *text) {
    if (supervisor->ended) return;
    supervisor->ended = true;
    supervisor->code = code;
    snprintf(supervisor->text, sizeof supervisor->text, "%s", text);
}

/* ---- the coordinator ---- */

/* A whole life of the coordinator in its own process. Never returns. */
static void be_coordinator(const struct ls_run_options *options, int channel) {
    prctl(PR_SET_NAME, "ls-coordinator");
    struct ls_run *run = calloc(1, sizeof *run);
    struct ls_channel_message message = {.kind = LS_CHANNEL_END};
    struct ls_error reason = {.code = LS_MEMORY, .text = "no memory for the run"};
    enum ls_code code = LS_MEMORY;
    if (run) {
        code = ls_run_prepare(options, run, &reason);
        if (code == LS_OK && run->complete)
            snprintf(reason.text, sizeof reason.text, "complete: step %lld of %lld is saved, nothing is left to do",
                     (long long)run->attempt.start_step, (long long)run->total_steps);
        else if (code == LS_OK)
            code = ls_server_run(run, channel, -1, &reason);
        if (code == LS_OK && run->complete) printf("%s\n", reason.text);
        ls_run_release(run);
        free(run);
    }
    message.code = (int32_t)code;
    snprintf(message.text, sizeof message.text, "%s", reason.text);
    ls_channel_send(channel, &message);
    fflush(NULL);
    _exit(code);
}

static enum ls_code start_coordinator(struct supervisor *supervisor, struct ls_error *error) {
    int pair[2];
    if (ls_channel_pair(pair))
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "cannot make a socket pair: %s", strerror(errno));
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        close(pair[0]);
        close(supervisor->signals);
        be_coordinator(&supervisor->options, pair[1]);
    }
    int cause = errno;
    close(pair[1]);
    if (child < 0) {
        close(pair[0]);
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "cannot start the coordinator: %s", strerror(cause));
    }
    supervisor->coordinator = child;
    supervisor->channel = pair[0];
    supervisor->born_ms = now_ms();
    return LS_OK;
}

static void tell(struct supervisor *supervisor, enum ls_channel_kind kind, int value) {
    struct ls_channel_message message = {.kind = kind, .pid = value, .status = value};
    if (supervisor->channel >= 0) ls_channel_send(supervisor->channel, &message);
}

static void tell_signal(struct supervisor *supervisor, enum ls_core_signal signal_kind) {
    struct ls_channel_message message = {.kind = LS_CHANNEL_SIGNAL, .signal = signal_kind};
    bool told =
        supervisor->channel >= 0 && supervisor->ready.ready.attempt && ls_channel_send(supervisor->channel, &message);
    if (!told && supervisor->pending_count < PENDING_MAX)
        supervisor->pending[supervisor->pending_count++] = signal_kind;
}

/* ---- the launcher ---- */

static enum ls_code start_launcher(struct supervisor *supervisor, struct ls_error *error) {
    const struct ls_config *config = supervisor->config;
    struct ls_launch_options options = {
        .ranks = supervisor->ready.ready.ranks,
        .threads_per_rank = config->launcher.threads_per_rank,
        .cores = ls_launch_cores(),
        .root = geteuid() == 0,
        .transport_is_chosen = getenv("OMPI_MCA_btl") || getenv("OMPI_MCA_pml"),
        .config = config,
        .worker = supervisor->worker,
        .endpoint = supervisor->ready.ready.endpoint,
        .run_id = supervisor->ready.ready.run_id,
        .attempt = supervisor->ready.ready.attempt,
    };
    char log_path[PATH_MAX];
    struct ls_launch *launch = malloc(sizeof *launch);
    if (!launch) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory to start the launcher");
    snprintf(log_path, sizeof log_path, "%s/logs/launcher.log", supervisor->ready.ready.run_dir);
    enum ls_code code = ls_launch_plan(&options, launch, error);
    if (code == LS_OK)
        code = ls_launch_start(launch, supervisor->ready.ready.key_text, log_path, &supervisor->launcher, error);
    free(launch);
    supervisor->launched = code == LS_OK;
    return code;
}

/* Begins to end the workers' processes; go_on_killing() finishes it. */
static void begin_kill(struct supervisor *supervisor) {
    if (!supervisor->launcher || supervisor->kill_ms) return;
    supervisor->kill_ms = now_ms();
    kill(supervisor->launcher, SIGTERM);
}

static void go_on_killing(struct supervisor *supervisor) {
    if (!supervisor->kill_ms || supervisor->killed || !supervisor->launcher) return;
    if (now_ms() - supervisor->kill_ms < KILL_MS) return;
    ls_launch_signal_session(supervisor->launcher, SIGKILL);
    supervisor->killed = true;
}

/* ---- what happens ---- */

static void on_ready(struct supervisor *supervisor, const struct ls_channel_message *message) {
    bool first = supervisor->ready.ready.attempt == 0;
    supervisor->ready = *message;
    /* The next one takes over where this one is. */
    snprintf(supervisor->config_path, sizeof supervisor->config_path, "%s/config.yaml", message->ready.run_dir);
    supervisor->options.config_path = supervisor->config_path;
    supervisor->options.settings_count = 0;
    supervisor->options.run_dir = supervisor->ready.ready.run_dir;
    supervisor->options.ranks = message->ready.ranks;
    supervisor->options.port = message->ready.port;
    supervisor->options.restarted = true;
    struct ls_error error;
    if (supervisor->config->launcher.type == LS_LAUNCH_NONE) {
        if (first)
            printf("join with\nmpirun -n %lld lockstep-worker --coordinator %s --key %s/keys/worker.key\n",
                   (long long)message->ready.ranks, message->ready.endpoint, message->ready.run_dir);
        fflush(stdout);
    } else if (!supervisor->launched && !supervisor->ended) {
        if (start_launcher(supervisor, &error) != LS_OK) end(supervisor, error.code, error.text);
    }
    if (supervisor->launcher) tell(supervisor, LS_CHANNEL_LAUNCHER_STARTED, supervisor->launcher);
    if (supervisor->launcher_exited) tell(supervisor, LS_CHANNEL_LAUNCHER_EXITED, supervisor->launcher_status);
    int count = supervisor->pending_count;
    supervisor->pending_count = 0;
    for (int i = 0; i < count; i++) tell_signal(supervisor, supervisor->pending[i]);
}

static void read_channel(struct supervisor *supervisor) {
    struct ls_channel_message message;
    int got;
    while (supervisor->channel >= 0 && (got = ls_channel_receive(supervisor->channel, &message)) != 0) {
        if (got < 0) {
            close(supervisor->channel);
            supervisor->channel = -1;
        } else if (message.kind == LS_CHANNEL_READY) {
            on_ready(supervisor, &message);
        } else if (message.kind == LS_CHANNEL_KILL) {
            begin_kill(supervisor);
        } else if (message.kind == LS_CHANNEL_END) {
            end(supervisor, (enum ls_code)message.code, message.text);
        }
    }
}

/* The coordinator is gone. Unless the run has ended, another one takes its place. */
static void on_coordinator_gone(struct supervisor *supervisor, int status) {
    char text[LS_WIRE_TEXT_BYTES];
    read_channel(supervisor); /* its last words */
    if (supervisor->channel >= 0) close(supervisor->channel);
    supervisor->channel = -1;
    supervisor->coordinator = 0;
    if (supervisor->ended) return;
    if (WIFSIGNALED(status))
        snprintf(text, sizeof text, "the coordinator was killed by signal %d", WTERMSIG(status));
    else
        snprintf(text, sizeof text, "the coordinator ended with code %d and said nothing", WEXITSTATUS(status));
    if (now_ms() - supervisor->born_ms > ROW_MS) supervisor->restarts = 0;
    size_t length = strlen(text);
    if (!supervisor->ready.ready.attempt) {
        end(supervisor, LS_ERROR, text);
    } else if (supervisor->restarts++ >= RESTARTS_MAX) {
        snprintf(text + length, sizeof text - length,
                 ", %d times in a row. See console.log; 'lockstep run --resume' goes on.", supervisor->restarts);
        end(supervisor, LS_ERROR, text);
    } else {
        ls_log(LS_LOG_WARNING, "%s; starting it again", text);
        struct ls_error error;
        if (start_coordinator(supervisor, &error) != LS_OK) end(supervisor, error.code, error.text);
    }
}

static void reap(struct supervisor *supervisor) {
    int status;
    pid_t child;
    while ((child = waitpid(-1, &status, WNOHANG)) > 0) {
        if (child == supervisor->coordinator) {
            on_coordinator_gone(supervisor, status);
        } else if (child == supervisor->launcher) {
            supervisor->launcher_exited = true;
            supervisor->launcher_status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
            tell(supervisor, LS_CHANNEL_LAUNCHER_EXITED, supervisor->launcher_status);
        }
    }
}

static void read_signals(struct supervisor *supervisor) {
    struct signalfd_siginfo info;
    while (read(supervisor->signals, &info, sizeof info) == (ssize_t)sizeof info) {
        switch (info.ssi_signo) {
        case SIGCHLD: break; /* reap() is called at every turn */
        case SIGUSR2: tell_signal(supervisor, LS_SIGNAL_SAVE); break;
        case SIGINT:
            /* Wrappers such as timeout(1) pass a Ctrl-C on that the terminal has already sent to the whole group. */
            if (supervisor->interrupts > 0 && now_ms() - supervisor->interrupted_ms < SAME_INTERRUPT_MS) break;
            supervisor->interrupts++;
            supervisor->interrupted_ms = now_ms();
            tell_signal(supervisor, LS_SIGNAL_STOP);
            break;
        default: tell_signal(supervisor, LS_SIGNAL_REQUEUE); break;
        }
    }
}

/* ---- the loop and the end ---- */

static void turn(struct supervisor *supervisor, int timeout_ms) {
    struct pollfd items[] = {{supervisor->signals, POLLIN, 0}, {supervisor->channel, POLLIN, 0}};
    poll(items, supervisor->channel >= 0 ? 2 : 1, timeout_ms);
    read_signals(supervisor);
    read_channel(supervisor);
    reap(supervisor);
    go_on_killing(supervisor);
}

static void end_coordinator(struct supervisor *supervisor) {
    int64_t since = now_ms();
    while (supervisor->coordinator) {
        turn(supervisor, TURN_MS);
        if (now_ms() - since > LEAVE_MS && supervisor->coordinator) {
            kill(supervisor->coordinator, SIGKILL);
            since = now_ms();
        }
    }
}

/* Workers leave by themselves when the run is over; what does not is ended. */
static void end_workers(struct supervisor *supervisor) {
    if (!supervisor->launched) return;
    int64_t since = now_ms();
    bool orderly = supervisor->code == LS_OK || supervisor->code == LS_REQUEUE ||
                   (supervisor->code == LS_STOPPED && supervisor->interrupts < 2);
    while (!supervisor->launcher_exited) {
        if (!orderly || now_ms() - since > LEAVE_MS || supervisor->interrupts > 1) begin_kill(supervisor);
        turn(supervisor, TURN_MS);
    }
    ls_launch_signal_session(supervisor->launcher, SIGKILL);
    ls_progress_remove(supervisor->ready.ready.run_id, supervisor->ready.ready.attempt);
}

static enum ls_code prepare(struct supervisor *supervisor, const struct ls_run_options *options,
                            struct ls_error *error) {
    supervisor->options = *options;
    supervisor->options.launched = true;
    supervisor->channel = supervisor->signals = -1;
    supervisor->config = calloc(1, sizeof *supervisor->config);
    if (!supervisor->config) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for the configuration");
    enum ls_code code =
        ls_config_load(options->config_path, options->settings, options->settings_count, supervisor->config, error);
    if (code == LS_OK && supervisor->config->launcher.type != LS_LAUNCH_NONE) {
        code = ls_launch_find_worker(supervisor->worker, sizeof supervisor->worker, error);
        if (code == LS_OK) code = ls_launch_find_mpirun(error);
    } else if (code == LS_OK) {
        supervisor->options.launched = false;
    }
    if (code != LS_OK) return code;
    sigset_t set;
    sigemptyset(&set);
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) sigaddset(&set, numbers[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    supervisor->signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (supervisor->signals < 0)
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "cannot receive signals: %s", strerror(errno));
    return start_coordinator(supervisor, error);
}

enum ls_code ls_supervisor_run(const struct ls_run_options *options, struct ls_error *reason) {
    struct supervisor *supervisor = calloc(1, sizeof *supervisor);
    if (!supervisor) return ls_fail(reason, LS_MEMORY, LS_SCOPE_JOB, "no memory for the supervisor");
    enum ls_code code = prepare(supervisor, options, reason);
    if (code == LS_OK) {
        while (!supervisor->ended) {
            turn(supervisor, TURN_MS);
            if (supervisor->interrupts > 1 && now_ms() - supervisor->interrupted_ms > PATIENCE_MS)
                end(supervisor, LS_STOPPED, "stopped at once, the coordinator did not answer; not saved");
        }
        end_coordinator(supervisor);
        end_workers(supervisor);
        code = ls_fail(reason, supervisor->code, LS_SCOPE_JOB, "%s", supervisor->text);
    }
    if (supervisor->signals >= 0) close(supervisor->signals);
    free(supervisor->config);
    explicit_bzero(&supervisor->ready, sizeof supervisor->ready);
    free(supervisor);
    return code;
}

enum ls_code ls_coordinator_run(const struct ls_run_options *options, struct ls_error *reason) {
    sigset_t set;
    sigemptyset(&set);
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) sigaddset(&set, numbers[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    struct ls_run *run = calloc(1, sizeof *run);
    if (!run || signals < 0) {
        free(run);
        return ls_fail(reason, LS_MEMORY, LS_SCOPE_JOB, "no memory for the coordinator");
    }
    enum ls_code code = ls_run_prepare(options, run, reason);
    if (code == LS_OK && run->complete)
        printf("complete: step %lld of %lld is saved, nothing is left to do\n", (long long)run->attempt.start_step,
               (long long)run->total_steps);
    else if (code == LS_OK)
        code = ls_server_run(run, -1, signals, reason);
    ls_run_release(run);
    free(run);
    close(signals);
    return code;
}
