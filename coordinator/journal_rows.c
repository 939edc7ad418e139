/* What the journal holds beside records: attempts, shapes, generations. Read and written before the thread runs, but
 * for the row of an attempt, which comes with its record. */
#define _GNU_SOURCE
#include "coordinator/journal_state.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

double journal_now_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

enum ls_code journal_failed(struct ls_journal *journal, struct ls_error *error) {
    int cause = sqlite3_extended_errcode(journal->database);
    const char *advice = "Check the disk: free space, quota, permissions.";
    if ((cause & 0xff) == SQLITE_BUSY || (cause & 0xff) == SQLITE_LOCKED)
        advice = "Another process has it open: end that first.";
    else if ((cause & 0xff) == SQLITE_NOTADB || (cause & 0xff) == SQLITE_CORRUPT)
        advice = "It is damaged: put a copy back, or start a new run directory from a checkpoint.";
    return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "the journal %s cannot be used: %s (SQLite %d). %s",
                   journal->path, sqlite3_errmsg(journal->database), cause, advice);
}

void journal_copy_column(sqlite3_stmt *statement, int column, char *text, size_t size) {
    const unsigned char *value = sqlite3_column_text(statement, column);
    snprintf(text, size, "%s", value ? (const char *)value : "");
}

struct ls_digest journal_digest_column(sqlite3_stmt *statement, int column) {
    struct ls_digest digest = {0, 0};
    const unsigned char *value = sqlite3_column_text(statement, column);
    if (value) ls_digest_parse((const char *)value, &digest);
    return digest;
}

enum ls_code ls_journal_read_meta(struct ls_journal *journal, const char *key, char *value, size_t size,
                                  struct ls_error *error) {
    sqlite3_stmt *statement = NULL;
    value[0] = 0;
    if (sqlite3_prepare_v2(journal->database, "SELECT value FROM meta WHERE key=?", -1, &statement, NULL) != SQLITE_OK)
        return journal_failed(journal, error);
    sqlite3_bind_text(statement, 1, key, -1, SQLITE_STATIC);
    int row = sqlite3_step(statement);
    if (row == SQLITE_ROW) journal_copy_column(statement, 0, value, size);
    enum ls_code code = row == SQLITE_ROW || row == SQLITE_DONE ? LS_OK : journal_failed(journal, error);
    sqlite3_finalize(statement);
    return code;
}

/* Runs a prepared statement that returns nothing, and frees it. */
static enum ls_code run(struct ls_journal *journal, sqlite3_stmt *statement, struct ls_error *error) {
    enum ls_code code = sqlite3_step(statement) == SQLITE_DONE ? LS_OK : journal_failed(journal, error);
    sqlite3_finalize(statement);
    return code;
}

enum ls_code ls_journal_write_meta(struct ls_journal *journal, const char *key, const char *value,
                                   struct ls_error *error) {
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(journal->database, "INSERT OR REPLACE INTO meta VALUES(?,?)", -1, &statement, NULL) !=
        SQLITE_OK)
        return journal_failed(journal, error);
    sqlite3_bind_text(statement, 1, key, -1, SQLITE_STATIC);
    sqlite3_bind_text(statement, 2, value, -1, SQLITE_STATIC);
    return run(journal, statement, error);
}

#define ATTEMPT_COLUMNS                                                                                                \
    "attempt, world_size, start_step, start_position, optimizer_steps, tokens, start_chain, checkpoint, "              \
    "parent_manifest, data_generation, generation_step, IFNULL(samples, start_position)"

static void attempt_from_row(sqlite3_stmt *row, struct ls_journal_attempt *attempt) {
    attempt->attempt = sqlite3_column_int64(row, 0);
    attempt->world_size = sqlite3_column_int64(row, 1);
    attempt->start_step = sqlite3_column_int64(row, 2);
    attempt->start_position = sqlite3_column_int64(row, 3);
    attempt->optimizer_steps = sqlite3_column_int64(row, 4);
    attempt->tokens = sqlite3_column_int64(row, 5);
    attempt->start_chain = journal_digest_column(row, 6);
    journal_copy_column(row, 7, attempt->checkpoint, sizeof attempt->checkpoint);
    journal_copy_column(row, 8, attempt->parent_manifest, sizeof attempt->parent_manifest);
    attempt->data_generation = sqlite3_column_int64(row, 9);
    attempt->generation_step = sqlite3_column_int64(row, 10);
    attempt->samples = sqlite3_column_int64(row, 11);
}

enum ls_code ls_journal_last_attempt(struct ls_journal *journal, struct ls_journal_attempt *attempt,
                                     struct ls_error *error) {
    sqlite3_stmt *statement;
    memset(attempt, 0, sizeof *attempt);
    if (sqlite3_prepare_v2(journal->database, "SELECT " ATTEMPT_COLUMNS " FROM attempts ORDER BY attempt DESC LIMIT 1",
                           -1, &statement, NULL) != SQLITE_OK)
        return journal_failed(journal, error);
    int row = sqlite3_step(statement);
    if (row == SQLITE_ROW) attempt_from_row(statement, attempt);
    enum ls_code code = row == SQLITE_ROW || row == SQLITE_DONE ? LS_OK : journal_failed(journal, error);
    sqlite3_finalize(statement);
    return code;
}

enum ls_code ls_journal_read_attempts(struct ls_journal *journal, ls_journal_take_attempt *take, void *context,
                                      struct ls_error *error) {
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(journal->database, "SELECT " ATTEMPT_COLUMNS " FROM attempts ORDER BY attempt", -1,
                           &statement, NULL) != SQLITE_OK)
        return journal_failed(journal, error);
    enum ls_code code = LS_OK;
    int row = SQLITE_DONE;
    struct ls_journal_attempt attempt;
    while (code == LS_OK && (row = sqlite3_step(statement)) == SQLITE_ROW) {
        attempt_from_row(statement, &attempt);
        code = take(context, &attempt, error);
    }
    if (code == LS_OK && row != SQLITE_DONE) code = journal_failed(journal, error);
    sqlite3_finalize(statement);
    return code;
}

enum ls_code ls_journal_begin_attempt(struct ls_journal *journal, const struct ls_journal_attempt *attempt,
                                      struct ls_error *error) {
    sqlite3_stmt *statement;
    char chain[33];
    ls_digest_format(attempt->start_chain, chain);
    if (sqlite3_prepare_v2(journal->database, "INSERT INTO attempts VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?)", -1, &statement,
                           NULL) != SQLITE_OK)
        return journal_failed(journal, error);
    sqlite3_bind_int64(statement, 1, attempt->attempt);
    sqlite3_bind_int64(statement, 2, attempt->world_size);
    sqlite3_bind_int64(statement, 3, attempt->start_step);
    sqlite3_bind_int64(statement, 4, attempt->start_position);
    sqlite3_bind_int64(statement, 5, attempt->optimizer_steps);
    sqlite3_bind_int64(statement, 6, attempt->tokens);
    sqlite3_bind_text(statement, 7, chain, -1, SQLITE_STATIC);
    sqlite3_bind_text(statement, 8, attempt->checkpoint, -1, SQLITE_STATIC);
    sqlite3_bind_text(statement, 9, attempt->parent_manifest, -1, SQLITE_STATIC);
    sqlite3_bind_double(statement, 10, journal_now_seconds());
    sqlite3_bind_int64(statement, 11, attempt->data_generation);
    sqlite3_bind_int64(statement, 12, attempt->generation_step);
    sqlite3_bind_int64(statement, 13, attempt->samples);
    return run(journal, statement, error);
}

enum ls_code ls_journal_write_data_generation(struct ls_journal *journal,
                                              const struct ls_journal_data_generation *generation,
                                              struct ls_error *error) {
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(journal->database, "INSERT OR REPLACE INTO data_generations VALUES(?,?,?,?,?,?,?)", -1,
                           &statement, NULL) != SQLITE_OK)
        return journal_failed(journal, error);
    sqlite3_bind_int64(statement, 1, generation->number);
    sqlite3_bind_int64(statement, 2, generation->first_attempt);
    sqlite3_bind_int64(statement, 3, generation->start_step);
    sqlite3_bind_text(statement, 4, generation->train_digest, -1, SQLITE_STATIC);
    sqlite3_bind_text(statement, 5, generation->sources, -1, SQLITE_STATIC);
    sqlite3_bind_text(statement, 6, generation->config, -1, SQLITE_STATIC);
    sqlite3_bind_double(statement, 7, journal_now_seconds());
    return run(journal, statement, error);
}

static const char *text_column(sqlite3_stmt *row, int column) {
    const unsigned char *text = sqlite3_column_text(row, column);
    return text ? (const char *)text : "";
}

enum ls_code ls_journal_read_data_generations(struct ls_journal *journal, ls_journal_take_data_generation *take,
                                              void *context, struct ls_error *error) {
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(journal->database,
                           "SELECT data_generation, first_attempt, start_step, train_digest, sources, config "
                           "FROM data_generations ORDER BY data_generation",
                           -1, &statement, NULL) != SQLITE_OK)
        return journal_failed(journal, error);
    enum ls_code code = LS_OK;
    int row = SQLITE_DONE;
    while (code == LS_OK && (row = sqlite3_step(statement)) == SQLITE_ROW) {
        struct ls_journal_data_generation generation = {.number = sqlite3_column_int64(statement, 0),
                                                        .first_attempt = sqlite3_column_int64(statement, 1),
                                                        .start_step = sqlite3_column_int64(statement, 2),
                                                        .sources = text_column(statement, 4),
                                                        .config = text_column(statement, 5)};
        journal_copy_column(statement, 3, generation.train_digest, sizeof generation.train_digest);
        code = take(context, &generation, error);
    }
    if (code == LS_OK && row != SQLITE_DONE) code = journal_failed(journal, error);
    sqlite3_finalize(statement);
    return code;
}

enum ls_code ls_journal_write_shape(struct ls_journal *journal, const struct ls_journal_shape *shape,
                                    struct ls_error *error) {
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(journal->database, "INSERT OR REPLACE INTO shapes VALUES(?,?,?,?,?,?)", -1, &statement,
                           NULL) != SQLITE_OK)
        return journal_failed(journal, error);
    sqlite3_bind_int64(statement, 1, shape->first_attempt);
    sqlite3_bind_int64(statement, 2, shape->global_batch);
    sqlite3_bind_int64(statement, 3, shape->steps);
    sqlite3_bind_int64(statement, 4, shape->end_position);
    sqlite3_bind_text(statement, 5, shape->config_digest, -1, SQLITE_STATIC);
    sqlite3_bind_text(statement, 6, shape->accepted, -1, SQLITE_STATIC);
    return run(journal, statement, error);
}

enum ls_code ls_journal_read_shapes(struct ls_journal *journal, ls_journal_take_shape *take, void *context,
                                    struct ls_error *error) {
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(journal->database,
                           "SELECT first_attempt, global_batch, steps, end_position, config_digest, accepted "
                           "FROM shapes ORDER BY first_attempt",
                           -1, &statement, NULL) != SQLITE_OK)
        return journal_failed(journal, error);
    enum ls_code code = LS_OK;
    int row = SQLITE_DONE;
    struct ls_journal_shape shape;
    while (code == LS_OK && (row = sqlite3_step(statement)) == SQLITE_ROW) {
        shape = (struct ls_journal_shape){.first_attempt = sqlite3_column_int64(statement, 0),
                                          .global_batch = sqlite3_column_int64(statement, 1),
                                          .steps = sqlite3_column_int64(statement, 2),
                                          .end_position = sqlite3_column_int64(statement, 3)};
        journal_copy_column(statement, 4, shape.config_digest, sizeof shape.config_digest);
        journal_copy_column(statement, 5, shape.accepted, sizeof shape.accepted);
        code = take(context, &shape, error);
    }
    if (code == LS_OK && row != SQLITE_DONE) code = journal_failed(journal, error);
    sqlite3_finalize(statement);
    return code;
}

enum ls_code ls_journal_begin_generation(struct ls_journal *journal, int64_t attempt, uint32_t *generation,
                                         struct ls_error *error) {
    sqlite3_stmt *statement;
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    if (sqlite3_prepare_v2(journal->database, "INSERT INTO generations(attempt, host, pid, started_at) VALUES(?,?,?,?)",
                           -1, &statement, NULL) != SQLITE_OK)
        return journal_failed(journal, error);
    sqlite3_bind_int64(statement, 1, attempt);
    sqlite3_bind_text(statement, 2, host, -1, SQLITE_STATIC);
    sqlite3_bind_int64(statement, 3, getpid());
    sqlite3_bind_double(statement, 4, journal_now_seconds());
    enum ls_code code = run(journal, statement, error);
    if (code == LS_OK) *generation = (uint32_t)sqlite3_last_insert_rowid(journal->database);
    return code;
}
