/* The journal of a run: RUN/journal.db, an SQLite file that outlives every process of the run. Opened exclusively by
 * the coordinator that holds the run's lock; locking_mode=EXCLUSIVE comes before WAL, so that no shared memory is
 * needed and it also works on network file systems; synchronous=FULL. A thread of its own writes, so that an fsync
 * never delays a grant:
 *
 *   server: ls_journal_append() ---> ring ---> journal's thread: INSERT..., observe(), COMMIT (fsync), wake
 *   server: woken, ls_journal_durable() says up to which record everything survives a crash
 *
 * Tables: meta(key, value); attempts; shapes; generations (of the coordinator); data_generations; records
 * (ls_core_record, one row each). docs/protocol.md lists the columns. */
#ifndef LS_COORDINATOR_JOURNAL_H
#define LS_COORDINATOR_JOURNAL_H

#include "common/status.h"
#include "common/wire.h"
#include "coordinator/core.h"

#include <stdbool.h>
#include <stdint.h>

struct ls_journal;

/* A life of the set of workers, as it began. */
struct ls_journal_attempt {
    int64_t attempt, world_size;
    int64_t start_step, start_position, optimizer_steps, tokens;
    struct ls_digest start_chain;
    char checkpoint[1024];    /* folder it loads, "" for none */
    char parent_manifest[33]; /* hash of that folder's manifest, "" for none */
    int64_t data_generation;  /* whose positions its steps have; 0: as of a run without generations */
    int64_t generation_step;  /* the step behind which that generation began, in the attempt's lineage */
    int64_t samples;          /* sequences used before, over all generations of the data */
};

/* A generation of the data: what attempts were trained on, and in which order. */
struct ls_journal_data_generation {
    int64_t number;        /* from 1 */
    int64_t first_attempt; /* that had it */
    int64_t start_step;    /* where it began first */
    char train_digest[33]; /* struct ls_corpus's */
    const char *sources;   /* ls_corpus_list_train(), when an attempt with it began last */
    const char *config;    /* the run's resolved configuration then, as YAML */
};

/* An event that is no record of the core: a line of metrics.jsonl, and of the console if it has a "text". */
struct ls_journal_note {
    char event[32];
    char fields[]; /* a JSON object: what the line says beside kind, event, attempt, generation and time */
};

/* What the configuration said of every step, from an attempt on until the next shape: a run may be resumed with another
 * one, where that is accepted. */
struct ls_journal_shape {
    int64_t first_attempt, global_batch;
    int64_t steps;        /* the run's last step */
    int64_t end_position; /* its last step is truncated here; INT64_MAX: never */
    char config_digest[33];
    char accepted[1024]; /* what was changed, "" for the run's first shape */
};

/* A record with what the step line and metrics.jsonl say beside it. */
struct ls_journal_entry {
    struct ls_core_record record;       /* with a note only attempt and generation */
    struct ls_journal_note *note;       /* NULL for a record; the journal's */
    struct ls_journal_attempt *attempt; /* ATTEMPT: what the new attempt begins with (malloc'ed), the journal's */
    struct ls_step_report report;       /* STEP */
    double loss, bits_per_byte;         /* VALIDATION */
    double save_seconds;                /* COMMIT: what writing took; 0: not known */
    int64_t save_bytes;                 /* likewise, of all ranks' files */
};

/* Opens (makes) the journal. LS_CHECKPOINT: cannot be opened, is of another format, or another process has it. */
enum ls_code ls_journal_open(const char *path, struct ls_journal **journal, struct ls_error *error);
/* Opens an existing journal for reading only, when nobody has it; it need not be writable. LS_CHECKPOINT. Only the
 * reading functions may be called. */
enum ls_code ls_journal_open_existing(const char *path, struct ls_journal **journal, struct ls_error *error);
/* Writes what is queued, ends the thread, closes. */
void ls_journal_close(struct ls_journal *journal);

/* Before ls_journal_start(), on the caller's thread. */

/* The value of `key`, "" when there is none. */
enum ls_code ls_journal_read_meta(struct ls_journal *journal, const char *key, char *value, size_t size,
                                  struct ls_error *error);
enum ls_code ls_journal_write_meta(struct ls_journal *journal, const char *key, const char *value,
                                   struct ls_error *error);
/* The newest attempt; attempt->attempt is 0 when there is none. */
enum ls_code ls_journal_last_attempt(struct ls_journal *journal, struct ls_journal_attempt *attempt,
                                     struct ls_error *error);
/* Calls `take` for every attempt in ascending order, until it returns something else than LS_OK. */
typedef enum ls_code ls_journal_take_attempt(void *context, const struct ls_journal_attempt *attempt,
                                             struct ls_error *error);
enum ls_code ls_journal_read_attempts(struct ls_journal *journal, ls_journal_take_attempt *take, void *context,
                                      struct ls_error *error);
enum ls_code ls_journal_begin_attempt(struct ls_journal *journal, const struct ls_journal_attempt *attempt,
                                      struct ls_error *error);
/* Adds a shape, or replaces the one of the same attempt. */
enum ls_code ls_journal_write_shape(struct ls_journal *journal, const struct ls_journal_shape *shape,
                                    struct ls_error *error);
/* Calls `take` for every shape in the order of their attempts, until it returns something else than LS_OK. */
typedef enum ls_code ls_journal_take_shape(void *context, const struct ls_journal_shape *shape, struct ls_error *error);
enum ls_code ls_journal_read_shapes(struct ls_journal *journal, ls_journal_take_shape *take, void *context,
                                    struct ls_error *error);
/* Adds a generation of the data, or replaces the one of the same number. */
enum ls_code ls_journal_write_data_generation(struct ls_journal *journal,
                                              const struct ls_journal_data_generation *generation,
                                              struct ls_error *error);
/* Calls `take` for every generation of the data in ascending order, until it returns something else than LS_OK. What it
 * is handed lives as long as the call. */
typedef enum ls_code ls_journal_take_data_generation(void *context, const struct ls_journal_data_generation *generation,
                                                     struct ls_error *error);
enum ls_code ls_journal_read_data_generations(struct ls_journal *journal, ls_journal_take_data_generation *take,
                                              void *context, struct ls_error *error);
/* Adds what a checkpoint that came from elsewhere passes over, as QUARANTINE records of attempt 0, in place of what was
 * added before. */
enum ls_code ls_journal_inherit(struct ls_journal *journal, int64_t data_generation,
                                const struct ls_quarantine *quarantine, struct ls_error *error);
/* Registers this coordinator: *generation is one more than the last one's. Durable on return. */
enum ls_code ls_journal_begin_generation(struct ls_journal *journal, int64_t attempt, uint32_t *generation,
                                         struct ls_error *error);
/* Adds the END, with LS_OK, of an attempt that was killed behind its last save, by a coordinator that only looked.
 * Durable on return. */
enum ls_code ls_journal_complete(struct ls_journal *journal, int64_t attempt, int64_t step, const char *text,
                                 struct ls_error *error);
/* Calls `take` for every record of `attempt` in the order written, until it returns something else than LS_OK. */
typedef enum ls_code ls_journal_take(void *context, const struct ls_core_record *record, struct ls_error *error);
enum ls_code ls_journal_read_records(struct ls_journal *journal, int64_t attempt, ls_journal_take *take, void *context,
                                     struct ls_error *error);
/* The same for what a coordinator that starts again has to know: all records of `attempt`, and of those before it
 * whatever is neither STEP nor VALIDATION. */
enum ls_code ls_journal_read_history(struct ls_journal *journal, int64_t attempt, ls_journal_take *take, void *context,
                                     struct ls_error *error);
/* The newest record of `kind` of any attempt; false when there is none. */
bool ls_journal_last_record(struct ls_journal *journal, enum ls_core_record_kind kind, struct ls_core_record *record);

/* Seconds between first and last record of each attempt, added up, and how many attempts ended in a fault. */
enum ls_code ls_journal_history(struct ls_journal *journal, double *seconds, int64_t *faults, struct ls_error *error);
/* Calls `take` for the newest `most` validations of `attempt` in the order written; `loss` is NAN when it was no
 * number.
 */
typedef void ls_journal_take_validation(void *context, int64_t step, double loss);
enum ls_code ls_journal_read_validations(struct ls_journal *journal, int64_t attempt, int64_t most,
                                         ls_journal_take_validation *take, void *context, struct ls_error *error);

/* The thread. */

/* Called on the journal's thread for each entry, in order, before it becomes durable: what is told elsewhere
 * (metrics.jsonl, the console) is then never behind the journal, and after a crash a step may be told twice, but none
 * is missing. */
typedef void ls_journal_observer(void *context, const struct ls_journal_entry *entry);
/* Starts the thread. `wake` is an eventfd written to whenever ls_journal_durable() has news. */
enum ls_code ls_journal_start(struct ls_journal *journal, uint32_t generation, int wake, ls_journal_observer *observe,
                              void *context, struct ls_error *error);
/* Queues an entry (copied). Waits only when 4096 entries wait for the disk. An ATTEMPT record and the row of its
 * attempt become durable together. */
void ls_journal_append(struct ls_journal *journal, const struct ls_journal_entry *entry);
/* Queues a note: it comes to the observer in its place among the entries, and is not kept in the journal. `fields` is
 * the text of a JSON object, copied. Without memory it is left out. */
void ls_journal_tell(struct ls_journal *journal, uint32_t attempt, const char *event, const char *fields);
/* The sequence up to which records of this generation are durable. After a failure: false, and `text` says what the
 * disk said; nothing is written any more. */
bool ls_journal_durable(struct ls_journal *journal, uint64_t *sequence, char text[LS_WIRE_TEXT_BYTES]);

#endif
