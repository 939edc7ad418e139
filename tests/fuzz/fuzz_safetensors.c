/* Any bytes as a safetensors file and as an index: refused, or every tensor lies in the file, can be read, and what was
 * understood can be written and read again. covers: common/safetensors.c */
#include "common/safetensors.h"

#include "common/files.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { PIECE = 5000 };

static void require(bool fact) {
    if (!fact) abort();
}

/* A folder of this process, made once and removed at its end. */
static char folder_path[] = "/tmp/lockstep-fuzz-XXXXXX";
static int folder = -1;

static void remove_folder(void) {
    unlinkat(folder, "file", 0);
    rmdir(folder_path);
}

static int work_folder(void) {
    if (folder >= 0) return folder;
    require(mkdtemp(folder_path) != NULL);
    folder = open(folder_path, O_RDONLY | O_DIRECTORY);
    require(folder >= 0 && atexit(remove_folder) == 0);
    return folder;
}

static void read_tensors(const struct ls_safetensors *file) {
    static float values[PIECE];
    static char bytes[PIECE * 8];
    struct ls_error error;
    int64_t covered = 0;
    for (size_t i = 0; i < file->tensor_count; i++) {
        const struct ls_tensor_info *tensor = &file->tensors[i];
        int64_t elements = ls_tensor_elements(tensor), count = elements < PIECE ? elements : PIECE;
        require(tensor->begin == covered && tensor->end >= tensor->begin && tensor->end <= file->data_bytes);
        covered = tensor->end;
        require(ls_safetensors_find(file, tensor->name) != NULL);
        require(ls_safetensors_read(file, tensor, elements - count, count, bytes, &error) == LS_OK);
        require(ls_safetensors_read(file, tensor, elements, 1, bytes, &error) == LS_CHECKPOINT);
        ls_safetensors_read_fp32(file, tensor, elements - count, count, values, &error);
    }
    require(covered == file->data_bytes);
}

/* The header made from what was parsed says the same. */
static void write_again(const struct ls_safetensors *file) {
    struct ls_error error;
    struct ls_safetensors *again;
    char *bytes;
    size_t count;
    require(ls_safetensors_header(file->tensors, file->tensor_count, file->metadata, file->metadata_count, &bytes,
                                  &count, &error) == LS_OK);
    require(ls_safetensors_parse(bytes, count, (int64_t)count + file->data_bytes, &again, &error) == LS_OK);
    require(again->tensor_count == file->tensor_count && again->data_bytes == file->data_bytes);
    for (size_t i = 0; i < file->metadata_count; i++)
        require(!strcmp(ls_safetensors_metadata(again, file->metadata[i].key), file->metadata[i].value));
    ls_safetensors_close(again);
    free(bytes);
}

static void try_file(const uint8_t *data, size_t size) {
    struct ls_error error = {0};
    struct ls_safetensors *file;
    int written = openat(work_folder(), "file", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    require(written >= 0 && ls_write_all(written, data, size) == 0);
    close(written);
    enum ls_code code = ls_safetensors_open(folder, "file", &file, &error);
    require(code == LS_OK || (code == LS_CHECKPOINT && error.code == code && error.text[0]));
    if (code) return;
    read_tensors(file);
    write_again(file);
    ls_safetensors_close(file);
}

static void try_index(const uint8_t *data, size_t size) {
    struct ls_error error = {0};
    struct ls_weight_map *map, *again;
    char *json;
    enum ls_code code = ls_weight_map_parse((const char *)data, size, &map, &error);
    require(code == LS_OK || (code == LS_CHECKPOINT && error.code == code && error.text[0]));
    if (code) return;
    for (size_t i = 0; i < map->entry_count; i++) {
        require(ls_file_name_is_safe(map->entries[i].value));
        require(i == 0 || strcmp(map->entries[i - 1].key, map->entries[i].key) < 0);
    }
    require(ls_weight_map_write(map->entries, map->entry_count, map->total_bytes, &json, &error) == LS_OK);
    require(ls_weight_map_parse(json, strlen(json), &again, &error) == LS_OK);
    require(again->entry_count == map->entry_count && again->total_bytes == map->total_bytes);
    ls_weight_map_destroy(again);
    ls_weight_map_destroy(map);
    free(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    try_file(data, size);
    try_index(data, size);
    return 0;
}
