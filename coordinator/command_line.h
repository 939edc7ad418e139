/* Command lines: what the subcommands of `lockstep` share. */
#ifndef LS_COORDINATOR_COMMAND_LINE_H
#define LS_COORDINATOR_COMMAND_LINE_H

#include "common/status.h"

#include <argp.h>
#include <stdint.h>

/* Parses the arguments of a subcommand (argv[0] is its name, "lockstep run" for messages) into `input`. Ends the
 * process after
 * --help and --usage (0) and after a bad option or argument (2), with the last line that every failing command prints.
 * Parsers call argp_error() for what they find wrong. */
void ls_command_parse(const struct argp *argp, int argc, char **argv, void *input);

/* Parses a whole number in [least, most] for option `option`; argp_error() otherwise. */
long ls_command_number(const struct argp_state *state, const char *option, const char *text, long least, long most);

/* What commands on a configuration have in common. A command puts the rows of the options that it takes into its table,
 * and its parser hands on what it does not know itself. */
enum {
    LS_COMMAND_SETTINGS_MAX = 256,
    LS_COMMAND_RANKS = 'n',
    LS_COMMAND_SET = 1000,
    LS_COMMAND_HOSTFILE,
    LS_COMMAND_LINK_GBPS
};
#define LS_COMMAND_ROW_SET                                                                                             \
    { "set", LS_COMMAND_SET, "KEY=VALUE", 0, "Set one key; the value is YAML. May be given again, later ones win", 0 }
#define LS_COMMAND_ROW_HOSTFILE                                                                                        \
    { "hostfile", LS_COMMAND_HOSTFILE, "FILE", 0, "Hosts to run on, a line each: HOST slots=N", 0 }
#define LS_COMMAND_ROW_LINK_GBPS                                                                                       \
    { "link-gbps", LS_COMMAND_LINK_GBPS, "G", 0, "Gbit/s of a node's link to the others, for predictions; else 100", 0 }

/* The strings are argv's. */
struct ls_command_common {
    const char *config_path; /* CONFIG, NULL: not given */
    const char *hostfile;    /* NULL: not given */
    const char *settings[LS_COMMAND_SETTINGS_MAX];
    int settings_count;
    int64_t ranks;                /* -n, from 1 to `ranks_max`; 0: not given */
    int64_t ranks_max;            /* set by the command before parsing */
    double link_bytes_per_second; /* 0: not given */
};

/* Takes the options above and the one argument CONFIG, which must be there in the end; argp_error() for what is wrong.
 * ARGP_ERR_UNKNOWN for any other key. */
error_t ls_command_common_option(int key, char *argument, struct argp_state *state, struct ls_command_common *common);

/* The one argument of commands about a run, its directory: a second one, and none, end with usage. ARGP_ERR_UNKNOWN for
 * any other key. */
error_t ls_command_run_argument(int key, char *argument, struct argp_state *state, const char **run);

/* Writes what is left to standard output. LS_ERROR when not all of it could be written: a disk that is full, a closed
 * descriptor. */
enum ls_code ls_command_flush(struct ls_error *error);

/* The name in names[count] that is nearest to `given`, or NULL when none is near. */
const char *ls_command_nearest(const char *given, const char *const *names, int count);

#endif
