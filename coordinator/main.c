/* lockstep: the command. One row for each subcommand; `lockstep X` calls its row. */
#define _GNU_SOURCE
#include "common/files.h"
#include "common/status.h"
#include "coordinator/command_bench.h"
#include "coordinator/command_config.h"
#include "coordinator/command_data.h"
#include "coordinator/command_generate.h"
#include "coordinator/command_line.h"
#include "coordinator/command_operator.h"
#include "coordinator/command_plan.h"
#include "coordinator/command_run.h"
#include "coordinator/command_verify.h"
#include "coordinator/doctor.h"

#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

struct command {
    const char *name;
    const char *arguments;
    const char *summary;
    int (*run)(int argc, char **argv);
};

static const struct command commands[] = {
    {"run", "CONFIG [-n RANKS] [--resume] ...", "train: coordinator and workers, supervised", ls_command_run},
    {"coordinator", "CONFIG [-n RANKS] ...", "the coordinator alone; prints the mpirun line that joins it",
     ls_command_coordinator},
    {"plan", "CONFIG -n RANKS [--gpu NAME]", "exact bytes per rank, wire volume, predicted step time", ls_command_plan},
    {"bench", "CONFIG -n 1,2,4 [--weak]", "a scaling table: tokens/s, efficiency, predicted beside measured",
     ls_command_bench},
    {"config", "CONFIG | --keys", "show the resolved configuration, or every key", ls_command_config},
    {"status", "RUN", "how a run is doing", ls_command_status},
    {"stop", "RUN", "end a run: save, exit 130", ls_command_stop},
    {"checkpoint", "RUN", "save a running job now", ls_command_checkpoint},
    {"verify", "RUN [--deep]", "prove from the ledger that every sample was used once", ls_command_verify},
    {"blame", "RUN --step S", "the samples of a step, and which rank had them", ls_command_blame},
    {"data", "prepare | inspect | verify", "text to token shards, and a look at them", ls_command_data},
    {"generate", "FOLDER --prompt TEXT", "continue a text with the model of a checkpoint", ls_command_generate},
    {"doctor", "", "what this host has, what is wrong, the fix", ls_command_doctor},
    {NULL, NULL, NULL, NULL},
};

static void print_help(FILE *out) {
    fputs("Usage: lockstep COMMAND ...\n\nData-parallel training of large models.\n\n", out);
    for (const struct command *command = commands; command->name; command++)
        fprintf(out, "  %-12s %-34s %s\n", command->name, command->arguments, command->summary);
    fputs("\n  --help       this text; lockstep COMMAND --help tells more\n  --version    the version\n", out);
}

static int refuse(const char *name) {
    const char *names[sizeof commands / sizeof commands[0]] = {NULL};
    int count = 0;
    char reason[256];
    for (const struct command *command = commands; command->name; command++) names[count++] = command->name;
    const char *nearest = ls_command_nearest(name, names, count);
    snprintf(reason, sizeof reason, "there is no command '%.64s'%s%s%s", name, nearest ? "; did you mean '" : "",
             nearest ? nearest : "", nearest ? "'? Commands: lockstep --help" : ". Commands: lockstep --help");
    return ls_report_exit(LS_USAGE, reason);
}

/* What whoever started this process may have left ignored, or would end it where an error has words. */
static void settle_signals(void) {
    signal(SIGCHLD, SIG_DFL); /* ignored, the kernel would keep the ends of children from us */
    signal(SIGXFSZ, SIG_IGN); /* a limit on the size of files: the write says EFBIG */
}

int main(int argc, char **argv) {
    ls_files_occupy_standard();
    settle_signals();
    setlocale(LC_ALL, "C"); /* a preloaded library may have taken one over whose numbers have a comma */
    if (argc < 2) {
        print_help(stderr);
        return ls_report_exit(LS_USAGE, "no command given");
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "-?") == 0) {
        print_help(stdout);
        return 0;
    }
    if (strcmp(name, "--version") == 0) {
        puts("lockstep " LS_VERSION);
        return 0;
    }
    for (const struct command *command = commands; command->name; command++) {
        if (strcmp(command->name, name) != 0) continue;
        char title[64];
        snprintf(title, sizeof title, "lockstep %s", name);
        argv[1] = title;
        return command->run(argc - 1, argv + 1);
    }
    return refuse(name);
}
