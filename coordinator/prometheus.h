/* A run's metrics for Prometheus, without a port: DIRECTORY/lockstep-RUN.prom, where DIRECTORY is the one that
 * node_exporter's textfile collector reads and RUN the last component of the run directory. The file is in
 * Prometheus' text format 0.0.4, every sample labelled run="RUN". It is replaced as a whole (written beside, renamed):
 * behind a step if the last time was a second ago or more, behind everything else at once. Gauges are those of the
 * newest step; counters (..._total, and lockstep_step_seconds, a histogram) begin at zero with each coordinator, as
 * Prometheus expects of a process, and count steps that are trained again. What is not known yet is left out; a loss
 * that is not finite is NaN or +Inf. docs/operations.md lists the names. */
#ifndef LS_COORDINATOR_PROMETHEUS_H
#define LS_COORDINATOR_PROMETHEUS_H

#include "common/status.h"
#include "coordinator/journal.h"
#include "coordinator/metrics.h"

struct ls_prometheus;

/* Whether files can be made in metrics.prometheus. LS_USAGE: it is no folder, or closed to this user. */
enum ls_code ls_prometheus_check(const char *directory, struct ls_error *error);
/* Writes the first file, with no step. A file that cannot be written is logged, once, then and later: the run goes on,
 * and each write is tried anew. LS_MEMORY. */
enum ls_code ls_prometheus_open(const char *directory, const struct ls_run_facts *facts,
                                struct ls_prometheus **prometheus, struct ls_error *error);
/* Takes a step, a validation or an event in. Called on the journal's thread. */
void ls_prometheus_write(struct ls_prometheus *prometheus, const struct ls_journal_entry *entry);
/* Writes the last file: lockstep_running is 0, lockstep_exit_code the code. After the journal's thread has ended. */
void ls_prometheus_end(struct ls_prometheus *prometheus, enum ls_code code);
/* Takes NULL. */
void ls_prometheus_close(struct ls_prometheus *prometheus);

#endif
