/* The running median of losses. */
#include "worker/optim/spike.h"

#include <stdlib.h>
#include <string.h>

static int compare(const void *a, const void *b) {
    const double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

void ls_spike_add(struct ls_spike *spike, double loss) {
    spike->losses[spike->count++ % LS_SPIKE_WINDOW] = loss;
}

double ls_spike_median(const struct ls_spike *spike) {
    const size_t count = spike->count < LS_SPIKE_WINDOW ? (size_t)spike->count : LS_SPIKE_WINDOW;
    double sorted[LS_SPIKE_WINDOW];
    if (count < LS_SPIKE_LEAST) return 0;
    memcpy(sorted, spike->losses, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, compare);
    return count % 2 ? sorted[count / 2] : 0.5 * (sorted[count / 2 - 1] + sorted[count / 2]);
}

bool ls_spike_is(const struct ls_spike *spike, double factor, double loss) {
    const double median = factor > 0 ? ls_spike_median(spike) : 0;
    return median > 0 && loss > factor * median;
}
