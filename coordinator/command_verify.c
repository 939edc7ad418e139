/* Proving what a run was trained on. */
#define _GNU_SOURCE
#include "coordinator/command_verify.h"

#include "coordinator/command_line.h"
#include "coordinator/run_ledger.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the command line ---- */

struct arguments {
    const char *run;
    bool deep, json;
};

enum { OPTION_DEEP = 256, OPTION_JSON };

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    struct arguments *arguments = state->input;
    switch (key) {
    case OPTION_DEEP: arguments->deep = true; return 0;
    case OPTION_JSON: arguments->json = true; return 0;
    default: return ls_command_run_argument(key, argument, state, &arguments->run);
    }
}

/* Where steps of one generation of the data begin and end in the lineage: [first, *end). */
static const struct ls_run_ledger_generation *generation_at(const struct ls_run_ledger *run, size_t first,
                                                            size_t *end) {
    size_t count;
    const struct ls_ledger_step *steps = ls_ledger_steps(run->ledger, &count);
    for (*end = first; *end < count && steps[*end].data_generation == steps[first].data_generation;) ++*end;
    return ls_run_ledger_generation(run, steps[first].data_generation);
}

/* ---- the proof from the tokens ---- */

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

/* ---- for people ---- */

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

/* What is done with the use of each source of a generation of the data. */
typedef void take_use(void *context, const struct ls_run_ledger *run, const struct ls_run_ledger_generation *generation,
                      int source, const struct ls_ledger_use *use);

static enum ls_code take_generation(const struct ls_run_ledger *run, const struct ls_run_ledger_generation *generation,
                                    take_use *take, void *context, struct ls_error *error) {
    struct ls_ledger_use use[LS_CONFIG_SOURCES_MAX];
    const int sources = generation->config->data.train_count;
    enum ls_code code = ls_ledger_count_use(run->ledger, generation->number, generation->order, generation->samples,
                                            sources, use, error);
    for (int i = 0; i < sources && code == LS_OK; i++) take(context, run, generation, i, &use[i]);
    return code;
}

/* Of every generation that the lineage has steps of, and of the newest. */
static enum ls_code take_sources(const struct ls_run_ledger *run, take_use *take, void *context,
                                 struct ls_error *error) {
    size_t count;
    const struct ls_ledger_step *steps = ls_ledger_steps(run->ledger, &count);
    enum ls_code code = LS_OK;
    for (int i = 0; i < run->generations_count && code == LS_OK; i++) {
        bool used = run->generations[i].number == run->newest;
        for (size_t k = 0; k < count && !used; k++) used = steps[k].data_generation == run->generations[i].number;
        if (used) code = take_generation(run, &run->generations[i], take, context, error);
    }
    return code;
}

static void print_source(void *context, const struct ls_run_ledger *run,
                         const struct ls_run_ledger_generation *generation, int source,
                         const struct ls_ledger_use *use) {
    (void)context;
    char words[64] = "";
    if (run->generations_count > 1)
        snprintf(words, sizeof words, ", in generation %lld of the data", (long long)generation->number);
    print_use(generation->config->data.train[source].path, words,
              generation->corpus ? generation->corpus->train[source] : NULL, use);
}

/* ---- as JSON ---- */

static void add_lineage(json_t *object, const struct ls_run_ledger *run) {
    const struct ls_ledger_summary *summary = &run->summary;
    json_t *attempts = json_array(), *skipped = json_array();
    size_t count, bad_count;
    const struct ls_ledger_step *steps = ls_ledger_steps(run->ledger, &count);
    const struct ls_ledger_quarantine *bad = ls_ledger_quarantined(run->ledger, &bad_count);
    for (size_t first = 0, next; first < count; first = next) {
        for (next = first; next < count && steps[next].attempt == steps[first].attempt;) next++;
        json_array_append_new(attempts,
                              json_pack("{s:I, s:I, s:I, s:I}", "attempt", (json_int_t)steps[first].attempt, "ranks",
                                        (json_int_t)steps[first].world_size, "first_step",
                                        (json_int_t)steps[first].step, "last_step", (json_int_t)steps[next - 1].step));
    }
    for (size_t i = 0; i < bad_count; i++)
        json_array_append_new(
            skipped, json_pack("{s:I, s:I, s:I, s:I, s:I}", "data_generation", (json_int_t)bad[i].data_generation,
                               "first_position", (json_int_t)bad[i].from, "last_position", (json_int_t)bad[i].to - 1,
                               "attempt", (json_int_t)bad[i].attempt, "step", (json_int_t)bad[i].step));
    json_object_set_new(object, "steps", json_integer(summary->steps));
    json_object_set_new(object, "total_steps", json_integer(run->total_steps));
    json_object_set_new(object, "first_step", count ? json_integer(steps[0].step) : json_null());
    json_object_set_new(object, "saved_step", json_integer(summary->committed_step));
    json_object_set_new(object, "sequences", json_integer(summary->sequences));
    json_object_set_new(object, "steps_given_up", json_integer(summary->given_up));
    json_object_set_new(object, "updates_skipped", json_integer(summary->skipped));
    json_object_set_new(object, "checkpoints", json_integer(summary->checkpoints));
    json_object_set_new(object, "commits", json_integer(summary->commits));
    json_object_set_new(object, "lineage", attempts);
    json_object_set_new(object, "quarantine", skipped);
}

static void add_source(void *sources, const struct ls_run_ledger *run,
                       const struct ls_run_ledger_generation *generation, int source, const struct ls_ledger_use *use) {
    (void)run;
    const uint64_t untouched = use->draws >= use->samples ? 0 : use->samples - use->begun;
    json_array_append_new(
        sources, json_pack("{s:I, s:s, s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "data_generation",
                           (json_int_t)generation->number, "path", generation->config->data.train[source].path,
                           "digest", generation->digests[source], "present", generation->corpus != NULL, "samples",
                           (json_int_t)use->samples, "used", (json_int_t)(use->samples - untouched - use->unused),
                           "not_reached", (json_int_t)untouched, "uses_least", (json_int_t)use->least, "uses_most",
                           (json_int_t)use->most, "epochs", (json_int_t)(use->draws / use->samples), "begun",
                           (json_int_t)use->begun, "in_quarantine", (json_int_t)use->passed_over));
}

/* Frees it. */
static enum ls_code print_object(json_t *object, struct ls_error *error) {
    enum ls_code code = LS_OK;
    if (json_dumpf(object, stdout, JSON_INDENT(2)))
        code = ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "the proof cannot be printed as JSON");
    putchar('\n');
    json_decref(object);
    return code;
}

/* ---- the command ---- */

static enum ls_code verify(struct ls_run_ledger *run, const struct arguments *arguments, struct ls_error *error) {
    enum ls_code code = ls_run_ledger_open(arguments->run, run, error);
    if (code == LS_OK) print_lineage(run);
    if (code == LS_OK) code = take_sources(run, print_source, NULL, error);
    fflush(stdout);
    if (code == LS_OK && arguments->deep) code = read_again(run, error);
    if (code == LS_OK)
        printf("proven      every sequence of the lineage was used once, in order%s\n",
               arguments->deep ? "; the tokens read again give the digests of every step"
                               : " (--deep also reads the tokens again)");
    return code;
}

/* The object has what was found until a difference showed, and the difference. */
static enum ls_code verify_as_json(struct ls_run_ledger *run, const struct arguments *arguments,
                                   struct ls_error *error) {
    struct ls_error minor;
    json_t *object = json_object(), *sources = json_array();
    enum ls_code code = ls_run_ledger_open(arguments->run, run, error);
    if (code != LS_OK && code != LS_DATA) {
        json_decref(object);
        json_decref(sources);
        return code;
    }
    json_object_set_new(object, "run_dir", json_string(run->directory.path));
    json_object_set_new(object, "deep", json_boolean(arguments->deep));
    if (code == LS_OK) {
        add_lineage(object, run);
        code = take_sources(run, add_source, sources, error);
    }
    json_object_set_new(object, "sources", sources);
    if (code == LS_OK && arguments->deep) code = read_again(run, error);
    json_object_set_new(object, "proven", json_boolean(code == LS_OK));
    json_object_set_new(object, "difference", code == LS_OK ? json_null() : json_string(error->text));
    const enum ls_code printed = print_object(object, &minor);
    if (code == LS_OK && printed != LS_OK) *error = minor;
    return code == LS_OK ? printed : code;
}

int ls_command_verify(int argc, char **argv) {
    static const struct argp_option options[] = {
        {"deep", OPTION_DEEP, NULL, 0, "Read the tokens again and compare every step's digest", 0},
        {"json", OPTION_JSON, NULL, 0, "Print JSON", 0},
        {0}};
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
    enum ls_code code = arguments.json ? verify_as_json(&run, &arguments, &error) : verify(&run, &arguments, &error);
    if (code == LS_OK) code = ls_command_flush(&error);
    fflush(stdout);
    ls_run_ledger_close(&run);
    return code == LS_OK ? LS_OK : ls_report_exit(code, error.text);
}
