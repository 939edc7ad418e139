/* Young's formula. */
#include "common/interval.h"

#include <math.h>

static const double write_share = 0.1, rank_hours_between_failures = 48000;

double ls_interval_advised(double blocked_seconds, double write_seconds, double failure_seconds) {
    return fmax(sqrt(2 * blocked_seconds * failure_seconds), write_seconds / write_share);
}

double ls_interval_assumed_failure_seconds(int64_t ranks) {
    return rank_hours_between_failures * 3600 / (double)ranks;
}
