/* The stall watch: gathers where every rank of an attempt is, from the progress file of this host and from the reports
 * of the others, keeps how long each has not moved, and asks for the verdict (verdict.h). Writes the dump.
 *
 * Time counts only while this watch itself gets on: one that was not called for more than a second (a host that was
 * suspended or frozen, a coordinator that was stopped) counts one, so nobody is blamed for it. Not for several threads.
 */
#ifndef LS_COORDINATOR_STALL_H
#define LS_COORDINATOR_STALL_H

#include "common/status.h"
#include "common/wire.h"
#include "coordinator/verdict.h"

#include <stdbool.h>
#include <stdint.h>

struct ls_stall;

/* Plain data, copied. */
struct ls_stall_options {
    char run_dir[1000], run_id[17], host[64]; /* host: this one */
    int64_t attempt, ranks;
    double timeout;       /* fault.stall_timeout_seconds, 0: auto */
    double start_timeout; /* fault.start_timeout_seconds */
    double grant_timeout; /* fault.coordinator_timeout_seconds */
};

/* For one attempt; its time begins now. LS_MEMORY. */
enum ls_code ls_stall_create(const struct ls_stall_options *options, struct ls_stall **stall, struct ls_error *error);
void ls_stall_destroy(struct ls_stall *stall);

/* A rank's host and pid, as it joined. */
void ls_stall_name_rank(struct ls_stall *stall, int64_t rank, const char *host, int64_t pid);
/* A step was reported: its time, and that of saves before it. */
void ls_stall_step(struct ls_stall *stall, const struct ls_step_report *report);
/* The report of a node. What is said of ranks of this host is passed over while they are seen directly. */
void ls_stall_report(struct ls_stall *stall, const struct ls_node_report *report);

/* Looks; to be called a few times a second. True when the attempt stands still: once, then never again. */
bool ls_stall_poll(struct ls_stall *stall, int64_t now_ms, bool joined, struct ls_verdict *verdict);
/* The name of a host of the verdict, "" when it is not known; valid until the watch is destroyed. */
const char *ls_stall_host(const struct ls_stall *stall, int host);

/* The host of a rank, "" when it is not known; valid likewise. */
const char *ls_stall_rank_host(const struct ls_stall *stall, int64_t rank);

/* Writes the verdict and the last operations of every rank to RUN/logs/stall-aATTEMPT-stepSTEP.txt; `path` becomes its
 * name. LS_CHECKPOINT when it cannot be written. */
enum ls_code ls_stall_dump(struct ls_stall *stall, const struct ls_verdict *verdict, char *path, size_t size,
                           struct ls_error *error);

#endif
