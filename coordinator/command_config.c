/* `lockstep config`. */
#include "coordinator/command_config.h"

#include "common/config.h"
#include "common/status.h"

#include <argp.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OPTION_KEYS = 256, OPTION_MARKDOWN, OPTION_SET, OPTION_HELP = '?', SETTINGS_MAX = 256 };

static const struct argp_option OPTIONS[] = {
    {"set", OPTION_SET, "KEY=VALUE", 0, "Set one key; the value is YAML. May be given again, later ones win.", 0},
    {"keys", OPTION_KEYS, NULL, 0, "List every key with its values, default and meaning.", 0},
    {"markdown", OPTION_MARKDOWN, NULL, 0, "With --keys: as the page docs/configuration.md.", 0},
    {"help", OPTION_HELP, NULL, 0, "Show this text.", -1},
    {0}};

struct request {
    const char *path;
    const char *settings[SETTINGS_MAX];
    int settings_count;
    bool keys, markdown, help;
    struct ls_error error;
};

static error_t parse_option(int option, char *argument, struct argp_state *state) {
    struct request *request = state->input;
    switch (option) {
    case OPTION_KEYS: request->keys = true; return 0;
    case OPTION_MARKDOWN: request->markdown = true; return 0;
    case OPTION_HELP: request->help = true; return 0;
    case OPTION_SET:
        if (request->settings_count == SETTINGS_MAX) {
            ls_fail(&request->error, LS_USAGE, LS_SCOPE_CALL, "config: --set is given more than %d times. Use a file.",
                    SETTINGS_MAX);
            return EINVAL;
        }
        request->settings[request->settings_count++] = argument;
        return 0;
    case ARGP_KEY_ARG:
        if (request->path) {
            ls_fail(&request->error, LS_USAGE, LS_SCOPE_CALL,
                    "config: found a second file '%s' beside '%s'. Name one configuration.", argument, request->path);
            return EINVAL;
        }
        request->path = argument;
        return 0;
    case ARGP_KEY_ERROR:
        if (request->error.code == LS_OK)
            ls_fail(&request->error, LS_USAGE, LS_SCOPE_CALL,
                    "config: '%.200s' is not understood. See 'lockstep config --help'.", state->argv[state->next - 1]);
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static enum ls_code check(struct request *request) {
    struct ls_error *error = &request->error;
    if (request->keys && (request->path || request->settings_count))
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                       "config: --keys lists what every file may say. Leave the file and --set out.");
    if (request->markdown && !request->keys)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                       "config: --markdown goes with --keys only. Add --keys or leave it out.");
    if (!request->keys && !request->path)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                       "config: no file is named. Write 'lockstep config CONFIG' or 'lockstep config --keys'.");
    return LS_OK;
}

static enum ls_code print_resolved(struct request *request) {
    struct ls_config *config = malloc(sizeof *config);
    if (!config) return ls_fail(&request->error, LS_MEMORY, LS_SCOPE_CALL, "config: out of memory.");
    char *yaml = NULL;
    enum ls_code code =
        ls_config_load(request->path, request->settings, request->settings_count, config, &request->error);
    if (code == LS_OK) code = ls_config_write(config, &yaml, &request->error);
    if (code == LS_OK) fputs(yaml, stdout);
    free(yaml);
    free(config);
    return code;
}

int ls_command_config(int argc, char **argv) {
    static const struct argp ARGP = {
        .options = OPTIONS,
        .parser = parse_option,
        .args_doc = "CONFIG [--set KEY=VALUE]...\n--keys [--markdown]",
        .doc = "Shows the resolved configuration as YAML, every default filled in, or lists every key there is."};
    char program[] = "lockstep config";
    argv[0] = program;
    struct request request = {0};
    if (argp_parse(&ARGP, argc, argv, ARGP_NO_EXIT | ARGP_NO_HELP | ARGP_NO_ERRS, NULL, &request))
        return ls_report_exit(request.error.code, request.error.text);
    if (request.help) {
        argp_help(&ARGP, stdout, ARGP_HELP_STD_HELP, program);
        return LS_OK;
    }
    enum ls_code code = check(&request);
    if (code == LS_OK && request.keys)
        ls_config_print_keys(stdout, request.markdown);
    else if (code == LS_OK)
        code = print_resolved(&request);
    if (code == LS_OK && (fflush(stdout) || ferror(stdout)))
        code = ls_fail(&request.error, LS_ERROR, LS_SCOPE_CALL, "config: cannot write to standard output: %s.",
                       strerror(errno));
    return ls_report_exit(code, request.error.text);
}
