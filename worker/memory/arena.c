/* The arena's plan and its one allocation. */
#include "worker/memory/arena.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ls_arena {
    struct ls_device *device;
    char *memory;
    int count;
    int64_t offsets[];
};

const char *ls_memory_category_name(enum ls_memory_category category) {
    static const char *const names[LS_MEMORY_CATEGORIES] = {
        "parameters", "gradients", "optimizer", "gathered parameters", "whole gradients", "activations",
        "workspace",  "data",      "scalars"};
    return names[category];
}

int ls_arena_reserve(struct ls_arena_plan *plan, enum ls_memory_category category, int64_t bytes) {
    assert(plan->count < LS_ARENA_BUFFERS_MAX && bytes >= 0);
    int64_t room = (bytes + LS_ARENA_ALIGNMENT - 1) / LS_ARENA_ALIGNMENT * LS_ARENA_ALIGNMENT;
    plan->buffers[plan->count].offset = plan->bytes;
    plan->buffers[plan->count].bytes = bytes;
    plan->buffers[plan->count].category = category;
    plan->bytes += room;
    plan->category_bytes[category] += room;
    return plan->count++;
}

static enum ls_code refuse(const struct ls_arena_plan *plan, struct ls_error *error) {
    char table[512];
    size_t length = 0;
    for (int category = 0; category < LS_MEMORY_CATEGORIES; category++)
        length += (size_t)snprintf(table + length, sizeof table - length, "%s%s %.1f MiB", category ? ", " : "",
                                   ls_memory_category_name((enum ls_memory_category)category),
                                   (double)plan->category_bytes[category] / 1048576.0);
    return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK,
                   "memory: this rank needs %.1f MiB and the device does not have them (%s). Lower "
                   "train.micro_batch_size or run on more memory.",
                   (double)plan->bytes / 1048576.0, table);
}

enum ls_code ls_arena_create(struct ls_device *device, const struct ls_arena_plan *plan, struct ls_arena **arena,
                             struct ls_error *error) {
    struct ls_arena *made = malloc(sizeof *made + (size_t)plan->count * sizeof made->offsets[0]);
    if (!made) return refuse(plan, error);
    made->device = device;
    made->count = plan->count;
    for (int buffer = 0; buffer < plan->count; buffer++) made->offsets[buffer] = plan->buffers[buffer].offset;
    /* Device memory is aligned to 64 bytes at least, which is what kernels ask for; offsets keep that. */
    made->memory = ls_device_allocate(device, plan->bytes > 0 ? (size_t)plan->bytes : 1);
    if (!made->memory) {
        free(made);
        return refuse(plan, error);
    }
    *arena = made;
    return LS_OK;
}

void ls_arena_destroy(struct ls_arena *arena) {
    if (!arena) return;
    ls_device_free(arena->device, arena->memory);
    free(arena);
}

void *ls_arena_buffer(struct ls_arena *arena, int buffer) {
    assert(buffer >= 0 && buffer < arena->count);
    return arena->memory + arena->offsets[buffer];
}
