/* `lockstep doctor`: what a run needs of this host and of the cluster, what was found, what is wrong, the fix. */
#ifndef LS_COORDINATOR_DOCTOR_H
#define LS_COORDINATOR_DOCTOR_H

#include "common/config.h"
#include "coordinator/allocation.h"
#include "coordinator/launcher.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* An examination in progress: one line for each thing that was looked at, and for each one that is wrong a second line
 * with the fix. */
struct ls_examination {
    FILE *out;
    int wrong; /* things so far */
    struct ls_config *config;
    struct ls_allocation allocation;
    const char *run_dir; /* whose file system is looked at */
    double seconds;      /* of measuring between hosts */
};

enum ls_health { LS_HEALTH_FINE, LS_HEALTH_NOTED, LS_HEALTH_WRONG };

/* Writes "ok    WHAT  ...", "note  ..." or "WRONG ..." with the line of the fix; counts what is wrong. */
void ls_doctor_report(struct ls_examination *examination, enum ls_health health, const char *what, const char *fix,
                      const char *format, ...) __attribute__((format(printf, 5, 6)));

/* doctor_host.c: memory, limits, clocks, network, the file system of the run directory, GPUs, Slurm. */
void ls_doctor_examine_host(struct ls_examination *examination);
void ls_doctor_examine_gpus(struct ls_examination *examination);
void ls_doctor_examine_network(struct ls_examination *examination);
void ls_doctor_examine_files(struct ls_examination *examination);
void ls_doctor_examine_slurm(struct ls_examination *examination);

/* doctor_cluster.c: ranks are started as a run would start them; on several hosts they measure. */
void ls_doctor_examine_cluster(struct ls_examination *examination, const struct ls_launch_options *options);

/* The command: exit code LS_ERROR when something is wrong. */
int ls_command_doctor(int argc, char **argv);

#endif
