/* Builds the tree from libyaml's events, so that every limit holds before memory is spent. */
#include "common/yaml_tree.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

/* A node with the memory it holds; all nodes of a tree are one chain. */
struct entry {
    struct ls_yaml_node node;
    char *text, *key;
    struct entry *older;
};

struct ls_yaml {
    char *label;
    struct entry *newest;
    int count;
    struct ls_yaml_node *root;
};

/* A list or map that is still open. */
struct frame {
    struct ls_yaml_node *node, *last;
    char *key; /* a map's key that waits for its value; owned */
    int key_line, key_column;
};

struct builder {
    struct ls_yaml *tree;
    struct frame frames[LS_YAML_DEPTH_MAX];
    int depth, documents;
    struct ls_error *error;
};

static enum ls_code out_of_memory(struct ls_error *error) {
    return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "Out of memory while reading YAML.");
}

static enum ls_code refuse(const struct builder *builder, yaml_mark_t mark, const char *text) {
    return ls_fail(builder->error, LS_USAGE, LS_SCOPE_CALL, "%s:%zu:%zu: %s", builder->tree->label, mark.line + 1,
                   mark.column + 1, text);
}

static bool is_null_word(const char *text) {
    return !*text || !strcmp(text, "~") || !strcmp(text, "null") || !strcmp(text, "Null") || !strcmp(text, "NULL");
}

static struct entry *new_entry(struct ls_yaml *tree, enum ls_yaml_kind kind, yaml_mark_t mark) {
    struct entry *entry = calloc(1, sizeof *entry);
    if (!entry) return NULL;
    entry->node = (struct ls_yaml_node){
        .kind = kind, .label = tree->label, .line = (int)mark.line + 1, .column = (int)mark.column + 1};
    entry->older = tree->newest;
    tree->newest = entry;
    tree->count++;
    return entry;
}

/* Hangs a node into the open list or map, or makes it the root. */
static enum ls_code attach(struct builder *builder, struct entry *entry) {
    if (!builder->depth) {
        builder->tree->root = &entry->node;
        return LS_OK;
    }
    struct frame *frame = &builder->frames[builder->depth - 1];
    if (frame->node->kind == LS_YAML_MAP) {
        entry->node.key = entry->key = frame->key;
        entry->node.key_line = frame->key_line;
        entry->node.key_column = frame->key_column;
        frame->key = NULL;
        for (const struct ls_yaml_node *other = frame->node->first; other; other = other->next)
            if (!strcmp(other->key, entry->key))
                return ls_fail(builder->error, LS_USAGE, LS_SCOPE_CALL,
                               "%s:%d:%d: the key '%.64s' is given twice, first in line %d. Keep one of the two.",
                               builder->tree->label, entry->node.key_line, entry->node.key_column, entry->key,
                               other->key_line);
    }
    if (frame->last)
        frame->last->next = &entry->node;
    else
        frame->node->first = &entry->node;
    frame->last = &entry->node;
    return LS_OK;
}

static bool key_is_due(const struct builder *builder) {
    if (!builder->depth) return false;
    const struct frame *frame = &builder->frames[builder->depth - 1];
    return frame->node->kind == LS_YAML_MAP && !frame->key;
}

static enum ls_code add_scalar(struct builder *builder, const yaml_event_t *event) {
    const char *text = (const char *)event->data.scalar.value;
    if (strlen(text) != event->data.scalar.length)
        return refuse(builder, event->start_mark, "a text holds the character NUL. Take it out.");
    if (key_is_due(builder)) {
        struct frame *frame = &builder->frames[builder->depth - 1];
        frame->key = strdup(text);
        frame->key_line = (int)event->start_mark.line + 1;
        frame->key_column = (int)event->start_mark.column + 1;
        return frame->key ? LS_OK : out_of_memory(builder->error);
    }
    bool plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    bool nothing = plain && is_null_word(text);
    struct entry *entry = new_entry(builder->tree, nothing ? LS_YAML_NULL : LS_YAML_SCALAR, event->start_mark);
    if (!entry) return out_of_memory(builder->error);
    if (!nothing) {
        entry->node.text = entry->text = strdup(text);
        entry->node.plain = plain;
        if (!entry->text) return out_of_memory(builder->error);
    }
    return attach(builder, entry);
}

static enum ls_code open_container(struct builder *builder, enum ls_yaml_kind kind, yaml_mark_t mark) {
    if (key_is_due(builder)) return refuse(builder, mark, "a key is a list or a map. Write keys as plain words.");
    if (builder->depth == LS_YAML_DEPTH_MAX)
        return refuse(builder, mark, "lists and maps are nested too deeply: more than 16 levels. No key needs that.");
    struct entry *entry = new_entry(builder->tree, kind, mark);
    if (!entry) return out_of_memory(builder->error);
    enum ls_code code = attach(builder, entry);
    if (code == LS_OK) builder->frames[builder->depth++] = (struct frame){.node = &entry->node};
    return code;
}

static const char NO_TAGS[] = "tags (!name) are not taken. Leave it out.";

/* Refuses %TAG at a line's start: libyaml's time for them grows with the square of their number. */
static enum ls_code refuse_tag_directives(const struct builder *builder, const char *bytes, size_t count) {
    yaml_mark_t mark = {0};
    for (size_t i = 0; i < count; i++) {
        unsigned char before = i ? (unsigned char)bytes[i - 1] : '\n';
        mark.line += i && before == '\n';
        if ((before < ' ' || before >= 0x7f) && count - i >= 4 && !memcmp(bytes + i, "%TAG", 4))
            return refuse(builder, mark, NO_TAGS);
    }
    return LS_OK;
}

static enum ls_code add_event(struct builder *builder, const yaml_event_t *event) {
    static const char NO_ANCHORS[] = "anchors (&name) and aliases (*name) are not taken. Write the value out.";
    if (builder->tree->count >= LS_YAML_NODES_MAX)
        return refuse(builder, event->start_mark, "more than 4096 values. No configuration needs that many.");
    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        if (builder->documents++)
            return refuse(builder, event->start_mark, "a second document starts here. Keep one in a file.");
        return LS_OK;
    case YAML_ALIAS_EVENT: return refuse(builder, event->start_mark, NO_ANCHORS);
    case YAML_SCALAR_EVENT:
        if (event->data.scalar.anchor) return refuse(builder, event->start_mark, NO_ANCHORS);
        if (event->data.scalar.tag) return refuse(builder, event->start_mark, NO_TAGS);
        return add_scalar(builder, event);
    case YAML_SEQUENCE_START_EVENT:
        if (event->data.sequence_start.anchor) return refuse(builder, event->start_mark, NO_ANCHORS);
        if (event->data.sequence_start.tag) return refuse(builder, event->start_mark, NO_TAGS);
        return open_container(builder, LS_YAML_LIST, event->start_mark);
    case YAML_MAPPING_START_EVENT:
        if (event->data.mapping_start.anchor) return refuse(builder, event->start_mark, NO_ANCHORS);
        if (event->data.mapping_start.tag) return refuse(builder, event->start_mark, NO_TAGS);
        return open_container(builder, LS_YAML_MAP, event->start_mark);
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        assert(builder->depth > 0); /* libyaml's events are balanced */
        builder->depth--;
        return LS_OK;
    default: return LS_OK;
    }
}

/* The error of libyaml itself; its reader knows an offset only. */
static enum ls_code refuse_syntax(const struct builder *builder, const yaml_parser_t *parser, const char *bytes,
                                  size_t count) {
    if (parser->error == YAML_MEMORY_ERROR) return out_of_memory(builder->error);
    yaml_mark_t mark = parser->problem_mark;
    if (parser->error == YAML_READER_ERROR) {
        size_t end = parser->problem_offset < count ? parser->problem_offset : count;
        mark = (yaml_mark_t){0};
        for (size_t i = 0; i < end; i++) {
            mark.column = bytes[i] == '\n' ? 0 : mark.column + 1;
            mark.line += bytes[i] == '\n';
        }
        return ls_fail(builder->error, LS_USAGE, LS_SCOPE_CALL,
                       "%s:%zu:%zu: not a UTF-8 text: %s (byte %zu). Save the file as UTF-8.", builder->tree->label,
                       mark.line + 1, mark.column + 1, parser->problem, parser->problem_offset);
    }
    return ls_fail(builder->error, LS_USAGE, LS_SCOPE_CALL,
                   "%s:%zu:%zu: not valid YAML: %s%s%s. Look for a missing space, bracket or quote before this place.",
                   builder->tree->label, mark.line + 1, mark.column + 1, parser->context ? parser->context : "",
                   parser->context ? ", " : "", parser->problem ? parser->problem : "unknown problem");
}

static enum ls_code build(struct builder *builder, const char *bytes, size_t count) {
    enum ls_code code = refuse_tag_directives(builder, bytes, count);
    if (code != LS_OK) return code;
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser)) return out_of_memory(builder->error);
    yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&parser, (const unsigned char *)bytes, count);
    for (bool end = false; !end && code == LS_OK;) {
        yaml_event_t event;
        if (!yaml_parser_parse(&parser, &event)) {
            code = refuse_syntax(builder, &parser, bytes, count);
            break;
        }
        end = event.type == YAML_STREAM_END_EVENT;
        code = add_event(builder, &event);
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    for (int i = 0; i < LS_YAML_DEPTH_MAX; i++) free(builder->frames[i].key);
    if (code == LS_OK && !builder->tree->root) {
        struct entry *entry = new_entry(builder->tree, LS_YAML_NULL, (yaml_mark_t){0});
        if (!entry) return out_of_memory(builder->error);
        builder->tree->root = &entry->node;
    }
    return code;
}

enum ls_code ls_yaml_parse(const char *bytes, size_t count, const char *label, struct ls_yaml **tree,
                           struct ls_error *error) {
    if (count > LS_YAML_BYTES_MAX)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                       "%s: %zu bytes are too many for a configuration: at most 1 MiB. Is it the right file?", label,
                       count);
    struct ls_yaml *made = calloc(1, sizeof *made);
    if (!made) return out_of_memory(error);
    made->label = strdup(label);
    enum ls_code code;
    if (made->label) {
        struct builder builder = {.tree = made, .error = error};
        code = build(&builder, bytes, count);
    } else {
        code = out_of_memory(error);
    }
    if (code == LS_OK)
        *tree = made;
    else
        ls_yaml_destroy(made);
    return code;
}

const struct ls_yaml_node *ls_yaml_root(const struct ls_yaml *tree) {
    return tree->root;
}

void ls_yaml_destroy(struct ls_yaml *tree) {
    if (!tree) return;
    while (tree->newest) {
        struct entry *entry = tree->newest;
        tree->newest = entry->older;
        free(entry->text);
        free(entry->key);
        free(entry);
    }
    free(tree->label);
    free(tree);
}
