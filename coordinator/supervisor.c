/* Two children, a handful of signals, and the order in which everything ends. */
#define _GNU_SOURCE
#include "coordinator/supervisor.h"

#include "common/leftovers.h"
#include "common/log.h"
#include "common/process.h"
#include "coordinator/channel.h"
#include "coordinator/launcher.h"
#include "coordinator/pulse.h"
#include "coordinator/server.h"
#include "coordinator/sweep.h"
#include "coordinator/trial.h"

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
    SOON_MS = 10,            /* while processes are ending */
    RESTARTS_MAX = 5,        /* of the coordinator in a row */
    ROW_MS = 60000,          /* a life longer than this ends the row */
    LEAVE_MS = 15000,        /* for workers to leave once the run is over */
    KILL_MS = 1500,          /* from SIGTERM to SIGKILL of an attempt */
    GONE_MS = 3000,          /* for killed processes to be gone */
    PATIENCE_MS = 5000,      /* with the coordinator, after the second SIGINT */
    SAME_INTERRUPT_MS = 200, /* two SIGINTs closer than this are one */
    CLOCK_SLACK_SECONDS = 2, /* between what two questions for a job's end say */
    SWEEP_MS = 20000,        /* for what is left on other hosts to be removed */
    SILENCE_MS = 10000,      /* after which a coordinator that does not go on is told of */
    SAVE_AGAIN_MS = 60000    /* a wish to save that is younger is told to a new coordinator too */
};

/* The processes of the newest attempt on this host: the launcher and everything in its session. */
struct attempt {
    int64_t number, ranks; /* 0: none was started */
    pid_t launcher;        /* 0: none */
    int status;            /* once exited: exit status, or minus the signal */
    bool exited, gone;     /* the launcher ended; and nothing of its session is left */
    int64_t exited_ms;
    int64_t kill_ms; /* when SIGTERM was sent, 0: not */
    bool killed;     /* SIGKILL was sent */
};

struct supervisor {
    struct ls_run_options options; /* of the next coordinator */
    struct ls_config *config;
    struct ls_allocation allocation;
    enum ls_launcher_type launcher_type; /* mpirun, srun or none */
    bool save_wished_in_time;            /* told that the Slurm job's time is up */
    char worker[PATH_MAX], config_path[PATH_MAX];
    int signals;
    int channel;            /* -1: no coordinator */
    pid_t coordinator;      /* 0: none */
    struct ls_pulse *pulse; /* of the coordinator */
    bool silence_told;      /* that it does not go on */
    struct attempt attempt;
    struct ls_sweep sweep;
    int64_t wanted_attempt, wanted_ranks;  /* to be started once the one before is gone; 0: none */
    char excluded[LS_CHANNEL_HOSTS_BYTES]; /* hosts that it leaves out for their losses, with commas between them */
    char silent[LS_CHANNEL_HOSTS_BYTES];   /* and because they do not answer */
    int restarts;
    int64_t born_ms;                 /* of the coordinator */
    struct ls_channel_message ready; /* the last READY; attempt 0: none yet */
    bool ended;
    enum ls_code code;
    char text[LS_WIRE_TEXT_BYTES];
    int interrupts;
    int64_t interrupted_ms;
    bool ending;                   /* a signal came that ends the run: */
    enum ls_core_signal ending_by; /* the strongest one, told to every coordinator: one may die before it is on disk */
    bool ending_told;              /* to the present one */
    int64_t save_wished_ms;        /* when SIGUSR2 came last, 0: never */
    bool save_waits;               /* to be told */
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
static void be_coordinator(const struct ls_run_options *options, struct ls_pulse *pulse, int channel) {
    prctl(PR_SET_NAME, "ls-coordinator");
    struct ls_run *run = calloc(1, sizeof *run);
    struct ls_channel_message message = {.kind = LS_CHANNEL_END};
    struct ls_error reason = {.code = LS_MEMORY, .text = "no memory for the run"};
    enum ls_code code = LS_MEMORY;
    if (run) {
        code = ls_run_prepare(options, run, &reason);
        if (code == LS_OK && run->complete) {
            /* Killed behind its last save, it had nobody to remove them. */
            ls_leftovers_remove_memory(run->directory.run_id, run->attempt.attempt);
            ls_run_tell_complete(run, reason.text, sizeof reason.text);
        } else if (code == LS_OK) {
            run->pulse = pulse;
            code = ls_server_run(run, channel, -1, &reason);
        }
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
    ls_pulse_beat(supervisor->pulse);
    pid_t child = fork();
    if (child == 0) {
        close(pair[0]);
        close(supervisor->signals);
        be_coordinator(&supervisor->options, supervisor->pulse, pair[1]);
    }
    int cause = errno;
    close(pair[1]);
    if (child < 0) {
        close(pair[0]);
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "cannot start the coordinator: %s", strerror(cause));
    }
    supervisor->coordinator = child;
    supervisor->channel = pair[0];
    supervisor->ending_told = false;
    supervisor->born_ms = now_ms();
    return LS_OK;
}

static void tell_gone(struct supervisor *supervisor, int64_t attempt) {
    struct ls_channel_message message = {.kind = LS_CHANNEL_GONE, .attempt = attempt};
    if (supervisor->channel >= 0) ls_channel_send(supervisor->channel, &message);
}

/* Tells how the newest attempt stands. */
static void tell_attempt(struct supervisor *supervisor) {
    const struct attempt *attempt = &supervisor->attempt;
    struct ls_channel_message message = {.attempt = attempt->number, .pid = attempt->launcher};
    if (supervisor->channel < 0 || !attempt->launcher) return;
    message.kind = LS_CHANNEL_LAUNCHER_STARTED;
    ls_channel_send(supervisor->channel, &message);
    if (!attempt->exited) return;
    message.kind = LS_CHANNEL_LAUNCHER_EXITED;
    message.status = attempt->status;
    ls_channel_send(supervisor->channel, &message);
    if (attempt->gone) tell_gone(supervisor, attempt->number);
}

static bool send_signal(struct supervisor *supervisor, enum ls_core_signal signal_kind) {
    struct ls_channel_message message = {.kind = LS_CHANNEL_SIGNAL, .signal = signal_kind};
    return supervisor->channel >= 0 && supervisor->ready.ready.attempt &&
           ls_channel_send(supervisor->channel, &message);
}

/* Any number of wishes may come, and a coordinator that stands still takes none: it is told of the next one once it has
 * heard of the last. Where the channel is full nothing else could be told, and no signal would be heard. */
static void tell_save(struct supervisor *supervisor) {
    if (!supervisor->save_waits || supervisor->channel < 0 || !ls_channel_is_read(supervisor->channel)) return;
    supervisor->save_waits = !send_signal(supervisor, LS_SIGNAL_SAVE);
}

/* A stop outweighs a requeue, and a second one is at once. */
static void tell_end(struct supervisor *supervisor, enum ls_core_signal signal_kind) {
    const bool again = supervisor->ending && supervisor->ending_by == LS_SIGNAL_STOP && signal_kind == LS_SIGNAL_STOP;
    if (again) signal_kind = LS_SIGNAL_NOW;
    if (supervisor->ending && signal_kind <= supervisor->ending_by && supervisor->ending_told) return;
    if (!supervisor->ending || signal_kind > supervisor->ending_by) supervisor->ending_by = signal_kind;
    supervisor->ending = true;
    supervisor->ending_told = send_signal(supervisor, supervisor->ending_by);
}

/* ---- the workers' processes ---- */

/* What every launch has in common. */
static struct ls_launch_options usual_launch(const struct supervisor *supervisor) {
    return (struct ls_launch_options){
        .type = supervisor->launcher_type,
        .config = supervisor->config,
        .allocation = &supervisor->allocation,
        .cores = ls_launch_cores(),
        .root = geteuid() == 0,
        .transport_is_chosen = getenv("OMPI_MCA_btl") || getenv("OMPI_MCA_pml"),
        .inherited = environ,
        .worker = supervisor->worker,
    };
}

/* Splits "a,b" in place; returns how many names there are. */
static int split_names(char *text, const char **names, int most) {
    int count = 0;
    for (char *rest, *name = strtok_r(text, ",", &rest); name && count < most; name = strtok_r(NULL, ",", &rest))
        names[count++] = name;
    return count;
}

/* Where /dev/shm takes nothing, MPI is left to keep its files where it pleases. */
static bool has_memory(const struct supervisor *supervisor) {
    const int hosts = supervisor->allocation.hosts.count > 0 ? supervisor->allocation.hosts.count : 1;
    char why[256];
    if (ls_launch_has_memory((supervisor->attempt.ranks + hosts - 1) / hosts, why, sizeof why)) return true;
    ls_log(LS_LOG_WARNING,
           "%s: its files go to TMPDIR or /tmp, where a killed launcher leaves them. Make room in /dev/shm (mount -o "
           "remount,size=1G /dev/shm; docker: --shm-size=1g)",
           why);
    return false;
}

static enum ls_code start_launcher(struct supervisor *supervisor, struct ls_error *error) {
    const struct ls_channel_message *ready = &supervisor->ready;
    struct attempt *attempt = &supervisor->attempt;
    char excluded[LS_CHANNEL_HOSTS_BYTES], silent[LS_CHANNEL_HOSTS_BYTES];
    const char *names[2 * LS_CORE_HOSTS_MAX];
    memcpy(excluded, supervisor->excluded, sizeof excluded);
    memcpy(silent, supervisor->silent, sizeof silent);
    struct ls_launch_options options = usual_launch(supervisor);
    options.excluded = names;
    options.excluded_count = split_names(excluded, names, LS_CORE_HOSTS_MAX);
    options.excluded_count += split_names(silent, names + options.excluded_count, LS_CORE_HOSTS_MAX);
    options.ranks = attempt->ranks;
    options.endpoints = ready->ready.endpoints;
    options.run_id = ready->ready.run_id;
    options.attempt = attempt->number;
    char log_path[PATH_MAX], memory[64];
    ls_leftovers_folder(options.run_id, options.attempt, memory);
    if (!getenv("OMPI_MCA_orte_tmpdir_base") && !getenv("OMPI_MCA_btl_vader_backing_directory") &&
        has_memory(supervisor))
        options.memory = memory;
    struct ls_launch *launch = malloc(sizeof *launch);
    if (!launch) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory to start the launcher");
    snprintf(log_path, sizeof log_path, "%s/logs/launcher.log", ready->ready.run_dir);
    enum ls_code code = ls_launch_plan(&options, launch, error);
    if (code == LS_OK) code = ls_launch_start(launch, ready->ready.key_text, log_path, &attempt->launcher, error);
    free(launch);
    return code;
}

/* Removes what the attempts before `attempt` left on this host, whoever started them. */
static void remove_leftovers(const struct supervisor *supervisor, int64_t attempt) {
    struct ls_leftovers left = ls_leftovers_remove(supervisor->ready.ready.run_id, attempt, GONE_MS * 1e-3);
    if (left.stuck_pid)
        ls_log(LS_LOG_WARNING,
               "process %lld of an earlier attempt does not end although it was killed (a stuck disk or device?); "
               "going on without waiting for it",
               (long long)left.stuck_pid);
}

/* ---- other hosts ---- */

static bool is_named(const char *host, const char *const *names, int count) {
    for (int i = 0; i < count; i++)
        if (ls_host_is(host, names[i])) return true;
    return false;
}

/* Removes what the attempts before `attempt` left on hosts[count], beside whatever comes next. */
static void sweep(struct supervisor *supervisor, const char *const *hosts, int count, int64_t attempt) {
    struct ls_launch_options usual = usual_launch(supervisor);
    char log_path[PATH_MAX];
    struct ls_error error;
    if (count == 0 || supervisor->sweep.leader || supervisor->launcher_type == LS_LAUNCH_NONE) return;
    snprintf(log_path, sizeof log_path, "%s/logs/sweep.log", supervisor->ready.ready.run_dir);
    if (ls_sweep_start(&usual, hosts, count, supervisor->ready.ready.run_id, attempt, log_path, &supervisor->sweep,
                       &error) != LS_OK)
        ls_log(LS_LOG_WARNING, "what earlier attempts left on other hosts is not removed: %s", error.text);
    supervisor->sweep.until_ms = now_ms() + SWEEP_MS;
}

/* Says what could not be removed; `why` ends the sentence. */
static void tell_unswept(const char *hosts, const char *why) {
    ls_log(LS_LOG_WARNING,
           "what earlier attempts left on %s is not removed: %s. Ranks there leave by themselves when they hear of no "
           "coordinator; the next start on that host removes the rest",
           hosts, why);
}

static void on_sweep_ended(struct supervisor *supervisor, int status) {
    if (status) tell_unswept(supervisor->sweep.names, "see logs/sweep.log");
    supervisor->sweep = (struct ls_sweep){.leader = 0};
}

/* A sweep that takes too long is given up: on_sweep_ended() tells it. */
static void limit_sweep(struct supervisor *supervisor) {
    if (!supervisor->sweep.leader || now_ms() < supervisor->sweep.until_ms) return;
    ls_launch_signal_session(supervisor->sweep.leader, SIGKILL);
}

/* Hosts that the wanted attempt leaves out get no worker that would remove what is left there. */
static void sweep_left_out(struct supervisor *supervisor) {
    char excluded[LS_CHANNEL_HOSTS_BYTES], silent[LS_CHANNEL_HOSTS_BYTES];
    const char *names[LS_CORE_HOSTS_MAX], *unheard[LS_CORE_HOSTS_MAX];
    memcpy(excluded, supervisor->excluded, sizeof excluded);
    memcpy(silent, supervisor->silent, sizeof silent);
    const int unheard_count = split_names(silent, unheard, LS_CORE_HOSTS_MAX);
    int count = split_names(excluded, names, LS_CORE_HOSTS_MAX), kept = 0;
    for (int i = 0; i < count; i++)
        if (!is_named(names[i], unheard, unheard_count)) names[kept++] = names[i];
    if (unheard_count) tell_unswept(supervisor->silent, "no answer");
    sweep(supervisor, names, kept, supervisor->wanted_attempt);
}

/* A run that failed leaves nothing on any host that answers. */
static void sweep_at_end(struct supervisor *supervisor) {
    const struct ls_allocation *allocation = &supervisor->allocation;
    const char *names[LS_CORE_HOSTS_MAX], *unheard[LS_CORE_HOSTS_MAX];
    int count = 0;
    if (!allocation->elsewhere) return;
    const int unheard_count = ls_allocation_find_lost(allocation, unheard, LS_CORE_HOSTS_MAX);
    for (int i = 0; i < allocation->hosts.count && count < LS_CORE_HOSTS_MAX; i++)
        if (!is_named(allocation->hosts.list[i].name, unheard, unheard_count))
            names[count++] = allocation->hosts.list[i].name;
    for (int i = 0; i < unheard_count; i++) tell_unswept(unheard[i], "no answer");
    sweep(supervisor, names, count, supervisor->attempt.number + 1);
}

/* ---- the end of an attempt ---- */

/* Ends the attempt's processes: mpirun answers a SIGTERM by ending its ranks; go_on_killing() finishes what is left. */
static void begin_kill(struct supervisor *supervisor) {
    struct attempt *attempt = &supervisor->attempt;
    if (!attempt->launcher || attempt->exited || attempt->kill_ms) return;
    attempt->kill_ms = now_ms();
    ls_launch_ask_end(attempt->launcher);
}

/* The same at once: a broken attempt has nothing left to say, and the next one waits. The daemons that mpirun started
 * on other hosts end their ranks when it is gone; srun has to be asked, and is given time to pass that on. */
static void kill_now(struct supervisor *supervisor) {
    struct attempt *attempt = &supervisor->attempt;
    if (!attempt->launcher || attempt->gone) return;
    if (supervisor->launcher_type == LS_LAUNCH_SRUN && !attempt->exited) {
        begin_kill(supervisor);
        if (now_ms() - attempt->kill_ms < KILL_MS) return;
    }
    attempt->killed = true;
    ls_launch_signal_session(attempt->launcher, SIGKILL);
}

static void go_on_killing(struct supervisor *supervisor) {
    struct attempt *attempt = &supervisor->attempt;
    if (attempt->kill_ms && !attempt->killed && now_ms() - attempt->kill_ms >= KILL_MS) kill_now(supervisor);
    if (!attempt->exited || attempt->gone) return;
    /* Ranks that outlive their launcher wait for each other. */
    bool waited = now_ms() - attempt->exited_ms > GONE_MS;
    if (ls_launch_signal_session(attempt->launcher, SIGKILL) > 0 && !waited) return;
    attempt->gone = true;
    remove_leftovers(supervisor, attempt->number + 1);
    tell_gone(supervisor, attempt->number);
}

/* Starts the attempt that the coordinator wants, once nothing of the one before is left. */
static void start_wanted(struct supervisor *supervisor) {
    struct attempt *attempt = &supervisor->attempt;
    if (!supervisor->wanted_attempt || supervisor->ended) return;
    if (attempt->launcher && !attempt->gone) {
        if (!attempt->killed) kill_now(supervisor);
        return;
    }
    sweep_left_out(supervisor);
    *attempt = (struct attempt){.number = supervisor->wanted_attempt, .ranks = supervisor->wanted_ranks};
    supervisor->wanted_attempt = 0;
    remove_leftovers(supervisor, attempt->number);
    struct ls_error error;
    if (start_launcher(supervisor, &error) != LS_OK) end(supervisor, error.code, error.text);
    tell_attempt(supervisor);
}

/* True while something will happen within a few milliseconds. */
static bool is_ending(const struct supervisor *supervisor) {
    const struct attempt *attempt = &supervisor->attempt;
    return attempt->launcher && !attempt->gone && (attempt->exited || attempt->killed);
}

/* ---- what happens ---- */

static void on_ready(struct supervisor *supervisor, const struct ls_channel_message *message) {
    const bool first = !supervisor->options.restarted;
    supervisor->ready = *message;
    /* The next one takes over where this one is. */
    snprintf(supervisor->config_path, sizeof supervisor->config_path, "%s/config.yaml", message->ready.run_dir);
    supervisor->options.config_path = supervisor->config_path;
    supervisor->options.settings_count = 0;
    supervisor->options.run_dir = supervisor->ready.ready.run_dir;
    if (first) supervisor->options.ranks = message->ready.ranks; /* as many as are wanted; attempts may have fewer */
    supervisor->options.port = message->ready.port;
    supervisor->options.restarted = true;
    if (supervisor->launcher_type == LS_LAUNCH_NONE && first) {
        printf("join with\nmpirun -n %lld lockstep-worker --coordinator %s --key %s/keys/worker.key\n",
               (long long)message->ready.ranks, message->ready.endpoints, message->ready.run_dir);
        fflush(stdout);
    }
    tell_attempt(supervisor);
    if (supervisor->save_wished_ms && now_ms() - supervisor->save_wished_ms < SAVE_AGAIN_MS)
        supervisor->save_waits = true;
    if (supervisor->ending && !supervisor->ending_told)
        supervisor->ending_told = send_signal(supervisor, supervisor->ending_by);
}

static void on_launch(struct supervisor *supervisor, const struct ls_channel_message *message) {
    if (message->attempt > supervisor->attempt.number) {
        supervisor->wanted_attempt = message->attempt;
        supervisor->wanted_ranks = message->ranks;
        memcpy(supervisor->excluded, message->excluded, sizeof supervisor->excluded);
        memcpy(supervisor->silent, message->silent, sizeof supervisor->silent);
    } else if (message->attempt == supervisor->attempt.number) {
        tell_attempt(supervisor);
    }
}

/* An attempt that is not this one's was never started by this supervisor, or is gone. */
static void on_kill(struct supervisor *supervisor, int64_t attempt) {
    if (supervisor->wanted_attempt == attempt) supervisor->wanted_attempt = 0;
    if (supervisor->attempt.number != attempt || supervisor->attempt.gone || !supervisor->attempt.launcher)
        tell_gone(supervisor, attempt);
    else
        kill_now(supervisor);
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
        } else if (message.kind == LS_CHANNEL_LAUNCH) {
            on_launch(supervisor, &message);
        } else if (message.kind == LS_CHANNEL_KILL) {
            on_kill(supervisor, message.attempt);
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
    /* Before it was ready: what it could not do another cannot either, but for one that somebody killed, and then only
     * where there was a run already: a new one may be half made. */
    if (!supervisor->ready.ready.attempt && !(WIFSIGNALED(status) && supervisor->options.resume)) {
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
        } else if (child == supervisor->attempt.launcher) {
            supervisor->attempt.exited = true;
            supervisor->attempt.exited_ms = now_ms();
            supervisor->attempt.status = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
            tell_attempt(supervisor);
        } else if (child == supervisor->sweep.leader) {
            on_sweep_ended(supervisor, status);
        }
    }
}

static void read_signals(struct supervisor *supervisor) {
    struct signalfd_siginfo info;
    while (read(supervisor->signals, &info, sizeof info) == (ssize_t)sizeof info) {
        switch (info.ssi_signo) {
        case SIGCHLD: break; /* reap() is called at every turn */
        case SIGUSR2:
            supervisor->save_wished_ms = now_ms();
            supervisor->save_waits = true;
            break;
        case SIGINT:
            /* Wrappers such as timeout(1) pass a Ctrl-C on that the terminal has already sent to the whole group. */
            if (supervisor->interrupts > 0 && now_ms() - supervisor->interrupted_ms < SAME_INTERRUPT_MS) break;
            supervisor->interrupts++;
            supervisor->interrupted_ms = now_ms();
            tell_end(supervisor, LS_SIGNAL_STOP);
            break;
        case SIGQUIT:
            supervisor->interrupts += 2; /* as much as two of them */
            supervisor->interrupted_ms = now_ms();
            tell_end(supervisor, LS_SIGNAL_NOW);
            break;
        default: tell_end(supervisor, LS_SIGNAL_REQUEUE); break;
        }
    }
}

/* A Slurm job knows when it ends: saves in time, whether a signal comes or not. */
static void watch_job_time(struct supervisor *supervisor) {
    if (supervisor->save_wished_in_time || supervisor->ended) return;
    const double left = ls_slurm_seconds_to_save(&supervisor->allocation.slurm,
                                                 supervisor->config->checkpoint.before_end_seconds, (double)time(NULL));
    if (left > 0) return;
    /* The limit may have been changed meanwhile. */
    const int64_t expected = supervisor->allocation.slurm.end_time;
    ls_slurm_ask_times(&supervisor->allocation.slurm);
    const int64_t known = supervisor->allocation.slurm.end_time; /* 0: there is no limit any more */
    if (!known || known > expected + CLOCK_SLACK_SECONDS) return;
    supervisor->save_wished_in_time = true;
    ls_log(LS_LOG_INFO, "the time of Slurm job %lld is nearly up: saving, to be requeued",
           (long long)supervisor->allocation.slurm.job);
    tell_end(supervisor, LS_SIGNAL_REQUEUE);
}

/* A coordinator that does not go on can tell nobody why. Most likely its files hang. */
static void watch_coordinator(struct supervisor *supervisor) {
    const int64_t silent_ms = supervisor->coordinator ? ls_pulse_silent_ms(supervisor->pulse) : 0;
    if (silent_ms < SILENCE_MS) {
        if (supervisor->silence_told) ls_log(LS_LOG_INFO, "the coordinator goes on");
        supervisor->silence_told = false;
    } else if (!supervisor->silence_told) {
        struct ls_process_look look;
        ls_process_look(supervisor->coordinator, NULL, &look);
        const bool stopped = look.state == 'T' || look.state == 't';
        supervisor->silence_told = true;
        ls_log(
            LS_LOG_WARNING,
            "the coordinator (process %d) has not gone on for %lld s: %s. Until it does nothing is told or saved. %s",
            (int)supervisor->coordinator, (long long)silent_ms / 1000,
            stopped        ? "it is stopped"
            : look.text[0] ? look.text
                           : "what it waits for cannot be seen",
            stopped ? "'kill -CONT' lets it go on." : "See whether the file system of the run directory answers.");
    }
}

/* ---- the loop and the end ---- */

static void turn(struct supervisor *supervisor, int timeout_ms) {
    struct pollfd items[] = {{supervisor->signals, POLLIN, 0}, {supervisor->channel, POLLIN, 0}};
    poll(items, supervisor->channel >= 0 ? 2 : 1, is_ending(supervisor) ? SOON_MS : timeout_ms);
    read_signals(supervisor);
    read_channel(supervisor);
    tell_save(supervisor);
    reap(supervisor);
    go_on_killing(supervisor);
    start_wanted(supervisor);
    limit_sweep(supervisor);
    watch_job_time(supervisor);
    watch_coordinator(supervisor);
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

/* Workers leave by themselves when the run is over; what does not is ended. Nothing stays behind. */
static void end_workers(struct supervisor *supervisor) {
    const struct attempt *attempt = &supervisor->attempt;
    int64_t since = now_ms();
    bool orderly = supervisor->code == LS_OK || supervisor->code == LS_REQUEUE ||
                   (supervisor->code == LS_STOPPED && supervisor->interrupts < 2);
    while (attempt->launcher && !attempt->gone) {
        if (!orderly || now_ms() - since > LEAVE_MS || supervisor->interrupts > 1) begin_kill(supervisor);
        turn(supervisor, TURN_MS);
    }
    if (!attempt->number) return;
    remove_leftovers(supervisor, attempt->number + 1);
    while (supervisor->sweep.leader) turn(supervisor, TURN_MS);
    if (!orderly && supervisor->interrupts < 2) sweep_at_end(supervisor);
    while (supervisor->sweep.leader) turn(supervisor, TURN_MS);
}

/* Outside Slurm it is mpirun; there what works, tried once. */
static enum ls_code choose_launcher(struct supervisor *supervisor, struct ls_error *error) {
    const struct ls_allocation *allocation = &supervisor->allocation;
    if (supervisor->launcher_type == LS_LAUNCH_AUTO && allocation->by_slurm) {
        struct ls_launch_options options = usual_launch(supervisor);
        char why[512];
        options.ranks = allocation->ranks;
        enum ls_code code = ls_trial_choose(&options, &supervisor->launcher_type, why, error);
        if (code != LS_OK) return code;
        printf("launcher: %s\n", why);
        fflush(stdout);
    }
    if (supervisor->launcher_type == LS_LAUNCH_AUTO) supervisor->launcher_type = LS_LAUNCH_MPIRUN;
    return supervisor->launcher_type == LS_LAUNCH_MPIRUN ? ls_launch_find_mpirun(error) : LS_OK;
}

/* What ends a run in good order or saves it. nohup's SIGHUP stays ignored, which a blocked one would not be. */
static void add_wishes(sigset_t *set) {
    struct sigaction hangup;
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGUSR1);
    sigaddset(set, SIGUSR2);
    if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN) sigaddset(set, SIGHUP);
}

/* A wish that comes while hosts and Slurm are asked waits for the loop. What a terminal sends ends the process: nothing
 * has begun. */
static void hold_wishes(void) {
    sigset_t set;
    sigemptyset(&set);
    add_wishes(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
}

/* A descriptor that tells of signals, or -1. */
static int receive_signals(bool of_children) {
    sigset_t set;
    sigemptyset(&set);
    add_wishes(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGQUIT);
    if (of_children) sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

static enum ls_code prepare(struct supervisor *supervisor, const struct ls_run_options *options,
                            struct ls_error *error) {
    supervisor->options = *options;
    supervisor->options.launched = true;
    supervisor->channel = supervisor->signals = -1;
    hold_wishes();
    supervisor->config = calloc(1, sizeof *supervisor->config);
    if (!supervisor->config) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for the configuration");
    enum ls_code code =
        ls_config_load(options->config_path, options->settings, options->settings_count, supervisor->config, error);
    if (code == LS_OK)
        code = ls_allocation_find(supervisor->config, options->ranks, options->hostfile, getenv,
                                  &supervisor->allocation, error);
    supervisor->options.allocation = &supervisor->allocation;
    supervisor->options.started_seconds = (double)now_ms() * 1e-3;
    supervisor->launcher_type = supervisor->config->launcher.type;
    if (code == LS_OK) ls_allocation_ask(&supervisor->allocation);
    if (code == LS_OK && !supervisor->allocation.slurm.end_time) ls_slurm_ask_times(&supervisor->allocation.slurm);
    if (code == LS_OK && supervisor->launcher_type != LS_LAUNCH_NONE) {
        code = ls_launch_find_worker(supervisor->worker, sizeof supervisor->worker, error);
        if (code == LS_OK) code = choose_launcher(supervisor, error);
    } else if (code == LS_OK) {
        supervisor->options.launched = false;
    }
    if (code != LS_OK) return code;
    supervisor->pulse = ls_pulse_create();
    supervisor->signals = receive_signals(true);
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
    ls_pulse_destroy(supervisor->pulse);
    free(supervisor->config);
    ls_allocation_release(&supervisor->allocation);
    explicit_bzero(&supervisor->ready, sizeof supervisor->ready);
    free(supervisor);
    return code;
}

enum ls_code ls_coordinator_run(const struct ls_run_options *options, struct ls_error *reason) {
    int signals = receive_signals(false);
    struct ls_run *run = calloc(1, sizeof *run);
    if (!run || signals < 0) {
        free(run);
        return ls_fail(reason, LS_MEMORY, LS_SCOPE_JOB, "no memory for the coordinator");
    }
    enum ls_code code = ls_run_prepare(options, run, reason);
    if (code == LS_OK && run->complete) {
        ls_run_tell_complete(run, reason->text, sizeof reason->text);
        printf("%s\n", reason->text);
    } else if (code == LS_OK) {
        code = ls_server_run(run, -1, signals, reason);
    }
    ls_run_release(run);
    free(run);
    close(signals);
    return code;
}
