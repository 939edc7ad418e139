/* YAML text as a small tree: what a configuration needs of YAML, with a limit on everything. */
#ifndef LS_COMMON_YAML_TREE_H
#define LS_COMMON_YAML_TREE_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>

enum { LS_YAML_BYTES_MAX = 1 << 20, LS_YAML_NODES_MAX = 4096, LS_YAML_DEPTH_MAX = 16 };

enum ls_yaml_kind { LS_YAML_NULL, LS_YAML_SCALAR, LS_YAML_LIST, LS_YAML_MAP };

/* A value. Lines and columns count from 1. All memory belongs to the tree. */
struct ls_yaml_node {
    enum ls_yaml_kind kind;
    const char *text; /* of a scalar: UTF-8 without NUL; NULL for the other kinds */
    bool plain;       /* a scalar without quotes: only such a one is a number, true, false or null */
    const char *label;
    int line, column;
    const char *key;          /* in a map: the name of this value, unique among its neighbours; else NULL */
    int key_line, key_column; /* where that name stands */
    struct ls_yaml_node *first,
        *next; /* the first child of a list or map, in the order of the text; the next neighbour */
};

struct ls_yaml;

/* Reads one YAML document; an empty text is a null. `label` stands for the file in messages "label:line:column: ...".
 * Beyond what YAML itself forbids these are refused: text that is not UTF-8, more than LS_YAML_BYTES_MAX bytes, more
 * than LS_YAML_NODES_MAX values, nesting beyond LS_YAML_DEPTH_MAX, a key given twice, NUL in a text, anchors, aliases,
 * tags, a second document. Errors are LS_USAGE (or LS_MEMORY). The caller destroys *tree, which is set only on success.
 */
enum ls_code ls_yaml_parse(const char *bytes, size_t count, const char *label, struct ls_yaml **tree,
                           struct ls_error *error);
const struct ls_yaml_node *ls_yaml_root(const struct ls_yaml *tree);
/* Takes NULL. */
void ls_yaml_destroy(struct ls_yaml *tree);

#endif
