/* Defaults that follow from other keys, and the rules between keys. */
#include "common/config_rules.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct ls_yaml_node *given_value(const struct ls_config_given *given, const char *key) {
    int row = ls_key_find(&ls_config_keys, key);
    return row < 0 ? NULL : given->values[row];
}

enum ls_code ls_config_refuse(const struct ls_config_given *given, const char *key, struct ls_error *error,
                              const char *format, ...) {
    char text[sizeof error->text];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    const struct ls_yaml_node *value = given_value(given, key);
    if (!value) return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "%s: %s: %s", given->label, key, text);
    return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "%s:%d:%d: %s: %s", value->label, value->line, value->column, key,
                   text);
}

/* [A-Za-z0-9][A-Za-z0-9._-]{0,63} */
static bool is_name(const char *text) {
    size_t length = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
    return length > 0 && !text[length] && isalnum((unsigned char)text[0]);
}

static enum ls_code resolve_name(const struct ls_config_given *given, struct ls_config *config,
                                 struct ls_error *error) {
    if (!config->name[0]) {
        const char *slash = strrchr(given->label, '/');
        const char *file = slash ? slash + 1 : given->label;
        const char *dot = strrchr(file, '.');
        size_t stem = dot && dot != file ? (size_t)(dot - file) : strlen(file);
        if (stem < sizeof config->name) memcpy(config->name, file, stem);
        if (!is_name(config->name)) {
            char found[sizeof config->name];
            snprintf(found, sizeof found, "%.*s", (int)stem, file);
            return ls_config_refuse(
                given, "name", error,
                "not given, and the file's stem '%s' is no name: 1 to 64 letters, digits, '.', '_' and "
                "'-', a letter or digit first. Set name.",
                found);
        }
    }
    if (is_name(config->name)) return LS_OK;
    return ls_config_refuse(
        given, "name", error,
        "found '%s', allowed: letters, digits, '.', '_' and '-', a letter or digit first. Choose such a "
        "name.",
        config->name);
}

static void derive_model(const struct ls_config_given *given, struct ls_config *config) {
    bool gpt2 = config->model.model_type == LS_GPT2;
    if (!config->model.num_key_value_heads) config->model.num_key_value_heads = config->model.num_attention_heads;
    if (!config->model.head_dim) config->model.head_dim = config->model.hidden_size / config->model.num_attention_heads;
    if (!config->model.intermediate_size && gpt2) config->model.intermediate_size = 4 * config->model.hidden_size;
    if (!config->model.max_position_embeddings) config->model.max_position_embeddings = config->data.sequence_length;
    if (!given_value(given, "model.tie_word_embeddings") && !config->model.init_from[0])
        config->model.tie_word_embeddings = gpt2;
}

static void derive_optimizer(const struct ls_config_given *given, struct ls_config *config) {
    if (!given_value(given, "optimizer.momentum"))
        config->optimizer.momentum = config->optimizer.type == LS_MUON ? 0.95 : 0.9;
    if (given_value(given, "optimizer.betas")) return;
    config->optimizer.beta1 = 0.9;
    config->optimizer.beta2 = config->optimizer.type == LS_LION ? 0.99 : 0.95;
}

static enum ls_code check_model(const struct ls_config_given *given, const struct ls_config *config,
                                struct ls_error *error) {
    long long hidden = config->model.hidden_size, heads = config->model.num_attention_heads;
    long long groups = config->model.num_key_value_heads, width = config->model.head_dim;
    bool rotary = config->model.model_type != LS_GPT2;
    if (hidden % heads && !given_value(given, "model.head_dim") && !config->model.init_from[0])
        return ls_config_refuse(given, "model.num_attention_heads", error,
                                "found %lld, which does not divide model.hidden_size %lld. Change one of the two.",
                                heads, hidden);
    if (heads % groups)
        return ls_config_refuse(
            given, "model.num_key_value_heads", error,
            "found %lld, which does not divide model.num_attention_heads %lld. Change one of the two.", groups, heads);
    if (rotary && (width % 2 || width > LS_CONFIG_HEAD_DIM_MAX))
        return ls_config_refuse(given, "model.head_dim", error,
                                "found %lld, allowed: an even number up to %d, because rotary positions turn pairs. "
                                "Change model.hidden_size, model.num_attention_heads or model.head_dim.",
                                width, LS_CONFIG_HEAD_DIM_MAX);
    if (!config->model.intermediate_size)
        return ls_config_refuse(given, "model.intermediate_size", error,
                                "not given, and %s has no default for it. Set it, for example to %lld.",
                                ls_model_type_name(config->model.model_type), (hidden * 8 / 3 + 63) / 64 * 64);
    if (config->data.sequence_length > config->model.max_position_embeddings)
        return ls_config_refuse(
            given, "data.sequence_length", error,
            "found %lld, allowed: at most model.max_position_embeddings %lld. Lower the first or raise "
            "the second.",
            (long long)config->data.sequence_length, (long long)config->model.max_position_embeddings);
    if (config->model.rope_scaling.llama3 &&
        config->model.rope_scaling.low_freq_factor >= config->model.rope_scaling.high_freq_factor)
        return ls_config_refuse(given, "model.rope_scaling.low_freq_factor", error,
                                "found %g, allowed: less than high_freq_factor %g. Llama 3.1 has 1 and 4.",
                                config->model.rope_scaling.low_freq_factor,
                                config->model.rope_scaling.high_freq_factor);
    return LS_OK;
}

static enum ls_code check_sources(const struct ls_config_given *given, const struct ls_config *config,
                                  struct ls_error *error) {
    if (!config->data.train_count)
        return ls_config_refuse(given, "data.train", error, "found an empty list. Name at least one dataset.");
    int weighted = 0;
    for (int i = 0; i < config->data.train_count; i++) weighted += config->data.train[i].weight > 0;
    if (weighted && weighted < config->data.train_count)
        return ls_config_refuse(given, "data.train", error,
                                "%d of %d datasets have a weight. Give a weight to all of them, or to none.", weighted,
                                config->data.train_count);
    if (weighted && config->train.epochs)
        return ls_config_refuse(
            given, "train.epochs", error,
            "found %lld, but datasets with weights have no common epoch. Give train.steps instead, or "
            "take the weights out.",
            (long long)config->train.epochs);
    for (int i = 0; i < config->data.validation_count; i++)
        if (config->data.validation[i].weight)
            return ls_config_refuse(
                given, "data.validation", error,
                "dataset %d has a weight, but an evaluation takes every dataset as it is. Take it out.", i);
    if (config->evaluation.every_steps && !config->data.validation_count)
        return ls_config_refuse(given, "evaluation.every_steps", error,
                                "found %lld, but data.validation names no dataset. Name one, or set 0.",
                                (long long)config->evaluation.every_steps);
    return LS_OK;
}

static enum ls_code check_training(const struct ls_config_given *given, const struct ls_config *config,
                                   struct ls_error *error) {
    if (!config->train.steps == !config->train.epochs)
        return ls_config_refuse(given, config->train.steps ? "train.epochs" : "train.steps", error,
                                config->train.steps
                                    ? "given beside train.steps. Keep exactly one of the two."
                                    : "neither train.steps nor train.epochs is given. Set one of the two.");
    if (config->train.micro_batch_size > config->train.global_batch_size)
        return ls_config_refuse(given, "train.micro_batch_size", error,
                                "found %lld, allowed: at most train.global_batch_size %lld. Lower it.",
                                (long long)config->train.micro_batch_size, (long long)config->train.global_batch_size);
    if (config->activation_checkpointing.every > 1 && config->activation_checkpointing.mode != LS_CHECKPOINTING_FULL)
        return ls_config_refuse(given, "activation_checkpointing.every", error,
                                "found %lld, but only activation_checkpointing.mode: full has segments of layers. Set "
                                "that mode, or take this key out.",
                                (long long)config->activation_checkpointing.every);
    if (config->train.steps && config->lr_schedule.warmup_steps > config->train.steps)
        return ls_config_refuse(given, "lr_schedule.warmup_steps", error,
                                "found %lld, allowed: at most train.steps %lld. Lower it.",
                                (long long)config->lr_schedule.warmup_steps, (long long)config->train.steps);
    return LS_OK;
}

/* Moments are fp32: what is 1 there never decays, and divides by nothing in the correction of their bias. */
static enum ls_code check_optimizer(const struct ls_config_given *given, const struct ls_config *config,
                                    struct ls_error *error) {
    const enum ls_optimizer_type type = config->optimizer.type;
    const double beta1 = config->optimizer.beta1, beta2 = config->optimizer.beta2;
    const struct {
        const char *key;
        bool applies;
        double largest;
    } decays[] = {{"optimizer.betas", type != LS_SGD, beta1 > beta2 ? beta1 : beta2},
                  {"optimizer.momentum", type == LS_SGD || type == LS_MUON, config->optimizer.momentum}};
    for (size_t i = 0; i < sizeof decays / sizeof *decays; i++)
        if (decays[i].applies && (float)decays[i].largest >= 1)
            return ls_config_refuse(given, decays[i].key, error,
                                    "found %.12g, which is 1 in fp32, the type of the moments. Use 0.9999999 at most.",
                                    decays[i].largest);
    return LS_OK;
}

static enum ls_code check_zero(const struct ls_config_given *given, const struct ls_config *config,
                               struct ls_error *error) {
    const long long stage = config->zero.stage;
    if (stage == 0 && config->zero.accumulate == LS_ACCUMULATE_SHARDED)
        return ls_config_refuse(given, "zero.accumulate", error,
                                "found sharded, but nothing is sharded at zero.stage 0. Use local, or a stage from 1 "
                                "to 3.");
    if (stage == 0 && config->zero.replicas > 1)
        return ls_config_refuse(given, "zero.replicas", error,
                                "found %lld, but at zero.stage 0 every rank is a whole replica already. Take this key "
                                "out, or set a stage from 1 to 3.",
                                (long long)config->zero.replicas);
    if (config->train.reduction == LS_REDUCTION_FIXED && config->zero.gradient_dtype != LS_GRADIENT_FP32)
        return ls_config_refuse(
            given, "zero.gradient_dtype", error,
            "found bf16, but train.reduction: fixed sends sums of several slots, whose rounding would "
            "depend on the number of ranks. Use fp32, or train.reduction: fast.");
    if (stage >= 2 && config->zero.accumulate == LS_ACCUMULATE_LOCAL)
        return ls_config_refuse(given, "zero.accumulate", error,
                                "found local, but zero.stage %lld keeps no whole gradients to accumulate in. Use auto "
                                "or sharded, or stage 1.",
                                stage);
    return LS_OK;
}

/* What is kept for its validation loss has to have one. */
static enum ls_code check_retention(const struct ls_config_given *given, const struct ls_config *config,
                                    struct ls_error *error) {
    const int64_t saves = config->checkpoint.every_steps, evaluations = config->evaluation.every_steps;
    if (config->checkpoint.keep_best == 0) return LS_OK;
    if (evaluations == 0 || config->data.validation_count == 0)
        return ls_config_refuse(given, "checkpoint.keep_best", error,
                                "found %lld, but nothing is evaluated. Set evaluation.every_steps and data.validation, "
                                "or take this key out.",
                                (long long)config->checkpoint.keep_best);
    if (saves == 0 || saves % evaluations != 0)
        return ls_config_refuse(given, "checkpoint.keep_best", error,
                                "found %lld, but checkpoint.every_steps %lld is no multiple of evaluation.every_steps "
                                "%lld: most checkpoints would have no validation loss. Set it to a multiple.",
                                (long long)config->checkpoint.keep_best, (long long)saves, (long long)evaluations);
    return LS_OK;
}

static enum ls_code check_address(const struct ls_config_given *given, const struct ls_config *config,
                                  struct ls_error *error) {
    unsigned char address[sizeof(struct in6_addr)];
    const char *bind = config->coordinator.bind;
    if (strcmp(bind, "auto") != 0 && config->coordinator.interface[0])
        return ls_config_refuse(given, "coordinator.interface", error,
                                "found %s beside coordinator.bind %s. Keep one of the two.",
                                config->coordinator.interface, bind);
    if (!strcmp(bind, "auto") || inet_pton(AF_INET, bind, address) == 1 || inet_pton(AF_INET6, bind, address) == 1)
        return LS_OK;
    return ls_config_refuse(
        given, "coordinator.bind", error,
        "found '%s', allowed: auto or a numeric address such as 127.0.0.1 or 0.0.0.0. Host names are not "
        "taken, since they may mean several addresses.",
        bind);
}

/* NAME or NAME=value, NAME as a shell takes it. */
static enum ls_code check_environment(const struct ls_config_given *given, const struct ls_config *config,
                                      struct ls_error *error) {
    for (int i = 0; i < config->launcher.environment_count; i++) {
        const char *text = config->launcher.environment[i];
        size_t length = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_");
        if (length > 0 && !isdigit((unsigned char)text[0]) && (!text[length] || text[length] == '=')) continue;
        return ls_config_refuse(given, "launcher.environment", error,
                                "entry %d is '%.60s', allowed: NAME or NAME=value, NAME of letters, digits and '_'. "
                                "Correct it.",
                                i, text);
    }
    return LS_OK;
}

static enum ls_code make_path_absolute(const struct ls_config_given *given, const char *key, const char *what,
                                       char path[LS_CONFIG_PATH_MAX], struct ls_error *error) {
    char folder[4096], relative[LS_CONFIG_PATH_MAX];
    if (!path[0] || path[0] == '/' || !strncmp(path, "synthetic:", strlen("synthetic:"))) return LS_OK;
    if (!getcwd(folder, sizeof folder))
        return ls_fail(error, LS_ERROR, LS_SCOPE_CALL, "The current directory has no path: %s. Change to another one.",
                       strerror(errno));
    while (!strncmp(path, "./", 2)) memmove(path, path + 2, strlen(path) - 1);
    snprintf(relative, sizeof relative, "%s", path);
    const char *slash = strcmp(folder, "/") ? "/" : "";
    if (strlen(folder) + strlen(slash) + strlen(relative) >= LS_CONFIG_PATH_MAX)
        return ls_config_refuse(given, key, error,
                                "the absolute path of %s is longer than %d bytes. Move it, or run nearer to the root.",
                                what, LS_CONFIG_PATH_MAX - 1);
    memset(path, 0, LS_CONFIG_PATH_MAX);
    snprintf(path, LS_CONFIG_PATH_MAX, "%s%s%.1023s", folder, slash, relative);
    return LS_OK;
}

static enum ls_code make_absolute(const struct ls_config_given *given, const char *key,
                                  struct ls_config_source *sources, int count, struct ls_error *error) {
    enum ls_code code = LS_OK;
    for (int i = 0; i < count && code == LS_OK; i++) {
        char what[32];
        snprintf(what, sizeof what, "dataset %d", i);
        code = make_path_absolute(given, key, what, sources[i].path, error);
    }
    return code;
}

enum ls_code ls_config_resolve(const struct ls_config_given *given, struct ls_config *config, struct ls_error *error) {
    derive_model(given, config);
    derive_optimizer(given, config);
    enum ls_code code = resolve_name(given, config, error);
    if (code == LS_OK) code = check_model(given, config, error);
    if (code == LS_OK) code = check_sources(given, config, error);
    if (code == LS_OK) code = check_training(given, config, error);
    if (code == LS_OK) code = check_optimizer(given, config, error);
    if (code == LS_OK) code = check_zero(given, config, error);
    if (code == LS_OK) code = check_retention(given, config, error);
    if (code == LS_OK) code = check_address(given, config, error);
    if (code == LS_OK) code = check_environment(given, config, error);
    if (code == LS_OK)
        code = make_path_absolute(given, "model.init_from", "the folder", config->model.init_from, error);
    if (code == LS_OK) code = make_absolute(given, "data.train", config->data.train, config->data.train_count, error);
    if (code == LS_OK)
        code = make_path_absolute(given, "metrics.prometheus", "the folder", config->metrics.prometheus, error);
    if (code == LS_OK)
        code = make_absolute(given, "data.validation", config->data.validation, config->data.validation_count, error);
    return code;
}

enum ls_code ls_config_check_ranks(const struct ls_config *config, int64_t ranks, struct ls_error *error) {
    long long batch = config->train.global_batch_size;
    if (ranks < 1)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "%lld ranks cannot train. Use at least 1.", (long long)ranks);
    if (ranks > batch)
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_CALL,
            "train.global_batch_size: %lld sequences cannot feed %lld ranks: a full step must have at least one "
            "sequence per rank. Use at most %lld ranks, or a global batch of at least %lld.",
            batch, (long long)ranks, batch, (long long)ranks);
    const long long slots = ls_config_slots(config, batch);
    if (config->train.reduction == LS_REDUCTION_FIXED && ranks > slots)
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_CALL,
            "train.reduction: fixed deals whole slots of train.micro_batch_size %lld sequences to ranks, and a batch "
            "of "
            "%lld has %lld: not enough for %lld ranks. Use at most %lld ranks, a smaller train.micro_batch_size or a "
            "larger train.global_batch_size.",
            (long long)config->train.micro_batch_size, batch, slots, (long long)ranks, slots);
    if (config->fault.replica_check_every > 0 && config->zero.stage == 3 && config->zero.replicas == 1)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                       "fault.replica_check_every: found %lld, but zero.stage 3 with zero.replicas 1 keeps one copy of "
                       "the parameters: there is nothing to compare. Set it to 0, or use another stage or replicas.",
                       (long long)config->fault.replica_check_every);
    if (ranks % config->zero.replicas)
        return ls_fail(
            error, LS_USAGE, LS_SCOPE_CALL,
            "zero.replicas: %lld does not divide %lld ranks: every replica is a group of equally many ranks. "
            "Choose a divisor of the ranks, or another number of ranks.",
            (long long)config->zero.replicas, (long long)ranks);
    return LS_OK;
}

int64_t ls_config_micro_batches(const struct ls_config *config, int64_t sequences, int64_t ranks) {
    const int64_t own = (sequences + ranks - 1) / ranks, each = config->train.micro_batch_size;
    return (own + each - 1) / each;
}

int64_t ls_config_slots(const struct ls_config *config, int64_t sequences) {
    return (sequences + config->train.micro_batch_size - 1) / config->train.micro_batch_size;
}
