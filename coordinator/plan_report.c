/* Rows of a plan. docs/plan.md explains each of them. */
#include "coordinator/plan_report.h"

#include "common/interval.h"

#include <jansson.h>

static const char *precision_name(const struct ls_config *config) {
    static const char *const names[] = {
        [LS_PRECISION_FP32] = "fp32", [LS_PRECISION_BF16] = "bf16", [LS_PRECISION_FP16] = "fp16"};
    return names[config->precision];
}

/* 12,345,678 */
static const char *grouped(int64_t number, char text[32]) {
    char digits[24];
    const int length = snprintf(digits, sizeof digits, "%lld", (long long)number);
    int at = 0;
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0) text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = 0;
    return text;
}

static void print_bytes(FILE *out, const char *name, int64_t bytes) {
    char text[32];
    fprintf(out, "  %-22s %19s  %10.1f MiB\n", name, grouped(bytes, text), (double)bytes / 1048576);
}

static void print_memory(const struct ls_plan_report *report, FILE *out) {
    const struct ls_plan *plan = report->plan;
    const bool gpu = report->machine->gpu;
    fprintf(out, "memory of each rank                     bytes\n");
    for (int category = 0; category < LS_MEMORY_CATEGORIES; category++)
        print_bytes(out, ls_memory_category_name((enum ls_memory_category)category), plan->category_bytes[category]);
    print_bytes(out, gpu ? "on the GPU" : "arena", plan->arena_bytes);
    for (int row = 0; row < LS_PLAN_HOST_ROWS; row++)
        if (plan->host_row_bytes[row] > 0)
            print_bytes(out, ls_plan_host_name((enum ls_plan_host)row), plan->host_row_bytes[row]);
    print_bytes(out, gpu ? "on the host" : "needed", gpu ? plan->host_bytes : ls_plan_bytes(plan, false));
    if (report->limit == 0) return;
    print_bytes(out,
                report->config->memory.limit ? "memory.limit"
                : gpu                        ? "the GPU has"
                                             : "its part of the host",
                report->limit);
    fprintf(out, "  %s: %.1f %% of it\n", report->fits ? "fits" : "DOES NOT FIT",
            100.0 * (double)ls_plan_bytes(plan, gpu) / (double)report->limit);
}

static void print_step(const struct ls_plan_report *report, FILE *out) {
    const struct ls_plan *plan = report->plan;
    const struct ls_cost_machine *machine = report->machine;
    const struct ls_cost *cost = &report->cost;
    const double tokens =
        (double)report->config->train.global_batch_size * (double)report->config->data.sequence_length;
    char text[32];
    fprintf(out, "\na step\n");
    fprintf(out, "  %-22s %19lld  of at most %lld sequences, on the fullest rank\n", "micro-batches",
            (long long)plan->micro_batches, (long long)report->config->train.micro_batch_size);
    fprintf(out, "  %-22s %19.4g  of all ranks; %.4g by the fullest\n", "FLOPs", plan->flops_per_step,
            plan->flops_of_rank);
    fprintf(out, "  %-22s %19s  bytes sent by each rank\n", "wire", grouped(plan->wire_bytes, text));
    fprintf(out, "\npredicted for %s (%s: %.4g GFLOP/s %s, of which %.0f %% are assumed; memory %.4g GB/s;\n",
            machine->name, machine->measured ? "measured now" : "data sheet", machine->flops_per_second * 1e-9,
            precision_name(report->config), machine->efficiency * 100, machine->memory_bytes_per_second * 1e-9);
    fprintf(out, "between ranks %.4g GB/s in a node of %lld, %.4g GB/s between nodes)\n",
            machine->local_link_bytes_per_second * 1e-9, (long long)machine->ranks_per_node,
            machine->node_link_bytes_per_second * 1e-9);
    fprintf(out, "  %-22s %19.4f s\n", "forward, backward", cost->compute_seconds);
    fprintf(out, "  %-22s %19.4f s\n", "update", cost->update_seconds);
    fprintf(out, "  %-22s %19.4f s, %.4f s of it not hidden behind backward\n", "communication", cost->wire_seconds,
            cost->exposed_seconds);
    fprintf(out, "  %-22s %19.4f s, %.4g tokens/s\n", "step", cost->step_seconds, tokens / cost->step_seconds);
    fprintf(out, "  %-22s %19s\n", "bottleneck", ls_cost_limit_name(cost->limit));
}

/* What a node's file system is assumed to take. */
static const double disk_bytes_per_second = 1e9;

/* A checkpoint and how often to make one. */
struct saves {
    double write_seconds;   /* every node its ranks' part */
    double blocked_seconds; /* of it not hidden behind the next forward and backward */
    double failure_seconds, interval_seconds;
};

static struct saves predict_saves(const struct ls_plan_report *report) {
    const int64_t ranks = report->plan->ranks, per_node = report->machine->ranks_per_node;
    const int64_t nodes = (ranks + per_node - 1) / per_node;
    struct saves saves = {.write_seconds =
                              (double)report->plan->checkpoint_bytes / (double)nodes / disk_bytes_per_second,
                          .failure_seconds = ls_interval_assumed_failure_seconds(ranks)};
    const double hidden = report->config->checkpoint.async ? report->cost.compute_seconds : 0;
    if (saves.write_seconds > hidden) saves.blocked_seconds = saves.write_seconds - hidden;
    saves.interval_seconds = ls_interval_advised(saves.blocked_seconds, saves.write_seconds, saves.failure_seconds);
    return saves;
}

static void print_saves(const struct ls_plan_report *report, FILE *out) {
    const struct saves saves = predict_saves(report);
    char text[32];
    fprintf(out, "\na checkpoint (a disk of 1 GB/s in each node, 48,000 hours between failures of a rank: assumed)\n");
    fprintf(out, "  %-22s %19s\n", "bytes", grouped(report->plan->checkpoint_bytes, text));
    fprintf(out, "  %-22s %19.4f s, %.4f s of it not hidden behind forward and backward\n", "writing",
            saves.write_seconds, saves.blocked_seconds);
    fprintf(out, "  %-22s %19.0f s, for a failure every %.1f hours\n", "best interval", saves.interval_seconds,
            saves.failure_seconds / 3600);
}

static void print_options(const struct ls_plan_report *report, FILE *out) {
    fprintf(out, "\nchanges that fit, the cheapest first\n");
    for (int i = 0; i < report->option_count; i++) {
        const struct ls_advice *option = &report->options[i];
        fprintf(out, "  %-44s %10.1f MiB a rank, step %.4f s\n", option->change, (double)option->bytes / 1048576,
                option->cost.step_seconds);
    }
    if (report->option_count == 0) fprintf(out, "  none: use a smaller model or more memory\n");
}

void ls_plan_report_print(const struct ls_plan_report *report, FILE *out) {
    const struct ls_config *config = report->config;
    char text[32];
    fprintf(out, "%s: %s parameters, %lld rank%s, global batch %lld x %lld tokens, %s\n\n", config->name,
            grouped(report->plan->parameters, text), (long long)report->plan->ranks,
            report->plan->ranks == 1 ? "" : "s", (long long)config->train.global_batch_size,
            (long long)config->data.sequence_length, precision_name(config));
    print_memory(report, out);
    print_step(report, out);
    print_saves(report, out);
    if (!report->fits) print_options(report, out);
}

/* Under "batches_read_ahead" for "batches read ahead". */
static void set_bytes(json_t *object, const char *name, int64_t bytes) {
    char key[64];
    snprintf(key, sizeof key, "%s", name);
    for (char *c = key; *c; c++)
        if (*c == ' ') *c = '_';
    json_object_set_new(object, key, json_integer(bytes));
}

static json_t *bytes_as_json(const struct ls_plan_report *report) {
    const struct ls_plan *plan = report->plan;
    json_t *bytes = json_object(), *host = json_object();
    for (int category = 0; category < LS_MEMORY_CATEGORIES; category++)
        set_bytes(bytes, ls_memory_category_name((enum ls_memory_category)category), plan->category_bytes[category]);
    for (int row = 0; row < LS_PLAN_HOST_ROWS; row++)
        set_bytes(host, ls_plan_host_name((enum ls_plan_host)row), plan->host_row_bytes[row]);
    json_object_set_new(bytes, "arena", json_integer(plan->arena_bytes));
    json_object_set_new(bytes, "host", host);
    json_object_set_new(bytes, "host_total", json_integer(plan->host_bytes));
    json_object_set_new(bytes, "needed", json_integer(ls_plan_bytes(plan, report->machine->gpu)));
    json_object_set_new(bytes, "limit", report->limit ? json_integer(report->limit) : json_null());
    return bytes;
}

static json_t *machine_as_json(const struct ls_cost_machine *machine) {
    return json_pack("{s:s, s:b, s:f, s:f, s:f, s:I, s:f, s:f}", "name", machine->name, "measured", machine->measured,
                     "flops_per_second", machine->flops_per_second, "efficiency", machine->efficiency,
                     "memory_bytes_per_second", machine->memory_bytes_per_second, "ranks_per_node",
                     (json_int_t)machine->ranks_per_node, "local_link_bytes_per_second",
                     machine->local_link_bytes_per_second, "node_link_bytes_per_second",
                     machine->node_link_bytes_per_second);
}

static json_t *saves_as_json(const struct ls_plan_report *report) {
    const struct saves saves = predict_saves(report);
    return json_pack("{s:I, s:f, s:f, s:f, s:f, s:f}", "bytes", (json_int_t)report->plan->checkpoint_bytes,
                     "assumed_disk_bytes_per_second", disk_bytes_per_second, "assumed_seconds_between_failures",
                     saves.failure_seconds, "write_seconds", saves.write_seconds, "blocked_seconds",
                     saves.blocked_seconds, "interval_advised_seconds", saves.interval_seconds);
}

static json_t *cost_as_json(const struct ls_cost *cost) {
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:s}", "compute_seconds", cost->compute_seconds, "update_seconds",
                     cost->update_seconds, "wire_seconds", cost->wire_seconds, "comm_exposed_seconds",
                     cost->exposed_seconds, "step_seconds", cost->step_seconds, "bottleneck",
                     ls_cost_limit_name(cost->limit));
}

bool ls_plan_report_print_json(const struct ls_plan_report *report, FILE *out) {
    const struct ls_plan *plan = report->plan;
    json_t *options = json_array();
    for (int i = 0; i < report->option_count; i++) {
        const struct ls_advice *option = &report->options[i];
        json_array_append_new(options, json_pack("{s:s, s:I, s:I, s:o}", "change", option->change, "ranks",
                                                 (json_int_t)option->ranks, "bytes", (json_int_t)option->bytes,
                                                 "predicted", cost_as_json(&option->cost)));
    }
    json_t *root = json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:o, s:b, s:I, s:f, s:f, s:o, s:o, s:o, s:o}", "version",
                             LS_VERSION, "name", report->config->name, "precision", precision_name(report->config),
                             "ranks", (json_int_t)plan->ranks, "parameters", (json_int_t)plan->parameters,
                             "micro_batches", (json_int_t)plan->micro_batches, "bytes_per_rank", bytes_as_json(report),
                             "fits", report->fits, "wire_bytes_per_step", (json_int_t)plan->wire_bytes,
                             "flops_per_step", plan->flops_per_step, "flops_of_fullest_rank", plan->flops_of_rank,
                             "machine", machine_as_json(report->machine), "predicted", cost_as_json(&report->cost),
                             "checkpoint", saves_as_json(report), "changes_that_fit", options);
    const bool printed = root && json_dumpf(root, out, JSON_INDENT(2)) == 0 && fputc('\n', out) != EOF;
    json_decref(root);
    return printed;
}
