/* Costs that fade out. */
#include "coordinator/straggler.h"

#include <stdlib.h>
#include <string.h>

struct ls_stragglers {
    int64_t ranks, count;   /* count: of steps so far, warm-up included */
    double seconds, steps;  /* of the steps that count: their weights fade like the costs */
    double *costs, *sorted; /* [ranks] seconds; scratch */
    double *lasts;          /* [ranks] steps in which it was the last */
    bool *named;            /* [ranks] */
    double passed;          /* seconds so far, without the warm-up */
};

enum ls_code ls_stragglers_create(int64_t ranks, struct ls_stragglers **result, struct ls_error *error) {
    struct ls_stragglers *made = calloc(1, sizeof *made);
    if (made) {
        made->ranks = ranks;
        made->costs = calloc((size_t)ranks, sizeof *made->costs);
        made->lasts = calloc((size_t)ranks, sizeof *made->lasts);
        made->sorted = calloc((size_t)ranks, sizeof *made->sorted);
        made->named = calloc((size_t)ranks, sizeof *made->named);
    }
    if (!made || !made->costs || !made->lasts || !made->sorted || !made->named) {
        ls_stragglers_destroy(made);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory to look for stragglers");
    }
    *result = made;
    return LS_OK;
}

void ls_stragglers_destroy(struct ls_stragglers *stragglers) {
    if (!stragglers) return;
    free(stragglers->costs);
    free(stragglers->lasts);
    free(stragglers->sorted);
    free(stragglers->named);
    free(stragglers);
}

void ls_stragglers_step(struct ls_stragglers *stragglers, int64_t rank, double wait, double seconds) {
    if (stragglers->count++ < LS_STRAGGLER_WARM_UP || !(seconds > 0)) return;
    /* A step counts 1 at first and 1 / e after as many others as are looked back at. */
    const double usual = (stragglers->seconds + seconds) / (stragglers->steps + 1);
    double span = LS_STRAGGLER_SECONDS / usual;
    if (span < LS_STRAGGLER_STEPS) span = LS_STRAGGLER_STEPS;
    const double kept = 1 - 1 / span;
    for (int64_t i = 0; i < stragglers->ranks; i++) {
        stragglers->costs[i] *= kept;
        stragglers->lasts[i] *= kept;
    }
    stragglers->seconds = stragglers->seconds * kept + seconds;
    stragglers->steps = stragglers->steps * kept + 1;
    stragglers->passed += seconds;
    if (rank < 0 || rank >= stragglers->ranks) return;
    stragglers->costs[rank] += wait;
    stragglers->lasts[rank]++;
}

static int compare_numbers(const void *a, const void *b) {
    const double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* The middle one of the other ranks' costs; of two middle ones the larger. */
static double usual_cost(struct ls_stragglers *stragglers, int64_t rank) {
    const int64_t others = stragglers->ranks - 1;
    memcpy(stragglers->sorted, stragglers->costs, (size_t)rank * sizeof *stragglers->costs);
    memcpy(stragglers->sorted + rank, stragglers->costs + rank + 1,
           (size_t)(others - rank) * sizeof *stragglers->costs);
    qsort(stragglers->sorted, (size_t)others, sizeof *stragglers->sorted, compare_numbers);
    return stragglers->sorted[others / 2];
}

/* More often last than three standard deviations above what chance would make of equal ranks. */
static bool is_often_last(const struct ls_stragglers *stragglers, int64_t rank) {
    const double chance = 1.0 / (double)stragglers->ranks;
    const double excess = stragglers->lasts[rank] / stragglers->steps - chance;
    return excess > 0 && excess * excess > 9 * chance * (1 - chance) / stragglers->steps;
}

bool ls_stragglers_next(struct ls_stragglers *stragglers, struct ls_straggler *change) {
    if (stragglers->ranks < 2 || stragglers->count < LS_STRAGGLER_WARM_UP + LS_STRAGGLER_STEPS ||
        stragglers->passed < LS_STRAGGLER_SECONDS)
        return false;
    for (int64_t rank = 0; rank < stragglers->ranks; rank++) {
        const double share = 100 * stragglers->costs[rank] / stragglers->seconds;
        if (!stragglers->named[rank] && share <= LS_STRAGGLER_NAMED) continue;
        const double percent = share - 100 * usual_cost(stragglers, rank) / stragglers->seconds;
        const bool named = stragglers->named[rank] ? percent > LS_STRAGGLER_CLEARED
                                                   : percent > LS_STRAGGLER_NAMED && is_often_last(stragglers, rank);
        if (named == stragglers->named[rank]) continue;
        stragglers->named[rank] = named;
        *change = (struct ls_straggler){rank, named, percent > 0 ? percent : 0, (int64_t)(stragglers->steps + 0.5)};
        return true;
    }
    return false;
}
