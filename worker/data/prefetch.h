/* Prefetch: a thread that reads the sequences of coming steps into a ring of host buffers, so that a step never waits
 * for a disk. */
#ifndef LS_WORKER_DATA_PREFETCH_H
#define LS_WORKER_DATA_PREFETCH_H

#include "common/dataset.h"
#include "common/digest.h"
#include "common/order.h"
#include "common/quarantine.h"
#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ls_prefetch;

enum { LS_PREFETCH_SOURCES_MAX = LS_ORDER_SOURCES_MAX, LS_PREFETCH_SPANS_MAX = 64 };

/* Where the buffers come from: pinned memory for a GPU. `release` gets what `allocate` gave. */
struct ls_prefetch_allocator {
    void *(*allocate)(size_t bytes, void *context); /* NULL: no memory */
    void (*release)(void *memory, void *context);
    void *context;
};

struct ls_prefetch_options {
    const struct ls_order *order;             /* NULL: the datasets one after another, each once (evaluation) */
    const struct ls_dataset *const *datasets; /* by source number; order and datasets must outlive the prefetch */
    int dataset_count;
    int rank, world_size;
    int64_t sequence_length; /* T, the one the datasets were opened with */
    int64_t vocab;           /* token ids are checked against it */
    bool document_mask;
    int64_t window;                         /* tokens that attention sees, 0: all before; see document_start below */
    int64_t micro_batch;                    /* sequences of one forward */
    bool slots;                             /* ranks have whole slots, see struct ls_batch */
    int64_t global_batch_max;               /* the largest batch that will be granted */
    struct ls_quarantine quarantine;        /* what is passed over; all zero: nothing */
    int depth;                              /* steps in the ring, 2 to 16 */
    struct ls_prefetch_allocator allocator; /* allocate NULL: ordinary memory */
};

/* This rank's share of a step. The step's `step_sequences` sequences are the first draws from `position` on that are
 * not quarantined, the last of them before `end_position`; rank r of N has those of ls_rank_range. With `slots`, the
 * step's sequences are cut into slots of micro_batch consecutive ones first, the last maybe smaller, and rank r has the
 * slots of ls_rank_range, so that what a micro-batch holds does not depend on N. Every rank runs `micro_batches` =
 * ceil(ceil(step_sequences / N) / micro_batch) micro-batches; micro-batch m is rows [m * micro_batch, (m + 1) *
 * micro_batch) of the arrays, and those of them at or past `sequences` are padding: input 0, target -1, document_start
 * 0. */
struct ls_batch {
    int64_t step;
    uint64_t position;      /* behind the step before */
    uint64_t end_position;  /* behind this one; the next step starts there */
    int64_t step_sequences; /* of all ranks */
    int64_t first_sequence; /* of this rank's sequences, among the step's */
    int64_t sequences;      /* of this rank; 0 is possible in a truncated step */
    int64_t micro_batches;
    int64_t targets;           /* target ids >= 0 in all of this rank's sequences */
    struct ls_digest digest;   /* sum of ls_digest_sample over this rank's sequences */
    const int32_t *inputs;     /* [micro_batches * micro_batch, T] */
    const int32_t *target_ids; /* [micro_batches * micro_batch, T], -1: no loss */
    /* [micro_batches * micro_batch, T], see ls_dataset_read; with a window no less than t - window + 1 at t. */
    const int32_t *document_start;
};

/* Makes each position of a sequence see `window` tokens at most, its own among them: document_start[length] becomes no
 * less than t - window + 1 at t. window 0: nothing changes. */
void ls_prefetch_limit(int32_t *document_start, int64_t length, int64_t window);

/* Starts the thread; nothing is read before the first grant. All memory is taken here. Errors: LS_MEMORY, LS_ERROR (no
 * thread). */
enum ls_code ls_prefetch_create(const struct ls_prefetch_options *options, struct ls_prefetch **prefetch,
                                struct ls_error *error);

/* Ends the thread (after the read in hand) and frees the ring. Takes NULL. Batches not released are gone with it. */
void ls_prefetch_destroy(struct ls_prefetch *prefetch);

/* Bytes of host memory ls_prefetch_create will take with these options. */
size_t ls_prefetch_bytes(const struct ls_prefetch_options *options);

/* Lets the steps [first_step, last_step) be prepared, after those granted before. Each takes `global_batch` sequences
 * that are not quarantined from where the one before ended, the first from `position`; the last is truncated at
 * `end_position` (UINT64_MAX: no end; without an order, the end of the datasets). Errors are LS_ERROR and leave nothing
 * granted: more than LS_PREFETCH_SPANS_MAX spans waiting, a batch above global_batch_max, a step without a sequence. */
enum ls_code ls_prefetch_grant(struct ls_prefetch *prefetch, int64_t first_step, int64_t last_step, uint64_t position,
                               int64_t global_batch, uint64_t end_position, struct ls_error *error);

/* The next granted step's batch, once it is ready. Its arrays are the caller's until ls_prefetch_release.
 * `waited_seconds` (may be NULL) is the time spent waiting in this call. Errors: LS_DATA as ls_dataset_read made it, at
 * the step it belongs to and at every later call; LS_ERROR if no granted step is left or `depth` batches are already
 * held. Only one thread takes batches. */
enum ls_code ls_prefetch_next(struct ls_prefetch *prefetch, struct ls_batch *batch, double *waited_seconds,
                              struct ls_error *error);

/* Hands the oldest batch taken back to the ring. */
void ls_prefetch_release(struct ls_prefetch *prefetch);

#endif
