/* Command lines of `lockstep data`. */
#include "coordinator/command_data.h"

#include "common/status.h"
#include "common/token_shard.h"
#include "coordinator/command_line.h"
#include "coordinator/data_inspect.h"
#include "coordinator/data_prepare.h"
#include "coordinator/data_progress.h"
#include "coordinator/data_verify.h"

#include <argp.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    KEY_TOKENIZER = 256,
    KEY_DOCUMENT_TOKEN,
    KEY_SPLIT_ON,
    KEY_VALIDATION,
    KEY_SHARD_TOKENS,
    KEY_FORMAT,
    KEY_JSON_KEY,
    KEY_DTYPE,
    KEY_TEXT
};

static double parse_fraction(const struct argp_state *state, const char *text) {
    char *end;
    const double value = strtod(text, &end);
    if (end == text || *end || !(value >= 0 && value < 1))
        argp_error(state, "--validation takes a fraction from 0 to below 1, as in 0.05, not '%s'", text);
    return value;
}

static enum ls_text_format parse_format(const struct argp_state *state, const char *text) {
    if (strcmp(text, "plain") == 0) return LS_TEXT_PLAIN;
    if (strcmp(text, "jsonl") != 0) argp_error(state, "--format is plain or jsonl, not '%s'", text);
    return LS_TEXT_JSONL;
}

static error_t parse_prepare(int key, char *argument, struct argp_state *state) {
    struct ls_data_prepare_options *options = state->input;
    switch (key) {
    case 'o': options->output = argument; return 0;
    case KEY_TOKENIZER: options->tokenizer = strcmp(argument, "byte") ? argument : NULL; return 0;
    case KEY_DOCUMENT_TOKEN: options->document_token = argument; return 0;
    case KEY_SPLIT_ON: options->split_on = argument; return 0;
    case KEY_VALIDATION: options->validation = parse_fraction(state, argument); return 0;
    case KEY_SHARD_TOKENS:
        options->shard_tokens = ls_command_number(state, "--shard-tokens", argument, 2, LS_SHARD_TOKENS_MAX);
        return 0;
    case KEY_JSON_KEY: options->json_key = argument; return 0;
    case KEY_FORMAT: options->format = parse_format(state, argument); return 0;
    case ARGP_KEY_ARGS:
        options->inputs = (const char *const *)state->argv + state->next;
        options->input_count = state->argc - state->next;
        return 0;
    case ARGP_KEY_END:
        if (options->input_count == 0) argp_error(state, "name at least one file of text");
        if (!options->output) argp_error(state, "say where the dataset goes: -o DIR");
        if (options->document_token && !options->tokenizer)
            argp_error(state, "--document-token is for a --tokenizer; byte has token 256");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static enum ls_code run_prepare(int argc, char **argv, struct ls_error *error) {
    static const struct argp_option argp_options[] = {
        {"output", 'o', "DIR", 0, "The folder to make, with train/ and validation/ in it", 0},
        {"tokenizer", KEY_TOKENIZER, "byte|FILE", 0,
         "How text becomes tokens: byte, the default, is a token for each byte; FILE is a tokenizer.json of BPE, "
         "or a folder that has one",
         0},
        {"document-token", KEY_DOCUMENT_TOKEN, "TEXT", 0,
         "The token of FILE that begins a document; default: <|endoftext|>, <|begin_of_text|>, <|end_of_text|>, <s> or "
         "</s>, the first one it has",
         0},
        {"split-on", KEY_SPLIT_ON, "REGEX", 0,
         "A document starts at each match of this PCRE2 pattern; without it, a file of plain text is one document", 0},
        {"format", KEY_FORMAT, "plain|jsonl", 0,
         "Default: jsonl for names that end in .jsonl, .ndjson or .json, packed (.gz, .zst) or not, else plain", 0},
        {"json-key", KEY_JSON_KEY, "NAME", 0, "The member of each line of JSONL that is its document, default text", 0},
        {"validation", KEY_VALIDATION, "FRACTION", 0,
         "The last part of the documents, or of the text of a single one, for validation; default 0.05, 0: none", 0},
        {"shard-tokens", KEY_SHARD_TOKENS, "N", 0, "Tokens in one file, default 100000000", 0},
        {0}};
    static const struct argp argp = {
        .options = argp_options,
        .parser = parse_prepare,
        .args_doc = "INPUT... -o DIR",
        .doc = "Turns text into token shards. Inputs are plain text or JSONL (a document "
               "a line, in the member \"text\" unless told otherwise), packed by gzip or zstd or "
               "not."};
    struct ls_data_prepare_options options = {.validation = 0.05, .shard_tokens = 100000000};
    ls_command_parse(&argp, argc, argv, &options);
    ls_data_progress_catch_signals();
    return ls_data_prepare(&options, error);
}

/* What inspect and verify are told. */
struct looking {
    const char *path, *dtype;
    int64_t sequence_length;
    bool text;
};

static error_t parse_looking(int key, char *argument, struct argp_state *state) {
    struct looking *looking = state->input;
    switch (key) {
    case 'T': looking->sequence_length = ls_command_number(state, "--sequence-length", argument, 1, 1 << 30); return 0;
    case KEY_TEXT: looking->text = true; return 0;
    case KEY_DTYPE:
        if (strcmp(argument, "uint16")) argp_error(state, "--dtype is uint16, not '%s'", argument);
        looking->dtype = argument;
        return 0;
    case ARGP_KEY_ARG:
        if (looking->path) argp_error(state, "'%s' is one dataset too many", argument);
        looking->path = argument;
        return 0;
    case ARGP_KEY_END:
        if (!looking->path) argp_error(state, "name a dataset");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

#define DTYPE_OPTION                                                                                                   \
    { "dtype", KEY_DTYPE, "uint16", 0, "What files without a header hold", 0 }

static enum ls_code run_inspect(int argc, char **argv, struct ls_error *error) {
    static const struct argp_option argp_options[] = {
        {"sequence-length", 'T', "N", 0, "Count samples of N tokens, default 1024", 0},
        {"text", KEY_TEXT, NULL, 0, "Write the text of the dataset to standard output instead", 0},
        DTYPE_OPTION,
        {0}};
    static const struct argp argp = {.options = argp_options,
                                     .parser = parse_looking,
                                     .args_doc = "DATASET",
                                     .doc = "Shows what a dataset holds: a folder made by prepare, one of its splits, "
                                            "a folder of llm.c's .bin files or one such file."};
    struct looking looking = {.dtype = "", .sequence_length = 1024};
    ls_command_parse(&argp, argc, argv, &looking);
    return looking.text ? ls_data_print_text(looking.path, stdout, error)
                        : ls_data_inspect(looking.path, looking.dtype, looking.sequence_length, stdout, error);
}

static enum ls_code run_verify(int argc, char **argv, struct ls_error *error) {
    static const struct argp_option argp_options[] = {DTYPE_OPTION, {0}};
    static const struct argp argp = {
        .options = argp_options,
        .parser = parse_looking,
        .args_doc = "DATASET",
        .doc =
            "Reads every shard of a dataset and checks header, size, token ids and hash. Ends with 3 if one is bad."};
    struct looking looking = {.dtype = ""};
    ls_command_parse(&argp, argc, argv, &looking);
    ls_data_progress_catch_signals();
    return ls_data_verify(looking.path, looking.dtype, stdout, error);
}

int ls_command_data(int argc, char **argv) {
    static const struct {
        const char *name;
        char *full_name;
        enum ls_code (*run)(int argc, char **argv, struct ls_error *error);
    } commands[] = {
        {"prepare", "lockstep data prepare", run_prepare},
        {"inspect", "lockstep data inspect", run_inspect},
        {"verify", "lockstep data verify", run_verify},
    };
    struct ls_error error;
    for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(argv[1], commands[i].name)) continue;
        argv[1] = commands[i].full_name;
        enum ls_code code = commands[i].run(argc - 1, argv + 1, &error);
        if (!code) code = ls_command_flush(&error);
        return ls_report_exit(code, error.text);
    }
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-?") == 0)) {
        puts("Usage: lockstep data prepare INPUT... -o DIR    text to token shards\n"
             "  or:  lockstep data inspect DATASET            what is in a dataset\n"
             "  or:  lockstep data verify DATASET             is it whole?\n"
             "'lockstep data COMMAND --help' says more.");
        return ls_report_exit(ls_command_flush(&error), error.text);
    }
    if (argc > 1)
        ls_fail(&error, LS_USAGE, LS_SCOPE_CALL, "data: '%s' is not known. Say prepare, inspect or verify.", argv[1]);
    else
        ls_fail(&error, LS_USAGE, LS_SCOPE_CALL,
                "data: prepare, inspect or verify is missing. See 'lockstep data --help'.");
    return ls_report_exit(LS_USAGE, error.text);
}
