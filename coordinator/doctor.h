/* `lockstep doctor`: what a run needs of this host, what was found, what is wrong, the fix. */
#ifndef LS_COORDINATOR_DOCTOR_H
#define LS_COORDINATOR_DOCTOR_H

#include <stdio.h>

/* Prints one line for each thing that was looked at, and for each one that is wrong a second line with the fix. Returns
 * how many are wrong. */
int ls_doctor_examine(FILE *out);

/* The command: exit code LS_ERROR when something is wrong. */
int ls_command_doctor(int argc, char **argv);

#endif
