/* The journal: opening, its records, and the thread that writes them. */
#define _GNU_SOURCE
#include "coordinator/journal_state.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { QUEUE_MAX = 4096, SCHEMA_VERSION = 3 };

static const char schema[] =
    "CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS attempts(attempt INTEGER PRIMARY KEY, world_size INTEGER, start_step INTEGER,"
    " start_position INTEGER, optimizer_steps INTEGER, tokens INTEGER, start_chain TEXT, checkpoint TEXT,"
    " parent_manifest TEXT, started_at REAL, data_generation INTEGER DEFAULT 1, generation_step INTEGER DEFAULT 0,"
    " samples INTEGER);"
    "CREATE TABLE IF NOT EXISTS data_generations(data_generation INTEGER PRIMARY KEY, first_attempt INTEGER,"
    " start_step INTEGER, train_digest TEXT, sources TEXT, config TEXT, started_at REAL);"
    "CREATE TABLE IF NOT EXISTS shapes(first_attempt INTEGER PRIMARY KEY, global_batch INTEGER, steps INTEGER,"
    " end_position INTEGER, config_digest TEXT, accepted TEXT);"
    "CREATE TABLE IF NOT EXISTS generations(generation INTEGER PRIMARY KEY, attempt INTEGER, host TEXT,"
    " pid INTEGER, started_at REAL);"
    "CREATE TABLE IF NOT EXISTS records(id INTEGER PRIMARY KEY, attempt INTEGER, generation INTEGER,"
    " sequence INTEGER, kind TEXT, step INTEGER, position INTEGER, sequences INTEGER, targets INTEGER,"
    " loss_sum REAL, loss REAL, bits_per_byte REAL, digest TEXT, chain TEXT, world_size INTEGER,"
    " code INTEGER, rank INTEGER, text TEXT, at REAL, scope INTEGER, host TEXT, restarts INTEGER, below_step INTEGER,"
    " lost_steps INTEGER, hosts_forgiven INTEGER, data_generation INTEGER, UNIQUE(generation, sequence));"
    "CREATE INDEX IF NOT EXISTS records_of_step ON records(attempt, kind, step);";

/* From format 2, which knew one generation of the data. */
static const char upgrade[] = "ALTER TABLE attempts ADD COLUMN data_generation INTEGER DEFAULT 1;"
                              "ALTER TABLE attempts ADD COLUMN generation_step INTEGER DEFAULT 0;"
                              "ALTER TABLE attempts ADD COLUMN samples INTEGER;"
                              "ALTER TABLE records ADD COLUMN data_generation INTEGER DEFAULT 1;";

static enum ls_code execute(struct ls_journal *journal, const char *sql, struct ls_error *error) {
    return sqlite3_exec(journal->database, sql, NULL, NULL, NULL) == SQLITE_OK ? LS_OK : journal_failed(journal, error);
}

/* ---- opening ---- */

static enum ls_code check_schema(struct ls_journal *journal, struct ls_error *error) {
    char version[16], ours[16];
    enum ls_code code = ls_journal_read_meta(journal, "schema", version, sizeof version, error);
    if (code != LS_OK) return code;
    snprintf(ours, sizeof ours, "%d", SCHEMA_VERSION);
    if (!version[0]) return ls_journal_write_meta(journal, "schema", ours, error);
    if (strcmp(version, ours) == 0) return LS_OK;
    if (strcmp(version, "2") == 0) {
        code = execute(journal, schema, error);
        if (code == LS_OK) code = execute(journal, upgrade, error);
        return code == LS_OK ? ls_journal_write_meta(journal, "schema", ours, error) : code;
    }
    return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                   "the journal %s has format %s, this program reads %d. Use the version of lockstep that wrote it.",
                   journal->path, version, SCHEMA_VERSION);
}

static struct ls_journal *create(const char *path) {
    struct ls_journal *journal = calloc(1, sizeof *journal);
    if (!journal) return NULL;
    snprintf(journal->path, sizeof journal->path, "%s", path);
    pthread_mutex_init(&journal->mutex, NULL);
    pthread_cond_init(&journal->changed, NULL);
    journal->wake = -1;
    return journal;
}

enum ls_code ls_journal_open(const char *path, struct ls_journal **result, struct ls_error *error) {
    struct ls_journal *journal = create(path);
    if (!journal) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for the journal");
    enum ls_code code = LS_OK;
    if (sqlite3_open_v2(path, &journal->database, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL) != SQLITE_OK)
        code = journal_failed(journal, error);
    sqlite3_busy_timeout(journal->database, 2000);
    if (code == LS_OK)
        code =
            execute(journal, "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;", error);
    if (code == LS_OK) code = execute(journal, "BEGIN IMMEDIATE", error);
    if (code == LS_OK) code = execute(journal, schema, error);
    if (code == LS_OK) code = check_schema(journal, error);
    if (code == LS_OK) code = execute(journal, "COMMIT", error);
    if (code != LS_OK) {
        ls_journal_close(journal);
        return code;
    }
    *result = journal;
    return LS_OK;
}

/* An archived run, or another user's: reading a journal as SQLite does takes a lock and a WAL, which are written. */
static bool is_read_only(const char *path) {
    char folder[JOURNAL_PATH_BYTES];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash) *slash = 0;
    return access(path, R_OK) == 0 && (access(path, W_OK) || access(slash ? folder : ".", W_OK));
}

/* Nobody has it, so it is read as what does not change. */
static enum ls_code open_unchanging(struct ls_journal *journal, struct ls_error *error) {
    char uri[3 * JOURNAL_PATH_BYTES + 32] = "file:", file[JOURNAL_PATH_BYTES + 8];
    struct stat status;
    snprintf(file, sizeof file, "%s-wal", journal->path);
    if (stat(file, &status) == 0 && status.st_size > 0)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                       "the journal %s may not be written by this user or here, and %s holds what a killed run had not "
                       "put into it yet. Ask as the run's owner, or copy the run directory and ask the copy.",
                       journal->path, file);
    size_t used = strlen(uri);
    for (const char *at = journal->path; *at; at++)
        used += (size_t)snprintf(uri + used, sizeof uri - used, strchr("%?#", *at) ? "%%%02X" : "%c", *at);
    snprintf(uri + used, sizeof uri - used, "?immutable=1");
    const int flags = SQLITE_OPEN_READONLY | SQLITE_OPEN_URI;
    return sqlite3_open_v2(uri, &journal->database, flags, NULL) == SQLITE_OK ? LS_OK : journal_failed(journal, error);
}

enum ls_code ls_journal_open_existing(const char *path, struct ls_journal **result, struct ls_error *error) {
    struct ls_journal *journal = create(path);
    if (!journal) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for the journal");
    enum ls_code code = LS_OK;
    if (is_read_only(path)) code = open_unchanging(journal, error);
    /* Read-write without creating: a WAL that a crash left behind has to be read too. */
    else if (sqlite3_open_v2(path, &journal->database, SQLITE_OPEN_READWRITE, NULL) != SQLITE_OK)
        code = journal_failed(journal, error);
    if (code == LS_OK) code = execute(journal, "PRAGMA locking_mode=EXCLUSIVE; BEGIN", error);
    if (code == LS_OK) code = check_schema(journal, error);
    if (code == LS_OK) code = execute(journal, "COMMIT", error);
    if (code != LS_OK) {
        ls_journal_close(journal);
        return code;
    }
    *result = journal;
    return LS_OK;
}

/* The sequence of the last record among entries [from, to), `before` when there are only notes, which are freed. */
static uint64_t finish_batch(struct ls_journal *journal, uint64_t from, uint64_t to, uint64_t before) {
    for (uint64_t i = from; i < to; i++) {
        struct ls_journal_entry *entry = &journal->queue[i % QUEUE_MAX];
        if (!entry->note) before = entry->record.sequence;
        free(entry->note);
        free(entry->attempt);
        entry->note = NULL;
        entry->attempt = NULL;
    }
    return before;
}

void ls_journal_close(struct ls_journal *journal) {
    if (!journal) return;
    if (journal->thread_runs) {
        pthread_mutex_lock(&journal->mutex);
        journal->closing = true;
        pthread_cond_broadcast(&journal->changed);
        pthread_mutex_unlock(&journal->mutex);
        pthread_join(journal->thread, NULL);
    }
    if (journal->queue) finish_batch(journal, journal->head, journal->tail, 0);
    sqlite3_finalize(journal->insert);
    sqlite3_close(journal->database);
    pthread_cond_destroy(&journal->changed);
    pthread_mutex_destroy(&journal->mutex);
    free(journal->queue);
    free(journal);
}

/* ---- records ---- */

#define RECORD_COLUMNS                                                                                                 \
    "attempt, generation, sequence, kind, step, position, sequences, targets, loss_sum, digest, chain, world_size, "   \
    "code, rank, text, scope, host, restarts, below_step, lost_steps, hosts_forgiven, data_generation"

static bool record_from_row(sqlite3_stmt *row, struct ls_core_record *record) {
    memset(record, 0, sizeof *record);
    const char *kind = (const char *)sqlite3_column_text(row, 3);
    for (record->kind = 0; record->kind < LS_RECORD_KINDS; record->kind++)
        if (kind && strcmp(kind, ls_core_record_name(record->kind)) == 0) break;
    record->attempt = (uint32_t)sqlite3_column_int64(row, 0);
    record->generation = (uint32_t)sqlite3_column_int64(row, 1);
    record->sequence = (uint64_t)sqlite3_column_int64(row, 2);
    switch (record->kind) {
    case LS_RECORD_JOINED: record->joined.world_size = sqlite3_column_int(row, 11); return true;
    case LS_RECORD_STEP:
        record->step.step = sqlite3_column_int64(row, 4);
        record->step.position = sqlite3_column_int64(row, 5);
        record->step.sequences = sqlite3_column_int64(row, 6);
        record->step.targets = sqlite3_column_int64(row, 7);
        record->step.loss_sum = sqlite3_column_double(row, 8);
        record->step.digest = journal_digest_column(row, 9);
        record->step.chain = journal_digest_column(row, 10);
        record->step.skipped = sqlite3_column_type(row, 14) != SQLITE_NULL;
        return true;
    case LS_RECORD_VALIDATION: record->validation.step = sqlite3_column_int64(row, 4); return true;
    case LS_RECORD_STOP: record->stop.code = (enum ls_code)sqlite3_column_int(row, 12); return true;
    case LS_RECORD_COMMIT:
        record->commit.step = sqlite3_column_int64(row, 4);
        record->commit.position = sqlite3_column_int64(row, 5);
        record->commit.chain = journal_digest_column(row, 10);
        return true;
    case LS_RECORD_FAULT:
    case LS_RECORD_END:
        record->end.code = (enum ls_code)sqlite3_column_int(row, 12);
        record->end.rank = sqlite3_column_int(row, 13);
        record->end.step = sqlite3_column_int64(row, 4);
        journal_copy_column(row, 14, record->end.text, sizeof record->end.text);
        record->end.scope = (enum ls_scope)sqlite3_column_int(row, 15);
        journal_copy_column(row, 16, record->end.host, sizeof record->end.host);
        record->end.restart = sqlite3_column_int(row, 17) != 0;
        record->end.below_step = sqlite3_column_int64(row, 18);
        return true;
    case LS_RECORD_QUARANTINE:
        record->quarantine.step = sqlite3_column_int64(row, 4);
        record->quarantine.from = sqlite3_column_int64(row, 5);
        record->quarantine.to = record->quarantine.from + sqlite3_column_int64(row, 6);
        record->quarantine.data_generation = sqlite3_column_int64(row, 21);
        return true;
    case LS_RECORD_ATTEMPT:
        record->attempt_begun.start_step = sqlite3_column_int64(row, 4);
        record->attempt_begun.start_position = sqlite3_column_int64(row, 5);
        record->attempt_begun.start_chain = journal_digest_column(row, 10);
        record->attempt_begun.world_size = sqlite3_column_int(row, 11);
        record->attempt_begun.restarts = sqlite3_column_int(row, 17);
        record->attempt_begun.best_step = sqlite3_column_int64(row, 18);
        record->attempt_begun.lost_steps = sqlite3_column_int64(row, 19);
        record->attempt_begun.hosts_forgiven = sqlite3_column_int(row, 20) != 0;
        return true;
    case LS_RECORD_KINDS: return false; /* of a later version */
    }
    return false;
}

/* Hands in the records that a query finds for `attempt`, its one parameter. */
static enum ls_code read_records(struct ls_journal *journal, const char *query, int64_t attempt, ls_journal_take *take,
                                 void *context, struct ls_error *error) {
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(journal->database, query, -1, &statement, NULL) != SQLITE_OK)
        return journal_failed(journal, error);
    sqlite3_bind_int64(statement, 1, attempt);
    enum ls_code code = LS_OK;
    int row = SQLITE_DONE;
    struct ls_core_record record;
    while (code == LS_OK && (row = sqlite3_step(statement)) == SQLITE_ROW)
        if (record_from_row(statement, &record)) code = take(context, &record, error);
    if (code == LS_OK && row != SQLITE_DONE) code = journal_failed(journal, error);
    sqlite3_finalize(statement);
    return code;
}

enum ls_code ls_journal_read_records(struct ls_journal *journal, int64_t attempt, ls_journal_take *take, void *context,
                                     struct ls_error *error) {
    return read_records(journal, "SELECT " RECORD_COLUMNS " FROM records WHERE attempt=? ORDER BY id", attempt, take,
                        context, error);
}

enum ls_code ls_journal_read_history(struct ls_journal *journal, int64_t attempt, ls_journal_take *take, void *context,
                                     struct ls_error *error) {
    return read_records(journal,
                        "SELECT " RECORD_COLUMNS " FROM records WHERE attempt=?1 OR (attempt<?1 AND kind NOT IN"
                        " ('step', 'validation')) ORDER BY id",
                        attempt, take, context, error);
}

bool ls_journal_last_record(struct ls_journal *journal, enum ls_core_record_kind kind, struct ls_core_record *record) {
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(journal->database,
                           "SELECT " RECORD_COLUMNS " FROM records WHERE kind=? ORDER BY id DESC LIMIT 1", -1,
                           &statement, NULL) != SQLITE_OK)
        return false;
    sqlite3_bind_text(statement, 1, ls_core_record_name(kind), -1, SQLITE_STATIC);
    bool found = sqlite3_step(statement) == SQLITE_ROW && record_from_row(statement, record);
    sqlite3_finalize(statement);
    return found;
}

/* Prepares `sql` with up to one parameter and steps to its row; the caller finalises *statement. */
static enum ls_code first_row(struct ls_journal *journal, const char *sql, int64_t parameter, sqlite3_stmt **statement,
                              bool *found, struct ls_error *error) {
    if (sqlite3_prepare_v2(journal->database, sql, -1, statement, NULL) != SQLITE_OK)
        return journal_failed(journal, error);
    if (sqlite3_bind_parameter_count(*statement) > 0) sqlite3_bind_int64(*statement, 1, parameter);
    const int got = sqlite3_step(*statement);
    *found = got == SQLITE_ROW;
    return got == SQLITE_ROW || got == SQLITE_DONE ? LS_OK : journal_failed(journal, error);
}

enum ls_code ls_journal_history(struct ls_journal *journal, double *seconds, int64_t *faults, struct ls_error *error) {
    sqlite3_stmt *statement = NULL;
    bool found = false;
    enum ls_code code = first_row(journal,
                                  "SELECT (SELECT TOTAL(span) FROM (SELECT MAX(at) - MIN(at) AS span FROM records"
                                  " GROUP BY attempt)), (SELECT COUNT(*) FROM records WHERE kind='fault')",
                                  0, &statement, &found, error);
    *seconds = found ? sqlite3_column_double(statement, 0) : 0;
    *faults = found ? sqlite3_column_int64(statement, 1) : 0;
    sqlite3_finalize(statement);
    return code;
}

enum ls_code ls_journal_read_validations(struct ls_journal *journal, int64_t attempt, int64_t most,
                                         ls_journal_take_validation *take, void *context, struct ls_error *error) {
    sqlite3_stmt *row;
    if (sqlite3_prepare_v2(journal->database,
                           "SELECT step, loss FROM (SELECT id, step, loss FROM records WHERE attempt=? AND"
                           " kind='validation' ORDER BY id DESC LIMIT ?) ORDER BY id",
                           -1, &row, NULL) != SQLITE_OK)
        return journal_failed(journal, error);
    sqlite3_bind_int64(row, 1, attempt);
    sqlite3_bind_int64(row, 2, most);
    int got;
    while ((got = sqlite3_step(row)) == SQLITE_ROW) {
        /* SQLite keeps what is no number as NULL. */
        const bool number = sqlite3_column_type(row, 1) != SQLITE_NULL;
        take(context, sqlite3_column_int64(row, 0), number ? sqlite3_column_double(row, 1) : NAN);
    }
    enum ls_code code = got == SQLITE_DONE ? LS_OK : journal_failed(journal, error);
    sqlite3_finalize(row);
    return code;
}

/* ---- the thread ---- */

/* Columns of `insert`, from 1 on. */
enum {
    ATTEMPT = 1,
    GENERATION,
    SEQUENCE,
    KIND,
    STEP,
    POSITION,
    SEQUENCES,
    TARGETS,
    LOSS_SUM,
    LOSS,
    BITS,
    DIGEST,
    CHAIN,
    WORLD,
    CODE,
    RANK,
    TEXT,
    AT,
    SCOPE,
    HOST,
    RESTARTS,
    BELOW_STEP,
    LOST_STEPS,
    HOSTS_FORGIVEN,
    DATA_GENERATION
};

static const char insert[] =
    "INSERT INTO records(attempt, generation, sequence, kind, step, position, sequences, targets, loss_sum,"
    " loss, bits_per_byte, digest, chain, world_size, code, rank, text, at, scope, host, restarts, below_step,"
    " lost_steps, hosts_forgiven, data_generation)"
    " VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)";

static void bind_digest(sqlite3_stmt *statement, int column, struct ls_digest digest) {
    char hex[33];
    ls_digest_format(digest, hex);
    sqlite3_bind_text(statement, column, hex, -1, SQLITE_TRANSIENT);
}

/* Fills in the row of a record and runs it. */
static bool insert_entry(sqlite3_stmt *row, const struct ls_journal_entry *entry) {
    const struct ls_core_record *record = &entry->record;
    sqlite3_reset(row);
    sqlite3_clear_bindings(row);
    sqlite3_bind_int64(row, ATTEMPT, record->attempt);
    sqlite3_bind_int64(row, GENERATION, record->generation);
    sqlite3_bind_int64(row, SEQUENCE, (int64_t)record->sequence);
    sqlite3_bind_text(row, KIND, ls_core_record_name(record->kind), -1, SQLITE_STATIC);
    sqlite3_bind_double(row, AT, journal_now_seconds());
    switch (record->kind) {
    case LS_RECORD_JOINED: sqlite3_bind_int(row, WORLD, record->joined.world_size); break;
    case LS_RECORD_STEP:
        sqlite3_bind_int64(row, STEP, record->step.step);
        sqlite3_bind_int64(row, POSITION, record->step.position);
        sqlite3_bind_int64(row, SEQUENCES, record->step.sequences);
        sqlite3_bind_int64(row, TARGETS, record->step.targets);
        sqlite3_bind_double(row, LOSS_SUM, record->step.loss_sum);
        sqlite3_bind_double(row, LOSS, entry->report.loss);
        bind_digest(row, DIGEST, record->step.digest);
        bind_digest(row, CHAIN, record->step.chain);
        if (record->step.skipped) sqlite3_bind_text(row, TEXT, "skipped: gradient not finite", -1, SQLITE_STATIC);
        break;
    case LS_RECORD_VALIDATION:
        sqlite3_bind_int64(row, STEP, record->validation.step);
        sqlite3_bind_double(row, LOSS, entry->loss);
        sqlite3_bind_double(row, BITS, entry->bits_per_byte);
        break;
    case LS_RECORD_STOP: sqlite3_bind_int(row, CODE, (int)record->stop.code); break;
    case LS_RECORD_COMMIT:
        sqlite3_bind_int64(row, STEP, record->commit.step);
        sqlite3_bind_int64(row, POSITION, record->commit.position);
        bind_digest(row, CHAIN, record->commit.chain);
        break;
    case LS_RECORD_FAULT:
    case LS_RECORD_END:
        sqlite3_bind_int64(row, STEP, record->end.step);
        sqlite3_bind_int(row, CODE, (int)record->end.code);
        sqlite3_bind_int(row, RANK, record->end.rank);
        sqlite3_bind_text(row, TEXT, record->end.text, -1, SQLITE_TRANSIENT);
        sqlite3_bind_int(row, SCOPE, (int)record->end.scope);
        sqlite3_bind_text(row, HOST, record->end.host, -1, SQLITE_TRANSIENT);
        sqlite3_bind_int(row, RESTARTS, record->end.restart);
        sqlite3_bind_int64(row, BELOW_STEP, record->end.below_step);
        break;
    case LS_RECORD_QUARANTINE:
        sqlite3_bind_int64(row, STEP, record->quarantine.step);
        sqlite3_bind_int64(row, POSITION, record->quarantine.from);
        sqlite3_bind_int64(row, SEQUENCES, record->quarantine.to - record->quarantine.from);
        sqlite3_bind_int64(row, DATA_GENERATION, record->quarantine.data_generation);
        break;
    case LS_RECORD_ATTEMPT:
        sqlite3_bind_int64(row, STEP, record->attempt_begun.start_step);
        sqlite3_bind_int64(row, POSITION, record->attempt_begun.start_position);
        bind_digest(row, CHAIN, record->attempt_begun.start_chain);
        sqlite3_bind_int(row, WORLD, record->attempt_begun.world_size);
        sqlite3_bind_int(row, RESTARTS, record->attempt_begun.restarts);
        sqlite3_bind_int64(row, BELOW_STEP, record->attempt_begun.best_step);
        sqlite3_bind_int64(row, LOST_STEPS, record->attempt_begun.lost_steps);
        sqlite3_bind_int(row, HOSTS_FORGIVEN, record->attempt_begun.hosts_forgiven);
        break;
    case LS_RECORD_KINDS: break;
    }
    return sqlite3_step(row) == SQLITE_DONE;
}

/* Writes entries [from, to) in one transaction; the slots are not touched by others meanwhile. */
static enum ls_code write_batch(struct ls_journal *journal, uint64_t from, uint64_t to, struct ls_error *error) {
    enum ls_code code = execute(journal, "BEGIN", error);
    for (uint64_t i = from; code == LS_OK && i < to; i++) {
        const struct ls_journal_entry *entry = &journal->queue[i % QUEUE_MAX];
        if (entry->attempt) code = ls_journal_begin_attempt(journal, entry->attempt, error);
        if (code == LS_OK && !entry->note && !insert_entry(journal->insert, entry))
            code = journal_failed(journal, error);
    }
    sqlite3_reset(journal->insert);
    for (uint64_t i = from; code == LS_OK && i < to; i++)
        journal->observe(journal->context, &journal->queue[i % QUEUE_MAX]);
    if (code == LS_OK) code = execute(journal, "COMMIT", error);
    if (code != LS_OK) sqlite3_exec(journal->database, "ROLLBACK", NULL, NULL, NULL);
    return code;
}

enum ls_code ls_journal_inherit(struct ls_journal *journal, int64_t data_generation,
                                const struct ls_quarantine *quarantine, struct ls_error *error) {
    sqlite3_stmt *row;
    if (sqlite3_prepare_v2(journal->database, insert, -1, &row, NULL) != SQLITE_OK)
        return journal_failed(journal, error);
    enum ls_code code = execute(journal, "DELETE FROM records WHERE attempt=0", error);
    for (int32_t i = 0; i < quarantine->count && code == LS_OK; i++) {
        struct ls_journal_entry entry = {.record = {.kind = LS_RECORD_QUARANTINE, .sequence = (uint64_t)i + 1}};
        entry.record.quarantine.from = quarantine->ranges[i].from;
        entry.record.quarantine.to = quarantine->ranges[i].to;
        entry.record.quarantine.data_generation = data_generation;
        if (!insert_entry(row, &entry)) code = journal_failed(journal, error);
    }
    sqlite3_finalize(row);
    return code;
}

enum ls_code ls_journal_complete(struct ls_journal *journal, int64_t attempt, int64_t step, const char *text,
                                 struct ls_error *error) {
    struct ls_journal_entry entry = {
        .record = {
            .kind = LS_RECORD_END, .attempt = (uint32_t)attempt, .sequence = 1, .end = {.rank = -1, .step = step}}};
    snprintf(entry.record.end.text, sizeof entry.record.end.text, "%s", text);
    enum ls_code code = ls_journal_begin_generation(journal, attempt, &entry.record.generation, error);
    sqlite3_stmt *row = NULL;
    if (code == LS_OK &&
        (sqlite3_prepare_v2(journal->database, insert, -1, &row, NULL) != SQLITE_OK || !insert_entry(row, &entry)))
        code = journal_failed(journal, error);
    sqlite3_finalize(row);
    return code;
}

static void *journal_thread(void *argument) {
    struct ls_journal *journal = argument;
    struct ls_error error;
    pthread_mutex_lock(&journal->mutex);
    for (;;) {
        while (journal->head == journal->tail && !journal->closing)
            pthread_cond_wait(&journal->changed, &journal->mutex);
        if (journal->head == journal->tail || journal->failed) break;
        uint64_t from = journal->head, to = journal->tail;
        pthread_mutex_unlock(&journal->mutex);
        enum ls_code code = write_batch(journal, from, to, &error);
        pthread_mutex_lock(&journal->mutex);
        uint64_t written = finish_batch(journal, from, to, journal->durable);
        if (code == LS_OK) {
            journal->durable = written;
        } else {
            journal->failed = true;
            snprintf(journal->failure, sizeof journal->failure, "%s", error.text);
        }
        journal->head = to;
        pthread_cond_broadcast(&journal->changed);
        uint64_t one = 1;
        if (write(journal->wake, &one, sizeof one) < 0 && errno != EAGAIN) break;
    }
    pthread_mutex_unlock(&journal->mutex);
    return NULL;
}

enum ls_code ls_journal_start(struct ls_journal *journal, uint32_t generation, int wake, ls_journal_observer *observe,
                              void *context, struct ls_error *error) {
    if (sqlite3_prepare_v2(journal->database, insert, -1, &journal->insert, NULL) != SQLITE_OK)
        return journal_failed(journal, error);
    journal->queue = calloc(QUEUE_MAX, sizeof *journal->queue);
    if (!journal->queue) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for the journal's queue");
    journal->generation = generation;
    journal->wake = wake;
    journal->observe = observe;
    journal->context = context;
    const int cause = pthread_create(&journal->thread, NULL, journal_thread, journal);
    if (cause)
        return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "cannot start the journal's thread: %s. Check 'ulimit -u'.",
                       strerror(cause));
    journal->thread_runs = true;
    return LS_OK;
}

void ls_journal_append(struct ls_journal *journal, const struct ls_journal_entry *entry) {
    pthread_mutex_lock(&journal->mutex);
    while (journal->tail - journal->head >= QUEUE_MAX && !journal->failed)
        pthread_cond_wait(&journal->changed, &journal->mutex);
    if (!journal->failed) {
        journal->queue[journal->tail++ % QUEUE_MAX] = *entry;
        pthread_cond_broadcast(&journal->changed);
    } else {
        free(entry->note);
        free(entry->attempt);
    }
    pthread_mutex_unlock(&journal->mutex);
}

void ls_journal_tell(struct ls_journal *journal, uint32_t attempt, const char *event, const char *fields) {
    size_t bytes = strlen(fields) + 1;
    struct ls_journal_entry entry = {.record = {.attempt = attempt, .generation = journal->generation}};
    entry.note = malloc(sizeof *entry.note + bytes);
    if (!entry.note) return;
    snprintf(entry.note->event, sizeof entry.note->event, "%s", event);
    memcpy(entry.note->fields, fields, bytes);
    ls_journal_append(journal, &entry);
}

bool ls_journal_durable(struct ls_journal *journal, uint64_t *sequence, char text[LS_WIRE_TEXT_BYTES]) {
    pthread_mutex_lock(&journal->mutex);
    *sequence = journal->durable;
    bool fine = !journal->failed;
    if (!fine) memcpy(text, journal->failure, LS_WIRE_TEXT_BYTES);
    pthread_mutex_unlock(&journal->mutex);
    return fine;
}
