/* Parsing the arguments of subcommands, with the project's exit code and last line. */
#define _GNU_SOURCE
#include "coordinator/command_line.h"

#include "common/status.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What argp says before it ends the process is caught, so that the last line can repeat it. */
struct parsing {
    bool active;
    void *input;
    char *text; /* of `stream` */
    size_t size;
    FILE *stream;
};

static void print_errors(int status, void *argument) {
    struct parsing *parsing = argument;
    if (!parsing->active || status != LS_USAGE) return;
    if (parsing->stream) fclose(parsing->stream);
    /* "lockstep run: what is wrong", then how to get help. An unknown option was printed by getopt itself. */
    const char *text = parsing->text && parsing->text[0] ? parsing->text : "";
    fputs(text, stderr);
    const char *reason = strstr(text, ": ");
    const char *end = strchr(text, '\n');
    char line[256];
    bool told = reason && end && reason < end && strncmp(text, "Try ", 4) != 0;
    snprintf(line, sizeof line, "%.*s", told ? (int)(end - reason - 2) : 200,
             told ? reason + 2 : "the command line is not understood, see above");
    ls_report_exit(LS_USAGE, line);
}

static error_t pass_on(int key, char *argument, struct argp_state *state) {
    (void)argument;
    struct parsing *parsing = state->input;
    if (key != ARGP_KEY_INIT) return ARGP_ERR_UNKNOWN;
    if (parsing->stream) state->err_stream = parsing->stream;
    state->child_inputs[0] = parsing->input;
    return 0;
}

void ls_command_parse(const struct argp *argp, int argc, char **argv, void *input) {
    static struct parsing parsing;
    const struct argp_child children[] = {{argp, 0, NULL, 0}, {NULL, 0, NULL, 0}};
    const struct argp parent = {.parser = pass_on, .children = children};
    argp_err_exit_status = LS_USAGE;
    parsing = (struct parsing){.input = input};
    parsing.stream = open_memstream(&parsing.text, &parsing.size);
    parsing.active = on_exit(print_errors, &parsing) == 0;
    error_t failed = argp_parse(&parent, argc, argv, 0, NULL, &parsing);
    parsing.active = false;
    if (parsing.stream) fclose(parsing.stream);
    free(parsing.text);
    if (failed) exit(ls_report_exit(LS_USAGE, strerror(failed)));
}

long ls_command_number(const struct argp_state *state, const char *option, const char *text, long least, long most) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < least || value > most)
        argp_error(state, "%s takes a whole number from %ld to %ld, not '%s'", option, least, most, text);
    return value;
}

error_t ls_command_common_option(int key, char *argument, struct argp_state *state, struct ls_command_common *common) {
    char *end;
    switch (key) {
    case LS_COMMAND_RANKS:
        common->ranks = ls_command_number(state, "-n", argument, 1, (long)common->ranks_max);
        return 0;
    case LS_COMMAND_HOSTFILE: common->hostfile = argument; return 0;
    case LS_COMMAND_SET:
        if (common->settings_count == LS_COMMAND_SETTINGS_MAX)
            argp_error(state, "--set is given more than %d times", LS_COMMAND_SETTINGS_MAX);
        common->settings[common->settings_count++] = argument;
        return 0;
    case LS_COMMAND_LINK_GBPS:
        common->link_bytes_per_second = strtod(argument, &end) * 1e9 / 8;
        if (end == argument || *end || !isfinite(common->link_bytes_per_second) || common->link_bytes_per_second <= 0)
            argp_error(state, "--link-gbps takes a number above 0, not '%s'", argument);
        return 0;
    case ARGP_KEY_ARG:
        if (common->config_path)
            argp_error(state, "there is a second CONFIG, '%s', beside '%s'", argument, common->config_path);
        common->config_path = argument;
        return 0;
    case ARGP_KEY_END:
        if (!common->config_path) argp_error(state, "no CONFIG is named");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

/* Edit distance of two short words; words longer than the table are infinitely far. */
static int distance(const char *a, const char *b) {
    enum { LONGEST = 31 };
    size_t n = strlen(a), m = strlen(b);
    if (n > LONGEST || m > LONGEST) return 1000;
    int row[LONGEST + 1];
    for (size_t j = 0; j <= m; j++) row[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int above = row[j], best = diagonal + (a[i - 1] != b[j - 1]);
            if (above + 1 < best) best = above + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = above;
            row[j] = best;
        }
    }
    return row[m];
}

error_t ls_command_run_argument(int key, char *argument, struct argp_state *state, const char **run) {
    if (key == ARGP_KEY_ARG) {
        if (*run) argp_error(state, "there is a second RUN, '%s'", argument);
        *run = argument;
    } else if (key == ARGP_KEY_END) {
        if (!*run) argp_error(state, "no RUN is named: it is the run directory");
    } else {
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

enum ls_code ls_command_flush(struct ls_error *error) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return LS_OK;
    return ls_fail(error, LS_ERROR, LS_SCOPE_CALL,
                   "cannot write to standard output: %s. What was written of it is not complete.", strerror(errno));
}

const char *ls_command_nearest(const char *given, const char *const *names, int count) {
    const char *nearest = NULL;
    int least = (int)strlen(given) / 2 + 1;
    if (least > 3) least = 3;
    for (int i = 0; i < count; i++) {
        int d = distance(given, names[i]);
        if (d <= least && (!nearest || d < distance(given, nearest))) nearest = names[i];
    }
    return nearest;
}
