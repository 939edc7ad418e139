/* The arithmetic and the faces of a scaling table. */
#include "coordinator/scaling.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- metrics.jsonl ---- */

static enum ls_code reserve(struct ls_scaling_samples *samples, struct ls_error *error) {
    if (samples->count < samples->capacity) return LS_OK;
    const int64_t capacity = samples->capacity ? 2 * samples->capacity : 64;
    double **const arrays[] = {&samples->step, &samples->compute, &samples->exposed, &samples->rate};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        double *grown = realloc(*arrays[i], (size_t)capacity * sizeof *grown);
        if (!grown) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "bench: no memory for the measured steps");
        *arrays[i] = grown;
    }
    samples->capacity = capacity;
    return LS_OK;
}

static double number(const json_t *line, const char *key) {
    return json_number_value(json_object_get(line, key));
}

static enum ls_code take_step(const json_t *line, struct ls_scaling_samples *samples, struct ls_error *error) {
    enum ls_code code = reserve(samples, error);
    if (code != LS_OK) return code;
    const int64_t at = samples->count++;
    samples->step[at] = number(line, "step_seconds");
    samples->compute[at] = number(line, "compute_seconds");
    samples->exposed[at] = number(line, "comm_exposed_seconds");
    samples->rate[at] = number(line, "tokens_per_second");
    const int64_t bytes = json_integer_value(json_object_get(line, "memory_peak_bytes"));
    if (bytes > samples->memory_bytes) samples->memory_bytes = bytes;
    return LS_OK;
}

static enum ls_code take_line(const json_t *line, int64_t warm_up, struct ls_scaling_samples *samples,
                              struct ls_error *error) {
    const char *kind = json_string_value(json_object_get(line, "kind"));
    if (kind && strcmp(kind, "step") == 0 && json_integer_value(json_object_get(line, "step")) > warm_up)
        return take_step(line, samples, error);
    if (kind && strcmp(kind, "summary") == 0)
        samples->ranks_per_node = json_integer_value(json_object_get(line, "ranks_per_node"));
    return LS_OK;
}

enum ls_code ls_scaling_read(const char *metrics_path, int64_t warm_up, struct ls_scaling_samples *samples,
                             struct ls_error *error) {
    FILE *file = fopen(metrics_path, "re");
    const int64_t before = samples->count;
    char *text = NULL;
    size_t size = 0;
    enum ls_code code = LS_OK;
    if (!file) return ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "bench: %s is not there", metrics_path);
    for (int64_t number_of_line = 1; code == LS_OK && getline(&text, &size, file) > 0; number_of_line++) {
        json_t *line = json_loads(text, 0, NULL);
        if (line)
            code = take_line(line, warm_up, samples, error);
        else
            code = ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "bench: line %lld of %s is no JSON",
                           (long long)number_of_line, metrics_path);
        json_decref(line);
    }
    free(text);
    fclose(file);
    if (code == LS_OK && samples->count == before)
        code = ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "bench: %s has no step behind the first %lld", metrics_path,
                       (long long)warm_up);
    return code;
}

void ls_scaling_samples_release(struct ls_scaling_samples *samples) {
    free(samples->step);
    free(samples->compute);
    free(samples->exposed);
    free(samples->rate);
    memset(samples, 0, sizeof *samples);
}

static int compare_numbers(const void *a, const void *b) {
    const double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* The quantile q, between neighbours in proportion. */
static double quantile(double *values, int64_t count, double q) {
    qsort(values, (size_t)count, sizeof *values, compare_numbers);
    const double place = q * (double)(count - 1);
    const int64_t below = (int64_t)place;
    if (below + 1 >= count) return values[count - 1];
    return values[below] + (place - (double)below) * (values[below + 1] - values[below]);
}

void ls_scaling_measure(struct ls_scaling_samples *samples, struct ls_scaling_row *row) {
    const int64_t count = samples->count;
    row->steps = count;
    row->measured = (struct ls_scaling_times){.step_seconds = quantile(samples->step, count, 0.5),
                                              .compute_seconds = quantile(samples->compute, count, 0.5),
                                              .exposed_seconds = quantile(samples->exposed, count, 0.5)};
    row->tokens_per_second = quantile(samples->rate, count, 0.5);
    row->tokens_per_second_p10 = quantile(samples->rate, count, 0.1);
    row->tokens_per_second_p90 = quantile(samples->rate, count, 0.9);
    row->memory_bytes = samples->memory_bytes;
    row->ranks_per_node = samples->ranks_per_node;
}

void ls_scaling_complete(struct ls_scaling *scaling) {
    const struct ls_scaling_row *first = NULL;
    for (int i = 0; i < scaling->count; i++) {
        struct ls_scaling_row *row = &scaling->rows[i];
        if (row->code != LS_OK) continue;
        if (!first) first = row;
        row->efficiency =
            row->tokens_per_second / (double)row->ranks / (first->tokens_per_second / (double)first->ranks);
    }
}

/* ---- faces ---- */

static double predicted_rate(const struct ls_scaling *scaling, const struct ls_scaling_row *row) {
    return (double)(row->global_batch * scaling->sequence_length) / row->predicted.step_seconds;
}

/* What the measured step took over what was predicted, less one. */
static double deviation(const struct ls_scaling_row *row) {
    return row->measured.step_seconds / row->predicted.step_seconds - 1;
}

bool ls_scaling_print(const struct ls_scaling *scaling, FILE *out) {
    fprintf(out, "%s, %s scaling, %lld run%s of every row, medians over the steps behind the first %lld\n\n",
            scaling->name, scaling->weak ? "weak" : "strong", (long long)scaling->repeats,
            scaling->repeats == 1 ? "" : "s", (long long)scaling->warm_up_steps);
    fprintf(out,
            "ranks  batch    tokens/s  efficiency     step s  compute s  exposed s  memory MiB | predicted s    off  "
            "memory MiB\n");
    for (int i = 0; i < scaling->count; i++) {
        const struct ls_scaling_row *row = &scaling->rows[i];
        fprintf(out, "%5lld %6lld ", (long long)row->ranks, (long long)row->global_batch);
        if (row->code != LS_OK) {
            fprintf(out, "  failed: %s\n", row->reason);
            continue;
        }
        fprintf(out, "%11.0f %10.1f%% %10.4f %10.4f %10.4f %11.1f |", row->tokens_per_second, 100 * row->efficiency,
                row->measured.step_seconds, row->measured.compute_seconds, row->measured.exposed_seconds,
                (double)row->memory_bytes / 1048576);
        if (row->predicts)
            fprintf(out, " %11.4f %+5.0f%% %11.1f", row->predicted.step_seconds, 100 * deviation(row),
                    (double)row->predicted_memory_bytes / 1048576);
        fputc('\n', out);
    }
    if (*scaling->machine) fprintf(out, "\npredicted from %s\n", scaling->machine);
    return fflush(out) == 0 && !ferror(out);
}

static json_t *times_as_json(const struct ls_scaling_times *times) {
    return json_pack("{s:f, s:f, s:f}", "step_seconds", times->step_seconds, "compute_seconds", times->compute_seconds,
                     "comm_exposed_seconds", times->exposed_seconds);
}

static json_t *row_as_json(const struct ls_scaling *scaling, const struct ls_scaling_row *row) {
    json_t *object = json_pack("{s:I, s:I, s:i}", "ranks", (json_int_t)row->ranks, "global_batch_size",
                               (json_int_t)row->global_batch, "exit_code", (int)row->code);
    if (row->code != LS_OK) {
        json_object_set_new(object, "reason", json_string(row->reason));
        return object;
    }
    json_object_set_new(object, "ranks_per_node", json_integer(row->ranks_per_node));
    json_object_set_new(object, "steps_measured", json_integer(row->steps));
    json_object_set_new(object, "tokens_per_second",
                        json_pack("{s:f, s:f, s:f}", "median", row->tokens_per_second, "p10",
                                  row->tokens_per_second_p10, "p90", row->tokens_per_second_p90));
    json_object_set_new(object, "efficiency", json_real(row->efficiency));
    json_object_set_new(object, "measured", times_as_json(&row->measured));
    json_object_set_new(object, "memory_peak_bytes", json_integer(row->memory_bytes));
    if (!row->predicts) return object;
    json_t *predicted = times_as_json(&row->predicted);
    json_object_set_new(predicted, "tokens_per_second", json_real(predicted_rate(scaling, row)));
    json_object_set_new(predicted, "memory_bytes", json_integer(row->predicted_memory_bytes));
    json_object_set_new(object, "predicted", predicted);
    return object;
}

bool ls_scaling_print_json(const struct ls_scaling *scaling, FILE *out) {
    json_t *rows = json_array();
    for (int i = 0; i < scaling->count; i++) json_array_append_new(rows, row_as_json(scaling, &scaling->rows[i]));
    json_t *root =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:o}", "version", LS_VERSION, "name", scaling->name, "time",
                  scaling->time, "scaling", scaling->weak ? "weak" : "strong", "machine", scaling->machine,
                  "sequence_length", (json_int_t)scaling->sequence_length, "repeats", (json_int_t)scaling->repeats,
                  "warm_up_steps", (json_int_t)scaling->warm_up_steps, "rows", rows);
    const bool fine = root && json_dumpf(root, out, JSON_INDENT(2)) == 0 && fputc('\n', out) != EOF;
    json_decref(root);
    return fine && fflush(out) == 0 && !ferror(out);
}

bool ls_scaling_print_csv(const struct ls_scaling *scaling, FILE *out) {
    double ideal = NAN;
    fprintf(out,
            "ranks,ranks_per_node,global_batch_size,exit_code,steps_measured,tokens_per_second,tokens_per_second_p10,"
            "tokens_per_second_p90,efficiency,step_seconds,compute_seconds,comm_exposed_seconds,memory_peak_bytes,"
            "predicted_tokens_per_second,predicted_step_seconds,predicted_memory_bytes,ideal_tokens_per_second\n");
    for (int i = 0; i < scaling->count; i++) {
        const struct ls_scaling_row *row = &scaling->rows[i];
        if (row->code != LS_OK) {
            fprintf(out, "%lld,,%lld,%d,,,,,,,,,,,,,\n", (long long)row->ranks, (long long)row->global_batch,
                    (int)row->code);
            continue;
        }
        if (isnan(ideal)) ideal = row->tokens_per_second / (double)row->ranks;
        fprintf(out, "%lld,%lld,%lld,0,%lld,%.6g,%.6g,%.6g,%.4f,%.6g,%.6g,%.6g,%lld,", (long long)row->ranks,
                (long long)row->ranks_per_node, (long long)row->global_batch, (long long)row->steps,
                row->tokens_per_second, row->tokens_per_second_p10, row->tokens_per_second_p90, row->efficiency,
                row->measured.step_seconds, row->measured.compute_seconds, row->measured.exposed_seconds,
                (long long)row->memory_bytes);
        if (row->predicts)
            fprintf(out, "%.6g,%.6g,%lld,", predicted_rate(scaling, row), row->predicted.step_seconds,
                    (long long)row->predicted_memory_bytes);
        else
            fprintf(out, ",,,");
        fprintf(out, "%.6g\n", ideal * (double)row->ranks);
    }
    return fflush(out) == 0 && !ferror(out);
}

bool ls_scaling_print_plot(const struct ls_scaling *scaling, bool png, FILE *out) {
    fprintf(out, "set terminal %s\nset output 'bench.%s'\n", png ? "png size 900,600" : "svg size 900,600",
            png ? "png" : "svg");
    fprintf(out, "set datafile separator ','\nset key left top\nset grid\nset logscale xy 2\nset format y '%%.0f'\n");
    fprintf(out,
            "set title '%s, %s scaling' noenhanced\nset xlabel 'ranks'\nset ylabel 'tokens per second'\nset xtics (",
            scaling->name, scaling->weak ? "weak" : "strong");
    int64_t least = scaling->rows[0].ranks, most = least;
    for (int i = 0; i < scaling->count; i++) {
        const int64_t ranks = scaling->rows[i].ranks;
        fprintf(out, "%s%lld", i ? ", " : "", (long long)ranks);
        if (ranks < least) least = ranks;
        if (ranks > most) most = ranks;
    }
    /* Bars of the first and the last row stay inside the frame. */
    fprintf(out, ")\nset xrange [%g:%g]\n", (double)least / 1.1, (double)most * 1.1);
    fprintf(out, "plot 'bench.csv' using 1:17 skip 1 with lines dashtype 2 linecolor 'gray' title 'ideal', \\\n"
                 "     '' using 1:14 skip 1 with linespoints pointtype 6 title 'predicted', \\\n"
                 "     '' using 1:6:7:8 skip 1 with yerrorlines pointtype 7 title 'measured (median, p10, p90)'\n");
    return fflush(out) == 0 && !ferror(out);
}
