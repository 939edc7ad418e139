/* Interfaces, and which of their addresses to listen on. */
#define _GNU_SOURCE
#include "coordinator/network.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Every host of a large cluster has the same way as its neighbours: so many are asked for theirs. */
enum { HOSTS_ASKED = 64, DISCARD_PORT = 9, HOSTS_CALLED = 1024 };
static const char SSH_PORT[] = "22";

/* ---- what there is ---- */

static bool read_address(const struct sockaddr *from, struct ls_address *address) {
    if (from->sa_family == AF_INET) {
        const struct in_addr *four = &((const struct sockaddr_in *)from)->sin_addr;
        if ((ntohl(four->s_addr) >> 16) == 0xa9fe) return false; /* 169.254/16: one link only */
        return inet_ntop(AF_INET, four, address->text, sizeof address->text) != NULL;
    }
    if (from->sa_family != AF_INET6) return false;
    const struct in6_addr *six = &((const struct sockaddr_in6 *)from)->sin6_addr;
    address->six = true;
    return !IN6_IS_ADDR_LINKLOCAL(six) && inet_ntop(AF_INET6, six, address->text, sizeof address->text);
}

int ls_network_list(struct ls_address *list, int most) {
    struct ifaddrs *interfaces;
    int count = 0;
    if (getifaddrs(&interfaces)) return 0;
    for (int six = 0; six < 2; six++)
        for (const struct ifaddrs *at = interfaces; at && count < most; at = at->ifa_next) {
            struct ls_address address = {0};
            if (!at->ifa_addr || !(at->ifa_flags & IFF_UP) || !read_address(at->ifa_addr, &address)) continue;
            if (address.six != (six == 1)) continue;
            address.loopback = (at->ifa_flags & IFF_LOOPBACK) != 0;
            snprintf(address.interface, sizeof address.interface, "%s", at->ifa_name);
            list[count++] = address;
        }
    freeifaddrs(interfaces);
    return count;
}

void ls_network_describe(char *text, size_t size) {
    struct ls_address list[LS_ADDRESSES_MAX];
    const int count = ls_network_list(list, LS_ADDRESSES_MAX);
    size_t used = 0;
    snprintf(text, size, "none");
    for (int i = 0; i < count && used + LS_ADDRESS_SIZE + 24 < size; i++)
        used +=
            (size_t)snprintf(text + used, size - used, "%s%s (%s)", used ? ", " : "", list[i].interface, list[i].text);
}

/* Connecting a datagram socket sends nothing and asks the kernel for the route. */
static bool source_of(const struct sockaddr *to, socklen_t to_size, struct ls_address *source) {
    struct sockaddr_storage own = {.ss_family = AF_UNSPEC};
    socklen_t size = sizeof own;
    int probe = socket(to->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (probe < 0) return false;
    bool known = connect(probe, to, to_size) == 0 && getsockname(probe, (struct sockaddr *)&own, &size) == 0 &&
                 read_address((const struct sockaddr *)&own, source);
    close(probe);
    return known;
}

bool ls_network_source(const char *host, char address[LS_ADDRESS_SIZE]) {
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_DGRAM};
    struct addrinfo *found;
    char service[8];
    snprintf(service, sizeof service, "%d", DISCARD_PORT);
    if (getaddrinfo(host, service, &hints, &found)) return false;
    struct ls_address source = {0};
    bool known = false;
    for (const struct addrinfo *at = found; at && !known; at = at->ai_next)
        known = source_of(at->ai_addr, at->ai_addrlen, &source);
    freeaddrinfo(found);
    if (known) memcpy(address, source.text, LS_ADDRESS_SIZE);
    return known;
}

/* ---- who is there ---- */

/* Begins a connection; -1 when there is nothing to wait for, *answers says why. */
static int call_host(const char *host, bool *answers) {
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found;
    *answers = false;
    if (getaddrinfo(host, SSH_PORT, &hints, &found)) return -1;
    int caller = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (caller >= 0 && connect(caller, found->ai_addr, found->ai_addrlen)) {
        *answers = errno == ECONNREFUSED;
        if (errno != EINPROGRESS) {
            close(caller);
            caller = -1;
        }
    }
    freeaddrinfo(found);
    return caller;
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static bool has_answered(int caller) {
    int cause = 0;
    socklen_t size = sizeof cause;
    return getsockopt(caller, SOL_SOCKET, SO_ERROR, &cause, &size) == 0 && (cause == 0 || cause == ECONNREFUSED);
}

void ls_network_ask(const struct ls_hosts *hosts, double seconds, bool *answers) {
    struct pollfd calls[HOSTS_CALLED];
    const int count = hosts->count < HOSTS_CALLED ? hosts->count : HOSTS_CALLED;
    int waiting = 0;
    for (int i = 0; i < hosts->count; i++) answers[i] = true;
    for (int i = 0; i < count; i++) {
        calls[i] = (struct pollfd){.fd = -1, .events = POLLOUT};
        if (!ls_host_is_here(hosts->list[i].name)) calls[i].fd = call_host(hosts->list[i].name, &answers[i]);
        waiting += calls[i].fd >= 0;
    }
    /* By the clock: answers that come one after the other are as many turns. */
    const double end = seconds_now() + seconds;
    for (double left; waiting > 0 && (left = end - seconds_now()) > 0;) {
        poll(calls, (nfds_t)count, (int)(left * 1000) + 1);
        for (int i = 0; i < count; i++) {
            if (calls[i].fd < 0 || !calls[i].revents) continue;
            answers[i] = has_answered(calls[i].fd);
            close(calls[i].fd);
            calls[i].fd = -1;
            waiting--;
        }
    }
    for (int i = 0; i < count; i++)
        if (calls[i].fd >= 0) close(calls[i].fd);
}

/* ---- where to listen ---- */

static void add(char (*list)[LS_ADDRESS_SIZE], int *count, const char *text) {
    for (int i = 0; i < *count; i++)
        if (strcmp(list[i], text) == 0) return;
    if (*count < LS_LISTEN_MAX) snprintf(list[(*count)++], LS_ADDRESS_SIZE, "%s", text);
}

static void listen_on(struct ls_listen *chosen, const char *text) {
    add(chosen->listen, &chosen->listen_count, text);
    add(chosen->offered, &chosen->offered_count, text);
}

static bool is_any(const char *address) {
    struct in6_addr six;
    return strcmp(address, "0.0.0.0") == 0 ||
           (inet_pton(AF_INET6, address, &six) == 1 && IN6_IS_ADDR_UNSPECIFIED(&six));
}

/* Those towards the hosts first, then all others but loopback. */
static void offer_all(const struct ls_hosts *hosts, const struct ls_address *list, int count, struct ls_listen *all) {
    int asked = 0;
    for (int i = 0; hosts && i < hosts->count && asked < HOSTS_ASKED; i++) {
        char source[LS_ADDRESS_SIZE];
        if (ls_host_is_here(hosts->list[i].name)) continue;
        asked++;
        if (!ls_network_source(hosts->list[i].name, source)) continue;
        for (int j = 0; j < count; j++)
            if (!list[j].loopback && strcmp(list[j].text, source) == 0) listen_on(all, source);
    }
    for (int i = 0; i < count; i++)
        if (!list[i].loopback) listen_on(all, list[i].text);
}

static enum ls_code choose_interface(const char *name, const struct ls_address *list, int count,
                                     struct ls_listen *chosen, struct ls_error *error) {
    char there[600];
    for (int i = 0; i < count; i++)
        if (strcmp(list[i].interface, name) == 0) listen_on(chosen, list[i].text);
    if (chosen->listen_count) return LS_OK;
    ls_network_describe(there, sizeof there);
    return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                   "coordinator.interface: this host has %s '%s'%s. There are: %s. Name one of these, or none.",
                   if_nametoindex(name) ? "no address on" : "no interface", name,
                   if_nametoindex(name) ? ", or it is down" : "", there);
}

enum ls_code ls_network_choose(const struct ls_config *config, const struct ls_hosts *hosts, struct ls_listen *chosen,
                               struct ls_error *error) {
    struct ls_address list[LS_ADDRESSES_MAX];
    const int count = ls_network_list(list, LS_ADDRESSES_MAX);
    const char *bind_to = config->coordinator.bind;
    memset(chosen, 0, sizeof *chosen);
    if (config->coordinator.interface[0])
        return choose_interface(config->coordinator.interface, list, count, chosen, error);
    if (strcmp(bind_to, "auto") != 0) {
        add(chosen->listen, &chosen->listen_count, bind_to);
        struct ls_listen all = {0};
        if (is_any(bind_to)) offer_all(hosts, list, count, &all);
        for (int i = 0; i < all.offered_count; i++) add(chosen->offered, &chosen->offered_count, all.offered[i]);
        const char *last = !is_any(bind_to) ? bind_to : strchr(bind_to, ':') ? "::1" : "127.0.0.1";
        add(chosen->offered, &chosen->offered_count, last);
        return LS_OK;
    }
    if (hosts)
        offer_all(hosts, list, count, chosen);
    else
        listen_on(chosen, "127.0.0.1");
    if (chosen->listen_count) return LS_OK;
    return ls_fail(error, LS_COMMUNICATION, LS_SCOPE_JOB,
                   "ranks are on other hosts and this one has no address beside loopback. Bring its network up, or set "
                   "coordinator.bind.");
}

void ls_network_endpoint(const char *address, int64_t port, char text[128]) {
    const char *open = strchr(address, ':') ? "[" : "", *close = *open ? "]" : "";
    if (port)
        snprintf(text, 128, "tcp://%s%s%s:%lld", open, address, close, (long long)port);
    else
        snprintf(text, 128, "tcp://%s%s%s:*", open, address, close);
}

void ls_network_endpoints(const struct ls_listen *chosen, int64_t port, char text[LS_ENDPOINTS_SIZE]) {
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < chosen->offered_count; i++) {
        char endpoint[128];
        ls_network_endpoint(chosen->offered[i], port, endpoint);
        if (used + strlen(endpoint) + 2 > LS_ENDPOINTS_SIZE) return;
        used += (size_t)snprintf(text + used, LS_ENDPOINTS_SIZE - used, "%s%s", used ? "," : "", endpoint);
    }
}

static enum ls_code check_port(const char *address, int64_t port, struct ls_error *error) {
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    bool is_six = inet_pton(AF_INET6, address, &six.sin6_addr) == 1;
    if (!is_six && inet_pton(AF_INET, address, &four.sin_addr) != 1)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "coordinator.bind: '%s' is no numeric address. Give one of this host's.", address);
    int one = 1, probe = socket(is_six ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (probe < 0) return ls_fail(error, LS_ERROR, LS_SCOPE_JOB, "cannot make a socket: %s", strerror(errno));
    setsockopt(probe, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    int failed =
        is_six ? bind(probe, (struct sockaddr *)&six, sizeof six) : bind(probe, (struct sockaddr *)&four, sizeof four);
    failed = failed || listen(probe, 1);
    int cause = errno;
    close(probe);
    if (!failed) return LS_OK;
    char there[600];
    ls_network_describe(there, sizeof there);
    if (cause == EADDRNOTAVAIL)
        return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                       "coordinator.bind: %s is no address of this host. It has: %s. Give one of these, or auto.",
                       address, there);
    return ls_fail(error, LS_USAGE, LS_SCOPE_JOB,
                   "port %lld of %s cannot be used: %s. Set coordinator.port to a free one, or to 0 for any.",
                   (long long)port, address, strerror(cause));
}

enum ls_code ls_network_check_port(const struct ls_listen *chosen, int64_t port, struct ls_error *error) {
    enum ls_code code = LS_OK;
    for (int i = 0; i < chosen->listen_count && code == LS_OK; i++) code = check_port(chosen->listen[i], port, error);
    return code;
}
