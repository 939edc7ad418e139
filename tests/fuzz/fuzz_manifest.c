/* Any bytes as manifest.json of a folder with two files, and as trainer.json: refused, or names stay in the folder and
 * what was understood can be written and read again. covers: common/manifest.c common/trainer_state.c */
#include "common/manifest.h"

#include "common/files.h"
#include "common/trainer_state.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool fact) {
    if (!fact) abort();
}

static char folder[] = "/tmp/lockstep-fuzz-XXXXXX";

static void put(const char *name, const void *bytes, size_t count) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    require(file >= 0 && ls_write_all(file, bytes, count) == 0);
    close(file);
}

static void remove_folder(void) {
    const char *names[] = {"manifest.json", "model.safetensors", "state/rank-00000.safetensors", "link"};
    char path[256];
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/state", folder);
    rmdir(path);
    rmdir(folder);
}

/* A folder of this process, made once and removed at its end: model.safetensors and state/rank-00000.safetensors hold
 * "weights", link points to the first. */
static const char *work_folder(void) {
    static bool made;
    char path[256];
    if (made) return folder;
    require(mkdtemp(folder) != NULL && atexit(remove_folder) == 0);
    snprintf(path, sizeof path, "%s/state", folder);
    require(mkdir(path, 0700) == 0);
    put("model.safetensors", "weights", 7);
    put("state/rank-00000.safetensors", "weights", 7);
    snprintf(path, sizeof path, "%s/link", folder);
    require(symlink("model.safetensors", path) == 0);
    made = true;
    return folder;
}

static void try_manifest(const uint8_t *data, size_t size) {
    struct ls_error error = {0};
    struct ls_manifest *manifest, *again;
    char *json, hash[33];
    work_folder();
    put("manifest.json", data, size);
    enum ls_code verified = ls_manifest_verify(work_folder(), true, NULL, hash, &error);
    require(verified == LS_OK || (verified == LS_CHECKPOINT && error.code == verified && error.text[0]));
    enum ls_code code = ls_manifest_parse((const char *)data, size, &manifest, &error);
    require(code == LS_OK || (verified == LS_CHECKPOINT && code == LS_CHECKPOINT));
    if (code) return;
    for (size_t i = 0; i < manifest->file_count; i++) {
        const char *name = manifest->files[i].name, *slash = strrchr(name, '/');
        require(ls_file_name_is_safe(slash ? slash + 1 : name));
        require(!slash || (size_t)(slash - name) == 5);
        require(ls_manifest_find(manifest, name) == &manifest->files[i]);
    }
    require(ls_manifest_write(manifest, &json, &error) == LS_OK);
    require(ls_manifest_parse(json, strlen(json), &again, &error) == LS_OK);
    require(again->step == manifest->step && again->attempt == manifest->attempt &&
            again->file_count == manifest->file_count);
    ls_manifest_destroy(again);
    ls_manifest_destroy(manifest);
    free(json);
}

static void try_trainer_state(const uint8_t *data, size_t size) {
    struct ls_error error = {0};
    struct ls_trainer_state state, again;
    char *json;
    enum ls_code code = ls_trainer_state_parse((const char *)data, size, &state, &error);
    require(code == LS_OK || (code == LS_CHECKPOINT && error.code == code && error.text[0]));
    if (code) return;
    require(ls_trainer_state_write(&state, &json, &error) == LS_OK);
    require(ls_trainer_state_parse(json, strlen(json), &again, &error) == LS_OK);
    require(!memcmp(&state, &again, sizeof state));
    free(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    try_manifest(data, size);
    try_trainer_state(data, size);
    return 0;
}
