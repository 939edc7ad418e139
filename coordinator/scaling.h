/* A scaling table: what runs at several rank counts measured, beside what was predicted, with efficiencies; as text,
 * JSON, CSV and plot. Numbers in, tables out; the runs themselves are bench.h's. */
#ifndef LS_COORDINATOR_SCALING_H
#define LS_COORDINATOR_SCALING_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { LS_SCALING_ROWS_MAX = 64, LS_SCALING_TEXT_BYTES = 256 };

/* Seconds are medians over the measured steps of all repetitions. */
struct ls_scaling_times {
    double step_seconds, compute_seconds; /* compute: forward, backward and update */
    double exposed_seconds;               /* waiting for communication */
};

struct ls_scaling_row {
    int64_t ranks, ranks_per_node, global_batch;
    enum ls_code code; /* of the runs; with another than LS_OK nothing else below but `reason` counts */
    char reason[LS_SCALING_TEXT_BYTES]; /* their last line */
    int64_t steps;                      /* measured */
    struct ls_scaling_times measured;
    double tokens_per_second, tokens_per_second_p10, tokens_per_second_p90;
    int64_t memory_bytes; /* peak of the fullest rank */
    double efficiency;    /* filled by ls_scaling_complete() */
    bool predicts;        /* the next two count */
    struct ls_scaling_times predicted;
    int64_t predicted_memory_bytes;
};

struct ls_scaling {
    char name[64], machine[160], time[32]; /* of the configuration, of the prediction, when it began (ISO 8601) */
    bool weak;                             /* the global batch grows with the ranks; else it stays */
    int64_t sequence_length, repeats, warm_up_steps;
    struct ls_scaling_row rows[LS_SCALING_ROWS_MAX];
    int count;
};

/* Steps of one run's metrics.jsonl, added to `samples` behind the first `warm_up` of them. */
struct ls_scaling_samples {
    double *step, *compute, *exposed, *rate; /* seconds, tokens per second; [count] */
    int64_t count, capacity;
    int64_t memory_bytes, ranks_per_node;
};
/* LS_ERROR: no such file, a line that is no JSON, or no step behind the warm-up; LS_MEMORY. */
enum ls_code ls_scaling_read(const char *metrics_path, int64_t warm_up, struct ls_scaling_samples *samples,
                             struct ls_error *error);
void ls_scaling_samples_release(struct ls_scaling_samples *samples);
/* Medians and quantiles of the samples into the row; at least one. Reorders them. */
void ls_scaling_measure(struct ls_scaling_samples *samples, struct ls_scaling_row *row);

/* Efficiencies: a row's tokens per second over those of the first good row, each divided by its ranks. 1 for that row.
 */
void ls_scaling_complete(struct ls_scaling *scaling);

/* Each writes the whole table. False when `out` took nothing, or there is no memory. */
bool ls_scaling_print(const struct ls_scaling *scaling, FILE *out);
bool ls_scaling_print_json(const struct ls_scaling *scaling, FILE *out);
bool ls_scaling_print_csv(const struct ls_scaling *scaling, FILE *out);
/* A program for gnuplot that draws bench.csv of the folder it runs in to bench.svg or bench.png: tokens per second
 * measured, predicted and ideal over ranks. */
bool ls_scaling_print_plot(const struct ls_scaling *scaling, bool png, FILE *out);

#endif
