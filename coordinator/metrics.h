/* metrics.jsonl: one JSON object a line for every step, validation and event, and a summary at the end. docs/design.md
 * lists the keys. */
#ifndef LS_COORDINATOR_METRICS_H
#define LS_COORDINATOR_METRICS_H

#include "common/config.h"
#include "common/status.h"
#include "coordinator/bill.h"
#include "coordinator/journal.h"

#include <stdint.h>

/* What the lines about a run need to know of it. */
struct ls_run_facts {
    char name[LS_CONFIG_NAME_SIZE], path[1000], host[64];
    double started_seconds; /* CLOCK_MONOTONIC at which the command began; 0: now */
    char config_digest[33];
    int64_t attempt, ranks, zero_stage, start_step, total_steps, sequence_length, max_restarts;
    int64_t start_samples, start_tokens; /* used before the attempt, over all generations of the data */
    /* Of coordinators before this one: how long attempts ran, and how many ended in a fault. */
    double earlier_seconds;
    int64_t earlier_faults;
    const struct ls_config *config; /* outlives them; NULL: no advice is given */
};

/* What the entry of an ATTEMPT record changes of them. */
void ls_run_facts_begin_attempt(struct ls_run_facts *facts, const struct ls_journal_entry *entry);

/* What the steps seen so far add up to; what it takes from steps leaves the first five of the attempt out. */
struct ls_metrics_summary {
    int64_t last_step, steps_measured;
    double tokens_per_second_median, tokens_per_second_p10,
        tokens_per_second_p90;    /* of the last 65536 steps; NAN: none */
    double comm_exposed_fraction; /* of step time; NAN: none */
    double mfu;                   /* over the time of all steps measured; 0: not known */
    uint64_t memory_peak_bytes;
    double last_loss;                      /* NAN: none */
    double validation_loss, bits_per_byte; /* of the last validation; NAN: none */
    double wall_seconds;
    int64_t saves;                            /* committed since this coordinator began */
    double save_blocked_seconds;              /* that training waited for them, in all */
    double save_seconds;                      /* that writing one took on average; 0: not known */
    int64_t faults;                           /* attempts of the run that ended in one */
    double failure_seconds, interval_advised; /* between faults, assumed where none was seen; NAN: nothing was saved */
    double bill[LS_BILL_ROWS];                /* seconds since this coordinator began; they add up to its time */
    struct ls_bill_advice advice[LS_BILL_ADVICE_MAX];
    int advice_count;
};

struct ls_metrics;

/* Opens RUN/metrics.jsonl for appending. LS_CHECKPOINT. */
enum ls_code ls_metrics_open(const struct ls_run_facts *facts, struct ls_metrics **metrics, struct ls_error *error);
/* Where the ranks of the newest attempt are: hosts[count], one for each rank. Called before the journal's thread ends,
 * by one thread. */
void ls_metrics_place(struct ls_metrics *metrics, const char *const *hosts, int64_t count);
/* Writes the line of a journal entry. Called on the journal's thread. */
void ls_metrics_write(struct ls_metrics *metrics, const struct ls_journal_entry *entry);
/* What came of it; after the journal's thread has ended, or on it. */
void ls_metrics_summarise(struct ls_metrics *metrics, struct ls_metrics_summary *summary);
/* Writes the last line. After the journal's thread has ended. */
void ls_metrics_write_summary(struct ls_metrics *metrics, enum ls_code code);
void ls_metrics_close(struct ls_metrics *metrics);

#endif
