/* Safetensors files: named tensors in one file, a JSON header in front. Layout (checked in the format's README):
 *
 *     | u64 N, little-endian | N bytes of JSON, padded by spaces | bytes of the tensors, without holes |
 *
 * The parser is pure and believes nothing: every offset it hands out lies inside the file. Errors are
 * LS_CHECKPOINT, and LS_MEMORY where this process has no memory or descriptor left. */
#ifndef LS_COMMON_SAFETENSORS_H
#define LS_COMMON_SAFETENSORS_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    LS_TENSOR_DIMENSIONS_MAX = 8,
    LS_TENSOR_NAME_MAX = 511,                      /* bytes, without the NUL */
    LS_SAFETENSORS_HEADER_MAX = 100 * 1000 * 1000, /* the format's own limit, bytes */
    LS_SAFETENSORS_ALIGNMENT = 64                  /* our writer starts the tensors at a multiple of this */
};

/* The element types of the format; one row each: name in the file, bytes of an element. */
#define LS_TENSOR_TYPES(X)                                                                                             \
    X(F64, 8)                                                                                                          \
    X(F32, 4)                                                                                                          \
    X(F16, 2)                                                                                                          \
    X(BF16, 2)                                                                                                         \
    X(F8_E4M3, 1)                                                                                                      \
    X(F8_E5M2, 1)                                                                                                      \
    X(I64, 8)                                                                                                          \
    X(I32, 4)                                                                                                          \
    X(I16, 2)                                                                                                          \
    X(I8, 1)                                                                                                           \
    X(U64, 8)                                                                                                          \
    X(U32, 4)                                                                                                          \
    X(U16, 2)                                                                                                          \
    X(U8, 1)                                                                                                           \
    X(BOOL, 1)

enum ls_tensor_type {
#define X(name, bytes) LS_TENSOR_##name,
    LS_TENSOR_TYPES(X)
#undef X
};

/* "F32", ...; static storage. */
const char *ls_tensor_type_name(enum ls_tensor_type type);

/* One tensor: row-major, at bytes [begin, end) of the tensors' part of the file. */
struct ls_tensor_info {
    const char *name;
    enum ls_tensor_type type;
    int dimensions;                          /* 0: a scalar */
    int64_t shape[LS_TENSOR_DIMENSIONS_MAX]; /* every entry >= 0 */
    int64_t begin, end;
};

/* One pair of "__metadata__". */
struct ls_safetensors_pair {
    const char *key, *value;
};

/* A parsed header. Owns every string in it. */
struct ls_safetensors {
    struct ls_tensor_info *tensors; /* in the order of their bytes */
    size_t tensor_count;
    struct ls_safetensors_pair *metadata; /* in the order of their keys */
    size_t metadata_count;
    int64_t data_offset; /* of the tensors' part in the file: 8 + N */
    int64_t data_bytes;
    int file;   /* descriptor, -1 when only a header was parsed */
    void *json; /* holds the strings */
};

/* Parses the first `count` bytes of a file of `file_bytes` bytes; they must hold the whole header. Refused: a header
 * longer than the file or the limit, anything but one JSON object, a name twice, an unknown type, more than
 * LS_TENSOR_DIMENSIONS_MAX dimensions, a shape that does not fit its bytes, and tensors that leave the file, overlap or
 * leave holes. On success ls_safetensors_close() frees *result. */
enum ls_code ls_safetensors_parse(const void *bytes, size_t count, int64_t file_bytes, struct ls_safetensors **result,
                                  struct ls_error *error);

/* Opens the file `name` (one safe component, no link) of the open folder `folder` and parses its header. */
enum ls_code ls_safetensors_open(int folder, const char *name, struct ls_safetensors **result, struct ls_error *error);
void ls_safetensors_close(struct ls_safetensors *safetensors);

/* The tensor of that name, or NULL. The value of that metadata key, or NULL. */
const struct ls_tensor_info *ls_safetensors_find(const struct ls_safetensors *safetensors, const char *name);
const char *ls_safetensors_metadata(const struct ls_safetensors *safetensors, const char *key);

/* Elements of a tensor: the product of its shape, 1 for a scalar. */
int64_t ls_tensor_elements(const struct ls_tensor_info *tensor);

/* Reads elements [first, first + count) of a tensor as they are in the file. The range must lie in the tensor. */
enum ls_code ls_safetensors_read(const struct ls_safetensors *safetensors, const struct ls_tensor_info *tensor,
                                 int64_t first, int64_t count, void *elements, struct ls_error *error);
/* The same, converted to fp32 from F32, BF16, F16 or F64 (rounded to nearest); other types are refused. */
enum ls_code ls_safetensors_read_fp32(const struct ls_safetensors *safetensors, const struct ls_tensor_info *tensor,
                                      int64_t first, int64_t count, float *elements, struct ls_error *error);

/* Makes the header (the u64 included) of a file that holds `tensors` one after the other: fills their begin and end,
 * adds {"format": "pt"} to the metadata, and pads with spaces to LS_SAFETENSORS_ALIGNMENT. *bytes is malloc'ed; the
 * caller frees. Names are the caller's: unique, valid UTF-8. Errors: LS_MEMORY; LS_CHECKPOINT when the header would be
 * too long. */
enum ls_code ls_safetensors_header(struct ls_tensor_info *tensors, size_t tensor_count,
                                   const struct ls_safetensors_pair *metadata, size_t metadata_count, char **bytes,
                                   size_t *count, struct ls_error *error);

/* Which file of a sharded model holds a tensor. */
struct ls_weight_map {
    struct ls_safetensors_pair *entries; /* tensor name, file name; sorted by tensor name */
    size_t entry_count;
    int64_t total_bytes; /* metadata.total_size, -1 when absent */
    void *json;          /* holds the strings */
};

/* Parses model.safetensors.index.json. File names must be one safe component ending in ".safetensors".
 * ls_weight_map_destroy() frees *map. */
enum ls_code ls_weight_map_parse(const char *json, size_t count, struct ls_weight_map **map, struct ls_error *error);
void ls_weight_map_destroy(struct ls_weight_map *map);
/* Makes model.safetensors.index.json from entries. *json is malloc'ed, NUL-terminated; the caller frees. */
enum ls_code ls_weight_map_write(const struct ls_safetensors_pair *entries, size_t entry_count, int64_t total_bytes,
                                 char **json, struct ls_error *error);

#endif
