/* Parsing and making safetensors headers, and reading tensors by pread. */
#define _GNU_SOURCE
#include "common/safetensors.h"

#include "common/files.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct {
    const char *name;
    int64_t bytes;
} tensor_types[] = {
#define X(name, bytes) {#name, bytes},
    LS_TENSOR_TYPES(X)
#undef X
};
enum { TENSOR_TYPE_COUNT = sizeof tensor_types / sizeof *tensor_types };

const char *ls_tensor_type_name(enum ls_tensor_type type) {
    return tensor_types[type].name;
}

int64_t ls_tensor_elements(const struct ls_tensor_info *tensor) {
    int64_t elements = 1;
    for (int i = 0; i < tensor->dimensions; i++) elements *= tensor->shape[i];
    return elements;
}

static enum ls_code refuse_tensor(struct ls_error *error, const char *name, const char *what) {
    return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                   "safetensors: tensor '%.120s' %s. The file is damaged: use another copy.", name, what);
}

static bool parse_type(const json_t *value, enum ls_tensor_type *type) {
    const char *name = json_string_value(value);
    for (int i = 0; name && i < TENSOR_TYPE_COUNT; i++)
        if (strcmp(name, tensor_types[i].name) == 0) {
            *type = (enum ls_tensor_type)i;
            return true;
        }
    return false;
}

/* Puts the shape into `tensor` and the bytes it asks for into *bytes. */
static bool parse_shape(const json_t *shape, struct ls_tensor_info *tensor, int64_t *bytes) {
    if (!json_is_array(shape) || json_array_size(shape) > LS_TENSOR_DIMENSIONS_MAX) return false;
    tensor->dimensions = (int)json_array_size(shape);
    *bytes = tensor_types[tensor->type].bytes;
    for (int i = 0; i < tensor->dimensions; i++) {
        const json_t *size = json_array_get(shape, (size_t)i);
        if (!json_is_integer(size) || json_integer_value(size) < 0) return false;
        tensor->shape[i] = json_integer_value(size);
        if (__builtin_mul_overflow(*bytes, tensor->shape[i], bytes)) return false;
    }
    return true;
}

static enum ls_code parse_tensor(const char *name, const json_t *entry, int64_t data_bytes,
                                 struct ls_tensor_info *tensor, struct ls_error *error) {
    tensor->name = name;
    if (*name == 0 || strlen(name) > LS_TENSOR_NAME_MAX)
        return refuse_tensor(error, name, "has a name that is empty or longer than 511 bytes");
    if (!json_is_object(entry) || json_object_size(entry) != 3)
        return refuse_tensor(error, name, "is not described by exactly dtype, shape and data_offsets");
    if (!parse_type(json_object_get(entry, "dtype"), &tensor->type))
        return refuse_tensor(error, name, "has a dtype that is missing or not known");
    int64_t bytes;
    if (!parse_shape(json_object_get(entry, "shape"), tensor, &bytes))
        return refuse_tensor(error, name, "has a shape that is not a list of at most 8 sizes within 63 bits");
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end))
        return refuse_tensor(error, name, "has data_offsets that are not two integers");
    tensor->begin = json_integer_value(begin);
    tensor->end = json_integer_value(end);
    if (tensor->begin < 0 || tensor->end < tensor->begin || tensor->end > data_bytes)
        return refuse_tensor(error, name, "lies outside the file");
    if (tensor->end - tensor->begin != bytes)
        return refuse_tensor(error, name, "has a shape that does not fit its data_offsets");
    return LS_OK;
}

static int compare_offsets(const void *left, const void *right) {
    const struct ls_tensor_info *a = left, *b = right;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    if (a->end != b->end) return a->end < b->end ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* The tensors, in the order of their bytes, must cover [0, data_bytes) exactly once. */
static enum ls_code check_cover(const struct ls_safetensors *header, struct ls_error *error) {
    int64_t next = 0;
    for (size_t i = 0; i < header->tensor_count; i++) {
        const struct ls_tensor_info *tensor = &header->tensors[i];
        if (tensor->begin < next) return refuse_tensor(error, tensor->name, "overlaps the tensor before it");
        if (tensor->begin > next) return refuse_tensor(error, tensor->name, "leaves a hole in front of it");
        next = tensor->end;
    }
    if (next != header->data_bytes)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                       "safetensors: the tensors end at byte %lld of %lld. The file is damaged: use another copy.",
                       (long long)next, (long long)header->data_bytes);
    return LS_OK;
}

static int compare_keys(const void *left, const void *right) {
    return strcmp(((const struct ls_safetensors_pair *)left)->key, ((const struct ls_safetensors_pair *)right)->key);
}

static enum ls_code parse_metadata(const json_t *metadata, struct ls_safetensors *header, struct ls_error *error) {
    if (!json_is_object(metadata))
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                       "safetensors: __metadata__ is not an object. The file is damaged: use another copy.");
    header->metadata = calloc(json_object_size(metadata) + 1, sizeof *header->metadata);
    if (!header->metadata) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "safetensors: no memory for the metadata");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)metadata, key, value) {
        if (!json_is_string(value))
            return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                           "safetensors: __metadata__ '%.100s' is not a string. The file is damaged: use another copy.",
                           key);
        header->metadata[header->metadata_count++] =
            (struct ls_safetensors_pair){.key = key, .value = json_string_value(value)};
    }
    qsort(header->metadata, header->metadata_count, sizeof *header->metadata, compare_keys);
    return LS_OK;
}

static enum ls_code parse_entries(struct ls_safetensors *header, struct ls_error *error) {
    json_t *root = header->json, *entry;
    const char *name;
    header->tensors = calloc(json_object_size(root) + 1, sizeof *header->tensors);
    if (!header->tensors) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "safetensors: no memory for the header");
    json_object_foreach(root, name, entry) {
        enum ls_code code =
            strcmp(name, "__metadata__") == 0
                ? parse_metadata(entry, header, error)
                : parse_tensor(name, entry, header->data_bytes, &header->tensors[header->tensor_count++], error);
        if (code) return code;
    }
    qsort(header->tensors, header->tensor_count, sizeof *header->tensors, compare_offsets);
    return check_cover(header, error);
}

/* N of the first eight bytes, checked against the file and the limit. */
static enum ls_code header_length(const unsigned char *bytes, size_t count, int64_t file_bytes, size_t *length,
                                  struct ls_error *error) {
    if (count < 8 || file_bytes < 8)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                       "safetensors: the file has %lld bytes, too few for a header. It is truncated: use another copy.",
                       (long long)file_bytes);
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | bytes[i];
    if (n > LS_SAFETENSORS_HEADER_MAX || n > (uint64_t)file_bytes - 8)
        return ls_fail(
            error, LS_CHECKPOINT, LS_SCOPE_CALL,
            "safetensors: the header claims %llu bytes, the file has %lld and the limit is %d. It is truncated or no "
            "safetensors file: use another copy.",
            (unsigned long long)n, (long long)file_bytes, LS_SAFETENSORS_HEADER_MAX);
    *length = (size_t)n;
    return LS_OK;
}

enum ls_code ls_safetensors_parse(const void *bytes, size_t count, int64_t file_bytes, struct ls_safetensors **result,
                                  struct ls_error *error) {
    size_t length = 0;
    enum ls_code code = header_length(bytes, count, file_bytes, &length, error);
    if (code) return code;
    if (count - 8 < length)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                       "safetensors: only %zu of the header's %zu bytes were given", count - 8, length);
    const char *json = (const char *)bytes + 8;
    json_error_t cause = {.text = "it does not start with '{'"};
    json_t *root = length && *json == '{' ? json_loadb(json, length, JSON_REJECT_DUPLICATES, &cause) : NULL;
    if (!root)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                       "safetensors: the header is not valid JSON (%s). The file is damaged: use another copy.",
                       cause.text);
    struct ls_safetensors *header = calloc(1, sizeof *header);
    if (!header) {
        json_decref(root);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "safetensors: no memory for the header");
    }
    header->json = root;
    header->file = -1;
    header->data_offset = 8 + (int64_t)length;
    header->data_bytes = file_bytes - header->data_offset;
    code = parse_entries(header, error);
    if (code) {
        ls_safetensors_close(header);
        return code;
    }
    *result = header;
    return LS_OK;
}

/* Where its storage does not answer nothing is known of the file. */
static enum ls_code refuse_read(const char *name, int cause, struct ls_error *error) {
    return ls_fail(error, LS_CHECKPOINT, ls_file_scope(cause, LS_SCOPE_CALL), "cannot read %s: %s", name,
                   cause == ENODATA ? "the file became shorter" : strerror(cause));
}

static enum ls_code read_header(int file, const char *name, struct ls_safetensors **result, struct ls_error *error) {
    struct stat status;
    unsigned char prefix[8];
    size_t length = 0;
    if (fstat(file, &status) || (status.st_size >= 8 && ls_pread_all(file, prefix, sizeof prefix, 0)))
        return refuse_read(name, errno, error);
    size_t available = status.st_size >= 8 ? 8 : 0;
    enum ls_code code = header_length(prefix, available, status.st_size, &length, error);
    if (code) return code;
    char *bytes = malloc(8 + length);
    if (!bytes)
        return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "no memory for the %zu bytes of the header of %s", length,
                       name);
    if (ls_pread_all(file, bytes, 8 + length, 0))
        code = refuse_read(name, errno, error);
    else
        code = ls_safetensors_parse(bytes, 8 + length, status.st_size, result, error);
    free(bytes);
    return code;
}

enum ls_code ls_safetensors_open(int folder, const char *name, struct ls_safetensors **result, struct ls_error *error) {
    struct ls_error own = {.code = LS_OK};
    int file = ls_file_open_under(folder, name, LS_CHECKPOINT, error ? error : &own);
    if (file < 0) return error ? error->code : own.code;
    enum ls_code code = read_header(file, name, result, error);
    if (code) {
        close(file);
        return code == LS_MEMORY ? code : ls_fail_within(error, "%s", name);
    }
    (*result)->file = file;
    return LS_OK;
}

void ls_safetensors_close(struct ls_safetensors *safetensors) {
    if (!safetensors) return;
    if (safetensors->file >= 0) close(safetensors->file);
    free(safetensors->tensors);
    free(safetensors->metadata);
    json_decref(safetensors->json);
    free(safetensors);
}

const struct ls_tensor_info *ls_safetensors_find(const struct ls_safetensors *safetensors, const char *name) {
    for (size_t i = 0; i < safetensors->tensor_count; i++)
        if (strcmp(safetensors->tensors[i].name, name) == 0) return &safetensors->tensors[i];
    return NULL;
}

const char *ls_safetensors_metadata(const struct ls_safetensors *safetensors, const char *key) {
    if (safetensors->metadata_count == 0) return NULL;
    const struct ls_safetensors_pair wanted = {.key = key};
    const struct ls_safetensors_pair *pair = bsearch(&wanted, safetensors->metadata, safetensors->metadata_count,
                                                     sizeof *safetensors->metadata, compare_keys);
    return pair ? pair->value : NULL;
}

enum ls_code ls_safetensors_read(const struct ls_safetensors *safetensors, const struct ls_tensor_info *tensor,
                                 int64_t first, int64_t count, void *elements, struct ls_error *error) {
    int64_t size = tensor_types[tensor->type].bytes, total = ls_tensor_elements(tensor);
    if (first < 0 || count < 0 || first > total || count > total - first)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                       "tensor '%.120s' has %lld elements; %lld from element %lld on were asked for", tensor->name,
                       (long long)total, (long long)count, (long long)first);
    if (ls_pread_all(safetensors->file, elements, (size_t)(count * size),
                     safetensors->data_offset + tensor->begin + first * size))
        return ls_fail(error, LS_CHECKPOINT, ls_file_scope(errno, LS_SCOPE_CALL), "cannot read tensor '%.120s': %s",
                       tensor->name, errno == ENODATA ? "the file became shorter" : strerror(errno));
    return LS_OK;
}

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* IEEE 754 binary16: exponent 5 bits, fraction 10 bits; a subnormal is its fraction times 2^-24. */
static float from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
    if (exponent == 31) return from_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float magnitude = (float)fraction * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

static void convert_to_fp32(enum ls_tensor_type type, const unsigned char *from, float *to, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (type == LS_TENSOR_F64) {
            double value;
            memcpy(&value, from + 8 * i, sizeof value);
            to[i] = (float)value;
        } else {
            uint16_t bits;
            memcpy(&bits, from + 2 * i, sizeof bits);
            to[i] = type == LS_TENSOR_BF16 ? from_bits((uint32_t)bits << 16) : from_half(bits);
        }
    }
}

enum ls_code ls_safetensors_read_fp32(const struct ls_safetensors *safetensors, const struct ls_tensor_info *tensor,
                                      int64_t first, int64_t count, float *elements, struct ls_error *error) {
    enum { PIECE = 4096 };
    unsigned char piece[PIECE * 8];
    if (tensor->type == LS_TENSOR_F32) return ls_safetensors_read(safetensors, tensor, first, count, elements, error);
    if (tensor->type != LS_TENSOR_F64 && tensor->type != LS_TENSOR_F16 && tensor->type != LS_TENSOR_BF16)
        return ls_fail(
            error, LS_CHECKPOINT, LS_SCOPE_CALL,
            "tensor '%.120s' is %s; weights are read from F32, BF16, F16 and F64. Convert the file to one of these.",
            tensor->name, ls_tensor_type_name(tensor->type));
    for (int64_t done = 0; done < count;) {
        int64_t now = count - done < PIECE ? count - done : PIECE;
        enum ls_code code = ls_safetensors_read(safetensors, tensor, first + done, now, piece, error);
        if (code) return code;
        convert_to_fp32(tensor->type, piece, elements + done, now);
        done += now;
    }
    return LS_OK;
}

/* json_object_set_new() that remembers a failure: all of a document's parts are made, then asked once. */
static void set_member(json_t *object, const char *key, json_t *value, bool *failed) {
    if (json_object_set_new(object, key, value)) *failed = true;
}

static json_t *describe_tensor(struct ls_tensor_info *tensor, int64_t begin, bool *failed) {
    json_t *entry = json_object(), *shape = json_array();
    tensor->begin = begin;
    tensor->end = begin + ls_tensor_elements(tensor) * tensor_types[tensor->type].bytes;
    for (int i = 0; i < tensor->dimensions; i++)
        if (json_array_append_new(shape, json_integer(tensor->shape[i]))) *failed = true;
    set_member(entry, "dtype", json_string(ls_tensor_type_name(tensor->type)), failed);
    set_member(entry, "shape", shape, failed);
    set_member(entry, "data_offsets", json_pack("[I,I]", (json_int_t)tensor->begin, (json_int_t)tensor->end), failed);
    return entry;
}

static char *dump_header(struct ls_tensor_info *tensors, size_t tensor_count,
                         const struct ls_safetensors_pair *metadata, size_t metadata_count) {
    bool failed = false;
    json_t *root = json_object(), *pairs = json_object();
    set_member(pairs, "format", json_string("pt"), &failed);
    for (size_t i = 0; i < metadata_count; i++)
        set_member(pairs, metadata[i].key, json_string(metadata[i].value), &failed);
    set_member(root, "__metadata__", pairs, &failed);
    int64_t next = 0;
    for (size_t i = 0; i < tensor_count; i++) {
        set_member(root, tensors[i].name, describe_tensor(&tensors[i], next, &failed), &failed);
        next = tensors[i].end;
    }
    char *text = failed ? NULL : json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return text;
}

enum ls_code ls_safetensors_header(struct ls_tensor_info *tensors, size_t tensor_count,
                                   const struct ls_safetensors_pair *metadata, size_t metadata_count, char **bytes,
                                   size_t *count, struct ls_error *error) {
    char *text = dump_header(tensors, tensor_count, metadata, metadata_count);
    size_t length = text ? strlen(text) : 0;
    size_t total = (8 + length + LS_SAFETENSORS_ALIGNMENT - 1) / LS_SAFETENSORS_ALIGNMENT * LS_SAFETENSORS_ALIGNMENT;
    char *made = text ? malloc(total) : NULL;
    if (!made || total - 8 > LS_SAFETENSORS_HEADER_MAX) {
        free(text);
        free(made);
        return made ? ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                              "safetensors: a header of %zu bytes for %zu tensors is beyond the format's limit", total,
                              tensor_count)
                    : ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "safetensors: no memory for a header of %zu tensors",
                              tensor_count);
    }
    for (int i = 0; i < 8; i++) made[i] = (char)((uint64_t)(total - 8) >> 8 * i);
    memcpy(made + 8, text, length);
    memset(made + 8 + length, ' ', total - 8 - length);
    free(text);
    *bytes = made;
    *count = total;
    return LS_OK;
}

static bool names_a_weight_file(const char *name) {
    static const char ending[] = ".safetensors";
    size_t length = name ? strlen(name) : 0;
    return length >= sizeof ending && ls_file_name_is_safe(name) &&
           strcmp(name + length - (sizeof ending - 1), ending) == 0;
}

static enum ls_code fill_weight_map(struct ls_weight_map *map, struct ls_error *error) {
    json_t *entries = json_object_get(map->json, "weight_map"), *value;
    json_t *total = json_object_get(json_object_get(map->json, "metadata"), "total_size");
    const char *key;
    if (!json_is_object(entries))
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                       "safetensors index: there is no object 'weight_map'. The file is damaged: use another copy.");
    map->total_bytes = json_is_integer(total) && json_integer_value(total) >= 0 ? json_integer_value(total) : -1;
    map->entries = calloc(json_object_size(entries) + 1, sizeof *map->entries);
    if (!map->entries) return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "safetensors index: no memory");
    json_object_foreach(entries, key, value) {
        const char *file = json_string_value(value);
        if (!names_a_weight_file(file))
            return ls_fail(
                error, LS_CHECKPOINT, LS_SCOPE_CALL,
                "safetensors index: tensor '%.100s' is said to be in '%.100s', which is not a plain name ending in "
                ".safetensors. The index is damaged or hostile: use another copy.",
                key, file ? file : "(not a string)");
        map->entries[map->entry_count++] = (struct ls_safetensors_pair){.key = key, .value = file};
    }
    qsort(map->entries, map->entry_count, sizeof *map->entries, compare_keys);
    return LS_OK;
}

enum ls_code ls_weight_map_parse(const char *json, size_t count, struct ls_weight_map **result,
                                 struct ls_error *error) {
    json_error_t cause;
    json_t *root = json_loadb(json, count, JSON_REJECT_DUPLICATES, &cause);
    if (!root)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_CALL,
                       "safetensors index: not valid JSON (line %d: %s). The file is damaged: use another copy.",
                       cause.line, cause.text);
    struct ls_weight_map *map = calloc(1, sizeof *map);
    if (!map) {
        json_decref(root);
        return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "safetensors index: no memory");
    }
    map->json = root;
    enum ls_code code = fill_weight_map(map, error);
    if (code) {
        ls_weight_map_destroy(map);
        return code;
    }
    *result = map;
    return LS_OK;
}

void ls_weight_map_destroy(struct ls_weight_map *map) {
    if (!map) return;
    free(map->entries);
    json_decref(map->json);
    free(map);
}

enum ls_code ls_weight_map_write(const struct ls_safetensors_pair *entries, size_t entry_count, int64_t total_bytes,
                                 char **json, struct ls_error *error) {
    bool failed = false;
    json_t *root = json_object(), *map = json_object();
    for (size_t i = 0; i < entry_count; i++) set_member(map, entries[i].key, json_string(entries[i].value), &failed);
    set_member(root, "metadata", json_pack("{s:I}", "total_size", (json_int_t)total_bytes), &failed);
    set_member(root, "weight_map", map, &failed);
    char *text = failed ? NULL : json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    if (!text)
        return ls_fail(error, LS_MEMORY, LS_SCOPE_CALL, "safetensors index: no memory for %zu tensors", entry_count);
    *json = text;
    return LS_OK;
}
