/* Progress: one file per node in /dev/shm with a record per local rank, written by the ranks without locks or system
 * calls, read by its owner at any time, also after every rank is dead: where each rank is, and its last operations.
 * Name: /dev/shm/lockstep-RUNID-aATTEMPT (RUNID: 16 hex digits of the run directory's hash). Errors are LS_ERROR and
 * LS_MEMORY. */
#ifndef LS_COMMON_PROGRESS_H
#define LS_COMMON_PROGRESS_H

#include "common/status.h"

#include <stdatomic.h>
#include <stdbool.h>
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

/* The newest operations of a rank, in a ring: where it was, and which collectives it came to. */
enum { LS_PROGRESS_OPERATIONS = 64 };
enum ls_operation_kind {
    LS_OPERATION_MARK,   /* the rank entered a phase, or a block of it */
    LS_OPERATION_STREAM, /* a collective on a stream */
    LS_OPERATION_HOST,   /* a collective on the host: those that open a step and agree about errors */
    LS_OPERATION_KINDS
};
struct ls_progress_operation {
    _Atomic uint64_t when_ns;  /* CLOCK_MONOTONIC of its beginning, 0: nothing is here */
    _Atomic uint64_t ended_ns; /* a collective's end, 0: not yet */
    _Atomic uint64_t step;
    _Atomic uint64_t place; /* phase | kind << 8 | block << 16 | micro-batch << 40; block 0xffffff: none */
    _Atomic uint64_t collective;
};

/* Cache lines of its own; fields are stored and read atomically (relaxed). All zero until entered. Collectives are
 * numbered in the order in which every rank comes to them, those on streams and those on the host each by themselves:
 * a rank whose `collective` is above its `collective_done` waits in it for those whose `collective` is smaller. */
struct ls_progress_record {
    _Atomic uint64_t beat;       /* counts up at every change */
    _Atomic uint64_t changed_ns; /* CLOCK_MONOTONIC of the last change */
    _Atomic uint64_t pid;
    _Atomic uint64_t pid_start;  /* /proc/PID/stat field 22: tells a reused pid */
    _Atomic uint64_t world_rank; /* UINT64_MAX until known */
    _Atomic uint64_t step, micro_batch, block;
    _Atomic uint64_t collective, collective_done;           /* on streams: begun, ended */
    _Atomic uint64_t host_collective, host_collective_done; /* on the host */
    _Atomic uint64_t phase;                                 /* enum ls_phase; a reader takes any value */
    _Atomic uint64_t exit_code;                             /* UINT64_MAX while the rank runs */
    _Atomic uint64_t gpu; /* PCI domain << 32 | bus << 16 | device << 8 | function of its GPU, UINT64_MAX: none */
    _Atomic uint64_t reported_ns;  /* CLOCK_MONOTONIC: when its reporter last looked around (worker/reporter.h) */
    _Atomic uint64_t operations;   /* so many so far; number i is in the ring at i % LS_PROGRESS_OPERATIONS */
    _Atomic uint64_t attempt_over; /* 1 + the exit code once its reporter heard that the attempt is over, else 0 */
    _Atomic uint64_t asked_to_end; /* 1: got a SIGTERM, which a launcher sends before it kills */
    uint64_t reserved[5];
    struct ls_progress_operation ring[LS_PROGRESS_OPERATIONS];
};

/* A record as it was read: plain numbers, times as ages, so that they mean the same on another host. */
struct ls_progress_step { /* of the ring */
    uint64_t age_ns;      /* since its beginning */
    uint64_t took_ns;     /* a collective, from beginning to end; UINT64_MAX: it has not ended; marks: 0 */
    uint64_t step, collective;
    uint32_t phase, kind, micro_batch;
    int32_t block; /* -1: none */
};
struct ls_progress_view {
    uint64_t beat, pid, pid_start, world_rank, step, micro_batch, block;
    uint64_t collective, collective_done, host_collective, host_collective_done;
    uint64_t phase, exit_code, gpu;
    uint64_t age_ns; /* since the last change */
    int count;       /* operations, the oldest first */
    struct ls_progress_step operations[LS_PROGRESS_OPERATIONS];
};

struct ls_progress;

/* Opens or makes the node's file of `ranks` records for (run_id, attempt), owner only; allocated in full before it is
 * mapped. One that a removed run of that name left here serves, whatever its size: who enters takes over its record. */
enum ls_code ls_progress_open(const char *run_id, int64_t attempt, int ranks, struct ls_progress **progress,
                              struct ls_error *error);
/* Opens an existing one; LS_ERROR when there is none yet, or it is another user's, or not complete. */
enum ls_code ls_progress_open_existing(const char *run_id, int64_t attempt, struct ls_progress **progress,
                                       struct ls_error *error);
int ls_progress_ranks(const struct ls_progress *progress);
/* Valid until the file is closed. */
struct ls_progress_record *ls_progress_record(struct ls_progress *progress, int local_rank);
/* Writes this process into its record: pid and start time, phase LS_PHASE_START, no world rank, no exit code, and
 * nothing of whoever had the record before. */
void ls_progress_enter(struct ls_progress_record *record);
/* Stores phase, step, micro-batch and block and counts the beat. */
void ls_progress_mark(struct ls_progress_record *record, enum ls_phase phase, uint64_t step, uint64_t micro_batch,
                      uint64_t block);
/* A collective begins and ends: `stream` tells which kind; `block` -1: none. The first returns what the second takes.
 * NULL records are passed over. No locks, no system calls but the clock; threads of the rank may call them at once. */
uint64_t ls_progress_begin_collective(struct ls_progress_record *record, bool stream, uint64_t number, int block);
void ls_progress_end_collective(struct ls_progress_record *record, bool stream, uint64_t number, uint64_t operation);
/* Reads a record that others may be writing: every number is one that was stored, those of an operation just being
 * written may be of two. `operations`: the ring too. */
void ls_progress_read(const struct ls_progress_record *record, bool operations, struct ls_progress_view *view);
/* True while the process that wrote the record lives: pid and start time match, no zombie. Same pid namespace. */
int ls_progress_alive(const struct ls_progress_record *record);
/* Takes NULL. The file stays. */
void ls_progress_close(struct ls_progress *progress);
/* Removes the file of (run_id, attempt), if there. */
void ls_progress_remove(const char *run_id, int64_t attempt);

#endif
