/* Differences of configurations, key by key. */
#define _GNU_SOURCE
#include "coordinator/config_change.h"

#include "common/key_table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const numbers_keys[] = {
    "model.layer_norm_epsilon",
    "model.rms_norm_eps",
    "model.rope_theta",
    "model.rope_scaling.factor",
    "model.rope_scaling.low_freq_factor",
    "model.rope_scaling.high_freq_factor",
    "model.rope_scaling.original_max_position_embeddings",
    "train.steps",
    "train.epochs",
    "train.global_batch_size",
    "train.micro_batch_size",
    "train.gradient_clipping",
    "train.reduction",
    "precision",
    "optimizer.lr",
    "optimizer.betas",
    "optimizer.momentum",
    "optimizer.eps",
    "optimizer.weight_decay",
    "optimizer.stochastic_rounding",
    "lr_schedule.type",
    "lr_schedule.warmup_steps",
    "lr_schedule.min_lr_ratio",
    "lr_schedule.decay_ratio",
    "zero.gradient_dtype",
    "gpu.tf32",
};

/* `config` is the one before, NULL for the most that a change of the key may do. */
static enum ls_config_effect effect_of(const struct ls_key *key, const struct ls_config *config) {
    if (!key->identity) return LS_EFFECT_NONE;
    if (ls_key_is_of_data(key)) return LS_EFFECT_DATA;
    /* Where positions are rotary they have no weights. */
    if (strcmp(key->name, "model.max_position_embeddings") == 0 && (!config || config->model.model_type != LS_GPT2))
        return LS_EFFECT_NUMBERS;
    for (size_t i = 0; i < sizeof numbers_keys / sizeof *numbers_keys; i++)
        if (strcmp(key->name, numbers_keys[i]) == 0) return LS_EFFECT_NUMBERS;
    return LS_EFFECT_RECORD;
}

/* Turns a list of one entry a line, "\n  - a\n  - b", into "[a, b]". */
static void put_on_one_line(char *text) {
    if (*text != '\n') return;
    char *to = text;
    for (const char *entry = text; *entry;) {
        entry += strcspn(entry, "-") + 2;
        const size_t length = strcspn(entry, "\n");
        to += to == text ? snprintf(to, 2, "[") : snprintf(to, 3, ", ");
        memmove(to, entry, length);
        to += length;
        entry += length;
    }
    memcpy(to, "]", 2);
}

/* The value as YAML on one line, malloc'ed; "(none)" where the key has no meaning for the model. NULL: no memory. */
static char *value_of(const struct ls_key *key, const struct ls_config *config) {
    char *text = NULL;
    size_t size = 0;
    if (!ls_key_applies(key, config)) return strdup("(none)");
    FILE *out = open_memstream(&text, &size);
    if (!out) return NULL;
    const bool written = ls_key_write_value(out, key, config, key->identity);
    if (fclose(out) == 0 && written) {
        if (key->type == LS_KEY_SOURCES) put_on_one_line(text);
        return text;
    }
    free(text);
    return NULL;
}

int ls_config_changes(const struct ls_config *before, const struct ls_config *after,
                      struct ls_config_change changes[LS_CONFIG_CHANGES_MAX]) {
    int count = 0;
    for (int i = 0; i < ls_config_keys.count && count < LS_CONFIG_CHANGES_MAX; i++) {
        const struct ls_key *key = &ls_config_keys.keys[i];
        char *old_value = value_of(key, before), *new_value = value_of(key, after);
        const bool known = old_value && new_value;
        if (known && strcmp(old_value, new_value) != 0) {
            struct ls_config_change *change = &changes[count++];
            *change = (struct ls_config_change){.key = key->name, .effect = effect_of(key, before)};
            snprintf(change->before, sizeof change->before, "%s", old_value + (*old_value == ' '));
            snprintf(change->after, sizeof change->after, "%s", new_value + (*new_value == ' '));
        }
        free(old_value);
        free(new_value);
        if (!known) return -1;
    }
    return count;
}

bool ls_config_is_accepted(const char *key, const char *const *accepted, int count) {
    for (int i = 0; i < count; i++) {
        const size_t length = strlen(accepted[i]);
        if (strncmp(key, accepted[i], length) == 0 && (key[length] == 0 || key[length] == '.')) return true;
    }
    return false;
}

static enum ls_code check_names(const char *const *accepted, int count, struct ls_error *error) {
    for (int i = 0; i < count; i++) {
        const int found = ls_key_find(&ls_config_keys, accepted[i]);
        char nearest[LS_KEY_NAME_MAX] = "optimizer.lr";
        if (found < 0 && ls_key_is_section(&ls_config_keys, accepted[i])) continue;
        if (found < 0) {
            ls_key_nearest(&ls_config_keys, accepted[i], nearest);
            return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                           "--accept: '%.64s' is no key. Name one, or a section, as 'lockstep config --keys' lists it, "
                           "such as %s.",
                           accepted[i], nearest);
        }
        if (effect_of(&ls_config_keys.keys[found], NULL) == LS_EFFECT_RECORD)
            return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                           "--accept: a run cannot go on with another %s: its checkpoints would mean something "
                           "else. Start anew with --run-dir DIR.",
                           accepted[i]);
    }
    return LS_OK;
}

enum ls_code ls_config_changes_check(const struct ls_config_change *changes, int change_count,
                                     const char *const *accepted, int accepted_count, const char *run,
                                     struct ls_error *error) {
    enum ls_code code = check_names(accepted, accepted_count, error);
    if (code) return code;
    for (int i = 0; i < change_count; i++)
        if (changes[i].effect == LS_EFFECT_RECORD)
            return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                           "%s differs from the configuration of the run %s (%s, it was %s), whose checkpoints it "
                           "would change: the result would belong to neither. Set it back, or start anew with "
                           "--run-dir DIR.",
                           changes[i].key, run, changes[i].after, changes[i].before);
    for (int i = 0; i < change_count; i++) {
        if (changes[i].effect == LS_EFFECT_NONE || ls_config_is_accepted(changes[i].key, accepted, accepted_count))
            continue;
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "%s differs from the configuration of the run %s (%s, it was %s): steps from here on would %s. "
                       "Set it back, give --accept %s, or start anew with --run-dir DIR.",
                       changes[i].key, run, changes[i].after, changes[i].before,
                       changes[i].effect == LS_EFFECT_DATA
                           ? "be trained on a new generation of the data, from its beginning and with epochs of its own"
                           : "compute other numbers",
                       changes[i].key);
    }
    return LS_OK;
}
