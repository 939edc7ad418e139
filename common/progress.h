/* Progress: one file per node in /dev/shm with a record per local rank, written by the ranks without locks or system
 * calls, read by its owner at any time, also after every rank is dead. Name: /dev/shm/lockstep-RUNID-aATTEMPT (RUNID:
 * 16 hex digits of the run directory's hash). Errors are LS_ERROR. */
#ifndef LS_COMMON_PROGRESS_H
#define LS_COMMON_PROGRESS_H

#include "common/status.h"

#include <stdatomic.h>
#include <stdint.h>

enum ls_phase {
    LS_PHASE_ABSENT, /* the record was never written: the rank did not get as far as main */
    LS_PHASE_START,
    LS_PHASE_MPI_INIT,
    LS_PHASE_JOIN,
    LS_PHASE_LOAD,
    LS_PHASE_WAIT_GRANT,
    LS_PHASE_STEP_OPEN,
    LS_PHASE_DATA,
    LS_PHASE_FORWARD,
    LS_PHASE_BACKWARD,
    LS_PHASE_REDUCE,
    LS_PHASE_UPDATE,
    LS_PHASE_EVALUATE,
    LS_PHASE_CHECKPOINT,
    LS_PHASE_FINISH,
    LS_PHASE_EXIT,
    LS_PHASE_COUNT
};
const char *ls_phase_name(enum ls_phase phase);

/* 128 bytes, two cache lines of its own; fields are stored and read atomically (relaxed). All zero until entered. */
struct ls_progress_record {
    _Atomic uint64_t beat;       /* counts up at every change */
    _Atomic uint64_t changed_ns; /* CLOCK_MONOTONIC of the last change */
    _Atomic uint64_t pid;
    _Atomic uint64_t pid_start;  /* /proc/PID/stat field 22: tells a reused pid */
    _Atomic uint64_t world_rank; /* UINT64_MAX until known */
    _Atomic uint64_t step, micro_batch, block, collective;
    _Atomic uint64_t phase;     /* enum ls_phase; a reader takes any value */
    _Atomic uint64_t exit_code; /* UINT64_MAX while the rank runs */
    uint64_t reserved[5];
};

struct ls_progress;

/* Opens or makes the node's file of `ranks` records for (run_id, attempt), owner only; allocated in full before it is
 * mapped. */
enum ls_code ls_progress_open(const char *run_id, int64_t attempt, int ranks, struct ls_progress **progress,
                              struct ls_error *error);
/* Opens an existing one; LS_ERROR when there is none yet, or it is another user's, or not complete. */
enum ls_code ls_progress_open_existing(const char *run_id, int64_t attempt, struct ls_progress **progress,
                                       struct ls_error *error);
int ls_progress_ranks(const struct ls_progress *progress);
/* Valid until the file is closed. */
struct ls_progress_record *ls_progress_record(struct ls_progress *progress, int local_rank);
/* Writes this process into its record: pid and start time, phase LS_PHASE_START, no world rank, no exit code. */
void ls_progress_enter(struct ls_progress_record *record);
/* Stores phase, step, micro-batch and block and counts the beat. */
void ls_progress_mark(struct ls_progress_record *record, enum ls_phase phase, uint64_t step, uint64_t micro_batch,
                      uint64_t block);
/* True while the process that wrote the record lives: pid and start time match, no zombie. Same pid namespace. */
int ls_progress_alive(const struct ls_progress_record *record);
/* Takes NULL. The file stays. */
void ls_progress_close(struct ls_progress *progress);
/* Removes the file of (run_id, attempt), if there. */
void ls_progress_remove(const char *run_id, int64_t attempt);

#endif
