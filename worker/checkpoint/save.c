/* One rank's files of a checkpoint. */
#include "worker/checkpoint/save.h"

#include "common/byte_tokenizer.h"
#include "common/files.h"
#include "common/hf_config.h"
#include "common/log.h"
#include "common/safetensors.h"
#include "common/tokenizer.h"
#include "worker/checkpoint/part.h"
#include "worker/optim/muon.h"

#include <assert.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STATE_NAME_MAX = 128, TOKENIZER_BYTES_MAX = 256 << 20 };
const char *const ls_checkpoint_kind_names[LS_CHECKPOINT_KINDS] = {
    [LS_CHECKPOINT_MASTER] = "master", [LS_CHECKPOINT_EXP_AVG] = "exp_avg", [LS_CHECKPOINT_EXP_AVG_SQ] = "exp_avg_sq"};
static const int64_t model_file_bytes_standard = 64 << 20;

int64_t ls_checkpoint_held_from(const struct ls_config *config, const struct ls_block *block,
                                enum ls_checkpoint_kind kind) {
    return kind == LS_CHECKPOINT_EXP_AVG_SQ ? ls_second_moment_from(config, block) : 0;
}

int64_t ls_checkpoint_held(const struct ls_config *config, const struct ls_model *model, enum ls_checkpoint_kind kind) {
    int64_t held = 0;
    for (int i = 0; i < ls_model_block_count(model); i++) {
        const struct ls_block *block = ls_model_block(model, i);
        held += block->count - ls_checkpoint_held_from(config, block, kind);
    }
    return held;
}

enum ls_dtype ls_checkpoint_state_dtype(const struct ls_config *config, enum ls_checkpoint_kind kind) {
    return kind == LS_CHECKPOINT_MASTER && config->optimizer.stochastic_rounding ? LS_BF16 : LS_FP32;
}

static enum ls_tensor_type tensor_type(enum ls_dtype dtype) {
    return dtype == LS_BF16 ? LS_TENSOR_BF16 : dtype == LS_FP16 ? LS_TENSOR_F16 : LS_TENSOR_F32;
}

struct ls_checkpoint_writer {
    struct ls_checkpoint_writer_options options;
    int *owners; /* [tensors] the rank that writes the tensor's weights */
    int64_t model_files;
    struct ls_part model, state; /* model.file is -1 when this rank writes no weights */
    int next_block;
    enum ls_checkpoint_kind next_kind; /* of the state */
};

void ls_checkpoint_slice(int64_t count, int64_t rank, int64_t world_size, int64_t replicas, int64_t unit,
                         int64_t *first, int64_t *length) {
    const int64_t ranks = world_size / replicas, step = ranks * unit;
    const int64_t slice = (count / step + (count % step != 0)) * unit,
                  piece = slice / replicas + (slice % replicas != 0);
    const int64_t begin = rank % ranks * slice, end = begin + slice < count ? begin + slice : count;
    *first = begin + rank / ranks * piece < end ? begin + rank / ranks * piece : end;
    *length = end - *first < piece ? end - *first : piece;
}

int64_t ls_checkpoint_bytes(const struct ls_config *config, const struct ls_model *model, int64_t world_size) {
    /* A slice begins inside a tensor once per rank and block; every piece costs a header entry and a metadata pair. */
    int64_t pieces = ls_model_tensor_count(model) + ls_model_block_count(model) * world_size;
    int64_t header_bytes = 512 * (LS_CHECKPOINT_KINDS + 2) * pieces + (1 << 20);
    int64_t bytes = ls_dtype_bytes(ls_model_dtype(model)) * ls_model_parameter_count(model) + header_bytes;
    for (enum ls_checkpoint_kind kind = 0; kind < LS_CHECKPOINT_KINDS; kind++)
        bytes += ls_dtype_bytes(ls_checkpoint_state_dtype(config, kind)) * ls_checkpoint_held(config, model, kind);
    return bytes;
}

struct dealt_tensor {
    int tensor;
    int64_t count;
};

static int compare_sizes(const void *left, const void *right) {
    const struct dealt_tensor *a = left, *b = right;
    if (a->count != b->count) return a->count > b->count ? -1 : 1;
    return a->tensor - b->tensor;
}

static int64_t count_model_files(const struct ls_model *model, int64_t world_size, int64_t model_file_bytes) {
    int64_t bytes = ls_model_parameter_count(model) * ls_dtype_bytes(ls_model_dtype(model));
    int64_t per_file = model_file_bytes ? model_file_bytes : model_file_bytes_standard;
    int64_t files = bytes / per_file + (bytes % per_file != 0);
    if (files > world_size) files = world_size;
    if (files > ls_model_tensor_count(model)) files = ls_model_tensor_count(model);
    return files < 1 ? 1 : files;
}

enum ls_code ls_checkpoint_deal(const struct ls_model *model, int64_t world_size, int64_t model_file_bytes, int *owners,
                                int64_t *files, struct ls_error *error) {
    int tensors = ls_model_tensor_count(model);
    int64_t count = count_model_files(model, world_size, model_file_bytes);
    struct dealt_tensor *sorted = calloc((size_t)tensors + 1, sizeof *sorted);
    int64_t *loads = calloc((size_t)count, sizeof *loads);
    enum ls_code code = LS_OK;
    if (!sorted || !loads)
        code = ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "checkpoint: no memory to deal %d tensors", tensors);
    for (int i = 0; i < tensors && !code; i++)
        sorted[i] = (struct dealt_tensor){.tensor = i, .count = ls_model_tensor(model, i)->count};
    if (!code) qsort(sorted, (size_t)tensors, sizeof *sorted, compare_sizes);
    for (int i = 0; i < tensors && !code; i++) {
        int least = 0;
        for (int file = 1; file < count; file++)
            if (loads[file] < loads[least]) least = file;
        owners[sorted[i].tensor] = least;
        loads[least] += sorted[i].count;
    }
    free(sorted);
    free(loads);
    *files = count;
    return code;
}

static void model_file_name(const struct ls_checkpoint_writer *writer, int64_t file, char name[LS_RECORD_NAME_MAX]) {
    if (writer->model_files == 1)
        snprintf(name, LS_RECORD_NAME_MAX, "model.safetensors");
    else
        snprintf(name, LS_RECORD_NAME_MAX, "model-%05" PRId64 "-of-%05" PRId64 ".safetensors", file + 1,
                 writer->model_files);
}

/* Makes the file `name` of `count` tensors and writes its header. */
static enum ls_code begin_part(struct ls_part *part, const char *folder, const char *name,
                               struct ls_tensor_info *tensors, size_t count, const struct ls_safetensors_pair *metadata,
                               size_t metadata_count, struct ls_error *error) {
    char *header;
    size_t header_bytes = 0;
    enum ls_code code = ls_safetensors_header(tensors, count, metadata, metadata_count, &header, &header_bytes, error);
    if (code) return code;
    int64_t total = (int64_t)header_bytes + (count ? tensors[count - 1].end : 0);
    code = ls_part_create(part, folder, name, total, error);
    if (!code) code = ls_part_write(part, header, header_bytes, error);
    free(header);
    return code;
}

static enum ls_code begin_model_part(struct ls_checkpoint_writer *writer, struct ls_error *error) {
    const struct ls_model *model = writer->options.model;
    const enum ls_dtype dtype = ls_model_dtype(model);
    char name[LS_RECORD_NAME_MAX];
    size_t count = 0;
    if (writer->options.rank >= writer->model_files) return LS_OK;
    struct ls_tensor_info *infos = calloc((size_t)ls_model_tensor_count(model) + 1, sizeof *infos);
    if (!infos) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "checkpoint: no memory for a header");
    for (int i = 0; i < ls_model_tensor_count(model); i++) {
        const struct ls_tensor *tensor = ls_model_tensor(model, i);
        if (writer->owners[i] != writer->options.rank) continue;
        infos[count++] = (struct ls_tensor_info){.name = tensor->name,
                                                 .type = tensor_type(dtype),
                                                 .dimensions = tensor->dimensions,
                                                 .shape = {tensor->shape[0], tensor->shape[1]}};
    }
    model_file_name(writer, writer->options.rank, name);
    enum ls_code code = begin_part(&writer->model, writer->options.folder, name, infos, count, NULL, 0, error);
    free(infos);
    return code;
}

/* What a tensor and this rank's slice of its block have in common: elements [*first, *first + *count) of the tensor. */
static bool meet(const struct ls_checkpoint_writer *writer, const struct ls_tensor *tensor, int64_t *first,
                 int64_t *count) {
    int64_t begin, length;
    ls_checkpoint_slice(ls_model_block(writer->options.model, tensor->block)->count, writer->options.rank,
                        writer->options.world_size, writer->options.replicas, writer->options.unit, &begin, &length);
    int64_t low = begin > tensor->offset ? begin : tensor->offset;
    int64_t high = begin + length < tensor->offset + tensor->count ? begin + length : tensor->offset + tensor->count;
    *first = low - tensor->offset;
    *count = high - low;
    return high > low;
}

/* The strings of the state file's header. */
struct state_name {
    char name[STATE_NAME_MAX], first[24];
};

static enum ls_code begin_state_part(struct ls_checkpoint_writer *writer, struct ls_error *error) {
    const struct ls_model *model = writer->options.model;
    size_t tensors = (size_t)ls_model_tensor_count(model), count = 0, pairs = 0;
    struct ls_tensor_info *infos = calloc(LS_CHECKPOINT_KINDS * tensors + 1, sizeof *infos);
    struct state_name *names = calloc(LS_CHECKPOINT_KINDS * tensors + 1, sizeof *names);
    struct ls_safetensors_pair *metadata = calloc(tensors + 2, sizeof *metadata);
    char factor[24], good_steps[24];
    char name[LS_RECORD_NAME_MAX];
    enum ls_code code = LS_OK;
    if (!infos || !names || !metadata)
        code = ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "checkpoint: no memory for a header");
    for (int b = 0; b < ls_model_block_count(model) && !code; b++) {
        const struct ls_block *block = ls_model_block(model, b);
        for (int kind = 0; kind < LS_CHECKPOINT_KINDS; kind++) {
            const int64_t held = ls_checkpoint_held_from(writer->options.config, block, (enum ls_checkpoint_kind)kind);
            const enum ls_tensor_type type =
                tensor_type(ls_checkpoint_state_dtype(writer->options.config, (enum ls_checkpoint_kind)kind));
            for (int i = block->first_tensor; i < block->first_tensor + block->tensor_count; i++) {
                const struct ls_tensor *tensor = ls_model_tensor(model, i);
                int64_t first, elements;
                if (tensor->offset < held || !meet(writer, tensor, &first, &elements)) continue;
                snprintf(names[count].name, STATE_NAME_MAX, "%s:%s", ls_checkpoint_kind_names[kind], tensor->name);
                snprintf(names[count].first, sizeof names[count].first, "%" PRId64, first);
                if (kind == 0)
                    metadata[pairs++] = (struct ls_safetensors_pair){.key = tensor->name, .value = names[count].first};
                infos[count] = (struct ls_tensor_info){
                    .name = names[count].name, .type = type, .dimensions = 1, .shape = {elements}};
                count++;
            }
        }
    }
    if (!code && writer->options.loss_scale.factor) {
        snprintf(factor, sizeof factor, "%" PRId64, writer->options.loss_scale.factor);
        snprintf(good_steps, sizeof good_steps, "%" PRId64, writer->options.loss_scale.good_steps);
        metadata[pairs++] = (struct ls_safetensors_pair){.key = "loss_scale", .value = factor};
        metadata[pairs++] = (struct ls_safetensors_pair){.key = "loss_scale_good_steps", .value = good_steps};
    }
    snprintf(name, sizeof name, "state/rank-%05" PRId64 ".safetensors", writer->options.rank);
    if (!code) code = begin_part(&writer->state, writer->options.folder, name, infos, count, metadata, pairs, error);
    free(metadata);
    free(names);
    free(infos);
    return code;
}

enum ls_code ls_checkpoint_writer_create(const struct ls_checkpoint_writer_options *options,
                                         struct ls_checkpoint_writer **result, struct ls_error *error) {
    struct ls_checkpoint_writer *writer = calloc(1, sizeof *writer);
    if (!writer) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "checkpoint: no memory for a writer");
    writer->options = *options;
    writer->model.file = writer->state.file = -1;
    writer->owners = calloc((size_t)ls_model_tensor_count(options->model) + 1, sizeof *writer->owners);
    enum ls_code code = LS_OK;
    if (!writer->owners) code = ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "checkpoint: no memory for a writer");
    if (!code)
        code = ls_checkpoint_deal(options->model, options->world_size, options->model_file_bytes, writer->owners,
                                  &writer->model_files, error);
    if (!code) code = begin_model_part(writer, error);
    if (!code) code = begin_state_part(writer, error);
    if (code) {
        ls_checkpoint_writer_destroy(writer);
        return code;
    }
    *result = writer;
    return LS_OK;
}

enum ls_code ls_checkpoint_writer_put_state(struct ls_checkpoint_writer *writer, int block,
                                            enum ls_checkpoint_kind kind, const void *values, struct ls_error *error) {
    const struct ls_checkpoint_writer_options *options = &writer->options;
    const int64_t element = ls_dtype_bytes(ls_checkpoint_state_dtype(options->config, kind));
    const struct ls_block *description = ls_model_block(options->model, block);
    int64_t begin, length;
    assert(block == writer->next_block && kind == writer->next_kind);
    writer->next_kind = (kind + 1) % LS_CHECKPOINT_KINDS;
    writer->next_block += writer->next_kind == 0;
    const int64_t held = ls_checkpoint_held_from(options->config, description, kind);
    ls_checkpoint_slice(description->count, options->rank, options->world_size, options->replicas, options->unit,
                        &begin, &length);
    if (begin < held) begin = held;
    enum ls_code code = LS_OK;
    for (int i = 0; i < description->tensor_count && !code; i++) {
        const struct ls_tensor *tensor = ls_model_tensor(options->model, description->first_tensor + i);
        int64_t first, count;
        if (tensor->offset < held || !meet(writer, tensor, &first, &count)) continue;
        code = ls_part_write(&writer->state, (const char *)values + (tensor->offset + first - begin) * element,
                             (size_t)(count * element), error);
    }
    return code;
}

enum ls_code ls_checkpoint_writer_put_weights(struct ls_checkpoint_writer *writer, const void *bytes, size_t count,
                                              struct ls_error *error) {
    return ls_part_write(&writer->model, bytes, count, error);
}

/* Small files, whole. */

static enum ls_code write_small(struct ls_checkpoint_writer *writer, const char *name, const char *bytes, size_t count,
                                struct ls_file_record *record, struct ls_error *error) {
    struct ls_part part;
    enum ls_code code = ls_part_create(&part, writer->options.folder, name, (int64_t)count, error);
    if (!code) code = ls_part_write(&part, bytes, count, error);
    if (!code) code = ls_part_finish(&part, record, error);
    ls_part_abandon(&part);
    return code;
}

/* Writes `text` unless making it failed with `code`, and frees it. */
static enum ls_code write_made(struct ls_checkpoint_writer *writer, enum ls_code code, const char *name, char *text,
                               struct ls_file_record *files, size_t *count, struct ls_error *error) {
    if (code) return code;
    code = write_small(writer, name, text, strlen(text), &files[*count], error);
    free(text);
    if (!code) ++*count;
    return code;
}

static enum ls_code write_index(struct ls_checkpoint_writer *writer, struct ls_file_record *files, size_t *count,
                                struct ls_error *error) {
    const struct ls_model *model = writer->options.model;
    size_t tensors = (size_t)ls_model_tensor_count(model);
    struct ls_safetensors_pair *entries = calloc(tensors + 1, sizeof *entries);
    char(*names)[LS_RECORD_NAME_MAX] = calloc((size_t)writer->model_files, sizeof *names);
    char *json = NULL;
    enum ls_code code = LS_OK;
    if (!entries || !names) code = ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "checkpoint: no memory for the index");
    for (int64_t file = 0; file < writer->model_files && !code; file++) model_file_name(writer, file, names[file]);
    for (size_t i = 0; i < tensors && !code; i++)
        entries[i] = (struct ls_safetensors_pair){.key = ls_model_tensor(model, (int)i)->name,
                                                  .value = names[writer->owners[i]]};
    if (!code)
        code = ls_weight_map_write(
            entries, tensors, ls_model_parameter_count(model) * ls_dtype_bytes(ls_model_dtype(model)), &json, error);
    code = write_made(writer, code, "model.safetensors.index.json", json, files, count, error);
    free(names);
    free(entries);
    return code;
}

/* Copies the file at `path`. One that cannot be read may have moved since the data was prepared: it is passed over,
 * with a warning where there always is one; the weights are worth saving without it. */
static enum ls_code write_copy(struct ls_checkpoint_writer *writer, const char *path, const char *name, bool always,
                               struct ls_file_record *files, size_t *count, struct ls_error *error) {
    struct ls_error missing;
    char *text = NULL;
    size_t bytes = 0;
    if (ls_file_read(path, TOKENIZER_BYTES_MAX, &text, &bytes, LS_CHECKPOINT, &missing)) {
        if (always) ls_log(LS_LOG_WARNING, "checkpoint: saved without %s: %s", name, missing.text);
        return LS_OK;
    }
    enum ls_code code = write_small(writer, name, text, bytes, &files[*count], error);
    free(text);
    if (!code) ++*count;
    return code;
}

static enum ls_code write_tokenizer(struct ls_checkpoint_writer *writer, struct ls_file_record *files, size_t *count,
                                    struct ls_error *error) {
    const char *tokenizer = writer->options.tokenizer ? writer->options.tokenizer : "";
    char *text = NULL;
    if (strcmp(tokenizer, "byte") == 0) {
        enum ls_code code = ls_byte_tokenizer_write(&text, error);
        code = write_made(writer, code, "tokenizer.json", text, files, count, error);
        if (code) return code;
        code = ls_tokenizer_config_write(LS_BYTE_TEXT_DOCUMENT, &text, error);
        return write_made(writer, code, "tokenizer_config.json", text, files, count, error);
    }
    const char *slash = strrchr(tokenizer, '/');
    char config[PATH_MAX];
    if (!slash) return LS_OK;
    enum ls_code code = write_copy(writer, tokenizer, "tokenizer.json", true, files, count, error);
    if (code || snprintf(config, sizeof config, "%.*s/tokenizer_config.json", (int)(slash - tokenizer), tokenizer) >=
                    (int)sizeof config)
        return code;
    return write_copy(writer, config, "tokenizer_config.json", false, files, count, error);
}

static enum ls_code write_descriptions(struct ls_checkpoint_writer *writer, struct ls_file_record *files, size_t *count,
                                       struct ls_error *error) {
    char *json = NULL;
    enum ls_code code = ls_hf_config_write(writer->options.config, writer->options.document_token, &json, error);
    code = write_made(writer, code, "config.json", json, files, count, error);
    if (!code) code = write_tokenizer(writer, files, count, error);
    if (!code && writer->model_files > 1) code = write_index(writer, files, count, error);
    return code;
}

enum ls_code ls_checkpoint_writer_finish(struct ls_checkpoint_writer *writer, struct ls_file_record *files,
                                         size_t *count, struct ls_error *error) {
    size_t made = 0;
    assert(writer->next_block == ls_model_block_count(writer->options.model));
    enum ls_code code = LS_OK;
    if (writer->model.file >= 0) code = ls_part_finish(&writer->model, &files[made++], error);
    if (!code) code = ls_part_finish(&writer->state, &files[made++], error);
    if (!code && writer->options.rank == 0) code = write_descriptions(writer, files, &made, error);
    if (!code) *count = made;
    return code;
}

void ls_checkpoint_writer_destroy(struct ls_checkpoint_writer *writer) {
    if (!writer) return;
    ls_part_abandon(&writer->model);
    ls_part_abandon(&writer->state);
    free(writer->owners);
    free(writer);
}
