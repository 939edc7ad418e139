/* The one table of keys: what a configuration may say, each key's type, range, default and meaning. */
#ifndef LS_COMMON_KEY_TABLE_H
#define LS_COMMON_KEY_TABLE_H

#include "common/config.h"

#include <stddef.h>

enum ls_key_type {
    LS_KEY_INTEGER, /* int64_t */
    LS_KEY_NUMBER,  /* double, finite */
    LS_KEY_PAIR,    /* double[2], a list of two numbers */
    LS_KEY_BOOLEAN, /* bool */
    LS_KEY_CHOICE,  /* an enum, by its word */
    LS_KEY_TEXT,    /* char[size] */
    LS_KEY_TEXTS,   /* char[LS_CONFIG_TEXTS_MAX][LS_CONFIG_TEXT_SIZE] and, at count_offset, int: a list of texts */
    LS_KEY_SOURCES  /* struct ls_config_source[LS_CONFIG_SOURCES_MAX] and, at count_offset, int: a list of maps */
};

/* A word of a choice. One with a refusal is known, but not to be had: the refusal says why. */
struct ls_choice {
    const char *word;
    int value;
    const char *refusal;
};

/* Where a key has a meaning; elsewhere it is neither accepted nor written. LS_KEY_LLAMA: Llama and its relatives, that
 * is all but GPT-2. LS_KEY_BF16: with precision: bf16. LS_KEY_ADAM, LS_KEY_MOMENTUM,
 * LS_KEY_NOT_SGD: with optimizer.type adamw or muon, sgd or muon, all but sgd. */
enum ls_key_scope {
    LS_KEY_ALWAYS,
    LS_KEY_GPT2,
    LS_KEY_LLAMA,
    LS_KEY_LLAMA3_ROPE,
    LS_KEY_MISTRAL,
    LS_KEY_BF16,
    LS_KEY_ADAM,
    LS_KEY_MOMENTUM,
    LS_KEY_NOT_SGD
};

struct ls_key {
    const char *name; /* dotted: "train.steps" */
    enum ls_key_type type;
    enum ls_key_scope scope;
    size_t offset, size; /* in struct ls_config (or ls_config_source); size of a text's array with its NUL; sizeof(bool)
                            for a choice of two */
    size_t count_offset; /* of lists: where their int count is */
    int64_t least, most; /* of integers */
    double lower, upper; /* of numbers and pairs */
    bool below_upper;    /* upper itself is not allowed */
    const struct ls_choice *choices; /* ends with a NULL word */
    const char *otherwise; /* the word for 0, "auto" or "null", of an integer that need not be given; for "" of
                              a text: "" */
    const char *standard;  /* the default, as YAML; NULL: required, or it follows from other keys (`derived`) */
    const char *derived;   /* in words, where the default follows from other keys */
    bool identity;         /* part of the run's identity: changes what is trained */
    bool only_if_true;     /* of a boolean's identity: false is none, so that runs from before the key keep theirs */
    const char *meaning;   /* one line */
    const char *elsewhere; /* what other systems call it, separated by spaces; for hints only. May be NULL */
};

/* Keys of one struct. `prefix` goes before their names in listings: "" or "data.train[]." */
struct ls_key_table {
    const struct ls_key *keys;
    int count;
    const char *prefix;
};

enum { LS_KEYS_MAX = 96, LS_KEY_NAME_MAX = 96 };

extern const struct ls_key_table ls_config_keys; /* offsets in struct ls_config */
extern const struct ls_key_table
    ls_source_keys; /* offsets in struct ls_config_source: an entry of data.train, data.validation */

/* The index of a key by its dotted name, or -1. */
int ls_key_find(const struct ls_key_table *table, const char *name);
/* True if `name` is a map that holds keys: "train", "model.rope_scaling". */
bool ls_key_is_section(const struct ls_key_table *table, const char *name);
/* Finds the known key (or section) that `name` was probably meant to be: a small edit distance, the same last word
 * elsewhere, or another system's word for it. Returns whether there is one; its name goes into `nearest`. */
bool ls_key_nearest(const struct ls_key_table *table, const char *name, char nearest[LS_KEY_NAME_MAX]);
/* True if the key has a meaning under this configuration. */
bool ls_key_applies(const struct ls_key *key, const struct ls_config *config);
/* True if the key is part of the run's identity and of `data`: it says what is trained on, and in which order. */
bool ls_key_is_of_data(const struct ls_key *key);
/* True if the key, which is no list, has the same value in both. */
bool ls_key_is_equal(const struct ls_key *key, const struct ls_config *a, const struct ls_config *b);
/* "an integer from 1 to 65536", "one of gpt2, llama": the values a key takes. */
void ls_key_describe(const struct ls_key *key, char *text, size_t size);

/* Writes " VALUE" as YAML; with `identity` without the paths of datasets, which say where and not what. False when it
 * could not. */
bool ls_key_write_value(FILE *out, const struct ls_key *key, const struct ls_config *config, bool identity);

#endif
