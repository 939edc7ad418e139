/* `lockstep plan`. */
#include "coordinator/command_plan.h"

#include "common/config.h"
#include "common/corpus.h"
#include "common/status.h"
#include "coordinator/command_line.h"
#include "coordinator/plan_report.h"
#include "worker/model/model.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    OPTION_GPU = 256,
    OPTION_RANKS_PER_NODE,
    OPTION_JSON,
    RANKS_MAX = 1 << 20,
    GPUS_PER_NODE = 8 /* where --ranks-per-node is not given */
};

static const struct argp_option options_table[] = {
    {"ranks", LS_COMMAND_RANKS, "RANKS", 0, "Number of workers; else launcher.ranks, else 1", 0},
    {"gpu", OPTION_GPU, "NAME", 0, "Plan for this GPU (h100-sxm, a100-80, ...); else for the CPUs of this host", 0},
    {"ranks-per-node", OPTION_RANKS_PER_NODE, "R", 0, "Ranks of a node; else 8 with --gpu, else all of them", 0},
    LS_COMMAND_ROW_LINK_GBPS,
    {"json", OPTION_JSON, NULL, 0, "Print JSON", 0},
    LS_COMMAND_ROW_SET,
    {0}};

struct request {
    struct ls_command_common common;
    const char *gpu;
    int64_t ranks_per_node; /* 0: not given */
    bool json;
};

static error_t parse_option(int key, char *argument, struct argp_state *state) {
    struct request *request = state->input;
    switch (key) {
    case OPTION_GPU: request->gpu = argument; return 0;
    case OPTION_RANKS_PER_NODE:
        request->ranks_per_node = ls_command_number(state, "--ranks-per-node", argument, 1, RANKS_MAX);
        return 0;
    case OPTION_JSON: request->json = true; return 0;
    default: return ls_command_common_option(key, argument, state, &request->common);
    }
}

/* Data are looked at only where the configuration does not say the vocabulary: a plan is often made elsewhere. */
static enum ls_code load_config(const struct request *request, struct ls_config *config, struct ls_error *error) {
    const struct ls_command_common *common = &request->common;
    struct ls_corpus *corpus;
    enum ls_code code = ls_config_load(common->config_path, common->settings, common->settings_count, config, error);
    if (code || config->model.vocab_size) return code;
    code = ls_corpus_open(config, &corpus, error);
    if (code) return code;
    code = ls_corpus_resolve_vocab(corpus, config, error);
    ls_corpus_close(corpus);
    return code;
}

static enum ls_code find_gpu(const char *name, const struct ls_gpu **gpu, struct ls_error *error) {
    char known[512];
    const char *names[64] = {NULL};
    int count = 0;
    size_t used = 0;
    *gpu = ls_gpu_find(name);
    if (*gpu) return LS_OK;
    for (const struct ls_gpu *row; (row = ls_gpu_at(count)) && count < 64 && used < sizeof known; count++) {
        names[count] = row->name;
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", count ? ", " : "", row->name);
    }
    const char *nearest = NULL;
    for (int i = count - 1; i >= 0; i--)
        if (strncasecmp(name, names[i], strlen(name)) == 0) nearest = names[i];
    if (!nearest) nearest = ls_command_nearest(name, names, count);
    return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "--gpu: '%.64s' is not in the table%s%s%s. It has %s.", name,
                   nearest ? "; did you mean " : "", nearest ? nearest : "", nearest ? "?" : "", known);
}

static enum ls_code find_machine(const struct request *request, const struct ls_config *config, int64_t ranks,
                                 struct ls_cost_machine *machine, struct ls_error *error) {
    const double given = request->common.link_bytes_per_second, link = given > 0 ? given : LS_COST_NODE_LINK_STANDARD;
    int64_t per_node = request->ranks_per_node ? request->ranks_per_node : request->gpu ? GPUS_PER_NODE : ranks;
    if (per_node > ranks) per_node = ranks;
    if (!request->gpu)
        return ls_cost_machine_measure((int)config->launcher.threads_per_rank, per_node, link,
                                       config->train.micro_batch_size * config->data.sequence_length,
                                       config->model.hidden_size, ls_model_dtype_of(config), machine, error);
    const struct ls_gpu *gpu;
    enum ls_code code = find_gpu(request->gpu, &gpu, error);
    if (!code) *machine = ls_cost_machine_of_gpu(gpu, config->precision != LS_PRECISION_FP32, per_node, link);
    return code;
}

static enum ls_code print(const struct request *request, const struct ls_plan_report *report, struct ls_error *error) {
    bool printed = true;
    if (request->json)
        printed = ls_plan_report_print_json(report, stdout);
    else
        ls_plan_report_print(report, stdout);
    if (printed && fflush(stdout) == 0 && !ferror(stdout)) return LS_OK;
    return ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "plan: cannot write to standard output: %s.", strerror(errno));
}

static enum ls_code make_report(const struct request *request, const struct ls_config *config, struct ls_plan *plan,
                                struct ls_error *error) {
    const int64_t ranks = request->common.ranks    ? request->common.ranks
                          : config->launcher.ranks ? config->launcher.ranks
                                                   : 1;
    struct ls_cost_machine machine;
    enum ls_code code = ls_plan_make(config, ranks, request->gpu != NULL, plan, error);
    if (!code) code = find_machine(request, config, ranks, &machine, error);
    if (code) return code;
    struct ls_plan_report report = {.config = config, .plan = plan, .machine = &machine};
    report.cost = ls_cost_predict(&machine, ranks, &plan->work);
    report.limit = config->memory.limit ? config->memory.limit : machine.memory_bytes;
    report.fits = report.limit == 0 || ls_plan_bytes(plan, machine.gpu) <= report.limit;
    if (!report.fits) report.option_count = ls_advice_find(config, ranks, &machine, report.limit, report.options);
    code = print(request, &report, error);
    if (code || report.fits) return code;
    return ls_advice_refuse(config, plan, &report.cost, &machine, report.limit, error);
}

int ls_command_plan(int argc, char **argv) {
    const struct argp argp = {.options = options_table,
                              .parser = parse_option,
                              .args_doc = "CONFIG",
                              .doc = "Says what every rank needs and what a step costs, without starting anything."};
    struct request request = {.common = {.ranks_max = RANKS_MAX}};
    struct ls_error error = {0};
    struct ls_plan plan = {0};
    ls_command_parse(&argp, argc, argv, &request);
    struct ls_config *config = malloc(sizeof *config);
    enum ls_code code = config ? load_config(&request, config, &error)
                               : ls_fail(&error, LS_MEMORY, LS_SCOPE_CALL, "plan: no memory for the configuration");
    if (!code) code = make_report(&request, config, &plan, &error);
    ls_plan_release(&plan);
    free(config);
    return ls_report_exit(code, error.text);
}
