/* Walks over the ranges; there are at most a few dozen. */
#include "common/quarantine.h"

#include <string.h>

bool ls_quarantine_add(struct ls_quarantine *quarantine, int64_t from, int64_t to) {
    if (from < 0 || to <= from) return false;
    struct ls_quarantine_range *ranges = quarantine->ranges;
    int32_t first = 0, last;
    while (first < quarantine->count && ranges[first].to < from) first++;
    /* Those in [first, last) are touched and become one. */
    for (last = first; last < quarantine->count && ranges[last].from <= to; last++) {
        if (ranges[last].from < from) from = ranges[last].from;
        if (ranges[last].to > to) to = ranges[last].to;
    }
    if (last == first && quarantine->count == LS_QUARANTINE_RANGES_MAX) return false;
    memmove(ranges + first + 1, ranges + last, (size_t)(quarantine->count - last) * sizeof *ranges);
    ranges[first] = (struct ls_quarantine_range){from, to};
    quarantine->count += 1 - (last - first);
    return true;
}

bool ls_quarantine_is_valid(const struct ls_quarantine *quarantine) {
    if (quarantine->count < 0 || quarantine->count > LS_QUARANTINE_RANGES_MAX) return false;
    int64_t behind = 0;
    for (int32_t i = 0; i < quarantine->count; i++) {
        if (quarantine->ranges[i].from < behind || quarantine->ranges[i].to <= quarantine->ranges[i].from) return false;
        behind = quarantine->ranges[i].to;
    }
    return true;
}

bool ls_quarantine_has(const struct ls_quarantine *quarantine, int64_t position) {
    for (int32_t i = 0; i < quarantine->count; i++)
        if (position >= quarantine->ranges[i].from && position < quarantine->ranges[i].to) return true;
    return false;
}

int64_t ls_quarantine_within(const struct ls_quarantine *quarantine, int64_t from, int64_t to) {
    int64_t sum = 0;
    for (int32_t i = 0; i < quarantine->count; i++) {
        int64_t low = quarantine->ranges[i].from > from ? quarantine->ranges[i].from : from;
        int64_t high = quarantine->ranges[i].to < to ? quarantine->ranges[i].to : to;
        if (high > low) sum += high - low;
    }
    return sum;
}

int64_t ls_quarantine_behind(const struct ls_quarantine *quarantine, int64_t position, int64_t sequences) {
    int64_t behind = position + sequences;
    if (sequences <= 0) return position;
    for (int32_t i = 0; i < quarantine->count; i++) {
        const struct ls_quarantine_range *range = &quarantine->ranges[i];
        if (range->to <= position) continue;
        if (range->from >= behind) break;
        behind += range->to - (range->from > position ? range->from : position);
    }
    return behind;
}

int64_t ls_quarantine_at(const struct ls_quarantine *quarantine, int64_t position, int64_t index) {
    return ls_quarantine_behind(quarantine, position, index + 1) - 1;
}
