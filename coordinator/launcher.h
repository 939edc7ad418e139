/* The launcher: the mpirun or srun command line that starts the workers of an attempt, here or on several hosts, and
 * the processes it becomes. */
#ifndef LS_COORDINATOR_LAUNCHER_H
#define LS_COORDINATOR_LAUNCHER_H

#include "common/config.h"
#include "common/status.h"
#include "coordinator/allocation.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum { LS_LAUNCH_ARGUMENTS_MAX = 512, LS_LAUNCH_ENVIRONMENT_MAX = 96, LS_LAUNCH_TEXT_MAX = 1 << 20 };

/* What decides the command line. */
struct ls_launch_options {
    enum ls_launcher_type type;             /* mpirun or srun */
    const struct ls_config *config;         /* launcher.arguments, .wrapper, .environment */
    const struct ls_allocation *allocation; /* hosts and threads */
    int64_t ranks;                          /* of this attempt, in the room of the hosts that are not excluded */
    const char *const *excluded; /* hosts (as they call themselves) that get no rank, excluded_count of them */
    int excluded_count;
    int64_t cores; /* of this host, usable by us */
    bool root;
    bool transport_is_chosen; /* the user's environment sets OMPI_MCA_btl or OMPI_MCA_pml: leave the transports alone */
    char *const *inherited;   /* environ: the variables of ours and of libraries go to other hosts; may be NULL */
    const char *worker;       /* path of lockstep-worker */
    const char *worker_argument; /* NULL, or the only argument of a worker that is no rank of a run ("--examine=0") */
    const char *endpoints;       /* of the coordinator, separated by commas; NULL: a worker that is no rank of a run */
    const char *run_id;
    int64_t attempt;
    /* Folder in /dev/shm where the launcher and MPI keep what they share, so that it can be found and removed when they
     * were killed (ls_leftovers_folder); NULL: where they please. */
    const char *memory;
};

/* argv and the environment's additions ("NAME=value"), NULL-terminated; the strings live in `text`. */
struct ls_launch {
    char *arguments[LS_LAUNCH_ARGUMENTS_MAX];
    char *environment[LS_LAUNCH_ENVIRONMENT_MAX];
    int arguments_count, environment_count;
    char text[LS_LAUNCH_TEXT_MAX];
    size_t text_used;
};

/* Makes the command line; a pure function of the options. On several hosts: each gets its count of ranks, in the order
 * of the list, neighbouring ranks beside each other. Binding is always said: where the threads of a rank are known on
 * several hosts or in a Slurm job, each rank has as many cores; else, and where there are more threads than cores,
 * ranks are not bound. LS_USAGE when the ranks do not fit, or it becomes too long. */
enum ls_code ls_launch_plan(const struct ls_launch_options *options, struct ls_launch *launch, struct ls_error *error);
/* Writes the command line as a shell would take it, with its environment in front. */
void ls_launch_print(const struct ls_launch *launch, char *text, size_t size);

/* Cores this process may use. */
int64_t ls_launch_cores(void);
/* Finds lockstep-worker beside this program. LS_ERROR names where it looked. */
enum ls_code ls_launch_find_worker(char *path, size_t size, struct ls_error *error);
/* True when `program` can be executed by its name alone. */
bool ls_launch_has_program(const char *program);
/* True when /dev/shm takes what the launcher and MPI share for so many ranks on this host; else why[size] says how it
 * is there. */
bool ls_launch_has_memory(int64_t ranks, char *why, size_t size);
/* LS_COMMUNICATION, naming the Debian package, when mpirun is not in PATH. */
enum ls_code ls_launch_find_mpirun(struct ls_error *error);

/* Starts it in a session of its own; its output is appended to `log_path` behind a line that names the attempt and the
 * command, `key_text` is on its standard input, which mpirun hands to rank 0. *pid leads the session when this returns.
 */
enum ls_code ls_launch_start(const struct ls_launch *launch, const char *key_text, const char *log_path, pid_t *pid,
                             struct ls_error *error);

/* Sends `signal` to every process of the session led by `leader`, however its groups are; returns how many there were.
 * 0: only counts. */
int ls_launch_signal_session(pid_t leader, int signal);
/* Asks the launcher to end its ranks on all hosts: SIGTERM to mpirun; SIGINT to srun, twice, as from a terminal (it
 * would hand a SIGTERM on to the ranks). */
void ls_launch_ask_end(pid_t leader);
/* Waits up to `seconds` for the session to be empty, then ends it: asks its leader, and a second later sends SIGKILL to
 * all that is left. */
void ls_launch_end_session(pid_t leader, double seconds);

#endif
