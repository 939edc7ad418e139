/* What the journal's files share: journal.c (opening, records, the thread), journal_rows.c (everything else). */
#ifndef LS_COORDINATOR_JOURNAL_STATE_H
#define LS_COORDINATOR_JOURNAL_STATE_H

#include "coordinator/journal.h"

#include <pthread.h>
#include <sqlite3.h>

enum { JOURNAL_PATH_BYTES = 1100 };

struct ls_journal {
    sqlite3 *database;
    sqlite3_stmt *insert;
    char path[JOURNAL_PATH_BYTES];
    uint32_t generation;
    int wake;
    ls_journal_observer *observe;
    void *context;
    pthread_t thread;
    bool thread_runs;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    /* Under the mutex. */
    struct ls_journal_entry *queue;
    uint64_t head, tail;
    uint64_t durable;
    bool closing, failed;
    char failure[LS_WIRE_TEXT_BYTES];
};

/* Seconds since 1970. */
double journal_now_seconds(void);
/* LS_CHECKPOINT, with what SQLite said and what to do about it. */
enum ls_code journal_failed(struct ls_journal *journal, struct ls_error *error);
/* The text of a column, cut where it is long; "" for NULL. */
void journal_copy_column(sqlite3_stmt *statement, int column, char *text, size_t size);
/* Zero where there is none. */
struct ls_digest journal_digest_column(sqlite3_stmt *statement, int column);

#endif
