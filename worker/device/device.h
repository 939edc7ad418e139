/* Devices: memory, streams, events and the operations a model needs. Everything here is asynchronous: an operation is
 * put on a stream and runs in that stream's order; events order streams; only the synchronising calls wait. Nothing
 * above device/ dereferences device memory. A device knows nothing of ranks or models. */
#ifndef LS_WORKER_DEVICE_DEVICE_H
#define LS_WORKER_DEVICE_DEVICE_H

#include "common/status.h"
#include "worker/device/operations.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ls_device;
struct ls_stream;
struct ls_event;

/* How a CPU device runs its streams. Eager: the compute stream at once in the caller, other streams in a thread of
 * their own that sleeps when idle. Lazy: every stream queues, and runs as late as a synchronising call allows, in the
 * calling thread. Hasty: background streams run at once in the caller, the compute stream as late as it may. In the
 * last two a missing wait shows as different bits: lazy where compute should have waited, hasty where a background
 * stream should have. */
enum ls_stream_order { LS_STREAMS_EAGER, LS_STREAMS_LAZY, LS_STREAMS_HASTY };

/* A device on this process's CPUs with `threads` OpenMP threads (0: the runtime's choice). */
enum ls_code ls_device_create_cpu(int threads, enum ls_stream_order order, struct ls_device **device,
                                  struct ls_error *error);
void ls_device_destroy(struct ls_device *device);

/* GPUs that this process may use. LS_USAGE says why there are none, each cause in its own words: this build has no
 * CUDA, no driver, a driver older than the runtime, none visible. */
enum ls_code ls_device_count_cuda(int *count, struct ls_error *error);
/* A device on GPU `index` of those. With `tf32`, products of fp32 round their factors to 10 bits of mantissa. Errors:
 * those of ls_device_count_cuda(); LS_ERROR: the library for products cannot be opened, the GPU does not answer. */
enum ls_code ls_device_create_cuda(int index, bool tf32, struct ls_device **device, struct ls_error *error);

/* A device that computes nothing and knows what the operations of a CUDA device need: for plans on hosts without one.
 * Takes no memory and no streams. LS_MEMORY. */
enum ls_code ls_device_create_planned_cuda(struct ls_device **device, struct ls_error *error);

/* What a device is. */
enum ls_device_kind { LS_DEVICE_KIND_CPU, LS_DEVICE_KIND_CUDA };
struct ls_device_info {
    enum ls_device_kind kind;
    char name[128];         /* of the GPU, as its driver says it; CPUs: "" */
    char bus_id[24];        /* PCI, "0000:3b:00.0" */
    int capability;         /* 90 for 9.0 */
    int64_t memory_bytes;   /* of the GPU; CPUs: 0 */
    int64_t overhead_bytes; /* what context and libraries had taken when the device was made, and for choices */
};
const struct ls_device_info *ls_device_info(const struct ls_device *device);
/* Bytes of the GPU's memory that are free now, whoever has the others; CPUs: 0. */
int64_t ls_device_free_bytes(const struct ls_device *device);

/* What a GPU was at lately, whoever uses it; 0: not known. CPUs: all 0. Never waits. */
struct ls_device_gauges {
    int64_t memory_bytes, memory_peak_bytes; /* taken now, and at most so far */
    double power_watts;
    int clock_mhz; /* of the multiprocessors */
};
struct ls_device_gauges ls_device_gauges(const struct ls_device *device);

/* With `fixed`, matrix products are cut into tiles by their shape alone, not by the number of threads: the bits of
 * every result are the same at any number of threads, some products take longer. Off at first; set while all streams
 * are idle. */
void ls_device_set_fixed(struct ls_device *device, bool fixed);

/* Choosing how products and attention are computed, on devices whose libraries have several ways (CUDA; others have
 * nothing to choose). Between begin and choose nothing that is put on a stream runs, only the shapes are noted. _choose
 * measures each way of each product with the pointers that were given, which overwrites their results, and describes
 * the fastest in *choices (malloc'ed, the caller's; NULL and 0 bytes: nothing to choose); attention in 16 bits is a
 * library's if its results are right and it is faster. On a device set to `fixed` nothing is measured: products are
 * the library's first proposal, attention is the library's if its results are right. _adopt has the device use what
 * one rank has chosen; *whole false: attention it cannot, and ls_device_abandon() is to be called on all ranks, which
 * makes attention our kernels' everywhere. All streams are idle. LS_MEMORY, LS_ERROR. */
void ls_device_rehearse(struct ls_device *device, bool on);
/* True where choices that were made before, by any process, are for this device, its libraries and all shapes that were
 * noted, and attention comes out right with them: they may be adopted in place of new ones. */
bool ls_device_recall(struct ls_device *device, const void *choices, int64_t bytes);
enum ls_code ls_device_choose(struct ls_device *device, void **choices, int64_t *bytes, struct ls_error *error);
enum ls_code ls_device_adopt(struct ls_device *device, const void *choices, int64_t bytes, bool *whole,
                             struct ls_error *error);
void ls_device_abandon(struct ls_device *device);

/* What results may depend on: CPU model, instruction set, library versions; one line, printable. Owned by the device.
 */
const char *ls_device_numerics_id(const struct ls_device *device);

/* True where the host may read device memory in place while nothing on a stream writes it. */
bool ls_device_host_reads(const struct ls_device *device);

/* Device memory, 64-byte aligned at least, zeroed. For the arena: never called after the first step. NULL when there is
 * none. */
void *ls_device_allocate(struct ls_device *device, size_t bytes);
void ls_device_free(struct ls_device *device, void *memory);
/* Host memory the device can copy from and to asynchronously. NULL when there is none. */
void *ls_device_allocate_host(struct ls_device *device, size_t bytes);
void ls_device_free_host(struct ls_device *device, void *memory);

/* Streams. `background` streams run beside the compute stream (communication, copies). NULL when out of memory. */
struct ls_stream *ls_stream_create(struct ls_device *device, bool background);
void ls_stream_destroy(struct ls_stream *stream); /* waits for what is queued */
struct ls_device *ls_stream_device(struct ls_stream *stream);
/* Waits until all that was put on the stream has run. Returns the first error that any operation on it met, and forgets
 * it. */
enum ls_code ls_stream_synchronize(struct ls_stream *stream, struct ls_error *error);

/* Events mark a point in a stream. Waiting for an event that was never recorded does not wait. */
struct ls_event *ls_event_create(struct ls_device *device);
void ls_event_destroy(struct ls_event *event);
void ls_event_record(struct ls_event *event, struct ls_stream *stream);
void ls_stream_wait(struct ls_stream *stream, struct ls_event *event);
/* The same, and measures how long the stream stood still there; _waited_seconds is the sum of all such waits, up to
 * date after ls_stream_synchronize(). */
void ls_stream_wait_measured(struct ls_stream *stream, struct ls_event *event);
double ls_stream_waited_seconds(const struct ls_stream *stream);
/* Waits until what the event marks has run. Returns the error that its stream holds at that time, if any, and leaves it
 * there. */
enum ls_code ls_event_synchronize(struct ls_event *event, struct ls_error *error);

/* Copies and fills. Host memory given here stays untouched by the caller until the stream has passed the copy. */
void ls_copy_to_device(struct ls_stream *stream, void *device_memory, const void *host_memory, size_t bytes);
void ls_copy_to_host(struct ls_stream *stream, void *host_memory, const void *device_memory, size_t bytes);
void ls_copy(struct ls_stream *stream, void *to, const void *from, size_t bytes);
void ls_fill_zero(struct ls_stream *stream, void *memory, size_t bytes);

/* Runs `function(argument copy, error)` on the host in the stream's order; its failure becomes the stream's, whose
 * later operations are skipped until ls_stream_synchronize has reported it; streams that wait for it go on. On
 * a GPU it must not wait for what another stream has yet to do, which may wait for this one, ordered by an event or
 * not. Collectives over MPI and threads are put on a CPU device's stream by this call. `bytes` <=
 * LS_STREAM_ARGUMENT_MAX. */
typedef enum ls_code ls_host_function(const void *argument, struct ls_error *error);
enum { LS_STREAM_ARGUMENT_MAX = 256 };
void ls_stream_call(struct ls_stream *stream, ls_host_function *function, const void *argument, size_t bytes);

/* Puts one operation of operations.h on a stream:
 *     ls_op(stream, layernorm_forward, .output = y, .input = x, .rows = B * T, .columns = C);
 * Fields that are not named are zero. */
#define ls_op(stream, name, ...)                                                                                       \
    ls_stream_submit(stream, LS_OP_##name, &(struct ls_op_##name){__VA_ARGS__}, sizeof(struct ls_op_##name))
void ls_stream_submit(struct ls_stream *stream, enum ls_op op, const void *arguments, size_t bytes);

/* Bytes of scratch that `op` needs for these arguments; callers pass that much in the operation's `workspace`. 0 for
 * most. */
size_t ls_op_workspace(const struct ls_device *device, enum ls_op op, const void *arguments);

#endif
