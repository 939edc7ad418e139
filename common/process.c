/* Reading /proc/PID. */
#define _GNU_SOURCE
#include "common/process.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { THREADS_MAX = 64, STACK_BYTES = 2048 };

/* A thread as the kernel shows it. */
struct thread {
    int64_t id;
    char state, name[32], place[64], call[PATH_MAX + 64];
};

/* Reads a small file of /proc without its last line end; false when there is nothing. */
static bool read_file(const char *path, char *text, size_t size) {
    text[0] = 0;
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) return false;
    ssize_t count = read(file, text, size - 1);
    close(file);
    if (count <= 0) return false;
    if (text[count - 1] == '\n') count--;
    text[count] = 0;
    return count > 0;
}

/* Text of other processes: what is not plain becomes '?'. */
static void clean(char *text) {
    for (; *text; text++)
        if (!isprint((unsigned char)*text)) *text = '?';
}

/* The system calls that a rank may hang in, and which argument says of what. */
enum subject { SUBJECT_NONE, SUBJECT_FILE, SUBJECT_PATH, SUBJECT_SECOND_PATH };
static const struct {
    long number;
    const char *name;
    enum subject subject;
} calls[] = {
    {SYS_read, "read", SUBJECT_FILE},
    {SYS_pread64, "pread", SUBJECT_FILE},
    {SYS_readv, "readv", SUBJECT_FILE},
    {SYS_preadv, "preadv", SUBJECT_FILE},
    {SYS_write, "write", SUBJECT_FILE},
    {SYS_pwrite64, "pwrite", SUBJECT_FILE},
    {SYS_writev, "writev", SUBJECT_FILE},
    {SYS_fsync, "fsync", SUBJECT_FILE},
    {SYS_fdatasync, "fdatasync", SUBJECT_FILE},
    {SYS_fallocate, "fallocate", SUBJECT_FILE},
    {SYS_flock, "flock", SUBJECT_FILE},
    {SYS_ioctl, "ioctl", SUBJECT_FILE},
    {SYS_ftruncate, "ftruncate", SUBJECT_FILE},
    {SYS_getdents64, "getdents", SUBJECT_FILE},
    {SYS_fstatfs, "fstatfs", SUBJECT_FILE},
    {SYS_close, "close", SUBJECT_FILE},
    {SYS_openat, "open", SUBJECT_SECOND_PATH},
    {SYS_mkdirat, "mkdir", SUBJECT_SECOND_PATH},
    {SYS_unlinkat, "unlink", SUBJECT_SECOND_PATH},
    {SYS_renameat2, "rename", SUBJECT_SECOND_PATH},
    {SYS_newfstatat, "stat", SUBJECT_SECOND_PATH},
    {SYS_statx, "stat", SUBJECT_SECOND_PATH},
    {SYS_faccessat, "access", SUBJECT_SECOND_PATH},
    {SYS_statfs, "statfs", SUBJECT_PATH},
    {SYS_futex, "futex", SUBJECT_NONE},
    {SYS_clock_nanosleep, "clock_nanosleep", SUBJECT_NONE},
    {SYS_nanosleep, "nanosleep", SUBJECT_NONE},
    {SYS_sched_yield, "sched_yield", SUBJECT_NONE},
    {SYS_ppoll, "poll", SUBJECT_NONE},
    {SYS_epoll_pwait, "epoll_wait", SUBJECT_NONE},
    {SYS_connect, "connect", SUBJECT_NONE},
    {SYS_recvfrom, "recv", SUBJECT_NONE},
    {SYS_recvmsg, "recvmsg", SUBJECT_NONE},
    {SYS_sendto, "send", SUBJECT_NONE},
    {SYS_sendmsg, "sendmsg", SUBJECT_NONE},
    {SYS_wait4, "wait", SUBJECT_NONE},
#ifdef SYS_open
    {SYS_open, "open", SUBJECT_PATH},
    {SYS_mkdir, "mkdir", SUBJECT_PATH},
    {SYS_rmdir, "rmdir", SUBJECT_PATH},
    {SYS_unlink, "unlink", SUBJECT_PATH},
    {SYS_rename, "rename", SUBJECT_PATH},
    {SYS_renameat, "rename", SUBJECT_SECOND_PATH},
    {SYS_symlink, "symlink", SUBJECT_PATH},
    {SYS_readlink, "readlink", SUBJECT_PATH},
    {SYS_stat, "stat", SUBJECT_PATH},
    {SYS_lstat, "stat", SUBJECT_PATH},
    {SYS_access, "access", SUBJECT_PATH},
    {SYS_poll, "poll", SUBJECT_NONE},
    {SYS_epoll_wait, "epoll_wait", SUBJECT_NONE},
#endif
};

/* The path at `address` in the other process, where that may be read. */
static bool read_path(int64_t pid, unsigned long address, char *path, size_t size) {
    struct iovec here = {path, size - 1}, there = {(void *)address, size - 1}; // NOLINT(performance-no-int-to-ptr)
    ssize_t count = process_vm_readv((pid_t)pid, &here, 1, &there, 1, 0);
    path[count > 0 ? count : 0] = 0;
    return count > 0 && path[0];
}

/* Names the call in "NUMBER ARGUMENTS...", or says that there is none. */
static void read_call(int64_t pid, struct thread *thread) {
    char path[128], text[256], subject[PATH_MAX] = "";
    thread->call[0] = 0;
    snprintf(path, sizeof path, "/proc/%lld/task/%lld/syscall", (long long)pid, (long long)thread->id);
    if (!read_file(path, text, sizeof text) || !isdigit((unsigned char)text[0])) return;
    char *next;
    const long number = strtol(text, &next, 10);
    const unsigned long first = strtoul(next, &next, 16), second = strtoul(next, NULL, 16);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        if (calls[i].number != number) continue;
        if (calls[i].subject == SUBJECT_FILE) {
            snprintf(path, sizeof path, "/proc/%lld/fd/%lu", (long long)pid, first);
            ssize_t count = readlink(path, subject, sizeof subject - 1);
            subject[count > 0 ? count : 0] = 0;
        } else if (calls[i].subject != SUBJECT_NONE) {
            read_path(pid, calls[i].subject == SUBJECT_PATH ? first : second, subject, 256);
        }
        snprintf(thread->call, sizeof thread->call, "%s%s%s", calls[i].name, subject[0] ? " of " : "", subject);
        return;
    }
    snprintf(thread->call, sizeof thread->call, "system call %ld", number);
}

/* False when there is no such thread. The name in "ID (NAME) STATE ..." may hold anything, closing parentheses too. */
static bool read_thread(int64_t pid, int64_t id, struct thread *thread) {
    char path[128], text[512];
    snprintf(path, sizeof path, "/proc/%lld/task/%lld/stat", (long long)pid, (long long)id);
    if (!read_file(path, text, sizeof text)) return false;
    char *name = strchr(text, '('), *end = strrchr(text, ')');
    if (!name || !end || end < name || end[1] != ' ') return false;
    *end = 0;
    *thread = (struct thread){.id = id, .state = end[2]};
    snprintf(thread->name, sizeof thread->name, "%s", name + 1);
    snprintf(path, sizeof path, "/proc/%lld/task/%lld/wchan", (long long)pid, (long long)id);
    if (!read_file(path, thread->place, sizeof thread->place) || strcmp(thread->place, "0") == 0) thread->place[0] = 0;
    read_call(pid, thread);
    clean(thread->name);
    clean(thread->place);
    clean(thread->call);
    return true;
}

/* The ids of the process's threads, the first one first. */
static int list_threads(int64_t pid, int64_t ids[THREADS_MAX]) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%lld/task", (long long)pid);
    DIR *folder = opendir(path);
    int count = 0;
    if (!folder) return 0;
    for (struct dirent *entry; count < THREADS_MAX && (entry = readdir(folder));)
        if (isdigit((unsigned char)entry->d_name[0])) ids[count++] = strtoll(entry->d_name, NULL, 10);
    closedir(folder);
    return count;
}

/* How much a thread has to tell: more is better. */
static int weight(const struct thread *thread, int64_t pid, const char *wanted) {
    if (thread->state == 'D') return 3;
    if (wanted && strcmp(thread->name, wanted) == 0) return 2;
    return thread->id == pid;
}

static void tell(const struct thread *thread, bool first, char *text, size_t size) {
    char who[48] = "it", place[80] = "";
    if (!first) snprintf(who, sizeof who, "thread %s", thread->name);
    if (thread->place[0]) snprintf(place, sizeof place, " in %s", thread->place);
    if (thread->state == 'R')
        snprintf(text, size, "%s runs", who);
    else
        snprintf(text, size, "%s waits%s%s%s%s", who, thread->state == 'D' ? " without interrupt" : "", place,
                 thread->call[0] ? ", " : "", thread->call);
}

void ls_process_look(int64_t pid, const char *wanted, struct ls_process_look *look) {
    int64_t ids[THREADS_MAX];
    struct thread thread, best = {0};
    *look = (struct ls_process_look){0};
    if (pid <= 0) return;
    const int count = list_threads(pid, ids);
    for (int i = 0; i < count; i++) {
        if (!read_thread(pid, ids[i], &thread)) continue;
        if (ids[i] == pid) look->state = thread.state;
        if (!best.id || weight(&thread, pid, wanted) > weight(&best, pid, wanted)) best = thread;
    }
    if (look->state == 'T')
        snprintf(look->text, sizeof look->text, "it is stopped by a signal");
    else if (look->state == 't')
        snprintf(look->text, sizeof look->text, "a debugger holds it");
    else if (best.id)
        tell(&best, best.id == pid, look->text, sizeof look->text);
}

/* Appends to text[size], of which `used` are in use; what does not fit is left out. */
static size_t append(char *text, size_t size, size_t used, const char *line) {
    const size_t length = strlen(line);
    if (used + length >= size) return used;
    memcpy(text + used, line, length + 1);
    return used + length;
}

size_t ls_process_describe(int64_t pid, char *text, size_t size) {
    int64_t ids[THREADS_MAX];
    struct thread thread;
    char path[128], stack[STACK_BYTES], line[sizeof thread + 64];
    size_t used = 0;
    text[0] = 0;
    const int count = pid > 0 ? list_threads(pid, ids) : 0;
    for (int i = 0; i < count; i++) {
        if (!read_thread(pid, ids[i], &thread)) continue;
        snprintf(line, sizeof line, "  thread %lld %s: state %c%s%s%s%s\n", (long long)thread.id, thread.name,
                 thread.state, thread.place[0] ? ", in " : "", thread.place, thread.call[0] ? ", " : "", thread.call);
        used = append(text, size, used, line);
        snprintf(path, sizeof path, "/proc/%lld/task/%lld/stack", (long long)pid, (long long)thread.id);
        if (!read_file(path, stack, sizeof stack)) continue;
        for (char *frame = stack, *next; frame; frame = next) {
            next = strchr(frame, '\n');
            if (next) *next++ = 0;
            clean(frame);
            snprintf(line, sizeof line, "    %s\n", frame);
            used = append(text, size, used, line);
        }
    }
    return used;
}
