/* `lockstep status`, `lockstep stop`, `lockstep checkpoint`: talk to the coordinator of a running job. */
#ifndef LS_COORDINATOR_COMMAND_OPERATOR_H
#define LS_COORDINATOR_COMMAND_OPERATOR_H

/* Run the command; argv[0] is its title. Exit codes: LS_OK, LS_ERROR when nothing runs, LS_USAGE. */
int ls_command_status(int argc, char **argv);
int ls_command_stop(int argc, char **argv);
int ls_command_checkpoint(int argc, char **argv);

#endif
