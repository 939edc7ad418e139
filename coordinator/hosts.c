/* Names of hosts, their slots, and dealing ranks to them. */
#define _GNU_SOURCE
#include "coordinator/hosts.h"

#include "common/files.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FILE_BYTES_MAX = 4 << 20 };

/* ---- the list ---- */

/* A name goes into command lines: a letter or digit first, so that none is an option. */
static bool is_host_name(const char *name, size_t length) {
    if (length == 0 || length >= LS_HOST_NAME_SIZE || !isalnum((unsigned char)name[0])) return false;
    for (size_t i = 0; i < length; i++)
        if (!isalnum((unsigned char)name[i]) && !strchr("._-:", name[i])) return false;
    return true;
}

enum ls_code ls_hosts_add(struct ls_hosts *hosts, const char *name, size_t length, int64_t slots,
                          struct ls_error *error) {
    if (!is_host_name(name, length))
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "'%.*s' is no name of a host", length > 60 ? 60 : (int)length,
                       name);
    if (hosts->count == LS_HOSTS_MAX)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "there are more than %d hosts", LS_HOSTS_MAX);
    if (hosts->count == hosts->capacity) {
        int capacity = hosts->capacity * 2 + 16;
        struct ls_host *grown = realloc(hosts->list, (size_t)capacity * sizeof *grown);
        if (!grown) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for %d hosts", capacity);
        hosts->list = grown;
        hosts->capacity = capacity;
    }
    struct ls_host *host = &hosts->list[hosts->count++];
    *host = (struct ls_host){.slots = slots};
    memcpy(host->name, name, length);
    return LS_OK;
}

void ls_hosts_release(struct ls_hosts *hosts) {
    free(hosts->list);
    *hosts = (struct ls_hosts){0};
}

/* ---- the hostfile ---- */

/* "slots=N", N from 1; 0 when it is not that. */
static int64_t read_slots(const char *word, size_t length) {
    static const char key[] = "slots=";
    const size_t key_length = sizeof key - 1;
    if (length <= key_length || length > key_length + 9 || memcmp(word, key, key_length) != 0) return 0;
    int64_t slots = 0;
    for (size_t i = key_length; i < length; i++) {
        if (!isdigit((unsigned char)word[i])) return 0;
        slots = slots * 10 + (word[i] - '0');
    }
    return slots <= LS_HOST_SLOTS_MAX ? slots : 0;
}

/* The next word of line[end], NULL when there is none; '#' ends the line. */
static const char *next_word(const char **at, const char *end, size_t *length) {
    static const char blanks[] = " \t\r\v\f";
    const char *word = *at;
    while (word < end && strchr(blanks, *word) && *word) word++;
    if (word == end || *word == '#') return NULL;
    const char *stop = word;
    while (stop < end && *stop != '#' && !(strchr(blanks, *stop) && *stop)) stop++;
    *length = (size_t)(stop - word);
    *at = stop;
    return word;
}

static int compare_names(const void *a, const void *b) {
    const struct ls_host *const *left = a, *const *right = b;
    int order = strcasecmp((*left)->name, (*right)->name);
    return order ? order : (*left)->line - (*right)->line;
}

/* Finds a name that stands twice; of several the one whose second line comes first. */
static enum ls_code refuse_twice(const struct ls_hosts *hosts, const char *label, struct ls_error *error) {
    const struct ls_host **sorted = malloc((size_t)(hosts->count + 1) * sizeof(struct ls_host *)), *twice = NULL;
    if (!sorted) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for %d hosts", hosts->count);
    for (int i = 0; i < hosts->count; i++) sorted[i] = &hosts->list[i];
    qsort(sorted, (size_t)hosts->count, sizeof *sorted, compare_names);
    int first_line = 0;
    for (int i = 1; i < hosts->count; i++) {
        if (strcasecmp(sorted[i]->name, sorted[i - 1]->name) != 0 || (twice && sorted[i]->line > twice->line)) continue;
        twice = sorted[i];
        first_line = sorted[i - 1]->line;
    }
    free(sorted);
    if (!twice) return LS_OK;
    return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                   "%s:%d: host %s is named twice, first in line %d. Keep one line with all its slots.", label,
                   twice->line, twice->name, first_line);
}

static enum ls_code parse_line(const char *line, const char *end, int number, const char *label, struct ls_hosts *hosts,
                               struct ls_error *error) {
    size_t name_length, length;
    const char *name = next_word(&line, end, &name_length), *word;
    if (!name) return LS_OK;
    int64_t slots = 0;
    while ((word = next_word(&line, end, &length))) {
        int64_t read = read_slots(word, length);
        if (!read || slots)
            return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                           "%s:%d: '%.*s' is not understood%s. Write a line as HOST slots=N, N from 1 to %d.", label,
                           number, length > 60 ? 60 : (int)length, word, read ? " after the first slots" : "",
                           LS_HOST_SLOTS_MAX);
        slots = read;
    }
    enum ls_code code = ls_hosts_add(hosts, name, name_length, slots, error);
    if (code != LS_OK) {
        ls_fail_within(error, "%s:%d", label, number);
        return code;
    }
    hosts->list[hosts->count - 1].line = number;
    return LS_OK;
}

enum ls_code ls_hosts_parse(const char *text, size_t bytes, const char *label, struct ls_hosts *hosts,
                            struct ls_error *error) {
    enum ls_code code = LS_OK;
    int number = 0;
    for (const char *line = text, *end = text + bytes; code == LS_OK && line < end;) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        if (!stop) stop = end;
        code = parse_line(line, stop, ++number, label, hosts, error);
        line = stop + 1;
    }
    if (code != LS_OK) return code;
    if (hosts->count == 0)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB, "%s names no host. Write a line for each: HOST slots=N.", label);
    return refuse_twice(hosts, label, error);
}

enum ls_code ls_hosts_read(const char *path, struct ls_hosts *hosts, struct ls_error *error) {
    char *text;
    size_t bytes;
    enum ls_code code = ls_file_read(path, FILE_BYTES_MAX, &text, &bytes, LS_USAGE, error);
    if (code != LS_OK) return code;
    code = ls_hosts_parse(text, bytes, path, hosts, error);
    free(text);
    return code;
}

/* ---- which host is which ---- */

static bool is_numeric(const char *name) {
    unsigned char address[sizeof(struct in6_addr)];
    return inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1;
}

bool ls_host_is(const char *a, const char *b) {
    if (strcasecmp(a, b) == 0) return true;
    size_t length = strcspn(a, ".");
    if (length != strcspn(b, ".") || strncasecmp(a, b, length) != 0 || is_numeric(a) || is_numeric(b)) return false;
    return !a[length] || !b[length];
}

static bool is_same_address(const struct sockaddr *a, const struct sockaddr *b) {
    if (!a || !b || a->sa_family != b->sa_family) return false;
    if (a->sa_family == AF_INET)
        return ((const struct sockaddr_in *)a)->sin_addr.s_addr == ((const struct sockaddr_in *)b)->sin_addr.s_addr;
    return a->sa_family == AF_INET6 &&
           memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr, &((const struct sockaddr_in6 *)b)->sin6_addr,
                  sizeof(struct in6_addr)) == 0;
}

static struct addrinfo *resolve(const char *name) {
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    return getaddrinfo(name, NULL, &hints, &found) == 0 ? found : NULL;
}

bool ls_host_is_here(const char *name) {
    char own[LS_HOST_NAME_SIZE] = "";
    if (gethostname(own, sizeof own - 1) == 0 && ls_host_is(name, own)) return true;
    if (strcasecmp(name, "localhost") == 0) return true;
    struct addrinfo *found = resolve(name);
    struct ifaddrs *interfaces = NULL;
    bool here = false;
    if (found && getifaddrs(&interfaces)) interfaces = NULL;
    for (const struct addrinfo *at = found; at && !here; at = at->ai_next)
        for (const struct ifaddrs *interface = interfaces; interface && !here; interface = interface->ifa_next)
            here = is_same_address(at->ai_addr, interface->ifa_addr);
    if (interfaces) freeifaddrs(interfaces);
    if (found) freeaddrinfo(found);
    return here;
}

int ls_hosts_find(const struct ls_hosts *hosts, const char *name) {
    for (int i = 0; i < hosts->count; i++)
        if (ls_host_is(hosts->list[i].name, name)) return i;
    struct addrinfo *wanted = resolve(name);
    int index = -1;
    for (int i = 0; wanted && index < 0 && i < hosts->count; i++) {
        struct addrinfo *found = resolve(hosts->list[i].name);
        for (const struct addrinfo *a = wanted; a && index < 0; a = a->ai_next)
            for (const struct addrinfo *b = found; b && index < 0; b = b->ai_next)
                if (is_same_address(a->ai_addr, b->ai_addr)) index = i;
        if (found) freeaddrinfo(found);
    }
    if (wanted) freeaddrinfo(wanted);
    return index;
}

/* ---- room ---- */

static int64_t room_of(const struct ls_host *host, int64_t ranks_per_node) {
    int64_t slots = host->slots ? host->slots : ranks_per_node ? ranks_per_node : 1;
    return ranks_per_node && slots > ranks_per_node ? ranks_per_node : slots;
}

/* Marks the hosts that are excluded in out[hosts->count]. */
static void mark_excluded(const struct ls_hosts *hosts, const char *const *excluded, int excluded_count, bool *out) {
    memset(out, 0, (size_t)hosts->count * sizeof *out);
    for (int i = 0; i < excluded_count; i++) {
        int index = ls_hosts_find(hosts, excluded[i]);
        if (index >= 0) out[index] = true;
    }
}

int64_t ls_hosts_room(const struct ls_hosts *hosts, int64_t ranks_per_node, const char *const *excluded,
                      int excluded_count) {
    int64_t room = 0;
    bool *out = malloc((size_t)hosts->count + 1);
    if (!out) return 0;
    mark_excluded(hosts, excluded, excluded_count, out);
    for (int i = 0; i < hosts->count; i++)
        if (!out[i]) room += room_of(&hosts->list[i], ranks_per_node);
    free(out);
    return room;
}

static enum ls_code refuse_room(const struct ls_hosts *hosts, int64_t ranks, int64_t ranks_per_node, const bool *out,
                                struct ls_error *error) {
    char rooms[512];
    size_t used = 0;
    int64_t room = 0;
    rooms[0] = 0;
    for (int i = 0; i < hosts->count; i++) {
        int64_t own = out[i] ? 0 : room_of(&hosts->list[i], ranks_per_node);
        room += own;
        if (used + LS_HOST_NAME_SIZE + 32 > sizeof rooms) continue;
        used += (size_t)snprintf(rooms + used, sizeof rooms - used, "%s%s %lld%s", used ? ", " : "",
                                 hosts->list[i].name, (long long)own, out[i] ? " (excluded)" : "");
    }
    return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                   "%lld ranks do not fit on %d host%s with room for %lld (%s). Use at most %lld ranks (-n), or give "
                   "the hosts more: slots=N in the hostfile, --ntasks of the Slurm job, launcher.ranks_per_node.",
                   (long long)ranks, hosts->count, hosts->count == 1 ? "" : "s", (long long)room, rooms,
                   (long long)room);
}

enum ls_code ls_hosts_deal(const struct ls_hosts *hosts, int64_t ranks, int64_t ranks_per_node,
                           const char *const *excluded, int excluded_count, int64_t *counts, struct ls_error *error) {
    bool *out = malloc((size_t)hosts->count + 1);
    if (!out) return ls_fail(error, LS_MEMORY, LS_SCOPE_JOB, "no memory for %d hosts", hosts->count);
    mark_excluded(hosts, excluded, excluded_count, out);
    int64_t left = ranks;
    for (int i = 0; i < hosts->count; i++) {
        int64_t room = out[i] ? 0 : room_of(&hosts->list[i], ranks_per_node);
        counts[i] = room < left ? room : left;
        left -= counts[i];
    }
    enum ls_code code = left > 0 ? refuse_room(hosts, ranks, ranks_per_node, out, error) : LS_OK;
    free(out);
    return code;
}
