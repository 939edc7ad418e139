/* Streams and events of the CPU device: three ways to run one queue. */
#ifndef LS_WORKER_DEVICE_CPU_STREAM_H
#define LS_WORKER_DEVICE_CPU_STREAM_H

#include "worker/device/backend.h"

#include <pthread.h>

struct ls_cpu_stream;

struct ls_cpu_device {
    struct ls_device base;
    int threads; /* of the compute stream; background streams use one */
    enum ls_stream_order order;
    pthread_mutex_t lock;          /* guards the list */
    struct ls_cpu_stream *streams; /* all ever made, freed with the device: an event may name a destroyed one */
};

/* Makes the members above ready. */
void ls_cpu_streams_initialize(struct ls_cpu_device *device);
/* Ends every stream, waiting for what is queued, and frees them all. */
void ls_cpu_streams_finalize(struct ls_cpu_device *device);

/* What device.h's functions do for a CPU device. */
struct ls_stream *ls_cpu_stream_create(struct ls_device *device, bool background);
void ls_cpu_stream_destroy(struct ls_stream *stream);
enum ls_code ls_cpu_stream_synchronize(struct ls_stream *stream, struct ls_error *error);
void ls_cpu_stream_wait(struct ls_stream *stream, struct ls_event *event);
void ls_cpu_stream_wait_measured(struct ls_stream *stream, struct ls_event *event);
double ls_cpu_stream_waited_seconds(const struct ls_stream *stream);
void ls_cpu_stream_copy(struct ls_stream *stream, void *to, const void *from, size_t bytes, enum ls_copy_kind kind);
void ls_cpu_stream_fill_zero(struct ls_stream *stream, void *memory, size_t bytes);
void ls_cpu_stream_call(struct ls_stream *stream, ls_host_function *function, const void *argument, size_t bytes);
void ls_cpu_stream_submit(struct ls_stream *stream, enum ls_op op, const void *arguments, size_t bytes);
struct ls_event *ls_cpu_event_create(struct ls_device *device);
void ls_cpu_event_destroy(struct ls_event *event);
void ls_cpu_event_record(struct ls_event *event, struct ls_stream *stream);
enum ls_code ls_cpu_event_synchronize(struct ls_event *event, struct ls_error *error);

/* Runs operation `op` in the calling thread (stream.c's caller into the kernels); `fixed`: see ls_device_set_fixed().
 * Refuses unknown types. */
enum ls_code ls_cpu_run(int threads, bool fixed, enum ls_op op, const void *arguments, struct ls_error *error);

#endif
