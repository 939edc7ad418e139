/* CURVE keys of a run: who may talk to its coordinator, and as what. A key file is a few lines of text:
 *
 *     lockstep-key 1
 *     role: worker                                      server | worker | operator
 *     server: 40 characters of Z85                      the coordinator's public key
 *     public: 40 characters of Z85                      the holder's own pair
 *     secret: 40 characters of Z85
 *
 * Lines that start with '#' are comments. A file that others may read or write (mode beyond 0600) or that belongs to
 * somebody else is refused: a leaked key lets its finder train into the run. */
#ifndef LS_COMMON_KEYS_H
#define LS_COMMON_KEYS_H

#include "common/status.h"

#include <stddef.h>

enum ls_key_role { LS_KEY_SERVER, LS_KEY_WORKER, LS_KEY_OPERATOR };
enum { LS_KEY_CHARACTERS = 40, LS_KEY_TEXT_MAX = 1024 };

/* One key file. For the role `server`, `server` equals `public_key`. */
struct ls_key {
    enum ls_key_role role;
    char server[LS_KEY_CHARACTERS + 1];
    char public_key[LS_KEY_CHARACTERS + 1];
    char secret_key[LS_KEY_CHARACTERS + 1];
};

/* The three of a run. */
struct ls_keys {
    struct ls_key server, worker, operator_;
};

/* "server", "worker", "operator"; static storage. */
const char *ls_key_role_name(enum ls_key_role role);

/* Parses the text of a key file; `name` stands for it in errors (LS_USAGE), which never quote key text. */
enum ls_code ls_key_parse(const char *text, size_t count, const char *name, struct ls_key *key, struct ls_error *error);
/* Writes the text of a key file, NUL-terminated. */
void ls_key_format(const struct ls_key *key, char text[LS_KEY_TEXT_MAX]);
/* Reads a key file; refuses one that is not a regular file of ours with mode 0600 or less (LS_USAGE, with the command
 * that mends it). */
enum ls_code ls_key_read(const char *path, struct ls_key *key, struct ls_error *error);

/* Reads RUN/keys/{server,worker,operator}.key, or makes them when the folder has none: made once, they serve every
 * restart of the run's coordinator. The folder gets mode 0700, the files 0600, all fsynced. Errors: LS_USAGE,
 * LS_CHECKPOINT (cannot write). */
enum ls_code ls_keys_open(const char *run_dir, struct ls_keys *keys, struct ls_error *error);
/* A new random set, in memory only. */
enum ls_code ls_keys_generate(struct ls_keys *keys, struct ls_error *error);

#endif
