/* The verdict: from where all ranks are and how long they have been there, who holds up the run, why, and who waits for
 * whom. Pure: no clock, no files; coordinator/stall.h brings what it judges.
 *
 * In a collective every rank waits for the ones that have not come to it. So a rank that others wait for and that waits
 * for nobody is the one to look at, whatever the others' phases are:
 *
 *     rank 0  in collective 118 ---.
 *     rank 1  in collective 118 ---+--> rank 2, collective 117 behind it, phase data: the culprit
 *     rank 3  in collective 118 ---'
 *
 * Before communicators exist (phases up to MPI_Init) it is the one that is least far. If all are in the same
 * collective and it does not end, a process is stopped, a host is silent, or the network between hosts is cut. If no
 * other host is heard, and there are several, it is the network of this one. */
#ifndef LS_COORDINATOR_VERDICT_H
#define LS_COORDINATOR_VERDICT_H

#include "common/process.h"
#include "common/progress.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A rank as it was last seen. */
struct ls_verdict_rank {
    bool known;       /* there is a record of it */
    bool gone;        /* its process has ended: not judged here */
    int host;         /* index of its host; of an unknown rank -1 */
    int64_t pid, gpu; /* gpu: as in struct ls_progress_record, -1: none */
    uint64_t phase;   /* enum ls_phase; anything else is taken for the last one */
    uint64_t step, micro_batch, block;
    uint64_t collective, collective_done, host_collective, host_collective_done;
    double quiet_seconds; /* it has not moved for so long, of the time that somebody watched */
    struct ls_process_look look;
};

struct ls_verdict_host {
    char name[64];
    bool reports;          /* its ranks are known by reports over the network, not by looking */
    double silent_seconds; /* since the last report */
};

/* How long a rank may be where it is without moving, in seconds. */
struct ls_verdict_limits {
    double start;      /* until every rank has joined, and while the model is loaded */
    double first_step; /* until the attempt has finished a step */
    double step, checkpoint;
    double grant; /* rank 0 waits for the coordinator */
};

struct ls_verdict_scene {
    const struct ls_verdict_rank *ranks;
    int ranks_count;
    const struct ls_verdict_host *hosts;
    int hosts_count;
    struct ls_verdict_limits limits;
    bool joined;            /* every rank has joined */
    bool stepped;           /* the attempt has finished a step */
    double waiting_seconds; /* since the attempt began, of the time that somebody watched */
};

enum ls_verdict_kind {
    LS_VERDICT_NONE,
    LS_VERDICT_STOPPED,  /* the process is stopped by a signal, or held by a debugger */
    LS_VERDICT_STUCK,    /* the rank does not move; the others wait for it */
    LS_VERDICT_MISSING,  /* it never started, others did */
    LS_VERDICT_SILENT,   /* its host is not heard any more: a cut link, or a host that is gone */
    LS_VERDICT_NETWORK,  /* all ranks are in the same collective, and it does not end; or no other host is heard */
    LS_VERDICT_DEADLOCK, /* ranks wait for each other in different collectives: an error of the program */
    LS_VERDICT_GRANT,    /* rank 0 waits for the coordinator */
    LS_VERDICT_KINDS
};
/* One word: "stopped", "stuck", ... */
const char *ls_verdict_name(enum ls_verdict_kind kind);

enum { LS_VERDICT_TEXT_BYTES = 416, LS_VERDICT_RANKS_TEXT_BYTES = 96 };

struct ls_verdict {
    enum ls_verdict_kind kind;
    int rank;            /* who holds up the run; of several the one to look at first */
    int host;            /* index, -1: not known */
    double seconds;      /* so long */
    const char *phase;   /* static storage */
    uint64_t collective; /* in which the others wait, or that does not end; 0: none */
    bool collective_on_host;
    char waiting[LS_VERDICT_RANKS_TEXT_BYTES]; /* who waits for it: "0, 1, 4-7"; "": nobody */
    /* What happened, the evidence, what to do; no rank, host, step in front. Of a silent host: the evidence and what to
     * do. */
    char text[LS_VERDICT_TEXT_BYTES];
};

/* As long as a rank has moved within so many seconds, ls_verdict_find() says nothing of an attempt that has joined, or
 * that is not late. */
double ls_verdict_patience(const struct ls_verdict_limits *limits);

/* True when the run stands still longer than its limits allow. */
bool ls_verdict_find(const struct ls_verdict_scene *scene, struct ls_verdict *verdict);

/* The limits. `timeout` is fault.stall_timeout_seconds (0: auto), the others are what was seen so far (0: nothing yet):
 * the median time of a step, the longest save.
 *     start       start_timeout
 *     step        timeout, or max(10, 20 x median)
 *     first_step  timeout, or start_timeout
 *     checkpoint  max(step, 60, 10 x longest save); before the first save max(step, 600)
 *     grant       max(step, grant_timeout) */
struct ls_verdict_limits ls_verdict_limits(double timeout, double start_timeout, double grant_timeout,
                                           double median_step, double longest_save);

/* Writes a list of ranks, ascending, as "0, 2-5 and 3 more"; the number of ranks in it is that of true entries. */
void ls_verdict_list(const bool *listed, int count, char *text, size_t size);

#endif
