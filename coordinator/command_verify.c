/* Proving what a run was trained on, and showing the samples of a step. */
#define _GNU_SOURCE
#include "coordinator/command_verify.h"

#include "coordinator/command_line.h"
#include "coordinator/data_inspect.h"
#include "coordinator/run_ledger.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- command lines ---- */

struct arguments {
    const char *run;
    bool blame, deep;
    int64_t step;
};

enum { OPTION_DEEP = 256, OPTION_STEP };

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    struct arguments *arguments = state->input;
    switch (key) {
    case OPTION_DEEP: arguments->deep = true; return 0;
    case OPTION_STEP: arguments->step = ls_command_number(state, "--step", argument, 1, LONG_MAX); return 0;
    case ARGP_KEY_ARG:
        if (arguments->run) argp_error(state, "there is a second RUN, '%s'", argument);
        arguments->run = argument;
        return 0;
    case ARGP_KEY_END:
        if (!arguments->run) argp_error(state, "no RUN is named: it is the run directory");
        if (arguments->blame && !arguments->step) argp_error(state, "no step is named: give --step S");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

/* ---- verify ---- */

/* Where steps of one generation of the data begin and end in the lineage: [first, *end). */
static const struct ls_run_ledger_generation *generation_at(const struct ls_run_ledger *run, size_t first,
                                                            size_t *end) {
    size_t count;
    const struct ls_ledger_step *steps = ls_ledger_steps(run->ledger, &count);
    for (*end = first; *end < count && steps[*end].data_generation == steps[first].data_generation;) ++*end;
    return ls_run_ledger_generation(run, steps[first].data_generation);
}

/* What is there is read first: then what is not there is told. */
static enum ls_code read_again(struct ls_run_ledger *run, struct ls_error *error) {
    size_t count;
    const struct ls_ledger_step *steps = ls_ledger_steps(run->ledger, &count);
    enum ls_code code = LS_OK, gone = LS_OK;
    struct ls_error missing;
    for (size_t first = 0, end; first < count && code == LS_OK; first = end) {
        struct ls_run_ledger_reader reader = {run, generation_at(run, first, &end)};
        if (!reader.generation || !reader.generation->corpus) {
            if (gone == LS_OK)
                gone = ls_fail(&missing, LS_DATA, LS_SCOPE_JOB,
                               "the tokens of steps %lld to %lld cannot be read again: the datasets of generation %lld "
                               "of the data are gone or others (%s). What the other steps were trained on is proven.",
                               (long long)steps[first].step, (long long)steps[end - 1].step,
                               (long long)steps[first].data_generation,
                               reader.generation ? reader.generation->gone.text : "the journal does not list them");
            continue;
        }
        for (size_t i = first; i < end && code == LS_OK; i++)
            code = ls_ledger_prove_samples(run->ledger, &steps[i], ls_run_ledger_sample, &reader, error);
    }
    if (code != LS_OK || gone == LS_OK) return code;
    *error = missing;
    return gone;
}

/* What no step of the lineage was trained on though its turn had come, and why. */
static void print_quarantine(const struct ls_run_ledger *run) {
    size_t count;
    const struct ls_ledger_quarantine *bad = ls_ledger_quarantined(run->ledger, &count);
    for (size_t i = 0; i < count; i++) {
        char generation[48] = "";
        if (run->generations_count > 1)
            snprintf(generation, sizeof generation, " of generation %lld", (long long)bad[i].data_generation);
        if (bad[i].attempt)
            printf("skipped     sequences %lld to %lld%s: step %lld of attempt %lld was not finite with them, or its "
                   "loss spiked (fault.nonfinite: rollback)\n",
                   (long long)bad[i].from, (long long)bad[i].to - 1, generation, (long long)bad[i].step,
                   (long long)bad[i].attempt);
        else
            printf("skipped     sequences %lld to %lld%s: the checkpoint that the run began with says so\n",
                   (long long)bad[i].from, (long long)bad[i].to - 1, generation);
    }
}

/* Which steps were trained on which generation of the data, where there are several. */
static void print_generations(const struct ls_run_ledger *run) {
    size_t count;
    const struct ls_ledger_step *steps = ls_ledger_steps(run->ledger, &count);
    for (size_t first = 0, end; first < count && run->generations_count > 1; first = end) {
        const struct ls_run_ledger_generation *generation = generation_at(run, first, &end);
        printf("generation  %lld of the data: steps %lld to %lld, positions %lld to %lld of its order\n",
               (long long)steps[first].data_generation, (long long)steps[first].step, (long long)steps[end - 1].step,
               (long long)steps[first].position, (long long)steps[end - 1].end_position - 1);
        for (int i = 0; generation && i < generation->config->data.train_count; i++)
            printf("            %s %s\n", generation->digests[i], generation->config->data.train[i].path);
    }
}

static void print_lineage(const struct ls_run_ledger *run) {
    const struct ls_ledger_summary *summary = &run->summary;
    size_t count;
    const struct ls_ledger_step *steps = ls_ledger_steps(run->ledger, &count);
    printf("run         %s\n", run->directory.path);
    printf("lineage     %lld of %lld steps, %lld sequences; saved to step %lld\n", (long long)summary->steps,
           (long long)run->total_steps, (long long)summary->sequences, (long long)summary->committed_step);
    if (run->origin.step && count && steps[0].step > 1)
        printf(
            "not known   steps 1 to %lld: they came with a checkpoint from elsewhere, and nothing here proves them\n",
            (long long)steps[0].step - 1);
    for (size_t first = 0, next; first < count; first = next) {
        for (next = first; next < count && steps[next].attempt == steps[first].attempt;) next++;
        printf("            steps %lld to %lld by attempt %lld on %lld rank%s\n", (long long)steps[first].step,
               (long long)steps[next - 1].step, (long long)steps[first].attempt, (long long)steps[first].world_size,
               steps[first].world_size == 1 ? "" : "s");
    }
    for (int i = 0; i < run->shapes_count; i++)
        if (*run->shapes[i].accepted)
            printf("changed     from attempt %lld on: %s\n", (long long)run->shapes[i].first_attempt,
                   run->shapes[i].accepted);
    print_generations(run);
    if (summary->skipped)
        printf("updates     %lld skipped, since their loss or gradient was not finite; their samples count\n",
               (long long)summary->skipped);
    print_quarantine(run);
    printf("given up    %lld steps that ran, and ran again or not at all in a later attempt\n",
           (long long)summary->given_up);
    printf("chain       agrees with %lld checkpoints and %lld commits in the journal\n",
           (long long)summary->checkpoints, (long long)summary->commits);
}

/* `dataset` is NULL where it is gone; `generation` "" where the run has one only. */
static void print_use(const char *path, const char *generation, const struct ls_dataset *dataset,
                      const struct ls_ledger_use *use) {
    int64_t tail = 0;
    size_t shards = dataset ? ls_dataset_shard_count(dataset) : 0;
    for (size_t i = 0; i < shards; i++) tail += ls_dataset_shard(dataset, i)->tail;
    uint64_t untouched = use->draws >= use->samples ? 0 : use->samples - use->begun;
    printf("source      %s%s\n", path, generation);
    uint64_t whole = use->draws / use->samples;
    printf("  used      %llu of %llu samples", (unsigned long long)(use->samples - untouched - use->unused),
           (unsigned long long)use->samples);
    if (use->most == 0)
        printf("\n");
    else if (use->passed_over)
        printf(", each %llu to %llu times\n", (unsigned long long)use->least, (unsigned long long)use->most);
    else if (use->most == 1)
        printf(", each once\n");
    else if (use->least == use->most)
        printf(", each %llu times\n", (unsigned long long)use->least);
    else
        printf(": %llu of them %llu times, %llu %llu times\n", (unsigned long long)use->begun,
               (unsigned long long)use->most, (unsigned long long)(use->samples - use->begun),
               (unsigned long long)use->least);
    printf("  epochs    %llu whole, %llu samples of the next; in each no sample twice\n", (unsigned long long)whole,
           (unsigned long long)use->begun);
    if (use->passed_over)
        printf("  skipped   %llu samples' turns (in quarantine)", (unsigned long long)use->passed_over);
    else
        printf("  skipped   no sample");
    if (dataset)
        printf("; %lld tokens at the end of %zu shard%s fill none\n", (long long)tail, shards, shards == 1 ? "" : "s");
    else
        printf("; its files are not there any more, or others: counted by the journal's number of samples\n");
    printf("  not reached %llu samples\n", (unsigned long long)untouched);
}

static enum ls_code print_sources_of(const struct ls_run_ledger *run, const struct ls_run_ledger_generation *generation,
                                     struct ls_error *error) {
    struct ls_ledger_use use[LS_CONFIG_SOURCES_MAX];
    const int sources = generation->config->data.train_count;
    char words[64] = "";
    enum ls_code code = ls_ledger_count_use(run->ledger, generation->number, generation->order, generation->samples,
                                            sources, use, error);
    if (run->generations_count > 1)
        snprintf(words, sizeof words, ", in generation %lld of the data", (long long)generation->number);
    for (int i = 0; i < sources && code == LS_OK; i++)
        print_use(generation->config->data.train[i].path, words,
                  generation->corpus ? generation->corpus->train[i] : NULL, &use[i]);
    return code;
}

/* Of every generation that the lineage has steps of, and of the newest. */
static enum ls_code print_sources(const struct ls_run_ledger *run, struct ls_error *error) {
    size_t count;
    const struct ls_ledger_step *steps = ls_ledger_steps(run->ledger, &count);
    enum ls_code code = LS_OK;
    for (int i = 0; i < run->generations_count && code == LS_OK; i++) {
        bool used = run->generations[i].number == run->newest;
        for (size_t k = 0; k < count && !used; k++) used = steps[k].data_generation == run->generations[i].number;
        if (used) code = print_sources_of(run, &run->generations[i], error);
    }
    return code;
}

int ls_command_verify(int argc, char **argv) {
    static const struct argp_option options[] = {
        {"deep", OPTION_DEEP, NULL, 0, "Read the tokens again and compare every step's digest", 0}, {0}};
    const struct argp argp = {.options = options,
                              .parser = parse_option,
                              .args_doc = "RUN",
                              .doc =
                                  "Proves from the ledger that every sample was used once, as the order says: steps, "
                                  "positions, the chain of digests, checkpoints and what each attempt started from. "
                                  "With --deep also that the digests are those of the tokens in the datasets. Ends "
                                  "with 3 at the first difference."};
    struct arguments arguments = {0};
    struct ls_run_ledger run;
    struct ls_error error;
    ls_command_parse(&argp, argc, argv, &arguments);
    enum ls_code code = ls_run_ledger_open(arguments.run, &run, &error);
    if (code == LS_OK) print_lineage(&run);
    if (code == LS_OK) code = print_sources(&run, &error);
    fflush(stdout);
    if (code == LS_OK && arguments.deep) code = read_again(&run, &error);
    if (code == LS_OK)
        printf("proven      every sequence of the lineage was used once, in order%s\n",
               arguments.deep ? "; the tokens read again give the digests of every step"
                              : " (--deep also reads the tokens again)");
    if (code == LS_OK) code = ls_command_flush(&error);
    ls_run_ledger_close(&run);
    return code == LS_OK ? LS_OK : ls_report_exit(code, error.text);
}

/* ---- blame ---- */

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
    int64_t first, count;
    for (int rank = 0; rank < step->world_size; rank++) {
        ls_rank_range((step->sequences + unit - 1) / unit, rank, (int)step->world_size, &first, &count);
        if (sequence / unit < first + count) return rank;
    }
    return -1;
}

static enum ls_code print_sample(const struct ls_run_ledger_reader *reader, struct ls_tokenizer *const *tokenizers,
                                 const struct ls_ledger_step *step, int64_t sequence, struct ls_error *error) {
    const struct ls_config *config = reader->generation->config;
    const int64_t T = config->data.sequence_length;
    const uint64_t position = (uint64_t)ls_ledger_position(reader->run->ledger, step, sequence);
    const struct ls_draw draw = ls_order_at(reader->generation->order, position);
    const struct ls_dataset *dataset = reader->generation->corpus->train[draw.source];
    uint32_t shard;
    uint64_t index;
    int64_t into;
    ls_dataset_locate(dataset, (int64_t)draw.sample, &shard, &index);
    enum ls_code code = document_offset(dataset, shard, (int64_t)index * T, &into, error);
    if (code == LS_OK) code = ls_run_ledger_read(reader, position, error);
    if (code != LS_OK) return code;
    printf("position %llu rank %d source %u shard %s index %llu tokens %lld to %lld", (unsigned long long)position,
           rank_of(config, step, sequence), draw.source, ls_dataset_shard(dataset, shard)->name,
           (unsigned long long)index, (long long)((int64_t)index * T), (long long)((int64_t)index * T + T - 1));
    if (into >= 0) printf(" document offset %lld", (long long)into);
    printf(" epoch %llu draw %llu\n  begins ", (unsigned long long)draw.epoch, (unsigned long long)draw.draw);
    ls_data_print_tokens(dataset, tokenizers[draw.source], reader->run->tokens, T < WORDS_TOKENS ? T : WORDS_TOKENS,
                         stdout);
    putchar('\n');
    return LS_OK;
}

static enum ls_code print_step(struct ls_run_ledger *run, int64_t number, struct ls_error *error) {
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
    struct ls_run_ledger_reader reader = {run, ls_run_ledger_generation(run, step->data_generation)};
    if (!reader.generation || !reader.generation->corpus)
        return ls_fail(error, LS_DATA, LS_SCOPE_CALL,
                       "the samples of step %lld cannot be shown: the datasets of generation %lld of the data are gone "
                       "or others (%s)",
                       (long long)number, (long long)step->data_generation,
                       reader.generation ? reader.generation->gone.text : "the journal does not list them");
    enum ls_code code = LS_OK;
    printf("step %lld by attempt %lld on %lld rank%s: %lld sequences from position %lld", (long long)number,
           (long long)step->attempt, (long long)step->world_size, step->world_size == 1 ? "" : "s",
           (long long)step->sequences, (long long)step->position);
    if (run->generations_count > 1) printf(" of generation %lld of the data", (long long)step->data_generation);
    putchar('\n');
    for (int i = 0; i < reader.generation->config->data.train_count; i++)
        printf("source %d %s\n", i, reader.generation->config->data.train[i].path);
    const int sources = reader.generation->config->data.train_count;
    struct ls_tokenizer **tokenizers = calloc((size_t)(unsigned)sources, sizeof *tokenizers);
    if (!tokenizers) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for %d tokenizers", sources);
    for (int i = 0; i < sources; i++) /* one that is not there any more: ids are shown */
        ls_data_open_tokenizer(reader.generation->corpus->train[i], &tokenizers[i], NULL);
    for (int64_t k = 0; k < step->sequences && code == LS_OK; k++)
        code = print_sample(&reader, tokenizers, step, k, error);
    for (int i = 0; i < sources; i++) ls_tokenizer_destroy(tokenizers[i]);
    free(tokenizers);
    fflush(stdout);
    if (code == LS_OK) code = ls_ledger_prove_samples(run->ledger, step, ls_run_ledger_sample, &reader, error);
    if (code == LS_OK) printf("their digest is the one in the journal\n");
    return code;
}

int ls_command_blame(int argc, char **argv) {
    static const struct argp_option options[] = {{"step", OPTION_STEP, "S", 0, "The step", 0}, {0}};
    const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "RUN --step S",
        .doc = "Shows the samples of a step: source, shard, place, document, epoch, first words, and "
               "which rank had them; reads them again and compares their digest with the "
               "journal's, ending with 3 when it differs."};
    struct arguments arguments = {.blame = true};
    struct ls_run_ledger run;
    struct ls_error error;
    ls_command_parse(&argp, argc, argv, &arguments);
    enum ls_code code = ls_run_ledger_open(arguments.run, &run, &error);
    if (code == LS_OK) code = print_step(&run, arguments.step, &error);
    if (code == LS_OK) code = ls_command_flush(&error);
    ls_run_ledger_close(&run);
    return code == LS_OK ? LS_OK : ls_report_exit(code, error.text);
}
