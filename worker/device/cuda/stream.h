/* Streams and events of the CUDA device: CUDA's own, with the errors, host calls and measured waits that device.h
 * promises. Calls of the host run in a thread of the driver, in the stream's order. */
#ifndef LS_WORKER_DEVICE_CUDA_STREAM_H
#define LS_WORKER_DEVICE_CUDA_STREAM_H

#include "worker/device/cuda/device.h"

/* The stream's handle, for libraries. */
cudaStream_t ls_cuda_stream(struct ls_stream *stream);
/* Notes that something that was put on the stream failed; the first error stays until it is reported. */
void ls_cuda_stream_fail(struct ls_stream *stream, const struct ls_error *error);
/* Likewise, from CUDA's answer to `what`; cudaSuccess: nothing happens. */
void ls_cuda_stream_note(struct ls_stream *stream, cudaError_t status, const char *what);
/* True while an error waits to be reported: what is put on the stream now is left out. */
bool ls_cuda_stream_has_failed(struct ls_stream *stream);

/* What device.h's functions do for a CUDA device. */
struct ls_stream *ls_cuda_stream_create(struct ls_device *device, bool background);
void ls_cuda_stream_destroy(struct ls_stream *stream);
enum ls_code ls_cuda_stream_synchronize(struct ls_stream *stream, struct ls_error *error);
void ls_cuda_stream_wait(struct ls_stream *stream, struct ls_event *event);
void ls_cuda_stream_wait_measured(struct ls_stream *stream, struct ls_event *event);
double ls_cuda_stream_waited_seconds(const struct ls_stream *stream);
void ls_cuda_stream_copy(struct ls_stream *stream, void *to, const void *from, size_t bytes, enum ls_copy_kind kind);
void ls_cuda_stream_fill_zero(struct ls_stream *stream, void *memory, size_t bytes);
void ls_cuda_stream_call(struct ls_stream *stream, ls_host_function *function, const void *argument, size_t bytes);
struct ls_event *ls_cuda_event_create(struct ls_device *device);
void ls_cuda_event_destroy(struct ls_event *event);
void ls_cuda_event_record(struct ls_event *event, struct ls_stream *stream);
enum ls_code ls_cuda_event_synchronize(struct ls_event *event, struct ls_error *error);

/* Frees what destroyed streams left for events that name them. */
void ls_cuda_streams_finalize(struct ls_cuda_device *device);

#endif
