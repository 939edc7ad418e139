/* The listing of keys: for a terminal and as Markdown. */
#include "common/key_table.h"

#include <stdio.h>
#include <string.h>

static void default_text(const struct ls_key *key, char *text, size_t size) {
    if (key->standard)
        snprintf(text, size, "%s", key->standard);
    else
        snprintf(text, size, "%s", key->derived ? key->derived : "required");
}

static const char *scope_text(const struct ls_key *key) {
    switch (key->scope) {
    case LS_KEY_ALWAYS: return "";
    case LS_KEY_GPT2: return " (gpt2 only)";
    case LS_KEY_LLAMA: return " (not gpt2)";
    case LS_KEY_MISTRAL: return " (mistral only)";
    case LS_KEY_LLAMA3_ROPE: return " (rope_type llama3 only)";
    case LS_KEY_BF16: return " (precision bf16 only)";
    case LS_KEY_ADAM: return " (adamw, muon only)";
    case LS_KEY_MOMENTUM: return " (sgd, muon only)";
    case LS_KEY_NOT_SGD: return " (not sgd)";
    }
    return "";
}

static void print_table(FILE *out, const struct ls_key_table *table, bool markdown) {
    for (int i = 0; i < table->count; i++) {
        const struct ls_key *key = &table->keys[i];
        char allowed[256], standard[128];
        ls_key_describe(key, allowed, sizeof allowed);
        default_text(key, standard, sizeof standard);
        const char *mark = key->standard ? "`" : "";
        if (markdown)
            fprintf(out, "| `%s%s` | %s | %s%s%s | %s%s |\n", table->prefix, key->name, allowed, mark, standard, mark,
                    key->meaning, scope_text(key));
        else
            fprintf(out, "%s%s\n    %s%s\n    %s; default: %s\n", table->prefix, key->name, key->meaning,
                    scope_text(key), allowed, standard);
    }
}

static const char INTRODUCTION[] =
    "# Configuration\n"
    "\n"
    "This page is printed by `lockstep config --keys --markdown` from the table in `common/key_table.c`; a test "
    "compares "
    "them.\n"
    "\n"
    "A run is one YAML file. `lockstep run CONFIG` reads it, `--set key=value` overrides one key (the value is YAML, "
    "lists and\n"
    "maps included: `--set 'data.train=[{path: data/a, weight: 2}, {path: data/b, weight: 1}]'`; later ones win), and\n"
    "`lockstep config CONFIG` prints the result with every default filled in. `null` stands for \"not given\". Keys of "
    "the\n"
    "model are those of Hugging Face's `config.json` for Llama. An unknown key, a value out of range and a key that "
    "would have\n"
    "no effect on the model are errors (exit 2) that name file, line and column. Relative paths are relative to the "
    "current\n"
    "directory. Anchors, aliases, tags and second documents are not taken.\n"
    "\n"
    "The smallest file that trains:\n"
    "\n"
    "```yaml\n"
    "model: {model_type: gpt2, hidden_size: 256, num_hidden_layers: 4, num_attention_heads: 4}\n"
    "data: {train: [{path: data/text/train}], sequence_length: 256}\n"
    "train: {steps: 400, global_batch_size: 32, micro_batch_size: 16}\n"
    "```\n"
    "\n"
    "Rules between keys: `num_attention_heads` divides `hidden_size` (unless `head_dim` is given), "
    "`num_key_value_heads`\n"
    "divides `num_attention_heads`, `sequence_length` is at most `max_position_embeddings`, exactly one of `steps` and "
    "`epochs`\n"
    "is given (`epochs` not with weights), `micro_batch_size` is at most `global_batch_size`, `warmup_steps` at most "
    "`steps`,\n"
    "and a full step has at least one sequence for every rank.\n"
    "\n"
    "| key | value | default | meaning |\n"
    "| --- | --- | --- | --- |\n";

static const char SOURCES[] =
    "\n"
    "A dataset is a map with these keys (`data.validation[]` has the same, without `weight`):\n"
    "\n"
    "| key | value | default | meaning |\n"
    "| --- | --- | --- | --- |\n";

void ls_config_print_keys(FILE *out, bool markdown) {
    if (markdown) fputs(INTRODUCTION, out);
    print_table(out, &ls_config_keys, markdown);
    if (markdown) fputs(SOURCES, out);
    print_table(out, &ls_source_keys, markdown);
}
