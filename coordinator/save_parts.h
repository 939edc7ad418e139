/* What the ranks report of the save that is being collected: the files of their parts, until all are there. */
#ifndef LS_COORDINATOR_SAVE_PARTS_H
#define LS_COORDINATOR_SAVE_PARTS_H

#include "common/manifest.h"
#include "common/wire.h"

/* As many files as a manifest can list beside trainer.json, which the coordinator writes itself. */
enum { LS_SAVE_FILES_MAX = LS_MANIFEST_FILES_MAX - 1 };

/* Zeroed: nothing is collected. */
struct ls_save_parts {
    int64_t step;
    struct ls_file_record *files; /* of all ranks, [files_count]; malloc'ed */
    size_t files_count, files_capacity;
    const char *missing; /* why some files are not in the list; NULL: all are */
    int64_t optimizer_steps;
    double seconds; /* of the rank that took longest */
    int64_t bytes;
};

/* Adds the files of `message`, a PART of the save of `step`. Where they cannot be listed, `missing` says why from then
 * on: a commit would remove the files that are not. */
void ls_save_parts_keep(struct ls_save_parts *parts, int64_t step, const struct ls_message *message);
/* Forgets all of it. */
void ls_save_parts_drop(struct ls_save_parts *parts);

#endif
