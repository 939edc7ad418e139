/* Command lines: what the subcommands of `lockstep` share. */
#ifndef LS_COORDINATOR_COMMAND_LINE_H
#define LS_COORDINATOR_COMMAND_LINE_H

#include <argp.h>

/* Parses the arguments of a subcommand (argv[0] is its name, "lockstep run" for messages) into `input`. Ends the
 * process after
 * --help and --usage (0) and after a bad option or argument (2), with the last line that every failing command prints.
 * Parsers call argp_error() for what they find wrong. */
void ls_command_parse(const struct argp *argp, int argc, char **argv, void *input);

/* Parses a whole number in [least, most] for option `option`; argp_error() otherwise. */
long ls_command_number(const struct argp_state *state, const char *option, const char *text, long least, long most);

/* The name in names[count] that is nearest to `given`, or NULL when none is near. */
const char *ls_command_nearest(const char *given, const char *const *names, int count);

#endif
