/* Sums, and rules of advice. */
#include "coordinator/bill.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* What is worth to be told, as a part of the run's time. */
static const double WORTH = 0.02;

const char *ls_bill_name(enum ls_bill_row row) {
    static const char *const names[LS_BILL_ROWS] = {
        "compute", "communication", "data", "waiting for ranks", "checkpoints", "repeated steps", "start and rest"};
    return names[row];
}

const char *ls_bill_key(enum ls_bill_row row) {
    static const char *const keys[LS_BILL_ROWS] = {"compute_seconds", "comm_exposed_seconds", "data_wait_seconds",
                                                   "wait_seconds",    "checkpoint_seconds",   "repeated_seconds",
                                                   "rest_seconds"};
    return keys[row];
}

void ls_bill_step(struct ls_bill *bill, const struct ls_step_report *report) {
    bill->steps++;
    if (report->step <= bill->newest_step) {
        bill->repeated_steps++;
        bill->seconds[LS_BILL_REPEATED] += report->step_seconds;
        return;
    }
    bill->newest_step = report->step;
    bill->seconds[LS_BILL_COMPUTE] += report->compute_seconds;
    bill->seconds[LS_BILL_COMMUNICATION] += report->comm_exposed_seconds;
    bill->seconds[LS_BILL_DATA] += report->data_wait_seconds;
    bill->seconds[LS_BILL_RANKS] += report->wait_seconds;
    bill->seconds[LS_BILL_CHECKPOINTS] += report->checkpoint_seconds;
    if (report->wait_for_rank >= 0 && report->wait_for_rank < LS_WIRE_WORLD_MAX)
        bill->waits[report->wait_for_rank] += report->wait_seconds;
}

void ls_bill_rows(const struct ls_bill *bill, double wall, double rows[LS_BILL_ROWS]) {
    double sum = 0;
    for (int row = 0; row < LS_BILL_REST; row++) sum += rows[row] = bill->seconds[row];
    rows[LS_BILL_REST] = wall > sum ? wall - sum : 0;
}

/* ---- advice ---- */

/* The best pieces so far. */
struct list {
    struct ls_bill_advice *advice;
    double least; /* seconds */
    int count;
};

static void offer(struct list *list, double seconds, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void offer(struct list *list, double seconds, const char *format, ...) {
    if (!(seconds >= list->least)) return;
    int place = list->count;
    while (place > 0 && list->advice[place - 1].seconds < seconds) place--;
    if (place == LS_BILL_ADVICE_MAX) return;
    if (list->count < LS_BILL_ADVICE_MAX) list->count++;
    memmove(&list->advice[place + 1], &list->advice[place], (size_t)(list->count - 1 - place) * sizeof *list->advice);
    struct ls_bill_advice *advice = &list->advice[place];
    advice->seconds = seconds;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(advice->text, sizeof advice->text, format, arguments);
    va_end(arguments);
}

static void advise_ranks(const struct ls_bill *bill, int64_t ranks, struct list *list) {
    int64_t worst = 0;
    double sum = 0;
    if (ranks < 2 || ranks > LS_WIRE_WORLD_MAX) return;
    for (int64_t rank = 0; rank < ranks; rank++) {
        sum += bill->waits[rank];
        if (bill->waits[rank] > bill->waits[worst]) worst = rank;
    }
    const double others = (sum - bill->waits[worst]) / (double)(ranks - 1);
    offer(list, bill->waits[worst] - others,
          "rank %lld: the others waited %.1f s for it. Look for what else runs on its host, and at its clock and "
          "temperature.",
          (long long)worst, bill->waits[worst]);
}

static void advise_communication(double exposed, const struct ls_bill_facts *facts, struct list *list) {
    const struct ls_config *config = facts->config;
    const int64_t micro_batches = ls_config_micro_batches(config, config->train.global_batch_size, facts->ranks);
    const bool fixed = config->train.reduction == LS_REDUCTION_FIXED;
    if (facts->ranks < 2) return;
    if (micro_batches > 1 && config->zero.stage <= 1 && config->zero.accumulate == LS_ACCUMULATE_SHARDED)
        offer(list, exposed * (1 - 1 / (double)micro_batches),
              "zero.accumulate=local: gradients are reduced once a step, not for each of its %lld micro-batches.",
              (long long)micro_batches);
    else if (config->zero.gradient_dtype == LS_GRADIENT_FP32 && !fixed)
        offer(list,
              exposed * (config->zero.stage == 0  ? 1.0 / 2
                         : config->zero.stage < 3 ? 1.0 / 4
                                                  : 1.0 / 6),
              "zero.gradient_dtype=bf16: gradients take half the bytes on the wire.");
    else
        offer(list, exposed / 2,
              "train.global_batch_size: twice as many sequences a step need the same communication.");
}

static void advise_saves(const double seconds[LS_BILL_ROWS], const struct ls_bill_facts *facts, struct list *list) {
    const double now = facts->save_interval, best = facts->best_interval;
    if (!(now > 0) || !(best > 0)) return;
    if (best > now)
        offer(list, seconds[LS_BILL_CHECKPOINTS] * (1 - now / best),
              "checkpoint.every_steps, every_seconds: saves came every %.3g s, every %.3g s would be best.", now, best);
    else
        offer(list, seconds[LS_BILL_REPEATED] * (1 - best / now),
              "checkpoint.every_steps, every_seconds: saves came every %.3g s, and steps were lost; every %.3g s would "
              "be best.",
              now, best);
}

int ls_bill_advise(const struct ls_bill *bill, double wall, const struct ls_bill_facts *facts,
                   struct ls_bill_advice advice[LS_BILL_ADVICE_MAX]) {
    struct list list = {.advice = advice, .least = WORTH * wall};
    if (!(wall > 0)) return 0;
    const double *seconds = bill->seconds;
    offer(&list, seconds[LS_BILL_DATA],
          "data: put the datasets on a faster or a local file system, or read them once before the run.");
    advise_ranks(bill, facts->ranks, &list);
    advise_communication(seconds[LS_BILL_COMMUNICATION], facts, &list);
    advise_saves(seconds, facts, &list);
    if (facts->config->activation_checkpointing.mode == LS_CHECKPOINTING_FULL)
        offer(&list, seconds[LS_BILL_COMPUTE] / 4,
              "activation_checkpointing.mode=none, or selective, computes nothing, or less, again: 'lockstep plan' "
              "tells whether it fits.");
    return list.count;
}
