/* Sequences that are never trained on: ranges of positions in the sample order, found to make the loss non-finite or to
 * spike. A step takes the next sequences that are not among them, so that where a step starts and ends is a function of
 * where the attempt starts and of this list. Positions count sequences, as everywhere. */
#ifndef LS_COMMON_QUARANTINE_H
#define LS_COMMON_QUARANTINE_H

#include <stdbool.h>
#include <stdint.h>

enum { LS_QUARANTINE_RANGES_MAX = 64 };

/* Positions [from, to), from < to. */
struct ls_quarantine_range {
    int64_t from, to;
};

/* Ascending, not overlapping. All zero: nothing is quarantined. */
struct ls_quarantine {
    int32_t count;
    struct ls_quarantine_range ranges[LS_QUARANTINE_RANGES_MAX];
};

/* Adds [from, to), joined with ranges that it touches. False, and nothing changes, when it is empty, begins below 0 or
 * has no room. */
bool ls_quarantine_add(struct ls_quarantine *quarantine, int64_t from, int64_t to);
/* True for ranges as they have to be: for a list that came from outside. */
bool ls_quarantine_is_valid(const struct ls_quarantine *quarantine);
/* True when `position` is quarantined. */
bool ls_quarantine_has(const struct ls_quarantine *quarantine, int64_t position);
/* How many of the sequences [from, to) are quarantined; 0 when to <= from. */
int64_t ls_quarantine_within(const struct ls_quarantine *quarantine, int64_t from, int64_t to);
/* The position behind `sequences` usable ones from `position` on: behind the last of them, so that a range which begins
 * there is passed over by the next step. `position` itself for 0. */
int64_t ls_quarantine_behind(const struct ls_quarantine *quarantine, int64_t position, int64_t sequences);
/* The position of the usable sequence number `index` (from 0) of a step that starts at `position`. */
int64_t ls_quarantine_at(const struct ls_quarantine *quarantine, int64_t position, int64_t index);

#endif
