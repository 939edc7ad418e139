/* Progress lines of the data commands. */
#define _GNU_SOURCE
#include "coordinator/data_progress.h"

#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t stop_wanted; /* set by the signal handler, which reaches nothing else */

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

struct ls_data_progress ls_data_progress_start(const char *what, int64_t total) {
    const double now = seconds_now();
    return (struct ls_data_progress){
        .what = what, .total = total, .started = now, .shown = now, .terminal = isatty(STDERR_FILENO)};
}

bool ls_data_progress_add(struct ls_data_progress *progress, int64_t bytes) {
    progress->done += bytes;
    const bool terminal = progress->terminal;
    const double now = seconds_now();
    if (now - progress->shown >= (!terminal ? 10 : progress->visible ? 0.5 : 1)) {
        const double seconds = now - progress->started, rate = (double)progress->done / seconds;
        char line[160];
        int length = snprintf(line, sizeof line, "%s: %.1f MB, %.1f MB/s", progress->what, (double)progress->done / 1e6,
                              rate / 1e6);
        if (progress->total > 0 && rate > 0)
            snprintf(line + length, sizeof line - (size_t)length, ", %.0f %%, %.0f s left",
                     100.0 * (double)progress->done / (double)progress->total,
                     (double)(progress->total - progress->done) / rate);
        fprintf(stderr, terminal ? "\r\033[K%s" : "%s\n", line);
        progress->shown = now;
        progress->visible = terminal;
    }
    return !stop_wanted;
}

void ls_data_progress_end(const struct ls_data_progress *progress) {
    if (progress->visible) fputs("\r\033[K", stderr);
}

static void want_stop(int signal_number) {
    (void)signal_number;
    stop_wanted = 1;
}

void ls_data_progress_catch_signals(void) {
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    signal(SIGPIPE, SIG_IGN); /* nobody reads what is told: no reason to end in the middle */
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        struct sigaction action = {.sa_handler = want_stop, .sa_flags = SA_RESETHAND | SA_RESTART}, before;
        sigemptyset(&action.sa_mask);
        sigaction(signals[i], &action, &before);
        if (before.sa_handler == SIG_IGN)
            sigaction(signals[i], &before, NULL); /* as it was started: nohup, a shell's background */
    }
}
