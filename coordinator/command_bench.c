/* The command line of `lockstep bench`. */
#include "coordinator/command_bench.h"

#include "coordinator/bench.h"
#include "coordinator/command_line.h"
#include "coordinator/core.h"

#include <stdlib.h>
#include <string.h>

enum { OPTION_WEAK = 256, OPTION_JSON, OPTION_STEPS, OPTION_WARM_UP, OPTION_REPEAT, OPTION_OUTPUT };
enum { STEPS_STANDARD = 15, WARM_UP_STANDARD = 5, STEPS_MAX = 1000000, REPEATS_MAX = 1000 };

static const struct argp_option options_table[] = {
    {"ranks", LS_COMMAND_RANKS, "LIST", 0, "Numbers of workers to compare, as 1,2,4", 0},
    LS_COMMAND_ROW_HOSTFILE,
    {"weak", OPTION_WEAK, NULL, 0, "Let the global batch grow with the ranks, from the configuration's for the fewest",
     0},
    {"steps", OPTION_STEPS, "N", 0, "Steps measured in a run; else 15", 0},
    {"warm-up", OPTION_WARM_UP, "N", 0, "Steps before them that do not count; else 5", 0},
    {"repeat", OPTION_REPEAT, "R", 0, "Runs of every number of workers, round by round; else 1", 0},
    {"output", OPTION_OUTPUT, "DIR", 0, "Folder of the results; else runs/NAME-bench-TIME", 0},
    LS_COMMAND_ROW_LINK_GBPS,
    {"json", OPTION_JSON, NULL, 0, "Print JSON", 0},
    LS_COMMAND_ROW_SET,
    {0}};

_Static_assert((int)LS_COMMAND_SETTINGS_MAX <= (int)LS_BENCH_SETTINGS_MAX, "a bench takes every --set");

struct request {
    struct ls_command_common common;
    struct ls_bench_options options;
    bool json;
};

static int compare_ranks(const void *a, const void *b) {
    const int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;
    return (left > right) - (left < right);
}

static void parse_ranks(struct argp_state *state, const char *argument, struct ls_bench_options *options) {
    char text[1024];
    if (strlen(argument) >= sizeof text) argp_error(state, "-n takes a shorter list");
    strcpy(text, argument);
    options->ranks_count = 0;
    for (char *rest = text, *word; (word = strsep(&rest, ","));) {
        if (options->ranks_count == LS_SCALING_ROWS_MAX)
            argp_error(state, "-n takes at most %d numbers", LS_SCALING_ROWS_MAX);
        options->ranks[options->ranks_count++] = ls_command_number(state, "-n", word, 1, LS_CORE_RANKS_MAX);
    }
    qsort(options->ranks, (size_t)options->ranks_count, sizeof *options->ranks, compare_ranks);
    for (int i = 1; i < options->ranks_count; i++)
        if (options->ranks[i] == options->ranks[i - 1])
            argp_error(state, "-n names %lld twice", (long long)options->ranks[i]);
}

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    struct request *request = state->input;
    struct ls_bench_options *options = &request->options;
    switch (key) {
    case LS_COMMAND_RANKS: parse_ranks(state, argument, options); return 0;
    case OPTION_WEAK: options->weak = true; return 0;
    case OPTION_JSON: request->json = options->quiet = true; return 0;
    case OPTION_STEPS: options->steps = ls_command_number(state, "--steps", argument, 1, STEPS_MAX); return 0;
    case OPTION_WARM_UP:
        options->warm_up_steps = ls_command_number(state, "--warm-up", argument, 0, STEPS_MAX);
        return 0;
    case OPTION_REPEAT: options->repeats = ls_command_number(state, "--repeat", argument, 1, REPEATS_MAX); return 0;
    case OPTION_OUTPUT: options->folder = argument; return 0;
    case ARGP_KEY_END:
        ls_command_common_option(key, argument, state, &request->common);
        if (options->ranks_count == 0) argp_error(state, "no numbers of workers are named: -n 1,2,4");
        return 0;
    default: return ls_command_common_option(key, argument, state, &request->common);
    }
}

int ls_command_bench(int argc, char **argv) {
    const struct argp argp = {.options = options_table,
                              .parser = parse_option,
                              .args_doc = "CONFIG",
                              .doc = "Runs a configuration on several numbers of workers and says how it scales."};
    struct request request = {.options = {.steps = STEPS_STANDARD, .warm_up_steps = WARM_UP_STANDARD, .repeats = 1}};
    struct ls_error error = {0};
    char folder[1024] = "";
    ls_command_parse(&argp, argc, argv, &request);
    request.options.config_path = request.common.config_path;
    request.options.hostfile = request.common.hostfile;
    request.options.settings = request.common.settings;
    request.options.settings_count = request.common.settings_count;
    request.options.link_bytes_per_second = request.common.link_bytes_per_second;
    struct ls_scaling *scaling = calloc(1, sizeof *scaling);
    enum ls_code code = scaling ? ls_bench_run(&request.options, scaling, folder, &error)
                                : ls_fail(&error, LS_MEMORY, LS_SCOPE_CALL, "bench: no memory for the table");
    if (scaling && scaling->count > 0 && *scaling->name) {
        const bool printed = request.json ? ls_scaling_print_json(scaling, stdout) : ls_scaling_print(scaling, stdout);
        if (printed && !request.json) printf("results in %s\n", folder);
        if (!printed && code == LS_OK)
            code = ls_fail(&error, LS_ERROR, LS_SCOPE_CALL, "bench: cannot write to standard output");
    }
    free(scaling);
    return ls_report_exit(code, error.text);
}
