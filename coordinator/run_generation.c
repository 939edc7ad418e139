/* Which generation of the data an attempt is of. */
#define _GNU_SOURCE
#include "coordinator/run_generation.h"

#include "coordinator/config_change.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIGEST_DIGITS = 32, SOURCE_TEXT_BYTES = 320 };

enum ls_code ls_run_data_read(const struct ls_corpus *corpus, const struct ls_config *config, struct ls_run_data *data,
                              struct ls_error *error) {
    memcpy(data->train_digest, corpus->train_digest, sizeof data->train_digest);
    memcpy(data->validation_digest, corpus->validation_digest, sizeof data->validation_digest);
    memcpy(data->dataset_digest, corpus->digest, sizeof data->dataset_digest);
    data->epoch_length = corpus->epoch_length;
    enum ls_code code = ls_corpus_list_train(corpus, config, &data->sources, error);
    return code == LS_OK ? ls_corpus_list(corpus, config, &data->datasets, error) : code;
}

void ls_run_data_release(struct ls_run_data *data) {
    free(data->sources);
    free(data->datasets);
    memset(data, 0, sizeof *data);
}

/* ---- what the journal knows ---- */

/* The generations that attempts have had, as far as they matter here. */
struct known {
    int64_t last_attempt, in_force, found; /* of the newest attempt; that of the checkpoint; 0: none */
    int64_t count, highest;
    struct ls_journal_data_generation of_force, of_found; /* number 0: the journal does not have it */
    char *sources, *config;                               /* of the one in force; own */
};

static enum ls_code take_generation(void *context, const struct ls_journal_data_generation *row,
                                    struct ls_error *error) {
    struct known *known = context;
    if (row->first_attempt > known->last_attempt) return LS_OK; /* a start that was cut short; it is written anew */
    known->count++;
    if (row->number > known->highest) known->highest = row->number;
    struct ls_journal_data_generation kept = *row;
    kept.sources = kept.config = NULL; /* they end with the call */
    if (row->number == known->found) known->of_found = kept;
    if (row->number != known->in_force) return LS_OK;
    known->of_force = kept;
    known->sources = strdup(row->sources);
    known->config = strdup(row->config);
    if (!known->sources || !known->config)
        return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for the generations of the data");
    return LS_OK;
}

/* ---- what differs ---- */

static void add_text(char *text, size_t size, const char *more) {
    const size_t used = strlen(text);
    snprintf(text + used, size - used, "%s%s", used ? "; " : "", more);
}

/* The first line of `text`, in words: "data/a (digest ..., 620 samples)". Returns what is behind it. */
static const char *describe_source(const char *text, char words[SOURCE_TEXT_BYTES]) {
    const size_t length = strcspn(text, "\n");
    char *end;
    snprintf(words, SOURCE_TEXT_BYTES, "nothing");
    if (length > DIGEST_DIGITS + 2) {
        const long long samples = strtoll(text + DIGEST_DIGITS + 1, &end, 10);
        const int path = (int)(text + length - end) - 1;
        snprintf(words, SOURCE_TEXT_BYTES, "%.*s (digest %.*s, %lld samples)", path > 180 ? 180 : path, end + 1,
                 DIGEST_DIGITS, text, samples);
    }
    return text + length + (text[length] == '\n');
}

/* Finds the first dataset of data.train that is another one; false when all are the same. */
static bool find_other_source(const char *then, const char *now, char before[SOURCE_TEXT_BYTES],
                              char after[SOURCE_TEXT_BYTES]) {
    while (*then || *now) {
        const bool same = *then && *now && strncmp(then, now, DIGEST_DIGITS) == 0;
        then = describe_source(then, before);
        now = describe_source(now, after);
        if (!same) return true;
    }
    return false;
}

/* Keys and datasets that differ from the generation in force, noted in `differences`; each has to be accepted. */
static enum ls_code check_differences(const struct ls_run_generation_wish *wish, const struct known *known,
                                      char differences[LS_GENERATION_CHANGED_BYTES], struct ls_error *error) {
    struct ls_config *before = malloc(sizeof *before);
    struct ls_config_change *changes = calloc(LS_CONFIG_CHANGES_MAX, sizeof *changes);
    char then[SOURCE_TEXT_BYTES], now[SOURCE_TEXT_BYTES], line[2 * SOURCE_TEXT_BYTES + 64];
    enum ls_code code = LS_OK;
    int count = 0;
    if (!before || !changes) code = ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory to compare the data");
    if (code == LS_OK)
        code = ls_config_parse(known->config, strlen(known->config), "the journal", NULL, 0, before, error);
    if (code == LS_OK) count = ls_config_changes(before, wish->config, changes);
    for (int i = 0; i < count && code == LS_OK; i++) {
        if (changes[i].effect != LS_EFFECT_DATA) continue;
        snprintf(line, sizeof line, "%s: %s -> %s", changes[i].key, changes[i].before, changes[i].after);
        add_text(differences, LS_GENERATION_CHANGED_BYTES, line);
        code = ls_config_changes_check(&changes[i], 1, wish->accepted, wish->accepted_count, wish->run, error);
    }
    if (code == LS_OK && find_other_source(known->sources, wish->data->sources, then, now)) {
        snprintf(line, sizeof line, "data.train: %s -> %s", then, now);
        add_text(differences, LS_GENERATION_CHANGED_BYTES, line);
        if (!ls_config_is_accepted("data.train", wish->accepted, wish->accepted_count))
            code = ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                           "the datasets of data.train are not those that the run %s was trained on last: %s, it was "
                           "%s. Put them back, give --accept data.train to go on with a new generation of the data, or "
                           "start anew with --run-dir DIR.",
                           wish->run, now, then);
    }
    free(before);
    free(changes);
    return code;
}

/* Other validation data change no step; but losses before and after do not compare. */
static enum ls_code check_validation(const struct ls_run_generation_wish *wish, bool same_train,
                                     struct ls_run_generation *generation, struct ls_error *error) {
    char digest[DIGEST_DIGITS + 1];
    const struct ls_trainer_state *state = &wish->start->state;
    enum ls_code code = ls_journal_read_meta(wish->journal, "validation", digest, sizeof digest, error);
    if (code != LS_OK) return code;
    bool other = strcmp(digest, wish->data->validation_digest) != 0;
    if (!*digest)
        other = wish->start->found && same_train && strcmp(state->dataset_digest, wish->data->dataset_digest) != 0;
    if (!other) return LS_OK;
    generation->validation_changed = true;
    add_text(generation->differences, sizeof generation->differences, "data.validation: other datasets");
    if (ls_config_is_accepted("data.validation", wish->accepted, wish->accepted_count)) return LS_OK;
    return ls_fail(
        error, LS_DATA, LS_SCOPE_JOB,
        "the datasets of data.validation are not those that the run %s was validated on last (digest %s, now "
        "%s): losses before and after would not compare. Put them back, give --accept data.validation, or "
        "start anew with --run-dir DIR.",
        wish->run, *digest ? digest : state->dataset_digest,
        *digest ? wish->data->validation_digest : wish->data->dataset_digest);
}

/* ---- which one ---- */

/* A journal of a version that kept no generations, or none: whether the data are those of what was there. */
static bool is_as_it_was(const struct ls_run_generation_wish *wish) {
    const struct ls_trainer_state *state = &wish->start->state;
    if (!wish->start->found) return true;
    if (state->train_digest[0]) return strcmp(state->train_digest, wish->data->train_digest) == 0;
    return !wish->keys_changed && strcmp(state->dataset_digest, wish->data->dataset_digest) == 0;
}

/* A checkpoint that came without the record of what it was trained on. */
static enum ls_code choose_unrecorded(const struct ls_run_generation_wish *wish, int64_t *number,
                                      struct ls_error *error) {
    const int64_t found = wish->start->found ? (int64_t)wish->start->state.data_generation : 0;
    *number = found ? found : 1;
    if (is_as_it_was(wish)) return LS_OK;
    *number = found + 1;
    if (wish->before->attempt == 0 && ls_config_is_accepted("data.train", wish->accepted, wish->accepted_count))
        return LS_OK;
    return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                   "the checkpoint of step %lld was trained on other data, or in another order, than the configuration "
                   "names, and the journal of %s does not say which. %s",
                   (long long)wish->start->state.step, wish->run,
                   wish->before->attempt ? "Go on with the data of before for one attempt first."
                                         : "Give --accept data.train to go on with a new generation of the data.");
}

static enum ls_code choose(const struct ls_run_generation_wish *wish, const struct known *known,
                           struct ls_run_generation *generation, struct ls_error *error) {
    const char *now = wish->data->train_digest;
    int64_t *number = &generation->facts.number;
    if (known->count == 0) return choose_unrecorded(wish, number, error);
    *number = known->in_force;
    if (strcmp(known->of_force.train_digest, now) == 0) return LS_OK;
    enum ls_code code = check_differences(wish, known, generation->differences, error);
    if (code != LS_OK) return code;
    *number = known->highest + 1;
    if (known->found && strcmp(known->of_found.train_digest, now) == 0) *number = known->found;
    if (*number <= LS_CORE_DATA_GENERATIONS_MAX) return LS_OK;
    return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                   "the data of the run %s have been changed %d times, which is as often as a run's can be. Start anew "
                   "with --run-dir DIR.",
                   wish->run, LS_CORE_DATA_GENERATIONS_MAX - 1);
}

enum ls_code ls_run_generation_settle(const struct ls_run_generation_wish *wish, struct ls_journal_attempt *attempt,
                                      struct ls_run_generation *generation, struct ls_error *error) {
    const struct ls_trainer_state *state = &wish->start->state;
    struct known known = {.last_attempt = wish->before->attempt, .in_force = wish->before->data_generation};
    if (wish->start->found) known.found = (int64_t)state->data_generation;
    *generation = (struct ls_run_generation){.before = known.found};
    enum ls_code code = ls_journal_read_data_generations(wish->journal, take_generation, &known, error);
    if (code == LS_OK) code = choose(wish, &known, generation, error);
    struct ls_journal_data_generation *facts = &generation->facts;
    const bool same = facts->number == known.in_force;
    if (code == LS_OK) code = check_validation(wish, same || facts->number == known.found, generation, error);
    if (code == LS_OK) {
        generation->begins = facts->number != known.found;
        generation->is_new = !same && facts->number != known.found;
        generation->changed = wish->before->attempt ? !same : generation->is_new && known.found;
        generation->before_position = attempt->start_position;
        if (generation->begins) {
            attempt->start_position = 0;
            attempt->generation_step = attempt->start_step;
        }
        attempt->data_generation = facts->number;
        facts->first_attempt = attempt->attempt;
        facts->start_step = attempt->generation_step;
        if (same && known.of_force.number) {
            facts->first_attempt = known.of_force.first_attempt;
            facts->start_step = known.of_force.start_step;
        } else if (facts->number == known.found && known.of_found.number) {
            facts->first_attempt = known.of_found.first_attempt;
            facts->start_step = known.of_found.start_step;
        } else if (same) { /* a journal of before there were generations */
            facts->first_attempt = 1;
        }
        memcpy(facts->train_digest, wish->data->train_digest, sizeof facts->train_digest);
        facts->sources = wish->data->sources;
        facts->config = wish->yaml;
    }
    free(known.sources);
    free(known.config);
    return code;
}

/* ---- writing and telling ---- */

#define ORIGIN_FORMAT "%" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %32s"

static enum ls_code write_origin(const struct ls_run_generation_wish *wish, struct ls_error *error) {
    const struct ls_trainer_state *state = &wish->start->state;
    char origin[192] = "";
    if (wish->start->found && state->step)
        snprintf(origin, sizeof origin, "%llu %llu %llu %llu %s", (unsigned long long)state->step,
                 (unsigned long long)state->position, (unsigned long long)state->samples,
                 (unsigned long long)state->data_generation, state->ledger_chain);
    enum ls_code code = ls_journal_write_meta(wish->journal, "origin", origin, error);
    if (code == LS_OK)
        code = ls_journal_inherit(wish->journal, (int64_t)state->data_generation, &state->quarantine, error);
    return code;
}

enum ls_code ls_run_origin_read(struct ls_journal *journal, struct ls_run_origin *origin, struct ls_error *error) {
    char text[192], chain[DIGEST_DIGITS + 1] = "";
    *origin = (struct ls_run_origin){.step = 0};
    enum ls_code code = ls_journal_read_meta(journal, "origin", text, sizeof text, error);
    if (code != LS_OK || !*text) return code;
    struct ls_run_origin read = {.step = 0};
    if (sscanf(text, ORIGIN_FORMAT, &read.step, &read.position, &read.samples, &read.data_generation, chain) != 5 ||
        ls_digest_parse(chain, &read.chain))
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                       "the journal says '%s' of where the run began, which cannot be (damaged?). Put a copy of it "
                       "back.",
                       text);
    *origin = read;
    return LS_OK;
}

enum ls_code ls_run_generation_write(const struct ls_run_generation_wish *wish,
                                     const struct ls_run_generation *generation, struct ls_error *error) {
    enum ls_code code = LS_OK;
    if (wish->before->attempt == 0) code = write_origin(wish, error);
    if (code == LS_OK) code = ls_journal_write_meta(wish->journal, "datasets", wish->data->datasets, error);
    if (code == LS_OK) code = ls_journal_write_meta(wish->journal, "validation", wish->data->validation_digest, error);
    if (code == LS_OK) code = ls_journal_write_data_generation(wish->journal, &generation->facts, error);
    return code;
}

/* [{"digest": ..., "samples": ..., "path": ...}, ...] of ls_corpus_list_train(). */
static json_t *list_sources(const char *text) {
    json_t *list = json_array();
    while (*text) {
        const size_t length = strcspn(text, "\n");
        char *end;
        if (length <= DIGEST_DIGITS + 2) break;
        const long long samples = strtoll(text + DIGEST_DIGITS + 1, &end, 10);
        json_array_append_new(list, json_pack("{s:s%, s:I, s:s%}", "digest", text, (size_t)DIGEST_DIGITS, "samples",
                                              (json_int_t)samples, "path", end + 1, (size_t)(text + length - end - 1)));
        text += length + (text[length] == '\n');
    }
    return list;
}

void ls_run_generation_tell(const struct ls_run_generation *generation, const struct ls_journal_attempt *attempt,
                            struct ls_journal *journal) {
    const long long number = (long long)generation->facts.number, step = (long long)attempt->start_step;
    char text[LS_WIRE_TEXT_BYTES], words[SOURCE_TEXT_BYTES];
    char before[96] = "";
    if (generation->validation_changed) {
        snprintf(text, sizeof text,
                 "{\"text\": \"the datasets of data.validation are others behind step %lld: losses before and after do "
                 "not compare\", \"step\": %lld}",
                 step, step);
        ls_journal_tell(journal, (uint32_t)attempt->attempt, "validation_data", text);
    }
    describe_source(generation->facts.sources, words);
    if (generation->before)
        snprintf(before, sizeof before, "; before it was generation %lld, at position %lld",
                 (long long)generation->before, (long long)generation->before_position);
    if (!generation->changed && !(generation->begins && generation->before)) return;
    if (generation->begins)
        snprintf(text, sizeof text,
                 "generation %lld of the data begins%s behind step %lld, with epochs of its own%s. %s%s", number,
                 generation->is_new ? "" : " again", step, before, *generation->differences ? "Changed: " : "It is ",
                 *generation->differences ? generation->differences : words);
    else
        snprintf(
            text, sizeof text,
            "generation %lld of the data goes on behind step %lld, at position %lld, as the checkpoint was left: %s",
            number, step, (long long)attempt->start_position, words);
    json_t *fields =
        json_pack("{s:s, s:I, s:I, s:I, s:I, s:b, s:s, s:o}", "text", text, "data_generation", (json_int_t)number,
                  "before", (json_int_t)generation->before, "step", (json_int_t)step, "position",
                  (json_int_t)attempt->start_position, "begins", generation->begins, "train_digest",
                  generation->facts.train_digest, "datasets", list_sources(generation->facts.sources));
    char *json = fields ? json_dumps(fields, JSON_COMPACT) : NULL;
    if (json) ls_journal_tell(journal, (uint32_t)attempt->attempt, "data_generation", json);
    free(json);
    json_decref(fields);
}
