/* The list of files of a save. */
#include "coordinator/save_parts.h"

#include "common/config.h"
#include "common/log.h"
#include "coordinator/core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Each rank has a file of state and at most one of weights, of which there are no more than tensors; rank 0 has a few
 * files more. So the largest run that is not refused at its start can save. */
enum { TENSORS_PER_LAYER_MAX = 16, OTHER_FILES_MAX = 64 };
_Static_assert(LS_CORE_RANKS_MAX + LS_CONFIG_LAYERS_MAX * TENSORS_PER_LAYER_MAX + OTHER_FILES_MAX <= LS_SAVE_FILES_MAX,
               "the largest run could not save");

/* NULL, or why so many more files find no place. */
static const char *make_room(struct ls_save_parts *parts, size_t count) {
    const size_t needed = parts->files_count + count;
    if (needed > LS_SAVE_FILES_MAX) return "its ranks report more files than a manifest can list";
    if (needed <= parts->files_capacity) return NULL;
    const size_t capacity = needed * 2 + 16;
    struct ls_file_record *grown = realloc(parts->files, capacity * sizeof *grown);
    if (!grown) return "no memory for the list of its files";
    parts->files = grown;
    parts->files_capacity = capacity;
    return NULL;
}

void ls_save_parts_keep(struct ls_save_parts *parts, int64_t step, const struct ls_message *message) {
    const size_t count = (size_t)message->part.files_count;
    parts->step = step;
    if (parts->missing) return;
    parts->missing = make_room(parts, count);
    if (parts->missing) {
        ls_log(LS_LOG_ERROR, "checkpoint of step %lld cannot be committed: %s", (long long)step, parts->missing);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        struct ls_file_record *record = &parts->files[parts->files_count++];
        const struct ls_part_file *file = &message->part.files[i];
        snprintf(record->name, sizeof record->name, "%s", file->name);
        record->bytes = file->bytes;
        parts->bytes += file->bytes;
        memcpy(record->hash, file->hash, sizeof record->hash);
    }
    if (message->part.rank == 0) parts->optimizer_steps = message->part.optimizer_steps;
    if (message->part.seconds > parts->seconds) parts->seconds = message->part.seconds;
}

void ls_save_parts_drop(struct ls_save_parts *parts) {
    free(parts->files);
    *parts = (struct ls_save_parts){0};
}
