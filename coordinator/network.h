/* This host's addresses: where the coordinator listens, and what its workers are told to try. */
#ifndef LS_COORDINATOR_NETWORK_H
#define LS_COORDINATOR_NETWORK_H

#include "common/config.h"
#include "common/status.h"
#include "coordinator/hosts.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LS_ADDRESS_SIZE = 46, LS_ADDRESSES_MAX = 64, LS_LISTEN_MAX = 8, LS_ENDPOINTS_SIZE = 512 };

/* A numeric address of an interface that is up. */
struct ls_address {
    char text[LS_ADDRESS_SIZE];
    char interface[16];
    bool loopback, six;
};

/* Where to listen; `offered` is what workers try in turn: the same, unless one listens on every address. */
struct ls_listen {
    char listen[LS_LISTEN_MAX][LS_ADDRESS_SIZE], offered[LS_LISTEN_MAX][LS_ADDRESS_SIZE];
    int listen_count, offered_count;
};

/* The addresses of all interfaces that are up, IPv4 first, without those that hold on one link only; how many there
 * are, at most `most`. */
int ls_network_list(struct ls_address *list, int most);
/* "e0 (10.0.0.1), lo (127.0.0.1)". */
void ls_network_describe(char *text, size_t size);
/* The own address from which packets to `host` leave; false when it cannot be resolved or there is no way to it. */
bool ls_network_source(const char *host, char address[LS_ADDRESS_SIZE]);

/* Asks every host whether it is there, all at once: its ssh port takes or refuses a connection within `seconds`. Fills
 * answers[hosts->count]; this host answers, and those beyond the first 1024 are not asked and count as answering. */
void ls_network_ask(const struct ls_hosts *hosts, double seconds, bool *answers);

/* By coordinator.bind and coordinator.interface. With bind: auto and hosts[] beside this one: every address but
 * loopback, those that lead to the hosts first; `hosts` NULL: all ranks are here, so loopback. LS_USAGE names the
 * interfaces there are when the wanted one is not there or has no address. */
enum ls_code ls_network_choose(const struct ls_config *config, const struct ls_hosts *hosts, struct ls_listen *chosen,
                               struct ls_error *error);

/* "tcp://10.0.0.1:4000,tcp://[fd00::1]:4000" of what is offered. */
void ls_network_endpoints(const struct ls_listen *chosen, int64_t port, char text[LS_ENDPOINTS_SIZE]);
/* "tcp://[::1]:4000"; port 0: "tcp://[::1]:*". */
void ls_network_endpoint(const char *address, int64_t port, char text[128]);

/* The port is free on every address to listen on, or 0. LS_USAGE. */
enum ls_code ls_network_check_port(const struct ls_listen *chosen, int64_t port, struct ls_error *error);

#endif
