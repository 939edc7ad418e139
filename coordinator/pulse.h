/* A sign of life: memory that a process shares with its child, in which the child notes when it last went on. */
#ifndef LS_COORDINATOR_PULSE_H
#define LS_COORDINATOR_PULSE_H

#include <stdint.h>

struct ls_pulse;

/* Made before the fork, and beating. NULL when there is no memory. */
struct ls_pulse *ls_pulse_create(void);
/* Takes NULL. */
void ls_pulse_destroy(struct ls_pulse *pulse);

/* Whoever calls it goes on. Takes NULL. No system call but the clock. */
void ls_pulse_beat(struct ls_pulse *pulse);
/* Milliseconds since the last beat; of NULL 0. */
int64_t ls_pulse_silent_ms(const struct ls_pulse *pulse);

#endif
