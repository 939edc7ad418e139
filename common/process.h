/* What a process is doing, as the kernel tells it: for the line about a rank that stands still. Reads /proc of this
 * host; what is not readable (another user's process, a kernel without it) is left out. */
#ifndef LS_COMMON_PROCESS_H
#define LS_COMMON_PROCESS_H

#include <stddef.h>
#include <stdint.h>

enum { LS_PROCESS_TEXT_BYTES = 192 };

struct ls_process_look {
    char state; /* of the process: 'R', 'S', 'D', 'T' (stopped by a signal), 't' (by a debugger), 'Z'; 0: not known */
    char text[LS_PROCESS_TEXT_BYTES]; /* "thread ls-prefetch waits in pipe_read, read of /data/x.bin"; "": not known */
};

/* Looks at process `pid`. Of its threads the text tells the one that the kernel does not let go (state D); else
 * `thread`, where one has that name; else the first. A stopped process has no more to tell. */
void ls_process_look(int64_t pid, const char *thread, struct ls_process_look *look);

/* Writes every thread of the process, at most 64: name, state, where it waits, system call, and the kernel's stack
 * where that is readable; a line each, frames indented. Returns the characters written, less than `size`. */
size_t ls_process_describe(int64_t pid, char *text, size_t size);

#endif
