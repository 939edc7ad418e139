/* How often to save: the interval that loses least to saves and to failures together.
 *
 * With C seconds lost to a save and M seconds between failures on average, an interval of t loses C / t of the time to
 * saves and about t / 2 of every M to steps that have to run again; the sum is least at t = sqrt(2 C M) (Young, A first
 * order approximation to the optimum checkpoint interval, 1974; Daly 2006 refines it for t near M). A save beside
 * training loses next to nothing, but keeps disk and memory busy while it is written: the advice is at least ten times
 * that. */
#ifndef LS_COMMON_INTERVAL_H
#define LS_COMMON_INTERVAL_H

#include <stdint.h>

/* `blocked_seconds`: what a save costs training; `write_seconds`: what it takes; `failure_seconds`: between failures.
 */
double ls_interval_advised(double blocked_seconds, double write_seconds, double failure_seconds);

/* Where none was seen yet: 48,000 hours between failures of one rank, which is once in three hours with 16,000. */
double ls_interval_assumed_failure_seconds(int64_t ranks);

#endif
