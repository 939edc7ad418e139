/* The second half of reading a configuration: defaults that follow from other keys, and the rules between keys. */
#ifndef LS_COMMON_CONFIG_RULES_H
#define LS_COMMON_CONFIG_RULES_H

#include "common/key_table.h"
#include "common/yaml_tree.h"

/* What was given, and where: for each row of ls_config_keys its value in a tree, or NULL. `label` names the whole. */
struct ls_config_given {
    const char *label;
    const struct ls_yaml_node *values[LS_KEYS_MAX];
};

/* Fails with LS_USAGE and "label:line:column: key: TEXT", or "label: key: TEXT" for a key that was not given. */
enum ls_code ls_config_refuse(const struct ls_config_given *given, const char *key, struct ls_error *error,
                              const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Fills in what was not given and follows from other keys (head_dim, intermediate_size, name, ...), makes paths
 * absolute, and checks every rule between keys. Each value by itself has been checked before. */
enum ls_code ls_config_resolve(const struct ls_config_given *given, struct ls_config *config, struct ls_error *error);

#endif
