/* Parsing the arguments of subcommands, with the project's exit code and last line. */
#define _GNU_SOURCE
#include "coordinator/command_line.h"

#include "common/status.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* argp prints what is wrong by itself and ends the process; only the last line is missing then. */
static void print_last_line(int status, void *parsing) {
    if (*(bool *)parsing && status == LS_USAGE) ls_report_exit(LS_USAGE, "bad command line (see above)");
}

void ls_command_parse(const struct argp *argp, int argc, char **argv, void *input) {
    static bool parsing;
    argp_err_exit_status = LS_USAGE;
    parsing = on_exit(print_last_line, &parsing) == 0;
    error_t failed = argp_parse(argp, argc, argv, 0, NULL, input);
    parsing = false;
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
