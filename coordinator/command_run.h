/* `lockstep run` and `lockstep coordinator`. */
#ifndef LS_COORDINATOR_COMMAND_RUN_H
#define LS_COORDINATOR_COMMAND_RUN_H

/* Run the command; argv[0] is its title. Return the exit code; errors and the last line are on standard error. */
int ls_command_run(int argc, char **argv);
int ls_command_coordinator(int argc, char **argv);

#endif
