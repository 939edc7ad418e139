/* Key files: text format, permissions, and the set of a run. */
#define _GNU_SOURCE
#include "common/keys.h"

#include "common/files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

static const char *const role_names[] = {"server", "worker", "operator"};

const char *ls_key_role_name(enum ls_key_role role) {
    return role_names[role];
}

static bool key_is_valid(const char *text, size_t length) {
    uint8_t raw[32];
    char copy[LS_KEY_CHARACTERS + 1];
    if (length != LS_KEY_CHARACTERS || memchr(text, 0, length)) return false;
    memcpy(copy, text, length);
    copy[length] = 0;
    for (size_t i = 0; i < length; i++)
        if (copy[i] <= ' ' || copy[i] > '~') return false;
    return zmq_z85_decode(raw, copy) != NULL;
}

/* One line, without its end. Returns what is wrong with it, or NULL; `seen` has a bit for each field. */
static const char *parse_line(const char *line, size_t length, struct ls_key *key, unsigned *seen) {
    static const char *const fields[] = {"role: ", "server: ", "public: ", "secret: "};
    char *const values[] = {NULL, key->server, key->public_key, key->secret_key};
    for (unsigned field = 0; field < 4; field++) {
        size_t prefix = strlen(fields[field]);
        if (length < prefix || memcmp(line, fields[field], prefix) != 0) continue;
        if (*seen & 1u << field) return "a field is there twice";
        *seen |= 1u << field;
        line += prefix;
        length -= prefix;
        if (field > 0) {
            if (!key_is_valid(line, length)) return "a key is not 40 characters of Z85";
            memcpy(values[field], line, length);
            values[field][length] = 0;
            return NULL;
        }
        for (int role = 0; role < 3; role++)
            if (strlen(role_names[role]) == length && memcmp(role_names[role], line, length) == 0) {
                key->role = (enum ls_key_role)role;
                return NULL;
            }
        return "the role is none of server, worker, operator";
    }
    return "a line is neither role, server, public nor secret";
}

enum ls_code ls_key_parse(const char *text, size_t count, const char *name, struct ls_key *key,
                          struct ls_error *error) {
    static const char magic[] = "lockstep-key 1";
    struct ls_key parsed = {0};
    unsigned seen = 0;
    bool magic_seen = false;
    const char *wrong = count > LS_KEY_TEXT_MAX ? "it is too long" : NULL;
    for (size_t at = 0; at < count && !wrong;) {
        const char *line = text + at, *end = memchr(line, '\n', count - at);
        size_t length = end ? (size_t)(end - line) : count - at;
        at += length + 1;
        if (length > 0 && line[length - 1] == '\r') length--;
        if (length == 0 || line[0] == '#') continue;
        if (magic_seen) {
            wrong = parse_line(line, length, &parsed, &seen);
        } else if (length == strlen(magic) && memcmp(line, magic, length) == 0) {
            magic_seen = true;
        } else {
            wrong = "it does not start with 'lockstep-key 1'";
        }
    }
    if (!wrong && (!magic_seen || seen != 15)) wrong = "it is not complete";
    if (wrong)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                       "%s is not a key file: %s. Use RUN/keys/worker.key or RUN/keys/operator.key of the run to join.",
                       name, wrong);
    *key = parsed;
    return LS_OK;
}

void ls_key_format(const struct ls_key *key, char text[LS_KEY_TEXT_MAX]) {
    snprintf(text, LS_KEY_TEXT_MAX, "lockstep-key 1\nrole: %s\nserver: %s\npublic: %s\nsecret: %s\n",
             ls_key_role_name(key->role), key->server, key->public_key, key->secret_key);
}

enum ls_code ls_key_read(const char *path, struct ls_key *key, struct ls_error *error) {
    int file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (file < 0)
        return ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "cannot open the key file %s: %s. %s.", path, strerror(errno),
                       errno == EACCES ? "It is for the user whose run it is: be that user"
                                       : "Name RUN/keys/worker.key with --key");
    struct stat status;
    enum ls_code code = LS_OK;
    if (fstat(file, &status) || !S_ISREG(status.st_mode)) {
        code = ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "the key file %s is not a regular file", path);
    } else if (status.st_mode & 0177) {
        code = ls_fail(
            error, LS_USAGE, LS_SCOPE_CALL,
            "the key file %s has mode %04o: others may use it. Run 'chmod 600 %s', or make new keys if it leaked.",
            path, (unsigned)status.st_mode & 07777, path);
    } else if (status.st_uid != geteuid()) {
        code = ls_fail(error, LS_USAGE, LS_SCOPE_CALL,
                       "the key file %s belongs to uid %u, this process is uid %u. Copy it.", path,
                       (unsigned)status.st_uid, (unsigned)geteuid());
    } else if (status.st_size > LS_KEY_TEXT_MAX) {
        code = ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "%s is not a key file: it has %lld bytes", path,
                       (long long)status.st_size);
    }
    char text[LS_KEY_TEXT_MAX];
    if (code == LS_OK && ls_pread_all(file, text, (size_t)status.st_size, 0))
        code = ls_fail(error, LS_USAGE, LS_SCOPE_CALL, "cannot read the key file %s: %s", path, strerror(errno));
    close(file);
    if (code == LS_OK) code = ls_key_parse(text, (size_t)status.st_size, path, key, error);
    explicit_bzero(text, sizeof text);
    return code;
}

enum ls_code ls_keys_generate(struct ls_keys *keys, struct ls_error *error) {
    struct ls_key *all[] = {&keys->server, &keys->worker, &keys->operator_};
    for (int role = 0; role < 3; role++) {
        all[role]->role = (enum ls_key_role)role;
        if (zmq_curve_keypair(all[role]->public_key, all[role]->secret_key))
            return ls_fail(
                error, LS_ERROR, LS_SCOPE_JOB,
                "this libzmq makes no CURVE keys (%s). Install one built with libsodium; 'lockstep doctor' checks it.",
                zmq_strerror(errno));
        memcpy(all[role]->server, keys->server.public_key, sizeof all[role]->server);
    }
    return LS_OK;
}

static enum ls_code write_key(int folder, const char *folder_path, const struct ls_key *key, struct ls_error *error) {
    char name[32], temporary[40], text[LS_KEY_TEXT_MAX];
    snprintf(name, sizeof name, "%s.key", ls_key_role_name(key->role));
    snprintf(temporary, sizeof temporary, "%s.new", name);
    unlinkat(folder, temporary, 0);
    int file = openat(folder, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    ls_key_format(key, text);
    bool failed = file < 0 || ls_write_all(file, text, strlen(text)) || fsync(file);
    int cause = errno;
    explicit_bzero(text, sizeof text);
    if (file >= 0) close(file);
    if (!failed && renameat(folder, temporary, folder, name)) {
        failed = true;
        cause = errno;
    }
    if (failed)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "cannot write the key file %s/%s: %s", folder_path, name,
                       strerror(cause));
    return LS_OK;
}

static enum ls_code read_role(const char *folder, enum ls_key_role role, struct ls_key *key, struct ls_error *error) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s.key", folder, ls_key_role_name(role));
    enum ls_code code = ls_key_read(path, key, error);
    if (code == LS_OK && key->role != role)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "the key file %s holds a key of the role %s. Put the right file back.", path,
                       ls_key_role_name(key->role));
    return code;
}

enum ls_code ls_keys_open(const char *run_dir, struct ls_keys *keys, struct ls_error *error) {
    char folder[PATH_MAX], server[PATH_MAX + 16];
    if (snprintf(folder, sizeof folder, "%s/keys", run_dir) >= (int)sizeof folder - 16)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "path too long: %.200s...", run_dir);
    snprintf(server, sizeof server, "%s/server.key", folder);
    if (mkdir(folder, 0700) && errno != EEXIST)
        return ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "cannot make the folder %s: %s", folder, strerror(errno));
    int handle = open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (handle < 0 || fchmod(handle, 0700)) {
        enum ls_code code =
            ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "cannot use the folder %s: %s", folder, strerror(errno));
        if (handle >= 0) close(handle);
        return code;
    }
    enum ls_code code;
    /* server.key is written last, so a set that has it is complete. */
    if (faccessat(handle, "server.key", F_OK, 0) == 0) {
        code = read_role(folder, LS_KEY_SERVER, &keys->server, error);
        if (code == LS_OK) code = read_role(folder, LS_KEY_WORKER, &keys->worker, error);
        if (code == LS_OK) code = read_role(folder, LS_KEY_OPERATOR, &keys->operator_, error);
        if (code == LS_OK && (strcmp(keys->worker.server, keys->server.public_key) != 0 ||
                              strcmp(keys->operator_.server, keys->server.public_key) != 0))
            code = ls_fail(
                error, LS_USAGE, LS_SCOPE_JOB,
                "the key files in %s are of different runs. Remove the folder while nothing runs; new keys are made.",
                folder);
    } else {
        code = ls_keys_generate(keys, error);
        if (code == LS_OK) code = write_key(handle, folder, &keys->worker, error);
        if (code == LS_OK) code = write_key(handle, folder, &keys->operator_, error);
        if (code == LS_OK && fsync(handle))
            code =
                ls_fail(error, LS_CHECKPOINT, LS_SCOPE_JOB, "cannot fsync the folder %s: %s", folder, strerror(errno));
        if (code == LS_OK) code = write_key(handle, folder, &keys->server, error);
        if (code == LS_OK) code = ls_folder_sync(folder, LS_CHECKPOINT, error);
    }
    close(handle);
    return code;
}
