/* Slows a process down from outside: stops it again and again, until it is gone or SIGTERM comes.
 *     slow PID STOPPED RUNNING      microseconds of each */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static volatile sig_atomic_t over;

static void end(int number) {
    (void)number;
    over = 1;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    const pid_t pid = (pid_t)atoi(argv[1]);
    const useconds_t stopped = (useconds_t)atoi(argv[2]), running = (useconds_t)atoi(argv[3]);
    signal(SIGTERM, end);
    while (!over && kill(pid, SIGSTOP) == 0) {
        usleep(stopped);
        if (kill(pid, SIGCONT)) break;
        usleep(running);
    }
    kill(pid, SIGCONT);
    return 0;
}
