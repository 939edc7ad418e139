/* `lockstep verify` and `lockstep blame`: what a run was trained on. */
#ifndef LS_COORDINATOR_COMMAND_VERIFY_H
#define LS_COORDINATOR_COMMAND_VERIFY_H

/* The commands: argv[0] is the name in messages; they return the exit code. */
int ls_command_verify(int argc, char **argv);
int ls_command_blame(int argc, char **argv);

#endif
