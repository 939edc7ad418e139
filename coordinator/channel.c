/* Messages between supervisor and coordinator. */
#define _GNU_SOURCE
#include "coordinator/channel.h"

#include <errno.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

int ls_channel_pair(int pair[2]) {
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
}

bool ls_channel_send(int channel, const struct ls_channel_message *message) {
    ssize_t sent;
    do {
        sent = send(channel, message, sizeof *message, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    return sent == (ssize_t)sizeof *message;
}

bool ls_channel_is_read(int channel) {
    int bytes = 0;
    return ioctl(channel, SIOCOUTQ, &bytes) == 0 && bytes == 0;
}

int ls_channel_receive(int channel, struct ls_channel_message *message) {
    ssize_t count;
    /* A peer that closed with messages unread leaves one ECONNRESET in front of its own last words. */
    bool reset = false;
    do {
        count = recv(channel, message, sizeof *message, MSG_DONTWAIT);
    } while (count < 0 && (errno == EINTR || (errno == ECONNRESET && !reset && (reset = true))));
    if (count == (ssize_t)sizeof *message) return 1;
    return count < 0 && errno == EAGAIN ? 0 : -1;
}
