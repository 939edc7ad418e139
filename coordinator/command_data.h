/* `lockstep data`: prepare, inspect, verify. */
#ifndef LS_COORDINATOR_COMMAND_DATA_H
#define LS_COORDINATOR_COMMAND_DATA_H

/* Runs `data` with its arguments, argv[0] being "data". Returns the exit code; the last line on standard error is
 * printed. */
int ls_command_data(int argc, char **argv);

#endif
