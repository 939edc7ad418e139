/* Tries what can be changed, one setting after another. */
#include "worker/advice.h"

#include "worker/memory/host_memory.h"
#include "worker/model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A rank count that nobody has. */
static const int64_t ranks_most = 4096;

/* A setting that can be turned further, step by step, towards less memory of a rank. */
struct knob {
    /* The next value; false: there is none. */
    bool (*turn)(struct ls_config *config, int64_t *ranks);
    /* The value as a command line says it. */
    void (*say)(const struct ls_config *config, int64_t ranks, char *text, size_t size);
};

static bool turn_micro_batch(struct ls_config *config, int64_t *ranks) {
    (void)ranks;
    if (config->train.micro_batch_size == 1) return false;
    config->train.micro_batch_size /= 2;
    return true;
}

static void say_micro_batch(const struct ls_config *config, int64_t ranks, char *text, size_t size) {
    (void)ranks;
    snprintf(text, size, "--set train.micro_batch_size=%lld", (long long)config->train.micro_batch_size);
}

static bool turn_ranks(struct ls_config *config, int64_t *ranks) {
    if (*ranks * 2 > config->train.global_batch_size || *ranks * 2 > ranks_most) return false;
    *ranks *= 2;
    return true;
}

static void say_ranks(const struct ls_config *config, int64_t ranks, char *text, size_t size) {
    (void)config;
    snprintf(text, size, "-n %lld", (long long)ranks);
}

/* none, selective, full with segments of 1, 2, 4 ... layers. */
static bool turn_checkpointing(struct ls_config *config, int64_t *ranks) {
    (void)ranks;
    int64_t *every = &config->activation_checkpointing.every;
    switch (config->activation_checkpointing.mode) {
    case LS_CHECKPOINTING_NONE: config->activation_checkpointing.mode = LS_CHECKPOINTING_SELECTIVE; return true;
    case LS_CHECKPOINTING_SELECTIVE:
        config->activation_checkpointing.mode = LS_CHECKPOINTING_FULL;
        *every = 1;
        return true;
    case LS_CHECKPOINTING_FULL:
        if (*every * 2 >= config->model.num_hidden_layers) return false;
        *every *= 2;
        return true;
    }
    return false;
}

static void say_checkpointing(const struct ls_config *config, int64_t ranks, char *text, size_t size) {
    (void)ranks;
    if (config->activation_checkpointing.mode == LS_CHECKPOINTING_SELECTIVE)
        snprintf(text, size, "--set activation_checkpointing.mode=selective");
    else
        snprintf(text, size, "--set activation_checkpointing='{mode: full, every: %lld}'",
                 (long long)config->activation_checkpointing.every);
}

/* From stage 2 on no whole gradients are there to accumulate in. */
static bool turn_stage(struct ls_config *config, int64_t *ranks) {
    if (*ranks == 1 || config->zero.stage == 3) return false;
    config->zero.stage++;
    if (config->zero.accumulate == LS_ACCUMULATE_LOCAL && config->zero.stage >= 2)
        config->zero.accumulate = LS_ACCUMULATE_SHARDED;
    return true;
}

static void say_stage(const struct ls_config *config, int64_t ranks, char *text, size_t size) {
    (void)ranks;
    snprintf(text, size, "--set zero.stage=%lld%s", (long long)config->zero.stage,
             config->zero.accumulate == LS_ACCUMULATE_SHARDED ? " --set zero.accumulate=sharded" : "");
}

/* Ranks before the stage: a stage is of use from two ranks on. */
static const struct knob knobs[] = {
    {turn_ranks, say_ranks},
    {turn_stage, say_stage},
    {turn_checkpointing, say_checkpointing},
    {turn_micro_batch, say_micro_batch},
};
enum { KNOBS = sizeof knobs / sizeof knobs[0] };

/* What is tried now. */
struct trial {
    const struct ls_cost_machine *machine;
    int64_t limit;
    struct ls_config config;
    int64_t ranks;
    bool turned[KNOBS];
};

/* True if the trial fits; it is described then. */
static bool evaluate(const struct trial *trial, struct ls_advice *advice) {
    struct ls_plan plan = {0};
    bool fits = ls_plan_make(&trial->config, trial->ranks, trial->machine->gpu, &plan, NULL) == LS_OK &&
                ls_plan_bytes(&plan, trial->machine->gpu) <= trial->limit;
    if (fits) {
        *advice = (struct ls_advice){.ranks = trial->ranks, .bytes = ls_plan_bytes(&plan, trial->machine->gpu)};
        advice->cost = ls_cost_predict(trial->machine, trial->ranks, &plan.work);
        size_t used = 0;
        for (int i = 0; i < KNOBS; i++) {
            char text[96];
            if (!trial->turned[i]) continue;
            knobs[i].say(&trial->config, trial->ranks, text, sizeof text);
            used +=
                (size_t)snprintf(advice->change + used, sizeof advice->change - used, "%s%s", used ? " " : "", text);
        }
    }
    ls_plan_release(&plan);
    return fits;
}

static double price(const struct ls_advice *advice) {
    return advice->cost.step_seconds * (double)advice->ranks;
}

static int compare_prices(const void *left, const void *right) {
    const double a = price(left), b = price(right);
    return (a > b) - (a < b);
}

/* The cheapest so far; `best` counts if `found`. */
struct cheapest {
    struct ls_advice best;
    bool found;
};

/* All values of the knobs from `first` on. */
static void try_together(const struct trial *trial, int first, struct cheapest *cheapest) {
    struct ls_advice advice;
    if (first == KNOBS) {
        if (!evaluate(trial, &advice) || (cheapest->found && price(&advice) >= price(&cheapest->best))) return;
        *cheapest = (struct cheapest){advice, true};
        return;
    }
    struct trial *turned = malloc(sizeof *turned);
    if (!turned) return;
    *turned = *trial;
    do {
        try_together(turned, first + 1, cheapest);
        turned->turned[first] = true;
    } while (knobs[first].turn(&turned->config, &turned->ranks));
    free(turned);
}

int ls_advice_find(const struct ls_config *config, int64_t ranks, const struct ls_cost_machine *machine, int64_t limit,
                   struct ls_advice options[LS_ADVICE_MAX]) {
    int count = 0;
    struct trial *trial = malloc(sizeof *trial);
    for (int i = 0; trial && i < KNOBS; i++) {
        *trial = (struct trial){.machine = machine, .limit = limit, .config = *config, .ranks = ranks};
        trial->turned[i] = true;
        bool fits = false;
        while (!fits && knobs[i].turn(&trial->config, &trial->ranks)) fits = evaluate(trial, &options[count]);
        count += fits;
    }
    if (trial && count == 0) {
        *trial = (struct trial){.machine = machine, .limit = limit, .config = *config, .ranks = ranks};
        struct cheapest same_ranks = {.found = false}, any_ranks = {.found = false};
        try_together(trial, 1, &same_ranks);
        try_together(trial, 0, &any_ranks);
        if (same_ranks.found) options[count++] = same_ranks.best;
        if (any_ranks.found && any_ranks.best.ranks != ranks) options[count++] = any_ranks.best;
    }
    free(trial);
    qsort(options, (size_t)count, sizeof *options, compare_prices);
    return count;
}

/* "parameters 1.0 MiB, gradients 1.0 MiB, ..." without rows of nothing. */
static void describe_bytes(const struct ls_plan *plan, bool gpu, char *text, size_t size) {
    size_t used = 0;
    text[0] = 0;
    for (int row = 0; row < LS_MEMORY_CATEGORIES + LS_PLAN_HOST_ROWS && used < size; row++) {
        const bool host = row >= LS_MEMORY_CATEGORIES;
        const int64_t bytes = host ? plan->host_row_bytes[row - LS_MEMORY_CATEGORIES] : plan->category_bytes[row];
        const char *name = host ? ls_plan_host_name((enum ls_plan_host)(row - LS_MEMORY_CATEGORIES))
                                : ls_memory_category_name((enum ls_memory_category)row);
        if (bytes == 0 || (host && gpu)) continue;
        used +=
            (size_t)snprintf(text + used, size - used, "%s%s %.1f", used ? ", " : "", name, (double)bytes / 1048576);
    }
}

enum ls_code ls_advice_refuse(const struct ls_config *config, const struct ls_plan *plan, const struct ls_cost *cost,
                              const struct ls_cost_machine *machine, int64_t limit, struct ls_error *error) {
    struct ls_advice options[LS_ADVICE_MAX];
    const int count = ls_advice_find(config, plan->ranks, machine, limit, options);
    char table[320], advice[256];
    describe_bytes(plan, machine->gpu, table, sizeof table);
    if (count > 0)
        snprintf(advice, sizeof advice,
                 "The cheapest change that fits: %s (%.1f MiB, a step of about %.2f times the "
                 "time). 'lockstep plan' shows all.",
                 options[0].change, (double)options[0].bytes / 1048576,
                 options[0].cost.step_seconds / cost->step_seconds);
    else
        snprintf(advice, sizeof advice,
                 "No zero.stage, activation checkpointing, micro-batch or number of ranks is enough: use a smaller "
                 "model or more memory.");
    return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB,
                   "memory: each of %lld ranks needs %.1f MiB, and %s %.1f MiB (planned, in MiB: %s). %s",
                   (long long)plan->ranks, (double)ls_plan_bytes(plan, machine->gpu) / 1048576,
                   config->memory.limit == limit ? "memory.limit allows"
                   : machine->gpu                ? "the GPU has for it"
                                                 : "its part of the host's memory is",
                   (double)limit / 1048576, table, advice);
}

/* The machine by which changes are compared. A GPU that the table does not know is taken for its first one: what counts
 * are the proportions of times. */
static enum ls_code find_machine(const struct ls_config *config, int64_t ranks_per_node, int threads,
                                 const struct ls_advice_gpu *gpu, struct ls_cost_machine *machine,
                                 struct ls_error *error) {
    if (!gpu)
        return ls_cost_machine_measure(threads, ranks_per_node, LS_COST_NODE_LINK_STANDARD,
                                       config->train.micro_batch_size * config->data.sequence_length,
                                       config->model.hidden_size, ls_model_dtype_of(config), machine, error);
    const struct ls_gpu *row = ls_gpu_of_driver(gpu->name);
    *machine = ls_cost_machine_of_gpu(row ? row : ls_gpu_at(0), config->precision != LS_PRECISION_FP32, ranks_per_node,
                                      LS_COST_NODE_LINK_STANDARD);
    return LS_OK;
}

enum ls_code ls_advice_check(const struct ls_config *config, int64_t ranks, int64_t ranks_per_node, int threads,
                             const struct ls_advice_gpu *gpu, int64_t *bytes, struct ls_error *error) {
    struct ls_plan plan;
    const int64_t limit = config->memory.limit ? config->memory.limit
                          : gpu                ? gpu->bytes
                                               : ls_host_memory_bytes() / ranks_per_node;
    enum ls_code code = ls_plan_make(config, ranks, gpu != NULL, &plan, error);
    if (!code && limit > 0 && ls_plan_bytes(&plan, gpu != NULL) > limit) {
        struct ls_cost_machine machine;
        code = find_machine(config, ranks_per_node, threads, gpu, &machine, error);
        if (!code) {
            const struct ls_cost cost = ls_cost_predict(&machine, ranks, &plan.work);
            code = ls_advice_refuse(config, &plan, &cost, &machine, limit, error);
        }
    }
    if (bytes) *bytes = ls_plan_bytes(&plan, gpu != NULL);
    ls_plan_release(&plan);
    return code;
}
