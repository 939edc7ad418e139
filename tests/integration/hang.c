/* Preloaded into workers: one rank hangs where LS_HANG says, as a disk or a network that does not answer would have it.
 *     LS_HANG_RANK   which rank
 *     LS_HANG        read: in pread, once the file LS_HANG_FILE exists
 *                    mpi:  in MPI_Init
 *                    open: in the opening of a file whose name contains LS_HANG_NAME
 *                    fail: not at all, but files whose name contains LS_HANG_NAME cannot be opened: EIO
 *                    slow: not at all, but each pread takes LS_HANG_MICROSECONDS more
 *                    flip: not at all, but once the file LS_HANG_FILE exists, every matrix of the next products has the
 *                          lowest bit of its first number wrong, once each: weights are among them in each forward
 * The hang is a read from a FIFO, LS_HANG_FIFO, that nobody writes to. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static bool is_meant(const char *where) {
    const char *wanted = getenv("LS_HANG"), *rank = getenv("LS_HANG_RANK"), *own = getenv("OMPI_COMM_WORLD_RANK");
    return wanted && rank && own && strcmp(wanted, where) == 0 && strcmp(rank, own) == 0;
}

static void hang(void) {
    ssize_t (*next_read)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    int (*next_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int file = next_open(getenv("LS_HANG_FIFO"), O_RDWR); /* both ends: opening does not wait, reading does */
    char byte;
    while (next_read(file, &byte, 1) != 1) {
    }
}

ssize_t pread(int file, void *buffer, size_t count, off_t offset) {
    ssize_t (*next)(int, void *, size_t, off_t) = dlsym(RTLD_NEXT, "pread");
    const char *trigger = getenv("LS_HANG_FILE"), *microseconds = getenv("LS_HANG_MICROSECONDS");
    if (is_meant("read") && trigger && access(trigger, F_OK) == 0) hang();
    if (is_meant("slow") && microseconds) usleep((useconds_t)atoi(microseconds));
    return next(file, buffer, count, offset);
}
ssize_t pread64(int file, void *buffer, size_t count, off_t offset) __attribute__((alias("pread")));

int open(const char *path, int flags, ...) {
    int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    va_list arguments;
    va_start(arguments, flags);
    const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    const char *name = getenv("LS_HANG_NAME");
    if (is_meant("open") && name && strstr(path, name)) hang();
    if (is_meant("fail") && name && strstr(path, name) && (errno = EIO)) return -1;
    return next(path, flags, mode);
}
int open64(const char *path, int flags, ...) __attribute__((alias("open")));

int openat(int folder, const char *path, int flags, ...) {
    int (*next)(int, const char *, int, ...) = dlsym(RTLD_NEXT, "openat");
    va_list arguments;
    va_start(arguments, flags);
    const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    const char *name = getenv("LS_HANG_NAME");
    if (is_meant("fail") && name && strstr(path, name) && (errno = EIO)) return -1;
    return next(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) __attribute__((alias("openat")));

enum { FLIP_PRODUCTS = 64 }; /* at least those of one forward of configs/tiny-gpt2.yaml, which needs every weight */

/* Flips a bit unless that was done before: a second time would mend it. */
static void flip_once(const float *matrix) {
    static const float *flipped[2 * FLIP_PRODUCTS];
    static int count;
    for (int i = 0; i < count; i++)
        if (flipped[i] == matrix) return;
    flipped[count++] = matrix;
    *(unsigned char *)matrix ^= 1;
}

static void flip(const float *a, const float *b) {
    static int left = -1; /* products to spoil; -1: the file was not there yet */
    const char *trigger = getenv("LS_HANG_FILE");
    if (left == 0 || !is_meant("flip") || !trigger) return;
    if (left < 0) {
        if (access(trigger, F_OK) != 0) return;
        unlink(trigger); /* once, over all attempts */
        left = FLIP_PRODUCTS;
    }
    left--;
    flip_once(a);
    flip_once(b);
}

void cblas_sgemm(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc) {
    void (*next)(int, int, int, int, int, int, float, const float *, int, const float *, int, float, float *, int) =
        dlsym(RTLD_NEXT, "cblas_sgemm");
    flip(a, b);
    next(order, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

int dnnl_sgemm(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
               int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    int (*next)(char, char, int64_t, int64_t, int64_t, float, const float *, int64_t, const float *, int64_t, float,
                float *, int64_t) = dlsym(RTLD_NEXT, "dnnl_sgemm");
    flip(a, b);
    return next(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

int MPI_Init_thread(int *count, char ***values, int required, int *provided) {
    int (*next)(int *, char ***, int, int *) = dlsym(RTLD_NEXT, "MPI_Init_thread");
    if (is_meant("mpi")) hang();
    return next(count, values, required, provided);
}
