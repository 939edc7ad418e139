/* The journal: what was said to be durable is there after the process is gone, in order, and nobody else writes
 * meanwhile. */
#include "coordinator/journal.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sqlite3.h>

#include <cmocka.h>

static char folder[64], path[128];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/lockstep-journal-XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/journal.db", folder);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static struct ls_journal *open_journal(void) {
    struct ls_journal *journal;
    struct ls_error error;
    if (ls_journal_open(path, &journal, &error) != LS_OK) fail_msg("%s", error.text);
    return journal;
}

static struct ls_journal_entry step_entry(uint32_t attempt, uint32_t generation, int64_t step, uint64_t sequence) {
    struct ls_journal_entry entry = {
        .record = {.kind = LS_RECORD_STEP, .attempt = attempt, .generation = generation, .sequence = sequence}};
    entry.record.step = (struct ls_core_step){.step = step,
                                              .position = (step - 1) * 30,
                                              .sequences = 30,
                                              .targets = 900,
                                              .loss_sum = 0.1 * (double)step,
                                              .digest = {(uint64_t)step, 5},
                                              .chain = {7, UINT64_MAX - (uint64_t)step}};
    entry.report.loss = 2.5;
    return entry;
}

/* Records read back. */
struct seen {
    struct ls_core_record records[64];
    int count;
};

static enum ls_code take(void *context, const struct ls_core_record *record, struct ls_error *error) {
    (void)error;
    struct seen *seen = context;
    assert_true(seen->count < 64);
    seen->records[seen->count++] = *record;
    return LS_OK;
}

static void count_entry(void *context, const struct ls_journal_entry *entry) {
    (void)entry;
    ++*(int *)context;
}

/* What the observer was told, one letter an entry. */
static void spell_entry(void *context, const struct ls_journal_entry *entry) {
    char *told = context;
    if (entry->note) assert_string_equal(entry->note->fields, "{\"text\": \"hello\"}");
    strcat(told, entry->note ? entry->note->event : ls_core_record_name(entry->record.kind));
    strcat(told, " ");
}

static void wait_until_durable(struct ls_journal *journal, int wake, uint64_t wanted) {
    uint64_t sequence = 0, woken;
    char text[LS_WIRE_TEXT_BYTES];
    while (sequence < wanted) {
        assert_int_equal(read(wake, &woken, sizeof woken), sizeof woken);
        assert_true(ls_journal_durable(journal, &sequence, text));
    }
    assert_int_equal(sequence, wanted);
}

static void test_notes_are_told_in_their_place_and_not_kept(void **state) {
    (void)state;
    struct ls_journal *journal = open_journal();
    char told[200] = "";
    int wake = eventfd(0, 0);
    uint32_t generation;
    assert_int_equal(ls_journal_begin_generation(journal, 7, &generation, NULL), LS_OK);
    assert_int_equal(ls_journal_start(journal, generation, wake, spell_entry, told, NULL), LS_OK);
    struct ls_journal_entry stop = {
        .record = {.kind = LS_RECORD_STOP, .attempt = 7, .generation = generation, .sequence = 1}};
    ls_journal_tell(journal, 7, "before", "{\"text\": \"hello\"}");
    ls_journal_append(journal, &stop);
    ls_journal_tell(journal, 7, "after", "{\"text\": \"hello\"}");
    ls_journal_tell(journal, 7, "last", "{\"text\": \"hello\"}");
    wait_until_durable(journal, wake, 1);
    ls_journal_close(journal);
    assert_string_equal(told, "before stop after last ");
    static struct seen seen;
    seen.count = 0;
    journal = open_journal();
    assert_int_equal(ls_journal_read_records(journal, 7, take, &seen, NULL), LS_OK);
    assert_int_equal(seen.count, 1);
    ls_journal_close(journal);
    close(wake);
}

static void test_a_new_attempt_comes_with_its_record_and_history_has_what_matters(void **state) {
    (void)state;
    struct ls_journal *journal = open_journal();
    int observed = 0, wake = eventfd(0, 0);
    uint32_t generation;
    struct ls_journal_attempt first = {.attempt = 1, .world_size = 3}, found;
    assert_int_equal(ls_journal_begin_attempt(journal, &first, NULL), LS_OK);
    assert_int_equal(ls_journal_begin_generation(journal, 1, &generation, NULL), LS_OK);
    assert_int_equal(ls_journal_start(journal, generation, wake, count_entry, &observed, NULL), LS_OK);
    struct ls_journal_entry step = step_entry(1, generation, 1, 1);
    struct ls_journal_entry fault = {
        .record = {.kind = LS_RECORD_FAULT, .attempt = 1, .generation = generation, .sequence = 2}};
    struct ls_journal_entry begun = {
        .record = {.kind = LS_RECORD_ATTEMPT, .attempt = 2, .generation = generation, .sequence = 3}};
    begun.attempt = calloc(1, sizeof *begun.attempt);
    *begun.attempt = (struct ls_journal_attempt){.attempt = 2, .world_size = 2, .start_step = 7, .optimizer_steps = 6};
    struct ls_journal_entry second = step_entry(2, generation, 8, 4);
    ls_journal_append(journal, &step);
    ls_journal_append(journal, &fault);
    ls_journal_append(journal, &begun);
    ls_journal_append(journal, &second);
    wait_until_durable(journal, wake, 4);
    ls_journal_close(journal);
    journal = open_journal();
    assert_int_equal(ls_journal_last_attempt(journal, &found, NULL), LS_OK);
    assert_int_equal(found.attempt, 2);
    assert_int_equal(found.start_step, 7);
    assert_int_equal(found.optimizer_steps, 6);
    static struct seen seen;
    seen.count = 0;
    assert_int_equal(ls_journal_read_history(journal, 2, take, &seen, NULL), LS_OK);
    assert_int_equal(seen.count, 3); /* not the first attempt's step */
    assert_int_equal(seen.records[0].kind, LS_RECORD_FAULT);
    assert_int_equal(seen.records[1].kind, LS_RECORD_ATTEMPT);
    assert_int_equal(seen.records[2].step.step, 8);
    ls_journal_close(journal);
    close(wake);
}

static void test_every_kind_of_record_is_read_back(void **state) {
    (void)state;
    struct ls_journal *journal = open_journal();
    int observed = 0, wake = eventfd(0, 0);
    uint32_t generation;
    assert_int_equal(ls_journal_begin_generation(journal, 1, &generation, NULL), LS_OK);
    assert_int_equal(generation, 1);
    assert_int_equal(ls_journal_start(journal, generation, wake, count_entry, &observed, NULL), LS_OK);
    struct ls_journal_entry entries[LS_RECORD_KINDS];
    memset(entries, 0, sizeof entries);
    for (int kind = 0; kind < LS_RECORD_KINDS; kind++)
        entries[kind].record = (struct ls_core_record){
            .kind = (enum ls_core_record_kind)kind, .attempt = 1, .generation = 1, .sequence = (uint64_t)kind + 1};
    entries[LS_RECORD_JOINED].record.joined.world_size = 4;
    entries[LS_RECORD_STEP] = step_entry(1, 1, 12, LS_RECORD_STEP + 1);
    entries[LS_RECORD_STEP].record.step.skipped = true;
    entries[LS_RECORD_VALIDATION].record.validation.step = 12;
    entries[LS_RECORD_STOP].record.stop.code = LS_REQUEUE;
    entries[LS_RECORD_COMMIT].record.commit.step = 12;
    entries[LS_RECORD_COMMIT].record.commit.position = 360;
    entries[LS_RECORD_COMMIT].record.commit.chain = (struct ls_digest){1, 2};
    for (int i = 0; i < 2; i++) {
        struct ls_core_record *record = &entries[i ? LS_RECORD_END : LS_RECORD_FAULT].record;
        record->end.code = LS_DATA;
        record->end.rank = -1;
        record->end.step = 12;
        record->end.scope = LS_SCOPE_NODE;
        record->end.below_step = 9;
        record->end.restart = true;
        strcpy(record->end.host, "node-3");
        strcpy(record->end.text, "it's 'quoted'; DROP TABLE records");
    }
    entries[LS_RECORD_QUARANTINE].record.quarantine.step = 9;
    entries[LS_RECORD_QUARANTINE].record.quarantine.from = 240;
    entries[LS_RECORD_QUARANTINE].record.quarantine.to = 270;
    struct ls_core_record *begun = &entries[LS_RECORD_ATTEMPT].record;
    begun->attempt_begun.world_size = 3;
    begun->attempt_begun.restarts = 2;
    begun->attempt_begun.best_step = 10;
    begun->attempt_begun.start_step = 8;
    begun->attempt_begun.start_position = 210;
    begun->attempt_begun.start_chain = (struct ls_digest){3, 4};
    begun->attempt_begun.lost_steps = 4;
    begun->attempt_begun.hosts_forgiven = true;
    for (int kind = 0; kind < LS_RECORD_KINDS; kind++) ls_journal_append(journal, &entries[kind]);
    wait_until_durable(journal, wake, LS_RECORD_KINDS);
    ls_journal_close(journal);
    assert_int_equal(observed, LS_RECORD_KINDS);

    static struct seen seen;
    seen.count = 0;
    journal = open_journal();
    assert_int_equal(ls_journal_read_records(journal, 1, take, &seen, NULL), LS_OK);
    assert_int_equal(seen.count, LS_RECORD_KINDS);
    const struct ls_core_step *step = &seen.records[LS_RECORD_STEP].step;
    assert_int_equal(step->step, 12);
    assert_int_equal(step->position, 330);
    assert_int_equal(step->sequences, 30);
    assert_int_equal(step->targets, 900);
    assert_true(step->loss_sum == 0.1 * 12);
    assert_true(step->skipped);
    assert_true(step->digest.low == 12 && step->digest.high == 5);
    assert_true(step->chain.low == 7 && step->chain.high == UINT64_MAX - 12);
    assert_int_equal(seen.records[LS_RECORD_JOINED].joined.world_size, 4);
    assert_int_equal(seen.records[LS_RECORD_STOP].stop.code, LS_REQUEUE);
    assert_int_equal(seen.records[LS_RECORD_COMMIT].commit.position, 360);
    assert_true(seen.records[LS_RECORD_COMMIT].commit.chain.high == 2);
    assert_int_equal(seen.records[LS_RECORD_END].end.rank, -1);
    assert_string_equal(seen.records[LS_RECORD_END].end.text, "it's 'quoted'; DROP TABLE records");
    assert_int_equal(seen.records[LS_RECORD_FAULT].end.scope, LS_SCOPE_NODE);
    assert_int_equal(seen.records[LS_RECORD_FAULT].end.below_step, 9);
    assert_true(seen.records[LS_RECORD_FAULT].end.restart);
    assert_string_equal(seen.records[LS_RECORD_FAULT].end.host, "node-3");
    assert_int_equal(seen.records[LS_RECORD_QUARANTINE].quarantine.step, 9);
    assert_int_equal(seen.records[LS_RECORD_QUARANTINE].quarantine.from, 240);
    assert_int_equal(seen.records[LS_RECORD_QUARANTINE].quarantine.to, 270);
    begun = &seen.records[LS_RECORD_ATTEMPT];
    assert_int_equal(begun->attempt_begun.world_size, 3);
    assert_int_equal(begun->attempt_begun.restarts, 2);
    assert_int_equal(begun->attempt_begun.best_step, 10);
    assert_int_equal(begun->attempt_begun.start_step, 8);
    assert_int_equal(begun->attempt_begun.start_position, 210);
    assert_true(begun->attempt_begun.start_chain.high == 4);
    assert_int_equal(begun->attempt_begun.lost_steps, 4);
    assert_true(begun->attempt_begun.hosts_forgiven);
    seen.count = 0;
    assert_int_equal(ls_journal_read_records(journal, 2, take, &seen, NULL), LS_OK);
    assert_int_equal(seen.count, 0);
    struct ls_core_record last;
    assert_true(ls_journal_last_record(journal, LS_RECORD_STEP, &last));
    assert_int_equal(last.step.step, 12);
    ls_journal_close(journal);
    close(wake);
}

struct validations {
    int count;
    int64_t steps[8];
    double losses[8];
};

static void take_validation(void *context, int64_t step, double loss) {
    struct validations *seen = context;
    seen->steps[seen->count] = step;
    seen->losses[seen->count++] = loss;
}

static void test_history_and_the_newest_validations_are_found(void **state) {
    (void)state;
    struct ls_journal *journal = open_journal();
    int observed = 0, wake = eventfd(0, 0);
    uint32_t generation;
    double seconds = -1;
    int64_t faults = -1;
    struct validations seen = {0};
    assert_int_equal(ls_journal_history(journal, &seconds, &faults, NULL), LS_OK);
    assert_true(seconds == 0 && faults == 0);
    assert_int_equal(ls_journal_read_validations(journal, 1, 9, take_validation, &seen, NULL), LS_OK);
    assert_int_equal(seen.count, 0);
    assert_int_equal(ls_journal_begin_generation(journal, 1, &generation, NULL), LS_OK);
    assert_int_equal(ls_journal_start(journal, generation, wake, count_entry, &observed, NULL), LS_OK);
    struct ls_journal_entry entries[6];
    memset(entries, 0, sizeof entries);
    for (int i = 0; i < 5; i++) {
        entries[i].record = (struct ls_core_record){.kind = i < 3 ? LS_RECORD_VALIDATION : LS_RECORD_FAULT,
                                                    .attempt = i == 2 || i == 4 ? 2 : 1,
                                                    .generation = generation,
                                                    .sequence = (uint64_t)i + 1};
        if (i >= 3) continue;
        entries[i].record.validation.step = 10 * (i + 1);
        entries[i].loss = 1.5 * (i + 1);
    }
    entries[5].record = (struct ls_core_record){
        .kind = LS_RECORD_VALIDATION, .attempt = 3, .generation = generation, .sequence = 6, .validation.step = 40};
    entries[5].loss = NAN;
    for (int i = 0; i < 6; i++) ls_journal_append(journal, &entries[i]);
    wait_until_durable(journal, wake, 6);
    ls_journal_close(journal);
    journal = open_journal();
    assert_int_equal(ls_journal_read_validations(journal, 1, 9, take_validation, &seen, NULL), LS_OK);
    assert_int_equal(seen.count, 2);
    assert_true(seen.steps[0] == 10 && seen.losses[0] == 1.5 && seen.steps[1] == 20 && seen.losses[1] == 3.0);
    assert_int_equal(ls_journal_read_validations(journal, 1, 1, take_validation, &seen, NULL), LS_OK);
    assert_int_equal(seen.count, 3);
    assert_int_equal(seen.steps[2], 20);
    assert_int_equal(ls_journal_read_validations(journal, 2, 9, take_validation, &seen, NULL), LS_OK);
    assert_int_equal(seen.count, 4);
    assert_true(seen.steps[3] == 30 && seen.losses[3] == 4.5);
    /* A loss that is no number is none after a restart either: it must not become the lowest of all. */
    assert_int_equal(ls_journal_read_validations(journal, 3, 9, take_validation, &seen, NULL), LS_OK);
    assert_true(seen.count == 5 && seen.steps[4] == 40 && isnan(seen.losses[4]));
    assert_int_equal(ls_journal_history(journal, &seconds, &faults, NULL), LS_OK);
    assert_int_equal(faults, 2);
    assert_true(seconds >= 0 && seconds < 600);
    ls_journal_close(journal);
    close(wake);
}

/* The child is killed right after its journal said that 40 records are durable. */
static void test_durable_records_survive_a_kill(void **state) {
    (void)state;
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        struct ls_journal *journal = open_journal();
        int observed = 0, wake = eventfd(0, 0);
        if (ls_journal_start(journal, 1, wake, count_entry, &observed, NULL) != LS_OK) _exit(1);
        for (int i = 1; i <= 40; i++) {
            struct ls_journal_entry entry = step_entry(1, 1, i, (uint64_t)i);
            ls_journal_append(journal, &entry);
        }
        wait_until_durable(journal, wake, 40);
        if (write(ready[1], "x", 1) != 1) _exit(1);
        pause();
    }
    char byte;
    assert_int_equal(read(ready[0], &byte, 1), 1);
    /* As long as it lives, it alone has the journal. */
    struct ls_journal *journal;
    struct ls_error error;
    assert_int_equal(ls_journal_open_existing(path, &journal, &error), LS_CHECKPOINT);
    assert_non_null(strstr(error.text, "Another process"));
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    static struct seen seen;
    seen.count = 0;
    journal = open_journal();
    assert_int_equal(ls_journal_read_records(journal, 1, take, &seen, NULL), LS_OK);
    assert_int_equal(seen.count, 40);
    for (int i = 0; i < 40; i++) {
        assert_int_equal(seen.records[i].step.step, i + 1);
        assert_false(seen.records[i].step.skipped);
    }
    ls_journal_close(journal);
    close(ready[0]);
    close(ready[1]);
}

static enum ls_code note_start(void *starts, const struct ls_journal_attempt *attempt, struct ls_error *error) {
    (void)error;
    assert_in_range(attempt->attempt, 1, 2);
    ((int64_t *)starts)[attempt->attempt] = attempt->start_step;
    return LS_OK;
}

static enum ls_code refuse_attempt(void *context, const struct ls_journal_attempt *attempt, struct ls_error *error) {
    (void)context;
    assert_int_equal(attempt->attempt, 1); /* and none after it */
    return ls_fail(error, LS_DATA, LS_SCOPE_CALL, "no");
}

static void test_attempts_and_generations_count_up(void **state) {
    (void)state;
    struct ls_journal *journal = open_journal();
    struct ls_journal_attempt attempt, found;
    uint32_t first, second;
    assert_int_equal(ls_journal_last_attempt(journal, &found, NULL), LS_OK);
    assert_int_equal(found.attempt, 0);
    memset(&attempt, 0, sizeof attempt);
    attempt = (struct ls_journal_attempt){.attempt = 1,
                                          .world_size = 3,
                                          .start_step = 200,
                                          .start_position = 6000,
                                          .optimizer_steps = 199,
                                          .tokens = 1 << 20,
                                          .start_chain = {3, 4}};
    strcpy(attempt.checkpoint, "/runs/a/checkpoints/step-00000200");
    strcpy(attempt.parent_manifest, "0123456789abcdef0123456789abcdef");
    assert_int_equal(ls_journal_begin_attempt(journal, &attempt, NULL), LS_OK);
    assert_int_equal(ls_journal_begin_generation(journal, 1, &first, NULL), LS_OK);
    ls_journal_close(journal);
    journal = open_journal();
    assert_int_equal(ls_journal_last_attempt(journal, &found, NULL), LS_OK);
    assert_int_equal(found.attempt, 1);
    assert_int_equal(found.world_size, 3);
    assert_int_equal(found.start_step, 200);
    assert_int_equal(found.start_position, 6000);
    assert_int_equal(found.optimizer_steps, 199);
    assert_int_equal(found.tokens, 1 << 20);
    assert_true(found.start_chain.low == 3 && found.start_chain.high == 4);
    assert_string_equal(found.checkpoint, attempt.checkpoint);
    assert_string_equal(found.parent_manifest, attempt.parent_manifest);
    /* All of them, by number. */
    struct ls_journal_attempt later = {.attempt = 2, .world_size = 1, .start_step = 300};
    int64_t starts[3] = {0};
    assert_int_equal(ls_journal_begin_attempt(journal, &later, NULL), LS_OK);
    assert_int_equal(ls_journal_read_attempts(journal, note_start, starts, NULL), LS_OK);
    assert_int_equal(starts[1], 200);
    assert_int_equal(starts[2], 300);
    assert_int_equal(ls_journal_read_attempts(journal, refuse_attempt, NULL, NULL), LS_DATA);
    assert_int_equal(ls_journal_begin_generation(journal, 1, &second, NULL), LS_OK);
    assert_int_equal(second, first + 1);
    /* The same attempt cannot begin twice. */
    assert_int_equal(ls_journal_begin_attempt(journal, &attempt, NULL), LS_CHECKPOINT);
    ls_journal_close(journal);
}

/* What was read of the generations of the data. */
struct generations {
    int count;
    struct ls_journal_data_generation last;
    char sources[64], config[64];
};

static enum ls_code note_generation(void *context, const struct ls_journal_data_generation *generation,
                                    struct ls_error *error) {
    struct generations *seen = context;
    (void)error;
    seen->count++;
    seen->last = *generation;
    snprintf(seen->sources, sizeof seen->sources, "%s", generation->sources);
    snprintf(seen->config, sizeof seen->config, "%s", generation->config);
    return LS_OK;
}

static void test_generations_of_the_data_and_what_was_inherited_are_kept(void **state) {
    (void)state;
    struct ls_journal *journal = open_journal();
    struct ls_journal_attempt found, attempt = {.attempt = 1,
                                                .world_size = 2,
                                                .start_step = 20,
                                                .data_generation = 2,
                                                .generation_step = 20,
                                                .samples = 160};
    struct ls_journal_data_generation generation = {
        .number = 2, .first_attempt = 1, .start_step = 20, .sources = "first", .config = "name: a"};
    const struct ls_quarantine quarantine = {2, {{8, 16}, {40, 48}}};
    strcpy(generation.train_digest, "0123456789abcdef0123456789abcdef");
    assert_int_equal(ls_journal_begin_attempt(journal, &attempt, NULL), LS_OK);
    assert_int_equal(ls_journal_write_data_generation(journal, &generation, NULL), LS_OK);
    generation.sources = "second";
    assert_int_equal(ls_journal_write_data_generation(journal, &generation, NULL), LS_OK);
    /* Written twice, as by a start that was cut short, it is there once. */
    assert_int_equal(ls_journal_inherit(journal, 2, &quarantine, NULL), LS_OK);
    assert_int_equal(ls_journal_inherit(journal, 2, &quarantine, NULL), LS_OK);
    ls_journal_close(journal);
    journal = open_journal();
    assert_int_equal(ls_journal_last_attempt(journal, &found, NULL), LS_OK);
    assert_int_equal(found.data_generation, 2);
    assert_int_equal(found.generation_step, 20);
    assert_int_equal(found.samples, 160);
    struct generations seen = {.count = 0};
    assert_int_equal(ls_journal_read_data_generations(journal, note_generation, &seen, NULL), LS_OK);
    assert_int_equal(seen.count, 1);
    assert_int_equal(seen.last.number, 2);
    assert_int_equal(seen.last.first_attempt, 1);
    assert_int_equal(seen.last.start_step, 20);
    assert_string_equal(seen.last.train_digest, generation.train_digest);
    assert_string_equal(seen.sources, "second");
    assert_string_equal(seen.config, "name: a");
    static struct seen records;
    records.count = 0;
    assert_int_equal(ls_journal_read_history(journal, 1, take, &records, NULL), LS_OK);
    assert_int_equal(records.count, 2);
    assert_int_equal(records.records[1].kind, LS_RECORD_QUARANTINE);
    assert_int_equal(records.records[1].attempt, 0);
    assert_int_equal(records.records[1].quarantine.from, 40);
    assert_int_equal(records.records[1].quarantine.to, 48);
    assert_int_equal(records.records[1].quarantine.data_generation, 2);
    ls_journal_close(journal);
}

/* A journal of format 2 had neither the columns nor the table. */
static void test_a_journal_of_the_format_before_is_taken_on(void **state) {
    (void)state;
    static const char downgrade[] = "ALTER TABLE attempts DROP COLUMN data_generation;"
                                    "ALTER TABLE attempts DROP COLUMN generation_step;"
                                    "ALTER TABLE attempts DROP COLUMN samples;"
                                    "ALTER TABLE records DROP COLUMN data_generation;"
                                    "DROP TABLE data_generations; UPDATE meta SET value='2' WHERE key='schema';";
    struct ls_journal_attempt found, attempt = {.attempt = 1, .world_size = 2, .start_step = 20, .start_position = 160};
    const struct ls_quarantine quarantine = {1, {{8, 16}}};
    struct ls_journal *journal = open_journal();
    assert_int_equal(ls_journal_begin_attempt(journal, &attempt, NULL), LS_OK);
    assert_int_equal(ls_journal_inherit(journal, 9, &quarantine, NULL), LS_OK);
    ls_journal_close(journal);
    for (int existing = 0; existing < 2; existing++) {
        sqlite3 *database;
        assert_int_equal(sqlite3_open(path, &database), SQLITE_OK);
        assert_int_equal(sqlite3_exec(database, downgrade, NULL, NULL, NULL), SQLITE_OK);
        sqlite3_close(database);
        struct ls_error error = {.text = ""};
        if ((existing ? ls_journal_open_existing : ls_journal_open)(path, &journal, &error) != LS_OK)
            fail_msg("%s", error.text);
        assert_int_equal(ls_journal_last_attempt(journal, &found, NULL), LS_OK);
        assert_int_equal(found.start_position, 160);
        assert_int_equal(found.data_generation, 1);
        assert_int_equal(found.generation_step, 0);
        assert_int_equal(found.samples, 160);
        static struct seen records;
        records.count = 0;
        assert_int_equal(ls_journal_read_records(journal, 0, take, &records, NULL), LS_OK);
        assert_int_equal(records.records[0].quarantine.data_generation, 1);
        struct generations seen = {.count = 0};
        assert_int_equal(ls_journal_read_data_generations(journal, note_generation, &seen, NULL), LS_OK);
        assert_int_equal(seen.count, 0);
        ls_journal_close(journal);
    }
}

static void test_a_foreign_or_later_file_is_refused(void **state) {
    (void)state;
    struct ls_journal *journal;
    struct ls_error error;
    FILE *file = fopen(path, "w");
    fputs("this is no database, and long enough to be sure of it: ", file);
    for (int i = 0; i < 100; i++) fputs("0123456789", file);
    fclose(file);
    assert_int_equal(ls_journal_open(path, &journal, &error), LS_CHECKPOINT);
    assert_non_null(strstr(error.text, "damaged"));
    remove(path);
    journal = open_journal();
    assert_int_equal(ls_journal_write_meta(journal, "schema", "99", NULL), LS_OK);
    ls_journal_close(journal);
    assert_int_equal(ls_journal_open(path, &journal, &error), LS_CHECKPOINT);
    assert_non_null(strstr(error.text, "format 99"));
    assert_int_equal(ls_journal_open_existing("/nowhere/journal.db", &journal, &error), LS_CHECKPOINT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_notes_are_told_in_their_place_and_not_kept, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_a_new_attempt_comes_with_its_record_and_history_has_what_matters,
                                        make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_every_kind_of_record_is_read_back, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_history_and_the_newest_validations_are_found, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_durable_records_survive_a_kill, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_attempts_and_generations_count_up, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_generations_of_the_data_and_what_was_inherited_are_kept, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(test_a_journal_of_the_format_before_is_taken_on, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_a_foreign_or_later_file_is_refused, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
