/* The arena's plan and its one allocation. */
#include "worker/memory/arena.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bytes between two buffers of a guarded arena, and what they hold: no likely number of any type. */
enum { GUARD_BYTES = LS_ARENA_ALIGNMENT, PATTERN = 0xb5 };

/* Where a buffer is, where it ends, and where the next one begins. */
struct extent {
    int64_t offset, end, next;
    enum ls_memory_category category;
};

struct ls_arena {
    struct ls_device *device;
    char *memory;
    struct ls_stream *stream; /* guarded: for looking; else NULL */
    unsigned char *seen;      /* guarded: host memory for all slack and guards */
    int count;
    struct extent extents[];
};

const char *ls_memory_category_name(enum ls_memory_category category) {
    static const char *const names[LS_MEMORY_CATEGORIES] = {"parameters",
                                                            "gradients",
                                                            "optimizer",
                                                            "gathered parameters",
                                                            "whole gradients",
                                                            "reduction tree",
                                                            "activations",
                                                            "workspace",
                                                            "data",
                                                            "scalars"};
    return names[category];
}

/* Of two numbers of at most LS_ARENA_BYTES_MAX. */
static int64_t sum_of(int64_t a, int64_t b) {
    return a < LS_ARENA_BYTES_MAX - b ? a + b : LS_ARENA_BYTES_MAX;
}

int ls_arena_reserve(struct ls_arena_plan *plan, enum ls_memory_category category, int64_t bytes) {
    assert(plan->count < LS_ARENA_BUFFERS_MAX && bytes >= 0 && bytes < LS_ARENA_BYTES_MAX);
    int64_t room = (bytes + LS_ARENA_ALIGNMENT - 1) / LS_ARENA_ALIGNMENT * LS_ARENA_ALIGNMENT;
    plan->buffers[plan->count].offset = plan->bytes;
    plan->buffers[plan->count].bytes = bytes;
    plan->buffers[plan->count].category = category;
    plan->bytes = sum_of(plan->bytes, room);
    plan->category_bytes[category] = sum_of(plan->category_bytes[category], room);
    return plan->count++;
}

/* What holds a GPU's memory, in MiB; "" for CPUs. */
static void describe_gpu(const struct ls_device *device, char *text, size_t size) {
    const struct ls_device_info *info = ls_device_info(device);
    const int64_t available = ls_device_free_bytes(device), held = info->memory_bytes - available;
    text[0] = '\0';
    if (info->kind != LS_DEVICE_KIND_CUDA) return;
    snprintf(text, size,
             " %s has %.1f MiB: %.1f were held when this rank had made its context and opened its libraries, %.1f "
             "have been taken since, %.1f are free.",
             info->name, (double)info->memory_bytes / 1048576.0, (double)info->overhead_bytes / 1048576.0,
             (double)(held - info->overhead_bytes) / 1048576.0, (double)available / 1048576.0);
}

static enum ls_code refuse(const struct ls_device *device, const struct ls_arena_plan *plan, struct ls_error *error) {
    char table[384], gpu[288];
    describe_gpu(device, gpu, sizeof gpu);
    size_t length = 0;
    for (int category = 0; category < LS_MEMORY_CATEGORIES; category++)
        length += (size_t)snprintf(table + length, sizeof table - length, "%s%s %.1f MiB", category ? ", " : "",
                                   ls_memory_category_name((enum ls_memory_category)category),
                                   (double)plan->category_bytes[category] / 1048576.0);
    return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK,
                   "memory: this rank needs %.1f MiB and the device does not have them (%s).%s Lower "
                   "train.micro_batch_size, end other programs on the device, or run on more memory.",
                   (double)plan->bytes / 1048576.0, table, gpu);
}

/* Where the buffers go; returns the bytes of the whole. */
static int64_t place(struct ls_arena *arena, const struct ls_arena_plan *plan) {
    int64_t shift = 0;
    for (int i = 0; i < plan->count; i++) {
        const int64_t next = i + 1 < plan->count ? plan->buffers[i + 1].offset : plan->bytes;
        arena->extents[i] = (struct extent){.offset = plan->buffers[i].offset + shift,
                                            .end = plan->buffers[i].offset + plan->buffers[i].bytes + shift,
                                            .category = plan->buffers[i].category};
        if (plan->guarded) shift += GUARD_BYTES;
        arena->extents[i].next = next + shift;
    }
    return plan->bytes + shift;
}

/* Slack and guards of all buffers, between device and `seen`. */
static enum ls_code copy_guards(struct ls_arena *arena, bool to_device, struct ls_error *error) {
    unsigned char *seen = arena->seen;
    for (int i = 0; i < arena->count; i++) {
        const struct extent *extent = &arena->extents[i];
        const size_t bytes = (size_t)(extent->next - extent->end);
        if (to_device)
            ls_copy_to_device(arena->stream, arena->memory + extent->end, seen, bytes);
        else
            ls_copy_to_host(arena->stream, seen, arena->memory + extent->end, bytes);
        seen += bytes;
    }
    return ls_stream_synchronize(arena->stream, error);
}

static enum ls_code set_guards(struct ls_arena *arena, struct ls_error *error) {
    const size_t bytes = (size_t)arena->count * (GUARD_BYTES + LS_ARENA_ALIGNMENT);
    arena->stream = ls_stream_create(arena->device, false);
    arena->seen = ls_device_allocate_host(arena->device, bytes);
    if (!arena->stream || !arena->seen)
        return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "memory: no room for the guards of %d buffers", arena->count);
    memset(arena->seen, PATTERN, bytes);
    return copy_guards(arena, true, error);
}

enum ls_code ls_arena_create(struct ls_device *device, const struct ls_arena_plan *plan, struct ls_arena **arena,
                             struct ls_error *error) {
    struct ls_arena *made = calloc(1, sizeof *made + (size_t)plan->count * sizeof made->extents[0]);
    if (!made) return refuse(device, plan, error);
    made->device = device;
    made->count = plan->count;
    const int64_t bytes = place(made, plan);
    /* Device memory is aligned to 64 bytes at least, which is what kernels ask for; offsets keep that. */
    made->memory = ls_device_allocate(device, bytes > 0 ? (size_t)bytes : 1);
    enum ls_code code = made->memory ? LS_OK : refuse(device, plan, error);
    if (!code && plan->guarded) code = set_guards(made, error);
    if (code) {
        ls_arena_destroy(made);
        return code;
    }
    *arena = made;
    return LS_OK;
}

enum ls_code ls_arena_clear(struct ls_arena *arena, struct ls_stream *stream, struct ls_error *error) {
    for (int i = 0; i < arena->count; i++)
        ls_fill_zero(stream, arena->memory + arena->extents[i].offset,
                     (size_t)(arena->extents[i].end - arena->extents[i].offset));
    enum ls_code code = ls_stream_synchronize(stream, error);
    if (code || !arena->seen) return code;
    memset(arena->seen, PATTERN, (size_t)arena->count * (GUARD_BYTES + LS_ARENA_ALIGNMENT));
    return copy_guards(arena, true, error);
}

void ls_arena_destroy(struct ls_arena *arena) {
    if (!arena) return;
    if (arena->stream) ls_stream_destroy(arena->stream);
    if (arena->seen) ls_device_free_host(arena->device, arena->seen);
    if (arena->memory) ls_device_free(arena->device, arena->memory);
    free(arena);
}

void *ls_arena_buffer(struct ls_arena *arena, int buffer) {
    assert(buffer >= 0 && buffer < arena->count);
    return arena->memory + arena->extents[buffer].offset;
}

enum ls_code ls_arena_check(struct ls_arena *arena, struct ls_error *error) {
    if (!arena->seen) return LS_OK;
    enum ls_code code = copy_guards(arena, false, error);
    const unsigned char *seen = arena->seen;
    for (int i = 0; i < arena->count && !code; i++) {
        const struct extent *extent = &arena->extents[i];
        for (int64_t byte = 0; byte < extent->next - extent->end; byte++)
            if (seen[byte] != PATTERN)
                return ls_fail(error, LS_ERROR, LS_SCOPE_RANK,
                               "memory: something was written %lld bytes behind the end of buffer %d (%s, %lld bytes). "
                               "This is an error of the program: please report it.",
                               (long long)byte, i, ls_memory_category_name(extent->category),
                               (long long)(extent->end - extent->offset));
        seen += extent->next - extent->end;
    }
    return code;
}
