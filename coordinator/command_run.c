/* The command lines of `lockstep run` and `lockstep coordinator`. */
#include "coordinator/command_run.h"

#include "coordinator/command_line.h"
#include "coordinator/supervisor.h"

#include <stdlib.h>
#include <string.h>

enum { OPTION_RUN_DIR = 256, OPTION_RESUME, OPTION_ACCEPT, ACCEPTED_MAX = 32 };

static const struct argp_option options_table[] = {
    {"ranks", LS_COMMAND_RANKS, "RANKS", 0,
     "Number of workers; else launcher.ranks, Slurm's tasks, the hostfile's slots, this host's GPUs, 1", 0},
    LS_COMMAND_ROW_HOSTFILE,
    {"run-dir", OPTION_RUN_DIR, "DIR", 0, "The run directory; else runs/NAME", 0},
    LS_COMMAND_ROW_SET,
    {"resume", OPTION_RESUME, NULL, 0, "Go on from the newest good checkpoint, or start when there is none", 0},
    {"accept", OPTION_ACCEPT, "KEY", 0,
     "Resume although this key, or one of this section, has changed and changes the numbers or the data. May be given "
     "again",
     0},
    {0}};

struct request {
    struct ls_command_common common;
    struct ls_run_options options;
    const char *accepted[ACCEPTED_MAX];
};

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    struct request *request = state->input;
    struct ls_run_options *options = &request->options;
    switch (key) {
    case OPTION_RUN_DIR: options->run_dir = argument; return 0;
    case OPTION_RESUME: options->resume = true; return 0;
    case OPTION_ACCEPT:
        if (options->accepted_count == ACCEPTED_MAX)
            argp_error(state, "--accept is given more than %d times", ACCEPTED_MAX);
        request->accepted[options->accepted_count++] = argument;
        return 0;
    default: return ls_command_common_option(key, argument, state, &request->common);
    }
}

static int command(int argc, char **argv, const char *doc,
                   enum ls_code (*run)(const struct ls_run_options *, struct ls_error *)) {
    const struct argp argp = {.options = options_table, .parser = parse_option, .args_doc = "CONFIG", .doc = doc};
    struct request request = {.common = {.ranks_max = LS_CORE_RANKS_MAX}};
    struct ls_run_options *options = &request.options;
    struct ls_error reason = {0};
    options->accepted = request.accepted;
    ls_command_parse(&argp, argc, argv, &request);
    options->config_path = request.common.config_path;
    options->hostfile = request.common.hostfile;
    options->settings = request.common.settings;
    options->settings_count = request.common.settings_count;
    options->ranks = request.common.ranks;
    enum ls_code code = run(options, &reason);
    return ls_report_exit(code, reason.text);
}

int ls_command_run(int argc, char **argv) {
    return command(
        argc, argv,
        "Trains: coordinator and workers, supervised; here, on the hosts of a hostfile, or on those of a Slurm job.",
        ls_supervisor_run);
}

int ls_command_coordinator(int argc, char **argv) {
    return command(argc, argv, "Runs the coordinator alone and prints the mpirun line whose workers join it.",
                   ls_coordinator_run);
}
