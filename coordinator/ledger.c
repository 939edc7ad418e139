/* The proof of the ledger. */
#include "coordinator/ledger.h"

#include <assert.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct commit {
    int64_t step, position;
    struct ls_digest chain;
};

struct attempt {
    struct ls_ledger_attempt facts;
    struct ls_core_step *steps;
    size_t steps_count, steps_capacity;
    struct commit *commits;
    size_t commits_count, commits_capacity;
    struct ls_ledger_quarantine bad; /* from == to: it put nothing into quarantine */
    int64_t lineage_steps;
};

/* What a generation of the data passes over. */
struct generation {
    int64_t number;
    struct ls_quarantine quarantine;
};

struct ls_ledger {
    struct ls_ledger_options options;
    struct attempt *attempts;
    size_t attempts_count, attempts_capacity;
    struct ls_ledger_checkpoint *checkpoints;
    size_t checkpoints_count, checkpoints_capacity;
    struct ls_ledger_step *lineage;
    size_t lineage_count;
    int64_t lineage_begin; /* its first step comes behind this one: 0, or the origin */
    /* What the attempts proven so far put into quarantine: as ranges, by generation of the data, and as they did it. */
    struct generation *generations;
    size_t generations_count, generations_capacity;
    struct ls_ledger_quarantine *quarantined;
    size_t quarantined_count, quarantined_capacity;
    struct ls_ledger_quarantine *inherited;
    size_t inherited_count, inherited_capacity;
};

static bool same(struct ls_digest a, struct ls_digest b) {
    return a.low == b.low && a.high == b.high;
}

/* Room for one more element of `size` bytes in list[count]. */
static enum ls_code reserve(void **list, size_t count, size_t *capacity, size_t size, struct ls_error *error) {
    if (count < *capacity) return LS_OK;
    size_t more = *capacity ? 2 * *capacity : 64;
    void *grown = reallocarray(*list, more, size);
    if (!grown) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for a ledger of %zu records", more);
    *list = grown;
    *capacity = more;
    return LS_OK;
}

enum ls_code ls_ledger_create(const struct ls_ledger_options *options, struct ls_ledger **ledger,
                              struct ls_error *error) {
    struct ls_ledger *made = calloc(1, sizeof *made);
    if (!made) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for the ledger");
    made->options = *options;
    *ledger = made;
    return LS_OK;
}

void ls_ledger_destroy(struct ls_ledger *ledger) {
    if (!ledger) return;
    for (size_t i = 0; i < ledger->attempts_count; i++) {
        free(ledger->attempts[i].steps);
        free(ledger->attempts[i].commits);
    }
    free(ledger->attempts);
    free(ledger->checkpoints);
    free(ledger->lineage);
    free(ledger->generations);
    free(ledger->quarantined);
    free(ledger->inherited);
    free(ledger);
}

enum ls_code ls_ledger_add_attempt(struct ls_ledger *ledger, const struct ls_ledger_attempt *attempt,
                                   struct ls_error *error) {
    enum ls_code code = reserve((void **)&ledger->attempts, ledger->attempts_count, &ledger->attempts_capacity,
                                sizeof *ledger->attempts, error);
    if (code != LS_OK) return code;
    struct attempt *added = &ledger->attempts[ledger->attempts_count++];
    *added = (struct attempt){.facts = *attempt};
    if (!attempt->options.global_batch) added->facts.options = ledger->options;
    return LS_OK;
}

enum ls_code ls_ledger_add_record(struct ls_ledger *ledger, const struct ls_core_record *record,
                                  struct ls_error *error) {
    if (record->kind != LS_RECORD_STEP && record->kind != LS_RECORD_COMMIT && record->kind != LS_RECORD_QUARANTINE)
        return LS_OK;
    struct attempt *of = ledger->attempts_count ? &ledger->attempts[ledger->attempts_count - 1] : NULL;
    if (!of || of->facts.attempt != (int64_t)record->attempt)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "the journal has a record of attempt %u, which never began",
                       record->attempt);
    enum ls_code code = LS_OK;
    if (record->kind == LS_RECORD_QUARANTINE) {
        of->bad =
            (struct ls_ledger_quarantine){(int64_t)record->attempt, record->quarantine.step, record->quarantine.from,
                                          record->quarantine.to, record->quarantine.data_generation};
    } else if (record->kind == LS_RECORD_STEP) {
        code = reserve((void **)&of->steps, of->steps_count, &of->steps_capacity, sizeof *of->steps, error);
        if (code == LS_OK) of->steps[of->steps_count++] = record->step;
    } else {
        code = reserve((void **)&of->commits, of->commits_count, &of->commits_capacity, sizeof *of->commits, error);
        if (code == LS_OK)
            of->commits[of->commits_count++] =
                (struct commit){record->commit.step, record->commit.position, record->commit.chain};
    }
    return code;
}

enum ls_code ls_ledger_add_checkpoint(struct ls_ledger *ledger, const struct ls_ledger_checkpoint *checkpoint,
                                      struct ls_error *error) {
    enum ls_code code = reserve((void **)&ledger->checkpoints, ledger->checkpoints_count, &ledger->checkpoints_capacity,
                                sizeof *ledger->checkpoints, error);
    if (code == LS_OK) ledger->checkpoints[ledger->checkpoints_count++] = *checkpoint;
    return code;
}

enum ls_code ls_ledger_inherit(struct ls_ledger *ledger, const struct ls_core_record *record, struct ls_error *error) {
    enum ls_code code = reserve((void **)&ledger->inherited, ledger->inherited_count, &ledger->inherited_capacity,
                                sizeof *ledger->inherited, error);
    if (code == LS_OK)
        ledger->inherited[ledger->inherited_count++] =
            (struct ls_ledger_quarantine){.from = record->quarantine.from,
                                          .to = record->quarantine.to,
                                          .data_generation = record->quarantine.data_generation};
    return code;
}

/* ---- quarantine ---- */

/* What the generation passes over, as far as it is proven. */
static const struct ls_quarantine *quarantine_of(const struct ls_ledger *ledger, int64_t data_generation) {
    static const struct ls_quarantine none;
    for (size_t i = 0; i < ledger->generations_count; i++)
        if (ledger->generations[i].number == data_generation) return &ledger->generations[i].quarantine;
    return &none;
}

static enum ls_code put_into_quarantine(struct ls_ledger *ledger, const struct ls_ledger_quarantine *bad,
                                        struct ls_error *error) {
    size_t index = 0;
    while (index < ledger->generations_count && ledger->generations[index].number != bad->data_generation) index++;
    enum ls_code code = LS_OK;
    if (index == ledger->generations_count) {
        code = reserve((void **)&ledger->generations, index, &ledger->generations_capacity, sizeof *ledger->generations,
                       error);
        if (code != LS_OK) return code;
        ledger->generations[ledger->generations_count++] = (struct generation){.number = bad->data_generation};
    }
    if (!ls_quarantine_add(&ledger->generations[index].quarantine, bad->from, bad->to))
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "attempt %lld put more into quarantine than a run can have",
                       (long long)bad->attempt);
    code = reserve((void **)&ledger->quarantined, ledger->quarantined_count, &ledger->quarantined_capacity,
                   sizeof *ledger->quarantined, error);
    if (code == LS_OK) ledger->quarantined[ledger->quarantined_count++] = *bad;
    return code;
}

/* ---- an attempt by itself ---- */

static enum ls_code differs(struct ls_error *error, const struct attempt *attempt, int64_t step, const char *what,
                            int64_t found, int64_t expected) {
    return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "step %lld of attempt %lld: %s is %lld, it should be %lld",
                   (long long)step, (long long)attempt->facts.attempt, what, (long long)found, (long long)expected);
}

static enum ls_code broken_chain(struct ls_error *error, const struct attempt *attempt, int64_t step, const char *where,
                                 struct ls_digest found, struct ls_digest expected) {
    char there[33], ours[33];
    ls_digest_format(found, there);
    ls_digest_format(expected, ours);
    return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                   "step %lld of attempt %lld: the chain in %s is %s, the digests of the steps up to it give %s",
                   (long long)step, (long long)attempt->facts.attempt, where, there, ours);
}

/* The step of the attempt, or NULL. Its steps are known to be contiguous. */
static const struct ls_core_step *find_step(const struct attempt *attempt, int64_t step) {
    int64_t index = step - attempt->facts.start_step - 1;
    return index >= 0 && (size_t)index < attempt->steps_count ? &attempt->steps[index] : NULL;
}

/* The position behind `sequences` more from `position`; the run's last step ends where the run does. */
static int64_t position_behind(const struct ls_ledger *ledger, const struct attempt *attempt, int64_t position,
                               int64_t sequences) {
    const struct ls_quarantine *quarantine = quarantine_of(ledger, attempt->facts.data_generation);
    int64_t behind = ls_quarantine_behind(quarantine, position, sequences);
    const int64_t end = attempt->facts.options.end_position;
    if (end == INT64_MAX || behind >= end) return behind;
    return end - behind == ls_quarantine_within(quarantine, behind, end) ? end : behind;
}

static enum ls_code prove_steps(const struct ls_ledger *ledger, const struct attempt *attempt, struct ls_error *error) {
    const struct ls_ledger_options *options = &attempt->facts.options;
    const struct ls_quarantine *quarantine = quarantine_of(ledger, attempt->facts.data_generation);
    int64_t position = attempt->facts.start_position, number = attempt->facts.start_step;
    struct ls_digest chain = attempt->facts.start_chain;
    for (size_t i = 0; i < attempt->steps_count; i++) {
        struct ls_core_step *step = &attempt->steps[i];
        if (step->step != ++number)
            return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                           "step %lld of attempt %lld is not in the journal: after step %lld comes step %lld",
                           (long long)number, (long long)attempt->facts.attempt, (long long)number - 1,
                           (long long)step->step);
        int64_t left =
            options->end_position - position - ls_quarantine_within(quarantine, position, options->end_position);
        int64_t sequences = left < options->global_batch ? left : options->global_batch;
        if (number > options->steps || sequences <= 0)
            return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                           "step %lld of attempt %lld is beyond the end of the run, step %lld", (long long)number,
                           (long long)attempt->facts.attempt, (long long)options->steps);
        if (step->position != position)
            return differs(error, attempt, number, "its position", step->position, position);
        if (step->sequences != sequences)
            return differs(error, attempt, number, "its number of sequences", step->sequences, sequences);
        chain = ls_digest_chain(chain, (uint64_t)number, step->digest);
        if (!same(step->chain, chain)) return broken_chain(error, attempt, number, "the journal", step->chain, chain);
        position = position_behind(ledger, attempt, position, sequences);
        step->end_position = position;
    }
    return LS_OK;
}

/* What the attempt put into quarantine has to be a step of its own; attempts after it pass over it. */
static enum ls_code prove_quarantine(struct ls_ledger *ledger, const struct attempt *attempt, struct ls_error *error) {
    const struct ls_ledger_quarantine *bad = &attempt->bad;
    const struct ls_ledger_attempt *facts = &attempt->facts;
    int64_t batch = facts->options.global_batch, before = bad->step - 1 - facts->start_step;
    if (bad->from == bad->to) return LS_OK;
    if (before < 0 || bad->step > facts->options.steps)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                       "attempt %lld put step %lld into quarantine, which it cannot have run",
                       (long long)facts->attempt, (long long)bad->step);
    int64_t from = position_behind(ledger, attempt, facts->start_position, before * batch);
    int64_t to = position_behind(ledger, attempt, from, batch);
    if (to > facts->options.end_position) to = facts->options.end_position;
    if (bad->from != from) return differs(error, attempt, bad->step, "the start of its quarantine", bad->from, from);
    if (bad->to != to) return differs(error, attempt, bad->step, "the end of its quarantine", bad->to, to);
    if (bad->data_generation != facts->data_generation)
        return differs(error, attempt, bad->step, "the generation of the data of its quarantine", bad->data_generation,
                       facts->data_generation);
    return put_into_quarantine(ledger, bad, error);
}

/* What a commit or a checkpoint of `attempt` says against the attempt's steps. */
static enum ls_code prove_saved(const struct attempt *attempt, int64_t number, int64_t position, struct ls_digest chain,
                                const char *where, struct ls_error *error) {
    const struct ls_core_step *step = find_step(attempt, number);
    if (!step)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                       "step %lld of attempt %lld: there is %s of it, and the step is not in the journal",
                       (long long)number, (long long)attempt->facts.attempt, where);
    if (!same(chain, step->chain)) return broken_chain(error, attempt, number, where, chain, step->chain);
    if (position != step->end_position)
        return differs(error, attempt, number, "the position saved", position, step->end_position);
    return LS_OK;
}

static enum ls_code prove_attempt(const struct ls_ledger *ledger, size_t index, struct ls_error *error) {
    const struct attempt *attempt = &ledger->attempts[index];
    if (index && attempt->facts.attempt <= ledger->attempts[index - 1].facts.attempt)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "attempt %lld is in the journal twice",
                       (long long)attempt->facts.attempt);
    enum ls_code code = prove_steps(ledger, attempt, error);
    for (size_t i = 0; i < attempt->commits_count && code == LS_OK; i++)
        code = prove_saved(attempt, attempt->commits[i].step, attempt->commits[i].position, attempt->commits[i].chain,
                           "the journal's commit", error);
    return code;
}

/* ---- attempts joined ---- */

/* A start from a step of the same generation of the data is where that step ended, else at the order's beginning. */
static int64_t position_of_start(const struct ls_ledger_attempt *facts, int64_t data_generation, int64_t position) {
    return facts->data_generation == data_generation ? position : 0;
}

/* True when the attempt starts with the checkpoint that the run began with. */
static bool is_at_origin(const struct ls_ledger *ledger, const struct ls_ledger_attempt *facts) {
    const struct ls_ledger_origin *origin = &ledger->options.origin;
    return origin->step && facts->start_step == origin->step && same(facts->start_chain, origin->chain);
}

/* The attempt whose step the start of attempt `child` is, the highest whose chain and position agree. */
static enum ls_code find_parent(const struct ls_ledger *ledger, size_t child, size_t *parent, struct ls_error *error) {
    const struct ls_ledger_attempt *facts = &ledger->attempts[child].facts;
    int64_t expected = -1;
    for (size_t i = child; i-- > 0;) {
        const struct ls_core_step *step = find_step(&ledger->attempts[i], facts->start_step);
        if (!step || !same(step->chain, facts->start_chain)) continue;
        *parent = i;
        expected = position_of_start(facts, ledger->attempts[i].facts.data_generation, step->end_position);
        if (expected == facts->start_position) return LS_OK;
    }
    if (expected >= 0)
        return differs(error, &ledger->attempts[child], facts->start_step + 1, "its position", facts->start_position,
                       expected);
    char chain[33];
    ls_digest_format(facts->start_chain, chain);
    return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                   "attempt %lld starts at step %lld with the chain %s, and no attempt before it has that step with "
                   "that chain",
                   (long long)facts->attempt, (long long)facts->start_step, chain);
}

static enum ls_code prove_start(const struct ls_ledger *ledger, size_t index, struct ls_error *error) {
    const struct ls_ledger_attempt *facts = &ledger->attempts[index].facts;
    const struct ls_ledger_origin *origin = &ledger->options.origin;
    size_t parent;
    if (is_at_origin(ledger, facts)) {
        const int64_t expected = position_of_start(facts, origin->data_generation, origin->position);
        if (facts->start_position == expected) return LS_OK;
        return differs(error, &ledger->attempts[index], facts->start_step + 1, "its position", facts->start_position,
                       expected);
    }
    if (facts->start_step) return find_parent(ledger, index, &parent, error);
    if (facts->start_position || !same(facts->start_chain, (struct ls_digest){0, 0}))
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                       "attempt %lld starts at step 0, but at position %lld or with a chain that is not empty",
                       (long long)facts->attempt, (long long)facts->start_position);
    return LS_OK;
}

/* Where the lineage of attempt `index` begins: at step 0, or at the origin. */
static enum ls_code find_begin(const struct ls_ledger *ledger, size_t index, int64_t *step, struct ls_error *error) {
    const struct ls_ledger_attempt *facts = &ledger->attempts[index].facts;
    while (facts->start_step && !is_at_origin(ledger, facts)) {
        enum ls_code code = find_parent(ledger, index, &index, error);
        if (code != LS_OK) return code;
        facts = &ledger->attempts[index].facts;
    }
    *step = facts->start_step;
    return LS_OK;
}

static enum ls_code make_lineage(struct ls_ledger *ledger, struct ls_error *error) {
    const struct attempt *newest = &ledger->attempts[ledger->attempts_count - 1];
    int64_t last = newest->facts.start_step + (int64_t)newest->steps_count, begin;
    enum ls_code code = find_begin(ledger, ledger->attempts_count - 1, &begin, error);
    if (code != LS_OK) return code;
    size_t count = (size_t)(last - begin);
    free(ledger->lineage);
    ledger->lineage = calloc(count ? count : 1, sizeof *ledger->lineage);
    ledger->lineage_count = 0;
    ledger->lineage_begin = begin;
    if (!ledger->lineage) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for a ledger of %zu steps", count);
    for (size_t index = ledger->attempts_count - 1;;) {
        struct attempt *attempt = &ledger->attempts[index];
        for (int64_t number = attempt->facts.start_step + 1; number <= last; number++) {
            const struct ls_core_step *step = find_step(attempt, number);
            ledger->lineage[number - begin - 1] =
                (struct ls_ledger_step){.step = step->step,
                                        .position = step->position,
                                        .sequences = step->sequences,
                                        .end_position = step->end_position,
                                        .digest = step->digest,
                                        .chain = step->chain,
                                        .skipped = step->skipped,
                                        .attempt = attempt->facts.attempt,
                                        .world_size = attempt->facts.world_size,
                                        .data_generation = attempt->facts.data_generation};
            attempt->lineage_steps++;
        }
        last = attempt->facts.start_step;
        if (last == 0 || is_at_origin(ledger, &attempt->facts)) break;
        code = find_parent(ledger, index, &index, error);
        if (code != LS_OK) return code;
    }
    ledger->lineage_count = count;
    return LS_OK;
}

/* ---- checkpoints ---- */

static const struct attempt *find_attempt(const struct ls_ledger *ledger, int64_t number) {
    for (size_t i = 0; i < ledger->attempts_count; i++)
        if (ledger->attempts[i].facts.attempt == number) return &ledger->attempts[i];
    return NULL;
}

static enum ls_code wrong_parent(struct ls_error *error, const char *child, int64_t step, const char *found,
                                 const char *expected) {
    return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                   "%s step %lld names the parent manifest %s, it should be %s: they are not of one lineage", child,
                   (long long)step, *found ? found : "none", *expected ? expected : "none");
}

static enum ls_code prove_checkpoint(const struct ls_ledger *ledger, const struct ls_ledger_checkpoint *checkpoint,
                                     struct ls_error *error) {
    const struct attempt *writer = find_attempt(ledger, checkpoint->attempt);
    const struct ls_ledger_origin *origin = &ledger->options.origin;
    if (origin->step && checkpoint->step <= origin->step && !(writer && find_step(writer, checkpoint->step)))
        return checkpoint->step < origin->step || same(checkpoint->chain, origin->chain)
                   ? LS_OK
                   : ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                             "the checkpoint of step %lld is not the one that the run began with: its chain differs",
                             (long long)checkpoint->step);
    if (!writer)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                       "the checkpoint of step %lld was written by attempt %lld, which the journal does not know",
                       (long long)checkpoint->step, (long long)checkpoint->attempt);
    enum ls_code code = prove_saved(writer, checkpoint->step, checkpoint->position, checkpoint->chain,
                                    "the checkpoint's trainer.json", error);
    if (code == LS_OK && strcmp(checkpoint->parent_manifest, writer->facts.parent_manifest) != 0)
        code = wrong_parent(error, "the checkpoint of", checkpoint->step, checkpoint->parent_manifest,
                            writer->facts.parent_manifest);
    /* The attempts that started from this very folder. One that its writer came after started from another. */
    for (size_t i = 0; i < ledger->attempts_count && code == LS_OK; i++) {
        const struct ls_ledger_attempt *child = &ledger->attempts[i].facts;
        if (child->start_step == checkpoint->step && child->attempt > checkpoint->attempt &&
            strcmp(child->parent_manifest, checkpoint->manifest_hash) != 0)
            code = wrong_parent(error, "the attempt that started from", checkpoint->step, child->parent_manifest,
                                checkpoint->manifest_hash);
    }
    return code;
}

static void summarise(const struct ls_ledger *ledger, struct ls_ledger_summary *summary) {
    *summary = (struct ls_ledger_summary){.steps = (int64_t)ledger->lineage_count,
                                          .attempts = (int64_t)ledger->attempts_count,
                                          .checkpoints = (int64_t)ledger->checkpoints_count};
    for (size_t i = 0; i < ledger->lineage_count; i++) {
        summary->sequences += ledger->lineage[i].sequences;
        summary->skipped += ledger->lineage[i].skipped;
        summary->passed_over += ls_quarantine_within(quarantine_of(ledger, ledger->lineage[i].data_generation),
                                                     ledger->lineage[i].position, ledger->lineage[i].end_position);
    }
    for (size_t i = 0; i < ledger->attempts_count; i++) {
        const struct attempt *attempt = &ledger->attempts[i];
        summary->given_up += (int64_t)attempt->steps_count - attempt->lineage_steps;
        summary->lineages += attempt->lineage_steps > 0;
        summary->commits += (int64_t)attempt->commits_count;
        for (size_t k = 0; k < attempt->commits_count; k++) {
            const struct ls_ledger_step *step = ls_ledger_find(ledger, attempt->commits[k].step);
            if (step && step->step > summary->committed_step && same(step->chain, attempt->commits[k].chain))
                summary->committed_step = step->step;
        }
    }
}

enum ls_code ls_ledger_prove(struct ls_ledger *ledger, struct ls_ledger_summary *summary, struct ls_error *error) {
    enum ls_code code = LS_OK;
    if (ledger->attempts_count == 0)
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB, "the journal has no attempt: nothing has run");
    ledger->generations_count = ledger->quarantined_count = 0;
    for (size_t i = 0; i < ledger->inherited_count && code == LS_OK; i++)
        code = put_into_quarantine(ledger, &ledger->inherited[i], error);
    for (size_t i = 0; i < ledger->attempts_count && code == LS_OK; i++) {
        ledger->attempts[i].lineage_steps = 0;
        code = prove_attempt(ledger, i, error);
        if (code == LS_OK) code = prove_start(ledger, i, error);
        if (code == LS_OK) code = prove_quarantine(ledger, &ledger->attempts[i], error);
    }
    if (code == LS_OK) code = make_lineage(ledger, error);
    for (size_t i = 0; i < ledger->checkpoints_count && code == LS_OK; i++)
        code = prove_checkpoint(ledger, &ledger->checkpoints[i], error);
    if (code == LS_OK) summarise(ledger, summary);
    return code;
}

const struct ls_ledger_step *ls_ledger_steps(const struct ls_ledger *ledger, size_t *count) {
    *count = ledger->lineage_count;
    return ledger->lineage;
}

const struct ls_ledger_quarantine *ls_ledger_quarantined(const struct ls_ledger *ledger, size_t *count) {
    *count = ledger->quarantined_count;
    return ledger->quarantined;
}

const struct ls_ledger_step *ls_ledger_find(const struct ls_ledger *ledger, int64_t step) {
    const int64_t index = step - ledger->lineage_begin - 1;
    return index >= 0 && (size_t)index < ledger->lineage_count ? &ledger->lineage[index] : NULL;
}

/* A range that was put into quarantine lies behind every step that the lineage had in its generation before: so the
 * whole list serves all of its steps. */
int64_t ls_ledger_position(const struct ls_ledger *ledger, const struct ls_ledger_step *step, int64_t index) {
    return ls_quarantine_at(quarantine_of(ledger, step->data_generation), step->position, index);
}

/* ---- the samples ---- */

/* A source while its draws are counted. */
struct count {
    /* [words]: what the epoch that has begun has had, a bit for each sample; or, where all draws are few beside the
     * samples, a table of 1 + sample at most half full, probed in line from the sample's place in it. */
    uint64_t *used;
    uint64_t words;
    bool sparse;
    uint64_t *passed; /* [passed_count]: the sample of each draw that was passed over */
    size_t passed_count, passed_capacity;
};

static enum ls_code make_count(struct count *count, uint64_t samples, uint64_t draws, struct ls_error *error) {
    uint64_t slots = 64;
    count->words = (samples + 63) / 64;
    if (draws < count->words / 4) {
        while (slots < 2 * draws) slots *= 2;
        count->sparse = true;
        count->words = slots;
    }
    count->used = calloc(count->words, sizeof *count->used);
    if (count->used) return LS_OK;
    return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL,
                   "no memory to count %llu draws of %llu samples: it takes %llu bytes. Verify on a host with more.",
                   (unsigned long long)draws, (unsigned long long)samples, (unsigned long long)count->words * 8);
}

/* The place of the sample in the table, or of where it would be; the order has mixed samples already. */
static uint64_t *find_used(const struct count *count, uint64_t sample) {
    uint64_t at = sample & (count->words - 1);
    while (count->used[at] && count->used[at] != sample + 1) at = (at + 1) & (count->words - 1);
    return &count->used[at];
}

static bool is_used(const struct count *count, uint64_t sample) {
    return count->sparse ? *find_used(count, sample) != 0 : count->used[sample / 64] >> sample % 64 & 1;
}

static void use_sample(struct count *count, uint64_t sample) {
    if (count->sparse)
        *find_used(count, sample) = sample + 1;
    else
        count->used[sample / 64] |= UINT64_C(1) << sample % 64;
}

static enum ls_code pass_over(struct count *count, uint64_t sample, struct ls_error *error) {
    enum ls_code code =
        reserve((void **)&count->passed, count->passed_count, &count->passed_capacity, sizeof *count->passed, error);
    if (code != LS_OK) return code;
    count->passed[count->passed_count++] = sample;
    return LS_OK;
}

static enum ls_code count_draw(const struct ls_draw *draw, bool passed_over, struct count *count,
                               struct ls_ledger_use *use, int64_t step, struct ls_error *error) {
    if (draw->draw != use->draws || draw->epoch != use->draws / use->samples || is_used(count, draw->sample))
        return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                       "step %lld: sample %llu of source %u comes a second time in epoch %llu, or out of turn",
                       (long long)step, (unsigned long long)draw->sample, draw->source,
                       (unsigned long long)draw->epoch);
    use_sample(count, draw->sample);
    use->draws++;
    if (passed_over) {
        use->passed_over++;
        enum ls_code code = pass_over(count, draw->sample, error);
        if (code != LS_OK) return code;
    }
    if (++use->begun < use->samples) return LS_OK;
    use->begun = 0;
    memset(count->used, 0, count->words * sizeof *count->used);
    return LS_OK;
}

static void note_uses(struct ls_ledger_use *use, uint64_t uses) {
    if (uses < use->least) use->least = uses;
    if (uses > use->most) use->most = uses;
}

static int compare_samples(const void *left, const void *right) {
    const uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* How often a sample was used at least and at most: as often as it was drawn, less the times it was passed over. Those
 * that never were have had `whole` turns, and one more where the epoch that is begun has had them. */
static void find_extremes(struct count *count, struct ls_ledger_use *use) {
    const uint64_t whole = use->draws / use->samples;
    uint64_t begun = use->begun, waiting = use->samples - use->begun;
    use->least = UINT64_MAX;
    use->most = 0;
    if (count->passed_count > 0) qsort(count->passed, count->passed_count, sizeof *count->passed, compare_samples);
    for (size_t i = 0, next; i < count->passed_count; i = next) {
        const uint64_t sample = count->passed[i], extra = is_used(count, sample);
        for (next = i + 1; next < count->passed_count && count->passed[next] == sample;) next++;
        note_uses(use, whole + extra - (next - i));
        use->unused += whole + extra == next - i;
        *(extra ? &begun : &waiting) -= 1;
    }
    if (begun > 0) note_uses(use, whole + 1);
    if (waiting > 0) note_uses(use, whole);
}

/* The draws of positions [from, to), of step `step`. */
static enum ls_code count_draws(const struct ls_ledger *ledger, int64_t data_generation, const struct ls_order *order,
                                int64_t from, int64_t to, int64_t step, struct count *count, struct ls_ledger_use *use,
                                struct ls_error *error) {
    const struct ls_quarantine *quarantine = quarantine_of(ledger, data_generation);
    enum ls_code code = LS_OK;
    for (int64_t position = from; position < to && code == LS_OK; position++) {
        struct ls_draw draw = ls_order_at(order, (uint64_t)position);
        assert(count[draw.source].used);
        code = count_draw(&draw, ls_quarantine_has(quarantine, position), &count[draw.source], &use[draw.source], step,
                          error);
    }
    return code;
}

enum ls_code ls_ledger_count_use(const struct ls_ledger *ledger, int64_t data_generation, const struct ls_order *order,
                                 const uint64_t *samples, int sources, struct ls_ledger_use *use,
                                 struct ls_error *error) {
    struct count count[LS_ORDER_SOURCES_MAX] = {{.used = NULL}};
    uint64_t draws = 0; /* of all sources */
    enum ls_code code = LS_OK;
    for (size_t i = 0; i < ledger->lineage_count; i++)
        if (ledger->lineage[i].data_generation == data_generation) draws = (uint64_t)ledger->lineage[i].end_position;
    for (int i = 0; i < sources && code == LS_OK; i++) {
        use[i] = (struct ls_ledger_use){.samples = samples[i]};
        code = make_count(&count[i], samples[i], draws, error);
    }
    bool first = true;
    for (size_t i = 0; i < ledger->lineage_count && code == LS_OK; i++) {
        const struct ls_ledger_step *step = &ledger->lineage[i];
        if (step->data_generation != data_generation) continue;
        code = count_draws(ledger, data_generation, order, first ? 0 : step->position, step->end_position, step->step,
                           count, use, error);
        first = false;
    }
    for (int i = 0; i < sources; i++) {
        if (code == LS_OK) find_extremes(&count[i], &use[i]);
        free(count[i].used);
        free(count[i].passed);
    }
    return code;
}

enum ls_code ls_ledger_prove_samples(const struct ls_ledger *ledger, const struct ls_ledger_step *step,
                                     ls_ledger_sample *sample, void *context, struct ls_error *error) {
    struct ls_digest sum = {0, 0}, one;
    for (int64_t k = 0; k < step->sequences; k++) {
        enum ls_code code = sample(context, (uint64_t)ls_ledger_position(ledger, step, k), &one, error);
        if (code != LS_OK) return code;
        sum = ls_digest_add(sum, one);
    }
    if (same(sum, step->digest)) return LS_OK;
    char there[33], ours[33];
    ls_digest_format(step->digest, there);
    ls_digest_format(sum, ours);
    return ls_fail(error, LS_DATA, LS_SCOPE_JOB,
                   "step %lld of attempt %lld was not trained on the samples of the order: its digest in the journal "
                   "is %s, the tokens of positions %lld to %lld give %s. Have the data changed since ('lockstep data "
                   "verify PATH')? If not, a worker was fed other tokens, or a sample twice: 'lockstep blame RUN "
                   "--step %lld' lists what it should have had.",
                   (long long)step->step, (long long)step->attempt, there, (long long)step->position,
                   (long long)step->end_position - 1, ours, (long long)step->step);
}
