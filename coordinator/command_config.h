/* `lockstep config`: shows the resolved configuration, or every key there is. */
#ifndef LS_COORDINATOR_COMMAND_CONFIG_H
#define LS_COORDINATOR_COMMAND_CONFIG_H

/* Runs the command; argv[0] is "config". Prints to standard output, errors to standard error with the line that ends
 * every command. Returns the exit code: LS_OK, or LS_USAGE for a bad command line or configuration. */
int ls_command_config(int argc, char **argv);

#endif
