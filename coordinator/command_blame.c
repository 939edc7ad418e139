/* Showing the samples of a step. */
#define _GNU_SOURCE
#include "coordinator/command_verify.h"

#include "coordinator/command_line.h"
#include "coordinator/data_inspect.h"
#include "coordinator/run_ledger.h"

#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct arguments {
    const char *run;
    int64_t step;
    bool json;
};

enum { OPTION_STEP = 256, OPTION_JSON };

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    struct arguments *arguments = state->input;
    switch (key) {
    case OPTION_STEP: arguments->step = ls_command_number(state, "--step", argument, 1, LONG_MAX); return 0;
    case OPTION_JSON: arguments->json = true; return 0;
    default: break;
    }
    const error_t answer = ls_command_run_argument(key, argument, state, &arguments->run);
    if (key == ARGP_KEY_END && !arguments->step) argp_error(state, "no step is named: give --step S");
    return answer;
}

enum { WORDS_TOKENS = 48, BACK_TOKENS = 1 << 14, BACK_TOKENS_MAX = 1 << 22 };

/* Tokens of its document before token `offset` of the shard; -1: no document begins within reach. */
static enum ls_code document_offset(const struct ls_dataset *dataset, size_t shard, int64_t offset, int64_t *tokens,
                                    struct ls_error *error) {
    static int32_t piece[BACK_TOKENS];
    const int32_t mark = (int32_t)ls_dataset_document_token(dataset);
    /* A token at the end of a document is behind it: the next one begins after. */
    const bool at_end = ls_dataset_document_token_at_end(dataset);
    *tokens = -1;
    if (mark < 0) return LS_OK;
    for (int64_t end = offset + !at_end; end > 0 && offset - end < BACK_TOKENS_MAX;) {
        int64_t first = end > BACK_TOKENS ? end - BACK_TOKENS : 0;
        enum ls_code code = ls_dataset_read_tokens(dataset, shard, first, end - first, piece, error);
        if (code != LS_OK) return code;
        for (int64_t t = end; t-- > first;)
            if (piece[t - first] == mark) {
                *tokens = offset - t - at_end;
                return LS_OK;
            }
        end = first;
        if (first == 0) *tokens = offset; /* the shard begins with it */
    }
    return LS_OK;
}

/* Which rank had the step's sequence; with train.reduction: fixed whole micro-batches are dealt. */
static int rank_of(const struct ls_config *config, const struct ls_ledger_step *step, int64_t sequence) {
    const int64_t unit = config->train.reduction == LS_REDUCTION_FIXED ? config->train.micro_batch_size : 1;
    return ls_rank_of((step->sequences + unit - 1) / unit, (int)step->world_size, sequence / unit);
}

/* A sequence of a step: where it is from, and who had it. */
struct sample {
    uint64_t position, index;
    struct ls_draw draw;
    const struct ls_dataset *dataset;
    uint32_t shard;
    int64_t first_token, document_offset; /* -1: not known */
    int rank;
    char *words; /* malloc'ed */
};

/* The caller frees sample->words. */
static enum ls_code find_sample(const struct ls_run_ledger_reader *reader, struct ls_tokenizer *const *tokenizers,
                                const struct ls_ledger_step *step, int64_t sequence, struct sample *sample,
                                struct ls_error *error) {
    const struct ls_config *config = reader->generation->config;
    const int64_t T = config->data.sequence_length;
    *sample = (struct sample){.position = (uint64_t)ls_ledger_position(reader->run->ledger, step, sequence)};
    sample->draw = ls_order_at(reader->generation->order, sample->position);
    sample->dataset = reader->generation->corpus->train[sample->draw.source];
    sample->rank = rank_of(config, step, sequence);
    ls_dataset_locate(sample->dataset, (int64_t)sample->draw.sample, &sample->shard, &sample->index);
    sample->first_token = (int64_t)sample->index * T;
    enum ls_code code =
        document_offset(sample->dataset, sample->shard, sample->first_token, &sample->document_offset, error);
    if (code == LS_OK) code = ls_run_ledger_read(reader, sample->position, error);
    if (code != LS_OK) return code;
    size_t size;
    FILE *out = open_memstream(&sample->words, &size);
    if (out)
        ls_data_print_tokens(sample->dataset, tokenizers[sample->draw.source], reader->run->tokens,
                             T < WORDS_TOKENS ? T : WORDS_TOKENS, out);
    if (out && fclose(out) == 0) return LS_OK;
    return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for the words of a sample");
}

static void print_sample(const struct sample *sample, int64_t length) {
    printf("position %llu rank %d source %u shard %s index %llu tokens %lld to %lld",
           (unsigned long long)sample->position, sample->rank, sample->draw.source,
           ls_dataset_shard(sample->dataset, sample->shard)->name, (unsigned long long)sample->index,
           (long long)sample->first_token, (long long)(sample->first_token + length - 1));
    if (sample->document_offset >= 0) printf(" document offset %lld", (long long)sample->document_offset);
    printf(" epoch %llu draw %llu\n  begins %s\n", (unsigned long long)sample->draw.epoch,
           (unsigned long long)sample->draw.draw, sample->words);
}

static json_t *sample_json(const struct sample *sample, int64_t length) {
    json_t *object = json_pack("{s:I, s:i, s:i, s:s, s:I, s:I, s:I, s:o, s:I, s:I}", "position",
                               (json_int_t)sample->position, "rank", sample->rank, "source", (int)sample->draw.source,
                               "shard", ls_dataset_shard(sample->dataset, sample->shard)->name, "index",
                               (json_int_t)sample->index, "first_token", (json_int_t)sample->first_token, "last_token",
                               (json_int_t)(sample->first_token + length - 1), "document_offset",
                               sample->document_offset < 0 ? json_null() : json_integer(sample->document_offset),
                               "epoch", (json_int_t)sample->draw.epoch, "draw", (json_int_t)sample->draw.draw);
    const size_t size = strlen(sample->words) + 1;
    char *plain = malloc(size);
    if (plain) json_object_set_new(object, "begins", json_string(ls_wire_make_plain(plain, size, sample->words)));
    free(plain);
    return object;
}

/* The step, and the datasets of its generation: LS_USAGE, LS_DATA. */
static enum ls_code find_step(struct ls_run_ledger *run, int64_t number, const struct ls_ledger_step **result,
                              struct ls_run_ledger_reader *reader, struct ls_error *error) {
    size_t count;
    const struct ls_ledger_step *steps = ls_ledger_steps(run->ledger, &count);
    const struct ls_ledger_step *step = ls_ledger_find(run->ledger, number);
    if (!step && count && number < steps[0].step)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                       "step %lld is not known here: the run began with a checkpoint of step %lld from elsewhere. Ask "
                       "the run that made it.",
                       (long long)number, (long long)steps[0].step - 1);
    if (!step)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "step %lld has not run: the last one is %lld", (long long)number,
                       count ? (long long)steps[count - 1].step : 0);
    *reader = (struct ls_run_ledger_reader){run, ls_run_ledger_generation(run, step->data_generation)};
    *result = step;
    if (!reader->generation || !reader->generation->corpus)
        return ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                       "the samples of step %lld cannot be shown: the datasets of generation %lld of the data are gone "
                       "or others (%s)",
                       (long long)number, (long long)step->data_generation,
                       reader->generation ? reader->generation->gone.text : "the journal does not list them");
    return LS_OK;
}

static void print_head(const struct ls_run_ledger_reader *reader, const struct ls_ledger_step *step) {
    printf("step %lld by attempt %lld on %lld rank%s: %lld sequences from position %lld", (long long)step->step,
           (long long)step->attempt, (long long)step->world_size, step->world_size == 1 ? "" : "s",
           (long long)step->sequences, (long long)step->position);
    if (reader->run->generations_count > 1) printf(" of generation %lld of the data", (long long)step->data_generation);
    putchar('\n');
    for (int i = 0; i < reader->generation->config->data.train_count; i++)
        printf("source %d %s\n", i, reader->generation->config->data.train[i].path);
}

static json_t *head_json(const struct ls_run_ledger_reader *reader, const struct ls_ledger_step *step) {
    json_t *sources = json_array();
    for (int i = 0; i < reader->generation->config->data.train_count; i++)
        json_array_append_new(sources, json_string(reader->generation->config->data.train[i].path));
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "step", (json_int_t)step->step, "attempt",
                     (json_int_t)step->attempt, "ranks", (json_int_t)step->world_size, "sequences",
                     (json_int_t)step->sequences, "position", (json_int_t)step->position, "data_generation",
                     (json_int_t)step->data_generation, "sources", sources);
}

/* Prints every sample, or adds it to samples where that is not NULL. */
static enum ls_code show_samples(const struct ls_run_ledger_reader *reader, const struct ls_ledger_step *step,
                                 json_t *samples, struct ls_error *error) {
    const int sources = reader->generation->config->data.train_count;
    const int64_t T = reader->generation->config->data.sequence_length;
    enum ls_code code = LS_OK;
    struct ls_tokenizer **tokenizers = calloc((size_t)(unsigned)sources, sizeof *tokenizers);
    if (!tokenizers) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for %d tokenizers", sources);
    for (int i = 0; i < sources; i++) /* one that is not there any more: ids are shown */
        ls_data_open_tokenizer(reader->generation->corpus->train[i], &tokenizers[i], NULL);
    for (int64_t k = 0; k < step->sequences && code == LS_OK; k++) {
        struct sample sample;
        code = find_sample(reader, tokenizers, step, k, &sample, error);
        if (code == LS_OK && samples)
            json_array_append_new(samples, sample_json(&sample, T));
        else if (code == LS_OK)
            print_sample(&sample, T);
        free(sample.words);
    }
    for (int i = 0; i < sources; i++) ls_tokenizer_destroy(tokenizers[i]);
    free(tokenizers);
    return code;
}

static enum ls_code show_step(struct ls_run_ledger *run, const struct arguments *arguments, struct ls_error *error) {
    const struct ls_ledger_step *step = NULL;
    struct ls_run_ledger_reader reader;
    enum ls_code code = find_step(run, arguments->step, &step, &reader, error);
    if (code != LS_OK) return code;
    json_t *object = arguments->json ? head_json(&reader, step) : NULL, *samples = object ? json_array() : NULL;
    if (!object) print_head(&reader, step);
    code = show_samples(&reader, step, samples, error);
    fflush(stdout);
    if (code == LS_OK) code = ls_ledger_prove_samples(run->ledger, step, ls_run_ledger_sample, &reader, error);
    if (!object) {
        if (code == LS_OK) printf("their digest is the one in the journal\n");
        return code;
    }
    json_object_set_new(object, "samples", samples);
    json_object_set_new(object, "proven", json_boolean(code == LS_OK));
    json_object_set_new(object, "difference", code == LS_OK ? json_null() : json_string(error->text));
    json_dumpf(object, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(object);
    return code;
}

int ls_command_blame(int argc, char **argv) {
    static const struct argp_option options[] = {
        {"step", OPTION_STEP, "S", 0, "The step", 0}, {"json", OPTION_JSON, NULL, 0, "Print JSON", 0}, {0}};
    const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "RUN --step S",
        .doc = "Shows the samples of a step: source, shard, place, document, epoch, first words, and "
               "which rank had them; reads them again and compares their digest with the "
               "journal's, ending with 3 when it differs."};
    struct arguments arguments = {0};
    struct ls_run_ledger run;
    struct ls_error error;
    ls_command_parse(&argp, argc, argv, &arguments);
    enum ls_code code = ls_run_ledger_open(arguments.run, &run, &error);
    if (code == LS_OK) code = show_step(&run, &arguments, &error);
    if (code == LS_OK) code = ls_command_flush(&error);
    ls_run_ledger_close(&run);
    return code == LS_OK ? LS_OK : ls_report_exit(code, error.text);
}
