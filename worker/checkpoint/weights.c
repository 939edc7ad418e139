/* Reading the weights of a Hugging Face folder. */
#define _GNU_SOURCE
#include "common/files.h"
#include "common/safetensors.h"
#include "worker/checkpoint/load.h"
#include "worker/checkpoint/names.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { INDEX_BYTES_MAX = 64 << 20, WEIGHT_FILES_MAX = 4096 };
static const char single_name[] = "model.safetensors";
static const char index_name[] = "model.safetensors.index.json";

/* Where a tensor of the model is. */
struct place {
    const struct ls_safetensors *file;
    const struct ls_tensor_info *info;
};

struct ls_weights {
    const struct ls_model *model;
    struct ls_tensor_names *names;
    struct ls_safetensors **files;
    size_t file_count;
    struct place *places; /* [tensors] */
};

/* "transformer." stands in front of all names of a GPT-2 with a head in files that transformers writes. */
static const char *without_prefix(const char *name) {
    static const char prefix[] = "transformer.";
    return strncmp(name, prefix, sizeof prefix - 1) == 0 ? name + sizeof prefix - 1 : name;
}

static bool ends_with(const char *text, const char *ending) {
    size_t length = strlen(text), tail = strlen(ending);
    return length >= tail && strcmp(text + length - tail, ending) == 0;
}

/* What old files hold beside weights: the causal mask of GPT-2, Llama's angles, and the copy of a tied table. */
static bool is_ignorable(const struct ls_model *model, const char *name) {
    return ends_with(name, ".attn.bias") || ends_with(name, ".attn.masked_bias") ||
           ends_with(name, ".rotary_emb.inv_freq") ||
           (strcmp(name, "lm_head.weight") == 0 && ls_model_head_is_tied(model));
}

static bool shapes_agree(const struct ls_tensor_info *info, const struct ls_tensor *tensor) {
    if (info->dimensions != tensor->dimensions) return false;
    for (int i = 0; i < info->dimensions; i++)
        if (info->shape[i] != tensor->shape[i]) return false;
    return true;
}

static void describe_shape(const int64_t *shape, int dimensions, char text[96]) {
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < dimensions && used < 80; i++)
        used += (size_t)snprintf(text + used, 96 - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
}

static enum ls_code place_tensor(struct ls_weights *weights, const struct ls_safetensors *file,
                                 const struct ls_tensor_info *info, struct ls_error *error) {
    const char *name = without_prefix(info->name);
    int found = ls_tensor_names_find(weights->names, name);
    if (found < 0 && is_ignorable(weights->model, name)) return LS_OK;
    if (found < 0)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                       "weights: the folder holds '%.120s', which a model of its config.json does not have. Is it of "
                       "another model type?",
                       info->name);
    const struct ls_tensor *tensor = ls_model_tensor(weights->model, found);
    if (!shapes_agree(info, tensor)) {
        char have[96], want[96];
        describe_shape(info->shape, info->dimensions, have);
        describe_shape(tensor->shape, tensor->dimensions, want);
        return ls_fail(
            error, LS_CHECKPOINT, LS_SCOPE_CALL,
            "weights: '%.120s' has the shape [%s], the model needs [%s]. Does config.json belong to these weights?",
            info->name, have, want);
    }
    if (weights->places[found].info)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL, "weights: '%.120s' is there twice", info->name);
    weights->places[found] = (struct place){.file = file, .info = info};
    return LS_OK;
}

static bool has_file(int folder, const char *name) {
    return faccessat(folder, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

static enum ls_code add_file(struct ls_weights *weights, int folder, const char *name, struct ls_error *error) {
    struct ls_safetensors *file;
    enum ls_code code = ls_safetensors_open(folder, name, &file, error);
    if (code) return code;
    weights->files[weights->file_count++] = file;
    for (size_t i = 0; i < file->tensor_count && !code; i++)
        code = place_tensor(weights, file, &file->tensors[i], error);
    return code;
}

static int compare_text(const void *left, const void *right) {
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* Opens each file that the index names, once. */
static enum ls_code add_indexed_files(struct ls_weights *weights, int folder, struct ls_error *error) {
    char *json;
    size_t count;
    struct ls_weight_map *map;
    enum ls_code code = ls_file_read_under(folder, index_name, INDEX_BYTES_MAX, &json, &count, LS_CHECKPOINT, error);
    if (code) return code;
    code = ls_weight_map_parse(json, count, &map, error);
    free(json);
    if (code) return code;
    const char **names = calloc(map->entry_count + 1, sizeof *names);
    if (!names) code = ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "weights: no memory for the index");
    for (size_t i = 0; i < map->entry_count && !code; i++) names[i] = map->entries[i].value;
    if (!code) qsort(names, map->entry_count, sizeof *names, compare_text);
    ls_files_allow(map->entry_count < WEIGHT_FILES_MAX ? map->entry_count : WEIGHT_FILES_MAX);
    for (size_t i = 0; i < map->entry_count && !code; i++) {
        if (i > 0 && strcmp(names[i - 1], names[i]) == 0) continue;
        if (weights->file_count == WEIGHT_FILES_MAX)
            code = ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL, "weights: the index names more than %d files",
                           WEIGHT_FILES_MAX);
        else if (ls_file_name_is_safe(names[i]) && !has_file(folder, names[i]))
            code = ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                           "weights: there is no %s, which %s names. Is the download, or the copy, complete?", names[i],
                           index_name);
        else
            code = add_file(weights, folder, names[i], error);
    }
    free(names);
    ls_weight_map_destroy(map);
    return code;
}

static enum ls_code add_files(struct ls_weights *weights, int folder, struct ls_error *error) {
    if (has_file(folder, index_name)) return add_indexed_files(weights, folder, error);
    if (has_file(folder, single_name)) return add_file(weights, folder, single_name, error);
    return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                   "weights: there is neither %s nor %s. Only safetensors are read: what has other files "
                   "(pytorch_model.bin) is saved so by transformers' save_pretrained().",
                   single_name, index_name);
}

static enum ls_code check_complete(const struct ls_weights *weights, struct ls_error *error) {
    for (int i = 0; i < ls_model_tensor_count(weights->model); i++)
        if (!weights->places[i].info)
            return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                           "weights: tensor '%s' is missing. Is a file of the folder missing, or does config.json "
                           "belong to another "
                           "model?",
                           ls_model_tensor(weights->model, i)->name);
    return LS_OK;
}

enum ls_code ls_weights_open(const char *folder, const struct ls_model *model, struct ls_weights **result,
                             struct ls_error *error) {
    int descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL, "weights: cannot open the folder %s: %s", folder,
                       strerror(errno));
    struct ls_weights *weights = calloc(1, sizeof *weights);
    enum ls_code code = LS_OK;
    if (weights) {
        weights->model = model;
        weights->files = calloc(WEIGHT_FILES_MAX, sizeof(struct ls_safetensors *));
        weights->places = calloc((size_t)ls_model_tensor_count(model) + 1, sizeof *weights->places);
    }
    if (!weights || !weights->files || !weights->places)
        code = ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "weights: no memory");
    if (!code) code = ls_tensor_names_create(model, &weights->names, error);
    if (!code) code = add_files(weights, descriptor, error);
    if (!code) code = check_complete(weights, error);
    close(descriptor);
    if (code) {
        ls_weights_close(weights);
        return ls_fail_within(error, "%s", folder);
    }
    *result = weights;
    return LS_OK;
}

void ls_weights_close(struct ls_weights *weights) {
    if (!weights) return;
    for (size_t i = 0; i < weights->file_count; i++) ls_safetensors_close(weights->files[i]);
    ls_tensor_names_destroy(weights->names);
    free(weights->files);
    free(weights->places);
    free(weights);
}

enum ls_code ls_weights_read(const struct ls_weights *weights, int block, int64_t first, int64_t count,
                             float *parameters, struct ls_error *error) {
    const struct ls_block *description = ls_model_block(weights->model, block);
    memset(parameters, 0, (size_t)count * sizeof *parameters);
    for (int i = description->first_tensor; i < description->first_tensor + description->tensor_count; i++) {
        const struct ls_tensor *tensor = ls_model_tensor(weights->model, i);
        const struct place *place = &weights->places[i];
        int64_t low = first > tensor->offset ? first : tensor->offset;
        int64_t end = tensor->offset + tensor->count, high = first + count < end ? first + count : end;
        if (low >= high) continue;
        enum ls_code code = ls_safetensors_read_fp32(place->file, place->info, low - tensor->offset, high - low,
                                                     parameters + (low - first), error);
        if (code) return code;
    }
    return LS_OK;
}
