/* Slurm, as its environment tells of it: the job, its hosts and tasks, when its time is up. */
#ifndef LS_COORDINATOR_SLURM_H
#define LS_COORDINATOR_SLURM_H

#include "common/status.h"
#include "coordinator/hosts.h"

#include <stdbool.h>
#include <stdint.h>

/* What is not said is 0, but for array_task: -1. */
struct ls_slurm {
    int64_t job;   /* 0: this is no Slurm job */
    int64_t tasks; /* --ntasks, or nodes times --ntasks-per-node */
    int64_t cpus_per_task;
    int64_t start_time, end_time; /* seconds since 1970 */
    int64_t array_job, array_task;
    int64_t restarts;   /* how often the job was requeued */
    int64_t step_tasks; /* tasks of the step that this process is one of; 0: it is the batch script's or salloc's */
};

/* Reads the environment with `get` (getenv, or a test's stand-in): the job into *slurm, its hosts with the tasks of
 * each as slots into *hosts (empty outside a job), which the caller releases in either case. LS_USAGE names the
 * variable that cannot be read. */
enum ls_code ls_slurm_find(char *(*get)(const char *name), struct ls_slurm *slurm, struct ls_hosts *hosts,
                           struct ls_error *error);

/* Appends the hosts of Slurm's short form: "node[01-03,7],login" are node01, node02, node03, node7, login; several
 * brackets in a name count the last one fastest. LS_USAGE. */
enum ls_code ls_slurm_expand_hosts(const char *text, struct ls_hosts *hosts, struct ls_error *error);
/* Slurm's short form of a count for each host: "8(x2),4" is 8, 8, 4. Writes at most `most`; returns how many there are,
 * -1 when it is no such text. */
int ls_slurm_expand_counts(const char *text, int64_t *counts, int most);

/* "1-02:03:04", "02:03:04", "03:04", as squeue prints times; -1: no such text. */
int64_t ls_slurm_parse_duration(const char *text);
/* Asks squeue when the job began and ends, as old Slurms do not say it in the environment and limits are changed;
 * leaves what it cannot learn within a few seconds. A job without a limit has no end: end_time 0. */
void ls_slurm_ask_times(struct ls_slurm *slurm);

/* Seconds from now to the moment at which the run has to be saved: `before_end_seconds` (0: a tenth of the job's time,
 * from 20 s to 300 s) before the job's end; may be negative. INFINITY when the job's end is not known. */
double ls_slurm_seconds_to_save(const struct ls_slurm *slurm, int64_t before_end_seconds, double now);

#endif
