/* Collectives of the ranks of one host, or of several, beside MPI's on the whole buffer: bus bandwidth by nccl-tests'
 * factors, that is bytes a rank would send around a ring, by the time of the slowest rank. Medians of alternating
 * repetitions.
 *
 *     mpirun -np 2 [--hostfile F] build/scripts/bench/collectives [BYTES...]
 */
#include "worker/comm/comm.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPEATS = 15, SIZES_MAX = 16 };

struct bench {
    struct ls_comm *comm;
    struct ls_stream *stream;
    int rank, size;
    float *buffer, *spare;
};

enum kind { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, KINDS };
static const char *const names[KINDS] = {"all-reduce", "reduce-scatter", "all-gather"};

/* On a buffer of `count` floats, that size divides. */
static void run_ours(const struct bench *bench, enum kind kind, int64_t count) {
    const int64_t slice = count / bench->size;
    if (kind == ALL_REDUCE)
        ls_comm_all_reduce_sum(bench->comm, bench->stream, bench->buffer, count, LS_COMM_FLOAT, -1);
    else if (kind == REDUCE_SCATTER)
        ls_comm_reduce_scatter_sum(bench->comm, bench->stream, bench->buffer, slice, LS_COMM_FLOAT, -1);
    else
        ls_comm_all_gather(bench->comm, bench->stream, bench->buffer, slice * (int64_t)sizeof(float), -1);
    if (ls_stream_synchronize(bench->stream, NULL)) MPI_Abort(MPI_COMM_WORLD, 1);
}

static void run_mpi(const struct bench *bench, enum kind kind, int64_t count) {
    const int slice = (int)(count / bench->size);
    if (kind == ALL_REDUCE)
        MPI_Allreduce(MPI_IN_PLACE, bench->buffer, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    else if (kind == REDUCE_SCATTER)
        MPI_Reduce_scatter_block(bench->buffer, bench->spare, slice, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    else
        MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, bench->buffer, slice, MPI_FLOAT, MPI_COMM_WORLD);
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Seconds of the slowest rank, once. */
static double time_once(const struct bench *bench, void (*run)(const struct bench *, enum kind, int64_t),
                        enum kind kind, int64_t count) {
    MPI_Barrier(MPI_COMM_WORLD);
    const double begin = MPI_Wtime();
    run(bench, kind, count);
    double seconds = MPI_Wtime() - begin;
    MPI_Allreduce(MPI_IN_PLACE, &seconds, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return seconds;
}

static void measure(const struct bench *bench, enum kind kind, int64_t bytes) {
    const int64_t count = bytes / (int64_t)sizeof(float) / bench->size * bench->size;
    double ours[REPEATS] = {0}, theirs[REPEATS] = {0};
    memset(bench->buffer, 0, (size_t)count * sizeof *bench->buffer);
    for (int i = -2; i < REPEATS; i++) {
        const double a = time_once(bench, run_ours, kind, count), b = time_once(bench, run_mpi, kind, count);
        if (i >= 0) ours[i] = a, theirs[i] = b;
    }
    qsort(ours, REPEATS, sizeof *ours, ascending);
    qsort(theirs, REPEATS, sizeof *theirs, ascending);
    if (bench->rank != 0) return;
    const double sent = (kind == ALL_REDUCE ? 2.0 : 1.0) * (bench->size - 1) / bench->size * (double)count * 4 / 1e9;
    printf("%-14s %10lld  %10.1f %7.2f [%.2f, %.2f]  %10.1f %7.2f   %5.2f\n", names[kind], (long long)count * 4,
           ours[REPEATS / 2] * 1e6, sent / ours[REPEATS / 2], sent / ours[REPEATS * 3 / 4], sent / ours[REPEATS / 4],
           theirs[REPEATS / 2] * 1e6, sent / theirs[REPEATS / 2], theirs[REPEATS / 2] / ours[REPEATS / 2]);
    fflush(stdout);
}

int main(int argc, char **argv) {
    int level;
    int64_t sizes[SIZES_MAX] = {1 << 10, 64 << 10, 4 << 20, 32 << 20, 256 << 20}, most = 0;
    int count = 5;
    if (argc > 1) count = 0;
    for (int i = 1; i < argc && count < SIZES_MAX; i++) sizes[count++] = atoll(argv[i]);
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
    struct bench bench = {0};
    struct ls_device *device = NULL;
    struct ls_error error;
    if (ls_comm_create_mpi(&bench.comm, &error) || ls_device_create_cpu(1, LS_STREAMS_EAGER, &device, &error)) {
        fprintf(stderr, "collectives: %s\n", error.text);
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    bench.rank = ls_comm_rank(bench.comm);
    bench.size = ls_comm_size(bench.comm);
    bench.stream = ls_stream_create(device, false);
    for (int i = 0; i < count; i++)
        if (sizes[i] > most) most = sizes[i];
    bench.buffer = ls_device_allocate(device, (size_t)most); /* as in training: in large pages */
    bench.spare = malloc((size_t)most);
    if (!bench.buffer || !bench.spare || !bench.stream) MPI_Abort(MPI_COMM_WORLD, 1);
    if (bench.rank == 0)
        printf("%d ranks, %d on this host\n%-14s %10s  %10s %s  %10s %7s   %5s\n", bench.size,
               ls_comm_local_size(bench.comm), "collective", "bytes", "us", "GB/s [quartiles]", "MPI: us", "GB/s",
               "ratio");
    for (int kind = 0; kind < KINDS; kind++)
        for (int i = 0; i < count; i++) measure(&bench, (enum kind)kind, sizes[i]);
    ls_stream_destroy(bench.stream);
    ls_device_free(device, bench.buffer);
    ls_device_destroy(device);
    ls_comm_destroy(bench.comm);
    free(bench.spare);
    MPI_Finalize();
    return 0;
}
