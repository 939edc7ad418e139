/* The launcher: the mpirun command line that starts the workers of an attempt on this host, and the processes it
 * becomes. */
#ifndef LS_COORDINATOR_LAUNCHER_H
#define LS_COORDINATOR_LAUNCHER_H

#include "common/config.h"
#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum { LS_LAUNCH_ARGUMENTS_MAX = 128, LS_LAUNCH_ENVIRONMENT_MAX = 16, LS_LAUNCH_TEXT_MAX = 32768 };

/* What decides the command line. */
struct ls_launch_options {
    int64_t ranks;
    int64_t threads_per_rank; /* 0: cores / ranks, at least 1 */
    int64_t cores;            /* of this host, usable by us */
    bool root;
    bool transport_is_chosen; /* the user's environment sets OMPI_MCA_btl or OMPI_MCA_pml: leave the transports alone */
    const struct ls_config *config; /* launcher.arguments */
    const char *worker;             /* path of lockstep-worker */
    const char *endpoint, *run_id;
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

/* Makes the command line; a pure function of the options. LS_USAGE when it becomes too long. */
enum ls_code ls_launch_plan(const struct ls_launch_options *options, struct ls_launch *launch, struct ls_error *error);
/* Writes the command line as a shell would take it, with its environment in front. */
void ls_launch_print(const struct ls_launch *launch, char *text, size_t size);

/* Cores this process may use. */
int64_t ls_launch_cores(void);
/* Finds lockstep-worker beside this program. LS_ERROR names where it looked. */
enum ls_code ls_launch_find_worker(char *path, size_t size, struct ls_error *error);
/* LS_COMMUNICATION, naming the Debian package, when mpirun is not in PATH. */
enum ls_code ls_launch_find_mpirun(struct ls_error *error);

/* Starts it in a session of its own; its output is appended to `log_path`, `key_text` is on its standard input, which
 * mpirun hands to rank 0. *pid is the leader of the session. */
enum ls_code ls_launch_start(const struct ls_launch *launch, const char *key_text, const char *log_path, pid_t *pid,
                             struct ls_error *error);
/* Sends `signal` to every process of the session led by `leader`, however its groups are; returns how many there were.
 * 0: only counts. */
int ls_launch_signal_session(pid_t leader, int signal);
/* Waits up to `seconds` for the session to be empty, then ends it: SIGTERM to its leader (mpirun ends its ranks), a
 * second later SIGKILL to all that is left. */
void ls_launch_end_session(pid_t leader, double seconds);

#endif
