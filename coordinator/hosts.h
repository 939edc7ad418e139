/* Hosts on which ranks may run, in the order in which they are filled, with the slots of each: from a hostfile, or from
 * Slurm's environment (coordinator/slurm.h). */
#ifndef LS_COORDINATOR_HOSTS_H
#define LS_COORDINATOR_HOSTS_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LS_HOST_NAME_SIZE = 256, LS_HOSTS_MAX = 16384, LS_HOST_SLOTS_MAX = 4096 };

struct ls_host {
    char name[LS_HOST_NAME_SIZE]; /* as the launcher is told it */
    int64_t slots;                /* 0: not said */
    int line;                     /* of the hostfile, 0: none */
};

/* All zero: no hosts. */
struct ls_hosts {
    struct ls_host *list; /* [count] */
    int count, capacity;
};

/* Reads a hostfile: a line a host, "NAME" or "NAME slots=N"; '#' begins a comment, empty lines are passed over.
 * LS_USAGE names file and line of one that is not understood, of a host that is named twice, and a file without any.
 * The caller releases in either case. */
enum ls_code ls_hosts_read(const char *path, struct ls_hosts *hosts, struct ls_error *error);
/* The same from text[bytes]; `label` stands for the file. */
enum ls_code ls_hosts_parse(const char *text, size_t bytes, const char *label, struct ls_hosts *hosts,
                            struct ls_error *error);
/* Appends a host with `length` bytes of name. LS_USAGE: no name of a host, or too many; LS_MEMORY. */
enum ls_code ls_hosts_add(struct ls_hosts *hosts, const char *name, size_t length, int64_t slots,
                          struct ls_error *error);
void ls_hosts_release(struct ls_hosts *hosts);

/* True when two names mean one host: equal without case, or one is the other up to its first dot. Numeric addresses
 * only when equal. */
bool ls_host_is(const char *a, const char *b);
/* True when `name` is this host: one of its names, or a name or address that leads to one of its interfaces. Asks the
 * resolver only where the name alone does not tell. */
bool ls_host_is_here(const char *name);
/* The index of the host that calls itself `name` (gethostname), by name or else by address; -1. */
int ls_hosts_find(const struct ls_hosts *hosts, const char *name);

/* Ranks that fit: the slots (1 where not said) of hosts that are not in excluded[], each cut at `ranks_per_node` (0:
 * not); where slots are not said, `ranks_per_node` takes their place. */
int64_t ls_hosts_room(const struct ls_hosts *hosts, int64_t ranks_per_node, const char *const *excluded,
                      int excluded_count);
/* Deals `ranks` in order, each host to its room, into counts[hosts->count]. LS_USAGE, naming the room of each host,
 * when they do not fit. */
enum ls_code ls_hosts_deal(const struct ls_hosts *hosts, int64_t ranks, int64_t ranks_per_node,
                           const char *const *excluded, int excluded_count, int64_t *counts, struct ls_error *error);

#endif
