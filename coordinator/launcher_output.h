/* What a launcher says: its output, of every attempt in one file, and what there is to learn from it of losses and of
 * launches that failed. */
#ifndef LS_COORDINATOR_LAUNCHER_OUTPUT_H
#define LS_COORDINATOR_LAUNCHER_OUTPUT_H

#include <stdbool.h>
#include <stdint.h>

/* Begins the line that stands before an attempt's output: the number, a colon and the command follow. */
#define LS_LAUNCHER_HEADER "--- attempt "

enum { LS_LAUNCHER_LOSSES_MAX = 64 };

/* What a launcher says of the loss that made it end: ranks of one host, or all of a host. */
struct ls_launcher_loss {
    int32_t ranks[LS_LAUNCHER_LOSSES_MAX];
    int count; /* 0: the host as a whole */
    char host[64];
    char text[160]; /* "pid 282 on storm2 was killed by signal 9, says mpirun"; of a host with what to do */
};
/* Finds it in the launcher's output at `log_path`, in what was written since `attempt` was started. Understands Open
 * MPI's mpirun and Slurm's srun; false when they say nothing of a signal or a host. */
bool ls_launcher_read_loss(const char *log_path, int64_t attempt, struct ls_launcher_loss *loss);
/* How many bytes of the output at `log_path` come before what was written since `attempt` was started; -1 when its
 * start is not there, or too far from the end. */
int64_t ls_launcher_find_output(const char *log_path, int64_t attempt);

/* A rank of which the launcher says that it made all end, by its exit code. */
struct ls_launcher_exit {
    int32_t rank;  /* -1: it does not say which, as of one that mpirun had not noted yet */
    int code;      /* not 0 */
    int killed_by; /* the signal that a shell's code (128 and it) stands for; 0: none */
    char host[64]; /* "": not said */
};
/* Finds it in what the launcher, which ended with `status`, has said since `attempt` was started; false when that is
 * nothing of a rank. One with code 6 has lost another, and is not meant. */
bool ls_launcher_read_exit(const char *log_path, int64_t attempt, int status, struct ls_launcher_exit *exited);

/* Why a launcher could start nobody. */
struct ls_launcher_reason {
    char text[200];   /* a line of its output without what ends a sentence; may hold control characters */
    char advice[200]; /* what to do about it, a sentence; "": nothing is known */
};
/* Finds it in what the launcher has said: a rank's own words, else what ssh says of a host that let nobody in, else the
 * first line that tells an error, else the first one that says something. False when there is none. */
bool ls_launcher_find_reason(const char *text, struct ls_launcher_reason *reason);

#endif
