/* The command lines of `lockstep run` and `lockstep coordinator`. */
#include "coordinator/command_run.h"

#include "coordinator/command_line.h"
#include "coordinator/supervisor.h"

#include <stdlib.h>
#include <string.h>

enum {
    OPTION_RUN_DIR = 256,
    OPTION_HOSTFILE,
    OPTION_SET,
    OPTION_RESUME,
    OPTION_ACCEPT,
    SETTINGS_MAX = 256,
    ACCEPTED_MAX = 32
};

static const struct argp_option options_table[] = {
    {"ranks", 'n', "RANKS", 0, "Number of workers; else launcher.ranks, Slurm's tasks, the hostfile's slots, 1", 0},
    {"hostfile", OPTION_HOSTFILE, "FILE", 0, "Hosts to run on, a line each: HOST slots=N", 0},
    {"run-dir", OPTION_RUN_DIR, "DIR", 0, "The run directory; else runs/NAME", 0},
    {"set", OPTION_SET, "KEY=VALUE", 0, "Set one key; the value is YAML. May be given again, later ones win", 0},
    {"resume", OPTION_RESUME, NULL, 0, "Go on from the newest good checkpoint, or start when there is none", 0},
    {"accept", OPTION_ACCEPT, "KEY", 0,
     "Resume although this key has changed and changes the numbers. May be given again", 0},
    {0}};

struct request {
    struct ls_run_options options;
    const char *settings[SETTINGS_MAX];
    const char *accepted[ACCEPTED_MAX];
};

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    struct request *request = state->input;
    struct ls_run_options *options = &request->options;
    switch (key) {
    case 'n': options->ranks = ls_command_number(state, "-n", argument, 1, LS_CORE_RANKS_MAX); return 0;
    case OPTION_RUN_DIR: options->run_dir = argument; return 0;
    case OPTION_HOSTFILE: options->hostfile = argument; return 0;
    case OPTION_RESUME: options->resume = true; return 0;
    case OPTION_ACCEPT:
        if (options->accepted_count == ACCEPTED_MAX)
            argp_error(state, "--accept is given more than %d times", ACCEPTED_MAX);
        request->accepted[options->accepted_count++] = argument;
        return 0;
    case OPTION_SET:
        if (options->settings_count == SETTINGS_MAX)
            argp_error(state, "--set is given more than %d times", SETTINGS_MAX);
        request->settings[options->settings_count++] = argument;
        return 0;
    case ARGP_KEY_ARG:
        if (options->config_path)
            argp_error(state, "there is a second CONFIG, '%s', beside '%s'", argument, options->config_path);
        options->config_path = argument;
        return 0;
    case ARGP_KEY_END:
        if (!options->config_path) argp_error(state, "no CONFIG is named");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static int command(int argc, char **argv, const char *doc,
                   enum ls_code (*run)(const struct ls_run_options *, struct ls_error *)) {
    const struct argp argp = {.options = options_table, .parser = parse_option, .args_doc = "CONFIG", .doc = doc};
    struct request request = {0};
    struct ls_error reason = {0};
    request.options.settings = request.settings;
    request.options.accepted = request.accepted;
    ls_command_parse(&argp, argc, argv, &request);
    enum ls_code code = run(&request.options, &reason);
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
