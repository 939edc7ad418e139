/* trainer.json: making and parsing. */
#include "common/trainer_state.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One row per number. Seeds use all 64 bits, which JSON readers do not keep: every number beyond 2^53 would be at risk,
 * so seeds are decimal strings. */
static const struct {
    const char *key;
    size_t offset;
    bool text;
    bool newer; /* files of older versions do not have it */
} numbers[] = {
    {"step", offsetof(struct ls_trainer_state, step), false, false},
    {"attempt", offsetof(struct ls_trainer_state, attempt), false, false},
    {"position", offsetof(struct ls_trainer_state, position), false, false},
    {"samples", offsetof(struct ls_trainer_state, samples), false, true},
    {"epoch", offsetof(struct ls_trainer_state, epoch), false, false},
    {"data_generation", offsetof(struct ls_trainer_state, data_generation), false, true},
    {"data_generation_step", offsetof(struct ls_trainer_state, data_generation_step), false, true},
    {"optimizer_steps", offsetof(struct ls_trainer_state, optimizer_steps), false, false},
    {"tokens", offsetof(struct ls_trainer_state, tokens), false, false},
    {"world_size", offsetof(struct ls_trainer_state, world_size), false, false},
    {"data_seed", offsetof(struct ls_trainer_state, data_seed), true, false},
    {"train_seed", offsetof(struct ls_trainer_state, train_seed), true, false},
};
static const struct {
    const char *key;
    size_t offset;
    bool newer;
} digests[] = {
    {"ledger_chain", offsetof(struct ls_trainer_state, ledger_chain), false},
    {"parent_manifest", offsetof(struct ls_trainer_state, parent_manifest), false},
    {"config_digest", offsetof(struct ls_trainer_state, config_digest), false},
    {"dataset_digest", offsetof(struct ls_trainer_state, dataset_digest), false},
    {"train_digest", offsetof(struct ls_trainer_state, train_digest), true},
    {"validation_digest", offsetof(struct ls_trainer_state, validation_digest), true},
};
enum { NUMBER_COUNT = sizeof numbers / sizeof *numbers, DIGEST_COUNT = sizeof digests / sizeof *digests };

/* [[from, behind], ...]; NULL without memory. */
static json_t *quarantine_to_json(const struct ls_quarantine *quarantine) {
    json_t *list = json_array();
    for (int32_t i = 0; i < quarantine->count; i++)
        if (json_array_append_new(list, json_pack("[I, I]", (json_int_t)quarantine->ranges[i].from,
                                                  (json_int_t)quarantine->ranges[i].to)) != 0) {
            json_decref(list);
            return NULL;
        }
    return list;
}

static bool quarantine_from_json(const json_t *list, struct ls_quarantine *quarantine) {
    if (!list) return true;
    const size_t count = json_array_size(list);
    if (!json_is_array(list) || count > LS_QUARANTINE_RANGES_MAX) return false;
    quarantine->count = (int32_t)count;
    for (size_t i = 0; i < count; i++) {
        const json_t *range = json_array_get(list, i), *from = json_array_get(range, 0), *to = json_array_get(range, 1);
        if (json_array_size(range) != 2 || !json_is_integer(from) || !json_is_integer(to)) return false;
        quarantine->ranges[i] = (struct ls_quarantine_range){json_integer_value(from), json_integer_value(to)};
    }
    return ls_quarantine_is_valid(quarantine);
}

enum ls_code ls_trainer_state_write(const struct ls_trainer_state *state, char **json, struct ls_error *error) {
    json_t *root = json_object();
    bool failed = json_object_set_new(root, "version", json_integer(1)) != 0;
    for (int i = 0; i < NUMBER_COUNT; i++) {
        uint64_t value;
        char text[24];
        memcpy(&value, (const char *)state + numbers[i].offset, sizeof value);
        if (numbers[i].offset == offsetof(struct ls_trainer_state, data_generation) && value == 0) value = 1;
        snprintf(text, sizeof text, "%llu", (unsigned long long)value);
        failed |= json_object_set_new(root, numbers[i].key,
                                      numbers[i].text ? json_string(text) : json_integer((json_int_t)value)) != 0;
    }
    for (int i = 0; i < DIGEST_COUNT; i++)
        failed |= json_object_set_new(root, digests[i].key, json_string((const char *)state + digests[i].offset)) != 0;
    failed |= json_object_set_new(root, "quarantined", quarantine_to_json(&state->quarantine)) != 0;
    if (state->validated)
        failed |= json_object_set_new(root, "validation_loss", json_real(state->validation_loss)) != 0;
    char *text = failed ? NULL : json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    if (!text) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "trainer.json: no memory");
    *json = text;
    return LS_OK;
}

static bool parse_number(const json_t *value, bool text, uint64_t *number) {
    if (!text) {
        if (!json_is_integer(value) || json_integer_value(value) < 0) return false;
        *number = (uint64_t)json_integer_value(value);
        return true;
    }
    const char *digits = json_string_value(value);
    if (!digits || *digits == 0 || strspn(digits, "0123456789") != strlen(digits)) return false;
    *number = 0;
    for (; *digits; digits++)
        if (__builtin_mul_overflow(*number, (uint64_t)10, number) ||
            __builtin_add_overflow(*number, (uint64_t)(*digits - '0'), number))
            return false;
    return true;
}

static bool parse_digest(const json_t *value, char digest[33]) {
    const char *text = json_string_value(value);
    size_t length = text ? strlen(text) : 1;
    if ((length != 0 && length != 32) || strspn(text, "0123456789abcdef") != length) return false;
    memcpy(digest, text, length + 1);
    return true;
}

static enum ls_code refuse_key(struct ls_error *error, const char *key) {
    return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                   "trainer.json: '%s' is missing or not what it should be. It is damaged: use another checkpoint.",
                   key);
}

enum ls_code ls_trainer_state_parse(const char *json, size_t count, struct ls_trainer_state *state,
                                    struct ls_error *error) {
    json_error_t cause;
    struct ls_trainer_state parsed = {.data_generation = 1};
    enum ls_code code = LS_OK;
    json_t *root = json_loadb(json, count, JSON_REJECT_DUPLICATES, &cause);
    if (!root)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                       "trainer.json: not valid JSON (line %d: %s). It is damaged: use another checkpoint.", cause.line,
                       cause.text);
    if (json_integer_value(json_object_get(root, "version")) != 1) code = refuse_key(error, "version");
    for (int i = 0; i < NUMBER_COUNT && !code; i++) {
        const json_t *number = json_object_get(root, numbers[i].key);
        uint64_t value = 0;
        if (!number && numbers[i].newer) continue;
        if (!parse_number(number, numbers[i].text, &value)) code = refuse_key(error, numbers[i].key);
        memcpy((char *)&parsed + numbers[i].offset, &value, sizeof value);
    }
    for (int i = 0; i < DIGEST_COUNT && !code; i++) {
        const json_t *digest = json_object_get(root, digests[i].key);
        if (!digest && digests[i].newer) continue;
        if (!parse_digest(digest, (char *)&parsed + digests[i].offset)) code = refuse_key(error, digests[i].key);
    }
    if (!json_object_get(root, "samples")) parsed.samples = parsed.position;
    if (!code && (parsed.data_generation == 0 || parsed.data_generation_step > parsed.step))
        code = refuse_key(error, "data_generation");
    if (!code && !quarantine_from_json(json_object_get(root, "quarantined"), &parsed.quarantine))
        code = refuse_key(error, "quarantined");
    const json_t *loss = json_object_get(root, "validation_loss");
    if (!code && loss && !json_is_number(loss)) code = refuse_key(error, "validation_loss");
    parsed.validated = loss != NULL;
    parsed.validation_loss = json_number_value(loss);
    json_decref(root);
    if (!code) *state = parsed;
    return code;
}
