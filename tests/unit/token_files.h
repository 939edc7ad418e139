/* Token files for tests: made in a folder of their own under /tmp. */
#ifndef LS_TESTS_UNIT_TOKEN_FILES_H
#define LS_TESTS_UNIT_TOKEN_FILES_H

#include "common/config.h"

#include <fcntl.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char test_folder[64];

static inline int make_test_folder(void **state) {
    (void)state;
    strcpy(test_folder, "/tmp/lockstep-data.XXXXXX");
    return mkdtemp(test_folder) ? 0 : -1;
}

static inline int remove_test_entry(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)status, (void)kind, (void)place;
    return remove(path);
}

static inline int remove_test_folder(void **state) {
    (void)state;
    return nftw(test_folder, remove_test_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* "FOLDER/NAME", valid until the eighth call from now. */
static inline const char *in_test_folder(const char *name) {
    static char paths[8][512];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s%s%s", test_folder, *name ? "/" : "", name);
    return path;
}

static inline void write_test_file(const char *name, const void *bytes, size_t count) {
    FILE *file = fopen(in_test_folder(name), "wb");
    if (!file || fwrite(bytes, 1, count, file) != count || fclose(file)) abort();
}

/* A file with llm.c's header of `magic`, `version` and `stated` tokens, then tokens[count] of `token_bytes` each. */
static inline void write_token_file(const char *name, int32_t magic, int32_t version, int32_t stated,
                                    const uint32_t *tokens, int64_t count, size_t token_bytes) {
    const size_t bytes = 1024 + (size_t)count * token_bytes;
    unsigned char *content = calloc(1, bytes);
    if (!content) abort();
    const int32_t header[3] = {magic, version, stated};
    memcpy(content, header, sizeof header);
    for (int64_t i = 0; i < count; i++) memcpy(content + 1024 + (size_t)i * token_bytes, &tokens[i], token_bytes);
    write_test_file(name, content, bytes);
    free(content);
}

/* A good uint16 shard. */
static inline void write_gpt2_shard(const char *name, const uint32_t *tokens, int64_t count) {
    write_token_file(name, 20240520, 1, (int32_t)count, tokens, count, 2);
}

/* The source with path `path` as it is, nothing else said. */
static inline struct ls_config_source test_source(const char *path) {
    struct ls_config_source source = {.document_token_id = -1};
    snprintf(source.path, sizeof source.path, "%s", path);
    return source;
}

#endif
