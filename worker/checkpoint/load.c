/* Reading the slices of a checkpoint's state files. */
#define _GNU_SOURCE
#include "worker/checkpoint/load.h"

#include "common/files.h"
#include "common/manifest.h"
#include "common/safetensors.h"
#include "worker/checkpoint/names.h"
#include "worker/checkpoint/save.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Elements [first, first + count) of one kind of one tensor, in one file. */
struct slice {
    int tensor, kind;
    bool bf16; /* else fp32 */
    int64_t first, count;
    size_t file;         /* index into file_names */
    int64_t file_offset; /* bytes */
};

struct ls_checkpoint_reader {
    const struct ls_model *model;
    int folder;
    char (*file_names)[LS_RECORD_NAME_MAX];
    size_t file_count;
    struct slice *slices; /* sorted by tensor, kind, first */
    size_t slice_count, slice_capacity;
    struct ls_tensor_names *names;
    struct ls_loss_scale loss_scale;
};

/* What cannot be opened or read is a fault of the checkpoint only where its storage answers. */
static enum ls_code refuse(const char *action, const char *name, int cause, struct ls_error *error) {
    const enum ls_scope scope = ls_file_scope(cause, LS_SCOPE_JOB);
    return ls_fail(error, ls_file_code(cause, LS_CHECKPOINT), scope, "checkpoint: cannot %s %s: %s%s", action, name,
                   cause == ENODATA ? "it became shorter" : strerror(cause),
                   scope == LS_SCOPE_NODE ? ". Is its file system there, and open to this user?" : "");
}

/* Splits "exp_avg:NAME". */
static int parse_kind(const char *name, const char **tensor) {
    const char *colon = strchr(name, ':');
    for (int kind = 0; colon && kind < LS_CHECKPOINT_KINDS; kind++)
        if (strlen(ls_checkpoint_kind_names[kind]) == (size_t)(colon - name) &&
            strncmp(name, ls_checkpoint_kind_names[kind], (size_t)(colon - name)) == 0) {
            *tensor = colon + 1;
            return kind;
        }
    return -1;
}

static bool parse_first(const char *text, int64_t *first) {
    char *end;
    if (!text || *text < '0' || *text > '9') return false;
    errno = 0;
    *first = strtoll(text, &end, 10);
    return errno == 0 && *end == 0;
}

static enum ls_code add_slice(struct ls_checkpoint_reader *reader, struct slice slice, struct ls_error *error) {
    if (reader->slice_count == reader->slice_capacity) {
        size_t capacity = reader->slice_capacity ? 2 * reader->slice_capacity : 256;
        struct slice *grown = realloc(reader->slices, capacity * sizeof *grown);
        if (!grown) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "checkpoint: no memory for %zu slices", capacity);
        reader->slices = grown;
        reader->slice_capacity = capacity;
    }
    reader->slices[reader->slice_count++] = slice;
    return LS_OK;
}

static enum ls_code add_tensor(struct ls_checkpoint_reader *reader, size_t file, const struct ls_safetensors *header,
                               const struct ls_tensor_info *info, struct ls_error *error) {
    const char *name = "";
    struct slice slice = {.file = file, .kind = parse_kind(info->name, &name)};
    slice.tensor = slice.kind < 0 ? -1 : ls_tensor_names_find(reader->names, name);
    if (slice.tensor < 0)
        return ls_fail(
            error, LS_CHECKPOINT, LS_SCOPE_JOB,
            "checkpoint: %s holds '%.120s', which the model does not have. Is it the checkpoint of another model?",
            reader->file_names[file], info->name);
    const struct ls_tensor *tensor = ls_model_tensor(reader->model, slice.tensor);
    slice.count = ls_tensor_elements(info);
    slice.file_offset = header->data_offset + info->begin;
    slice.bf16 = info->type == LS_TENSOR_BF16 && slice.kind == LS_CHECKPOINT_MASTER;
    if ((info->type != LS_TENSOR_F32 && !slice.bf16) || info->dimensions != 1 ||
        !parse_first(ls_safetensors_metadata(header, name), &slice.first) || slice.first > tensor->count ||
        slice.count > tensor->count - slice.first)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                       "checkpoint: '%.120s' in %s is no slice of the model's tensor of %lld elements, in fp32 or, for "
                       "master weights, in bf16. Is it the checkpoint of another model?",
                       info->name, reader->file_names[file], (long long)tensor->count);
    return slice.count ? add_slice(reader, slice, error) : LS_OK;
}

static enum ls_code open_header(const struct ls_checkpoint_reader *reader, const char *name,
                                struct ls_safetensors **header, struct ls_error *error) {
    int state = openat(reader->folder, "state", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (state < 0) return refuse("open", "its folder state", errno, error);
    enum ls_code code = ls_safetensors_open(state, strchr(name, '/') + 1, header, error);
    close(state);
    return code;
}

/* The state files of a run in fp16 all hold its loss scale. */
static enum ls_code read_loss_scale(struct ls_checkpoint_reader *reader, size_t file,
                                    const struct ls_safetensors *header, struct ls_error *error) {
    const char *factor = ls_safetensors_metadata(header, "loss_scale");
    struct ls_loss_scale scale;
    if (!factor) return LS_OK;
    if (!parse_first(factor, &scale.factor) ||
        !parse_first(ls_safetensors_metadata(header, "loss_scale_good_steps"), &scale.good_steps) ||
        !ls_loss_scale_is_valid(&scale))
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                       "checkpoint: %s holds a loss scale that no run can have had (%.40s). Was the file changed by "
                       "hand? Take an earlier checkpoint.",
                       reader->file_names[file], factor);
    reader->loss_scale = scale;
    return LS_OK;
}

struct ls_loss_scale ls_checkpoint_reader_loss_scale(const struct ls_checkpoint_reader *reader) {
    return reader->loss_scale;
}

static enum ls_code read_state_file(struct ls_checkpoint_reader *reader, size_t file, struct ls_error *error) {
    struct ls_safetensors *header = NULL;
    enum ls_code code = open_header(reader, reader->file_names[file], &header, error);
    if (code) return code;
    assert(header);
    code = read_loss_scale(reader, file, header, error);
    for (size_t i = 0; i < header->tensor_count && !code; i++)
        code = add_tensor(reader, file, header, &header->tensors[i], error);
    ls_safetensors_close(header);
    return code;
}

static bool is_state_file(const char *name) {
    static const char ending[] = ".safetensors";
    size_t length = strlen(name);
    return strncmp(name, "state/rank-", 11) == 0 && length > sizeof ending &&
           strcmp(name + length - (sizeof ending - 1), ending) == 0;
}

static enum ls_code read_state_files(struct ls_checkpoint_reader *reader, struct ls_error *error) {
    char *json;
    size_t count;
    struct ls_manifest *manifest;
    enum ls_code code =
        ls_file_read_under(reader->folder, "manifest.json", LS_MANIFEST_BYTES_MAX, &json, &count, LS_CHECKPOINT, error);
    if (code) return code;
    code = ls_manifest_parse(json, count, &manifest, error);
    free(json);
    if (code) return code;
    reader->file_names = calloc(manifest->file_count + 1, sizeof *reader->file_names);
    if (!reader->file_names) code = ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "checkpoint: no memory for file names");
    for (size_t i = 0; i < manifest->file_count && !code; i++) {
        if (!is_state_file(manifest->files[i].name)) continue;
        strcpy(reader->file_names[reader->file_count++], manifest->files[i].name);
        code = read_state_file(reader, reader->file_count - 1, error);
    }
    ls_manifest_destroy(manifest);
    return code;
}

static int compare_slices(const void *left, const void *right) {
    const struct slice *a = left, *b = right;
    if (a->tensor != b->tensor) return a->tensor - b->tensor;
    if (a->kind != b->kind) return a->kind - b->kind;
    return a->first == b->first ? 0 : a->first < b->first ? -1 : 1;
}

/* Every kind of every tensor must be there exactly once; a tensor's second moments may be missing altogether. */
static enum ls_code check_cover(const struct ls_checkpoint_reader *reader, struct ls_error *error) {
    const struct slice *next = reader->slices, *end = reader->slices + reader->slice_count;
    for (int i = 0; i < ls_model_tensor_count(reader->model); i++)
        for (int kind = 0; kind < LS_CHECKPOINT_KINDS; kind++) {
            const struct ls_tensor *tensor = ls_model_tensor(reader->model, i);
            int64_t covered = 0;
            for (; next < end && next->tensor == i && next->kind == kind && next->first == covered; next++)
                covered += next->count;
            const bool none = covered == 0 && !(next < end && next->tensor == i && next->kind == kind);
            if (none && kind == LS_CHECKPOINT_EXP_AVG_SQ) continue;
            if (covered != tensor->count || (next < end && next->tensor == i && next->kind == kind))
                return ls_fail(
                    error, LS_CHECKPOINT, LS_SCOPE_JOB,
                    "checkpoint: of %s of '%s' (%lld elements) the state files hold elements up to %lld, then a hole "
                    "or an overlap. Is a state file missing from the manifest?",
                    ls_checkpoint_kind_names[kind], tensor->name, (long long)tensor->count, (long long)covered);
        }
    return LS_OK;
}

enum ls_code ls_checkpoint_reader_open(const char *folder, const struct ls_model *model,
                                       struct ls_checkpoint_reader **result, struct ls_error *error) {
    struct ls_checkpoint_reader *reader = calloc(1, sizeof *reader);
    if (!reader) return ls_fail(error, LS_MEMORY, LS_SCOPE_RANK, "checkpoint: no memory for a reader");
    reader->model = model;
    reader->folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    enum ls_code code = LS_OK;
    if (reader->folder < 0) code = refuse("open", folder, errno, error);
    if (!code) code = ls_tensor_names_create(reader->model, &reader->names, error);
    if (!code) code = read_state_files(reader, error);
    if (!code && reader->slice_count)
        qsort(reader->slices, reader->slice_count, sizeof *reader->slices, compare_slices);
    if (!code) code = check_cover(reader, error);
    if (code) {
        ls_checkpoint_reader_close(reader);
        return code;
    }
    *result = reader;
    return LS_OK;
}

void ls_checkpoint_reader_close(struct ls_checkpoint_reader *reader) {
    if (!reader) return;
    if (reader->folder >= 0) close(reader->folder);
    free(reader->file_names);
    free(reader->slices);
    ls_tensor_names_destroy(reader->names);
    free(reader);
}

/* The upper halves of `count` floats, which lie in the upper half of their memory, to those floats: each is read before
 * something is written there. */
static void widen(float *values, int64_t count) {
    const char *halves = (const char *)values + count * 2;
    for (int64_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, halves + i * 2, sizeof half);
        const uint32_t bits = (uint32_t)half << 16;
        memcpy(&values[i], &bits, sizeof bits);
    }
}

static enum ls_code read_slice(const struct ls_checkpoint_reader *reader, const struct slice *slice, int64_t first,
                               int64_t count, float *values, struct ls_error *error) {
    const char *name = reader->file_names[slice->file];
    struct ls_error own = {.code = LS_OK};
    if (!error) error = &own;
    int file = ls_manifest_open_file(reader->folder, name, error);
    if (file < 0) return error->code;
    const int64_t element = slice->bf16 ? 2 : 4;
    int failed = ls_pread_all(file, (char *)values + count * (4 - element), (size_t)(count * element),
                              slice->file_offset + (first - slice->first) * element);
    int cause = errno;
    close(file);
    if (!failed && slice->bf16) widen(values, count);
    return failed ? refuse("read", name, cause, error) : LS_OK;
}

/* The first slice of that kind of a tensor. */
static const struct slice *first_slice(const struct ls_checkpoint_reader *reader, int tensor, int kind) {
    size_t low = 0, high = reader->slice_count;
    struct slice key = {.tensor = tensor, .kind = kind};
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (compare_slices(&reader->slices[middle], &key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return reader->slices + low;
}

static bool has_slices(const struct ls_checkpoint_reader *reader, int tensor, int kind) {
    const struct slice *slice = first_slice(reader, tensor, kind);
    return slice < reader->slices + reader->slice_count && slice->tensor == tensor && slice->kind == kind;
}

/* Reads elements [low, high) of a kind of a tensor. */
static enum ls_code read_tensor(const struct ls_checkpoint_reader *reader, int tensor, int kind, int64_t low,
                                int64_t high, float *values, struct ls_error *error) {
    const struct slice *slice = first_slice(reader, tensor, kind);
    enum ls_code code = LS_OK;
    for (; low < high && !code; slice++) {
        int64_t end = slice->first + slice->count < high ? slice->first + slice->count : high;
        if (end <= low) continue;
        code = read_slice(reader, slice, low, end - low, values, error);
        values += end - low;
        low = end;
    }
    return code;
}

enum ls_code ls_checkpoint_reader_read(const struct ls_checkpoint_reader *reader, int block, int64_t first,
                                       int64_t count, float *parameters, float *m, float *v, struct ls_error *error) {
    const struct ls_block *description = ls_model_block(reader->model, block);
    float *targets[LS_CHECKPOINT_KINDS] = {parameters, m, v};
    enum ls_code code = LS_OK;
    for (int kind = 0; kind < LS_CHECKPOINT_KINDS; kind++) {
        if (!targets[kind]) continue;
        memset(targets[kind], 0, (size_t)count * sizeof(float));
        for (int i = description->first_tensor; i < description->first_tensor + description->tensor_count; i++) {
            const struct ls_tensor *tensor = ls_model_tensor(reader->model, i);
            int64_t low = first > tensor->offset ? first : tensor->offset;
            int64_t end = tensor->offset + tensor->count, high = first + count < end ? first + count : end;
            if (low >= high) continue;
            if (kind == LS_CHECKPOINT_EXP_AVG_SQ && !has_slices(reader, i, kind))
                return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB,
                               "checkpoint: its state files hold no second moments (exp_avg_sq) of '%s', which "
                               "optimizer.type needs there. Go on with the optimizer that wrote it, or start from its "
                               "weights with model.init_from.",
                               tensor->name);
            code = read_tensor(reader, i, kind, low - tensor->offset, high - tensor->offset,
                               targets[kind] + (low - first), error);
            if (code) return code;
        }
    }
    return LS_OK;
}
