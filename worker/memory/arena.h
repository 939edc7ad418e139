/* The arena: one allocation whose layout is computed before the first step. Plan first (pure), then allocate, then
 * place by number.
 *
 *     [ buffer 0 ... slack ][ guard ][ buffer 1 ..... slack ][ guard ] ...      guards only where they are asked for
 *
 * Slack fills a buffer up to a multiple of the alignment and counts as its category's. Guards count nowhere; they and
 * the slack hold a pattern that ls_arena_check() looks for. */
#ifndef LS_WORKER_MEMORY_ARENA_H
#define LS_WORKER_MEMORY_ARENA_H

#include "common/status.h"
#include "worker/device/device.h"

#include <stdbool.h>
#include <stdint.h>

/* What bytes are for; the rows of `plan`'s table. */
enum ls_memory_category {
    LS_MEMORY_PARAMETERS,
    LS_MEMORY_GRADIENTS,
    LS_MEMORY_OPTIMIZER,
    LS_MEMORY_GATHERED,  /* whole parameters of blocks in work, where only slices are kept */
    LS_MEMORY_REDUCED,   /* whole gradients of blocks in work, where only slices are kept */
    LS_MEMORY_REDUCTION, /* sums of slots, train.reduction: fixed */
    LS_MEMORY_ACTIVATIONS,
    LS_MEMORY_WORKSPACE,
    LS_MEMORY_DATA,
    LS_MEMORY_SCALARS,
    LS_MEMORY_CATEGORIES
};
const char *ls_memory_category_name(enum ls_memory_category category);

enum { LS_ARENA_BUFFERS_MAX = 40960, LS_ARENA_ALIGNMENT = 256 };

/* A plan is a list of buffers; offsets grow in the order of reservation. */
struct ls_arena_plan {
    int64_t bytes, category_bytes[LS_MEMORY_CATEGORIES];
    bool guarded; /* set it before the allocation: guards between the buffers */
    int count;
    struct {
        int64_t offset, bytes;
        enum ls_memory_category category;
    } buffers[LS_ARENA_BUFFERS_MAX];
};

/* Reserves `bytes` < 2^62 and returns the buffer's number. Sums beyond LS_ARENA_BYTES_MAX stay there: such a plan is of
 * no use, and whoever made it refuses it. */
static const int64_t LS_ARENA_BYTES_MAX = INT64_C(1) << 62;
int ls_arena_reserve(struct ls_arena_plan *plan, enum ls_memory_category category, int64_t bytes);

struct ls_arena;
/* Allocates what the plan says from the device; LS_MEMORY with the table of categories, and of what holds the memory of
 * a GPU, when it is not to be had. */
enum ls_code ls_arena_create(struct ls_device *device, const struct ls_arena_plan *plan, struct ls_arena **arena,
                             struct ls_error *error);
void ls_arena_destroy(struct ls_arena *arena);
/* Zeroes every buffer; the streams that use the arena are idle. */
enum ls_code ls_arena_clear(struct ls_arena *arena, struct ls_stream *stream, struct ls_error *error);
void *ls_arena_buffer(struct ls_arena *arena, int buffer);
/* Looks whether anything was written behind a buffer's end; the streams that use the arena are idle. LS_ERROR, naming
 * the buffer. LS_OK without guards. */
enum ls_code ls_arena_check(struct ls_arena *arena, struct ls_error *error);

#endif
