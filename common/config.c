/* Reads a configuration: YAML and --set become values of the table's keys, then the rules between keys apply. */
#include "common/config.h"
#include "common/config_rules.h"
#include "common/files.h"
#include "common/hf_config.h"
#include "common/key_table.h"
#include "common/yaml_tree.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FULL_NAME_MAX = 2 * LS_KEY_NAME_MAX, SETTINGS_MAX = 256 };

/* What a value looks like in a message: 'text', shortened, or its kind. */
const char *ls_model_type_name(enum ls_model_type type) {
    static const char *const names[LS_MODEL_TYPES] = {"gpt2", "llama", "qwen2", "qwen3", "mistral"};
    return names[type];
}

static const char *found(const struct ls_yaml_node *value, char text[64]) {
    switch (value->kind) {
    case LS_YAML_NULL: return "null";
    case LS_YAML_LIST: return "a list";
    case LS_YAML_MAP: return "a map";
    case LS_YAML_SCALAR: break;
    }
    size_t length = strlen(value->text);
    size_t shown = length > 48 ? 48 : length;
    while (shown < length && shown > 0 && ((unsigned char)value->text[shown] & 0xc0) == 0x80) shown--;
    const char *quote = value->plain ? "" : "'";
    snprintf(text, 64, "%s%.*s%s%s", quote, (int)shown, value->text, shown < length ? "..." : "", quote);
    return text;
}

static enum ls_code refuse_value(const struct ls_key *key, const char *name, const struct ls_yaml_node *value,
                                 struct ls_error *error) {
    char text[64], allowed[256];
    ls_key_describe(key, allowed, sizeof allowed);
    return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "%s:%d:%d: %s: found %s, allowed: %s. Meaning: %s.", value->label,
                   value->line, value->column, name, found(value, text), allowed, key->meaning);
}

/* [-+]?(0|[1-9][0-9]*): no octal by a leading zero, no hexadecimal. */
static bool read_integer(const struct ls_yaml_node *value, int64_t *integer) {
    if (value->kind != LS_YAML_SCALAR || !value->plain) return false;
    const char *digits = value->text + (value->text[0] == '-' || value->text[0] == '+');
    size_t count = strspn(digits, "0123456789");
    if (!count || digits[count] || (digits[0] == '0' && count > 1)) return false;
    errno = 0;
    long long read = strtoll(value->text, NULL, 10);
    *integer = read;
    return !errno;
}

/* [-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?, finite. */
static bool read_number(const struct ls_yaml_node *value, double *number) {
    if (value->kind != LS_YAML_SCALAR || !value->plain) return false;
    const char *at = value->text + (value->text[0] == '-' || value->text[0] == '+');
    size_t whole = strspn(at, "0123456789");
    at += whole;
    size_t part = *at == '.' ? strspn(at + 1, "0123456789") : 0;
    at += *at == '.' ? part + 1 : 0;
    if (!whole && !part) return false;
    if (*at == 'e' || *at == 'E') {
        at += 1 + (at[1] == '-' || at[1] == '+');
        size_t exponent = strspn(at, "0123456789");
        if (!exponent) return false;
        at += exponent;
    }
    if (*at) return false;
    double read = strtod(value->text, NULL) + 0.0; /* -0 becomes 0 */
    *number = read;
    return isfinite(read);
}

static bool read_number_in_range(const struct ls_key *key, const struct ls_yaml_node *value, double *number) {
    return read_number(value, number) && *number >= key->lower && *number <= key->upper &&
           !(key->below_upper && *number == key->upper);
}

static bool is_word(const struct ls_yaml_node *value, const char *word) {
    return word && value->kind == LS_YAML_SCALAR && value->plain && !strcmp(value->text, word);
}

static enum ls_code set_integer(const struct ls_key *key, const char *name, const struct ls_yaml_node *value,
                                void *field, struct ls_error *error) {
    int64_t integer = 0;
    if (!is_word(value, key->otherwise) &&
        (!read_integer(value, &integer) || integer < key->least || integer > key->most))
        return refuse_value(key, name, value, error);
    memcpy(field, &integer, sizeof integer);
    return LS_OK;
}

static enum ls_code set_choice(const struct ls_key *key, const char *name, const struct ls_yaml_node *value,
                               void *field, struct ls_error *error) {
    const struct ls_choice *choice = key->choices;
    if (value->kind != LS_YAML_SCALAR) return refuse_value(key, name, value, error);
    while (choice->word && strcmp(choice->word, value->text)) choice++;
    if (!choice->word) return refuse_value(key, name, value, error);
    if (choice->refusal)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "%s:%d:%d: %s: found %s, but %s", value->label, value->line,
                       value->column, name, choice->word, choice->refusal);
    if (key->type == LS_KEY_TEXT)
        snprintf(field, key->size, "%s", choice->word);
    else if (key->size == sizeof(bool))
        *(bool *)field = choice->value;
    else
        *(int *)field = choice->value;
    return LS_OK;
}

static enum ls_code set_text(const struct ls_key *key, const char *name, const struct ls_yaml_node *value, void *field,
                             struct ls_error *error) {
    const bool none = key->otherwise && value->kind == LS_YAML_SCALAR && strcmp(value->text, key->otherwise) == 0;
    if (none) return LS_OK; /* the field is empty */
    if (value->kind != LS_YAML_SCALAR || !value->text[0] || strlen(value->text) >= key->size)
        return refuse_value(key, name, value, error);
    memcpy(field, value->text, strlen(value->text) + 1);
    return LS_OK;
}

static enum ls_code set_texts(const struct ls_key *key, const char *name, const struct ls_yaml_node *value,
                              char (*texts)[LS_CONFIG_TEXT_SIZE], int *count, struct ls_error *error) {
    if (value->kind != LS_YAML_LIST) return refuse_value(key, name, value, error);
    for (const struct ls_yaml_node *item = value->first; item; item = item->next) {
        if (*count == LS_CONFIG_TEXTS_MAX) return refuse_value(key, name, value, error);
        char item_name[FULL_NAME_MAX];
        snprintf(item_name, sizeof item_name, "%s[%d]", name, *count);
        const struct ls_key entry = {.type = LS_KEY_TEXT, .size = LS_CONFIG_TEXT_SIZE, .meaning = key->meaning};
        enum ls_code code = set_text(&entry, item_name, item, texts[(*count)++], error);
        if (code != LS_OK) return code;
    }
    return LS_OK;
}

static enum ls_code set_pair(const struct ls_key *key, const char *name, const struct ls_yaml_node *value,
                             double *field, struct ls_error *error) {
    if (value->kind != LS_YAML_LIST) return refuse_value(key, name, value, error);
    int count = 0;
    for (const struct ls_yaml_node *item = value->first; item; item = item->next, count++) {
        if (count == 2) return refuse_value(key, name, value, error);
        if (!read_number_in_range(key, item, &field[count])) return refuse_value(key, name, item, error);
    }
    return count == 2 ? LS_OK : refuse_value(key, name, value, error);
}

static enum ls_code set_sources(const struct ls_key *key, const char *name, const struct ls_yaml_node *value,
                                struct ls_config_source *sources, int *count, struct ls_error *error);

static enum ls_code set_value(const struct ls_key *key, const char *name, const struct ls_yaml_node *value, void *base,
                              struct ls_error *error) {
    void *field = (char *)base + key->offset;
    if (key->choices) return set_choice(key, name, value, field, error);
    switch (key->type) {
    case LS_KEY_INTEGER: return set_integer(key, name, value, field, error);
    case LS_KEY_NUMBER: return read_number_in_range(key, value, field) ? LS_OK : refuse_value(key, name, value, error);
    case LS_KEY_PAIR: return set_pair(key, name, value, field, error);
    case LS_KEY_BOOLEAN:
        if (!is_word(value, "true") && !is_word(value, "false")) return refuse_value(key, name, value, error);
        *(bool *)field = is_word(value, "true");
        return LS_OK;
    case LS_KEY_TEXT: return set_text(key, name, value, field, error);
    case LS_KEY_TEXTS: return set_texts(key, name, value, field, (int *)((char *)base + key->count_offset), error);
    case LS_KEY_SOURCES: return set_sources(key, name, value, field, (int *)((char *)base + key->count_offset), error);
    case LS_KEY_CHOICE: break;
    }
    return LS_OK;
}

/* What was given of one struct's keys: a value for each row, or NULL. */
struct reader {
    const struct ls_key_table *table;
    char prefix[LS_KEY_NAME_MAX]; /* before names in messages */
    const struct ls_yaml_node **values;
    struct ls_error *error;
};

static enum ls_code refuse_unknown(const struct reader *reader, const char *name, const struct ls_yaml_node *value) {
    int line = value->key ? value->key_line : value->line, column = value->key ? value->key_column : value->column;
    char nearest[LS_KEY_NAME_MAX];
    if (ls_key_nearest(reader->table, name, nearest))
        return ls_fail(reader->error, LS_USAGE, LS_SCOPE_CALL,
                       "%s:%d:%d: unknown key %s%.80s. Did you mean %s%s? 'lockstep config --keys' lists every key.",
                       value->label, line, column, reader->prefix, name, reader->prefix, nearest);
    return ls_fail(reader->error, LS_USAGE, LS_SCOPE_CALL,
                   "%s:%d:%d: unknown key %s%.80s. 'lockstep config --keys' lists every key.", value->label, line,
                   column, reader->prefix, name);
}

/* Takes the value of a key or section by its dotted name. Null means: not given. */
static enum ls_code take(struct reader *reader, const char *name, const struct ls_yaml_node *value) {
    int row = ls_key_find(reader->table, name);
    if (row >= 0) {
        reader->values[row] = value->kind == LS_YAML_NULL ? NULL : value;
        return LS_OK;
    }
    if (!ls_key_is_section(reader->table, name)) return refuse_unknown(reader, name, value);
    if (value->kind == LS_YAML_NULL) {
        for (int i = 0; i < reader->table->count; i++)
            if (!strncmp(reader->table->keys[i].name, name, strlen(name)) &&
                reader->table->keys[i].name[strlen(name)] == '.')
                reader->values[i] = NULL;
        return LS_OK;
    }
    char text[64];
    if (value->kind != LS_YAML_MAP)
        return ls_fail(reader->error, LS_USAGE, LS_SCOPE_CALL,
                       "%s:%d:%d: %s%s: found %s, allowed: a map of keys. 'lockstep config --keys' lists them.",
                       value->label, value->line, value->column, reader->prefix, name, found(value, text));
    for (const struct ls_yaml_node *child = value->first; child; child = child->next) {
        char full[FULL_NAME_MAX];
        if (snprintf(full, sizeof full, "%s.%s", name, child->key) >= (int)sizeof full || strchr(child->key, '.'))
            return refuse_unknown(reader, full, child);
        enum ls_code code = take(reader, full, child);
        if (code != LS_OK) return code;
    }
    return LS_OK;
}

/* Takes all keys of a map that is a whole struct: the file, or a dataset of a list. */
static enum ls_code take_all(struct reader *reader, const struct ls_yaml_node *map) {
    for (const struct ls_yaml_node *child = map->first; child; child = child->next) {
        if (strchr(child->key, '.')) return refuse_unknown(reader, child->key, child);
        enum ls_code code = take(reader, child->key, child);
        if (code != LS_OK) return code;
    }
    return LS_OK;
}

static enum ls_code set_source(struct reader *reader, const struct ls_yaml_node *map, struct ls_config_source *source) {
    enum ls_code code = take_all(reader, map);
    source->document_token_id = -1;
    for (int i = 0; code == LS_OK && i < ls_source_keys.count; i++) {
        char name[FULL_NAME_MAX];
        snprintf(name, sizeof name, "%s%s", reader->prefix, ls_source_keys.keys[i].name);
        if (reader->values[i])
            code = set_value(&ls_source_keys.keys[i], name, reader->values[i], source, reader->error);
    }
    if (code == LS_OK && !source->path[0])
        return ls_fail(reader->error, LS_USAGE, LS_SCOPE_CALL,
                       "%s:%d:%d: %spath is not given. Write {path: FOLDER} or {path: \"synthetic:TOKENS\"}.",
                       map->label, map->line, map->column, reader->prefix);
    if (code == LS_OK && source->document_token_at_end && source->document_token_id < 0)
        return ls_fail(reader->error, LS_USAGE, LS_SCOPE_CALL,
                       "%s:%d:%d: %sdocument_token.at is given without document_token.id. Give both.", map->label,
                       map->line, map->column, reader->prefix);
    return code;
}

static enum ls_code set_sources(const struct ls_key *key, const char *name, const struct ls_yaml_node *value,
                                struct ls_config_source *sources, int *count, struct ls_error *error) {
    if (value->kind != LS_YAML_LIST) return refuse_value(key, name, value, error);
    for (const struct ls_yaml_node *item = value->first; item; item = item->next, (*count)++) {
        if (item->kind != LS_YAML_MAP || *count == LS_CONFIG_SOURCES_MAX)
            return refuse_value(key, name, *count == LS_CONFIG_SOURCES_MAX ? value : item, error);
        const struct ls_yaml_node *values[LS_KEYS_MAX] = {0};
        struct reader reader = {.table = &ls_source_keys, .values = values, .error = error};
        snprintf(reader.prefix, sizeof reader.prefix, "%s[%d].", name, *count);
        enum ls_code code = set_source(&reader, item, &sources[*count]);
        if (code != LS_OK) return code;
    }
    return LS_OK;
}

/* The trees that values point into: of each default, of each setting and of the file. */
struct trees {
    struct ls_yaml *standards[LS_KEYS_MAX], *settings[SETTINGS_MAX], *file;
};

static void destroy_trees(struct trees *trees) {
    for (int i = 0; i < LS_KEYS_MAX; i++) ls_yaml_destroy(trees->standards[i]);
    for (int i = 0; i < SETTINGS_MAX; i++) ls_yaml_destroy(trees->settings[i]);
    ls_yaml_destroy(trees->file);
    free(trees);
}

static enum ls_code take_file(struct reader *reader, const char *yaml, size_t bytes, const char *label,
                              struct ls_yaml **tree) {
    enum ls_code code = ls_yaml_parse(yaml, bytes, label, tree, reader->error);
    if (code != LS_OK) return code;
    const struct ls_yaml_node *root = ls_yaml_root(*tree);
    if (root->kind == LS_YAML_NULL || root->kind == LS_YAML_MAP) return take_all(reader, root);
    char text[64];
    return ls_fail(reader->error, LS_USAGE, LS_SCOPE_CALL,
                   "%s:%d:%d: found %s, allowed: a map of keys. Is it a configuration?", label, root->line,
                   root->column, found(root, text));
}

static enum ls_code take_setting(struct reader *reader, const char *setting, struct ls_yaml **tree) {
    char name[LS_KEY_NAME_MAX], label[LS_KEY_NAME_MAX + 16];
    const char *equals = strchr(setting, '=');
    size_t length = equals ? (size_t)(equals - setting) : 0;
    if (!length || length >= sizeof name)
        return ls_fail(reader->error, LS_USAGE, LS_SCOPE_CALL,
                       "--set: found '%.80s', allowed: key=value. Write for example --set train.steps=100.", setting);
    snprintf(name, sizeof name, "%.*s", (int)length, setting);
    snprintf(label, sizeof label, "--set %s", name);
    enum ls_code code = ls_yaml_parse(equals + 1, strlen(equals + 1), label, tree, reader->error);
    return code == LS_OK ? take(reader, name, ls_yaml_root(*tree)) : code;
}

static const char *const optimizer_names[] = {
    [LS_ADAMW] = "adamw", [LS_LION] = "lion", [LS_SGD] = "sgd", [LS_MUON] = "muon"};

static enum ls_code refuse_out_of_place(const struct ls_config_given *given, const struct ls_key *key,
                                        const struct ls_config *config, struct ls_error *error) {
    if (key->scope == LS_KEY_LLAMA3_ROPE && config->model.model_type != LS_GPT2)
        return ls_config_refuse(
            given, key->name, error,
            "has no meaning without model.rope_scaling.rope_type: llama3. Take it out or set that.");
    if (key->scope == LS_KEY_ADAM || key->scope == LS_KEY_MOMENTUM || key->scope == LS_KEY_NOT_SGD)
        return ls_config_refuse(given, key->name, error,
                                "has no meaning for optimizer.type: %s. Take it out, or set it to null.",
                                optimizer_names[config->optimizer.type]);
    if (key->scope == LS_KEY_BF16)
        return ls_config_refuse(given, key->name, error,
                                "has no meaning without precision: bf16. Take it out or set that.");
    return ls_config_refuse(given, key->name, error,
                            "has no meaning for model.model_type: %s. Take it out, or set it to null.",
                            ls_model_type_name(config->model.model_type));
}

/* ---- the shape by model.init_from ---- */

/* What config.json of the folder says, as the model part of a configuration. */
struct shape {
    bool wanted, known;
    bool there; /* config.json, known or not */
    struct ls_config config;
    struct ls_error error; /* wanted and not known: why */
};

static void read_shape(const char *folder, struct shape *shape) {
    char path[LS_CONFIG_PATH_MAX + 16], *json;
    size_t count;
    struct ls_hf_tokens tokens;
    shape->wanted = true;
    snprintf(path, sizeof path, "%s/config.json", folder);
    if (ls_file_read(path, LS_YAML_BYTES_MAX, &json, &count, LS_USAGE, &shape->error) != LS_OK) return;
    shape->there = true;
    shape->known = ls_hf_config_parse(json, count, &shape->config, &tokens, &shape->error) == LS_OK;
    free(json);
}

/* A key of the model that config.json decides. */
static bool is_of_shape(const struct ls_key *key) {
    return !strncmp(key->name, "model.", strlen("model.")) && strcmp(key->name, "model.init_from") &&
           strcmp(key->name, "model.dropout");
}

/* A choice's or a truth's value; 0 for keys of other types. */
static int small_value(const struct ls_key *key, const void *field) {
    if (key->type == LS_KEY_CHOICE && key->size != sizeof(bool)) return *(const int *)field;
    const bool is_number = key->type == LS_KEY_INTEGER || key->type == LS_KEY_NUMBER;
    return is_number ? 0 : *(const bool *)field;
}

static void show_value(const struct ls_key *key, const struct ls_config *config, char text[64]) {
    const void *field = (const char *)config + key->offset;
    const int value = small_value(key, field);
    const struct ls_choice *choice = key->choices;
    while (choice && choice->word && choice->value != value) choice++;
    if (choice)
        snprintf(text, 64, "%s", choice->word);
    else if (key->type == LS_KEY_INTEGER)
        snprintf(text, 64, "%lld", (long long)*(const int64_t *)field);
    else if (key->type == LS_KEY_NUMBER)
        snprintf(text, 64, "%.17g", *(const double *)field);
    else
        snprintf(text, 64, "%s", value ? "true" : "false");
}

/* Copies the key's value, which must be in its range, from config.json. */
static enum ls_code take_from_shape(const struct ls_config_given *given, const struct ls_key *key,
                                    const struct shape *shape, struct ls_config *config, struct ls_error *error) {
    if (!shape->known)
        return ls_config_refuse(given, "model.init_from", error,
                                "%s is not given, and %.600s. Name a folder on this disk with config.json and the "
                                "weights in safetensors; nothing is downloaded.",
                                key->name, shape->error.text);
    char text[64], allowed[256];
    const void *field = (const char *)&shape->config + key->offset;
    bool fine = true;
    size_t size = sizeof(bool);
    if (key->type == LS_KEY_INTEGER) {
        size = sizeof(int64_t);
        const int64_t value = *(const int64_t *)field;
        fine = (value >= key->least && value <= key->most) || (value == 0 && key->otherwise);
    } else if (key->type == LS_KEY_NUMBER) {
        size = sizeof(double);
        fine = *(const double *)field >= key->lower && *(const double *)field <= key->upper;
    } else if (key->type == LS_KEY_CHOICE && key->size != sizeof(bool)) {
        size = sizeof(int);
    }
    if (fine) {
        memcpy((char *)config + key->offset, field, size);
        return LS_OK;
    }
    show_value(key, &shape->config, text);
    ls_key_describe(key, allowed, sizeof allowed);
    return ls_config_refuse(given, "model.init_from", error, "its config.json says %s for %s, allowed: %s.", text,
                            key->name, allowed);
}

static enum ls_code refuse_other_shape(const struct ls_config_given *given, const struct ls_key *key,
                                       const struct shape *shape, struct ls_error *error) {
    char text[64];
    show_value(key, &shape->config, text);
    return ls_config_refuse(given, key->name, error,
                            "config.json of model.init_from says %s, and its weights are made for that. Take this key "
                            "out.",
                            text);
}

/* Sets every field from what was given, else from model.init_from, else from its default. The table's order matters:
 * scopes look at earlier keys, and model.init_from comes before the other keys of the model. */
static enum ls_code set_all(const struct ls_config_given *given, struct trees *trees, struct shape *shape,
                            struct ls_config *config, struct ls_error *error) {
    for (int i = 0; i < ls_config_keys.count; i++) {
        const struct ls_key *key = &ls_config_keys.keys[i];
        const struct ls_yaml_node *value = given->values[i];
        enum ls_code code = LS_OK;
        if (value && !ls_key_applies(key, config)) return refuse_out_of_place(given, key, config, error);
        if (!value && shape->wanted && is_of_shape(key) && ls_key_applies(key, config)) {
            code = take_from_shape(given, key, shape, config, error);
        } else if (!value && key->standard) {
            code = ls_yaml_parse(key->standard, strlen(key->standard), key->name, &trees->standards[i], error);
            if (code == LS_OK) value = ls_yaml_root(trees->standards[i]);
        } else if (!value && !key->derived && ls_key_applies(key, config)) {
            char allowed[256];
            ls_key_describe(key, allowed, sizeof allowed);
            return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "%s: %s is not given. Set it to %s: %s.", given->label,
                           key->name, allowed, key->meaning);
        }
        if (code == LS_OK && value) code = set_value(key, key->name, value, config, error);
        if (code == LS_OK && given->values[i] && shape->known && is_of_shape(key) &&
            !ls_key_is_equal(key, config, &shape->config))
            code = refuse_other_shape(given, key, shape, error);
        if (code != LS_OK) return code;
        if (value && key->offset == offsetof(struct ls_config, model.init_from)) {
            read_shape(config->model.init_from, shape);
            /* Weights for other arithmetic, whatever else is given; a folder that is gone may be needed no more. */
            if (shape->there && !shape->known)
                return ls_config_refuse(given, "model.init_from", error, "%.600s", shape->error.text);
        }
    }
    return LS_OK;
}

enum ls_code ls_config_parse(const char *yaml, size_t bytes, const char *name, const char *const *settings,
                             int settings_count, struct ls_config *config, struct ls_error *error) {
    if (settings_count > SETTINGS_MAX)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "--set is given %d times, allowed: at most %d. Use a file.",
                       settings_count, SETTINGS_MAX);
    struct ls_config *made = calloc(1, sizeof *made);
    struct trees *trees = calloc(1, sizeof *trees);
    struct shape *shape = calloc(1, sizeof *shape);
    if (!made || !trees || !shape) {
        free(shape);
        free(made);
        free(trees);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "Out of memory while reading %s.", name);
    }
    struct ls_config_given given = {.label = name};
    struct reader reader = {.table = &ls_config_keys, .values = given.values, .error = error};
    enum ls_code code = take_file(&reader, yaml, bytes, name, &trees->file);
    for (int i = 0; code == LS_OK && i < settings_count; i++)
        code = take_setting(&reader, settings[i], &trees->settings[i]);
    if (code == LS_OK) code = set_all(&given, trees, shape, made, error);
    if (code == LS_OK) code = ls_config_resolve(&given, made, error);
    if (code == LS_OK) *config = *made;
    destroy_trees(trees);
    free(shape);
    free(made);
    return code;
}

enum ls_code ls_config_load(const char *path, const char *const *settings, int settings_count, struct ls_config *config,
                            struct ls_error *error) {
    char *bytes;
    size_t count;
    enum ls_code code = ls_file_read(path, LS_YAML_BYTES_MAX, &bytes, &count, LS_USAGE, error);
    if (code != LS_OK) return code;
    code = ls_config_parse(bytes, count, path, settings, settings_count, config, error);
    free(bytes);
    return code;
}
