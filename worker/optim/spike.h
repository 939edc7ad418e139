/* Loss spikes: a step whose loss stands far above those before it, as damaged or foreign data bring it about. */
#ifndef LS_WORKER_OPTIM_SPIKE_H
#define LS_WORKER_OPTIM_SPIKE_H

#include <stdbool.h>

enum {
    LS_SPIKE_WINDOW = 64, /* steps whose median is the measure */
    LS_SPIKE_LEAST = 16   /* so many must be known before anything is called a spike */
};

/* The newest losses, in nats per token. All zero: none yet. */
struct ls_spike {
    double losses[LS_SPIKE_WINDOW]; /* a ring */
    long long count;                /* added so far */
};

/* Adds the loss of a step that counted. */
void ls_spike_add(struct ls_spike *spike, double loss);
/* Their median; 0 while fewer than LS_SPIKE_LEAST are known. */
double ls_spike_median(const struct ls_spike *spike);
/* True when `loss` is above `factor` times the median, which is known; factor 0: never. */
bool ls_spike_is(const struct ls_spike *spike, double factor, double loss);

#endif
